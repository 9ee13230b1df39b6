//! Products of matrices spread over the registers of a warp: `mma.sync`.
//!
//! A fragment register holds `e` neighbouring elements of a row (2 of 16 bits, 4 of 8 bits, 1 of
//! tf32). With `g = lane / 4` and `t = lane % 4`, register `r` of A holds row `g + 8 * (r % 2)` and
//! columns `4e * (r / 2) + e * t ..`; register `r` of B holds rows `4e * r + e * t ..` of column
//! `g`; C and D hold columns `2t` and `2t + 1` of rows `g` and `g + 8`.
//!
//! A register of all lanes is thus 8 rows of A, or 8 columns of B, one after the other.

use crate::count::Class;
use crate::machine::action::Action;
use crate::machine::context::Trap;
use crate::machine::float::{Bf16, Eight, F16, Half, NAN32};
use crate::machine::form::Form;
use crate::machine::registers::{FULL, LANES, Registers, Slot, Work, wide_work};
use crate::ptx::{Operand, PtxError, Type};

use super::Op;

type Compiled = Result<Action, PtxError>;

pub(super) const TABLE: &[Op] = &[Op {
    name: "mma",
    class: Class::Tensor,
    forms: &[
        "mma.sync.aligned.m16n8k16.row.col.f32.(f16.f16|bf16.bf16).f32 {r0, r1, r2, r3}, {r4, r5, r6, r7}, {r8, r9}, {r0, r1, r2, r3}",
        "mma.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16 {r0, r1}, {r4, r5, r6, r7}, {r8, r9}, {r0, r1}",
        "mma.sync.aligned.m16n8k8.row.col.f32.(f16.f16|bf16.bf16).f32 {r0, r1, r2, r3}, {r4, r5}, {r8}, {r0, r1, r2, r3}",
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {r0, r1, r2, r3}, {r4, r5, r6, r7}, {r8, r9}, {r0, r1, r2, r3}",
        "mma.sync.aligned.m16n8k4.row.col.f32.tf32.tf32.f32 {r0, r1, r2, r3}, {r4, r5}, {r8}, {r0, r1, r2, r3}",
        "mma.sync.aligned.m16n8k16.row.col(|.satfinite).s32.(s8.s8|u8.u8|s8.u8|u8.s8).s32 {r0, r1, r2, r3}, {r4, r5}, {r8}, {r0, r1, r2, r3}",
        "mma.sync.aligned.m16n8k32.row.col(|.satfinite).s32.(s8.s8|u8.u8|s8.u8|u8.s8).s32 {r0, r1, r2, r3}, {r4, r5, r6, r7}, {r8, r9}, {r0, r1, r2, r3}",
        "mma.sync.aligned.m16n8k32.row.col(|.kind::f8f6f4).f32.(e4m3.e4m3|e5m2.e5m2|e4m3.e5m2|e5m2.e4m3).f32 {r0, r1, r2, r3}, {r4, r5, r6, r7}, {r8, r9}, {r0, r1, r2, r3}",
    ],
    compile: mma,
}];

/// Rows of A and columns of B.
const M: usize = 16;
const N: usize = 8;

/// How elements lie in a fragment register.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Element {
    F16,
    Bf16,
    Tf32,
    Signed,
    Unsigned,
    E4m3,
    E5m2,
}

impl Element {
    pub(super) fn from_type(ty: Type) -> Option<Self> {
        Some(match ty {
            Type::F16 => Self::F16,
            Type::Bf16 => Self::Bf16,
            Type::Tf32 => Self::Tf32,
            Type::S8 => Self::Signed,
            Type::U8 => Self::Unsigned,
            Type::E4m3 => Self::E4m3,
            Type::E5m2 => Self::E5m2,
            _ => return None,
        })
    }

    pub(super) fn is_whole(self) -> bool {
        matches!(self, Self::Signed | Self::Unsigned)
    }

    /// Elements of a register.
    pub(super) fn packed(self) -> usize {
        match self {
            Self::Tf32 => 1,
            Self::F16 | Self::Bf16 => 2,
            Self::Signed | Self::Unsigned | Self::E4m3 | Self::E5m2 => 4,
        }
    }

    pub(super) fn bytes(self) -> u64 {
        4 / self.packed() as u64
    }

    #[inline(always)]
    pub(super) fn real(self, register: u32, index: usize) -> f32 {
        match self {
            Self::F16 => F16::widen((register >> (16 * index)) as u16),
            Self::Bf16 => Bf16::widen((register >> (16 * index)) as u16),
            // Only the upper bits are used.
            Self::Tf32 => f32::from_bits(register & !0x1fff),
            Self::E4m3 => Eight::E4m3.widen((register >> (8 * index)) as u8),
            _ => Eight::E5m2.widen((register >> (8 * index)) as u8),
        }
    }

    #[inline(always)]
    pub(super) fn whole(self, register: u32, index: usize) -> i32 {
        let byte = (register >> (8 * index)) as u8;
        if self == Self::Signed { i32::from(byte as i8) } else { i32::from(byte) }
    }
}

fn mma(form: &mut Form<'_, '_>) -> Compiled {
    for needed in ["sync", "aligned", "row", "col"] {
        if !form.flag(needed) {
            return Err(form.missing("sync.aligned and row.col"));
        }
    }
    form.flag("kind::f8f6f4");
    let k = form
        .choice(&[("m16n8k4", 4usize), ("m16n8k8", 8), ("m16n8k16", 16), ("m16n8k32", 32)])
        .ok_or_else(|| form.missing("a shape: m16n8k4, m16n8k8, m16n8k16 or m16n8k32"))?;
    let saturates = form.flag("satfinite");
    let (d, a, b, c) = (form.ty()?, form.ty()?, form.ty()?, form.ty()?);
    let (Some(a), Some(b)) = (Element::from_type(a), Element::from_type(b)) else {
        return Err(form.bad_type(a));
    };
    form.expect(4)?;
    let registers = k / (4 * a.packed()).max(1);
    if a.packed() != b.packed() || registers * 4 * a.packed() != k || !matches!(registers, 1 | 2) {
        return Err(form.missing("a shape that these types have"));
    }
    let shape = Shape { a: list(form, 1, 2 * registers)?, b: list(form, 2, registers)?, k };
    match (d, c) {
        (Type::S32, Type::S32) if a.is_whole() && b.is_whole() => {
            let (d, c) = (form.targets::<i32, 4>(0)?, form.sources::<i32, 4>(3)?);
            Ok(tensor(k, a, move |registers| {
                let mut sums = [[0; N]; M];
                wide_work(Whole { shape: &shape, registers, elements: (a, b), sums: &mut sums });
                let added = c.map(|slot| registers.get(slot));
                for (index, slot) in d.into_iter().enumerate() {
                    let sums = collect(&sums, index);
                    let out = std::array::from_fn(|lane| {
                        let (added, sum) = (added[index][lane], sums[lane]);
                        if saturates { added.saturating_add(sum) } else { added.wrapping_add(sum) }
                    });
                    registers.set(slot, out, FULL);
                }
            }))
        }
        (Type::F32, Type::F32) if !a.is_whole() && !b.is_whole() => {
            let (d, c) = (form.targets::<f32, 4>(0)?, form.sources::<f32, 4>(3)?);
            Ok(tensor(k, a, move |registers| {
                let mut sums = [[0f32; N]; M];
                for (index, slot) in c.into_iter().enumerate() {
                    spread(&mut sums, &registers.get(slot), index);
                }
                wide_work(Real { shape: &shape, registers, elements: (a, b), sums: &mut sums });
                for (index, slot) in d.into_iter().enumerate() {
                    let quiet = |sum: f32| if sum.is_nan() { NAN32 } else { sum };
                    registers.set(slot, collect(&sums, index).map(quiet), FULL);
                }
            }))
        }
        (Type::F16, Type::F16) if a == Element::F16 => {
            let (d, c) = (form.targets::<u32, 2>(0)?, form.sources::<u32, 2>(3)?);
            Ok(tensor(k, a, move |registers| {
                let mut sums = [[0f32; N]; M];
                for (index, slot) in c.into_iter().enumerate() {
                    let both = registers.get(slot);
                    spread(&mut sums, &both.map(|v| F16::widen(v as u16)), 2 * index);
                    spread(&mut sums, &both.map(|v| F16::widen((v >> 16) as u16)), 2 * index + 1);
                }
                wide_work(Real { shape: &shape, registers, elements: (a, b), sums: &mut sums });
                for (index, slot) in d.into_iter().enumerate() {
                    let low = collect(&sums, 2 * index).map(F16::narrow);
                    let high = collect(&sums, 2 * index + 1).map(F16::narrow);
                    let out = std::array::from_fn(|lane| {
                        u32::from(high[lane]) << 16 | u32::from(low[lane])
                    });
                    registers.set(slot, out, FULL);
                }
            }))
        }
        (other, _) => Err(form.bad_type(other)),
    }
}

fn tensor(
    k: usize,
    element: Element,
    f: impl Fn(&mut Registers) + Send + Sync + 'static,
) -> Action {
    let operations = (2 * M * N * k) as u64;
    Action::warp(move |context, mask| {
        context.require_lanes(FULL, mask)?;
        context.tally.counts.add_tensor(operations, element.bytes());
        f(&mut context.core.registers);
        Ok::<(), Trap>(())
    })
}

fn list(form: &mut Form<'_, '_>, index: usize, count: usize) -> Result<Vec<Slot<u32>>, PtxError> {
    let elements: &[Operand] = form.vector(index)?;
    if elements.len() != count {
        let reason = format!("{} registers instead of {count}", elements.len());
        return Err(form.operand_error(index, reason));
    }
    let mut all = Vec::new();
    for element in elements {
        all.push(form.source(index, element)?);
    }
    Ok(all)
}

/// What register `index` of C or D holds of a matrix.
#[inline(always)]
fn collect<T: Copy + Default>(matrix: &[[T; N]; M], index: usize) -> [T; LANES] {
    let mut out = [T::default(); LANES];
    for row in 0..8 {
        for pair in 0..4 {
            out[4 * row + pair] = matrix[row + 8 * (index / 2)][2 * pair + index % 2];
        }
    }
    out
}

/// The reverse of [`collect`].
#[inline(always)]
fn spread(matrix: &mut [[f32; N]; M], values: &[f32; LANES], index: usize) {
    for row in 0..8 {
        for pair in 0..4 {
            matrix[row + 8 * (index / 2)][2 * pair + index % 2] = values[4 * row + pair];
        }
    }
}

/// The fragments of A and B.
struct Shape {
    a: Vec<Slot<u32>>,
    b: Vec<Slot<u32>>,
    k: usize,
}

/// A product of reals: added to `sums` in single precision and in the order of the inner dimension.
/// Devices add in another order, and round differently.
struct Real<'a> {
    shape: &'a Shape,
    registers: &'a Registers,
    elements: (Element, Element),
    sums: &'a mut [[f32; N]; M],
}

impl Work for Real<'_> {
    #[inline(always)]
    fn run(self) {
        let Self { shape, registers, elements: (a, b), sums } = self;
        match (a, b, shape.k) {
            // The common cases, compiled for themselves.
            (Element::Bf16, Element::Bf16, 16) => {
                let real = |bits, index| Element::Bf16.real(bits, index);
                add(sums, &shape.gather::<f32, 16, 2>(registers, real, real));
            }
            (Element::F16, Element::F16, 16) => {
                let real = |bits, index| Element::F16.real(bits, index);
                add(sums, &shape.gather::<f32, 16, 2>(registers, real, real));
            }
            _ => {
                let e = a.packed();
                let a = |bits, index| a.real(bits, index);
                let b = |bits, index| b.real(bits, index);
                match (shape.k, e) {
                    (4, _) => add(sums, &shape.gather::<f32, 4, 1>(registers, a, b)),
                    (8, 1) => add(sums, &shape.gather::<f32, 8, 1>(registers, a, b)),
                    (8, _) => add(sums, &shape.gather::<f32, 8, 2>(registers, a, b)),
                    (16, 2) => add(sums, &shape.gather::<f32, 16, 2>(registers, a, b)),
                    (16, _) => add(sums, &shape.gather::<f32, 16, 4>(registers, a, b)),
                    _ => add(sums, &shape.gather::<f32, 32, 4>(registers, a, b)),
                }
            }
        }
    }
}

/// A product of bytes.
struct Whole<'a> {
    shape: &'a Shape,
    registers: &'a Registers,
    elements: (Element, Element),
    sums: &'a mut [[i32; N]; M],
}

impl Work for Whole<'_> {
    #[inline(always)]
    fn run(self) {
        let Self { shape, registers, elements: (a, b), sums } = self;
        let a = |bits, index| a.whole(bits, index);
        let b = |bits, index| b.whole(bits, index);
        match shape.k {
            16 => add(sums, &shape.gather::<i32, 16, 4>(registers, a, b)),
            _ => add(sums, &shape.gather::<i32, 32, 4>(registers, a, b)),
        }
    }
}

impl Shape {
    /// A and B with `E` elements in a register of a lane.
    #[inline(always)]
    fn gather<T: Copy + Default, const K: usize, const E: usize>(
        &self,
        registers: &Registers,
        a: impl Fn(u32, usize) -> T,
        b: impl Fn(u32, usize) -> T,
    ) -> Factors<T, K> {
        let mut factors = Factors { a: [[T::default(); K]; M], b: [[T::default(); N]; K] };
        for (r, slot) in self.a.iter().enumerate().take(K / (2 * E)) {
            let bits = registers.get(*slot);
            let (top, left) = (8 * (r % 2), 4 * E * (r / 2));
            for row in 0..8 {
                for column in 0..4 * E {
                    let bits = bits[4 * row + column / E];
                    factors.a[top + row][left + column] = a(bits, column % E);
                }
            }
        }
        for (r, slot) in self.b.iter().enumerate().take(K / (4 * E)) {
            let bits = registers.get(*slot);
            for row in 0..4 * E {
                for column in 0..N {
                    let bits = bits[4 * column + row / E];
                    factors.b[4 * E * r + row][column] = b(bits, row % E);
                }
            }
        }
        factors
    }
}

/// A and B.
struct Factors<T, const K: usize> {
    a: [[T; K]; M],
    b: [[T; N]; K],
}

/// What is multiplied and added up.
trait Number: Copy {
    fn multiply_add(self, factor: Self, sum: Self) -> Self;
}

impl Number for f32 {
    #[inline(always)]
    fn multiply_add(self, factor: Self, sum: Self) -> Self {
        self.mul_add(factor, sum)
    }
}

impl Number for i32 {
    /// Products of bytes, too few to overflow.
    #[inline(always)]
    fn multiply_add(self, factor: Self, sum: Self) -> Self {
        sum.wrapping_add(self.wrapping_mul(factor))
    }
}

#[inline(always)]
fn add<T: Number, const K: usize>(sums: &mut [[T; N]; M], factors: &Factors<T, K>) {
    for (row, sums) in factors.a.iter().zip(sums) {
        let mut all = *sums;
        for (left, right) in row.iter().zip(&factors.b) {
            for column in 0..N {
                all[column] = left.multiply_add(right[column], all[column]);
            }
        }
        *sums = all;
    }
}
