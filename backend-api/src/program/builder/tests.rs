use super::*;
use crate::program::Scoring;

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

/// A mixture of four experts, two of them chosen, after a change.
fn mixture(change: impl FnOnce(&mut ExpertOptions)) -> Result<Program, ProgramError> {
    let mut b = ProgramBuilder::new("test", 10);
    let x = b.embed("embed", 8, 1.0);
    let scores = b.linear(x, "router", 4, Split::None);
    let mut options = ExpertOptions {
        experts: 4,
        width: 6,
        chosen: 2,
        scoring: Scoring::Softmax,
        normalize: true,
        factor: 1.0,
        selection_bias: None,
        scales: None,
        gate: ExpertNames::plain("gate"),
        up: ExpertNames { weight: "up".into(), bias: Some("up bias".into()) },
        down: ExpertNames { weight: "down".into(), bias: Some("down bias".into()) },
        activation: Activation::Silu,
    };
    change(&mut options);
    let x = b.mixture_of_experts(x, scores, &options);
    let x = b.select_outputs(x);
    finish(b, x)
}

#[test]
fn experts_are_stacked_and_divided_by_their_width() {
    let program = mixture(|_| {}).unwrap();
    let weights = program.weights().iter().map(|w| (w.name.as_str(), &w.shape[..], w.split));
    let expected: [(&str, &[usize], Split); 7] = [
        ("embed", &[10, 8], Split::Columns),
        ("router", &[4, 8], Split::None),
        ("gate", &[4, 6, 8], Split::Columns),
        ("up", &[4, 6, 8], Split::Columns),
        ("up bias", &[4, 6], Split::Rows),
        ("down", &[4, 8, 6], Split::Rows),
        ("down bias", &[4, 8], Split::None),
    ];
    assert_eq!(weights.collect::<Vec<_>>(), expected);
}

#[test]
fn mixtures_that_make_no_sense_are_refused() {
    let refused = |change: fn(&mut ExpertOptions)| mixture(change).unwrap_err();
    let number = |change| matches!(refused(change), ProgramError::Number { .. });
    assert!(number(|options| options.chosen = 0));
    assert!(number(|options| options.chosen = 5));
    assert!(number(|options| options.width = 0));
    assert!(number(|options| options.factor = f32::NAN));
    assert!(matches!(
        refused(|options| options.experts = 5),
        ProgramError::Width { what: "the scores", expected: 5, found: 4, .. }
    ));
    assert!(matches!(
        refused(|options| options.up = options.down.clone()),
        ProgramError::WeightConflict { .. }
    ));
}

#[test]
fn divided_rows_are_not_routed() {
    let mut b = ProgramBuilder::new("test", 10);
    let x = b.embed("embed", 8, 1.0);
    let divided = b.linear(x, "divided", 4, Split::Columns);
    let error = b.error.clone();
    assert_eq!(error, None);
    let options = ExpertOptions {
        experts: 4,
        width: 6,
        chosen: 1,
        scoring: Scoring::Sigmoid,
        normalize: false,
        factor: 1.0,
        selection_bias: None,
        scales: None,
        gate: ExpertNames::plain("gate"),
        up: ExpertNames::plain("up"),
        down: ExpertNames::plain("down"),
        activation: Activation::Silu,
    };
    b.mixture_of_experts(x, divided, &options);
    let what = "the scores";
    let expected = ProgramError::Sharding { op: "mixture_of_experts", what, expected: false };
    assert_eq!(b.error, Some(expected));
}

#[test]
fn an_attention_reads_the_layer_of_the_earlier_one_that_it_names() {
    let mut b = ProgramBuilder::new("test", 10);
    let groups = [b.page_group(1, 4, None), b.page_group(1, 4, Some(8))];
    let x = b.embed("embed", 4, 1.0);
    let options = |group| AttentionOptions { group, ..AttentionOptions::full(4) };
    let mut last = x;
    for group in [groups[0], groups[1], groups[1]] {
        last = b.attention(last, x, x, &options(group));
    }
    let again = b.attention_to(last, last, &options(groups[0]));
    let Some(Op::Attention(attention)) = b.program.ops.last() else { panic!("attention") };
    assert_eq!((attention.new, attention.out), (None, again));
    assert_eq!((attention.group, attention.layer), (groups[1], 1));
    assert_eq!(b.program.groups.iter().map(|group| group.layers).collect::<Vec<_>>(), [1, 2]);
    b.attention_to(last, x, &options(groups[0]));
    assert_eq!(b.error, Some(ProgramError::NotAttention));
}

#[test]
fn columns_and_factors_beyond_a_value_are_refused() {
    let error = |body: fn(&mut ProgramBuilder, ValueId) -> ValueId| {
        let mut b = ProgramBuilder::new("test", 10);
        let x = b.embed("embed", 8, 1.0);
        body(&mut b, x);
        b.error
    };
    assert_eq!(error(|b, x| b.select_columns(x, 2, 6)), None);
    assert!(error(|b, x| b.select_columns(x, 2, 7)).is_some());
    assert!(error(|b, x| b.select_columns(x, 0, 0)).is_some());
    assert!(error(|b, x| b.select_columns(x, u32::MAX, 2)).is_some());
    assert_eq!(error(|b, x| b.multiply(x, "all", 1)), None);
    assert_eq!(error(|b, x| b.multiply(x, "each", 8)), None);
    assert!(error(|b, x| b.multiply(x, "some", 4)).is_some());
    assert!(error(|b, x| b.scale_by_position(x, 0.1, 0)).is_some());
    assert_eq!(error(|b, x| b.unit_norm(x, 4, 1e-6)), None);
    assert!(error(|b, x| b.unit_norm(x, 3, 1e-6)).is_some());
}

#[test]
fn logits_are_scaled_before_they_are_capped() {
    let finished = |factor| {
        let mut b = ProgramBuilder::new("test", 10);
        let x = b.embed("embed", 8, 1.0);
        let x = b.select_outputs(x);
        let program = b.finish_with_scaled_logits(x, "embed", factor, Some(30.0)).unwrap();
        assert_eq!(program.hidden(), x);
        program
    };
    let program = finished(0.5);
    let [.., Op::Logits { out: logits, .. }, scale, cap] = program.ops() else {
        panic!("{:?}", program.ops())
    };
    let &Op::Scale { input, factor, out } = scale else { panic!("{scale:?}") };
    assert_eq!((input, factor), (*logits, 0.5));
    assert!(matches!(*cap, Op::SoftCap { input, out: capped, .. }
        if input == out && capped == program.logits()));
    assert_eq!(finished(1.0).ops().len() + 1, program.ops().len());
}

#[test]
fn a_norm_may_span_a_row_that_devices_share() {
    let mut b = ProgramBuilder::new("test", 10);
    let x = b.embed("embed", 8, 1.0);
    let y = b.linear(x, "up", 12, Split::Columns);
    let y = b.rms_norm(y, "norm", 1e-5);
    let y = b.linear(y, "down", 8, Split::Rows);
    let y = b.select_outputs(y);
    let program = finish(b, y).unwrap();
    let norm = program.weights().iter().find(|weight| weight.name == "norm").unwrap();
    assert_eq!((&norm.shape[..], norm.split), (&[12][..], Split::None));
}
