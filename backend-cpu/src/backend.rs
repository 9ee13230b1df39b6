//! The backend: this machine's processor.

use std::thread::available_parallelism;

use backend_api::{
    Backend, BackendError, BatchBounds, Capabilities, CompileOptions, Executor, KvFormat, Limits,
    program::Program, weights::Weights,
};

use crate::{
    executor::{BACKEND, CpuExecutor, Driver, Machine, compile},
    kernels::kv::{KvLayer, PageShape},
    memory,
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

    /// Computes on `threads` threads.
    #[must_use]
    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = Some(threads);
        self
    }

    /// Uses the instructions of `set`.
    #[must_use]
    pub fn instruction_set(mut self, set: InstructionSet) -> Self {
        self.instruction_set = Some(set);
        self
    }
}

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
        let set = format!("{:?}", self.simd.set()).to_lowercase();
        let description = format!("cpu ({set}, {} threads)", self.threads);
        let memory = memory::available_bytes();
        let mut capabilities = Capabilities::new(description, memory);
        // One memory serves both tiers; what the device tier leaves, the host tier may have.
        capabilities.host_memory_bytes = memory;
        capabilities.batch_invariant = true;
        capabilities
    }

    fn compile(
        &self,
        programs: &[Program],
        weights: &dyn Weights,
        options: &CompileOptions,
    ) -> Result<Box<dyn Executor>, BackendError> {
        let [program] = programs else {
            let what = format!("{} programs in one executor", programs.len());
            return Err(BackendError::Unsupported { backend: BACKEND, what });
        };
        check_options(program, options)?;
        let shapes: Vec<PageShape> = program
            .groups()
            .iter()
            .map(|group| PageShape {
                page_size: options.page_size as usize,
                kv_heads: group.kv_heads as usize,
                head_dim: group.head_dim as usize,
            })
            .collect();
        let compiled = compile(program, weights)?;
        let kv_bytes = kv_bytes(program, &shapes, &options.limits.pages).saturating_add(kv_bytes(
            program,
            &shapes,
            &options.host_pages,
        ));
        let needed = kv_bytes.saturating_add(compiled.activation_bytes(&options.limits));
        let available = memory::available_bytes();
        if needed > available {
            let weights = compiled.weights.bytes();
            let what = format!("memory for KV and activations beside {weights} bytes of weights");
            return Err(BackendError::Memory { what, needed, available });
        }
        let pool = self.pool()?;
        let limits = &options.limits;
        let machine = Machine::new(
            compiled,
            self.simd,
            pool,
            kv_memory(program, &shapes, &limits.pages),
            limits.tokens as usize,
            limits.outputs as usize,
        );
        let host = kv_memory(program, &shapes, &options.host_pages);
        let driver = Driver::new(machine, host, limits.slots as usize);
        let bounds = BatchBounds::new(programs, options);
        let groups = vec![shapes.len()];
        let host_pages = options.host_pages.clone();
        Ok(Box::new(CpuExecutor::start("understory-cpu", driver, bounds, groups, host_pages)?))
    }
}

fn all_cores() -> usize {
    available_parallelism().map_or(1, usize::from)
}

fn check_options(program: &Program, options: &CompileOptions) -> Result<(), BackendError> {
    let invalid = |option, reason| Err(BackendError::Option { option, reason });
    let page_size = options.page_size;
    if !page_size.is_power_of_two() || page_size > 512 {
        return invalid("page_size", format!("{page_size} is not a power of two up to 512"));
    }
    if options.kv_format != KvFormat::F32 {
        return Err(BackendError::Unsupported {
            backend: BACKEND,
            what: format!("KV in {}", options.kv_format),
        });
    }
    let groups = program.groups().len();
    if options.limits.pages.len() != groups {
        let reason = format!("{} for {groups} page groups", options.limits.pages.len());
        return invalid("limits.pages", reason);
    }
    if !options.host_pages.is_empty() && options.host_pages.len() != groups {
        let reason = format!("{} for {groups} page groups", options.host_pages.len());
        return invalid("host_pages", reason);
    }
    let Limits { rows, tokens, slots, .. } = options.limits;
    if rows == 0 || tokens == 0 || slots == 0 {
        return invalid("limits", format!("{rows} rows, {tokens} tokens and {slots} slots"));
    }
    Ok(())
}

fn kv_bytes(program: &Program, shapes: &[PageShape], pages: &[u32]) -> u64 {
    let groups = program.groups().iter().zip(shapes).zip(pages);
    groups.fold(0, |sum: u64, ((group, shape), pages)| {
        let pages = u64::from(*pages).saturating_mul(u64::from(group.layers));
        sum.saturating_add(shape.page_bytes().saturating_mul(pages))
    })
}

fn kv_memory(program: &Program, shapes: &[PageShape], pages: &[u32]) -> Vec<Vec<KvLayer>> {
    let groups = program.groups().iter().zip(shapes).zip(pages);
    groups
        .map(|((group, shape), pages)| {
            (0..group.layers).map(|_| KvLayer::new(*shape, *pages as usize)).collect()
        })
        .collect()
}
