//! Mixtures of experts.

use engine_core::backend::SlotSampling;
use engine_core::model::{
    Activation, ExpertNames, ExpertOptions, Program, ProgramBuilder, ProgramError, Scoring,
};
use engine_core::weights::{Format, Shape, Tensor, Weights};

use super::batches::same_bits;
use super::check::Check;
use super::failure::{Failure, expect_equal};
use super::models::{Model, VOCAB_SIZE, prompt};
use super::operations::{WIDTH, score_a_prompt};
use super::session::{Answer, RowPlan, Session, Setup};

const EXPERTS: usize = 6;
/// The table of scores.
const ROUTES: &str = "routes";
/// Columns of an expert. A whole number of small quantized blocks.
const EXPERT_WIDTH: usize = 64;

/// Two of six experts, weighed by a softmax of all.
fn plain() -> ExpertOptions {
    ExpertOptions {
        experts: EXPERTS as u32,
        width: EXPERT_WIDTH,
        chosen: 2,
        scoring: Scoring::Softmax,
        normalize: false,
        factor: 1.0,
        selection_bias: None,
        scales: None,
        gate: ExpertNames::plain("gate"),
        up: ExpertNames::plain("up"),
        down: ExpertNames::plain("down"),
        activation: Activation::Silu,
    }
}

/// The same with a bias in each layer.
fn with_biases() -> ExpertOptions {
    let named =
        |name: &str| ExpertNames { weight: name.into(), bias: Some(format!("{name} bias")) };
    ExpertOptions { gate: named("gate"), up: named("up"), down: named("down"), ..plain() }
}

/// The ways of today's families to weigh experts, and each number of chosen ones.
pub fn experts_are_weighed_by_their_scores(check: &Check<'_>) -> Result<(), Failure> {
    let normalized = ExpertOptions { normalize: true, ..plain() };
    let sigmoid = ExpertOptions {
        scoring: Scoring::Sigmoid,
        normalize: true,
        factor: 2.5,
        selection_bias: Some("selection bias".into()),
        chosen: 3,
        ..plain()
    };
    let softmax_with_bias =
        ExpertOptions { selection_bias: Some("selection bias".into()), ..plain() };
    let scaled = ExpertOptions { scales: Some("scales".into()), ..normalized.clone() };
    let single = ExpertOptions { chosen: 1, ..plain() };
    let all = ExpertOptions { chosen: EXPERTS as u32, ..plain() };
    for options in [plain(), normalized, sigmoid, softmax_with_bias, scaled, single, all] {
        score_a_prompt(check, &routed(&options, 3)?)?;
    }
    Ok(())
}

/// Biases of all three layers, under each activation.
pub fn experts_add_their_own_biases(check: &Check<'_>) -> Result<(), Failure> {
    let clamped = Activation::ClampedSwiglu { slope: 1.702, limit: 1.5 };
    for activation in [Activation::Silu, Activation::GeluTanh, clamped] {
        let options = ExpertOptions { activation, normalize: true, ..with_biases() };
        score_a_prompt(check, &routed(&options, 4)?)?;
    }
    Ok(())
}

/// Stacks of matrices in every format.
pub fn experts_read_every_format(check: &Check<'_>) -> Result<(), Failure> {
    for format in Format::ALL {
        check.part(&format!("experts_read_every_format/{format}"), || {
            let width = WIDTH.next_multiple_of(format.block_elements());
            let inner = EXPERT_WIDTH.next_multiple_of(format.block_elements());
            let program = program_of_width(width, &ExpertOptions { width: inner, ..plain() })?;
            let routes = |name: &str| if name == ROUTES { Format::F32 } else { format };
            let mut model = Model::random_with(program, 5, routes, Format::F32)?;
            route(&mut model, mixed)?;
            score_a_prompt(check, &model)
        })?;
    }
    Ok(())
}

/// Steps of one token, of a few, and of many, with experts that get none of them and experts that
/// get most.
pub fn experts_take_one_row_and_many(check: &Check<'_>) -> Result<(), Failure> {
    let mut model = routed(&with_biases(), 6)?;
    // Expert 2 is among those of every row, expert 5 of none.
    route(&mut model, |token, expert| match expert {
        2 => 9.0,
        5 => -9.0,
        _ => mixed(token, expert),
    })?;
    check.agree("steps of different sizes", &model, &Setup::new(), |session| {
        let (first, second) = (prompt(64, 1), prompt(60, 2));
        (0..2).for_each(|slot| session.open(slot, SlotSampling::greedy()));
        let mut answers = session.run(&[RowPlan::known(0, &first[..1]).score_last()])?;
        answers.extend(session.run(&[
            RowPlan::known(0, &first[1..2]).score_last(),
            RowPlan::known(1, &second[..1]).score_last(),
        ])?);
        answers.extend(session.run(&[
            RowPlan::known(0, &first[2..3]).score_last(),
            RowPlan::known(1, &second[1..60]).score(3).score(40).score_last(),
        ])?);
        answers.extend(session.run(&[RowPlan::known(0, &first[3..64]).score(9).score_last()])?);
        Ok(answers)
    })
}

/// The weights of an expert that no row chose are not even multiplied by zero.
pub fn experts_that_no_row_chose_are_not_computed(check: &Check<'_>) -> Result<(), Failure> {
    let mut model = routed(&with_biases(), 7)?;
    let is_chosen = |expert: usize| expert != 1 && expert != 4;
    route(
        &mut model,
        |token, expert| {
            if is_chosen(expert) { mixed(token, expert) } else { -90.0 }
        },
    )?;
    [1, 4].into_iter().try_for_each(|expert| poison(&mut model, expert))?;
    score_a_prompt(check, &model)
}

/// With equal scores the experts of the lowest indices are chosen, whatever the others hold.
pub fn equal_scores_choose_the_lower_expert(check: &Check<'_>) -> Result<(), Failure> {
    for scoring in [Scoring::Softmax, Scoring::Sigmoid] {
        let options = ExpertOptions { scoring, ..with_biases() };
        let mut model = routed(&options, 8)?;
        let scores = [-1.0, 2.0, 0.5, 0.5, 0.5, -1.0];
        route(&mut model, |_, expert| scores[expert])?;
        [0, 3, 4, 5].into_iter().try_for_each(|expert| poison(&mut model, expert))?;
        score_a_prompt(check, &model)?;
    }
    Ok(())
}

/// A row's bits don't depend on the rows that its experts take beside it, where the backend
/// promises that.
pub fn company_changes_no_bit_of_experts(check: &Check<'_>) -> Result<(), Failure> {
    check.require_batch_invariance()?;
    let options = ExpertOptions { normalize: true, ..with_biases() };
    let model = routed(&options, 9)?;
    let tokens = prompt(40, 3);
    let scores = |session: &mut Session, company: bool| -> Result<Vec<Answer>, Failure> {
        (0..3).for_each(|slot| session.open(slot, SlotSampling::greedy()));
        let mut answers = Vec::new();
        for (step, range) in [0..1, 1..2, 2..30, 30..40].into_iter().enumerate() {
            let outputs = range.len() as u32;
            let mut plans = vec![RowPlan::known(0, &tokens[range]).score_all()];
            if company {
                let other = |slot: u32| prompt(1 + 12 * step, slot.into());
                plans.extend((1..3).map(|slot| RowPlan::known(slot, &other(slot)).score_last()));
            }
            let found = session.run(&plans)?;
            answers.extend(found.into_iter().filter(|answer| answer.output < outputs));
        }
        Ok(answers)
    };
    let alone = scores(&mut check.session(&model, &Setup::new())?, false)?;
    let together = scores(&mut check.session(&model, &Setup::new())?, true)?;
    expect_equal("answers", &40, &alone.len())?;
    same_bits("in company", &alone, &together)
}

/// A mixture beside the residual, between an embedding and the logits after every token; scores are
/// mixed.
fn routed(options: &ExpertOptions, seed: u64) -> Result<Model, Failure> {
    let mut model = Model::random(program_of_width(WIDTH, options)?, Format::F32, seed)?;
    route(&mut model, mixed)?;
    Ok(model)
}

fn program_of_width(width: usize, options: &ExpertOptions) -> Result<Program, ProgramError> {
    let mut b = ProgramBuilder::new("a mixture of experts", VOCAB_SIZE);
    b.page_group(1, 16, None);
    let x = b.embed("embedding", width, 1.0);
    let h = b.rms_norm(x, "norm", 1e-5);
    // Looked up by token, so that a backend that rounds more than another chooses alike.
    let scores = b.embed(ROUTES, EXPERTS, 1.0);
    let h = b.mixture_of_experts(h, scores, options);
    let x = b.add(x, h);
    let x = b.select_outputs(x);
    b.finish_with_logits(x, "output", None)
}

/// Sets the score that each token gives each expert.
fn route(model: &mut Model, score: impl Fn(usize, usize) -> f32) -> Result<(), Failure> {
    let tokens = VOCAB_SIZE as usize;
    let of_token = |token| (0..EXPERTS).map(move |expert| (token, expert));
    let scores: Vec<f32> =
        (0..tokens).flat_map(of_token).map(|(token, expert)| score(token, expert)).collect();
    insert(model, ROUTES, Shape::matrix(tokens, EXPERTS), &scores)
}

/// Scores that differ between experts, and that any format holds exactly.
fn mixed(token: usize, expert: usize) -> f32 {
    ((7 * token + 5 * expert) % 11) as f32 / 4.0 - 1.0
}

fn insert(model: &mut Model, name: &str, shape: Shape, values: &[f32]) -> Result<(), Failure> {
    model.weights.insert(name, Tensor::from_f32(Format::F32, shape, values)?);
    Ok(())
}

/// Makes all of an expert's weights something that is no number.
fn poison(model: &mut Model, expert: usize) -> Result<(), Failure> {
    for name in ["gate", "gate bias", "up", "up bias", "down", "down bias"] {
        let tensor = model.weights.tensor(name).map_err(|source| Failure::Compile {
            program: "reading back a weight".into(),
            source: source.into(),
        })?;
        let (shape, mut values) = (tensor.shape(), tensor.to_f32());
        let each = values.len() / EXPERTS;
        values[expert * each..(expert + 1) * each].fill(f32::NAN);
        insert(model, name, shape, &values)?;
    }
    Ok(())
}
