//! What a case works with: the backend under test, the reference, and the comparison of the two.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use engine_core::backend::{Backend, BackendError, KvFormat, StepError};

use super::Subject;
use super::failure::Failure;
use super::models::Model;
use super::session::{Answer, Session, Setup};
use crate::interpreter::Interpreter;

/// One run of one case.
#[derive(Debug)]
pub struct Check<'a> {
    subject: &'a Subject,
    /// What the backend turned out not to support, and how it said so.
    skipped: RefCell<BTreeMap<String, String>>,
    /// The largest difference of a log probability from the reference's so far.
    largest_difference: Cell<f32>,
}

/// A case: what it does, or why the backend doesn't conform.
pub type Case = fn(&Check<'_>) -> Result<(), Failure>;

/// Runs a case, and panics with the whole story if the backend doesn't pass it, or skips other
/// parts of it than its subject declares. How far it was from the reference is said on standard
/// error.
///
/// A subject of `None` is a backend that this machine doesn't have: then nothing is run, and said
/// so on standard error.
pub fn assert_passes(name: &str, case: Case, subject: impl Into<Option<Subject>>) {
    let Some(subject) = subject.into() else {
        eprintln!("{name}: not run, as this machine doesn't have the backend");
        return;
    };
    let check = Check {
        subject: &subject,
        skipped: RefCell::default(),
        largest_difference: Cell::default(),
    };
    let outcome = check.part(name, || case(&check));
    eprintln!("{name}: log probabilities differ by up to {:.1e}", check.largest_difference.get());
    if let Err(failure) = outcome {
        panic!("{} does not conform: {}", subject.description(), with_sources(&failure));
    }
    let reasons = check.skipped.into_inner();
    for (part, reason) in &reasons {
        eprintln!("skipped: {part}: {reason}");
    }
    let of_case = |skip: &&str| skip.split('/').next() == Some(name);
    let declared: BTreeSet<&str> = subject.skips.iter().copied().filter(of_case).collect();
    let skipped: BTreeSet<&str> = reasons.keys().map(String::as_str).collect();
    assert_eq!(
        skipped,
        declared,
        "left: what {} skipped of this case; right: what its suite declares",
        subject.description()
    );
}

impl Check<'_> {
    /// The backend under test.
    pub(super) fn backend(&self) -> &dyn Backend {
        &*self.subject.backend
    }

    /// How far log probabilities may be from the reference's.
    pub(super) fn tolerance(&self) -> f32 {
        self.subject.tolerance
    }

    /// A part of a case that a backend may not support. `name` begins with the case's.
    pub(super) fn part(
        &self,
        name: &str,
        body: impl FnOnce() -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        match body() {
            Err(failure) if is_lack_of_support(&failure) => {
                self.skipped.borrow_mut().insert(name.to_owned(), with_sources(&failure));
                Ok(())
            }
            outcome => outcome,
        }
    }

    /// The format of KV under test, or else the one that the case would take.
    pub(super) fn kv_format(&self, of_case: KvFormat) -> KvFormat {
        self.subject.kv_format.unwrap_or(of_case)
    }

    /// A session on the backend under test.
    pub(super) fn session(&self, model: &Model, setup: &Setup) -> Result<Session, Failure> {
        let kv_format = self.kv_format(setup.kv_format);
        let compute = self.subject.compute;
        Session::new(self.backend(), model, &Setup { kv_format, compute, ..setup.clone() })
    }

    /// A session on the reference.
    pub(super) fn reference(&self, model: &Model, setup: &Setup) -> Result<Session, Failure> {
        Session::new(&Interpreter, model, setup)
    }

    /// Runs a script on the reference and on the backend and compares all answers.
    pub(super) fn agree(
        &self,
        what: &str,
        model: &Model,
        setup: &Setup,
        script: impl Fn(&mut Session) -> Result<Vec<Answer>, Failure>,
    ) -> Result<(), Failure> {
        let expected = script(&mut self.reference(model, setup)?)?;
        let found = script(&mut self.session(model, setup)?)?;
        self.same_answers(what, &expected, &found)
    }

    /// Compares answers: as many, to the same outputs, and alike within the tolerance.
    pub(super) fn same_answers(
        &self,
        what: &str,
        expected: &[Answer],
        found: &[Answer],
    ) -> Result<(), Failure> {
        if expected.len() != found.len() {
            let (expected, found) = (expected.len(), found.len());
            return Err(Failure::wrong(format!("{what}: number of answers"), expected, found));
        }
        for (index, (expected, found)) in expected.iter().zip(found).enumerate() {
            self.same_answer(&format!("{what}, answer {index}"), expected, found)?;
        }
        Ok(())
    }

    fn same_answer(&self, what: &str, expected: &Answer, found: &Answer) -> Result<(), Failure> {
        let tolerance = self.subject.tolerance;
        if expected.output != found.output {
            let what = format!("{what}: the output that is answered");
            return Err(Failure::wrong(what, expected.output, found.output));
        }
        self.same_vector(what, &expected.vector, &found.vector)?;
        if !expected.vector.is_empty() {
            return Ok(());
        }
        let (reference, other) = (expected.by_token(), found.by_token());
        if reference.len() != other.len() {
            let what = format!("{what}: number of likeliest tokens");
            return Err(Failure::wrong(what, reference.len(), other.len()));
        }
        for (token, (&expected, &found)) in (0..).zip(reference.iter().zip(&other)) {
            let difference = (expected - found).abs();
            self.largest_difference.set(self.largest_difference.get().max(difference));
            // Not a number is not close.
            let is_close = difference <= tolerance;
            if !is_close {
                let what = what.to_owned();
                return Err(Failure::LogProbability { what, token, expected, found, tolerance });
            }
        }
        if !found.top.is_sorted_by(|a, b| a.1 >= b.1) {
            let expected = "the likeliest first";
            return Err(Failure::wrong(format!("{what}: order of tokens"), expected, &found.top));
        }
        // Two tokens that the reference holds for nearly equal may change places.
        let distance =
            match (reference.get(expected.token as usize), reference.get(found.token as usize)) {
                (Some(best), Some(chosen)) => (best - chosen).abs(),
                _ => f32::INFINITY,
            };
        if expected.token != found.token && distance > 2.0 * tolerance {
            return Err(Failure::wrong(format!("{what}: token"), expected.token, found.token));
        }
        Ok(())
    }

    /// Elements are as close as log probabilities are, for elements of about 1.
    fn same_vector(&self, what: &str, expected: &[f32], found: &[f32]) -> Result<(), Failure> {
        if expected.len() != found.len() {
            let (expected, found) = (expected.len(), found.len());
            return Err(Failure::wrong(format!("{what}: elements"), expected, found));
        }
        let largest = expected.iter().fold(1.0f32, |largest, x| largest.max(x.abs()));
        let is_close = |(a, b): (&f32, &f32)| (a - b).abs() <= self.subject.tolerance * largest;
        if expected.iter().zip(found).all(is_close) {
            return Ok(());
        }
        Err(Failure::wrong(
            format!("{what}: vector"),
            format!("{expected:?}"),
            format!("{found:?}"),
        ))
    }

    /// Whether the backend promises results that don't depend on the batch. A case asks inside a
    /// [`part`](Self::part) of its own, so that a backend that promises nothing shows as a skip.
    pub(super) fn require_batch_invariance(&self) -> Result<(), Failure> {
        if self.backend().capabilities().batch_invariant {
            return Ok(());
        }
        Err(Failure::Skipped { what: "batch invariance".into() })
    }
}

fn is_lack_of_support(failure: &Failure) -> bool {
    use BackendError::{Format, Unsupported};
    matches!(
        failure,
        Failure::Skipped { .. }
            | Failure::Compile { source: Unsupported { .. } | Format { .. }, .. }
            | Failure::Step { source: StepError::Unsupported { .. }, .. }
    )
}

/// An error and what caused it, on one line.
fn with_sources(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        // Writing to a string can't fail.
        let _ = write!(text, ": {error}");
        source = error.source();
    }
    text
}
