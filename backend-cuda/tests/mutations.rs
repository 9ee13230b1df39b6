//! Mistakes made mechanically in the kernels: each must be found, by a report of the emulator, by wrong numbers, or by
//! what it costs.
//!
//! The usual run makes the mistakes of synchronization. All of them, with a table:
//!
//!     cargo test -p backend-cuda --test mutations -- --ignored --nocapture

#[path = "../../cuda-emulator/tests/support/rules.rs"]
mod rules;
mod support;

use std::fmt::Write;
use std::sync::Mutex;

use backend_api::weights::Format;
use backend_cuda::{Kernel, Variant, source};
use cuda_emulator::Schedule;
use cuda_emulator::count::Cost;
use rules::{COMPARISONS, Mutant, Rule, SYNCHRONIZATION, by_rules, others};
use support::attention::{Case as AttentionCase, TOLERANCE};
use support::blocks::{Case as Product, embeds, function_of, run as run_product};
use support::experts::{self, layer};
use support::{REFUSED, REPORTED, Trial};

/// A file, the kernel that it is tried in, and what must go on working.
struct Subject {
    file: &'static str,
    kernel: Kernel,
    case: fn(),
}

const ATTENTION: [Subject; 3] = [
    Subject {
        file: "attention_decode",
        kernel: Kernel::AttentionDecode,
        case: attention_of_one_token,
    },
    Subject {
        file: "attention_merge",
        kernel: Kernel::AttentionMerge,
        case: attention_of_one_token,
    },
    Subject {
        file: "attention_append",
        kernel: Kernel::AttentionAppend,
        case: attention_of_many_tokens,
    },
];

const PRODUCTS: [Subject; 5] = [
    Subject { file: "experts", kernel: Kernel::Experts, case: rows_of_experts },
    Subject { file: "blocks_embed", kernel: Kernel::BlocksEmbed, case: two_formats },
    Subject { file: "blocks_vector", kernel: Kernel::BlocksVector, case: few_rows },
    Subject { file: "blocks_tile", kernel: Kernel::BlocksTile, case: many_rows },
    Subject { file: "blocks", kernel: Kernel::BlocksEmbed, case: every_format },
];

fn attends(case: &AttentionCase) {
    let error = support::attention::run(case).error;
    assert!(error <= TOLERANCE, "{error}: {case:?}");
}

fn attention_of_one_token() {
    let base = AttentionCase::new(64, 4, &[(1, 1), (99, 1), (1300, 1)]);
    let with_sinks = AttentionCase { sinks: true, kv_heads: 2, blocks: 5, ..base.clone() };
    attends(&with_sinks);
    attends(&AttentionCase { window: Some(70), soft_cap: 5.0, page_size: 1, ..base });
    attends(&AttentionCase { kv_heads: 2, ..AttentionCase::new(24, 3, &[(33, 1), (1100, 1)]) });
    attends(&AttentionCase { page_size: 2, ..AttentionCase::new(512, 1, &[(700, 1)]) });
    // One page more than a block looks up at once.
    attends(&AttentionCase { page_size: 1, blocks: 1, ..AttentionCase::new(64, 1, &[(257, 1)]) });
    let shared = AttentionCase::new(80, 2, &[(513, 1), (530, 1), (549, 1), (70, 1)]);
    attends(&AttentionCase { shared: Some((3, 512)), ..shared });
}

fn attention_of_many_tokens() {
    let base = AttentionCase::new(64, 4, &[(150, 50), (40, 40), (33, 3)]);
    attends(&AttentionCase { sinks: true, kv_heads: 2, window: Some(20), ..base });
    attends(&AttentionCase {
        soft_cap: 5.0,
        page_size: 1,
        ..AttentionCase::new(24, 3, &[(70, 30)])
    });
    attends(&AttentionCase { kv_heads: 2, ..AttentionCase::new(512, 2, &[(60, 20)]) });
    let shared = AttentionCase::new(80, 2, &[(513, 1), (530, 1), (549, 1), (70, 1)]);
    attends(&AttentionCase { shared: Some((3, 512)), kv_heads: 2, ..shared });
    // Parts of both slices, and more rows than half a tile's quads have.
    let wide = AttentionCase::new(512, 4, &[(530, 1), (520, 1), (514, 1)]);
    attends(&AttentionCase { shared: Some((3, 512)), ..wide });
    let variant = Variant { fp8: true, ..Variant::new(512, 1) };
    attends(&AttentionCase { variant, ..AttentionCase::new(512, 1, &[(40, 20)]) });
}

fn every_format() {
    Format::ALL.into_iter().filter(|format| format.is_quantized()).for_each(embeds);
}

fn two_formats() {
    embeds(Format::Q5_K);
    embeds(Format::IQ4_NL);
}

fn multiplies(case: &Product, kernel: Kernel, function: &str, tolerance: f64) {
    let error = run_product(case, kernel, function).error;
    assert!(error <= tolerance, "{error}: {case:?}");
}

fn few_rows() {
    for (rows, inner, columns) in [(1, 2560, 28), (2, 96, 27), (3, 640, 9), (8, 2112, 6)] {
        let case =
            Product { with_bias: rows < 3, ..Product::new(Format::Q4_0, rows, columns, inner) };
        multiplies(&case, Kernel::BlocksVector, function_of(rows), 1e-6);
    }
    // Numbers of 16 bits have chunks that end before 16.
    let case = Product { wide: false, ..Product::new(Format::BF16, 5, 7, 40) };
    multiplies(&case, Kernel::BlocksVector, function_of(5), 0.003);
    layer(Format::Q4_K, 5, 2, 8, "blocks_vector_8", Kernel::BlocksVector);
    layer(Format::IQ4_NL, 3, 2, 1, "blocks_vector_1", Kernel::BlocksVector);
}

fn many_rows() {
    // The table of levels is read by all warps.
    let table = Product::new(Format::IQ4_NL, 9, 128, 160);
    multiplies(&table, Kernel::BlocksTile, "blocks_tile", 0.003);
    for (rows, inner, columns) in [(70, 96, 130), (9, 256, 128), (64, 512, 27)] {
        let case =
            Product { with_bias: rows == 9, ..Product::new(Format::Q4_0, rows, columns, inner) };
        multiplies(&Product { wide: rows > 9, ..case }, Kernel::BlocksTile, "blocks_tile", 0.003);
    }
    multiplies(&Product::new(Format::BF16, 5, 7, 40), Kernel::BlocksTile, "blocks_tile", 0.003);
    layer(Format::Q4_K, 40, 2, 64, "blocks_tile", Kernel::BlocksTile);
    layer(Format::IQ4_NL, 70, 3, 64, "blocks_tile", Kernel::BlocksTile);
}

fn rows_of_experts() {
    experts::rows_choose_the_experts_of_the_greatest_scores();
    experts::of_equal_scores_the_lower_expert_is_chosen_and_what_is_no_number_first();
    experts::choices_are_sorted_by_expert_in_order_and_cut_into_tiles();
    layer(Format::BF16, 3, 2, 8, "blocks_vector_8", Kernel::BlocksVector);
}

/// How a mutant ended.
#[derive(Clone, Copy, Debug, PartialEq)]
enum End {
    DoesNotCompile,
    /// The compiler makes the same PTX of it: no mistake.
    Same,
    Reported,
    Wrong,
    CostsMore,
    Survived,
}

/// The mutants of a subject's file: its kernel's source has other files in it, which `#line` tells apart.
fn mutants(subject: &Subject, rules: &[&[Rule]], with_others: bool) -> Vec<Mutant> {
    let text = source(subject.kernel);
    let mut places = Vec::new();
    let mut place = (String::new(), 0);
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("#line ") {
            let (number, file) = rest.split_once(' ').expect("a number and a file");
            let number: usize = number.parse().expect("a number");
            places.push((String::new(), 0));
            place = (file.trim_matches('"').to_owned(), number);
        } else {
            places.push(place.clone());
            place.1 += 1;
        }
    }
    let mut all: Vec<Mutant> =
        rules.iter().flat_map(|rules| by_rules(subject.file, &text, rules)).collect();
    if with_others {
        all.extend(others(subject.file, &text));
    }
    let endings = [".cu", ".cuh"].map(|ending| format!("{}{ending}", subject.file));
    let own = all.into_iter().filter_map(|mutant| {
        let (file, line) = &places[mutant.line - 1];
        endings.contains(file).then_some(Mutant { line: *line, ..mutant })
    });
    own.collect()
}

fn judge(subject: &Subject, mutant: &Mutant, own: &[Cost]) -> End {
    let mut costs = Vec::new();
    for schedule in [Schedule::InOrder, Schedule::Random(1)] {
        let (trial, said) = Trial::run(subject.kernel, &mutant.source, schedule, &subject.case);
        match said {
            Err(text) if text == REFUSED => return End::DoesNotCompile,
            Err(text) if text.starts_with(REPORTED) => return End::Reported,
            Err(_) => return End::Wrong,
            Ok(()) if !trial.differs => return End::Same,
            Ok(()) => costs = trial.costs,
        }
    }
    let is_dearer = costs.iter().zip(own).any(|(new, old)| !new.excess_over(old).is_empty());
    if is_dearer { End::CostsMore } else { End::Survived }
}

/// The ends of a subject's mutants, found on two threads.
fn judge_all(subject: &Subject, mutants: &[Mutant]) -> Vec<End> {
    let text = source(subject.kernel);
    let (trial, said) = Trial::run(subject.kernel, &text, Schedule::Random(1), &subject.case);
    assert_eq!(said, Ok(()), "{} as it is", subject.file);
    let next = Mutex::new(0);
    let ends = Mutex::new(vec![End::Survived; mutants.len()]);
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
                    let end = judge(subject, mutant, &trial.costs);
                    ends.lock().expect("no panic")[index] = end;
                }
            });
        }
    });
    ends.into_inner().expect("no panic")
}

/// Panics of mutants are expected: only those of this file's own tests are printed.
fn silence() {
    let own = std::thread::current().id();
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if std::thread::current().id() == own {
            hook(info);
        }
    }));
}

#[test]
fn every_dropped_barrier_wait_and_commit_is_reported() {
    silence();
    let mut count = 0;
    for subject in ATTENTION.iter().chain(&PRODUCTS) {
        let mutants = mutants(subject, &[&SYNCHRONIZATION], false);
        for (mutant, end) in mutants.iter().zip(judge_all(subject, &mutants)) {
            // A report says where; wrong numbers alone would not be enough.
            let place =
                format!("{}:{} {}: {}", subject.file, mutant.line, mutant.kind, mutant.what);
            assert_eq!(end, End::Reported, "{place}");
            count += 1;
        }
    }
    assert!(count >= 20, "{count} mutants");
}

#[test]
#[ignore = "takes minutes"]
fn every_mutant_of_products_is_found_or_argued_about() {
    is_found_or_argued_about(&PRODUCTS);
}

#[test]
#[ignore = "takes minutes"]
fn every_mutant_of_attention_is_found_or_argued_about() {
    is_found_or_argued_about(&ATTENTION);
}

fn is_found_or_argued_about(subjects: &[Subject]) {
    silence();
    let mut table = String::from(
        "| file | mutants | the same PTX | reported | wrong numbers | costs more | survived |\n\
         | --- | --- | --- | --- | --- | --- | --- |\n",
    );
    let mut survivors = Vec::new();
    let (mut all, mut found) = (0, 0);
    for subject in subjects {
        let mutants = mutants(subject, &[&SYNCHRONIZATION, &COMPARISONS], true);
        let ends = judge_all(subject, &mutants);
        let count = |wanted: End| ends.iter().filter(|&&end| end == wanted).count();
        let compiled = ends.len() - count(End::DoesNotCompile);
        let (same, survived) = (count(End::Same), count(End::Survived));
        let (reported, wrong, dearer) =
            (count(End::Reported), count(End::Wrong), count(End::CostsMore));
        let row = format!(
            "| {} | {compiled} | {same} | {reported} | {wrong} | {dearer} | {survived} |",
            subject.file
        );
        println!("{row}");
        writeln!(table, "{row}").expect("memory");
        all += compiled - same;
        found += reported + wrong + dearer;
        for (mutant, _) in mutants.iter().zip(&ends).filter(|(_, end)| **end == End::Survived) {
            let key = format!("`{}:{}`, {}", subject.file, mutant.line, mutant.kind);
            println!("{key}: {}", mutant.what);
            survivors.push(key);
        }
    }
    assert!(found * 100 >= all * 95, "{found} of {all} mutants are found:\n{table}");
    let page = include_str!("../../docs/cuda-kernels.md");
    assert!(page.contains(&table), "docs/cuda-kernels.md has another table than this:\n{table}");
    for key in &survivors {
        assert!(page.contains(key), "not argued about in docs/cuda-kernels.md: {key}");
    }
}
