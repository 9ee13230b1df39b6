//! What watches a kernel while it runs.

mod clocks;
mod global;
mod hint;
mod report;
mod shared;
mod stores;

pub(crate) use clocks::{Clock, Clocks};
pub(crate) use global::{Access, Accessor, EPOCHS, GlobalShadow};
pub use report::{Problem, Report, Severity, Site};
pub(crate) use shared::{Finding, SharedShadow};
pub(crate) use stores::twins;

use serde::{Deserialize, Serialize};

/// Which checks are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Checks {
    /// Accesses outside of live memory, after a free, or not aligned. Such an access ends the
    /// launch, as on a device; without the check it reads zeros and writes nothing.
    pub bounds: bool,
    /// Reads of shared memory that nobody wrote.
    pub uninitialized_shared: bool,
    /// Reads of device memory that nobody wrote.
    pub uninitialized_global: bool,
    /// Accesses of shared memory by several warps that no barrier orders.
    pub shared_races: bool,
    /// Accesses of device memory by several blocks of a launch that nothing orders.
    pub global_races: bool,
    /// Shared memory touched while an asynchronous copy to it is on its way, or changed while an
    /// asynchronous operation reads it.
    pub async_copies: bool,
    /// Mbarriers that are not initialized, count beyond what they expect, or are overwritten.
    pub mbarriers: bool,
    /// Asynchronous reads of what ordinary stores wrote, with no proxy fence between.
    pub proxy_fences: bool,
    /// Registers touched while a `wgmma` uses them, or handed to it without a fence.
    pub wgmma: bool,
    /// Shared memory of another block used before it is known to run, or after its end.
    pub clusters: bool,
    /// Lanes of a warp that store to the same place at once.
    pub redundant_stores: bool,
    /// Shuffles, votes and matrix operations that lanes named by their mask do not execute.
    pub divergence: bool,
    /// Barriers that a part of a warp executes, and warps that meet at different barriers.
    pub barriers: bool,
    /// Integer divisions by zero.
    pub division: bool,
    /// Shared memory accesses that take more cycles than they need.
    pub bank_conflicts: bool,
    /// Device memory accesses that touch more sectors than they need.
    pub coalescing: bool,
}

/// The names of the checks, as [`Checks::set`] takes them.
pub const NAMES: [&str; 16] = [
    "bounds",
    "uninitialized-shared",
    "uninitialized-global",
    "shared-races",
    "global-races",
    "async-copies",
    "mbarriers",
    "proxy-fences",
    "wgmma",
    "clusters",
    "redundant-stores",
    "divergence",
    "barriers",
    "division",
    "bank-conflicts",
    "coalescing",
];

impl Default for Checks {
    /// All of them.
    fn default() -> Self {
        Self::all(true)
    }
}

impl Checks {
    /// No checks: the fastest way to results.
    pub fn none() -> Self {
        Self { bounds: true, ..Self::all(false) }
    }

    /// All checks on or off.
    pub fn all(on: bool) -> Self {
        Self {
            bounds: on,
            uninitialized_shared: on,
            uninitialized_global: on,
            shared_races: on,
            global_races: on,
            async_copies: on,
            mbarriers: on,
            proxy_fences: on,
            wgmma: on,
            clusters: on,
            redundant_stores: on,
            divergence: on,
            barriers: on,
            division: on,
            bank_conflicts: on,
            coalescing: on,
        }
    }

    /// Switches the check called `name`; false if there is none of that name.
    pub fn set(&mut self, name: &str, on: bool) -> bool {
        let check = match name {
            "bounds" => &mut self.bounds,
            "uninitialized-shared" => &mut self.uninitialized_shared,
            "uninitialized-global" => &mut self.uninitialized_global,
            "shared-races" => &mut self.shared_races,
            "global-races" => &mut self.global_races,
            "async-copies" => &mut self.async_copies,
            "mbarriers" => &mut self.mbarriers,
            "proxy-fences" => &mut self.proxy_fences,
            "wgmma" => &mut self.wgmma,
            "clusters" => &mut self.clusters,
            "redundant-stores" => &mut self.redundant_stores,
            "divergence" => &mut self.divergence,
            "barriers" => &mut self.barriers,
            "division" => &mut self.division,
            "bank-conflicts" => &mut self.bank_conflicts,
            "coalescing" => &mut self.coalescing,
            _ => return false,
        };
        *check = on;
        true
    }

    pub(crate) fn shadows_shared(&self) -> bool {
        self.uninitialized_shared
            || self.shared_races
            || self.async_copies
            || self.mbarriers
            || self.proxy_fences
            || self.clusters
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_check_can_be_switched_by_its_name() {
        let mut checks = Checks::all(false);
        for name in NAMES {
            assert!(checks.set(name, true), "{name}");
        }
        assert_eq!(checks, Checks::all(true));
        assert!(!checks.set("no-such-check", true));
    }
}
