//! Atomic operations.

use crate::check::Access;
use crate::count::{Class, Sectors};
use crate::machine::action::Action;
use crate::machine::bulk::Update;
use crate::machine::context::{Context, Place, lanes};
use crate::machine::float::{Bf16, F16, Half, canonical};
use crate::machine::form::Form;
use crate::machine::names::{Register, Width};
use crate::ptx::{Operand, PtxError, Type};

use super::Op;
use super::arithmetic::pairs;

type Compiled = Result<Action, PtxError>;

pub(super) const TABLE: &[Op] = &[
    Op {
        name: "atom",
        class: Class::Atomic,
        forms: &[
            "atom(|.relaxed|.acquire|.release|.acq_rel)(|.cta|.gpu|.sys)(|.global|.shared).add.(u32|s32|f32) r0, [d0], r1",
            "atom(|.global|.shared).add.(u64|f64) d0, [d1], d2",
            "atom(|.global|.shared).(and|or|xor).b32 r0, [d0], r1",
            "atom(|.global|.shared).(and|or|xor).b64 d0, [d1], d2",
            "atom(|.global|.shared).(min|max).(u32|s32) r0, [d0], r1",
            "atom(|.global|.shared).(min|max).(u64|s64) d0, [d1], d2",
            "atom(|.global|.shared).(inc|dec).u32 r0, [d0], r1",
            "atom(|.global|.shared).exch.b32 r0, [d0], r1",
            "atom(|.global|.shared).exch.b64 d0, [d1], d2",
            "atom(|.global|.shared).cas.b16 h0, [d0], h1, h2",
            "atom(|.global|.shared).cas.b32 r0, [d0], r1, r2",
            "atom(|.global|.shared).cas.b64 d0, [d1], d2, d3",
            "atom(|.global|.shared).add.noftz.(f16|bf16) h0, [d0], h1",
            "atom(|.global|.shared).add.noftz.(f16x2|bf16x2) r0, [d0], r1",
        ],
        compile: |form| atomic(form, true),
    },
    Op {
        name: "red",
        class: Class::Atomic,
        forms: &[
            "red(|.relaxed|.release)(|.cta|.gpu|.sys)(|.global|.shared).add.(u32|s32|f32) [d0], r1",
            "red(|.global|.shared).add.(u64|f64) [d1], d2",
            "red(|.global|.shared).(and|or|xor).b32 [d0], r1",
            "red(|.global|.shared).(min|max).(u32|s32) [d0], r1",
            "red(|.global|.shared).(min|max).(u64|s64) [d1], d2",
            "red(|.global|.shared).(inc|dec).u32 [d0], r1",
            "red(|.global|.shared).add.noftz.(f16|bf16) [d0], h1",
            "red(|.global|.shared).add.noftz.(f16x2|bf16x2) [d0], r1",
            "red.async.relaxed.cluster.shared::cluster.mbarrier::complete_tx::bytes.(add|min|max|inc|dec).u32 [r0], r1, [r2]",
            "red.async.relaxed.cluster.shared::cluster.mbarrier::complete_tx::bytes.(and|or|xor).b32 [r0], r1, [r2]",
            "red.async.relaxed.cluster.shared::cluster.mbarrier::complete_tx::bytes.add.u64 [r0], d1, [r2]",
        ],
        compile: |form| atomic(form, false),
    },
];

fn atomic(form: &mut Form<'_, '_>, returns: bool) -> Compiled {
    if form.flag("async") {
        form.class = Class::Copy;
        return super::bulk::reduce_async(form);
    }
    let acquires = form.flag("acquire") || form.flag("acq_rel");
    let releases = form.flag("release") || acquires;
    form.ignore(&["relaxed", "cta", "cluster", "gpu", "sys", "noftz"]);
    let space = form.space();
    let Some(name) = form.choice(&[
        ("add", "add"),
        ("and", "and"),
        ("or", "or"),
        ("xor", "xor"),
        ("min", "min"),
        ("max", "max"),
        ("inc", "inc"),
        ("dec", "dec"),
        ("exch", "exch"),
        ("cas", "cas"),
    ]) else {
        return Err(form.missing("an operation"));
    };
    let ty = form.ty()?;
    let update = update(name, ty).ok_or_else(|| form.bad_type(ty))?;
    let first = usize::from(returns);
    let operands = if name == "cas" { 2 } else { 1 };
    form.expect(first + 1 + operands)?;
    let size = ty.bytes();
    let target = match returns {
        true => match form.operand(0)? {
            Operand::Name(name) if name == "_" => None,
            operand => Some(fitting(form, size, |form| form.target(0, operand))?),
        },
        false => None,
    };
    let (address, space) = form.address(first, space)?;
    let mut sources = [Register { row: 0, width: Width::Word }; 2];
    for (index, source) in sources.iter_mut().enumerate().take(operands) {
        let operand = form.operand(first + 1 + index)?;
        *source =
            fitting(form, size, |form| form.source_of(first + 1 + index, operand, size.max(2)))?;
    }
    Ok(Action::warp(move |context, mask| {
        let addresses = address.lanes(&context.core.registers);
        let mut sectors = Sectors::default();
        let mut bytes = 0;
        for lane in lanes(mask) {
            let place = context.place(space, lane, addresses[lane], size as u64, Access::Atomic)?;
            let operands = sources
                .map(|source| context.core.registers.lane(source.row, source.is_wide(), lane));
            let old = apply(context, place, size, |old| update(old, operands[0], operands[1]));
            if matches!(place, Place::Global(..)) {
                sectors.add(addresses[lane], size as u64);
                bytes += size as u64;
            }
            if let Some(target) = target {
                context.core.registers.set_lane(target.row, target.is_wide(), lane, old);
            }
        }
        if bytes > 0 {
            // Reductions return nothing, and so order nothing that comes after.
            context.synchronize_blocks(releases);
            if context.env.count_memory {
                context.count_global(&sectors, bytes, true);
            }
        }
        Ok(())
    }))
}

/// A register of exactly the width of the operation.
fn fitting<'f, 'n>(
    form: &mut Form<'f, 'n>,
    size: usize,
    find: impl FnOnce(&mut Form<'f, 'n>) -> Result<Register, PtxError>,
) -> Result<Register, PtxError> {
    let register = find(form)?;
    let bytes = match register.width {
        Width::Half => 2,
        Width::Word => 4,
        Width::Double => 8,
    };
    if bytes != size {
        let reason = format!("a register of {bytes} bytes where {size} are needed");
        return Err(form.operand_error(0, reason));
    }
    Ok(register)
}

/// Changes a place and gives what was there.
fn apply<'m>(
    context: &mut Context<'_, 'm>,
    place: Place<'m>,
    size: usize,
    f: impl Fn(u64) -> u64,
) -> u64 {
    match place {
        Place::Global(allocation, offset) => allocation.update(offset, size as u64, f),
        // A cluster runs on one host thread.
        other => {
            let old = context.load(other, 0, size);
            context.store(other, 0, size, f(old));
            old
        }
    }
}

pub(super) fn update(name: &str, ty: Type) -> Option<Update> {
    let f: Update = match (name, ty) {
        ("add", Type::U32 | Type::S32) => {
            |old, a, _| u64::from((old as u32).wrapping_add(a as u32))
        }
        ("add", Type::U64 | Type::S64) => |old, a, _| old.wrapping_add(a),
        ("add", Type::F32) => |old, a, _| {
            let sum = f32::from_bits(old as u32) + f32::from_bits(a as u32);
            u64::from(canonical(sum).to_bits())
        },
        ("add", Type::F64) => |old, a, _| (f64::from_bits(old) + f64::from_bits(a)).to_bits(),
        ("add", Type::F16) => |old, a, _| u64::from(add::<F16>(old as u16, a as u16)),
        ("add", Type::Bf16) => |old, a, _| u64::from(add::<Bf16>(old as u16, a as u16)),
        ("add", Type::F16x2) => |old, a, _| u64::from(pairs(old as u32, a as u32, add::<F16>)),
        ("add", Type::Bf16x2) => |old, a, _| u64::from(pairs(old as u32, a as u32, add::<Bf16>)),
        ("and", Type::B32 | Type::B64) => |old, a, _| old & a,
        ("or", Type::B32 | Type::B64) => |old, a, _| old | a,
        ("xor", Type::B32 | Type::B64) => |old, a, _| old ^ a,
        ("min", Type::U32 | Type::U64) => |old, a, _| old.min(a),
        ("max", Type::U32 | Type::U64) => |old, a, _| old.max(a),
        ("min", Type::S32) => |old, a, _| u64::from((old as i32).min(a as i32) as u32),
        ("max", Type::S32) => |old, a, _| u64::from((old as i32).max(a as i32) as u32),
        ("min", Type::S64) => |old, a, _| (old as i64).min(a as i64) as u64,
        ("max", Type::S64) => |old, a, _| (old as i64).max(a as i64) as u64,
        // Counts from 0 up to the operand, or from the operand down to 0.
        ("inc", Type::U32) => |old, a, _| if old >= a { 0 } else { old + 1 },
        ("dec", Type::U32) => |old, a, _| if old == 0 || old > a { a } else { old - 1 },
        ("exch", Type::B32 | Type::B64) => |_, a, _| a,
        ("cas", Type::B16 | Type::B32 | Type::B64) => |old, a, b| if old == a { b } else { old },
        _ => return None,
    };
    Some(f)
}

fn add<H: Half>(a: u16, b: u16) -> u16 {
    H::narrow(H::widen(a) + H::widen(b))
}
