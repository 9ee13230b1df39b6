//! What can't be compiled or run fails with a typed error, and takes nothing else with it.

use engine_core::backend::{BackendError, CompileOptions, StepError};
use engine_core::weights::{Format, Shape, Tensor, Weights, WeightsError};

use super::check::Check;
use super::failure::{Failure, expect_equal};
use super::models::{Model, VOCAB_SIZE, prompt};
use super::sampling::expect_failed_rows;
use super::session::{RowPlan, Session, Setup};
use super::slots::with_logprobs;

/// The embedding, which is also the output layer.
const EMBEDDING: &str = "model.embed_tokens.weight";

/// Each tensor that a model needs, left out.
pub fn a_missing_tensor_is_named(check: &Check<'_>) -> Result<(), Failure> {
    let model = Model::llama()?;
    for weight in model.program().weights() {
        let mut model = model.clone();
        model.weights.remove(&weight.name);
        match compile(check, &model, &Setup::new().options(1)) {
            Err(BackendError::Weights(WeightsError::MissingTensor { name })) => {
                expect_equal("the missing tensor", &weight.name, &name)?;
            }
            other => return Err(Failure::wrong("outcome", "MissingTensor", other)),
        }
    }
    Ok(())
}

/// A matrix with a row too many, a vector that is too short, one in the place of the other.
pub fn a_tensor_of_another_shape_is_named(check: &Check<'_>) -> Result<(), Failure> {
    let norm = "model.norm.weight";
    let wrong = [
        (EMBEDDING, Shape::matrix(VOCAB_SIZE as usize + 1, 64)),
        (EMBEDDING, Shape::Vector(VOCAB_SIZE as usize * 64)),
        (norm, Shape::Vector(63)),
        (norm, Shape::matrix(1, 64)),
        ("model.layers.1.self_attn.k_proj.weight", Shape::matrix(64, 32)),
    ];
    for (name, shape) in wrong {
        let mut model = Model::llama()?;
        let zeros = vec![0.0; shape.rows() * shape.cols()];
        model.weights.insert(name, Tensor::from_f32(Format::F32, shape, &zeros)?);
        match compile(check, &model, &Setup::new().options(1)) {
            Err(BackendError::Shape { name: found, .. }) => {
                expect_equal("the tensor of another shape", &name, &found.as_str())?;
            }
            other => return Err(Failure::wrong("outcome", "Shape", other)),
        }
    }
    Ok(())
}

/// Page sizes that no backend has, limits for another number of page groups, no programs.
pub fn options_without_sense_are_refused(check: &Check<'_>) -> Result<(), Failure> {
    let model = Model::llama()?;
    let good = Setup::new().options(1);
    let refused = |what: &str, options: &CompileOptions| match compile(check, &model, options) {
        Err(_) => Ok(()),
        Ok(()) => Err(Failure::wrong(what, "an error", "an executor")),
    };
    for page_size in [0, 3, 24, 1 << 20] {
        let mut options = good.clone();
        options.page_size = page_size;
        refused("page size", &options)?;
    }
    for pages in [vec![], vec![4, 4]] {
        let mut options = good.clone();
        options.limits.pages = pages;
        refused("pages for another number of groups", &options)?;
    }
    // In each direction more than any machine has.
    let mut options = good.clone();
    (options.limits.pages, options.page_size) = (vec![u32::MAX], 512);
    refused("more pages than memory", &options)?;
    let none = check.backend().compile(&[], &model.weights, &good).is_err();
    expect_equal("no program is refused", &true, &none)
}

/// A weight that is infinite makes its own rows fail, and no other, in this step and the next.
pub fn logits_that_are_not_numbers_fail_their_row_alone(check: &Check<'_>) -> Result<(), Failure> {
    let mut model = Model::of_config(
        &super::models::config("LlamaForCausalLM", r#", "tie_word_embeddings": false"#),
        Format::F32,
        1,
    )?;
    // Whoever reads token 7 computes with an infinity.
    let tensor = model.weights.tensor(EMBEDDING).map_err(|source| Failure::Compile {
        program: "reading back a weight".into(),
        source: source.into(),
    })?;
    let (shape, mut values) = (tensor.shape(), tensor.to_f32());
    values[7 * shape.cols()] = f32::INFINITY;
    model.weights.insert(EMBEDDING, Tensor::from_f32(Format::F32, shape, &values)?);

    let run = |session: &mut Session| {
        (0..3).for_each(|slot| session.open(slot, with_logprobs()));
        let mut tokens = prompt(9, 4);
        tokens.retain(|&token| token != 7);
        let poisoned = [&tokens[..], &[7]].concat();
        let ticket = session.launch(&[
            RowPlan::known(0, &tokens).sample(),
            RowPlan::known(1, &poisoned).score_last(),
            RowPlan::known(2, &tokens).score_all(),
        ])?;
        let (mut answers, outcome) = session.wait_any(ticket);
        // The others go on, in the same executor.
        answers
            .extend(session.run(&[RowPlan::produced(0), RowPlan::known(2, &tokens).score_all()])?);
        Ok::<_, Failure>((answers, outcome))
    };
    let (expected, _) = run(&mut check.reference(&model, &Setup::new())?)?;
    let (found, outcome) = run(&mut check.session(&model, &Setup::new())?)?;
    expect_failed_rows(&[1], &outcome)?;
    check.same_answers("the other rows", &expected, &found)
}

/// More rows or tokens than the limits, and tokens outside the vocabulary: errors of `launch` or
/// of `wait`, after which a well-formed batch still runs.
pub fn malformed_batches_are_errors(check: &Check<'_>) -> Result<(), Failure> {
    let (model, setup) = (Model::llama()?, Setup { slots: 3, ..Setup::new() });
    let tokens = prompt(100, 4);
    let batches: [(&str, Vec<RowPlan>); 3] = [
        ("too many tokens", (0..2).map(|slot| RowPlan::known(slot, &tokens)).collect()),
        ("too many outputs", vec![RowPlan::known(0, &tokens).score_all()]),
        ("an unknown token", vec![RowPlan::known(0, &[VOCAB_SIZE]).sample()]),
    ];
    for (what, plans) in batches {
        let mut session = check.session(&model, &setup)?;
        session.open(0, with_logprobs());
        session.open(1, with_logprobs());
        let outcome = match session.launch(&plans) {
            Ok(ticket) => session.wait_any(ticket).1,
            Err(Failure::Step { source, .. }) => Err(source),
            Err(other) => return Err(other),
        };
        match outcome {
            Ok(()) => return Err(Failure::wrong(what, "an error", "a result")),
            Err(StepError::Dead { reason }) => {
                return Err(Failure::wrong(what, "an error that others survive", reason));
            }
            Err(_) => {}
        }
        session.open(2, with_logprobs());
        session.run(&[RowPlan::known(2, &tokens[..5]).sample()])?;
    }
    Ok(())
}

fn compile(check: &Check<'_>, model: &Model, options: &CompileOptions) -> Result<(), BackendError> {
    let programs = std::slice::from_ref(model.program());
    let mut options = options.clone();
    options.kv_format = check.kv_format(options.kv_format);
    check.backend().compile(programs, &model.weights, &options).map(drop)
}
