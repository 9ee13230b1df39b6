//! A number for all that a plan lends: equal plans have equal ones.

use std::hash::{Hash, Hasher};

use super::report::{Plan, Step};
use crate::backend::{Batch, SlotEvent};

/// The digest of a plan. Of page tables, it covers the entries that the plan's events announce.
pub(super) fn digest(plan: &Plan<'_>) -> u64 {
    let mut digest = Digest(0xcbf2_9ce4_8422_2325);
    match plan {
        Plan::Launch(Step { batch, deferred, copies }) => {
            0u32.hash(&mut digest);
            hash_batch(batch, &mut digest);
            (deferred, copies).hash(&mut digest);
        }
        Plan::Sync { copies } => (1u32, copies).hash(&mut digest),
        Plan::Idle => 2u32.hash(&mut digest),
    }
    digest.finish()
}

fn hash_batch(batch: &Batch<'_>, digest: &mut Digest) {
    let Batch { step, program, tokens, rows, decode_rows, outputs, events, shared, .. } = batch;
    (step, program, decode_rows).hash(digest);
    (tokens, rows, outputs, events, shared).hash(digest);
    batch.targets.iter().for_each(|target| target.hash(digest));
    for event in *events {
        match *event {
            SlotEvent::Open { slot } => {
                let state = batch.slots.state(slot);
                (state.sampling.seed, state.adapter).hash(digest);
            }
            SlotEvent::Pages { slot, group, entries } => {
                batch.slots.pages(slot, group).get(entries.range()).hash(digest);
            }
            SlotEvent::CopyPage { .. } | SlotEvent::Close { .. } => {}
        }
    }
}

/// FNV-1a (Fowler, Noll, Vo) over words of 64 bits, which numbers of every width become: digests are
/// the same on every machine.
struct Digest(u64);

impl Hasher for Digest {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    fn write_u32(&mut self, number: u32) {
        self.write_u64(number.into());
    }

    fn write_u64(&mut self, number: u64) {
        self.write(&number.to_le_bytes());
    }

    fn write_usize(&mut self, number: usize) {
        self.write_u64(number as u64);
    }
}
