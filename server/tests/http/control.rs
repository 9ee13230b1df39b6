//! Routes for operators: health, loads, the cache, aborts, keys, metrics.

use std::time::Duration;

use serde_json::{Value, json};
use understory_server::ServerOptions;
use understory_server::config::Keys;

use super::support::{Answer, Running, engine_options, request};

#[test]
fn health_is_good_until_the_engine_ends() {
    let server = Running::tiny();
    for path in ["/health", "/ready", "/ping", "/health_generate"] {
        assert_eq!(server.get(path).status, 200, "{path}");
    }
    server.engine.shutdown(understory::engine::Shutdown::Now).unwrap();
    assert_eq!(server.get("/health_generate").status, 503);
    let answer = server.post("/v1/completions", &json!({"prompt": "a"}));
    assert_eq!(answer.status, 503, "{}", answer.body);
    assert_eq!(answer.json()["error"]["type"], "server_error");
}

#[test]
fn info_has_what_load_generators_and_routers_read() {
    let server = Running::tiny();
    for path in ["/get_model_info", "/model_info"] {
        let info = server.get(path).json();
        assert!(info["model_path"].as_str().unwrap().ends_with("llama-tied"));
        assert_eq!((&info["is_generation"], &info["model_type"]), (&json!(true), &json!("llama")));
    }
    for path in ["/get_server_info", "/server_info"] {
        let info = server.get(path).json();
        let state = &info["internal_states"][0];
        assert!(state["effective_max_running_requests_per_dp"].as_u64().unwrap() > 0);
        assert!(state["last_gen_throughput"].is_number() && info["tokenizer_path"].is_string());
        assert_eq!((&info["disaggregation_mode"], &info["page_size"]), (&json!("null"), &json!(4)));
    }
    let load = &server.get("/v1/loads?include=core").json()["loads"][0];
    for field in [
        "num_running_reqs",
        "num_waiting_reqs",
        "max_total_num_tokens",
        "token_usage",
        "cache_hit_rate",
    ] {
        assert!(load[field].is_number(), "{field}: {load}");
    }
    assert_eq!(server.get("/load").json(), json!({"server_load": 0}));
}

#[test]
fn texts_and_conversations_become_tokens_and_back() {
    let server = Running::tiny();
    let one = server.post("/tokenize", &json!({"prompt": "hello there", "model": "x"}));
    assert_eq!(one.status, 404);
    let one = server
        .post("/v1/tokenize", &json!({"prompt": "hello there", "add_special_tokens": false}))
        .json();
    let tokens = one["tokens"].as_array().unwrap();
    assert_eq!(one["count"], tokens.len());
    let back = server.post("/detokenize", &json!({"tokens": tokens})).json();
    assert_eq!((&back["text"], &back["prompt"]), (&json!("hello there"), &json!("hello there")));
    let chat = json!({"messages": [{"role": "user", "content": "hello there"}]});
    let count = server.post("/tokenize", &chat).json()["count"].as_u64().unwrap();
    let asked = json!({"messages": chat["messages"], "max_tokens": 1});
    let usage = &server.post("/v1/chat/completions", &asked).json()["usage"];
    assert_eq!(usage["prompt_tokens"], count);
    let wrong = server.post("/detokenize", &json!({"tokens": [99999]}));
    assert_eq!(wrong.json()["error"]["param"], "tokens");
}

#[test]
fn the_cache_is_flushed_when_nothing_runs() {
    let server =
        Running::endless(Duration::from_millis(2), engine_options(), ServerOptions::default());
    let body = json!({"prompt": "a long enough prompt", "max_tokens": 8, "ignore_eos": true});
    let cached = || {
        let usage = server.post("/v1/completions", &body).json()["usage"].clone();
        usage["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap()
    };
    assert_eq!(cached(), 0);
    assert!(cached() > 0);
    assert_eq!(server.get("/flush_cache").body, "Cache flushed.\n");
    assert_eq!(cached(), 0);
    let long = json!({"prompt": "b", "max_tokens": 300, "ignore_eos": true});
    let running = server.send("/v1/completions", &long);
    while server.engine.snapshot().scheduler.running == 0 {
        std::thread::yield_now();
    }
    assert_eq!(server.post("/reset_prefix_cache", &json!({})).status, 400);
    assert_eq!(server.post("/flush_cache?timeout=60", &json!({})).status, 200);
    drop(running);
}

#[test]
fn requests_are_aborted_by_their_id() {
    let server =
        Running::endless(Duration::from_millis(2), engine_options(), ServerOptions::default());
    let named = |rid: &str| {
        let sampling = json!({"max_new_tokens": 1500, "ignore_eos": true});
        server.send("/generate", &json!({"text": "a", "rid": rid, "sampling_params": sampling}))
    };
    let (first, second) = (named("first"), named("second"));
    while server.engine.snapshot().scheduler.running < 2 {
        std::thread::yield_now();
    }
    // A request runs a moment before its id is known.
    while server.engine.snapshot().scheduler.running > 1 {
        assert_eq!(server.post("/abort_request", &json!({"rid": "first"})).status, 200);
    }
    let answer = super::support::Answer::read(first).json();
    assert_eq!(answer["meta_info"]["finish_reason"]["type"], "abort");
    assert_eq!(server.post("/abort_request", &json!({"rid": "unheard of"})).status, 200);
    assert_eq!(server.engine.snapshot().scheduler.running, 1);
    while server.engine.snapshot().scheduler.running > 0 {
        assert_eq!(server.post("/abort_request", &json!({"abort_all": true})).status, 200);
    }
    let answer = super::support::Answer::read(second).json();
    assert_eq!(answer["meta_info"]["finish_reason"]["type"], "abort");
    server.wait_until_idle(Duration::from_secs(1));
}

#[test]
fn keys_admit_and_tenants_share_no_prefixes() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "secret-a alice\nsecret-b bob\n").unwrap();
    let mut options = ServerOptions::default();
    options.keys = Keys::new(&[], Some(file.path().to_owned())).unwrap();
    let server = Running::with(engine_options(), options);
    for path in ["/health", "/metrics"] {
        assert_eq!(server.get(path).status, 200, "{path} is open");
    }
    let refused = server.get("/v1/models");
    assert_eq!(
        (refused.status, &refused.json()["error"]["code"]),
        (401, &json!("invalid_api_key"))
    );
    for head in [
        "authorization: Bearer secret-a\r\n",
        "authorization: secret-a\r\n",
        "x-api-key: secret-a\r\n",
    ] {
        assert_eq!(server.get_with("/v1/models", head).status, 200, "{head}");
    }
    for head in
        ["authorization: Bearer secret\r\n", "authorization: Bearer \r\n", "x-api-key: \r\n"]
    {
        assert_eq!(server.get_with("/v1/models", head).status, 401, "{head}");
    }
    let cached = |key: &str| {
        let body = json!({"prompt": "a long enough prompt to cache", "max_tokens": 1}).to_string();
        let mut stream = server.connect();
        let head = format!("x-api-key: {key}\r\n");
        std::io::Write::write_all(&mut stream, request("/v1/completions", &body, &head).as_bytes())
            .unwrap();
        let usage = super::support::Answer::read(stream).json()["usage"].clone();
        usage["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap()
    };
    assert_eq!(cached("secret-a"), 0);
    assert!(cached("secret-a") > 0);
    assert_eq!(cached("secret-b"), 0, "bob sees nothing of alice's");
}

#[test]
fn every_series_is_there_before_the_first_request() {
    let server = Running::tiny();
    let text = server.get("/metrics").body;
    for name in [
        "sglang:num_running_reqs{",
        "sglang:num_queue_reqs{",
        "sglang:gen_throughput{",
        "sglang:cache_hit_rate{",
        "sglang:token_usage{",
        "sglang:prompt_tokens_total{",
        "sglang:generation_tokens_total{",
        "sglang:cached_tokens_total{",
        "sglang:time_to_first_token_seconds_bucket{",
        "sglang:e2e_request_latency_seconds_bucket{",
        "sglang:inter_token_latency_seconds_bucket{",
        "vllm:num_requests_running{",
        "vllm:num_requests_waiting{",
        "vllm:kv_cache_usage_perc{",
        "vllm:prompt_tokens_total{",
        "vllm:generation_tokens_total{",
        "vllm:request_success_total{",
        "vllm:time_to_first_token_seconds_bucket{",
        "vllm:inter_token_latency_seconds_bucket{",
        "vllm:e2e_request_latency_seconds_bucket{",
        "vllm:request_queue_time_seconds_bucket{",
        "vllm:request_prefill_time_seconds_bucket{",
        "vllm:request_decode_time_seconds_bucket{",
        "vllm:request_prompt_tokens_bucket{",
        "vllm:request_generation_tokens_bucket{",
        "vllm:request_max_num_generation_tokens_bucket{",
        "understory_requests_running{",
        "understory_pages{",
        "understory_step_seconds_bucket{",
        "http_requests_total{",
    ] {
        assert!(text.lines().any(|line| line.starts_with(name)), "{name} is missing");
    }
    let mut families = std::collections::BTreeSet::new();
    for line in text.lines() {
        match line.strip_prefix("# TYPE ") {
            Some(rest) => assert!(families.insert(rest.split(' ').next().unwrap()), "{rest} twice"),
            None => assert!(line.contains("{model_name=\"llama-tied\""), "{line}"),
        }
    }
    let body = json!({"prompt": "a b c", "max_tokens": 5, "ignore_eos": true, "stream": true});
    server.stream("/v1/completions", &body);
    let tokens = "{model_name=\"llama-tied\",is_streaming=\"true\"}";
    assert_eq!(server.metric(&format!("sglang:generation_tokens_total{tokens}")), 5.0);
    let count = "vllm:time_to_first_token_seconds_count{model_name=\"llama-tied\",engine=\"0\"}";
    assert_eq!(server.metric(count), 1.0);
}

#[test]
fn a_full_queue_says_when_to_come_back() {
    let options = engine_options().max_running_requests(1).max_queued_requests(1);
    let server = Running::endless(Duration::from_millis(5), options, ServerOptions::default());
    let body = json!({"prompt": "a", "max_tokens": 1500, "ignore_eos": true, "stream": true});
    let _running = server.send("/v1/completions", &body);
    // A sequence runs a moment before its request stops counting as queued.
    let has_left_the_queue = || {
        let snapshot = server.engine.snapshot();
        snapshot.scheduler.running == 1 && snapshot.queued == 0
    };
    while !has_left_the_queue() {
        std::thread::yield_now();
    }
    let _waiting = server.send("/v1/completions", &body);
    while server.engine.snapshot().queued == 0 {
        std::thread::yield_now();
    }
    let refused = server.post("/v1/completions", &body);
    assert_eq!((refused.status, refused.header("retry-after")), (429, Some("1")));
    let error: Value = refused.json();
    assert_eq!(error["error"]["code"], "rate_limit_exceeded");
}

#[test]
fn the_page_needs_no_other_server() {
    let server = Running::tiny();
    let page = server.get("/");
    assert_eq!((page.status, page.header("content-type")), (200, Some("text/html; charset=utf-8")));
    assert!(page.header("content-security-policy").unwrap().starts_with("default-src 'none'"));
    assert!(!page.body.contains("http://") && !page.body.contains("https://"));
    let figures = server.get("/figures").json();
    let pages = &figures["pages"];
    let count = |state: &str| pages[state].as_u64().unwrap();
    assert_eq!(
        count("free") + count("evictable") + count("locked") + count("owned"),
        count("capacity")
    );
}

#[test]
fn every_name_of_the_dashboard_is_a_series() {
    let server = Running::tiny();
    let text = server.get("/metrics").body;
    let dashboard: Value =
        serde_json::from_str(include_str!("../../examples/grafana.json")).unwrap();
    let mut names = 0;
    for panel in dashboard["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().unwrap() {
            let expression = target["expr"].as_str().unwrap();
            let words = expression.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
            for name in
                words.filter(|word| word.starts_with("understory_") || word.starts_with("http_"))
            {
                names += 1;
                let begin = format!("{name}{{");
                assert!(
                    text.lines().any(|line| line.starts_with(&begin)),
                    "{name} in {expression}"
                );
            }
        }
    }
    assert!(names > 20);
}

/// A server with keys of two tenants and one of nobody's.
fn keyed(step: Duration) -> Running {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "key-a alice\nkey-b bob\noperator\n").unwrap();
    let mut options = ServerOptions::default();
    options.keys = Keys::new(&[], Some(file.path().to_owned())).unwrap();
    Running::endless(step, engine_options(), options)
}

#[test]
fn a_tenant_aborts_its_own_requests_alone_and_flushes_nothing() {
    let server = keyed(Duration::from_millis(2));
    let sampling = json!({"max_new_tokens": 1900, "ignore_eos": true});
    let body = json!({"text": "a", "rid": "same", "sampling_params": sampling});
    let (alice, bob) =
        (server.send_as("key-a", "/generate", &body), server.send_as("key-b", "/generate", &body));
    while server.engine.snapshot().scheduler.running < 2 {
        std::thread::yield_now();
    }
    let abort = |key, abort| assert_eq!(server.post_as(key, "/abort_request", &abort).status, 200);
    let ended = |stream| {
        let finish = Answer::read(stream).json()["meta_info"]["finish_reason"].clone();
        assert_eq!(finish["type"], "abort");
    };
    // A request runs a moment before its id is known.
    while server.engine.snapshot().scheduler.running > 1 {
        abort("key-a", json!({"rid": "same"}));
    }
    ended(alice);
    abort("key-a", json!({"abort_all": true}));
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(server.engine.snapshot().scheduler.running, 1, "bob's goes on");
    while server.engine.snapshot().scheduler.running > 0 {
        abort("operator", json!({"abort_all": true}));
    }
    ended(bob);

    for path in ["/flush_cache", "/reset_prefix_cache"] {
        let refused = server.post_as("key-a", path, &json!({}));
        assert_eq!(
            (refused.status, &refused.json()["error"]["code"]),
            (403, &json!("permission_denied"))
        );
        assert_eq!(server.post_as("operator", path, &json!({})).status, 200);
    }
}

#[test]
fn a_flush_with_a_wrong_timeout_names_it() {
    let server = Running::tiny();
    for timeout in ["abc", "-1", "NaN", "1&timeout=2"] {
        let answer = server.get(&format!("/flush_cache?timeout={timeout}"));
        assert_eq!((answer.status, &answer.json()["error"]["param"]), (400, &json!("timeout")));
    }
    for path in ["/flush_cache?timeout=1e9", "/flush_cache?timeout=", "/flush_cache?other=a"] {
        assert_eq!(server.get(path).status, 200, "{path}");
    }
}

#[test]
fn those_who_ask_at_once_whether_the_engine_gets_on_share_a_probe() {
    let step = Duration::from_millis(500);
    let server = Running::endless(step, engine_options(), ServerOptions::default());
    let head = "GET /health_generate HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
    let streams: Vec<_> = (0..16)
        .map(|_| {
            let mut stream = server.connect();
            std::io::Write::write_all(&mut stream, head.as_bytes()).unwrap();
            stream
        })
        .collect();
    for stream in streams {
        assert_eq!(Answer::read(stream).status, 200);
    }
    let probes = server.engine.snapshot().endings.length;
    assert!((1..=2).contains(&probes), "{probes} probes");
}

#[test]
fn an_engine_whose_queue_is_full_gets_on_as_long_as_it_takes_steps() {
    let mut options = engine_options().max_running_requests(1).max_queued_requests(1);
    options.chunked_prefill_size = Some(16);
    let server = Running::endless(Duration::from_millis(50), options, ServerOptions::default());
    let prompt = vec![super::support::letter(); 1900];
    let body = json!({"prompt": prompt, "max_tokens": 2, "ignore_eos": true});
    let _running = server.send("/v1/completions", &body);
    while server.engine.snapshot().scheduler.running == 0 {
        std::thread::yield_now();
    }
    let _waiting = server.send("/v1/completions", &body);
    while server.engine.snapshot().queued == 0 {
        std::thread::yield_now();
    }
    assert_eq!(server.post("/v1/completions", &body).status, 429);
    assert_eq!(server.get("/health_generate").status, 200);
    let words = json!([{"role": "user", "content": "a"}]);
    let refused = server.post("/v1/messages", &json!({"max_tokens": 1, "messages": words}));
    assert_eq!((refused.status, refused.header("retry-after")), (429, Some("1")));
    assert_eq!(refused.json()["error"]["type"], "rate_limit_error");
}

#[test]
fn lists_of_texts_to_count_are_no_longer_than_those_of_prompts() {
    let mut options = ServerOptions::default();
    options.limits.prompts = 2;
    let server = Running::with(engine_options(), options);
    assert_eq!(server.post("/tokenize", &json!({"prompt": ["a", "b"]})).status, 200);
    let refused = server.post("/tokenize", &json!({"prompt": ["a", "b", "c"]}));
    assert_eq!((refused.status, &refused.json()["error"]["param"]), (400, &json!("prompt")));
}
