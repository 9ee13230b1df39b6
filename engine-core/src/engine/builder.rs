//! From a model and a backend to a running engine.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use parking_lot::Mutex;
use radix_cache::Token;

use super::command::Queue;
use super::constraints::Constraints;
use super::driver::Driver;
use super::facts::ModelFacts;
use super::fit::{FitEstimate, Plan};
use super::handle::{Engine, Inner};
use super::intake::Intake;
use super::options::EngineOptions;
use super::recorder::Recorded;
use super::shared::Shared;
use super::threads::Threads;
use super::workers::Workers;
use crate::backend::{Backend, Progress};
use crate::error::EngineError;
use crate::fence::fence;
use crate::model::{GenerationDefaults, LoadedModel, Program, open_model};
use crate::request::SamplingParams;
use crate::schedule::Scheduler;
use crate::text::{ChatTemplate, Tokenizer};
use crate::weights::Weights;

/// Threads that tokenize what is submitted asynchronously.
const MOST_TOKENIZERS: usize = 2;
/// Of programs that don't say.
const DEFAULT_CONTEXT: usize = 2048;

/// Sets up an engine: either from a model's files ([`load`](Self::load)), or from a program of
/// one's own ([`build`](Self::build)), in which case tokenizer, chat template and end tokens are
/// given here, or left out for an engine that deals in tokens only.
#[derive(Debug, Default)]
pub struct EngineBuilder {
    options: EngineOptions,
    tokenizer: Option<Tokenizer>,
    chat_template: Option<ChatTemplate>,
    end_tokens: Vec<Token>,
    context_length: Option<usize>,
    source: Option<String>,
    recommended: SamplingParams,
}

impl EngineBuilder {
    /// How the engine is set up.
    #[must_use]
    pub fn options(mut self, options: EngineOptions) -> Self {
        self.options = options;
        self
    }

    /// Turns text into tokens and back. Replaces the model's own.
    #[must_use]
    pub fn tokenizer(mut self, tokenizer: Tokenizer) -> Self {
        self.tokenizer = Some(tokenizer);
        self
    }

    /// Turns conversations into text. Replaces the model's own.
    #[must_use]
    pub fn chat_template(mut self, template: ChatTemplate) -> Self {
        self.chat_template = Some(template);
        self
    }

    /// Tokens that end an answer, beside the model's own.
    #[must_use]
    pub fn end_tokens(mut self, tokens: impl IntoIterator<Item = Token>) -> Self {
        self.end_tokens.extend(tokens);
        self
    }

    /// The context that the model was made for, in tokens. Read from the model's files where
    /// there are any; 2048 otherwise.
    #[must_use]
    pub fn model_context(mut self, tokens: usize) -> Self {
        self.context_length = Some(tokens);
        self
    }

    /// How the model was named, before the name became a path: for
    /// [`Engine::model`](Engine::model) alone.
    #[must_use]
    pub fn source(mut self, source: impl Into<String>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Opens the model at `path` (a Hugging Face directory or a GGUF file) and starts it.
    ///
    /// # Errors
    ///
    /// [`EngineError`], which says which file or option is at fault.
    pub fn load(
        self,
        path: impl AsRef<Path>,
        backend: &dyn Backend,
        progress: &mut dyn Progress,
    ) -> Result<Engine, EngineError> {
        self.load_model(&open_model(path.as_ref())?, backend, progress)
    }

    /// Starts a model that was opened before.
    ///
    /// # Errors
    ///
    /// As [`load`](Self::load).
    pub fn load_model(
        mut self,
        model: &LoadedModel,
        backend: &dyn Backend,
        progress: &mut dyn Progress,
    ) -> Result<Engine, EngineError> {
        let tokenizer = Tokenizer::from_model(&model.files, model.config.vocab_size)?;
        let template = ChatTemplate::from_model(&model.files, tokenizer.special_tokens())?;
        self.end_tokens.extend(&model.generation.eos_tokens);
        self.end_tokens.extend(&tokenizer.special_tokens().eos);
        // A model with ids that it can't sample ends at the others.
        self.end_tokens.retain(|&token| (token as usize) < model.config.vocab_size);
        self.end_tokens.sort_unstable();
        self.end_tokens.dedup();
        self.tokenizer.get_or_insert(tokenizer);
        self.chat_template = self.chat_template.or(template);
        let context = *self.context_length.get_or_insert(model.config.context_length);
        let context = self.options.context_length.unwrap_or(context);
        self.recommended = recommended(&model.generation);
        let (program, weights) = (model.program_for(context)?, model.weights.as_ref());
        self.start(program, weights, Some(model), backend, progress)
    }

    /// What the engine of [`load_model`](Self::load_model) would take and hold. Loads nothing.
    ///
    /// # Errors
    ///
    /// As [`load_model`](Self::load_model), as far as it is known without loading.
    pub fn estimate(
        &self,
        model: &LoadedModel,
        backend: &dyn Backend,
    ) -> Result<FitEstimate, EngineError> {
        let context = self.context_length.unwrap_or(model.config.context_length);
        let program = &model.program_for(self.options.context_length.unwrap_or(context))?;
        let weights = model.weights.as_ref();
        let plan = Plan::new(&self.options, program, weights, context, backend)?;
        FitEstimate::new(plan, program, weights, backend)
    }

    /// Compiles a program and starts it.
    ///
    /// # Errors
    ///
    /// [`EngineError`]: what the backend says, options that make no sense, or too little memory
    /// for a single page of KV.
    pub fn build(
        self,
        program: Program,
        weights: &dyn Weights,
        backend: &dyn Backend,
        progress: &mut dyn Progress,
    ) -> Result<Engine, EngineError> {
        self.start(program, weights, None, backend, progress)
    }

    fn start(
        self,
        program: Program,
        weights: &dyn Weights,
        model: Option<&LoadedModel>,
        backend: &dyn Backend,
        progress: &mut dyn Progress,
    ) -> Result<Engine, EngineError> {
        let options = &self.options;
        let context = self.context_length.unwrap_or(DEFAULT_CONTEXT);
        let facts = ModelFacts::new(&program, weights, model, self.source, context);
        let plan = Plan::new(options, &program, weights, context, backend)?;
        let Plan { limits, config, compile, .. } = plan;
        let description = backend.capabilities().description;
        tracing::info!(?limits, backend = description, "engine limits");
        for warning in &limits.warnings {
            tracing::warn!("{warning}");
        }
        let vocab_size = program.vocab_size();
        let mut executor = backend.compile(&[program], weights, &compile)?;
        let mut progress = FencedProgress { progress, panicked: None };
        executor.warm_up(&mut progress)?;
        if let Some(reason) = progress.panicked {
            return Err(EngineError::Progress { reason });
        }
        let footprint = executor.footprint();
        let scheduler = Scheduler::new(config.clone())?;
        let recorded = Recorded::new(scheduler, options.record_inputs.as_deref());
        let scheduler = recorded.map_err(|error| EngineError::Option {
            option: "record_inputs",
            reason: error.to_string(),
        })?;

        let queue = Queue::new(options.max_queued_requests);
        let shared = Arc::new(Shared::new(queue, limits.max_running_requests));
        let tokenizers = Workers::new("understory-intake", MOST_TOKENIZERS);
        let masks = Workers::new("understory-masks", most_mask_threads());
        let constraints = Constraints::new(vocab_size, masks.clone());
        let driver = Driver::new(scheduler, executor, Arc::clone(&shared), constraints, options);
        let workers = [tokenizers.clone(), masks];
        let threads = Threads::start(driver, &shared, workers, options.overlap)?;
        let intake = Intake {
            clock: shared.clock,
            config,
            vocab_size,
            embeds: compile.hidden,
            tokenizer: self.tokenizer,
            chat_template: self.chat_template,
            end_tokens: self.end_tokens,
            recommended: self.recommended,
        };
        Ok(Engine::new(Inner {
            shared,
            intake,
            limits,
            footprint,
            facts,
            tokenizers,
            next_request: AtomicU64::new(0),
            threads: Mutex::new(Some(threads)),
        }))
    }
}

/// Half of the processors, at least one and at most four: what they compute takes turns with what
/// the device does, which may be on the same processors.
fn most_mask_threads() -> usize {
    std::thread::available_parallelism().map_or(1, |all| (all.get() / 2).clamp(1, 4))
}

/// The caller's progress report, until it panics.
struct FencedProgress<'a> {
    progress: &'a mut dyn Progress,
    panicked: Option<String>,
}

impl Progress for FencedProgress<'_> {
    fn update(&mut self, what: &str, done: u64, total: u64) {
        if self.panicked.is_none() {
            self.panicked = fence(|| self.progress.update(what, done, total)).err();
        }
    }
}

fn recommended(generation: &GenerationDefaults) -> SamplingParams {
    let mut sampling = SamplingParams::default();
    let is_greedy = generation.do_sample == Some(false);
    let temperature = if is_greedy { Some(0.0) } else { generation.temperature };
    set(&mut sampling.temperature, temperature);
    let top_k = generation.top_k.map(|top_k| u32::try_from(top_k).unwrap_or(u32::MAX));
    set(&mut sampling.top_k, top_k);
    set(&mut sampling.top_p, generation.top_p);
    set(&mut sampling.min_p, generation.min_p);
    set(&mut sampling.repetition_penalty, generation.repetition_penalty);
    sampling
}

fn set<T>(field: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *field = value;
    }
}
