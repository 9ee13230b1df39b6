//! What a program prints about a model file that it can't use says why: which file, which tensor,
//! key or field, what it is and what it should be. The files are the fixtures with one thing wrong.

use std::fs;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use serde_json::{Value, json};
use understory::one_line;
use understory::prelude::*;
use understory::weights::{Format, GgufWriter, Shape, Tensor, Value as Metadata};

/// Longest line about a file, in bytes. Names are cut, and so are the reasons of other crates.
const LONGEST_LINE: usize = 2_000;

/// What stands around a reason. A line that ends with one of these gives none.
const CONTEXTS: [&str; 8] = [
    "cannot use the weights of the model",
    "is not a usable GGUF file",
    "unusable GGUF metadata",
    "cannot read a tensor that belongs to the configuration",
    "not a JSON object",
    "is malformed",
    "config.json",
    ".gguf",
];

/// What is printed about a model, or `None` if it starts.
fn refusal(path: &Path) -> Option<String> {
    let options = EngineOptions::default().kv_memory(KvMemory::Tokens(1024)).context_length(64);
    let error = understory::load(path).backend("cpu:1").options(options).start().err()?;
    let line = one_line(&error);
    assert!(!line.contains('\n') && line.len() <= LONGEST_LINE, "{} bytes: {line}", line.len());
    let bare = CONTEXTS.iter().find(|context| line.ends_with(*context));
    assert!(bare.is_none(), "no reason: {line}");
    Some(line)
}

#[track_caller]
fn says(path: &Path, what: &str, reasons: &[&str]) {
    let line = refusal(path).unwrap_or_else(|| panic!("{what}: was not refused"));
    for reason in reasons {
        assert!(line.contains(reason), "{what}: `{reason}` is not in: {line}");
    }
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// The GGUF fixture, and a place for a changed one.
struct Gguf {
    bytes: Vec<u8>,
    folder: tempfile::TempDir,
}

impl Gguf {
    fn new() -> Self {
        let bytes = fs::read(fixture("tiny-gguf/llama-quantized.gguf")).unwrap();
        Self { bytes, folder: tempfile::tempdir().unwrap() }
    }

    /// Where a text stands that the format writes with its length before it.
    fn find(&self, text: &str) -> usize {
        let written = [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat();
        let found = self.bytes.windows(written.len()).position(|window| window == written);
        found.unwrap_or_else(|| panic!("{text} is not in the fixture")) + 8
    }

    fn changed(&self, at: usize, bytes: &[u8]) -> PathBuf {
        let mut changed = self.bytes.clone();
        changed[at..at + bytes.len()].copy_from_slice(bytes);
        self.write(&changed)
    }

    /// Gives a key or a tensor another name of the same length.
    fn renamed(&self, name: &str) -> PathBuf {
        self.changed(self.find(name) + name.len() - 1, b"#")
    }

    fn write(&self, bytes: &[u8]) -> PathBuf {
        let path = self.folder.path().join("model.gguf");
        fs::write(&path, bytes).unwrap();
        path
    }
}

#[test]
fn gguf_headers_that_are_wrong_are_explained() {
    let gguf = Gguf::new();
    assert_eq!(refusal(&gguf.write(&gguf.bytes)), None, "nothing is wrong with it");
    says(&gguf.changed(0, b"GGML"), "magic", &["model.gguf", "not a GGUF file", "47, 47, 4d, 4c"]);
    says(&gguf.changed(4, &[9]), "version", &["GGUF version 9 is not supported"]);
    let architecture = gguf.find("llama");
    says(&gguf.changed(architecture, b"lloma"), "architecture", &["architecture `lloma`"]);
    for key in [
        "llama.context_length",
        "llama.embedding_length",
        "llama.block_count",
        "llama.attention.head_count",
        "llama.attention.layer_norm_rms_epsilon",
        "tokenizer.ggml.model",
        "tokenizer.ggml.tokens",
    ] {
        says(&gguf.renamed(key), key, &["lacks", &format!("`{key}`")]);
    }
    for length in [0, 3, 30, 300, 3_000, 30_000, gguf.bytes.len() - 1] {
        says(&gguf.write(&gguf.bytes[..length]), "cut", &["model.gguf", "truncated"]);
    }
}

#[test]
fn gguf_values_that_make_no_sense_are_named_and_exact() {
    let gguf = Gguf::new();
    let after = |key: &str| gguf.find(key) + key.len();
    let as_float = gguf.changed(after("llama.block_count"), &6_u32.to_le_bytes());
    says(&as_float, "type", &["`llama.block_count`", "not a non-negative integer"]);
    for (key, field) in
        [("llama.feed_forward_length", "intermediate_size"), ("llama.block_count", "layers")]
    {
        let largest = gguf.changed(after(key) + 4, &u32::MAX.to_le_bytes());
        says(&largest, key, &["4294967295", field]);
        says(&gguf.changed(after(key) + 4, &[0; 4]), key, &[field, "0"]);
    }
    // The embedding has as many rows as there are tokens, whatever the key says.
    let vocabulary = gguf.changed(after("llama.vocab_size") + 4, &u32::MAX.to_le_bytes());
    assert_eq!(refusal(&vocabulary), None);
    let template = gguf.find("tokenizer.chat_template") + "tokenizer.chat_template".len() + 12;
    says(&gguf.changed(template, b"{% fur"), "template", &["chat template", "line 1", "fur"]);
}

#[test]
fn gguf_tensors_that_are_missing_or_malformed_are_named() {
    let gguf = Gguf::new();
    let name = "blk.1.attn_q.weight";
    // The name, the number of dimensions, two of them, the type and the offset.
    let dimensions = gguf.find(name) + name.len() + 4;
    let (kind, offset) = (dimensions + 16, dimensions + 20);
    says(&gguf.renamed(name), "name", &["model.layers.1.self_attn.q_proj.weight"]);
    says(&gguf.changed(kind, &[10]), "row", &[name, "64 elements", "Q2_K blocks"]);
    says(&gguf.changed(kind, &[16]), "type", &[name, "IQ2_XXS"]);
    says(&gguf.changed(offset, &[1]), "offset", &[name, "not a multiple of"]);
    says(&gguf.changed(offset + 5, &[1]), "offset", &[name, "truncated or malformed"]);
    says(&gguf.changed(dimensions, &[65]), "shape", &[name]);
    says(&gguf.changed(dimensions + 8, &[96]), "shape", &[name]);
    let empty = gguf.changed(dimensions, &[0]);
    says(&empty, "no elements", &[name, "shape [64, 0]"]);
}

#[test]
fn names_of_a_megabyte_are_cut() {
    let gguf = Gguf::new();
    let long = "x".repeat(1 << 20);
    let tensor = Tensor::from_f32(Format::F32, Shape::Vector(4), &[1.0; 4]).unwrap();
    let text = |text: &str| Metadata::String(text.into());
    let llama = || GgufWriter::new().metadata("general.architecture", text("llama"));
    let files = [
        ("architecture", GgufWriter::new().metadata("general.architecture", text(&long))),
        ("key", llama().metadata(&long, text("a")).metadata(&long, text("b"))),
        ("tensor", llama().tensor(&long, &tensor).tensor(&long, &tensor)),
    ];
    for (what, file) in files {
        says(&gguf.write(&file.finish()), what, &["xxx", "..."]);
    }
    let directory = Directory::new();
    directory.edit("config.json", |config| config["model_type"] = json!(long));
    directory.edit("config.json", |config| config["architectures"] = json!([long]));
    says(directory.path(), "architecture", &["xxx", "..."]);
    let directory = Directory::new();
    directory.edit("config.json", |config| config["hidden_size"] = json!(long));
    says(directory.path(), "field", &["hidden_size", "xxx", "..."]);
    let directory = Directory::new();
    fs::write(directory.file("config.json"), format!("\"{long}\"")).unwrap();
    says(directory.path(), "no object", &["config.json", "xxx", "..."]);
}

/// A copy of the fixture in the layout of Hugging Face.
struct Directory(tempfile::TempDir);

impl Directory {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        for entry in fs::read_dir(fixture("tiny/llama-tied")).unwrap() {
            let entry = entry.unwrap();
            fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
        }
        Self(folder)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn file(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    fn edit(&self, name: &str, change: impl FnOnce(&mut Value)) {
        let mut value = serde_json::from_slice(&fs::read(self.file(name)).unwrap()).unwrap();
        change(&mut value);
        fs::write(self.file(name), value.to_string()).unwrap();
    }

    /// Changes the header of the weights.
    fn edit_weights(&self, change: impl FnOnce(&mut Value)) {
        let path = self.file("model.safetensors");
        let bytes = fs::read(&path).unwrap();
        let (length, rest) = bytes.split_at(8);
        let length = u64::from_le_bytes(length.try_into().unwrap()) as usize;
        let (header, data) = rest.split_at(length);
        let mut header = serde_json::from_slice(header).unwrap();
        change(&mut header);
        let header = header.to_string();
        let length = (header.len() as u64).to_le_bytes();
        fs::write(path, [&length, header.as_bytes(), data].concat()).unwrap();
    }
}

#[test]
fn configurations_that_make_no_sense_name_their_field() {
    assert_eq!(refusal(Directory::new().path()), None, "nothing is wrong with it");
    for field in [
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "max_position_embeddings",
    ] {
        let directory = Directory::new();
        directory.edit("config.json", |config| drop(config.as_object_mut().unwrap().remove(field)));
        says(directory.path(), field, &["config.json", &format!("`{field}` is missing")]);
        let directory = Directory::new();
        directory.edit("config.json", |config| config[field] = json!("many"));
        says(directory.path(), field, &["config.json", field, "\"many\"", "not a"]);
        let directory = Directory::new();
        directory.edit("config.json", |config| config[field] = json!(u32::MAX));
        says(directory.path(), field, &["4294967295"]);
    }
    let directory = Directory::new();
    directory.edit("config.json", |config| config["architectures"] = json!(["LlomaForCausalLM"]));
    says(directory.path(), "architecture", &["config.json", "Lloma", "supported: "]);
    for (text, reason) in
        [("{", "line 1"), ("[]", "sequence"), ("", "EOF"), ("\u{1b}[2J", "line 1")]
    {
        let directory = Directory::new();
        fs::write(directory.file("config.json"), text).unwrap();
        says(directory.path(), text, &["config.json", "not a JSON object: ", reason]);
    }
    let directory = Directory::new();
    fs::remove_file(directory.file("config.json")).unwrap();
    says(directory.path(), "absent", &["config.json", "No such file"]);
}

#[test]
fn safetensors_that_are_wrong_are_explained() {
    const NAME: &str = "model.layers.1.mlp.down_proj.weight";
    let changed = |change: fn(&mut Value)| {
        let directory = Directory::new();
        directory.edit_weights(change);
        directory
    };
    let missing = changed(|header| drop(header.as_object_mut().unwrap().remove(NAME)));
    says(missing.path(), "missing", &["model.safetensors"]);
    let renamed = changed(|header| {
        let tensor = header.as_object_mut().unwrap().remove(NAME).unwrap();
        header["another"] = tensor;
    });
    says(renamed.path(), "renamed", &["no tensor", NAME]);
    let wider = changed(|header| header[NAME]["dtype"] = json!("F64"));
    says(wider.path(), "dtype", &["model.safetensors"]);
    let turned = changed(|header| {
        let shape = header[NAME]["shape"].as_array_mut().unwrap();
        let (rows, columns) = (shape[0].as_u64().unwrap(), shape[1].as_u64().unwrap());
        *shape = vec![json!(rows * 2), json!(columns / 2)];
    });
    says(turned.path(), "shape", &[NAME, "shape"]);
    let empty = changed(|header| {
        let tensor = header[NAME].take();
        let start = tensor["data_offsets"][0].clone();
        header[NAME] =
            json!({"dtype": "F32", "shape": [0, 1_u64 << 40], "data_offsets": [start, start]});
        header["another"] = tensor;
    });
    says(empty.path(), "no elements", &[NAME, "shape [0, 1099511627776]"]);

    let cut = Directory::new();
    let bytes = fs::read(cut.file("model.safetensors")).unwrap();
    for (length, reason) in
        [(0, "truncated"), (4, "truncated"), (20, "truncated"), (9_000, "holds")]
    {
        fs::write(cut.file("model.safetensors"), &bytes[..length]).unwrap();
        says(cut.path(), "cut", &["model.safetensors", reason]);
    }
    let garbage = [&8_u64.to_le_bytes()[..], b"{\"a\": 1}"].concat();
    fs::write(cut.file("model.safetensors"), garbage).unwrap();
    says(cut.path(), "garbage", &["model.safetensors", "malformed: ", "invalid type"]);
    fs::remove_file(cut.file("model.safetensors")).unwrap();
    says(cut.path(), "absent", &["neither model.safetensors nor"]);
    for (shard, reason) in [("../x.safetensors", "../x.safetensors"), ("x.safetensors", "No such")]
    {
        let index = json!({"weight_map": {NAME: shard}});
        fs::write(cut.file("model.safetensors.index.json"), index.to_string()).unwrap();
        says(cut.path(), shard, &[reason]);
    }
}

#[test]
fn tokenizers_that_are_wrong_are_explained() {
    for (name, text, reason) in [
        ("tokenizer.json", "{", "tokenizer"),
        ("tokenizer.json", "{\"model\": {\"type\": \"Abacus\"}}", "tokenizer"),
        ("tokenizer_config.json", "[1]", "tokenizer_config.json"),
    ] {
        let directory = Directory::new();
        fs::write(directory.file(name), text).unwrap();
        says(directory.path(), name, &[reason]);
    }
    let directory = Directory::new();
    directory.edit("tokenizer_config.json", |config| config["chat_template"] = json!("{% if %}"));
    says(directory.path(), "template", &["chat template", "line 1"]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever is wrong, there is a reason: `refusal` looks for one.
    #[test]
    fn files_with_changed_bytes_are_refused_with_a_reason_or_start(
        flips in prop::collection::vec((0usize..12_000, any::<u8>()), 1..4),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let gguf = Gguf::new();
        let mut bytes = gguf.bytes.clone();
        for (at, byte) in flips {
            bytes[at] = byte;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        refusal(&gguf.write(&bytes));
    }
}
