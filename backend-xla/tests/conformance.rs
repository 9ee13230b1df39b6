//! The suite that every backend passes, on XLA's CPU plugin.

mod common;

use std::sync::Arc;

use backend_xla::{XlaBackend, XlaOptions};
use testkit::conformance::Subject;

/// Most of the suite's time is compilation, and many cases compile the same modules.
fn options(devices: usize) -> XlaOptions {
    let mut options = XlaOptions::cpu(common::plugin().path(), devices);
    options.compiler_flags = vec![("xla_backend_optimization_level".into(), "0".into())];
    let folder = concat!(env!("CARGO_TARGET_TMPDIR"), "/xla-executables");
    options.with_cache(folder)
}

/// XLA picks its kernels by shape, and there is no host tier.
const SKIPS: &[&str] = &[
    "the_batch_changes_no_bit",
    "chunking_changes_no_bit",
    "the_page_size_changes_no_bit",
    "pages_come_back_from_the_host_tier",
];

/// Logits of several hundreds occur, of which an f32 keeps seven digits.
const F32_TOLERANCE: f32 = 1e-3;

mod one_device {
    use super::*;

    fn subject() -> Subject {
        let backend = XlaBackend::new(options(1)).expect("a backend");
        Subject::new(Arc::new(backend), F32_TOLERANCE).skips(SKIPS)
    }

    testkit::conformance_suite!(subject());
}
