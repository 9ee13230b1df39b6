//! What a grammar is written in.

use llguidance::api::TopLevelGrammar;
use serde_json::{Value, json};

use crate::ebnf::ebnf_to_lark;
use crate::error::GrammarError;
use crate::options::GrammarOptions;
use crate::schema::enforceable;
use crate::text::check_lark;

/// A grammar as a request states it.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum GrammarSpec {
    /// Any JSON object.
    JsonObject,
    /// A JSON document that validates against a schema (drafts 4 to 2020-12).
    JsonSchema(Value),
    /// A text that matches a regular expression as a whole, in the syntax of the crate `regex`;
    /// `^` at the beginning and `$` at the end may stand there.
    Regex(String),
    /// EBNF as llama.cpp and XGrammar write it: `root ::= "yes" | "no"`. The rule `root` is the
    /// beginning.
    Ebnf(String),
    /// llguidance's variant of Lark. The rule `start` is the beginning.
    Lark(String),
    /// One of these texts.
    Choice(Vec<String>),
}

impl GrammarSpec {
    /// EBNF if the text has a rule as EBNF writes rules (`::=`), else Lark.
    #[must_use]
    pub fn ebnf_or_lark(text: impl Into<String>) -> Self {
        let text = text.into();
        if text.contains("::=") { Self::Ebnf(text) } else { Self::Lark(text) }
    }

    /// What tells this grammar from others, for a cache.
    pub(crate) fn key(&self) -> String {
        match self {
            Self::JsonObject => "object".to_owned(),
            Self::JsonSchema(schema) => format!("schema:{schema}"),
            Self::Regex(text) => format!("regex:{text}"),
            Self::Ebnf(text) => format!("ebnf:{text}"),
            Self::Lark(text) => format!("lark:{text}"),
            Self::Choice(texts) => format!("choice:{}", json!(texts)),
        }
    }

    /// Checks what is cheap to check, before anything of the size of the grammar is copied.
    pub(crate) fn check(&self, options: &GrammarOptions) -> Result<(), GrammarError> {
        let size = match self {
            Self::JsonObject => 0,
            Self::JsonSchema(schema) => {
                check_depth(schema, options.max_depth)?;
                json_size(schema)
            }
            Self::Regex(text) | Self::Ebnf(text) | Self::Lark(text) => text.len(),
            Self::Choice(texts) => texts.iter().map(|text| text.len() + 1).sum(),
        };
        match size > options.max_size {
            true => Err(GrammarError::TooLarge { size, limit: options.max_size }),
            false => Ok(()),
        }
    }

    /// The grammar in the form that the compiler reads.
    pub(crate) fn lower(&self, options: &GrammarOptions) -> Result<TopLevelGrammar, GrammarError> {
        match self {
            Self::JsonObject => Ok(of_schema(json!({"type": "object"}), options)),
            Self::JsonSchema(schema) => Ok(of_schema(enforceable(schema)?, options)),
            Self::Regex(text) => Ok(TopLevelGrammar::from_regex(without_anchors(text))),
            Self::Ebnf(text) => of_lark(ebnf_to_lark(text, options.max_depth)?, options),
            Self::Lark(text) => of_lark(text.clone(), options),
            Self::Choice(texts) if texts.is_empty() => {
                Err(GrammarError::invalid("there is nothing to choose from"))
            }
            Self::Choice(texts) => {
                let texts: Vec<String> =
                    texts.iter().map(|text| regex_syntax::escape(text)).collect();
                Ok(TopLevelGrammar::from_regex(&format!("(?:{})", texts.join("|"))))
            }
        }
    }
}

fn of_lark(text: String, options: &GrammarOptions) -> Result<TopLevelGrammar, GrammarError> {
    check_lark(&text, options.max_depth)?;
    Ok(TopLevelGrammar::from_lark(text))
}

/// A schema with the compiler's own settings, whatever the schema says about these.
fn of_schema(mut schema: Value, options: &GrammarOptions) -> TopLevelGrammar {
    let white_space = match options.json_white_space {
        0 => json!({"whitespace_flexible": false}),
        // Without a bound a model may write blanks until its limit.
        most => json!({"whitespace_pattern": format!(r"[\x20\x0A\x0D\x09]{{1,{most}}}")}),
    };
    match &mut schema {
        Value::Object(fields) => {
            fields.insert("x-guidance".to_owned(), white_space);
        }
        // `true` and `false` are schemas too.
        other => {
            let any_of = std::mem::take(other);
            *other = json!({"anyOf": [any_of], "x-guidance": white_space});
        }
    }
    TopLevelGrammar::from_json_schema(schema)
}

/// A match is always one of the whole text.
fn without_anchors(regex: &str) -> &str {
    let regex = regex.strip_prefix('^').unwrap_or(regex);
    match regex.strip_suffix('$') {
        // An even number of backslashes in front escape each other.
        Some(rest) if rest.bytes().rev().take_while(|&byte| byte == b'\\').count() % 2 == 0 => rest,
        _ => regex,
    }
}

fn check_depth(value: &Value, limit: usize) -> Result<(), GrammarError> {
    // Without recursion: values that no parser has limited may nest without a bound.
    let mut level: Vec<&Value> = vec![value];
    for depth in 0.. {
        if level.is_empty() {
            break;
        }
        if depth > limit {
            return Err(GrammarError::TooDeep { depth, limit });
        }
        let below = level.into_iter().flat_map(|value| -> Box<dyn Iterator<Item = &Value>> {
            match value {
                Value::Array(items) => Box::new(items.iter()),
                Value::Object(fields) => Box::new(fields.values()),
                _ => Box::new(std::iter::empty()),
            }
        });
        level = below.collect();
    }
    Ok(())
}

/// Bytes of the value as compact JSON.
fn json_size(value: &Value) -> usize {
    struct Count(usize);
    impl std::io::Write for Count {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0 += bytes.len();
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let mut count = Count(0);
    // Neither counting nor the values of JSON can fail.
    let _ = serde_json::to_writer(&mut count, value);
    count.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn anchors_are_taken_off_unless_they_are_escaped() {
        for (regex, without) in
            [("^a$", "a"), (r"a\$", r"a\$"), (r"a\\$", r"a\\"), ("a", "a"), ("$", ""), ("", "")]
        {
            assert_eq!(without_anchors(regex), without, "{regex}");
        }
    }

    #[test]
    fn the_size_of_a_schema_is_that_of_its_compact_text() {
        let schema = json!({"type": "object", "properties": {"ä": {"enum": [1, 2.5, null]}}});
        assert_eq!(json_size(&schema), schema.to_string().len());
    }
}
