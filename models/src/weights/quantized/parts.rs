//! The stored tensors of one module, checked; and what its weight is put together from.

use backend_api::weights::Levels;
use half::{bf16, f16};
use safetensors::tensor::Dtype;

use crate::weights::{Format, SafetensorsWeights, Shape, Tensor, TensorError, WeightsError};

/// A tensor as a file has it.
#[derive(Clone, Copy, Debug)]
pub(in crate::weights) struct Raw<'a> {
    pub(in crate::weights) dtype: Dtype,
    pub(in crate::weights) shape: &'a [usize],
    pub(in crate::weights) bytes: &'a [u8],
}

/// The stored tensors of a module.
#[derive(Debug)]
pub(super) struct Parts<'a> {
    pub(super) stored: &'a SafetensorsWeights,
    /// The weight's plain name.
    pub(super) name: &'a str,
    /// The same without `.weight`.
    pub(super) module: &'a str,
}

impl<'a> Parts<'a> {
    /// The tensor that the file calls by the module's name and `suffix`, if there is one.
    pub(super) fn optional(&self, suffix: &str) -> Option<Raw<'a>> {
        self.stored.raw(&format!("{}{suffix}", self.module))
    }

    /// The same for one that must be there.
    pub(super) fn required(&self, suffix: &str) -> Result<Raw<'a>, WeightsError> {
        self.optional(suffix)
            .ok_or_else(|| WeightsError::MissingTensor { name: format!("{}{suffix}", self.module) })
    }

    /// The 32-bit words of a matrix of `rows` by `columns`, or of any size where these are `None`.
    pub(super) fn words(
        &self,
        suffix: &str,
        rows: Option<usize>,
        columns: Option<usize>,
    ) -> Result<Words<'a>, WeightsError> {
        let raw = self.required(suffix)?;
        let fits = |expected: Option<usize>, found| expected.is_none_or(|it| it == found);
        match *raw.shape {
            [r, c] if raw.dtype == Dtype::I32 && fits(rows, r) && fits(columns, c) => {
                Ok(Words { words: raw.bytes.as_chunks().0, rows: r, columns: c })
            }
            _ => Err(self.unexpected(suffix, &raw)),
        }
    }

    /// The numbers of a tensor of floats.
    pub(super) fn floats(&self, suffix: &str) -> Result<Floats<'a>, WeightsError> {
        let raw = self.required(suffix)?;
        match raw.dtype {
            Dtype::F32 | Dtype::F16 | Dtype::BF16 | Dtype::F8_E8M0 | Dtype::F8_E4M3 => {
                Ok(Floats { raw })
            }
            _ => Err(self.unexpected(suffix, &raw)),
        }
    }

    /// The fault of a part whose type or shape don't fit the others.
    pub(super) fn unexpected(&self, suffix: &str, raw: &Raw<'_>) -> WeightsError {
        self.fault(format!("`{}{suffix}` is {} {:?}", self.module, raw.dtype, raw.shape))
    }

    pub(super) fn fault(&self, reason: String) -> WeightsError {
        WeightsError::Quantized { name: self.name.to_owned(), reason }
    }

    /// A weight whose bytes `fill` appends; no part of a file may claim that they are too many.
    pub(super) fn recipe(
        &self,
        format: Format,
        shape: Shape,
        fill: impl FnOnce(&mut Vec<u8>) + 'a,
    ) -> Result<Recipe<'a>, WeightsError> {
        let bytes = shape.byte_len(format).map_err(|source| self.inconsistent(source))?;
        Ok(Recipe { format, shape, bytes, fill: Box::new(fill) })
    }

    /// The weight, put together.
    pub(super) fn tensor(&self, recipe: Recipe<'_>) -> Result<Tensor<'static>, WeightsError> {
        let mut bytes = Vec::with_capacity(recipe.bytes);
        (recipe.fill)(&mut bytes);
        Tensor::new(recipe.format, recipe.shape, bytes).map_err(|source| self.inconsistent(source))
    }

    fn inconsistent(&self, source: TensorError) -> WeightsError {
        WeightsError::Tensor { name: self.name.to_owned(), source }
    }
}

/// Appends the bytes of a weight.
type Fill<'a> = dyn FnOnce(&mut Vec<u8>) + 'a;

/// What a weight is, and how it is put together: its parts are checked, but their numbers not read.
pub(super) struct Recipe<'a> {
    pub(super) format: Format,
    pub(super) shape: Shape,
    bytes: usize,
    fill: Box<Fill<'a>>,
}

/// A matrix of 32-bit words, each of which holds several numbers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Words<'a> {
    words: &'a [[u8; 4]],
    pub(super) rows: usize,
    pub(super) columns: usize,
}

impl Words<'_> {
    /// Number `index` of `bits` bits in the word at `row`, `column`.
    #[inline]
    pub(super) fn number(&self, row: usize, column: usize, index: usize, bits: usize) -> u8 {
        let word = self.words.get(row * self.columns + column).copied().unwrap_or_default();
        let shifted = u32::from_le_bytes(word) >> (index * bits);
        (shifted & ((1 << bits) - 1)) as u8
    }
}

/// Floats of any type.
#[derive(Clone, Copy, Debug)]
pub(super) struct Floats<'a> {
    pub(super) raw: Raw<'a>,
}

impl Floats<'_> {
    /// Number `index`.
    #[inline]
    pub(super) fn get(&self, index: usize) -> f32 {
        let bytes = self.raw.bytes;
        let two = || bytes.as_chunks::<2>().0.get(index).copied().unwrap_or_default();
        match self.raw.dtype {
            Dtype::F16 => f16::from_le_bytes(two()).to_f32(),
            Dtype::BF16 => bf16::from_le_bytes(two()).to_f32(),
            Dtype::F32 => {
                f32::from_le_bytes(bytes.as_chunks().0.get(index).copied().unwrap_or_default())
            }
            Dtype::F8_E8M0 => power_of_two(bytes.get(index).copied().unwrap_or_default()),
            _ => Levels::F8.value(bytes.get(index).copied().unwrap_or_default(), 0),
        }
    }

    /// The format to which weights with such scales expand: the type of the scales, which is how the
    /// libraries expand them.
    pub(super) fn expanded(&self) -> Format {
        match self.raw.dtype {
            Dtype::F16 => Format::F16,
            Dtype::BF16 => Format::BF16,
            _ => Format::F32,
        }
    }
}

/// `2^(exponent - 127)`, or not a number for the last exponent.
fn power_of_two(exponent: u8) -> f32 {
    match exponent {
        0 => f32::from_bits(0x0040_0000),
        255 => f32::NAN,
        _ => f32::from_bits(u32::from(exponent) << 23),
    }
}

/// Appends 32 numbers of four bits as blocks have them: byte `i` holds numbers `i` and `i + 16`.
pub(super) fn push_nibbles(bytes: &mut Vec<u8>, numbers: &[u8; 32]) {
    let (low, high) = numbers.split_at(16);
    bytes.extend(low.iter().zip(high).map(|(low, high)| (low & 15) | (high << 4)));
}

/// Appends `value` in a plain format.
pub(super) fn push_float(bytes: &mut Vec<u8>, format: Format, value: f32) {
    match format {
        Format::F16 => bytes.extend(f16::from_f32(value).to_le_bytes()),
        Format::BF16 => bytes.extend(bf16::from_f32(value).to_le_bytes()),
        _ => bytes.extend(value.to_le_bytes()),
    }
}
