//! Vector clocks: what each warp of a cluster has seen of the others.
//!
//! Actors are the warps of a cluster, and the asynchronous copies of each mbarrier. An access is
//! ordered after an earlier one if the warp's clock has passed that one. A second set of clocks
//! says how much of it came through a proxy fence, which asynchronous readers need.

/// Times of actors; those beyond the end are 0.
type Times = Vec<u32>;

/// The clocks of a cluster.
#[derive(Debug, Default)]
pub(crate) struct Clocks {
    warps: Vec<Clock>,
    /// The times of actors that aren't warps.
    copies: Vec<u32>,
}

/// What has been seen, and what of that a proxy fence covers.
#[derive(Debug, Clone, Default)]
pub(crate) struct Clock {
    seen: Times,
    fenced: Times,
}

impl Clocks {
    /// Begins a cluster.
    pub(crate) fn reset(&mut self, warps: usize) {
        self.copies.clear();
        self.warps.clear();
        for warp in 0..warps {
            let mut seen = vec![0; warps];
            seen[warp] = 1;
            self.warps.push(Clock { seen, fenced: vec![0; warps] });
        }
    }

    /// What a warp has seen of each actor.
    #[inline(always)]
    pub(crate) fn seen(&self, warp: usize) -> &[u32] {
        self.warps.get(warp).map_or(&[], |clock| clock.seen.as_slice())
    }

    /// What of it came through a proxy fence.
    pub(crate) fn fenced(&self, warp: usize) -> &[u32] {
        self.warps.get(warp).map_or(&[], |clock| clock.fenced.as_slice())
    }

    /// Orders what the warps did before whatever any of them does from now on.
    pub(crate) fn synchronize(&mut self, warps: &[usize]) {
        let mut joined = Clock::default();
        for clock in warps.iter().filter_map(|warp| self.warps.get(*warp)) {
            joined.join(clock);
        }
        for &warp in warps {
            self.acquire(warp, &joined);
            self.tick(warp);
        }
    }

    /// Adds what a warp has seen and done to what a barrier hands on.
    pub(crate) fn release(&mut self, warp: usize, to: &mut Clock) {
        if let Some(clock) = self.warps.get(warp) {
            to.join(clock);
        }
        self.tick(warp);
    }

    /// Lets a warp see what a barrier hands on.
    pub(crate) fn acquire(&mut self, warp: usize, from: &Clock) {
        if let Some(clock) = self.warps.get_mut(warp) {
            clock.join(from);
        }
    }

    /// A proxy fence of a warp covers what it has seen and done so far.
    pub(crate) fn fence(&mut self, warp: usize) {
        if let Some(clock) = self.warps.get_mut(warp) {
            clock.fenced.clone_from(&clock.seen);
        }
        self.tick(warp);
    }

    fn tick(&mut self, warp: usize) {
        if let Some(time) = self.warps.get_mut(warp).and_then(|clock| clock.seen.get_mut(warp)) {
            *time += 1;
        }
    }

    /// An actor for the copies of an mbarrier. Beyond the number that marks can hold, copies
    /// share the last one.
    pub(crate) fn new_actor(&mut self) -> u16 {
        self.copies.push(0);
        u16::try_from(self.warps.len() + self.copies.len() - 1).unwrap_or(u16::MAX)
    }

    /// The time of the next copy of an actor.
    pub(crate) fn copied(&mut self, actor: u16) -> u32 {
        let index = usize::from(actor).saturating_sub(self.warps.len());
        let Some(time) = self.copies.get_mut(index) else { return 1 };
        *time += 1;
        *time
    }

    pub(crate) fn is_warp(&self, actor: u16) -> bool {
        usize::from(actor) < self.warps.len()
    }
}

impl Clock {
    fn join(&mut self, other: &Self) {
        join(&mut self.seen, &other.seen);
        join(&mut self.fenced, &other.fenced);
    }

    /// Adds a copy of an actor.
    pub(crate) fn add(&mut self, actor: u16, time: u32) {
        let index = usize::from(actor);
        if self.seen.len() <= index {
            self.seen.resize(index + 1, 0);
        }
        self.seen[index] = self.seen[index].max(time);
    }
}

fn join(to: &mut Times, from: &[u32]) {
    if to.len() < from.len() {
        to.resize(from.len(), 0);
    }
    for (all, one) in to.iter_mut().zip(from) {
        *all = (*all).max(*one);
    }
}
