//! Batches as the vectors that the modules read, and replies as results.

use std::sync::Arc;

use crate::lower::{
    Geometry,
    sampler::{self, Field, MOST_TOP, Switch, mask_words, reply},
    step::StepShape,
};
use backend_api::{
    Batch, InputToken, Mask, RowFailure, Sampled, SlotSampling, Span, StepError, StepResult, Want,
    sample::SampleError,
};

/// Stands for the slot's next token in the step's control vector.
const PRODUCED: u32 = -1i32 as u32;
/// Stands for no token in [`Field::Given`].
const SAMPLE: u32 = -1i32 as u32;

/// The step's control vector; see [`StepShape::control_len`]. The batch fits the shape.
pub(super) fn pack_step(batch: &Batch<'_>, shape: StepShape, geometry: &Geometry) -> Vec<u32> {
    let tokens = shape.tokens();
    let mut control = vec![0; shape.control_len()];
    let (ids, rest) = control.split_at_mut(tokens);
    let (slots, rest) = rest.split_at_mut(tokens);
    let (positions, rest) = rest.split_at_mut(tokens);
    let (outputs, of_rows) = rest.split_at_mut(shape.outputs);
    slots.fill(geometry.padding_slot() as u32);

    // Where each token of the batch lies in the step.
    let mut places = vec![0u32; batch.tokens.len()];
    let mut next_block = if shape.is_ragged { batch.decode_rows as usize } else { shape.decode };
    for (index, row) in batch.rows.iter().enumerate() {
        let start = if index < batch.decode_rows as usize {
            index
        } else {
            let start = next_block;
            next_block += (row.tokens.len as usize).next_multiple_of(shape.block);
            start
        };
        for (offset, token) in row.tokens.range().enumerate() {
            let place = start + offset;
            places[token] = place as u32;
            ids[place] = match batch.tokens[token] {
                InputToken::Known(id) => id,
                InputToken::Produced(_) => PRODUCED,
            };
            slots[place] = row.slot.0;
            positions[place] = row.position + offset as u32;
        }
    }
    for (out, output) in outputs.iter_mut().zip(batch.outputs) {
        *out = places[output.token as usize];
    }
    if shape.is_ragged {
        pack_rows(batch, of_rows, geometry);
    }
    control
}

/// What a ragged step reads of rows; see [`StepShape::control_len`].
fn pack_rows(batch: &Batch<'_>, of_rows: &mut [u32], geometry: &Geometry) {
    let padded_rows = (of_rows.len() - 2) / 3;
    let (slots, rest) = of_rows.split_at_mut(padded_rows);
    let (kv_lens, rest) = rest.split_at_mut(padded_rows);
    let (bounds, count) = rest.split_at_mut(padded_rows + 1);
    slots.fill(geometry.padding_slot() as u32);
    let mut bound = 0;
    for (index, row) in batch.rows.iter().enumerate() {
        slots[index] = row.slot.0;
        kv_lens[index] = row.position + row.tokens.len;
        bound += row.tokens.len;
        bounds[index + 1] = bound;
    }
    bounds[batch.rows.len()..].fill(bound);
    count.fill(batch.rows.len() as u32);
}

/// A slot's counts as the device keeps them; see [`sampler::counts_type`].
pub(super) fn token_counts(sampling: &SlotSampling, vocab_size: usize) -> Vec<u32> {
    let mut counts = vec![0; vocab_size];
    for (index, &token) in sampling.history.iter().enumerate() {
        if let Some(count) = counts.get_mut(token as usize) {
            *count = (*count).max(1);
            *count += u32::from(index >= sampling.history_prompt as usize);
        }
    }
    counts
}

/// What the sampler needs to know of a step, and what its replies are for.
#[derive(Debug)]
pub(super) struct SamplerInput {
    control: Vec<u32>,
    /// Outputs of the module, padding included.
    outputs: usize,
    wanted: Vec<Wanted>,
}

/// One output of the batch.
#[derive(Debug)]
struct Wanted {
    row: u32,
    /// How many of the likeliest tokens, if log probabilities are wanted at all.
    top: Option<u8>,
    sampling: Option<Arc<SlotSampling>>,
    is_suppressed: bool,
}

impl SamplerInput {
    pub(super) fn new(batch: &Batch<'_>, outputs: usize, geometry: &Geometry) -> Self {
        let mut input = Self {
            control: vec![0; sampler::control_len(outputs)],
            outputs,
            wanted: Vec::with_capacity(batch.outputs.len()),
        };
        for index in 0..outputs {
            input.set(index, Field::Slot, geometry.padding_slot() as u32);
            input.set(index, Field::TopP, 1f32.to_bits());
            input.set(index, Field::MinP, f32::NEG_INFINITY.to_bits());
            input.set(index, Field::Repetition, 1f32.to_bits());
            input.set(index, Field::Given, SAMPLE);
        }
        for (index, output) in batch.outputs.iter().enumerate() {
            let row = &batch.rows[output.row as usize];
            let wanted = match output.want {
                Want::Score { token, top } => {
                    input.set(index, Field::Given, token);
                    input.switch(Switch::Top, top.into());
                    Wanted { row: output.row, top: Some(top), sampling: None, is_suppressed: false }
                }
                _ => {
                    let sampling = batch.slots.sampling(row.slot);
                    let position = row.position + (output.token - row.tokens.start) + 1;
                    input.set(index, Field::Slot, row.slot.0);
                    input.set(index, Field::Position, position);
                    input.set_sampling(index, sampling);
                    Wanted {
                        row: output.row,
                        top: sampling.logprobs,
                        sampling: Some(sampling.clone()),
                        is_suppressed: position < sampling.suppress_before,
                    }
                }
            };
            input.wanted.push(wanted);
        }
        input
    }

    fn set_sampling(&mut self, index: usize, sampling: &SlotSampling) {
        self.set(index, Field::Temperature, sampling.temperature.to_bits());
        self.set(index, Field::TopK, sampling.top_k.min(i32::MAX as u32));
        self.set(index, Field::TopP, sampling.top_p.to_bits());
        self.set(index, Field::MinP, sampling.min_p.ln().to_bits());
        self.set(index, Field::SeedLow, sampling.seed as u32);
        self.set(index, Field::SeedHigh, (sampling.seed >> 32) as u32);
        self.set(index, Field::SampleIndex, sampling.sample_index);
        self.set(index, Field::Repetition, sampling.repetition_penalty.to_bits());
        self.set(index, Field::Frequency, sampling.frequency_penalty.to_bits());
        self.set(index, Field::Presence, sampling.presence_penalty.to_bits());
        let has_noise = sampling.temperature != 0.0;
        self.switch(Switch::Noise, has_noise.into());
        self.switch(Switch::TopK, (has_noise && sampling.top_k > 0).into());
        self.switch(Switch::TopP, (has_noise && sampling.top_p < 1.0).into());
        self.switch(Switch::Penalties, sampling.has_penalties().into());
        self.switch(Switch::Top, sampling.logprobs.unwrap_or(0).into());
    }

    fn set(&mut self, index: usize, field: Field, word: u32) {
        self.control[Switch::COUNT + field as usize * self.outputs + index] = word;
    }

    /// Raises a switch to `value`.
    fn switch(&mut self, switch: Switch, value: u32) {
        let word = &mut self.control[switch as usize];
        *word = (*word).max(value).min(MOST_TOP as u32);
    }

    pub(super) fn outputs(&self) -> usize {
        self.outputs
    }

    pub(super) fn control(&self) -> &[u32] {
        &self.control
    }

    /// The biases, `[outputs, vocab_size]`, or `None` if there are none.
    pub(super) fn bias(&self, vocab_size: usize) -> Option<Vec<f32>> {
        let biased = |wanted: &Wanted| {
            wanted.sampling.as_ref().is_some_and(|sampling| !sampling.logit_bias.is_empty())
        };
        if !self.wanted.iter().any(biased) {
            return None;
        }
        let mut bias = vec![0.0; self.outputs * vocab_size];
        for (row, wanted) in bias.chunks_exact_mut(vocab_size).zip(&self.wanted) {
            for &(token, value) in wanted.sampling.iter().flat_map(|s| s.logit_bias.iter()) {
                if let Some(bias) = row.get_mut(token as usize) {
                    *bias += value;
                }
            }
        }
        Some(bias)
    }

    /// The masks, `[outputs, words]`, or `None` if everything is allowed. Suppressed tokens are
    /// masked too.
    pub(super) fn mask(&self, vocab_size: usize, masks: &[Mask<'_>]) -> Option<Vec<u32>> {
        let is_suppressed = |wanted: &Wanted| wanted.is_suppressed;
        if masks.is_empty() && !self.wanted.iter().any(is_suppressed) {
            return None;
        }
        let columns = mask_words(vocab_size);
        let mut words = vec![u32::MAX; self.outputs * columns];
        let mut rows: Vec<&mut [u32]> = words.chunks_exact_mut(columns).collect();
        for mask in masks {
            if let Some(row) = rows.get_mut(mask.output as usize) {
                for (index, word) in row.iter_mut().enumerate() {
                    *word = mask.allowed.get(index).copied().unwrap_or(0);
                }
            }
        }
        for (row, wanted) in rows.iter_mut().zip(&self.wanted) {
            let suppressed = wanted.sampling.iter().flat_map(|sampling| sampling.suppress.iter());
            for &token in suppressed.filter(|_| wanted.is_suppressed) {
                if let Some(word) = row.get_mut(token as usize / 32) {
                    *word &= !(1 << (token % 32));
                }
            }
        }
        Some(words)
    }

    /// Whether any output wants the likeliest tokens.
    pub(super) fn wants_likeliest(&self) -> bool {
        self.control[Switch::Top as usize] > 0
    }

    /// Reads the sampler's replies, `[outputs, reply::COUNT]` little-endian words, and the
    /// likeliest tokens, `[outputs, 2 * MOST_TOP]`, or nothing if none are wanted.
    pub(super) fn read_replies(
        &self,
        replies: &[u8],
        likeliest: &[u8],
        vocab_size: usize,
        result: &mut StepResult,
    ) -> Result<(), StepError> {
        let (replies, likeliest) = (read_words(replies), read_words(likeliest));
        let mut likeliest = likeliest.chunks_exact(2 * MOST_TOP);
        let mut failures = Vec::new();
        let rows = replies.chunks_exact(reply::COUNT);
        for (index, (row, wanted)) in rows.zip(&self.wanted).enumerate() {
            let likeliest = likeliest.next().unwrap_or_default();
            let failure = match row[reply::STATUS] as i32 {
                reply::OK => None,
                reply::NOTHING_ALLOWED => Some(SampleError::NothingAllowed.of_row(wanted.row)),
                // The device doesn't say which logit it was.
                _ => {
                    Some(RowFailure { row: wanted.row, reason: "a logit is not finite".to_owned() })
                }
            };
            if let Some(failure) = failure {
                failures.push(failure);
                continue;
            }
            let count = usize::from(wanted.top.unwrap_or(0)).min(vocab_size);
            let start = result.top.len() as u32;
            let (tokens, logprobs) = likeliest.split_at(likeliest.len() / 2);
            let pairs = tokens.iter().zip(logprobs).take(count);
            result.top.extend(pairs.map(|(&token, &bits)| (token, f32::from_bits(bits))));
            let top = Span { start, len: result.top.len() as u32 - start };
            let logprob = wanted.top.map_or(f32::NAN, |_| f32::from_bits(row[reply::LOGPROB]));
            let token = row[reply::TOKEN];
            result.sampled.push(Sampled { output: index as u32, token, logprob, top });
        }
        if failures.is_empty() { Ok(()) } else { Err(StepError::Rows(failures)) }
    }
}

fn read_words(bytes: &[u8]) -> Vec<u32> {
    let word = |word: &[u8]| u32::from_le_bytes([word[0], word[1], word[2], word[3]]);
    bytes.chunks_exact(4).map(word).collect()
}

#[cfg(test)]
mod tests {
    use backend_api::{OutputRequest, Row, SlotId, Slots};

    use super::*;
    use crate::stablehlo::Element;

    /// One decode row and prefill rows of 2 and 3 tokens, in slots 4, 0 and 2.
    fn pack(shape: StepShape) -> Vec<Vec<u32>> {
        let geometry = Geometry::new(16, 5, vec![9], 64, Element::F32);
        let (slots, spans) = ([4, 0, 2], [(0, 1, 30), (1, 2, 0), (3, 3, 17)]);
        let rows = slots.iter().zip(spans).map(|(&slot, (start, len, position))| Row {
            slot: SlotId(slot),
            tokens: Span { start, len },
            position,
            outputs: Span::default(),
        });
        let rows: Vec<Row> = rows.collect();
        let mut tokens = vec![InputToken::Produced(SlotId(4))];
        tokens.extend((11..=15).map(InputToken::Known));
        let outputs = [
            OutputRequest { row: 0, token: 0, want: Want::Sample },
            OutputRequest { row: 2, token: 5, want: Want::Sample },
        ];
        let all = Slots::new(5, 1);
        let batch = Batch::new(0, &tokens, &rows, 1, &outputs, &[], &all);
        let mut control = pack_step(&batch, shape, &geometry).into_iter();
        let of_rows = if shape.is_ragged { [4, 4, 5, 1] } else { [0; 4] };
        let tokens = shape.tokens();
        let lengths = [tokens, tokens, tokens, shape.outputs].into_iter().chain(of_rows);
        let parts = lengths.map(|length| control.by_ref().take(length).collect()).collect();
        assert_eq!(control.next(), None);
        parts
    }

    #[test]
    fn runs_of_a_row_end_in_padding() {
        let shape = StepShape { decode: 2, blocks: 3, block: 4, outputs: 2, is_ragged: false };
        let parts = pack(shape);
        assert_eq!(parts[0], [PRODUCED, 0, 11, 12, 0, 0, 13, 14, 15, 0, 0, 0, 0, 0]);
        assert_eq!(parts[1], [4, 5, 0, 0, 5, 5, 2, 2, 2, 5, 5, 5, 5, 5]);
        assert_eq!(parts[2], [30, 0, 0, 1, 0, 0, 17, 18, 19, 0, 0, 0, 0, 0]);
        assert_eq!(parts[3], [0, 8]);
    }

    #[test]
    fn ragged_rows_lie_one_behind_the_other_and_padding_at_the_end() {
        let shape = StepShape { decode: 4, blocks: 5, block: 1, outputs: 2, is_ragged: true };
        let parts = pack(shape);
        assert_eq!(parts[0], [PRODUCED, 11, 12, 13, 14, 15, 0, 0, 0]);
        assert_eq!(parts[1], [4, 0, 0, 2, 2, 2, 5, 5, 5]);
        assert_eq!(parts[2], [30, 0, 1, 17, 18, 19, 0, 0, 0]);
        assert_eq!(parts[3], [0, 5]);
        // Slots, KV lengths, bounds and number of rows.
        assert_eq!(parts[4], [4, 0, 2, 5]);
        assert_eq!(parts[5], [31, 2, 20, 0]);
        assert_eq!(parts[6], [0, 1, 3, 6, 6]);
        assert_eq!(parts[7], [3]);
    }
}
