//! Blocks that were computed by themselves, or by another task.

use super::{AttentionLayer, divide, initial};
use crate::{
    isa::{Isa, LANES, Op},
    kernels::math,
    shared::SharedMut,
};

/// States of queries: after some common blocks, or of each block by itself.
#[derive(Clone, Copy)]
pub(crate) struct Partials<'a> {
    /// `[states, heads, padded head_dim]`.
    pub(crate) sums: SharedMut<'a, f32>,
    /// `[states, heads]`: the greatest score, and the sum of exponentials relative to it.
    pub(crate) softmax: SharedMut<'a, [f32; 2]>,
    /// The state of the first token's first block.
    pub(crate) first: usize,
    /// States of a token, one for each block.
    pub(crate) blocks: usize,
    pub(crate) heads: usize,
    /// Of a sum: dimensions, padded.
    pub(crate) width: usize,
}

impl<'a> Partials<'a> {
    /// Those of tokens whose states begin with `first`, and have `blocks` each.
    pub(crate) fn of(self, first: usize, blocks: usize) -> Self {
        Self { first, blocks, ..self }
    }

    /// The place of a state. Tokens are counted from the first one that has states here.
    #[inline(always)]
    pub(super) fn place(&self, token: usize, head: usize, block: usize) -> usize {
        (self.first + token * self.blocks + block) * self.heads + head
    }

    #[inline(always)]
    pub(super) fn put(&self, place: usize, sums: &[f32], softmax: (f32, f32)) {
        // SAFETY: each token, head and block is written by one task, and read in another region.
        unsafe {
            self.sums.part(place * self.width..(place + 1) * self.width).copy_from_slice(sums);
            self.softmax.part(place..place + 1)[0] = softmax.into();
        }
    }

    #[inline(always)]
    pub(super) fn get(&self, place: usize) -> (&'a [f32], (f32, f32)) {
        // SAFETY: as above; each state is read by one task.
        unsafe {
            let sums = self.sums.part(place * self.width..(place + 1) * self.width);
            (sums, self.softmax.part(place..place + 1)[0].into())
        }
    }
}

/// The state of two sets of scores together, and the factors of their sums.
#[inline(always)]
pub(super) fn factors<S: Isa>(
    isa: S,
    (old_greatest, old_total): (f32, f32),
    (greatest, total): (f32, f32),
) -> ((f32, f32), (f32, f32)) {
    if old_total == 0.0 {
        return ((greatest, total), (0.0, 1.0));
    }
    let new_greatest = if greatest > old_greatest { greatest } else { old_greatest };
    let mut factors = [0.0; LANES];
    factors[0] = old_greatest - new_greatest;
    factors[1] = greatest - new_greatest;
    let powers = math::exp(isa, isa.load(&factors));
    isa.store(powers, &mut factors);
    let [old, new, ..] = factors;
    ((new_greatest, old_total * old + total * new), (old, new))
}

/// Two weighted sums together.
#[inline(always)]
pub(super) fn sum<S: Isa>(isa: S, old: S::F32, fresh: S::F32, factors: (f32, f32)) -> S::F32 {
    let kept = isa.mul(old, isa.splat(factors.0));
    isa.mul_add(fresh, isa.splat(factors.1), kept)
}

/// Merges the blocks of a token and head in order, as one task would have.
pub(crate) struct MergeTask<'a> {
    pub(crate) layer: AttentionLayer<'a>,
    /// The token's.
    pub(crate) partials: Partials<'a>,
    /// Its number in the step.
    pub(crate) token: usize,
    pub(crate) head: usize,
    /// Blocks that it sees.
    pub(crate) blocks: usize,
    /// `[padded head_dim]`, overwritten.
    pub(crate) sums: &'a mut Vec<f32>,
}

impl Op for MergeTask<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Isa>(self, isa: S) {
        let Self { layer, partials, token, head, blocks, sums } = self;
        sums.clear();
        sums.resize(partials.width, 0.0);
        let mut state = initial(&layer, head);
        for block in 0..blocks {
            let (fresh, softmax) = partials.get(partials.place(0, head, block));
            let (merged, factors) = factors(isa, state, softmax);
            state = merged;
            let fresh = fresh.as_chunks::<LANES>().0;
            for (to, fresh) in sums.as_chunks_mut::<LANES>().0.iter_mut().zip(fresh) {
                isa.store(sum(isa, isa.load(to), isa.load(fresh), factors), to);
            }
        }
        let dim = layer.kv.shape().head_dim;
        let start = (token * layer.heads + head) * dim;
        // SAFETY: each token and head belongs to one task.
        divide(isa, sums, state.1, unsafe { layer.output.part(start..start + dim) });
    }
}
