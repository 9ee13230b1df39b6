//! Mistakes that are made mechanically in the source of a kernel.
#![allow(dead_code, unreachable_pub)] // Of test crates, which use parts.

/// A changed source.
pub struct Mutant {
    pub kernel: &'static str,
    pub line: usize,
    pub kind: &'static str,
    pub what: String,
    pub source: String,
}

/// A rule: its name, and what becomes of a piece of a line. The rest of the line is given too.
pub struct Rule {
    kind: &'static str,
    from: &'static str,
    to: &'static str,
}

pub const SYNCHRONIZATION: [Rule; 4] = [
    Rule { kind: "barrier dropped", from: "__syncthreads();", to: "" },
    Rule { kind: "commit dropped", from: "commit_copies();", to: "" },
    Rule { kind: "wait loosened", from: "wait_copies<1>();", to: "wait_copies<2>();" },
    Rule { kind: "wait loosened", from: "wait_copies<0>();", to: "wait_copies<1>();" },
];

pub const COMPARISONS: [Rule; 6] = [
    Rule { kind: "comparison moved", from: " < ", to: " <= " },
    Rule { kind: "comparison moved", from: " <= ", to: " < " },
    Rule { kind: "comparison moved", from: " > ", to: " >= " },
    Rule { kind: "comparison moved", from: " >= ", to: " > " },
    Rule { kind: "comparison turned", from: " == ", to: " != " },
    Rule { kind: "comparison turned", from: " != ", to: " == " },
];

/// The places of a piece in the code of a source: the byte and the line, comments left out.
fn places(source: &str, piece: &str) -> Vec<(usize, usize)> {
    let mut all = Vec::new();
    let mut start = 0;
    for (index, line) in source.split_inclusive('\n').enumerate() {
        let code = line.find("//").map_or(line, |comment| &line[..comment]);
        if !code.trim_start().starts_with('#') {
            let mut from = 0;
            while let Some(at) = code[from..].find(piece) {
                all.push((start + from + at, index + 1));
                from += at + piece.len();
            }
        }
        start += line.len();
    }
    all
}

fn replace(
    kernel: &'static str,
    source: &str,
    (at, line): (usize, usize),
    (from, to): (&str, &str),
    kind: &'static str,
) -> Mutant {
    let changed = format!("{}{to}{}", &source[..at], &source[at + from.len()..]);
    let what = source.lines().nth(line - 1).unwrap_or("").trim().to_owned();
    Mutant { kernel, line, kind, what, source: changed }
}

pub fn by_rules(kernel: &'static str, source: &str, rules: &[Rule]) -> Vec<Mutant> {
    let mut all = Vec::new();
    for rule in rules {
        for place in places(source, rule.from) {
            all.push(replace(kernel, source, place, (rule.from, rule.to), rule.kind));
        }
    }
    all
}

/// The end of what a bracket at `open` encloses.
fn closing(source: &str, open: usize) -> usize {
    let mut depth = 0;
    for (offset, c) in source[open..].char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return open + offset;
        }
    }
    source.len()
}

/// `if (condition)` always taken, `condition ? a : b` always `a`, and strides off by one.
pub fn others(kernel: &'static str, source: &str) -> Vec<Mutant> {
    let mut all = Vec::new();
    for (at, line) in places(source, "if (") {
        let open = at + 3;
        let end = closing(source, open);
        all.push(replace(
            kernel,
            source,
            (open, line),
            (&source[open..=end], "(true)"),
            "test dropped",
        ));
    }
    for (at, line) in places(source, "exists = ") {
        let start = at + "exists = ".len();
        let end = source[start..].find(';').map_or(start, |end| start + end);
        all.push(replace(
            kernel,
            source,
            (start, line),
            (&source[start..end], "true"),
            "test dropped",
        ));
    }
    for (at, line) in places(source, " * ") {
        let start = at + 3;
        let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let end = source[start..].find(|c| !is_name(c)).map_or(start, |end| start + end);
        let factor = &source[start..end];
        // Factors that are numbers of elements or bytes, and not values.
        let is_stride =
            factor.chars().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_')
                || ["page_size", "kv_heads", "heads", "table_width", "width", "vocabulary"]
                    .contains(&factor);
        if is_stride && !factor.is_empty() {
            let changed = format!("({factor} + 1)");
            all.push(replace(kernel, source, (start, line), (factor, &changed), "stride changed"));
        }
    }
    all
}
