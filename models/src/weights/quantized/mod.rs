//! Safetensors whose weights were quantized before they were stored, spread over several tensors.
//!
//! | method | tensors of a module `M` | becomes |
//! | --- | --- | --- |
//! | `fp8`, compressed-tensors | `M.weight` (E4M3), `M.weight_scale_inv` or `M.weight_scale` | `F8_E4M3` |
//! | `gptq` | `M.qweight`, `M.qzeros`, `M.scales`, `M.g_idx` | `Q4_0`, `U4`, `Q8_0` |
//! | `awq` | `M.qweight`, `M.qzeros`, `M.scales` | `U4`, `Q4_0` |
//! | compressed-tensors | `M.weight_packed`, `M.weight_scale`, `M.weight_zero_point` | `U4`, `Q4_0`, `Q8_0`; `NVFP4` |
//! | `mxfp4` | `M_blocks`, `M_scales` | `MXFP4` |
//! | `bitsandbytes` | `M.weight` (bytes), `M.weight.absmax`, .. | `NF4` |
//!
//! The blocks of a format hold the very numbers of the file; where no format of ours can (groups in
//! another order than the inputs, rows that are no whole blocks, 8-bit numbers with other scales than
//! f16) a tensor expands to the type of its scales, as the libraries expand that made it. A module
//! that was left alone has a plain `M.weight`, whatever lists the configuration has.

mod floats;
mod integers;
mod normal;
mod parts;
mod scheme;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use safetensors::tensor::Dtype;

pub(super) use parts::Raw;
pub(crate) use scheme::Scheme;

use super::{Format, SafetensorsWeights, Shape, Tensor, Weights, WeightsError};
use parts::{Parts, Recipe};

/// What a module's other tensors are called behind its name; they are no weights of their own.
const COMPANIONS: [&str; 14] = [
    ".qzeros",
    ".scales",
    ".g_idx",
    ".weight_scale",
    ".weight_scale_inv",
    ".weight_zero_point",
    ".weight_shape",
    ".weight_g_idx",
    ".weight_global_scale",
    ".input_scale",
    ".input_global_scale",
    ".weight.absmax",
    ".weight.quant_map",
    ".weight.nested_absmax",
];

/// The weights of a checkpoint under their plain names, whatever they are stored as.
#[derive(Debug)]
pub(crate) struct QuantizedWeights {
    stored: SafetensorsWeights,
    scheme: Scheme,
    entries: BTreeMap<String, Entry>,
}

/// How a weight is stored.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Entry {
    /// Under its own name, in a plain type.
    Plain,
    /// `M.weight` in 8-bit floats.
    Floats8,
    /// `M.weight` in 8-bit integers.
    Integers8,
    /// `M.weight` in the bytes of bitsandbytes.
    Normal,
    /// `M.qweight`.
    Words,
    /// `M.weight_packed` in words.
    Packed,
    /// `M.weight_packed` in bytes of two E2M1.
    PackedFloats,
    /// `M_blocks` and `M_scales`.
    Microscaled,
}

impl QuantizedWeights {
    pub(crate) fn new(stored: SafetensorsWeights, scheme: Scheme) -> Self {
        let mut entries = BTreeMap::new();
        for name in stored.names() {
            if let Some((plain, entry)) = classify(&stored, name) {
                entries.insert(plain, entry);
            }
        }
        Self { stored, scheme, entries }
    }

    fn parts<'a>(&'a self, name: &'a str) -> Parts<'a> {
        let module = name.strip_suffix(".weight").unwrap_or(name);
        Parts { stored: &self.stored, name, module }
    }

    /// How a weight is put together; `None` if it is plain.
    fn recipe<'a>(&self, parts: &Parts<'a>) -> Result<Option<Recipe<'a>>, WeightsError> {
        let Some(entry) = self.entries.get(parts.name) else {
            return Err(WeightsError::MissingTensor { name: parts.name.to_owned() });
        };
        let recipe = match entry {
            Entry::Plain => return Ok(None),
            Entry::Floats8 => floats::floats8(parts, &self.scheme),
            Entry::Integers8 => integers::whole_bytes(parts),
            Entry::Normal => normal::normal(parts),
            Entry::Words if self.scheme.packs_outputs => integers::awq(parts, &self.scheme),
            Entry::Words => integers::gptq(parts, &self.scheme),
            Entry::Packed => integers::packed(parts, &self.scheme),
            Entry::PackedFloats => floats::packed(parts),
            Entry::Microscaled => floats::microscaled(parts),
        };
        recipe.map(Some)
    }
}

/// The plain name of what is stored as `name`, unless it is a part of another weight.
fn classify(stored: &SafetensorsWeights, name: &str) -> Option<(String, Entry)> {
    let weight = |module: &str, entry| Some((format!("{module}.weight"), entry));
    let dtype = stored.raw(name).map(|raw| raw.dtype);
    if let Some(module) = name.strip_suffix(".qweight") {
        return weight(module, Entry::Words);
    }
    if let Some(module) = name.strip_suffix(".weight_packed") {
        let is_bytes = dtype == Some(Dtype::U8);
        return weight(module, if is_bytes { Entry::PackedFloats } else { Entry::Packed });
    }
    if let Some(base) = name.strip_suffix("_blocks")
        && stored.contains(&format!("{base}_scales"))
    {
        return Some((base.to_owned(), Entry::Microscaled));
    }
    if let Some(base) = name.strip_suffix("_scales")
        && stored.contains(&format!("{base}_blocks"))
    {
        return None;
    }
    let is_companion = COMPANIONS.iter().any(|suffix| name.ends_with(suffix))
        || name.ends_with(".weight.nested_quant_map")
        || name.contains(".weight.quant_state.");
    let entry = match dtype? {
        _ if is_companion => return None,
        Dtype::F8_E4M3 => Entry::Floats8,
        Dtype::I8 if name.ends_with(".weight") => Entry::Integers8,
        Dtype::U8 if stored.contains(&format!("{name}.absmax")) => Entry::Normal,
        _ => Entry::Plain,
    };
    Some((name.to_owned(), entry))
}

impl Weights for QuantizedWeights {
    fn tensor(&self, name: &str) -> Result<Tensor<'_>, WeightsError> {
        let parts = self.parts(name);
        match self.recipe(&parts)? {
            Some(recipe) => parts.tensor(recipe),
            None => self.stored.tensor(name),
        }
    }

    fn describe(&self, name: &str) -> Result<(Format, Shape), WeightsError> {
        match self.recipe(&self.parts(name))? {
            Some(recipe) => Ok((recipe.format, recipe.shape)),
            None => self.stored.describe(name),
        }
    }

    fn contains(&self, name: &str) -> bool {
        self.entries.contains_key(name)
    }

    fn names(&self) -> Box<dyn Iterator<Item = &str> + '_> {
        Box::new(self.entries.keys().map(String::as_str))
    }
}
