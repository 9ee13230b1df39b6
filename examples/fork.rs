//! Continues one context along several branches. The branches share the pages of KV that hold the
//! context: it is computed once and kept once, however many branches there are.
//!
//! ```text
//! cargo run --release --example fork
//! cargo run --release --example fork -- --branch " She laughed." --branch " He ran." --branch ""
//! ```

#[path = "support/start.rs"]
mod start;

use std::process::ExitCode;

use clap::Parser;
use start::Outcome;
use understory::error::GenerationError;
use understory::prelude::*;

/// Where the story starts, and long enough to fill a few pages.
const CONTEXT: &str = "The lighthouse on Gull Rock had been dark for eleven years when Mara rowed \
    out with a can of oil, a box of matches and her grandfather's key. The sea was flat and grey, \
    and nobody had seen her leave. She tied the boat to the iron ring below the stairs, counted \
    the ninety-one steps under her breath as he had taught her, and stood at last before the door \
    at the top. The key turned at once, as if the lock had been oiled that morning. Inside,";

/// Continues one context along several branches that share its KV.
///
/// The model first continues the context for a while. Then, while that sequence is still alive,
/// each branch takes over everything said so far, adds its own words, and goes on alone.
#[derive(Debug, Parser)]
struct Arguments {
    /// What all branches share.
    #[arg(long, value_name = "TEXT", default_value = CONTEXT)]
    prompt: String,

    /// What a branch adds; may be given several times, and may be empty.
    #[arg(
        long = "branch",
        value_name = "TEXT",
        default_values = [
            " Suddenly, a bell rang below.",
            " On the table lay a letter with her name.",
            " A man's voice said softly:",
        ]
    )]
    branches: Vec<String>,

    /// Tokens that the context is continued by before it is forked.
    #[arg(long, value_name = "TOKENS", default_value_t = 24)]
    shared_tokens: u32,

    /// Most tokens that each branch adds.
    #[arg(long, value_name = "TOKENS", default_value_t = 48)]
    max_tokens: u32,

    /// The same seed gives the same branches, if they fork at the same token.
    #[arg(long, default_value_t = 1)]
    seed: u64,

    #[command(flatten)]
    engine: start::EngineArguments,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    start::run(|| run(&arguments))
}

fn run(arguments: &Arguments) -> Outcome<()> {
    let engine = arguments.engine.start()?;
    let mut trunk = Trunk::grow(&engine, arguments)?;

    // All are submitted before any is read, so that they run together.
    let branches = arguments.branches.iter().zip(0..).map(|(text, number)| {
        let request = Request::new(text.as_str()).sampling(branch_sampling(arguments, number));
        trunk.generation.fork(0, request)
    });
    let branches: Vec<Generation> = branches.collect::<Result<_, _>>()?;
    // The trunk has done its part; the branches hold what they need of it.
    trunk.generation.abort();
    trunk.read_to_the_end()?;

    let outputs = branches.into_iter().map(|branch| Ok(branch.wait()?.remove(0)));
    let outputs: Vec<Output> = outputs.collect::<Result<_, GenerationError>>()?;
    show(&engine, arguments, &trunk, &outputs);
    Ok(engine.shutdown(Shutdown::Now)?)
}

/// What is forked: a sequence that is alive until its branches have begun.
struct Trunk {
    generation: Generation,
    tokens: Vec<Token>,
}

impl Trunk {
    /// Continues the context until it is long enough to be forked.
    fn grow(engine: &Engine, arguments: &Arguments) -> Outcome<Self> {
        // It must not end by itself before it is forked.
        let sampling = branch_sampling(arguments, 0).ignore_eos(true).max_tokens(None);
        let request = Request::new(arguments.prompt.as_str()).sampling(sampling);
        let generation = engine.submit(request)?;
        let mut trunk = Self { generation, tokens: Vec::new() };
        while trunk.tokens.len() < arguments.shared_tokens as usize && trunk.read()? {}
        Ok(trunk)
    }

    fn read_to_the_end(&mut self) -> Result<(), GenerationError> {
        while self.read()? {}
        Ok(())
    }

    /// Reads an event. False if there are no more.
    fn read(&mut self) -> Result<bool, GenerationError> {
        match self.generation.recv().transpose()? {
            Some(GenerationEvent::Token { token, .. }) => self.tokens.push(token),
            Some(_) => {}
            None => return Ok(false),
        }
        Ok(true)
    }
}

fn branch_sampling(arguments: &Arguments, number: u64) -> SamplingParams {
    SamplingParams::default()
        .temperature(0.8)
        .top_p(0.9)
        .seed(arguments.seed.wrapping_add(number))
        .max_tokens(arguments.max_tokens)
}

fn show(engine: &Engine, arguments: &Arguments, trunk: &Trunk, outputs: &[Output]) {
    let decode = |tokens: &[Token]| match engine.tokenizer() {
        Some(tokenizer) => tokenizer.decode(tokens, true),
        None => format!("{tokens:?}"),
    };
    let page_size = engine.limits().page_size;
    println!("{}\n", arguments.prompt);
    for (branch, output) in arguments.branches.iter().zip(outputs) {
        let usage = output.usage;
        let own = engine.tokenizer().and_then(|tokenizer| tokenizer.encode(branch, false).ok());
        let own = own.map_or(0, |tokens| tokens.len());
        // The branch began with the tokens that the trunk had when the fork reached the engine.
        let before = trunk.generation.prompt_tokens() as usize + own;
        let taken = (usage.prompt_tokens as usize).saturating_sub(before);
        let shared = decode(&trunk.tokens[..taken.min(trunk.tokens.len())]);
        println!("--- branch \"{}\"", branch.trim());
        println!("...{shared}{branch}{}", output.text);
        println!(
            "    {} tokens before it, {} of them shared ({} whole pages of {page_size}), {own} of \
             its own\n",
            usage.prompt_tokens,
            usage.cached_tokens,
            usage.cached_tokens as usize / page_size,
        );
    }
    let stats = engine.snapshot().scheduler;
    println!(
        "{} prompt tokens in all, {} of them computed",
        stats.prompt_tokens,
        stats.prompt_tokens.saturating_sub(stats.cached_tokens),
    );
}
