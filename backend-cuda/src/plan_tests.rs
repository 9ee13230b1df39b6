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

/// Tokens of prompt and answer of 192 requests of the conversation trace of Mooncake (Qin et al., FAST 2025), each as far
/// from the next.
#[rustfmt::skip]
const MOONCAKE: [(u32, u32); 192] = [
    (6758, 500), (13886, 534), (1895, 456), (1176, 120), (1035, 183), (14980, 32), (20422, 459),
    (8461, 421), (12387, 415), (7147, 537), (7937, 13), (6323, 517), (7105, 465), (23023, 438),
    (5111, 397), (6637, 511), (19288, 578), (13703, 115), (969, 224), (6456, 289), (4150, 368),
    (3507, 98), (1306, 140), (23576, 316), (9019, 281), (8221, 127), (1458, 312), (2604, 105),
    (17105, 160), (8171, 598), (11696, 797), (6838, 299), (899, 451), (20515, 1204), (19985, 527),
    (5547, 416), (1741, 465), (6580, 591), (11630, 216), (1037, 37), (907, 34), (79096, 41),
    (36056, 7), (7514, 189), (15835, 337), (66226, 504), (1876, 544), (12811, 544), (1294, 16),
    (12104, 478), (6833, 289), (9955, 205), (16016, 401), (1328, 75), (2811, 284), (11074, 320),
    (9464, 560), (9253, 518), (19119, 308), (19197, 25), (4490, 444), (1034, 325), (15808, 612),
    (16711, 91), (27552, 567), (1900, 564), (5965, 557), (13472, 384), (1555, 143), (17588, 338),
    (1012, 18), (10599, 168), (1794, 16), (2603, 261), (895, 30), (3164, 282), (1192, 175),
    (1090, 681), (57000, 474), (20762, 5), (8017, 689), (3642, 489), (896, 559), (18984, 292),
    (1595, 421), (1636, 715), (9151, 277), (32778, 270), (1782, 177), (22122, 93), (895, 437),
    (896, 406), (5404, 519), (40790, 490), (18866, 398), (9372, 478), (906, 108), (1378, 499),
    (27765, 142), (894, 208), (1965, 196), (10326, 265), (11765, 613), (2457, 652), (5791, 454),
    (7627, 30), (6867, 624), (6038, 115), (4713, 277), (16186, 528), (20043, 370), (2489, 588),
    (28285, 383), (15652, 314), (6174, 567), (8735, 467), (4744, 233), (7797, 391), (8376, 283),
    (1733, 778), (51970, 30), (30561, 494), (3586, 273), (5301, 122), (2009, 105), (2260, 30),
    (4853, 307), (45823, 32), (897, 454), (44170, 2000), (4969, 109), (54444, 530), (4274, 330),
    (3430, 487), (41562, 11), (7127, 3), (2517, 43), (15448, 423), (15038, 286), (938, 32),
    (1743, 24), (19036, 451), (21196, 617), (20668, 39), (4130, 161), (42255, 281), (2306, 476),
    (4828, 414), (3099, 114), (9529, 272), (4896, 147), (896, 460), (17135, 528), (30237, 286),
    (1847, 3), (1722, 467), (2477, 203), (19739, 350), (19403, 6), (38110, 334), (4781, 435),
    (12155, 384), (1295, 342), (31583, 464), (9850, 14), (1766, 273), (6648, 322), (3867, 266),
    (6964, 792), (26418, 584), (909, 554), (58648, 578), (27730, 88), (107858, 42), (3730, 455),
    (39552, 34), (19518, 247), (13115, 248), (4398, 219), (52015, 440), (57501, 545), (9849, 287),
    (942, 440), (17003, 226), (17766, 445), (1982, 609), (4247, 388), (1264, 403), (896, 279),
    (5141, 263), (4089, 220), (30456, 559),
];

#[test]
fn no_block_works_much_longer_than_the_mean_at_the_lengths_of_a_trace() {
    let mut worst = 0.0f64;
    for batch in [1, 2, 4, 8, 16, 32, 64, 128, 192] {
        for first in (0..MOONCAKE.len()).step_by(batch.min(16)) {
            // Rows are somewhere in their answers.
            let requests = MOONCAKE.iter().cycle().skip(first).take(batch).enumerate();
            let lengths: Vec<u32> = requests
                .map(|(at, (prompt, answer))| prompt + answer * (at as u32 * 7 % 11) / 11 + 1)
                .collect();
            // An A100's and an H100's blocks, and KV heads of a whole model and of its shares.
            for (blocks, kv_heads) in [(216, 8), (264, 8), (216, 4), (264, 2), (264, 1)] {
                let shape = Shape { kv_heads, blocks, ..shape() };
                let mut plan = Plan::default();
                plan.fill(&shape, &rows(&lengths), &[], &[]);
                worst = worst.max(plan.imbalance());
                assert!(plan.imbalance() <= 1.25, "{}: {shape:?}, {lengths:?}", plan.imbalance());
            }
        }
    }
    println!("the busiest block: {worst:.3} of the mean");
}
