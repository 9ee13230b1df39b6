//! Kernels of this crate, as NVRTC 12.9.86 compiled them for compute_80, against plain references.
//! All checks are on and must find nothing.

mod support;

use std::collections::BTreeMap;

use cuda_emulator::count::{CacheModel, Class, Counting};
use cuda_emulator::{Options, Schedule};
use support::attention::Batch;
use support::cases;

const DECODE: &str = include_str!("../fixtures/decode.ptx");
const PREFILL: &str = include_str!("../fixtures/prefill.ptx");
const NORM: &str = include_str!("../fixtures/norm.ptx");
const SAMPLE: &str = include_str!("../fixtures/sample.ptx");
const MATVEC: &str = include_str!("../fixtures/matvec.ptx");

#[test]
fn paged_decode_gives_attention() {
    for batch in cases::decode_batches() {
        cases::decode(DECODE, &batch, &Options::default()).unwrap();
    }
}

#[test]
fn paged_prefill_gives_attention_on_tensor_cores_without_bank_conflicts() {
    for batch in cases::prefill_batches() {
        let counts = cases::prefill(PREFILL, &batch, &Options::default()).unwrap().counts;
        assert_eq!(counts.shared_wavefronts, counts.shared_wavefronts_ideal);
        assert!(counts.of(Class::Tensor) > 0);
        // bf16: two bytes.
        assert_eq!(counts.tensor_work, 2 * counts.tensor_operations);
    }
}

#[test]
fn results_hold_under_random_schedules_and_perturbed_approximations() {
    let batch = Batch::new(64, 2, 1, &[50, 40], &[50, 3]);
    for seed in 0..6 {
        let options = Options {
            schedule: Schedule::Random(seed),
            perturb: Some(seed as u32),
            ..Options::default()
        };
        cases::prefill(PREFILL, &batch, &options).unwrap();
        cases::sample(SAMPLE, 0.7, &options).unwrap();
    }
}

#[test]
fn norm_adds_to_the_residual_and_normalizes() {
    cases::norm(NORM, &Options::default()).unwrap();
}

#[test]
fn sampling_follows_the_noise_and_zero_temperature_takes_the_best() {
    for temperature in [0.0, 0.7] {
        cases::sample(SAMPLE, temperature, &Options::default()).unwrap();
    }
}

#[test]
fn noise_on_the_border_between_tokens_takes_the_later_one() {
    cases::sample_borders(SAMPLE, &Options::default()).unwrap();
}

#[test]
fn quantized_matvec_multiplies() {
    cases::matvec(MATVEC, &Options::default()).unwrap();
}

#[test]
fn noise_above_the_sum_of_all_weights_takes_the_last_token() {
    cases::sample_ends(SAMPLE, &Options::default()).unwrap();
}

/// With `UPDATE=1` the record is made anew.
#[test]
fn kernels_cost_what_is_recorded() {
    let kernels = [
        ("decode", DECODE),
        ("prefill", PREFILL),
        ("norm", NORM),
        ("sample", SAMPLE),
        ("matvec", MATVEC),
    ];
    let costs: BTreeMap<_, _> = kernels
        .into_iter()
        .map(|(name, ptx)| {
            (name.to_owned(), cases::all(name, ptx, &Options::default()).expect(name))
        })
        .collect();
    if std::env::var_os("UPDATE").is_some() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/costs.json");
        let text = serde_json::to_string_pretty(&costs).expect("numbers") + "\n";
        std::fs::write(path, text).expect("the record is written");
        return;
    }
    // Not less either: what became cheaper is recorded again.
    assert_eq!(costs, cases::recorded());
}

#[test]
fn counts_are_the_same_in_every_run_and_under_every_schedule() {
    let batch = Batch::new(64, 2, 1, &[40, 70], &[40, 9]);
    let options = |schedule, threads| Options {
        schedule,
        threads: Some(threads),
        counting: Counting { memory: true, l2: Some(CacheModel::A100) },
        ..Options::default()
    };
    let first = cases::prefill(PREFILL, &batch, &options(Schedule::InOrder, 1)).unwrap();
    for (schedule, threads) in [(Schedule::InOrder, 2), (Schedule::Random(4), 2)] {
        let again = cases::prefill(PREFILL, &batch, &options(schedule, threads)).unwrap();
        assert_eq!(first.counts, again.counts, "{schedule:?}");
    }
    let counts = first.counts;
    assert!(counts.l2_misses <= counts.sectors_loaded);
    // K and V of 110 tokens, 64 dimensions of 2 bytes; the queries; the table and lengths.
    let least = (2 * 110 + 49 * 2) * 64 * 2 / 32;
    assert!((least..least + 40).contains(&counts.l2_misses), "{least} {counts:?}");
    assert_eq!(counts.l2_write_backs, 49 * 2 * 64 * 2 / 32);
}
