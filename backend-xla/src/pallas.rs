//! The ragged paged attention kernel for TPUs, written in Pallas by JAX's authors.
//!
//! It reads queries row behind row and each row's KV through its page table, in one pass, where the
//! portable lowering walks all rows' pages in step. `scripts/ragged_paged_attention.py` lowers it
//! to a function of StableHLO around one custom call, for each shape that a program needs, and
//! keeps the text in a folder that is named after the versions of jax and libtpu. This module finds
//! those texts, has the script make what is missing, and checks what it reads; the lowering calls
//! the function where the program attends. Nothing of the kernel is part of this crate.
//!
//! A program gets the kernel in all its layers and steps, or in none: a [`KernelError`] says why.

use std::{
    collections::HashMap,
    fmt::Write as _,
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use sha2::{Digest, Sha256};

use crate::stablehlo::{Element, Type};

/// The first line of a kernel's file.
const MAGIC: &str = "// understory kernel 1";
/// The function of a kernel's text that is called. The others' names start with it too.
const ENTRY: &str = "@ragged_paged_attention";
/// The target of kernels in Pallas' interpreter: see [`KernelSource::interpreted`].
const INTERPRETER: &str = "interpreter";

/// How attention is lowered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum AttentionChoice {
    /// In StableHLO alone, which runs on any device.
    #[default]
    Portable,
    /// The Pallas kernel, or the portable lowering where it can't be had; then the reason is
    /// reported.
    Pallas(KernelSource),
    /// The Pallas kernel, or an error.
    PallasOnly(KernelSource),
}

/// How a program attends after all.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum AttentionUsed {
    /// By the portable lowering, as was asked for.
    Portable,
    /// By the portable lowering, since the kernel can't be had.
    Fallback(KernelError),
    /// By the Pallas kernel.
    Pallas,
}

impl std::fmt::Display for AttentionUsed {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Portable => formatter.write_str("portable"),
            Self::Fallback(reason) => write!(formatter, "portable, since {reason}"),
            Self::Pallas => formatter.write_str("Pallas"),
        }
    }
}

/// Where kernels come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelSource {
    folder: PathBuf,
    script: Option<Script>,
    is_interpreted: bool,
}

/// What lowers kernels that are missing.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Script {
    python: PathBuf,
    path: PathBuf,
    cache: PathBuf,
}

/// Why a program can't have the kernel.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KernelError {
    /// The device is of another kind.
    #[error("the kernel is for TPUs, and this is {device}")]
    Device {
        /// The kind of device.
        device: String,
    },
    /// The program attends in a way that the kernel does not know.
    #[error("the kernel does not know {what}")]
    Program {
        /// What it does not know.
        what: String,
    },
    /// The kernel can't be lowered for a shape.
    #[error("the kernel does not take this shape: {reason} ({name})")]
    Shape {
        /// What the script says.
        reason: String,
        /// The file that it would be in.
        name: String,
    },
    /// The script can't be run, or fails.
    #[error("`{command}` failed: {reason}")]
    Script {
        /// What was run.
        command: String,
        /// The last line that it wrote, or why it did not start.
        reason: String,
    },
    /// A kernel's file can't be read or is damaged.
    #[error("{}: {reason}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

impl KernelSource {
    /// Kernels that were lowered before, from the folder that the script names.
    pub fn folder(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into(), script: None, is_interpreted: false }
    }

    /// Kernels that the script at `path` lowers where they are missing, run by `python`, which is
    /// 3.11 or 3.12 with pip. They are kept below `cache`, and so is the `jax` package, which the
    /// script installs.
    ///
    /// # Errors
    ///
    /// [`KernelError::Script`] if the script does not say where it keeps kernels.
    pub fn script(
        python: impl Into<PathBuf>,
        path: impl Into<PathBuf>,
        cache: impl Into<PathBuf>,
    ) -> Result<Self, KernelError> {
        let script = Script { python: python.into(), path: path.into(), cache: cache.into() };
        let folder = script.run("folder", "")?;
        let script = Some(script);
        Ok(Self { folder: folder.trim().into(), script, is_interpreted: false })
    }

    /// The kernels in Pallas' interpreter instead: plain StableHLO, which runs on any device, far
    /// too slowly for anything but tests.
    pub fn interpreted(mut self) -> Self {
        self.is_interpreted = true;
        self
    }

    /// What kernels for a kind of device are lowered for.
    pub(crate) fn target(&self, device: &str) -> Result<String, KernelError> {
        match (self.is_interpreted, device.starts_with("TPU")) {
            (true, _) => Ok(INTERPRETER.to_owned()),
            (false, true) => Ok(device.to_owned()),
            (false, false) => Err(KernelError::Device { device: device.to_owned() }),
        }
    }

    /// Reads the kernels for some shapes, having those lowered that are missing.
    pub(crate) fn load(
        &self,
        target: &str,
        shapes: &[KernelShape],
    ) -> Result<Kernels, KernelError> {
        let is_missing = |shape: &&KernelShape| !self.path(shape).exists();
        let missing: Vec<&KernelShape> = shapes.iter().filter(is_missing).collect();
        if let (Some(script), false) = (&self.script, missing.is_empty()) {
            script.lower(&missing)?;
        }
        let mut by_name = HashMap::new();
        for shape in shapes {
            by_name.insert(shape.file_name(), read(&self.path(shape), shape)?);
        }
        Ok(Kernels { target: target.to_owned(), by_name })
    }

    fn path(&self, shape: &KernelShape) -> PathBuf {
        self.folder.join(shape.file_name())
    }
}

impl Script {
    /// Lowers kernels for `shapes` into the folder.
    fn lower(&self, shapes: &[&KernelShape]) -> Result<(), KernelError> {
        let list: Vec<String> = shapes.iter().map(|shape| shape.to_json()).collect();
        let replies = self.run("lower", &format!("[{}]", list.join(",\n")))?;
        let mut replies = replies.lines();
        for shape in shapes {
            let reply = replies.next().unwrap_or_default();
            if let Some(reason) = reply.strip_prefix("error ") {
                let reason = reason.to_owned();
                return Err(KernelError::Shape { reason, name: shape.file_name() });
            }
        }
        Ok(())
    }

    /// Runs one of the script's commands and returns what it prints.
    fn run(&self, what: &str, input: &str) -> Result<String, KernelError> {
        let mut command = Command::new(&self.python);
        command.arg(&self.path).arg(what).arg("--cache").arg(&self.cache);
        let failed = |reason: String| {
            let command = format!("{} {} {what}", self.python.display(), self.path.display());
            KernelError::Script { command, reason }
        };
        let pipes = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let Output { status, stdout, stderr } = pipes
            .spawn()
            .and_then(|mut child| {
                // Dropped at once, which ends the input. A script that ends before it has read all
                // of it says why by itself.
                if let Some(mut stdin) = child.stdin.take() {
                    let _ = stdin.write_all(input.as_bytes());
                }
                child.wait_with_output()
            })
            .map_err(|error| failed(error.to_string()))?;
        if !status.success() {
            let errors = String::from_utf8_lossy(&stderr);
            let last = errors.lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default();
            return Err(failed(format!("{status}: {last}")));
        }
        Ok(String::from_utf8_lossy(&stdout).into_owned())
    }
}

/// What a kernel is lowered for, on one device.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct KernelShape {
    pub(crate) target: String,
    /// Of queries, KV and output.
    pub(crate) element: Element,
    pub(crate) tokens: usize,
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    /// With the padding page.
    pub(crate) pages: usize,
    pub(crate) page_size: usize,
    pub(crate) rows: usize,
    pub(crate) pages_per_row: usize,
    pub(crate) scale: f32,
    pub(crate) window: Option<u32>,
    pub(crate) soft_cap: Option<f32>,
}

impl KernelShape {
    /// The types of queries, KV, KV lengths, page tables, bounds of rows, and number of rows; the
    /// result has the queries'.
    pub(crate) fn operands(&self) -> [Type; 6] {
        let query = Type::new(self.element, &[self.tokens, self.heads, self.head_dim]);
        let kv_dims = [self.pages, self.page_size, 2 * self.kv_heads, self.head_dim];
        [
            query,
            Type::new(self.element, &kv_dims),
            Type::new(Element::I32, &[self.rows]),
            Type::new(Element::I32, &[self.rows, self.pages_per_row]),
            Type::new(Element::I32, &[self.rows + 1]),
            Type::new(Element::I32, &[1]),
        ]
    }

    /// The name of its file; the script composes the same.
    fn file_name(&self) -> String {
        let mut name = format!(
            "{}_{}_q{}x{}_kv{}x{}x{}x{}_rows{}x{}_scale{:08x}",
            self.target.to_lowercase().replace(' ', "-"),
            element_name(self.element),
            self.tokens,
            self.heads,
            self.pages,
            self.page_size,
            self.kv_heads,
            self.head_dim,
            self.rows,
            self.pages_per_row,
            self.scale.to_bits(),
        );
        if let Some(window) = self.window {
            let _ = write!(name, "_window{window}");
        }
        if let Some(soft_cap) = self.soft_cap {
            let _ = write!(name, "_cap{:08x}", soft_cap.to_bits());
        }
        name.push_str(".mlir");
        name
    }

    /// As the script reads it.
    fn to_json(&self) -> String {
        let or_null = |value: Option<String>| value.unwrap_or_else(|| "null".to_owned());
        format!(
            r#"{{"target": {:?}, "dtype": "{}", "tokens": {}, "heads": {}, "kv_heads": {}, "head_dim": {}, "pages": {}, "page_size": {}, "rows": {}, "pages_per_row": {}, "scale": {:?}, "window": {}, "soft_cap": {}}}"#,
            self.target,
            element_name(self.element),
            self.tokens,
            self.heads,
            self.kv_heads,
            self.head_dim,
            self.pages,
            self.page_size,
            self.rows,
            self.pages_per_row,
            self.scale,
            or_null(self.window.map(|window| window.to_string())),
            or_null(self.soft_cap.map(|soft_cap| format!("{soft_cap:?}"))),
        )
    }

    /// How the kernel's function starts.
    fn signature(&self) -> String {
        let operands = self.operands();
        let arguments: Vec<String> =
            operands.iter().enumerate().map(|(i, kind)| format!("%arg{i}: {kind}")).collect();
        format!("func.func private {ENTRY}({}) -> {} {{", arguments.join(", "), operands[0])
    }
}

fn element_name(element: Element) -> &'static str {
    match element {
        Element::BF16 => "bfloat16",
        _ => "float32",
    }
}

/// The kernels of a program: for each shape its functions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Kernels {
    /// What they are lowered for.
    target: String,
    by_name: HashMap<String, String>,
}

impl Kernels {
    pub(crate) fn target(&self) -> &str {
        &self.target
    }

    /// The functions of the kernel for `shape`, the one to call first among them named `name`,
    /// with an `@`.
    pub(crate) fn functions(&self, shape: &KernelShape, name: &str) -> Option<String> {
        self.by_name.get(&shape.file_name()).map(|text| text.replace(ENTRY, name))
    }

    /// Writes files of kernels that return their queries, for golden tests.
    #[cfg(test)]
    pub(crate) fn write_stand_ins(folder: &Path, shapes: &[KernelShape]) {
        for shape in shapes {
            let [query, ..] = shape.operands();
            let content = format!("{}\n  return %arg0 : {query}\n}}\n", shape.signature());
            tests::write(folder, shape, &content);
        }
    }
}

/// Reads a kernel's file: that it is whole, and takes what the lowering will give it.
fn read(path: &Path, shape: &KernelShape) -> Result<String, KernelError> {
    let wrong = |reason: String| KernelError::File { path: path.into(), reason };
    let text = fs::read_to_string(path).map_err(|error| wrong(error.to_string()))?;
    let content = text
        .strip_prefix(MAGIC)
        .and_then(|rest| rest.strip_prefix("\n// sha256 "))
        .ok_or_else(|| wrong("it does not start as a kernel does".to_owned()))?;
    let (expected, content) = content.split_once('\n').unwrap_or((content, ""));
    let digest: String =
        Sha256::digest(content.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
    if digest != expected {
        return Err(wrong("its hash is wrong".to_owned()));
    }
    if !content.lines().any(|line| line == shape.signature()) {
        return Err(wrong(format!("it has no function that starts `{}`", shape.signature())));
    }
    Ok(content.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape() -> KernelShape {
        KernelShape {
            target: "TPU v6 lite".to_owned(),
            element: Element::BF16,
            tokens: 32,
            heads: 8,
            kv_heads: 2,
            head_dim: 128,
            pages: 513,
            page_size: 128,
            rows: 32,
            pages_per_row: 16,
            scale: 0.125,
            window: Some(64),
            soft_cap: Some(30.0),
        }
    }

    pub(super) fn write(folder: &Path, shape: &KernelShape, content: &str) -> PathBuf {
        let digest: String =
            Sha256::digest(content.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
        let path = folder.join(shape.file_name());
        fs::write(&path, format!("{MAGIC}\n// sha256 {digest}\n{content}")).unwrap();
        path
    }

    fn load(source: &KernelSource) -> Result<Kernels, KernelError> {
        let shape = shape();
        source.load(&shape.target, std::slice::from_ref(&shape))
    }

    #[test]
    fn names_are_those_of_the_script() {
        assert_eq!(
            shape().file_name(),
            "tpu-v6-lite_bfloat16_q32x8_kv513x128x2x128_rows32x16_scale3e000000_window64\
             _cap41f00000.mlir"
        );
    }

    #[test]
    fn a_whole_kernel_is_read_and_renamed() {
        let folder = tempfile::tempdir().unwrap();
        let shape = shape();
        write(folder.path(), &shape, &format!("// made\n{}\n  return\n}}\n", shape.signature()));
        let kernels = load(&KernelSource::folder(folder.path())).unwrap();
        let functions = kernels.functions(&shape, "@kernel3").unwrap();
        assert!(functions.contains("func.func private @kernel3(%arg0: tensor<32x8x128xbf16>, "));
        assert!(!functions.contains(ENTRY));
    }

    #[test]
    fn damaged_kernels_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = write(folder.path(), &shape(), &format!("{}\n}}\n", shape().signature()));
        let good = fs::read(&path).unwrap();
        let source = KernelSource::folder(folder.path());
        load(&source).unwrap();
        for length in 0..good.len() {
            fs::write(&path, &good[..length]).unwrap();
            let error = load(&source).unwrap_err();
            assert!(matches!(error, KernelError::File { .. }), "{error}");
        }
        for index in 0..good.len() {
            let mut bad = good.clone();
            bad[index] ^= 1;
            fs::write(&path, &bad).unwrap();
            let error = load(&source).unwrap_err();
            assert!(matches!(error, KernelError::File { .. }), "{error}");
        }
    }

    #[test]
    fn kernels_for_other_operands_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let mut other = shape();
        other.rows += 1;
        write(folder.path(), &shape(), &format!("{}\n}}\n", other.signature()));
        let error = load(&KernelSource::folder(folder.path())).unwrap_err();
        assert!(error.to_string().contains("no function that starts"), "{error}");
    }

    #[test]
    fn missing_kernels_python_or_scripts_are_typed_errors() {
        let folder = tempfile::tempdir().unwrap();
        let error = load(&KernelSource::folder(folder.path())).unwrap_err();
        assert!(matches!(error, KernelError::File { .. }), "{error}");
        let nowhere = folder.path().join("nowhere");
        let error = KernelSource::script(&nowhere, "script.py", folder.path()).unwrap_err();
        assert!(matches!(error, KernelError::Script { .. }), "{error}");
        let error = KernelSource::script("python3", &nowhere, folder.path()).unwrap_err();
        assert!(matches!(error, KernelError::Script { .. }), "{error}");
    }

    #[test]
    fn the_kernel_is_for_tpus_unless_it_is_interpreted() {
        let source = KernelSource::folder("kernels");
        assert_eq!(source.target("TPU v6 lite").unwrap(), "TPU v6 lite");
        assert!(matches!(source.target("cpu"), Err(KernelError::Device { .. })));
        assert_eq!(source.interpreted().target("cpu").unwrap(), INTERPRETER);
    }
}
