use proptest::prelude::*;

use super::*;

fn shape() -> Shape {
    Shape { kv_heads: 8, group: 4, window: None, blocks: 264 }
}

fn rows(lengths: &[u32]) -> Vec<DecodeRow> {
    lengths.iter().zip(0..).map(|(&kv_len, slot)| DecodeRow { slot, kv_len }).collect()
}

/// How often each position of each row is computed, and that the wholes name each part once.
fn check(plan: &Plan, shape: &Shape, decode: &[DecodeRow]) {
    let mut seen: Vec<Vec<u32>> = decode.iter().map(|row| vec![0; row.kv_len as usize]).collect();
    let mut part_of: Vec<Option<i32>> = vec![None; plan.parts as usize];
    let mut direct = vec![0; decode.len()];
    for piece in &plan.pieces {
        assert!(piece.begin < piece.end, "{piece:?}");
        assert_eq!(piece.slot, decode[piece.row as usize].slot as i32);
        let row = &mut seen[piece.row as usize];
        row[piece.begin as usize..piece.end as usize].iter_mut().for_each(|count| *count += 1);
        match piece.part {
            WHOLE => direct[piece.row as usize] += 1,
            part => assert_eq!(part_of[part as usize].replace(piece.row), None),
        }
    }
    for tile in &plan.shared_tiles {
        for index in 0..tile.tokens {
            let row = plan.token_list[(tile.first + index) as usize];
            let positions = tile.begin as usize..tile.end as usize;
            seen[row as usize][positions].iter_mut().for_each(|count| *count += 1);
            assert_eq!(part_of[(tile.part + index) as usize].replace(row), None);
        }
    }
    for (row, seen) in decode.iter().zip(&seen) {
        let oldest = shape.window.map_or(0, |window| row.kv_len.saturating_sub(window)) as usize;
        assert!(seen[..oldest].iter().all(|&count| count == 0));
        assert!(seen[oldest..].iter().all(|&count| count == 1), "row of slot {}", row.slot);
    }
    let dealt: i32 = plan.shares.iter().map(|share| share.count).sum();
    assert_eq!(dealt as usize, plan.pieces.len());
    for whole in &plan.wholes {
        let parts = &plan.part_list[whole.first as usize..(whole.first + whole.count) as usize];
        for &part in parts {
            assert_eq!(part_of[part as usize].take(), Some(whole.row));
        }
        assert_eq!(std::mem::replace(&mut direct[whole.row as usize], 1), 0);
    }
    assert!(part_of.iter().all(Option::is_none), "each part belongs to a whole");
    assert!(direct.iter().all(|&count| count == 1), "each row is written once");
}

proptest! {
    #[test]
    fn each_position_of_each_row_is_computed_once(
        lengths in prop::collection::vec(1u32..6000, 1..40),
        window in prop::option::of(1u32..3000),
        run in (0u32..40, 0u32..40, 0u32..6000),
        blocks in 1u32..600,
    ) {
        let shape = Shape { window, blocks, ..shape() };
        let decode = rows(&lengths);
        let (start, end) = (run.0.min(run.1), run.0.max(run.1).min(lengths.len() as u32));
        let shared = [SharedRun { rows: start.min(end)..end, positions: run.2 }];
        let mut plan = Plan::default();
        plan.fill(&shape, &decode, &shared, &[]);
        check(&plan, &shape, &decode);
        let once = plan.clone();
        plan.fill(&shape, &decode, &shared, &[]);
        prop_assert_eq!(plan, once);
    }

    #[test]
    fn no_block_works_much_longer_than_the_mean(
        lengths in prop::collection::vec(600u32..40_000, 8..200),
    ) {
        let mut plan = Plan::default();
        plan.fill(&shape(), &rows(&lengths), &[], &[]);
        let total: u32 = lengths.iter().sum();
        // Where a block has a piece's least length at the least.
        if total / 33 > 2 * LEAST_PIECE {
            prop_assert!(plan.imbalance() <= 1.25, "{}", plan.imbalance());
        }
        prop_assert!(plan.shares.len() <= 33);
    }
}

#[test]
fn a_short_row_is_one_piece_that_needs_no_merge() {
    let mut plan = Plan::default();
    plan.fill(&shape(), &rows(&[1, 7, 300]), &[], &[]);
    assert_eq!((plan.pieces.len(), plan.wholes.len(), plan.parts), (3, 0, 0));
}

#[test]
fn new_tokens_are_dealt_in_tiles_of_64_rows_the_longest_first() {
    let mut plan = Plan::default();
    let append = [
        AppendRow { slot: 5, first: 0, tokens: 20, position: 0 },
        AppendRow { slot: 6, first: 20, tokens: 17, position: 1000 },
    ];
    plan.fill(&shape(), &[], &[], &append);
    let tiles: Vec<_> =
        plan.tiles.iter().map(|tile| (tile.slot, tile.first, tile.tokens, tile.end)).collect();
    assert_eq!(tiles, [(6, 36, 1, 1017), (6, 20, 16, 1016), (5, 16, 4, 20), (5, 0, 16, 16)]);
    plan.fill(&Shape { window: Some(100), ..shape() }, &[], &[], &append);
    assert!(plan.tiles.iter().all(|tile| tile.begin == (tile.position - 99).max(0)));
}

#[test]
fn a_shared_prefix_is_read_by_tiles_and_the_rest_by_pieces() {
    let mut plan = Plan::default();
    let decode = rows(&[2304; 32]);
    plan.fill(&shape(), &decode, &[SharedRun { rows: 0..32, positions: 2048 }], &[]);
    check(&plan, &shape(), &decode);
    // 16 rows of 4 heads a tile.
    assert_eq!(plan.shared_tiles.iter().filter(|tile| tile.begin == 0).count(), 2);
    assert!(plan.pieces.iter().all(|piece| piece.begin >= 2048));
}
