//! The backend: this machine's processor.

use std::thread::available_parallelism;

use backend_api::{
    Backend, BackendError, BatchBounds, Capabilities, CompileOptions, Compute, Executor, GroupId,
    KvFormat, kit,
    program::{PageGroup, Program},
    weights::{Format, Weights},
};

use crate::{
    executor::{
        BACKEND, Compiled, CpuExecutor, Driver, KvMemory, LoadedWeights, Machine, WeightPlaces,
        Workers, compile, loaded_bytes,
    },
    kernels::{
        kv::{KvLayer, PageShape},
        matrix::Matrix,
    },
    pool::Pool,
    simd::{InstructionSet, Simd},
};

/// How a [`CpuBackend`] uses the machine.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct CpuOptions {
    /// Threads that compute, by default one for each core that this process may use.
    pub threads: Option<usize>,
    /// Instructions to use, by default the fastest that the processor has.
    pub instruction_set: Option<InstructionSet>,
}

impl CpuOptions {
    /// The defaults.
    pub fn new() -> Self {
        Self::default()
    }
}

backend_api::setters!(CpuOptions {
    threads: impl Into<Option<usize>>,
    instruction_set: impl Into<Option<InstructionSet>>,
});

/// This machine's processor.
#[derive(Debug)]
pub struct CpuBackend {
    threads: usize,
    simd: Simd,
}

impl CpuBackend {
    /// All cores, the fastest instructions.
    pub fn new() -> Self {
        Self { threads: all_cores(), simd: Simd::best() }
    }

    /// As `options` say.
    ///
    /// # Errors
    /// [`BackendError::Option`] for no threads, or more than 1,024; [`BackendError::Unsupported`]
    /// for instructions that the processor does not have.
    pub fn with_options(options: &CpuOptions) -> Result<Self, BackendError> {
        let threads = options.threads.unwrap_or_else(all_cores);
        if !(1..=1024).contains(&threads) {
            let reason = format!("{threads} is not between 1 and 1024");
            return Err(BackendError::Option { option: "threads", reason });
        }
        let simd = match options.instruction_set {
            None => Simd::best(),
            Some(set) => Simd::for_set(set).ok_or_else(|| BackendError::Unsupported {
                backend: BACKEND,
                what: format!("{set:?} on this processor"),
            })?,
        };
        Ok(Self { threads, simd })
    }

    /// The instructions in use.
    pub fn instruction_set(&self) -> InstructionSet {
        self.simd.set()
    }

    /// Threads that compute.
    pub fn threads(&self) -> usize {
        self.threads
    }

    pub(crate) fn simd(&self) -> Simd {
        self.simd
    }

    /// Precisions that are faster than exact.
    fn fast_computes(&self) -> Vec<Compute> {
        let bf16 = self.simd.has_fast_bf16().then_some(Compute::Bf16);
        let int8 = self.simd.has_fast_bytes().then_some(Compute::Int8);
        bf16.into_iter().chain(int8).collect()
    }

    /// A pool of this backend's threads.
    pub(crate) fn pool(&self) -> Result<Pool, BackendError> {
        Pool::new("understory-cpu", self.threads).map_err(|error| BackendError::Device {
            context: "starting the backend's threads".to_owned(),
            message: error.to_string(),
        })
    }
}

impl Default for CpuBackend {
    fn default() -> Self {
        Self::new()
    }
}

impl Backend for CpuBackend {
    fn capabilities(&self) -> Capabilities {
        let description = format!("cpu ({}, {} threads)", self.simd.set(), self.threads);
        let memory = kit::available_bytes();
        let mut capabilities = Capabilities::new(description, memory);
        // One memory serves both tiers; what the device tier leaves, the host tier may have.
        capabilities.host_memory_bytes = memory;
        capabilities.batch_invariant = true;
        capabilities.kv_formats =
            vec![KvFormat::F32, KvFormat::Bf16, KvFormat::F16, KvFormat::Int8];
        capabilities.computes = vec![Compute::Bf16, Compute::Int8];
        capabilities.fast_computes = self.fast_computes();
        capabilities
    }

    fn compute_of(&self, compute: Compute, format: Format, inputs: usize) -> Compute {
        Matrix::compute_of(compute.of(format, &self.fast_computes()), format, inputs)
    }

    fn page_bytes(
        &self,
        program: &Program,
        group: GroupId,
        page_size: u32,
        format: KvFormat,
    ) -> u64 {
        // Values are padded and bytes have scales, so a page may cost more than its elements.
        let group = &program.groups()[group.index()];
        page_shape(group, page_size).page_bytes(format).saturating_mul(group.layers.into())
    }

    fn weight_bytes(
        &self,
        program: &Program,
        weights: &dyn Weights,
        compute: Compute,
    ) -> Result<u64, BackendError> {
        loaded_bytes(program, weights, (compute, &self.fast_computes()))
    }

    fn activation_bytes(&self, program: &Program, options: &CompileOptions) -> u64 {
        compile(program, &WeightPlaces::planned(program)).map_or_else(
            |_| kit::activation_bytes(program, &options.limits),
            |it| it.activation_bytes(options, self.threads, &self.fast_computes()),
        )
    }

    fn compile(
        &self,
        programs: &[Program],
        weights: &dyn Weights,
        options: &CompileOptions,
    ) -> Result<Box<dyn Executor>, BackendError> {
        kit::check_options(BACKEND, &self.capabilities(), programs, options)?;
        let (limits, host_pages) = (&options.limits, &options.host_pages);
        let fast = self.fast_computes();
        let compute = (options.compute, &fast[..]);
        let mut loaded = LoadedWeights::default();
        let compiled = programs
            .iter()
            .map(|program| compile(program, &loaded.load(program, weights, compute)?))
            .collect::<Result<Vec<Compiled>, _>>()?;
        let activations =
            compiled.iter().map(|it| it.activation_bytes(options, self.threads, &fast));
        let activations = activations.fold(0, u64::saturating_add);
        let pages = [&limits.pages, host_pages];
        let kv = pages.map(|pages| kit::kv_bytes(self, programs, pages, options));
        let needed = kv.into_iter().fold(activations, u64::saturating_add);
        let beside = loaded.bytes();
        let what = format!("memory for KV and activations beside {beside} bytes of weights");
        kit::check_memory(what, needed, kit::available_bytes())?;

        let mut first_group = 0;
        let mut workers = Workers::new(self.pool()?, self.simd);
        let machines = programs.iter().zip(compiled).map(|(program, compiled)| {
            let groups = first_group..first_group + program.groups().len();
            first_group = groups.end;
            let memory = compiled.step_memory(options, self.threads, &fast);
            workers.linear.reserve(memory.converted);
            Machine::new(compiled, groups, options, memory)
        });
        let machines = machines.collect();
        let tiers = pages.map(|pages| kv_memory(programs, pages, options));
        let driver = Driver::new(workers, loaded, machines, tiers, limits.slots as usize);
        let footprint = driver.footprint();
        let bounds = BatchBounds::new(programs, options);
        let groups = programs.iter().map(|program| program.groups().len()).collect();
        let host_pages = host_pages.clone();
        let executor = CpuExecutor::start("understory-cpu", driver, bounds, groups, host_pages)?;
        Ok(Box::new(executor.with_footprint(footprint)))
    }
}

fn all_cores() -> usize {
    available_parallelism().map_or(1, usize::from)
}

fn page_shape(group: &PageGroup, page_size: u32) -> PageShape {
    PageShape {
        page_size: page_size as usize,
        kv_heads: group.kv_heads as usize,
        head_dim: group.head_dim as usize,
    }
}

/// Memory by page group of all programs and by layer; none for groups that `pages` lacks.
fn kv_memory(programs: &[Program], pages: &[u32], options: &CompileOptions) -> KvMemory {
    let groups = programs.iter().flat_map(Program::groups).zip(pages);
    groups
        .map(|(group, pages)| {
            let shape = page_shape(group, options.page_size);
            let layer = |_| KvLayer::new(shape, *pages as usize, options.kv_format);
            (0..group.layers).map(layer).collect()
        })
        .collect()
}
