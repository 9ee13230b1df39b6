//! Kernels beside attention, on the emulator, against plain references.

mod support;

use backend_api::sample::philox4x32;
use backend_cuda::{Kernel, Variant};
use bytemuck::{Pod, Zeroable};
use cuda_emulator::Arguments;
use support::{Device, Numbers, e4m3, number, relative_error, stored};

fn bits_and_values(
    variant: &Variant,
    numbers: &mut Numbers,
    count: usize,
    spread: f32,
) -> (Vec<u16>, Vec<f32>) {
    (0..count).map(|_| stored(variant, numbers.real() * spread)).unzip()
}

#[test]
fn rms_norm_adds_the_residual_and_normalizes_rows_and_heads() {
    for variant in [Variant::new(64, 1), Variant { half: true, ..Variant::new(64, 1) }] {
        for (rows, run, threads) in
            [(1, 8, 32), (3, 576, 128), (2, 4096, 256), (5, 64, 64), (1, 5000, 96)]
        {
            for (with_residual, with_weight, offset) in
                [(true, true, 0.0f32), (false, true, 1.0), (true, false, 0.0)]
            {
                let mut numbers = Numbers::new(run as u64);
                let (input, x) = bits_and_values(&variant, &mut numbers, rows * run, 3.0);
                let (weight, w) = bits_and_values(&variant, &mut numbers, run, 1.0);
                let (residual_bits, residual) =
                    bits_and_values(&variant, &mut numbers, rows * run, 1.0);
                let mut device = Device::default();
                let out = device.room::<u16>(rows * run);
                let sum = device.room::<u16>(rows * run);
                let residual_address = device.upload(&residual_bits);
                let arguments = Arguments::new()
                    .with(out)
                    .with(if with_residual { sum } else { 0 })
                    .with(device.upload(&input))
                    .with(if with_residual { residual_address } else { 0 })
                    .with(if with_weight { device.upload(&weight) } else { 0 })
                    .with(run as i32)
                    .with(1e-5f32)
                    .with(offset);
                device.run(Kernel::RmsNorm, &variant, [rows as u32, 1], threads, 0, &arguments);
                let added = |i: usize| {
                    f64::from(x[i]) + if with_residual { f64::from(residual[i]) } else { 0.0 }
                };
                let right: Vec<f64> = (0..rows * run)
                    .map(|i| {
                        let row = i / run * run..(i / run + 1) * run;
                        let squares: f64 = row.map(|j| added(j) * added(j)).sum();
                        let factor = if with_weight {
                            f64::from(w[i % run]) + f64::from(offset)
                        } else {
                            1.0
                        };
                        added(i) / (squares / run as f64 + 1e-5).sqrt() * factor
                    })
                    .collect();
                let got: Vec<f32> = device
                    .download::<u16>(out, rows * run)
                    .iter()
                    .map(|&bits| number(&variant, bits))
                    .collect();
                let error = relative_error(&got, &right);
                assert!(error < 0.003, "{error}: {variant:?} {rows} x {run}");
                let sums: Vec<f64> = (0..rows * run).map(added).collect();
                if with_residual {
                    let got: Vec<f32> = device
                        .download::<u16>(sum, rows * run)
                        .iter()
                        .map(|&bits| number(&variant, bits))
                        .collect();
                    assert!(relative_error(&got, &sums) < 0.003);
                }
            }
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

#[test]
fn queries_and_keys_are_rotated_and_new_positions_lie_in_their_pages() {
    for (adjacent, pairs) in [(false, 32), (true, 32), (false, 24), (true, 10), (false, 0)] {
        for fp8 in [false, true] {
            let variant = Variant { fp8, ..Variant::new(64, 2) };
            let (head, group, kv_heads, page_size, tokens) = (64, 2, 3, 4, 5);
            let heads = kv_heads * group;
            let mut numbers = Numbers::new(pairs as u64 + 7);
            let (queries, q) = bits_and_values(&variant, &mut numbers, tokens * heads * head, 1.0);
            let (keys, k) = bits_and_values(&variant, &mut numbers, tokens * kv_heads * head, 1.0);
            let (values, v) =
                bits_and_values(&variant, &mut numbers, tokens * kv_heads * head, 1.0);
            // Token 0 of slot 1, the others of slot 0; pages in no order.
            let (slots, positions) = ([1, 0, 0, 0, 0], [9, 2, 3, 4, 5]);
            let tables = [[4, 1, 0], [2, 5, 3]];
            let frequencies: Vec<f32> = (0..pairs).map(|i| 0.9f32.powi(i as i32)).collect();
            let (key_scale, value_scale) = if fp8 { (0.01, 0.02) } else { (1.0, 1.0) };
            let mut device = Device::default();
            let element = if fp8 { 1 } else { 2 };
            let kv_elements = 6 * 2 * page_size * kv_heads * head;
            let kv = device.room::<u8>(kv_elements * element);
            let layer = Layer {
                kv,
                tables: device.upload(tables.as_flattened()),
                table_width: 3,
                page_size: page_size as i32,
                kv_heads: kv_heads as i32,
                scale: 1.0,
                soft_cap: 0.0,
                key_scale,
                value_scale,
                padding: 0,
            };
            let query_bits = device.upload(&queries);
            let arguments = Arguments::new()
                .with(query_bits)
                .with(device.upload(&keys))
                .with(device.upload(&values))
                .with(layer)
                .with(kv)
                .with(device.upload(&slots))
                .with(device.upload(&positions))
                .with(device.upload(&frequencies))
                .with(pairs as i32)
                .with(1.25f32)
                .with(i32::from(adjacent));
            device.run(Kernel::RopeAndStore, &variant, [tokens as u32, 1], 128, 0, &arguments);

            let rotated = |x: &[f32], position: i32| -> Vec<f64> {
                let mut out: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
                for (pair, &frequency) in frequencies.iter().enumerate() {
                    let (a, b) =
                        if adjacent { (2 * pair, 2 * pair + 1) } else { (pair, pair + pairs) };
                    let (sine, cosine) = (f64::from(position) * f64::from(frequency)).sin_cos();
                    out[a] = 1.25 * (f64::from(x[a]) * cosine - f64::from(x[b]) * sine);
                    out[b] = 1.25 * (f64::from(x[b]) * cosine + f64::from(x[a]) * sine);
                }
                out
            };
            let got: Vec<f32> = device
                .download::<u16>(query_bits, q.len())
                .iter()
                .map(|&bits| number(&variant, bits))
                .collect();
            let right: Vec<f64> = q
                .chunks(head)
                .enumerate()
                .flat_map(|(i, x)| rotated(x, positions[i / heads]))
                .collect();
            assert!(relative_error(&got, &right) < 0.003);

            for token in 0..tokens {
                let position = positions[token] as usize;
                let page = tables[slots[token] as usize][position / page_size] as usize;
                for kv_head in 0..kv_heads {
                    for (which, scale) in [key_scale, value_scale].into_iter().enumerate() {
                        let at = (((page * 2 + which) * page_size + position % page_size)
                            * kv_heads
                            + kv_head)
                            * head;
                        let source = (token * kv_heads + kv_head) * head;
                        let right = match which {
                            0 => rotated(&k[source..source + head], positions[token]),
                            _ => v[source..source + head].iter().map(|&x| f64::from(x)).collect(),
                        };
                        let bytes =
                            device.download::<u8>(kv + (at * element) as u64, head * element);
                        let got: Vec<f32> = if fp8 {
                            bytes.iter().map(|&byte| e4m3(byte) * scale).collect()
                        } else {
                            let words =
                                bytes.chunks(2).map(|two| u16::from_le_bytes([two[0], two[1]]));
                            words.map(|bits| number(&variant, bits)).collect()
                        };
                        let allowed = if fp8 { 0.04 } else { 0.003 };
                        let error = relative_error(&got, &right);
                        assert!(
                            error < allowed,
                            "{error}: token {token}, {which} of head {kv_head}"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn gated_activations_agree() {
    let variant = Variant::new(64, 1);
    for (rows, width, gate_width) in [(1, 8, 8), (3, 1536, 1536), (5, 71, 71), (4, 40, 1)] {
        for kind in 0..5 {
            let mut numbers = Numbers::new(3);
            let (gate, g) = bits_and_values(&variant, &mut numbers, rows * gate_width, 4.0);
            let (up, u) = bits_and_values(&variant, &mut numbers, rows * width, 4.0);
            let mut device = Device::default();
            let out = device.room::<u16>(rows * width);
            let arguments = Arguments::new()
                .with(out)
                .with(device.upload(&gate))
                .with(device.upload(&up))
                .with([width as i32, gate_width as i32, kind])
                .with([1.7f32, 3.0])
                .with((rows * width) as i32);
            let blocks = (rows * width).div_ceil(256) as u32;
            device.run(Kernel::GatedActivation, &variant, [blocks, 1], 256, 0, &arguments);
            let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
            let right: Vec<f64> = (0..rows * width)
                .map(|i| {
                    let gate = f64::from(g[if gate_width == 1 { i / width } else { i }]);
                    let up = f64::from(u[i]);
                    let inner =
                        (2.0 / std::f64::consts::PI).sqrt() * (gate + 0.044715 * gate.powi(3));
                    let bounded = gate.min(3.0);
                    match kind {
                        0 => gate * up,
                        1 => sigmoid(gate) * up,
                        2 => gate * sigmoid(gate) * up,
                        3 => 0.5 * gate * (1.0 + inner.tanh()) * up,
                        _ => bounded * sigmoid(1.7 * bounded) * (up.clamp(-3.0, 3.0) + 1.0),
                    }
                })
                .collect();
            let got: Vec<f32> = device
                .download::<u16>(out, rows * width)
                .iter()
                .map(|&bits| number(&variant, bits))
                .collect();
            assert!(relative_error(&got, &right) < 0.003, "kind {kind}");
        }
    }
}

#[test]
fn embeddings_are_of_known_tokens_and_of_those_that_slots_produced() {
    let variant = Variant::new(64, 1);
    for width in [72, 6, 9] {
        let vocabulary = 11;
        let (table, x) = bits_and_values(&variant, &mut Numbers::new(5), vocabulary * width, 1.0);
        let mut device = Device::default();
        let (tokens, next) = ([3, -1 - 2, 10, -1], [7, 1, 4]);
        let out = device.room::<u16>(tokens.len() * width);
        let arguments = Arguments::new()
            .with(out)
            .with(device.upload(&table))
            .with(device.upload(&tokens))
            .with(device.upload(&next))
            .with(width as i32)
            .with(2.5f32);
        device.run(Kernel::Embed, &variant, [tokens.len() as u32, 1], 32, 0, &arguments);
        let right: Vec<f32> = [3, 4, 10, 7]
            .iter()
            .flat_map(|&token| &x[token * width..][..width])
            .map(|x| x * 2.5)
            .collect();
        let got: Vec<f32> = device
            .download::<u16>(out, right.len())
            .iter()
            .map(|&bits| number(&variant, bits))
            .collect();
        let right: Vec<f64> = right.into_iter().map(f64::from).collect();
        assert!(relative_error(&got, &right) < 0.003);
    }
}

/// As the kernel has it.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
struct Sampling {
    temperature: f32,
    top_k: u32,
    top_p: f32,
    min_p: f32,
    seed: [u32; 2],
    sample_index: u32,
    position: u32,
    slot: i32,
    mask: i32,
}

/// The definition of backend_api::sample, in f64 and by sorting. Gives the token, and the distance of the two best.
fn sampled(logits: &[f32], s: &Sampling, mask: Option<&[u32]>) -> (i32, f64) {
    let allowed = |token: usize| mask.is_none_or(|mask| mask[token / 32] >> (token % 32) & 1 == 1);
    let mut kept: Vec<usize> = (0..logits.len()).filter(|&token| allowed(token)).collect();
    kept.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
    if s.temperature <= 0.0 {
        return (kept[0] as i32, f64::INFINITY);
    }
    let largest = f64::from(logits[kept[0]]);
    let weight =
        |token: usize| ((f64::from(logits[token]) - largest) / f64::from(s.temperature)).exp();
    if s.top_k > 0 {
        kept.truncate(s.top_k as usize);
    }
    if s.top_p < 1.0 {
        let total: f64 = kept.iter().map(|&token| weight(token)).sum();
        let mut before = 0.0;
        let needed = kept.iter().position(|&token| {
            before += weight(token);
            before >= total * f64::from(s.top_p)
        });
        kept.truncate(needed.map_or(kept.len(), |last| last + 1));
    }
    kept.retain(|&token| weight(token) >= f64::from(s.min_p));
    let noisy = |token: usize| {
        let counter = [token as u32 / 4, s.position, s.sample_index, 0];
        let word = philox4x32(counter, s.seed)[token % 4];
        let uniform = (f64::from(word) + 0.5) / (1u64 << 32) as f64;
        f64::from(logits[token]) / f64::from(s.temperature) - (-uniform.ln()).ln()
    };
    let mut noisy: Vec<(f64, usize)> = kept.iter().map(|&token| (noisy(token), token)).collect();
    noisy.sort_by(|a, b| b.0.total_cmp(&a.0));
    let margin = noisy.get(1).map_or(f64::INFINITY, |second| noisy[0].0 - second.0);
    (noisy[0].1 as i32, margin)
}

#[test]
fn tokens_are_those_of_the_definition() {
    let vocabulary = 1999;
    let mut numbers = Numbers::new(17);
    let mut samplings = Vec::new();
    for temperature in [0.0, 0.7, 1.5] {
        for (top_k, top_p, min_p) in [
            (0, 1.0, 0.0),
            (1, 1.0, 0.0),
            (40, 1.0, 0.0),
            (0, 0.9, 0.0),
            (50, 0.5, 0.0),
            (0, 1.0, 0.1),
            (100, 0.95, 0.05),
        ] {
            for mask in [-1, 0] {
                samplings.push(Sampling {
                    temperature,
                    top_k,
                    top_p,
                    min_p,
                    seed: [numbers.next() as u32, numbers.next() as u32],
                    sample_index: numbers.below(3),
                    position: numbers.below(100_000),
                    slot: samplings.len() as i32,
                    mask,
                });
            }
        }
    }
    // A few values often, so that equal logits meet every cut.
    let logits: Vec<f32> = (0..samplings.len() * vocabulary)
        .map(|i| if i % 3 == 0 { numbers.below(12) as f32 / 2.0 } else { numbers.real() * 6.0 })
        .collect();
    let mask: Vec<u32> = (0..vocabulary.div_ceil(32)).map(|_| numbers.next() as u32).collect();
    let mut device = Device::default();
    let (tokens, next) = (device.room::<i32>(samplings.len()), device.room::<i32>(samplings.len()));
    let arguments = Arguments::new()
        .with(tokens)
        .with(next)
        .with(device.upload(&logits))
        .with(device.upload(&samplings))
        .with(device.upload(&mask))
        .with(vocabulary as i32);
    device.run(
        Kernel::Sample,
        &Variant::new(64, 1),
        [samplings.len() as u32, 1],
        512,
        0,
        &arguments,
    );
    let got = device.download::<i32>(tokens, samplings.len());
    assert_eq!(device.download::<i32>(next, samplings.len()), got);
    for ((row, s), got) in samplings.iter().enumerate().zip(got) {
        let logits = &logits[row * vocabulary..][..vocabulary];
        let (right, margin) = sampled(logits, s, (s.mask >= 0).then_some(&mask[..]));
        assert!(got == right || margin < 1e-4, "{got}, not {right} by {margin}: {s:?}");
    }
}

#[test]
fn a_row_whose_logits_are_not_numbers_gets_no_token_and_harms_no_other() {
    let vocabulary = 700;
    let broken = [None, Some(f32::NAN), Some(f32::INFINITY), Some(f32::NEG_INFINITY), None];
    let mut logits = vec![0.0f32; broken.len() * vocabulary];
    for (row, value) in broken.iter().enumerate() {
        logits[row * vocabulary + 650] = value.unwrap_or(1.0);
    }
    for temperature in [0.0, 1e-30] {
        let row = |slot| Sampling {
            temperature,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            seed: [1, 2],
            sample_index: 0,
            position: 9,
            slot,
            mask: -1,
        };
        let samplings: Vec<Sampling> = (0..broken.len() as i32).map(row).collect();
        let mut device = Device::default();
        let [tokens, next] = [(); 2].map(|()| device.room::<i32>(broken.len()));
        let arguments = Arguments::new()
            .with(tokens)
            .with(next)
            .with(device.upload(&logits))
            .with(device.upload(&samplings))
            .with(0u64)
            .with(vocabulary as i32);
        let grid = [broken.len() as u32, 1];
        device.run(Kernel::Sample, &Variant::new(64, 1), grid, 512, 0, &arguments);
        assert_eq!(device.download::<i32>(tokens, broken.len()), [650, -1, -1, -1, 650]);
        // A slot that goes on all the same reads a token that exists.
        assert_eq!(device.download::<i32>(next, broken.len()), [650, 0, 0, 0, 650]);
    }
}

#[test]
fn products_with_weights_agree_for_any_shape() {
    for half in [false, true] {
        let variant = Variant { half, ..Variant::new(64, 1) };
        for (rows, columns, inner) in
            [(1, 1, 8), (3, 70, 40), (64, 64, 32), (65, 129, 200), (130, 20, 72)]
        {
            for (with_bias, wide) in [(false, false), (true, false), (true, true)] {
                let mut numbers = Numbers::new(inner as u64);
                let (input, x) = bits_and_values(&variant, &mut numbers, rows * inner, 1.0);
                let (weight, w) = bits_and_values(&variant, &mut numbers, columns * inner, 1.0);
                let (bias, b) = bits_and_values(&variant, &mut numbers, columns, 1.0);
                let mut device = Device::default();
                let out = device.room::<f32>(rows * columns);
                let arguments = Arguments::new()
                    .with(out)
                    .with(device.upload(&input))
                    .with(device.upload(&weight))
                    .with(if with_bias { device.upload(&bias) } else { 0 })
                    .with([rows as i32, columns as i32, inner as i32, i32::from(wide)]);
                let grid = [columns.div_ceil(64) as u32, rows.div_ceil(64) as u32];
                device.run(Kernel::Linear, &variant, grid, 128, 0, &arguments);
                let right: Vec<f64> = (0..rows * columns)
                    .map(|i| {
                        let (row, column) = (i / columns * inner, i % columns * inner);
                        let product = |k| f64::from(x[row + k]) * f64::from(w[column + k]);
                        let bias = if with_bias { f64::from(b[i % columns]) } else { 0.0 };
                        (0..inner).map(product).sum::<f64>() + bias
                    })
                    .collect();
                let got: Vec<f32> = if wide {
                    device.download::<f32>(out, rows * columns)
                } else {
                    device
                        .download::<u16>(out, rows * columns)
                        .iter()
                        .map(|&bits| number(&variant, bits))
                        .collect()
                };
                let error = relative_error(&got, &right);
                assert!(
                    error < if wide { 1e-5 } else { 0.003 },
                    "{error}: {rows} x {columns} x {inner}"
                );
            }
        }
    }
}
