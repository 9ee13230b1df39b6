//! The environment that chat templates run in: Jinja as `apply_chat_template` sets it up, and the
//! limits of a program that came with a model.

use std::io;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Value, ValueIter, ValueKind};
use minijinja::{
    AutoEscape, Environment, Error, ErrorKind, State, UndefinedBehavior, escape_formatter, filters,
    tests,
};
use minijinja_contrib::pycompat;

use super::TextError;
use super::python_json::PythonJson;
use super::template_source::{BOUNDED, STORED};

/// What a template may do for one conversation: an instruction costs one, and so do 64 bytes of
/// what it makes. A few hundred a message are usual. This also bounds its memory, to 320 MB.
const MAX_FUEL: u64 = 5_000_000;

/// How much text a template may write for one conversation, in bytes: above any context length.
pub(super) const MAX_OUTPUT: usize = 64 << 20;

/// How deeply a template may nest calls of its macros (about ten units a call).
const MAX_RECURSION: usize = 250;

/// How many values a value may hold, those within others and repeated ones included.
const MAX_VALUES: usize = 1 << 17;

/// How much text they may hold in all, in bytes.
const MAX_TEXT: usize = 32 << 20;

/// How deeply they may nest. Printing, comparing and dropping a value recurse.
const MAX_DEPTH: usize = 128;

/// Characters that `tojson` indents a level by.
const MAX_INDENT: usize = 64;

/// Bytes of a format for the time.
const MAX_FORMAT: usize = 1024;

/// Values that are looked at for one unit of fuel: as long as an instruction takes.
const VALUES_PER_FUEL: usize = 2;

/// The environment that `apply_chat_template` sets up.
pub(super) fn environment() -> Result<Environment<'static>, Error> {
    let mut environment = Environment::new();
    environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    environment.set_undefined_behavior(UndefinedBehavior::Lenient);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_unknown_method_callback(method);
    environment.set_fuel(Some(MAX_FUEL));
    environment.set_recursion_limit(MAX_RECURSION);
    // Errors carry the whole state and source otherwise.
    environment.set_debug(false);
    environment.set_formatter(|output, state, value| {
        measure(state, value, false)?;
        escape_formatter(output, state, value)
    });
    environment.remove_global("debug");
    environment.add_filter(BOUNDED, |state: &State, value: Value| bounded(state, value, false));
    environment.add_filter(STORED, |state: &State, value: Value| bounded(state, value, true));
    environment.add_filter("tojson", to_json);
    environment.add_filter("int", to_int);
    environment.add_filter("float", to_float);
    environment.add_test("iterable", |value: &Value| !value.is_none() && tests::is_iterable(value));
    for name in ["eq", "equalto", "=="] {
        environment.add_test(name, |state: &State, left: &Value, right: &Value| {
            measure_both(state, left, right).map(|()| left == right)
        });
    }
    for name in ["ne", "!="] {
        environment.add_test(name, |state: &State, left: &Value, right: &Value| {
            measure_both(state, left, right).map(|()| left != right)
        });
    }
    environment.add_function("raise_exception", raise_exception);
    environment.add_function("strftime_now", strftime_now);
    Ok(environment)
}

/// What a template says when it refuses a conversation.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Refusal(String);

/// A limit that a value has met.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Limit(&'static str);

impl From<Limit> for Error {
    fn from(limit: Limit) -> Self {
        Error::new(ErrorKind::InvalidOperation, limit.0).with_source(limit)
    }
}

/// What an error of the template engine means to the caller.
pub(super) fn render_error(error: &Error) -> TextError {
    match error.kind() {
        ErrorKind::OutOfFuel => TextError::TemplateLimit { limit: "it ran for too long" },
        ErrorKind::WriteFailure => TextError::TemplateLimit { limit: "it wrote too much" },
        _ => match (cause::<Refusal>(error), cause::<Limit>(error)) {
            (Some(Refusal(message)), _) => TextError::TemplateRefused { message: message.clone() },
            (None, Some(Limit(limit))) => TextError::TemplateLimit { limit },
            (None, None) => {
                TextError::TemplateRender { line: error.line(), reason: reason_of(error) }
            }
        },
    }
}

/// The kind and the detail, without the place, which has a field of its own.
pub(super) fn reason_of(error: &Error) -> String {
    match error.detail() {
        Some(detail) => format!("{}: {detail}", error.kind()),
        None => error.kind().to_string(),
    }
}

fn cause<T: std::error::Error + 'static>(error: &Error) -> Option<&T> {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        cause = error.source();
    }
    None
}

/// The value, if it is within limits. What would be computed anew at each look becomes a list:
/// such values are in one another like boxes, which no look at their items shows.
fn bounded(state: &State, value: Value, is_stored: bool) -> Result<Value, Error> {
    measure(state, &value, is_stored)?;
    let is_lazy = match value.kind() {
        ValueKind::Iterable => true,
        ValueKind::Seq => !value.is_tuple() && value.downcast_object_ref::<Vec<Value>>().is_none(),
        _ => false,
    };
    if is_lazy {
        return Ok(Value::from(value.try_iter()?.collect::<Vec<Value>>()));
    }
    Ok(value)
}

fn measure_both(state: &State, left: &Value, right: &Value) -> Result<(), Error> {
    measure(state, left, false)?;
    measure(state, right, false)
}

/// Refuses a value that is larger or deeper than anything in a conversation, and pays for the
/// look. A value that a namespace keeps may not hold a namespace: it could hold itself.
fn measure(state: &State, value: &Value, is_stored: bool) -> Result<(), Error> {
    /// A container that is being looked at. Of a map the iterator has the keys.
    struct Level {
        items: ValueIter,
        map: Option<Value>,
    }
    let (mut values, mut text) = (0, 0);
    let mut levels: Vec<Level> = Vec::new();
    let mut next = Some(value.clone());
    while let Some(value) = next {
        values += 1;
        text += value.as_str().map_or(0, str::len) + value.as_bytes().map_or(0, <[u8]>::len);
        if values > MAX_VALUES {
            return Err(Limit("it made a value of too many values").into());
        }
        if text > MAX_TEXT {
            return Err(Limit("it made a value of too much text").into());
        }
        if value.kind() == ValueKind::Map || is_list(&value) {
            if is_stored && is_namespace(&value) {
                return Err(Limit("it put a namespace into a namespace").into());
            }
            if levels.len() == MAX_DEPTH {
                return Err(Limit("it made a value that nests too deeply").into());
            }
            let items = value.try_iter()?;
            let is_map = value.kind() == ValueKind::Map;
            levels.push(Level { items, map: is_map.then_some(value) });
        }
        next = None;
        while let Some(level) = levels.last_mut() {
            match (level.items.next(), &level.map) {
                (Some(key), Some(map)) => {
                    text += key.as_str().map_or(0, str::len);
                    next = Some(map.get_item(&key)?);
                }
                (Some(item), None) => next = Some(item),
                (None, _) => {
                    levels.pop();
                    continue;
                }
            }
            break;
        }
    }
    if values > 1 { state.consume_fuel((values / VALUES_PER_FUEL) as u64) } else { Ok(()) }
}

fn is_list(value: &Value) -> bool {
    matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable)
}

fn is_namespace(value: &Value) -> bool {
    value.as_object().is_some_and(|object| object.type_name().ends_with("::Namespace"))
}

/// Python's methods. They get at the items of their arguments and print them.
fn method(
    state: &mut State,
    value: &Value,
    name: &str,
    arguments: &[Value],
) -> Result<Value, Error> {
    arguments.iter().try_for_each(|argument| measure(state, argument, false))?;
    if name == "format" && value.as_str().is_some_and(pads_too_far) {
        return Err(Limit("it pads a text too far").into());
    }
    pycompat::unknown_method_callback(state, value, name, arguments)
}

/// Whether a format for `str.format` asks for more than so many characters, or for a number of
/// them that is an argument.
fn pads_too_far(format: &str) -> bool {
    const FARTHEST: u32 = 1000;
    let is_near = |digits: &str| digits.parse().is_ok_and(|number: u32| number <= FARTHEST);
    let mut numbers =
        format.split(|c: char| !c.is_ascii_digit()).filter(|digits| !digits.is_empty());
    let specification = |field: &str| field.find(':').is_some_and(|at| field[at..].contains('{'));
    numbers.any(|digits| !is_near(digits)) || format.split('}').any(specification)
}

/// `value | tojson(ensure_ascii=False, indent=None, separators=None, sort_keys=False)`.
fn to_json(
    state: &State,
    value: &Value,
    ensure_ascii: Option<Value>,
    indent: Option<Value>,
    options: Kwargs,
) -> Result<Value, Error> {
    measure(state, value, false)?;
    let invalid = |reason| Error::new(ErrorKind::InvalidOperation, reason);
    let indent = match indent {
        Some(indent) => Some(indent),
        None => options.get::<Option<Value>>("indent")?,
    };
    let indent = match indent.filter(|indent| !indent.is_none() && !indent.is_undefined()) {
        None => None,
        Some(text) if text.as_str().is_some() => text.as_str().map(str::to_owned),
        Some(count) => {
            let count = i64::try_from(count)?.max(0);
            let count = usize::try_from(count).ok().filter(|count| *count <= MAX_INDENT);
            Some(" ".repeat(count.ok_or(Limit("it indents too far"))?))
        }
    };
    if indent.as_ref().is_some_and(|indent| indent.len() > MAX_INDENT) {
        return Err(Limit("it indents too far").into());
    }
    let mut json = PythonJson::new(indent);
    if let Some(separators) = options.get::<Option<Vec<String>>>("separators")? {
        let [items, keys]: [String; 2] =
            separators.try_into().map_err(|_| invalid("separators are not a pair"))?;
        (json.item_separator, json.key_separator) = (items, keys);
    }
    let ensure_ascii = match ensure_ascii {
        Some(value) => value.is_true(),
        None => options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
    };
    json.ensure_ascii = ensure_ascii;
    let sort_keys = options.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    options.assert_all_used()?;
    let mut output = LimitedOutput::new(MAX_TEXT);
    let written = if sort_keys {
        serde_json::to_value(value).and_then(|mut value| {
            value.sort_all_objects();
            json.write(&value, &mut output)
        })
    } else {
        json.write(value, &mut output)
    };
    match written {
        Ok(()) => String::from_utf8(output.0).map(Value::from).map_err(|_| invalid("not UTF-8")),
        Err(error) if error.is_io() => Err(Limit("it made a value of too much text").into()),
        Err(error) => Err(Error::new(ErrorKind::BadSerialization, "not JSON").with_source(error)),
    }
}

/// `value | int`: 0, or the default, where Python can't make one of it.
fn to_int(
    state: &State,
    value: &Value,
    default: Option<Value>,
    base: Option<u32>,
    options: Kwargs,
) -> Result<Value, Error> {
    let default = default.map_or_else(|| options.get("default"), |default| Ok(Some(default)))?;
    let number = filters::int(state, &trimmed(value), default.clone(), base, options);
    Ok(number.unwrap_or_else(|_| default.unwrap_or(Value::from(0))))
}

/// `value | float`, likewise.
fn to_float(
    state: &State,
    value: &Value,
    default: Option<Value>,
    options: Kwargs,
) -> Result<Value, Error> {
    let default = default.map_or_else(|| options.get("default"), |default| Ok(Some(default)))?;
    let number = filters::float(state, &trimmed(value), default.clone(), options);
    Ok(number.unwrap_or_else(|_| default.unwrap_or(Value::from(0.0))))
}

/// Python reads a number with white space around it.
fn trimmed(value: &Value) -> Value {
    value.as_str().map_or_else(|| value.clone(), |text| Value::from(text.trim()))
}

fn raise_exception(state: &State, message: Value) -> Result<Value, Error> {
    measure(state, &message, false)?;
    let message = message.to_string();
    let error = Error::new(ErrorKind::InvalidOperation, message.clone());
    Err(error.with_source(Refusal(message)))
}

/// The local time by a `strftime` format. Templates write today's date into system prompts.
fn strftime_now(format: Option<&str>, options: Kwargs) -> Result<String, Error> {
    let format = match format {
        Some(format) => format,
        None => options.get("format")?,
    };
    options.assert_all_used()?;
    if format.len() > MAX_FORMAT {
        return Err(Limit("it formats the time at too great length").into());
    }
    let items = chrono::format::StrftimeItems::new_lenient(format);
    Ok(chrono::Local::now().format_with_items(items).to_string())
}

/// Collects output up to a limit.
pub(super) struct LimitedOutput(pub(super) Vec<u8>, usize);

impl LimitedOutput {
    pub(super) fn new(limit: usize) -> Self {
        Self(Vec::new(), limit)
    }
}

impl io::Write for LimitedOutput {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        if text.len() > self.1 - self.0.len() {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.0.extend_from_slice(text);
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
