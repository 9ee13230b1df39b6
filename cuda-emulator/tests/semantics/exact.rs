//! Formats and roundings in the plainest way: by a search among all values of a format.

/// A small format: bits of exponent and fraction. Values above the largest are infinite.
#[derive(Clone, Copy)]
pub(crate) struct Format {
    pub(crate) exponent: u32,
    pub(crate) fraction: u32,
}

pub(crate) const F16: Format = Format { exponent: 5, fraction: 10 };
pub(crate) const BF16: Format = Format { exponent: 8, fraction: 7 };
pub(crate) const F32: Format = Format { exponent: 8, fraction: 23 };

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Nearest,
    Zero,
    Down,
    Up,
}

pub(crate) const MODES: [(&str, Mode); 4] =
    [("rn", Mode::Nearest), ("rz", Mode::Zero), ("rm", Mode::Down), ("rp", Mode::Up)];

impl Format {
    fn infinity(self) -> u64 {
        ((1 << self.exponent) - 1) << self.fraction
    }

    fn sign(self) -> u64 {
        1 << (self.exponent + self.fraction)
    }

    /// The value of bits; the sum of powers of two that they stand for.
    pub(crate) fn value(self, bits: u64) -> f64 {
        let magnitude = bits & (self.sign() - 1);
        let negative = bits & self.sign() != 0;
        let bias = (1 << (self.exponent - 1)) - 1;
        let exponent = (magnitude >> self.fraction) as i32;
        let fraction = (magnitude & ((1 << self.fraction) - 1)) as f64;
        let value = if magnitude > self.infinity() {
            f64::NAN
        } else if magnitude == self.infinity() {
            f64::INFINITY
        } else if exponent == 0 {
            fraction * 2f64.powi(1 - bias - self.fraction as i32)
        } else {
            (fraction + 2f64.powi(self.fraction as i32))
                * 2f64.powi(exponent - bias - self.fraction as i32)
        };
        if negative { -value } else { value }
    }

    /// Rounds an exact value.
    pub(crate) fn round(self, exact: f64, mode: Mode) -> u64 {
        if exact.is_nan() {
            return self.infinity() | ((1 << self.fraction) - 1);
        }
        let negative = exact.is_sign_negative();
        let magnitude = exact.abs();
        let sign = if negative { self.sign() } else { 0 };
        // The largest magnitude that is not above.
        let (mut below, mut above) = (0, self.infinity());
        while above - below > 1 {
            let middle = (below + above) / 2;
            if self.value(middle) <= magnitude { below = middle } else { above = middle }
        }
        if self.value(above) <= magnitude {
            return sign | above;
        }
        if self.value(below) == magnitude {
            return sign | below;
        }
        let up = match mode {
            Mode::Zero => false,
            Mode::Down => negative,
            Mode::Up => !negative,
            Mode::Nearest => {
                // The step above the largest number is as wide as the one below it.
                let step = |bits: u64| {
                    if bits == self.infinity() {
                        2f64.powi(1 << (self.exponent - 1))
                    } else {
                        self.value(bits)
                    }
                };
                let (left, right) = (magnitude - step(below), step(above) - magnitude);
                right < left || right == left && below & 1 == 1
            }
        };
        sign | if up { above } else { below }
    }
}

/// Singles at the edges, whose sums and products doubles hold exactly.
pub(crate) fn singles() -> Vec<u64> {
    let values = [
        0.0f32,
        -0.0,
        1.0,
        -1.0,
        1.5,
        -2.75,
        3.0,
        1.0 / 3.0,
        -0.1,
        16_777_215.0,
        1e-3,
        255.5,
        0.99999994,
        1.0000001,
        -1023.25,
        7e4,
    ];
    values.iter().map(|value| u64::from(value.to_bits())).collect()
}

/// The above and values beyond them.
pub(crate) fn all_singles() -> Vec<u64> {
    let mut all = singles();
    let more = [
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::NAN,
        -f32::NAN,
        f32::MAX,
        f32::MIN,
        f32::MIN_POSITIVE,
        1e-45,
        -1e-40,
        3e38,
    ];
    all.extend(more.iter().map(|value| u64::from(value.to_bits())));
    all.push(0x7f80_0001);
    all
}

pub(crate) fn single(bits: u64) -> f32 {
    f32::from_bits(bits as u32)
}

/// The bits of a single; NaN becomes the one that the hardware gives.
pub(crate) fn bits(value: f32) -> u64 {
    if value.is_nan() { 0x7fff_ffff } else { u64::from(value.to_bits()) }
}

#[test]
fn the_search_agrees_with_the_host_on_singles() {
    for bits_of in all_singles() {
        let value = single(bits_of);
        if !value.is_nan() {
            assert_eq!(F32.round(f64::from(value), Mode::Nearest), bits_of);
        }
    }
    assert_eq!(F32.round(1e39, Mode::Nearest), 0x7f80_0000);
    assert_eq!(F32.round(0.1, Mode::Nearest), u64::from(0.1f32.to_bits()));
}
