//! Unmodified cudarc programs on the stand-ins for cuBLASLt and NCCL.

// Linked so that the library is built before this test.
use cuda_emulator_driver as _;

mod support;

fn blas(case: &str, environment: &[(&str, &str)]) -> String {
    support::succeeds("cudarc_blas", case, environment)
}

fn nccl(case: &str, environment: &[(&str, &str)]) -> String {
    let devices = [&[("CUDA_EMULATOR_DEVICES", "4")], environment].concat();
    support::succeeds("cudarc_nccl", case, &devices)
}

#[test]
fn products_of_singles_follow_transposes_and_scalars() {
    assert_eq!(blas("single", &[]), "");
}

#[test]
fn products_of_halves_are_rounded_to_their_type() {
    assert_eq!(blas("half", &[]), "");
}

#[test]
fn epilogues_add_a_bias_for_each_row_and_activate() {
    assert_eq!(blas("epilogues", &[]), "");
}

#[test]
fn batches_follow_their_strides() {
    assert_eq!(blas("batches", &[]), "");
}

#[test]
fn the_compute_type_decides_how_operands_are_rounded() {
    assert_eq!(blas("rounding", &[]), "");
}

#[test]
fn products_of_bytes_are_exact_or_scaled() {
    assert_eq!(blas("integers", &[]), "");
}

#[test]
fn products_of_fp8_are_scaled_on_a_device_that_has_them() {
    assert_eq!(blas("eight-bits", &[("CUDA_EMULATOR_ARCH", "sm_90")]), "");
}

#[test]
fn scalars_can_lie_on_the_device() {
    assert_eq!(blas("device-scalars", &[]), "");
}

#[test]
fn a_captured_product_is_replayed_on_new_data() {
    assert_eq!(blas("graph", &[]), "");
}

#[test]
fn what_cublaslt_does_not_have_is_refused_with_a_reason() {
    let errors = blas("unsupported", &[]);
    assert!(errors.contains("no product of F16 and Bf16"), "{errors}");
    assert!(errors.contains("fp8 needs compute capability 8.9"), "{errors}");
}

#[test]
fn an_operand_beyond_its_allocation_is_a_fault() {
    let errors = blas("too-small", &[]);
    assert!(errors.contains("fault: cublasLtMatmul: load of 64 bytes"), "{errors}");
    assert!(errors.contains("offset 0 of an allocation of 60 bytes"), "{errors}");
}

#[test]
fn a_result_on_an_operand_is_reported() {
    let errors = blas("aliased", &[]);
    assert!(errors.contains("error: cublasLtMatmul: D and A share bytes"), "{errors}");
    assert!(!errors.contains("D and C"), "{errors}");
    let strict = support::run("cudarc_blas", "aliased", &[("CUDA_EMULATOR_STRICT", "1")]);
    assert!(!strict.status.success());
}

#[test]
fn an_operand_that_nobody_wrote_is_reported() {
    let errors = blas("unwritten", &[]);
    assert!(errors.contains("error: cublasLtMatmul: read of"), "{errors}");
    assert_eq!(blas("unwritten", &[("CUDA_EMULATOR_CHECKS", "none")]), "");
}

#[test]
fn collectives_give_every_rank_its_share() {
    assert_eq!(nccl("collectives", &[]), "");
    assert_eq!(nccl("collectives", &[("CUDA_EMULATOR_EAGER", "1")]), "");
}

#[test]
fn collectives_follow_each_other_without_waits() {
    assert_eq!(nccl("layers", &[]), "");
}

#[test]
fn pairs_of_ranks_meet_inside_and_outside_of_groups() {
    assert_eq!(nccl("pairs", &[]), "");
}

#[test]
fn a_captured_collective_is_replayed_on_new_data() {
    assert_eq!(nccl("graph", &[]), "");
}

#[test]
fn one_thread_speaks_for_all_ranks_in_a_group() {
    assert_eq!(nccl("one-thread", &[]), "");
}

#[test]
fn ranks_that_disagree_are_reported() {
    let errors = nccl("mismatch", &[]);
    let text = "call 0 of rank 0 is all-reduce (sum) of 4 f32, that of rank 1 is all-reduce (sum) \
                of 8 f32";
    assert!(errors.contains(text), "{errors}");
}

#[test]
fn a_missing_rank_ends_the_wait_and_is_named() {
    let soon = [("CUDA_EMULATOR_RANK_TIMEOUT", "1")];
    let errors = nccl("missing", &soon);
    let text = "rank 0 waits in its call 0, all-reduce (maximum) of 1 f32: rank 1 did not come";
    assert!(errors.contains(text), "{errors}");
    let errors = nccl("missing-at-start", &soon);
    assert!(errors.contains("of 2 ranks, rank 1 did not come"), "{errors}");
}

#[test]
fn ranks_that_call_in_another_order_are_reported() {
    let errors = nccl("other-order", &[]);
    assert!(errors.contains("ranks make calls in different orders"), "{errors}");
}

#[test]
fn misuse_of_communicators_gives_the_documented_errors() {
    let errors = nccl("misuse", &[("CUDA_EMULATOR_RANK_TIMEOUT", "2")]);
    assert!(errors.contains("are both on device 0"), "{errors}");
    assert!(errors.contains("broadcast of 1 f32 from rank 2 of 2 ranks"), "{errors}");
}
