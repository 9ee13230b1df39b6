//! From the name of a model to an engine, in one expression.

use std::fmt;

use engine_core::backend::Progress;
use engine_core::engine::{Engine, EngineOptions, FitEstimate};
use engine_core::error::EngineError;
use engine_core::model::open_model;

use crate::source::{FetchOptions, ModelSource, SourceError};
use crate::{BackendChoice, BackendChoiceError};

/// Begins to load a model: from a text as [`ModelSource`] writes sources, or from a path.
///
/// ```no_run
/// let engine = understory::load("default").start()?;
/// # Ok::<(), understory::LoadError>(())
/// ```
///
/// Device, options and progress are given before the start:
///
/// ```no_run
/// use understory::prelude::*;
///
/// let options = EngineOptions::default().page_size(32).kv_memory(KvMemory::Bytes(1 << 30));
/// let engine = understory::load("hf:HuggingFaceTB/SmolLM2-135M-Instruct")
///     .backend("cpu:2")
///     .options(options)
///     .progress(|what: &str, done, total| println!("{what}: {done} of {total}"))
///     .start()?;
/// # Ok::<(), understory::LoadError>(())
/// ```
pub fn load<S>(source: S) -> Loader<'static>
where
    S: TryInto<ModelSource>,
    SourceError: From<S::Error>,
{
    Loader {
        source: source.try_into().map_err(SourceError::from),
        backend: Ok(BackendChoice::default()),
        options: EngineOptions::default(),
        fetch: FetchOptions::default(),
        progress: Box::new(()),
    }
}

/// A model that is about to be loaded. [`load`] makes it.
#[must_use = "nothing is loaded before `start`"]
pub struct Loader<'a> {
    source: Result<ModelSource, SourceError>,
    backend: Result<BackendChoice, BackendChoiceError>,
    options: EngineOptions,
    fetch: FetchOptions,
    progress: Box<dyn Progress + 'a>,
}

/// Why a model could not be started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// The model can't be found or fetched.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The device can't be had.
    #[error(transparent)]
    Backend(#[from] BackendChoiceError),
    /// The model can't be run there.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

impl<'a> Loader<'a> {
    /// Which device runs the model: a [`BackendChoice`], or a text as it is written. Default: this
    /// machine's processor.
    pub fn backend<B>(mut self, choice: B) -> Self
    where
        B: TryInto<BackendChoice>,
        BackendChoiceError: From<B::Error>,
    {
        self.backend = choice.try_into().map_err(BackendChoiceError::from);
        self
    }

    /// How the engine is set up.
    pub fn options(mut self, options: EngineOptions) -> Self {
        self.options = options;
        self
    }

    /// How the model and what the device needs are fetched.
    pub fn fetch(mut self, options: FetchOptions) -> Self {
        self.fetch = options;
        self
    }

    /// Told how far fetching, loading and compiling have come: a closure that takes what is done,
    /// how much of it is done and how much there is in all (0 if that is not known), or another
    /// [`Progress`].
    pub fn progress<'b>(self, progress: impl Progress + 'b) -> Loader<'b>
    where
        'a: 'b,
    {
        Loader { progress: Box::new(progress), ..self }
    }

    /// Fetches what is not on this machine yet, opens the device and starts the engine. This call
    /// blocks, for minutes if files are large and the network is slow.
    ///
    /// # Errors
    ///
    /// [`LoadError`]; [`one_line`](crate::one_line) says it with all its causes.
    pub fn start(mut self) -> Result<Engine, LoadError> {
        let progress = self.progress.as_mut();
        // What is written wrongly is found before anything is fetched.
        let (source, choice) = (self.source?, self.backend?);
        let path = source.resolve(&self.fetch, progress)?;
        let backend = choice.open(&self.fetch, progress)?;
        Ok(Engine::builder().options(self.options).load(path, backend.as_ref(), progress)?)
    }
}

impl Loader<'_> {
    /// What [`start`](Self::start) would take of the device, and what the engine would hold. Fetches
    /// as `start` does, and reads the model's headers, but loads no weights.
    ///
    /// # Errors
    ///
    /// [`LoadError`].
    pub fn estimate(mut self) -> Result<FitEstimate, LoadError> {
        let progress = self.progress.as_mut();
        let (source, choice) = (self.source?, self.backend?);
        let path = source.resolve(&self.fetch, progress)?;
        let backend = choice.open(&self.fetch, progress)?;
        let model = open_model(&path).map_err(EngineError::from)?;
        Ok(Engine::builder().options(self.options).estimate(&model, backend.as_ref())?)
    }
}

impl fmt::Debug for Loader<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { source, backend, options, fetch, progress: _ } = self;
        let mut shown = formatter.debug_struct("Loader");
        shown.field("source", source).field("backend", backend);
        shown.field("options", options).field("fetch", fetch).finish_non_exhaustive()
    }
}
