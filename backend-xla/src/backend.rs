//! The backend: a plugin, its devices, and how programs are put on them.

use std::path::{Path, PathBuf};

use backend_api::{
    Backend, BackendError, Capabilities, CompileOptions, Compute, Executor, GroupId, KvFormat,
    kit::{check_memory, check_options},
    program::Program,
    weights::{Format, Weights},
};

use crate::{
    buckets::Buckets,
    compiler::Compiler,
    error::XlaError,
    executor::XlaExecutor,
    lower::{
        Geometry, Placed, attention,
        placement::{HeadLayout, Placement},
    },
    pallas::AttentionChoice,
    pjrt::{Client, Plugin, Value},
    stablehlo::Element,
};

/// How an [`XlaBackend`] is set up.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct XlaOptions {
    /// The PJRT plugin, a shared library.
    pub plugin: PathBuf,
    /// Options of the plugin's client, such as `cpu_device_count` of XLA's CPU plugin. Default:
    /// none; XLA's CPU plugin then makes as many virtual devices as share the model.
    pub client_options: Vec<(String, Value)>,
    /// Devices that share a model. Default 1.
    pub tensor_parallel: usize,
    /// What matrices and activations are kept and multiplied in: F32 (default) or BF16. Norms,
    /// rotations, softmax and sampling are F32 in any case.
    pub compute: Format,
    /// The folder in which compiled executables are kept between runs, 4 GiB of them at most.
    /// Default: none.
    pub cache: Option<PathBuf>,
    /// Flags of XLA and of the plugin for every compilation, such as
    /// `xla_tpu_scoped_vmem_limit_kib`. Default: none.
    pub compiler_flags: Vec<(String, String)>,
    /// How attention is lowered. Default: portable.
    pub attention: AttentionChoice,
    /// Bytes that weights and KV may use together, over all devices. Default: what the plugin
    /// reports of its devices, or what the host has where the plugin reports nothing.
    pub memory_bytes: Option<u64>,
}

impl XlaOptions {
    /// Defaults, with the plugin at `path`.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            plugin: path.into(),
            client_options: Vec::new(),
            tensor_parallel: 1,
            compute: Format::F32,
            cache: None,
            compiler_flags: Vec::new(),
            attention: AttentionChoice::Portable,
            memory_bytes: None,
        }
    }

    /// XLA's CPU plugin at `path`, with as many virtual devices as share the model.
    pub fn cpu(path: impl Into<PathBuf>, tensor_parallel: usize) -> Self {
        let count = Value::Int(tensor_parallel as i64);
        Self {
            client_options: vec![("cpu_device_count".to_owned(), count)],
            tensor_parallel,
            ..Self::new(path)
        }
    }

    /// Keeps compiled executables in `folder`.
    #[must_use]
    pub fn cache(mut self, folder: impl AsRef<Path>) -> Self {
        self.cache = Some(folder.as_ref().into());
        self
    }
}

backend_api::setters!(XlaOptions {
    client_options: impl Into<Vec<(String, Value)>>,
    tensor_parallel: usize,
    compute: Format,
    compiler_flags: impl Into<Vec<(String, String)>>,
    attention: AttentionChoice,
    memory_bytes: impl Into<Option<u64>>,
});

/// Devices behind a PJRT plugin.
#[derive(Debug)]
pub struct XlaBackend {
    client: Client,
    options: XlaOptions,
    element: Element,
    memory_bytes: u64,
}

impl XlaBackend {
    /// Loads the plugin and connects to its devices.
    ///
    /// # Errors
    ///
    /// [`XlaError::Pjrt`] for a plugin that can't be loaded or has no devices,
    /// [`XlaError::TensorParallel`] if it has too few, [`XlaError::Compute`] for a format other
    /// than F32 and BF16.
    pub fn new(options: XlaOptions) -> Result<Self, XlaError> {
        let element = match options.compute {
            Format::F32 => Element::F32,
            Format::BF16 => Element::BF16,
            format => return Err(XlaError::Compute { format }),
        };
        let plugin = Plugin::load(&options.plugin)?;
        let client_options: Vec<(&str, Value)> = options
            .client_options
            .iter()
            .map(|(name, value)| (name.as_str(), value.clone()))
            .collect();
        let mut client = Client::new(&plugin, &client_options)?;
        let requested = options.tensor_parallel;
        if client.platform() == "cpu" && client_options.is_empty() && requested > 0 {
            // Its devices are virtual: there are as many as one asks for.
            let count = ("cpu_device_count", Value::Int(requested as i64));
            client = Client::new(&plugin, &[count])?;
        }
        let available = client.devices().len();
        if requested == 0 || requested > available {
            let platform = client.platform().to_owned();
            return Err(XlaError::TensorParallel { requested, available, platform });
        }
        let limit = client.memory_stats(0).ok().and_then(|stats| stats.limit);
        let reported = limit.map(|limit| limit * requested as u64);
        let memory_bytes = options.memory_bytes.or(reported).unwrap_or_else(host_memory);
        Ok(Self { client, options, element, memory_bytes })
    }

    /// The client, to ask about devices.
    pub fn client(&self) -> &Client {
        &self.client
    }

    fn device_kind(&self) -> String {
        let first = self.client.devices().first();
        first.map(|device| device.description().kind.clone()).unwrap_or_default()
    }

    /// How a program's weights lie on the devices.
    fn placement(
        &self,
        program: &Program,
        weights: &dyn Weights,
    ) -> Result<Placement, BackendError> {
        let mut placement = Placement::new(program, self.options.tensor_parallel, self.element)?;
        placement.keep_quantized(program, |name| Some(weights.describe(name).ok()?.0));
        Ok(placement)
    }

    /// Bytes of a program's weights, over all devices.
    fn bytes_of_weights(placement: &Placement) -> u64 {
        let devices = placement.devices as u64;
        let weights = placement.weights.iter().map(|weight| {
            let copies = if weight.sharding.dim().is_some() { 1 } else { devices };
            weight.byte_len() * copies
        });
        weights.sum()
    }

    /// Bytes of a program's weights and KV pages, over all devices.
    fn bytes(placed: &Placed) -> u64 {
        let Placed { program, placement, geometry, .. } = placed;
        let kv = geometry.kv_types(program, placement);
        Self::bytes_of_weights(placement) + kv.iter().map(|kind| kind.byte_len()).sum::<u64>()
    }
}

impl Backend for XlaBackend {
    fn capabilities(&self) -> Capabilities {
        let attention = match self.options.attention {
            AttentionChoice::Portable => "",
            AttentionChoice::Pallas(_) => ", Pallas attention where it can be had",
            AttentionChoice::PallasOnly(_) => ", Pallas attention",
        };
        let description = format!(
            "xla ({}, {} of {} x {}{attention})",
            self.client.platform(),
            self.options.tensor_parallel,
            self.client.devices().len(),
            self.device_kind(),
        );
        let mut capabilities = Capabilities::new(description, self.memory_bytes);
        capabilities.prepares_hidden = true;
        capabilities.kv_formats = match self.element {
            Element::BF16 => vec![KvFormat::Bf16, KvFormat::F32],
            _ => vec![KvFormat::F32, KvFormat::Bf16],
        };
        capabilities
    }

    fn page_bytes(
        &self,
        program: &Program,
        group: GroupId,
        page_size: u32,
        format: KvFormat,
    ) -> u64 {
        // Heads that are repeated or filled up take pages too.
        let kv_heads = program.groups().get(group.index()).map_or(0, |group| group.kv_heads);
        let heads = u64::from(kv_heads.max(1));
        let placed = HeadLayout::kv_heads(kv_heads as usize, self.options.tensor_parallel) as u64;
        let elements = program.kv_elements(group).saturating_mul(placed) / heads;
        format.bytes(elements.saturating_mul(page_size.into()))
    }

    fn weight_bytes(
        &self,
        program: &Program,
        weights: &dyn Weights,
        _compute: Compute,
    ) -> Result<u64, BackendError> {
        Ok(Self::bytes_of_weights(&self.placement(program, weights)?))
    }

    fn compile(
        &self,
        programs: &[Program],
        weights: &dyn Weights,
        options: &CompileOptions,
    ) -> Result<Box<dyn Executor>, BackendError> {
        Ok(Box::new(self.build(programs, weights, options)?))
    }
}

impl XlaBackend {
    /// What [`Backend::compile`] does.
    pub(crate) fn build(
        &self,
        programs: &[Program],
        weights: &dyn Weights,
        options: &CompileOptions,
    ) -> Result<XlaExecutor, BackendError> {
        check_options("xla", &self.capabilities(), programs, options)?;
        let unsupported = |what: String| BackendError::Unsupported { backend: "xla", what };
        if options.deterministic {
            return Err(unsupported("results that don't depend on the batch".to_owned()));
        }
        let kv_element = match options.kv_format {
            KvFormat::F32 => Element::F32,
            KvFormat::Bf16 => Element::BF16,
            format => return Err(unsupported(format!("KV in {format}"))),
        };
        let mut pages = options.limits.pages.iter().map(|&pages| pages as usize);
        let mut placed = Vec::with_capacity(programs.len());
        for program in programs {
            let pages = pages.by_ref().take(program.groups().len()).collect();
            placed.push(self.place(program, weights, pages, kv_element, options)?);
        }
        let names: Vec<_> = programs.iter().map(|p| format!("`{}`", p.name())).collect();
        let needed = placed.iter().map(Self::bytes).sum();
        check_memory(format!("{} with KV pages", names.join(", ")), needed, self.memory_bytes)?;
        let compiler = Compiler::new(
            self.client.clone(),
            self.options.compiler_flags.clone(),
            self.options.cache.clone(),
        );
        XlaExecutor::new(compiler, placed, options, weights)
    }

    /// Puts a program on the devices, with so many pages for each of its groups.
    fn place(
        &self,
        program: &Program,
        weights: &dyn Weights,
        pages: Vec<usize>,
        kv_element: Element,
        options: &CompileOptions,
    ) -> Result<Placed, BackendError> {
        let placement = self.placement(program, weights)?;
        let geometry = Geometry::new(
            options.page_size as usize,
            options.limits.slots as usize,
            pages,
            options.context_length as usize,
            kv_element,
        );
        let shapes = Buckets::ragged(options);
        let (choice, device) = (&self.options.attention, self.device_kind());
        let plan = attention::plan(choice, &device, program, &placement, &geometry, shapes.all())?;
        tracing::info!(program = program.name(), attention = %plan.used, "compiling for XLA");
        Ok(Placed { program: program.clone(), placement, geometry, kernels: plan.kernels })
    }
}

/// What the host has available, where the devices are the host: rounded down to a power of two, so
/// that a share of it is as many KV pages at the next start, and the compiled executables fit.
fn host_memory() -> u64 {
    /// For hosts that don't say.
    const SOME: u64 = 4 << 30;
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|line| line.trim().trim_end_matches("kB").trim().parse::<u64>().ok());
    let available = kib.map_or(0, |kib| kib * 1024);
    available.checked_ilog2().map_or(SOME, |power| 1 << power)
}
