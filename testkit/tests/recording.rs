//! An engine that records what its scheduler is told, and the replay of its log.

use std::fs::File;
use std::io::BufReader;

use engine_core::engine::{Engine, EngineOptions, KvMemory, Shutdown};
use engine_core::model::ProgramBuilder;
use engine_core::request::{Request, SamplingParams};
use engine_core::schedule::{Speculation, replay};
use engine_core::weights::MapWeights;
use testkit::shadow::ShadowBackend;

#[test]
fn what_an_engine_records_replays_to_the_same_decisions() {
    let log = std::env::temp_dir().join(format!("understory-{}.log", std::process::id()));
    let mut b = ProgramBuilder::new("shadow", 4);
    b.page_group(1, 4, None);
    let x = b.embed("table", 4, 1.0);
    let x = b.select_outputs(x);
    let program = b.finish_with_logits(x, "table", None).unwrap();
    let options = EngineOptions::default()
        .page_size(4)
        .max_running_requests(6)
        .kv_memory(KvMemory::Tokens(240))
        .speculation(Speculation::default().min_match(1))
        .record_inputs(log.clone());
    let builder = Engine::builder().options(options).model_context(120);
    let engine =
        builder.build(program, &MapWeights::new(), &ShadowBackend::new(), &mut ()).unwrap();
    let requests = (0..20).map(|number| {
        let mut sampling = SamplingParams::greedy(30);
        sampling.logprobs = Some(2);
        let prompt: Vec<u32> = (0..20 + number % 7).map(|token| token % 4).collect();
        Request::new(prompt).sampling(sampling)
    });
    for generation in engine.submit_all(requests.collect()).unwrap() {
        generation.wait().unwrap();
    }
    engine.shutdown(Shutdown::Drain).unwrap();
    let stats = engine.snapshot().scheduler;

    let replayed = replay(BufReader::new(File::open(&log).unwrap()));
    std::fs::remove_file(&log).unwrap();
    let replayed = replayed.unwrap();
    assert_eq!(replayed.stats, stats);
    assert!(stats.accepted_tokens > 0 && stats.generated_tokens == 20 * 30, "{stats:?}");
}
