//! What all requests share.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use grammar::{GrammarCompiler, GrammarOptions};
use serde_json::json;
use sha2::{Digest, Sha256};
use tokio::sync::{Mutex, Semaphore, watch};
use understory::engine::Engine;
use understory::text::{ChatMessage, ChatOptions};

use super::body::Budget;
use super::running::Running;
use crate::config::{Keys, Limits, ServerOptions};
use crate::intake::{Context, Namespaces};
use crate::kv_events::NamespaceNames;
use crate::metrics::Metrics;
use crate::protocol::Refused;
use crate::tools::ToolFormat;

/// A server of one engine. Clones are handles of the same server.
#[derive(Clone, Debug)]
pub struct Server {
    inner: Arc<Inner>,
}

/// Why an engine can't be served.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServerError {
    /// Clients send and get text.
    #[error("the engine has no tokenizer, which serving needs")]
    NoTokenizer,
}

#[derive(Debug)]
struct Inner {
    context: Context,
    options: ServerOptions,
    keys: Keys,
    metrics: Metrics,
    running: Running,
    /// Who tokenizes at once: longer prompts must not take all threads from shorter ones.
    intake: Arc<Semaphore>,
    /// Memory for bodies.
    bodies: Budget,
    /// Whether those who still wait for an answer are told that none comes.
    is_over: watch::Sender<bool>,
    /// What the last probe of the engine found, and when; locked while one runs.
    probed: Mutex<Option<(Instant, bool)>>,
    created: u64,
    is_draining: AtomicBool,
}

impl Server {
    /// A server of an engine. The engine's own metrics appear among the server's if the engine was built under the
    /// recorder of `metrics`.
    ///
    /// # Errors
    ///
    /// [`ServerError::NoTokenizer`].
    pub fn new(
        engine: Engine,
        mut options: ServerOptions,
        metrics: Metrics,
    ) -> Result<Self, ServerError> {
        /// Tokenizing is work for one core; more of it at once slows the engine's own.
        const TOKENIZING: usize = 2;
        let tokenizer = engine.tokenizer().ok_or(ServerError::NoTokenizer)?.clone();
        let bytes = |token: usize| tokenizer.token_bytes(u32::try_from(token).ok()?);
        let longest = (0..tokenizer.vocab_size()).filter_map(bytes).map(|bytes| bytes.len()).max();
        let facts = engine.model();
        if options.served_model_name.is_empty() {
            options.served_model_name.push(own_name(&engine));
        }
        let identity = format!(
            "{} {:?} {:?} {} {}",
            env!("CARGO_PKG_VERSION"),
            facts.architecture,
            facts.format,
            facts.weight_bytes,
            options.served_model_name.join(","),
        );
        let fingerprint = Sha256::digest(identity.as_bytes());
        let fingerprint: String =
            fingerprint.iter().take(5).map(|byte| format!("{byte:02x}")).collect();
        metrics.describe(&engine, &options.served_model_name);
        let context = Context {
            grammars: GrammarCompiler::new(&tokenizer, GrammarOptions::default()),
            tokenizer,
            names: options.served_model_name.clone(),
            fingerprint: format!("fp_{fingerprint}"),
            tool_call_parser: options.tool_call_parser.unwrap_or_else(|| taught_format(&engine)),
            reasoning_parser: options.reasoning_parser,
            namespaces: options.kv_events.is_some().then(Namespaces::default),
            longest_token: longest.unwrap_or(1),
            most_prompts: options.limits.prompts,
            incremental: options.incremental_streaming_output,
            engine,
        };
        let (keys, bodies) = (options.keys.clone(), Budget::new(&options.limits));
        let inner = Inner {
            context,
            options,
            keys,
            metrics,
            running: Running::default(),
            intake: Arc::new(Semaphore::new(TOKENIZING)),
            bodies,
            is_over: watch::Sender::new(false),
            probed: Mutex::new(None),
            created: now(),
            is_draining: AtomicBool::new(false),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The names of the namespaces that requests were in, for [`KvEvents`](crate::kv_events::KvEvents). None unless
    /// [`kv_events`](ServerOptions::kv_events) says that routers are told of them.
    pub fn namespace_names(&self) -> Option<NamespaceNames> {
        let names = self.inner.context.namespaces.clone()?;
        Some(Arc::new(move |namespace| names.name(namespace)))
    }

    pub(crate) fn context(&self) -> &Context {
        &self.inner.context
    }

    pub(crate) fn engine(&self) -> &Engine {
        &self.inner.context.engine
    }

    pub(crate) fn options(&self) -> &ServerOptions {
        &self.inner.options
    }

    pub(crate) fn limits(&self) -> Limits {
        self.inner.options.limits
    }

    pub(crate) fn keys(&self) -> &Keys {
        &self.inner.keys
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        &self.inner.metrics
    }

    pub(crate) fn running(&self) -> &Running {
        &self.inner.running
    }

    pub(crate) fn bodies(&self) -> &Budget {
        &self.inner.bodies
    }

    pub(crate) fn probed(&self) -> &Mutex<Option<(Instant, bool)>> {
        &self.inner.probed
    }

    /// Answers all that still wait for an answer with an error, and aborts what runs. Returns how many ran.
    pub(crate) fn give_up(&self) -> usize {
        self.inner.is_over.send_replace(true);
        self.running().abort(None, None)
    }

    /// Ready once the server has given up.
    pub(crate) async fn gave_up(&self) {
        let mut is_over = self.inner.is_over.subscribe();
        if is_over.wait_for(|is_over| *is_over).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// When the server was started, in seconds since 1970.
    pub(crate) fn created(&self) -> u64 {
        self.inner.created
    }

    pub(crate) fn sse_keep_alive(&self) -> Option<Duration> {
        self.inner.options.sse_keep_alive
    }

    /// Health is no longer good: routers send their requests elsewhere.
    pub(crate) fn start_draining(&self) {
        self.inner.is_draining.store(true, Ordering::Relaxed);
    }

    /// Why requests are not answered, if they are not.
    pub(crate) fn trouble(&self) -> Option<Refused> {
        if let Some(dead) = self.engine().dead() {
            return Some(Refused::server(503, dead.to_string()));
        }
        let is_draining = self.inner.is_draining.load(Ordering::Relaxed);
        is_draining.then(|| Refused::server(503, "the server is shutting down"))
    }

    /// Runs something that takes a while on a thread for that.
    pub(crate) async fn off_runtime<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, Refused> + Send + 'static,
    ) -> Result<Result<T, Refused>, Refused> {
        // Never closed.
        let permit = Arc::clone(&self.inner.intake).acquire_owned().await.ok();
        // The work goes on when its client has left, and so does its share of the threads.
        let done = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            work()
        });
        let done = done.await;
        done.map_err(|error| Refused::server(500, format!("the request was not read: {error}")))
    }
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// How the chat template teaches its model to write calls, by the instructions that it gives.
fn taught_format(engine: &Engine) -> ToolFormat {
    let messages = [ChatMessage::new("user", "a")];
    let function =
        json!({"name": "f", "description": "", "parameters": {"type": "object", "properties": {}}});
    let options =
        ChatOptions::default().tools(vec![json!({"type": "function", "function": function})]);
    let rendered =
        engine.chat_template().and_then(|template| template.render(&messages, &options).ok());
    rendered.and_then(|prompt| ToolFormat::of_template(&prompt)).unwrap_or(ToolFormat::Hermes)
}

/// The name that a model is served under where none is given: as it was named, or the last part of its path.
fn own_name(engine: &Engine) -> String {
    let facts = engine.model();
    let path = facts.path.as_ref().and_then(|path| path.file_name());
    let source = facts.source.clone();
    source
        .or_else(|| path.map(|name| name.to_string_lossy().into_owned()))
        .unwrap_or_else(|| "default".into())
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use testkit::null::NullBackend;

    use super::*;

    #[tokio::test]
    async fn work_whose_client_left_keeps_its_share_of_the_threads() {
        let model = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/tiny/llama-tied");
        let engine = Engine::builder().load(model, &NullBackend::new(), &mut ()).unwrap();
        let server = Server::new(engine, ServerOptions::default(), Metrics::new()).unwrap();
        let free = server.inner.intake.available_permits();
        let (begun, begins) = mpsc::channel();
        let (end, ends) = mpsc::channel::<()>();
        let work = move || {
            begun.send(()).map_err(|error| Refused::server(500, error.to_string()))?;
            ends.recv().map_err(|error| Refused::server(500, error.to_string()))
        };
        let own = server.clone();
        let client = tokio::spawn(async move { own.off_runtime(work).await.map(drop) });
        while begins.try_recv().is_err() {
            tokio::task::yield_now().await;
        }
        client.abort();
        assert!(client.await.unwrap_err().is_cancelled());
        assert_eq!(server.inner.intake.available_permits(), free - 1);
        end.send(()).unwrap();
        while server.inner.intake.available_permits() < free {
            tokio::task::yield_now().await;
        }
    }
}
