//! Reference encoding and decoding of every [`Format`], written for clarity: backends test
//! their kernels against it.

use half::{bf16, f16};

use super::{Format, format::QUANTIZED_BLOCK};

const HALF_BLOCK: usize = QUANTIZED_BLOCK / 2;

/// Decodes as many blocks as `bytes` and `values` both hold; callers pass lengths that agree.
pub(super) fn decode(format: Format, bytes: &[u8], values: &mut [f32]) {
    let blocks = bytes
        .chunks_exact(format.block_bytes())
        .zip(values.chunks_exact_mut(format.block_elements()));
    match format {
        Format::F32 => blocks.for_each(|(block, out)| {
            out[0] = f32::from_le_bytes([block[0], block[1], block[2], block[3]]);
        }),
        Format::F16 => blocks.for_each(|(block, out)| out[0] = f16_at(block, 0)),
        Format::BF16 => blocks.for_each(|(block, out)| {
            out[0] = bf16::from_le_bytes([block[0], block[1]]).to_f32();
        }),
        Format::Q4_0 => blocks.for_each(|(block, out)| {
            let scale = f16_at(block, 0);
            decode_nibbles(&block[2..], out, |q| (f32::from(q) - 8.0) * scale);
        }),
        Format::Q4_1 => blocks.for_each(|(block, out)| {
            let (scale, minimum) = (f16_at(block, 0), f16_at(block, 2));
            decode_nibbles(&block[4..], out, |q| f32::from(q) * scale + minimum);
        }),
        Format::Q8_0 => blocks.for_each(|(block, out)| {
            let scale = f16_at(block, 0);
            for (value, &q) in out.iter_mut().zip(&block[2..]) {
                *value = f32::from(q as i8) * scale;
            }
        }),
    }
}

/// Appends `values`, a whole number of blocks, to `bytes`.
pub(super) fn encode(format: Format, values: &[f32], bytes: &mut Vec<u8>) {
    for block in values.chunks_exact(format.block_elements()) {
        match format {
            Format::F32 => bytes.extend(block[0].to_le_bytes()),
            Format::F16 => bytes.extend(f16::from_f32(block[0]).to_le_bytes()),
            Format::BF16 => bytes.extend(bf16::from_f32(block[0]).to_le_bytes()),
            Format::Q4_0 => {
                // The nibbles reach from -8 to 7: the extreme goes to -8, whatever its sign,
                // so that all sixteen levels are in use.
                let extreme = block
                    .iter()
                    .copied()
                    .fold(0.0, |a: f32, b| if b.abs() > a.abs() { b } else { a });
                let scale = push_f16(extreme / -8.0, bytes);
                encode_nibbles(block, bytes, |value| divide(value, scale) + 8.0);
            }
            Format::Q4_1 => {
                let (low, high) = bounds(block);
                let scale = push_f16((high - low) / 15.0, bytes);
                let minimum = push_f16(low, bytes);
                encode_nibbles(block, bytes, |value| divide(value - minimum, scale));
            }
            Format::Q8_0 => {
                let (low, high) = bounds(block);
                let scale = push_f16(high.max(-low) / 127.0, bytes);
                // A float-to-integer cast saturates.
                bytes.extend(block.iter().map(|&value| divide(value, scale).round() as i8 as u8));
            }
        }
    }
}

fn f16_at(block: &[u8], offset: usize) -> f32 {
    f16::from_le_bytes([block[offset], block[offset + 1]]).to_f32()
}

fn decode_nibbles(packed: &[u8], out: &mut [f32], value: impl Fn(u8) -> f32) {
    let (low, high) = out.split_at_mut(HALF_BLOCK);
    for ((low, high), &byte) in low.iter_mut().zip(high).zip(packed) {
        *low = value(byte & 0x0f);
        *high = value(byte >> 4);
    }
}

fn encode_nibbles(block: &[f32], bytes: &mut Vec<u8>, level: impl Fn(f32) -> f32) {
    let nibble = |value: f32| level(value).round().clamp(0.0, 15.0) as u8;
    let (low, high) = block.split_at(HALF_BLOCK);
    bytes.extend(low.iter().zip(high).map(|(&low, &high)| nibble(low) | (nibble(high) << 4)));
}

/// Appends `value` as f16 and returns what a reader will see, so that levels are chosen for
/// the scale that is stored.
fn push_f16(value: f32, bytes: &mut Vec<u8>) -> f32 {
    let stored = f16::from_f32(value);
    bytes.extend(stored.to_le_bytes());
    stored.to_f32()
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
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn roundtrip(format: Format, values: &[f32]) -> Vec<f32> {
        let mut bytes = Vec::new();
        encode(format, values, &mut bytes);
        assert_eq!(bytes.len() * format.block_elements(), values.len() * format.block_bytes());
        let mut decoded = vec![f32::NAN; values.len()];
        decode(format, &bytes, &mut decoded);
        decoded
    }

    #[test]
    fn q4_0_block_decodes_by_hand() {
        // Scale 0.5; byte i holds element i (low nibble) = i and element i + 16 = 15 - i.
        let mut block = f16::from_f32(0.5).to_le_bytes().to_vec();
        block.extend((0..16u8).map(|i| i | ((15 - i) << 4)));
        let mut values = [0.0; 32];
        decode(Format::Q4_0, &block, &mut values);
        for i in 0..16 {
            assert_eq!(values[i], (i as f32 - 8.0) * 0.5);
            assert_eq!(values[i + 16], (7.0 - i as f32) * 0.5);
        }
    }

    #[test]
    fn q4_1_block_decodes_by_hand() {
        let mut block = f16::from_f32(0.25).to_le_bytes().to_vec();
        block.extend(f16::from_f32(-3.0).to_le_bytes());
        block.extend((0..16u8).map(|i| i | (3 << 4)));
        let mut values = [0.0; 32];
        decode(Format::Q4_1, &block, &mut values);
        for i in 0..16 {
            assert_eq!(values[i], i as f32 * 0.25 - 3.0);
            assert_eq!(values[i + 16], -2.25);
        }
    }

    #[test]
    fn q8_0_block_decodes_by_hand() {
        let level = |i: usize| (i as i32 * 8 - 128) as i8;
        let mut block = f16::from_f32(2.0).to_le_bytes().to_vec();
        block.extend((0..32).map(|i| level(i) as u8));
        let mut values = [0.0; 32];
        decode(Format::Q8_0, &block, &mut values);
        for (i, value) in values.iter().enumerate() {
            assert_eq!(*value, f32::from(level(i)) * 2.0);
        }
    }

    #[test]
    fn a_block_of_zeros_stays_zero() {
        for format in Format::ALL {
            assert!(roundtrip(format, &[0.0; 64]).iter().all(|&v| v == 0.0), "{format}");
        }
    }

    proptest! {
        /// Half a quantization level, plus what rounding the scale to f16 costs at the far end
        /// of the range.
        #[test]
        fn encoding_then_decoding_stays_within_half_a_level(
            values in prop::collection::vec(-100.0f32..100.0, 64),
        ) {
            for format in Format::ALL {
                for (block, decoded) in values
                    .chunks(32)
                    .zip(roundtrip(format, &values).chunks(32))
                {
                    let (low, high) = bounds(block);
                    let largest = high.max(-low);
                    let bound = match format {
                        Format::F32 => 0.0,
                        Format::F16 => largest / 2048.0,
                        Format::BF16 => largest / 256.0,
                        // One side of zero has only seven levels: the far value can be a
                        // whole level off.
                        Format::Q4_0 => largest / 8.0 * 1.01,
                        Format::Q4_1 => (high - low) / 15.0 * 0.51 + largest * 0.01,
                        Format::Q8_0 => largest / 127.0 * 0.51 + largest / 1024.0,
                    };
                    for (value, decoded) in block.iter().zip(decoded) {
                        prop_assert!(
                            (value - decoded).abs() <= bound,
                            "{format}: {value} became {decoded}, bound {bound}"
                        );
                    }
                }
            }
        }
    }
}
