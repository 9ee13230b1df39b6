//! The token constraints of live sequences. They are the caller's code: a panic in one ends its
//! own sequence.

use std::panic::{AssertUnwindSafe, catch_unwind};

use hashbrown::HashMap;
use radix_cache::Token;

use crate::request::TokenConstraint;
use crate::schedule::{Deferred, SequenceId};

#[derive(Debug)]
pub(super) struct Constraints {
    /// `None` for one that has panicked. It is not called again, whatever state it is in.
    by_sequence: HashMap<SequenceId, Option<Box<dyn TokenConstraint>>>,
    /// Kept for their memory: more than the latest step used, perhaps.
    masks: Vec<Vec<u32>>,
    mask_words: usize,
}

impl Constraints {
    pub(super) fn new(vocab_size: u32) -> Self {
        let mask_words = vocab_size.div_ceil(32) as usize;
        Self { by_sequence: HashMap::new(), masks: Vec::new(), mask_words }
    }

    pub(super) fn insert(&mut self, id: SequenceId, constraint: Option<Box<dyn TokenConstraint>>) {
        if constraint.is_some() {
            self.by_sequence.insert(id, constraint);
        }
    }

    pub(super) fn remove(&mut self, id: SequenceId) {
        self.by_sequence.remove(&id);
    }

    pub(super) fn advance(&mut self, id: SequenceId, token: Token) {
        let Some(state) = self.by_sequence.get_mut(&id) else { return };
        guard(state, |constraint| constraint.advance(token));
    }

    /// Computes a mask for each output whose sequence still has a constraint. Returns these
    /// outputs, in the order of [`masks`](Self::masks), and the sequences that can't go on, each
    /// with the reason.
    pub(super) fn compute_masks(
        &mut self,
        outputs: &[Deferred],
    ) -> (Vec<u32>, Vec<(SequenceId, &'static str)>) {
        let (mut masked, mut broken) = (Vec::new(), Vec::new());
        for &Deferred { output, id } in outputs {
            let Some(state) = self.by_sequence.get_mut(&id) else { continue };
            if self.masks.len() == masked.len() {
                self.masks.push(Vec::new());
            }
            let mask = &mut self.masks[masked.len()];
            mask.clear();
            mask.resize(self.mask_words, 0);
            if !guard(state, |constraint| constraint.allow(mask)) {
                broken.push((id, "its token constraint panicked"));
            } else if mask.iter().all(|&word| word == 0) {
                broken.push((id, "its token constraint allows no token"));
            } else {
                masked.push(output);
            }
        }
        (masked, broken)
    }

    pub(super) fn masks(&self) -> &[Vec<u32>] {
        &self.masks
    }
}

/// Calls a constraint. False if it panicks, now or before.
fn guard(
    state: &mut Option<Box<dyn TokenConstraint>>,
    call: impl FnOnce(&mut dyn TokenConstraint),
) -> bool {
    let Some(constraint) = state else { return false };
    let ok = catch_unwind(AssertUnwindSafe(|| call(constraint.as_mut()))).is_ok();
    if !ok {
        *state = None;
    }
    ok
}
