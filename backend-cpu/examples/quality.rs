//! How far reduced precisions and KV formats are from exact.
//!
//!     cargo run --release -p backend-cpu --example quality -- MODEL TEXT [TOKENS] [THREADS] [bf16]
//!
//! MODEL is a GGUF file or a directory as Hugging Face lays it out, TEXT a file of text, of which
//! TOKENS tokens (default 20,480) are read in pieces of 512. Every precision and KV format predicts
//! every token of the text. Prints for each: the Kullback-Leibler divergence from exact, over the 255
//! tokens that exact finds likeliest and all others together; how often both find the same token
//! likeliest; and the perplexity. With `bf16` the model's matrices are rounded to bf16 first.

use std::{collections::HashMap, error::Error, sync::Arc};

use backend_cpu::{CpuBackend, CpuOptions};
use engine_core::{
    PageId, Token,
    backend::{
        Backend, Batch, CompileOptions, Compute, Deadline, Executor, GroupId, InputToken, KvFormat,
        Limits, OutputRequest, Row, SlotEvent, SlotId, SlotSampling, Slots, Span, StepResult, Want,
    },
    model::{Program, open_model},
    text::Tokenizer,
    weights::{Format, MapWeights, Tensor, Weights},
};

/// Tokens of a piece.
const PIECE: u32 = 512;
const PAGE_SIZE: u32 = 16;
/// Likeliest tokens that are compared one by one.
const TOP: u8 = 255;

const MODES: [(Compute, KvFormat); 8] = [
    (Compute::Exact, KvFormat::F32),
    (Compute::Exact, KvFormat::F16),
    (Compute::Exact, KvFormat::Bf16),
    (Compute::Exact, KvFormat::Int8),
    (Compute::Int8, KvFormat::F32),
    (Compute::Int8, KvFormat::Bf16),
    (Compute::Int8, KvFormat::Int8),
    (Compute::Bf16, KvFormat::Bf16),
];

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |index: usize, default: usize| {
        arguments.get(index).map_or(Ok(default), |argument| argument.parse())
    };
    let usage = "which model and text? see the head of this example";
    let (path, text) = (arguments.first().ok_or(usage)?, arguments.get(1).ok_or(usage)?);
    let (wanted, threads) = (number(2, 20_480)?, number(3, 2)?);

    let model = open_model(path.as_ref())?;
    let program = model.program()?;
    let tokenizer = Tokenizer::from_model(&model.files, model.config.vocab_size)?;
    let tokens = tokenizer.encode(&std::fs::read_to_string(text)?, false)?;
    let pieces: Vec<&[Token]> =
        tokens.chunks_exact(PIECE as usize).take(wanted.div_ceil(PIECE as usize)).collect();
    if pieces.is_empty() {
        let count = tokens.len();
        let what =
            format!("a text of {count} tokens, {wanted} of them wanted, has no piece of {PIECE}");
        return Err(what.into());
    }
    let rounded;
    let weights: &dyn Weights = match arguments.get(4).map(String::as_str) {
        Some("bf16") => {
            rounded = in_bf16(&program, &*model.weights)?;
            &rounded
        }
        Some(other) => return Err(format!("`{other}` is not `bf16`").into()),
        None => &*model.weights,
    };

    let backend = CpuBackend::with_options(&CpuOptions::new().threads(threads))?;
    println!("{}: {} tokens", backend.capabilities().description, pieces.len() * PIECE as usize);
    let mut runs = Vec::new();
    for (compute, kv_format) in MODES {
        runs.push(Run::new(&backend, &program, weights, compute, kv_format)?);
    }
    for (index, piece) in pieces.iter().enumerate() {
        let answers = runs.iter_mut().map(|run| run.score(piece)).collect::<Result<Vec<_>, _>>()?;
        for (run, answers_of_run) in runs.iter_mut().zip(&answers) {
            run.compare(&answers[0], answers_of_run);
        }
        eprintln!("{} of {} pieces", index + 1, pieces.len());
    }
    println!("| compute | KV | KL divergence | same likeliest token | perplexity |");
    println!("| --- | --- | --- | --- | --- |");
    for Run { compute, kv_format, divergence, same, surprise, tokens, .. } in &runs {
        let count = *tokens as f64;
        println!(
            "| {compute} | {kv_format} | {:.2e} | {:.2} % | {:.4} |",
            divergence / count,
            100.0 * f64::from(*same) / count,
            (surprise / count).exp(),
        );
    }
    Ok(())
}

/// The weights of a program, matrices rounded to bf16.
fn in_bf16(program: &Program, weights: &dyn Weights) -> Result<MapWeights, Box<dyn Error>> {
    let mut rounded = MapWeights::new();
    for weight in program.weights() {
        let tensor = weights.tensor(&weight.name)?;
        let format = if weight.shape.len() > 1 { Format::BF16 } else { Format::F32 };
        let tensor = Tensor::from_f32(format, tensor.shape(), &tensor.to_f32())?;
        rounded.insert(&weight.name, tensor);
    }
    Ok(rounded)
}

/// A precision and KV format, and what was seen of it.
struct Run {
    compute: Compute,
    kv_format: KvFormat,
    executor: Box<dyn Executor>,
    slots: Slots,
    step: u64,
    divergence: f64,
    same: u32,
    surprise: f64,
    tokens: u32,
}

/// A prediction: the log probability of the token that follows, and of the likeliest ones.
struct Prediction {
    of_next: f32,
    likeliest: Vec<(Token, f32)>,
}

impl Run {
    fn new(
        backend: &CpuBackend,
        program: &Program,
        weights: &dyn Weights,
        compute: Compute,
        kv_format: KvFormat,
    ) -> Result<Self, Box<dyn Error>> {
        let pages = PIECE / PAGE_SIZE;
        let groups = program.groups().len();
        let limits =
            Limits { rows: 1, tokens: PIECE, outputs: PIECE, slots: 1, pages: vec![pages; groups] };
        let mut options = CompileOptions::new(limits, PAGE_SIZE, PIECE);
        (options.compute, options.kv_format) = (compute, kv_format);
        let executor = backend.compile(std::slice::from_ref(program), weights, &options)?;
        let mut slots = Slots::new(1, groups);
        slots.open(SlotId(0), Arc::new(SlotSampling::greedy()));
        for group in 0..groups {
            slots.pages_mut(SlotId(0), GroupId(group as u8)).extend((0..pages).map(PageId));
        }
        Ok(Self {
            compute,
            kv_format,
            executor,
            slots,
            step: 0,
            divergence: 0.0,
            same: 0,
            surprise: 0.0,
            tokens: 0,
        })
    }

    fn score(&mut self, piece: &[Token]) -> Result<Vec<Prediction>, Box<dyn Error>> {
        let input: Vec<InputToken> = piece.iter().copied().map(InputToken::Known).collect();
        let len = piece.len() as u32 - 1;
        let (targets, run) = (Span { start: 0, len }, Span { start: 0, len });
        let want = Want::Score { targets, top: TOP };
        let outputs = [OutputRequest { row: 0, tokens: run, want, deferred: false }];
        let rows = [Row {
            slot: SlotId(0),
            tokens: Span { start: 0, len: len + 1 },
            position: 0,
            outputs: Span { start: 0, len: 1 },
        }];
        let events = [SlotEvent::Open { slot: SlotId(0) }];
        self.step += 1;
        let mut batch = Batch::new(self.step, &input, &rows, 0, &outputs, &events, &self.slots);
        batch.targets = &piece[1..];
        let ticket = self.executor.launch(&batch)?;
        let mut result = StepResult::default();
        self.executor.wait(ticket, Deadline::NEVER, &mut result)?;
        let tokens =
            result.outputs.first().map(|output| result.tokens_of(output)).unwrap_or_default();
        let predictions = tokens.iter().map(|token| Prediction {
            of_next: token.logprob,
            likeliest: result.top[token.top.range()].to_vec(),
        });
        Ok(predictions.collect())
    }

    fn compare(&mut self, exact: &[Prediction], own: &[Prediction]) {
        for (exact, own) in exact.iter().zip(own) {
            self.divergence += divergence(&exact.likeliest, &own.likeliest);
            let first = |prediction: &Prediction| prediction.likeliest.first().map(|top| top.0);
            self.same += u32::from(first(exact) == first(own));
            self.surprise -= f64::from(own.of_next);
            self.tokens += 1;
        }
    }
}

/// The Kullback-Leibler divergence of `q` from `p`, over the tokens that both name and all others
/// together: at most that over all tokens.
fn divergence(p: &[(Token, f32)], q: &[(Token, f32)]) -> f64 {
    let of_q: HashMap<Token, f32> = q.iter().copied().collect();
    let (mut sum, mut rest_p, mut rest_q) = (0.0, 1.0, 1.0);
    for (token, logprob) in p {
        if let Some(other) = of_q.get(token) {
            let (p, q) = (f64::from(*logprob), f64::from(*other));
            sum += p.exp() * (p - q);
            rest_p -= p.exp();
            rest_q -= q.exp();
        }
    }
    let (rest_p, rest_q) = (rest_p.max(1e-9), rest_q.max(1e-9));
    sum + rest_p * (rest_p / rest_q).ln()
}
