//! A mixture of experts over the rows of a step.

use backend_api::{
    BackendError,
    program::{ExpertLinear, MixtureOfExperts, Routing},
};

use super::{
    compile::{Buffer, BufferRows, Placement, pairwise},
    forward::Forward,
    weights::{MatrixId, StackId, VectorId},
};
use crate::{
    kernels::{
        experts::{Combine, Router, Routes},
        linear::{LinearRows, Product, multiply},
        rows::{Pairwise, PairwiseOp},
    },
    pool::{TaskPanicked, for_rows},
    shared::SharedMut,
};

/// Operands of a mixture of experts.
#[derive(Debug)]
pub(crate) struct ExpertsInstruction {
    input: Buffer,
    scores: Buffer,
    out: Buffer,
    experts: usize,
    routing: Routing,
    selection_bias: Option<VectorId>,
    scales: Option<VectorId>,
    gate: ExpertLayer,
    up: ExpertLayer,
    down: ExpertLayer,
    function: Pairwise,
    /// Scratch memory, each with `chosen` rows for each row of the input: rows by expert, and
    /// later their results; gates; ups; what is gated.
    by_expert: Buffer,
    inner: [Buffer; 3],
}

/// A linear layer of each expert.
#[derive(Clone, Copy, Debug)]
struct ExpertLayer {
    weight: StackId,
    /// A row for each expert.
    bias: Option<MatrixId>,
    columns: usize,
}

impl ExpertsInstruction {
    /// The most inputs that its products have: whose rows, how many of each, and how wide.
    pub(super) fn most_inputs(&self) -> (BufferRows, usize, usize) {
        let width = self.input.width.max(self.gate.columns);
        (self.out.rows, self.routing.chosen as usize, width)
    }
}

impl Placement<'_> {
    pub(super) fn experts(
        &mut self,
        op: &MixtureOfExperts,
    ) -> Result<ExpertsInstruction, BackendError> {
        let (input, scores) = (self.get(op.input)?, self.get(op.scores)?);
        let [gate, up, down] = [self.layer(op.gate)?, self.layer(op.up)?, self.layer(op.down)?];
        let weights = self.weights;
        let of_each = |weight| weights.vector(weight);
        let out = self.put(op.out)?;
        let chosen = op.routing.chosen as usize;
        let by_expert = self.scratch(out.rows, chosen * out.width);
        let inner = [(); 3].map(|()| self.scratch(out.rows, chosen * gate.columns));
        [by_expert].iter().chain(&inner).for_each(|buffer| self.give_back(*buffer));
        Ok(ExpertsInstruction {
            input,
            scores,
            out,
            experts: op.experts as usize,
            routing: op.routing,
            selection_bias: op.routing.selection_bias.map(of_each).transpose()?,
            scales: op.routing.scales.map(of_each).transpose()?,
            gate,
            up,
            down,
            function: pairwise(op.activation),
            by_expert,
            inner,
        })
    }

    fn layer(&self, linear: ExpertLinear) -> Result<ExpertLayer, BackendError> {
        Ok(ExpertLayer {
            weight: self.weights.stack(linear.weight)?,
            bias: linear.bias.map(|bias| self.weights.matrix(bias)).transpose()?,
            columns: self.weights.rows_of_stack(linear.weight)?,
        })
    }
}

impl Forward<'_> {
    pub(super) fn experts(&mut self, op: &ExpertsInstruction) -> Result<(), TaskPanicked> {
        let rows = self.shape.rows(op.out.rows);
        let mut routes = std::mem::take(&mut self.workers.routes);
        let vector = |id: VectorId| self.weights.vector(id);
        let router = Router {
            experts: op.experts,
            chosen: op.routing.chosen as usize,
            scoring: op.routing.scoring,
            normalize: op.routing.normalize,
            factor: op.routing.factor,
            selection_bias: op.selection_bias.map(vector),
            scales: op.scales.map(vector),
        };
        routes.fill(&router, &self.buffers[op.scores.index][..rows * op.experts]);
        let mut by_expert = self.take(op.by_expert);
        let [mut gates, mut ups, mut gated] = op.inner.map(|buffer| self.take(buffer));

        let result = self.gather(op, &routes, &mut by_expert).and_then(|()| {
            let outputs = [(op.gate, &mut gates[..]), (op.up, &mut ups[..])];
            self.products(&routes, &by_expert, op.input.width, outputs)?;
            self.activate(op, &routes, [&gates, &ups], &mut gated)?;
            let outputs = [(op.down, &mut by_expert[..])];
            self.products(&routes, &gated, op.gate.columns, outputs)?;
            self.combine(op, &routes, rows, &by_expert)
        });

        self.put_back(op.by_expert, by_expert);
        for (buffer, memory) in op.inner.into_iter().zip([gates, ups, gated]) {
            self.put_back(buffer, memory);
        }
        self.workers.routes = routes;
        result
    }

    /// Copies rows to their places.
    fn gather(
        &mut self,
        op: &ExpertsInstruction,
        routes: &Routes,
        by_expert: &mut [f32],
    ) -> Result<(), TaskPanicked> {
        let width = op.input.width;
        let input = &self.buffers[op.input.index];
        let output = SharedMut::new(by_expert);
        for_rows(&mut self.workers.pool, routes.rows.len(), width, &|places| {
            for place in places {
                let row = routes.rows[place] as usize;
                // SAFETY: each place is part of one range only.
                let output = unsafe { output.part(place * width..(place + 1) * width) };
                output.copy_from_slice(&input[row * width..][..width]);
            }
        })
    }

    /// Products of the rows by expert with each active expert's matrix of some layers, in one
    /// parallel region.
    fn products<const N: usize>(
        &mut self,
        routes: &Routes,
        input: &[f32],
        depth: usize,
        outputs: [(ExpertLayer, &mut [f32]); N],
    ) -> Result<(), TaskPanicked> {
        let biases: Vec<Vec<f32>> =
            outputs.iter().map(|(layer, _)| self.biases(routes, *layer)).collect();
        let input = &input[..routes.rows.len() * depth];
        let mut products = Vec::with_capacity(N * routes.active.len());
        for ((layer, mut output), biases) in outputs.into_iter().zip(&biases) {
            let matrices = self.weights.stack(layer.weight);
            let mut biases = biases.chunks_exact(layer.columns.max(1));
            for (expert, places) in &routes.active {
                let rows = places.len();
                let (own, rest) = output.split_at_mut(rows * layer.columns);
                output = rest;
                let input = &input[places.start * depth..places.end * depth];
                let rows =
                    LinearRows { input, rows, output: SharedMut::new(own), bias: biases.next() };
                let first = places.start;
                products.push(Product { matrix: &matrices[*expert], first, rows });
            }
        }
        let workers = &mut *self.workers;
        multiply(&mut workers.pool, workers.simd, input, &products, &mut workers.linear)
    }

    /// The biases of the active experts, one behind the other; nothing where there are none.
    fn biases(&self, routes: &Routes, layer: ExpertLayer) -> Vec<f32> {
        let Some(bias) = layer.bias else { return Vec::new() };
        let matrix = self.weights.matrix(bias);
        let mut biases = vec![0.0; routes.active.len() * layer.columns];
        let rows = biases.chunks_exact_mut(layer.columns.max(1));
        for ((expert, _), row) in routes.active.iter().zip(rows) {
            matrix.column(*expert, row);
        }
        biases
    }

    fn activate(
        &mut self,
        op: &ExpertsInstruction,
        routes: &Routes,
        [gates, ups]: [&[f32]; 2],
        gated: &mut [f32],
    ) -> Result<(), TaskPanicked> {
        let (simd, width, function) = (self.workers.simd, op.gate.columns, op.function);
        let output = SharedMut::new(gated);
        for_rows(&mut self.workers.pool, routes.rows.len(), width, &|rows| {
            let range = rows.start * width..rows.end * width;
            // SAFETY: each row is part of one range only.
            let output = unsafe { output.part(range.clone()) };
            let (a, b) = (&gates[range.clone()], &ups[range]);
            simd.run(PairwiseOp { function, a, b, output });
        })
    }

    /// Adds the weighted results of each row.
    fn combine(
        &mut self,
        op: &ExpertsInstruction,
        routes: &Routes,
        rows: usize,
        results: &[f32],
    ) -> Result<(), TaskPanicked> {
        let mut memory = self.take(op.out);
        let output = SharedMut::new(&mut memory);
        let (simd, width, chosen) = (self.workers.simd, op.out.width, op.routing.chosen as usize);
        let result = for_rows(&mut self.workers.pool, rows, width, &|rows| {
            for row in rows {
                let choices = row * chosen..(row + 1) * chosen;
                let (weights, places) = (&routes.weights[choices.clone()], &routes.places[choices]);
                // SAFETY: each row is part of one range only.
                let output = unsafe { output.part(row * width..(row + 1) * width) };
                simd.run(Combine { weights, places, results, output });
            }
        });
        self.put_back(op.out, memory);
        result
    }
}
