//! What can be wrong with a program.

use super::RowsOf;

/// A program that is not well formed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProgramError {
    /// Two things that must be equally wide are not.
    #[error("{op}: {what} is {found} wide, but must be {expected}")]
    Width {
        /// The operation.
        op: &'static str,
        /// Which operand.
        what: &'static str,
        /// The width that it must have.
        expected: usize,
        /// The width that it has.
        found: usize,
    },
    /// An operand has rows for tokens where rows for outputs are needed, or the reverse.
    #[error("{op}: {what} must have one row for each {expected:?}")]
    Rows {
        /// The operation.
        op: &'static str,
        /// Which operand.
        what: &'static str,
        /// What its rows must be.
        expected: RowsOf,
    },
    /// Sharded and whole values were mixed.
    #[error("{op}: {what} must {}be divided between devices", if *.expected { "" } else { "not " })]
    Sharding {
        /// The operation.
        op: &'static str,
        /// Which operand.
        what: &'static str,
        /// Whether it must be sharded.
        expected: bool,
    },
    /// A number that makes no sense: zero heads, heads that KV heads don't divide.
    #[error("{op}: {what} can't be {value}")]
    Number {
        /// The operation.
        op: &'static str,
        /// Which number.
        what: &'static str,
        /// What it is.
        value: String,
    },
    /// A weight was declared twice with different shapes or splits.
    #[error(
        "weight `{name}` is used with shape {first:?} and with shape {second:?}, or split in two ways"
    )]
    WeightConflict {
        /// The weight's name.
        name: String,
        /// Shape at its first use.
        first: Vec<usize>,
        /// Shape at the later use.
        second: Vec<usize>,
    },
    /// A page group that was not declared.
    #[error("attention names page group {group}, but {groups} are declared")]
    Group {
        /// The group named.
        group: u8,
        /// How many there are.
        groups: usize,
    },
    /// An attention reads the K and V of a value that no attention computed.
    #[error("attention names a value as an earlier attention's result, but none computed it")]
    NotAttention,
    /// The program ends without logits, or continues after them.
    #[error("a program ends with its logits")]
    Logits,
}
