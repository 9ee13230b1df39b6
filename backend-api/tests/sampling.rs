//! The logits pipeline against an oracle that sorts everything and works in f64.

use std::collections::BTreeMap;

use backend_api::sample::{RowSampler, SampleError, TokenCounts, philox4x32};
use backend_api::{Mask, SlotSampling, Token};
use proptest::prelude::*;

/// The module's eight steps, each written as its definition says.
fn oracle(
    logits: &[f32],
    sampling: &SlotSampling,
    generated: &[Token],
    position: u32,
    mask: Option<&Mask<'_>>,
) -> Option<Token> {
    let mut values: Vec<f64> = logits.iter().copied().map(f64::from).collect();
    if position < sampling.suppress_before {
        for &token in sampling.suppress.iter() {
            values[token as usize] = f64::NEG_INFINITY;
        }
    }
    for &(token, bias) in sampling.logit_bias.iter() {
        values[token as usize] += f64::from(bias);
    }
    let mut seen: BTreeMap<Token, f64> = BTreeMap::new();
    let prompt = sampling.history_prompt as usize;
    for token in &sampling.history[..prompt.min(sampling.history.len())] {
        seen.entry(*token).or_default();
    }
    for token in sampling.history.iter().skip(prompt).chain(generated) {
        *seen.entry(*token).or_default() += 1.0;
    }
    for (token, count) in seen {
        let value = &mut values[token as usize];
        let repetition = f64::from(sampling.repetition_penalty);
        *value = if *value > 0.0 { *value / repetition } else { *value * repetition };
        *value -= f64::from(sampling.frequency_penalty) * count;
        *value -= f64::from(sampling.presence_penalty) * f64::from(u8::from(count > 0.0));
    }
    for (token, value) in values.iter_mut().enumerate() {
        if mask.is_some_and(|mask| !mask.allows(token as Token)) {
            *value = f64::NEG_INFINITY;
        }
    }

    let mut order: Vec<usize> = (0..values.len()).filter(|&t| values[t].is_finite()).collect();
    order.sort_by(|&a, &b| values[b].total_cmp(&values[a]).then(a.cmp(&b)));
    let largest = values[*order.first()?];
    if sampling.temperature == 0.0 {
        return Some(order[0] as Token);
    }
    let scaled = |token: usize| (values[token] - largest) / f64::from(sampling.temperature);
    if sampling.top_k > 0 {
        order.truncate(sampling.top_k as usize);
    }
    if sampling.top_p < 1.0 {
        let total: f64 = order.iter().map(|&token| scaled(token).exp()).sum();
        let mut reached = 0.0;
        let last = order.iter().position(|&token| {
            reached += scaled(token).exp();
            reached >= f64::from(sampling.top_p) * total
        });
        order.truncate(last.map_or(order.len(), |last| last + 1));
    }
    order.retain(|&token| scaled(token).exp() >= f64::from(sampling.min_p));
    let score = |token: usize| {
        let key = [sampling.seed as u32, (sampling.seed >> 32) as u32];
        let counter = [token as u32 / 4, position, sampling.sample_index, 0];
        let uniform = (f64::from(philox4x32(counter, key)[token % 4]) + 0.5) / 2f64.powi(32);
        scaled(token) - (-uniform.ln()).ln()
    };
    order.sort_unstable();
    let first = *order.first()?;
    let best =
        order[1..].iter().fold(first, |best, &t| if score(t) > score(best) { t } else { best });
    Some(best as Token)
}

/// A multiple of 1/64, so that sums and small quotients are exact in f32 and f64 alike.
fn dyadic(range: std::ops::Range<i32>) -> impl Strategy<Value = f32> {
    range.prop_map(|n| n as f32 / 64.0)
}

fn sampling(vocab: u32) -> impl Strategy<Value = SlotSampling> {
    let filters = (
        prop::sample::select(vec![0.0, 0.25, 0.5, 1.0, 2.0, 16.0]),
        prop_oneof![Just(0u32), 1u32..400],
        prop_oneof![Just(1.0f32), 0.05f32..0.999],
        prop_oneof![Just(0.0f32), 0.001f32..0.9],
    );
    let penalties = (
        prop::sample::select(vec![1.0, 2.0, 0.5]),
        prop::sample::select(vec![0.0, 0.5, -0.25]),
        prop::sample::select(vec![0.0, 0.25, -1.0]),
    );
    let tokens = prop::collection::vec(0..vocab, 0..20);
    let bias = prop::collection::vec((0..vocab, dyadic(-640..640)), 0..6);
    let rest = (tokens.clone(), tokens, bias, any::<u64>(), 0u32..4, 0u32..20);
    (filters, penalties, rest).prop_map(|(filters, penalties, rest)| {
        let mut sampling = SlotSampling::greedy();
        (sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p) = filters;
        (sampling.repetition_penalty, sampling.frequency_penalty, sampling.presence_penalty) =
            penalties;
        let (history, suppress, bias, seed, sample_index, suppress_before) = rest;
        sampling.history_prompt = history.len() as u32 / 2;
        sampling.history = history.into();
        sampling.suppress = suppress.into();
        sampling.logit_bias = bias.into();
        (sampling.seed, sampling.sample_index) = (seed, sample_index);
        sampling.suppress_before = suppress_before;
        sampling
    })
}

fn noisy(temperature: f32, seed: u64) -> SlotSampling {
    let mut sampling = SlotSampling::greedy();
    (sampling.temperature, sampling.seed) = (temperature, seed);
    sampling
}

fn sample(
    sampler: &mut RowSampler,
    logits: &[f32],
    sampling: &SlotSampling,
    generated: &[Token],
    position: u32,
    mask: Option<&Mask<'_>>,
) -> Result<Token, SampleError> {
    let mut counts = TokenCounts::default();
    counts.open(sampling);
    generated.iter().for_each(|&token| counts.record(token));
    let (mut row, mut top) = (logits.to_vec(), Vec::new());
    sampler.sample(&mut row, sampling, &counts, position, mask, &mut top).map(|s| s.token)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, ..ProptestConfig::default() })]

    #[test]
    fn a_row_is_sampled_as_the_definition_says(
        logits in prop::collection::vec(dyadic(-1000..1000), 400),
        sampling in sampling(400),
        generated in prop::collection::vec(0u32..400, 0..10),
        position in 0u32..40,
        mask in prop::option::of(prop::collection::vec(any::<u32>(), 1..14)),
    ) {
        let words = mask.unwrap_or_default();
        let mask = Mask { output: 0, index: 0, allowed: &words };
        let mask = (!words.is_empty()).then_some(&mask);
        let history = if sampling.has_penalties() { &sampling.history[..] } else { &[] };
        let mut sampling = sampling.clone();
        sampling.history = history.into();
        let counted = if sampling.has_penalties() { &generated[..] } else { &[] };
        let expected = oracle(&logits, &sampling, counted, position, mask);
        let got = sample(&mut RowSampler::default(), &logits, &sampling, &generated, position, mask);
        prop_assert_eq!(got, expected.ok_or(SampleError::NothingAllowed));
    }

    #[test]
    fn what_was_sampled_before_makes_no_difference(
        rows in prop::collection::vec(prop::collection::vec(dyadic(-1000..1000), 100), 2..6),
        sampling in sampling(100),
    ) {
        let mut shared = RowSampler::default();
        for (position, row) in rows.iter().enumerate() {
            let position = position as u32;
            let alone = sample(&mut RowSampler::default(), row, &sampling, &[], position, None);
            let after = sample(&mut shared, row, &sampling, &[], position, None);
            prop_assert_eq!(alone, after);
        }
    }
}

/// The statistic of a fit of `draws` over positions to the expected probabilities, and its
/// degrees of freedom.
fn chi_square(logits: &[f32], sampling: &SlotSampling, expected: &[f64], draws: u32) -> (f64, f64) {
    let mut seen = vec![0u32; logits.len()];
    let mut sampler = RowSampler::default();
    for position in 0..draws {
        let token = sample(&mut sampler, logits, sampling, &[], position, None).unwrap();
        seen[token as usize] += 1;
    }
    let mut statistic = 0.0;
    for (&seen, &probability) in seen.iter().zip(expected) {
        let expected = probability * f64::from(draws);
        match probability {
            0.0 => assert_eq!(seen, 0, "a filtered token was sampled"),
            _ => statistic += (f64::from(seen) - expected).powi(2) / expected,
        }
    }
    (statistic, expected.iter().filter(|&&p| p > 0.0).count() as f64 - 1.0)
}

/// Softmax over what `keep` keeps.
fn softmax(logits: &[f32], temperature: f32, keep: impl Fn(usize) -> bool) -> Vec<f64> {
    let weight = |(token, &logit): (usize, &f32)| {
        if keep(token) { f64::from(logit / temperature).exp() } else { 0.0 }
    };
    let weights: Vec<f64> = logits.iter().enumerate().map(weight).collect();
    let total: f64 = weights.iter().sum();
    weights.into_iter().map(|weight| weight / total).collect()
}

#[test]
fn draws_follow_the_filtered_distribution() {
    let logits: Vec<f32> = (0..40).map(|token| ((token * 17) % 40) as f32 / 16.0).collect();
    let rank = |token: usize| logits.iter().filter(|&&logit| logit > logits[token]).count();
    for (seed, temperature, top_k) in [(1, 1.0, 0), (2, 0.7, 0), (3, 1.0, 10), (4, 2.0, 25)] {
        let mut sampling = noisy(temperature, seed);
        sampling.top_k = top_k;
        let keep = |token| top_k == 0 || rank(token) < top_k as usize;
        let expected = softmax(&logits, temperature, keep);
        let (statistic, freedom) = chi_square(&logits, &sampling, &expected, 20_000);
        // Mean `freedom`, variance twice that. Seeds are fixed, so this never wavers; four
        // deviations either way would also show noise that is too even.
        let deviation = (2.0 * freedom).sqrt();
        assert!((statistic - freedom).abs() < 4.0 * deviation, "{seed}: {statistic} for {freedom}");
    }
}

#[test]
fn samples_of_one_request_and_positions_of_one_sample_are_independent() {
    let logits = [0.0f32; 64];
    let mut streams: Vec<Vec<Token>> = Vec::new();
    for sample_index in 0..4 {
        let mut sampling = noisy(1.0, 9);
        sampling.sample_index = sample_index;
        let mut sampler = RowSampler::default();
        let draw =
            |position| sample(&mut sampler, &logits, &sampling, &[], position, None).unwrap();
        streams.push((0..2000).map(draw).collect());
    }
    let equal = |a: &[Token], b: &[Token]| a.iter().zip(b).filter(|(a, b)| a == b).count();
    for (index, a) in streams.iter().enumerate() {
        // One in 64 agrees by chance: 31 of 2000, with a deviation of 5.5.
        let shifted = equal(a, &a[1..]);
        assert!((5..60).contains(&shifted), "{shifted}");
        for b in &streams[index + 1..] {
            let agreeing = equal(a, b);
            assert!((5..60).contains(&agreeing), "{agreeing}");
        }
    }
}

#[test]
fn greedy_takes_the_lowest_of_equal_tokens() {
    let logits = [1.0, 3.0, -0.5, 3.0];
    let token = sample(&mut RowSampler::default(), &logits, &SlotSampling::greedy(), &[], 0, None);
    assert_eq!(token, Ok(1));
}

#[test]
fn a_tiny_temperature_is_greedy() {
    let sampling = noisy(f32::from_bits(1), 3);
    let token = sample(&mut RowSampler::default(), &[1.0, 3.0, 2.9], &sampling, &[], 0, None);
    assert_eq!(token, Ok(1));
}

#[test]
fn logits_that_are_not_finite_fail_the_row_by_name() {
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut logits = [0.0f32; 100];
        logits[77] = value;
        let error =
            sample(&mut RowSampler::default(), &logits, &SlotSampling::greedy(), &[], 0, None);
        assert!(matches!(error, Err(SampleError::NotFinite { token: 77, .. })), "{error:?}");
    }
}

#[test]
fn a_mask_that_forbids_everything_fails_the_row() {
    let mask = Mask { output: 0, index: 0, allowed: &[0] };
    let sampling = noisy(1.0, 0);
    let token = sample(&mut RowSampler::default(), &[0.0; 40], &sampling, &[], 0, Some(&mask));
    assert_eq!(token, Err(SampleError::NothingAllowed));
}

#[test]
fn log_probabilities_are_the_models_whatever_bias_and_filters_do() {
    let logits: Vec<f32> = (0..200).map(|token| ((token * 37) % 200) as f32 / 20.0).collect();
    let mut sampling = noisy(0.5, 0);
    sampling.top_k = 3;
    sampling.logit_bias = [(5, 100.0)].into();
    sampling.logprobs = Some(3);
    let normalizer = logits.iter().map(|&l| f64::from(l).exp()).sum::<f64>().ln();
    let (mut row, mut top) = (logits.clone(), vec![(7, 7.0)]);
    let mut sampler = RowSampler::default();
    let counts = TokenCounts::default();
    let sample = sampler.sample(&mut row, &sampling, &counts, 0, None, &mut top).unwrap();
    assert_eq!(sample.token, 5, "the bias decides");
    let expected = f64::from(logits[5]) - normalizer;
    assert!((f64::from(sample.logprob) - expected).abs() < 1e-5);
    let listed = &top[sample.top.range()];
    assert_eq!(listed.iter().map(|&(token, _)| token).collect::<Vec<_>>(), [27, 54, 81]);
    for &(token, logprob) in listed {
        let expected = f64::from(logits[token as usize]) - normalizer;
        assert!((f64::from(logprob) - expected).abs() < 1e-5);
    }

    let scored = sampler.score(&logits, 5, 1, &mut top).unwrap();
    assert_eq!((scored.token, scored.logprob), (5, sample.logprob));
    assert_eq!(top[scored.top.range()][0].0, 27);
    let unknown = sampler.score(&logits, 200, 0, &mut top);
    assert_eq!(unknown, Err(SampleError::UnknownToken { token: 200, len: 200 }));
}

/// Draws under the settings of transformers' cases keep to the tokens that it keeps, in its
/// proportions.
#[test]
fn filters_keep_what_transformers_keeps() {
    const DRAWS: u32 = 1500;
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/sampling.json");
    let file: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let list = |value: &serde_json::Value| -> Vec<f64> {
        value.as_array().unwrap().iter().map(|number| number.as_f64().unwrap()).collect()
    };
    let history: Vec<Token> = list(&file["history"]).iter().map(|&token| token as Token).collect();
    for (number, case) in file["cases"].as_array().unwrap().iter().enumerate() {
        let vector = &file["vectors"][case["vector"].as_str().unwrap()];
        let logits: Vec<f32> = list(vector).iter().map(|&logit| logit as f32).collect();
        let settings = &case["settings"];
        let setting = |name: &str| settings[name].as_f64();
        let mut sampling = noisy(setting("temperature").unwrap_or(1.0) as f32, number as u64);
        sampling.top_k = setting("top_k").unwrap_or(0.0) as u32;
        sampling.top_p = setting("top_p").unwrap_or(1.0) as f32;
        sampling.min_p = setting("min_p").unwrap_or(0.0) as f32;
        if let Some(penalty) = setting("repetition_penalty") {
            sampling.repetition_penalty = penalty as f32;
            sampling.history_prompt = history.len() as u32;
            sampling.history = history.as_slice().into();
        }
        let mut expected = vec![0.0; logits.len()];
        for (token, probability) in list(&case["kept"]).iter().zip(list(&case["probabilities"])) {
            expected[*token as usize] = probability * f64::from(DRAWS);
        }
        let mut sampler = RowSampler::default();
        let mut seen = vec![0.0; logits.len()];
        for position in 0..DRAWS {
            let token = sample(&mut sampler, &logits, &sampling, &[], position, None).unwrap();
            seen[token as usize] += 1.0;
        }
        for (token, (&seen, &expected)) in seen.iter().zip(&expected).enumerate() {
            assert!(expected > 0.0 || seen == 0.0, "{settings}: token {token} is filtered out");
            // Seeds are fixed, so this never wavers: five deviations, and a few for rare tokens.
            let difference: f64 = seen - expected;
            let allowed = 5.0 * expected.sqrt() + 3.0;
            assert!(difference.abs() <= allowed, "{settings}: token {token}: {seen} of {expected}");
        }
    }
}
