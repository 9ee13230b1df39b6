//! The instructions. Each is one function that reads the modifiers and operands and gives the
//! effect, and one line of its family's table, which holds the forms that the instruction comes
//! in. Documentation and tests are made from these lines.

mod approximate;
mod arithmetic;
mod atomic;
mod bits;
mod bulk;
mod cluster;
mod convert;
mod copy;
mod descriptor;
mod floating;
mod matrix;
mod mbarrier;
mod memory;
mod mma;
mod predicate;
mod sync;
mod vote;
mod wgmma;
mod wmma;

use std::collections::HashMap;
use std::sync::LazyLock;

use crate::count::Class;
use crate::ptx::PtxError;

use super::action::Action;
use super::form::Form;

pub(super) use sync::assertion;
pub(crate) use wgmma::Wgmma;
pub(super) use wgmma::watch_registers;

/// An instruction.
pub(super) struct Op {
    /// The name up to the first dot.
    pub(super) name: &'static str,
    pub(super) class: Class,
    /// Forms with operands; `(a|b)` stands for either. Registers: `h` of 16 bits, `r` of 32, `d`
    /// of 64, `p` predicates.
    pub(super) forms: &'static [&'static str],
    pub(super) compile: fn(&mut Form<'_, '_>) -> Result<Action, PtxError>,
}

const TABLES: [&[Op]; 16] = [
    arithmetic::TABLE,
    floating::TABLE,
    bits::TABLE,
    predicate::TABLE,
    convert::TABLE,
    memory::TABLE,
    atomic::TABLE,
    vote::TABLE,
    copy::TABLE,
    matrix::TABLE,
    mma::TABLE,
    sync::TABLE,
    mbarrier::TABLE,
    cluster::TABLE,
    wgmma::TABLE,
    wmma::TABLE,
];

static BY_NAME: LazyLock<HashMap<&'static str, &'static Op>> =
    LazyLock::new(|| TABLES.iter().copied().flatten().map(|op| (op.name, op)).collect());

/// The instruction called `name`.
pub(super) fn find(name: &str) -> Option<&'static Op> {
    BY_NAME.get(name).copied()
}

/// The forms of an instruction that the machine has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InstructionForms {
    /// The name up to the first dot.
    pub name: &'static str,
    /// Forms with operands; `(a|b)` stands for either.
    pub forms: &'static [&'static str],
}

/// All instructions that the machine has, besides `bra`, `brx.idx` and `call`.
pub fn instruction_forms() -> impl Iterator<Item = InstructionForms> {
    TABLES.iter().copied().flatten().map(|op| InstructionForms { name: op.name, forms: op.forms })
}
