//! Which structure an answer is to have.

use serde_json::Value;
use understory::request::TokenConstraint;

use crate::protocol::{NativeSampling, Refused, ResponseFormat, SamplingFields};

/// What an answer is restricted to, and the parameter that says so.
#[derive(Clone, Debug)]
pub(crate) struct Structure {
    pub(crate) param: &'static str,
    pub(crate) kind: StructureKind,
}

#[derive(Clone, Debug)]
pub(crate) enum StructureKind {
    JsonObject,
    JsonSchema(Value),
    Regex(String),
    /// EBNF or Lark.
    Grammar(String),
    Choice(Vec<String>),
}

impl Structure {
    /// OpenAI's `response_format` and the extensions of SGLang and vLLM: at most one of them.
    pub(crate) fn openai(fields: &SamplingFields) -> Result<Option<Self>, Refused> {
        let mut all = Vec::new();
        let mut add = |param, kind: Option<StructureKind>| {
            all.extend(kind.map(|kind| Self { param, kind }));
        };
        add("response_format", response_format(fields.response_format.as_ref())?);
        add("regex", fields.regex.clone().map(StructureKind::Regex));
        add("ebnf", fields.ebnf.clone().map(StructureKind::Grammar));
        if let Some(outputs) = fields.structured_outputs.clone() {
            let param = "structured_outputs";
            let object = outputs.json_object.unwrap_or_default();
            add(param, object.then_some(StructureKind::JsonObject));
            add(param, outputs.json.map(schema).transpose()?.map(StructureKind::JsonSchema));
            add(param, outputs.regex.map(StructureKind::Regex));
            add(param, outputs.choice.map(StructureKind::Choice));
            add(param, outputs.grammar.map(StructureKind::Grammar));
        }
        one(all)
    }

    /// SGLang's.
    pub(crate) fn native(fields: &NativeSampling) -> Result<Option<Self>, Refused> {
        let schema =
            fields.json_schema.clone().map(|text| schema(Value::String(text))).transpose()?;
        let all = [
            ("json_schema", schema.map(StructureKind::JsonSchema)),
            ("regex", fields.regex.clone().map(StructureKind::Regex)),
            ("ebnf", fields.ebnf.clone().map(StructureKind::Grammar)),
        ];
        one(all.into_iter().filter_map(|(param, kind)| Some(Self { param, kind: kind? })).collect())
    }

    /// What restricts the engine's sampling.
    pub(crate) fn constraint(&self) -> Result<Box<dyn TokenConstraint>, Refused> {
        let message = format!("{} is not supported by this server", self.param);
        Err(Refused::invalid(Some(self.param), message).code("unsupported"))
    }
}

fn one(mut all: Vec<Structure>) -> Result<Option<Structure>, Refused> {
    let last = all.pop();
    match all.first() {
        None => Ok(last),
        Some(other) => {
            let message =
                "at most one of response_format, regex, ebnf, json_schema and structured_outputs";
            Err(Refused::invalid(Some(other.param), message))
        }
    }
}

fn response_format(format: Option<&ResponseFormat>) -> Result<Option<StructureKind>, Refused> {
    let Some(format) = format else { return Ok(None) };
    let wrong = |param: &str, message: &str| Err(Refused::invalid(Some(param), message));
    match &*format.kind {
        "text" => Ok(None),
        "json_object" => Ok(Some(StructureKind::JsonObject)),
        "json_schema" => match format.json_schema.as_ref().and_then(|format| format.schema.clone())
        {
            Some(schema) => Ok(Some(StructureKind::JsonSchema(schema))),
            None => wrong("response_format.json_schema", "json_schema needs a schema"),
        },
        _ => wrong("response_format.type", "must be \"text\", \"json_object\" or \"json_schema\""),
    }
}

/// A schema, which may be written as a text.
fn schema(schema: Value) -> Result<Value, Refused> {
    match schema {
        Value::String(text) => serde_json::from_str(&text).map_err(|error| {
            Refused::invalid(Some("json_schema"), format!("the schema is not JSON: {error}"))
        }),
        schema => Ok(schema),
    }
}
