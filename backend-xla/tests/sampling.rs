//! The sampler on the device against the sampler on the host, over the same logits.

mod common;

use std::{sync::Arc, time::Duration};

use backend_xla::{XlaBackend, XlaOptions};
use common::table::{Numbers, random_sampling, table_model};
use engine_core::{
    backend::{
        Backend, Batch, CompileOptions, Deadline, Executor, GroupId, InputToken, Limits, Mask,
        Masks, OutputRequest, Row, RowFailure, SlotEvent, SlotId, SlotSampling, Slots, Span,
        StepError, StepResult,
    },
    sample::{RowSampler, TokenCounts},
};
use radix_cache::PageId;

const VOCAB: usize = 301;
const ROWS: usize = 8;

fn executor(table: &[Vec<f32>], spoiled: Option<usize>) -> Box<dyn Executor> {
    let (program, weights) = table_model(table, VOCAB, spoiled);
    let rows = ROWS as u32;
    let limits = Limits { rows, tokens: rows, outputs: rows, slots: rows, pages: vec![rows] };
    let mut options = XlaOptions::cpu(common::plugin().path(), 1);
    options.compiler_flags = vec![("xla_backend_optimization_level".into(), "0".into())];
    let backend = XlaBackend::new(options).expect("a backend");
    backend
        .compile(&[program], &weights, &CompileOptions::new(limits, 16, 16))
        .expect("it compiles")
}

/// One step in which row `i` has token `i` at position 0 and slot `i`.
fn step(
    executor: &mut dyn Executor,
    sampling: &[SlotSampling],
    step: u64,
    position: u32,
    masks: &[Mask<'_>],
) -> Result<StepResult, StepError> {
    let mut slots = Slots::new(ROWS as u32, 1);
    let mut events = Vec::new();
    for (index, sampling) in sampling.iter().enumerate() {
        let (slot, group) = (SlotId(index as u32), GroupId(0));
        slots.open(slot, Arc::new(sampling.clone()));
        slots.pages_mut(slot, group).push(PageId(index as u32));
        if position == 0 {
            events.push(SlotEvent::Open { slot });
            events.push(SlotEvent::Pages { slot, group, entries: Span { start: 0, len: 1 } });
        }
    }
    let count = sampling.len() as u32;
    let tokens: Vec<InputToken> = (0..count).map(InputToken::Known).collect();
    let one = |index: u32| Span { start: index, len: 1 };
    let rows: Vec<Row> = (0..count)
        .map(|i| Row { slot: SlotId(i), tokens: one(i), position, outputs: one(i) })
        .collect();
    // Only rows with a mask wait for it.
    let waits = |row| masks.iter().any(|mask| mask.output == row);
    let outputs: Vec<OutputRequest> = (0..count)
        .map(|i| OutputRequest { deferred: waits(i), ..OutputRequest::sample(i, i) })
        .collect();
    let batch = Batch::new(step, &tokens, &rows, count, &outputs, &events, &slots);
    let ticket = executor.launch(&batch)?;
    if batch.is_deferred() {
        executor.sample(&ticket, &Masks { entries: masks })?;
    }
    let mut result = StepResult::default();
    executor.wait(ticket, Deadline::after(Duration::from_secs(300)), &mut result).map(|()| result)
}

#[test]
fn the_device_samples_what_the_host_samples() {
    const ROUNDS: u64 = 40;
    let mut numbers = Numbers(2024);
    let table: Vec<Vec<f32>> =
        (0..ROWS).map(|_| (0..VOCAB).map(|_| numbers.next() * 12.0 - 6.0).collect()).collect();
    let mut executor = executor(&table, None);
    let mut agreed = 0;
    for round in 0..ROUNDS {
        let sampling: Vec<SlotSampling> =
            (0..ROWS).map(|_| random_sampling(&mut numbers, VOCAB)).collect();
        let allowed: Vec<u32> =
            (0..VOCAB.div_ceil(32)).map(|_| (numbers.next() * 4e9) as u32 | 1).collect();
        let masks = [Mask { output: 3, index: 0, allowed: &allowed }];
        let masks = if round % 2 == 0 { &masks[..] } else { &[] };
        let mut counts: Vec<TokenCounts> = vec![TokenCounts::default(); ROWS];
        // Twice, so that the device has counted what it sampled.
        for position in 0..2 {
            let result =
                step(&mut *executor, &sampling, 2 * round + u64::from(position), position, masks)
                    .expect("every row has a token");
            for (index, sampled) in result.tokens.iter().enumerate() {
                if position == 0 {
                    counts[index].open(&sampling[index]);
                }
                let mut logits = table[index].clone();
                let mask = masks.iter().find(|mask| mask.output as usize == index);
                let mut top = Vec::new();
                let host = RowSampler::default()
                    .sample(
                        &mut logits,
                        &sampling[index],
                        &counts[index],
                        position + 1,
                        mask,
                        &mut top,
                    )
                    .expect("every row has a token");
                counts[index].record(sampled.token);
                if host.token != sampled.token {
                    println!("round {round}, row {index}: {:?}", sampling[index]);
                    continue;
                }
                agreed += 1;
                assert!((host.logprob - sampled.logprob).abs() < 1e-4);
                let found = &result.top[sampled.top.range()];
                assert_eq!(found.len(), top.len());
                for (found, host) in found.iter().zip(&top) {
                    assert_eq!(found.0, host.0);
                    assert!((found.1 - host.1).abs() < 1e-4);
                }
            }
        }
    }
    // A sum in f32 may fall on the other side of a top-p boundary, once in very many rows.
    let total = ROUNDS as usize * 2 * ROWS;
    assert!(agreed + 1 >= total, "{agreed} of {total} agreed");
}

#[test]
fn rows_fail_alone() {
    let table = vec![vec![0.5; VOCAB]; ROWS];
    let mut executor = executor(&table, Some(2));
    let sampling = vec![SlotSampling::greedy(); 4];
    let nothing = vec![0; VOCAB.div_ceil(32)];
    let masks = [Mask { output: 1, index: 0, allowed: &nothing }];
    let error = step(&mut *executor, &sampling, 0, 0, &masks).unwrap_err();
    let StepError::Rows(failures) = error else {
        panic!("only rows fail");
    };
    let failure = |row, reason: &str| RowFailure { row, reason: reason.to_owned() };
    let expected =
        [failure(1, "the mask forbids every token"), failure(2, "a logit is not finite")];
    assert_eq!(failures, expected);
    // The executor goes on with the others.
    let result = step(&mut *executor, &sampling[..2], 1, 1, &[]).unwrap();
    assert_eq!(result.tokens.len(), 2);
}
