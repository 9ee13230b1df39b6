//! Which structure an answer is to have.

use grammar::GrammarSpec;
use serde_json::Value;
use understory::request::TokenConstraint;

use super::Context;
use crate::protocol::{NativeSampling, Refused, ResponseFormat, SamplingFields};

/// What an answer is restricted to, and the parameter that says so.
#[derive(Clone, Debug)]
pub(crate) struct Structure {
    pub(crate) param: &'static str,
    pub(crate) spec: GrammarSpec,
}

impl Structure {
    /// OpenAI's `response_format` and the extensions of SGLang and vLLM: at most one of them.
    pub(crate) fn openai(fields: &SamplingFields) -> Result<Option<Self>, Refused> {
        let mut all = Vec::new();
        let mut add = |param, spec: Option<GrammarSpec>| {
            all.extend(spec.map(|spec| Self { param, spec }));
        };
        add("response_format", response_format(fields.response_format.as_ref())?);
        add("regex", fields.regex.clone().map(GrammarSpec::Regex));
        add("ebnf", fields.ebnf.clone().map(GrammarSpec::ebnf_or_lark));
        if let Some(outputs) = fields.structured_outputs.clone() {
            let param = "structured_outputs";
            let object = outputs.json_object.unwrap_or_default();
            add(param, object.then_some(GrammarSpec::JsonObject));
            add(param, outputs.json.map(schema).transpose()?.map(GrammarSpec::JsonSchema));
            add(param, outputs.regex.map(GrammarSpec::Regex));
            add(param, outputs.choice.map(GrammarSpec::Choice));
            add(param, outputs.grammar.map(GrammarSpec::ebnf_or_lark));
        }
        one(all)
    }

    /// SGLang's.
    pub(crate) fn native(fields: &NativeSampling) -> Result<Option<Self>, Refused> {
        let schema =
            fields.json_schema.clone().map(|text| schema(Value::String(text))).transpose()?;
        let all = [
            ("json_schema", schema.map(GrammarSpec::JsonSchema)),
            ("regex", fields.regex.clone().map(GrammarSpec::Regex)),
            ("ebnf", fields.ebnf.clone().map(GrammarSpec::ebnf_or_lark)),
        ];
        one(all.into_iter().filter_map(|(param, spec)| Some(Self { param, spec: spec? })).collect())
    }

    /// What restricts the engine's sampling. Tokens without a choice are sampled all the same where their log
    /// probabilities are asked for.
    pub(crate) fn constraint(
        &self,
        context: &Context,
        logprobs: bool,
    ) -> Result<Box<dyn TokenConstraint>, Refused> {
        let wrong = |message: String| Refused::invalid(Some(self.param), message);
        let compiler = context.grammars.as_ref();
        let compiler = compiler.map_err(|error| wrong(error.to_string()).code("unsupported"))?;
        let grammar = compiler.compile(&self.spec);
        let grammar = grammar.map_err(|error| wrong(format!("{}: {error}", self.param)))?;
        Ok(Box::new(grammar.constraint().forcing(!logprobs)))
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

fn response_format(format: Option<&ResponseFormat>) -> Result<Option<GrammarSpec>, Refused> {
    let Some(format) = format else { return Ok(None) };
    let wrong = |param: &str, message: &str| Err(Refused::invalid(Some(param), message));
    match &*format.kind {
        "text" => Ok(None),
        "json_object" => Ok(Some(GrammarSpec::JsonObject)),
        "json_schema" => match format.json_schema.as_ref().and_then(|format| format.schema.clone())
        {
            Some(schema) => Ok(Some(GrammarSpec::JsonSchema(schema))),
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
