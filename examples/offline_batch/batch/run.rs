//! From lines to answers: submits as many requests as the engine takes, and hands answers out in
//! the order of their lines.

use std::collections::BTreeMap;
use std::future::Future;
use std::io::{self, BufRead};
use std::pin::pin;
use std::time::Instant;

use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt};
use understory::prelude::*;

use super::answer::{AnswerLine, Fault, gather};
use super::lines::{Line, read_ahead};
use super::requests::{Failure, Prepared, RequestReader};
use super::summary::{Summary, Tally};

/// What holds for all requests.
#[derive(Debug, Clone, Default)]
pub(crate) struct BatchOptions {
    /// Sampling where a line doesn't say otherwise.
    pub(crate) defaults: SamplingParams,
    /// At most so many tokens an answer, whatever a line asks for.
    pub(crate) max_tokens: Option<u32>,
    /// Take the likeliest token always, whatever a line asks for.
    pub(crate) greedy: bool,
}

/// How far a batch has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Progress {
    /// A request was read.
    Read,
    /// A request has its answer, which may be an error.
    Answered {
        /// Tokens generated for it.
        completion_tokens: u64,
    },
    /// A field has no meaning here and is ignored: told once for each name, and for the first
    /// [`BatchOptions::MOST_NAMED`] names.
    UnknownField(String),
}

/// Why a batch ended early.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BatchError {
    /// The requests can't be read.
    #[error("cannot read the requests")]
    Read(#[source] io::Error),
    /// The answers can't be written.
    #[error("cannot write the answers")]
    Write(#[source] io::Error),
}

/// Answers the requests of `input` and hands the answers to `output`, in input order, each as
/// soon as all before it are there. `input` is read on a thread of its own, so that requests that
/// came are answered while others are waited for.
///
/// When `stop` is ready, no more requests are read, those that run are given up, and the answers
/// that are there are handed out, in input order still; [`Summary::interrupted`] tells so.
///
/// # Errors
///
/// [`BatchError`]. What is wrong with a request is its answer, and no error of the batch. What was
/// read before the input failed is answered.
pub(crate) async fn run(
    engine: &Engine,
    options: &BatchOptions,
    input: impl BufRead + Send + 'static,
    output: &mut dyn FnMut(&AnswerLine) -> io::Result<()>,
    progress: &mut dyn FnMut(Progress),
    stop: impl Future<Output = ()>,
) -> Result<Summary, BatchError> {
    let started = Instant::now();
    let mut stop = pin!(stop);
    let mut lines = read_ahead(input).map_err(BatchError::Read)?;
    let mut reader = RequestReader::new(options);
    let mut running = Running::new();
    let mut answers = Ordered::new(output);
    // A request that the engine has not taken yet.
    let mut next: Option<Prepared> = None;
    let (mut count, mut has_more) = (0, true);
    let mut unreadable = Ok(());
    let interrupted = loop {
        if let Some(prepared) = next.take() {
            match submit(engine, &mut reader, prepared, running.is_empty()) {
                Submitted::Running(answer) => running.push(answer),
                Submitted::Full(prepared) => next = Some(*prepared),
                Submitted::Refused(answer) => {
                    progress(Progress::Answered { completion_tokens: 0 });
                    answers.take(*answer).map_err(BatchError::Write)?;
                }
            }
        }
        let wants_more = has_more && next.is_none();
        if !wants_more && running.is_empty() {
            break false;
        }
        tokio::select! {
            biased;
            () = &mut stop => break true,
            line = lines.recv(), if wants_more => match line {
                Some(Ok(line)) => {
                    progress(Progress::Read);
                    next = Some(prepare(&mut reader, count, &line, progress));
                    count += 1;
                }
                Some(Err(error)) => (has_more, unreadable) = (false, Err(BatchError::Read(error))),
                None => has_more = false,
            },
            Some(answer) = running.next(), if !running.is_empty() => {
                progress(Progress::Answered { completion_tokens: answer.completion_tokens() });
                answers.take(answer).map_err(BatchError::Write)?;
            }
        }
    };
    answers.flush().map_err(BatchError::Write)?;
    unreadable?;
    Ok(answers.tally.finish(started.elapsed(), interrupted))
}

type Running = FuturesUnordered<BoxFuture<'static, AnswerLine>>;

/// What came of handing a request to the engine.
enum Submitted {
    Running(BoxFuture<'static, AnswerLine>),
    /// Too many wait already: to be tried again once one of them has its answer.
    Full(Box<Prepared>),
    Refused(Box<AnswerLine>),
}

fn prepare(
    reader: &mut RequestReader<'_>,
    index: usize,
    line: &Line,
    progress: &mut dyn FnMut(Progress),
) -> Prepared {
    reader.read(index, line, &mut |name| progress(Progress::UnknownField(name)))
}

fn submit(
    engine: &Engine,
    reader: &mut RequestReader<'_>,
    mut prepared: Prepared,
    is_idle: bool,
) -> Submitted {
    let request = match &prepared.request {
        Ok(request) => request,
        Err(failure) => {
            let reason = one_line(failure);
            return Submitted::Refused(Box::new(prepared.refused(&reason, Fault::Request)));
        }
    };
    match reader.submit(engine, request, prepared.format.as_ref()) {
        Ok(generation) => {
            let (index, envelope) = (prepared.index, prepared.envelope.take());
            let engine = engine.clone();
            Submitted::Running(Box::pin(async move {
                let gathered = gather(generation.samples(), generation).await;
                AnswerLine::new(index, envelope, gathered, &engine)
            }))
        }
        Err(Failure::Submit(SubmitError::QueueFull { .. })) if !is_idle => {
            Submitted::Full(Box::new(prepared))
        }
        Err(error) => {
            let fault = match error {
                Failure::Submit(SubmitError::ShuttingDown | SubmitError::Dead(_)) => Fault::Engine,
                _ => Fault::Request,
            };
            Submitted::Refused(Box::new(prepared.refused(&one_line(&error), fault)))
        }
    }
}

/// Answers on their way out.
struct Ordered<'a> {
    /// Those that came before one with a lower number.
    waiting: BTreeMap<usize, AnswerLine>,
    next: usize,
    tally: Tally,
    output: &'a mut dyn FnMut(&AnswerLine) -> io::Result<()>,
}

impl<'a> Ordered<'a> {
    fn new(output: &'a mut dyn FnMut(&AnswerLine) -> io::Result<()>) -> Self {
        Self { waiting: BTreeMap::new(), next: 0, tally: Tally::default(), output }
    }

    fn take(&mut self, answer: AnswerLine) -> io::Result<()> {
        self.tally.count(&answer.outcome);
        self.waiting.insert(answer.index, answer);
        while let Some(answer) = self.waiting.remove(&self.next) {
            self.next += 1;
            (self.output)(&answer)?;
        }
        Ok(())
    }

    /// Hands out those that wait for one that won't come.
    fn flush(&mut self) -> io::Result<()> {
        while let Some((_, answer)) = self.waiting.pop_first() {
            (self.output)(&answer)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_wait_for_those_before_them_until_the_end() {
        let mut seen = Vec::new();
        let mut output = |answer: &AnswerLine| {
            seen.push(answer.index);
            Ok(())
        };
        let mut answers = Ordered::new(&mut output);
        for index in [2, 0, 3, 1, 7, 5] {
            answers.take(AnswerLine::refused(index, None, String::new(), Fault::Request)).unwrap();
        }
        answers.flush().unwrap();
        assert_eq!(seen, [0, 1, 2, 3, 5, 7]);
    }
}
