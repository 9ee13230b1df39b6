//! API keys and whom they belong to.

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};

use sha2::{Digest, Sha256};

/// The keys that a server takes. Clones share them. Hashes are kept, not keys.
#[derive(Clone, Default)]
pub struct Keys {
    file: Option<PathBuf>,
    /// Given by themselves, not in the file.
    given: Vec<Key>,
    /// `None` until a key or a file is given: then everybody may ask.
    current: Arc<RwLock<Option<Vec<Key>>>>,
}

#[derive(Clone, PartialEq, Eq)]
struct Key {
    hash: [u8; 32],
    tenant: Option<String>,
}

/// Why keys can't be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeysError {
    /// The file can't be read.
    #[error("cannot read the API keys in {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A line is neither a key nor a key and a tenant.
    #[error("line {line} of {} must be a key, or a key and the name of a tenant", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
    },
    /// A key without characters.
    #[error("an API key is empty")]
    Empty,
}

impl Keys {
    /// These keys, and those in a file: a line for each, `KEY` or `KEY TENANT`. Only requests of one tenant share
    /// cached prefixes. Empty lines, and those that begin with `#`, are skipped.
    ///
    /// # Errors
    ///
    /// [`KeysError`].
    pub fn new(keys: &[String], file: Option<PathBuf>) -> Result<Self, KeysError> {
        if keys.iter().any(|key| key.trim().is_empty()) {
            return Err(KeysError::Empty);
        }
        let given = keys.iter().map(|key| Key::new(key.trim(), None)).collect();
        let keys = Self { file, given, current: Arc::default() };
        if !keys.given.is_empty() || keys.file.is_some() {
            keys.reload()?;
        }
        Ok(keys)
    }

    /// Reads the file again.
    ///
    /// # Errors
    ///
    /// [`KeysError`]; the keys stay as they were then.
    pub fn reload(&self) -> Result<(), KeysError> {
        let mut all = self.given.clone();
        if let Some(path) = &self.file {
            let text = std::fs::read_to_string(path);
            let text = text.map_err(|source| KeysError::Read { path: path.clone(), source })?;
            for (line, words) in text.lines().map(str::split_whitespace).enumerate() {
                let words: Vec<&str> = words.collect();
                match words[..] {
                    [] => {}
                    [first, ..] if first.starts_with('#') => {}
                    [key] => all.push(Key::new(key, None)),
                    [key, tenant] => all.push(Key::new(key, Some(tenant))),
                    _ => return Err(KeysError::Line { path: path.clone(), line: line + 1 }),
                }
            }
        } else if all.is_empty() {
            return Ok(());
        }
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Some(all);
        Ok(())
    }

    /// The tenant of a key, if it has one; `None` if the key is missing or wrong. Takes as long for one as for any.
    pub(crate) fn admit(&self, key: Option<&[u8]>) -> Option<Option<String>> {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        let Some(keys) = &*current else { return Some(None) };
        let hash: [u8; 32] = Sha256::digest(key?).into();
        let mut found = None;
        for key in keys {
            let difference =
                key.hash.iter().zip(&hash).fold(0, |all, (own, sent)| all | (own ^ sent));
            if std::hint::black_box(difference) == 0 {
                found = Some(key.tenant.clone());
            }
        }
        found
    }
}

impl Key {
    fn new(key: &str, tenant: Option<&str>) -> Self {
        Self { hash: Sha256::digest(key.as_bytes()).into(), tenant: tenant.map(str::to_owned) }
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Keys").field("file", &self.file).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_keys_everybody_may_ask() {
        let keys = Keys::new(&[], None).unwrap();
        assert_eq!(keys.admit(None), Some(None));
        assert_eq!(keys.admit(Some(b"")), Some(None));
        keys.reload().unwrap();
        assert_eq!(keys.admit(None), Some(None));
    }

    #[test]
    fn a_key_admits_its_tenant_and_no_other_key_does() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("keys");
        std::fs::write(&path, "# ours\nfirst alice\n\nsecond\n").unwrap();
        let keys = Keys::new(&["third".to_owned()], Some(path.clone())).unwrap();
        assert_eq!(keys.admit(Some(b"first")), Some(Some("alice".to_owned())));
        assert_eq!(keys.admit(Some(b"second")), Some(None));
        assert_eq!(keys.admit(Some(b"third")), Some(None));
        assert_eq!(keys.admit(Some(b"firs")), None);
        assert_eq!(keys.admit(None), None);

        std::fs::write(&path, "fourth bob\n").unwrap();
        keys.reload().unwrap();
        assert_eq!(keys.admit(Some(b"first")), None);
        assert_eq!(keys.admit(Some(b"fourth")), Some(Some("bob".to_owned())));

        std::fs::write(&path, "a b c\n").unwrap();
        assert!(matches!(keys.reload(), Err(KeysError::Line { line: 1, .. })));
        assert_eq!(keys.admit(Some(b"fourth")), Some(Some("bob".to_owned())));
    }

    #[test]
    fn an_empty_file_admits_nobody() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let keys = Keys::new(&[], Some(file.path().to_owned())).unwrap();
        assert_eq!(keys.admit(None), None);
        assert_eq!(keys.admit(Some(b"")), None);
        assert!(!format!("{keys:?}").contains("hash"));
    }
}
