//! A small engine for tests: runs prompts on an executor, chunked and overlapped.

use std::{sync::Arc, time::Duration};

use engine_core::backend::{
    Batch, Deadline, Executor, GroupId, InputToken, OutputRequest, Row, SlotEvent, SlotId,
    SlotSampling, Slots, Span, StepResult, Ticket,
};
use radix_cache::{PageId, Token};

/// What came of a prompt.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Generated {
    pub(crate) tokens: Vec<Token>,
    pub(crate) logprobs: Vec<f32>,
    /// The likeliest tokens at each position.
    pub(crate) top: Vec<Vec<(Token, f32)>>,
}

/// A prompt, and how its answer is sampled.
#[derive(Clone, Debug)]
pub(crate) struct Prompt {
    pub(crate) tokens: Vec<Token>,
    pub(crate) sampling: SlotSampling,
}

/// Generates `count` tokens for each prompt, all in one batch. Prompts are computed in chunks of
/// `chunk` tokens, and every step is launched before the one before it is waited for.
pub(crate) fn generate(
    executor: &mut dyn Executor,
    prompts: &[Prompt],
    chunk: usize,
    page_size: usize,
    count: usize,
) -> Vec<Generated> {
    let mut slots = Slots::new(executor.limits().slots, 1);
    let mut events = Vec::new();
    let group = GroupId(0);
    let mut page = 0;
    for (index, prompt) in prompts.iter().enumerate() {
        let slot = SlotId(index as u32);
        slots.open(slot, Arc::new(prompt.sampling.clone()));
        let pages = (prompt.tokens.len() + count).div_ceil(page_size);
        // Every other page, backwards: nothing may depend on their order.
        let table: Vec<PageId> = (0..pages).rev().map(|i| PageId((page + 2 * i) as u32)).collect();
        page += 2 * pages;
        *slots.pages_mut(slot, group) = table;
        events.push(SlotEvent::Open { slot });
        let entries = Span { start: 0, len: pages as u32 };
        events.push(SlotEvent::Pages { slot, group, entries });
    }
    assert!(page as u32 <= executor.limits().pages[0] + 1, "the test needs {page} pages");

    let mut launched = vec![0; prompts.len()];
    let mut results = vec![Generated::default(); prompts.len()];
    let mut pending: Option<(Ticket, Vec<usize>)> = None;
    for step in 0.. {
        let (mut tokens, mut rows, mut outputs, mut order) = (vec![], vec![], vec![], vec![]);
        let mut budget = chunk;
        // Decode rows first.
        let is_decode = |index: &usize| launched[*index] >= prompts[*index].tokens.len();
        let mut indices: Vec<usize> = (0..prompts.len()).collect();
        indices.sort_by_key(|index| !is_decode(index));
        let mut decode_rows = 0;
        for index in indices {
            let prompt = &prompts[index].tokens;
            let done = launched[index];
            let slot = SlotId(index as u32);
            let start = tokens.len() as u32;
            let wants_output = if done >= prompt.len() {
                if done + 1 >= prompt.len() + count {
                    continue;
                }
                tokens.push(InputToken::Produced(slot));
                decode_rows += 1;
                true
            } else {
                let len = (prompt.len() - done).min(budget);
                if len == 0 {
                    continue;
                }
                budget -= len;
                tokens.extend(prompt[done..done + len].iter().map(|&id| InputToken::Known(id)));
                done + len == prompt.len()
            };
            let len = tokens.len() as u32 - start;
            let outputs_start = outputs.len() as u32;
            if wants_output {
                let row = rows.len() as u32;
                outputs.push(OutputRequest::sample(row, start + len - 1));
                order.push(index);
            }
            rows.push(Row {
                slot,
                tokens: Span { start, len },
                position: done as u32,
                outputs: Span { start: outputs_start, len: outputs.len() as u32 - outputs_start },
            });
            launched[index] += len as usize;
        }
        let launch = (!rows.is_empty()).then(|| {
            let batch = Batch::new(step, &tokens, &rows, decode_rows, &outputs, &events, &slots);
            let ticket = executor.launch(&batch).expect("the step starts");
            (ticket, order)
        });
        events.clear();
        let is_last = launch.is_none();
        if let Some((ticket, order)) = std::mem::replace(&mut pending, launch) {
            let mut result = StepResult::default();
            let deadline = Deadline::after(Duration::from_secs(300));
            executor.wait(ticket, deadline, &mut result).expect("the step runs");
            assert_eq!(result.tokens.len(), order.len());
            for (sampled, index) in result.tokens.iter().zip(order) {
                results[index].tokens.push(sampled.token);
                results[index].logprobs.push(sampled.logprob);
                results[index].top.push(result.top[sampled.top.range()].to_vec());
            }
        }
        if is_last {
            return results;
        }
    }
    unreachable!("the loop ends when nothing is left to launch")
}
