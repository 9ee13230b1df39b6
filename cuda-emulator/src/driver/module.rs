//! Modules, functions and launches.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use crate::hardware::{self, Demand, Limits};
use crate::{Launch, LoadError, Program, SHARED_LIMIT};

use super::status::{Answer, Status};
use super::work::Work;
use super::{Driver, Function, Module, config};

/// Shared memory of a block that needs no attribute.
const SHARED_WITHOUT_ASKING: u32 = 48 << 10;
/// The number of the attribute with the multiprocessors of a device.
const MULTIPROCESSORS: u32 = 16;
/// Blocks of a cluster that every device with clusters allows.
const PORTABLE_CLUSTER: u32 = 8;
/// The number of the attribute with the most shared memory of a block.
const SHARED_ATTRIBUTE: u32 = 97;

impl Driver {
    /// `cuModuleLoadData` with PTX text.
    ///
    /// # Errors
    ///
    /// The status, with words for a person.
    pub fn load_module(&mut self, device: usize, text: &str) -> Result<u64, (Status, String)> {
        let parsed = crate::ptx::Module::parse(text)
            .map_err(|error| (Status::INVALID_PTX, error.to_string()))?;
        let digits = parsed.target.trim_start_matches("sm_").trim_end_matches(char::is_alphabetic);
        if digits.parse::<u32>().is_ok_and(|target| target > self.config.capability) {
            let text = format!("{} is newer than sm_{}", parsed.target, self.config.capability);
            return Err((Status::NO_BINARY, text));
        }
        let state = self.device_mut(device).map_err(|status| (status, String::new()))?;
        let program = Program::from_module(parsed, &mut state.memory).map_err(|error| {
            let status = match error {
                LoadError::Memory { .. } => Status::OUT_OF_MEMORY,
                _ => Status::INVALID_PTX,
            };
            (status, error.to_string())
        })?;
        let handle = self.handle();
        let module = Module {
            device,
            program: Arc::new(program),
            functions: HashMap::new(),
            text: text.to_owned(),
            resources: OnceLock::new(),
        };
        self.modules.insert(handle, module);
        Ok(handle)
    }

    /// `cuModuleUnload`: waits for the device's work first.
    pub fn unload_module(&mut self, handle: u64) -> Answer<()> {
        let device = self.modules.get(&handle).ok_or(Status::INVALID_HANDLE)?.device;
        let drained = self.drain_device(device);
        if drained == Err(Status::BLOCKED) {
            return drained;
        }
        if let Some(module) = self.modules.remove(&handle) {
            for function in module.functions.values() {
                self.functions.remove(function);
            }
            let state = self.device_mut(device)?;
            for address in module.program.variables() {
                // The variables were allocated when the module was loaded.
                _ = state.memory.free(address);
            }
        }
        drained
    }

    /// `cuModuleGetFunction`.
    ///
    /// # Errors
    ///
    /// The status, with words for a person.
    pub fn function(&mut self, module: u64, name: &str) -> Result<u64, (Status, String)> {
        let Some(state) = self.modules.get(&module) else {
            return Err((Status::INVALID_HANDLE, String::new()));
        };
        if let Some(known) = state.functions.get(name) {
            return Ok(*known);
        }
        let kernel = state.program.kernel(name).map_err(|error| {
            let status = match error {
                LoadError::NoKernel { .. } => Status::NOT_FOUND,
                _ => Status::INVALID_PTX,
            };
            (status, error.to_string())
        })?;
        let handle = self.handle();
        let most = SHARED_WITHOUT_ASKING.saturating_sub(kernel.static_shared_bytes() as u32);
        let function = Function {
            kernel,
            module,
            dynamic_shared: most,
            cluster: [0; 3],
            large_clusters: false,
        };
        self.functions.insert(handle, function);
        if let Some(state) = self.modules.get_mut(&module) {
            state.functions.insert(name.to_owned(), handle);
        }
        Ok(handle)
    }

    /// `cuModuleGetGlobal`: address and size of a variable.
    pub fn global(&self, module: u64, name: &str) -> Answer<(u64, u64)> {
        let module = self.modules.get(&module).ok_or(Status::INVALID_HANDLE)?;
        module.program.variable(name).ok_or(Status::NOT_FOUND)
    }

    /// The most shared memory of a block on these devices.
    fn shared_limit(&self) -> u32 {
        let limit = config::attribute(&self.config, SHARED_ATTRIBUTE) as u32;
        limit.min(SHARED_LIMIT as u32)
    }

    /// `cuFuncSetAttribute`.
    pub fn set_function_attribute(&mut self, function: u64, number: u32, value: i32) -> Answer<()> {
        let limit = self.shared_limit();
        let state = self.functions.get_mut(&function).ok_or(Status::INVALID_HANDLE)?;
        match number {
            // The most dynamic shared memory.
            8 => {
                let bytes = u32::try_from(value).map_err(|_| Status::INVALID_VALUE)?;
                if bytes + state.kernel.static_shared_bytes() as u32 > limit {
                    return Err(Status::INVALID_VALUE);
                }
                state.dynamic_shared = bytes;
                Ok(())
            }
            // How much of the L1 cache should be shared memory: a hint.
            9 if (-1..=100).contains(&value) => Ok(()),
            // The shape of clusters, if the kernel doesn't say; whether they may be larger than
            // every device allows.
            11..=13 if state.kernel.cluster.is_some() => Err(Status::NOT_PERMITTED),
            11..=13 if value >= 0 => {
                if let Some(axis) = state.cluster.get_mut(number as usize - 11) {
                    *axis = value as u32;
                }
                Ok(())
            }
            14 if (0..=1).contains(&value) => {
                state.large_clusters = value == 1;
                Ok(())
            }
            // How clusters are spread: a hint.
            15 if (0..=2).contains(&value) => Ok(()),
            _ => Err(Status::INVALID_VALUE),
        }
    }

    /// `cuFuncGetAttribute`.
    pub fn function_attribute(&self, function: u64, number: u32) -> Answer<i32> {
        let state = self.functions.get(&function).ok_or(Status::INVALID_HANDLE)?;
        let kernel = &state.kernel;
        Ok(match number {
            // Threads, shared memory, constants, local memory, registers.
            0 => kernel.max_threads().unwrap_or(1024) as i32,
            1 => kernel.static_shared_bytes() as i32,
            2 => 0,
            3 => kernel.local_bytes() as i32,
            // Without ptxas the hardware's most is a bound that is always true.
            4 => self.registers(function)?.unwrap_or(255) as i32,
            // The versions of PTX and of the binary.
            5 | 6 => self.config.capability as i32,
            8 => state.dynamic_shared as i32,
            11..=13 => {
                let cluster = kernel.cluster.unwrap_or(state.cluster);
                cluster.get(number as usize - 11).map_or(0, |axis| *axis as i32)
            }
            14 => i32::from(state.large_clusters),
            7 | 9 | 10 | 15 | 16 => 0,
            _ => return Err(Status::INVALID_VALUE),
        })
    }

    /// The parameters of a function: offset and size of each, and the size of all.
    pub fn parameters(&self, function: u64) -> Answer<(Vec<(usize, usize)>, usize)> {
        let kernel = &self.functions.get(&function).ok_or(Status::INVALID_HANDLE)?.kernel;
        let each = kernel.parameters().iter().map(|one| (one.offset, one.bytes)).collect();
        Ok((each, kernel.parameter_bytes()))
    }

    /// `cuLaunchKernel` and `cuLaunchKernelEx`, with the parameter block. The blocks of a
    /// `cooperative` launch may wait for each other.
    pub fn launch(
        &mut self,
        stream: u64,
        function: u64,
        mut shape: Launch,
        cooperative: bool,
        parameters: Vec<u8>,
    ) -> Answer<()> {
        let state = self.functions.get(&function).ok_or(Status::INVALID_HANDLE)?;
        let kernel = state.kernel.clone();
        let [x, y, z] = shape.grid;
        if x == 0 || y == 0 || z == 0 || x > i32::MAX as u32 || y > 65_535 || z > 65_535 {
            return Err(Status::INVALID_VALUE);
        }
        let [x, y, z] = shape.block.map(u64::from);
        let threads = x.saturating_mul(y).saturating_mul(z);
        if threads == 0 || threads > 1024 || z > 64 {
            return Err(Status::INVALID_VALUE);
        }
        if kernel.max_threads().is_some_and(|most| threads > u64::from(most)) {
            return Err(Status::INVALID_VALUE);
        }
        if shape.dynamic_shared > state.dynamic_shared {
            return Err(Status::INVALID_VALUE);
        }
        let asked = (state.cluster != [0; 3]).then_some(state.cluster);
        shape.cluster = shape.cluster.or(asked).or(kernel.cluster);
        self.check_cluster(state, &shape)?;
        let device = self.streams.get(&stream).ok_or(Status::INVALID_HANDLE)?.device;
        // A function belongs to the device that its module was loaded on.
        if self.modules.get(&state.module).is_none_or(|module| module.device != device) {
            return Err(Status::INVALID_HANDLE);
        }
        if cooperative {
            // All blocks must be on the device at once.
            let blocks = self.occupancy(function, threads as i32, shape.dynamic_shared as usize)?;
            let most = i64::from(blocks) * i64::from(self.attribute(device, MULTIPROCESSORS)?);
            let asked = shape.grid.into_iter().map(i64::from).fold(1, i64::saturating_mul);
            if asked > most {
                return Err(Status::COOPERATIVE_TOO_LARGE);
            }
        }
        self.push(stream, Work::Launch { device, kernel, shape, parameters })
    }

    /// Registers of a function's threads, if ptxas was fetched before or is named.
    fn registers(&self, function: u64) -> Answer<Option<u32>> {
        let state = self.functions.get(&function).ok_or(Status::INVALID_HANDLE)?;
        let module = self.modules.get(&state.module).ok_or(Status::INVALID_HANDLE)?;
        let all = module.resources.get_or_init(|| {
            let architecture = module.program.module().target.clone();
            let ptxas = crate::ptxas::Ptxas::find_fetched()?;
            ptxas.resources(&module.text, &architecture).ok()
        });
        Ok(all.as_ref().and_then(|all| all.get(state.kernel.name())).map(|found| found.registers))
    }

    fn limits(&self) -> Limits {
        // A compute capability that isn't in the table is taken for the oldest in it.
        Limits::of(self.config.capability).or_else(|| Limits::of(80)).unwrap_or(Limits {
            warps: 64,
            blocks: 32,
            registers: 1 << 16,
            shared: 164 << 10,
            shared_of_block: 163 << 10,
        })
    }

    /// Blocks of a kernel that fit on a multiprocessor at once.
    pub fn occupancy(&self, function: u64, threads: i32, dynamic_shared: usize) -> Answer<i32> {
        let kernel = &self.functions.get(&function).ok_or(Status::INVALID_HANDLE)?.kernel;
        let threads = u32::try_from(threads).map_err(|_| Status::INVALID_VALUE)?;
        if threads == 0 || threads > kernel.max_threads().unwrap_or(1024).min(1024) {
            return Err(Status::INVALID_VALUE);
        }
        let shared = kernel.static_shared_bytes().saturating_add(dynamic_shared);
        let shared = u32::try_from(shared).unwrap_or(u32::MAX);
        let demand = Demand { threads, registers: self.registers(function)?, shared };
        Ok(hardware::occupancy(&self.limits(), &demand).blocks as i32)
    }

    /// Dynamic shared memory that each of `blocks` blocks on a multiprocessor can have.
    pub fn dynamic_shared_for(&self, function: u64, blocks: i32, threads: i32) -> Answer<usize> {
        let most = self.occupancy(function, threads, 0)?;
        let kernel = &self.functions.get(&function).ok_or(Status::INVALID_HANDLE)?.kernel;
        if blocks < 1 || blocks > most {
            return Err(Status::INVALID_VALUE);
        }
        let each = (self.shared_limit() as usize + 1024) / blocks as usize;
        let room = each.saturating_sub(kernel.static_shared_bytes() + 1024);
        Ok(room.min(self.shared_limit() as usize - kernel.static_shared_bytes()))
    }

    /// `cuOccupancyMaxPotentialBlockSize`: the least number of blocks that fills the device, and the
    /// number of threads of each, at most `limit` (0 for no limit). `shared` tells the dynamic shared
    /// memory of a block of so many threads.
    pub fn best_block(
        &self,
        device: usize,
        function: u64,
        shared: impl Fn(i32) -> usize,
        limit: i32,
    ) -> Answer<(i32, i32)> {
        let kernel = &self.functions.get(&function).ok_or(Status::INVALID_HANDLE)?.kernel;
        let most = kernel.max_threads().unwrap_or(1024).min(1024) as i32;
        let most = if limit > 0 { limit.min(most) } else { most };
        let mut best = (0, 0);
        // From the largest: of those that fill a multiprocessor alike it is the best.
        let mut threads = most;
        while threads > 0 {
            let blocks = self.occupancy(function, threads, shared(threads))?;
            if blocks * threads > best.0 * best.1 {
                best = (blocks, threads);
            }
            threads = (threads - 1) / 32 * 32;
        }
        let multiprocessors = self.attribute(device, MULTIPROCESSORS)?;
        Ok((best.0 * multiprocessors, best.1))
    }

    /// `cuOccupancyMaxActiveClusters`: clusters of a shape that fit on a device at once, as if every
    /// multiprocessor could hold blocks of any cluster.
    pub fn active_clusters(&self, device: usize, function: u64, shape: &Launch) -> Answer<i32> {
        let state = self.functions.get(&function).ok_or(Status::INVALID_HANDLE)?;
        let size = self.check_cluster(state, shape)?;
        let threads = shape.block.into_iter().fold(1u32, u32::saturating_mul);
        let threads = i32::try_from(threads).map_err(|_| Status::INVALID_VALUE)?;
        let blocks = self.occupancy(function, threads, shape.dynamic_shared as usize)?;
        Ok(blocks * self.attribute(device, MULTIPROCESSORS)? / size.max(1) as i32)
    }

    /// `cuOccupancyMaxPotentialClusterSize`: 8 blocks on every device that has clusters, 16 where
    /// the function allows it.
    pub fn largest_cluster(&self, function: u64) -> Answer<i32> {
        let state = self.functions.get(&function).ok_or(Status::INVALID_HANDLE)?;
        if self.config.capability < 90 {
            return Err(Status::NOT_SUPPORTED);
        }
        Ok(if state.large_clusters { 16 } else { PORTABLE_CLUSTER as i32 })
    }

    /// Blocks of a cluster, if the device and the grid allow it.
    fn check_cluster(&self, function: &Function, shape: &Launch) -> Answer<u32> {
        let cluster = shape.cluster.unwrap_or([1; 3]);
        if function.kernel.cluster.is_some_and(|declared| declared != cluster) {
            return Err(Status::INVALID_CLUSTER_SIZE);
        }
        let size = cluster.into_iter().fold(1u32, u32::saturating_mul);
        let most = if function.large_clusters { 16 } else { PORTABLE_CLUSTER };
        let divides = shape
            .grid
            .iter()
            .zip(cluster)
            .all(|(grid, axis)| axis > 0 && grid.is_multiple_of(axis));
        let allowed = size == 1 || self.config.capability >= 90 && size <= most;
        if allowed && divides { Ok(size) } else { Err(Status::INVALID_CLUSTER_SIZE) }
    }
}
