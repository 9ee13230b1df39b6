//! A number for all that a plan lends: equal plans have equal ones.

use super::report::{Plan, Step};
use crate::backend::{
    Batch, Draft, GroupId, InputToken, PageCopy, PoolKind, SlotEvent, Span, Tier, Want,
};

/// FNV-1a (Fowler, Noll, Vo) over words.
struct Digest(u64);

/// The digest of a plan. Of page tables, it covers the entries that the plan's events announce.
pub(super) fn digest(plan: &Plan<'_>) -> u64 {
    let mut digest = Digest(0xcbf2_9ce4_8422_2325);
    match plan {
        Plan::Launch(Step { batch, deferred, copies }) => {
            digest.words([0, batch.step]);
            digest.batch(batch);
            for deferred in *deferred {
                let id = deferred.id;
                digest.words([deferred.output.into(), id.request.0, id.index.into()]);
            }
            digest.copies(copies);
        }
        Plan::Sync { copies } => {
            digest.words([1]);
            digest.copies(copies);
        }
        Plan::Idle => digest.words([2]),
    }
    digest.0
}

impl Digest {
    fn words(&mut self, words: impl IntoIterator<Item = u64>) {
        for word in words {
            for byte in word.to_le_bytes() {
                self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
            }
        }
    }

    fn span(&mut self, span: Span) {
        self.words([span.start.into(), span.len.into()]);
    }

    fn batch(&mut self, batch: &Batch<'_>) {
        self.words([batch.program.0.into(), batch.decode_rows.into()]);
        for token in batch.tokens {
            match *token {
                InputToken::Known(token) => self.words([0, token.into()]),
                InputToken::Produced(slot) => self.words([1, slot.0.into()]),
            }
        }
        for row in batch.rows {
            self.words([row.slot.0.into(), row.position.into()]);
            self.span(row.tokens);
            self.span(row.outputs);
        }
        for output in batch.outputs {
            self.words([output.row.into(), output.deferred.into()]);
            self.span(output.tokens);
            self.want(output.want);
        }
        self.words(batch.targets.iter().map(|&token| token.into()));
        for event in batch.events {
            self.event(batch, *event);
        }
        for shared in batch.shared {
            self.span(shared.rows);
            self.words([shared.pages.into()]);
        }
    }

    fn want(&mut self, want: Want) {
        match want {
            Want::Sample => self.words([0]),
            Want::Verify(Draft::Chain) => self.words([1]),
            Want::Verify(_) => self.words([2]),
            Want::Score { targets, top } => {
                self.span(targets);
                self.words([3, top.into()]);
            }
            Want::Hidden => self.words([4]),
            Want::Pool(pooling) => {
                let is_mean = pooling.kind == PoolKind::Mean;
                self.words([5, is_mean.into(), pooling.normalize.into()]);
            }
        }
    }

    fn event(&mut self, batch: &Batch<'_>, event: SlotEvent) {
        match event {
            SlotEvent::Open { slot } => {
                let state = batch.slots.state(slot);
                self.words([0, slot.0.into(), state.sampling.seed, state.adapter.0.into()]);
            }
            SlotEvent::Pages { slot, group: GroupId(group), entries } => {
                self.words([1, slot.0.into(), group.into()]);
                self.span(entries);
                let table = batch.slots.pages(slot, GroupId(group));
                let pages = table.get(entries.range()).unwrap_or_default();
                self.words(pages.iter().map(|page| page.0.into()));
            }
            SlotEvent::CopyPage { group: GroupId(group), from, to } => {
                self.words([2, group.into(), from.0.into(), to.0.into()]);
            }
            SlotEvent::Close { slot } => self.words([3, slot.0.into()]),
        }
    }

    fn copies(&mut self, copies: &[PageCopy]) {
        for copy in copies {
            let to_host = copy.to.0 == Tier::Host;
            let (from, to) = (copy.from.1, copy.to.1);
            self.words([copy.group.0.into(), to_host.into(), from.0.into(), to.0.into()]);
        }
    }
}
