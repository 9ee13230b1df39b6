//! The bundled prompts on the bundled model: what `offline_batch --backend xla --tp N` runs.

use serde_json::Value;
use understory::prelude::*;

use crate::agreement::compare;
use crate::support::{answer, assert_eventful, cpu, eventful, start, xla};

/// Prompts share long beginnings within a group, and groups take turns in the file.
const GROUPS: usize = 8;

const TOKENS: u32 = 16;

/// How far log probabilities may be apart: 7.8e-5 was measured over the
/// whole file.
const NOISE: f32 = 2e-4;

/// Half of two groups, or as many prompts of the whole file as `UNDERSTORY_BUNDLED_PROMPTS` says.
fn requests() -> Vec<Value> {
    let lines = include_str!("../../examples/data/prompts.jsonl").lines();
    let all: Vec<Value> = lines.map(|line| serde_json::from_str(line).unwrap()).collect();
    match std::env::var("UNDERSTORY_BUNDLED_PROMPTS") {
        Ok(count) => all[..count.parse().expect("a number of prompts")].to_vec(),
        Err(_) => (0..4 * GROUPS).step_by(GROUPS).flat_map(|at| all[at..at + 2].to_vec()).collect(),
    }
}

#[test]
fn bundled_prompts_are_answered_as_on_the_cpu_backend() {
    let model = ModelSource::Default.resolve(&FetchOptions::default(), &mut ()).unwrap();
    let requests = requests();
    let run = |choice: &BackendChoice| {
        let engine = start(choice, &model, eventful());
        let answers = answer(&engine, &requests, TOKENS);
        assert_eventful(&engine);
        answers
    };
    let expected = run(&cpu());
    let one = run(&xla(1));
    let [two, four] = [2, 4].map(|devices| run(&xla(devices)));
    for (what, reference, found) in [
        ("1 device and the CPU backend", &expected, &one),
        ("2 devices and the CPU backend", &expected, &two),
        ("2 devices and 1", &one, &two),
        ("4 devices and 1", &one, &four),
    ] {
        let agreement = compare(reference, found, NOISE);
        println!("{what}: {agreement:?}");
        let agreement = agreement.unwrap_or_else(|error| panic!("{what}: {error}"));
        assert!(agreement.tokens >= requests.len() * TOKENS as usize / 2, "{agreement:?}");
    }
}
