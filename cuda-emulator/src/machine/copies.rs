//! `cp.async`: copies that arrive when they are waited for, and not before.
//!
//! A device may deliver a copy at any time up to the wait. Delivering as late as possible shows
//! every read that comes too early.

/// The copies of a warp that have not arrived.
#[derive(Debug, Default)]
pub(crate) struct Copies {
    flying: Vec<Flying>,
    /// For each lane, how many groups it committed.
    committed: [u32; 32],
}

/// A copy on its way.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Flying {
    pub(crate) lane: u8,
    pub(crate) bytes: u8,
    /// The group that the lane committed it with; none before that.
    group: Option<u32>,
    pub(crate) offset: u32,
    pub(crate) data: [u8; 16],
}

impl Copies {
    pub(crate) fn reset(&mut self) {
        self.flying.clear();
        self.committed = [0; 32];
    }

    pub(crate) fn start(&mut self, lane: usize, offset: usize, bytes: usize, data: [u8; 16]) {
        self.flying.push(Flying {
            lane: lane as u8,
            bytes: bytes as u8,
            group: None,
            offset: offset as u32,
            data,
        });
    }

    /// `cp.async.commit_group` by the lanes of `mask`.
    pub(crate) fn commit(&mut self, mask: u32) {
        for lane in 0..32 {
            self.committed[lane] += mask >> lane & 1;
        }
        for copy in &mut self.flying {
            if copy.group.is_none() && mask >> copy.lane & 1 == 1 {
                copy.group = Some(self.committed[usize::from(copy.lane) % 32]);
            }
        }
    }

    /// `cp.async.wait_group` by the lanes of `mask`: takes all but the last `allowed` groups.
    pub(crate) fn wait(&mut self, mask: u32, allowed: u32) -> Vec<Flying> {
        let committed = self.committed;
        self.take(|copy| {
            let last = committed[usize::from(copy.lane) % 32].saturating_sub(allowed);
            mask >> copy.lane & 1 == 1 && copy.group.is_some_and(|group| group <= last)
        })
    }

    /// `cp.async.wait_all` by the lanes of `mask`, or their end.
    pub(crate) fn wait_all(&mut self, mask: u32) -> Vec<Flying> {
        self.take(|copy| mask >> copy.lane & 1 == 1)
    }

    /// How many copies of the lanes of `mask` are on their way.
    pub(crate) fn left(&self, mask: u32) -> usize {
        self.flying.iter().filter(|copy| mask >> copy.lane & 1 == 1).count()
    }

    fn take(&mut self, arrives: impl Fn(&Flying) -> bool) -> Vec<Flying> {
        let mut arrived = Vec::new();
        self.flying.retain(|copy| {
            let now = arrives(copy);
            if now {
                arrived.push(*copy);
            }
            !now
        });
        arrived
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_leaves_the_newest_groups_on_their_way() {
        let mut copies = Copies::default();
        for group in 0..3 {
            copies.start(0, group * 16, 16, [0; 16]);
            copies.commit(1);
        }
        let offsets =
            |copies: Vec<Flying>| -> Vec<u32> { copies.iter().map(|copy| copy.offset).collect() };
        assert_eq!(offsets(copies.wait(1, 1)), [0, 16]);
        assert_eq!(copies.left(1), 1);
        assert_eq!(offsets(copies.wait(1, 0)), [32]);
    }

    #[test]
    fn copies_that_nobody_committed_do_not_arrive() {
        let mut copies = Copies::default();
        copies.start(3, 0, 4, [0; 16]);
        assert!(copies.wait(u32::MAX, 0).is_empty());
        assert_eq!(copies.wait_all(1 << 3).len(), 1);
    }

    #[test]
    fn an_empty_group_counts() {
        let mut copies = Copies::default();
        copies.start(0, 0, 16, [0; 16]);
        copies.commit(1);
        copies.commit(1);
        assert_eq!(copies.wait(1, 1).len(), 1);
    }
}
