//! Comparisons, selections and predicates.

use crate::count::Class;
use crate::machine::action::Action;
use crate::machine::float::{Bf16, F16, Half, flush};
use crate::machine::form::{Form, Predicate};
use crate::machine::registers::{FULL, Lane, Registers};
use crate::ptx::{Operand, PtxError, Type};

use super::Op;

type Compiled = Result<Action, PtxError>;

pub(super) const TABLE: &[Op] = &[
    Op {
        name: "setp",
        class: Class::Predicate,
        forms: &[
            "setp.(eq|ne|lt|le|gt|ge).(s16|u16) p0, h1, h2",
            "setp.(eq|ne).b16 p0, h1, h2",
            "setp.(eq|ne|lt|le|gt|ge).(s32|u32) p0, r1, r2",
            "setp.(eq|ne|lt|le|gt|ge).(s64|u64) p0, d1, d2",
            "setp.(lo|ls|hi|hs).u32 p0, r1, r2",
            "setp.(eq|ne).(b32) p0|p1, r1, r2",
            "setp.(eq|ne).b64 p0, d1, d2",
            "setp.(eq|ne|lt|le|gt|ge|equ|neu|ltu|leu|gtu|geu|num|nan)(|.ftz).f32 p0, r1, r2",
            "setp.(eq|ne|lt|le|gt|ge|equ|neu|ltu|leu|gtu|geu|num|nan).f64 p0, d1, d2",
            "setp.(eq|ne|lt|le|gt|ge|equ|neu|ltu|leu|gtu|geu|num|nan)(|.ftz).f16 p0, h1, h2",
            "setp.(eq|ne|lt|le|gt|ge|equ|neu|ltu|leu|gtu|geu|num|nan).bf16 p0, h1, h2",
            "setp.(eq|ne|lt|le|gt|ge|equ|neu|ltu|leu|gtu|geu|num|nan)(|.ftz).f16x2 p0|p1, r1, r2",
            "setp.(eq|ne|lt|le|gt|ge|equ|neu|ltu|leu|gtu|geu|num|nan).bf16x2 p0|p1, r1, r2",
            "setp.lt.(and|or|xor).s32 p0|p1, r1, r2, p2",
            "setp.lt.(and|or|xor).s32 p0, r1, r2, !p2",
        ],
        compile: setp,
    },
    Op {
        name: "set",
        class: Class::Predicate,
        forms: &[
            "set.(eq|ne|lt|le|gt|ge).(u32|s32|f32).(s32|u32) r0, r1, r2",
            "set.(eq|ne|lt|le|gt|ge|equ|neu|ltu|leu|gtu|geu|num|nan).(u32|s32|f32).f32 r0, r1, r2",
            "set.(eq|ne|lt|le|gt|ge|ltu|geu).(f16).f16 h0, h1, h2",
            "set.(eq|ne|lt|le|gt|ge|ltu|geu).(f16x2).f16x2 r0, r1, r2",
            "set.(eq|ne|lt|le|gt|ge|ltu|geu).(bf16).bf16 h0, h1, h2",
            "set.(eq|ne|lt|le|gt|ge|ltu|geu).(bf16x2).bf16x2 r0, r1, r2",
        ],
        compile: set,
    },
    Op {
        name: "selp",
        class: Class::Predicate,
        forms: &[
            "selp.(b16|u16|s16) h0, h1, h2, p0",
            "selp.(b32|u32|s32|f32) r0, r1, r2, p0",
            "selp.(b64|u64|s64|f64) d0, d1, d2, p0",
        ],
        compile: selp,
    },
    Op {
        name: "slct",
        class: Class::Predicate,
        forms: &[
            "slct.(b32|u32|s32|f32).s32 r0, r1, r2, r3",
            "slct(|.ftz).(b32|u32|s32|f32).f32 r0, r1, r2, r3",
            "slct.(b64|u64|s64|f64).s32 d0, d1, d2, r3",
        ],
        compile: slct,
    },
];

/// A comparison. The unordered ones hold when a NaN takes part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Comparison {
    Equal,
    Unequal,
    Less,
    LessEqual,
    Greater,
    GreaterEqual,
    EqualUnordered,
    UnequalUnordered,
    LessUnordered,
    LessEqualUnordered,
    GreaterUnordered,
    GreaterEqualUnordered,
    Numbers,
    NotNumbers,
}

use Comparison::*;

fn comparison(form: &mut Form<'_, '_>) -> Result<Comparison, PtxError> {
    form.choice(&[
        ("eq", Equal),
        ("ne", Unequal),
        ("lt", Less),
        ("le", LessEqual),
        ("gt", Greater),
        ("ge", GreaterEqual),
        ("lo", Less),
        ("ls", LessEqual),
        ("hi", Greater),
        ("hs", GreaterEqual),
        ("equ", EqualUnordered),
        ("neu", UnequalUnordered),
        ("ltu", LessUnordered),
        ("leu", LessEqualUnordered),
        ("gtu", GreaterUnordered),
        ("geu", GreaterEqualUnordered),
        ("num", Numbers),
        ("nan", NotNumbers),
    ])
    .ok_or_else(|| form.missing("a comparison"))
}

/// A comparison of two registers: the lanes for which it holds.
type Test = Box<dyn Fn(&Registers) -> u32 + Send + Sync>;

/// Two values that compare as the type has it.
#[inline(always)]
fn holds<T: PartialOrd>(comparison: Comparison, a: T, b: T, unordered: bool) -> bool {
    match comparison {
        Equal => a == b,
        Unequal => a != b && !unordered,
        Less => a < b,
        LessEqual => a <= b,
        Greater => a > b,
        GreaterEqual => a >= b,
        EqualUnordered => unordered || a == b,
        UnequalUnordered => a != b,
        LessUnordered => unordered || a < b,
        LessEqualUnordered => unordered || a <= b,
        GreaterUnordered => unordered || a > b,
        GreaterEqualUnordered => unordered || a >= b,
        Numbers => !unordered,
        NotNumbers => unordered,
    }
}

/// One closure for each of the common comparisons, so that the loop over lanes is a simple one.
macro_rules! test {
    ($form:expr, $first:expr, $comparison:expr, $lane:ty, |$x:ident| $value:expr, $nan:expr) => {{
        let slots = ($form.src::<$lane>($first)?, $form.src::<$lane>($first + 1)?);
        let value = move |$x: $lane| $value;
        let nan = $nan;
        let test: Test = match $comparison {
            Equal => Box::new(move |r| r.test2(slots, |a, b| value(a) == value(b))),
            Less => Box::new(move |r| r.test2(slots, |a, b| value(a) < value(b))),
            LessEqual => Box::new(move |r| r.test2(slots, |a, b| value(a) <= value(b))),
            Greater => Box::new(move |r| r.test2(slots, |a, b| value(a) > value(b))),
            GreaterEqual => Box::new(move |r| r.test2(slots, |a, b| value(a) >= value(b))),
            UnequalUnordered => Box::new(move |r| r.test2(slots, |a, b| value(a) != value(b))),
            other => Box::new(move |r| {
                r.test2(slots, |a, b| {
                    let (a, b) = (value(a), value(b));
                    holds(other, a, b, nan(a) || nan(b))
                })
            }),
        };
        test
    }};
}

fn test(
    form: &mut Form<'_, '_>,
    first: usize,
    comparison: Comparison,
    ty: Type,
    ftz: bool,
) -> Result<Test, PtxError> {
    let is_float = ty.is_float();
    if !is_float && comparison as u8 > GreaterEqual as u8 {
        return Err(form.bad_type(ty));
    }
    Ok(match ty {
        Type::U16 | Type::B16 => test!(form, first, comparison, u16, |x| x, |_| false),
        Type::S16 => test!(form, first, comparison, i16, |x| x, |_| false),
        Type::U32 | Type::B32 => test!(form, first, comparison, u32, |x| x, |_| false),
        Type::S32 => test!(form, first, comparison, i32, |x| x, |_| false),
        Type::U64 | Type::B64 => test!(form, first, comparison, u64, |x| x, |_| false),
        Type::S64 => test!(form, first, comparison, i64, |x| x, |_| false),
        Type::F32 if ftz => test!(form, first, comparison, f32, |x| flush(x), f32::is_nan),
        Type::F32 => test!(form, first, comparison, f32, |x| x, f32::is_nan),
        Type::F64 => test!(form, first, comparison, f64, |x| x, f64::is_nan),
        Type::F16 => {
            test!(form, first, comparison, u16, |x| F16::widen(flushed(x, ftz)), f32::is_nan)
        }
        Type::Bf16 => test!(form, first, comparison, u16, |x| Bf16::widen(x), f32::is_nan),
        other => return Err(form.bad_type(other)),
    })
}

/// A half, flushed to zero if asked to.
#[inline(always)]
fn flushed(bits: u16, ftz: bool) -> u16 {
    if ftz && bits & 0x7c00 == 0 { bits & 0x8000 } else { bits }
}

/// How a comparison is combined with a predicate.
#[derive(Clone, Copy)]
enum Combine {
    And,
    Or,
    Xor,
}

fn combined(bits: u32, combine: Option<(Combine, Predicate)>, registers: &Registers) -> u32 {
    match combine {
        None => bits,
        Some((how, predicate)) => {
            let other = predicate.lanes(registers);
            match how {
                Combine::And => bits & other,
                Combine::Or => bits | other,
                Combine::Xor => bits ^ other,
            }
        }
    }
}

fn setp(form: &mut Form<'_, '_>) -> Compiled {
    let comparison = comparison(form)?;
    let how = form.choice(&[("and", Combine::And), ("or", Combine::Or), ("xor", Combine::Xor)]);
    let ftz = form.flag("ftz");
    let ty = form.ty()?;
    form.expect(if how.is_some() { 4 } else { 3 })?;
    let combine = match how {
        Some(how) => Some((how, form.predicate(3)?)),
        None => None,
    };
    let (first, second) = match form.operand(0)? {
        Operand::Pair(first, second) => {
            (form.predicate_target(0, first)?, form.predicate_target(0, second)?)
        }
        one => (form.predicate_target(0, one)?, None),
    };
    if matches!(ty, Type::F16x2 | Type::Bf16x2) {
        return setp_pair(form, comparison, ty, ftz, combine, [first, second]);
    }
    let test = test(form, 1, comparison, ty, ftz)?;
    // The common case: one target, nothing to combine.
    if let (Some(target), None, None) = (first, second, combine) {
        let target = target as usize;
        return Ok(Action::lanes(move |registers, mask| {
            let bits = test(registers);
            registers.set_predicate(target, bits, mask);
        }));
    }
    Ok(Action::lanes(move |registers, mask| {
        let bits = test(registers);
        let (yes, no) = (combined(bits, combine, registers), combined(!bits, combine, registers));
        for (target, bits) in [(first, yes), (second, no)] {
            if let Some(target) = target {
                registers.set_predicate(target as usize, bits, mask);
            }
        }
    }))
}

/// Two halves compared at once: a predicate for each.
fn setp_pair(
    form: &mut Form<'_, '_>,
    comparison: Comparison,
    ty: Type,
    ftz: bool,
    combine: Option<(Combine, Predicate)>,
    targets: [Option<u32>; 2],
) -> Compiled {
    let slots = (form.src::<u32>(1)?, form.src::<u32>(2)?);
    let half = move |a: u32, b: u32, shift: u32| {
        half_holds(comparison, (a >> shift) as u16, (b >> shift) as u16, ty, ftz)
    };
    Ok(Action::lanes(move |registers, mask| {
        for (target, shift) in targets.into_iter().zip([0, 16]) {
            if let Some(target) = target {
                let bits = registers.test2(slots, |a, b| half(a, b, shift));
                let bits = combined(bits, combine, registers);
                registers.set_predicate(target as usize, bits, mask);
            }
        }
    }))
}

fn half_holds(comparison: Comparison, a: u16, b: u16, ty: Type, ftz: bool) -> bool {
    let (a, b) = if matches!(ty, Type::F16 | Type::F16x2) {
        (F16::widen(flushed(a, ftz)), F16::widen(flushed(b, ftz)))
    } else {
        (Bf16::widen(a), Bf16::widen(b))
    };
    holds(comparison, a, b, a.is_nan() || b.is_nan())
}

fn set(form: &mut Form<'_, '_>) -> Compiled {
    let comparison = comparison(form)?;
    let ftz = form.flag("ftz");
    let (result, ty) = (form.ty()?, form.ty()?);
    form.expect(3)?;
    match (result, ty) {
        (Type::F16x2 | Type::Bf16x2, Type::F16x2 | Type::Bf16x2) => {
            let one = if result == Type::F16x2 { 0x3c00 } else { 0x3f80 };
            form.binary(move |a: u32, b: u32| {
                super::arithmetic::pairs(a, b, |a, b| {
                    if half_holds(comparison, a, b, ty, ftz) { one } else { 0 }
                })
            })
        }
        (Type::F16 | Type::Bf16, Type::F16 | Type::Bf16) => {
            let one = if result == Type::F16 { 0x3c00u16 } else { 0x3f80 };
            form.binary(
                move |a: u16, b: u16| {
                    if half_holds(comparison, a, b, ty, ftz) { one } else { 0 }
                },
            )
        }
        (Type::U32 | Type::S32 | Type::F32, _) => {
            let yes = if result == Type::F32 { 1f32.to_bits() } else { u32::MAX };
            let target = form.dst::<u32>(0)?;
            let test = test(form, 1, comparison, ty, ftz)?;
            Ok(Action::lanes(move |registers, mask| {
                let bits = test(registers);
                let out = std::array::from_fn(|lane| if bits >> lane & 1 == 1 { yes } else { 0 });
                registers.set(target, out, mask);
            }))
        }
        (other, _) => Err(form.bad_type(other)),
    }
}

fn selp(form: &mut Form<'_, '_>) -> Compiled {
    let ty = form.ty()?;
    match ty.bytes() {
        2 => select::<u16>(form),
        4 => select::<u32>(form),
        8 => select::<u64>(form),
        _ => Err(form.bad_type(ty)),
    }
}

fn select<T: Lane>(form: &mut Form<'_, '_>) -> Compiled {
    form.expect(4)?;
    let (d, a, b) = (form.dst::<T>(0)?, form.src::<T>(1)?, form.src::<T>(2)?);
    let predicate = form.predicate(3)?;
    Ok(Action::lanes(move |registers, mask| {
        let bits = predicate.lanes(registers);
        let (a, b) = (registers.get(a), registers.get(b));
        let mut out = b;
        for lane in 0..32 {
            if bits >> lane & 1 == 1 {
                out[lane] = a[lane];
            }
        }
        registers.set(d, out, mask);
    }))
}

fn slct(form: &mut Form<'_, '_>) -> Compiled {
    let ftz = form.flag("ftz");
    let (ty, by) = (form.ty()?, form.ty()?);
    match (ty.bytes(), by) {
        (4, Type::S32) => form.ternary(|a: u32, b: u32, c: i32| if c >= 0 { a } else { b }),
        (4, Type::F32) => form.ternary(move |a: u32, b: u32, c: f32| {
            let c = if ftz { flush(c) } else { c };
            if c >= 0.0 { a } else { b }
        }),
        (8, Type::S32) => form.ternary(|a: u64, b: u64, c: i32| if c >= 0 { a } else { b }),
        (8, Type::F32) => form.ternary(|a: u64, b: u64, c: f32| if c >= 0.0 { a } else { b }),
        _ => Err(form.bad_type(ty)),
    }
}

/// `and.pred`, `or.pred` and `xor.pred`.
pub(super) fn combine(
    form: &mut Form<'_, '_>,
    f: impl Fn(u64, u64) -> u64 + Copy + Send + Sync + 'static,
) -> Compiled {
    form.class = Class::Predicate;
    form.expect(3)?;
    let operand = form.operand(0)?;
    let target = form.predicate_target(0, operand)?;
    let (a, b) = (form.predicate(1)?, form.predicate(2)?);
    let Some(target) = target else { return Ok(Action::nothing()) };
    Ok(Action::lanes(move |registers, mask| {
        let bits = f(u64::from(a.lanes(registers)), u64::from(b.lanes(registers))) as u32;
        registers.set_predicate(target as usize, bits, mask);
    }))
}

/// `not.pred`.
pub(super) fn invert(form: &mut Form<'_, '_>) -> Compiled {
    form.class = Class::Predicate;
    form.expect(2)?;
    let operand = form.operand(0)?;
    let target = form.predicate_target(0, operand)?;
    let source = form.predicate(1)?;
    let Some(target) = target else { return Ok(Action::nothing()) };
    Ok(Action::lanes(move |registers, mask| {
        let bits = !source.lanes(registers);
        registers.set_predicate(target as usize, bits, mask);
    }))
}

/// `mov.pred`.
pub(super) fn copy(form: &mut Form<'_, '_>) -> Compiled {
    form.expect(2)?;
    let operand = form.operand(0)?;
    let target = form.predicate_target(0, operand)?;
    let Some(target) = target else { return Ok(Action::nothing()) };
    // NVRTC writes constants here: 0 or -1.
    if let Operand::Integer(value) = form.operand(1)? {
        let bits = if *value != 0 { FULL } else { 0 };
        return Ok(Action::lanes(move |registers, mask| {
            registers.set_predicate(target as usize, bits, mask);
        }));
    }
    let source = form.predicate(1)?;
    Ok(Action::lanes(move |registers, mask| {
        let bits = source.lanes(registers);
        registers.set_predicate(target as usize, bits, mask);
    }))
}
