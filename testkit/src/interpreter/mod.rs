//! Runs a [`Program`] as its definition reads: the oracle that backends are compared with.
//!
//! What is decided here:
//!
//! - **Clarity before speed.** Each operation is a loop or two; a step is computed row by row, so
//!   that nothing can depend on what else is in the batch. `launch` computes; `wait` hands over.
//! - **Values are f32, arithmetic is f64.** Every value of the program is rounded to f32 when it
//!   is stored, as is KV; sums, roots and exponentials on the way there are in f64. So the
//!   distance of a backend that accumulates in f32 is that backend's own error.
//! - **Weights are widened to f32** when a program is compiled, whatever their format.
//! - **Page tables come from slot events**, not from the tables that the batch lends: an event
//!   that the core forgets shows here. KV memory starts as NaN, so that a position that was never
//!   written can't be read unnoticed.
//! - **Sampling is [`engine_core::sample`]'s**, the definition that all backends share.
//!
//! ```
//! use engine_core::model::{ProgramBuilder, Split};
//! use engine_core::weights::{Format, MapWeights, Shape, Tensor};
//! use testkit::interpreter::logits;
//!
//! let mut b = ProgramBuilder::new("a table of logits", 2);
//! let x = b.embed("table", 2, 1.0);
//! let x = b.select_outputs(x);
//! let program = b.finish_with_logits(x, "identity", None)?;
//!
//! let mut weights = MapWeights::new();
//! let matrix = |values: &[f32]| Tensor::from_f32(Format::F32, Shape::matrix(2, 2), values);
//! weights.insert("table", matrix(&[0.0, 3.0, 5.0, 0.0])?);
//! weights.insert("identity", matrix(&[1.0, 0.0, 0.0, 1.0])?);
//! assert_eq!(logits(&program, &weights, &[1, 0])?, [[5.0, 0.0], [0.0, 3.0]]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod attention;
mod executor;
mod experts;
mod kv;
mod matrix;
mod model;
mod ops;
mod slots;
#[cfg(test)]
mod tests;

use engine_core::backend::kit::Tickets;
use engine_core::backend::{
    Backend, BackendError, BatchBounds, Capabilities, CompileOptions, Compute, Executor, GroupId,
    KvFormat,
};
use engine_core::model::Program;
use engine_core::sample::OutputSampler;
use engine_core::weights::Weights;
use engine_core::{PageId, Token};

use self::executor::Interpreting;
use self::kv::PagedKv;
use self::model::{Model, RowInput};
use self::slots::Slot;

/// What errors call this backend.
const BACKEND: &str = "interpreter";

/// More would not be a small model any more.
const MEMORY_BYTES: u64 = 4 << 30;

/// The interpreter as a backend.
#[derive(Clone, Copy, Debug, Default)]
pub struct Interpreter;

impl Backend for Interpreter {
    fn capabilities(&self) -> Capabilities {
        let mut capabilities = Capabilities::new("f32 interpreter", MEMORY_BYTES);
        capabilities.host_memory_bytes = MEMORY_BYTES;
        capabilities.batch_invariant = true;
        capabilities
    }

    fn compile(
        &self,
        programs: &[Program],
        weights: &dyn Weights,
        options: &CompileOptions,
    ) -> Result<Box<dyn Executor>, BackendError> {
        check_options(programs, options)?;
        let models = programs.iter().map(|program| Model::load(program, weights));
        let models = models.collect::<Result<Vec<_>, _>>()?;
        let slot = Slot::new(programs.len(), options.limits.pages.len());
        Ok(Box::new(Interpreting {
            models,
            bounds: BatchBounds::new(programs, options),
            device: memory(programs, &options.limits.pages, options.page_size),
            host: memory(programs, &options.host_pages, options.page_size),
            host_pages: options.host_pages.clone(),
            slots: vec![slot; options.limits.slots as usize],
            sampler: OutputSampler::default(),
            started: Tickets::default(),
        }))
    }
}

/// The logits after each of `tokens`, computed as one sequence from position 0: a list of
/// `vocab_size` numbers for each token.
///
/// # Errors
///
/// As for [`Backend::compile`], and [`BackendError::Option`] for a token that the vocabulary
/// doesn't have.
pub fn logits(
    program: &Program,
    weights: &dyn Weights,
    tokens: &[Token],
) -> Result<Vec<Vec<f32>>, BackendError> {
    if let Some(token) = tokens.iter().find(|&&token| token >= program.vocab_size()) {
        let reason = format!("{token} is not below {}", program.vocab_size());
        return Err(BackendError::Option { option: "tokens", reason });
    }
    let model = Model::load(program, weights)?;
    let pages = vec![1; program.groups().len()];
    let mut kv = memory(std::slice::from_ref(program), &pages, tokens.len().max(1) as u32);
    let outputs: Vec<usize> = (0..tokens.len()).collect();
    let tables = vec![&[PageId(0)][..]; program.groups().len()];
    let input = RowInput { tokens, position: 0, outputs: &outputs, tables: &tables };
    let logits = model.run(&input, &mut kv).logits;
    Ok((0..logits.rows()).map(|row| logits.row(row).to_vec()).collect())
}

/// KV memory for every group that `pages` says something about.
fn memory(programs: &[Program], pages: &[u32], page_size: u32) -> Vec<PagedKv> {
    let groups = programs.iter().flat_map(Program::groups).zip(pages);
    groups.map(|(group, &pages)| PagedKv::new(group, pages as usize, page_size as usize)).collect()
}

fn check_options(programs: &[Program], options: &CompileOptions) -> Result<(), BackendError> {
    let invalid = |option, reason| Err(BackendError::Option { option, reason });
    let (page_size, limits) = (options.page_size, &options.limits);
    if !page_size.is_power_of_two() || page_size > 512 {
        return invalid("page_size", format!("{page_size} is not a power of two up to 512"));
    }
    if !matches!(options.compute, Compute::Exact | Compute::Auto) {
        let what = format!("computing in {}", options.compute);
        return Err(BackendError::Unsupported { backend: BACKEND, what });
    }
    if options.kv_format != KvFormat::F32 {
        let what = format!("KV in {}", options.kv_format);
        return Err(BackendError::Unsupported { backend: BACKEND, what });
    }
    if programs.is_empty() {
        return invalid("programs", "there is none".to_owned());
    }
    let groups: Vec<(&Program, GroupId)> = programs
        .iter()
        .flat_map(|program| (0..program.groups().len()).map(move |g| (program, GroupId(g as u8))))
        .collect();
    for (option, pages) in [("limits.pages", &limits.pages), ("host_pages", &options.host_pages)] {
        let may_be_absent = option == "host_pages";
        if pages.len() != groups.len() && !(may_be_absent && pages.is_empty()) {
            let reason = format!("{} for {} page groups", pages.len(), groups.len());
            return invalid(option, reason);
        }
    }
    if limits.rows == 0 || limits.tokens == 0 || limits.slots == 0 {
        let reason =
            format!("{} rows, {} tokens and {} slots", limits.rows, limits.tokens, limits.slots);
        return invalid("limits", reason);
    }
    let needed = groups.iter().enumerate().fold(0u64, |sum, (index, (program, group))| {
        let page = Interpreter.page_bytes(program, *group, page_size, options.kv_format);
        let tiers = [limits.pages.get(index), options.host_pages.get(index)];
        let pages: u64 = tiers.into_iter().flatten().map(|&pages| u64::from(pages)).sum();
        sum.saturating_add(page.saturating_mul(pages))
    });
    if needed > MEMORY_BYTES {
        let (what, available) = ("the KV memory".to_owned(), MEMORY_BYTES);
        return Err(BackendError::Memory { what, needed, available });
    }
    Ok(())
}
