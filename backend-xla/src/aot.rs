//! Ahead-of-time compilation: a step of a program for a topology, with no device.
//!
//! It says whether a deployment fits, and what its compiler expects of it, before anybody rents
//! the hardware.

use backend_api::{
    BackendError, GroupId,
    program::{Op, Program},
    weights::Format,
};

use crate::{
    error::device,
    hlo::{self, Instruction},
    lower::{
        Geometry, Placed, attention,
        placement::Placement,
        step::{self, StepShape},
    },
    pallas::{AttentionChoice, AttentionUsed},
    pjrt::{CompileOptions, CompiledMemory, Plugin, Topology, Value},
    stablehlo::Element,
};

/// Tokens of a prefill row that share one walk through its pages.
const PREFILL_BLOCK: usize = 128;
/// Rows of a prefill step that generate meanwhile.
const PREFILL_ROWS: usize = 8;

/// What is compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum AotStep {
    /// One new token for each of so many sequences.
    Decode {
        /// Sequences.
        rows: usize,
    },
    /// A chunk of a prompt.
    Prefill {
        /// Its tokens.
        tokens: usize,
    },
}

/// The sizes of a deployment.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct AotOptions {
    /// What matrices, activations and KV are kept in. Default BF16.
    pub compute: Format,
    /// Tokens in a page. Default 128.
    pub page_size: usize,
    /// The longest sequence. Default 2048.
    pub context_length: usize,
    /// Sequences whose KV is resident, each of `context_length`. Default 32.
    pub sequences: usize,
    /// Positions that a token attends to, for the modelled bytes. Default 1536: the mean of a
    /// sequence that generates 1024 tokens after 1024.
    pub attended: usize,
    /// How attention is lowered. Default: portable.
    pub attention: AttentionChoice,
    /// Flags of XLA and of the plugin. Default: none.
    pub compiler_flags: Vec<(String, String)>,
}

backend_api::setters!(AotOptions {
    compute: Format,
    page_size: usize,
    context_length: usize,
    sequences: usize,
    attended: usize,
    attention: AttentionChoice,
    compiler_flags: impl Into<Vec<(String, String)>>,
});

impl Default for AotOptions {
    fn default() -> Self {
        Self {
            compute: Format::BF16,
            page_size: 128,
            context_length: 2048,
            sequences: 32,
            attended: 1536,
            attention: AttentionChoice::Portable,
            compiler_flags: Vec::new(),
        }
    }
}

/// What the compiler says, for each device.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct AotReport {
    /// Devices that share the model: all of the topology.
    pub devices: usize,
    /// Their kind, such as `TPU v6 lite`.
    pub device_kind: String,
    /// Memory that a program can use, where the plugin knows it.
    pub memory_limit: Option<u64>,
    /// How it attends.
    pub attention: AttentionUsed,
    /// Memory of the step: weights, KV pages, scratch.
    pub memory: CompiledMemory,
    /// Floating-point operations, by XLA's count: a loop's body counts once, a custom call not at
    /// all.
    pub flops: Option<f64>,
    /// Bytes read and written, by XLA's count: a KV array that is written in place counts whole.
    pub bytes: Option<f64>,
    /// What XLA expects the step to take at best, without what it does not know: turns of loops
    /// beyond the first, and custom calls. Its `optimal_seconds` counts a custom call as -1, so
    /// whole seconds are added until it is positive; a step of a second or more can't be told
    /// from a shorter one. As a sum in `f32` it is good to some tenths of a millisecond.
    pub estimated_seconds: Option<f64>,
    /// Bytes of weights, each of which a step reads once.
    pub weight_bytes: f64,
    /// Bytes of KV that attention reads, from shapes: what XLA's count leaves out. Modelled.
    pub modelled_attention_bytes: f64,
    /// The optimized module's instructions.
    pub instructions: Vec<Instruction>,
}

impl AotReport {
    /// Whether the step fits, where the device's memory is known.
    pub fn fits(&self) -> Option<bool> {
        let needed = self.memory.peak.max(self.memory.total());
        self.memory_limit.map(|limit| needed <= limit)
    }

    /// How often an instruction occurs, its asynchronous form included.
    pub fn count(&self, opcode: &str) -> usize {
        let start = format!("{opcode}-start");
        let is_it = |found: &&Instruction| found.opcode == opcode || found.opcode == start;
        self.instructions.iter().filter(is_it).count()
    }
}

/// Compiles a step of `program` for all devices of the topology `name`, such as `v6e:2x2`.
///
/// Some wrong modules end the process inside the plugin: call it in a child process.
///
/// # Errors
///
/// [`BackendError::Device`] for an unknown topology and for what the compiler says, such as that
/// the step does not fit; [`BackendError::Option`] for a program that the devices don't divide;
/// [`BackendError::Unsupported`] for a format other than F32 and BF16.
pub fn compile(
    plugin: &Plugin,
    name: &str,
    program: &Program,
    step: AotStep,
    options: &AotOptions,
) -> Result<AotReport, BackendError> {
    let topology = Topology::new(plugin, name, &topology_options(name))
        .map_err(|error| device(error, format!("describing the topology {name}")))?;
    let devices =
        topology.devices().map_err(|error| device(error, "listing the topology's devices"))?;
    let device_kind = devices.first().map(|device| device.kind.clone()).unwrap_or_default();
    let (text, attention) = lower_for(&device_kind, program, devices.len(), step, options)?;
    let mut compile_options = CompileOptions::partitioned(devices.len());
    for (flag, value) in &options.compiler_flags {
        compile_options = compile_options.with_override(flag, value);
    }
    let failed = |error| device(error, format!("compiling {step:?} for {name}"));
    let executable = topology.compile(&text, &compile_options).map_err(failed)?;
    let cost = executable.cost().unwrap_or_default();
    let cost = |name: &str| match cost.iter().find(|(key, _)| key == name) {
        Some((_, Value::Float(value))) => Some(f64::from(*value)),
        _ => None,
    };
    let instructions = match executable.optimized_program() {
        Ok(optimized) => hlo::instructions(&optimized.bytes),
        Err(_) => Vec::new(),
    };
    let first = devices.first();
    let memory_limit = first.and_then(|device| {
        let is_limit =
            |(name, _): &&(String, Value)| name.contains("hbm") || name.contains("memory");
        device.attributes.iter().find(is_limit).and_then(|(_, value)| match value {
            Value::Int(bytes) => u64::try_from(*bytes).ok(),
            _ => None,
        })
    });
    Ok(AotReport {
        devices: devices.len(),
        device_kind,
        memory_limit,
        attention,
        memory: executable.memory().map_err(failed)?,
        flops: cost("flops"),
        bytes: cost("bytes accessed"),
        estimated_seconds: cost("optimal_seconds").map(|seconds| seconds - seconds.floor()),
        weight_bytes: weight_bytes(program, devices.len(), options)?,
        modelled_attention_bytes: attention_bytes(program, devices.len(), step, options)?,
        instructions,
    })
}

/// The step's StableHLO, for `devices` devices of no certain kind: of the kernels only interpreted
/// ones can serve.
///
/// # Errors
///
/// As [`compile`], less what the compiler says.
pub fn lower(
    program: &Program,
    devices: usize,
    step: AotStep,
    options: &AotOptions,
) -> Result<String, BackendError> {
    Ok(lower_for("a device of no certain kind", program, devices, step, options)?.0)
}

fn lower_for(
    device_kind: &str,
    program: &Program,
    devices: usize,
    step: AotStep,
    options: &AotOptions,
) -> Result<(String, AttentionUsed), BackendError> {
    let element = element(options.compute)?;
    let placement = Placement::new(program, devices, element)?;
    let pages = options.sequences * options.context_length.div_ceil(options.page_size);
    let geometry = Geometry::new(
        options.page_size,
        options.sequences,
        vec![pages; program.groups().len()],
        options.context_length,
        element,
    );
    let shape = |is_ragged: bool| {
        let block = if is_ragged { 1 } else { PREFILL_BLOCK };
        let (decode, tokens) = match step {
            AotStep::Decode { rows } => (rows, 0),
            AotStep::Prefill { tokens } => (PREFILL_ROWS, tokens),
        };
        let blocks = tokens.div_ceil(block);
        StepShape { decode, blocks, block, outputs: decode, hidden: 0, is_ragged }
    };
    let (choice, ragged) = (&options.attention, [shape(true)]);
    let plan = attention::plan(choice, device_kind, program, &placement, &geometry, &ragged)?;
    let shape = shape(plan.kernels.is_some());
    let placed = Placed { program: program.clone(), placement, geometry, kernels: plan.kernels };
    let module = step::step(&placed, shape)?;
    Ok((module.text, plan.used))
}

/// The two cores of a v4 chip are one device with all of the chip's memory to its users, as those
/// of later generations are by default.
fn topology_options(name: &str) -> Vec<(&'static str, Value)> {
    match name.starts_with("v4:") {
        true => vec![("chip_config_name", Value::Text("megacore".to_owned()))],
        false => Vec::new(),
    }
}

/// Bytes of weights on one device.
fn weight_bytes(
    program: &Program,
    devices: usize,
    options: &AotOptions,
) -> Result<f64, BackendError> {
    let placement = Placement::new(program, devices, element(options.compute)?)?;
    let bytes = placement.weights.iter().map(|weight| {
        let share = if weight.sharding.dim().is_some() { devices } else { 1 };
        weight.kind.byte_len() as f64 / share as f64
    });
    Ok(bytes.sum())
}

/// Bytes of KV that one device reads for a step, in all layers.
fn attention_bytes(
    program: &Program,
    devices: usize,
    step: AotStep,
    options: &AotOptions,
) -> Result<f64, BackendError> {
    let element = element(options.compute)?;
    let placement = Placement::new(program, devices, element)?;
    let size = if element == Element::BF16 { 2.0 } else { 4.0 };
    // A decode row reads its own pages; the blocks of one prompt each read the prompt's.
    let walks = match step {
        AotStep::Decode { rows } => rows,
        AotStep::Prefill { tokens } => tokens.div_ceil(PREFILL_BLOCK),
    };
    let mut bytes = 0.0;
    for op in program.ops() {
        let Op::Attention(attention) = op else { continue };
        let GroupId(group) = attention.group;
        let head_dim = program.groups()[usize::from(group)].head_dim as usize;
        let heads = placement.kv_heads(attention.kv_heads as usize) / devices;
        let seen = attention.window.map_or(options.attended, |w| options.attended.min(w as usize));
        bytes += (walks * seen * 2 * heads * head_dim) as f64 * size;
    }
    Ok(bytes)
}

fn element(format: Format) -> Result<Element, BackendError> {
    match format {
        Format::F32 => Ok(Element::F32),
        Format::BF16 => Ok(Element::BF16),
        format => {
            let what = format!("computing in {format}");
            Err(BackendError::Unsupported { backend: "xla", what })
        }
    }
}
