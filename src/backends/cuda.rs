//! NVIDIA devices, and the emulator of them.

use engine_core::backend::{Backend, Progress};

use super::BackendChoiceError;
use crate::source::FetchOptions;

#[cfg(feature = "cuda")]
pub(super) fn open(
    device: usize,
    emulate: bool,
    fetch: &FetchOptions,
    progress: &mut dyn Progress,
) -> Result<Box<dyn Backend>, BackendChoiceError> {
    let mut options = backend_cuda::CudaOptions::new().ordinal(device);
    options.cache = fetch.executables().unwrap_or_else(|error| {
        tracing::warn!(%error, "compiled kernels are not kept");
        None
    });
    if emulate {
        options = emulated(options, fetch, progress)?;
    }
    Ok(Box::new(backend_cuda::CudaBackend::new(&options)?))
}

#[cfg(not(feature = "cuda"))]
pub(super) fn open(
    _device: usize,
    _emulate: bool,
    _fetch: &FetchOptions,
    _progress: &mut dyn Progress,
) -> Result<Box<dyn Backend>, BackendChoiceError> {
    Err(BackendChoiceError::NotBuilt { feature: "cuda" })
}

/// The stand-in for a driver, and the pinned compiler.
#[cfg(all(feature = "cuda", target_os = "linux"))]
fn emulated(
    options: backend_cuda::CudaOptions,
    fetch: &FetchOptions,
    progress: &mut dyn Progress,
) -> Result<backend_cuda::CudaOptions, BackendChoiceError> {
    use cuda_emulator::nvrtc::{Nvrtc, PACKAGE, VERSION};

    let missing = |reason: String| BackendChoiceError::Emulator { reason };
    let driver = cuda_emulator::stand_in::find().map_err(|error| missing(error.to_string()))?;
    progress.update(&format!("{PACKAGE}=={VERSION}"), 0, 0);
    let nvrtc = Nvrtc::locate_in(fetch.cache_dir.as_deref(), fetch.offline);
    let nvrtc = nvrtc.map_err(|error| missing(error.to_string()))?;
    Ok(options.emulated(driver, nvrtc))
}

#[cfg(all(feature = "cuda", not(target_os = "linux")))]
fn emulated(
    _options: backend_cuda::CudaOptions,
    _fetch: &FetchOptions,
    _progress: &mut dyn Progress,
) -> Result<backend_cuda::CudaOptions, BackendChoiceError> {
    Err(BackendChoiceError::Emulator { reason: "the emulator is for Linux".to_owned() })
}
