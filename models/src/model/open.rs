//! Opens a checkpoint: configuration, generation defaults and weights, from either kind of
//! source.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::Fields;
use super::arch::{OUTPUT_WEIGHT, build};
use super::config::{ConfigError, GenerationDefaults, ModelConfig, read_text};
use crate::weights::{
    GgufFile, GgufWeights, HuggingFaceWeights, QuantizedWeights, SafetensorsWeights, Scheme,
    WeightFileError, Weights, with_experts,
};
use backend_api::program::{Program, ProgramError};

const CONFIG_FILE: &str = "config.json";
const GENERATION_FILE: &str = "generation_config.json";

/// An opened checkpoint. Weights are mapped, not yet read.
#[derive(Debug)]
#[non_exhaustive]
pub struct LoadedModel {
    /// Dimensions and constants.
    pub config: ModelConfig,
    /// What the checkpoint recommends for generation.
    pub generation: GenerationDefaults,
    /// The weights, under the names of Hugging Face.
    pub weights: Box<dyn Weights>,
    /// Where the rest is: tokenizer and chat template.
    pub files: ModelFiles,
    /// The directory or file that was opened.
    pub path: PathBuf,
}

impl LoadedModel {
    /// The program that computes the model.
    ///
    /// # Errors
    ///
    /// A configuration whose numbers don't fit together.
    pub fn program(&self) -> Result<Program, ProgramError> {
        self.program_for(self.config.context_length)
    }

    /// The program that computes the model for sequences of at most `context_length` tokens. It is
    /// another one where LongRoPE has other frequencies for short contexts.
    ///
    /// # Errors
    ///
    /// As [`program`](Self::program).
    pub fn program_for(&self, context_length: usize) -> Result<Program, ProgramError> {
        let config = ModelConfig { context_length, ..self.config.clone() };
        build(&config, self.weights.contains(OUTPUT_WEIGHT))
    }
}

/// What a model was opened from.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum ModelFiles {
    /// A directory as Hugging Face lays it out.
    HuggingFace {
        /// The directory.
        directory: PathBuf,
    },
    /// One GGUF file; its metadata holds tokenizer and chat template.
    Gguf {
        /// The open file.
        file: Arc<GgufFile>,
    },
}

/// A checkpoint that can't be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// There is nothing at the path.
    #[error("cannot open a model at {}", path.display())]
    NotFound {
        /// The path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The configuration is malformed, or not supported.
    #[error("cannot use the configuration in {}", path.display())]
    Config {
        /// The file that holds it.
        path: PathBuf,
        /// What is wrong with it.
        source: ConfigError,
    },
    /// The weights are malformed.
    #[error("cannot use the weights of the model")]
    Weights {
        /// What is wrong with them.
        #[from]
        source: WeightFileError,
    },
}

/// Opens the model at `path`: a directory as Hugging Face lays it out, or a GGUF file. The
/// files must not be changed while the model is in use.
///
/// # Errors
///
/// [`OpenError`], which says which file is at fault.
pub fn open_model(path: &Path) -> Result<LoadedModel, OpenError> {
    let kind =
        path.metadata().map_err(|source| OpenError::NotFound { path: path.to_owned(), source })?;
    if kind.is_dir() { open_directory(path) } else { open_gguf(path) }
}

fn open_directory(directory: &Path) -> Result<LoadedModel, OpenError> {
    let failed = |file: &str| {
        let path = directory.join(file);
        move |source| OpenError::Config { path, source }
    };
    let config_text = read_text(&directory.join(CONFIG_FILE)).map_err(failed(CONFIG_FILE))?;
    let generation_text = match read_text(&directory.join(GENERATION_FILE)) {
        Ok(text) => Some(text),
        Err(ConfigError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(failed(GENERATION_FILE)(error)),
    };
    let config = ModelConfig::from_huggingface(&config_text).map_err(failed(CONFIG_FILE))?;
    let generation = GenerationDefaults::from_huggingface(&config_text, generation_text.as_deref())
        .map_err(failed(GENERATION_FILE))?;
    let scheme = Fields::parse(&config_text).and_then(|json| Scheme::read(&json));
    let stored = SafetensorsWeights::open(directory)?;
    let weights: Box<dyn Weights> = match scheme.map_err(failed(CONFIG_FILE))? {
        None => Box::new(HuggingFaceWeights::new(stored, &config)),
        Some(scheme) => {
            Box::new(HuggingFaceWeights::new(QuantizedWeights::new(stored, scheme), &config))
        }
    };
    Ok(LoadedModel {
        generation,
        weights: with_experts(weights, &config),
        config,
        files: ModelFiles::HuggingFace { directory: directory.to_owned() },
        path: directory.to_owned(),
    })
}

fn open_gguf(path: &Path) -> Result<LoadedModel, OpenError> {
    let failed = |source| OpenError::Config { path: path.to_owned(), source };
    let file = Arc::new(GgufFile::open(path)?);
    let config = ModelConfig::from_gguf(&file).map_err(failed)?;
    Ok(LoadedModel {
        generation: GenerationDefaults::from_gguf(&file),
        weights: with_experts(Box::new(GgufWeights::new(Arc::clone(&file), &config)?), &config),
        config,
        files: ModelFiles::Gguf { file },
        path: path.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        model::RopeScaling,
        weights::{Format, GgufWriter, Shape, Tensor, Value},
    };

    const CONFIG: &str = r#"{"architectures": ["LlamaForCausalLM"], "vocab_size": 8,
        "hidden_size": 4, "intermediate_size": 8, "num_hidden_layers": 1,
        "num_attention_heads": 2, "max_position_embeddings": 16, "eos_token_id": 2}"#;

    fn norm() -> Tensor<'static> {
        Tensor::from_f32(Format::F32, Shape::Vector(4), &[1.0, 2.0, 3.0, 4.0]).expect("valid")
    }

    fn directory(files: &[(&str, &[u8])]) -> tempfile::TempDir {
        let directory = tempfile::tempdir().expect("temporary directory");
        for (name, bytes) in files {
            std::fs::write(directory.path().join(name), bytes).expect("writable");
        }
        directory
    }

    fn safetensors_file() -> Vec<u8> {
        let norm = norm();
        let view =
            safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![4], norm.data())
                .expect("consistent view");
        safetensors::serialize([("model.norm.weight", view)], None).expect("serializable")
    }

    #[test]
    fn a_directory_opens_as_a_hugging_face_checkpoint() {
        let directory = directory(&[
            (CONFIG_FILE, CONFIG.as_bytes()),
            (GENERATION_FILE, br#"{"eos_token_id": [2, 3], "temperature": 0.5}"#),
            ("model.safetensors", &safetensors_file()),
        ]);
        let model = open_model(directory.path()).expect("well-formed");
        assert_eq!(model.config.architecture.name(), "llama");
        assert_eq!(model.generation.eos_tokens, [2, 3]);
        assert_eq!(model.generation.temperature, Some(0.5));
        assert_eq!(model.weights.tensor("model.norm.weight").expect("present"), norm());
        assert!(matches!(model.files, ModelFiles::HuggingFace { .. }));
    }

    #[test]
    fn generation_config_is_optional() {
        let directory = directory(&[
            (CONFIG_FILE, CONFIG.as_bytes()),
            ("model.safetensors", &safetensors_file()),
        ]);
        let model = open_model(directory.path()).expect("well-formed");
        assert_eq!(model.generation.eos_tokens, [2]);
    }

    fn gguf_file() -> Vec<u8> {
        let sizes = [
            ("vocab_size", 8),
            ("embedding_length", 4),
            ("feed_forward_length", 8),
            ("block_count", 1),
            ("attention.head_count", 2),
            ("context_length", 16),
        ];
        let writer = sizes.iter().fold(GgufWriter::new(), |writer, (key, size)| {
            writer.metadata(&format!("llama.{key}"), Value::U32(*size))
        });
        let query: Vec<f32> = (0..16).map(|i| i as f32).collect();
        let query = Tensor::from_f32(Format::F32, Shape::matrix(4, 4), &query).expect("valid");
        let factors = Tensor::from_f32(Format::F32, Shape::Vector(1), &[2.0]).expect("valid");
        writer
            .metadata("general.architecture", Value::String("llama".into()))
            .metadata("llama.attention.layer_norm_rms_epsilon", Value::F32(1e-5))
            .metadata("tokenizer.ggml.eos_token_id", Value::U32(2))
            .tensor("output_norm.weight", &norm())
            .tensor("blk.0.attn_q.weight", &query)
            .tensor("rope_freqs.weight", &factors)
            .finish()
    }

    #[test]
    fn a_file_opens_as_gguf() {
        let directory = directory(&[("model.gguf", &gguf_file())]);
        let model = open_model(&directory.path().join("model.gguf")).expect("well-formed");
        let [layer] = &model.config.layers[..] else { panic!("{:?}", model.config.layers) };
        let rope = layer.rope.as_ref().expect("rotated");
        assert_eq!(rope.scaling, Some(RopeScaling::Factors(vec![2.0])));
        assert_eq!(model.generation.eos_tokens, [2]);
        assert_eq!(model.weights.tensor("model.norm.weight").expect("present"), norm());
        let query = model.weights.tensor("model.layers.0.self_attn.q_proj.weight");
        // Heads of two rows: their only pair is in order either way.
        assert_eq!(query.expect("present").to_f32()[4..8], [4.0, 5.0, 6.0, 7.0]);
        assert!(matches!(model.files, ModelFiles::Gguf { .. }));
    }

    proptest! {
        /// Past the header, too: configuration, generation defaults, names and rows.
        #[test]
        fn flipped_bytes_of_a_gguf_model_never_panic(
            flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        ) {
            let mut bytes = gguf_file();
            for (index, byte) in flips {
                let position = index.index(bytes.len());
                bytes[position] = byte;
            }
            let Ok(file) = GgufFile::from_bytes(bytes) else { return Ok(()) };
            // What opens may fail or succeed in each of these, in its own way.
            let _ = GenerationDefaults::from_gguf(&file);
            if let Ok(config) = ModelConfig::from_gguf(&file) {
                let _ = build(&config, false);
                if let Ok(weights) = GgufWeights::new(Arc::new(file), &config) {
                    for name in weights.names() {
                        let _ = weights.tensor(name).map(|tensor| tensor.to_f32());
                    }
                }
            }
        }

        #[test]
        fn flipped_bytes_of_a_config_never_panic(
            flips in prop::collection::vec((any::<prop::sample::Index>(), any::<char>()), 1..4),
        ) {
            let mut characters: Vec<char> = CONFIG.chars().collect();
            for (index, character) in flips {
                let position = index.index(characters.len());
                characters[position] = character;
            }
            let text: String = characters.into_iter().collect();
            let _ = GenerationDefaults::from_huggingface(&text, None);
            if let Ok(config) = ModelConfig::from_huggingface(&text) {
                let _ = build(&config, false);
            }
        }
    }

    #[test]
    fn what_is_missing_or_malformed_is_named() {
        let open =
            |files: &[(&str, &[u8])]| open_model(directory(files).path()).expect_err("incomplete");
        let error = open(&[]);
        assert!(
            matches!(&error, OpenError::Config { path, source: ConfigError::Io { .. } } if path.ends_with(CONFIG_FILE)),
            "{error}"
        );
        let error = open(&[(CONFIG_FILE, CONFIG.as_bytes())]);
        let expected =
            matches!(error, OpenError::Weights { source: WeightFileError::NoWeightFiles { .. } });
        assert!(expected, "{error}");
        let error = open(&[(CONFIG_FILE, CONFIG.as_bytes()), (GENERATION_FILE, b"[]")]);
        assert!(
            matches!(&error, OpenError::Config { path, .. } if path.ends_with(GENERATION_FILE)),
            "{error}"
        );

        let elsewhere = directory(&[("text.gguf", b"not a model")]);
        let error = open_model(&elsewhere.path().join("absent")).expect_err("absent");
        assert!(matches!(error, OpenError::NotFound { .. }), "{error}");
        let error = open_model(&elsewhere.path().join("text.gguf")).expect_err("not a model");
        let expected = matches!(error, OpenError::Weights { source: WeightFileError::Gguf { .. } });
        assert!(expected, "{error}");
    }
}
