//! `wgmma`: products of four warps, with matrices in shared memory, that are waited for.
//!
//! Warp `w` of a warpgroup has rows `16w` to `16w + 15` of A and D, in the fragments of
//! `mma.sync`: with `g = lane / 4` and `t = lane % 4`, registers `4j` to `4j + 3` of D hold columns
//! `8j + 2t` and `8j + 2t + 1` of row `g`, and of row `g + 8`.
//!
//! A matrix in shared memory is made of pieces of 16 bytes. A descriptor holds its start in bits 0
//! to 13, the leading and the stride offset in bits 16 to 29 and 32 to 45, all divided by 16, a
//! base offset in bits 49 to 51 (which must be 0 here), and the swizzle in bits 62 and 63: none,
//! 128, 64 or 32 bytes. The places of the pieces are those of CUTLASS' canonical layouts.
//!
//! The product is made when the instruction is executed. Registers and shared memory are marked
//! until the wait, so that whatever comes too early is reported.

use std::collections::VecDeque;

use crate::check::Problem;
use crate::count::Class;
use crate::machine::action::Action;
use crate::machine::context::{BlockState, Context, Trap};
use crate::machine::float::{F16, Half, NAN32};
use crate::machine::form::{Form, Uses};
use crate::machine::registers::{FULL, LANES, Registers, Slot, wide};
use crate::ptx::{Operand, PtxError, Type};

use super::Op;
use super::bulk::Switch;
use super::descriptor::{WORDS, gather, matrix};
use super::mma::Element;

type Compiled = Result<Action, PtxError>;

pub(super) const TABLE: &[Op] = &[
    Op {
        name: "wgmma",
        class: Class::Tensor,
        forms: &[
            "wgmma.fence.sync.aligned",
            "wgmma.commit_group.sync.aligned",
            "wgmma.wait_group.sync.aligned 1",
            "wgmma.mma_async.sync.aligned.m64n8k16.f32.(f16.f16|bf16.bf16) {r0, r1, r2, r3}, d0, d1, p0, 1, -1, 0, 1",
            "wgmma.mma_async.sync.aligned.m64n8k16.f32.(f16.f16|bf16.bf16) {r0, r1, r2, r3}, {r4, r5, r6, r7}, d1, p0, -1, 1, 1",
            "wgmma.mma_async.sync.aligned.m64n16k16.f16.f16.f16 {r0, r1, r2, r3}, d0, d1, 1, 1, 1, 0, 0",
            "wgmma.mma_async.sync.aligned.m64n8k8.f32.tf32.tf32 {r0, r1, r2, r3}, d0, d1, p0, 1, 1",
            "wgmma.mma_async.sync.aligned.m64n8k32.f32.(e4m3|e5m2).(e4m3|e5m2) {r0, r1, r2, r3}, d0, d1, p0, 1, 1",
            "wgmma.mma_async.sync.aligned.m64n16k32.f16.(e4m3|e5m2).(e4m3|e5m2) {r0, r1, r2, r3}, {r4, r5, r6, r7}, d1, p0, 1, 1",
            "wgmma.mma_async.sync.aligned.m64n8k32(|.satfinite).s32.(s8|u8).(s8|u8) {r0, r1, r2, r3}, d0, d1, p0",
            "wgmma.mma_async.sync.aligned.m64n8k32.s32.s8.s8 {r0, r1, r2, r3}, {r4, r5, r6, r7}, d1, p0",
        ],
        compile: wgmma,
    },
    Op {
        name: "setmaxnreg",
        class: Class::Control,
        forms: &["setmaxnreg.(inc|dec).sync.aligned.u32 40"],
        compile: |form| {
            form.ignore(&["sync", "aligned"]);
            if !(form.flag("inc") || form.flag("dec")) {
                return Err(form.missing("inc or dec"));
            }
            form.ty()?;
            form.expect(1)?;
            let count = form.number(0)?;
            if !(24..=256).contains(&count) || count % 8 != 0 {
                return Err(form.operand_error(0, "a multiple of 8 from 24 to 256"));
            }
            // Registers are there without end.
            Ok(Action::warp(|context, mask| context.require_lanes(FULL, mask)))
        },
    },
];

/// The `wgmma` of a warp that were not waited for.
#[derive(Debug, Default)]
pub(crate) struct Wgmma {
    open: Vec<Issue>,
    groups: VecDeque<Vec<Issue>>,
    /// Whether there was a fence, and since then, which registers were touched.
    fenced: bool,
    touched: Vec<bool>,
    /// How many `wgmma` it executed.
    count: usize,
}

/// A `wgmma` on its way.
#[derive(Debug)]
struct Issue {
    at: u32,
    /// Rows of D, as many as there are sums, then those of A and copies of either.
    rows: Vec<u32>,
    sums: usize,
    shape: (u32, u8),
    /// Pieces of shared memory that it reads.
    pieces: Vec<u32>,
}

impl Wgmma {
    /// Begins a warp of a kernel whose `wgmma` use the registers `watched`.
    pub(crate) fn reset(&mut self, watched: &[u32]) {
        self.open.clear();
        self.groups.clear();
        self.fenced = false;
        self.touched.clear();
        self.touched.resize(watched.last().map_or(0, |last| *last as usize + 1), false);
        self.count = 0;
    }

    /// How many are on their way.
    pub(crate) fn left(&self) -> usize {
        self.open.len() + self.groups.iter().map(Vec::len).sum::<usize>()
    }

    fn flying(&mut self) -> impl Iterator<Item = &mut Issue> {
        self.groups.iter_mut().flatten().chain(&mut self.open)
    }
}

impl BlockState {
    /// The first `wgmma` that some warps of a warpgroup executed more often than others.
    pub(crate) fn uneven_warpgroup(&self) -> Option<u32> {
        self.warpgroups.iter().find_map(|group| {
            let counts = group.get(..4)?;
            let (least, most) = (counts.iter().min()?, counts.iter().max()?);
            (least != most).then(|| group.get(4 + *least as usize).copied()).flatten()
        })
    }
}

impl Context<'_, '_> {
    /// Waits for all but the last `allowed` groups.
    pub(crate) fn finish_wgmma(&mut self, allowed: usize) {
        while self.core.wgmma.groups.len() > allowed {
            for issue in self.core.wgmma.groups.pop_front().into_iter().flatten() {
                for piece in issue.pieces {
                    self.end_reading(u64::from(piece), 16, issue.at);
                }
            }
        }
    }

    /// Notes that an instruction other than `wgmma` uses registers.
    fn touch(&mut self, mask: u32, uses: &Uses) {
        if !self.env.checks.wgmma {
            return;
        }
        let lane = mask.trailing_zeros() as usize % LANES;
        let wgmma = &mut self.core.wgmma;
        if let (true, [to, from]) = (uses.is_copy, uses.rows.as_slice()) {
            // Compilers copy registers anywhere; a copy of one on its way is on its way.
            for issue in wgmma.flying().filter(|issue| issue.rows.contains(from)) {
                issue.rows.push(*to);
            }
            return;
        }
        if uses.is_copy {
            return;
        }
        for row in &uses.rows {
            if let Some(touched) = wgmma.touched.get_mut(*row as usize) {
                *touched = true;
            }
        }
        let found =
            wgmma.flying().find(|issue| uses.rows.iter().any(|row| issue.rows.contains(row)));
        if let Some(at) = found.map(|issue| issue.at) {
            self.note(lane, Problem::WgmmaPending, Some(at));
        }
    }

    /// Notes which `wgmma` this is of its warpgroup: the four warps execute the same ones.
    fn join_warpgroup(&mut self, lane: usize) {
        let (at, index) = (self.at, self.core.index);
        let count = self.core.wgmma.count;
        self.core.wgmma.count += 1;
        if !self.env.checks.wgmma {
            return;
        }
        let groups = &mut self.block.warpgroups;
        if groups.len() <= index / 4 {
            // How many each warp executed, and then the instructions.
            groups.resize(index / 4 + 1, vec![0; 4]);
        }
        let Some(group) = groups.get_mut(index / 4) else { return };
        if let Some(executed) = group.get_mut(index % 4) {
            *executed += 1;
        }
        let first = match group.get(4 + count) {
            Some(first) => *first,
            None => {
                group.push(at);
                at
            }
        };
        if first != at {
            self.note(lane, Problem::WgmmaDivergent, Some(first));
        }
    }
}

/// An action that looks first whether its registers are those of a `wgmma` on its way.
pub(in crate::machine) fn watch_registers(action: Action, uses: Uses) -> Action {
    match action {
        Action::Lanes(effect) => Action::warp(move |context, mask| {
            context.touch(mask, &uses);
            effect(&mut context.core.registers, mask);
            Ok(())
        }),
        Action::Warp(effect) => Action::warp(move |context, mask| {
            context.touch(mask, &uses);
            effect(context, mask)
        }),
        Action::Wait(effect) => Action::wait(move |context, mask| {
            context.touch(mask, &uses);
            effect(context, mask)
        }),
        // Branches and barriers take other registers than matrices are in.
        other => other,
    }
}

fn wgmma(form: &mut Form<'_, '_>) -> Compiled {
    let operation = form
        .choice(&[("fence", 'f'), ("commit_group", 'c'), ("wait_group", 'w'), ("mma_async", 'm')])
        .ok_or_else(|| form.missing("fence, mma_async, commit_group or wait_group"))?;
    if !form.flag("sync") || !form.flag("aligned") {
        return Err(form.missing("sync.aligned"));
    }
    match operation {
        'm' => return multiply(form),
        'w' => form.expect(1)?,
        _ => form.expect(0)?,
    }
    form.class = Class::Barrier;
    let allowed = if operation == 'w' {
        let number = usize::try_from(form.number(0)?);
        number.map_err(|_| form.operand_error(0, "must not be negative"))?
    } else {
        0
    };
    Ok(Action::warp(move |context, mask| {
        context.require_lanes(FULL, mask)?;
        let wgmma = &mut context.core.wgmma;
        match operation {
            'f' => {
                wgmma.fenced = true;
                wgmma.touched.fill(false);
            }
            'c' => {
                let group = std::mem::take(&mut wgmma.open);
                wgmma.groups.push_back(group);
            }
            _ => context.finish_wgmma(allowed),
        }
        Ok(())
    }))
}

/// Rows of a warp's part of A and D.
const M: usize = 16;
/// The most columns, and the longest inner dimension.
const N: usize = 256;
const K: usize = 32;

/// Where the left matrix is.
enum Left {
    Registers(Vec<Slot<u32>>),
    Shared(Slot<u64>),
}

/// What kind of numbers the sums are.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sums {
    Single,
    Half,
    Whole { saturates: bool },
}

/// A `wgmma` as it was compiled.
struct Product {
    d: Vec<Slot<u32>>,
    a: Left,
    b: Slot<u64>,
    elements: (Element, Element),
    sums: Sums,
    n: usize,
    k: usize,
    keeps: Switch,
    scales: (f32, f32),
    transposed: (bool, bool),
    rows: Vec<u32>,
    shape: (u32, u8),
}

fn multiply(form: &mut Form<'_, '_>) -> Compiled {
    let modifiers: Vec<&str> = form.instruction.name.split('.').collect();
    let shape = modifiers.iter().find_map(|modifier| {
        let (n, k) = modifier.strip_prefix("m64n")?.split_once('k')?;
        Some((n.parse::<usize>().ok()?, k.parse::<usize>().ok()?, *modifier))
    });
    let (n, k, name) = shape.ok_or_else(|| form.missing("a shape, m64n8k16 and the like"))?;
    form.flag(name);
    let saturates = form.flag("satfinite");
    let (d_type, a_type, b_type) = (form.ty()?, form.ty()?, form.ty()?);
    let (Some(a), Some(b)) = (Element::from_type(a_type), Element::from_type(b_type)) else {
        return Err(form.bad_type(a_type));
    };
    let whole = a.is_whole();
    let sums = match d_type {
        Type::S32 if whole => Sums::Whole { saturates },
        Type::F32 if !whole => Sums::Single,
        Type::F16 if a == Element::F16 || a.packed() == 4 && !whole => Sums::Half,
        other => return Err(form.bad_type(other)),
    };
    let same = a == b || a.packed() == 4 && b.packed() == 4 && whole == b.is_whole();
    let wide_steps = whole && n > 32 && !n.is_multiple_of(16) || whole && n == 40;
    if !same || k != 8 * a.packed() || !(8..=N).contains(&n) || n % 8 != 0 || wide_steps {
        return Err(form.missing("a shape that these types have"));
    }
    if saturates && !whole {
        return Err(form.unknown("satfinite"));
    }
    let before = form.uses.rows.len();
    let count = if sums == Sums::Half { n / 4 } else { n / 2 };
    let d = registers(form, 0, count)?;
    form.uses.rows.truncate(before);
    for element in form.vector(0)? {
        form.target(0, element)?;
    }
    let in_registers = matches!(form.operand(1)?, Operand::Vector(_));
    let a_slots = if in_registers { registers(form, 1, 4)? } else { Vec::new() };
    let rows = form.uses.rows.split_off(before);
    let a_place =
        if in_registers { Left::Registers(a_slots) } else { Left::Shared(form.src::<u64>(1)?) };
    let b_place = form.src::<u64>(2)?;
    let keeps = Switch::operand(form, 3)?;
    let scale = |form: &Form<'_, '_>, index| match form.number(index)? {
        1 => Ok(1.0f32),
        -1 => Ok(-1.0),
        _ => Err(form.operand_error(index, "must be 1 or -1")),
    };
    let scales = if whole { (1.0, 1.0) } else { (scale(form, 4)?, scale(form, 5)?) };
    let turn = |form: &Form<'_, '_>, index| match form.number(index)? {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(form.operand_error(index, "must be 0 or 1")),
    };
    let (mut at, mut transposed) = (if whole { 4 } else { 6 }, (false, false));
    if a.packed() == 2 {
        if !in_registers {
            transposed.0 = turn(form, at)?;
            at += 1;
        }
        transposed.1 = turn(form, at)?;
        at += 1;
    }
    form.expect(at)?;
    form.uses = Uses { rows: rows.clone(), is_copy: false, wgmma: true };
    let product = Product {
        d,
        a: a_place,
        b: b_place,
        elements: (a, b),
        sums,
        n,
        k,
        keeps,
        scales,
        transposed,
        rows,
        shape: (n as u32, a as u8),
    };
    Ok(Action::warp(move |context, mask| product.run(context, mask)))
}

fn registers(
    form: &mut Form<'_, '_>,
    index: usize,
    count: usize,
) -> Result<Vec<Slot<u32>>, PtxError> {
    let elements = form.vector(index)?;
    if elements.len() != count {
        let reason = format!("{} registers instead of {count}", elements.len());
        return Err(form.operand_error(index, reason));
    }
    elements.iter().map(|element| form.source(index, element)).collect()
}

impl Product {
    fn run(&self, context: &mut Context<'_, '_>, mask: u32) -> Result<(), Trap> {
        context.require_lanes(FULL, mask)?;
        context.join_warpgroup(0);
        self.check_registers(context);
        let mut pieces = Vec::new();
        let mut left = [[0u32; WORDS]; M];
        let warp_rows = context.core.index % 4 * M;
        match &self.a {
            Left::Registers(slots) => fragments(&context.core.registers, slots, &mut left),
            Left::Shared(slot) => {
                let descriptor = context.core.registers.get(*slot)[0];
                let matrix = matrix(descriptor, self.transposed.0)?;
                gather(context, &matrix, descriptor, warp_rows, &mut left, &mut pieces)?;
            }
        }
        let mut right = vec![[0u32; WORDS]; self.n];
        let descriptor = context.core.registers.get(self.b)[0];
        let matrix = matrix(descriptor, self.transposed.1)?;
        gather(context, &matrix, descriptor, 0, &mut right, &mut pieces)?;
        let operations = (2 * M * self.n * self.k) as u64;
        context.tally.counts.add_tensor(operations, self.elements.0.bytes());
        let keeps = self.keeps.holds(context);
        let registers = &mut context.core.registers;
        match self.sums {
            Sums::Whole { saturates } => self.add_whole(registers, &left, &right, keeps, saturates),
            _ => wide(|| self.add(registers, &left, &right, keeps)),
        }
        for piece in &pieces {
            context.begin_reading(0, u64::from(*piece), 16)?;
        }
        let rows = self.rows.clone();
        let sums = self.d.len();
        let issue = Issue { at: context.at, rows, sums, shape: self.shape, pieces };
        context.core.wgmma.open.push(issue);
        Ok(())
    }

    fn check_registers(&self, context: &mut Context<'_, '_>) {
        if !context.env.checks.wgmma {
            return;
        }
        let wgmma = &mut context.core.wgmma;
        let touched = |row: &u32| wgmma.touched.get(*row as usize).copied().unwrap_or(false);
        let unfenced = !wgmma.fenced || self.rows.iter().any(touched);
        // Sums may go on without a wait if the shape is the same; fragments may not.
        let sums = self.d.len();
        let (mine, fragments) = self.rows.split_at_checked(sums).unwrap_or((&[], &[]));
        let (mut other_shape, mut pending) = (None, None);
        for issue in context.core.wgmma.flying() {
            if issue.shape != self.shape && mine.iter().any(|row| issue.rows.contains(row)) {
                other_shape = Some(issue.at);
            }
            let written = issue.rows.get(..issue.sums).unwrap_or(&[]);
            if fragments.iter().any(|row| written.contains(row)) {
                pending = Some(issue.at);
            }
        }
        if unfenced || other_shape.is_some() {
            context.note(0, Problem::WgmmaFence, other_shape);
        }
        if pending.is_some() {
            context.note(0, Problem::WgmmaPending, pending);
        }
    }

    fn values(element: Element, words: &[u32; WORDS], out: &mut [f32; K], scale: f32) {
        let packed = element.packed();
        for (index, value) in out.iter_mut().enumerate().take(8 * packed) {
            *value = scale * element.real(words[index / packed], index % packed);
        }
    }

    /// Adds the product in single precision, in the order of the inner dimension.
    #[inline(always)]
    fn add(
        &self,
        registers: &mut Registers,
        left: &[[u32; WORDS]; M],
        right: &[[u32; WORDS]],
        keeps: bool,
    ) {
        let mut sums = vec![[0f32; M]; self.n];
        if keeps {
            self.each_sum(|register, half, row, column| {
                let bits = registers.get(register)[row % 8 * 4 + column % 8 / 2];
                sums[column][row] = match self.sums {
                    Sums::Half => F16::widen((bits >> (16 * half)) as u16),
                    _ => f32::from_bits(bits),
                };
            });
        }
        let mut a = [[0f32; M]; K];
        for (row, words) in left.iter().enumerate() {
            let mut values = [0f32; K];
            Self::values(self.elements.0, words, &mut values, self.scales.0);
            for (k, value) in values.into_iter().enumerate() {
                a[k][row] = value;
            }
        }
        for (words, sums) in right.iter().zip(&mut sums) {
            let mut b = [0f32; K];
            Self::values(self.elements.1, words, &mut b, self.scales.1);
            for (a, b) in a.iter().zip(b).take(self.k) {
                for row in 0..M {
                    sums[row] = a[row].mul_add(b, sums[row]);
                }
            }
        }
        let mut out = vec![[0u32; LANES]; self.d.len()];
        self.each_place(|register, half, lane, row, column| {
            let sum = sums[column][row];
            let word = &mut out[register][lane];
            match self.sums {
                Sums::Half => *word |= u32::from(F16::narrow(sum)) << (16 * half),
                _ => *word = if sum.is_nan() { NAN32.to_bits() } else { sum.to_bits() },
            }
        });
        for (slot, values) in self.d.iter().zip(out) {
            registers.set(*slot, values, FULL);
        }
    }

    fn add_whole(
        &self,
        registers: &mut Registers,
        left: &[[u32; WORDS]; M],
        right: &[[u32; WORDS]],
        keeps: bool,
        saturates: bool,
    ) {
        let (a, b) = self.elements;
        let mut out: Vec<[u32; LANES]> = self
            .d
            .iter()
            .map(|slot| if keeps { registers.get(*slot) } else { [0; LANES] })
            .collect();
        self.each_place(|register, _, lane, row, column| {
            let sum: i32 = (0..self.k)
                .map(|k| a.whole(left[row][k / 4], k % 4) * b.whole(right[column][k / 4], k % 4))
                .sum();
            let word = &mut out[register][lane];
            let old = *word as i32;
            let new = if saturates { old.saturating_add(sum) } else { old.wrapping_add(sum) };
            *word = new as u32;
        });
        for (slot, values) in self.d.iter().zip(out) {
            registers.set(*slot, values, FULL);
        }
    }

    /// Calls `f` with the register, its half, the lane, the row and the column of every sum.
    #[inline(always)]
    fn each_place(&self, mut f: impl FnMut(usize, usize, usize, usize, usize)) {
        for column in 0..self.n {
            for row in 0..M {
                let (block, lane) = (column / 8, row % 8 * 4 + column % 8 / 2);
                let (register, half) = match self.sums {
                    Sums::Half => (2 * block + row / 8, column % 2),
                    _ => (4 * block + 2 * (row / 8) + column % 2, 0),
                };
                f(register, half, lane, row, column);
            }
        }
    }

    #[inline(always)]
    fn each_sum(&self, mut f: impl FnMut(Slot<u32>, usize, usize, usize)) {
        self.each_place(|register, half, _, row, column| {
            if let Some(slot) = self.d.get(register) {
                f(*slot, half, row, column);
            }
        });
    }
}

/// A's fragments as rows of words.
fn fragments(registers: &Registers, slots: &[Slot<u32>], left: &mut [[u32; WORDS]; M]) {
    for (index, slot) in slots.iter().enumerate() {
        for (lane, bits) in registers.get(*slot).into_iter().enumerate() {
            left[lane / 4 + 8 * (index % 2)][lane % 4 + 4 * (index / 2)] = bits;
        }
    }
}
