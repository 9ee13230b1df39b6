//! A mixture of experts: which rows go to which expert, and the weighted sum of what comes back.
//!
//! The products between are [`multiply`](super::linear::multiply)'s, one matrix an expert, over
//! rows that lie together by expert: so a step reads the weights of each expert that any row chose
//! once, and of the others nothing. A row's routes depend on its scores alone and its results are
//! added in the order of its choice, so the bits of a row don't depend on the others.

use std::ops::Range;

use backend_api::program::Scoring;

use crate::isa::{Isa, LANES, Op};

/// How rows are sent to experts; see [`backend_api::program::Routing`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Router<'a> {
    pub(crate) experts: usize,
    /// Experts of a row.
    pub(crate) chosen: usize,
    pub(crate) scoring: Scoring,
    pub(crate) normalize: bool,
    pub(crate) factor: f32,
    /// `[experts]` each.
    pub(crate) selection_bias: Option<&'a [f32]>,
    pub(crate) scales: Option<&'a [f32]>,
}

/// Where the rows of a step go.
#[derive(Debug, Default)]
pub(crate) struct Routes {
    /// Expert of each row's each choice, `[rows, chosen]`, with its weight and its place.
    experts: Vec<u32>,
    pub(crate) weights: Vec<f32>,
    /// Places are grouped by expert.
    pub(crate) places: Vec<u32>,
    /// The row at each place.
    pub(crate) rows: Vec<u32>,
    /// The experts that any row chose, with their places.
    pub(crate) active: Vec<(usize, Range<usize>)>,
    /// Of one row: what the choice is by, and weights before they are normalized.
    keys: Vec<f32>,
    probabilities: Vec<f32>,
}

impl Routes {
    /// Routes rows by their scores, `[rows, experts]`.
    pub(crate) fn fill(&mut self, router: &Router<'_>, scores: &[f32]) {
        self.experts.clear();
        self.weights.clear();
        for scores in scores.chunks_exact(router.experts.max(1)) {
            self.choose(router, scores);
        }
        self.group(router);
    }

    /// Appends a row's choices and their weights.
    fn choose(&mut self, router: &Router<'_>, scores: &[f32]) {
        let Self { keys, probabilities, .. } = self;
        probabilities.clear();
        match router.scoring {
            Scoring::Softmax => {
                let largest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                probabilities.extend(scores.iter().map(|score| (score - largest).exp()));
                let total: f32 = probabilities.iter().sum();
                probabilities.iter_mut().for_each(|p| *p /= total);
            }
            Scoring::Sigmoid => {
                probabilities.extend(scores.iter().map(|score| 1.0 / (1.0 + (-score).exp())));
            }
        }
        keys.clear();
        // Adding zero makes one of both zeros, which are equal. A score that is no number counts as the
        // greatest, whatever its sign, and so reaches the result.
        let key = |key: f32| if key.is_nan() { key.abs() } else { key + 0.0 };
        match router.selection_bias {
            Some(bias) => {
                keys.extend(probabilities.iter().zip(bias).map(|(p, bias)| key(p + bias)))
            }
            None => keys.extend(scores.iter().copied().map(key)),
        }
        let first = self.experts.len();
        let mut sum = 0.0;
        for _ in 0..router.chosen {
            let taken = &self.experts[first..];
            let free = (0..router.experts).filter(|&expert| !taken.contains(&(expert as u32)));
            // Of equal ones the first.
            let greatest = free.reduce(|best, expert| {
                if keys[expert].total_cmp(&keys[best]).is_gt() { expert } else { best }
            });
            let Some(expert) = greatest else { break };
            sum += probabilities[expert];
            self.experts.push(expert as u32);
        }
        let divisor = if router.normalize { sum + 1e-20 } else { 1.0 };
        for &expert in &self.experts[first..] {
            let scale = router.scales.map_or(1.0, |scales| scales[expert as usize]);
            let weight = probabilities[expert as usize] / divisor * router.factor * scale;
            self.weights.push(weight);
        }
    }

    /// Gives each choice a place: expert by expert, and row by row of each.
    fn group(&mut self, router: &Router<'_>) {
        let mut starts = vec![0; router.experts + 1];
        for &expert in &self.experts {
            starts[expert as usize + 1] += 1;
        }
        self.active.clear();
        for expert in 0..router.experts {
            starts[expert + 1] += starts[expert];
            let places = starts[expert]..starts[expert + 1];
            if !places.is_empty() {
                self.active.push((expert, places));
            }
        }
        self.places.clear();
        self.rows.clear();
        self.rows.resize(self.experts.len(), 0);
        for (choice, &expert) in self.experts.iter().enumerate() {
            let place = starts[expert as usize];
            starts[expert as usize] += 1;
            self.places.push(place as u32);
            self.rows[place] = (choice / router.chosen) as u32;
        }
    }
}

/// A row's result: `Σ weights[i] * results[places[i]]`, in this order.
pub(crate) struct Combine<'a> {
    /// By choice.
    pub(crate) weights: &'a [f32],
    /// Likewise.
    pub(crate) places: &'a [u32],
    /// `[places, width]`.
    pub(crate) results: &'a [f32],
    /// `[width]`.
    pub(crate) output: &'a mut [f32],
}

impl Op for Combine<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Isa>(self, isa: S) {
        let width = self.output.len();
        for (run, output) in self.output.chunks_mut(LANES).enumerate() {
            let columns = run * LANES..run * LANES + output.len();
            let mut sum = isa.splat(0.0);
            for (&weight, &place) in self.weights.iter().zip(self.places) {
                let row = &self.results[place as usize * width..][..width];
                let values = isa.load_partial(&row[columns.clone()], 0.0);
                sum = isa.mul_add(isa.splat(weight), values, sum);
            }
            isa.store_partial(sum, output);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{kernels::linear_tests::noise, simd::Simd};

    const ROUTER: Router<'_> = Router {
        experts: 5,
        chosen: 2,
        scoring: Scoring::Softmax,
        normalize: true,
        factor: 1.0,
        selection_bias: None,
        scales: None,
    };

    fn routes(router: &Router<'_>, scores: &[f32]) -> Routes {
        let mut routes = Routes::default();
        routes.fill(router, scores);
        routes
    }

    #[test]
    fn places_are_grouped_by_expert_and_cover_every_choice_once() {
        let scores = noise(1, 23 * 5);
        let routes = routes(&ROUTER, &scores);
        let mut seen = [false; 23 * 2];
        for (choice, (&expert, &place)) in routes.experts.iter().zip(&routes.places).enumerate() {
            assert!(!std::mem::replace(&mut seen[place as usize], true));
            assert_eq!(routes.rows[place as usize] as usize, choice / 2);
            let (_, places) = routes.active.iter().find(|(it, _)| *it == expert as usize).unwrap();
            assert!(places.contains(&(place as usize)));
        }
        assert!(seen.iter().all(|seen| *seen));
        for weights in routes.weights.chunks(2) {
            assert!((weights.iter().sum::<f32>() - 1.0).abs() < 1e-6);
        }
    }

    #[test]
    fn experts_that_no_row_chose_are_not_active() {
        let routes = routes(&ROUTER, &[0.0, 3.0, 0.0, 2.0, -1.0, 0.0, 4.0, 0.0, 9.0, -1.0]);
        assert_eq!(routes.active, [(1, 0..2), (3, 2..4)]);
        assert_eq!(routes.places, [0, 2, 3, 1]);
    }

    #[test]
    fn of_equal_scores_the_lower_index_is_chosen() {
        let chosen = |router: &Router<'_>, scores| routes(router, scores).experts;
        assert_eq!(chosen(&ROUTER, &[-0.0, 0.0, -1.0, 0.0, 0.0]), [0, 1]);
        let sigmoid = Router { scoring: Scoring::Sigmoid, ..ROUTER };
        assert_eq!(chosen(&sigmoid, &[0.0, 1.0, 1.0, 1.0, 0.0]), [1, 2]);
        let bias = [0.0, 0.0, 0.0, 0.0, 1.0];
        let biased = Router { selection_bias: Some(&bias), ..sigmoid };
        assert_eq!(chosen(&biased, &[0.0; 5]), [4, 0]);
    }

    #[test]
    fn scores_that_are_not_numbers_spoil_their_own_row_alone() {
        let mut scores = noise(2, 15);
        for nan in [f32::NAN, -f32::NAN] {
            scores[7] = nan;
            for scoring in [Scoring::Softmax, Scoring::Sigmoid] {
                let routes = routes(&Router { scoring, ..ROUTER }, &scores);
                let is_number: Vec<bool> =
                    routes.weights.chunks(2).map(|row| row.iter().all(|w| w.is_finite())).collect();
                assert_eq!(is_number, [true, false, true]);
                assert_eq!(routes.experts.len(), 6);
                assert_eq!(routes.experts[2], 2, "of {nan}");
            }
        }
    }

    #[test]
    fn results_are_weighed_on_every_path() {
        let results = noise(3, 3 * 37);
        for simd in Simd::available() {
            let mut output = vec![f32::NAN; 37];
            let (weights, places) = (&[0.5, -2.0][..], &[2, 0][..]);
            simd.run(Combine { weights, places, results: &results, output: &mut output });
            for (column, got) in output.iter().enumerate() {
                let expected = 0.5 * results[2 * 37 + column] - 2.0 * results[column];
                assert!((got - expected).abs() < 1e-6, "{simd:?}");
            }
        }
    }
}
