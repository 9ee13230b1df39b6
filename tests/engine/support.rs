//! Engines and oracles for the tests.

use std::path::PathBuf;
use std::sync::{Arc, Barrier};

use engine_core::Token;
use engine_core::backend::{Backend, Compute, SlotSampling};
use engine_core::engine::{Engine, EngineOptions, Generation, KvMemory};
use engine_core::error::GenerationError;
use engine_core::request::{GenerationEvent, Request, SamplingParams, TokenConstraint};
use testkit::shadow::{ShadowBackend, model::continue_alone};

/// Size of the vocabulary of [`model`].
pub(crate) const VOCABULARY: u32 = 384;

/// A tiny checkpoint, of which the shadow needs little more than the tokenizer.
pub(crate) fn model() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tiny/llama-tied")
}

/// Few pages and slots, so that requests meet.
pub(crate) fn small() -> EngineOptions {
    let mut options = EngineOptions::default();
    // Answers of other implementations are exact ones.
    options.compute = Compute::Exact;
    options.page_size = Some(4);
    options.kv_memory = KvMemory::Tokens(1024);
    options.max_running_requests = Some(4);
    options.chunked_prefill_size = Some(32);
    options
}

pub(crate) fn start(backend: &dyn Backend, options: EngineOptions) -> Engine {
    Engine::builder().options(options).load(model(), backend, &mut ()).unwrap()
}

/// An engine over a shadow; dropping the pair checks what the shadow saw.
pub(crate) struct Shadowed {
    pub(crate) engine: Option<Engine>,
    backend: ShadowBackend,
}

impl Shadowed {
    pub(crate) fn new(options: EngineOptions) -> Self {
        let backend = ShadowBackend::new();
        Self { engine: Some(start(&backend, options)), backend }
    }
}

impl std::ops::Deref for Shadowed {
    type Target = Engine;

    fn deref(&self) -> &Engine {
        self.engine.as_ref().unwrap()
    }
}

impl Drop for Shadowed {
    fn drop(&mut self) {
        self.engine = None;
        if !std::thread::panicking() {
            assert_eq!(self.backend.ledger().violations(), []);
        }
    }
}

/// Greedy, and deaf to the model's end tokens, which the shadow's noise would meet by chance.
pub(crate) fn greedy(max_tokens: u32) -> SamplingParams {
    let mut sampling = SamplingParams::greedy(max_tokens);
    sampling.ignore_eos = true;
    sampling
}

pub(crate) fn request(prompt: &[Token], max_tokens: u32) -> Request {
    Request::new(prompt.to_vec()).sampling(greedy(max_tokens))
}

/// What the shadow must generate.
pub(crate) fn foretold(prompt: &[Token], max_tokens: u32) -> Vec<Token> {
    continue_alone(prompt, &SlotSampling::greedy(), VOCABULARY, max_tokens as usize, &[])
}

/// A prompt of its own for each number.
pub(crate) fn prompt(number: u32, len: u32) -> Vec<Token> {
    (0..len).map(|index| (number * 97 + index * 31 + index * index) % VOCABULARY).collect()
}

pub(crate) fn read_all(generation: Generation) -> (Vec<GenerationEvent>, Option<GenerationError>) {
    let mut events = Vec::new();
    for event in generation {
        match event {
            Ok(event) => events.push(event),
            Err(error) => return (events, Some(error)),
        }
    }
    (events, None)
}

pub(crate) fn tokens_of(events: &[GenerationEvent]) -> Vec<Token> {
    let token = |event: &GenerationEvent| match event {
        GenerationEvent::Token { token, .. } => Some(*token),
        _ => None,
    };
    events.iter().filter_map(token).collect()
}

/// Reads up to the first token, and returns it.
pub(crate) fn first_token(generation: &mut Generation) -> Token {
    loop {
        match generation.recv().unwrap().unwrap() {
            GenerationEvent::Token { token, .. } => return token,
            _ => continue,
        }
    }
}

/// Runs something that must not take for ever: a wait for oneself, say.
pub(crate) fn within_a_minute<T: Send>(run: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let (sender, receiver) = std::sync::mpsc::channel::<()>();
        let running = scope.spawn(move || {
            let _dropped_at_the_end = sender;
            run()
        });
        let waited = receiver.recv_timeout(std::time::Duration::from_secs(60));
        if waited == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
            eprintln!("it hangs");
            // The scope would wait for what hangs.
            std::process::abort();
        }
        running.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Waits until the engine has nothing left to do, by what it publishes itself.
pub(crate) fn wait_until_idle(engine: &Engine) {
    loop {
        let snapshot = engine.snapshot();
        let scheduler = snapshot.scheduler;
        if scheduler.running + scheduler.waiting + snapshot.queued == 0 {
            return;
        }
        std::thread::yield_now();
    }
}

/// A waker that unparks the thread that made it.
pub(crate) struct Unpark(pub(crate) std::thread::Thread);

impl std::task::Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// A constraint that allows everything, but holds the engine before its sample's `after`th
/// token: what the test does meanwhile is seen while the sample runs.
#[derive(Clone, Debug)]
pub(crate) struct Gate {
    after: u32,
    barrier: Arc<Barrier>,
}

/// A gate, and the barrier to wait at twice: until the engine stands before it, and to let it
/// pass.
pub(crate) fn gate(after: u32) -> (Box<Gate>, Arc<Barrier>) {
    let barrier = Arc::new(Barrier::new(2));
    (Box::new(Gate { after, barrier: Arc::clone(&barrier) }), barrier)
}

impl TokenConstraint for Gate {
    fn allow(&mut self, allowed: &mut [u32]) {
        allowed.fill(!0);
        if self.after == 0 {
            self.barrier.wait();
            self.barrier.wait();
        }
        self.after = self.after.wrapping_sub(1);
    }

    fn advance(&mut self, _token: Token) {}

    fn rollback(&mut self, _tokens: usize) {}

    fn duplicate(&self) -> Box<dyn TokenConstraint> {
        Box::new(self.clone())
    }
}
