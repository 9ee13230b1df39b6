//! The kernels, each written once against [`Isa`](crate::isa::Isa).

pub(crate) mod attention;
pub(crate) mod bf16;
pub(crate) mod blocks;
pub(crate) mod composed;
pub(crate) mod experts;
pub(crate) mod int8;
pub(crate) mod kv;
pub(crate) mod linear;
#[cfg(test)]
mod linear_tests;
mod math;
pub(crate) mod matrix;
pub(crate) mod panels;
pub(crate) mod rope;
pub(crate) mod rows;
pub(crate) mod scales;
