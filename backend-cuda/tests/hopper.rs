//! `prefill_hopper` on the emulator against `attention_append`, which has been compared with a reference in f64.

mod support;

use backend_cuda::plan::{AppendRow, DecodeRow, Plan, Shape, SharedRun, Tile};
use backend_cuda::{Hopper, Kernel, Variant, append_shared_bytes};
use bytemuck::{Pod, Zeroable};
use cuda_emulator::count::{Class, Counts};
use cuda_emulator::ptxas::{Ptxas, instructions};
use cuda_emulator::{Arguments, Swizzle, TensorMap, TensorType};
use support::{Device, Numbers, compiled, number, relative_error, stored};

/// Both kernels round weights to 16 bits, in tiles of other sizes.
const TOLERANCE: f64 = 0.003;

#[derive(Clone, Debug)]
struct Case {
    variant: Variant,
    kv_heads: u32,
    page_size: u32,
    /// Positions of KV and new tokens, by row.
    rows: Vec<(u32, u32)>,
    /// Positions that all rows share, of rows with one new token.
    shared: Option<u32>,
    window: Option<u32>,
    soft_cap: f32,
    sinks: bool,
}

impl Case {
    fn new(head: u32, group: u32, rows: &[(u32, u32)]) -> Self {
        Self {
            variant: Variant::new(head, group),
            kv_heads: 1,
            page_size: 16,
            rows: rows.to_vec(),
            shared: None,
            window: None,
            soft_cap: 0.0,
            sinks: false,
        }
    }
}

/// As the kernels have it.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Layer {
    kv: u64,
    tables: u64,
    table_width: i32,
    page_size: i32,
    kv_heads: i32,
    scale: f32,
    soft_cap: f32,
    key_scale: f32,
    value_scale: f32,
    padding: i32,
}

/// What a kernel wrote: outputs, or the sums and marks of parts; and its counts.
struct Written {
    values: Vec<f32>,
    counts: Counts,
}

/// A device with the inputs of a case.
struct Inputs {
    device: Device,
    layer: Layer,
    pages: u32,
    queries: u64,
    outputs: usize,
    sinks: u64,
    plan: Plan,
    numbers: Variant,
}

impl Inputs {
    fn new(case: &Case) -> Self {
        let mut numbers = Numbers::new(case.rows.iter().map(|row| u64::from(row.0)).sum());
        let Case { variant, page_size, kv_heads, .. } = *case;
        let heads = (kv_heads * variant.group) as usize;
        let pages_of = |positions: u32| positions.div_ceil(page_size);
        let table_width = case.rows.iter().map(|row| pages_of(row.0)).max().unwrap_or(1) as usize;
        let pages: u32 = case.rows.iter().map(|row| pages_of(row.0)).sum();
        let mut free: Vec<i32> = (0..pages as i32).collect();
        for at in (1..free.len()).rev() {
            free.swap(at, numbers.below(at as u32 + 1) as usize);
        }
        let shared_pages = case.shared.map_or(0, |positions| positions / page_size) as usize;
        let mut tables = vec![0i32; case.rows.len() * table_width];
        // What a row doesn't have is NaN, as another row may have left it.
        let row_size = (kv_heads * variant.head) as usize;
        let mut kv = vec![0x7fffu16; pages as usize * 2 * page_size as usize * row_size];
        for (row, &(positions, _)) in case.rows.iter().enumerate() {
            for index in 0..pages_of(positions) as usize {
                let is_shared = row > 0 && index < shared_pages;
                let page = if is_shared { tables[index] } else { free.pop().expect("a page") };
                tables[row * table_width + index] = page;
                let filled = (positions - index as u32 * page_size).min(page_size) as usize;
                for half in 0..2 {
                    let from = (page as usize * 2 + half) * page_size as usize * row_size;
                    for value in &mut kv[from..from + filled * row_size] {
                        *value = stored(&variant, numbers.real()).0;
                    }
                }
            }
        }
        let tokens: u32 = case.rows.iter().map(|row| row.1).sum();
        let outputs = tokens as usize * heads * variant.head as usize;
        let mut bits = |count: usize| -> Vec<u16> {
            (0..count).map(|_| stored(&variant, numbers.real() * 2.0).0).collect()
        };
        let (query_bits, sink_bits) = (bits(outputs), bits(heads));

        let shape = Shape { kv_heads, group: variant.group, window: case.window, blocks: 8 };
        let mut plan = Plan::default();
        if let Some(positions) = case.shared {
            let rows: Vec<DecodeRow> = (0..)
                .zip(&case.rows)
                .map(|(slot, row)| DecodeRow { slot, kv_len: row.0 })
                .collect();
            plan.fill(&shape, &rows, &[SharedRun { rows: 0..rows.len() as u32, positions }], &[]);
        } else {
            let mut first = 0;
            let rows: Vec<AppendRow> = (0..)
                .zip(&case.rows)
                .map(|(slot, &(kv_len, tokens))| {
                    first += tokens;
                    AppendRow { slot, first: first - tokens, tokens, position: kv_len - tokens }
                })
                .collect();
            plan.fill(&shape, &[], &[], &rows);
        }
        let mut device = Device::default();
        let layer = Layer {
            kv: device.upload(&kv),
            tables: device.upload(&tables),
            table_width: table_width as i32,
            page_size: page_size as i32,
            kv_heads: kv_heads as i32,
            scale: 1.0 / (variant.head as f32).sqrt(),
            soft_cap: case.soft_cap,
            key_scale: 1.0,
            value_scale: 1.0,
            padding: 0,
        };
        let queries = device.upload(&query_bits);
        let sinks = if case.sinks { device.upload(&sink_bits) } else { 0 };
        Self { device, layer, pages, queries, outputs, sinks, plan, numbers: variant }
    }

    /// Runs one of the two kernels.
    fn run(&mut self, case: &Case, hopper: Option<Hopper>) -> Written {
        let tiles: Vec<Tile> = match case.shared {
            Some(_) => self.plan.shared_tiles.clone(),
            None => self.plan.tiles.clone(),
        };
        assert!(!tiles.is_empty(), "{case:?}");
        let variant = self.numbers;
        let heads = (case.kv_heads * variant.group) as usize;
        let (count, width) = (self.plan.parts as usize * heads, variant.head as usize);
        let device = &mut self.device;
        let out = device.room::<u16>(self.outputs);
        let (sums, marks) = (device.room::<f32>(count * width), device.room::<f32>(count * 2));
        let tile_list = device.upload(&tiles);
        let token_list = device.upload(&self.plan.token_list);
        let mut arguments = Arguments::new();
        if let Some(hopper) = &hopper {
            let map = hopper.map(&variant, case.kv_heads, case.page_size, self.pages);
            let map = TensorMap {
                element: if variant.half { TensorType::Float16 } else { TensorType::Bfloat16 },
                address: self.layer.kv,
                sizes: map.sizes.to_vec(),
                strides: map.strides.to_vec(),
                tile: map.box_sizes.to_vec(),
                element_strides: vec![1, 1],
                interleave: 0,
                swizzle: Swizzle::B128,
                promotion: 0,
                fill_nan: false,
            };
            arguments = arguments.with_map(&map).expect("a good map");
        }
        let arguments = arguments.with(out).with(self.queries).with(self.layer).with(tile_list);
        let arguments = arguments
            .with(token_list)
            .with(self.sinks)
            .with(case.window.unwrap_or(0) as i32)
            .with(sums)
            .with(marks);
        let counts = match hopper {
            Some(hopper) => {
                let arguments = arguments.with(tiles.len() as i32).with(hopper.box_rows as i32);
                let grid = [Hopper::blocks(tiles.len()), case.kv_heads];
                let (threads, shared) = (Hopper::THREADS, hopper.shared);
                device.run(Kernel::PrefillHopper, &variant, grid, threads, shared, &arguments)
            }
            None => {
                let grid = [tiles.len() as u32, case.kv_heads];
                let shared = append_shared_bytes(&variant);
                device.run(Kernel::AttentionAppend, &variant, grid, 128, shared, &arguments)
            }
        };
        let values = if case.shared.is_some() {
            // Sums mean something together with the largest logit and the sum of weights.
            let sums: Vec<f32> = device.download(sums, count * width);
            let marks: Vec<f32> = device.download(marks, count * 2);
            let divided = sums.chunks(width).zip(marks.chunks(2));
            divided.flat_map(|(row, marks)| row.iter().map(|x| x / marks[1])).collect()
        } else {
            let bits: Vec<u16> = device.download(out, self.outputs);
            bits.into_iter().map(|bits| number(&variant, bits)).collect()
        };
        Written { values, counts }
    }
}

/// Runs both kernels, and gives the counts of Hopper's.
fn agrees(case: &Case) -> Counts {
    let mut inputs = Inputs::new(case);
    let plain: Vec<f64> = inputs.run(case, None).values.into_iter().map(f64::from).collect();
    let hopper = Hopper::new((9, 0), &case.variant, case.page_size).expect("the kernel fits");
    let written = inputs.run(case, Some(hopper));
    let error = relative_error(&written.values, &plain);
    assert!(error <= TOLERANCE, "{error}: {case:?}");
    written.counts
}

#[test]
fn prefill_agrees_for_each_head_width_and_group() {
    for head in [64, 128, 192, 256] {
        for group in [1, 3, 4, 8] {
            agrees(&Case::new(head, group, &[(5, 5), (70, 2), (130, 70)]));
        }
    }
}

#[test]
fn prefill_agrees_for_each_page_size_and_a_cached_prefix() {
    for page_size in [8, 16, 24, 32, 64, 128] {
        let rows = [(33, 33), (200, 40), (300, 3), (128, 64)];
        agrees(&Case { page_size, kv_heads: 2, ..Case::new(64, 2, &rows) });
    }
}

#[test]
fn prefill_agrees_with_windows_caps_and_sinks() {
    for window in [None, Some(1), Some(20), Some(100)] {
        for (soft_cap, sinks) in [(0.0, false), (5.0, false), (0.0, true)] {
            let base = Case::new(64, 4, &[(150, 50), (40, 40)]);
            agrees(&Case { window, soft_cap, sinks, ..base });
        }
    }
}

#[test]
fn prefill_agrees_in_f16() {
    let variant = Variant { half: true, ..Variant::new(128, 4) };
    agrees(&Case { variant, ..Case::new(128, 4, &[(60, 20), (90, 90)]) });
}

#[test]
fn a_shared_prefix_agrees() {
    for (rows, positions) in [(5, 512), (20, 96)] {
        let lengths: Vec<(u32, u32)> = (0..rows).map(|row| (positions + 1 + row * 7, 1)).collect();
        agrees(&Case { shared: Some(positions), ..Case::new(64, 4, &lengths) });
    }
}

/// Products of the causal area, and keys and values read once for two tiles of rows.
#[test]
fn prefill_multiplies_little_beyond_the_causal_area_and_reads_less_than_the_other_kernel() {
    let (tokens, group) = (1024, 4);
    let case = Case { page_size: 64, ..Case::new(64, group, &[(tokens, tokens)]) };
    let mut inputs = Inputs::new(&case);
    let plain = inputs.run(&case, None).counts;
    let hopper = Hopper::new((9, 0), &case.variant, case.page_size).expect("the kernel fits");
    let counts = inputs.run(&case, Some(hopper)).counts;
    let pairs = u64::from(group * tokens) * u64::from(tokens + 1) / 2;
    let ratio = counts.tensor_operations as f64 / (pairs * 4 * 64) as f64;
    println!("prefill of {tokens} on Hopper: {ratio:.4} of the causal area's products");
    assert!((1.0..=1.12).contains(&ratio), "{ratio}");
    let read = counts.sectors_loaded as f64 / plain.sectors_loaded as f64;
    println!("sectors that it reads: {read:.4} of what attention_append reads");
    assert!(read < 0.6, "{read}");
    // Eight products of mma are one of wgmma.
    assert!(counts.of(Class::Tensor) < plain.of(Class::Tensor) / 7);
}

/// Compiled ahead of time for the chip: nothing is spilled, and its own instructions are used.
#[test]
fn machine_code_has_wgmma_and_tma_and_no_spills() {
    let ptxas = Ptxas::find().expect("ptxas");
    for head in [64, 128, 192, 256] {
        let ptx = compiled(Kernel::PrefillHopper, &Variant::new(head, 4));
        let resources = ptxas.resources(&ptx, "sm_90a").expect("it assembles");
        let found = resources["prefill_hopper"];
        assert_eq!((found.spill_stores, found.spill_loads, found.stack), (0, 0, 0), "{head}");
        let code = ptxas.machine_code(&ptx, "sm_90a").expect("it is shown");
        let counts = instructions(&code);
        for name in ["HGMMA", "UTMALDG", "USETMAXREG"] {
            assert!(counts.get(name) > Some(&0), "{head}: no {name} in {counts:?}");
        }
    }
}
