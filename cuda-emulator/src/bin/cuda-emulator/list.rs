//! What the kernels of a module take: of the machine, and of real devices as ptxas tells.

use std::collections::BTreeMap;
use std::io::Write;

use cuda_emulator::hardware::{Demand, GPUS, Occupancy, Resource, occupancy};
use cuda_emulator::ptxas::{Ptxas, Resources, instructions};
use cuda_emulator::{Kernel, Program};
use serde_json::{Value, json};

use crate::{Command, Failure, axes};

/// What ptxas says about the kernels of a module, by architecture.
pub(crate) type ByArchitecture = BTreeMap<String, BTreeMap<String, Resources>>;

/// Asks ptxas for every architecture of the known devices that the module can run on. Where ptxas
/// can't be had or refuses, that is said, and the rest goes on.
pub(crate) fn resources(ptx: &str, target: &str) -> ByArchitecture {
    let mut all = ByArchitecture::new();
    let complain = |text: String| _ = writeln!(std::io::stderr(), "cuda-emulator: {text}");
    let ptxas = match Ptxas::find() {
        Ok(ptxas) => ptxas,
        Err(error) => {
            complain(format!("registers and spills are not known: {error}"));
            return all;
        }
    };
    for architecture in GPUS.iter().filter_map(|gpu| gpu.architecture(target)) {
        if all.contains_key(&architecture) {
            continue;
        }
        match ptxas.resources(ptx, &architecture) {
            Ok(found) => _ = all.insert(architecture, found),
            Err(error) => complain(error.to_string()),
        }
    }
    all
}

/// Occupancy of every known device that the kernel can run on.
pub(crate) fn occupancies(
    kernel: &str,
    target: &str,
    all: &ByArchitecture,
    demand: &Demand,
) -> Vec<(&'static str, Occupancy)> {
    GPUS.iter()
        .filter_map(|gpu| {
            let found = all.get(&gpu.architecture(target)?)?.get(kernel)?;
            let demand = Demand { registers: Some(found.registers), ..*demand };
            Some((gpu.name, occupancy(&gpu.limits(), &demand)))
        })
        .collect()
}

/// What a block of a kernel takes in a launch as the command line describes it.
pub(crate) fn demand(command: &Command, kernel: &Kernel) -> Demand {
    let threads = axes(&command.block).into_iter().fold(1u32, u32::saturating_mul);
    let shared = u32::try_from(kernel.static_shared_bytes()).unwrap_or(u32::MAX);
    Demand { threads, registers: None, shared: shared.saturating_add(command.shared) }
}

/// Lists the kernels of a module.
pub(crate) fn list(
    command: &Command,
    program: &Program,
    ptx: &str,
    out: &mut impl Write,
) -> Result<(), Failure> {
    let target = &program.module().target;
    let hardware = resources(ptx, target);
    let mut all = Vec::new();
    for name in program.kernel_names() {
        let kernel = match program.kernel(name) {
            Ok(kernel) => kernel,
            Err(error) if command.json => {
                all.push(json!({ "kernel": name, "error": error.to_string() }));
                continue;
            }
            Err(error) => {
                writeln!(out, "{name}\n  can't be run: {error}")?;
                continue;
            }
        };
        let held = occupancies(name, target, &hardware, &demand(command, &kernel));
        if command.json {
            all.push(describe(name, &kernel, &hardware, &held));
        } else {
            print(name, &kernel, &hardware, &held, &demand(command, &kernel), out)?;
        }
    }
    if command.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&all)?)?;
    }
    Ok(())
}

fn sizes(kernel: &Kernel) -> Vec<usize> {
    kernel.parameters().iter().map(|one| one.bytes).collect()
}

fn describe(
    name: &str,
    kernel: &Kernel,
    hardware: &ByArchitecture,
    held: &[(&str, Occupancy)],
) -> Value {
    let by_architecture: BTreeMap<&String, &Resources> =
        hardware.iter().filter_map(|(key, kernels)| Some((key, kernels.get(name)?))).collect();
    let occupancy: BTreeMap<&str, &Occupancy> =
        held.iter().map(|(gpu, occupancy)| (*gpu, occupancy)).collect();
    json!({
        "kernel": name,
        "parameters": sizes(kernel),
        "static_shared": kernel.static_shared_bytes(),
        "local": kernel.local_bytes(),
        "max_threads": kernel.max_threads(),
        "instructions": kernel.instructions(),
        "virtual_registers": kernel.virtual_registers(),
        "ptxas": by_architecture,
        "occupancy": occupancy,
    })
}

fn print(
    name: &str,
    kernel: &Kernel,
    hardware: &ByArchitecture,
    held: &[(&str, Occupancy)],
    demand: &Demand,
    out: &mut impl Write,
) -> Result<(), Failure> {
    writeln!(out, "{name}")?;
    writeln!(out, "  parameters of {:?} bytes", sizes(kernel))?;
    writeln!(
        out,
        "  {} bytes of shared memory, {} of local memory a thread, {} instructions",
        kernel.static_shared_bytes(),
        kernel.local_bytes(),
        kernel.instructions()
    )?;
    for (architecture, kernels) in hardware {
        let Some(found) = kernels.get(name) else { continue };
        writeln!(
            out,
            "  {architecture}: {} registers, {} bytes of shared memory, {} bytes of stack, {} \
             spilled and {} loaded back (ptxas)",
            found.registers, found.shared, found.stack, found.spill_stores, found.spill_loads
        )?;
    }
    for (gpu, occupancy) in held {
        writeln!(
            out,
            "  {gpu}: {} blocks of {} threads a multiprocessor, {:.0} % of the warps; {}",
            occupancy.blocks,
            demand.threads,
            100.0 * occupancy.share,
            limit(occupancy.limit)
        )?;
    }
    Ok(())
}

fn limit(resource: Resource) -> &'static str {
    match resource {
        Resource::Warps => "warps run out first",
        Resource::Blocks => "places for blocks run out first",
        Resource::Registers => "registers run out first",
        Resource::Shared => "shared memory runs out first",
    }
}

/// Shows the machine code of a module and how often each instruction stands in it.
pub(crate) fn machine_code(
    command: &Command,
    ptx: &str,
    architecture: &str,
    out: &mut impl Write,
) -> Result<(), Failure> {
    let code = Ptxas::find()?.machine_code(ptx, architecture)?;
    let counts = instructions(&code);
    if command.json {
        let report = json!({ "architecture": architecture, "instructions": counts, "code": code });
        writeln!(out, "{}", serde_json::to_string_pretty(&report)?)?;
        return Ok(());
    }
    writeln!(out, "{code}")?;
    for (name, count) in counts {
        writeln!(out, "{count:>8} {name}")?;
    }
    Ok(())
}
