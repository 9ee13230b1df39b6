//! Routing of rows to experts, and the sum of the experts' results, with their references.

use backend_api::weights::{Format, Shape, Tensor};
use backend_cuda::{BlockLayout, Kernel, Variant};
use cuda_emulator::Arguments;

use super::{Device, Numbers, number, relative_error, stored};

pub const VARIANT: fn() -> Variant = || Variant::new(64, 1);

/// How rows are sent to experts.
#[derive(Clone, Copy, Debug, Default)]
pub struct Routing {
    experts: usize,
    chosen: usize,
    sigmoid: bool,
    normalize: bool,
    factor: f32,
    with_bias: bool,
    with_scales: bool,
}

/// Runs `route`, and gives experts and weights of each row.
pub fn route(
    device: &mut Device,
    routing: &Routing,
    scores: &[u16],
    bias: &[f32],
    scales: &[f32],
) -> (u64, u64) {
    let rows = scores.len() / routing.experts;
    let experts = device.room::<i32>(rows * routing.chosen);
    let weights = device.room::<f32>(rows * routing.chosen);
    let arguments = Arguments::new()
        .with(experts)
        .with(weights)
        .with(device.upload(scores))
        .with(if routing.with_bias { device.upload(bias) } else { 0 })
        .with(if routing.with_scales { device.upload(scales) } else { 0 })
        .with(routing.experts as i32)
        .with(routing.chosen as i32)
        .with(i32::from(routing.sigmoid))
        .with(i32::from(routing.normalize))
        .with(routing.factor);
    let grid = [rows as u32, 1];
    device.run_function(Kernel::Experts, "route", &VARIANT(), grid, 32, 0, &arguments);
    (experts, weights)
}

/// What the definition says.
pub fn right_route(
    routing: &Routing,
    scores: &[f32],
    bias: &[f32],
    scales: &[f32],
) -> Vec<(i32, f64)> {
    let largest = scores.iter().copied().fold(f32::MIN, f32::max);
    let total: f64 = scores.iter().map(|s| f64::from(s - largest).exp()).sum();
    let weight = |e: usize| match routing.sigmoid {
        true => 1.0 / (1.0 + f64::from(-scores[e]).exp()),
        false => f64::from(scores[e] - largest).exp() / total,
    };
    let key = |e: usize| match routing.with_bias {
        true => weight(e) + f64::from(bias[e]),
        false => f64::from(scores[e]),
    };
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| key(b).total_cmp(&key(a)));
    order.truncate(routing.chosen);
    let sum: f64 = order.iter().map(|&e| weight(e)).sum();
    let divisor = if routing.normalize { sum } else { 1.0 };
    order
        .into_iter()
        .map(|e| {
            let scale = if routing.with_scales { f64::from(scales[e]) } else { 1.0 };
            (e as i32, weight(e) / divisor * f64::from(routing.factor) * scale)
        })
        .collect()
}

pub fn rows_choose_the_experts_of_the_greatest_scores() {
    let plain = Routing { experts: 128, chosen: 8, factor: 1.0, ..Routing::default() };
    let cases = [
        plain,
        Routing { normalize: true, ..plain },
        Routing {
            experts: 256,
            sigmoid: true,
            normalize: true,
            factor: 2.5,
            with_bias: true,
            ..plain
        },
        Routing { experts: 6, chosen: 6, with_scales: true, ..plain },
        Routing { experts: 33, chosen: 1, with_bias: true, ..plain },
        Routing { experts: 1024, chosen: 32, sigmoid: true, ..plain },
    ];
    for routing in cases {
        let mut numbers = Numbers::new(routing.experts as u64);
        let rows = 5;
        let (bits, scores): (Vec<u16>, Vec<f32>) =
            (0..rows * routing.experts).map(|_| stored(&VARIANT(), numbers.real() * 3.0)).unzip();
        // Far enough apart that rounding decides nothing.
        let bias: Vec<f32> = (0..routing.experts).map(|e| (e * 7 % 256) as f32 * 2.0).collect();
        let scales = numbers.reals(routing.experts);
        let mut device = Device::default();
        let (experts, weights) = route(&mut device, &routing, &bits, &bias, &scales);
        let count = rows * routing.chosen;
        let (experts, weights) =
            (device.download::<i32>(experts, count), device.download::<f32>(weights, count));
        for row in 0..rows {
            let own = &scores[row * routing.experts..][..routing.experts];
            let right = right_route(&routing, own, &bias, &scales);
            for (rank, (expert, weight)) in right.into_iter().enumerate() {
                let at = row * routing.chosen + rank;
                assert_eq!(experts[at], expert, "{routing:?}, row {row}, rank {rank}");
                let error = (f64::from(weights[at]) - weight).abs();
                assert!(
                    error <= weight.abs() * 1e-5,
                    "{routing:?}: {} is not {weight}",
                    weights[at]
                );
            }
        }
    }
}

pub fn of_equal_scores_the_lower_expert_is_chosen_and_what_is_no_number_first() {
    let routing = Routing { experts: 70, chosen: 4, factor: 1.0, ..Routing::default() };
    let mut scores = vec![0.5f32; 140];
    scores[66] = 2.0;
    scores[70 + 9] = f32::NAN;
    scores[70 + 3] = f32::INFINITY;
    scores[70 + 40] = f32::NEG_INFINITY;
    let bits: Vec<u16> = scores.iter().map(|&x| stored(&VARIANT(), x).0).collect();
    let mut device = Device::default();
    let (experts, _) = route(&mut device, &routing, &bits, &[], &[]);
    assert_eq!(device.download::<i32>(experts, 8), [66, 0, 1, 2, 9, 3, 0, 1]);
    let routing = Routing { chosen: 32, experts: 32, ..routing };
    let bits = vec![stored(&VARIANT(), f32::NEG_INFINITY).0; 32];
    let (experts, _) = route(&mut device, &routing, &bits, &[], &[]);
    assert_eq!(device.download::<i32>(experts, 32), (0..32).collect::<Vec<_>>());
}

/// Choices by expert and the tiles of it.
pub struct Sorted {
    order: u64,
    places: u64,
    tiles: u64,
    most: usize,
}

pub fn sort(device: &mut Device, chosen: &[i32], experts: usize, height: usize) -> Sorted {
    let order = device.room::<i32>(chosen.len());
    let places = device.room::<i32>(chosen.len());
    let counts = device.room::<i32>(experts * 2);
    let arguments = Arguments::new()
        .with(order)
        .with(places)
        .with(counts)
        .with(device.upload(chosen))
        .with(chosen.len() as i32);
    let grid = [experts as u32, 1];
    device.run_function(Kernel::Experts, "sort_choices", &VARIANT(), grid, 32, 0, &arguments);
    let most = experts.min(chosen.len()) + chosen.len() / height;
    let tiles = device.room::<[i32; 4]>(most);
    let arguments = Arguments::new()
        .with(tiles)
        .with(counts)
        .with(experts as i32)
        .with(height as i32)
        .with(most as i32);
    device.run_function(Kernel::Experts, "list_tiles", &VARIANT(), [1, 1], 1024, 0, &arguments);
    Sorted { order, places, tiles, most }
}

pub fn choices_are_sorted_by_expert_in_order_and_cut_into_tiles() {
    for (choices, experts, height) in
        [(1, 1, 1), (5, 3, 8), (97, 4, 8), (200, 128, 1), (640, 7, 64), (2000, 1024, 2)]
    {
        let mut numbers = Numbers::new(choices as u64);
        // Some experts get none.
        let chosen: Vec<i32> = (0..choices)
            .map(|_| (numbers.below(experts as u32) & !u32::from(experts > 4)) as i32)
            .collect();
        let mut device = Device::default();
        let sorted = sort(&mut device, &chosen, experts, height);
        let mut right: Vec<i32> = (0..choices as i32).collect();
        right.sort_by_key(|&choice| chosen[choice as usize]);
        assert_eq!(device.download::<i32>(sorted.order, choices), right);
        let places = device.download::<i32>(sorted.places, choices);
        assert!((0..choices).all(|choice| right[places[choice] as usize] == choice as i32));
        let mut tiles = Vec::new();
        for expert in 0..experts as i32 {
            let first = chosen.iter().filter(|&&chosen| chosen < expert).count();
            let own = chosen.iter().filter(|&&chosen| chosen == expert).count();
            for start in (0..own).step_by(height) {
                tiles.push([(first + start) as i32, height.min(own - start) as i32, expert, 0]);
            }
        }
        assert!(tiles.len() <= sorted.most);
        tiles.resize(sorted.most, [0; 4]);
        assert_eq!(device.download::<[i32; 4]>(sorted.tiles, sorted.most), tiles);
    }
}

/// One layer of all experts, and the sum of its results.
pub fn layer(
    format: Format,
    rows: usize,
    chosen: usize,
    height: usize,
    function: &str,
    kernel: Kernel,
) {
    let (experts, columns, inner) = (5, 24, 768);
    let mut numbers = Numbers::new((rows * chosen) as u64);
    let variant =
        Variant { weight: if format.is_quantized() { format } else { Format::BF16 }, ..VARIANT() };
    let shape = Shape::stack(experts, columns, inner);
    let values = numbers.reals(experts * columns * inner);
    let tensor = Tensor::from_f32(format, shape, &values).expect("whole blocks");
    let layout = BlockLayout::of(&tensor);
    // Rows choose different experts, never the third.
    let choices: Vec<i32> = (0..rows)
        .flat_map(|row| (0..chosen).map(move |rank| [0, 1, 3, 4][(row + rank) % 4]))
        .collect();
    let mut packed = layout.pack(&tensor, false);
    // What nobody chose isn't read: whatever it holds would be no number.
    packed[2 * layout.stride()..3 * layout.stride()].fill(0xff);
    let (input, x): (Vec<u16>, Vec<f32>) =
        (0..rows * inner).map(|_| stored(&variant, numbers.real())).unzip();
    let (bias, b): (Vec<u16>, Vec<f32>) =
        (0..experts * columns).map(|_| stored(&variant, numbers.real())).unzip();
    let weights = numbers.reals(choices.len());
    let mut device = Device::default();
    let sorted = sort(&mut device, &choices, experts, height);
    let results = device.room::<u16>(choices.len() * columns);
    let arguments = Arguments::new()
        .with(results)
        .with(device.upload(&input))
        .with(device.upload(&packed))
        .with(device.upload(&bias))
        .with(sorted.tiles)
        .with(sorted.order)
        .with(chosen as i32)
        .with(choices.len() as i32)
        .with(columns as i32)
        .with(inner as i32)
        .with(layout.stride() as u64)
        .with(0i32);
    let of_block = if height == 64 { 128 } else { 4 };
    let grid = [columns.div_ceil(of_block) as u32, sorted.most as u32];
    device.run_function(kernel, function, &variant, grid, 128, 0, &arguments);
    let out = device.room::<u16>(rows * columns);
    let count = rows * columns / 8;
    let arguments = Arguments::new()
        .with(out)
        .with(results)
        .with(sorted.places)
        .with(device.upload(&weights))
        .with(chosen as i32)
        .with(columns as i32)
        .with(count as i32);
    let grid = [count.div_ceil(256) as u32, 1];
    device.run_function(Kernel::Experts, "combine", &variant, grid, 256, 0, &arguments);

    let w = tensor.to_f32();
    let right: Vec<f64> = (0..rows * columns)
        .map(|i| {
            let (row, column) = (i / columns, i % columns);
            (0..chosen)
                .map(|rank| {
                    let expert = choices[row * chosen + rank] as usize;
                    let w = &w[(expert * columns + column) * inner..][..inner];
                    let dot: f64 = x[row * inner..][..inner]
                        .iter()
                        .zip(w)
                        .map(|(&x, &w)| f64::from(x) * f64::from(w))
                        .sum();
                    f64::from(weights[row * chosen + rank])
                        * (dot + f64::from(b[expert * columns + column]))
                })
                .sum()
        })
        .collect();
    let found = device.download::<u16>(out, rows * columns);
    let found: Vec<f32> = found.into_iter().map(|bits| number(&variant, bits)).collect();
    let error = relative_error(&found, &right);
    assert!(error < 0.005, "{error}: {format}, {rows} rows, {chosen} chosen, {function}");
}
