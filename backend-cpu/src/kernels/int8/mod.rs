//! `y = x W + b` with activations and weights in bytes.
//!
//! Activations are quantized by row and block of 32 inputs, as in ggml's Q8_0: `x = d * q` with `q`
//! from -127 to 127. Weights are those of the file, at the same size. A block's products are summed
//! as integers, which is exact; the block's sum times both scales is then added to the output in
//! f32, block after block. So a result depends on its row and column alone, and is the same on all
//! paths that fuse multiply and add, vectors or matrix units.

pub(crate) mod blocks;
pub(crate) mod linear;
pub(crate) mod rows;
#[cfg(test)]
mod tests;
pub(crate) mod tiled;
