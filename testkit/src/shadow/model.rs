//! The shadow's model: logits are a hash of the prefix. And the oracle that goes with it.

use engine_core::Token;
use engine_core::backend::SlotSampling;

/// Hash of a prefix; grows by one token at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Chain(u64);

impl Chain {
    /// The empty prefix.
    pub const EMPTY: Self = Self(0x7368_6164_6f77);

    /// The prefix with one more token.
    #[must_use]
    pub fn then(self, token: Token) -> Self {
        Self(mix(self.0.rotate_left(7) ^ u64::from(token)))
    }

    /// A hidden state of one element: a number that the prefix decides.
    pub fn hidden(self) -> f32 {
        (self.0 >> 40) as f32
    }

    /// The prefix of all tokens.
    pub fn of(tokens: &[Token]) -> Self {
        tokens.iter().fold(Self::EMPTY, |chain, &token| chain.then(token))
    }

    /// The logit of a token after this prefix, from 0 to 8.
    fn logit(self, token: Token) -> f32 {
        unit(mix(self.0 ^ mix(u64::from(token)))) * 8.0
    }
}

/// What was seen of a token, for the penalties.
#[derive(Clone, Debug, Default)]
pub struct Seen<'a> {
    /// The prompt.
    pub prompt: &'a [Token],
    /// What was generated after it.
    pub generated: &'a [Token],
}

/// Fills `logits` with the model's raw logits after a prefix.
pub fn raw_logits(chain: Chain, vocab_size: u32, logits: &mut Vec<f32>) {
    logits.clear();
    logits.extend((0..vocab_size).map(|token| chain.logit(token)));
}

/// The token sampled from raw logits: the penalized logit, plus noise of the sequence's seed where
/// the temperature is above zero, is the largest among the allowed ones. Filters (top-k, top-p,
/// min-p) are not modelled: they are a function of the logits, not of the engine's state.
///
/// `position` is that of the token to be sampled. `None` if nothing is allowed.
pub fn choose(
    logits: &[f32],
    sampling: &SlotSampling,
    seen: &Seen<'_>,
    position: u32,
    allowed: impl Fn(Token) -> bool,
) -> Option<Token> {
    let suppressed =
        |token: Token| position < sampling.suppress_before && sampling.suppress.contains(&token);
    let score = |token: Token| {
        let mut logit = logits[token as usize] - penalty(sampling, seen, token);
        for &(biased, bias) in sampling.logit_bias.iter() {
            if biased == token {
                logit += bias;
            }
        }
        if sampling.temperature > 0.0 {
            let key = [sampling.seed, sampling.sample_index.into(), position.into(), token.into()];
            logit += unit(key.iter().fold(0, |hash, &word| mix(hash ^ word))) * 8.0;
        }
        logit
    };
    (0..logits.len() as Token)
        .filter(|&token| allowed(token) && !suppressed(token))
        .map(|token| (score(token), token))
        .reduce(|best, next| if next.0 > best.0 { next } else { best })
        .map(|(_, token)| token)
}

/// What a sequence generates alone and from scratch: the oracle. Ends after `max_tokens`, or
/// with the first of `stop_tokens`, which is included.
pub fn continue_alone(
    prompt: &[Token],
    sampling: &SlotSampling,
    vocab_size: u32,
    max_tokens: usize,
    stop_tokens: &[Token],
) -> Vec<Token> {
    continue_under(prompt, sampling, vocab_size, max_tokens, stop_tokens, |_, _| true)
}

/// As [`continue_alone`], with only tokens for which `allowed(known tokens, token)` holds.
pub fn continue_under(
    prompt: &[Token],
    sampling: &SlotSampling,
    vocab_size: u32,
    max_tokens: usize,
    stop_tokens: &[Token],
    allowed: impl Fn(&[Token], Token) -> bool,
) -> Vec<Token> {
    let mut known = prompt.to_vec();
    let mut chain = Chain::of(prompt);
    let mut logits = Vec::new();
    while known.len() - prompt.len() < max_tokens {
        raw_logits(chain, vocab_size, &mut logits);
        let seen = Seen { prompt, generated: &known[prompt.len()..] };
        let position = known.len() as u32;
        let allowed = |token| allowed(&known, token);
        let Some(token) = choose(&logits, sampling, &seen, position, allowed) else { break };
        known.push(token);
        chain = chain.then(token);
        if stop_tokens.contains(&token) {
            break;
        }
    }
    known.split_off(prompt.len())
}

/// Log probability of a token under raw logits.
pub(super) fn log_probability(logits: &[f32], token: Token) -> f32 {
    let sum: f64 = logits.iter().map(|&logit| f64::from(logit).exp()).sum();
    logits.get(token as usize).map_or(f32::NAN, |&logit| (f64::from(logit) - sum.ln()) as f32)
}

/// The `count` likeliest tokens with their log probabilities; ties by token.
pub(super) fn likeliest(logits: &[f32], count: u8) -> Vec<(Token, f32)> {
    let mut order: Vec<Token> = (0..logits.len() as Token).collect();
    order.sort_by(|&a, &b| logits[b as usize].total_cmp(&logits[a as usize]).then(a.cmp(&b)));
    order.truncate(count.into());
    order.into_iter().map(|token| (token, log_probability(logits, token))).collect()
}

fn penalty(sampling: &SlotSampling, seen: &Seen<'_>, token: Token) -> f32 {
    if !sampling.has_penalties() {
        return 0.0;
    }
    let times = seen.generated.iter().filter(|&&other| other == token).count();
    let mut penalty = sampling.frequency_penalty * times as f32;
    if times > 0 {
        penalty += sampling.presence_penalty;
    }
    if times > 0 || seen.prompt.contains(&token) {
        // All logits are positive, so dividing by the penalty is a fixed share; any share does.
        penalty += (sampling.repetition_penalty - 1.0) * 4.0;
    }
    penalty
}

/// The finalizer of SplitMix64 (Steele, Lea, Flood, 2014).
fn mix(word: u64) -> u64 {
    let word = word.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

/// The upper bits of a hash as a fraction of one.
fn unit(hash: u64) -> f32 {
    (hash >> 40) as f32 / (1u32 << 24) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oracle_depends_on_every_token_of_the_prompt() {
        let greedy = SlotSampling::greedy();
        let prompt = [1, 2, 3, 4, 5, 6];
        let tokens = continue_alone(&prompt, &greedy, 50, 8, &[]);
        for changed in 0..prompt.len() {
            let mut other = prompt;
            other[changed] += 10;
            assert_ne!(continue_alone(&other, &greedy, 50, 8, &[]), tokens);
        }
    }

    #[test]
    fn a_suppressed_token_appears_only_once_it_may() {
        let mut sampling = SlotSampling::greedy();
        let free = continue_alone(&[7], &sampling, 3, 12, &[]);
        sampling.suppress = [free[0]].into();
        sampling.suppress_before = 5;
        let suppressed = continue_alone(&[7], &sampling, 3, 12, &[]);
        assert!(!suppressed[..4].contains(&free[0]));
        assert!(suppressed[4..].contains(&free[0]));
    }

    #[test]
    fn generation_ends_with_the_first_stop_token() {
        let tokens = continue_alone(&[1], &SlotSampling::greedy(), 40, 20, &[]);
        let stop = tokens[7];
        let stopped = continue_alone(&[1], &SlotSampling::greedy(), 40, 20, &[stop]);
        let first = tokens.iter().position(|&token| token == stop).unwrap();
        assert_eq!(stopped, tokens[..=first]);
    }
}
