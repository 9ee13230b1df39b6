//! `wmma`: matrices that are loaded, multiplied and stored, against sums of products.

use crate::block::Body;

fn element(which: usize, row: usize, column: usize) -> i32 {
    ((row * 3 + column * 5 + which * 2) % 7) as i32 - 3
}

/// The bits of a small whole number.
fn encode(name: &str, value: i32) -> u64 {
    let single = (value as f32).to_bits();
    match name {
        "f16" => {
            // Exponents of small numbers differ by a constant.
            let magnitude = single & 0x7fff_ffff;
            let bits = if magnitude == 0 { 0 } else { (magnitude - (112 << 23)) >> 13 };
            u64::from(bits | single >> 16 & 0x8000)
        }
        "bf16" => u64::from(single >> 16),
        "f32" | "tf32" => u64::from(single),
        "f64" => f64::from(value).to_bits(),
        "s32" => u64::from(value as u32),
        _ => u64::from(value as u8),
    }
}

fn bytes_of(name: &str) -> usize {
    match name {
        "f16" | "bf16" => 2,
        "f64" => 8,
        "s8" | "u8" => 1,
        _ => 4,
    }
}

/// A shape, types of A and B and of C and D, and numbers of registers of A, B, and C and D.
type Case = ((usize, usize, usize), &'static str, &'static str, [usize; 3]);

const CASES: [Case; 12] = [
    ((16, 16, 16), "f16", "f32", [8, 8, 8]),
    ((32, 8, 16), "f16", "f32", [8, 8, 8]),
    ((8, 32, 16), "f16", "f32", [8, 8, 8]),
    ((16, 16, 16), "f16", "f16", [8, 8, 4]),
    ((16, 16, 16), "bf16", "f32", [4, 4, 8]),
    ((32, 8, 16), "bf16", "f32", [8, 2, 8]),
    ((8, 32, 16), "bf16", "f32", [2, 8, 8]),
    ((16, 16, 8), "tf32", "f32", [4, 4, 8]),
    ((16, 16, 16), "s8", "s32", [2, 2, 8]),
    ((32, 8, 16), "u8", "s32", [4, 1, 8]),
    ((8, 32, 16), "s8", "s32", [1, 4, 8]),
    ((8, 8, 4), "f64", "f64", [1, 1, 2]),
];

#[test]
fn fragments_are_loaded_multiplied_and_stored() {
    for ((m, n, k), inputs, sums, counts) in CASES {
        for (by_rows, stride) in [(true, 40usize), (false, 48)] {
            let shape = format!("m{m}n{n}k{k}");
            let layout = if by_rows { "row" } else { "col" };
            let mut image = vec![0u8; 0x8000];
            let place = |row: usize, column: usize, bytes: usize| {
                let (major, minor) = if by_rows { (row, column) } else { (column, row) };
                (major * stride + minor) * bytes
            };
            let parts = [(0, m, k, inputs), (0x2000, k, n, inputs), (0x4000, m, n, sums)];
            for (which, (start, rows, columns, name)) in parts.into_iter().enumerate() {
                let bytes = bytes_of(name);
                for (row, column) in (0..rows * columns).map(|at| (at / columns, at % columns)) {
                    let bits = encode(name, element(which, row, column)).to_le_bytes();
                    let at = start + place(row, column, bytes);
                    image[at..at + bytes].copy_from_slice(&bits[..bytes]);
                }
            }
            let letter = if sums == "f64" { "d" } else { "r" };
            let list = |first: usize, count: usize| {
                let names: Vec<String> =
                    (first..first + count).map(|i| format!("{letter}{i}")).collect();
                format!("{{{}}}", names.join(", "))
            };
            let (a, b, c) =
                (list(5, counts[0]), list(5 + counts[0], counts[1]), list(30, counts[2]));
            let (a, b, c) =
                if sums == "f64" { (list(5, 1), list(6, 1), list(8, 2)) } else { (a, b, c) };
            let types = match inputs {
                "f16" => format!("{sums}.{sums}"),
                _ => format!("{sums}.{inputs}.{inputs}.{sums}"),
            };
            let size = bytes_of(sums);
            let text = format!(
                "mov.u32 r140, room; add.u32 r141, r140, 8192; add.u32 r142, r140, 16384; mov.u32 r144, {stride};
                 wmma.load.a.sync.aligned.{layout}.{shape}.shared.{inputs} {a}, [r140], r144;
                 wmma.load.b.sync.aligned.{layout}.{shape}.shared.{inputs} {b}, [r141], {stride};
                 wmma.load.c.sync.aligned.{layout}.{shape}.shared.{sums} {c}, [r142], r144;
                 wmma.mma.sync.aligned.{layout}.{layout}.{shape}.{types} {c}, {a}, {b}, {c};
                 wmma.store.d.sync.aligned.row.{shape}.global.{sums} [d2], {c};"
            );
            let words = 64 * size.max(4) / 8;
            let body =
                Body { text: &text, room: image.len(), image: &image, words, ..Body::default() };
            let found = body.words();
            let found: Vec<u8> = found.iter().flat_map(|word| word.to_le_bytes()).collect();
            for (row, column) in (0..m * n).map(|at| (at / n, at % n)) {
                let byte = |value: i32| if inputs == "u8" { value & 0xff } else { value };
                let product: i32 =
                    (0..k).map(|i| byte(element(0, row, i)) * byte(element(1, i, column))).sum();
                let bits = encode(sums, product + element(2, row, column)).to_le_bytes();
                let at = (row * n + column) * size;
                assert_eq!(found[at..at + size], bits[..size], "{text}: {row}, {column}");
            }
        }
    }
}
