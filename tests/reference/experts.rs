//! Tiny models with mixtures of experts, and of Gemma 4 with and without one. Experts are more than
//! a short prompt reaches, and windows are shorter than the longest prompt.

use crate::backends::{check_directory, check_gguf};

#[test]
fn mixtral_with_experts_stored_apart_equals_transformers() {
    check_directory("mixtral");
}

#[test]
fn qwen_2_moe_with_a_dense_layer_and_a_shared_expert_equals_transformers() {
    check_directory("qwen2-moe");
}

#[test]
fn qwen_3_moe_equals_transformers() {
    check_directory("qwen3-moe");
}

#[test]
fn gpt_oss_with_sinks_and_clamped_gates_equals_transformers() {
    check_directory("gpt-oss");
}

#[test]
fn gpt_oss_with_experts_in_blocks_and_scales_equals_transformers_on_the_decoded_weights() {
    check_directory("gpt-oss-mxfp4");
}

#[test]
fn gemma_4_with_inputs_of_each_layer_and_shared_kv_equals_transformers() {
    check_directory("gemma4");
}

#[test]
fn gemma_4_with_experts_and_values_that_are_keys_equals_transformers() {
    check_directory("gemma4-moe");
}

#[test]
fn mixtral_from_gguf_of_llama_with_experts_equals_transformers() {
    check_gguf("mixtral");
}

#[test]
fn qwen_2_moe_from_gguf_equals_transformers() {
    check_gguf("qwen2-moe");
}

#[test]
fn qwen_3_moe_from_gguf_equals_transformers() {
    check_gguf("qwen3-moe");
}

#[test]
fn gpt_oss_from_gguf_with_experts_in_mxfp4_equals_transformers() {
    check_gguf("gpt-oss");
}

#[test]
fn gemma_4_from_gguf_with_heads_of_two_widths_and_shared_kv_equals_transformers() {
    check_gguf("gemma4");
}

#[test]
fn gemma_4_from_gguf_with_fused_experts_equals_transformers() {
    check_gguf("gemma4-moe");
}
