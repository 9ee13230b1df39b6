//! What the names of a kernel stand for: registers, constants and addresses.

use std::collections::HashMap;

use crate::ptx::{Function, Module, PtxError, PtxProblem, Space, Type, Variable};

use super::registers::{LANES, Row};

/// The generic address of byte 0 of shared memory.
pub(crate) const SHARED_WINDOW: u64 = 0x10_0000_0000;
/// The generic address of byte 0 of a thread's local memory.
pub(crate) const LOCAL_WINDOW: u64 = 0x20_0000_0000;
/// The generic address of byte 0 of a kernel's parameters.
pub(crate) const PARAM_WINDOW: u64 = 0x30_0000_0000;
/// Size of each of these windows.
pub(crate) const WINDOW: u64 = 0x10_0000_0000;

/// Where the addresses of functions begin, and how far apart they are.
const FUNCTIONS: u64 = 0x50_0000_0000;
const FUNCTION_STEP: u64 = 16;

/// The address of a module's function of this index.
pub(crate) fn function_address(index: usize) -> u64 {
    FUNCTIONS + index as u64 * FUNCTION_STEP
}

/// The most rows of registers of a kernel.
const ROW_LIMIT: u64 = 1 << 17;
/// The most local memory of a thread, in bytes.
const LOCAL_LIMIT: u64 = 512 << 10;
/// The most parameters, in bytes.
const PARAM_LIMIT: u64 = 32764;
/// What registers hold before they are written.
const STALE: u32 = 0xdead_beef;

/// How wide a register is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Width {
    Half,
    Word,
    Double,
}

/// A register of each lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Register {
    pub(crate) row: u32,
    pub(crate) width: Width,
}

impl Register {
    pub(crate) fn is_wide(self) -> bool {
        self.width == Width::Double
    }
}

/// What a name stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Symbol {
    Register(Register),
    Predicate(u32),
    /// An address in a space.
    Address(u64, Space),
}

/// A register that the machine sets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Special {
    Thread(usize),
    BlockSize(usize),
    Block(usize),
    GridSize(usize),
    Lane,
    Warp,
    Warps,
    /// Lanes equal to, below, up to, above, and from this one on.
    LanesEqual,
    LanesBelow,
    LanesUpTo,
    LanesAbove,
    LanesFrom,
    Multiprocessor,
    Multiprocessors,
    DynamicShared,
    TotalShared,
    Zero,
    /// The cluster's index, the number of clusters, the block's index in its cluster, and blocks of
    /// a cluster.
    Cluster(usize),
    Clusters(usize),
    ClusterBlock(usize),
    ClusterSize(usize),
    ClusterRank,
    ClusterBlocks,
}

impl Special {
    pub(crate) fn is_name(name: &str) -> bool {
        Self::parse(name).is_some()
    }

    fn parse(name: &str) -> Option<Self> {
        let (head, axis) = name.split_once('.').unwrap_or((name, ""));
        let axis_index = match axis {
            "x" => Some(0),
            "y" => Some(1),
            "z" => Some(2),
            _ => None,
        };
        Some(match (head, axis_index) {
            ("%tid", Some(axis)) => Self::Thread(axis),
            ("%ntid", Some(axis)) => Self::BlockSize(axis),
            ("%ctaid", Some(axis)) => Self::Block(axis),
            ("%nctaid", Some(axis)) => Self::GridSize(axis),
            ("%clusterid", Some(axis)) => Self::Cluster(axis),
            ("%nclusterid", Some(axis)) => Self::Clusters(axis),
            ("%cluster_ctaid", Some(axis)) => Self::ClusterBlock(axis),
            ("%cluster_nctaid", Some(axis)) => Self::ClusterSize(axis),
            ("%laneid", None) => Self::Lane,
            ("%warpid", None) => Self::Warp,
            ("%nwarpid", None) => Self::Warps,
            ("%lanemask_eq", None) => Self::LanesEqual,
            ("%lanemask_lt", None) => Self::LanesBelow,
            ("%lanemask_le", None) => Self::LanesUpTo,
            ("%lanemask_gt", None) => Self::LanesAbove,
            ("%lanemask_ge", None) => Self::LanesFrom,
            ("%smid", None) => Self::Multiprocessor,
            ("%nsmid", None) => Self::Multiprocessors,
            ("%dynamic_smem_size", None) => Self::DynamicShared,
            ("%total_smem_size", None) => Self::TotalShared,
            ("%cluster_ctarank", None) => Self::ClusterRank,
            ("%cluster_nctarank", None) => Self::ClusterBlocks,
            ("%gridid", None) => Self::Zero,
            _ => return None,
        })
    }
}

/// Bytes of a space, handed out one variable after the other.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Layout {
    pub(crate) bytes: u64,
}

impl Layout {
    pub(crate) fn place(&mut self, bytes: u64, align: u64) -> u64 {
        let at = self.bytes.next_multiple_of(align.max(1));
        self.bytes = at.saturating_add(bytes);
        at
    }
}

/// Bytes of shared memory with a gap behind every variable, so that an overrun doesn't end up in
/// the next one. A device has no gaps: variables keep their places modulo [`GAP`], and so their
/// banks and swizzles.
#[derive(Debug, Default)]
pub(crate) struct SharedLayout {
    /// As a device has it.
    pub(crate) layout: Layout,
    shift: u64,
    end: u64,
    /// Bytes that belong to no variable, and the variable before.
    pub(crate) gaps: Vec<(std::ops::Range<usize>, String)>,
    last: String,
}

/// The least gap between variables of shared memory.
const GAP: u64 = 1024;

impl SharedLayout {
    fn place(&mut self, name: &str, bytes: u64, align: u64) -> u64 {
        if self.end > 0 {
            self.shift = (self.shift + GAP).next_multiple_of(align.max(GAP));
        }
        let at = self.layout.place(bytes, align) + self.shift;
        if self.end > 0 {
            self.gaps.push((self.end as usize..at as usize, std::mem::take(&mut self.last)));
        }
        self.end = at + bytes;
        self.last = name.to_owned();
        at
    }
}

/// Parameters or results of a function, in a thread's local memory.
#[derive(Debug, Clone, Default)]
pub(crate) struct Signature {
    pub(crate) parameters: Vec<(u64, u64)>,
    pub(crate) results: Vec<(u64, u64)>,
}

/// The names known at a place, and all registers so far.
#[derive(Debug)]
pub(crate) struct Names<'a> {
    module: &'a Module,
    /// Addresses of the module's variables in device memory.
    variables: &'a HashMap<String, u64>,
    scopes: Vec<HashMap<String, Symbol>>,
    constants: HashMap<(u64, bool), u32>,
    pub(crate) specials: HashMap<Special, u32>,
    /// What the registers of a warp hold at first.
    pub(crate) template: Vec<Row>,
    /// Rows that each register takes, in order.
    pub(crate) widths: Vec<usize>,
    pub(crate) predicates: u32,
    carry: Option<u32>,
    /// Registers that the text declares, in units of 32 bits.
    pub(crate) declared: u32,
    pub(crate) shared: SharedLayout,
    pub(crate) local: Layout,
    pub(crate) parameters: Layout,
    /// Shared variables of the module that the kernel uses.
    module_shared: HashMap<String, u64>,
    /// Where memory begins whose size the launch gives: after all other shared memory, so its
    /// users are patched once that is known.
    pub(crate) dynamic: Vec<(u32, bool, i64)>,
    /// Whether the names are those of a kernel or of a function.
    pub(crate) in_kernel: bool,
    signatures: HashMap<String, Signature>,
}

impl<'a> Names<'a> {
    pub(crate) fn new(module: &'a Module, variables: &'a HashMap<String, u64>) -> Self {
        Self {
            module,
            variables,
            scopes: vec![HashMap::new()],
            constants: HashMap::new(),
            specials: HashMap::new(),
            template: Vec::new(),
            widths: Vec::new(),
            predicates: 0,
            carry: None,
            declared: 0,
            shared: SharedLayout::default(),
            local: Layout::default(),
            parameters: Layout::default(),
            module_shared: HashMap::new(),
            dynamic: Vec::new(),
            in_kernel: true,
            signatures: HashMap::new(),
        }
    }

    pub(crate) fn module(&self) -> &'a Module {
        self.module
    }

    pub(crate) fn function(&self, name: &str) -> Option<&'a Function> {
        self.module.functions.iter().find(|function| function.name == name)
    }

    /// Begins a function with its parameters and results.
    pub(crate) fn enter(&mut self, function: &Function) -> Result<(), PtxError> {
        self.scopes = vec![HashMap::new()];
        self.in_kernel = function.is_kernel;
        if function.is_kernel {
            for parameter in &function.parameters {
                let at = self.parameters.place(parameter.bytes, parameter.align);
                self.declare(&parameter.name, Symbol::Address(at, Space::Param), function.line)?;
            }
            return limit("the parameters", self.parameters.bytes, PARAM_LIMIT, function.line);
        }
        let signature = self.signature(function)?;
        let places = signature.parameters.iter().chain(&signature.results);
        let variables = function.parameters.iter().chain(&function.results);
        for ((at, _), variable) in places.zip(variables) {
            self.declare(&variable.name, Symbol::Address(*at, Space::Local), function.line)?;
        }
        Ok(())
    }

    /// Where a function finds its parameters and leaves its results.
    pub(crate) fn signature(&mut self, function: &Function) -> Result<Signature, PtxError> {
        if let Some(known) = self.signatures.get(&function.name) {
            return Ok(known.clone());
        }
        let mut place = |variables: &[Variable]| -> Vec<(u64, u64)> {
            variables
                .iter()
                .map(|variable| (self.local.place(variable.bytes, variable.align), variable.bytes))
                .collect()
        };
        let parameters = place(&function.parameters);
        let results = place(&function.results);
        limit("local memory", self.local.bytes, LOCAL_LIMIT, function.line)?;
        let signature = Signature { parameters, results };
        self.signatures.insert(function.name.clone(), signature.clone());
        Ok(signature)
    }

    pub(crate) fn open(&mut self) {
        self.scopes.push(HashMap::new());
    }

    pub(crate) fn close(&mut self) {
        self.scopes.pop();
    }

    pub(crate) fn registers(
        &mut self,
        ty: Type,
        names: &[(String, Option<u32>)],
        line: u32,
    ) -> Result<(), PtxError> {
        for (name, count) in names {
            match count {
                None => self.register(ty, name.clone(), line)?,
                Some(count) => {
                    let rows = self.template.len() as u64 + u64::from(*count) * 2;
                    limit("the number of registers", rows, ROW_LIMIT, line)?;
                    for index in 0..*count {
                        self.register(ty, format!("{name}{index}"), line)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn register(&mut self, ty: Type, name: String, line: u32) -> Result<(), PtxError> {
        let width = match (ty, ty.bytes()) {
            (Type::Pred, _) => {
                self.predicates += 1;
                let symbol = Symbol::Predicate(self.predicates - 1);
                return self.declare(&name, symbol, line);
            }
            (_, 1 | 2) => Width::Half,
            (_, 4) => Width::Word,
            (_, 8) => Width::Double,
            _ => return Err(PtxProblem::Type("b128".to_owned()).at(line)),
        };
        self.declared += if width == Width::Double { 2 } else { 1 };
        let stale = if width == Width::Half { STALE & 0xffff } else { STALE };
        let row = self.rows(width == Width::Double, stale, stale);
        self.declare(&name, Symbol::Register(Register { row, width }), line)
    }

    /// New rows that hold `low`, and for wide values `high` above it, in every lane.
    fn rows(&mut self, wide: bool, low: u32, high: u32) -> u32 {
        let row = self.template.len() as u32;
        self.widths.push(if wide { 2 } else { 1 });
        if wide {
            let value = u64::from(high) << 32 | u64::from(low);
            let rows: [Row; 2] = bytemuck::cast([value; LANES]);
            self.template.extend(rows);
        } else {
            self.template.push(Row([low; LANES]));
        }
        row
    }

    /// A predicate that the text doesn't name.
    pub(crate) fn predicate(&mut self) -> u32 {
        self.predicates += 1;
        self.predicates - 1
    }

    /// A register of 64 bits that the text doesn't name.
    pub(crate) fn wide_register(&mut self) -> u32 {
        self.rows(true, STALE, STALE)
    }

    /// The predicate that holds the carry of integer arithmetic.
    pub(crate) fn carry(&mut self) -> u32 {
        if let Some(carry) = self.carry {
            return carry;
        }
        let carry = self.predicate();
        self.carry = Some(carry);
        carry
    }

    pub(crate) fn declare(
        &mut self,
        name: &str,
        symbol: Symbol,
        line: u32,
    ) -> Result<(), PtxError> {
        let scope = self.scopes.last_mut().ok_or_else(|| {
            PtxProblem::Expected { expected: "a scope", found: name.to_owned() }.at(line)
        })?;
        match scope.insert(name.to_owned(), symbol) {
            None => Ok(()),
            Some(_) => Err(PtxProblem::Twice(name.to_owned()).at(line)),
        }
    }

    /// A variable declared inside of a function.
    pub(crate) fn variable(&mut self, variable: &Variable, line: u32) -> Result<(), PtxError> {
        let (at, space) = match variable.space {
            Space::Shared => {
                (self.shared.place(&variable.name, variable.bytes, variable.align), Space::Shared)
            }
            // Arguments and results of calls.
            Space::Local | Space::Param => {
                (self.local.place(variable.bytes, variable.align), Space::Local)
            }
            _ => return Err(PtxProblem::Directive(variable.name.clone()).at(line)),
        };
        limit("shared memory", self.shared.layout.bytes, 1 << 20, line)?;
        limit("local memory", self.local.bytes, LOCAL_LIMIT, line)?;
        self.declare(&variable.name, Symbol::Address(at, space), line)
    }

    /// A row that holds a constant.
    pub(crate) fn constant(&mut self, bits: u64, wide: bool) -> u32 {
        let bits = if wide { bits } else { bits & 0xffff_ffff };
        if let Some(row) = self.constants.get(&(bits, wide)) {
            return *row;
        }
        let row = self.rows(wide, bits as u32, (bits >> 32) as u32);
        self.constants.insert((bits, wide), row);
        row
    }

    /// The address of an `extern __shared__` array, as a constant that is set at the end.
    pub(crate) fn dynamic_shared(&mut self, wide: bool, offset: i64) -> u32 {
        let row = self.rows(wide, 0, 0);
        self.dynamic.push((row, wide, offset));
        row
    }

    /// Whether `name` is an array whose size the launch gives.
    pub(crate) fn is_dynamic(&self, name: &str) -> bool {
        self.find(name).is_none()
            && self.module.variables.iter().any(|variable| {
                variable.name == name && variable.space == Space::Shared && variable.bytes == 0
            })
    }

    /// Whether the text declares the name.
    pub(crate) fn is_declared(&self, name: &str) -> bool {
        self.find(name).is_some()
    }

    fn find(&self, name: &str) -> Option<Symbol> {
        self.scopes.iter().rev().find_map(|scope| scope.get(name)).copied()
    }

    /// What `name` stands for.
    pub(crate) fn resolve(&mut self, name: &str) -> Option<Symbol> {
        if let Some(symbol) = self.find(name) {
            return Some(symbol);
        }
        if let Some(special) = Special::parse(name) {
            let row = match self.specials.get(&special) {
                Some(row) => *row,
                None => {
                    let row = self.rows(false, 0, 0);
                    self.specials.insert(special, row);
                    row
                }
            };
            return Some(Symbol::Register(Register { row, width: Width::Word }));
        }
        if let Some(at) = self.module_shared.get(name) {
            return Some(Symbol::Address(*at, Space::Shared));
        }
        if let Some(at) = self.module.functions.iter().position(|f| f.name == name && !f.is_kernel)
        {
            return Some(Symbol::Address(function_address(at), Space::Generic));
        }
        let variable = self.module.variables.iter().find(|variable| variable.name == name)?;
        if variable.space == Space::Shared {
            let at = self.shared.place(name, variable.bytes, variable.align);
            self.module_shared.insert(name.to_owned(), at);
            return Some(Symbol::Address(at, Space::Shared));
        }
        let at = self.variables.get(name)?;
        Some(Symbol::Address(*at, variable.space))
    }

    /// Sets the addresses of `extern __shared__` arrays, which begin after all other shared
    /// memory; gives the offset, with gaps and as a device has it.
    pub(crate) fn place_dynamic(&mut self) -> (u64, u64) {
        let align = self
            .module
            .variables
            .iter()
            .filter(|variable| variable.space == Space::Shared && variable.bytes == 0)
            .map(|variable| variable.align)
            .fold(16, u64::max);
        let at = self.shared.place("", 0, align);
        for (row, wide, offset) in &self.dynamic {
            let value = at.wrapping_add_signed(*offset);
            let row = *row as usize;
            if *wide {
                let rows: [Row; 2] = bytemuck::cast([value; LANES]);
                self.template[row..row + 2].copy_from_slice(&rows);
            } else {
                self.template[row] = Row([value as u32; LANES]);
            }
        }
        (at, self.shared.layout.bytes)
    }
}

fn limit(what: &'static str, value: u64, limit: u64, line: u32) -> Result<(), PtxError> {
    if value > limit {
        return Err(PtxProblem::TooLarge { what, value, limit }.at(line));
    }
    Ok(())
}
