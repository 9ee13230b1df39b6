//! What happens when a launch fails: needs hands inside the executor.

use std::{sync::Arc, time::Duration};

use backend_api::{
    Batch, CompileOptions, Deadline, Executor, GroupId, InputToken, Limits, OutputRequest, Row,
    SlotEvent, SlotId, SlotSampling, Slots, Span, StepError, StepResult,
    program::{AttentionOptions, Program, ProgramBuilder, Split},
    weights::{Format, MapWeights, Shape, Tensor},
};
use radix_cache::PageId;

use super::{XlaExecutor, plugin_path::plugin_path};
use crate::{
    compiler::Compiler,
    lower::{Geometry, Placed, placement::Placement},
    pjrt::{Client, ElementType, Plugin},
    stablehlo::Element,
};

const VOCAB: usize = 16;
const WIDTH: usize = 8;

fn program() -> (Program, MapWeights) {
    let mut b = ProgramBuilder::new("one layer", VOCAB as u32);
    b.page_group(1, WIDTH as u32, None);
    let x = b.embed("embed", WIDTH, 1.0);
    let [q, k, v] = ["q", "k", "v"].map(|name| b.linear(x, name, WIDTH, Split::Columns));
    let h = b.attention(q, k, v, &AttentionOptions::full(WIDTH as u32));
    let h = b.linear(h, "o", WIDTH, Split::Rows);
    let x = b.add(x, h);
    let x = b.select_outputs(x);
    let program = b.finish_with_logits(x, "embed", None).expect("a program");
    let mut weights = MapWeights::new();
    for (salt, (name, rows)) in
        [("embed", VOCAB), ("q", WIDTH), ("k", WIDTH), ("v", WIDTH), ("o", WIDTH)]
            .into_iter()
            .enumerate()
    {
        let values: Vec<f32> =
            (0..rows * WIDTH).map(|i| ((i * 37 + salt * 11) % 23) as f32 / 11.0 - 1.0).collect();
        let shape = Shape::matrix(rows, WIDTH);
        weights.insert(name, Tensor::from_f32(Format::F32, shape, &values).expect("it fits"));
    }
    (program, weights)
}

fn executor() -> XlaExecutor {
    let plugin = Plugin::load(&plugin_path("cpu")).expect("the plugin loads");
    let client = Client::new(&plugin, &[]).expect("a client");
    let (program, weights) = program();
    let placement = Placement::new(&program, 1, Element::F32).expect("a placement");
    let geometry = Geometry::new(4, 2, vec![8], 16, Element::F32);
    let limits = Limits { rows: 2, tokens: 8, outputs: 2, slots: 2, pages: vec![8] };
    let compiler = Compiler::new(client, Vec::new(), None);
    let placed = Placed { program, placement, geometry, kernels: None };
    let options = CompileOptions::new(limits, 4, 16);
    XlaExecutor::new(compiler, vec![placed], &options, &weights).expect("it compiles")
}

/// Slots with one sequence of two pages in slot 0.
fn slots() -> Slots {
    let mut slots = Slots::new(2, 1);
    slots.open(SlotId(0), Arc::new(SlotSampling::greedy()));
    slots.pages_mut(SlotId(0), GroupId(0)).extend([PageId(5), PageId(2)]);
    slots
}

/// Launches a prompt of three tokens, with the events that announce it if `is_new`.
fn launch(executor: &mut XlaExecutor, is_new: bool) -> Result<super::Ticket, StepError> {
    let (slot, group, slots) = (SlotId(0), GroupId(0), slots());
    let entries = Span { start: 0, len: 2 };
    let events = [SlotEvent::Open { slot }, SlotEvent::Pages { slot, group, entries }];
    let events = if is_new { &events[..] } else { &[] };
    let tokens = [3, 1, 4].map(InputToken::Known);
    let rows = [Row {
        slot,
        tokens: Span { start: 0, len: 3 },
        position: 0,
        outputs: Span { start: 0, len: 1 },
    }];
    let outputs = [OutputRequest::sample(0, 2)];
    executor.launch(&Batch::new(0, &tokens, &rows, 0, &outputs, events, &slots))
}

fn finish(executor: &mut XlaExecutor, ticket: super::Ticket) -> Result<StepResult, StepError> {
    let mut result = StepResult::default();
    let deadline = Deadline::after(Duration::from_secs(300));
    executor.wait(ticket, deadline, &mut result).map(|()| result)
}

#[test]
fn a_failed_launch_loses_the_kv_and_the_next_one_works() {
    let mut executor = executor();
    let ticket = launch(&mut executor, true).expect("it starts");
    let expected = finish(&mut executor, ticket).expect("it runs");

    // An array of another shape: the plugin refuses the step after it was given the others.
    let client = executor.modules.client().clone();
    let wrong = client.to_device(0, ElementType::F32, &[1], &[0; 4]).expect("room");
    executor.resident.as_mut().expect("arrays").programs[0].kv[0] = vec![wrong];
    let error = launch(&mut executor, false).unwrap_err();
    assert!(matches!(error, StepError::KvLost { .. }), "{error}");

    // No events tell the new arrays of the page table: it is read from the slots.
    let ticket = launch(&mut executor, false).expect("it starts");
    let result = finish(&mut executor, ticket).expect("it runs");
    assert_eq!(result.tokens[0].token, expected.tokens[0].token);
}

#[test]
fn a_launch_of_a_lost_life_does_not_lose_the_next() {
    let mut executor = executor();
    let old = launch(&mut executor, true).expect("it starts");
    executor.resident = None;
    let new = launch(&mut executor, false).expect("it starts");
    let life = executor.life;
    let error = executor.failed(crate::pjrt::PjrtError::Missing { function: "none" }, life - 1);
    assert!(matches!(error, StepError::KvLost { .. }), "{error}");
    assert!(executor.resident.is_some(), "the new arrays are still there");
    finish(&mut executor, old).expect("it had run");
    finish(&mut executor, new).expect("it runs");
}

#[test]
fn a_missed_deadline_is_the_end() {
    let mut executor = executor();
    let error = executor.failed(crate::pjrt::PjrtError::Timeout { what: "a step" }, 0);
    assert!(matches!(error, StepError::Dead { .. }), "{error}");
    let error = launch(&mut executor, true).unwrap_err();
    assert!(matches!(error, StepError::Dead { .. }), "{error}");
}

#[test]
fn a_batch_beyond_the_limits_is_refused_and_harms_nothing() {
    let mut executor = executor();
    let slots = slots();
    let outputs = [OutputRequest::sample(0, 0); 3];
    let batch = Batch::new(7, &[], &[], 0, &outputs, &[], &slots);
    let error = executor.launch(&batch).unwrap_err();
    assert!(matches!(error, StepError::Batch { step: 7, .. }), "{error}");
    let ticket = launch(&mut executor, true).expect("it starts");
    finish(&mut executor, ticket).expect("it runs");
}
