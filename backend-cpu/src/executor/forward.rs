//! The forward pass: instructions over the rows of a batch.

use super::{
    attention::AttentionStates,
    compile::{Buffer, Compiled, Instruction, LinearPart},
    machine::StepShape,
    owned_batch::OwnedBatch,
    weights::{LoadedWeights, MatrixId, VectorId},
};
use crate::{
    kernels::{
        attention::AttentionScratch,
        experts::Routes,
        kv::KvLayer,
        linear::{LinearRows, Product, multiply},
        matrix::LinearScratch,
        rope::{Pairing, Rope, RopeAngles},
        rows::{Pairwise, PairwiseOp, Pointwise, PointwiseOp, RmsNorm},
    },
    pool::{Pool, TaskPanicked, for_rows},
    shared::SharedMut,
    simd::Simd,
};

/// Threads, and the memory that they need while they compute: the same for all programs.
pub(crate) struct Workers {
    pub(crate) pool: Pool,
    pub(super) simd: Simd,
    pub(crate) linear: LinearScratch,
    pub(super) routes: Routes,
    /// By thread.
    pub(super) attention: Vec<AttentionScratch>,
}

impl Workers {
    pub(crate) fn new(pool: Pool, simd: Simd) -> Self {
        let threads = pool.threads();
        Self {
            pool,
            simd,
            linear: LinearScratch::new(threads),
            routes: Routes::default(),
            attention: (0..threads).map(|_| AttentionScratch::default()).collect(),
        }
    }
}

impl std::fmt::Debug for Workers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Workers")
            .field("pool", &self.pool)
            .field("simd", &self.simd)
            .finish_non_exhaustive()
    }
}

/// A forward pass under way.
pub(super) struct Forward<'a> {
    pub(super) compiled: &'a Compiled,
    pub(super) weights: &'a LoadedWeights,
    pub(super) workers: &'a mut Workers,
    /// By buffer.
    pub(super) buffers: &'a mut [Vec<f32>],
    /// By rotary.
    pub(super) angles: &'a [RopeAngles],
    pub(super) states: &'a mut AttentionStates,
    /// By page group of the program, and layer.
    pub(super) kv: &'a [Vec<KvLayer>],
    pub(super) shape: &'a StepShape,
    pub(super) batch: &'a OwnedBatch,
}

impl Forward<'_> {
    pub(super) fn execute(&mut self, instruction: &Instruction) -> Result<(), TaskPanicked> {
        match *instruction {
            Instruction::Embed { matrix, scale, out } => self.embed(matrix, scale, out),
            Instruction::RmsNorm { input, residual, weight, offset, epsilon, out } => {
                self.norm(input, residual, weight, offset, epsilon, out)
            }
            Instruction::Linear { input, ref parts } => self.linear(input, parts),
            Instruction::Rope { input, head_dim, rotary, pairing, out } => {
                self.rope(input, head_dim, rotary, pairing, out)
            }
            Instruction::Attention(ref attention) => self.attention(attention),
            Instruction::Pairwise { function, a, b, out } => self.pairwise(function, a, b, out),
            Instruction::Pointwise { function, input, out } => self.pointwise(function, input, out),
            Instruction::Multiply { input, weight, out } => {
                let weight = self.weights.vector(weight);
                self.multiply_rows(input, out, &|_| weight)
            }
            Instruction::ScaleByPosition { input, beta, original_context, out } => {
                let factor = |position: u32| {
                    let passed = f64::from(position / original_context.max(1));
                    (1.0 + f64::from(beta) * passed.ln_1p()) as f32
                };
                let factors: Vec<f32> =
                    self.shape.positions.iter().map(|&position| factor(position)).collect();
                self.multiply_rows(input, out, &|row| &factors[row..=row])
            }
            Instruction::SelectColumns { input, first, out } => {
                self.select_columns(input, first, out)
            }
            Instruction::Experts(ref experts) => self.experts(experts),
            Instruction::SelectOutputs { input, out } => self.select(input, out),
        }
    }

    fn embed(&mut self, matrix: MatrixId, scale: f32, out: Buffer) -> Result<(), TaskPanicked> {
        let mut memory = self.take(out);
        let output = SharedMut::new(&mut memory);
        let matrix = self.weights.matrix(matrix);
        let tokens = &self.batch.resolved;
        let result = for_rows(&mut self.workers.pool, tokens.len(), out.width, &|rows| {
            for row in rows {
                // SAFETY: each row is part of one range only.
                let output = unsafe { output.part(row * out.width..(row + 1) * out.width) };
                matrix.column(tokens[row] as usize, output);
                if scale != 1.0 {
                    output.iter_mut().for_each(|value| *value *= scale);
                }
            }
        });
        self.put_back(out, memory);
        result
    }

    fn norm(
        &mut self,
        input: Buffer,
        residual: Option<(Buffer, Buffer)>,
        weight: VectorId,
        offset: f32,
        epsilon: f32,
        out: Buffer,
    ) -> Result<(), TaskPanicked> {
        let mut memory = self.take(out);
        let mut sum_memory = residual.map(|(_, sum)| self.take(sum)).unwrap_or_default();
        let output = SharedMut::new(&mut memory);
        let sum_output = SharedMut::new(&mut sum_memory);
        let weight = self.weights.vector(weight);
        let (simd, width) = (self.workers.simd, out.width);
        let input = &self.buffers[input.index];
        let added = residual.map(|(value, _)| &self.buffers[value.index]);
        let rows = self.shape.rows(out.rows);
        let result = for_rows(&mut self.workers.pool, rows, width, &|rows| {
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

    fn linear(&mut self, input: Buffer, parts: &[LinearPart]) -> Result<(), TaskPanicked> {
        let rows = parts.first().map_or(0, |part| self.shape.rows(part.out.rows));
        let mut memories: Vec<Vec<f32>> =
            parts.iter().map(|part| std::mem::take(&mut self.buffers[part.out.index])).collect();
        let input = &self.buffers[input.index][..rows * input.width];
        let mut products = Vec::with_capacity(parts.len());
        for (part, memory) in parts.iter().zip(&mut memories) {
            let matrix = self.weights.matrix(part.matrix);
            let bias = part.bias.map(|bias| self.weights.vector(bias));
            let rows = LinearRows { input, rows, output: SharedMut::new(memory), bias };
            products.push(Product { matrix, first: 0, rows });
        }
        let result = multiply(
            &mut self.workers.pool,
            self.workers.simd,
            input,
            &products,
            &mut self.workers.linear,
        );
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
        let (simd, width) = (self.workers.simd, out.width);
        let input = &self.buffers[input.index];
        let angles = &self.angles[rotary];
        let pairs = self.compiled.rotaries[rotary].0.len();
        let rows = self.shape.rows(out.rows);
        let result = for_rows(&mut self.workers.pool, rows, width, &|rows| {
            let range = rows.start * width..rows.end * width;
            // SAFETY: each row is part of one range only.
            let output = unsafe { output.part(range.clone()) };
            let (input, first_token) = (&input[range], rows.start);
            simd.run(Rope { input, output, width, head_dim, pairs, pairing, angles, first_token });
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
        let (simd, width) = (self.workers.simd, out.width);
        let a_width = a.width;
        let (a, b) = (&self.buffers[a.index], &self.buffers[b.index]);
        let rows = self.shape.rows(out.rows);
        let result = for_rows(&mut self.workers.pool, rows, width, &|rows| {
            let range = rows.start * width..rows.end * width;
            // SAFETY: each row is part of one range only.
            let output = unsafe { output.part(range.clone()) };
            if a_width == width {
                simd.run(PairwiseOp { function, a: &a[range.clone()], b: &b[range], output });
                return;
            }
            // One value a row.
            let pairs = b[range].chunks_exact(width).zip(output.chunks_exact_mut(width));
            for (row, (b, output)) in rows.zip(pairs) {
                simd.run(PairwiseOp { function, a: &a[row..=row], b, output });
            }
        });
        self.put_back(out, memory);
        result
    }

    /// Multiplies each row by its factors: one, or as many as it has columns.
    fn multiply_rows<'f>(
        &mut self,
        input: Buffer,
        out: Buffer,
        factors: &(dyn Fn(usize) -> &'f [f32] + Sync),
    ) -> Result<(), TaskPanicked> {
        let mut memory = self.take(out);
        let output = SharedMut::new(&mut memory);
        let (simd, width) = (self.workers.simd, out.width);
        let input = &self.buffers[input.index];
        let rows = self.shape.rows(out.rows);
        let result = for_rows(&mut self.workers.pool, rows, width, &|rows| {
            for row in rows {
                let range = row * width..(row + 1) * width;
                // SAFETY: each row is part of one range only.
                let output = unsafe { output.part(range.clone()) };
                let (function, a, b) = (Pairwise::Multiply, factors(row), &input[range]);
                simd.run(PairwiseOp { function, a, b, output });
            }
        });
        self.put_back(out, memory);
        result
    }

    fn select_columns(
        &mut self,
        input: Buffer,
        first: usize,
        out: Buffer,
    ) -> Result<(), TaskPanicked> {
        let mut memory = self.take(out);
        let rows = self.shape.rows(out.rows);
        let from = self.buffers[input.index].chunks_exact(input.width.max(1));
        let to = memory.chunks_exact_mut(out.width.max(1));
        for (from, to) in from.zip(to).take(rows) {
            to.copy_from_slice(&from[first..first + out.width]);
        }
        self.put_back(out, memory);
        Ok(())
    }

    fn pointwise(
        &mut self,
        function: Pointwise,
        input: Buffer,
        out: Buffer,
    ) -> Result<(), TaskPanicked> {
        let mut memory = self.take(out);
        let output = SharedMut::new(&mut memory);
        let (simd, width) = (self.workers.simd, out.width);
        let input = &self.buffers[input.index];
        let rows = self.shape.rows(out.rows);
        let result = for_rows(&mut self.workers.pool, rows, width, &|rows| {
            let range = rows.start * width..rows.end * width;
            // SAFETY: each row is part of one range only.
            let output = unsafe { output.part(range.clone()) };
            simd.run(PointwiseOp { function, input: &input[range], output });
        });
        self.put_back(out, memory);
        result
    }

    fn select(&mut self, input: Buffer, out: Buffer) -> Result<(), TaskPanicked> {
        let mut memory = self.take(out);
        let input = &self.buffers[input.index];
        let rows = memory.chunks_exact_mut(out.width.max(1));
        for (token, to) in self.batch.output_tokens.iter().zip(rows) {
            to.copy_from_slice(&input[*token as usize * out.width..][..out.width]);
        }
        self.put_back(out, memory);
        Ok(())
    }

    /// Takes a buffer out, so that it can be written while others are read.
    pub(super) fn take(&mut self, buffer: Buffer) -> Vec<f32> {
        std::mem::take(&mut self.buffers[buffer.index])
    }

    pub(super) fn put_back(&mut self, buffer: Buffer, memory: Vec<f32>) {
        self.buffers[buffer.index] = memory;
    }
}
