//! Integer arithmetic, and the instructions that integers share with floating point.

use crate::check::Problem;
use crate::count::Class;
use crate::machine::action::Action;
use crate::machine::context::{Trap, lanes};
use crate::machine::form::Form;
use crate::machine::registers::{Lane, Slot};
use crate::ptx::{PtxError, Type};

use super::{Op, floating};

type Compiled = Result<Action, PtxError>;

pub(super) const TABLE: &[Op] = &[
    Op {
        name: "add",
        class: Class::Integer,
        forms: &[
            "add.(u16|s16) h0, h1, h2",
            "add.(u32|s32) r0, r1, r2",
            "add.sat.s32 r0, r1, r2",
            "add.cc.(u32|s32) r0, r1, r2",
            "add.(u64|s64) d0, d1, d2",
            "add.(u16x2|s16x2) r0, r1, r2",
            "add(|.rn|.rz|.rm|.rp)(|.ftz)(|.sat).f32 r0, r1, r2",
            "add(|.rn|.rz|.rm|.rp).f64 d0, d1, d2",
            "add(|.rn)(|.ftz)(|.sat).f16 h0, h1, h2",
            "add(|.rn)(|.ftz)(|.sat).f16x2 r0, r1, r2",
            "add(|.rn).bf16 h0, h1, h2",
            "add(|.rn).bf16x2 r0, r1, r2",
        ],
        compile: add,
    },
    Op {
        name: "addc",
        class: Class::Integer,
        forms: &["addc(|.cc).(u32|s32) r0, r1, r2"],
        compile: addc,
    },
    Op {
        name: "sub",
        class: Class::Integer,
        forms: &[
            "sub.(u16|s16) h0, h1, h2",
            "sub.(u32|s32) r0, r1, r2",
            "sub.sat.s32 r0, r1, r2",
            "sub.cc.(u32|s32) r0, r1, r2",
            "sub.(u64|s64) d0, d1, d2",
            "sub(|.rn|.rz|.rm|.rp)(|.ftz)(|.sat).f32 r0, r1, r2",
            "sub(|.rn|.rz|.rm|.rp).f64 d0, d1, d2",
            "sub(|.rn)(|.ftz)(|.sat).f16 h0, h1, h2",
            "sub(|.rn)(|.ftz)(|.sat).f16x2 r0, r1, r2",
            "sub(|.rn).bf16 h0, h1, h2",
            "sub(|.rn).bf16x2 r0, r1, r2",
        ],
        compile: sub,
    },
    Op {
        name: "subc",
        class: Class::Integer,
        forms: &["subc(|.cc).(u32|s32) r0, r1, r2"],
        compile: subc,
    },
    Op {
        name: "mul",
        class: Class::Integer,
        forms: &[
            "mul.(lo|hi).(u16|s16) h0, h1, h2",
            "mul.wide.(u16|s16) r0, h1, h2",
            "mul.(lo|hi).(u32|s32) r0, r1, r2",
            "mul.wide.(u32|s32) d0, r1, r2",
            "mul.(lo|hi).(u64|s64) d0, d1, d2",
            "mul(|.rn|.rz|.rm|.rp)(|.ftz)(|.sat).f32 r0, r1, r2",
            "mul(|.rn|.rz|.rm|.rp).f64 d0, d1, d2",
            "mul(|.rn)(|.ftz)(|.sat).f16 h0, h1, h2",
            "mul(|.rn)(|.ftz)(|.sat).f16x2 r0, r1, r2",
            "mul(|.rn).bf16 h0, h1, h2",
            "mul(|.rn).bf16x2 r0, r1, r2",
        ],
        compile: mul,
    },
    Op {
        name: "mad",
        class: Class::Integer,
        forms: &[
            "mad.(lo|hi).(u16|s16) h0, h1, h2, h3",
            "mad.wide.(u16|s16) r0, h1, h2, r3",
            "mad.(lo|hi).(u32|s32) r0, r1, r2, r3",
            "mad.wide.(u32|s32) d0, r1, r2, d3",
            "mad.(lo|hi).(u64|s64) d0, d1, d2, d3",
            "mad.(rn|rz|rm|rp)(|.ftz)(|.sat).f32 r0, r1, r2, r3",
            "mad.(rn|rz|rm|rp).f64 d0, d1, d2, d3",
        ],
        compile: mad,
    },
    Op {
        name: "mul24",
        class: Class::Integer,
        forms: &["mul24.(lo|hi).(u32|s32) r0, r1, r2"],
        compile: mul24,
    },
    Op {
        name: "sad",
        class: Class::Integer,
        forms: &["sad.(u16|s16) h0, h1, h2, h3", "sad.(u32|s32) r0, r1, r2, r3"],
        compile: sad,
    },
    Op {
        name: "div",
        class: Class::Integer,
        forms: &[
            "div.(u16|s16) h0, h1, h2",
            "div.(u32|s32) r0, r1, r2",
            "div.(u64|s64) d0, d1, d2",
            "div.(approx|full|rn|rz|rm|rp)(|.ftz).f32 r0, r1, r2",
            "div.(rn|rz|rm|rp).f64 d0, d1, d2",
        ],
        compile: div,
    },
    Op {
        name: "rem",
        class: Class::Integer,
        forms: &[
            "rem.(u16|s16) h0, h1, h2",
            "rem.(u32|s32) r0, r1, r2",
            "rem.(u64|s64) d0, d1, d2",
        ],
        compile: rem,
    },
    Op {
        name: "neg",
        class: Class::Integer,
        forms: &[
            "neg.s16 h0, h1",
            "neg.s32 r0, r1",
            "neg.s64 d0, d1",
            "neg(|.ftz).f32 r0, r1",
            "neg.f64 d0, d1",
            "neg(|.ftz).f16 h0, h1",
            "neg(|.ftz).f16x2 r0, r1",
            "neg.bf16 h0, h1",
            "neg.bf16x2 r0, r1",
        ],
        compile: neg,
    },
    Op {
        name: "abs",
        class: Class::Integer,
        forms: &[
            "abs.s16 h0, h1",
            "abs.s32 r0, r1",
            "abs.s64 d0, d1",
            "abs(|.ftz).f32 r0, r1",
            "abs.f64 d0, d1",
            "abs(|.ftz).f16 h0, h1",
            "abs(|.ftz).f16x2 r0, r1",
            "abs.bf16 h0, h1",
            "abs.bf16x2 r0, r1",
        ],
        compile: abs,
    },
    Op { name: "min", class: Class::Integer, forms: MIN, compile: min },
    Op { name: "max", class: Class::Integer, forms: MAX, compile: max },
    Op {
        name: "dp4a",
        class: Class::Integer,
        forms: &["dp4a.(u32|s32).(u32|s32) r0, r1, r2, r3"],
        compile: dp4a,
    },
    Op {
        name: "dp2a",
        class: Class::Integer,
        forms: &["dp2a.(lo|hi).(u32|s32).(u32|s32) r0, r1, r2, r3"],
        compile: dp2a,
    },
];

const MIN: &[&str] = &[
    "min.(u16|s16) h0, h1, h2",
    "min.(u32|s32) r0, r1, r2",
    "min.(u64|s64) d0, d1, d2",
    "min.(u16x2|s16x2) r0, r1, r2",
    "min(|.ftz)(|.NaN)(|.xorsign.abs).f32 r0, r1, r2",
    "min.f64 d0, d1, d2",
    "min(|.ftz)(|.NaN)(|.xorsign.abs).f16 h0, h1, h2",
    "min(|.ftz)(|.NaN)(|.xorsign.abs).f16x2 r0, r1, r2",
    "min(|.NaN)(|.xorsign.abs).bf16 h0, h1, h2",
    "min(|.NaN)(|.xorsign.abs).bf16x2 r0, r1, r2",
];

const MAX: &[&str] = &[
    "max.(u16|s16) h0, h1, h2",
    "max.(u32|s32) r0, r1, r2",
    "max.(u64|s64) d0, d1, d2",
    "max.(u16x2|s16x2) r0, r1, r2",
    "max(|.ftz)(|.NaN)(|.xorsign.abs).f32 r0, r1, r2",
    "max.f64 d0, d1, d2",
    "max(|.ftz)(|.NaN)(|.xorsign.abs).f16 h0, h1, h2",
    "max(|.ftz)(|.NaN)(|.xorsign.abs).f16x2 r0, r1, r2",
    "max(|.NaN)(|.xorsign.abs).bf16 h0, h1, h2",
    "max(|.NaN)(|.xorsign.abs).bf16x2 r0, r1, r2",
];

/// Gives `$f` with `a` and `b` of the instruction's integer type.
macro_rules! integers2 {
    ($form:expr, $ty:expr, |$a:ident, $b:ident| $f:expr) => {
        match $ty {
            Type::U16 => $form.binary(|$a: u16, $b: u16| -> u16 { $f }),
            Type::S16 => $form.binary(|$a: i16, $b: i16| -> i16 { $f }),
            Type::U32 => $form.binary(|$a: u32, $b: u32| -> u32 { $f }),
            Type::S32 => $form.binary(|$a: i32, $b: i32| -> i32 { $f }),
            Type::U64 => $form.binary(|$a: u64, $b: u64| -> u64 { $f }),
            Type::S64 => $form.binary(|$a: i64, $b: i64| -> i64 { $f }),
            other => Err($form.bad_type(other)),
        }
    };
}

fn add(form: &mut Form<'_, '_>) -> Compiled {
    if form.flag("u16x2") || form.flag("s16x2") {
        return form.binary(|a: u32, b: u32| pairs(a, b, u16::wrapping_add));
    }
    if form.flag("cc") {
        return carry(form, |a, b, _| a.overflowing_add(b), false, true);
    }
    let ty = form.ty()?;
    if ty.is_float() {
        return floating::add(form, ty);
    }
    if ty == Type::S32 && form.flag("sat") {
        return form.binary(i32::saturating_add);
    }
    integers2!(form, ty, |a, b| a.wrapping_add(b))
}

fn sub(form: &mut Form<'_, '_>) -> Compiled {
    if form.flag("cc") {
        return carry(form, |a, b, _| a.overflowing_sub(b), false, true);
    }
    let ty = form.ty()?;
    if ty.is_float() {
        return floating::sub(form, ty);
    }
    if ty == Type::S32 && form.flag("sat") {
        return form.binary(i32::saturating_sub);
    }
    integers2!(form, ty, |a, b| a.wrapping_sub(b))
}

fn addc(form: &mut Form<'_, '_>) -> Compiled {
    let writes = form.flag("cc");
    let f = |a: u32, b: u32, carry: u32| {
        let (sum, first) = a.overflowing_add(b);
        let (sum, second) = sum.overflowing_add(carry);
        (sum, first || second)
    };
    carry(form, f, true, writes)
}

fn subc(form: &mut Form<'_, '_>) -> Compiled {
    let writes = form.flag("cc");
    let f = |a: u32, b: u32, borrow: u32| {
        let (difference, first) = a.overflowing_sub(b);
        let (difference, second) = difference.overflowing_sub(borrow);
        (difference, first || second)
    };
    carry(form, f, true, writes)
}

/// Arithmetic with the carry flag, which is a predicate that no name stands for.
fn carry(
    form: &mut Form<'_, '_>,
    f: impl Fn(u32, u32, u32) -> (u32, bool) + Copy + Send + Sync + 'static,
    reads: bool,
    writes: bool,
) -> Compiled {
    let ty = form.ty()?;
    if !matches!(ty, Type::U32 | Type::S32) {
        return Err(form.bad_type(ty));
    }
    form.expect(3)?;
    let (d, a, b) = (form.dst::<u32>(0)?, form.src::<u32>(1)?, form.src::<u32>(2)?);
    let flag = form.names.carry() as usize;
    Ok(Action::lanes(move |registers, mask| {
        let (left, right) = (registers.get(a), registers.get(b));
        let carry = if reads { registers.predicates[flag] } else { 0 };
        let mut bits = registers.predicates[flag];
        let mut out = [0; 32];
        for lane in lanes(mask) {
            let (value, overflow) = f(left[lane], right[lane], carry >> lane & 1);
            out[lane] = value;
            bits = bits & !(1 << lane) | u32::from(overflow) << lane;
        }
        registers.set(d, out, mask);
        if writes {
            registers.predicates[flag] = bits;
        }
    }))
}

/// Which half of a product is wanted.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Low,
    High,
    Wide,
}

fn part(form: &mut Form<'_, '_>) -> Option<Part> {
    form.choice(&[("lo", Part::Low), ("hi", Part::High), ("wide", Part::Wide)])
}

fn mul(form: &mut Form<'_, '_>) -> Compiled {
    let part = part(form);
    let ty = form.ty()?;
    if ty.is_float() && part.is_none() {
        return floating::mul(form, ty);
    }
    match part.ok_or_else(|| form.missing("lo, hi or wide"))? {
        Part::Low => integers2!(form, ty, |a, b| a.wrapping_mul(b)),
        Part::High => match ty {
            Type::U16 => form.binary(high_u16),
            Type::S16 => form.binary(high_i16),
            Type::U32 => form.binary(high_u32),
            Type::S32 => form.binary(high_i32),
            Type::U64 => form.binary(high_u64),
            Type::S64 => form.binary(high_i64),
            other => Err(form.bad_type(other)),
        },
        Part::Wide => match ty {
            Type::U16 => form.binary(|a: u16, b: u16| u32::from(a) * u32::from(b)),
            Type::S16 => form.binary(|a: i16, b: i16| i32::from(a) * i32::from(b)),
            Type::U32 => form.binary(|a: u32, b: u32| u64::from(a) * u64::from(b)),
            Type::S32 => form.binary(|a: i32, b: i32| i64::from(a) * i64::from(b)),
            other => Err(form.bad_type(other)),
        },
    }
}

fn high_u16(a: u16, b: u16) -> u16 {
    ((u32::from(a) * u32::from(b)) >> 16) as u16
}

fn high_i16(a: i16, b: i16) -> i16 {
    ((i32::from(a) * i32::from(b)) >> 16) as i16
}

fn high_u32(a: u32, b: u32) -> u32 {
    ((u64::from(a) * u64::from(b)) >> 32) as u32
}

fn high_i32(a: i32, b: i32) -> i32 {
    ((i64::from(a) * i64::from(b)) >> 32) as i32
}

fn high_u64(a: u64, b: u64) -> u64 {
    ((u128::from(a) * u128::from(b)) >> 64) as u64
}

fn high_i64(a: i64, b: i64) -> i64 {
    ((i128::from(a) * i128::from(b)) >> 64) as i64
}

fn mad(form: &mut Form<'_, '_>) -> Compiled {
    let part = part(form);
    let ty = form.ty()?;
    if ty.is_float() && part.is_none() {
        return floating::fma(form, ty);
    }
    match (part.ok_or_else(|| form.missing("lo, hi or wide"))?, ty) {
        (Part::Low, Type::U16 | Type::S16) => {
            form.ternary(|a: u16, b: u16, c: u16| a.wrapping_mul(b).wrapping_add(c))
        }
        (Part::Low, Type::U32 | Type::S32) => {
            form.ternary(|a: u32, b: u32, c: u32| a.wrapping_mul(b).wrapping_add(c))
        }
        (Part::Low, Type::U64 | Type::S64) => {
            form.ternary(|a: u64, b: u64, c: u64| a.wrapping_mul(b).wrapping_add(c))
        }
        (Part::High, Type::U16) => form.ternary(|a, b, c: u16| high_u16(a, b).wrapping_add(c)),
        (Part::High, Type::S16) => form.ternary(|a, b, c: i16| high_i16(a, b).wrapping_add(c)),
        (Part::High, Type::U32) => form.ternary(|a, b, c: u32| high_u32(a, b).wrapping_add(c)),
        (Part::High, Type::S32) => form.ternary(|a, b, c: i32| high_i32(a, b).wrapping_add(c)),
        (Part::High, Type::U64) => form.ternary(|a, b, c: u64| high_u64(a, b).wrapping_add(c)),
        (Part::High, Type::S64) => form.ternary(|a, b, c: i64| high_i64(a, b).wrapping_add(c)),
        (Part::Wide, Type::U16) => {
            form.ternary(|a: u16, b: u16, c: u32| (u32::from(a) * u32::from(b)).wrapping_add(c))
        }
        (Part::Wide, Type::S16) => {
            form.ternary(|a: i16, b: i16, c: i32| (i32::from(a) * i32::from(b)).wrapping_add(c))
        }
        (Part::Wide, Type::U32) => {
            form.ternary(|a: u32, b: u32, c: u64| (u64::from(a) * u64::from(b)).wrapping_add(c))
        }
        (Part::Wide, Type::S32) => {
            form.ternary(|a: i32, b: i32, c: i64| (i64::from(a) * i64::from(b)).wrapping_add(c))
        }
        (_, other) => Err(form.bad_type(other)),
    }
}

fn mul24(form: &mut Form<'_, '_>) -> Compiled {
    let part = part(form).ok_or_else(|| form.missing("lo or hi"))?;
    // The product of two 24-bit numbers has 48 bits; `hi` are the upper 32 of them.
    let shift = if part == Part::High { 16 } else { 0 };
    match form.ty()? {
        Type::U32 => form.binary(move |a: u32, b: u32| {
            ((u64::from(a & 0xff_ffff) * u64::from(b & 0xff_ffff)) >> shift) as u32
        }),
        Type::S32 => form.binary(move |a: i32, b: i32| {
            ((i64::from(a << 8 >> 8) * i64::from(b << 8 >> 8)) >> shift) as i32
        }),
        other => Err(form.bad_type(other)),
    }
}

fn sad(form: &mut Form<'_, '_>) -> Compiled {
    match form.ty()? {
        Type::U16 => form.ternary(|a: u16, b, c: u16| c.wrapping_add(a.abs_diff(b))),
        Type::S16 => form.ternary(|a: i16, b, c: u16| c.wrapping_add(a.abs_diff(b))),
        Type::U32 => form.ternary(|a: u32, b, c: u32| c.wrapping_add(a.abs_diff(b))),
        Type::S32 => form.ternary(|a: i32, b, c: u32| c.wrapping_add(a.abs_diff(b))),
        other => Err(form.bad_type(other)),
    }
}

fn div(form: &mut Form<'_, '_>) -> Compiled {
    let ty = form.ty()?;
    // PTX leaves the quotient by zero open; devices give all ones.
    match ty {
        Type::U16 => divide(form, |a: u16, b: u16| a.checked_div(b).unwrap_or(u16::MAX)),
        Type::S16 => divide(form, |a: i16, b: i16| if b == 0 { -1 } else { a.wrapping_div(b) }),
        Type::U32 => divide(form, |a: u32, b: u32| a.checked_div(b).unwrap_or(u32::MAX)),
        Type::S32 => divide(form, |a: i32, b: i32| if b == 0 { -1 } else { a.wrapping_div(b) }),
        Type::U64 => divide(form, |a: u64, b: u64| a.checked_div(b).unwrap_or(u64::MAX)),
        Type::S64 => divide(form, |a: i64, b: i64| if b == 0 { -1 } else { a.wrapping_div(b) }),
        _ => floating::div(form, ty),
    }
}

fn rem(form: &mut Form<'_, '_>) -> Compiled {
    match form.ty()? {
        Type::U16 => divide(form, |a: u16, b: u16| a.checked_rem(b).unwrap_or(a)),
        Type::S16 => divide(form, |a: i16, b: i16| if b == 0 { a } else { a.wrapping_rem(b) }),
        Type::U32 => divide(form, |a: u32, b: u32| a.checked_rem(b).unwrap_or(a)),
        Type::S32 => divide(form, |a: i32, b: i32| if b == 0 { a } else { a.wrapping_rem(b) }),
        Type::U64 => divide(form, |a: u64, b: u64| a.checked_rem(b).unwrap_or(a)),
        Type::S64 => divide(form, |a: i64, b: i64| if b == 0 { a } else { a.wrapping_rem(b) }),
        other => Err(form.bad_type(other)),
    }
}

fn divide<T: Lane + PartialEq>(
    form: &mut Form<'_, '_>,
    f: impl Fn(T, T) -> T + Copy + Send + Sync + 'static,
) -> Compiled {
    form.expect(3)?;
    let slots: (Slot<T>, Slot<T>, Slot<T>) = (form.dst(0)?, form.src(1)?, form.src(2)?);
    Ok(Action::warp(move |context, mask| {
        if context.env.checks.division {
            let divisors = context.core.registers.get(slots.2);
            if let Some(lane) = lanes(mask).find(|lane| divisors[*lane] == T::default()) {
                context.note(lane, Problem::DivisionByZero, None);
            }
        }
        context.core.registers.map2(mask, slots, f);
        Ok::<(), Trap>(())
    }))
}

fn neg(form: &mut Form<'_, '_>) -> Compiled {
    let ty = form.ty()?;
    match ty {
        Type::S16 => form.unary(i16::wrapping_neg),
        Type::S32 => form.unary(i32::wrapping_neg),
        Type::S64 => form.unary(i64::wrapping_neg),
        _ => floating::neg(form, ty),
    }
}

fn abs(form: &mut Form<'_, '_>) -> Compiled {
    let ty = form.ty()?;
    match ty {
        Type::S16 => form.unary(i16::wrapping_abs),
        Type::S32 => form.unary(i32::wrapping_abs),
        Type::S64 => form.unary(i64::wrapping_abs),
        _ => floating::abs(form, ty),
    }
}

fn min(form: &mut Form<'_, '_>) -> Compiled {
    if form.flag("u16x2") {
        return form.binary(|a: u32, b: u32| pairs(a, b, u16::min));
    }
    if form.flag("s16x2") {
        return form.binary(|a: u32, b: u32| pairs(a, b, |a, b| (a as i16).min(b as i16) as u16));
    }
    let ty = form.ty()?;
    if ty.is_float() {
        return floating::min(form, ty);
    }
    integers2!(form, ty, |a, b| a.min(b))
}

fn max(form: &mut Form<'_, '_>) -> Compiled {
    if form.flag("u16x2") {
        return form.binary(|a: u32, b: u32| pairs(a, b, u16::max));
    }
    if form.flag("s16x2") {
        return form.binary(|a: u32, b: u32| pairs(a, b, |a, b| (a as i16).max(b as i16) as u16));
    }
    let ty = form.ty()?;
    if ty.is_float() {
        return floating::max(form, ty);
    }
    integers2!(form, ty, |a, b| a.max(b))
}

/// Applies `f` to both halves.
#[inline(always)]
pub(super) fn pairs(a: u32, b: u32, f: impl Fn(u16, u16) -> u16) -> u32 {
    let low = f(a as u16, b as u16);
    let high = f((a >> 16) as u16, (b >> 16) as u16);
    u32::from(high) << 16 | u32::from(low)
}

/// Byte `index` of `value`, with its sign if it has one.
#[inline(always)]
fn byte(value: u32, index: u32, signed: bool) -> i32 {
    let byte = (value >> (8 * index)) as u8;
    if signed { i32::from(byte as i8) } else { i32::from(byte) }
}

fn dp4a(form: &mut Form<'_, '_>) -> Compiled {
    let (a_type, b_type) = (form.ty()?, form.ty()?);
    let (a_signed, b_signed) = (a_type.is_signed(), b_type.is_signed());
    form.ternary(move |a: u32, b: u32, c: u32| {
        (0..4).fold(c, |sum, index| {
            let product = byte(a, index, a_signed).wrapping_mul(byte(b, index, b_signed));
            sum.wrapping_add(product as u32)
        })
    })
}

fn dp2a(form: &mut Form<'_, '_>) -> Compiled {
    let part = part(form).ok_or_else(|| form.missing("lo or hi"))?;
    let first = if part == Part::High { 2 } else { 0 };
    let (a_type, b_type) = (form.ty()?, form.ty()?);
    let (a_signed, b_signed) = (a_type.is_signed(), b_type.is_signed());
    form.ternary(move |a: u32, b: u32, c: u32| {
        (0..2).fold(c, |sum, index| {
            let half = (a >> (16 * index)) as u16;
            let half = if a_signed { i32::from(half as i16) } else { i32::from(half) };
            let product = half.wrapping_mul(byte(b, first + index, b_signed));
            sum.wrapping_add(product as u32)
        })
    })
}
