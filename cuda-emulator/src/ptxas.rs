//! What ptxas, NVIDIA's assembler, makes of PTX: registers, spills, shared memory and machine code.
//! It needs no GPU and no driver.
//!
//! [`Ptxas::find`] takes the program that `CUDA_EMULATOR_PTXAS` names, or the pinned one of the PyPI
//! package, which is fetched once into the cache directory.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::Serialize;

use crate::packages::{self, PackageError};

/// What could not be found out.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PtxasError {
    /// The program's package isn't there.
    #[error("{0}; or set CUDA_EMULATOR_PTXAS to the path of ptxas")]
    Package(#[from] PackageError),
    /// The program can't be run.
    #[error("{}: {reason}", .program.display())]
    Run {
        /// The program.
        program: PathBuf,
        /// Why not.
        reason: std::io::Error,
    },
    /// The PTX is refused.
    #[error("{program} refuses the PTX for {architecture}:\n{log}")]
    Refused {
        /// The program's name.
        program: &'static str,
        /// The architecture.
        architecture: String,
        /// What it says.
        log: String,
    },
}

/// What a kernel takes of a multiprocessor.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Resources {
    /// Registers of a thread.
    pub registers: u32,
    /// Bytes of static shared memory of a block.
    pub shared: u32,
    /// Bytes of a thread's stack.
    pub stack: u32,
    /// Bytes stored to local memory for want of registers.
    pub spill_stores: u32,
    /// Bytes loaded back.
    pub spill_loads: u32,
}

/// The assembler.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ptxas {
    program: PathBuf,
}

impl Ptxas {
    /// The program that `CUDA_EMULATOR_PTXAS` names, or else the pinned one, fetched if it isn't in
    /// the cache.
    ///
    /// # Errors
    ///
    /// When there is no cache directory, or `pip` fails.
    pub fn find() -> Result<Self, PtxasError> {
        match named() {
            Some(program) => Ok(Self { program }),
            None => Ok(Self { program: packages::ptxas()? }),
        }
    }

    /// As [`Self::find`], but nothing is fetched.
    pub fn find_fetched() -> Option<Self> {
        named().or_else(packages::fetched_ptxas).map(|program| Self { program })
    }

    /// What the kernels of a module take on an architecture such as `sm_80`.
    ///
    /// # Errors
    ///
    /// PTX that ptxas refuses for the architecture.
    pub fn resources(
        &self,
        ptx: &str,
        architecture: &str,
    ) -> Result<BTreeMap<String, Resources>, PtxasError> {
        self.assemble(ptx, architecture, Path::new("/dev/null")).map(|log| parse(&log))
    }

    /// The machine code of a module, as drivers load it.
    ///
    /// # Errors
    ///
    /// PTX that ptxas refuses for the architecture.
    pub fn binary(&self, ptx: &str, architecture: &str) -> Result<Vec<u8>, PtxasError> {
        let folder = tempfile::tempdir().map_err(|reason| self.failed(reason))?;
        let file = folder.path().join("module.cubin");
        self.assemble(ptx, architecture, &file)?;
        std::fs::read(&file).map_err(|reason| self.failed(reason))
    }

    /// The machine code of a module's kernels as text, one instruction a line.
    ///
    /// # Errors
    ///
    /// PTX that ptxas refuses for the architecture, or nvdisasm missing: `CUDA_EMULATOR_NVDISASM`
    /// names one, or its package is fetched.
    pub fn machine_code(&self, ptx: &str, architecture: &str) -> Result<String, PtxasError> {
        let folder = tempfile::tempdir().map_err(|reason| self.failed(reason))?;
        let binary = folder.path().join("module.cubin");
        self.assemble(ptx, architecture, &binary)?;
        let named = std::env::var_os("CUDA_EMULATOR_NVDISASM").filter(|path| !path.is_empty());
        let program = named.map_or_else(packages::nvdisasm, |path| Ok(path.into()))?;
        let output = run(&program, &[OsStr::new("--print-code"), binary.as_os_str()])?;
        if !output.0 {
            let (program, architecture) = ("nvdisasm", architecture.to_owned());
            return Err(PtxasError::Refused { program, architecture, log: output.2 });
        }
        Ok(output.1)
    }

    /// Assembles a module, and gives what is said about its kernels.
    fn assemble(&self, ptx: &str, architecture: &str, to: &Path) -> Result<String, PtxasError> {
        let folder = tempfile::tempdir().map_err(|reason| self.failed(reason))?;
        let file = folder.path().join("module.ptx");
        std::fs::write(&file, ptx).map_err(|reason| self.failed(reason))?;
        let arguments = [
            OsStr::new("-v"),
            OsStr::new("--gpu-name"),
            OsStr::new(architecture),
            OsStr::new("--output-file"),
            to.as_os_str(),
            file.as_os_str(),
        ];
        let (succeeded, output, log) = run(&self.program, &arguments)?;
        if succeeded {
            return Ok(log);
        }
        let (program, architecture) = ("ptxas", architecture.to_owned());
        Err(PtxasError::Refused { program, architecture, log: output + &log })
    }

    fn failed(&self, reason: std::io::Error) -> PtxasError {
        PtxasError::Run { program: self.program.clone(), reason }
    }
}

fn named() -> Option<PathBuf> {
    std::env::var_os("CUDA_EMULATOR_PTXAS").filter(|path| !path.is_empty()).map(PathBuf::from)
}

/// Runs a program: whether it succeeded, and what it wrote.
fn run(program: &Path, arguments: &[&OsStr]) -> Result<(bool, String, String), PtxasError> {
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .map_err(|reason| PtxasError::Run { program: program.to_owned(), reason })?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok((output.status.success(), text(&output.stdout), text(&output.stderr)))
}

/// Instructions of machine code by name, without modifiers: `HMMA`, `LDSM`, `LDGSTS`.
pub fn instructions(machine_code: &str) -> BTreeMap<String, u64> {
    let mut counts = BTreeMap::new();
    for line in machine_code.lines() {
        // `/*0010*/ @!P0 LDG.E R4, [R2] ;`
        let Some((_, rest)) = line.split_once("*/") else { continue };
        let rest = rest.trim_start();
        let words = rest.split_whitespace();
        let name = words.into_iter().find(|word| !word.starts_with('@'));
        let Some(name) = name.and_then(|name| name.split(['.', ';']).next()) else { continue };
        if line.trim_start().starts_with("/*") && name.starts_with(|c: char| c.is_ascii_uppercase())
        {
            *counts.entry(name.to_owned()).or_default() += 1;
        }
    }
    counts
}

/// Reads lines such as `Compiling entry function 'k' for 'sm_80'`, `8 bytes stack frame, 4 bytes
/// spill stores, 4 bytes spill loads` and `Used 16 registers, 128 bytes smem, ...`.
fn parse(log: &str) -> BTreeMap<String, Resources> {
    let mut all = BTreeMap::new();
    let mut kernel = None;
    let mut found = Resources::default();
    for line in log.lines() {
        if let Some(rest) = line.split("Compiling entry function '").nth(1) {
            kernel = rest.split('\'').next().map(str::to_owned);
            found = Resources::default();
        } else if line.contains(" bytes stack frame") {
            found.stack = before(line, " bytes stack frame");
            found.spill_stores = before(line, " bytes spill stores");
            found.spill_loads = before(line, " bytes spill loads");
        } else if line.contains("Used ") {
            found.registers = before(line, " registers");
            found.shared = before(line, " bytes smem");
            if let Some(kernel) = kernel.take() {
                all.insert(kernel, found);
            }
        }
    }
    all
}

/// The number before a phrase; 0 if the phrase isn't there.
fn before(line: &str, phrase: &str) -> u32 {
    line.split_once(phrase)
        .and_then(|(before, _)| before.rsplit(' ').next())
        .and_then(|number| number.parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_spills_and_shared_memory_are_found_for_each_kernel() {
        let log = "ptxas info    : Compiling entry function 'a' for 'sm_80'\n\
                   ptxas info    : Function properties for a\n\
                   \x20   8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads\n\
                   ptxas info    : Used 56 registers, used 1 barriers, 8 bytes cumulative stack \
                   size, 128 bytes smem, 380 bytes cmem[0]\n\
                   ptxas info    : Compiling entry function 'b' for 'sm_80'\n\
                   \x20   0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\n\
                   ptxas info    : Used 16 registers, used 0 barriers\n";
        let all = parse(log);
        let a =
            Resources { registers: 56, shared: 128, stack: 8, spill_stores: 4, spill_loads: 12 };
        assert_eq!(all["a"], a);
        assert_eq!(all["b"], Resources { registers: 16, ..Resources::default() });
    }

    #[test]
    fn instructions_are_counted_by_name() {
        let code = ".text.k:\n\
                    \t/*0000*/                   LDC R1, c[0x0][0x28] ;\n\
                    \t/*0010*/              @!P0 HMMA.16816.F32.BF16 R4, R8, R12, R4 ;\n\
                    \t/*0020*/                   HMMA.16816.F32.BF16 R4, R8, R14, R4 ;\n\
                    \t.align 4 /* no code */\n";
        let counts = instructions(code);
        assert_eq!(counts["HMMA"], 2);
        assert_eq!(counts["LDC"], 1);
        assert_eq!(counts.len(), 2);
    }
}
