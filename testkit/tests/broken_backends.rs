//! The conformance suite must be able to fail: backends with one known bug each, and the case that
//! catches it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use engine_core::backend::{
    Backend, BackendError, Batch, Capabilities, CompileOptions, Deadline, Executor, Limits, Masks,
    PageCopy, Progress, SlotEvent, StepError, StepResult, Ticket,
};
use engine_core::model::Program;
use engine_core::weights::{Format, Tensor, Weights, WeightsError};
use testkit::conformance::{Case, Subject, assert_passes, cases};
use testkit::interpreter::Interpreter;

/// What is wrong with a backend that is otherwise the interpreter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bug {
    None,
    /// Weights of this format come out 2 % too large.
    Misreads(Format),
    /// Refuses weights of this format.
    Refuses(Format),
    /// Pages of forks aren't copied.
    SkipsPageCopies,
    /// Only appended entries of page tables are taken over.
    MissesRepointing,
    IgnoresMasks,
    /// Answers in another order.
    ReversesAnswers,
    /// Rows that failed have no answers, but nobody is told.
    HidesFailures,
    /// Promises invariance, and differs in the last bit where a step has several rows.
    DependsOnTheBatch,
    /// Pages stay where they are.
    SkipsTransfers,
    CompilesInTraffic,
    /// Takes refusals for answers.
    HidesRefusals,
    /// Claims that page size 16 is all it has.
    FewPageSizes,
}

#[derive(Debug)]
struct Broken(Bug);

#[derive(Debug)]
struct BrokenWeights<'a>(&'a dyn Weights, Bug);

struct BrokenExecutor {
    inner: Box<dyn Executor>,
    bug: Bug,
    /// Rows of the step launched last.
    rows: usize,
}

impl Backend for Broken {
    fn capabilities(&self) -> Capabilities {
        let mut capabilities = Interpreter.capabilities();
        if self.0 == Bug::FewPageSizes {
            capabilities.page_sizes = vec![16];
        }
        capabilities
    }

    fn compile(
        &self,
        programs: &[Program],
        weights: &dyn Weights,
        options: &CompileOptions,
    ) -> Result<Box<dyn Executor>, BackendError> {
        for weight in programs.iter().flat_map(Program::weights) {
            let format = weights.tensor(&weight.name)?.format();
            if self.0 == Bug::Refuses(format) {
                let name = weight.name.clone();
                return Err(BackendError::Format { name, format, backend: "broken" });
            }
        }
        let inner = Interpreter.compile(programs, &BrokenWeights(weights, self.0), options)?;
        Ok(Box::new(BrokenExecutor { inner, bug: self.0, rows: 0 }))
    }
}

impl Weights for BrokenWeights<'_> {
    fn tensor(&self, name: &str) -> Result<Tensor<'_>, WeightsError> {
        let tensor = self.0.tensor(name)?;
        if self.1 != Bug::Misreads(tensor.format()) {
            return Ok(tensor);
        }
        let values: Vec<f32> = tensor.to_f32().iter().map(|x| x * 1.02).collect();
        Tensor::from_f32(Format::F32, tensor.shape(), &values)
            .map_err(|source| WeightsError::Tensor { name: name.to_owned(), source })
    }

    fn contains(&self, name: &str) -> bool {
        self.0.contains(name)
    }

    fn names(&self) -> Box<dyn Iterator<Item = &str> + '_> {
        self.0.names()
    }
}

impl Executor for BrokenExecutor {
    fn limits(&self) -> &Limits {
        self.inner.limits()
    }

    fn warm_up(&mut self, progress: &mut dyn Progress) -> Result<(), BackendError> {
        self.inner.warm_up(progress)
    }

    fn launch(&mut self, batch: &Batch<'_>) -> Result<Ticket, StepError> {
        let is_taken = |event: &&SlotEvent| match event {
            SlotEvent::CopyPage { .. } => self.bug != Bug::SkipsPageCopies,
            // In the cases, whole tables and what is appended is announced in longer runs.
            SlotEvent::Pages { entries, .. } => {
                self.bug != Bug::MissesRepointing || entries.len > 1
            }
            _ => true,
        };
        let events: Vec<SlotEvent> = batch.events.iter().filter(is_taken).copied().collect();
        self.rows = batch.rows.len();
        let mut batch = *batch;
        batch.events = &events;
        self.inner.launch(&batch)
    }

    fn sample(&mut self, ticket: &Ticket, masks: &Masks<'_>) -> Result<(), StepError> {
        let none = Masks::default();
        let masks = if self.bug == Bug::IgnoresMasks { &none } else { masks };
        self.hide_refusal(|inner| inner.sample(ticket, masks))
    }

    fn wait(
        &mut self,
        ticket: Ticket,
        deadline: Deadline,
        result: &mut StepResult,
    ) -> Result<(), StepError> {
        let outcome = self.hide_refusal(|inner| inner.wait(ticket, deadline, result));
        if self.bug == Bug::ReversesAnswers {
            result.tokens.reverse();
        }
        if self.bug == Bug::DependsOnTheBatch && self.rows > 1 {
            for (_, logprob) in &mut result.top {
                *logprob = logprob.next_down();
            }
        }
        if self.bug == Bug::HidesFailures { Ok(()) } else { outcome }
    }

    fn transfer(&mut self, copies: &[PageCopy]) -> Result<Ticket, StepError> {
        self.inner.transfer(if self.bug == Bug::SkipsTransfers { &[] } else { copies })
    }

    fn wait_transfer(&mut self, ticket: Ticket, deadline: Deadline) -> Result<(), StepError> {
        self.inner.wait_transfer(ticket, deadline)
    }

    fn compiles_in_traffic(&self) -> u64 {
        u64::from(self.bug == Bug::CompilesInTraffic)
    }
}

impl BrokenExecutor {
    fn hide_refusal(
        &mut self,
        call: impl FnOnce(&mut dyn Executor) -> Result<(), StepError>,
    ) -> Result<(), StepError> {
        match call(&mut *self.inner) {
            Err(StepError::Unsupported { .. }) if self.bug == Bug::HidesRefusals => Ok(()),
            outcome => outcome,
        }
    }
}

fn passes(bug: Bug, name: &str, case: Case, skips: &'static [&'static str]) -> bool {
    let subject = Subject::new(Arc::new(Broken(bug)), 1e-4).skips(skips);
    catch_unwind(AssertUnwindSafe(|| assert_passes(name, case, subject))).is_ok()
}

/// Asserts that the case passes without the bug and fails with it.
macro_rules! assert_catches {
    ($bug:expr, $case:ident) => {
        assert!(passes(Bug::None, stringify!($case), cases::$case, &[]), "fails without a bug");
        assert!(!passes($bug, stringify!($case), cases::$case, &[]), "{:?} passes", $bug);
    };
}

#[test]
fn weights_that_are_misread_are_caught_in_every_format() {
    for format in Format::ALL {
        assert_catches!(Bug::Misreads(format), linear_reads_every_format);
        assert_catches!(Bug::Misreads(format), logits_read_every_format);
        assert_catches!(Bug::Misreads(format), embedding_looks_rows_up_and_scales_them);
    }
}

#[test]
fn pages_that_are_not_copied_or_re_pointed_are_caught() {
    assert_catches!(Bug::SkipsPageCopies, forks_go_on_from_their_parents_positions);
    assert_catches!(Bug::SkipsPageCopies, pages_move_between_launches);
    assert_catches!(Bug::MissesRepointing, pages_move_between_launches);
    assert_catches!(Bug::SkipsTransfers, pages_come_back_from_the_host_tier);
}

#[test]
fn answers_that_are_lost_swapped_or_unmasked_are_caught() {
    assert_catches!(Bug::IgnoresMasks, deferred_sampling_obeys_masks);
    assert_catches!(Bug::IgnoresMasks, a_mask_that_allows_nothing_fails_its_row_alone);
    assert_catches!(Bug::ReversesAnswers, rows_answer_several_outputs_in_order);
    assert_catches!(Bug::HidesRefusals, a_deferred_step_that_is_never_sampled_is_given_up);
    assert_catches!(Bug::HidesRefusals, only_deferred_steps_are_sampled_and_only_once);
    assert_catches!(Bug::HidesFailures, logits_that_are_not_numbers_fail_their_row_alone);
}

#[test]
fn broken_promises_are_caught() {
    assert_catches!(Bug::DependsOnTheBatch, the_batch_changes_no_bit);
    assert_catches!(Bug::CompilesInTraffic, nothing_is_compiled_after_warm_up);
}

#[test]
fn what_is_skipped_must_be_declared_and_what_is_declared_skipped() {
    let (name, case): (_, Case) = ("linear_reads_every_format", cases::linear_reads_every_format);
    let declared = &["linear_reads_every_format/Q8_0"];
    assert!(!passes(Bug::Refuses(Format::Q8_0), name, case, &[]), "an undeclared skip");
    assert!(passes(Bug::Refuses(Format::Q8_0), name, case, declared));
    assert!(!passes(Bug::None, name, case, declared), "a skip that isn't one");

    let (name, case): (_, Case) = ("page_sizes_agree", cases::page_sizes_agree);
    assert!(!passes(Bug::FewPageSizes, name, case, &[]), "undeclared page sizes");
    let others = &[
        "page_sizes_agree/1",
        "page_sizes_agree/2",
        "page_sizes_agree/32",
        "page_sizes_agree/128",
    ];
    assert!(passes(Bug::FewPageSizes, name, case, others));
}
