//! What is missing or fails is a typed error, and nothing hangs. Each case runs in a process of its own: a process has one
//! driver, and the stand-in reads its environment once.

mod stand_in;

use std::process::Command;
use std::time::{Duration, Instant};

use backend_cuda::{CudaBackend, CudaOptions};
use cuda_emulator::nvrtc::Nvrtc;
use engine_core::backend::BackendError;
use engine_core::error::{EngineError, GenerationError};
use stand_in::{engine, options, requests};

/// Names the case for the process that runs it.
const CASE: &str = "UNDERSTORY_GUARD_CASE";
/// Longer than any case takes where nothing hangs.
const LIMIT: Duration = Duration::from_secs(240);

/// Runs one of the cases below with these variables.
fn run(case: &str, variables: &[(&str, &str)]) {
    let program = std::env::current_exe().expect("a path");
    let mut command = Command::new(program);
    command.args(["--exact", "a_case_runs_by_itself", "--nocapture"]).env(CASE, case);
    let mut child = command.envs(variables.iter().copied()).spawn().expect("a process");
    let end = Instant::now() + LIMIT;
    let status = loop {
        if let Some(status) = child.try_wait().expect("a child") {
            break status;
        }
        if Instant::now() > end {
            child.kill().expect("a child");
            panic!("{case} hangs");
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    assert!(status.success(), "{case}");
}

#[test]
fn a_case_runs_by_itself() {
    match std::env::var(CASE).as_deref() {
        Ok("driver") => a_missing_driver(),
        Ok("old") => an_old_driver(),
        Ok("nvrtc") => a_missing_nvrtc(),
        Ok("cublaslt") => a_missing_cublaslt(),
        Ok("load") => too_little_memory_to_load(),
        Ok("run") => too_little_memory_to_run(),
        Ok("fault") => a_faulting_kernel(),
        Ok(other) => panic!("{other} is no case"),
        // Started among the other tests.
        Err(_) => {}
    }
}

/// What opening a device says, which must be of the device.
fn refusal(options: &CudaOptions) -> String {
    match CudaBackend::new(options) {
        Err(error @ BackendError::Device { .. }) => error.to_string(),
        Err(error) => panic!("{error}"),
        Ok(backend) => panic!("{backend:?}"),
    }
}

fn stand_in_options() -> CudaOptions {
    let driver = cuda_emulator::stand_in::find().expect("the stand-in is built");
    CudaOptions::new().half(true).driver(driver.clone()).cublaslt(driver).machine_code(false)
}

#[test]
fn without_a_driver_the_error_says_where_it_comes_from() {
    run("driver", &[]);
}

fn a_missing_driver() {
    let error = refusal(&CudaOptions::new().driver(std::path::PathBuf::from("/none/libcuda.so.1")));
    assert!(error.contains("/none/libcuda.so.1"), "{error}");
    // Where a driver is installed there is nothing to see.
    // SAFETY: only looks whether the library can be loaded.
    if !unsafe { cudarc::driver::sys::is_culib_present() } {
        let error = refusal(&CudaOptions::new());
        assert!(error.contains("it comes with NVIDIA's display driver"), "{error}");
    }
}

#[test]
fn a_driver_that_is_too_old_is_refused_with_both_versions() {
    run("old", &[("CUDA_EMULATOR_VERSION", "11080")]);
}

fn an_old_driver() {
    let error = refusal(&stand_in_options());
    assert!(error.contains("is for CUDA 11.8, but 12.0"), "{error}");
}

#[test]
fn without_nvrtc_the_error_says_where_it_comes_from() {
    run("nvrtc", &[]);
}

fn a_missing_nvrtc() {
    let error = refusal(&stand_in_options().nvrtc("/none/libnvrtc.so"));
    assert!(error.contains("nvidia-cuda-nvrtc-cu12") && error.contains("/none/"), "{error}");
}

#[test]
fn without_cublaslt_the_error_says_where_it_comes_from_unless_it_is_switched_off() {
    run("cublaslt", &[]);
}

fn a_missing_cublaslt() {
    let nvrtc = Nvrtc::locate().expect("NVRTC can be fetched");
    let without =
        stand_in_options().nvrtc(nvrtc).cublaslt(std::path::PathBuf::from("/none/libcublasLt.so"));
    let error = refusal(&without);
    assert!(error.contains("nvidia-cublas-cu12") && error.contains("/none/"), "{error}");
    CudaBackend::new(&without.blas(false)).expect("kernels compute all products");
}

#[test]
fn a_model_that_does_not_fit_is_refused_with_the_bytes() {
    // Not even KV fits; KV fits, and the weights don't.
    for bytes in ["65536", "200000"] {
        run("load", &[("CUDA_EMULATOR_MEMORY", bytes)]);
    }
}

fn too_little_memory_to_load() {
    let backend = backend();
    let refused = stand_in::try_engine("llama-tied", &backend, options()).map(|_| ());
    let Err(EngineError::Backend(BackendError::Memory { needed, available, .. })) = refused else {
        panic!("{refused:?}")
    };
    assert!(needed > available, "{needed} of {available}");
}

fn backend() -> CudaBackend {
    let nvrtc = Nvrtc::locate().expect("NVRTC can be fetched");
    CudaBackend::new(&stand_in_options().nvrtc(nvrtc)).expect("the stand-in has a device")
}

#[test]
fn a_step_that_finds_no_memory_fails_its_requests_and_the_engine_goes_on() {
    run("run", &[("CUDA_EMULATOR_MEMORY", "67108864")]);
}

fn too_little_memory_to_run() {
    let backend = backend();
    let engine = engine(&backend, options());
    // All that the engine left.
    let context = cudarc::driver::CudaContext::new(0).expect("a device");
    let stream = context.new_stream().expect("a stream");
    let mut taken = Vec::new();
    let mut piece = 1usize << 25;
    while piece >= 256 {
        // SAFETY: never read.
        match unsafe { stream.alloc::<u8>(piece) } {
            Ok(slice) => taken.push(slice),
            Err(_) => piece /= 2,
        }
    }
    for request in requests() {
        let failed = engine.submit(request).expect("taken").wait();
        let Err(GenerationError::Failed { reason, .. }) = &failed else { panic!("{failed:?}") };
        assert!(reason.contains("bytes, but the device has"), "{reason}");
    }
    drop(taken);
    stream.synchronize().expect("memory is given back in the order of the stream");
    for request in requests() {
        engine.submit(request).expect("taken").wait().expect("an answer");
    }
}

#[test]
fn a_fault_on_the_device_ends_the_engine_with_its_reason() {
    run("fault", &[("CUDA_EMULATOR_FAIL_KERNEL", "60")]);
}

fn a_faulting_kernel() {
    let engine = engine(&backend(), options());
    let mut failed = 0;
    for request in requests() {
        // An engine that is dead already refuses.
        let Ok(generation) = engine.submit(request) else { break };
        let Err(GenerationError::Dead(dead)) = generation.wait() else { panic!("it lives") };
        assert!(dead.reason().contains("ILLEGAL_ADDRESS"), "{dead}");
        failed += 1;
    }
    assert!(failed > 0 && engine.dead().is_some());
}
