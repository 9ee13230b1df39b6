//! Products with weights in blocks of quants, and their reference.

use backend_api::weights::{Format, Shape, Tensor};
use backend_cuda::{BlockLayout, Kernel, Variant};
use cuda_emulator::Arguments;
use cuda_emulator::count::{CacheModel, Counts};

use super::{Device, Numbers, number, relative_error, stored};

/// A product: a weight of [columns, inner] with rows.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    pub format: Format,
    pub rows: usize,
    pub columns: usize,
    pub inner: usize,
    pub half: bool,
    pub wide: bool,
    pub with_bias: bool,
}

impl Case {
    pub fn new(format: Format, rows: usize, columns: usize, inner: usize) -> Self {
        Self { format, rows, columns, inner, half: false, wide: true, with_bias: false }
    }

    pub fn variant(&self) -> Variant {
        let weight = if self.format.is_quantized() { self.format } else { Format::BF16 };
        Variant { half: self.half, weight, ..Variant::new(64, 1) }
    }

    pub fn weight(&self, numbers: &mut Numbers) -> Tensor<'static> {
        let shape = Shape::matrix(self.columns, self.inner);
        let values: Vec<f32> =
            (0..self.columns * self.inner).map(|_| numbers.real() * 0.5 + 0.05).collect();
        Tensor::from_f32(self.format, shape, &values).expect("whole blocks")
    }
}

/// What a product read, and how far it is from the right one.
pub struct Ran {
    pub error: f64,
    pub counts: Counts,
    pub layout: BlockLayout,
}

/// How a kernel divides columns.
pub fn columns_of_block(function: &str) -> usize {
    match function {
        "blocks_tile" => 128,
        "blocks_vector_1" | "blocks_vector_2" => 8,
        _ => 4,
    }
}

pub fn run(case: &Case, kernel: Kernel, function: &str) -> Ran {
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

/// The function for so many rows.
pub fn function_of(rows: usize) -> &'static str {
    Kernel::VECTORS.into_iter().find(|(_, most)| rows <= *most as usize).expect("at most 8").0
}

/// Rows of an embedding must be what the decoder gives, bit for bit.
pub fn embeds(format: Format) {
    // More than a warp has chunks.
    let (vocabulary, width) = (11, 1280);
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
    device.run(Kernel::BlocksEmbed, &variant, grid, 128, 0, &arguments);
    let values = tensor.to_f32();
    let found = device.download::<u16>(out, tokens.len() * width);
    for (i, token) in [3, 10, 0, 7, 5, 2].into_iter().enumerate() {
        let right: Vec<u16> =
            values[token * width..][..width].iter().map(|&x| stored(&variant, x * 1.5).0).collect();
        assert_eq!(found[i * width..][..width], right, "{format}, token {token}");
    }
}
