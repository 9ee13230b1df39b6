//! Tiny models with random weights, of Llama and Qwen in each storage format.

use crate::backends::{check_directory, check_gguf};

#[test]
fn llama_with_tied_embeddings_equals_transformers() {
    check_directory("llama-tied");
}

#[test]
fn llama_3_with_scaled_rope_equals_transformers() {
    check_directory("llama3-rope-untied");
}

#[test]
fn qwen2_equals_transformers() {
    check_directory("qwen2");
}

#[test]
fn qwen3_equals_transformers() {
    check_directory("qwen3");
}

#[test]
fn llama_from_gguf_in_three_quantizations_equals_transformers() {
    check_gguf("llama-quantized");
}

#[test]
fn qwen2_from_gguf_in_f16_equals_transformers() {
    check_gguf("qwen2-f16");
}

#[test]
fn qwen3_from_gguf_in_mixed_formats_equals_transformers() {
    check_gguf("qwen3-mixed");
}
