use super::*;

fn finish(b: ProgramBuilder, x: ValueId) -> Result<Program, ProgramError> {
    b.finish_with_logits(x, "embed", None)
}

#[test]
fn an_add_and_the_norm_that_follows_become_one_operation() {
    let mut b = ProgramBuilder::new("test", 10);
    let x = b.embed("embed", 4, 1.0);
    let h = b.linear(x, "w", 4, Split::None);
    let sum = b.add(x, h);
    let normed = b.rms_norm(sum, "norm", 1e-6);
    let y = b.add(sum, normed);
    let y = b.select_outputs(y);
    let program = finish(b, y).unwrap();
    let fused = &program.ops()[2];
    let Op::RmsNorm { input, residual: Some(residual), out, .. } = fused else {
        panic!("not fused: {fused:?}");
    };
    assert_eq!((*input, *out), (h, normed));
    assert_eq!(*residual, Residual { value: x, sum });
}

#[test]
fn every_value_is_written_before_it_is_read_and_only_once() {
    let mut b = ProgramBuilder::new("test", 10);
    let group = b.page_group(1, 4, None);
    let x = b.embed("embed", 8, 1.0);
    let q = b.linear(x, "q", 8, Split::Columns);
    let k = b.linear(x, "k", 4, Split::Columns);
    let v = b.linear(x, "v", 4, Split::Columns);
    let options = AttentionOptions { group, ..AttentionOptions::full(4) };
    let h = b.attention(q, k, v, &options);
    let h = b.linear(h, "o", 8, Split::Rows);
    let x = b.add(x, h);
    let x = b.select_outputs(x);
    let program = finish(b, x).unwrap();
    assert_eq!(program.groups()[0].layers, 1);
    assert_eq!(program.kv_elements(group), 8);
    let mut written = vec![false; program.values().len()];
    for op in program.ops() {
        for value in op.inputs() {
            assert!(written[value.index()], "{op:?} reads {value:?} too early");
        }
        for value in op.outputs() {
            assert!(!std::mem::replace(&mut written[value.index()], true), "{op:?}");
        }
    }
    assert!(written.iter().all(|&w| w));
}

#[test]
fn the_first_mistake_is_reported_with_its_operands() {
    let mut b = ProgramBuilder::new("test", 10);
    let x = b.embed("embed", 8, 1.0);
    let y = b.linear(x, "w", 6, Split::None);
    let z = b.add(x, y);
    let z = b.select_outputs(z);
    let error = finish(b, z).unwrap_err();
    let what = "the right operand";
    assert_eq!(error, ProgramError::Width { op: "add", what, expected: 8, found: 6 });
}

#[test]
fn a_row_split_needs_divided_input_and_a_column_split_a_whole_one() {
    for (first, second) in [(Split::None, Split::Rows), (Split::Columns, Split::Columns)] {
        let mut b = ProgramBuilder::new("test", 10);
        let x = b.embed("embed", 8, 1.0);
        let y = b.linear(x, "a", 8, first);
        let z = b.linear(y, "b", 8, second);
        let z = b.select_outputs(z);
        assert!(matches!(finish(b, z), Err(ProgramError::Sharding { op: "linear", .. })));
    }
}

#[test]
fn one_name_with_two_shapes_is_a_conflict() {
    let mut b = ProgramBuilder::new("test", 10);
    let x = b.embed("embed", 8, 1.0);
    let y = b.linear(x, "embed", 8, Split::None);
    let y = b.select_outputs(y);
    let conflict = finish(b, y).unwrap_err();
    assert!(matches!(conflict, ProgramError::WeightConflict { name, .. } if name == "embed"));
}

#[test]
fn logits_of_tokens_instead_of_outputs_are_refused() {
    let mut b = ProgramBuilder::new("test", 10);
    let x = b.embed("embed", 8, 1.0);
    assert!(matches!(finish(b, x), Err(ProgramError::Rows { op: "logits", .. })));
}

#[test]
fn heads_that_kv_heads_do_not_divide_are_refused() {
    let mut b = ProgramBuilder::new("test", 10);
    let group = b.page_group(2, 4, None);
    let x = b.embed("embed", 12, 1.0);
    let q = b.linear(x, "q", 12, Split::Columns);
    let k = b.linear(x, "k", 8, Split::Columns);
    let options = AttentionOptions { group, ..AttentionOptions::full(4) };
    let h = b.attention(q, k, k, &options);
    let h = b.linear(h, "o", 12, Split::Rows);
    let h = b.select_outputs(h);
    assert!(matches!(finish(b, h), Err(ProgramError::Number { op: "attention", .. })));
}
