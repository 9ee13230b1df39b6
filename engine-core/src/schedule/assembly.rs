//! The batch that is being put together, and then lent until the next one is.

use std::ops::Range;

use radix_cache::Token;

use super::arrival::PromptWant;
use super::flights::{LaunchedRow, RowKind};
use super::report::Deferred;
use super::sequence::{Sequence, SequenceKey};
use super::sharing::shared_prefixes;
use crate::backend::{
    Batch, Draft, InputToken, OutputRequest, PoolKind, Pooling, Row, SharedPrefix, SlotEvent,
    SlotId, Slots, Span, Want,
};

/// Owns the flat arrays of one step.
#[derive(Debug, Default)]
pub(super) struct Assembly {
    step: u64,
    tokens: Vec<InputToken>,
    rows: Vec<Row>,
    decode_rows: u32,
    outputs: Vec<OutputRequest>,
    targets: Vec<Token>,
    deferred: Vec<Deferred>,
    events: Vec<SlotEvent>,
    launched: Vec<LaunchedRow>,
    shared: Vec<SharedPrefix>,
}

impl Assembly {
    pub(super) fn new(events: usize) -> Self {
        Self { events: Vec::with_capacity(events), ..Self::default() }
    }

    /// Begins a batch whose rows will be noted in `launched`, an empty list.
    pub(super) fn begin(&mut self, launched: Vec<LaunchedRow>) {
        self.tokens.clear();
        self.rows.clear();
        self.outputs.clear();
        self.targets.clear();
        self.deferred.clear();
        self.shared.clear();
        self.decode_rows = 0;
        self.launched = launched;
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Appends the tokens of a running sequence from `start` to `end`, the known ones and then the
    /// one to be produced, as one row; an output if one is wanted after the last.
    pub(super) fn push(&mut self, (key, sequence): (SequenceKey, &Sequence), row: NewRow) {
        let NewRow { run, slot, start, end, kind, wants, draft, of_prompt } = row;
        let row = self.rows.len() as u32;
        let first = self.tokens.len() as u32;
        let known = &sequence.tokens[start.min(sequence.known())..end.min(sequence.known())];
        self.tokens.extend(known.iter().map(|&token| InputToken::Known(token)));
        if known.len() < end - start {
            self.tokens.push(InputToken::Produced(slot));
        }
        let draft = &sequence.tokens[draft];
        self.tokens.extend(draft.iter().map(|&token| InputToken::Known(token)));
        let tokens = Span { start: first, len: self.tokens.len() as u32 - first };

        let first_output = self.outputs.len() as u32;
        let of_prompt = (!of_prompt.is_empty()).then(|| {
            let skipped = (of_prompt.start - start) as u32;
            let span = Span { start: first + skipped, len: of_prompt.len() as u32 };
            let want = self.want_of_prompt(sequence, of_prompt);
            self.outputs.push(OutputRequest { row, tokens: span, want, deferred: false });
            (first_output, span.len)
        });
        let output = wants.then_some(self.outputs.len() as u32);
        if let Some(output) = output {
            let (run, want) = match kind {
                RowKind::Verify { .. } => (tokens, Want::Verify(Draft::Chain)),
                RowKind::Decode | RowKind::Chunk => {
                    (Span { start: tokens.start + tokens.len - 1, len: 1 }, Want::Sample)
                }
            };
            let deferred = sequence.constrained;
            self.outputs.push(OutputRequest { row, tokens: run, want, deferred });
            if deferred {
                self.deferred.push(Deferred { output, id: sequence.id });
            }
        }
        let outputs = self.outputs.len() as u32 - first_output;
        let outputs = Span { start: first_output, len: outputs };
        self.rows.push(Row { slot, tokens, position: start as u32, outputs });
        self.decode_rows += u32::from(kind == RowKind::Decode);
        self.launched.push(LaunchedRow { key, run, kind, output, of_prompt, end });
    }

    /// What [`push`](Self::push) does, for the row that nearly all are: one token, one sample.
    pub(super) fn push_decode(
        &mut self,
        (key, sequence): (SequenceKey, &Sequence),
        (run, slot): (u64, SlotId),
        start: usize,
    ) {
        let (kind, end) = (RowKind::Decode, start + 1);
        let row = self.rows.len() as u32;
        let (token, output) = (self.tokens.len() as u32, self.outputs.len() as u32);
        let known = sequence.tokens.get(start).copied();
        self.tokens.push(known.map_or(InputToken::Produced(slot), InputToken::Known));
        let deferred = sequence.constrained;
        self.outputs.push(OutputRequest { deferred, ..OutputRequest::sample(row, token) });
        if deferred {
            self.deferred.push(Deferred { output, id: sequence.id });
        }
        let one = |start| Span { start, len: 1 };
        let (tokens, outputs) = (one(token), one(output));
        self.rows.push(Row { slot, tokens, position: start as u32, outputs });
        self.decode_rows += 1;
        let output = Some(output);
        self.launched.push(LaunchedRow { key, run, kind, output, of_prompt: None, end });
    }

    /// What is wanted after the positions of a sequence's prompt.
    fn want_of_prompt(&mut self, sequence: &Sequence, positions: Range<usize>) -> Want {
        match sequence.want {
            PromptWant::Scores { top, .. } => {
                let start = self.targets.len() as u32;
                let next = positions.start + 1..positions.end + 1;
                self.targets.extend_from_slice(sequence.tokens.get(next).unwrap_or_default());
                let len = self.targets.len() as u32 - start;
                Want::Score { targets: Span { start, len }, top }
            }
            PromptWant::Vector(pooling @ Pooling { kind: PoolKind::Last, .. }) => {
                Want::Pool(pooling)
            }
            // Normalized once all parts are there.
            PromptWant::Vector(Pooling { kind, .. }) => {
                Want::Pool(Pooling { kind, normalize: false })
            }
            PromptWant::Nothing => Want::Hidden,
        }
    }

    /// Ends the batch: its rows, to be counted as launched.
    pub(super) fn take_rows(&mut self) -> Vec<LaunchedRow> {
        std::mem::take(&mut self.launched)
    }

    /// Looks which decode rows begin with the same pages.
    pub(super) fn find_shared(&mut self, slots: &Slots, page_size: usize) {
        let decoding = &self.rows[..self.decode_rows as usize];
        shared_prefixes(decoding, slots, page_size, &mut self.shared);
    }

    /// The batch was launched as a step of this number.
    pub(super) fn number(&mut self, step: u64) {
        self.step = step;
    }

    pub(super) fn events_mut(&mut self) -> &mut Vec<SlotEvent> {
        &mut self.events
    }

    pub(super) fn batch<'a>(&'a self, slots: &'a Slots) -> Batch<'a> {
        let Self { step, tokens, rows, decode_rows, outputs, events, .. } = self;
        let mut batch = Batch::new(*step, tokens, rows, *decode_rows, outputs, events, slots);
        batch.targets = &self.targets;
        batch.shared = &self.shared;
        batch
    }

    pub(super) fn deferred(&self) -> &[Deferred] {
        &self.deferred
    }
}

/// A row to append.
#[derive(Clone, Debug)]
pub(super) struct NewRow {
    pub(super) run: u64,
    pub(super) slot: SlotId,
    pub(super) start: usize,
    /// Behind the tokens that are known or produced.
    pub(super) end: usize,
    pub(super) kind: RowKind,
    /// An output is wanted.
    pub(super) wants: bool,
    /// The known tokens that are proposed to follow.
    pub(super) draft: Range<usize>,
    /// The positions of the row after which something of the prompt is wanted.
    pub(super) of_prompt: Range<usize>,
}
