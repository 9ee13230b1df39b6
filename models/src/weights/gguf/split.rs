//! A model in several GGUF files, as `gguf-split` writes: `NAME-00001-of-00003.gguf` and so on.
//!
//! Each part is a GGUF file with tensors of its own, its number (`split.no`, from 0), how many parts
//! there are (`split.count`) and how many tensors all hold together (`split.tensors.count`). The
//! first has the model's metadata besides.

use std::{io, path::Path};

use super::{GgufError, Metadata, Part, reader::Header};
use crate::weights::WeightFileError;

const COUNT_KEY: &str = "split.count";
const NUMBER_KEY: &str = "split.no";
const TENSORS_KEY: &str = "split.tensors.count";

/// How many files the model is in; 1 unless the file says more.
pub(super) fn part_count(metadata: &Metadata) -> Result<u64, GgufError> {
    Ok(metadata.unsigned(COUNT_KEY)?.unwrap_or(1).max(1))
}

/// All parts of the model of which `opened`, the file at `path`, is one of `count`, in order.
pub(super) fn all_parts(
    path: &Path,
    opened: (Part, Header),
    count: u64,
) -> Result<Vec<(Part, Header)>, WeightFileError> {
    let malformed = |path: &Path, source| WeightFileError::Gguf { path: path.to_owned(), source };
    let name = path.file_name().and_then(|name| name.to_str()).and_then(PartName::parse);
    let name = name
        .filter(|name| name.count == count)
        .ok_or_else(|| malformed(path, GgufError::SplitName { parts: count }))?;
    let mut opened = Some(opened);
    let mut parts = Vec::new();
    let mut tensors = 0;
    for number in 0..count {
        let part_path = path.with_file_name(name.of_part(number));
        let (part, header) = match opened.take_if(|_| name.number == number) {
            Some(opened) => opened,
            None => Part::open(&part_path).map_err(|error| missing(error, number, count))?,
        };
        let metadata = &header.metadata;
        let fault = |key, expected, found| {
            malformed(&part_path, GgufError::SplitMismatch { key, expected, found })
        };
        for (key, expected) in [(COUNT_KEY, count), (NUMBER_KEY, number)] {
            let found = metadata.required(key, Metadata::unsigned);
            let found = found.map_err(|source| malformed(&part_path, source))?;
            if found != expected {
                return Err(fault(key, expected, found));
            }
        }
        tensors += header.tensors.len() as u64;
        if number + 1 == count {
            let expected = metadata.unsigned(TENSORS_KEY);
            let expected = expected.map_err(|source| malformed(&part_path, source))?;
            if let Some(expected) = expected.filter(|expected| *expected != tensors) {
                return Err(fault(TENSORS_KEY, expected, tensors));
            }
        }
        parts.push((part, header));
    }
    Ok(parts)
}

/// Says of a file that isn't there which part is missing.
fn missing(error: WeightFileError, number: u64, parts: u64) -> WeightFileError {
    match error {
        WeightFileError::Io { path, source } if source.kind() == io::ErrorKind::NotFound => {
            WeightFileError::MissingPart { path, number: number + 1, parts }
        }
        other => other,
    }
}

/// A part's file name.
#[derive(Debug, PartialEq)]
pub(super) struct PartName {
    prefix: String,
    /// From 0.
    number: u64,
    count: u64,
}

impl PartName {
    /// Takes `PREFIX-00001-of-00003.gguf` apart.
    pub(super) fn parse(name: &str) -> Option<Self> {
        let digits = |digits: &str| match digits.len() {
            5 if digits.bytes().all(|byte| byte.is_ascii_digit()) => digits.parse::<u64>().ok(),
            _ => None,
        };
        let (rest, count) = name.strip_suffix(".gguf")?.rsplit_once("-of-")?;
        let (prefix, number) = rest.rsplit_once('-')?;
        let number = digits(number)?.checked_sub(1)?;
        Some(Self { prefix: prefix.to_owned(), number, count: digits(count)? })
            .filter(|name| name.number < name.count)
    }

    pub(super) fn all(&self) -> Vec<String> {
        (0..self.count).map(|number| self.of_part(number)).collect()
    }

    fn of_part(&self, number: u64) -> String {
        format!("{}-{:05}-of-{:05}.gguf", self.prefix, number + 1, self.count)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::weights::{Format, GgufFile, GgufWriter, Shape, Tensor, Value};

    fn part(number: u16, count: u16, tensors: i32, name: &str) -> Vec<u8> {
        let values = [f32::from(number), 2.0];
        let tensor = Tensor::from_f32(Format::F32, Shape::Vector(2), &values).expect("valid");
        GgufWriter::new()
            .metadata("part", Value::U16(number))
            .metadata(NUMBER_KEY, Value::U16(number))
            .metadata(COUNT_KEY, Value::U16(count))
            .metadata(TENSORS_KEY, Value::I32(tensors))
            .tensor(name, &tensor)
            .finish()
    }

    /// Three parts `m-0000?-of-00003.gguf`; `change` has the last word.
    fn directory(change: impl Fn(&mut Vec<(u16, Vec<u8>)>)) -> tempfile::TempDir {
        let directory = tempfile::tempdir().expect("temporary directory");
        let mut parts =
            (0..3).map(|number| (number, part(number, 3, 3, &format!("t{number}")))).collect();
        change(&mut parts);
        for (number, bytes) in parts {
            let name = format!("m-{:05}-of-00003.gguf", number + 1);
            fs::write(directory.path().join(name), bytes).expect("writable");
        }
        directory
    }

    fn open(directory: &tempfile::TempDir, name: &str) -> Result<GgufFile, WeightFileError> {
        GgufFile::open(&directory.path().join(name))
    }

    #[test]
    fn any_part_opens_the_whole_model() {
        let directory = directory(|_| {});
        for name in ["m-00001-of-00003.gguf", "m-00003-of-00003.gguf"] {
            let file = open(&directory, name).expect("all parts are there");
            assert_eq!(file.metadata().unsigned("part"), Ok(Some(0)), "the first has the metadata");
            for number in 0..3 {
                let tensor = file.tensor(&format!("t{number}")).expect("in one of the parts");
                assert_eq!(tensor.to_f32(), [number as f32, 2.0]);
            }
            assert_eq!(file.tensor_names().count(), 3);
            assert_eq!(
                file.byte_len(),
                file.paths().map(|path| fs::metadata(path).expect("there").len()).sum::<u64>()
            );
        }
    }

    #[test]
    fn a_missing_part_is_named() {
        let directory = directory(|parts| drop(parts.remove(1)));
        let error = open(&directory, "m-00001-of-00003.gguf").expect_err("two parts of three");
        assert!(
            matches!(&error, WeightFileError::MissingPart { path, number: 2, parts: 3 }
                if path.ends_with("m-00002-of-00003.gguf")),
            "{error}"
        );
        assert!(error.to_string().contains("m-00002-of-00003.gguf"));
    }

    #[test]
    fn parts_that_do_not_fit_together_are_refused() {
        let fault = |directory: &tempfile::TempDir| match open(directory, "m-00001-of-00003.gguf")
            .expect_err("a wrong part")
        {
            WeightFileError::Gguf { source, .. } => source,
            other => panic!("{other}"),
        };
        let wrong_count = directory(|parts| parts[2].1 = part(2, 4, 3, "t2"));
        assert_eq!(
            fault(&wrong_count),
            GgufError::SplitMismatch { key: COUNT_KEY, expected: 3, found: 4 }
        );
        let wrong_number = directory(|parts| parts[1].1 = part(2, 3, 3, "t1"));
        assert_eq!(
            fault(&wrong_number),
            GgufError::SplitMismatch { key: NUMBER_KEY, expected: 1, found: 2 }
        );
        let wrong_tensors = directory(|parts| parts[2].1 = part(2, 3, 5, "t2"));
        assert_eq!(
            fault(&wrong_tensors),
            GgufError::SplitMismatch { key: TENSORS_KEY, expected: 5, found: 3 }
        );
        let twice = directory(|parts| parts[2].1 = part(2, 3, 3, "t1"));
        assert_eq!(fault(&twice), GgufError::DuplicateTensor { name: "t1".into() });
        let no_keys = directory(|parts| parts[1].1 = GgufWriter::new().finish());
        assert_eq!(fault(&no_keys), GgufError::MissingKey { key: COUNT_KEY.into() });
    }

    #[test]
    fn a_part_under_another_name_or_alone_in_memory_is_refused() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let bytes = part(0, 3, 3, "t0");
        for name in ["m.gguf", "m-00001-of-00004.gguf", "m-1-of-3.gguf", "m-00004-of-00003.gguf"] {
            fs::write(directory.path().join(name), &bytes).expect("writable");
            let error = open(&directory, name).expect_err("not a part's name");
            assert!(
                matches!(
                    error,
                    WeightFileError::Gguf { source: GgufError::SplitName { parts: 3 }, .. }
                ),
                "{name}: {error}"
            );
        }
        let error = GgufFile::from_bytes(bytes).expect_err("a part alone");
        assert!(matches!(
            error,
            WeightFileError::Gguf { source: GgufError::SplitName { parts: 3 }, .. }
        ));
    }
}
