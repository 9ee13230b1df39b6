//! Attention kernels, as a plan launches them, against a reference in f64.

mod support;

use backend_cuda::Variant;
use support::attention::{Case, Ran, TOLERANCE, run};

/// The shapes that a test runs: all of them must agree, and each test says how many there are.
fn agree(count: usize, cases: impl IntoIterator<Item = Case>) {
    let cases: Vec<Case> = cases.into_iter().collect();
    assert_eq!(cases.len(), count, "of the shapes that this file promises");
    let mut worst = 0.0f64;
    for case in &cases {
        let error = run(case).error;
        assert!(error <= TOLERANCE, "{error}: {case:?}");
        worst = worst.max(error);
    }
    println!("{count} shapes: relative error at most {worst:.5}");
}

/// Widths of heads, and numbers of query heads to a KV head.
fn heads() -> Vec<(u32, u32)> {
    let widths = [16, 24, 64, 80, 96, 128, 256, 512];
    let all = widths.into_iter().flat_map(|head| [1, 2, 3, 4, 7, 8].map(|group| (head, group)));
    // More than a block's registers hold.
    all.filter(|(head, group)| head * group <= 2048).collect()
}

// 236 shapes in all.

#[test]
fn decode_agrees_for_each_head_width_and_group() {
    agree(
        46,
        heads()
            .into_iter()
            .map(|(head, group)| Case::new(head, group, &[(1, 1), (17, 1), (600, 1)])),
    );
}

#[test]
fn decode_agrees_for_each_page_size() {
    let cases = [1, 2, 8, 16, 32, 64, 128].map(|page_size| Case {
        page_size,
        kv_heads: 2,
        ..Case::new(64, 2, &[(1, 1), (130, 1), (1300, 1)])
    });
    agree(7, cases);
}

/// A case with each window, with and without a soft cap and sinks.
fn with_windows_caps_and_sinks(base: &Case, windows: [u32; 3]) -> Vec<Case> {
    let mut cases = Vec::new();
    for window in [None, Some(windows[0]), Some(windows[1]), Some(windows[2])] {
        for soft_cap in [0.0, 5.0] {
            for sinks in [false, true] {
                cases.push(Case { window, soft_cap, sinks, ..base.clone() });
            }
        }
    }
    cases
}

#[test]
fn decode_agrees_with_windows_caps_and_sinks() {
    let base = Case::new(64, 4, &[(1, 1), (99, 1), (101, 1), (1400, 1)]);
    agree(16, with_windows_caps_and_sinks(&base, [1, 100, 700]));
    let wide = Case { page_size: 1, ..Case::new(256, 2, &[(70, 1), (33, 1)]) };
    agree(16, with_windows_caps_and_sinks(&wide, [1, 32, 64]));
}

#[test]
fn a_long_row_is_divided_between_blocks() {
    agree(
        4,
        [1, 2, 5, 16].map(|blocks| Case {
            blocks,
            sinks: blocks == 5,
            ..Case::new(128, 4, &[(2500, 1), (40, 1), (700, 1)])
        }),
    );
}

#[test]
fn append_agrees_for_each_head_width_and_group() {
    agree(
        46,
        heads()
            .into_iter()
            .map(|(head, group)| Case::new(head, group, &[(5, 5), (70, 2), (100, 30)])),
    );
}

#[test]
fn append_agrees_for_each_page_size_and_a_cached_prefix() {
    let page_sizes = [1, 2, 4, 8, 16, 32, 64, 128];
    agree(
        8,
        page_sizes.map(|page_size| Case {
            page_size,
            kv_heads: 2,
            ..Case::new(64, 2, &[(33, 33), (200, 40), (300, 3)])
        }),
    );
}

#[test]
fn append_agrees_with_windows_caps_and_sinks() {
    let base = Case::new(64, 4, &[(150, 50), (40, 40)]);
    agree(16, with_windows_caps_and_sinks(&base, [1, 20, 100]));
    let wide = Case { page_size: 32, ..Case::new(512, 2, &[(60, 20)]) };
    agree(16, with_windows_caps_and_sinks(&wide, [1, 20, 48]));
}

#[test]
fn spans_to_verify_agree_behind_prefixes_of_any_length() {
    let mut cases = Vec::new();
    for span in [2, 3, 5, 8] {
        for before in [0, 1, 31, 32, 63, 257] {
            let rows = [(before + span, span), (before + 2 * span, span)];
            cases.push(Case { page_size: 8, ..Case::new(80, 4, &rows) });
        }
    }
    agree(24, cases);
}

#[test]
fn decode_and_append_rows_share_a_step() {
    let mut cases = Vec::new();
    for (head, group) in [(64, 4), (96, 3), (128, 8), (256, 1)] {
        for window in [None, Some(40)] {
            let rows = [(300, 1), (20, 1), (64, 8), (70, 70)];
            cases.push(Case { kv_heads: 2, window, ..Case::new(head, group, &rows) });
        }
    }
    agree(8, cases);
}

#[test]
fn other_numbers_than_bfloat16_agree() {
    let mut cases = Vec::new();
    for (half, fp8) in [(true, false), (false, true), (true, true)] {
        for head in [64, 80, 128, 256, 512] {
            let variant = Variant { half, fp8, ..Variant::new(head, 4) };
            cases.push(Case { variant, ..Case::new(head, 4, &[(300, 1), (33, 1), (60, 20)]) });
        }
    }
    agree(15, cases);
}

#[test]
fn a_shared_prefix_is_computed_once_and_agrees() {
    let mut cases = Vec::new();
    for (rows, positions) in [(2, 32), (5, 512), (20, 256)] {
        for sinks in [false, true] {
            let lengths: Vec<(u32, u32)> =
                (0..rows + 1).map(|row| (positions + 1 + row * 7, 1)).collect();
            for (head, group) in [(64, 4), (128, 1), (512, 4)] {
                // Wide heads take long: the shortest case has them.
                if head < 512 || rows == 2 {
                    let shared = Some((rows, positions));
                    cases.push(Case { shared, sinks, ..Case::new(head, group, &lengths) });
                }
            }
        }
    }
    agree(14, cases);
}

#[test]
fn decode_reads_its_kv_once() {
    // Distinct 32-byte sectors of the KV against what all kernels of the step read.
    for (kv_len, kv_heads) in [(1024, 1), (2100, 2), (4096, 1)] {
        let case =
            Case { kv_heads, blocks: 8, ..Case::new(128, 4, &[(kv_len, 1), (kv_len + 300, 1)]) };
        let ran = run(&case);
        let kv: u32 = case.rows.iter().map(|row| row.0 * kv_heads * 2 * 128 * 2 / 32).sum();
        let read = ran.decode.sectors_loaded + ran.merge.sectors_loaded;
        let ratio = read as f64 / f64::from(kv);
        println!("decode at {kv_len}: {ratio:.4} of the KV's sectors");
        assert!(ratio <= 1.03, "{ratio} at {kv_len}");
    }
}

#[test]
fn a_shared_prefix_is_read_by_a_fraction_of_the_rows() {
    let rows = vec![(2304, 1); 32];
    let plain = Case { blocks: 64, ..Case::new(64, 4, &rows) };
    let cascade = Case { shared: Some((32, 2048)), ..plain.clone() };
    let read = |ran: &Ran| {
        ran.decode.sectors_loaded + ran.shared.sectors_loaded + ran.merge.sectors_loaded
    };
    let (plain, cascade) = (run(&plain), run(&cascade));
    assert!(cascade.error <= TOLERANCE, "{}", cascade.error);
    let ratio = read(&cascade) as f64 / read(&plain) as f64;
    println!("32 rows that share 2,048 of 2,304 positions: {ratio:.4} of the plain sectors");
    assert!(ratio <= 0.2, "{ratio}");
}

#[test]
fn prefill_multiplies_little_beyond_the_causal_area() {
    let tokens = 1024u64;
    let ran = run(&Case { blocks: 8, ..Case::new(64, 4, &[(tokens as u32, tokens as u32)]) });
    // Two products of 2 * 64 operations for each (row, key) pair that is seen.
    let pairs = 4 * tokens * (tokens + 1) / 2;
    let ratio = ran.append.tensor_operations as f64 / (pairs * 4 * 64) as f64;
    println!("prefill of {tokens}: {ratio:.4} of the causal area's products");
    assert!((1.0..=1.12).contains(&ratio), "{ratio}");
}
