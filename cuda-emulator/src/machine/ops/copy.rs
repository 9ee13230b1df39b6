//! `cp`: copies between device memory and shared memory that the thread does not wait for.

use crate::check::Access;
use crate::count::{Class, Sectors};
use crate::machine::action::Action;
use crate::machine::context::{Context, Copy, Place, Trap, lanes};
use crate::machine::form::Form;
use crate::ptx::{PtxError, Space};

use super::Op;

type Compiled = Result<Action, PtxError>;

pub(super) const TABLE: &[Op] = &[Op {
    name: "cp",
    class: Class::Copy,
    forms: &[
        "cp.async.ca.(shared|shared::cta).global(|.L2::128B) [r0], [d0], 4",
        "cp.async.ca.(shared|shared::cta).global [r0], [d0], 8",
        "cp.async.(ca|cg).(shared|shared::cta).global(|.L2::64B|.L2::128B|.L2::256B) [r0], [d0], 16",
        "cp.async.cg.shared.global [r0], [d0], 16, r1",
        "cp.async.cg.shared.global [r0], [d0], 16, p0",
        "cp.async.commit_group",
        "cp.async.wait_group 1",
        "cp.async.wait_all",
        "cp.async.mbarrier.arrive(|.noinc)(|.shared|.shared::cta).b64 [r0]",
        "cp.async.bulk.(shared::cluster|shared::cta).global.mbarrier::complete_tx::bytes [r0], [d0], r1, [r2]",
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [r0], [d0], r1, [r2], d1",
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [r0], [d0], r1, [r2], h0",
        "cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [r0], [r1], r2, [r3]",
        "cp.async.bulk.global.shared::cta.bulk_group(|.L2::cache_hint) [d0], [r0], r1",
        "cp.async.bulk.prefetch.L2.global [d0], r0",
        "cp.async.bulk.tensor.1d.(shared::cluster|shared::cta).global(|.tile).mbarrier::complete_tx::bytes [r0], [d0, {r1}], [r2]",
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [r0], [d0, {r1, r2}], [r3]",
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [r0], [d0, {r1, r2}], [r3], d1",
        "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [r0], [d0, {r1, r2, r3}], [r4], h0",
        "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [r0], [d0, {r1, r2, r3, r4}], [r5]",
        "cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes [r0], [d0, {r1, r2, r3, r4, r5}], [r6]",
        "cp.async.bulk.tensor.2d.global.shared::cta(|.tile).bulk_group(|.L2::cache_hint) [d0, {r1, r2}], [r0]",
        "cp.async.bulk.tensor.5d.global.shared::cta.bulk_group [d0, {r1, r2, r3, r4, r5}], [r0]",
        "cp.async.bulk.prefetch.tensor.2d.L2.global [d0, {r1, r2}]",
        "cp.async.bulk.commit_group",
        "cp.async.bulk.wait_group(|.read) 0",
        "cp.reduce.async.bulk.global.shared::cta.bulk_group.add.(u32|s32|u64|f32|f64) [d0], [r0], r1",
        "cp.reduce.async.bulk.global.shared::cta.bulk_group.add.noftz.(f16|bf16) [d0], [r0], r1",
        "cp.reduce.async.bulk.global.shared::cta.bulk_group.(min|max).(u32|s32|u64|s64) [d0], [r0], r1",
        "cp.reduce.async.bulk.global.shared::cta.bulk_group.(and|or|xor).(b32|b64) [d0], [r0], r1",
        "cp.reduce.async.bulk.tensor.2d.global.shared::cta.(add|min|max|and|or|xor)(|.tile).bulk_group [d0, {r1, r2}], [r0]",
    ],
    compile: cp,
}];

fn cp(form: &mut Form<'_, '_>) -> Compiled {
    let reduces = form.flag("reduce");
    if !form.flag("async") {
        return Err(form.missing("async"));
    }
    if form.flag("bulk") {
        return super::bulk::copy(form, reduces);
    }
    if form.flag("mbarrier") {
        return super::mbarrier::arrive_after_copies(form);
    }
    if form.flag("commit_group") {
        form.expect(0)?;
        return Ok(Action::warp(|context, mask| {
            context.core.copies.commit(mask);
            Ok(())
        }));
    }
    if form.flag("wait_group") {
        form.expect(1)?;
        let Ok(allowed) = u32::try_from(form.number(0)?) else {
            return Err(form.operand_error(0, "must not be negative"));
        };
        return Ok(Action::warp(move |context, mask| {
            let arrived = context.core.copies.wait(mask, allowed);
            arrive(context, &arrived)
        }));
    }
    if form.flag("wait_all") {
        form.expect(0)?;
        return Ok(Action::warp(|context, mask| {
            let arrived = context.core.copies.wait_all(mask);
            arrive(context, &arrived)
        }));
    }
    copy(form)
}

fn copy(form: &mut Form<'_, '_>) -> Compiled {
    let through_l1 =
        form.choice(&[("ca", true), ("cg", false)]).ok_or_else(|| form.missing("ca or cg"))?;
    if !(form.flag("shared") || form.flag("shared::cta")) || !form.flag("global") {
        return Err(form.missing("shared and global"));
    }
    form.ignore(&[]);
    let (to, _) = form.address(0, Space::Shared)?;
    let (from, from_space) = form.address(1, Space::Global)?;
    let bytes = match form.number(2)? {
        16 => 16usize,
        bytes @ (4 | 8) if through_l1 => bytes as usize,
        _ => return Err(form.operand_error(2, "4, 8 or 16 bytes; .cg copies 16")),
    };
    // Either the number of bytes to read, or a predicate that says to read none.
    let mut size = None;
    let mut ignore = None;
    if form.count() > 3 {
        match form.predicate(3) {
            Ok(predicate) => ignore = Some(predicate),
            Err(_) => size = Some(form.src::<u32>(3)?),
        }
    }
    Ok(Action::warp(move |context, mask| {
        let registers = &context.core.registers;
        let (targets, sources) = (to.lanes(registers), from.lanes(registers));
        let sizes = size.map(|size| registers.get(size));
        let none = ignore.map_or(0, |ignore| ignore.lanes(registers));
        let wanted = |lane: usize| {
            let wanted = sizes.map_or(bytes, |sizes| (sizes[lane] as usize).min(bytes));
            if none >> lane & 1 == 1 { 0 } else { wanted }
        };
        if context.env.checks.redundant_stores {
            context.watch_stores(Space::Shared, &targets, mask, |_, lane| {
                (wanted(lane), if wanted(lane) == 0 { 0 } else { sources[lane] })
            });
        }
        let mut sectors = Sectors::default();
        let mut loaded = 0;
        for lane in lanes(mask) {
            let wanted = wanted(lane);
            let mut data = [0; 16];
            if wanted > 0 {
                read(context, from_space, lane, sources[lane], wanted, bytes, &mut data)?;
                sectors.add(sources[lane], wanted as u64);
                loaded += wanted as u64;
            }
            // Where the bytes go is checked now; they arrive later.
            let offset = targets[lane];
            let size = context.block.shared.len() as u64;
            if offset.saturating_add(bytes as u64) > size || !offset.is_multiple_of(bytes as u64) {
                // The check of ordinary stores says what is wrong.
                context.shared(lane, offset, bytes as u64, Access::Write)?;
                continue;
            }
            let offset = offset as usize;
            if context.env.checks.shadows_shared() {
                context.issue_copy(lane, offset, bytes)?;
            }
            context.core.copies.start(lane, Copy { offset, bytes, data });
        }
        if context.env.count_memory {
            if loaded > 0 {
                context.count_global(&sectors, loaded, false);
            }
            context.count_shared(&targets, mask, bytes as u64);
        }
        Ok(())
    }))
}

/// Reads `wanted` bytes; the address must fit the whole copy.
fn read(
    context: &mut Context<'_, '_>,
    space: Space,
    lane: usize,
    address: u64,
    wanted: usize,
    bytes: usize,
    data: &mut [u8; 16],
) -> Result<(), Trap> {
    if wanted == bytes {
        let place = context.place(space, lane, address, bytes as u64, Access::Read)?;
        for start in (0..bytes).step_by(bytes.min(8)) {
            let part = bytes.min(8);
            let value = context.load(place, start, part);
            data[start..start + part].copy_from_slice(&value.to_le_bytes()[..part]);
        }
        return Ok(());
    }
    for (index, byte) in data.iter_mut().enumerate().take(wanted) {
        let place: Place<'_> =
            context.place(space, lane, address.wrapping_add(index as u64), 1, Access::Read)?;
        *byte = context.load(place, 0, 1) as u8;
    }
    Ok(())
}

/// Writes copies that have arrived.
fn arrive(context: &mut Context<'_, '_>, copies: &[(usize, Copy)]) -> Result<(), Trap> {
    for (lane, Copy { offset, bytes, data }) in copies {
        if context.env.checks.shadows_shared() {
            context.block.shadow.arrived(*offset, *bytes);
        }
        let place = context.shared(*lane, *offset as u64, *bytes as u64, Access::Write)?;
        for start in (0..*bytes).step_by((*bytes).min(8)) {
            let part = (*bytes).min(8);
            let mut value = [0; 8];
            value[..part].copy_from_slice(&data[start..start + part]);
            context.store(place, start, part, u64::from_le_bytes(value));
        }
    }
    Ok(())
}
