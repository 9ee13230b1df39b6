//! Encodes texts for `scripts/tokenizer_parity.py`.
//!
//! The argument is a GGUF file, or a folder with a `tokenizer.json`. A line of standard input is a text as
//! a JSON string; a line of standard output is the JSON list of its ids, without begin and end tokens, and
//! the text that the ids decode to: `{"ids": [..], "text": ".."}`, or `{"error": ".."}`.

use std::error::Error;
use std::io::{BufRead, BufWriter, Write, stdin, stdout};
use std::path::PathBuf;

use models::text::{GgufVocabulary, Tokenizer};
use models::weights::GgufFile;
use serde_json::json;

fn main() -> Result<(), Box<dyn Error>> {
    let path = std::env::args_os().nth(1).map(PathBuf::from).ok_or("which tokenizer?")?;
    let tokenizer = if path.is_dir() {
        Tokenizer::from_directory(&path)?
    } else {
        let file = GgufFile::open(&path)?;
        Tokenizer::from_gguf(&GgufVocabulary::from_metadata(file.metadata())?)?
    };
    let mut output = BufWriter::new(stdout().lock());
    for line in stdin().lock().lines() {
        let text: String = serde_json::from_str(&line?)?;
        let encoded = match tokenizer.encode(&text, false) {
            Ok(ids) => json!({ "text": tokenizer.decode(&ids, false), "ids": ids }),
            Err(error) => json!({ "error": error.to_string() }),
        };
        writeln!(output, "{encoded}")?;
    }
    Ok(())
}
