//! The server's numbers under the names that SGLang and vLLM give them.

use understory::engine::Engine;

use super::text::Text;
use super::{Requests, load};
use crate::http::Load;

pub(super) fn render(text: &mut Text, requests: &Requests, engine: &Engine, now: &Load) {
    sglang(text, requests, engine, now);
    vllm(text, requests, engine, now);
    text.histogram("understory_time_to_first_token_seconds", &[], &requests.first_token);
    text.histogram("understory_inter_token_seconds", &[], &requests.inter_token);
    text.histogram("understory_request_seconds", &[], &requests.total);
    text.histogram("understory_queue_seconds", &[], &requests.queue);
}

fn sglang(text: &mut Text, requests: &Requests, engine: &Engine, now: &Load) {
    let (limits, snapshot) = (engine.limits(), engine.snapshot());
    let (scheduler, endings) = (snapshot.scheduler, snapshot.endings);
    let page = limits.page_size as f64;
    for (name, value) in [
        ("sglang:num_running_reqs", now.running as f64),
        ("sglang:num_queue_reqs", now.waiting as f64),
        ("sglang:num_retracted_reqs", scheduler.waiting.saturating_sub(snapshot.queued) as f64),
        ("sglang:gen_throughput", now.throughput),
        ("sglang:cache_hit_rate", now.hit_rate),
        ("sglang:token_usage", now.usage),
        ("sglang:num_used_tokens", now.used as f64),
        ("sglang:max_total_num_tokens", now.capacity as f64),
        ("sglang:utilization", now.utilization),
        ("sglang:page_size", page),
        ("sglang:context_len", limits.context_length as f64),
    ] {
        text.gauge(name, &[], value);
    }
    for (name, counters) in [
        ("sglang:prompt_tokens_total", &requests.prompt_tokens),
        ("sglang:generation_tokens_total", &requests.generated_tokens),
    ] {
        text.family(name, "counter");
        for (streamed, counter) in ["false", "true"].into_iter().zip(counters) {
            text.sample(name, &[("is_streaming", streamed)], load(counter));
        }
    }
    let name = "sglang:cached_tokens_total";
    let host = scheduler.host_cached_tokens;
    text.family(name, "counter");
    let device = scheduler.cached_tokens.saturating_sub(host) as f64;
    text.sample(name, &[("cache_source", "device")], device);
    text.sample(name, &[("cache_source", "host")], host as f64);
    for (name, value) in [
        ("sglang:num_requests_total", load(&requests.submitted)),
        ("sglang:num_aborted_requests_total", endings.abort as f64),
        ("sglang:num_retracted_requests_total", scheduler.retractions as f64),
        ("sglang:evicted_tokens_total", scheduler.evicted_pages as f64 * page),
    ] {
        text.counter(name, &[], value);
    }
    for (name, histogram) in [
        ("sglang:time_to_first_token_seconds", &requests.first_token),
        ("sglang:e2e_request_latency_seconds", &requests.total),
        ("sglang:inter_token_latency_seconds", &requests.inter_token),
        ("sglang:request_time_per_output_token_seconds", &requests.per_token),
        ("sglang:queue_time_seconds", &requests.queue),
        ("sglang:prompt_tokens_histogram", &requests.prompt),
        ("sglang:generation_tokens_histogram", &requests.generation),
    ] {
        text.histogram(name, &[], histogram);
    }
}

fn vllm(text: &mut Text, requests: &Requests, engine: &Engine, now: &Load) {
    const ENGINE: (&str, &str) = ("engine", "0");
    let snapshot = engine.snapshot();
    let (scheduler, endings) = (snapshot.scheduler, snapshot.endings);
    for (name, value) in [
        ("vllm:num_requests_running", now.running as f64),
        ("vllm:num_requests_waiting", now.waiting as f64),
        ("vllm:kv_cache_usage_perc", now.usage),
        // Names of older versions, which load generators still read.
        ("vllm:gpu_cache_usage_perc", now.usage),
        ("vllm:num_running_seqs", now.running as f64),
        ("vllm:num_waiting_seqs", now.waiting as f64),
        ("vllm:gpu_memory_usage_perc", now.usage * 100.0),
    ] {
        text.gauge(name, &[ENGINE], value);
    }
    for (name, value) in [
        ("vllm:prompt_tokens_total", scheduler.prompt_tokens),
        ("vllm:generation_tokens_total", scheduler.generated_tokens),
        ("vllm:prompt_tokens_cached_total", scheduler.cached_tokens),
        ("vllm:prefix_cache_queries_total", scheduler.prompt_tokens),
        ("vllm:prefix_cache_hits_total", scheduler.cached_tokens),
        ("vllm:num_preemptions_total", scheduler.retractions),
        ("vllm:spec_decode_num_drafts_total", scheduler.verification_rows),
        ("vllm:spec_decode_num_draft_tokens_total", scheduler.proposed_tokens),
        ("vllm:spec_decode_num_accepted_tokens_total", scheduler.accepted_tokens),
    ] {
        text.counter(name, &[ENGINE], value as f64);
    }
    let name = "vllm:request_success_total";
    text.family(name, "counter");
    for (reason, count) in
        [("stop", endings.stop), ("length", endings.length), ("abort", endings.abort)]
    {
        text.sample(name, &[ENGINE, ("finished_reason", reason)], count as f64);
    }
    for (name, histogram) in [
        ("vllm:time_to_first_token_seconds", &requests.first_token),
        ("vllm:inter_token_latency_seconds", &requests.inter_token),
        ("vllm:request_time_per_output_token_seconds", &requests.per_token),
        ("vllm:e2e_request_latency_seconds", &requests.total),
        ("vllm:request_queue_time_seconds", &requests.queue),
        ("vllm:request_prefill_time_seconds", &requests.prefill),
        ("vllm:request_decode_time_seconds", &requests.decode),
        ("vllm:request_inference_time_seconds", &requests.inference),
        ("vllm:request_prompt_tokens", &requests.prompt),
        ("vllm:request_generation_tokens", &requests.generation),
        ("vllm:request_max_num_generation_tokens", &requests.max_generation),
        ("vllm:request_params_n", &requests.samples),
        ("vllm:request_params_max_tokens", &requests.max_tokens),
    ] {
        text.histogram(name, &[ENGINE], histogram);
    }
}
