//! The conformance suite through unmodified cudarc, on the stand-in driver.

// Linked so that the library is built before this test.
use cuda_emulator_driver as _;

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use backend_api::KvFormat;
use backend_cuda::{CudaBackend, CudaOptions};
use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};
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

/// Largest difference of a log probability to the interpreter: activations have 11 bits of mantissa.
const TOLERANCE: f32 = 0.25;

/// The stand-in, where cargo put it.
fn stand_in() -> PathBuf {
    let test = std::env::current_exe().expect("a path");
    let build = test.parent().and_then(Path::parent).expect("a folder");
    build.join("deps/libcuda_emulator_driver.so")
}

/// One backend for all tests: kernels are compiled once.
fn subject() -> Subject {
    static BACKEND: OnceLock<Arc<CudaBackend>> = OnceLock::new();
    let backend = BACKEND.get_or_init(|| {
        // SAFETY: the stand-in has no initializers. cudarc finds it by its name once it is loaded.
        let library = unsafe { Library::open(Some(stand_in()), RTLD_NOW | RTLD_LOCAL) };
        std::mem::forget(library.expect("the stand-in loads"));
        let nvrtc = cuda_emulator::nvrtc::Nvrtc::locate().expect("NVRTC can be fetched");
        let options = CudaOptions::new().half(true).nvrtc(nvrtc);
        Arc::new(CudaBackend::new(&options).expect("the stand-in has a device"))
    });
    Subject::new(Arc::clone(backend) as Arc<_>, TOLERANCE).kv_format(KvFormat::F16).skips(&SKIPS)
}

testkit::conformance_suite!(subject());
