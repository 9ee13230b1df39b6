//! Weights held in memory, for tests and for models made by programs.

use std::collections::BTreeMap;

use super::{Tensor, Weights, WeightsError};

/// Named tensors in memory.
///
/// ```
/// use backend_api::weights::{Format, MapWeights, Shape, Tensor, Weights};
///
/// let mut weights = MapWeights::new();
/// let norm = Tensor::from_f32(Format::F32, Shape::Vector(2), &[1.0, 0.5])?;
/// weights.insert("model.norm.weight", norm);
/// assert_eq!(weights.tensor("model.norm.weight")?.to_f32(), [1.0, 0.5]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Default, Clone)]
pub struct MapWeights {
    tensors: BTreeMap<String, Tensor<'static>>,
}

impl MapWeights {
    /// No tensors yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a tensor, and returns the one that had the name before.
    pub fn insert(
        &mut self,
        name: impl Into<String>,
        tensor: Tensor<'static>,
    ) -> Option<Tensor<'static>> {
        self.tensors.insert(name.into(), tensor)
    }

    /// Takes a tensor out.
    pub fn remove(&mut self, name: &str) -> Option<Tensor<'static>> {
        self.tensors.remove(name)
    }
}

impl Weights for MapWeights {
    fn tensor(&self, name: &str) -> Result<Tensor<'_>, WeightsError> {
        let tensor = self
            .tensors
            .get(name)
            .ok_or_else(|| WeightsError::MissingTensor { name: name.to_owned() })?;
        Ok(tensor.borrowed())
    }

    fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    fn names(&self) -> Box<dyn Iterator<Item = &str> + '_> {
        Box::new(self.tensors.keys().map(String::as_str))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::{Format, Shape};

    #[test]
    fn a_missing_tensor_is_named() {
        let error = MapWeights::new().tensor("model.norm.weight").unwrap_err();
        assert_eq!(error.to_string(), "the model has no tensor `model.norm.weight`");
    }

    #[test]
    fn tensors_are_lent_not_copied() {
        let mut weights = MapWeights::new();
        let tensor = Tensor::from_f32(Format::F32, Shape::Vector(1), &[2.0]).expect("valid");
        assert!(weights.insert("a", tensor.clone()).is_none());
        let lent = weights.tensor("a").expect("present");
        assert!(matches!(lent.into_data(), std::borrow::Cow::Borrowed(_)));
        assert_eq!(weights.names().collect::<Vec<_>>(), ["a"]);
        assert_eq!(weights.remove("a"), Some(tensor));
        assert!(!weights.contains("a"));
    }
}
