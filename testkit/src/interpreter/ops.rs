//! Every operation but attention, each as its definition reads.
//!
//! Sums, roots and exponentials are in f64 and rounded to f32 once, when a value is stored.

use engine_core::Token;
use engine_core::model::{Activation, RopePairs};

use super::matrix::Matrix;

/// `out[t] = table[tokens[t]] * scale`
pub(super) fn embed(table: &Matrix, tokens: &[Token], scale: f32) -> Matrix {
    let mut out = Matrix::zeros(tokens.len(), table.columns());
    for (row, &token) in tokens.iter().enumerate() {
        for (out, x) in out.row_mut(row).iter_mut().zip(table.row(token as usize)) {
            *out = x * scale;
        }
    }
    out
}

/// `x / sqrt(mean(x²) + epsilon) * (weight + offset)` over each run of `run` columns; no weight
/// stands for ones.
pub(super) fn rms_norm(
    input: &Matrix,
    weight: Option<&[f32]>,
    run: usize,
    offset: f32,
    epsilon: f32,
) -> Matrix {
    let mut out = input.clone();
    for row in 0..input.rows() {
        for run in out.row_mut(row).chunks_mut(run) {
            let squares: f64 = run.iter().map(|&x| f64::from(x).powi(2)).sum();
            let root = (squares / run.len() as f64 + f64::from(epsilon)).sqrt();
            for (column, x) in run.iter_mut().enumerate() {
                let weight = weight.map_or(1.0, |weight| f64::from(weight[column]));
                *x = (f64::from(*x) / root * (weight + f64::from(offset))) as f32;
            }
        }
    }
    out
}

/// `input × weightᵀ (+ bias)`
pub(super) fn linear(input: &Matrix, weight: &Matrix, bias: Option<&[f32]>) -> Matrix {
    let mut out = Matrix::zeros(input.rows(), weight.rows());
    for row in 0..input.rows() {
        for (feature, out) in out.row_mut(row).iter_mut().enumerate() {
            let bias = bias.map_or(0.0, |bias| f64::from(bias[feature]));
            *out = (dot(input.row(row), weight.row(feature)) + bias) as f32;
        }
    }
    out
}

/// Rotates each pair of each head by the row's angle.
///
/// Angles are products in f32, as they are where models are trained: at thousands of positions
/// that rounding is part of the model.
pub(super) fn rope(
    input: &Matrix,
    first_position: usize,
    head_dim: usize,
    inverse_frequencies: &[f32],
    attention_factor: f32,
    pairs: RopePairs,
) -> Matrix {
    let rotary_pairs = inverse_frequencies.len();
    let mut out = input.clone();
    for row in 0..input.rows() {
        let position = (first_position + row) as f32;
        for head in out.row_mut(row).chunks_mut(head_dim) {
            for (pair, frequency) in inverse_frequencies.iter().enumerate() {
                let (first, second) = match pairs {
                    RopePairs::Halves => (pair, pair + rotary_pairs),
                    RopePairs::Adjacent => (2 * pair, 2 * pair + 1),
                };
                let (sin, cos) = f64::from(position * frequency).sin_cos();
                let (a, b) = (f64::from(head[first]), f64::from(head[second]));
                let factor = f64::from(attention_factor);
                head[first] = ((a * cos - b * sin) * factor) as f32;
                head[second] = ((b * cos + a * sin) * factor) as f32;
            }
        }
    }
    out
}

/// `activation(gate, up)`, where the gate has as many columns as `up`, or one.
pub(super) fn gated_activation(gate: &Matrix, up: &Matrix, activation: Activation) -> Matrix {
    let mut out = up.clone();
    for row in 0..up.rows() {
        for (column, x) in out.row_mut(row).iter_mut().enumerate() {
            let gate = gate.row(row)[column % gate.columns()];
            *x = gated(activation, gate.into(), (*x).into()) as f32;
        }
    }
    out
}

/// The function of an activation.
pub(super) fn gated(activation: Activation, gate: f64, up: f64) -> f64 {
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    match activation {
        Activation::Identity => gate * up,
        Activation::Sigmoid => sigmoid(gate) * up,
        Activation::Silu => gate * sigmoid(gate) * up,
        Activation::GeluTanh => {
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (gate + 0.044_715 * gate.powi(3));
            0.5 * gate * (1.0 + inner.tanh()) * up
        }
        Activation::ClampedSwiglu { slope, limit } => {
            let (slope, limit) = (f64::from(slope), f64::from(limit));
            // Not `clamp` and `min`, which lose a NaN or panic on one.
            let gate = if gate > limit { limit } else { gate };
            let up = if up > limit { limit } else { up };
            let up = if up < -limit { -limit } else { up };
            gate * sigmoid(slope * gate) * (up + 1.0)
        }
    }
}

/// `input * (1 + beta * ln(1 + floor(position / original_context)))`
///
/// The factor is rounded to f32, as it is where models are trained.
pub(super) fn scale_by_position(
    input: &Matrix,
    first_position: usize,
    beta: f32,
    original_context: u32,
) -> Matrix {
    let mut out = input.clone();
    for row in 0..input.rows() {
        let passed = (first_position + row) / original_context as usize;
        let factor = (1.0 + f64::from(beta) * (passed as f64).ln_1p()) as f32;
        out.row_mut(row).iter_mut().for_each(|x| *x *= factor);
    }
    out
}

/// `input * weight`, where the weight has one number, or one for each column.
pub(super) fn multiply(input: &Matrix, weight: &[f32]) -> Matrix {
    let mut out = input.clone();
    for row in 0..input.rows() {
        for (column, x) in out.row_mut(row).iter_mut().enumerate() {
            *x *= weight[column % weight.len()];
        }
    }
    out
}

/// Columns `first..first + columns`.
pub(super) fn select_columns(input: &Matrix, first: usize, columns: usize) -> Matrix {
    let mut out = Matrix::zeros(input.rows(), columns);
    for row in 0..input.rows() {
        out.row_mut(row).copy_from_slice(&input.row(row)[first..first + columns]);
    }
    out
}

/// `cap * tanh(x / cap)`
pub(super) fn soft_cap(x: f64, cap: f32) -> f64 {
    let cap = f64::from(cap);
    cap * (x / cap).tanh()
}

/// Keeps the rows `tokens`.
pub(super) fn select(input: &Matrix, tokens: &[usize]) -> Matrix {
    let mut out = Matrix::zeros(tokens.len(), input.columns());
    for (row, &token) in tokens.iter().enumerate() {
        out.row_mut(row).copy_from_slice(input.row(token));
    }
    out
}

/// The inner product.
pub(super) fn dot(left: &[f32], right: &[f32]) -> f64 {
    left.iter().zip(right).map(|(&x, &y)| f64::from(x) * f64::from(y)).sum()
}
