//! What a device offers, and what the engine decided before compiling.

use std::{fmt, str::FromStr};

use crate::{Compute, UnknownName};

/// What a device has and what its backend promises.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Capabilities {
    /// For people: `cpu (avx2, 2 threads)`.
    pub description: String,
    /// Bytes that weights and KV may use together.
    pub memory_bytes: u64,
    /// Bytes that a host tier may use; 0 where there is none.
    pub host_memory_bytes: u64,
    /// Page sizes that it takes, in tokens, ascending. Never empty.
    pub page_sizes: Vec<u32>,
    /// Formats in which it can hold KV, preferred first. Never empty.
    pub kv_formats: Vec<KvFormat>,
    /// Precisions that it computes in beside [`Compute::Exact`].
    pub computes: Vec<Compute>,
    /// Those of them that are faster than exact on this device: what [`Compute::Auto`] chooses from.
    pub fast_computes: Vec<Compute>,
    /// A row's result does not depend on what else is in the batch, nor on how its prompt was
    /// chunked or cached.
    pub batch_invariant: bool,
    /// Hidden states and pooled vectors take preparation, and are there only with
    /// [`CompileOptions::hidden`].
    pub prepares_hidden: bool,
}

impl Capabilities {
    /// Capabilities of a backend that takes page sizes 1 to 512 and f32 KV, and computes exactly;
    /// adjust the fields.
    pub fn new(description: impl Into<String>, memory_bytes: u64) -> Self {
        Self {
            description: description.into(),
            memory_bytes,
            host_memory_bytes: 0,
            page_sizes: (0..=9).map(|power| 1 << power).collect(),
            kv_formats: vec![KvFormat::F32],
            computes: Vec::new(),
            fast_computes: Vec::new(),
            batch_invariant: false,
            prepares_hidden: false,
        }
    }
}

/// What the engine decided before compiling: the sizes of everything.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct CompileOptions {
    /// The largest step; `limits.pages` is the KV capacity in pages for each page group.
    pub limits: Limits,
    /// Tokens in a page.
    pub page_size: u32,
    /// The longest sequence, in tokens.
    pub context_length: u32,
    /// How KV is stored.
    pub kv_format: KvFormat,
    /// In what precision products with weights are computed.
    pub compute: Compute,
    /// Pages of the host tier for each page group; empty where there is none.
    pub host_pages: Vec<u32>,
    /// Give up speed for results that don't depend on the batch, where the backend doesn't
    /// promise that anyway.
    pub deterministic: bool,
    /// The most tokens that are proposed in a run of [`Want::Verify`](crate::Want::Verify). A backend
    /// that prepares its shapes prepares some for such runs; longer ones are right, and slower.
    pub longest_draft: u32,
    /// Hidden states or pooled vectors may be wanted of a batch. A backend that prepares its shapes
    /// refuses such a batch otherwise.
    pub hidden: bool,
}

impl CompileOptions {
    /// Options with f32 KV and no host tier, computing exactly.
    pub fn new(limits: Limits, page_size: u32, context_length: u32) -> Self {
        Self {
            limits,
            page_size,
            context_length,
            kv_format: KvFormat::F32,
            compute: Compute::Exact,
            host_pages: Vec::new(),
            deterministic: false,
            longest_draft: 0,
            hidden: false,
        }
    }
}

/// The largest step that an executor takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Rows in a batch.
    pub rows: u32,
    /// New tokens in a batch, over all rows.
    pub tokens: u32,
    /// Output rows in a batch: tokens in the runs of all outputs.
    pub outputs: u32,
    /// Slots: sequences that are resident at once.
    pub slots: u32,
    /// Pages for each page group; page ids run from 0 to this, exclusive. A backend that needs
    /// a page for padding keeps one of its own beyond these.
    pub pages: Vec<u32>,
}

/// How the elements of cached keys and values are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum KvFormat {
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary16.
    F16,
    /// The upper half of a binary32.
    Bf16,
    /// Signed bytes, and an f32 scale for each head's key and value of a position.
    Int8,
}

impl KvFormat {
    /// Every format.
    pub const ALL: [Self; 4] = [Self::F32, Self::F16, Self::Bf16, Self::Int8];

    /// Bytes that so many elements take, without scales.
    pub fn bytes(self, elements: u64) -> u64 {
        match self {
            Self::F32 => elements.saturating_mul(4),
            Self::F16 | Self::Bf16 => elements.saturating_mul(2),
            Self::Int8 => elements,
        }
    }
}

impl fmt::Display for KvFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::Int8 => "int8",
        })
    }
}

impl FromStr for KvFormat {
    type Err = UnknownName;

    fn from_str(text: &str) -> Result<Self, UnknownName> {
        let known = Self::ALL.into_iter().find(|format| format.to_string() == text);
        known.ok_or_else(|| UnknownName::new(text, &Self::ALL))
    }
}

/// What an executor takes of a device's memory, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Footprint {
    /// Weights, as they are kept there.
    pub weights: u64,
    /// KV of all page groups, those of the host tier left out.
    pub kv: u64,
    /// Values between operations, of the largest step.
    pub activations: u64,
}

impl Footprint {
    /// All of these.
    pub fn new(weights: u64, kv: u64, activations: u64) -> Self {
        Self { weights, kv, activations }
    }

    /// The sum.
    pub fn total(&self) -> u64 {
        self.weights.saturating_add(self.kv).saturating_add(self.activations)
    }
}
