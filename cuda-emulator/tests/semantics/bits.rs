use crate::harness::{NONE, check, edges, low, signed, unsigned};

const AMOUNTS: &[u64] = &[0, 1, 5, 15, 16, 17, 31, 32, 33, 63, 64, 65, 255, 256, 0xffff_ffff];

#[test]
fn logic_works_bit_by_bit() {
    for (bits, x) in [(16, 'h'), (32, 'r'), (64, 'd')] {
        let v = edges(bits);
        check(&format!("and.b{bits} {x}0, {x}1, {x}2"), [&v, &v, NONE], |a, b, _| a & b);
        check(&format!("or.b{bits} {x}0, {x}1, {x}2"), [&v, &v, NONE], |a, b, _| a | b);
        check(&format!("xor.b{bits} {x}0, {x}1, {x}2"), [&v, &v, NONE], |a, b, _| a ^ b);
        check(&format!("not.b{bits} {x}0, {x}1"), [&v, NONE, NONE], |a, _, _| {
            low(!i128::from(a), bits)
        });
        check(&format!("cnot.b{bits} {x}0, {x}1"), [&v, NONE, NONE], |a, _, _| u64::from(a == 0));
    }
}

#[test]
fn shifts_beyond_the_width_leave_zeros_or_the_sign() {
    for (bits, x) in [(16, 'h'), (32, 'r'), (64, 'd')] {
        let v = edges(bits);
        // Amounts are 32 bits wide, and more than 127 is as good as 127.
        let amount = |n: u64| n.min(120) as u32;
        check(&format!("shl.b{bits} {x}0, {x}1, r2"), [&v, AMOUNTS, NONE], |a, n, _| {
            if n >= 64 { 0 } else { low(i128::from(a) << amount(n).min(63), bits) }
        });
        check(&format!("shr.u{bits} {x}0, {x}1, r2"), [&v, AMOUNTS, NONE], |a, n, _| {
            low(unsigned(a, bits) >> amount(n), bits)
        });
        check(&format!("shr.b{bits} {x}0, {x}1, r2"), [&v, AMOUNTS, NONE], |a, n, _| {
            low(unsigned(a, bits) >> amount(n), bits)
        });
        check(&format!("shr.s{bits} {x}0, {x}1, r2"), [&v, AMOUNTS, NONE], |a, n, _| {
            low(signed(a, bits) >> amount(n), bits)
        });
    }
}

#[test]
fn funnel_shifts_wrap_or_stop_at_32() {
    let values = [0u64, 1, 0x8000_0000, 0x1234_5678, 0xffff_ffff];
    for (mode, wraps) in [("wrap", true), ("clamp", false)] {
        let amount = |n: u64| if wraps { n % 32 } else { n.min(32) };
        let both = |low: u64, high: u64| u128::from(high << 32 | low);
        check(
            &format!("shf.l.{mode}.b32 r0, r1, r2, r3"),
            [&values, &values, AMOUNTS],
            |a, b, n| (both(a, b) << amount(n) >> 32) as u64 & 0xffff_ffff,
        );
        check(
            &format!("shf.r.{mode}.b32 r0, r1, r2, r3"),
            [&values, &values, AMOUNTS],
            |a, b, n| (both(a, b) >> amount(n)) as u64 & 0xffff_ffff,
        );
    }
}

#[test]
fn lop3_looks_every_bit_up() {
    let values = [0u64, 0xffff_ffff, 0x0f0f_0f0f, 0x1234_5678];
    for table in [0u64, 0x80, 0xfe, 0x96, 0xe8, 0xca, 0x6a, 0xff, 0x01] {
        let text = format!("lop3.b32 r0, r1, r2, r3, {table}");
        check(&text, [&values, &values, &values], |a, b, c| {
            (0..32).fold(0, |all, bit| {
                let row = (a >> bit & 1) << 2 | (b >> bit & 1) << 1 | c >> bit & 1;
                all | (table >> row & 1) << bit
            })
        });
    }
}

/// The algorithm of the PTX manual, bit by bit.
fn bfe(a: u64, position: u64, length: u64, width: u64, is_signed: bool) -> u64 {
    let (position, length) = (position & 0xff, length & 0xff);
    let last = width - 1;
    let sign =
        if !is_signed || length == 0 { 0 } else { a >> (position + length - 1).min(last) & 1 };
    (0..width).fold(0, |all, bit| {
        let from = position + bit;
        let value = if bit < length && from <= last { a >> from & 1 } else { sign };
        all | value << bit
    })
}

#[test]
fn fields_are_taken_out_and_put_in() {
    let short = [0u64, 1, 4, 8, 31, 32, 33, 63, 64, 255, 256];
    for is_signed in [false, true] {
        let sign = if is_signed { 's' } else { 'u' };
        for (width, x) in [(32, 'r'), (64, 'd')] {
            let text = format!("bfe.{sign}{width} {x}0, {x}1, r2, r3");
            check(&text, [&edges(width), &short, &short], |a, position, length| {
                bfe(a, position, length, u64::from(width), is_signed)
            });
        }
    }
    check(
        "bfi.b32 r0, r1, 0xaaaaaaaa, r2, r3",
        [&edges(32), &short, &short],
        |a, position, length| {
            (0..32).fold(0xaaaa_aaaa, |all: u64, bit| {
                let inside = bit >= position & 0xff && bit < (position & 0xff) + (length & 0xff);
                if inside {
                    all & !(1 << bit) | (a >> (bit - (position & 0xff)) & 1) << bit
                } else {
                    all
                }
            })
        },
    );
    check("bfi.b64 d0, d1, 0, r2, r3", [&edges(64), &short, &short], |a, position, length| {
        (0..64).fold(0, |all: u64, bit| {
            let inside = bit >= position & 0xff && bit < (position & 0xff) + (length & 0xff);
            if inside { all | (a >> (bit - (position & 0xff)) & 1) << bit } else { all }
        })
    });
}

#[test]
fn bits_are_counted_and_found() {
    for (bits, x) in [(32u32, 'r'), (64, 'd')] {
        let v = edges(bits);
        let ones = |a: u64| (0..bits).filter(|bit| a >> bit & 1 == 1).collect::<Vec<_>>();
        check(&format!("popc.b{bits} r0, {x}1"), [&v, NONE, NONE], |a, _, _| ones(a).len() as u64);
        check(&format!("clz.b{bits} r0, {x}1"), [&v, NONE, NONE], |a, _, _| {
            ones(a).last().map_or(u64::from(bits), |last| u64::from(bits - 1 - last))
        });
        check(&format!("brev.b{bits} {x}0, {x}1"), [&v, NONE, NONE], |a, _, _| {
            ones(a).iter().fold(0, |all, bit| all | 1 << (bits - 1 - bit))
        });
        check(&format!("bfind.u{bits} r0, {x}1"), [&v, NONE, NONE], |a, _, _| {
            ones(a).last().map_or(0xffff_ffff, |last| u64::from(*last))
        });
        check(&format!("bfind.s{bits} r0, {x}1"), [&v, NONE, NONE], |a, _, _| {
            let flipped = if signed(a, bits) < 0 { low(!i128::from(a), bits) } else { a };
            ones(flipped).last().map_or(0xffff_ffff, |last| u64::from(*last))
        });
        check(&format!("bfind.shiftamt.u{bits} r0, {x}1"), [&v, NONE, NONE], |a, _, _| {
            ones(a).last().map_or(0xffff_ffff, |last| u64::from(bits - 1 - last))
        });
    }
}

#[test]
fn the_nth_set_bit_is_found_in_either_direction() {
    let offsets = [0u64, 1, 2, 3, 0xffff_ffff, 0xffff_fffe];
    check(
        "fns.b32 r0, r1, r2, r3",
        [&[0xaaaa_aaaa, 0, 0xffff_ffff, 0x10], &[0, 5, 31], &offsets],
        |mask, base, offset| {
            let n = offset as u32 as i32;
            let set = |bit: &i64| mask >> bit & 1 == 1;
            let found = if n == 0 {
                Some(base as i64).filter(set)
            } else if n > 0 {
                (base as i64..32).filter(set).nth(n as usize - 1)
            } else {
                (0..=base as i64).rev().filter(set).nth(-n as usize - 1)
            };
            found.map_or(0xffff_ffff, |bit| bit as u64)
        },
    );
}

#[test]
fn masks_and_extensions_wrap_or_clamp() {
    check("bmsk.clamp.b32 r0, r1, r2", [AMOUNTS, AMOUNTS, NONE], |position, length, _| {
        (0..32)
            .filter(|b| *b >= position.min(32) && *b < position.min(32) + length.min(32))
            .fold(0, |all, b| all | 1 << b)
    });
    check("szext.wrap.s32 r0, r1, r2", [&edges(32), AMOUNTS, NONE], |a, length, _| {
        let length = (length & 31) as u32;
        if length == 0 { 0 } else { low(signed(a, length), 32) }
    });
    check("szext.clamp.u32 r0, r1, r2", [&edges(32), AMOUNTS, NONE], |a, length, _| {
        let length = length.min(32) as u32;
        if length == 0 { 0 } else { low(unsigned(a, length), 32) }
    });
}

#[test]
fn bytes_are_permuted() {
    let selectors = [0x3210u64, 0x7654, 0x0123, 0x8fa9, 0xffff, 0x4444, 0x3715];
    let byte = |a: u64, b: u64, index: u64| (a | b << 32) >> (8 * (index % 8)) & 0xff;
    check(
        "prmt.b32 r0, r1, r2, r3",
        [&[0x8877_6655, 0x0102_0384], &[0xccbb_aa99, 0x7f], &selectors],
        |a, b, s| {
            (0..4).fold(0, |all, place| {
                let choice = s >> (4 * place) & 15;
                let value = byte(a, b, choice);
                let value = if choice > 7 { if value > 127 { 0xff } else { 0 } } else { value };
                all | value << (8 * place)
            })
        },
    );
    // From the table of the PTX manual: for each selector the bytes from the highest to the lowest.
    let table = [
        ("f4e", [[3, 2, 1, 0], [4, 3, 2, 1], [5, 4, 3, 2], [6, 5, 4, 3]]),
        ("b4e", [[5, 6, 7, 0], [6, 7, 0, 1], [7, 0, 1, 2], [0, 1, 2, 3]]),
        ("rc8", [[0, 0, 0, 0], [1, 1, 1, 1], [2, 2, 2, 2], [3, 3, 3, 3]]),
        ("ecl", [[3, 2, 1, 0], [3, 2, 1, 1], [3, 2, 2, 2], [3, 3, 3, 3]]),
        ("ecr", [[0, 0, 0, 0], [1, 1, 1, 0], [2, 2, 1, 0], [3, 2, 1, 0]]),
        ("rc16", [[1, 0, 1, 0], [3, 2, 3, 2], [1, 0, 1, 0], [3, 2, 3, 2]]),
    ];
    for (mode, rows) in table {
        let text = format!("prmt.b32.{mode} r0, r1, r2, r3");
        check(&text, [&[0x4433_2211], &[0x8877_6655], &[0, 1, 2, 3]], |a, b, s| {
            rows[s as usize].iter().fold(0, |all, index| all << 8 | byte(a, b, *index))
        });
    }
}
