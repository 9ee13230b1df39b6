//! The likeliest tokens of a row, without sorting the vocabulary.

use std::cmp::Ordering;

use radix_cache::Token;

use super::weight::{weight, weights};

/// A token and its logit, or its scaled distance to the largest logit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Candidate {
    pub(super) token: Token,
    pub(super) value: f32,
}

/// Likelier first; of equal ones the lowest id.
pub(super) fn likelier(a: &Candidate, b: &Candidate) -> Ordering {
    // Adding zero makes the two zeros equal.
    (b.value + 0.0).total_cmp(&(a.value + 0.0)).then(a.token.cmp(&b.token))
}

/// Candidates are gathered up to a multiple of what is wanted before the worst are dropped.
const SLACK: usize = 4;

/// Fewer candidates than this aren't worth a selection.
const FEW: usize = 64;

/// Top-p counts weights in drawers: so many to a unit of distance, and so many in all. What is
/// further away than they reach lies in the last.
const DRAWERS_A_UNIT: f32 = 16.0;
const DRAWERS: usize = 512;

/// Fills `out` with the `count` largest of `values`, sorted, likeliest first. Values of minus
/// infinity don't take part.
///
/// One pass, and for each `SLACK * count` tokens above the bar so far a selection in linear time,
/// which raises the bar.
pub(super) fn select_largest(values: &[f32], count: usize, out: &mut Vec<Candidate>) {
    out.clear();
    let count = count.min(values.len());
    if count == 0 {
        return;
    }
    let full = (count * SLACK).max(FEW);
    let mut bar = f32::NEG_INFINITY;
    for (token, &value) in values.iter().enumerate() {
        // A later token that equals the bar has a higher id than all that reached it.
        if value > bar {
            out.push(Candidate { token: token as Token, value });
            if out.len() == full && full > count {
                out.select_nth_unstable_by(count - 1, likelier);
                out.truncate(count);
                bar = out[count - 1].value;
            }
        }
    }
    if out.len() > count {
        out.select_nth_unstable_by(count - 1, likelier);
        out.truncate(count);
    }
    out.sort_unstable_by(likelier);
}

/// The last of the fewest likeliest candidates whose [weights](weight) reach `fraction` of the
/// total, among `candidates` that are sorted, likeliest first.
pub(super) fn last_of_fraction(candidates: &[Candidate], fraction: f64) -> Option<Candidate> {
    let total: f64 = candidates.iter().map(|it| f64::from(weight(it.value))).sum();
    let last = first_to_reach(candidates, 0.0, fraction * total);
    // Rounding may leave a bit of the whole out of reach.
    last.or(candidates.last()).copied()
}

/// The same among all `distances` to the largest, which aren't sorted.
///
/// Weights are summed by drawers of near values, and only the drawer in which the sum is reached
/// is gathered, in `drawer`, and sorted. So it takes linear time, however flat the distribution.
pub(super) fn last_of_fraction_of_row(
    distances: &[f32],
    fraction: f64,
    drawer: &mut Vec<Candidate>,
) -> Option<Candidate> {
    let mut sums = [0.0_f64; DRAWERS];
    let (groups, rest) = distances.as_chunks();
    for group in groups {
        for (&distance, weight) in group.iter().zip(weights(group)) {
            sums[drawer_of(distance)] += f64::from(weight);
        }
    }
    for &distance in rest {
        sums[drawer_of(distance)] += f64::from(weight(distance));
    }
    let enough = fraction * sums.iter().sum::<f64>();
    let mut reached = 0.0;
    let within = sums.iter().position(|sum| {
        reached += sum;
        reached >= enough
    });
    let within = within.unwrap_or(DRAWERS - 1);
    drawer.clear();
    for (token, &value) in distances.iter().enumerate() {
        if drawer_of(value) == within {
            drawer.push(Candidate { token: token as Token, value });
        }
    }
    drawer.sort_unstable_by(likelier);
    let before = sums[..within].iter().sum();
    first_to_reach(drawer, before, enough).or(drawer.last()).copied()
}

/// The first candidate with which the sum of weights, `before` at first, is `enough`.
fn first_to_reach(candidates: &[Candidate], before: f64, enough: f64) -> Option<&Candidate> {
    let mut reached = before;
    candidates.iter().find(|candidate| {
        reached += f64::from(weight(candidate.value));
        reached >= enough
    })
}

/// Where a weight is counted; likelier ones never later.
fn drawer_of(distance: f32) -> usize {
    ((-distance * DRAWERS_A_UNIT) as usize).min(DRAWERS - 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sorted(values: &[f32]) -> Vec<Candidate> {
        let all = values.iter().enumerate();
        let mut all: Vec<_> =
            all.map(|(token, &value)| Candidate { token: token as Token, value }).collect();
        all.sort_by(likelier);
        all
    }

    proptest! {
        #[test]
        fn selecting_equals_sorting_and_cutting(
            // Few distinct values, so that ties are common.
            values in prop::collection::vec((-20i8..20).prop_map(|v| f32::from(v) / 4.0), 1..2000),
            count in 0usize..300,
        ) {
            let mut selected = Vec::new();
            select_largest(&values, count, &mut selected);
            let expected = sorted(&values);
            prop_assert_eq!(&selected[..], &expected[..count.min(values.len())]);
        }

        #[test]
        fn the_kept_fraction_is_the_shortest_sorted_prefix_that_reaches_it(
            // Some beyond the last drawer's start.
            values in prop::collection::vec((-160i16..=0).prop_map(|v| f32::from(v) / 4.0), 0..2000),
            fraction in 0.01f64..1.0,
        ) {
            // The largest is always there.
            let values: Vec<f32> = values.into_iter().chain([0.0]).collect();
            let all = sorted(&values);
            let total: f64 = all.iter().map(|c| f64::from(weight(c.value))).sum();
            let mut reached = 0.0;
            let expected = all.iter().find(|c| {
                reached += f64::from(weight(c.value));
                reached >= fraction * total
            });
            let expected = expected.or(all.last()).copied();
            prop_assert_eq!(last_of_fraction(&all, fraction), expected);
            let mut drawer = Vec::new();
            prop_assert_eq!(last_of_fraction_of_row(&values, fraction, &mut drawer), expected);
        }
    }
}
