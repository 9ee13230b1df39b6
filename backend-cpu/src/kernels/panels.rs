//! A weight matrix, regrouped at load into panels of sixteen output columns.

use engine_core::weights::{Format, Tensor};

use super::blocks::{Bf16Block, Block, F16Block, F32Block, Q4_0Block, Q4_1Block, Q8_0Block};
use crate::isa::{LANES, Portable};

/// A weight matrix in one of the supported formats.
#[derive(Clone)]
pub(crate) enum PackedMatrix {
    F32(Panels<F32Block>),
    F16(Panels<F16Block>),
    Bf16(Panels<Bf16Block>),
    Q8_0(Panels<Q8_0Block>),
    Q4_0(Panels<Q4_0Block>),
    Q4_1(Panels<Q4_1Block>),
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
        }
    };
}
pub(crate) use with_panels;

impl PackedMatrix {
    /// Regroups a tensor, each of whose rows is an output. `None` if its format isn't supported.
    pub(crate) fn pack(tensor: &Tensor<'_>) -> Option<Self> {
        Some(match tensor.format() {
            Format::F32 => Self::F32(Panels::pack(tensor)),
            Format::F16 => Self::F16(Panels::pack(tensor)),
            Format::BF16 => Self::Bf16(Panels::pack(tensor)),
            Format::Q8_0 => Self::Q8_0(Panels::pack(tensor)),
            Format::Q4_0 => Self::Q4_0(Panels::pack(tensor)),
            Format::Q4_1 => Self::Q4_1(Panels::pack(tensor)),
            _ => return None,
        })
    }

    /// Inputs: elements of an activation row.
    pub(crate) fn depth(&self) -> usize {
        with_panels!(self, panels => panels.depth)
    }

    /// Outputs.
    pub(crate) fn columns(&self) -> usize {
        with_panels!(self, panels => panels.columns)
    }

    /// Panels of sixteen outputs.
    pub(crate) fn panel_count(&self) -> usize {
        self.columns().div_ceil(LANES)
    }

    /// Bytes in memory.
    pub(crate) fn bytes(&self) -> usize {
        with_panels!(self, panels => size_of_val(panels.blocks.as_slice()))
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

/// A matrix of `depth` inputs by `columns` outputs: panel after panel, and in a panel block after
/// block along the inputs. The last panel is padded with zeros.
#[derive(Clone)]
pub(crate) struct Panels<B> {
    blocks: Vec<B>,
    depth: usize,
    columns: usize,
}

impl<B: Block> Panels<B> {
    fn pack(tensor: &Tensor<'_>) -> Self {
        let (columns, depth) = (tensor.shape().rows(), tensor.shape().cols());
        let blocks_per_panel = depth.div_ceil(B::DEPTH);
        let mut blocks = vec![B::zero(); columns.div_ceil(LANES) * blocks_per_panel];
        for column in 0..columns {
            let row = tensor.row(column).unwrap_or_default();
            let panel = column / LANES * blocks_per_panel;
            for (index, block) in blocks[panel..panel + blocks_per_panel].iter_mut().enumerate() {
                block.set_column(column % LANES, row, index);
            }
        }
        Self { blocks, depth, columns }
    }

    /// Inputs.
    pub(crate) fn depth(&self) -> usize {
        self.depth
    }

    /// Outputs.
    pub(crate) fn columns(&self) -> usize {
        self.columns
    }

    /// The blocks of a panel.
    #[inline(always)]
    pub(crate) fn panel(&self, panel: usize) -> &[B] {
        let blocks = self.depth.div_ceil(B::DEPTH);
        &self.blocks[panel * blocks..(panel + 1) * blocks]
    }

    fn column(&self, column: usize, out: &mut [f32]) {
        let (panel, lane) = (self.panel(column / LANES), column % LANES);
        for (block, out) in panel.iter().zip(out.chunks_mut(B::DEPTH)) {
            let scale = block.scale(Portable);
            for (pair, out) in out.chunks_mut(2).enumerate() {
                let weights = block.pair(Portable, scale, pair);
                for (out, weights) in out.iter_mut().zip(weights) {
                    *out = weights[lane];
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use engine_core::weights::Shape;

    use super::*;

    #[test]
    fn packing_loses_nothing_in_any_format() {
        for format in Format::ALL {
            for (rows, cols) in [(1, 32), (16, 64), (37, 96)] {
                let values: Vec<f32> =
                    (0..rows * cols).map(|i| ((i * 7919) % 1009) as f32 / 300.0 - 1.6).collect();
                let tensor = Tensor::from_f32(format, Shape::matrix(rows, cols), &values).unwrap();
                let expected = tensor.to_f32();
                let packed = PackedMatrix::pack(&tensor).unwrap();
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
                let packed = PackedMatrix::pack(&tensor).unwrap();
                let mut row = vec![f32::NAN; cols];
                packed.column(2, &mut row);
                assert_eq!(row, &tensor.to_f32()[2 * cols..], "{format} {cols}");
            }
        }
    }
}
