//! The driver thread: takes commands in order, runs steps, samples, keeps what belongs to slots.

use std::{collections::HashMap, sync::Arc};

use backend_api::{
    InputToken, Mask, OutputRequest, PageCopy, RowFailure, SlotSampling, Span, StepError,
    StepResult, Tier, Token, Want,
    sample::{RowSample, RowSampler, SampleError, TokenCounts},
};
use crossbeam_channel::{Receiver, Sender};

use super::{
    forward::Machine,
    step::{NextToken, SlotChange, Step},
};
use crate::{kernels::kv::KvLayer, pool::TaskPanicked, shared::SharedMut};

/// What the driver is asked to do.
#[derive(Debug)]
pub(crate) enum Command {
    Step(Box<Step>),
    Sample { number: u64, masks: Vec<OwnedMask> },
    GiveUp { number: u64 },
    Transfer { number: u64, copies: Vec<PageCopy> },
}

/// A mask with its words.
#[derive(Debug)]
pub(crate) struct OwnedMask {
    pub(crate) output: u32,
    pub(crate) allowed: Vec<u32>,
}

/// What the driver has done.
#[derive(Debug)]
pub(crate) enum Done {
    Step { step: Box<Step>, result: StepResult, outcome: Result<(), StepError> },
    Transfer { number: u64 },
}

impl Done {
    /// The number of the ticket that it answers.
    pub(crate) fn number(&self) -> u64 {
        match self {
            Self::Step { step, .. } => step.number,
            Self::Transfer { number } => *number,
        }
    }
}

/// KV memory that no step reads, by group and layer.
pub(crate) type HostTier = Vec<Vec<KvLayer>>;

/// Everything that the driver thread owns.
#[derive(Debug)]
pub(crate) struct Driver {
    machine: Machine,
    host: HostTier,
    vocab_size: usize,
    slots: Vec<Slot>,
    /// Steps whose sampling was deferred, with their logits.
    deferred: HashMap<u64, Deferred>,
    /// By thread.
    samplers: Vec<ThreadSampler>,
    /// By output of the current step.
    answers: Vec<Answer>,
    /// By token of the current step.
    tokens: Vec<Token>,
}

/// What stays with a slot from step to step.
#[derive(Debug)]
struct Slot {
    sampling: Arc<SlotSampling>,
    counts: TokenCounts,
    next: NextToken,
}

#[derive(Debug)]
struct Deferred {
    step: Box<Step>,
    logits: Vec<f32>,
    failures: Vec<RowFailure>,
}

#[derive(Debug, Default)]
struct ThreadSampler {
    sampler: RowSampler,
    top: Vec<(Token, f32)>,
}

/// What came of an output, and which thread has its likeliest tokens.
#[derive(Clone, Copy, Debug)]
struct Answer {
    sample: Result<RowSample, SampleError>,
    thread: usize,
}

impl Driver {
    /// A driver of `machine` for `slots` slots, with logits for `outputs` outputs.
    pub(crate) fn new(machine: Machine, host: HostTier, vocab_size: usize, slots: usize) -> Self {
        let greedy = Arc::new(SlotSampling::greedy());
        let slot = || Slot {
            sampling: Arc::clone(&greedy),
            counts: TokenCounts::default(),
            next: NextToken::None,
        };
        Self {
            machine,
            host,
            vocab_size,
            slots: (0..slots).map(|_| slot()).collect(),
            deferred: HashMap::new(),
            samplers: Vec::new(),
            answers: Vec::new(),
            tokens: Vec::new(),
        }
    }

    /// Does what comes in until nobody can send any more.
    pub(crate) fn serve(mut self, commands: &Receiver<Command>, done: &Sender<Done>) {
        for command in commands {
            let finished = match command {
                Command::Step(step) => self.step(step),
                Command::Sample { number, masks } => self.deferred_sample(number, &masks),
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

    /// Runs a step, and samples unless that was deferred.
    fn step(&mut self, step: Box<Step>) -> Option<Done> {
        self.apply_changes(&step);
        let failures = self.resolve_tokens(&step);
        if let Err(panic) = self.machine.forward(&step, &self.tokens) {
            return Some(dead(step, &panic));
        }
        let logits = self.machine.take_logits();
        if step.defer_sampling {
            // The next step needs memory for its logits before these are done with.
            self.machine.return_logits(vec![0.0; logits.len()]);
            self.deferred.insert(step.number, Deferred { step, logits, failures });
            return None;
        }
        Some(self.sample(Deferred { step, logits, failures }, &[]))
    }

    /// Samples a step that was run before. A step that failed was reported already.
    fn deferred_sample(&mut self, number: u64, masks: &[OwnedMask]) -> Option<Done> {
        let deferred = self.deferred.remove(&number)?;
        Some(self.sample(deferred, masks))
    }

    /// Ends a step that nobody sampled. A step that failed was reported already.
    fn give_up(&mut self, number: u64) -> Option<Done> {
        let Deferred { step, .. } = self.deferred.remove(&number)?;
        for output in step.outputs.iter().filter(|output| output.want == Want::Sample) {
            let slot = step.rows[output.row as usize].slot;
            self.slots[slot.index()].next = NextToken::None;
        }
        let outcome =
            Err(StepError::Unsupported { what: "answers of a step that was not sampled" });
        Some(Done::Step { step, result: StepResult::default(), outcome })
    }

    fn apply_changes(&mut self, step: &Step) {
        for change in &step.changes {
            match change {
                SlotChange::Open { slot, sampling } => {
                    let slot = &mut self.slots[slot.index()];
                    slot.counts.open(sampling);
                    slot.sampling = Arc::clone(sampling);
                    slot.next = NextToken::None;
                }
                SlotChange::Close { slot } => self.slots[slot.index()].next = NextToken::None,
                SlotChange::CopyPage { group, from, to } => {
                    for layer in self.machine.kv_mut(*group) {
                        layer.copy_page(*from, *to);
                    }
                }
            }
        }
    }

    /// Looks up the tokens that slots produced. Rows whose token does not exist fail; they are
    /// computed with another one, so that the batch keeps its shape, and nobody reads the result.
    fn resolve_tokens(&mut self, step: &Step) -> Vec<RowFailure> {
        let mut failures = Vec::new();
        self.tokens.clear();
        for (index, row) in (0..).zip(&step.rows) {
            let mut reason = None;
            for token in &step.tokens[row.tokens.range()] {
                self.tokens.push(match token {
                    InputToken::Known(token) => *token,
                    InputToken::Produced(slot) => match self.slots[slot.index()].next {
                        NextToken::Sampled(token) => token,
                        NextToken::Failed => {
                            reason = Some("the step that it continues failed");
                            0
                        }
                        NextToken::None => {
                            reason = Some("it continues with a token that was never sampled");
                            0
                        }
                    },
                });
            }
            if let Some(reason) = reason {
                self.slots[row.slot.index()].next = NextToken::Failed;
                failures.push(RowFailure { row: index, reason: reason.to_owned() });
            }
        }
        failures
    }

    /// Answers all outputs of a step, and gives back the memory of its logits.
    fn sample(&mut self, deferred: Deferred, masks: &[OwnedMask]) -> Done {
        let Deferred { step, mut logits, mut failures } = deferred;
        if let Err(panic) = self.sample_outputs(&step, &mut logits, masks) {
            self.machine.return_logits(logits);
            return dead(step, &panic);
        }
        self.machine.return_logits(logits);
        let mut result = StepResult::default();
        for (index, (output, answer)) in (0..).zip(step.outputs.iter().zip(&self.answers)) {
            if failures.iter().any(|failure| failure.row == output.row) {
                continue;
            }
            let slot = &mut self.slots[step.rows[output.row as usize].slot.index()];
            match answer.sample {
                Ok(mut sample) => {
                    if output.want == Want::Sample {
                        slot.next = NextToken::Sampled(sample.token);
                        slot.counts.record(sample.token);
                    }
                    let likeliest = &self.samplers[answer.thread].top[sample.top.range()];
                    sample.top =
                        Span { start: result.top.len() as u32, len: likeliest.len() as u32 };
                    result.top.extend_from_slice(likeliest);
                    result.sampled.push(sample.answer(index));
                }
                Err(error) => {
                    slot.next = NextToken::Failed;
                    failures.push(error.of_row(output.row));
                }
            }
        }
        let outcome = if failures.is_empty() { Ok(()) } else { Err(StepError::Rows(failures)) };
        Done::Step { step, result, outcome }
    }

    /// Fills `answers`, in parallel over outputs.
    fn sample_outputs(
        &mut self,
        step: &Step,
        logits: &mut [f32],
        masks: &[OwnedMask],
    ) -> Result<(), TaskPanicked> {
        let pool = self.machine.pool();
        self.samplers.resize_with(pool.threads(), ThreadSampler::default);
        self.samplers.iter_mut().for_each(|sampler| sampler.top.clear());
        let unanswered = Answer { sample: Err(SampleError::NothingAllowed), thread: 0 };
        self.answers.clear();
        self.answers.resize(step.outputs.len(), unanswered);
        let samplers = SharedMut::new(&mut self.samplers);
        let answers = SharedMut::new(&mut self.answers);
        let logits = SharedMut::new(logits);
        let (slots, vocab_size) = (&self.slots, self.vocab_size);
        pool.run(step.outputs.len(), &|thread, index| {
            // SAFETY: no two tasks that run at the same time have the same thread number.
            let sampler = unsafe { &mut samplers.part(thread..thread + 1)[0] };
            // SAFETY: each output is one task.
            let logits = unsafe { logits.part(index * vocab_size..(index + 1) * vocab_size) };
            // SAFETY: as above.
            let answer = unsafe { &mut answers.part(index..index + 1)[0] };
            let mask = masks.iter().find(|mask| mask.output as usize == index);
            let mask = mask.map(|mask| Mask { output: mask.output, allowed: &mask.allowed });
            let sample = sampler.answer(step, &step.outputs[index], slots, logits, mask.as_ref());
            *answer = Answer { sample, thread };
        })
    }

    fn transfer(&mut self, number: u64, copies: &[PageCopy]) -> Done {
        for copy in copies {
            let device = self.machine.kv_mut(copy.group);
            let host = self.host.get_mut(usize::from(copy.group.0));
            let host = host.map_or(&mut [][..], Vec::as_mut_slice);
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

impl ThreadSampler {
    fn answer(
        &mut self,
        step: &Step,
        output: &OutputRequest,
        slots: &[Slot],
        logits: &mut [f32],
        mask: Option<&Mask<'_>>,
    ) -> Result<RowSample, SampleError> {
        let row = &step.rows[output.row as usize];
        let slot = &slots[row.slot.index()];
        match output.want {
            Want::Score { token, top } => self.sampler.score(logits, token, top, &mut self.top),
            _ => {
                let position = row.position + (output.token - row.tokens.start) + 1;
                self.sampler.sample(
                    logits,
                    &slot.sampling,
                    &slot.counts,
                    position,
                    mask,
                    &mut self.top,
                )
            }
        }
    }
}

/// A kernel panicked: what it left behind can't be trusted.
fn dead(step: Box<Step>, panic: &TaskPanicked) -> Done {
    let outcome = Err(StepError::Dead { reason: panic.to_string() });
    Done::Step { step, result: StepResult::default(), outcome }
}

fn copy_between(
    from: &[KvLayer],
    to: &mut [KvLayer],
    from_page: backend_api::PageId,
    to_page: backend_api::PageId,
) {
    for (from, to) in from.iter().zip(to) {
        to.copy_page_from(from, from_page, to_page);
    }
}
