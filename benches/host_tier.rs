//! What a host tier adds to the hit rate: a trace replayed through the real scheduler, with the
//! device's pages alone and with a tier of several sizes behind them. Nothing is computed, and
//! nothing is timed.
//!
//! ```text
//! UNDERSTORY_TRACE=conversation_trace.jsonl cargo bench --bench host_tier
//! ```

#[path = "host_tier/replay.rs"]
mod replay;
#[path = "../radix-cache/benches/cache/trace.rs"]
mod trace;

use std::error::Error;

use engine_core::WritePolicy;
use engine_core::schedule::{HostTierConfig, SchedulerStats};

/// Pages of the device, in percent of the trace's different blocks.
const DEVICE_PERCENT: usize = 5;

/// Pages of the host, the same.
const HOST_PERCENTS: [usize; 3] = [20, 50, 100];

fn main() -> Result<(), Box<dyn Error>> {
    let trace = replay::read()?;
    let blocks = trace::unique_ids(&trace);
    let pages = blocks * DEVICE_PERCENT / 100;
    println!(
        "{} requests, {blocks} different blocks of 512 tokens; the device holds {pages}\n",
        trace.len()
    );
    println!("| host tier | written | hit rate | from the device | from the host | to the host |");
    println!("| --- | --- | --- | --- | --- | --- |");
    print("none", "", &replay::replay(&trace, pages, None)?);
    let policies = [
        (WritePolicy::Through, "through"),
        (WritePolicy::ThroughAfterHits(1), "through after a hit"),
        (WritePolicy::Back, "back"),
    ];
    for percent in HOST_PERCENTS {
        for (write, name) in policies {
            let mut host = HostTierConfig::new((blocks * percent / 100) as u32);
            host.write = write;
            let stats = replay::replay(&trace, pages, Some(host))?;
            print(&format!("{percent} %"), name, &stats);
        }
    }
    Ok(())
}

fn print(tier: &str, written: &str, stats: &SchedulerStats) {
    let percent = |tokens: u64| 100.0 * tokens as f64 / stats.prompt_tokens.max(1) as f64;
    println!(
        "| {tier} | {written} | {:.2} % | {:.2} % | {:.2} % | {} pages |",
        percent(stats.cached_tokens),
        percent(stats.cached_tokens - stats.host_cached_tokens),
        percent(stats.host_cached_tokens),
        stats.pages_to_host,
    );
}
