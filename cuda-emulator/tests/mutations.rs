//! Mistakes made mechanically in our kernels: each must be found, by a report or by wrong numbers.
//!
//! The usual run makes the mistakes of synchronization. All of them, with a table:
//!
//!     cargo test --release -p cuda-emulator --test mutations -- --ignored

#[path = "support/rules.rs"]
mod rules;
mod support;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;
use std::sync::Mutex;

use cuda_emulator::count::{Cost, Excess};
use cuda_emulator::nvrtc::{CompileOptions, Nvrtc};
use cuda_emulator::{Options, Schedule};
use rules::{COMPARISONS, Mutant, SYNCHRONIZATION, by_rules, others};
use support::cases::{self, Failure};

const KERNELS: [&str; 5] = ["decode", "prefill", "norm", "sample", "matvec"];

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
