//! The form of an answer: `response_format`, as OpenAI writes it, with the feature `grammar`.
//!
//! | value | the answer is |
//! | --- | --- |
//! | `{"type": "text"}` | any text |
//! | `{"type": "json_object"}` | a JSON object |
//! | `{"type": "json_schema", "json_schema": {"schema": ..}}` | JSON that validates against the schema |
//! | `{"type": "regex", "pattern": ..}` | a text that the regular expression matches as a whole |
//! | `{"type": "grammar", "grammar": ..}` | a text of the EBNF or Lark grammar |
//! | `{"type": "choice", "choices": [..]}` | one of the texts |

use serde_json::Value;
use understory::engine::Engine;
use understory::request::TokenConstraint;

use crate::json_request::Shown;

/// Why an answer can't have a form.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum FormatError {
    #[error("response_format must be {expected}, not {found}")]
    Value { expected: &'static str, found: Shown },
    #[cfg(feature = "grammar")]
    #[error("response_format: {0}")]
    Grammar(#[from] understory::grammar::GrammarError),
    #[cfg(feature = "grammar")]
    #[error("response_format needs a tokenizer")]
    Tokenizer,
    #[cfg(not(feature = "grammar"))]
    #[error("response_format needs a build with the feature `grammar`")]
    Feature,
}

/// Whether a value leaves the form of an answer open.
pub(super) fn is_open(format: &Value) -> bool {
    format.is_null() || format["type"] == "text"
}

/// Makes constraints of forms. One compiler serves all requests.
#[derive(Debug, Default)]
pub(super) struct Formats {
    #[cfg(feature = "grammar")]
    compiler: Option<understory::grammar::GrammarCompiler>,
}

#[cfg(feature = "grammar")]
impl Formats {
    /// What holds an answer to its form.
    pub(super) fn constraint(
        &mut self,
        engine: &Engine,
        format: &Value,
    ) -> Result<Box<dyn TokenConstraint>, FormatError> {
        use understory::grammar::{GrammarCompiler, GrammarOptions};

        let spec = spec(format)?;
        let compiler = match self.compiler.take() {
            Some(compiler) => compiler,
            None => {
                let tokenizer = engine.tokenizer().ok_or(FormatError::Tokenizer)?;
                GrammarCompiler::new(tokenizer, GrammarOptions::default())?
            }
        };
        let compiler = self.compiler.insert(compiler);
        Ok(Box::new(compiler.compile(&spec)?.constraint()))
    }
}

#[cfg(not(feature = "grammar"))]
impl Formats {
    /// This build knows no grammars.
    pub(super) fn constraint(
        &mut self,
        _: &Engine,
        format: &Value,
    ) -> Result<Box<dyn TokenConstraint>, FormatError> {
        match format["type"].as_str() {
            Some(_) => Err(FormatError::Feature),
            None => Err(wrong("an object with a type", format)),
        }
    }
}

#[cfg(feature = "grammar")]
fn spec(format: &Value) -> Result<understory::grammar::GrammarSpec, FormatError> {
    use understory::grammar::GrammarSpec;

    let text = |field: &str, expected| {
        let text = format[field].as_str().map(str::to_owned);
        text.ok_or_else(|| wrong(expected, format))
    };
    match format["type"].as_str() {
        Some("json_object") => Ok(GrammarSpec::JsonObject),
        Some("json_schema") => match format["json_schema"].get("schema") {
            Some(schema) => Ok(GrammarSpec::JsonSchema(schema.clone())),
            None => Err(wrong("an object with a schema in json_schema", format)),
        },
        Some("regex") => Ok(GrammarSpec::Regex(text("pattern", "an object with a pattern")?)),
        Some("grammar") => {
            Ok(GrammarSpec::ebnf_or_lark(text("grammar", "an object with a grammar")?))
        }
        Some("choice") => {
            let choices = format["choices"].as_array().map(|choices| {
                choices.iter().map(|choice| choice.as_str().map(str::to_owned)).collect()
            });
            let choices: Option<Vec<String>> = choices.flatten();
            let choices =
                choices.ok_or_else(|| wrong("an object with texts as choices", format))?;
            Ok(GrammarSpec::Choice(choices))
        }
        _ => Err(wrong("an object with a known type", format)),
    }
}

fn wrong(expected: &'static str, found: &Value) -> FormatError {
    FormatError::Value { expected, found: Shown::of(found) }
}
