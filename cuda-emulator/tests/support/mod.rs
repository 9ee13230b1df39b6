//! What the tests of kernels share.
#![allow(dead_code, unreachable_pub)] // Each test crate uses a part.

pub mod attention;
pub mod cases;

use cuda_emulator::{Arguments, Launch, Memory, Options, Outcome, Program, launch};

/// A device with a module on it.
pub struct Device {
    pub memory: Memory,
    program: Program,
}

impl Device {
    pub fn new(ptx: &str) -> Self {
        let mut memory = Memory::default();
        let program = Program::load(ptx, &mut memory).expect("the PTX is good");
        Self { memory, program }
    }

    pub fn upload<T: bytemuck::NoUninit>(&mut self, values: &[T]) -> u64 {
        self.memory.upload(values).expect("there is memory")
    }

    pub fn room<T>(&mut self, count: usize) -> u64 {
        self.memory.allocate((count * size_of::<T>()) as u64).expect("there is memory")
    }

    pub fn download<T: bytemuck::Pod>(&self, address: u64, count: usize) -> Vec<T> {
        self.memory.download(address, count).expect("the address is good")
    }

    pub fn run(
        &self,
        kernel: &str,
        shape: Launch,
        arguments: &Arguments,
        options: &Options,
    ) -> Outcome {
        let kernel = self.program.kernel(kernel).unwrap_or_else(|error| panic!("{error}"));
        launch(&kernel, &self.memory, &shape, arguments.bytes(), options).expect("a good launch")
    }
}

pub fn shape(grid: [u32; 3], threads: u32) -> Launch {
    Launch { grid, block: [threads, 1, 1], dynamic_shared: 0, cluster: None }
}

/// Panics with the reports of what is wrong, warnings included.
pub fn assert_clean(outcome: &Outcome) {
    let errors: Vec<String> =
        outcome.errors().chain(outcome.warnings()).map(ToString::to_string).collect();
    assert!(errors.is_empty(), "{}", errors.join("\n"));
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

    /// From -1 to 1.
    pub fn real(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    pub fn reals(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.real()).collect()
    }

    /// As bf16 bits.
    pub fn halves(&mut self, count: usize) -> Vec<u16> {
        (0..count).map(|_| narrow(self.real())).collect()
    }
}

pub fn widen(bits: u16) -> f64 {
    f64::from(f32::from_bits(u32::from(bits) << 16))
}

/// bf16 by truncation: good enough for inputs.
pub fn narrow(value: f32) -> u16 {
    (value.to_bits() >> 16) as u16
}

/// The root of the mean square error over that of the values.
pub fn error(found: &[f64], expected: &[f64]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let square = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>();
    let difference = square(&mut found.iter().zip(expected).map(|(a, b)| a - b));
    (difference / square(&mut expected.iter().copied())).sqrt()
}
