//! Buckets: the shapes of steps that are compiled, so that any batch fits one of them.
//!
//! Decode steps come in powers of two of rows. Steps with prefill come in powers of two of prefill
//! tokens, each with few rows or with all. One more shape serves steps that want more outputs than
//! there are rows (prompt log probabilities). Ragged steps have the same shapes, where the rows are
//! those of either kind and the prefill tokens come one by one.

use std::collections::BTreeSet;

use backend_api::{Batch, Limits};

use crate::lower::step::StepShape;

/// Rows of the smaller of the two shapes with prefill.
const FEW_ROWS: usize = 8;
/// Prefill tokens of the smallest shape with prefill.
const FEW_TOKENS: usize = 64;

/// The shapes for some limits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Buckets {
    block: usize,
    is_ragged: bool,
    /// Ascending.
    decode: Vec<usize>,
    /// Rows (and outputs) of steps with prefill, ascending.
    mixed_rows: Vec<usize>,
    /// Prefill blocks, ascending.
    blocks: Vec<usize>,
    outputs: usize,
}

impl Buckets {
    /// Shapes for batches within `limits`, whose prefill rows are cut into runs of `block` tokens.
    pub(crate) fn in_runs(limits: &Limits, block: usize) -> Self {
        Self::new(limits, block, false)
    }

    /// Shapes for batches within `limits` in ragged order.
    pub(crate) fn ragged(limits: &Limits) -> Self {
        Self::new(limits, 1, true)
    }

    fn new(limits: &Limits, block: usize, is_ragged: bool) -> Self {
        let rows = limits.rows.max(1) as usize;
        // Each row may end in a run that is not full.
        let partial = if is_ragged { 0 } else { rows };
        let most_blocks = (limits.tokens as usize).div_ceil(block) + partial;
        let outputs = limits.outputs as usize;
        Self {
            block,
            is_ragged,
            decode: doubling(1, rows),
            mixed_rows: [FEW_ROWS.min(rows), rows]
                .into_iter()
                .collect::<BTreeSet<_>>()
                .into_iter()
                .collect(),
            blocks: doubling(FEW_TOKENS.div_ceil(block), most_blocks),
            outputs,
        }
    }

    /// Every shape that [`Buckets::choose`] can return.
    pub(crate) fn all(&self) -> Vec<StepShape> {
        let mut shapes: Vec<StepShape> =
            self.decode.iter().map(|&decode| self.shape(decode, 0, decode)).collect();
        for &blocks in &self.blocks {
            for &rows in &self.mixed_rows {
                shapes.push(self.shape(rows, blocks, rows));
            }
        }
        shapes.extend(self.scoring());
        shapes
    }

    /// The different numbers of outputs.
    pub(crate) fn outputs(&self) -> BTreeSet<usize> {
        self.all().into_iter().map(|shape| shape.outputs).collect()
    }

    /// The smallest shape that holds a batch, or `None` for a batch beyond the limits.
    pub(crate) fn choose(&self, batch: &Batch<'_>) -> Option<StepShape> {
        let decode = batch.decode_rows as usize;
        let outputs = batch.outputs.len();
        let prefill = batch.rows.get(decode..)?;
        let blocks: usize =
            prefill.iter().map(|row| (row.tokens.len as usize).div_ceil(self.block)).sum();
        let shape = if blocks == 0 {
            let rows = at_least(&self.decode, decode)?;
            self.shape(rows, 0, rows)
        } else {
            let blocks = at_least(&self.blocks, blocks)?;
            let places = if self.is_ragged { batch.rows.len() } else { decode };
            let wanted = places.max(outputs).min(*self.mixed_rows.last()?);
            let rows = at_least(&self.mixed_rows, wanted.max(places))?;
            self.shape(rows, blocks, rows)
        };
        if outputs <= shape.outputs {
            Some(shape)
        } else {
            self.scoring().filter(|shape| outputs <= shape.outputs)
        }
    }

    fn shape(&self, decode: usize, blocks: usize, outputs: usize) -> StepShape {
        StepShape { decode, blocks, block: self.block, outputs, is_ragged: self.is_ragged }
    }

    /// The shape for more outputs than rows.
    fn scoring(&self) -> Option<StepShape> {
        let (&decode, &blocks) = (self.mixed_rows.last()?, self.blocks.last()?);
        let shape = self.shape(decode, blocks, self.outputs);
        (self.outputs > decode).then_some(shape)
    }
}

/// `first`, twice that, and so on, then `last`.
fn doubling(first: usize, last: usize) -> Vec<usize> {
    let powers = std::iter::successors(Some(first.max(1)), |size| size.checked_mul(2));
    let mut sizes: Vec<usize> = powers.take_while(|&size| size < last).collect();
    sizes.push(last);
    sizes
}

fn at_least(sizes: &[usize], wanted: usize) -> Option<usize> {
    sizes.iter().copied().find(|&size| size >= wanted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use backend_api::{OutputRequest, Row, SlotId, Slots, Span, Want};

    fn limits() -> Limits {
        Limits { rows: 32, tokens: 256, outputs: 100, slots: 32, pages: vec![64] }
    }

    #[test]
    fn every_batch_within_the_limits_has_a_prepared_shape() {
        let limits = limits();
        check(&limits, &Buckets::in_runs(&limits, 16));
    }

    #[test]
    fn every_batch_within_the_limits_has_a_prepared_ragged_shape() {
        let limits = limits();
        check(&limits, &Buckets::ragged(&limits));
    }

    /// Tries batches of all mixtures of rows.
    fn check(limits: &Limits, buckets: &Buckets) {
        let all = buckets.all();
        let slots = Slots::new(32, 1);
        for decode in 0..=32u32 {
            for prefill in 0..=(32 - decode) {
                for len in [1, 2, 15, 16, 17, 256] {
                    for outputs in [0, decode, decode + prefill, 100] {
                        if decode + prefill == 0 || decode + prefill * len > limits.tokens {
                            continue;
                        }
                        if prefill == 0 && outputs > decode {
                            continue;
                        }
                        let row = |index: u32| Row {
                            slot: SlotId(index),
                            tokens: Span { start: 0, len: if index < decode { 1 } else { len } },
                            position: 0,
                            outputs: Span::default(),
                        };
                        let rows: Vec<Row> = (0..decode + prefill).map(row).collect();
                        let output = OutputRequest { row: 0, token: 0, want: Want::Sample };
                        let outputs = vec![output; outputs as usize];
                        let batch = Batch::new(0, &[], &rows, decode, &outputs, &[], &slots);
                        let shape = buckets.choose(&batch).expect("a shape");
                        assert!(all.contains(&shape), "{shape:?}");
                        assert!(shape.decode >= decode as usize);
                        assert!(shape.outputs >= outputs.len());
                        let blocks = prefill as usize * (len as usize).div_ceil(buckets.block);
                        assert!(shape.blocks >= blocks);
                        if buckets.is_ragged {
                            assert!(shape.decode >= rows.len());
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn beyond_the_limits_there_is_no_shape() {
        let buckets = Buckets::in_runs(&limits(), 16);
        let slots = Slots::new(32, 1);
        let output = OutputRequest { row: 0, token: 0, want: Want::Sample };
        let outputs = vec![output; 101];
        let batch = Batch::new(0, &[], &[], 0, &outputs, &[], &slots);
        assert_eq!(buckets.choose(&batch), None);
    }
}
