//! What a cache is built with.

use crate::error::CacheError;

/// How a cache is laid out and what it evicts first.
///
/// ```
/// use radix_cache::{CacheConfig, RadixCache};
///
/// let cache = RadixCache::new(CacheConfig::default().page_size(32))?;
/// assert_eq!(cache.page_size(), 32);
/// # Ok::<(), radix_cache::CacheError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub struct CacheConfig {
    pub(crate) page_size: usize,
    pub(crate) policy: Policy,
    pub(crate) hash_seed: u64,
    pub(crate) events: usize,
    pub(crate) host: Option<HostTier>,
    pub(crate) window: Option<usize>,
}

impl Default for CacheConfig {
    /// Pages of 16 tokens, least recently used first.
    fn default() -> Self {
        Self {
            page_size: 16,
            policy: Policy::default(),
            hash_seed: 0,
            events: 0,
            host: None,
            window: None,
        }
    }
}

impl CacheConfig {
    /// Tokens a page holds: a power of two between 1 and 512.
    pub fn page_size(mut self, tokens: usize) -> Self {
        self.page_size = tokens;
        self
    }

    /// Which unlocked leaf loses its tail first.
    pub fn policy(mut self, policy: Policy) -> Self {
        self.policy = policy;
        self
    }

    /// Seeds the hash that finds a child by its first page. It decides neither what matches nor
    /// what is evicted, only which prompts collide in the table; a service whose users are
    /// not trusted sets a secret one, so that nobody can write prompts that slow it down.
    pub fn hash_seed(mut self, seed: u64) -> Self {
        self.hash_seed = seed;
        self
    }

    /// Tells of every change, and keeps at most so many events until they are
    /// [taken](crate::RadixCache::drain_events). None by default; then nothing is hashed.
    /// Costs 8 bytes a page, and a hash of each page that is inserted.
    pub fn events(mut self, capacity: usize) -> Self {
        self.events = capacity;
        self
    }

    /// Adds a second tier in the memory of the host. None by default. Not together with a
    /// [windowed group](Self::windowed_group), whose pages no transfer copies.
    pub fn host_tier(mut self, tier: HostTier) -> Self {
        self.host = Some(tier);
        self
    }

    /// Adds a second page group, of layers whose tokens attend to the last `window` positions,
    /// their own included: the *windowed group*. None by default. Not together with a
    /// [host tier](Self::host_tier).
    ///
    /// Each cached position (one page of tokens) has a page of the full group, and may have one of
    /// the windowed group.
    ///
    /// - A match of `L` tokens is valid if every page that overlaps the positions from
    ///   `L - (window - 1)` up to `L` is there, from 0 if that is earlier: what the next token
    ///   attends to. [`probe`](crate::RadixCache::probe) and
    ///   [`acquire`](crate::RadixCache::acquire) find the longest valid one, and
    ///   [`windowed_pages`](crate::RadixCache::windowed_pages) names its windowed pages.
    /// - A lock holds all full pages of its prefix, and the windowed pages of the window in front
    ///   of its end. What falls out of it when [`insert`](crate::RadixCache::insert) moves the
    ///   end can be evicted, but stays for now.
    /// - [`put_windowed`](crate::RadixCache::put_windowed) hands over the windowed pages of what
    ///   was inserted, as far back as the caller still has them.
    /// - [`evict`](crate::RadixCache::evict) frees full pages, and the windowed pages of their
    ///   positions [with them](crate::RadixCache::take_freed_windowed);
    ///   [`evict_windowed`](crate::RadixCache::evict_windowed) frees windowed pages alone.
    ///
    /// Costs 8 bytes a full page and 92 bytes a windowed page, and the room that growing vectors
    /// keep in reserve.
    ///
    /// ```
    /// use radix_cache::{CacheConfig, Namespace, PageId, RadixCache};
    ///
    /// let config = CacheConfig::default().page_size(4).windowed_group(8);
    /// let mut cache = RadixCache::new(config)?;
    /// let prompt: Vec<u32> = (0..16).collect();
    /// let lock = cache.acquire(Namespace::tenant(0), &prompt, &mut Vec::new())?.lock;
    ///
    /// // All full pages, and windowed ones as far back as the engine still has them.
    /// cache.insert(lock, &prompt, &[0, 1, 2, 3].map(PageId), &mut Vec::new())?;
    /// cache.put_windowed(lock, &[72, 73].map(PageId), &mut Vec::new())?;
    /// cache.release(lock)?;
    ///
    /// // The next token attends to seven positions before it: two pages.
    /// assert_eq!(cache.probe(Namespace::tenant(0), &prompt).tokens, 16);
    /// // Nothing shorter can be used, for its window is not there.
    /// assert_eq!(cache.probe(Namespace::tenant(0), &prompt[..12]).tokens, 0);
    /// # Ok::<(), radix_cache::CacheError>(())
    /// ```
    pub fn windowed_group(mut self, window: usize) -> Self {
        self.window = Some(window);
        self
    }

    /// Whether anything asks how often a page was matched.
    pub(crate) fn counts_hits(&self) -> bool {
        let on_host = self.host.is_some_and(|tier| {
            tier.policy.counts_hits() || matches!(tier.write, WritePolicy::ThroughAfterHits(_))
        });
        self.policy.counts_hits() || on_host
    }

    /// Whether anything asks when a page was inserted.
    pub(crate) fn counts_age(&self) -> bool {
        let on_host = self.host.is_some_and(|tier| tier.policy == Policy::Fifo);
        self.policy == Policy::Fifo || on_host
    }

    pub(crate) fn check(&self) -> Result<(), CacheError> {
        if !self.page_size.is_power_of_two() || self.page_size > 512 {
            return Err(CacheError::PageSize { page_size: self.page_size });
        }
        if self.window == Some(0) {
            return Err(CacheError::EmptyWindow);
        }
        if self.window.is_some() && self.host.is_some() {
            return Err(CacheError::WindowWithHostTier);
        }
        Ok(())
    }
}

/// Which unlocked leaf is evicted first. Each policy is a small key; smaller goes first.
///
/// Uses are [`acquire`](crate::RadixCache::acquire), [`insert`](crate::RadixCache::insert) and
/// [`release`](crate::RadixCache::release), and count for the whole prefix. Hits are matches by
/// `acquire` alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum Policy {
    /// The one that nobody has used for longest. Right for most traffic.
    #[default]
    Lru,
    /// The one with the fewest hits; among equals, the one unused for longest. Keeps system
    /// prompts through bursts of unrelated traffic, and forgets slowly what is out of fashion.
    Lfu,
    /// The one that was inserted first.
    Fifo,
    /// The one that was used last. Right for cyclic scans that are larger than the cache.
    Mru,
    /// The one of the lowest [`Retention::priority`](crate::Retention::priority); among equals,
    /// the one unused for longest.
    Priority,
    /// The one unused for longest among those never hit since they were inserted; after those,
    /// among the others. A stream of prompts that never come back can't displace those that do.
    SegmentedLru,
}

impl Policy {
    /// Every policy, for those who compare them.
    pub const ALL: [Self; 6] =
        [Self::Lru, Self::Lfu, Self::Fifo, Self::Mru, Self::Priority, Self::SegmentedLru];

    pub(crate) fn counts_hits(self) -> bool {
        matches!(self, Self::Lfu | Self::SegmentedLru)
    }
}

/// The host's part of a cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct HostTier {
    pub(crate) pages: u32,
    pub(crate) policy: Policy,
    pub(crate) write: WritePolicy,
}

impl HostTier {
    /// Room for so many pages, least recently used first, written through.
    pub fn new(pages: u32) -> Self {
        Self { pages, policy: Policy::default(), write: WritePolicy::default() }
    }

    /// Which pages the host loses first. [Retained](crate::Retention::until) ones go last there too.
    pub fn policy(mut self, policy: Policy) -> Self {
        self.policy = policy;
        self
    }

    /// Which pages are copied to it, and when.
    pub fn write(mut self, write: WritePolicy) -> Self {
        self.write = write;
        self
    }
}

/// When pages are copied to the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum WritePolicy {
    /// As soon as they are [saved](crate::RadixCache::save). Evicting them then costs nothing.
    #[default]
    Through,
    /// When they are [saved](crate::RadixCache::save) after so many hits, which spares the copies of
    /// prompts that never come back.
    ThroughAfterHits(u32),
    /// When they are [demoted](crate::RadixCache::demote), which spares all copies but those of pages
    /// that have to go.
    Back,
}
