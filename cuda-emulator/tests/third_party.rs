//! Kernels that nobody here wrote: those of candle-kernels 0.11.1, compiled by NVRTC when the test
//! runs, against plain references. All checks are on.

mod support;

use std::path::{Path, PathBuf};
use std::process::Command;

use cuda_emulator::nvrtc::{CompileOptions, Nvrtc, toolkit_headers};
use cuda_emulator::{Arguments, Launch, Options};
use support::{Device, Numbers, assert_clean, error, shape, widen};

/// The sources of candle-kernels, which Cargo fetches.
fn sources() -> PathBuf {
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/third_party/Cargo.toml");
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--locked", "--format-version", "1", "--manifest-path", manifest])
        .output()
        .expect("cargo starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let packages = metadata["packages"].as_array().expect("packages");
    let package = packages.iter().find(|package| package["name"] == "candle-kernels");
    let path = package.and_then(|package| package["manifest_path"].as_str()).expect("a path");
    Path::new(path).parent().expect("a folder").join("src")
}

/// Compiles a file, or what `cut` leaves of it.
fn device(file: &str, cut: impl Fn(&str) -> String) -> Device {
    let sources = sources();
    let text = std::fs::read_to_string(sources.join(file)).expect("the source is there");
    let ours = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/third_party/include");
    let mut include = vec![sources, ours];
    include.extend(toolkit_headers().expect("the headers"));
    let options = CompileOptions { include, ..CompileOptions::default() };
    let compiled = Nvrtc::find().expect("NVRTC").compile(&cut(&text), file, &options);
    Device::new(&compiled.unwrap_or_else(|error| panic!("{error}")).ptx)
}

fn whole(file: &str) -> Device {
    device(file, str::to_owned)
}

fn run(device: &Device, kernel: &str, shape: Launch, arguments: &Arguments) {
    assert_clean(&device.run(kernel, shape, arguments, &Options::default()));
}

fn close(device: &Device, out: u64, expected: &[f64], most: f64, kernel: &str) {
    let found: Vec<f64> =
        device.download::<f32>(out, expected.len()).into_iter().map(f64::from).collect();
    let found = error(&found, expected);
    assert!(found < most, "{kernel}: {found}");
}

/// Sizes and strides of a matrix, as the kernels take them.
fn info(device: &mut Device, rows: u64, columns: u64, strides: [u64; 2]) -> u64 {
    device.upload(&[rows, columns, strides[0], strides[1]])
}

const ROWS: usize = 7;
const COLUMNS: usize = 33;
const COUNT: usize = ROWS * COLUMNS;

fn elementwise(device: &mut Device, kernel: &str, x: &[f32], f: impl Fn(f64) -> f64, most: f64) {
    let shape = shape([2, 1, 1], 96);
    // In order, and with rows and columns exchanged.
    for strides in [[COLUMNS as u64, 1], [1, ROWS as u64]] {
        let info = info(device, ROWS as u64, COLUMNS as u64, strides);
        let (input, out) = (device.upload(x), device.room::<f32>(COUNT));
        let arguments =
            Arguments::new().with(COUNT as u64).with(2u64).with(info).with(input).with(out);
        run(device, kernel, shape, &arguments);
        let at = |i: usize| {
            let (row, column) = ((i / COLUMNS) as u64, (i % COLUMNS) as u64);
            (row * strides[0] + column * strides[1]) as usize
        };
        let expected: Vec<f64> = (0..COUNT).map(|i| f(f64::from(x[at(i)]))).collect();
        close(device, out, &expected, most, kernel);
    }
}

#[test]
fn unary_kernels() {
    let mut device = whole("unary.cu");
    let x = Numbers::new(1).reals(COUNT);
    let positive: Vec<f32> = x.iter().map(|x| x.abs() + 0.1).collect();
    elementwise(&mut device, "uexp_f32", &x, f64::exp, 1e-6);
    elementwise(&mut device, "utanh_f32", &x, f64::tanh, 1e-6);
    elementwise(&mut device, "usin_f32", &x, f64::sin, 1e-6);
    elementwise(&mut device, "usqr_f32", &x, |x| x * x, 1e-6);
    elementwise(&mut device, "ulog_f32", &positive, f64::ln, 1e-6);
    elementwise(&mut device, "usqrt_f32", &positive, f64::sqrt, 1e-6);
    elementwise(&mut device, "usilu_f32", &x, |x| x / (1.0 + (-x).exp()), 1e-6);
    elementwise(&mut device, "urelu_f32", &x, |x| x.max(0.0), 1e-6);
    let gelu =
        |x: f64| 0.5 * x * (1.0 + (0.797_884_560_802_865 * (x + 0.044_715 * x * x * x)).tanh());
    elementwise(&mut device, "ugelu_f32", &x, gelu, 1e-5);
}

#[test]
fn affine_cast_fill_and_where_kernels() {
    let x = Numbers::new(2).reals(COUNT);
    let mut device = whole("affine.cu");
    let (input, out) = (device.upload(&x), device.room::<f32>(COUNT));
    let plain = info(&mut device, 1, COUNT as u64, [COUNT as u64, 1]);
    let start = Arguments::new().with(COUNT as u64).with(2u64).with(plain);
    let arguments = start.clone().with(input).with(out).with(1.5f32).with(-0.25f32);
    run(&device, "affine_f32", shape([2, 1, 1], 64), &arguments);
    let expected: Vec<f64> = x.iter().map(|x| f64::from(*x) * 1.5 - 0.25).collect();
    close(&device, out, &expected, 1e-6, "affine_f32");

    let mut device = whole("cast.cu");
    let (input, half, back) =
        (device.upload(&x), device.room::<u16>(COUNT), device.room::<f32>(COUNT));
    let plain = info(&mut device, 1, COUNT as u64, [COUNT as u64, 1]);
    let start = Arguments::new().with(COUNT as u64).with(2u64).with(plain);
    for (there, again, most) in
        [("cast_f32_f16", "cast_f16_f32", 3e-4), ("cast_f32_bf16", "cast_bf16_f32", 3e-3)]
    {
        run(&device, there, shape([3, 1, 1], 128), &start.clone().with(input).with(half));
        run(&device, again, shape([3, 1, 1], 128), &start.clone().with(half).with(back));
        let expected: Vec<f64> = x.iter().map(|x| f64::from(*x)).collect();
        close(&device, back, &expected, most, again);
    }
    let bits: Vec<u16> = device.download(half, COUNT);
    assert!((widen(bits[0]) - f64::from(x[0])).abs() < 0.01);

    let mut device = whole("fill.cu");
    let out = device.room::<f32>(COUNT);
    let plain = info(&mut device, 1, COUNT as u64, [COUNT as u64, 1]);
    let start = Arguments::new().with(COUNT as u64).with(2u64).with(plain);
    run(&device, "const_set_f32", shape([1, 1, 1], 64), &start.with(2.5f32).with(out));
    assert_eq!(device.download::<f32>(out, COUNT), [2.5; COUNT]);

    let mut device = whole("ternary.cu");
    let choice: Vec<u8> = (0..COUNT).map(|i| (i % 3 == 0) as u8).collect();
    let y: Vec<f32> = x.iter().map(|x| x * 10.0).collect();
    let strides = [1, COUNT as u64, COUNT as u64, 1, COUNT as u64, 1, COUNT as u64, 1];
    let arguments = Arguments::new().with(COUNT as u64).with(2u64).with(device.upload(&strides));
    let out = device.room::<f32>(COUNT);
    let arguments = arguments
        .with(device.upload(&choice))
        .with(device.upload(&x))
        .with(device.upload(&y))
        .with(out);
    run(&device, "where_u8_f32", shape([2, 1, 1], 64), &arguments);
    let expected: Vec<f64> =
        (0..COUNT).map(|i| f64::from(if choice[i] != 0 { x[i] } else { y[i] })).collect();
    close(&device, out, &expected, 1e-9, "where_u8_f32");
}

#[test]
fn indexing_kernels() {
    let mut device = whole("indexing.cu");
    let x = Numbers::new(3).reals(COUNT);
    let ids = [6u32, 0, 3, 3, 1];
    let count = ids.len() * COLUMNS;
    let (input, indices) = (device.upload(&x), device.upload(&ids));
    let out = device.room::<f32>(count);
    let plain = info(&mut device, ROWS as u64, COLUMNS as u64, [COLUMNS as u64, 1]);
    let sizes = |arguments: Arguments, dimension: usize| {
        arguments.with(1u64).with(ROWS as u64).with(dimension as u64).with(COLUMNS as u64)
    };
    let arguments = Arguments::new().with(count as u64).with(2u64).with(plain);
    let arguments = sizes(arguments.with(indices).with(input).with(out), ids.len());
    run(&device, "is_u32_f32", shape([2, 1, 1], 64), &arguments);
    let expected: Vec<f64> = ids
        .iter()
        .flat_map(|id| x[*id as usize * COLUMNS..][..COLUMNS].iter().map(|x| f64::from(*x)))
        .collect();
    close(&device, out, &expected, 1e-9, "is_u32_f32");

    let each: Vec<u32> = (0..count as u32).map(|i| i * 5 % ROWS as u32).collect();
    let arguments = Arguments::new().with(count as u64).with(device.upload(&each));
    let arguments = sizes(arguments.with(input).with(out), ids.len());
    run(&device, "gather_u32_f32", shape([2, 1, 1], 64), &arguments);
    let expected: Vec<f64> =
        (0..count).map(|i| f64::from(x[each[i] as usize * COLUMNS + i % COLUMNS])).collect();
    close(&device, out, &expected, 1e-9, "gather_u32_f32");
}

#[test]
fn reduction_kernels() {
    let mut device = whole("reduce.cu");
    let x = Numbers::new(4).reals(COUNT);
    let (input, out) = (device.upload(&x), device.room::<f32>(COUNT));
    let plain = info(&mut device, ROWS as u64, COLUMNS as u64, [COLUMNS as u64, 1]);
    let rows: Vec<Vec<f64>> =
        x.chunks(COLUMNS).map(|row| row.iter().map(|x| f64::from(*x)).collect()).collect();

    let start = Arguments::new().with(COUNT as u64).with(COLUMNS as u64).with(2u64).with(plain);
    let grid = shape([ROWS as u32, 1, 1], 64);
    run(&device, "fast_sum_f32", grid, &start.clone().with(input).with(out));
    let expected: Vec<f64> = rows.iter().map(|row| row.iter().sum()).collect();
    close(&device, out, &expected, 1e-5, "fast_sum_f32");
    run(&device, "fast_max_f32", grid, &start.clone().with(input).with(out));
    let largest = |row: &Vec<f64>| row.iter().copied().fold(f64::MIN, f64::max);
    let expected: Vec<f64> = rows.iter().map(largest).collect();
    close(&device, out, &expected, 1e-9, "fast_max_f32");
    let places = device.room::<u32>(ROWS);
    run(&device, "fast_argmax_f32", grid, &start.with(input).with(places));
    for (row, place) in rows.iter().zip(device.download::<u32>(places, ROWS)) {
        assert_eq!(row[place as usize], largest(row));
    }

    let down = |threads: u32| Launch {
        grid: [ROWS as u32, 1, 1],
        block: [1, threads, 1],
        dynamic_shared: 0,
        cluster: None,
    };
    let arguments = Arguments::new().with(input).with(out).with(COLUMNS as i32);
    run(&device, "softmax_f32", down(32), &arguments);
    let expected: Vec<f64> = rows
        .iter()
        .flat_map(|row| {
            let total: f64 = row.iter().map(|x| x.exp()).sum();
            row.iter().map(move |x| x.exp() / total)
        })
        .collect();
    close(&device, out, &expected, 1e-6, "softmax_f32");

    let weight = Numbers::new(5).reals(COLUMNS);
    let weights = device.upload(&weight);
    let arguments = Arguments::new()
        .with(input)
        .with(out)
        .with(weights)
        .with(COLUMNS as i32)
        .with(32i32)
        .with(1e-5f32);
    run(&device, "rmsnorm_f32", shape([ROWS as u32, 1, 1], 32), &arguments);
    let expected: Vec<f64> = rows
        .iter()
        .flat_map(|row| {
            let mean = row.iter().map(|x| x * x).sum::<f64>() / COLUMNS as f64;
            let scale = 1.0 / (mean + 1e-5).sqrt();
            row.iter().zip(&weight).map(move |(x, w)| x * scale * f64::from(*w))
        })
        .collect();
    close(&device, out, &expected, 1e-5, "rmsnorm_f32");

    // Rotates halves: one head of 4 tokens with 8 dimensions.
    let (tokens, dimension) = (4usize, 8usize);
    let angles: Vec<f32> = (0..tokens * dimension / 2).map(|i| i as f32 * 0.3).collect();
    let cos: Vec<f32> = angles.iter().map(|a| a.cos()).collect();
    let sin: Vec<f32> = angles.iter().map(|a| a.sin()).collect();
    let td = tokens * dimension;
    let arguments = Arguments::new()
        .with(input)
        .with(device.upload(&cos))
        .with(device.upload(&sin))
        .with(out)
        .with(1u32)
        .with(td as u32)
        .with(dimension as u32)
        .with(0u32);
    run(&device, "rope_f32", shape([1, 1, 1], 32), &arguments);
    let expected: Vec<f64> = (0..td)
        .map(|i| {
            let (token, d) = (i / dimension, i % dimension);
            let half = dimension / 2;
            let angle = token * half + d % half;
            let (c, s) = (f64::from(cos[angle]), f64::from(sin[angle]));
            let (low, high) = (token * dimension + d % half, token * dimension + d % half + half);
            let (a, b) = (f64::from(x[low]), f64::from(x[high]));
            if d < half { a * c - b * s } else { a * s + b * c }
        })
        .collect();
    close(&device, out, &expected, 1e-6, "rope_f32");
}

#[test]
fn a_bitonic_sort() {
    let mut device = whole("sort.cu");
    let x = Numbers::new(6).reals(COUNT);
    let out = device.room::<u32>(COUNT);
    let arguments =
        Arguments::new().with(device.upload(&x)).with(out).with(COLUMNS as i32).with(64i32);
    let grid = Launch {
        grid: [ROWS as u32, 1, 1],
        block: [64, 1, 1],
        dynamic_shared: 64 * 4,
        cluster: None,
    };
    run(&device, "asort_asc_f32", grid, &arguments);
    for (row, order) in x.chunks(COLUMNS).zip(device.download::<u32>(out, COUNT).chunks(COLUMNS)) {
        let sorted: Vec<f32> = order.iter().map(|place| row[*place as usize]).collect();
        assert!(sorted.windows(2).all(|pair| pair[0] <= pair[1]), "{sorted:?}");
    }
}

/// The bits of a half for a few scales.
fn half(value: f32) -> u16 {
    let bits = value.to_bits();
    (((bits >> 23) - 112) << 10 | bits >> 13 & 0x3ff) as u16
}

fn from_half(bits: u16) -> f64 {
    let magnitude = f64::from(bits & 0x3ff) / 1024.0;
    let exponent = i32::from(bits >> 10 & 31);
    let value = if exponent == 0 {
        magnitude * 2f64.powi(-14)
    } else {
        (1.0 + magnitude) * 2f64.powi(exponent - 15)
    };
    if bits & 0x8000 != 0 { -value } else { value }
}

#[test]
fn quantized_kernels() {
    // The file has each matrix kernel for up to eight columns; those for one are kept.
    let mut device = device("quantized.cu", |text| {
        let part = |from: &str| text.find(from).unwrap_or_else(|| panic!("{from} is there"));
        let more = part("extern \"C\" __global__ void mul_mat_vec_q4_0_q8_1_cuda2(");
        let again = part("extern \"C\" __global__ void quantize_q8_1(");
        let end = part(
            "// Kernels from https://github.com/ggerganov/llama.cpp/blob/master/ggml-cuda/mmq.cu",
        );
        format!("{}{}", &text[..more], &text[again..end])
    });
    let (rows, columns) = (6usize, 256usize);
    let mut numbers = Numbers::new(8);
    let blocks = rows * columns / 32;
    let scales: Vec<f32> = (0..blocks).map(|i| [0.5, 0.25, 0.375, 0.125][i % 4]).collect();
    let x = numbers.reals(columns);
    let x_at = device.upload(&x);
    let out = device.room::<f32>(rows * columns);

    // Blocks of 32 numbers of 4 bits with a half: the low ones first, then the high ones.
    let mut q4 = Vec::new();
    let mut q4_values = Vec::new();
    let mut q8 = Vec::new();
    let mut q8_values = Vec::new();
    for scale in &scales {
        let bytes: Vec<u8> = (0..16).map(|_| numbers.next() as u8).collect();
        q4.extend(half(*scale).to_le_bytes());
        q4.extend(&bytes);
        let value = |nibble: u8| (f64::from(nibble) - 8.0) * f64::from(*scale);
        q4_values.extend(bytes.iter().map(|byte| value(byte & 15)));
        q4_values.extend(bytes.iter().map(|byte| value(byte >> 4)));
        let bytes: Vec<i8> = (0..32).map(|_| numbers.next() as i8).collect();
        q8.extend(half(*scale).to_le_bytes());
        q8.extend(bytes.iter().map(|byte| *byte as u8));
        q8_values.extend(bytes.iter().map(|byte| f64::from(*byte) * f64::from(*scale)));
    }
    let (q4, q8) = (device.upload(&q4), device.upload(&q8));
    let grid = shape([(blocks as u32).div_ceil(8), 1, 1], 32);
    for (kernel, weights, values) in [
        ("dequantize_block_q4_0_f32", q4, &q4_values),
        ("dequantize_block_q8_0_f32", q8, &q8_values),
    ] {
        let arguments = Arguments::new().with(weights).with(out).with(blocks as i32);
        run(&device, kernel, grid, &arguments);
        close(&device, out, values, 1e-6, kernel);
    }
    let product = |values: &[f64]| -> Vec<f64> {
        let dot = |row: &[f64]| row.iter().zip(&x).map(|(w, x)| w * f64::from(*x)).sum();
        values.chunks(columns).map(dot).collect()
    };
    let arguments =
        Arguments::new().with(q4).with(x_at).with(out).with(columns as i32).with(rows as i32);
    let grid =
        Launch { grid: [rows as u32, 1, 1], block: [32, 1, 1], dynamic_shared: 0, cluster: None };
    run(&device, "dequantize_mul_mat_vec_q4_0_cuda", grid, &arguments);
    close(&device, out, &product(&q4_values), 1e-5, "dequantize_mul_mat_vec_q4_0_cuda");

    // With x in blocks of 8 bits, multiplied by dp4a.
    let blocks_at = device.room::<u8>(columns / 32 * 36);
    let arguments =
        Arguments::new().with(x_at).with(blocks_at).with(columns as i32).with(columns as i32);
    run(&device, "quantize_q8_1", shape([1, 1, 1], columns as u32), &arguments);
    // What the first kernel left: for each block a scale and the sum of the numbers, as halves, and
    // 32 bytes. Four bits lose their offset of 8 through the sum.
    let bytes: Vec<u8> = device.download(blocks_at, columns / 32 * 36);
    let mut quantized = Vec::new();
    let mut sums = Vec::new();
    for block in bytes.chunks(36) {
        let scale = from_half(u16::from_le_bytes([block[0], block[1]]));
        sums.push(from_half(u16::from_le_bytes([block[2], block[3]])));
        quantized.extend(block[4..].iter().map(|byte| f64::from(*byte as i8) * scale));
    }
    for (x, quantized) in x.iter().zip(&quantized) {
        assert!((f64::from(*x) - quantized).abs() < 0.01);
    }
    for (kernel, weights, values, offset) in [
        ("mul_mat_vec_q4_0_q8_1_cuda1", q4, &q4_values, 8.0),
        ("mul_mat_vec_q8_0_q8_1_cuda1", q8, &q8_values, 0.0),
    ] {
        let arguments = Arguments::new()
            .with(weights)
            .with(blocks_at)
            .with(out)
            .with(columns as i32)
            .with(rows as i32)
            .with(columns as i32)
            .with(rows as i32);
        let grid = Launch {
            grid: [rows as u32, 1, 1],
            block: [32, 4, 1],
            dynamic_shared: 0,
            cluster: None,
        };
        run(&device, kernel, grid, &arguments);
        let expected: Vec<f64> = (0..rows)
            .map(|row| {
                let in_block = |block: usize| {
                    let scale = f64::from(scales[row * columns / 32 + block]);
                    let dot: f64 = (block * 32..block * 32 + 32)
                        .map(|i| (values[row * columns + i] + offset * scale) * quantized[i])
                        .sum();
                    dot - offset * scale * sums[block]
                };
                (0..columns / 32).map(in_block).sum()
            })
            .collect();
        close(&device, out, &expected, 1e-5, kernel);
    }
}
