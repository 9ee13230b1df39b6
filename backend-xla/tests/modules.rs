//! What the compiler makes of a step: memory that is reused, and what crosses devices.

mod common;

use backend_xla::{
    aot::{AotOptions, AotStep, lower},
    hlo::{Instruction, instructions},
    pjrt::{CompileOptions, LoadedExecutable},
};
use engine_core::{
    model::{ModelConfig, Program, build},
    weights::Format,
};

const LAYERS: usize = 3;
const VOCAB: u64 = 640;
const ROWS: usize = 4;
/// Of any step here.
const MOST_OUTPUTS: u64 = 8;

/// A small Qwen3 with `heads` query heads and `kv_heads` KV heads.
fn program(heads: usize, kv_heads: usize) -> Program {
    let config = format!(
        r#"{{"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": 64,
        "intermediate_size": 128, "num_hidden_layers": {LAYERS}, "num_attention_heads": {heads},
        "num_key_value_heads": {kv_heads}, "head_dim": 16, "vocab_size": {VOCAB},
        "max_position_embeddings": 512, "rms_norm_eps": 1e-06, "rope_theta": 1000000,
        "hidden_act": "silu", "tie_word_embeddings": false, "attention_bias": false,
        "eos_token_id": 1, "bos_token_id": 0, "torch_dtype": "float32"}}"#
    );
    let config = ModelConfig::from_huggingface(&config).expect("a configuration");
    build(&config, true).expect("a program")
}

fn options() -> AotOptions {
    let mut options = AotOptions::default();
    options.compute = Format::F32;
    options.page_size = 16;
    options.context_length = 256;
    options.sequences = ROWS;
    options
}

fn compile(program: &Program, step: AotStep, devices: usize) -> LoadedExecutable {
    let text = lower(program, devices, step, &options()).expect("the program lowers");
    let client = common::client(devices as i64);
    client.compile(&text, &CompileOptions::partitioned(devices)).expect("the module compiles")
}

#[test]
fn kv_pages_are_updated_in_place() {
    let program = program(4, 2);
    for step in [AotStep::Decode { rows: ROWS }, AotStep::Prefill { tokens: 128 }] {
        let step = compile(&program, step, 1);
        let pages = (ROWS * 256 / 16 + 1) as u64;
        let kv = LAYERS as u64 * pages * 16 * 2 * 2 * 16 * 4;
        assert_eq!(step.executable().memory().expect("statistics").aliased, kv);
    }
}

#[test]
fn tensor_parallel_steps_sum_twice_a_layer_and_gather_nothing_large() {
    // Heads that divide, that are repeated, and that are filled up.
    for (heads, kv_heads, devices) in [(8, 4, 2), (8, 4, 4), (8, 2, 4), (9, 3, 2)] {
        let program = program(heads, kv_heads);
        for step in [AotStep::Decode { rows: ROWS }, AotStep::Prefill { tokens: 128 }] {
            let what = format!("{heads} heads on {kv_heads}, {devices} devices, {step:?}");
            let executable = compile(&program, step, devices);
            let optimized = executable.executable().optimized_program().expect("a program");
            let instructions = instructions(&optimized.bytes);
            assert!(instructions.len() > 100, "{what}: the optimized module was not read");
            let of = |opcode: &str| -> Vec<&Instruction> {
                instructions.iter().filter(|found| found.opcode == opcode).collect()
            };
            // One more for the embedding.
            assert_eq!(of("all-reduce").len(), 2 * LAYERS + 1, "{what}");
            for opcode in ["all-to-all", "collective-permute", "reduce-scatter"] {
                assert_eq!(of(opcode).len(), 0, "{what}: {opcode}");
            }
            // Logits are whole on each device. Nothing else is gathered: KV and weights are larger.
            for gather in of("all-gather") {
                let elements: u64 = gather.dims.iter().product();
                let is_small = elements <= MOST_OUTPUTS * VOCAB;
                assert!(is_small && elements.is_multiple_of(VOCAB), "{what}: {gather:?}");
            }
            assert!(of("all-gather").len() <= 1, "{what}");
        }
    }
}
