//! Clients that mean no good, or are slow, or many.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::json;
use understory_server::{Limits, ServerOptions};

use super::support::{Answer, Running, engine_options, prefilling, request};

const TEXT: &str = "/v1/completions";

fn impatient() -> ServerOptions {
    let mut limits = Limits::default();
    limits.head_patience = Duration::from_millis(500);
    limits.body_patience = Duration::from_millis(500);
    limits.write_patience = Duration::from_millis(500);
    let mut options = ServerOptions::default();
    options.limits = limits;
    options
}

/// What comes until the server closes the connection.
fn rest(mut stream: TcpStream) -> String {
    let mut bytes = Vec::new();
    // A reset is an end as well.
    let _ = stream.read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

#[test]
fn half_sent_requests_end_by_themselves_and_hold_nobody_up() {
    let server = Running::endless(Duration::ZERO, engine_options(), impatient());
    let head = "POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-length: 100\r\n\r\n{\"pro";
    let slow: Vec<TcpStream> = (0..50)
        .map(|number| {
            let mut stream = server.connect();
            let sent = if number % 2 == 0 { "POST /v1/comp" } else { head };
            stream.write_all(sent.as_bytes()).unwrap();
            stream
        })
        .collect();
    let answer = server.post(TEXT, &json!({"prompt": "a", "max_tokens": 3, "ignore_eos": true}));
    assert_eq!(answer.status, 200);
    for (number, stream) in slow.into_iter().enumerate() {
        let text = rest(stream);
        match number % 2 {
            0 => assert!(text.is_empty() || text.starts_with("HTTP/1.1 408"), "{text}"),
            _ => assert!(text.contains(" 408 ") && text.contains("did not come within"), "{text}"),
        }
    }
}

#[test]
fn a_byte_at_a_time_does_not_keep_a_head_open() {
    let server = Running::endless(Duration::ZERO, engine_options(), impatient());
    let mut stream = server.connect();
    let begin = Instant::now();
    while stream.write_all(b"G").is_ok() && begin.elapsed() < Duration::from_secs(10) {
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(begin.elapsed() < Duration::from_secs(5), "still open after {:?}", begin.elapsed());
}

#[test]
fn a_thousand_aborts_at_any_time_leave_nothing_behind() {
    let options = engine_options().max_running_requests(16);
    let server = Running::endless(Duration::from_micros(300), options, ServerOptions::default());
    let mut random = 1_u64;
    for number in 0..1000 {
        random =
            random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let body = json!({
            "prompt": format!("prompt number {}", number % 7), "max_tokens": 1500, "ignore_eos": true,
            "stream": number % 2 == 0, "n": 1 + number % 3,
        });
        let mut stream = server.send(TEXT, &body);
        std::thread::sleep(Duration::from_micros(random >> 54));
        if number % 3 == 0 {
            // With something unread, the system says that the client is gone at once.
            let _ = stream.set_read_timeout(Some(Duration::from_millis(1)));
            let _ = stream.read(&mut [0; 10]);
        }
    }
    server.wait_until_idle(Duration::from_secs(10));
    let model = "{model_name=\"llama-tied\"}";
    assert_eq!(server.metric(&format!("understory_requests_running{model}")), 0.0);
    let owned = "understory_pages{model_name=\"llama-tied\",state=\"owned\"}";
    assert_eq!(server.metric(owned), 0.0);
    assert_eq!(
        server.metric(&format!("understory_http_requests_open{model}")),
        1.0,
        "only the one that asks"
    );
}

#[test]
fn a_client_that_never_reads_is_given_up() {
    let server = Running::endless(Duration::ZERO, engine_options(), impatient());
    // Far more than the buffers of two sockets hold, as each event repeats the text.
    let body = json!({
        "text": "a", "stream": true, "sampling_params": {"max_new_tokens": 1900, "ignore_eos": true, "n": 4},
    });
    let stream = server.send("/generate", &body);
    std::thread::sleep(Duration::from_millis(200));
    let begin = Instant::now();
    while server.metric("understory_http_requests_open{model_name=\"llama-tied\"}") > 1.0 {
        assert!(begin.elapsed() < Duration::from_secs(10), "its answer is still open");
        std::thread::sleep(Duration::from_millis(50));
    }
    server.wait_until_idle(Duration::from_secs(1));
    drop(stream);
}

#[test]
fn the_end_waits_for_streams_and_takes_nothing_new() {
    let step = Duration::from_millis(2);
    let mut server = Running::endless(step, engine_options(), impatient());
    let body = json!({"prompt": "a", "max_tokens": 200, "ignore_eos": true, "stream": true});
    let mut stream = server.send(TEXT, &body);
    let mut half_sent = server.connect();
    half_sent.write_all(b"POST /v1/comp").unwrap();
    let mut first = [0; 15];
    stream.read_exact(&mut first).unwrap();
    server.drain();
    let mut bytes = first.to_vec();
    stream.read_to_end(&mut bytes).unwrap();
    let answer = Answer::parse(&bytes);
    assert!(answer.body.ends_with("data: [DONE]\n\n"), "{answer:?}");
    assert!(TcpStream::connect(server.address).is_err());
}

#[test]
fn many_connections_that_do_nothing_cost_little() {
    let server = Running::endless(Duration::ZERO, engine_options(), ServerOptions::default());
    let idle: Vec<TcpStream> = (0..200).map(|_| server.connect()).collect();
    let answer = server.post(TEXT, &json!({"prompt": "a", "max_tokens": 3, "ignore_eos": true}));
    assert_eq!(answer.status, 200);
    drop(idle);
}

#[test]
fn what_is_no_http_or_no_json_is_refused() {
    let server = Running::tiny();
    let mut stream = server.connect();
    stream.write_all(b"\x16\x03\x01 not http\r\n\r\n").unwrap();
    assert!(rest(stream).starts_with("HTTP/1.1 400"));
    for body in [
        "",
        "{",
        "[]",
        "[\"prompt\"]",
        "{\"prompt\": \"a\"} x",
        "{\"prompt\": \"\u{1}\"}",
        "\"\\ud800\"",
    ] {
        let mut stream = server.connect();
        stream.write_all(request(TEXT, body, "").as_bytes()).unwrap();
        let answer = Answer::read(stream);
        assert_eq!(answer.status, 400, "{body:?}");
        assert_eq!(answer.json()["error"]["type"], "invalid_request_error");
    }
    let deep = "[".repeat(100_000);
    let mut stream = server.connect();
    stream.write_all(request(TEXT, &deep, "").as_bytes()).unwrap();
    assert_eq!(Answer::read(stream).status, 400);
}

#[test]
fn hundreds_of_streams_at_once_have_all_their_tokens() {
    let options = engine_options().max_running_requests(256);
    let server = Running::endless(Duration::from_millis(1), options, ServerOptions::default());
    let body = json!({"prompt": "a", "max_tokens": 30, "ignore_eos": true, "stream": true});
    let streams: Vec<TcpStream> = (0..400).map(|_| server.send(TEXT, &body)).collect();
    for stream in streams {
        let data = Answer::read(stream).data();
        // A chunk for each token, one for the end, and the mark of it.
        assert_eq!(data.len(), 32, "{data:?}");
    }
    server.wait_until_idle(Duration::from_secs(5));
}

#[test]
fn a_client_that_leaves_during_a_long_prefill_frees_its_request() {
    let (server, mut body) = prefilling(ServerOptions::default());
    for stream in [true, false] {
        body["stream"] = stream.into();
        let leaves = server.send(TEXT, &body);
        while server.engine.snapshot().scheduler.running == 0 {
            std::thread::yield_now();
        }
        drop(leaves);
        server.wait_until_idle(Duration::from_secs(1));
    }
}

#[test]
fn a_long_prefill_is_broken_by_comments_where_that_was_asked_for() {
    let mut options = ServerOptions::default();
    options.sse_keep_alive = Some(Duration::from_millis(300));
    let (server, mut body) = prefilling(options);
    body["stream"] = true.into();
    let answer = server.post(TEXT, &body);
    assert_eq!(answer.header("content-type"), Some("text/event-stream"));
    let (comments, events) = answer.body.split_once("data: ").unwrap();
    assert!(comments.matches(": keep-alive\n\n").count() > 3, "{comments}");
    assert!(events.ends_with("data: [DONE]\n\n"), "{events}");
}

#[test]
fn the_end_gives_up_what_lasts_too_long_whatever_it_is() {
    let mut options = ServerOptions::default();
    options.limits.drain = Some(Duration::from_millis(200));
    let (mut server, completion) = prefilling(options);
    let vector = server.send("/v1/embeddings", &json!({"input": completion["prompt"]}));
    let wait_for = |requests| {
        loop {
            let load = server.engine.snapshot().scheduler;
            if load.running + load.waiting >= requests {
                break;
            }
            std::thread::yield_now();
        }
    };
    // A flush of an idle engine would be done at once.
    wait_for(1);
    let flush = server.send("/flush_cache?timeout=600", &json!({}));
    let text = server.send(TEXT, &completion);
    wait_for(2);
    let begin = Instant::now();
    server.drain();
    assert!(begin.elapsed() < Duration::from_secs(3), "{:?}", begin.elapsed());
    for stream in [vector, flush, text] {
        assert_eq!(Answer::read(stream).status, 503);
    }
}
