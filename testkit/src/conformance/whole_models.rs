//! Every architecture at a tiny size, and one that only the public builder describes.

use engine_core::backend::SlotSampling;
use engine_core::model::{ModelConfig, build};
use engine_core::weights::Format;

use super::check::Check;
use super::failure::Failure;
use super::models::{Model, config, prompt};
use super::session::{Answer, RowPlan, Session, Setup};

/// Llama with its embedding as output layer.
pub fn llama_agrees_with_the_reference(check: &Check<'_>) -> Result<(), Failure> {
    agree(check, "LlamaForCausalLM", "", Format::F32)
}

/// Llama 3: rope scaling over all three bands, one KV head, an output layer of its own.
pub fn llama_3_agrees_with_the_reference(check: &Check<'_>) -> Result<(), Failure> {
    let more = r#", "num_key_value_heads": 1, "tie_word_embeddings": false, "rope_theta": 10000.0,
        "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 64}"#;
    agree(check, "LlamaForCausalLM", more, Format::BF16)
}

/// Llama with every bias that its configuration knows.
pub fn llama_with_biases_agrees_with_the_reference(check: &Check<'_>) -> Result<(), Failure> {
    agree(check, "LlamaForCausalLM", r#", "attention_bias": true, "mlp_bias": true"#, Format::F32)
}

/// Qwen2: biases of queries, keys and values.
pub fn qwen2_agrees_with_the_reference(check: &Check<'_>) -> Result<(), Failure> {
    agree(check, "Qwen2ForCausalLM", "", Format::F16)
}

/// Qwen2 with a window on its second layer.
pub fn qwen2_with_a_window_agrees_with_the_reference(check: &Check<'_>) -> Result<(), Failure> {
    let more = r#", "use_sliding_window": true, "sliding_window": 12, "max_window_layers": 1"#;
    agree(check, "Qwen2ForCausalLM", more, Format::F32)
}

/// Qwen3: norms of queries and keys, heads wider than the residual stream divided by them.
pub fn qwen3_agrees_with_the_reference(check: &Check<'_>) -> Result<(), Failure> {
    agree(check, "Qwen3ForCausalLM", r#", "head_dim": 32"#, Format::BF16)
}

/// Qwen3 with YaRN: a factor on sine and cosine.
pub fn qwen3_with_yarn_agrees_with_the_reference(check: &Check<'_>) -> Result<(), Failure> {
    let more = r#", "head_dim": 32, "rope_scaling": {"rope_type": "yarn", "factor": 4.0,
        "original_max_position_embeddings": 64}"#;
    agree(check, "Qwen3ForCausalLM", more, Format::F32)
}

/// Matrices of one model in all formats, as quantizers mix them: query, key and value differ.
pub fn mixed_formats_in_one_model_agree_with_the_reference(
    check: &Check<'_>,
) -> Result<(), Failure> {
    let config = ModelConfig::from_huggingface(&config("LlamaForCausalLM", ""))?;
    let format = |name: &str| {
        let parts = [
            ("q_proj", Format::Q4_0),
            ("k_proj", Format::Q8_0),
            ("v_proj", Format::F16),
            ("o_proj", Format::Q4_1),
            ("gate_proj", Format::Q4_1),
            ("up_proj", Format::Q4_0),
            ("down_proj", Format::BF16),
        ];
        let part = parts.iter().find(|(part, _)| name.contains(part));
        part.map_or(Format::Q8_0, |&(_, format)| format)
    };
    let model = Model::random_with(build(&config, false)?, 11, format, Format::F32)?;
    check.agree("mixed formats", &model, &Setup::new(), two_sequences)
}

fn agree(check: &Check<'_>, architecture: &str, more: &str, format: Format) -> Result<(), Failure> {
    let model = Model::of_config(&config(architecture, more), format, 12)?;
    check.agree(architecture, &model, &Setup::new(), two_sequences)
}

/// Two prompts, computed in chunks beside each other.
fn two_sequences(session: &mut Session) -> Result<Vec<Answer>, Failure> {
    let (first, second) = (prompt(50, 1), prompt(33, 2));
    session.open(0, SlotSampling::greedy());
    let mut answers = session.run(&[RowPlan::known(0, &first[..40]).score(20).score_last()])?;
    session.open(1, SlotSampling::greedy());
    for token in 40..50 {
        let chunk = &second[(token - 40) * 3..(token - 39) * 3];
        answers.extend(session.run(&[
            RowPlan::known(0, &first[token..=token]).score_last(),
            RowPlan::known(1, chunk).score_all(),
        ])?);
    }
    answers.extend(session.run(&[RowPlan::known(1, &second[30..]).score_all()])?);
    Ok(answers)
}
