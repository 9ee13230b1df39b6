//! The program that compares a device with the emulator, on the stand-in and on nothing.

// Linked so that the library is built before this test.
use cuda_emulator_driver as _;

mod support;

use std::process::Command;

fn profile() -> Command {
    Command::new(env!("CARGO_BIN_EXE_gpu-profile"))
}

#[test]
fn without_a_device_it_says_so_and_ends_with_3() {
    // A real driver that is there shows no device then.
    let output = profile().env("CUDA_VISIBLE_DEVICES", "").output().expect("it starts");
    assert_eq!(output.status.code(), Some(3));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.starts_with("gpu-profile: no device: "), "{said}");
}

#[test]
fn the_stand_in_is_no_device() {
    let output = support::with_stand_in(&mut profile(), "no-device");
    assert_eq!(output.status.code(), Some(3));
}

#[test]
fn kernels_agree_with_the_emulator_and_the_report_is_dated() {
    let file = support::build().join(format!("report-{}.md", std::process::id()));
    let mut command = profile();
    command.arg("--stand-in").arg("--report").arg(&file);
    let output = support::with_stand_in(&mut command, "report");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(0), "{said}");
    let report = std::fs::read_to_string(&file).expect("the report was written");
    std::fs::remove_file(&file).expect("it can be removed");
    let title = report.lines().next().unwrap_or_default();
    assert!(title.starts_with("# Kernels on a device and in the emulator, 20"), "{report}");
    assert!(report.contains("stand-in driver, not a device"), "{report}");
    for kernel in ["decode", "prefill", "rms_norm", "sample", "matvec"] {
        assert!(report.contains(&format!("| {kernel} | agree | ")), "{report}");
    }
    // Its PTX is for compute capability 9.0 alone.
    assert!(!report.contains("| matmul |"), "{report}");
}

#[test]
fn a_kernel_with_tensor_maps_agrees_on_compute_capability_9() {
    let mut command = profile();
    command.args(["--stand-in", "--only", "matmul"]).env("CUDA_EMULATOR_ARCH", "sm_90");
    let output = support::with_stand_in(&mut command, "tensor-maps");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(0), "{said}");
    let report = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(report.contains("| matmul | agree | "), "{report}");
}

#[test]
fn a_kernel_that_fails_on_the_device_ends_with_2() {
    let mut command = profile();
    command.args(["--stand-in", "--only", "sample"]).env("CUDA_EMULATOR_FAIL_ALLOCATION", "3");
    let output = support::with_stand_in(&mut command, "failing");
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("cuMemAlloc_v2 gives CUDA_ERROR_OUT_OF_MEMORY"), "{said}");
}
