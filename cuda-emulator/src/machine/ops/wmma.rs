//! `wmma`: the tensor core operations of `mma.h`, whose fragments have no layout that programs know.
//!
//! Here element `i` of a matrix, counted along its rows, is in lane `i % 32`, at place `i / 32` of
//! its fragment. Where a fragment has more places than the matrix has elements, they are repeated.

use crate::check::Access;
use crate::count::Class;
use crate::machine::action::Action;
use crate::machine::context::Trap;
use crate::machine::float::{F16, Half, canonical};
use crate::machine::form::Form;
use crate::machine::names::Register;
use crate::machine::registers::{FULL, LANES, Registers, Slot};
use crate::ptx::{PtxError, Type};

use super::Op;
use super::memory::Tracker;
use super::mma::Element;

type Compiled = Result<Action, PtxError>;

pub(super) const TABLE: &[Op] = &[Op {
    name: "wmma",
    class: Class::MatrixLoad,
    forms: &[
        "wmma.load.(a|b).sync.aligned.(row|col).(m16n16k16|m32n8k16|m8n32k16)(|.shared|.global).f16 {r0, r1, r2, r3, r4, r5, r6, r7}, [d0], r8",
        "wmma.load.(a|b).sync.aligned.(row|col).m16n16k16.shared.bf16 {r0, r1, r2, r3}, [r8]",
        "wmma.load.(a|b).sync.aligned.(row|col).m16n16k8.shared.tf32 {r0, r1, r2, r3}, [r8], 32",
        "wmma.load.(a|b).sync.aligned.(row|col).m16n16k16.shared.(s8|u8) {r0, r1}, [r8], 32",
        "wmma.load.(a|b).sync.aligned.(row|col).m8n8k4.shared.f64 {d0}, [r8], 4",
        "wmma.load.c.sync.aligned.(row|col).(m16n16k16|m32n8k16|m8n32k16).global.(f32|s32) {r0, r1, r2, r3, r4, r5, r6, r7}, [d0], r8",
        "wmma.load.c.sync.aligned.(row|col).m16n16k16.shared.f16 {r0, r1, r2, r3}, [r8], r9",
        "wmma.store.d.sync.aligned.(row|col).(m16n16k16|m32n8k16|m8n32k16)(|.shared|.global).(f32|s32) [d0], {r0, r1, r2, r3, r4, r5, r6, r7}, r8",
        "wmma.store.d.sync.aligned.(row|col).m16n16k16.global.f16 [d0], {r0, r1, r2, r3}, r8",
        "wmma.store.d.sync.aligned.(row|col).m8n8k4.global.f64 [d3], {d0, d1}, 8",
        "wmma.mma.sync.aligned.(row|col).(row|col).(m16n16k16|m32n8k16|m8n32k16).f32.f32 {r0, r1, r2, r3, r4, r5, r6, r7}, {r0, r1, r2, r3, r4, r5, r6, r7}, {r8, r9, r10, r11, r12, r13, r14, r15}, {r0, r1, r2, r3, r4, r5, r6, r7}",
        "wmma.mma.sync.aligned.(row|col).(row|col).m16n16k16.f16.f16 {r0, r1, r2, r3}, {r0, r1, r2, r3, r4, r5, r6, r7}, {r8, r9, r10, r11, r12, r13, r14, r15}, {r0, r1, r2, r3}",
        "wmma.mma.sync.aligned.(row|col).(row|col).m16n16k16.f32.bf16.bf16.f32 {r0, r1, r2, r3, r4, r5, r6, r7}, {r8, r9, r10, r11}, {r12, r13, r14, r15}, {r0, r1, r2, r3, r4, r5, r6, r7}",
        "wmma.mma.sync.aligned.(row|col).(row|col).m16n16k8.f32.tf32.tf32.f32 {r0, r1, r2, r3, r4, r5, r6, r7}, {r8, r9, r10, r11}, {r12, r13, r14, r15}, {r0, r1, r2, r3, r4, r5, r6, r7}",
        "wmma.mma.sync.aligned.row.col.m16n16k16.s32.(s8.s8|u8.u8).s32(|.satfinite) {r0, r1, r2, r3, r4, r5, r6, r7}, {r8, r9}, {r10, r11}, {r0, r1, r2, r3, r4, r5, r6, r7}",
        "wmma.mma.sync.aligned.row.col.m8n8k4(|.rn).f64.f64.f64.f64 {d0, d1}, {d2}, {d3}, {d0, d1}",
    ],
    compile: wmma,
}];

/// Rows and columns of a matrix, and how it lies in registers.
#[derive(Clone)]
struct Fragment {
    rows: usize,
    columns: usize,
    /// Elements of a register.
    packed: usize,
    bytes: usize,
    registers: Vec<Register>,
}

impl Fragment {
    fn size(&self) -> usize {
        self.rows * self.columns
    }

    fn get(&self, registers: &Registers, index: usize) -> u64 {
        let (place, lane) = (index / LANES, index % LANES);
        let Some(register) = self.registers.get(place / self.packed) else { return 0 };
        let bits = registers.lane(register.row, register.is_wide(), lane);
        if self.bytes == 8 {
            return bits;
        }
        let shift = 8 * self.bytes * (place % self.packed);
        bits >> shift & ((1 << (8 * self.bytes)) - 1)
    }

    /// Sets all registers from the elements.
    fn set(&self, registers: &mut Registers, elements: &[u64]) {
        for (index, register) in self.registers.iter().enumerate() {
            for lane in 0..LANES {
                let mut bits = 0;
                for part in 0..self.packed {
                    let place = index * self.packed + part;
                    let element = elements.get((place * LANES + lane) % self.size().max(1));
                    bits |= element.copied().unwrap_or(0) << (8 * self.bytes * part % 64);
                }
                registers.set_lane(register.row, register.is_wide(), lane, bits);
            }
        }
    }
}

fn wmma(form: &mut Form<'_, '_>) -> Compiled {
    let operation = form
        .choice(&[("load", 'l'), ("store", 's'), ("mma", 'm')])
        .ok_or_else(|| form.missing("load, store or mma"))?;
    if !form.flag("sync") || !form.flag("aligned") {
        return Err(form.missing("sync.aligned"));
    }
    if operation == 'm' {
        return multiply(form);
    }
    access(form, operation == 's')
}

/// M, N and K.
type Shape = (usize, usize, usize);

fn shape(form: &mut Form<'_, '_>) -> Result<Shape, PtxError> {
    form.choice(&[
        ("m16n16k16", (16, 16, 16)),
        ("m32n8k16", (32, 8, 16)),
        ("m8n32k16", (8, 32, 16)),
        ("m16n16k8", (16, 16, 8)),
        ("m8n8k4", (8, 8, 4)),
    ])
    .ok_or_else(|| form.missing("a shape"))
}

/// A fragment of a matrix of `which` kind; each has its number of registers.
fn fragment(
    form: &mut Form<'_, '_>,
    index: usize,
    which: char,
    (m, n, k): Shape,
    ty: Type,
    written: bool,
) -> Result<Fragment, PtxError> {
    let (rows, columns) = match which {
        'a' => (m, k),
        'b' => (k, n),
        _ => (m, n),
    };
    let bytes = ty.bytes();
    let allowed = match (ty, (m, n, k)) {
        (Type::F16 | Type::S8 | Type::U8, (16, 16, 16) | (32, 8, 16) | (8, 32, 16)) => true,
        (Type::Bf16, (16, 16, 16) | (32, 8, 16) | (8, 32, 16)) => matches!(which, 'a' | 'b'),
        (Type::Tf32, (16, 16, 8)) => matches!(which, 'a' | 'b'),
        (Type::F64, (8, 8, 4)) => true,
        (Type::F32, shape) => shape != (8, 8, 4) && !matches!(which, 'a' | 'b'),
        (Type::S32, (16, 16, 16) | (32, 8, 16) | (8, 32, 16)) => !matches!(which, 'a' | 'b'),
        _ => false,
    };
    if !allowed || bytes == 1 && !matches!(which, 'a' | 'b') {
        return Err(form.bad_type(ty));
    }
    let packed = (4 / bytes).max(1);
    let places = match (ty, which) {
        // Halves are held twice, or more often.
        (Type::F16, 'a' | 'b') => 16,
        _ => (rows * columns).div_ceil(LANES),
    };
    let count = places.div_ceil(packed);
    let elements = form.vector(index)?;
    if elements.len() != count {
        let reason = format!("{} registers instead of {count}", elements.len());
        return Err(form.operand_error(index, reason));
    }
    let mut registers = Vec::new();
    for element in elements {
        let register = if written {
            form.target(index, element)?
        } else {
            form.source_of(index, element, bytes.max(4))?
        };
        if register.is_wide() != (bytes == 8) {
            return Err(form.operand_error(index, "a register of another width"));
        }
        registers.push(register);
    }
    Ok(Fragment { rows, columns, packed, bytes, registers })
}

fn access(form: &mut Form<'_, '_>, store: bool) -> Compiled {
    let which = form
        .choice(&[("a", 'a'), ("b", 'b'), ("c", 'c'), ("d", 'd')])
        .filter(|which| (*which == 'd') == store)
        .ok_or_else(|| form.missing("a, b or c to load, d to store"))?;
    let by_rows =
        form.choice(&[("row", true), ("col", false)]).ok_or_else(|| form.missing("row or col"))?;
    let shape = shape(form)?;
    let space = form.space();
    let ty = form.ty()?;
    let (at, list) = if store { (0, 1) } else { (1, 0) };
    let fragment = fragment(form, list, which, shape, ty, !store)?;
    let (address, space) = form.address(at, space)?;
    let stride: Option<Slot<u32>> = if form.count() == 3 { Some(form.src(2)?) } else { None };
    if stride.is_none() {
        form.expect(2)?;
    }
    let access = if store { Access::Write } else { Access::Read };
    Ok(Action::warp(move |context, mask| {
        context.require_lanes(FULL, mask)?;
        let registers = &context.core.registers;
        let base = address.lanes(registers)[0];
        let default = if by_rows { fragment.columns } else { fragment.rows } as u64;
        let stride = stride.map_or(default, |stride| u64::from(registers.get(stride)[0]));
        let bytes = fragment.bytes as u64;
        let mut elements = vec![0; fragment.size()];
        for (first, part) in elements.chunks_mut(LANES).enumerate() {
            let place_of = |lane: usize| {
                let index = first * LANES + lane;
                let (row, column) = (index / fragment.columns, index % fragment.columns);
                let (major, minor) = if by_rows { (row, column) } else { (column, row) };
                base.wrapping_add((major as u64 * stride + minor as u64).wrapping_mul(bytes))
            };
            let addresses: [u64; LANES] = std::array::from_fn(place_of);
            let mut tracker = Tracker::new(context, space, FULL, &addresses, bytes, store);
            for (lane, element) in part.iter_mut().enumerate() {
                let place = context.place(space, lane, addresses[lane], bytes, access)?;
                tracker.add(space, addresses[lane], bytes);
                if store {
                    let value = fragment.get(&context.core.registers, first * LANES + lane);
                    context.store(place, 0, fragment.bytes, value);
                } else {
                    *element = context.load(place, 0, fragment.bytes);
                }
            }
            tracker.finish(context, &addresses, FULL);
        }
        if !store {
            fragment.set(&mut context.core.registers, &elements);
        }
        Ok(())
    }))
}

/// What sums are made of.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sums {
    Half,
    Single,
    Double,
    Whole { saturates: bool },
}

fn multiply(form: &mut Form<'_, '_>) -> Compiled {
    form.class = Class::Tensor;
    for _ in 0..2 {
        // How the matrices lay in memory is of no interest any more.
        if form.choice(&[("row", ()), ("col", ())]).is_none() {
            return Err(form.missing("row or col of both matrices"));
        }
    }
    let shape = shape(form)?;
    let saturates = form.flag("satfinite");
    form.flag("rn");
    let first = form.ty()?;
    let second = form.ty()?;
    // Halves are not named: only D and C are.
    let (a, b, c) = match form.ty() {
        Ok(third) => (second, third, form.ty()?),
        Err(_) => (Type::F16, Type::F16, second),
    };
    let sums = match (first, c, a) {
        (Type::F16, Type::F16, Type::F16) => Sums::Half,
        (Type::F32, Type::F32, Type::F16 | Type::Bf16 | Type::Tf32) => Sums::Single,
        (Type::F64, Type::F64, Type::F64) => Sums::Double,
        (Type::S32, Type::S32, Type::S8 | Type::U8) => Sums::Whole { saturates },
        _ => return Err(form.bad_type(first)),
    };
    if a != b {
        return Err(form.bad_type(b));
    }
    form.expect(4)?;
    let d = fragment(form, 0, 'd', shape, first, true)?;
    let left = fragment(form, 1, 'a', shape, a, false)?;
    let right = fragment(form, 2, 'b', shape, b, false)?;
    let added = fragment(form, 3, 'c', shape, c, false)?;
    let element = Element::from_type(a);
    let (m, n, k) = shape;
    Ok(Action::warp(move |context, mask| {
        context.require_lanes(FULL, mask)?;
        context.tally.counts.add_tensor((2 * m * n * k) as u64, a.bytes() as u64);
        let registers = &mut context.core.registers;
        let all = |fragment: &Fragment| -> Vec<u64> {
            (0..fragment.size()).map(|index| fragment.get(registers, index)).collect()
        };
        let (left, right, added) = (all(&left), all(&right), all(&added));
        let pairs = |row: usize, column: usize| {
            let (left, right) = (&left, &right);
            (0..k).map(move |i| (left[row * k + i], right[i * n + column]))
        };
        let real = |bits: u64| element.map_or(0.0, |element| element.real(bits as u32, 0));
        let whole = |bits: u64| element.map_or(0, |element| element.whole(bits as u32, 0));
        let out: Vec<u64> = added
            .iter()
            .enumerate()
            .map(|(index, start)| {
                let products = pairs(index / n, index % n);
                let single = |start: f32| {
                    products.clone().fold(start, |sum, (a, b)| real(a).mul_add(real(b), sum))
                };
                match sums {
                    Sums::Half => u64::from(F16::narrow(single(F16::widen(*start as u16)))),
                    Sums::Single => {
                        let sum = single(f32::from_bits(*start as u32));
                        u64::from(canonical(sum).to_bits())
                    }
                    Sums::Double => {
                        let product = |sum: f64, (a, b): (u64, u64)| {
                            f64::from_bits(a).mul_add(f64::from_bits(b), sum)
                        };
                        products.fold(f64::from_bits(*start), product).to_bits()
                    }
                    Sums::Whole { saturates } => {
                        let sum: i32 = products.map(|(a, b)| whole(a) * whole(b)).sum();
                        let start = *start as i32;
                        let sum = if saturates {
                            start.saturating_add(sum)
                        } else {
                            start.wrapping_add(sum)
                        };
                        u64::from(sum as u32)
                    }
                }
            })
            .collect();
        d.set(registers, &out);
        Ok::<(), Trap>(())
    }))
}
