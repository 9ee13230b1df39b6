//! Rotary position embedding: frequencies, and the ways to stretch them for longer contexts.
//!
//! Formulas as in transformers' `modeling_rope_utils`; "wavelength" is the number of positions
//! after which a pair of dimensions has turned once.

use std::{f32::consts::TAU, f64::consts::TAU as TAU64, sync::Arc};

use super::{
    ConfigError,
    json::{Fields, missing},
    out_of_range,
};
use crate::model::{RopePairs, Rotary, arch::Family};

const DEFAULT_THETA: f32 = 10_000.0;

/// The rotary position embedding of a layer.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Rope {
    /// Base of the frequencies.
    pub theta: f32,
    /// Dimensions of a head that are rotated, the first ones; even. The others pass unchanged.
    pub dim: usize,
    /// Which dimensions form a pair, in the order of rows that [`Weights`](crate::weights::Weights)
    /// have.
    pub pairs: RopePairs,
    /// How the frequencies were stretched for a longer context.
    pub scaling: Option<RopeScaling>,
}

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
        /// Multiplies sine and cosine; YaRN recommends `0.1 ln(factor) + 1`.
        attention_factor: f32,
        /// Whether the ends of the ramp are whole dimensions.
        truncate: bool,
    },
    /// Only the first pairs are rotated, and the frequencies are those of all (Gemma 4): the others
    /// have frequency 0, with their partners half a head away.
    Proportional {
        /// Pairs that are rotated, at most `dim / 2`.
        pairs: usize,
        /// Divides the frequencies, at least 1.
        factor: f32,
    },
    /// A divisor for each frequency: how GGUF files store Llama 3's scaling
    /// (`rope_freqs.weight`).
    Factors(
        /// `dim / 2` divisors.
        Vec<f32>,
    ),
    /// A divisor for each frequency, other ones for contexts beyond the original (LongRoPE, Ding et
    /// al. 2024). The context that the model is *used* for decides, for all positions: KV in a cache
    /// must not depend on the length of the sequence that made it.
    LongRope {
        /// `dim / 2` divisors for contexts up to the original.
        short: Vec<f32>,
        /// `dim / 2` divisors for longer contexts.
        long: Vec<f32>,
        /// Context length before stretching.
        original_context: usize,
        /// Multiplies sine and cosine.
        attention_factor: f32,
    },
}

impl RopeScaling {
    /// `beta_fast` of YaRN where a checkpoint does not say.
    pub const YARN_BETA_FAST: f32 = 32.0;
    /// `beta_slow` of YaRN where a checkpoint does not say.
    pub const YARN_BETA_SLOW: f32 = 1.0;

    fn validate(&self, dim: usize) -> Result<(), ConfigError> {
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
        let divisors = |field, list: &[f32]| {
            let (expected, actual) = (dim / 2, list.len());
            if expected != actual {
                return Err(ConfigError::WrongLength { field, expected, actual });
            }
            list.iter().try_for_each(|&divisor| positive(field, divisor))
        };
        match self {
            RopeScaling::Linear { factor } => stretching(*factor),
            RopeScaling::Proportional { pairs, factor } => {
                if *pairs > dim / 2 {
                    let allowed = format!("0..={}", dim / 2);
                    return Err(out_of_range("pairs that are rotated", pairs, allowed));
                }
                stretching(*factor)
            }
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
                truncate: _,
            } => {
                stretching(*factor)?;
                context(*original_context)?;
                positive("beta_fast", *beta_fast)?;
                positive("beta_slow", *beta_slow)?;
                positive("attention_factor", *attention_factor)
            }
            RopeScaling::Factors(factors) => divisors("rope_freqs", factors),
            RopeScaling::LongRope { short, long, original_context, attention_factor } => {
                context(*original_context)?;
                positive("attention_factor", *attention_factor)?;
                divisors("short_factor", short)?;
                divisors("long_factor", long)
            }
        }
    }
}

impl Rope {
    pub(super) fn validate(&self, head_dim: usize) -> Result<(), ConfigError> {
        // A base of 1 would turn all dimensions alike, and has no logarithm to divide by.
        if !self.theta.is_finite() || self.theta <= 1.0 {
            return Err(out_of_range("rope_theta", self.theta, "finite and above 1".into()));
        }
        if !(2..=head_dim).contains(&self.dim) || !self.dim.is_multiple_of(2) {
            let allowed = format!("an even number within 2..={head_dim}");
            return Err(out_of_range("dimensions that are rotated", self.dim, allowed));
        }
        self.scaling.as_ref().map_or(Ok(()), |scaling| scaling.validate(self.dim))
    }

    /// Frequencies and factor for a model that is used for `context_length` positions.
    pub fn rotary(&self, context_length: usize) -> Rotary {
        let Self { theta, dim, pairs, ref scaling } = *self;
        // In f32 and in this order, as the models were trained: at thousands of positions a last
        // bit of a frequency shows.
        let power = |pair: usize| theta.powf((2 * pair) as f32 / dim as f32);
        let plain = (0..dim / 2).map(|pair| 1.0 / power(pair));
        let inverse_frequencies = match scaling {
            None => plain.collect(),
            Some(RopeScaling::Proportional { pairs, factor }) => {
                let rotated =
                    |(pair, frequency)| if pair < *pairs { frequency / factor } else { 0.0 };
                plain.enumerate().map(rotated).collect()
            }
            Some(RopeScaling::Linear { factor }) => plain.map(|f| f / factor).collect(),
            Some(RopeScaling::Factors(factors)) => {
                plain.zip(factors).map(|(frequency, factor)| frequency / factor).collect()
            }
            Some(RopeScaling::LongRope { short, long, original_context, .. }) => {
                let factors = if context_length > *original_context { long } else { short };
                (0..dim / 2)
                    .zip(factors)
                    .map(|(pair, factor)| 1.0 / (factor * power(pair)))
                    .collect()
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
            Some(RopeScaling::Yarn {
                factor,
                original_context,
                beta_fast,
                beta_slow,
                truncate,
                ..
            }) => {
                let turns = [*beta_fast, *beta_slow];
                let (low, high) = yarn_ramp(dim, theta, *original_context, turns, *truncate);
                let blend = |(pair, frequency): (usize, f32)| {
                    let divided = ((pair as f32 - low) / (high - low)).clamp(0.0, 1.0);
                    frequency / factor * divided + frequency * (1.0 - divided)
                };
                plain.enumerate().map(blend).collect()
            }
        };
        let attention_factor = match scaling {
            Some(
                RopeScaling::Yarn { attention_factor, .. }
                | RopeScaling::LongRope { attention_factor, .. },
            ) => *attention_factor,
            _ => 1.0,
        };
        Rotary { inverse_frequencies, attention_factor, pairs }
    }
}

/// Reads the rotary embedding of a `config.json`: that of all layers, and that of windowed layers
/// where the file tells them apart.
pub(super) fn read(
    json: &Fields,
    head_dim: usize,
    family: &Family,
) -> Result<(Arc<Rope>, Option<Arc<Rope>>), ConfigError> {
    const KINDS: [&str; 2] = ["full_attention", "sliding_attention"];
    let (spelling, parameters) = match json.object("rope_parameters")? {
        Some(parameters) => ("rope_parameters", parameters),
        None => ("rope_scaling", json.object("rope_scaling")?.unwrap_or_default()),
    };
    let theta = json.f32("rope_theta")?.unwrap_or(DEFAULT_THETA);
    let local_theta = json.f32("rope_local_base_freq")?;
    let of_heads = |head_dim, parameters: &Fields, theta| -> Result<Arc<Rope>, ConfigError> {
        let theta = parameters.f32("rope_theta")?.unwrap_or(theta);
        let pairs = family.rope_pairs;
        if parameters.string("rope_type")? == Some("proportional") {
            let scaling = Some(proportional(parameters, head_dim)?);
            return Ok(Arc::new(Rope { theta, dim: head_dim, pairs, scaling }));
        }
        let dim = rotated(json, parameters, head_dim, family)?;
        Ok(Arc::new(Rope { theta, dim, pairs, scaling: scaling(json, parameters)? }))
    };
    let one = |parameters: &Fields, theta| of_heads(head_dim, parameters, theta);
    if !parameters.values().any(|value| value.is_object()) {
        let windowed = local_theta.map(|theta| one(&Fields::default(), theta)).transpose()?;
        return Ok((one(&parameters, theta)?, windowed));
    }
    let [full, windowed] = KINDS.map(|kind| parameters.object(kind));
    let (Some(full), windowed) = (full?, windowed?) else {
        return Err(ConfigError::Unsupported {
            field: spelling.to_owned(),
            value: "one set per kind of layer".into(),
            supported: "for all layers, full_attention and sliding_attention",
        });
    };
    let windowed = windowed.unwrap_or_default();
    let full_dim = full_head_dim(json)?.unwrap_or(head_dim);
    Ok((of_heads(full_dim, &full, theta)?, Some(one(&windowed, local_theta.unwrap_or(theta))?)))
}

/// Width of the heads of full layers, where they have another: `global_head_dim`, or what transformers 5
/// writes of single layers.
fn full_head_dim(json: &Fields) -> Result<Option<usize>, ConfigError> {
    let layers = json.object("per_layer_config")?.unwrap_or_default();
    let single = layers.names().next().map(|index| layers.object(index)).transpose()?;
    match single.flatten().unwrap_or_default().usize("head_dim")? {
        Some(head_dim) => Ok(Some(head_dim)),
        None => json.usize("global_head_dim"),
    }
}

fn proportional(parameters: &Fields, head_dim: usize) -> Result<RopeScaling, ConfigError> {
    let share = parameters.f32("partial_rotary_factor")?.unwrap_or(1.0);
    // Whatever is no share is found out in validation.
    let pairs = (f64::from(share) * head_dim as f64 / 2.0).max(0.0) as usize;
    Ok(RopeScaling::Proportional { pairs, factor: parameters.f32("factor")?.unwrap_or(1.0) })
}

/// How many dimensions of a head are rotated.
fn rotated(
    json: &Fields,
    parameters: &Fields,
    head_dim: usize,
    family: &Family,
) -> Result<usize, ConfigError> {
    let field = "partial_rotary_factor";
    let factor = parameters.f32(field)?.or(json.f32(field)?).unwrap_or(1.0);
    if factor == 1.0 {
        return Ok(head_dim);
    }
    if !family.rotates_partially {
        return Err(ConfigError::Unsupported {
            field: field.into(),
            value: factor.to_string(),
            supported: "1",
        });
    }
    // Down to a whole number; the small addend undoes that 0.7 has no exact f32.
    Ok((head_dim as f64 * f64::from(factor) + 1e-3).max(0.0) as usize)
}

fn scaling(json: &Fields, parameters: &Fields) -> Result<Option<RopeScaling>, ConfigError> {
    let kind = match parameters.string("rope_type")? {
        Some(kind) => kind,
        None => parameters.string("type")?.unwrap_or("default"),
    };
    // Kept apart from `max_position_embeddings`, which some checkpoints raise to the
    // stretched length and others leave alone.
    let original_context = || {
        let field = "original_max_position_embeddings";
        match parameters.usize(field)?.map_or_else(|| json.usize(field), |it| Ok(Some(it)))? {
            Some(length) => Ok(length),
            None => json.required_usize("max_position_embeddings"),
        }
    };
    Ok(match kind {
        "default" => None,
        "linear" => Some(RopeScaling::Linear { factor: parameters.required_f32("factor")? }),
        "llama3" => Some(RopeScaling::Llama3 {
            factor: parameters.required_f32("factor")?,
            low_freq_factor: parameters.required_f32("low_freq_factor")?,
            high_freq_factor: parameters.required_f32("high_freq_factor")?,
            original_context: original_context()?,
        }),
        // The first files of Phi-3 use these names for what is now `longrope`.
        "longrope" | "su" => Some(long_rope(json, parameters, original_context()?)?),
        "yarn" if parameters.get("short_factor").is_some() => {
            Some(long_rope(json, parameters, original_context()?)?)
        }
        "yarn" => {
            let factor = parameters.required_f32("factor")?;
            Some(RopeScaling::Yarn {
                factor,
                original_context: original_context()?,
                beta_fast: parameters.f32("beta_fast")?.unwrap_or(RopeScaling::YARN_BETA_FAST),
                beta_slow: parameters.f32("beta_slow")?.unwrap_or(RopeScaling::YARN_BETA_SLOW),
                attention_factor: match parameters.f32("attention_factor")? {
                    Some(given) => given,
                    None => {
                        let scale = parameters.f32("mscale")?.unwrap_or(0.0);
                        let all = parameters.f32("mscale_all_dim")?.unwrap_or(0.0);
                        yarn_attention(factor, scale, all)
                    }
                },
                truncate: parameters
                    .bool("truncate")?
                    .or(json.bool("rope_truncate")?)
                    .unwrap_or(true),
            })
        }
        other => {
            return Err(ConfigError::Unsupported {
                field: "rope_type".into(),
                value: other.to_owned(),
                supported: "default, linear, llama3, yarn, longrope",
            });
        }
    })
}

/// What multiplies cosine and sine: the quotient of two magnitudes, or YaRN's own where either scale
/// is 0, as DeepSeek's fields `mscale` and `mscale_all_dim` count only together.
pub(super) fn yarn_attention(factor: f32, scale: f32, all: f32) -> f32 {
    let magnitude = |scale: f32| if factor <= 1.0 { 1.0 } else { 0.1 * scale * factor.ln() + 1.0 };
    if scale == 0.0 || all == 0.0 { magnitude(1.0) } else { magnitude(scale) / magnitude(all) }
}

fn long_rope(
    json: &Fields,
    parameters: &Fields,
    original_context: usize,
) -> Result<RopeScaling, ConfigError> {
    let list = |field| parameters.f32s(field)?.ok_or_else(|| missing(field));
    let attention_factor = match parameters.f32("attention_factor")? {
        Some(factor) => factor,
        None => {
            let context = json.required_usize("max_position_embeddings")?;
            let stretched = context as f64 / original_context.max(1) as f64;
            let factor = parameters.f32("factor")?.map_or(stretched, f64::from);
            let growth = factor.ln() / (original_context as f64).ln();
            if factor <= 1.0 { 1.0 } else { (1.0 + growth).sqrt() as f32 }
        }
    };
    let (short, long) = (list("short_factor")?, list("long_factor")?);
    Ok(RopeScaling::LongRope { short, long, original_context, attention_factor })
}

/// The pairs of dimensions between which YaRN blends: up to the first, frequencies are kept;
/// from the second on, divided.
fn yarn_ramp(
    dim: usize,
    theta: f32,
    context: usize,
    [fast, slow]: [f32; 2],
    truncate: bool,
) -> (f32, f32) {
    let (dimensions, theta) = (dim as f64, f64::from(theta));
    let pair_that_turns = |times: f32| {
        dimensions * (context as f64 / (f64::from(times) * TAU64)).ln() / (2.0 * theta.ln())
    };
    let (low, high) = (pair_that_turns(fast), pair_that_turns(slow));
    let (low, high) = if truncate { (low.floor(), high.ceil()) } else { (low, high) };
    let (low, high) = (low.max(0.0) as f32, high.min(dimensions - 1.0) as f32);
    // Apart, so that the ramp between them has a slope.
    (low, if low == high { high + 0.001 } else { high })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Frequencies as transformers 5.23 computes them, in f32, with heads of 16 dimensions.
    fn agrees(theta: f32, scaling: Option<RopeScaling>, expected: [f32; 8], factor: f32) {
        let rope = Rope { theta, dim: 16, pairs: RopePairs::Halves, scaling: scaling.clone() };
        let rotary = rope.rotary(1024);
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
            truncate: true,
        };
        let divided = [1.405_853_3e-3, 2.5e-4, 4.445_698_5e-5, 7.905_694e-6, 1.405_853_4e-6];
        let expected = |second: f32, third: f32| {
            let [a, b, c, d, e] = divided;
            [1.0, second, third, a, b, c, d, e]
        };
        let default = yarn(
            RopeScaling::YARN_BETA_FAST,
            RopeScaling::YARN_BETA_SLOW,
            yarn_attention(4.0, 1.0, 0.0),
        );
        agrees(1e6, Some(default), expected(1.333_709_5e-1, 1.581_139e-2), 1.138_629_4);
        assert_eq!(yarn_attention(4.0, 1.0, 1.0), 1.0);
        let narrow = yarn(16.0, 2.0, 0.75);
        agrees(1e6, Some(narrow), expected(1.778_279_4e-1, 1.976_423_7e-2), 0.75);
    }
}
