//! What an engine will take of a device, and what it will hold, found before anything is loaded.

use std::fmt;

use super::limits::EngineLimits;
use super::options::EngineOptions;
use crate::backend::program::{Op, WeightId};
use crate::backend::{Backend, CompileOptions, Compute, Footprint, GroupId, kit};
use crate::error::EngineError;
use crate::model::Program;
use crate::schedule::SchedulerConfig;
use crate::weights::Weights;

/// What is decided before a program is compiled.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) limits: EngineLimits,
    pub(super) config: SchedulerConfig,
    pub(super) compile: CompileOptions,
    /// Bytes of the weights on the device.
    weights: u64,
}

impl Plan {
    pub(super) fn new(
        options: &EngineOptions,
        program: &Program,
        weights: &dyn Weights,
        model_context: usize,
        backend: &dyn Backend,
    ) -> Result<Self, EngineError> {
        let reduced = is_mostly_reduced(program, weights, options.compute, backend);
        let weights = backend.weight_bytes(program, weights, options.compute)?;
        let known = (weights, reduced);
        let limits = EngineLimits::derive(options, program, model_context, known, backend)?;
        let config = limits.scheduler_config(options);
        let capabilities = backend.capabilities();
        let compile = limits.compile_options(options, &capabilities, &config)?;
        kit::check_options("chosen", &capabilities, std::slice::from_ref(program), &compile)?;
        Ok(Self { limits, config, compile, weights })
    }
}

/// Whether most of the weights that are multiplied are multiplied in less than f32.
fn is_mostly_reduced(
    program: &Program,
    weights: &dyn Weights,
    compute: Compute,
    backend: &dyn Backend,
) -> bool {
    let mut products: Vec<WeightId> = Vec::new();
    for op in program.ops() {
        match op {
            Op::Linear { weight, .. } | Op::Logits { weight, .. } => products.push(*weight),
            Op::MixtureOfExperts(it) => {
                products.extend([it.gate, it.up, it.down].map(|layer| layer.weight));
            }
            _ => {}
        }
    }
    products.sort_unstable_by_key(|weight| weight.index());
    products.dedup();
    let (mut exact, mut reduced) = (0u64, 0u64);
    let declared = products.iter().filter_map(|weight| program.weights().get(weight.index()));
    // A weight that is missing or malformed counts nothing: compiling reports it.
    for (format, shape) in declared.filter_map(|weight| weights.describe(&weight.name).ok()) {
        let sum = match backend.compute_of(compute, format, shape.cols()) {
            Compute::Exact => &mut exact,
            _ => &mut reduced,
        };
        let elements = shape.dims().iter().fold(1, |all: u64, &dim| all.saturating_mul(dim as u64));
        *sum = sum.saturating_add(elements);
    }
    reduced > exact
}

/// What an engine takes of a device, and what it holds: found without loading the model
/// ([`EngineBuilder::estimate`](super::EngineBuilder::estimate)), and what a started engine takes
/// ([`Engine::limits`](super::Engine::limits)).
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct FitEstimate {
    /// Memory that the backend may use, in bytes.
    pub memory_bytes: u64,
    /// What the engine takes of it.
    pub footprint: Footprint,
    /// KV of a token, by page group of the program.
    pub groups: Vec<GroupFit>,
    /// What the engine holds: pages, the longest context, how many samples run at once.
    pub limits: EngineLimits,
}

/// KV of a page group.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct GroupFit {
    /// Layers in the group.
    pub layers: u32,
    /// How many tokens back its layers attend; `None` for all.
    pub window: Option<u32>,
    /// Bytes of KV of a token, over all layers of the group.
    pub bytes_a_token: u64,
    /// Pages that there will be.
    pub pages: u32,
}

impl FitEstimate {
    pub(super) fn new(
        plan: Plan,
        program: &Program,
        weights: &dyn Weights,
        backend: &dyn Backend,
    ) -> Result<Self, EngineError> {
        let Plan { limits, compile, weights: weight_bytes, .. } = plan;
        let programs = std::slice::from_ref(program);
        let mut footprint = backend.footprint(programs, weights, &compile)?;
        footprint.weights = weight_bytes;
        let page_size = compile.page_size;
        let group = |(index, group): (usize, &crate::model::PageGroup)| {
            let id = GroupId(index as u8);
            let page = backend.page_bytes(program, id, page_size, compile.kv_format);
            GroupFit {
                layers: group.layers,
                window: group.window,
                bytes_a_token: page / u64::from(page_size.max(1)),
                pages: compile.limits.pages.get(index).copied().unwrap_or_default(),
            }
        };
        Ok(Self {
            memory_bytes: backend.capabilities().memory_bytes,
            footprint,
            groups: program.groups().iter().enumerate().map(group).collect(),
            limits,
        })
    }

    /// Whether it fits into what the backend may use.
    pub fn fits(&self) -> bool {
        self.footprint.total() <= self.memory_bytes
    }
}

/// A few lines for people.
impl fmt::Display for FitEstimate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let megabytes = |bytes: u64| format!("{:.1} MB", bytes as f64 / 1e6);
        let Footprint { weights, kv, activations, .. } = self.footprint;
        writeln!(f, "weights             {:>14}", megabytes(weights))?;
        writeln!(f, "KV                  {:>14}", megabytes(kv))?;
        for group in &self.groups {
            let window = group.window.map_or("all tokens".to_owned(), |it| format!("{it} tokens"));
            writeln!(
                f,
                "  {} layers over {window}: {} bytes a token, {} pages of {} tokens",
                group.layers, group.bytes_a_token, group.pages, self.limits.page_size
            )?;
        }
        writeln!(f, "activations         {:>14}", megabytes(activations))?;
        let total = self.footprint.total();
        let verdict = if self.fits() { "fits into" } else { "does not fit into" };
        writeln!(
            f,
            "together            {:>14}  {verdict} {}",
            megabytes(total),
            megabytes(self.memory_bytes)
        )?;
        writeln!(f, "longest context     {:>7} tokens", self.limits.context_length)?;
        write!(f, "running at once     {:>7} sequences", self.limits.max_running_requests)?;
        for warning in &self.limits.warnings {
            write!(f, "\nwarning: {warning}")?;
        }
        Ok(())
    }
}
