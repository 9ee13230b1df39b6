//! Model weights: named tensors, read from files or held in memory.
//!
//! What is decided here:
//!
//! - Names are Hugging Face's (`model.layers.0.self_attn.q_proj.weight`), whatever the file.
//! - Bytes stay in the file's format and, where possible, in the file: a [`Tensor`] borrows
//!   from the memory map. Backends repack at load if they want to.
//! - A file is never trusted: what it claims is checked against its size before anything is
//!   allocated or read, and every fault is a typed error.

mod codec;
mod error;
mod format;
pub mod gguf;
mod map;
mod memory;
mod safetensors;
mod tensor;

pub use self::safetensors::SafetensorsWeights;
pub use error::{TensorError, WeightsError};
pub use format::Format;
pub use gguf::{Array, GgufError, GgufFile, GgufWeights, GgufWriter, Metadata, Value};
pub use memory::MapWeights;
pub use tensor::{Shape, Tensor};

/// A source of named tensors.
pub trait Weights: std::fmt::Debug + Send + Sync {
    /// The tensor with the Hugging Face name `name`.
    ///
    /// # Errors
    ///
    /// [`WeightsError::MissingTensor`] if there is none; [`WeightsError::UnsupportedType`] and
    /// [`WeightsError::UnsupportedRank`] if there is one that this crate does not read;
    /// [`WeightsError::Tensor`] if it is inconsistent.
    fn tensor(&self, name: &str) -> Result<Tensor<'_>, WeightsError>;

    /// Whether there is a tensor `name`, readable or not.
    fn contains(&self, name: &str) -> bool;

    /// All names, in no particular order.
    fn names(&self) -> Box<dyn Iterator<Item = &str> + '_>;
}
