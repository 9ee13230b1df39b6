//! The least time of a decode step on real devices, modelled from what the emulator counts: nothing here ran on one.
//!
//! Of each launch the roofline of `cuda_emulator::hardware`: instructions, tensor operations and passes over shared memory as
//! counted for a slice of the columns, and of one KV head, times the number of slices; bytes of device memory as the
//! weights, the KV and the activations have. Launches, their gaps and latencies are not in it.

mod support;

use std::fmt::Write;

use backend_cuda::{Kernel, Variant};
use cuda_emulator::Arguments;
use cuda_emulator::count::Counts;
use cuda_emulator::hardware::{Demand, GPUS, Gpu, estimate};
use cuda_emulator::ptxas::Ptxas;
use support::attention::{Case, run};
use support::{Device, compiled};

/// Columns that are run of a product.
const SLICE: u32 = 128;

/// A dense model.
struct Model {
    name: &'static str,
    width: u32,
    layers: u32,
    heads: u32,
    kv_heads: u32,
    inner: u32,
    vocabulary: u32,
}

const SMALL: Model = Model {
    name: "Qwen3-0.6B",
    width: 1024,
    layers: 28,
    heads: 16,
    kv_heads: 8,
    inner: 3072,
    vocabulary: 151_936,
};
const LARGE: Model = Model {
    name: "Qwen3-14B",
    width: 5120,
    layers: 40,
    heads: 40,
    kv_heads: 8,
    inner: 17_408,
    vocabulary: 151_936,
};
/// Width of a head of either.
const HEAD: u32 = 128;

/// So many times what a launch did.
fn times(counts: &Counts, factor: u32) -> Counts {
    let mut all = Counts::default();
    (0..factor).for_each(|_| all.add(counts));
    all
}

/// Microseconds of a launch that moves so many bytes.
fn launch(
    gpu: &Gpu,
    (kernel, variant): (Kernel, &Variant),
    counts: &Counts,
    bytes: u64,
    blocks: u64,
) -> f64 {
    let architecture = gpu.architecture("sm_80").expect("every device runs it");
    let found = Ptxas::find().expect("ptxas can be fetched");
    let found = found.resources(&compiled(kernel, variant), &architecture).expect("good PTX");
    let resources = found[kernel.name()];
    let demand =
        Demand { threads: 128, registers: Some(resources.registers), shared: resources.shared };
    let counts = Counts { l2_misses: bytes / 32, l2_write_backs: 0, ..*counts };
    estimate(gpu, &counts, &demand, blocks).expect("a block fits").microseconds
}

/// A product of rows with a 16-bit weight.
fn product(gpu: &Gpu, rows: u32, columns: u32, inner: u32) -> f64 {
    let variant = Variant::new(64, 1);
    let mut device = Device::default();
    let arguments = Arguments::new()
        .with(device.room::<u16>((rows * SLICE) as usize))
        .with(device.upload(&vec![0u16; (rows * inner) as usize]))
        .with(device.upload(&vec![0u16; (SLICE * inner) as usize]))
        .with(0u64)
        .with(rows as i32)
        .with(SLICE as i32)
        .with(inner as i32)
        .with(0i32);
    let grid = [SLICE / 64, rows.div_ceil(64)];
    let counts = device.run(Kernel::Linear, &variant, grid, 128, 0, &arguments);
    let bytes = 2 * (u64::from(columns) * u64::from(inner) + u64::from(rows * (inner + columns)));
    let blocks = u64::from(columns.div_ceil(64) * rows.div_ceil(64));
    launch(gpu, (Kernel::Linear, &variant), &times(&counts, columns.div_ceil(SLICE)), bytes, blocks)
}

/// Attention of rows with so many positions each.
fn attention(gpu: &Gpu, model: &Model, rows: u32, positions: u32) -> f64 {
    // A quarter of many rows, and one KV head.
    let run_rows = if rows > 64 { rows / 4 } else { rows };
    let parts = rows / run_rows;
    let blocks = gpu.multiprocessors * 2 / model.kv_heads;
    let case = Case {
        blocks: blocks / parts,
        ..Case::new(HEAD, model.heads / model.kv_heads, &vec![(positions, 1); run_rows as usize])
    };
    let ran = run(&case);
    let factor = model.kv_heads * parts;
    let bytes = u64::from(rows * positions) * u64::from(model.kv_heads * HEAD) * 4;
    let own = (Kernel::AttentionDecode, &case.variant);
    let main =
        launch(gpu, own, &times(&ran.decode, factor), bytes, u64::from(blocks * model.kv_heads));
    let parts = ran.merge.sectors_loaded * 32 * u64::from(factor);
    let own = (Kernel::AttentionMerge, &case.variant);
    let blocks = u64::from(rows * model.heads);
    if ran.merge.blocks == 0 {
        main
    } else {
        main + launch(gpu, own, &times(&ran.merge, factor), parts, blocks)
    }
}

/// Milliseconds of a decode step.
fn step(gpu: &Gpu, model: &Model, rows: u32, positions: u32) -> f64 {
    let (width, heads, kv) = (model.width, model.heads * HEAD, model.kv_heads * HEAD);
    let products = [
        (heads, width, 1),
        (kv, width, 2),
        (width, heads, 1),
        (model.inner, width, 2),
        (width, model.inner, 1),
    ];
    let products: f64 = products
        .iter()
        .map(|&(columns, inner, count)| f64::from(count) * product(gpu, rows, columns, inner))
        .sum();
    // Norms, rotation, KV writes and activations read and write their rows: bound by memory.
    let numbers = 4 * width + 5 * heads + 6 * kv + 3 * model.inner;
    let rest = f64::from(rows * numbers * 2) / gpu.bandwidth * 1e6;
    let layer = products + attention(gpu, model, rows, positions) + rest;
    let logits = product(gpu, rows, model.vocabulary, width);
    (layer * f64::from(model.layers) + logits) / 1e3
}

#[test]
fn steps_take_at_least_what_the_page_says() {
    let gpu = |name: &str| GPUS.iter().find(|gpu| gpu.name == name).expect("it is listed");
    let mut table = String::from(
        "| model | device | rows | positions of a row | modelled step, ms | SGLang, published, ms |\n\
         | --- | --- | --- | --- | --- | --- |\n",
    );
    let published = [(1, "2.95"), (4, "3.39"), (16, "3.55"), (64, "4.06")];
    let mut cases: Vec<(&Model, &str, u32, u32, &str)> =
        published.map(|(rows, time)| (&SMALL, "A100", rows, 1024, time)).to_vec();
    // 256 requests of 100 to 1,024 tokens in and out: 562 in, and on average half of 562 out.
    cases.extend([&SMALL, &LARGE].map(|model| (model, "H200", 256, 843, "")));
    for (model, device, rows, positions, time) in cases {
        let modelled = step(gpu(device), model, rows, positions);
        let row = format!(
            "| {} | {device} | {rows} | {positions} | {modelled:.2} | {time} |",
            model.name
        );
        println!("{row}");
        writeln!(table, "{row}").expect("memory");
    }
    let page = include_str!("../../docs/cuda-kernels.md");
    assert!(page.contains(&table), "docs/cuda-kernels.md has another table than this:\n{table}");
}
