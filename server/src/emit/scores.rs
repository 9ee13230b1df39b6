//! Log probabilities in the shapes of the protocols.

use serde_json::{Map, Value};
use understory::Token;
use understory::request::TokenLogprobs;
use understory::text::Tokenizer;

use super::sample::SampledToken;
use crate::protocol::{ChatLogprobs, CompletionLogprobs, ScoredToken, TokenLogprob, Triple};

/// The text of a token, with replacement characters where it is not whole characters.
pub(crate) fn text(tokenizer: &Tokenizer, token: Token) -> String {
    String::from_utf8_lossy(&tokenizer.token_bytes(token).unwrap_or_default()).into_owned()
}

/// JSON has no infinity: the least number instead, as other servers do it.
pub(crate) fn finite(logprob: f32) -> f32 {
    if logprob.is_finite() { logprob } else { -9999.0 }
}

pub(crate) fn chat(tokenizer: &Tokenizer, tokens: &[SampledToken]) -> ChatLogprobs {
    let scored = |token: Token, logprob: f32| {
        let bytes = tokenizer.token_bytes(token).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes).into_owned();
        ScoredToken { token: text, logprob: finite(logprob), bytes }
    };
    let content = tokens.iter().filter_map(|SampledToken { token, logprobs }| {
        // A token that a grammar forced was not sampled: it was certain.
        let Some(logprobs) = logprobs else {
            return Some(TokenLogprob { token: scored(*token, 0.0), top_logprobs: Vec::new() });
        };
        let top = logprobs.top.iter().map(|&(token, logprob)| scored(token, logprob));
        Some(TokenLogprob { token: scored(*token, logprobs.logprob), top_logprobs: top.collect() })
    });
    ChatLogprobs { content: content.collect(), refusal: None }
}

impl CompletionLogprobs {
    /// Adds a token whose text begins `offset` characters behind the prompt's start. Returns where the text ends.
    pub(crate) fn add(
        &mut self,
        tokenizer: &Tokenizer,
        token: Token,
        logprobs: Option<&TokenLogprobs>,
        offset: usize,
    ) -> usize {
        let text = text(tokenizer, token);
        let end = offset + text.chars().count();
        self.token_logprobs.push(logprobs.map(|logprobs| finite(logprobs.logprob)));
        self.top_logprobs.push(logprobs.map(|logprobs| {
            let entry = |&(token, logprob): &(Token, f32)| {
                (self::text(tokenizer, token), Value::from(finite(logprob)))
            };
            logprobs.top.iter().map(entry).collect::<Map<_, _>>()
        }));
        self.tokens.push(text);
        self.text_offset.push(offset);
        end
    }
}

/// SGLang's triples of a token and of the likeliest ones in its place.
pub(crate) fn triples(
    tokenizer: &Tokenizer,
    with_text: bool,
    token: Token,
    logprobs: Option<&TokenLogprobs>,
) -> (Triple, Option<Vec<Triple>>) {
    let text = |token| with_text.then(|| text(tokenizer, token));
    let own = (logprobs.map(|logprobs| finite(logprobs.logprob)), token, text(token));
    let top = logprobs.map(|logprobs| {
        let triple = |&(token, logprob): &(Token, f32)| (Some(finite(logprob)), token, text(token));
        logprobs.top.iter().map(triple).collect()
    });
    (own, top)
}
