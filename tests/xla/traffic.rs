//! Traffic of all kinds meets no shape that was not compiled before it.

use testkit::random::Random;
use understory::Token;
use understory::prelude::*;
use understory::request::TokenConstraint;

use crate::qwen3::{Checkpoint, VOCABULARY};
use crate::support::{eventful, start, xla};

const REQUESTS: usize = 200;

/// Allows every token but those that a number divides.
#[derive(Clone, Debug)]
struct NoMultiples(u32);

impl TokenConstraint for NoMultiples {
    fn allow(&mut self, allowed: &mut [u32]) {
        for token in (0..VOCABULARY as u32).filter(|token| token % self.0 != 0) {
            allowed[token as usize / 32] |= 1 << (token % 32);
        }
    }

    fn advance(&mut self, token: Token) {
        assert_ne!(token % self.0, 0, "a token that was not allowed");
    }

    fn rollback(&mut self, _tokens: usize) {}

    fn duplicate(&self) -> Box<dyn TokenConstraint> {
        Box::new(self.clone())
    }
}

/// A prompt and parameters of which each is there in some requests and not in others.
fn request(random: &mut Random) -> Request {
    let token = |random: &mut Random| random.below(VOCABULARY) as u32;
    let longest = if random.chance(20) { 300 } else { 40 };
    let len = random.between(1, longest);
    let prompt: Vec<Token> = (0..len).map(|_| token(random)).collect();
    let mut sampling = SamplingParams::default();
    sampling.max_tokens = Some(random.between(1, 12) as u32);
    sampling.seed = Some(random.bits());
    sampling.temperature = random.below(3) as f32 * 0.7;
    sampling.ignore_eos = random.chance(50);
    sampling.n = random.between(1, 3) as u32;
    if random.chance(30) {
        sampling.top_k = random.between(1, 50) as u32;
    }
    if random.chance(30) {
        sampling.top_p = 0.8;
    }
    if random.chance(30) {
        sampling.min_p = 0.05;
    }
    if random.chance(30) {
        sampling.repetition_penalty = 1.2;
    }
    if random.chance(30) {
        (sampling.frequency_penalty, sampling.presence_penalty) = (0.4, -0.3);
    }
    if random.chance(20) {
        sampling.logit_bias = vec![(token(random), 3.0), (token(random), -50.0)];
    }
    if random.chance(20) {
        sampling.min_tokens = 1;
    }
    if random.chance(30) {
        sampling.logprobs = Some(random.below(21) as u8);
    }
    let request = Request::new(prompt).sampling(sampling);
    match random.chance(25) {
        true => request.constraint(Box::new(NoMultiples(random.between(2, 7) as u32))),
        false => request,
    }
}

#[test]
fn nothing_is_compiled_in_traffic_after_warm_up() {
    const SEED: u64 = 11;
    println!("seed {SEED}");
    let checkpoint = Checkpoint::random(SEED);
    // Aborts and full pools belong to traffic as well.
    let mut options = eventful();
    options.kv_memory = KvMemory::Tokens(1024);
    options.context_length = Some(512);
    let engine = start(&xla(1), &checkpoint.path(), options);
    let mut random = Random::new(SEED);
    let mut running = Vec::new();
    for _ in 0..REQUESTS {
        let request = request(&mut random);
        let most = request.sampling.max_tokens.unwrap() as usize;
        let generation = engine.submit(request).unwrap();
        if random.chance(5) {
            drop(generation);
        } else {
            running.push((generation, most));
        }
    }
    for (generation, most) in running {
        for output in generation.wait().unwrap() {
            assert!((1..=most).contains(&output.tokens.len()), "{output:?}");
        }
    }
    let snapshot = engine.snapshot();
    assert!(snapshot.scheduler.retractions > 0 && snapshot.scheduler.evicted_pages > 0);
    assert_eq!(snapshot.compiles_in_traffic, 0);
}
