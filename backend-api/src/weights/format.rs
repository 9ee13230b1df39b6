//! How a tensor's numbers are stored: element formats and their block layouts.

use std::fmt;

use super::{
    BlockFields, TensorError,
    layout::{self, Layout},
};

/// How the elements of a tensor are stored, little-endian, row after row.
///
/// The quantized formats cut each row into blocks of consecutive elements that share scales. A block
/// never crosses a row, so a row is a whole number of blocks. Most layouts are those of ggml, whose
/// files carry them; the last four hold what pre-quantized safetensors files spread over several
/// tensors. `layout.rs` beside gives every block byte by byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(non_camel_case_types)] // The names of ggml.
pub enum Format {
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary16.
    F16,
    /// The upper half of a binary32.
    BF16,
    /// 32 elements: scale `d` (f16), 4-bit `q`. Value: `(q - 8) * d`.
    Q4_0,
    /// 32 elements: scale `d` and minimum `m` (f16), 4-bit `q`. Value: `q * d + m`.
    Q4_1,
    /// 32 elements: scale `d` (f16), 5-bit `q`. Value: `(q - 16) * d`.
    Q5_0,
    /// 32 elements: scale `d` and minimum `m` (f16), 5-bit `q`. Value: `q * d + m`.
    Q5_1,
    /// 32 elements: scale `d` (f16), signed bytes `q`. Value: `q * d`.
    Q8_0,
    /// 256 elements in 16 groups with a 4-bit scale `s` and minimum `m` each; 2-bit `q`, `d` and
    /// `e` (f16). Value: `q * d * s - e * m`.
    Q2_K,
    /// 256 elements in 16 groups with a 6-bit scale `s` each; 3-bit `q`, `d` (f16).
    /// Value: `(q - 4) * d * (s - 32)`.
    Q3_K,
    /// 256 elements in 8 groups with a 6-bit scale `s` and minimum `m` each; 4-bit `q`, `d` and
    /// `e` (f16). Value: `q * d * s - e * m`.
    Q4_K,
    /// As [`Q4_K`](Self::Q4_K), with 5-bit `q`.
    Q5_K,
    /// 256 elements in 16 groups with a signed byte `s` each; 6-bit `q`, `d` (f16).
    /// Value: `(q - 32) * d * s`.
    Q6_K,
    /// 32 elements: scale `d` (f16), 4-bit indices into a table of 16 integers, `t`.
    /// Value: `t[q] * d`.
    IQ4_NL,
    /// 256 elements in 8 groups with a 6-bit scale `s` each; the table of
    /// [`IQ4_NL`](Self::IQ4_NL). Value: `t[q] * d * (s - 32)`.
    IQ4_XS,
    /// 32 elements: a power of two (E8M0), 4-bit floats (E2M1). The microscaling format of the Open
    /// Compute Project.
    MXFP4,
    /// 32 elements: scale `d` (f32), 8-bit floats (E4M3, no infinities). Value: `q * d`.
    F8_E4M3,
    /// 32 elements: scale `d` (f32), zero point `z` (a byte), 4-bit `q`. Value: `(q - z) * d`.
    U4,
    /// 64 elements: scale `d` (f32), 4-bit indices into the 16 quantiles of a normal distribution,
    /// `t` (QLoRA, Dettmers et al. 2023). Value: `t[q] * d`.
    NF4,
    /// 64 elements in 4 groups with an E4M3 scale `s` each; 4-bit floats (E2M1) `q`, divisor `g`
    /// (f32). Value: `q * (s / g)`.
    NVFP4,
}

impl Format {
    /// Every supported format.
    pub const ALL: [Format; 20] = [
        Format::F32,
        Format::F16,
        Format::BF16,
        Format::Q4_0,
        Format::Q4_1,
        Format::Q5_0,
        Format::Q5_1,
        Format::Q8_0,
        Format::Q2_K,
        Format::Q3_K,
        Format::Q4_K,
        Format::Q5_K,
        Format::Q6_K,
        Format::IQ4_NL,
        Format::IQ4_XS,
        Format::MXFP4,
        Format::F8_E4M3,
        Format::U4,
        Format::NF4,
        Format::NVFP4,
    ];

    /// The layout of a block, for formats that are quantized.
    pub(super) const fn layout(self) -> Option<&'static Layout> {
        Some(match self {
            Format::F32 | Format::F16 | Format::BF16 => return None,
            Format::Q4_0 => &layout::Q4_0,
            Format::Q4_1 => &layout::Q4_1,
            Format::Q5_0 => &layout::Q5_0,
            Format::Q5_1 => &layout::Q5_1,
            Format::Q8_0 => &layout::Q8_0,
            Format::Q2_K => &layout::Q2_K,
            Format::Q3_K => &layout::Q3_K,
            Format::Q4_K => &layout::Q4_K,
            Format::Q5_K => &layout::Q5_K,
            Format::Q6_K => &layout::Q6_K,
            Format::IQ4_NL => &layout::IQ4_NL,
            Format::IQ4_XS => &layout::IQ4_XS,
            Format::MXFP4 => &layout::MXFP4,
            Format::F8_E4M3 => &layout::F8_E4M3,
            Format::U4 => &layout::U4,
            Format::NF4 => &layout::NF4,
            Format::NVFP4 => &layout::NVFP4,
        })
    }

    /// Elements in one block; 1 for formats that are not quantized.
    pub const fn block_elements(self) -> usize {
        match self.layout() {
            Some(layout) => layout.elements,
            None => 1,
        }
    }

    /// Bytes of one block; the element size for formats that are not quantized.
    pub const fn block_bytes(self) -> usize {
        match (self.layout(), self) {
            (Some(layout), _) => layout.bytes,
            (None, Format::F32) => 4,
            (None, _) => 2,
        }
    }

    /// Elements that share one scale; 1 for formats that are not quantized.
    pub const fn group_elements(self) -> usize {
        match self.layout() {
            Some(layout) => layout.group,
            None => 1,
        }
    }

    /// Whether elements share scales in blocks.
    pub const fn is_quantized(self) -> bool {
        self.layout().is_some()
    }

    /// Takes a quantized block apart, for code that repacks blocks: `None` for a format that is not
    /// quantized, or bytes that are not one block.
    #[inline]
    pub fn fields(self, block: &[u8]) -> Option<BlockFields> {
        let layout = self.layout()?;
        (block.len() == layout.bytes).then(|| layout.read(block))
    }

    /// Bytes of a row of `cols` elements.
    ///
    /// # Errors
    ///
    /// [`TensorError::RaggedRow`] if the row is not a whole number of blocks, and
    /// [`TensorError::TooLarge`] if its size overflows.
    pub fn row_bytes(self, cols: usize) -> Result<usize, TensorError> {
        if !cols.is_multiple_of(self.block_elements()) {
            return Err(TensorError::RaggedRow { format: self, cols });
        }
        (cols / self.block_elements())
            .checked_mul(self.block_bytes())
            .ok_or(TensorError::TooLarge { rows: 1, cols })
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The variants are named as files name the formats.
        fmt::Debug::fmt(self, f)
    }
}
