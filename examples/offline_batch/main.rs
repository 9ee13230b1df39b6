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
//! `support/json_request.rs` describe them.

mod batch;
#[path = "../support/json_request.rs"]
mod json_request;
#[path = "../support/start.rs"]
mod start;

use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use batch::{AnswerLine, BatchOptions, Progress};
use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use start::Outcome;
use understory::prelude::{Engine, Shutdown};

/// 64 conversations in 8 groups, each group with a long system prompt of its own.
const BUNDLED: &str = include_str!("../data/prompts.jsonl");

/// How many answers are shown where they aren't written to a file.
const SHOWN: usize = 3;

/// Answers a batch of prompts with a language model, and says how fast.
///
/// A request is a line with a JSON object: `prompt`, `messages` or `token_ids`, and whichever of
/// max_tokens, min_tokens, temperature, top_p, top_k, min_p, seed, stop, stop_token_ids, n,
/// logprobs, ignore_eos, namespace, logit_bias and repetition_penalty, frequency_penalty,
/// presence_penalty it needs. What it leaves out is as the model's files recommend. An answer is a
/// line with index, text, token_ids, finish_reason, usage and ttft_ms, or with index and error: a
/// bad line costs its own answer only.
///
/// Without --out the first answers are shown on standard output. Progress and errors go to the
/// error stream. The exit code is 1 if the batch could not be run, and 0 if it was, bad lines or
/// not.
#[derive(Debug, Parser)]
struct Arguments {
    /// Requests, one a line; `-` is standard input. Default: 64 bundled chat prompts, which share
    /// eight long system prompts.
    #[arg(long, value_name = "FILE")]
    prompts: Option<PathBuf>,

    /// Where answers are written, one a line, in the order of the requests. What is there is
    /// replaced.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,

    /// Most tokens of an answer, even where a request allows more.
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

    #[command(flatten)]
    engine: start::EngineArguments,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    start::run(|| run(&arguments))
}

fn run(arguments: &Arguments) -> Outcome<()> {
    // What can be wrong with files is found before a model is fetched.
    let input = open_prompts(arguments.prompts.as_deref())?;
    let mut file = arguments.out.as_deref().map(create).transpose()?;
    let engine = arguments.engine.start()?;

    let options = BatchOptions {
        defaults: engine.recommended_sampling(),
        max_tokens: arguments.max_tokens,
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
    };
    let mut output = |answer: &AnswerLine| match &mut file {
        Some(file) => {
            serde_json::to_writer(&mut *file, answer)?;
            file.write_all(b"\n")
        }
        None if !arguments.json && answer.index < SHOWN => {
            let text = serde_json::to_string(answer)?;
            bar.suspend(|| writeln!(io::stdout(), "{text}\n"))
        }
        None => Ok(()),
    };
    let summary = batch::run(&engine, &options, input, &mut output, &mut progress)?;
    if let Some(file) = &mut file {
        file.flush().map_err(batch::BatchError::Write)?;
    }
    bar.finish_and_clear();
    print(&engine, &summary, arguments.json)?;
    Ok(engine.shutdown(Shutdown::Drain)?)
}

fn print(engine: &Engine, summary: &batch::Summary, as_json: bool) -> Outcome<()> {
    let mut stdout = io::stdout();
    if as_json {
        writeln!(stdout, "{}", serde_json::to_string(summary)?)?;
        return Ok(());
    }
    let steps = engine.snapshot().steps;
    writeln!(stdout, "{summary}\nsteps               {steps:>10}")?;
    Ok(())
}

fn open_prompts(path: Option<&Path>) -> Result<Box<dyn BufRead>, String> {
    match path {
        None => Ok(Box::new(BUNDLED.as_bytes())),
        Some(path) if path.as_os_str() == "-" => Ok(Box::new(io::stdin().lock())),
        Some(path) => match File::open(path) {
            Ok(file) => Ok(Box::new(BufReader::new(file))),
            Err(error) => Err(format!("cannot open {}: {error}", path.display())),
        },
    }
}

fn create(path: &Path) -> Result<BufWriter<File>, String> {
    let created = File::create(path).map(BufWriter::new);
    created.map_err(|error| format!("cannot create {}: {error}", path.display()))
}

fn new_bar() -> ProgressBar {
    let style = ProgressStyle::with_template("{pos}/{len} [{wide_bar}] {msg} {elapsed}");
    // The template is a constant; if it were wrong, the bar would look plain.
    let bar = ProgressBar::new(0);
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar
}
