//! A launched step, and what it answers.

use backend_api::sample::{OutputRows, OutputSampler, TokenCounts};
use backend_api::{
    Batch, InputToken, Masks, OutputRequest, ProgramId, Row, RowFailure, Sampled, Span, StepResult,
    Token,
};

use crate::sampling::sampled;
use crate::slot::{NextToken, Slot};

/// A step from its launch until its answers are fetched.
#[derive(Debug)]
pub(crate) struct Step {
    pub(crate) program: ProgramId,
    pub(crate) rows: Vec<Row>,
    pub(crate) outputs: Vec<OutputRequest>,
    targets: Vec<Token>,
    /// All new tokens; 0 for those that another step samples on the device.
    tokens: Vec<Token>,
    /// Rows that go on with what an earlier step samples on the device, with that step's ticket.
    follows: Vec<(u32, u64)>,
    /// Whether the device samples all outputs.
    pub(crate) on_device: bool,
    /// Numbers of the logits (or, where the device samples, of tokens) and of the hidden states, which come back in this
    /// order.
    pub(crate) counts: [usize; 2],
    /// `[output rows, vocabulary]`; empty while the step is under way.
    pub(crate) logits: Vec<f32>,
    /// `[output rows, width]`; empty unless an output wants them.
    pub(crate) hidden: Vec<f32>,
    /// By output.
    pub(crate) answers: Vec<StepResult>,
    pub(crate) failures: Vec<RowFailure>,
    pub(crate) waits_for_masks: bool,
}

impl Step {
    pub(crate) fn new(batch: &Batch<'_>, input: StepTokens, on_device: bool) -> Self {
        Self {
            program: batch.program,
            rows: batch.rows.to_vec(),
            outputs: batch.outputs.to_vec(),
            targets: batch.targets.to_vec(),
            tokens: input.known,
            follows: input.follows,
            on_device,
            counts: [0; 2],
            logits: Vec::new(),
            hidden: Vec::new(),
            answers: vec![StepResult::default(); batch.outputs.len()],
            failures: input.failures,
            waits_for_masks: batch.is_deferred(),
        }
    }

    /// Fails the rows whose first token was never sampled. The steps before have ended.
    pub(crate) fn follow(&mut self, slots: &[Slot]) {
        for &(row, ticket) in &self.follows {
            if slots[self.rows[row as usize].slot.index()].has_failed(self.program, ticket) {
                self.failures.push(RowFailure { row, reason: FOLLOWS_FAILED.to_owned() });
            }
        }
    }

    /// Takes over the tokens that the device sampled, as the step with this ticket.
    pub(crate) fn take(&mut self, ticket: u64, outcomes: &[i32], slots: &mut [Slot]) {
        for (index, (output, &outcome)) in (0..).zip(self.outputs.iter().zip(outcomes)) {
            let slot = &mut slots[self.rows[output.row as usize].slot.index()];
            let failed = self.failures.iter().any(|failure| failure.row == output.row);
            let next = match sampled(outcome) {
                _ if failed => NextToken::Failed,
                Ok(token) => {
                    let sampled = Sampled { token, logprob: f32::NAN, top: Span::default() };
                    self.answers[index as usize].push_tokens(index, [sampled]);
                    NextToken::Sampled(token)
                }
                Err(reason) => {
                    self.failures.push(RowFailure { row: output.row, reason: reason.to_owned() });
                    NextToken::Failed
                }
            };
            slot.settle(self.program, ticket, next);
        }
    }

    /// Answers the outputs that wait for masks, or the others, on the host, and moves slots on to the tokens that were sampled.
    pub(crate) fn answer(
        &mut self,
        sampler: &mut OutputSampler,
        slots: &mut [Slot],
        deferred: bool,
        masks: &Masks<'_>,
    ) {
        let all: usize = self.outputs.iter().map(|output| output.tokens.len as usize).sum();
        let (vocabulary, width) = (self.logits.len() / all.max(1), self.hidden.len() / all.max(1));
        let mut first = 0;
        for (index, output) in (0..).zip(&self.outputs) {
            let run = output.tokens.len as usize;
            let of_run = first..first + run;
            first += run;
            let failed = self.failures.iter().any(|failure| failure.row == output.row);
            if output.deferred != deferred || failed {
                continue;
            }
            let row = &self.rows[output.row as usize];
            let rows = OutputRows {
                output: index,
                request: output,
                tokens: &self.tokens[output.tokens.range()],
                position: row.position + output.tokens.start - row.tokens.start,
                targets: &self.targets,
                logits: &mut self.logits[of_run.start * vocabulary..of_run.end * vocabulary],
                hidden: &self.hidden[of_run.start * width..of_run.end * width],
            };
            let slot = &mut slots[row.slot.index()];
            // What a draft samples is a proposal, and not counted.
            let mut drafted = TokenCounts::default();
            let counts = if self.program == ProgramId::default() {
                &mut slot.counts
            } else {
                drafted.clone_from(&slot.counts);
                &mut drafted
            };
            let next = &mut slot.next[self.program.index()];
            let answer = &mut self.answers[index as usize];
            match sampler.answer(rows, &slot.sampling, counts, masks, answer) {
                Ok(Some(token)) => *next = NextToken::Sampled(token),
                Ok(None) => {}
                Err(error) => {
                    *next = NextToken::Failed;
                    self.failures.push(error.of_row(output.row));
                }
            }
        }
    }
}

/// The new tokens of a step.
#[derive(Debug, Default)]
pub(crate) struct StepTokens {
    /// As kernels take them: a token, or `-1 - slot` for the one that the device has for the slot.
    pub(crate) input: Vec<i32>,
    known: Vec<Token>,
    follows: Vec<(u32, u64)>,
    failures: Vec<RowFailure>,
}

/// Why a row fails whose token comes from a row that failed.
const FOLLOWS_FAILED: &str = "the step that it goes on from failed";

impl StepTokens {
    /// The tokens of a batch. A row whose token was never sampled fails, and runs on with any token: what it writes is its
    /// own.
    pub(crate) fn resolve(batch: &Batch<'_>, slots: &mut [Slot]) -> Self {
        let mut tokens = Self::default();
        for (index, row) in (0..).zip(batch.rows) {
            let next = &mut slots[row.slot.index()].next[batch.program.index()];
            for token in &batch.tokens[row.tokens.range()] {
                let (input, known) = match (*token, *next) {
                    (InputToken::Known(token), _)
                    | (InputToken::Produced(_), NextToken::Sampled(token)) => (token as i32, token),
                    (InputToken::Produced(slot), NextToken::OnDevice(ticket)) => {
                        tokens.follows.push((index, ticket));
                        (-1 - slot.0 as i32, 0)
                    }
                    (InputToken::Produced(_), missing) => {
                        let reason = match missing {
                            NextToken::Failed => FOLLOWS_FAILED,
                            _ => "it goes on with a token that was never sampled",
                        };
                        *next = NextToken::Failed;
                        tokens.failures.push(RowFailure { row: index, reason: reason.to_owned() });
                        (0, 0)
                    }
                };
                tokens.input.push(input);
                tokens.known.push(known);
            }
        }
        tokens
    }
}
