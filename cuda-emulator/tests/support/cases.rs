//! Our kernels with inputs, and what they should give.

use std::collections::BTreeMap;

use cuda_emulator::check::Severity;
use cuda_emulator::count::Cost;
use cuda_emulator::{Arguments, Launch, LaunchError, Memory, Options, Program, launch};

use super::attention::Batch;
use super::{Numbers, error, shape, widen};

/// Why a kernel failed its case.
#[derive(Debug)]
pub enum Failure {
    /// It can't be loaded or launched.
    Refused(String),
    /// The checks found something, be it a warning: the first report.
    Reported(String),
    /// It gave wrong numbers.
    Wrong(String),
}

/// Where a case runs.
struct Run<'a> {
    memory: Memory,
    program: Program,
    options: &'a Options,
}

impl<'a> Run<'a> {
    fn new(ptx: &str, options: &'a Options) -> Result<Self, Failure> {
        let mut memory = Memory::default();
        let program =
            Program::load(ptx, &mut memory).map_err(|e| Failure::Refused(e.to_string()))?;
        Ok(Self { memory, program, options })
    }

    fn upload<T: bytemuck::NoUninit>(&mut self, values: &[T]) -> u64 {
        self.memory.upload(values).expect("there is memory")
    }

    fn room<T>(&mut self, count: usize) -> u64 {
        self.memory.allocate((count * size_of::<T>()) as u64).expect("there is memory")
    }

    fn launch(&self, kernel: &str, shape: Launch, arguments: &Arguments) -> Result<Cost, Failure> {
        let kernel = self.program.kernel(kernel).map_err(|e| Failure::Refused(e.to_string()))?;
        let refused = |e: LaunchError| Failure::Refused(e.to_string());
        let outcome = launch(&kernel, &self.memory, &shape, arguments.bytes(), self.options)
            .map_err(refused)?;
        let mut reports = outcome.reports.iter().filter(|one| one.severity > Severity::Advice);
        match reports.next() {
            Some(report) => Err(Failure::Reported(report.to_string())),
            None => Ok(Cost::new(&kernel, &outcome)),
        }
    }

    fn halves(&self, address: u64, count: usize) -> Vec<f64> {
        let bits: Vec<u16> = self.memory.download(address, count).expect("a good address");
        bits.into_iter().map(widen).collect()
    }

    fn singles(&self, address: u64, count: usize) -> Vec<f64> {
        let values: Vec<f32> = self.memory.download(address, count).expect("a good address");
        values.into_iter().map(f64::from).collect()
    }
}

fn near(found: &[f64], expected: &[f64], most: f64) -> Result<(), Failure> {
    let off = error(found, expected);
    // NaN is not near.
    if off < most { Ok(()) } else { Err(Failure::Wrong(format!("off by {off}"))) }
}

pub fn decode(ptx: &str, batch: &Batch, options: &Options) -> Result<Cost, Failure> {
    let mut run = Run::new(ptx, options)?;
    let count = batch.queries.len();
    let out = run.room::<u16>(count);
    let arguments = Arguments::new()
        .with(out)
        .with(run.upload(&batch.queries))
        .with(run.upload(&batch.keys))
        .with(run.upload(&batch.values))
        .with(run.upload(&batch.table))
        .with(run.upload(&batch.lengths))
        .with(batch.kv_heads as i32)
        .with(batch.page as i32)
        .with(batch.width as i32)
        .with(batch.scale)
        .with(batch.softcap)
        .with(batch.window);
    let grid = [batch.kv_heads as u32, batch.lengths.len() as u32, 1];
    let cost = run.launch("decode", shape(grid, 128), &arguments)?;
    near(&run.halves(out, count), &batch.expected(), 3e-3)?;
    Ok(cost)
}

pub fn prefill(ptx: &str, batch: &Batch, options: &Options) -> Result<Cost, Failure> {
    let mut run = Run::new(ptx, options)?;
    let count = batch.queries.len();
    let out = run.room::<u16>(count);
    let arguments = Arguments::new()
        .with(out)
        .with(run.upload(&batch.queries))
        .with(run.upload(&batch.keys))
        .with(run.upload(&batch.values))
        .with(run.upload(&batch.table))
        .with(run.upload(&batch.starts))
        .with(run.upload(&batch.lengths))
        .with(batch.heads as i32)
        .with(batch.kv_heads as i32)
        .with(batch.page as i32)
        .with(batch.width as i32)
        .with(batch.scale)
        .with(batch.softcap)
        .with(batch.window);
    let longest = batch.starts.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or(1);
    let grid = [(longest as u32).div_ceil(64), batch.heads as u32, batch.lengths.len() as u32];
    let cost = run.launch("prefill", shape(grid, 128), &arguments)?;
    near(&run.halves(out, count), &batch.expected(), 6e-3)?;
    Ok(cost)
}

pub fn norm(ptx: &str, options: &Options) -> Result<Cost, Failure> {
    let (rows, width) = (5, 300);
    let mut numbers = Numbers::new(1);
    let residual = numbers.reals(rows * width);
    let input = numbers.halves(rows * width);
    let weight = numbers.halves(width);
    let mut run = Run::new(ptx, options)?;
    let out = run.room::<u16>(rows * width);
    let residual_at = run.upload(&residual);
    let arguments = Arguments::new()
        .with(out)
        .with(residual_at)
        .with(run.upload(&input))
        .with(run.upload(&weight))
        .with(width as i32)
        .with(1e-5f32);
    let cost = run.launch("rms_norm", shape([rows as u32, 1, 1], 128), &arguments)?;

    let sums: Vec<f64> =
        residual.iter().zip(&input).map(|(a, b)| f64::from(*a) + widen(*b)).collect();
    let mut expected = Vec::new();
    for row in sums.chunks(width) {
        let mean = row.iter().map(|x| x * x).sum::<f64>() / width as f64;
        let norm = 1.0 / (mean + 1e-5).sqrt();
        expected.extend(row.iter().zip(&weight).map(|(x, w)| x * norm * widen(*w)));
    }
    near(&run.halves(out, rows * width), &expected, 3e-3)?;
    near(&run.singles(residual_at, rows * width), &sums, 1e-6)?;
    Ok(cost)
}

pub fn sample(ptx: &str, temperature: f32, options: &Options) -> Result<Cost, Failure> {
    let (rows, vocabulary) = (6, 1000);
    let mut logits: Vec<f32> =
        Numbers::new(3).reals(rows * vocabulary).into_iter().map(|x| x * 6.0).collect();
    // Two logits of some rows are the largest: the first one counts.
    // In different warps, in the slice of one thread, and in two threads of a warp.
    for at in [400, 700, 1008, 1009, 2020, 2060] {
        logits[at] = 7.0;
    }
    let noise = [0.0f32, 0.3, 0.75, 0.999, 0.5, 0.1];
    let mut run = Run::new(ptx, options)?;
    let (tokens, probabilities) = (run.room::<i32>(rows), run.room::<f32>(rows));
    let arguments = Arguments::new()
        .with(tokens)
        .with(probabilities)
        .with(run.upload(&logits))
        .with(run.upload(&noise))
        .with(vocabulary as i32)
        .with(temperature);
    let cost = run.launch("sample", shape([rows as u32, 1, 1], 256), &arguments)?;
    let found: Vec<i32> = run.memory.download(tokens, rows).expect("a good address");
    let chances = run.singles(probabilities, rows);
    for (row, logits) in logits.chunks(vocabulary).enumerate() {
        let sharpness = if temperature > 0.0 { 1.0 / f64::from(temperature) } else { 1.0 };
        let best = logits.iter().copied().fold(f32::MIN, f32::max);
        let weights: Vec<f64> =
            logits.iter().map(|x| (f64::from(x - best) * sharpness).exp()).collect();
        let total: f64 = weights.iter().sum();
        let wrong = |what: &str| Failure::Wrong(format!("row {row}: {what}"));
        let token = usize::try_from(found[row])
            .ok()
            .filter(|token| *token < vocabulary)
            .ok_or_else(|| wrong("no token"))?;
        let below: f64 = weights[..token].iter().sum::<f64>() / total;
        let (chance, target) = (weights[token] / total, f64::from(noise[row]));
        // The noise lies in the token's part of the distribution, up to rounding.
        let holds = if temperature == 0.0 {
            logits.iter().position(|logit| *logit == best) == Some(token)
        } else {
            below - 1e-5 <= target && target <= below + chance + 1e-5
        };
        if !holds {
            return Err(wrong("another token"));
        }
        // Not less than near, so that NaN is told.
        let off = (chances[row] - chance).abs();
        if off.is_nan() || off > 1e-5 {
            return Err(wrong("another probability"));
        }
    }
    Ok(cost)
}

/// Tokens of equal weight, and noise on the very borders between them.
pub fn sample_borders(ptx: &str, options: &Options) -> Result<Cost, Failure> {
    // Between tokens of a thread, between threads, and between warps.
    let vocabulary = 1024usize;
    let borders = [0usize, 1, 3, 4, 8, 127, 128, 256, 384, 512, 640, 768, 896, 1021, 1023];
    let rows = borders.len();
    let noise: Vec<f32> = borders.iter().map(|token| *token as f32 / vocabulary as f32).collect();
    let mut run = Run::new(ptx, options)?;
    let (tokens, probabilities) = (run.room::<i32>(rows), run.room::<f32>(rows));
    let arguments = Arguments::new()
        .with(tokens)
        .with(probabilities)
        .with(run.upload(&vec![1.5f32; rows * vocabulary]))
        .with(run.upload(&noise))
        .with(vocabulary as i32)
        .with(1.0f32);
    let cost = run.launch("sample", shape([rows as u32, 1, 1], 256), &arguments)?;
    let found: Vec<i32> = run.memory.download(tokens, rows).expect("a good address");
    let expected: Vec<i32> = borders.iter().map(|token| *token as i32).collect();
    if found == expected { Ok(cost) } else { Err(Failure::Wrong(format!("{found:?}"))) }
}

/// Noise just below 1: where rounding leaves it above the sum of the last weights, the last token is
/// taken.
pub fn sample_ends(ptx: &str, options: &Options) -> Result<Cost, Failure> {
    let (rows, vocabulary) = (16usize, 1024usize);
    let mut run = Run::new(ptx, options)?;
    let (tokens, probabilities) = (run.room::<i32>(rows), run.room::<f32>(rows));
    let arguments = Arguments::new()
        .with(tokens)
        .with(probabilities)
        .with(run.upload(&Numbers::new(9).reals(rows * vocabulary)))
        .with(run.upload(&vec![1.0f32.next_down(); rows]))
        .with(vocabulary as i32)
        .with(1.0f32);
    let cost = run.launch("sample", shape([rows as u32, 1, 1], 256), &arguments)?;
    let found: Vec<i32> = run.memory.download(tokens, rows).expect("a good address");
    let last = vocabulary as i32 - 1;
    if found.iter().all(|token| *token == last) {
        Ok(cost)
    } else {
        Err(Failure::Wrong(format!("{found:?}")))
    }
}

pub fn matvec(ptx: &str, options: &Options) -> Result<Cost, Failure> {
    let (rows, columns) = (37, 256);
    let mut numbers = Numbers::new(5);
    let weights: Vec<i8> = (0..rows * columns).map(|_| numbers.next() as i8).collect();
    let scales: Vec<f32> =
        numbers.reals(rows * columns / 32).into_iter().map(|x| x.abs() / 64.0).collect();
    let mut x = numbers.halves(columns);
    // A block of zeros has no scale.
    x[64..96].fill(0);
    let mut run = Run::new(ptx, options)?;
    let y = run.room::<f32>(rows);
    let arguments = Arguments::new()
        .with(y)
        .with(run.upload(&weights))
        .with(run.upload(&scales))
        .with(run.upload(&x))
        .with(rows as i32)
        .with(columns as i32);
    let shape = Launch {
        grid: [3, 1, 1],
        block: [128, 1, 1],
        dynamic_shared: (columns + columns / 32 * 4) as u32,
        cluster: None,
    };
    let cost = run.launch("matvec", shape, &arguments)?;
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
    near(&run.singles(y, rows), &expected, 1e-2)?;
    Ok(cost)
}

/// Batches with and without softcap and window, and sequences of many lengths.
pub fn decode_batches() -> [Batch; 2] {
    let plain = Batch::new(128, 8, 2, &[1, 17, 100, 64], &[1; 4]);
    // A sequence with no token in the cache gives zeros.
    let capped =
        Batch { softcap: 2.0, window: 40, ..Batch::new(128, 8, 2, &[1, 41, 100, 0, 40], &[1; 5]) };
    [plain, capped]
}

pub fn prefill_batches() -> [Batch; 3] {
    // The second sequence ends where a block of queries does.
    let batch = || Batch::new(64, 4, 2, &[77, 64, 33, 100], &[77, 64, 5, 40]);
    let capped = Batch { softcap: 3.0, window: 25, ..batch() };
    // The window begins where a tile does.
    let aligned = Batch { window: 29, ..batch() };
    [batch(), capped, aligned]
}

/// Runs all cases of a kernel: what each costs.
pub fn all(kernel: &str, ptx: &str, options: &Options) -> Result<Vec<Cost>, Failure> {
    match kernel {
        "decode" => decode_batches().iter().map(|batch| decode(ptx, batch, options)).collect(),
        "prefill" => prefill_batches().iter().map(|batch| prefill(ptx, batch, options)).collect(),
        "norm" => Ok(vec![norm(ptx, options)?]),
        "sample" => Ok(vec![
            sample(ptx, 0.0, options)?,
            sample(ptx, 0.7, options)?,
            sample_borders(ptx, options)?,
            sample_ends(ptx, options)?,
        ]),
        _ => Ok(vec![matvec(ptx, options)?]),
    }
}

/// What the cases of each kernel cost, as they are recorded.
pub fn recorded() -> BTreeMap<String, Vec<Cost>> {
    serde_json::from_str(include_str!("../../fixtures/costs.json")).expect("costs of cases")
}
