//! Writes small GGUF files, for tests and tools.

use super::{Array, Value, reader::kind_of, value::kind};
use crate::weights::Tensor;

const ALIGNMENT: usize = 32;

/// Builds a GGUF v3 file in memory. Names are GGUF's, and nothing is checked or permuted: a
/// test may well want to write nonsense.
///
/// ```
/// use models::weights::{Format, GgufFile, GgufWriter, Shape, Tensor, Value};
///
/// let norm = Tensor::from_f32(Format::F32, Shape::Vector(2), &[1.0, 0.5])?;
/// let file = GgufWriter::new()
///     .metadata("general.architecture", Value::String("llama".into()))
///     .tensor("output_norm.weight", &norm)
///     .finish();
/// assert_eq!(GgufFile::from_bytes(file)?.tensor("output_norm.weight")?, norm);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct GgufWriter {
    pairs: Vec<u8>,
    pair_count: u64,
    infos: Vec<u8>,
    info_count: u64,
    data: Vec<u8>,
}

impl GgufWriter {
    /// An empty file.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends a metadata pair.
    #[must_use]
    pub fn metadata(mut self, key: &str, value: Value) -> Self {
        put_string(&mut self.pairs, key);
        put_value(&mut self.pairs, &value);
        self.pair_count += 1;
        self
    }

    /// Appends a tensor. A format that ggml has no type for gets a number that is no type.
    #[must_use]
    pub fn tensor(self, name: &str, tensor: &Tensor<'_>) -> Self {
        let kind = kind_of(tensor.format()).unwrap_or(u32::MAX);
        let dimensions = tensor.shape().dims().into_iter().rev().map(|size| size as u64);
        self.raw_tensor(name, &dimensions.collect::<Vec<_>>(), kind, tensor.data())
    }

    /// Appends a tensor of any ggml type; `dimensions` fastest first.
    #[must_use]
    pub fn raw_tensor(mut self, name: &str, dimensions: &[u64], kind: u32, data: &[u8]) -> Self {
        self.data.resize(self.data.len().next_multiple_of(ALIGNMENT), 0);
        put_string(&mut self.infos, name);
        self.infos.extend((dimensions.len() as u32).to_le_bytes());
        self.infos.extend(dimensions.iter().flat_map(|size| size.to_le_bytes()));
        self.infos.extend(kind.to_le_bytes());
        self.infos.extend((self.data.len() as u64).to_le_bytes());
        self.info_count += 1;
        self.data.extend(data);
        self
    }

    /// The file. It ends with the last tensor's last byte.
    pub fn finish(self) -> Vec<u8> {
        let mut file = b"GGUF".to_vec();
        file.extend(3u32.to_le_bytes());
        file.extend(self.info_count.to_le_bytes());
        file.extend(self.pair_count.to_le_bytes());
        file.extend(self.pairs);
        file.extend(self.infos);
        if !self.data.is_empty() {
            file.resize(file.len().next_multiple_of(ALIGNMENT), 0);
            file.extend(self.data);
        }
        file
    }
}

fn put_string(bytes: &mut Vec<u8>, string: &str) {
    bytes.extend((string.len() as u64).to_le_bytes());
    bytes.extend(string.as_bytes());
}

fn put_value(bytes: &mut Vec<u8>, value: &Value) {
    let mut put = |kind: u32, encoded: &[u8]| {
        bytes.extend(kind.to_le_bytes());
        bytes.extend(encoded);
    };
    match value {
        Value::U8(value) => put(kind::U8, &value.to_le_bytes()),
        Value::I8(value) => put(kind::I8, &value.to_le_bytes()),
        Value::U16(value) => put(kind::U16, &value.to_le_bytes()),
        Value::I16(value) => put(kind::I16, &value.to_le_bytes()),
        Value::U32(value) => put(kind::U32, &value.to_le_bytes()),
        Value::I32(value) => put(kind::I32, &value.to_le_bytes()),
        Value::F32(value) => put(kind::F32, &value.to_le_bytes()),
        Value::Bool(value) => put(kind::BOOL, &[u8::from(*value)]),
        Value::U64(value) => put(kind::U64, &value.to_le_bytes()),
        Value::I64(value) => put(kind::I64, &value.to_le_bytes()),
        Value::F64(value) => put(kind::F64, &value.to_le_bytes()),
        Value::String(string) => {
            put(kind::STRING, &[]);
            put_string(bytes, string);
        }
        Value::Array(array) => {
            put(kind::ARRAY, &[]);
            put_array(bytes, array);
        }
    }
}

fn put_array(bytes: &mut Vec<u8>, array: &Array) {
    fn put<T>(bytes: &mut Vec<u8>, kind: u32, values: &[T], each: impl Fn(&mut Vec<u8>, &T)) {
        bytes.extend(kind.to_le_bytes());
        bytes.extend((values.len() as u64).to_le_bytes());
        values.iter().for_each(|value| each(bytes, value));
    }
    match array {
        Array::U8(values) => put(bytes, kind::U8, values, |b, v| b.extend(v.to_le_bytes())),
        Array::I8(values) => put(bytes, kind::I8, values, |b, v| b.extend(v.to_le_bytes())),
        Array::U16(values) => put(bytes, kind::U16, values, |b, v| b.extend(v.to_le_bytes())),
        Array::I16(values) => put(bytes, kind::I16, values, |b, v| b.extend(v.to_le_bytes())),
        Array::U32(values) => put(bytes, kind::U32, values, |b, v| b.extend(v.to_le_bytes())),
        Array::I32(values) => put(bytes, kind::I32, values, |b, v| b.extend(v.to_le_bytes())),
        Array::F32(values) => put(bytes, kind::F32, values, |b, v| b.extend(v.to_le_bytes())),
        Array::U64(values) => put(bytes, kind::U64, values, |b, v| b.extend(v.to_le_bytes())),
        Array::I64(values) => put(bytes, kind::I64, values, |b, v| b.extend(v.to_le_bytes())),
        Array::F64(values) => put(bytes, kind::F64, values, |b, v| b.extend(v.to_le_bytes())),
        Array::Bool(values) => put(bytes, kind::BOOL, values, |b, v| b.push(u8::from(*v))),
        Array::String(values) => put(bytes, kind::STRING, values, |b, v| put_string(b, v)),
        Array::Array(values) => put(bytes, kind::ARRAY, values, put_array),
    }
}
