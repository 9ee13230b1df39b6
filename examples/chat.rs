//! Talks with a model in the terminal. Each turn sends the whole conversation; what was computed
//! for the turns before is found in the prefix cache, and the line under each answer says how
//! much that was.
//!
//! ```text
//! cargo run --release --example chat
//! ```

#[path = "support/start.rs"]
mod start;

use std::io::{self, BufRead, Write};
use std::process::ExitCode;

use clap::Parser;
use start::Outcome;
use understory::prelude::*;
use understory::request::{Finished, Usage};

/// Talks with a model in the terminal.
///
/// Write a message and press Enter. `/reset` forgets the conversation; Ctrl-D ends it. Answers go
/// to standard output; the prompt, token counts and errors go to the error stream.
#[derive(Debug, Parser)]
struct Arguments {
    /// A message to the model that stands before the conversation.
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,

    /// Most tokens of an answer.
    #[arg(long, value_name = "TOKENS", default_value_t = 512)]
    max_tokens: u32,

    /// How adventurous answers are; 0 takes the likeliest token always. The default suits small
    /// models, which ramble at 1.
    #[arg(long, default_value_t = 0.2)]
    temperature: f32,

    /// Keep the likeliest tokens up to this probability. Default: as the model's files recommend.
    #[arg(long)]
    top_p: Option<f32>,

    /// The same seed gives the same answers. Default: drawn for each answer.
    #[arg(long)]
    seed: Option<u64>,

    #[command(flatten)]
    engine: start::EngineArguments,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    start::run(|| run(&arguments))
}

fn run(arguments: &Arguments) -> Outcome<()> {
    let engine = arguments.engine.start()?;
    let sampling = sampling(arguments, &engine);
    let opening = || arguments.system.iter().map(|text| ChatMessage::new("system", text)).collect();
    let mut history: Vec<ChatMessage> = opening();
    let mut input = io::stdin().lock();
    loop {
        eprint!("> ");
        let mut line = String::new();
        if input.read_line(&mut line)? == 0 {
            eprintln!();
            break;
        }
        match line.trim() {
            "" => {}
            "/reset" => {
                history = opening();
                eprintln!("(the conversation starts anew)");
            }
            command if command.starts_with('/') => {
                eprintln!("(there is no {command}; there is /reset, and Ctrl-D to end)");
            }
            message => {
                history.push(ChatMessage::new("user", message));
                let request = Request::new(history.clone()).sampling(sampling.clone());
                match answer(&engine, request) {
                    Ok((text, usage)) => {
                        history.push(ChatMessage::new("assistant", text));
                        eprintln!("{}", counts(&usage));
                    }
                    Err(TurnError::Write(error)) => return Err(error.into()),
                    // The engine is gone, and so is the conversation.
                    Err(error) if engine.dead().is_some() => return Err(error.into()),
                    Err(error) => {
                        history.pop();
                        eprintln!("({}; /reset starts anew)", one_line(&error));
                    }
                }
            }
        }
    }
    Ok(engine.shutdown(Shutdown::Now)?)
}

/// Why a turn has no answer.
#[derive(Debug, thiserror::Error)]
enum TurnError {
    #[error(transparent)]
    Submit(#[from] SubmitError),
    #[error(transparent)]
    Generation(#[from] GenerationError),
    #[error("cannot write the answer: {0}")]
    Write(#[from] io::Error),
    #[error("the answer never ended")]
    Unfinished,
}

/// Shows an answer as it comes.
fn answer(engine: &Engine, request: Request) -> Result<(String, Usage), TurnError> {
    let mut stdout = io::stdout();
    let mut answer = String::new();
    for event in engine.submit(request)? {
        match event? {
            GenerationEvent::Text { text, .. } => {
                stdout.write_all(text.as_bytes())?;
                stdout.flush()?;
                answer.push_str(&text);
            }
            GenerationEvent::Finished(Finished { usage, .. }) => {
                writeln!(stdout)?;
                return Ok((answer, usage));
            }
            _ => {}
        }
    }
    Err(TurnError::Unfinished)
}

fn sampling(arguments: &Arguments, engine: &Engine) -> SamplingParams {
    let sampling = engine.recommended_sampling();
    let top_p = arguments.top_p.unwrap_or(sampling.top_p);
    sampling
        .max_tokens(arguments.max_tokens)
        .seed(arguments.seed)
        .temperature(arguments.temperature)
        .top_p(top_p)
}

fn counts(usage: &Usage) -> String {
    let Usage { prompt_tokens, cached_tokens, completion_tokens, .. } = usage;
    let first = usage.time_to_first_token().unwrap_or_default();
    // The first token comes with the prompt; the rate is that of the others.
    let others = usage.total_time().saturating_sub(first).as_secs_f64();
    let rate = match completion_tokens.saturating_sub(1) {
        count if count > 0 && others > 0.0 => format!(" at {:.0} tok/s", f64::from(count) / others),
        _ => String::new(),
    };
    format!(
        "({cached_tokens} of {prompt_tokens} prompt tokens from the cache, first token after {} \
         ms, {completion_tokens} tokens{rate})",
        first.as_millis(),
    )
}
