//! Barriers, fences, and the ends of threads.

use crate::check::Problem;
use crate::count::Class;
use crate::machine::action::{Action, Barrier, BarrierKind, Reduction};
use crate::machine::context::Trap;
use crate::machine::form::Form;
use crate::machine::registers::LANES;
use crate::ptx::PtxError;

use super::Op;

type Compiled = Result<Action, PtxError>;

pub(super) const TABLE: &[Op] = &[
    Op {
        name: "bar",
        class: Class::Barrier,
        forms: &[
            "bar(|.cta).sync 0",
            "bar.sync r0, 64",
            "bar.arrive 1, 64",
            "bar.red.popc.u32 r0, 0, p0",
            "bar.red.(and|or).pred p0, 0, p1",
            "bar.warp.sync r0",
        ],
        compile: bar,
    },
    Op {
        name: "barrier",
        class: Class::Barrier,
        forms: &[
            "barrier(|.cta).sync(|.aligned) 0",
            "barrier.cta.arrive(|.aligned) 1, 64",
            "barrier.cta.red.popc.aligned.u32 r0, 0, p0",
            "barrier.cluster.arrive(|.release|.relaxed)(|.aligned)",
            "barrier.cluster.wait(|.acquire)(|.aligned)",
        ],
        compile: bar,
    },
    Op { name: "membar", class: Class::Barrier, forms: &["membar.(cta|gl|sys)"], compile: fence },
    Op {
        name: "fence",
        class: Class::Barrier,
        forms: &[
            "fence(|.sc|.acq_rel).(cta|cluster|gpu|sys)",
            "fence.(acquire|release).sync_restrict::shared::cta.cluster",
            "fence.mbarrier_init.release.cluster",
            "fence.proxy.async(|.global|.shared::cta|.shared::cluster)",
            "fence.proxy.async::generic.(acquire|release).sync_restrict::shared::cluster.cluster",
            "fence.proxy.alias",
            "fence.proxy.tensormap::generic.release.gpu",
            "fence.proxy.tensormap::generic.acquire.gpu [d0], 128",
        ],
        compile: fence,
    },
    Op {
        name: "ret",
        class: Class::Control,
        forms: &["ret(|.uni)"],
        compile: |form| {
            form.flag("uni");
            form.expect(0)?;
            Ok(Action::Return)
        },
    },
    Op {
        name: "exit",
        class: Class::Control,
        forms: &["exit"],
        compile: |form| {
            form.expect(0)?;
            Ok(Action::Exit)
        },
    },
    Op {
        name: "trap",
        class: Class::Control,
        forms: &["trap"],
        compile: |form| {
            form.expect(0)?;
            Ok(stop(|| Problem::Trap))
        },
    },
    Op {
        name: "brkpt",
        class: Class::Control,
        forms: &["brkpt"],
        compile: |form| {
            form.expect(0)?;
            Ok(Action::nothing())
        },
    },
    Op {
        name: "nanosleep",
        class: Class::Control,
        forms: &["nanosleep.u32 r0"],
        compile: |form| {
            form.ty()?;
            form.expect(1)?;
            form.src::<u32>(0)?;
            Ok(Action::nothing())
        },
    },
    Op {
        name: "pmevent",
        class: Class::Control,
        forms: &["pmevent 1"],
        compile: |form| {
            form.number(0)?;
            Ok(Action::nothing())
        },
    },
    Op {
        name: "griddepcontrol",
        class: Class::Control,
        forms: &["griddepcontrol.(launch_dependents|wait)"],
        compile: |form| {
            // A launch begins when the one before it has ended, so there is nothing to wait for.
            form.ignore(&["launch_dependents", "wait"]);
            form.expect(0)?;
            Ok(Action::nothing())
        },
    },
];

fn stop(problem: impl Fn() -> Problem + Send + Sync + 'static) -> Action {
    Action::warp(move |_, mask| Err(Trap::lane(mask.trailing_zeros() as usize % LANES, problem())))
}

/// What a call of `__assertfail` does.
pub(in crate::machine) fn assertion() -> Action {
    stop(|| Problem::Assertion)
}

fn fence(form: &mut Form<'_, '_>) -> Compiled {
    if form.flag("mbarrier_init") {
        form.ignore(&["release", "cluster"]);
        form.expect(0)?;
        return Ok(Action::warp(|context, _| {
            let warp = context.warp();
            for barrier in context.block.mbarriers.values_mut() {
                barrier.fenced |= barrier.owner.0 == warp;
            }
            Ok(())
        }));
    }
    if form.flag("proxy") {
        return proxy_fence(form);
    }
    form.ignore(&["sc", "acq_rel", "acquire", "release"]);
    form.ignore(&["sync_restrict::shared::cta", "sync_restrict::shared::cluster"]);
    // Other blocks are not concerned by a fence for the own one or the cluster.
    let near = form.flag("cta") || form.flag("cluster");
    form.ignore(&["gl", "gpu", "sys"]);
    form.expect(0)?;
    Ok(Action::warp(move |context, _| {
        if !near {
            context.fence();
        }
        Ok(())
    }))
}

/// Between ordinary and asynchronous accesses. Other proxies see what is there anyway.
fn proxy_fence(form: &mut Form<'_, '_>) -> Compiled {
    let one_way = form.flag("async::generic");
    if one_way || form.flag("async") {
        form.ignore(&["acquire", "release", "cluster", "global", "shared::cta", "shared::cluster"]);
        form.ignore(&["sync_restrict::shared::cta", "sync_restrict::shared::cluster"]);
        form.expect(0)?;
        return Ok(Action::warp(|context, _| {
            let warp = context.warp();
            context.cluster.clocks.fence(warp);
            Ok(())
        }));
    }
    if !form.flag("alias") && !form.flag("tensormap::generic") {
        return Err(form.missing("async, alias or tensormap::generic"));
    }
    form.ignore(&["acquire", "release", "cta", "cluster", "gpu", "sys"]);
    if form.count() > 0 {
        form.expect(2)?;
        form.address(0, crate::ptx::Space::Generic)?;
        form.number(1)?;
    }
    Ok(Action::nothing())
}

fn bar(form: &mut Form<'_, '_>) -> Compiled {
    if form.flag("cluster") {
        return super::cluster::barrier(form);
    }
    form.flag("cta");
    if form.flag("warp") {
        if !form.flag("sync") {
            return Err(form.missing("sync"));
        }
        form.expect(1)?;
        let members = form.src::<u32>(0)?;
        return Ok(Action::warp(move |context, mask| {
            let members =
                context.core.registers.get(members)[mask.trailing_zeros() as usize % LANES];
            context.require_lanes(members, mask)
        }));
    }
    let explicit = form.flag("aligned");
    let aligned = explicit || form.instruction.name.starts_with("bar.");
    if form.flag("red") {
        return reduce(form, aligned);
    }
    let kind = form
        .choice(&[("sync", BarrierKind::Sync), ("arrive", BarrierKind::Arrive)])
        .ok_or_else(|| form.missing("sync, arrive or red"))?;
    let number = form.src::<u32>(0)?.row;
    let threads = if form.count() > 1 { Some(form.src::<u32>(1)?.row) } else { None };
    form.expect(if threads.is_some() { 2 } else { 1 })?;
    if kind == BarrierKind::Arrive && threads.is_none() {
        return Err(form.operand_error(1, "the number of threads is missing"));
    }
    Ok(Action::Barrier(Barrier { number, threads, kind, aligned }))
}

/// `bar.red`: target, barrier, number of threads if given, and the predicate.
fn reduce(form: &mut Form<'_, '_>, aligned: bool) -> Compiled {
    let how = form
        .choice(&[("popc", Reduction::Count), ("and", Reduction::And), ("or", Reduction::Or)])
        .ok_or_else(|| form.missing("popc, and or or"))?;
    form.ty()?;
    let target = match how {
        Reduction::Count => form.dst::<u32>(0)?.row,
        _ => {
            let operand = form.operand(0)?;
            form.predicate_target(0, operand)?.ok_or_else(|| form.operand_error(0, "is missing"))?
        }
    };
    let number = form.src::<u32>(1)?.row;
    let last = form.count().saturating_sub(1);
    let threads = if last == 3 { Some(form.src::<u32>(2)?.row) } else { None };
    form.expect(if threads.is_some() { 4 } else { 3 })?;
    let source = form.predicate(last)?;
    let kind = BarrierKind::Reduce { how, source: source.index, negated: source.negated, target };
    Ok(Action::Barrier(Barrier { number, threads, kind, aligned }))
}
