//! Fragments written down from the figures of the PTX manual, against products of plain matrices.

use cuda_emulator::{Arguments, Launch, Memory, Options, Program, launch};

use crate::exact::{BF16, F16, Mode};

/// Runs a body on one warp. `d2` is the address of this lane's 16 input words and `d3` that of its
/// 8 result words.
fn run(body: &str, inputs: &[[u32; 16]; 32]) -> Vec<[u32; 8]> {
    let text = format!(
        ".version 8.8\n.target sm_90\n.address_size 64\n
         .visible .entry k(.param .u64 out, .param .u64 in) {{
         .reg .pred p<4>; .reg .b32 r<24>; .reg .b64 d<8>;
         .shared .align 128 .b8 room[4096];
         mov.u32 r20, %tid.x;
         mul.wide.u32 d1, r20, 64; ld.param.u64 d2, [in]; add.s64 d2, d2, d1;
         mul.wide.u32 d1, r20, 32; ld.param.u64 d3, [out]; add.s64 d3, d3, d1;
         ld.global.v4.u32 {{r0, r1, r2, r3}}, [d2];
         ld.global.v4.u32 {{r4, r5, r6, r7}}, [d2+16];
         ld.global.v4.u32 {{r8, r9, r10, r11}}, [d2+32];
         {body}
         st.global.v4.u32 [d3], {{r0, r1, r2, r3}}; ret; }}"
    );
    let mut memory = Memory::default();
    crate::coverage::note(&text);
    let program = Program::load(&text, &mut memory).unwrap_or_else(|e| panic!("{body}: {e}"));
    let kernel = program.kernel("k").unwrap_or_else(|e| panic!("{body}: {e}"));
    let input = memory.upload(inputs.as_flattened()).expect("memory");
    let out = memory.upload(&[0u32; 256]).expect("memory");
    let arguments = Arguments::new().with(out).with(input);
    let shape = Launch { grid: [1, 1, 1], block: [32, 1, 1], dynamic_shared: 0, cluster: None };
    let outcome =
        launch(&kernel, &memory, &shape, arguments.bytes(), &Options::default()).expect("a launch");
    assert_eq!(outcome.errors().count(), 0, "{body}: {:?}", outcome.reports);
    memory.download(out, 32).expect("memory")
}

/// A type of elements: its name, its bits, and what bits stand for.
struct Kind {
    name: &'static str,
    bits: usize,
    encode: fn(i32) -> u32,
}

fn half(value: i32) -> u32 {
    F16.round(f64::from(value), Mode::Nearest) as u32
}

fn brain(value: i32) -> u32 {
    BF16.round(f64::from(value), Mode::Nearest) as u32
}

/// Small whole numbers, which every format holds and whose sums are exact.
fn element(seed: usize, row: usize, column: usize) -> i32 {
    ((row * 7 + column * 13 + seed * 5 + row * column) % 9) as i32 - 4
}

/// The register and the element of it that lane `lane` has of A, for elements of 16 bits: the
/// manual's `row = group for a0, a1, a4, a5 and group + 8 otherwise`, and so on for other widths.
fn a_index(lane: usize, i: usize, bits: usize) -> (usize, usize) {
    let (group, thread) = (lane / 4, lane % 4);
    let per = 32 / bits;
    let register = i / per;
    let row = if register.is_multiple_of(2) { group } else { group + 8 };
    let column = thread * per + i % per + if register >= 2 { 4 * per } else { 0 };
    (row, column)
}

fn b_index(lane: usize, i: usize, bits: usize) -> (usize, usize) {
    let (group, thread) = (lane / 4, lane % 4);
    let per = 32 / bits;
    (thread * per + i % per + 4 * per * (i / per), group)
}

fn c_index(lane: usize, i: usize) -> (usize, usize) {
    (lane / 4 + 8 * (i / 2), lane % 4 * 2 + i % 2)
}

fn product(k: usize, row: usize, column: usize) -> i32 {
    (0..k).map(|i| element(1, row, i) * element(2, i, column)).sum::<i32>()
        + element(3, row, column)
}

fn fragments(kind: &Kind, other: &Kind, k: usize) -> [[u32; 16]; 32] {
    let per = 32 / kind.bits;
    let a_registers = 16 * k / 32 / per;
    let b_registers = a_registers / 2;
    let pack = |kind: &Kind, values: Vec<i32>| -> Vec<u32> {
        let mask = if kind.bits == 32 { u32::MAX } else { (1 << kind.bits) - 1 };
        values
            .chunks(per)
            .map(|chunk| {
                chunk.iter().enumerate().fold(0, |all, (index, value)| {
                    all | ((kind.encode)(*value) & mask) << (kind.bits * index)
                })
            })
            .collect()
    };
    std::array::from_fn(|lane| {
        let mut words = [0; 16];
        let a = (0..a_registers * per).map(|i| a_index(lane, i, kind.bits));
        let b = (0..b_registers * per).map(|i| b_index(lane, i, kind.bits));
        let a = pack(kind, a.map(|(row, column)| element(1, row, column)).collect());
        let b = pack(other, b.map(|(row, column)| element(2, row, column)).collect());
        for (place, word) in words[4..8].iter_mut().zip(a) {
            *place = word;
        }
        for (place, word) in words[8..10].iter_mut().zip(b) {
            *place = word;
        }
        words
    })
}

#[test]
fn tensor_cores_multiply_every_shape_and_type() {
    let kind = |name, bits, encode| Kind { name, bits, encode };
    let single: fn(i32) -> u32 = |value| (value as f32).to_bits();
    // e4m3: 1 is 0x38, 2 is 0x40, 3 is 0x44, 4 is 0x48. e5m2: 0x3c, 0x40, 0x42, 0x44.
    let e4m3: fn(i32) -> u32 =
        |v| [0, 0x38, 0x40, 0x44, 0x48][v.unsigned_abs() as usize] | if v < 0 { 0x80 } else { 0 };
    let e5m2: fn(i32) -> u32 =
        |v| [0, 0x3c, 0x40, 0x42, 0x44][v.unsigned_abs() as usize] | if v < 0 { 0x80 } else { 0 };
    let cases = [
        (kind("f16", 16, half), kind("f16", 16, half), vec![8, 16]),
        (kind("bf16", 16, brain), kind("bf16", 16, brain), vec![8, 16]),
        (kind("tf32", 32, single), kind("tf32", 32, single), vec![4, 8]),
        (kind("e4m3", 8, e4m3), kind("e4m3", 8, e4m3), vec![32]),
        (kind("e5m2", 8, e5m2), kind("e4m3", 8, e4m3), vec![32]),
    ];
    for (a, b, lengths) in cases {
        for k in lengths {
            let mut inputs = fragments(&a, &b, k);
            for (lane, words) in inputs.iter_mut().enumerate() {
                for (i, word) in words[..4].iter_mut().enumerate() {
                    let (row, column) = c_index(lane, i);
                    *word = (element(3, row, column) as f32).to_bits();
                }
            }
            let registers = 16 * k / (32 * 32 / a.bits);
            let a_list = ["", "", "{r4, r5}", "", "{r4, r5, r6, r7}"][registers];
            let b_list = if registers == 2 { "{r8}" } else { "{r8, r9}" };
            let text = format!(
                "mma.sync.aligned.m16n8k{k}.row.col.f32.{}.{}.f32 {{r0, r1, r2, r3}}, {a_list}, {b_list}, {{r0, r1, r2, r3}};",
                a.name, b.name
            );
            for (lane, words) in run(&text, &inputs).into_iter().enumerate() {
                for (i, word) in words[..4].iter().enumerate() {
                    let (row, column) = c_index(lane, i);
                    assert_eq!(f32::from_bits(*word), product(k, row, column) as f32, "{text}");
                }
            }
        }
    }
}

#[test]
fn tensor_cores_multiply_bytes_of_either_sign() {
    let kind = |name| Kind { name, bits: 8, encode: |value| value as u32 };
    for (a, b) in [("s8", "s8"), ("u8", "u8"), ("s8", "u8"), ("u8", "s8")] {
        for k in [16, 32] {
            let mut inputs = fragments(&kind(a), &kind(b), k);
            for (lane, words) in inputs.iter_mut().enumerate() {
                for (i, word) in words[..4].iter_mut().enumerate() {
                    let (row, column) = c_index(lane, i);
                    *word = element(3, row, column) as u32;
                }
            }
            let (a_list, b_list) =
                if k == 16 { ("{r4, r5}", "{r8}") } else { ("{r4, r5, r6, r7}", "{r8, r9}") };
            let text = format!(
                "mma.sync.aligned.m16n8k{k}.row.col.s32.{a}.{b}.s32 {{r0, r1, r2, r3}}, {a_list}, {b_list}, {{r0, r1, r2, r3}};"
            );
            let byte = |value: i32, name: &str| if name == "u8" { value & 0xff } else { value };
            for (lane, words) in run(&text, &inputs).into_iter().enumerate() {
                for (i, word) in words[..4].iter().enumerate() {
                    let (row, column) = c_index(lane, i);
                    let sum: i32 = (0..k)
                        .map(|i| byte(element(1, row, i), a) * byte(element(2, i, column), b))
                        .sum();
                    assert_eq!(*word as i32, sum + element(3, row, column), "{text}");
                }
            }
        }
    }
}

#[test]
fn sums_may_be_halves() {
    let kind = || Kind { name: "f16", bits: 16, encode: half };
    let mut inputs = fragments(&kind(), &kind(), 16);
    for (lane, words) in inputs.iter_mut().enumerate() {
        for (register, word) in words.iter_mut().enumerate().take(2) {
            let value = |i| {
                let (row, column) = c_index(lane, i);
                half(element(3, row, column))
            };
            *word = value(2 * register) | value(2 * register + 1) << 16;
        }
    }
    let text = "mma.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16 {r0, r1}, {r4, r5, r6, r7}, {r8, r9}, {r0, r1};";
    for (lane, words) in run(text, &inputs).into_iter().enumerate() {
        for i in 0..4 {
            let (row, column) = c_index(lane, i);
            let found = words[i / 2] >> (16 * (i % 2)) & 0xffff;
            assert_eq!(found, half(product(16, row, column)));
        }
    }
}

/// Shared memory with 32 rows of 16 bytes: lane `l` stores row `l`; element `n` of it is `8l + n`.
const FILL: &str = "mov.u32 r21, room; shl.b32 r22, r20, 4; add.u32 r21, r21, r22;
    st.shared.v4.u32 [r21], {r4, r5, r6, r7}; bar.warp.sync -1;";

fn rows() -> [[u32; 16]; 32] {
    std::array::from_fn(|lane| {
        std::array::from_fn(|word| {
            if !(4..8).contains(&word) {
                return 0;
            }
            let first = (8 * lane + 2 * (word - 4)) as u32;
            first | (first + 1) << 16
        })
    })
}

#[test]
fn matrices_are_loaded_by_rows_or_by_columns() {
    for (count, list) in [(1usize, "{r0}"), (2, "{r0, r1}"), (4, "{r0, r1, r2, r3}")] {
        for transposed in [false, true] {
            let trans = if transposed { ".trans" } else { "" };
            let text = format!(
                "{FILL} ldmatrix.sync.aligned.m8n8.x{count}{trans}.shared.b16 {list}, [r21];"
            );
            for (lane, words) in run(&text, &rows()).into_iter().enumerate() {
                for (matrix, word) in words.iter().enumerate().take(count) {
                    let at = |row: usize, column: usize| (8 * (8 * matrix + row) + column) as u32;
                    let (major, minor) = (lane / 4, lane % 4 * 2);
                    let [low, high] = if transposed {
                        [at(minor, major), at(minor + 1, major)]
                    } else {
                        [at(major, minor), at(major, minor + 1)]
                    };
                    assert_eq!(*word, low | high << 16, "{text}");
                }
            }
        }
    }
}

#[test]
fn matrices_that_were_stored_are_loaded_again() {
    for trans in ["", ".trans"] {
        let text = format!(
            "{FILL} ldmatrix.sync.aligned.m8n8.x4{trans}.shared.b16 {{r12, r13, r14, r15}}, [r21];
             add.u32 r21, r21, 1024;
             stmatrix.sync.aligned.m8n8.x4{trans}.shared.b16 [r21], {{r12, r13, r14, r15}};
             bar.warp.sync -1; ld.shared.v4.u32 {{r0, r1, r2, r3}}, [r21];"
        );
        for (lane, words) in run(&text, &rows()).into_iter().enumerate() {
            assert_eq!(words[..4], rows()[lane][4..8], "lane {lane}");
        }
    }
}

#[test]
fn a_matrix_is_transposed_between_registers() {
    let text = format!(
        "{FILL} ldmatrix.sync.aligned.m8n8.x1.shared.b16 {{r12}}, [r21];
         movmatrix.sync.aligned.m8n8.trans.b16 r0, r12;
         ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {{r1}}, [r21];"
    );
    for words in run(&text, &rows()) {
        assert_eq!(words[0], words[1]);
    }
}
