//! Buckets: the shapes of steps that are compiled, so that any batch fits one of them.
//!
//! Decode steps come in powers of two of rows. Steps with prefill come in powers of two of prefill
//! tokens, each with few rows or with all. Two more shapes serve steps that want more logits than
//! there are rows: prompt log probabilities. Where drafts are verified, steps with prefill come with
//! all logits as well, and steps of short runs alone come in powers of two of runs. Where hidden
//! states may be wanted, steps with prefill come with them. Ragged steps have the same shapes, where
//! the rows are those of any kind and the prefill tokens come one by one.

use std::collections::BTreeSet;

use backend_api::{Batch, CompileOptions, Want};

use crate::lower::step::StepShape;

/// Rows of the smaller of the two shapes with prefill.
const FEW_ROWS: usize = 8;
/// Prefill tokens of the smallest shape with prefill.
const FEW_TOKENS: usize = 64;
/// Tokens of a run in the shapes for drafts.
const DRAFT_BLOCK: usize = 4;

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
    /// Shapes for batches within the options' limits, whose prefill rows are cut into runs of `block`
    /// tokens.
    pub(crate) fn in_runs(options: &CompileOptions, block: usize) -> Self {
        Self::new(options, block, false)
    }

    /// Shapes for batches within the options' limits in ragged order.
    pub(crate) fn ragged(options: &CompileOptions) -> Self {
        Self::new(options, 1, true)
    }

    fn new(options: &CompileOptions, block: usize, is_ragged: bool) -> Self {
        let limits = &options.limits;
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
        let with_hidden = |step: StepShape| {
            let hidden = step.tokens().min(most_outputs);
            StepShape { hidden, ..step }
        };

        let mut shapes = BTreeSet::new();
        shapes.extend(doubling(1, rows).into_iter().map(|decode| shape(decode, 0, decode)));
        for &blocks in &blocks {
            for rows in [FEW_ROWS.min(rows), rows] {
                shapes.insert(shape(rows, blocks, rows));
            }
            if options.longest_draft > 0 {
                shapes.insert(shape(rows, blocks, most_outputs));
            }
            if options.hidden {
                shapes.insert(with_hidden(shape(rows, blocks, rows)));
            }
        }
        // As much prefill as logits, and everything at once.
        let scored = most_outputs.div_ceil(block);
        let scored = blocks.iter().copied().find(|&blocks| blocks >= scored);
        for blocks in [scored.unwrap_or(most_blocks), most_blocks] {
            shapes.insert(shape(rows, blocks, most_outputs));
        }
        if options.hidden {
            shapes.insert(with_hidden(shape(rows, most_blocks, most_outputs)));
        }
        // Beyond so many runs, decode rows that lie apart take fewer tokens. Ragged decode steps
        // hold runs as they are.
        let runs = (rows + FEW_TOKENS).div_ceil(DRAFT_BLOCK);
        if options.longest_draft > 0 && !is_ragged {
            shapes.extend(doubling(1, runs).into_iter().map(|runs| {
                let outputs = (runs * DRAFT_BLOCK).min(most_outputs);
                StepShape { block: DRAFT_BLOCK, ..shape(0, runs, outputs) }
            }));
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
    use backend_api::{Draft, InputToken, Limits, OutputRequest, Row, SlotId, Slots, Span};

    fn options(outputs: u32, longest_draft: u32, hidden: bool) -> CompileOptions {
        let limits = Limits { rows: 32, tokens: 256, outputs, slots: 32, pages: vec![64] };
        let mut options = CompileOptions::new(limits, 16, 256);
        (options.longest_draft, options.hidden) = (longest_draft, hidden);
        options
    }

    #[test]
    fn every_batch_within_the_limits_has_a_prepared_shape() {
        for outputs in [32, 100, 160, 256] {
            for (longest_draft, hidden) in [(0, false), (4, false), (0, true), (8, true)] {
                let options = options(outputs, longest_draft, hidden);
                check(&options, &Buckets::in_runs(&options, 16));
                check(&options, &Buckets::ragged(&options));
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
    fn check(options: &CompileOptions, buckets: &Buckets) {
        let limits = &options.limits;
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
                            if outputs + hidden > limits.outputs || (hidden > 0 && !options.hidden)
                            {
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
        let buckets = Buckets::in_runs(&options(100, 4, false), 16);
        assert_eq!(choose(&buckets, &[200], 0, &[(Want::Verify(Draft::Chain), 101)]), None);
        assert_eq!(choose(&buckets, &[200], 0, &[(Want::Hidden, 1)]), None);
    }

    #[test]
    fn what_is_not_asked_for_is_not_compiled() {
        let count = |outputs, longest_draft, hidden| {
            Buckets::in_runs(&options(outputs, longest_draft, hidden), 16).all().len()
        };
        // 1, 2, .. 32 decode rows; 4, 8, 16, 32 and 48 blocks with 8 and 32 rows.
        let plain = 6 + 5 * 2;
        assert_eq!(count(32, 0, false), plain);
        // 160 logits with 16 and with 48 blocks.
        assert_eq!(count(160, 0, false), plain + 2);
        // With 4, 8 and 32 blocks, too, and 1, 2, .. 16 and 24 runs.
        assert_eq!(count(160, 4, false), plain + 5 + 6);
        assert_eq!(count(32, 0, true), plain + 5);
    }

    #[test]
    fn short_chains_have_short_runs() {
        let chains = [(Want::Verify(Draft::Chain), 5); 3];
        let options = options(160, 4, false);
        let buckets = Buckets::in_runs(&options, 16);
        let shape = choose(&buckets, &[1, 5, 5, 5], 1, &chains).expect("a shape");
        assert_eq!((shape.decode, shape.blocks, shape.block), (0, 8, 4));
        let shape = choose(&Buckets::ragged(&options), &[1, 5, 5, 5], 1, &chains);
        // A step of decode rows has room for so many tokens in any rows.
        assert_eq!(shape.map(|shape| shape.tokens()), Some(16));
        // Beside a chunk of a prompt they lie in its runs.
        let shape = choose(&buckets, &[1, 5, 5, 5, 100], 1, &chains).expect("a shape");
        assert_eq!((shape.blocks, shape.block, shape.outputs), (16, 16, 32));
    }
}
