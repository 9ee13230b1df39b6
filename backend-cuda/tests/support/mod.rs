//! Kernels on the emulator.
#![allow(dead_code, unreachable_pub)] // Each test crate uses a part.

pub mod attention;
pub mod blocks;
pub mod experts;

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::{Mutex, OnceLock};

use backend_cuda::{Hopper, Kernel, Variant, source};
use cuda_emulator::count::{CacheModel, Cost, Counting, Counts};
use cuda_emulator::nvrtc::{CompileOptions, Nvrtc};
use cuda_emulator::{Arguments, Launch, Memory, Options, Program, Schedule, launch};
use half::{bf16, f16};

/// A kernel with another source than its own, for the tests that this thread runs meanwhile.
pub struct Trial {
    kernel: Kernel,
    source: String,
    schedule: Schedule,
    ptx: HashMap<Variant, String>,
    /// Whether the compiler made anything else of it than of the kernel's own.
    pub differs: bool,
    /// What its launches cost.
    pub costs: Vec<Cost>,
}

thread_local! {
    static TRIAL: RefCell<Option<Trial>> = const { RefCell::new(None) };
}

/// Begins what the emulator reports.
pub const REPORTED: &str = "reported: ";
/// Says that a source does not compile.
pub const REFUSED: &str = "the compiler refuses it";

impl Trial {
    /// Runs `case`, which panics where it finds something wrong; gives what it said.
    pub fn run(
        kernel: Kernel,
        source: &str,
        schedule: Schedule,
        case: &dyn Fn(),
    ) -> (Self, Result<(), String>) {
        let (ptx, costs) = (HashMap::new(), Vec::new());
        let trial =
            Self { kernel, source: source.to_owned(), schedule, ptx, differs: false, costs };
        TRIAL.with_borrow_mut(|current| *current = Some(trial));
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(case));
        let trial = TRIAL.with_borrow_mut(Option::take).expect("it was set above");
        let said = outcome.map_err(|panic| {
            let text = panic.downcast_ref::<String>().cloned();
            text.or_else(|| panic.downcast_ref::<&str>().map(|&text| text.to_owned()))
                .unwrap_or_default()
        });
        (trial, said)
    }
}

/// PTX of a kernel; each variant is compiled once.
pub fn compiled(kernel: Kernel, variant: &Variant) -> String {
    static DONE: OnceLock<Mutex<HashMap<(Kernel, Variant), String>>> = OnceLock::new();
    let known = |ptx: Option<String>| {
        let mut done = DONE.get_or_init(Mutex::default).lock().expect("no test panics in here");
        match ptx {
            Some(ptx) => done.insert((kernel, *variant), ptx),
            None => done.get(&(kernel, *variant)).cloned(),
        }
    };
    let own = known(None).unwrap_or_else(|| {
        // On trial without lines: a line that a mutant moves would be a difference.
        let line_info = TRIAL.with_borrow(Option::is_none);
        let ptx = compile(kernel, variant, &source(kernel), line_info);
        let ptx = ptx.unwrap_or_else(|error| panic!("{error}"));
        known(Some(ptx.clone()));
        ptx
    });
    TRIAL.with_borrow_mut(|trial| {
        let Some(trial) = trial.as_mut().filter(|trial| trial.kernel == kernel) else { return own };
        let source = &trial.source;
        let ptx = trial.ptx.entry(*variant).or_insert_with(|| {
            compile(kernel, variant, source, false).unwrap_or_else(|_| panic!("{REFUSED}"))
        });
        trial.differs |= *ptx != own;
        ptx.clone()
    })
}

fn compile(
    kernel: Kernel,
    variant: &Variant,
    source: &str,
    line_info: bool,
) -> Result<String, String> {
    let nvrtc = Nvrtc::find().map_err(|error| error.to_string())?;
    let mut options = CompileOptions { more: variant.options(), ..CompileOptions::default() };
    options.line_info = line_info;
    if variant.fp8 {
        options.architecture = "compute_89".to_owned();
    }
    if kernel == Kernel::PrefillHopper {
        options.architecture = Hopper::ARCHITECTURE.to_owned();
    }
    let compiled = nvrtc.compile(source, kernel.name(), &options);
    compiled.map(|compiled| compiled.ptx).map_err(|error| error.to_string())
}

/// A device.
#[derive(Default)]
pub struct Device {
    pub memory: Memory,
    /// The L2 cache that is counted for.
    pub l2: Option<CacheModel>,
}

impl Device {
    pub fn upload<T: bytemuck::NoUninit>(&mut self, values: &[T]) -> u64 {
        self.memory.upload(values).expect("there is memory")
    }

    pub fn room<T>(&mut self, count: usize) -> u64 {
        self.memory.allocate((count.max(1) * size_of::<T>()) as u64).expect("there is memory")
    }

    pub fn download<T: bytemuck::Pod>(&self, address: u64, count: usize) -> Vec<T> {
        self.memory.download(address, count).expect("the address is good")
    }

    /// Runs a kernel with all checks; panics with what the checks find. An empty grid runs nothing.
    pub fn run(
        &mut self,
        kernel: Kernel,
        variant: &Variant,
        grid: [u32; 2],
        threads: u32,
        dynamic_shared: u32,
        arguments: &Arguments,
    ) -> Counts {
        self.run_function(kernel, kernel.name(), variant, grid, threads, dynamic_shared, arguments)
    }

    /// As [`Self::run`], for a function of a file that holds several.
    #[allow(clippy::too_many_arguments)] // A launch has this many.
    pub fn run_function(
        &mut self,
        kernel: Kernel,
        function: &str,
        variant: &Variant,
        grid: [u32; 2],
        threads: u32,
        dynamic_shared: u32,
        arguments: &Arguments,
    ) -> Counts {
        if grid.contains(&0) {
            return Counts::default();
        }
        let file = kernel;
        let program =
            Program::load(&compiled(kernel, variant), &mut self.memory).expect("good PTX");
        let shape = Launch {
            grid: [grid[0], grid[1], 1],
            block: [threads, 1, 1],
            dynamic_shared,
            cluster: None,
        };
        let mut options =
            Options { counting: Counting { memory: true, l2: self.l2 }, ..Options::default() };
        let is_on_trial = TRIAL.with_borrow(|trial| {
            let trial = trial.as_ref().filter(|trial| trial.kernel == file);
            if let Some(trial) = trial {
                // A mutant may never end.
                options.instruction_limit = 1 << 22;
                options.schedule = trial.schedule;
                options.threads = Some(1);
            }
            trial.is_some()
        });
        let kernel = program.kernel(function).unwrap_or_else(|error| panic!("{error}"));
        let outcome = launch(&kernel, &self.memory, &shape, arguments.bytes(), &options)
            .expect("a good launch");
        let errors: Vec<String> =
            outcome.errors().chain(outcome.warnings()).map(ToString::to_string).collect();
        assert!(errors.is_empty(), "{REPORTED}{}", errors.join("\n"));
        if is_on_trial {
            let cost = Cost::new(&kernel, &outcome);
            TRIAL.with_borrow_mut(|trial| trial.as_mut().map(|trial| trial.costs.push(cost)));
        }
        outcome.counts
    }
}

/// Numbers that look random and are the same in every run.
pub struct Numbers(u64);

impl Numbers {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        // xorshift64*
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn below(&mut self, end: u32) -> u32 {
        (self.next() >> 33) as u32 % end.max(1)
    }

    /// From -1 to 1.
    pub fn real(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    pub fn reals(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.real()).collect()
    }
}

/// The bits that a variant stores a number as, and the number that they are.
pub fn stored(variant: &Variant, x: f32) -> (u16, f32) {
    if variant.half {
        let x = f16::from_f32(x);
        (x.to_bits(), x.to_f32())
    } else {
        let x = bf16::from_f32(x);
        (x.to_bits(), x.to_f32())
    }
}

/// What stored bits are.
pub fn number(variant: &Variant, bits: u16) -> f32 {
    if variant.half { f16::from_bits(bits).to_f32() } else { bf16::from_bits(bits).to_f32() }
}

/// The number that an e4m3 byte is.
pub fn e4m3(byte: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(byte >> 3 & 15), f32::from(byte & 7));
    let magnitude = match exponent {
        0 => mantissa / 8.0 * 2f32.powi(-6),
        _ => (1.0 + mantissa / 8.0) * 2f32.powi(exponent - 7),
    };
    if byte & 0x80 == 0 { magnitude } else { -magnitude }
}

/// Root mean square of the differences over that of the right values.
pub fn relative_error(got: &[f32], right: &[f64]) -> f64 {
    assert_eq!(got.len(), right.len());
    let square = |x: f64| x * x;
    let wrong: f64 =
        got.iter().zip(right).map(|(&got, &right)| square(f64::from(got) - right)).sum();
    let all: f64 = right.iter().map(|&right| square(right)).sum();
    assert!(wrong.is_finite(), "a number is not finite");
    (wrong / all.max(f64::MIN_POSITIVE)).sqrt()
}
