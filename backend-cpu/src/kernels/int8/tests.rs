//! Products of bytes against a reference in f64, and against themselves on other paths and in other
//! batches.

use backend_api::{
    Compute,
    weights::{Format, Shape, Tensor},
};
use proptest::prelude::*;

use super::{
    rows::{INPUTS, Quantize, QuantizedRows},
    tiled::{ByteScratch, TiledTask},
};
use crate::{
    isa::tiles::{RowBlock, TileTwin, Tiles},
    kernels::{
        linear::LinearRows,
        linear_tests::{noise, product, reference},
        matrix::{ByteMatrix, Matrix, with_byte_panels},
    },
    pool::Pool,
    shared::SharedMut,
    simd::{InstructionSet, Simd},
};

const FORMATS: [Format; 3] = [Format::Q4_0, Format::Q4_1, Format::Q8_0];

fn matrix(format: Format, columns: usize, depth: usize, seed: u64) -> (Tensor<'static>, Matrix) {
    let values = noise(seed, columns * depth);
    let tensor = Tensor::from_f32(format, Shape::matrix(columns, depth), &values).unwrap();
    let packed = Matrix::pack(&tensor, Compute::Int8).unwrap();
    (tensor, packed)
}

/// What the quantized rows stand for.
fn dequantized(input: &[f32], depth: usize) -> Vec<f32> {
    let mut blocks = vec![RowBlock::default(); input.len() / depth * depth.div_ceil(INPUTS)];
    Simd::best().run_dot(Quantize { input, depth, blocks: &mut blocks });
    let value = |block: &RowBlock| {
        let bytes = block.quants.map(i32::to_le_bytes);
        let scale = block.scale;
        bytes.as_flattened().iter().map(|b| f32::from(b.cast_signed()) * scale).collect::<Vec<_>>()
    };
    let rows = blocks.chunks_exact(depth.div_ceil(INPUTS));
    rows.flat_map(|row| row.iter().flat_map(value).take(depth).collect::<Vec<_>>()).collect()
}

/// The product on a matrix unit, with the vectors of `simd`.
fn tiled<T: Tiles>(simd: Simd, tiles: T, matrix: &Matrix, input: &[f32], bias: &[f32]) -> Vec<f32> {
    let Matrix::Bytes(bytes) = matrix else { panic!("not in bytes") };
    let rows = input.len() / matrix.depth();
    let mut quantized = QuantizedRows::default();
    let mut pool = Pool::new("test", 1).unwrap();
    quantized.fill(&mut pool, simd, input, (rows, matrix.depth())).unwrap();
    let mut output = vec![f32::NAN; rows * matrix.columns()];
    let shared = SharedMut::new(&mut output);
    let rows = LinearRows { input, rows, output: shared, bias: Some(bias) };
    let (range, mut scratch) = (0..matrix.panel_count(), ByteScratch::default());
    let (input, scratch) = (quantized.from(0), &mut scratch);
    with_byte_panels!(bytes, panels => {
        simd.run_dot(TiledTask { tiles, panels, range, input, rows, scratch });
    });
    output
}

#[test]
fn quantized_rows_are_within_half_a_step_of_their_values() {
    for depth in [32, 64, 75, 33, 5] {
        let mut input = noise(depth as u64, 3 * depth);
        input[..depth].iter_mut().for_each(|x| *x *= 1e-3);
        input[depth..2 * depth].fill(0.0);
        let quantized = dequantized(&input, depth);
        let blocks = input.chunks(depth).zip(quantized.chunks(depth));
        for (input, quantized) in blocks.flat_map(|(a, b)| a.chunks(INPUTS).zip(b.chunks(INPUTS))) {
            let greatest = input.iter().fold(0.0f32, |most, x| most.max(x.abs()));
            for (x, q) in input.iter().zip(quantized) {
                assert!((x - q).abs() <= greatest / 127.0 * 0.501, "{x} became {q}");
            }
        }
    }
}

#[test]
fn quantized_rows_are_the_same_on_every_path() {
    let mut input = noise(4, 7 * 96);
    (input[3], input[200]) = (0.5, -1e-30);
    let blocks = |simd: Simd| {
        let mut blocks = vec![RowBlock::default(); 7 * 3];
        simd.run_dot(Quantize { input: &input, depth: 96, blocks: &mut blocks });
        blocks.iter().map(|b| (b.quants, b.scale, b.offset, b.sum)).collect::<Vec<_>>()
    };
    let expected = blocks(Simd::best());
    for simd in Simd::available() {
        assert_eq!(blocks(simd), expected, "{simd:?}");
    }
}

#[test]
fn a_value_that_is_no_number_reaches_every_output_of_its_row() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let (_, packed) = matrix(Format::Q4_1, 40, 96, 1);
        let mut input = noise(9, 3 * 96);
        input[96 + 50] = bad;
        for simd in Simd::available() {
            let got = product(simd, &packed, &input, None, 1);
            assert!(got[40..80].iter().all(|value| value.is_nan()), "{simd:?} {bad}");
            assert!(got[..40].iter().chain(&got[80..]).all(|value| value.is_finite()));
        }
    }
}

#[test]
fn every_path_is_within_rounding_of_the_product_of_the_quantized_values() {
    for set in InstructionSet::ALL {
        let ran = if Simd::for_set(set).is_some() { "ran" } else { "is not in this processor" };
        println!("{set}: {ran}");
    }
    for format in FORMATS {
        for (columns, depth) in [(1, 32), (48, 64), (83, 160), (16, 2080)] {
            let (tensor, packed) = matrix(format, columns, depth, 3);
            let bias = noise(5, columns);
            for rows in [1, 2, 3, 5, 6, 7, 12, 33] {
                let input = noise(rows as u64, rows * depth);
                let expected = reference(&tensor, &dequantized(&input, depth), Some(&bias));
                for simd in Simd::available() {
                    let got = product(simd, &packed, &input, Some(&bias), 1);
                    for (got, (expected, size)) in got.iter().zip(&expected) {
                        let error = (f64::from(*got) - expected).abs();
                        // Terms of Q4_1's minimum cancel with those of its quants.
                        let allowed = size * 1e-6 * (depth as f64 / 32.0).sqrt() + 1e-6;
                        assert!(error <= allowed, "{format} {simd:?} {rows}: {error} > {allowed}");
                    }
                }
            }
        }
    }
}

#[test]
fn vectors_and_matrix_units_agree_bit_for_bit() {
    for format in FORMATS {
        for (columns, depth) in [(1, 32), (70, 96), (32, 1312)] {
            let (_, packed) = matrix(format, columns, depth, 4);
            let bias = noise(6, columns);
            for rows in [1, 9, 16, 31, 50] {
                let input = noise(8, rows * depth);
                for simd in Simd::available() {
                    let vectors = product(simd, &packed, &input, Some(&bias), 1);
                    let twin = tiled(simd, TileTwin, &packed, &input, &bias);
                    assert_eq!(vectors, twin, "{format} {simd:?} {rows} rows, twin");
                    #[cfg(target_arch = "x86_64")]
                    if let Some(unit) = simd.tiles() {
                        let unit = tiled(simd, unit, &packed, &input, &bias);
                        assert_eq!(vectors, unit, "{format} {rows} rows, unit");
                    }
                }
            }
        }
    }
}

#[test]
fn paths_that_fuse_multiply_and_add_agree_bit_for_bit() {
    let fused: Vec<Simd> =
        Simd::available().filter(|simd| !matches!(simd, Simd::Portable(_))).collect();
    for format in FORMATS {
        let (_, packed) = matrix(format, 70, 96, 4);
        for rows in [1, 9] {
            let input = noise(8, rows * 96);
            let results: Vec<_> =
                fused.iter().map(|simd| product(*simd, &packed, &input, None, 1)).collect();
            assert!(results.windows(2).all(|pair| pair[0] == pair[1]), "{format}");
        }
    }
}

#[test]
fn embeddings_of_packed_weights_are_those_of_the_file() {
    for format in FORMATS {
        let (tensor, packed) = matrix(format, 37, 96, 2);
        let expected = tensor.to_f32();
        let mut row = vec![f32::NAN; 96];
        for column in 0..37 {
            packed.column(column, &mut row);
            assert_eq!(row, &expected[column * 96..][..96], "{format} row {column}");
        }
        let Matrix::Bytes(bytes) = packed else { panic!("{format} is not in bytes") };
        let (ByteMatrix::Q8_0(_) | ByteMatrix::Q4_0(_) | ByteMatrix::Q4_1(_)) = bytes;
    }
}

#[test]
fn weights_that_are_not_quantized_become_bytes_where_rows_are_whole_blocks() {
    for format in [Format::F32, Format::F16, Format::BF16] {
        assert!(matches!(matrix(format, 3, 64, 1).1, Matrix::Bytes(ByteMatrix::Q8_0(_))));
        assert!(matches!(matrix(format, 3, 65, 1).1, Matrix::Exact(_)));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn a_row_does_not_depend_on_its_batch_or_the_thread_count(
        format in prop::sample::select(FORMATS.to_vec()),
        columns in 1usize..150,
        blocks in 1usize..20,
        rows in 1usize..40,
        threads in 1usize..4,
        seed in any::<u64>(),
    ) {
        let depth = blocks * 32;
        let (_, packed) = matrix(format, columns, depth, seed);
        let input = noise(seed ^ 1, rows * depth);
        let bias = noise(seed ^ 2, columns);
        for simd in Simd::available() {
            let together = product(simd, &packed, &input, Some(&bias), threads);
            for (row, together) in together.chunks_exact(columns).enumerate() {
                let alone = product(simd, &packed, &input[row * depth..][..depth], Some(&bias), 1);
                prop_assert_eq!(together, &alone[..]);
            }
        }
    }
}
