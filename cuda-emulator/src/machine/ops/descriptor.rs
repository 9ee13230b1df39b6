//! Matrices in shared memory as descriptors of `wgmma` name them.

use crate::check::Problem;
use crate::machine::context::{Context, Trap};
use crate::machine::tensor_map::Swizzle;

/// Registers of a line of 32 bytes along the inner dimension.
pub(super) const WORDS: usize = 8;

/// A matrix in shared memory.
pub(super) struct Matrix {
    start: u64,
    leading: u64,
    stride: u64,
    swizzle: Swizzle,
    /// Whether neighbours along the outer dimension, and not the inner one, lie together.
    outer_major: bool,
}

impl Matrix {
    fn new(descriptor: u64, outer_major: bool) -> Result<Self, &'static str> {
        let field = |shift: u32| (descriptor >> shift & 0x3fff) * 16;
        if descriptor >> 49 & 7 != 0 {
            return Err("a base offset, which is not supported: align the matrix to its swizzle");
        }
        let swizzle = match descriptor >> 62 {
            0 => Swizzle::None,
            1 => Swizzle::B128,
            2 => Swizzle::B64,
            _ => Swizzle::B32,
        };
        let (start, leading, stride) = (field(0), field(16), field(32));
        Ok(Self { start, leading, stride, swizzle, outer_major })
    }

    /// Where a piece of 16 bytes lies. Pieces lie along the inner dimension, and `line` is the
    /// index along the outer one; or the other way round.
    fn piece(&self, line: u64, piece: u64) -> u64 {
        let span = self.swizzle.span();
        let pieces = span / 16;
        let at = match (self.outer_major, self.swizzle) {
            (false, Swizzle::None) => line % 8 * 16 + line / 8 * self.stride + piece * self.leading,
            (false, _) => line % 8 * span + line / 8 * self.stride + piece * 16,
            (true, Swizzle::None) => line % 8 * 16 + line / 8 * self.leading + piece * self.stride,
            (true, _) => {
                line % 8 * span
                    + line / 8 * self.stride
                    + piece % pieces * 16
                    + piece / pieces * self.leading
            }
        };
        self.swizzle.apply(self.start + at)
    }
}

/// Reads a descriptor.
pub(super) fn matrix(descriptor: u64, outer_major: bool) -> Result<Matrix, Trap> {
    Matrix::new(descriptor, outer_major)
        .map_err(|reason| Trap::warp(Problem::WgmmaDescriptor { descriptor, reason }))
}

/// Reads lines of 32 bytes along the inner dimension, from line `first` on.
pub(super) fn gather(
    context: &Context<'_, '_>,
    matrix: &Matrix,
    descriptor: u64,
    first: usize,
    lines: &mut [[u32; WORDS]],
    pieces: &mut Vec<u32>,
) -> Result<(), Trap> {
    let mut read = |line: u64, piece: u64| {
        let at = matrix.piece(line, piece);
        pieces.push(at as u32);
        let reason = "it leads out of shared memory";
        let missing = || Trap::warp(Problem::WgmmaDescriptor { descriptor, reason });
        context.block.shared.get(at as usize..at as usize + 16).ok_or_else(missing)
    };
    if matrix.outer_major {
        // Pieces hold eight halves of neighbouring lines.
        for k in 0..16u64 {
            for (group, lines) in lines.chunks_mut(8).enumerate() {
                let bytes = read(k, (first / 8 + group) as u64)?;
                for (line, half) in lines.iter_mut().zip(bytes.as_chunks::<2>().0) {
                    let bits = u32::from(u16::from_le_bytes(*half));
                    line[k as usize / 2] |= bits << (16 * (k % 2));
                }
            }
        }
        return Ok(());
    }
    for (index, line) in lines.iter_mut().enumerate() {
        for piece in 0..2 {
            let bytes = read((first + index) as u64, piece)?;
            for (word, bytes) in line[4 * piece as usize..].iter_mut().zip(bytes.as_chunks::<4>().0)
            {
                *word = u32::from_le_bytes(*bytes);
            }
        }
    }
    Ok(())
}
