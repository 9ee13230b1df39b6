//! `mbarrier`: barriers in shared memory that count arrivals and bytes.

use crate::check::{Access, Problem};
use crate::count::Class;
use crate::machine::action::{Action, Flow};
use crate::machine::bulk::{Flight, Signal};
use crate::machine::cluster::cluster_address;
use crate::machine::context::{Context, Trap, Waiting, lanes};
use crate::machine::form::Form;
use crate::machine::mbarrier::{Mbarrier, Phase};
use crate::machine::names::{LOCAL_WINDOW, SHARED_WINDOW};
use crate::machine::registers::Slot;
use crate::machine::tensor_map::Swizzle;
use crate::ptx::{Operand, PtxError, Space};

use super::Op;

type Compiled = Result<Action, PtxError>;

pub(super) const TABLE: &[Op] = &[Op {
    name: "mbarrier",
    class: Class::Barrier,
    forms: &[
        "mbarrier.init(|.shared|.shared::cta).b64 [d0], r0",
        "mbarrier.inval(|.shared|.shared::cta).b64 [d0]",
        "mbarrier.arrive(|.release)(|.cta|.cluster)(|.shared|.shared::cta).b64 d1, [d0]",
        "mbarrier.arrive(|.noComplete).shared::cta.b64 d1, [r0], r1",
        "mbarrier.arrive.relaxed.cta.shared::cta.b64 _, [r0]",
        "mbarrier.arrive.release.cluster.shared::cluster.b64 _, [r0], r1",
        "mbarrier.arrive.expect_tx(|.release.cta)(|.shared|.shared::cta).b64 d1, [d0], r0",
        "mbarrier.arrive.expect_tx.release.cluster.shared::cluster.b64 _, [r0], r1",
        "mbarrier.arrive_drop(|.noComplete).shared::cta.b64 d1, [r0], r1",
        "mbarrier.arrive_drop.expect_tx.shared::cta.b64 _, [r0], r1",
        "mbarrier.expect_tx.relaxed.(cta|cluster).(shared::cta|shared::cluster).b64 [r0], r1",
        "mbarrier.complete_tx.relaxed.(cta|cluster).(shared::cta|shared::cluster).b64 [r0], r1",
        "mbarrier.(test_wait|try_wait)(|.acquire.cta|.relaxed.cluster)(|.shared|.shared::cta).b64 p0, [d0], d1",
        "mbarrier.(test_wait|try_wait).parity(|.acquire.cluster)(|.shared|.shared::cta).b64 p0, [d0], r1",
        "mbarrier.try_wait.parity.shared::cta.b64 p0, [r0], 1, 989680",
        "mbarrier.pending_count.b64 r0, d0",
    ],
    compile: mbarrier,
}];

fn mbarrier(form: &mut Form<'_, '_>) -> Compiled {
    let operation = form
        .choice(&[
            ("init", "init"),
            ("inval", "inval"),
            ("arrive", "arrive"),
            ("arrive_drop", "arrive_drop"),
            ("expect_tx", "expect_tx"),
            ("complete_tx", "complete_tx"),
            ("test_wait", "test_wait"),
            ("try_wait", "try_wait"),
            ("pending_count", "pending_count"),
        ])
        .ok_or_else(|| form.missing("an operation"))?;
    let expects = form.flag("expect_tx");
    let relaxed = form.flag("relaxed");
    form.ignore(&["release", "acquire", "cta", "cluster", "b64"]);
    match operation {
        "init" => init(form),
        "inval" => invalidate(form),
        "arrive" => arrive(form, expects, false, relaxed),
        "arrive_drop" => arrive(form, expects, true, relaxed),
        "expect_tx" | "complete_tx" => transactions(form, operation == "expect_tx"),
        "pending_count" => form.unary(|state: u64| Mbarrier::pending_of(state)),
        _ => wait(form, operation == "try_wait", relaxed),
    }
}

/// Rank and offset of an mbarrier from its address.
fn locate(context: &Context<'_, '_>, lane: usize, address: u64) -> Result<(u32, u64), Trap> {
    let offset = match address {
        SHARED_WINDOW..LOCAL_WINDOW => address - SHARED_WINDOW,
        other => other,
    };
    let (rank, offset) = cluster_address(offset).unwrap_or((context.block.rank, offset));
    let size = context.block.shared.len() as u64;
    if offset.saturating_add(8) > size {
        context.outside_of("shared memory", size, lane, offset, 8, Access::Atomic)?;
        return Err(Trap::lane(lane, Problem::MbarrierUninitialized { offset }));
    }
    if !offset.is_multiple_of(8) {
        context.refused(lane, offset, 8, Access::Atomic, false)?;
        return Err(Trap::lane(lane, Problem::MbarrierUninitialized { offset }));
    }
    Ok((rank, offset))
}

fn shared_address(
    form: &mut Form<'_, '_>,
    index: usize,
) -> Result<crate::machine::action::Address, PtxError> {
    let space = form.space();
    let (address, found) = form.address(index, space)?;
    if !matches!(found, Space::Shared | Space::Generic) {
        return Err(form.operand_error(index, "must be in shared memory"));
    }
    Ok(address)
}

fn init(form: &mut Form<'_, '_>) -> Compiled {
    form.expect(2)?;
    let address = shared_address(form, 0)?;
    let count = form.src::<u32>(1)?;
    Ok(Action::warp(move |context, mask| {
        let addresses = address.lanes(&context.core.registers);
        let counts = context.core.registers.get(count);
        for lane in lanes(mask) {
            let (_, offset) = locate(context, lane, addresses[lane])?;
            // An ordinary store, which races as such.
            context.shared(lane, offset, 8, Access::Write)?;
            let warp = context.warp();
            let time = context.cluster.clocks.seen(warp).get(warp).copied().unwrap_or(0);
            let actor = context.cluster.clocks.new_actor();
            let barrier = Mbarrier::new(offset, counts[lane], actor, (warp, time))
                .map_err(|problem| Trap::lane(lane, problem))?;
            let block = &mut *context.block;
            if let Some(place) = block.shared.get_mut(offset as usize..offset as usize + 8) {
                place.copy_from_slice(&barrier.state().to_le_bytes());
            }
            let old = block.mbarriers.insert(offset, barrier);
            if context.env.checks.shadows_shared() {
                context.block.shadow.set_mbarrier(offset as usize, true);
            }
            if old.is_some() && context.env.checks.mbarriers {
                context.note(lane, Problem::MbarrierInitializedTwice { offset }, None);
            }
        }
        Ok(())
    }))
}

fn invalidate(form: &mut Form<'_, '_>) -> Compiled {
    form.expect(1)?;
    let address = shared_address(form, 0)?;
    Ok(Action::warp(move |context, mask| {
        let addresses = address.lanes(&context.core.registers);
        for lane in lanes(mask) {
            let (_, offset) = locate(context, lane, addresses[lane])?;
            if context.block.mbarriers.remove(&offset).is_none() {
                context.no_mbarrier(lane, offset)?;
            }
            if context.env.checks.shadows_shared() {
                context.block.shadow.set_mbarrier(offset as usize, false);
            }
        }
        Ok(())
    }))
}

/// Does something with an mbarrier of any block of the cluster.
fn with_mbarrier<R: Default>(
    context: &mut Context<'_, '_>,
    lane: usize,
    address: u64,
    releases: bool,
    f: impl FnOnce(&mut Mbarrier) -> Result<(R, bool), Problem>,
) -> Result<R, Trap> {
    let (rank, offset) = locate(context, lane, address)?;
    if rank != context.block.rank {
        context.visit(lane, rank, Access::Atomic)?;
    }
    let warp = context.warp();
    let Some((state, clocks)) = context.split(rank) else { return Ok(R::default()) };
    let Some(barrier) = state.mbarriers.get_mut(&offset) else {
        return context.no_mbarrier(lane, offset).map(|()| R::default());
    };
    if releases {
        clocks.release(warp, barrier.arriving());
    }
    let (result, over) = f(barrier).map_err(|problem| Trap::lane(lane, problem))?;
    if over {
        context.cluster.events += 1;
        context.cluster.polls = 0;
    }
    Ok(result)
}

fn arrive(form: &mut Form<'_, '_>, expects: bool, drops: bool, relaxed: bool) -> Compiled {
    let incomplete = form.flag("noComplete");
    let last = form.count();
    if !(2..=3).contains(&last) || expects && last != 3 {
        form.expect(3)?;
    }
    let target = form.operand(0)?;
    let target = form.optional_target::<u64>(0, target)?;
    let address = shared_address(form, 1)?;
    let number = if last == 3 { Some(form.src::<u32>(2)?) } else { None };
    Ok(Action::warp(move |context, mask| {
        let registers = &context.core.registers;
        let addresses = address.lanes(registers);
        let numbers = number.map(|number| registers.get(number));
        for lane in lanes(mask) {
            let number = numbers.map(|numbers| numbers[lane]);
            let state = with_mbarrier(context, lane, addresses[lane], !relaxed, |barrier| {
                let state = barrier.state();
                let count = if expects { 1 } else { number.unwrap_or(1) };
                if expects {
                    barrier.expect(number.unwrap_or(0))?;
                }
                let over =
                    if drops { barrier.drop_arrivals(count)? } else { barrier.arrive(count)? };
                if over && incomplete {
                    // The phase must not end here.
                    let pending = Mbarrier::pending_of(state).saturating_sub(1);
                    let offset = addresses[lane];
                    return Err(Problem::MbarrierOverrun { offset, count, pending });
                }
                Ok((state, over))
            })?;
            if let Some(target) = target {
                context.core.registers.set_lane(target.row, true, lane, state);
            }
        }
        Ok(())
    }))
}

fn transactions(form: &mut Form<'_, '_>, expects: bool) -> Compiled {
    form.expect(2)?;
    let address = shared_address(form, 0)?;
    let bytes = form.src::<u32>(1)?;
    Ok(Action::warp(move |context, mask| {
        let addresses = address.lanes(&context.core.registers);
        let bytes = context.core.registers.get(bytes);
        for lane in lanes(mask) {
            with_mbarrier(context, lane, addresses[lane], false, |barrier| {
                if expects {
                    return barrier.expect(bytes[lane]).map(|()| ((), false));
                }
                Ok(((), barrier.complete(u64::from(bytes[lane]))))
            })?;
        }
        Ok(())
    }))
}

/// What a wait names its phase with.
#[derive(Clone, Copy)]
enum Wanted {
    State(Slot<u64>),
    Parity(Slot<u32>),
}

fn wait(form: &mut Form<'_, '_>, suspends: bool, relaxed: bool) -> Compiled {
    let by_parity = form.flag("parity");
    let most = if suspends { 4 } else { 3 };
    if form.count() != most {
        form.expect(3)?;
    }
    let target = form.operand(0)?;
    let target = form.predicate_target(0, target)?;
    let address = shared_address(form, 1)?;
    let wanted = if by_parity { Wanted::Parity(form.src(2)?) } else { Wanted::State(form.src(2)?) };
    if form.count() == 4 {
        // A hint of how long to wait.
        form.src::<u32>(3)?;
    }
    Ok(Action::wait(move |context, mask| {
        let registers = &context.core.registers;
        let addresses = address.lanes(registers);
        let phases: [Phase; 32] = match wanted {
            Wanted::State(slot) => registers.get(slot).map(Mbarrier::phase_of),
            Wanted::Parity(slot) => registers.get(slot).map(Phase::Parity),
        };
        let warp = context.warp();
        let mut over = 0u32;
        let mut waiting = None;
        for lane in lanes(mask) {
            let (rank, offset) = locate(context, lane, addresses[lane])?;
            if rank != context.block.rank {
                let problem = Problem::MbarrierUninitialized { offset: addresses[lane] };
                return Err(Trap::lane(lane, problem));
            }
            let phase = phases[lane];
            let Some(barrier) = context.block.mbarriers.get(&offset) else {
                context.no_mbarrier(lane, offset)?;
                over |= 1 << lane;
                continue;
            };
            if !barrier.is_over(phase) && barrier.lacks_only_copies() {
                context.deliver(offset)?;
            }
            let Some(barrier) = context.block.mbarriers.get(&offset) else { continue };
            if barrier.is_over(phase) {
                over |= 1 << lane;
                if !relaxed {
                    context.cluster.clocks.acquire(warp, barrier.ended());
                }
            } else {
                waiting = Some(Waiting::Mbarrier { offset, phase });
            }
        }
        let expired = std::mem::take(&mut context.core.expired);
        if suspends && waiting.is_some() && !expired {
            context.core.waiting = waiting;
            return Ok(Flow::Again);
        }
        if let Some(target) = target {
            context.core.registers.set_predicate(target as usize, over, mask);
        }
        // What it waited for last stands in the report of a deadlock.
        context.core.waiting = waiting;
        if waiting.is_none() {
            return Ok(Flow::On);
        }
        context.cluster.polls += u64::from(!suspends);
        Ok(Flow::Yield)
    }))
}

/// `cp.async.mbarrier.arrive`: the mbarrier counts the thread when its `cp.async` have arrived.
pub(super) fn arrive_after_copies(form: &mut Form<'_, '_>) -> Compiled {
    if !form.flag("arrive") {
        return Err(form.missing("arrive"));
    }
    let counted = form.flag("noinc");
    form.ignore(&["b64"]);
    form.expect(1)?;
    let address = shared_address(form, 0)?;
    Ok(Action::warp(move |context, mask| {
        let addresses = address.lanes(&context.core.registers);
        for lane in lanes(mask) {
            let copies = context.core.copies.wait_all(1 << lane);
            let at = context.at;
            with_mbarrier(context, lane, addresses[lane], true, |barrier| {
                if !counted {
                    barrier.expect_arrival();
                }
                let flight = |offset, data, signal| Flight {
                    offset,
                    data,
                    swizzle: Swizzle::None,
                    update: None,
                    signal,
                    at,
                };
                for (_, copy) in copies {
                    let data = copy.data[..copy.bytes.min(16)].to_vec();
                    barrier.flights.push(flight(copy.offset as u64, data, Signal::Nothing));
                }
                barrier.flights.push(flight(0, Vec::new(), Signal::Arrival));
                Ok(((), false))
            })?;
        }
        Ok(())
    }))
}

/// An mbarrier that an operation names in brackets, which must be in shared memory.
pub(super) fn operand(
    form: &mut Form<'_, '_>,
    index: usize,
) -> Result<crate::machine::action::Address, PtxError> {
    match form.operand(index)? {
        Operand::Address { .. } => Ok(form.address(index, Space::Shared)?.0),
        _ => Err(form.operand_error(index, "must be an mbarrier")),
    }
}
