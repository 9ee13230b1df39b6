//! Runs cudarc programs with the stand-in where the system would have NVIDIA's libraries.
#![allow(dead_code, unreachable_pub)] // Each test crate uses a part.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The names under which programs look for the driver, cuBLASLt and NCCL; cudarc looks for NCCL
/// without a number.
const NAMES: [&str; 5] =
    ["libcuda.so.1", "libcublasLt.so.12", "libcublasLt.so.13", "libnccl.so.2", "libnccl.so"];

/// The folder of the build: a test lies in `deps` in it.
pub fn build() -> PathBuf {
    let test = std::env::current_exe().expect("a path");
    test.parent().and_then(Path::parent).expect("a folder").to_owned()
}

/// Runs a case of an example.
pub fn run(program: &str, case: &str, environment: &[(&str, &str)]) -> Output {
    let mut command = Command::new(build().join("examples").join(program));
    command.arg(case).envs(environment.iter().copied());
    with_stand_in(&mut command, &format!("{program}-{case}"))
}

/// Runs a command; `name` tells it from others of this process.
pub fn with_stand_in(command: &mut Command, name: &str) -> Output {
    let build = build();
    let library = build.join("deps/libcuda_emulator_driver.so");
    assert!(library.is_file(), "{} is there", library.display());
    let folder = build.join(format!("stand-in-{}-{name}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder can be made");
    for name in NAMES {
        let link = folder.join(name);
        _ = std::fs::remove_file(&link);
        std::os::unix::fs::symlink(&library, &link).expect("a link can be made");
    }
    let output =
        command.env("LD_LIBRARY_PATH", &folder).output().expect("the program can be started");
    std::fs::remove_dir_all(&folder).expect("the folder can be removed");
    output
}

/// Runs a case that must succeed, and gives what was written to the standard error.
pub fn succeeds(program: &str, case: &str, environment: &[(&str, &str)]) -> String {
    let output = run(program, case, environment);
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{case}: {errors}");
    errors
}
