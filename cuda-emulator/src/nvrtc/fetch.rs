//! NVRTC and the headers of the CUDA toolkit out of their PyPI packages.
//!
//! The cache directory is the one that the `understory` crate uses: `UNDERSTORY_CACHE`, or
//! `understory` in `XDG_CACHE_HOME`, or `~/.cache/understory`.

use std::ffi::OsStr;
use std::fs::{self, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::NvrtcError;

/// The PyPI package with the library.
pub const PACKAGE: &str = "nvidia-cuda-nvrtc-cu12";
/// Its pinned version.
pub const VERSION: &str = "12.9.86";

/// A wheel for Linux on x86-64, and what is taken out of it. `pip` fetches it and checks its hash.
struct Package {
    name: &'static str,
    version: &'static str,
    /// SHA-256 of the wheel.
    hash: &'static str,
    /// Where the files are in the wheel.
    prefix: &'static str,
    /// Files and folders that are taken.
    needs: &'static [&'static str],
}

const LIBRARY: Package = Package {
    name: PACKAGE,
    version: VERSION,
    hash: "210cf05005a447e29214e9ce50851e83fc5f4358df8b453155d5e1918094dcb4",
    prefix: "nvidia/cuda_nvrtc/lib/",
    needs: &["libnvrtc.so.12", "libnvrtc-builtins.so.12.9"],
};

/// `cuda_fp16.h`, `cuda_bf16.h` and the others; and what they include.
const HEADERS: [Package; 2] = [
    Package {
        name: "nvidia-cuda-runtime-cu12",
        version: "12.9.79",
        hash: "25bba2dfb01d48a9b59ca474a1ac43c6ebf7011f1b0b8cc44f54eb6ac48a96c3",
        prefix: "nvidia/cuda_runtime/",
        needs: &["include"],
    },
    Package {
        name: "nvidia-cuda-nvcc-cu12",
        version: "12.9.86",
        hash: "5d6a0d32fdc7ea39917c20065614ae93add6f577d840233237ff08e9a38f58f0",
        prefix: "nvidia/cuda_nvcc/",
        needs: &["include"],
    },
];

/// The directory where fetched files are kept; none if the environment names none.
pub fn cache_directory() -> Option<PathBuf> {
    let from = |variable: &str| std::env::var_os(variable).filter(|value| !value.is_empty());
    from("UNDERSTORY_CACHE")
        .map(PathBuf::from)
        .or_else(|| from("XDG_CACHE_HOME").map(|home| Path::new(&home).join("understory")))
        .or_else(|| from("HOME").map(|home| Path::new(&home).join(".cache/understory")))
}

/// The path of the library, which is fetched if it isn't there.
pub(super) fn library() -> Result<PathBuf, NvrtcError> {
    Ok(LIBRARY.directory()?.join(LIBRARY.needs[0]))
}

/// Directories with the headers of the CUDA toolkit, which are fetched if they aren't there.
///
/// # Errors
///
/// When there is no cache directory, or `pip` fails.
pub fn toolkit_headers() -> Result<Vec<PathBuf>, NvrtcError> {
    HEADERS.iter().map(|package| Ok(package.directory()?.join("include"))).collect()
}

impl Package {
    /// Where the files are, once they are there.
    fn directory(&self) -> Result<PathBuf, NvrtcError> {
        let root = cache_directory().ok_or(NvrtcError::NoCache)?;
        let directory = root.join(format!("pypi/{}-{}", self.name, self.version));
        let complete = || self.needs.iter().all(|file| directory.join(file).exists());
        if complete() {
            return Ok(directory);
        }
        fs::create_dir_all(&directory).map_err(|error| failed(&directory, error))?;
        // Of several processes one fetches; the others wait.
        let lock_path = directory.join("fetch.lock");
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&lock_path)
            .and_then(|lock| lock.lock().map(|()| lock))
            .map_err(|error| failed(&lock_path, error))?;
        if !complete() {
            self.fetch(&directory)?;
        }
        drop(lock);
        Ok(directory)
    }

    fn fetch(&self, directory: &Path) -> Result<(), NvrtcError> {
        let scratch = tempfile::Builder::new()
            .prefix("fetch-")
            .tempdir_in(directory)
            .map_err(|error| failed(directory, error))?;
        let wheel = self.download(scratch.path())?;
        let unpacked = scratch.path().join("unpacked");
        let arguments = ["-m".as_ref(), "zipfile".as_ref(), "-e".as_ref(), wheel.as_os_str()];
        self.python(&[&arguments[..], &[unpacked.as_os_str()]].concat())?;
        // What is there is whole.
        for needed in self.needs {
            let from = unpacked.join(self.prefix).join(needed);
            fs::rename(&from, directory.join(needed)).map_err(|error| failed(&from, error))?;
        }
        Ok(())
    }

    /// The wheel, whose hash pip checks.
    fn download(&self, directory: &Path) -> Result<PathBuf, NvrtcError> {
        let pinned = directory.join("requirements.txt");
        let line = format!("{}=={} --hash=sha256:{}\n", self.name, self.version, self.hash);
        fs::write(&pinned, line).map_err(|error| failed(&pinned, error))?;
        let options = [
            "-m",
            "pip",
            "download",
            "--require-hashes",
            "--no-deps",
            "--only-binary",
            ":all:",
            "--quiet",
            "--no-input",
            "--disable-pip-version-check",
            "--dest",
        ];
        let mut arguments: Vec<&OsStr> = options.iter().map(OsStr::new).collect();
        arguments.extend([directory.as_os_str(), OsStr::new("-r"), pinned.as_os_str()]);
        self.python(&arguments)?;
        fs::read_dir(directory)
            .map_err(|error| failed(directory, error))?
            .filter_map(|entry| entry.ok().map(|entry| entry.path()))
            .find(|path| path.extension().is_some_and(|extension| extension == "whl"))
            .ok_or_else(|| self.failed("pip succeeded, but left no wheel".to_owned()))
    }

    fn python(&self, arguments: &[&OsStr]) -> Result<(), NvrtcError> {
        let output = Command::new("python3")
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .map_err(|error| self.failed(format!("python3: {error}")))?;
        if output.status.success() {
            return Ok(());
        }
        let text = String::from_utf8_lossy(&output.stderr);
        let lines: Vec<&str> = text.trim().lines().collect();
        let end = lines.get(lines.len().saturating_sub(4)..).unwrap_or_default();
        Err(self.failed(end.join("; ")))
    }

    fn failed(&self, reason: String) -> NvrtcError {
        NvrtcError::Fetch { package: format!("{}=={}", self.name, self.version), reason }
    }
}

fn failed(path: &Path, error: io::Error) -> NvrtcError {
    NvrtcError::Package { path: path.to_owned(), reason: error.to_string() }
}
