//! The service as its clients see it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown as Half, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use axum::body::{Body, to_bytes};
use axum::http;
use tower::ServiceExt;

use super::*;

const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/tiny/llama-tied");

fn engine(max_queued_requests: usize) -> Engine {
    let options = EngineOptions::default()
        .kv_memory(KvMemory::Tokens(4096))
        .max_queued_requests(max_queued_requests);
    understory::load(Path::new(MODEL)).backend("cpu:1").options(options).start().unwrap()
}

async fn send(engine: &Engine, body: Value) -> Response {
    let request = http::Request::post("/generate").body(Body::from(body.to_string())).unwrap();
    router(engine.clone(), Limits::default()).oneshot(request).await.unwrap()
}

async fn text(response: Response) -> String {
    String::from_utf8(to_bytes(response.into_body(), 1 << 20).await.unwrap().into()).unwrap()
}

#[tokio::test]
async fn an_answer_is_streamed_and_ends_with_its_usage() {
    let engine = engine(8);
    let body = json!({"prompt": "a b c", "max_tokens": 12, "ignore_eos": true, "n": 2});
    let response = send(&engine, body).await;
    assert_eq!(response.status(), StatusCode::OK);
    let text = text(response).await;
    assert!(text.contains("event: text\ndata: {\"sample\":0,\"text\":"), "{text}");
    assert_eq!(text.matches("event: finished\n").count(), 2, "{text}");
    assert_eq!(text.matches("\"completion_tokens\":12").count(), 2, "{text}");
    assert_eq!(text.matches("\"finish_reason\":\"length\"").count(), 2, "{text}");
}

#[tokio::test]
async fn what_the_engine_refuses_becomes_a_status() {
    let engine = engine(1);
    for bad in [
        json!({"prompt": "a", "unheard_of": 1}),
        json!({"prompt": "a", "temperature": -1}),
        json!({"token_ids": []}),
        json!([]),
    ] {
        let response = send(&engine, bad.clone()).await;
        assert_eq!(response.status(), StatusCode::BAD_REQUEST, "{bad}");
        assert!(text(response).await.contains("\"error\""));
    }
    // Two samples are more than the queue holds, whatever else is in it.
    let response = send(&engine, json!({"prompt": "a", "n": 2})).await;
    assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);

    engine.shutdown(Shutdown::Now).unwrap();
    let response = send(&engine, json!({"prompt": "a"})).await;
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test]
async fn a_client_that_disconnects_gives_its_request_up() {
    let engine = engine(128);
    let body = json!({"prompt": "a", "max_tokens": 500, "ignore_eos": true, "n": 64});
    let response = send(&engine, body).await;
    assert_eq!(response.status(), StatusCode::OK);
    drop(response);
    // Far longer than it takes: whether it ends is what is tested, not when.
    let patience = Instant::now() + Duration::from_secs(60);
    loop {
        let snapshot = engine.snapshot();
        if snapshot.queued == 0 && snapshot.scheduler.running == 0 {
            let generated = snapshot.scheduler.generated_tokens;
            assert!(generated < 64 * 400, "{generated} tokens were generated for nobody");
            break;
        }
        assert!(Instant::now() < patience, "the request still runs");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn health_tells_what_the_engine_does() {
    let engine = engine(8);
    let request = http::Request::get("/health").body(Body::empty()).unwrap();
    let response = router(engine.clone(), Limits::default()).oneshot(request).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    let value: Value = serde_json::from_str(&text(response).await).unwrap();
    assert_eq!(value["running"], 0);
}

#[test]
fn namespaces_with_different_names_have_different_numbers() {
    assert_eq!(number(Some("a")), number(Some("a")));
    assert_ne!(number(Some("a")), number(Some("b")));
    assert_eq!(number(None), Namespace::default());
}

/// A service on a port of this machine, with limits that are soon met.
struct Running {
    engine: Engine,
    address: SocketAddr,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Running {
    fn start(engine: Engine) -> Self {
        let limits = Limits {
            head: Duration::from_millis(300),
            body: Duration::from_millis(300),
            body_bytes: 1000,
            silence: Duration::from_millis(20),
        };
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let router = router(engine.clone(), limits);
        let thread = std::thread::spawn(move || {
            tokio::runtime::Runtime::new().unwrap().block_on(async {
                let listener = TcpListener::from_std(listener).unwrap();
                let stopped = async { drop(stopped.await) };
                serve::serve(listener, router, limits, stopped).await;
            });
        });
        Self { engine, address, stop: Some(stop), thread: Some(thread) }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(120))).unwrap();
        stream
    }

    fn drain(&mut self) {
        drop(self.stop.take());
        self.thread.take().unwrap().join().unwrap();
    }
}

fn head(length: usize) -> String {
    format!("POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n")
}

fn whole(body: &Value) -> String {
    let body = body.to_string();
    head(body.len()) + &body
}

/// What comes until the service closes the connection.
fn to_the_end(mut stream: TcpStream) -> String {
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

#[test]
fn a_client_that_shuts_its_writing_side_is_answered() {
    let service = Running::start(engine(8));
    let body = json!({"prompt": "a b c", "max_tokens": 40, "ignore_eos": true});
    let mut stream = service.connect();
    stream.write_all(whole(&body).as_bytes()).unwrap();
    stream.shutdown(Half::Write).unwrap();
    let text = to_the_end(stream);
    assert!(text.starts_with("HTTP/1.1 200"), "{text}");
    assert!(
        text.contains("event: finished") && text.contains("\"completion_tokens\":40"),
        "{text}"
    );
}

#[test]
fn a_client_that_is_gone_gives_its_request_up_also_over_a_connection() {
    let service = Running::start(engine(128));
    let body = json!({"prompt": "a", "max_tokens": 500, "ignore_eos": true, "n": 64});
    let mut stream = service.connect();
    stream.write_all(whole(&body).as_bytes()).unwrap();
    let mut first = [0; 12];
    stream.read_exact(&mut first).unwrap();
    drop(stream);
    let patience = Instant::now() + Duration::from_secs(60);
    loop {
        let snapshot = service.engine.snapshot();
        if snapshot.queued == 0 && snapshot.scheduler.running == 0 {
            break;
        }
        assert!(Instant::now() < patience, "the request still runs");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(service.engine.snapshot().scheduler.generated_tokens < 64 * 500);
}

#[test]
fn half_sent_requests_are_closed() {
    let service = Running::start(engine(8));
    let mut stream = service.connect();
    stream.write_all(b"POST /gener").unwrap();
    let text = to_the_end(stream);
    assert!(text.is_empty() || text.starts_with("HTTP/1.1 408"), "{text}");

    let mut stream = service.connect();
    stream.write_all((head(100) + "{\"pro").as_bytes()).unwrap();
    let text = to_the_end(stream);
    assert!(text.starts_with("HTTP/1.1 408") && text.contains("did not come within"), "{text}");

    let mut stream = service.connect();
    stream.write_all((head(5000) + &"x".repeat(1500)).as_bytes()).unwrap();
    let text = to_the_end(stream);
    assert!(text.starts_with("HTTP/1.1 413"), "{text}");

    // Nobody sends anything: that ends as well.
    assert_eq!(to_the_end(service.connect()), "");
}

#[test]
fn a_service_that_ends_answers_what_runs_and_takes_nothing_new() {
    let mut service = Running::start(engine(8));
    let body = json!({"prompt": "a b c", "max_tokens": 400, "ignore_eos": true});
    let mut stream = service.connect();
    stream.write_all(whole(&body).as_bytes()).unwrap();
    let mut first = [0; 12];
    stream.read_exact(&mut first).unwrap();
    let mut silent = service.connect();
    service.drain();
    assert!(to_the_end(stream).contains("\"completion_tokens\":400"));
    // A connection that was not accepted yet is reset, one that was is closed.
    let mut text = String::new();
    let _ = silent.read_to_string(&mut text);
    assert_eq!(text, "");
    assert!(TcpStream::connect(service.address).is_err());
}

/// The program in a process of its own, since signals reach all of a process.
#[cfg(unix)]
mod process {
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Child, Command, Stdio};

    use super::*;

    const CHILD: &str = "EMBED_IN_SERVICE_TEST_CHILD";

    /// This is no test of its own: it is the program for the tests below, which start it.
    #[test]
    fn program() {
        if std::env::var_os(CHILD).is_none() {
            return;
        }
        let listen = ["embed_in_service", "--listen", "127.0.0.1:0", "--model", MODEL];
        let arguments = Arguments::parse_from(listen.into_iter().chain(["--threads", "1"]));
        assert_eq!(start::run(|| run(&arguments)), ExitCode::SUCCESS);
    }

    /// The program, and where it listens.
    fn start_program() -> (Child, String) {
        let mut program = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "tests::process::program", "--nocapture", "--test-threads", "1"])
            .env(CHILD, "1")
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(program.stderr.take().unwrap()).lines();
        let address = lines
            .map_while(Result::ok)
            .find_map(|line| line.strip_prefix("listening on http://").map(str::to_owned));
        (program, address.unwrap())
    }

    fn send(program: &Child, signal: &str) {
        let pid = program.id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
    }

    fn ask(address: &str, body: &Value) -> TcpStream {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(whole(body).as_bytes()).unwrap();
        let mut first = [0; 12];
        stream.read_exact(&mut first).unwrap();
        assert_eq!(&first, b"HTTP/1.1 200");
        stream
    }

    #[test]
    fn either_signal_waits_for_streams_and_the_second_one_does_not() {
        for signal in ["-INT", "-TERM"] {
            let (mut program, address) = start_program();
            let body = json!({"prompt": "a", "max_tokens": 400, "ignore_eos": true});
            let stream = ask(&address, &body);
            send(&program, signal);
            assert!(to_the_end(stream).contains("\"completion_tokens\":400"));
            assert!(program.wait().unwrap().success());

            let (mut program, address) = start_program();
            let body = json!({"prompt": "a", "max_tokens": 500, "ignore_eos": true, "n": 128});
            let _streams: Vec<_> = (0..8).map(|_| ask(&address, &body)).collect();
            send(&program, signal);
            // Two that come at once are one signal to the system.
            while TcpStream::connect(&address).is_ok() {
                std::thread::sleep(Duration::from_millis(1));
            }
            send(&program, signal);
            let status = program.wait().unwrap();
            let expected = if signal == "-INT" { 130 } else { 143 };
            assert_eq!((status.code(), status.signal()), (Some(expected), None));
        }
    }
}
