//! Products against a reference in f64, and against themselves in other batches.

use backend_api::{
    Compute,
    weights::{Format, Shape, Tensor},
};
use proptest::prelude::*;

use super::{
    linear::{LinearRows, Product, multiply},
    matrix::{LinearScratch, Matrix},
};
use crate::{pool::Pool, shared::SharedMut, simd::Simd};

/// Numbers that look random and are the same everywhere.
pub(super) fn noise(seed: u64, count: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

fn matrix(format: Format, columns: usize, depth: usize, seed: u64) -> (Tensor<'static>, Matrix) {
    let values = noise(seed, columns * depth);
    let tensor = Tensor::from_f32(format, Shape::matrix(columns, depth), &values).unwrap();
    let packed = Matrix::pack(&tensor, Compute::Exact).unwrap();
    (tensor, packed)
}

/// At least `depth` inputs.
fn whole_blocks(format: Format, depth: usize) -> usize {
    depth.next_multiple_of(format.block_elements())
}

pub(super) fn product(
    simd: Simd,
    matrix: &Matrix,
    input: &[f32],
    bias: Option<&[f32]>,
    threads: usize,
) -> Vec<f32> {
    let rows = input.len() / matrix.depth();
    let mut output = vec![f32::NAN; rows * matrix.columns()];
    let mut scratch = LinearScratch::new(threads);
    let mut pool = Pool::new("test", threads).unwrap();
    let rows = LinearRows { input, rows, output: SharedMut::new(&mut output), bias };
    let product = Product { matrix, first: 0, rows };
    multiply(&mut pool, simd, input, &[product], &mut scratch).unwrap();
    output
}

/// The product in f64, and for each output the sum of the magnitudes of its terms.
pub(super) fn reference(
    tensor: &Tensor<'_>,
    input: &[f32],
    bias: Option<&[f32]>,
) -> Vec<(f64, f64)> {
    let (columns, depth) = (tensor.shape().rows(), tensor.shape().cols());
    let weights = tensor.to_f32();
    let mut out = Vec::new();
    for row in input.chunks_exact(depth) {
        for column in 0..columns {
            let terms = row.iter().zip(&weights[column * depth..][..depth]);
            let products = terms.map(|(x, w)| f64::from(*x) * f64::from(*w));
            let bias = bias.map_or(0.0, |bias| f64::from(bias[column]));
            let sums = products.fold((0.0, 0.0), |(sum, size), p| (sum + p, size + p.abs()));
            out.push((sums.0 + bias, sums.1 + bias.abs()));
        }
    }
    out
}

#[test]
fn every_format_and_path_is_within_rounding_of_the_reference() {
    for format in Format::ALL {
        for (columns, depth) in [(1, 32), (48, 64), (83, 160), (16, 2080)] {
            let depth = whole_blocks(format, depth);
            let (tensor, packed) = matrix(format, columns, depth, 3);
            let bias = noise(5, columns);
            for rows in [1, 2, 3, 4, 5, 8, 11, 33] {
                let input = noise(rows as u64, rows * depth);
                let expected = reference(&tensor, &input, Some(&bias));
                for simd in Simd::available() {
                    let got = product(simd, &packed, &input, Some(&bias), 1);
                    for (got, (expected, size)) in got.iter().zip(&expected) {
                        let error = (f64::from(*got) - expected).abs();
                        // A chain of n additions errs by at most n half-units of the terms' size;
                        // it's far less in practice.
                        let allowed = size * 1e-7 * (depth as f64).sqrt() + 1e-12;
                        assert!(error <= allowed, "{format} {simd:?}: {error} > {allowed}");
                    }
                }
            }
        }
    }
}

#[test]
fn depth_need_not_be_a_multiple_of_anything() {
    for format in [Format::F32, Format::F16, Format::BF16] {
        for depth in [1, 7, 8, 9, 30, 1027] {
            let (tensor, packed) = matrix(format, 20, depth, 9);
            for rows in [1, 6] {
                let input = noise(2, rows * depth);
                let expected = reference(&tensor, &input, None);
                for simd in Simd::available() {
                    let got = product(simd, &packed, &input, None, 1);
                    for (got, (expected, size)) in got.iter().zip(&expected) {
                        assert!((f64::from(*got) - expected).abs() <= size * 1e-5);
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
    for format in Format::ALL {
        let depth = whole_blocks(format, 96);
        let (_, packed) = matrix(format, 70, depth, 4);
        for rows in [1, 9] {
            let input = noise(8, rows * depth);
            let results: Vec<_> =
                fused.iter().map(|simd| product(*simd, &packed, &input, None, 1)).collect();
            assert!(results.windows(2).all(|pair| pair[0] == pair[1]), "{format}");
        }
    }
}

#[test]
fn products_of_some_rows_each_are_those_of_their_rows_alone() {
    let modes = [
        (Format::Q4_1, Compute::Exact),
        (Format::Q4_1, Compute::Int8),
        (Format::Q8_0, Compute::Int8),
        (Format::BF16, Compute::Bf16),
    ];
    let (depth, columns, rows) = (96, 40, 31);
    let input = noise(5, rows * depth);
    for (format, compute) in modes {
        let matrices = [1, 2, 3].map(|seed| {
            let (tensor, _) = matrix(format, columns, depth, seed);
            Matrix::pack(&tensor, compute).unwrap()
        });
        let parts = [0..5, 5..22, 22..31];
        for simd in Simd::available() {
            let mut output = vec![f32::NAN; rows * columns];
            let (mut rest, mut products) = (&mut output[..], Vec::new());
            for (matrix, part) in matrices.iter().zip(&parts) {
                let (own, behind) = rest.split_at_mut(part.len() * columns);
                rest = behind;
                let input = &input[part.start * depth..part.end * depth];
                let output = SharedMut::new(own);
                let rows = LinearRows { input, rows: part.len(), output, bias: None };
                products.push(Product { matrix, first: part.start, rows });
            }
            let mut pool = Pool::new("test", 2).unwrap();
            let mut scratch = LinearScratch::new(2);
            multiply(&mut pool, simd, &input, &products, &mut scratch).unwrap();
            for (matrix, part) in matrices.iter().zip(&parts) {
                let input = &input[part.start * depth..part.end * depth];
                let alone = product(simd, matrix, input, None, 1);
                let together = &output[part.start * columns..part.end * columns];
                assert_eq!(together, alone, "{format} {compute} {simd:?}");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn a_row_does_not_depend_on_its_batch_or_the_thread_count(
        format in prop::sample::select(Format::ALL.to_vec()),
        columns in 1usize..150,
        blocks in 1usize..40,
        rows in 1usize..40,
        threads in 1usize..4,
        seed in any::<u64>(),
    ) {
        let depth = whole_blocks(format, blocks * 32);
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
