//! The devices' replies as answers.

use std::ops::Range;

use backend_api::{
    Batch, RowFailure, Sampled, Span, StepError, StepResult, Token, Want,
    sample::{SampleError, pool},
};

use super::sampling::logits_rows;
use crate::{
    buckets::wants_hidden,
    lower::sampler::{MOST_TOP, reply},
};

/// What a step's outputs want, kept until the replies are there.
#[derive(Debug)]
pub(super) struct Answers {
    wanted: Vec<Wanted>,
    /// By row of logits: the token that was proposed to follow.
    proposals: Vec<Option<Token>>,
    vocab_size: usize,
    hidden_width: usize,
}

/// One output of the batch.
#[derive(Debug)]
struct Wanted {
    row: u32,
    want: Want,
    is_deferred: bool,
    /// Its rows of logits or of hidden states.
    rows: Range<usize>,
    /// How many of the likeliest tokens, if log probabilities are wanted at all.
    top: Option<u8>,
}

/// What one run of the sampler replied, as words: `[outputs, reply::COUNT]`, and
/// `[outputs, 2 * MOST_TOP]`, or nothing if no likeliest tokens are wanted.
#[derive(Debug, Default)]
pub(super) struct Replied {
    replies: Vec<u32>,
    likeliest: Vec<u32>,
}

/// All that a step brought to the host.
#[derive(Debug, Default)]
pub(super) struct Arrived {
    pub(super) at_launch: Replied,
    pub(super) deferred: Replied,
    /// `[hidden, width]`.
    pub(super) hidden: Vec<f32>,
}

impl Replied {
    pub(super) fn new(replies: &[u8], likeliest: &[u8]) -> Self {
        Self { replies: words(replies).collect(), likeliest: words(likeliest).collect() }
    }

    fn reply(&self, row: usize) -> Option<[u32; reply::COUNT]> {
        let start = row * reply::COUNT;
        self.replies.get(start..start + reply::COUNT)?.try_into().ok()
    }

    /// The likeliest tokens of a row with their log probabilities.
    fn likeliest(&self, row: usize) -> impl Iterator<Item = (Token, f32)> {
        let start = row * 2 * MOST_TOP;
        let words = self.likeliest.get(start..start + 2 * MOST_TOP).unwrap_or_default();
        let (tokens, logprobs) = words.split_at(words.len() / 2);
        tokens.iter().zip(logprobs).map(|(&token, &bits)| (token, f32::from_bits(bits)))
    }
}

/// An array of floats that was copied to the host.
pub(super) fn floats_of(bytes: &[u8]) -> Vec<f32> {
    words(bytes).map(f32::from_bits).collect()
}

fn words(bytes: &[u8]) -> impl Iterator<Item = u32> {
    bytes.chunks_exact(4).map(|word| u32::from_le_bytes([word[0], word[1], word[2], word[3]]))
}

impl Answers {
    pub(super) fn new(batch: &Batch<'_>, vocab_size: usize, hidden_width: usize) -> Self {
        let (mut logits, mut hidden) = (0, 0);
        let wanted = batch.outputs.iter().map(|output| {
            let sampling = batch.slots.sampling(batch.rows[output.row as usize].slot);
            let next = if wants_hidden(output.want) { &mut hidden } else { &mut logits };
            let start = *next;
            *next += output.tokens.len as usize;
            Wanted {
                row: output.row,
                want: output.want,
                is_deferred: output.deferred,
                rows: start..*next,
                top: match output.want {
                    Want::Score { top, .. } => Some(top),
                    _ => sampling.logprobs,
                },
            }
        });
        let wanted = wanted.collect();
        let proposals = logits_rows(batch).map(|row| row.proposal).collect();
        Self { wanted, proposals, vocab_size, hidden_width }
    }

    /// Writes the answers. A row fails as a whole, once, for its first reason.
    pub(super) fn read(&self, arrived: &Arrived, result: &mut StepResult) -> Result<(), StepError> {
        let mut failures: Vec<RowFailure> = Vec::new();
        for (index, wanted) in (0..).zip(&self.wanted) {
            let is_known = failures.last().is_some_and(|failure| failure.row == wanted.row);
            let failure = self.read_one(index, wanted, arrived, result).err();
            failures.extend(failure.filter(|_| !is_known));
        }
        if failures.is_empty() {
            return Ok(());
        }
        let failed = |row| failures.iter().any(|failure| failure.row == row);
        result.outputs.retain(|answer| {
            self.wanted.get(answer.output as usize).is_some_and(|wanted| !failed(wanted.row))
        });
        Err(StepError::Rows(failures))
    }

    fn read_one(
        &self,
        index: u32,
        wanted: &Wanted,
        arrived: &Arrived,
        result: &mut StepResult,
    ) -> Result<(), RowFailure> {
        let replied = if wanted.is_deferred { &arrived.deferred } else { &arrived.at_launch };
        match wanted.want {
            Want::Sample | Want::Verify(_) | Want::Score { .. } => {
                let is_scored = matches!(wanted.want, Want::Score { .. });
                let mut tokens = Vec::with_capacity(wanted.rows.len());
                for row in wanted.rows.clone() {
                    let sampled = self.token(wanted, replied, row, result)?;
                    tokens.push(sampled);
                    let proposal = self.proposals.get(row).copied().flatten();
                    if !is_scored && proposal != Some(sampled.token) {
                        break;
                    }
                }
                result.push_tokens(index, tokens);
            }
            Want::Hidden => {
                let states = self.states(wanted, &arrived.hidden)?;
                result.push_vector(index, states.iter().copied());
            }
            Want::Pool(pooling) => {
                let states = self.states(wanted, &arrived.hidden)?;
                result.push_vector(index, pool(pooling, states, self.hidden_width));
            }
        }
        Ok(())
    }

    fn token(
        &self,
        wanted: &Wanted,
        replied: &Replied,
        row: usize,
        result: &mut StepResult,
    ) -> Result<Sampled, RowFailure> {
        let failed = |reason: &str| RowFailure { row: wanted.row, reason: reason.to_owned() };
        let reply = replied.reply(row).ok_or_else(|| failed("the device gave too few replies"))?;
        match reply[reply::STATUS] as i32 {
            reply::OK => {}
            reply::NOTHING_ALLOWED => return Err(SampleError::NothingAllowed.of_row(wanted.row)),
            // The device doesn't say which logit it was.
            _ => return Err(failed("a logit is not finite")),
        }
        let count = usize::from(wanted.top.unwrap_or(0)).min(self.vocab_size);
        let start = result.top.len() as u32;
        result.top.extend(replied.likeliest(row).take(count));
        let top = Span { start, len: result.top.len() as u32 - start };
        let logprob = wanted.top.map_or(f32::NAN, |_| f32::from_bits(reply[reply::LOGPROB]));
        Ok(Sampled { token: reply[reply::TOKEN], logprob, top })
    }

    fn states<'a>(&self, wanted: &Wanted, hidden: &'a [f32]) -> Result<&'a [f32], RowFailure> {
        let Range { start, end } = wanted.rows;
        let states = hidden.get(start * self.hidden_width..end * self.hidden_width);
        let states = states.unwrap_or_default();
        match states.iter().find(|state| !state.is_finite()) {
            None => Ok(states),
            Some(&value) => Err(SampleError::HiddenNotFinite { value }.of_row(wanted.row)),
        }
    }
}
