//! EBNF as llama.cpp and XGrammar write it, translated to Lark.
//!
//! ```text
//! root  ::= "[" item ("," item)* "]"      # comments run to the end of the line
//! item  ::= [0-9]+ | "\"" [^"\x00-\x1f]* "\"" | root | .{2,3}
//! ```
//!
//! A rule that doesn't lead back to itself becomes a terminal, so that it is matched by an
//! automaton; the others become rules.

use std::collections::HashMap;
use std::fmt::Write;

use crate::error::GrammarError;

/// Translates a grammar. Brackets may nest `max_depth` deep.
pub(crate) fn ebnf_to_lark(text: &str, max_depth: usize) -> Result<String, GrammarError> {
    let mut parser = Parser { text, rest: text, depth: 0, max_depth };
    let mut rules: Vec<(&str, Node<'_>)> = Vec::new();
    let mut numbers: HashMap<&str, usize> = HashMap::new();
    parser.skip();
    while !parser.rest.is_empty() {
        let name = parser.rule_head()?;
        let body = parser.alternatives()?;
        if numbers.insert(name, rules.len()).is_some() {
            return Err(GrammarError::invalid(format!("the rule {name} is defined twice")));
        }
        rules.push((name, body));
    }
    let Some(&root) = numbers.get("root") else {
        return Err(GrammarError::invalid("there is no rule named root"));
    };
    let names = Names { numbers: &numbers, is_terminal: terminals(&rules, &numbers)? };
    let mut lark = format!("start: {}\n", names.of(root));
    for (number, (_, body)) in rules.iter().enumerate() {
        let _ = write!(lark, "{}: ", names.of(number));
        body.write(&names, &mut lark);
        lark.push('\n');
    }
    Ok(lark)
}

#[derive(Debug)]
enum Node<'a> {
    Literal(String),
    /// A class of characters, as a regular expression.
    Class(String),
    Rule(&'a str),
    Alternatives(Vec<Node<'a>>),
    Sequence(Vec<Node<'a>>),
    Repeat(Box<Node<'a>>, u32, Option<u32>),
}

/// Which rules lead to no rule that leads back to itself: those that only such rules follow.
fn terminals(
    rules: &[(&str, Node<'_>)],
    numbers: &HashMap<&str, usize>,
) -> Result<Vec<bool>, GrammarError> {
    let mut users: Vec<Vec<usize>> = vec![Vec::new(); rules.len()];
    let mut missing = Vec::with_capacity(rules.len());
    for (number, (_, body)) in rules.iter().enumerate() {
        let mut used = Vec::new();
        body.rules(&mut used);
        for name in &used {
            let used = numbers.get(name).and_then(|&used| users.get_mut(used));
            let unknown = || GrammarError::invalid(format!("the rule {name} is not defined"));
            used.ok_or_else(unknown)?.push(number);
        }
        missing.push(used.len());
    }
    let mut ready: Vec<usize> = (0..rules.len()).filter(|&rule| missing[rule] == 0).collect();
    let mut is_terminal = vec![false; rules.len()];
    while let Some(rule) = ready.pop() {
        is_terminal[rule] = true;
        for &user in &users[rule] {
            missing[user] -= 1;
            if missing[user] == 0 {
                ready.push(user);
            }
        }
    }
    Ok(is_terminal)
}

struct Names<'a> {
    numbers: &'a HashMap<&'a str, usize>,
    is_terminal: Vec<bool>,
}

impl Names<'_> {
    fn of(&self, number: usize) -> String {
        match self.is_terminal.get(number) {
            Some(true) => format!("T{number}"),
            _ => format!("r{number}"),
        }
    }
}

impl<'a> Node<'a> {
    fn rules(&self, into: &mut Vec<&'a str>) {
        match self {
            Self::Literal(_) | Self::Class(_) => {}
            Self::Rule(name) => into.push(name),
            Self::Alternatives(nodes) | Self::Sequence(nodes) => {
                nodes.iter().for_each(|node| node.rules(into));
            }
            Self::Repeat(node, ..) => node.rules(into),
        }
    }

    fn write(&self, names: &Names<'_>, lark: &mut String) {
        match self {
            Self::Literal(text) => lark.push_str(&quoted(text)),
            Self::Class(class) => lark.push_str(class),
            Self::Rule(name) => {
                let number = names.numbers.get(name).copied().unwrap_or_default();
                lark.push_str(&names.of(number));
            }
            Self::Alternatives(nodes) => write_all(nodes, " | ", names, lark),
            Self::Sequence(nodes) if nodes.is_empty() => lark.push_str("\"\""),
            Self::Sequence(nodes) => write_all(nodes, " ", names, lark),
            Self::Repeat(node, least, most) => {
                node.write(names, lark);
                let _ = match (least, most) {
                    (0, None) => write!(lark, "*"),
                    (1, None) => write!(lark, "+"),
                    (0, Some(1)) => write!(lark, "?"),
                    (least, None) => write!(lark, "{{{least},}}"),
                    (least, Some(most)) => write!(lark, "{{{least},{most}}}"),
                };
            }
        }
    }
}

fn write_all(nodes: &[Node<'_>], between: &str, names: &Names<'_>, lark: &mut String) {
    lark.push('(');
    for (index, node) in nodes.iter().enumerate() {
        if index > 0 {
            lark.push_str(between);
        }
        node.write(names, lark);
    }
    lark.push(')');
}

/// A literal of Lark, which is one of JSON.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

struct Parser<'a> {
    text: &'a str,
    rest: &'a str,
    depth: usize,
    max_depth: usize,
}

impl<'a> Parser<'a> {
    fn error(&self, expected: &str) -> GrammarError {
        let at = self.text.len() - self.rest.len();
        let line = self.text.get(..at).unwrap_or_default().matches('\n').count() + 1;
        let found: String = self.rest.chars().take(12).collect();
        GrammarError::invalid(format!("line {line}: expected {expected}, found {found:?}"))
    }

    /// White space and comments.
    fn skip(&mut self) {
        loop {
            self.rest = self.rest.trim_start();
            if !self.rest.starts_with('#') {
                return;
            }
            self.rest = self.rest.split_once('\n').map_or("", |(_, rest)| rest);
        }
    }

    fn take(&mut self, prefix: &str) -> bool {
        match self.rest.strip_prefix(prefix) {
            Some(rest) => {
                self.rest = rest;
                self.skip();
                true
            }
            None => false,
        }
    }

    fn name(&mut self) -> Option<&'a str> {
        let is_part = |c: char| c.is_alphanumeric() || c == '-' || c == '_';
        let end = self.rest.find(|c| !is_part(c)).unwrap_or(self.rest.len());
        let (name, rest) = self.rest.split_at_checked(end)?;
        self.rest = rest;
        self.skip();
        (!name.is_empty()).then_some(name)
    }

    fn rule_head(&mut self) -> Result<&'a str, GrammarError> {
        let name = self.name().ok_or_else(|| self.error("the name of a rule"))?;
        if self.take("::=") { Ok(name) } else { Err(self.error("::=")) }
    }

    /// Whether the next rule begins here.
    fn is_head(&self) -> bool {
        let mut ahead = Parser { text: self.text, rest: self.rest, depth: 0, max_depth: 0 };
        ahead.name().is_some() && ahead.rest.starts_with("::=")
    }

    fn alternatives(&mut self) -> Result<Node<'a>, GrammarError> {
        let mut all = vec![self.sequence()?];
        while self.take("|") {
            all.push(self.sequence()?);
        }
        Ok(Node::Alternatives(all))
    }

    fn sequence(&mut self) -> Result<Node<'a>, GrammarError> {
        let mut all = Vec::new();
        while !self.rest.is_empty() && !self.rest.starts_with(['|', ')']) && !self.is_head() {
            let item = self.item()?;
            all.push(self.repeated(item)?);
        }
        Ok(Node::Sequence(all))
    }

    fn item(&mut self) -> Result<Node<'a>, GrammarError> {
        if let Some(rest) = self.rest.strip_prefix('"') {
            self.rest = rest;
            let mut text = String::new();
            while let Some(character) = self.character('"', "the end of a literal")? {
                text.push(character);
            }
            self.skip();
            return Ok(Node::Literal(text));
        }
        if self.rest.starts_with('[') {
            return self.class();
        }
        if self.take("(") {
            self.depth += 1;
            if self.depth > self.max_depth {
                let (depth, limit) = (self.depth, self.max_depth);
                return Err(GrammarError::TooDeep { depth, limit });
            }
            let inner = self.alternatives()?;
            self.depth -= 1;
            return if self.take(")") { Ok(inner) } else { Err(self.error(")")) };
        }
        if self.take(".") {
            return Ok(Node::Class("/(?s:.)/".to_owned()));
        }
        match self.name() {
            Some(name) => Ok(Node::Rule(name)),
            None => Err(self.error("a literal, a class, a rule or a group")),
        }
    }

    /// A character of a literal or a class; none at its end.
    fn character(&mut self, end: char, what: &str) -> Result<Option<char>, GrammarError> {
        let mut characters = self.rest.chars();
        let Some(first) = characters.next() else { return Err(self.error(what)) };
        let character = match first {
            c if c == end => None,
            '\\' => {
                let kind = characters.next();
                let digits = match kind {
                    Some('x') => 2,
                    Some('u') => 4,
                    Some('U') => 8,
                    _ => 0,
                };
                let code = characters.as_str().get(..digits).unwrap_or_default();
                let hexadecimal = || u32::from_str_radix(code, 16).ok().and_then(char::from_u32);
                let character = match kind {
                    Some('n') => Some('\n'),
                    Some('r') => Some('\r'),
                    Some('t') => Some('\t'),
                    Some('x' | 'u' | 'U') => hexadecimal(),
                    Some(c) if !c.is_alphanumeric() => Some(c),
                    _ => None,
                };
                characters = characters.as_str().get(digits..).unwrap_or_default().chars();
                Some(character.ok_or_else(|| self.error("an escaped character"))?)
            }
            c => Some(c),
        };
        self.rest = characters.as_str();
        Ok(character)
    }

    /// `[a-z]`, `[^"\\]`, as a regular expression.
    fn class(&mut self) -> Result<Node<'a>, GrammarError> {
        self.rest = self.rest.get(1..).unwrap_or_default();
        let is_negated = self.rest.starts_with('^');
        if is_negated {
            self.rest = self.rest.get(1..).unwrap_or_default();
        }
        let mut class = String::from(if is_negated { "/[^" } else { "/[" });
        let mut is_empty = true;
        while let Some(character) = self.character(']', "the end of a class")? {
            is_empty = false;
            let is_range = self.rest.starts_with('-') && !self.rest.starts_with("-]");
            let _ = write!(class, "\\x{{{:x}}}", u32::from(character));
            if is_range {
                self.rest = self.rest.get(1..).unwrap_or_default();
                let end = self.character(']', "the end of a range")?;
                let end = end.filter(|end| *end >= character);
                let end = end.ok_or_else(|| self.error("the end of a range"))?;
                let _ = write!(class, "-\\x{{{:x}}}", u32::from(end));
            }
        }
        self.skip();
        if is_empty {
            return Err(GrammarError::invalid("a class of characters is empty"));
        }
        class.push_str("]/");
        Ok(Node::Class(class))
    }

    fn repeated(&mut self, item: Node<'a>) -> Result<Node<'a>, GrammarError> {
        let (least, most) = if self.take("*") {
            (0, None)
        } else if self.take("+") {
            (1, None)
        } else if self.take("?") {
            (0, Some(1))
        } else if self.take("{") {
            let least = self.number()?;
            let most = match self.take(",") {
                false => Some(least),
                true if self.rest.starts_with('}') => None,
                true => Some(self.number()?),
            };
            if !self.take("}") || most.is_some_and(|most| most < least) {
                return Err(self.error("the end of a repetition"));
            }
            (least, most)
        } else {
            return Ok(item);
        };
        let node = Node::Repeat(Box::new(item), least, most);
        // One repetition of another needs brackets in Lark.
        if self.rest.starts_with(['*', '+', '?', '{']) {
            self.depth += 1;
            if self.depth > self.max_depth {
                let (depth, limit) = (self.depth, self.max_depth);
                return Err(GrammarError::TooDeep { depth, limit });
            }
            let all = self.repeated(Node::Sequence(vec![node]))?;
            self.depth -= 1;
            return Ok(all);
        }
        Ok(node)
    }

    fn number(&mut self) -> Result<u32, GrammarError> {
        let end = self.rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(self.rest.len());
        let number = self.rest.get(..end).and_then(|digits| digits.parse().ok());
        let number = number.ok_or_else(|| self.error("a number"))?;
        self.rest = self.rest.get(end..).unwrap_or_default();
        self.skip();
        Ok(number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_that_lead_back_to_themselves_stay_rules() {
        let lark =
            ebnf_to_lark("root ::= \"[\" (root | digit+) \"]\"\ndigit ::= [0-9]", 9).unwrap();
        let expected =
            "start: r0\nr0: ((\"[\" ((r0) | (T1+)) \"]\"))\nT1: ((/[\\x{30}-\\x{39}]/))\n";
        assert_eq!(lark, expected);
    }

    #[test]
    fn errors_say_where() {
        for (text, part) in [
            ("root ::= [", "the end of a class"),
            ("root ::= \"a", "the end of a literal"),
            ("a ::= \"a\"", "no rule named root"),
            ("root ::= b", "b is not defined"),
            ("root ::= \"a\"\nroot ::= \"b\"", "defined twice"),
            ("root ::= \"a\"{3,2}", "repetition"),
            ("root ::= (\"a\"", "line 1: expected )"),
            ("root\n::= \"\\q\"", "line 2: expected an escaped character"),
            ("root ::= [b-a]", "the end of a range"),
        ] {
            let error = ebnf_to_lark(text, 9).unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
        let deep = format!("root ::= {}", "(".repeat(1000));
        assert_eq!(ebnf_to_lark(&deep, 9), Err(GrammarError::TooDeep { depth: 10, limit: 9 }));
    }
}
