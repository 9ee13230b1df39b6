//! Parses the header of a GGUF file: metadata and where each tensor is.
//!
//! Layout, all little-endian (specification: the GGUF document of the ggml project):
//!
//! ```text
//! "GGUF"  version: u32  tensors: u64  pairs: u64
//! pairs   x [ key: string  type: u32  value ]
//! tensors x [ name: string  dimensions: u32  size: u64 each  type: u32  offset: u64 ]
//! padding to general.alignment
//! data section; a tensor's offset counts from its start
//! ```
//!
//! Nothing that the file claims is allocated for before the bytes for it are known to exist.

use std::{collections::BTreeMap, ops::Range};

use super::{Array, GgufError, Metadata, Value, value::kind};
use crate::weights::{Format, Shape, TensorError};

const MAGIC: [u8; 4] = *b"GGUF";
const ALIGNMENT_KEY: &str = "general.alignment";
const DEFAULT_ALIGNMENT: u64 = 32;
const MAX_DIMENSIONS: u32 = 4;
/// Real files nest no arrays at all; without a limit, nesting would eat the stack.
const MAX_NESTING: usize = 4;

/// A parsed header.
#[derive(Debug)]
pub(super) struct Header {
    pub(super) version: u32,
    pub(super) metadata: Metadata,
    pub(super) tensors: BTreeMap<String, Stored>,
}

/// What the file holds under a tensor's name.
#[derive(Debug)]
pub(super) enum Stored {
    /// A tensor whose bytes are all there.
    Readable { format: Format, shape: Shape, bytes: Range<usize> },
    /// Of a type that this crate does not read.
    UnsupportedType { kind: u32 },
    /// Of no dimension, or of more than three; dimensions slowest first.
    UnsupportedRank { shape: Vec<usize> },
}

impl Stored {
    /// How many bytes the tensor takes at least.
    fn byte_len(&self) -> u64 {
        match self {
            Stored::Readable { bytes, .. } => bytes.len() as u64,
            Stored::UnsupportedType { .. } => 1,
            Stored::UnsupportedRank { shape } => u64::from(!shape.contains(&0)),
        }
    }
}

impl Header {
    /// Parses and checks the header of `file`, the whole file.
    pub(super) fn parse(file: &[u8]) -> Result<Self, GgufError> {
        let mut cursor = Cursor { file, position: 0 };
        let found = cursor.chunk::<4>("the magic")?;
        if found != MAGIC {
            return Err(GgufError::BadMagic { found });
        }
        let version = cursor.u32("the version")?;
        // Version 2 differs only in that big-endian files did not exist yet.
        if !matches!(version, 2 | 3) {
            return Err(GgufError::UnsupportedVersion { version });
        }
        let tensor_count = cursor.u64("the number of tensors")?;
        let pair_count = cursor.u64("the number of metadata pairs")?;

        let mut metadata = Metadata::default();
        for _ in 0..pair_count {
            let key = cursor.string("a metadata key")?;
            let kind = cursor.u32("a metadata type")?;
            metadata.insert(key, cursor.value(kind)?)?;
        }
        // Collected first: where the data starts is known only after the last of them.
        let mut infos = Vec::new();
        for _ in 0..tensor_count {
            infos.push(cursor.tensor_info()?);
        }

        let alignment = alignment(&metadata)?;
        let data_start = cursor.position.next_multiple_of(alignment);
        let mut tensors = BTreeMap::new();
        let mut starts = Vec::with_capacity(infos.len());
        for info in infos {
            let stored = info.locate(data_start, file.len(), alignment)?;
            starts.push((info.offset, stored.byte_len(), info.name.clone()));
            if tensors.contains_key(&info.name) {
                return Err(GgufError::DuplicateTensor { name: info.name });
            }
            tensors.insert(info.name, stored);
        }
        check_overlaps(starts)?;
        Ok(Self { version, metadata, tensors })
    }
}

/// Refuses two tensors that share bytes, as the reader of safetensors does: one of them would be
/// read as the other. Each entry has the tensor's offset, its least length and its name.
fn check_overlaps(mut tensors: Vec<(u64, u64, String)>) -> Result<(), GgufError> {
    tensors.sort_unstable();
    let mut latest: Option<(u64, String)> = None;
    for (offset, length, name) in tensors.into_iter().filter(|(_, length, _)| *length > 0) {
        match latest {
            Some((end, other)) if offset < end => {
                return Err(GgufError::OverlappingTensors { name, other });
            }
            _ => latest = Some((offset.saturating_add(length), name)),
        }
    }
    Ok(())
}

fn alignment(metadata: &Metadata) -> Result<usize, GgufError> {
    let alignment = metadata.unsigned(ALIGNMENT_KEY)?.unwrap_or(DEFAULT_ALIGNMENT);
    // The key is a u32 by specification; the bound keeps rounding up from overflowing.
    match u32::try_from(alignment) {
        Ok(narrow) if narrow.is_power_of_two() => Ok(narrow as usize),
        _ => Err(GgufError::BadAlignment { alignment }),
    }
}

/// A tensor as the header lists it.
struct TensorInfo {
    name: String,
    /// Fastest first, as in the file.
    dimensions: Vec<u64>,
    kind: u32,
    offset: u64,
}

impl TensorInfo {
    fn locate(
        &self,
        data_start: usize,
        file_len: usize,
        alignment: usize,
    ) -> Result<Stored, GgufError> {
        let name = || self.name.clone();
        let available = file_len.saturating_sub(data_start);
        if !self.offset.is_multiple_of(alignment as u64) {
            return Err(GgufError::MisalignedTensor {
                name: name(),
                offset: self.offset,
                alignment,
            });
        }
        let Some(format) = format_of(self.kind) else {
            return Ok(Stored::UnsupportedType { kind: self.kind });
        };
        let shape = self.shape()?;
        // Nothing needs a tensor without elements, and loops over its other dimensions would have no
        // end.
        let Some(shape) = Shape::from_dims(&shape).filter(|_| !shape.contains(&0)) else {
            return Ok(Stored::UnsupportedRank { shape });
        };
        let size = shape
            .byte_len(format)
            .map_err(|source| GgufError::Tensor { name: name(), source: source.into() })?;
        let range = usize::try_from(self.offset)
            .ok()
            .and_then(|offset| Some(offset..offset.checked_add(size)?))
            .filter(|range| range.end <= available)
            .ok_or_else(|| GgufError::TensorOutOfRange {
                name: name(),
                offset: self.offset,
                size: size as u64,
                available,
            })?;
        Ok(Stored::Readable {
            format,
            shape,
            bytes: data_start + range.start..data_start + range.end,
        })
    }

    /// Dimensions slowest first, as everywhere else in this crate.
    fn shape(&self) -> Result<Vec<usize>, GgufError> {
        self.dimensions
            .iter()
            .rev()
            .map(|&size| {
                usize::try_from(size).map_err(|_| GgufError::Tensor {
                    name: self.name.clone(),
                    source: TensorError::TooLarge { rows: usize::MAX, cols: usize::MAX }.into(),
                })
            })
            .collect()
    }
}

/// The supported formats among ggml's types.
fn format_of(kind: u32) -> Option<Format> {
    Format::ALL.into_iter().find(|&format| kind_of(format) == Some(kind))
}

/// The number of a format among ggml's types, where it has one.
pub(super) fn kind_of(format: Format) -> Option<u32> {
    Some(match format {
        Format::F32 => 0,
        Format::F16 => 1,
        Format::Q4_0 => 2,
        Format::Q4_1 => 3,
        Format::Q5_0 => 6,
        Format::Q5_1 => 7,
        Format::Q8_0 => 8,
        Format::Q2_K => 10,
        Format::Q3_K => 11,
        Format::Q4_K => 12,
        Format::Q5_K => 13,
        Format::Q6_K => 14,
        Format::IQ4_NL => 20,
        Format::IQ4_XS => 23,
        Format::BF16 => 30,
        Format::MXFP4 => 39,
        // ggml's NVFP4, number 40, keeps the divisor in another tensor.
        Format::F8_E4M3 | Format::U4 | Format::NF4 | Format::NVFP4 => return None,
    })
}

/// The name of a ggml type, for messages.
pub(super) fn kind_name(kind: u32) -> String {
    let name = match kind {
        9 => "Q8_1",
        15 => "Q8_K",
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        21 => "IQ3_S",
        22 => "IQ2_S",
        24 => "I8",
        25 => "I16",
        26 => "I32",
        27 => "I64",
        28 => "F64",
        29 => "IQ1_M",
        34 => "TQ1_0",
        35 => "TQ2_0",
        40 => "NVFP4",
        41 => "Q1_0",
        42 => "Q2_0",
        _ => return format_of(kind).map_or_else(|| format!("type {kind}"), |f| f.to_string()),
    };
    name.to_owned()
}

/// Reads from the front of the file; every read is checked.
struct Cursor<'a> {
    file: &'a [u8],
    position: usize,
}

impl<'a> Cursor<'a> {
    /// The next `needed` bytes.
    fn take(&mut self, needed: u64, what: &'static str) -> Result<&'a [u8], GgufError> {
        let rest = self.file.get(self.position..).unwrap_or_default();
        let taken = usize::try_from(needed).ok().and_then(|needed| rest.get(..needed)).ok_or(
            GgufError::Truncated { what, offset: self.position, needed, available: rest.len() },
        )?;
        self.position += taken.len();
        Ok(taken)
    }

    fn chunk<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], GgufError> {
        let mut bytes = [0; N];
        bytes.copy_from_slice(self.take(N as u64, what)?);
        Ok(bytes)
    }

    fn u32(&mut self, what: &'static str) -> Result<u32, GgufError> {
        self.chunk(what).map(u32::from_le_bytes)
    }

    fn u64(&mut self, what: &'static str) -> Result<u64, GgufError> {
        self.chunk(what).map(u64::from_le_bytes)
    }

    fn string(&mut self, what: &'static str) -> Result<String, GgufError> {
        let length = self.u64(what)?;
        let offset = self.position;
        let bytes = self.take(length, what)?;
        match std::str::from_utf8(bytes) {
            Ok(string) => Ok(string.to_owned()),
            Err(_) => Err(GgufError::BadUtf8 { what, offset }),
        }
    }

    fn bool(&mut self) -> Result<bool, GgufError> {
        let offset = self.position;
        match self.chunk("a metadata value")? {
            [0] => Ok(false),
            [1] => Ok(true),
            [found] => Err(GgufError::BadBool { offset, found }),
        }
    }

    fn value(&mut self, value_kind: u32) -> Result<Value, GgufError> {
        const WHAT: &str = "a metadata value";
        Ok(match value_kind {
            kind::U8 => Value::U8(u8::from_le_bytes(self.chunk(WHAT)?)),
            kind::I8 => Value::I8(i8::from_le_bytes(self.chunk(WHAT)?)),
            kind::U16 => Value::U16(u16::from_le_bytes(self.chunk(WHAT)?)),
            kind::I16 => Value::I16(i16::from_le_bytes(self.chunk(WHAT)?)),
            kind::U32 => Value::U32(u32::from_le_bytes(self.chunk(WHAT)?)),
            kind::I32 => Value::I32(i32::from_le_bytes(self.chunk(WHAT)?)),
            kind::F32 => Value::F32(f32::from_le_bytes(self.chunk(WHAT)?)),
            kind::BOOL => Value::Bool(self.bool()?),
            kind::STRING => Value::String(self.string(WHAT)?),
            kind::ARRAY => Value::Array(self.array(MAX_NESTING)?),
            kind::U64 => Value::U64(u64::from_le_bytes(self.chunk(WHAT)?)),
            kind::I64 => Value::I64(i64::from_le_bytes(self.chunk(WHAT)?)),
            kind::F64 => Value::F64(f64::from_le_bytes(self.chunk(WHAT)?)),
            unknown => {
                return Err(GgufError::UnknownValueType { offset: self.position, kind: unknown });
            }
        })
    }

    fn array(&mut self, nesting_left: usize) -> Result<Array, GgufError> {
        let Some(nesting_left) = nesting_left.checked_sub(1) else {
            return Err(GgufError::NestedTooDeep { limit: MAX_NESTING });
        };
        let element_kind = self.u32("a metadata array")?;
        let count = self.u64("a metadata array")?;
        Ok(match element_kind {
            kind::U8 => Array::U8(self.numbers(count, u8::from_le_bytes)?),
            kind::I8 => Array::I8(self.numbers(count, i8::from_le_bytes)?),
            kind::U16 => Array::U16(self.numbers(count, u16::from_le_bytes)?),
            kind::I16 => Array::I16(self.numbers(count, i16::from_le_bytes)?),
            kind::U32 => Array::U32(self.numbers(count, u32::from_le_bytes)?),
            kind::I32 => Array::I32(self.numbers(count, i32::from_le_bytes)?),
            kind::F32 => Array::F32(self.numbers(count, f32::from_le_bytes)?),
            kind::BOOL => Array::Bool(self.list(count, Self::bool)?),
            kind::STRING => Array::String(self.list(count, |c| c.string("a metadata string"))?),
            kind::ARRAY => Array::Array(self.list(count, |c| c.array(nesting_left))?),
            kind::U64 => Array::U64(self.numbers(count, u64::from_le_bytes)?),
            kind::I64 => Array::I64(self.numbers(count, i64::from_le_bytes)?),
            kind::F64 => Array::F64(self.numbers(count, f64::from_le_bytes)?),
            unknown => {
                return Err(GgufError::UnknownValueType { offset: self.position, kind: unknown });
            }
        })
    }

    fn numbers<T, const N: usize>(
        &mut self,
        count: u64,
        from_le_bytes: fn([u8; N]) -> T,
    ) -> Result<Vec<T>, GgufError> {
        let bytes = self.take(count.saturating_mul(N as u64), "a metadata array")?;
        let (elements, _) = bytes.as_chunks::<N>();
        Ok(elements.iter().copied().map(from_le_bytes).collect())
    }

    /// Elements of varying size. Each takes a byte at least, so a lying count ends with the
    /// file, and the vector grows no faster than it is filled.
    fn list<T>(
        &mut self,
        count: u64,
        mut element: impl FnMut(&mut Self) -> Result<T, GgufError>,
    ) -> Result<Vec<T>, GgufError> {
        (0..count).map(|_| element(self)).collect()
    }

    fn tensor_info(&mut self) -> Result<TensorInfo, GgufError> {
        const WHAT: &str = "a tensor's description";
        let name = self.string("a tensor's name")?;
        let count = self.u32(WHAT)?;
        if count > MAX_DIMENSIONS {
            return Err(GgufError::TooManyDimensions { name, dimensions: count });
        }
        let dimensions = (0..count).map(|_| self.u64(WHAT)).collect::<Result<_, _>>()?;
        Ok(TensorInfo { name, dimensions, kind: self.u32(WHAT)?, offset: self.u64(WHAT)? })
    }
}
