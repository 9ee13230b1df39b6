//! Page groups: layers with a sliding window have pages of their own, which are given back once they
//! have left the window, and answer what they answer with all pages.

mod common;

use std::{collections::VecDeque, sync::Arc, time::Duration};

use backend_xla::{XlaBackend, XlaOptions};
use common::table::Numbers;
use engine_core::{
    backend::{
        Backend, Batch, CompileOptions, Deadline, Executor, GroupId, InputToken, Limits,
        OutputRequest, Row, SlotEvent, SlotId, SlotSampling, Slots, Span, StepResult,
    },
    model::{AttentionOptions, Program, ProgramBuilder, Split},
    weights::{Format, MapWeights, Shape, Tensor},
};
use radix_cache::{PageId, Token};

const VOCAB: usize = 64;
const WIDTH: usize = 32;
const PAGE_SIZE: u32 = 4;
const CONTEXT: u32 = 96;
const WINDOW: u32 = 10;
/// New tokens of a prompt in a step.
const CHUNK: u32 = 13;
/// Pages that hold what a chunk sees and writes, wherever it starts in a page.
const WINDOW_PAGES: u32 = (WINDOW + CHUNK - 2).div_ceil(PAGE_SIZE) + 1;
const PROMPTS: [u32; 3] = [30, 7, 50];
const GENERATED: u32 = 30;

/// Five layers with a window for each that sees everything, in groups of other shapes. `window` is
/// what the second group promises of its layers.
fn program(window: Option<u32>) -> Program {
    let mut b = ProgramBuilder::new("two groups", VOCAB as u32);
    let groups = [b.page_group(2, 8, None), b.page_group(1, 16, window)];
    let mut x = b.embed("embed", WIDTH, 1.0);
    for layer in 0..6 {
        let (which, kv_heads, head_dim) = if layer == 2 { (0, 2, 8) } else { (1, 1, 16) };
        let name = |what: &str| format!("{layer}.{what}");
        let h = b.rms_norm(x, &name("norm"), 1e-5);
        let q = b.linear(h, &name("q"), 4 * head_dim, Split::Columns);
        let k = b.linear(h, &name("k"), kv_heads * head_dim, Split::Columns);
        let v = b.linear(h, &name("v"), kv_heads * head_dim, Split::Columns);
        let mut options = AttentionOptions::full(head_dim as u32);
        options.group = groups[which];
        options.window = (which == 1).then_some(WINDOW);
        let h = b.attention(q, k, v, &options);
        let h = b.linear(h, &name("o"), WIDTH, Split::Rows);
        x = b.add(x, h);
    }
    let x = b.select_outputs(x);
    b.finish_with_logits(x, "logits", None).expect("a program")
}

fn weights(program: &Program) -> MapWeights {
    let mut numbers = Numbers(3);
    let mut weights = MapWeights::new();
    for weight in program.weights() {
        let shape = match weight.shape[..] {
            [rows, cols] => Shape::matrix(rows, cols),
            _ => Shape::Vector(weight.shape.iter().product()),
        };
        let scale = 3.0 / (shape.cols() as f32).sqrt();
        let count = shape.rows() * shape.cols();
        let values: Vec<f32> = (0..count).map(|_| scale * (2.0 * numbers.next() - 1.0)).collect();
        let tensor = Tensor::from_f32(Format::F32, shape, &values).expect("as many as the shape");
        weights.insert(weight.name.clone(), tensor);
    }
    weights
}

fn executor(window: Option<u32>, devices: usize) -> Box<dyn Executor> {
    let program = program(window);
    let mut options = XlaOptions::cpu(common::plugin().path(), devices);
    options.compiler_flags = vec![("xla_backend_optimization_level".into(), "0".into())];
    let cache = concat!(env!("CARGO_TARGET_TMPDIR"), "/xla-executables");
    let backend = XlaBackend::new(options.cache(cache)).expect("a backend");
    let rows = PROMPTS.len() as u32;
    let all = rows * CONTEXT / PAGE_SIZE;
    let of_window = if window.is_some() { rows * WINDOW_PAGES } else { all };
    let pages = vec![all, of_window];
    let limits = Limits { rows, tokens: rows * CHUNK, outputs: rows, slots: rows, pages };
    let compile = CompileOptions::new(limits, PAGE_SIZE, CONTEXT);
    backend.compile(std::slice::from_ref(&program), &weights(&program), &compile).expect("compiles")
}

/// The pages of one group, of which the one that was given back last is taken first.
struct Pages {
    free: VecDeque<PageId>,
    taken: usize,
    most_taken: usize,
}

impl Pages {
    fn new(count: u32) -> Self {
        Self { free: (0..count).map(PageId).collect(), taken: 0, most_taken: 0 }
    }

    fn take(&mut self) -> PageId {
        self.taken += 1;
        self.most_taken = self.most_taken.max(self.taken);
        self.free.pop_front().expect("a page is free")
    }

    fn give_back(&mut self, page: PageId) {
        self.taken -= 1;
        self.free.push_front(page);
    }
}

/// What each prompt goes on with, with log probabilities, and the most pages that the second group
/// had taken.
fn generate(window: Option<u32>, devices: usize) -> (Vec<Vec<(Token, f32)>>, usize) {
    let mut executor = executor(window, devices);
    let mut slots = Slots::new(PROMPTS.len() as u32, 2);
    let mut pages: Vec<Pages> =
        executor.limits().pages.iter().map(|&count| Pages::new(count)).collect();
    let mut sampling = SlotSampling::greedy();
    sampling.logprobs = Some(0);
    let sampling = Arc::new(sampling);
    let mut events = Vec::new();
    for slot in (0..PROMPTS.len() as u32).map(SlotId) {
        slots.open(slot, sampling.clone());
        events.push(SlotEvent::Open { slot });
    }
    let prompt = |slot: usize| (0..PROMPTS[slot]).map(move |i| (i * i + 7 * slot as u32) % 64);
    let mut texts: Vec<Vec<Token>> =
        (0..PROMPTS.len()).map(|slot| prompt(slot).collect()).collect();
    let mut computed = [0u32; PROMPTS.len()];
    let mut answers = vec![Vec::new(); PROMPTS.len()];
    for step in 0.. {
        let (mut tokens, mut rows, mut outputs) = (Vec::new(), Vec::new(), Vec::new());
        let mut order: Vec<usize> = (0..PROMPTS.len()).collect();
        order.retain(|&slot| (answers[slot].len() as u32) < GENERATED);
        if order.is_empty() {
            return (answers, pages[1].most_taken);
        }
        let is_decode = |slot: usize| texts[slot].len() as u32 - computed[slot] == 1;
        order.sort_by_key(|&slot| !is_decode(slot));
        let decode_rows = order.iter().filter(|&&slot| is_decode(slot)).count() as u32;
        for &index in &order {
            let (slot, position) = (SlotId(index as u32), computed[index]);
            let len = (texts[index].len() as u32 - position).min(CHUNK);
            let end = position + len;
            for group in [GroupId(0), GroupId(1)] {
                let pages = &mut pages[group.index()];
                let table = slots.pages_mut(slot, group);
                if let (Some(window), GroupId(1)) = (window, group) {
                    let gone = (position + 1).saturating_sub(window) / PAGE_SIZE;
                    for entry in (0..gone).rev() {
                        let page = std::mem::replace(&mut table[entry as usize], PageId::NONE);
                        if page != PageId::NONE {
                            pages.give_back(page);
                            let entries = Span { start: entry, len: 1 };
                            events.push(SlotEvent::Pages { slot, group, entries });
                        }
                    }
                }
                while (table.len() as u32) < end.div_ceil(PAGE_SIZE) {
                    let entries = Span { start: table.len() as u32, len: 1 };
                    table.push(pages.take());
                    events.push(SlotEvent::Pages { slot, group, entries });
                }
            }
            let start = tokens.len() as u32;
            let new = &texts[index][position as usize..end as usize];
            tokens.extend(new.iter().map(|&token| InputToken::Known(token)));
            let wanted = Span { start: outputs.len() as u32, len: 1 };
            outputs.push(OutputRequest::sample(rows.len() as u32, start + len - 1));
            rows.push(Row { slot, tokens: Span { start, len }, position, outputs: wanted });
            computed[index] = end;
        }
        let batch = Batch::new(step, &tokens, &rows, decode_rows, &outputs, &events, &slots);
        let ticket = executor.launch(&batch).expect("the step starts");
        events.clear();
        let mut result = StepResult::default();
        let deadline = Deadline::after(Duration::from_secs(300));
        executor.wait(ticket, deadline, &mut result).expect("the step runs");
        for (sampled, &index) in result.tokens.iter().zip(&order) {
            if computed[index] == texts[index].len() as u32 {
                texts[index].push(sampled.token);
                answers[index].push((sampled.token, sampled.logprob));
            }
        }
    }
    unreachable!("every sequence ends")
}

#[test]
fn pages_that_left_the_window_are_not_missed() {
    for devices in [1, 2] {
        let (expected, all) = generate(None, devices);
        let (found, of_window) = generate(Some(WINDOW), devices);
        for (found, expected) in found.iter().zip(&expected) {
            assert_eq!(found.len() as u32, GENERATED);
            for (found, expected) in found.iter().zip(expected) {
                assert_eq!(found.0, expected.0);
                assert!((found.1 - expected.1).abs() < 1e-4, "{found:?} and {expected:?}");
            }
        }
        let longest = PROMPTS.iter().map(|prompt| (prompt + GENERATED).div_ceil(PAGE_SIZE));
        assert!(all as u32 >= longest.sum::<u32>() - PROMPTS.len() as u32);
        assert!(of_window as u32 <= PROMPTS.len() as u32 * WINDOW_PAGES, "{of_window} pages");
    }
}
