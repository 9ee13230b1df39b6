//! A mixture of experts: the operands of the operation, and how rows are routed.

use super::{Activation, ValueId, WeightId};

/// Operands of [`Op::MixtureOfExperts`](super::Op::MixtureOfExperts): each row goes through the
/// few experts that its scores choose (Shazeer et al., 2017; Fedus et al., Switch Transformers,
/// 2022).
///
/// `out = Σ_e w[e] * down_e(activation(gate_e(input), up_e(input)))` over the row's chosen experts
/// in the order of their choice, where `gate_e`, `up_e` and `down_e` are linear and `w` is what
/// [`Routing`] says. An expert that no row of a step chose costs nothing.
///
/// A linear operation before computes the scores; an expert that all rows share is made of linear
/// operations beside.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MixtureOfExperts {
    /// `[rows, width]`, not sharded.
    pub input: ValueId,
    /// `[rows, experts]`, not sharded: the router's.
    pub scores: ValueId,
    /// `[rows, width]`.
    pub out: ValueId,
    /// Number of experts.
    pub experts: u32,
    /// Which experts a row goes through, and how their results are weighed.
    pub routing: Routing,
    /// `[experts, expert_width, width]`.
    pub gate: ExpertLinear,
    /// `[experts, expert_width, width]`.
    pub up: ExpertLinear,
    /// `[experts, width, expert_width]`. With tensor parallelism each device holds its share of
    /// every expert's width, and partial results are summed, whichever experts are chosen.
    pub down: ExpertLinear,
    /// Of gate and up.
    pub activation: Activation,
}

/// A linear layer of each expert.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExpertLinear {
    /// `[experts, out_features, in_features]`.
    pub weight: WeightId,
    /// `[experts, out_features]`.
    pub bias: Option<WeightId>,
}

/// How rows are sent to experts.
///
/// Let `p` be the scores under [`scoring`](Self::scoring). A row's experts are the `chosen` ones
/// with the greatest score, or, where there is a selection bias, the greatest `p + bias`; of equal
/// ones those with the lower index. The weight of such an expert is `p`, divided by the sum of the
/// chosen ones' (and 1e-20, which keeps that from zero) if `normalize`, times `factor`, times its
/// scale.
///
/// A softmax of the chosen scores alone (gpt-oss) is a normalized softmax of all.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Routing {
    /// Experts of a row, at least 1.
    pub chosen: u32,
    /// From scores to weights.
    pub scoring: Scoring,
    /// Whether weights are divided by their sum.
    pub normalize: bool,
    /// 1, or what the architecture multiplies weights with.
    pub factor: f32,
    /// `[experts]`: added for the choice alone (DeepSeek V3).
    pub selection_bias: Option<WeightId>,
    /// `[experts]`: multiplies the weight of each (Gemma 4).
    pub scales: Option<WeightId>,
}

/// From a router's scores to weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scoring {
    /// `exp(score) / Σ exp(scores)` over all experts.
    Softmax,
    /// `1 / (1 + exp(-score))` of each by itself.
    Sigmoid,
}
