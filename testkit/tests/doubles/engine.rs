//! Stands for an engine that does whatever a test tells it.

use std::sync::Arc;

use engine_core::backend::{
    Batch, CompileOptions, Deadline, Executor, GroupId, InputToken, Limits, OutputRequest, Row,
    SharedPrefix, SlotEvent, SlotId, SlotSampling, Slots, Span, StepError, StepResult, Ticket,
};
use engine_core::{PageId, Token};
use testkit::shadow::{Ledger, ShadowExecutor, Violation};

pub(crate) const GROUP: GroupId = GroupId(0);
pub(crate) const VOCABULARY: u32 = 11;
pub(crate) const PAGE_SIZE: u32 = 4;

/// An executor, and the slots that an engine would keep for it.
pub(crate) struct Engine {
    pub(crate) executor: ShadowExecutor,
    pub(crate) ledger: Arc<Ledger>,
    pub(crate) slots: Slots,
    pub(crate) events: Vec<SlotEvent>,
    pub(crate) step: u64,
    pub(crate) defer_sampling: bool,
    pub(crate) result: StepResult,
}

/// A row to launch: slot, first position, new tokens (`None`: the produced one), and whether it
/// samples.
pub(crate) type Wanted<'a> = (u32, u32, &'a [Option<Token>], bool);

impl Engine {
    pub(crate) fn new() -> Self {
        let limits = Limits { rows: 3, tokens: 12, outputs: 4, slots: 3, pages: vec![8] };
        let ledger = Arc::new(Ledger::default());
        let mut options = CompileOptions::new(limits, PAGE_SIZE, 64);
        options.host_pages = vec![4];
        let executor = ShadowExecutor::new(&options, VOCABULARY, ledger.clone()).unwrap();
        Self {
            executor,
            ledger,
            slots: Slots::new(3, 1),
            events: Vec::new(),
            step: 0,
            defer_sampling: false,
            result: StepResult::default(),
        }
    }

    pub(crate) fn open(&mut self, slot: u32, pages: &[u32]) {
        self.open_with(slot, pages, SlotSampling::greedy());
    }

    pub(crate) fn open_with(&mut self, slot: u32, pages: &[u32], sampling: SlotSampling) {
        self.slots.open(SlotId(slot), Arc::new(sampling));
        self.slots.pages_mut(SlotId(slot), GROUP).clear();
        self.events.push(SlotEvent::Open { slot: SlotId(slot) });
        self.append(slot, pages);
    }

    pub(crate) fn append(&mut self, slot: u32, pages: &[u32]) {
        let table = self.slots.pages_mut(SlotId(slot), GROUP);
        let entries = Span { start: table.len() as u32, len: pages.len() as u32 };
        table.extend(pages.iter().map(|&page| PageId(page)));
        self.events.push(SlotEvent::Pages { slot: SlotId(slot), group: GROUP, entries });
    }

    pub(crate) fn close(&mut self, slot: u32) {
        self.slots.pages_mut(SlotId(slot), GROUP).clear();
        // An event's entries are in the lent table, so those of a table that is gone go with it.
        self.events.retain(|event| !matches!(event, SlotEvent::Pages { .. }));
        self.events.push(SlotEvent::Close { slot: SlotId(slot) });
    }

    pub(crate) fn launch(&mut self, wanted: &[Wanted<'_>]) -> Result<Ticket, StepError> {
        let (mut tokens, mut rows, mut outputs) = (Vec::new(), Vec::new(), Vec::new());
        for (index, &(slot, position, new, samples)) in (0..).zip(wanted) {
            let slot = SlotId(slot);
            let span = Span { start: tokens.len() as u32, len: new.len() as u32 };
            tokens.extend(new.iter().map(|token| match token {
                Some(token) => InputToken::Known(*token),
                None => InputToken::Produced(slot),
            }));
            let first = outputs.len() as u32;
            if samples {
                let token = tokens.len() as u32 - 1;
                let output = OutputRequest::sample(index, token);
                outputs.push(OutputRequest { deferred: self.defer_sampling, ..output });
            }
            let outputs = Span { start: first, len: samples.into() };
            rows.push(Row { slot, tokens: span, position, outputs });
        }
        self.launch_raw(&tokens, &rows, 0, &outputs, &[])
    }

    pub(crate) fn launch_raw(
        &mut self,
        tokens: &[InputToken],
        rows: &[Row],
        decode_rows: u32,
        outputs: &[OutputRequest],
        shared: &[SharedPrefix],
    ) -> Result<Ticket, StepError> {
        let (events, step) = (std::mem::take(&mut self.events), self.step);
        let mut batch = Batch::new(step, tokens, rows, decode_rows, outputs, &events, &self.slots);
        batch.targets = &[5; 2];
        batch.shared = shared;
        self.step += 1;
        self.executor.launch(&batch)
    }

    pub(crate) fn wait(&mut self, ticket: Ticket) -> Result<Vec<Token>, StepError> {
        self.executor.wait(ticket, Deadline::NEVER, &mut self.result)?;
        Ok(self.result.tokens.iter().map(|sampled| sampled.token).collect())
    }

    pub(crate) fn run(&mut self, wanted: &[Wanted<'_>]) -> Vec<Token> {
        let ticket = self.launch(wanted).unwrap();
        self.wait(ticket).unwrap()
    }

    /// The violation that a launch, or the wait for it, leads to.
    pub(crate) fn breach(&mut self, wanted: &[Wanted<'_>]) -> Violation {
        let launched = self.launch(wanted);
        self.breach_of(launched)
    }

    pub(crate) fn breach_of(&mut self, launched: Result<Ticket, StepError>) -> Violation {
        let error = launched.and_then(|ticket| self.wait(ticket)).unwrap_err();
        let violation = self.ledger.violations().pop().expect("a violation is recorded");
        assert_eq!(error, StepError::Dead { reason: violation.to_string() });
        violation
    }
}

pub(crate) fn known<const N: usize>(tokens: [Token; N]) -> [Option<Token>; N] {
    tokens.map(Some)
}
