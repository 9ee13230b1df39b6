//! `understory serve MODEL`: a server for the protocols of OpenAI and SGLang.

#[path = "../../examples/support/bars.rs"]
mod bars;
mod signals;

use std::error::Error;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tokio::net::TcpListener;
use understory::prelude::*;
use understory_server::config::{ServeArguments, with_file};
use understory_server::kv_events::KvEvents;
use understory_server::{Metrics, Server, refuse_until};

/// Runs large language models. Requests that share a prefix share its KV cache.
#[derive(Debug, Parser)]
#[command(name = "understory", version)]
struct Program {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serves a model over HTTP: OpenAI's and SGLang's protocols, metrics, and a page to try it.
    ///
    /// Flags may stand in a TOML file that `--config FILE` names. SIGTERM or Ctrl-C takes no new requests and waits
    /// for those that run, a second one ends at once; SIGHUP reads the file of API keys again.
    Serve(Box<ServeArguments>),
}

type Outcome<T> = Result<T, Box<dyn Error>>;

fn main() -> ExitCode {
    let arguments = match with_file(std::env::args_os().collect()) {
        Ok(arguments) => arguments,
        Err(error) => return failed(&error),
    };
    let Program { command: Command::Serve(arguments) } = Program::parse_from(arguments);
    tracing_subscriber::fmt()
        .with_max_level(arguments.log_level)
        .with_writer(std::io::stderr)
        .init();
    match serve(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(error.as_ref()),
    }
}

fn failed(error: &dyn Error) -> ExitCode {
    eprintln!("error: {}", one_line(error));
    ExitCode::FAILURE
}

fn serve(arguments: &ServeArguments) -> Outcome<()> {
    let options = arguments.options()?;
    let tls = arguments.tls()?;
    let stop = signals::listen(options.keys.clone())?;
    let limits = options.limits;
    // The engine has threads of its own; the runtime's only move bytes.
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let listener = runtime.block_on(TcpListener::bind((&*arguments.host, arguments.port)))?;
    let address = listener.local_addr()?;

    let metrics = Metrics::new();
    let (loaded, ready) = tokio::sync::oneshot::channel::<()>();
    let starting = tls.clone();
    let refusing = runtime.spawn(async move {
        let ready = async { drop(ready.await) };
        refuse_until(&listener, starting, limits, ready).await;
        listener
    });
    let engine = metrics.record(|| start(arguments))?;
    drop(loaded);
    let listener = runtime.block_on(refusing)?;

    let server = Server::new(engine.clone(), options.clone(), metrics)?;
    describe(&engine, &options.served_model_name);
    let _published = match options.kv_events {
        Some(config) => {
            let names = server.namespace_names();
            Some(runtime.block_on(KvEvents::start(engine.clone(), config, names))?)
        }
        None => None,
    };
    let scheme = if tls.is_some() { "https" } else { "http" };
    eprintln!("listening on {scheme}://{address}");
    runtime.block_on(server.serve(listener, tls, stop));
    // All clients have been answered or given up, so what still runs is for nobody, on the threads of both.
    let ended = engine.shutdown(Shutdown::Now);
    runtime.shutdown_background();
    Ok(ended?)
}

/// Fetches the model if need be, and starts it.
fn start(arguments: &ServeArguments) -> Outcome<Engine> {
    let EngineParts { source, backend } = parts(arguments)?;
    let fetch = arguments.engine.fetch();
    let mut bars = bars::Bars::default();
    let path = source.resolve(&fetch, &mut bars)?;
    let backend = backend.open(&fetch, &mut bars)?;
    let builder = Engine::builder().options(arguments.engine_options());
    let builder = builder.source(arguments.engine.source());
    Ok(builder.load(path, backend.as_ref(), &mut bars)?)
}

struct EngineParts {
    source: ModelSource,
    backend: BackendChoice,
}

/// What is written wrongly is found before anything is fetched.
fn parts(arguments: &ServeArguments) -> Outcome<EngineParts> {
    Ok(EngineParts {
        source: arguments.engine.source().parse()?,
        backend: arguments.engine.backend()?,
    })
}

/// Says what was derived from model, machine and flags.
fn describe(engine: &Engine, names: &[String]) {
    let (facts, limits) = (engine.model(), engine.limits());
    let megabytes = |bytes: u64| bytes >> 20;
    let path = facts.path.as_ref().map(|path| path.display().to_string()).unwrap_or_default();
    eprintln!("model: {} ({path})", names.join(", "));
    eprintln!(
        "weights: {} MiB; KV: {} MiB, {} pages of {} tokens; host KV: {} MiB",
        megabytes(facts.weight_bytes),
        megabytes(limits.kv_bytes),
        limits.pages,
        limits.page_size,
        megabytes(limits.host_kv_bytes),
    );
    eprintln!(
        "context: {} tokens; running at once: {}; prompt tokens a step: {}",
        limits.context_length, limits.max_running_requests, limits.chunked_prefill_size,
    );
}
