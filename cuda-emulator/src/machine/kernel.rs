//! A compiled kernel, and the module that it comes from.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::check::Site;
use crate::ptx::{Module, PtxError, PtxProblem, Space};

use super::action::{Origin, Step};
use super::compile;
use super::memory::{Memory, MemoryError};
use super::names::{Special, function_address};
use super::registers::Row;

/// A module whose variables have their places in device memory.
#[derive(Debug)]
pub struct Program {
    module: Module,
    variables: HashMap<String, u64>,
}

/// Why a module could not be loaded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// The PTX text is wrong, or uses what the machine doesn't have.
    #[error(transparent)]
    Ptx(#[from] PtxError),
    /// The module's variables don't fit.
    #[error("no memory for the variable {name:?}: {error}")]
    Memory {
        /// The variable.
        name: String,
        /// What the memory says.
        error: MemoryError,
    },
    /// There is no such kernel.
    #[error("no kernel {name:?}; there are: {}", .known.join(", "))]
    NoKernel {
        /// The name asked for.
        name: String,
        /// The module's kernels.
        known: Vec<String>,
    },
}

impl Program {
    /// Parses PTX and gives the module's variables their places in `memory`.
    ///
    /// # Errors
    ///
    /// PTX that can't be read, or a lack of memory; `memory` keeps what was allocated.
    pub fn load(text: &str, memory: &mut Memory) -> Result<Self, LoadError> {
        Self::from_module(Module::parse(text)?, memory)
    }

    /// Gives the variables of a parsed module their places in `memory`.
    ///
    /// # Errors
    ///
    /// A lack of memory, or an initializer that names an unknown variable.
    pub fn from_module(module: Module, memory: &mut Memory) -> Result<Self, LoadError> {
        let mut variables = HashMap::new();
        let failed = |name: &str| {
            let name = name.to_owned();
            move |error| LoadError::Memory { name, error }
        };
        let stored = |space| matches!(space, Space::Global | Space::Const);
        for variable in module.variables.iter().filter(|variable| stored(variable.space)) {
            let address = memory
                .allocate_as(variable.bytes, variable.space == Space::Const)
                .map_err(failed(&variable.name))?;
            variables.insert(variable.name.clone(), address);
        }
        for variable in module.variables.iter().filter(|variable| stored(variable.space)) {
            let mut bytes = variable.initial.clone();
            bytes.resize(usize::try_from(variable.bytes).unwrap_or(0), 0);
            for (offset, name, addend) in &variable.addresses {
                let unknown = || PtxProblem::Unknown(name.clone()).at(0);
                let function = || {
                    let at = module.functions.iter().position(|function| function.name == *name)?;
                    Some(function_address(at))
                };
                let address = variables.get(name).copied().or_else(function);
                let address = address.ok_or_else(unknown)?.wrapping_add_signed(*addend);
                let at = usize::try_from(*offset).unwrap_or(usize::MAX);
                if let Some(place) = bytes.get_mut(at..at.saturating_add(8)) {
                    place.copy_from_slice(&address.to_le_bytes());
                }
            }
            if let Some(address) = variables.get(&variable.name) {
                memory.write(*address, &bytes).map_err(failed(&variable.name))?;
            }
        }
        Ok(Self { module, variables })
    }

    /// The parsed module.
    pub fn module(&self) -> &Module {
        &self.module
    }

    /// The names of the kernels, in the order of the text.
    pub fn kernel_names(&self) -> impl Iterator<Item = &str> {
        self.module.kernels().map(|kernel| kernel.name.as_str())
    }

    /// Address and size of a variable outside of functions.
    pub fn variable(&self, name: &str) -> Option<(u64, u64)> {
        let address = *self.variables.get(name)?;
        let variable = self.module.variables.iter().find(|variable| variable.name == name)?;
        Some((address, variable.bytes))
    }

    /// Addresses of all variables, to free them when the module goes.
    pub fn variables(&self) -> impl Iterator<Item = u64> + '_ {
        self.variables.values().copied()
    }

    /// Compiles a kernel.
    ///
    /// # Errors
    ///
    /// When there is none of that name, or when it uses an instruction that the machine doesn't
    /// have.
    pub fn kernel(&self, name: &str) -> Result<Arc<Kernel>, LoadError> {
        let Some(function) = self.module.kernels().find(|kernel| kernel.name == name) else {
            let known = self.kernel_names().map(str::to_owned).collect();
            return Err(LoadError::NoKernel { name: name.to_owned(), known });
        };
        Ok(Arc::new(compile::compile(&self.module, &self.variables, function)?))
    }
}

/// A kernel, decoded: each instruction is a closure with its operands resolved.
#[derive(Debug)]
pub struct Kernel {
    pub(crate) name: String,
    pub(crate) steps: Vec<Step>,
    pub(crate) origins: Vec<Origin>,
    pub(crate) files: BTreeMap<u32, String>,
    /// What the registers of a warp hold at first.
    pub(crate) template: Vec<Row>,
    pub(crate) predicates: u32,
    pub(crate) specials: Vec<(Special, u32)>,
    pub(crate) parameters: Vec<Parameter>,
    pub(crate) parameter_bytes: usize,
    /// Bytes of shared memory, the dynamic part left out.
    pub(crate) static_shared: usize,
    /// Where dynamic shared memory begins, behind variables and the gaps between them.
    pub(crate) dynamic_base: usize,
    /// Bytes that belong to no variable of shared memory, and the variable before each.
    pub(crate) gaps: Vec<std::ops::Range<usize>>,
    pub(crate) gap_owners: Vec<String>,
    /// Rows of registers that `wgmma` uses.
    pub(crate) watched: Vec<u32>,
    /// Blocks of a cluster, if the kernel says.
    pub(crate) cluster: Option<[u32; 3]>,
    pub(crate) local_bytes: usize,
    pub(crate) max_threads: Option<u32>,
    pub(crate) registers: u32,
}

/// A parameter of a kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parameter {
    /// Its name in the PTX text.
    pub name: String,
    /// Where it begins in the parameter block.
    pub offset: usize,
    /// Its size.
    pub bytes: usize,
}

impl Kernel {
    /// Its name as PTX has it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its parameters in order.
    pub fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    /// Size of all parameters.
    pub fn parameter_bytes(&self) -> usize {
        self.parameter_bytes
    }

    /// Shared memory that it declares, without what a launch adds.
    pub fn static_shared_bytes(&self) -> usize {
        self.static_shared
    }

    /// Local memory of a thread.
    pub fn local_bytes(&self) -> usize {
        self.local_bytes
    }

    /// The most threads of a block, from `__launch_bounds__`.
    pub fn max_threads(&self) -> Option<u32> {
        self.max_threads
    }

    /// Virtual registers of 32 bits that the text declares. The hardware's number comes from
    /// ptxas.
    pub fn virtual_registers(&self) -> u32 {
        self.registers
    }

    /// Number of instructions.
    pub fn instructions(&self) -> usize {
        self.steps.len()
    }

    /// Blocks of a cluster, from `__cluster_dims__`.
    pub fn cluster(&self) -> Option<[u32; 3]> {
        self.cluster
    }

    /// What lies at an offset into shared memory that belongs to no variable.
    pub(crate) fn gap_name(&self, offset: u64) -> String {
        let offset = offset as usize;
        // An access may begin in the variable and reach into the gap.
        let found = self.gaps.iter().position(|gap| offset < gap.end);
        let (gap, name) = match found.and_then(|at| self.gaps.get(at).zip(self.gap_owners.get(at)))
        {
            Some(found) => found,
            None => return "outside of all variables".to_owned(),
        };
        match offset.checked_sub(gap.start) {
            Some(beyond) => format!("{beyond} bytes beyond the shared variable {name}"),
            None => format!("across the end of the shared variable {name}"),
        }
    }

    pub(crate) fn site(&self, at: u32) -> Site {
        let origin = self.origins.get(at as usize);
        let source = origin.and_then(|origin| origin.source);
        Site {
            file: source.and_then(|source| self.files.get(&source.file).cloned()),
            line: source.map(|source| source.line),
            ptx_line: origin.map_or(0, |origin| origin.line),
            instruction: origin.map_or_else(String::new, |origin| origin.name.to_string()),
        }
    }
}
