//! `cvt`: conversions between types.

use crate::count::Class;
use crate::machine::action::Action;
use crate::machine::float::{
    Bf16, Eight, F16, Half, Rounding, canonical, flush, narrow_bf16, narrow_f16, round32, saturate,
};
use crate::machine::form::Form;
use crate::machine::names::Register;
use crate::ptx::{PtxError, Type};

use super::Op;

type Compiled = Result<Action, PtxError>;

pub(super) const TABLE: &[Op] = &[Op {
    name: "cvt",
    class: Class::Convert,
    forms: &[
        "cvt(|.sat).(u8|s8).(u16|s16) h0, h1",
        "cvt(|.sat).(u8|s8|u16|s16).(u32|s32) h0, r1",
        "cvt(|.sat).(u8|s8|u16|s16|u32|s32).(u32|s32) r0, r1",
        "cvt(|.sat).(u8|s8|u16|s16|u32|s32).(u8|s8|u16|s16) r0, h1",
        "cvt(|.sat).(u32|s32).(u64|s64) r0, d1",
        "cvt(|.sat).(u64|s64).(u32|s32) d0, r1",
        "cvt(|.sat).(u64|s64).(u16|s16|u8|s8) d0, h1",
        "cvt(|.sat).(u16|s16|u8|s8).(u64|s64) h0, d1",
        "cvt.(rni|rzi|rmi|rpi)(|.ftz)(|.sat).(u8|s8|u16|s16|u32|s32).f32 r0, r1",
        "cvt.(rni|rzi|rmi|rpi)(|.ftz)(|.sat).(u64|s64).f32 d0, r1",
        "cvt.(rni|rzi|rmi|rpi)(|.sat).(u32|s32).f64 r0, d1",
        "cvt.(rni|rzi|rmi|rpi)(|.sat).(u64|s64).f64 d0, d1",
        "cvt.(rni|rzi|rmi|rpi)(|.ftz)(|.sat).(u16|s16).f16 h0, h1",
        "cvt.(rni|rzi|rmi|rpi)(|.ftz)(|.sat).(u32|s32).f16 r0, h1",
        "cvt.(rni|rzi|rmi|rpi)(|.ftz)(|.sat).(u64|s64).f16 d0, h1",
        "cvt.(rni|rzi|rmi|rpi).(u16|s16).bf16 h0, h1",
        "cvt.(rni|rzi|rmi|rpi).(u32|s32).bf16 r0, h1",
        "cvt.(rn|rz|rm|rp)(|.sat).f32.(u8|s8|u16|s16) r0, h1",
        "cvt.(rn|rz|rm|rp)(|.sat).f32.(u32|s32) r0, r1",
        "cvt.(rn|rz|rm|rp)(|.sat).f32.(u64|s64) r0, d1",
        "cvt.(rn|rz|rm|rp).f64.(u32|s32) d0, r1",
        "cvt.(rn|rz|rm|rp).f64.(u64|s64) d0, d1",
        "cvt.(rn|rz|rm|rp)(|.sat).f16.(u16|s16) h0, h1",
        "cvt.(rn|rz|rm|rp)(|.sat).f16.(u32|s32) h0, r1",
        "cvt.(rn|rz|rm|rp)(|.sat).f16.(u64|s64) h0, d1",
        "cvt.rn.bf16.(u32|s32) h0, r1",
        "cvt.rn.bf16.(u16|s16) h0, h1",
        "cvt(|.ftz)(|.sat).f32.f32 r0, r1",
        "cvt.(rni|rzi|rmi|rpi)(|.ftz)(|.sat).f32.f32 r0, r1",
        "cvt.(rni|rzi|rmi|rpi)(|.sat).f64.f64 d0, d1",
        "cvt.(rni|rzi|rmi|rpi)(|.ftz)(|.sat).f16.f16 h0, h1",
        "cvt(|.ftz)(|.sat).f64.f32 d0, r1",
        "cvt.(rn|rz|rm|rp)(|.ftz)(|.sat).f32.f64 r0, d1",
        "cvt(|.ftz)(|.sat).f32.f16 r0, h1",
        "cvt(|.ftz).f32.bf16 r0, h1",
        "cvt.f64.(f16|bf16) d0, h1",
        "cvt.(rn|rz|rm|rp)(|.ftz)(|.sat).f16.f32 h0, r1",
        "cvt.(rn|rz|rm|rp)(|.sat).f16.f64 h0, d1",
        "cvt.(rn|rz)(|.relu).bf16.f32 h0, r1",
        "cvt.rn.bf16.f64 h0, d1",
        "cvt.(rn|rz|rna)(|.relu)(|.satfinite).tf32.f32 r0, r1",
        "cvt.(rn|rz)(|.relu).(f16x2|bf16x2).f32 r0, r1, r2",
        "cvt.rn.satfinite(|.relu).(e4m3x2|e5m2x2).f32 h0, r1, r2",
        "cvt.rn.satfinite(|.relu).(e4m3x2|e5m2x2).f16x2 h0, r1",
        "cvt.rn(|.relu).f16x2.(e4m3x2|e5m2x2) r0, h1",
    ],
    compile: cvt,
}];

/// How a value becomes a whole number.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Whole {
    Nearest,
    Zero,
    Down,
    Up,
}

fn cvt(form: &mut Form<'_, '_>) -> Compiled {
    let whole = form.choice(&[
        ("rni", Whole::Nearest),
        ("rzi", Whole::Zero),
        ("rmi", Whole::Down),
        ("rpi", Whole::Up),
    ]);
    let away = form.flag("rna");
    let rounding = form.rounding();
    let flags = Flags {
        ftz: form.flag("ftz"),
        sat: form.flag("sat"),
        relu: form.flag("relu"),
        finite: form.flag("satfinite"),
    };
    let (to, from) = (form.ty()?, form.ty()?);
    match to {
        Type::F16x2 | Type::Bf16x2 if from == Type::F32 => pair(form, to, rounding, flags),
        Type::E4m3x2 | Type::E5m2x2 => to_eight(form, to, from, flags),
        Type::F16x2 => from_eight(form, from, flags),
        Type::Tf32 if from == Type::F32 => {
            if !away && rounding.is_none() {
                return Err(form.missing("a rounding"));
            }
            form.unary(move |a: f32| tf32(a, rounding, flags))
        }
        _ => scalar(form, to, from, whole, rounding, flags),
    }
}

#[derive(Clone, Copy)]
struct Flags {
    ftz: bool,
    sat: bool,
    relu: bool,
    finite: bool,
}

/// The first operand goes to the upper half.
fn pair(form: &mut Form<'_, '_>, to: Type, rounding: Option<Rounding>, flags: Flags) -> Compiled {
    let rounding = rounding.ok_or_else(|| form.missing("a rounding"))?;
    let relu = move |value: f32| if flags.relu && value < 0.0 { 0.0 } else { value };
    match (to, rounding) {
        (Type::F16x2, Rounding::Nearest) => form.binary(move |high: f32, low: f32| {
            u32::from(F16::narrow(relu(high))) << 16 | u32::from(F16::narrow(relu(low)))
        }),
        (Type::F16x2, _) => form.binary(move |high: f32, low: f32| {
            u32::from(narrow_f16(relu(high), rounding)) << 16
                | u32::from(narrow_f16(relu(low), rounding))
        }),
        (_, Rounding::Nearest) => form.binary(move |high: f32, low: f32| {
            u32::from(Bf16::narrow(relu(high))) << 16 | u32::from(Bf16::narrow(relu(low)))
        }),
        _ => form.binary(move |high: f32, low: f32| {
            u32::from(narrow_bf16(relu(high), rounding)) << 16
                | u32::from(narrow_bf16(relu(low), rounding))
        }),
    }
}

/// Two numbers of 8 bits; the first operand goes to the upper one.
fn to_eight(form: &mut Form<'_, '_>, to: Type, from: Type, flags: Flags) -> Compiled {
    let format = if to == Type::E4m3x2 { Eight::E4m3 } else { Eight::E5m2 };
    let relu = move |value: f32| if flags.relu && value < 0.0 { 0.0 } else { value };
    if !flags.finite {
        return Err(form.missing("satfinite"));
    }
    match from {
        Type::F32 => form.binary(move |high: f32, low: f32| {
            u16::from(format.narrow(relu(high))) << 8 | u16::from(format.narrow(relu(low)))
        }),
        Type::F16x2 => form.unary(move |both: u32| {
            let (high, low) = (F16::widen((both >> 16) as u16), F16::widen(both as u16));
            u16::from(format.narrow(relu(high))) << 8 | u16::from(format.narrow(relu(low)))
        }),
        other => Err(form.bad_type(other)),
    }
}

fn from_eight(form: &mut Form<'_, '_>, from: Type, flags: Flags) -> Compiled {
    let format = match from {
        Type::E4m3x2 => Eight::E4m3,
        Type::E5m2x2 => Eight::E5m2,
        other => return Err(form.bad_type(other)),
    };
    let relu = move |value: f32| if flags.relu && value < 0.0 { 0.0 } else { value };
    form.unary(move |both: u16| {
        let half = |bits: u8| u32::from(F16::narrow(relu(format.widen(bits))));
        half((both >> 8) as u8) << 16 | half(both as u8)
    })
}

/// Keeps 10 bits of the fraction. Without another rounding, ties go away from zero.
fn tf32(value: f32, rounding: Option<Rounding>, flags: Flags) -> f32 {
    if value.is_nan() {
        return canonical(value);
    }
    if flags.relu && value < 0.0 {
        return 0.0;
    }
    let bits = value.to_bits();
    let rounded = match rounding {
        None => bits.wrapping_add(0x1000),
        Some(Rounding::Zero) => bits,
        Some(_) => bits.wrapping_add(0xfff + (bits >> 13 & 1)),
    };
    let result = f32::from_bits(if value.is_infinite() { bits } else { rounded & !0x1fff });
    if flags.finite && result.is_infinite() {
        return f32::from_bits(0x7f7f_e000).copysign(result);
    }
    result
}

/// A value on its way from one type to another: whole numbers as they are, others in double.
#[derive(Clone, Copy)]
enum Value {
    Whole(i128),
    Real(f64),
}

fn read(bits: u64, ty: Type, ftz: bool) -> Value {
    match ty {
        Type::U8 => Value::Whole(i128::from(bits as u8)),
        Type::S8 => Value::Whole(i128::from(bits as i8)),
        Type::U16 => Value::Whole(i128::from(bits as u16)),
        Type::S16 => Value::Whole(i128::from(bits as i16)),
        Type::U32 => Value::Whole(i128::from(bits as u32)),
        Type::S32 => Value::Whole(i128::from(bits as i32)),
        Type::U64 => Value::Whole(i128::from(bits)),
        Type::S64 => Value::Whole(i128::from(bits as i64)),
        Type::F16 => Value::Real(f64::from(F16::widen(bits as u16))),
        Type::Bf16 => Value::Real(f64::from(Bf16::widen(bits as u16))),
        Type::F64 => Value::Real(f64::from_bits(bits)),
        _ => {
            let value = f32::from_bits(bits as u32);
            Value::Real(f64::from(if ftz { flush(value) } else { value }))
        }
    }
}

/// The least and the largest whole number of a type.
fn range(ty: Type) -> Option<(i128, i128)> {
    Some(match ty {
        Type::U8 => (0, i128::from(u8::MAX)),
        Type::S8 => (i128::from(i8::MIN), i128::from(i8::MAX)),
        Type::U16 => (0, i128::from(u16::MAX)),
        Type::S16 => (i128::from(i16::MIN), i128::from(i16::MAX)),
        Type::U32 => (0, i128::from(u32::MAX)),
        Type::S32 => (i128::from(i32::MIN), i128::from(i32::MAX)),
        Type::U64 => (0, i128::from(u64::MAX)),
        Type::S64 => (i128::from(i64::MIN), i128::from(i64::MAX)),
        _ => return None,
    })
}

/// What NaN becomes as a whole number: zero, but the highest bit alone where a type has 64 bits.
fn nan_as_whole(to: Type, from: Type) -> Option<u64> {
    range(to)?;
    let is_wide = from == Type::F64 || to.bytes() == 8;
    Some(if is_wide { 1 << (8 * to.bytes() - 1) } else { 0 })
}

fn is_scalar(ty: Type) -> bool {
    range(ty).is_some() || matches!(ty, Type::F16 | Type::Bf16 | Type::F32 | Type::F64)
}

fn scalar(
    form: &mut Form<'_, '_>,
    to: Type,
    from: Type,
    whole: Option<Whole>,
    rounding: Option<Rounding>,
    flags: Flags,
) -> Compiled {
    for ty in [to, from] {
        if !is_scalar(ty) {
            return Err(form.bad_type(ty));
        }
    }
    if from.is_float() && range(to).is_some() && whole.is_none() {
        return Err(form.missing("a rounding to a whole number"));
    }
    form.expect(2)?;
    let source = form.operand(1)?;
    let target = form.operand(0)?;
    let target = form.target(0, target)?;
    let source = form.source_of(1, source, from.bytes().max(2))?;
    // A wide source may be read for its low part, but not a narrow one for more than it has.
    if from.bytes() == 8 && !source.is_wide() || to.bytes() == 8 && !target.is_wide() {
        return Err(form.operand_error(0, "the register is too narrow"));
    }
    if let Some(action) = common(to, from, whole, rounding, flags, target, source) {
        return Ok(action);
    }
    let rounding = rounding.unwrap_or(Rounding::Nearest);
    let sign_extends = to.is_signed();
    Ok(Action::lanes(move |registers, mask| {
        for lane in crate::machine::context::lanes(mask) {
            let bits = registers.lane(source.row, source.is_wide(), lane);
            let value = read(bits, from, flags.ftz);
            let result = match (value, nan_as_whole(to, from)) {
                (Value::Real(real), Some(nan)) if real.is_nan() => nan,
                _ => convert(value, to, whole, rounding, flags),
            };
            write(registers, target, lane, result, to, sign_extends);
        }
    }))
}

/// The conversions that kernels are full of, over all lanes at once.
fn common(
    to: Type,
    from: Type,
    whole: Option<Whole>,
    rounding: Option<Rounding>,
    flags: Flags,
    target: Register,
    source: Register,
) -> Option<Action> {
    use crate::machine::names::Width;
    use crate::machine::registers::Slot;
    if flags.ftz || flags.sat || flags.relu {
        return None;
    }
    let nearest = rounding == Some(Rounding::Nearest);
    let widths = (target.width, source.width);
    macro_rules! map {
        ($from:ty, $to:ty, $f:expr) => {{
            let slots = (Slot::<$to>::new(target.row), Slot::<$from>::new(source.row));
            Some(Action::lanes(move |registers, mask| registers.map1(mask, slots, $f)))
        }};
    }
    match (to, from, widths) {
        (Type::S64, Type::S32, (Width::Double, Width::Word)) => map!(i32, i64, i64::from),
        (Type::S64 | Type::U64, Type::U32, (Width::Double, Width::Word)) => {
            map!(u32, u64, u64::from)
        }
        (Type::U32 | Type::S32, Type::U64 | Type::S64, (Width::Word, Width::Double)) => {
            map!(u64, u32, |a: u64| a as u32)
        }
        (Type::U32 | Type::S32, Type::U16, (Width::Word, Width::Half)) => map!(u16, u32, u32::from),
        (Type::U32 | Type::S32, Type::S16, (Width::Word, Width::Half)) => map!(i16, i32, i32::from),
        (Type::U16 | Type::S16, Type::U32 | Type::S32, (Width::Half, Width::Word)) => {
            map!(u32, u16, |a: u32| a as u16)
        }
        (Type::F32, Type::F16, (Width::Word, Width::Half)) => {
            map!(u16, f32, |a| canonical(F16::widen(a)))
        }
        (Type::F32, Type::Bf16, (Width::Word, Width::Half)) => {
            map!(u16, f32, |a| canonical(Bf16::widen(a)))
        }
        (Type::F16, Type::F32, (Width::Half, Width::Word)) if nearest => {
            map!(f32, u16, F16::narrow)
        }
        (Type::Bf16, Type::F32, (Width::Half, Width::Word)) if nearest => {
            map!(f32, u16, Bf16::narrow)
        }
        (Type::F32, Type::S32, (Width::Word, Width::Word)) if nearest => {
            map!(i32, f32, |a: i32| a as f32)
        }
        (Type::F32, Type::U32, (Width::Word, Width::Word)) if nearest => {
            map!(u32, f32, |a: u32| a as f32)
        }
        (Type::S32, Type::F32, (Width::Word, Width::Word)) if whole == Some(Whole::Zero) => {
            map!(f32, i32, |a: f32| a as i32)
        }
        (Type::U32, Type::F32, (Width::Word, Width::Word)) if whole == Some(Whole::Zero) => {
            map!(f32, u32, |a: f32| a as u32)
        }
        _ => None,
    }
}

fn convert(value: Value, to: Type, whole: Option<Whole>, rounding: Rounding, flags: Flags) -> u64 {
    if let Some((least, most)) = range(to) {
        return match value {
            Value::Whole(value) if flags.sat => value.clamp(least, most) as u64,
            Value::Whole(value) => value as u64,
            // Always clamped.
            Value::Real(value) => {
                let value = to_whole(value, whole.unwrap_or(Whole::Zero));
                (value as i128).clamp(least, most) as u64
            }
        };
    }
    let real = match value {
        Value::Real(value) => match whole {
            Some(whole) => to_whole(value, whole),
            None => value,
        },
        Value::Whole(value) => return from_whole(value, to, rounding, flags),
    };
    from_real(real, 0.0, to, rounding, flags)
}

fn to_whole(value: f64, whole: Whole) -> f64 {
    match whole {
        Whole::Nearest => value.round_ties_even(),
        Whole::Zero => value.trunc(),
        Whole::Down => value.floor(),
        Whole::Up => value.ceil(),
    }
}

fn from_whole(value: i128, to: Type, rounding: Rounding, flags: Flags) -> u64 {
    let near = value as f64;
    // What the double lacks of a 64-bit number.
    let error = (value - near as i128) as f64;
    if to == Type::F64 {
        let double = match rounding {
            Rounding::Nearest => near,
            Rounding::Down if error < 0.0 => near.next_down(),
            Rounding::Up if error > 0.0 => near.next_up(),
            Rounding::Zero if error < 0.0 && near > 0.0 => near.next_down(),
            Rounding::Zero if error > 0.0 && near < 0.0 => near.next_up(),
            _ => near,
        };
        return double.to_bits();
    }
    from_real(near, error, to, rounding, flags)
}

/// A floating point number from a double and what the double lacks.
fn from_real(value: f64, error: f64, to: Type, rounding: Rounding, flags: Flags) -> u64 {
    let saturated = |value: f32| if flags.sat { saturate(value) } else { value };
    // With an odd last bit where something is missing, rounding again is as good as once.
    let exact = if error != 0.0 && value.to_bits() & 1 == 0 {
        let up = (error > 0.0) == (value > 0.0);
        f64::from_bits(if up { value.to_bits() + 1 } else { value.to_bits() - 1 })
    } else {
        value
    };
    match to {
        Type::F64 => {
            let value = if flags.sat { value.clamp(0.0, 1.0) } else { value };
            if flags.sat && value.is_nan() { 0 } else { value.to_bits() }
        }
        Type::F16 => {
            let single = if flags.sat { exact.clamp(0.0, 1.0) } else { exact };
            let single = if flags.sat && single.is_nan() { 0.0 } else { single };
            let single = crate::machine::float::to_odd(single);
            let bits = narrow_f16(single, rounding);
            u64::from(if flags.ftz && bits & 0x7c00 == 0 { bits & 0x8000 } else { bits })
        }
        Type::Bf16 => {
            let single = crate::machine::float::to_odd(exact);
            let single = if flags.relu && single < 0.0 { 0.0 } else { single };
            u64::from(narrow_bf16(single, rounding))
        }
        _ => {
            let single = round32(exact, 0.0, rounding);
            let single = saturated(if flags.ftz { flush(single) } else { single });
            u64::from(canonical(single).to_bits())
        }
    }
}

/// Writes a result, extended to the width of the register.
fn write(
    registers: &mut crate::machine::registers::Registers,
    target: Register,
    lane: usize,
    bits: u64,
    to: Type,
    signed: bool,
) {
    let extended = match (to.bytes(), signed) {
        (1, true) => i64::from(bits as i8) as u64,
        (1, false) => u64::from(bits as u8),
        (2, true) => i64::from(bits as i16) as u64,
        (2, false) => u64::from(bits as u16),
        (4, true) => i64::from(bits as i32) as u64,
        (4, false) => u64::from(bits as u32),
        _ => bits,
    };
    let value = match target.width {
        crate::machine::names::Width::Half => extended & 0xffff,
        _ => extended,
    };
    registers.set_lane(target.row, target.is_wide(), lane, value);
}
