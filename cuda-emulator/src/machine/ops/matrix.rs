//! Matrices spread over the registers of a warp: `ldmatrix`, `stmatrix`, `movmatrix`, `mma.sync`.
//!
//! A fragment register holds `e` neighbouring elements of a row (2 of 16 bits, 4 of 8 bits, 1 of
//! tf32). With `g = lane / 4` and `t = lane % 4`, register `r` of A holds row `g + 8 * (r % 2)` and
//! columns `4e * (r / 2) + e * t ..`; register `r` of B holds rows `4e * r + e * t ..` of column
//! `g`; C and D hold columns `2t` and `2t + 1` of rows `g` and `g + 8`.

use crate::check::Access;
use crate::count::{Class, wavefronts};
use crate::machine::action::Action;
use crate::machine::context::{Place, Trap};
use crate::machine::float::{Bf16, Eight, F16, Half, NAN32};
use crate::machine::form::Form;
use crate::machine::registers::{FULL, LANES, Registers, Slot, wide};
use crate::ptx::{Operand, PtxError, Space, Type};

use super::Op;

type Compiled = Result<Action, PtxError>;

pub(super) const TABLE: &[Op] = &[
    Op {
        name: "ldmatrix",
        class: Class::MatrixLoad,
        forms: &[
            "ldmatrix.sync.aligned.m8n8.x1(|.trans).shared.b16 {r0}, [r4]",
            "ldmatrix.sync.aligned.m8n8.x2(|.trans).shared.b16 {r0, r1}, [r4]",
            "ldmatrix.sync.aligned.m8n8.x4(|.trans).(shared|shared::cta).b16 {r0, r1, r2, r3}, [r4]",
        ],
        compile: |form| matrix_access(form, false),
    },
    Op {
        name: "stmatrix",
        class: Class::MatrixLoad,
        forms: &[
            "stmatrix.sync.aligned.m8n8.x1(|.trans).shared.b16 [r4], {r0}",
            "stmatrix.sync.aligned.m8n8.x2(|.trans).shared.b16 [r4], {r0, r1}",
            "stmatrix.sync.aligned.m8n8.x4(|.trans).shared.b16 [r4], {r0, r1, r2, r3}",
        ],
        compile: |form| matrix_access(form, true),
    },
    Op {
        name: "movmatrix",
        class: Class::MatrixLoad,
        forms: &["movmatrix.sync.aligned.m8n8.trans.b16 r0, r1"],
        compile: movmatrix,
    },
    Op {
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
    },
];

/// `ldmatrix` and `stmatrix`: 8 lanes give the rows of each matrix.
fn matrix_access(form: &mut Form<'_, '_>, store: bool) -> Compiled {
    for needed in ["sync", "aligned", "m8n8", "b16"] {
        if !form.flag(needed) {
            return Err(form.missing("sync.aligned.m8n8 and b16"));
        }
    }
    let count = form
        .choice(&[("x1", 1usize), ("x2", 2), ("x4", 4)])
        .ok_or_else(|| form.missing("x1, x2 or x4"))?;
    let transposed = form.flag("trans");
    if form.space() != Space::Shared {
        return Err(form.missing("shared"));
    }
    form.expect(2)?;
    let (list, at) = if store { (1, 0) } else { (0, 1) };
    let elements = form.vector(list)?;
    if elements.len() != count {
        return Err(
            form.operand_error(list, format!("{} registers instead of {count}", elements.len()))
        );
    }
    let mut slots = Vec::new();
    for element in elements {
        let slot: Slot<u32> = if store {
            form.source(list, element)?
        } else {
            form.optional_target(list, element)?
                .ok_or_else(|| form.operand_error(list, "must be a register"))?
        };
        slots.push(slot);
    }
    let (address, _) = form.address(at, Space::Shared)?;
    Ok(Action::warp(move |context, mask| {
        context.require_lanes(FULL, mask)?;
        let addresses = address.lanes(&context.core.registers);
        let access = if store { Access::Write } else { Access::Read };
        let mut out = vec![[0u32; LANES]; count];
        for (matrix, slot) in slots.iter().enumerate() {
            let mut rows = [Place::Nowhere; 8];
            for (row, place) in rows.iter_mut().enumerate() {
                let lane = matrix * 8 + row;
                *place = context.place(Space::Shared, lane, addresses[lane], 16, access)?;
            }
            // A lane holds two neighbours of a row, or of a column.
            let cells = |lane: usize| {
                let (major, minor) = (lane / 4, lane % 4 * 2);
                if transposed {
                    [(minor, major), (minor + 1, major)]
                } else {
                    [(major, minor), (major, minor + 1)]
                }
            };
            if store {
                let values = context.core.registers.get(*slot);
                for (lane, value) in values.into_iter().enumerate() {
                    for (half, (row, column)) in cells(lane).into_iter().enumerate() {
                        let bits = u64::from(value >> (16 * half) & 0xffff);
                        context.store(rows[row], column * 2, 2, bits);
                    }
                }
            } else {
                for (lane, value) in out[matrix].iter_mut().enumerate() {
                    for (half, (row, column)) in cells(lane).into_iter().enumerate() {
                        let bits = context.load(rows[row], column * 2, 2) as u32;
                        *value |= bits << (16 * half);
                    }
                }
            }
        }
        if !store {
            for (slot, values) in slots.iter().zip(out) {
                context.core.registers.set(*slot, values, mask);
            }
        }
        if context.env.count_memory {
            let lanes = if count == 4 { FULL } else { (1u32 << (8 * count)) - 1 };
            let (passes, ideal) = wavefronts(&addresses, lanes, 16);
            context.add_wavefronts(passes, ideal);
        }
        Ok(())
    }))
}

fn movmatrix(form: &mut Form<'_, '_>) -> Compiled {
    for needed in ["sync", "aligned", "m8n8", "trans", "b16"] {
        if !form.flag(needed) {
            return Err(form.missing("sync.aligned.m8n8.trans.b16"));
        }
    }
    form.expect(2)?;
    let (target, source) = (form.dst::<u32>(0)?, form.src::<u32>(1)?);
    Ok(Action::warp(move |context, mask| {
        context.require_lanes(FULL, mask)?;
        let values = context.core.registers.get(source);
        let element = |row: usize, column: usize| {
            values[row * 4 + column / 2] >> (16 * (column % 2)) & 0xffff
        };
        let out = std::array::from_fn(|lane| {
            let (row, column) = (lane / 4, lane % 4 * 2);
            element(column, row) | element(column + 1, row) << 16
        });
        context.core.registers.set(target, out, mask);
        Ok(())
    }))
}

/// Rows of A and columns of B.
const M: usize = 16;
const N: usize = 8;
/// The longest inner dimension.
const K: usize = 32;

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
                let sums = shape.multiply_whole(registers, a, b);
                let added = c.map(|slot| registers.get(slot));
                for (index, slot) in d.into_iter().enumerate() {
                    let out = std::array::from_fn(|lane| {
                        let sum = place(&sums, lane, index);
                        if saturates {
                            added[index][lane].saturating_add(sum)
                        } else {
                            added[index][lane].wrapping_add(sum)
                        }
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
                    spread(&mut sums, registers.get(slot), index);
                }
                wide(|| shape.multiply(registers, a, b, &mut sums));
                for (index, slot) in d.into_iter().enumerate() {
                    let out = std::array::from_fn(|lane| {
                        let sum = place(&sums, lane, index);
                        if sum.is_nan() { NAN32 } else { sum }
                    });
                    registers.set(slot, out, FULL);
                }
            }))
        }
        (Type::F16, Type::F16) if a == Element::F16 => {
            let (d, c) = (form.targets::<u32, 2>(0)?, form.sources::<u32, 2>(3)?);
            Ok(tensor(k, a, move |registers| {
                let mut sums = [[0f32; N]; M];
                for (index, slot) in c.into_iter().enumerate() {
                    let both = registers.get(slot);
                    spread(&mut sums, both.map(|v| F16::widen(v as u16)), 2 * index);
                    spread(&mut sums, both.map(|v| F16::widen((v >> 16) as u16)), 2 * index + 1);
                }
                wide(|| shape.multiply(registers, a, b, &mut sums));
                for (index, slot) in d.into_iter().enumerate() {
                    let out = std::array::from_fn(|lane| {
                        let low = F16::narrow(place(&sums, lane, 2 * index));
                        let high = F16::narrow(place(&sums, lane, 2 * index + 1));
                        u32::from(high) << 16 | u32::from(low)
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

/// The element of C or D that register `index` of a lane holds.
#[inline(always)]
fn place<T: Copy>(matrix: &[[T; N]; M], lane: usize, index: usize) -> T {
    matrix[lane / 4 + 8 * (index / 2)][lane % 4 * 2 + index % 2]
}

#[inline(always)]
fn spread(matrix: &mut [[f32; N]; M], values: [f32; LANES], index: usize) {
    for (lane, value) in values.into_iter().enumerate() {
        matrix[lane / 4 + 8 * (index / 2)][lane % 4 * 2 + index % 2] = value;
    }
}

/// The fragments of A and B.
struct Shape {
    a: Vec<Slot<u32>>,
    b: Vec<Slot<u32>>,
    k: usize,
}

impl Shape {
    /// Adds the product to `sums`, in single precision and in the order of the inner dimension.
    /// Devices add in another order, and round differently.
    #[inline(always)]
    fn multiply(&self, registers: &Registers, a: Element, b: Element, sums: &mut [[f32; N]; M]) {
        let mut left = [[0f32; K]; M];
        let mut right = [[0f32; N]; K];
        match (a, b) {
            // The common cases, compiled for themselves.
            (Element::Bf16, Element::Bf16) => {
                self.gather(registers, &mut left, &mut right, 2, |bits, index| {
                    Element::Bf16.real(bits, index)
                });
            }
            (Element::F16, Element::F16) => {
                self.gather(registers, &mut left, &mut right, 2, |bits, index| {
                    Element::F16.real(bits, index)
                });
            }
            _ => {
                let e = a.packed();
                self.gather_a(registers, &mut left, e, |bits, index| a.real(bits, index));
                self.gather_b(registers, &mut right, e, |bits, index| b.real(bits, index));
            }
        }
        for (row, sums) in left.iter().zip(sums) {
            for (factor, right) in row.iter().zip(&right).take(self.k) {
                for column in 0..N {
                    sums[column] = factor.mul_add(right[column], sums[column]);
                }
            }
        }
    }

    #[inline(always)]
    fn gather(
        &self,
        registers: &Registers,
        left: &mut [[f32; K]; M],
        right: &mut [[f32; N]; K],
        e: usize,
        f: impl Fn(u32, usize) -> f32 + Copy,
    ) {
        self.gather_a(registers, left, e, f);
        self.gather_b(registers, right, e, f);
    }

    #[inline(always)]
    fn gather_a<T: Copy>(
        &self,
        registers: &Registers,
        left: &mut [[T; K]; M],
        e: usize,
        f: impl Fn(u32, usize) -> T,
    ) {
        for (r, slot) in self.a.iter().enumerate() {
            for (lane, bits) in registers.get(*slot).into_iter().enumerate() {
                let row = lane / 4 + 8 * (r % 2);
                let column = 4 * e * (r / 2) + e * (lane % 4);
                for index in 0..e {
                    left[row][column + index] = f(bits, index);
                }
            }
        }
    }

    #[inline(always)]
    fn gather_b<T: Copy>(
        &self,
        registers: &Registers,
        right: &mut [[T; N]; K],
        e: usize,
        f: impl Fn(u32, usize) -> T,
    ) {
        for (r, slot) in self.b.iter().enumerate() {
            for (lane, bits) in registers.get(*slot).into_iter().enumerate() {
                let row = 4 * e * r + e * (lane % 4);
                for index in 0..e {
                    right[row + index][lane / 4] = f(bits, index);
                }
            }
        }
    }

    fn multiply_whole(&self, registers: &Registers, a: Element, b: Element) -> [[i32; N]; M] {
        let mut left = [[0i32; K]; M];
        let mut right = [[0i32; N]; K];
        self.gather_a(registers, &mut left, 4, |bits, index| a.whole(bits, index));
        self.gather_b(registers, &mut right, 4, |bits, index| b.whole(bits, index));
        let mut sums = [[0i32; N]; M];
        for (row, sums) in left.iter().zip(&mut sums) {
            for (factor, right) in row.iter().zip(&right).take(self.k) {
                for column in 0..N {
                    sums[column] += factor * right[column];
                }
            }
        }
        sums
    }
}
