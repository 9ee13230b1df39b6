//! Modules, functions and launches.

use std::collections::HashMap;
use std::sync::Arc;

use crate::{Launch, LoadError, Program, SHARED_LIMIT};

use super::status::{Answer, Status};
use super::work::Work;
use super::{Driver, Function, Module, config};

/// Shared memory of a block that needs no attribute.
const SHARED_WITHOUT_ASKING: u32 = 48 << 10;
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
        let module = Module { device, program: Arc::new(program), functions: HashMap::new() };
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
        self.functions.insert(handle, Function { kernel, dynamic_shared: most });
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
            9 => Ok(()),
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
            // ptxas decides; the hardware's most is a bound that is always true.
            4 => 255,
            // The versions of PTX and of the binary.
            5 | 6 => self.config.capability as i32,
            8 => state.dynamic_shared as i32,
            _ => 0,
        })
    }

    /// The parameters of a function: offset and size of each, and the size of all.
    pub fn parameters(&self, function: u64) -> Answer<(Vec<(usize, usize)>, usize)> {
        let kernel = &self.functions.get(&function).ok_or(Status::INVALID_HANDLE)?.kernel;
        let each = kernel.parameters().iter().map(|one| (one.offset, one.bytes)).collect();
        Ok((each, kernel.parameter_bytes()))
    }

    /// `cuLaunchKernel`, with the parameter block.
    pub fn launch(
        &mut self,
        stream: u64,
        function: u64,
        shape: Launch,
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
        let device = self.streams.get(&stream).ok_or(Status::INVALID_HANDLE)?.device;
        self.push(stream, Work::Launch { device, kernel, shape, parameters })
    }

    /// Blocks of a kernel that fit on a multiprocessor at once, by threads and shared memory.
    /// Registers are known to ptxas only.
    pub fn occupancy(&self, function: u64, threads: i32, dynamic_shared: usize) -> Answer<i32> {
        let kernel = &self.functions.get(&function).ok_or(Status::INVALID_HANDLE)?.kernel;
        let threads = u32::try_from(threads).map_err(|_| Status::INVALID_VALUE)?;
        if threads == 0 || threads > 1024 {
            return Err(Status::INVALID_VALUE);
        }
        let warps = threads.div_ceil(32);
        let by_threads = 64 / warps;
        // Each block takes a kilobyte for the system.
        let bytes = kernel.static_shared_bytes() + dynamic_shared + 1024;
        let by_shared = (self.shared_limit() as usize + 1024) / bytes;
        Ok(by_threads.min(32).min(by_shared as u32) as i32)
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
}
