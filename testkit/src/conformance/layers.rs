//! What some families have in their layers beside what all have: gates, learned factors, norms
//! without a weight, KV of an earlier layer.

use engine_core::model::{
    Activation, AttentionOptions, ProgramBuilder, RopePairs, Rotary, Split, ValueId,
};
use engine_core::weights::Format;

use super::check::Check;
use super::failure::Failure;
use super::models::{Model, VOCAB_SIZE};
use super::operations::{WIDTH, attend_in_chunks, one_program, program};

/// Every function of a gate and what it gates.
pub fn gates_have_more_functions_than_silu_and_gelu(check: &Check<'_>) -> Result<(), Failure> {
    let clamped = Activation::ClampedSwiglu { slope: 1.702, limit: 1.25 };
    for activation in [Activation::Identity, Activation::Sigmoid, clamped] {
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

/// A shared expert's gate: one number a row.
pub fn one_gate_gates_a_whole_row(check: &Check<'_>) -> Result<(), Failure> {
    one_program(check, || {
        program(|b, x| {
            let gate = b.linear(x, "gate", 1, Split::None);
            b.gated_activation(gate, x, Activation::Sigmoid)
        })
    })?;
    one_program(check, || {
        program(|b, x| {
            let gate = b.linear(x, "gate", 1, Split::None);
            let up = b.linear(x, "up", 128, Split::Columns);
            let h = b.gated_activation(gate, up, Activation::Identity);
            b.linear(h, "down", WIDTH, Split::Rows)
        })
    })
}

/// A factor for all columns, and one for each, of whole and of divided rows.
pub fn learned_factors_multiply_columns(check: &Check<'_>) -> Result<(), Failure> {
    for len in [1, 128] {
        one_program(check, || {
            program(|b, x| {
                let h = b.multiply(x, "factor", 1);
                let h = b.multiply(h, "factors", WIDTH);
                let h = b.linear(h, "up", 128, Split::Columns);
                let h = b.multiply(h, "inner", len);
                b.linear(h, "down", WIDTH, Split::Rows)
            })
        })?;
    }
    Ok(())
}

/// Per-layer parts of one wide value.
pub fn neighbouring_columns_are_selected(check: &Check<'_>) -> Result<(), Failure> {
    one_program(check, || {
        program(|b, x| {
            let first = b.select_columns(x, 0, 32);
            let second = b.select_columns(x, 50, 32);
            let sum = b.add(first, second);
            let sum = b.linear(sum, "back", WIDTH, Split::None);
            b.add(x, sum)
        })
    })
}

/// Norms of rows and of heads without a weight.
pub fn norms_need_no_weight(check: &Check<'_>) -> Result<(), Failure> {
    for run in [WIDTH, 16] {
        one_program(check, || program(|b, x| b.unit_norm(x, run, 0.05)))?;
    }
    Ok(())
}

/// A norm over a row whose columns are divided between devices.
pub fn norms_of_divided_rows_span_all_columns(check: &Check<'_>) -> Result<(), Failure> {
    one_program(check, || {
        program(|b, x| {
            let h = b.linear(x, "up", 128, Split::Columns);
            let h = b.rms_norm(h, "norm", 0.05);
            b.linear(h, "down", WIDTH, Split::Rows)
        })
    })?;
    // Three KV heads, which two devices don't divide: norms are over the real heads alone.
    let rows = |b: &mut ProgramBuilder, x: ValueId| {
        let q = b.linear(x, "q", 6 * 16, Split::Columns);
        let k = b.linear(x, "k", 3 * 16, Split::Columns);
        let v = b.linear(x, "v", 3 * 16, Split::Columns);
        let (q, k) = (b.rms_norm(q, "q norm", 0.05), b.unit_norm(k, 3 * 16, 0.05));
        let mut options = AttentionOptions::full(16);
        options.group = b.page_group(3, 16, None);
        let h = b.attention(q, k, v, &options);
        b.linear(h, "o", WIDTH, Split::Rows)
    };
    let mut b = ProgramBuilder::new("norms of all heads", VOCAB_SIZE);
    let x = b.embed("embedding", WIDTH, 1.0);
    let x = rows(&mut b, x);
    let x = b.select_outputs(x);
    let program = b.finish_with_logits(x, "output", None)?;
    attend_in_chunks(check, &Model::random(program, Format::F32, 5)?)
}

/// Queries that grow with their position.
pub fn queries_are_scaled_by_position(check: &Check<'_>) -> Result<(), Failure> {
    let mut b = ProgramBuilder::new("scaled queries", VOCAB_SIZE);
    let mut options = AttentionOptions::full(16);
    options.group = b.page_group(2, 16, None);
    let x = b.embed("embedding", WIDTH, 4.0);
    let q = b.linear(x, "q", 64, Split::Columns);
    let k = b.linear(x, "k", 32, Split::Columns);
    let v = b.linear(x, "v", 32, Split::Columns);
    let q = b.scale_by_position(q, 0.7, 7);
    let h = b.attention(q, k, v, &options);
    let h = b.linear(h, "o", WIDTH, Split::Rows);
    let x = b.select_outputs(h);
    let program = b.finish_with_logits(x, "output", None)?;
    attend_in_chunks(check, &Model::random(program, Format::F32, 6)?)
}

/// Frequencies of zero: pairs that stay as they are, with their partners half a head away.
pub fn rope_of_frequency_zero_turns_nothing(check: &Check<'_>) -> Result<(), Failure> {
    let inverse_frequencies = (0..16).map(|i| if i < 4 { 0.5f32.powi(i) } else { 0.0 }).collect();
    let pairs = RopePairs::Halves;
    let rotary = Rotary { inverse_frequencies, attention_factor: 1.0, pairs };
    one_program(check, || program(|b, x| b.rope(x, 32, &rotary)))
}

/// Layers that read the KV of an earlier layer, one of each page group.
pub fn attention_reads_the_kv_of_an_earlier_layer(check: &Check<'_>) -> Result<(), Failure> {
    let mut b = ProgramBuilder::new("shared KV", VOCAB_SIZE);
    let groups = [(b.page_group(2, 16, None), None), (b.page_group(2, 16, Some(20)), Some(20))];
    let mut x = b.embed("embedding", WIDTH, 1.0);
    let mut own = Vec::new();
    for layer in 0..5 {
        let (group, window) = groups[layer % 2];
        let options = AttentionOptions { group, window, ..AttentionOptions::full(16) };
        let name = |part: &str| format!("{layer}.{part}");
        let h = b.rms_norm(x, &name("norm"), 1e-5);
        // More query heads where KV is shared.
        let heads = if layer < 3 { 4 } else { 6 };
        let q = b.linear(h, &name("q"), heads * 16, Split::Columns);
        let h = if layer < 3 {
            let k = b.linear(h, &name("k"), 32, Split::Columns);
            let v = b.linear(h, &name("v"), 32, Split::Columns);
            own.push(b.attention(q, k, v, &options));
            own[layer]
        } else {
            b.attention_to(q, own[layer - 2], &options)
        };
        let h = b.linear(h, &name("o"), WIDTH, Split::Rows);
        x = b.add(x, h);
    }
    let x = b.select_outputs(x);
    let program = b.finish_with_logits(x, "output", None)?;
    attend_in_chunks(check, &Model::random(program, Format::F32, 7)?)
}
