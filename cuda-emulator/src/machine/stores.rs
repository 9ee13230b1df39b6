//! Stores of several lanes to one place.

use crate::check::{Problem, twins};
use crate::ptx::Space;

use super::context::Context;
use super::names::{LOCAL_WINDOW, WINDOW};
use super::registers::{LANES, Registers};

impl Context<'_, '_> {
    /// Notes lanes that store where a lower lane stores in the same instruction. `value` is what a
    /// lane stores.
    #[inline(always)]
    pub(crate) fn watch_stores<T: PartialEq>(
        &mut self,
        space: Space,
        addresses: &[u64; LANES],
        mask: u32,
        value: impl Fn(&Registers, usize) -> T,
    ) {
        // Each lane has local memory of its own.
        let local = LOCAL_WINDOW..LOCAL_WINDOW + WINDOW;
        let first = addresses[mask.trailing_zeros() as usize % LANES];
        if space == Space::Local || space == Space::Generic && local.contains(&first) {
            return;
        }
        let found = twins(addresses, mask);
        let mut redundant = 0;
        for (lane, first) in &found {
            if value(&self.core.registers, *lane) == value(&self.core.registers, *first) {
                redundant |= 1 << lane;
                continue;
            }
            let (address, second) = (addresses[*lane], *lane as u32);
            let problem = Problem::ConflictingStore { address, first: *first as u32, second };
            self.note(*lane, problem, None);
        }
        if let Some((lane, _)) = found.iter().find(|(lane, _)| redundant >> lane & 1 == 1) {
            let problem = Problem::RedundantStore { address: addresses[*lane], lanes: redundant };
            self.note(*lane, problem, None);
        }
    }
}
