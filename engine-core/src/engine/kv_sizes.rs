//! How the memory for KV is divided between page groups.
//!
//! Full groups have a page for every position, windowed groups for the positions that the window
//! covers. The rule: windowed groups have a quarter of the full groups' pages; more where a
//! sequence of full length needs more than a quarter of its pages for its window; never fewer than
//! one sequence and the chunks of two steps take; never more than the full groups. Then as many
//! full pages as fit. So the longest context fits into both kinds, and sequences of four windows
//! and more use both up alike.

use crate::backend::{Backend, GroupId, KvFormat};
use crate::kv::GroupKind;
use crate::model::Program;

/// Where every group is windowed, the prefix cache may remember so many pages for each that is
/// stored.
const REMEMBERED: u64 = 16;

/// What pages cost, and what a sequence needs of them.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct KvSizes {
    /// By group of the program.
    pub(super) kinds: Vec<GroupKind>,
    /// The widest window, in tokens; `None` without windowed groups.
    pub(super) window: Option<usize>,
    /// Bytes of a page in all full groups together.
    pub(super) full_bytes: u64,
    /// Bytes of a page in all windowed groups together.
    windowed_bytes: u64,
    /// Pages of the longest sequence.
    context: u64,
    /// Windowed pages of the longest sequence.
    share: u64,
    /// Pages that the chunks of two steps take.
    chunks: u64,
}

/// Pages of each group, by kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct KvPages {
    pub(super) full: u64,
    pub(super) windowed: u64,
}

impl KvSizes {
    /// `context`, `chunk` and `drafted` are in tokens: the longest sequence, the most prompt tokens
    /// of a step, and the most that are proposed for a sequence.
    pub(super) fn new(
        program: &Program,
        backend: &dyn Backend,
        (page_size, format): (usize, KvFormat),
        (context, chunk, drafted): (usize, usize, usize),
    ) -> Self {
        let pages = |tokens: usize| tokens.div_ceil(page_size) as u64;
        // A window as long as the context never moves.
        let windows = program.groups().iter().map(|group| group.window);
        let windows: Vec<Option<usize>> = windows
            .map(|window| window.map(|window| window as usize).filter(|&window| window < context))
            .collect();
        let window = windows.iter().flatten().copied().max();
        let mut sizes = Self {
            kinds: Vec::new(),
            window,
            full_bytes: 0,
            windowed_bytes: 0,
            context: pages(context),
            share: pages(window.unwrap_or(0)) + 2 + pages(drafted),
            chunks: 2 * pages(chunk),
        };
        for (group, window) in (0..).map(GroupId).zip(&windows) {
            let bytes = backend.page_bytes(program, group, page_size as u32, format);
            let (kind, sum) = match window {
                None => (GroupKind::Full, &mut sizes.full_bytes),
                Some(_) => (GroupKind::Windowed, &mut sizes.windowed_bytes),
            };
            *sum = sum.saturating_add(bytes);
            sizes.kinds.push(kind);
        }
        sizes
    }

    /// Bytes of a page in every group.
    pub(super) fn page_bytes(&self) -> u64 {
        self.full_bytes.saturating_add(self.windowed_bytes).max(1)
    }

    pub(super) fn bytes(&self, pages: KvPages) -> u64 {
        let full = pages.full.saturating_mul(self.full_bytes);
        full.saturating_add(pages.windowed.saturating_mul(self.windowed_bytes))
    }

    /// So many full pages, and the windowed pages that go with them.
    pub(super) fn beside(&self, full: u64) -> KvPages {
        let windowed = match self.window {
            None => 0,
            Some(_) => {
                let of_windows = full.saturating_mul(self.share).div_ceil(self.context.max(1));
                of_windows.max(full / 4).max(self.share + self.chunks).min(full)
            }
        };
        KvPages { full, windowed }
    }

    /// The most pages that fit into `memory` bytes, and are of use: `most` full ones.
    pub(super) fn within(&self, memory: u64, most: u64) -> KvPages {
        let all_windowed = !self.kinds.contains(&GroupKind::Full);
        if all_windowed {
            // Full pages are numbers here.
            let useful = self.beside(most).windowed.max(self.share + self.chunks);
            let windowed = (memory / self.windowed_bytes.max(1)).min(useful);
            let full = windowed.saturating_mul(REMEMBERED).max(2 * self.context);
            return KvPages { full, windowed };
        }
        // What a number of full pages takes grows with it.
        let (mut fits, mut too_many) = (0, most.saturating_add(1));
        while too_many - fits > 1 {
            let middle = fits + (too_many - fits) / 2;
            match self.bytes(self.beside(middle)) <= memory {
                true => fits = middle,
                false => too_many = middle,
            }
        }
        self.beside(fits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A page costs 10 bytes in full groups and 50 in windowed ones.
    fn sizes(context: u64, share: u64) -> KvSizes {
        KvSizes {
            kinds: vec![GroupKind::Windowed, GroupKind::Full],
            window: Some(1),
            full_bytes: 10,
            windowed_bytes: 50,
            context,
            share,
            chunks: 8,
        }
    }

    #[test]
    fn windowed_groups_have_a_quarter_of_the_pages_or_what_full_contexts_need() {
        assert_eq!(sizes(1000, 20).beside(400), KvPages { full: 400, windowed: 100 });
        assert_eq!(sizes(40, 20).beside(400), KvPages { full: 400, windowed: 200 });
        assert_eq!(sizes(1000, 20).beside(60), KvPages { full: 60, windowed: 28 });
        assert_eq!(sizes(1000, 20).beside(9), KvPages { full: 9, windowed: 9 });
    }

    #[test]
    fn the_pages_that_fit_are_the_most_that_fit() {
        for memory in [0, 59, 60, 1000, 12_345, 1 << 20] {
            let sizes = sizes(1000, 20);
            let pages = sizes.within(memory, u64::MAX / 100);
            assert!(sizes.bytes(pages) <= memory);
            assert!(sizes.bytes(sizes.beside(pages.full + 1)) > memory, "{pages:?}");
        }
    }

    #[test]
    fn no_more_is_taken_than_is_of_use() {
        assert_eq!(sizes(1000, 20).within(u64::MAX, 400), KvPages { full: 400, windowed: 100 });
    }

    #[test]
    fn without_full_groups_the_cache_counts_in_pages_that_cost_nothing() {
        let mut sizes = sizes(1000, 20);
        sizes.kinds = vec![GroupKind::Windowed];
        sizes.full_bytes = 0;
        assert_eq!(sizes.within(5000, 400), KvPages { full: 2000, windowed: 100 });
    }
}
