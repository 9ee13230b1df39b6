//! The suite that every backend passes, on XLA's CPU plugin: on one device and on several, in f32
//! and in bf16.

mod common;

use std::sync::Arc;

use backend_xla::{XlaBackend, XlaOptions};
use engine_core::{backend::KvFormat, weights::Format};
use testkit::conformance::Subject;

/// XLA picks its kernels by shape, and there is no host tier.
const SKIPS: &[&str] = &[
    "the_batch_changes_no_bit",
    "chunking_changes_no_bit",
    "the_page_size_changes_no_bit",
    // `outputs.rs` has the same with logits that don't depend on the shape.
    "a_verified_draft_is_sampled_as_plain_steps_are",
    "pages_come_back_from_the_host_tier",
    "company_changes_no_bit_of_experts",
];

/// The largest difference in any case is 4.4e-5, on 1, 2 and 4 devices alike.
const F32_TOLERANCE: f32 = 1e-4;

/// The largest difference in any case is 0.53, at log probabilities down to -16. A bf16 has 8
/// significant bits, so a value of that size is rounded by up to 0.03 each time it is stored.
const BF16_TOLERANCE: f32 = 0.75;

fn subject(devices: usize, compute: Format, tolerance: f32) -> Subject {
    let mut options = XlaOptions::cpu(common::plugin().path(), devices).compute(compute);
    // Most of the suite's time is compilation, and many cases compile the same modules.
    options.compiler_flags = vec![("xla_backend_optimization_level".into(), "0".into())];
    let options = options.cache(concat!(env!("CARGO_TARGET_TMPDIR"), "/xla-executables"));
    let backend = XlaBackend::new(options).expect("a backend");
    Subject::new(Arc::new(backend), tolerance).skips(SKIPS)
}

mod one_device {
    use super::*;

    testkit::conformance_suite!(subject(1, Format::F32, F32_TOLERANCE));
}

mod two_devices {
    use super::*;

    testkit::conformance_suite!(subject(2, Format::F32, F32_TOLERANCE));
}

mod four_devices {
    use super::*;

    testkit::conformance_suite!(subject(4, Format::F32, F32_TOLERANCE));
}

mod bf16 {
    use super::*;

    // KV is kept in bf16 too.
    testkit::conformance_suite!(subject(1, Format::BF16, BF16_TOLERANCE).kv_format(KvFormat::Bf16));
}
