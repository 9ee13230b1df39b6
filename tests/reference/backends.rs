//! The backends that this suite runs on, and the models of the fixtures on each of them.

use backend_cpu::{CpuBackend, CpuOptions, InstructionSet};
use engine_core::backend::Backend;
use engine_core::model::open_model;
use testkit::interpreter::Interpreter;

use crate::comparison::check_model;
use crate::fixtures;

pub(crate) fn check_directory(name: &str) {
    let model = open_model(&fixtures::path(&format!("tiny/{name}"))).unwrap();
    let expected = fixtures::read(&format!("tiny/{name}/expected.json"));
    check_model(&backends(), name, &model, &expected);
}

pub(crate) fn check_gguf(name: &str) {
    let model = open_model(&fixtures::path(&format!("tiny-gguf/{name}.gguf"))).unwrap();
    let expected = fixtures::read(&format!("tiny-gguf/{name}.expected.json"));
    check_model(&backends(), name, &model, &expected);
}

/// The interpreter, and each instruction set that this processor has.
pub(crate) fn backends() -> Vec<Box<dyn Backend>> {
    let sets = [InstructionSet::Portable, InstructionSet::Avx2, InstructionSet::Avx512];
    let mut backends: Vec<Box<dyn Backend>> = vec![Box::new(Interpreter)];
    for set in sets {
        match CpuBackend::with_options(&CpuOptions::new().threads(2).instruction_set(set)) {
            Ok(backend) => backends.push(Box::new(backend)),
            Err(error) => eprintln!("not run: {error}"),
        }
    }
    backends
}
