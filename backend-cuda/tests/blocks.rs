//! Products with weights in blocks of quants, on the emulator, against the reference decoder.

mod support;

use backend_api::weights::{Format, Shape, Tensor};
use backend_cuda::{BlockLayout, Kernel, Variant};
use cuda_emulator::Arguments;
use cuda_emulator::count::{CacheModel, Counts};
use support::{Device, Numbers, number, relative_error, stored};

/// A product: a weight of [columns, inner] with rows.
#[derive(Clone, Copy, Debug)]
struct Case {
    format: Format,
    rows: usize,
    columns: usize,
    inner: usize,
    half: bool,
    wide: bool,
    with_bias: bool,
}

impl Case {
    fn new(format: Format, rows: usize, columns: usize, inner: usize) -> Self {
        Self { format, rows, columns, inner, half: false, wide: true, with_bias: false }
    }

    fn variant(&self) -> Variant {
        let weight = if self.format.is_quantized() { self.format } else { Format::BF16 };
        Variant { half: self.half, weight, ..Variant::new(64, 1) }
    }

    fn weight(&self, numbers: &mut Numbers) -> Tensor<'static> {
        let shape = Shape::matrix(self.columns, self.inner);
        let values: Vec<f32> =
            (0..self.columns * self.inner).map(|_| numbers.real() * 0.5 + 0.05).collect();
        Tensor::from_f32(self.format, shape, &values).expect("whole blocks")
    }
}

/// What a product read, and how far it is from the right one.
struct Ran {
    error: f64,
    counts: Counts,
    layout: BlockLayout,
}

/// How a kernel divides columns.
fn columns_of_block(function: &str) -> usize {
    match function {
        "blocks_tile" => 128,
        "blocks_vector_1" | "blocks_vector_2" => 8,
        _ => 4,
    }
}

fn run(case: &Case, kernel: Kernel, function: &str) -> Ran {
    let (variant, mut numbers) = (case.variant(), Numbers::new(case.inner as u64 + 5));
    let tensor = case.weight(&mut numbers);
    let layout = BlockLayout::of(&tensor);
    let mut device = Device { l2: Some(CacheModel::A100), ..Device::default() };
    let weight = device.upload(&layout.pack(&tensor, case.half));
    let (bits, input): (Vec<u16>, Vec<f32>) =
        (0..case.rows * case.inner).map(|_| stored(&variant, numbers.real())).unzip();
    let (bias_bits, bias): (Vec<u16>, Vec<f32>) =
        (0..case.columns).map(|_| stored(&variant, numbers.real())).unzip();
    let count = case.rows * case.columns;
    let out = device.room::<f32>(count);
    let bias_address = if case.with_bias { device.upload(&bias_bits) } else { 0 };
    let arguments = Arguments::new()
        .with(out)
        .with(device.upload(&bits))
        .with(weight)
        .with(bias_address)
        .with(0u64)
        .with(0u64)
        .with(1i32)
        .with(case.rows as i32)
        .with(case.columns as i32)
        .with(case.inner as i32)
        .with(layout.stride() as u64)
        .with(i32::from(case.wide));
    let tiles = if function == "blocks_tile" { case.rows.div_ceil(64) } else { 1 };
    let grid = [case.columns.div_ceil(columns_of_block(function)) as u32, tiles as u32];
    let counts = device.run_function(kernel, function, &variant, grid, 128, 0, &arguments);

    let mut weights = tensor.to_f32();
    if !case.format.is_quantized() {
        weights.iter_mut().for_each(|x| *x = stored(&variant, *x).1);
    }
    let right: Vec<f64> = (0..count)
        .map(|i| {
            let (x, w) = (
                &input[i / case.columns * case.inner..],
                &weights[i % case.columns * case.inner..],
            );
            let dot: f64 =
                x[..case.inner].iter().zip(w).map(|(&x, &w)| f64::from(x) * f64::from(w)).sum();
            dot + if case.with_bias { f64::from(bias[i % case.columns]) } else { 0.0 }
        })
        .collect();
    let got: Vec<f32> = if case.wide {
        device.download(out, count)
    } else {
        let bits = device.download::<u16>(out, count);
        bits.into_iter().map(|bits| number(&variant, bits)).collect()
    };
    Ran { error: relative_error(&got, &right), counts, layout }
}

/// Columns of a few blocks, the tail of a warp's and of a step's.
fn inners(format: Format) -> [usize; 3] {
    let unit = format.block_elements().max(32);
    [unit, unit * 3, unit.max(64) * 9]
}

/// The function for so many rows.
fn function_of(rows: usize) -> &'static str {
    Kernel::VECTORS.into_iter().find(|(_, most)| rows <= *most as usize).expect("at most 8").0
}

#[test]
fn few_rows_agree_with_the_decoders_product_in_every_format() {
    for format in Format::ALL {
        for (index, inner) in inners(format).into_iter().enumerate() {
            let rows = [1, 3, 8][index];
            // The last group of rows and the last block are not full.
            let case = Case { with_bias: index == 1, ..Case::new(format, rows, 27, inner) };
            let ran = run(&case, Kernel::BlocksVector, function_of(rows));
            assert!(ran.error < 1e-6, "{}: {case:?}", ran.error);
        }
    }
}

#[test]
fn every_number_of_few_rows_agrees() {
    for rows in 1..=8 {
        for half in [false, true] {
            let case = Case { half, wide: false, ..Case::new(Format::Q4_K, rows, 12, 768) };
            let ran = run(&case, Kernel::BlocksVector, function_of(rows));
            assert!(ran.error < 0.003, "{}: {case:?}", ran.error);
        }
    }
}

#[test]
fn many_rows_agree_on_tensor_cores_in_every_format() {
    for format in Format::ALL {
        for (index, inner) in inners(format).into_iter().enumerate() {
            let (rows, columns) = [(9, 130), (70, 27), (64, 128)][index];
            let case = Case { with_bias: index == 1, ..Case::new(format, rows, columns, inner) };
            let case = Case { half: index == 0, wide: index < 2, ..case };
            let ran = run(&case, Kernel::BlocksTile, "blocks_tile");
            assert!(ran.error < 0.003, "{}: {case:?}", ran.error);
        }
    }
}

#[test]
fn few_rows_read_each_block_once() {
    let formats = [
        Format::Q4_0,
        Format::Q4_1,
        Format::Q8_0,
        Format::Q4_K,
        Format::Q5_K,
        Format::Q6_K,
        Format::MXFP4,
        Format::F8_E4M3,
        Format::U4,
    ];
    for format in formats {
        for rows in [1, 8] {
            let case = Case::new(format, rows, 64, 2048);
            let function = function_of(rows);
            let ran = run(&case, Kernel::BlocksVector, function);
            // Each block of threads reads the input, from the caches: that is known, and taken off. A lane takes two
            // halves of a sector, one after the other.
            let blocks = case.columns / columns_of_block(function);
            let input = blocks * rows * case.inner * 2 / 16;
            let read = ran.counts.sectors_loaded - input as u64;
            let least = case.columns * case.inner / format.block_elements() * format.block_bytes();
            let ratio = read as f64 * 32.0 / least as f64;
            println!("{format}, {rows} rows: {ratio:.4} of its blocks");
            assert!(ratio <= 1.03, "{ratio}: {case:?}");
            assert!(ratio >= 1.0, "{ratio}: {case:?} reads less than there is");
            assert!(ran.layout.bytes() as f64 <= least as f64 * 1.001, "{format}");
            // From device memory: blocks and input once.
            let once = (least + rows * case.inner * 2) as f64;
            let ratio = ran.counts.l2_misses as f64 * 32.0 / once;
            assert!((1.0..=1.03).contains(&ratio), "{ratio} from device memory: {case:?}");
        }
    }
}

#[test]
fn decoded_weights_are_stored_without_bank_conflicts() {
    let case = Case::new(Format::Q4_K, 64, 128, 512);
    let counts = run(&case, Kernel::BlocksTile, "blocks_tile").counts;
    assert_eq!(counts.shared_wavefronts, counts.shared_wavefronts_ideal);
}

#[test]
fn rows_of_an_embedding_are_decoded_in_every_format() {
    for format in Format::ALL.into_iter().filter(|format| format.is_quantized()) {
        let (vocabulary, width) = (11, format.block_elements().max(32) * 3);
        let case = Case::new(format, 1, vocabulary, width);
        let (variant, mut numbers) = (case.variant(), Numbers::new(9));
        let tensor = case.weight(&mut numbers);
        let mut device = Device::default();
        let weight = device.upload(&BlockLayout::of(&tensor).pack(&tensor, false));
        let tokens = [3i32, 10, 0, -1, 5, -2];
        let out = device.room::<u16>(tokens.len() * width);
        let arguments = Arguments::new()
            .with(out)
            .with(weight)
            .with(device.upload(&tokens))
            .with(device.upload(&[7i32, 2]))
            .with(vocabulary as i32)
            .with(width as i32)
            .with(1.5f32);
        let grid = [tokens.len() as u32, 1];
        device.run(Kernel::BlocksEmbed, &variant, grid, 32, 0, &arguments);
        let values = tensor.to_f32();
        let found = device.download::<u16>(out, tokens.len() * width);
        for (i, token) in [3, 10, 0, 7, 5, 2].into_iter().enumerate() {
            let right: Vec<u16> = values[token * width..][..width]
                .iter()
                .map(|&x| stored(&variant, x * 1.5).0)
                .collect();
            assert_eq!(found[i * width..][..width], right, "{format}, token {token}");
        }
    }
}
