//! Kernels in the style of Hopper, as NVRTC compiled them for compute_90a, against plain
//! references; and what the checks say when a fence, wait, arrival or count is missing in them.

mod support;

use cuda_emulator::check::Problem;
use cuda_emulator::count::Class;
use cuda_emulator::nvrtc::{CompileOptions, Nvrtc};
use cuda_emulator::{
    Arguments, Launch, Memory, Options, Outcome, Program, Schedule, Swizzle, TensorMap, TensorType,
    launch,
};
use support::{Numbers, error, widen};

const HOPPER: &str = include_str!("../fixtures/hopper.ptx");
const SOURCE: &str = include_str!("../kernels/hopper.cu");

/// A matrix of rows that lie one after the other, in tiles of 64 by 64 halves.
fn tiles(address: u64, rows: usize, columns: usize) -> TensorMap {
    TensorMap {
        element: TensorType::Bfloat16,
        address,
        sizes: vec![columns as u64, rows as u64],
        strides: vec![columns as u64 * 2],
        tile: vec![64, 64],
        element_strides: vec![1, 1],
        interleave: 0,
        swizzle: Swizzle::B128,
        promotion: 0,
        fill_nan: false,
    }
}

fn run(
    ptx: &str,
    kernel: &str,
    memory: &mut Memory,
    (grid, threads, dynamic_shared): ([u32; 3], u32, u32),
    arguments: &Arguments,
    options: &Options,
) -> Outcome {
    let program = Program::load(ptx, memory).expect("the PTX is good");
    let kernel = program.kernel(kernel).unwrap_or_else(|error| panic!("{error}"));
    let shape = Launch { grid, block: [threads, 1, 1], dynamic_shared, cluster: None };
    launch(&kernel, memory, &shape, arguments.bytes(), options).expect("a good launch")
}

/// How a kernel ended: what it gave was right, wrong, or something was reported.
#[derive(Debug, PartialEq)]
enum End {
    Right,
    Wrong,
    Reported(Vec<Problem>),
}

fn end(outcome: &Outcome, right: impl FnOnce() -> bool) -> End {
    let problems: Vec<_> = outcome.errors().map(|report| report.problem.clone()).collect();
    if !problems.is_empty() {
        return End::Reported(problems);
    }
    if right() { End::Right } else { End::Wrong }
}

fn halves(memory: &Memory, address: u64, count: usize) -> Vec<f64> {
    let bits: Vec<u16> = memory.download(address, count).expect("a good address");
    bits.into_iter().map(widen).collect()
}

fn matmul(ptx: &str, options: &Options) -> (Outcome, End) {
    let (rows, columns, inner) = (100, 136, 200);
    let mut numbers = Numbers::new(7);
    let (a, b) = (numbers.halves(rows * inner), numbers.halves(columns * inner));
    let mut memory = Memory::default();
    let maps = [
        tiles(memory.upload(&a).unwrap(), rows, inner),
        tiles(memory.upload(&b).unwrap(), columns, inner),
    ];
    let out = memory.allocate((rows * columns * 2) as u64).unwrap();
    let target = tiles(out, rows, columns);
    let arguments = maps.iter().chain([&target]);
    let arguments =
        arguments.fold(Arguments::new(), |all, map| all.with_map(map).expect("a good map"));
    let arguments = arguments.with(inner.div_ceil(64) as i32);
    let grid = [columns.div_ceil(64) as u32, rows.div_ceil(64) as u32, 1];
    let outcome = run(ptx, "matmul", &mut memory, (grid, 256, 0), &arguments, options);
    let right = || {
        let expected: Vec<f64> = (0..rows * columns)
            .map(|at| {
                let (row, column) = (at / columns, at % columns);
                let a = &a[row * inner..(row + 1) * inner];
                let b = &b[column * inner..(column + 1) * inner];
                a.iter().zip(b).map(|(a, b)| widen(*a) * widen(*b)).sum()
            })
            .collect();
        error(&halves(&memory, out, rows * columns), &expected) < 3e-3
    };
    let end = end(&outcome, right);
    (outcome, end)
}

fn attention(ptx: &str, options: &Options) -> (Outcome, End) {
    let (tokens, heads, scale) = (200, 2, 0.18f32);
    let width = heads * 64;
    let mut numbers = Numbers::new(9);
    let [q, k, v] = [0; 3].map(|_| numbers.halves(tokens * width));
    let mut memory = Memory::default();
    let out = memory.allocate((tokens * width * 2) as u64).unwrap();
    let inputs = [&q, &k, &v].map(|matrix| memory.upload(matrix).unwrap());
    let arguments = inputs.into_iter().chain([out]).fold(Arguments::new(), |all, address| {
        all.with_map(&tiles(address, tokens, width)).expect("a good map")
    });
    let arguments = arguments.with(scale);
    let grid = [tokens.div_ceil(128) as u32, heads as u32, 1];
    let outcome = run(ptx, "attention", &mut memory, (grid, 384, 6 * 8192), &arguments, options);
    let right = || {
        let mut expected = Vec::new();
        for query in 0..tokens {
            for head in 0..heads {
                let row = |matrix: &[u16], token: usize| -> Vec<f64> {
                    let at = token * width + head * 64;
                    matrix[at..at + 64].iter().map(|bits| widen(*bits)).collect()
                };
                let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
                let q = row(&q, query);
                let weights: Vec<f64> = (0..=query)
                    .map(|key| (dot(&q, &row(&k, key)) * f64::from(scale)).exp2())
                    .collect();
                let total: f64 = weights.iter().sum();
                let mut sums = vec![0.0; 64];
                for (key, weight) in weights.iter().enumerate() {
                    for (sum, value) in sums.iter_mut().zip(row(&v, key)) {
                        *sum += weight / total * value;
                    }
                }
                expected.extend(sums);
            }
        }
        error(&halves(&memory, out, tokens * width), &expected) < 6e-3
    };
    let end = end(&outcome, right);
    (outcome, end)
}

fn share(ptx: &str, options: &Options) -> (Outcome, End) {
    let data: Vec<i32> = (0..4 * 32).map(|i| i * i % 91).collect();
    let mut memory = Memory::default();
    let map = TensorMap {
        element: TensorType::Int32,
        sizes: vec![32, 4],
        strides: vec![128],
        tile: vec![32, 1],
        swizzle: Swizzle::None,
        ..tiles(memory.upload(&data).unwrap(), 1, 1)
    };
    let out = memory.upload(&[0i32; 4]).unwrap();
    let arguments = Arguments::new().with_map(&map).unwrap().with(out);
    let outcome = run(ptx, "share", &mut memory, ([4, 1, 1], 64, 0), &arguments, options);
    let right = || {
        let sum = |row: usize| data[row * 32..(row + 1) * 32].iter().sum::<i32>();
        let expected: Vec<i32> = (0..4).map(|block| sum(block & !1) + 2 * sum(block | 1)).collect();
        memory.download::<i32>(out, 4).unwrap() == expected
    };
    let end = end(&outcome, right);
    (outcome, end)
}

fn cluster_sum(ptx: &str, options: &Options) -> (Outcome, End) {
    let data: Vec<i32> = (0..8 * 32).map(|i| i * 7 % 53).collect();
    let mut memory = Memory::default();
    let (out, input) = (memory.allocate(2 * 32 * 4).unwrap(), memory.upload(&data).unwrap());
    let arguments = Arguments::new().with(out).with(input);
    let outcome = run(ptx, "cluster_sum", &mut memory, ([8, 1, 1], 32, 0), &arguments, options);
    let right = || {
        let expected: Vec<i32> = (0..64)
            .map(|at| (0..4).map(|block| data[(at / 32 * 4 + block) * 32 + at % 32]).sum())
            .collect();
        memory.download::<i32>(out, 64).unwrap() == expected
    };
    let end = end(&outcome, right);
    (outcome, end)
}

fn ring(ptx: &str, options: &Options) -> (Outcome, End) {
    let mut memory = Memory::default();
    let out = memory.allocate(8 * 32 * 4).unwrap();
    let arguments = Arguments::new().with(out);
    let outcome = run(ptx, "ring", &mut memory, ([8, 1, 1], 32, 0), &arguments, options);
    let right = || {
        let expected: Vec<i32> = (0..8 * 32)
            .map(|at| {
                let (block, thread) = (at / 32, at % 32);
                (block / 4 * 4 + (block + 3) % 4) * 100 + thread
            })
            .collect();
        memory.download::<i32>(out, 8 * 32).unwrap() == expected
    };
    let end = end(&outcome, right);
    (outcome, end)
}

type Case = fn(&str, &Options) -> (Outcome, End);

/// The kernels in the order of the source.
const CASES: [(&str, Case); 5] = [
    ("matmul", matmul),
    ("attention", attention),
    ("share", share),
    ("cluster_sum", cluster_sum),
    ("ring", ring),
];

#[test]
fn kernels_with_bulk_copies_wgmma_and_clusters_give_what_they_should() {
    for (name, case) in CASES {
        assert_eq!(case(HOPPER, &Options::default()).1, End::Right, "{name}");
        assert_eq!(case(HOPPER, &Options::fast()).1, End::Right, "{name}");
    }
}

#[test]
fn results_and_counts_hold_under_random_schedules() {
    for (name, case) in CASES {
        let counts = case(HOPPER, &Options::default()).0.counts;
        for seed in 0..4 {
            let options = Options { schedule: Schedule::Random(seed), ..Options::default() };
            let (outcome, end) = case(HOPPER, &options);
            assert_eq!(end, End::Right, "{name} {seed}");
            assert_eq!(outcome.counts, counts, "{name} {seed}");
        }
    }
}

#[test]
fn tensor_operations_and_bytes_of_tiles_are_counted() {
    let (outcome, _) = matmul(HOPPER, &Options::default());
    let counts = outcome.counts;
    // 2 by 3 tiles of 64 by 64, 4 steps of 64.
    assert_eq!(counts.tensor_operations, 6 * 4 * 2 * 64 * 64 * 64);
    assert_eq!(counts.of(Class::Tensor), 6 * 4 * 4 * 4);
    // Only what lies inside: of a, each row thrice, and of b, each row twice.
    assert_eq!(counts.global_bytes_loaded, (3 * 100 + 2 * 136) * 200 * 2);
    assert_eq!(counts.global_bytes_stored, 100 * 136 * 2);
}

/// Calls that order things, and so must not be left out. The first word of a line's call.
const CALLS: [&str; 17] = [
    "init_barrier(",
    "fence_barrier_init(",
    "__syncthreads(",
    "expect_bytes(",
    "load_tile(",
    "load_tile_for(",
    "wait(",
    "arrive(",
    "wgmma_fence(",
    "wgmma_commit(",
    "wgmma_wait(",
    "fence_async(",
    "sync_threads(",
    "arrive_threads(",
    "commit_stores(",
    "wait_stores(",
    "cluster_sync(",
];

/// Each source with one of these calls left out: the line, the call's kernel and the source.
fn mutants() -> Vec<(usize, &'static str, String)> {
    let mut all = Vec::new();
    let mut kernel = "";
    let lines: Vec<&str> = SOURCE.lines().collect();
    for (number, line) in lines.iter().enumerate() {
        if let Some((name, _)) = CASES.iter().find(|(name, _)| line.contains(&format!(" {name}(")))
        {
            kernel = name;
        }
        let code = line.trim_start();
        // The condition before an arrival stays.
        let start =
            if code.starts_with("if (group") { line.rfind(") ").map(|at| at + 2) } else { None };
        let start = start.unwrap_or(line.len() - code.len());
        if CALLS.iter().any(|call| line[start..].starts_with(call)) {
            let mut changed = lines.clone();
            let left_out = format!("{};", &line[..start]);
            changed[number] = &left_out;
            all.push((number + 1, kernel, changed.join("\n")));
        }
    }
    all
}

#[test]
fn every_call_left_out_is_reported() {
    let nvrtc = Nvrtc::find().expect("NVRTC");
    let options = CompileOptions {
        architecture: "compute_90a".to_owned(),
        include: vec![std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels")],
        ..CompileOptions::default()
    };
    let mutants = mutants();
    assert!(mutants.len() > 40, "{}", mutants.len());
    let mut missed = Vec::new();
    for (line, kernel, source) in mutants {
        let compiled = nvrtc.compile(&source, "hopper.cu", &options).expect("it compiles");
        let (_, case) = CASES.iter().find(|(name, _)| *name == kernel).expect("a known kernel");
        let checked = Options { instruction_limit: 1 << 22, ..Options::default() };
        let ends: Vec<End> = [Schedule::InOrder, Schedule::Random(1)]
            .map(|schedule| case(&compiled.ptx, &Options { schedule, ..checked.clone() }).1)
            .into();
        let what = SOURCE.lines().nth(line - 1).unwrap_or("").trim();
        if !ends.iter().any(|end| matches!(end, End::Reported(_))) {
            missed.push(format!("hopper.cu:{line} {what}: {ends:?}"));
        }
    }
    assert!(missed.is_empty(), "{}", missed.join("\n"));
}
