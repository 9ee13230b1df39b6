//! The windowed page group: KV of layers that attend to a sliding window.
//!
//! A model with sliding-window layers keeps their KV in pages of their own, and needs only the last
//! ones of them. Each position of the tree (one page of tokens) always has a page of the full
//! group, and may have one of the windowed group. Everything is defined position by position:
//!
//! ```text
//! full        [ 0 ][ 1 ][ 2 ][ 3 ][ 4 ][ 5 ][ 6 ]    all of them, as without a second group
//! windowed                   [ 3 ][ 4 ]     [ 6 ]    a window of 2 pages: a match can end
//!                                     ^              behind 4, but not behind 5 or 6
//! ```
//!
//! - **Matches and locks**: see [`CacheConfig::windowed_group`](crate::CacheConfig::windowed_group).
//! - **What goes first** is what windows only passed by; after it pages in front of a place where
//!   a sequence or a match ended, for the loss of one of them makes the whole prefix
//!   useless. Within each, in the order of the policy, from this group's point of view: a page
//!   is used last when a window leaves it, hit when a match ends with it in its
//!   window, created when it is [put](crate::RadixCache::put_windowed), retained when it is in the
//!   window of a lock that is [retained](crate::RadixCache::retain) or released.
//!
//! SGLang's tree for such models marks nodes whose windowed part is gone ("tombstones") and locks
//! whole nodes; vLLM's looks for the last run of blocks that is long enough. Here nodes know nothing
//! of windows, so neither windows nor holes ever split one.

mod check;
mod group;
mod window;

pub(crate) use group::{WindowedGroup, WindowedPage};
pub(crate) use window::{Found, find, stretches};
