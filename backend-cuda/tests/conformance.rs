//! The conformance suite through unmodified cudarc, on the stand-in driver, in f16 and in bfloat16.

mod stand_in;

use std::sync::{Arc, OnceLock};

use backend_api::KvFormat;
use backend_cuda::{CudaBackend, CudaOptions};
use testkit::conformance::Subject;

/// What depends on a row's company: nothing is promised. Then mixtures of experts, for which there is no kernel yet.
const SKIPS: [&str; 30] = [
    "a_verified_draft_is_sampled_as_plain_steps_are",
    "chunking_changes_no_bit",
    "company_changes_no_bit_of_experts",
    "the_batch_changes_no_bit",
    "the_page_size_changes_no_bit",
    "equal_scores_choose_the_lower_expert",
    "experts_add_their_own_biases",
    "experts_are_weighed_by_their_scores",
    "experts_take_one_row_and_many",
    "experts_that_no_row_chose_are_not_computed",
    "experts_read_every_format/BF16",
    "experts_read_every_format/F16",
    "experts_read_every_format/F32",
    "experts_read_every_format/F8_E4M3",
    "experts_read_every_format/IQ4_NL",
    "experts_read_every_format/IQ4_XS",
    "experts_read_every_format/MXFP4",
    "experts_read_every_format/NF4",
    "experts_read_every_format/NVFP4",
    "experts_read_every_format/Q2_K",
    "experts_read_every_format/Q3_K",
    "experts_read_every_format/Q4_0",
    "experts_read_every_format/Q4_1",
    "experts_read_every_format/Q4_K",
    "experts_read_every_format/Q5_0",
    "experts_read_every_format/Q5_1",
    "experts_read_every_format/Q5_K",
    "experts_read_every_format/Q6_K",
    "experts_read_every_format/Q8_0",
    "experts_read_every_format/U4",
];

/// One backend for all tests of a precision: kernels are compiled once.
fn shared(half: bool, place: &'static OnceLock<Arc<CudaBackend>>) -> Arc<CudaBackend> {
    let new = || Arc::new(stand_in::backend(CudaOptions::new().half(half)));
    Arc::clone(place.get_or_init(new))
}

mod f16 {
    use super::*;

    /// Largest difference of a log probability to the interpreter: activations have 11 bits of mantissa.
    const TOLERANCE: f32 = 0.12;

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
