//! A weight matrix as it is computed with: in f32, or in a reduced precision.

use std::ops::Range;

use backend_api::{
    Compute,
    weights::{Format, Shape, Tensor, TensorError},
};

use super::{
    bf16::{
        linear::{PairTask, TiledPairTask},
        pairs::Bf16Pairs,
        rows::{Bf16Rows, Bf16View},
    },
    blocks::{Block, F32Block},
    int8::{
        blocks::{ByteWeights, Q4_0Quads, Q4_1Quads, Q8_0Quads},
        linear::ByteTask,
        rows::{QuantizedRows, QuantizedView},
        tiled::{ByteScratch, TiledTask},
    },
    linear::{LinearRows, SCRATCH_BLOCKS},
    panels::{PackedMatrix, Panels},
};
use crate::{
    isa::{LANES, tiles::RowBlock},
    simd::Simd,
};

/// Rows from which on matrix units multiply bytes. Vectors and units give the same bits.
const TILED_ROWS: usize = 8;

/// A weight matrix, packed for a precision.
#[derive(Debug)]
pub(crate) enum Matrix {
    /// Weights become f32.
    Exact(PackedMatrix),
    /// Weights and activations are bytes.
    Bytes(ByteMatrix),
    /// Weights and activations are bf16.
    Pairs(Panels<Bf16Pairs>),
}

/// A matrix in bytes, by the format of the file.
pub(crate) enum ByteMatrix {
    Q8_0(Panels<Q8_0Quads>),
    Q4_0(Panels<Q4_0Quads>),
    Q4_1(Panels<Q4_1Quads>),
}

/// Calls an expression with the panels of whichever format it is.
macro_rules! with_byte_panels {
    ($matrix:expr, $panels:ident => $expression:expr) => {
        match $matrix {
            $crate::kernels::matrix::ByteMatrix::Q8_0($panels) => $expression,
            $crate::kernels::matrix::ByteMatrix::Q4_0($panels) => $expression,
            $crate::kernels::matrix::ByteMatrix::Q4_1($panels) => $expression,
        }
    };
}

#[cfg(test)]
pub(super) use with_byte_panels;

impl std::fmt::Debug for ByteMatrix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let columns = with_byte_panels!(self, panels => panels.columns());
        f.debug_struct("ByteMatrix").field("columns", &columns).finish_non_exhaustive()
    }
}

impl Matrix {
    /// The precision that products with weights in `format`, of `depth` inputs, are computed in where
    /// `wanted` is wanted. A precision that the format has no kernel in is computed exactly: bf16
    /// takes weights that aren't quantized, int8 takes those as Q8_0 where rows are whole blocks, and
    /// Q8_0, Q4_0 and Q4_1 as they are.
    pub(crate) fn compute_of(wanted: Compute, format: Format, depth: usize) -> Compute {
        let is_plain = matches!(format, Format::F32 | Format::F16 | Format::BF16);
        match wanted {
            Compute::Bf16 if is_plain => Compute::Bf16,
            Compute::Int8 if is_plain && depth.is_multiple_of(Q8_0Quads::DEPTH) => Compute::Int8,
            Compute::Int8 if matches!(format, Format::Q8_0 | Format::Q4_0 | Format::Q4_1) => {
                Compute::Int8
            }
            _ => Compute::Exact,
        }
    }

    /// Regroups a tensor, each of whose rows is an output, for a precision, or for what is computed in
    /// [instead](Self::compute_of).
    ///
    /// # Errors
    /// A tensor that is inconsistent.
    pub(crate) fn pack(tensor: &Tensor<'_>, compute: Compute) -> Result<Self, TensorError> {
        let format = tensor.format();
        let Shape::Matrix { cols, .. } = tensor.shape() else {
            return Ok(Self::Exact(PackedMatrix::pack(tensor)));
        };
        let convert = |format| Tensor::from_f32(format, tensor.shape(), &tensor.to_f32());
        Ok(match (Self::compute_of(compute, format, cols), format) {
            (Compute::Int8, Format::Q4_0) => Self::Bytes(ByteMatrix::Q4_0(Panels::pack(tensor))),
            (Compute::Int8, Format::Q4_1) => Self::Bytes(ByteMatrix::Q4_1(Panels::pack(tensor))),
            (Compute::Int8, Format::Q8_0) => Self::Bytes(ByteMatrix::Q8_0(Panels::pack(tensor))),
            (Compute::Int8, _) => {
                let tensor = convert(Format::Q8_0)?;
                Self::Bytes(ByteMatrix::Q8_0(Panels::pack(&tensor)))
            }
            (Compute::Bf16, Format::BF16) => Self::Pairs(Panels::pack(tensor)),
            (Compute::Bf16, _) => Self::Pairs(Panels::pack(&convert(Format::BF16)?)),
            _ => Self::Exact(PackedMatrix::pack(tensor)),
        })
    }

    /// Bytes in memory of a matrix in `format`, once it is [packed](Self::pack) for a precision.
    pub(crate) fn bytes_of(
        format: Format,
        (columns, depth): (usize, usize),
        compute: Compute,
    ) -> usize {
        match (Self::compute_of(compute, format, depth), format) {
            (Compute::Int8, Format::Q4_0) => Panels::<Q4_0Quads>::bytes_of(columns, depth),
            (Compute::Int8, Format::Q4_1) => Panels::<Q4_1Quads>::bytes_of(columns, depth),
            (Compute::Int8, _) => Panels::<Q8_0Quads>::bytes_of(columns, depth),
            (Compute::Bf16, _) => Panels::<Bf16Pairs>::bytes_of(columns, depth),
            _ => PackedMatrix::bytes_of(format, columns, depth),
        }
    }

    /// Inputs: elements of an activation row.
    pub(crate) fn depth(&self) -> usize {
        match self {
            Self::Exact(matrix) => matrix.depth(),
            Self::Bytes(matrix) => with_byte_panels!(matrix, panels => panels.depth()),
            Self::Pairs(panels) => panels.depth(),
        }
    }

    /// Outputs.
    pub(crate) fn columns(&self) -> usize {
        match self {
            Self::Exact(matrix) => matrix.columns(),
            Self::Bytes(matrix) => with_byte_panels!(matrix, panels => panels.columns()),
            Self::Pairs(panels) => panels.columns(),
        }
    }

    /// Panels of sixteen outputs.
    pub(crate) fn panel_count(&self) -> usize {
        self.columns().div_ceil(LANES)
    }

    /// Bytes in memory.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::Exact(matrix) => matrix.bytes(),
            Self::Bytes(matrix) => with_byte_panels!(matrix, panels => panels.bytes()),
            Self::Pairs(panels) => panels.bytes(),
        }
    }

    /// Writes the weights of output `column` to `out`, `depth` values: an embedding look-up.
    pub(crate) fn column(&self, column: usize, out: &mut [f32]) {
        match self {
            Self::Exact(matrix) => matrix.column(column, out),
            Self::Bytes(matrix) => with_byte_panels!(matrix, panels => panels.column(column, out)),
            Self::Pairs(panels) => panels.column(column, out),
        }
    }
}

/// Memory that products need.
pub(crate) struct LinearScratch {
    /// [`SCRATCH_BLOCKS`] for each thread.
    pub(super) expanded: Vec<F32Block>,
    /// By thread.
    pub(super) tiled: Vec<ByteScratch>,
    pub(super) bytes: QuantizedRows,
    pub(super) pairs: Bf16Rows,
}

/// How much memory inputs take once they are converted to a reduced precision.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ConvertedInputs {
    /// Blocks of bytes.
    blocks: usize,
    /// Values in bf16.
    values: usize,
}

impl ConvertedInputs {
    /// Makes it large enough for inputs `[rows, width]` too, in bytes, in bf16, in both or neither.
    pub(crate) fn widen(&mut self, shape: (usize, usize), in_bytes: bool, in_pairs: bool) {
        if in_bytes {
            self.blocks = self.blocks.max(QuantizedRows::blocks_of(shape));
        }
        if in_pairs {
            self.values = self.values.max(Bf16Rows::values_of(shape));
        }
    }

    /// Bytes of that memory.
    pub(crate) fn bytes(&self) -> u64 {
        let blocks = (self.blocks as u64).saturating_mul(size_of::<RowBlock>() as u64);
        blocks.saturating_add((self.values as u64).saturating_mul(size_of::<u16>() as u64))
    }
}

impl std::fmt::Debug for LinearScratch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LinearScratch").field("threads", &self.tiled.len()).finish_non_exhaustive()
    }
}

impl LinearScratch {
    /// For a pool of so many threads.
    pub(crate) fn new(threads: usize) -> Self {
        Self {
            expanded: vec![F32Block::zero(); threads * SCRATCH_BLOCKS],
            tiled: (0..threads).map(|_| ByteScratch::default()).collect(),
            bytes: QuantizedRows::default(),
            pairs: Bf16Rows::default(),
        }
    }

    /// Takes the memory for converted inputs beforehand.
    pub(crate) fn reserve(&mut self, inputs: ConvertedInputs) {
        self.bytes.reserve(inputs.blocks);
        self.pairs.reserve(inputs.values);
    }

    /// Bytes of converted inputs that there is memory for.
    pub(crate) fn converted_bytes(&self) -> u64 {
        ConvertedInputs { blocks: self.bytes.room(), values: self.pairs.room() }.bytes()
    }
}

/// Some panels of a matrix in bytes, all rows.
pub(super) fn multiply_bytes(
    simd: Simd,
    matrix: &ByteMatrix,
    range: Range<usize>,
    input: QuantizedView<'_>,
    rows: LinearRows<'_>,
    scratch: &mut ByteScratch,
) {
    with_byte_panels!(matrix, panels => byte_panels(simd, panels, range, input, rows, scratch));
}

fn byte_panels<B: ByteWeights>(
    simd: Simd,
    panels: &Panels<B>,
    range: Range<usize>,
    input: QuantizedView<'_>,
    rows: LinearRows<'_>,
    scratch: &mut ByteScratch,
) {
    match simd.tiles() {
        Some(tiles) if rows.rows >= TILED_ROWS => {
            simd.run_dot(TiledTask { tiles, panels, range, input, rows, scratch });
        }
        _ => simd.run_dot(ByteTask { panels, range, input, rows }),
    }
}

/// Some panels of a matrix in bf16, all rows.
pub(super) fn multiply_pairs(
    simd: Simd,
    panels: &Panels<Bf16Pairs>,
    range: Range<usize>,
    input: Bf16View<'_>,
    rows: LinearRows<'_>,
) {
    match simd.tiles() {
        Some(tiles) => simd.run_dot(TiledPairTask { tiles, panels, range, input, rows }),
        None => simd.run_dot(PairTask { panels, range, input, rows }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_matrix_is_computed_in_the_precision_that_is_told_beforehand() {
        let shape = |depth| Shape::matrix(16, depth);
        for format in Format::ALL {
            for depth in [40, 256] {
                let Ok(bytes) = shape(depth).byte_len(format) else { continue };
                let tensor = Tensor::new(format, shape(depth), vec![0; bytes]).unwrap();
                for wanted in [Compute::Exact, Compute::Bf16, Compute::Int8] {
                    let packed = match Matrix::pack(&tensor, wanted).unwrap() {
                        Matrix::Exact(_) => Compute::Exact,
                        Matrix::Pairs(_) => Compute::Bf16,
                        Matrix::Bytes(_) => Compute::Int8,
                    };
                    let told = Matrix::compute_of(wanted, format, depth);
                    assert_eq!(packed, told, "{format:?}, {depth} inputs, {wanted}");
                }
            }
        }
        assert_eq!(Matrix::compute_of(Compute::Int8, Format::Q4_K, 256), Compute::Exact);
        assert_eq!(Matrix::compute_of(Compute::Int8, Format::F32, 40), Compute::Exact);
    }
}
