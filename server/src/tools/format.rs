//! How families of models write calls.

use std::fmt;

use super::delta::{CallIds, Parser};
use super::harmony::HarmonyParser;
use super::parser::ToolParser;
use super::pythonic::PythonicParser;

/// How a family of models writes calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ToolFormat {
    /// `<tool_call>{"name": .., "arguments": {..}}</tool_call>`, once for each call: Hermes, Qwen
    /// 2.5, Qwen 3.
    Hermes,
    /// `{"name": .., "parameters": {..}}` as the whole answer, several with `;` between them, or
    /// behind `<|python_tag|>`: Llama 3.
    Llama3,
    /// `[TOOL_CALLS]` and a list of objects, or a name and its arguments: Mistral.
    Mistral,
    /// `[f(a=1), g(b="x")]` as the whole answer, perhaps between `<|python_start|>` and `<|python_end|>`: Llama 3.2
    /// and Llama 4.
    Pythonic,
    /// Messages in channels, `<|channel|>commentary to=functions.f<|message|>{..}<|call|>`: gpt-oss. Thoughts stand in a
    /// channel of their own, so this format tells thoughts as well.
    Harmony,
    /// A list of objects as the whole answer: what the grammar of
    /// [`tool_grammar`](super::tool_grammar) makes any model write.
    List,
}

impl ToolFormat {
    /// The names that a command line takes: SGLang's and vLLM's.
    pub const NAMES: [(&str, Self); 13] = [
        ("hermes", Self::Hermes),
        ("qwen", Self::Hermes),
        ("qwen25", Self::Hermes),
        ("qwen3", Self::Hermes),
        ("llama3", Self::Llama3),
        ("llama3_json", Self::Llama3),
        ("llama4_json", Self::Llama3),
        ("mistral", Self::Mistral),
        ("pythonic", Self::Pythonic),
        ("llama4_pythonic", Self::Pythonic),
        ("gpt-oss", Self::Harmony),
        ("openai", Self::Harmony),
        ("list", Self::List),
    ];

    /// The format that a command line names.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::NAMES.iter().find(|(known, _)| *known == name).map(|(_, format)| *format)
    }

    /// The format that a chat template teaches its model, by the marks in its text.
    #[must_use]
    pub fn of_template(template: &str) -> Option<Self> {
        if template.contains("<|start|>") && template.contains("<|message|>") {
            Some(Self::Harmony)
        } else if template.contains("<tool_call>") {
            Some(Self::Hermes)
        } else if template.contains("[func_name1(") {
            Some(Self::Pythonic)
        } else if template.contains("[TOOL_CALLS]") {
            Some(Self::Mistral)
        } else if template.contains("<|python_tag|>") || template.contains("\"parameters\":") {
            Some(Self::Llama3)
        } else {
            None
        }
    }

    /// Whether the marks are special tokens, which a detokenizer leaves out unless it is told to
    /// show them.
    #[must_use]
    pub fn needs_special_tokens(self) -> bool {
        matches!(self, Self::Llama3 | Self::Mistral | Self::Harmony)
    }

    /// A parser of one answer. `names` are the functions that are offered.
    ///
    /// A call is told as soon as its function is known; its arguments follow as they come. What looks like a call and
    /// is none is content.
    pub fn parser(self, names: impl IntoIterator<Item = String>, ids: CallIds) -> Box<dyn Parser> {
        match self {
            Self::Pythonic => Box::new(PythonicParser::new(names, ids)),
            Self::Harmony => Box::new(HarmonyParser::new(names, ids, true)),
            _ => Box::new(ToolParser::new(self.syntax(), names, ids)),
        }
    }

    fn syntax(self) -> Syntax {
        let bare = Syntax { begin: None, end: None, ..Syntax::default() };
        match self {
            Self::Hermes => {
                Syntax { begin: Some("<tool_call>"), end: Some("</tool_call>"), ..bare }
            }
            Self::Llama3 => {
                let begin = Some("<|python_tag|>");
                Syntax { begin, is_bare: true, separators: &[';', ','], ..bare }
            }
            Self::Mistral => {
                Syntax { begin: Some("[TOOL_CALLS]"), has_lists: true, has_names: true, ..bare }
            }
            Self::List => Syntax { is_bare: true, has_lists: true, ..bare },
            Self::Pythonic | Self::Harmony => bare,
        }
    }
}

impl fmt::Display for ToolFormat {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = Self::NAMES.iter().find(|(_, format)| format == self).map(|(name, _)| *name);
        formatter.write_str(name.unwrap_or_default())
    }
}

/// What tells the formats apart.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Syntax {
    /// What stands in front of calls.
    pub(super) begin: Option<&'static str>,
    /// What stands behind a call.
    pub(super) end: Option<&'static str>,
    /// Calls may be the beginning of the answer, with nothing in front.
    pub(super) is_bare: bool,
    /// Calls may stand in a list.
    pub(super) has_lists: bool,
    /// A call may be a name with its arguments behind it: `f[ARGS]{..}`, `f{..}`.
    pub(super) has_names: bool,
    /// What may stand between calls that aren't in a list.
    pub(super) separators: &'static [char],
}
