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
