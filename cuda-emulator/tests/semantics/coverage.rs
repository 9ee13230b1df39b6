//! Which instruction forms the tests of this crate run: each form, and each choice that it leaves.

use std::collections::BTreeSet;
use std::io::Write;
use std::process::Command;

use cuda_emulator::instruction_forms;

/// The variable that names the file which runs are written to.
const FILE: &str = "SEMANTICS_FORMS";

/// Writes what a PTX text runs to the file, if one is wanted.
pub(crate) fn note(text: &str) {
    let Some(path) = std::env::var_os(FILE) else { return };
    let lines: String = names(text).map(|name| format!("{name}\n")).collect();
    // One write: tests run at the same time.
    let mut file = std::fs::File::options().append(true).create(true).open(path).expect("a file");
    file.write_all(lines.as_bytes()).expect("room on the disk");
}

/// The names of instructions with their modifiers, behind labels and guards.
fn names(text: &str) -> impl Iterator<Item = &str> {
    text.split([';', '\n', '{', '}']).filter_map(|statement| {
        let mut words = statement.split_whitespace();
        words.find(|word| !word.starts_with('@') && !word.ends_with(':'))
    })
}

/// A name with alternatives `(a|b)`, in its parts: each a list of choices.
fn parts(form: &str) -> Vec<Vec<&str>> {
    let mut all = Vec::new();
    let mut rest = form.split(' ').next().unwrap_or(form);
    while let Some((before, inside)) = rest.split_once('(') {
        let (choices, after) = inside.split_once(')').expect("a closing bracket");
        all.push(vec![before]);
        all.push(choices.split('|').collect());
        rest = after;
    }
    all.push(vec![rest]);
    all
}

/// Whether a name is one that the parts stand for, if need be with a choice at a place.
fn is_of(name: &str, parts: &[Vec<&str>], chosen: Option<(usize, &str)>, index: usize) -> bool {
    let Some(choices) = parts.get(index) else { return name.is_empty() };
    let allowed =
        |choice: &&&str| chosen.is_none_or(|(at, wanted)| at != index || **choice == wanted);
    choices.iter().filter(allowed).any(|choice| {
        name.strip_prefix(choice).is_some_and(|rest| is_of(rest, parts, chosen, index + 1))
    })
}

/// The choices that no name makes.
fn missing(parts: &[Vec<&str>], ran: &BTreeSet<&str>) -> Vec<String> {
    let choices = parts
        .iter()
        .enumerate()
        .flat_map(|(index, choices)| choices.iter().map(move |choice| (index, *choice)));
    let lacks =
        |chosen: &(usize, &str)| !ran.iter().any(|name| is_of(name, parts, Some(*chosen), 0));
    let named = |(_, choice): (usize, &str)| match choice {
        "" => "nothing there".to_owned(),
        choice => format!("`{choice}`"),
    };
    choices.filter(lacks).map(named).collect()
}

/// Runs the other tests of this crate once more, and keeps the page of what they leave out true. With
/// `UPDATE=1` the page is written anew.
#[test]
fn every_form_is_run_or_listed_as_left_out() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("forms");
    let output = Command::new(std::env::current_exe().expect("this program"))
        .args(["--skip", "every_form_is_run_or_listed_as_left_out"])
        .env(FILE, &path)
        .output()
        .expect("the tests start");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    let text = std::fs::read_to_string(&path).expect("the tests ran something");
    let ran: BTreeSet<&str> = text.lines().collect();
    let page = page(&ran);
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/uncompared.md");
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(path, &page).expect("the page can be written");
    }
    let written = std::fs::read_to_string(path).expect("the page is there");
    assert!(written == page, "docs/uncompared.md is out of date: run with UPDATE=1");
}

fn page(ran: &BTreeSet<&str>) -> String {
    let forms: Vec<&str> =
        instruction_forms().flat_map(|instruction| instruction.forms).copied().collect();
    let (mut never, mut partly) = (Vec::new(), Vec::new());
    for form in &forms {
        let parts = parts(form);
        let ran_at_all = ran.iter().any(|name| is_of(name, &parts, None, 0));
        match missing(&parts, ran) {
            _ if !ran_at_all => never.push(format!("    {form}\n")),
            choices if choices.is_empty() => {}
            choices => partly.push(format!("    {form}\n        without {}\n", choices.join(", "))),
        }
    }
    format!(
        "# What is not compared\n\n\
         Of the {} forms of [instructions.md](instructions.md), `tests/semantics` runs {} and compares what they give; \
         {} of these\nnot with every choice of modifiers and types. `tests/semantics/coverage.rs` keeps this page true. \
         Kernels of other tests\nrun some of the rest.\n\n\
         ## Forms that are only compiled\n\n{}\n## Choices that are only compiled\n\n{}",
        forms.len(),
        forms.len() - never.len(),
        partly.len(),
        never.concat(),
        partly.concat()
    )
}
