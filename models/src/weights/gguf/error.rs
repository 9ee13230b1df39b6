//! What can be wrong with a GGUF file.

use crate::clip;
use crate::weights::TensorError;

/// A GGUF file that is malformed, or whose metadata lacks what a model needs.
#[derive(Debug, thiserror::Error, PartialEq)]
#[non_exhaustive]
pub enum GgufError {
    /// The file does not start with `GGUF`.
    #[error("not a GGUF file: it starts with {found:02x?}")]
    BadMagic {
        /// Its first four bytes.
        found: [u8; 4],
    },
    /// A version of the format other than 2 and 3, or a big-endian file.
    #[error("GGUF version {version} is not supported (supported: 2 and 3, little-endian)")]
    UnsupportedVersion {
        /// The version, read as little-endian.
        version: u32,
    },
    /// The file ends too early, or claims to hold more than it does.
    #[error("truncated at byte {offset}: {what} needs {needed} bytes, {available} are left")]
    Truncated {
        /// What was being read.
        what: &'static str,
        /// Where it starts.
        offset: usize,
        /// Bytes that it takes; for a list, at least.
        needed: u64,
        /// Bytes to the end of the file.
        available: usize,
    },
    /// A string that is not UTF-8.
    #[error("{what} at byte {offset} is not UTF-8")]
    BadUtf8 {
        /// What was being read.
        what: &'static str,
        /// Where the string starts.
        offset: usize,
    },
    /// A metadata value of a type that the format does not define.
    #[error("metadata value at byte {offset} has unknown type {kind}")]
    UnknownValueType {
        /// Where the value starts.
        offset: usize,
        /// The type's number.
        kind: u32,
    },
    /// A boolean that is neither 0 nor 1.
    #[error("boolean at byte {offset} is {found}, neither 0 nor 1")]
    BadBool {
        /// Where it is.
        offset: usize,
        /// What it is.
        found: u8,
    },
    /// Arrays within arrays, deeper than any real file.
    #[error("metadata arrays are nested more than {limit} deep")]
    NestedTooDeep {
        /// The limit.
        limit: usize,
    },
    /// A metadata key that occurs twice.
    #[error("metadata key `{key}` occurs twice", key = clip(key))]
    DuplicateKey {
        /// The key.
        key: String,
    },
    /// An alignment that is not a power of two.
    #[error("general.alignment is {alignment}, not a power of two")]
    BadAlignment {
        /// What the file says.
        alignment: u64,
    },
    /// A tensor name that occurs twice.
    #[error("tensor `{name}` occurs twice", name = clip(name))]
    DuplicateTensor {
        /// The tensor.
        name: String,
    },
    /// Two tensors that share bytes of the file.
    #[error("tensors `{}` and `{}` overlap", clip(other), clip(name))]
    OverlappingTensors {
        /// The tensor that begins later.
        name: String,
        /// The one that it begins in.
        other: String,
    },
    /// A tensor of a layer beyond the number of layers that the metadata give.
    #[error("`{}` belongs to none of the {layers} layers of `{key}`", clip(name), key = clip(key))]
    LayerOutOfRange {
        /// The tensor.
        name: String,
        /// The key of the number of layers.
        key: String,
        /// That number.
        layers: usize,
    },
    /// A tensor with more dimensions than the format allows.
    #[error("tensor `{name}` claims {dimensions} dimensions, the format allows 4", name = clip(name))]
    TooManyDimensions {
        /// The tensor.
        name: String,
        /// Dimensions claimed.
        dimensions: u32,
    },
    /// A tensor that does not start at a multiple of the alignment.
    #[error("tensor `{name}` is at offset {offset}, not a multiple of {alignment}", name = clip(name))]
    MisalignedTensor {
        /// The tensor.
        name: String,
        /// Its offset in the data section.
        offset: u64,
        /// The file's alignment.
        alignment: usize,
    },
    /// A tensor that reaches past the end of the file.
    #[error(
        "tensor `{name}` takes {size} bytes at offset {offset} of {available}: the file is truncated or malformed", name = clip(name))]
    TensorOutOfRange {
        /// The tensor.
        name: String,
        /// Its offset in the data section.
        offset: u64,
        /// Its size in bytes.
        size: u64,
        /// Bytes in the data section.
        available: usize,
    },
    /// A tensor with a size that does not fit its type or this machine.
    #[error("tensor `{name}` is malformed", name = clip(name))]
    Tensor {
        /// The tensor.
        name: String,
        /// What does not fit; in a box, as it is larger than what the others hold.
        source: Box<TensorError>,
    },
    /// A metadata key that a model can't do without.
    #[error("the metadata lacks `{key}`", key = clip(key))]
    MissingKey {
        /// The key.
        key: String,
    },
    /// A metadata value of another type than its key calls for.
    #[error("metadata key `{key}` is {found}, not {expected}", key = clip(key))]
    WrongType {
        /// The key.
        key: String,
        /// What it should be.
        expected: &'static str,
        /// What it is.
        found: &'static str,
    },
    /// A part of a split model that has no part's name, so that the others can't be found.
    #[error(
        "the file is one of {parts} parts of a model; to find the others, its name must end in \
         `-00001-of-{parts:05}.gguf` or the like"
    )]
    SplitName {
        /// Number of files.
        parts: u64,
    },
    /// Parts of a split model that don't fit together.
    #[error("the parts of the model don't fit together: `{key}` is {found}, not {expected}")]
    SplitMismatch {
        /// The key, or what it counts.
        key: &'static str,
        /// What the other parts call for; of tensors, what the file claims.
        expected: u64,
        /// What the file says; of tensors, what all parts hold.
        found: u64,
    },
    /// A tensor whose rows are not whole heads, so that their order can't be restored.
    #[error("`{name}` has {rows} rows, which are not {heads} heads of even size", name = clip(name))]
    RowsAreNotHeads {
        /// The tensor.
        name: String,
        /// Its rows; elements, for a vector.
        rows: usize,
        /// Heads, as the metadata says.
        heads: usize,
    },
}
