//! All living sequences, and which of them run.

use hashbrown::HashMap;
use slotmap::SlotMap;

use super::arrival::{Arrival, SequenceId};
use super::config::SchedulerConfig;
use super::error::{Refusal, ScheduleError};
use super::pages::Holding;
use super::proposer::Drafting;
use super::sequence::{Phase, Running, Sequence, SequenceKey, Waiting};

/// Owns the sequences and the order of those that run.
#[derive(Debug)]
pub(super) struct Sequences {
    all: SlotMap<SequenceKey, Sequence>,
    by_id: HashMap<SequenceId, SequenceKey>,
    /// In the order of admission.
    running: Vec<SequenceKey>,
    arrivals: u64,
    runs: u64,
}

impl Sequences {
    pub(super) fn new(max_running: usize) -> Self {
        Self {
            all: SlotMap::with_key(),
            by_id: HashMap::new(),
            running: Vec::with_capacity(max_running),
            arrivals: 0,
            runs: 0,
        }
    }

    /// Adds a sequence that waits, unless its id is in use. What it may generate ends with the
    /// context.
    pub(super) fn add(
        &mut self,
        arrival: Arrival,
        config: &SchedulerConfig,
    ) -> Result<SequenceKey, Refusal> {
        let id = arrival.id;
        if self.by_id.contains_key(&id) {
            return Err(Refusal::Exists(id));
        }
        let speculation = config.speculation.filter(|_| arrival.speculation);
        let drafting = speculation.map(Drafting::new);
        let mut sequence = Sequence::new(arrival, self.arrivals, drafting);
        // The context's limit is a limit like the request's own. Arrivals leave room for a token.
        let room = config.context_length.saturating_sub(sequence.prompt_len);
        sequence.max_tokens = sequence.max_tokens.min(room);
        self.arrivals += 1;
        let key = self.all.insert(sequence);
        self.by_id.insert(id, key);
        Ok(key)
    }

    /// Nothing is kept for others, so a request shares with itself alone.
    pub(super) fn isolate(&mut self, key: SequenceKey) {
        let sequence = &mut self.all[key];
        sequence.namespace.salt = sequence.id.request.0;
    }

    pub(super) fn find(&self, id: SequenceId) -> Option<SequenceKey> {
        self.by_id.get(&id).copied()
    }

    /// The sequence, unless it has ended.
    pub(super) fn get(&self, key: SequenceKey) -> Option<&Sequence> {
        self.all.get(key)
    }

    pub(super) fn get_mut(&mut self, key: SequenceKey) -> Option<&mut Sequence> {
        self.all.get_mut(key)
    }

    /// A sequence that is alive: keys in the queue and among those that run are.
    pub(super) fn of(&self, key: SequenceKey) -> &Sequence {
        &self.all[key]
    }

    pub(super) fn of_mut(&mut self, key: SequenceKey) -> &mut Sequence {
        &mut self.all[key]
    }

    /// The keys of those that run, in the order of admission.
    pub(super) fn running(&self) -> &[SequenceKey] {
        &self.running
    }

    /// Those that run, in the order of admission.
    pub(super) fn iter_running(&self) -> impl Iterator<Item = &Sequence> + '_ {
        self.running.iter().map(|&key| &self.all[key])
    }

    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    /// A waiting sequence runs from here on, with `computed` positions that have KV. Returns how
    /// it waited.
    pub(super) fn start(&mut self, key: SequenceKey, holding: Holding, computed: usize) -> Waiting {
        self.runs += 1;
        let sequence = &mut self.all[key];
        let waiting = sequence.waiting().cloned().unwrap_or_default();
        sequence.phase = Phase::Running(Running {
            holding,
            launched: computed,
            computed,
            pending: 0,
            is_verifying: false,
            run: self.runs,
        });
        self.running.push(key);
        waiting
    }

    /// A running sequence waits again, before any that never ran; rows of it that are in flight
    /// are stale. Returns what it held.
    pub(super) fn put_back(&mut self, key: SequenceKey) -> Result<Holding, ScheduleError> {
        let sequence = &mut self.all[key];
        sequence.running_mut()?;
        let resumed = Phase::Waiting(Waiting { resumed: true, ..Waiting::default() });
        let before = std::mem::replace(&mut sequence.phase, resumed);
        self.running.retain(|&other| other != key);
        match before {
            Phase::Running(Running { holding, .. }) => Ok(holding),
            _ => Err(ScheduleError::NotRunning { id: self.all[key].id }),
        }
    }

    /// A sequence has ended.
    pub(super) fn remove(&mut self, key: SequenceKey) -> Option<Sequence> {
        let sequence = self.all.remove(key)?;
        self.by_id.remove(&sequence.id);
        self.running.retain(|&other| other != key);
        Some(sequence)
    }
}
