//! The instructions that the kernels use: found once, when a backend is made.

use std::fmt;

#[cfg(not(target_arch = "x86_64"))]
use crate::isa::tiles::TileTwin;
#[cfg(target_arch = "x86_64")]
use crate::isa::{Avx2, Avx512, Avx512Dot, AvxVnni, tiles::Amx};
use crate::isa::{
    Isa, Op, Portable,
    dot::{DotIsa, DotOp},
};

/// The instructions that kernels use, slowest first. A set includes what the sets of the same width
/// before it have.
///
/// Results are the same, bit for bit, for whatever batch, chunking, page size and thread count,
/// as long as the instructions and the precision are the same. In exact precision all sets but
/// [`Portable`](Self::Portable) agree with each other too, as all of them fuse multiply and add;
/// `Portable` differs from them in the last bits on targets without that instruction. The same
/// holds for the products of int8 precision. Products of bf16 agree within a set alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum InstructionSet {
    /// Whatever the target was compiled for: runs anywhere.
    Portable,
    /// x86-64 with AVX2, FMA and F16C.
    Avx2,
    /// The same with AVX-VNNI: dot products of bytes.
    AvxVnni,
    /// x86-64 with AVX-512 F, BW and VL.
    Avx512,
    /// The same with VNNI and BF16: dot products of bytes and of bf16.
    Avx512Dot,
    /// The same with AMX: matrix units for bytes and bf16.
    Amx,
}

impl InstructionSet {
    /// Every set, slowest first.
    pub const ALL: [Self; 6] =
        [Self::Portable, Self::Avx2, Self::AvxVnni, Self::Avx512, Self::Avx512Dot, Self::Amx];
}

impl fmt::Display for InstructionSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::AvxVnni => "avx2 with vnni",
            Self::Avx512 => "avx512",
            Self::Avx512Dot => "avx512 with vnni and bf16",
            Self::Amx => "avx512 with amx",
        })
    }
}

/// Instructions that this processor has.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Simd {
    Portable(Portable),
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2),
    #[cfg(target_arch = "x86_64")]
    AvxVnni(AvxVnni),
    #[cfg(target_arch = "x86_64")]
    Avx512(Avx512),
    #[cfg(target_arch = "x86_64")]
    Avx512Dot(Avx512Dot),
    #[cfg(target_arch = "x86_64")]
    Amx(Avx512Dot, Amx),
}

impl Simd {
    /// The instructions of `set`, or `None` if this processor does not have them.
    pub(crate) fn for_set(set: InstructionSet) -> Option<Self> {
        match set {
            InstructionSet::Portable => Some(Self::Portable(Portable)),
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Avx2 => Avx2::detect().map(Self::Avx2),
            #[cfg(target_arch = "x86_64")]
            InstructionSet::AvxVnni => AvxVnni::detect().map(Self::AvxVnni),
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Avx512 => Avx512::detect().map(Self::Avx512),
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Avx512Dot => Avx512Dot::detect().map(Self::Avx512Dot),
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Amx => {
                Avx512Dot::detect().zip(Amx::detect()).map(|(dot, amx)| Self::Amx(dot, amx))
            }
            #[cfg(not(target_arch = "x86_64"))]
            _ => None,
        }
    }

    /// All that this processor has, the fastest first.
    pub(crate) fn available() -> impl Iterator<Item = Self> {
        InstructionSet::ALL.into_iter().rev().filter_map(Self::for_set)
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
            Self::AvxVnni(_) => InstructionSet::AvxVnni,
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(_) => InstructionSet::Avx512,
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Dot(_) => InstructionSet::Avx512Dot,
            #[cfg(target_arch = "x86_64")]
            Self::Amx(..) => InstructionSet::Amx,
        }
    }

    /// Whether products of bytes are faster than those of f32.
    pub(crate) fn has_fast_bytes(self) -> bool {
        !matches!(self, Self::Portable(_))
    }

    /// Whether products of bf16 are faster than those of f32.
    pub(crate) fn has_fast_bf16(self) -> bool {
        self.set() >= InstructionSet::Avx512Dot
    }

    /// The matrix unit, if there is one.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn tiles(self) -> Option<Amx> {
        match self {
            Self::Amx(_, amx) => Some(amx),
            _ => None,
        }
    }

    /// The matrix unit: this target has none.
    #[cfg(not(target_arch = "x86_64"))]
    pub(crate) fn tiles(self) -> Option<TileTwin> {
        None
    }

    /// Runs `op` with these instructions. What adds dot products to a path changes nothing for
    /// such work, so that it is compiled once for both.
    pub(crate) fn run<O: Op>(self, op: O) -> O::Output {
        match self {
            Self::Portable(isa) => isa.vectorize(op),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(isa) | Self::AvxVnni(AvxVnni(isa)) => isa.vectorize(op),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(isa) | Self::Avx512Dot(Avx512Dot(isa)) | Self::Amx(Avx512Dot(isa), _) => {
                isa.vectorize(op)
            }
        }
    }

    /// Runs `op`, which needs dot products, with these instructions.
    pub(crate) fn run_dot<O: DotOp>(self, op: O) -> O::Output {
        match self {
            Self::Portable(isa) => isa.vectorize_dot(op),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(isa) => isa.vectorize_dot(op),
            #[cfg(target_arch = "x86_64")]
            Self::AvxVnni(isa) => isa.vectorize_dot(op),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(isa) => isa.vectorize_dot(op),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Dot(isa) | Self::Amx(isa, _) => isa.vectorize_dot(op),
        }
    }
}
