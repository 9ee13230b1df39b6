//! Arithmetic of the formats that the host doesn't have, and roundings that it doesn't do.

/// How a result that has no exact value is rounded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rounding {
    /// To the nearest, ties to the even one: `.rn`.
    Nearest,
    /// Towards zero: `.rz`.
    Zero,
    /// Down: `.rm`.
    Down,
    /// Up: `.rp`.
    Up,
}

/// The NaN that arithmetic on singles gives.
pub(crate) const NAN32: f32 = f32::from_bits(0x7fff_ffff);
/// The NaN that arithmetic on halves gives.
pub(crate) const NAN16: u16 = 0x7fff;

/// Replaces any NaN by the one that the hardware gives.
#[inline(always)]
pub(crate) fn canonical(value: f32) -> f32 {
    if value.is_nan() { NAN32 } else { value }
}

/// Flushes subnormal numbers to a zero of their sign.
#[inline(always)]
pub(crate) fn flush(value: f32) -> f32 {
    if value.abs() < f32::MIN_POSITIVE {
        f32::from_bits(value.to_bits() & 0x8000_0000)
    } else {
        value
    }
}

/// Clamps to 0 to 1; NaN becomes 0.
#[inline(always)]
pub(crate) fn saturate(value: f32) -> f32 {
    if value > 0.0 { value.min(1.0) } else { 0.0 }
}

/// A 16-bit floating point format.
pub(crate) trait Half: Copy + Send + Sync + 'static {
    fn widen(bits: u16) -> f32;
    /// Rounds to the nearest, ties to even.
    fn narrow(value: f32) -> u16;
    /// Rounds a double once.
    fn narrow_double(value: f64) -> u16;
}

/// IEEE half precision.
#[derive(Debug, Clone, Copy)]
pub(crate) struct F16;
/// The upper half of a single.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bf16;

impl Half for F16 {
    #[inline(always)]
    fn widen(bits: u16) -> f32 {
        let bits = u32::from(bits);
        let sign = (bits & 0x8000) << 16;
        let magnitude = bits & 0x7fff;
        // Multiplication moves the exponent and makes subnormal halves normal.
        let scaled = f32::from_bits(magnitude << 13) * f32::from_bits((254 - 15) << 23);
        let special = f32::from_bits(0x7f80_0000 | (magnitude << 13));
        let value = if magnitude >= 0x7c00 { special } else { scaled };
        f32::from_bits(value.to_bits() | sign)
    }

    #[inline(always)]
    fn narrow(value: f32) -> u16 {
        let bits = value.to_bits();
        let sign = (bits >> 16 & 0x8000) as u16;
        let magnitude = bits & 0x7fff_ffff;
        // Adding a half leaves a subnormal half in the low bits, rounded by the addition.
        let subnormal = (f32::from_bits(magnitude) + 0.5).to_bits().wrapping_sub(0x3f00_0000);
        let normal =
            magnitude.wrapping_sub(112 << 23).wrapping_add(0xfff + (magnitude >> 13 & 1)) >> 13;
        let result = if magnitude > 0x7f80_0000 {
            return NAN16;
        } else if magnitude >= 0x477f_f000 {
            0x7c00
        } else if magnitude < 0x3880_0000 {
            subnormal
        } else {
            normal
        };
        result as u16 | sign
    }

    #[inline(always)]
    fn narrow_double(value: f64) -> u16 {
        Self::narrow(to_odd(value))
    }
}

impl Half for Bf16 {
    #[inline(always)]
    fn widen(bits: u16) -> f32 {
        f32::from_bits(u32::from(bits) << 16)
    }

    #[inline(always)]
    fn narrow(value: f32) -> u16 {
        let bits = value.to_bits();
        if value.is_nan() {
            NAN16
        } else {
            (bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16) as u16
        }
    }

    #[inline(always)]
    fn narrow_double(value: f64) -> u16 {
        Self::narrow(to_odd(value))
    }
}

/// A double as a single, rounded to odd: a later rounding to a shorter format is then as good as
/// a single rounding (Boldo and Melquiond, 2008).
#[inline(always)]
pub(crate) fn to_odd(value: f64) -> f32 {
    let near = value as f32;
    if near.is_nan() || f64::from(near) == value {
        return near;
    }
    if near.is_infinite() {
        return f32::MAX.copysign(near);
    }
    let bits = near.to_bits();
    if bits & 1 == 1 {
        return near;
    }
    // The neighbour on the other side of the value has an odd last bit.
    let away = f64::from(near).abs() < value.abs();
    if near == 0.0 {
        return f32::from_bits(1).copysign(value as f32);
    }
    f32::from_bits(if away { bits + 1 } else { bits - 1 })
}

/// Halves from singles with any rounding. Directed roundings never turn a number into infinity
/// on the side away from the direction.
pub(crate) fn narrow_f16(value: f32, rounding: Rounding) -> u16 {
    step(value, rounding, F16::narrow(value), F16::widen)
}

/// bf16 from singles with any rounding.
pub(crate) fn narrow_bf16(value: f32, rounding: Rounding) -> u16 {
    step(value, rounding, Bf16::narrow(value), Bf16::widen)
}

/// Moves the nearest 16-bit number to the neighbour that the rounding asks for.
fn step(value: f32, rounding: Rounding, nearest: u16, widen: fn(u16) -> f32) -> u16 {
    if value.is_nan() {
        return nearest;
    }
    let got = widen(nearest);
    let too_high = got > value;
    let too_low = got < value;
    let down = match rounding {
        Rounding::Nearest => return nearest,
        Rounding::Zero => value > 0.0,
        Rounding::Down => true,
        Rounding::Up => false,
    };
    // In order of sign and magnitude, one step towards zero is one less.
    match (down, too_high, too_low) {
        (true, true, _) => toward(nearest, false),
        (false, _, true) => toward(nearest, true),
        _ => nearest,
    }
}

fn toward(bits: u16, up: bool) -> u16 {
    let negative = bits & 0x8000 != 0;
    if bits & 0x7fff == 0 {
        return if up { 1 } else { 0x8001 };
    }
    if negative == up { bits - 1 } else { bits + 1 }
}

/// `a * b + c` of singles with any rounding.
pub(crate) fn fma32(a: f32, b: f32, c: f32, rounding: Rounding) -> f32 {
    if rounding == Rounding::Nearest {
        return a.mul_add(b, c);
    }
    // The product is exact in double; the sum is made odd where it isn't.
    let product = f64::from(a) * f64::from(b);
    let addend = f64::from(c);
    let sum = product + addend;
    if !sum.is_finite() {
        return sum as f32;
    }
    if sum == 0.0 {
        return zero_sum(product, addend, sum, rounding) as f32;
    }
    let error = two_sum_error(product, addend, sum);
    round32(sum, error, rounding)
}

/// The zero that two numbers add up to: below zero when rounding down, unless both are zeros above.
fn zero_sum(a: f64, b: f64, sum: f64, rounding: Rounding) -> f64 {
    let both_positive = a.is_sign_positive() && b.is_sign_positive();
    if rounding == Rounding::Down && !both_positive { -0.0 } else { sum }
}

/// `a + b` of singles with any rounding.
pub(crate) fn add32(a: f32, b: f32, rounding: Rounding) -> f32 {
    fma32(a, 1.0, b, rounding)
}

/// `a * b` of singles with any rounding.
pub(crate) fn mul32(a: f32, b: f32, rounding: Rounding) -> f32 {
    if rounding == Rounding::Nearest {
        return a * b;
    }
    round32(f64::from(a) * f64::from(b), 0.0, rounding)
}

/// `a / b` of singles with any rounding.
pub(crate) fn div32(a: f32, b: f32, rounding: Rounding) -> f32 {
    let near = a / b;
    if rounding == Rounding::Nearest
        || !near.is_finite()
        || near == 0.0 && a == 0.0
        || b.is_infinite()
    {
        return near;
    }
    let (a, b) = (f64::from(a), f64::from(b));
    let quotient = a / b;
    // The sign of what is left tells on which side of the quotient the exact value is.
    let left = (-quotient).mul_add(b, a);
    round32(quotient, left * b.signum(), rounding)
}

/// The square root of a single with any rounding.
pub(crate) fn sqrt32(a: f32, rounding: Rounding) -> f32 {
    let near = a.sqrt();
    if rounding == Rounding::Nearest || !near.is_finite() || near == 0.0 {
        return near;
    }
    let root = f64::from(a).sqrt();
    let left = (-root).mul_add(root, f64::from(a));
    round32(root, left, rounding)
}

/// A single from a double `value` that stands for `value` plus an `error` too small for it.
pub(crate) fn round32(value: f64, error: f64, rounding: Rounding) -> f32 {
    let near = value as f32;
    if near.is_nan() || value.is_infinite() || rounding == Rounding::Nearest {
        return near;
    }
    let got = f64::from(near);
    // Where the single is the double, the error decides.
    let above = got > value || (got == value && error < 0.0);
    let below = got < value || (got == value && error > 0.0);
    if value == 0.0 && error == 0.0 {
        return near;
    }
    let down = match rounding {
        Rounding::Down => true,
        Rounding::Up => false,
        _ => value > 0.0 || (value == 0.0 && error > 0.0),
    };
    match (down, above, below) {
        (true, true, _) => near.next_down(),
        (false, _, true) => near.next_up(),
        _ => near,
    }
}

/// `a * b + c` of doubles with any rounding.
pub(crate) fn fma64(a: f64, b: f64, c: f64, rounding: Rounding) -> f64 {
    let near = a.mul_add(b, c);
    if rounding == Rounding::Nearest || !near.is_finite() {
        return near;
    }
    // The error of the rounded sum, from exact parts of the product.
    let product = a * b;
    if near == 0.0 && product + c == 0.0 {
        return zero_sum(product, c, near, rounding);
    }
    let low = a.mul_add(b, -product);
    let high = product - near;
    let rest = two_sum_error(product, -near, high);
    let (second, third) = (high + c, two_sum_error(high, c, high + c));
    direct64(near, second + (third + (rest + low)), rounding)
}

/// `a + b` of doubles with any rounding.
pub(crate) fn add64(a: f64, b: f64, rounding: Rounding) -> f64 {
    let near = a + b;
    if rounding == Rounding::Nearest || !near.is_finite() {
        return near;
    }
    if near == 0.0 {
        return zero_sum(a, b, near, rounding);
    }
    direct64(near, two_sum_error(a, b, near), rounding)
}

/// `a * b` of doubles with any rounding.
pub(crate) fn mul64(a: f64, b: f64, rounding: Rounding) -> f64 {
    let near = a * b;
    if rounding == Rounding::Nearest || !near.is_finite() {
        return near;
    }
    direct64(near, a.mul_add(b, -near), rounding)
}

/// `a / b` of doubles with any rounding.
pub(crate) fn div64(a: f64, b: f64, rounding: Rounding) -> f64 {
    let near = a / b;
    if rounding == Rounding::Nearest || !near.is_finite() || b.is_infinite() {
        return near;
    }
    direct64(near, (-near).mul_add(b, a) * b.signum(), rounding)
}

/// The square root of a double with any rounding.
pub(crate) fn sqrt64(a: f64, rounding: Rounding) -> f64 {
    let near = a.sqrt();
    if rounding == Rounding::Nearest || !near.is_finite() {
        return near;
    }
    direct64(near, (-near).mul_add(near, a), rounding)
}

fn direct64(near: f64, error: f64, rounding: Rounding) -> f64 {
    let positive = near > 0.0 || (near == 0.0 && error > 0.0);
    let down = match rounding {
        Rounding::Nearest => return near,
        Rounding::Down => true,
        Rounding::Up => false,
        Rounding::Zero => positive,
    };
    if down && error < 0.0 {
        near.next_down()
    } else if !down && error > 0.0 {
        near.next_up()
    } else {
        near
    }
}

/// What `sum`, the rounded sum of `a` and `b`, lacks (Knuth's two-sum).
fn two_sum_error(a: f64, b: f64, sum: f64) -> f64 {
    let of_b = sum - a;
    (a - (sum - of_b)) + (b - of_b)
}

/// An 8-bit format with 4 or 5 bits of exponent, as `cvt` makes them.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Eight {
    E4m3,
    E5m2,
}

impl Eight {
    pub(crate) fn widen(self, bits: u8) -> f32 {
        match self {
            // The upper byte of a half.
            Self::E5m2 => F16::widen(u16::from(bits) << 8),
            Self::E4m3 => {
                let magnitude = u32::from(bits & 0x7f);
                let value = if magnitude == 0x7f {
                    NAN32
                } else {
                    f32::from_bits(magnitude << 20) * f32::from_bits((254 - 7) << 23)
                };
                if bits & 0x80 != 0 { -value } else { value }
            }
        }
    }

    /// Rounds to the nearest, ties to even; what is too large becomes the largest number.
    pub(crate) fn narrow(self, value: f32) -> u8 {
        let sign = if value.is_sign_negative() { 0x80 } else { 0 };
        if value.is_nan() {
            return 0x7f;
        }
        let (fraction, bias, largest) = match self {
            Self::E4m3 => (3u32, 7i32, 0x7eu32),
            Self::E5m2 => (2, 15, 0x7b),
        };
        let magnitude = value.abs();
        let exponent = ((magnitude.to_bits() >> 23) as i32 - 127).max(1 - bias);
        // The distance between neighbours here is a power of two, so this division is exact.
        let unit = 2f32.powi(exponent - fraction as i32);
        let steps = (magnitude / unit).round_ties_even();
        if steps.is_infinite() || steps >= 65536.0 {
            return largest as u8 | sign;
        }
        let base = ((exponent + bias - 1) as u32) << fraction;
        let code = (base + steps as u32).min(largest);
        code as u8 | sign
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_half_comes_back_from_a_single() {
        for bits in 0..=u16::MAX {
            let single = F16::widen(bits);
            if single.is_nan() {
                assert!(bits & 0x7fff > 0x7c00);
            } else {
                assert_eq!(F16::narrow(single), bits, "{bits:#x}");
            }
        }
    }

    #[test]
    fn halves_round_to_the_nearest_and_ties_to_even() {
        for bits in 0..0x7bffu16 {
            let (low, high) = (F16::widen(bits), F16::widen(bits + 1));
            let middle = (low + high) / 2.0;
            let even = if bits & 1 == 0 { bits } else { bits + 1 };
            assert_eq!(F16::narrow(middle), even);
            assert_eq!(F16::narrow(middle.next_down()), bits);
            assert_eq!(F16::narrow(middle.next_up()), bits + 1);
            assert_eq!(narrow_f16(middle, Rounding::Zero), bits);
            assert_eq!(narrow_f16(-middle, Rounding::Up), bits | 0x8000);
            assert_eq!(narrow_f16(middle, Rounding::Up), bits + 1);
        }
        assert_eq!(F16::narrow(65520.0), 0x7c00);
        assert_eq!(F16::narrow(65519.996), 0x7bff);
    }

    #[test]
    fn every_byte_of_the_8_bit_formats_comes_back() {
        for format in [Eight::E4m3, Eight::E5m2] {
            for bits in 0..=u8::MAX {
                let value = format.widen(bits);
                if value.is_finite() {
                    assert_eq!(format.narrow(value), bits, "{format:?} {bits:#x}");
                }
            }
        }
        assert_eq!(Eight::E4m3.narrow(1e9), 0x7e);
        assert_eq!(Eight::E4m3.widen(0x7e), 448.0);
        assert_eq!(Eight::E5m2.narrow(f32::INFINITY), 0x7b);
        // Half way between two neighbours.
        assert_eq!(Eight::E4m3.narrow(1.0625), Eight::E4m3.narrow(1.0));
    }

    #[test]
    fn directed_roundings_enclose_the_exact_value() {
        let values = [1.0f32, 3.0, 0.1, 1e-30, 7.3e20, -2.7, 1e-45, 16_777_217.0, -1e30];
        for a in values {
            for b in values {
                let exact = f64::from(a) * f64::from(b);
                let (down, up) = (mul32(a, b, Rounding::Down), mul32(a, b, Rounding::Up));
                assert!(f64::from(down) <= exact && exact <= f64::from(up), "{a} * {b}");
                assert!(down == up || down.next_up() == up);
                let zero = mul32(a, b, Rounding::Zero);
                assert_eq!(zero, if exact > 0.0 { down } else { up });
                let (down, up) = (add32(a, b, Rounding::Down), add32(a, b, Rounding::Up));
                assert!(down == up || down.next_up() == up, "{a} + {b}");
                assert!(down <= a + b && a + b <= up);
                let (down, up) = (div32(a, b, Rounding::Down), div32(a, b, Rounding::Up));
                assert!(down == up || down.next_up() == up, "{a} / {b}");
                assert!(down <= a / b && a / b <= up, "{a} / {b}");
            }
        }
    }
}
