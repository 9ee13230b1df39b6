//! Mbarriers, bulk copies and clusters, form by form; and what is said about wrong uses.

use cuda_emulator::{Swizzle, TensorMap, TensorType};

use crate::block::{Body, nothing};

/// Thread 0 initializes `barrier` for `count` arrivals; all threads know its address in `r130`.
fn with_barrier(count: u32, rest: &str) -> String {
    format!(
        "mov.u32 r130, barrier; setp.eq.u32 p0, r150, 0;
         @p0 mbarrier.init.shared::cta.b64 [r130], {count};
         @p0 fence.mbarrier_init.release.cluster;
         bar.sync 0; {rest}"
    )
}

const WAIT: &str = "again: mbarrier.try_wait.parity.shared::cta.b64 p1, [r130], 0; @!p1 bra again;";

#[test]
fn arrivals_end_phases_and_waits_see_them() {
    // States hold the phase and the pending arrivals; the parity of a phase to come is over.
    let text = with_barrier(
        32,
        "mbarrier.arrive.shared::cta.b64 d5, [r130]; mbarrier.pending_count.b64 r0, d5;
         one: mbarrier.try_wait.shared::cta.b64 p1, [r130], d5; @!p1 bra one;
         mbarrier.test_wait.parity.shared::cta.b64 p2, [r130], 0; selp.u32 r1, 1, 0, p2;
         mbarrier.test_wait.parity.shared::cta.b64 p2, [r130], 1; selp.u32 r2, 1, 0, p2;
         mbarrier.test_wait.shared::cta.b64 p2, [r130], d5; selp.u32 r3, 1, 0, p2;
         st.global.v4.u32 [d1], {r0, r1, r2, r3};",
    );
    let body = Body { text: &text, words: 4, ..Body::default() };
    for (lane, words) in body.words().chunks(4).enumerate() {
        assert_eq!(words, [32 - lane as u32, 1, 0, 1]);
    }
}

#[test]
fn counts_may_be_given_dropped_and_made_of_bytes() {
    let text = with_barrier(
        5,
        "@p0 mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [r130], 48;
         @p0 mbarrier.arrive.noComplete.shared::cta.b64 d5, [r130], 3;
         @p0 mbarrier.arrive_drop.shared::cta.b64 d6, [r130];
         @p0 mbarrier.complete_tx.relaxed.cta.shared::cta.b64 [r130], 32;
         @p0 mbarrier.arrive.expect_tx.shared::cta.b64 d7, [r130], 16;
         bar.sync 0; mbarrier.test_wait.parity.shared::cta.b64 p2, [r130], 0;
         selp.u32 r0, 1, 0, p2;
         bar.sync 0; @p0 mbarrier.complete_tx.relaxed.cta.shared::cta.b64 [r130], 32; bar.sync 0;
         mbarrier.test_wait.parity.shared::cta.b64 p2, [r130], 0; selp.u32 r1, 1, 0, p2;
         bar.sync 0; @p0 mbarrier.arrive.shared::cta.b64 d5, [r130]; mbarrier.pending_count.b64 r2, d5;
         bar.sync 0; @p0 mbarrier.inval.shared::cta.b64 [r130]; st.global.v4.u32 [d1], {r0, r1, r2, r2};",
    );
    let words = Body { text: &text, words: 4, ..Body::default() }.words();
    // The dropped arrival is not expected in the second phase.
    assert_eq!(words[..3], [0, 1, 4]);
}

#[test]
fn lines_are_copied_in_and_out_and_reduced() {
    let image: Vec<u8> = (0..64u32).flat_map(|i| (i * 3 + 1).to_le_bytes()).collect();
    let text = with_barrier(
        1,
        &format!(
            "mov.u32 r131, room; add.u32 r131, r131, 1024; ld.param.u64 d3, [image];
             @p0 mbarrier.arrive.expect_tx.shared::cta.b64 _, [r130], 256;
             @p0 cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [r131], [d3], 128, [r130];
             @p0 cp.async.bulk.shared::cta.global.mbarrier::complete_tx::bytes [r131+128], [d3+128], 128, [r130];
             {WAIT} ld.param.u64 d4, [out];
             @p0 cp.async.bulk.global.shared::cta.bulk_group [d4], [r131], 256;
             @p0 cp.async.bulk.commit_group; @p0 cp.async.bulk.wait_group 0;
             @p0 cp.reduce.async.bulk.global.shared::cta.bulk_group.add.u32 [d4], [r131+16], 16;
             @p0 cp.reduce.async.bulk.global.shared::cta.bulk_group.max.s32 [d4+16], [r131+32], 16;
             @p0 cp.async.bulk.commit_group; @p0 cp.async.bulk.wait_group.read 0;"
        ),
    );
    let words = Body { text: &text, image: &image, words: 2, ..Body::default() }.words();
    let expected: Vec<u32> = (0..64u32)
        .map(|i| match i {
            0..4 => (i * 3 + 1) + ((i + 4) * 3 + 1),
            4..8 => (i + 4) * 3 + 1,
            _ => i * 3 + 1,
        })
        .collect();
    assert_eq!(words, expected);
}

/// Loads a tile at coordinates and gives the bytes of shared memory that it fills.
fn load(map: &TensorMap, coordinates: &[i32], bytes: usize) -> Vec<u8> {
    let rank = coordinates.len();
    let list: Vec<String> = coordinates.iter().map(ToString::to_string).collect();
    let text = with_barrier(
        1,
        &format!(
            "mov.b64 d5, map; cvta.param.u64 d5, d5; mov.u32 r131, room;
             @p0 mbarrier.arrive.expect_tx.shared::cta.b64 _, [r130], {bytes};
             @p0 cp.async.bulk.tensor.{rank}d.shared::cluster.global.mbarrier::complete_tx::bytes [r131], [d5, {{{list}}}], [r130];
             {WAIT} shl.b32 r132, r150, 2; add.u32 r131, r131, r132; mov.u32 r133, r150;
             store: setp.ge.u32 p2, r133, {words}; @p2 bra end; ld.shared.u32 r134, [r131];
             mul.wide.u32 d6, r133, 4; ld.param.u64 d7, [out]; add.s64 d6, d6, d7;
             st.global.u32 [d6], r134; add.u32 r131, r131, 128; add.u32 r133, r133, 32; bra store;
             end:",
            list = list.join(", "),
            words = bytes / 4,
        ),
    );
    let body = Body { text: &text, words: bytes.div_ceil(128), room: bytes, ..Body::default() };
    let words = body.words_with(", .param .align 64 .b8 map[128]", &|memory, arguments| {
        // Elements hold their place in the tensor.
        let size = map.element.bytes() as usize;
        let rows: u64 = map.sizes[1..].iter().product();
        let pitch = map.strides.first().copied().unwrap_or(map.sizes[0] * size as u64);
        let bytes: Vec<u8> =
            (0..rows * pitch).map(|at| (at / size as u64 * 7 + at) as u8).collect();
        let address = memory.upload(&bytes).expect("memory");
        arguments.with_map(&TensorMap { address, ..map.clone() }).expect("a good map")
    });
    words.iter().flat_map(|word| word.to_le_bytes()).take(bytes).collect()
}

/// What `load` should give, element by element.
fn expected(map: &TensorMap, coordinates: &[i32]) -> Vec<u8> {
    let size = map.element.bytes() as usize;
    let rank = map.sizes.len();
    let steps: Vec<i64> =
        (0..rank).map(|d| if d == 0 { 1 } else { i64::from(map.element_strides[d]) }).collect();
    let counts: Vec<usize> =
        (0..rank).map(|d| (map.tile[d] as usize).div_ceil(steps[d] as usize)).collect();
    let mut out = vec![0; counts.iter().product::<usize>() * size];
    for at in 0..counts.iter().product::<usize>() {
        let (mut rest, mut address, mut inside) = (at, 0u64, true);
        for d in 0..rank {
            let index = i64::from(coordinates[d]) + (rest % counts[d]) as i64 * steps[d];
            rest /= counts[d];
            inside &= index >= 0 && (index as u64) < map.sizes[d];
            let stride = if d == 0 { size as u64 } else { map.strides[d - 1] };
            address = address.wrapping_add((index as u64).wrapping_mul(stride));
        }
        for byte in 0..size {
            let from = address + byte as u64;
            let value = match (inside, map.fill_nan) {
                (true, _) => (from / size as u64 * 7 + from) as u8,
                (false, true) => 0xff,
                (false, false) => 0,
            };
            // Pieces of 16 bytes change places with the row of 128 bytes that they are in.
            let to = at * size + byte;
            let (row, piece) = (to / 128 % 8, to / 16);
            let moved = match map.swizzle {
                Swizzle::None => piece,
                Swizzle::B32 => piece ^ (row % 2),
                Swizzle::B64 => piece ^ (row % 4),
                Swizzle::B128 => piece ^ row,
            };
            out[moved * 16 + to % 16] = value;
        }
    }
    out
}

fn map(element: TensorType, sizes: &[u64], tile: &[u32], swizzle: Swizzle) -> TensorMap {
    let mut strides = Vec::new();
    let mut stride = (sizes[0] * element.bytes()).next_multiple_of(16) + 16;
    for size in &sizes[1..] {
        strides.push(stride);
        stride *= size;
    }
    TensorMap {
        element,
        address: 0,
        sizes: sizes.to_vec(),
        strides,
        tile: tile.to_vec(),
        element_strides: vec![1; sizes.len()],
        interleave: 0,
        swizzle,
        promotion: 0,
        fill_nan: false,
    }
}

#[test]
fn tiles_of_one_to_five_dimensions_are_loaded_and_filled_outside() {
    use TensorType::{Bfloat16, Float32, Uint8};
    let cases: [(TensorMap, &[&[i32]]); 6] = [
        (map(Float32, &[100], &[32], Swizzle::None), &[&[0], &[70], &[-9], &[200]]),
        (map(Bfloat16, &[90, 20], &[64, 8], Swizzle::B128), &[&[0, 0], &[60, 15], &[-3, -2]]),
        (map(Uint8, &[64, 9, 7], &[32, 4, 2], Swizzle::B32), &[&[0, 0, 0], &[48, 7, 6]]),
        (map(Float32, &[20, 5, 4, 3], &[16, 2, 2, 2], Swizzle::B64), &[&[8, 4, 3, 2]]),
        (map(Bfloat16, &[24, 3, 3, 3, 3], &[8, 2, 2, 2, 2], Swizzle::None), &[&[3, 1, 2, 0, 2]]),
        (
            TensorMap {
                element_strides: vec![1, 2, 3],
                fill_nan: true,
                ..map(Float32, &[10, 12, 12], &[4, 8, 5], Swizzle::None)
            },
            &[&[2, 1, 1], &[8, 9, 9]],
        ),
    ];
    for (map, places) in cases {
        for coordinates in places {
            let expected = expected(&map, coordinates);
            let found = load(&map, coordinates, expected.len());
            assert_eq!(found, expected, "{map:?} {coordinates:?}");
        }
    }
}

#[test]
fn a_bulk_copy_may_go_to_another_block() {
    // Block 0 sends 128 bytes to block 1, whose mbarrier counts them.
    let text = with_barrier(
        1,
        "setp.eq.u32 p3, r151, 1; and.pred p4, p0, p3;
         @p4 mbarrier.arrive.expect_tx.shared::cta.b64 _, [r130], 128;
         barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;
         mov.u32 r131, room; mapa.shared::cluster.u32 r132, r131, 1; mapa.shared::cluster.u32 r133, r130, 1;
         getctarank.shared::cluster.u32 r134, r132;
         not.pred p5, p3; and.pred p5, p5, p0;
         @p5 cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [r132+512], [r131], 128, [r133];
         @!p3 bra done; again: mbarrier.try_wait.parity.shared::cta.b64 p1, [r130], 0; @!p1 bra again;
         shl.b32 r135, r150, 2; add.u32 r131, r131, r135; ld.shared.u32 r0, [r131+512];
         add.u32 r0, r0, r134; st.global.u32 [d1], r0;
         done: barrier.cluster.arrive; barrier.cluster.wait;",
    );
    let image: Vec<u8> = (0..32u32).flat_map(|i| (i * i).to_le_bytes()).collect();
    let body = Body { text: &text, grid: 2, cluster: 2, image: &image, ..Body::default() };
    let words = body.words();
    assert_eq!(words[32..], (0..32u32).map(|i| i * i + 1).collect::<Vec<_>>());
}

#[test]
fn asynchronous_reductions_add_up_in_another_block() {
    let text = with_barrier(
        1,
        "setp.eq.u32 p3, r151, 0; and.pred p4, p0, p3; mov.u32 r131, room; mov.u32 r132, 100;
         @p4 st.shared.u32 [r131], r132;
         @p4 mbarrier.arrive.expect_tx.shared::cta.b64 _, [r130], 512;
         barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;
         mapa.shared::cluster.u32 r133, r131, 0; mapa.shared::cluster.u32 r134, r130, 0;
         red.async.relaxed.cluster.shared::cluster.mbarrier::complete_tx::bytes.add.u32 [r133], r150, [r134];
         @!p3 bra done; again: mbarrier.try_wait.parity.shared::cta.b64 p1, [r130], 0; @!p1 bra again;
         ld.shared.u32 r0, [r131]; st.global.u32 [d1], r0;
         done: barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;",
    );
    let words = Body { text: &text, grid: 4, cluster: 4, ..Body::default() }.words();
    assert_eq!(words[0], 100 + 4 * (31 * 32 / 2));
}

#[test]
fn registers_tell_of_clusters() {
    let text =
        "mov.u32 r0, %cluster_ctarank; mov.u32 r1, %clusterid.x; mov.u32 r2, %cluster_nctarank;
         mov.u32 r3, %nclusterid.x; st.global.v4.u32 [d1], {r0, r1, r2, r3};";
    let body = Body { text, grid: 6, cluster: 3, threads: 1, words: 4, ..Body::default() };
    let expected: Vec<u32> = (0..6).flat_map(|block| [block % 3, block / 3, 3, 2]).collect();
    assert_eq!(body.words(), expected);
}

#[test]
fn cp_async_may_arrive_at_an_mbarrier() {
    let image: Vec<u8> = (0..64u32).flat_map(u32::to_le_bytes).collect();
    for (form, count) in [(".noinc", 32), ("", 1)] {
        let alone = if count == 1 { "@p0 mbarrier.arrive.shared::cta.b64 d5, [r130];" } else { "" };
        let text = with_barrier(
            count,
            &format!(
                "mov.u32 r131, room; shl.b32 r132, r150, 2; add.u32 r131, r131, r132; ld.param.u64 d3, [image];
                 cvt.u64.u32 d4, r132; add.s64 d3, d3, d4;
                 cp.async.ca.shared.global [r131+1024], [d3+128], 4;
                 cp.async.mbarrier.arrive{form}.shared::cta.b64 [r130]; bar.sync 0; {alone}
                 {WAIT} ld.shared.u32 r0, [r131+1024]; st.global.u32 [d1], r0;"
            ),
        );
        let words = Body { text: &text, image: &image, ..Body::default() }.words();
        assert_eq!(words, (32..64).collect::<Vec<u32>>(), "{form}");
    }
}

/// Among the problems is one whose text holds `part`.
fn says(text: &str, part: &str) {
    let problems = Body { text, image: &[1; 256], ..Body::default() }.problems();
    assert!(problems.contains(part), "{text}: {problems}");
}

#[test]
fn mbarriers_that_are_used_wrongly_are_reported() {
    says(
        "mov.u32 r130, other; mbarrier.arrive.shared::cta.b64 d5, [r130];",
        "no mbarrier was initialized",
    );
    says(&with_barrier(31, "mbarrier.arrive.shared::cta.b64 d5, [r130], 32;"), "32 arrivals");
    says(
        &with_barrier(64, &format!("mbarrier.arrive.shared::cta.b64 d5, [r130]; {WAIT}")),
        "lacks 32 arrivals",
    );
    says(
        &with_barrier(
            1,
            &format!("@p0 mbarrier.arrive.expect_tx.shared::cta.b64 _, [r130], 64; {WAIT}"),
        ),
        "lacks 0 arrivals and 64 bytes",
    );
    says(&with_barrier(1, "@p0 mbarrier.init.shared::cta.b64 [r130], 1;"), "initialized again");
    says(&with_barrier(1, "ld.shared.u64 d5, [r130];"), "as if it were data");
    says("mov.u32 r130, barrier; mbarrier.init.shared::cta.b64 [r130], 0;", "a count of 0");
    let polls = "again: mbarrier.test_wait.parity.shared::cta.b64 p1, [r130], 0; @!p1 bra again;";
    says(&with_barrier(2, polls), "lacks 2 arrivals");
}

#[test]
fn copies_that_are_used_wrongly_are_reported() {
    let copy = "mov.u32 r131, room; ld.param.u64 d3, [image];
        @p0 mbarrier.arrive.expect_tx.shared::cta.b64 _, [r130], 128;
        @p0 cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [r131+1024], [d3], 128, [r130];";
    says(
        &with_barrier(1, &format!("{copy} ld.shared.u32 r0, [r131+1024]; {WAIT}")),
        "not waited for",
    );
    says(&with_barrier(1, copy), "not waited for at the end");
    let unfenced = format!("{copy} {WAIT}");
    let text = with_barrier(1, &unfenced).replace("@p0 fence.mbarrier_init.release.cluster;", "");
    says(&text, "initialization was not fenced");
    // Expected too late: the phase is over before the bytes are there.
    let late = "mov.u32 r131, room; ld.param.u64 d3, [image]; @p0 mbarrier.arrive.shared::cta.b64 d5, [r130];
        @p0 cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [r131+1024], [d3], 128, [r130];";
    says(
        &with_barrier(1, &format!("{late} {WAIT} ld.shared.u32 r0, [r131+1024];")),
        "not waited for",
    );
    let store = "mov.u32 r131, room; ld.param.u64 d4, [out]; mov.u32 r0, 7;";
    let bulk = "cp.async.bulk.global.shared::cta.bulk_group [d4], [r131], 128; cp.async.bulk.commit_group;";
    let wait = "cp.async.bulk.wait_group.read 0;";
    let first = "setp.eq.u32 p0, r150, 0; @!p0 bra end;";
    says(&format!("{store} {first} {bulk} st.shared.u32 [r131], r0; {wait} end:"), "bulk store");
    says(&format!("{store} {first} {bulk} end:"), "bulk copies were not waited for");
    says(
        &format!("{store} {first} st.shared.u32 [r131], r0; {bulk} {wait} end:"),
        "no fence.proxy.async",
    );
    says(
        &format!(
            "{store} {first} cp.async.bulk.global.shared::cta.bulk_group [d4], [r131], 24; end:"
        ),
        "24 bytes, which is not a multiple of 16",
    );
    says(
        &with_barrier(1, &copy.replace("[d3], 128", "[d3+8], 128")),
        "which is not a multiple of 16",
    );
}

#[test]
fn tensor_maps_that_are_none_are_refused() {
    let text = with_barrier(
        1,
        "ld.param.u64 d3, [image]; mov.u32 r131, room;
         @p0 cp.async.bulk.tensor.1d.shared::cluster.global.mbarrier::complete_tx::bytes [r131], [d3, {r150}], [r130];",
    );
    says(&text, "no tensor map");
}

#[test]
fn a_reader_that_did_not_wait_races_with_the_copy() {
    // The first warp waits, the second one does not.
    let text = with_barrier(
        1,
        &format!(
            "mov.u32 r131, room; ld.param.u64 d3, [image]; setp.lt.u32 p3, r150, 32;
             @p0 mbarrier.arrive.expect_tx.shared::cta.b64 _, [r130], 128;
             @p0 cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [r131+1024], [d3], 128, [r130];
             @!p3 bra second; {WAIT} bra end; second: ld.shared.u32 r0, [r131+1024]; end:"
        ),
    );
    let body = Body { text: &text, threads: 64, image: &[1; 128], ..Body::default() };
    let problems = body.problems();
    assert!(problems.contains("whose mbarrier this warp did not wait for"), "{problems}");
}

#[test]
fn blocks_of_a_cluster_must_have_begun_and_not_ended() {
    let read = "mov.u32 r130, room; mov.u32 r0, 5; st.shared.u32 [r130], r0;";
    let peer = "mapa.shared::cluster.u32 r131, r130, 1; ld.shared::cluster.u32 r0, [r131];";
    let sync = "barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;";
    let problem =
        |text: &str| Body { text, grid: 2, cluster: 2, threads: 1, ..Body::default() }.problems();
    let text = problem(&format!("{read} {peer} {sync}"));
    assert!(text.contains("may not have begun"), "{text}");
    let text = problem(&format!("{read} {sync} {peer}"));
    assert!(text.contains("may have ended"), "{text}");
    let text = problem(&format!("{read} {sync} {} {sync}", peer.replace(", 1;", ", 2;")));
    assert!(text.contains("block 2 of a cluster of 2"), "{text}");
    let text = problem("barrier.cluster.wait.aligned;");
    assert!(text.contains("out of turn"), "{text}");
    let text = problem("barrier.cluster.arrive.aligned; barrier.cluster.arrive.aligned;");
    assert!(text.contains("out of turn"), "{text}");
    let whole = format!("{read} {sync} {peer} {sync}");
    let body = Body { text: &whole, grid: 2, cluster: 2, threads: 1, ..Body::default() };
    body.words_with("", &nothing);
}
