//! Weights of a Hugging Face directory: one safetensors file, or shards with an index.

use std::{
    collections::HashMap,
    io,
    path::{Component, Path, PathBuf},
};

use safetensors::tensor::{Dtype, Metadata};
use serde::Deserialize;

use super::{
    Format, Shape, Tensor, WeightFileError, Weights, WeightsError, map::FileBytes, quantized::Raw,
};
use crate::files::read_text;

const SINGLE_FILE: &str = "model.safetensors";
const INDEX_FILE: &str = "model.safetensors.index.json";
/// Bytes of the header's length field, the first thing in a file.
const LENGTH_BYTES: usize = 8;
/// The limit of the reference implementation, which writes no longer headers.
const MAX_HEADER_BYTES: usize = 100_000_000;

/// Weights from safetensors files, memory-mapped. Reads F32, F16 and BF16.
///
/// The files must not be changed while this lives.
#[derive(Debug)]
pub struct SafetensorsWeights {
    shards: Vec<Shard>,
    /// For each name, the shard that holds it.
    shard_of: HashMap<String, usize>,
}

impl SafetensorsWeights {
    /// Opens `model.safetensors` in `directory`, or if there is none the shards that
    /// `model.safetensors.index.json` lists.
    ///
    /// # Errors
    ///
    /// [`WeightFileError::NoWeightFiles`] if the directory has neither,
    /// [`WeightFileError::Io`] if a file can't be read,
    /// [`WeightFileError::Truncated`], [`WeightFileError::Json`] and [`WeightFileError::DataSize`] if
    /// it is malformed, and
    /// [`WeightFileError::ShardName`] and [`WeightFileError::NotInShard`] if the index is wrong.
    pub fn open(directory: &Path) -> Result<Self, WeightFileError> {
        let single = directory.join(SINGLE_FILE);
        if single.exists() {
            return Self::single(Shard::parse(single.clone(), FileBytes::open(&single)?)?);
        }
        let index = directory.join(INDEX_FILE);
        match read_text(&index) {
            Ok(json) => Self::sharded(directory, &index, json.as_bytes()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(WeightFileError::NoWeightFiles { directory: directory.to_owned() })
            }
            Err(source) => Err(WeightFileError::Io { path: index, source }),
        }
    }

    /// Reads one safetensors file that is already in memory.
    ///
    /// # Errors
    ///
    /// As [`open`](Self::open), for malformed content.
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self, WeightFileError> {
        Self::single(Shard::parse(PathBuf::from("<memory>"), FileBytes::Owned(bytes))?)
    }

    /// The tensor `name` as it is stored, in any type.
    pub(super) fn raw(&self, name: &str) -> Option<Raw<'_>> {
        let raw = self.shards.get(*self.shard_of.get(name)?)?.stored(name)?;
        // No weight is put together from parts without elements, as no tensor is without (`tensor`).
        Some(raw).filter(|raw| !raw.shape.contains(&0))
    }

    fn single(shard: Shard) -> Result<Self, WeightFileError> {
        let shard_of = shard.metadata.offset_keys().into_iter().map(|name| (name, 0)).collect();
        Ok(Self { shards: vec![shard], shard_of })
    }

    fn sharded(directory: &Path, index_path: &Path, json: &[u8]) -> Result<Self, WeightFileError> {
        let index: Index = serde_json::from_slice(json)
            .map_err(|source| WeightFileError::Json { path: index_path.to_owned(), source })?;
        let mut shards: Vec<Shard> = Vec::new();
        let mut opened: HashMap<String, usize> = HashMap::new();
        let mut shard_of = HashMap::new();
        for (name, file) in index.weight_map {
            let number = match opened.get(&file) {
                Some(&number) => number,
                None => {
                    let path = shard_path(directory, &file)?;
                    shards.push(Shard::parse(path.clone(), FileBytes::open(&path)?)?);
                    opened.insert(file, shards.len() - 1);
                    shards.len() - 1
                }
            };
            let shard = &shards[number];
            if shard.metadata.info(&name).is_none() {
                return Err(WeightFileError::NotInShard { name, shard: shard.path.clone() });
            }
            shard_of.insert(name, number);
        }
        Ok(Self { shards, shard_of })
    }
}

impl Weights for SafetensorsWeights {
    fn tensor(&self, name: &str) -> Result<Tensor<'_>, WeightsError> {
        self.shard_of
            .get(name)
            .and_then(|&number| self.shards[number].tensor(name))
            .ok_or_else(|| WeightsError::MissingTensor { name: name.to_owned() })?
    }

    fn contains(&self, name: &str) -> bool {
        self.shard_of.contains_key(name)
    }

    fn names(&self) -> Box<dyn Iterator<Item = &str> + '_> {
        Box::new(self.shard_of.keys().map(String::as_str))
    }
}

/// The part of `model.safetensors.index.json` that matters.
#[derive(Deserialize)]
struct Index {
    weight_map: HashMap<String, String>,
}

/// A shard is a file next to the index, never elsewhere.
fn shard_path(directory: &Path, file: &str) -> Result<PathBuf, WeightFileError> {
    /// No file system has longer names.
    const MAX_NAME: usize = 255;
    let mut parts = Path::new(file).components();
    match (parts.next(), parts.next()) {
        (Some(Component::Normal(name)), None) if name.len() <= MAX_NAME => Ok(directory.join(name)),
        _ => Err(WeightFileError::ShardName { file: file.to_owned() }),
    }
}

/// One file: a length, a JSON header, the tensors' bytes.
struct Shard {
    path: PathBuf,
    bytes: FileBytes,
    metadata: Metadata,
    /// Where the tensors' bytes start; offsets in the header count from here.
    data_start: usize,
}

impl Shard {
    /// Checks that the header describes exactly the bytes that follow it.
    ///
    /// The crate's own `SafeTensors::deserialize` does the same, but adds up the sizes of a
    /// lying header without checking for overflow. Its `Metadata` checks each tensor.
    fn parse(path: PathBuf, bytes: FileBytes) -> Result<Self, WeightFileError> {
        let truncated = |needed: u64| WeightFileError::Truncated {
            path: path.clone(),
            needed,
            actual: bytes.len() as u64,
        };
        let Some((length, rest)) = bytes.split_first_chunk::<LENGTH_BYTES>() else {
            return Err(truncated(LENGTH_BYTES as u64));
        };
        let claimed = u64::from_le_bytes(*length);
        let Some(header) = usize::try_from(claimed).ok().and_then(|length| rest.get(..length))
        else {
            return Err(truncated(claimed.saturating_add(LENGTH_BYTES as u64)));
        };
        if header.len() > MAX_HEADER_BYTES {
            return Err(WeightFileError::HeaderTooLarge { path, bytes: header.len() });
        }
        let metadata: Metadata = serde_json::from_slice(header)
            .map_err(|source| WeightFileError::Json { path: path.clone(), source })?;
        let (claimed, actual) = (metadata.data_len(), rest.len() - header.len());
        if claimed != actual {
            return Err(WeightFileError::DataSize { path, claimed, actual });
        }
        let data_start = LENGTH_BYTES + header.len();
        Ok(Self { path, bytes, metadata, data_start })
    }

    /// The tensor, or `None` if it isn't here.
    fn tensor(&self, name: &str) -> Option<Result<Tensor<'_>, WeightsError>> {
        let Raw { dtype, shape, bytes } = self.stored(name)?;
        Some(tensor(name, dtype, shape, bytes))
    }

    fn stored(&self, name: &str) -> Option<Raw<'_>> {
        let info = self.metadata.info(name)?;
        let (start, end) = info.data_offsets;
        let bytes = self.bytes.get(self.data_start..)?.get(start..end)?;
        Some(Raw { dtype: info.dtype, shape: &info.shape, bytes })
    }
}

impl std::fmt::Debug for Shard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shard")
            .field("path", &self.path)
            .field("bytes", &self.bytes.len())
            .finish_non_exhaustive()
    }
}

fn tensor<'a>(
    name: &str,
    dtype: Dtype,
    shape: &[usize],
    bytes: &'a [u8],
) -> Result<Tensor<'a>, WeightsError> {
    let name = || name.to_owned();
    let format = match dtype {
        Dtype::F32 => Format::F32,
        Dtype::F16 => Format::F16,
        Dtype::BF16 => Format::BF16,
        other => {
            return Err(WeightsError::UnsupportedType { name: name(), kind: other.to_string() });
        }
    };
    // A tensor without elements takes no bytes, whatever its other dimensions are: nothing needs one,
    // and loops over those dimensions would have no end.
    let Some(shape) = Shape::from_dims(shape).filter(|_| !shape.contains(&0)) else {
        return Err(WeightsError::UnsupportedRank { name: name(), shape: shape.to_vec() });
    };
    Tensor::new(format, shape, bytes)
        .map_err(|source| WeightsError::Tensor { name: name(), source })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use std::borrow::Cow;

    use proptest::prelude::*;
    use safetensors::tensor::TensorView;

    use super::*;

    /// One vector, and one matrix in each float format.
    fn small_file() -> Vec<u8> {
        let f32s: Vec<u8> = [1.0f32, -2.0, 0.5, 4.0].iter().flat_map(|v| v.to_le_bytes()).collect();
        let f16s: Vec<u8> =
            [1.0f32, 2.0].iter().flat_map(|&v| half::f16::from_f32(v).to_le_bytes()).collect();
        let bf16s: Vec<u8> =
            [3.0f32, -1.0].iter().flat_map(|&v| half::bf16::from_f32(v).to_le_bytes()).collect();
        let view = |dtype, shape: &[usize], data| {
            TensorView::new(dtype, shape.to_vec(), data).expect("consistent view")
        };
        let views = [
            ("vector", view(Dtype::F32, &[4], &f32s)),
            ("matrix", view(Dtype::F32, &[2, 2], &f32s)),
            ("half", view(Dtype::F16, &[1, 2], &f16s)),
            ("brain", view(Dtype::BF16, &[2, 1], &bf16s)),
        ];
        safetensors::serialize(views, None).expect("serializable")
    }

    fn with_header(header: &str, data: &[u8]) -> Vec<u8> {
        let mut file = (header.len() as u64).to_le_bytes().to_vec();
        file.extend(header.as_bytes());
        file.extend(data);
        file
    }

    /// Reads everything that opens; must not panic.
    fn read_all(bytes: Vec<u8>) -> Result<(), WeightFileError> {
        let weights = SafetensorsWeights::from_bytes(bytes)?;
        for tensor in weights.names().flat_map(|name| weights.tensor(name)) {
            tensor.to_f32();
        }
        Ok(())
    }

    #[test]
    fn tensors_of_each_float_format_read_back() {
        let weights = SafetensorsWeights::from_bytes(small_file()).expect("well-formed");
        let vector = weights.tensor("vector").expect("present");
        assert_eq!((vector.format(), vector.shape()), (Format::F32, Shape::Vector(4)));
        assert_eq!(vector.to_f32(), [1.0, -2.0, 0.5, 4.0]);
        let matrix = weights.tensor("matrix").expect("present");
        assert_eq!(matrix.shape(), Shape::matrix(2, 2));
        assert!(matches!(matrix.into_data(), Cow::Borrowed(_)));
        assert_eq!(weights.tensor("half").expect("present").to_f32(), [1.0, 2.0]);
        assert_eq!(weights.tensor("brain").expect("present").to_f32(), [3.0, -1.0]);
        assert!(matches!(
            weights.tensor("absent"),
            Err(WeightsError::MissingTensor { name }) if name == "absent"
        ));
    }

    #[test]
    fn every_shorter_file_is_a_typed_error() {
        let file = small_file();
        for length in 0..file.len() {
            let error = read_all(file[..length].to_vec()).expect_err("truncated");
            let expected = matches!(
                error,
                WeightFileError::Truncated { .. } | WeightFileError::DataSize { .. }
            );
            assert!(expected, "{length} bytes: {error}");
        }
        let mut longer = file;
        longer.push(0);
        assert!(matches!(read_all(longer), Err(WeightFileError::DataSize { .. })));
    }

    #[test]
    fn a_header_that_claims_more_than_the_file_is_refused() {
        let mut file = small_file();
        file[..8].copy_from_slice(&u64::MAX.to_le_bytes());
        let error = read_all(file).expect_err("lying length");
        assert!(matches!(error, WeightFileError::Truncated { needed: u64::MAX, .. }), "{error}");
    }

    #[test]
    fn sizes_that_add_up_past_the_address_space_are_refused() {
        // Each tensor is consistent alone; together they reach the last address, and header
        // and length would come on top.
        let part = 1u64 << 60;
        let entries: Vec<String> = (0..16u64)
            .map(|i| {
                let start = i * part;
                let end = if i == 15 { u64::MAX } else { start + part };
                let size = end - start;
                format!(
                    r#""t{i}":{{"dtype":"U8","shape":[{size}],"data_offsets":[{start},{end}]}}"#
                )
            })
            .collect();
        let error = read_all(with_header(&format!("{{{}}}", entries.join(",")), &[]))
            .expect_err("overflowing sizes");
        assert!(matches!(error, WeightFileError::DataSize { claimed: usize::MAX, .. }), "{error}");
    }

    #[test]
    fn lies_about_a_tensor_are_refused() {
        let lies = [
            // Offsets past the data.
            r#"{"t":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}}"#,
            // Size and shape disagree.
            r#"{"t":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}}"#,
            // Backwards.
            r#"{"t":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}}"#,
            // Too many elements to count.
            r#"{"t":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,8]}}"#,
            // Two tensors of one name, each with half of the data.
            r#"{"t":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},
                "t":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#,
            // Not a type.
            r#"{"t":{"dtype":"F33","shape":[2],"data_offsets":[0,8]}}"#,
            // Not JSON, and not an object.
            r#"{"t":"#,
            "[]",
        ];
        for header in lies {
            let error = read_all(with_header(header, &[0; 8])).expect_err(header);
            let expected =
                matches!(error, WeightFileError::DataSize { .. } | WeightFileError::Json { .. });
            assert!(expected, "{header}: {error}");
        }
        let mut bad_utf8 = with_header("{\"??\":1}", &[]);
        bad_utf8[10] = 0xff;
        assert!(matches!(read_all(bad_utf8), Err(WeightFileError::Json { .. })));
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        let header = r#"{"quantized":{"dtype":"F8_E4M3","shape":[2,2],"data_offsets":[0,4]},
            "hypercube":{"dtype":"F32","shape":[1,1,1,1],"data_offsets":[4,8]},
            "empty":{"dtype":"F32","shape":[1,1099511627776,0],"data_offsets":[8,8]}}"#;
        let weights =
            SafetensorsWeights::from_bytes(with_header(header, &[0; 8])).expect("well-formed");
        assert!(matches!(
            weights.tensor("quantized"),
            Err(WeightsError::UnsupportedType { name, kind }) if name == "quantized" && kind == "F8_E4M3"
        ));
        assert!(matches!(
            weights.tensor("hypercube"),
            Err(WeightsError::UnsupportedRank { name, shape }) if name == "hypercube" && shape == [1, 1, 1, 1]
        ));
        assert!(matches!(
            weights.tensor("empty"),
            Err(WeightsError::UnsupportedRank { shape, .. }) if shape == [1, 1 << 40, 0]
        ));
    }

    #[test]
    fn three_dimensions_are_a_stack_of_matrices() {
        let header = r#"{"cube":{"dtype":"F16","shape":[2,1,3],"data_offsets":[0,12]}}"#;
        let weights =
            SafetensorsWeights::from_bytes(with_header(header, &[0; 12])).expect("well-formed");
        assert_eq!(weights.tensor("cube").expect("readable").shape(), Shape::stack(2, 1, 3));
    }

    fn one_tensor(name: &str, value: f32) -> Vec<u8> {
        let bytes = value.to_le_bytes();
        let view = TensorView::new(Dtype::F32, vec![1], &bytes).expect("consistent view");
        safetensors::serialize([(name, view)], None).expect("serializable")
    }

    fn directory(files: &[(&str, &[u8])]) -> tempfile::TempDir {
        let directory = tempfile::tempdir().expect("temporary directory");
        for (name, bytes) in files {
            fs::write(directory.path().join(name), bytes).expect("writable");
        }
        directory
    }

    #[test]
    fn shards_are_found_through_the_index() {
        let index = br#"{"metadata":{"total_size":8},"weight_map":{"a":"1.safetensors","b":"2.safetensors"}}"#;
        let directory = directory(&[
            (INDEX_FILE, index),
            ("1.safetensors", &one_tensor("a", 1.0)),
            ("2.safetensors", &one_tensor("b", 2.0)),
        ]);
        let weights = SafetensorsWeights::open(directory.path()).expect("well-formed");
        assert_eq!(weights.tensor("a").expect("present").to_f32(), [1.0]);
        assert_eq!(weights.tensor("b").expect("present").to_f32(), [2.0]);
        assert_eq!(weights.names().count(), 2);
    }

    #[test]
    fn a_single_file_needs_no_index() {
        let directory = directory(&[(SINGLE_FILE, &small_file())]);
        let weights = SafetensorsWeights::open(directory.path()).expect("well-formed");
        assert!(weights.contains("brain") && !weights.contains("absent"));
    }

    #[test]
    fn a_wrong_index_is_refused() {
        let shard = one_tensor("a", 1.0);
        let open = |index: &str| {
            let directory = directory(&[(INDEX_FILE, index.as_bytes()), ("1.safetensors", &shard)]);
            SafetensorsWeights::open(directory.path()).expect_err("wrong index")
        };
        let error = open(r#"{"weight_map":{"b":"1.safetensors"}}"#);
        assert!(matches!(error, WeightFileError::NotInShard { name, .. } if name == "b"));
        let error = open(r#"{"weight_map":{"a":"2.safetensors"}}"#);
        assert!(
            matches!(error, WeightFileError::Io { path, .. } if path.ends_with("2.safetensors"))
        );
        for elsewhere in ["../1.safetensors", "/1.safetensors", "x/1.safetensors", "", ".."] {
            let error = open(&format!(r#"{{"weight_map":{{"a":"{elsewhere}"}}}}"#));
            assert!(matches!(error, WeightFileError::ShardName { file } if file == elsewhere));
        }
        assert!(matches!(open("{"), WeightFileError::Json { .. }));
        assert!(matches!(open("{}"), WeightFileError::Json { .. }));
    }

    #[test]
    fn a_directory_without_weights_says_so() {
        let directory = directory(&[]);
        assert!(matches!(
            SafetensorsWeights::open(directory.path()),
            Err(WeightFileError::NoWeightFiles { .. })
        ));
    }

    proptest! {
        #[test]
        fn flipped_bytes_never_panic(
            flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        ) {
            let mut file = small_file();
            for (index, byte) in flips {
                let position = index.index(file.len());
                file[position] = byte;
            }
            // Some flips only change numbers: those files still read.
            let _ = read_all(file);
        }
    }
}
