//! Estimates for real devices.

use std::io::Write;

use cuda_emulator::count::{CacheModel, Counting};
use cuda_emulator::hardware::{Demand, Estimate, GPUS, estimate};
use cuda_emulator::{Launch, Memory, Options, Program, launch};

use crate::{Command, Failure, axes, list, place};

/// The least time of a launch on every known device that can run it. The kernel runs again for
/// each size of L2 cache, without checks, from the arguments as they were described.
pub(crate) fn estimates(
    command: &Command,
    name: &str,
    ptx: &str,
) -> Result<Vec<Estimate>, Failure> {
    let mut all: Vec<Estimate> = Vec::new();
    let mut counted = Vec::new();
    let mut hardware = None;
    for gpu in GPUS {
        let mut memory = Memory::default();
        let program = Program::load(ptx, &mut memory)?;
        let target = &program.module().target;
        let Some(architecture) = gpu.architecture(target) else { continue };
        let kernel = program.kernel(name)?;
        let shape = Launch {
            grid: axes(&command.grid),
            block: axes(&command.block),
            dynamic_shared: command.shared,
            cluster: command.cluster.as_deref().map(axes),
        };
        let known = counted.iter().find(|(l2, _)| *l2 == gpu.l2).map(|(_, counts)| *counts);
        let counts = match known {
            Some(counts) => counts,
            None => {
                let (arguments, _) = place(command, &mut memory)?;
                let l2 = Some(CacheModel { bytes: gpu.l2 });
                let counting = Counting { memory: true, l2 };
                let options = Options { counting, threads: command.threads, ..Options::fast() };
                let outcome = launch(&kernel, &memory, &shape, arguments.bytes(), &options)?;
                counted.push((gpu.l2, outcome.counts));
                outcome.counts
            }
        };
        let hardware = hardware.get_or_insert_with(|| list::resources(ptx, target));
        let found = hardware.get(&architecture).and_then(|kernels| kernels.get(name));
        let registers = found.map(|found| found.registers);
        let demand = Demand { registers, ..list::demand(command, &kernel) };
        let blocks = shape.grid.into_iter().map(u64::from).product();
        all.extend(estimate(&gpu, &counts, &demand, blocks));
    }
    Ok(all)
}

pub(crate) fn print(estimates: &[Estimate], out: &mut impl Write) -> Result<(), Failure> {
    if estimates.is_empty() {
        return Ok(());
    }
    writeln!(out, "the least time by the counts and data sheets; real kernels take longer:")?;
    for one in estimates {
        let units: Vec<String> = one
            .units
            .iter()
            .skip(1)
            .filter(|(_, time)| *time > 0.0)
            .take(3)
            .map(|(bound, time)| format!("{bound:?} {time:.2}"))
            .collect();
        writeln!(
            out,
            "  {:<8} {:>9.2} us, bound by {:?}; then {}; {} turns of {} blocks, {:.0} % of the warps",
            one.gpu,
            one.microseconds,
            one.bound,
            units.join(", "),
            one.turns.count,
            one.turns.resident,
            100.0 * one.occupancy.share
        )?;
    }
    Ok(())
}
