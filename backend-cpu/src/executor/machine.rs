//! A compiled program with the memory that it computes in.

use std::ops::Range;

use backend_api::CompileOptions;

use super::{
    attention::{AttentionPlan, AttentionStates},
    compile::{BufferRows, Compiled},
    forward::{Forward, Workers},
    owned_batch::OwnedBatch,
    step_memory::{StepMemory, most_rows},
    weights::LoadedWeights,
};
use crate::{
    kernels::{kv::KvLayer, rope::RopeAngles},
    pool::TaskPanicked,
};

/// One of an executor's programs.
#[derive(Debug)]
pub(crate) struct Machine {
    compiled: Compiled,
    /// Its page groups among those of the executor.
    groups: Range<usize>,
    /// By buffer: `[rows, width]`, with room for the largest step.
    buffers: Vec<Vec<f32>>,
    /// By rotary.
    angles: Vec<RopeAngles>,
    states: AttentionStates,
    shape: StepShape,
    page_size: usize,
}

impl Machine {
    /// Memory for steps of up to the limits of `options`. `groups` are the program's page groups among those of
    /// the executor.
    pub(crate) fn new(
        compiled: Compiled,
        groups: Range<usize>,
        options: &CompileOptions,
        memory: StepMemory,
    ) -> Self {
        let room =
            |(rows, width): &(BufferRows, usize)| vec![0.0; most_rows(*rows, options) * width];
        Self {
            buffers: compiled.buffers.iter().map(room).collect(),
            angles: compiled.rotaries.iter().map(|_| RopeAngles::default()).collect(),
            states: AttentionStates::new(memory.states),
            shape: StepShape::default(),
            page_size: options.page_size as usize,
            compiled,
            groups,
        }
    }

    /// Bytes of its buffers, and of the states of its attention.
    pub(crate) fn activation_bytes(&self) -> u64 {
        let buffers = self.buffers.iter().map(|buffer| size_of_val(buffer.as_slice()) as u64);
        buffers.sum::<u64>() + self.states.bytes()
    }

    /// Runs the program. `kv` is the memory of all page groups of the executor, by layer.
    /// Afterwards [`take_logits`](Self::take_logits) and [`take_hidden`](Self::take_hidden) have
    /// what was computed.
    ///
    /// # Errors
    /// If a kernel panicked.
    pub(crate) fn forward(
        &mut self,
        workers: &mut Workers,
        weights: &LoadedWeights,
        kv: &[Vec<KvLayer>],
        batch: &OwnedBatch,
    ) -> Result<(), TaskPanicked> {
        let Self { compiled, groups, buffers, angles, states, shape, .. } = self;
        shape.fill(batch);
        let threads = workers.pool.threads();
        shape.attention.fill(batch, self.page_size, threads, states.room());
        for (angles, (frequencies, factor)) in angles.iter_mut().zip(&compiled.rotaries) {
            angles.compute(&shape.positions, frequencies, *factor);
        }
        let kv = &kv[groups.clone()];
        let mut forward =
            Forward { compiled, weights, workers, buffers, angles, states, kv, shape, batch };
        compiled.instructions.iter().try_for_each(|instruction| forward.execute(instruction))
    }

    /// Columns of the logits.
    pub(crate) fn vocab_size(&self) -> usize {
        self.compiled.logits.width
    }

    /// Columns of the hidden states.
    pub(crate) fn hidden_width(&self) -> usize {
        self.compiled.hidden.width
    }

    /// The logits of the last forward pass, `[logit rows, vocab_size]` and room for more.
    pub(crate) fn logits(&mut self) -> &mut [f32] {
        &mut self.buffers[self.compiled.logits.index]
    }

    /// The hidden states of the last forward pass, `[output rows, width]` and room for more.
    pub(crate) fn hidden(&self) -> &[f32] {
        &self.buffers[self.compiled.hidden.index]
    }
}

/// What several operations need to know of a batch.
#[derive(Debug, Default)]
pub(super) struct StepShape {
    /// By token.
    pub(super) positions: Vec<u32>,
    outputs: usize,
    logits: usize,
    pub(super) attention: AttentionPlan,
}

impl StepShape {
    pub(super) fn fill(&mut self, batch: &OwnedBatch) {
        self.positions.clear();
        self.outputs = batch.output_tokens.len();
        self.logits = batch.logit_rows;
        for row in &batch.rows {
            self.positions.extend(row.position..row.kv_len());
        }
    }

    pub(super) fn rows(&self, of: BufferRows) -> usize {
        match of {
            BufferRows::Tokens => self.positions.len(),
            BufferRows::Outputs => self.outputs,
            BufferRows::Logits => self.logits,
        }
    }
}
