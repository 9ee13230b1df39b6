use crate::exact::{BF16, F16, all_singles, single};
use crate::harness::{NONE, check, edges, signed, unsigned};

type Holds = fn(Option<std::cmp::Ordering>) -> bool;

/// What each comparison gives for an order, which is none when a NaN takes part.
const COMPARISONS: [(&str, Holds); 14] = [
    ("eq", |o| o.is_some_and(|o| o.is_eq())),
    ("ne", |o| o.is_some_and(|o| o.is_ne())),
    ("lt", |o| o.is_some_and(|o| o.is_lt())),
    ("le", |o| o.is_some_and(|o| o.is_le())),
    ("gt", |o| o.is_some_and(|o| o.is_gt())),
    ("ge", |o| o.is_some_and(|o| o.is_ge())),
    ("equ", |o| o.is_none_or(|o| o.is_eq())),
    ("neu", |o| o.is_none_or(|o| o.is_ne())),
    ("ltu", |o| o.is_none_or(|o| o.is_lt())),
    ("leu", |o| o.is_none_or(|o| o.is_le())),
    ("gtu", |o| o.is_none_or(|o| o.is_gt())),
    ("geu", |o| o.is_none_or(|o| o.is_ge())),
    ("num", |o| o.is_some()),
    ("nan", |o| o.is_none()),
];

#[test]
fn whole_numbers_compare_with_their_signs() {
    for (bits, x) in [(16u32, 'h'), (32, 'r'), (64, 'd')] {
        let v = edges(bits);
        for (name, holds) in &COMPARISONS[..6] {
            check(&format!("setp.{name}.s{bits} p0, {x}1, {x}2"), [&v, &v, NONE], |a, b, _| {
                u64::from(holds(Some(signed(a, bits).cmp(&signed(b, bits)))))
            });
            check(&format!("setp.{name}.u{bits} p0, {x}1, {x}2"), [&v, &v, NONE], |a, b, _| {
                u64::from(holds(Some(unsigned(a, bits).cmp(&unsigned(b, bits)))))
            });
        }
    }
    let v = edges(32);
    for (name, like) in [("lo", 2), ("ls", 3), ("hi", 4), ("hs", 5)] {
        check(&format!("setp.{name}.u32 p0, r1, r2"), [&v, &v, NONE], |a, b, _| {
            u64::from(COMPARISONS[like].1(Some(a.cmp(&b))))
        });
    }
}

#[test]
fn nan_compares_as_each_comparison_says() {
    let v = all_singles();
    let halves = [0u64, 0x8000, 0x3c00, 0xbc00, 0x7c00, 0x7e00, 0x0001, 0x3f80];
    for (name, holds) in COMPARISONS {
        check(&format!("setp.{name}.f32 p0, r1, r2"), [&v, &v, NONE], |a, b, _| {
            u64::from(holds(single(a).partial_cmp(&single(b))))
        });
        check(&format!("setp.{name}.ftz.f32 p0, r1, r2"), [&v, &v, NONE], |a, b, _| {
            let [a, b] = [a, b].map(|x| if single(x).is_subnormal() { 0.0 } else { single(x) });
            u64::from(holds(a.partial_cmp(&b)))
        });
        check(&format!("setp.{name}.f16 p0, h1, h2"), [&halves, &halves, NONE], |a, b, _| {
            u64::from(holds(F16.value(a).partial_cmp(&F16.value(b))))
        });
        check(&format!("setp.{name}.bf16 p0, h1, h2"), [&halves, &halves, NONE], |a, b, _| {
            u64::from(holds(BF16.value(a).partial_cmp(&BF16.value(b))))
        });
        check(&format!("set.{name}.u32.f32 r0, r1, r2"), [&v, &v, NONE], |a, b, _| {
            if holds(single(a).partial_cmp(&single(b))) { 0xffff_ffff } else { 0 }
        });
        check(&format!("setp.{name}.f16x2 p0|p5, r1, r2"), [&halves, &halves, NONE], |a, b, _| {
            u64::from(holds(F16.value(a).partial_cmp(&F16.value(b))))
        });
        check(&format!("setp.{name}.f16x2 p5|p0, r1, r2"), [&halves, &halves, NONE], |_, _, _| {
            u64::from(holds(Some(std::cmp::Ordering::Equal)))
        });
    }
    check("set.lt.f32.s32 r0, r1, r2", [&edges(32), &edges(32), NONE], |a, b, _| {
        if signed(a, 32) < signed(b, 32) { 0x3f80_0000 } else { 0 }
    });
    check("set.lt.f16.f16 h0, h1, h2", [&halves, &halves, NONE], |a, b, _| {
        if F16.value(a) < F16.value(b) { 0x3c00 } else { 0 }
    });
}

#[test]
fn comparisons_are_combined_with_predicates() {
    let v = [0u64, 1, 2, 5];
    type Combine = fn(bool, bool) -> bool;
    let ways: [(&str, Combine); 3] =
        [("and", |a, b| a && b), ("or", |a, b| a || b), ("xor", |a, b| a != b)];
    for (name, f) in ways {
        check(&format!("setp.lt.{name}.s32 p0, r1, r2, p3"), [&v, &v, &[0, 1]], |a, b, c| {
            u64::from(f(a < b, c == 1))
        });
        check(&format!("setp.lt.{name}.s32 p5|p0, r1, r2, !p3"), [&v, &v, &[0, 1]], |a, b, c| {
            u64::from(f(a >= b, c == 0))
        });
        check(&format!("{name}.pred p0, p1, p2"), [&v, &v, NONE], |a, b, _| {
            u64::from(f(a & 1 == 1, b & 1 == 1))
        });
    }
    check("not.pred p0, p1", [&v, NONE, NONE], |a, _, _| 1 - (a & 1));
    check("mov.pred p0, p1", [&v, NONE, NONE], |a, _, _| a & 1);
}

#[test]
fn values_are_selected_by_a_predicate_or_a_sign() {
    let v = edges(64);
    check("selp.b64 d0, d1, d2, p3", [&v, &v, &[0, 1]], |a, b, c| if c == 1 { a } else { b });
    let v = edges(32);
    check("selp.f32 r0, r1, r2, !p3", [&v, &v, &[0, 1]], |a, b, c| if c == 0 { a } else { b });
    check("selp.u16 h0, h1, h2, p3", [&v, &v, &[0, 1]], |a, b, c| {
        (if c == 1 { a } else { b }) & 0xffff
    });
    check("slct.u32.s32 r0, r1, r2, r3", [&v, &v, &edges(32)], |a, b, c| {
        if signed(c, 32) >= 0 { a } else { b }
    });
    check("slct.u32.f32 r0, r1, r2, r3", [&[1], &[2], &all_singles()], |a, b, c| {
        if single(c) >= 0.0 { a } else { b }
    });
}

#[test]
fn a_guard_decides_which_lanes_execute() {
    check("mov.u32 r0, 7; @p1 mov.u32 r0, r2", [&[0, 1], &[11, 12], NONE], |a, b, _| {
        if a == 1 { b } else { 7 }
    });
    check("mov.u32 r0, 7; @!p1 mov.u32 r0, r2", [&[0, 1], &[11, 12], NONE], |a, b, _| {
        if a == 0 { b } else { 7 }
    });
    check(
        "mov.u32 r0, 7; @p1 bra over; mov.u32 r0, r2; over:",
        [&[0, 1], &[11], NONE],
        |a, b, _| {
            if a == 0 { b } else { 7 }
        },
    );
}

#[test]
fn a_table_of_branches_is_indexed() {
    let text = "mov.u32 r0, 0; { targets: .branchtargets one, two, three; and.b32 r4, r1, 3;
        brx.idx r4, targets; one: mov.u32 r0, 10; bra end; two: mov.u32 r0, 20; bra end;
        three: mov.u32 r0, 30; end: }";
    check(text, [&[0, 1, 2], NONE, NONE], |a, _, _| 10 * (a + 1));
}
