//! Attention kernels, as a plan launches them, against a reference in f64.

mod support;

use backend_cuda::plan::{AppendRow, DecodeRow, Plan, Shape, SharedRun};
use backend_cuda::{Kernel, Variant, append_shared_bytes, append_slices};
use bytemuck::{Pod, Zeroable};
use cuda_emulator::Arguments;
use cuda_emulator::count::Counts;
use support::{Device, Numbers, e4m3, number, relative_error, stored};

/// Largest relative error of 16-bit numbers: 8 bits of mantissa give 0.2 %.
const TOLERANCE: f64 = 0.003;

/// A step of attention.
#[derive(Clone, Debug)]
struct Case {
    variant: Variant,
    kv_heads: u32,
    page_size: u32,
    /// Positions of KV and new tokens, by row.
    rows: Vec<(u32, u32)>,
    /// Rows 0.. that share a prefix, and positions of it.
    shared: Option<(u32, u32)>,
    window: Option<u32>,
    soft_cap: f32,
    sinks: bool,
    blocks: u32,
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
struct Ran {
    error: f64,
    decode: Counts,
    append: Counts,
    shared: Counts,
    merge: Counts,
}

/// Fills pages with random KV, plans, launches, and compares.
fn run(case: &Case) -> Ran {
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

/// The shapes that a test runs: all of them must agree, and each test says how many there are.
fn agree(count: usize, cases: impl IntoIterator<Item = Case>) {
    let cases: Vec<Case> = cases.into_iter().collect();
    assert_eq!(cases.len(), count, "of the shapes that this file promises");
    let mut worst = 0.0f64;
    for case in &cases {
        let error = run(case).error;
        assert!(error <= TOLERANCE, "{error}: {case:?}");
        worst = worst.max(error);
    }
    println!("{count} shapes: relative error at most {worst:.5}");
}

/// Widths of heads, and numbers of query heads to a KV head.
fn heads() -> Vec<(u32, u32)> {
    let widths = [16, 24, 64, 80, 96, 128, 256, 512];
    let all = widths.into_iter().flat_map(|head| [1, 2, 3, 4, 7, 8].map(|group| (head, group)));
    // More than a block's registers hold.
    all.filter(|(head, group)| head * group <= 2048).collect()
}

// 236 shapes in all.

#[test]
fn decode_agrees_for_each_head_width_and_group() {
    agree(
        46,
        heads()
            .into_iter()
            .map(|(head, group)| Case::new(head, group, &[(1, 1), (17, 1), (600, 1)])),
    );
}

#[test]
fn decode_agrees_for_each_page_size() {
    let cases = [1, 2, 8, 16, 32, 64, 128].map(|page_size| Case {
        page_size,
        kv_heads: 2,
        ..Case::new(64, 2, &[(1, 1), (130, 1), (1300, 1)])
    });
    agree(7, cases);
}

/// A case with each window, with and without a soft cap and sinks.
fn with_windows_caps_and_sinks(base: &Case, windows: [u32; 3]) -> Vec<Case> {
    let mut cases = Vec::new();
    for window in [None, Some(windows[0]), Some(windows[1]), Some(windows[2])] {
        for soft_cap in [0.0, 5.0] {
            for sinks in [false, true] {
                cases.push(Case { window, soft_cap, sinks, ..base.clone() });
            }
        }
    }
    cases
}

#[test]
fn decode_agrees_with_windows_caps_and_sinks() {
    let base = Case::new(64, 4, &[(1, 1), (99, 1), (101, 1), (1400, 1)]);
    agree(16, with_windows_caps_and_sinks(&base, [1, 100, 700]));
    let wide = Case { page_size: 1, ..Case::new(256, 2, &[(70, 1), (33, 1)]) };
    agree(16, with_windows_caps_and_sinks(&wide, [1, 32, 64]));
}

#[test]
fn a_long_row_is_divided_between_blocks() {
    agree(
        4,
        [1, 2, 5, 16].map(|blocks| Case {
            blocks,
            sinks: blocks == 5,
            ..Case::new(128, 4, &[(2500, 1), (40, 1), (700, 1)])
        }),
    );
}

#[test]
fn append_agrees_for_each_head_width_and_group() {
    agree(
        46,
        heads()
            .into_iter()
            .map(|(head, group)| Case::new(head, group, &[(5, 5), (70, 2), (100, 30)])),
    );
}

#[test]
fn append_agrees_for_each_page_size_and_a_cached_prefix() {
    let page_sizes = [1, 2, 4, 8, 16, 32, 64, 128];
    agree(
        8,
        page_sizes.map(|page_size| Case {
            page_size,
            kv_heads: 2,
            ..Case::new(64, 2, &[(33, 33), (200, 40), (300, 3)])
        }),
    );
}

#[test]
fn append_agrees_with_windows_caps_and_sinks() {
    let base = Case::new(64, 4, &[(150, 50), (40, 40)]);
    agree(16, with_windows_caps_and_sinks(&base, [1, 20, 100]));
    let wide = Case { page_size: 32, ..Case::new(512, 2, &[(60, 20)]) };
    agree(16, with_windows_caps_and_sinks(&wide, [1, 20, 48]));
}

#[test]
fn spans_to_verify_agree_behind_prefixes_of_any_length() {
    let mut cases = Vec::new();
    for span in [2, 3, 5, 8] {
        for before in [0, 1, 31, 32, 63, 257] {
            let rows = [(before + span, span), (before + 2 * span, span)];
            cases.push(Case { page_size: 8, ..Case::new(80, 4, &rows) });
        }
    }
    agree(24, cases);
}

#[test]
fn decode_and_append_rows_share_a_step() {
    let mut cases = Vec::new();
    for (head, group) in [(64, 4), (96, 3), (128, 8), (256, 1)] {
        for window in [None, Some(40)] {
            let rows = [(300, 1), (20, 1), (64, 8), (70, 70)];
            cases.push(Case { kv_heads: 2, window, ..Case::new(head, group, &rows) });
        }
    }
    agree(8, cases);
}

#[test]
fn other_numbers_than_bfloat16_agree() {
    let mut cases = Vec::new();
    for (half, fp8) in [(true, false), (false, true), (true, true)] {
        for head in [64, 80, 128, 256, 512] {
            let variant = Variant { half, fp8, ..Variant::new(head, 4) };
            cases.push(Case { variant, ..Case::new(head, 4, &[(300, 1), (33, 1), (60, 20)]) });
        }
    }
    agree(15, cases);
}

#[test]
fn a_shared_prefix_is_computed_once_and_agrees() {
    let mut cases = Vec::new();
    for (rows, positions) in [(2, 32), (5, 512), (20, 256)] {
        for sinks in [false, true] {
            let lengths: Vec<(u32, u32)> =
                (0..rows + 1).map(|row| (positions + 1 + row * 7, 1)).collect();
            for (head, group) in [(64, 4), (128, 1), (512, 4)] {
                // Wide heads take long: the shortest case has them.
                if head < 512 || rows == 2 {
                    let shared = Some((rows, positions));
                    cases.push(Case { shared, sinks, ..Case::new(head, group, &lengths) });
                }
            }
        }
    }
    agree(14, cases);
}

#[test]
fn decode_reads_its_kv_once() {
    // Distinct 32-byte sectors of the KV against what all kernels of the step read.
    for (kv_len, kv_heads) in [(1024, 1), (2100, 2), (4096, 1)] {
        let case =
            Case { kv_heads, blocks: 8, ..Case::new(128, 4, &[(kv_len, 1), (kv_len + 300, 1)]) };
        let ran = run(&case);
        let kv: u32 = case.rows.iter().map(|row| row.0 * kv_heads * 2 * 128 * 2 / 32).sum();
        let read = ran.decode.sectors_loaded + ran.merge.sectors_loaded;
        let ratio = read as f64 / f64::from(kv);
        println!("decode at {kv_len}: {ratio:.4} of the KV's sectors");
        assert!(ratio <= 1.03, "{ratio} at {kv_len}");
    }
}

#[test]
fn a_shared_prefix_is_read_by_a_fraction_of_the_rows() {
    let rows = vec![(2304, 1); 32];
    let plain = Case { blocks: 64, ..Case::new(64, 4, &rows) };
    let cascade = Case { shared: Some((32, 2048)), ..plain.clone() };
    let read = |ran: &Ran| {
        ran.decode.sectors_loaded + ran.shared.sectors_loaded + ran.merge.sectors_loaded
    };
    let (plain, cascade) = (run(&plain), run(&cascade));
    assert!(cascade.error <= TOLERANCE, "{}", cascade.error);
    let ratio = read(&cascade) as f64 / read(&plain) as f64;
    println!("32 rows that share 2,048 of 2,304 positions: {ratio:.4} of the plain sectors");
    assert!(ratio <= 0.2, "{ratio}");
}

#[test]
fn prefill_multiplies_little_beyond_the_causal_area() {
    let tokens = 1024u64;
    let ran = run(&Case { blocks: 8, ..Case::new(64, 4, &[(tokens as u32, tokens as u32)]) });
    // Two products of 2 * 64 operations for each (row, key) pair that is seen.
    let pairs = 4 * tokens * (tokens + 1) / 2;
    let ratio = ran.append.tensor_operations as f64 / (pairs * 4 * 64) as f64;
    println!("prefill of {tokens}: {ratio:.4} of the causal area's products");
    assert!((1.0..=1.12).contains(&ratio), "{ratio}");
}
