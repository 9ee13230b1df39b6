//! Unmodified cudarc programs on the stand-in.

// Linked so that the library is built before this test.
use cuda_emulator_driver as _;

mod support;

use support::build;

fn succeeds(case: &str, environment: &[(&str, &str)]) -> String {
    support::succeeds("cudarc_program", case, environment)
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

const TWO: (&str, &str) = ("CUDA_EMULATOR_DEVICES", "2");
const HOPPER: (&str, &str) = ("CUDA_EMULATOR_ARCH", "sm_90");

#[test]
fn kernels_use_memory_of_a_peer_only_with_access() {
    let errors = succeeds("peers", &[TWO]);
    assert!(errors.contains("memory of another device, to which there is no access"), "{errors}");
}

#[test]
fn memory_of_a_pool_has_an_access_of_its_own() {
    let errors = succeeds("pools", &[TWO]);
    assert!(errors.contains("memory of another device, to which there is no access"), "{errors}");
}

#[test]
fn registered_host_memory_is_read_when_the_copy_is_done() {
    assert_eq!(succeeds("registration", &[]), "");
}

#[test]
fn tensor_maps_follow_their_rules() {
    assert_eq!(succeeds("tensor-map", &[]), "");
    let errors = succeeds("tensor-map", &[HOPPER]);
    assert!(errors.contains("cuTensorMapEncodeTiled"), "{errors}");
}

#[test]
fn launch_attributes_are_checked() {
    assert_eq!(succeeds("launch-attributes", &[]), "");
    assert_eq!(succeeds("launch-attributes", &[HOPPER]), "");
}

#[test]
fn clusters_come_from_the_launch_the_function_or_the_kernel() {
    assert_eq!(succeeds("clusters", &[HOPPER]), "");
}

#[test]
fn occupancy_follows_threads_and_shared_memory() {
    // A ptxas that isn't there: registers are not known.
    assert_eq!(succeeds("occupancy", &[("CUDA_EMULATOR_PTXAS", "/none")]), "");
}

#[test]
fn registers_of_a_function_come_from_ptxas() {
    // The driver fetches nothing itself.
    cuda_emulator::ptxas::Ptxas::find().expect("ptxas");
    assert_eq!(succeeds("registers", &[]), "");
}
