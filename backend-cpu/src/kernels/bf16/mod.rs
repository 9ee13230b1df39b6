//! `y = x W + b` with activations and weights in bf16, summed in f32.
//!
//! Each output is one chain: vector units walk pairs of inputs in order, matrix units 32 inputs at a
//! time with the sums of even and odd inputs apart. A path uses one of the two for every number
//! of rows, so that a row's result depends on the row alone; results of different paths differ in
//! the last bits.

pub(crate) mod linear;
pub(crate) mod pairs;
pub(crate) mod rows;
#[cfg(test)]
mod tests;
