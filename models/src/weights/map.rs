//! The bytes of a file, mapped into memory: the only unsafe block of this crate.

use std::{fs::File, ops::Deref, path::Path};

use memmap2::Mmap;

use super::WeightFileError;
use crate::files::regular_len;

/// The bytes of a model file.
pub(super) enum FileBytes {
    /// Mapped: pages are read when they are touched, and shared between processes.
    Mapped(Mmap),
    /// Held in memory.
    Owned(Vec<u8>),
}

impl FileBytes {
    /// Maps the file at `path`, which must not be changed or truncated until this is dropped.
    pub(super) fn open(path: &Path) -> Result<Self, WeightFileError> {
        let failed = |source| WeightFileError::Io { path: path.to_owned(), source };
        regular_len(path).map_err(failed)?;
        let file = File::open(path).map_err(failed)?;
        // SAFETY: the map is read-only and only ever seen as bytes, for which every value is
        // valid. What the language can't rule out is another process changing the file while
        // it is mapped; model files are written once, and the documentation of everything
        // that opens one asks for this. Replacing a file by renaming is fine: the map keeps
        // the old one.
        #[allow(unsafe_code)]
        let map = unsafe { Mmap::map(&file) }.map_err(failed)?;
        Ok(FileBytes::Mapped(map))
    }
}

impl Deref for FileBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            FileBytes::Mapped(map) => map,
            FileBytes::Owned(bytes) => bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapped_file_reads_as_its_bytes() {
        let file = tempfile::NamedTempFile::new().expect("temporary file");
        std::fs::write(file.path(), b"abc").expect("writable");
        assert_eq!(&*FileBytes::open(file.path()).expect("readable"), b"abc");
    }

    #[test]
    fn an_empty_file_maps_to_no_bytes() {
        let file = tempfile::NamedTempFile::new().expect("temporary file");
        assert!(FileBytes::open(file.path()).expect("readable").is_empty());
    }

    #[test]
    fn a_missing_file_and_a_directory_are_io_errors() {
        let directory = tempfile::tempdir().expect("temporary directory");
        for path in [directory.path().to_owned(), directory.path().join("absent")] {
            let error = FileBytes::open(&path).err().expect("not a file");
            assert!(matches!(error, WeightFileError::Io { path: p, .. } if p == path));
        }
    }
}
