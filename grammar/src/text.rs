//! What is checked in the text of a Lark grammar before it is parsed.

use crate::error::GrammarError;

/// Checks that brackets don't nest deeper than a parser may recurse, and that nothing is used that
/// hides text from the answer: a sample could not be taken back to the tokens in front of such
/// text.
pub(crate) fn check_lark(text: &str, max_depth: usize) -> Result<(), GrammarError> {
    let mut rest = text;
    let (mut depth, mut word) = (0_usize, "");
    while let Some(character) = rest.chars().next() {
        let length = match character {
            '"' => literal_length(rest, '"'),
            '/' if rest.starts_with("//") => rest.find('\n').unwrap_or(rest.len()),
            '/' => literal_length(rest, '/'),
            c if c.is_alphanumeric() || c == '_' => {
                let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_');
                word = rest.get(..end.unwrap_or(rest.len())).unwrap_or_default();
                word.len()
            }
            c => c.len_utf8(),
        };
        match character {
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth = depth.saturating_sub(1),
            '=' if word == "stop" || word == "stop_capture" => {
                return Err(GrammarError::Unsupported {
                    pointer: "the attributes of a rule".to_owned(),
                    keyword: word.to_owned(),
                    detail: ": suffix is".to_owned(),
                });
            }
            c if c.is_alphanumeric() || c == '_' || c.is_whitespace() => {}
            _ => word = "",
        }
        if depth > max_depth {
            return Err(GrammarError::TooDeep { depth, limit: max_depth });
        }
        rest = rest.get(length.max(character.len_utf8())..).unwrap_or_default();
    }
    Ok(())
}

/// Bytes of a literal that begins here, with its delimiters; one where it doesn't end on its line.
fn literal_length(text: &str, delimiter: char) -> usize {
    let mut is_escaped = false;
    for (at, character) in text.char_indices().skip(1) {
        match character {
            '\n' => return 1,
            _ if is_escaped => is_escaped = false,
            '\\' => is_escaped = true,
            c if c == delimiter => return at + c.len_utf8(),
            _ => {}
        }
    }
    1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn brackets_count_outside_of_literals_only() {
        assert_eq!(check_lark(r#"start: "((((" /[(]\/(((/ // (((("#, 2), Ok(()));
        let deep = check_lark("start: (((a)))", 2);
        assert_eq!(deep, Err(GrammarError::TooDeep { depth: 3, limit: 2 }));
    }

    #[test]
    fn hidden_text_is_refused() {
        let hides = "start: text \"!\"\ntext[stop = /x/]: /.*/";
        assert!(matches!(check_lark(hides, 9), Err(GrammarError::Unsupported { .. })));
        assert_eq!(check_lark("stop: \"stop=\"\nstart: stop", 9), Ok(()));
    }
}
