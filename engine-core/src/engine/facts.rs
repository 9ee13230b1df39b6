//! What an engine runs.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::backend::weights::Format;
use crate::model::{LoadedModel, Program};
use crate::weights::Weights;

/// What an engine runs: facts about the model, for a service that lists or reports it.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct ModelFacts {
    /// How the model was named, before it became a path
    /// ([`EngineBuilder::source`](super::EngineBuilder::source)).
    pub source: Option<String>,
    /// The directory or file that it was read from; `None` for a program of one's own.
    pub path: Option<PathBuf>,
    /// Its family: `llama`, say; `None` for a program of one's own.
    pub architecture: Option<String>,
    /// Longest sequence that it was made for, in tokens. The engine's own limit may be lower:
    /// [`EngineLimits::context_length`](super::EngineLimits::context_length).
    pub context_length: usize,
    /// Tokens in its vocabulary.
    pub vocab_size: u32,
    /// The format that most of its weights' bytes are in; `None` without weights.
    pub format: Option<Format>,
    /// Bytes of its weights, as they are stored.
    pub weight_bytes: u64,
}

impl ModelFacts {
    pub(super) fn new(
        program: &Program,
        weights: &dyn Weights,
        model: Option<&LoadedModel>,
        source: Option<String>,
        context_length: usize,
    ) -> Self {
        let bytes = bytes_by_format(program, weights);
        Self {
            source,
            path: model.map(|model| model.path.clone()),
            architecture: model.map(|model| model.config.architecture.to_string()),
            context_length,
            vocab_size: program.vocab_size(),
            format: bytes.iter().max_by_key(|(_, sum)| **sum).map(|(format, _)| *format),
            weight_bytes: bytes.values().sum(),
        }
    }
}

fn bytes_by_format(program: &Program, weights: &dyn Weights) -> BTreeMap<Format, u64> {
    let mut bytes = BTreeMap::new();
    // A weight that is missing or malformed counts nothing: compiling reports it, with what it was
    // needed for.
    for (format, shape) in program.weights().iter().filter_map(|w| weights.describe(&w.name).ok()) {
        *bytes.entry(format).or_default() += shape.byte_len(format).unwrap_or_default() as u64;
    }
    bytes
}
