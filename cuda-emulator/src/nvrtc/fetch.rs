//! NVRTC and the headers of the CUDA toolkit out of their PyPI packages.
//!
//! The cache directory is the one that the `understory` crate uses: `UNDERSTORY_CACHE`, or
//! `understory` in `XDG_CACHE_HOME`, or `~/.cache/understory`.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use sha2::{Digest, Sha256};

use super::NvrtcError;

/// The PyPI package with the library.
pub const PACKAGE: &str = "nvidia-cuda-nvrtc-cu12";
/// Its pinned version.
pub const VERSION: &str = "12.9.86";

/// A wheel for Linux on x86-64, and what is taken out of it.
struct Package {
    name: &'static str,
    version: &'static str,
    /// SHA-256 of the wheel.
    hash: &'static str,
    /// Where the files are in the wheel; their names go on from there.
    prefix: &'static str,
    /// Which files; all of them if none are named.
    only: &'static [&'static str],
    /// What must be there for the package to be complete.
    needs: &'static [&'static str],
}

const LIBRARY: Package = Package {
    name: PACKAGE,
    version: VERSION,
    hash: "210cf05005a447e29214e9ce50851e83fc5f4358df8b453155d5e1918094dcb4",
    prefix: "nvidia/cuda_nvrtc/lib/",
    only: &["libnvrtc.so.12", "libnvrtc-builtins.so.12.9"],
    needs: &["libnvrtc.so.12", "libnvrtc-builtins.so.12.9"],
};

/// `cuda_fp16.h`, `cuda_bf16.h` and the others; and what they include.
const HEADERS: [Package; 2] = [
    Package {
        name: "nvidia-cuda-runtime-cu12",
        version: "12.9.79",
        hash: "25bba2dfb01d48a9b59ca474a1ac43c6ebf7011f1b0b8cc44f54eb6ac48a96c3",
        prefix: "nvidia/cuda_runtime/",
        only: &[],
        needs: &["include"],
    },
    Package {
        name: "nvidia-cuda-nvcc-cu12",
        version: "12.9.86",
        hash: "5d6a0d32fdc7ea39917c20065614ae93add6f577d840233237ff08e9a38f58f0",
        prefix: "nvidia/cuda_nvcc/",
        only: &["include/crt/"],
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
        let wheel = download(&format!("{}=={}", self.name, self.version), scratch.path())?;
        let found = sha256(&wheel).map_err(|error| failed(&wheel, error))?;
        if found != self.hash {
            let reason = format!("its SHA-256 is {found} instead of {}", self.hash);
            return Err(NvrtcError::Package { path: wheel, reason });
        }
        let unpacked = scratch.path().join("unpacked");
        self.unpack(&wheel, &unpacked)?;
        // What is there is whole.
        for needed in self.needs {
            let from = unpacked.join(needed);
            fs::rename(&from, directory.join(needed)).map_err(|error| failed(&from, error))?;
        }
        Ok(())
    }

    fn unpack(&self, wheel: &Path, to: &Path) -> Result<(), NvrtcError> {
        let broken = |error: zip::result::ZipError| NvrtcError::Package {
            path: wheel.to_owned(),
            reason: error.to_string(),
        };
        let opened = File::open(wheel).map_err(|error| failed(wheel, error))?;
        let mut archive = zip::ZipArchive::new(opened).map_err(broken)?;
        for index in 0..archive.len() {
            let mut source = archive.by_index(index).map_err(broken)?;
            let Some(path) = source.enclosed_name().filter(|_| source.is_file()) else { continue };
            let Ok(path) = path.strip_prefix(self.prefix).map(Path::to_owned) else { continue };
            let wanted = |only: &&str| path.starts_with(only.trim_end_matches('/'));
            if !self.only.is_empty() && !self.only.iter().any(|only| wanted(&only)) {
                continue;
            }
            let target = to.join(&path);
            target
                .parent()
                .map_or(Ok(()), fs::create_dir_all)
                .and_then(|()| File::create(&target))
                .and_then(|mut file| {
                    io::copy(&mut source, &mut file)?;
                    file.sync_all()
                })
                .map_err(|error| failed(&target, error))?;
        }
        Ok(())
    }
}

fn download(package: &str, directory: &Path) -> Result<PathBuf, NvrtcError> {
    let fail = |reason: String| NvrtcError::Fetch { package: package.to_owned(), reason };
    let output = Command::new("python3")
        .args(["-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--quiet"])
        .args(["--no-input", "--disable-pip-version-check", "--dest"])
        .arg(directory)
        .args(["--", package])
        .stdin(Stdio::null())
        .output()
        .map_err(|error| fail(format!("python3: {error}")))?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        let end: Vec<&str> = text.trim().lines().rev().take(4).collect();
        let end: Vec<&str> = end.into_iter().rev().collect();
        return Err(fail(end.join("; ")));
    }
    fs::read_dir(directory)
        .map_err(|error| failed(directory, error))?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .find(|path| path.extension().is_some_and(|extension| extension == "whl"))
        .ok_or_else(|| fail("pip succeeded, but left no wheel".to_owned()))
}

fn sha256(path: &Path) -> io::Result<String> {
    let mut hash = Sha256::new();
    io::copy(&mut io::BufReader::with_capacity(1 << 20, File::open(path)?), &mut hash)?;
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

fn failed(path: &Path, error: io::Error) -> NvrtcError {
    NvrtcError::Package { path: path.to_owned(), reason: error.to_string() }
}
