//! A mixture of experts as it is defined, a row at a time.

use engine_core::model::{MixtureOfExperts, Routing, Scoring};

use super::matrix::Matrix;
use super::ops::{dot, gated};

/// A linear layer of each expert.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layer<'a> {
    /// The experts' rows, one expert behind the other.
    pub(super) weight: &'a Matrix,
    /// `[experts, out_features]`.
    pub(super) bias: Option<&'a Matrix>,
}

impl Layer<'_> {
    fn apply(&self, expert: usize, experts: usize, input: &[f32]) -> Vec<f32> {
        let features = self.weight.rows() / experts;
        let of_feature = |feature: usize| {
            let bias = self.bias.map_or(0.0, |bias| f64::from(bias.row(expert)[feature]));
            (dot(input, self.weight.row(expert * features + feature)) + bias) as f32
        };
        (0..features).map(of_feature).collect()
    }
}

/// What a mixture reads beside its input and scores.
#[derive(Clone, Copy, Debug)]
pub(super) struct Parts<'a> {
    pub(super) gate: Layer<'a>,
    pub(super) up: Layer<'a>,
    pub(super) down: Layer<'a>,
    /// `[experts]` each.
    pub(super) selection_bias: Option<&'a [f32]>,
    pub(super) scales: Option<&'a [f32]>,
}

/// `Σ_e w[e] * down_e(activation(gate_e(x), up_e(x)))` over the chosen experts of each row.
pub(super) fn mixture(
    op: &MixtureOfExperts,
    input: &Matrix,
    scores: &Matrix,
    parts: &Parts<'_>,
) -> Matrix {
    let experts = op.experts as usize;
    let mut out = Matrix::zeros(input.rows(), input.columns());
    for row in 0..input.rows() {
        let mut sum = vec![0.0f64; input.columns()];
        let routes = route(&op.routing, scores.row(row), parts.selection_bias, parts.scales);
        for (expert, weight) in routes {
            let gate = parts.gate.apply(expert, experts, input.row(row));
            let up = parts.up.apply(expert, experts, input.row(row));
            let inner = gate
                .iter()
                .zip(&up)
                .map(|(&gate, &up)| gated(op.activation, gate.into(), up.into()) as f32);
            let result = parts.down.apply(expert, experts, &inner.collect::<Vec<_>>());
            for (sum, x) in sum.iter_mut().zip(result) {
                *sum += weight * f64::from(x);
            }
        }
        for (out, sum) in out.row_mut(row).iter_mut().zip(sum) {
            *out = sum as f32;
        }
    }
    out
}

/// A row's experts with their weights, in the order of their choice.
fn route(
    routing: &Routing,
    scores: &[f32],
    selection_bias: Option<&[f32]>,
    scales: Option<&[f32]>,
) -> Vec<(usize, f64)> {
    let scores: Vec<f64> = scores.iter().map(|&score| f64::from(score)).collect();
    let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let total: f64 = scores.iter().map(|score| (score - largest).exp()).sum();
    let weight = |score: f64| match routing.scoring {
        Scoring::Softmax => (score - largest).exp() / total,
        Scoring::Sigmoid => 1.0 / (1.0 + (-score).exp()),
    };
    let mut order: Vec<(usize, f64)> = match selection_bias {
        None => scores.iter().copied().enumerate().collect(),
        Some(bias) => {
            let biased = scores.iter().zip(bias).map(|(&s, &bias)| weight(s) + f64::from(bias));
            biased.enumerate().collect()
        }
    };
    // Stable: of equal ones the lower index stays first. What is no number is greatest, whatever its sign.
    let key = |value: f64| if value.is_nan() { value.abs() } else { value };
    order.sort_by(|a, b| key(b.1).total_cmp(&key(a.1)));
    order.truncate(routing.chosen as usize);
    let chosen: Vec<usize> = order.into_iter().map(|(expert, _)| expert).collect();
    let sum: f64 = chosen.iter().map(|&expert| weight(scores[expert])).sum();
    let divisor = if routing.normalize { sum + 1e-20 } else { 1.0 };
    let weigh = |expert: usize| {
        let scale = scales.map_or(1.0, |scales| f64::from(scales[expert]));
        (expert, weight(scores[expert]) / divisor * f64::from(routing.factor) * scale)
    };
    chosen.into_iter().map(weigh).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Routing = Routing {
        chosen: 2,
        scoring: Scoring::Softmax,
        normalize: false,
        factor: 1.0,
        selection_bias: None,
        scales: None,
    };

    fn near(found: &[(usize, f64)], expected: &[(usize, f64)]) {
        let experts = |routes: &[(usize, f64)]| routes.iter().map(|r| r.0).collect::<Vec<_>>();
        assert_eq!(experts(found), experts(expected));
        for (found, expected) in found.iter().zip(expected) {
            assert!((found.1 - expected.1).abs() < 1e-12, "{found:?} is not {expected:?}");
        }
    }

    #[test]
    fn a_softmax_is_over_all_experts_unless_the_chosen_are_normalized() {
        // Proportions 2 : 1 : 1 : 4.
        let scores = [2f32.ln(), 0.0, 0.0, 4f32.ln()];
        let found = route(&PLAIN, &scores, None, None);
        assert_eq!(found.iter().map(|r| r.0).collect::<Vec<_>>(), [3, 0]);
        assert!((found[0].1 - 0.5).abs() < 1e-6 && (found[1].1 - 0.25).abs() < 1e-6, "{found:?}");
        let found = route(&Routing { normalize: true, ..PLAIN }, &scores, None, None);
        assert!((found[0].1 - 2.0 / 3.0).abs() < 1e-6, "{found:?}");
    }

    #[test]
    fn of_equal_scores_the_lower_index_is_chosen() {
        let found = route(&PLAIN, &[1.0, 3.0, 3.0, 3.0], None, None);
        assert_eq!(found.iter().map(|r| r.0).collect::<Vec<_>>(), [1, 2]);
    }

    #[test]
    fn a_selection_bias_moves_the_choice_and_no_weight() {
        let routing = Routing { scoring: Scoring::Sigmoid, factor: 3.0, ..PLAIN };
        let bias = [0.0, 0.0, 9.0];
        near(&route(&routing, &[0.0, -1.0, 0.0], Some(&bias), None), &[(2, 1.5), (0, 1.5)]);
        let scales = [1.0, 1.0, 0.5];
        let normalized = Routing { normalize: true, ..routing };
        let found = route(&normalized, &[0.0, -1.0, 0.0], Some(&bias), Some(&scales));
        near(&found, &[(2, 0.75), (0, 1.5)]);
    }
}
