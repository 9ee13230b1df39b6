//! The small types that cross the crate's border.

use core::fmt;

/// A vocabulary id.
pub type Token = u32;

/// Where a page's KV is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Tier {
    /// In the memory of the device that computes.
    #[default]
    Device,
    /// In the memory of the host, from where it is loaded back before it is read.
    Host,
}

impl fmt::Display for Tier {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(if *self == Self::Device { "device" } else { "host" })
    }
}

/// A page group: layers that share a page table and a lifetime.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum PageGroup {
    /// Layers that attend to everything before them. Every cached position has its page.
    #[default]
    Full,
    /// Layers that attend to a [window](crate::CacheConfig::windowed_group).
    Windowed,
}

/// The number of a KV page in the pool of whoever owns the memory. The cache never looks inside.
/// [`u32::MAX`] stands for no page.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(transparent))]
pub struct PageId(pub u32);

impl PageId {
    /// No page: a table's entry whose positions have left the window.
    pub const NONE: Self = Self(u32::MAX);
}

impl fmt::Display for PageId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "page {}", self.0)
    }
}

/// Whose prefixes are shared: nothing matches across namespaces.
///
/// ```
/// use radix_cache::Namespace;
///
/// let shared = Namespace::tenant(7);
/// let private = shared.salted(0x5EED);
/// assert_ne!(shared, private);
/// assert_eq!((shared.to_string(), private.to_string()), ("7".into(), "7 salted 24301".into()));
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Namespace {
    /// The customer, user or adapter that owns the prefixes.
    pub tenant: u64,
    /// Divides a tenant's prefixes further: requests share only where their salts are equal. 0 for
    /// requests that share with the whole tenant.
    #[cfg_attr(feature = "serde", serde(default))]
    pub salt: u64,
}

impl Namespace {
    /// The prefixes that a whole tenant shares.
    #[must_use]
    pub const fn tenant(tenant: u64) -> Self {
        Self { tenant, salt: 0 }
    }

    /// The same tenant's prefixes under another salt.
    #[must_use]
    pub const fn salted(self, salt: u64) -> Self {
        Self { salt, ..self }
    }
}

impl fmt::Display for Namespace {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { tenant, salt } = self;
        match salt {
            0 => write!(formatter, "{tenant}"),
            _ => write!(formatter, "{tenant} salted {salt}"),
        }
    }
}

/// One hold on one prefix: everything from the root to the lock's end stays until it is released.
///
/// A lock is an object of its own. Its id is generational, so an id that was released, or that
/// was handed out before a [`reset`](crate::RadixCache::reset), is a typed error for ever and
/// never stands for a later lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LockId {
    pub(crate) index: u32,
    pub(crate) generation: u32,
}

impl fmt::Display for LockId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "lock {}.{}", self.index, self.generation)
    }
}

/// What [`probe`](crate::RadixCache::probe) found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Match {
    /// How many leading tokens are cached, with the windowed pages that the next token needs: a
    /// multiple of the page size.
    pub tokens: usize,
    /// How many tokens more are on the host alone and could be
    /// [loaded](crate::RadixCache::load): a multiple of the page size.
    pub host_tokens: usize,
}

/// What [`acquire`](crate::RadixCache::acquire) locked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "the lock holds its pages until it is released"]
#[non_exhaustive]
pub struct Acquired {
    /// The hold on the matched prefix, to be given back through
    /// [`release`](crate::RadixCache::release).
    pub lock: LockId,
    /// How many leading tokens the lock covers: a multiple of the page size.
    pub tokens: usize,
}

/// What [`insert`](crate::RadixCache::insert) took, and what it left to its caller.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[must_use = "the caller still owns the pages that were already present"]
#[non_exhaustive]
pub struct Inserted {
    /// How many leading pages of the run were cached before. The caller keeps its own copies of
    /// these: it frees them and points its page table at the canonical ones.
    pub present_pages: usize,
    /// How many pages the cache took over: the rest of the run.
    pub new_pages: usize,
}

/// Pages in the cache, by state. Exact after every call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counts {
    /// Pages that [`evict`](crate::RadixCache::evict) could free right now.
    pub evictable: usize,
    /// Pages below some lock's end.
    pub locked: usize,
    /// All pages of the device that the cache owns.
    pub total: usize,
    /// Pages with a copy on the host.
    pub host: usize,
    /// Pages of the windowed group; the others are of the full group.
    pub windowed: WindowedCounts,
}

/// Pages of the windowed group in the cache, by state. Exact after every call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct WindowedCounts {
    /// Pages that [`evict_windowed`](crate::RadixCache::evict_windowed) could free right now.
    pub evictable: usize,
    /// Pages in the window of some lock.
    pub locked: usize,
    /// All pages of the group that the cache owns.
    pub total: usize,
}

/// What is asked for a prefix beyond the time that it is locked. Never more than a wish: when
/// nothing else is left to evict, retained pages go too, so retention can't exhaust the pool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[must_use]
pub struct Retention {
    pub(crate) priority: i32,
    pub(crate) until: u64,
}

impl Retention {
    /// Under [`Policy::Priority`](crate::Policy::Priority), higher ones are evicted later.
    pub fn priority(mut self, priority: i32) -> Self {
        self.priority = priority;
        self
    }

    /// Under every policy, evicts it after everything that is not retained, until
    /// [`advance`](crate::RadixCache::advance) reaches this tick of the caller's clock. Of retained
    /// prefixes, the one that expires first goes first.
    pub fn until(mut self, tick: u64) -> Self {
        self.until = tick;
        self
    }
}

/// A transfer that was ordered. Ids are never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TransferId(pub(crate) u64);

impl fmt::Display for TransferId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "transfer {}", self.0)
    }
}

/// Pages to be copied: each of `device` to or from the one at the same place in `host`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "its pages stay locked until it is confirmed or failed"]
#[non_exhaustive]
pub struct Transfer {
    /// To be confirmed or failed.
    pub id: TransferId,
    /// The tier that is written; the other one is read.
    pub to: Tier,
    /// Pages on the device.
    pub device: Vec<PageId>,
    /// Pages on the host, as many.
    pub host: Vec<PageId>,
}
