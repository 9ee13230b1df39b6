//! The conformance suite on each instruction set that this processor has.

use std::sync::Arc;

use backend_cpu::{CpuBackend, CpuOptions, InstructionSet};
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

mod portable {
    testkit::conformance_suite!(super::subject(super::InstructionSet::Portable));
}

mod avx2 {
    testkit::conformance_suite!(super::subject(super::InstructionSet::Avx2));
}

mod avx512 {
    testkit::conformance_suite!(super::subject(super::InstructionSet::Avx512));
}
