//! Drafts that are verified on the devices, through the engine.

use engine_core::schedule::Speculation;
use serde_json::{Value, json};
use testkit::random::Random;

use crate::agreement::compare;
use crate::qwen3::{Checkpoint, NOISE, VOCABULARY};
use crate::support::{answer, eventful, start, xla};

/// Prompts that repeat themselves, so that something is proposed, of all lengths.
fn requests(random: &mut Random) -> Vec<Value> {
    let mut phrase =
        |len: usize| -> Vec<usize> { (0..len).map(|_| random.below(VOCABULARY)).collect() };
    (0..12)
        .map(|index| {
            let prompt = phrase(4 + index).repeat(3 + index % 4);
            json!({"token_ids": prompt, "ignore_eos": true})
        })
        .collect()
}

#[test]
fn speculation_changes_no_token_and_meets_no_new_shape() {
    const SEED: u64 = 5;
    println!("seed {SEED}");
    let checkpoint = Checkpoint::random(SEED);
    let requests = requests(&mut Random::new(SEED + 1));
    for devices in [1, 2] {
        let run = |speculation| {
            let mut options = eventful();
            options.speculation = speculation;
            let engine = start(&xla(devices), &checkpoint.path(), options);
            let answers = answer(&engine, &requests, 48);
            let snapshot = engine.snapshot();
            assert_eq!(snapshot.compiles_in_traffic, 0, "{snapshot:?}");
            assert!(snapshot.scheduler.retractions > 0, "{snapshot:?}");
            (answers, snapshot.scheduler)
        };
        let (expected, plain) = run(None);
        let (found, speculated) = run(Some(Speculation::default()));
        assert_eq!(plain.proposed_tokens, 0);
        let (proposed, accepted) = (speculated.proposed_tokens, speculated.accepted_tokens);
        println!("{devices} devices: {accepted} of {proposed} proposed tokens were accepted");
        assert!(accepted > 0 && accepted < proposed, "{accepted} of {proposed}");
        let agreement = compare(&expected, &found, NOISE);
        let agreement = agreement.unwrap_or_else(|error| panic!("{error}"));
        assert!(agreement.tokens >= requests.len() * 40, "{agreement:?}");
    }
}
