//! Small floats with scales: E4M3 (Micikevicius et al. 2022), NVFP4, and the microscaling formats of
//! the Open Compute Project.

use safetensors::tensor::Dtype;

use super::{
    parts::{Floats, Parts, Recipe, push_float, push_nibbles},
    scheme::Scheme,
};
use crate::weights::{Format, Shape, WeightsError};

/// What E2M1 stands for.
const E2M1: [f32; 16] =
    [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];

/// `weight` in E4M3, to be multiplied with `weight_scale_inv` or `weight_scale`: one number, one for
/// each output, or one for each block of outputs and inputs, of which the last ones may be cut.
pub(super) fn floats8<'a>(parts: &Parts<'a>, scheme: &Scheme) -> Result<Recipe<'a>, WeightsError> {
    let raw = parts.required(if parts.module == parts.name { "" } else { ".weight" })?;
    let [rows, cols] = *raw.shape else { return Err(parts.unexpected(".weight", &raw)) };
    let suffix = match parts.optional(".weight_scale_inv") {
        Some(_) => ".weight_scale_inv",
        None => ".weight_scale",
    };
    let scales = parts.floats(suffix)?;
    let [block_rows, block_cols] = scheme.block.unwrap_or([128, 128]);
    let blocks = [rows.div_ceil(block_rows), cols.div_ceil(block_cols)];
    // How many outputs and inputs share a scale.
    let (tall, wide, across) = match *scales.raw.shape {
        [] | [1] | [1, 1] => (rows.max(1), cols.max(1), 1),
        [r] | [r, 1] if r == rows => (1, cols.max(1), 1),
        [r, c] if [r, c] == blocks => (block_rows, block_cols, c),
        _ => return Err(parts.unexpected(suffix, &scales.raw)),
    };
    let holds_blocks = cols.is_multiple_of(32) && (wide.is_multiple_of(32) || wide >= cols);
    let format = if holds_blocks { Format::F8_E4M3 } else { Format::F32 };
    let scale = move |row: usize, col: usize| scales.get(row / tall * across + col / wide);
    let weights = Floats { raw };
    parts.recipe(format, Shape::matrix(rows, cols), move |bytes| {
        for (row, codes) in raw.bytes.chunks_exact(cols.max(1)).enumerate() {
            match holds_blocks {
                true => {
                    for (block, codes) in codes.chunks_exact(32).enumerate() {
                        bytes.extend(scale(row, 32 * block).to_le_bytes());
                        bytes.extend(codes);
                    }
                }
                false => (0..cols).for_each(|col| {
                    let value = weights.get(row * cols + col) * scale(row, col);
                    push_float(bytes, format, value);
                }),
            }
        }
    })
}

/// NVFP4 of compressed-tensors: `weight_packed` `[outputs, inputs / 2]`, the even input in the low
/// nibble; `weight_scale` `[outputs, inputs / 16]` in E4M3, divided by `weight_global_scale`.
pub(super) fn packed<'a>(parts: &Parts<'a>) -> Result<Recipe<'a>, WeightsError> {
    let raw = parts.required(".weight_packed")?;
    let [rows, half] = *raw.shape else { return Err(parts.unexpected(".weight_packed", &raw)) };
    let cols = half.saturating_mul(2);
    let scales = parts.required(".weight_scale")?;
    if scales.dtype != Dtype::F8_E4M3 || *scales.shape != [rows, cols.div_ceil(16)] {
        return Err(parts.unexpected(".weight_scale", &scales));
    }
    let divisor = parts.floats(".weight_global_scale")?;
    if divisor.raw.dtype != Dtype::F32 || divisor.raw.bytes.len() != 4 {
        return Err(parts.unexpected(".weight_global_scale", &divisor.raw));
    }
    let divisor = divisor.get(0);
    let format = if cols.is_multiple_of(64) { Format::NVFP4 } else { Format::F32 };
    let groups = cols.div_ceil(16);
    let nibble = move |row: usize, col: usize| {
        let byte = raw.bytes.get(row * half + col / 2).copied().unwrap_or_default();
        (byte >> (4 * (col % 2))) & 15
    };
    parts.recipe(format, Shape::matrix(rows, cols), move |bytes| {
        for row in 0..rows {
            if format == Format::F32 {
                for col in 0..cols {
                    let scale = Floats { raw: scales }.get(row * groups + col / 16) / divisor;
                    let value = E2M1[usize::from(nibble(row, col))] * scale;
                    bytes.extend(value.to_le_bytes());
                }
                continue;
            }
            for start in (0..cols).step_by(64) {
                bytes.extend(divisor.to_le_bytes());
                let first = row * groups + start / 16;
                bytes.extend(scales.bytes.get(first..first + 4).unwrap_or(&[0; 4]));
                for start in [start, start + 32] {
                    push_nibbles(bytes, &std::array::from_fn(|i| nibble(row, start + i)));
                }
            }
        }
    })
}

/// gpt-oss: `M_blocks` `[.., outputs, inputs / 32, 16]`, the even input in the low nibble, and
/// `M_scales` `[.., outputs, inputs / 32]`, the exponents of powers of two.
pub(super) fn microscaled<'a>(parts: &Parts<'a>) -> Result<Recipe<'a>, WeightsError> {
    let blocks = parts.required("_blocks")?;
    let scales = parts.required("_scales")?;
    let [dims @ .., 16] = blocks.shape else { return Err(parts.unexpected("_blocks", &blocks)) };
    let is_bytes = |dtype| matches!(dtype, Dtype::U8 | Dtype::F8_E8M0);
    if scales.shape != dims || blocks.dtype != Dtype::U8 || !is_bytes(scales.dtype) {
        return Err(parts.unexpected("_scales", &scales));
    }
    let shape = match *dims {
        [rows, blocks] => Shape::matrix(rows, blocks.saturating_mul(32)),
        [count, rows, blocks] => Shape::stack(count, rows, blocks.saturating_mul(32)),
        _ => return Err(parts.unexpected("_blocks", &blocks)),
    };
    parts.recipe(Format::MXFP4, shape, move |bytes| {
        for (block, exponent) in blocks.bytes.as_chunks::<16>().0.iter().zip(scales.bytes) {
            bytes.push(*exponent);
            push_nibbles(bytes, &std::array::from_fn(|i| (block[i / 2] >> (4 * (i % 2))) & 15));
        }
    })
}
