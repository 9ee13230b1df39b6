//! Rotary position embedding: frequencies, and the ways to stretch them for longer contexts.
//!
//! Formulas as in transformers' `modeling_rope_utils`; "wavelength" is the number of positions
//! after which a pair of dimensions has turned once.

use std::{f32::consts::TAU, f64::consts::TAU as TAU64};

use super::{ConfigError, out_of_range};
use crate::model::{RopePairs, Rotary};

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

    /// What YaRN recommends for `attention_factor`.
    pub(super) fn yarn_attention_factor(factor: f32) -> f32 {
        0.1 * factor.ln() + 1.0
    }

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

/// The rotary embedding of heads of `head_dim` dimensions with base `theta`.
pub(super) fn rotary(head_dim: usize, theta: f32, scaling: Option<&RopeScaling>) -> Rotary {
    // In f32 and in this order, as the models were trained: at thousands of positions a last
    // bit of a frequency shows.
    let plain = (0..head_dim / 2).map(|pair| 1.0 / theta.powf((2 * pair) as f32 / head_dim as f32));
    let inverse_frequencies = match scaling {
        None => plain.collect(),
        Some(RopeScaling::Linear { factor }) => plain.map(|f| f / factor).collect(),
        Some(RopeScaling::Factors(factors)) => {
            plain.zip(factors).map(|(frequency, factor)| frequency / factor).collect()
        }
        Some(RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_context,
        }) => {
            let blend = |frequency: f32| {
                let wavelength = TAU / frequency;
                let turns = *original_context as f32 / wavelength;
                let kept = ((turns - low_freq_factor) / (high_freq_factor - low_freq_factor))
                    .clamp(0.0, 1.0);
                (1.0 - kept) * frequency / factor + kept * frequency
            };
            plain.map(blend).collect()
        }
        Some(RopeScaling::Yarn { factor, original_context, beta_fast, beta_slow, .. }) => {
            let (low, high) = yarn_ramp(head_dim, theta, *original_context, *beta_fast, *beta_slow);
            let blend = |(pair, frequency): (usize, f32)| {
                let divided = ((pair as f32 - low) / (high - low)).clamp(0.0, 1.0);
                frequency / factor * divided + frequency * (1.0 - divided)
            };
            plain.enumerate().map(blend).collect()
        }
    };
    let attention_factor = match scaling {
        Some(RopeScaling::Yarn { factor, attention_factor, .. }) => {
            attention_factor.unwrap_or_else(|| RopeScaling::yarn_attention_factor(*factor))
        }
        _ => 1.0,
    };
    Rotary { inverse_frequencies, attention_factor, pairs: RopePairs::Halves }
}

/// The pairs of dimensions between which YaRN blends: up to the first, frequencies are kept;
/// from the second on, divided.
fn yarn_ramp(head_dim: usize, theta: f32, context: usize, fast: f32, slow: f32) -> (f32, f32) {
    let (dimensions, theta) = (head_dim as f64, f64::from(theta));
    let pair_that_turns = |times: f32| {
        dimensions * (context as f64 / (f64::from(times) * TAU64)).ln() / (2.0 * theta.ln())
    };
    let low = pair_that_turns(fast).floor().max(0.0) as f32;
    let high = pair_that_turns(slow).ceil().min(dimensions - 1.0) as f32;
    // Apart, so that the ramp between them has a slope.
    (low, if low == high { high + 0.001 } else { high })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Frequencies as transformers 5.23 computes them, in f32, with heads of 16 dimensions.
    fn agrees(theta: f32, scaling: Option<RopeScaling>, expected: [f32; 8], factor: f32) {
        let rotary = rotary(16, theta, scaling.as_ref());
        assert_eq!(rotary.pairs, RopePairs::Halves);
        assert_eq!(rotary.inverse_frequencies.len(), 8);
        for (actual, expected) in rotary.inverse_frequencies.iter().zip(expected) {
            // Two units in the last place: powers differ between mathematics libraries.
            assert!((actual / expected - 1.0).abs() < 2.5e-7, "{scaling:?}: {actual}, {expected}");
        }
        assert!((rotary.attention_factor - factor).abs() < 1e-6, "{scaling:?}");
    }

    #[test]
    fn frequencies_are_those_of_transformers() {
        let plain =
            [1.0, 0.316_227_76, 0.1, 0.031_622_78, 0.01, 0.003_162_277_9, 0.001, 0.000_316_227_8];
        agrees(10_000.0, None, plain, 1.0);
        agrees(
            10_000.0,
            Some(RopeScaling::Linear { factor: 4.0 }),
            plain.map(|frequency| frequency / 4.0),
            1.0,
        );
        let llama3 = RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_context: 256,
        };
        agrees(
            500_000.0,
            Some(llama3),
            [
                1.0,
                1.939_227_6e-1,
                1.053_823_1e-2,
                9.115_831e-4,
                1.767_766_8e-4,
                3.428_102_4e-5,
                6.647_869_7e-6,
                1.289_173_2e-6,
            ],
            1.0,
        );
    }

    #[test]
    fn yarn_is_that_of_transformers() {
        let yarn = |beta_fast, beta_slow, attention_factor| RopeScaling::Yarn {
            factor: 4.0,
            original_context: 1024,
            beta_fast,
            beta_slow,
            attention_factor,
        };
        let divided = [1.405_853_3e-3, 2.5e-4, 4.445_698_5e-5, 7.905_694e-6, 1.405_853_4e-6];
        let expected = |second: f32, third: f32| {
            let [a, b, c, d, e] = divided;
            [1.0, second, third, a, b, c, d, e]
        };
        let default = yarn(RopeScaling::YARN_BETA_FAST, RopeScaling::YARN_BETA_SLOW, None);
        agrees(1e6, Some(default), expected(1.333_709_5e-1, 1.581_139e-2), 1.138_629_4);
        let narrow = yarn(16.0, 2.0, Some(0.75));
        agrees(1e6, Some(narrow), expected(1.778_279_4e-1, 1.976_423_7e-2), 0.75);
    }
}
