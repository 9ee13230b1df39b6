//! Conversations into prompts.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;

use minijinja::Environment;
use minijinja::value::Serde;
use minijinja::value::Value as Operand;
use serde_json::{Map, Value, json};

use super::parts::ControlTokens;
use super::template_environment::{
    LimitedOutput, MAX_OUTPUT, environment, reason_of, render_error,
};
use super::template_source::prepare;
use super::tokenizer::read_optional_object;
use super::{ChatMessage, SpecialTokens, TextError, TextPart, Tokenizer};
use crate::files::read_text;
use crate::model::ModelFiles;

/// The name of a template that stands alone, and of the usual one among several.
const DEFAULT: &str = "default";

/// The name of the template among several that is meant for conversations with tools.
const TOOL_USE: &str = "tool_use";

/// Stack to compile a template on. Parser and compiler go into each other; what they are given
/// has been bounded, and needs less by far.
const COMPILER_STACK: usize = 64 << 20;

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
    /// Hand content and arguments of tool calls to the template as they come, as
    /// `apply_chat_template` does, rather than in the shape that the template takes. Off by
    /// default.
    pub as_given: bool,
    /// Recognise control tokens in what users and tools say, as most servers do: a user's
    /// `<|im_end|>` then ends the user's turn. Off by default: it is text.
    pub recognise_control_tokens: bool,
}

backend_api::setters!(ChatOptions {
    add_generation_prompt: bool,
    tools: impl Into<Option<Vec<Value>>>,
    documents: impl Into<Option<Vec<Value>>>,
    template: impl Into<Option<String>>,
    variables: impl Into<Map<String, Value>>,
    as_given: bool,
    recognise_control_tokens: bool,
});

impl Default for ChatOptions {
    fn default() -> Self {
        Self {
            add_generation_prompt: true,
            tools: None,
            documents: None,
            template: None,
            variables: Map::new(),
            as_given: false,
            recognise_control_tokens: false,
        }
    }
}

/// The template by which a model's conversations become prompts: Jinja, with what Hugging Face's
/// `apply_chat_template` adds to it.
///
/// That is: blocks take their line break with them, `break` and `continue`, Python's methods of
/// strings, lists and dictionaries, `raise_exception`, `strftime_now`, a `tojson` that writes
/// JSON as Python does, and `{% generation %}` marks, which are read over. Fields of messages that
/// are `null` are dropped, and reasoning has all the names that templates know.
///
/// Clients of OpenAI's API send content as a list of parts and arguments as a JSON string, which
/// many templates can't take. Unless [`ChatOptions::as_given`], text parts are joined by line
/// breaks where the template takes text only, and arguments are decoded where it takes objects;
/// which it takes is seen from how it renders a small conversation.
///
/// A template is somebody else's program: its size, its nesting, the work and the values that it
/// makes are limited, and whatever it does ends in a [`TextError`].
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
    /// [`TextError::TemplateSyntax`] and [`TextError::TemplateTooLarge`].
    pub fn new(source: &str, special_tokens: &SpecialTokens) -> Result<Self, TextError> {
        Self::from_named([(DEFAULT, source)], special_tokens)
    }

    /// Compiles several templates, of which [`ChatOptions`] choose one by name.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new).
    pub fn from_named<'a>(
        templates: impl IntoIterator<Item = (&'a str, &'a str)>,
        special_tokens: &SpecialTokens,
    ) -> Result<Self, TextError> {
        let sources = templates
            .into_iter()
            .map(|(name, source)| Ok((name.to_owned(), prepare(source)?)))
            .collect::<Result<Vec<_>, TextError>>()?;
        let compiled = std::thread::scope(|scope| {
            let builder = std::thread::Builder::new().stack_size(COMPILER_STACK);
            let thread = builder.spawn_scoped(scope, || compile(sources))?;
            Ok::<_, io::Error>(thread.join())
        });
        let syntax = |reason: &str| TextError::TemplateSyntax { line: None, reason: reason.into() };
        let environment = match compiled {
            Ok(Ok(environment)) => environment?,
            Ok(Err(_)) => return Err(syntax("it makes the compiler panic")),
            Err(error) => return Err(syntax(&format!("no thread to compile it on: {error}"))),
        };
        Ok(Self {
            environment: Arc::new(environment),
            special_tokens: Arc::new(special_tokens.named.clone()),
        })
    }

    /// Reads the template of an opened model; `None` if it has none, as base models don't.
    ///
    /// # Errors
    ///
    /// Those of [`from_directory`](Self::from_directory), [`TextError::Gguf`], and as
    /// [`new`](Self::new).
    pub fn from_model(
        files: &ModelFiles,
        special_tokens: &SpecialTokens,
    ) -> Result<Option<Self>, TextError> {
        /// The template, and with a name behind it one of several.
        const KEY: &str = "tokenizer.chat_template";
        match files {
            ModelFiles::HuggingFace { directory } => {
                Self::from_directory(directory, special_tokens)
            }
            ModelFiles::Gguf { file } => {
                let mut named = Vec::new();
                for (key, _) in file.metadata().iter() {
                    let name = match key.strip_prefix(KEY) {
                        Some("") => DEFAULT,
                        Some(name) if name.starts_with('.') => &name[1..],
                        _ => continue,
                    };
                    named.extend(file.metadata().string(key)?.map(|source| (name, source)));
                }
                Self::from_some(named, special_tokens)
            }
        }
    }

    /// Reads the templates of a Hugging Face model directory: `chat_template.jinja` with
    /// `additional_chat_templates/NAME.jinja`, or else `chat_template` in `tokenizer_config.json`,
    /// which is a template or a list of named ones. `None` if there is none of them, as in base
    /// models.
    ///
    /// # Errors
    ///
    /// [`TextError`] if a file cannot be read or is malformed.
    pub fn from_directory(
        directory: &Path,
        special_tokens: &SpecialTokens,
    ) -> Result<Option<Self>, TextError> {
        let mut named: BTreeMap<String, String> = additional_templates(directory)?;
        let path = directory.join("chat_template.jinja");
        match read_text(&path) {
            Ok(source) => drop(named.insert(DEFAULT.to_owned(), source)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let path = directory.join("tokenizer_config.json");
                let config = read_optional_object(&path)?;
                named.extend(configured_templates(config.get("chat_template"), &path)?);
            }
            Err(source) => return Err(TextError::Read { path, source }),
        }
        let named = named.iter().map(|(name, source)| (name.as_str(), source.as_str())).collect();
        Self::from_some(named, special_tokens)
    }

    fn from_some(
        named: Vec<(&str, &str)>,
        special_tokens: &SpecialTokens,
    ) -> Result<Option<Self>, TextError> {
        if named.is_empty() {
            return Ok(None);
        }
        Self::from_named(named, special_tokens).map(Some)
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
        self.run(self.choose(options)?, &self.adapt(messages, options)?, options)
    }

    /// Renders a conversation into parts, of which those that are control tokens in the words of
    /// users, tools and documents are plain text: for
    /// [`Tokenizer::encode_parts`](super::Tokenizer::encode_parts). With
    /// [`ChatOptions::recognise_control_tokens`] there is one part.
    ///
    /// # Errors
    ///
    /// As [`render`](Self::render).
    pub fn render_parts(
        &self,
        messages: &[ChatMessage],
        options: &ChatOptions,
        tokenizer: &Tokenizer,
    ) -> Result<Vec<TextPart>, TextError> {
        if options.recognise_control_tokens {
            return Ok(vec![TextPart::new(self.render(messages, options)?, false)]);
        }
        let control = ControlTokens::new(tokenizer.control_tokens());
        let mut messages = self.adapt(messages, options)?;
        control.mark_messages(&mut messages);
        let mut options = options.clone();
        options.documents.iter_mut().flatten().for_each(|document| control.mark(document));
        let text = self.run(self.choose(&options)?, &messages, &options)?;
        Ok(control.parts(&text))
    }

    /// The messages in the shape that the template takes.
    fn adapt(
        &self,
        messages: &[ChatMessage],
        options: &ChatOptions,
    ) -> Result<Vec<ChatMessage>, TextError> {
        let name = self.choose(options)?;
        let mut messages = messages.to_vec();
        messages.iter_mut().for_each(ChatMessage::normalize);
        if !options.as_given {
            if messages.iter().any(ChatMessage::has_text_parts) && !self.takes_parts(name, options)
            {
                messages.iter_mut().for_each(ChatMessage::join_parts);
            }
            if messages.iter().any(ChatMessage::has_encoded_arguments)
                && !self.takes_encoded_arguments(name, options)
            {
                messages.iter_mut().for_each(ChatMessage::decode_arguments);
            }
        }
        Ok(messages)
    }

    fn run(
        &self,
        name: &str,
        messages: &[ChatMessage],
        options: &ChatOptions,
    ) -> Result<String, TextError> {
        let template = self.environment.get_template(name).map_err(|error| render_error(&error))?;
        let mut context: BTreeMap<&str, Operand> = self
            .special_tokens
            .iter()
            .map(|(name, text)| (name.as_str(), Operand::from(text.as_str())))
            .collect();
        context.insert("messages", Operand::from(Serde(messages)));
        context.insert("tools", Operand::from(Serde(&options.tools)));
        context.insert("documents", Operand::from(Serde(&options.documents)));
        context.insert("add_generation_prompt", Operand::from(options.add_generation_prompt));
        for (name, value) in &options.variables {
            context.insert(name, Operand::from(Serde(value)));
        }
        let failed =
            |reason: &str| TextError::TemplateRender { line: None, reason: reason.to_owned() };
        // Nothing outlives a panic but the environment, which rendering doesn't change.
        let rendered = catch_unwind(AssertUnwindSafe(|| {
            let mut output = LimitedOutput::new(MAX_OUTPUT);
            template.render_captured_to(context, &mut output).map(|_| output.0)
        }));
        let text = rendered.map_err(|_| failed("it makes the template engine panic"))?;
        let text = text.map_err(|error| render_error(&error))?;
        String::from_utf8(text).map_err(|_| failed("it wrote what is not UTF-8"))
    }

    /// Whether the template goes through a list of parts, rather than printing the list.
    fn takes_parts(&self, name: &str, options: &ChatOptions) -> bool {
        let probe = json!([{ "role": "user", "content": [{ "type": "text", "text": PROBE }] }]);
        self.probe(name, &probe, options).is_some_and(|text| {
            text.contains(PROBE) && !text.contains("'text'") && !text.contains("\"text\"")
        })
    }

    /// Whether the template puts arguments into its text as they are.
    fn takes_encoded_arguments(&self, name: &str, options: &ChatOptions) -> bool {
        let encoded = json!({ PROBE: "x" }).to_string();
        let call = |arguments: Value| {
            let function = json!({ "name": "f", "arguments": arguments });
            let call = json!({ "type": "function", "id": "call12345", "function": function });
            let messages = json!([
                { "role": "user", "content": "x" },
                { "role": "assistant", "content": "", "tool_calls": [call] },
            ]);
            self.probe(name, &messages, options)
        };
        // An object that was printed rather than written as JSON has Python's quotes.
        let takes_objects = call(json!({ PROBE: "x" }))
            .is_some_and(|text| text.contains(PROBE) && !text.contains(&format!("'{PROBE}'")));
        !takes_objects
            && call(Value::from(encoded.as_str())).is_some_and(|text| text.contains(&encoded))
    }

    fn probe(&self, name: &str, messages: &Value, options: &ChatOptions) -> Option<String> {
        let messages: Vec<ChatMessage> = serde_json::from_value(messages.clone()).ok()?;
        self.run(name, &messages, options).ok()
    }

    fn choose<'a>(&self, options: &'a ChatOptions) -> Result<&'a str, TextError> {
        let has = |name| self.environment.get_template(name).is_ok();
        let name = match &options.template {
            Some(name) => name,
            None if options.tools.is_some() && has(TOOL_USE) => TOOL_USE,
            None => DEFAULT,
        };
        if has(name) {
            return Ok(name);
        }
        Err(TextError::UnknownTemplate {
            name: name.to_owned(),
            available: self.names().join(", "),
        })
    }

    fn names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.environment.templates().map(|(name, _)| name).collect();
        names.sort_unstable();
        names
    }
}

/// What is looked for in the text of a small conversation.
const PROBE: &str = "understoryprobe";

impl fmt::Debug for ChatTemplate {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("ChatTemplate")
            .field("templates", &self.names())
            .finish_non_exhaustive()
    }
}

fn compile(sources: Vec<(String, String)>) -> Result<Environment<'static>, TextError> {
    let syntax = |error: minijinja::Error| TextError::TemplateSyntax {
        line: error.line(),
        reason: reason_of(&error),
    };
    let mut environment = environment().map_err(syntax)?;
    for (name, source) in sources {
        environment.add_template_owned(name, source).map_err(syntax)?;
    }
    Ok(environment)
}

/// The templates of `additional_chat_templates`, by name.
fn additional_templates(directory: &Path) -> Result<BTreeMap<String, String>, TextError> {
    let path = directory.join("additional_chat_templates");
    let read = |path: &Path| {
        let failed = |source| TextError::Read { path: path.to_owned(), source };
        read_text(path).map_err(failed)
    };
    let entries = match fs::read_dir(&path) {
        Ok(entries) => entries,
        Err(error)
            if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) =>
        {
            return Ok(BTreeMap::new());
        }
        Err(source) => return Err(TextError::Read { path, source }),
    };
    let mut named = BTreeMap::new();
    for entry in entries {
        let file = entry.map_err(|source| TextError::Read { path: path.clone(), source })?.path();
        let is_template = file.extension().is_some_and(|extension| extension == "jinja");
        if let Some(name) = file.file_stem().and_then(|name| name.to_str()).filter(|_| is_template)
        {
            named.insert(name.to_owned(), read(&file)?);
        }
    }
    Ok(named)
}

/// The templates of a `tokenizer_config.json`, by name.
fn configured_templates(
    configured: Option<&Value>,
    path: &Path,
) -> Result<Vec<(String, String)>, TextError> {
    let malformed = || TextError::Malformed {
        path: path.to_owned(),
        reason: "chat_template is neither a template nor a list of named ones".to_owned(),
    };
    let named = |entry: &Value| {
        let text = |field| Some(entry.get(field)?.as_str()?.to_owned());
        text("name").zip(text("template"))
    };
    match configured {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::String(source)) => Ok(vec![(DEFAULT.to_owned(), source.clone())]),
        Some(Value::Array(entries)) => {
            entries.iter().map(named).collect::<Option<Vec<_>>>().ok_or_else(malformed)
        }
        Some(_) => Err(malformed()),
    }
}
