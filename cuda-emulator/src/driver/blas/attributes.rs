//! Descriptors: sets of attributes with sizes and defaults, as `cublasLt.h` has them.

use super::{BlasAnswer, BlasStatus};

/// What a descriptor describes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `cublasLtMatmulDesc_t`.
    Matmul,
    /// `cublasLtMatrixLayout_t`.
    Layout,
    /// `cublasLtMatmulPreference_t`.
    Preference,
}

/// The attributes of a descriptor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attributes {
    kind: Kind,
    /// Number, size and value of each.
    values: Vec<(u32, usize, [u8; 8])>,
}

/// Numbers of the attributes that are used; the names are those of the header.
#[allow(missing_docs)]
pub(super) mod number {
    pub(in super::super) const COMPUTE_TYPE: u32 = 0;
    pub(in super::super) const SCALE_TYPE: u32 = 1;
    pub(in super::super) const POINTER_MODE: u32 = 2;
    pub(in super::super) const TRANSPOSE_A: u32 = 3;
    pub(in super::super) const TRANSPOSE_B: u32 = 4;
    pub(in super::super) const TRANSPOSE_C: u32 = 5;
    pub(in super::super) const FILL_MODE: u32 = 6;
    pub(in super::super) const EPILOGUE: u32 = 7;
    pub(in super::super) const BIAS: u32 = 8;
    pub(in super::super) const BIAS_STRIDE: u32 = 10;
    pub(in super::super) const ALPHA_STRIDE: u32 = 14;
    pub(in super::super) const A_SCALE: u32 = 17;
    pub(in super::super) const B_SCALE: u32 = 18;
    pub(in super::super) const C_SCALE: u32 = 19;
    pub(in super::super) const D_SCALE: u32 = 20;
    pub(in super::super) const AMAX_D: u32 = 21;
    pub(in super::super) const BIAS_TYPE: u32 = 26;
    pub(in super::super) const SCALE_MODES: std::ops::RangeInclusive<u32> = 31..=35;

    pub(in super::super) const TYPE: u32 = 0;
    pub(in super::super) const ORDER: u32 = 1;
    pub(in super::super) const ROWS: u32 = 2;
    pub(in super::super) const COLUMNS: u32 = 3;
    pub(in super::super) const LEADING: u32 = 4;
    pub(in super::super) const BATCHES: u32 = 5;
    pub(in super::super) const BATCH_STRIDE: u32 = 6;
    pub(in super::super) const PLANE_OFFSET: u32 = 7;
}

/// Number, size and default.
const MATMUL: [(u32, usize, i64); 34] = [
    (number::COMPUTE_TYPE, 4, 0),
    (number::SCALE_TYPE, 4, 0),
    (number::POINTER_MODE, 4, 0),
    (number::TRANSPOSE_A, 4, 0),
    (number::TRANSPOSE_B, 4, 0),
    (number::TRANSPOSE_C, 4, 0),
    // CUBLAS_FILL_MODE_FULL.
    (number::FILL_MODE, 4, 2),
    // CUBLASLT_EPILOGUE_DEFAULT.
    (number::EPILOGUE, 4, 1),
    (number::BIAS, 8, 0),
    (number::BIAS_STRIDE, 8, 0),
    // What epilogues keep for a backward pass: pointer, leading dimension, batch stride.
    (11, 8, 0),
    (12, 8, 0),
    (13, 8, 0),
    (number::ALPHA_STRIDE, 8, 0),
    // How many multiprocessors to use.
    (15, 4, 0),
    (number::A_SCALE, 8, 0),
    (number::B_SCALE, 8, 0),
    (number::C_SCALE, 8, 0),
    (number::D_SCALE, 8, 0),
    (number::AMAX_D, 8, 0),
    // The epilogue's second output: type, scale, largest value.
    (22, 4, -1),
    (23, 8, 0),
    (24, 8, 0),
    // Fast accumulation of fp8.
    (25, 1, 0),
    (number::BIAS_TYPE, 4, -1),
    // Counters of atomic synchronization.
    (27, 4, 0),
    (28, 4, 0),
    (29, 8, 0),
    (30, 8, 0),
    (31, 4, 0),
    (32, 4, 0),
    (33, 4, 0),
    (34, 4, 0),
    (35, 4, 0),
];

const LAYOUT: [(u32, usize, i64); 8] = [
    (number::TYPE, 4, 0),
    (number::ORDER, 4, 0),
    (number::ROWS, 8, 0),
    (number::COLUMNS, 8, 0),
    (number::LEADING, 8, 0),
    (number::BATCHES, 4, 1),
    (number::BATCH_STRIDE, 8, 0),
    (number::PLANE_OFFSET, 8, 0),
];

const PREFERENCE: [(u32, usize, i64); 9] = [
    // Search mode, workspace, reduction schemes, alignments of A, B, C and D, waves, implementations.
    (0, 4, 0),
    (1, 8, 0),
    (3, 4, -1),
    (5, 4, 256),
    (6, 4, 256),
    (7, 4, 256),
    (8, 4, 256),
    (9, 4, 0),
    (12, 8, -1),
];

impl Attributes {
    fn with_defaults(kind: Kind, table: &[(u32, usize, i64)]) -> Self {
        let value =
            |(number, bytes, default): &(u32, usize, i64)| (*number, *bytes, default.to_le_bytes());
        Self { kind, values: table.iter().map(value).collect() }
    }

    /// A matmul descriptor, as `cublasLtMatmulDescCreate` makes it.
    pub fn matmul(compute_type: u32, scale_type: u32) -> Self {
        let mut new = Self::with_defaults(Kind::Matmul, &MATMUL);
        new.put(number::COMPUTE_TYPE, u64::from(compute_type));
        new.put(number::SCALE_TYPE, u64::from(scale_type));
        new
    }

    /// A matrix layout, as `cublasLtMatrixLayoutCreate` makes it.
    pub fn layout(element: u32, rows: u64, columns: u64, leading: i64) -> Self {
        let mut new = Self::with_defaults(Kind::Layout, &LAYOUT);
        new.put(number::TYPE, u64::from(element));
        new.put(number::ROWS, rows);
        new.put(number::COLUMNS, columns);
        new.put(number::LEADING, leading as u64);
        new
    }

    /// Preferences, as `cublasLtMatmulPreferenceCreate` makes them. They are kept, and change
    /// nothing: no workspace is ever needed.
    pub fn preference() -> Self {
        Self::with_defaults(Kind::Preference, &PREFERENCE)
    }

    /// What it describes.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    fn put(&mut self, number: u32, value: u64) {
        if let Some(entry) = self.values.iter_mut().find(|(known, ..)| *known == number) {
            entry.2 = value.to_le_bytes();
        }
    }

    /// Sets an attribute from its bytes.
    ///
    /// # Errors
    ///
    /// An unknown number, or another size than the attribute's.
    pub fn set(&mut self, number: u32, bytes: &[u8]) -> BlasAnswer<()> {
        let found = self.values.iter_mut().find(|(known, ..)| *known == number);
        let (_, size, value) = found.ok_or(BlasStatus::INVALID_VALUE)?;
        if bytes.len() != *size {
            return Err(BlasStatus::INVALID_VALUE);
        }
        *value = [0; 8];
        for (to, from) in value.iter_mut().zip(bytes) {
            *to = *from;
        }
        Ok(())
    }

    /// The bytes of an attribute.
    ///
    /// # Errors
    ///
    /// An unknown number.
    pub fn get(&self, number: u32) -> BlasAnswer<&[u8]> {
        let found = self.values.iter().find(|(known, ..)| *known == number);
        let (_, size, value) = found.ok_or(BlasStatus::INVALID_VALUE)?;
        value.get(..*size).ok_or(BlasStatus::INTERNAL_ERROR)
    }

    /// The size of an attribute.
    ///
    /// # Errors
    ///
    /// An unknown number.
    pub fn size(&self, number: u32) -> BlasAnswer<usize> {
        self.get(number).map(<[u8]>::len)
    }

    /// An attribute as a number; 0 if there is none.
    pub(super) fn number(&self, number: u32) -> u64 {
        self.values
            .iter()
            .find(|(known, ..)| *known == number)
            .map_or(0, |(.., value)| u64::from_le_bytes(*value))
    }

    /// A 32-bit attribute.
    pub(super) fn short(&self, number: u32) -> u32 {
        self.number(number) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_keep_what_was_set_in_their_own_size() {
        let mut layout = Attributes::layout(2, 3, 4, 3);
        assert_eq!(layout.set(number::BATCHES, &7i32.to_le_bytes()), Ok(()));
        assert_eq!(layout.get(number::BATCHES), Ok(&7i32.to_le_bytes()[..]));
        assert_eq!(
            layout.set(number::BATCHES, &7i64.to_le_bytes()),
            Err(BlasStatus::INVALID_VALUE)
        );
        assert_eq!(layout.set(99, &[0; 4]), Err(BlasStatus::INVALID_VALUE));
        assert_eq!(layout.number(number::COLUMNS), 4);
    }
}
