//! How fast the backend alone runs a model: no scheduler, no tokenizer, no cache.
//!
//!     cargo run --release -p backend-cpu --example step_speed -- MODEL [STREAMS] [THREADS] [PROMPT] [NEW] [COMPUTE] [KV]
//!
//! MODEL is a GGUF file or a directory as Hugging Face lays it out. Each of STREAMS sequences has PROMPT
//! tokens and generates NEW more, greedily; steps are launched one ahead. COMPUTE is `exact`, `bf16`,
//! `int8` or `auto` (default), and KV the format of KV (default `f32`). Prints the time of the prefill
//! and of decoding.

use std::{error::Error, sync::Arc, time::Instant};

use backend_cpu::{CpuBackend, CpuOptions};
use engine_core::{
    PageId,
    backend::{
        Backend, Batch, CompileOptions, Compute, Deadline, Executor, GroupId, InputToken, KvFormat,
        Limits, OutputRequest, Row, SlotEvent, SlotId, SlotSampling, Slots, Span, StepResult,
        Ticket,
    },
    model::open_model,
};

const PAGE_SIZE: u32 = 16;
/// Tokens of a prefill step.
const CHUNK: u32 = 512;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |index: usize, default: u32| {
        arguments.get(index).map_or(Ok(default), |argument| argument.parse())
    };
    let path = arguments.first().ok_or("which model? see the head of this example")?;
    let (streams, threads) = (number(1, 1)?, number(2, 2)?);
    let (prompt, new) = (number(3, 128)?, number(4, 128)?);

    let compute = arguments.get(5).map_or(Ok(Compute::Auto), |name| name.parse())?;
    let kv_format = arguments.get(6).map_or(Ok(KvFormat::F32), |name| name.parse())?;

    let model = open_model(path.as_ref())?;
    let program = model.program()?;
    let backend = CpuBackend::with_options(&CpuOptions::new().threads(threads as usize))?;
    let pages_each = (prompt + new).div_ceil(PAGE_SIZE);
    let limits = Limits {
        rows: streams,
        tokens: CHUNK.max(streams),
        outputs: streams,
        slots: streams,
        pages: vec![streams * pages_each],
    };
    let mut options = CompileOptions::new(limits, PAGE_SIZE, prompt + new);
    options.compute = compute;
    options.kv_format = kv_format;
    let started = Instant::now();
    let executor = backend.compile(std::slice::from_ref(&program), &*model.weights, &options)?;
    println!(
        "{}: loaded in {:.2} s",
        backend.capabilities().description,
        started.elapsed().as_secs_f64()
    );

    let mut slots = Slots::new(streams, 1);
    let mut events = Vec::new();
    for stream in 0..streams {
        let slot = SlotId(stream);
        slots.open(slot, Arc::new(SlotSampling::greedy()));
        let pages = stream * pages_each..(stream + 1) * pages_each;
        slots.pages_mut(slot, GroupId(0)).extend(pages.map(PageId));
        events.push(SlotEvent::Open { slot });
        let entries = Span { start: 0, len: pages_each };
        events.push(SlotEvent::Pages { slot, group: GroupId(0), entries });
    }
    let mut runner = Runner { executor, slots, events, step: 0, result: StepResult::default() };

    let started = Instant::now();
    let vocab = program.vocab_size();
    let mut pending = None;
    let mut plans: Vec<(u32, u32, Vec<InputToken>, bool)> = Vec::new();
    let mut room = CHUNK;
    for stream in 0..streams {
        let mut position = 0;
        while position < prompt {
            let count = room.min(prompt - position);
            let tokens = (position..position + count)
                .map(|position| InputToken::Known((stream * 7919 + position * 104_729) % vocab))
                .collect();
            plans.push((stream, position, tokens, position + count == prompt));
            position += count;
            room -= count;
            if room == 0 {
                let next = runner.launch(&std::mem::take(&mut plans))?;
                runner.finish(pending.replace(next))?;
                room = CHUNK;
            }
        }
    }
    if !plans.is_empty() {
        let next = runner.launch(&plans)?;
        runner.finish(pending.replace(next))?;
    }
    runner.finish(pending.take())?;
    let prefill = started.elapsed().as_secs_f64();

    let started = Instant::now();
    for token in 0..new - 1 {
        let plans: Vec<_> = (0..streams)
            .map(|stream| {
                (stream, prompt + token, vec![InputToken::Produced(SlotId(stream))], true)
            })
            .collect();
        let next = runner.launch(&plans)?;
        runner.finish(pending.replace(next))?;
    }
    runner.finish(pending.take())?;
    let decode = started.elapsed().as_secs_f64();

    let (prompts, answers) = (f64::from(streams * prompt), f64::from(streams * new));
    println!("prefill: {prompts} tokens in {prefill:.3} s, {:.0} tok/s", prompts / prefill);
    println!(
        "decode: {answers} tokens in {decode:.3} s, {:.1} tok/s, {:.2} ms a step",
        f64::from(streams * (new - 1)) / decode,
        decode * 1e3 / f64::from(new - 1),
    );
    println!("whole run: {:.1} output tok/s", answers / (prefill + decode));
    Ok(())
}

struct Runner {
    executor: Box<dyn Executor>,
    slots: Slots,
    events: Vec<SlotEvent>,
    step: u64,
    result: StepResult,
}

impl Runner {
    /// Launches rows of (slot, position, tokens, whether to sample after the last).
    fn launch(
        &mut self,
        plans: &[(u32, u32, Vec<InputToken>, bool)],
    ) -> Result<Ticket, Box<dyn Error>> {
        let (mut tokens, mut rows, mut outputs) = (Vec::new(), Vec::new(), Vec::new());
        for (row, (slot, position, input, samples)) in (0..).zip(plans) {
            let span = Span { start: tokens.len() as u32, len: input.len() as u32 };
            tokens.extend_from_slice(input);
            let wanted = Span { start: outputs.len() as u32, len: u32::from(*samples) };
            if *samples {
                let token = tokens.len() as u32 - 1;
                outputs.push(OutputRequest::sample(row, token));
            }
            rows.push(Row {
                slot: SlotId(*slot),
                tokens: span,
                position: *position,
                outputs: wanted,
            });
        }
        self.step += 1;
        let events = std::mem::take(&mut self.events);
        let batch = Batch::new(self.step, &tokens, &rows, 0, &outputs, &events, &self.slots);
        Ok(self.executor.launch(&batch)?)
    }

    fn finish(&mut self, ticket: Option<Ticket>) -> Result<(), Box<dyn Error>> {
        match ticket {
            Some(ticket) => Ok(self.executor.wait(ticket, Deadline::NEVER, &mut self.result)?),
            None => Ok(()),
        }
    }
}
