//! A batch: requests in, a line each; answers out, a line each, in the same order.
//!
//! A line of the input is a request as [`json_request`](crate::json_request) reads it, beside which
//! `response_format` may state the form of the answer (`format.rs`); blank lines are skipped. A line of the output is a JSON object with
//!
//! | field | value |
//! | --- | --- |
//! | `index` | the request's number among the requests, from 0 |
//! | `text` | the answer |
//! | `token_ids` | its tokens, with the one that ended it, if one did |
//! | `finish_reason` | `stop`, `length` or `abort` |
//! | `stop_reason` | the token id or the text that it ended at, if one did |
//! | `logprobs` | if asked for: for each token its `token_id`, its `logprob`, and in `top` the likeliest tokens with theirs |
//! | `prompt_logprobs` | if asked for: the same for each token of the prompt but the first, whose ids are known |
//! | `usage` | `prompt_tokens`, `cached_tokens` and `completion_tokens` |
//! | `ttft_ms` | milliseconds from submission to the first token |
//! | `choices` | if `n` is above 1: an object for each answer, with `index` and the fields above down to `logprobs`; the fields above are those of the first |
//! | `error` | in place of all but `index`: why there is no answer |
//!
//! With several answers `completion_tokens` counts all of them, and `prompt_tokens` counts the
//! prompt once: the engine computes it once, and the other answers find it in the cache.
//!
//! A bad line costs its own answer and no other. A line in OpenAI's batch format is answered in
//! that format: `openai.rs` describes it. A file may mix both.

mod answer;
mod format;
mod lines;
mod openai;
mod requests;
mod run;
mod summary;

pub(crate) use answer::AnswerLine;
pub(crate) use run::{BatchError, BatchOptions, Progress, run};
pub(crate) use summary::Summary;
