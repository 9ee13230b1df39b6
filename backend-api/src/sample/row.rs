//! The pipeline over one row.

use radix_cache::Token;

use super::candidates::{Candidate, last_of_fraction, last_of_fraction_of_row, select_largest};
use super::counts::TokenCounts;
use super::noise::{MOST_NOISE, Noise, TOGETHER, gumbel, may_reach};
use super::weight::sum_of_weights;
use crate::{Mask, RowFailure, Sampled, SlotSampling, Span};

/// Samples rows, one after another. Holds only scratch memory: which rows it has seen before
/// makes no difference, and after the first few it allocates nothing.
#[derive(Clone, Debug, Default)]
pub struct RowSampler {
    /// The model's own logits, where they are still needed after the pipeline changed them.
    raw: Vec<f32>,
    candidates: Vec<Candidate>,
}

/// Why a row has no token. Only its own sequence fails.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum SampleError {
    /// The model computed something that is not a number.
    #[error("the logit of token {token} is {value}")]
    NotFinite {
        /// The first such token.
        token: Token,
        /// Its logit.
        value: f32,
    },
    /// The model computed a hidden state that is not a number.
    #[error("a hidden state has the element {value}")]
    HiddenNotFinite {
        /// The first such element.
        value: f32,
    },
    /// Mask and suppressed tokens leave nothing to choose from.
    #[error("the mask forbids every token")]
    NothingAllowed,
    /// The token to score is outside the row.
    #[error("token {token} is to be scored, but the row has {len} logits")]
    UnknownToken {
        /// The token.
        token: Token,
        /// Number of logits.
        len: usize,
    },
}

impl SampleError {
    /// As the failure of a row of a batch.
    pub fn of_row(self, row: u32) -> RowFailure {
        RowFailure { row, reason: self.to_string() }
    }
}

impl RowSampler {
    /// Samples the next token from a row of `logits`, `[vocab_size]`, which it overwrites.
    ///
    /// `position` is the index of the token being sampled: the prompt's length for the first.
    /// The likeliest tokens are appended to `top` if [`SlotSampling::logprobs`] asks for them.
    /// `counts` is only read: [`record`](TokenCounts::record) the token afterwards.
    ///
    /// # Errors
    ///
    /// [`SampleError`]; `top` is unchanged then.
    pub fn sample(
        &mut self,
        logits: &mut [f32],
        sampling: &SlotSampling,
        counts: &TokenCounts,
        position: u32,
        mask: Option<&Mask<'_>>,
        top: &mut Vec<(Token, f32)>,
    ) -> Result<Sampled, SampleError> {
        check_finite(logits)?;
        if sampling.logprobs.is_some() {
            self.raw.clear();
            self.raw.extend_from_slice(logits);
        }
        if position < sampling.suppress_before {
            forbid(logits, &sampling.suppress);
        }
        for &(token, bias) in sampling.logit_bias.iter() {
            if let Some(logit) = logits.get_mut(token as usize) {
                *logit += bias;
            }
        }
        counts.penalize(logits, sampling);
        if let Some(mask) = mask {
            apply_mask(logits, mask.allowed);
        }
        let token = self.choose(logits, sampling, position)?;
        match sampling.logprobs {
            None => Ok(Sampled { token, logprob: f32::NAN, top: Span::default() }),
            Some(wanted) => {
                let raw = std::mem::take(&mut self.raw);
                let sample = self.report(&raw, token, wanted, top);
                self.raw = raw;
                sample
            }
        }
    }

    /// The log probability of a given token, and of the `wanted` likeliest, which are appended
    /// to `top`.
    ///
    /// # Errors
    ///
    /// [`SampleError`]; `top` is unchanged then.
    pub fn score(
        &mut self,
        logits: &[f32],
        token: Token,
        wanted: u8,
        top: &mut Vec<(Token, f32)>,
    ) -> Result<Sampled, SampleError> {
        check_finite(logits)?;
        self.report(logits, token, wanted, top)
    }

    fn report(
        &mut self,
        raw: &[f32],
        token: Token,
        wanted: u8,
        top: &mut Vec<(Token, f32)>,
    ) -> Result<Sampled, SampleError> {
        let unknown = SampleError::UnknownToken { token, len: raw.len() };
        let logit = *raw.get(token as usize).ok_or(unknown)?;
        let normalizer = log_sum_exp(raw);
        let logprob = |logit: f32| (f64::from(logit) - normalizer) as f32;
        select_largest(raw, wanted.into(), &mut self.candidates);
        let span = Span { start: top.len() as u32, len: self.candidates.len() as u32 };
        top.extend(self.candidates.iter().map(|c| (c.token, logprob(c.value))));
        Ok(Sampled { token, logprob: logprob(logit), top: span })
    }

    /// The token that wins under temperature, filters and noise.
    fn choose(
        &mut self,
        logits: &mut [f32],
        sampling: &SlotSampling,
        position: u32,
    ) -> Result<Token, SampleError> {
        let best = argmax(logits).ok_or(SampleError::NothingAllowed)?;
        if sampling.temperature == 0.0 {
            return Ok(best.token);
        }
        // Distances to the largest: never above 0, so a tiny temperature can't overflow.
        for logit in logits.iter_mut() {
            *logit = (*logit - best.value) / sampling.temperature;
        }
        let keep = self.filter(logits, sampling);
        let noise = Noise::new(sampling.seed, sampling.sample_index, position);
        Ok(noisiest(logits, best.token, keep, &noise))
    }

    /// What top-k, top-p and min-p leave of the distances to the largest logit.
    fn filter(&mut self, distances: &[f32], sampling: &SlotSampling) -> Keep {
        let floor = sampling.min_p.ln();
        let has_top_k = sampling.top_k > 0 && (sampling.top_k as usize) < distances.len();
        let top_p = (sampling.top_p < 1.0).then_some(f64::from(sampling.top_p));
        let last = if has_top_k {
            select_largest(distances, sampling.top_k as usize, &mut self.candidates);
            match top_p {
                Some(fraction) => last_of_fraction(&self.candidates, fraction),
                None => self.candidates.last().copied(),
            }
        } else {
            top_p.and_then(|fraction| {
                last_of_fraction_of_row(distances, fraction, &mut self.candidates)
            })
        };
        match last {
            Some(last) if last.value >= floor => Keep { floor: last.value, last: last.token },
            _ => Keep { floor, last: Token::MAX },
        }
    }
}

/// The tokens that may be sampled.
#[derive(Clone, Copy, Debug)]
struct Keep {
    /// The least distance.
    floor: f32,
    /// Of those that equal the floor, the last.
    last: Token,
}

impl Keep {
    fn keeps(self, token: Token, distance: f32) -> bool {
        distance > self.floor || (distance == self.floor && token <= self.last)
    }
}

/// The token with the best of distance plus noise, among those to keep.
///
/// Noise is bounded, so most tokens are ruled out by their distance alone; most others by their
/// random bits, without a logarithm. Neither changes the result.
fn noisiest(distances: &[f32], likeliest: Token, keep: Keep, noise: &Noise) -> Token {
    // Starting with the likeliest raises the bar at once.
    let mut best = Contender::of(likeliest, 0.0, noise.word(likeliest));
    for (group, distances) in distances.chunks(TOGETHER).enumerate() {
        let nearest = distances.iter().fold(f32::NEG_INFINITY, |nearest, &it| nearest.max(it));
        if nearest < keep.floor || f64::from(nearest) < best.score - MOST_NOISE {
            continue;
        }
        let words = noise.words(group as u32);
        let loudest = words.iter().fold(0, |loudest, &word| loudest.max(word));
        if !may_reach(loudest, best.score - f64::from(nearest)) {
            continue;
        }
        for (index, (&distance, word)) in distances.iter().zip(words).enumerate() {
            let token = (group * TOGETHER + index) as Token;
            if keep.keeps(token, distance) && may_reach(word, best.score - f64::from(distance)) {
                best = best.or(Contender::of(token, distance, word));
            }
        }
    }
    best.token
}

/// A token with its noise.
#[derive(Clone, Copy, Debug)]
struct Contender {
    token: Token,
    score: f64,
}

impl Contender {
    fn of(token: Token, distance: f32, word: u32) -> Self {
        Self { token, score: f64::from(distance) + gumbel(word) }
    }

    /// The better of two; of equal ones the lowest id.
    fn or(self, other: Self) -> Self {
        let wins =
            other.score > self.score || (other.score == self.score && other.token < self.token);
        if wins { other } else { self }
    }
}

fn check_finite(logits: &[f32]) -> Result<(), SampleError> {
    // The exponent is all ones in infinities and NaNs. An integer maximum is vectorized, which
    // stopping at the first one would not be.
    const INFINITY: u32 = f32::INFINITY.to_bits();
    let largest = logits.iter().fold(0, |largest, l| largest.max(l.to_bits() & (u32::MAX >> 1)));
    if largest < INFINITY {
        return Ok(());
    }
    let bad = logits.iter().enumerate().find(|(_, logit)| !logit.is_finite());
    bad.map_or(Ok(()), |(token, &value)| {
        Err(SampleError::NotFinite { token: token as Token, value })
    })
}

fn forbid(logits: &mut [f32], tokens: &[Token]) {
    for &token in tokens {
        if let Some(logit) = logits.get_mut(token as usize) {
            *logit = f32::NEG_INFINITY;
        }
    }
}

/// Forbids the tokens whose bits are not set, and those beyond the last word.
fn apply_mask(logits: &mut [f32], allowed: &[u32]) {
    let words = allowed.iter().copied().chain(std::iter::repeat(0));
    for (logits, word) in logits.chunks_mut(32).zip(words) {
        match word {
            u32::MAX => {}
            0 => logits.fill(f32::NEG_INFINITY),
            _ => {
                for (bit, logit) in logits.iter_mut().enumerate() {
                    if word >> bit & 1 == 0 {
                        *logit = f32::NEG_INFINITY;
                    }
                }
            }
        }
    }
}

/// The likeliest token, unless there is none that is allowed.
fn argmax(logits: &[f32]) -> Option<Candidate> {
    // Largest first: a maximum alone is vectorized, the search for it then ends early.
    let value = logits.iter().fold(f32::NEG_INFINITY, |largest, &logit| largest.max(logit));
    if value == f32::NEG_INFINITY {
        return None;
    }
    let token = logits.iter().position(|&logit| logit == value)? as Token;
    Some(Candidate { token, value })
}

/// `ln(sum(exp(logits)))`.
fn log_sum_exp(logits: &[f32]) -> f64 {
    let Some(Candidate { value: largest, .. }) = argmax(logits) else { return 0.0 };
    f64::from(largest) + sum_of_weights(logits, largest).ln()
}
