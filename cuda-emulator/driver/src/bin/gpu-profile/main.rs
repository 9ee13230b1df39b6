//! Runs kernels on a real GPU through the real driver and in the emulator, compares what they give,
//! and writes a report.
//!
//!     cargo run --release -p cuda-emulator-driver --bin gpu-profile -- --report FILE
//!
//! Ends with 0 when all results agree, 1 when some don't, 2 when something can't be run, and 3 when
//! there is no device.

mod cases;
mod device;
mod profiler;
mod report;

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use cases::{Case, Values};
use clap::Parser;
use cuda_emulator::count::{CacheModel, Counting, Counts};
use cuda_emulator::hardware::{Demand, Estimate, GPUS, estimate};
use cuda_emulator::{Memory, Options, Program, TensorMap, launch};
use device::{Device, DeviceError};
use report::{Line, Report};

/// Compares a real GPU with the emulator.
#[derive(Debug, Parser)]
#[command(version)]
struct Command {
    /// Which device.
    #[arg(long, default_value_t = 0)]
    device: i32,
    /// Where to write the report; the standard output without this.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Runs only the kernel of this name.
    #[arg(long)]
    only: Option<String>,
    /// Runs each kernel once on the device and nothing else: what the profiler looks at.
    #[arg(long, hide = true)]
    once: bool,
    /// Takes the emulator's stand-in driver for a device: a test of this program.
    #[arg(long, hide = true)]
    stand_in: bool,
}

const NO_DEVICE: u8 = 3;

fn main() -> ExitCode {
    let command = Command::parse();
    match execute(&command) {
        Ok(agree) => ExitCode::from(u8::from(!agree)),
        Err(Failure::NoDevice(reason)) => say(&format!("no device: {reason}"), NO_DEVICE),
        Err(Failure::Other(error)) => say(&error.to_string(), 2),
    }
}

fn say(text: &str, code: u8) -> ExitCode {
    // Nothing is left to do if the error can't be written.
    _ = writeln!(io::stderr(), "gpu-profile: {text}");
    ExitCode::from(code)
}

#[derive(Debug)]
enum Failure {
    NoDevice(String),
    Other(Box<dyn std::error::Error>),
}

impl<E: Into<Box<dyn std::error::Error>>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Other(error.into())
    }
}

/// Whether all results agree.
fn execute(command: &Command) -> Result<bool, Failure> {
    let device = Device::open(command.device).map_err(|error| match error {
        DeviceError::None(reason) => Failure::NoDevice(reason),
        other => other.into(),
    })?;
    if device.is_stand_in() && !command.stand_in {
        return Err(Failure::NoDevice("the driver is the emulator's stand-in".to_owned()));
    }
    let chosen = |case: &Case| {
        command.only.as_ref().is_none_or(|name| *name == case.name)
            && case.capability.is_none_or(|capability| capability == device.capability())
    };
    let cases: Vec<Case> = cases::all().into_iter().filter(chosen).collect();
    if cases.is_empty() {
        return Err("there is no such kernel for this device".into());
    }
    if command.once {
        for case in &cases {
            device.run(case, 0)?;
        }
        return Ok(true);
    }
    let mut report = Report::new(&device);
    for case in &cases {
        report.lines.push(compare(&device, case)?);
    }
    report.profiler = profiler::profile(command.device, &cases);
    let text = report.to_string();
    match &command.report {
        Some(path) => {
            if let Some(folder) = path.parent() {
                std::fs::create_dir_all(folder)?;
            }
            std::fs::write(path, &text)?;
            writeln!(io::stdout(), "{}", path.display())?;
        }
        None => write!(io::stdout(), "{text}")?,
    }
    Ok(report.lines.iter().all(|line| line.agrees()))
}

/// Runs a kernel on both.
fn compare(device: &Device, case: &Case) -> Result<Line, Failure> {
    // The stand-in's times say nothing.
    let rounds = if device.is_stand_in() { 1 } else { 20 };
    let measured = device.run(case, rounds)?;
    let gpu = GPUS.iter().find(|gpu| device.name().contains(gpu.name));
    let l2 = gpu.map(|gpu| CacheModel { bytes: gpu.l2 });
    let (expected, counts, shared) = emulate(case, l2)?;
    let registers = Some(measured.registers);
    let threads = case.shape.block.into_iter().product();
    let demand = Demand { threads, registers, shared: shared + case.shape.dynamic_shared };
    let blocks = case.shape.grid.into_iter().map(u64::from).product();
    let least: Option<Estimate> = gpu.and_then(|gpu| estimate(gpu, &counts, &demand, blocks));
    let errors = case
        .outputs()
        .zip(measured.outputs.iter().zip(&expected))
        .map(|(output, (found, expected))| {
            let error =
                Values::read(output.element, expected).error(&Values::read(output.element, found));
            (error, output.tolerance)
        })
        .collect();
    Ok(Line {
        name: case.name,
        errors,
        registers: measured.registers,
        microseconds: measured.microseconds,
        least: least.map(|one| one.microseconds),
        counts,
    })
}

/// What the emulator gives: outputs, counts, and static shared memory.
fn emulate(case: &Case, l2: Option<CacheModel>) -> Result<(Vec<Vec<u8>>, Counts, u32), Failure> {
    let mut memory = Memory::default();
    let program = Program::load(case.ptx, &mut memory)?;
    let kernel = program.kernel(case.name)?;
    let mut places = Vec::new();
    let mut block = Vec::new();
    for argument in &case.arguments {
        let address = match argument.bytes() {
            Some(bytes) => Some(memory.allocate(bytes as u64)?),
            None => None,
        };
        if let (Some(address), Some(content)) = (address, argument.content()) {
            memory.write(address, content)?;
        }
        argument.append(&mut block, address, TensorMap::encode)?;
        places.push(address);
    }
    let options = Options { counting: Counting { memory: true, l2 }, ..Options::default() };
    let outcome = launch(&kernel, &memory, &case.shape, &block, &options)?;
    if let Some(report) = outcome.errors().next() {
        return Err(report.to_string().into());
    }
    let mut outputs = Vec::new();
    for (argument, address) in case.arguments.iter().zip(places) {
        if let (Some(_), Some(bytes), Some(address)) =
            (argument.output(), argument.bytes(), address)
        {
            outputs.push(memory.download::<u8>(address, bytes)?);
        }
    }
    Ok((outputs, outcome.counts, kernel.static_shared_bytes() as u32))
}
