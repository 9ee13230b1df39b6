//! Products of bf16 against a reference in f64, and against themselves in other batches.

use backend_api::{
    Compute,
    weights::{Format, Shape, Tensor},
};
use proptest::prelude::*;

use super::{linear::TiledPairTask, rows::Bf16Rows};
use crate::{
    isa::{
        dot::{bf16_bits, bf16_value},
        tiles::{TileTwin, Tiles},
    },
    kernels::{
        linear::LinearRows,
        linear_tests::{noise, product, reference},
        matrix::Matrix,
    },
    pool::Pool,
    shared::SharedMut,
    simd::Simd,
};

fn matrix(format: Format, columns: usize, depth: usize, seed: u64) -> (Tensor<'static>, Matrix) {
    let values: Vec<f32> = noise(seed, columns * depth).into_iter().map(rounded).collect();
    let tensor = Tensor::from_f32(format, Shape::matrix(columns, depth), &values).unwrap();
    let packed = Matrix::pack(&tensor, Compute::Bf16).unwrap();
    (tensor, packed)
}

fn rounded(value: f32) -> f32 {
    bf16_value(bf16_bits(value))
}

fn tiled<T: Tiles>(simd: Simd, tiles: T, matrix: &Matrix, input: &[f32], bias: &[f32]) -> Vec<f32> {
    let Matrix::Pairs(panels) = matrix else { panic!("not in bf16") };
    let rows = input.len() / matrix.depth();
    let mut values = Bf16Rows::default();
    let mut pool = Pool::new("test", 1).unwrap();
    values.fill(&mut pool, simd, input, (rows, matrix.depth())).unwrap();
    let mut output = vec![f32::NAN; rows * matrix.columns()];
    let shared = SharedMut::new(&mut output);
    let rows = LinearRows { input, rows, output: shared, bias: Some(bias) };
    let (range, input) = (0..matrix.panel_count(), values.from(0));
    simd.run_dot(TiledPairTask { tiles, panels, range, input, rows });
    output
}

fn assert_close(got: &[f32], expected: &[(f64, f64)], depth: usize, what: &str) {
    for (got, (expected, size)) in got.iter().zip(expected) {
        let error = (f64::from(*got) - expected).abs();
        let allowed = size * 2e-7 * (depth as f64).sqrt() + 1e-9;
        assert!(error <= allowed, "{what}: {error} > {allowed}");
    }
}

#[test]
fn every_path_and_unit_is_within_rounding_of_the_product_of_the_rounded_values() {
    for format in [Format::BF16, Format::F32, Format::F16] {
        for (columns, depth) in [(1, 32), (48, 64), (83, 37), (16, 2050)] {
            let (tensor, packed) = matrix(format, columns, depth, 3);
            let bias = noise(5, columns);
            for rows in [1, 2, 5, 8, 11, 33] {
                let input = noise(rows as u64, rows * depth);
                let exact: Vec<f32> = input.iter().copied().map(rounded).collect();
                let expected = reference(&tensor, &exact, Some(&bias));
                for simd in Simd::available() {
                    let got = product(simd, &packed, &input, Some(&bias), 1);
                    assert_close(&got, &expected, depth, &format!("{simd:?}"));
                    let got = tiled(simd, TileTwin, &packed, &input, &bias);
                    assert_close(&got, &expected, depth, &format!("{simd:?}, twin"));
                }
            }
        }
    }
}

#[test]
fn embeddings_of_packed_weights_are_those_of_the_file() {
    let (tensor, packed) = matrix(Format::BF16, 37, 45, 2);
    let expected = tensor.to_f32();
    let mut row = vec![f32::NAN; 45];
    for column in 0..37 {
        packed.column(column, &mut row);
        assert_eq!(row, &expected[column * 45..][..45], "row {column}");
    }
}

#[test]
fn rows_of_another_width_leave_nothing_behind() {
    let simd = Simd::best();
    let (mut pool, mut rows) = (Pool::new("test", 1).unwrap(), Bf16Rows::default());
    rows.fill(&mut pool, simd, &[1.0; 4 * 64], (4, 64)).unwrap();
    rows.fill(&mut pool, simd, &[2.0; 2 * 5], (2, 5)).unwrap();
    for row in 0..2 {
        let values: Vec<f32> = rows.from(row).row(0).iter().copied().map(bf16_value).collect();
        assert_eq!(values, [vec![2.0; 5], vec![0.0; 27]].concat());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn a_row_does_not_depend_on_its_batch_or_the_thread_count(
        columns in 1usize..150,
        depth in 1usize..600,
        rows in 1usize..40,
        threads in 1usize..4,
        seed in any::<u64>(),
    ) {
        let (_, packed) = matrix(Format::BF16, columns, depth, seed);
        let input = noise(seed ^ 1, rows * depth);
        let bias = noise(seed ^ 2, columns);
        for simd in Simd::available() {
            let together = product(simd, &packed, &input, Some(&bias), threads);
            let twins = tiled(simd, TileTwin, &packed, &input, &bias);
            for row in 0..rows {
                let of_row = row * columns..(row + 1) * columns;
                let input = &input[row * depth..][..depth];
                let alone = product(simd, &packed, input, Some(&bias), 1);
                prop_assert_eq!(&together[of_row.clone()], &alone[..]);
                let alone = tiled(simd, TileTwin, &packed, input, &bias);
                prop_assert_eq!(&twins[of_row], &alone[..]);
            }
        }
    }
}
