//! Kernels for NVIDIA devices, and the host code that plans their work.
//!
//! Each kernel is CUDA C++ in `kernels/`, compiled by NVRTC; the head of its file gives its layout, tile, arithmetic
//! intensity and the roofline it aims at. [`source`] hands out a kernel's source with its shared parts,
//! [`Variant`] the constants that a source is compiled for. [`plan`] divides attention between blocks of threads.
//!
//! **How far this has come.** The kernels are compiled by NVRTC and run on the emulator of this workspace, with all its
//! checks, against references in f64. No kernel has run on a GPU. There is no [`Backend`](backend_api::Backend)
//! yet: the engine can't use these kernels.

pub mod plan;
mod source;

pub use source::{Kernel, Variant, append_shared_bytes, source};
