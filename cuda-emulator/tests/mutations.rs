//! Mistakes made mechanically in our kernels: each must be found, by a report or by wrong numbers.
//!
//! The usual run makes the mistakes of synchronization. All of them, with a table:
//!
//!     cargo test --release -p cuda-emulator --test mutations -- --ignored

mod support;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;
use std::sync::Mutex;

use cuda_emulator::count::{Cost, Excess};
use cuda_emulator::nvrtc::{CompileOptions, Nvrtc};
use cuda_emulator::{Options, Schedule};
use support::cases::{self, Failure};

const KERNELS: [&str; 5] = ["decode", "prefill", "norm", "sample", "matvec"];

/// A changed source.
struct Mutant {
    kernel: &'static str,
    line: usize,
    kind: &'static str,
    what: String,
    source: String,
}

/// A rule: its name, and what becomes of a piece of a line. The rest of the line is given too.
struct Rule {
    kind: &'static str,
    from: &'static str,
    to: &'static str,
}

const SYNCHRONIZATION: [Rule; 4] = [
    Rule { kind: "barrier dropped", from: "__syncthreads();", to: "" },
    Rule { kind: "commit dropped", from: "commit_copies();", to: "" },
    Rule { kind: "wait loosened", from: "wait_copies<1>();", to: "wait_copies<2>();" },
    Rule { kind: "wait loosened", from: "wait_copies<0>();", to: "wait_copies<1>();" },
];

const COMPARISONS: [Rule; 6] = [
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

fn by_rules(kernel: &'static str, source: &str, rules: &[Rule]) -> Vec<Mutant> {
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
fn others(kernel: &'static str, source: &str) -> Vec<Mutant> {
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

fn source(kernel: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("kernels/{kernel}.cu"));
    std::fs::read_to_string(path).expect("the source is there")
}

/// How a mutant ended.
enum End {
    DoesNotCompile,
    /// The compiler makes the same PTX of it: no mistake.
    Same,
    Reported,
    Wrong,
    /// Right, but at more than the recorded cost: what is most above it.
    CostsMore(Excess),
    Survived,
}

fn compile(nvrtc: &Nvrtc, source: &str) -> Option<String> {
    let options = CompileOptions {
        include: vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels")],
        line_info: false,
        ..CompileOptions::default()
    };
    nvrtc.compile(source, "mutant.cu", &options).ok().map(|compiled| compiled.ptx)
}

fn judge(nvrtc: &Nvrtc, recorded: &BTreeMap<String, Vec<Cost>>, mutant: &Mutant) -> End {
    let Some(ptx) = compile(nvrtc, &mutant.source) else { return End::DoesNotCompile };
    if compile(nvrtc, &source(mutant.kernel)).as_ref() == Some(&ptx) {
        return End::Same;
    }
    let mut costs = Vec::new();
    for schedule in [Schedule::InOrder, Schedule::Random(1)] {
        let options = Options {
            schedule,
            threads: Some(1),
            instruction_limit: 1 << 22,
            ..Options::default()
        };
        match cases::all(mutant.kernel, &ptx, &options) {
            Ok(found) => costs = found,
            Err(Failure::Refused(_) | Failure::Wrong(_)) => return End::Wrong,
            Err(Failure::Reported(_)) => return End::Reported,
        }
    }
    let recorded = recorded.get(mutant.kernel).map_or(&[][..], Vec::as_slice);
    let excess = costs.iter().zip(recorded).flat_map(|(cost, recorded)| cost.excess_over(recorded));
    excess.max_by_key(|one| one.found - one.recorded).map_or(End::Survived, End::CostsMore)
}

/// The ends of all mutants, computed on two threads.
fn judge_all(mutants: &[Mutant]) -> Vec<End> {
    let nvrtc = Nvrtc::find().expect("NVRTC");
    let recorded = cases::recorded();
    let next = Mutex::new(0);
    let ends: Mutex<Vec<(usize, End)>> = Mutex::default();
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let index = {
                        let mut next = next.lock().expect("no panic");
                        *next += 1;
                        *next - 1
                    };
                    let Some(mutant) = mutants.get(index) else { return };
                    let end = judge(&nvrtc, &recorded, mutant);
                    ends.lock().expect("no panic").push((index, end));
                }
            });
        }
    });
    let mut ends = ends.into_inner().expect("no panic");
    ends.sort_by_key(|(index, _)| *index);
    ends.into_iter().map(|(_, end)| end).collect()
}

#[test]
fn every_dropped_barrier_wait_and_commit_is_reported() {
    let mut mutants = Vec::new();
    for kernel in KERNELS {
        mutants.extend(by_rules(kernel, &source(kernel), &SYNCHRONIZATION));
    }
    assert!(mutants.len() > 10);
    for (mutant, end) in mutants.iter().zip(judge_all(&mutants)) {
        // A report says where; wrong numbers alone would not be enough.
        let found = matches!(end, End::Reported);
        assert!(found, "{}.cu:{} {}: {}", mutant.kernel, mutant.line, mutant.kind, mutant.what);
    }
}

#[test]
#[ignore = "takes minutes"]
fn every_mutant_is_found_or_argued_about() {
    let mut mutants = Vec::new();
    for kernel in KERNELS {
        let source = source(kernel);
        mutants.extend(by_rules(kernel, &source, &SYNCHRONIZATION));
        mutants.extend(by_rules(kernel, &source, &COMPARISONS));
        mutants.extend(others(kernel, &source));
    }
    let ends = judge_all(&mutants);
    let mut table = String::from(
        "| kernel | mutants | the same PTX | reported | wrong numbers | costs more | survived |\n\
         | --- | --- | --- | --- | --- | --- | --- |\n",
    );
    let mut dearer_ones = String::new();
    let mut survivors = Vec::new();
    for kernel in KERNELS {
        let own: Vec<_> = mutants
            .iter()
            .zip(&ends)
            .filter(|(m, end)| m.kernel == kernel && !matches!(end, End::DoesNotCompile))
            .collect();
        let same = own.iter().filter(|(_, end)| matches!(end, End::Same)).count();
        let reported = own.iter().filter(|(_, end)| matches!(end, End::Reported)).count();
        let wrong = own.iter().filter(|(_, end)| matches!(end, End::Wrong)).count();
        let dearer = own.iter().filter(|(_, end)| matches!(end, End::CostsMore(_))).count();
        let left = own.len() - same - reported - wrong - dearer;
        let count = own.len();
        writeln!(
            table,
            "| {kernel} | {count} | {same} | {reported} | {wrong} | {dearer} | {left} |"
        )
        .expect("memory");
        for (mutant, end) in own {
            let key = format!("`{}.cu:{}`, {}", mutant.kernel, mutant.line, mutant.kind);
            match end {
                End::CostsMore(Excess { what, recorded, found }) => {
                    let row = format!("| {key} | {found} {what}, not {recorded} |");
                    writeln!(dearer_ones, "{row}").expect("memory");
                }
                End::Survived => survivors.push((key, mutant.what.clone())),
                _ => {}
            }
        }
    }
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/mutations.md");
    let page = std::fs::read_to_string(path).expect("the page is there");
    let new: Vec<_> = survivors.iter().filter(|(key, _)| !page.contains(key)).collect();
    assert!(new.is_empty(), "{table}\nnot argued about in docs/mutations.md: {new:#?}");
    let stale: Vec<_> = page
        .lines()
        .filter_map(|line| line.strip_prefix("- `"))
        .filter(|line| !survivors.iter().any(|(key, _)| key.strip_prefix('`') == Some(line)))
        .collect();
    assert!(stale.is_empty(), "{table}\nargued about in docs/mutations.md, and found: {stale:#?}");
    for table in [table, dearer_ones] {
        assert!(page.contains(&table), "docs/mutations.md has another table than this:\n{table}");
    }
}
