//! Finds which of several texts is closest to a question, by the vectors that the model makes of
//! them. Texts with a common beginning share its KV, with each other and with generations.
//!
//! ```text
//! cargo run --release --example embeddings
//! cargo run --release --example embeddings -- --pooling mean --query "food" --text "Bread" --text "A boat"
//! ```

#[path = "support/start.rs"]
mod start;

use std::process::ExitCode;

use clap::{Parser, ValueEnum};
use start::Outcome;
use understory::backend::PoolKind;
use understory::prelude::*;
use understory::request::{EmbedRequest, Embedding};

/// Finds which of several texts is closest to a question.
///
/// A model that was trained to generate makes vectors of modest quality; one that was trained for
/// embeddings makes better ones, through the same calls.
#[derive(Debug, Parser)]
struct Arguments {
    /// What the texts are compared with.
    #[arg(long, value_name = "TEXT", default_value = "How do I bake bread?")]
    query: String,

    /// A text to compare; may be given several times.
    #[arg(
        long = "text",
        value_name = "TEXT",
        default_values = [
            "Mix flour, water, salt and yeast, let the dough rise, and put it into a hot oven.",
            "The lighthouse had been dark for eleven years when Mara rowed out to it.",
            "A radix tree stores strings by their common beginnings.",
        ]
    )]
    texts: Vec<String>,

    /// Which hidden states make a vector.
    #[arg(long, value_enum, default_value_t = Pool::Mean)]
    pooling: Pool,

    #[command(flatten)]
    engine: start::EngineArguments,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Pool {
    /// That of the last token.
    Last,
    /// The mean of all.
    Mean,
}

fn main() -> ExitCode {
    let mut arguments = Arguments::parse();
    arguments.engine.embeddings = true;
    start::run(|| run(&arguments))
}

fn run(arguments: &Arguments) -> Outcome<()> {
    let engine = arguments.engine.start()?;
    let kind = match arguments.pooling {
        Pool::Last => PoolKind::Last,
        Pool::Mean => PoolKind::Mean,
    };
    let embed = |text: &str| engine.embed(EmbedRequest::new(text).pooling(kind));
    let query = embed(&arguments.query)?;
    println!("{} ({} values)\n", arguments.query, query.vector.len());
    let mut found = Vec::new();
    for text in &arguments.texts {
        let embedding = embed(text)?;
        found.push((similarity(&query, &embedding), text, embedding.usage));
    }
    found.sort_by(|(a, ..), (b, ..)| b.total_cmp(a));
    for (similarity, text, usage) in found {
        let (tokens, time) = (usage.prompt_tokens, usage.total_time());
        println!("{similarity:7.4}  {text}\n         {tokens} tokens in {time:.1?}");
    }
    Ok(engine.shutdown(Shutdown::Now)?)
}

/// The cosine of the angle between two vectors, which have length 1.
fn similarity(a: &Embedding, b: &Embedding) -> f32 {
    a.vector.iter().zip(&b.vector).map(|(a, b)| a * b).sum()
}
