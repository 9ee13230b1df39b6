//! The conformance suite on each instruction set that this processor has.

use std::sync::Arc;

use backend_cpu::{CpuBackend, CpuOptions, InstructionSet};
use engine_core::backend::KvFormat;
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

/// The fastest instructions of this processor, with KV in less than f32. The programs of the suite have random weights,
/// whose logits spread by 2 to 6: a tolerance is about twice the largest difference that was seen. Products in less than
/// f32 flip tokens of such programs; tests/precision.rs compares those.
fn reduced(kv_format: KvFormat, tolerance: f32) -> Subject {
    let backend = CpuBackend::with_options(&CpuOptions::new().threads(2));
    let backend = backend.expect("two threads are an option anywhere");
    Subject::new(Arc::new(backend), tolerance).kv_format(kv_format)
}

mod kv_in_f16 {
    use super::*;
    testkit::conformance_suite!(reduced(KvFormat::F16, 0.05));
}

mod kv_in_int8 {
    use super::*;
    testkit::conformance_suite!(reduced(KvFormat::Int8, 0.75));
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
