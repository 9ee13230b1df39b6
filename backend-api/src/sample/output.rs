//! Outputs answered on the host, from rows of logits and hidden states.

use radix_cache::Token;

use super::counts::TokenCounts;
use super::row::{RowSampler, SampleError};
use crate::{Masks, OutputRequest, PoolKind, Pooling, Sampled, SlotSampling, StepResult, Want};

/// Answers outputs, one after another. Holds only scratch memory.
#[derive(Clone, Debug, Default)]
pub struct OutputSampler {
    rows: RowSampler,
    tokens: Vec<Sampled>,
}

/// An output, and what its program computed for the tokens of its run.
#[derive(Debug)]
pub struct OutputRows<'a> {
    /// Index of the output in [`Batch::outputs`](crate::Batch::outputs).
    pub output: u32,
    /// What is wanted.
    pub request: &'a OutputRequest,
    /// The tokens of the run.
    pub tokens: &'a [Token],
    /// Position of the first of them.
    pub position: u32,
    /// [`Batch::targets`](crate::Batch::targets).
    pub targets: &'a [Token],
    /// `[run, vocab_size]`; overwritten. Not read for hidden states and pooled vectors.
    pub logits: &'a mut [f32],
    /// `[run, hidden width]`. Only read for hidden states and pooled vectors.
    pub hidden: &'a [f32],
}

impl OutputSampler {
    /// Appends the answer to `result`, records sampled tokens in `counts`, and returns the slot's
    /// next token if the output makes one.
    ///
    /// # Errors
    ///
    /// [`SampleError`]: the row fails. `result` has no answer then, and `counts` may have tokens
    /// of the verified chain up to the failure.
    pub fn answer(
        &mut self,
        rows: OutputRows<'_>,
        sampling: &SlotSampling,
        counts: &mut TokenCounts,
        masks: &Masks<'_>,
        result: &mut StepResult,
    ) -> Result<Option<Token>, SampleError> {
        self.tokens.clear();
        let run = rows.tokens.len();
        let vocab_size = rows.logits.len() / run.max(1);
        let mut logits = rows.logits.chunks_exact_mut(vocab_size.max(1));
        match rows.request.want {
            Want::Sample | Want::Verify(_) => {
                let proposals = rows.tokens.iter().skip(1).map(Some).chain([None]);
                for ((index, logits), proposal) in (0..).zip(&mut logits).zip(proposals) {
                    let mask = masks.of(rows.output, index);
                    // Of the token that is about to be: one after the token that it follows.
                    let position = rows.position + index + 1;
                    let top = &mut result.top;
                    let sampled =
                        self.rows.sample(logits, sampling, counts, position, mask, top)?;
                    counts.record(sampled.token);
                    self.tokens.push(sampled);
                    if proposal != Some(&sampled.token) {
                        break;
                    }
                }
            }
            Want::Score { targets, top } => {
                let targets = rows.targets.get(targets.range()).unwrap_or_default();
                for (logits, &token) in logits.zip(targets) {
                    self.tokens.push(self.rows.score(logits, token, top, &mut result.top)?);
                }
            }
            Want::Hidden => {
                check_finite(rows.hidden)?;
                result.push_vector(rows.output, rows.hidden.iter().copied());
                return Ok(None);
            }
            Want::Pool(pooling) => {
                check_finite(rows.hidden)?;
                let width = rows.hidden.len() / run.max(1);
                result.push_vector(rows.output, pool(pooling, rows.hidden, width));
                return Ok(None);
            }
        }
        let makes_next = !matches!(rows.request.want, Want::Score { .. });
        let next = self.tokens.last().filter(|_| makes_next).map(|sampled| sampled.token);
        result.push_tokens(rows.output, self.tokens.iter().copied());
        Ok(next)
    }
}

/// One vector of `width` elements for the states `hidden`, `[run, width]`.
pub fn pool(pooling: Pooling, hidden: &[f32], width: usize) -> Vec<f32> {
    let run = hidden.len() / width.max(1);
    let mut vector = match pooling.kind {
        PoolKind::Last => hidden[hidden.len() - width.min(hidden.len())..].to_vec(),
        PoolKind::Mean => {
            let sum = |column: usize| {
                let column = hidden.iter().skip(column).step_by(width);
                column.map(|&x| f64::from(x)).sum::<f64>()
            };
            (0..width).map(|column| (sum(column) / run as f64) as f32).collect()
        }
    };
    if pooling.normalize {
        normalize(&mut vector);
    }
    vector
}

/// Divides a vector by its Euclidean length, unless that is 0.
pub fn normalize(vector: &mut [f32]) {
    let length = vector.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt();
    if length > 0.0 {
        vector.iter_mut().for_each(|x| *x = (f64::from(*x) / length) as f32);
    }
}

fn check_finite(hidden: &[f32]) -> Result<(), SampleError> {
    match hidden.iter().position(|x| !x.is_finite()) {
        None => Ok(()),
        Some(index) => Err(SampleError::HiddenNotFinite { value: hidden[index] }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Draft, Span};

    /// Logits under which each token of `likeliest` wins its row.
    fn logits(likeliest: &[Token]) -> Vec<f32> {
        let row = |&token: &Token| (0..8).map(move |t| if t == token { 5.0 } else { 0.0 });
        likeliest.iter().flat_map(row).collect()
    }

    fn verify(
        tokens: &[Token],
        likeliest: &[Token],
        sampling: &SlotSampling,
    ) -> (StepResult, Option<Token>) {
        let run = Span { start: 0, len: tokens.len() as u32 };
        let want = Want::Verify(Draft::Chain);
        let request = OutputRequest { row: 0, tokens: run, want, deferred: false };
        let mut result = StepResult::default();
        let mut counts = TokenCounts::default();
        counts.open(sampling);
        let rows = OutputRows {
            output: 0,
            request: &request,
            tokens,
            position: 10,
            targets: &[],
            logits: &mut logits(likeliest),
            hidden: &[],
        };
        let masks = Masks::default();
        let next = OutputSampler::default()
            .answer(rows, sampling, &mut counts, &masks, &mut result)
            .expect("finite");
        (result, next)
    }

    fn tokens(result: &StepResult) -> Vec<Token> {
        result.tokens.iter().map(|sampled| sampled.token).collect()
    }

    #[test]
    fn a_chain_ends_with_the_first_token_that_differs() {
        let (result, next) = verify(&[1, 2, 3, 4], &[2, 3, 7, 5], &SlotSampling::greedy());
        assert_eq!((tokens(&result), next), (vec![2, 3, 7], Some(7)));
        assert_eq!(result.outputs[0].tokens, Span { start: 0, len: 3 });
    }

    #[test]
    fn a_chain_that_holds_brings_a_token_more() {
        let (result, next) = verify(&[1, 2, 3], &[2, 3, 6], &SlotSampling::greedy());
        assert_eq!((tokens(&result), next), (vec![2, 3, 6], Some(6)));
    }

    #[test]
    fn penalties_see_the_tokens_accepted_before() {
        // Token 2 is as likely again, but was just accepted.
        let sampling = SlotSampling { presence_penalty: 6.0, ..SlotSampling::greedy() };
        let (result, _) = verify(&[1, 2], &[2, 2], &sampling);
        assert_eq!(tokens(&result), [2, 0]);
    }

    #[test]
    fn a_mean_is_of_each_column_and_normalized_to_length_one() {
        let mean = Pooling { kind: PoolKind::Mean, normalize: false };
        assert_eq!(pool(mean, &[1.0, 2.0, 3.0, 6.0], 2), [2.0, 4.0]);
        let last = Pooling { kind: PoolKind::Last, normalize: true };
        assert_eq!(pool(last, &[1.0, 2.0, 3.0, 4.0], 2), [0.6, 0.8]);
        assert_eq!(pool(last, &[0.0, 0.0], 2), [0.0, 0.0]);
    }
}
