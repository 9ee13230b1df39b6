//! Page numbers: which are free, which the prefix tree owns, which a sequence owns.
//!
//! Every page has exactly one owner at every moment:
//!
//! ```text
//! free + cached_evictable + cached_locked + loading + owned_by_sequences == capacity
//! ```
//!
//! Bytes are the backend's; nothing here knows what a page holds.

mod allocator;
mod host;
mod pool;

pub use allocator::{AllocatorError, PageAllocator};
pub use pool::{KvPool, PageCounts, PoolError};
