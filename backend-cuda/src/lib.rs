//! NVIDIA devices: kernels in CUDA C++, compiled by NVRTC when a model is loaded, driven through cudarc.
//!
//! Each kernel stands in `kernels/`; the head of its file gives its layout, tile, arithmetic intensity and the roofline
//! it aims at. [`source`] hands out a kernel's source with its shared parts, [`Variant`] the constants that a source
//! is compiled for. [`plan`] divides attention between blocks of threads. [`CudaBackend`] compiles programs.
//!
//! **How far this has come.** The kernels run on the emulator of this workspace, with all its checks, against references
//! in f64, and the backend passes the conformance suite there, under unmodified cudarc. Nothing here has run on a GPU.
//! Activations and KV are bfloat16 or f16. A launch returns while its step runs; where single tokens are wanted and nothing
//! else, the device samples them, and the next launch need not wait. Still to come: penalties, masks and log probabilities
//! on the device, graphs, several devices.

mod backend;
mod blas;
mod blocks;
mod compiler;
mod device;
mod driver;
mod executor;
mod forward;
mod hopper;
mod load;
mod nvrtc;
pub mod plan;
mod products;
mod read_back;
mod sampling;
mod slot;
mod source;
mod step;
mod weights;

pub use backend::{CudaBackend, CudaOptions};
pub use blocks::BlockLayout;
pub use hopper::{Hopper, KvMap};
pub use source::{Kernel, Variant, append_shared_bytes, append_slices, source};
