//! Operations against numbers worked out by hand.

use engine_core::model::{Activation, Attention, PageGroup, RopePairs, ValueId};

use super::attention::attention;
use super::matrix::Matrix;
use super::*;

fn near(found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len(), "{found:?} {expected:?}");
    for (found, expected) in found.iter().zip(expected) {
        assert!((found - expected).abs() < 1e-6, "{found} is not {expected}");
    }
}

#[test]
fn a_norm_divides_by_the_root_mean_square_of_each_run() {
    let input = Matrix::new(4, vec![3.0, 4.0, 0.0, 2.0]);
    let out = ops::rms_norm(&input, Some(&[1.0, 0.0]), 2, 1.0, 0.0);
    // Roots of 12.5 and of 2; weights 2 and 1.
    near(out.row(0), &[6.0 / 12.5f32.sqrt(), 4.0 / 12.5f32.sqrt(), 0.0, 2.0 / 2f32.sqrt()]);
}

#[test]
fn a_quarter_turn_takes_the_first_of_a_pair_to_the_second() {
    let quarter = std::f32::consts::FRAC_PI_2;
    let input = Matrix::new(4, vec![1.0, 2.0, 3.0, 4.0]);
    let turn = |pairs| ops::rope(&input, 1, 4, &[quarter, 0.0], 1.0, pairs);
    near(turn(RopePairs::Halves).row(0), &[-3.0, 2.0, 1.0, 4.0]);
    near(turn(RopePairs::Adjacent).row(0), &[-2.0, 1.0, 3.0, 4.0]);
    // The third and fourth dimensions are beyond the rotated ones.
    near(
        ops::rope(&input, 1, 4, &[quarter], 0.5, RopePairs::Halves).row(0),
        &[-1.0, 0.5, 3.0, 4.0],
    );
}

#[test]
fn activations_have_their_published_values_at_one() {
    let silu = ops::gated(Activation::Silu, 1.0, 1.0);
    let gelu = ops::gated(Activation::GeluTanh, 1.0, 1.0);
    assert!((silu - 0.731_058_578_630_005).abs() < 1e-12, "{silu}");
    assert!((gelu - 0.841_191_990_608_276).abs() < 1e-9, "{gelu}");
    assert!((ops::soft_cap(1e9, 30.0) - 30.0).abs() < 1e-12);
}

/// Two heads of width 1 on one KV head; queries of 0, so that all scores are equal.
fn attend(window: Option<u32>, sinks: Option<&[f32]>, positions: usize) -> Vec<f32> {
    let id = ValueId(0);
    let op = Attention {
        query: id,
        new: None,
        out: id,
        group: GroupId(0),
        layer: 0,
        heads: 2,
        kv_heads: 1,
        head_dim: 1,
        scale: 1.0,
        window,
        soft_cap: None,
        sinks: None,
    };
    let group = PageGroup { layers: 1, kv_heads: 1, head_dim: 1, window: None };
    let mut kv = PagedKv::new(&group, 3, 2);
    let table = [PageId(2), PageId(0), PageId(1)];
    let query = Matrix::zeros(positions, 2);
    let key = Matrix::zeros(positions, 1);
    let value = Matrix::new(1, (0..positions).map(|position| position as f32).collect());
    let new = Some([&key, &value]);
    let out = attention(&op, &query, new, sinks, &mut kv, &table, 0);
    out.row(positions - 1).to_vec()
}

#[test]
fn equal_scores_average_the_values_within_the_window() {
    near(&attend(None, None, 5), &[2.0, 2.0]);
    near(&attend(Some(2), None, 5), &[3.5, 3.5]);
    near(&attend(Some(1), None, 5), &[4.0, 4.0]);
}

#[test]
fn a_sink_takes_its_share_of_probability() {
    // One position's worth for the first head; e times as much for the second.
    let e = std::f32::consts::E;
    near(&attend(None, Some(&[0.0, 1.0]), 3), &[3.0 / 4.0, 3.0 / (3.0 + e)]);
}

#[test]
fn a_position_that_was_never_written_reads_as_no_number() {
    let group = PageGroup { layers: 1, kv_heads: 1, head_dim: 2, window: None };
    let mut kv = PagedKv::new(&group, 2, 4);
    kv.write(&[PageId(1)], 0, 2, &[1.0, 2.0], &[3.0, 4.0]);
    let read = |kv: &PagedKv, page, part| kv.read(&[PageId(page)], 0, 2, part).to_vec();
    assert_eq!(read(&kv, 1, kv::Part::Value), [3.0, 4.0]);
    assert!(read(&kv, 0, kv::Part::Key).iter().all(|x| x.is_nan()));
    kv.copy_page(PageId(1), PageId(0));
    assert_eq!(read(&kv, 0, kv::Part::Key), [1.0, 2.0]);
}

#[test]
fn a_clamped_swiglu_bounds_gate_and_up() {
    let gated =
        |gate, up| ops::gated(Activation::ClampedSwiglu { slope: 0.0, limit: 7.0 }, gate, up);
    // A slope of zero makes the sigmoid a half.
    assert_eq!([gated(2.0, 1.0), gated(9.0, 9.0), gated(-9.0, -9.0)], [2.0, 28.0, 27.0]);
    assert!(gated(f64::NAN, 1.0).is_nan() && gated(1.0, f64::NAN).is_nan());
    assert_eq!(ops::gated(Activation::Identity, 2.0, -3.0), -6.0);
    assert_eq!(ops::gated(Activation::Sigmoid, 0.0, 3.0), 1.5);
}

#[test]
fn queries_grow_by_whole_multiples_of_the_original_context() {
    let input = Matrix::new(1, vec![1.0; 5]);
    let out = ops::scale_by_position(&input, 2, 0.5, 4);
    let at_eight = 1.0 + 0.5 * 3f32.ln();
    let at_four = 1.0 + 0.5 * 2f32.ln();
    near(out.elements(), &[1.0, 1.0, at_four, at_four, at_four]);
    near(ops::scale_by_position(&input, 8, 0.5, 4).row(0), &[at_eight]);
}

#[test]
fn one_gate_of_a_row_gates_all_its_columns() {
    let gate = Matrix::new(1, vec![2.0, -1.0]);
    let up = Matrix::new(2, vec![1.0, 2.0, 3.0, 4.0]);
    let out = ops::gated_activation(&gate, &up, Activation::Identity);
    assert_eq!(out.elements(), [2.0, 4.0, -3.0, -4.0]);
    assert_eq!(ops::multiply(&up, &[2.0]).elements(), [2.0, 4.0, 6.0, 8.0]);
    assert_eq!(ops::multiply(&up, &[2.0, -1.0]).elements(), [2.0, -2.0, 6.0, -4.0]);
    assert_eq!(ops::select_columns(&up, 1, 1).elements(), [2.0, 4.0]);
}
