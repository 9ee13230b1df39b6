//! NVRTC out of its PyPI package.
//!
//! The cache directory is the one that the `understory` crate uses: `UNDERSTORY_CACHE`, or
//! `understory` in `XDG_CACHE_HOME`, or `~/.cache/understory`.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use sha2::{Digest, Sha256};

use super::NvrtcError;

/// The PyPI package.
pub const PACKAGE: &str = "nvidia-cuda-nvrtc-cu12";
/// Its pinned version.
pub const VERSION: &str = "12.9.86";
/// SHA-256 of the wheel for Linux on x86-64.
const HASH: &str = "210cf05005a447e29214e9ce50851e83fc5f4358df8b453155d5e1918094dcb4";
/// The files of the wheel that are needed; the first is the library.
const FILES: [&str; 2] = ["libnvrtc.so.12", "libnvrtc-builtins.so.12.9"];
/// Where they are in the wheel.
const WHERE: &str = "nvidia/cuda_nvrtc/lib/";

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
    let root = cache_directory().ok_or(NvrtcError::NoCache)?;
    let directory = root.join(format!("pypi/{PACKAGE}-{VERSION}"));
    let library = directory.join(FILES[0]);
    let complete = || FILES.iter().all(|file| directory.join(file).is_file());
    if complete() {
        return Ok(library);
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
        fetch(&directory)?;
    }
    drop(lock);
    Ok(library)
}

fn fetch(directory: &Path) -> Result<(), NvrtcError> {
    let scratch = tempfile::Builder::new()
        .prefix("fetch-")
        .tempdir_in(directory)
        .map_err(|error| failed(directory, error))?;
    let wheel = download(scratch.path())?;
    let found = sha256(&wheel).map_err(|error| failed(&wheel, error))?;
    if found != HASH {
        let reason = format!("its SHA-256 is {found} instead of {HASH}");
        return Err(NvrtcError::Package { path: wheel, reason });
    }
    let broken = |error: zip::result::ZipError| NvrtcError::Package {
        path: wheel.clone(),
        reason: error.to_string(),
    };
    let opened = File::open(&wheel).map_err(|error| failed(&wheel, error))?;
    let mut archive = zip::ZipArchive::new(opened).map_err(broken)?;
    for file in FILES {
        let part = scratch.path().join(file);
        let mut source = archive.by_name(&format!("{WHERE}{file}")).map_err(broken)?;
        let mut target = File::create(&part).map_err(|error| failed(&part, error))?;
        io::copy(&mut source, &mut target)
            .and_then(|_| target.sync_all())
            .map_err(|error| failed(&part, error))?;
        // A file that is there is whole.
        fs::rename(&part, directory.join(file)).map_err(|error| failed(&part, error))?;
    }
    Ok(())
}

fn download(directory: &Path) -> Result<PathBuf, NvrtcError> {
    let package = format!("{PACKAGE}=={VERSION}");
    let fail = |reason: String| NvrtcError::Fetch { package: package.clone(), reason };
    let output = Command::new("python3")
        .args(["-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--quiet"])
        .args(["--no-input", "--disable-pip-version-check", "--dest"])
        .arg(directory)
        .args(["--", &package])
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
