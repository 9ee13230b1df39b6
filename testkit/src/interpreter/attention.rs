//! Attention as it is defined, a query head at a time.

use engine_core::PageId;
use engine_core::model::Attention;

use super::kv::{PagedKv, Part};
use super::matrix::Matrix;
use super::ops::{dot, soft_cap};

/// Writes K and V of a row's new tokens, unless an earlier layer did, then attends from each of them to what it may see.
///
/// `first_position` is that of the first new token; `sinks` is `[heads]`.
pub(super) fn attention(
    op: &Attention,
    query: &Matrix,
    new: Option<[&Matrix; 2]>,
    sinks: Option<&[f32]>,
    kv: &mut PagedKv,
    table: &[PageId],
    first_position: usize,
) -> Matrix {
    let layer = op.layer as usize;
    if let Some([key, value]) = new {
        for row in 0..key.rows() {
            kv.write(table, layer, first_position + row, key.row(row), value.row(row));
        }
    }
    let head_dim = op.head_dim as usize;
    let queries_per_kv_head = (op.heads / op.kv_heads) as usize;
    let mut out = Matrix::zeros(query.rows(), query.columns());
    for row in 0..query.rows() {
        let position = first_position + row;
        let oldest = op.window.map_or(0, |window| (position + 1).saturating_sub(window as usize));
        for head in 0..op.heads as usize {
            let columns = head * head_dim..(head + 1) * head_dim;
            let kv_head = head / queries_per_kv_head;
            let kv_columns = kv_head * head_dim..(kv_head + 1) * head_dim;
            let read = |position, part| &kv.read(table, layer, position, part)[kv_columns.clone()];

            let query = &query.row(row)[columns.clone()];
            let scores = (oldest..=position).map(|position| {
                let score = f64::from(op.scale) * dot(query, read(position, Part::Key));
                op.soft_cap.map_or(score, |cap| soft_cap(score, cap))
            });
            let scores: Vec<f64> = scores.collect();
            let probabilities = softmax(&scores, sinks.map(|sinks| f64::from(sinks[head])));

            for (column, out) in out.row_mut(row)[columns].iter_mut().enumerate() {
                let positions = (oldest..=position).zip(&probabilities);
                let sum = positions.map(|(position, probability)| {
                    probability * f64::from(read(position, Part::Value)[column])
                });
                *out = sum.sum::<f64>() as f32;
            }
        }
    }
    out
}

/// `exp(score) / (sum of exp(scores) + exp(sink))`
fn softmax(scores: &[f64], sink: Option<f64>) -> Vec<f64> {
    let largest = scores.iter().copied().chain(sink).fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = scores.iter().map(|score| (score - largest).exp()).collect();
    let sink = sink.map_or(0.0, |sink| (sink - largest).exp());
    let total = weights.iter().sum::<f64>() + sink;
    weights.iter().map(|weight| weight / total).collect()
}
