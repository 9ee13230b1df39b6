//! What a router knows that sees nothing but events.

use std::collections::{BTreeSet, HashMap};

use radix_cache::{Change, Event, Namespace, Tier, Token, page_hash};

/// Prefixes by the tier they are on and the hash of their last page.
#[derive(Debug, Default)]
pub(crate) struct Follower {
    stored: HashMap<(Tier, u64), (Namespace, Vec<Token>)>,
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
                        .get(&(stored.tier, parent))
                        .filter(|(owner, _)| *owner == stored.namespace);
                    prefix.clone_from(&known.ok_or("stored behind an unknown page")?.1);
                }
                if stored.start != prefix.len() {
                    return Err(format!("stored at {} behind {prefix:?}", stored.start));
                }
                let mut seed = stored.parent.unwrap_or(stored.namespace.0);
                let pages = stored.tokens.chunks(stored.page_size);
                if pages.len() != stored.hashes.len() {
                    return Err("as many hashes as pages are needed".to_owned());
                }
                for (page, hash) in pages.zip(stored.hashes) {
                    seed = page_hash(seed, page);
                    prefix.extend_from_slice(page);
                    let known =
                        self.stored.insert((stored.tier, hash), (stored.namespace, prefix.clone()));
                    if hash != seed || known.is_some() {
                        return Err(format!("stored {prefix:?} as {hash} instead of {seed}"));
                    }
                }
            }
            Change::Removed { namespace, tier, hashes, .. } => {
                for hash in hashes {
                    let gone = self.stored.remove(&(tier, hash));
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

    /// All prefixes it knows of on a tier.
    pub(crate) fn prefixes(&self, tier: Tier) -> BTreeSet<(Namespace, Vec<Token>)> {
        let there = self.stored.iter().filter(|((on, _), _)| *on == tier);
        there.map(|(_, prefix)| prefix.clone()).collect()
    }
}
