use cuda_emulator::{Arguments, Launch, Memory, Options, Outcome, Program, launch};

/// Runs a body on one block. `r1` holds the thread's number and `r2` its input; `r0` is the result.
fn run(body: &str, inputs: &[u32]) -> (Vec<u32>, Outcome) {
    let text = format!(
        ".version 8.8\n.target sm_90\n.address_size 64\n
         .visible .entry k(.param .u64 out, .param .u64 in) {{
         .reg .pred p<6>; .reg .b32 r<16>; .reg .b64 d<10>;
         .shared .align 16 .b8 room[4096];
         mov.u32 r1, %tid.x; mul.wide.u32 d1, r1, 4;
         ld.param.u64 d2, [in]; add.s64 d2, d2, d1; ld.global.u32 r2, [d2];
         mov.u32 r0, 0;
         {body}
         ld.param.u64 d2, [out]; add.s64 d2, d2, d1; st.global.u32 [d2], r0; ret; }}"
    );
    let mut memory = Memory::default();
    crate::coverage::note(&text);
    let program = Program::load(&text, &mut memory).unwrap_or_else(|e| panic!("{body}: {e}"));
    let kernel = program.kernel("k").unwrap_or_else(|e| panic!("{body}: {e}"));
    let input = memory.upload(inputs).expect("memory");
    let out = memory.upload(&vec![0u32; inputs.len()]).expect("memory");
    let arguments = Arguments::new().with(out).with(input);
    let shape = Launch {
        grid: [1, 1, 1],
        block: [inputs.len() as u32, 1, 1],
        dynamic_shared: 0,
        cluster: None,
    };
    let outcome =
        launch(&kernel, &memory, &shape, arguments.bytes(), &Options::default()).expect("a launch");
    assert_eq!(outcome.errors().count(), 0, "{body}: {:?}", outcome.reports);
    (memory.download(out, inputs.len()).expect("memory"), outcome)
}

fn values(body: &str, inputs: &[u32]) -> Vec<u32> {
    run(body, inputs).0
}

/// The lane that a lane reads from, given its number, the distance and the width; none for itself.
type Source = fn(u32, u32, u32) -> Option<u32>;

fn squares() -> Vec<u32> {
    (0..32).map(|i| i * i + 3).collect()
}

#[test]
fn shuffles_read_from_the_lane_that_they_name() {
    let inputs = squares();
    for width in [32u32, 16, 8, 2] {
        for step in [0u32, 1, 3, 8, 31] {
            // The last operand of CUDA's functions: segments of `width` lanes.
            let segments = (32 - width) << 8;
            let cases: [(&str, u32, Source); 4] = [
                ("up", segments, |lane, step, width| (lane % width >= step).then(|| lane - step)),
                ("down", segments | 31, |lane, step, width| {
                    (lane % width + step < width).then(|| lane + step)
                }),
                ("bfly", segments | 31, |lane, step, width| {
                    let other = lane ^ step;
                    (other < (lane / width + 1) * width).then_some(other)
                }),
                ("idx", segments | 31, |lane, step, width| {
                    Some(lane / width * width + step % width)
                }),
            ];
            for (name, clamp, source) in cases {
                let text = format!("shfl.sync.{name}.b32 r0|p1, r2, {step}, {clamp}, -1;");
                let expected: Vec<u32> = (0..32)
                    .map(|lane| inputs[source(lane, step, width).unwrap_or(lane) as usize])
                    .collect();
                assert_eq!(values(&text, &inputs), expected, "{text}");
                let inside = format!("{text} selp.u32 r0, 1, 0, p1;");
                let expected: Vec<u32> =
                    (0..32).map(|lane| u32::from(source(lane, step, width).is_some())).collect();
                assert_eq!(values(&inside, &inputs), expected, "{text}");
            }
        }
    }
}

#[test]
fn votes_count_the_lanes_of_their_mask() {
    let inputs: Vec<u32> = (0..32).map(|i| u32::from(i % 3 == 0)).collect();
    let ballot = (0..32).filter(|i| i % 3 == 0).fold(0, |all, i| all | 1 << i);
    let test = "setp.ne.u32 p1, r2, 0;";
    assert_eq!(values(&format!("{test} vote.sync.ballot.b32 r0, p1, -1;"), &inputs), [ballot; 32]);
    assert_eq!(
        values(&format!("{test} vote.sync.ballot.b32 r0, !p1, -1;"), &inputs),
        [!ballot; 32]
    );
    for (kind, all_true, mixed, all_false) in [("all", 1, 0, 0), ("any", 1, 1, 0), ("uni", 1, 0, 1)]
    {
        let text = format!("{test} vote.sync.{kind}.pred p2, p1, -1; selp.u32 r0, 1, 0, p2;");
        assert_eq!(values(&text, &[1; 32]), [all_true; 32]);
        assert_eq!(values(&text, &inputs), [mixed; 32]);
        assert_eq!(values(&text, &[0; 32]), [all_false; 32]);
    }
    // In a part of a warp only that part votes.
    let half = "setp.lt.u32 p3, r1, 16; setp.ne.u32 p1, r2, 0;
        @p3 vote.sync.ballot.b32 r0, p1, 0xffff;";
    let found = values(half, &inputs);
    assert_eq!(found[..16], [ballot & 0xffff; 16]);
    assert_eq!(found[16..], [0; 16]);
}

#[test]
fn lanes_with_the_same_value_find_each_other() {
    let inputs: Vec<u32> = (0..32).map(|i| i % 5).collect();
    let expected: Vec<u32> = (0..32)
        .map(|lane| (0..32).filter(|other| other % 5 == lane % 5).fold(0, |all, o| all | 1 << o))
        .collect();
    assert_eq!(values("match.any.sync.b32 r0, r2, -1;", &inputs), expected);
    let all = "match.all.sync.b32 r3|p1, r2, -1; selp.u32 r0, r3, 7, p1;";
    assert_eq!(values(all, &[9; 32]), [u32::MAX; 32]);
    assert_eq!(values(all, &inputs), [7; 32]);
    assert_eq!(values("activemask.b32 r0;", &[0; 20]), [0xf_ffff; 20]);
    let leader = "elect.sync r3|p1, -1; selp.u32 r0, 1, 0, p1;";
    assert_eq!(values(leader, &[0; 32]).iter().sum::<u32>(), 1);
}

#[test]
fn warps_reduce_whole_numbers() {
    let inputs: Vec<u32> = squares().into_iter().map(|x| x.wrapping_sub(40)).collect();
    let signed = inputs.iter().map(|x| *x as i32);
    let cases = [
        ("add.u32", inputs.iter().fold(0u32, |a, b| a.wrapping_add(*b))),
        ("min.u32", *inputs.iter().min().unwrap()),
        ("max.u32", *inputs.iter().max().unwrap()),
        ("min.s32", signed.clone().min().unwrap() as u32),
        ("max.s32", signed.max().unwrap() as u32),
        ("and.b32", inputs.iter().fold(u32::MAX, |a, b| a & b)),
        ("or.b32", inputs.iter().fold(0, |a, b| a | b)),
        ("xor.b32", inputs.iter().fold(0, |a, b| a ^ b)),
    ];
    for (name, expected) in cases {
        let text = format!("redux.sync.{name} r0, r2, -1;");
        assert_eq!(values(&text, &inputs), [expected; 32], "{name}");
    }
}

#[test]
fn special_registers_tell_a_thread_where_it_is() {
    assert_eq!(values("mov.u32 r0, %laneid;", &[0; 70])[64..], [0, 1, 2, 3, 4, 5]);
    assert_eq!(values("mov.u32 r0, %warpid;", &[0; 70])[63..65], [1, 2]);
    assert_eq!(values("mov.u32 r0, %nwarpid;", &[0; 70])[0], 3);
    let lanes =
        [("eq", 0x10), ("lt", 0xf), ("le", 0x1f), ("gt", 0xffff_ffe0u32), ("ge", 0xffff_fff0)];
    for (name, expected) in lanes {
        assert_eq!(values(&format!("mov.u32 r0, %lanemask_{name};"), &[0; 32])[4], expected);
    }
    // Time goes on.
    let time = "mov.u32 r3, %clock; add.u32 r4, r3, 1; mov.u32 r5, %clock; sub.u32 r0, r5, r3;";
    assert!(values(time, &[0; 32])[0] > 0);
}

#[test]
fn barriers_combine_predicates_of_all_warps() {
    let inputs: Vec<u32> = (0..96).map(|i| u32::from(i % 7 == 0)).collect();
    let ones = inputs.iter().sum::<u32>();
    let test = "setp.ne.u32 p1, r2, 0;";
    assert_eq!(values(&format!("{test} bar.red.popc.u32 r0, 0, p1;"), &inputs), [ones; 96]);
    for (kind, expected) in [("and", 0), ("or", 1)] {
        let text = format!("{test} bar.red.{kind}.pred p2, 0, p1; selp.u32 r0, 1, 0, p2;");
        assert_eq!(values(&text, &inputs), [expected; 96]);
    }
    let all = format!("{test} bar.red.and.pred p2, 0, p1; selp.u32 r0, 1, 0, p2;");
    assert_eq!(values(&all, &[1; 96]), [1; 96]);
}

#[test]
fn a_producer_hands_over_through_a_barrier_that_it_does_not_wait_at() {
    let text = "mov.u32 r3, room; and.b32 r4, r1, 31; shl.b32 r4, r4, 2; add.u32 r3, r3, r4;
        setp.lt.u32 p1, r1, 32; @p1 bra produce;
        bar.sync 1, 64; ld.shared.u32 r0, [r3]; bra done;
        produce: st.shared.u32 [r3], r2; bar.arrive 1, 64; done:";
    let inputs: Vec<u32> = (0..64).map(|i| i * 11).collect();
    let (found, outcome) = run(text, &inputs);
    assert_eq!(found[32..], inputs[..32]);
    assert_eq!(outcome.counts.barriers, 1);
}

#[test]
fn atomics_return_what_was_there_and_leave_the_result() {
    // Each lane changes one word of shared memory; the last line reads the word.
    let change = |operation: &str, start: u32| {
        let text = format!(
            "mov.u32 r3, room; setp.eq.u32 p1, r1, 0; @p1 st.shared.u32 [r3], {start}; bar.sync 0;
             atom.shared.{operation} r4, [r3], r2; bar.sync 0; ld.shared.u32 r0, [r3];"
        );
        values(&text, &squares())[0]
    };
    let inputs = squares();
    assert_eq!(change("add.u32", 5), 5 + inputs.iter().sum::<u32>());
    assert_eq!(change("min.u32", 50), 3);
    assert_eq!(change("max.s32", 0), 31 * 31 + 3);
    assert_eq!(change("and.b32", u32::MAX), inputs.iter().fold(u32::MAX, |a, b| a & b));
    assert_eq!(change("or.b32", 0), inputs.iter().fold(0, |a, b| a | b));
    assert_eq!(change("xor.b32", 0), inputs.iter().fold(0, |a, b| a ^ b));
    assert_eq!(change("exch.b32", 9), *inputs.last().unwrap());
    // `inc` counts up to the operand and `dec` down from it.
    let count = |operation: &str| {
        let text = format!(
            "mov.u32 r3, room; setp.eq.u32 p1, r1, 0; @p1 st.shared.u32 [r3], 0; bar.sync 0;
             atom.shared.{operation}.u32 r0, [r3], 4;"
        );
        let mut found = values(&text, &[0; 32]);
        found.sort_unstable();
        found
    };
    let expected: Vec<u32> = (0..32).map(|i| i * 5 / 32).collect();
    for operation in ["inc", "dec"] {
        let found = count(operation);
        assert!(found.iter().zip(&expected).all(|(a, b)| a.abs_diff(*b) <= 1), "{found:?}");
    }
    // One lane wins.
    let text = "mov.u32 r3, room; setp.eq.u32 p1, r1, 0; @p1 st.shared.u32 [r3], 0; bar.sync 0;
        add.u32 r4, r1, 1; atom.shared.cas.b32 r5, [r3], 0, r4; setp.eq.u32 p2, r5, 0;
        selp.u32 r0, 1, 0, p2;";
    assert_eq!(values(text, &[0; 32]).iter().sum::<u32>(), 1);
    // Floating point, in device memory: each lane adds 0.5 to the result of lane 0.
    let text = "ld.param.u64 d3, [out]; mov.f32 r3, 0f3F000000; red.global.add.f32 [d3], r3;
        bar.sync 0; setp.eq.u32 p1, r1, 0; @p1 ld.global.u32 r0, [d3];";
    assert_eq!(f32::from_bits(values(text, &[0; 32])[0]), 16.0);
    let text = "ld.param.u64 d3, [out]; mov.b32 r3, 0x40003c00;
        red.global.add.noftz.f16x2 [d3], r3;
        bar.sync 0; setp.eq.u32 p1, r1, 0; @p1 ld.global.u32 r0, [d3];";
    // 1 and 2, 32 times.
    assert_eq!(values(text, &[0; 32])[0], 0x5400_5000);
}

#[test]
fn copies_fill_what_they_do_not_read_with_zeros() {
    for (bytes, size) in [(16, 16), (16, 4), (16, 0)] {
        let text = format!(
            "mov.u32 r3, room; ld.param.u64 d3, [in]; mov.u32 r5, {size};
             setp.eq.u32 p1, r1, 0; @!p1 bra over;
             cp.async.cg.shared.global [r3], [d3], {bytes}, r5;
             cp.async.commit_group; cp.async.wait_group 0;
             over: bar.sync 0; and.b32 r4, r1, 3; shl.b32 r4, r4, 2; add.u32 r3, r3, r4;
             ld.shared.u32 r0, [r3];"
        );
        let inputs: Vec<u32> = (1..33).collect();
        let expected: Vec<u32> = (0..4).map(|i| if i * 4 < size { i + 1 } else { 0 }).collect();
        assert_eq!(values(&text, &inputs)[..4], expected, "{size}");
    }
}
