//! Kernels of this crate, as NVRTC 12.9.86 compiled them for compute_80, against plain references.
//! All checks are on and must find nothing.

mod support;

use cuda_emulator::count::{CacheModel, Class, Counting};
use cuda_emulator::{Arguments, Launch, Options, Outcome, Schedule};
use support::attention::Batch;
use support::{Device, Numbers, assert_clean, error, shape, widen};

const DECODE: &str = include_str!("../fixtures/decode.ptx");
const PREFILL: &str = include_str!("../fixtures/prefill.ptx");
const NORM: &str = include_str!("../fixtures/norm.ptx");
const SAMPLE: &str = include_str!("../fixtures/sample.ptx");
const MATVEC: &str = include_str!("../fixtures/matvec.ptx");

fn decode(batch: &Batch, options: &Options) -> (f64, Outcome) {
    let mut device = Device::new(DECODE);
    let count = batch.queries.len();
    let out = device.room::<u16>(count);
    let arguments = Arguments::new()
        .with(out)
        .with(device.upload(&batch.queries))
        .with(device.upload(&batch.keys))
        .with(device.upload(&batch.values))
        .with(device.upload(&batch.table))
        .with(device.upload(&batch.lengths))
        .with(batch.kv_heads as i32)
        .with(batch.page as i32)
        .with(batch.width as i32)
        .with(batch.scale)
        .with(batch.softcap)
        .with(batch.window);
    let grid = [batch.kv_heads as u32, batch.lengths.len() as u32, 1];
    let outcome = device.run("decode", shape(grid, 128), &arguments, options);
    let found: Vec<f64> = device.download::<u16>(out, count).into_iter().map(widen).collect();
    (error(&found, &batch.expected()), outcome)
}

fn prefill(batch: &Batch, options: &Options) -> (f64, Outcome) {
    let mut device = Device::new(PREFILL);
    let count = batch.queries.len();
    let out = device.room::<u16>(count);
    let arguments = Arguments::new()
        .with(out)
        .with(device.upload(&batch.queries))
        .with(device.upload(&batch.keys))
        .with(device.upload(&batch.values))
        .with(device.upload(&batch.table))
        .with(device.upload(&batch.starts))
        .with(device.upload(&batch.lengths))
        .with(batch.heads as i32)
        .with(batch.kv_heads as i32)
        .with(batch.page as i32)
        .with(batch.width as i32)
        .with(batch.scale)
        .with(batch.softcap)
        .with(batch.window);
    let longest = batch.starts.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or(1);
    let blocks = (longest as u32).div_ceil(64);
    let grid = [blocks, batch.heads as u32, batch.lengths.len() as u32];
    let outcome = device.run("prefill", shape(grid, 128), &arguments, options);
    let found: Vec<f64> = device.download::<u16>(out, count).into_iter().map(widen).collect();
    (error(&found, &batch.expected()), outcome)
}

#[test]
fn paged_decode_gives_attention() {
    let plain = Batch::new(128, 8, 2, &[1, 17, 100, 64], &[1, 1, 1, 1]);
    let (error, outcome) = decode(&plain, &Options::default());
    assert_clean(&outcome);
    assert!(error < 3e-3, "{error}");
    let capped = Batch { softcap: 2.0, window: 40, ..plain };
    let (error, outcome) = decode(&capped, &Options::default());
    assert_clean(&outcome);
    assert!(error < 3e-3, "{error}");
}

#[test]
fn paged_prefill_gives_attention_on_tensor_cores() {
    let plain = Batch::new(64, 4, 2, &[70, 33, 100], &[70, 5, 40]);
    let (error, outcome) = prefill(&plain, &Options::default());
    assert_clean(&outcome);
    assert!(error < 6e-3, "{error}");
    assert_eq!(outcome.counts.shared_wavefronts, outcome.counts.shared_wavefronts_ideal);
    assert!(outcome.counts.of(Class::Tensor) > 0);
    let capped = Batch { softcap: 3.0, window: 25, ..plain };
    let (error, outcome) = prefill(&capped, &Options::default());
    assert_clean(&outcome);
    assert!(error < 6e-3, "{error}");
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
        let (error, outcome) = prefill(&batch, &options);
        assert_clean(&outcome);
        assert!(error < 6e-3, "seed {seed}: {error}");
    }
}

#[test]
fn norm_adds_to_the_residual_and_normalizes() {
    let (rows, width) = (5, 300);
    let mut numbers = Numbers::new(1);
    let residual = numbers.reals(rows * width);
    let input = numbers.halves(rows * width);
    let weight = numbers.halves(width);
    let mut device = Device::new(NORM);
    let out = device.room::<u16>(rows * width);
    let residual_at = device.upload(&residual);
    let arguments = Arguments::new()
        .with(out)
        .with(residual_at)
        .with(device.upload(&input))
        .with(device.upload(&weight))
        .with(width as i32)
        .with(1e-5f32);
    let grid = shape([rows as u32, 1, 1], 128);
    assert_clean(&device.run("rms_norm", grid, &arguments, &Options::default()));

    let sums: Vec<f64> =
        residual.iter().zip(&input).map(|(a, b)| f64::from(*a) + widen(*b)).collect();
    let mut expected = Vec::new();
    for row in sums.chunks(width) {
        let mean = row.iter().map(|x| x * x).sum::<f64>() / width as f64;
        let norm = 1.0 / (mean + 1e-5).sqrt();
        expected.extend(row.iter().zip(&weight).map(|(x, w)| x * norm * widen(*w)));
    }
    let found: Vec<f64> =
        device.download::<u16>(out, rows * width).into_iter().map(widen).collect();
    assert!(error(&found, &expected) < 3e-3);
    let changed: Vec<f64> =
        device.download::<f32>(residual_at, rows * width).into_iter().map(f64::from).collect();
    assert!(error(&changed, &sums) < 1e-6);
}

#[test]
fn sampling_follows_the_noise_and_zero_temperature_takes_the_best() {
    let (rows, vocabulary) = (4, 1000);
    let logits: Vec<f32> =
        Numbers::new(3).reals(rows * vocabulary).into_iter().map(|x| x * 6.0).collect();
    let noise = [0.0f32, 0.3, 0.75, 0.999];
    for temperature in [0.0f32, 0.7] {
        let mut device = Device::new(SAMPLE);
        let (tokens, probabilities) = (device.room::<i32>(rows), device.room::<f32>(rows));
        let arguments = Arguments::new()
            .with(tokens)
            .with(probabilities)
            .with(device.upload(&logits))
            .with(device.upload(&noise))
            .with(vocabulary as i32)
            .with(temperature);
        let grid = shape([rows as u32, 1, 1], 256);
        assert_clean(&device.run("sample", grid, &arguments, &Options::default()));
        let found: Vec<i32> = device.download(tokens, rows);
        let chances: Vec<f32> = device.download(probabilities, rows);
        for (row, logits) in logits.chunks(vocabulary).enumerate() {
            let sharpness = if temperature > 0.0 { 1.0 / f64::from(temperature) } else { 1.0 };
            let best = logits.iter().copied().fold(f32::MIN, f32::max);
            let weights: Vec<f64> =
                logits.iter().map(|x| (f64::from(x - best) * sharpness).exp()).collect();
            let total: f64 = weights.iter().sum();
            let token = found[row] as usize;
            assert!((f64::from(chances[row]) - weights[token] / total).abs() < 1e-5);
            if temperature == 0.0 {
                assert_eq!(logits[token], best);
            } else {
                // The noise lies in the token's part of the distribution, up to rounding.
                let below: f64 = weights[..token].iter().sum::<f64>() / total;
                let target = f64::from(noise[row]);
                assert!(below - 1e-5 <= target, "row {row}");
                assert!(target <= below + weights[token] / total + 1e-5, "row {row}");
            }
        }
    }
}

#[test]
fn quantized_matvec_multiplies() {
    let (rows, columns) = (37, 256);
    let mut numbers = Numbers::new(5);
    let weights: Vec<i8> = (0..rows * columns).map(|_| numbers.next() as i8).collect();
    let scales: Vec<f32> =
        numbers.reals(rows * columns / 32).into_iter().map(|x| x.abs() / 64.0).collect();
    let x = numbers.halves(columns);
    let mut device = Device::new(MATVEC);
    let y = device.room::<f32>(rows);
    let arguments = Arguments::new()
        .with(y)
        .with(device.upload(&weights))
        .with(device.upload(&scales))
        .with(device.upload(&x))
        .with(rows as i32)
        .with(columns as i32);
    let grid = Launch {
        grid: [3, 1, 1],
        block: [128, 1, 1],
        dynamic_shared: (columns + columns / 32 * 4) as u32,
    };
    assert_clean(&device.run("matvec", grid, &arguments, &Options::default()));
    let expected: Vec<f64> = (0..rows)
        .map(|row| {
            (0..columns)
                .map(|column| {
                    let at = row * columns + column;
                    f64::from(weights[at]) * f64::from(scales[at / 32]) * widen(x[column])
                })
                .sum()
        })
        .collect();
    let found: Vec<f64> = device.download::<f32>(y, rows).into_iter().map(f64::from).collect();
    assert!(error(&found, &expected) < 1e-2);
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
    let (_, first) = prefill(&batch, &options(Schedule::InOrder, 1));
    for (schedule, threads) in [(Schedule::InOrder, 2), (Schedule::Random(4), 2)] {
        let (_, again) = prefill(&batch, &options(schedule, threads));
        assert_eq!(first.counts, again.counts, "{schedule:?}");
    }
    let counts = first.counts;
    assert!(counts.l2_misses <= counts.sectors_loaded);
    // K and V of 110 tokens, 64 dimensions of 2 bytes; the queries; the table and lengths.
    let least = (2 * 110 + 49 * 2) * 64 * 2 / 32;
    assert!((least..least + 40).contains(&counts.l2_misses), "{least} {counts:?}");
    assert_eq!(counts.l2_write_backs, 49 * 2 * 64 * 2 / 32);
}
