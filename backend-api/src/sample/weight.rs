//! `exp` for whole rows.
//!
//! The one of the standard library goes value by value, and its last bits depend on the platform.

/// Below this a weight is as good as 0 beside the largest, which is 1.
const LEAST: f32 = -87.0;

/// Weights that are computed together, so that they fit vectors.
pub(super) const LANES: usize = 16;

/// `exp(distance)` of a distance to the largest value, which is at most 0. Within 3 units in the
/// last place; distances below -87 count as -87.
///
/// `exp(x) = 2^n * exp(r)` with a whole `n` and `|r| <= ln(2) / 2`, where eight terms of the power
/// series are enough. No branch and no call, so that a loop over it becomes vector code.
pub(super) fn weight(distance: f32) -> f32 {
    /// Numbers of this size have no fraction bits, so adding it rounds.
    const ROUND: f32 = 12_582_912.0;
    /// `ln(2)` in two parts; products of the first with small whole numbers are exact.
    const LN_2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];

    let x = if distance > LEAST { distance } else { LEAST };
    let rounded = x * std::f32::consts::LOG2_E + ROUND;
    let n = rounded - ROUND;
    let r = x - n * LN_2[0] - n * LN_2[1];
    let mut series = 1.0 / 5_040.0;
    for coefficient in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        series = series * r + coefficient;
    }
    // The lowest bits of what was rounded are those of `n`; 127 is the exponent of 1.
    series * f32::from_bits((rounded.to_bits() << 23).wrapping_add(127 << 23))
}

/// The weights of a whole group of distances.
pub(super) fn weights(distances: &[f32; LANES]) -> [f32; LANES] {
    distances.map(weight)
}

/// The sum of the weights of all distances `value - largest`.
pub(super) fn sum_of_weights(values: &[f32], largest: f32) -> f64 {
    let mut sums = [0.0_f64; LANES];
    let (groups, rest) = values.as_chunks();
    for group in groups {
        let weights = weights(&group.map(|value| value - largest));
        for (sum, weight) in sums.iter_mut().zip(weights) {
            *sum += f64::from(weight);
        }
    }
    let rest = rest.iter().map(|value| f64::from(weight(value - largest)));
    sums.iter().sum::<f64>() + rest.sum::<f64>()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_weight_is_the_exponential(distance in -87.0f32..=0.0) {
            let exact = f64::from(distance).exp();
            let error = (f64::from(weight(distance)) - exact).abs() / exact;
            prop_assert!(error < 3.0 * f64::from(f32::EPSILON), "{error:e}");
        }

        #[test]
        fn the_sum_is_that_of_the_exponentials(
            values in prop::collection::vec(-30.0f32..30.0, 0..100),
        ) {
            let largest = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let exact: f64 = values.iter().map(|v| f64::from(v - largest).exp()).sum();
            let sum = sum_of_weights(&values, largest);
            // The distances are rounded as well.
            prop_assert!((sum - exact).abs() <= 1e-5 * exact, "{sum} {exact}");
        }
    }

    #[test]
    fn the_largest_weighs_one_and_what_is_forbidden_next_to_nothing() {
        assert_eq!(weight(0.0), 1.0);
        assert!(weight(f32::NEG_INFINITY) < 2e-38);
        assert!(weight(-1e30) < 2e-38);
    }
}
