//! Vectors of the devices, through the engine.

use engine_core::backend::PoolKind;
use testkit::random::Random;
use understory::error::{GenerateError, SubmitError};
use understory::prelude::*;
use understory::request::EmbedRequest;

use crate::qwen3::{Checkpoint, VOCABULARY};
use crate::support::{cpu, eventful, start, xla};

fn requests() -> Vec<EmbedRequest> {
    let mut random = Random::new(4);
    let mut tokens =
        |len: usize| -> Vec<u32> { (0..len).map(|_| random.below(VOCABULARY) as u32).collect() };
    // Longer than a step's chunk, too.
    let prompts = [1, 5, 64, 130, 131].map(&mut tokens);
    let kinds = [PoolKind::Last, PoolKind::Mean];
    let of = |prompt: &Vec<u32>| kinds.map(|kind| EmbedRequest::new(prompt.clone()).pooling(kind));
    prompts.iter().flat_map(of).collect()
}

#[test]
fn vectors_are_those_of_the_cpu_backend_on_1_and_2_devices() {
    let checkpoint = Checkpoint::random(6);
    let vectors = |choice| -> Vec<Vec<f32>> {
        let engine = start(&choice, &checkpoint.path(), eventful().embeddings(true));
        let embed = |request| engine.embed(request).unwrap().vector;
        let vectors = requests().into_iter().map(embed).collect();
        assert_eq!(engine.snapshot().compiles_in_traffic, 0);
        vectors
    };
    let expected = vectors(cpu());
    for devices in [1, 2] {
        for (found, expected) in vectors(xla(devices)).iter().zip(&expected) {
            assert_eq!(found.len(), expected.len());
            for (found, expected) in found.iter().zip(expected) {
                assert!((found - expected).abs() < 1e-4, "{found} and {expected}");
            }
        }
    }
}

#[test]
fn without_preparation_a_vector_is_refused_and_answers_go_on() {
    let checkpoint = Checkpoint::random(6);
    let engine = start(&xla(1), &checkpoint.path(), eventful());
    let error = engine.embed(requests().swap_remove(0)).unwrap_err();
    assert!(matches!(error, GenerateError::Submit(SubmitError::NoEmbeddings)), "{error}");
    let request = Request::new(vec![1, 2, 3]).sampling(SamplingParams::greedy(4));
    assert_eq!(engine.generate(request).unwrap().len(), 1);
}
