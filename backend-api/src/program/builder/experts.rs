//! Mixtures of experts.

use super::ProgramBuilder;
use crate::program::{
    Activation, ExpertLinear, MixtureOfExperts, Op, Routing, Scoring, Split, Value, ValueId,
};

const OP: &str = "mixture_of_experts";

/// What a mixture of experts needs beside its input and its router's scores.
#[derive(Clone, Debug, PartialEq)]
pub struct ExpertOptions {
    /// Number of experts.
    pub experts: u32,
    /// Width of each: columns between its gate and its down projection.
    pub width: usize,
    /// Experts of a row.
    pub chosen: u32,
    /// From scores to weights.
    pub scoring: Scoring,
    /// Whether the chosen experts' weights are divided by their sum.
    pub normalize: bool,
    /// Multiplies the weights.
    pub factor: f32,
    /// Name of the `[experts]` weight that is added for the choice alone.
    pub selection_bias: Option<String>,
    /// Name of the `[experts]` weight that multiplies the weights.
    pub scales: Option<String>,
    /// The gate projection.
    pub gate: ExpertNames,
    /// The up projection.
    pub up: ExpertNames,
    /// The down projection.
    pub down: ExpertNames,
    /// Of gate and up.
    pub activation: Activation,
}

/// Names of one linear layer of all experts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExpertNames {
    /// `[experts, out_features, in_features]`.
    pub weight: String,
    /// `[experts, out_features]`.
    pub bias: Option<String>,
}

impl ExpertNames {
    /// A layer without bias.
    pub fn plain(weight: impl Into<String>) -> Self {
        Self { weight: weight.into(), bias: None }
    }
}

impl ProgramBuilder {
    /// Sends each row of `input` through the experts that `scores`, `[rows, experts]`, choose.
    pub fn mixture_of_experts(
        &mut self,
        input: ValueId,
        scores: ValueId,
        options: &ExpertOptions,
    ) -> ValueId {
        let Value { width, rows, .. } = self.at(input);
        let &ExpertOptions { experts, chosen, scoring, normalize, factor, activation, .. } =
            options;
        self.expect_width(OP, "the scores", scores, experts);
        self.expect_rows(OP, "the scores", scores, rows);
        self.expect_sharded(OP, "the input", input, false);
        self.expect_sharded(OP, "the scores", scores, false);
        if chosen == 0 || chosen > experts {
            self.refuse(OP, "the number of chosen experts", format!("{chosen} of {experts}"));
        }
        if options.width == 0 {
            self.refuse(OP, "the width of an expert", 0);
        }
        if !factor.is_finite() {
            self.refuse(OP, "the factor", factor);
        }
        let count = experts as usize;
        let of_each = |b: &mut Self, name: &Option<String>| {
            name.as_deref().map(|name| b.weight(name, vec![count], Split::None))
        };
        let routing = Routing {
            chosen,
            scoring,
            normalize,
            factor,
            selection_bias: of_each(self, &options.selection_bias),
            scales: of_each(self, &options.scales),
        };
        let (inner, outer) = (options.width, width as usize);
        let out = self.value(width, rows, false);
        let mixture = MixtureOfExperts {
            input,
            scores,
            out,
            experts,
            routing,
            gate: self.expert_linear(&options.gate, [count, inner, outer], Split::Columns),
            up: self.expert_linear(&options.up, [count, inner, outer], Split::Columns),
            down: self.expert_linear(&options.down, [count, outer, inner], Split::Rows),
            activation,
        };
        self.program.ops.push(Op::MixtureOfExperts(mixture));
        out
    }

    fn expert_linear(
        &mut self,
        names: &ExpertNames,
        shape: [usize; 3],
        split: Split,
    ) -> ExpertLinear {
        let [experts, out_features, _] = shape;
        // An expert's bias is a row of a matrix. It lies along the output: divided with it, or
        // added once after the sum over devices.
        let bias_split = if split == Split::Columns { Split::Rows } else { Split::None };
        let bias = names.bias.as_deref();
        ExpertLinear {
            weight: self.weight(&names.weight, shape.to_vec(), split),
            bias: bias.map(|name| self.weight(name, vec![experts, out_features], bias_split)),
        }
    }
}
