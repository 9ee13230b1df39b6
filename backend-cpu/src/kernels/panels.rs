//! A weight matrix, regrouped at load into panels of sixteen output columns.

use backend_api::weights::{Format, Tensor};

use super::{
    blocks::{Bf16Block, Block, F16Block, F32Block, Q4_0Block, Q4_1Block, Q8_0Block},
    composed::{Composed, E2M1, Floats8, Indices, Integers, NonLinear, Normal, TwiceE2M1, U4Block},
    scales::{
        self, FourBits, Half, HalfAndMinimum, Power, Quotients, SignedBytes, SignedSixBits, Single,
        SixBits,
    },
};
use crate::isa::{LANES, Portable};

/// Lists the formats, each with its block: the matrix of one of them, and what is done with any.
macro_rules! packed_matrix {
    ($($format:ident as $variant:ident: $block:ty,)*) => {
        /// A weight matrix in one of the supported formats.
        #[derive(Clone)]
        pub(crate) enum PackedMatrix {
            $($variant(Panels<$block>),)*
        }

        impl PackedMatrix {
            /// Regroups a tensor, each of whose rows is an output.
            pub(crate) fn pack(tensor: &Tensor<'_>) -> Self {
                match tensor.format() {
                    $(Format::$format => Self::$variant(Panels::pack(tensor)),)*
                }
            }

            /// Bytes in memory of a matrix of `columns` outputs and `depth` inputs, once it is packed.
            pub(crate) fn bytes_of(format: Format, columns: usize, depth: usize) -> usize {
                match format {
                    $(Format::$format => Panels::<$block>::bytes_of(columns, depth),)*
                }
            }
        }
    };
}

packed_matrix! {
    F32 as F32: F32Block,
    F16 as F16: F16Block,
    BF16 as Bf16: Bf16Block,
    Q8_0 as Q8_0: Q8_0Block,
    Q4_0 as Q4_0: Q4_0Block,
    Q4_1 as Q4_1: Q4_1Block,
    Q5_0 as Q5_0: Composed<Integers<32, 16, 4, 16>, Half<scales::Q5_0>>,
    Q5_1 as Q5_1: Composed<Integers<32, 16, 4, 0>, HalfAndMinimum>,
    Q2_K as Q2K: Composed<Integers<256, 64, 0, 0>, FourBits>,
    Q3_K as Q3K: Composed<Integers<256, 64, 32, 4>, SignedSixBits<scales::Q3_K, 8, 4>>,
    Q4_K as Q4K: Composed<Integers<256, 128, 0, 0>, SixBits<scales::Q4_K>>,
    Q5_K as Q5K: Composed<Integers<256, 128, 32, 0>, SixBits<scales::Q5_K>>,
    Q6_K as Q6K: Composed<Integers<256, 128, 64, 32>, SignedBytes>,
    IQ4_NL as Iq4Nl: Composed<Indices<NonLinear, 32, 16>, Half<scales::IQ4_NL>>,
    IQ4_XS as Iq4Xs: Composed<Indices<NonLinear, 256, 128>, SignedSixBits<scales::IQ4_XS, 4, 2>>,
    MXFP4 as Mxfp4: Composed<Indices<TwiceE2M1, 32, 16>, Power>,
    F8_E4M3 as F8: Composed<Floats8<32>, Single<scales::F8_E4M3>>,
    U4 as U4: U4Block,
    NF4 as Nf4: Composed<Indices<Normal, 64, 32>, Single<scales::NF4>>,
    NVFP4 as Nvfp4: Composed<Indices<E2M1, 64, 32>, Quotients>,
}

/// Calls an expression with the panels of whichever format it is.
macro_rules! with_panels {
    ($matrix:expr, $panels:ident => $expression:expr) => {
        match $matrix {
            $crate::kernels::panels::PackedMatrix::F32($panels) => $expression,
            $crate::kernels::panels::PackedMatrix::F16($panels) => $expression,
            $crate::kernels::panels::PackedMatrix::Bf16($panels) => $expression,
            $crate::kernels::panels::PackedMatrix::Q8_0($panels) => $expression,
            $crate::kernels::panels::PackedMatrix::Q4_0($panels) => $expression,
            $crate::kernels::panels::PackedMatrix::Q4_1($panels) => $expression,
            $crate::kernels::panels::PackedMatrix::Q5_0($panels) => $expression,
            $crate::kernels::panels::PackedMatrix::Q5_1($panels) => $expression,
            $crate::kernels::panels::PackedMatrix::Q2K($panels) => $expression,
            $crate::kernels::panels::PackedMatrix::Q3K($panels) => $expression,
            $crate::kernels::panels::PackedMatrix::Q4K($panels) => $expression,
            $crate::kernels::panels::PackedMatrix::Q5K($panels) => $expression,
            $crate::kernels::panels::PackedMatrix::Q6K($panels) => $expression,
            $crate::kernels::panels::PackedMatrix::Iq4Nl($panels) => $expression,
            $crate::kernels::panels::PackedMatrix::Iq4Xs($panels) => $expression,
            $crate::kernels::panels::PackedMatrix::Mxfp4($panels) => $expression,
            $crate::kernels::panels::PackedMatrix::F8($panels) => $expression,
            $crate::kernels::panels::PackedMatrix::U4($panels) => $expression,
            $crate::kernels::panels::PackedMatrix::Nf4($panels) => $expression,
            $crate::kernels::panels::PackedMatrix::Nvfp4($panels) => $expression,
        }
    };
}
pub(crate) use with_panels;

/// The same for formats that are computed with straight from their blocks; does nothing for others.
macro_rules! with_direct_panels {
    ($matrix:expr, $panels:ident => $expression:expr) => {
        match $matrix {
            $crate::kernels::panels::PackedMatrix::F32($panels) => $expression,
            $crate::kernels::panels::PackedMatrix::F16($panels) => $expression,
            $crate::kernels::panels::PackedMatrix::Bf16($panels) => $expression,
            $crate::kernels::panels::PackedMatrix::Q8_0($panels) => $expression,
            $crate::kernels::panels::PackedMatrix::Q4_0($panels) => $expression,
            $crate::kernels::panels::PackedMatrix::Q4_1($panels) => $expression,
            _ => {}
        }
    };
}
pub(crate) use with_direct_panels;

impl PackedMatrix {
    /// Inputs: elements of an activation row.
    pub(crate) fn depth(&self) -> usize {
        with_panels!(self, panels => panels.depth)
    }

    /// Outputs.
    pub(crate) fn columns(&self) -> usize {
        with_panels!(self, panels => panels.columns)
    }

    /// Whether few rows are computed with straight from the blocks; otherwise these are expanded.
    pub(crate) fn is_direct(&self) -> bool {
        with_direct_panels!(self, _panels => return true);
        false
    }

    /// Bytes in memory.
    pub(crate) fn bytes(&self) -> usize {
        with_panels!(self, panels => panels.bytes())
    }

    /// Writes the weights of output `column` to `out`, `depth` values: an embedding look-up.
    pub(crate) fn column(&self, column: usize, out: &mut [f32]) {
        with_panels!(self, panels => panels.column(column, out));
    }
}

impl std::fmt::Debug for PackedMatrix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PackedMatrix")
            .field("columns", &self.columns())
            .field("depth", &self.depth())
            .field("bytes", &self.bytes())
            .finish()
    }
}

/// Panels whose blocks take turns in memory.
const INTERLEAVED: usize = 4;

/// A matrix of `depth` inputs by `columns` outputs.
///
/// Four panels are stored together: the first block of each, then the second of each, and so on
/// along the inputs. A batch of one row walks four panels at once, and so reads memory from its
/// first to its last byte, which is what prefetchers like best. The last panel is padded with
/// zeros; fewer than four panels at the end take turns by themselves.
#[derive(Clone)]
pub(crate) struct Panels<B> {
    blocks: Vec<B>,
    depth: usize,
    columns: usize,
}

impl<B> std::fmt::Debug for Panels<B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { depth, columns, .. } = self;
        f.debug_struct("Panels").field("depth", depth).field("columns", columns).finish()
    }
}

impl<B: Block> Panels<B> {
    /// Regroups a tensor of the block's format, each of whose rows is an output.
    pub(crate) fn pack(tensor: &Tensor<'_>) -> Self {
        let (columns, depth) = (tensor.shape().rows(), tensor.shape().cols());
        let blocks = columns.div_ceil(LANES) * depth.div_ceil(B::DEPTH);
        let mut this = Self { blocks: vec![B::zero(); blocks], depth, columns };
        for column in 0..columns {
            let row = tensor.row(column).unwrap_or_default();
            let (start, stride) = this.place(column / LANES);
            let blocks = this.blocks[start..].iter_mut().step_by(stride);
            for (index, block) in blocks.take(depth.div_ceil(B::DEPTH)).enumerate() {
                block.set_column(column % LANES, row, index);
            }
        }
        this
    }

    /// Bytes in memory of a matrix of `columns` outputs and `depth` inputs, once it is packed.
    pub(crate) fn bytes_of(columns: usize, depth: usize) -> usize {
        columns.div_ceil(LANES) * depth.div_ceil(B::DEPTH) * size_of::<B>()
    }

    /// Inputs.
    pub(crate) fn depth(&self) -> usize {
        self.depth
    }

    /// Outputs.
    pub(crate) fn columns(&self) -> usize {
        self.columns
    }

    /// Bytes in memory.
    pub(crate) fn bytes(&self) -> usize {
        size_of_val(self.blocks.as_slice())
    }

    /// The blocks of a panel.
    #[inline(always)]
    pub(crate) fn panel(&self, panel: usize) -> PanelBlocks<'_, B> {
        let (start, stride) = self.place(panel);
        PanelBlocks { blocks: &self.blocks[start..], stride, is_cached: false }
    }

    /// Where a panel's first block is, and how far it is from one block to the next.
    #[inline(always)]
    fn place(&self, panel: usize) -> (usize, usize) {
        let first = panel - panel % INTERLEAVED;
        let together = (self.columns.div_ceil(LANES) - first).min(INTERLEAVED);
        (first * self.depth.div_ceil(B::DEPTH) + panel % INTERLEAVED, together)
    }

    /// Writes the weights of output `column` to `out`, `depth` values.
    pub(crate) fn column(&self, column: usize, out: &mut [f32]) {
        let (panel, lane) = (self.panel(column / LANES), column % LANES);
        for (index, out) in out.chunks_mut(B::DEPTH).enumerate() {
            let block = panel.get(index);
            for (pair, out) in out.chunks_mut(2).enumerate() {
                let scale = block.scale(Portable, 2 * pair / B::GROUP);
                let weights = block.pair(Portable, scale, pair);
                for (out, weights) in out.iter_mut().zip(weights) {
                    *out = weights[lane];
                }
            }
        }
    }
}

/// A panel's blocks, along the inputs.
#[derive(Clone, Copy)]
pub(crate) struct PanelBlocks<'a, B> {
    /// From the panel's first block on; reaches beyond its last.
    blocks: &'a [B],
    stride: usize,
    /// It was just written, so there is nothing to fetch ahead.
    is_cached: bool,
}

impl<'a, B: Block> PanelBlocks<'a, B> {
    /// No panel.
    pub(crate) const EMPTY: Self = Self { blocks: &[], stride: 0, is_cached: true };

    /// Blocks side by side, which were just written.
    #[inline(always)]
    pub(crate) fn adjacent(blocks: &'a [B]) -> Self {
        Self { blocks, stride: 1, is_cached: true }
    }

    /// The block number `index`.
    #[inline(always)]
    pub(crate) fn get(&self, index: usize) -> &'a B {
        &self.blocks[index * self.stride]
    }

    /// All blocks from the first on, and how far it is from one to the next.
    #[inline(always)]
    pub(crate) fn as_slice(&self) -> (&'a [B], usize) {
        (self.blocks, self.stride)
    }

    /// The block to fetch from memory while block number `index` is used: one of this panel, or
    /// of what follows it.
    #[inline(always)]
    pub(crate) fn ahead(&self, index: usize) -> Option<&'a B> {
        if self.is_cached {
            return None;
        }
        self.blocks.get((index + B::PREFETCH_DISTANCE) * self.stride)
    }
}

#[cfg(test)]
mod tests {
    use backend_api::weights::Shape;

    use super::*;

    #[test]
    fn packing_loses_nothing_in_any_format() {
        for format in Format::ALL {
            for (rows, blocks) in [(1, 1), (16, 2), (37, 3)] {
                let cols = blocks * format.block_elements().max(32);
                let values: Vec<f32> =
                    (0..rows * cols).map(|i| ((i * 7919) % 1009) as f32 / 300.0 - 1.6).collect();
                let tensor = Tensor::from_f32(format, Shape::matrix(rows, cols), &values).unwrap();
                let expected = tensor.to_f32();
                let packed = PackedMatrix::pack(&tensor);
                assert_eq!(PackedMatrix::bytes_of(format, rows, cols), packed.bytes(), "{format}");
                if rows == LANES {
                    assert_eq!(packed.bytes(), tensor.data().len(), "{format}");
                }
                let mut row = vec![f32::NAN; cols];
                for column in 0..rows {
                    packed.column(column, &mut row);
                    assert_eq!(row, &expected[column * cols..][..cols], "{format} row {column}");
                }
            }
        }
    }

    #[test]
    fn depth_need_not_be_a_whole_number_of_blocks() {
        for format in [Format::F32, Format::F16, Format::BF16] {
            for cols in [1, 5, 8, 13] {
                let values: Vec<f32> = (0..3 * cols).map(|i| i as f32 * 0.5).collect();
                let tensor = Tensor::from_f32(format, Shape::matrix(3, cols), &values).unwrap();
                let packed = PackedMatrix::pack(&tensor);
                let mut row = vec![f32::NAN; cols];
                packed.column(2, &mut row);
                assert_eq!(row, &tensor.to_f32()[2 * cols..], "{format} {cols}");
            }
        }
    }
}
