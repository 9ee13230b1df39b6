//! The conformance suite through unmodified cudarc, on the stand-in driver.

// Linked so that the library is built before this test.
use cuda_emulator_driver as _;

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use backend_api::KvFormat;
use backend_cuda::{CudaBackend, CudaOptions};
use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};
use testkit::conformance::Subject;

/// What depends on a row's company: nothing is promised.
const SKIPS: [&str; 5] = [
    "a_verified_draft_is_sampled_as_plain_steps_are",
    "chunking_changes_no_bit",
    "company_changes_no_bit_of_experts",
    "the_batch_changes_no_bit",
    "the_page_size_changes_no_bit",
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
