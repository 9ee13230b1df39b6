//! The blocks of every quantized format, as data: where each field of a block lies.
//!
//! A block holds a *quant* of a few bits for each element, a scale, sometimes a minimum, and
//! sometimes a small scale and minimum for each group of elements. Layouts are those of ggml's
//! `ggml-common.h`, the microscaling specification of the Open Compute Project (MXFP4), and of this
//! crate ([`F8_E4M3`], [`U4`], [`NF4`], [`NVFP4`]).

use half::f16;

use super::fields::{BlockFields, Levels};

/// Elements of the longest block.
pub(super) const MAX_ELEMENTS: usize = 256;
/// Groups of the block with most groups.
pub(super) const MAX_GROUPS: usize = 16;

/// Some bits of a small number: of each element's quant, or of each group's scale or minimum.
#[derive(Debug)]
pub(super) struct Bits {
    /// In which byte of the block, and from which bit on, number `i` has these bits.
    at: fn(usize) -> (usize, u32),
    /// How many.
    width: u32,
    /// What the lowest of them counts in the number: `2^up`.
    up: u32,
}

/// How a block's own scale is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scale {
    /// f16, at this byte.
    F16(usize),
    /// f32, at this byte.
    F32(usize),
    /// A power of two, halved since quants are doubled: E8M0, at this byte.
    HalfE8M0(usize),
}

/// What a group's small scale means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum GroupScale {
    /// There is none: a group is a block.
    One,
    /// An integer, stored with this added.
    Plus(u8),
    /// A signed byte.
    Signed,
    /// E4M3, to be divided by the block's scale.
    F8Quotient,
}

/// A block's layout.
#[derive(Debug)]
pub(super) struct Layout {
    /// Elements.
    pub(super) elements: usize,
    /// Bytes.
    pub(super) bytes: usize,
    /// Elements that share a scale.
    pub(super) group: usize,
    /// What quants stand for.
    pub(super) levels: Levels,
    pub(super) quants: &'static [Bits],
    pub(super) scale: Scale,
    pub(super) group_scale: GroupScale,
    pub(super) group_scales: &'static [Bits],
    /// Where the minimum is, an f16.
    pub(super) minimum: Option<usize>,
    /// Small multiples of the minimum, which are subtracted; without them the minimum is added.
    pub(super) group_minima: &'static [Bits],
    /// Where the zero point is, a byte.
    pub(super) zero: Option<usize>,
}

/// A layout of one group, with nothing but a scale (f16, first) and quants.
const PLAIN: Layout = Layout {
    elements: 32,
    bytes: 0,
    group: 32,
    levels: Levels::Less(0),
    quants: &[],
    scale: Scale::F16(0),
    group_scale: GroupScale::One,
    group_scales: &[],
    minimum: None,
    group_minima: &[],
    zero: None,
};

/// A layout of 256 elements in groups with small scales.
const GROUPED: Layout = Layout { elements: 256, group_scale: GroupScale::Plus(0), ..PLAIN };

/// Nibbles from byte `$start` on; bytes hold elements `i` and `i + $half` of runs of `2 * $half`.
macro_rules! nibbles {
    ($start:literal, $half:literal) => {
        Bits {
            at: |i| ($start + i / (2 * $half) * $half + i % $half, 4 * (i / $half % 2) as u32),
            width: 4,
            up: 0,
        }
    };
}

/// Pairs of bits from byte `$start` on; bytes hold elements 32 apart.
macro_rules! crumbs {
    ($start:literal, $up:literal) => {
        Bits {
            at: |i| ($start + i / 128 * 32 + i % 32, 2 * (i / 32 % 4) as u32),
            width: 2,
            up: $up,
        }
    };
}

/// Single bits from byte `$start` on; bytes hold elements 32 apart.
macro_rules! strided_bits {
    ($start:literal, $up:literal) => {
        Bits { at: |i| ($start + i % 32, (i / 32) as u32), width: 1, up: $up }
    };
}

/// Whole bytes from byte `$start` on.
macro_rules! whole_bytes {
    ($start:literal) => {
        Bits { at: |i| ($start + i, 0), width: 8, up: 0 }
    };
}

/// The fifth bits of 32 quants, from byte `$start` on, in order.
macro_rules! fifth_bits {
    ($start:literal) => {
        Bits { at: |i| ($start + i / 8, (i % 8) as u32), width: 1, up: 4 }
    };
}

/// Eight 6-bit numbers of 12 bytes: the first four whole, from byte `$first` on; of the others the
/// low nibbles in bytes 12 to 15 at bit `$nibble`, and the two bits above where the first four
/// leave bits over.
macro_rules! six_bits {
    ($first:literal, $nibble:literal) => {
        &[
            Bits {
                at: |i| if i < 4 { ($first + i, 0) } else { (8 + i, $nibble) },
                width: 4,
                up: 0,
            },
            Bits {
                at: |i| if i < 4 { ($first + i, 4) } else { ($first + i - 4, 6) },
                width: 2,
                up: 4,
            },
        ]
    };
}

pub(super) static Q4_0: Layout =
    Layout { bytes: 18, levels: Levels::Less(8), quants: &[nibbles!(2, 16)], ..PLAIN };
pub(super) static Q4_1: Layout =
    Layout { bytes: 20, quants: &[nibbles!(4, 16)], minimum: Some(2), ..PLAIN };
pub(super) static Q5_0: Layout = Layout {
    bytes: 22,
    levels: Levels::Less(16),
    quants: &[nibbles!(6, 16), fifth_bits!(2)],
    ..PLAIN
};
pub(super) static Q5_1: Layout =
    Layout { bytes: 24, quants: &[nibbles!(8, 16), fifth_bits!(4)], minimum: Some(2), ..PLAIN };
pub(super) static Q8_0: Layout =
    Layout { bytes: 34, levels: Levels::Signed, quants: &[whole_bytes!(2)], ..PLAIN };
pub(super) static Q2_K: Layout = Layout {
    bytes: 84,
    group: 16,
    quants: &[crumbs!(16, 0)],
    scale: Scale::F16(80),
    group_scales: &[Bits { at: |i| (i, 0), width: 4, up: 0 }],
    minimum: Some(82),
    group_minima: &[Bits { at: |i| (i, 4), width: 4, up: 0 }],
    ..GROUPED
};
pub(super) static Q3_K: Layout = Layout {
    bytes: 110,
    group: 16,
    levels: Levels::Less(4),
    quants: &[crumbs!(32, 0), strided_bits!(0, 2)],
    scale: Scale::F16(108),
    group_scale: GroupScale::Plus(32),
    group_scales: &[
        Bits { at: |i| (96 + i % 8, 4 * (i / 8) as u32), width: 4, up: 0 },
        Bits { at: |i| (104 + i % 4, 2 * (i / 4) as u32), width: 2, up: 4 },
    ],
    ..GROUPED
};
pub(super) static Q4_K: Layout = Layout {
    bytes: 144,
    group: 32,
    quants: &[nibbles!(16, 32)],
    group_scales: six_bits!(4, 0),
    minimum: Some(2),
    group_minima: six_bits!(8, 4),
    ..GROUPED
};
pub(super) static Q5_K: Layout =
    Layout { bytes: 176, quants: &[nibbles!(48, 32), strided_bits!(16, 4)], ..Q4_K_FIELDS };
/// What [`Q5_K`] shares with [`Q4_K`].
const Q4_K_FIELDS: Layout = Layout {
    group: 32,
    group_scales: six_bits!(4, 0),
    minimum: Some(2),
    group_minima: six_bits!(8, 4),
    ..GROUPED
};
pub(super) static Q6_K: Layout = Layout {
    bytes: 210,
    group: 16,
    levels: Levels::Less(32),
    quants: &[nibbles!(0, 64), crumbs!(128, 4)],
    scale: Scale::F16(208),
    group_scale: GroupScale::Signed,
    group_scales: &[whole_bytes!(192)],
    ..GROUPED
};
pub(super) static IQ4_NL: Layout =
    Layout { bytes: 18, levels: Levels::NON_LINEAR, quants: &[nibbles!(2, 16)], ..PLAIN };
pub(super) static IQ4_XS: Layout = Layout {
    bytes: 136,
    group: 32,
    levels: Levels::NON_LINEAR,
    quants: &[nibbles!(8, 16)],
    group_scale: GroupScale::Plus(32),
    group_scales: &[
        Bits { at: |i| (4 + i / 2, 4 * (i % 2) as u32), width: 4, up: 0 },
        Bits { at: |i| (2 + i / 4, 2 * (i % 4) as u32), width: 2, up: 4 },
    ],
    ..GROUPED
};
pub(super) static MXFP4: Layout = Layout {
    bytes: 17,
    levels: Levels::TWICE_E2M1,
    quants: &[nibbles!(1, 16)],
    scale: Scale::HalfE8M0(0),
    ..PLAIN
};
pub(super) static F8_E4M3: Layout = Layout {
    bytes: 36,
    levels: Levels::F8,
    quants: &[whole_bytes!(4)],
    scale: Scale::F32(0),
    ..PLAIN
};
pub(super) static U4: Layout =
    Layout { bytes: 21, quants: &[nibbles!(5, 16)], scale: Scale::F32(0), zero: Some(4), ..PLAIN };
pub(super) static NF4: Layout = Layout {
    elements: 64,
    bytes: 36,
    group: 64,
    levels: Levels::NORMAL,
    quants: &[nibbles!(4, 16)],
    scale: Scale::F32(0),
    ..PLAIN
};
pub(super) static NVFP4: Layout = Layout {
    elements: 64,
    bytes: 40,
    group: 16,
    levels: Levels::E2M1,
    quants: &[nibbles!(8, 16)],
    scale: Scale::F32(0),
    group_scale: GroupScale::F8Quotient,
    group_scales: &[whole_bytes!(4)],
    ..PLAIN
};

impl Layout {
    /// Groups in a block.
    pub(super) fn groups(&self) -> usize {
        self.elements / self.group
    }

    /// Takes a block apart; `block` is as long as one.
    #[inline]
    pub(super) fn read(&self, block: &[u8]) -> BlockFields {
        let mut fields = BlockFields::new(self);
        gather(self.quants, block, &mut fields.quants[..self.elements]);
        gather(self.group_scales, block, &mut fields.group_scales[..self.groups()]);
        gather(self.group_minima, block, &mut fields.group_minima[..self.groups()]);
        fields.scale = match self.scale {
            Scale::F16(at) => f16_at(block, at),
            Scale::F32(at) => f32::from_le_bytes(std::array::from_fn(|i| block[at + i])),
            Scale::HalfE8M0(at) => half_of_power(block[at]),
        };
        fields.minimum = self.minimum.map_or(0.0, |at| f16_at(block, at));
        fields.zero = self.zero.map_or(0, |at| block[at]);
        fields
    }

    /// Appends a block of `fields`.
    pub(super) fn write(&self, fields: &BlockFields, bytes: &mut Vec<u8>) {
        let start = bytes.len();
        bytes.resize(start + self.bytes, 0);
        let block = &mut bytes[start..];
        scatter(self.quants, &fields.quants[..self.elements], block);
        scatter(self.group_scales, &fields.group_scales[..self.groups()], block);
        scatter(self.group_minima, &fields.group_minima[..self.groups()], block);
        let f16_bytes = |value: f32| f16::from_f32(value).to_le_bytes();
        match self.scale {
            Scale::F16(at) => block[at..at + 2].copy_from_slice(&f16_bytes(fields.scale)),
            Scale::F32(at) => block[at..at + 4].copy_from_slice(&fields.scale.to_le_bytes()),
            Scale::HalfE8M0(at) => block[at] = power_of_half(fields.scale),
        }
        if let Some(at) = self.minimum {
            block[at..at + 2].copy_from_slice(&f16_bytes(fields.minimum));
        }
        if let Some(at) = self.zero {
            block[at] = fields.zero;
        }
    }
}

/// The greatest number that these bits hold.
pub(super) fn greatest(parts: &[Bits]) -> u8 {
    parts.iter().fold(0, |all, part| all | (mask(part.width) << part.up))
}

fn mask(width: u32) -> u8 {
    u8::MAX >> (8 - width)
}

fn gather(parts: &[Bits], block: &[u8], numbers: &mut [u8]) {
    for part in parts {
        for (index, number) in numbers.iter_mut().enumerate() {
            let (byte, shift) = (part.at)(index);
            *number |= ((block[byte] >> shift) & mask(part.width)) << part.up;
        }
    }
}

fn scatter(parts: &[Bits], numbers: &[u8], block: &mut [u8]) {
    for part in parts {
        for (index, &number) in numbers.iter().enumerate() {
            let (byte, shift) = (part.at)(index);
            block[byte] |= ((number >> part.up) & mask(part.width)) << shift;
        }
    }
}

fn f16_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// `2^(exponent - 127) / 2`; the smallest two are subnormal.
pub(super) fn half_of_power(exponent: u8) -> f32 {
    f32::from_bits(match exponent {
        0 | 1 => 0x0020_0000 << exponent,
        _ => u32::from(exponent - 1) << 23,
    })
}

/// The exponent of the least power whose half is not below `scale`.
pub(super) fn power_of_half(scale: f32) -> u8 {
    (0..u8::MAX).find(|&exponent| half_of_power(exponent) >= scale).unwrap_or(u8::MAX - 1)
}
