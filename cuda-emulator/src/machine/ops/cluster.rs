//! Clusters: their barrier, and addresses of shared memory of other blocks.

use crate::check::Problem;
use crate::count::Class;
use crate::machine::action::{Action, Flow};
use crate::machine::cluster::{cluster_address, map_address};
use crate::machine::context::{Trap, Waiting};
use crate::machine::form::Form;
use crate::machine::names::{LOCAL_WINDOW, SHARED_WINDOW};
use crate::machine::registers::LANES;
use crate::ptx::{Operand, PtxError, Type};

use super::Op;

type Compiled = Result<Action, PtxError>;

pub(super) const TABLE: &[Op] = &[
    Op {
        name: "mapa",
        class: Class::Integer,
        forms: &[
            "mapa(|.shared::cluster).u32 r0, r1, r2",
            "mapa.shared::cluster.u32 r0, r1, 3",
            "mapa(|.shared::cluster).u64 d0, d1, r2",
        ],
        compile: mapa,
    },
    Op {
        name: "getctarank",
        class: Class::Integer,
        forms: &[
            "getctarank.shared::cluster.u32 r0, r1",
            "getctarank(|.shared::cluster).u64 r0, d1",
        ],
        compile: rank,
    },
];

fn mapa(form: &mut Form<'_, '_>) -> Compiled {
    form.flag("shared::cluster");
    match form.ty()? {
        Type::U32 => {
            form.binary(|address: u32, rank: u32| map_address(rank, u64::from(address)) as u32)
        }
        Type::U64 => form.binary(|address: u64, rank: u32| match address {
            SHARED_WINDOW..LOCAL_WINDOW => {
                SHARED_WINDOW + map_address(rank, address - SHARED_WINDOW)
            }
            _ => map_address(rank, address),
        }),
        other => Err(form.bad_type(other)),
    }
}

/// Offsets of the own block bear no rank, so the block's is asked for.
fn rank(form: &mut Form<'_, '_>) -> Compiled {
    form.flag("shared::cluster");
    let ty = form.ty()?;
    form.expect(2)?;
    let target = form.dst::<u32>(0)?;
    let operand = form.operand(1)?;
    if !matches!(operand, Operand::Name(_)) {
        return Err(form.operand_error(1, "must be a register or variable"));
    }
    let source = form.source_of(1, operand, ty.bytes())?;
    Ok(Action::warp(move |context, mask| {
        let own = context.block.rank;
        let registers = &mut context.core.registers;
        let ranks: [u32; LANES] = std::array::from_fn(|lane| {
            let address = registers.lane(source.row, source.is_wide(), lane);
            let offset = match address {
                SHARED_WINDOW..LOCAL_WINDOW => address - SHARED_WINDOW,
                other => other,
            };
            cluster_address(offset).map_or(own, |(rank, _)| rank)
        });
        registers.set(target, ranks, mask);
        Ok(())
    }))
}

/// `barrier.cluster.arrive` and `.wait`.
pub(super) fn barrier(form: &mut Form<'_, '_>) -> Compiled {
    let waits = form
        .choice(&[("arrive", false), ("wait", true)])
        .ok_or_else(|| form.missing("arrive or wait"))?;
    let relaxed = form.flag("relaxed");
    form.ignore(&["release", "acquire"]);
    let aligned = form.flag("aligned");
    form.expect(0)?;
    let check = move |context: &crate::machine::context::Context<'_, '_>, mask: u32| {
        let live = context.core.live;
        if aligned && mask != live && context.env.checks.barriers {
            let lane = mask.trailing_zeros() as usize % LANES;
            return Err(Trap::lane(lane, Problem::DivergentBarrier { lanes: mask, live }));
        }
        Ok(())
    };
    if !waits {
        return Ok(Action::warp(move |context, mask| {
            check(context, mask)?;
            context.arrive_at_cluster(mask, !relaxed)
        }));
    }
    Ok(Action::wait(move |context, mask| {
        check(context, mask)?;
        let warp = context.warp();
        let cluster = &mut *context.cluster;
        // Still those of this phase: it has not ended.
        if cluster.barrier.has_arrived(warp, mask) {
            let phase = cluster.barrier.phase;
            context.core.waiting = Some(Waiting::Cluster { phase });
            return Ok(Flow::Again);
        }
        let never = cluster.barrier.phase == context.core.cluster_waits;
        if never {
            let lane = mask.trailing_zeros() as usize % LANES;
            return Err(Trap::lane(lane, Problem::ClusterBarrier { operation: "wait" }));
        }
        context.core.cluster_waits = cluster.barrier.phase;
        cluster.clocks.acquire(warp, cluster.barrier.ended());
        context.core.waiting = None;
        Ok(Flow::On)
    }))
}
