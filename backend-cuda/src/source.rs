//! The sources of the kernels.

use backend_api::weights::Format;

/// A file of kernels; the function in it has the file's name, unless it holds several.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kernel {
    /// One new token a row over paged KV.
    AttentionDecode,
    /// Adds up the parts of rows.
    AttentionMerge,
    /// Several new tokens a row over paged KV; shared prefixes.
    AttentionAppend,
    /// [`AttentionAppend`](Self::AttentionAppend) with what compute capability 9.0 has: see
    /// [`Hopper`](crate::Hopper).
    PrefillHopper,
    /// Adds a residual and normalizes.
    RmsNorm,
    /// Rotates queries and keys by their positions and writes K and V into pages.
    RopeAndStore,
    /// The gated activation of a feed-forward network.
    GatedActivation,
    /// Rows of the embedding.
    Embed,
    /// Samples a token from each row of logits.
    Sample,
    /// A product with a weight.
    Linear,
    /// Operations on single numbers; the file holds several functions.
    Elementwise,
    /// A product of a few rows with a weight in blocks; a function for each number of rows.
    BlocksVector,
    /// A product of many rows with a weight in blocks.
    BlocksTile,
    /// Rows of an embedding in blocks.
    BlocksEmbed,
    /// Mixtures of experts but for their products; the file holds several functions.
    Experts,
}

impl Kernel {
    /// All of them.
    pub const ALL: [Self; 15] = [
        Self::AttentionDecode,
        Self::AttentionMerge,
        Self::AttentionAppend,
        Self::PrefillHopper,
        Self::RmsNorm,
        Self::RopeAndStore,
        Self::GatedActivation,
        Self::Embed,
        Self::Sample,
        Self::Linear,
        Self::Elementwise,
        Self::BlocksVector,
        Self::BlocksTile,
        Self::BlocksEmbed,
        Self::Experts,
    ];

    /// The functions of [`BlocksVector`](Self::BlocksVector), and how many rows each takes.
    pub const VECTORS: [(&'static str, u32); 4] = [
        ("blocks_vector_1", 1),
        ("blocks_vector_2", 2),
        ("blocks_vector_4", 4),
        ("blocks_vector_8", 8),
    ];

    /// The functions of [`Experts`](Self::Experts).
    pub const EXPERTS: [&'static str; 4] = ["route", "sort_choices", "list_tiles", "combine"];

    /// The functions of [`Elementwise`](Self::Elementwise).
    pub const ELEMENTWISE: [&'static str; 10] = [
        "add",
        "scale",
        "scale_wide",
        "soft_cap",
        "soft_cap_wide",
        "select_rows",
        "rope",
        "multiply",
        "select_columns",
        "scale_by_position",
    ];

    /// The functions of the file.
    pub fn functions(self) -> Vec<&'static str> {
        match self {
            Self::Elementwise => Self::ELEMENTWISE.to_vec(),
            Self::BlocksVector => Self::VECTORS.map(|(name, _)| name).to_vec(),
            Self::Experts => Self::EXPERTS.to_vec(),
            _ => vec![self.name()],
        }
    }

    /// The name of the file, and of its function if it holds one.
    pub const fn name(self) -> &'static str {
        match self {
            Self::AttentionDecode => "attention_decode",
            Self::AttentionMerge => "attention_merge",
            Self::AttentionAppend => "attention_append",
            Self::PrefillHopper => "prefill_hopper",
            Self::RmsNorm => "rms_norm",
            Self::RopeAndStore => "rope_and_store",
            Self::GatedActivation => "gated_activation",
            Self::Embed => "embed",
            Self::Sample => "sample",
            Self::Linear => "linear",
            Self::Elementwise => "elementwise",
            Self::BlocksVector => "blocks_vector",
            Self::BlocksTile => "blocks_tile",
            Self::BlocksEmbed => "blocks_embed",
            Self::Experts => "experts",
        }
    }

    const fn text(self) -> &'static str {
        match self {
            Self::AttentionDecode => include_str!("../kernels/attention_decode.cu"),
            Self::AttentionMerge => include_str!("../kernels/attention_merge.cu"),
            Self::AttentionAppend => include_str!("../kernels/attention_append.cu"),
            Self::PrefillHopper => include_str!("../kernels/prefill_hopper.cu"),
            Self::RmsNorm => include_str!("../kernels/rms_norm.cu"),
            Self::RopeAndStore => include_str!("../kernels/rope_and_store.cu"),
            Self::GatedActivation => include_str!("../kernels/gated_activation.cu"),
            Self::Embed => include_str!("../kernels/embed.cu"),
            Self::Sample => include_str!("../kernels/sample.cu"),
            Self::Linear => include_str!("../kernels/linear.cu"),
            Self::Elementwise => include_str!("../kernels/elementwise.cu"),
            Self::BlocksVector => include_str!("../kernels/blocks_vector.cu"),
            Self::BlocksTile => include_str!("../kernels/blocks_tile.cu"),
            Self::BlocksEmbed => include_str!("../kernels/blocks_embed.cu"),
            Self::Experts => include_str!("../kernels/experts.cu"),
        }
    }
}

/// The constants that a kernel is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Variant {
    /// Width of a head.
    pub head: u32,
    /// Query heads that share a KV head.
    pub group: u32,
    /// Activations in IEEE f16; otherwise in bfloat16.
    pub half: bool,
    /// KV in e4m3 with a scale.
    pub fp8: bool,
    /// What a weight in blocks is made of; bfloat16 stands for 16-bit numbers of either kind.
    pub weight: Format,
}

impl Variant {
    /// bfloat16 throughout.
    pub fn new(head: u32, group: u32) -> Self {
        Self { head, group, half: false, fp8: false, weight: Format::BF16 }
    }

    /// Options of the compiler.
    pub fn options(&self) -> Vec<String> {
        let mut options = vec![format!("-DHEAD={}", self.head), format!("-DGROUP={}", self.group)];
        options.extend(self.half.then(|| "-DHALF".to_owned()));
        options.extend(self.fp8.then(|| "-DFP8".to_owned()));
        options.extend(self.weight.is_quantized().then(|| format!("-DFORMAT_{}", self.weight)));
        options
    }
}

/// Slices of a head's output that blocks of `attention_append` share: blocks along y for each KV head.
pub const fn append_slices(head: u32) -> u32 {
    if head > 256 { 2 } else { 1 }
}

/// Dynamic shared memory of a block of `attention_append`, in bytes: 64 queries, and two buffers of 32 keys and values.
pub fn append_shared_bytes(variant: &Variant) -> u32 {
    let stride = |width: u32| width.next_power_of_two().max(64);
    let out = stride(variant.head / append_slices(variant.head));
    ((64 + 2 * 32) * stride(variant.head) + 2 * 32 * out) * 2
}

/// The source of a kernel, with the files that it includes in place. Messages of the compiler name the file and line.
pub fn source(kernel: Kernel) -> String {
    let mut included = Vec::new();
    let mut text = String::new();
    inline(&format!("{}.cu", kernel.name()), kernel.text(), &mut included, &mut text);
    text
}

fn inline(name: &str, source: &str, included: &mut Vec<&'static str>, text: &mut String) {
    text.push_str(&format!("#line 1 \"{name}\"\n"));
    for (line, number) in source.lines().zip(2..) {
        let header = match line {
            "#include \"common.cuh\"" => {
                Some(("common.cuh", include_str!("../kernels/common.cuh")))
            }
            "#include \"attention.cuh\"" => {
                Some(("attention.cuh", include_str!("../kernels/attention.cuh")))
            }
            "#include \"hopper.cuh\"" => {
                Some(("hopper.cuh", include_str!("../kernels/hopper.cuh")))
            }
            "#include \"blocks.cuh\"" => {
                Some(("blocks.cuh", include_str!("../kernels/blocks.cuh")))
            }
            _ => None,
        };
        match header {
            Some((header, source)) => {
                if !included.contains(&header) {
                    included.push(header);
                    inline(header, source, included, text);
                }
                text.push_str(&format!("#line {number} \"{name}\"\n"));
            }
            None if line == "#pragma once" => text.push('\n'),
            None => {
                text.push_str(line);
                text.push('\n');
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_source_holds_its_function_and_each_header_once() {
        for kernel in Kernel::ALL {
            let source = source(kernel);
            assert!(!source.contains("#include"), "{}", kernel.name());
            for function in kernel.functions() {
                // A function that a macro makes is its argument.
                let is_there = [format!("\n{function}("), format!("({function}, ")];
                assert!(is_there.iter().any(|text| source.contains(text)), "{function}");
            }
            assert_eq!(source.matches("float warp_max(").count(), 1, "{}", kernel.name());
        }
    }
}
