//! Renders chat templates for `scripts/template_parity.py`.
//!
//! A line of standard input is a JSON object: a `template`, the `special` tokens that it names,
//! and `cases`, each with `messages` and the fields of `ChatOptions`. A line of standard output is
//! `{"text": ..}` or `{"error": ..}` for each case.

use std::error::Error;
use std::io::{BufRead, Write, stdin, stdout};

use models::text::{ChatMessage, ChatOptions, ChatTemplate, SpecialTokens};
use serde_json::{Map, Value, json};

/// One template with its conversations.
#[derive(serde::Deserialize)]
struct Work {
    template: String,
    special: Map<String, Value>,
    cases: Vec<Case>,
}

/// One conversation.
#[derive(serde::Deserialize)]
struct Case {
    messages: Vec<ChatMessage>,
    add_generation_prompt: bool,
    tools: Option<Vec<Value>>,
    documents: Option<Vec<Value>>,
    variables: Map<String, Value>,
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut output = stdout().lock();
    for line in stdin().lock().lines() {
        let Work { template, special, cases } = serde_json::from_str(&line?)?;
        let mut tokens = SpecialTokens::default();
        for (name, text) in &special {
            tokens.named.extend(text.as_str().map(|text| (name.clone(), text.to_owned())));
        }
        let template = ChatTemplate::new(&template, &tokens);
        for case in cases {
            let mut options = ChatOptions::default();
            options.as_given = true;
            options.add_generation_prompt = case.add_generation_prompt;
            options.tools = case.tools;
            options.documents = case.documents;
            options.variables = case.variables;
            let rendered = match &template {
                Ok(template) => {
                    template.render(&case.messages, &options).map_err(|e| e.to_string())
                }
                Err(error) => Err(error.to_string()),
            };
            let rendered = match rendered {
                Ok(text) => json!({ "text": text }),
                Err(error) => json!({ "error": error }),
            };
            writeln!(output, "{rendered}")?;
        }
    }
    Ok(())
}
