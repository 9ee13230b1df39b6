//! Model weights: named tensors, read from files or held in memory.
//!
//! What is decided here:
//!
//! - Names are Hugging Face's (`model.layers.0.self_attn.q_proj.weight`), whatever the file.
//! - Bytes stay in the file's format and, where possible, in the file: a [`Tensor`] borrows
//!   from the memory map. Backends repack at load if they want to.
//! - A file is never trusted: what it claims is checked against its size before anything is
//!   allocated or read, and every fault is a typed error.

#[cfg(test)]
mod documented;
mod error;
mod experts;
mod fused;
pub mod gguf;
mod huggingface;
mod map;
mod quantized;
mod safetensors;

pub use self::safetensors::SafetensorsWeights;
pub use backend_api::weights::{
    Format, MapWeights, Shape, Tensor, TensorError, Weights, WeightsError,
};
pub use error::WeightFileError;
pub(crate) use experts::with_experts;
pub use gguf::{Array, GgufError, GgufFile, GgufWeights, GgufWriter, Metadata, Value};
pub(crate) use huggingface::HuggingFaceWeights;
pub(crate) use quantized::{QuantizedWeights, Scheme};
