//! The 4 bits of bitsandbytes (QLoRA, Dettmers et al. 2023): nibbles that name entries of a table, the
//! first element in the high one, and for each block of elements, in the order of the matrix, its
//! greatest magnitude, which may be quantized itself.

use safetensors::tensor::Dtype;

use super::parts::{Floats, Parts, Recipe, push_float, push_nibbles};
use crate::{
    model::Fields,
    weights::{Format, Shape, WeightsError},
};

/// The longest description of a weight, in bytes: real ones have about 2,000, and JSON takes many
/// times its length in memory.
const MAX_STATE_BYTES: usize = 64 << 10;

/// Elements of a block of ours.
const BLOCK: usize = 64;

pub(super) fn normal<'a>(parts: &Parts<'a>) -> Result<Recipe<'a>, WeightsError> {
    let state = State::read(parts)?;
    let [rows, cols] = state.shape;
    let raw = parts.required(".weight")?;
    let elements = rows.checked_mul(cols).filter(|it| it.div_ceil(2) == raw.bytes.len());
    let elements = elements.ok_or_else(|| parts.unexpected(".weight", &raw))?;
    let magnitudes = state.magnitudes(parts, elements.div_ceil(state.block))?;
    let table = parts.floats(".weight.quant_map")?;
    if table.raw.dtype != Dtype::F32 || *table.raw.shape != [16] {
        return Err(parts.unexpected(".weight.quant_map", &table.raw));
    }
    let table: [f32; 16] = std::array::from_fn(|index| table.get(index));
    let nibble = move |element: usize| {
        let byte = raw.bytes.get(element / 2).copied().unwrap_or_default();
        (byte >> (4 * (1 - element % 2))) & 15
    };
    let holds_blocks = cols.is_multiple_of(BLOCK) && state.block.is_multiple_of(BLOCK);
    let is_normal = is_table_of_nf4(&table);
    let format = if holds_blocks && is_normal { Format::NF4 } else { state.expanded };
    let block = state.block;
    parts.recipe(format, Shape::matrix(rows, cols), move |bytes| {
        let magnitude = |element: usize| magnitudes.get(element / block).copied().unwrap_or(0.0);
        match format {
            Format::NF4 => {
                for start in (0..elements).step_by(BLOCK) {
                    bytes.extend(magnitude(start).to_le_bytes());
                    for start in [start, start + 32] {
                        push_nibbles(bytes, &std::array::from_fn(|i| nibble(start + i)));
                    }
                }
            }
            _ => {
                for element in 0..elements {
                    let value = table[usize::from(nibble(element))] * magnitude(element);
                    push_float(bytes, format, value);
                }
            }
        }
    })
}

/// Whether a table is that of [`Format::NF4`].
fn is_table_of_nf4(table: &[f32; 16]) -> bool {
    let block: Vec<u8> = 1f32.to_le_bytes().into_iter().chain([0; 32]).collect();
    Format::NF4.fields(&block).is_some_and(|fields| {
        (0..16).zip(table).all(|(index, entry)| fields.levels.value(index, 0) == *entry)
    })
}

/// The JSON that lies in a tensor of bytes beside the weight.
struct State {
    shape: [usize; 2],
    /// Elements that share a magnitude.
    block: usize,
    /// Magnitudes that share a magnitude, and what was subtracted from them first.
    nested: Option<(usize, f32)>,
    /// What the library expands to.
    expanded: Format,
}

impl State {
    fn read(parts: &Parts<'_>) -> Result<Self, WeightsError> {
        let kinds = ["nf4", "fp4"];
        let stored = kinds
            .iter()
            .find_map(|kind| parts.optional(&format!(".weight.quant_state.bitsandbytes__{kind}")));
        let fault = |what: &str| parts.fault(format!("`quant_state` {what}"));
        let raw = stored.ok_or_else(|| fault("is missing: only 4 bits are supported"))?;
        if raw.bytes.len() > MAX_STATE_BYTES {
            return Err(fault(&format!(
                "has {} bytes, more than {MAX_STATE_BYTES}",
                raw.bytes.len()
            )));
        }
        let text = std::str::from_utf8(raw.bytes).map_err(|_| fault("is not UTF-8"))?;
        let read = |error: crate::model::ConfigError| fault(&error.to_string());
        let json = Fields::parse(text).map_err(read)?;
        let shape = json.usizes("shape").map_err(read)?;
        let shape = shape.and_then(|shape| <[usize; 2]>::try_from(shape).ok());
        let block = json.required_usize("blocksize").map_err(read)?;
        if block == 0 {
            return Err(fault("has blocks of no elements"));
        }
        let nested = match json.usize("nested_blocksize").map_err(read)? {
            Some(0) => return Err(fault("has nested blocks of no elements")),
            Some(size) => Some((size, json.f32("nested_offset").map_err(read)?.unwrap_or(0.0))),
            None => None,
        };
        let expanded = match json.string("dtype").map_err(read)? {
            Some("float16") => Format::F16,
            Some("bfloat16") => Format::BF16,
            _ => Format::F32,
        };
        let shape = shape.ok_or_else(|| fault("has no shape of a matrix"))?;
        Ok(Self { shape, block, nested, expanded })
    }

    /// The magnitude of each block.
    fn magnitudes(&self, parts: &Parts<'_>, blocks: usize) -> Result<Vec<f32>, WeightsError> {
        let absmax = parts.required(".weight.absmax")?;
        let unexpected = || parts.unexpected(".weight.absmax", &absmax);
        match (self.nested, absmax.dtype) {
            (None, Dtype::F32) if absmax.bytes.len() == blocks.saturating_mul(4) => {
                Ok((0..blocks).map(|index| Floats { raw: absmax }.get(index)).collect())
            }
            (Some((size, offset)), Dtype::U8) if absmax.bytes.len() == blocks => {
                let table = parts.floats(".weight.nested_quant_map")?;
                if *table.raw.shape != [256] {
                    return Err(parts.unexpected(".weight.nested_quant_map", &table.raw));
                }
                let scales = parts.floats(".weight.nested_absmax")?;
                if *scales.raw.shape != [blocks.div_ceil(size)] {
                    return Err(parts.unexpected(".weight.nested_absmax", &scales.raw));
                }
                let value = |(index, code): (usize, &u8)| {
                    table.get(usize::from(*code)) * scales.get(index / size) + offset
                };
                Ok(absmax.bytes.iter().enumerate().map(value).collect())
            }
            _ => Err(unexpected()),
        }
    }
}
