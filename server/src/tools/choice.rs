//! What a request says of tools, and the grammar that makes a model call them.

use grammar::GrammarSpec;
use serde_json::{Map, Value, json};

use super::{CallIds, NamedParser, Parser, ToolFormat};

/// A function that may be called.
#[derive(Clone, Debug, PartialEq)]
pub struct Tool {
    /// Its name.
    pub name: String,
    /// The schema of its arguments; null where it has none.
    pub parameters: Value,
}

/// Whether to call, and what.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum ToolChoice {
    /// The model decides.
    #[default]
    Auto,
    /// No call: what looks like one is content.
    None,
    /// At least one call.
    Required,
    /// One call of this function.
    Named(String),
}

/// What a request says of tools.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tools {
    /// What is offered.
    pub offered: Vec<Tool>,
    /// Whether to call.
    pub choice: ToolChoice,
    /// Whether one answer may have several calls.
    pub parallel: bool,
}

impl Tools {
    /// Whether an answer must be a call.
    pub(crate) fn must_call(&self) -> bool {
        matches!(self.choice, ToolChoice::Required | ToolChoice::Named(_))
    }

    /// The parser of an answer to such a request; none where no call is looked for.
    #[must_use]
    pub fn parser(&self, format: ToolFormat, ids: CallIds) -> Option<Box<dyn Parser>> {
        let names = self.offered.iter().map(|tool| tool.name.clone());
        match &self.choice {
            ToolChoice::None => None,
            ToolChoice::Auto if self.offered.is_empty() => None,
            ToolChoice::Auto => Some(format.parser(names, ids)),
            ToolChoice::Required => Some(ToolFormat::List.parser(names, ids)),
            ToolChoice::Named(name) => Some(Box::new(NamedParser::new(name.clone(), ids))),
        }
    }
}

/// The grammar of an answer that must call: the arguments alone where a function is named, else a
/// list of calls. None where the model decides. A schema that can't be enforced is found when the
/// grammar is compiled.
#[must_use]
pub fn tool_grammar(tools: &Tools) -> Option<GrammarSpec> {
    let schema = match &tools.choice {
        ToolChoice::Auto | ToolChoice::None => return None,
        ToolChoice::Named(name) => {
            as_object(tools.offered.iter().find(|tool| tool.name == *name)?.parameters.clone())
        }
        ToolChoice::Required => {
            let calls = tools.offered.iter().enumerate().map(|(index, tool)| {
                let path = format!("#/items/anyOf/{index}/properties/arguments");
                let mut parameters = as_object(tool.parameters.clone());
                move_references(&mut parameters, &path);
                json!({
                    "type": "object",
                    "properties": {"name": {"const": tool.name}, "arguments": parameters},
                    "required": ["name", "arguments"],
                    "additionalProperties": false,
                })
            });
            let calls: Vec<Value> = calls.collect();
            let mut list = json!({"type": "array", "items": {"anyOf": calls}, "minItems": 1});
            if !tools.parallel {
                list["maxItems"] = json!(1);
            }
            list
        }
    };
    Some(GrammarSpec::JsonSchema(schema))
}

/// Arguments are an object, even where their schema doesn't say so.
fn as_object(parameters: Value) -> Value {
    match parameters {
        Value::Object(fields) if !fields.contains_key("type") => {
            let mut typed = Map::from_iter([("type".to_owned(), json!("object"))]);
            typed.extend(fields);
            Value::Object(typed)
        }
        Value::Null => json!({"type": "object", "properties": {}}),
        parameters => parameters,
    }
}

/// A schema that moves into another one takes along where its references lead.
fn move_references(schema: &mut Value, path: &str) {
    match schema {
        Value::Object(fields) => {
            for (keyword, value) in fields {
                match (keyword.as_str(), value) {
                    ("$ref", Value::String(target)) => {
                        if let Some(rest) = target.strip_prefix('#') {
                            *target = format!("{path}{rest}");
                        }
                    }
                    ("const" | "enum" | "default" | "examples", _) => {}
                    (_, value) => move_references(value, path),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| move_references(item, path)),
        _ => {}
    }
}
