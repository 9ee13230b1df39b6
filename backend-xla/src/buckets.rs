//! Buckets: the shapes of steps that are compiled, so that any batch fits one of them.
//!
//! Decode steps come in powers of two of rows. Steps with prefill come in powers of two of prefill
//! tokens, each with few rows or with all. Where a batch may want more logits than there are rows
//! (speculation, prompt log probabilities), steps with prefill come with as many as it may want,
//! too; and steps of short runs, one for each row, come in powers of two of rows: verification.
//! Where hidden states may be wanted, steps with prefill come with them. Ragged steps have the same
//! shapes, where the rows are those of either kind and the prefill tokens come one by one.

use std::collections::BTreeSet;

use backend_api::{Batch, Limits, Want};

use crate::lower::step::StepShape;

/// Rows of the smaller of the two shapes with prefill.
const FEW_ROWS: usize = 8;
/// Prefill tokens of the smallest shape with prefill.
const FEW_TOKENS: usize = 64;
/// Tokens of the longest run that has a shape of its own for verification.
const LONGEST_CHAIN: usize = 16;

/// The shapes for some limits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Buckets {
    is_ragged: bool,
    shapes: Vec<StepShape>,
}

/// What a batch needs of a shape.
#[derive(Clone, Copy, Debug)]
struct Demand<'a, 'b> {
    batch: &'a Batch<'b>,
    outputs: usize,
    hidden: usize,
}

impl Buckets {
    /// Shapes for batches within `limits`, whose prefill rows are cut into runs of `block` tokens;
    /// with hidden states, if they may be wanted.
    pub(crate) fn in_runs(limits: &Limits, hidden: bool, block: usize) -> Self {
        Self::new(limits, hidden, block, false)
    }

    /// Shapes for batches within `limits` in ragged order.
    pub(crate) fn ragged(limits: &Limits, hidden: bool) -> Self {
        Self::new(limits, hidden, 1, true)
    }

    fn new(limits: &Limits, has_hidden: bool, block: usize, is_ragged: bool) -> Self {
        let rows = limits.rows.max(1) as usize;
        // Each row may end in a run that is not full.
        let partial = if is_ragged { 0 } else { rows };
        let most_blocks = (limits.tokens as usize).div_ceil(block) + partial;
        let blocks = doubling(FEW_TOKENS.div_ceil(block), most_blocks);
        let most_outputs = (limits.outputs as usize).max(rows);
        let shape = |decode, blocks, outputs| {
            let hidden = 0;
            StepShape { decode, blocks, block, outputs, hidden, is_ragged }
        };

        let mut shapes = BTreeSet::new();
        shapes.extend(doubling(1, rows).into_iter().map(|decode| shape(decode, 0, decode)));
        for &blocks in &blocks {
            for rows in [FEW_ROWS.min(rows), rows] {
                shapes.insert(shape(rows, blocks, rows));
            }
            shapes.insert(shape(rows, blocks, most_outputs));
            if has_hidden {
                let step = shape(rows, blocks, rows);
                let hidden = step.tokens().min(most_outputs);
                shapes.insert(StepShape { hidden, ..step });
            }
        }
        if has_hidden {
            let step = shape(rows, most_blocks, most_outputs);
            shapes.insert(StepShape { hidden: most_outputs, ..step });
        }
        if most_outputs > rows {
            let chain = most_outputs.div_ceil(rows).next_power_of_two().min(LONGEST_CHAIN);
            for rows in doubling(1, rows) {
                let outputs = (rows * chain).min(most_outputs);
                shapes.insert(match is_ragged {
                    true => shape(rows, rows * (chain - 1), outputs),
                    false => StepShape { block: chain, ..shape(0, rows, outputs) },
                });
            }
        }
        Self { is_ragged, shapes: shapes.into_iter().collect() }
    }

    /// Every shape that [`Buckets::choose`] can return.
    pub(crate) fn all(&self) -> &[StepShape] {
        &self.shapes
    }

    /// The different numbers of logits.
    pub(crate) fn outputs(&self) -> BTreeSet<usize> {
        self.shapes.iter().map(|shape| shape.outputs).collect()
    }

    /// The shape with the least to compute that holds a batch, or `None` for a batch beyond the
    /// limits, or one that wants hidden states where there are none.
    pub(crate) fn choose(&self, batch: &Batch<'_>) -> Option<StepShape> {
        let demand = Demand::new(batch);
        let fitting = self.shapes.iter().filter(|shape| demand.fits(shape, self.is_ragged));
        fitting.min_by_key(|shape| shape.tokens() + shape.outputs + shape.hidden).copied()
    }
}

impl<'a, 'b> Demand<'a, 'b> {
    fn new(batch: &'a Batch<'b>) -> Self {
        let wanted = batch.outputs.iter().filter(|output| wants_hidden(output.want));
        let hidden = wanted.map(|output| output.tokens.len as usize).sum();
        Self { batch, outputs: batch.output_rows() - hidden, hidden }
    }

    fn fits(&self, shape: &StepShape, is_ragged: bool) -> bool {
        let Batch { rows, tokens, decode_rows, .. } = self.batch;
        let decode = *decode_rows as usize;
        if self.outputs > shape.outputs || self.hidden > shape.hidden {
            return false;
        }
        if is_ragged {
            return rows.len() <= shape.decode && tokens.len() <= shape.tokens();
        }
        // In a shape without decode rows, all rows lie in runs.
        let in_runs = if shape.decode == 0 { 0 } else { decode };
        if in_runs > shape.decode || rows.len() - in_runs > shape.blocks {
            return false;
        }
        let runs = rows[in_runs..].iter().map(|row| shape.runs(row.tokens.len as usize));
        runs.sum::<usize>() <= shape.blocks
    }
}

/// Whether an answer is made of hidden states, rather than of logits.
pub(crate) fn wants_hidden(want: Want) -> bool {
    match want {
        Want::Hidden | Want::Pool(_) => true,
        Want::Sample | Want::Verify(_) | Want::Score { .. } => false,
    }
}

/// `first`, twice that, and so on, then `last`.
fn doubling(first: usize, last: usize) -> Vec<usize> {
    let powers = std::iter::successors(Some(first.max(1)), |size| size.checked_mul(2));
    let mut sizes: Vec<usize> = powers.take_while(|&size| size < last).collect();
    sizes.push(last);
    sizes
}

#[cfg(test)]
mod tests {
    use super::*;
    use backend_api::{Draft, InputToken, OutputRequest, Row, SlotId, Slots, Span};

    fn limits(outputs: u32) -> Limits {
        Limits { rows: 32, tokens: 256, outputs, slots: 32, pages: vec![64] }
    }

    #[test]
    fn every_batch_within_the_limits_has_a_prepared_shape() {
        for outputs in [32, 100, 160, 256] {
            for hidden in [false, true] {
                let limits = limits(outputs);
                check(&limits, hidden, &Buckets::in_runs(&limits, hidden, 16));
                check(&limits, hidden, &Buckets::ragged(&limits, hidden));
            }
        }
    }

    /// A batch of rows of so many tokens each, the first `decode` of them decode rows, with outputs
    /// of so many tokens each.
    fn choose(
        buckets: &Buckets,
        lengths: &[u32],
        decode: u32,
        outputs: &[(Want, u32)],
    ) -> Option<StepShape> {
        let slots = Slots::new(32, 1);
        let mut start = 0;
        let rows = (0..).zip(lengths).map(|(slot, &len)| {
            let tokens = Span { start, len };
            start += len;
            Row { slot: SlotId(slot), tokens, position: 0, outputs: Span::default() }
        });
        let rows: Vec<Row> = rows.collect();
        let tokens = vec![InputToken::Known(0); start as usize];
        let output = |&(want, len)| {
            let tokens = Span { start: 0, len };
            OutputRequest { row: 0, tokens, want, deferred: false }
        };
        let outputs: Vec<_> = outputs.iter().map(output).collect();
        buckets.choose(&Batch::new(0, &tokens, &rows, decode, &outputs, &[], &slots))
    }

    /// Tries batches of all mixtures of rows.
    fn check(limits: &Limits, has_hidden: bool, buckets: &Buckets) {
        for decode in 0..=32u32 {
            for others in 0..=(32 - decode) {
                for len in [1, 2, 5, 15, 16, 17, 256] {
                    let tokens = decode + others * len;
                    if decode + others == 0 || tokens > limits.tokens {
                        continue;
                    }
                    let lengths: Vec<u32> =
                        (0..decode + others).map(|i| if i < decode { 1 } else { len }).collect();
                    for outputs in [0, decode, decode + others, tokens] {
                        for hidden in [0, 1, tokens] {
                            if outputs + hidden > limits.outputs || (hidden > 0 && !has_hidden) {
                                continue;
                            }
                            let wants =
                                [(Want::Verify(Draft::Chain), outputs), (Want::Hidden, hidden)];
                            let shape = choose(buckets, &lengths, decode, &wants);
                            let shape = shape.expect("a shape");
                            assert!(buckets.all().contains(&shape), "{shape:?}");
                            assert!(shape.outputs >= outputs as usize);
                            assert!(shape.hidden >= hidden as usize);
                            assert!(shape.tokens() >= tokens as usize);
                            assert_eq!(shape.is_ragged, buckets.is_ragged);
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn beyond_the_limits_there_is_no_shape() {
        let buckets = Buckets::in_runs(&limits(100), false, 16);
        assert_eq!(choose(&buckets, &[200], 0, &[(Want::Verify(Draft::Chain), 101)]), None);
        assert_eq!(choose(&buckets, &[200], 0, &[(Want::Hidden, 1)]), None);
    }

    #[test]
    fn what_is_not_asked_for_is_not_compiled() {
        let plain = Buckets::in_runs(&limits(32), false, 16);
        // 1, 2, .. 32 decode rows; 4, 8, 16, 32 and 48 blocks with 8 and 32 rows.
        assert_eq!(plain.all().len(), 6 + 5 * 2);
        let verifying = Buckets::in_runs(&limits(32 * 5), false, 16);
        assert_eq!(verifying.all().len(), 6 + 5 * 3 + 6);
        let embedding = Buckets::in_runs(&limits(32), true, 16);
        assert_eq!(embedding.all().len(), 6 + 5 * 3);
    }

    #[test]
    fn short_chains_have_short_runs() {
        let chains = [(Want::Verify(Draft::Chain), 5); 3];
        let buckets = Buckets::in_runs(&limits(32 * 5), false, 16);
        let shape = choose(&buckets, &[1, 5, 5, 5], 1, &chains).expect("a shape");
        assert_eq!((shape.decode, shape.blocks, shape.block), (0, 4, 8));
        let shape = choose(&Buckets::ragged(&limits(32 * 5), false), &[1, 5, 5, 5], 1, &chains);
        // A step of decode rows has room for so many tokens in any rows.
        assert_eq!(shape.map(|shape| shape.tokens()), Some(16));
        // Beside a chunk of a prompt they lie in its runs.
        let shape = choose(&buckets, &[1, 5, 5, 5, 100], 1, &chains).expect("a shape");
        assert_eq!((shape.blocks, shape.block, shape.outputs), (16, 16, 32));
    }
}
