//! Integers with a scale and a zero point for each group of inputs: GPTQ (Frantar et al. 2022), AWQ
//! (Lin et al. 2023) and compressed-tensors. A weight is `(quant - zero) * scale`.

use safetensors::tensor::Dtype;

use super::{
    parts::{Floats, Parts, Recipe, push_float, push_nibbles},
    scheme::Scheme,
};
use crate::weights::{Format, Shape, WeightsError};

/// Where AWQ has number `i` of eight: its words hold numbers 0, 2, 4, 6, 1, 3, 5, 7.
const AWQ_PLACES: [usize; 8] = [0, 4, 1, 5, 2, 6, 3, 7];
/// Inputs of a block.
const BLOCK: usize = 32;

/// `qweight` `[inputs / n, outputs]`, `qzeros` `[groups, outputs / n]`, `scales` `[groups, outputs]`,
/// with `n` numbers a word; `g_idx` `[inputs]` names each input's group.
pub(super) fn gptq<'a>(parts: &Parts<'a>, scheme: &Scheme) -> Result<Recipe<'a>, WeightsError> {
    let (bits, a_word) = (scheme.bits, 32 / scheme.bits);
    let zero_offset = scheme.zero_offset;
    let quants = parts.words(".qweight", None, None)?;
    let (rows, cols) = (quants.columns, quants.rows.saturating_mul(a_word));
    let scales = parts.floats(".scales")?;
    let groups = groups(parts, ".scales", &scales, rows)?;
    let zeros = parts.words(".qzeros", Some(groups), Some(rows.div_ceil(a_word)))?;
    let order = GroupOrder::read(parts, ".g_idx", groups, cols)?;
    let matrix = Matrix {
        rows,
        cols,
        bits,
        order,
        groups,
        scales,
        quant: move |row, col| quants.number(col / a_word, row, col % a_word, bits),
        zero: move |row, group| {
            zeros.number(group, row / a_word, row % a_word, bits).wrapping_add(zero_offset)
        },
        scale: move |row: usize, group: usize| scales.get(group * rows + row),
    };
    matrix.recipe(parts)
}

/// `qweight` `[inputs, outputs / 8]`, `qzeros` `[groups, outputs / 8]`, `scales` `[groups, outputs]`.
pub(super) fn awq<'a>(parts: &Parts<'a>, scheme: &Scheme) -> Result<Recipe<'a>, WeightsError> {
    let bits = scheme.bits;
    let quants = parts.words(".qweight", None, None)?;
    let (rows, cols) = (quants.columns.saturating_mul(8), quants.rows);
    let scales = parts.floats(".scales")?;
    let groups = groups(parts, ".scales", &scales, rows)?;
    let zeros = parts.words(".qzeros", Some(groups), Some(quants.columns))?;
    let matrix = Matrix {
        rows,
        cols,
        bits,
        order: GroupOrder::regular(parts, groups, cols)?,
        groups,
        scales,
        quant: move |row, col| quants.number(col, row / 8, AWQ_PLACES[row % 8], bits),
        zero: move |row, group| zeros.number(group, row / 8, AWQ_PLACES[row % 8], bits),
        scale: move |row: usize, group: usize| scales.get(group * rows + row),
    };
    matrix.recipe(parts)
}

/// `weight_packed` `[outputs, inputs / n]`, `weight_scale` `[outputs, groups]`, and for asymmetric
/// quantization `weight_zero_point` `[outputs / n, groups]`; `weight_g_idx` as in GPTQ. Numbers are
/// signed, and stored with half of their range added.
pub(super) fn packed<'a>(parts: &Parts<'a>, scheme: &Scheme) -> Result<Recipe<'a>, WeightsError> {
    let (bits, a_word) = (scheme.bits, 32 / scheme.bits);
    let quants = parts.words(".weight_packed", None, None)?;
    let rows = quants.rows;
    let cols = match parts.optional(".weight_shape") {
        // The last word of a row may not be full.
        Some(shape) => stored_columns(shape.bytes.as_chunks().0, shape.dtype)
            .filter(|cols| cols.div_ceil(a_word) == quants.columns)
            .ok_or_else(|| parts.unexpected(".weight_shape", &shape))?,
        None => quants.columns.saturating_mul(a_word),
    };
    let scales = parts.floats(".weight_scale")?;
    let groups = match *scales.raw.shape {
        [r, groups @ (1..)] if r == rows => groups,
        _ => return Err(parts.unexpected(".weight_scale", &scales.raw)),
    };
    let zeros = match parts.optional(".weight_zero_point") {
        Some(raw) if raw.dtype == Dtype::I32 => {
            Some(parts.words(".weight_zero_point", Some(rows.div_ceil(a_word)), Some(groups))?)
        }
        Some(raw) => return Err(parts.unexpected(".weight_zero_point", &raw)),
        None => None,
    };
    let middle = 1u8 << (bits - 1);
    let matrix = Matrix {
        rows,
        cols,
        bits,
        order: GroupOrder::read(parts, ".weight_g_idx", groups, cols)?,
        groups,
        scales,
        quant: move |row, col| quants.number(row, col / a_word, col % a_word, bits),
        zero: move |row: usize, group| {
            zeros.map_or(middle, |zeros| zeros.number(row / a_word, group, row % a_word, bits))
        },
        scale: move |row: usize, group: usize| scales.get(row * groups + group),
    };
    matrix.recipe(parts)
}

/// compressed-tensors' `weight` of signed bytes, with a scale for each output, or for all.
pub(super) fn whole_bytes<'a>(parts: &Parts<'a>) -> Result<Recipe<'a>, WeightsError> {
    let raw = parts.required(".weight")?;
    let [rows, cols] = *raw.shape else { return Err(parts.unexpected(".weight", &raw)) };
    let scales = parts.floats(".weight_scale")?;
    let groups = match *scales.raw.shape {
        [r, 1] | [r] if r == rows => 1,
        [r, groups @ (1..)] if r == rows => groups,
        [] | [1] | [1, 1] => 0,
        _ => return Err(parts.unexpected(".weight_scale", &scales.raw)),
    };
    let matrix = Matrix {
        rows,
        cols,
        bits: 8,
        order: GroupOrder::regular(parts, groups.max(1), cols)?,
        groups: groups.max(1),
        scales,
        quant: move |row, col| raw.bytes.get(row * cols + col).map_or(128, |byte| byte ^ 0x80),
        zero: move |_, _| 128,
        scale: move |row: usize, group: usize| scales.get(row * groups + group),
    };
    matrix.recipe(parts)
}

/// Groups of inputs, of which `scales` `[groups, outputs]` has a row each.
fn groups(
    parts: &Parts<'_>,
    suffix: &str,
    scales: &Floats<'_>,
    outputs: usize,
) -> Result<usize, WeightsError> {
    match *scales.raw.shape {
        [groups @ (1..), columns] if columns == outputs => Ok(groups),
        _ => Err(parts.unexpected(suffix, &scales.raw)),
    }
}

/// The columns of `weight_shape`, `[rows, columns]`.
fn stored_columns(shape: &[[u8; 8]], dtype: Dtype) -> Option<usize> {
    match shape {
        [_, cols] if dtype == Dtype::I64 => usize::try_from(i64::from_le_bytes(*cols)).ok(),
        _ => None,
    }
}

/// Which group an input is in.
enum GroupOrder {
    /// So many neighbours in each.
    Regular(usize),
    /// One after another.
    Listed(Vec<usize>),
}

impl GroupOrder {
    fn regular(parts: &Parts<'_>, groups: usize, cols: usize) -> Result<Self, WeightsError> {
        let size = cols.div_ceil(groups.max(1)).max(1);
        match cols.div_ceil(size) {
            needed if needed == groups || cols == 0 => Ok(Self::Regular(size)),
            _ => Err(parts.fault(format!("{cols} inputs are not {groups} groups"))),
        }
    }

    fn read(
        parts: &Parts<'_>,
        suffix: &str,
        groups: usize,
        cols: usize,
    ) -> Result<Self, WeightsError> {
        let Some(raw) = parts.optional(suffix) else { return Self::regular(parts, groups, cols) };
        if raw.dtype != Dtype::I32 || *raw.shape != [cols] {
            return Err(parts.unexpected(suffix, &raw));
        }
        let group = |bytes: &[u8; 4]| usize::try_from(i32::from_le_bytes(*bytes)).ok();
        let listed: Option<Vec<usize>> =
            raw.bytes.as_chunks().0.iter().map(|it| group(it).filter(|it| *it < groups)).collect();
        let listed = listed.ok_or_else(|| {
            parts.fault(format!("`{}{suffix}` names a group beyond {groups}", parts.module))
        })?;
        let regular = Self::regular(parts, groups, cols);
        if let Ok(Self::Regular(size)) = regular
            && listed.iter().enumerate().all(|(col, group)| col / size == *group)
        {
            return regular;
        }
        Ok(Self::Listed(listed))
    }

    #[inline]
    fn of(&self, col: usize) -> usize {
        match self {
            Self::Regular(size) => col / size,
            Self::Listed(listed) => listed.get(col).copied().unwrap_or_default(),
        }
    }

    /// Whether blocks lie within groups.
    fn holds_blocks(&self, cols: usize) -> bool {
        let is_whole = |size: usize| size.is_multiple_of(BLOCK) || size >= cols;
        cols.is_multiple_of(BLOCK) && matches!(self, Self::Regular(size) if is_whole(*size))
    }
}

/// A matrix of outputs by inputs, put together from functions of row and column or group.
struct Matrix<'a, Q, Z, S> {
    rows: usize,
    cols: usize,
    bits: usize,
    order: GroupOrder,
    groups: usize,
    scales: Floats<'a>,
    quant: Q,
    zero: Z,
    scale: S,
}

impl<'a, Q, Z, S> Matrix<'a, Q, Z, S>
where
    Q: Fn(usize, usize) -> u8 + 'a,
    Z: Fn(usize, usize) -> u8 + 'a,
    S: Fn(usize, usize) -> f32 + 'a,
{
    fn recipe(self, parts: &Parts<'a>) -> Result<Recipe<'a>, WeightsError> {
        let (format, shape) = (self.format(), Shape::matrix(self.rows, self.cols));
        parts.recipe(format, shape, move |bytes| {
            for row in 0..self.rows {
                match format.is_quantized() {
                    true => self.blocks(format, row, bytes),
                    false => self.expand(format, row, bytes),
                }
            }
        })
    }

    /// The smallest format that holds the very numbers, or else that of the scales.
    fn format(&self) -> Format {
        let middle = 1u8 << (self.bits - 1);
        let is_symmetric = || {
            (0..self.rows)
                .all(|row| (0..self.groups).all(|group| (self.zero)(row, group) == middle))
        };
        let has_halves = self.scales.raw.dtype == Dtype::F16;
        match (self.order.holds_blocks(self.cols), self.bits) {
            (true, 4) if has_halves && is_symmetric() => Format::Q4_0,
            (true, 4) => Format::U4,
            (true, 8) if has_halves && is_symmetric() => Format::Q8_0,
            _ => self.scales.expanded(),
        }
    }

    fn blocks(&self, format: Format, row: usize, bytes: &mut Vec<u8>) {
        for start in (0..self.cols).step_by(BLOCK) {
            let group = self.order.of(start);
            let quants: [u8; BLOCK] = std::array::from_fn(|i| (self.quant)(row, start + i));
            let scale = (self.scale)(row, group);
            match format {
                Format::U4 => {
                    bytes.extend(scale.to_le_bytes());
                    bytes.push((self.zero)(row, group));
                    push_nibbles(bytes, &quants);
                }
                Format::Q4_0 => {
                    push_float(bytes, Format::F16, scale);
                    push_nibbles(bytes, &quants);
                }
                _ => {
                    push_float(bytes, Format::F16, scale);
                    bytes.extend(quants.map(|quant| quant ^ 0x80));
                }
            }
        }
    }

    fn expand(&self, format: Format, row: usize, bytes: &mut Vec<u8>) {
        for col in 0..self.cols {
            let group = self.order.of(col);
            let level = i16::from((self.quant)(row, col)) - i16::from((self.zero)(row, group));
            push_float(bytes, format, f32::from(level) * (self.scale)(row, group));
        }
    }
}
