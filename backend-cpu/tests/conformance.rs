//! The conformance suite on each instruction set that this processor has.

use std::sync::Arc;

use backend_cpu::{CpuBackend, CpuOptions, InstructionSet};
use engine_core::backend::{Compute, KvFormat};
use testkit::conformance::Subject;

/// Largest difference of a log probability to the interpreter, which accumulates in f64. Most cases
/// stay below 2e-5.
const TOLERANCE: f32 = 1e-4;

/// Two threads, so that work is divided even where the machine has one core.
fn subject(instruction_set: InstructionSet) -> Option<Subject> {
    let options = CpuOptions::new().threads(2).instruction_set(instruction_set);
    match CpuBackend::with_options(&options) {
        Ok(backend) => Some(Subject::new(Arc::new(backend), TOLERANCE)),
        Err(error) => {
            eprintln!("{error}");
            None
        }
    }
}

/// The fastest instructions of this processor, in less than f32. The programs of the suite have random weights, and log
/// probabilities down to -90: the largest differences seen are 0.023, 0.34 and 0.91. Products
/// with bytes differ by up to 1.9, which compares nothing; tests/precision.rs has their bits.
fn reduced(compute: Compute, kv_format: KvFormat, tolerance: f32) -> Subject {
    let backend = CpuBackend::with_options(&CpuOptions::new().threads(2));
    let backend = backend.expect("two threads are an option anywhere");
    Subject::new(Arc::new(backend), tolerance).compute(compute).kv_format(kv_format)
}

mod kv_in_f16 {
    use super::*;
    testkit::conformance_suite!(reduced(Compute::Exact, KvFormat::F16, 0.05));
}

mod kv_in_int8 {
    use super::*;
    testkit::conformance_suite!(reduced(Compute::Exact, KvFormat::Int8, 0.75));
}

mod bf16 {
    use super::*;
    testkit::conformance_suite!(reduced(Compute::Bf16, KvFormat::Bf16, 1.25));
}

mod portable {
    testkit::conformance_suite!(super::subject(super::InstructionSet::Portable));
}

mod avx2 {
    testkit::conformance_suite!(super::subject(super::InstructionSet::Avx2));
}

mod avx512 {
    testkit::conformance_suite!(super::subject(super::InstructionSet::Avx512));
}
