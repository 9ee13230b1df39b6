//! A quantized block taken apart: quants, scales, minima.

use super::layout::{GroupScale, Layout, MAX_ELEMENTS, MAX_GROUPS};

/// What the quants of a format stand for, before scaling.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Levels {
    /// The quant less this number.
    Less(u8),
    /// The quant, as a signed byte.
    Signed,
    /// An entry of a table of integers.
    Integers(&'static [i8; 16]),
    /// An entry of a table of floats.
    Floats(&'static [f32; 16]),
    /// The quant, as an 8-bit float: E4M3 without infinities (Micikevicius et al. 2022).
    F8,
}

impl Levels {
    /// The table of ggml's `IQ4_NL` and `IQ4_XS`.
    pub(super) const NON_LINEAR: Levels = Levels::Integers(&[
        -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113,
    ]);
    /// Twice the values of [`E2M1`](Self::E2M1), which are integers.
    pub(super) const TWICE_E2M1: Levels =
        Levels::Integers(&[0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12]);
    /// Floats of four bits: sign, two bits of exponent, one of mantissa.
    pub(super) const E2M1: Levels = Levels::Floats(&[
        0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0,
    ]);
    /// The quantiles of NF4, published with QLoRA; each is the f32 nearest to the published number.
    pub(super) const NORMAL: Levels = Levels::Floats(&[
        -1.0,
        -0.696_192_8,
        -0.525_073_05,
        -0.394_917_5,
        -0.284_441_38,
        -0.184_773_43,
        -0.091_050_036,
        0.0,
        0.079_580_3,
        0.160_930_2,
        0.246_112_3,
        0.337_915_24,
        0.440_709_83,
        0.562_617,
        0.722_956_84,
        1.0,
    ]);

    /// The level of a quant, where the zero point is `zero`.
    #[inline]
    pub fn value(self, quant: u8, zero: u8) -> f32 {
        match self {
            Levels::Less(less) => f32::from(i16::from(quant) - i16::from(less) - i16::from(zero)),
            Levels::Signed => f32::from(quant.cast_signed()),
            Levels::Integers(table) => f32::from(table[usize::from(quant & 15)]),
            Levels::Floats(table) => table[usize::from(quant & 15)],
            Levels::F8 => f8_to_f32(quant),
        }
    }
}

/// The fields of a quantized block. An element's value is
/// `level(quant) * scale_of(group) + minimum_of(group)`, in f32.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct BlockFields {
    /// What quants stand for.
    pub levels: Levels,
    /// For each element its quant; elements beyond the block are 0.
    pub quants: [u8; MAX_ELEMENTS],
    /// The block's scale.
    pub scale: f32,
    /// The block's minimum, or its unit of minima.
    pub minimum: f32,
    /// The block's zero point.
    pub zero: u8,
    /// For each group its scale as stored.
    pub group_scales: [u8; MAX_GROUPS],
    /// For each group its minimum as stored.
    pub group_minima: [u8; MAX_GROUPS],
    group_scale: GroupScale,
    has_minimum: bool,
    has_group_minima: bool,
}

impl BlockFields {
    pub(super) fn new(layout: &Layout) -> Self {
        Self {
            levels: layout.levels,
            quants: [0; MAX_ELEMENTS],
            scale: 0.0,
            minimum: 0.0,
            zero: 0,
            group_scales: [0; MAX_GROUPS],
            group_minima: [0; MAX_GROUPS],
            group_scale: layout.group_scale,
            has_minimum: layout.minimum.is_some(),
            has_group_minima: !layout.group_minima.is_empty(),
        }
    }

    /// What the levels of a group are multiplied with; `group` is below 16.
    #[inline]
    pub fn scale_of(&self, group: usize) -> f32 {
        let stored = self.group_scales.get(group).copied().unwrap_or_default();
        match self.group_scale {
            GroupScale::One => self.scale,
            GroupScale::Plus(zero) => self.scale * f32::from(i16::from(stored) - i16::from(zero)),
            GroupScale::Signed => self.scale * f32::from(stored.cast_signed()),
            GroupScale::F8Quotient => f8_to_f32(stored) / self.scale,
        }
    }

    /// What is added to the scaled levels of a group, in formats with minima.
    #[inline]
    pub fn minimum_of(&self, group: usize) -> Option<f32> {
        let stored = self.group_minima.get(group).copied().unwrap_or_default();
        match (self.has_minimum, self.has_group_minima) {
            (false, _) => None,
            (true, false) => Some(self.minimum),
            (true, true) => Some(-(self.minimum * f32::from(stored))),
        }
    }
}

/// E4M3 without infinities to f32.
pub(super) fn f8_to_f32(bits: u8) -> f32 {
    let magnitude = bits & 0x7f;
    let (exponent, mantissa) = (magnitude >> 3, f32::from(magnitude & 7));
    let value = match (magnitude, exponent) {
        (0x7f, _) => f32::NAN,
        (_, 0) => mantissa / 512.0,
        _ => (1.0 + mantissa / 8.0) * f32::from_bits((u32::from(exponent) + 120) << 23),
    };
    if bits & 0x80 == 0 { value } else { -value }
}

/// The nearest E4M3 number; beyond the range the greatest.
pub(super) fn f32_to_f8(value: f32) -> u8 {
    const GREATEST: u8 = 0x7e;
    if value.is_nan() {
        return 0x7f;
    }
    let magnitude = value.abs();
    // Codes of positive numbers are in the order of the numbers.
    let above = (0..=GREATEST).find(|&code| f8_to_f32(code) >= magnitude).unwrap_or(GREATEST);
    let below = above.saturating_sub(1);
    let is_nearer = magnitude - f8_to_f32(below) < f8_to_f32(above) - magnitude;
    let code = if is_nearer { below } else { above };
    if value.is_sign_negative() { code | 0x80 } else { code }
}
