//! Sampling on the device against its definition on the host.
//!
//! The host samples from the log probabilities that the backend itself reports, so the two
//! must agree on every token, whatever the backend's precision.

use std::sync::Arc;

use engine_core::Token;
use engine_core::backend::{Mask, Masks, SlotSampling, StepError};
use engine_core::sample::{RowSampler, TokenCounts};

use super::check::Check;
use super::failure::{Failure, expect_equal};
use super::models::{Model, VOCAB_SIZE, prompt};
use super::session::{Answer, RowPlan, Session, Setup};
use super::slots::{confident_prompt, with_logprobs};
use crate::interpreter::logits;

/// The likeliest token.
pub fn greedy_takes_the_likeliest_token(check: &Check<'_>) -> Result<(), Failure> {
    follows_definition(check, &[|_| {}])
}

/// Temperature alone, from nearly greedy to nearly uniform.
pub fn temperature_flattens_the_distribution(check: &Check<'_>) -> Result<(), Failure> {
    follows_definition(
        check,
        &[
            |s| s.temperature = 0.01,
            |s| s.temperature = 0.7,
            |s| s.temperature = 1.0,
            |s| s.temperature = 50.0,
        ],
    )
}

/// Top-k, top-p and min-p, alone and together.
pub fn filters_keep_the_likeliest_tokens(check: &Check<'_>) -> Result<(), Failure> {
    follows_definition(
        check,
        &[
            |s| (s.temperature, s.top_k) = (1.5, 1),
            |s| (s.temperature, s.top_k) = (2.0, 10),
            |s| (s.temperature, s.top_k) = (1.5, 1000),
            |s| (s.temperature, s.top_p) = (1.5, 0.5),
            |s| (s.temperature, s.top_p) = (1.0, 0.01),
            |s| (s.temperature, s.min_p) = (1.5, 0.1),
            |s| (s.temperature, s.min_p) = (1.5, 1.0),
            |s| (s.temperature, s.top_k, s.top_p, s.min_p) = (2.0, 30, 0.9, 0.02),
        ],
    )
}

/// Noise is a function of seed, sample, position and token.
pub fn noise_depends_on_seed_and_sample(check: &Check<'_>) -> Result<(), Failure> {
    follows_definition(
        check,
        &[
            |s| (s.temperature, s.seed) = (3.0, 1),
            |s| (s.temperature, s.seed) = (3.0, u64::MAX),
            |s| (s.temperature, s.seed) = (3.0, 1 << 40),
            |s| (s.temperature, s.seed, s.sample_index) = (3.0, 1, 1),
            |s| (s.temperature, s.seed, s.sample_index) = (3.0, 1, 7),
        ],
    )
}

/// Penalties on what was in the prompt, was generated before, or is generated now.
pub fn penalties_count_tokens_seen_and_sampled(check: &Check<'_>) -> Result<(), Failure> {
    follows_definition(
        check,
        &[
            |s| s.repetition_penalty = 3.0,
            |s| (s.repetition_penalty, s.temperature) = (0.5, 1.0),
            |s| s.frequency_penalty = 1.5,
            |s| s.presence_penalty = 2.0,
            |s| (s.frequency_penalty, s.presence_penalty) = (-1.0, -0.5),
            |s| {
                (s.repetition_penalty, s.frequency_penalty) = (1.3, 0.4);
                (s.temperature, s.top_k) = (1.2, 20);
            },
        ],
    )
}

/// Biases that force, forbid or nudge.
pub fn logit_bias_moves_single_tokens(check: &Check<'_>) -> Result<(), Failure> {
    follows_definition(
        check,
        &[
            |s| s.logit_bias = [(17, 100.0)].into(),
            |s| s.logit_bias = (0..150).map(|token| (token, -100.0)).collect(),
            |s| (s.logit_bias, s.temperature) = ([(3, 2.0), (80, 2.5)].into(), 1.0),
        ],
    )
}

/// Tokens that may not be sampled before a position, and may from there on.
pub fn suppressed_tokens_wait_for_their_position(check: &Check<'_>) -> Result<(), Failure> {
    follows_definition(
        check,
        &[
            |s| (s.suppress, s.suppress_before) = ((0..140).collect(), 12),
            |s| (s.suppress, s.suppress_before) = ((0..140).collect(), 11),
            |s| (s.suppress, s.suppress_before, s.temperature) = ((9..99).collect(), 500, 1.0),
        ],
    )
}

/// Masks arrive after the forward pass; rows without one are sampled freely.
pub fn deferred_sampling_obeys_masks(check: &Check<'_>) -> Result<(), Failure> {
    check.agree("masks", &Model::llama()?, &Setup::new(), |session| {
        (0..4).for_each(|slot| session.open(slot, with_logprobs()));
        let plans: Vec<RowPlan> = (0..4)
            .map(|slot| RowPlan::known(slot, &prompt(7, 31 + u64::from(slot))).sample())
            .collect();
        let ticket = session.launch_deferred(&plans)?;
        let only_33 = mask_of(&[33]);
        let few = mask_of(&[1, 64, 90]);
        // Shorter than the vocabulary: what lies beyond is forbidden.
        let short = [u32::MAX];
        session.sample(
            &ticket,
            &[
                Mask { output: 3, index: 0, allowed: &short },
                Mask { output: 0, index: 0, allowed: &only_33 },
                Mask { output: 1, index: 0, allowed: &few },
            ],
        )?;
        // The next step goes on with what the mask left.
        let next = session.launch(&[RowPlan::produced(0)])?;
        let answers = session.wait(ticket)?;
        let allowed = [
            answers.first().is_some_and(|answer| answer.token == 33),
            answers.get(1).is_some_and(|answer| [1, 64, 90].contains(&answer.token)),
            answers.get(3).is_some_and(|answer| answer.token < 32),
        ];
        expect_equal("tokens within their masks", &[true; 3], &allowed)?;
        Ok([answers, session.wait(next)?].concat())
    })
}

/// A deferred step without any mask is an ordinary one.
pub fn deferred_sampling_without_masks_is_free(check: &Check<'_>) -> Result<(), Failure> {
    check.agree("no masks", &Model::llama()?, &Setup::new(), |session| {
        session.open(0, with_logprobs());
        session.open(1, with_logprobs());
        let rows = [
            RowPlan::known(0, &prompt(7, 51)).score(3).sample(),
            RowPlan::known(1, &prompt(9, 52)).sample(),
        ];
        let ticket = session.launch_deferred(&rows)?;
        session.sample(&ticket, &[])?;
        session.wait(ticket)
    })
}

/// A deferred step that is waited for without its masks has no answers and blocks nobody, and its
/// KV is there.
pub fn a_deferred_step_that_is_never_sampled_is_given_up(check: &Check<'_>) -> Result<(), Failure> {
    check.agree("after the step", &Model::llama()?, &Setup::new(), |session| {
        let tokens = prompt(30, 53);
        (0..2).for_each(|slot| session.open(slot, with_logprobs()));
        let given_up = session.launch_deferred(&[RowPlan::known(0, &tokens[..20]).sample()])?;
        let next = session.launch(&[RowPlan::known(1, &prompt(9, 54)).sample()])?;
        let (answers, outcome) = session.wait_any(given_up);
        expect_equal("answers", &0, &answers.len())?;
        expect_unsupported("the outcome", &outcome)?;
        let mut answers = session.wait(next)?;
        let rows = [RowPlan::produced(1), RowPlan::known(0, &tokens[20..]).score_all()];
        answers.extend(session.run(&rows)?);
        Ok(answers)
    })
}

/// Sampling twice, or what was not deferred, is refused and changes nothing.
pub fn only_deferred_steps_are_sampled_and_only_once(check: &Check<'_>) -> Result<(), Failure> {
    let model = Model::llama()?;
    // The last step goes on with what was sampled.
    let (prompt, _) = confident_prompt(check, &model)?;
    check.agree("the answers", &model, &Setup::new(), |session| {
        (0..2).for_each(|slot| session.open(slot, with_logprobs()));
        let deferred = session.launch_deferred(&[RowPlan::known(0, &prompt).sample()])?;
        let ordinary = session.launch(&[RowPlan::known(1, &prompt).sample()])?;
        let none = Masks::default();
        expect_unsupported("an ordinary step", &session.executor().sample(&ordinary, &none))?;
        session.sample(&deferred, &[])?;
        expect_unsupported("a second time", &session.executor().sample(&deferred, &none))?;
        let mut answers = session.wait(deferred)?;
        answers.extend(session.wait(ordinary)?);
        answers.extend(session.run(&[RowPlan::produced(0), RowPlan::produced(1)])?);
        Ok(answers)
    })
}

/// A mask that leaves nothing to choose from fails its row, and no other.
pub fn a_mask_that_allows_nothing_fails_its_row_alone(check: &Check<'_>) -> Result<(), Failure> {
    let (model, setup) = (Model::llama()?, Setup::new());
    let run = |session: &mut Session| {
        (0..3).for_each(|slot| session.open(slot, with_logprobs()));
        let rows: Vec<RowPlan> =
            (0..3).map(|slot| RowPlan::known(slot, &prompt(7, u64::from(slot))).sample()).collect();
        let ticket = session.launch_deferred(&rows)?;
        session.sample(&ticket, &[Mask { output: 1, index: 0, allowed: &[] }])?;
        Ok::<_, Failure>(session.wait_any(ticket))
    };
    let (expected, _) = run(&mut check.reference(&model, &setup)?)?;
    let (found, outcome) = run(&mut check.session(&model, &setup)?)?;
    expect_failed_rows(&[1], &outcome)?;
    check.same_answers("the other rows", &expected, &found)
}

/// That a step failed for exactly these rows.
pub(super) fn expect_failed_rows(
    rows: &[u32],
    outcome: &Result<(), StepError>,
) -> Result<(), Failure> {
    match outcome {
        Err(StepError::Rows(failures)) => {
            let found: Vec<u32> = failures.iter().map(|failure| failure.row).collect();
            expect_equal("failed rows", &rows.to_vec(), &found)
        }
        other => Err(Failure::wrong("outcome of the step", format!("rows {rows:?} fail"), other)),
    }
}

fn expect_unsupported(what: &str, outcome: &Result<(), StepError>) -> Result<(), Failure> {
    match outcome {
        Err(StepError::Unsupported { .. }) => Ok(()),
        other => Err(Failure::wrong(what, "a refusal", other)),
    }
}

/// Samples some tokens for each setting, all in one batch, and checks each against the host's
/// sampler on the log probabilities that came with it.
fn follows_definition(
    check: &Check<'_>,
    settings: &[fn(&mut SlotSampling)],
) -> Result<(), Failure> {
    let model = Model::llama()?;
    let mut session = check.session(&model, &Setup::new())?;
    let mut hosts: Vec<Host> =
        (0..).zip(settings).map(|(slot, set)| Host::new(slot, *set)).collect();
    for host in &hosts {
        session.open(host.slot, (*host.sampling).clone());
    }
    let rows: Vec<_> =
        hosts.iter().map(|host| RowPlan::known(host.slot, &host.tokens).sample()).collect();
    let mut answers = session.run(&rows)?;
    for _ in 0..4 {
        for (host, answer) in hosts.iter_mut().zip(&answers) {
            host.check_next(&model, answer, check.tolerance())?;
        }
        let rows: Vec<_> = hosts.iter().map(|host| RowPlan::produced(host.slot)).collect();
        answers = session.run(&rows)?;
    }
    Ok(())
}

/// The definition of sampling, for one sequence.
struct Host {
    slot: u32,
    sampling: Arc<SlotSampling>,
    counts: TokenCounts,
    tokens: Vec<Token>,
}

impl Host {
    fn new(slot: u32, set: fn(&mut SlotSampling)) -> Self {
        let tokens = prompt(10 + slot as usize, 900 + u64::from(slot));
        let mut sampling = with_logprobs();
        set(&mut sampling);
        if sampling.has_penalties() {
            // As if the last three had been generated before a retraction, one of them twice.
            let mut history = tokens.clone();
            history.push(tokens[tokens.len() - 1]);
            sampling.history = history.into();
            sampling.history_prompt = tokens.len() as u32 - 3;
        }
        let mut counts = TokenCounts::default();
        counts.open(&sampling);
        Self { slot, sampling: Arc::new(sampling), counts, tokens }
    }

    /// Checks that `answer` is the token that its own log probabilities make, and goes on with it.
    fn check_next(
        &mut self,
        model: &Model,
        answer: &Answer,
        tolerance: f32,
    ) -> Result<(), Failure> {
        let what = format!("slot {}, position {}", self.slot, self.tokens.len());
        let log_probabilities = answer.by_token();
        let count = log_probabilities.len();
        expect_equal(&format!("{what}: log probabilities"), &(VOCAB_SIZE as usize), &count)?;
        let position = self.tokens.len() as u32;
        let sampled = |shift: f32| {
            let mut logits: Vec<f32> = log_probabilities.iter().map(|&x| x + shift).collect();
            let mut row = RowSampler::default();
            let (sampling, counts) = (&self.sampling, &self.counts);
            let sampled =
                row.sample(&mut logits, sampling, counts, position, None, &mut Vec::new());
            sampled
                .map(|sampled| sampled.token)
                .map_err(|error| Failure::wrong(&what, "a token", error))
        };
        // Only the penalty of repetition sees more of logits than their differences. Their common shift is
        // the reference's, from which the subject's own differs by as much as log probabilities may.
        const STEPS: i32 = 8;
        let mut is_made = false;
        let expected = if self.sampling.repetition_penalty == 1.0 {
            sampled(0.0)?
        } else {
            let shift = log_normalizer(model, &self.tokens)?;
            for step in -STEPS..=STEPS {
                is_made |= sampled(shift + tolerance * step as f32 / STEPS as f32)? == answer.token;
            }
            sampled(shift)?
        };
        if !is_made {
            expect_equal(&what, &expected, &answer.token)?;
        }
        self.counts.record(answer.token);
        self.tokens.push(answer.token);
        Ok(())
    }
}

/// What the reference's logits exceed its log probabilities by.
fn log_normalizer(model: &Model, tokens: &[Token]) -> Result<f32, Failure> {
    let logits = logits(model.program(), &model.weights, tokens).map_err(|source| {
        Failure::Compile { program: model.program().name().to_owned(), source }
    })?;
    let last = logits.last().map_or(&[][..], Vec::as_slice);
    Ok(last.iter().map(|&logit| f64::from(logit).exp()).sum::<f64>().ln() as f32)
}

/// A mask that allows `tokens`.
fn mask_of(tokens: &[Token]) -> Vec<u32> {
    let mut words = vec![0; VOCAB_SIZE.div_ceil(32) as usize];
    for &token in tokens {
        words[token as usize / 32] |= 1 << (token % 32);
    }
    words
}
