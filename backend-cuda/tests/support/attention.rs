//! A step of attention as a plan launches it, and its reference in f64.

use backend_cuda::plan::{AppendRow, DecodeRow, Plan, Shape, SharedRun};
use backend_cuda::{Kernel, Variant, append_shared_bytes, append_slices};
use bytemuck::{Pod, Zeroable};
use cuda_emulator::Arguments;
use cuda_emulator::count::Counts;

use super::{Device, Numbers, e4m3, number, relative_error, stored};

/// Largest relative error of 16-bit numbers: 8 bits of mantissa give 0.2 %.
pub const TOLERANCE: f64 = 0.003;

/// A step of attention.
#[derive(Clone, Debug)]
pub struct Case {
    pub variant: Variant,
    pub kv_heads: u32,
    pub page_size: u32,
    /// Positions of KV and new tokens, by row.
    pub rows: Vec<(u32, u32)>,
    /// Rows 0.. that share a prefix, and positions of it.
    pub shared: Option<(u32, u32)>,
    pub window: Option<u32>,
    pub soft_cap: f32,
    pub sinks: bool,
    pub blocks: u32,
}

impl Case {
    pub fn new(head: u32, group: u32, rows: &[(u32, u32)]) -> Self {
        Self {
            variant: Variant::new(head, group),
            kv_heads: 1,
            page_size: 16,
            rows: rows.to_vec(),
            shared: None,
            window: None,
            soft_cap: 0.0,
            sinks: false,
            blocks: 8,
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

/// What a step read and wrote, and how far its outputs are from the reference.
pub struct Ran {
    pub error: f64,
    pub decode: Counts,
    pub append: Counts,
    pub shared: Counts,
    pub merge: Counts,
}

/// Fills pages with random KV, plans, launches, and compares.
pub fn run(case: &Case) -> Ran {
    let mut numbers =
        Numbers::new(case.rows.iter().map(|row| u64::from(row.0 * 31 + row.1)).sum::<u64>() + 1);
    let Case { variant, page_size, kv_heads, .. } = *case;
    let (head, group) = (variant.head as usize, variant.group as usize);
    let heads = kv_heads as usize * group;

    // Page tables: shared pages first, then pages of each row, in a random order.
    let pages_of = |positions: u32| positions.div_ceil(page_size);
    let (sharing, shared_positions) = case.shared.unwrap_or((0, 0));
    assert_eq!(shared_positions % page_size, 0, "whole pages are shared");
    let table_width = case.rows.iter().map(|row| pages_of(row.0)).max().unwrap_or(1) as usize;
    let total: u32 = case.rows.iter().map(|row| pages_of(row.0)).sum::<u32>() + 1;
    let mut free: Vec<i32> = (0..total as i32).collect();
    for at in (1..free.len()).rev() {
        free.swap(at, numbers.below(at as u32 + 1) as usize);
    }
    let mut tables = vec![0i32; case.rows.len() * table_width];
    for (row, &(kv_len, _)) in case.rows.iter().enumerate() {
        for page in 0..pages_of(kv_len) as usize {
            let is_shared =
                row > 0 && (row as u32) < sharing && page < (shared_positions / page_size) as usize;
            tables[row * table_width + page] =
                if is_shared { tables[page] } else { free.pop().expect("enough pages") };
        }
    }

    let elements = total as usize * 2 * (page_size * kv_heads) as usize * head;
    let (key_scale, value_scale) = if variant.fp8 { (0.02, 0.03) } else { (1.0, 1.0) };
    let mut device = Device::default();
    let (kv, kv_values): (u64, Vec<f32>) = if variant.fp8 {
        // Neither of the two NaNs.
        let bytes: Vec<u8> = (0..elements).map(|_| numbers.next() as u8 & 0xf7).collect();
        (device.upload(&bytes), bytes.iter().map(|&byte| e4m3(byte)).collect())
    } else {
        let pairs: Vec<(u16, f32)> =
            (0..elements).map(|_| stored(&variant, numbers.real())).collect();
        let bits: Vec<u16> = pairs.iter().map(|pair| pair.0).collect();
        (device.upload(&bits), pairs.iter().map(|pair| pair.1).collect())
    };
    let tokens: u32 = case.rows.iter().map(|row| row.1).sum();
    let queries: Vec<(u16, f32)> = (0..tokens as usize * heads * head)
        .map(|_| stored(&variant, numbers.real() * 2.0))
        .collect();
    let (sink_bits, sinks): (Vec<u16>, Vec<f32>) =
        (0..heads).map(|_| stored(&variant, numbers.real())).unzip();

    // Decode rows come first, as in a batch.
    let decode: Vec<DecodeRow> = (0..)
        .zip(&case.rows)
        .take_while(|(_, row)| row.1 == 1)
        .map(|(slot, row)| DecodeRow { slot, kv_len: row.0 })
        .collect();
    let mut first = decode.len() as u32;
    let append: Vec<AppendRow> = (0..)
        .zip(&case.rows)
        .skip(decode.len())
        .map(|(slot, &(kv_len, tokens))| {
            let row = AppendRow { slot, first, tokens, position: kv_len - tokens };
            first += tokens;
            row
        })
        .collect();
    let shape = Shape { kv_heads, group: variant.group, window: case.window, blocks: case.blocks };
    let shared: Vec<SharedRun> = case
        .shared
        .map(|(rows, positions)| SharedRun { rows: 0..rows, positions })
        .into_iter()
        .collect();
    let mut plan = Plan::default();
    plan.fill(&shape, &decode, &shared, &append);

    let scale = 1.0 / (head as f32).sqrt();
    let layer = Layer {
        kv,
        tables: device.upload(&tables),
        table_width: table_width as i32,
        page_size: page_size as i32,
        kv_heads: kv_heads as i32,
        scale,
        soft_cap: case.soft_cap,
        key_scale,
        value_scale,
        padding: 0,
    };
    let bits: Vec<u16> = queries.iter().map(|pair| pair.0).collect();
    let query_bits = device.upload(&bits);
    let out = device.room::<u16>(bits.len());
    let sink_address = if case.sinks { device.upload(&sink_bits) } else { 0 };
    let sums = device.room::<f32>(plan.parts as usize * heads * head);
    let marks = device.room::<f32>(plan.parts as usize * heads * 2);

    let pieces = device.upload(&plan.pieces);
    let shares = device.upload(&plan.shares);
    let arguments =
        Arguments::new().with(out).with(query_bits).with(layer).with(pieces).with(shares);
    let arguments = arguments.with(sink_address).with(sums).with(marks);
    let grid = [plan.shares.len() as u32, kv_heads];
    let decode_counts = device.run(Kernel::AttentionDecode, &variant, grid, 128, 0, &arguments);

    let token_list = device.upload(&plan.token_list);
    let mut tiles = |tiles: &[backend_cuda::plan::Tile]| {
        let address = device.upload(tiles);
        let arguments =
            Arguments::new().with(out).with(query_bits).with(layer).with(address).with(token_list);
        let arguments = arguments
            .with(sink_address)
            .with(case.window.unwrap_or(0) as i32)
            .with(sums)
            .with(marks);
        let grid = [tiles.len() as u32, kv_heads * append_slices(variant.head)];
        device.run(
            Kernel::AttentionAppend,
            &variant,
            grid,
            128,
            append_shared_bytes(&variant),
            &arguments,
        )
    };
    let append_counts = tiles(&plan.tiles);
    let shared_counts = tiles(&plan.shared_tiles);

    let wholes = device.upload(&plan.wholes);
    let part_list = device.upload(&plan.part_list);
    let arguments = Arguments::new().with(out).with(sums).with(marks).with(wholes).with(part_list);
    let arguments = arguments.with(sink_address).with(heads as i32);
    let grid = [plan.wholes.len() as u32, heads as u32];
    let merge_counts = device.run(Kernel::AttentionMerge, &variant, grid, 32, 0, &arguments);

    let got: Vec<f32> = device
        .download::<u16>(out, bits.len())
        .iter()
        .map(|&bits| number(&variant, bits))
        .collect();
    let mut right = Vec::with_capacity(got.len());
    let mut token = 0;
    for (row, &(kv_len, new)) in case.rows.iter().enumerate() {
        for position in kv_len - new..kv_len {
            for query_head in 0..heads {
                let query = &queries[(token * heads + query_head) * head..][..head];
                let oldest = case.window.map_or(0, |window| (position + 1).saturating_sub(window));
                let at = |position: u32, which: usize| {
                    let page = tables[row * table_width + (position / page_size) as usize] as usize;
                    let within =
                        (page * 2 + which) * page_size as usize + (position % page_size) as usize;
                    (within * kv_heads as usize + query_head / group) * head
                };
                let mut scores: Vec<f64> = (oldest..=position)
                    .map(|seen| {
                        let keys = &kv_values[at(seen, 0)..][..head];
                        let dot: f64 = query
                            .iter()
                            .zip(keys)
                            .map(|(q, &k)| f64::from(q.1) * f64::from(k))
                            .sum();
                        let score = dot * f64::from(scale) * f64::from(key_scale);
                        match f64::from(case.soft_cap) {
                            0.0 => score,
                            cap => cap * (score / cap).tanh(),
                        }
                    })
                    .collect();
                let sink = case.sinks.then(|| f64::from(sinks[query_head]));
                let largest = scores.iter().copied().chain(sink).fold(f64::MIN, f64::max);
                scores.iter_mut().for_each(|score| *score = (*score - largest).exp());
                let all: f64 =
                    scores.iter().sum::<f64>() + sink.map_or(0.0, |sink| (sink - largest).exp());
                for element in 0..head {
                    let sum: f64 = (oldest..=position)
                        .zip(&scores)
                        .map(|(seen, weight)| weight * f64::from(kv_values[at(seen, 1) + element]))
                        .sum();
                    right.push(sum * f64::from(value_scale) / all);
                }
            }
            token += 1;
        }
    }
    Ran {
        error: relative_error(&got, &right),
        decode: decode_counts,
        append: append_counts,
        shared: shared_counts,
        merge: merge_counts,
    }
}
