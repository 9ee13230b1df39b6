//! A chat template's source before it is compiled.
//!
//! A template comes with a model, so it is somebody else's program. Fuel bounds what it computes
//! step by step, but a template can build a value that costs nothing until it is printed or
//! compared: a list that holds itself, or one that holds the same list twice, forty times over. The
//! template engine has no hook at the operators that do so. So the source is rewritten: wherever
//! an expression can make a container, or a variable can take one, the value passes through a
//! filter of ours that measures it (see `template_limits`). What is left between two such places
//! is bounded by the length of an expression.
//!
//! | source | becomes |
//! | --- | --- |
//! | `[a, b]`, `{k: v}`, `(a, b)` | `([a, b]\|bounded)` |
//! | `a + b`, `a * b` | `(a + b)\|bounded` |
//! | `f(x)`, `x\|f(y)` | `(f((x)\|bounded)\|bounded)`, `x\|f((y)\|bounded)\|bounded` |
//! | `x[y]`, `x == y`, `x in y` | `x[(y)\|bounded]`, `(x)\|bounded == (y)\|bounded`, .. |
//! | `set x = a`, `with x = a` | `set x = (a)\|bounded` |
//! | `set ns.x = a` | `set ns.x = (a)\|stored`: it may not hold a namespace, so nothing holds itself |
//!
//! What holds no name is as large as its source, and stays as it is.
//!
//! Line breaks become Python's, and `{% generation %}` marks, which say what an assistant wrote,
//! become an `if` that is always taken. Lines stay lines, so that messages name the right one.

use super::TextError;
use super::template_tokens::{Token, Tokens, Trimmed, syntax, too_large, top_level};

/// Bytes of a template; the largest in use has about 30 KB.
const MAX_SOURCE: usize = 256 << 10;

/// `elif` branches of a template, which nest in the same way.
const MAX_BRANCHES: usize = 1024;

/// Makes the source ready to be compiled.
///
/// # Errors
///
/// [`TextError::TemplateTooLarge`], and [`TextError::TemplateSyntax`] for a tag or a bracket that
/// doesn't end.
pub(super) fn prepare(source: &str) -> Result<String, TextError> {
    if source.len() > MAX_SOURCE {
        return Err(too_large("bytes", MAX_SOURCE));
    }
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    let mut output = String::with_capacity(source.len() * 2);
    let mut branches = 0;
    let mut rest = source.as_str();
    while let Some(start) = rest.find('{') {
        let (before, tag) = rest.split_at(start);
        output.push_str(before);
        let at = source.len() - tag.len();
        let unfinished = || syntax(&source, at, "the tag doesn't end");
        rest = match tag.as_bytes().get(1) {
            Some(b'#') => {
                let end = tag.find("#}").ok_or_else(unfinished)? + 2;
                output.push_str(&tag[..end]);
                &tag[end..]
            }
            Some(b'{') => {
                let tokens = Tokens::read(&source, at + 2, "}}")?;
                output.push_str("{{");
                let inner = tokens.trimmed();
                output.push_str(inner.before);
                Expression::of(&source, &tokens.list).write(Operands::AsTheyAre, &mut output);
                output.push_str(inner.after.trim_ascii_start());
                output.push_str("}}");
                &source[tokens.end..]
            }
            Some(b'%') => {
                let tokens = Tokens::read(&source, at + 2, "%}")?;
                let statement = Statement::of(&tokens);
                branches += usize::from(statement.keyword == "elif");
                if branches > MAX_BRANCHES {
                    return Err(too_large("`elif` branches", MAX_BRANCHES));
                }
                statement.write(&mut output);
                let end = match statement.keyword {
                    "raw" => {
                        let raw = &source[tokens.end..];
                        tokens.end + end_of_raw(raw).ok_or_else(unfinished)?
                    }
                    _ => tokens.end,
                };
                output.push_str(&source[tokens.end..end]);
                &source[end..]
            }
            _ => {
                output.push('{');
                &tag[1..]
            }
        };
    }
    output.push_str(rest);
    Ok(output)
}

/// Where the tag that ends a raw block begins.
fn end_of_raw(text: &str) -> Option<usize> {
    let is_end = |(start, _): &(usize, &str)| {
        let inner = text[start + 2..].trim_start_matches(['-', '+']).trim_start();
        inner.strip_prefix("endraw").is_some_and(|inner| {
            inner.trim_start().trim_start_matches(['-', '+']).starts_with("%}")
        })
    };
    text.match_indices("{%").find(is_end).map(|(start, _)| start)
}

/// A `{% .. %}`.
struct Statement<'a> {
    tokens: &'a Tokens<'a>,
    keyword: &'a str,
}

impl<'a> Statement<'a> {
    fn of(tokens: &'a Tokens<'a>) -> Self {
        let keyword = tokens.list.first().map_or("", |token| token.text);
        Self { tokens, keyword }
    }

    fn write(&self, output: &mut String) {
        let Tokens { source, list, .. } = self.tokens;
        let Trimmed { before, mut after } = self.tokens.trimmed();
        output.push_str("{%");
        output.push_str(before);
        let tail = list.get(1..).unwrap_or_default();
        let verbatim = |output: &mut String| {
            if let (Some(first), Some(last)) = (list.first(), list.last()) {
                output.push_str(&source[first.start..last.end()]);
            }
        };
        match self.keyword {
            "generation" if tail.is_empty() => output.push_str("if true"),
            "endgeneration" if tail.is_empty() => output.push_str("endif"),
            "if" | "elif" => {
                output.push_str(self.keyword);
                output.push(' ');
                Expression::of(source, tail).write(Operands::AsTheyAre, output);
                after = after.trim_ascii_start();
            }
            "set" | "with" if assignment(tail).is_some() => {
                output.push_str(self.keyword);
                write_assignments(source, tail, self.keyword == "with", output);
                after = after.trim_ascii_start();
            }
            "for" => {
                let end = tail.iter().position(|token| token.text == "in").unwrap_or(tail.len());
                let (targets, iterated) = tail.split_at(end);
                output.push_str(&source[list[0].start..targets.last().unwrap_or(&list[0]).end()]);
                output.push(' ');
                Expression::of(source, iterated).write(Operands::AsTheyAre, output);
                after = after.trim_ascii_start();
            }
            _ => verbatim(output),
        }
        output.push_str(after);
        output.push_str("%}");
    }
}

/// The filter through which values pass.
pub(super) const BOUNDED: &str = "understory_bounded";

/// The filter through which values pass that a namespace keeps.
pub(super) const STORED: &str = "understory_stored";

/// The first `=` outside of brackets.
fn assignment(tokens: &[Token<'_>]) -> Option<usize> {
    top_level(tokens).find(|at| tokens[*at].text == "=")
}

/// Writes `a = x`, or with `several` also `a = x, b = y`, each value measured.
fn write_assignments(source: &str, tokens: &[Token<'_>], several: bool, output: &mut String) {
    let mut rest = tokens;
    while let Some(equals) = assignment(rest) {
        let (target, value) = rest.split_at(equals);
        let value = &value[1..];
        let comma = top_level(value).find(|at| several && value[*at].text == ",");
        let end = comma.unwrap_or(value.len());
        output.push(' ');
        if let (Some(first), Some(last)) = (target.first(), target.last()) {
            output.push_str(&source[first.start..last.end()]);
        }
        output.push_str(" = (");
        Expression::of(source, &value[..end]).write(Operands::AsTheyAre, output);
        let is_stored = target.iter().any(|token| token.text == ".");
        output.extend([")|", if is_stored { STORED } else { BOUNDED }]);
        rest = &value[end..];
    }
    if let (Some(first), Some(last)) = (rest.first(), rest.last()) {
        output.push_str(&source[first.start..last.end()]);
    }
}

/// A piece of a tag that is an expression, or several with commas between.
struct Expression<'a, 's> {
    source: &'s str,
    tokens: &'a [Token<'s>],
}

/// What is to become of the parts of an expression between commas and comparisons.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Operands {
    AsTheyAre,
    /// They go into a function or a look-up, which may walk through all of them.
    Measured,
}

impl<'a, 's> Expression<'a, 's> {
    fn of(source: &'s str, tokens: &'a [Token<'s>]) -> Self {
        Self { source, tokens }
    }

    /// Writes it with its containers measured.
    fn write(&self, operands: Operands, output: &mut String) {
        let boundaries: Vec<usize> =
            top_level(self.tokens).filter(|at| self.is_boundary(*at)).collect();
        // The parts, and the boundary behind each.
        let starts = std::iter::once(0).chain(boundaries.iter().map(|at| at + 1));
        let ends = boundaries.iter().copied().chain([self.tokens.len()]);
        let parts: Vec<(usize, usize)> = starts.zip(ends).collect();
        for (index, &(start, end)) in parts.iter().enumerate() {
            let is_compared_with = |other: usize, boundary: usize| {
                let is_comparison = self.tokens.get(boundary).is_some_and(|token| {
                    matches!(token.text, "==" | "!=" | "<" | ">" | "<=" | ">=" | "in")
                });
                let other = parts.get(other).copied().unwrap_or_default();
                is_comparison && self.has_name(other.0, other.1)
            };
            let is_compared = is_compared_with(index + 1, end)
                || index > 0 && is_compared_with(index - 1, start - 1);
            let is_measured = (is_compared || operands == Operands::Measured)
                && self.has_name(start, end)
                && !matches!(self.tokens[start].text, "*" | "**")
                && self.tokens.get(end).is_none_or(|boundary| boundary.text != "=");
            let place = output.len();
            if !self.write_sum(start, end, output) && is_measured {
                output.insert(place, '(');
                close_if(true, output);
            }
            if let Some(boundary) = self.tokens.get(end) {
                self.write_token(boundary, output);
            }
        }
    }

    /// Whether the tokens depend on anything but themselves.
    fn has_name(&self, start: usize, end: usize) -> bool {
        self.tokens[start..end].iter().any(|token| {
            let is_constant =
                matches!(token.text, "true" | "false" | "none" | "True" | "False" | "None");
            token.is_word() && !is_constant && !token.text.starts_with(|c: char| c.is_ascii_digit())
        })
    }

    /// Whether the token ends a sum: it binds less tightly than `+`.
    fn is_boundary(&self, at: usize) -> bool {
        let before =
            |back: usize| at.checked_sub(back).map_or("", |before| self.tokens[before].text);
        match self.tokens[at].text {
            "," | ":" | "=" | "==" | "!=" | "<" | ">" | "<=" | ">=" => true,
            // Not so in the tests `is not x` and `is in x`, and as the name of an attribute.
            "not" => !matches!(before(1), "is" | "."),
            "in" => !matches!(before(1), "is" | ".") && (before(1), before(2)) != ("not", "is"),
            "and" | "or" | "if" | "else" | "recursive" => before(1) != ".",
            _ => false,
        }
    }

    /// Operands with `+`, `-` and `~` between. Returns whether the whole is measured.
    fn write_sum(&self, start: usize, end: usize, output: &mut String) -> bool {
        // A sign has no operand in front.
        let has_operand = |at: usize| {
            let before = at.checked_sub(1).filter(|before| *before >= start);
            before
                .map(|before| &self.tokens[before])
                .is_some_and(|before| before.is_word() || before.is_string() || before.closes())
        };
        let is_operator =
            |at: &usize| matches!(self.tokens[*at].text, "+" | "-" | "~") && has_operand(*at);
        let operators: Vec<usize> =
            top_level(&self.tokens[start..end]).map(|at| start + at).filter(is_operator).collect();
        let makes_list = operators.iter().any(|at| self.tokens[*at].text == "+");
        let is_single = operators.is_empty();
        open_if(makes_list, output);
        let mut from = start;
        for operator in operators {
            self.write_product(from, operator, output);
            self.write_token(&self.tokens[operator], output);
            from = operator + 1;
        }
        let is_measured = self.write_product(from, end, output);
        close_if(makes_list, output);
        makes_list || is_single && is_measured
    }

    /// Operands with `*` and its like between; one in front hands on the arguments of a call.
    /// Returns whether the whole is measured.
    fn write_product(&self, start: usize, end: usize, output: &mut String) -> bool {
        let repeats = top_level(&self.tokens[start..end])
            .any(|at| at > 0 && self.tokens[start + at].text == "*");
        open_if(repeats, output);
        let mut at = start;
        let mut is_measured = false;
        while at < end {
            is_measured = at == start;
            if self.begins_operand(at, start) {
                let (after, is_last_measured) = self.write_operand(at, end, output);
                is_measured &= is_last_measured;
                at = after;
            } else {
                self.write_token(&self.tokens[at], output);
                is_measured = false;
                at += 1;
            }
        }
        close_if(repeats, output);
        repeats || is_measured
    }

    fn begins_operand(&self, at: usize, start: usize) -> bool {
        let token = &self.tokens[at];
        let follows_test = at > start && matches!(self.tokens[at - 1].text, "is" | "not");
        let is_keyword = matches!(token.text, "is" | "not" | "in") || follows_test;
        (token.opens() || token.is_word() || token.is_string()) && !is_keyword
    }

    /// A name or a literal with what is called on it, looked up in it, or filtered from it.
    /// Returns where it ends and whether it is measured.
    fn write_operand(&self, start: usize, end: usize, output: &mut String) -> (usize, bool) {
        let place = output.len();
        let tokens = &self.tokens[..end];
        let first = &tokens[start];
        let mut at = start + 1;
        let mut is_measured = false;
        if first.opens() {
            is_measured = self.is_container(start);
            self.write_group(start, Operands::AsTheyAre, output);
            at += first.partner;
        } else {
            self.write_token(first, output);
        }
        while let Some(token) = tokens.get(at) {
            match token.text {
                "." => {
                    tokens[at..].iter().take(2).for_each(|token| self.write_token(token, output));
                    at += 2;
                }
                "[" | "(" => {
                    is_measured |= token.text == "(";
                    self.write_group(at, Operands::Measured, output);
                    at += 1 + token.partner;
                }
                _ => break,
            }
        }
        if is_measured {
            output.insert(place, '(');
            output.extend(["|", BOUNDED, ")"]);
        }
        while tokens.get(at).is_some_and(|token| token.text == "|") {
            tokens[at..].iter().take(2).for_each(|token| self.write_token(token, output));
            at += 2;
            if let Some(open) = tokens.get(at).filter(|token| token.text == "(") {
                self.write_group(at, Operands::Measured, output);
                at += 1 + open.partner;
            }
            output.extend(["|", BOUNDED, " "]);
            is_measured = true;
        }
        (at.min(end), is_measured)
    }

    /// Whether the bracket makes a container that is larger than its source.
    fn is_container(&self, open: usize) -> bool {
        let inner = open + 1..open + self.tokens[open].partner;
        let is_tuple = || {
            let inner = &self.tokens[inner.clone()];
            top_level(inner).any(|at| inner[at].text == ",")
        };
        (self.tokens[open].text != "(" || is_tuple()) && self.has_name(inner.start, inner.end)
    }

    fn write_group(&self, open: usize, operands: Operands, output: &mut String) {
        let partner = open + self.tokens[open].partner;
        self.write_token(&self.tokens[open], output);
        Self::of(self.source, &self.tokens[open + 1..partner]).write(operands, output);
        self.write_token(&self.tokens[partner], output);
    }

    /// The token with the white space behind it in the source.
    fn write_token(&self, token: &Token<'_>, output: &mut String) {
        output.push_str(token.text);
        let behind = &self.source[token.end()..];
        output.push_str(&behind[..behind.len() - behind.trim_ascii_start().len()]);
    }
}

fn open_if(condition: bool, output: &mut String) {
    if condition {
        output.push('(');
    }
}

fn close_if(condition: bool, output: &mut String) {
    if condition {
        output.extend([")|", BOUNDED, " "]);
    }
}
