//! An engine whose cache is followed from outside: says on standard output where its cache events
//! are published, then answers each line of standard input, `{"token_ids": [..], "salt": "a"}`, with
//! the tokens that were cached and those that were generated. `scripts/kv_events.py` compares that
//! with what routers foretell.

use std::collections::HashMap;
use std::error::Error;
use std::io::{self, BufRead, Write};
use std::sync::{Arc, Mutex, PoisonError};

use clap::Parser;
use serde::Deserialize;
use serde_json::json;
use understory::Namespace;
use understory::prelude::*;
use understory::request::Prompt;
use understory_server::kv_events::{KvEvents, KvEventsConfig};

/// Answers requests and publishes what happens in the cache.
#[derive(Debug, Parser)]
struct Arguments {
    /// A model's name or path.
    #[arg(long)]
    model: String,
    /// Tokens of KV memory on the device.
    #[arg(long, default_value_t = 4096)]
    kv_tokens: usize,
    /// Tokens of KV memory on the host.
    #[arg(long, default_value_t = 0)]
    host_tokens: usize,
    /// Tokens a page.
    #[arg(long, default_value_t = 16)]
    page_size: usize,
    /// As SGLang's.
    #[arg(long, value_name = "JSON")]
    kv_events_config: String,
}

#[derive(Debug, Deserialize)]
struct Line {
    token_ids: Vec<u32>,
    #[serde(default)]
    salt: String,
    #[serde(default)]
    clear: bool,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments = Arguments::parse();
    let mut options = EngineOptions::default();
    options.page_size = Some(arguments.page_size);
    options.kv_memory = KvMemory::Tokens(arguments.kv_tokens);
    options.cache_events = 100_000;
    if arguments.host_tokens > 0 {
        options.host_kv_memory = KvMemory::Tokens(arguments.host_tokens);
        options.host_min_load_tokens = 1;
    }
    let engine = understory::load(&*arguments.model).options(options).start()?;
    let salts: Arc<Mutex<HashMap<Namespace, String>>> = Arc::default();
    let named = Arc::clone(&salts);
    let names = Arc::new(move |namespace: Namespace| {
        named.lock().unwrap_or_else(PoisonError::into_inner).get(&namespace).cloned()
    });
    let config = KvEventsConfig::from_json(&arguments.kv_events_config)?;
    let events = KvEvents::start(engine.clone(), config, Some(names)).await?;
    say(&json!({"endpoint": events.endpoint(), "replay_endpoint": events.replay_endpoint()}))?;
    let answers = tokio::task::spawn_blocking(move || answer(&engine, &salts));
    answers.await?.map_err(|error| error.to_string())?;
    Ok(())
}

type Failure = Box<dyn Error + Send + Sync>;

fn answer(engine: &Engine, salts: &Mutex<HashMap<Namespace, String>>) -> Result<(), Failure> {
    for line in io::stdin().lock().lines() {
        let line: Line = serde_json::from_str(&line?)?;
        if line.clear {
            engine.clear_cache()?;
        }
        let mut salts = salts.lock().unwrap_or_else(PoisonError::into_inner);
        let known = salts.iter().find(|(_, salt)| **salt == line.salt).map(|(known, _)| *known);
        let namespace = match known {
            Some(namespace) => namespace,
            None if line.salt.is_empty() => Namespace::default(),
            None => {
                let namespace = Namespace::tenant(salts.len() as u64 + 1);
                salts.insert(namespace, line.salt);
                namespace
            }
        };
        drop(salts);
        let request = Request::new(Prompt::Tokens(line.token_ids))
            .sampling(SamplingParams::greedy(8))
            .namespace(namespace);
        let output = engine.generate(request)?.remove(0);
        let cached = output.usage.cached_tokens;
        say(&json!({"cached_tokens": cached, "output_ids": output.tokens}))?;
    }
    Ok(())
}

fn say(value: &serde_json::Value) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{value}")?;
    out.flush()
}
