//! Steps of a model beside the same steps written in JAX, on the same plugin and devices.
//!
//! `scripts/jax_comparison.py` runs this program, with a plugin and a folder that holds what JAX
//! lowered each step to, and tells it line by line on its standard input what to time. It answers
//! each line with one of its own. Alone it says how it is used.
//!
//! ```text
//! step decode-8             seconds of a step of the executor without outputs: the step's module
//! sampled decode-8          seconds of the same with a token for each row, read by the host
//! jax decode-8.blockwise    seconds of the module decode-8.blockwise.mlir
//! difference decode-8.blockwise    how far the log probabilities of both are apart at most
//! ```
//!
//! The model has SmolLM2-135M's shape, and random weights. JAX's modules take the weights in the
//! program's order with matrices of linear layers as `[inputs, outputs]`, then the KV arrays, which
//! they update in place, the page tables, and for each token its id, slot and position, and at last
//! the tokens whose logits they return behind the KV arrays.

use std::{
    collections::HashMap,
    error::Error,
    io::{BufRead, Write},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use backend_xla::{
    XlaBackend, XlaOptions,
    pjrt::{
        Argument, Buffer, Client, CompileOptions as PjrtOptions, ElementType, LoadedExecutable,
    },
};
use engine_core::{
    backend::{
        Backend, Batch, CompileOptions, Deadline, Executor, GroupId, InputToken, Limits,
        OutputRequest, Row, SlotEvent, SlotId, SlotSampling, Slots, Span, StepResult,
    },
    model::{ModelConfig, Program, build},
    weights::{Format, MapWeights, Shape, Tensor},
};
use radix_cache::PageId;

const CONFIG: &str = r#"{"architectures": ["LlamaForCausalLM"], "model_type": "llama",
    "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152,
    "max_position_embeddings": 8192, "rms_norm_eps": 1e-05, "rope_theta": 100000,
    "hidden_act": "silu", "tie_word_embeddings": true, "eos_token_id": 2, "bos_token_id": 1,
    "torch_dtype": "float32"}"#;
const PAGE_SIZE: u32 = 16;
const CONTEXT: u32 = 512;
const SLOTS: u32 = 32;
/// Pages of a sequence.
const TABLE: u32 = CONTEXT / PAGE_SIZE;
const PAGES: u32 = SLOTS * TABLE;
/// Logits that a prefill step is compiled for.
const PREFILL_OUTPUTS: usize = 8;
/// The likeliest tokens whose log probabilities are compared.
const TOP: u8 = 20;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    // `cargo bench` adds an argument of its own.
    let paths: Vec<&PathBuf> = arguments.iter().filter(|path| *path != "--bench").collect();
    let [plugin, folder] = paths[..] else {
        println!("run scripts/jax_comparison.py, which runs this");
        return Ok(());
    };
    let mut contenders = Contenders::new(plugin, folder)?;
    let mut answers = std::io::stdout().lock();
    writeln!(answers, "ready")?;
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let (what, case) = line.split_once(' ').ok_or("what of which case?")?;
        let step: Step = case.split('.').next().unwrap_or(case).parse()?;
        let answer = match what {
            "step" => contenders.ours(step, None)?.0.as_secs_f64(),
            "sampled" => contenders.ours(step, Some(&SlotSampling::greedy()))?.0.as_secs_f64(),
            "jax" => contenders.jax.run(case, step)?.0.as_secs_f64(),
            "difference" => contenders.difference(case, step)?,
            _ => return Err(format!("`{what}` is nothing to time").into()),
        };
        writeln!(answers, "{answer:e}")?;
        answers.flush()?;
    }
    Ok(())
}

/// What is timed.
#[derive(Clone, Copy)]
enum Step {
    /// One token each of so many sequences, near the end of their contexts.
    Decode(u32),
    /// So many tokens of one sequence, from its start.
    Prefill(u32),
}

impl std::str::FromStr for Step {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let unknown = || format!("`{text}` is no step");
        let (kind, count) = text.split_once('-').ok_or_else(unknown)?;
        let count = count.parse().map_err(|_| unknown())?;
        match kind {
            "decode" if (1..=SLOTS).contains(&count) => Ok(Self::Decode(count)),
            "prefill" if (1..=CONTEXT).contains(&count) => Ok(Self::Prefill(count)),
            _ => Err(unknown()),
        }
    }
}

/// The new tokens of a step, and which of them get an output.
struct Tokens {
    ids: Vec<u32>,
    slots: Vec<u32>,
    positions: Vec<u32>,
    outputs: Vec<u32>,
}

impl Step {
    fn tokens(self) -> Tokens {
        let id = |index: u32| 1000 + index * 7919 % 40_000;
        match self {
            Self::Decode(rows) => Tokens {
                ids: (0..rows).map(id).collect(),
                slots: (0..rows).collect(),
                positions: (0..rows).map(|row| CONTEXT - 1 - row * 7 % 64).collect(),
                outputs: (0..rows).collect(),
            },
            Self::Prefill(tokens) => Tokens {
                ids: (0..tokens).map(id).collect(),
                slots: vec![0; tokens as usize],
                positions: (0..tokens).collect(),
                outputs: vec![tokens - 1],
            },
        }
    }
}

/// Page `entry` of a slot. The pages of all sequences are mixed.
fn page(slot: u32, entry: u32) -> u32 {
    (slot * TABLE + entry) * 389 % PAGES
}

/// The executor with its model, and JAX's modules with theirs.
struct Contenders {
    executor: Box<dyn Executor>,
    slots: Slots,
    /// Whether the executor has heard of the slots.
    are_open: bool,
    jax: Jax,
}

struct Jax {
    client: Client,
    folder: PathBuf,
    weights: Vec<Buffer>,
    kv: Vec<Buffer>,
    tables: Buffer,
    /// With their inputs: ids, slots, positions, outputs.
    modules: HashMap<String, (LoadedExecutable, [Buffer; 4])>,
}

impl Contenders {
    fn new(plugin: &Path, folder: &Path) -> Result<Self, Box<dyn Error>> {
        let program = build(&ModelConfig::from_huggingface(CONFIG)?, false)?;
        let weights = random_weights(&program)?;
        let backend = XlaBackend::new(XlaOptions::cpu(plugin, 1))?;
        let limits = Limits {
            rows: SLOTS,
            tokens: SLOTS + CONTEXT,
            outputs: SLOTS,
            slots: SLOTS,
            pages: vec![PAGES],
        };
        let options = CompileOptions::new(limits, PAGE_SIZE, CONTEXT);
        let executor = backend.compile(std::slice::from_ref(&program), &weights, &options)?;
        let mut slots = Slots::new(SLOTS, 1);
        for slot in 0..SLOTS {
            let pages = (0..TABLE).map(|entry| PageId(page(slot, entry)));
            slots.pages_mut(SlotId(slot), GroupId(0)).extend(pages);
        }
        let jax = Jax::new(backend.client().clone(), folder, &program, &weights)?;
        Ok(Self { executor, slots, are_open: false, jax })
    }

    /// Runs a step of the executor, with outputs if there is a way to sample them. Returns the time
    /// from before the launch until the host has the result.
    fn ours(
        &mut self,
        step: Step,
        sampling: Option<&SlotSampling>,
    ) -> Result<(Duration, StepResult), Box<dyn Error>> {
        let Tokens { ids, slots, positions, outputs } = step.tokens();
        let tokens: Vec<InputToken> = ids.into_iter().map(InputToken::Known).collect();
        let starts: Vec<usize> = match step {
            Step::Decode(_) => (0..tokens.len()).collect(),
            Step::Prefill(_) => vec![0],
        };
        let len = tokens.len() / starts.len();
        let rows: Vec<Row> = (0..)
            .zip(starts)
            .map(|(row, start)| Row {
                slot: SlotId(slots[start]),
                tokens: Span { start: start as u32, len: len as u32 },
                position: positions[start],
                outputs: match sampling {
                    Some(_) => Span { start: row, len: 1 },
                    None => Span::default(),
                },
            })
            .collect();
        let request = |(row, token)| OutputRequest::sample(row, token);
        let wanted: Vec<OutputRequest> = match sampling {
            Some(_) => (0..).zip(outputs).map(request).collect(),
            None => Vec::new(),
        };
        let mut events = Vec::new();
        for slot in (0..SLOTS).map(SlotId) {
            self.slots.open(slot, Arc::new(sampling.cloned().unwrap_or_else(SlotSampling::greedy)));
            if !self.are_open {
                let (group, entries) = (GroupId(0), Span { start: 0, len: TABLE });
                events.push(SlotEvent::Open { slot });
                events.push(SlotEvent::Pages { slot, group, entries });
            }
        }
        self.are_open = true;
        let decode_rows = if let Step::Decode(rows) = step { rows } else { 0 };
        let batch = Batch::new(0, &tokens, &rows, decode_rows, &wanted, &events, &self.slots);
        let mut result = StepResult::default();
        let start = Instant::now();
        let ticket = self.executor.launch(&batch)?;
        self.executor.wait(ticket, Deadline::after(Duration::from_secs(300)), &mut result)?;
        Ok((start.elapsed(), result))
    }

    /// How far the log probabilities of the likeliest tokens are from those of JAX's logits.
    fn difference(&mut self, case: &str, step: Step) -> Result<f64, Box<dyn Error>> {
        let mut sampling = SlotSampling::greedy();
        sampling.logprobs = Some(TOP);
        let (_, result) = self.ours(step, Some(&sampling))?;
        let (_, logits) = self.jax.run(case, step)?;
        let logits = logits.to_host()?.wait(None)?;
        let logits: Vec<f64> = logits
            .chunks_exact(4)
            .map(|word| f32::from_le_bytes([word[0], word[1], word[2], word[3]]).into())
            .collect();
        let width = logits.len() / step.outputs_of_module();
        let mut largest = 0.0f64;
        for (sampled, row) in result.tokens.iter().zip(logits.chunks_exact(width)) {
            let best = row.iter().copied().fold(f64::MIN, f64::max);
            let sum: f64 = row.iter().map(|logit| (logit - best).exp()).sum();
            for &(token, logprob) in &result.top[sampled.top.range()] {
                let expected = row[token as usize] - best - sum.ln();
                largest = largest.max((f64::from(logprob) - expected).abs());
            }
        }
        if result.top.is_empty() {
            return Err("there is nothing to compare".into());
        }
        Ok(largest)
    }
}

impl Step {
    /// Rows of logits that a module returns.
    fn outputs_of_module(self) -> usize {
        match self {
            Self::Decode(rows) => rows as usize,
            Self::Prefill(_) => PREFILL_OUTPUTS,
        }
    }
}

impl Jax {
    fn new(
        client: Client,
        folder: &Path,
        program: &Program,
        weights: &MapWeights,
    ) -> Result<Self, Box<dyn Error>> {
        use engine_core::weights::Weights;
        let place = |weight: &engine_core::model::Weight| -> Result<Buffer, Box<dyn Error>> {
            let tensor = weights.tensor(&weight.name)?;
            let dims: Vec<i64> = weight.shape.iter().map(|&dim| dim as i64).collect();
            Ok(match dims[..] {
                [rows, columns] if weight.name.contains("_proj") => client.to_device_transposed(
                    0,
                    ElementType::F32,
                    [rows, columns],
                    tensor.data(),
                )?,
                _ => client.to_device(0, ElementType::F32, &dims, tensor.data())?,
            })
        };
        let weights = program.weights().iter().map(place).collect::<Result<_, _>>()?;
        let group = &program.groups()[0];
        let (pages, page_size) = (i64::from(PAGES) + 1, i64::from(PAGE_SIZE));
        let dims = [pages, page_size, 2 * i64::from(group.kv_heads), group.head_dim.into()];
        let empty = vec![0; dims.iter().product::<i64>() as usize * 4];
        let kv = (0..group.layers)
            .map(|_| client.to_device(0, ElementType::F32, &dims, &empty))
            .collect::<Result<_, _>>()?;
        // The last slot is that of padding tokens.
        let tables: Vec<u32> = (0..=SLOTS)
            .flat_map(|slot| (0..TABLE).map(move |entry| (slot, entry)))
            .map(|(slot, entry)| if slot < SLOTS { page(slot, entry) } else { PAGES })
            .collect();
        let dims = [i64::from(SLOTS) + 1, TABLE.into()];
        let tables = client.to_device(0, ElementType::I32, &dims, &bytes(&tables))?;
        let (folder, modules) = (folder.to_owned(), HashMap::new());
        Ok(Self { client, folder, weights, kv, tables, modules })
    }

    /// Runs a module. Returns the time until its results are there, and the logits.
    fn run(&mut self, case: &str, step: Step) -> Result<(Duration, Buffer), Box<dyn Error>> {
        if !self.modules.contains_key(case) {
            let text = std::fs::read_to_string(self.folder.join(format!("{case}.mlir")))?;
            let module = self.client.compile(&text, &PjrtOptions::single_device())?;
            let Tokens { ids, slots, positions, mut outputs } = step.tokens();
            outputs.resize(step.outputs_of_module(), 0);
            let place = |words: Vec<u32>| {
                let dims = [words.len() as i64];
                self.client.to_device(0, ElementType::I32, &dims, &bytes(&words))
            };
            let inputs = [place(ids)?, place(slots)?, place(positions)?, place(outputs)?];
            self.modules.insert(case.to_owned(), (module, inputs));
        }
        let (module, inputs) = &self.modules[case];
        let mut arguments: Vec<Argument<'_>> = self.weights.iter().map(Argument::Borrow).collect();
        arguments.extend(self.kv.drain(..).map(Argument::Donate));
        arguments.push(Argument::Borrow(&self.tables));
        arguments.extend(inputs.iter().map(Argument::Borrow));
        let start = Instant::now();
        let execution = module.execute(vec![arguments])?;
        for done in execution.done {
            done.completion("JAX's step")?.wait(None)?;
        }
        let elapsed = start.elapsed();
        self.kv = execution.outputs.into_iter().flatten().collect();
        let logits = self.kv.pop().ok_or("a module without results")?;
        Ok((elapsed, logits))
    }
}

/// Small random matrices, and ones for the norms.
fn random_weights(program: &Program) -> Result<MapWeights, Box<dyn Error>> {
    let mut weights = MapWeights::new();
    let mut state = 1u64;
    for weight in program.weights() {
        let shape = match weight.shape[..] {
            [rows, columns] => Shape::matrix(rows, columns),
            _ => Shape::Vector(weight.shape.iter().product()),
        };
        let is_matrix = weight.shape.len() == 2;
        let values: Vec<f32> = (0..weight.shape.iter().product::<usize>())
            .map(|_| {
                // xorshift64 (Marsaglia, 2003).
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                let uniform = (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5;
                if is_matrix { uniform * 0.1 } else { 1.0 }
            })
            .collect();
        weights.insert(&weight.name, Tensor::from_f32(Format::F32, shape, &values)?);
    }
    Ok(weights)
}

fn bytes(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}
