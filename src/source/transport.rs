//! What fetching needs from the outside world, so that tests can stand in for it.

use std::ops::Range;
use std::path::{Path, PathBuf};

/// A file that a hub repository has.
#[derive(Debug, Clone)]
pub(crate) struct HubFile {
    /// Its path inside the repository.
    pub(crate) path: String,
    /// Its length in bytes.
    pub(crate) size: u64,
    /// Its SHA-256 in hexadecimal. The hub states it for large files only.
    pub(crate) sha256: Option<String>,
}

/// A hub repository at one commit.
#[derive(Debug, Clone)]
pub(crate) struct HubSnapshot {
    /// The commit that the revision stood for.
    pub(crate) commit: String,
    /// All files.
    pub(crate) files: Vec<HubFile>,
}

/// A hub of model repositories. Errors are texts for people.
pub(crate) trait Hub {
    /// Looks a repository up at a revision.
    fn snapshot(&self, repository: &str, revision: &str) -> Result<HubSnapshot, String>;

    /// Reads a range of a file's bytes at a commit.
    fn read(
        &self,
        repository: &str,
        commit: &str,
        path: &str,
        range: Range<u64>,
    ) -> Result<Vec<u8>, String>;
}

/// An index of Python packages. Errors are texts for people.
pub(crate) trait Packages {
    /// Downloads the wheel of `package==version` into a directory and returns its path.
    fn download(&self, requirement: &str, directory: &Path) -> Result<PathBuf, String>;
}

/// The Hugging Face hub, or a hub that says that it was left out.
#[cfg(feature = "hub")]
pub(crate) fn default_hub() -> impl Hub {
    super::hub::HuggingFaceHub::of_environment()
}

/// The Hugging Face hub, or a hub that says that it was left out.
#[cfg(not(feature = "hub"))]
pub(crate) fn default_hub() -> impl Hub {
    LeftOut
}

#[cfg(not(feature = "hub"))]
struct LeftOut;

#[cfg(not(feature = "hub"))]
impl Hub for LeftOut {
    fn snapshot(&self, _repository: &str, _revision: &str) -> Result<HubSnapshot, String> {
        Err("this program was built without the feature \"hub\"".to_owned())
    }

    fn read(
        &self,
        repository: &str,
        commit: &str,
        _path: &str,
        _range: Range<u64>,
    ) -> Result<Vec<u8>, String> {
        self.snapshot(repository, commit).map(|_| Vec::new())
    }
}
