//! The driver thread: takes commands in order, runs steps, samples, keeps what belongs to slots.

use std::{collections::HashMap, ops::Range};

use backend_api::{
    Footprint, InputToken, Mask, Masks, PageCopy, PageId, RowFailure, StepError, Tier,
};
use crossbeam_channel::{Receiver, Sender};

use super::{
    forward::Workers,
    machine::Machine,
    owned_batch::{OutputClass, OwnedBatch, SlotChange},
    sampling::{NextToken, OutputValues, ResidentSlot, Sampling},
    weights::LoadedWeights,
};
use crate::{kernels::kv::KvLayer, pool::TaskPanicked};

/// What the driver is asked to do.
#[derive(Debug)]
pub(crate) enum Command {
    Step(Box<OwnedBatch>),
    Sample { number: u64, masks: Vec<OwnedMask> },
    GiveUp { number: u64 },
    Transfer { number: u64, copies: Vec<PageCopy> },
}

/// A mask that outlives the call that brought it.
#[derive(Debug)]
pub(crate) struct OwnedMask {
    pub(crate) output: u32,
    pub(crate) index: u32,
    pub(crate) allowed: Vec<u32>,
}

/// What the driver has done.
#[derive(Debug)]
pub(crate) enum Done {
    Step { batch: Box<OwnedBatch>, outcome: Result<(), StepError> },
    Transfer { number: u64 },
}

impl Done {
    /// The number of the ticket that it answers.
    pub(crate) fn number(&self) -> u64 {
        match self {
            Self::Step { batch, .. } => batch.number,
            Self::Transfer { number } => *number,
        }
    }
}

/// KV memory by page group of the executor, and layer.
pub(crate) type KvMemory = Vec<Vec<KvLayer>>;

/// Everything that the driver thread owns.
#[derive(Debug)]
pub(crate) struct Driver {
    workers: Workers,
    weights: LoadedWeights,
    /// By program.
    machines: Vec<Machine>,
    kv: KvMemory,
    /// Memory that no step reads.
    host: KvMemory,
    slots: Vec<ResidentSlot>,
    /// Steps with outputs that wait for masks.
    deferred: HashMap<u64, Deferred>,
    sampling: Sampling,
}

/// A step that was run, with the logits of the outputs that wait.
#[derive(Debug)]
struct Deferred {
    batch: Box<OwnedBatch>,
    logits: Vec<f32>,
}

impl Driver {
    /// A driver of `machines` for `slots` slots.
    pub(crate) fn new(
        workers: Workers,
        weights: LoadedWeights,
        machines: Vec<Machine>,
        [kv, host]: [KvMemory; 2],
        slots: usize,
    ) -> Self {
        let programs = machines.len();
        Self {
            workers,
            weights,
            machines,
            kv,
            host,
            slots: (0..slots).map(|_| ResidentSlot::new(programs)).collect(),
            deferred: HashMap::new(),
            sampling: Sampling::default(),
        }
    }

    /// What its memory takes, counted.
    pub(crate) fn footprint(&self) -> Footprint {
        let kv = self.kv.iter().flatten().map(KvLayer::bytes).sum();
        Footprint::new(self.weights.bytes(), kv, self.activation_bytes())
    }

    fn activation_bytes(&self) -> u64 {
        let machines = self.machines.iter().map(Machine::activation_bytes).sum::<u64>();
        machines + self.workers.linear.converted_bytes()
    }

    /// Does what comes in until nobody can send any more.
    pub(crate) fn serve(mut self, commands: &Receiver<Command>, done: &Sender<Done>) {
        for command in commands {
            let finished = match command {
                Command::Step(batch) => self.step(batch),
                Command::Sample { number, masks } => self.sample(number, &masks),
                Command::GiveUp { number } => self.give_up(number),
                Command::Transfer { number, copies } => Some(self.transfer(number, &copies)),
            };
            if let Some(finished) = finished
                && done.send(finished).is_err()
            {
                return;
            }
        }
    }

    /// Runs a step and answers what doesn't wait for masks.
    fn step(&mut self, mut batch: Box<OwnedBatch>) -> Option<Done> {
        self.apply_changes(&batch);
        self.resolve_tokens(&mut batch);
        let counted = cfg!(debug_assertions).then(|| self.activation_bytes());
        let outcome = self.forward(&mut batch);
        debug_assert!(
            outcome.is_err() || counted == Some(self.activation_bytes()),
            "a step takes no memory that was not counted"
        );
        match outcome {
            Err(panic) => Some(dead(batch, &panic)),
            Ok(logits) if batch.is_deferred() => {
                self.deferred.insert(batch.number, Deferred { batch, logits });
                None
            }
            Ok(_) => Some(finished(batch)),
        }
    }

    /// Returns the logits of the outputs that wait.
    fn forward(&mut self, batch: &mut OwnedBatch) -> Result<Vec<f32>, TaskPanicked> {
        let Self { workers, weights, machines, kv, slots, sampling, .. } = self;
        let machine = &mut machines[batch.program.index()];
        machine.forward(workers, weights, kv, batch)?;
        let (free, pool) = (Masks::default(), &mut workers.pool);
        let rows = |class, width: usize| {
            let Range { start, end } = batch.rows_of(class);
            start * width..end * width
        };
        let vocab_size = machine.vocab_size();
        let immediate = rows(OutputClass::Immediate, vocab_size);
        let waiting = rows(OutputClass::Deferred, vocab_size);
        let vectors = rows(OutputClass::Vector, machine.hidden_width());
        // The next pass writes where they are.
        let waiting = machine.logits()[waiting].to_vec();
        let values = OutputValues { logits: &mut machine.logits()[immediate], hidden: &[] };
        sampling.answer(pool, OutputClass::Immediate, batch, values, slots, &free)?;
        let values = OutputValues { logits: &mut [], hidden: &machine.hidden()[vectors] };
        sampling.answer(pool, OutputClass::Vector, batch, values, slots, &free)?;
        Ok(waiting)
    }

    /// Samples the outputs that waited. A step that failed was reported already.
    fn sample(&mut self, number: u64, masks: &[OwnedMask]) -> Option<Done> {
        let Deferred { mut batch, mut logits } = self.deferred.remove(&number)?;
        let entries: Vec<Mask<'_>> = masks
            .iter()
            .map(|OwnedMask { output, index, allowed }| Mask {
                output: *output,
                index: *index,
                allowed,
            })
            .collect();
        let masks = Masks { entries: &entries };
        let values = OutputValues { logits: &mut logits, hidden: &[] };
        let (pool, slots) = (&mut self.workers.pool, &mut self.slots);
        let class = OutputClass::Deferred;
        Some(match self.sampling.answer(pool, class, &mut batch, values, slots, &masks) {
            Ok(()) => finished(batch),
            Err(panic) => dead(batch, &panic),
        })
    }

    /// Ends a step that nobody sampled. A step that failed was reported already.
    fn give_up(&mut self, number: u64) -> Option<Done> {
        let Deferred { mut batch, .. } = self.deferred.remove(&number)?;
        for output in batch.outputs.iter().filter(|output| output.deferred) {
            let slot = &mut self.slots[batch.slot_of(output).index()];
            *slot.next(batch.program) = NextToken::None;
        }
        batch.result.clear();
        let what = "answers of a step that was not sampled";
        Some(Done::Step { batch, outcome: Err(StepError::Unsupported { what }) })
    }

    fn apply_changes(&mut self, batch: &OwnedBatch) {
        for change in &batch.changes {
            match change {
                SlotChange::Open { slot, sampling } => self.slots[slot.index()].open(sampling),
                SlotChange::Close { slot } => self.slots[slot.index()].close(),
                SlotChange::CopyPage { group, from, to } => {
                    for layer in &mut self.kv[group.index()] {
                        layer.copy_page(*from, *to);
                    }
                }
            }
        }
    }

    /// Looks up the tokens that slots produced. Rows whose token does not exist fail; they are
    /// computed with another one, so that the batch keeps its shape, and nobody reads the result.
    fn resolve_tokens(&mut self, batch: &mut OwnedBatch) {
        for index in 0..batch.rows.len() {
            let row = batch.rows[index];
            for place in row.tokens.range() {
                let (token, reason) = match batch.tokens[place] {
                    InputToken::Known(token) => (token, None),
                    InputToken::Produced(slot) => {
                        match *self.slots[slot.index()].next(batch.program) {
                            NextToken::Sampled(token) => (token, None),
                            NextToken::Failed => (0, Some("the step that it continues failed")),
                            NextToken::None => {
                                (0, Some("it continues with a token that was never sampled"))
                            }
                        }
                    }
                };
                batch.resolved.push(token);
                if let Some(reason) = reason {
                    let failure = RowFailure { row: index as u32, reason: reason.to_owned() };
                    batch.fail(failure, &mut self.slots[row.slot.index()]);
                }
            }
        }
    }

    fn transfer(&mut self, number: u64, copies: &[PageCopy]) -> Done {
        for copy in copies {
            let group = copy.group.index();
            let (device, host) = (&mut self.kv[group], &mut self.host[group]);
            let ((from_tier, from), (to_tier, to)) = (copy.from, copy.to);
            match (from_tier, to_tier) {
                (Tier::Device, Tier::Host) => copy_between(device, host, from, to),
                (Tier::Host, Tier::Device) => copy_between(host, device, from, to),
                (Tier::Device, _) => device.iter_mut().for_each(|kv| kv.copy_page(from, to)),
                _ => host.iter_mut().for_each(|kv| kv.copy_page(from, to)),
            }
        }
        Done::Transfer { number }
    }
}

/// All outputs have their answers.
fn finished(mut batch: Box<OwnedBatch>) -> Done {
    let outcome = batch.finish();
    Done::Step { batch, outcome }
}

/// A kernel panicked: what it left behind can't be trusted.
fn dead(mut batch: Box<OwnedBatch>, panic: &TaskPanicked) -> Done {
    batch.result.clear();
    let outcome = Err(StepError::Dead { reason: panic.to_string() });
    Done::Step { batch, outcome }
}

fn copy_between(from: &mut [KvLayer], to: &mut [KvLayer], from_page: PageId, to_page: PageId) {
    for (from, to) in from.iter_mut().zip(to) {
        to.copy_page_from(from, from_page, to_page);
    }
}
