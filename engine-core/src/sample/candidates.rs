//! The likeliest tokens of a row, without sorting the vocabulary.

use std::cmp::Ordering;

use radix_cache::Token;

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

/// How many candidates top-p sorts at first, and how much further it then goes each time.
const FIRST_SORTED: usize = 64;
const SORTED_GROWTH: usize = 4;

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
    let full = (count * SLACK).max(FIRST_SORTED);
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

/// Keeps the fewest of the likeliest candidates whose weights `exp(value)` reach `fraction` of
/// `total`. At least one stays. What stays is sorted, likeliest first.
///
/// Sorts only as far as it has to.
pub(super) fn keep_fraction(candidates: &mut Vec<Candidate>, fraction: f64, total: f64) {
    let enough = fraction * total;
    let mut reached = 0.0;
    let mut sorted = 0;
    let mut batch = FIRST_SORTED;
    while sorted < candidates.len() {
        let rest = &mut candidates[sorted..];
        let len = batch.min(rest.len());
        if len < rest.len() {
            rest.select_nth_unstable_by(len - 1, likelier);
        }
        rest[..len].sort_unstable_by(likelier);
        for (index, candidate) in rest[..len].iter().enumerate() {
            reached += f64::from(candidate.value).exp();
            if reached >= enough {
                candidates.truncate(sorted + index + 1);
                return;
            }
        }
        sorted += len;
        batch *= SORTED_GROWTH;
    }
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
            values in prop::collection::vec((-40i8..=0).prop_map(|v| f32::from(v) / 4.0), 1..2000),
            fraction in 0.01f64..1.0,
        ) {
            let all = sorted(&values);
            let total: f64 = all.iter().map(|c| f64::from(c.value).exp()).sum();
            let mut kept = all.clone();
            kept.sort_by_key(|c| c.token);
            keep_fraction(&mut kept, fraction, total);
            let mut reached = 0.0;
            let expected = all.iter().position(|c| {
                reached += f64::from(c.value).exp();
                reached >= fraction * total
            });
            prop_assert_eq!(&kept[..], &all[..expected.map_or(all.len(), |last| last + 1)]);
        }
    }
}
