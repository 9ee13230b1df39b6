//! The files of a model. They come from elsewhere, so what isn't a file in the usual sense, or is
//! absurdly large, is refused before it is opened: reading a pipe would wait for ever.

use std::fs;
use std::io;
use std::path::Path;

/// Bytes of the largest text file of a model that is read; vocabularies take up to 40 MB.
const MAX_TEXT: u64 = 256 << 20;

/// Reads a text file.
///
/// # Errors
///
/// Those of the system, [`io::ErrorKind::InvalidInput`] for what is not a regular file,
/// [`io::ErrorKind::FileTooLarge`], and [`io::ErrorKind::InvalidData`] for what is not UTF-8.
pub(crate) fn read_text(path: &Path) -> io::Result<String> {
    if regular_len(path)? > MAX_TEXT {
        let reason = format!("a text file of more than {MAX_TEXT} bytes");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, reason));
    }
    fs::read_to_string(path)
}

/// The length of a regular file, or a link to one.
///
/// # Errors
///
/// Those of the system, and [`io::ErrorKind::InvalidInput`] for anything else.
pub(crate) fn regular_len(path: &Path) -> io::Result<u64> {
    let found = fs::metadata(path)?;
    if found.is_file() {
        return Ok(found.len());
    }
    Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_regular_file_or_too_large_is_refused_before_it_is_read() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let error = read_text(directory.path()).expect_err("a directory");
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        // Reading it would never end.
        if cfg!(unix) {
            let error = read_text(Path::new("/dev/zero")).expect_err("a device");
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        }
        let path = directory.path().join("large.json");
        let file = fs::File::create(&path).expect("writable");
        file.set_len(MAX_TEXT + 1).expect("sparse");
        assert_eq!(read_text(&path).expect_err("large").kind(), io::ErrorKind::FileTooLarge);
        fs::write(&path, "{}").expect("writable");
        assert_eq!(read_text(&path).expect("a file"), "{}");
        let absent = read_text(&directory.path().join("absent")).expect_err("absent");
        assert_eq!(absent.kind(), io::ErrorKind::NotFound);
    }
}
