use crate::exact::{BF16, F16, F32, Format, MODES, Mode, all_singles, bits, single, singles};
use crate::harness::{NONE, check, run};

fn doubles() -> Vec<u64> {
    let values = [
        0.0f64,
        -0.0,
        1.0,
        -1.5,
        1.0 / 3.0,
        1e300,
        -1e-300,
        f64::MAX,
        f64::MIN_POSITIVE,
        5e-324,
        f64::INFINITY,
        f64::NEG_INFINITY,
        0.1,
        3.0,
    ];
    values.iter().map(|value| value.to_bits()).collect()
}

#[test]
fn singles_are_added_multiplied_and_divided_in_every_rounding() {
    let values = singles();
    let op = |name: &str, f: &dyn Fn(f64, f64) -> f64| {
        for (suffix, mode) in MODES {
            let text = format!("{name}.{suffix}.f32 r0, r1, r2");
            check(&text, [&values, &values, NONE], |a, b, _| {
                let exact = f(f64::from(single(a)), f64::from(single(b)));
                // The sign of a sum that is zero depends on the rounding.
                let zero = exact == 0.0 && name != "mul" && single(a) != 0.0;
                if zero && mode == Mode::Down { 0x8000_0000 } else { F32.round(exact, mode) }
            });
        }
    };
    op("mul", &|a, b| a * b);
    for (suffix, mode) in MODES {
        // Zeros of sums are left out: their sign follows other rules.
        let some: Vec<u64> = values[2..].to_vec();
        for (name, sign) in [("add", 1.0), ("sub", -1.0)] {
            check(&format!("{name}.{suffix}.f32 r0, r1, r2"), [&some, &some, NONE], |a, b, _| {
                let exact = f64::from(single(a)) + sign * f64::from(single(b));
                if exact == 0.0 {
                    return if mode == Mode::Down { 0x8000_0000 } else { 0 };
                }
                F32.round(exact, mode)
            });
        }
    }
}

#[test]
fn quotients_and_roots_are_rounded_in_every_direction() {
    let values = &singles()[2..];
    for (suffix, mode) in MODES {
        check(&format!("div.{suffix}.f32 r0, r1, r2"), [values, values, NONE], |a, b, _| {
            let (a, b) = (f64::from(single(a)), f64::from(single(b)));
            // The double nearest to the quotient lies on the same side of every single: a
            // quotient of singles is a single or has more than 24 bits before it repeats.
            F32.round(a / b, mode)
        });
        check(&format!("rcp.{suffix}.f32 r0, r1"), [values, NONE, NONE], |a, _, _| {
            F32.round(1.0 / f64::from(single(a)), mode)
        });
        let positive: Vec<u64> = values.iter().copied().filter(|v| single(*v) > 0.0).collect();
        check(&format!("sqrt.{suffix}.f32 r0, r1"), [&positive, NONE, NONE], |a, _, _| {
            F32.round(f64::from(single(a)).sqrt(), mode)
        });
    }
    check(
        "sqrt.rn.f32 r0, r1",
        [&[0xbf80_0000, 0x8000_0000, 0x7f80_0000], NONE, NONE],
        |a, _, _| bits(single(a).sqrt()),
    );
    check("div.rn.f32 r0, r1, r2", [&all_singles(), &all_singles(), NONE], |a, b, _| {
        bits(single(a) / single(b))
    });
}

#[test]
fn a_fused_product_is_rounded_once() {
    let values = singles();
    let few = &values[2..];
    for (suffix, mode) in MODES {
        check(&format!("fma.{suffix}.f32 r0, r1, r2, r3"), [few, few, few], |a, b, c| {
            let [a, b, c] = [a, b, c].map(|x| f64::from(single(x)));
            // Exact for these values: the products have 48 bits and lie near the addends.
            let sum = a * b + c;
            if sum == 0.0 {
                return if mode == Mode::Down { 0x8000_0000 } else { 0 };
            }
            let of_c = sum - a * b;
            let error = (a * b - (sum - of_c)) + (c - of_c);
            // A little of the error decides where the sum alone would be a tie or exact.
            let hint = if error == 0.0 {
                sum
            } else if error > 0.0 {
                sum.next_up()
            } else {
                sum.next_down()
            };
            F32.round(hint, mode)
        });
    }
    let one = single(0x3f80_0001);
    check("fma.rn.f32 r0, r1, r1, 0fBF800002", [&[0x3f80_0001], NONE, NONE], |_, _, _| {
        bits((f64::from(one) * f64::from(one) - f64::from(single(0x3f80_0002))) as f32)
    });
    check("mad.rn.f32 r0, r1, r2, r3", [&all_singles(), &singles(), &[0x3f80_0000]], |a, b, c| {
        bits(single(a).mul_add(single(b), single(c)))
    });
}

#[test]
fn special_values_give_the_nan_of_the_hardware() {
    let values = all_singles();
    check("add.f32 r0, r1, r2", [&values, &values, NONE], |a, b, _| bits(single(a) + single(b)));
    check("sub.f32 r0, r1, r2", [&values, &values, NONE], |a, b, _| bits(single(a) - single(b)));
    check("mul.f32 r0, r1, r2", [&values, &values, NONE], |a, b, _| bits(single(a) * single(b)));
}

fn flushed(value: f32) -> f32 {
    if value.is_subnormal() { 0.0f32.copysign(value) } else { value }
}

#[test]
fn flushing_turns_subnormal_operands_and_results_to_zero() {
    let values = all_singles();
    let f = |x: u64| flushed(single(x));
    check("add.ftz.f32 r0, r1, r2", [&values, &values, NONE], |a, b, _| bits(flushed(f(a) + f(b))));
    check("mul.rn.ftz.f32 r0, r1, r2", [&values, &values, NONE], |a, b, _| {
        bits(flushed(f(a) * f(b)))
    });
    check("fma.rn.ftz.f32 r0, r1, r2, r3", [&values, &values, &[0, 0x0080_0000, 1]], |a, b, c| {
        bits(flushed(f(a).mul_add(f(b), f(c))))
    });
    check("abs.ftz.f32 r0, r1", [&values, NONE, NONE], |a, _, _| {
        let value = f(a);
        u64::from(value.to_bits() & 0x7fff_ffff)
    });
}

#[test]
fn saturation_clamps_to_zero_and_one() {
    let values = all_singles();
    let clamp =
        |x: f32| if x.is_nan() { 0 } else { u64::from((x.clamp(0.0, 1.0) + 0.0).to_bits()) };
    check("add.sat.f32 r0, r1, r2", [&values, &values, NONE], |a, b, _| {
        clamp(single(a) + single(b))
    });
    check("fma.rn.sat.f32 r0, r1, r2, 0f00000000", [&values, &values, NONE], |a, b, _| {
        clamp(single(a).mul_add(single(b), 0.0))
    });
}

#[test]
fn doubles_are_exact_to_the_last_bit() {
    let values = doubles();
    let d = f64::from_bits;
    let same = |found: &str, f: &dyn Fn(f64, f64) -> f64| {
        let operands: Vec<[u64; 4]> =
            values.iter().flat_map(|a| values.iter().map(move |b| [*a, *b, 0, 0])).collect();
        for (found_bits, [a, b, ..]) in run(found, &operands).into_iter().zip(&operands) {
            let (found_value, wanted) = (d(found_bits), f(d(*a), d(*b)));
            let equal = found_bits == wanted.to_bits() || found_value.is_nan() && wanted.is_nan();
            assert!(equal, "{found}: {} {}: {found_value} not {wanted}", d(*a), d(*b));
        }
    };
    same("add.rn.f64 d0, d1, d2", &|a, b| a + b);
    same("sub.f64 d0, d1, d2", &|a, b| a - b);
    same("mul.f64 d0, d1, d2", &|a, b| a * b);
    same("div.rn.f64 d0, d1, d2", &|a, b| a / b);
    same("fma.rn.f64 d0, d1, d2, d1", &|a, b| a.mul_add(b, a));
    same("copysign.f64 d0, d1, d2", &|a, b| b.copysign(a));
    same("neg.f64 d0, d1", &|a, _| -a);
    same("abs.f64 d0, d1", &|a, _| a.abs());
    same("sqrt.rn.f64 d0, d1", &|a, _| a.sqrt());
    // Directed roundings enclose the exact result, one step apart.
    for name in ["add", "mul"] {
        let some: Vec<u64> =
            [1.0f64, 1.0 / 3.0, -0.1, 3.0, 1e10].iter().map(|v| v.to_bits()).collect();
        let operands: Vec<[u64; 4]> =
            some.iter().flat_map(|a| some.iter().map(move |b| [*a, *b, 0, 0])).collect();
        let result = |mode: &str| run(&format!("{name}.{mode}.f64 d0, d1, d2"), &operands);
        let [near, zero, down, up] = ["rn", "rz", "rm", "rp"].map(result);
        for index in 0..operands.len() {
            let [near, zero, down, up] = [near[index], zero[index], down[index], up[index]].map(d);
            assert!(down == up || down.next_up() == up);
            assert!(near == down || near == up);
            assert_eq!(zero, if near > 0.0 { down } else { up });
        }
    }
}

#[test]
fn smaller_and_larger_know_signed_zeros_and_nan() {
    let values = all_singles();
    let order = |a: f32, b: f32, max: bool, nan: bool| -> u64 {
        match (a.is_nan(), b.is_nan()) {
            (true, _) | (_, true) if nan => 0x7fff_ffff,
            (true, true) => 0x7fff_ffff,
            (true, false) => u64::from(b.to_bits()),
            (false, true) => u64::from(a.to_bits()),
            _ => {
                let first = a.total_cmp(&b).is_gt() == max || a.to_bits() == b.to_bits();
                u64::from(if first { a } else { b }.to_bits())
            }
        }
    };
    for (name, max) in [("min", false), ("max", true)] {
        check(&format!("{name}.f32 r0, r1, r2"), [&values, &values, NONE], |a, b, _| {
            order(single(a), single(b), max, false)
        });
        check(&format!("{name}.NaN.f32 r0, r1, r2"), [&values, &values, NONE], |a, b, _| {
            order(single(a), single(b), max, true)
        });
        check(
            &format!("{name}.xorsign.abs.f32 r0, r1, r2"),
            [&singles(), &singles(), NONE],
            |a, b, _| {
                let (a, b) = (single(a), single(b));
                let chosen = if max { a.abs().max(b.abs()) } else { a.abs().min(b.abs()) };
                let negative = a.is_sign_negative() != b.is_sign_negative();
                u64::from(if negative { -chosen } else { chosen }.to_bits())
            },
        );
    }
    let doubles = doubles();
    check("min.f64 d0, d1, d2", [&doubles, &doubles, NONE], |a, b, _| {
        let (x, y) = (f64::from_bits(a), f64::from_bits(b));
        if x.total_cmp(&y).is_lt() { a } else { b }
    });
}

#[test]
fn classes_of_numbers_are_told_apart() {
    let values = all_singles();
    for (name, test) in [
        ("finite", (|x: f32| x.is_finite()) as fn(f32) -> bool),
        ("infinite", |x| x.is_infinite()),
        ("number", |x| !x.is_nan()),
        ("notanumber", |x| x.is_nan()),
        ("normal", |x| x.is_normal()),
        ("subnormal", |x| x.is_subnormal()),
    ] {
        check(&format!("testp.{name}.f32 p0, r1"), [&values, NONE, NONE], |a, _, _| {
            u64::from(test(single(a)))
        });
    }
    check("copysign.f32 r0, r1, r2", [&values, &values, NONE], |a, b, _| {
        b & 0x7fff_ffff | a & 0x8000_0000
    });
    check("neg.f32 r0, r1", [&values, NONE, NONE], |a, _, _| a ^ 0x8000_0000);
}

/// 16-bit values at the edges of a format.
fn halves(format: Format) -> Vec<u64> {
    let values = [0.0, 1.0, -1.5, 0.1, 3.0, 1.0 / 3.0, 250.0, -1000.0, 1e-5, 6e4];
    let mut all: Vec<u64> = values.iter().map(|v| format.round(*v, Mode::Nearest)).collect();
    all.extend([0x0001, 0x8000, 0x03ff, 0x7bff]);
    all
}

#[test]
fn halves_are_rounded_once() {
    for (name, format) in [("f16", F16), ("bf16", BF16)] {
        let values = halves(format);
        let half = |f: &dyn Fn(f64, f64) -> f64, a: u64, b: u64| {
            let exact = f(format.value(a), format.value(b));
            format.round(exact, Mode::Nearest)
        };
        let some: Vec<u64> = values.iter().copied().filter(|v| format.value(*v) != 0.0).collect();
        check(&format!("mul.{name} h0, h1, h2"), [&values, &values, NONE], |a, b, _| {
            half(&|a, b| a * b, a, b)
        });
        check(&format!("add.{name} h0, h1, h2"), [&some, &some, NONE], |a, b, _| {
            half(&|a, b| a + b + 0.0, a, b)
        });
        check(&format!("sub.{name} h0, h1, h2"), [&some, &some, NONE], |a, b, _| {
            half(&|a, b| a - b + 0.0, a, b)
        });
        check(&format!("fma.rn.{name} h0, h1, h2, h3"), [&some, &some, &some[..6]], |a, b, c| {
            let (product, c) = (format.value(a) * format.value(b), format.value(c));
            let sum = product + c;
            let of_c = sum - product;
            let error = (product - (sum - of_c)) + (c - of_c);
            let hint = if error == 0.0 {
                sum
            } else if error > 0.0 {
                sum.next_up()
            } else {
                sum.next_down()
            };
            format.round(hint, Mode::Nearest)
        });
        let pair = |x: u64, y: u64| x | y << 16;
        let (x, y) = (some[0], some[2]);
        let found = run(&format!("mul.{name}x2 r0, r1, r2"), &[[pair(x, y), pair(y, y), 0, 0]]);
        let product =
            |a: u64, b: u64| format.round(format.value(a) * format.value(b), Mode::Nearest);
        assert_eq!(found, [pair(product(x, y), product(y, y))]);
        check(&format!("max.{name} h0, h1, h2"), [&some, &some, NONE], |a, b, _| {
            if format.value(a) > format.value(b) { a } else { b }
        });
    }
    // NaN and the flags that halves have.
    assert_eq!(run("add.f16 h0, h1, h2", &[[0x7c00, 0xfc00, 0, 0]]), [0x7fff]);
    assert_eq!(run("fma.rn.relu.f16 h0, h1, h2, h3", &[[0x3c00, 0xbc00, 0, 0]]), [0]);
    assert_eq!(run("fma.rn.sat.f16 h0, h1, h2, h3", &[[0x4000, 0x4000, 0, 0]]), [0x3c00]);
    assert_eq!(run("mul.ftz.f16 h0, h1, h2", &[[0x0001, 0x3c00, 0, 0]]), [0]);
}

#[test]
fn approximate_functions_stay_within_their_error() {
    let inputs: Vec<[u64; 4]> = (1..400)
        .map(|i| {
            [u64::from((i as f32 * 0.037).to_bits()), u64::from((i as f32 * 0.9).to_bits()), 0, 0]
        })
        .collect();
    let close = |text: &str, relative: f64, absolute: f64, f: &dyn Fn(f64, f64) -> f64| {
        for (found, [a, b, ..]) in run(text, &inputs).into_iter().zip(&inputs) {
            let wanted = f(f64::from(single(*a)), f64::from(single(*b)));
            let error = (f64::from(single(found)) - wanted).abs();
            assert!(error <= wanted.abs() * relative + absolute, "{text}: {}", single(*a));
        }
    };
    let ulp = 2f64.powi(-23);
    close("ex2.approx.f32 r0, r1", 2.0 * ulp, 0.0, &|a, _| a.exp2());
    close("lg2.approx.f32 r0, r1", ulp, 2f64.powi(-22), &|a, _| a.log2());
    close("rcp.approx.f32 r0, r1", ulp, 0.0, &|a, _| 1.0 / a);
    close("rsqrt.approx.f32 r0, r1", 2.0 * ulp, 0.0, &|a, _| 1.0 / a.sqrt());
    close("sqrt.approx.f32 r0, r1", 2.0 * ulp, 0.0, &|a, _| a.sqrt());
    close("sin.approx.f32 r0, r1", 0.0, 2f64.powi(-20), &|a, _| a.sin());
    close("cos.approx.f32 r0, r1", 0.0, 2f64.powi(-20), &|a, _| a.cos());
    close("tanh.approx.f32 r0, r1", 2f64.powi(-11), 0.0, &|a, _| a.tanh());
    close("div.approx.f32 r0, r1, r2", 2.0 * ulp, 0.0, &|a, b| a / b);
    close("div.full.f32 r0, r1, r2", 2.0 * ulp, 0.0, &|a, b| a / b);
    // Special values.
    assert_eq!(run("ex2.approx.ftz.f32 r0, r1", &[[0xff80_0000, 0, 0, 0]]), [0]);
    assert_eq!(run("rcp.approx.f32 r0, r1", &[[0x8000_0000, 0, 0, 0]]), [0xff80_0000]);
    assert_eq!(run("lg2.approx.f32 r0, r1", &[[0, 0, 0, 0]]), [0xff80_0000]);
    assert_eq!(run("rsqrt.approx.f32 r0, r1", &[[0xbf80_0000, 0, 0, 0]]), [0x7fff_ffff]);
}

#[test]
fn approximate_halves_are_off_by_what_ptx_allows_when_perturbed() {
    // x from -1 to almost 1, and the bounds, relative or absolute, with the rounding of the format.
    let cases: [(&str, f64, f64, bool); 4] = [
        ("ex2.approx.f16", 0.0011, 0.0005, true),
        ("ex2.approx.ftz.bf16", 0.0079, 0.004, true),
        ("tanh.approx.f16", 0.0005, 0.0005, false),
        ("tanh.approx.bf16", 0.004, 0.004, false),
    ];
    for (name, bound, rounding, is_relative) in cases {
        let ty = if name.ends_with("bf16") { "bf16" } else { "f16" };
        let text = format!(
            "cvt.rn.f32.u32 r0, r150; fma.rn.f32 r0, r0, 0f3D800000, 0fBF800000;
             cvt.rn.{ty}.f32 h0, r0; {name} h1, h0; mov.u16 h2, 0; mov.b32 r1, {{h1, h0}}; st.global.u32 [d1], r1;"
        );
        let run =
            |perturb| crate::block::Body { text: &text, perturb, ..Default::default() }.words();
        let value = |bits: u32| -> f64 {
            if ty == "bf16" {
                return f64::from(f32::from_bits(bits << 16));
            }
            let magnitude = f64::from(bits & 0x3ff | 0x400) / 1024.0;
            let scaled = magnitude * 2f64.powi((bits >> 10 & 31) as i32 - 15);
            if bits & 0x7fff == 0 {
                0.0
            } else if bits >> 15 == 1 {
                -scaled
            } else {
                scaled
            }
        };
        let mut largest = 0f64;
        for (exact, moved) in run(None).into_iter().zip(run(Some(5))) {
            let x = value(exact >> 16);
            let truth = if name.starts_with("ex2") { x.exp2() } else { x.tanh() };
            let unit = if is_relative { truth } else { 1.0 };
            let off = |word: u32| (value(word & 0xffff) - truth).abs() / unit;
            assert!(off(exact) <= rounding, "{name}: {x}");
            assert!(off(moved) <= bound + rounding, "{name}: {x}");
            largest = largest.max(off(moved));
        }
        assert!(largest > rounding, "{name}: {largest}");
    }
}
