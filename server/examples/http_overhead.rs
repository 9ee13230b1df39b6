//! What is left of the engine's throughput over HTTP: the same streams at once, in the process and through a server,
//! one after the other in one run, several times.
//!
//!     cargo run --release -p understory-server --example http_overhead
//!
//! Says for each round and for their medians how many tokens came in a second, and the ratio of the two. The clients
//! share the processor with the engine, so the ratio is what a client on another machine would find, or less.

use std::error::Error;
use std::net::SocketAddr;
use std::time::Instant;

use clap::Parser;
use futures_util::StreamExt;
use futures_util::future::try_join_all;
use serde_json::json;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use understory::prelude::*;
use understory::request::GenerationEvent;
use understory_server::{Metrics, Server, ServerOptions};

type Outcome<T> = Result<T, Box<dyn Error>>;

/// Compares streams over HTTP with streams in the process.
#[derive(Debug, Parser)]
struct Arguments {
    /// A model's name or path.
    #[arg(default_value = "default")]
    model: String,
    /// Streams at once.
    #[arg(long, default_value_t = 32)]
    streams: u32,
    /// Tokens of a prompt.
    #[arg(long, default_value_t = 64)]
    input: u32,
    /// Tokens of an answer.
    #[arg(long, default_value_t = 64)]
    output: u32,
    /// How often both are measured.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
}

#[tokio::main]
async fn main() -> Outcome<()> {
    let arguments = Arguments::parse();
    let metrics = Metrics::new();
    let engine = metrics.record(|| understory::load(&*arguments.model).start())?;
    let server = Server::new(engine.clone(), ServerOptions::default(), metrics)?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move { server.serve(listener, None, std::future::pending()).await });

    let (mut within, mut over) = (Vec::new(), Vec::new());
    // The first round warms both up.
    for round in 0..=arguments.rounds {
        clear(&engine).await;
        let begin = Instant::now();
        let streams = (0..arguments.streams).map(|stream| in_process(&engine, &arguments, stream));
        let own = rate(try_join_all(streams).await?, begin);
        clear(&engine).await;
        let begin = Instant::now();
        let streams = (0..arguments.streams).map(|stream| over_http(address, &arguments, stream));
        let http = rate(try_join_all(streams).await?, begin);
        if round > 0 {
            println!("in the process {own:.1} tokens/s, over HTTP {http:.1}: {:.3}", http / own);
            within.push(own);
            over.push(http);
        }
    }
    let (own, http) = (median(&mut within), median(&mut over));
    println!("medians: in the process {own:.1}, over HTTP {http:.1}: {:.3}", http / own);
    Ok(())
}

/// Forgets what is cached, once the last request has ended.
async fn clear(engine: &Engine) {
    while engine.clear_cache().is_err() {
        tokio::task::yield_now().await;
    }
}

/// No two streams begin with the same tokens.
fn prompt(arguments: &Arguments, stream: u32) -> Vec<u32> {
    (0..arguments.input).map(|at| 300 + stream * 100 + at % 100).collect()
}

async fn in_process(engine: &Engine, arguments: &Arguments, stream: u32) -> Outcome<usize> {
    let mut sampling = SamplingParams::greedy(arguments.output);
    sampling.ignore_eos = true;
    let request = Request::new(prompt(arguments, stream)).sampling(sampling);
    let mut generation = engine.submit_async(request).await?;
    let mut tokens = 0;
    while let Some(event) = generation.next().await {
        tokens += usize::from(matches!(event?, GenerationEvent::Token { .. }));
    }
    Ok(tokens)
}

async fn over_http(address: SocketAddr, arguments: &Arguments, stream: u32) -> Outcome<usize> {
    let body = json!({
        "prompt": prompt(arguments, stream), "max_tokens": arguments.output, "temperature": 0, "ignore_eos": true,
        "stream": true, "stream_options": {"include_usage": true},
    });
    let body = body.to_string();
    let mut connection = TcpStream::connect(address).await?;
    let length = body.len();
    let head = format!(
        "POST /v1/completions HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n"
    );
    connection.write_all((head + &body).as_bytes()).await?;
    let mut lines = BufReader::new(connection).lines();
    let mut last = String::new();
    while let Some(line) = lines.next_line().await? {
        if line.starts_with("data: {") {
            last = line;
        }
    }
    let usage: serde_json::Value = serde_json::from_str(last.trim_start_matches("data: "))?;
    let tokens = usage["usage"]["completion_tokens"].as_u64().ok_or("an answer without usage")?;
    Ok(usize::try_from(tokens)?)
}

#[expect(clippy::cast_precision_loss, reason = "a count of tokens")]
fn rate(tokens: Vec<usize>, begin: Instant) -> f64 {
    tokens.iter().sum::<usize>() as f64 / begin.elapsed().as_secs_f64()
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}
