//! How long an engine on XLA takes to start, with and without executables from disk.
//!
//! ```text
//! cargo bench --features xla --bench xla
//! ```
//!
//! SmolLM2-135M-Instruct in `f32` on XLA's CPU plugin, both fetched as the examples fetch them, and
//! every bucket of eight requests at once. Each start is a process of its own, from `main` to an
//! engine that has answered a request; the first finds an empty cache of executables, the others
//! what the first has left. The engine must not compile while it answers.

use std::error::Error;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use understory::prelude::*;
use understory::source::PluginSource;

/// Starts that find the executables on disk.
const WARM: usize = 5;
/// Marks the process that starts an engine; then come model, plugin and cache.
const CHILD: &str = "--start";
const REQUESTS: u32 = 8;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().collect();
    if let Some(index) = arguments.iter().position(|argument| argument == CHILD) {
        let [model, plugin, cache] = &arguments[index + 1..] else {
            return Err("a model, a plugin and a folder are needed".into());
        };
        let Phases { plugin, weights, executables, answer } =
            start(Path::new(model), plugin.parse()?, Path::new(cache))?;
        println!("{plugin} {weights} {executables} {answer}");
        return Ok(());
    }
    let fetch = FetchOptions::default();
    let model = ModelSource::Default.resolve(&fetch, &mut ())?;
    let plugin = PluginSource::Cpu.resolve(&fetch, &mut ())?;
    let folder = tempfile::tempdir()?;
    println!("seconds   plugin  weights, KV  executables  first answer     all");
    let cold = child(&model, &plugin, folder.path())?;
    cold.print("cold");
    let mut warm = Vec::new();
    for _ in 0..WARM {
        let phases = child(&model, &plugin, folder.path())?;
        phases.print("warm");
        warm.push(phases);
    }
    warm.sort_by(|a, b| a.total().total_cmp(&b.total()));
    let median = &warm[WARM / 2];
    println!(
        "with executables on disk a start is {:.1} times as fast (median of {WARM}), and preparing \
         them alone {:.1} times",
        cold.total() / median.total(),
        cold.executables / median.executables,
    );
    Ok(())
}

/// What a start takes, in seconds.
struct Phases {
    /// Loading the plugin and connecting to its devices.
    plugin: f64,
    /// Reading, converting and placing weights, and making KV pages.
    weights: f64,
    /// Compiling all buckets, or loading them.
    executables: f64,
    /// A request of a few tokens.
    answer: f64,
}

impl Phases {
    /// Until the engine is ready.
    fn total(&self) -> f64 {
        self.plugin + self.weights + self.executables
    }

    fn print(&self, name: &str) {
        let Self { plugin, weights, executables, answer } = self;
        let total = self.total();
        println!(
            "{name:7} {plugin:8.2} {weights:12.2} {executables:12.2} {answer:13.2} {total:7.2}"
        );
    }
}

/// Starts an engine in a process of its own.
fn child(model: &Path, plugin: &Path, cache: &Path) -> Result<Phases, Box<dyn Error>> {
    let output = Command::new(std::env::current_exe()?)
        .arg(CHILD)
        .args([model, plugin, cache])
        .stderr(Stdio::inherit())
        .output()?;
    let text = String::from_utf8(output.stdout)?;
    let seconds: Vec<f64> = text.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
    let [plugin, weights, executables, answer] = seconds[..] else {
        return Err(format!("the start ended with {}", output.status).into());
    };
    Ok(Phases { plugin, weights, executables, answer })
}

fn start(model: &Path, plugin: PluginSource, cache: &Path) -> Result<Phases, Box<dyn Error>> {
    let begin = Instant::now();
    let mut fetch = FetchOptions::default();
    fetch.cache_dir = Some(cache.to_owned());
    let choice = BackendChoice::Xla { plugin, devices: 1 };
    let backend = choice.open(&fetch, &mut ())?;
    let plugin = begin.elapsed();

    let mut options = EngineOptions::default();
    options.max_running_requests = Some(REQUESTS);
    options.kv_memory = KvMemory::Tokens(REQUESTS as usize * 1024);
    let mut preparation = Preparation::default();
    let engine = Engine::builder().options(options).load(model, &*backend, &mut preparation)?;
    let ready = begin.elapsed();
    let executables = preparation.elapsed();

    let request = Request::new(vec![1, 2, 3]).sampling(SamplingParams::greedy(4));
    engine.submit(request)?.wait()?;
    let answer = begin.elapsed() - ready;
    if engine.snapshot().compiles_in_traffic > 0 {
        return Err("the engine compiled while it answered".into());
    }
    let weights = ready - plugin - executables;
    let [plugin, weights, executables, answer] =
        [plugin, weights, executables, answer].map(|phase| phase.as_secs_f64());
    Ok(Phases { plugin, weights, executables, answer })
}

/// Notes how long the backend's preparation took.
#[derive(Default)]
struct Preparation {
    span: Option<(Instant, Instant)>,
}

impl Preparation {
    fn elapsed(&self) -> Duration {
        self.span.map_or(Duration::ZERO, |(first, last)| last - first)
    }
}

impl Progress for Preparation {
    fn update(&mut self, what: &str, _done: u64, _total: u64) {
        if what == "compiled modules" {
            let now = Instant::now();
            let first = self.span.map_or(now, |(first, _)| first);
            self.span = Some((first, now));
        }
    }
}
