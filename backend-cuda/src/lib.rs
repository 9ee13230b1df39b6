//! NVIDIA devices: kernels in CUDA C++, compiled by NVRTC when a model is loaded, driven through cudarc.
//!
//! Each kernel stands in `kernels/`; the head of its file gives its layout, tile, arithmetic intensity and the roofline
//! it aims at. [`source`] hands out a kernel's source with its shared parts, [`Variant`] the constants that a source
//! is compiled for. [`plan`] divides attention between blocks of threads. [`CudaBackend`] compiles programs.
//!
//! **How far this has come.** The kernels run on the emulator of this workspace, with all its checks, against references
//! in f64, and the backend passes the conformance suite there, under unmodified cudarc. Nothing here has run on a GPU.
//! Activations and KV are bfloat16 or f16. Still to come: a host that is ahead of the device (a launch waits for its
//! step, and samples on the host), mixtures of experts, weights that stay quantized, graphs, several devices.

mod backend;
mod blocks;
mod device;
mod executor;
mod forward;
mod hopper;
mod load;
mod nvrtc;
pub mod plan;
mod products;
mod source;
mod weights;

pub use backend::{CudaBackend, CudaOptions};
pub use blocks::BlockLayout;
pub use hopper::{Hopper, KvMap};
pub use source::{Kernel, Variant, append_shared_bytes, append_slices, source};
