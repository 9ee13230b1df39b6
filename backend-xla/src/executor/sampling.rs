//! What the sampler's module reads of a batch.

use std::sync::Arc;

use backend_api::{
    Batch, Masks, ProgramId, SlotSampling, Token, Want,
    kit::{OutputRow, output_rows},
};

use crate::{
    buckets::wants_hidden,
    lower::sampler::{self, Field, GENERATED, MOST_TOP, SamplerShape, Switch, mask_words},
};

/// Stands for no token in [`Field::Given`] and [`Field::Proposal`].
const NONE: u32 = -1i32 as u32;

/// A slot's counts as the device keeps them; see [`sampler::counts_type`].
pub(super) fn token_counts(sampling: &SlotSampling, counted: usize) -> Vec<u32> {
    let mut counts = vec![0; counted];
    let prompt = sampling.history_prompt as usize;
    for (index, &token) in sampling.history.iter().enumerate() {
        if let Some(count) = counts.get_mut(token as usize) {
            match index < prompt {
                true => *count |= 1,
                false => *count += GENERATED,
            }
        }
    }
    counts
}

/// One run of the sampler over a step's logits: what it needs to know of each row.
#[derive(Debug)]
pub(super) struct SamplerInput {
    shape: SamplerShape,
    control: Vec<u32>,
    /// The rows of logits that are sampled, with their places.
    sampled: Vec<SampledRow>,
}

#[derive(Debug)]
struct SampledRow {
    /// Row of logits.
    place: usize,
    output: u32,
    index: u32,
    sampling: Arc<SlotSampling>,
    is_suppressed: bool,
}

impl SamplerInput {
    /// Of the outputs that wait for masks (`deferred`), or of the others: `None` if there are none.
    pub(super) fn new(batch: &Batch<'_>, shape: SamplerShape, deferred: bool) -> Option<Self> {
        let is_meant = |output: u32| {
            let request = &batch.outputs[output as usize];
            request.deferred == deferred && !wants_hidden(request.want)
        };
        if !(0..batch.outputs.len() as u32).any(is_meant) {
            return None;
        }
        let control = vec![0; sampler::control_len(shape.outputs)];
        let mut input = Self { shape, control, sampled: Vec::new() };
        for place in 0..shape.outputs {
            input.set(place, Field::Slot, shape.slots as u32);
            input.set(place, Field::TopP, 1f32.to_bits());
            input.set(place, Field::MinP, f32::NEG_INFINITY.to_bits());
            input.set(place, Field::Repetition, 1f32.to_bits());
            input.set(place, Field::Given, NONE);
            input.set(place, Field::Start, place as u32);
            input.set(place, Field::Proposal, NONE);
        }
        input.switch(Switch::Counts, (batch.program == ProgramId::default()).into());
        for (place, row) in logits_rows(batch).enumerate() {
            if is_meant(row.output) {
                input.add(batch, place, &row);
            }
        }
        Some(input)
    }

    fn add(&mut self, batch: &Batch<'_>, place: usize, row: &OutputRow) {
        match batch.outputs[row.output as usize].want {
            Want::Score { targets, top } => {
                let target = batch.targets[targets.start as usize + row.index as usize];
                self.set(place, Field::Given, target);
                self.switch(Switch::Top, top.into());
            }
            _ => {
                let slot = batch.rows[row.row as usize].slot;
                let sampling = batch.slots.sampling(slot);
                self.set(place, Field::Slot, slot.0);
                self.set(place, Field::Position, row.position);
                self.set(place, Field::Start, place as u32 - row.index);
                self.set(place, Field::Proposal, row.proposal.unwrap_or(NONE));
                self.switch(Switch::Chain, row.index);
                self.set_sampling(place, sampling);
                self.sampled.push(SampledRow {
                    place,
                    output: row.output,
                    index: row.index,
                    sampling: sampling.clone(),
                    is_suppressed: row.position < sampling.suppress_before,
                });
            }
        }
    }

    fn set_sampling(&mut self, place: usize, sampling: &SlotSampling) {
        self.set(place, Field::Temperature, sampling.temperature.to_bits());
        self.set(place, Field::TopK, sampling.top_k.min(i32::MAX as u32));
        self.set(place, Field::TopP, sampling.top_p.to_bits());
        self.set(place, Field::MinP, sampling.min_p.ln().to_bits());
        self.set(place, Field::SeedLow, sampling.seed as u32);
        self.set(place, Field::SeedHigh, (sampling.seed >> 32) as u32);
        self.set(place, Field::SampleIndex, sampling.sample_index);
        self.set(place, Field::Repetition, sampling.repetition_penalty.to_bits());
        self.set(place, Field::Frequency, sampling.frequency_penalty.to_bits());
        self.set(place, Field::Presence, sampling.presence_penalty.to_bits());
        let has_noise = sampling.temperature != 0.0;
        self.switch(Switch::Noise, has_noise.into());
        self.switch(Switch::TopK, (has_noise && sampling.top_k > 0).into());
        self.switch(Switch::TopP, (has_noise && sampling.top_p < 1.0).into());
        self.switch(Switch::Penalties, sampling.has_penalties().into());
        self.switch(Switch::Top, u32::from(sampling.logprobs.unwrap_or(0)).min(MOST_TOP as u32));
    }

    fn set(&mut self, place: usize, field: Field, word: u32) {
        self.control[Switch::COUNT + field as usize * self.shape.outputs + place] = word;
    }

    /// Raises a switch to `value`.
    fn switch(&mut self, switch: Switch, value: u32) {
        let word = &mut self.control[switch as usize];
        *word = (*word).max(value);
    }

    pub(super) fn shape(&self) -> SamplerShape {
        self.shape
    }

    pub(super) fn control(&self) -> &[u32] {
        &self.control
    }

    /// Whether any output wants the likeliest tokens.
    pub(super) fn wants_likeliest(&self) -> bool {
        self.control[Switch::Top as usize] > 0
    }

    /// The biases, `[outputs, vocab_size]`, or `None` if there are none.
    pub(super) fn bias(&self) -> Option<Vec<f32>> {
        if self.sampled.iter().all(|row| row.sampling.logit_bias.is_empty()) {
            return None;
        }
        let vocab_size = self.shape.vocab_size;
        let mut bias = vec![0.0; self.shape.outputs * vocab_size];
        let mut rows: Vec<&mut [f32]> = bias.chunks_exact_mut(vocab_size).collect();
        for row in &self.sampled {
            for &(token, value) in row.sampling.logit_bias.iter() {
                if let Some(bias) = rows[row.place].get_mut(token as usize) {
                    *bias += value;
                }
            }
        }
        Some(bias)
    }

    /// The masks, `[outputs, words]`, or `None` if everything is allowed. Suppressed tokens are
    /// masked too.
    pub(super) fn mask(&self, masks: &Masks<'_>) -> Option<Vec<u32>> {
        if masks.entries.is_empty() && self.sampled.iter().all(|row| !row.is_suppressed) {
            return None;
        }
        let columns = mask_words(self.shape.vocab_size);
        let mut words = vec![u32::MAX; self.shape.outputs * columns];
        let mut rows: Vec<&mut [u32]> = words.chunks_exact_mut(columns).collect();
        for row in &self.sampled {
            let words = &mut *rows[row.place];
            if let Some(mask) = masks.of(row.output, row.index) {
                for (index, word) in words.iter_mut().enumerate() {
                    *word = mask.allowed.get(index).copied().unwrap_or(0);
                }
            }
            let suppressed: &[Token] = if row.is_suppressed { &row.sampling.suppress } else { &[] };
            for &token in suppressed {
                if let Some(word) = words.get_mut(token as usize / 32) {
                    *word &= !(1 << (token % 32));
                }
            }
        }
        Some(words)
    }
}

/// The output rows whose logits are wanted, in their order in the step.
pub(super) fn logits_rows<'a>(batch: &Batch<'a>) -> impl Iterator<Item = OutputRow> + use<'a> {
    let outputs = batch.outputs;
    output_rows(batch).filter(move |row| !wants_hidden(outputs[row.output as usize].want))
}
