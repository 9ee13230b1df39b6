//! The token constraints of live sequences. They are the callers' code: a panic in one ends its own
//! sequence.

use std::sync::Arc;

use hashbrown::HashMap;
use parking_lot::{Condvar, Mutex};
use radix_cache::Token;

use super::command::Constraint;
use super::workers::Workers;
use crate::fence::{Fenced, fence};
use crate::schedule::SequenceId;

/// Up to so many constrained outputs of a step are masked on the scheduler thread alone: waking
/// others would take longer than a usual mask.
const INLINE: usize = 2;

/// Owns the constraints, and the buffers of masks.
#[derive(Debug)]
pub(super) struct Constraints {
    by_sequence: HashMap<SequenceId, Box<Constrained>>,
    spare: Vec<Vec<u32>>,
    vocab_size: u32,
    workers: Workers,
}

/// A sequence's constraint.
#[derive(Debug)]
struct Constrained {
    /// `None` once it has panicked. It is not called again, whatever state it is in.
    constraint: Option<Constraint>,
    /// Known tokens that it was not told of yet.
    behind: Vec<Token>,
    may_force: bool,
}

/// An output that waits for masks.
#[derive(Debug)]
pub(super) struct Wanted {
    /// Which output of its step.
    pub(super) output: u32,
    pub(super) id: SequenceId,
    /// The tokens that are proposed for it, each of which may need a mask of the token behind it.
    pub(super) drafted: Vec<Token>,
}

/// What a constraint makes of an output.
#[derive(Debug)]
pub(super) struct Masked {
    pub(super) output: u32,
    pub(super) id: SequenceId,
    /// The mask of the next token, and those behind proposed tokens as far as they are allowed.
    pub(super) masks: Vec<Vec<u32>>,
    /// The tokens that come next without a choice. The first mask allows the first alone.
    pub(super) forced: Vec<Token>,
    /// Why the sequence can't go on.
    pub(super) problem: Option<String>,
}

impl Constraints {
    pub(super) fn new(vocab_size: u32, workers: Workers) -> Self {
        Self { by_sequence: HashMap::new(), spare: Vec::new(), vocab_size, workers }
    }

    /// A sequence has a constraint from now on. With `may_force` it is asked for forced tokens.
    pub(super) fn insert(&mut self, id: SequenceId, constraint: Constraint, may_force: bool) {
        let constrained =
            Constrained { constraint: Some(constraint), behind: Vec::new(), may_force };
        self.by_sequence.insert(id, Box::new(constrained));
    }

    pub(super) fn remove(&mut self, id: SequenceId) {
        self.by_sequence.remove(&id);
    }

    /// A sequence has a new token. Its constraint hears of it with the next mask.
    pub(super) fn advance(&mut self, id: SequenceId, token: Token) {
        if let Some(constrained) = self.by_sequence.get_mut(&id) {
            constrained.behind.push(token);
        }
    }

    /// Computes the masks of all outputs whose sequences still have a constraint. Many are shared
    /// with other threads.
    pub(super) fn compute(&mut self, wanted: &mut Vec<Wanted>) -> Vec<Masked> {
        let mut work = Vec::with_capacity(wanted.len());
        for Wanted { output, id, drafted } in wanted.drain(..) {
            let Some(constrained) = self.by_sequence.remove(&id) else { continue };
            let masks = drafted.len() + 1;
            let masks = (0..masks).map(|_| self.spare.pop().unwrap_or_default()).collect();
            let masked = Masked { output, id, masks, forced: Vec::new(), problem: None };
            work.push(Work { constrained, drafted, masked });
        }
        if work.len() <= INLINE {
            work.iter_mut().for_each(|work| work.run(self.vocab_size));
        } else {
            work = share(work, self.vocab_size, &self.workers);
        }
        // Whichever thread was first: they come back in the order of the outputs.
        work.sort_by_key(|work| work.masked.output);
        let done = work.into_iter().map(|Work { constrained, masked, .. }| {
            self.by_sequence.insert(masked.id, constrained);
            masked
        });
        done.collect()
    }

    /// Takes the buffers of masks back.
    pub(super) fn recycle(&mut self, masked: Vec<Masked>) {
        self.spare.extend(masked.into_iter().flat_map(|masked| masked.masks));
    }
}

/// An output that is being worked on.
#[derive(Debug)]
struct Work {
    constrained: Box<Constrained>,
    drafted: Vec<Token>,
    masked: Masked,
}

impl Work {
    fn run(&mut self, vocab_size: u32) {
        let mask_words = vocab_size.div_ceil(32) as usize;
        let Constrained { constraint, behind, may_force } = self.constrained.as_mut();
        let Masked { masks, forced, problem, .. } = &mut self.masked;
        let Some(inner) = constraint.as_mut().and_then(Fenced::get_mut) else {
            return masks.clear();
        };
        let drafted = &self.drafted;
        let mut used = 0;
        let outcome = fence(|| {
            behind.drain(..).for_each(|token| inner.advance(token));
            if *may_force && drafted.is_empty() {
                inner.forced(forced);
            }
            for mask in masks.iter_mut() {
                mask.clear();
                mask.resize(mask_words, 0);
                match forced.first() {
                    Some(&token) => allow(mask, token),
                    None => inner.allow(mask),
                }
                used += 1;
                match drafted.get(used - 1) {
                    Some(&token) if allows(mask, token) => inner.advance(token),
                    // Verification ends here: what it would give next is not the proposal.
                    _ => break,
                }
            }
            if used > 1 {
                inner.rollback(used - 1);
            }
            let allows_none = masks.first().is_none_or(|mask| mask.iter().all(|&word| word == 0));
            allows_none.then(|| match inner.problem() {
                Some(reason) => format!("allows no token: {reason}"),
                None => "allows no token".to_owned(),
            })
        });
        masks.truncate(used);
        match outcome {
            Err(reason) => {
                *problem = Some(format!("panicked: {reason}"));
                *constraint = None;
            }
            Ok(allows_none) => {
                *problem = match forced.iter().find(|&&token| token >= vocab_size) {
                    Some(unknown) => {
                        Some(format!("forces token {unknown}, which the model doesn't have"))
                    }
                    None => allows_none,
                }
            }
        }
    }
}

fn allow(mask: &mut [u32], token: Token) {
    if let Some(word) = mask.get_mut(token as usize / 32) {
        *word |= 1 << (token % 32);
    }
}

fn allows(mask: &[u32], token: Token) -> bool {
    mask.get(token as usize / 32).is_some_and(|word| word & (1 << (token % 32)) != 0)
}

/// Works on all of it, together with other threads, until all is done.
fn share(work: Vec<Work>, vocab_size: u32, workers: &Workers) -> Vec<Work> {
    let all = work.len();
    let shared = Arc::new(SharedWork {
        state: Mutex::new((work, Vec::with_capacity(all))),
        ended: Condvar::new(),
    });
    for _ in 0..workers.most().min(all - 1) {
        let shared = Arc::clone(&shared);
        workers.post(Box::new(move || shared.help(vocab_size)));
    }
    shared.help(vocab_size);
    let mut state = shared.state.lock();
    while state.1.len() < all {
        shared.ended.wait(&mut state);
    }
    std::mem::take(&mut state.1)
}

/// What is to be done, and what is done.
struct SharedWork {
    state: Mutex<(Vec<Work>, Vec<Work>)>,
    ended: Condvar,
}

impl SharedWork {
    fn help(&self, vocab_size: u32) {
        loop {
            let Some(mut work) = self.state.lock().0.pop() else { return };
            work.run(vocab_size);
            self.state.lock().1.push(work);
            self.ended.notify_one();
        }
    }
}
