//! Small models with random weights.

use engine_core::model::{ModelConfig, Op, Program, WeightId, build};
use engine_core::weights::{Format, MapWeights, Shape, Tensor};

use super::failure::{CaseError, Failure};
use crate::random::Random;

/// Tokens of every model here. No multiple of anything, and few enough that one `u8` can ask for
/// the log probability of each.
pub(super) const VOCAB_SIZE: u32 = 157;

/// Everything that is compiled.
#[derive(Clone, Debug)]
pub(super) struct Model {
    /// At least one.
    pub(super) programs: Vec<Program>,
    pub(super) weights: MapWeights,
}

/// What a weight is for, which says how large it should be.
#[derive(Clone, Copy)]
enum Purpose {
    /// Its standard deviation.
    Matrix(f32),
    /// What the file is to hold instead of 1.
    Norm(f32),
    Bias,
    Sinks,
}

impl Model {
    /// Random weights for a program: matrices in `format`, vectors in f32.
    pub(super) fn random(program: Program, format: Format, seed: u64) -> Result<Self, Failure> {
        Self::random_with(program, seed, |_| format, Format::F32)
    }

    /// Random weights for a program, each matrix in the format that `format` gives its name.
    pub(super) fn random_with(
        program: Program,
        seed: u64,
        format: impl Fn(&str) -> Format,
        vector_format: Format,
    ) -> Result<Self, Failure> {
        let mut weights = MapWeights::new();
        add_weights(&mut weights, &program, seed, format, vector_format)?;
        Ok(Self { programs: vec![program], weights })
    }

    /// Random weights for several programs, whose weights' names differ.
    pub(super) fn random_programs(
        programs: Vec<Program>,
        format: Format,
        seed: u64,
    ) -> Result<Self, Failure> {
        let mut weights = MapWeights::new();
        for (program, seed) in programs.iter().zip(seed..) {
            add_weights(&mut weights, program, seed, |_| format, Format::F32)?;
        }
        Ok(Self { programs, weights })
    }

    /// The first program.
    pub(super) fn program(&self) -> &Program {
        &self.programs[0]
    }

    /// A model of a configuration as `config.json` has it.
    pub(super) fn of_config(config: &str, format: Format, seed: u64) -> Result<Self, Failure> {
        let config = ModelConfig::from_huggingface(config)?;
        Self::random(build(&config, !config.tie_word_embeddings)?, format, seed)
    }

    /// The Llama that most cases run.
    pub(super) fn llama() -> Result<Self, Failure> {
        Self::of_config(&config("LlamaForCausalLM", ""), Format::F32, 1)
    }
}

/// Adds a random tensor for each weight of a program.
fn add_weights(
    weights: &mut MapWeights,
    program: &Program,
    seed: u64,
    format: impl Fn(&str) -> Format,
    vector_format: Format,
) -> Result<(), Failure> {
    let mut random = Random::new(seed);
    for (index, weight) in (0..).zip(program.weights()) {
        let purpose = purpose(program, WeightId(index));
        let shape = Shape::from_dims(&weight.shape).ok_or(CaseError::Rank)?;
        let is_vector = matches!(shape, Shape::Vector(_)) || matches!(purpose, Purpose::Bias);
        let format = if is_vector { vector_format } else { format(&weight.name) };
        let values: Vec<f32> =
            (0..shape.rows() * shape.cols()).map(|_| value(purpose, &mut random)).collect();
        weights.insert(weight.name.clone(), Tensor::from_f32(format, shape, &values)?);
    }
    Ok(())
}

/// `config.json` of a small model: two layers, 4 query heads on 2 KV heads. `more` are further
/// members, each with a comma in front.
pub(super) fn config(architecture: &str, more: &str) -> String {
    format!(
        r#"{{"architectures": ["{architecture}"], "vocab_size": {VOCAB_SIZE}, "hidden_size": 64,
        "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 512,
        "tie_word_embeddings": true {more}}}"#
    )
}

/// `count` random tokens.
pub(super) fn prompt(count: usize, seed: u64) -> Vec<u32> {
    let mut random = Random::new(seed);
    (0..count).map(|_| random.below(VOCAB_SIZE as usize) as u32).collect()
}

/// What the program does with a weight. One that is both embedding and output layer is
/// an embedding.
fn purpose(program: &Program, id: WeightId) -> Purpose {
    let columns = program.weights()[id.index()].shape.last().copied().unwrap_or(1) as f32;
    let of_op = |op: &Op| match op {
        Op::Embed { weight, .. } if *weight == id => Some(Purpose::Matrix(0.3)),
        // Logits as large as what they are made of, so that rounding shows by its usual size.
        Op::Logits { weight, .. } if *weight == id => Some(Purpose::Matrix(1.0 / columns.sqrt())),
        Op::Linear { weight, .. } if *weight == id => Some(Purpose::Matrix(1.7 / columns.sqrt())),
        Op::Linear { bias: Some(bias), .. } if *bias == id => Some(Purpose::Bias),
        Op::RmsNorm { weight, weight_offset, .. } if *weight == Some(id) => {
            Some(Purpose::Norm(1.0 - weight_offset))
        }
        Op::Attention(attention) if attention.sinks == Some(id) => Some(Purpose::Sinks),
        Op::Multiply { weight, .. } if *weight == id => Some(Purpose::Norm(1.0)),
        Op::MixtureOfExperts(mixture) => {
            let layers = [mixture.gate, mixture.up, mixture.down];
            if layers.iter().any(|layer| layer.weight == id) {
                Some(Purpose::Matrix(1.7 / columns.sqrt()))
            } else if layers.iter().any(|layer| layer.bias == Some(id)) {
                Some(Purpose::Bias)
            } else if mixture.routing.scales == Some(id) {
                Some(Purpose::Norm(1.0))
            } else {
                (mixture.routing.selection_bias == Some(id)).then_some(Purpose::Bias)
            }
        }
        _ => None,
    };
    program.ops().iter().find_map(of_op).unwrap_or(Purpose::Matrix(1.0))
}

fn value(purpose: Purpose, random: &mut Random) -> f32 {
    // The standard deviation of a uniform distribution from -1 to 1 is 1 / √3.
    let unit = random.uniform() * 3f32.sqrt();
    match purpose {
        Purpose::Matrix(deviation) => deviation * unit,
        Purpose::Norm(one) => one + 0.2 * unit,
        Purpose::Bias => 0.5 * unit,
        Purpose::Sinks => unit,
    }
}
