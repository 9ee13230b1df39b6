//! Every form that the tables list compiles, and the documentation lists what the tables do.

use cuda_emulator::{Memory, Program, instruction_forms};

/// All texts that a form with alternatives `(a|b)` stands for.
fn expand(form: &str) -> Vec<String> {
    // Alternatives stand in the name; the operands may hold `p0|p1`.
    let (name, operands) = form.split_once(' ').unwrap_or((form, ""));
    let mut all = vec![String::new()];
    let mut rest = name;
    while let Some((before, inside)) = rest.split_once('(') {
        let (choices, after) = inside.split_once(')').expect("a closing bracket");
        all = all
            .iter()
            .flat_map(|start| choices.split('|').map(move |c| format!("{start}{before}{c}")))
            .collect();
        rest = after;
    }
    all.iter().map(|start| format!("{start}{rest} {operands}")).collect()
}

fn compile(instructions: &[String]) -> Result<(), String> {
    let text = format!(
        ".version 8.8\n.target sm_90\n.address_size 64\n\
         .visible .entry k(.param .u64 parameter) {{\n\
         .reg .pred p<4>; .reg .b16 h<8>; .reg .b32 r<16>; .reg .b64 d<8>;\n{};\n}}",
        instructions.join(";\n")
    );
    let mut memory = Memory::default();
    let program = Program::load(&text, &mut memory).map_err(|error| error.to_string())?;
    program.kernel("k").map(|_| ()).map_err(|error| error.to_string())
}

#[test]
fn every_form_compiles() {
    let mut failed = Vec::new();
    let mut count = 0;
    for instruction in instruction_forms() {
        for form in instruction.forms {
            let all = expand(form);
            count += all.len();
            if compile(&all).is_ok() {
                continue;
            }
            for text in all {
                if let Err(error) = compile(std::slice::from_ref(&text)) {
                    failed.push(format!("{text}: {error}"));
                }
            }
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
    assert!(count > 1500, "{count} forms");
}

/// The page that lists the forms.
fn page() -> String {
    let mut page = String::from(
        "# Instructions\n\n\
         Every form that the machine has, made from the tables in `src/machine/ops`; `tests/forms.rs` compiles each \
         of them\nand keeps this page true (`UPDATE=1 cargo test -p cuda-emulator --test forms` writes it anew). \
         `(a|b)` stands for either.\nRegisters: `h` of 16 bits, `r` of 32, `d` of 64, `p` predicates. An instruction \
         or modifier that isn't here is an error\nwhen a kernel is compiled.\n\n\
         Besides these there are `bra`, `brx.idx`, and `call` of functions and through pointers.\n",
    );
    let mut all: Vec<_> = instruction_forms().collect();
    all.sort_by_key(|instruction| instruction.name);
    for instruction in all {
        page += &format!("\n## {}\n\n", instruction.name);
        for form in instruction.forms {
            page += &format!("    {form}\n");
        }
    }
    page
}

#[test]
fn the_page_of_instructions_lists_what_the_tables_hold() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/instructions.md");
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(path, page()).expect("the page can be written");
    }
    let written = std::fs::read_to_string(path).expect("the page is there");
    assert!(written == page(), "docs/instructions.md is out of date: run with UPDATE=1");
}
