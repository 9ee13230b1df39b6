//! Tiny models of the families beyond Llama and Qwen. Windows are shorter than the longest prompt.

use crate::backends::{check_directory, check_gguf};

#[test]
fn gemma_2_bounds_scores_and_logits_as_transformers_does() {
    check_directory("gemma2");
}

#[test]
fn mistral_with_a_window_in_every_layer_equals_transformers() {
    check_directory("mistral");
}

#[test]
fn the_text_model_of_mistral_small_3_equals_transformers() {
    check_directory("mistral-small-3");
}

#[test]
fn ministral_3_with_queries_that_grow_equals_transformers() {
    check_directory("ministral3");
}

#[test]
fn ministral_3_from_gguf_equals_transformers() {
    check_gguf("ministral3");
}

#[test]
fn gemma_3_with_two_rotary_bases_equals_transformers() {
    check_directory("gemma3");
}

#[test]
fn the_text_model_of_a_gemma_3_with_images_equals_transformers() {
    check_directory("gemma3-wrapped");
}

#[test]
fn phi_3_with_fused_projections_equals_transformers() {
    check_directory("phi3");
}

#[test]
fn phi_4_mini_on_both_sides_of_its_original_context_equals_transformers() {
    check_directory("phi4-mini");
}

#[test]
fn granite_with_four_multipliers_equals_transformers() {
    check_directory("granite");
}

#[test]
fn granite_4_with_attention_alone_equals_transformers() {
    check_directory("granite4-dense");
}

#[test]
fn smollm_3_with_layers_without_positions_equals_transformers() {
    check_directory("smollm3");
}

#[test]
fn olmo_2_with_norms_after_each_branch_equals_transformers() {
    check_directory("olmo2");
}

#[test]
fn olmo_3_with_stretched_full_layers_equals_transformers() {
    check_directory("olmo3");
}

#[test]
fn glm_4_with_neighbours_rotated_in_half_a_head_equals_transformers() {
    check_directory("glm4");
}

#[test]
fn gemma_2_from_gguf_equals_transformers() {
    check_gguf("gemma2");
}

#[test]
fn gemma_3_from_gguf_has_its_pattern_and_local_base_by_default() {
    check_gguf("gemma3");
}

#[test]
fn phi_3_from_gguf_with_fused_blocks_equals_transformers() {
    check_gguf("phi3");
}

#[test]
fn phi_4_mini_from_gguf_has_both_lists_of_factors() {
    check_gguf("phi4-mini");
}

#[test]
fn granite_from_gguf_equals_transformers() {
    check_gguf("granite");
}

#[test]
fn smollm_3_from_gguf_equals_transformers() {
    check_gguf("smollm3");
}

#[test]
fn olmo_2_from_gguf_equals_transformers() {
    check_gguf("olmo2");
}

#[test]
fn olmo_3_from_gguf_of_olmo_2_with_a_window_equals_transformers() {
    check_gguf("olmo3");
}

#[test]
fn glm_4_from_gguf_equals_transformers() {
    check_gguf("glm4");
}
