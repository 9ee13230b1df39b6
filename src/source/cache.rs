//! The directory where fetched files are kept.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, Read, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::SourceError;

/// How many bytes are read or written between two reports of progress.
const PIECE: usize = 1 << 20;

/// The cache.
///
/// ```text
/// files/SHA256/NAME                      files with a pinned hash, wherever they came from
/// hub/OWNER--NAME/REVISION.commit        the commit that a revision stood for
/// hub/OWNER--NAME/COMMIT/FILE            files of a hub repository
/// pypi/PACKAGE-VERSION/FILE              files out of wheels
/// executables/HASH.pjrt                  what a backend compiled; the backend looks after it
/// kernels/                               attention kernels; likewise
/// ```
///
/// A file that is there is whole. Beside it there may be `FILE.part`, as far as it has come, and
/// `FILE.lock`, which whoever fetches it holds; locks go with their process.
#[derive(Debug, Clone)]
pub(crate) struct Cache {
    root: PathBuf,
}

/// A file on its way into the cache. Holds the lock on it.
#[derive(Debug)]
pub(crate) struct Incoming {
    target: PathBuf,
    part: PathBuf,
    _lock: File,
}

/// What [`Cache::claim`] found.
#[derive(Debug)]
pub(crate) enum Claim {
    /// The file is in the cache.
    Present,
    /// It is not, and this process is the one to fetch it.
    Mine(Incoming),
}

impl Cache {
    /// The cache in `directory`, or in the usual place.
    pub(crate) fn open(directory: Option<&Path>) -> Result<Self, SourceError> {
        let from = |variable: &str| std::env::var_os(variable).filter(|value| !value.is_empty());
        let root = directory
            .map(Path::to_owned)
            .or_else(|| from("UNDERSTORY_CACHE").map(PathBuf::from))
            .or_else(|| from("XDG_CACHE_HOME").map(|home| Path::new(&home).join("understory")))
            .or_else(|| from("HOME").map(|home| Path::new(&home).join(".cache/understory")))
            .or_else(|| from("LOCALAPPDATA").map(|home| Path::new(&home).join("understory")))
            .ok_or(SourceError::NoCacheDirectory)?;
        Ok(Self { root })
    }

    /// A place in the cache, whether or not something is there. The parts of the path have been
    /// checked: they stay below the cache.
    pub(crate) fn path(&self, below: &str) -> PathBuf {
        self.root.join(below)
    }

    /// Waits until nobody else fetches the file, and then claims it unless it is there.
    pub(crate) fn claim(&self, target: &Path) -> Result<Claim, SourceError> {
        if target.is_file() {
            return Ok(Claim::Present);
        }
        let lock_path = beside(target, "lock");
        let directory = target.parent().unwrap_or(&self.root);
        fs::create_dir_all(directory).map_err(|error| failed(directory, error))?;
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&lock_path)
            .and_then(|lock| lock.lock().map(|()| lock))
            .map_err(|error| failed(&lock_path, error))?;
        if target.is_file() {
            return Ok(Claim::Present);
        }
        Ok(Claim::Mine(Incoming {
            target: target.to_owned(),
            part: beside(target, "part"),
            _lock: lock,
        }))
    }

    /// A directory for passing use inside the cache, on the same file system as its files.
    pub(crate) fn scratch(&self) -> Result<tempfile::TempDir, SourceError> {
        fs::create_dir_all(&self.root).map_err(|error| failed(&self.root, error))?;
        tempfile::Builder::new()
            .prefix("fetch-")
            .tempdir_in(&self.root)
            .map_err(|error| failed(&self.root, error))
    }
}

impl Incoming {
    /// How many bytes an earlier attempt has left.
    pub(crate) fn length(&self) -> u64 {
        fs::metadata(&self.part).map_or(0, |metadata| metadata.len())
    }

    /// Appends to what is there.
    pub(crate) fn append(&self, bytes: &[u8]) -> Result<(), SourceError> {
        OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.part)
            .and_then(|mut part| part.write_all(bytes))
            .map_err(|error| failed(&self.part, error))
    }

    /// Appends all that `reader` gives.
    pub(crate) fn append_all(&self, reader: &mut impl Read) -> Result<(), SourceError> {
        OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.part)
            .and_then(|mut part| io::copy(reader, &mut part))
            .map(drop)
            .map_err(|error| failed(&self.part, error))
    }

    /// Replaces what is there by all that `reader` gives, and tells how far it has come.
    pub(crate) fn fill(
        &self,
        reader: &mut impl Read,
        mut report: impl FnMut(u64),
    ) -> Result<(), SourceError> {
        let mut copy = || -> io::Result<()> {
            let mut part = File::create(&self.part)?;
            let (mut piece, mut done) = (vec![0; PIECE], 0);
            loop {
                let count = reader.read(&mut piece)?;
                if count == 0 {
                    return Ok(());
                }
                part.write_all(&piece[..count])?;
                done += count as u64;
                report(done);
            }
        };
        copy().map_err(|error| failed(&self.part, error))
    }

    /// Forgets what is there.
    pub(crate) fn discard(&self) -> Result<(), SourceError> {
        match fs::remove_file(&self.part) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(&self.part, error)),
            _ => Ok(()),
        }
    }

    /// Puts the file in its place if it has the hash that is expected, and otherwise removes it.
    pub(crate) fn accept(self, expected: Option<&str>) -> Result<PathBuf, SourceError> {
        // An empty file may not exist yet; and the name must not outlive a crash that the
        // contents don't.
        OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.part)
            .and_then(|part| part.sync_all())
            .map_err(|error| failed(&self.part, error))?;
        if let Some(expected) = expected {
            let found = sha256(&self.part)?;
            if !found.eq_ignore_ascii_case(expected) {
                self.discard()?;
                return Err(SourceError::HashMismatch {
                    file: self.target.display().to_string(),
                    expected: expected.to_owned(),
                    found,
                });
            }
        }
        fs::rename(&self.part, &self.target).map_err(|error| failed(&self.target, error))?;
        Ok(self.target)
    }
}

/// SHA-256 of a file, in lower-case hexadecimal.
pub(crate) fn sha256(path: &Path) -> Result<String, SourceError> {
    let hash = || -> io::Result<String> {
        let mut reader = BufReader::with_capacity(PIECE, File::open(path)?);
        let mut hash = Sha256::new();
        io::copy(&mut reader, &mut hash)?;
        Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
    };
    hash().map_err(|error| failed(path, error))
}

/// An error of the file system about a path.
pub(crate) fn failed(path: &Path, source: io::Error) -> SourceError {
    SourceError::Io { path: path.to_owned(), source }
}

fn beside(target: &Path, extension: &str) -> PathBuf {
    let mut name = target.as_os_str().to_owned();
    name.push(".");
    name.push(extension);
    PathBuf::from(name)
}
