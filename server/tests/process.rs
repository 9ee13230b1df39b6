//! The program in a process of its own: flags, signals, TLS.

#![cfg(unix)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;

fn model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/tiny/llama-tied")
}

/// A program that serves the tiny model, and what it said until it listened.
struct Program {
    child: Child,
    said: String,
    address: String,
}

impl Program {
    fn start(flags: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_understory"))
            .arg("serve")
            .arg(model())
            .args(["--port", "0", "--device", "cpu:1", "--max-total-tokens", "8192"])
            .args(flags)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = String::new();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
        let address = loop {
            let line = lines.next().unwrap_or_else(|| panic!("it ended: {said}"));
            said.push_str(&line);
            said.push('\n');
            if let Some((_, address)) = line.split_once("://") {
                break address.to_owned();
            }
        };
        // What else it says must not block it.
        std::thread::spawn(move || lines.for_each(drop));
        Self { child, said, address }
    }

    fn signal(&self, signal: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
    }

    fn send(&self, text: &str) -> TcpStream {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream.write_all(text.as_bytes()).unwrap();
        stream
    }

    fn get(&self, path: &str, head: &str) -> String {
        to_the_end(
            self.send(&format!(
                "GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n{head}\r\n"
            )),
        )
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn to_the_end(mut stream: TcpStream) -> String {
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

fn long(tokens: u32, n: u32) -> String {
    let body =
        json!({"prompt": "a", "max_tokens": tokens, "n": n, "ignore_eos": true, "stream": true});
    let body = body.to_string();
    let length = body.len();
    format!("POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-length: {length}\r\n\r\n{body}")
}

#[test]
fn it_says_what_was_derived_and_serves_under_the_given_name() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "served-model-name = \"tiny\"\npage_size = 8\nport = 1\n").unwrap();
    let program = Program::start(&["--config", file.path().to_str().unwrap()]);
    for part in ["tiny", "pages of 8 tokens", "context: 512 tokens"] {
        assert!(program.said.contains(part), "{}", program.said);
    }
    assert!(program.get("/v1/models", "").contains("\"id\":\"tiny\""));
}

#[test]
fn the_example_of_a_file_gives_way_to_the_command_line() {
    let keys = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(keys.path(), "key\n").unwrap();
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/serve.toml");
    let keys = keys.path().to_str().unwrap();
    let flags = ["--config", example, "--host", "127.0.0.1", "--api-key-file", keys];
    // The model stands on the command line, and another one in the file.
    let program = Program::start(&flags);
    let models = program.get("/v1/models", "x-api-key: key\r\n");
    assert!(models.contains("\"id\":\"smollm2\"") && models.contains("llama-tied"), "{models}");
}

#[test]
fn wrong_flags_are_errors_on_one_line() {
    for (flags, part) in [
        (&["serve", "/no/such/model"][..], "does not exist"),
        (&["serve", "default", "--offline", "--device", "abacus"], "abacus"),
        (&["serve", "--config", "/no/such/file"], "cannot read"),
        (&["serve", "default", "--api-key-file", "/no/such/keys"], "API keys"),
        (&["serve", "default", "--tool-call-parser", "morse"], "hermes"),
    ] {
        let port = ["--port", "0"];
        let output =
            Command::new(env!("CARGO_BIN_EXE_understory")).args(flags).args(port).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && said.contains(part), "{flags:?}: {said}");
        assert!(said.starts_with("error: "), "{said}");
    }
}

#[test]
fn either_signal_waits_for_streams_and_the_second_one_does_not() {
    for (signal, code) in [("-INT", 130), ("-TERM", 143)] {
        let mut program = Program::start(&[]);
        let mut stream = program.send(&long(300, 1));
        let mut first = [0; 12];
        stream.read_exact(&mut first).unwrap();
        assert_eq!(&first, b"HTTP/1.1 200");
        program.signal(signal);
        assert!(to_the_end(stream).contains("data: [DONE]"));
        assert!(program.child.wait().unwrap().success());

        let mut program = Program::start(&[]);
        let streams: Vec<TcpStream> = (0..8).map(|_| program.send(&long(500, 100))).collect();
        let _half_sent = program.send("POST /v1/compl");
        (&streams[0]).read_exact(&mut first).unwrap();
        program.signal(signal);
        // Two that come at once are one signal to the system.
        while TcpStream::connect(&program.address).is_ok() {
            std::thread::sleep(Duration::from_millis(1));
        }
        let begin = Instant::now();
        program.signal(signal);
        let status = program.child.wait().unwrap();
        assert_eq!((status.code(), status.signal()), (Some(code), None));
        assert!(begin.elapsed() < Duration::from_secs(5));
    }
}

#[test]
fn keys_are_read_again_at_a_signal_and_said_nowhere() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "first-secret\n").unwrap();
    let path = file.path().to_str().unwrap();
    let program = Program::start(&["--api-key-file", path, "--log-level", "trace"]);
    let with = |key: &str| program.get("/v1/models", &format!("authorization: Bearer {key}\r\n"));
    assert!(with("first-secret").starts_with("HTTP/1.1 200"));
    assert!(with("second-secret").starts_with("HTTP/1.1 401"));
    std::fs::write(file.path(), "second-secret\n").unwrap();
    program.signal("-HUP");
    let begin = Instant::now();
    while !with("second-secret").starts_with("HTTP/1.1 200") {
        assert!(begin.elapsed() < Duration::from_secs(10));
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(with("first-secret").starts_with("HTTP/1.1 401"));
    assert!(!program.said.contains("secret"), "{}", program.said);
}

#[cfg(feature = "tls")]
#[test]
fn https_is_served_with_a_certificate() {
    use std::sync::Arc;

    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, ServerName};

    let fixture =
        |name: &str| Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name);
    let (certificate, key) = (fixture("certificate.pem"), fixture("key.pem"));
    let flags = [certificate.to_str().unwrap(), key.to_str().unwrap()];
    let program = Program::start(&["--ssl-certfile", flags[0], "--ssl-keyfile", flags[1]]);
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(&certificate).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from("localhost").unwrap();
    let client = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
    let socket = TcpStream::connect(&program.address).unwrap();
    let mut stream = rustls::StreamOwned::new(client, socket);
    stream
        .write_all(long(5, 1).replace("host: a", "host: a\r\nconnection: close").as_bytes())
        .unwrap();
    let mut text = String::new();
    // The end may come without a word of TLS.
    let _ = stream.read_to_string(&mut text);
    assert!(text.starts_with("HTTP/1.1 200") && text.contains("data: [DONE]"), "{text}");
    // Who speaks no TLS, or nothing at all, is hung up on.
    let plain = program.send("GET /health HTTP/1.1\r\nhost: a\r\n\r\n");
    let mut answer = Vec::new();
    let _ = (&plain).read_to_end(&mut answer);
    assert!(!answer.starts_with(b"HTTP/1.1 200"));
}
