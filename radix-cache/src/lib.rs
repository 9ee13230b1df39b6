//! Finds the longest cached prefix of a prompt, and decides what to keep.
//!
//! An inference engine that has computed the keys and values (KV) of a prompt can use them again
//! for every prompt that begins alike. It keeps them in *pages* of a fixed number of token
//! positions. This crate maps token prefixes to page numbers: a radix tree whose nodes are runs
//! of whole pages. It never sees the memory behind a page, knows no device, no clock and no
//! thread, and has no unsafe code.
//!
//! ```text
//! namespace ─┐
//!            └ root ── [page page page] ── [page]          a node is a run of whole pages
//!                           │                  └── [page page]   a leaf: evictable if unlocked
//!                           └── [page]  locked by a running sequence
//! ```
//!
//! ```
//! use radix_cache::{CacheConfig, Namespace, PageId, RadixCache};
//!
//! let mut cache = RadixCache::new(CacheConfig::default().page_size(4))?;
//! let tenant = Namespace::tenant(7);
//! let prompt: Vec<u32> = (0..12).collect();
//!
//! // Nothing is cached yet: the engine computes three pages and hands them over.
//! let mut pages = Vec::new();
//! let first = cache.acquire(tenant, &prompt, &mut pages)?;
//! assert_eq!(first.tokens, 0);
//! let mut canonical = Vec::new();
//! let taken = cache.insert(first.lock, &prompt, &[PageId(3), PageId(8), PageId(1)], &mut canonical)?;
//! assert_eq!((taken.present_pages, taken.new_pages), (0, 3));
//!
//! // Another prompt shares two pages of it.
//! let mut other = prompt.clone();
//! other[9] = 500;
//! let second = cache.acquire(tenant, &other, &mut pages)?;
//! assert_eq!((second.tokens, &pages[..]), (8, &[PageId(3), PageId(8)][..]));
//!
//! // The first sequence is done: what only it held can be evicted, tail first.
//! cache.release(first.lock)?;
//! let mut freed = Vec::new();
//! assert_eq!(cache.evict(100, &mut freed), 1);
//! assert_eq!(freed, [PageId(1)]);
//! assert_eq!(cache.counts().locked, 2);
//! # Ok::<(), radix_cache::CacheError>(())
//! ```
//!
//! # What it promises
//!
//! - **Matches are token for token.** A hash only finds the candidate; a collision can't serve
//!   another prompt's KV.
//! - **Every page has one owner.** [`insert`](RadixCache::insert) never replaces a page that is
//!   present: it names the cached pages, and the caller frees its duplicates.
//! - **A lock holds its whole prefix**, through splits, insertions and evictions around it. Ids of
//!   locks that are gone are typed errors, never other locks.
//! - **[`Counts`] are exact** after every call.
//! - **The same calls give the same evictions**, on every machine. Nodes are an economy of
//!   representation: the cache behaves as if every page stood alone.
//!
//! # What else it does
//!
//! - Six eviction [policies](Policy), and soft [`Retention`] by priority or time.
//! - A [second tier](HostTier) in the memory of the host: the cache orders [`Transfer`]s, the engine
//!   executes and confirms them.
//! - A second [page group](CacheConfig::windowed_group) for layers with a sliding window: a match
//!   is valid where its window is there, and windowed pages are released while full ones stay.
//! - [`Event`]s for routers that place requests by cached prefix.
//! - [`Snapshot`]s, [`Statistics`], and exports for [Graphviz](RadixCache::to_dot) and as
//!   [JSON](RadixCache::to_json).
//!
//! # Features
//!
//! - `serde`: snapshots, events and ids can be written and read.

#![forbid(unsafe_code)]

mod cache;
mod config;
mod error;
mod events;
mod export;
mod hash;
mod host;
mod locks;
mod order;
mod rank_heap;
mod residents;
mod snapshot;
mod statistics;
mod store;
mod tree;
mod types;
mod windowed;

pub use cache::RadixCache;
pub use config::{CacheConfig, HostTier, Policy, WritePolicy};
pub use error::{CacheError, InvariantViolation};
pub use events::{Change, Event, Stored};
pub use hash::page_hash;
pub use snapshot::{Snapshot, SnapshotNode, SnapshotWindowedPage};
pub use statistics::{Memory, Shape, Statistics};
pub use types::{
    Acquired, Counts, Inserted, LockId, Match, Namespace, PageGroup, PageId, Retention, Tier,
    Token, Transfer, TransferId, WindowedCounts,
};
