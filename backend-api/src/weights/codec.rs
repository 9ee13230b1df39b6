//! Reference encoding and decoding of every [`Format`], written for clarity: backends test
//! their kernels against it.

use half::{bf16, f16};

use super::{
    BlockFields, Format,
    fields::{Levels, f32_to_f8},
    layout::{GroupScale, Layout, Scale, greatest, half_of_power, power_of_half},
};

/// Decodes as many blocks as `bytes` and `values` both hold; callers pass lengths that agree.
pub(super) fn decode(format: Format, bytes: &[u8], values: &mut [f32]) {
    let blocks = bytes
        .chunks_exact(format.block_bytes())
        .zip(values.chunks_exact_mut(format.block_elements()));
    match format {
        Format::F32 => blocks.for_each(|(block, out)| {
            out[0] = f32::from_le_bytes([block[0], block[1], block[2], block[3]]);
        }),
        Format::F16 => blocks.for_each(|(block, out)| {
            out[0] = f16::from_le_bytes([block[0], block[1]]).to_f32();
        }),
        Format::BF16 => blocks.for_each(|(block, out)| {
            out[0] = bf16::from_le_bytes([block[0], block[1]]).to_f32();
        }),
        _ => blocks.for_each(|(block, out)| {
            if let Some(fields) = format.fields(block) {
                decode_fields(&fields, format.group_elements(), out);
            }
        }),
    }
}

fn decode_fields(fields: &BlockFields, group: usize, out: &mut [f32]) {
    let groups = out.chunks_mut(group).zip(fields.quants.chunks(group));
    for (index, (values, quants)) in groups.enumerate() {
        let (scale, minimum) = (fields.scale_of(index), fields.minimum_of(index));
        for (value, &quant) in values.iter_mut().zip(quants) {
            let scaled = fields.levels.value(quant, fields.zero) * scale;
            *value = minimum.map_or(scaled, |minimum| scaled + minimum);
        }
    }
}

/// Appends `values`, a whole number of blocks, to `bytes`.
pub(super) fn encode(format: Format, values: &[f32], bytes: &mut Vec<u8>) {
    for block in values.chunks_exact(format.block_elements()) {
        match (format.layout(), format) {
            (Some(layout), _) => layout.write(&quantize(layout, block), bytes),
            (None, Format::F16) => bytes.extend(f16::from_f32(block[0]).to_le_bytes()),
            (None, Format::BF16) => bytes.extend(bf16::from_f32(block[0]).to_le_bytes()),
            (None, _) => bytes.extend(block[0].to_le_bytes()),
        }
    }
}

/// Chooses scales by the extremes of each group, then for each element the nearest quant.
fn quantize(layout: &Layout, values: &[f32]) -> BlockFields {
    let mut fields = BlockFields::new(layout);
    fields.zero = if layout.zero.is_some() { greatest(layout.quants).div_ceil(2) } else { 0 };
    let ideals: Vec<(f32, f32)> =
        values.chunks(layout.group).map(|group| ideal(layout, &fields, group)).collect();
    set_scales(layout, &mut fields, &ideals);
    let has_minima = !layout.group_minima.is_empty();
    if layout.minimum.is_some() {
        let deepest = ideals.iter().fold(0.0, |deepest: f32, (_, low)| deepest.max(-low));
        let unit = match has_minima {
            true => deepest / f32::from(greatest(layout.group_minima)),
            false => ideals[0].1,
        };
        fields.minimum = stored_f16(unit);
    }
    for (index, (_, low)) in ideals.iter().enumerate().filter(|_| has_minima) {
        fields.group_minima[index] = divide(-low, fields.minimum).round() as u8;
    }
    for (index, group) in values.chunks(layout.group).enumerate() {
        let (scale, minimum) = (fields.scale_of(index), fields.minimum_of(index).unwrap_or(0.0));
        for (offset, value) in group.iter().enumerate() {
            let level = divide(value - minimum, scale);
            fields.quants[index * layout.group + offset] = nearest(layout, &fields, level);
        }
    }
    fields
}

/// The scale that makes the group's extremes fit, and the minimum to go with it.
fn ideal(layout: &Layout, fields: &BlockFields, group: &[f32]) -> (f32, f32) {
    let (low, high) = bounds(group);
    let largest = high.max(-low);
    let quants = f32::from(greatest(layout.quants));
    if layout.minimum.is_some() {
        // Small minima are multiples of a unit that is subtracted: they reach below zero alone.
        let low = if layout.group_minima.is_empty() { low } else { low.min(0.0) };
        return ((high - low) / quants, low);
    }
    let scale = match fields.levels {
        Levels::Less(less) if layout.group_scale == GroupScale::One => {
            // Levels reach further below zero than above: the extreme goes there, whatever its
            // sign, so that all of them are in use.
            let extreme = if high > -low { high } else { low };
            -extreme / f32::from(less + fields.zero)
        }
        Levels::Less(less) => largest / (quants - f32::from(less)),
        Levels::Signed => largest / 127.0,
        Levels::F8 => largest / 448.0,
        Levels::Integers(table) => {
            largest / table.iter().fold(0.0, |most, &level| f32::from(level).max(most))
        }
        Levels::Floats(table) => largest / table.iter().fold(0.0, |most: f32, &l| l.max(most)),
    };
    (scale, 0.0)
}

/// Stores the scales of groups, and the block's scale first, so that levels are chosen for what a
/// reader will see.
fn set_scales(layout: &Layout, fields: &mut BlockFields, ideals: &[(f32, f32)]) {
    let largest = ideals.iter().fold(0.0, |largest: f32, (scale, _)| largest.max(*scale));
    let (most, zero) = match layout.group_scale {
        GroupScale::One => {
            fields.scale = match layout.scale {
                Scale::F16(_) => stored_f16(ideals[0].0),
                Scale::F32(_) => ideals[0].0,
                Scale::HalfE8M0(_) => half_of_power(power_of_half(ideals[0].0)),
            };
            return;
        }
        GroupScale::F8Quotient => {
            fields.scale = if largest > 0.0 { 448.0 / largest } else { 1.0 };
            for (stored, (scale, _)) in fields.group_scales.iter_mut().zip(ideals) {
                *stored = f32_to_f8(scale * fields.scale);
            }
            return;
        }
        GroupScale::Plus(zero) => (greatest(layout.group_scales) - zero, zero),
        GroupScale::Signed => (127, 0),
    };
    fields.scale = stored_f16(largest / f32::from(most));
    for (stored, (scale, _)) in fields.group_scales.iter_mut().zip(ideals) {
        *stored = divide(*scale, fields.scale).round().clamp(0.0, f32::from(most)) as u8 + zero;
    }
}

/// The quant whose level is nearest.
fn nearest(layout: &Layout, fields: &BlockFields, level: f32) -> u8 {
    match fields.levels {
        Levels::Less(less) => (level + f32::from(less) + f32::from(fields.zero))
            .round()
            .clamp(0.0, f32::from(greatest(layout.quants))) as u8,
        // A float-to-integer cast saturates.
        Levels::Signed => (level.round() as i8).cast_unsigned(),
        Levels::F8 => f32_to_f8(level),
        Levels::Integers(_) | Levels::Floats(_) => {
            let distance = |quant: &u8| (fields.levels.value(*quant, 0) - level).abs();
            (0..16).min_by(|a, b| distance(a).total_cmp(&distance(b))).unwrap_or_default()
        }
    }
}

/// `value` as a reader of f16 will see it.
fn stored_f16(value: f32) -> f32 {
    f16::from_f32(value).to_f32()
}

/// `value / scale`, and 0 for a block without a scale, which is all zeros or nearly.
fn divide(value: f32, scale: f32) -> f32 {
    if scale == 0.0 { 0.0 } else { value / scale }
}

fn bounds(block: &[f32]) -> (f32, f32) {
    block
        .iter()
        .fold((f32::INFINITY, f32::NEG_INFINITY), |(low, high), &v| (low.min(v), high.max(v)))
}

#[cfg(test)]
#[path = "codec_tests.rs"]
mod tests;
