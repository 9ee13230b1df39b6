//! Exchanges between the lanes of a warp.

use crate::count::Class;
use crate::machine::action::Action;
use crate::machine::context::lanes;
use crate::machine::form::Form;
use crate::machine::registers::LANES;
use crate::ptx::{Operand, PtxError, Type};

use super::Op;

type Compiled = Result<Action, PtxError>;

pub(super) const TABLE: &[Op] = &[
    Op {
        name: "shfl",
        class: Class::Warp,
        forms: &[
            "shfl.sync.(up|down|bfly|idx).b32 r0, r1, r2, r3, r4",
            "shfl.sync.(up|down|bfly|idx).b32 r0|p0, r1, 1, 31, -1",
        ],
        compile: shfl,
    },
    Op {
        name: "vote",
        class: Class::Warp,
        forms: &[
            "vote.sync.(all|any|uni).pred p0, p1, r0",
            "vote.sync.(all|any|uni).pred p0, !p1, -1",
            "vote.sync.ballot.b32 r0, p1, r1",
        ],
        compile: vote,
    },
    Op {
        name: "match",
        class: Class::Warp,
        forms: &[
            "match.any.sync.b32 r0, r1, r2",
            "match.any.sync.b64 r0, d1, r2",
            "match.all.sync.b32 r0|p0, r1, r2",
            "match.all.sync.b64 r0|p0, d1, r2",
        ],
        compile: matching,
    },
    Op {
        name: "redux",
        class: Class::Warp,
        forms: &[
            "redux.sync.(add|min|max).(u32|s32) r0, r1, r2",
            "redux.sync.(and|or|xor).b32 r0, r1, r2",
        ],
        compile: redux,
    },
    Op {
        name: "activemask",
        class: Class::Warp,
        forms: &["activemask.b32 r0"],
        compile: |form| {
            form.ty()?;
            form.expect(1)?;
            let target = form.dst::<u32>(0)?;
            Ok(Action::lanes(move |registers, mask| registers.set(target, [mask; LANES], mask)))
        },
    },
    Op { name: "elect", class: Class::Warp, forms: &["elect.sync r0|p0, r1"], compile: elect },
];

/// What a lane reads from one that takes no part: PTX leaves it open.
const NOTHING: u32 = 0xdead_beef;

#[derive(Clone, Copy)]
enum Direction {
    Up,
    Down,
    Butterfly,
    Index,
}

fn shfl(form: &mut Form<'_, '_>) -> Compiled {
    if !form.flag("sync") {
        return Err(form.missing("sync"));
    }
    let direction = form
        .choice(&[
            ("up", Direction::Up),
            ("down", Direction::Down),
            ("bfly", Direction::Butterfly),
            ("idx", Direction::Index),
        ])
        .ok_or_else(|| form.missing("a direction"))?;
    form.ty()?;
    form.expect(5)?;
    let (target, predicate) = match form.operand(0)? {
        Operand::Pair(value, predicate) => {
            (form.optional_target::<u32>(0, value)?, form.predicate_target(0, predicate)?)
        }
        value => (form.optional_target::<u32>(0, value)?, None),
    };
    let source = form.src::<u32>(1)?;
    let (distance, clamp) = (form.src::<u32>(2)?, form.src::<u32>(3)?);
    let members = form.src::<u32>(4)?;
    Ok(Action::warp(move |context, mask| {
        let registers = &context.core.registers;
        let members = registers.get(members)[mask.trailing_zeros() as usize % LANES];
        context.require_lanes(members, mask)?;
        let registers = &mut context.core.registers;
        let values = registers.get(source);
        let (distance, clamp) = (registers.get(distance), registers.get(clamp));
        let mut out = values;
        let mut inside = 0u32;
        for lane in 0..LANES {
            let segment = clamp[lane] >> 8 & 31;
            let bound = clamp[lane] & 31;
            let lane_number = lane as u32;
            // The last lane of this one's segment, or the first for `up`.
            let limit = lane_number & segment | bound & !segment;
            let first = lane_number & segment;
            let step = distance[lane] & 31;
            let (from, valid) = match direction {
                Direction::Up => {
                    let from = lane_number.wrapping_sub(step);
                    (from, (from as i32) >= limit as i32)
                }
                Direction::Down => {
                    let from = lane_number + step;
                    (from, from <= limit)
                }
                Direction::Butterfly => {
                    let from = lane_number ^ step;
                    (from, from <= limit)
                }
                Direction::Index => {
                    let from = first | step & !segment;
                    (from, from <= limit)
                }
            };
            if valid {
                // A lane that takes no part has nothing to give.
                let from = from as usize % LANES;
                out[lane] = if mask >> from & 1 == 1 { values[from] } else { NOTHING };
                inside |= 1 << lane;
            }
        }
        if let Some(target) = target {
            registers.set(target, out, mask);
        }
        if let Some(predicate) = predicate {
            registers.set_predicate(predicate as usize, inside, mask);
        }
        Ok(())
    }))
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Vote {
    All,
    Any,
    Uniform,
    Ballot,
}

fn vote(form: &mut Form<'_, '_>) -> Compiled {
    if !form.flag("sync") {
        return Err(form.missing("sync"));
    }
    let kind = form
        .choice(&[
            ("all", Vote::All),
            ("any", Vote::Any),
            ("uni", Vote::Uniform),
            ("ballot", Vote::Ballot),
        ])
        .ok_or_else(|| form.missing("a kind of vote"))?;
    form.ty()?;
    form.expect(3)?;
    let target = form.operand(0)?;
    let ballot = if kind == Vote::Ballot { Some(form.dst::<u32>(0)?) } else { None };
    let predicate = if ballot.is_none() { form.predicate_target(0, target)? } else { None };
    // NVRTC writes constants as `1` or `-1`.
    let constant = match form.operand(1)? {
        Operand::Integer(value) => Some(if *value != 0 { u32::MAX } else { 0 }),
        _ => None,
    };
    let source = if constant.is_none() { Some(form.predicate(1)?) } else { None };
    let members = form.src::<u32>(2)?;
    Ok(Action::warp(move |context, mask| {
        let members = context.core.registers.get(members)[mask.trailing_zeros() as usize % LANES];
        context.require_lanes(members, mask)?;
        let registers = &mut context.core.registers;
        let voters = mask & members;
        let votes = source.map_or(constant.unwrap_or(0), |source| source.lanes(registers)) & voters;
        let holds = match kind {
            Vote::All => votes == voters,
            Vote::Any => votes != 0,
            Vote::Uniform => votes == voters || votes == 0,
            Vote::Ballot => false,
        };
        if let Some(target) = ballot {
            registers.set(target, [votes; LANES], mask);
        }
        if let Some(target) = predicate {
            registers.set_predicate(target as usize, if holds { mask } else { 0 }, mask);
        }
        Ok(())
    }))
}

fn matching(form: &mut Form<'_, '_>) -> Compiled {
    let all =
        form.choice(&[("any", false), ("all", true)]).ok_or_else(|| form.missing("any or all"))?;
    if !form.flag("sync") {
        return Err(form.missing("sync"));
    }
    let ty = form.ty()?;
    form.expect(3)?;
    let (target, predicate) = match form.operand(0)? {
        Operand::Pair(value, predicate) => {
            (form.optional_target::<u32>(0, value)?, form.predicate_target(0, predicate)?)
        }
        value => (form.optional_target::<u32>(0, value)?, None),
    };
    let source = form.operand(1)?;
    let source = form.source_of(1, source, ty.bytes())?;
    let members = form.src::<u32>(2)?;
    Ok(Action::warp(move |context, mask| {
        let members = context.core.registers.get(members)[mask.trailing_zeros() as usize % LANES];
        context.require_lanes(members, mask)?;
        let registers = &mut context.core.registers;
        let value = |lane| registers.lane(source.row, source.is_wide(), lane);
        let voters = mask & members;
        let same: [u32; LANES] = std::array::from_fn(|lane| {
            lanes(voters)
                .filter(|other| value(*other) == value(lane))
                .fold(0, |all, o| all | 1 << o)
        });
        let agreed = lanes(voters).all(|lane| same[lane] == voters);
        let out = if all { [if agreed { voters } else { 0 }; LANES] } else { same };
        if let Some(target) = target {
            registers.set(target, out, mask);
        }
        if let Some(predicate) = predicate {
            registers.set_predicate(predicate as usize, if agreed { mask } else { 0 }, mask);
        }
        Ok(())
    }))
}

fn redux(form: &mut Form<'_, '_>) -> Compiled {
    if !form.flag("sync") {
        return Err(form.missing("sync"));
    }
    let name = form
        .choice(&[
            ("add", "add"),
            ("min", "min"),
            ("max", "max"),
            ("and", "and"),
            ("or", "or"),
            ("xor", "xor"),
        ])
        .ok_or_else(|| form.missing("an operation"))?;
    let ty = form.ty()?;
    let f: fn(u32, u32) -> u32 = match (name, ty) {
        ("add", Type::U32 | Type::S32) => u32::wrapping_add,
        ("min", Type::U32) => u32::min,
        ("max", Type::U32) => u32::max,
        ("min", Type::S32) => |a, b| (a as i32).min(b as i32) as u32,
        ("max", Type::S32) => |a, b| (a as i32).max(b as i32) as u32,
        ("and", Type::B32) => |a, b| a & b,
        ("or", Type::B32) => |a, b| a | b,
        ("xor", Type::B32) => |a, b| a ^ b,
        _ => return Err(form.bad_type(ty)),
    };
    form.expect(3)?;
    let (target, source) = (form.dst::<u32>(0)?, form.src::<u32>(1)?);
    let members = form.src::<u32>(2)?;
    Ok(Action::warp(move |context, mask| {
        let members = context.core.registers.get(members)[mask.trailing_zeros() as usize % LANES];
        context.require_lanes(members, mask)?;
        let registers = &mut context.core.registers;
        let values = registers.get(source);
        if let Some(result) = lanes(mask & members).map(|lane| values[lane]).reduce(f) {
            registers.set(target, [result; LANES], mask);
        }
        Ok(())
    }))
}

fn elect(form: &mut Form<'_, '_>) -> Compiled {
    if !form.flag("sync") {
        return Err(form.missing("sync"));
    }
    form.expect(2)?;
    let Operand::Pair(value, predicate) = form.operand(0)? else {
        return Err(form.operand_error(0, "must be a register and a predicate"));
    };
    let target = form.optional_target::<u32>(0, value)?;
    let predicate = form.predicate_target(0, predicate)?;
    let members = form.src::<u32>(1)?;
    Ok(Action::warp(move |context, mask| {
        let members = context.core.registers.get(members)[mask.trailing_zeros() as usize % LANES];
        context.require_lanes(members, mask)?;
        let registers = &mut context.core.registers;
        let leader = (mask & members).trailing_zeros() % 32;
        if let Some(target) = target {
            registers.set(target, [leader; LANES], mask);
        }
        if let Some(predicate) = predicate {
            registers.set_predicate(predicate as usize, 1 << leader, mask);
        }
        Ok(())
    }))
}
