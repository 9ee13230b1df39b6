//! `quantization_config`: how the weights of a checkpoint were quantized.

use crate::model::{ConfigError, Fields};

const FIELD: &str = "quantization_config";
/// What a refusal says.
const SUPPORTED: &str = "fp8, compressed-tensors (fp8, int4, int8, nvfp4), gptq and auto-round \
                         (4 and 8 bits), awq (gemm), mxfp4, bitsandbytes (4 bits)";

/// What the configuration says that the tensors don't.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Scheme {
    /// Bits of a packed integer.
    pub(super) bits: usize,
    /// Whether a word of `qweight` holds outputs, as AWQ's do; GPTQ's hold inputs.
    pub(super) packs_outputs: bool,
    /// What is added to stored zero points: version 1 of GPTQ's format stores them less one.
    pub(super) zero_offset: u8,
    /// Rows and columns of a block with a scale of its own, of 8-bit floats.
    pub(super) block: Option<[usize; 2]>,
}

impl Scheme {
    /// Reads the configuration of a checkpoint; `None` for one that isn't quantized.
    ///
    /// # Errors
    ///
    /// A method, or a variant of one, that is not supported.
    pub(crate) fn read(config: &Fields) -> Result<Option<Self>, ConfigError> {
        let Some(json) = config.object(FIELD)? else { return Ok(None) };
        let plain = Self { bits: 4, packs_outputs: false, zero_offset: 0, block: None };
        let method = json.string("quant_method")?;
        let method = match method {
            Some(method) => method,
            None if json.get("config_groups").is_some() => "compressed-tensors",
            None => return Err(refused("without quant_method".to_owned())),
        };
        match method {
            "fp8" => Ok(Some(Self { block: block(&json, "weight_block_size")?, ..plain })),
            "gptq" | "auto-round" => Self::gptq(&json, plain).map(Some),
            "awq" => Self::awq(&json, plain).map(Some),
            "compressed-tensors" => Self::compressed(&json, plain).map(Some),
            "mxfp4" => Ok(Some(plain)),
            "bitsandbytes" => match json.bool("load_in_8bit")? {
                Some(true) => Err(refused("bitsandbytes with 8 bits".to_owned())),
                _ => Ok(Some(plain)),
            },
            other => Err(refused(other.to_owned())),
        }
    }

    fn gptq(json: &Fields, plain: Self) -> Result<Self, ConfigError> {
        let bits = json.usize("bits")?.unwrap_or(4);
        // auto-round writes GPTQ's layout, AWQ's, or its own; the first is meant by default.
        let packing = json.string("packing_format")?.unwrap_or_default();
        let version = json.string("checkpoint_format")?.unwrap_or("gptq");
        let zero_offset = match (version, packing) {
            ("gptq", "" | "auto_round:gptq" | "auto_round:auto_gptq") => 1,
            ("gptq_v2", _) => 0,
            (version, packing) => return Err(refused(format!("gptq as {version} {packing}"))),
        };
        match bits {
            4 | 8 => Ok(Self { bits, zero_offset, ..plain }),
            _ => Err(refused(format!("gptq with {bits} bits"))),
        }
    }

    fn awq(json: &Fields, plain: Self) -> Result<Self, ConfigError> {
        let bits = json.usize("bits")?.or(json.usize("w_bit")?).unwrap_or(4);
        let version = json.string("version")?.unwrap_or("gemm");
        match (bits, version) {
            (4, "gemm" | "GEMM") => Ok(Self { packs_outputs: true, ..plain }),
            _ => Err(refused(format!("awq ({version}) with {bits} bits"))),
        }
    }

    fn compressed(json: &Fields, plain: Self) -> Result<Self, ConfigError> {
        const FORMATS: [&str; 7] = [
            "dense",
            "float-quantized",
            "naive-quantized",
            "int-quantized",
            "pack-quantized",
            "nvfp4-pack-quantized",
            "mixed-precision",
        ];
        let format = json.string("format")?.unwrap_or("dense");
        if !FORMATS.contains(&format) {
            return Err(refused(format!("compressed-tensors as {format}")));
        }
        let mut scheme = plain;
        let groups = json.object("config_groups")?;
        let mut packed_bits = None;
        for group in groups.iter().flat_map(Fields::objects) {
            let group = group?;
            let Some(weights) = group.object("weights")? else { continue };
            let bits = weights.usize("num_bits")?.unwrap_or(8);
            let kind = weights.string("type")?.unwrap_or("int");
            let as_format = group.string("format")?.unwrap_or(format);
            match (kind, bits) {
                ("float", 8 | 4) => {
                    if let Some(block) = block(&weights, "block_structure")? {
                        scheme.block = Some(block);
                    }
                }
                ("int", 4 | 8) if as_format == "pack-quantized" => {
                    if packed_bits.is_some_and(|other| other != bits) {
                        return Err(refused("packed integers of different sizes".to_owned()));
                    }
                    packed_bits = Some(bits);
                }
                ("int", 8) => {}
                _ => return Err(refused(format!("compressed-tensors of {bits}-bit {kind}"))),
            }
        }
        scheme.bits = packed_bits.unwrap_or(scheme.bits);
        Ok(scheme)
    }
}

/// Rows and columns of a block.
fn block(json: &Fields, field: &str) -> Result<Option<[usize; 2]>, ConfigError> {
    match json.get(field).is_some_and(|value| !value.is_null()) {
        false => Ok(None),
        true => match json.usizes(field)?.as_deref() {
            Some([rows @ (1..), columns @ (1..)]) => Ok(Some([*rows, *columns])),
            other => Err(refused(format!("{field} {other:?}"))),
        },
    }
}

fn refused(value: String) -> ConfigError {
    ConfigError::Unsupported { field: FIELD.into(), value, supported: SUPPORTED }
}
