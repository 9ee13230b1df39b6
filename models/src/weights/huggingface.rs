//! A checkpoint of Hugging Face seen as a program sees it: the text model of a larger one under its
//! own names, fused weights apart.

use std::collections::BTreeMap;

use super::fused::{self, Rows};
use super::{Format, Shape, Tensor, Weights, WeightsError};
use crate::model::ModelConfig;

/// Where a model of text and images keeps the text model, and where a model of text has it.
const PREFIXES: [(&str, &str); 3] = [
    ("language_model.model.", "model."),
    ("language_model.lm_head.", "lm_head."),
    ("model.language_model.", "model."),
];

/// The weights of a checkpoint, by the names that a program has for them.
#[derive(Debug)]
pub(crate) struct HuggingFaceWeights<W> {
    stored: W,
    entries: BTreeMap<String, (String, Rows)>,
}

impl<W: Weights> HuggingFaceWeights<W> {
    pub(crate) fn new(stored: W, config: &ModelConfig) -> Self {
        let mut entries = BTreeMap::new();
        for stored_name in stored.names() {
            for (name, rows) in fused::parts(&own_name(stored_name), config) {
                entries.insert(name, (stored_name.to_owned(), rows));
            }
        }
        Self { stored, entries }
    }
}

fn own_name(stored: &str) -> String {
    let strip =
        |(theirs, own): (&str, &str)| Some(format!("{own}{}", stored.strip_prefix(theirs)?));
    PREFIXES.into_iter().find_map(strip).unwrap_or_else(|| stored.to_owned())
}

impl<W: Weights> Weights for HuggingFaceWeights<W> {
    fn tensor(&self, name: &str) -> Result<Tensor<'_>, WeightsError> {
        let Some((stored, rows)) = self.entries.get(name) else {
            return Err(WeightsError::MissingTensor { name: name.to_owned() });
        };
        rows.take(name, self.stored.tensor(stored)?)
    }

    fn describe(&self, name: &str) -> Result<(Format, Shape), WeightsError> {
        let Some((stored, rows)) = self.entries.get(name) else {
            return Err(WeightsError::MissingTensor { name: name.to_owned() });
        };
        let (format, shape) = self.stored.describe(stored)?;
        Ok((format, rows.shape(name, format, shape)?))
    }

    fn contains(&self, name: &str) -> bool {
        self.entries.contains_key(name)
    }

    fn names(&self) -> Box<dyn Iterator<Item = &str> + '_> {
        Box::new(self.entries.keys().map(String::as_str))
    }
}
