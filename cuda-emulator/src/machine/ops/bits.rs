//! Bits.

use crate::count::Class;
use crate::machine::action::Action;
use crate::machine::form::Form;
use crate::ptx::{PtxError, Type};

use super::{Op, predicate};

type Compiled = Result<Action, PtxError>;

pub(super) const TABLE: &[Op] = &[
    Op {
        name: "and",
        class: Class::Integer,
        forms: &[
            "and.b16 h0, h1, h2",
            "and.b32 r0, r1, r2",
            "and.b64 d0, d1, d2",
            "and.pred p0, p1, p2",
        ],
        compile: |form| logic(form, |a, b| a & b),
    },
    Op {
        name: "or",
        class: Class::Integer,
        forms: &[
            "or.b16 h0, h1, h2",
            "or.b32 r0, r1, r2",
            "or.b64 d0, d1, d2",
            "or.pred p0, p1, p2",
        ],
        compile: |form| logic(form, |a, b| a | b),
    },
    Op {
        name: "xor",
        class: Class::Integer,
        forms: &[
            "xor.b16 h0, h1, h2",
            "xor.b32 r0, r1, r2",
            "xor.b64 d0, d1, d2",
            "xor.pred p0, p1, p2",
        ],
        compile: |form| logic(form, |a, b| a ^ b),
    },
    Op {
        name: "not",
        class: Class::Integer,
        forms: &["not.b16 h0, h1", "not.b32 r0, r1", "not.b64 d0, d1", "not.pred p0, p1"],
        compile: not,
    },
    Op {
        name: "cnot",
        class: Class::Integer,
        forms: &["cnot.b16 h0, h1", "cnot.b32 r0, r1", "cnot.b64 d0, d1"],
        compile: cnot,
    },
    Op {
        name: "shl",
        class: Class::Integer,
        forms: &["shl.b16 h0, h1, r2", "shl.b32 r0, r1, r2", "shl.b64 d0, d1, r2"],
        compile: shl,
    },
    Op {
        name: "shr",
        class: Class::Integer,
        forms: &[
            "shr.(b16|u16|s16) h0, h1, r2",
            "shr.(b32|u32|s32) r0, r1, r2",
            "shr.(b64|u64|s64) d0, d1, r2",
        ],
        compile: shr,
    },
    Op {
        name: "shf",
        class: Class::Integer,
        forms: &["shf.(l|r).(wrap|clamp).b32 r0, r1, r2, r3"],
        compile: shf,
    },
    Op {
        name: "lop3",
        class: Class::Integer,
        forms: &["lop3.b32 r0, r1, r2, r3, 0x6a"],
        compile: lop3,
    },
    Op {
        name: "bfe",
        class: Class::Integer,
        forms: &["bfe.(u32|s32) r0, r1, r2, r3", "bfe.(u64|s64) d0, d1, r2, r3"],
        compile: bfe,
    },
    Op {
        name: "bfi",
        class: Class::Integer,
        forms: &["bfi.b32 r0, r1, r2, r3, r4", "bfi.b64 d0, d1, d2, r3, r4"],
        compile: bfi,
    },
    Op {
        name: "bfind",
        class: Class::Integer,
        forms: &["bfind(|.shiftamt).(u32|s32) r0, r1", "bfind(|.shiftamt).(u64|s64) r0, d1"],
        compile: bfind,
    },
    Op {
        name: "brev",
        class: Class::Integer,
        forms: &["brev.b32 r0, r1", "brev.b64 d0, d1"],
        compile: |form| match form.ty()? {
            Type::B32 => form.unary(u32::reverse_bits),
            Type::B64 => form.unary(u64::reverse_bits),
            other => Err(form.bad_type(other)),
        },
    },
    Op {
        name: "clz",
        class: Class::Integer,
        forms: &["clz.b32 r0, r1", "clz.b64 r0, d1"],
        compile: |form| match form.ty()? {
            Type::B32 => form.unary(u32::leading_zeros),
            Type::B64 => form.unary(u64::leading_zeros),
            other => Err(form.bad_type(other)),
        },
    },
    Op {
        name: "popc",
        class: Class::Integer,
        forms: &["popc.b32 r0, r1", "popc.b64 r0, d1"],
        compile: |form| match form.ty()? {
            Type::B32 => form.unary(u32::count_ones),
            Type::B64 => form.unary(u64::count_ones),
            other => Err(form.bad_type(other)),
        },
    },
    Op { name: "fns", class: Class::Integer, forms: &["fns.b32 r0, r1, r2, r3"], compile: fns },
    Op {
        name: "bmsk",
        class: Class::Integer,
        forms: &["bmsk.(clamp|wrap).b32 r0, r1, r2"],
        compile: bmsk,
    },
    Op {
        name: "szext",
        class: Class::Integer,
        forms: &["szext.(clamp|wrap).(u32|s32) r0, r1, r2"],
        compile: szext,
    },
    Op {
        name: "prmt",
        class: Class::Integer,
        forms: &["prmt.b32(|.f4e|.b4e|.rc8|.ecl|.ecr|.rc16) r0, r1, r2, r3"],
        compile: prmt,
    },
];

fn logic(
    form: &mut Form<'_, '_>,
    f: impl Fn(u64, u64) -> u64 + Copy + Send + Sync + 'static,
) -> Compiled {
    match form.ty()? {
        Type::B16 => form.binary(move |a: u16, b: u16| f(u64::from(a), u64::from(b)) as u16),
        Type::B32 => form.binary(move |a: u32, b: u32| f(u64::from(a), u64::from(b)) as u32),
        Type::B64 => form.binary(f),
        Type::Pred => predicate::combine(form, f),
        other => Err(form.bad_type(other)),
    }
}

fn not(form: &mut Form<'_, '_>) -> Compiled {
    match form.ty()? {
        Type::B16 => form.unary(|a: u16| !a),
        Type::B32 => form.unary(|a: u32| !a),
        Type::B64 => form.unary(|a: u64| !a),
        Type::Pred => predicate::invert(form),
        other => Err(form.bad_type(other)),
    }
}

fn cnot(form: &mut Form<'_, '_>) -> Compiled {
    match form.ty()? {
        Type::B16 => form.unary(|a: u16| u16::from(a == 0)),
        Type::B32 => form.unary(|a: u32| u32::from(a == 0)),
        Type::B64 => form.unary(|a: u64| u64::from(a == 0)),
        other => Err(form.bad_type(other)),
    }
}

// Shifts by more than the width leave zeros, or the sign.

fn shl(form: &mut Form<'_, '_>) -> Compiled {
    match form.ty()? {
        Type::B16 => form.binary(|a: u16, n: u32| if n < 16 { a << n } else { 0 }),
        Type::B32 => form.binary(|a: u32, n: u32| if n < 32 { a << n } else { 0 }),
        Type::B64 => form.binary(|a: u64, n: u32| if n < 64 { a << n } else { 0 }),
        other => Err(form.bad_type(other)),
    }
}

fn shr(form: &mut Form<'_, '_>) -> Compiled {
    match form.ty()? {
        Type::B16 | Type::U16 => form.binary(|a: u16, n: u32| if n < 16 { a >> n } else { 0 }),
        Type::B32 | Type::U32 => form.binary(|a: u32, n: u32| if n < 32 { a >> n } else { 0 }),
        Type::B64 | Type::U64 => form.binary(|a: u64, n: u32| if n < 64 { a >> n } else { 0 }),
        Type::S16 => form.binary(|a: i16, n: u32| a >> n.min(15)),
        Type::S32 => form.binary(|a: i32, n: u32| a >> n.min(31)),
        Type::S64 => form.binary(|a: i64, n: u32| a >> n.min(63)),
        other => Err(form.bad_type(other)),
    }
}

/// A number of bits of which only some count, or which has a most.
#[inline(always)]
fn amount(n: u32, wrap: bool) -> u32 {
    if wrap { n & 31 } else { n.min(32) }
}

fn wraps(form: &mut Form<'_, '_>) -> Result<bool, PtxError> {
    form.choice(&[("wrap", true), ("clamp", false)]).ok_or_else(|| form.missing("wrap or clamp"))
}

fn shf(form: &mut Form<'_, '_>) -> Compiled {
    let left = form.choice(&[("l", true), ("r", false)]).ok_or_else(|| form.missing("l or r"))?;
    let wrap = wraps(form)?;
    form.ty()?;
    form.ternary(move |low: u32, high: u32, n: u32| {
        let both = u64::from(high) << 32 | u64::from(low);
        let n = amount(n, wrap);
        if left { (both << n >> 32) as u32 } else { (both >> n) as u32 }
    })
}

fn lop3(form: &mut Form<'_, '_>) -> Compiled {
    form.ty()?;
    form.expect(5)?;
    let table = form.number(4)? as u32;
    let slots =
        (form.dst::<u32>(0)?, form.src::<u32>(1)?, form.src::<u32>(2)?, form.src::<u32>(3)?);
    Ok(Action::lanes(move |registers, mask| {
        registers.map3(mask, slots, |a: u32, b: u32, c: u32| {
            // Each bit of the table stands for one combination of the three.
            (0..8).fold(0, |all, row| {
                let wanted = 0u32.wrapping_sub(table >> row & 1);
                let a = if row & 4 != 0 { a } else { !a };
                let b = if row & 2 != 0 { b } else { !b };
                let c = if row & 1 != 0 { c } else { !c };
                all | a & b & c & wanted
            })
        });
    }))
}

/// Bits of `value` from `position` on, `length` of them, extended by the sign if asked to. Beyond
/// the width there are zeros, or the sign.
#[inline(always)]
fn extract(value: i128, width: u32, position: u32, length: u32, signed: bool) -> u64 {
    let (position, length) = (position & 0xff, length & 0xff);
    if length == 0 {
        return 0;
    }
    let shifted = value >> position.min(127);
    let length = length.min(64);
    let mask = if length == 64 { u64::MAX } else { (1 << length) - 1 };
    let field = shifted as u64 & mask;
    // The sign is the last bit of the field, or of the value where the field goes beyond it.
    let last = (position + length - 1).min(width - 1);
    let sign = signed && value >> last & 1 == 1;
    if sign { field | !mask } else { field }
}

fn bfe(form: &mut Form<'_, '_>) -> Compiled {
    match form.ty()? {
        Type::U32 => form.ternary(|a: u32, position: u32, length: u32| {
            extract(i128::from(a), 32, position, length, false) as u32
        }),
        Type::S32 => form.ternary(|a: i32, position: u32, length: u32| {
            extract(i128::from(a), 32, position, length, true) as u32
        }),
        Type::U64 => form.ternary(|a: u64, position: u32, length: u32| {
            extract(i128::from(a), 64, position, length, false)
        }),
        Type::S64 => form.ternary(|a: i64, position: u32, length: u32| {
            extract(i128::from(a), 64, position, length, true)
        }),
        other => Err(form.bad_type(other)),
    }
}

/// Puts the low `length` bits of `field` into `base` at `position`.
#[inline(always)]
fn insert(field: u64, base: u64, position: u32, length: u32, width: u32) -> u64 {
    let (position, length) = (position & 0xff, length & 0xff);
    if position >= width || length == 0 {
        return base;
    }
    let length = length.min(width - position);
    let mask = (u64::MAX >> (64 - length)) << position;
    base & !mask | field << position & mask
}

fn bfi(form: &mut Form<'_, '_>) -> Compiled {
    let ty = form.ty()?;
    form.expect(5)?;
    let (position, length) = (form.src::<u32>(3)?, form.src::<u32>(4)?);
    match ty {
        Type::B32 => {
            let (d, a, b) = (form.dst::<u32>(0)?, form.src::<u32>(1)?, form.src::<u32>(2)?);
            Ok(Action::lanes(move |registers, mask| {
                let lengths = registers.get(length);
                let (a, b, p) = (registers.get(a), registers.get(b), registers.get(position));
                let out = std::array::from_fn(|l| {
                    insert(u64::from(a[l]), u64::from(b[l]), p[l], lengths[l], 32) as u32
                });
                registers.set(d, out, mask);
            }))
        }
        Type::B64 => {
            let (d, a, b) = (form.dst::<u64>(0)?, form.src::<u64>(1)?, form.src::<u64>(2)?);
            Ok(Action::lanes(move |registers, mask| {
                let lengths = registers.get(length);
                let (a, b, p) = (registers.get(a), registers.get(b), registers.get(position));
                let out = std::array::from_fn(|l| insert(a[l], b[l], p[l], lengths[l], 64));
                registers.set(d, out, mask);
            }))
        }
        other => Err(form.bad_type(other)),
    }
}

fn bfind(form: &mut Form<'_, '_>) -> Compiled {
    let shift = form.flag("shiftamt");
    // The highest bit that differs from the sign; all ones if none does.
    let found = move |value: u64, width: u32| {
        if value == 0 {
            return u32::MAX;
        }
        let bit = 63 - value.leading_zeros();
        if shift { width - 1 - bit } else { bit }
    };
    match form.ty()? {
        Type::U32 => form.unary(move |a: u32| found(u64::from(a), 32)),
        Type::S32 => form.unary(move |a: i32| found(u64::from((a ^ a >> 31) as u32), 32)),
        Type::U64 => form.unary(move |a: u64| found(a, 64)),
        Type::S64 => form.unary(move |a: i64| found((a ^ a >> 63) as u64, 64)),
        other => Err(form.bad_type(other)),
    }
}

fn fns(form: &mut Form<'_, '_>) -> Compiled {
    form.ty()?;
    // The position of the n-th set bit from a base, upwards or downwards.
    form.ternary(|mask: u32, base: u32, offset: i32| {
        let bit = |at: u32| at < 32 && mask >> at & 1 == 1;
        if offset == 0 {
            return if bit(base) { base } else { u32::MAX };
        }
        let mut left = offset.unsigned_abs();
        let mut at = i64::from(base);
        while (0..32).contains(&at) {
            if bit(at as u32) {
                left -= 1;
                if left == 0 {
                    return at as u32;
                }
            }
            at += i64::from(offset.signum());
        }
        u32::MAX
    })
}

fn bmsk(form: &mut Form<'_, '_>) -> Compiled {
    let wrap = wraps(form)?;
    form.ty()?;
    form.binary(move |position: u32, length: u32| {
        let (position, length) = (amount(position, wrap), amount(length, wrap));
        let mask = (1u64 << length) - 1;
        (mask << position) as u32
    })
}

fn szext(form: &mut Form<'_, '_>) -> Compiled {
    let wrap = wraps(form)?;
    let signed = form.ty()?.is_signed();
    form.binary(move |value: u32, length: u32| {
        let length = amount(length, wrap);
        extract(i128::from(value as i32), 32, 0, length, signed) as u32
    })
}

fn prmt(form: &mut Form<'_, '_>) -> Compiled {
    #[derive(Clone, Copy)]
    enum Mode {
        Forward,
        Backward,
        Replicate8,
        EdgeLeft,
        EdgeRight,
        Replicate16,
    }
    form.ty()?;
    let mode = form.choice(&[
        ("f4e", Mode::Forward),
        ("b4e", Mode::Backward),
        ("rc8", Mode::Replicate8),
        ("ecl", Mode::EdgeLeft),
        ("ecr", Mode::EdgeRight),
        ("rc16", Mode::Replicate16),
    ]);
    let byte = |a: u32, b: u32, index: u32| {
        let both = u64::from(b) << 32 | u64::from(a);
        (both >> (8 * (index & 7))) as u8
    };
    let Some(mode) = mode else {
        return form.ternary(move |a: u32, b: u32, selector: u32| {
            (0..4).fold(0, |all, place| {
                let choice = selector >> (4 * place) & 15;
                let byte = byte(a, b, choice);
                // The upper bit of a choice asks for the sign instead.
                let byte = if choice & 8 != 0 { ((byte as i8) >> 7) as u8 } else { byte };
                all | u32::from(byte) << (8 * place)
            })
        });
    };
    form.ternary(move |a: u32, b: u32, selector: u32| {
        let selector = selector & 3;
        (0..4u32).fold(0, |all, place| {
            let choice = match mode {
                Mode::Forward => selector + place,
                Mode::Backward => selector.wrapping_sub(place) & 7,
                Mode::Replicate8 => selector,
                Mode::EdgeLeft => place.max(selector),
                Mode::EdgeRight => place.min(selector),
                Mode::Replicate16 => (selector & 1) * 2 + (place & 1),
            };
            all | u32::from(byte(a, b, choice)) << (8 * place)
        })
    })
}
