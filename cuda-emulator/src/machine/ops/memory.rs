//! Moves, loads and stores.

use crate::check::Access;
use crate::count::{Class, Sectors};
use crate::machine::action::Action;
use crate::machine::context::{Context, lanes};
use crate::machine::form::Form;
use crate::machine::names::{LOCAL_WINDOW, PARAM_WINDOW, Register, SHARED_WINDOW, WINDOW, Width};
use crate::machine::registers::{LANES, Slot};
use crate::ptx::{Operand, PtxError, Space, Type};

use super::{Op, predicate};

type Compiled = Result<Action, PtxError>;

pub(super) const TABLE: &[Op] = &[
    Op {
        name: "mov",
        class: Class::Move,
        forms: &[
            "mov.(b16|u16|s16|f16|bf16) h0, h1",
            "mov.(b32|u32|s32|f32|f16x2|bf16x2) r0, r1",
            "mov.(b64|u64|s64|f64) d0, d1",
            "mov.pred p0, p1",
            "mov.b32 r0, {h0, h1}",
            "mov.b32 {h0, h1}, r0",
            "mov.b64 d0, {r0, r1}",
            "mov.b64 {r0, r1}, d0",
            "mov.b64 d0, {h0, h1, h2, h3}",
            "mov.b64 {h0, h1, h2, h3}, d0",
            "mov.u32 r0, %tid.x",
            "mov.u32 r0, %clock",
            "mov.u64 d0, %clock64",
            "mov.u64 d0, %globaltimer",
        ],
        compile: mov,
    },
    Op {
        name: "ld",
        class: Class::Global,
        forms: &[
            "ld(|.weak|.relaxed.gpu|.relaxed.sys|.acquire.gpu|.volatile)(|.global|.shared).(b8|u8|s8|b16|u16|s16) h0, [d0]",
            "ld(|.global|.shared|.shared::cta|.local|.const).(b8|u8|s8|b16|u16|s16|b32|u32|s32|f32) r0, [d0+4]",
            "ld(|.global|.shared|.local|.const).(b64|u64|s64|f64) d0, [d1+-8]",
            "ld.global(|.nc)(|.ca|.cg|.cs|.lu|.cv).v2.(b32|u32|f32) {r0, r1}, [d0]",
            "ld.global(|.nc)(|.L1::no_allocate)(|.L2::128B).v4.(b32|u32|f32) {r0, r1, r2, r3}, [d0]",
            "ld.global.v2.(b64|u64|f64) {d0, d1}, [d2]",
            "ld.global.v4.(b16|u16) {h0, h1, h2, h3}, [d2]",
            "ld.global.v4.u8 {h0, h1, h2, h3}, [d2]",
            "ld.shared.v4.f32 {r0, r1, r2, r3}, [r4]",
            "ld.shared::cluster.(b32|u32|f32) r0, [r4]",
            "ld.shared::cluster.v4.f32 {r0, r1, r2, r3}, [r4]",
            "ld.param.(u32|f32|b32) r0, [parameter]",
            "ld.param.(u64|b64) d0, [parameter]",
        ],
        compile: ld,
    },
    Op {
        name: "ldu",
        class: Class::Global,
        forms: &["ldu.global.(u32|f32) r0, [d0]"],
        compile: ld,
    },
    Op {
        name: "st",
        class: Class::Global,
        forms: &[
            "st(|.weak|.relaxed.gpu|.release.gpu|.volatile)(|.global|.shared).(b8|u8|b16|u16) [d0], h0",
            "st(|.global|.shared|.shared::cta|.local).(b8|u8|b32|u32|s32|f32) [d0+4], r0",
            "st(|.global|.shared|.local).(b64|u64|s64|f64) [d1], d0",
            "st.global(|.wb|.cg|.cs|.wt).v2.(b32|u32|f32) [d0], {r0, r1}",
            "st.global.v4.(b32|u32|f32) [d0], {r0, r1, r2, r3}",
            "st.global.v2.(b64|u64|f64) [d2], {d0, d1}",
            "st.shared.v4.(b32|f32) [r4], {r0, r1, r2, r3}",
            "st.shared::cluster.(b32|u32|f32) [r4], r0",
            "st.async(|.weak).shared::cluster.mbarrier::complete_tx::bytes.(b32|u32|s32|f32) [r0], r1, [r2]",
            "st.async.shared::cluster.mbarrier::complete_tx::bytes.(b64|u64) [r0], d1, [r2]",
            "st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.(b32|f32) [r0], {r1, r2, r3, r4}, [r5]",
        ],
        compile: st,
    },
    Op {
        name: "cvta",
        class: Class::Move,
        forms: &["cvta(|.to).(global|shared|shared::cluster|local|const|param).u64 d0, d1"],
        compile: cvta,
    },
    Op {
        name: "isspacep",
        class: Class::Predicate,
        forms: &["isspacep.(global|shared|local|const|param) p0, d1"],
        compile: isspacep,
    },
    Op {
        name: "prefetch",
        class: Class::Global,
        forms: &["prefetch.global.(L1|L2) [d0]"],
        compile: |form| hint(form, &["global", "L1", "L2", "evict_last", "evict_normal"]),
    },
    Op {
        name: "applypriority",
        class: Class::Global,
        forms: &["applypriority.global.L2::evict_normal [d0], 128"],
        compile: |form| hint(form, &["global"]),
    },
    Op {
        name: "createpolicy",
        class: Class::Move,
        forms: &["createpolicy.fractional.L2::evict_last.b64 d0, 0f3F800000"],
        compile: |form| {
            form.ignore(&["fractional", "range", "global", "b64"]);
            let target = form.dst::<u64>(0)?;
            Ok(Action::lanes(move |registers, mask| registers.set(target, [0; LANES], mask)))
        },
    },
];

/// An instruction that changes nothing that can be seen.
fn hint(form: &mut Form<'_, '_>, modifiers: &[&str]) -> Compiled {
    form.ignore(modifiers);
    form.address(0, Space::Global)?;
    Ok(Action::nothing())
}

fn mov(form: &mut Form<'_, '_>) -> Compiled {
    let ty = form.ty()?;
    if ty == Type::Pred {
        form.class = Class::Predicate;
        return predicate::copy(form);
    }
    form.expect(2)?;
    if let Operand::Vector(_) = form.operand(0)? {
        return unpack(form, ty);
    }
    match form.operand(1)? {
        Operand::Vector(_) => return pack(form, ty),
        Operand::Name(name) if matches!(name.as_str(), "%clock" | "%clock_hi") => {
            let target = form.dst::<u32>(0)?;
            let shift = if name == "%clock" { 0 } else { 32 };
            return Ok(clock(target.row, false, shift));
        }
        Operand::Name(name) if matches!(name.as_str(), "%clock64" | "%globaltimer") => {
            let target = form.dst::<u64>(0)?;
            return Ok(clock(target.row, true, 0));
        }
        _ => {}
    }
    match ty.bytes() {
        // A special register may be read as one of 16 bits.
        2 => {
            let source = form.operand(1)?;
            let source = form.source_of(1, source, 2)?;
            let target = form.dst::<u16>(0)?;
            let slots = (target, Slot::<u16>::new(source.row));
            Ok(Action::lanes(move |registers, mask| registers.map1(mask, slots, |a: u16| a)))
        }
        4 => form.unary(|a: u32| a),
        8 => form.unary(|a: u64| a),
        _ => Err(form.bad_type(ty)),
    }
}

/// Time is the number of instructions that the warp has executed.
fn clock(row: u32, wide: bool, shift: u32) -> Action {
    Action::warp(move |context, mask| {
        let now = context.core.executed >> shift;
        for lane in lanes(mask) {
            context.core.registers.set_lane(row, wide, lane, now);
        }
        Ok(())
    })
}

fn unpack(form: &mut Form<'_, '_>, ty: Type) -> Compiled {
    let elements = form.vector(0)?;
    let source = form.operand(1)?;
    let source = form.source_of(1, source, ty.bytes())?;
    let bytes = part_bytes(form, ty, elements.len())?;
    let mut targets: Vec<Option<Register>> = Vec::new();
    for element in elements {
        targets.push(if *element == Operand::Name("_".to_owned()) {
            None
        } else {
            Some(form.target(0, element)?)
        });
    }
    let mask_of_part = part_mask(bytes);
    Ok(Action::lanes(move |registers, mask| {
        for lane in lanes(mask) {
            let value = registers.lane(source.row, source.is_wide(), lane);
            for (index, target) in targets.iter().enumerate() {
                if let Some(target) = target {
                    let part = value >> (8 * bytes * index) & mask_of_part;
                    registers.set_lane(target.row, target.is_wide(), lane, part);
                }
            }
        }
    }))
}

fn pack(form: &mut Form<'_, '_>, ty: Type) -> Compiled {
    let elements = form.vector(1)?;
    let target = form.operand(0)?;
    let target = form.target(0, target)?;
    let bytes = part_bytes(form, ty, elements.len())?;
    if target.is_wide() != (ty.bytes() == 8) {
        return Err(form.operand_error(0, "a register of another width"));
    }
    let mut sources = Vec::new();
    for element in elements {
        sources.push(form.source_of(1, element, bytes)?);
    }
    let mask_of_part = part_mask(bytes);
    Ok(Action::lanes(move |registers, mask| {
        for lane in lanes(mask) {
            let value = sources.iter().enumerate().fold(0, |all, (index, source)| {
                let part = registers.lane(source.row, source.is_wide(), lane) & mask_of_part;
                all | part << (8 * bytes * index)
            });
            registers.set_lane(target.row, target.is_wide(), lane, value);
        }
    }))
}

fn part_mask(bytes: usize) -> u64 {
    if bytes >= 8 { u64::MAX } else { (1 << (8 * bytes)) - 1 }
}

fn part_bytes(form: &Form<'_, '_>, ty: Type, count: usize) -> Result<usize, PtxError> {
    match (ty.bytes(), count) {
        (4 | 8, 2) | (8 | 4, 4) => Ok(ty.bytes() / count),
        _ => Err(form.bad_type(ty)),
    }
}

const CACHING: &[&str] = &[
    "weak",
    "relaxed",
    "volatile",
    "mmio",
    "cta",
    "cluster",
    "gpu",
    "sys",
    "nc",
    "ca",
    "cg",
    "cs",
    "lu",
    "cv",
    "wb",
    "wt",
    "unified",
    "level::eviction_priority",
];

/// How many elements, each of which type, in which space.
struct Shape {
    count: usize,
    ty: Type,
    space: Space,
    /// Whether the access may meet those of other threads, and orders what they published:
    /// volatile, relaxed, acquiring or releasing.
    orders: bool,
    /// Whether a store publishes what came before without a fence.
    releases: bool,
}

fn shape(form: &mut Form<'_, '_>, order: &str) -> Result<Shape, PtxError> {
    let releases = form.flag(order);
    let orders = releases || form.flag("volatile") || form.flag("mmio");
    let orders = form.flag("relaxed") || orders;
    form.ignore(CACHING);
    let count = form.choice(&[("v2", 2), ("v4", 4), ("v8", 8)]).unwrap_or(1);
    let space = form.space();
    let ty = form.ty()?;
    if ty.bytes() > 8 || ty == Type::Pred || ty.bytes() * count > 32 {
        return Err(form.bad_type(ty));
    }
    Ok(Shape { count, ty, space, orders, releases })
}

fn class_of(space: Space) -> Class {
    match space {
        Space::Shared => Class::Shared,
        Space::Local | Space::Param | Space::Const => Class::Local,
        Space::Global | Space::Generic => Class::Global,
    }
}

fn ld(form: &mut Form<'_, '_>) -> Compiled {
    let Shape { count, ty, space, orders, .. } = shape(form, "acquire")?;
    form.class = class_of(space);
    let elements = form.vector(0)?;
    if elements.len() != count {
        return Err(
            form.operand_error(0, format!("{} elements instead of {count}", elements.len()))
        );
    }
    let mut targets: Vec<Option<Register>> = Vec::new();
    for element in elements {
        let target = if *element == Operand::Name("_".to_owned()) {
            None
        } else {
            let register = form.target(0, element)?;
            if ty.bytes() == 8 && !register.is_wide() {
                return Err(form.operand_error(0, "the register is too narrow"));
            }
            Some(register)
        };
        targets.push(target);
    }
    let (address, space) = form.address(1, space)?;
    // Operands after the address are cache policies.
    let size = ty.bytes();
    let bytes = (size * count) as u64;
    let signed = ty.is_signed();
    let access = if orders { Access::Observe } else { Access::Read };
    Ok(Action::warp(move |context, mask| {
        let addresses = address.lanes(&context.core.registers);
        let mut tracker = Tracker::new(context, space, mask, &addresses, bytes, false);
        if orders {
            context.synchronize_blocks(false);
        }
        for lane in lanes(mask) {
            let place = context.place(space, lane, addresses[lane], bytes, access)?;
            tracker.add(space, addresses[lane], bytes);
            for (index, target) in targets.iter().enumerate() {
                let Some(target) = target else { continue };
                let value = context.load(place, index * size, size);
                let value = extend(value, size, signed, target.width);
                context.core.registers.set_lane(target.row, target.is_wide(), lane, value);
            }
        }
        tracker.finish(context, &addresses, mask);
        Ok(())
    }))
}

/// Extends a loaded value to the width of its register.
#[inline(always)]
fn extend(value: u64, size: usize, signed: bool, width: Width) -> u64 {
    let value = if signed {
        match size {
            1 => i64::from(value as i8) as u64,
            2 => i64::from(value as i16) as u64,
            4 => i64::from(value as i32) as u64,
            _ => value,
        }
    } else {
        value
    };
    if width == Width::Half { value & 0xffff } else { value }
}

fn st(form: &mut Form<'_, '_>) -> Compiled {
    if form.flag("async") {
        form.class = Class::Copy;
        return super::bulk::store_async(form);
    }
    let Shape { count, ty, space, orders, releases } = shape(form, "release")?;
    form.class = class_of(space);
    let elements = form.vector(1)?;
    if elements.len() != count {
        return Err(
            form.operand_error(1, format!("{} elements instead of {count}", elements.len()))
        );
    }
    let mut sources = Vec::new();
    for element in elements {
        sources.push(form.source_of(1, element, ty.bytes().max(2))?);
    }
    if ty.bytes() == 8 && sources.iter().any(|source| !source.is_wide()) {
        return Err(form.operand_error(1, "the register is too narrow"));
    }
    let (address, space) = form.address(0, space)?;
    if space == Space::Param {
        return Err(form.operand_error(0, "parameters of kernels can't be written"));
    }
    let size = ty.bytes();
    let bytes = (size * count) as u64;
    // A store that publishes is no race with the load that looks for it.
    let access = if orders { Access::Atomic } else { Access::Write };
    Ok(Action::warp(move |context, mask| {
        let addresses = address.lanes(&context.core.registers);
        let mut tracker = Tracker::new(context, space, mask, &addresses, bytes, true);
        if orders {
            context.synchronize_blocks(releases);
        } else if context.env.checks.redundant_stores {
            context.watch_stores(space, &addresses, mask, |registers, lane| {
                let of = |source: &Register| {
                    registers.lane(source.row, source.is_wide(), lane) & part_mask(size)
                };
                sources.iter().map(of).collect::<Vec<_>>()
            });
        }
        for lane in lanes(mask) {
            let place = context.place(space, lane, addresses[lane], bytes, access)?;
            tracker.add(space, addresses[lane], bytes);
            for (index, source) in sources.iter().enumerate() {
                let value = context.core.registers.lane(source.row, source.is_wide(), lane);
                context.store(place, index * size, size, value);
            }
        }
        tracker.finish(context, &addresses, mask);
        Ok(())
    }))
}

/// Counts what an access of a warp touches.
pub(super) struct Tracker {
    on: bool,
    write: bool,
    sectors: Sectors,
    global_bytes: u64,
    /// Where the lanes' accesses of shared memory begin, if the space is known.
    shared: bool,
    bytes: u64,
}

impl Tracker {
    #[inline(always)]
    pub(super) fn new(
        context: &Context<'_, '_>,
        space: Space,
        mask: u32,
        addresses: &[u64; LANES],
        bytes: u64,
        write: bool,
    ) -> Self {
        let first = addresses[mask.trailing_zeros() as usize % LANES];
        let in_shared = (SHARED_WINDOW..LOCAL_WINDOW).contains(&first);
        let shared = space == Space::Shared || space == Space::Generic && in_shared;
        let on = context.env.count_memory
            && !matches!(space, Space::Local | Space::Param | Space::Const);
        Self { on, write, sectors: Sectors::default(), global_bytes: 0, shared, bytes }
    }

    #[inline(always)]
    pub(super) fn add(&mut self, space: Space, address: u64, bytes: u64) {
        let window = SHARED_WINDOW..PARAM_WINDOW + WINDOW;
        if self.on && !self.shared && (space == Space::Global || !window.contains(&address)) {
            self.sectors.add(address, bytes);
            self.global_bytes += bytes;
        }
    }

    #[inline(always)]
    pub(super) fn finish(
        &self,
        context: &mut Context<'_, '_>,
        addresses: &[u64; LANES],
        mask: u32,
    ) {
        if !self.on {
            return;
        }
        if self.shared {
            context.count_shared(addresses, mask, self.bytes);
        } else if self.global_bytes > 0 {
            context.count_global(&self.sectors, self.global_bytes, self.write);
        }
    }
}

/// Where a space begins among generic addresses.
fn window(space: Space) -> u64 {
    match space {
        Space::Shared => SHARED_WINDOW,
        Space::Local => LOCAL_WINDOW,
        Space::Param => PARAM_WINDOW,
        Space::Global | Space::Const | Space::Generic => 0,
    }
}

fn cvta(form: &mut Form<'_, '_>) -> Compiled {
    let to = form.flag("to");
    let space = form.space();
    form.ty()?;
    let space = if space == Space::Param && !form.names.in_kernel { Space::Local } else { space };
    let base = window(space);
    if to {
        form.unary(move |a: u64| a.wrapping_sub(base))
    } else {
        form.unary(move |a: u64| a.wrapping_add(base))
    }
}

fn isspacep(form: &mut Form<'_, '_>) -> Compiled {
    let space = form.space();
    form.expect(2)?;
    let operand = form.operand(0)?;
    let target = form.predicate_target(0, operand)?.unwrap_or_default() as usize;
    let address = form.src::<u64>(1)?;
    Ok(Action::lanes(move |registers, mask| {
        let inside = |address: u64| match space {
            Space::Global => !(SHARED_WINDOW..PARAM_WINDOW + WINDOW).contains(&address),
            Space::Const | Space::Generic => false,
            other => (window(other)..window(other) + WINDOW).contains(&address),
        };
        let bits = registers.test2((address, address), |address, _| inside(address));
        registers.set_predicate(target, bits, mask);
    }))
}
