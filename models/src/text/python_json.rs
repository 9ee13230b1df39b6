//! JSON as Python's `json.dumps` writes it.
//!
//! Chat templates put tool definitions into the prompt through the `tojson` filter. The models
//! were trained on what Python writes, so the spaces matter.

use std::io::{self, Write};

use serde::Serialize;
use serde_json::ser::Formatter;

/// The options of `json.dumps` that templates use.
#[derive(Debug, Clone)]
pub(crate) struct PythonJson {
    /// Line breaks, and this a level.
    pub(crate) indent: Option<String>,
    /// Between the items of a list or an object.
    pub(crate) item_separator: String,
    /// Between a key and its value.
    pub(crate) key_separator: String,
    /// Write characters beyond ASCII as escapes.
    pub(crate) ensure_ascii: bool,
}

impl PythonJson {
    /// Python's defaults for the given indentation, except that characters stay as they are.
    pub(crate) fn new(indent: Option<String>) -> Self {
        let item_separator = if indent.is_some() { "," } else { ", " }.to_owned();
        Self { indent, item_separator, key_separator: ": ".to_owned(), ensure_ascii: false }
    }

    /// Writes a value.
    pub(crate) fn write(
        &self,
        value: &impl Serialize,
        output: &mut impl Write,
    ) -> serde_json::Result<()> {
        let layout = Layout { options: self, depth: 0, empty: true };
        value.serialize(&mut serde_json::Serializer::with_formatter(output, layout))
    }
}

struct Layout<'a> {
    options: &'a PythonJson,
    depth: usize,
    /// Nothing has been written into the innermost list or object.
    empty: bool,
}

impl Layout<'_> {
    fn open<W: ?Sized + Write>(&mut self, writer: &mut W, bracket: &[u8]) -> io::Result<()> {
        self.depth += 1;
        self.empty = true;
        writer.write_all(bracket)
    }

    fn close<W: ?Sized + Write>(&mut self, writer: &mut W, bracket: &[u8]) -> io::Result<()> {
        self.depth = self.depth.saturating_sub(1);
        if !self.empty {
            self.break_line(writer)?;
        }
        self.empty = false;
        writer.write_all(bracket)
    }

    fn separate<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if !first {
            writer.write_all(self.options.item_separator.as_bytes())?;
        }
        self.empty = false;
        self.break_line(writer)
    }

    fn break_line<W: ?Sized + Write>(&self, writer: &mut W) -> io::Result<()> {
        let Some(indent) = &self.options.indent else { return Ok(()) };
        writer.write_all(b"\n")?;
        (0..self.depth).try_for_each(|_| writer.write_all(indent.as_bytes()))
    }
}

impl Formatter for Layout<'_> {
    fn begin_array<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.open(writer, b"[")
    }

    fn end_array<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.close(writer, b"]")
    }

    fn begin_array_value<W: ?Sized + Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> io::Result<()> {
        self.separate(writer, first)
    }

    fn end_array_value<W: ?Sized + Write>(&mut self, _writer: &mut W) -> io::Result<()> {
        self.empty = false;
        Ok(())
    }

    fn begin_object<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.open(writer, b"{")
    }

    fn end_object<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.close(writer, b"}")
    }

    fn begin_object_key<W: ?Sized + Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> io::Result<()> {
        self.separate(writer, first)
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(self.options.key_separator.as_bytes())
    }

    fn end_object_value<W: ?Sized + Write>(&mut self, _writer: &mut W) -> io::Result<()> {
        self.empty = false;
        Ok(())
    }

    fn write_f64<W: ?Sized + Write>(&mut self, writer: &mut W, value: f64) -> io::Result<()> {
        writer.write_all(python_float(value).as_bytes())
    }

    fn write_string_fragment<W: ?Sized + Write>(
        &mut self,
        writer: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        if !self.options.ensure_ascii {
            return writer.write_all(fragment.as_bytes());
        }
        for character in fragment.chars() {
            if character.is_ascii() {
                write!(writer, "{character}")?;
            } else {
                for unit in character.encode_utf16(&mut [0; 2]) {
                    write!(writer, "\\u{unit:04x}")?;
                }
            }
        }
        Ok(())
    }
}

/// The shortest decimal that reads back as `value`, with an exponent where Python's `repr`
/// writes one.
fn python_float(value: f64) -> String {
    let scientific = format!("{value:e}");
    let parts = scientific
        .split_once('e')
        .and_then(|(mantissa, exponent)| Some((mantissa, exponent.parse::<i32>().ok()?)));
    match parts {
        Some((mantissa, exponent)) if !(-4..16).contains(&exponent) => {
            let sign = if exponent < 0 { '-' } else { '+' };
            format!("{mantissa}e{sign}{:02}", exponent.unsigned_abs())
        }
        _ => format!("{value:?}"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn written(json: &PythonJson, value: &impl Serialize) -> String {
        let mut bytes = Vec::new();
        json.write(value, &mut bytes).unwrap();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn spaces_follow_commas_and_colons() {
        let value = json!({ "b": [1, "é\n", null], "a": {}, "c": [], "d": true });
        let text = written(&PythonJson::new(None), &value);
        assert_eq!(text, r#"{"b": [1, "é\n", null], "a": {}, "c": [], "d": true}"#);
    }

    #[test]
    fn indentation_breaks_lines_but_not_in_empty_containers() {
        let value = json!({ "a": [1, {}], "b": [] });
        let text = written(&PythonJson::new(Some("  ".to_owned())), &value);
        assert_eq!(text, "{\n  \"a\": [\n    1,\n    {}\n  ],\n  \"b\": []\n}");
    }

    #[test]
    fn characters_are_escaped_on_request() {
        let json = PythonJson { ensure_ascii: true, ..PythonJson::new(None) };
        assert_eq!(written(&json, &"aé👧\u{7f}"), "\"a\\u00e9\\ud83d\\udc67\u{7f}\"");
    }

    #[test]
    fn floats_are_written_as_python_does() {
        let cases = [
            (1.0, "1.0"),
            (-0.5, "-0.5"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (1.5e300, "1.5e+300"),
            (0.0001, "0.0001"),
            (0.00001, "1e-05"),
            (0.1 + 0.2, "0.30000000000000004"),
            (0.0, "0.0"),
        ];
        for (value, expected) in cases {
            assert_eq!(python_float(value), expected);
        }
    }
}
