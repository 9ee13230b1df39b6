//! Names in messages.

use std::fmt;

/// A text out of a file or a request as messages show it: its beginning, if it is long.
pub struct Clip<'a>(&'a str);

/// See [`Clip`].
pub fn clip(text: &str) -> Clip<'_> {
    Clip(text)
}

impl Clip<'_> {
    /// Characters; longer than any name or reason that means something.
    const LIMIT: usize = 200;

    fn parts(&self) -> (&str, &'static str) {
        match self.0.char_indices().nth(Self::LIMIT) {
            Some((end, _)) => (&self.0[..end], "..."),
            None => (self.0, ""),
        }
    }
}

impl fmt::Display for Clip<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (text, dots) = self.parts();
        write!(f, "{text}{dots}")
    }
}

impl fmt::Debug for Clip<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (text, dots) = self.parts();
        write!(f, "{text:?}{dots}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_text_is_cut_between_characters_and_short_text_is_whole() {
        assert_eq!(clip("né").to_string(), "né");
        assert_eq!(format!("{:?}", clip("a\n")), "\"a\\n\"");
        let long = clip(&"é".repeat(1_000_000)).to_string();
        assert_eq!(long, format!("{}...", "é".repeat(Clip::LIMIT)));
    }
}
