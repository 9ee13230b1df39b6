//! One sequence on an executor, without an engine: so that all log probabilities can be read.

use std::sync::Arc;
use std::time::Duration;

use engine_core::backend::{
    Backend, Batch, CompileOptions, Deadline, Executor, GroupId, InputToken, Limits, OutputRequest,
    Row, SlotEvent, SlotId, SlotSampling, Slots, Span, StepResult, Want,
};
use engine_core::model::Program;
use engine_core::weights::Weights;
use engine_core::{PageId, Token};

const SLOT: SlotId = SlotId(0);
const PAGE_SIZE: u32 = 16;
const PAGES: u32 = 8;

/// A sequence of at most 128 tokens.
pub(crate) struct Sequence {
    executor: Box<dyn Executor>,
    slots: Slots,
    groups: u8,
    vocab_size: u32,
    position: u32,
    step: u64,
}

impl Sequence {
    pub(crate) fn new(backend: &dyn Backend, program: &Program, weights: &dyn Weights) -> Self {
        let vocab_size = program.vocab_size();
        let groups = program.groups().len() as u8;
        let limits = Limits {
            rows: 1,
            tokens: PAGES * PAGE_SIZE,
            outputs: vocab_size,
            slots: 1,
            pages: vec![PAGES; usize::from(groups)],
        };
        let options = CompileOptions::new(limits, PAGE_SIZE, PAGES * PAGE_SIZE);
        let programs = std::slice::from_ref(program);
        let executor = backend.compile(programs, weights, &options).unwrap();
        let mut slots = Slots::new(1, groups.into());
        slots.open(SLOT, Arc::new(SlotSampling::greedy()));
        for group in (0..groups).map(GroupId) {
            *slots.pages_mut(SLOT, group) = (0..PAGES).rev().map(PageId).collect();
        }
        Self { executor, slots, groups, vocab_size, position: 0, step: 0 }
    }

    /// Goes on with `tokens`; the log probability of every token after the last of them.
    pub(crate) fn log_probabilities(&mut self, tokens: &[Token]) -> Vec<f32> {
        // One output for each token of the vocabulary.
        let target = |start| Want::Score { targets: Span { start, len: 1 }, top: 0 };
        let wants: Vec<Want> = (0..self.vocab_size).map(target).collect();
        let known: Vec<_> = tokens.iter().map(|&token| InputToken::Known(token)).collect();
        self.step(&known, &wants).tokens.iter().map(|scored| scored.logprob).collect()
    }

    /// Goes on with `tokens`; the likeliest token after them.
    pub(crate) fn greedy(&mut self, tokens: &[Token]) -> Token {
        let known: Vec<_> = tokens.iter().map(|&token| InputToken::Known(token)).collect();
        self.step(&known, &[Want::Sample]).tokens[0].token
    }

    /// Goes on with the token that was sampled last; the likeliest after it.
    pub(crate) fn next_greedy(&mut self) -> Token {
        self.step(&[InputToken::Produced(SLOT)], &[Want::Sample]).tokens[0].token
    }

    fn step(&mut self, tokens: &[InputToken], wants: &[Want]) -> StepResult {
        let len = tokens.len() as u32;
        let last = OutputRequest::sample(0, len - 1);
        let outputs: Vec<_> = wants.iter().map(|&want| OutputRequest { want, ..last }).collect();
        let vocabulary: Vec<Token> = (0..self.vocab_size).collect();
        let row = Row {
            slot: SLOT,
            tokens: Span { start: 0, len },
            position: self.position,
            outputs: Span { start: 0, len: outputs.len() as u32 },
        };
        let entries = Span { start: 0, len: PAGES };
        let pages = (0..self.groups).map(|group| SlotEvent::Pages {
            slot: SLOT,
            group: GroupId(group),
            entries,
        });
        let opening: Vec<_> = [SlotEvent::Open { slot: SLOT }].into_iter().chain(pages).collect();
        let events = if self.step == 0 { &opening[..] } else { &[] };
        let decode_rows = u32::from(len == 1 && wants.len() == 1);
        let rows = [row];
        let mut batch =
            Batch::new(self.step, tokens, &rows, decode_rows, &outputs, events, &self.slots);
        batch.targets = &vocabulary;
        let ticket = self.executor.launch(&batch).unwrap();
        let mut result = StepResult::default();
        self.executor.wait(ticket, Deadline::after(Duration::from_secs(120)), &mut result).unwrap();
        self.step += 1;
        self.position += len;
        result
    }
}
