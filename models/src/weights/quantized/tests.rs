//! Every kind against the library that made it, or its published formula: `scripts/make_fixtures.py
//! quantized`.

use std::path::PathBuf;

use safetensors::tensor::TensorView;
use serde_json::json;

use super::*;
use crate::{
    model::{ConfigError, Fields},
    weights::{Format, Shape},
};

fn directory(kind: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/quantized").join(kind)
}

fn open(kind: &str) -> QuantizedWeights {
    let config = std::fs::read_to_string(directory(kind).join("config.json")).expect("a fixture");
    let config = Fields::parse(&config).expect("an object");
    let scheme = Scheme::read(&config).expect("supported").expect("quantized");
    QuantizedWeights::new(SafetensorsWeights::open(&directory(kind)).expect("a fixture"), scheme)
}

fn expected(kind: &str) -> SafetensorsWeights {
    let bytes = std::fs::read(directory(kind).join("expected.safetensors")).expect("a fixture");
    SafetensorsWeights::from_bytes(bytes).expect("well-formed")
}

/// Compares all weights; `rounded` is the format to which the library rounds what we keep exactly.
fn check(kind: &str, format: Format, rounded: Format) {
    let (weights, expected) = (open(kind), expected(kind));
    let mut names: Vec<&str> = weights.names().collect();
    let mut wanted: Vec<&str> = expected.names().collect();
    names.sort_unstable();
    wanted.sort_unstable();
    assert_eq!(names, wanted, "{kind}: parts are no weights of their own");
    for name in wanted {
        let found = weights.tensor(name).expect(kind);
        let expected = expected.tensor(name).expect("present");
        assert_eq!(found.shape(), expected.shape(), "{kind} {name}");
        let described = weights.describe(name).expect(kind);
        assert_eq!(described, (found.format(), found.shape()), "{kind} {name}");
        if name != "plain.weight" {
            assert_eq!(found.format(), format, "{kind} {name}");
        }
        let values = Tensor::from_f32(rounded, found.shape(), &found.to_f32()).expect("as many");
        for (index, (found, expected)) in values.to_f32().iter().zip(expected.to_f32()).enumerate()
        {
            assert_eq!(*found, expected, "{kind} {name}, element {index}");
        }
    }
}

#[test]
fn gptq_decodes_by_its_published_layout() {
    check("gptq", Format::U4, Format::F32);
    check("gptq-symmetric", Format::Q4_0, Format::F32);
    check("gptq-v2", Format::U4, Format::F32);
    check("gptq-8-bits", Format::Q8_0, Format::F32);
}

#[test]
fn gptq_in_the_order_of_activations_expands_to_the_type_of_its_scales() {
    check("gptq-act-order", Format::F16, Format::F32);
}

#[test]
fn awq_decodes_by_its_published_layout() {
    check("awq", Format::U4, Format::F32);
}

#[test]
fn fp8_of_blocks_and_of_one_scale_decodes_by_its_formula() {
    check("fp8-blocks", Format::F8_E4M3, Format::F32);
    check("fp8-tensor", Format::F32, Format::F32);
}

#[test]
fn mxfp4_decodes_as_transformers_does() {
    check("mxfp4", Format::MXFP4, Format::F32);
}

#[test]
fn compressed_tensors_decode_as_the_library_does() {
    check("compressed-fp8", Format::F8_E4M3, Format::BF16);
    check("compressed-int4", Format::U4, Format::BF16);
    check("compressed-int4-asymmetric", Format::U4, Format::BF16);
    check("compressed-int8", Format::BF16, Format::BF16);
    check("compressed-nvfp4", Format::NVFP4, Format::BF16);
}

#[test]
fn bitsandbytes_decodes_as_the_library_does() {
    check("bitsandbytes-nf4", Format::NF4, Format::F32);
    check("bitsandbytes-nf4-nested", Format::NF4, Format::BF16);
    check("bitsandbytes-fp4", Format::BF16, Format::BF16);
}

fn refusal(config: serde_json::Value) -> String {
    let config = json!({ "quantization_config": config }).to_string();
    match Scheme::read(&Fields::parse(&config).expect("an object")) {
        Err(error @ ConfigError::Unsupported { .. }) => error.to_string(),
        other => panic!("{config}: {other:?}"),
    }
}

#[test]
fn what_is_not_supported_is_named_with_what_is() {
    for config in [
        json!({"quant_method": "hqq"}),
        json!({}),
        json!({"quant_method": "gptq", "bits": 3}),
        json!({"quant_method": "gptq", "checkpoint_format": "marlin"}),
        json!({"quant_method": "awq", "version": "gemv"}),
        json!({"quant_method": "awq", "bits": 8}),
        json!({"quant_method": "bitsandbytes", "load_in_8bit": true}),
        json!({"quant_method": "compressed-tensors", "format": "marlin-24"}),
        json!({"quant_method": "fp8", "weight_block_size": [0, 128]}),
        json!({"quant_method": "compressed-tensors", "format": "pack-quantized",
               "config_groups": {"g": {"weights": {"num_bits": 3, "type": "int"}}}}),
    ] {
        let refusal = refusal(config);
        assert!(refusal.contains("compressed-tensors (fp8, int4, int8, nvfp4)"), "{refusal}");
        assert!(!refusal.contains('\n'));
    }
    let config = Fields::parse("{}").expect("an object");
    assert_eq!(Scheme::read(&config).expect("nothing wrong"), None);
}

/// A copy of a fixture without the tensor `absent`, or with `changed` under another shape.
fn changed(
    kind: &str,
    change: impl Fn(&str, &mut Vec<usize>, &mut Vec<u8>) -> bool,
) -> SafetensorsWeights {
    let stored = SafetensorsWeights::open(&directory(kind)).expect("a fixture");
    let mut parts = Vec::new();
    for name in stored.names() {
        let raw = stored.raw(name).expect("present");
        let (mut shape, mut bytes) = (raw.shape.to_vec(), raw.bytes.to_vec());
        if change(name, &mut shape, &mut bytes) {
            parts.push((name.to_owned(), raw.dtype, shape, bytes));
        }
    }
    let views = parts.iter().map(|(name, dtype, shape, bytes)| {
        let view = safetensors::tensor::TensorView::new(*dtype, shape.clone(), bytes);
        (name.as_str(), view.expect("consistent"))
    });
    let file = safetensors::serialize(views, None).expect("serializable");
    SafetensorsWeights::from_bytes(file).expect("well-formed")
}

/// Whatever part of a weight is missing, empty, or has its dimensions the other way round, the weight
/// is an error with a name, never a panic.
#[test]
fn parts_that_are_missing_or_do_not_fit_are_typed_errors() {
    let kinds = std::fs::read_dir(directory("")).expect("fixtures");
    for kind in kinds.map(|entry| entry.expect("readable").file_name()) {
        let kind = kind.to_str().expect("a name");
        let scheme = open(kind).scheme;
        let names: Vec<String> = SafetensorsWeights::open(&directory(kind))
            .expect("a fixture")
            .names()
            .map(str::to_owned)
            .collect();
        for changed_name in &names {
            let without = changed(kind, |name, _, _| name != changed_name);
            let empty = changed(kind, |name, shape, bytes| {
                if name == changed_name {
                    (*shape, *bytes) = (vec![0, 3], vec![]);
                }
                true
            });
            let turned = changed(kind, |name, shape, _| {
                if name == changed_name {
                    shape.reverse();
                }
                true
            });
            let noise = changed(kind, |name, _, bytes| {
                if name == changed_name {
                    bytes.iter_mut().for_each(|byte| *byte = byte.wrapping_mul(113) ^ 0x5a);
                }
                true
            });
            for stored in [without, empty, turned, noise] {
                let weights = QuantizedWeights::new(stored, scheme.clone());
                for name in weights.names() {
                    if let Err(error) = weights.tensor(name) {
                        assert!(error.to_string().contains('`'), "{kind}: {error}");
                    }
                }
            }
        }
    }
}

#[test]
fn a_group_beyond_the_scales_is_refused() {
    let stored = changed("gptq-act-order", |name, _, bytes| {
        if name == "m.g_idx" {
            bytes[..4].copy_from_slice(&99i32.to_le_bytes());
        }
        true
    });
    let weights = QuantizedWeights::new(stored, open("gptq-act-order").scheme);
    let error = weights.tensor("m.weight").expect_err("group 99 of 4");
    assert!(
        matches!(&error, WeightsError::Quantized { name, .. } if name == "m.weight"),
        "{error}"
    );
}

#[test]
fn stacks_of_experts_keep_their_three_dimensions() {
    let weights = open("mxfp4");
    let experts = weights.tensor("experts.down_proj").expect("present");
    assert_eq!(experts.shape(), Shape::stack(3, 8, 128));
}

/// A checkpoint of these tensors, each of zeros.
fn of_zeros(tensors: &[(&str, Dtype, &[usize])], config: serde_json::Value) -> QuantizedWeights {
    let bytes = |dtype: Dtype, shape: &[usize]| {
        vec![
            0u8;
            shape.iter().map(|&it| it as u128).product::<u128>() as usize * dtype.bitsize() / 8
        ]
    };
    let data: Vec<_> = tensors.iter().map(|(_, dtype, shape)| bytes(*dtype, shape)).collect();
    let views = tensors.iter().zip(&data).map(|((name, dtype, shape), data)| {
        (*name, TensorView::new(*dtype, shape.to_vec(), data).expect("consistent"))
    });
    let file = safetensors::serialize(views, None).expect("serializable");
    let config = Fields::parse(&json!({ "quantization_config": config }).to_string());
    let scheme = Scheme::read(&config.expect("an object")).expect("supported").expect("quantized");
    QuantizedWeights::new(SafetensorsWeights::from_bytes(file).expect("well-formed"), scheme)
}

#[test]
fn weights_put_together_from_parts_without_elements_are_refused() {
    const HUGE: usize = 1 << 40;
    let fp8 = of_zeros(
        &[("m.weight", Dtype::F8_E4M3, &[HUGE, 0]), ("m.weight_scale", Dtype::F32, &[1])],
        json!({"quant_method": "fp8"}),
    );
    let gptq = of_zeros(
        &[
            ("m.qweight", Dtype::I32, &[0, HUGE]),
            ("m.scales", Dtype::F16, &[1, 0]),
            ("m.qzeros", Dtype::I32, &[1, 0]),
        ],
        json!({"quant_method": "gptq", "bits": 4}),
    );
    let blocks = of_zeros(
        &[
            ("m.weight_blocks", Dtype::U8, &[1, HUGE, 0, 16]),
            ("m.weight_scales", Dtype::U8, &[1, HUGE, 0]),
        ],
        json!({"quant_method": "mxfp4"}),
    );
    let plain = of_zeros(&[("m.weight", Dtype::F32, &[HUGE, 0])], json!({"quant_method": "fp8"}));
    for weights in [fp8, gptq, blocks, plain] {
        let error = weights.tensor("m.weight").expect_err("no elements");
        assert!(
            matches!(
                error,
                WeightsError::MissingTensor { .. } | WeightsError::UnsupportedRank { .. }
            ),
            "{error}"
        );
    }
}

#[test]
fn a_description_longer_than_any_real_one_is_refused_unread() {
    let state = "m.weight.quant_state.bitsandbytes__nf4";
    let weights = of_zeros(
        &[
            ("m.weight", Dtype::U8, &[32, 1]),
            ("m.weight.absmax", Dtype::F32, &[1]),
            (state, Dtype::U8, &[(64 << 10) + 1]),
        ],
        json!({"quant_method": "bitsandbytes", "load_in_4bit": true}),
    );
    let error = weights.tensor("m.weight").expect_err("too long");
    assert!(error.to_string().contains("has 65537 bytes, more than 65536"), "{error}");
}
