//! What a step answers beside samples: verified chains, scores, hidden states, pooled vectors, on
//! models whose logits are known; and several programs in one executor.

mod common;

use std::{sync::Arc, time::Duration};

use backend_xla::{XlaBackend, XlaOptions};
use common::table::{Numbers, add_table_model, random_sampling, table_model};
use engine_core::{
    backend::{
        Backend, Batch, CompileOptions, Deadline, Draft, Executor, GroupId, InputToken, Limits,
        Mask, Masks, OutputRequest, PoolKind, Pooling, ProgramId, Row, SlotEvent, SlotId,
        SlotSampling, Slots, Span, StepError, StepResult, Want,
    },
    model::Program,
    sample::{OutputRows, OutputSampler, TokenCounts},
    weights::Weights,
};
use radix_cache::{PageId, Token};

const VOCAB: usize = 301;
const ROWS: u32 = 6;
/// Tokens in the longest chain.
const CHAIN: u32 = 5;

fn random_table(numbers: &mut Numbers, vocab_size: usize) -> Vec<Vec<f32>> {
    let mut row = || (0..vocab_size).map(|_| numbers.next() * 12.0 - 6.0).collect();
    (0..vocab_size).map(|_| row()).collect()
}

fn options(groups: usize) -> CompileOptions {
    let limits = Limits {
        rows: ROWS,
        tokens: 32,
        outputs: ROWS * CHAIN,
        slots: ROWS,
        pages: vec![ROWS; groups],
    };
    let mut options = CompileOptions::new(limits, 16, 16);
    options.longest_draft = CHAIN - 1;
    options
}

fn executor(
    programs: &[Program],
    weights: &dyn Weights,
    options: &CompileOptions,
) -> Box<dyn Executor> {
    let mut backend = XlaOptions::cpu(common::plugin().path(), 1);
    backend.compiler_flags = vec![("xla_backend_optimization_level".into(), "0".into())];
    // Most of these tests' time is compilation.
    let cache = concat!(env!("CARGO_TARGET_TMPDIR"), "/xla-executables");
    let backend = XlaBackend::new(backend.cache(cache)).expect("a backend");
    let mut executor = backend.compile(programs, weights, options).expect("it compiles");
    executor.warm_up(&mut ()).expect("it warms up");
    executor
}

/// One row of a step: slot, first position, tokens, and what is wanted of which of its tokens.
struct RowOf {
    slot: u32,
    position: u32,
    tokens: Vec<InputToken>,
    wants: Vec<(std::ops::Range<u32>, Want, bool)>,
}

/// A caller of an executor, with the slots that it lends.
struct Caller {
    executor: Box<dyn Executor>,
    slots: Slots,
    events: Vec<SlotEvent>,
    targets: Vec<Token>,
    step: u64,
}

impl Caller {
    fn new(executor: Box<dyn Executor>, groups: usize) -> Self {
        let slots = Slots::new(ROWS, groups);
        Self { executor, slots, events: Vec::new(), targets: Vec::new(), step: 0 }
    }

    /// Opens a slot with a page of its own in each group.
    fn open(&mut self, index: u32, sampling: &SlotSampling) {
        let slot = SlotId(index);
        self.slots.open(slot, Arc::new(sampling.clone()));
        self.events.push(SlotEvent::Open { slot });
        for group in (0..self.slots.groups() as u8).map(GroupId) {
            *self.slots.pages_mut(slot, group) = vec![PageId(index)];
            let entries = Span { start: 0, len: 1 };
            self.events.push(SlotEvent::Pages { slot, group, entries });
        }
    }

    fn run(
        &mut self,
        program: ProgramId,
        rows_of: &[RowOf],
        masks: &[Mask<'_>],
    ) -> Result<StepResult, StepError> {
        let (mut tokens, mut rows, mut outputs) = (Vec::new(), Vec::new(), Vec::new());
        for (index, row) in (0..).zip(rows_of) {
            let start = tokens.len() as u32;
            tokens.extend_from_slice(&row.tokens);
            let first_output = outputs.len() as u32;
            outputs.extend(row.wants.iter().map(|(run, want, deferred)| OutputRequest {
                row: index,
                tokens: Span { start: start + run.start, len: run.len() as u32 },
                want: *want,
                deferred: *deferred,
            }));
            rows.push(Row {
                slot: SlotId(row.slot),
                tokens: Span { start, len: row.tokens.len() as u32 },
                position: row.position,
                outputs: Span { start: first_output, len: row.wants.len() as u32 },
            });
        }
        let events = std::mem::take(&mut self.events);
        let mut batch = Batch::new(self.step, &tokens, &rows, 0, &outputs, &events, &self.slots);
        batch.program = program;
        batch.targets = &self.targets;
        self.step += 1;
        let ticket = self.executor.launch(&batch)?;
        if batch.is_deferred() {
            self.executor.sample(&ticket, &Masks { entries: masks })?;
        }
        let mut result = StepResult::default();
        let deadline = Deadline::after(Duration::from_secs(300));
        self.executor.wait(ticket, deadline, &mut result).map(|()| result)
    }
}

fn known(tokens: &[Token]) -> Vec<InputToken> {
    tokens.iter().map(|&token| InputToken::Known(token)).collect()
}

fn tokens(result: &StepResult, output: u32) -> Vec<Token> {
    let answer = result.output(output).expect("an answer");
    result.tokens_of(answer).iter().map(|sampled| sampled.token).collect()
}

/// What the host knows of a sequence.
struct Sequence {
    sampling: SlotSampling,
    counts: TokenCounts,
    position: u32,
    /// The last token, whose KV is not there yet.
    last: Token,
}

impl Sequence {
    /// The answer to a chain of tokens, with what it changes.
    fn answer(
        &mut self,
        table: &[Vec<f32>],
        output: u32,
        chain: &[Token],
        masks: &Masks<'_>,
    ) -> Vec<(Token, f32)> {
        let run = Span { start: 0, len: chain.len() as u32 };
        let want = Want::Verify(Draft::Chain);
        let request = OutputRequest { row: 0, tokens: run, want, deferred: false };
        let mut logits: Vec<f32> = chain.iter().flat_map(|&t| table[t as usize].clone()).collect();
        let rows = OutputRows {
            output,
            request: &request,
            tokens: chain,
            position: self.position,
            targets: &[],
            logits: &mut logits,
            hidden: &[],
        };
        let mut result = StepResult::default();
        OutputSampler::default()
            .answer(rows, &self.sampling, &mut self.counts, masks, &mut result)
            .expect("some token is allowed");
        result.tokens.iter().map(|sampled| (sampled.token, sampled.logprob)).collect()
    }

    /// Proposals that plain steps would sample, as long as chance has it.
    fn proposals(&self, numbers: &mut Numbers, table: &[Vec<f32>], count: u32) -> Vec<Token> {
        let mut chain = vec![self.last];
        let mut plain = Self {
            sampling: self.sampling.clone(),
            counts: self.counts.clone(),
            position: self.position,
            last: self.last,
        };
        for _ in 0..count {
            let next = plain.answer(table, 0, &[plain.last], &Masks::default())[0].0;
            let is_right = numbers.next() < 0.75;
            chain.push(if is_right { next } else { numbers.below(VOCAB) as Token });
            plain.last = *chain.last().expect("it was pushed");
            plain.position += 1;
        }
        chain
    }
}

#[test]
fn verified_chains_answer_what_the_host_answers_and_leave_its_state() {
    const ROUNDS: usize = 12;
    const STEPS: usize = 3;
    let mut numbers = Numbers(8);
    let table = random_table(&mut numbers, VOCAB);
    let (program, weights) = table_model(&table, VOCAB, None);
    let mut caller = Caller::new(executor(&[program], &weights, &options(1)), 1);
    let (mut compared, mut agreed, mut accepted) = (0, 0, 0);
    for _ in 0..ROUNDS {
        let open = |numbers: &mut Numbers, slot: u32, caller: &mut Caller| {
            let mut sampling = random_sampling(numbers, VOCAB);
            if slot == 0 {
                // A chain of equal tokens, each of which makes the next less likely.
                sampling = SlotSampling { frequency_penalty: 1.0, ..SlotSampling::greedy() };
            }
            caller.open(slot, &sampling);
            let mut counts = TokenCounts::default();
            counts.open(&sampling);
            Some(Sequence { sampling, counts, position: 0, last: numbers.below(VOCAB) as Token })
        };
        let mut sequences: Vec<Option<Sequence>> =
            (0..ROWS).map(|slot| open(&mut numbers, slot, &mut caller)).collect();
        for step in 0..STEPS {
            // Which rows take part, the proposals of each, and a mask for some of their tokens.
            let mut rows = Vec::new();
            let mut chains = Vec::new();
            let mut masked = Vec::new();
            for (slot, sequence) in (0..).zip(&sequences) {
                let Some(sequence) = sequence else { continue };
                let count = numbers.below(CHAIN as usize) as u32;
                let chain = sequence.proposals(&mut numbers, &table, count);
                let mut inputs = known(&chain);
                if step > 0 && numbers.next() < 0.7 {
                    inputs[0] = InputToken::Produced(SlotId(slot));
                }
                let deferred = numbers.next() < 0.5;
                let output = chains.len() as u32;
                if deferred {
                    let index = numbers.below(chain.len()) as u32;
                    let words = VOCAB.div_ceil(32);
                    let allowed: Vec<u32> =
                        (0..words).map(|_| (numbers.next() * 4e9) as u32 | 1).collect();
                    // Tokens that are suppressed at first must not be all.
                    let allowed = if sequence.sampling.suppress.is_empty() {
                        allowed
                    } else {
                        vec![u32::MAX; words]
                    };
                    masked.push((output, index, allowed));
                }
                let run = 0..chain.len() as u32;
                let want = match chain.len() {
                    1 => Want::Sample,
                    _ => Want::Verify(Draft::Chain),
                };
                let position = sequence.position;
                let wants = vec![(run, want, deferred)];
                rows.push(RowOf { slot, position, tokens: inputs, wants });
                chains.push((slot, chain));
            }
            let masks: Vec<Mask<'_>> = masked
                .iter()
                .map(|(output, index, allowed)| Mask { output: *output, index: *index, allowed })
                .collect();
            let result = caller.run(ProgramId(0), &rows, &masks).expect("every row has tokens");
            for (output, (slot, chain)) in (0..).zip(&chains) {
                let place = &mut sequences[*slot as usize];
                let Some(sequence) = place else { continue };
                let masks = Masks { entries: &masks };
                let expected = sequence.answer(&table, output, chain, &masks);
                let found = result.output(output).expect("an answer");
                let found = result.tokens_of(found);
                compared += 1;
                let same = found.iter().map(|s| s.token).eq(expected.iter().map(|e| e.0));
                if !same {
                    // A sum in f32 fell on the other side of a boundary: another sequence now.
                    *place = None;
                    continue;
                }
                agreed += 1;
                accepted += found.len() - 1;
                for (found, expected) in found.iter().zip(&expected) {
                    let is_near = (found.logprob - expected.1).abs() < 1e-4;
                    assert!(is_near || (found.logprob.is_nan() && expected.1.is_nan()));
                }
                sequence.position += found.len() as u32;
                sequence.last = found[found.len() - 1].token;
            }
        }
    }
    assert!(agreed + 1 >= compared, "{agreed} of {compared} agreed");
    assert!(accepted > compared / 2, "{accepted} proposals accepted in {compared} chains");
    assert_eq!(caller.executor.compiles_in_traffic(), 0);
}

#[test]
fn scores_hidden_states_and_pooled_vectors_stand_beside_samples() {
    let mut numbers = Numbers(5);
    let table = random_table(&mut numbers, VOCAB);
    let (program, weights) = table_model(&table, VOCAB, Some(300));
    let mut options = options(1);
    options.hidden = true;
    let mut caller = Caller::new(executor(&[program], &weights, &options), 1);
    (0..5).for_each(|slot| caller.open(slot, &SlotSampling::greedy()));
    caller.targets = vec![9, 7, 40, 41];
    let pool = |kind, normalize| Want::Pool(Pooling { kind, normalize });
    let score = Want::Score { targets: Span { start: 1, len: 3 }, top: 2 };
    let row = |slot, ids: &[Token], wants: Vec<(std::ops::Range<u32>, Want)>| RowOf {
        slot,
        position: 0,
        tokens: known(ids),
        wants: wants.into_iter().map(|(run, want)| (run, want, false)).collect(),
    };
    let rows = [
        row(0, &[17], vec![(0..1, Want::Sample)]),
        row(1, &[5, 6, 7, 8], vec![(0..3, score), (3..4, Want::Sample)]),
        row(2, &[3, 4, 4], vec![(1..3, Want::Hidden), (0..3, pool(PoolKind::Mean, true))]),
        row(3, &[9, 11], vec![(0..2, pool(PoolKind::Last, false)), (1..2, Want::Sample)]),
        // What it computes is not a number: it fails as a whole.
        row(4, &[20, 300], vec![(0..1, Want::Hidden), (1..2, pool(PoolKind::Last, true))]),
    ];
    let best = |token: usize| -> Token {
        let row = &table[token];
        (0..VOCAB).max_by(|&a, &b| row[a].total_cmp(&row[b])).expect("a vocabulary") as Token
    };
    let vector = |entries: &[(usize, f32)]| {
        let mut vector = vec![0.0; VOCAB];
        entries.iter().for_each(|&(index, value)| vector[index] = value);
        vector
    };
    let check = |result: &StepResult| {
        assert_eq!(result.outputs.len(), 7);
        assert_eq!(tokens(result, 0), [best(17)]);
        let scored = result.tokens_of(result.output(1).expect("scores"));
        for ((sampled, target), token) in scored.iter().zip([7, 40, 41]).zip([5, 6, 7]) {
            let row = &table[token];
            let largest = row.iter().copied().fold(f32::MIN, f32::max);
            let sum: f32 = row.iter().map(|logit| (logit - largest).exp()).sum();
            let logprob = |token: Token| row[token as usize] - largest - sum.ln();
            assert_eq!(sampled.token, target);
            assert!((sampled.logprob - logprob(target)).abs() < 1e-4);
            let top = &result.top[sampled.top.range()];
            assert_eq!((top.len(), top[0].0), (2, best(token)));
            assert!((top[0].1 - logprob(top[0].0)).abs() < 1e-4);
        }
        assert_eq!(scored.len(), 3);
        assert_eq!(tokens(result, 2), [best(8)]);
        let of = |output| result.vector_of(result.output(output).expect("a vector")).to_vec();
        assert_eq!(of(3), [vector(&[(4, 1.0)]), vector(&[(4, 1.0)])].concat());
        let length = 5f32.sqrt();
        for (found, expected) in of(4).iter().zip(vector(&[(3, 1.0 / length), (4, 2.0 / length)])) {
            assert!((found - expected).abs() < 1e-6);
        }
        assert_eq!(of(5), vector(&[(11, 1.0)]));
        assert_eq!(tokens(result, 6), [best(11)]);
    };
    let error = caller.run(ProgramId(0), &rows, &[]).expect_err("a row fails");
    let StepError::Rows(failures) = error else { panic!("only a row fails: {error}") };
    assert_eq!(failures.iter().map(|failure| failure.row).collect::<Vec<_>>(), [4]);
    assert!(failures[0].reason.contains("hidden state"), "{failures:?}");
    let result = caller.run(ProgramId(0), &rows[..4], &[]).expect("the others run");
    check(&result);
    // The failed row's page goes to another sequence, which is shorter.
    caller.open(4, &SlotSampling::greedy());
    let heir = row(4, &[20], vec![(0..1, Want::Sample)]);
    let result = caller.run(ProgramId(0), &[heir], &[]).expect("it runs");
    assert_eq!(tokens(&result, 0), [best(20)]);
    assert_eq!(caller.executor.compiles_in_traffic(), 0);
}

#[test]
fn hidden_states_that_were_not_declared_are_refused_and_nothing_happens() {
    let table = random_table(&mut Numbers(6), VOCAB);
    let (program, weights) = table_model(&table, VOCAB, None);
    let backend = XlaBackend::new(XlaOptions::cpu(common::plugin().path(), 1)).expect("a backend");
    let executor = backend.compile(&[program], &weights, &options(1)).expect("it compiles");
    let mut caller = Caller::new(executor, 1);
    let row = |want| RowOf {
        slot: 0,
        position: 0,
        tokens: known(&[4, 5]),
        wants: vec![(1..2, want, false)],
    };
    caller.open(0, &SlotSampling::greedy());
    let error = caller.run(ProgramId(0), &[row(Want::Hidden)], &[]).expect_err("not declared");
    assert!(matches!(error, StepError::Unsupported { .. }), "{error}");
    caller.open(0, &SlotSampling::greedy());
    caller.run(ProgramId(0), &[row(Want::Sample)], &[]).expect("it runs");
}

#[test]
fn programs_share_slots_and_counts_and_have_next_tokens_of_their_own() {
    const SMALL: usize = 200;
    let mut numbers = Numbers(7);
    let tables = [random_table(&mut numbers, VOCAB), random_table(&mut numbers, SMALL)];
    let (target, mut weights) = table_model(&tables[0], VOCAB, None);
    let draft = add_table_model("draft.", &tables[1], SMALL, None, &mut weights);
    let mut caller = Caller::new(executor(&[target, draft], &weights, &options(2)), 2);
    let mut sampling = SlotSampling::greedy();
    sampling.presence_penalty = 20.0;
    caller.open(1, &sampling);

    let mut counts = vec![0u32; VOCAB];
    let mut best = |program: usize, token: Token| -> Token {
        let row = &tables[program][token as usize];
        let penalized = |t: usize| row[t] - if counts[t] > 0 { 20.0 } else { 0.0 };
        let all = 0..row.len();
        let best = all.max_by(|&a, &b| penalized(a).total_cmp(&penalized(b))).expect("tokens");
        counts[best] += 1;
        best as Token
    };
    let mut next = [3, 3].map(InputToken::Known);
    let mut last: [Token; 2] = [3, 3];
    for (position, programs) in (0..).zip([[0, 1], [1, 0], [0, 1], [1, 0]]) {
        for program in programs {
            let row = RowOf {
                slot: 1,
                position,
                tokens: vec![next[program]],
                wants: vec![(0..1, Want::Sample, false)],
            };
            let result = caller.run(ProgramId(program as u8), &[row], &[]).expect("it runs");
            last[program] = best(program, last[program]);
            assert_eq!(tokens(&result, 0), [last[program]], "program {program}");
            next[program] = InputToken::Produced(SlotId(1));
        }
    }
    assert_eq!(caller.executor.compiles_in_traffic(), 0);
}
