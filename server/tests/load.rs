//! Many streams at once, and many that are given up, with a backend that computes nothing.
//!
//! `UNDERSTORY_LOAD=full` makes each as large as a server must bear: 2,000 streams, 1,000 that are given up.

#![cfg(target_os = "linux")]

#[expect(dead_code, reason = "shared with the tests of the protocols")]
#[path = "http/support.rs"]
mod support;

use std::fs;
use std::io::Read;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::future::join_all;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use understory::prelude::*;
use understory::request::GenerationEvent;
use understory_server::ServerOptions;

use support::{Running, letter, request};

/// What the process uses is counted, so tests run one after the other.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn is_full() -> bool {
    std::env::var("UNDERSTORY_LOAD").is_ok_and(|size| size == "full")
}

/// A server for so many streams at once, of which each step takes a while.
fn server(streams: u32, step: Duration) -> Running {
    let options = EngineOptions::default()
        .page_size(16)
        .kv_memory(KvMemory::Tokens(streams as usize * 160))
        .max_running_requests(streams)
        .max_queued_requests(8192);
    Running::endless(step, options, ServerOptions::default())
}

/// Seconds that the scheduler's thread has had the processor.
fn scheduler_seconds() -> f64 {
    // A thread names itself once it runs.
    let end = Instant::now() + Duration::from_secs(10);
    let task = loop {
        let tasks = fs::read_dir("/proc/self/task").unwrap().map(|task| task.unwrap().path());
        let named = |task: &PathBuf| {
            fs::read_to_string(task.join("comm"))
                .is_ok_and(|name| name.starts_with("understory-sche"))
        };
        let found: Vec<_> = tasks.filter(named).collect();
        if let [task] = &*found {
            break task.clone();
        }
        assert!(Instant::now() < end, "one engine at a time: {found:?}");
        std::thread::yield_now();
    };
    let spent = fs::read_to_string(task.join("schedstat")).unwrap();
    spent.split(' ').next().unwrap().parse::<f64>().unwrap() / 1e9
}

/// Memory of the process that is there, in KiB.
fn resident() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim_end_matches("kB").trim().parse().unwrap()
}

fn open_files() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

fn threads() -> usize {
    fs::read_dir("/proc/self/task").unwrap().count()
}

fn prompt(stream: u32) -> Vec<u32> {
    vec![letter(), 10 + stream % 300, 10 + stream / 300]
}

const TOKENS: u32 = 60;

#[test]
fn streams_at_once_cost_the_scheduler_what_streams_in_the_process_cost() {
    let _alone = alone();
    let streams = if is_full() { 2000 } else { 150 };
    let step = Duration::from_millis(if is_full() { 100 } else { 20 });
    let clients = tokio::runtime::Runtime::new().unwrap();

    let within = {
        let server = server(streams, step);
        let (begin, steps) = (scheduler_seconds(), server.engine.snapshot().steps);
        let engine = &server.engine;
        let all = (0..streams).map(|stream| async move {
            let mut sampling = SamplingParams::greedy(TOKENS);
            sampling.ignore_eos = true;
            let request = Request::new(prompt(stream)).sampling(sampling);
            let mut generation = engine.submit_async(request).await.unwrap();
            let mut tokens = 0;
            while let Some(event) = generation.next().await {
                tokens += u32::from(matches!(event.unwrap(), GenerationEvent::Token { .. }));
            }
            assert_eq!(tokens, TOKENS);
        });
        clients.block_on(join_all(all));
        let steps = server.engine.snapshot().steps - steps;
        (scheduler_seconds() - begin) * 1e6 / steps as f64
    };

    let server = server(streams, step);
    let (begin, steps, memory) = (scheduler_seconds(), server.engine.snapshot().steps, resident());
    let address = server.address;
    let all = (0..streams).map(|stream| async move {
        let body = json!({
            "prompt": prompt(stream), "max_tokens": TOKENS, "ignore_eos": true, "temperature": 0, "stream": true,
        });
        let mut connection = TcpStream::connect(address).await.unwrap();
        let asked = request("/v1/completions", &body.to_string(), "");
        connection.write_all(asked.as_bytes()).await.unwrap();
        let mut answer = String::new();
        connection.read_to_string(&mut answer).await.unwrap();
        assert!(answer.contains("data: [DONE]"), "{answer}");
        assert_eq!(answer.matches("\"text\":\"a\"").count() as u32, TOKENS);
    });
    let most = std::thread::scope(|scope| {
        let answered = scope.spawn(|| clients.block_on(join_all(all)));
        let mut most = (0, 0);
        while !answered.is_finished() {
            let running = server.engine.snapshot().scheduler.running;
            most = (most.0.max(running), most.1.max(resident()));
            std::thread::sleep(Duration::from_millis(5));
        }
        answered.join().unwrap();
        most
    });
    assert_eq!(most.0, streams as usize, "all at once");
    let steps = server.engine.snapshot().steps - steps;
    let over = (scheduler_seconds() - begin) * 1e6 / steps as f64;
    let each = most.1.saturating_sub(memory) as f64 / f64::from(streams);
    println!(
        "{streams} streams: the scheduler's thread takes {within:.0} us a step in the process, {over:.0} us over HTTP; \
         {each:.1} KiB a stream, its client included"
    );
    assert!(each < 200.0, "{each} KiB a stream");
    // Few streams leave the scheduler little to do, so waking up is much of what is counted.
    let most = if is_full() { 1.2 } else { 2.0 };
    assert!(over < within * most, "{over} us a step over HTTP, {within} us in the process");
    server.wait_until_idle(Duration::from_secs(5));
}

#[test]
fn requests_that_are_given_up_at_any_time_leave_nothing() {
    let _alone = alone();
    let requests = if is_full() { 1000 } else { 120 };
    let server = server(64, Duration::from_millis(2));
    // What is made once is there from now on.
    let clients = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    assert_eq!(
        server.post("/v1/completions", &json!({"prompt": "a", "max_tokens": 1})).status,
        200
    );
    server.wait_until_idle(Duration::from_secs(5));
    let (files, running) = (open_files(), threads());
    let address = server.address;
    let all = (0..requests).map(|number: u32| async move {
        let body = json!({
            "prompt": prompt(number), "max_tokens": 1900, "ignore_eos": true, "stream": number.is_multiple_of(2),
        });
        let asked = request("/v1/completions", &body.to_string(), "");
        // Some leave in the middle of what they ask.
        let sent = if number.is_multiple_of(7) { asked.len() / 2 } else { asked.len() };
        let mut connection = TcpStream::connect(address).await.unwrap();
        connection.write_all(&asked.as_bytes()[..sent]).await.unwrap();
        let patience = Duration::from_millis(u64::from(number.wrapping_mul(2_654_435_761) >> 22));
        let reading = async {
            let mut bytes = [0; 512];
            while connection.read(&mut bytes).await.is_ok_and(|count| count > 0) {}
        };
        let _ = tokio::time::timeout(patience, reading).await;
    });
    clients.block_on(join_all(all));
    server.wait_until_idle(Duration::from_secs(10));
    let snapshot = server.engine.snapshot();
    assert_eq!(snapshot.pages.in_use(), 0);
    assert_eq!(snapshot.endings.length, 1, "none got to its end");
    let begin = Instant::now();
    while open_files() > files {
        assert!(begin.elapsed() < Duration::from_secs(5), "{} files, {files} before", open_files());
        std::thread::sleep(Duration::from_millis(10));
    }
    // The request that asks is open itself.
    assert_eq!(server.metric("understory_http_requests_open{model_name=\"llama-tied\"}") as u64, 1);
    // Idle threads of the runtimes' blocking pools end after ten seconds.
    let begin = Instant::now();
    while threads() > running + 8 {
        assert!(
            begin.elapsed() < Duration::from_secs(20),
            "{} threads, {running} before",
            threads()
        );
        std::thread::sleep(Duration::from_millis(10));
    }
    let mut rest = Vec::new();
    let last = server.send("/v1/completions", &json!({"prompt": "a", "max_tokens": 2}));
    (&last).read_to_end(&mut rest).unwrap();
    assert!(String::from_utf8(rest).unwrap().starts_with("HTTP/1.1 200"));
}
