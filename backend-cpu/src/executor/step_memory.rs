//! What operations need of memory while they compute, counted before any of it is allocated.

use backend_api::{CompileOptions, Compute};

use super::{
    attention::{AttentionStates, most_states},
    compile::{BufferRows, Compiled, Instruction},
};
use crate::kernels::matrix::ConvertedInputs;

/// What the operations of a program need inside, for the largest step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct StepMemory {
    /// States of attention between tasks.
    pub(crate) states: AttentionRoom,
    /// Inputs of products in reduced precision.
    pub(crate) converted: ConvertedInputs,
}

/// Room for states of attention.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct AttentionRoom {
    /// States, each of all heads.
    pub(crate) states: usize,
    /// Heads of the operation that has most.
    pub(crate) heads: usize,
    /// Values of a state, of the operation that has most.
    pub(crate) width: usize,
}

impl StepMemory {
    fn bytes(&self) -> u64 {
        AttentionStates::bytes_of(self.states).saturating_add(self.converted.bytes())
    }
}

impl Compiled {
    /// Bytes of the buffers and inside the operations, for the largest step.
    pub(crate) fn activation_bytes(
        &self,
        options: &CompileOptions,
        threads: usize,
        fast: &[Compute],
    ) -> u64 {
        let buffers = self.buffers.iter().fold(0, |sum: u64, (rows, width)| {
            let values = (most_rows(*rows, options) as u64).saturating_mul(*width as u64);
            sum.saturating_add(values.saturating_mul(size_of::<f32>() as u64))
        });
        buffers.saturating_add(self.step_memory(options, threads, fast).bytes())
    }

    /// What operations need inside. Which weights can be multiplied in the precision of `options` is
    /// not looked at: all, it is assumed.
    pub(crate) fn step_memory(
        &self,
        options: &CompileOptions,
        threads: usize,
        fast: &[Compute],
    ) -> StepMemory {
        let mut memory = StepMemory::default();
        let wants = |compute| match options.compute {
            Compute::Auto => fast.contains(&compute),
            given => given == compute,
        };
        let (in_bytes, in_pairs) = (wants(Compute::Int8), wants(Compute::Bf16));
        for instruction in &self.instructions {
            let (rows, width) = match instruction {
                Instruction::Attention(it) if it.window.is_none() => {
                    let room = &mut memory.states;
                    room.states = most_states(options, threads);
                    room.heads = room.heads.max(it.heads);
                    room.width = room.width.max(it.state_width());
                    continue;
                }
                Instruction::Linear { input, parts } => {
                    let rows = parts.first().map_or(BufferRows::Tokens, |part| part.out.rows);
                    (most_rows(rows, options), input.width)
                }
                Instruction::Experts(it) => {
                    let (rows, chosen, width) = it.most_inputs();
                    (most_rows(rows, options).saturating_mul(chosen), width)
                }
                _ => continue,
            };
            memory.converted.widen((rows, width), in_bytes, in_pairs);
        }
        memory
    }
}

/// Rows of a buffer in the largest step.
pub(crate) fn most_rows(rows: BufferRows, options: &CompileOptions) -> usize {
    match rows {
        BufferRows::Tokens => options.limits.tokens as usize,
        BufferRows::Outputs | BufferRows::Logits => options.limits.outputs as usize,
    }
}
