//! Which decode rows begin with the same pages: a hint with which a backend reads them once.
//!
//! Two page tables have the same page at an index only where the prefixes up to there are the same
//! path of the tree. So the common run of two tables is found by bisection, and not compared: debug
//! builds do.

use crate::backend::{GroupId, PageId, Row, SharedPrefix, Slots, Span};

/// Runs shorter than this aren't worth a hint, in tokens.
const LEAST_SHARED: usize = 128;

/// Finds runs of neighbours among `rows`, which are decode rows, that share pages whose positions
/// all of them are beyond. Costs a look at a few entries of each table, however long it is.
pub(super) fn shared_prefixes(
    rows: &[Row],
    slots: &Slots,
    page_size: usize,
    found: &mut Vec<SharedPrefix>,
) {
    found.clear();
    let least = LEAST_SHARED.div_ceil(page_size);
    let mut first = 0;
    while let Some((leader, rest)) = rows.get(first..).and_then(<[Row]>::split_first) {
        let mut pages = leader.position as usize / page_size;
        let mut count = 1;
        for row in rest {
            let most = pages.min(row.position as usize / page_size);
            let common = if most < least { 0 } else { common(leader, row, slots, least, most) };
            // A row that shares far less would take the run from those before it.
            if common < least || (count > 1 && common < pages / 2) {
                break;
            }
            pages = common;
            count += 1;
        }
        if count > 1 {
            let rows = Span { start: first as u32, len: count as u32 };
            found.push(SharedPrefix { rows, pages: pages as u32 });
        }
        first += count;
    }
}

/// How many pages two rows share, of `least` to `most` pages; 0 if fewer.
fn common(a: &Row, b: &Row, slots: &Slots, least: usize, most: usize) -> usize {
    (0..slots.groups()).map(|group| GroupId(group as u8)).fold(most, |most, group| {
        let [a, b] = [a, b].map(|row| slots.pages(row.slot, group));
        common_of_tables(a, b, least, most)
    })
}

fn common_of_tables(a: &[PageId], b: &[PageId], least: usize, most: usize) -> usize {
    // A windowed group's table begins with the pages that have left the window. Where one row has
    // lost more of them than the other, what both have lost is all that they share.
    let [lost_by_a, lost_by_b] =
        [a, b].map(|table| table.partition_point(|&it| it == PageId::NONE));
    let most = match lost_by_a == lost_by_b {
        true => most.min(a.len()).min(b.len()),
        false => most.min(lost_by_a).min(lost_by_b),
    };
    let is_common = |pages: usize| a.get(pages - 1) == b.get(pages - 1);
    if least == 0 || most < least || !is_common(least) {
        return 0;
    }
    let (mut common, mut end) = (least, most + 1);
    while common + 1 < end {
        let middle = common + (end - common) / 2;
        if is_common(middle) {
            common = middle;
        } else {
            end = middle;
        }
    }
    debug_assert!(a.get(..common) == b.get(..common), "a page at an index is in one path only");
    common
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::backend::SlotId;

    /// Decode rows with these tables, each at a position in the page after them.
    fn find(tables: &[&[u32]], page_size: usize) -> Vec<(u32, u32, u32)> {
        let mut slots = Slots::new(tables.len() as u32, 1);
        let mut rows = Vec::new();
        for (slot, table) in (0..).zip(tables) {
            let pages = slots.pages_mut(SlotId(slot), GroupId(0));
            pages.extend(table.iter().copied().map(PageId));
            rows.push(Row {
                slot: SlotId(slot),
                tokens: Span { start: slot, len: 1 },
                position: (table.len() * page_size - 1) as u32,
                outputs: Span { start: slot, len: 1 },
            });
        }
        let mut found = Vec::new();
        shared_prefixes(&rows, &slots, page_size, &mut found);
        found.iter().map(|it| (it.rows.start, it.rows.len, it.pages)).collect()
    }

    #[test]
    fn neighbours_with_a_common_run_of_pages_share_it() {
        let tables: [&[u32]; 4] =
            [&[1, 2, 3, 4, 5], &[1, 2, 3, 6, 7, 8], &[1, 2, 3, 9], &[10, 11, 12, 13]];
        assert_eq!(find(&tables, 64), [(0, 3, 3)]);
    }

    #[test]
    fn a_run_ends_where_the_shared_pages_would_shrink_by_half() {
        let long: Vec<u32> = (0..20).collect();
        let with = |common: usize, own: u32| [&long[..common], &[own, own + 1]].concat();
        let tables = [with(18, 50), with(18, 60), with(4, 70), with(4, 80)];
        let tables: Vec<&[u32]> = tables.iter().map(Vec::as_slice).collect();
        assert_eq!(find(&tables, 64), [(0, 2, 18), (2, 2, 4)]);
    }

    #[test]
    fn short_runs_and_pages_that_are_being_written_are_not_shared() {
        assert_eq!(find(&[&[1, 2, 3], &[1, 4, 5]], 64), []);
        assert_eq!(find(&[&[1], &[1]], 512), []);
        assert_eq!(find(&[&[1, 2], &[1, 2]], 512), [(0, 2, 1)]);
        assert_eq!(find(&[&[1, 2, 3, 4], &[1, 2, 3]], 64), [(0, 2, 2)]);
        assert_eq!(find(&[], 16), []);
    }

    #[test]
    fn pages_that_left_both_windows_are_shared_up_to_where_one_row_still_has_them() {
        let none = PageId::NONE;
        let [a, b] = [[none, none, none, PageId(7)], [none, none, PageId(5), PageId(7)]];
        assert_eq!(common_of_tables(&a, &b, 1, 4), 2);
        assert_eq!(common_of_tables(&a, &b, 3, 4), 0);
        assert_eq!(common_of_tables(&b, &b, 1, 4), 4);
    }

    /// Tables of paths in a tree: each takes some pages of an earlier one, and has its own after them.
    /// Of a windowed group, each has lost some.
    fn tables() -> impl Strategy<Value = Vec<[Vec<PageId>; 2]>> {
        let shape = (any::<prop::sample::Index>(), 0..12usize, 1..6usize, 0..12usize);
        prop::collection::vec(shape, 1..12).prop_map(|shapes| {
            let mut fresh = 0..;
            let mut paths: Vec<Vec<PageId>> = Vec::new();
            let mut tables = Vec::new();
            for (from, taken, own, lost) in shapes {
                let before = if paths.is_empty() { &[][..] } else { from.get(&paths).as_slice() };
                let mut path = before[..taken.min(before.len())].to_vec();
                path.extend(fresh.by_ref().take(own).map(PageId));
                let mut windowed = path.clone();
                let lost = lost.min(windowed.len() - 1);
                windowed[..lost].fill(PageId::NONE);
                tables.push([path.clone(), windowed]);
                paths.push(path);
            }
            tables
        })
    }

    proptest! {
        #[test]
        fn runs_are_those_of_tables_that_are_compared_page_by_page(tables in tables()) {
            let page_size = 64;
            let mut slots = Slots::new(tables.len() as u32, 2);
            let mut rows = Vec::new();
            for (slot, groups) in (0..).zip(&tables) {
                for (group, table) in (0..).map(GroupId).zip(groups) {
                    slots.pages_mut(SlotId(slot), group).extend_from_slice(table);
                }
                rows.push(Row {
                    slot: SlotId(slot),
                    tokens: Span { start: slot, len: 1 },
                    position: (groups[0].len() * page_size - 1) as u32,
                    outputs: Span { start: slot, len: 1 },
                });
            }
            let whole = |row: usize| tables[row][0].len() - 1;
            let equal = |a: usize, b: usize, most: usize| {
                (0..most).take_while(|&page| (0..2).all(|group| {
                    tables[a][group][page] == tables[b][group][page]
                })).count()
            };
            let mut expected = Vec::new();
            let mut first = 0;
            while first < tables.len() {
                let (mut pages, mut end) = (whole(first), first + 1);
                while end < tables.len() {
                    let common = equal(first, end, pages.min(whole(end)));
                    if common < 2 || (end > first + 1 && common < pages / 2) {
                        break;
                    }
                    (pages, end) = (common, end + 1);
                }
                if end > first + 1 {
                    expected.push((first as u32, (end - first) as u32, pages as u32));
                }
                first = end;
            }
            let mut found = Vec::new();
            shared_prefixes(&rows, &slots, page_size, &mut found);
            let found: Vec<_> =
                found.iter().map(|it| (it.rows.start, it.rows.len, it.pages)).collect();
            prop_assert_eq!(found, expected);
        }
    }
}
