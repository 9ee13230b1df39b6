//! Asynchronous work of the threads of a warp, in groups that are committed and waited for.
//!
//! A device may do the work at any time up to the wait. Doing it as late as possible shows
//! everything that comes too early.

/// Work of a warp that is not done.
#[derive(Debug)]
pub(crate) struct Groups<T> {
    flying: Vec<Flying<T>>,
    /// For each lane, how many groups it committed.
    committed: [u32; 32],
}

/// A piece of work.
#[derive(Debug)]
struct Flying<T> {
    lane: u8,
    /// The group that the lane committed it with; none before that.
    group: Option<u32>,
    work: T,
}

impl<T> Default for Groups<T> {
    fn default() -> Self {
        Self { flying: Vec::new(), committed: [0; 32] }
    }
}

impl<T> Groups<T> {
    pub(crate) fn reset(&mut self) {
        self.flying.clear();
        self.committed = [0; 32];
    }

    pub(crate) fn start(&mut self, lane: usize, work: T) {
        self.flying.push(Flying { lane: lane as u8, group: None, work });
    }

    /// The lanes of `mask` commit what they started.
    pub(crate) fn commit(&mut self, mask: u32) {
        for lane in 0..32 {
            self.committed[lane] += mask >> lane & 1;
        }
        for flying in &mut self.flying {
            if flying.group.is_none() && mask >> flying.lane & 1 == 1 {
                flying.group = Some(self.committed[usize::from(flying.lane) % 32]);
            }
        }
    }

    /// The lanes of `mask` wait for all but their last `allowed` groups.
    pub(crate) fn wait(&mut self, mask: u32, allowed: u32) -> Vec<(usize, T)> {
        let committed = self.committed;
        self.take(|flying| {
            let last = committed[usize::from(flying.lane) % 32].saturating_sub(allowed);
            mask >> flying.lane & 1 == 1 && flying.group.is_some_and(|group| group <= last)
        })
    }

    /// The lanes of `mask` wait for everything, or end.
    pub(crate) fn wait_all(&mut self, mask: u32) -> Vec<(usize, T)> {
        self.take(|flying| mask >> flying.lane & 1 == 1)
    }

    /// How much work of the lanes of `mask` is not done.
    pub(crate) fn left(&self, mask: u32) -> usize {
        self.flying.iter().filter(|flying| mask >> flying.lane & 1 == 1).count()
    }

    fn take(&mut self, is_due: impl Fn(&Flying<T>) -> bool) -> Vec<(usize, T)> {
        let due: Vec<Flying<T>> = self.flying.extract_if(.., |flying| is_due(flying)).collect();
        due.into_iter().map(|flying| (usize::from(flying.lane) % 32, flying.work)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn work(done: Vec<(usize, u32)>) -> Vec<u32> {
        done.into_iter().map(|(_, work)| work).collect()
    }

    #[test]
    fn waiting_leaves_the_newest_groups() {
        let mut groups = Groups::default();
        for group in 0..3 {
            groups.start(0, group);
            groups.commit(1);
        }
        assert_eq!(work(groups.wait(1, 1)), [0, 1]);
        assert_eq!(groups.left(1), 1);
        assert_eq!(work(groups.wait(1, 0)), [2]);
    }

    #[test]
    fn work_that_nobody_committed_is_not_done() {
        let mut groups = Groups::default();
        groups.start(3, 7);
        assert!(groups.wait(u32::MAX, 0).is_empty());
        assert_eq!(groups.wait_all(1 << 3), [(3, 7)]);
    }

    #[test]
    fn an_empty_group_counts() {
        let mut groups = Groups::default();
        groups.start(0, 1);
        groups.commit(1);
        groups.commit(1);
        assert_eq!(work(groups.wait(1, 1)), [1]);
    }
}
