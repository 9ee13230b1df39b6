use crate::harness::{NONE, check, edges, low, run, signed, unsigned};

/// The letter of registers of this many bits.
fn letter(bits: u32) -> char {
    match bits {
        16 => 'h',
        32 => 'r',
        _ => 'd',
    }
}

/// Checks both signs of an instruction `name.{u,s}bits d, a, b`.
fn both(name: &str, bits: u32, f: impl Fn(i128, i128, bool) -> i128) {
    let x = letter(bits);
    let values = edges(bits);
    for (sign, is_signed) in [('u', false), ('s', true)] {
        let text = format!("{name}.{sign}{bits} {x}0, {x}1, {x}2");
        let number = |v| if is_signed { signed(v, bits) } else { unsigned(v, bits) };
        check(&text, [&values, &values, NONE], |a, b, _| {
            low(f(number(a), number(b), is_signed), bits)
        });
    }
}

#[test]
fn sums_and_products_wrap() {
    for bits in [16, 32, 64] {
        both("add", bits, |a, b, _| a + b);
        both("sub", bits, |a, b, _| a - b);
        both("mul.lo", bits, |a, b, _| a.wrapping_mul(b));
        both("min", bits, |a, b, _| a.min(b));
        both("max", bits, |a, b, _| a.max(b));
    }
    for bits in [16, 32] {
        both("mul.hi", bits, |a, b, _| (a * b) >> bits);
    }
    let values = edges(64);
    check("mul.hi.s64 d0, d1, d2", [&values, &values, NONE], |a, b, _| {
        low((signed(a, 64) * signed(b, 64)) >> 64, 64)
    });
    check("mul.hi.u64 d0, d1, d2", [&values, &values, NONE], |a, b, _| {
        ((u128::from(a) * u128::from(b)) >> 64) as u64
    });
}

#[test]
fn quotients_go_towards_zero_and_by_zero_give_all_ones() {
    for bits in [16, 32, 64] {
        both("div", bits, |a, b, _| if b == 0 { -1 } else { a / b });
        both("rem", bits, |a, b, _| if b == 0 { a } else { a % b });
    }
}

#[test]
fn wide_products_have_twice_the_bits() {
    let values = edges(16);
    check("mul.wide.u16 r0, h1, h2", [&values, &values, NONE], |a, b, _| a * b);
    check("mul.wide.s16 r0, h1, h2", [&values, &values, NONE], |a, b, _| {
        low(signed(a, 16) * signed(b, 16), 32)
    });
    let values = edges(32);
    check("mul.wide.u32 d0, r1, r2", [&values, &values, NONE], |a, b, _| a * b);
    check("mul.wide.s32 d0, r1, r2", [&values, &values, NONE], |a, b, _| {
        low(signed(a, 32) * signed(b, 32), 64)
    });
    let few = &values[..9];
    check("mad.wide.s32 d0, r1, r2, d3", [few, few, &edges(64)], |a, b, c| {
        low(signed(a, 32) * signed(b, 32) + signed(c, 64), 64)
    });
    check("mad.wide.u32 d0, r1, r2, d3", [few, few, &edges(64)], |a, b, c| {
        low(unsigned(a, 32) * unsigned(b, 32) + unsigned(c, 64), 64)
    });
    check("mad.wide.u16 r0, h1, h2, r3", [&edges(16), &edges(16), few], |a, b, c| {
        low(i128::from(a * b + c), 32)
    });
}

#[test]
fn products_are_added_to() {
    for bits in [16, 32, 64] {
        let x = letter(bits);
        let all = edges(bits);
        let few = &all[..11];
        check(&format!("mad.lo.s{bits} {x}0, {x}1, {x}2, {x}3"), [few, few, few], |a, b, c| {
            low(signed(a, bits).wrapping_mul(signed(b, bits)) + signed(c, bits), bits)
        });
        check(&format!("mad.hi.u{bits} {x}0, {x}1, {x}2, {x}3"), [few, few, few], |a, b, c| {
            let high = (u128::from(a) * u128::from(b)) >> bits;
            low(high as i128 + unsigned(c, bits), bits)
        });
        check(&format!("mad.hi.s{bits} {x}0, {x}1, {x}2, {x}3"), [few, few, few], |a, b, c| {
            low(((signed(a, bits) * signed(b, bits)) >> bits) + signed(c, bits), bits)
        });
    }
}

#[test]
fn saturated_sums_stop_at_the_ends() {
    let values = edges(32);
    let clamp = |x: i128| low(x.clamp(i128::from(i32::MIN), i128::from(i32::MAX)), 32);
    check("add.sat.s32 r0, r1, r2", [&values, &values, NONE], |a, b, _| {
        clamp(signed(a, 32) + signed(b, 32))
    });
    check("sub.sat.s32 r0, r1, r2", [&values, &values, NONE], |a, b, _| {
        clamp(signed(a, 32) - signed(b, 32))
    });
}

#[test]
fn the_carry_goes_from_one_word_to_the_next() {
    let values = edges(64);
    let sum = "d0, 0; { .reg .b32 a<6>; mov.b64 {a0, a1}, d1; mov.b64 {a2, a3}, d2;
               add.cc.u32 a4, a0, a2; addc.u32 a5, a1, a3; mov.b64 d0, {a4, a5}; }";
    check(&format!("mov.u64 {sum}"), [&values, &values, NONE], |a, b, _| a.wrapping_add(b));
    let difference = sum.replace("add.cc", "sub.cc").replace("addc", "subc");
    check(&format!("mov.u64 {difference}"), [&values, &values, NONE], |a, b, _| a.wrapping_sub(b));
}

#[test]
fn signs_are_turned_and_dropped() {
    for bits in [16, 32, 64] {
        let (x, values) = (letter(bits), edges(bits));
        check(&format!("neg.s{bits} {x}0, {x}1"), [&values, NONE, NONE], |a, _, _| {
            low(-signed(a, bits), bits)
        });
        check(&format!("abs.s{bits} {x}0, {x}1"), [&values, NONE, NONE], |a, _, _| {
            low(signed(a, bits).abs(), bits)
        });
    }
}

#[test]
fn distances_are_added() {
    let all = edges(32);
    let few = &all[..11];
    check("sad.u32 r0, r1, r2, r3", [few, few, few], |a, b, c| {
        low((unsigned(a, 32) - unsigned(b, 32)).abs() + unsigned(c, 32), 32)
    });
    check("sad.s32 r0, r1, r2, r3", [few, few, few], |a, b, c| {
        low((signed(a, 32) - signed(b, 32)).abs() + signed(c, 32), 32)
    });
    check("sad.s16 h0, h1, h2, h3", [&edges(16), &edges(16), &[5]], |a, b, c| {
        low((signed(a, 16) - signed(b, 16)).abs() + unsigned(c, 16), 16)
    });
}

#[test]
fn products_of_24_bits_take_the_low_bits_of_their_operands() {
    let values = edges(32);
    check("mul24.lo.u32 r0, r1, r2", [&values, &values, NONE], |a, b, _| {
        low(unsigned(a, 24) * unsigned(b, 24), 32)
    });
    check("mul24.hi.s32 r0, r1, r2", [&values, &values, NONE], |a, b, _| {
        low((signed(a, 24) * signed(b, 24)) >> 16, 32)
    });
}

#[test]
fn pairs_are_computed_apart() {
    let values = [0, 0x0001_ffff, 0x8000_7fff, 0xffff_8000, 0x1234_5678];
    let pair = |a: u64, b: u64, f: &dyn Fn(u64, u64) -> u64| {
        f(a & 0xffff, b & 0xffff) & 0xffff | (f(a >> 16, b >> 16) & 0xffff) << 16
    };
    check("add.u16x2 r0, r1, r2", [&values, &values, NONE], |a, b, _| pair(a, b, &|a, b| a + b));
    check("min.u16x2 r0, r1, r2", [&values, &values, NONE], |a, b, _| pair(a, b, &|a, b| a.min(b)));
    check("max.s16x2 r0, r1, r2", [&values, &values, NONE], |a, b, _| {
        pair(a, b, &|a, b| low(signed(a, 16).max(signed(b, 16)), 16))
    });
}

#[test]
fn dot_products_of_bytes_take_each_operand_with_its_sign() {
    let values = [0u64, 0x0102_0304, 0xff80_7f01, 0x8080_8080, 0xffff_ffff];
    for (a_sign, b_sign) in [('s', 's'), ('u', 'u'), ('s', 'u'), ('u', 's')] {
        let byte = |value: u64, index: u32, sign: char| {
            let byte = value >> (8 * index);
            if sign == 's' { signed(byte, 8) } else { unsigned(byte, 8) }
        };
        let text = format!("dp4a.{a_sign}32.{b_sign}32 r0, r1, r2, r3");
        check(&text, [&values, &values, &[0, 7, 0xffff_fff0]], |a, b, c| {
            let sum: i128 = (0..4).map(|i| byte(a, i, a_sign) * byte(b, i, b_sign)).sum();
            low(sum + unsigned(c, 32), 32)
        });
        for (part, first) in [("lo", 0), ("hi", 2)] {
            let half = |value: u64, index: u32| {
                let half = value >> (16 * index);
                if a_sign == 's' { signed(half, 16) } else { unsigned(half, 16) }
            };
            let text = format!("dp2a.{part}.{a_sign}32.{b_sign}32 r0, r1, r2, r3");
            check(&text, [&values, &values, &[9]], |a, b, c| {
                let sum: i128 = (0..2).map(|i| half(a, i) * byte(b, first + i, b_sign)).sum();
                low(sum + unsigned(c, 32), 32)
            });
        }
    }
}

#[test]
fn immediate_operands_are_constants_of_the_right_width() {
    let found = run("add.s32 r0, r1, -5", &[[3, 0, 0, 0]]);
    assert_eq!(found, [0xffff_fffe]);
    assert_eq!(run("add.s64 d0, d1, -5", &[[3, 0, 0, 0]]), [(-2i64) as u64]);
    assert_eq!(run("mul.f32 r0, r1, 0f40000000", &[[0x3f80_0000, 0, 0, 0]]), [0x4000_0000]);
    assert_eq!(run("mov.f64 d0, 0d3FF8000000000000", &[[0; 4]]), [1.5f64.to_bits()]);
    assert_eq!(run("mov.b32 r0, 0f3F800000", &[[0; 4]]), [0x3f80_0000]);
}
