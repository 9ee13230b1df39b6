//! What a launch costs, recorded once and compared in every run.

use serde::{Deserialize, Serialize};

use super::{CLASSES, Class, Counts};
use crate::{Kernel, Outcome};

/// Counts of a launch, and what its kernel declares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cost {
    /// Bytes of shared memory that the kernel declares.
    pub static_shared: usize,
    /// Threads of a block that the kernel must be able to run with: more of them leave fewer
    /// registers for each.
    pub thread_limit: u32,
    /// What the launch did.
    pub counts: Counts,
}

/// A quantity that is above its record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, thiserror::Error)]
#[error("costs more: {found} {what}, {recorded} are recorded")]
pub struct Excess {
    /// What is counted.
    pub what: String,
    /// The record.
    pub recorded: u64,
    /// What was found.
    pub found: u64,
}

/// How far plain instructions may be above their record, in percent: another release of a compiler
/// arranges them otherwise. Nothing else has a tolerance.
pub const TOLERANCE: u64 = 1;

impl Class {
    /// Whether instructions of the class are a thread's work by itself. The others move data, wait for
    /// each other, or use units that are few.
    fn is_plain(self) -> bool {
        matches!(
            self,
            Self::Integer
                | Self::Float
                | Self::Convert
                | Self::Predicate
                | Self::Move
                | Self::Local
                | Self::Control
        )
    }
}

impl Cost {
    /// The cost of a launch that has run.
    pub fn new(kernel: &Kernel, outcome: &Outcome) -> Self {
        Self {
            static_shared: kernel.static_shared_bytes(),
            thread_limit: kernel.max_threads().unwrap_or(1024),
            counts: outcome.counts,
        }
    }

    /// What is above a record: instructions of a plain class by more than [`TOLERANCE`] percent,
    /// anything else at all.
    pub fn excess_over(&self, recorded: &Self) -> Vec<Excess> {
        let (new, old) = (&self.counts, &recorded.counts);
        let exact: [(&str, u64, u64); 11] = [
            (
                "bytes of declared shared memory",
                self.static_shared as u64,
                recorded.static_shared as u64,
            ),
            (
                "threads of a block to run with",
                self.thread_limit.into(),
                recorded.thread_limit.into(),
            ),
            ("sectors loaded", new.sectors_loaded, old.sectors_loaded),
            ("sectors stored", new.sectors_stored, old.sectors_stored),
            ("misses of L2", new.l2_misses, old.l2_misses),
            ("write-backs of L2", new.l2_write_backs, old.l2_write_backs),
            ("tensor core operations", new.tensor_operations, old.tensor_operations),
            ("tensor core operations times bytes", new.tensor_work, old.tensor_work),
            ("accesses of shared memory", new.shared_accesses, old.shared_accesses),
            ("passes over shared memory", new.shared_wavefronts, old.shared_wavefronts),
            ("barriers", new.barriers, old.barriers),
        ];
        let exact = exact.into_iter().map(|(what, found, recorded)| {
            (Excess { what: what.to_owned(), recorded, found }, recorded)
        });
        let classes = CLASSES.into_iter().map(|class| {
            let (recorded, found) = (old.of(class), new.of(class));
            let tolerance = if class.is_plain() { recorded * TOLERANCE / 100 } else { 0 };
            let what = format!("{class:?} instructions");
            (Excess { what, recorded, found }, recorded.saturating_add(tolerance))
        });
        exact.chain(classes).filter(|(one, most)| one.found > *most).map(|(one, _)| one).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cost(change: impl Fn(&mut Cost)) -> Cost {
        let mut counts = Counts { sectors_loaded: 100, ..Counts::default() };
        counts.by_class = [1000; CLASSES.len()];
        let mut cost = Cost { static_shared: 64, thread_limit: 128, counts };
        change(&mut cost);
        cost
    }

    fn excess(change: impl Fn(&mut Cost)) -> Vec<String> {
        cost(change).excess_over(&cost(|_| {})).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn what_costs_no_more_has_no_excess() {
        assert!(excess(|_| {}).is_empty());
        assert!(excess(|cost| cost.counts.sectors_loaded = 99).is_empty());
        assert!(excess(|cost| cost.counts.by_class[Class::Integer as usize] = 1010).is_empty());
    }

    #[test]
    fn sectors_and_resources_have_no_tolerance_and_plain_instructions_a_small_one() {
        let found = excess(|cost| cost.counts.sectors_loaded = 101);
        assert_eq!(found, ["costs more: 101 sectors loaded, 100 are recorded"]);
        assert_eq!(excess(|cost| cost.static_shared = 65).len(), 1);
        assert_eq!(excess(|cost| cost.thread_limit = 160).len(), 1);
        assert_eq!(excess(|cost| cost.counts.by_class[Class::Integer as usize] = 1011).len(), 1);
        assert_eq!(excess(|cost| cost.counts.by_class[Class::Tensor as usize] = 1001).len(), 1);
    }
}
