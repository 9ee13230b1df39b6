//! What a router knows that sees nothing but events.

use std::collections::{BTreeSet, HashMap};

use radix_cache::{Change, Event, Namespace, PageGroup, Tier, Token, page_hash};

/// Where a page is known to be, and its hash.
type Key = (Tier, PageGroup, u64);

/// Prefixes by the tier and group they are in and the hash of their last page.
#[derive(Debug, Default)]
pub(crate) struct Follower {
    stored: HashMap<Key, (Namespace, Vec<Token>)>,
    next: u64,
}

impl Follower {
    /// Starts from a dump.
    pub(crate) fn from_dump(dump: Vec<Event>, next: u64) -> Result<Self, String> {
        let mut follower = Self::default();
        for event in dump {
            if event.sequence != next {
                return Err(format!("a dump before event {next} says {}", event.sequence));
            }
            follower.next = next;
            follower.apply(event)?;
        }
        follower.next = next;
        Ok(follower)
    }

    pub(crate) fn apply(&mut self, event: Event) -> Result<(), String> {
        if event.sequence != self.next {
            return Err(format!("event {} came instead of {}", event.sequence, self.next));
        }
        self.next += 1;
        match event.change {
            Change::Stored(stored) => {
                let mut prefix = Vec::new();
                if let Some(parent) = stored.parent {
                    let known = self
                        .stored
                        .get(&(stored.tier, PageGroup::Full, parent))
                        .filter(|(owner, _)| *owner == stored.namespace);
                    prefix.clone_from(&known.ok_or("stored behind an unknown page")?.1);
                }
                if stored.start != prefix.len() {
                    return Err(format!("stored at {} behind {prefix:?}", stored.start));
                }
                let mut seed = stored.parent.unwrap_or_else(|| stored.namespace.seed());
                let pages = stored.tokens.chunks(stored.page_size);
                if pages.len() != stored.hashes.len() {
                    return Err("as many hashes as pages are needed".to_owned());
                }
                for (page, hash) in pages.zip(stored.hashes) {
                    seed = page_hash(seed, page);
                    prefix.extend_from_slice(page);
                    let key = (stored.tier, stored.group, hash);
                    let known = self.stored.insert(key, (stored.namespace, prefix.clone()));
                    if hash != seed || known.is_some() {
                        return Err(format!("stored {prefix:?} as {hash} instead of {seed}"));
                    }
                    if !self.stored.contains_key(&(stored.tier, PageGroup::Full, hash)) {
                        return Err(format!("stored {prefix:?} in the windowed group alone"));
                    }
                }
            }
            Change::Removed { namespace, tier, group, hashes } => {
                for hash in hashes {
                    let gone = self.stored.remove(&(tier, group, hash));
                    if self.stored.contains_key(&(tier, PageGroup::Windowed, hash)) {
                        return Err(format!("removed {hash} before its windowed page"));
                    }
                    if gone.is_none_or(|(owner, _)| owner != namespace) {
                        return Err(format!("removed {hash}, which was not there"));
                    }
                }
            }
            Change::Cleared => self.stored.clear(),
            other => return Err(format!("unknown change {other:?}")),
        }
        Ok(())
    }

    /// How many tokens of a prompt can be served, as far as it knows: whole pages of the full
    /// group, up to where the windowed group has the pages that the next token attends to.
    pub(crate) fn matching(
        &self,
        namespace: Namespace,
        tokens: &[Token],
        page_size: usize,
        window: Option<usize>,
    ) -> usize {
        let mut seed = namespace.seed();
        let pages = tokens.chunks_exact(page_size).map(|page| {
            seed = page_hash(seed, page);
            let in_group = |group| self.stored.contains_key(&(Tier::Device, group, seed));
            (in_group(PageGroup::Full), in_group(PageGroup::Windowed))
        });
        let pages: Vec<_> = pages.take_while(|(full, _)| *full).collect();
        let needed = window.map_or(0, |window| (window - 1).div_ceil(page_size));
        let is_valid = |end: &usize| {
            let window = &pages[end.saturating_sub(needed)..*end];
            window.iter().all(|(_, windowed)| *windowed)
        };
        (0..=pages.len()).rev().find(is_valid).unwrap_or(0) * page_size
    }

    /// All prefixes it knows of on a tier.
    pub(crate) fn prefixes(&self, tier: Tier) -> BTreeSet<(Namespace, Vec<Token>)> {
        self.prefixes_of(tier, PageGroup::Full)
    }

    /// All prefixes whose last page it knows to be in the windowed group.
    pub(crate) fn windowed_prefixes(&self) -> BTreeSet<(Namespace, Vec<Token>)> {
        self.prefixes_of(Tier::Device, PageGroup::Windowed)
    }

    fn prefixes_of(&self, tier: Tier, group: PageGroup) -> BTreeSet<(Namespace, Vec<Token>)> {
        let there = self.stored.iter().filter(|((on, of, _), _)| (*on, *of) == (tier, group));
        there.map(|(_, prefix)| prefix.clone()).collect()
    }
}
