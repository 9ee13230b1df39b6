//! Why a request is not answered, in OpenAI's form.

use std::fmt;

use serde::Serialize;

/// A request that is not answered: a status and the body of an error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refused {
    pub(crate) status: u16,
    pub(crate) kind: &'static str,
    pub(crate) message: String,
    /// The parameter that is wrong.
    pub(crate) param: Option<String>,
    pub(crate) code: Option<&'static str>,
}

#[derive(Serialize)]
struct Body<'a> {
    error: Inner<'a>,
}

#[derive(Serialize)]
struct Inner<'a> {
    message: &'a str,
    #[serde(rename = "type")]
    kind: &'static str,
    param: Option<&'a str>,
    code: Code,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Code {
    Name(Option<&'static str>),
    Status(u16),
}

impl Refused {
    /// The caller's mistake.
    pub(crate) fn invalid(param: Option<&str>, message: impl Into<String>) -> Self {
        let kind = "invalid_request_error";
        Self {
            status: 400,
            kind,
            message: message.into(),
            param: param.map(str::to_owned),
            code: None,
        }
    }

    pub(crate) fn code(self, code: &'static str) -> Self {
        Self { code: Some(code), ..self }
    }

    pub(crate) fn status(self, status: u16) -> Self {
        Self { status, ..self }
    }

    /// The server's trouble.
    pub(crate) fn server(status: u16, message: impl Into<String>) -> Self {
        Self { status, kind: "server_error", message: message.into(), param: None, code: None }
    }

    pub(crate) fn queue_full(message: impl Into<String>) -> Self {
        let code = Some("rate_limit_exceeded");
        Self { kind: "rate_limit_error", code, ..Self::server(429, message) }
    }

    /// The body of an answer with this status.
    pub(crate) fn body(&self) -> String {
        self.shown(Code::Name(self.code))
    }

    /// The same in the middle of a stream, whose status has been sent: it stands in the body.
    pub(crate) fn event(&self) -> String {
        self.shown(Code::Status(self.status))
    }

    fn shown(&self, code: Code) -> String {
        let (message, param) = (&*self.message, self.param.as_deref());
        let body = Body { error: Inner { message, kind: self.kind, param, code } };
        // Strings and numbers always make JSON.
        serde_json::to_string(&body).unwrap_or_default()
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.message)
    }
}

impl std::error::Error for Refused {}
