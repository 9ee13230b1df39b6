//! Page numbers: which are free, which the prefix tree owns, which a sequence owns.
//!
//! A program's page groups are of two [kinds](GroupKind). The groups of one kind share page
//! numbers and tables, so the pool counts in kinds and never in groups. In each kind every page
//! has exactly one owner at every moment:
//!
//! ```text
//! free + cached_evictable + cached_locked + loading + owned_by_sequences == capacity
//! ```
//!
//! Bytes are the backend's; nothing here knows what a page holds.

mod allocator;
mod host;
mod pool;
mod windowed;

pub use allocator::AllocatorError;
pub use pool::{KvPool, PageCounts, PoolError};
/// What the layers of a page group attend to, and so how long its pages are needed: until the
/// sequence ends, or until the window has left them.
pub use radix_cache::PageGroup as GroupKind;
