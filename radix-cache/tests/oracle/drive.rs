//! Drives the tree and the naive cache through the same random operations and compares
//! everything that can be seen after each.

use std::collections::HashMap;

use radix_cache::{CacheConfig, CacheError, LockId, Namespace, PageId, Policy, RadixCache};
use radix_cache::{HostTier, Retention, Tier, Token, WritePolicy};

use crate::choices::Choices;
use crate::follower::Follower;
use crate::model::{Hold, Model};
use crate::prompts::random_pages;
use crate::transfers::Transfers;
use crate::windows::WindowMemory;

/// What is compared.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setup {
    pub(crate) page_size: usize,
    pub(crate) policy: Policy,
    /// Whether somebody follows the events.
    pub(crate) events: bool,
    /// The policies of the host, if there is a second tier.
    pub(crate) host: Option<(Policy, WritePolicy)>,
    /// The window of the second page group, in tokens, if there is one.
    pub(crate) window: Option<usize>,
}

impl Setup {
    fn config(self) -> CacheConfig {
        let config = CacheConfig::default().page_size(self.page_size).policy(self.policy);
        let config = if self.events { config.events(1_000) } else { config };
        let config = match self.window {
            Some(window) => config.windowed_group(window),
            None => config,
        };
        match self.host {
            Some((policy, write)) => {
                config.host_tier(HostTier::new(HOST_POOL as u32).policy(policy).write(write))
            }
            None => config,
        }
    }
}

/// Few pages, so that the naive cache stays quick and the pool is short.
const POOL: u32 = 48;
pub(crate) const HOST_POOL: usize = 40;
pub(crate) const LONGEST_RUN: usize = 6;
const MOST_HOLDS: usize = 6;

pub(crate) struct Driver {
    pub(crate) cache: RadixCache,
    pub(crate) setup: Setup,
    pub(crate) model: Model,
    pub(crate) locks: Vec<LockId>,
    pub(crate) holds: Vec<Hold>,
    dead: Vec<LockId>,
    pub(crate) free: Vec<PageId>,
    follower: Follower,
    pub(crate) transfers: Transfers,
    pub(crate) windowed: WindowMemory,
    /// What the page of the device holds: the prefix that its KV was computed for.
    pub(crate) memory: HashMap<PageId, (Namespace, Vec<Token>)>,
}

/// The first thing that differed.
pub(crate) type Outcome = Result<(), String>;

macro_rules! same {
    ($left:expr, $right:expr, $what:expr) => {
        let (left, right) = ($left, $right);
        if left != right {
            return Err(format!("{}: the cache has {left:?}, the model {right:?}", $what));
        }
    };
}

pub(crate) use same;

impl Driver {
    pub(crate) fn new(setup: Setup) -> Self {
        let host_policy = setup.host.map_or(Policy::Lru, |(policy, _)| policy);
        let mut model = Model::new(setup.page_size, setup.policy, host_policy);
        model.windows.window = setup.window;
        Self {
            cache: RadixCache::new(setup.config()).expect("the page size is valid"),
            setup,
            model,
            locks: Vec::new(),
            holds: Vec::new(),
            dead: Vec::new(),
            free: (0..POOL).map(PageId).collect(),
            follower: Follower::default(),
            transfers: Transfers::default(),
            windowed: WindowMemory::new(),
            memory: HashMap::new(),
        }
    }

    /// Runs so many operations.
    pub(crate) fn run(&mut self, choices: &mut dyn Choices, operations: usize) -> Outcome {
        for operation in 0..operations {
            if !choices.any_left() {
                break;
            }
            self.step(choices)
                .and_then(|()| self.compare())
                .map_err(|error| format!("operation {operation}: {error}"))?;
        }
        Ok(())
    }

    fn step(&mut self, choices: &mut dyn Choices) -> Outcome {
        if self.setup.host.is_some() && choices.one_in(3) {
            return self.step_transfers(choices);
        }
        if self.setup.window.is_some() && choices.one_in(4) {
            return self.step_windows(choices);
        }
        match choices.below(32) {
            0..3 => self.probe(choices),
            3..9 => self.acquire(choices),
            9..17 => self.insert(choices),
            17 => self.fork(choices),
            18..23 => self.release(choices),
            23 => self.release_and_drop(choices),
            24..27 => self.evict(choices),
            27 => self.retain(choices),
            28 => self.advance(choices),
            29 | 30 => self.misuse(choices),
            _ if choices.one_in(4) => self.reset(),
            _ if choices.one_in(4) => self.clear(),
            _ if choices.one_in(2) => self.restore(),
            _ => self.probe(choices),
        }
    }

    fn compare(&mut self) -> Outcome {
        let counts = self.cache.counts();
        let locked = self.model.locked(&self.all_holds());
        let total = self.model.entries.iter().filter(|entry| entry.page.is_some()).count();
        same!(counts.total, total, "total");
        same!(counts.locked, locked, "locked");
        same!(counts.evictable, total - locked, "evictable");
        let on_host = self.model.entries.iter().filter(|entry| entry.host).count();
        same!(counts.host, on_host, "pages on the host");
        let owned = self.free.len() + counts.total + self.transfers.loading_pages();
        same!(owned, POOL as usize, "capacity");
        for (lock, hold) in self.locks.iter().zip(&self.holds) {
            same!(self.cache.locked_tokens(*lock), Ok(hold.prefix.len()), "length of a lock");
        }
        if self.setup.window.is_some() {
            self.compare_windows()?;
        }
        if self.setup.events {
            for event in self.cache.drain_events() {
                self.follower.apply(event)?;
            }
            for tier in [Tier::Device, Tier::Host] {
                let known = self.follower.prefixes(tier);
                same!(known, self.model.prefixes(tier), format!("what is known of the {tier:?}"));
            }
            let known = self.follower.windowed_prefixes();
            same!(known, self.model.windowed_prefixes(), "what is known of the windowed group");
        }
        self.cache.check_invariants().map_err(|violation| violation.to_string())
    }

    /// A cache that is restored evicts what this one would, and a dump tells all of it.
    fn restore(&mut self) -> Outcome {
        let snapshot = self.cache.snapshot();
        let mut restored = RadixCache::restore(self.setup.config(), &snapshot).map_err(text)?;
        restored.check_invariants().map_err(|violation| violation.to_string())?;
        let mut model = self.model.restarted();
        same!(restored.counts().evictable, model.entries.len(), "restored pages");
        while restored.counts().windowed.total > 0 {
            let mut freed = Vec::new();
            restored.evict_windowed(1, &mut freed);
            same!(freed, model.evict_windowed(1, &[]), "windowed eviction after a restart");
        }
        while restored.counts().total > 0 {
            let mut freed = Vec::new();
            restored.evict(1, &mut freed);
            same!(freed, model.evict(1, &[]), "eviction after a restart");
        }
        if self.setup.events {
            let dump = self.cache.dump_events();
            let follower = Follower::from_dump(dump, self.cache.next_event())?;
            for tier in [Tier::Device, Tier::Host] {
                let known = follower.prefixes(tier);
                same!(known, self.model.prefixes(tier), format!("a dump of the {tier:?}"));
            }
            let known = follower.windowed_prefixes();
            same!(known, self.model.windowed_prefixes(), "a dump of the windowed group");
        }
        Ok(())
    }

    fn probe(&mut self, choices: &mut dyn Choices) -> Outcome {
        let (namespace, tokens) = self.prompt(choices);
        let expected = self.model.matching(namespace, &tokens).len() * self.setup.page_size;
        let found = self.cache.probe(namespace, &tokens);
        same!(found.tokens, expected, "probe");
        let expected = self.model.loadable(namespace, &tokens) * self.setup.page_size;
        same!(found.host_tokens, expected, "probe of the host");
        if self.setup.events {
            let (page_size, window) = (self.setup.page_size, self.setup.window);
            let known = self.follower.matching(namespace, &tokens, page_size, window);
            same!(found.tokens, known, "what a follower would route by");
        }
        Ok(())
    }

    fn acquire(&mut self, choices: &mut dyn Choices) -> Outcome {
        if self.locks.len() >= MOST_HOLDS {
            return self.release(choices);
        }
        let (namespace, tokens) = self.prompt(choices);
        let expected = self.model.matching(namespace, &tokens);
        let mut pages = Vec::new();
        let acquired = self.cache.acquire(namespace, &tokens, &mut pages).map_err(text)?;
        same!(&pages, &expected, "acquired pages");
        same!(acquired.tokens, pages.len() * self.setup.page_size, "acquired tokens");
        let prefix = tokens[..acquired.tokens].to_vec();
        for (number, page) in pages.iter().enumerate() {
            let right = (namespace, prefix[..(number + 1) * self.setup.page_size].to_vec());
            same!(self.memory.get(page), Some(&right), "KV that is read");
        }
        self.model.touch(namespace, &prefix);
        self.model.hit(namespace, &prefix);
        let hold = Hold::new(namespace, &prefix);
        self.model.hit_window(&hold);
        self.read_match(acquired.lock, &hold)?;
        self.locks.push(acquired.lock);
        self.holds.push(hold);
        Ok(())
    }

    fn insert(&mut self, choices: &mut dyn Choices) -> Outcome {
        let Some(index) = self.pick(choices) else {
            return self.acquire(choices);
        };
        let length = choices.below(LONGEST_RUN + 1);
        if self.free.len() < length {
            self.evict_pages(length - self.free.len())?;
        }
        let length = length.min(self.free.len());
        let mut tokens = random_pages(choices, self.setup.page_size, length);
        if choices.one_in(3) {
            self.follow(choices, index, &mut tokens);
        }
        let own: Vec<PageId> = self.free.split_off(self.free.len() - length);
        let before_insert = self.holds[index].clone();
        let before = before_insert.prefix.len();
        let present = self.model.insert(&mut self.holds[index], &tokens, &own);
        let mut canonical = vec![PageId(u32::MAX)];
        let lock = self.locks[index];
        let inserted = self.cache.insert(lock, &tokens, &own, &mut canonical).map_err(text)?;
        self.model.move_window(&before_insert, &self.holds[index]);
        same!(&canonical[1..], &present[..], "canonical pages");
        same!(inserted.present_pages, present.len(), "present pages");
        same!(inserted.new_pages, length - present.len(), "new pages");
        self.free.extend_from_slice(&own[..inserted.present_pages]);
        for (number, page) in own.iter().enumerate() {
            let end = before + (number + 1) * self.setup.page_size;
            let computed_for = self.holds[index].prefix[..end].to_vec();
            self.memory.insert(*page, (self.holds[index].namespace, computed_for));
        }

        let hold = &self.holds[index];
        let expected = self.model.matching(hold.namespace, &hold.prefix).len();
        let found = self.cache.probe(hold.namespace, &hold.prefix).tokens;
        same!(found, expected * self.setup.page_size, "probe of what was inserted");
        if self.setup.window.is_some() && !choices.one_in(4) {
            self.put(choices, index)?;
        }
        Ok(())
    }

    fn fork(&mut self, choices: &mut dyn Choices) -> Outcome {
        let Some(index) = self.pick(choices) else {
            return Ok(());
        };
        let fork = self.cache.fork(self.locks[index]).map_err(text)?;
        self.locks.push(fork);
        self.holds.push(self.holds[index].clone());
        Ok(())
    }

    fn release(&mut self, choices: &mut dyn Choices) -> Outcome {
        let Some(index) = self.pick(choices) else {
            return Ok(());
        };
        let (lock, hold) = self.forget(index);
        self.cache.release(lock).map_err(text)?;
        self.model.touch(hold.namespace, &hold.prefix);
        self.model.close_window(&hold, true);
        Ok(())
    }

    fn release_and_drop(&mut self, choices: &mut dyn Choices) -> Outcome {
        let Some(index) = self.pick(choices) else {
            return Ok(());
        };
        let (lock, hold) = self.forget(index);
        let mut freed = Vec::new();
        let count = self.cache.release_and_drop(lock, &mut freed).map_err(text)?;
        same!(count, freed.len(), "dropped pages");
        self.model.close_window(&hold, false);
        let expected = self.model.drop_path(&hold, &self.all_holds());
        self.take_back(freed, expected, "dropped")
    }

    fn evict(&mut self, choices: &mut dyn Choices) -> Outcome {
        let pages = 1 + choices.below(4);
        self.evict_pages(pages)
    }

    fn evict_pages(&mut self, pages: usize) -> Outcome {
        let mut freed = Vec::new();
        let count = self.cache.evict(pages, &mut freed);
        same!(count, freed.len(), "number of evicted pages");
        let expected = self.model.evict(pages, &self.all_holds());
        self.take_back(freed, expected, "evicted")
    }

    fn clear(&mut self) -> Outcome {
        let mut freed = Vec::new();
        self.cache.clear(&mut freed);
        let holds = self.all_holds();
        self.model.evict_host(usize::MAX, &holds);
        let expected = self.model.evict(usize::MAX, &holds);
        let lost = self.model.evict_windowed(usize::MAX, &holds);
        self.model.lose(lost);
        self.take_back(freed, expected, "cleared")
    }

    fn reset(&mut self) -> Outcome {
        let mut freed = Vec::new();
        self.cache.reset(&mut freed);
        self.holds.clear();
        self.dead.append(&mut self.locks);
        self.free.extend(self.transfers.reset());
        self.model.evict_host(usize::MAX, &[]);
        let expected = self.model.evict(usize::MAX, &[]);
        self.take_back(freed, expected, "reset")
    }

    fn retain(&mut self, choices: &mut dyn Choices) -> Outcome {
        let Some(index) = self.pick(choices) else {
            return Ok(());
        };
        let hold = &mut self.holds[index];
        hold.priority = choices.below(7) as i32 - 3;
        hold.until = self.model.now + choices.below(4) as u64;
        let retention = Retention::default().priority(hold.priority).until(hold.until);
        self.model.raise(&self.holds[index]);
        self.model.raise_window(&self.holds[index]);
        self.cache.retain(self.locks[index], retention).map_err(text)
    }

    fn advance(&mut self, choices: &mut dyn Choices) -> Outcome {
        self.model.now += choices.below(3) as u64;
        self.cache.advance(self.model.now);
        Ok(())
    }

    /// Calls that have to be refused, and to change nothing.
    fn misuse(&mut self, choices: &mut dyn Choices) -> Outcome {
        if !self.dead.is_empty() {
            let lock = self.dead[choices.below(self.dead.len())];
            let mut pages = Vec::new();
            let unknown = CacheError::UnknownLock { lock };
            same!(self.cache.release(lock), Err(unknown.clone()), "second release");
            same!(self.cache.locked_tokens(lock), Err(unknown.clone()), "length of a dead lock");
            same!(self.cache.fork(lock), Err(unknown.clone()), "fork of a dead lock");
            let inserted = self.cache.insert(lock, &[], &[], &mut pages);
            same!(inserted.err(), Some(unknown.clone()), "insertion through a dead lock");
            let dropped = self.cache.release_and_drop(lock, &mut pages);
            same!(dropped, Err(unknown), "drop through a dead lock");
        }
        let Some(index) = self.pick(choices) else {
            return Ok(());
        };
        let tokens = vec![0; self.setup.page_size + 1];
        let ragged = CacheError::RaggedRun {
            tokens: tokens.len(),
            pages: 1,
            page_size: self.setup.page_size,
        };
        let inserted = self.cache.insert(self.locks[index], &tokens, &[PageId(0)], &mut Vec::new());
        same!(inserted.err(), Some(ragged), "insertion of a ragged run");
        Ok(())
    }

    /// Everything that may not be evicted: locks, and what is being copied.
    pub(crate) fn all_holds(&self) -> Vec<Hold> {
        self.holds.iter().chain(self.transfers.holds()).cloned().collect()
    }

    pub(crate) fn take_back(
        &mut self,
        freed: Vec<PageId>,
        expected: Vec<PageId>,
        what: &str,
    ) -> Outcome {
        let sorted = |pages: &[PageId]| {
            let mut pages = pages.to_vec();
            pages.sort();
            pages
        };
        same!(sorted(&freed), sorted(&expected), what);
        self.free.extend(freed);
        self.take_back_windowed()
    }

    fn forget(&mut self, index: usize) -> (LockId, Hold) {
        let lock = self.locks.swap_remove(index);
        self.dead.push(lock);
        (lock, self.holds.swap_remove(index))
    }

    pub(crate) fn pick(&self, choices: &mut dyn Choices) -> Option<usize> {
        (!self.locks.is_empty()).then(|| choices.below(self.locks.len()))
    }
}

pub(crate) fn text(error: CacheError) -> String {
    format!("refused: {error}")
}
