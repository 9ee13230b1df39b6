//! How a request's tokens are sampled and when it ends.

use radix_cache::Token;

/// How tokens are sampled and when generation ends. Names and meanings are those of the field
/// (OpenAI, vLLM, SGLang).
///
/// ```
/// use engine_core::request::SamplingParams;
///
/// let sampling = SamplingParams::default().temperature(0.7).top_p(0.9).max_tokens(64);
/// assert_eq!(sampling.max_tokens, Some(64));
/// ```
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct SamplingParams {
    /// Divides the logits; 0 is greedy. Default 1.
    pub temperature: f32,
    /// Keep this many of the likeliest tokens; 0 keeps all. Default 0.
    pub top_k: u32,
    /// Keep the smallest set of likeliest tokens whose probability reaches this. In [0, 1], where
    /// 0 is greedy; default 1.
    pub top_p: f32,
    /// Keep tokens at least this fraction as likely as the likeliest. In [0, 1]; default 0.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of tokens seen in prompt or output (Keskar
    /// et al., CTRL, 2019). Above 0; default 1.
    pub repetition_penalty: f32,
    /// Subtracted from a token's logit for each time that it was generated. In [-2, 2]; default
    /// 0.
    pub frequency_penalty: f32,
    /// Subtracted once from the logit of a token that was generated. In [-2, 2]; default 0.
    pub presence_penalty: f32,
    /// Added to single tokens' logits. In [-100, 100] each.
    pub logit_bias: Vec<(Token, f32)>,
    /// Same seed, same tokens, in any batch. Drawn at submission where missing.
    pub seed: Option<u64>,
    /// Most tokens to generate; `None` is up to the context length. 0 needs
    /// [`prompt_logprobs`](Self::prompt_logprobs), and ends once those are known. Default `None`.
    pub max_tokens: Option<u32>,
    /// Fewest tokens to generate before an end is allowed; at most `max_tokens`. Where the context
    /// ends earlier, the sample does. Default 0.
    pub min_tokens: u32,
    /// Token ids that end generation, beside the model's own. They are not part of the text.
    pub stop_token_ids: Vec<Token>,
    /// Texts that end generation. They are not part of the text, unless `include_stop` is set.
    pub stop: Vec<String>,
    /// A stop string that ended generation is part of the text. Default no.
    pub include_stop: bool,
    /// Special tokens have no text. Default yes.
    pub skip_special_tokens: bool,
    /// Go on after the model's end tokens. Default no.
    pub ignore_eos: bool,
    /// How many samples to draw from the prompt. 1 to [`SamplingParams::MAX_SAMPLES`]; default 1.
    pub n: u32,
    /// `Some(k)`: report each token's log probability and the `k` likeliest. At most
    /// [`SamplingParams::MAX_LOGPROBS`]. Default `None`.
    pub logprobs: Option<u8>,
    /// `Some(k)`: report the log probability of each token of the prompt but the first, and the `k`
    /// likeliest in its place. The prompt is computed whole then, cached or not. At most
    /// [`SamplingParams::MAX_LOGPROBS`]. Default `None`.
    pub prompt_logprobs: Option<u8>,
}

backend_api::setters!(SamplingParams {
    temperature: f32,
    top_k: u32,
    top_p: f32,
    min_p: f32,
    repetition_penalty: f32,
    frequency_penalty: f32,
    presence_penalty: f32,
    logit_bias: impl Into<Vec<(Token, f32)>>,
    seed: impl Into<Option<u64>>,
    max_tokens: impl Into<Option<u32>>,
    min_tokens: u32,
    stop_token_ids: impl Into<Vec<Token>>,
    stop: impl Into<Vec<String>>,
    include_stop: bool,
    skip_special_tokens: bool,
    ignore_eos: bool,
    n: u32,
    logprobs: impl Into<Option<u8>>,
    prompt_logprobs: impl Into<Option<u8>>,
});

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            logit_bias: Vec::new(),
            seed: None,
            max_tokens: None,
            min_tokens: 0,
            stop_token_ids: Vec::new(),
            stop: Vec::new(),
            include_stop: false,
            skip_special_tokens: true,
            ignore_eos: false,
            n: 1,
            logprobs: None,
            prompt_logprobs: None,
        }
    }
}

/// A sampling parameter that makes no sense.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ParamsError {
    /// A number outside its range, or not a number.
    #[error("{name} must be {range}, not {value}")]
    OutOfRange {
        /// The parameter.
        name: &'static str,
        /// What is allowed.
        range: &'static str,
        /// What was given.
        value: f64,
    },
    /// A token id that the model doesn't have.
    #[error("{name} contains token {token}, but the vocabulary has {vocab_size}")]
    UnknownToken {
        /// The parameter.
        name: &'static str,
        /// The id.
        token: Token,
        /// Number of ids.
        vocab_size: u32,
    },
    /// A stop string without characters would stop everything.
    #[error("stop string {index} is empty")]
    EmptyStop {
        /// Its place in the list.
        index: usize,
    },
    /// A minimum above the maximum.
    #[error("min_tokens is {min}, above max_tokens, which is {max}")]
    MinAboveMax {
        /// `min_tokens`.
        min: u32,
        /// `max_tokens`.
        max: u32,
    },
    /// Too many entries in a list.
    #[error("{name} has {len} entries, but at most {max} are allowed")]
    TooMany {
        /// The parameter.
        name: &'static str,
        /// How many were given.
        len: usize,
        /// How many are allowed.
        max: usize,
    },
}

impl SamplingParams {
    /// Most samples a request.
    pub const MAX_SAMPLES: u32 = 128;
    /// Most log probabilities a token.
    pub const MAX_LOGPROBS: u8 = 20;
    /// Most stop strings, stop tokens and biases.
    pub const MAX_LIST: usize = 1024;

    /// Greedy, at most `max_tokens` tokens.
    pub fn greedy(max_tokens: u32) -> Self {
        Self { temperature: 0.0, max_tokens: Some(max_tokens), ..Self::default() }
    }

    /// Finds what makes no sense.
    ///
    /// # Errors
    ///
    /// The first parameter outside its range.
    pub fn validate(&self, vocab_size: u32) -> Result<(), ParamsError> {
        // NaN compares false with everything, so `ok` is false for it.
        let check = |name, range, value: f64, ok: bool| {
            if ok { Ok(()) } else { Err(ParamsError::OutOfRange { name, range, value }) }
        };
        // The decimal that the caller wrote: 0.1 is not 0.10000000149011612.
        let in_range = |name, range, value: f32, ok: bool| {
            check(name, range, value.to_string().parse().unwrap_or(value.into()), ok)
        };
        let Self { temperature, top_p, min_p, repetition_penalty, .. } = *self;
        let Self { frequency_penalty, presence_penalty, .. } = *self;
        let penalty = -2.0..=2.0;
        let ok = (0.0..=100.0).contains(&temperature);
        in_range("temperature", "from 0 to 100", temperature, ok)?;
        in_range("top_p", "from 0 to 1", top_p, (0.0..=1.0).contains(&top_p))?;
        in_range("min_p", "from 0 to 1", min_p, (0.0..=1.0).contains(&min_p))?;
        let ok = repetition_penalty > 0.0 && repetition_penalty <= 100.0;
        in_range("repetition_penalty", "above 0 and at most 100", repetition_penalty, ok)?;
        let ok = penalty.contains(&frequency_penalty);
        in_range("frequency_penalty", "from -2 to 2", frequency_penalty, ok)?;
        let ok = penalty.contains(&presence_penalty);
        in_range("presence_penalty", "from -2 to 2", presence_penalty, ok)?;
        for &(_, bias) in &self.logit_bias {
            in_range("logit_bias", "from -100 to 100", bias, (-100.0..=100.0).contains(&bias))?;
        }
        let samples = 1..=Self::MAX_SAMPLES;
        check("n", "from 1 to 128", self.n.into(), samples.contains(&self.n))?;
        let alone = self.max_tokens != Some(0) || self.n == 1;
        check("n", "1 where max_tokens is 0", self.n.into(), alone)?;
        let generates = self.max_tokens != Some(0) || self.prompt_logprobs.is_some();
        check("max_tokens", "at least 1, or 0 with prompt_logprobs", 0.0, generates)?;
        let logprobs = [("logprobs", self.logprobs), ("prompt_logprobs", self.prompt_logprobs)];
        for (name, top) in logprobs {
            let top = top.unwrap_or_default();
            check(name, "from 0 to 20", top.into(), top <= Self::MAX_LOGPROBS)?;
        }
        if let Some(max) = self.max_tokens
            && self.min_tokens > max
        {
            return Err(ParamsError::MinAboveMax { min: self.min_tokens, max });
        }
        let lists = [
            ("logit_bias", self.logit_bias.len()),
            ("stop_token_ids", self.stop_token_ids.len()),
            ("stop", self.stop.len()),
        ];
        for (name, len) in lists {
            if len > Self::MAX_LIST {
                return Err(ParamsError::TooMany { name, len, max: Self::MAX_LIST });
            }
        }
        let known = |name, token| {
            if token < vocab_size {
                Ok(())
            } else {
                Err(ParamsError::UnknownToken { name, token, vocab_size })
            }
        };
        self.logit_bias.iter().try_for_each(|&(token, _)| known("logit_bias", token))?;
        self.stop_token_ids.iter().try_for_each(|&token| known("stop_token_ids", token))?;
        match self.stop.iter().position(String::is_empty) {
            Some(index) => Err(ParamsError::EmptyStop { index }),
            None => Ok(()),
        }
    }
}
