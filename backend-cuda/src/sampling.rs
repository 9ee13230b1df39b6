//! Sampling on the device, by `kernels/sample.cu`.

use backend_api::{Batch, OutputRequest, SlotSampling, Token, Want};
use bytemuck::{Pod, Zeroable};

use crate::slot::Slot;

/// A row's parameters, as the kernel reads them.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Parameters {
    temperature: f32,
    top_k: u32,
    top_p: f32,
    min_p: f32,
    seed: [u32; 2],
    sample_index: u32,
    position: u32,
    slot: i32,
    /// No mask.
    mask: i32,
}

/// The parameters of all outputs, if the device can sample all of them: one token each, at once, and nothing that changes or
/// reports logits. The host samples other steps.
pub(crate) fn parameters(batch: &Batch<'_>, slots: &[Slot]) -> Option<Vec<Parameters>> {
    let of_output = |output: &OutputRequest| {
        let row = batch.rows.get(output.row as usize)?;
        let sampling = &*slots.get(row.slot.index())?.sampling;
        let position = row.kv_len();
        let plain = output.want == Want::Sample && !output.deferred && output.tokens.len == 1;
        (plain && is_plain(sampling, position)).then_some(Parameters {
            temperature: sampling.temperature,
            top_k: sampling.top_k,
            top_p: sampling.top_p,
            min_p: sampling.min_p,
            seed: [sampling.seed as u32, (sampling.seed >> 32) as u32],
            sample_index: sampling.sample_index,
            position,
            slot: row.slot.0 as i32,
            mask: -1,
        })
    };
    batch.outputs.iter().map(of_output).collect()
}

/// Whether logits are taken as they are, and only the token matters.
fn is_plain(sampling: &SlotSampling, position: u32) -> bool {
    !sampling.has_penalties()
        && sampling.logit_bias.is_empty()
        && sampling.logprobs.is_none()
        && (sampling.suppress.is_empty() || position >= sampling.suppress_before)
}

/// What the kernel wrote for a row: a token, or why there is none.
pub(crate) fn sampled(written: i32) -> Result<Token, &'static str> {
    Token::try_from(written).map_err(|_| "a logit is not a finite number")
}
