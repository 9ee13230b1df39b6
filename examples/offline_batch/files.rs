//! Where requests come from and answers go, such that neither can destroy the other.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use crate::batch::AnswerLine;

/// 64 conversations in 8 groups, each group with a long system prompt of its own.
pub(crate) const BUNDLED: &str = include_str!("../data/prompts.jsonl");
/// Four short conversations, for devices that are emulated.
pub(crate) const SHORT: &str = include_str!("../data/short_prompts.jsonl");

/// Where requests come from.
pub(crate) struct Prompts {
    pub(crate) input: Box<dyn BufRead + Send>,
    /// The file behind it, if it is one.
    identity: Option<Identity>,
}

/// Where answers go: a file to which whole lines are appended.
pub(crate) struct Answers {
    file: File,
    /// The length of the lines that are whole.
    length: u64,
}

/// Why a file can't be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FileError {
    /// The requests can't be read.
    #[error("cannot open {path}")]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// There is no room for answers.
    #[error("cannot create {path}")]
    Create {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Answers would take the place of the requests.
    #[error("--out {path} is the file that the requests are read from")]
    SameFile {
        /// The file, as --out names it.
        path: PathBuf,
    },
}

impl Prompts {
    /// The bundled prompts, standard input (`-`), or a file.
    pub(crate) fn open(path: Option<&Path>, bundled: &'static str) -> Result<Self, FileError> {
        let Some(path) = path else {
            return Ok(Self { input: Box::new(bundled.as_bytes()), identity: None });
        };
        if path.as_os_str() == "-" {
            return Ok(Self {
                input: Box::new(BufReader::new(io::stdin())),
                identity: stdin_identity(),
            });
        }
        let failed = |source| FileError::Open { path: path.to_owned(), source };
        let file = File::open(path).map_err(failed)?;
        let identity = Identity::of(path, &file.metadata().map_err(failed)?);
        Ok(Self { input: Box::new(BufReader::new(file)), identity })
    }
}

impl Answers {
    /// Finds what is wrong with a place for answers, and changes nothing there.
    pub(crate) fn check(path: &Path, prompts: &Prompts) -> Result<(), FileError> {
        let failed = |source| FileError::Create { path: path.to_owned(), source };
        match path.metadata() {
            Ok(metadata) if metadata.is_dir() => Err(failed(io::Error::other("it is a directory"))),
            Ok(metadata) => differ(path, &metadata, prompts),
            Err(_) => {
                let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
                match parent.map_or(Ok(true), Path::try_exists) {
                    Ok(true) => Ok(()),
                    Ok(false) => Err(failed(io::Error::other("its directory does not exist"))),
                    Err(source) => Err(failed(source)),
                }
            }
        }
    }

    /// Creates the file. What is there is replaced, unless it is where the requests come from.
    pub(crate) fn create(path: &Path, prompts: &Prompts) -> Result<Self, FileError> {
        let failed = |source| FileError::Create { path: path.to_owned(), source };
        // Not truncated before it is known which file it is.
        let options = OpenOptions::new().write(true).create(true).truncate(false).open(path);
        let file = options.map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        differ(path, &metadata, prompts)?;
        if metadata.is_file() {
            file.set_len(0).map_err(failed)?;
        }
        Ok(Self { file, length: 0 })
    }

    /// Appends a line. If it can't be written whole, it is taken back.
    pub(crate) fn write(&mut self, answer: &AnswerLine) -> io::Result<()> {
        let mut line = serde_json::to_vec(answer)?;
        line.push(b'\n');
        if let Err(error) = self.file.write_all(&line) {
            // What is no plain file has no length.
            let _ = self.file.set_len(self.length);
            return Err(error);
        }
        self.length += line.len() as u64;
        Ok(())
    }
}

fn differ(path: &Path, metadata: &Metadata, prompts: &Prompts) -> Result<(), FileError> {
    let identity = Identity::of(path, metadata);
    if identity.is_some() && identity == prompts.identity {
        return Err(FileError::SameFile { path: path.to_owned() });
    }
    Ok(())
}

/// What tells a plain file from all others, whatever leads to it.
#[derive(Debug, PartialEq, Eq)]
#[cfg(unix)]
struct Identity {
    device: u64,
    inode: u64,
}

#[cfg(unix)]
impl Identity {
    fn of(_path: &Path, metadata: &Metadata) -> Option<Self> {
        use std::os::unix::fs::MetadataExt;
        let is_plain = metadata.is_file();
        is_plain.then(|| Self { device: metadata.dev(), inode: metadata.ino() })
    }
}

#[cfg(unix)]
fn stdin_identity() -> Option<Identity> {
    use std::os::fd::AsFd;
    let file = File::from(io::stdin().as_fd().try_clone_to_owned().ok()?);
    Identity::of(Path::new("-"), &file.metadata().ok()?)
}

#[derive(Debug, PartialEq, Eq)]
#[cfg(not(unix))]
struct Identity(PathBuf);

#[cfg(not(unix))]
impl Identity {
    fn of(path: &Path, metadata: &Metadata) -> Option<Self> {
        metadata.is_file().then(|| path.canonicalize().ok()).flatten().map(Self)
    }
}

#[cfg(not(unix))]
fn stdin_identity() -> Option<Identity> {
    None
}
