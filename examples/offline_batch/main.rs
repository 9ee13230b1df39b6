//! Answers a batch of prompts, and says how fast: the bundled prompts on the bundled model, or
//! your own.
//!
//! ```text
//! cargo run --release --example offline_batch
//! cargo run --release --example offline_batch -- --no-cache
//! cargo run --release --example offline_batch -- --prompts requests.jsonl --out answers.jsonl
//! ```
//!
//! Requests and answers are objects in JSON, one a line: `batch/mod.rs` and
//! `support/json_request.rs` describe them. Requests in OpenAI's batch format are answered in that
//! format.

mod batch;
mod files;
#[path = "../support/json_request.rs"]
mod json_request;
#[path = "../support/signals.rs"]
mod signals;
#[path = "../support/start.rs"]
mod start;

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use batch::{AnswerLine, BatchError, BatchOptions, Progress, Summary};
use clap::Parser;
use files::{Answers, Prompts};
use indicatif::{ProgressBar, ProgressStyle};
use start::Outcome;
use understory::prelude::{Engine, Shutdown};

/// How many answers are shown where they aren't written to a file.
const SHOWN: usize = 3;
/// Most tokens of an answer on an emulated device, where a token takes seconds.
const EMULATED: u32 = 8;

/// Answers a batch of prompts with a language model, and says how fast.
///
/// A request is a line with a JSON object: `prompt`, `messages` or `token_ids`, and whichever of
/// max_tokens, min_tokens, temperature, top_p, top_k, min_p, seed, stop, stop_token_ids,
/// include_stop, ignore_eos, skip_special_tokens, n, logprobs, prompt_logprobs, logit_bias,
/// repetition_penalty, frequency_penalty, presence_penalty, tools, documents,
/// chat_template_kwargs, namespace, priority and speculation it needs. What it leaves out is as the
/// model's files recommend, but an answer without a limit ends after 1024 tokens. Other fields are
/// ignored, with one warning for each name. An answer is a line with index, text, token_ids,
/// finish_reason, usage and ttft_ms, or with index and error: a bad line costs its own answer only.
///
/// response_format states the form of an answer as OpenAI writes it: json_object, json_schema, and
/// beside these regex, grammar and choice. It needs a build with `--features grammar`.
///
/// A line with custom_id, method, url and body is a request in OpenAI's batch format, to
/// /v1/chat/completions or /v1/completions. Its answer has id, custom_id, response and error.
///
/// Requests are answered as they come, so standard input may be slow. Without --out the first
/// answers are shown on standard output. Progress and errors go to the error stream. Ctrl-C or
/// SIGTERM gives up what runs and keeps what is finished; a second one ends at once. The exit code
/// is 1 if the batch could not be run to its end, and 0 if it was, bad lines or not.
#[derive(Debug, Parser)]
struct Arguments {
    /// Requests, one a line; `-` is standard input. Default: 64 bundled chat prompts, which share
    /// eight long system prompts; with --emulate four short ones.
    #[arg(long, value_name = "FILE")]
    prompts: Option<PathBuf>,

    /// Where answers are written, one a line as soon as it is whole, in the order of the requests.
    /// What is there is replaced, once the model stands. It can't be the file of the requests.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,

    /// Most tokens of an answer, even where a request allows more. Default: none, but 8 with
    /// --emulate.
    #[arg(long, value_name = "TOKENS")]
    max_tokens: Option<u32>,

    /// Take the likeliest token always, even where a request has a temperature.
    #[arg(long)]
    greedy: bool,

    /// Print nothing on standard output but, at the end, one JSON object: requests, errors,
    /// prompt_tokens, cached_tokens, completion_tokens, elapsed_s, output_tok_s, cache_hit_rate,
    /// and ttft_ms and itl_ms with p50, p90 and p99.
    #[arg(long)]
    json: bool,

    /// Answer nothing: print what the engine would take of the device's memory, which context fits
    /// and how many answers at once. No weights are loaded.
    #[arg(long)]
    dry_run: bool,

    #[command(flatten)]
    engine: start::EngineArguments,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    start::run(|| run(&arguments))
}

fn run(arguments: &Arguments) -> Outcome<()> {
    // What can be wrong with files is found before a model is fetched, and what --out names is
    // touched after that.
    if arguments.dry_run {
        writeln!(io::stdout(), "{}", arguments.engine.loader()?.estimate()?)?;
        return Ok(());
    }
    let bundled = if arguments.engine.emulate { files::SHORT } else { files::BUNDLED };
    let prompts = Prompts::open(arguments.prompts.as_deref(), bundled)?;
    if let Some(path) = &arguments.out {
        Answers::check(path, &prompts)?;
    }
    let engine = arguments.engine.start()?;
    let file = arguments.out.as_ref().map(|path| Answers::create(path, &prompts)).transpose()?;
    let stop = signals::first_signal()?;
    let summary = answer(&engine, arguments, prompts, file, stop)?;
    print(&engine, &summary, arguments.json)?;
    if summary.interrupted {
        engine.shutdown(Shutdown::Now)?;
        return Err(format!("interrupted after {} answers", summary.requests).into());
    }
    Ok(engine.shutdown(Shutdown::Drain)?)
}

fn answer(
    engine: &Engine,
    arguments: &Arguments,
    prompts: Prompts,
    mut file: Option<Answers>,
    stop: impl Future<Output = ()>,
) -> Result<Summary, BatchError> {
    let options = BatchOptions {
        defaults: engine.recommended_sampling(),
        max_tokens: arguments.max_tokens.or(arguments.engine.emulate.then_some(EMULATED)),
        greedy: arguments.greedy,
    };
    let bar = new_bar();
    let mut tokens = 0;
    let mut progress = |progress| match progress {
        Progress::Read => bar.inc_length(1),
        Progress::Answered { completion_tokens } => {
            tokens += completion_tokens;
            bar.set_message(format!("{tokens} tokens"));
            bar.inc(1);
        }
        Progress::UnknownField(name) => {
            bar.suspend(|| eprintln!("warning: the field {name:?} is ignored"));
        }
    };
    let mut output = |answer: &AnswerLine| match &mut file {
        Some(file) => file.write(answer),
        None if !arguments.json && answer.index < SHOWN => {
            let text = serde_json::to_string(answer)?;
            bar.suspend(|| writeln!(io::stdout(), "{text}\n"))
        }
        None => Ok(()),
    };
    let run = batch::run(engine, &options, prompts.input, &mut output, &mut progress, stop);
    let summary = futures_executor::block_on(run);
    bar.finish_and_clear();
    summary
}

fn print(engine: &Engine, summary: &Summary, as_json: bool) -> Outcome<()> {
    let mut stdout = io::stdout();
    if as_json {
        writeln!(stdout, "{}", serde_json::to_string(summary)?)?;
        return Ok(());
    }
    let snapshot = engine.snapshot();
    writeln!(stdout, "{summary}\nsteps               {:>10}", snapshot.steps)?;
    let (proposed, accepted) =
        (snapshot.scheduler.proposed_tokens, snapshot.scheduler.accepted_tokens);
    if proposed > 0 {
        writeln!(stdout, "proposed tokens     {proposed:>10}   of which {accepted} were right")?;
    }
    Ok(())
}

fn new_bar() -> ProgressBar {
    let style = ProgressStyle::with_template("{pos}/{len} [{wide_bar}] {msg} {elapsed}");
    // The template is a constant; if it were wrong, the bar would look plain.
    let bar = ProgressBar::new(0);
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar
}

#[cfg(all(test, feature = "cpu"))]
mod tests;
