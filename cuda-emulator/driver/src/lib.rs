//! A library found in place of `libcuda.so.1`: the part of the CUDA driver interface that
//! `cudarc`'s safe layer calls, running PTX on the CPU.
//!
//! Every function here checks its pointers and hands over to [`cuda_emulator::driver::Driver`].
//! What the checks find is written to the standard error, or to the file that
//! `CUDA_EMULATOR_REPORTS` names.
// The interface is that of `cuda.h`; its names and rules are documented there.
#![allow(
    non_snake_case,
    clippy::missing_safety_doc,
    clippy::too_many_arguments,
    missing_docs,
    unreachable_pub
)]

mod blas;
mod device;
mod launch;
mod memory;
mod module;
mod nccl;
mod pool;
mod state;
mod stream;
