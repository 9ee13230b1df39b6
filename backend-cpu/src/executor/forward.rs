//! The forward pass: instructions over the rows of a step.

use backend_api::{GroupId, Token, program::WeightId};

use super::{
    compile::{Buffer, BufferRows, Compiled, Instruction, LinearPart},
    owned_batch::OwnedBatch,
};
use crate::{
    kernels::{
        attention::{
            AttentionLayer, AttentionScratch, AttentionTask, QueryTokens, TOKENS_PER_TASK,
        },
        blocks::{Block, F32Block},
        kv::KvLayer,
        linear::{LinearRows, Product, SCRATCH_BLOCKS, multiply},
        rope::{Pairing, Rope, RopeAngles},
        rows::{Pairwise, PairwiseOp, Pointwise, PointwiseOp, RmsNorm},
    },
    pool::{Pool, TaskPanicked},
    shared::SharedMut,
    simd::Simd,
};

/// Values below which an operation on rows isn't worth a parallel region.
const SERIAL_VALUES: usize = 8 * 1024;

/// A compiled program with the memory that it computes in.
pub(crate) struct Machine {
    compiled: Compiled,
    simd: Simd,
    pool: Pool,
    /// By buffer: `[rows, width]`, with room for the largest step.
    buffers: Vec<Vec<f32>>,
    /// By page group and layer.
    kv: Vec<Vec<KvLayer>>,
    /// By rotary.
    angles: Vec<RopeAngles>,
    /// [`SCRATCH_BLOCKS`] for each thread.
    expanded: Vec<F32Block>,
    /// By thread.
    attention: Vec<AttentionScratch>,
    /// What the current step looks like.
    shape: StepShape,
}

/// What several operations need to know of a step.
#[derive(Debug, Default)]
struct StepShape {
    /// By token.
    positions: Vec<u32>,
    outputs: usize,
    logits: usize,
    /// Attention's tasks, for one KV head: row and tokens.
    queries: Vec<(usize, QueryTokens)>,
}

impl StepShape {
    fn fill(&mut self, step: &OwnedBatch) {
        self.positions.clear();
        self.queries.clear();
        self.outputs = step.output_tokens.len();
        self.logits = step.logit_rows;
        for (index, row) in step.rows.iter().enumerate() {
            self.positions.extend(row.position..row.kv_len());
            let (count, position) = (row.tokens.len as usize, row.position as usize);
            for start in (0..count).step_by(TOKENS_PER_TASK) {
                self.queries.push((
                    index,
                    QueryTokens {
                        first_token: row.tokens.start as usize + start,
                        count: TOKENS_PER_TASK.min(count - start),
                        position: position + start,
                    },
                ));
            }
        }
    }

    fn rows(&self, of: BufferRows) -> usize {
        match of {
            BufferRows::Tokens => self.positions.len(),
            BufferRows::Outputs => self.outputs,
            BufferRows::Logits => self.logits,
        }
    }
}

impl Machine {
    /// Memory for steps of up to `tokens` tokens and `outputs` outputs.
    pub(crate) fn new(
        compiled: Compiled,
        simd: Simd,
        pool: Pool,
        kv: Vec<Vec<KvLayer>>,
        tokens: usize,
        outputs: usize,
    ) -> Self {
        let room = |(rows, width): &(BufferRows, usize)| match rows {
            BufferRows::Tokens => vec![0.0; tokens * width],
            BufferRows::Outputs | BufferRows::Logits => vec![0.0; outputs * width],
        };
        let threads = pool.threads();
        Self {
            buffers: compiled.buffers.iter().map(room).collect(),
            angles: compiled.rotaries.iter().map(|_| RopeAngles::default()).collect(),
            expanded: vec![F32Block::zero(); threads * SCRATCH_BLOCKS],
            attention: (0..threads).map(|_| AttentionScratch::default()).collect(),
            shape: StepShape::default(),
            compiled,
            simd,
            pool,
            kv,
        }
    }

    /// The threads, for work between forward passes.
    pub(crate) fn pool(&mut self) -> &mut Pool {
        &mut self.pool
    }

    /// KV of a page group, by layer.
    pub(crate) fn kv_mut(&mut self, group: GroupId) -> &mut [KvLayer] {
        self.kv.get_mut(usize::from(group.0)).map_or(&mut [], Vec::as_mut_slice)
    }

    /// Runs the program. Afterwards [`take_logits`](Self::take_logits) and
    /// [`take_hidden`](Self::take_hidden) have what it computed.
    ///
    /// # Errors
    /// If a kernel panicked.
    pub(crate) fn forward(&mut self, step: &OwnedBatch) -> Result<(), TaskPanicked> {
        self.shape.fill(step);
        for (angles, (frequencies, factor)) in self.angles.iter_mut().zip(&self.compiled.rotaries) {
            angles.compute(&self.shape.positions, frequencies, *factor);
        }
        for index in 0..self.compiled.instructions.len() {
            self.execute(index, step, &step.resolved)?;
        }
        Ok(())
    }

    /// Columns of the logits.
    pub(crate) fn vocab_size(&self) -> usize {
        self.compiled.logits.width
    }

    /// Columns of the hidden states.
    pub(crate) fn hidden_width(&self) -> usize {
        self.compiled.hidden.width
    }

    /// The logits of the last forward pass, `[logit rows, vocab_size]` and room for more, with
    /// their memory. Give it back with [`return_logits`](Self::return_logits).
    pub(crate) fn take_logits(&mut self) -> Vec<f32> {
        self.take(self.compiled.logits)
    }

    pub(crate) fn return_logits(&mut self, logits: Vec<f32>) {
        self.put_back(self.compiled.logits, logits);
    }

    /// The hidden states of the last forward pass, `[output rows, width]` and room for more, with
    /// their memory. Give it back with [`return_hidden`](Self::return_hidden).
    pub(crate) fn take_hidden(&mut self) -> Vec<f32> {
        self.take(self.compiled.hidden)
    }

    pub(crate) fn return_hidden(&mut self, hidden: Vec<f32>) {
        self.put_back(self.compiled.hidden, hidden);
    }

    fn execute(
        &mut self,
        index: usize,
        step: &OwnedBatch,
        tokens: &[Token],
    ) -> Result<(), TaskPanicked> {
        match self.compiled.instructions[index] {
            Instruction::Embed { weight, scale, out } => self.embed(weight, scale, tokens, out),
            Instruction::RmsNorm { input, residual, weight, offset, epsilon, out } => {
                self.norm(input, residual, weight, offset, epsilon, out)
            }
            Instruction::Linear { .. } => self.linear(index),
            Instruction::Rope { input, head_dim, rotary, pairing, out } => {
                self.rope(input, head_dim, rotary, pairing, out)
            }
            Instruction::Attention { .. } => self.attention(index, step),
            Instruction::Pairwise { function, a, b, out } => self.pairwise(function, a, b, out),
            Instruction::Pointwise { function, input, out } => self.pointwise(function, input, out),
            Instruction::SelectOutputs { input, out } => self.select(input, out, step),
        }
    }

    fn embed(
        &mut self,
        weight: WeightId,
        scale: f32,
        tokens: &[Token],
        out: Buffer,
    ) -> Result<(), TaskPanicked> {
        let mut memory = self.take(out);
        let output = SharedMut::new(&mut memory);
        let result = self.compiled.weights.matrix(weight).map_or(Ok(()), |matrix| {
            for_rows(&mut self.pool, tokens.len(), out.width, &|rows| {
                for row in rows {
                    // SAFETY: each row is part of one range only.
                    let output = unsafe { output.part(row * out.width..(row + 1) * out.width) };
                    matrix.column(tokens[row] as usize, output);
                    if scale != 1.0 {
                        output.iter_mut().for_each(|value| *value *= scale);
                    }
                }
            })
        });
        self.put_back(out, memory);
        result
    }

    fn norm(
        &mut self,
        input: Buffer,
        residual: Option<(Buffer, Buffer)>,
        weight: WeightId,
        offset: f32,
        epsilon: f32,
        out: Buffer,
    ) -> Result<(), TaskPanicked> {
        let mut memory = self.take(out);
        let mut sum_memory = residual.map(|(_, sum)| self.take(sum)).unwrap_or_default();
        let output = SharedMut::new(&mut memory);
        let sum_output = SharedMut::new(&mut sum_memory);
        let weight = self.compiled.weights.vector(weight).unwrap_or_default();
        let (simd, width) = (self.simd, out.width);
        let input = &self.buffers[input.index];
        let added = residual.map(|(value, _)| &self.buffers[value.index]);
        let rows = self.shape.rows(out.rows);
        let result = for_rows(&mut self.pool, rows, width, &|rows| {
            let range = rows.start * width..rows.end * width;
            // SAFETY: each row is part of one range only, in both matrices.
            let output = unsafe { output.part(range.clone()) };
            let input = match added {
                None => &input[range],
                Some(added) => {
                    // SAFETY: as above.
                    let sum = unsafe { sum_output.part(range.clone()) };
                    let (a, b) = (&input[range.clone()], &added[range]);
                    simd.run(PairwiseOp { function: Pairwise::Add, a, b, output: sum });
                    &*sum
                }
            };
            simd.run(RmsNorm { input, output, weight, epsilon, offset });
        });
        self.put_back(out, memory);
        if let Some((_, sum)) = residual {
            self.put_back(sum, sum_memory);
        }
        result
    }

    fn linear(&mut self, index: usize) -> Result<(), TaskPanicked> {
        let Instruction::Linear { input, ref parts } = self.compiled.instructions[index] else {
            return Ok(());
        };
        let rows = parts.first().map_or(0, |part| self.shape.rows(part.out.rows));
        let mut memories: Vec<Vec<f32>> =
            parts.iter().map(|part| std::mem::take(&mut self.buffers[part.out.index])).collect();
        let input = &self.buffers[input.index][..rows * input.width];
        let weights = &self.compiled.weights;
        let mut products = Vec::with_capacity(parts.len());
        for (LinearPart { weight, bias, .. }, memory) in parts.iter().zip(&mut memories) {
            let Some(matrix) = weights.matrix(*weight) else { continue };
            let bias = bias.and_then(|bias| weights.vector(bias));
            let rows = LinearRows { input, rows, output: SharedMut::new(memory), bias };
            products.push(Product { matrix, rows });
        }
        let result = multiply(&mut self.pool, self.simd, &products, &mut self.expanded);
        for (part, memory) in parts.iter().zip(memories) {
            self.buffers[part.out.index] = memory;
        }
        result
    }

    fn rope(
        &mut self,
        input: Buffer,
        head_dim: usize,
        rotary: usize,
        pairing: Pairing,
        out: Buffer,
    ) -> Result<(), TaskPanicked> {
        let mut memory = self.take(out);
        let output = SharedMut::new(&mut memory);
        let (simd, width) = (self.simd, out.width);
        let input = &self.buffers[input.index];
        let angles = &self.angles[rotary];
        let pairs = self.compiled.rotaries[rotary].0.len();
        let rows = self.shape.rows(out.rows);
        let result = for_rows(&mut self.pool, rows, width, &|rows| {
            let range = rows.start * width..rows.end * width;
            // SAFETY: each row is part of one range only.
            let output = unsafe { output.part(range.clone()) };
            let (input, first_token) = (&input[range], rows.start);
            simd.run(Rope { input, output, width, head_dim, pairs, pairing, angles, first_token });
        });
        self.put_back(out, memory);
        result
    }

    fn attention(&mut self, index: usize, step: &OwnedBatch) -> Result<(), TaskPanicked> {
        let Instruction::Attention {
            query,
            key,
            value,
            out,
            group,
            layer,
            heads,
            scale,
            window,
            soft_cap,
            sinks,
        } = self.compiled.instructions[index]
        else {
            return Ok(());
        };
        let mut memory = self.take(out);
        let kv = &mut self.kv[usize::from(group.0)][layer];
        let shape = kv.shape();
        for (row_index, row) in step.rows.iter().enumerate() {
            let table = step.table(row_index, group);
            for (token, position) in row.tokens.range().zip(row.position as usize..) {
                let keys = &self.buffers[key.index][token * key.width..][..key.width];
                let values = &self.buffers[value.index][token * value.width..][..value.width];
                let page = table[position / shape.page_size];
                kv.write(page, position % shape.page_size, keys, values);
            }
        }
        let layer = AttentionLayer {
            kv,
            queries: &self.buffers[query.index],
            output: SharedMut::new(&mut memory),
            heads,
            scale,
            window,
            soft_cap,
            sinks: sinks.and_then(|sinks| self.compiled.weights.vector(sinks)),
        };
        let scratch = SharedMut::new(&mut self.attention);
        let (simd, queries) = (self.simd, &self.shape.queries);
        let result = self.pool.run(queries.len() * shape.kv_heads, &|thread, task| {
            let (row, tokens) = queries[task / shape.kv_heads];
            let (pages, kv_head) = (step.table(row, group), task % shape.kv_heads);
            // SAFETY: no two tasks that run at the same time have the same thread number.
            let scratch = unsafe { &mut scratch.part(thread..thread + 1)[0] };
            simd.run(AttentionTask { layer, pages, tokens, kv_head, scratch });
        });
        self.put_back(out, memory);
        result
    }

    fn pairwise(
        &mut self,
        function: Pairwise,
        a: Buffer,
        b: Buffer,
        out: Buffer,
    ) -> Result<(), TaskPanicked> {
        let mut memory = self.take(out);
        let output = SharedMut::new(&mut memory);
        let (simd, width) = (self.simd, out.width);
        let (a, b) = (&self.buffers[a.index], &self.buffers[b.index]);
        let rows = self.shape.rows(out.rows);
        let result = for_rows(&mut self.pool, rows, width, &|rows| {
            let range = rows.start * width..rows.end * width;
            // SAFETY: each row is part of one range only.
            let output = unsafe { output.part(range.clone()) };
            simd.run(PairwiseOp { function, a: &a[range.clone()], b: &b[range], output });
        });
        self.put_back(out, memory);
        result
    }

    fn pointwise(
        &mut self,
        function: Pointwise,
        input: Buffer,
        out: Buffer,
    ) -> Result<(), TaskPanicked> {
        let mut memory = self.take(out);
        let output = SharedMut::new(&mut memory);
        let (simd, width) = (self.simd, out.width);
        let input = &self.buffers[input.index];
        let rows = self.shape.rows(out.rows);
        let result = for_rows(&mut self.pool, rows, width, &|rows| {
            let range = rows.start * width..rows.end * width;
            // SAFETY: each row is part of one range only.
            let output = unsafe { output.part(range.clone()) };
            simd.run(PointwiseOp { function, input: &input[range], output });
        });
        self.put_back(out, memory);
        result
    }

    fn select(
        &mut self,
        input: Buffer,
        out: Buffer,
        step: &OwnedBatch,
    ) -> Result<(), TaskPanicked> {
        let mut memory = self.take(out);
        let input = &self.buffers[input.index];
        let rows = memory.chunks_exact_mut(out.width.max(1));
        for (token, to) in step.output_tokens.iter().zip(rows) {
            to.copy_from_slice(&input[*token as usize * out.width..][..out.width]);
        }
        self.put_back(out, memory);
        Ok(())
    }

    /// Takes a buffer out, so that it can be written while others are read.
    fn take(&mut self, buffer: Buffer) -> Vec<f32> {
        std::mem::take(&mut self.buffers[buffer.index])
    }

    fn put_back(&mut self, buffer: Buffer, memory: Vec<f32>) {
        self.buffers[buffer.index] = memory;
    }
}

impl std::fmt::Debug for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Machine").field("simd", &self.simd).field("pool", &self.pool).finish()
    }
}

/// Calls `work` with ranges of rows that together are all of them, in parallel if that pays.
fn for_rows(
    pool: &mut Pool,
    rows: usize,
    width: usize,
    work: &(dyn Fn(std::ops::Range<usize>) + Sync),
) -> Result<(), TaskPanicked> {
    let wanted = (rows * width / (SERIAL_VALUES / 2)).clamp(1, pool.threads() * 2);
    let rows_per_task = rows.div_ceil(wanted).max(1);
    pool.run(rows.div_ceil(rows_per_task), &|_, task| {
        let start = task * rows_per_task;
        work(start..(start + rows_per_task).min(rows));
    })
}
