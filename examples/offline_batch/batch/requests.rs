//! Makes requests of lines, whichever way they are written.

use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value};
use understory::Namespace;
use understory::prelude::*;

use super::answer::{AnswerLine, Fault};
use super::format::{FormatError, Formats, is_open};
use super::lines::Line;
use super::openai::{Envelope, EnvelopeError};
use super::run::BatchOptions;
use crate::json_request::{JsonRequest, JsonRequestError};

/// Makes requests of lines.
pub(super) struct RequestReader<'a> {
    options: &'a BatchOptions,
    /// Numbers of the namespaces seen, in the order of their appearance.
    namespaces: HashMap<String, Namespace>,
    /// Fields that were seen and have no meaning here.
    unknown: HashSet<String>,
    formats: Formats,
}

/// A line that has been read, and the request that it makes.
pub(super) struct Prepared {
    pub(super) index: usize,
    /// The line's number in its file.
    pub(super) line: usize,
    /// How the answer is to be written.
    pub(super) envelope: Option<Envelope>,
    pub(super) request: Result<JsonRequest, Failure>,
    /// The form of its answer, unless any will do.
    pub(super) format: Option<Value>,
}

/// Why a line is not answered.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error("it is not UTF-8 text")]
    Encoding,
    #[error(transparent)]
    Envelope(#[from] EnvelopeError),
    #[error(transparent)]
    Request(#[from] JsonRequestError),
    #[error(transparent)]
    Format(#[from] FormatError),
    #[error(transparent)]
    Submit(#[from] SubmitError),
}

impl<'a> RequestReader<'a> {
    pub(super) fn new(options: &'a BatchOptions) -> Self {
        Self {
            options,
            namespaces: HashMap::new(),
            unknown: HashSet::new(),
            formats: Formats::default(),
        }
    }

    /// Reads a line. `report` is told each field without a meaning, once for each name.
    pub(super) fn read(
        &mut self,
        index: usize,
        line: &Line,
        report: &mut dyn FnMut(String),
    ) -> Prepared {
        let fields = str::from_utf8(&line.bytes)
            .map_err(|_| Failure::Encoding)
            .and_then(|text| Ok(JsonRequest::fields(text)?));
        let mut format = None;
        let (envelope, request) = match fields {
            Ok(fields) => self.request(fields, &mut format, report),
            Err(failure) => (None, Err(failure)),
        };
        Prepared { index, line: line.number, envelope, request, format }
    }

    fn request(
        &mut self,
        fields: Map<String, Value>,
        format: &mut Option<Value>,
        report: &mut dyn FnMut(String),
    ) -> (Option<Envelope>, Result<JsonRequest, Failure>) {
        let (envelope, mut fields, mut unknown) = if Envelope::is_one(&fields) {
            let opened = Envelope::open(fields);
            match opened.body {
                Ok(body) => (Some(opened.envelope), body, opened.unknown),
                Err(error) => return (Some(opened.envelope), Err(error.into())),
            }
        } else {
            (None, fields, Vec::new())
        };
        *format = fields.remove("response_format").filter(|format| !is_open(format));
        let request = JsonRequest::from_fields(fields, &self.options.defaults);
        let request = request.map(|mut request| {
            let within = if envelope.is_some() { "body." } else { "" };
            let names = request.unknown.drain(..).map(|name| format!("{within}{name}"));
            unknown.extend(names);
            self.options.limit(&mut request.sampling);
            request
        });
        for name in unknown {
            if self.unknown.len() < BatchOptions::MOST_NAMED && self.unknown.insert(name.clone()) {
                report(name);
            }
        }
        (envelope, request.map_err(Failure::from))
    }

    /// Hands a request to the engine.
    pub(super) fn submit(
        &mut self,
        engine: &Engine,
        request: &JsonRequest,
        format: Option<&Value>,
    ) -> Result<Generation, Failure> {
        let namespace = self.namespace(request.namespace.clone());
        let mut request = request.clone().into_request(namespace);
        if let Some(format) = format {
            request = request.constraint(self.formats.constraint(engine, format)?);
        }
        Ok(engine.submit(request)?)
    }

    fn namespace(&mut self, name: Option<String>) -> Namespace {
        let Some(name) = name else { return Namespace::default() };
        // The default namespace is 0.
        let new = Namespace::tenant(self.namespaces.len() as u64 + 1);
        *self.namespaces.entry(name).or_insert(new)
    }
}

impl Prepared {
    /// The answer to a line whose request was not taken.
    pub(super) fn refused(self, error: &str, fault: Fault) -> AnswerLine {
        let error = format!("line {}: {error}", self.line);
        AnswerLine::refused(self.index, self.envelope, error, fault)
    }
}

impl BatchOptions {
    /// Most names of unknown fields that are reported.
    pub(crate) const MOST_NAMED: usize = 20;

    /// Most tokens of an answer where neither its request nor the command line says.
    pub(crate) const DEFAULT_MAX_TOKENS: u32 = 1024;

    fn limit(&self, sampling: &mut SamplingParams) {
        match self.max_tokens {
            Some(most) => {
                sampling.max_tokens = Some(sampling.max_tokens.map_or(most, |max| max.min(most)));
                sampling.min_tokens = sampling.min_tokens.min(most);
            }
            None => {
                let most = Self::DEFAULT_MAX_TOKENS.max(sampling.min_tokens);
                sampling.max_tokens.get_or_insert(most);
            }
        }
        if self.greedy {
            sampling.temperature = 0.0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_has_one_number_and_no_other_has_it() {
        let options = BatchOptions::default();
        let mut reader = RequestReader::new(&options);
        let mut number = |name: Option<&str>| reader.namespace(name.map(str::to_owned));
        let (none, a, b) = (number(None), number(Some("a")), number(Some("b")));
        assert!(none != a && none != b && a != b);
        assert_eq!(number(Some("a")), a);
    }

    #[test]
    fn a_request_without_a_limit_gets_the_stated_one() {
        let limited = |options: &BatchOptions, mut sampling: SamplingParams| {
            options.limit(&mut sampling);
            (sampling.min_tokens, sampling.max_tokens)
        };
        let open = BatchOptions::default();
        let most = BatchOptions::DEFAULT_MAX_TOKENS;
        let params = SamplingParams::default;
        assert_eq!(limited(&open, params()), (0, Some(most)));
        assert_eq!(limited(&open, params().max_tokens(5000)), (0, Some(5000)));
        assert_eq!(limited(&open, params().min_tokens(most + 1)), (most + 1, Some(most + 1)));
        let strict = BatchOptions { max_tokens: Some(6), ..BatchOptions::default() };
        assert_eq!(limited(&strict, params().min_tokens(9)), (6, Some(6)));
        assert_eq!(limited(&strict, params().max_tokens(4)), (0, Some(4)));
    }
}
