//! The driver: which library it is, and whether it will do.

use std::error::Error;
use std::path::Path;

use backend_api::BackendError;
use cudarc::driver::{result, sys};
use libloading::{Library, Symbol};

use crate::device::failed;

/// The oldest driver that runs what is compiled here: from CUDA 12.0 on drivers take machine code of all compilers of that
/// major version. As the driver counts, 1000 for a major and 10 for a minor version.
const OLDEST: i32 = 12_000;
/// A function that every driver has.
const PROBE: &[u8] = b"cuDriverGetVersion\0";

/// Finds the driver and makes it ready. cudarc panics where there is none, so this comes first.
///
/// # Errors
///
/// [`BackendError::Device`]: no driver, another one than that at `path`, one that is too old, or one that refuses.
pub(crate) fn open(path: Option<&Path>) -> Result<(), BackendError> {
    let stand_in = path.map(load).transpose()?;
    // SAFETY: only looks whether the library can be loaded.
    if !unsafe { sys::is_culib_present() } {
        return Err(trouble("libcuda.so.1 is not there; it comes with NVIDIA's display driver"));
    }
    if let Some(library) = stand_in {
        let chosen = probe(library)?;
        // SAFETY: the library was found above. The address is compared, not called.
        let found = unsafe { sys::culib().get::<*const ()>(PROBE) };
        let found = found.map_err(|error| trouble(&error.to_string()))?;
        if *found != chosen {
            let path = path.unwrap_or(Path::new("")).display();
            return Err(trouble(&format!(
                "this process has another driver than {path}: the first that was opened, or a libcuda.so that the \
                 system's loader puts first"
            )));
        }
    }
    let mut version = 0;
    // SAFETY: writes a number.
    let status = unsafe { sys::cuDriverGetVersion(&raw mut version) };
    status.result().map_err(|error| failed("asking the CUDA driver for its version", error))?;
    if version < OLDEST {
        let shown = |version: i32| format!("{}.{}", version / 1000, version % 1000 / 10);
        return Err(trouble(&format!(
            "the driver is for CUDA {}, but {} is the oldest that will do: install a newer one",
            shown(version),
            shown(OLDEST)
        )));
    }
    result::init().map_err(|error| failed("starting the CUDA driver", error))
}

/// Loads the library for the rest of the process: cudarc finds it by its name.
fn load(path: &Path) -> Result<&'static Library, BackendError> {
    // SAFETY: drivers and their stand-ins have no initializers that break rules of this program.
    let library = unsafe { Library::new(path) }.map_err(|error| trouble(&said(&error)))?;
    Ok(Box::leak(Box::new(library)))
}

/// Where a library has its [`PROBE`].
fn probe(library: &Library) -> Result<*const (), BackendError> {
    // SAFETY: the address is compared, not called.
    let symbol: Result<Symbol<'_, *const ()>, _> = unsafe { library.get(PROBE) };
    symbol.map(|symbol| *symbol).map_err(|error| trouble(&said(&error)))
}

/// What the loader says, with its reason.
pub(crate) fn said(error: &libloading::Error) -> String {
    match error.source() {
        Some(reason) => format!("{error}: {reason}"),
        None => error.to_string(),
    }
}

fn trouble(message: &str) -> BackendError {
    let context = "loading the CUDA driver".to_owned();
    BackendError::Device { context, message: message.to_owned() }
}
