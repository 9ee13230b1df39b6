//! Blocks by hand, bounds on rounding, and gguf-py's reference.

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
        assert!(roundtrip(format, &[0.0; 256]).iter().all(|&v| v == 0.0), "{format}");
    }
}

/// Blocks with random bytes and with special scales, and the values that gguf-py gives them: made
/// by `scripts/make_fixtures.py blocks`.
#[test]
fn every_type_of_gguf_decodes_as_gguf_py_does_bit_for_bit() {
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/blocks");
    let ours = [Format::F8_E4M3, Format::U4, Format::NF4, Format::NVFP4];
    for format in Format::ALL.into_iter().filter(|it| it.is_quantized() && !ours.contains(it)) {
        let file = std::fs::read(format!("{directory}/{format}.bin")).expect("a file a format");
        let (elements, bytes) = (format.block_elements(), format.block_bytes());
        let blocks = file.len() / (bytes + 4 * elements);
        assert!(blocks > 10 && file.len() == blocks * (bytes + 4 * elements), "{format}");
        let (blocks, expected) = file.split_at(blocks * bytes);
        let mut values = vec![f32::NAN; expected.len() / 4];
        decode(format, blocks, &mut values);
        for (index, (value, expected)) in values.iter().zip(expected.as_chunks().0).enumerate() {
            let expected = f32::from_le_bytes(*expected);
            assert!(
                value.to_bits() == expected.to_bits() || (value.is_nan() && expected.is_nan()),
                "{format}, element {index}: {value} instead of {expected}"
            );
        }
    }
}

#[test]
fn blocks_are_written_as_they_were_read() {
    let mut state = 1u32;
    let mut byte = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    for format in Format::ALL {
        let Some(layout) = format.layout() else { continue };
        for _ in 0..50 {
            let mut block: Vec<u8> = std::iter::repeat_with(&mut byte).take(layout.bytes).collect();
            // A scale that survives conversion: 0x3c3c is a number in every type of scale.
            for at in [Some(layout.scale), layout.minimum.map(Scale::F16)].into_iter().flatten() {
                let (at, len) = match at {
                    Scale::F16(at) => (at, 2),
                    Scale::F32(at) => (at, 4),
                    Scale::HalfE8M0(at) => (at, 1),
                };
                block[at..at + len].fill(0x3c);
            }
            let fields = format.fields(&block).expect("a block");
            let mut written = Vec::new();
            layout.write(&fields, &mut written);
            assert_eq!(written, block, "{format}");
        }
    }
}

#[test]
fn bytes_that_are_not_one_block_have_no_fields() {
    for format in Format::ALL {
        assert!(format.fields(&vec![0; format.block_bytes() + 1]).is_none());
        assert_eq!(format.fields(&vec![0; format.block_bytes()]).is_some(), format.is_quantized());
    }
}

proptest! {
    /// Half a quantization level, plus what rounding the scales costs at the far end of the range.
    #[test]
    fn encoding_then_decoding_stays_within_half_a_level(
        values in prop::collection::vec(-100.0f32..100.0, 256),
    ) {
        for format in Format::ALL {
            let blocks = values.chunks(format.block_elements().max(32));
            let decoded = roundtrip(format, &values);
            for (block, decoded) in blocks.zip(decoded.chunks(format.block_elements().max(32))) {
                let (low, high) = bounds(block);
                let (largest, range) = (high.max(-low), high.max(0.0) - low.min(0.0));
                let bound = match format {
                    Format::F32 => 0.0,
                    Format::F16 => largest / 2048.0,
                    Format::BF16 => largest / 256.0,
                    // Of the two sides of zero one has a level less: the far value can be a whole
                    // level off.
                    Format::Q4_0 | Format::U4 => largest / 8.0 * 1.01,
                    Format::Q5_0 => largest / 16.0 * 1.01,
                    Format::Q4_1 => (high - low) / 15.0 * 0.51 + largest * 0.01,
                    Format::Q5_1 => (high - low) / 31.0 * 0.51 + largest * 0.01,
                    Format::Q8_0 => largest / 127.0 * 0.51 + largest / 1024.0,
                    // Scales and minima of groups are rounded too: to 1/15 or 1/63 of the greatest.
                    Format::Q2_K => range / 3.0 * 0.51 + range / 30.0 * 2.1,
                    Format::Q4_K => range / 15.0 * 0.51 + range / 126.0 * 2.1,
                    Format::Q5_K => range / 31.0 * 0.51 + range / 126.0 * 2.1,
                    Format::Q3_K => largest / 3.0 * 0.51 + largest / 62.0 * 1.1,
                    Format::Q6_K => largest / 31.0 * 0.51 + largest / 254.0 * 1.1,
                    // The widest gap of each table, relative to its greatest positive entry.
                    Format::IQ4_NL => largest * 24.0 / 113.0 * 0.51,
                    Format::IQ4_XS => largest * (24.0 / 113.0 * 0.51 + 1.0 / 62.0),
                    Format::MXFP4 | Format::NVFP4 => largest / 3.0 * 1.01,
                    Format::F8_E4M3 => largest / 16.0 * 1.01,
                    Format::NF4 => largest * 0.304 * 0.51,
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

    #[test]
    fn the_nearest_8_bit_float_is_chosen(value in -500.0f32..500.0) {
        use super::super::fields::f8_to_f32;
        let chosen = f8_to_f32(f32_to_f8(value));
        let best = (0..=255u8).map(f8_to_f32).filter(|it| !it.is_nan());
        let least = best.map(|it| (it - value).abs()).fold(f32::INFINITY, f32::min);
        prop_assert_eq!((chosen - value).abs(), least);
    }
}
