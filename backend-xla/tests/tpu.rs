//! Steps of Qwen3-8B compiled ahead of time for TPUs, through libtpu, with no TPU: with the portable
//! attention, and with the Pallas kernel, which the script lowers.
//!
//! A program of its own, without the test harness: each compilation runs in a child process, as a
//! module that libtpu does not like can end the process, and libtpu must find its environment set
//! before any thread starts.

#[path = "common/plugin_path.rs"]
mod plugin_path;

use std::{
    path::Path,
    process::{Command, ExitCode},
};

use backend_xla::{
    AttentionChoice,
    aot::{AotOptions, AotStep, compile},
    hlo::Instruction,
    pallas::{AttentionUsed, KernelSource},
    pjrt::{PjrtError, Plugin, disable_tpu_metadata_query},
};
use engine_core::model::{ModelConfig, build};

const LAYERS: usize = 36;
const QWEN3_8B: &str = r#"{"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3",
    "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36,
    "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936,
    "max_position_embeddings": 40960, "rms_norm_eps": 1e-06, "rope_theta": 1000000,
    "hidden_act": "silu", "tie_word_embeddings": false, "attention_bias": false,
    "eos_token_id": 151645, "bos_token_id": 151643, "torch_dtype": "bfloat16"}"#;

/// Topology, step, and whether it attends by the Pallas kernel.
const CASES: [(&str, AotStep, bool); 4] = [
    ("v6e:2x2", AotStep::Decode { rows: 32 }, false),
    ("v6e:2x2", AotStep::Decode { rows: 32 }, true),
    ("v5e:2x2", AotStep::Decode { rows: 32 }, false),
    ("v5p:2x2x1", AotStep::Prefill { tokens: 2048 }, true),
];

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    if let (Some("--case"), Some(index)) = (arguments.next().as_deref(), arguments.next()) {
        let (topology, step, pallas) = CASES[index.parse::<usize>().expect("a number")];
        // SAFETY: no thread has been started yet.
        unsafe { disable_tpu_metadata_query() };
        check(topology, step, pallas);
        return ExitCode::SUCCESS;
    }
    refuses_to_hang();
    println!("libtpu without its environment is refused ... ok");
    let mut failed = false;
    for (index, (topology, step, pallas)) in CASES.iter().enumerate() {
        let program = std::env::current_exe().expect("this program");
        let child = Command::new(program)
            .args(["--case", &index.to_string()])
            // Else libtpu takes a lock that other processes, which use no TPU either, may hold.
            .env("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
            .output();
        let child = child.expect("the child starts");
        let verdict = if child.status.success() { "ok" } else { "FAILED" };
        let attention = if *pallas { "the Pallas kernel" } else { "portable attention" };
        println!("{step:?} for {topology} with {attention} ... {verdict}");
        print!("{}", String::from_utf8_lossy(&child.stdout));
        if !child.status.success() {
            failed = true;
            println!("{}\n{}", child.status, String::from_utf8_lossy(&child.stderr));
        }
    }
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// Without the variable libtpu would wait for minutes on a metadata server.
fn refuses_to_hang() {
    if std::env::var_os("TPU_SKIP_MDS_QUERY").is_none() {
        let error = Plugin::load(&plugin_path::plugin_path("tpu")).expect_err("it would hang");
        assert!(matches!(error, PjrtError::TpuMetadataQuery { .. }), "{error}");
    }
}

fn check(topology: &str, step: AotStep, pallas: bool) {
    let config = ModelConfig::from_huggingface(QWEN3_8B).expect("a configuration");
    let program = build(&config, true).expect("a program");
    let plugin = Plugin::load(&plugin_path::plugin_path("tpu")).expect("libtpu loads");
    let mut options = AotOptions::default();
    if pallas {
        options.attention = AttentionChoice::PallasOnly(kernels());
    }
    let report = compile(&plugin, topology, &program, step, &options).expect("it compiles");
    let attention = if pallas { AttentionUsed::Pallas } else { AttentionUsed::Portable };
    assert_eq!(report.attention, attention);
    assert_eq!(report.devices, 4);
    assert_eq!(report.fits(), Some(true), "{:?}", report.memory);
    assert_eq!(report.count("all-reduce"), 2 * LAYERS + 1);
    // Only the logits are gathered.
    let gathers = report.instructions.iter().filter(|found| found.opcode == "all-gather");
    for gather in gathers {
        let elements: u64 = gather.dims.iter().product();
        assert!(elements.is_multiple_of(151_936) && elements <= 32 * 151_936, "{gather:?}");
    }
    // 32 sequences of 2048 positions, and a page for padding, in place.
    let elements = (32 * 16 + 1) * 128 * 2 * 2 * 128;
    assert_eq!(report.memory.aliased, LAYERS as u64 * elements * 2, "the KV pages of one device");
    // Scratch memory has no room for another copy of one layer's, beside a chunk's activations.
    let activations = if matches!(step, AotStep::Prefill { .. }) { 64 << 20 } else { 0 };
    assert!(report.memory.temporary < elements * 2 + activations, "{:?}", report.memory);
    // For the kernel XLA moves a single layer's pages, into on-chip memory while that is empty.
    // For the portable attention it copies each layer's.
    let most_copies = if pallas { 1 } else { LAYERS };
    let is_copy = |found: &&Instruction| {
        let copies = ["copy", "copy-done", "transpose"];
        copies.contains(&found.opcode.as_str()) && found.dims.iter().product::<u64>() == elements
    };
    let copies: Vec<_> = report.instructions.iter().filter(is_copy).collect();
    assert!(copies.len() <= most_copies, "{copies:?}");
    let gigabytes = |bytes: u64| bytes as f64 / 1e9;
    println!(
        "    {:.2} GB a device, {:.3} GB of it temporary; the compiler took {:.2} GB",
        gigabytes(report.memory.total()),
        gigabytes(report.memory.temporary),
        gigabytes(peak_memory()),
    );
}

/// The kernels, and the `jax` that lowers them, kept between runs.
fn kernels() -> KernelSource {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/ragged_paged_attention.py");
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("jax");
    KernelSource::script("python3", script, cache).expect("Python 3.11 or 3.12 runs the script")
}

/// The most memory that this process had, in bytes.
fn peak_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("a status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a peak");
    line.trim().trim_end_matches("kB").trim().parse::<u64>().expect("a number") * 1024
}
