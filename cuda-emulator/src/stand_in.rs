//! Where the stand-in for a driver lies: the library of the crate `cuda-emulator-driver`.

use std::env;
use std::path::{Path, PathBuf};

/// The library's name.
const NAME: &str = "libcuda_emulator_driver.so";
/// The environment variable that names another place.
const VARIABLE: &str = "CUDA_EMULATOR_DRIVER";

/// The stand-in is not there.
#[derive(Debug, thiserror::Error)]
#[error(
    "{NAME} lies in none of {looked:?}; put it beside the program (`cargo build -p cuda-emulator-driver` makes it), or set \
     {VARIABLE} to its path"
)]
#[non_exhaustive]
pub struct StandInError {
    /// Where it was looked for.
    pub looked: Vec<PathBuf>,
}

/// The path of the stand-in: what `CUDA_EMULATOR_DRIVER` names, or else the library beside this program, or where cargo puts
/// it for programs, examples and tests of a package that depends on `cuda-emulator-driver`.
///
/// # Errors
///
/// [`StandInError`], when it isn't there.
pub fn find() -> Result<PathBuf, StandInError> {
    if let Some(path) = env::var_os(VARIABLE).filter(|path| !path.is_empty()) {
        return Ok(PathBuf::from(path));
    }
    let program = env::current_exe().unwrap_or_default();
    let looked = places(program.parent().unwrap_or(Path::new("")));
    let found = looked.iter().map(|place| place.join(NAME)).find(|path| path.is_file());
    found.ok_or(StandInError { looked })
}

/// Programs lie above `deps`, examples beside it, tests in it.
fn places(folder: &Path) -> Vec<PathBuf> {
    let mut places = vec![folder.to_owned(), folder.join("deps")];
    places.extend(folder.parent().map(|above| above.join("deps")));
    places
}
