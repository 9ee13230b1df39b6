//! One call, written as a JSON object with a name and arguments.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::json::{Event, JsonScanner, Kind, Malformed};

/// The names of the functions that may be called.
pub(super) type Names = Arc<BTreeSet<String>>;

/// Follows `{"name": "f", "arguments": {...}}`, in any order and with other members, character by
/// character. Arguments may be called parameters, and may be JSON in a string.
#[derive(Debug)]
pub(super) struct CallScanner {
    json: JsonScanner,
    names: Names,
    /// What a name, a key or arguments are cut from.
    raw: String,
    /// Where the key or value of the object that is being read begins, in bytes of `raw`.
    at: usize,
    member: Member,
    name: Option<String>,
    arguments: Arguments,
}

/// Which member of the object is being read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Member {
    Other,
    Name,
    Arguments,
}

#[derive(Debug, PartialEq, Eq)]
enum Arguments {
    /// Did not come yet.
    Missing,
    /// Came before the name.
    Held(String),
    /// Are being passed on, or have been.
    Told,
}

/// What a character has brought.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum News {
    /// Nothing to tell.
    None,
    /// The function is known, and its arguments begin: with this text.
    Begins { name: String, arguments: String },
    /// The character belongs to the arguments.
    Argument,
    /// The object has ended.
    Ended,
    /// The object has ended, and had not been told of before.
    Whole { name: String, arguments: String },
}

impl CallScanner {
    pub(super) fn new(names: Names) -> Self {
        Self {
            json: JsonScanner::new(),
            names,
            raw: String::new(),
            at: 0,
            member: Member::Other,
            name: None,
            arguments: Arguments::Missing,
        }
    }

    /// Whether the arguments are being read, and the function has been told.
    pub(super) fn is_in_arguments(&self) -> bool {
        self.arguments == Arguments::Told && self.member == Member::Arguments
    }

    /// Whether the function has been told.
    pub(super) fn has_begun(&self) -> bool {
        self.arguments == Arguments::Told
    }

    /// Takes the next character, of which the first is the object's brace.
    pub(super) fn push(&mut self, c: char) -> Result<News, Malformed> {
        let before = self.json.depth();
        let event = self.json.push(c)?;
        let is_told = self.is_in_arguments();
        if !is_told {
            self.raw.push(c);
        }
        let begins_at = self.raw.len().saturating_sub(c.len_utf8());
        match event {
            Event::Begins(kind) if before == 0 && kind != Kind::Object => Err(Malformed),
            Event::Begins(Kind::Key) if before == 1 => {
                self.at = begins_at;
                Ok(News::None)
            }
            Event::Begins(kind) if before == 1 => self.value_begins(kind, begins_at),
            Event::Ends(Kind::Key) if before == 1 => {
                let key = self.string()?;
                self.member = match &*key {
                    "name" if self.name.is_none() => Member::Name,
                    "arguments" | "parameters" if self.arguments == Arguments::Missing => {
                        Member::Arguments
                    }
                    // A second one leaves open which one is meant.
                    "name" | "arguments" | "parameters" => return Err(Malformed),
                    _ => Member::Other,
                };
                Ok(News::None)
            }
            Event::Ends(Kind::Object) if self.json.depth() == 0 => self.object_ends(),
            Event::Ends(kind) if self.json.depth() == 1 => self.value_ends(kind, is_told),
            _ => Ok(if is_told { News::Argument } else { News::None }),
        }
    }

    fn value_begins(&mut self, kind: Kind, at: usize) -> Result<News, Malformed> {
        self.at = at;
        match (self.member, kind) {
            (Member::Other, _) | (Member::Name | Member::Arguments, Kind::Text) => Ok(News::None),
            (Member::Arguments, Kind::Object) => match &self.name {
                Some(name) => {
                    self.arguments = Arguments::Told;
                    Ok(News::Begins { name: name.clone(), arguments: "{".to_owned() })
                }
                None => Ok(News::None),
            },
            _ => Err(Malformed),
        }
    }

    fn value_ends(&mut self, kind: Kind, is_told: bool) -> Result<News, Malformed> {
        let news = match (self.member, kind) {
            (Member::Name, Kind::Text) => {
                let name = self.string()?;
                if !self.names.contains(&name) {
                    return Err(Malformed);
                }
                self.name = Some(name);
                News::None
            }
            (Member::Arguments, Kind::Object) if is_told => News::Argument,
            (Member::Arguments, Kind::Object) => {
                let held = self.raw.get(self.at..).ok_or(Malformed)?;
                self.arguments = Arguments::Held(held.to_owned());
                News::None
            }
            (Member::Arguments, Kind::Text) => {
                let text = self.string()?;
                let is_object =
                    serde_json::from_str::<serde_json::Map<_, serde_json::Value>>(&text);
                self.arguments = Arguments::Held(is_object.map(|_| text).map_err(|_| Malformed)?);
                News::None
            }
            _ => News::None,
        };
        self.member = Member::Other;
        Ok(news)
    }

    fn object_ends(&mut self) -> Result<News, Malformed> {
        let arguments = match std::mem::replace(&mut self.arguments, Arguments::Told) {
            Arguments::Told => return Ok(News::Ended),
            Arguments::Held(arguments) => arguments,
            Arguments::Missing => "{}".to_owned(),
        };
        match self.name.take() {
            Some(name) => Ok(News::Whole { name, arguments }),
            None => {
                self.arguments = Arguments::Missing;
                Err(Malformed)
            }
        }
    }

    /// The string that ends here.
    fn string(&self) -> Result<String, Malformed> {
        let text = self.raw.get(self.at..).ok_or(Malformed)?;
        serde_json::from_str(text).map_err(|_| Malformed)
    }
}
