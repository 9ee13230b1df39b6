//! `wgmma` of every type, with matrices in every layout, against products of small whole numbers
//! that every format holds exactly. The layouts are laid out here by rows and atoms, not by bits of
//! addresses.

use crate::block::Body;

/// How a matrix lies in shared memory.
#[derive(Clone, Copy, Debug)]
struct Layout {
    /// Bytes of the swizzle; 16 for none.
    span: usize,
    outer_major: bool,
}

/// Bytes between parts of a matrix: leading and stride offset.
const LEADING: usize = 0x2400;
const STRIDE: usize = 0x400;

/// A matrix of `lines` along the outer dimension, with `inner` elements of `bytes` each.
#[derive(Clone, Copy)]
struct Matrix {
    layout: Layout,
    lines: usize,
    bytes: usize,
}

impl Matrix {
    fn inner(&self) -> usize {
        32 / self.bytes
    }

    fn offsets(&self) -> (usize, usize) {
        match (self.layout.outer_major, self.layout.span) {
            // Pieces of neighbouring lines first, then along the inner dimension.
            (false, 16) => (LEADING, 128),
            (true, 16) => (LEADING, 128),
            _ => (LEADING, STRIDE),
        }
    }

    /// Where an element lies.
    fn place(&self, line: usize, inner: usize) -> usize {
        let (leading, stride) = self.offsets();
        // The atom's rows are lines, or steps along the inner dimension.
        let (row, along) = if self.layout.outer_major { (inner, line) } else { (line, inner) };
        let (piece, rest) = (along * self.bytes / 16, along * self.bytes % 16);
        let span = self.layout.span;
        if span == 16 {
            let (by_row, by_piece) =
                if self.layout.outer_major { (leading, stride) } else { (stride, leading) };
            return row / 8 * by_row + piece * by_piece + row % 8 * 16 + rest;
        }
        let pieces = span / 16;
        let moved = (piece % pieces) ^ (row % 8 * pieces / 8);
        row / 8 * stride + row % 8 * span + moved * 16 + piece / pieces * leading + rest
    }

    fn descriptor(&self, start: usize) -> u64 {
        let (leading, stride) = self.offsets();
        let mode = match self.layout.span {
            16 => 0u64,
            128 => 1,
            64 => 2,
            _ => 3,
        };
        (start as u64 >> 4) | (leading as u64 >> 4) << 16 | (stride as u64 >> 4) << 32 | mode << 62
    }
}

/// Small whole numbers: `which` is 1 for A, 2 for B, 3 for the sums before.
fn element(which: usize, line: usize, inner: usize) -> i32 {
    ((line * 5 + inner * 3 + which * 7) % 9) as i32 - 4
}

/// The bits of a small whole number in a format.
fn encode(name: &str, value: i32) -> u32 {
    let magnitude = value.unsigned_abs();
    let float = |fraction: u32, bias: u32, sign: u32| {
        if magnitude == 0 {
            return 0;
        }
        let exponent = magnitude.ilog2();
        let mantissa = (magnitude << fraction >> exponent) & ((1 << fraction) - 1);
        u32::from(value < 0) << sign | (exponent + bias) << fraction | mantissa
    };
    match name {
        "f16" => float(10, 15, 15),
        "bf16" => float(7, 127, 15),
        "tf32" => float(23, 127, 31),
        "e4m3" => float(3, 7, 7),
        "e5m2" => float(2, 15, 7),
        _ => value as u32 & 0xff,
    }
}

fn bytes_of(name: &str) -> usize {
    match name {
        "f16" | "bf16" => 2,
        "tf32" => 4,
        _ => 1,
    }
}

/// What the sums are after the product.
fn expected(
    names: (&str, &str),
    row: usize,
    column: usize,
    inner: usize,
    keep: bool,
    sign: i32,
) -> i32 {
    let byte = |value: i32, name: &str| if name == "u8" { value & 0xff } else { value };
    let product: i32 = (0..inner)
        .map(|k| byte(element(1, row, k), names.0) * byte(element(2, column, k), names.1))
        .sum();
    sign * product + if keep { element(3, row, column) } else { 0 }
}

struct Case<'a> {
    types: (&'a str, &'a str, &'a str),
    n: usize,
    /// A in shared memory, or in registers.
    a: Option<Layout>,
    b: Layout,
    keep: bool,
    sign: i32,
}

impl Case<'_> {
    fn run(&self) {
        let (d, a_type, b_type) = self.types;
        let bytes = bytes_of(a_type);
        let b = Matrix { layout: self.b, lines: self.n, bytes };
        let inner = b.inner();
        let (a_start, b_start) = (0, 0x8000);
        let mut image = vec![0u8; 0x8000 + 0x18000];
        let mut put = |start: usize, matrix: &Matrix, which: usize, name: &str| {
            for line in 0..matrix.lines {
                for k in 0..inner {
                    let bits = encode(name, element(which, line, k)).to_le_bytes();
                    let at = start + matrix.place(line, k);
                    image[at..at + bytes].copy_from_slice(&bits[..bytes]);
                }
            }
        };
        put(b_start, &b, 2, b_type);
        let a = self.a.map(|layout| Matrix { layout, lines: 64, bytes });
        if let Some(a) = &a {
            put(a_start, a, 1, a_type);
        }
        let halves = d == "f16";
        let count = if halves { self.n / 4 } else { self.n / 2 };
        // Fragments of A and of the sums are read from behind the matrices, a row for each thread.
        let base = image.len();
        let width = count + 4;
        image.resize(base + 128 * width * 4, 0);
        for thread in 0..128 {
            let (row, t) = (thread / 32 * 16 + thread % 32 / 4, thread % 4);
            for register in 0..width {
                let word = if register >= count {
                    let register = register - count;
                    let row = row + 8 * (register % 2);
                    let packed = 4 / bytes;
                    (0..packed).fold(0, |all, part| {
                        let k = 4 * packed * (register / 2) + packed * t + part;
                        all | encode(a_type, element(1, row, k)) << (8 * bytes * part)
                    })
                } else if halves {
                    let (row, column) = (row + 8 * (register % 2), register / 2 * 8 + 2 * t);
                    encode("f16", element(3, row, column))
                        | encode("f16", element(3, row, column + 1)) << 16
                } else {
                    let row = row + 8 * (register / 2 % 2);
                    let value = element(3, row, register / 4 * 8 + 2 * t + register % 2);
                    if d == "s32" { value as u32 } else { (value as f32).to_bits() }
                };
                let at = base + (thread * width + register) * 4;
                image[at..at + 4].copy_from_slice(&word.to_le_bytes());
            }
        }
        let list = |first: usize, count: usize| {
            let names: Vec<String> = (first..first + count).map(|r| format!("r{r}")).collect();
            format!("{{{}}}", names.join(", "))
        };
        let k = inner;
        let left = match &a {
            Some(_) => "d5".to_owned(),
            None => list(count, 4),
        };
        let tail = match (bytes, d, self.a) {
            (_, "s32", _) => String::new(),
            (2, _, Some(a)) => {
                let turn = |layout: Layout| u8::from(layout.outer_major);
                format!(", {}, 1, {}, {}", self.sign, turn(a), turn(self.b))
            }
            (2, _, None) => format!(", 1, {}, {}", self.sign, u8::from(self.b.outer_major)),
            _ => format!(", {}, 1", self.sign),
        };
        let loads: String = (0..width)
            .map(|register| format!("ld.shared.u32 r{register}, [r140+{}];", register * 4))
            .collect();
        let stores: String =
            (0..count).map(|r| format!("st.global.u32 [d1+{}], r{r};", r * 4)).collect();
        let text = format!(
            "mov.u32 r140, room; mad.lo.u32 r140, r150, {row}, r140; add.u32 r140, r140, {base};
             {loads} mov.u32 r141, room; shr.u32 r141, r141, 4; cvt.u64.u32 d4, r141;
             mov.u64 d5, {a}; add.s64 d5, d5, d4; mov.u64 d6, {b}; add.s64 d6, d6, d4;
             mov.u32 r142, {keep}; setp.ne.u32 p1, r142, 0;
             wgmma.fence.sync.aligned;
             wgmma.mma_async.sync.aligned.m64n{n}k{k}.{d}.{a_type}.{b_type} {sums}, {left}, d6, p1{tail};
             wgmma.commit_group.sync.aligned; wgmma.wait_group.sync.aligned 0; {stores}",
            row = width * 4,
            a = a.map_or(0, |a| a.descriptor(a_start)),
            b = b.descriptor(b_start),
            keep = u8::from(self.keep),
            n = self.n,
            sums = list(0, count),
        );
        let body = Body {
            text: &text,
            threads: 128,
            room: image.len(),
            image: &image,
            words: count,
            ..Body::default()
        };
        let words = body.words();
        for (thread, words) in words.chunks(count).enumerate() {
            let (row, t) = (thread / 32 * 16 + thread % 32 / 4, thread % 4);
            for (register, word) in words.iter().enumerate() {
                let want =
                    |row, column| expected((a_type, b_type), row, column, k, self.keep, self.sign);
                let bits = if halves {
                    let (row, column) = (row + 8 * (register % 2), register / 2 * 8 + 2 * t);
                    encode("f16", want(row, column)) | encode("f16", want(row, column + 1)) << 16
                } else {
                    let row = row + 8 * (register / 2 % 2);
                    let value = want(row, register / 4 * 8 + 2 * t + register % 2);
                    if d == "s32" { value as u32 } else { (value as f32).to_bits() }
                };
                // Zeros of a negated sum may have either sign.
                let same = *word == bits || word & 0x7fff_7fff == 0 && bits == 0;
                assert!(same, "{text}: thread {thread}, register {register}: {word:x} {bits:x}");
            }
        }
    }
}

const PLAIN: Layout = Layout { span: 128, outer_major: false };

#[test]
fn matrices_of_halves_lie_in_every_layout() {
    for span in [16, 32, 64, 128] {
        for outer_major in [false, true] {
            let layout = Layout { span, outer_major };
            let types = ("f32", "bf16", "bf16");
            Case { types, n: 72, a: Some(layout), b: PLAIN, keep: true, sign: 1 }.run();
            Case { types, n: 72, a: Some(PLAIN), b: layout, keep: false, sign: -1 }.run();
            Case { types, n: 8, a: None, b: layout, keep: true, sign: -1 }.run();
        }
    }
}

#[test]
fn every_type_is_multiplied_with_any_number_of_columns() {
    let types = [
        ("f32", "f16", "f16"),
        ("f16", "f16", "f16"),
        ("f32", "tf32", "tf32"),
        ("f32", "e4m3", "e4m3"),
        ("f32", "e5m2", "e4m3"),
        ("f16", "e4m3", "e5m2"),
        ("s32", "s8", "s8"),
        ("s32", "u8", "s8"),
        ("s32", "s8", "u8"),
    ];
    for types in types {
        for (n, span) in [(8, 32), (24, 128), (160, 64)] {
            let b = Layout { span, outer_major: false };
            Case { types, n, a: Some(PLAIN), b, keep: true, sign: 1 }.run();
            Case { types, n, a: None, b, keep: n == 24, sign: 1 }.run();
        }
    }
}

#[test]
fn the_largest_product_is_right() {
    let b = Layout { span: 128, outer_major: true };
    Case { types: ("f32", "f16", "f16"), n: 208, a: None, b, keep: true, sign: 1 }.run();
}

/// A product of zeros of 64 rows and 8 columns, with `d5` for both matrices.
const MULTIPLY: &str =
    "wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {r0, r1, r2, r3}, d5, d5, 0, 1, 1, 0, 0;";
const DONE: &str = "wgmma.commit_group.sync.aligned; wgmma.wait_group.sync.aligned 0;";
const FENCE: &str = "wgmma.fence.sync.aligned;";

fn problems(rest: &str) -> String {
    let text = format!(
        "mov.u32 r141, room; shr.u32 r141, r141, 4; cvt.u64.u32 d4, r141; mov.u64 d5, {descriptor};
         add.s64 d5, d5, d4; setp.lt.u32 p1, r150, 96; mov.f32 r20, 0f3F800000; {rest}",
        descriptor = Matrix { layout: PLAIN, lines: 64, bytes: 2 }.descriptor(0),
    );
    let image = [0; 16384];
    Body { text: &text, threads: 128, room: 16384, image: &image, words: 4, ..Body::default() }
        .problems()
}

#[test]
fn products_that_are_used_wrongly_are_reported() {
    assert_eq!(problems(&format!("{FENCE} {MULTIPLY} {MULTIPLY} {DONE}")), "");
    let touched = problems(&format!("{FENCE} {MULTIPLY} add.f32 r20, r20, r1; {DONE}"));
    assert!(touched.contains("was not waited for uses is touched"), "{touched}");
    // A copy of a register on its way is on its way.
    let copied =
        problems(&format!("{FENCE} {MULTIPLY} mov.b32 r9, r1; add.f32 r20, r20, r9; {DONE}"));
    assert!(copied.contains("was not waited for uses is touched"), "{copied}");
    let loose = DONE.replace("aligned 0", "aligned 1");
    let early = problems(&format!("{FENCE} {MULTIPLY} {loose} st.global.f32 [d1], r1; {DONE}"));
    assert!(early.contains("was not waited for uses is touched"), "{early}");
    let unfenced = problems(&format!("{MULTIPLY} {DONE}"));
    assert!(unfenced.contains("since the last wgmma.fence"), "{unfenced}");
    let written = problems(&format!("{FENCE} add.f32 r1, r20, r20; {MULTIPLY} {DONE}"));
    assert!(written.contains("since the last wgmma.fence"), "{written}");
    // Compilers set registers to constants anywhere.
    assert_eq!(problems(&format!("{FENCE} mov.f32 r1, 0f00000000; {MULTIPLY} {DONE}")), "");
    let left = problems(&format!("{FENCE} {MULTIPLY} wgmma.commit_group.sync.aligned;"));
    assert!(left.contains("the warp ends with 1 wgmma"), "{left}");
    let alone = problems(&format!("@!p1 bra end; {FENCE} {MULTIPLY} {DONE} end:"));
    assert!(alone.contains("do not execute the same wgmma"), "{alone}");
    let other = MULTIPLY.replace("1, 1, 0, 0", "-1, 1, 0, 0");
    let apart = format!("{FENCE} @p1 bra most; {MULTIPLY} bra both; most: {other} both: {DONE}");
    assert!(problems(&apart).contains("do not execute the same wgmma"));
    let divergent = problems(&format!(
        "{FENCE} and.b32 r21, r150, 1; setp.eq.u32 p2, r21, 0; @p2 {MULTIPLY} {DONE}"
    ));
    assert!(divergent.contains("do not take part"), "{divergent}");
    let base = problems(&format!("or.b64 d5, d5, 0x2000000000000; {FENCE} {MULTIPLY} {DONE}"));
    assert!(base.contains("base offset"), "{base}");
    let beyond = problems(&format!("or.b64 d5, d5, 0x2000; {FENCE} {MULTIPLY} {DONE}"));
    assert!(beyond.contains("out of shared memory"), "{beyond}");
    let changed = problems(&format!(
        "mov.u32 r22, room; shl.b32 r23, r150, 2; add.u32 r22, r22, r23; {FENCE} {MULTIPLY}
         st.shared.u32 [r22], r23; {DONE}"
    ));
    assert!(changed.contains("wgmma that was not waited for reads"), "{changed}");
}
