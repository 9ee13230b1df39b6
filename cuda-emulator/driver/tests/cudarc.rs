//! Unmodified cudarc programs on the stand-in.

// Linked so that the library is built before this test.
use cuda_emulator_driver as _;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The folder of the build: this test lies in `deps` in it.
fn build() -> PathBuf {
    let test = std::env::current_exe().expect("a path");
    test.parent().and_then(Path::parent).expect("a folder").to_owned()
}

/// Runs a case of the example with the stand-in where the system would have the driver.
fn run(case: &str, environment: &[(&str, &str)]) -> Output {
    let build = build();
    let library = build.join("deps/libcuda_emulator_driver.so");
    assert!(library.is_file(), "{} is there", library.display());
    let folder = build.join(format!("stand-in-{}-{case}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder can be made");
    let link = folder.join("libcuda.so.1");
    _ = std::fs::remove_file(&link);
    std::os::unix::fs::symlink(&library, &link).expect("a link can be made");
    let output = Command::new(build.join("examples/cudarc_program"))
        .arg(case)
        .env("LD_LIBRARY_PATH", &folder)
        .envs(environment.iter().copied())
        .output()
        .expect("the program can be started");
    std::fs::remove_dir_all(&folder).expect("the folder can be removed");
    output
}

fn succeeds(case: &str, environment: &[(&str, &str)]) -> String {
    let output = run(case, environment);
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{case}: {errors}");
    errors
}

#[test]
fn memory_is_copied_and_freed() {
    assert_eq!(succeeds("memory", &[]), "");
}

#[test]
fn kernels_are_launched_with_their_arguments() {
    assert_eq!(succeeds("launch", &[]), "");
}

#[test]
fn streams_wait_for_events() {
    assert_eq!(succeeds("streams", &[]), "");
}

#[test]
fn a_captured_graph_is_replayed_on_new_data() {
    assert_eq!(succeeds("graph", &[]), "");
    assert_eq!(succeeds("graph", &[("CUDA_EMULATOR_EAGER", "1")]), "");
}

#[test]
fn two_devices_copy_from_each_other() {
    assert_eq!(succeeds("two-devices", &[("CUDA_EMULATOR_DEVICES", "2")]), "");
}

#[test]
fn an_access_out_of_bounds_is_reported_and_stays_with_the_context() {
    let errors = succeeds("out-of-bounds", &[]);
    assert!(errors.contains("fault: scale: load of 4 bytes"), "{errors}");
    assert!(errors.contains("thread (10, 0, 0)"), "{errors}");
}

#[test]
fn a_missing_wait_shows_as_wrong_data() {
    assert_eq!(succeeds("missing-wait", &[]), "");
}

#[test]
fn shared_memory_beyond_48_kilobytes_must_be_asked_for() {
    succeeds("shared-memory", &[]);
}

#[test]
fn misuse_of_a_capture_gives_the_documented_errors() {
    assert_eq!(succeeds("capture-misuse", &[]), "");
}

#[test]
fn an_allocation_fails_on_demand() {
    assert_eq!(succeeds("allocation-failure", &[("CUDA_EMULATOR_FAIL_ALLOCATION", "2")]), "");
}

#[test]
fn modules_that_cannot_run_are_refused() {
    let errors = succeeds("bad-module", &[]);
    assert!(errors.contains("sm_100 is newer than sm_80"), "{errors}");
}

#[test]
fn reports_go_to_a_file_as_lines_of_json() {
    let file = build().join(format!("reports-{}.jsonl", std::process::id()));
    let path = file.to_string_lossy().into_owned();
    assert_eq!(succeeds("out-of-bounds", &[("CUDA_EMULATOR_REPORTS", &path)]), "");
    let lines = std::fs::read_to_string(&file).expect("reports were written");
    std::fs::remove_file(&file).expect("the file can be removed");
    assert!(lines.contains("\"problem\":\"out-of-bounds\""), "{lines}");
    assert!(lines.contains("\"severity\":\"fault\""), "{lines}");
}
