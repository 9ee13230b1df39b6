//! Kernels compiled for a device, and kept: in memory for the next model, on disk for the next start.
//!
//! A kernel becomes machine code of the device at hand. Where NVRTC doesn't know the device, or the driver refuses the code,
//! it becomes PTX, which the driver compiles. A file on disk is named by the hash of everything that the code depends on
//! (source, options, target, NVRTC's version) and begins with the hash of the rest: one that was cut short is compiled anew.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::{fs, process};

use backend_api::BackendError;
use sha2::{Digest, Sha256};

use crate::nvrtc::{Nvrtc, Target};
use crate::{Kernel, Variant, source};

const HASH: usize = 32;

/// A compiled kernel.
#[derive(Clone, Debug)]
pub(crate) struct Code {
    /// PTX text without a zero at the end, or machine code.
    pub(crate) bytes: Arc<[u8]>,
    pub(crate) is_machine_code: bool,
}

/// Compiles kernels for one device.
#[derive(Debug)]
pub(crate) struct Compiler {
    nvrtc: Nvrtc,
    /// Compute capability, as in 90.
    capability: u32,
    machine_code: AtomicBool,
    folder: Option<PathBuf>,
    compiled: Mutex<HashMap<(Kernel, Variant), Code>>,
}

impl Compiler {
    /// A compiler that keeps files in `folder`, if one is given. Without `machine_code` all kernels become PTX.
    pub(crate) fn new(
        nvrtc: Nvrtc,
        capability: u32,
        machine_code: bool,
        folder: Option<PathBuf>,
    ) -> Self {
        let machine_code = AtomicBool::new(machine_code);
        Self { nvrtc, capability, machine_code, folder, compiled: Mutex::default() }
    }

    /// The code of a kernel, and what `load` makes of it. Machine code that `load` refuses is followed by PTX.
    ///
    /// # Errors
    ///
    /// The compiler's messages; what `load` says of PTX.
    pub(crate) fn load<T>(
        &self,
        kernel: Kernel,
        variant: &Variant,
        mut load: impl FnMut(&Code) -> Result<T, BackendError>,
    ) -> Result<T, BackendError> {
        let code = self.code(kernel, variant)?;
        match load(&code) {
            // What is short of memory is so in any form.
            Err(error) if code.is_machine_code && !matches!(error, BackendError::Memory { .. }) => {
                self.machine_code.store(false, Ordering::Relaxed);
                self.known().clear();
                load(&self.code(kernel, variant)?)
            }
            loaded => loaded,
        }
    }

    fn code(&self, kernel: Kernel, variant: &Variant) -> Result<Code, BackendError> {
        let key = (kernel, *variant);
        if let Some(code) = self.known().get(&key) {
            return Ok(code.clone());
        }
        let mut target =
            self.nvrtc.target(self.capability, self.machine_code.load(Ordering::Relaxed));
        if kernel == Kernel::PrefillHopper {
            // Its instructions are those of one chip.
            target.architecture.push('a');
        }
        let (source, options) = (source(kernel), variant.options());
        let path =
            self.folder.as_ref().map(|folder| folder.join(self.name(&source, &options, &target)));
        let bytes = match path.as_deref().and_then(read) {
            Some(bytes) => bytes,
            None => {
                let bytes = self.nvrtc.compile(&source, kernel.name(), &target, &options)?;
                if let Some(path) = &path {
                    keep(path, &bytes);
                }
                bytes
            }
        };
        let code = Code { bytes: bytes.into(), is_machine_code: target.is_machine_code };
        self.known().insert(key, code.clone());
        Ok(code)
    }

    fn known(&self) -> std::sync::MutexGuard<'_, HashMap<(Kernel, Variant), Code>> {
        self.compiled.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn name(&self, source: &str, options: &[String], target: &Target) -> String {
        let mut hasher = Sha256::new();
        let version = format!("{:?}", self.nvrtc.version());
        let parts = [source, target.architecture.as_str(), version.as_str()];
        for part in parts.into_iter().chain(options.iter().map(String::as_str)) {
            hasher.update((part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
        let digest: String = hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        let kind = if target.is_machine_code { "cubin" } else { "ptx" };
        format!("{digest}.{kind}")
    }
}

/// The contents of a file that is whole. No code is empty.
fn read(path: &Path) -> Option<Vec<u8>> {
    let bytes = fs::read(path).ok()?;
    let (hash, code) = bytes.split_at_checked(HASH)?;
    (!code.is_empty() && Sha256::digest(code).as_slice() == hash).then(|| code.to_vec())
}

/// Writes a file beside its place and renames it. One that can't be written costs time at the next start, and nothing else.
fn keep(path: &Path, code: &[u8]) {
    let written = || {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        let part = path.with_extension(format!("{}.part", process::id()));
        let done = fs::write(&part, [Sha256::digest(code).as_slice(), code].concat())
            .and_then(|()| fs::rename(&part, path));
        if done.is_err() {
            _ = fs::remove_file(&part);
        }
        done
    };
    _ = written();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_was_cut_short_is_not_read() {
        let folder = std::env::temp_dir().join(format!("understory-kernels-{}", process::id()));
        let path = folder.join("kernel.ptx");
        keep(&path, b"some code");
        assert_eq!(read(&path).as_deref(), Some(&b"some code"[..]));
        let bytes = fs::read(&path).expect("it was written");
        for length in [0, HASH - 1, HASH, bytes.len() - 1] {
            fs::write(&path, &bytes[..length]).expect("it can be written");
            // Nothing is what the hash of something is not.
            assert_eq!(read(&path), None, "{length}");
        }
        fs::remove_dir_all(&folder).expect("it is there");
    }
}
