//! The stand-in for the CUDA driver, as a library of this crate.
//!
//! [`Driver`] is the state behind the functions that `cuda-emulator-driver` exports with the names
//! of `libcuda.so.1`. Work is deferred: nothing that a stream holds is done until somebody waits
//! for it, so that a missing wait, an early free or a reused staging buffer shows as wrong data
//! instead of passing by luck.

pub mod blas;
mod config;
mod device;
mod graph;
mod host;
pub(crate) mod library;
mod memory;
mod module;
pub mod nccl;
mod pool;
mod status;
mod stream;
mod work;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, OnceLock};

pub use config::Config;
pub use status::{Answer, Status};
pub use work::{Callback, CaptureMode, CaptureStatus, HostAddress};

use crate::check::{Problem, Report};
use crate::{Kernel, Launch, Memory, Peers, Program};
use work::{Capture, Event, Stream, Work};

/// All devices, and what the program has made on them.
#[derive(Debug)]
pub struct Driver {
    pub(crate) config: Config,
    initialized: bool,
    devices: Vec<Device>,
    contexts: HashMap<u64, Context>,
    pub(crate) streams: HashMap<u64, Stream>,
    pub(crate) events: HashMap<u64, Event>,
    pub(crate) captures: HashMap<u64, Capture>,
    modules: HashMap<u64, Module>,
    functions: HashMap<u64, Function>,
    graphs: HashMap<u64, Vec<Work>>,
    executables: HashMap<u64, Vec<Work>>,
    pools: HashMap<u64, pool::Pool>,
    /// The pool that an allocation comes from.
    pooled: HashMap<u64, u64>,
    /// Limits that were set: device and number.
    limits: HashMap<(usize, u32), usize>,
    /// Host memory that was allocated or registered here, by its address.
    pinned: BTreeMap<usize, host::Pinned>,
    blas: blas::Blas,
    nccl: nccl::Nccl,
    /// What a library's call complains of while it runs, with the operand.
    complaints: Vec<(Problem, String)>,
    /// Counts what happens, so that who waits for another thread sees whether that one lives.
    progress: u64,
    next: u64,
    allocations: u64,
    /// Kernels that were run.
    kernels: u64,
    listener: Listener,
}

/// What is called with each report.
struct Listener(Box<dyn FnMut(&Report) + Send>);

impl std::fmt::Debug for Listener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Listener")
    }
}

#[derive(Debug)]
struct Device {
    memory: Memory,
    /// How often the primary context is retained.
    retained: u32,
    /// The error that every later call gives.
    sticky: Option<Status>,
    peers: Vec<usize>,
    /// The pool of allocations on streams; none for the default one.
    pool: Option<u64>,
}

#[derive(Debug, Clone, Copy)]
struct Context {
    device: usize,
    is_primary: bool,
}

#[derive(Debug)]
struct Module {
    device: usize,
    program: Arc<Program>,
    functions: HashMap<String, u64>,
    text: String,
    /// What ptxas says, once somebody asks; none where there is no ptxas.
    resources: OnceLock<Option<BTreeMap<String, crate::ptxas::Resources>>>,
}

#[derive(Debug)]
struct Function {
    kernel: Arc<Kernel>,
    module: u64,
    /// Dynamic shared memory that a launch may ask for.
    dynamic_shared: u32,
    /// Blocks of a cluster that were asked for; 0 for what the kernel says.
    cluster: [u32; 3],
    /// Whether clusters may have more blocks than every device allows.
    large_clusters: bool,
}

/// The legacy default stream of a device.
pub(crate) fn default_stream(device: usize) -> u64 {
    0x100 + device as u64
}

/// The primary context of a device.
fn primary_context(device: usize) -> u64 {
    0xc000 + device as u64 * 16
}

impl Driver {
    /// Devices as `config` has them. `listener` is called with each report of a launch.
    pub fn new(config: Config, listener: Box<dyn FnMut(&Report) + Send>) -> Self {
        let devices = (0..u64::from(config.devices))
            .map(|index| Device {
                memory: Memory::of_device(config.memory, index),
                retained: 0,
                sticky: None,
                peers: Vec::new(),
                pool: None,
            })
            .collect();
        let streams = (0..config.devices as usize)
            .map(|device| {
                (default_stream(device), Stream { device, blocking: true, ..Stream::default() })
            })
            .collect();
        Self {
            config,
            initialized: false,
            devices,
            contexts: HashMap::new(),
            streams,
            events: HashMap::new(),
            captures: HashMap::new(),
            modules: HashMap::new(),
            functions: HashMap::new(),
            graphs: HashMap::new(),
            executables: HashMap::new(),
            pools: HashMap::new(),
            pooled: HashMap::new(),
            limits: HashMap::new(),
            pinned: BTreeMap::new(),
            blas: blas::Blas::default(),
            nccl: nccl::Nccl::default(),
            complaints: Vec::new(),
            progress: 0,
            next: 0x10000,
            allocations: 0,
            kernels: 0,
            listener: Listener(listener),
        }
    }

    /// Whether `cuInit` was called.
    pub fn is_initialized(&self) -> bool {
        self.initialized
    }

    /// A number that grows whenever work is queued or done, or a rank joins or leaves.
    pub fn progress(&self) -> u64 {
        self.progress
    }

    /// How long a call that waits for another rank's thread waits while nothing happens.
    pub fn patience(&self) -> std::time::Duration {
        self.config.patience
    }

    fn handle(&mut self) -> u64 {
        self.next += 16;
        self.next
    }

    fn device(&self, device: usize) -> Answer<&Device> {
        self.devices.get(device).ok_or(Status::INVALID_DEVICE)
    }

    fn device_mut(&mut self, device: usize) -> Answer<&mut Device> {
        self.devices.get_mut(device).ok_or(Status::INVALID_DEVICE)
    }

    /// The error that a device is stuck with.
    pub fn sticky(&self, device: usize) -> Option<Status> {
        self.devices.get(device)?.sticky
    }

    fn set_sticky(&mut self, device: usize, status: Status) {
        if let Some(device) = self.devices.get_mut(device) {
            device.sticky = Some(status);
        }
    }

    /// The device in whose memory an address lies.
    fn device_of(&self, address: u64) -> Answer<usize> {
        self.devices
            .iter()
            .position(|device| device.memory.find(address).is_some())
            .ok_or(Status::ILLEGAL_ADDRESS)
    }

    fn memory_at(&self, address: u64) -> Answer<&Memory> {
        Ok(&self.device(self.device_of(address)?)?.memory)
    }

    fn release(&mut self, address: u64) -> Answer<()> {
        let device = self.device_of(address).map_err(|_| Status::INVALID_VALUE)?;
        let memory = &mut self.device_mut(device)?.memory;
        let bytes = memory.find(address).map_or(0, |(_, bytes)| bytes);
        memory.free(address).map_err(|_| Status::INVALID_VALUE)?;
        self.note_freed(address, bytes);
        Ok(())
    }

    /// Runs a kernel and tells what the checks found.
    fn run(
        &mut self,
        device: usize,
        kernel: &Kernel,
        shape: &Launch,
        parameters: &[u8],
    ) -> Answer<()> {
        let own = &self.devices.get(device).ok_or(Status::INVALID_DEVICE)?.memory;
        let others: Vec<&Memory> = self
            .devices
            .iter()
            .enumerate()
            .filter(|(index, _)| *index != device)
            .map(|(_, other)| &other.memory)
            .collect();
        let visible =
            |base| self.device_of(base).is_ok_and(|owner| self.has_access(device, owner, base));
        let peers = Peers { memories: &others, visible: &visible };
        let options = &self.config.options;
        let outcome = crate::launch_with_peers(kernel, own, &peers, shape, parameters, options)
            .map_err(|_| Status::INVALID_VALUE)?;
        for report in &outcome.reports {
            (self.listener.0)(report);
        }
        if let Some(fault) = outcome.fault() {
            return Err(status_of(&fault.problem));
        }
        if self.config.strict && outcome.errors().next().is_some() {
            return Err(Status::LAUNCH_FAILED);
        }
        Ok(())
    }
}

/// The error that a device gives for a problem that stops a kernel.
fn status_of(problem: &Problem) -> Status {
    match problem {
        Problem::OutOfBounds { .. } | Problem::UseAfterFree { .. } | Problem::ReadOnly { .. } => {
            Status::ILLEGAL_ADDRESS
        }
        Problem::Misaligned { .. } => Status::MISALIGNED,
        Problem::Assertion => Status::ASSERT,
        Problem::Timeout { .. } | Problem::Deadlock { .. } | Problem::RankMissing { .. } => {
            Status::TIMEOUT
        }
        Problem::Trap => Status::ILLEGAL_INSTRUCTION,
        _ => Status::LAUNCH_FAILED,
    }
}
