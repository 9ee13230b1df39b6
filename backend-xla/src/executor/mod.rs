//! The executor: what is resident on the devices, and the launches that change it.
//!
//! A launch uploads one small vector, starts the step and the sampler, starts the copy of the
//! replies to the host, and returns; PJRT orders all of it on the devices. Every array that a
//! launch changes is donated to it, so there is one copy of the KV pages and never two.
//!
//! Outputs that wait for masks are sampled later, from the same logits: the sampler then runs once
//! at the launch, for the others, and once when the masks are there. Each run leaves the slots of
//! the rows that it does not sample alone.
//!
//! When a launch fails, what it was given is gone. The executor then reports
//! [`StepError::KvLost`], makes everything anew at the next launch, and reads the page tables from
//! the batch's slots.

mod answers;
#[cfg(test)]
mod failing_device;
mod launch;
mod modules;
#[cfg(test)]
#[path = "../../tests/common/plugin_path.rs"]
mod plugin_path;
mod resident;
mod sampling;
mod step_input;
#[cfg(test)]
mod tests;

use backend_api::{
    BackendError, Batch, BatchBounds, CompileOptions, Deadline, Executor, Limits, Masks, ProgramId,
    Progress, StepError, StepResult, Ticket, kit::Tickets, weights::Weights,
};

use crate::{
    compiler::Compiler,
    error::device,
    load::{Sharded, load_weights},
    lower::{Placed, step::StepShape},
    pjrt::{Completion, ElementType, HostCopy, PjrtError},
};
use answers::{Answers, Arrived, Replied, floats_of};
use launch::{Arguments, LaunchError, Outcome, floats, run, upload, upload_as, words};
use modules::Modules;
use resident::{ALLOCATING, Resident};
use sampling::SamplerInput;
use step_input::pack_step;

/// Programs on devices, with their KV pages.
#[derive(Debug)]
pub(crate) struct XlaExecutor {
    modules: Modules,
    bounds: BatchBounds,
    /// By [`ProgramId`].
    weights: Vec<Vec<Sharded>>,
    /// `None` from a failure until the next launch.
    resident: Option<Resident>,
    /// How often the resident arrays were made. Launches of an earlier life have failed with it.
    life: u64,
    launches: Tickets<Launched>,
}

/// A launch whose ticket is out.
#[derive(Debug)]
struct Launched {
    life: u64,
    program: ProgramId,
    answers: Answers,
    done: Completion,
    at_launch: Option<Replies>,
    deferred: Deferred,
    hidden: Option<HostCopy>,
}

/// Outputs that wait for masks.
#[derive(Debug)]
enum Deferred {
    None,
    Waiting { logits: Sharded, input: SamplerInput },
    Sampled(Replies),
}

/// What a run of the sampler says, on its way to the host.
#[derive(Debug)]
struct Replies {
    tokens: HostCopy,
    /// The likeliest tokens, where any output wants them.
    likeliest: Option<HostCopy>,
}

/// What a step's module gives beside the KV arrays.
struct Computed {
    logits: Sharded,
    hidden: Option<Sharded>,
    done: Completion,
}

impl XlaExecutor {
    /// An executor of programs that lie on the devices as `placed`, of which there is one at least.
    pub(crate) fn new(
        compiler: Compiler,
        placed: Vec<Placed>,
        options: &CompileOptions,
        weights: &dyn Weights,
    ) -> Result<Self, BackendError> {
        let load = |placed: &Placed| load_weights(compiler.client(), placed, weights);
        let weights = placed.iter().map(load).collect::<Result<_, _>>()?;
        let programs: Vec<_> = placed.iter().map(|placed| placed.program.clone()).collect();
        let mut executor = Self {
            bounds: BatchBounds::new(&programs, options),
            modules: Modules::new(compiler, placed, options),
            weights,
            resident: None,
            life: 0,
            launches: Tickets::default(),
        };
        let (resident, allocated) = Resident::fresh(&mut executor.modules)?;
        // Memory that isn't there may show only now. Later, the step that reads the arrays fails.
        for done in allocated {
            done.wait(None).map_err(|error| device(error, ALLOCATING))?;
        }
        executor.resident = Some(resident);
        Ok(executor)
    }

    /// Takes the resident arrays for a launch, making them anew after a failure.
    fn take_resident(&mut self, batch: &Batch<'_>) -> Result<Resident, StepError> {
        let resident = match self.resident.take() {
            Some(resident) => resident.apply_events(&mut self.modules, &self.bounds, batch),
            None => {
                self.life += 1;
                let fresh = Resident::fresh(&mut self.modules);
                let (resident, _) = fresh.map_err(|error| self.die(error.to_string()))?;
                resident.restore(&mut self.modules, &self.bounds, batch)
            }
        };
        resident.map_err(|error| self.lose(&error))
    }

    /// Starts the forward pass.
    fn start_step(
        &mut self,
        mut resident: Resident,
        batch: &Batch<'_>,
        shape: StepShape,
    ) -> Result<(Resident, Computed), LaunchError> {
        let program = batch.program;
        let control = pack_step(batch, shape, &self.modules.program(program).geometry);
        let devices = self.modules.devices();
        let executable = self.modules.step(program, shape)?;
        let client = executable.client().clone();
        let control = upload(&client, devices, &[control.len() as i64], &words(&control))?;
        let arrays = &mut resident.programs[program.index()];
        let mut arguments = Arguments::new(devices);
        for weight in &self.weights[program.index()] {
            arguments.borrow(weight);
        }
        for array in std::mem::take(&mut arrays.kv) {
            arguments.donate(array);
        }
        for table in &arrays.tables {
            arguments.borrow(table);
        }
        arguments.borrow(&arrays.next_tokens);
        arguments.borrow(&control);
        let Outcome { arrays: mut results, done } = run(executable, arguments)?;
        let hidden = if shape.hidden > 0 { results.pop() } else { None };
        let logits = results.pop().ok_or(LaunchError::Outputs)?;
        arrays.kv = results;
        Ok((resident, Computed { logits, hidden, done }))
    }

    /// Starts the sampler over a step's logits, and the copy of its replies.
    fn start_sampler(
        &mut self,
        mut resident: Resident,
        program: ProgramId,
        logits: &Sharded,
        input: &SamplerInput,
        masks: &Masks<'_>,
    ) -> Result<(Resident, Replies), LaunchError> {
        let devices = self.modules.devices();
        let sampler = self.modules.sampler(input.shape())?;
        let client = sampler.executable.client().clone();
        let outputs = input.shape().outputs;
        let control = input.control();
        let control = upload(&client, devices, &[control.len() as i64], &words(control))?;
        let wide = |element, bytes: &[u8]| {
            let dims = [outputs as i64, (bytes.len() / 4 / outputs.max(1)) as i64];
            upload_as(&client, devices, element, &dims, bytes)
        };
        let bias = input.bias().map(|bias| wide(ElementType::F32, &floats(&bias))).transpose()?;
        let mask = input.mask(masks).map(|mask| wide(ElementType::U32, &words(&mask)));
        let mask = mask.transpose()?;
        let next_tokens = &mut resident.programs[program.index()].next_tokens;
        let mut arguments = Arguments::new(devices);
        arguments.borrow(logits);
        arguments.donate(std::mem::take(next_tokens));
        arguments.donate(resident.counts);
        arguments.borrow(bias.as_ref().unwrap_or(&sampler.no_bias));
        arguments.borrow(mask.as_ref().unwrap_or(&sampler.no_mask));
        arguments.borrow(&control);
        let mut arrays = run(&sampler.executable, arguments)?.arrays.into_iter();
        let mut next = || arrays.next().ok_or(LaunchError::Outputs);
        *next_tokens = next()?;
        resident.counts = next()?;
        let (tokens, likeliest) = (next()?, next()?);
        let tokens = copy(&tokens)?;
        let likeliest = input.wants_likeliest().then(|| copy(&likeliest)).transpose()?;
        Ok((resident, Replies { tokens, likeliest }))
    }

    /// Starts a step, samples what does not wait for masks, and puts the resident arrays back.
    fn start(&mut self, batch: &Batch<'_>, shape: StepShape) -> Result<Launched, StepError> {
        let resident = self.take_resident(batch)?;
        let step = self.start_step(resident, batch, shape);
        let (mut resident, computed) = step.map_err(|error| self.lose(&error))?;
        let Computed { logits, hidden, done } = computed;
        let program = batch.program;
        let shape = self.modules.sampler_shape(program, shape.outputs);
        let mut at_launch = None;
        if let Some(input) = SamplerInput::new(batch, shape, false) {
            let masks = Masks::default();
            let sampled = self.start_sampler(resident, program, &logits, &input, &masks);
            let (sampled, replies) = sampled.map_err(|error| self.lose(&error))?;
            resident = sampled;
            at_launch = Some(replies);
        }
        let deferred = match SamplerInput::new(batch, shape, true) {
            Some(input) => Deferred::Waiting { logits, input },
            None => Deferred::None,
        };
        let hidden = hidden.as_ref().map(copy).transpose().map_err(|error| self.lose(&error))?;
        self.resident = Some(resident);
        let placed = self.modules.program(program);
        let width = placed.placement.widths[placed.program.hidden().index()];
        let answers = Answers::new(batch, shape.vocab_size, width);
        Ok(Launched { life: self.life, program, answers, done, at_launch, deferred, hidden })
    }

    /// A launch failed, and what it was given is gone.
    fn lose(&mut self, error: &LaunchError) -> StepError {
        self.resident = None;
        StepError::KvLost { reason: error.to_string() }
    }

    fn die(&mut self, reason: String) -> StepError {
        self.resident = None;
        self.launches.kill(reason)
    }

    /// A launch that was under way failed on the device, or did not end in time.
    fn failed(&mut self, error: PjrtError, life: u64) -> StepError {
        if matches!(error, PjrtError::Timeout { .. }) {
            return self.die(error.to_string());
        }
        if life == self.life {
            self.resident = None;
        }
        StepError::KvLost { reason: error.to_string() }
    }
}

impl Executor for XlaExecutor {
    fn limits(&self) -> &Limits {
        self.bounds.limits()
    }

    fn warm_up(&mut self, progress: &mut dyn Progress) -> Result<(), BackendError> {
        self.modules.warm_up(progress)
    }

    fn launch(&mut self, batch: &Batch<'_>) -> Result<Ticket, StepError> {
        self.launches.check_alive()?;
        let broken = |error| StepError::Batch { step: batch.step, error };
        batch.check(&self.bounds).map_err(broken)?;
        // Every batch within the bounds has a shape, but for this.
        let unprepared =
            StepError::Unsupported { what: "hidden states without CompileOptions::hidden" };
        let shape = self.modules.buckets(batch.program).choose(batch).ok_or(unprepared)?;
        let launched = self.start(batch, shape)?;
        Ok(self.launches.issue(launched))
    }

    fn sample(&mut self, ticket: &Ticket, masks: &Masks<'_>) -> Result<(), StepError> {
        self.launches.check_alive()?;
        let not_deferred = StepError::Unsupported { what: "sampling a step that isn't deferred" };
        let Some(launched) = self.launches.get_mut(ticket) else { return Err(not_deferred) };
        let (life, program) = (launched.life, launched.program);
        let (logits, input) = match std::mem::replace(&mut launched.deferred, Deferred::None) {
            Deferred::Waiting { logits, input } => (logits, input),
            other => {
                launched.deferred = other;
                return Err(not_deferred);
            }
        };
        let resident = match self.resident.take() {
            Some(resident) if life == self.life => resident,
            // Those of a later life are not this step's to lose.
            resident => {
                self.resident = resident;
                self.launches.take(ticket);
                return Err(StepError::KvLost { reason: "an earlier launch failed".to_owned() });
            }
        };
        match self.start_sampler(resident, program, &logits, &input, masks) {
            Ok((resident, replies)) => {
                self.resident = Some(resident);
                if let Some(launched) = self.launches.get_mut(ticket) {
                    launched.deferred = Deferred::Sampled(replies);
                }
                Ok(())
            }
            Err(error) => {
                self.launches.take(ticket);
                Err(self.lose(&error))
            }
        }
    }

    fn wait(
        &mut self,
        ticket: Ticket,
        deadline: Deadline,
        result: &mut StepResult,
    ) -> Result<(), StepError> {
        result.clear();
        self.launches.check_alive()?;
        let Some(launched) = self.launches.take(&ticket) else {
            return Err(StepError::KvLost { reason: "the launch failed before".to_owned() });
        };
        let Launched { life, answers, done, at_launch, deferred, hidden, .. } = launched;
        let (deferred, is_given_up) = match deferred {
            Deferred::Sampled(replies) => (Some(replies), false),
            Deferred::Waiting { .. } => (None, true),
            Deferred::None => (None, false),
        };
        let arrive = || -> Result<Arrived, PjrtError> {
            let deadline = deadline.instant();
            done.wait(deadline)?;
            let replied = |replies: Option<Replies>| -> Result<Replied, PjrtError> {
                let Some(Replies { tokens, likeliest }) = replies else {
                    return Ok(Replied::default());
                };
                let tokens = tokens.wait(deadline)?;
                let likeliest = likeliest.map(|copy| copy.wait(deadline)).transpose()?;
                Ok(Replied::new(&tokens, likeliest.as_deref().unwrap_or_default()))
            };
            let hidden = hidden.map(|copy| copy.wait(deadline)).transpose()?;
            Ok(Arrived {
                at_launch: replied(at_launch)?,
                deferred: replied(deferred)?,
                hidden: hidden.as_deref().map(floats_of).unwrap_or_default(),
            })
        };
        let arrived = arrive().map_err(|error| self.failed(error, life))?;
        if is_given_up {
            return Err(StepError::Unsupported { what: "answers of a step that was not sampled" });
        }
        answers.read(&arrived, result)
    }

    fn compiles_in_traffic(&self) -> u64 {
        self.modules.compiles_in_traffic()
    }
}

/// Starts the copy of an array that every device has whole.
fn copy(array: &Sharded) -> Result<HostCopy, LaunchError> {
    Ok(array.first().ok_or(LaunchError::Outputs)?.to_host()?)
}
