//! Compiled executables on disk.
//!
//! A file's name is the hash of everything that the executable depends on: the module's text
//! (which holds program, shapes and options), the compile options, the plugin's version and the
//! devices' kind. Its content starts with a hash of the rest, since a plugin trusts what it is
//! given: a file that was cut short or damaged is compiled anew and replaced.
//!
//! Any number of processes may share a folder: a file appears under its name whole, and whoever
//! comes second replaces it by the same. Together the files take at most [`MOST_BYTES`]; those that
//! were not used for longest go first.

use std::{
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
    time::SystemTime,
};

use sha2::{Digest, Sha256};

use crate::{
    lower::Module,
    pjrt::{Client, CompileOptions, LoadedExecutable, PjrtError},
};

/// Marks a file, with the version of its layout.
const MAGIC: &[u8; 16] = b"understory-xla-1";
const HASH: usize = 32;
/// What a folder may hold: some thousands of executables.
const MOST_BYTES: u64 = 4 << 30;

/// Compiles modules, or loads them from disk.
#[derive(Debug)]
pub(crate) struct Compiler {
    client: Client,
    flags: Vec<(String, String)>,
    folder: Option<PathBuf>,
    /// What executables depend on beside the module and the options.
    platform: String,
}

impl Compiler {
    /// A compiler that sets `flags` and keeps executables in `folder`, if one is given.
    pub(crate) fn new(
        client: Client,
        flags: Vec<(String, String)>,
        folder: Option<PathBuf>,
    ) -> Self {
        let plugin = client.plugin();
        let device = client.devices().first().map(|device| device.description());
        let platform = format!(
            "{} {} {:?} {:?} {:?} {}",
            client.platform(),
            client.platform_version(),
            plugin.api_version(),
            plugin.attributes().ok(),
            device.map(|device| (&device.kind, &device.attributes)),
            host_features(),
        );
        Self { client, flags, folder, platform }
    }

    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    /// The module's executable from disk, if a usable one is there.
    pub(crate) fn find(&self, module: &Module) -> Option<LoadedExecutable> {
        let folder = self.folder.as_ref()?;
        let options = self.options(module);
        let path = folder.join(self.file_name(module, &options));
        match read(&path) {
            Ok(bytes) => match self.client.deserialize(&bytes, &options) {
                Ok(executable) => return Some(executable),
                Err(error) => tracing::warn!(path = %path.display(), %error, "unusable executable"),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => tracing::warn!(path = %path.display(), %error, "unreadable executable"),
        }
        None
    }

    /// Compiles the module, and keeps the executable on disk.
    pub(crate) fn compile(&self, module: &Module) -> Result<LoadedExecutable, PjrtError> {
        let options = self.options(module);
        let executable = self.client.compile(&module.text, &options)?;
        let Some(folder) = &self.folder else {
            return Ok(executable);
        };
        // A cache that can't be written costs time at the next start, and nothing else.
        match executable.executable().serialize() {
            Ok(bytes) => {
                let path = folder.join(self.file_name(module, &options));
                let kept = write(&path, &bytes).and_then(|()| keep_below(folder, MOST_BYTES));
                if let Err(error) = kept {
                    tracing::warn!(path = %path.display(), %error, "can't keep an executable");
                }
            }
            Err(error) => tracing::debug!(%error, "the plugin can't serialize executables"),
        }
        Ok(executable)
    }

    fn options(&self, module: &Module) -> CompileOptions {
        let options = CompileOptions::partitioned(module.partitions);
        self.flags.iter().fold(options, |options, (name, value)| options.with_override(name, value))
    }

    fn file_name(&self, module: &Module, options: &CompileOptions) -> String {
        let mut hasher = Sha256::new();
        for part in [module.text.as_bytes(), &options.to_proto(), self.platform.as_bytes()] {
            hasher.update((part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
        let digest = hasher.finalize();
        let digest: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{digest}.pjrt")
    }
}

/// What the host's processor can do: XLA's CPU plugin compiles for the one that it runs on.
fn host_features() -> String {
    let features = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let flags = features.lines().find(|line| line.starts_with("flags"));
    format!("{} {}", std::env::consts::ARCH, flags.unwrap_or_default())
}

/// Reads a file's payload, and notes that it was used.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = fs::read(path)?;
    let damaged = |what| io::Error::new(io::ErrorKind::InvalidData, what);
    let head = MAGIC.len() + HASH;
    let (start, payload) =
        bytes.split_at_checked(head).ok_or_else(|| damaged("shorter than its head"))?;
    let expected = start.strip_prefix(MAGIC).ok_or_else(|| damaged("of another layout"))?;
    if Sha256::digest(payload).as_slice() != expected {
        return Err(damaged("its hash is wrong"));
    }
    bytes.drain(..head);
    let noted = fs::File::options().append(true).open(path);
    if let Err(error) = noted.and_then(|file| file.set_modified(SystemTime::now())) {
        tracing::debug!(path = %path.display(), %error, "can't note that an executable was used");
    }
    Ok(bytes)
}

/// Writes the file under another name first, so that it is complete or absent.
fn write(path: &Path, payload: &[u8]) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.write_all(MAGIC)?;
    file.write_all(&Sha256::digest(payload))?;
    file.write_all(payload)?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    Ok(())
}

/// Removes files, the one that was not used for longest first, until the rest takes at most
/// `most` bytes.
fn keep_below(folder: &Path, most: u64) -> io::Result<()> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        // Another process may have removed it meanwhile.
        let Ok(metadata) = entry.metadata() else { continue };
        if metadata.is_file() {
            files.push((metadata.modified()?, metadata.len(), entry.path()));
        }
    }
    files.sort();
    let mut total: u64 = files.iter().map(|(_, len, _)| len).sum();
    for (_, len, path) in files {
        if total <= most {
            break;
        }
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => total -= len,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/down/file.pjrt");
        write(&path, b"payload").unwrap();
        assert_eq!(read(&path).unwrap(), b"payload");
    }

    #[test]
    fn damaged_files_are_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file.pjrt");
        write(&path, b"payload").unwrap();
        let good = fs::read(&path).unwrap();
        for length in 0..good.len() {
            fs::write(&path, &good[..length]).unwrap();
            assert_eq!(read(&path).unwrap_err().kind(), io::ErrorKind::InvalidData);
        }
        for index in 0..good.len() {
            let mut bad = good.clone();
            bad[index] ^= 1;
            fs::write(&path, &bad).unwrap();
            assert_eq!(read(&path).unwrap_err().kind(), io::ErrorKind::InvalidData);
        }
    }

    #[test]
    fn what_was_not_used_for_longest_goes_first() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        for (name, age) in [("old", 30), ("older", 40), ("young", 10)] {
            write(&path(name), &[0; 100]).unwrap();
            let file = fs::File::options().append(true).open(path(name)).unwrap();
            file.set_modified(SystemTime::now() - std::time::Duration::from_secs(age)).unwrap();
        }
        read(&path("older")).unwrap();
        keep_below(folder.path(), 450).unwrap();
        assert!(path("old").exists(), "all of it fits");
        keep_below(folder.path(), 300).unwrap();
        let exist = ["old", "older", "young"].map(|name| path(name).exists());
        assert_eq!(exist, [false, true, true]);
    }

    #[test]
    fn many_writers_leave_one_whole_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file.pjrt");
        let payload = vec![7; 1 << 16];
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..8 {
                        write(&path, &payload).unwrap();
                        assert_eq!(read(&path).unwrap(), payload);
                    }
                });
            }
        });
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing else is left");
    }
}
