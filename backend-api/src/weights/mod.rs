//! Weights: named tensors in the formats that backends read.
//!
//! Names are Hugging Face's (`model.layers.0.self_attn.q_proj.weight`), whatever the file. Bytes
//! stay in the file's format and, where possible, in the file: a [`Tensor`] borrows. Backends
//! repack at load where repacking pays.

mod codec;
mod error;
mod fields;
mod format;
mod layout;
mod memory;
mod tensor;

pub use error::{TensorError, WeightsError};
pub use fields::{BlockFields, Levels};
pub use format::Format;
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

    /// The format and the shape of the tensor `name`, without its bytes: what a model takes is told
    /// from these before the model is loaded. Sources whose [`tensor`](Self::tensor) copies or converts
    /// should answer from the descriptions of what they read.
    ///
    /// # Errors
    ///
    /// As for [`tensor`](Self::tensor).
    fn describe(&self, name: &str) -> Result<(Format, Shape), WeightsError> {
        let tensor = self.tensor(name)?;
        Ok((tensor.format(), tensor.shape()))
    }

    /// Whether there is a tensor `name`, readable or not.
    fn contains(&self, name: &str) -> bool;

    /// All names, in no particular order.
    fn names(&self) -> Box<dyn Iterator<Item = &str> + '_>;
}
