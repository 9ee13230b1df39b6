//! PTX text to instructions.
//!
//! [`Module::parse`] reads what NVRTC or nvcc emits. The result keeps names and modifiers as they
//! are written; the machine resolves them. Whatever the text holds, parsing ends in a
//! module or in a [`PtxError`] with the line at fault.

mod error;
mod lexer;
mod module;
mod statement;
mod types;

use std::collections::BTreeMap;

pub use error::{PtxError, PtxProblem};
pub use types::{Space, Type};

/// A PTX module.
#[derive(Debug, Clone, Default)]
pub struct Module {
    /// The PTX version, such as 8 and 8.
    pub version: (u32, u32),
    /// The target, such as `sm_80`.
    pub target: String,
    /// Source files by the number that [`SourceLine::file`] holds. Present with `-lineinfo`.
    pub files: BTreeMap<u32, String>,
    /// Variables outside of functions.
    pub variables: Vec<Variable>,
    /// Kernels and functions, in the order of the text.
    pub functions: Vec<Function>,
}

impl Module {
    /// Parses PTX text.
    ///
    /// # Errors
    ///
    /// The first line that isn't PTX, or that uses what this parser doesn't know.
    pub fn parse(text: &str) -> Result<Self, PtxError> {
        module::parse(text)
    }

    /// The kernels of the module.
    pub fn kernels(&self) -> impl Iterator<Item = &Function> {
        self.functions.iter().filter(|function| function.is_kernel)
    }
}

/// A kernel or a device function.
#[derive(Debug, Clone)]
pub struct Function {
    /// Its name as PTX has it, mangled if the source is.
    pub name: String,
    /// Whether a host can launch it.
    pub is_kernel: bool,
    /// What a call gives back. Empty for kernels.
    pub results: Vec<Variable>,
    /// What it is given.
    pub parameters: Vec<Variable>,
    /// The most threads of a block, from `__launch_bounds__`.
    pub max_threads: Option<u32>,
    /// Blocks of a cluster, from `__cluster_dims__`.
    pub cluster: Option<[u32; 3]>,
    /// The body; none for a declaration.
    pub body: Option<Vec<Statement>>,
    /// The line of the PTX text.
    pub line: u32,
}

/// A variable, parameter or result.
#[derive(Debug, Clone, PartialEq)]
pub struct Variable {
    /// Its name.
    pub name: String,
    /// Where it lives.
    pub space: Space,
    /// The type of its elements.
    pub ty: Type,
    /// Its alignment in bytes, a power of two.
    pub align: u64,
    /// Its size in bytes; zero for `extern __shared__` arrays.
    pub bytes: u64,
    /// Its first bytes; the others are zero.
    pub initial: Vec<u8>,
    /// Addresses of other variables that the initial bytes hold: offset, name and what to add.
    pub addresses: Vec<(u64, String, i64)>,
    /// Whether only its name is known here.
    pub is_extern: bool,
}

/// A part of a function's body.
#[derive(Debug, Clone, PartialEq)]
pub enum Statement {
    /// `{`: names declared from here are known up to the matching `}`.
    Open,
    /// `}`.
    Close,
    /// The target of a branch.
    Label(String),
    /// Registers: a type and names; with a count, `%r<3>` declares `%r0`, `%r1` and `%r2`.
    Registers(Type, Vec<(String, Option<u32>)>),
    /// A variable.
    Variable(Variable),
    /// The targets of an indirect branch or call, under a name.
    Targets(String, Vec<String>),
    /// The sizes of the results and parameters of functions that an indirect call leads to, under a
    /// name.
    Prototype(String, Vec<u64>, Vec<u64>),
    /// An instruction.
    Instruction(Instruction),
}

/// An instruction as written.
#[derive(Debug, Clone, PartialEq)]
pub struct Instruction {
    /// The predicate that decides which lanes execute it, and whether it is negated.
    pub guard: Option<(String, bool)>,
    /// The name with all modifiers, `add.rn.f32`.
    pub name: String,
    /// The operands.
    pub operands: Vec<Operand>,
    /// The line of the PTX text.
    pub line: u32,
    /// The source line, where the compiler gave it.
    pub source: Option<SourceLine>,
}

/// A line of a CUDA source file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SourceLine {
    /// Which of [`Module::files`].
    pub file: u32,
    /// The line, from 1.
    pub line: u32,
}

/// An operand as written.
#[derive(Debug, Clone, PartialEq)]
pub enum Operand {
    /// A register, special register, variable, label or function.
    Name(String),
    /// A name with `!` before it.
    Not(String),
    /// A whole number.
    Integer(i64),
    /// The bits of a single.
    Single(u32),
    /// The bits of a double.
    Double(u64),
    /// `[base + offset]`, with what TMA instructions list after the base.
    Address {
        /// A register, a variable or a number.
        base: Box<Operand>,
        /// Bytes to add.
        offset: i64,
        /// Coordinates.
        coordinates: Vec<Operand>,
    },
    /// `variable + offset` outside of brackets.
    Sum(String, i64),
    /// `{a, b}`.
    Vector(Vec<Operand>),
    /// `(a, b)`: arguments or results of a call.
    List(Vec<Operand>),
    /// `a|b`: two results.
    Pair(Box<Operand>, Box<Operand>),
}
