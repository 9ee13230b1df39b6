//! Blocks composed of two parts: quants, and scales of groups of inputs.
//!
//! A block of [`Composed`] takes as many bytes for sixteen outputs as the file takes for sixteen
//! blocks: each bit of the file's has its place here, in another order. Sixteen bytes side by side
//! belong to sixteen outputs; a byte of theirs holds neighbouring inputs, the first one lowest:
//!
//! | part of a quant | inputs a byte |
//! | --- | --- |
//! | nibbles: four bits | 2 |
//! | crumbs: two bits | 4 |
//! | single bits | 8 |
//!
//! A weight is `level * scale`, or `level * scale + minimum` in formats with minima. The scale of a
//! group is the product of an f16 and an integer of at most seven bits and sign, which is exact in
//! f32, and so is its product with a level: a value is rounded once, where the minimum is added, as in
//! the reference decoder. [`U4Block`] is the exception with a zero point in place of a minimum.

use backend_api::weights::{BlockFields, Format};
use half::f16;

use super::{blocks::Block, scales::Scales};
use crate::isa::{Isa, LANES};

/// A byte for each of sixteen outputs.
pub(super) type Bytes = [u8; LANES];

/// The quants of a block.
pub(crate) trait Quants: Copy + Send + Sync + 'static {
    /// Inputs in a block.
    const DEPTH: usize;

    /// All zero bits.
    fn zero() -> Self;

    /// Sets those of an output. `self` has zero bits there.
    fn set(&mut self, column: usize, quants: &[u8]);

    /// The levels of inputs `2 * pair` and `2 * pair + 1`.
    fn pair<S: Isa>(&self, isa: S, pair: usize) -> [S::F32; 2];
}

/// Quants and scales.
#[derive(Clone, Copy)]
#[repr(C, align(16))]
pub(crate) struct Composed<Q, C> {
    scales: C,
    quants: Q,
}

impl<Q: Quants, C: Scales> Block for Composed<Q, C> {
    const DEPTH: usize = Q::DEPTH;
    const GROUP: usize = C::GROUP;
    type Scale<S: Isa> = [S::F32; 2];

    fn zero() -> Self {
        Self { scales: C::zero(), quants: Q::zero() }
    }

    fn set_column(&mut self, column: usize, row: &[u8], block: usize) {
        if let Some(fields) = fields_of(C::FORMAT, row, block) {
            self.scales.set(column, &fields);
            self.quants.set(column, &fields.quants[..Q::DEPTH]);
        }
    }

    #[inline(always)]
    fn scale<S: Isa>(&self, isa: S, group: usize) -> [S::F32; 2] {
        self.scales.group(isa, group)
    }

    #[inline(always)]
    fn pair<S: Isa>(&self, isa: S, [scale, minimum]: [S::F32; 2], pair: usize) -> [S::F32; 2] {
        let levels = self.quants.pair(isa, pair);
        match C::HAS_MINIMUM {
            true => levels.map(|level| isa.mul_add(level, scale, minimum)),
            false => levels.map(|level| isa.mul(level, scale)),
        }
    }
}

/// Block number `block` of a row, taken apart.
fn fields_of(format: Format, row: &[u8], block: usize) -> Option<BlockFields> {
    let bytes = format.block_bytes();
    format.fields(row.get(block * bytes..(block + 1) * bytes)?)
}

/// Two, three, four, five or six bits, less a number. `LOW` bytes of sixteen lanes hold the low part:
/// nibbles if there are as many as half the inputs, or else crumbs. `HIGH` hold the bits above.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Integers<const DEPTH: usize, const LOW: usize, const HIGH: usize, const LESS: i8>
{
    low: [Bytes; LOW],
    high: [Bytes; HIGH],
}

impl<const DEPTH: usize, const LOW: usize, const HIGH: usize, const LESS: i8>
    Integers<DEPTH, LOW, HIGH, LESS>
{
    /// Bits of the low part: 4 or 2.
    const LOW_BITS: usize = 8 * LOW / DEPTH;
    /// Bits above them: 0, 1 or 2.
    const HIGH_BITS: usize = 8 * HIGH / DEPTH;

    /// The quant of an input, for sixteen outputs.
    #[inline(always)]
    fn quants(&self, input: usize) -> Bytes {
        let low = field::<LOW>(&self.low, Self::LOW_BITS, input);
        if HIGH == 0 {
            return low;
        }
        let high = field::<HIGH>(&self.high, Self::HIGH_BITS, input);
        std::array::from_fn(|lane| low[lane] | (high[lane] << Self::LOW_BITS))
    }
}

impl<const DEPTH: usize, const LOW: usize, const HIGH: usize, const LESS: i8> Quants
    for Integers<DEPTH, LOW, HIGH, LESS>
{
    const DEPTH: usize = DEPTH;

    fn zero() -> Self {
        Self { low: [[0; LANES]; LOW], high: [[0; LANES]; HIGH] }
    }

    fn set(&mut self, column: usize, quants: &[u8]) {
        for (input, quant) in quants.iter().enumerate() {
            set_field(&mut self.low, Self::LOW_BITS, input, column, *quant);
            if HIGH > 0 {
                let high = quant >> Self::LOW_BITS;
                set_field(&mut self.high, Self::HIGH_BITS, input, column, high);
            }
        }
    }

    #[inline(always)]
    fn pair<S: Isa>(&self, isa: S, pair: usize) -> [S::F32; 2] {
        if HIGH == 0 && LESS == 0 && Self::LOW_BITS == 4 {
            return isa.load_nibbles(&self.low[pair]);
        }
        let levels = |input| {
            let quants = self.quants(input);
            isa.load_i8(&quants.map(|quant| quant.cast_signed().wrapping_sub(LESS)))
        };
        [levels(2 * pair), levels(2 * pair + 1)]
    }
}

/// The low `bits` bits of a quant into the place of input `input`.
fn set_field(planes: &mut [Bytes], bits: usize, input: usize, column: usize, quant: u8) {
    let (byte, shift) = (input * bits / 8, input * bits % 8);
    if let Some(lanes) = planes.get_mut(byte) {
        lanes[column] |= (quant & mask(bits)) << shift;
    }
}

#[inline(always)]
fn field<const COUNT: usize>(planes: &[Bytes; COUNT], bits: usize, input: usize) -> Bytes {
    let (byte, shift) = (input * bits / 8, input * bits % 8);
    planes[byte].map(|byte| (byte >> shift) & mask(bits))
}

#[inline(always)]
const fn mask(bits: usize) -> u8 {
    u8::MAX >> (8 - bits)
}

/// Sixteen levels that a nibble chooses from.
pub(crate) trait Table: Copy + Send + Sync + 'static {
    const ENTRIES: [f32; 16];
}

/// The table of IQ4_NL and IQ4_XS.
#[derive(Clone, Copy)]
pub(crate) struct NonLinear;

impl Table for NonLinear {
    const ENTRIES: [f32; 16] = [
        -127.0, -104.0, -83.0, -65.0, -49.0, -35.0, -22.0, -10.0, 1.0, 13.0, 25.0, 38.0, 53.0,
        69.0, 89.0, 113.0,
    ];
}

/// Twice the numbers that E2M1 has.
#[derive(Clone, Copy)]
pub(crate) struct TwiceE2M1;

impl Table for TwiceE2M1 {
    const ENTRIES: [f32; 16] =
        [0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 0.0, -1.0, -2.0, -3.0, -4.0, -6.0, -8.0, -12.0];
}

/// The numbers that E2M1 has.
#[derive(Clone, Copy)]
pub(crate) struct E2M1;

impl Table for E2M1 {
    const ENTRIES: [f32; 16] =
        [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];
}

/// The quantiles of NF4.
#[derive(Clone, Copy)]
pub(crate) struct Normal;

impl Table for Normal {
    const ENTRIES: [f32; 16] = [
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
    ];
}

/// Nibbles that name entries of a table.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Indices<T, const DEPTH: usize, const PAIRS: usize> {
    nibbles: [Bytes; PAIRS],
    table: std::marker::PhantomData<T>,
}

impl<T: Table, const DEPTH: usize, const PAIRS: usize> Quants for Indices<T, DEPTH, PAIRS> {
    const DEPTH: usize = DEPTH;

    fn zero() -> Self {
        Self { nibbles: [[0; LANES]; PAIRS], table: std::marker::PhantomData }
    }

    fn set(&mut self, column: usize, quants: &[u8]) {
        for (input, quant) in quants.iter().enumerate() {
            set_field(&mut self.nibbles, 4, input, column, *quant);
        }
    }

    #[inline(always)]
    fn pair<S: Isa>(&self, isa: S, pair: usize) -> [S::F32; 2] {
        isa.look_up(&T::ENTRIES, &self.nibbles[pair])
    }
}

/// Floats of eight bits: E4M3 without infinities.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Floats8<const DEPTH: usize> {
    bytes: [Bytes; DEPTH],
}

impl<const DEPTH: usize> Quants for Floats8<DEPTH> {
    const DEPTH: usize = DEPTH;

    fn zero() -> Self {
        Self { bytes: [[0; LANES]; DEPTH] }
    }

    fn set(&mut self, column: usize, quants: &[u8]) {
        for (lanes, quant) in self.bytes.iter_mut().zip(quants) {
            lanes[column] = *quant;
        }
    }

    #[inline(always)]
    fn pair<S: Isa>(&self, isa: S, pair: usize) -> [S::F32; 2] {
        [load_f8(isa, &self.bytes[2 * pair]), load_f8(isa, &self.bytes[2 * pair + 1])]
    }
}

/// E4M3 to f32, by way of f16: that has the same bits with one more of exponent, seven more of
/// mantissa, and a bias that is larger by eight.
#[inline(always)]
pub(super) fn load_f8<S: Isa>(isa: S, from: &Bytes) -> S::F32 {
    let halves = from.map(|byte| {
        let magnitude = u16::from(byte & 0x7f);
        let bits = if magnitude == 0x7f { 0x7e00 } else { magnitude << 7 };
        bits | (u16::from(byte & 0x80) << 8)
    });
    isa.mul(isa.load_f16(&halves), isa.splat(256.0))
}

/// Four bits less a zero point, and a scale.
#[derive(Clone, Copy)]
#[repr(C, align(16))]
pub(crate) struct U4Block {
    scales: [f32; LANES],
    zeros: [i8; LANES],
    quants: [Bytes; 16],
}

impl Block for U4Block {
    const DEPTH: usize = 32;
    type Scale<S: Isa> = [S::F32; 2];

    fn zero() -> Self {
        Self { scales: [0.0; LANES], zeros: [0; LANES], quants: [[0; LANES]; 16] }
    }

    fn set_column(&mut self, column: usize, row: &[u8], block: usize) {
        let Some(fields) = fields_of(Format::U4, row, block) else { return };
        self.scales[column] = fields.scale;
        self.zeros[column] = fields.zero.cast_signed();
        for (input, quant) in fields.quants[..Self::DEPTH].iter().enumerate() {
            set_field(&mut self.quants, 4, input, column, *quant);
        }
    }

    #[inline(always)]
    fn scale<S: Isa>(&self, isa: S, _: usize) -> [S::F32; 2] {
        [isa.load(&self.scales), isa.load_i8(&self.zeros)]
    }

    #[inline(always)]
    fn pair<S: Isa>(&self, isa: S, [scale, zero]: [S::F32; 2], pair: usize) -> [S::F32; 2] {
        isa.load_nibbles(&self.quants[pair]).map(|level| isa.mul(isa.sub(level, zero), scale))
    }
}

/// The bits of a scale that was an f16 in the file.
pub(super) fn half_bits(scale: f32) -> u16 {
    f16::from_f32(scale).to_bits()
}
