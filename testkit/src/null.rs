//! A backend without a model: for measuring the engine itself.
//!
//! A step answers with the same token for every output, or with the first one that a mask allows.
//! Once warm it allocates nothing, so whatever a bench counts is the engine's.
//!
//! With a step time it pretends to be a device that runs steps one after the other, each for that long.
//! [`DeviceTimes`] then tells how long the device had nothing to do: what overlapping host and
//! device work is there to avoid.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use engine_core::Token;
use engine_core::backend::{
    Backend, BackendError, Batch, Capabilities, CompileOptions, Compute, Deadline, Executor,
    Limits, Mask, Masks, PageCopy, Progress, Sampled, Span, StepError, StepResult, Ticket, Want,
};
use engine_core::model::Program;
use engine_core::weights::Weights;
use parking_lot::Mutex;

/// Shorter waits than this are spent yielding: sleeping is less exact.
const SHORTEST_SLEEP: Duration = Duration::from_micros(300);

/// Compiles any program into a [`NullExecutor`].
#[derive(Clone, Debug, Default)]
pub struct NullBackend {
    token: Token,
    step_time: Duration,
    times: Arc<Mutex<DeviceTimes>>,
}

impl NullBackend {
    /// Steps take no time and answer with token 0.
    pub fn new() -> Self {
        Self::default()
    }

    /// Every step takes this long.
    #[must_use]
    pub fn with_step_time(mut self, step_time: Duration) -> Self {
        self.step_time = step_time;
        self
    }

    /// The token that every output gets: not one that ends a sequence.
    #[must_use]
    pub fn with_token(mut self, token: Token) -> Self {
        self.token = token;
        self
    }

    /// What the devices of all its executors have done so far.
    pub fn times(&self) -> DeviceTimes {
        *self.times.lock()
    }

    /// An executor by itself, for a bench that needs no program.
    pub fn executor(&self, limits: Limits) -> NullExecutor {
        NullExecutor {
            limits,
            token: self.token,
            step_time: self.step_time,
            times: self.times.clone(),
            free_at: None,
            in_flight: VecDeque::new(),
            spare: Vec::new(),
            tickets: 0,
        }
    }
}

impl Backend for NullBackend {
    fn capabilities(&self) -> Capabilities {
        let mut capabilities = Capabilities::new("null", 1 << 30);
        capabilities.host_memory_bytes = 1 << 30;
        capabilities.batch_invariant = true;
        capabilities
    }

    /// Nothing: the weights are not read.
    fn weight_bytes(
        &self,
        _program: &Program,
        _weights: &dyn Weights,
        _compute: Compute,
    ) -> Result<u64, BackendError> {
        Ok(0)
    }

    fn compile(
        &self,
        _programs: &[Program],
        _weights: &dyn Weights,
        options: &CompileOptions,
    ) -> Result<Box<dyn Executor>, BackendError> {
        Ok(Box::new(self.executor(options.limits.clone())))
    }
}

/// What a pretended device has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceTimes {
    /// Steps launched.
    pub steps: u64,
    /// Time spent in steps.
    pub busy: Duration,
    /// Time between the end of a step and the start of the next one.
    pub idle: Duration,
}

impl DeviceTimes {
    /// Idle time a step, on average. Zero before the first step.
    pub fn idle_per_step(&self) -> Duration {
        u32::try_from(self.steps)
            .ok()
            .and_then(|steps| self.idle.checked_div(steps))
            .unwrap_or_default()
    }
}

/// The executor of a [`NullBackend`].
#[derive(Debug)]
pub struct NullExecutor {
    limits: Limits,
    token: Token,
    step_time: Duration,
    times: Arc<Mutex<DeviceTimes>>,
    /// When the device ends its last launched step.
    free_at: Option<Instant>,
    in_flight: VecDeque<Step>,
    /// Answers of retired steps, for their memory.
    spare: Vec<Vec<Token>>,
    tickets: u64,
}

#[derive(Debug)]
struct Step {
    ticket: u64,
    ends_at: Instant,
    /// By output.
    answers: Vec<Token>,
}

impl Executor for NullExecutor {
    fn limits(&self) -> &Limits {
        &self.limits
    }

    fn warm_up(&mut self, progress: &mut dyn Progress) -> Result<(), BackendError> {
        progress.update("null", 1, 1);
        Ok(())
    }

    fn launch(&mut self, batch: &Batch<'_>) -> Result<Ticket, StepError> {
        let now = Instant::now();
        let starts_at = self.free_at.map_or(now, |free_at| free_at.max(now));
        let ends_at = starts_at + self.step_time;
        let mut times = self.times.lock();
        times.steps += 1;
        times.busy += self.step_time;
        times.idle += self.free_at.map_or(Duration::ZERO, |free_at| starts_at - free_at);
        self.free_at = Some(ends_at);

        let mut answers = self.spare.pop().unwrap_or_default();
        answers.clear();
        answers.extend(batch.outputs.iter().map(|output| match output.want {
            Want::Score { targets, .. } => {
                let targets = batch.targets.get(targets.range()).unwrap_or_default();
                targets.first().copied().unwrap_or_default()
            }
            _ => self.token,
        }));
        let ticket = self.tickets;
        self.tickets += 1;
        self.in_flight.push_back(Step { ticket, ends_at, answers });
        Ok(Ticket::new(ticket))
    }

    fn sample(&mut self, ticket: &Ticket, masks: &Masks<'_>) -> Result<(), StepError> {
        let step = self.in_flight.iter_mut().find(|step| step.ticket == ticket.number());
        let Some(step) = step else { return Err(unknown(ticket)) };
        for mask in masks.entries {
            if let Some(answer) = step.answers.get_mut(mask.output as usize)
                && let Some(allowed) = first_allowed(mask, *answer)
            {
                *answer = allowed;
            }
        }
        Ok(())
    }

    fn wait(
        &mut self,
        ticket: Ticket,
        deadline: Deadline,
        result: &mut StepResult,
    ) -> Result<(), StepError> {
        result.clear();
        let Some(step) = self.in_flight.pop_front().filter(|step| step.ticket == ticket.number())
        else {
            return Err(unknown(&ticket));
        };
        match deadline.instant() {
            Some(deadline) if deadline < step.ends_at => {
                wait_until(deadline);
                return Err(StepError::Dead { reason: "the step missed its deadline".into() });
            }
            _ => wait_until(step.ends_at),
        }
        for (output, &token) in (0..).zip(&step.answers) {
            let sampled = Sampled { token, logprob: f32::NAN, top: Span::default() };
            result.push_tokens(output, [sampled]);
        }
        self.spare.push(step.answers);
        Ok(())
    }

    /// Copies take no time.
    fn transfer(&mut self, _copies: &[PageCopy]) -> Result<Ticket, StepError> {
        self.tickets += 1;
        Ok(Ticket::new(self.tickets - 1))
    }

    fn wait_transfer(&mut self, _ticket: Ticket, _deadline: Deadline) -> Result<(), StepError> {
        Ok(())
    }
}

/// The preferred token if it is allowed, else the first that is.
fn first_allowed(mask: &Mask<'_>, preferred: Token) -> Option<Token> {
    if mask.allows(preferred) {
        return Some(preferred);
    }
    let (index, word) = (0..).zip(mask.allowed).find(|(_, word)| **word != 0)?;
    Some(index * u32::BITS + word.trailing_zeros())
}

fn wait_until(instant: Instant) {
    loop {
        let left = instant.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return;
        }
        if left > SHORTEST_SLEEP {
            std::thread::sleep(left - SHORTEST_SLEEP);
        } else {
            std::thread::yield_now();
        }
    }
}

fn unknown(ticket: &Ticket) -> StepError {
    StepError::Dead { reason: format!("ticket {} is not the next one", ticket.number()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use engine_core::backend::{InputToken, OutputRequest, Row, SlotId, Slots};

    fn limits() -> Limits {
        Limits { rows: 2, tokens: 4, outputs: 2, slots: 2, pages: vec![4] }
    }

    fn launch(executor: &mut NullExecutor, step: u64) -> Ticket {
        let tokens = [InputToken::Known(3), InputToken::Known(5)];
        let span = Span { start: 0, len: 2 };
        let rows = [Row { slot: SlotId(0), tokens: span, position: 0, outputs: span }];
        let first = Span { start: 0, len: 1 };
        let want = Want::Score { targets: first, top: 0 };
        let outputs = [
            OutputRequest { row: 0, tokens: first, want, deferred: false },
            OutputRequest::sample(0, 1),
        ];
        let slots = Slots::new(2, 1);
        let mut batch = Batch::new(step, &tokens, &rows, 0, &outputs, &[], &slots);
        batch.targets = &[5];
        executor.launch(&batch).unwrap()
    }

    #[test]
    fn every_output_is_answered_with_the_token_it_asked_for_or_the_fixed_one() {
        let mut executor = NullBackend::new().with_token(9).executor(limits());
        let ticket = launch(&mut executor, 0);
        let mut result = StepResult::default();
        executor.wait(ticket, Deadline::NEVER, &mut result).unwrap();
        let answers: Vec<_> =
            result.outputs.iter().map(|o| (o.output, result.tokens_of(o)[0].token)).collect();
        assert_eq!(answers, [(0, 5), (1, 9)]);
    }

    #[test]
    fn a_mask_that_forbids_the_fixed_token_gets_the_first_allowed_one() {
        let mut executor = NullBackend::new().with_token(9).executor(limits());
        let ticket = launch(&mut executor, 0);
        let entries = [Mask { output: 1, index: 0, allowed: &[0, 0b1000] }];
        executor.sample(&ticket, &Masks { entries: &entries }).unwrap();
        let mut result = StepResult::default();
        executor.wait(ticket, Deadline::NEVER, &mut result).unwrap();
        assert_eq!(result.tokens[1].token, 35);
    }

    #[test]
    fn a_step_launched_before_the_last_one_ended_finds_the_device_busy() {
        let backend = NullBackend::new().with_step_time(Duration::from_secs(3600));
        let mut executor = backend.executor(limits());
        let (first, second) = (launch(&mut executor, 0), launch(&mut executor, 1));
        let times = backend.times();
        assert_eq!(
            times,
            DeviceTimes { steps: 2, busy: Duration::from_secs(7200), idle: Duration::ZERO }
        );
        assert_eq!(times.idle_per_step(), Duration::ZERO);

        let mut result = StepResult::default();
        let missed = executor.wait(first, Deadline::after(Duration::ZERO), &mut result);
        assert!(matches!(missed, Err(StepError::Dead { .. })));
        assert!(executor.wait(second, Deadline::after(Duration::ZERO), &mut result).is_err());
    }

    #[test]
    fn a_ticket_out_of_order_is_refused() {
        let mut executor = NullBackend::new().executor(limits());
        let (_first, second) = (launch(&mut executor, 0), launch(&mut executor, 1));
        assert!(executor.wait(second, Deadline::NEVER, &mut StepResult::default()).is_err());
    }
}
