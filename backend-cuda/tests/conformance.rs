//! The conformance suite through unmodified cudarc, on the stand-in driver, in f16 and in bfloat16.

mod stand_in;

use std::sync::{Arc, OnceLock};

use backend_api::KvFormat;
use backend_cuda::{CudaBackend, CudaOptions};
use testkit::conformance::Subject;

/// What depends on a row's company: nothing is promised.
const SKIPS: [&str; 5] = [
    "a_verified_draft_is_sampled_as_plain_steps_are",
    "chunking_changes_no_bit",
    "company_changes_no_bit_of_experts",
    "the_batch_changes_no_bit",
    "the_page_size_changes_no_bit",
];

/// One backend for all tests of a precision: kernels are compiled once.
fn shared(half: bool, place: &'static OnceLock<Arc<CudaBackend>>) -> Arc<CudaBackend> {
    let new = || Arc::new(stand_in::backend(CudaOptions::new().half(half)));
    Arc::clone(place.get_or_init(new))
}

mod f16 {
    use super::*;

    /// Largest difference of a log probability to the interpreter: activations have 11 bits of mantissa.
    const TOLERANCE: f32 = 0.25;

    fn subject() -> Subject {
        static BACKEND: OnceLock<Arc<CudaBackend>> = OnceLock::new();
        Subject::new(shared(true, &BACKEND), TOLERANCE).kv_format(KvFormat::F16).skips(&SKIPS)
    }

    testkit::conformance_suite!(subject());
}

mod bfloat16 {
    use super::*;

    /// As above: activations have 8 bits of mantissa.
    const TOLERANCE: f32 = 0.8;

    fn subject() -> Subject {
        static BACKEND: OnceLock<Arc<CudaBackend>> = OnceLock::new();
        Subject::new(shared(false, &BACKEND), TOLERANCE).kv_format(KvFormat::Bf16).skips(&SKIPS)
    }

    testkit::conformance_suite!(subject());
}
