//! Approximate instructions: exact, or off by as much as PTX allows on request.

use crate::machine::action::Action;
use crate::machine::float::{Bf16, F16, Half, flush};
use crate::machine::form::Form;
use crate::machine::random::mix;
use crate::ptx::{PtxError, Type};

use super::arithmetic::pairs;
use super::floating::finish;

type Compiled = Result<Action, PtxError>;

/// Moves a value away by up to `ulps` units in the last place and `absolute`, as the seed says.
#[inline(always)]
pub(super) fn shake(value: f32, perturb: Option<u32>, ulps: f32, absolute: f32) -> f32 {
    let Some(seed) = perturb else { return value };
    if !value.is_finite() || value == 0.0 {
        return value;
    }
    let random = mix(u64::from(value.to_bits()) ^ u64::from(seed) << 32);
    // From -1 to 1; the ends are as likely as what lies between.
    let share = ((random >> 40) as f32 / (1 << 23) as f32 - 1.0).mul_add(1.5, 0.0).clamp(-1.0, 1.0);
    let unit = value.abs() * f32::EPSILON;
    share.mul_add(unit.mul_add(ulps, absolute), value)
}

/// An approximate function of one number. Where a device is off by up to `ulps` units or by
/// `absolute`, this is exact, or perturbed on request.
pub(super) fn special(
    form: &mut Form<'_, '_>,
    f: impl Fn(f64) -> f64 + Copy + Send + Sync + 'static,
    ulps: f32,
    absolute: f32,
) -> Compiled {
    if !form.flag("approx") {
        return Err(form.missing("approx"));
    }
    let ty = form.ty()?;
    let ftz = form.flag("ftz");
    approximate(form, ty, ftz, f, ulps, absolute)
}

pub(super) fn approximate(
    form: &mut Form<'_, '_>,
    ty: Type,
    ftz: bool,
    f: impl Fn(f64) -> f64 + Copy + Send + Sync + 'static,
    ulps: f32,
    absolute: f32,
) -> Compiled {
    form.expect(2)?;
    match ty {
        Type::F32 => {
            let slots = (form.dst::<f32>(0)?, form.src::<f32>(1)?);
            Ok(Action::lanes(move |registers, mask| {
                let perturb = registers.perturb;
                registers.map1(mask, slots, |a: f32| {
                    let a = if ftz { flush(a) } else { a };
                    let value = f(f64::from(a)) as f32;
                    finish(shake(value, perturb, ulps, absolute), ftz, false)
                });
            }))
        }
        Type::F16 => approximate_half::<F16>(form, f, ty, false),
        Type::Bf16 => approximate_half::<Bf16>(form, f, ty, false),
        Type::F16x2 => approximate_half::<F16>(form, f, ty, true),
        Type::Bf16x2 => approximate_half::<Bf16>(form, f, ty, true),
        other => Err(form.bad_type(other)),
    }
}

/// The forms for one half, or for two in a register.
fn approximate_half<H: Half>(
    form: &mut Form<'_, '_>,
    f: impl Fn(f64) -> f64 + Copy + Send + Sync + 'static,
    ty: Type,
    is_pair: bool,
) -> Compiled {
    // PTX states a relative error for ex2, 2^-9.9 and 2^-7, and an absolute one for tanh, 2^-10.987
    // and 2^-8.
    let is_tanh = form.instruction.name.starts_with("tanh");
    let (ulps, absolute) = match (is_tanh, ty) {
        (false, Type::F16 | Type::F16x2) => (8780.0, 0.0),
        (false, _) => (65536.0, 0.0),
        (true, Type::F16 | Type::F16x2) => (0.0, 4.92e-4),
        (true, _) => (0.0, 3.9e-3),
    };
    let one = move |a: u16, perturb: Option<u32>| {
        let value = f(f64::from(H::widen(a)));
        match perturb {
            None => H::narrow_double(value),
            Some(_) => H::narrow(shake(value as f32, perturb, ulps, absolute)),
        }
    };
    if is_pair {
        let slots = (form.dst::<u32>(0)?, form.src::<u32>(1)?);
        return Ok(Action::lanes(move |registers, mask| {
            let perturb = registers.perturb;
            registers.map1(mask, slots, |a: u32| pairs(a, 0, |a, _| one(a, perturb)));
        }));
    }
    let slots = (form.dst::<u16>(0)?, form.src::<u16>(1)?);
    Ok(Action::lanes(move |registers, mask| {
        let perturb = registers.perturb;
        registers.map1(mask, slots, |a: u16| one(a, perturb));
    }))
}
