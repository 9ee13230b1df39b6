//! Compiled instructions.

use std::fmt;

use crate::ptx::SourceLine;

use super::context::{Context, Trap};
use super::registers::{LANES, Registers, Row};

type OnLanes = Box<dyn Fn(&mut Registers, u32) + Send + Sync>;
type OnWait = Box<dyn Fn(&mut Context<'_, '_>, u32) -> Result<Flow, Trap> + Send + Sync>;
type OnWarp = Box<dyn Fn(&mut Context<'_, '_>, u32) -> Result<(), Trap> + Send + Sync>;

/// What an instruction does. The operands are resolved when the kernel is compiled and live in
/// the closures.
pub(crate) enum Action {
    /// Changes registers of the lanes of a mask, and nothing else.
    Lanes(OnLanes),
    /// Does anything but move to another instruction.
    Warp(OnWarp),
    /// May have to wait for other threads.
    Wait(OnWait),
    /// Goes on at `target`.
    Branch { target: u32 },
    /// Goes on at the target that a register chooses.
    Table { index: u32, targets: Box<[u32]> },
    /// Runs a function from `entry` on, and then goes on.
    Call { entry: u32 },
    /// Ends a function, or the threads of a kernel.
    Return,
    /// Ends threads.
    Exit,
    /// Waits at a barrier, or only arrives there.
    Barrier(Barrier),
}

/// How a warp goes on after an instruction that may wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flow {
    /// With the next instruction.
    On,
    /// With the next instruction, after others had a turn.
    Yield,
    /// With the same instruction, when what the warp waits for has happened.
    Again,
}

/// A barrier instruction.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Barrier {
    /// Rows with the barrier's number and the number of threads.
    pub(crate) number: u32,
    pub(crate) threads: Option<u32>,
    pub(crate) kind: BarrierKind,
    /// Whether lanes of a warp may arrive one by one.
    pub(crate) aligned: bool,
}

/// What a barrier instruction does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BarrierKind {
    /// Waits.
    Sync,
    /// Does not wait.
    Arrive,
    /// Waits, and combines a predicate of all threads.
    Reduce { how: Reduction, source: u32, negated: bool, target: u32 },
}

/// How a barrier combines predicates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reduction {
    /// Counts into a register.
    Count,
    /// Into a predicate: whether all hold.
    And,
    /// Into a predicate: whether any holds.
    Or,
}

impl Action {
    pub(crate) fn lanes(f: impl Fn(&mut Registers, u32) + Send + Sync + 'static) -> Self {
        Self::Lanes(Box::new(f))
    }

    pub(crate) fn warp(
        f: impl Fn(&mut Context<'_, '_>, u32) -> Result<(), Trap> + Send + Sync + 'static,
    ) -> Self {
        Self::Warp(Box::new(f))
    }

    pub(crate) fn wait(
        f: impl Fn(&mut Context<'_, '_>, u32) -> Result<Flow, Trap> + Send + Sync + 'static,
    ) -> Self {
        Self::Wait(Box::new(f))
    }

    pub(crate) fn nothing() -> Self {
        Self::lanes(|_, _| {})
    }
}

impl fmt::Debug for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Lanes(_) => "Lanes",
            Self::Warp(_) => "Warp",
            Self::Wait(_) => "Wait",
            Self::Branch { .. } => "Branch",
            Self::Table { .. } => "Table",
            Self::Call { .. } => "Call",
            Self::Return => "Return",
            Self::Exit => "Exit",
            Self::Barrier(_) => "Barrier",
        })
    }
}

/// A compiled instruction.
#[derive(Debug)]
pub(crate) struct Step {
    pub(crate) action: Action,
    /// The predicate that decides which lanes execute it, and whether it is negated.
    pub(crate) guard: Option<(u32, bool)>,
    /// A [`crate::count::Class`].
    pub(crate) class: u8,
    /// Where lanes that a branch separates meet again.
    pub(crate) join: u32,
}

/// No place to meet again.
pub(crate) const NOWHERE: u32 = u32::MAX;

/// Where a compiled instruction comes from.
#[derive(Debug, Clone)]
pub(crate) struct Origin {
    pub(crate) name: Box<str>,
    pub(crate) line: u32,
    pub(crate) source: Option<SourceLine>,
}

/// An address that each lane computes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Address {
    pub(crate) row: u32,
    pub(crate) wide: bool,
    pub(crate) offset: i64,
}

impl Address {
    #[inline(always)]
    pub(crate) fn lanes(self, registers: &Registers) -> [u64; LANES] {
        let row = self.row as usize;
        if self.wide {
            let rows: [Row; 2] = [registers.rows[row], registers.rows[row + 1]];
            bytemuck::cast::<_, [u64; LANES]>(rows)
                .map(|address| address.wrapping_add_signed(self.offset))
        } else {
            registers.rows[row]
                .0
                .map(|address| u64::from(address.wrapping_add_signed(self.offset as i32)))
        }
    }
}
