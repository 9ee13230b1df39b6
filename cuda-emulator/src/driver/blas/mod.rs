//! The stand-in for cuBLASLt: matrix products on the host, with the declared types and layouts.
//!
//! A product is checked when it is queued, against the combinations of types, orders and epilogues
//! that the cuBLASLt documentation lists, and done when its stream gets there: operands are then
//! checked against the allocations of the device, against what was never written, and against each
//! other. Products and sums of `CUBLAS_COMPUTE_32F` are made in f32, in 16 interleaved partial sums;
//! `FAST_TF32`, `FAST_16F` and `FAST_16BF` round the operands first; `COMPUTE_16F` rounds the sum to
//! f16 once; `COMPUTE_64F` sums in f64 and `COMPUTE_32I` in i32. A device sums in other orders.

mod attributes;
mod element;
mod matmul;
mod matrix;
mod numbers;
mod plan;

use std::collections::HashMap;

use super::Driver;
use super::status::Status;
use super::work::Work;
pub use attributes::{Attributes, Kind};
pub(crate) use element::Element;
pub(crate) use matmul::Matmul;
use plan::{Layouts, plan};

/// A result code of cuBLAS, as `cublas_api.h` numbers them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BlasStatus(pub u32);

#[allow(missing_docs)] // The names are those of the header.
impl BlasStatus {
    pub const SUCCESS: Self = Self(0);
    pub const NOT_INITIALIZED: Self = Self(1);
    pub const ALLOC_FAILED: Self = Self(3);
    pub const INVALID_VALUE: Self = Self(7);
    pub const ARCH_MISMATCH: Self = Self(8);
    pub const EXECUTION_FAILED: Self = Self(13);
    pub const INTERNAL_ERROR: Self = Self(14);
    pub const NOT_SUPPORTED: Self = Self(15);
}

impl From<Status> for BlasStatus {
    fn from(status: Status) -> Self {
        match status {
            Status::OUT_OF_MEMORY => Self::ALLOC_FAILED,
            Status::NOT_INITIALIZED | Status::INVALID_CONTEXT => Self::NOT_INITIALIZED,
            Status::INVALID_VALUE | Status::INVALID_HANDLE => Self::INVALID_VALUE,
            _ => Self::EXECUTION_FAILED,
        }
    }
}

/// What a call gives.
pub type BlasAnswer<T> = Result<T, BlasStatus>;

/// Handles and descriptors that the program has made.
#[derive(Debug, Default)]
pub(super) struct Blas {
    /// Library handles, with their devices.
    handles: HashMap<u64, usize>,
    descriptors: HashMap<u64, Attributes>,
}

/// The scalars and addresses of a product, as the program gives them.
#[derive(Debug, Clone, Copy)]
pub struct MatmulCall {
    /// The library handle.
    pub handle: u64,
    /// The matmul descriptor.
    pub description: u64,
    /// Host or device address, as the pointer mode says.
    pub alpha: u64,
    /// Host or device address, as the pointer mode says.
    pub beta: u64,
    /// Addresses of A, B, C and D.
    pub operands: [u64; 4],
    /// Their layouts.
    pub layouts: [u64; 4],
    /// Device memory for the library's own use, and its size.
    pub workspace: (u64, u64),
    /// The stream.
    pub stream: u64,
}

impl Driver {
    /// `cublasLtCreate`.
    pub fn create_blas(&mut self, device: usize) -> u64 {
        let handle = self.handle();
        self.blas.handles.insert(handle, device);
        handle
    }

    /// `cublasLtDestroy`.
    ///
    /// # Errors
    ///
    /// An unknown handle.
    pub fn destroy_blas(&mut self, handle: u64) -> BlasAnswer<()> {
        self.blas.handles.remove(&handle).map(|_| ()).ok_or(BlasStatus::NOT_INITIALIZED)
    }

    /// A descriptor of the library's own.
    pub fn create_descriptor(&mut self, attributes: Attributes) -> u64 {
        let handle = self.handle();
        self.blas.descriptors.insert(handle, attributes);
        handle
    }

    /// A descriptor in memory of the program, known by its address.
    pub fn place_descriptor(&mut self, address: u64, attributes: Attributes) {
        self.blas.descriptors.insert(address, attributes);
    }

    /// A descriptor of a kind.
    ///
    /// # Errors
    ///
    /// There is none, or it is of another kind.
    pub fn descriptor(&mut self, handle: u64, kind: Kind) -> BlasAnswer<&mut Attributes> {
        let found = self.blas.descriptors.get_mut(&handle);
        found.filter(|one| one.kind() == kind).ok_or(BlasStatus::INVALID_VALUE)
    }

    /// Destroys a descriptor.
    ///
    /// # Errors
    ///
    /// There is none, or it is of another kind.
    pub fn destroy_descriptor(&mut self, handle: u64, kind: Kind) -> BlasAnswer<()> {
        self.descriptor(handle, kind)?;
        self.blas.descriptors.remove(&handle);
        Ok(())
    }

    fn layouts(&mut self, description: u64, layouts: [u64; 4]) -> BlasAnswer<Layouts> {
        let description = self.descriptor(description, Kind::Matmul)?.clone();
        let mut all = Vec::with_capacity(4);
        for layout in layouts {
            all.push(self.descriptor(layout, Kind::Layout)?.clone());
        }
        Layouts::read(&description, &all)
    }

    /// `cublasLtMatmulAlgoGetHeuristic`: whether a product can be made.
    ///
    /// # Errors
    ///
    /// What is wrong with the descriptors, or `NOT_SUPPORTED`.
    pub fn heuristic(
        &mut self,
        handle: u64,
        description: u64,
        layouts: [u64; 4],
    ) -> BlasAnswer<()> {
        self.known_blas(handle)?;
        self.layouts(description, layouts)?.supported(self.config.capability).map_err(|no| {
            self.advise("cublasLtMatmulAlgoGetHeuristic", &no);
            BlasStatus::NOT_SUPPORTED
        })
    }

    fn known_blas(&self, handle: u64) -> BlasAnswer<usize> {
        self.blas.handles.get(&handle).copied().ok_or(BlasStatus::NOT_INITIALIZED)
    }

    /// `cublasLtMatmul`.
    ///
    /// # Safety
    ///
    /// In the host pointer modes `alpha` and `beta` must be readable for the scale type.
    ///
    /// # Errors
    ///
    /// `INVALID_VALUE` for what is inconsistent, `NOT_SUPPORTED` for what cuBLASLt doesn't have.
    pub unsafe fn matmul(&mut self, device: usize, call: &MatmulCall) -> BlasAnswer<()> {
        let own = self.known_blas(call.handle)?;
        if own != device {
            self.advise("cublasLtMatmul", "the handle was created for another device");
            return Err(BlasStatus::INVALID_VALUE);
        }
        let layouts = self.layouts(call.description, call.layouts)?;
        layouts.supported(self.config.capability).map_err(|no| {
            self.advise("cublasLtMatmul", &no);
            BlasStatus::NOT_SUPPORTED
        })?;
        // SAFETY: the caller vouches for the scalars.
        let matmul = unsafe { plan(&layouts, call) }.inspect_err(|_| {
            self.advise("cublasLtMatmul", "an address is missing or not aligned to its elements");
        })?;
        let stream = self.stream(device, call.stream)?;
        Ok(self.push(stream, Work::Matmul(std::sync::Arc::new(matmul)))?)
    }
}
