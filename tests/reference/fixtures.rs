//! What transformers computed.

use std::path::{Path, PathBuf};

use engine_core::Token;
use serde::Deserialize;
use serde::de::DeserializeOwned;

/// `expected.json` of a tiny model.
#[derive(Debug, Deserialize)]
pub(crate) struct Expected {
    /// How far float32 is from float64: the noise of the reference itself.
    #[serde(rename = "max_abs_difference_to_float64_products")]
    pub(crate) noise: f32,
    pub(crate) prompts: Vec<ExpectedPrompt>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct ExpectedPrompt {
    pub(crate) name: String,
    pub(crate) token_ids: Vec<Token>,
    /// `[vocab_size]`
    pub(crate) last_logits: Vec<f32>,
    /// `[tokens][vocab_size]`, where it is recorded.
    pub(crate) all_logits: Option<Vec<Vec<f32>>>,
    /// Absent for GGUF files.
    pub(crate) greedy: Option<Greedy>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Greedy {
    pub(crate) token_ids: Vec<Token>,
}

/// A file or directory of the fixtures.
pub(crate) fn path(below: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(below)
}

/// Reads a JSON file of the fixtures.
pub(crate) fn read<T: DeserializeOwned>(below: &str) -> T {
    let text = std::fs::read(path(below)).unwrap();
    serde_json::from_slice(&text).unwrap()
}

/// Log probabilities of logits.
pub(crate) fn log_softmax(logits: &[f32]) -> Vec<f32> {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&logit| f64::from(logit - largest).exp()).sum();
    let normalizer = f64::from(largest) + sum.ln();
    logits.iter().map(|&logit| (f64::from(logit) - normalizer) as f32).collect()
}
