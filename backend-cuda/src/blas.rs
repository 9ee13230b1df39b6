//! Dense products of many rows, by cuBLASLt: `out[row][column] = sum over k of input[row][k] * weight[column][k]`.
//!
//! cuBLASLt counts columns first: a row-major matrix is its transpose there. So the product is `weight^T * input`, with the
//! weight transposed once more. The algorithm for a shape is asked for once and kept.
//!
//! The library is loaded here, not by cudarc, which knows the names of one version and panics where it finds none.

use std::collections::HashMap;
use std::ffi::{OsString, c_int, c_void};
use std::fmt;
use std::ptr;

use backend_api::BackendError;
use libloading::Library;

use crate::device::Device;
use crate::driver::said;

type Handle = *mut c_void;
type Status = c_int;

/// Where the loader finds the library, newest first.
const NAMES: [&str; 4] =
    ["libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so", "cublasLt64_12.dll"];
/// What devices of compute capability 9.0 want, and more than others do.
const MOST_WORKSPACE: u64 = 32 << 20;
/// The workspace's share of the memory that is free.
const WORKSPACE_SHARE: u64 = 64;

// Numbers of cublasLt.h and library_types.h.
const R_32F: c_int = 0;
const R_16F: c_int = 2;
const R_16BF: c_int = 14;
const COMPUTE_32F: c_int = 68;
const TRANSPOSE_A: c_int = 3;
const EPILOGUE: c_int = 7;
const BIAS_POINTER: c_int = 8;
const TRANSPOSED: c_int = 1;
const EPILOGUE_BIAS: c_int = 4;
const MOST_WORKSPACE_BYTES: c_int = 1;

/// `cublasLtMatmulHeuristicResult_t`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Heuristic {
    algorithm: [u64; 8],
    workspace: usize,
    state: Status,
    waves: f32,
    reserved: [c_int; 4],
}

/// The functions that are used.
struct Functions {
    create: unsafe extern "C" fn(*mut Handle) -> Status,
    destroy: unsafe extern "C" fn(Handle) -> Status,
    product_create: unsafe extern "C" fn(*mut Handle, c_int, c_int) -> Status,
    product_set: unsafe extern "C" fn(Handle, c_int, *const c_void, usize) -> Status,
    product_destroy: unsafe extern "C" fn(Handle) -> Status,
    layout_create: unsafe extern "C" fn(*mut Handle, c_int, u64, u64, i64) -> Status,
    layout_destroy: unsafe extern "C" fn(Handle) -> Status,
    preference_create: unsafe extern "C" fn(*mut Handle) -> Status,
    preference_set: unsafe extern "C" fn(Handle, c_int, *const c_void, usize) -> Status,
    preference_destroy: unsafe extern "C" fn(Handle) -> Status,
    heuristic: unsafe extern "C" fn(
        Handle,
        Handle,
        Handle,
        Handle,
        Handle,
        Handle,
        Handle,
        c_int,
        *mut Heuristic,
        *mut c_int,
    ) -> Status,
    matmul: unsafe extern "C" fn(
        Handle,
        Handle,
        *const c_void,
        u64,
        Handle,
        u64,
        Handle,
        *const c_void,
        u64,
        Handle,
        u64,
        Handle,
        *const [u64; 8],
        u64,
        usize,
        Handle,
    ) -> Status,
}

/// The library.
pub(crate) struct BlasLibrary {
    functions: Functions,
    /// Keeps the functions loaded.
    _library: Library,
}

impl BlasLibrary {
    /// Loads the library at `path`, or where the system keeps it.
    ///
    /// # Errors
    ///
    /// [`BackendError::Device`], which says how to get the library.
    pub(crate) fn load(path: Option<OsString>) -> Result<Self, BackendError> {
        let names = path.map_or_else(|| NAMES.map(OsString::from).to_vec(), |path| vec![path]);
        let mut reasons = Vec::new();
        for name in names {
            match Self::open(&name) {
                Ok(library) => return Ok(library),
                Err(error) => reasons.push(said(&error)),
            }
        }
        Err(BackendError::Device {
            context: "loading cuBLASLt (from the CUDA toolkit, or PyPI's nvidia-cublas-cu12)"
                .to_owned(),
            message: reasons.join("; "),
        })
    }

    fn open(name: &OsString) -> Result<Self, libloading::Error> {
        // SAFETY: cuBLASLt has no initializers that break rules of this program.
        let library = unsafe { Library::new(name)? };
        // SAFETY: the signatures are those of cublasLt.h, with pointers of the device as numbers, and the library is kept.
        let functions = unsafe {
            Functions {
                create: *library.get(b"cublasLtCreate\0")?,
                destroy: *library.get(b"cublasLtDestroy\0")?,
                product_create: *library.get(b"cublasLtMatmulDescCreate\0")?,
                product_set: *library.get(b"cublasLtMatmulDescSetAttribute\0")?,
                product_destroy: *library.get(b"cublasLtMatmulDescDestroy\0")?,
                layout_create: *library.get(b"cublasLtMatrixLayoutCreate\0")?,
                layout_destroy: *library.get(b"cublasLtMatrixLayoutDestroy\0")?,
                preference_create: *library.get(b"cublasLtMatmulPreferenceCreate\0")?,
                preference_set: *library.get(b"cublasLtMatmulPreferenceSetAttribute\0")?,
                preference_destroy: *library.get(b"cublasLtMatmulPreferenceDestroy\0")?,
                heuristic: *library.get(b"cublasLtMatmulAlgoGetHeuristic\0")?,
                matmul: *library.get(b"cublasLtMatmul\0")?,
            }
        };
        Ok(Self { functions, _library: library })
    }
}

impl fmt::Debug for BlasLibrary {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("BlasLibrary").finish_non_exhaustive()
    }
}

/// What a product is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct ProductShape {
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    pub(crate) inner: usize,
    /// The result in f32; otherwise in the format of the operands.
    pub(crate) wide: bool,
    pub(crate) has_bias: bool,
}

/// Addresses of a product's operands.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Operands {
    pub(crate) out: u64,
    pub(crate) input: u64,
    pub(crate) weight: u64,
    /// 16-bit numbers, one a column; not read unless the shape has a bias.
    pub(crate) bias: u64,
}

/// A shape's descriptors and algorithm.
struct Plan {
    product: Handle,
    /// Of weight, input and result.
    layouts: [Handle; 3],
    algorithm: [u64; 8],
    workspace: usize,
}

/// Products on one device.
pub(crate) struct Blas {
    library: std::sync::Arc<BlasLibrary>,
    handle: Handle,
    half: bool,
    workspace: u64,
    workspace_bytes: usize,
    /// None for shapes that the library has no algorithm for.
    plans: HashMap<ProductShape, Option<Plan>>,
}

// SAFETY: handles and descriptors belong to no thread; the device is bound to the thread that calls.
unsafe impl Send for Blas {}

impl Blas {
    /// A handle on a device, with a workspace there.
    pub(crate) fn new(
        library: &std::sync::Arc<BlasLibrary>,
        device: &mut Device,
        free: u64,
        half: bool,
    ) -> Result<Self, BackendError> {
        let workspace_bytes = (free / WORKSPACE_SHARE).clamp(1, MOST_WORKSPACE) as usize;
        let workspace = device.allocate(workspace_bytes)?;
        device.bound()?;
        let mut handle = ptr::null_mut();
        // SAFETY: writes a handle.
        check("cublasLtCreate", unsafe { (library.functions.create)(&raw mut handle) })?;
        let library = std::sync::Arc::clone(library);
        Ok(Self { library, handle, half, workspace, workspace_bytes, plans: HashMap::new() })
    }

    /// Queues a product; false if the library has no algorithm for it.
    ///
    /// # Errors
    ///
    /// The library's.
    pub(crate) fn multiply(
        &mut self,
        device: &Device,
        shape: ProductShape,
        operands: &Operands,
    ) -> Result<bool, BackendError> {
        let stream = device.bound()?.cu_stream();
        if !self.plans.contains_key(&shape) {
            let plan = self.plan(&shape)?;
            self.plans.insert(shape, plan);
        }
        let Some(Some(plan)) = self.plans.get(&shape) else { return Ok(false) };
        let functions = &self.library.functions;
        if shape.has_bias {
            self.set(plan.product, BIAS_POINTER, &operands.bias)?;
        }
        let (one, zero) = (1.0f32, 0.0f32);
        let [weight, input, out] = plan.layouts;
        // SAFETY: handle and descriptors are live, the addresses are of memory with the shapes that the layouts say, the
        // scalars are f32 on the host, and the workspace is as large as said.
        let status = unsafe {
            (functions.matmul)(
                self.handle,
                plan.product,
                (&raw const one).cast(),
                operands.weight,
                weight,
                operands.input,
                input,
                (&raw const zero).cast(),
                operands.out,
                out,
                operands.out,
                out,
                &raw const plan.algorithm,
                self.workspace,
                plan.workspace,
                stream.cast(),
            )
        };
        check("cublasLtMatmul", status)?;
        Ok(true)
    }

    fn set<T>(&self, product: Handle, attribute: c_int, value: &T) -> Result<(), BackendError> {
        // SAFETY: the descriptor is live, and the value has the size that is said.
        let status = unsafe {
            (self.library.functions.product_set)(
                product,
                attribute,
                ptr::from_ref(value).cast(),
                size_of::<T>(),
            )
        };
        check("cublasLtMatmulDescSetAttribute", status)
    }

    fn plan(&self, shape: &ProductShape) -> Result<Option<Plan>, BackendError> {
        let functions = &self.library.functions;
        let narrow = if self.half { R_16F } else { R_16BF };
        let of_result = if shape.wide { R_32F } else { narrow };
        let mut plan = Plan {
            product: ptr::null_mut(),
            layouts: [ptr::null_mut(); 3],
            algorithm: [0; 8],
            workspace: 0,
        };
        let built = (|| {
            // SAFETY: writes a descriptor.
            let status =
                unsafe { (functions.product_create)(&raw mut plan.product, COMPUTE_32F, R_32F) };
            check("cublasLtMatmulDescCreate", status)?;
            self.set(plan.product, TRANSPOSE_A, &TRANSPOSED)?;
            if shape.has_bias {
                self.set(plan.product, EPILOGUE, &EPILOGUE_BIAS)?;
            }
            let [rows, columns, inner] =
                [shape.rows, shape.columns, shape.inner].map(|count| count as u64);
            let of_matrices =
                [(narrow, inner, columns), (narrow, inner, rows), (of_result, columns, rows)];
            for (layout, (format, height, width)) in plan.layouts.iter_mut().zip(of_matrices) {
                // SAFETY: writes a descriptor.
                let status = unsafe {
                    (functions.layout_create)(layout, format, height, width, height as i64)
                };
                check("cublasLtMatrixLayoutCreate", status)?;
            }
            self.choose(&mut plan)
        })();
        match built {
            Ok(true) => Ok(Some(plan)),
            refused => {
                self.release(&plan);
                refused.map(|_| None)
            }
        }
    }

    /// Asks for the algorithm; false if there is none.
    fn choose(&self, plan: &mut Plan) -> Result<bool, BackendError> {
        let functions = &self.library.functions;
        let mut preference = ptr::null_mut();
        // SAFETY: writes a descriptor.
        check("cublasLtMatmulPreferenceCreate", unsafe {
            (functions.preference_create)(&raw mut preference)
        })?;
        let mut found =
            Heuristic { algorithm: [0; 8], workspace: 0, state: 0, waves: 0.0, reserved: [0; 4] };
        let mut count = 0;
        let [weight, input, out] = plan.layouts;
        // SAFETY: all descriptors are live; one result is asked for, and there is room for it.
        let (set, status) = unsafe {
            let bytes = &raw const self.workspace_bytes;
            let set = (functions.preference_set)(
                preference,
                MOST_WORKSPACE_BYTES,
                bytes.cast(),
                size_of::<usize>(),
            );
            let status = (functions.heuristic)(
                self.handle,
                plan.product,
                weight,
                input,
                out,
                out,
                preference,
                1,
                &raw mut found,
                &raw mut count,
            );
            (functions.preference_destroy)(preference);
            (set, status)
        };
        check("cublasLtMatmulPreferenceSetAttribute", set)?;
        // Shapes that cuBLASLt does not take are left to a kernel; anything else is trouble of the device or the library.
        if !matches!(status, INVALID_VALUE | NOT_SUPPORTED) {
            check("cublasLtMatmulAlgoGetHeuristic", status)?;
        }
        (plan.algorithm, plan.workspace) = (found.algorithm, found.workspace);
        Ok(status == 0 && found.state == 0 && count > 0 && found.workspace <= self.workspace_bytes)
    }

    fn release(&self, plan: &Plan) {
        let functions = &self.library.functions;
        // SAFETY: descriptors that were made, each destroyed once; null ones were not made.
        unsafe {
            for &layout in plan.layouts.iter().filter(|layout| !layout.is_null()) {
                (functions.layout_destroy)(layout);
            }
            if !plan.product.is_null() {
                (functions.product_destroy)(plan.product);
            }
        }
    }
}

impl Drop for Blas {
    fn drop(&mut self) {
        for plan in self.plans.values().flatten() {
            self.release(plan);
        }
        // SAFETY: made once, destroyed once.
        unsafe { (self.library.functions.destroy)(self.handle) };
    }
}

impl fmt::Debug for Blas {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (shapes, workspace) = (self.plans.len(), self.workspace_bytes);
        formatter
            .debug_struct("Blas")
            .field("shapes", &shapes)
            .field("workspace", &workspace)
            .finish_non_exhaustive()
    }
}

const INVALID_VALUE: Status = 7;
const NOT_SUPPORTED: Status = 15;

fn check(call: &str, status: Status) -> Result<(), BackendError> {
    if status == 0 {
        return Ok(());
    }
    Err(BackendError::Device { context: call.to_owned(), message: format!("status {status}") })
}
