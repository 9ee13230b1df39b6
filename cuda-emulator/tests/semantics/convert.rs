use crate::exact::{BF16, F16, F32, MODES, Mode, all_singles, single};
use crate::harness::{NONE, check, edges, low, run, signed, unsigned};

#[test]
fn whole_numbers_are_extended_and_cut() {
    for (from, x) in [(16u32, 'h'), (32, 'r'), (64, 'd')] {
        for (to, y) in [(16u32, 'h'), (32, 'r'), (64, 'd')] {
            for (from_sign, to_sign) in [('u', 'u'), ('s', 's'), ('u', 's'), ('s', 'u')] {
                let number = |v| if from_sign == 's' { signed(v, from) } else { unsigned(v, from) };
                let text = format!("cvt.{to_sign}{to}.{from_sign}{from} {y}0, {x}1");
                check(&text, [&edges(from), NONE, NONE], |a, _, _| low(number(a), to));
                let text = format!("cvt.sat.{to_sign}{to}.{from_sign}{from} {y}0, {x}1");
                let (least, most) = if to_sign == 's' {
                    (-(1i128 << (to - 1)), (1i128 << (to - 1)) - 1)
                } else {
                    (0, (1i128 << to) - 1)
                };
                check(&text, [&edges(from), NONE, NONE], |a, _, _| {
                    low(number(a).clamp(least, most), to)
                });
            }
        }
    }
    // Bytes are extended to the register that they are put in.
    check("cvt.s8.s32 r0, r1", [&edges(32), NONE, NONE], |a, _, _| low(signed(a, 8), 32));
    check("cvt.u8.u32 r0, r1", [&edges(32), NONE, NONE], |a, _, _| a & 0xff);
    check("cvt.s32.s8 r0, h1", [&edges(16), NONE, NONE], |a, _, _| low(signed(a, 8), 32));
}

fn whole(value: f64, rounding: &str) -> f64 {
    match rounding {
        "rni" => value.round_ties_even(),
        "rzi" => value.trunc(),
        "rmi" => value.floor(),
        _ => value.ceil(),
    }
}

#[test]
fn numbers_become_whole_and_stop_at_the_ends() {
    let mut values = all_singles();
    let more =
        [0.5f32, 1.5, 2.5, -0.5, -1.5, 2_147_483_600.0, -3e9, 5e9, 1e19, -1e19, 127.5, -128.9];
    values.extend(more.iter().map(|v| u64::from(v.to_bits())));
    for rounding in ["rni", "rzi", "rmi", "rpi"] {
        for (bits, y) in [(32u32, 'r'), (64, 'd')] {
            for sign in ['s', 'u'] {
                let (least, most) = if sign == 's' {
                    (-(1i128 << (bits - 1)), (1i128 << (bits - 1)) - 1)
                } else {
                    (0, (1i128 << bits) - 1)
                };
                let clamp = |v: f64| low((v as i128).clamp(least, most), bits);
                let or_top = |v: f64, to: u64| if v.is_nan() { 1 << (bits - 1) } else { to };
                let text = format!("cvt.{rounding}.{sign}{bits}.f32 {y}0, r1");
                check(&text, [&values, NONE, NONE], |a, _, _| {
                    let value = whole(f64::from(single(a)), rounding);
                    if bits == 64 { or_top(value, clamp(value)) } else { clamp(value) }
                });
                let doubles: Vec<u64> =
                    values.iter().map(|v| f64::from(single(*v)).to_bits()).collect();
                let text = format!("cvt.{rounding}.{sign}{bits}.f64 {y}0, d1");
                check(&text, [&doubles, NONE, NONE], |a, _, _| {
                    let value = whole(f64::from_bits(a), rounding);
                    or_top(value, clamp(value))
                });
            }
        }
        check(&format!("cvt.{rounding}.f32.f32 r0, r1"), [&values, NONE, NONE], |a, _, _| {
            let value = whole(f64::from(single(a)), rounding) as f32;
            if value.is_nan() { 0x7fff_ffff } else { u64::from(value.to_bits()) }
        });
        check(&format!("cvt.{rounding}.s8.f32 r0, r1"), [&values, NONE, NONE], |a, _, _| {
            let value = whole(f64::from(single(a)), rounding) as i128;
            low(value.clamp(-128, 127), 32)
        });
    }
}

#[test]
fn whole_numbers_become_singles_and_doubles_in_every_rounding() {
    for (suffix, mode) in MODES {
        for (bits, x) in [(16u32, 'h'), (32, 'r')] {
            check(
                &format!("cvt.{suffix}.f32.s{bits} r0, {x}1"),
                [&edges(bits), NONE, NONE],
                |a, _, _| F32.round(signed(a, bits) as f64, mode),
            );
            check(
                &format!("cvt.{suffix}.f32.u{bits} r0, {x}1"),
                [&edges(bits), NONE, NONE],
                |a, _, _| F32.round(unsigned(a, bits) as f64, mode),
            );
        }
        // Numbers of 64 bits around a tie of singles.
        let base = 1u64 << 62;
        let ties: Vec<u64> = [0u64, 1, (1 << 38) - 1, 1 << 38, (1 << 38) + 1, (1 << 39) - 1]
            .iter()
            .map(|low| base + low)
            .collect();
        check(&format!("cvt.{suffix}.f32.u64 r0, d1"), [&ties, NONE, NONE], |a, _, _| {
            let step = 1u64 << 39;
            let (below, rest) = (a / step * step, a % step);
            let up = match mode {
                Mode::Up => rest > 0,
                Mode::Nearest => rest > step / 2 || rest == step / 2 && below / step % 2 == 1,
                _ => false,
            };
            u64::from(((below + if up { step } else { 0 }) as f32).to_bits())
        });
    }
    check("cvt.rn.f64.s64 d0, d1", [&edges(64), NONE, NONE], |a, _, _| (a as i64 as f64).to_bits());
    check("cvt.rn.f64.u64 d0, d1", [&edges(64), NONE, NONE], |a, _, _| (a as f64).to_bits());
    check("cvt.rn.f64.u32 d0, r1", [&edges(32), NONE, NONE], |a, _, _| (a as f64).to_bits());
    check("cvt.rn.f16.s32 h0, r1", [&edges(32), NONE, NONE], |a, _, _| {
        F16.round(signed(a, 32) as f64, Mode::Nearest)
    });
}

#[test]
fn singles_become_halves_in_every_rounding() {
    let mut values: Vec<u64> = all_singles().into_iter().filter(|v| !single(*v).is_nan()).collect();
    // Ties, and what lies beside them.
    for tie in
        [1.000_488_3f32, 1.003_906_3, 2.002_93, 65519.9, 65520.0, 3e-8, 2.98e-8, 6.1e-5, 1.0039062]
    {
        for value in [tie, tie.next_up(), tie.next_down(), -tie] {
            values.push(u64::from(value.to_bits()));
        }
    }
    for (suffix, mode) in MODES {
        check(&format!("cvt.{suffix}.f16.f32 h0, r1"), [&values, NONE, NONE], |a, _, _| {
            let value = f64::from(single(a));
            if value.is_infinite() {
                F16.round(value, Mode::Nearest)
            } else {
                F16.round(value, mode)
            }
        });
        check(&format!("cvt.{suffix}.f32.f64 r0, d1"), [&edges(64), NONE, NONE], |a, _, _| {
            let value = f64::from_bits(a);
            if value.is_nan() { 0x7fff_ffff } else { F32.round(value, mode) }
        });
    }
    for (suffix, mode) in [("rn", Mode::Nearest), ("rz", Mode::Zero)] {
        check(&format!("cvt.{suffix}.bf16.f32 h0, r1"), [&values, NONE, NONE], |a, _, _| {
            BF16.round(f64::from(single(a)), mode)
        });
        for (name, format) in [("f16", F16), ("bf16", BF16)] {
            let text = format!("cvt.{suffix}.{name}x2.f32 r0, r1, r2");
            check(&text, [&values[..20], &values[..20], NONE], |a, b, _| {
                let [high, low] = [a, b].map(|x| format.round(f64::from(single(x)), mode));
                high << 16 | low
            });
        }
    }
    assert_eq!(run("cvt.rn.f16.f32 h0, r1", &[[0x7fc0_0000, 0, 0, 0]]), [0x7fff]);
    assert_eq!(run("cvt.rn.relu.bf16.f32 h0, r1", &[[0xbf80_0000, 0, 0, 0]]), [0]);
}

#[test]
fn halves_and_singles_are_widened_exactly() {
    let all: Vec<u64> = (0..0x1_0000).step_by(7).collect();
    check("cvt.f32.f16 r0, h1", [&all, NONE, NONE], |a, _, _| {
        let value = F16.value(a) as f32;
        if value.is_nan() { 0x7fff_ffff } else { u64::from(value.to_bits()) }
    });
    check("cvt.f32.bf16 r0, h1", [&all, NONE, NONE], |a, _, _| {
        let value = BF16.value(a) as f32;
        if value.is_nan() { 0x7fff_ffff } else { u64::from(value.to_bits()) }
    });
    let numbers: Vec<u64> = all_singles().into_iter().filter(|v| !single(*v).is_nan()).collect();
    check("cvt.f64.f32 d0, r1", [&numbers, NONE, NONE], |a, _, _| f64::from(single(a)).to_bits());
    check("cvt.sat.f32.f32 r0, r1", [&all_singles(), NONE, NONE], |a, _, _| {
        let value = single(a);
        if value.is_nan() { 0 } else { u64::from((value.clamp(0.0, 1.0) + 0.0).to_bits()) }
    });
    check("cvt.ftz.f32.f32 r0, r1", [&numbers, NONE, NONE], |a, _, _| {
        if single(a).is_subnormal() { a & 0x8000_0000 } else { a }
    });
}

/// All values of an 8-bit format with the bits that stand for them.
fn eight(exponent: u32, fraction: u32, finite_only: bool) -> Vec<(f64, u64)> {
    let bias = (1 << (exponent - 1)) - 1;
    (0..0x80u64)
        .filter_map(|bits| {
            let (e, f) = ((bits >> fraction) as i32, (bits & ((1 << fraction) - 1)) as f64);
            // e4m3 has a NaN and no infinity; e5m2 has both.
            let top = (1 << exponent) - 1;
            if finite_only && bits == 0x7f || !finite_only && e == top {
                return None;
            }
            let scale = 2f64.powi(fraction as i32);
            let value = if e == 0 {
                f / scale * 2f64.powi(1 - bias)
            } else {
                (1.0 + f / scale) * 2f64.powi(e - bias)
            };
            Some((value, bits))
        })
        .collect()
}

#[test]
fn numbers_of_8_bits_round_to_the_nearest_and_never_overflow() {
    let mut inputs: Vec<u64> = all_singles().into_iter().filter(|v| !single(*v).is_nan()).collect();
    inputs.extend((0..200).map(|i| u64::from((i as f32 * 0.013_7).to_bits())));
    inputs.extend(
        [0.0625f32, 1.0625, 1.1875, 440.0, 464.0, 465.0, 57344.0].map(|v| u64::from(v.to_bits())),
    );
    for (name, values) in [("e4m3x2", eight(4, 3, true)), ("e5m2x2", eight(5, 2, false))] {
        let nearest = |value: f32| {
            let magnitude = f64::from(value.abs());
            let best = values.iter().min_by(|(a, x), (b, y)| {
                let (left, right) = ((a - magnitude).abs(), (b - magnitude).abs());
                left.total_cmp(&right).then((x & 1).cmp(&(y & 1)))
            });
            let sign = if value.is_sign_negative() { 0x80 } else { 0 };
            let largest = values.last().map_or(0, |(_, bits)| *bits);
            let above = values.last().is_some_and(|(value, _)| magnitude > *value);
            sign | if above { largest } else { best.map_or(0, |(_, bits)| *bits) }
        };
        check(
            &format!("cvt.rn.satfinite.{name}.f32 h0, r1, r2"),
            [&inputs, &inputs[..8], NONE],
            |a, b, _| nearest(single(a)) << 8 | nearest(single(b)),
        );
        let pairs: Vec<u64> = values.iter().map(|(_, bits)| bits << 8 | 0x80 | bits).collect();
        check(&format!("cvt.rn.f16x2.{name} r0, h1"), [&pairs, NONE, NONE], |a, _, _| {
            let find = |bits: u64| {
                let value = values.iter().find(|(_, b)| *b == bits & 0x7f).map_or(0.0, |(v, _)| *v);
                F16.round(if bits & 0x80 != 0 { -value } else { value }, Mode::Nearest)
            };
            find(a >> 8) << 16 | find(a & 0xff)
        });
    }
}

#[test]
fn tf32_keeps_10_bits_of_the_fraction() {
    let values = [0x3f80_0fff, 0x3f80_1000, 0x3f80_1001, 0x3f80_3000, 0xbf80_1000, 0x7f80_0000];
    check("cvt.rna.tf32.f32 r0, r1", [&values, NONE, NONE], |a, _, _| {
        if a == 0x7f80_0000 { a } else { (a + 0x1000) & !0x1fff }
    });
    check("cvt.rz.tf32.f32 r0, r1", [&values, NONE, NONE], |a, _, _| a & !0x1fff);
    check("cvt.rn.tf32.f32 r0, r1", [&values, NONE, NONE], |a, _, _| {
        let (below, rest) = (a & !0x1fff, a & 0x1fff);
        let up = rest > 0x1000 || rest == 0x1000 && below >> 13 & 1 == 1;
        if up { below + 0x2000 } else { below }
    });
}

#[test]
fn registers_are_packed_and_unpacked() {
    let v = edges(32);
    check("mov.b64 d0, {r1, r2}", [&v, &v, NONE], |a, b, _| b << 32 | a);
    check("mov.b32 r0, {h1, h2}", [&v, &v, NONE], |a, b, _| (b & 0xffff) << 16 | a & 0xffff);
    let found = run("mov.u32 r0, 0; mov.b64 {r0, r4}, d1", &[[0x1234_5678_9abc_def0, 0, 0, 0]]);
    assert_eq!(found, [0x9abc_def0]);
    let found = run("mov.u32 r0, 0; mov.b64 {_, r0}, d1", &[[0x1234_5678_9abc_def0, 0, 0, 0]]);
    assert_eq!(found, [0x1234_5678]);
    let found =
        run("mov.u16 h0, 0; mov.b64 {h5, h0, h5, h5}, d1", &[[0x1234_5678_9abc_def0, 0, 0, 0]]);
    assert_eq!(found, [0x9abc]);
}
