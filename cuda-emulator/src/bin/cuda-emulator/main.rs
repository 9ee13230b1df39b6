//! Compiles a CUDA file, lists its kernels, or runs one of them under the checks.
//!
//!     cuda-emulator kernel.cu
//!     cuda-emulator kernel.cu --kernel scale --grid 4 --block 256 --arg 'f32[1000]=random' --arg f32:2
//!
//! It ends with 0 when nothing is wrong, with 1 when the checks found something, and with 2 when
//! the kernel could not be run.

mod argument;
mod list;
mod roofline;

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use argument::Argument;
use clap::Parser;
use cuda_emulator::check::{Checks, NAMES, Severity};
use cuda_emulator::count::{CLASSES, CacheModel, Cost, Counting, Counts, Excess};
use cuda_emulator::nvrtc::{CompileOptions, Nvrtc};
use cuda_emulator::{Arguments, Launch, Memory, Options, Outcome, Program, Schedule, launch};
use serde_json::json;

/// Runs and sanitizes CUDA kernels on a machine with no GPU.
#[derive(Debug, Parser)]
#[command(version)]
struct Command {
    /// A .cu file, which NVRTC compiles, or a .ptx file.
    file: PathBuf,
    /// The virtual architecture to compile for.
    #[arg(long, default_value = "compute_80")]
    arch: String,
    /// A directory of headers; the file's own is searched first.
    #[arg(short = 'I', long = "include", value_name = "DIRECTORY")]
    include: Vec<PathBuf>,
    /// Fetches the headers of the CUDA toolkit (cuda_fp16.h and others) and searches them too.
    #[arg(long)]
    toolkit: bool,
    /// An option for NVRTC, such as -DNAME=1 or --use_fast_math.
    #[arg(long = "option", value_name = "OPTION", allow_hyphen_values = true)]
    option: Vec<String>,
    /// Where to write the PTX.
    #[arg(long, value_name = "FILE")]
    ptx: Option<PathBuf>,
    /// The kernel to run; without one the kernels are listed.
    #[arg(long)]
    kernel: Option<String>,
    /// Blocks along x, y and z.
    #[arg(long, default_value = "1", value_delimiter = ',', num_args = 1..=3)]
    grid: Vec<u32>,
    /// Blocks of a cluster along x, y and z; what the kernel says if not given.
    #[arg(long, value_delimiter = ',', num_args = 1..=3)]
    cluster: Option<Vec<u32>>,
    /// Threads of a block along x, y and z.
    #[arg(long, default_value = "32", value_delimiter = ',', num_args = 1..=3)]
    block: Vec<u32>,
    /// Bytes of dynamic shared memory.
    #[arg(long, default_value_t = 0)]
    shared: u32,
    /// An argument of the kernel, in order: a number `i32:5`, or a buffer `f32[64]`,
    /// `f32[64]=zero`, `=ones`, `=iota`, `=random`, `=random:SEED` or `=@FILE`.
    #[arg(long = "arg", value_name = "ARGUMENT", allow_hyphen_values = true)]
    argument: Vec<Argument>,
    /// What is checked: `all`, `none`, or names with commas between.
    #[arg(long, value_name = "CHECKS", default_value = "all", num_args = 0..=1, default_missing_value = "all")]
    sanitize: String,
    /// Checks to leave out.
    #[arg(long, value_name = "CHECKS", value_delimiter = ',')]
    without: Vec<String>,
    /// Runs blocks and warps in a random order.
    #[arg(long, value_name = "SEED")]
    seed: Option<u64>,
    /// Puts approximate instructions off by as much as they may be.
    #[arg(long, value_name = "SEED")]
    perturb: Option<u32>,
    /// Host threads; one for each core without this.
    #[arg(long)]
    threads: Option<usize>,
    /// Models an L2 cache of this size in megabytes.
    #[arg(long, value_name = "MEGABYTES")]
    l2: Option<u64>,
    /// Estimates the least time of the launch on real devices from its counts.
    #[arg(long)]
    roofline: bool,
    /// Writes what the launch costs: its counts, and what the kernel declares.
    #[arg(long, value_name = "FILE")]
    record: Option<PathBuf>,
    /// Fails if the launch costs more than `--record` wrote.
    #[arg(long, value_name = "FILE")]
    gate: Option<PathBuf>,
    /// Shows the machine code that ptxas makes for an architecture.
    #[arg(long, value_name = "ARCHITECTURE", num_args = 0..=1, default_missing_value = "sm_80")]
    sass: Option<String>,
    /// How many values of each buffer to show after the run.
    #[arg(long, default_value_t = 0)]
    show: usize,
    /// Writes JSON.
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    let command = Command::parse();
    let result = execute(&command, &mut io::stdout().lock());
    match result {
        Ok(clean) => ExitCode::from(u8::from(!clean)),
        Err(error) => {
            // Nothing is left to do if the error can't be written.
            _ = writeln!(io::stderr(), "cuda-emulator: {error}");
            ExitCode::from(2)
        }
    }
}

type Failure = Box<dyn std::error::Error>;

/// Whether nothing is wrong.
fn execute(command: &Command, out: &mut impl Write) -> Result<bool, Failure> {
    let ptx = ptx(command)?;
    if let Some(path) = &command.ptx {
        std::fs::write(path, &ptx)?;
    }
    if let Some(architecture) = &command.sass {
        list::machine_code(command, &ptx, architecture, out)?;
        return Ok(true);
    }
    let mut memory = Memory::default();
    let program = Program::load(&ptx, &mut memory)?;
    match &command.kernel {
        None => {
            list::list(command, &program, &ptx, out)?;
            Ok(true)
        }
        Some(name) => run(command, &program, name, memory, &ptx, out),
    }
}

fn ptx(command: &Command) -> Result<String, Failure> {
    let in_file = |error: io::Error| format!("{}: {error}", command.file.display());
    let text = std::fs::read_to_string(&command.file).map_err(in_file)?;
    if command.file.extension().is_some_and(|extension| extension == "ptx") {
        return Ok(text);
    }
    let mut include = vec![command.file.parent().unwrap_or(Path::new("")).to_owned()];
    if include == [PathBuf::new()] {
        include = vec![PathBuf::from(".")];
    }
    include.extend(command.include.iter().cloned());
    if command.toolkit {
        include.extend(cuda_emulator::nvrtc::toolkit_headers()?);
    }
    let options = CompileOptions {
        architecture: command.arch.clone(),
        include,
        line_info: true,
        more: command.option.clone(),
    };
    let compiled = Nvrtc::find()?.compile(&text, &command.file.to_string_lossy(), &options)?;
    if !compiled.log.trim().is_empty() {
        writeln!(io::stderr(), "{}", compiled.log.trim())?;
    }
    Ok(compiled.ptx)
}

fn checks(command: &Command) -> Result<Checks, Failure> {
    let mut checks = match command.sanitize.as_str() {
        "all" => Checks::default(),
        "none" => Checks::none(),
        names => {
            let mut checks = Checks::none();
            for name in names.split(',') {
                switch(&mut checks, name, true)?;
            }
            checks
        }
    };
    for name in &command.without {
        switch(&mut checks, name, false)?;
    }
    Ok(checks)
}

fn switch(checks: &mut Checks, name: &str, on: bool) -> Result<(), Failure> {
    if checks.set(name, on) {
        return Ok(());
    }
    Err(format!("no check {name:?}; there are all, none, {}", NAMES.join(", ")).into())
}

fn axes(values: &[u32]) -> [u32; 3] {
    std::array::from_fn(|axis| values.get(axis).copied().unwrap_or(1))
}

fn run(
    command: &Command,
    program: &Program,
    name: &str,
    mut memory: Memory,
    ptx: &str,
    out: &mut impl Write,
) -> Result<bool, Failure> {
    let kernel = program.kernel(name)?;
    let expected = kernel.parameters().len();
    if expected != command.argument.len() {
        let found = command.argument.len();
        return Err(format!("{name} takes {expected} arguments, {found} are given").into());
    }
    let (arguments, buffers) = place(command, &mut memory)?;
    let options = Options {
        checks: checks(command)?,
        counting: Counting {
            memory: true,
            l2: command.l2.map(|megabytes| CacheModel { bytes: megabytes << 20 }),
        },
        threads: command.threads,
        schedule: command.seed.map_or(Schedule::InOrder, Schedule::Random),
        perturb: command.perturb,
        ..Options::default()
    };
    let shape = Launch {
        grid: axes(&command.grid),
        block: axes(&command.block),
        dynamic_shared: command.shared,
        cluster: command.cluster.as_deref().map(axes),
    };
    let outcome = launch(&kernel, &memory, &shape, arguments.bytes(), &options)?;
    let excess = gate(command, &Cost::new(&kernel, &outcome))?;
    let shown: Vec<Vec<f64>> = buffers
        .iter()
        .filter(|_| command.show > 0)
        .map(|buffer| buffer.values(&memory, command.show))
        .collect::<Result<_, _>>()?;
    let estimates =
        if command.roofline { roofline::estimates(command, name, ptx)? } else { Vec::new() };
    if command.json {
        let report = json!({
            "kernel": name,
            "roofline": estimates,
            "reports": outcome.reports,
            "counts": outcome.counts,
            "excess": excess,
            "buffers": shown,
        });
        writeln!(out, "{}", serde_json::to_string_pretty(&report)?)?;
    } else {
        print(&outcome, &shown, options.counting.l2.is_some(), out)?;
        for one in &excess {
            writeln!(out, "{one}")?;
        }
        roofline::print(&estimates, out)?;
    }
    Ok(outcome.errors().next().is_none() && excess.is_empty())
}

/// Records what a launch costs, and tells what is above an earlier record.
fn gate(command: &Command, cost: &Cost) -> Result<Vec<Excess>, Failure> {
    let in_file =
        |path: &Path, error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    let mut excess = Vec::new();
    if let Some(path) = &command.gate {
        let text = std::fs::read_to_string(path).map_err(|error| in_file(path, &error))?;
        let recorded = serde_json::from_str(&text).map_err(|error| in_file(path, &error))?;
        excess = cost.excess_over(&recorded);
    }
    if let Some(path) = &command.record {
        let text = serde_json::to_string_pretty(cost)? + "\n";
        std::fs::write(path, text).map_err(|error| in_file(path, &error))?;
    }
    Ok(excess)
}

/// Puts the arguments into device memory: the parameter block, and the buffers.
fn place(
    command: &Command,
    memory: &mut Memory,
) -> Result<(Arguments, Vec<argument::Buffer>), Failure> {
    let mut arguments = Arguments::new();
    let mut buffers = Vec::new();
    for argument in &command.argument {
        let place = argument.place(memory)?;
        arguments = place.append(arguments);
        buffers.extend(place.buffer());
    }
    Ok((arguments, buffers))
}

fn print(
    outcome: &Outcome,
    shown: &[Vec<f64>],
    with_l2: bool,
    out: &mut impl Write,
) -> Result<(), Failure> {
    for report in &outcome.reports {
        writeln!(out, "{report}\n")?;
    }
    let (errors, warnings) = (outcome.errors().count(), outcome.warnings().count());
    let advice = outcome.reports.iter().filter(|r| r.severity == Severity::Advice).count();
    writeln!(out, "{errors} errors, {warnings} warnings, {advice} pieces of advice")?;
    print_counts(&outcome.counts, with_l2, out)?;
    for (index, values) in shown.iter().enumerate() {
        writeln!(out, "buffer {index}: {values:?}")?;
    }
    Ok(())
}

fn print_counts(counts: &Counts, with_l2: bool, out: &mut impl Write) -> Result<(), Failure> {
    writeln!(
        out,
        "{} blocks, {} warp instructions, {} by threads",
        counts.blocks,
        counts.warp_instructions(),
        counts.lane_instructions
    )?;
    for class in CLASSES {
        let count = counts.of(class);
        if count > 0 {
            writeln!(out, "  {class:?}: {count}")?;
        }
    }
    writeln!(
        out,
        "device memory: {} bytes loaded in {} sectors, {} stored in {}",
        counts.global_bytes_loaded,
        counts.sectors_loaded,
        counts.global_bytes_stored,
        counts.sectors_stored
    )?;
    if with_l2 {
        writeln!(
            out,
            "modelled L2: {} sectors missed, {} written back",
            counts.l2_misses, counts.l2_write_backs
        )?;
    }
    writeln!(
        out,
        "shared memory: {} accesses, {} wavefronts, {} without conflicts; {} barriers",
        counts.shared_accesses,
        counts.shared_wavefronts,
        counts.shared_wavefronts_ideal,
        counts.barriers
    )?;
    if counts.tensor_operations > 0 {
        writeln!(out, "tensor cores: {} operations", counts.tensor_operations)?;
    }
    Ok(())
}
