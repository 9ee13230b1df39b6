//! The scales of composed blocks: what the levels of a group are multiplied with, and what is added.

use std::marker::PhantomData;

use backend_api::weights::{BlockFields, Format};

use super::composed::{Bytes, half_bits, load_f8};
use crate::isa::{Isa, LANES};

/// The scales, and minima, of a block of sixteen outputs.
pub(crate) trait Scales: Copy + Send + Sync + 'static {
    /// The format whose blocks they are from.
    const FORMAT: Format;
    /// Inputs that share a scale.
    const GROUP: usize;
    /// Whether something is added.
    const HAS_MINIMUM: bool;

    /// All zero.
    fn zero() -> Self;

    /// Sets those of an output. `self` has zero bits there.
    fn set(&mut self, column: usize, fields: &BlockFields);

    /// Scale and minimum of a group. Without minima the second is anything.
    fn group<S: Isa>(&self, isa: S, group: usize) -> [S::F32; 2];
}

/// A format, as a type.
pub(crate) trait OfFormat: Copy + Send + Sync + 'static {
    const FORMAT: Format;
}

macro_rules! formats {
    ($($name:ident),*) => {$(
        #[derive(Clone, Copy)]
        #[allow(non_camel_case_types)] // As the format.
        pub(crate) struct $name;

        impl OfFormat for $name {
            const FORMAT: Format = Format::$name;
        }
    )*};
}
formats!(Q5_0, IQ4_NL, Q3_K, IQ4_XS, Q4_K, Q5_K, F8_E4M3, NF4);

/// An f16 for all.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Half<F> {
    scales: [u16; LANES],
    format: PhantomData<F>,
}

impl<F: OfFormat> Scales for Half<F> {
    const FORMAT: Format = F::FORMAT;
    const GROUP: usize = F::FORMAT.group_elements();
    const HAS_MINIMUM: bool = false;

    fn zero() -> Self {
        Self { scales: [0; LANES], format: PhantomData }
    }

    fn set(&mut self, column: usize, fields: &BlockFields) {
        self.scales[column] = half_bits(fields.scale);
    }

    #[inline(always)]
    fn group<S: Isa>(&self, isa: S, _: usize) -> [S::F32; 2] {
        [isa.load_f16(&self.scales); 2]
    }
}

/// Q5_1: an f16 and a minimum for all.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct HalfAndMinimum {
    scales: [u16; LANES],
    minima: [u16; LANES],
}

impl Scales for HalfAndMinimum {
    const FORMAT: Format = Format::Q5_1;
    const GROUP: usize = 32;
    const HAS_MINIMUM: bool = true;

    fn zero() -> Self {
        Self { scales: [0; LANES], minima: [0; LANES] }
    }

    fn set(&mut self, column: usize, fields: &BlockFields) {
        self.scales[column] = half_bits(fields.scale);
        self.minima[column] = half_bits(fields.minimum);
    }

    #[inline(always)]
    fn group<S: Isa>(&self, isa: S, _: usize) -> [S::F32; 2] {
        [isa.load_f16(&self.scales), isa.load_f16(&self.minima)]
    }
}

/// An f32 for all.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Single<F> {
    scales: [f32; LANES],
    format: PhantomData<F>,
}

impl<F: OfFormat> Scales for Single<F> {
    const FORMAT: Format = F::FORMAT;
    const GROUP: usize = F::FORMAT.group_elements();
    const HAS_MINIMUM: bool = false;

    fn zero() -> Self {
        Self { scales: [0.0; LANES], format: PhantomData }
    }

    fn set(&mut self, column: usize, fields: &BlockFields) {
        self.scales[column] = fields.scale;
    }

    #[inline(always)]
    fn group<S: Isa>(&self, isa: S, _: usize) -> [S::F32; 2] {
        [isa.load(&self.scales); 2]
    }
}

/// MXFP4: a power of two for all, as the exponent of an f32. The file's exponent is one more, since
/// levels are doubled; of its smallest powers, half is subnormal.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Power {
    exponents: Bytes,
}

impl Scales for Power {
    const FORMAT: Format = Format::MXFP4;
    const GROUP: usize = 32;
    const HAS_MINIMUM: bool = false;

    fn zero() -> Self {
        Self { exponents: [0; LANES] }
    }

    fn set(&mut self, column: usize, fields: &BlockFields) {
        // A power of two has a mantissa of zero, unless it is subnormal: 2^-127 or 2^-128.
        let bits = fields.scale.to_bits();
        self.exponents[column] = match bits {
            0x0020_0000 => 0,
            0x0040_0000 => 1,
            _ => ((bits >> 23) as u8).wrapping_add(1),
        };
    }

    #[inline(always)]
    fn group<S: Isa>(&self, isa: S, _: usize) -> [S::F32; 2] {
        let scales = self.exponents.map(|exponent| {
            let normal = u32::from(exponent.wrapping_sub(1)) << 23;
            f32::from_bits(if exponent < 2 { 0x0020_0000 << (exponent & 1) } else { normal })
        });
        [isa.load(&scales); 2]
    }
}

/// Q2_K: four bits of scale and four of minimum for each of 16 groups.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct FourBits {
    scales: [u16; LANES],
    minima: [u16; LANES],
    groups: [Bytes; 16],
}

impl Scales for FourBits {
    const FORMAT: Format = Format::Q2_K;
    const GROUP: usize = 16;
    const HAS_MINIMUM: bool = true;

    fn zero() -> Self {
        Self { scales: [0; LANES], minima: [0; LANES], groups: [[0; LANES]; 16] }
    }

    fn set(&mut self, column: usize, fields: &BlockFields) {
        self.scales[column] = half_bits(fields.scale);
        self.minima[column] = half_bits(fields.minimum);
        for (group, lanes) in self.groups.iter_mut().enumerate() {
            lanes[column] = fields.group_scales[group] | (fields.group_minima[group] << 4);
        }
    }

    #[inline(always)]
    fn group<S: Isa>(&self, isa: S, group: usize) -> [S::F32; 2] {
        let [scale, minimum] = isa.load_nibbles(&self.groups[group]);
        let minima = isa.mul(isa.load_f16(&self.minima), isa.splat(-1.0));
        [isa.mul(scale, isa.load_f16(&self.scales)), isa.mul(minimum, minima)]
    }
}

/// Q4_K, Q5_K: six bits of scale and six of minimum for each of 8 groups.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct SixBits<F> {
    scales: [u16; LANES],
    minima: [u16; LANES],
    /// By group: four bits of the scale, then four of the minimum.
    low: [Bytes; 8],
    /// By pair of groups: two bits of a scale and two of a minimum, twice.
    high: [Bytes; 4],
    format: PhantomData<F>,
}

impl<F: OfFormat> Scales for SixBits<F> {
    const FORMAT: Format = F::FORMAT;
    const GROUP: usize = 32;
    const HAS_MINIMUM: bool = true;

    fn zero() -> Self {
        Self {
            scales: [0; LANES],
            minima: [0; LANES],
            low: [[0; LANES]; 8],
            high: [[0; LANES]; 4],
            format: PhantomData,
        }
    }

    fn set(&mut self, column: usize, fields: &BlockFields) {
        self.scales[column] = half_bits(fields.scale);
        self.minima[column] = half_bits(fields.minimum);
        for group in 0..8 {
            let (scale, minimum) = (fields.group_scales[group], fields.group_minima[group]);
            self.low[group][column] = (scale & 15) | (minimum << 4);
            let high = (scale >> 4) | (minimum >> 4 << 2);
            self.high[group / 2][column] |= high << (4 * (group % 2));
        }
    }

    #[inline(always)]
    fn group<S: Isa>(&self, isa: S, group: usize) -> [S::F32; 2] {
        let (low, high) = (&self.low[group], &self.high[group / 2]);
        let shift = 4 * (group % 2);
        let scale: [i8; LANES] = std::array::from_fn(|lane| {
            ((low[lane] & 15) | (((high[lane] >> shift) & 3) << 4)).cast_signed()
        });
        let minimum: [i8; LANES] = std::array::from_fn(|lane| {
            ((low[lane] >> 4) | (((high[lane] >> shift) & 12) << 2)).cast_signed()
        });
        let minima = isa.mul(isa.load_f16(&self.minima), isa.splat(-1.0));
        [
            isa.mul(isa.load_i8(&scale), isa.load_f16(&self.scales)),
            isa.mul(isa.load_i8(&minimum), minima),
        ]
    }
}

/// Q3_K, IQ4_XS: six bits of scale less 32 for each group, `LOW` pairs and `HIGH` fours of groups.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct SignedSixBits<F, const LOW: usize, const HIGH: usize> {
    scales: [u16; LANES],
    low: [Bytes; LOW],
    high: [Bytes; HIGH],
    format: PhantomData<F>,
}

impl<F: OfFormat, const LOW: usize, const HIGH: usize> Scales for SignedSixBits<F, LOW, HIGH> {
    const FORMAT: Format = F::FORMAT;
    const GROUP: usize = F::FORMAT.group_elements();
    const HAS_MINIMUM: bool = false;

    fn zero() -> Self {
        Self {
            scales: [0; LANES],
            low: [[0; LANES]; LOW],
            high: [[0; LANES]; HIGH],
            format: PhantomData,
        }
    }

    fn set(&mut self, column: usize, fields: &BlockFields) {
        self.scales[column] = half_bits(fields.scale);
        for group in 0..2 * LOW {
            let scale = fields.group_scales[group];
            self.low[group / 2][column] |= (scale & 15) << (4 * (group % 2));
            self.high[group / 4][column] |= (scale >> 4) << (2 * (group % 4));
        }
    }

    #[inline(always)]
    fn group<S: Isa>(&self, isa: S, group: usize) -> [S::F32; 2] {
        let (low, high) = (&self.low[group / 2], &self.high[group / 4]);
        let (low_shift, high_shift) = (4 * (group % 2), 2 * (group % 4));
        let scale: [i8; LANES] = std::array::from_fn(|lane| {
            let bits = ((low[lane] >> low_shift) & 15) | (((high[lane] >> high_shift) & 3) << 4);
            bits.cast_signed().wrapping_sub(32)
        });
        [isa.mul(isa.load_i8(&scale), isa.load_f16(&self.scales)); 2]
    }
}

/// Q6_K: a signed byte for each of 16 groups.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct SignedBytes {
    scales: [u16; LANES],
    groups: [[i8; LANES]; 16],
}

impl Scales for SignedBytes {
    const FORMAT: Format = Format::Q6_K;
    const GROUP: usize = 16;
    const HAS_MINIMUM: bool = false;

    fn zero() -> Self {
        Self { scales: [0; LANES], groups: [[0; LANES]; 16] }
    }

    fn set(&mut self, column: usize, fields: &BlockFields) {
        self.scales[column] = half_bits(fields.scale);
        for (lanes, scale) in self.groups.iter_mut().zip(fields.group_scales) {
            lanes[column] = scale.cast_signed();
        }
    }

    #[inline(always)]
    fn group<S: Isa>(&self, isa: S, group: usize) -> [S::F32; 2] {
        [isa.mul(isa.load_i8(&self.groups[group]), isa.load_f16(&self.scales)); 2]
    }
}

/// NVFP4: an 8-bit float for each of 4 groups, and what all are divided by.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Quotients {
    divisors: [f32; LANES],
    groups: [Bytes; 4],
}

impl Scales for Quotients {
    const FORMAT: Format = Format::NVFP4;
    const GROUP: usize = 16;
    const HAS_MINIMUM: bool = false;

    fn zero() -> Self {
        // Outputs that fill up a panel are zeros, not zeros divided by zero.
        Self { divisors: [1.0; LANES], groups: [[0; LANES]; 4] }
    }

    fn set(&mut self, column: usize, fields: &BlockFields) {
        self.divisors[column] = fields.scale;
        for (lanes, scale) in self.groups.iter_mut().zip(fields.group_scales) {
            lanes[column] = scale;
        }
    }

    #[inline(always)]
    fn group<S: Isa>(&self, isa: S, group: usize) -> [S::F32; 2] {
        [isa.div(load_f8(isa, &self.groups[group]), isa.load(&self.divisors)); 2]
    }
}
