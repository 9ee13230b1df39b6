//! The instructions that the kernels use: found once, when a backend is made.

#[cfg(target_arch = "x86_64")]
use crate::isa::{Avx2, Avx512};
use crate::isa::{Isa, Op, Portable};

/// The instructions that kernels use.
///
/// Results are the same, bit for bit, for whatever batch, chunking, page size and thread count,
/// as long as the instructions are the same. [`Avx2`](Self::Avx2) and [`Avx512`](Self::Avx512) agree with
/// each other too, as both fuse multiply and add; [`Portable`](Self::Portable) differs from
/// them in the last bits on targets without that instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum InstructionSet {
    /// Whatever the target was compiled for: runs anywhere.
    Portable,
    /// x86-64 with AVX2, FMA and F16C.
    Avx2,
    /// x86-64 with AVX-512 F, BW and VL.
    Avx512,
}

/// Instructions that this processor has.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Simd {
    Portable(Portable),
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2),
    #[cfg(target_arch = "x86_64")]
    Avx512(Avx512),
}

impl Simd {
    /// The instructions of `set`, or `None` if this processor does not have them.
    pub(crate) fn for_set(set: InstructionSet) -> Option<Self> {
        match set {
            InstructionSet::Portable => Some(Self::Portable(Portable)),
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Avx2 => Avx2::detect().map(Self::Avx2),
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Avx512 => Avx512::detect().map(Self::Avx512),
            #[cfg(not(target_arch = "x86_64"))]
            _ => None,
        }
    }

    /// All that this processor has, the fastest first.
    pub(crate) fn available() -> impl Iterator<Item = Self> {
        [InstructionSet::Avx512, InstructionSet::Avx2, InstructionSet::Portable]
            .into_iter()
            .filter_map(Self::for_set)
    }

    /// The fastest that this processor has.
    pub(crate) fn best() -> Self {
        Self::available().next().unwrap_or(Self::Portable(Portable))
    }

    /// Their name.
    pub(crate) fn set(self) -> InstructionSet {
        match self {
            Self::Portable(_) => InstructionSet::Portable,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(_) => InstructionSet::Avx2,
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(_) => InstructionSet::Avx512,
        }
    }

    /// Runs `op` with these instructions.
    pub(crate) fn run<O: Op>(self, op: O) -> O::Output {
        match self {
            Self::Portable(isa) => isa.vectorize(op),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(isa) => isa.vectorize(op),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(isa) => isa.vectorize(op),
        }
    }
}
