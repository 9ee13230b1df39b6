//! Rotary position embedding: frequencies, and the ways to stretch them for longer contexts.
//!
//! Formulas as in transformers' `modeling_rope_utils`; "wavelength" is the number of positions
//! after which a pair of dimensions has turned once.

use std::f32::consts::{PI, TAU};

use super::{ConfigError, out_of_range};

/// How the frequencies of a model were changed after pre-training.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum RopeScaling {
    /// Every frequency divided by `factor` (position interpolation, Chen et al. 2023).
    Linear {
        /// At least 1.
        factor: f32,
    },
    /// Low frequencies divided by `factor`, high ones kept, those between blended (Llama 3.1).
    Llama3 {
        /// At least 1.
        factor: f32,
        /// Frequencies of wavelengths above `original_context / low_freq_factor` are divided.
        low_freq_factor: f32,
        /// Frequencies of wavelengths below `original_context / high_freq_factor` are kept.
        high_freq_factor: f32,
        /// Context length before stretching.
        original_context: usize,
    },
    /// A ramp over dimensions between kept and divided frequencies, with sharper attention
    /// (YaRN, Peng et al. 2023).
    Yarn {
        /// At least 1.
        factor: f32,
        /// Context length before stretching.
        original_context: usize,
        /// Turns over the original context above which a frequency is kept.
        beta_fast: f32,
        /// Turns over the original context below which a frequency is divided.
        beta_slow: f32,
        /// Multiplies sine and cosine; `0.1 ln(factor) + 1` if absent.
        attention_factor: Option<f32>,
    },
    /// A divisor for each frequency: how GGUF files store Llama 3's scaling
    /// (`rope_freqs.weight`).
    Factors(
        /// `head_dim / 2` divisors.
        Vec<f32>,
    ),
}

impl RopeScaling {
    /// `beta_fast` of YaRN where a checkpoint does not say.
    pub const YARN_BETA_FAST: f32 = 32.0;
    /// `beta_slow` of YaRN where a checkpoint does not say.
    pub const YARN_BETA_SLOW: f32 = 1.0;

    pub(super) fn validate(&self, head_dim: usize) -> Result<(), ConfigError> {
        let positive = |field, value: f32| match value.is_finite() && value > 0.0 {
            true => Ok(()),
            false => Err(out_of_range(field, value, "positive and finite".into())),
        };
        let stretching = |factor: f32| match factor.is_finite() && factor >= 1.0 {
            true => Ok(()),
            false => Err(out_of_range("factor", factor, "finite and at least 1".into())),
        };
        let context = |length: usize| match length {
            0 => Err(out_of_range("original_context", length, "at least 1".into())),
            _ => Ok(()),
        };
        match self {
            RopeScaling::Linear { factor } => stretching(*factor),
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
                stretching(*factor)?;
                context(*original_context)?;
                positive("low_freq_factor", *low_freq_factor)?;
                positive("high_freq_factor", *high_freq_factor)?;
                if high_freq_factor <= low_freq_factor {
                    let allowed = format!("above low_freq_factor ({low_freq_factor})");
                    return Err(out_of_range("high_freq_factor", high_freq_factor, allowed));
                }
                Ok(())
            }
            RopeScaling::Yarn {
                factor,
                original_context,
                beta_fast,
                beta_slow,
                attention_factor,
            } => {
                stretching(*factor)?;
                context(*original_context)?;
                positive("beta_fast", *beta_fast)?;
                positive("beta_slow", *beta_slow)?;
                positive("attention_factor", attention_factor.unwrap_or(1.0))
            }
            RopeScaling::Factors(factors) => {
                if factors.len() != head_dim / 2 {
                    return Err(ConfigError::WrongLength {
                        field: "rope_freqs",
                        expected: head_dim / 2,
                        actual: factors.len(),
                    });
                }
                factors.iter().try_for_each(|&factor| positive("rope_freqs", factor))
            }
        }
    }
}

/// A rotary embedding, ready to compute with: at position `p` the pair of dimensions `i` and
/// `i + head_dim / 2` of a head turns by `p * frequencies[i]`, and is multiplied by `scale`.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// `head_dim / 2` angles per position, in radians.
    pub frequencies: Vec<f32>,
    /// Multiplies sine and cosine: 1, except for YaRN.
    pub scale: f32,
}

impl Rope {
    /// The embedding of heads of `head_dim` dimensions with base `theta`.
    pub fn new(head_dim: usize, theta: f32, scaling: Option<&RopeScaling>) -> Self {
        let plain: Vec<f32> = (0..head_dim / 2)
            .map(|pair| 1.0 / theta.powf(2.0 * pair as f32 / head_dim as f32))
            .collect();
        let frequencies = match scaling {
            None => plain,
            Some(RopeScaling::Linear { factor }) => plain.iter().map(|f| f / factor).collect(),
            Some(RopeScaling::Factors(factors)) => {
                plain.iter().zip(factors).map(|(f, factor)| f / factor).collect()
            }
            Some(RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_context,
            }) => {
                let blend = |frequency: f32| {
                    let turns = *original_context as f32 * frequency / TAU;
                    let kept = ((turns - low_freq_factor) / (high_freq_factor - low_freq_factor))
                        .clamp(0.0, 1.0);
                    (1.0 - kept) * frequency / factor + kept * frequency
                };
                plain.iter().map(|&frequency| blend(frequency)).collect()
            }
            Some(RopeScaling::Yarn { factor, original_context, beta_fast, beta_slow, .. }) => {
                let (low, high) =
                    yarn_ramp(head_dim, theta, *original_context as f32, *beta_fast, *beta_slow);
                let blend = |(pair, frequency): (usize, &f32)| {
                    let divided = ((pair as f32 - low) / (high - low)).clamp(0.0, 1.0);
                    frequency / factor * divided + frequency * (1.0 - divided)
                };
                plain.iter().enumerate().map(blend).collect()
            }
        };
        let scale = match scaling {
            Some(RopeScaling::Yarn { factor, attention_factor, .. }) => {
                attention_factor.unwrap_or(0.1 * factor.ln() + 1.0)
            }
            _ => 1.0,
        };
        Self { frequencies, scale }
    }
}

/// The pairs of dimensions between which YaRN blends: up to the first, frequencies are kept;
/// from the second on, divided.
fn yarn_ramp(head_dim: usize, theta: f32, context: f32, fast: f32, slow: f32) -> (f32, f32) {
    let dimensions = head_dim as f32;
    let pair_of_turns =
        |turns: f32| dimensions * (context / (turns * 2.0 * PI)).ln() / (2.0 * theta.ln());
    let low = pair_of_turns(fast).floor().max(0.0);
    let high = pair_of_turns(slow).ceil().min(dimensions - 1.0);
    // Apart, so that the ramp between them has a slope.
    (low, if low == high { high + 0.001 } else { high })
}
