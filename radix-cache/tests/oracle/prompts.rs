//! Prompts that collide: they share pages with what is cached, and differ in a token or not at all.

use radix_cache::{Namespace, Token};

use crate::choices::Choices;
use crate::drive::{Driver, LONGEST_RUN};

impl Driver {
    /// Overwrites the start of a run with something that is cached behind a hold already, on the
    /// device or on the host.
    pub(crate) fn follow(&self, choices: &mut dyn Choices, hold: usize, tokens: &mut [Token]) {
        let hold = &self.holds[hold];
        let entries = self.model.entries.iter();
        let behind: Vec<&[Token]> = entries
            .filter(|entry| entry.namespace == hold.namespace)
            .filter_map(|entry| entry.prefix.strip_prefix(&hold.prefix[..]))
            .collect();
        if !behind.is_empty() {
            let followed = behind[choices.below(behind.len())];
            let length = followed.len().min(tokens.len());
            tokens[..length].copy_from_slice(&followed[..length]);
        }
    }

    /// A prompt that often shares pages with what is cached, and often ends inside a page.
    pub(crate) fn prompt(&self, choices: &mut dyn Choices) -> (Namespace, Vec<Token>) {
        const NAMESPACES: [Namespace; 3] =
            [Namespace::tenant(0), Namespace::tenant(1), Namespace::tenant(1).salted(1)];
        let namespace = NAMESPACES[choices.below(NAMESPACES.len())];
        let mut tokens = Vec::new();
        if !self.model.entries.is_empty() && choices.one_in(2) {
            let entry = &self.model.entries[choices.below(self.model.entries.len())];
            tokens.extend_from_slice(&entry.prefix);
        }
        let more = choices.below(LONGEST_RUN);
        tokens.extend(random_pages(choices, self.setup.page_size, more));
        let cut = choices.below(self.setup.page_size);
        tokens.truncate(tokens.len().saturating_sub(cut));
        (namespace, tokens)
    }
}

/// Pages over two tokens that differ in their first token, their last one or not at all.
pub(crate) fn random_pages(
    choices: &mut dyn Choices,
    page_size: usize,
    count: usize,
) -> Vec<Token> {
    let mut tokens = vec![0; page_size * count];
    for page in tokens.chunks_mut(page_size) {
        match choices.below(4) {
            0 => page[0] = 1,
            1 => page[page_size - 1] = 1,
            _ => {}
        }
    }
    tokens
}
