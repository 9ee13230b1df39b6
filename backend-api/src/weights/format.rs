//! How a tensor's numbers are stored: element formats and their block layouts.

use std::fmt;

use super::TensorError;

/// Values per quantized block, the same in every quantized format below.
pub(crate) const QUANTIZED_BLOCK: usize = 32;

/// How the elements of a tensor are stored, little-endian, row after row.
///
/// The quantized formats cut each row into blocks of 32 consecutive elements that share a
/// scale. A block never crosses a row, so a row is a whole number of blocks. In the 4-bit
/// formats byte `i` of a block holds element `i` in its low nibble and element `i + 16` in
/// its high nibble. Layouts are those of ggml, whose files carry them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary16.
    F16,
    /// The upper half of a binary32.
    BF16,
    /// Per block: scale `d` (f16), 16 bytes of unsigned nibbles `q`. Value: `(q - 8) * d`.
    Q4_0,
    /// Per block: scale `d` (f16), minimum `m` (f16), 16 bytes of unsigned nibbles `q`.
    /// Value: `q * d + m`.
    Q4_1,
    /// Per block: scale `d` (f16), 32 signed bytes `q`. Value: `q * d`.
    Q8_0,
}

impl Format {
    /// Every supported format.
    pub const ALL: [Format; 6] =
        [Format::F32, Format::F16, Format::BF16, Format::Q4_0, Format::Q4_1, Format::Q8_0];

    /// Elements in one block; 1 for formats that are not quantized.
    pub const fn block_elements(self) -> usize {
        match self {
            Format::F32 | Format::F16 | Format::BF16 => 1,
            Format::Q4_0 | Format::Q4_1 | Format::Q8_0 => QUANTIZED_BLOCK,
        }
    }

    /// Bytes of one block; the element size for formats that are not quantized.
    pub const fn block_bytes(self) -> usize {
        match self {
            Format::F32 => 4,
            Format::F16 | Format::BF16 => 2,
            Format::Q4_0 => 2 + QUANTIZED_BLOCK / 2,
            Format::Q4_1 => 2 + 2 + QUANTIZED_BLOCK / 2,
            Format::Q8_0 => 2 + QUANTIZED_BLOCK,
        }
    }

    /// Whether elements share scales in blocks.
    pub const fn is_quantized(self) -> bool {
        self.block_elements() > 1
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
        f.write_str(match self {
            Format::F32 => "F32",
            Format::F16 => "F16",
            Format::BF16 => "BF16",
            Format::Q4_0 => "Q4_0",
            Format::Q4_1 => "Q4_1",
            Format::Q8_0 => "Q8_0",
        })
    }
}
