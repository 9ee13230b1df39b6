//! Conversations into prompts.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;

use minijinja::value::{Kwargs, Value as Operand};
use minijinja::{AutoEscape, Environment, ErrorKind, UndefinedBehavior};
use minijinja_contrib::pycompat;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::python_json::PythonJson;
use super::tokenizer::read_optional_object;
use super::{SpecialTokens, TextError};
use crate::model::ModelFiles;

/// How many instructions a template may execute for one conversation. A few hundred a message are
/// usual.
const MAX_INSTRUCTIONS: u64 = 5_000_000;

/// How much text a template may write for one conversation, in bytes: above any context length.
const MAX_OUTPUT: usize = 64 << 20;

/// How deeply a template may nest calls of its macros (about ten units a call).
const MAX_RECURSION: usize = 250;

/// The name of a template that stands alone, and of the usual one among several.
const DEFAULT: &str = "default";

/// The name of the template among several that is meant for conversations with tools.
const TOOL_USE: &str = "tool_use";

/// One message of a conversation.
///
/// In JSON it is an object with `role`, usually `content`, and whatever else a template knows
/// (`tool_calls`, `reasoning_content`, `name`, ...): all fields reach the template as they are.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ChatMessage {
    /// Who speaks: `system`, `user`, `assistant`, `tool`, or what else the template knows.
    pub role: String,
    /// All other fields, `content` among them.
    #[serde(flatten)]
    pub fields: Map<String, Value>,
}

impl ChatMessage {
    /// A message of text.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        let mut fields = Map::new();
        fields.insert("content".to_owned(), Value::String(content.into()));
        Self { role: role.into(), fields }
    }
}

/// How a conversation is rendered.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct ChatOptions {
    /// End with what begins an answer of the assistant. On by default.
    pub add_generation_prompt: bool,
    /// The functions that the model may call, as JSON schemas.
    pub tools: Option<Vec<Value>>,
    /// The documents that the model may quote.
    pub documents: Option<Vec<Value>>,
    /// Which template to use where a model has several. By default the one for tools if there
    /// are tools, else the default one.
    pub template: Option<String>,
    /// Further variables that the template knows, such as `enable_thinking`.
    pub variables: Map<String, Value>,
}

impl Default for ChatOptions {
    fn default() -> Self {
        Self {
            add_generation_prompt: true,
            tools: None,
            documents: None,
            template: None,
            variables: Map::new(),
        }
    }
}

/// The template by which a model's conversations become prompts: Jinja, with what Hugging Face's
/// `apply_chat_template` adds to it.
///
/// That is: blocks take their line break with them, `break` and `continue`, Python's methods of
/// strings, lists and dictionaries, `raise_exception`, `strftime_now`, a `tojson` that writes
/// JSON as Python does, and `{% generation %}` marks, which are read over. Instructions, output
/// and recursion are limited, so that a template can't hang; the memory of what it computes in
/// between is not.
///
/// Cloning is cheap; clones share the compiled templates.
#[derive(Clone)]
pub struct ChatTemplate {
    environment: Arc<Environment<'static>>,
    special_tokens: Arc<BTreeMap<String, String>>,
}

impl ChatTemplate {
    /// Compiles a template. It sees the named special tokens (`bos_token`, ...) as variables.
    ///
    /// # Errors
    ///
    /// [`TextError::TemplateSyntax`].
    pub fn new(source: &str, special_tokens: &SpecialTokens) -> Result<Self, TextError> {
        Self::from_named([(DEFAULT, source)], special_tokens)
    }

    /// Compiles several templates, of which [`ChatOptions`] choose one by name.
    ///
    /// # Errors
    ///
    /// [`TextError::TemplateSyntax`].
    pub fn from_named<'a>(
        templates: impl IntoIterator<Item = (&'a str, &'a str)>,
        special_tokens: &SpecialTokens,
    ) -> Result<Self, TextError> {
        let mut environment = environment();
        for (name, source) in templates {
            let source = without_generation_marks(source).into_owned();
            environment.add_template_owned(name.to_owned(), source).map_err(|error| {
                TextError::TemplateSyntax { line: error.line(), reason: reason_of(&error) }
            })?;
        }
        Ok(Self {
            environment: Arc::new(environment),
            special_tokens: Arc::new(special_tokens.named.clone()),
        })
    }

    /// Reads the template of an opened model; `None` if it has none, as base models don't.
    ///
    /// # Errors
    ///
    /// Those of [`from_directory`](Self::from_directory), [`TextError::Gguf`] and
    /// [`TextError::TemplateSyntax`].
    pub fn from_model(
        files: &ModelFiles,
        special_tokens: &SpecialTokens,
    ) -> Result<Option<Self>, TextError> {
        match files {
            ModelFiles::HuggingFace { directory } => {
                Self::from_directory(directory, special_tokens)
            }
            ModelFiles::Gguf { file } => {
                let source = file.metadata().string("tokenizer.chat_template")?;
                source.map(|source| Self::new(source, special_tokens)).transpose()
            }
        }
    }

    /// Reads the template of a Hugging Face model directory: `chat_template.jinja`, or else
    /// `chat_template` in `tokenizer_config.json`, which is a template or a list of named ones.
    /// `None` if there is neither, as in base models.
    ///
    /// # Errors
    ///
    /// [`TextError`] if a file cannot be read or is malformed.
    pub fn from_directory(
        directory: &Path,
        special_tokens: &SpecialTokens,
    ) -> Result<Option<Self>, TextError> {
        let path = directory.join("chat_template.jinja");
        match std::fs::read_to_string(&path) {
            Ok(source) => return Self::new(&source, special_tokens).map(Some),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(TextError::Read { path, source }),
        }
        let path = directory.join("tokenizer_config.json");
        let config = read_optional_object(&path)?;
        let malformed = || TextError::Malformed {
            path: path.clone(),
            reason: "chat_template is neither a template nor a list of named ones".to_owned(),
        };
        match config.get("chat_template") {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(source)) => Self::new(source, special_tokens).map(Some),
            Some(Value::Array(entries)) => {
                let named = entries
                    .iter()
                    .map(|entry| entry.get("name")?.as_str().zip(entry.get("template")?.as_str()))
                    .collect::<Option<Vec<_>>>()
                    .ok_or_else(malformed)?;
                Self::from_named(named, special_tokens).map(Some)
            }
            Some(_) => Err(malformed()),
        }
    }

    /// Renders a conversation. The text has all special tokens written out, the one that begins
    /// a text included if the model uses one, so encode it without adding any.
    ///
    /// # Errors
    ///
    /// [`TextError::TemplateRefused`] if the template refuses the conversation,
    /// [`TextError::TemplateRender`], [`TextError::TemplateLimit`], and
    /// [`TextError::UnknownTemplate`].
    pub fn render(
        &self,
        messages: &[ChatMessage],
        options: &ChatOptions,
    ) -> Result<String, TextError> {
        let template = self.choose(options)?;
        let mut context: BTreeMap<&str, Operand> = self
            .special_tokens
            .iter()
            .map(|(name, text)| (name.as_str(), Operand::from(text.as_str())))
            .collect();
        context.insert("messages", Operand::from_serialize(messages));
        context.insert("tools", Operand::from_serialize(&options.tools));
        context.insert("documents", Operand::from_serialize(&options.documents));
        context.insert("add_generation_prompt", Operand::from(options.add_generation_prompt));
        for (name, value) in &options.variables {
            context.insert(name, Operand::from_serialize(value));
        }
        let mut output = LimitedOutput(Vec::new());
        template.render_captured_to(context, &mut output).map_err(|error| render_error(&error))?;
        String::from_utf8(output.0)
            .map_err(|error| TextError::TemplateRender { line: None, reason: error.to_string() })
    }

    fn choose(&self, options: &ChatOptions) -> Result<minijinja::Template<'_, '_>, TextError> {
        let has = |name| self.environment.get_template(name).is_ok();
        let name = match &options.template {
            Some(name) => name,
            None if options.tools.is_some() && has(TOOL_USE) => TOOL_USE,
            None => DEFAULT,
        };
        self.environment.get_template(name).map_err(|_| {
            let mut available: Vec<&str> =
                self.environment.templates().map(|(name, _)| name).collect();
            available.sort_unstable();
            TextError::UnknownTemplate { name: name.to_owned(), available: available.join(", ") }
        })
    }
}

impl fmt::Debug for ChatTemplate {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.environment.templates().map(|(name, _)| name).collect();
        formatter.debug_struct("ChatTemplate").field("templates", &names).finish_non_exhaustive()
    }
}

/// The environment that `apply_chat_template` sets up.
fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_trim_blocks(true);
    environment.set_lstrip_blocks(true);
    environment.set_undefined_behavior(UndefinedBehavior::Lenient);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_unknown_method_callback(pycompat::unknown_method_callback);
    environment.set_fuel(Some(MAX_INSTRUCTIONS));
    environment.set_recursion_limit(MAX_RECURSION);
    environment.add_filter("tojson", to_json);
    environment.add_function("raise_exception", raise_exception);
    environment.add_function("strftime_now", strftime_now);
    environment
}

/// `{% generation %}` marks what an assistant wrote, for training. Each mark becomes an `if` that
/// is always taken, so that lines stay lines and spaces are trimmed as the mark says.
fn without_generation_marks(source: &str) -> Cow<'_, str> {
    if !source.contains("generation") {
        return Cow::Borrowed(source);
    }
    let mut plain = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start + 2);
        plain.push_str(before);
        rest = tag;
        let Some(end) = tag.find("%}") else { break };
        let inner = &tag[..end];
        let word = inner.trim_start_matches(['-', '+']).trim_end_matches('-').trim();
        let replacement = match word {
            "generation" => "if true",
            "endgeneration" => "endif",
            _ => continue,
        };
        plain.push_str(&inner.replacen(word, replacement, 1));
        rest = &tag[end..];
    }
    plain.push_str(rest);
    Cow::Owned(plain)
}

/// `value | tojson(indent=None, separators=None, sort_keys=False, ensure_ascii=False)`.
fn to_json(value: &Operand, options: Kwargs) -> Result<Operand, minijinja::Error> {
    let mut json = PythonJson::new(options.get::<Option<usize>>("indent")?);
    if let Some(separators) = options.get::<Option<Vec<String>>>("separators")? {
        let [items, keys]: [String; 2] = separators.try_into().map_err(|_| {
            minijinja::Error::new(ErrorKind::InvalidOperation, "separators are not a pair")
        })?;
        (json.item_separator, json.key_separator) = (items, keys);
    }
    json.ensure_ascii = options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false);
    let sort_keys = options.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    options.assert_all_used()?;
    let text = if sort_keys {
        serde_json::to_value(value).and_then(|mut value| {
            value.sort_all_objects();
            json.write(&value)
        })
    } else {
        json.write(value)
    };
    text.map(Operand::from).map_err(|error| {
        minijinja::Error::new(ErrorKind::BadSerialization, "not JSON").with_source(error)
    })
}

/// What a template says when it refuses a conversation.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Refusal(String);

fn raise_exception(message: String) -> Result<Operand, minijinja::Error> {
    let error = minijinja::Error::new(ErrorKind::InvalidOperation, message.clone());
    Err(error.with_source(Refusal(message)))
}

/// The local time by a `strftime` format. Templates write today's date into system prompts.
fn strftime_now(format: &str) -> Result<String, minijinja::Error> {
    let items = chrono::format::StrftimeItems::new(format).parse().map_err(|error| {
        minijinja::Error::new(ErrorKind::InvalidOperation, "bad strftime format").with_source(error)
    })?;
    Ok(chrono::Local::now().format_with_items(items.iter()).to_string())
}

/// Collects the output up to [`MAX_OUTPUT`].
struct LimitedOutput(Vec<u8>);

impl io::Write for LimitedOutput {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        if text.len() > MAX_OUTPUT - self.0.len() {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.0.extend_from_slice(text);
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn render_error(error: &minijinja::Error) -> TextError {
    match error.kind() {
        ErrorKind::OutOfFuel => TextError::TemplateLimit { limit: "it ran for too long" },
        ErrorKind::WriteFailure => TextError::TemplateLimit { limit: "it wrote too much" },
        _ => match refusal_in(error) {
            Some(message) => TextError::TemplateRefused { message },
            None => TextError::TemplateRender { line: error.line(), reason: reason_of(error) },
        },
    }
}

fn refusal_in(error: &minijinja::Error) -> Option<String> {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(Refusal(message)) = error.downcast_ref() {
            return Some(message.clone());
        }
        cause = error.source();
    }
    None
}

/// The kind and the detail, without the place, which has a field of its own.
fn reason_of(error: &minijinja::Error) -> String {
    match error.detail() {
        Some(detail) => format!("{}: {detail}", error.kind()),
        None => error.kind().to_string(),
    }
}
