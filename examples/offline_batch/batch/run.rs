//! From lines to answers: submits as many requests as the engine takes, and hands answers out in
//! the order of their lines.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, BufRead};
use std::time::Instant;

use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt};
use understory::Namespace;
use understory::prelude::*;

use super::answer::{AnswerLine, Outcome, gather};
use super::summary::{Summary, Tally};
use crate::json_request::{JsonRequest, JsonRequestError};

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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Progress {
    /// A request was read.
    Read,
    /// A request has its answer, which may be an error.
    Answered {
        /// Tokens generated for it.
        completion_tokens: u64,
    },
}

/// Why a batch ended early.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BatchError {
    /// The requests can't be read.
    #[error("cannot read the requests: {0}")]
    Read(#[source] io::Error),
    /// The answers can't be written.
    #[error("cannot write the answers: {0}")]
    Write(#[source] io::Error),
}

/// Answers the requests of `input` and hands the answers to `output`, in input order, each as
/// soon as all before it are there.
///
/// # Errors
///
/// [`BatchError`]. What is wrong with a request is its answer, and no error of the batch.
pub(crate) fn run(
    engine: &Engine,
    options: &BatchOptions,
    input: impl BufRead,
    output: &mut dyn FnMut(&AnswerLine) -> io::Result<()>,
    progress: &mut dyn FnMut(Progress),
) -> Result<Summary, BatchError> {
    let started = Instant::now();
    let mut lines = Lines { input, number: 0 };
    let mut reader = RequestReader { options, namespaces: HashMap::new() };
    let mut running = Running::new();
    let mut answers =
        Ordered { waiting: BTreeMap::new(), next: 0, tally: Tally::default(), output };
    // A request that the engine was too full for: its number and its line.
    let mut put_off: Option<(usize, Line)> = None;
    let mut count = 0;
    let mut has_more = true;
    while has_more || put_off.is_some() || !running.is_empty() {
        let line = match put_off.take() {
            Some(line) => Some(line),
            None if has_more => lines.next().map_err(BatchError::Read)?.map(|line| {
                progress(Progress::Read);
                count += 1;
                (count - 1, line)
            }),
            None => None,
        };
        let is_full = match line {
            None => {
                has_more = false;
                true
            }
            Some((index, line)) => match reader.submit(engine, &line) {
                Ok(generation) => {
                    running.push(Box::pin(answer(index, generation)));
                    false
                }
                Err(Failure::Submit(SubmitError::QueueFull { .. })) if !running.is_empty() => {
                    put_off = Some((index, line));
                    true
                }
                Err(failure) => {
                    let error = format!("line {}: {failure}", line.number);
                    let answer = AnswerLine { index, outcome: Outcome::Error { error } };
                    progress(Progress::Answered { completion_tokens: 0 });
                    answers.take(answer).map_err(BatchError::Write)?;
                    false
                }
            },
        };
        if is_full && let Some(answer) = futures_executor::block_on(running.next()) {
            progress(Progress::Answered { completion_tokens: answer.completion_tokens() });
            answers.take(answer).map_err(BatchError::Write)?;
        }
    }
    Ok(answers.tally.finish(started.elapsed()))
}

type Running = FuturesUnordered<BoxFuture<'static, AnswerLine>>;

async fn answer(index: usize, generation: Generation) -> AnswerLine {
    let outcome = match gather(generation.samples(), generation).await {
        Ok(answer) => Outcome::Answer(answer),
        Err(error) => Outcome::Error { error: error.to_string() },
    };
    AnswerLine { index, outcome }
}

impl AnswerLine {
    fn completion_tokens(&self) -> u64 {
        match &self.outcome {
            Outcome::Answer(answer) => answer.usage.completion_tokens,
            Outcome::Error { .. } => 0,
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

impl Ordered<'_> {
    fn take(&mut self, answer: AnswerLine) -> io::Result<()> {
        self.tally.count(&answer.outcome);
        self.waiting.insert(answer.index, answer);
        while let Some(answer) = self.waiting.remove(&self.next) {
            self.next += 1;
            (self.output)(&answer)?;
        }
        Ok(())
    }
}

/// The lines of a batch file that aren't blank.
struct Lines<R> {
    input: R,
    number: usize,
}

struct Line {
    /// Counted from 1, blank lines included.
    number: usize,
    bytes: Vec<u8>,
}

impl<R: BufRead> Lines<R> {
    fn next(&mut self) -> io::Result<Option<Line>> {
        loop {
            let mut bytes = Vec::new();
            if self.input.read_until(b'\n', &mut bytes)? == 0 {
                return Ok(None);
            }
            self.number += 1;
            if !bytes.trim_ascii().is_empty() {
                return Ok(Some(Line { number: self.number, bytes }));
            }
        }
    }
}

/// Makes requests of lines.
struct RequestReader<'a> {
    options: &'a BatchOptions,
    /// Numbers of the namespaces seen, in the order of their appearance.
    namespaces: HashMap<String, Namespace>,
}

/// Why a line is not answered.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("it is not UTF-8 text")]
    Encoding,
    #[error(transparent)]
    Request(#[from] JsonRequestError),
    #[error(transparent)]
    Submit(#[from] SubmitError),
}

impl RequestReader<'_> {
    fn submit(&mut self, engine: &Engine, line: &Line) -> Result<Generation, Failure> {
        let text = str::from_utf8(&line.bytes).map_err(|_| Failure::Encoding)?;
        let JsonRequest { prompt, mut sampling, namespace } =
            JsonRequest::parse(text, &self.options.defaults)?;
        if let Some(most) = self.options.max_tokens {
            sampling.max_tokens = Some(sampling.max_tokens.map_or(most, |max| max.min(most)));
            sampling.min_tokens = sampling.min_tokens.min(most);
        }
        if self.options.greedy {
            sampling.temperature = 0.0;
        }
        let namespace = self.namespace(namespace);
        let request = Request::new(prompt).sampling(sampling).namespace(namespace);
        Ok(engine.submit(request)?)
    }

    fn namespace(&mut self, name: Option<String>) -> Namespace {
        let Some(name) = name else { return Namespace::default() };
        // The default namespace is 0.
        let new = Namespace::tenant(self.namespaces.len() as u64 + 1);
        *self.namespaces.entry(name).or_insert(new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_numbered_with_blank_ones_and_come_without_them() {
        let mut lines = Lines { input: &b"\n{}\r\n  \n\xff"[..], number: 0 };
        let mut next = || lines.next().unwrap().map(|line| (line.number, line.bytes));
        assert_eq!(next(), Some((2, b"{}\r\n".to_vec())));
        assert_eq!(next(), Some((4, b"\xff".to_vec())));
        assert_eq!(next(), None);
    }

    #[test]
    fn a_namespace_has_one_number_and_no_other_has_it() {
        let options = BatchOptions::default();
        let mut reader = RequestReader { options: &options, namespaces: HashMap::new() };
        let mut number = |name: Option<&str>| reader.namespace(name.map(str::to_owned));
        let (none, a, b) = (number(None), number(Some("a")), number(Some("b")));
        assert!(none != a && none != b && a != b);
        assert_eq!(number(Some("a")), a);
    }

    #[test]
    fn answers_wait_for_those_before_them() {
        let mut seen = Vec::new();
        let mut output = |answer: &AnswerLine| {
            seen.push(answer.index);
            Ok(())
        };
        let mut answers = Ordered {
            waiting: BTreeMap::new(),
            next: 0,
            tally: Tally::default(),
            output: &mut output,
        };
        for index in [2, 0, 3, 1] {
            let outcome = Outcome::Error { error: String::new() };
            answers.take(AnswerLine { index, outcome }).unwrap();
        }
        assert_eq!(seen, [0, 1, 2, 3]);
    }
}
