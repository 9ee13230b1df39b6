//! Each operation by itself, between an embedding and the logits.

use engine_core::backend::SlotSampling;
use engine_core::model::{
    Activation, AttentionOptions, Program, ProgramBuilder, ProgramError, RopePairs, Rotary, Split,
    ValueId,
};
use engine_core::weights::Format;

use super::check::Check;
use super::failure::Failure;
use super::models::{Model, VOCAB_SIZE, prompt};
use super::session::{RowPlan, Setup};

/// Columns of the values. A whole number of small quantized blocks, and no power of two.
pub(super) const WIDTH: usize = 96;

/// Embedding rows come out in every format, scaled as Gemma does.
pub fn embedding_looks_rows_up_and_scales_them(check: &Check<'_>) -> Result<(), Failure> {
    in_every_format(check, "embedding_looks_rows_up_and_scales_them", |width| {
        let mut b = ProgramBuilder::new("embedding", VOCAB_SIZE);
        b.page_group(1, 16, None);
        let x = b.embed("embedding", width, 9.75);
        let x = b.rms_norm(x, "norm", 1e-6);
        let x = b.select_outputs(x);
        b.finish_with_logits(x, "output", None)
    })
}

/// Products with matrices in every format; few and many output features. The vocabulary is odd, so
/// the output layer's are too.
pub fn linear_reads_every_format(check: &Check<'_>) -> Result<(), Failure> {
    in_every_format(check, "linear_reads_every_format", |width| {
        program_of_width(width, |b, x| {
            let h = b.linear(x, "wide", 3 * width, Split::Columns);
            let h = b.linear(h, "narrow", width, Split::Rows);
            b.add(x, h)
        })
    })
}

/// Biases of divided and of whole outputs.
pub fn linear_adds_its_bias_once(check: &Check<'_>) -> Result<(), Failure> {
    one_program(check, || {
        program(|b, x| {
            let h = b.linear_with(x, "up", Some("up bias"), 128, Split::Columns);
            let h = b.linear_with(h, "down", Some("down bias"), WIDTH, Split::Rows);
            b.linear_with(h, "whole", Some("whole bias"), WIDTH, Split::None)
        })
    })
}

/// The output layer in every format.
pub fn logits_read_every_format(check: &Check<'_>) -> Result<(), Failure> {
    in_every_format(check, "logits_read_every_format", |width| program_of_width(width, |_, x| x))
}

/// A norm of each row.
pub fn norms_divide_rows_by_their_root_mean_square(check: &Check<'_>) -> Result<(), Failure> {
    // An epsilon that matters beside embeddings of about 0.3.
    one_program(check, || program(|b, x| b.rms_norm(x, "norm", 0.05)))
}

/// A weight that is stored less one.
pub fn norms_add_their_offset_to_the_weight(check: &Check<'_>) -> Result<(), Failure> {
    one_program(check, || program(|b, x| b.rms_norm_with(x, "norm", WIDTH, 1e-6, 1.0)))
}

/// A norm of each head by itself.
pub fn norms_of_heads_stay_within_their_head(check: &Check<'_>) -> Result<(), Failure> {
    one_program(check, || program(|b, x| b.head_norm(x, "head norm", 16, 1e-6)))
}

/// A norm that takes the residual in: both the sum and its norm are read later.
pub fn norms_write_the_sum_that_they_normalize(check: &Check<'_>) -> Result<(), Failure> {
    one_program(check, || {
        program(|b, x| {
            let h = b.linear(x, "linear", WIDTH, Split::None);
            let sum = b.add(x, h);
            let normalized = b.rms_norm(sum, "norm", 1e-5);
            let h = b.linear(normalized, "second", WIDTH, Split::None);
            b.add(sum, h)
        })
    })
}

/// Vectors stored as files store them.
pub fn norms_and_biases_are_read_in_every_plain_format(check: &Check<'_>) -> Result<(), Failure> {
    for format in [Format::F32, Format::F16, Format::BF16] {
        let part = format!("norms_and_biases_are_read_in_every_plain_format/{format}");
        check.part(&part, || {
            let program = program(|b, x| {
                let h = b.rms_norm(x, "norm", 1e-5);
                b.linear_with(h, "linear", Some("bias"), WIDTH, Split::None)
            })?;
            score_a_prompt(check, &Model::random_with(program, 3, |_| Format::F32, format)?)
        })?;
    }
    Ok(())
}

/// Both ways to pair dimensions, by absolute position.
pub fn rope_rotates_pairs_by_position(check: &Check<'_>) -> Result<(), Failure> {
    for pairs in [RopePairs::Halves, RopePairs::Adjacent] {
        one_program(check, || program(|b, x| b.rope(x, 32, &rotary(16, 1.0, pairs))))?;
    }
    Ok(())
}

/// Only some dimensions of a head, with a factor on sine and cosine.
pub fn rope_leaves_further_dimensions_alone(check: &Check<'_>) -> Result<(), Failure> {
    for pairs in [RopePairs::Halves, RopePairs::Adjacent] {
        one_program(check, || program(|b, x| b.rope(x, 48, &rotary(10, 1.25, pairs))))?;
    }
    Ok(())
}

/// SiLU and the approximate GELU.
pub fn activations_gate(check: &Check<'_>) -> Result<(), Failure> {
    for activation in [Activation::Silu, Activation::GeluTanh] {
        one_program(check, || {
            program(|b, x| {
                let x = b.scale(x, 6.0);
                let gate = b.linear(x, "gate", 160, Split::Columns);
                let up = b.linear(x, "up", 160, Split::Columns);
                let h = b.gated_activation(gate, up, activation);
                b.linear(h, "down", WIDTH, Split::Rows)
            })
        })?;
    }
    Ok(())
}

/// Sums, factors, and a value that is read twice.
pub fn values_add_and_scale(check: &Check<'_>) -> Result<(), Failure> {
    one_program(check, || {
        program(|b, x| {
            let scaled = b.scale(x, -2.5);
            let h = b.linear(scaled, "linear", WIDTH, Split::None);
            let sum = b.add(h, x);
            b.add(sum, scaled)
        })
    })
}

/// Bounds of activations and of logits.
pub fn soft_caps_bound_logits(check: &Check<'_>) -> Result<(), Failure> {
    one_program(check, || {
        let mut b = ProgramBuilder::new("capped logits", VOCAB_SIZE);
        b.page_group(1, 16, None);
        let x = b.embed("embedding", WIDTH, 4.0);
        let x = b.select_outputs(x);
        b.finish_with_logits(x, "output", Some(2.0))
    })
}

/// Query heads that share KV heads: all, some, none; heads of several widths.
pub fn attention_groups_query_heads(check: &Check<'_>) -> Result<(), Failure> {
    for (heads, kv_heads, head_dim) in [(4, 4, 16), (4, 2, 32), (3, 1, 64), (6, 2, 24)] {
        let options = AttentionOptions::full(head_dim);
        attend(check, heads, kv_heads, head_dim, &options)?;
    }
    Ok(())
}

/// A factor of the scores other than the usual.
pub fn attention_scales_scores(check: &Check<'_>) -> Result<(), Failure> {
    let mut options = AttentionOptions::full(16);
    options.scale = 0.9;
    attend(check, 4, 2, 16, &options)
}

/// Windows narrower than a page, of a page, and wider.
pub fn attention_windows_hide_older_positions(check: &Check<'_>) -> Result<(), Failure> {
    for window in [1, 5, 16, 33] {
        let mut options = AttentionOptions::full(16);
        options.window = Some(window);
        attend(check, 4, 2, 16, &options)?;
    }
    Ok(())
}

/// Bounded scores.
pub fn attention_soft_caps_scores(check: &Check<'_>) -> Result<(), Failure> {
    let mut options = AttentionOptions::full(16);
    (options.scale, options.soft_cap) = (1.0, Some(1.5));
    attend(check, 4, 2, 16, &options)
}

/// A learned logit that takes probability and gives nothing.
pub fn attention_sinks_take_probability(check: &Check<'_>) -> Result<(), Failure> {
    let mut options = AttentionOptions::full(16);
    options.sinks = Some("sinks".into());
    attend(check, 4, 2, 16, &options)?;
    options.window = Some(7);
    attend(check, 4, 2, 16, &options)
}

/// A context of several hundred positions, in three steps.
pub fn attention_reaches_back_over_hundreds_of_positions(check: &Check<'_>) -> Result<(), Failure> {
    let program = attention_program(4, 2, 16, &AttentionOptions::full(16))?;
    let model = Model::random(program, Format::F32, 8)?;
    let setup = Setup { context_length: 512, slots: 2, ..Setup::new() };
    check.agree("a long context", &model, &setup, |session| {
        let tokens = prompt(301, 4);
        session.open(0, SlotSampling::greedy());
        let mut answers = Vec::new();
        for chunk in [&tokens[..120], &tokens[120..240], &tokens[240..300], &tokens[300..]] {
            answers.extend(session.run(&[RowPlan::known(0, chunk).score(0).score_last()])?);
        }
        Ok(answers)
    })
}

/// Layers in two page groups with different heads, one with a window: tables are per group.
pub fn page_groups_have_tables_of_their_own(check: &Check<'_>) -> Result<(), Failure> {
    let mut b = ProgramBuilder::new("two page groups", VOCAB_SIZE);
    let groups = [b.page_group(2, 16, None), b.page_group(1, 32, Some(20))];
    let mut x = b.embed("embedding", WIDTH, 1.0);
    for layer in 0..4 {
        let group = groups[layer % 2];
        let (head_dim, kv_heads) = if layer % 2 == 0 { (16, 2) } else { (32, 1) };
        let mut options = AttentionOptions::full(head_dim as u32);
        options.group = group;
        options.window = (layer % 2 == 1).then_some(20);
        let name = |part: &str| format!("{layer}.{part}");
        let h = b.rms_norm(x, &name("norm"), 1e-5);
        let q = b.linear(h, &name("q"), 4 * head_dim, Split::Columns);
        let k = b.linear(h, &name("k"), kv_heads * head_dim, Split::Columns);
        let v = b.linear(h, &name("v"), kv_heads * head_dim, Split::Columns);
        let h = b.attention(q, k, v, &options);
        let h = b.linear(h, &name("o"), WIDTH, Split::Rows);
        x = b.add(x, h);
    }
    let x = b.select_outputs(x);
    let program = b.finish_with_logits(x, "output", None)?;
    attend_in_chunks(check, &Model::random(program, Format::F32, 6)?)
}

/// `embedding`, the operation, and the logits after every token.
pub(super) fn program(
    body: impl FnOnce(&mut ProgramBuilder, ValueId) -> ValueId,
) -> Result<Program, ProgramError> {
    program_of_width(WIDTH, body)
}

fn program_of_width(
    width: usize,
    body: impl FnOnce(&mut ProgramBuilder, ValueId) -> ValueId,
) -> Result<Program, ProgramError> {
    let mut b = ProgramBuilder::new("one operation", VOCAB_SIZE);
    // A program has at least one page group, whether or not anything attends.
    b.page_group(1, 16, None);
    let x = b.embed("embedding", width, 1.0);
    let x = body(&mut b, x);
    let x = b.select_outputs(x);
    b.finish_with_logits(x, "output", None)
}

fn attention_program(
    heads: usize,
    kv_heads: usize,
    head_dim: u32,
    options: &AttentionOptions,
) -> Result<Program, ProgramError> {
    let width = head_dim as usize;
    let mut b = ProgramBuilder::new("attention", VOCAB_SIZE);
    b.page_group(kv_heads as u32, head_dim, options.window);
    let x = b.embed("embedding", WIDTH, 4.0);
    let q = b.linear(x, "q", heads * width, Split::Columns);
    let k = b.linear(x, "k", kv_heads * width, Split::Columns);
    let v = b.linear(x, "v", kv_heads * width, Split::Columns);
    let rotary = rotary(width / 2, 1.0, RopePairs::Halves);
    let (q, k) = (b.rope(q, head_dim, &rotary), b.rope(k, head_dim, &rotary));
    let h = b.attention(q, k, v, options);
    let h = b.linear(h, "o", WIDTH, Split::Rows);
    let x = b.select_outputs(h);
    b.finish_with_logits(x, "output", None)
}

/// Angles with which positions far apart still differ.
fn rotary(pairs_of_head: usize, attention_factor: f32, pairs: RopePairs) -> Rotary {
    let frequency = |pair: usize| 100f32.powf(-(pair as f32) / pairs_of_head as f32);
    let inverse_frequencies = (0..pairs_of_head).map(frequency).collect();
    Rotary { inverse_frequencies, attention_factor, pairs }
}

/// `program` takes the columns of its values: [`WIDTH`], or more where a block is longer.
fn in_every_format(
    check: &Check<'_>,
    case: &str,
    program: impl Fn(usize) -> Result<Program, ProgramError>,
) -> Result<(), Failure> {
    for format in Format::ALL {
        let width = WIDTH.next_multiple_of(format.block_elements());
        check.part(&format!("{case}/{format}"), || {
            score_a_prompt(check, &Model::random(program(width)?, format, 2)?)
        })?;
    }
    Ok(())
}

pub(super) fn one_program(
    check: &Check<'_>,
    program: impl Fn() -> Result<Program, ProgramError>,
) -> Result<(), Failure> {
    score_a_prompt(check, &Model::random(program()?, Format::F32, 2)?)
}

/// Log probabilities after each token of a prompt that is computed at once.
pub(super) fn score_a_prompt(check: &Check<'_>, model: &Model) -> Result<(), Failure> {
    check.agree("a prompt", model, &Setup::new(), |session| {
        session.open(0, SlotSampling::greedy());
        session.run(&[RowPlan::known(0, &prompt(23, 9)).score_all()])
    })
}

fn attend(
    check: &Check<'_>,
    heads: usize,
    kv_heads: usize,
    head_dim: u32,
    options: &AttentionOptions,
) -> Result<(), Failure> {
    let program = attention_program(heads, kv_heads, head_dim, options)?;
    attend_in_chunks(check, &Model::random(program, Format::F32, 4)?)
}

/// Log probabilities after each token of a prompt that is computed in chunks, some of them one
/// token long, none of them whole pages.
pub(super) fn attend_in_chunks(check: &Check<'_>, model: &Model) -> Result<(), Failure> {
    check.agree("a prompt in chunks", model, &Setup::new(), |session| {
        let tokens = prompt(60, 10);
        session.open(0, SlotSampling::greedy());
        let mut answers = Vec::new();
        for chunk in [&tokens[..19], &tokens[19..20], &tokens[20..59], &tokens[59..]] {
            answers.extend(session.run(&[RowPlan::known(0, chunk).score_all()])?);
        }
        Ok(answers)
    })
}
