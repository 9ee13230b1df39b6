//! Floating point arithmetic.

use crate::count::Class;
use crate::machine::action::Action;
use crate::machine::float::{
    Bf16, F16, Half, NAN16, NAN32, Rounding, add32, add64, canonical, div32, div64, flush, fma32,
    fma64, mul32, mul64, saturate, sqrt32, sqrt64, to_odd,
};
use crate::machine::form::Form;
use crate::ptx::{PtxError, Type};

use super::Op;
use super::approximate::{approximate, shake, special};
use super::arithmetic::pairs;

type Compiled = Result<Action, PtxError>;

pub(super) const TABLE: &[Op] = &[
    Op {
        name: "fma",
        class: Class::Float,
        forms: &[
            "fma.(rn|rz|rm|rp)(|.ftz)(|.sat).f32 r0, r1, r2, r3",
            "fma.(rn|rz|rm|rp).f64 d0, d1, d2, d3",
            "fma.rn(|.ftz)(|.sat|.relu).f16 h0, h1, h2, h3",
            "fma.rn(|.ftz)(|.sat|.relu).f16x2 r0, r1, r2, r3",
            "fma.rn(|.relu).bf16 h0, h1, h2, h3",
            "fma.rn(|.relu).bf16x2 r0, r1, r2, r3",
        ],
        compile: |form| {
            let ty = form.ty()?;
            fma(form, ty)
        },
    },
    Op {
        name: "rcp",
        class: Class::Special,
        forms: &[
            "rcp.(approx|rn|rz|rm|rp)(|.ftz).f32 r0, r1",
            "rcp.(rn|rz|rm|rp).f64 d0, d1",
            "rcp.approx.ftz.f64 d0, d1",
        ],
        compile: rcp,
    },
    Op {
        name: "sqrt",
        class: Class::Special,
        forms: &["sqrt.(approx|rn|rz|rm|rp)(|.ftz).f32 r0, r1", "sqrt.(rn|rz|rm|rp).f64 d0, d1"],
        compile: sqrt,
    },
    Op {
        name: "rsqrt",
        class: Class::Special,
        forms: &["rsqrt.approx(|.ftz).f32 r0, r1", "rsqrt.approx(|.ftz).f64 d0, d1"],
        compile: rsqrt,
    },
    Op {
        name: "ex2",
        class: Class::Special,
        forms: &[
            "ex2.approx(|.ftz).f32 r0, r1",
            "ex2.approx.f16 h0, h1",
            "ex2.approx.f16x2 r0, r1",
            "ex2.approx.ftz.bf16 h0, h1",
            "ex2.approx.ftz.bf16x2 r0, r1",
        ],
        compile: |form| special(form, f64::exp2, 2.0, 0.0),
    },
    Op {
        name: "lg2",
        class: Class::Special,
        forms: &["lg2.approx(|.ftz).f32 r0, r1"],
        // PTX states an absolute error of 2^-22 near one, and a relative one of 2^-22 elsewhere.
        compile: |form| special(form, f64::log2, 2.0, 2.4e-7),
    },
    Op {
        name: "sin",
        class: Class::Special,
        forms: &["sin.approx(|.ftz).f32 r0, r1"],
        compile: |form| special(form, f64::sin, 0.0, 5e-7),
    },
    Op {
        name: "cos",
        class: Class::Special,
        forms: &["cos.approx(|.ftz).f32 r0, r1"],
        compile: |form| special(form, f64::cos, 0.0, 5e-7),
    },
    Op {
        name: "tanh",
        class: Class::Special,
        forms: &[
            "tanh.approx.f32 r0, r1",
            "tanh.approx.(f16|bf16) h0, h1",
            "tanh.approx.(f16x2|bf16x2) r0, r1",
        ],
        // A relative error of 2^-11.
        compile: |form| special(form, f64::tanh, 4096.0, 0.0),
    },
    Op {
        name: "copysign",
        class: Class::Float,
        forms: &["copysign.f32 r0, r1, r2", "copysign.f64 d0, d1, d2"],
        compile: copysign,
    },
    Op {
        name: "testp",
        class: Class::Predicate,
        forms: &[
            "testp.(finite|infinite|number|notanumber|normal|subnormal).f32 p0, r1",
            "testp.(finite|infinite|number|notanumber|normal|subnormal).f64 p0, d1",
        ],
        compile: testp,
    },
];

/// An operation on two numbers in each format.
#[derive(Clone, Copy)]
struct Two<S, D> {
    single: S,
    directed: fn(f32, f32, Rounding) -> f32,
    double: D,
    directed_double: fn(f64, f64, Rounding) -> f64,
}

pub(super) fn add(form: &mut Form<'_, '_>, ty: Type) -> Compiled {
    let two = Two {
        single: |a: f32, b: f32| a + b,
        directed: add32,
        double: |a: f64, b: f64| a + b,
        directed_double: add64,
    };
    two.compile(form, ty)
}

pub(super) fn sub(form: &mut Form<'_, '_>, ty: Type) -> Compiled {
    let two = Two {
        single: |a: f32, b: f32| a - b,
        directed: |a, b, rounding| add32(a, -b, rounding),
        double: |a: f64, b: f64| a - b,
        directed_double: |a, b, rounding| add64(a, -b, rounding),
    };
    two.compile(form, ty)
}

pub(super) fn mul(form: &mut Form<'_, '_>, ty: Type) -> Compiled {
    let two = Two {
        single: |a: f32, b: f32| a * b,
        directed: mul32,
        double: |a: f64, b: f64| a * b,
        directed_double: mul64,
    };
    two.compile(form, ty)
}

impl<S, D> Two<S, D>
where
    S: Fn(f32, f32) -> f32 + Copy + Send + Sync + 'static,
    D: Fn(f64, f64) -> f64 + Copy + Send + Sync + 'static,
{
    fn compile(self, form: &mut Form<'_, '_>, ty: Type) -> Compiled {
        let rounding = form.rounding().unwrap_or(Rounding::Nearest);
        let nearest = rounding == Rounding::Nearest;
        let (ftz, sat) = (form.flag("ftz"), form.flag("sat"));
        let Self { single, directed, double, directed_double } = self;
        match ty {
            Type::F32 if nearest && !ftz && !sat => {
                form.binary(move |a: f32, b: f32| canonical(single(a, b)))
            }
            Type::F32 if nearest && !sat => {
                form.binary(move |a: f32, b: f32| canonical(flush(single(flush(a), flush(b)))))
            }
            Type::F32 => form.binary(move |a: f32, b: f32| {
                let (a, b) = if ftz { (flush(a), flush(b)) } else { (a, b) };
                finish(directed(a, b, rounding), ftz, sat)
            }),
            Type::F64 if nearest && !ftz && !sat => form.binary(double),
            Type::F64 if !ftz && !sat => {
                form.binary(move |a: f64, b: f64| directed_double(a, b, rounding))
            }
            // A single has more than twice the bits of a half, so rounding twice does no harm.
            Type::F16 if nearest => {
                form.binary(move |a: u16, b: u16| half2::<F16>(a, b, ftz, sat, single))
            }
            Type::F16x2 if nearest => form.binary(move |a: u32, b: u32| {
                pairs(a, b, |a, b| half2::<F16>(a, b, ftz, sat, single))
            }),
            Type::Bf16 if nearest && !ftz && !sat => {
                form.binary(move |a: u16, b: u16| half2::<Bf16>(a, b, false, false, single))
            }
            Type::Bf16x2 if nearest && !ftz && !sat => form.binary(move |a: u32, b: u32| {
                pairs(a, b, |a, b| half2::<Bf16>(a, b, false, false, single))
            }),
            other => Err(form.bad_type(other)),
        }
    }
}

#[inline(always)]
pub(super) fn finish(value: f32, ftz: bool, sat: bool) -> f32 {
    let value = if ftz { flush(value) } else { value };
    if sat { saturate(value) } else { canonical(value) }
}

/// Flushes a subnormal half to zero.
#[inline(always)]
fn flush_half(bits: u16) -> u16 {
    if bits & 0x7c00 == 0 { bits & 0x8000 } else { bits }
}

#[inline(always)]
fn half2<H: Half>(a: u16, b: u16, ftz: bool, sat: bool, f: impl Fn(f32, f32) -> f32) -> u16 {
    let (a, b) = if ftz { (flush_half(a), flush_half(b)) } else { (a, b) };
    finish_half::<H>(f(H::widen(a), H::widen(b)), ftz, sat)
}

#[inline(always)]
fn finish_half<H: Half>(value: f32, ftz: bool, sat: bool) -> u16 {
    let bits = H::narrow(if sat { saturate(value) } else { value });
    if ftz { flush_half(bits) } else { bits }
}

pub(super) fn fma(form: &mut Form<'_, '_>, ty: Type) -> Compiled {
    let rounding = form.rounding().ok_or_else(|| form.missing("a rounding"))?;
    let nearest = rounding == Rounding::Nearest;
    let (ftz, sat, relu) = (form.flag("ftz"), form.flag("sat"), form.flag("relu"));
    match ty {
        Type::F32 if relu => Err(form.unknown("relu")),
        Type::F32 if nearest && !ftz && !sat => {
            form.ternary(|a: f32, b: f32, c: f32| canonical(a.mul_add(b, c)))
        }
        Type::F32 if nearest && !sat => form.ternary(|a: f32, b: f32, c: f32| {
            canonical(flush(flush(a).mul_add(flush(b), flush(c))))
        }),
        Type::F32 => form.ternary(move |a: f32, b: f32, c: f32| {
            let (a, b, c) = if ftz { (flush(a), flush(b), flush(c)) } else { (a, b, c) };
            finish(fma32(a, b, c, rounding), ftz, sat)
        }),
        Type::F64 if nearest && !ftz && !sat => {
            form.ternary(|a: f64, b: f64, c: f64| a.mul_add(b, c))
        }
        Type::F64 if !ftz && !sat => {
            form.ternary(move |a: f64, b: f64, c: f64| fma64(a, b, c, rounding))
        }
        Type::F16 if nearest => {
            form.ternary(move |a: u16, b: u16, c: u16| half3::<F16>(a, b, c, ftz, sat, relu))
        }
        Type::F16x2 if nearest => form.ternary(move |a: u32, b: u32, c: u32| {
            pairs3(a, b, c, |a, b, c| half3::<F16>(a, b, c, ftz, sat, relu))
        }),
        Type::Bf16 if nearest && !ftz && !sat => {
            form.ternary(move |a: u16, b: u16, c: u16| half3::<Bf16>(a, b, c, false, false, relu))
        }
        Type::Bf16x2 if nearest && !ftz && !sat => form.ternary(move |a: u32, b: u32, c: u32| {
            pairs3(a, b, c, |a, b, c| half3::<Bf16>(a, b, c, false, false, relu))
        }),
        other => Err(form.bad_type(other)),
    }
}

#[inline(always)]
fn pairs3(a: u32, b: u32, c: u32, f: impl Fn(u16, u16, u16) -> u16) -> u32 {
    let low = f(a as u16, b as u16, c as u16);
    let high = f((a >> 16) as u16, (b >> 16) as u16, (c >> 16) as u16);
    u32::from(high) << 16 | u32::from(low)
}

#[inline(always)]
fn half3<H: Half>(a: u16, b: u16, c: u16, ftz: bool, sat: bool, relu: bool) -> u16 {
    let [a, b, c] = if ftz { [a, b, c].map(flush_half) } else { [a, b, c] };
    let value = odd_fma(H::widen(a), H::widen(b), H::widen(c));
    // Negative values become zero; NaN stays.
    let value = if relu && value < 0.0 { 0.0 } else { value };
    finish_half::<H>(value, ftz, sat)
}

/// `a * b + c` of numbers with 11 bits or fewer, rounded to odd: rounding again is exact.
#[inline(always)]
fn odd_fma(a: f32, b: f32, c: f32) -> f32 {
    let product = f64::from(a) * f64::from(b);
    let addend = f64::from(c);
    let sum = product + addend;
    let of_addend = sum - product;
    let error = (product - (sum - of_addend)) + (addend - of_addend);
    let odd = if error != 0.0 && sum.to_bits() & 1 == 0 {
        if (error > 0.0) == (sum > 0.0) {
            f64::from_bits(sum.to_bits() + 1)
        } else {
            f64::from_bits(sum.to_bits() - 1)
        }
    } else {
        sum
    };
    to_odd(odd)
}

pub(super) fn div(form: &mut Form<'_, '_>, ty: Type) -> Compiled {
    let approximate = form.flag("approx") || form.flag("full");
    let rounding = form.rounding();
    let ftz = form.flag("ftz");
    form.class = Class::Special;
    match (ty, rounding) {
        (Type::F32, Some(rounding)) if !approximate => form.binary(move |a: f32, b: f32| {
            let (a, b) = if ftz { (flush(a), flush(b)) } else { (a, b) };
            finish(div32(a, b, rounding), ftz, false)
        }),
        (Type::F32, None) if approximate => {
            form.expect(3)?;
            let slots = (form.dst::<f32>(0)?, form.src::<f32>(1)?, form.src::<f32>(2)?);
            Ok(Action::lanes(move |registers, mask| {
                let perturb = registers.perturb;
                registers.map2(mask, slots, |a: f32, b: f32| {
                    let (a, b) = if ftz { (flush(a), flush(b)) } else { (a, b) };
                    finish(shake(a / b, perturb, 2.0, 0.0), ftz, false)
                });
            }))
        }
        (Type::F64, Some(rounding)) if !approximate && !ftz => {
            form.binary(move |a: f64, b: f64| div64(a, b, rounding))
        }
        (Type::F32 | Type::F64, _) => Err(form.missing("approx, full or a rounding")),
        (other, _) => Err(form.bad_type(other)),
    }
}

fn rcp(form: &mut Form<'_, '_>) -> Compiled {
    let approx = form.flag("approx");
    let rounding = form.rounding();
    let (ty, ftz) = (form.ty()?, form.flag("ftz"));
    match (ty, rounding) {
        (Type::F32, None) if approx => approximate(form, ty, ftz, |a| 1.0 / a, 1.0, 0.0),
        (Type::F32, Some(rounding)) if !approx => form.unary(move |a: f32| {
            let a = if ftz { flush(a) } else { a };
            finish(div32(1.0, a, rounding), ftz, false)
        }),
        (Type::F64, Some(rounding)) if !approx => form.unary(move |a: f64| div64(1.0, a, rounding)),
        // The upper half of the result; the lower half is zero.
        (Type::F64, None) if approx && ftz => form.unary(|a: f64| upper_half(1.0 / upper_half(a))),
        _ => Err(form.missing("approx or a rounding")),
    }
}

fn upper_half(value: f64) -> f64 {
    f64::from_bits(value.to_bits() & 0xffff_ffff_0000_0000)
}

fn sqrt(form: &mut Form<'_, '_>) -> Compiled {
    let approx = form.flag("approx");
    let rounding = form.rounding();
    let (ty, ftz) = (form.ty()?, form.flag("ftz"));
    match (ty, rounding) {
        (Type::F32, None) if approx => approximate(form, ty, ftz, f64::sqrt, 2.0, 0.0),
        (Type::F32, Some(rounding)) if !approx => form.unary(move |a: f32| {
            let a = if ftz { flush(a) } else { a };
            finish(sqrt32(a, rounding), ftz, false)
        }),
        (Type::F64, Some(rounding)) if !approx => form.unary(move |a: f64| sqrt64(a, rounding)),
        _ => Err(form.missing("approx or a rounding")),
    }
}

fn rsqrt(form: &mut Form<'_, '_>) -> Compiled {
    if !form.flag("approx") {
        return Err(form.missing("approx"));
    }
    let (ty, ftz) = (form.ty()?, form.flag("ftz"));
    if ty == Type::F64 {
        return form.unary(|a: f64| 1.0 / a.sqrt());
    }
    approximate(form, ty, ftz, |a| 1.0 / a.sqrt(), 2.0, 0.0)
}

pub(super) fn neg(form: &mut Form<'_, '_>, ty: Type) -> Compiled {
    let ftz = form.flag("ftz");
    match ty {
        Type::F32 => form.unary(move |a: f32| -if ftz { flush(a) } else { a }),
        Type::F64 if !ftz => form.unary(|a: f64| -a),
        Type::F16 | Type::Bf16 => {
            form.unary(move |a: u16| if ftz { flush_half(a) } else { a } ^ 0x8000)
        }
        Type::F16x2 | Type::Bf16x2 => form
            .unary(move |a: u32| pairs(a, 0, |a, _| if ftz { flush_half(a) } else { a } ^ 0x8000)),
        other => Err(form.bad_type(other)),
    }
}

pub(super) fn abs(form: &mut Form<'_, '_>, ty: Type) -> Compiled {
    let ftz = form.flag("ftz");
    match ty {
        Type::F32 => form.unary(move |a: f32| if ftz { flush(a) } else { a }.abs()),
        Type::F64 if !ftz => form.unary(f64::abs),
        Type::F16 | Type::Bf16 => {
            form.unary(move |a: u16| if ftz { flush_half(a) } else { a } & 0x7fff)
        }
        Type::F16x2 | Type::Bf16x2 => form
            .unary(move |a: u32| pairs(a, 0, |a, _| if ftz { flush_half(a) } else { a } & 0x7fff)),
        other => Err(form.bad_type(other)),
    }
}

pub(super) fn min(form: &mut Form<'_, '_>, ty: Type) -> Compiled {
    extreme(form, ty, false)
}

pub(super) fn max(form: &mut Form<'_, '_>, ty: Type) -> Compiled {
    extreme(form, ty, true)
}

fn extreme(form: &mut Form<'_, '_>, ty: Type, max: bool) -> Compiled {
    let (ftz, nan) = (form.flag("ftz"), form.flag("NaN"));
    let xorsign = form.flag("xorsign") && form.flag("abs");
    match ty {
        Type::F32 if !ftz && !nan && !xorsign && max => form.binary(|a, b| choose(a, b, true)),
        Type::F32 if !ftz && !nan && !xorsign => form.binary(|a, b| choose(a, b, false)),
        Type::F32 => form.binary(move |a: f32, b: f32| {
            let (a, b) = if ftz { (flush(a), flush(b)) } else { (a, b) };
            choose_with(a, b, max, nan, xorsign)
        }),
        Type::F64 if !ftz && !nan && !xorsign => form.binary(move |a: f64, b: f64| {
            if a.is_nan() {
                b
            } else if b.is_nan() || (a == b && a.is_sign_positive() == max) {
                a
            } else if a == b {
                b
            } else if (a > b) == max {
                a
            } else {
                b
            }
        }),
        Type::F16 => form.binary(move |a, b| half_extreme::<F16>(a, b, ftz, max, nan, xorsign)),
        Type::F16x2 => form.binary(move |a: u32, b: u32| {
            pairs(a, b, |a, b| half_extreme::<F16>(a, b, ftz, max, nan, xorsign))
        }),
        Type::Bf16 if !ftz => {
            form.binary(move |a, b| half_extreme::<Bf16>(a, b, false, max, nan, xorsign))
        }
        Type::Bf16x2 if !ftz => form.binary(move |a: u32, b: u32| {
            pairs(a, b, |a, b| half_extreme::<Bf16>(a, b, false, max, nan, xorsign))
        }),
        other => Err(form.bad_type(other)),
    }
}

/// The smaller or larger number. A NaN loses to any number, and -0 is below +0.
#[inline(always)]
fn choose(a: f32, b: f32, max: bool) -> f32 {
    // In this order of integers, NaN apart, floats are in the order of their values.
    let key = |value: f32| {
        let bits = value.to_bits() as i32;
        bits ^ ((bits >> 31) as u32 >> 1) as i32
    };
    let first = if max { key(a) > key(b) } else { key(a) < key(b) };
    let chosen = if first { a } else { b };
    let chosen = if a.is_nan() { b } else { chosen };
    let chosen = if b.is_nan() { a } else { chosen };
    canonical(chosen)
}

#[inline(always)]
fn choose_with(a: f32, b: f32, max: bool, nan: bool, xorsign: bool) -> f32 {
    if nan && (a.is_nan() || b.is_nan()) {
        return NAN32;
    }
    if !xorsign {
        return choose(a, b, max);
    }
    let sign = (a.to_bits() ^ b.to_bits()) & 0x8000_0000;
    let chosen = choose(a.abs(), b.abs(), max);
    if chosen.is_nan() { chosen } else { f32::from_bits(chosen.to_bits() | sign) }
}

#[inline(always)]
fn half_extreme<H: Half>(a: u16, b: u16, ftz: bool, max: bool, nan: bool, xorsign: bool) -> u16 {
    let (a, b) = if ftz { (flush_half(a), flush_half(b)) } else { (a, b) };
    let chosen = choose_with(H::widen(a), H::widen(b), max, nan, xorsign);
    if chosen.is_nan() { NAN16 } else { H::narrow(chosen) }
}

fn copysign(form: &mut Form<'_, '_>) -> Compiled {
    // The sign of the first operand and the value of the second.
    match form.ty()? {
        Type::F32 => form.binary(|a: f32, b: f32| b.copysign(a)),
        Type::F64 => form.binary(|a: f64, b: f64| b.copysign(a)),
        other => Err(form.bad_type(other)),
    }
}

fn testp(form: &mut Form<'_, '_>) -> Compiled {
    use std::num::FpCategory::{Infinite, Nan, Normal, Subnormal, Zero};
    let test: fn(std::num::FpCategory) -> bool = form
        .choice::<fn(std::num::FpCategory) -> bool>(&[
            ("finite", |c| matches!(c, Zero | Normal | Subnormal)),
            ("infinite", |c| c == Infinite),
            ("number", |c| c != Nan),
            ("notanumber", |c| c == Nan),
            ("normal", |c| c == Normal),
            ("subnormal", |c| c == Subnormal),
        ])
        .ok_or_else(|| form.missing("a test"))?;
    let ty = form.ty()?;
    form.expect(2)?;
    let operand = form.operand(0)?;
    let target = form.predicate_target(0, operand)?.unwrap_or_default() as usize;
    match ty {
        Type::F32 => {
            let a = form.src::<f32>(1)?;
            Ok(Action::lanes(move |registers, mask| {
                let bits = registers.test2((a, a), |a, _| test(a.classify()));
                registers.set_predicate(target, bits, mask);
            }))
        }
        Type::F64 => {
            let a = form.src::<f64>(1)?;
            Ok(Action::lanes(move |registers, mask| {
                let bits = registers.test2((a, a), |a, _| test(a.classify()));
                registers.set_predicate(target, bits, mask);
            }))
        }
        other => Err(form.bad_type(other)),
    }
}
