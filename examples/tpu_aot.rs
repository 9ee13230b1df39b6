//! Compiles a model for TPUs that aren't there, and says whether it fits and what it costs.
//!
//! ```text
//! cargo run --release --features xla --example tpu_aot -- \
//!     --model qwen3-8b --topology v6e:2x2 --batch 32
//! ```
//!
//! The compiler is libtpu, which is fetched (214 MB). `--model` takes `qwen3-8b`, `qwen3-32b`, or
//! the path of a config.json; no weights are read. The model is shared by all devices of the
//! topology. `--attention pallas` attends with the ragged paged attention
//! kernel, which `scripts/ragged_paged_attention.py` lowers (it needs Python 3.11 or 3.12); where
//! the kernel can't be had, the row says why, and is about the portable attention.
//!
//! Several models, topologies, steps and kinds of attention make a table. `--table` compiles all
//! 140 cases of `docs/data/tpu_aot.tsv` and prints that file. `--json` prints one JSON object a line
//! instead; `--read` makes a table of such lines.
//!
//! Each compilation runs in a process of its own, since a module that the plugin does not like can
//! end the process. What the columns mean is in `docs/xla.md`.

#[path = "support/bars.rs"]
mod bars;
#[path = "support/program.rs"]
mod program;

use std::{
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    time::Instant,
};

use bars::Bars;
use clap::Parser;
use program::Outcome;
use serde_json::{Value, json};
use understory::model::{ModelConfig, Program, build};
use understory::one_line;
use understory::source::{FetchOptions, PluginSource};
use understory::xla::{
    aot::{AotOptions, AotReport, AotStep, compile},
    pallas::{AttentionChoice, KernelSource},
    pjrt::{Plugin, disable_tpu_metadata_query},
};

/// From the models' config.json on the Hugging Face hub, less what a program does not need.
const QWEN3_8B: &str = r#"{"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3",
    "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36,
    "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936,
    "max_position_embeddings": 40960, "rms_norm_eps": 1e-06, "rope_theta": 1000000,
    "hidden_act": "silu", "tie_word_embeddings": false, "attention_bias": false,
    "eos_token_id": 151645, "bos_token_id": 151643, "torch_dtype": "bfloat16"}"#;
const QWEN3_32B: &str = r#"{"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3",
    "hidden_size": 5120, "intermediate_size": 25600, "num_hidden_layers": 64,
    "num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936,
    "max_position_embeddings": 40960, "rms_norm_eps": 1e-06, "rope_theta": 1000000,
    "hidden_act": "silu", "tie_word_embeddings": false, "attention_bias": false,
    "eos_token_id": 151645, "bos_token_id": 151643, "torch_dtype": "bfloat16"}"#;

/// Memory bandwidth in bytes a second and bf16 operations a second of a device, by the start of
/// its topology's name: the published figures of the chip, halved for tpu7x, whose chips are two
/// devices.
const DEVICES: [(&str, f64, f64); 5] = [
    ("v4", 1.228e12, 275e12),
    ("v5e", 0.819e12, 197e12),
    ("v5p", 2.765e12, 459e12),
    ("v6e", 1.64e12, 918e12),
    ("tpu7x", 3.69e12, 1153e12),
];

#[derive(Parser)]
#[command(about = "Compiles a model for a TPU topology, with no TPU")]
struct Arguments {
    /// The TPU's PJRT plugin: `tpu`, which is fetched, or a shared library.
    #[arg(long, value_name = "SOURCE", default_value = "tpu")]
    plugin: PluginSource,
    /// Fetch nothing: take only what is on this machine.
    #[arg(long)]
    offline: bool,
    /// `qwen3-8b`, `qwen3-32b`, or the path of a config.json.
    #[arg(long, default_value = "qwen3-8b")]
    model: Vec<String>,
    /// Such as v6e:2x2; all its devices share the model.
    #[arg(long, default_value = "v6e:2x2")]
    topology: Vec<String>,
    /// How it attends.
    #[arg(long, default_value = "portable")]
    attention: Vec<Attention>,
    /// Sequences of a decode step.
    #[arg(long)]
    batch: Vec<usize>,
    /// Tokens of a prefill step.
    #[arg(long)]
    prefill: Vec<usize>,
    /// Tokens in a page.
    #[arg(long, default_value_t = 128)]
    page_size: usize,
    /// The longest sequence; KV is reserved for a batch of such sequences.
    #[arg(long, default_value_t = 2048)]
    context: usize,
    /// All models, topologies, steps and kinds of attention of docs/data/tpu_aot.tsv, separated by
    /// tabs as that file is.
    #[arg(long)]
    table: bool,
    /// Print what an earlier run with --json wrote to this file.
    #[arg(long)]
    read: Option<PathBuf>,
    /// Print JSON, one object a line.
    #[arg(long)]
    json: bool,
    /// Compile in this process, and print JSON: what the child processes do.
    #[arg(long, hide = true)]
    in_process: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Attention {
    Portable,
    Pallas,
}

impl Attention {
    fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Pallas => "pallas",
        }
    }
}

/// What one child compiles.
struct Case<'a> {
    model: &'a str,
    topology: &'a str,
    /// `--batch` or `--prefill`, and how many.
    step: (&'static str, usize),
    attention: Attention,
}

fn main() -> ExitCode {
    // SAFETY: no thread has been started yet.
    unsafe { disable_tpu_metadata_query() };
    let arguments = Arguments::parse();
    program::run(|| run(arguments))
}

fn run(mut arguments: Arguments) -> Outcome<()> {
    let layout = if arguments.table { Layout::Tabs } else { Layout::Markdown };
    if let Some(path) = &arguments.read {
        layout.print_head();
        for line in std::fs::read_to_string(path)?.lines() {
            layout.print_row(&serde_json::from_str(line)?);
        }
        return Ok(());
    }
    if arguments.table {
        let owned = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        arguments.model = owned(&["qwen3-8b", "qwen3-32b"]);
        arguments.topology = owned(&["v4:2x2x1", "v5e:2x2", "v5p:2x2x1", "v6e:2x2", "tpu7x:2x2x1"]);
        arguments.attention = vec![Attention::Portable, Attention::Pallas];
        (arguments.batch, arguments.prefill) = (vec![8, 16, 32, 64, 128, 256], vec![2048]);
    }
    if arguments.batch.is_empty() && arguments.prefill.is_empty() {
        arguments.batch = vec![32];
    }
    let fetch = FetchOptions::default().offline(arguments.offline);
    let plugin = arguments.plugin.resolve(&fetch, &mut Bars::default())?;
    if arguments.in_process {
        println!("{}", compile_one(&arguments, &plugin, &fetch)?);
        return Ok(());
    }
    let decode = arguments.batch.iter().map(|rows| ("--batch", *rows));
    let prefill = arguments.prefill.iter().map(|tokens| ("--prefill", *tokens));
    let steps: Vec<(&str, usize)> = decode.chain(prefill).collect();
    if !arguments.json {
        layout.print_head();
    }
    for model in &arguments.model {
        for topology in &arguments.topology {
            for &step in &steps {
                for &attention in &arguments.attention {
                    let case = Case { model, topology, step, attention };
                    let report = in_child(&arguments, &plugin, &case)?;
                    match arguments.json {
                        true => println!("{report}"),
                        false => layout.print_row(&report),
                    }
                }
            }
        }
    }
    Ok(())
}

/// Runs this program again for one case. A child that dies is a result too.
fn in_child(arguments: &Arguments, plugin: &Path, case: &Case<'_>) -> Outcome<Value> {
    let &Case { model, topology, step: (flag, size), attention } = case;
    let started = Instant::now();
    let output = Command::new(std::env::current_exe()?)
        // Else libtpu takes a lock that other processes, which use no TPU either, may hold.
        .env("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
        .arg("--plugin")
        .arg(plugin)
        .args(["--model", model, "--topology", topology, flag, &size.to_string()])
        .args(["--attention", attention.name()])
        .args(["--page-size", &arguments.page_size.to_string()])
        .args(["--context", &arguments.context.to_string(), "--in-process"])
        .stderr(Stdio::piped())
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let report = text.lines().last().and_then(|line| serde_json::from_str::<Value>(line).ok());
    let mut report = report.unwrap_or_else(|| {
        let errors = String::from_utf8_lossy(&output.stderr);
        let last = errors.lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default();
        json!({ "error": format!("{}: {last}", output.status) })
    });
    if report["attention"].is_null() {
        report["attention"] = json!(attention.name());
    }
    report["model"] = json!(model);
    report["topology"] = json!(topology);
    report["step"] = json!(format!("{} {size}", flag.trim_start_matches('-')));
    report["compile_seconds"] = json!(started.elapsed().as_secs_f64());
    Ok(report)
}

/// Compiles one case in this process.
fn compile_one(arguments: &Arguments, plugin: &Path, fetch: &FetchOptions) -> Outcome<Value> {
    let program = program_of(arguments.model.first().ok_or("no model")?)?;
    let topology = arguments.topology.first().ok_or("no topology")?;
    let step = match (arguments.batch.first(), arguments.prefill.first()) {
        (Some(&rows), _) => AotStep::Decode { rows },
        (None, Some(&tokens)) => AotStep::Prefill { tokens },
        (None, None) => return Err("no step".into()),
    };
    let mut options = AotOptions::default()
        .page_size(arguments.page_size)
        .context_length(arguments.context)
        .sequences(arguments.batch.first().copied().unwrap_or(32));
    if arguments.attention.first() == Some(&Attention::Pallas) {
        let source = KernelSource::script(
            "python3",
            concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/ragged_paged_attention.py"),
            fetch.kernels()?,
        )?;
        options.attention = AttentionChoice::Pallas(source);
    }
    let plugin = Plugin::load(plugin)?;
    Ok(match compile(&plugin, topology, &program, step, &options) {
        Ok(report) => to_json(&report, topology),
        Err(error) => json!({ "error": shortened(&one_line(&error)) }),
    })
}

/// An error, or, where the compiler found too little memory, what it says of that.
fn shortened(error: &str) -> &str {
    let start = error.find("Ran out of memory").unwrap_or(0);
    error[start..].split(". HLO module").next().unwrap_or(error)
}

fn to_json(report: &AotReport, topology: &str) -> Value {
    let device = DEVICES.iter().find(|(start, ..)| topology.starts_with(start));
    // The longer of moving the bytes and of computing.
    let seconds = |bytes: f64| {
        device
            .zip(report.flops)
            .map(|((_, bandwidth, peak), flops)| (bytes / bandwidth).max(flops / peak))
    };
    let attention = report.modelled_attention_bytes;
    json!({
        "devices": report.devices,
        "device_kind": report.device_kind,
        "attention": report.attention.to_string(),
        "fits": report.fits(),
        "memory_limit": report.memory_limit,
        "argument_bytes": report.memory.arguments,
        "aliased_bytes": report.memory.aliased,
        "temporary_bytes": report.memory.temporary,
        "peak_bytes": report.memory.peak.max(report.memory.total()),
        "flops": report.flops,
        "bytes": report.bytes,
        "weight_bytes": report.weight_bytes,
        "modelled_attention_bytes": attention,
        "estimated_seconds": report.estimated_seconds.zip(device).map(
            |(estimated, (_, bandwidth, _))| estimated + attention / bandwidth
        ),
        "modelled_seconds": seconds(report.weight_bytes + attention),
        "all_reduces": report.count("all-reduce"),
        "all_gathers": report.count("all-gather"),
        "child_peak_memory": peak_memory(),
    })
}

fn program_of(model: &str) -> Outcome<Program> {
    let text = match model {
        "qwen3-8b" => QWEN3_8B.to_owned(),
        "qwen3-32b" => QWEN3_32B.to_owned(),
        path => std::fs::read_to_string(Path::new(path))?,
    };
    let config = ModelConfig::from_huggingface(&text)?;
    Ok(build(&config, !config.tie_word_embeddings)?)
}

/// The most memory that this process had, in bytes, where the system says.
fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().trim_end_matches("kB").trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

const COLUMNS: [&str; 14] = [
    "model",
    "topology",
    "step",
    "attention",
    "fits",
    "GB a device",
    "GFLOP",
    "GB by XLA",
    "GB of weights",
    "GB of KV (modelled)",
    "ms estimated",
    "ms (modelled)",
    "compile s",
    "compiler GB",
];

/// How a table is printed.
#[derive(Clone, Copy)]
enum Layout {
    Markdown,
    Tabs,
}

impl Layout {
    fn print_head(self) {
        self.print(&COLUMNS.map(str::to_owned));
        if let Self::Markdown = self {
            println!("|{}", " --- |".repeat(COLUMNS.len()));
        }
    }

    fn print_row(self, report: &Value) {
        let text = |key: &str| report[key].as_str().unwrap_or("?").to_owned();
        let mut columns = ["model", "topology", "step", "attention"].map(text).to_vec();
        if let Some(error) = report["error"].as_str() {
            columns.push(format!("no: {error}"));
            columns.resize(COLUMNS.len(), String::new());
            return self.print(&columns);
        }
        let number = |key: &str, unit: f64, digits: usize| match report[key].as_f64() {
            Some(value) => format!("{:.digits$}", value / unit),
            None => "?".to_owned(),
        };
        let fits = match report["fits"].as_bool() {
            Some(true) => "yes",
            Some(false) => "no",
            None => "?",
        };
        columns.extend([
            fits.to_owned(),
            format!("{} of {}", number("peak_bytes", 1e9, 2), number("memory_limit", 1e9, 1)),
            number("flops", 1e9, 0),
            number("bytes", 1e9, 1),
            number("weight_bytes", 1e9, 2),
            number("modelled_attention_bytes", 1e9, 2),
            number("estimated_seconds", 1e-3, 2),
            number("modelled_seconds", 1e-3, 2),
            number("compile_seconds", 1.0, 0),
            number("child_peak_memory", 1e9, 2),
        ]);
        self.print(&columns);
    }

    fn print(self, columns: &[String]) {
        match self {
            Self::Markdown => println!("| {} |", columns.join(" | ")),
            Self::Tabs => println!("{}", columns.join("\t")),
        }
    }
}
