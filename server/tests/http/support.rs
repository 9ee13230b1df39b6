//! Servers to talk to, and a client that sees every byte.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::Value;
use testkit::null::NullBackend;
use understory::prelude::*;
use understory_server::{Metrics, Server, ServerOptions};

/// A tiny checkpoint with a tokenizer and a chat template.
pub(crate) fn model() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/tiny/llama-tied")
}

pub(crate) fn engine_options() -> EngineOptions {
    EngineOptions::default().page_size(4).kv_memory(KvMemory::Tokens(8192))
}

/// A server on a port of this machine. Dropping it ends it.
pub(crate) struct Running {
    pub(crate) engine: Engine,
    pub(crate) address: SocketAddr,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Running {
    /// The tiny model, computed.
    pub(crate) fn tiny() -> Self {
        Self::with(engine_options(), ServerOptions::default())
    }

    pub(crate) fn with(options: EngineOptions, server: ServerOptions) -> Self {
        let metrics = Metrics::new();
        let load = || understory::load(model()).backend("cpu:1").options(options).start();
        let engine = metrics.record(load).unwrap();
        Self::start(engine, server, metrics)
    }

    /// A model that says the letter `a` for ever, a token every `step`.
    pub(crate) fn endless(step: Duration, options: EngineOptions, server: ServerOptions) -> Self {
        let metrics = Metrics::new();
        let context = options.context_length.unwrap_or(2048);
        let options = options.context_length(context);
        let backend = NullBackend::new().with_step_time(step).with_token(letter());
        let load = || Engine::builder().options(options).load(model(), &backend, &mut ());
        let engine = metrics.record(load).unwrap();
        Self::start(engine, server, metrics)
    }

    fn start(engine: Engine, options: ServerOptions, metrics: Metrics) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let server = Server::new(engine.clone(), options, metrics).unwrap();
        let thread = std::thread::spawn(move || {
            tokio::runtime::Runtime::new().unwrap().block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                server.serve(listener, None, async { drop(stopped.await) }).await;
            });
        });
        Self { engine, address, stop: Some(stop), thread: Some(thread) }
    }

    /// Takes nothing new, and waits for what runs.
    pub(crate) fn drain(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }

    pub(crate) fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream
    }

    /// Sends a request and leaves its answer unread.
    pub(crate) fn send(&self, path: &str, body: &Value) -> TcpStream {
        let mut stream = self.connect();
        stream.write_all(request(path, &body.to_string(), "").as_bytes()).unwrap();
        stream
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> Answer {
        Answer::read(self.send(path, body))
    }

    pub(crate) fn get(&self, path: &str) -> Answer {
        self.get_with(path, "")
    }

    pub(crate) fn post_as(&self, key: &str, path: &str, body: &Value) -> Answer {
        Answer::read(self.send_as(key, path, body))
    }

    /// Sends a request with a key and leaves its answer unread.
    pub(crate) fn send_as(&self, key: &str, path: &str, body: &Value) -> TcpStream {
        let mut stream = self.connect();
        let head = format!("x-api-key: {key}\r\n");
        stream.write_all(request(path, &body.to_string(), &head).as_bytes()).unwrap();
        stream
    }

    /// With further lines of the head, each with its line break.
    pub(crate) fn get_with(&self, path: &str, head: &str) -> Answer {
        let mut stream = self.connect();
        let text = format!("GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n{head}\r\n");
        stream.write_all(text.as_bytes()).unwrap();
        Answer::read(stream)
    }

    /// The events of a stream: values, without the end's mark, which must be there.
    pub(crate) fn stream(&self, path: &str, body: &Value) -> Vec<Value> {
        let answer = self.post(path, body);
        assert_eq!(answer.status, 200, "{}", answer.body);
        assert_eq!(answer.header("content-type"), Some("text/event-stream"));
        let mut events = answer.data();
        assert_eq!(events.pop().as_deref(), Some("[DONE]"));
        events.iter().map(|event| serde_json::from_str(event).unwrap()).collect()
    }

    /// The value of a series of `/metrics`.
    pub(crate) fn metric(&self, series: &str) -> f64 {
        let text = self.get("/metrics").body;
        let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {series} in {text}")).parse().unwrap()
    }

    /// Waits until nothing runs or waits, and all pages are free or may be evicted.
    pub(crate) fn wait_until_idle(&self, patience: Duration) {
        let end = Instant::now() + patience;
        loop {
            let snapshot = self.engine.snapshot();
            let scheduler = snapshot.scheduler;
            let busy = scheduler.running + scheduler.waiting + snapshot.queued;
            if busy == 0 && snapshot.pages.in_use() == 0 {
                return;
            }
            assert!(Instant::now() < end, "still {busy} requests: {snapshot:?}");
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Streams that a test left open end.
        let _ = self.engine.shutdown(Shutdown::Now);
        if !std::thread::panicking() {
            self.drain();
        }
    }
}

/// A server that computes prompts slowly, and a completion whose prompt takes it six seconds.
pub(crate) fn prefilling(server: ServerOptions) -> (Running, Value) {
    let mut options = engine_options();
    options.chunked_prefill_size = Some(16);
    let running = Running::endless(Duration::from_millis(50), options, server);
    let prompt = vec![letter(); 1900];
    (running, serde_json::json!({"prompt": prompt, "max_tokens": 2, "ignore_eos": true}))
}

/// The token of the letter `a`.
pub(crate) fn letter() -> u32 {
    let tokenizer = understory::text::Tokenizer::from_directory(&model()).unwrap();
    let tokens = tokenizer.encode("a", false).unwrap();
    assert_eq!(tokens.len(), 1, "{tokens:?}");
    tokens[0]
}

/// A request with a body, after which the connection closes.
pub(crate) fn request(path: &str, body: &str, head: &str) -> String {
    let length = body.len();
    format!(
        "POST {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: {length}\r\n{head}\r\n{body}"
    )
}

/// What a server answered.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn read(mut stream: TcpStream) -> Self {
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).unwrap();
        Self::parse(&bytes)
    }

    /// Skips interim answers.
    pub(crate) fn parse(bytes: &[u8]) -> Self {
        let end = bytes.windows(4).position(|four| four == b"\r\n\r\n");
        let end = end.unwrap_or_else(|| panic!("no head: {}", String::from_utf8_lossy(bytes)));
        let head = String::from_utf8(bytes[..end].to_vec()).unwrap().to_lowercase();
        let rest = &bytes[end + 4..];
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        if status == 100 {
            return Self::parse(rest);
        }
        let is_chunked = head.contains("transfer-encoding: chunked");
        let body = if is_chunked { unchunked(rest) } else { rest.to_vec() };
        Self { status, head, body: String::from_utf8(body).unwrap() }
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines();
        lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }

    /// The data of a stream's events. Nothing else is in it: no comments, no names.
    pub(crate) fn data(&self) -> Vec<String> {
        let events = self.body.strip_suffix("\n\n").unwrap().split("\n\n");
        events.map(|event| event.strip_prefix("data: ").unwrap().to_owned()).collect()
    }
}

fn unchunked(mut bytes: &[u8]) -> Vec<u8> {
    let mut whole = Vec::new();
    while let Some(end) = bytes.windows(2).position(|two| two == b"\r\n") {
        let length =
            usize::from_str_radix(std::str::from_utf8(&bytes[..end]).unwrap(), 16).unwrap();
        if length == 0 {
            break;
        }
        whole.extend_from_slice(&bytes[end + 2..end + 2 + length]);
        bytes = &bytes[end + 2 + length + 2..];
    }
    whole
}

/// The text of a chat's stream, by choice.
pub(crate) fn said(events: &[Value], index: u64) -> String {
    let choices = events.iter().flat_map(|event| event["choices"].as_array().unwrap());
    let own = choices.filter(|choice| choice["index"] == index);
    own.filter_map(|choice| choice["delta"]["content"].as_str().or(choice["text"].as_str()))
        .collect()
}

/// The reasons why the choices of a stream ended, in the order of the ends.
pub(crate) fn finishes(events: &[Value]) -> Vec<(u64, String)> {
    let choices = events.iter().flat_map(|event| event["choices"].as_array().unwrap());
    let ended = choices.filter_map(|choice| {
        Some((choice["index"].as_u64()?, choice["finish_reason"].as_str()?.to_owned()))
    });
    ended.collect()
}
