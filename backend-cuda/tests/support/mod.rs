//! Kernels on the emulator.
#![allow(dead_code, unreachable_pub)] // Each test crate uses a part.

use std::collections::HashMap;
use std::sync::{Mutex, OnceLock};

use backend_cuda::{Hopper, Kernel, Variant, source};
use cuda_emulator::count::{CacheModel, Counting, Counts};
use cuda_emulator::nvrtc::{CompileOptions, Nvrtc};
use cuda_emulator::{Arguments, Launch, Memory, Options, Program, launch};
use half::{bf16, f16};

/// PTX of a kernel; each variant is compiled once.
pub fn compiled(kernel: Kernel, variant: &Variant) -> String {
    static DONE: OnceLock<Mutex<HashMap<(Kernel, Variant), String>>> = OnceLock::new();
    let mut done = DONE.get_or_init(Mutex::default).lock().expect("no test panics in here");
    let ptx = done.entry((kernel, *variant)).or_insert_with(|| {
        let nvrtc = Nvrtc::find().expect("NVRTC can be fetched");
        let mut options = CompileOptions { more: variant.options(), ..CompileOptions::default() };
        if variant.fp8 {
            options.architecture = "compute_89".to_owned();
        }
        if kernel == Kernel::PrefillHopper {
            options.architecture = Hopper::ARCHITECTURE.to_owned();
        }
        let compiled = nvrtc.compile(&source(kernel), kernel.name(), &options);
        compiled.unwrap_or_else(|error| panic!("{error}")).ptx
    });
    ptx.clone()
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
        let program =
            Program::load(&compiled(kernel, variant), &mut self.memory).expect("good PTX");
        let shape = Launch {
            grid: [grid[0], grid[1], 1],
            block: [threads, 1, 1],
            dynamic_shared,
            cluster: None,
        };
        let options =
            Options { counting: Counting { memory: true, l2: self.l2 }, ..Options::default() };
        let kernel = program.kernel(function).unwrap_or_else(|error| panic!("{error}"));
        let outcome = launch(&kernel, &self.memory, &shape, arguments.bytes(), &options)
            .expect("a good launch");
        let errors: Vec<String> = outcome.errors().map(ToString::to_string).collect();
        assert!(errors.is_empty(), "{}", errors.join("\n"));
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
