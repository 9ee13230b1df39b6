//! PTX that is wrong: each text of the corpus is refused with words that name what is wrong.

use std::collections::BTreeMap;
use std::path::Path;

use cuda_emulator::{Memory, Program};

/// What is said about a text; none if nothing is wrong with it.
fn refusal(text: &str) -> Option<String> {
    let mut memory = Memory::with_capacity(1 << 30);
    let program = match Program::load(text, &mut memory) {
        Ok(program) => program,
        Err(error) => return Some(error.to_string()),
    };
    let names: Vec<String> = program.kernel_names().map(str::to_owned).collect();
    names.iter().find_map(|name| program.kernel(name).err()).map(|error| error.to_string())
}

/// A line for each text: its name, and a part of what must be said.
fn expected() -> BTreeMap<&'static str, &'static str> {
    include_str!("bad_ptx/expected.txt")
        .lines()
        .map(|line| line.split_once(": ").expect("a name and words"))
        .collect()
}

#[test]
fn every_text_of_the_corpus_is_refused_with_a_reason() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/bad_ptx");
    let mut expected = expected();
    let mut wrong = Vec::new();
    for entry in std::fs::read_dir(folder).expect("the corpus") {
        let path = entry.expect("an entry").path();
        if path.extension().is_none_or(|extension| extension != "ptx") {
            continue;
        }
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let text = std::fs::read_to_string(&path).expect("a text");
        let said = refusal(&text).unwrap_or_else(|| "nothing".to_owned());
        match expected.remove(name.as_str()) {
            Some(part) if said.contains(part) => {}
            part => wrong.push(format!("{name}: {said} (expected {part:?})")),
        }
    }
    wrong.sort();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(expected.is_empty(), "texts are missing: {expected:?}");
}

#[test]
fn texts_nested_without_end_are_refused() {
    let head = ".version 8.0\n.target sm_80\n.address_size 64\n";
    for (open, close) in [("{", "}"), ("(", ")"), ("[", "]"), ("-", ""), ("!", ""), ("~", "")] {
        let (open, close) = (open.repeat(200_000), close.repeat(200_000));
        for text in [
            format!("{head}.visible .entry k() {open} ret; {close}"),
            format!("{head}.visible .entry k() {{ {open} ret; {close} }}"),
            format!("{head}.global .u32 v = {open}1{close};\n.visible .entry k() {{ ret; }}"),
            format!(
                "{head}.visible .entry k() {{ .reg .b32 %r<2>; mov.u32 %r1, {open}1{close}; ret; }}"
            ),
        ] {
            // What is nested may be right; what matters is that there is an answer.
            _ = refusal(&text);
        }
    }
    let long = format!("{head}.visible .entry k() {{ {} ret; }}", "here: ".repeat(100_000));
    assert!(refusal(&long).is_some());
}
