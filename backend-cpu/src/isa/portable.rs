//! The path for any target: arrays of sixteen f32, which compilers turn into whatever vectors
//! the target has.

use super::{Isa, LANES, Op};

/// The portable path; always there.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Portable;

type Lanes = [f32; LANES];

#[inline(always)]
fn map(a: Lanes, f: impl Fn(f32) -> f32) -> Lanes {
    std::array::from_fn(|lane| f(a[lane]))
}

#[inline(always)]
fn zip(a: Lanes, b: Lanes, f: impl Fn(f32, f32) -> f32) -> Lanes {
    std::array::from_fn(|lane| f(a[lane], b[lane]))
}

impl Isa for Portable {
    type F32 = Lanes;

    const TILE_ROWS: usize = 2;
    const TILE_PANELS: usize = 1;
    const SINGLE_ROW_PANELS: usize = 1;
    const TILE_QUERIES: usize = 1;

    #[inline(always)]
    fn vectorize<O: Op>(self, op: O) -> O::Output {
        op.run(self)
    }

    #[inline(always)]
    fn splat(self, value: f32) -> Lanes {
        [value; LANES]
    }

    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> Lanes {
        *from
    }

    #[inline(always)]
    fn store(self, value: Lanes, to: &mut [f32; LANES]) {
        *to = value;
    }

    #[inline(always)]
    fn add(self, a: Lanes, b: Lanes) -> Lanes {
        zip(a, b, |x, y| x + y)
    }

    #[inline(always)]
    fn sub(self, a: Lanes, b: Lanes) -> Lanes {
        zip(a, b, |x, y| x - y)
    }

    #[inline(always)]
    fn mul(self, a: Lanes, b: Lanes) -> Lanes {
        zip(a, b, |x, y| x * y)
    }

    #[inline(always)]
    fn div(self, a: Lanes, b: Lanes) -> Lanes {
        zip(a, b, |x, y| x / y)
    }

    #[inline(always)]
    fn mul_add(self, a: Lanes, b: Lanes, c: Lanes) -> Lanes {
        // Without the instruction, `f32::mul_add` is a library call a lane.
        if cfg!(any(target_arch = "aarch64", target_feature = "fma")) {
            std::array::from_fn(|lane| a[lane].mul_add(b[lane], c[lane]))
        } else {
            std::array::from_fn(|lane| a[lane] * b[lane] + c[lane])
        }
    }

    #[inline(always)]
    fn max(self, a: Lanes, b: Lanes) -> Lanes {
        zip(a, b, |x, y| if x > y { x } else { y })
    }

    #[inline(always)]
    fn min(self, a: Lanes, b: Lanes) -> Lanes {
        zip(a, b, |x, y| if x < y { x } else { y })
    }

    #[inline(always)]
    fn round(self, a: Lanes) -> Lanes {
        // Adding 1.5 * 2^23 leaves no bits for a fraction, and rounds as the processor does.
        const SHIFT: f32 = 12_582_912.0;
        map(a, |x| (x + SHIFT) - SHIFT)
    }

    #[inline(always)]
    fn power_of_two(self, a: Lanes) -> Lanes {
        map(a, |x| f32::from_bits(((x as i32).wrapping_add(127) as u32) << 23))
    }

    #[inline(always)]
    fn keep_first(self, a: Lanes, count: usize, fill: f32) -> Lanes {
        std::array::from_fn(|lane| if lane < count { a[lane] } else { fill })
    }

    #[inline(always)]
    fn load_f16(self, from: &[u16; LANES]) -> Lanes {
        from.map(f16_to_f32)
    }

    #[inline(always)]
    fn load_bf16(self, from: &[u16; LANES]) -> Lanes {
        from.map(|bits| f32::from_bits(u32::from(bits) << 16))
    }

    #[inline(always)]
    fn load_i8(self, from: &[i8; LANES]) -> Lanes {
        from.map(f32::from)
    }

    #[inline(always)]
    fn load_nibbles(self, from: &[u8; LANES]) -> [Lanes; 2] {
        [from.map(|byte| f32::from(byte & 15)), from.map(|byte| f32::from(byte >> 4))]
    }

    #[inline(always)]
    fn look_up(self, table: &[f32; LANES], nibbles: &[u8; LANES]) -> [Lanes; 2] {
        [
            nibbles.map(|byte| table[usize::from(byte & 15)]),
            nibbles.map(|byte| table[usize::from(byte >> 4)]),
        ]
    }
}

/// Half to single precision without a branch, so that it vectorizes: the exponent is rebiased by
/// a multiplication, which also normalizes subnormal numbers.
#[inline(always)]
fn f16_to_f32(bits: u16) -> f32 {
    const REBIAS: f32 = f32::from_bits((254 - 15) << 23);
    let magnitude = f32::from_bits(u32::from(bits & 0x7fff) << 13) * REBIAS;
    // Exponent 31 means infinity or NaN; after rebiasing it is 2^16 or more.
    let special = if magnitude >= 65536.0 { 0xff << 23 } else { 0 };
    let sign = u32::from(bits & 0x8000) << 16;
    f32::from_bits(magnitude.to_bits() | special | sign)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_half_precision_number_converts_as_the_half_crate_does() {
        for bits in 0..=u16::MAX {
            let expected = half::f16::from_bits(bits).to_f32();
            let got = f16_to_f32(bits);
            assert!(
                got.to_bits() == expected.to_bits() || (got.is_nan() && expected.is_nan()),
                "{bits:#x}: {got} instead of {expected}"
            );
        }
    }
}
