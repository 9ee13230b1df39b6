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
    let out = ops::rms_norm(&input, &[1.0, 0.0], 1.0, 0.0);
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
    let silu = ops::gate(Activation::Silu)(1.0);
    let gelu = ops::gate(Activation::GeluTanh)(1.0);
    assert!((silu - 0.731_058_578_630_005).abs() < 1e-12, "{silu}");
    assert!((gelu - 0.841_191_990_608_276).abs() < 1e-9, "{gelu}");
    assert!((ops::soft_cap(1e9, 30.0) - 30.0).abs() < 1e-12);
}

/// Two heads of width 1 on one KV head; queries of 0, so that all scores are equal.
fn attend(window: Option<u32>, sinks: Option<&[f32]>, positions: usize) -> Vec<f32> {
    let id = ValueId(0);
    let op = Attention {
        query: id,
        key: id,
        value: id,
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
    let out = attention(&op, [&query, &key, &value], sinks, &mut kv, &table, 0);
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
