//! Request traces in Mooncake's format.

use std::collections::HashSet;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::{env, fs};

use radix_cache::Token;
use serde::Deserialize;

/// Tokens one id of the trace stands for.
pub(crate) const TOKENS_AN_ID: usize = 512;

/// One line of the trace.
#[derive(Debug, Deserialize)]
pub(crate) struct Request {
    /// Prompt tokens.
    pub(crate) input_length: usize,
    /// One id for each 512 prompt tokens; equal ids mean equal prefixes.
    pub(crate) hash_ids: Vec<u64>,
}

impl Request {
    /// The prompt: each id stands for 512 tokens of its own.
    pub(crate) fn expand(&self, tokens: &mut Vec<Token>) {
        tokens.clear();
        for id in &self.hash_ids {
            tokens.extend((0..TOKENS_AN_ID as u64).map(|position| {
                let mixed = (id << 9 | position).wrapping_mul(0x9E37_79B9_7F4A_7C15);
                (mixed >> 47) as Token
            }));
        }
        tokens.truncate(self.input_length);
    }
}

/// The trace that comes with the sources.
const EXCERPT: &str = include_str!("../../data/mooncake_conversation_excerpt.jsonl");

/// The trace that `UNDERSTORY_TRACE` names, if it does.
pub(crate) fn path() -> Option<PathBuf> {
    env::var_os("UNDERSTORY_TRACE").map(PathBuf::from)
}

/// A trace's requests; without a path, those of the excerpt that comes with the sources.
pub(crate) fn read(path: Option<&Path>) -> Result<Vec<Request>, Box<dyn Error>> {
    let text = path.map_or_else(|| Ok(EXCERPT.to_owned()), fs::read_to_string)?;
    text.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
}

/// Different ids in a trace.
pub(crate) fn unique_ids(requests: &[Request]) -> usize {
    requests.iter().flat_map(|request| &request.hash_ids).collect::<HashSet<_>>().len()
}
