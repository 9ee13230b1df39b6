//! The backend: a device that compiles.

use std::collections::HashMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use backend_api::kit::{available_bytes, check_memory, check_options, kv_bytes};
use backend_api::program::{Op, Program};
use backend_api::weights::Weights;
use backend_api::{
    Backend, BackendError, BatchBounds, Capabilities, CompileOptions, Compute, Executor, GroupId,
    KvFormat,
};
use cudarc::driver::CudaContext;
use cudarc::driver::sys::CUdevice_attribute_enum as DeviceAttribute;

use crate::blas::{Blas, BlasLibrary};
use crate::compiler::Compiler;
use crate::device::{Device, failed};
use crate::driver;
use crate::executor::{Compiled, CudaExecutor, Settings};
use crate::forward::GroupMemory;
use crate::load::{BACKEND, LoadedProgram};
use crate::nvrtc::Nvrtc;
use crate::read_back::ReadBack;
use crate::weights::Use;
use crate::{Hopper, Kernel, Variant, append_shared_bytes};

/// How a [`CudaBackend`] is set up.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct CudaOptions {
    /// Which device, from 0.
    pub ordinal: usize,
    /// Path of the driver's library; `None` leaves it to the system's loader. A process has one driver, the first that it
    /// finds: another path is refused from then on.
    pub driver: Option<PathBuf>,
    /// Path of `libnvrtc`; `None` leaves it to the system's loader.
    pub nvrtc: Option<PathBuf>,
    /// Path of `libcublasLt`; `None` leaves it to the system's loader.
    pub cublaslt: Option<PathBuf>,
    /// Leave dense products of many rows to cuBLASLt, which must be there then; otherwise a kernel computes all. Default yes.
    pub blas: bool,
    /// Compile kernels to machine code of the device; otherwise to PTX, which the driver compiles, and which is all that the
    /// emulator runs. Default yes.
    pub machine_code: bool,
    /// A folder for compiled kernels, so that the next start need not compile. Default none.
    pub cache: Option<PathBuf>,
    /// Bytes of the device's free memory that limits are planned with: weights, KV and activations. Workspaces and buffers
    /// that grow with a step are not held to it. Default all.
    pub memory: Option<u64>,
    /// Activations and KV in IEEE f16; otherwise in bfloat16.
    pub half: bool,
    /// How long a launch, sampling or a transfer waits for the step before; a step that takes longer ends the executor.
    /// Waiting for a step's answers has the deadline of the caller instead. Default two minutes.
    pub longest_step: Duration,
}

impl Default for CudaOptions {
    fn default() -> Self {
        Self {
            ordinal: 0,
            driver: None,
            nvrtc: None,
            cublaslt: None,
            blas: true,
            machine_code: true,
            cache: None,
            memory: None,
            half: false,
            longest_step: Duration::from_secs(120),
        }
    }
}

impl CudaOptions {
    /// The defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// Path of `libnvrtc`.
    #[must_use]
    pub fn nvrtc(self, path: impl Into<PathBuf>) -> Self {
        Self { nvrtc: Some(path.into()), ..self }
    }

    /// On the emulator, in whose stand-in cuBLASLt is too: the paths of its stand-in for a driver and of `libnvrtc`. The emulated memory is this machine's, and
    /// the emulator keeps notes on each byte of it; so limits are planned with an eighth of what is available.
    #[must_use]
    pub fn emulated(self, driver: impl Into<PathBuf>, nvrtc: impl Into<PathBuf>) -> Self {
        let memory = Some(available_bytes() / 8);
        let (driver, nvrtc) = (Some(driver.into()), Some(nvrtc.into()));
        // One library stands for both.
        let cublaslt = driver.clone();
        Self { driver, nvrtc, cublaslt, machine_code: false, memory, ..self }
    }
}

backend_api::setters!(CudaOptions {
    ordinal: usize,
    driver: impl Into<Option<PathBuf>>,
    cublaslt: impl Into<Option<PathBuf>>,
    blas: bool,
    machine_code: bool,
    cache: impl Into<Option<PathBuf>>,
    memory: impl Into<Option<u64>>,
    half: bool,
    longest_step: Duration,
});

/// A device of NVIDIA's.
#[derive(Debug)]
pub struct CudaBackend {
    context: Arc<CudaContext>,
    compiler: Compiler,
    blas: Option<Arc<BlasLibrary>>,
    description: String,
    /// See [`CudaOptions::memory`].
    memory: u64,
    settings: Settings,
}

impl CudaBackend {
    /// Opens a device.
    ///
    /// # Errors
    ///
    /// [`BackendError::Device`], which names what is missing: the driver, NVRTC, the device.
    pub fn new(options: &CudaOptions) -> Result<Self, BackendError> {
        driver::open(options.driver.as_deref())?;
        let nvrtc = Nvrtc::load(options.nvrtc.clone().map(OsString::from))?;
        let cublaslt = || BlasLibrary::load(options.cublaslt.clone().map(OsString::from));
        let blas = options.blas.then(cublaslt).transpose()?.map(Arc::new);
        let context = CudaContext::new(options.ordinal)
            .map_err(|error| failed(&format!("opening device {}", options.ordinal), error))?;
        let ask = |attribute| {
            context.attribute(attribute).map_err(|error| failed("asking the device", error))
        };
        let (major, minor) = (
            ask(DeviceAttribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            ask(DeviceAttribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        );
        if major < 8 {
            return Err(BackendError::Unsupported {
                backend: BACKEND,
                what: format!("compute capability {major}.{minor}: the kernels need 8.0"),
            });
        }
        let processors = ask(DeviceAttribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
        let name = context.name().map_err(|error| failed("asking the device", error))?;
        Ok(Self {
            compiler: Compiler::new(
                nvrtc,
                (10 * major + minor).unsigned_abs(),
                options.machine_code,
                options.cache.clone(),
            ),
            description: format!("cuda ({name}, {})", if options.half { "f16" } else { "bf16" }),
            blas,
            memory: options.memory.unwrap_or(u64::MAX),
            settings: Settings {
                half: options.half,
                processors: u32::try_from(processors).unwrap_or(1).max(1),
                capability: (major.unsigned_abs(), minor.unsigned_abs()),
                longest_step: options.longest_step,
            },
            context,
        })
    }

    fn format(&self) -> KvFormat {
        if self.settings.half { KvFormat::F16 } else { KvFormat::Bf16 }
    }

    /// The capabilities with so many bytes of the device free.
    fn with_free(&self, free: u64) -> Capabilities {
        let memory = free.min(self.memory);
        let mut capabilities = Capabilities::new(self.description.clone(), memory);
        capabilities.kv_formats = vec![self.format()];
        capabilities.host_memory_bytes = available_bytes();
        capabilities
    }

    /// Compiles a kernel, unless that was done before.
    fn load(
        &self,
        device: &mut Device,
        kernel: Kernel,
        variant: &Variant,
        names: &[&'static str],
        shared: u32,
    ) -> Result<(), BackendError> {
        self.compiler
            .load(kernel, variant, |code| device.load(kernel, variant, code, names, shared))
    }

    /// Loads what the operations of a program launch.
    fn load_kernels(
        &self,
        device: &mut Device,
        loaded: &LoadedProgram,
        page_size: u32,
    ) -> Result<(), BackendError> {
        let plain = loaded.plain();
        for kernel in [
            Kernel::Embed,
            Kernel::RmsNorm,
            Kernel::Linear,
            Kernel::GatedActivation,
            Kernel::Sample,
        ] {
            self.load(device, kernel, &plain, &[kernel.name()], 0)?;
        }
        self.load(device, Kernel::Elementwise, &plain, &Kernel::ELEMENTWISE, 0)?;
        for (kernel, variant) in loaded.product_kernels() {
            self.load(device, kernel, &variant, &kernel.functions(), 0)?;
        }
        for op in loaded.program.ops() {
            let Op::Attention(attention) = op else { continue };
            let variant = loaded.of_heads(attention);
            let kernels = [Kernel::RopeAndStore, Kernel::AttentionDecode, Kernel::AttentionMerge];
            for kernel in kernels {
                self.load(device, kernel, &variant, &[kernel.name()], 0)?;
            }
            let hopper = Hopper::new(self.settings.capability, &variant, page_size);
            let (kernel, shared) = match hopper {
                Some(hopper) => (Kernel::PrefillHopper, hopper.shared),
                None => (Kernel::AttentionAppend, append_shared_bytes(&variant)),
            };
            self.load(device, kernel, &variant, &[kernel.name()], shared)?;
        }
        Ok(())
    }
}

/// Describes the KV of layers whose attention `prefill_hopper` computes.
fn describe_layers(
    device: &mut Device,
    loaded: &LoadedProgram,
    groups: &[GroupMemory],
    settings: &Settings,
    page_size: u32,
    pages: &[u32],
) -> Result<(), BackendError> {
    for op in loaded.program.ops() {
        let Op::Attention(attention) = op else { continue };
        let variant = loaded.of_heads(attention);
        let Some(hopper) = Hopper::new(settings.capability, &variant, page_size) else { continue };
        let group = loaded.group(attention.group);
        let map = hopper.map(&variant, attention.kv_heads, page_size, pages[group]);
        let layer = groups[group].layers[attention.layer as usize];
        device.describe(layer, &map, settings.half)?;
    }
    Ok(())
}

impl Backend for CudaBackend {
    fn capabilities(&self) -> Capabilities {
        // There is no room for an error; compiling reports it.
        self.with_free(Device::free_bytes(&self.context).unwrap_or(0))
    }

    fn weight_bytes(
        &self,
        program: &Program,
        weights: &dyn Weights,
        _compute: Compute,
    ) -> Result<u64, BackendError> {
        let uses = Use::of_program(program)?;
        program.weights().iter().zip(uses).try_fold(0u64, |sum, (weight, read_as)| {
            Ok(sum.saturating_add(read_as.bytes(&weights.tensor(&weight.name)?)))
        })
    }

    fn compile(
        &self,
        programs: &[Program],
        weights: &dyn Weights,
        options: &CompileOptions,
    ) -> Result<Box<dyn Executor>, BackendError> {
        let capabilities = self.with_free(Device::free_bytes(&self.context)?);
        check_options(BACKEND, &capabilities, programs, options)?;
        check_memory(
            "KV",
            kv_bytes(self, programs, &options.limits.pages, options),
            capabilities.memory_bytes,
        )?;
        let host = kv_bytes(self, programs, &options.host_pages, options);
        check_memory("KV of the host tier", host, capabilities.host_memory_bytes)?;
        self.context.bind_to_thread().map_err(|error| failed("binding the device", error))?;
        let mut device = Device::new(&self.context)?;
        let mut by_name = HashMap::new();
        let (mut loaded, mut groups) = (Vec::new(), Vec::new());
        for program in programs {
            let first_group = groups.len();
            let limits = &options.limits;
            let program_loaded = LoadedProgram::new(
                &mut device,
                program,
                weights,
                &mut by_name,
                limits,
                first_group,
                self.settings.half,
            )?;
            self.load_kernels(&mut device, &program_loaded, options.page_size)?;
            for (index, group) in program.groups().iter().enumerate() {
                let page_bytes = self.page_bytes(
                    program,
                    GroupId(index as u8),
                    options.page_size,
                    self.format(),
                );
                let page_bytes = (page_bytes / u64::from(group.layers.max(1))) as usize;
                let pages = limits.pages[first_group + index] as usize;
                let bytes = page_bytes * pages;
                // TMA reads whole boxes, what was not written yet included.
                let zeros = self.settings.capability == (9, 0);
                let mut layer = || match zeros {
                    true => device.allocate_zeros(bytes),
                    false => device.allocate(bytes),
                };
                let layers = (0..group.layers).map(|_| layer());
                let layers = layers.collect::<Result<Vec<_>, _>>()?;
                let table_width = options.context_length.div_ceil(options.page_size) as usize + 1;
                let tables = device.allocate_zeros(limits.slots as usize * table_width * 4)?;
                groups.push(GroupMemory { layers, page_bytes, tables, table_width });
            }
            describe_layers(
                &mut device,
                &program_loaded,
                &groups,
                &self.settings,
                options.page_size,
                &limits.pages,
            )?;
            loaded.push(program_loaded);
        }
        let step_bytes = loaded.iter().map(|program| program.step_bytes(&options.limits)).max();
        let step_bytes = step_bytes.unwrap_or(0);
        let read_back = || ReadBack::new(&self.context, step_bytes);
        let read_backs = [read_back()?, read_back()?];
        let slots = options.limits.slots as usize;
        let next_tokens = device.allocate_zeros(programs.len() * slots * size_of::<i32>())?;
        device.synchronize()?;
        let bounds = BatchBounds::new(programs, options);
        let host_pages = options.host_pages.clone();
        let free = Device::free_bytes(&self.context)?;
        let half = self.settings.half;
        let blas = self.blas.as_ref().map(|library| Blas::new(library, &mut device, free, half));
        let blas = blas.transpose()?;
        let compiled = Compiled { blas, device, read_backs, next_tokens, programs: loaded, groups };
        let executor = CudaExecutor::new(compiled, bounds, self.settings, host_pages);
        Ok(Box::new(executor))
    }
}
