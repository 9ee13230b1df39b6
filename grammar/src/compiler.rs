//! From a stated grammar to constraints.

use std::fmt;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use engine_core::Token;
use engine_core::text::Tokenizer;
use llguidance::toktrie::InferenceCapabilities;
use llguidance::{Matcher, ParserFactory};
use parking_lot::{Condvar, Mutex};

use crate::constraint::GrammarConstraint;
use crate::error::GrammarError;
use crate::options::GrammarOptions;
use crate::spec::GrammarSpec;
use crate::vocabulary::token_environment;

/// Grammars nest, and the compiler recurses. Memory is taken only as far as it is used.
const STACK: usize = 256 << 20;

/// Grammars that are compiled at once.
const AT_ONCE: usize = 2;

/// Compiles grammars for one vocabulary. Cheap to clone; clones share the trie of the vocabulary
/// and the grammars that were compiled before.
#[derive(Clone)]
pub struct GrammarCompiler {
    shared: Arc<Shared>,
}

struct Shared {
    factory: ParserFactory,
    eos: Vec<Token>,
    options: GrammarOptions,
    /// The last used is the last.
    cached: Mutex<Vec<(String, Grammar)>>,
    /// Grammars that are being compiled.
    compiling: Mutex<usize>,
    compiled: Condvar,
}

/// A compiled grammar: as many constraints as there are samples.
#[derive(Clone)]
pub struct Grammar {
    inner: Arc<Compiled>,
}

struct Compiled {
    /// At the beginning, with its first mask computed.
    matcher: Mutex<Matcher>,
    /// The tokens that every answer begins with.
    forced: Vec<Token>,
    eos: Vec<Token>,
}

impl GrammarCompiler {
    /// Builds the trie of a vocabulary, which takes some tens of milliseconds for large ones.
    ///
    /// # Errors
    ///
    /// [`GrammarError::Vocabulary`] if the tokenizer names no token that ends a text.
    pub fn new(tokenizer: &Tokenizer, options: GrammarOptions) -> Result<Self, GrammarError> {
        let unusable = |error: String| GrammarError::Vocabulary { reason: error };
        let environment = token_environment(tokenizer)?;
        let eos = environment.tok_trie().eos_tokens().to_vec();
        let capabilities = InferenceCapabilities { ff_tokens: true, ..Default::default() };
        let slices = llguidance::earley::SlicedBiasComputer::general_slices();
        let mut factory = ParserFactory::new(&environment, capabilities, &slices)
            .map_err(|error| unusable(error.to_string()))?;
        factory.quiet();
        *factory.limits_mut() = options.parser_limits();
        let shared = Shared {
            factory,
            eos,
            options,
            cached: Mutex::default(),
            compiling: Mutex::default(),
            compiled: Condvar::new(),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Compiles a grammar, or finds it compiled. Takes from microseconds to, for the largest
    /// grammars within the limits, some hundred milliseconds: an async task leaves the call to a
    /// thread that may block. An engine's threads are not involved.
    ///
    /// # Errors
    ///
    /// All kinds of [`GrammarError`] but [`Vocabulary`](GrammarError::Vocabulary).
    pub fn compile(&self, spec: &GrammarSpec) -> Result<Grammar, GrammarError> {
        let options = &self.shared.options;
        spec.check(options)?;
        let key = spec.key();
        if let Some(grammar) = self.cached(&key) {
            return Ok(grammar);
        }
        let grammar = Shared::build_in_time(&self.shared, spec.clone())?;
        let mut cached = self.shared.cached.lock();
        if options.cached_grammars > 0 {
            // Another call may have compiled the same grammar meanwhile.
            cached.retain(|(other, _)| *other != key);
            if cached.len() >= options.cached_grammars {
                cached.remove(0);
            }
            cached.push((key, grammar.clone()));
        }
        Ok(grammar)
    }

    fn cached(&self, key: &str) -> Option<Grammar> {
        let mut cached = self.shared.cached.lock();
        let place = cached.iter().position(|(other, _)| other == key)?;
        let found = cached.remove(place);
        let grammar = found.1.clone();
        cached.push(found);
        Some(grammar)
    }
}

impl Shared {
    /// Lowers and compiles on a thread of its own. A thread that doesn't end in time is left behind: it ends
    /// by the other limits, and until then counts among those that compile.
    fn build_in_time(shared: &Arc<Self>, spec: GrammarSpec) -> Result<Grammar, GrammarError> {
        let limit = shared.options.compile_time;
        let now = Instant::now();
        // A limit beyond what clocks count is none.
        let deadline = now.checked_add(limit).unwrap_or(now + Duration::from_secs(1 << 32));
        let late = || GrammarError::TooComplex { reason: format!("not compiled within {limit:?}") };
        let mut compiling = shared.compiling.lock();
        while *compiling >= AT_ONCE {
            if shared.compiled.wait_until(&mut compiling, deadline).timed_out() {
                return Err(late());
            }
        }
        *compiling += 1;
        drop(compiling);
        let place = Place(Arc::clone(shared));
        let (answer, question) = mpsc::channel();
        let thread = thread::Builder::new().name("understory-grammar".to_owned()).stack_size(STACK);
        let spawned = thread.spawn(move || {
            // Nobody listens any more, if it took too long.
            let _ = answer.send(place.0.build(&spec));
        });
        let no_thread = |_| GrammarError::TooComplex { reason: "no thread is free".to_owned() };
        spawned.map_err(no_thread)?;
        match question.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(built) => built,
            Err(mpsc::RecvTimeoutError::Timeout) => Err(late()),
            Err(mpsc::RecvTimeoutError::Disconnected) => {
                Err(GrammarError::TooComplex { reason: "its compiler gave up".to_owned() })
            }
        }
    }

    fn build(&self, spec: &GrammarSpec) -> Result<Grammar, GrammarError> {
        let of_compiler = |error: String| GrammarError::of_compiler(&error);
        let parser = self.factory.create_parser(spec.lower(&self.options)?);
        let mut matcher = Matcher::new(parser);
        if let Some(error) = matcher.get_error() {
            return Err(of_compiler(error));
        }
        // A grammar without a first token is refused here, not in the middle of an answer; and
        // every sample's lexer starts with what this has found out.
        let forced = matcher.compute_ff_tokens();
        matcher.compute_mask_or_eos().map_err(|error| of_compiler(error.to_string()))?;
        let eos = self.eos.clone();
        Ok(Grammar { inner: Arc::new(Compiled { matcher: Mutex::new(matcher), forced, eos }) })
    }
}

/// Counts among the grammars that are being compiled, until it is dropped.
struct Place(Arc<Shared>);

impl Drop for Place {
    fn drop(&mut self) {
        *self.0.compiling.lock() -= 1;
        self.0.compiled.notify_one();
    }
}

impl Grammar {
    /// A constraint at the beginning of the grammar, for one request.
    #[must_use]
    pub fn constraint(&self) -> GrammarConstraint {
        let matcher = self.inner.matcher.lock().deep_clone();
        GrammarConstraint::new(matcher, self.inner.forced.clone(), self.inner.eos.clone())
    }
}

impl fmt::Debug for GrammarCompiler {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let options = &self.shared.options;
        formatter.debug_struct("GrammarCompiler").field("options", options).finish_non_exhaustive()
    }
}

impl fmt::Debug for Grammar {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Grammar").finish_non_exhaustive()
    }
}
