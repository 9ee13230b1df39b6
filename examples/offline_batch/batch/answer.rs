//! What becomes of a request: the events of its stream, gathered into a line of the output.

use std::pin::{Pin, pin};
use std::time::{Duration, Instant};

use futures_util::Stream;
use futures_util::stream::StreamExt;
use serde::{Serialize, Serializer};
use understory::error::GenerationError;
use understory::request::{Finished, GenerationEvent, StopMatch, TokenLogprobs, Usage};
use understory::{Token, engine::Engine, one_line};

use super::openai::Envelope;

/// A line of the output.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct AnswerLine {
    /// The request's number, from 0.
    pub(crate) index: usize,
    /// What the request came in, and the answer goes out in.
    envelope: Option<Envelope>,
    /// What became of it.
    pub(crate) outcome: Outcome,
}

/// An answer, or why there is none.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub(crate) enum Outcome {
    /// It was answered.
    Answer(Answer),
    /// It was not.
    Error {
        /// Why not.
        error: String,
        /// Who is to blame.
        #[serde(skip)]
        fault: Fault,
    },
}

/// Whose fault an error is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The request makes no sense, or can't be taken.
    Request,
    /// The engine could not answer it.
    Engine,
}

impl AnswerLine {
    /// What became of a request that was taken.
    pub(super) fn new(
        index: usize,
        envelope: Option<Envelope>,
        gathered: Result<Answer, GenerationError>,
        engine: &Engine,
    ) -> Self {
        let outcome = match gathered {
            Ok(mut answer) => {
                if let (Some(_), Some(tokenizer)) = (&envelope, engine.tokenizer()) {
                    answer.name_tokens(&|token| tokenizer.decode(&[token], false));
                }
                Outcome::Answer(answer)
            }
            Err(error) => Outcome::Error { error: one_line(&error), fault: Fault::Engine },
        };
        Self { index, envelope, outcome }
    }

    /// The answer to a request that was not taken.
    pub(super) fn refused(
        index: usize,
        envelope: Option<Envelope>,
        error: String,
        fault: Fault,
    ) -> Self {
        Self { index, envelope, outcome: Outcome::Error { error, fault } }
    }

    /// Tokens generated for it.
    pub(super) fn completion_tokens(&self) -> u64 {
        match &self.outcome {
            Outcome::Answer(answer) => answer.usage.completion_tokens,
            Outcome::Error { .. } => 0,
        }
    }
}

impl Serialize for AnswerLine {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Line<'a> {
            index: usize,
            #[serde(flatten)]
            outcome: &'a Outcome,
        }
        let Self { index, outcome, envelope } = self;
        match envelope {
            Some(envelope) => envelope.answered(*index, outcome).serialize(serializer),
            None => Line { index: *index, outcome }.serialize(serializer),
        }
    }
}

/// All samples of a request.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Answer {
    /// The first sample.
    #[serde(flatten)]
    pub(crate) first: Sample,
    /// Tokens, over all samples.
    pub(crate) usage: TokenCounts,
    /// Milliseconds from submission to the first token of any sample.
    pub(crate) ttft_ms: Option<f64>,
    /// For each token of the prompt but the first, if asked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) prompt_logprobs: Vec<PromptLogprob>,
    /// All samples, if there are several.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) choices: Vec<Choice>,
    /// Times between one token and the next, sample after sample.
    #[serde(skip)]
    pub(crate) gaps: Vec<Duration>,
}

/// A sample with its number.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Choice {
    /// Its number, from 0.
    pub(crate) index: usize,
    /// The sample.
    #[serde(flatten)]
    pub(crate) sample: Sample,
}

/// What one sample says.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(crate) struct Sample {
    /// Its text.
    pub(crate) text: String,
    /// Its tokens, with the one that ended it.
    pub(crate) token_ids: Vec<Token>,
    /// Why it ended.
    pub(crate) finish_reason: &'static str,
    /// The token id or the text that it ended at, if one did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) stop_reason: Option<StopReason>,
    /// For each token, if asked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) logprobs: Vec<TokenLogprob>,
}

/// What an answer ended at.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub(crate) enum StopReason {
    /// An end token.
    Token(Token),
    /// A stop text.
    Text(String),
}

/// How likely a token of the prompt was, and what else was.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct PromptLogprob {
    /// Natural logarithm of its probability.
    pub(crate) logprob: f32,
    /// The likeliest tokens in its place, if any were asked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) top: Vec<TokenLogprob>,
}

/// How likely a token was, and what else was.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct TokenLogprob {
    /// The token.
    pub(crate) token_id: Token,
    /// Its text, where that is told.
    #[serde(skip)]
    pub(crate) text: String,
    /// Natural logarithm of its probability.
    pub(crate) logprob: f32,
    /// The likeliest tokens, if any were asked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) top: Vec<TokenLogprob>,
}

/// Tokens in and out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(crate) struct TokenCounts {
    /// Tokens of the prompt.
    pub(crate) prompt_tokens: u64,
    /// Of those, tokens that were in the cache when the first sample began.
    pub(crate) cached_tokens: u64,
    /// Tokens generated.
    pub(crate) completion_tokens: u64,
}

/// Gathers all samples of a request.
///
/// # Errors
///
/// The first error of any sample.
pub(crate) async fn gather(
    samples: u32,
    events: impl Stream<Item = Result<GenerationEvent, GenerationError>>,
) -> Result<Answer, GenerationError> {
    let mut drafts: Vec<Draft> = (0..samples).map(|_| Draft::default()).collect();
    let mut prompt_logprobs = Vec::new();
    let mut events: Pin<&mut _> = pin!(events);
    while let Some(event) = events.next().await {
        match event? {
            GenerationEvent::Token { sample, token, logprobs, at, .. } => {
                draft(&mut drafts, sample).token(token, logprobs, at);
            }
            GenerationEvent::Text { sample, text, .. } => {
                draft(&mut drafts, sample).sample.text.push_str(&text);
            }
            GenerationEvent::Prompt { logprobs, .. } => {
                prompt_logprobs.extend(logprobs.iter().map(PromptLogprob::new));
            }
            GenerationEvent::Finished(finished) => {
                draft(&mut drafts, finished.sample).finish(&finished);
            }
            // Whatever a later version may tell is not part of an answer.
            _ => {}
        }
    }
    Ok(Answer { prompt_logprobs, ..Answer::new(drafts) })
}

/// A sample that is being generated.
#[derive(Debug, Default)]
struct Draft {
    sample: Sample,
    last_token: Option<Instant>,
    gaps: Vec<Duration>,
    usage: Option<Usage>,
}

fn draft(drafts: &mut Vec<Draft>, sample: u32) -> &mut Draft {
    let index = sample as usize;
    if index >= drafts.len() {
        drafts.resize_with(index + 1, Draft::default);
    }
    &mut drafts[index]
}

impl Draft {
    fn token(&mut self, token: Token, logprobs: Option<Box<TokenLogprobs>>, at: Instant) {
        self.sample.token_ids.push(token);
        self.sample.logprobs.extend(logprobs.map(|logprobs| TokenLogprob::new(token, &logprobs)));
        if let Some(before) = self.last_token.replace(at) {
            self.gaps.push(at.saturating_duration_since(before));
        }
    }

    fn finish(&mut self, finished: &Finished) {
        self.sample.finish_reason = finished.reason.as_str();
        self.sample.stop_reason = finished.matched.as_ref().and_then(StopReason::new);
        self.usage = Some(finished.usage);
    }
}

impl Answer {
    fn new(drafts: Vec<Draft>) -> Self {
        let usages: Vec<Usage> = drafts.iter().filter_map(|draft| draft.usage).collect();
        let fewest = |count: fn(&Usage) -> u32| usages.iter().map(count).min().unwrap_or(0).into();
        let usage = TokenCounts {
            prompt_tokens: fewest(|usage| usage.prompt_tokens),
            cached_tokens: fewest(|usage| usage.cached_tokens),
            completion_tokens: usages.iter().map(|usage| u64::from(usage.completion_tokens)).sum(),
        };
        let first_token = usages.iter().filter_map(Usage::time_to_first_token).min();
        let gaps = drafts.iter().flat_map(|draft| &draft.gaps).copied().collect();
        let samples: Vec<Sample> = drafts.into_iter().map(|draft| draft.sample).collect();
        let first = samples.first().cloned().unwrap_or_default();
        let choices = samples.into_iter().enumerate();
        let choices: Vec<_> = choices.map(|(index, sample)| Choice { index, sample }).collect();
        Self {
            first,
            usage,
            ttft_ms: first_token.map(milliseconds),
            prompt_logprobs: Vec::new(),
            choices: if choices.len() > 1 { choices } else { Vec::new() },
            gaps,
        }
    }

    /// Each sample.
    pub(super) fn samples(&self) -> impl Iterator<Item = &Sample> {
        let one = self.choices.is_empty().then_some(&self.first);
        one.into_iter().chain(self.choices.iter().map(|choice| &choice.sample))
    }

    fn name_tokens(&mut self, text: &dyn Fn(Token) -> String) {
        let others = self.choices.iter_mut().map(|choice| &mut choice.sample);
        for sample in others.chain([&mut self.first]) {
            for token in &mut sample.logprobs {
                token.text = text(token.token_id);
                token.top.iter_mut().for_each(|other| other.text = text(other.token_id));
            }
        }
    }
}

impl StopReason {
    fn new(matched: &StopMatch) -> Option<Self> {
        match matched {
            StopMatch::Token(token) => Some(Self::Token(*token)),
            StopMatch::Text(text) => Some(Self::Text(text.as_ref().to_owned())),
            // Whatever a later version may match is not part of an answer.
            _ => None,
        }
    }
}

impl PromptLogprob {
    fn new(logprobs: &TokenLogprobs) -> Self {
        Self { logprob: logprobs.logprob, top: likeliest(logprobs) }
    }
}

impl TokenLogprob {
    fn new(token_id: Token, logprobs: &TokenLogprobs) -> Self {
        Self { top: likeliest(logprobs), ..Self::alone(token_id, logprobs.logprob) }
    }

    fn alone(token_id: Token, logprob: f32) -> Self {
        Self { token_id, text: String::new(), logprob, top: Vec::new() }
    }
}

fn likeliest(logprobs: &TokenLogprobs) -> Vec<TokenLogprob> {
    logprobs.top.iter().map(|&(token, logprob)| TokenLogprob::alone(token, logprob)).collect()
}

/// A duration in milliseconds, to the microsecond.
pub(crate) fn milliseconds(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1000.0
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn line(outcome: Outcome) -> serde_json::Value {
        serde_json::to_value(AnswerLine { index: 5, envelope: None, outcome }).unwrap()
    }

    fn drafts(count: u32) -> Vec<Draft> {
        let now = Instant::now();
        let drafts = (0..count).map(|number| {
            let mut draft = Draft::default();
            draft.sample.text = format!("text {number}");
            draft.sample.finish_reason = "stop";
            draft.token(10 + number, None, now);
            draft.token(2, None, now + Duration::from_millis(7));
            draft
        });
        drafts.collect()
    }

    #[test]
    fn an_answer_has_the_fields_that_scripts_rely_on() {
        let answer = Answer::new(drafts(1));
        assert_eq!(answer.gaps, [Duration::from_millis(7)]);
        let expected = json!({
            "index": 5, "text": "text 0", "token_ids": [10, 2], "finish_reason": "stop",
            "usage": {"prompt_tokens": 0, "cached_tokens": 0, "completion_tokens": 0},
            "ttft_ms": null,
        });
        assert_eq!(line(Outcome::Answer(answer)), expected);
    }

    #[test]
    fn several_answers_are_choices_and_the_first_is_on_top() {
        let value = line(Outcome::Answer(Answer::new(drafts(3))));
        assert_eq!(value["text"], "text 0");
        assert_eq!(value["choices"].as_array().unwrap().len(), 3);
        let last = json!({
            "index": 2, "text": "text 2", "token_ids": [12, 2], "finish_reason": "stop",
        });
        assert_eq!(value["choices"][2], last);
    }

    #[test]
    fn an_error_takes_the_place_of_the_answer() {
        let error = "line 3: there is no field \"x\"".to_owned();
        let expected = json!({"index": 5, "error": error});
        assert_eq!(line(Outcome::Error { error, fault: Fault::Request }), expected);
    }

    #[test]
    fn log_probabilities_name_their_tokens() {
        let logprobs = TokenLogprobs { logprob: -0.5, top: vec![(4, -0.25), (7, -0.5)] };
        let mut draft = Draft::default();
        draft.token(7, Some(Box::new(logprobs)), Instant::now());
        let value = line(Outcome::Answer(Answer::new(vec![draft])));
        let expected = json!([{
            "token_id": 7, "logprob": -0.5,
            "top": [{"token_id": 4, "logprob": -0.25}, {"token_id": 7, "logprob": -0.5}],
        }]);
        assert_eq!(value["logprobs"], expected);
    }
}
