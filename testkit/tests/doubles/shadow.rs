//! The shadow backend finds what it is there to find: each breach of the contract, by name.

use std::sync::Arc;

use engine_core::backend::{
    BatchError, Executor, InputToken, Mask, Masks, OutputRequest, Row, SharedPrefix, SlotEvent,
    SlotId, SlotSampling, Span, StepError, Want,
};
use engine_core::{PageId, Token};
use testkit::shadow::{Expectation, Violation, model};

use crate::engine::{Engine, GROUP, VOCABULARY, known};

const A: SlotId = SlotId(0);

#[test]
fn a_sequence_that_is_run_rightly_generates_what_it_generates_alone() {
    let mut engine = Engine::new();
    let expected =
        model::continue_alone(&[1, 2, 3, 4, 5], &SlotSampling::greedy(), VOCABULARY, 3, &[]);
    engine.open(0, &[3, 1]);
    assert!(engine.run(&[(0, 0, &known([1, 2, 3, 4]), false)]).is_empty());
    let first = engine.launch(&[(0, 4, &known([5]), true)]).unwrap();
    let second = engine.launch(&[(0, 5, &[None], true)]).unwrap();
    assert_eq!(engine.wait(first).unwrap(), expected[..1]);
    assert_eq!(engine.wait(second).unwrap(), expected[1..2]);
    assert_eq!(engine.run(&[(0, 6, &known([expected[1]]), true)]), expected[2..]);
    assert_eq!(engine.ledger.violations(), []);
}

#[test]
fn a_copied_page_continues_like_the_original() {
    let mut engine = Engine::new();
    engine.open(0, &[0, 1]);
    engine.run(&[(0, 0, &known([1, 2, 3, 4, 5, 6]), false)]);
    engine.open(1, &[0, 2]);
    engine.events.push(SlotEvent::CopyPage { group: GROUP, from: PageId(1), to: PageId(2) });
    let tokens = engine.run(&[(0, 6, &known([7]), true), (1, 6, &known([8]), true)]);
    let alone = |prompt: &[Token]| {
        model::continue_alone(prompt, &SlotSampling::greedy(), VOCABULARY, 1, &[])[0]
    };
    assert_eq!(tokens, [alone(&[1, 2, 3, 4, 5, 6, 7]), alone(&[1, 2, 3, 4, 5, 6, 8])]);
}

#[test]
fn scores_are_log_probabilities_with_the_likeliest_beside_them() {
    let mut engine = Engine::new();
    engine.open(0, &[0]);
    let span = Span { start: 0, len: 2 };
    let tokens = [InputToken::Known(1), InputToken::Known(2)];
    let rows = [Row { slot: A, tokens: span, position: 0, outputs: span }];
    let score = |token: u32| {
        let tokens = Span { start: token, len: 1 };
        let want = Want::Score { targets: tokens, top: VOCABULARY as u8 };
        OutputRequest { row: 0, tokens, want, deferred: false }
    };
    let ticket = engine.launch_raw(&tokens, &rows, 0, &[score(0), score(1)], &[]).unwrap();
    engine.wait(ticket).unwrap();
    let first = engine.result.tokens[0];
    let top = &engine.result.top[first.top.range()];
    let sum: f32 = top.iter().map(|(_, logprob)| logprob.exp()).sum();
    assert!((sum - 1.0).abs() < 1e-5, "probabilities sum to {sum}");
    assert!(top.is_sorted_by(|a, b| a.1 >= b.1));
    assert!(top.contains(&(5, first.logprob)));
    assert_ne!(engine.result.tokens[1].logprob, first.logprob);
}

#[test]
fn a_deferred_step_is_sampled_under_its_masks() {
    let mut engine = Engine::new();
    engine.defer_sampling = true;
    engine.open(0, &[0]);
    let ticket = engine.launch(&[(0, 0, &known([1]), true)]).unwrap();
    let entries = [Mask { output: 0, index: 0, allowed: &[1 << 9] }];
    engine.executor.sample(&ticket, &Masks { entries: &entries }).unwrap();
    engine.defer_sampling = false;
    let next = engine.launch(&[(0, 1, &[None], true)]).unwrap();
    assert_eq!(engine.wait(ticket).unwrap(), [9]);
    let expected = model::continue_alone(&[1, 9], &SlotSampling::greedy(), VOCABULARY, 1, &[]);
    assert_eq!(engine.wait(next).unwrap(), expected);
}

#[test]
fn a_deferred_step_that_nobody_sampled_is_found() {
    let mut engine = Engine::new();
    engine.defer_sampling = true;
    engine.open(0, &[0]);
    assert_eq!(engine.breach(&[(0, 0, &known([1]), true)]), Violation::NeverSampled { step: 0 });

    let mut engine = Engine::new();
    engine.defer_sampling = true;
    engine.open(0, &[0]);
    let _deferred = engine.launch(&[(0, 0, &known([1]), true)]).unwrap();
    assert_eq!(engine.breach(&[(0, 1, &[None], true)]), Violation::NeverSampled { step: 0 });
}

#[test]
fn masks_that_make_no_sense_are_found() {
    let allow_nothing = [Mask { output: 0, index: 0, allowed: &[0] }];
    let two = [Mask { output: 0, index: 0, allowed: &[1] }; 2];
    let unknown = [Mask { output: 1, index: 0, allowed: &[1] }];
    for entries in [&allow_nothing[..], &two[..], &unknown[..]] {
        let mut engine = Engine::new();
        engine.defer_sampling = true;
        engine.open(0, &[0]);
        let ticket = engine.launch(&[(0, 0, &known([1]), true)]).unwrap();
        let sampled = engine.executor.sample(&ticket, &Masks { entries });
        let violation = engine.breach_of(sampled.map(|()| ticket));
        assert!(matches!(violation, Violation::Mask { .. }), "{violation:?}");
    }
}

#[test]
fn an_undeferred_step_is_not_sampled_again() {
    let mut engine = Engine::new();
    engine.open(0, &[0]);
    let ticket = engine.launch(&[(0, 0, &known([1]), true)]).unwrap();
    let sampled = engine.executor.sample(&ticket, &Masks::default());
    assert_eq!(engine.breach_of(sampled.map(|()| ticket)), Violation::NotDeferred { step: 0 });
}

#[test]
fn unannounced_pages_are_found() {
    let mut engine = Engine::new();
    engine.open(0, &[0]);
    engine.slots.pages_mut(A, GROUP).push(PageId(1));
    let found = engine.breach(&[(0, 0, &known([1]), true)]);
    let (resident, lent) = (None, Some(PageId(1)));
    assert_eq!(found, Violation::Table { slot: A, entry: 1, resident, lent });
}

#[test]
fn a_page_re_pointed_in_silence_is_found() {
    let mut engine = Engine::new();
    engine.open(0, &[0]);
    engine.run(&[(0, 0, &known([1]), true)]);
    engine.slots.pages_mut(A, GROUP)[0] = PageId(5);
    let found = engine.breach(&[(0, 1, &known([1]), true)]);
    let (resident, lent) = (Some(PageId(0)), Some(PageId(5)));
    assert_eq!(found, Violation::Table { slot: A, entry: 0, resident, lent });
}

#[test]
fn events_for_entries_or_pages_that_do_not_exist_are_found() {
    let mut engine = Engine::new();
    engine.open(0, &[0]);
    let entries = Span { start: 1, len: 1 };
    engine.events.push(SlotEvent::Pages { slot: A, group: GROUP, entries });
    let found = engine.breach(&[(0, 0, &known([1]), true)]);
    assert_eq!(found, Violation::Batch(BatchError::Entries { slot: 0, end: 2, found: 1 }));

    let mut engine = Engine::new();
    engine.open(0, &[8]);
    let found = engine.breach(&[(0, 0, &known([1]), true)]);
    assert_eq!(found, Violation::Batch(BatchError::UnknownPage { group: 0, page: 8 }));

    let mut engine = Engine::new();
    engine.open(0, &[0]);
    engine.events.push(SlotEvent::CopyPage { group: GROUP, from: PageId(0), to: PageId(9) });
    let found = engine.breach(&[(0, 0, &known([1]), true)]);
    assert_eq!(found, Violation::Batch(BatchError::UnknownPage { group: 0, page: 9 }));
}

#[test]
fn slots_opened_twice_or_used_while_closed_are_found() {
    let mut engine = Engine::new();
    engine.open(0, &[0]);
    engine.run(&[(0, 0, &known([1]), true)]);
    engine.open(0, &[1]);
    assert_eq!(engine.breach(&[(0, 0, &known([1]), true)]), Violation::OpenTwice { slot: A });

    let mut engine = Engine::new();
    engine.open(0, &[0]);
    engine.close(0);
    engine.slots.pages_mut(A, GROUP).push(PageId(0));
    assert_eq!(engine.breach(&[(0, 0, &known([1]), true)]), Violation::Closed { slot: A });

    let mut engine = Engine::new();
    engine.open(0, &[0]);
    engine.close(0);
    engine.close(0);
    engine.slots.pages_mut(A, GROUP).push(PageId(0));
    assert_eq!(engine.breach(&[(0, 0, &known([1]), true)]), Violation::Closed { slot: A });
}

#[test]
fn sampling_state_that_changes_under_a_sequence_is_found() {
    let mut engine = Engine::new();
    engine.open(0, &[0]);
    engine.run(&[(0, 0, &known([1]), true)]);
    engine.slots.open(A, Arc::new(SlotSampling::greedy()));
    assert_eq!(engine.breach(&[(0, 1, &known([1]), true)]), Violation::Sampling { slot: A });
}

#[test]
fn gaps_in_positions_and_short_tables_are_found() {
    let mut engine = Engine::new();
    engine.open(0, &[0]);
    engine.run(&[(0, 0, &known([1]), true)]);
    let found = engine.breach(&[(0, 2, &known([1]), true)]);
    assert_eq!(found, Violation::Position { slot: A, expected: 1, found: 2 });

    let mut engine = Engine::new();
    engine.open(0, &[0]);
    let found = engine.breach(&[(0, 0, &known([1, 2, 3, 4, 5]), true)]);
    let error = BatchError::TableTooShort { row: 0, group: 0, needed: 2, found: 1 };
    assert_eq!(found, Violation::Batch(error));
}

#[test]
fn reading_what_nobody_wrote_is_found() {
    let mut engine = Engine::new();
    engine.open(0, &[0, 1]);
    let found = engine.breach(&[(0, 4, &known([1]), true)]);
    assert_eq!(found, Violation::Unwritten { slot: A, position: 0, page: PageId(0) });
}

#[test]
fn reading_a_page_that_is_free_is_found() {
    let mut engine = Engine::new();
    engine.open(0, &[0, 1]);
    engine.run(&[(0, 0, &known([1, 2, 3, 4]), false)]);
    engine.executor.poison(GROUP, |page| page == PageId(0));
    let found = engine.breach(&[(0, 4, &known([5]), true)]);
    assert_eq!(found, Violation::Freed { slot: A, position: 0, page: PageId(0) });
}

#[test]
fn a_page_freed_now_may_still_be_read_by_what_was_launched_before() {
    let mut engine = Engine::new();
    engine.open(0, &[0]);
    let earlier = engine.launch(&[(0, 0, &known([1, 2]), true)]).unwrap();
    engine.open(1, &[1]);
    engine.executor.poison(GROUP, |page| page == PageId(0));
    let later = engine.launch(&[(1, 0, &known([1]), true)]).unwrap();
    engine.wait(earlier).unwrap();
    engine.wait(later).unwrap();
    assert_eq!(engine.ledger.violations(), []);
}

#[test]
fn reading_another_prefix_is_found() {
    let mut engine = Engine::new();
    engine.open(0, &[0, 1]);
    engine.open(1, &[2, 3]);
    engine.run(&[(0, 0, &known([1, 2, 3, 4]), false), (1, 0, &known([5, 6, 7, 8]), false)]);
    engine.run(&[(0, 4, &known([9]), false), (1, 4, &known([9]), false)]);
    // The second page of slot 0 was computed under another first page.
    engine.open(2, &[2, 1]);
    let found = engine.breach(&[(2, 5, &known([1]), true)]);
    assert_eq!(found, Violation::Foreign { slot: SlotId(2), position: 4, page: PageId(1) });
}

#[test]
fn reading_another_namespace_is_found() {
    let mut engine = Engine::new();
    for (seed, namespace) in [(1, 10), (2, 20)] {
        engine.ledger.expect(seed, Expectation { namespace, longest: 16 });
    }
    let seeded = |seed| {
        let mut sampling = SlotSampling::greedy();
        sampling.seed = seed;
        sampling
    };
    engine.open_with(0, &[0], seeded(1));
    engine.run(&[(0, 0, &known([1, 2]), true)]);
    engine.open_with(1, &[0], seeded(2));
    let found = engine.breach(&[(1, 2, &known([3]), true)]);
    assert_eq!(found, Violation::Namespace { slot: SlotId(1), reader: 20, writer: 10 });
}

#[test]
fn a_sequence_that_goes_on_too_long_or_samples_a_position_twice_is_found() {
    let mut sampling = SlotSampling::greedy();
    sampling.seed = 7;
    let expectation = Expectation { namespace: 0, longest: 2 };

    let mut engine = Engine::new();
    engine.ledger.expect(7, expectation);
    engine.open_with(0, &[0], sampling.clone());
    let found = engine.breach(&[(0, 0, &known([1, 2, 3]), true)]);
    assert_eq!(found, Violation::TooLong { slot: A, found: 3, longest: 2 });

    let mut engine = Engine::new();
    engine.ledger.expect(7, expectation);
    engine.open_with(0, &[0], sampling.clone());
    engine.run(&[(0, 0, &known([1, 2]), true)]);
    engine.close(0);
    engine.open_with(1, &[0], sampling);
    let found = engine.breach(&[(1, 1, &known([2]), true)]);
    assert_eq!(found, Violation::SampledTwice { seed: 7, position: 2 });
}

#[test]
fn a_history_that_is_not_what_the_sequence_reads_is_found() {
    let mut sampling = SlotSampling::greedy();
    sampling.presence_penalty = 0.5;
    sampling.history = [1, 3].into();
    sampling.history_prompt = 2;
    let mut engine = Engine::new();
    engine.open_with(0, &[0], sampling);
    let found = engine.breach(&[(0, 0, &known([1, 2]), true)]);
    assert_eq!(found, Violation::History { slot: A, known: 2 });
}

#[test]
fn next_tokens_that_no_step_produces_or_another_slot_does_are_found() {
    let mut engine = Engine::new();
    engine.open(0, &[0]);
    engine.run(&[(0, 0, &known([1]), false)]);
    assert_eq!(engine.breach(&[(0, 1, &[None], true)]), Violation::NoNextToken { slot: A });

    let mut engine = Engine::new();
    engine.open(0, &[0]);
    engine.open(1, &[1]);
    engine.run(&[(0, 0, &known([1]), true), (1, 0, &known([1]), true)]);
    // A step in between: the token is not that of the step launched just before.
    engine.run(&[(1, 1, &known([1]), true)]);
    assert_eq!(engine.breach(&[(0, 1, &[None], true)]), Violation::NoNextToken { slot: A });

    let mut engine = Engine::new();
    engine.open(0, &[0]);
    let span = Span { start: 0, len: 1 };
    let row = Row { slot: A, tokens: span, position: 0, outputs: Span::default() };
    let launched = engine.launch_raw(&[InputToken::Produced(SlotId(1))], &[row], 0, &[], &[]);
    let found = engine.breach_of(launched);
    assert!(matches!(found, Violation::Batch(BatchError::Row { row: 0, .. })), "{found}");
}

#[test]
fn batches_that_are_not_well_formed_are_found() {
    let span = |start, len| Span { start, len };
    let row = |tokens, outputs| Row { slot: A, tokens, position: 0, outputs };
    let output = OutputRequest::sample;
    let token = InputToken::Known(1);
    let none = Span::default();
    type Shape<'a> = (&'a str, &'a [InputToken], &'a [Row], u32, &'a [OutputRequest]);
    let cases: &[Shape<'_>] = &[
        ("there is no row", &[], &[], 0, &[]),
        ("row 0 has no tokens", &[], &[row(none, none)], 0, &[]),
        ("tokens that don't follow", &[token], &[row(span(1, 1), none)], 0, &[]),
        ("left over", &[token; 2], &[row(span(0, 1), none)], 0, &[]),
        ("outputs that don't follow", &[token], &[row(span(0, 1), span(0, 1))], 0, &[]),
        ("a decode row", &[token], &[row(span(0, 1), none)], 1, &[]),
        ("2 decode rows", &[token], &[row(span(0, 1), none)], 2, &[]),
        ("13 tokens", &[token; 13], &[row(span(0, 13), none)], 0, &[]),
        ("token 11 is named", &[InputToken::Known(11)], &[row(span(0, 1), none)], 0, &[]),
        ("its row does not have", &[token], &[row(span(0, 1), span(0, 1))], 0, &[output(1, 0)]),
        ("its row does not have", &[token], &[row(span(0, 1), span(0, 1))], 0, &[output(0, 1)]),
        ("ends its row", &[token; 2], &[row(span(0, 2), span(0, 1))], 0, &[output(0, 0)]),
        ("has two rows", &[token; 2], &[row(span(0, 1), none), row(span(1, 1), none)], 0, &[]),
    ];
    for (reason, tokens, rows, decode_rows, outputs) in cases {
        let mut engine = Engine::new();
        engine.open(0, &[0]);
        let launched = engine.launch_raw(tokens, rows, *decode_rows, outputs, &[]);
        let Violation::Batch(found) = engine.breach_of(launched) else { panic!("{reason}") };
        assert!(found.to_string().contains(reason), "{found} instead of {reason}");
    }
}

#[test]
fn rows_that_are_said_to_share_pages_must_share_them() {
    let shared = |pages| SharedPrefix { rows: Span { start: 0, len: 2 }, pages };
    let rows: Vec<Row> = (0..2)
        .map(|index| Row {
            slot: SlotId(index),
            tokens: Span { start: index, len: 1 },
            position: 4,
            outputs: Span::default(),
        })
        .collect();
    // Page 1 of the table is written by the rows; a page that is not the other row's is not shared.
    for (second, pages, wrong_row) in
        [([0, 2], 1, None), ([0, 2], 2, Some(0)), ([3, 2], 1, Some(1))]
    {
        let mut engine = Engine::new();
        engine.open(2, &[0]);
        engine.run(&[(2, 0, &known([1, 2, 3, 4]), false)]);
        engine.open(0, &[0, 1]);
        engine.open(1, &second);
        let tokens = [InputToken::Known(1); 2];
        let launched = engine.launch_raw(&tokens, &rows, 0, &[], &[shared(pages)]);
        assert_eq!(launched.is_err(), wrong_row.is_some());
        if let Some(row) = wrong_row {
            assert_eq!(
                engine.breach_of(launched),
                Violation::Batch(BatchError::Shared { row, pages })
            );
        }
    }
}

#[test]
fn steps_and_tickets_out_of_order_are_found() {
    let mut engine = Engine::new();
    engine.open(0, &[0]);
    engine.run(&[(0, 0, &known([1]), true)]);
    engine.step = 5;
    let found = engine.breach(&[(0, 1, &known([1]), true)]);
    assert_eq!(found, Violation::StepNumber { before: 0, found: 5 });

    let mut engine = Engine::new();
    engine.open(0, &[0]);
    let _first = engine.launch(&[(0, 0, &known([1]), true)]);
    let second = engine.launch(&[(0, 1, &known([1]), true)]);
    let found = engine.breach_of(second);
    assert_eq!(found, Violation::TicketOrder { expected: Some(0), found: 1 });
}

#[test]
fn after_a_loss_steps_in_flight_fail_and_nothing_old_can_be_read() {
    let mut engine = Engine::new();
    engine.open(0, &[0]);
    engine.run(&[(0, 0, &known([1, 2]), true)]);
    let in_flight = engine.launch(&[(0, 2, &known([3]), true)]).unwrap();
    engine.executor.lose_kv();
    assert!(matches!(engine.wait(in_flight), Err(StepError::KvLost { .. })));
    let found = engine.breach(&[(0, 3, &known([4]), true)]);
    assert_eq!(found, Violation::Unwritten { slot: A, position: 0, page: PageId(0) });
}
