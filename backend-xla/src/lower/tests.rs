//! The text of each operation, as it is: read a changed snapshot before accepting it
//! (`INSTA_UPDATE=always cargo test -p backend-xla lower`).

use backend_api::{
    GroupId,
    program::{
        Activation, AttentionOptions, ExpertNames, ExpertOptions, Op, Program, ProgramBuilder,
        RopePairs, Rotary, Scoring, Split, WeightId,
    },
};

use super::{
    Geometry, Placed,
    placement::Placement,
    sampler::{self, SamplerShape},
    state,
    step::{self, Inputs, Lowering, StepShape},
};
use crate::stablehlo::Element;

const HEADS: usize = 4;
const HEAD_DIM: usize = 8;

/// A layer with every operation in it.
fn program() -> Program {
    let mut b = ProgramBuilder::new("everything", 32);
    b.page_group(2, HEAD_DIM as u32, Some(64));
    let rotary = |pairs, count: usize| Rotary {
        inverse_frequencies: (0..count).map(|i| 0.5f32.powi(i as i32)).collect(),
        attention_factor: 1.5,
        pairs,
    };
    let x = b.embed("embed", 16, 2.0);
    let h = b.rms_norm(x, "norm", 1e-5);
    let q = b.linear_with(h, "q", Some("q_bias"), HEADS * HEAD_DIM, Split::Columns);
    let k = b.linear(h, "k", 2 * HEAD_DIM, Split::Columns);
    let v = b.linear(h, "v", 2 * HEAD_DIM, Split::Columns);
    let q = b.head_norm(q, "q_norm", HEAD_DIM as u32, 1e-6);
    let q = b.rope(q, HEAD_DIM as u32, &rotary(RopePairs::Halves, HEAD_DIM / 2));
    let k = b.rope(k, HEAD_DIM as u32, &rotary(RopePairs::Adjacent, HEAD_DIM / 4));
    let mut options = AttentionOptions::full(HEAD_DIM as u32);
    options.window = Some(64);
    options.soft_cap = Some(30.0);
    options.sinks = Some("sinks".to_owned());
    let h = b.attention(q, k, v, &options);
    let h = b.linear(h, "o", 16, Split::Rows);
    let x = b.add(x, h);
    let h = b.rms_norm_with(x, "norm2", 16, 1e-5, 1.0);
    let gate = b.linear(h, "gate", 24, Split::Columns);
    let up = b.linear(h, "up", 24, Split::Columns);
    let silu = b.gated_activation(gate, up, Activation::Silu);
    let gelu = b.gated_activation(gate, up, Activation::GeluTanh);
    let h = b.add(silu, gelu);
    let h = b.linear(h, "down", 16, Split::Rows);
    let h = b.scale(h, 0.25);
    let x = b.add(x, h);
    let x = b.select_outputs(x);
    b.finish_with_logits(x, "embed", Some(20.0)).expect("the program is well formed")
}

/// What only some families have: KV of an earlier layer, experts, gates, learned factors.
fn program_of_families() -> Program {
    let mut b = ProgramBuilder::new("families", 32);
    b.page_group(2, HEAD_DIM as u32, None);
    let x = b.embed("embed", 16, 1.0);
    let q = b.linear(x, "q", HEADS * HEAD_DIM, Split::Columns);
    let k = b.linear(x, "k", 2 * HEAD_DIM, Split::Columns);
    let v = b.linear(x, "v", 2 * HEAD_DIM, Split::Columns);
    let q = b.rms_norm(q, "q_norm", 1e-6);
    let v = b.unit_norm(v, HEAD_DIM, 1e-6);
    let q = b.scale_by_position(q, 0.1, 16);
    let options = AttentionOptions::full(HEAD_DIM as u32);
    let own = b.attention(q, k, v, &options);
    let h = b.attention_to(own, own, &options);
    let x = b.linear(h, "o", 16, Split::Rows);
    let x = b.multiply(x, "layer_scalar", 1);
    let scores = b.linear(x, "router", 4, Split::None);
    let with_bias =
        |name: &str| ExpertNames { weight: name.into(), bias: Some(format!("{name} b")) };
    let h = b.mixture_of_experts(
        x,
        scores,
        &ExpertOptions {
            experts: 4,
            width: 8,
            chosen: 2,
            scoring: Scoring::Softmax,
            normalize: true,
            factor: 2.0,
            selection_bias: Some("selection".into()),
            scales: Some("scales".into()),
            gate: with_bias("gate"),
            up: with_bias("up"),
            down: with_bias("down"),
            activation: Activation::ClampedSwiglu { slope: 1.702, limit: 7.0 },
        },
    );
    let gate = b.linear(x, "shared_gate", 1, Split::None);
    let h = b.gated_activation(gate, h, Activation::Sigmoid);
    let h = b.select_columns(h, 4, 8);
    let x = b.select_outputs(h);
    b.finish_with_logits(x, "output", None).expect("the program is well formed")
}

fn placed(devices: usize, element: Element) -> Placed {
    placed_program(program(), devices, element)
}

fn placed_program(program: Program, devices: usize, element: Element) -> Placed {
    let placement = Placement::new(&program, devices, element).expect("it divides");
    let geometry = Geometry::new(64, 3, vec![10], 512, Element::F32);
    Placed { program, placement, geometry, kernels: None }
}

fn shape() -> StepShape {
    StepShape { decode: 2, blocks: 1, block: 4, outputs: 2, hidden: 0, is_ragged: false }
}

fn name(program: &Program, op: &Op) -> &'static str {
    let splits_rows = |weight: &WeightId| program.weights()[weight.index()].split == Split::Rows;
    match op {
        Op::Embed { .. } => "embed",
        Op::RmsNorm { residual: Some(_), .. } => "rms_norm_with_residual_and_offset",
        Op::RmsNorm { weight: None, .. } => "unit_norm",
        Op::RmsNorm { .. } => "rms_norm",
        Op::Linear { bias: Some(_), .. } => "linear_with_bias",
        Op::Linear { weight, .. } if splits_rows(weight) => "linear_by_rows",
        Op::Linear { .. } => "linear_by_columns",
        Op::Rope { pairs: RopePairs::Halves, .. } => "rope_of_halves",
        Op::Rope { .. } => "rope_of_adjacent",
        Op::ScaleByPosition { .. } => "scale_by_position",
        Op::Attention(attention) if attention.new.is_none() => "attention_to_an_earlier_layer",
        Op::Attention(_) => "attention",
        Op::MixtureOfExperts(_) => "mixture_of_experts",
        Op::Multiply { .. } => "multiply",
        Op::SelectColumns { .. } => "select_columns",
        Op::GatedActivation { activation: Activation::Silu, .. } => "gated_silu",
        Op::GatedActivation { activation: Activation::Sigmoid, .. } => "gate_of_a_row",
        Op::GatedActivation { .. } => "gated_gelu",
        Op::Add { .. } => "add",
        Op::Scale { .. } => "scale",
        Op::SoftCap { .. } => "soft_cap",
        Op::SelectOutputs { .. } => "select_outputs",
        Op::Logits { .. } => "logits",
    }
}

/// The text of each operation of the program where it first occurs, under its name.
fn texts(program: Program, devices: usize) -> Vec<(&'static str, String)> {
    let placed = placed_program(program, devices, Element::BF16);
    let inputs = Inputs::new(&placed, shape());
    let mut lowering = Lowering::new(&placed, shape(), &inputs);
    let mut texts: Vec<(&str, String)> = Vec::new();
    for op in placed.program.ops() {
        let before = lowering.function.text().len();
        lowering.op(op).expect("it is supported");
        let text = lowering.function.text()[before..].to_owned();
        let name = name(&placed.program, op);
        if texts.iter().all(|(other, _)| *other != name) {
            texts.push((name, text));
        }
    }
    texts
}

#[test]
fn each_operation_is_written_as_recorded() {
    for (name, text) in texts(program(), 1) {
        insta::assert_snapshot!(name, text);
    }
}

#[test]
fn operations_of_some_families_are_written_as_recorded() {
    const OWN: [&str; 7] = [
        "unit_norm",
        "scale_by_position",
        "attention_to_an_earlier_layer",
        "multiply",
        "mixture_of_experts",
        "gate_of_a_row",
        "select_columns",
    ];
    for devices in [1, 2] {
        let texts = texts(program_of_families(), devices);
        for (name, text) in texts.iter().filter(|(name, _)| OWN.contains(name)) {
            match devices {
                1 => insta::assert_snapshot!(*name, text),
                _ if *name == "mixture_of_experts" => {
                    insta::assert_snapshot!("two_devices_mixture_of_experts", text);
                }
                _ => {}
            }
        }
    }
}

#[test]
fn operations_over_two_devices_are_written_as_recorded() {
    for (name, text) in texts(program(), 2) {
        let one = texts(program(), 1).into_iter().find(|(other, _)| *other == name);
        // What is the same text on one device and on two was looked at already.
        if one.is_none_or(|(_, one)| one.lines().count() != text.lines().count()) {
            insta::assert_snapshot!(format!("two_devices_{name}"), text);
        }
    }
}

#[test]
fn small_modules_are_written_as_recorded() {
    let placed = placed(2, Element::F32);
    insta::assert_snapshot!("fresh", state::fresh(&placed).text);
    insta::assert_snapshot!("fresh_counts", state::fresh_counts(3, 32, 1).text);
    insta::assert_snapshot!("set_pages", state::set_pages(&placed.geometry, 1).text);
    insta::assert_snapshot!("set_counts", state::set_counts(3, 32, 1).text);
    insta::assert_snapshot!("copy_page", state::copy_page(&placed, GroupId(0)).text);
    let shape = SamplerShape { slots: 3, outputs: 2, vocab_size: 32, counted: 40 };
    insta::assert_snapshot!("sampler", sampler::sampler(shape, 1).text);
}

#[test]
fn hidden_states_are_of_rows_behind_those_with_logits() {
    let placed = placed(1, Element::BF16);
    let text =
        |hidden| step::step(&placed, StepShape { hidden, ..shape() }).expect("it lowers").text;
    let results = |text: String| {
        let line = text.lines().find(|line| line.trim_start().starts_with("return"));
        let kinds = line.and_then(|line| line.split(" : ").nth(1).map(str::to_owned));
        kinds.expect("a module returns something")
    };
    assert!(results(text(0)).ends_with(", tensor<2x32xf32>"));
    assert!(results(text(3)).ends_with(", tensor<2x32xf32>, tensor<3x16xf32>"));
}
