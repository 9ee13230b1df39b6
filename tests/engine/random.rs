//! Random requests with everything that a request can have, read by all kinds of readers, beside
//! foreign code that panics. What an oracle can foretell is compared, and at the end nothing is kept.
//!
//! `UNDERSTORY_SECONDS` says for how long (default 10), `UNDERSTORY_SEED` where to begin: each
//! number is one engine with its own options and requests.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use engine_core::backend::{PoolKind, SlotSampling};
use engine_core::engine::{Engine, EngineOptions, Generation, KvMemory, Shutdown};
use engine_core::error::{GenerationError, SubmitError};
use engine_core::request::{
    EmbedRequest, FinishReason, GenerationEvent, Request, SamplingParams, TokenConstraint,
};
use engine_core::schedule::{QueuePolicy, Speculation};
use engine_core::{Namespace, Policy, Token, WritePolicy};
use futures_core::Stream;
use testkit::random::Random;
use testkit::shadow::model::continue_under;

use crate::support::*;

#[test]
fn random_requests_find_nothing() {
    let number = |name: &str| std::env::var(name).ok().and_then(|value| value.parse().ok());
    let seconds = Duration::from_secs(number("UNDERSTORY_SECONDS").unwrap_or(10));
    let start = Instant::now();
    let mut seed: u64 = number("UNDERSTORY_SEED").unwrap_or(1);
    while start.elapsed() < seconds {
        // Named in the panic of whatever fails.
        let _case = Case(seed);
        run(&mut Random::new(seed));
        seed += 1;
    }
}

struct Case(u64);

impl Drop for Case {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("UNDERSTORY_SEED={}", self.0);
        }
    }
}

/// One engine and its requests.
fn run(random: &mut Random) {
    let options = options(random);
    let description = format!("{options:?}");
    let mut engine = Shadowed::new(options);
    let mut open = Vec::new();
    for _ in 0..random.below(30) + 5 {
        match random.below(12) {
            0 => drop(engine.clear_cache()),
            1 => drop(engine.dump_cache_events().unwrap()),
            2 => drop(engine.take_cache_events()),
            3 => embed(&engine, random),
            4 if !open.is_empty() => fork(&mut open, random),
            5 if !open.is_empty() => {
                let index = random.below(open.len());
                read(open.swap_remove(index), random);
            }
            6 => {
                let planned: Vec<Planned> = (0..random.below(4)).map(|_| plan(random)).collect();
                let (requests, expected): (Vec<_>, Vec<_>) =
                    planned.into_iter().map(|planned| (planned.request, planned.expected)).unzip();
                match engine.submit_all(requests) {
                    Ok(generations) => open.extend(generations.into_iter().zip(expected)),
                    Err(error) => expect_refusal(&error),
                }
            }
            7 => {
                let Planned { request, expected } = plan(random);
                let submitting = engine.submit_async(request);
                if random.below(4) > 0 {
                    match crate::submission::block_on(submitting) {
                        Ok(generation) => open.push((generation, expected)),
                        Err(error) => expect_refusal(&error),
                    }
                }
            }
            _ => {
                let Planned { request, expected } = plan(random);
                match engine.submit(request) {
                    Ok(generation) => open.push((generation, expected)),
                    Err(error) => expect_refusal(&error),
                }
            }
        }
    }
    if random.below(4) == 0 {
        // The end comes while they run.
        if random.below(2) == 0 {
            engine.shutdown(Shutdown::Now).unwrap();
        }
        engine.engine = None;
        open.into_iter().for_each(|(generation, expected)| check(generation, &expected));
        return;
    }
    open.into_iter().for_each(|open| read(open, random));
    wait_until_idle(&engine);
    // Copies to the host may still hold pages of the cache.
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let snapshot = engine.snapshot();
        let pages = snapshot.pages;
        let kept = pages.owned_by_sequences + pages.cached_locked + pages.loading;
        if kept + snapshot.queued == 0 {
            break;
        }
        assert!(Instant::now() < deadline, "{snapshot:?} {description}");
        std::thread::yield_now();
    }
    // All slots and queue places are there.
    let most = engine.limits().max_running_requests;
    let last = (0..most).map(|n| request(&prompt(n, 9), 5)).collect();
    for (number, generation) in (0..).zip(engine.submit_all(last).unwrap()) {
        assert_eq!(generation.wait().unwrap()[0].tokens, foretold(&prompt(number, 9), 5));
    }
}

fn options(random: &mut Random) -> EngineOptions {
    let mut options = small();
    options.overlap = random.below(2) == 0;
    options.page_size = Some(1 << random.below(5));
    options.max_running_requests = Some(random.below(8) as u32 + 1);
    options.chunked_prefill_size = Some(random.below(100) + 1);
    // From one context on: prefixes are evicted, and sequences put back.
    options.kv_memory = KvMemory::Tokens(512 + random.below(600));
    options.cache = random.below(4) > 0;
    if options.cache && random.below(3) == 0 {
        let policies = [WritePolicy::Through, WritePolicy::ThroughAfterHits(1), WritePolicy::Back];
        options.host_kv_memory = KvMemory::Tokens(2000);
        options.host_write_policy = policies[random.below(3)];
        options.host_min_load_tokens = random.below(40);
    }
    options.cache_events = random.below(2) * 1000;
    if random.below(2) == 0 {
        options.queue_policy = QueuePolicy::LongestPrefix;
    }
    if random.below(3) == 0 {
        options.eviction_policy = Policy::Priority;
    }
    if options.cache && random.below(4) == 0 {
        options.retract_every = Some(random.below(20) as u64 + 3);
    }
    if random.below(2) == 0 {
        options.speculation = Some(Speculation::default());
    }
    options.max_queued_requests = random.below(60) + 8;
    options
}

/// A request, and what is foretold of its samples.
struct Planned {
    request: Request,
    expected: Expected,
}

/// What is foretold.
struct Expected {
    /// The tokens of each sample; `None` where only the engine's thread knows the prompt.
    tokens: Option<Vec<Vec<Token>>>,
    /// Code that came along may end it with an error.
    may_fail: bool,
    may_be_refused: bool,
}

fn plan(random: &mut Random) -> Planned {
    let length = [1, 5, 20, 70, 200][random.below(5)] + random.below(9) as u32;
    // Few beginnings, so that prefixes are shared; some repeat themselves, so that proposals hold.
    let mut tokens = prompt(random.below(4) as u32, length);
    if random.below(3) == 0 {
        tokens = tokens.iter().copied().cycle().take(6).cycle().take(tokens.len()).collect();
    }
    let mut sampling = sampling(random);
    if tokens.len() == 1 && sampling.max_tokens == Some(0) {
        // There is nothing to score.
        sampling.max_tokens = Some(1);
    }
    let kind = match random.below(3) {
        0 => Some(Kind::any(random)),
        _ => None,
    };
    let max_tokens = sampling.max_tokens.unwrap_or(u32::MAX) as usize;
    let max_tokens = max_tokens.min(512 - tokens.len());
    let samples = (0..sampling.n).map(|index| {
        let slot = slot_sampling(&sampling, tokens.len(), index);
        let prompt_len = tokens.len();
        continue_under(
            &tokens,
            &slot,
            VOCABULARY,
            max_tokens,
            &sampling.stop_token_ids,
            |known, token| kind.is_none_or(|kind| kind.allows(known.len() - prompt_len, token)),
        )
    });
    let expected = Expected {
        tokens: Some(samples.collect()),
        may_fail: kind.is_some_and(Kind::panics),
        may_be_refused: false,
    };
    let mut request = Request::new(tokens).sampling(sampling).speculation(random.below(4) > 0);
    request.priority = random.below(3) as i32;
    request.cache_priority = random.below(3) as i32;
    request.namespace = Namespace::tenant(random.below(2) as u64);
    if random.below(4) == 0 {
        request.keep_cached_for = Some(Duration::from_millis(random.below(50) as u64));
    }
    if let Some(kind) = kind {
        request = request.constraint(Box::new(Any { kind, at: 0 }));
    }
    Planned { request, expected }
}

fn sampling(random: &mut Random) -> SamplingParams {
    let mut sampling = greedy(random.below(60) as u32 + 1);
    if random.below(8) == 0 {
        sampling.max_tokens = None;
    }
    sampling.seed = Some(random.below(100) as u64);
    if random.below(2) == 0 {
        sampling.temperature = random.below(20) as f32 / 10.0;
    }
    if random.below(4) == 0 {
        sampling.frequency_penalty = random.below(20) as f32 / 10.0;
        sampling.presence_penalty = random.below(20) as f32 / 10.0;
        sampling.repetition_penalty = 1.0 + random.below(10) as f32 / 10.0;
    }
    if random.below(3) == 0 {
        sampling.stop_token_ids = (0..random.below(20) as Token).map(|n| n * 19).collect();
        let most = sampling.max_tokens.unwrap_or(u32::MAX).min(20);
        sampling.min_tokens = random.below(most as usize + 1) as u32;
    }
    if random.below(6) == 0 {
        sampling.min_tokens = sampling.max_tokens.unwrap_or(u32::MAX - random.below(600) as u32);
    }
    sampling.n = if random.below(4) == 0 { random.below(4) as u32 + 1 } else { 1 };
    sampling.logprobs = (random.below(4) == 0).then_some(random.below(3) as u8);
    sampling.prompt_logprobs = (random.below(6) == 0).then_some(random.below(3) as u8);
    if sampling.prompt_logprobs.is_some() && random.below(3) == 0 {
        (sampling.max_tokens, sampling.min_tokens, sampling.n) = (Some(0), 0, 1);
    }
    sampling.logit_bias = (0..random.below(3)).map(|n| (n as Token * 7, 3.0)).collect();
    sampling
}

/// What the shadow reads of the parameters.
fn slot_sampling(sampling: &SamplingParams, prompt_len: usize, index: u32) -> SlotSampling {
    let has_minimum = sampling.min_tokens > 0;
    SlotSampling {
        temperature: sampling.temperature,
        repetition_penalty: sampling.repetition_penalty,
        frequency_penalty: sampling.frequency_penalty,
        presence_penalty: sampling.presence_penalty,
        logit_bias: sampling.logit_bias.as_slice().into(),
        seed: sampling.seed.unwrap(),
        sample_index: index,
        suppress: sampling.stop_token_ids.as_slice().into(),
        suppress_before: if has_minimum {
            (prompt_len as u32).saturating_add(sampling.min_tokens)
        } else {
            0
        },
        ..SlotSampling::greedy()
    }
}

/// A constraint: every token but those of some stretches is one of a few, in those it is forced.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Stretches { period: usize, forces: bool },
    PanicsIn { call: usize, after: usize },
}

impl Kind {
    fn any(random: &mut Random) -> Self {
        match random.below(4) {
            0 => Self::PanicsIn { call: random.below(4), after: random.below(20) },
            _ => Self::Stretches { period: random.below(9) + 2, forces: random.below(2) == 0 },
        }
    }

    fn panics(self) -> bool {
        matches!(self, Self::PanicsIn { .. })
    }

    /// The only token at a place. No stop token: those are multiples of 19.
    fn only(self, at: usize) -> Option<Token> {
        match self {
            Self::Stretches { period, .. } => {
                (at / period % 2 == 1).then_some((at % 3) as Token * 19 + 1)
            }
            Self::PanicsIn { .. } => None,
        }
    }

    fn allows(self, at: usize, token: Token) -> bool {
        self.only(at).is_none_or(|only| only == token)
    }
}

#[derive(Clone, Debug)]
struct Any {
    kind: Kind,
    at: usize,
}

impl Any {
    fn check(&self, call: usize) {
        if let Kind::PanicsIn { call: at, after } = self.kind {
            assert!(call != at || self.at < after, "on purpose");
        }
    }
}

impl TokenConstraint for Any {
    fn allow(&mut self, allowed: &mut [u32]) {
        self.check(0);
        match self.kind.only(self.at) {
            Some(token) => allowed[token as usize / 32] |= 1 << (token % 32),
            None => allowed.fill(!0),
        }
    }

    fn advance(&mut self, _token: Token) {
        self.check(1);
        self.at += 1;
    }

    fn rollback(&mut self, tokens: usize) {
        self.at -= tokens;
    }

    fn forced(&mut self, tokens: &mut Vec<Token>) {
        self.check(2);
        if let Kind::Stretches { forces: true, .. } = self.kind {
            tokens.extend((self.at..).map_while(|at| self.kind.only(at)));
        }
    }

    fn duplicate(&self) -> Box<dyn TokenConstraint> {
        Box::new(self.clone())
    }
}

impl Drop for Any {
    fn drop(&mut self) {
        // A panic on the thread of the test is the test's own.
        let is_engine = |name: &str| name.starts_with("understory");
        if std::thread::current().name().is_some_and(is_engine) && !std::thread::panicking() {
            self.check(3);
        }
    }
}

fn expect_refusal(error: &SubmitError) {
    assert!(matches!(error, SubmitError::QueueFull { .. }), "{error}");
}

/// Embeddings wait, so one at a time.
fn embed(engine: &Engine, random: &mut Random) {
    let pooling = if random.below(2) == 0 { PoolKind::Last } else { PoolKind::Mean };
    let length = random.below(300) as u32 + 1;
    let request = EmbedRequest::new(prompt(random.below(4) as u32, length)).pooling(pooling);
    match engine.embed(request) {
        Ok(embedding) => {
            assert!((embedding.vector[0] - 1.0).abs() < 1e-5, "one element, normalized");
            assert_eq!(embedding.usage.prompt_tokens, length);
        }
        Err(engine_core::error::GenerateError::Submit(error)) => expect_refusal(&error),
        Err(error) => panic!("{error}"),
    }
}

/// A branch of one of the open ones, which may have ended.
fn fork(open: &mut Vec<(Generation, Expected)>, random: &mut Random) {
    let (parent, _) = &open[random.below(open.len())];
    let sample = random.below(parent.samples() as usize) as u32;
    let Planned { mut request, expected } = plan(random);
    request.sampling.n = 1;
    match parent.fork(sample, request) {
        Ok(branch) => {
            let may_fail = expected.may_fail;
            open.push((branch, Expected { tokens: None, may_fail, may_be_refused: true }));
        }
        Err(error) => expect_refusal(&error),
    }
}

/// Reads a generation in one of several ways, or not at all.
fn read((mut generation, expected): (Generation, Expected), random: &mut Random) {
    match random.below(6) {
        0 => drop(generation),
        1 => generation.abort(),
        2 => {
            let handle = generation.abort_handle();
            drop(generation.recv());
            handle.abort();
            check(generation, &expected);
        }
        3 => {
            let waker = Waker::from(Arc::new(PanicsWhenWoken));
            let mut context = Context::from_waker(&waker);
            for _ in 0..random.below(10) {
                let _ = Pin::new(&mut generation).poll_next(&mut context);
            }
            check(generation, &Expected { may_fail: true, ..expected });
        }
        _ => check(generation, &expected),
    }
}

struct PanicsWhenWoken;

impl Wake for PanicsWhenWoken {
    fn wake(self: Arc<Self>) {
        panic!("on purpose");
    }
}

/// Reads all that is left and compares it with what was foretold.
fn check(mut generation: Generation, expected: &Expected) {
    let samples = generation.samples() as usize;
    let mut tokens: Vec<Vec<Token>> = vec![Vec::new(); samples];
    let mut texts: Vec<Option<u32>> = vec![None; samples];
    let mut missed = false;
    let deadline = Instant::now() + Duration::from_secs(120);
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let event = match generation.recv_timeout(left) {
            Poll::Ready(Some(event)) => event,
            Poll::Ready(None) => break,
            Poll::Pending => panic!("nothing has happened for two minutes"),
        };
        match event {
            Ok(GenerationEvent::Token { sample, token, .. }) => {
                tokens[sample as usize].push(token);
            }
            Ok(GenerationEvent::Text { sample, tokens, .. }) => {
                let last = texts[sample as usize].replace(tokens.end);
                assert!(!tokens.is_empty());
                assert!(last.is_none_or(|last| tokens.start <= last && last <= tokens.end));
            }
            Ok(GenerationEvent::Finished(finished)) => {
                let sample = finished.sample as usize;
                let found = finished.usage.completion_tokens as usize;
                missed |= found != tokens[sample].len();
                let Some(foretold) = &expected.tokens else { continue };
                if missed {
                    // Somebody has read the beginning.
                    assert!(
                        foretold[sample].ends_with(&tokens[sample])
                            || finished.reason == FinishReason::Abort
                    );
                } else if finished.reason == FinishReason::Abort {
                    assert!(foretold[sample].starts_with(&tokens[sample]));
                } else {
                    assert_eq!(tokens[sample], foretold[sample], "{finished:?}");
                }
            }
            Ok(_) => {}
            Err(
                GenerationError::Constraint { problem, .. } | GenerationError::Waker { problem },
            ) => {
                assert!(expected.may_fail && problem.contains("on purpose"), "{problem}");
            }
            Err(GenerationError::Refused { refusal, .. }) => {
                assert!(expected.may_be_refused, "{refusal}");
            }
            Err(error) => panic!("{error}"),
        }
    }
}
