//! Batches that break a rule: refused before anything happens.

use engine_core::PageId;
use engine_core::backend::{
    AdapterId, Batch, BatchBounds, BatchError, Draft, Executor, GroupId, InputToken, OutputRequest,
    ProgramId, Row, SharedPrefix, SlotEvent, SlotId, SlotState, Slots, Span, StepError, Token,
    Want,
};

use super::check::Check;
use super::failure::{Failure, expect_equal};
use super::models::{Model, VOCAB_SIZE, prompt};
use super::session::{RowPlan, Setup};
use super::slots::with_logprobs;

/// A batch with everything that it borrows.
#[derive(Clone, Debug)]
struct Parts {
    program: ProgramId,
    tokens: Vec<InputToken>,
    rows: Vec<Row>,
    decode_rows: u32,
    outputs: Vec<OutputRequest>,
    targets: Vec<Token>,
    events: Vec<SlotEvent>,
    shared: Vec<SharedPrefix>,
    slots: Slots,
}

type Change = fn(&mut Parts);

/// One change of a good batch for each rule.
const BROKEN: [(&str, Change); 32] = [
    ("a program that is not there", |parts| parts.program = ProgramId(1)),
    ("no row", |parts| {
        *parts =
            Parts { rows: vec![], tokens: vec![], outputs: vec![], decode_rows: 0, ..parts.clone() }
    }),
    ("more tokens than the limit", |parts| {
        parts.tokens.resize(4000, InputToken::Known(1));
        parts.rows[1].tokens.len = 3999;
    }),
    ("more output rows than the limit", |parts| {
        parts.outputs.extend(std::iter::repeat_n(
            OutputRequest { want: Want::Hidden, ..OutputRequest::sample(1, 1) },
            200,
        ));
        parts.rows[1].outputs.len += 200;
    }),
    ("more decode rows than rows", |parts| parts.decode_rows = 3),
    ("fewer slots than were compiled for", |parts| parts.slots = Slots::new(1, 1)),
    ("tokens that do not follow each other", |parts| parts.rows[1].tokens.start = 2),
    ("tokens of no row", |parts| parts.tokens.push(InputToken::Known(1))),
    ("outputs that do not follow each other", |parts| parts.rows[1].outputs.start = 0),
    ("outputs of no row", |parts| parts.outputs.push(OutputRequest::sample(1, 1))),
    ("a row without tokens", |parts| {
        parts.rows[1].tokens.len = 0;
        parts.tokens.truncate(1);
    }),
    ("a decode row without an output", |parts| {
        parts.rows[0].outputs.len = 0;
        parts.rows[1].outputs.start = 0;
    }),
    ("a row beyond the context", |parts| parts.rows[1].position = 126),
    ("a row at the last position there is", |parts| parts.rows[1].position = u32::MAX),
    ("a row of an unknown slot", |parts| parts.rows[1].slot = SlotId(1000)),
    ("two rows of a slot", |parts| parts.rows[1].slot = SlotId(0)),
    ("a token outside the vocabulary", |parts| parts.tokens[1] = InputToken::Known(VOCAB_SIZE)),
    ("another slot's token", |parts| parts.tokens[1] = InputToken::Produced(SlotId(0))),
    ("a produced token after others", |parts| parts.tokens[2] = InputToken::Produced(SlotId(1))),
    ("an output of another row", |parts| parts.outputs[1].row = 0),
    ("an output of another row's tokens", |parts| parts.outputs[1].tokens.start = 0),
    ("a sample of two tokens", |parts| parts.outputs[1].tokens = Span { start: 3, len: 2 }),
    ("a verification that stops short of its row's end", |parts| {
        parts.outputs[1] = OutputRequest {
            tokens: Span { start: 1, len: 2 },
            want: Want::Verify(Draft::Chain),
            ..parts.outputs[1]
        };
    }),
    ("two next tokens", |parts| {
        parts.outputs.push(parts.outputs[1]);
        parts.rows[1].outputs.len = 2;
    }),
    ("a target for another number of tokens", |parts| {
        parts.targets = vec![1, 2];
        parts.outputs[1].want = Want::Score { targets: Span { start: 0, len: 2 }, top: 0 };
    }),
    ("a target outside the vocabulary", |parts| {
        parts.targets = vec![VOCAB_SIZE];
        parts.outputs[1].want = Want::Score { targets: Span { start: 0, len: 1 }, top: 0 };
    }),
    ("a score that waits for a mask", |parts| {
        parts.targets = vec![1];
        let want = Want::Score { targets: Span { start: 0, len: 1 }, top: 0 };
        parts.outputs[1] = OutputRequest { want, deferred: true, ..parts.outputs[1] };
    }),
    ("a table that ends before its row", |parts| {
        parts.slots.pages_mut(SlotId(1), GroupId(0)).clear()
    }),
    ("a page that does not exist", |parts| {
        parts.slots.pages_mut(SlotId(1), GroupId(0))[0] = PageId(100_000);
    }),
    ("an adapter that is not loaded", |parts| {
        let state = SlotState { adapter: AdapterId(3), ..parts.slots.state(SlotId(1)).clone() };
        parts.slots.open(SlotId(1), state);
        parts.events.push(SlotEvent::Open { slot: SlotId(1) });
    }),
    ("runs that overlap", |parts| {
        let none = SharedPrefix { rows: Span { start: 0, len: 2 }, pages: 0 };
        parts.shared = vec![none, SharedPrefix { rows: Span { start: 1, len: 1 }, pages: 0 }];
    }),
    ("rows that share no page", |parts| {
        parts.shared = vec![SharedPrefix { rows: Span { start: 0, len: 2 }, pages: 1 }];
    }),
];

/// Events about slots, groups, entries and pages that do not exist.
const BROKEN_EVENTS: [SlotEvent; 6] = [
    SlotEvent::Open { slot: SlotId(1000) },
    SlotEvent::Close { slot: SlotId(1000) },
    SlotEvent::Pages { slot: SlotId(1000), group: GroupId(0), entries: Span { start: 0, len: 1 } },
    SlotEvent::Pages { slot: SlotId(1), group: GroupId(7), entries: Span { start: 0, len: 1 } },
    SlotEvent::Pages { slot: SlotId(1), group: GroupId(0), entries: Span { start: 5, len: 9 } },
    SlotEvent::CopyPage { group: GroupId(0), from: PageId(0), to: PageId(1 << 30) },
];

/// A batch that breaks a rule is refused by that rule, and the next batch runs as if it had never
/// been.
pub fn batches_that_break_a_rule_are_refused(check: &Check<'_>) -> Result<(), Failure> {
    let (model, setup) = (Model::llama()?, Setup { slots: 3, ..Setup::new() });
    let bounds = BatchBounds::new(&model.programs, &setup.options(1));
    let tokens = prompt(9, 3);
    let mut session = check.session(&model, &setup)?;
    (0..2).for_each(|slot| session.open(slot, with_logprobs()));
    session.run(&[RowPlan::known(0, &tokens).sample(), RowPlan::known(1, &tokens).sample()])?;
    let good = Parts {
        program: ProgramId(0),
        tokens: [5, 6, 7, 8, 9].map(InputToken::Known).to_vec(),
        rows: [(0, 0, 1), (1, 1, 4)]
            .map(|(slot, start, len)| Row {
                slot: SlotId(slot),
                tokens: Span { start, len },
                position: tokens.len() as u32,
                outputs: Span { start: slot, len: 1 },
            })
            .to_vec(),
        decode_rows: 1,
        outputs: vec![OutputRequest::sample(0, 0), OutputRequest::sample(1, 4)],
        targets: Vec::new(),
        events: Vec::new(),
        shared: Vec::new(),
        slots: session.slots().clone(),
    };
    let rule = |parts: &Parts| session_batch(parts, 1).check(&bounds).err();
    expect_equal("the good batch", &None, &rule(&good))?;
    let with_event = |event| Parts { events: vec![event], ..good.clone() };
    let broken = BROKEN.map(|(what, change)| {
        let mut parts = good.clone();
        change(&mut parts);
        (what, parts)
    });
    let broken =
        broken.into_iter().chain(BROKEN_EVENTS.map(|event| ("an event", with_event(event))));
    for (what, parts) in broken {
        let Some(expected) = rule(&parts) else {
            return Err(Failure::wrong(what, "a broken rule", "a good batch"));
        };
        refuse(session.executor(), what, &parts, &expected)?;
    }
    let mut undisturbed = check.session(&model, &setup)?;
    (0..2).for_each(|slot| undisturbed.open(slot, with_logprobs()));
    let rows = [RowPlan::produced(0), RowPlan::produced(1)];
    undisturbed.run(&[RowPlan::known(0, &tokens).sample(), RowPlan::known(1, &tokens).sample()])?;
    check.same_answers("the step after", &undisturbed.run(&rows)?, &session.run(&rows)?)
}

fn session_batch(parts: &Parts, step: u64) -> Batch<'_> {
    let Parts { tokens, rows, outputs, events, slots, .. } = parts;
    let mut batch = Batch::new(step, tokens, rows, parts.decode_rows, outputs, events, slots);
    (batch.program, batch.targets, batch.shared) = (parts.program, &parts.targets, &parts.shared);
    batch
}

fn refuse(
    executor: &mut dyn Executor,
    what: &str,
    parts: &Parts,
    expected: &BatchError,
) -> Result<(), Failure> {
    match executor.launch(&session_batch(parts, 1)) {
        Err(StepError::Batch { step: 1, error }) if error == *expected => Ok(()),
        other => Err(Failure::wrong(what, expected, format!("{other:?}"))),
    }
}
