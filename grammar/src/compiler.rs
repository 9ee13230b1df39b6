//! From a stated grammar to constraints.

use std::fmt;
use std::sync::Arc;
use std::thread;

use engine_core::Token;
use engine_core::text::Tokenizer;
use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::InferenceCapabilities;
use llguidance::{Matcher, ParserFactory};
use parking_lot::Mutex;

use crate::constraint::GrammarConstraint;
use crate::error::GrammarError;
use crate::options::GrammarOptions;
use crate::spec::GrammarSpec;
use crate::vocabulary::token_environment;

/// Grammars nest, and the compiler recurses. Memory is taken only as far as it is used.
const STACK: usize = 256 << 20;

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
}

/// A compiled grammar: as many constraints as there are samples.
#[derive(Clone)]
pub struct Grammar {
    inner: Arc<Compiled>,
}

struct Compiled {
    /// At the beginning, with its first mask computed.
    matcher: Mutex<Matcher>,
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
        let shared = Shared { factory, eos, options, cached: Mutex::default() };
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
        let build = || self.build(spec.lower(options)?);
        let grammar = thread::scope(|scope| {
            let name = "understory-grammar".to_owned();
            let thread = thread::Builder::new().name(name).stack_size(STACK);
            let failed = |reason: &str| GrammarError::TooComplex { reason: reason.to_owned() };
            let built = thread.spawn_scoped(scope, build);
            built
                .map_err(|_| failed("no thread to compile it"))?
                .join()
                .unwrap_or_else(|_| Err(failed("its compiler gave up")))
        })?;
        let mut cached = self.shared.cached.lock();
        if options.cached_grammars > 0 {
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

    fn build(&self, grammar: TopLevelGrammar) -> Result<Grammar, GrammarError> {
        let of_compiler = |error: String| GrammarError::of_compiler(&error);
        let parser = self.shared.factory.create_parser(grammar);
        let mut matcher = Matcher::new(parser);
        if let Some(error) = matcher.get_error() {
            return Err(of_compiler(error));
        }
        // A grammar without a first token is refused here, not in the middle of an answer; and
        // every sample's lexer starts with what this has found out.
        matcher.compute_ff_tokens();
        matcher.compute_mask_or_eos().map_err(|error| of_compiler(error.to_string()))?;
        let eos = self.shared.eos.clone();
        Ok(Grammar { inner: Arc::new(Compiled { matcher: Mutex::new(matcher), eos }) })
    }
}

impl Grammar {
    /// A constraint at the beginning of the grammar, for one request.
    #[must_use]
    pub fn constraint(&self) -> GrammarConstraint {
        let matcher = self.inner.matcher.lock().deep_clone();
        GrammarConstraint::new(matcher, self.inner.eos.clone())
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
