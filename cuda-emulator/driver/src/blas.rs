//! cuBLASLt: descriptors and matrix products.

use std::ffi::{CStr, c_char, c_void};

use cuda_emulator::driver::blas::{Attributes, BlasAnswer, BlasStatus, Kind, MatmulCall};
use cuda_emulator::driver::{Driver, Status};

use crate::state::{Handle, context, library_call, put};

/// cuBLAS 12.9.1.
const VERSION: usize = 120_901;
/// The first words of an algorithm that this library has chosen.
const ALGORITHM: [u64; 8] = [u64::from_le_bytes(*b"emulated"), 0, 0, 0, 0, 0, 0, 0];

/// `cublasLtMatmulHeuristicResult_t`.
#[derive(Debug)]
#[repr(C)]
pub struct Heuristic {
    algorithm: [u64; 8],
    workspace: usize,
    state: u32,
    waves: f32,
    reserved: [i32; 4],
}

fn blas_call(mut f: impl FnMut(&mut Driver) -> BlasAnswer<()>) -> u32 {
    library_call(|driver| {
        if !driver.is_initialized() {
            return Err(BlasStatus::NOT_INITIALIZED);
        }
        f(driver)
    })
}

/// Runs a call on the device of the thread's context.
fn device_call(mut f: impl FnMut(&mut Driver, usize) -> BlasAnswer<()>) -> u32 {
    blas_call(|driver| {
        let device = driver.context_device(context())?;
        match driver.sticky(device) {
            Some(_) => Err(BlasStatus::EXECUTION_FAILED),
            None => f(driver, device),
        }
    })
}

/// Writes a result through a pointer of the program.
unsafe fn give<T>(place: *mut T, value: T) -> BlasAnswer<()> {
    // SAFETY: the same contract.
    unsafe { put(place, value) }.map_err(|_: Status| BlasStatus::INVALID_VALUE)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasLtCreate(handle: *mut Handle) -> u32 {
    device_call(|driver, device| {
        let created = driver.create_blas(device);
        // SAFETY: the program's pointer, null allowed.
        unsafe { give(handle, created) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasLtDestroy(handle: Handle) -> u32 {
    blas_call(|driver| driver.destroy_blas(handle))
}

#[unsafe(no_mangle)]
pub extern "C" fn cublasLtGetVersion() -> usize {
    VERSION
}

#[unsafe(no_mangle)]
pub extern "C" fn cublasLtGetCudartVersion() -> usize {
    12090
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasLtGetProperty(which: u32, value: *mut i32) -> u32 {
    library_call(|_| {
        // Major, minor, patch.
        let part = match which {
            0 => VERSION / 10_000,
            1 => VERSION / 100 % 100,
            2 => VERSION % 100,
            _ => return Err(BlasStatus::INVALID_VALUE),
        };
        // SAFETY: the program's pointer, null allowed.
        unsafe { give(value, part as i32) }
    })
}

fn name(status: u32) -> &'static CStr {
    match BlasStatus(status) {
        BlasStatus::SUCCESS => c"CUBLAS_STATUS_SUCCESS",
        BlasStatus::NOT_INITIALIZED => c"CUBLAS_STATUS_NOT_INITIALIZED",
        BlasStatus::ALLOC_FAILED => c"CUBLAS_STATUS_ALLOC_FAILED",
        BlasStatus::INVALID_VALUE => c"CUBLAS_STATUS_INVALID_VALUE",
        BlasStatus::ARCH_MISMATCH => c"CUBLAS_STATUS_ARCH_MISMATCH",
        BlasStatus::EXECUTION_FAILED => c"CUBLAS_STATUS_EXECUTION_FAILED",
        BlasStatus::INTERNAL_ERROR => c"CUBLAS_STATUS_INTERNAL_ERROR",
        BlasStatus::NOT_SUPPORTED => c"CUBLAS_STATUS_NOT_SUPPORTED",
        _ => c"CUBLAS_STATUS_UNKNOWN",
    }
}

#[unsafe(no_mangle)]
pub extern "C" fn cublasLtGetStatusName(status: u32) -> *const c_char {
    name(status).as_ptr()
}

#[unsafe(no_mangle)]
pub extern "C" fn cublasLtGetStatusString(status: u32) -> *const c_char {
    name(status).as_ptr()
}

/// The logger: nothing is logged; what is refused is written to the standard error anyway.
#[unsafe(no_mangle)]
pub extern "C" fn cublasLtLoggerSetLevel(_level: i32) -> u32 {
    0
}

#[unsafe(no_mangle)]
pub extern "C" fn cublasLtLoggerSetMask(_mask: i32) -> u32 {
    0
}

#[unsafe(no_mangle)]
pub extern "C" fn cublasLtLoggerForceDisable() -> u32 {
    0
}

#[unsafe(no_mangle)]
pub extern "C" fn cublasLtLoggerOpenFile(_path: *const c_char) -> u32 {
    0
}

fn create(place: *mut Handle, attributes: &Attributes) -> u32 {
    blas_call(|driver| {
        let created = driver.create_descriptor(attributes.clone());
        // SAFETY: the program's pointer, null allowed.
        unsafe { give(place, created) }
    })
}

/// A descriptor in the program's own memory: its address is its name.
fn initialize(place: *mut c_void, attributes: &Attributes) -> u32 {
    blas_call(|driver| {
        if place.is_null() {
            return Err(BlasStatus::INVALID_VALUE);
        }
        driver.place_descriptor(place as u64, attributes.clone());
        Ok(())
    })
}

unsafe fn set(descriptor: Handle, kind: Kind, number: u32, from: *const u8, bytes: usize) -> u32 {
    blas_call(|driver| {
        if from.is_null() || bytes > 8 {
            return Err(BlasStatus::INVALID_VALUE);
        }
        // SAFETY: the program vouches for the bytes.
        let value = unsafe { std::slice::from_raw_parts(from, bytes) };
        driver.descriptor(descriptor, kind)?.set(number, value)
    })
}

unsafe fn get(
    descriptor: Handle,
    kind: Kind,
    number: u32,
    to: *mut u8,
    bytes: usize,
    written: *mut usize,
) -> u32 {
    blas_call(|driver| {
        let value = driver.descriptor(descriptor, kind)?.get(number)?;
        if !written.is_null() {
            // SAFETY: the program's pointer.
            unsafe { written.write(value.len()) };
        }
        // Without room only the size is asked for.
        if bytes == 0 && !written.is_null() {
            return Ok(());
        }
        if to.is_null() || bytes != value.len() {
            return Err(BlasStatus::INVALID_VALUE);
        }
        // SAFETY: the program vouches for the room.
        unsafe { to.copy_from_nonoverlapping(value.as_ptr(), value.len()) };
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasLtMatmulDescCreate(
    place: *mut Handle,
    compute_type: u32,
    scale_type: u32,
) -> u32 {
    create(place, &Attributes::matmul(compute_type, scale_type))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasLtMatmulDescInit_internal(
    place: *mut c_void,
    _size: usize,
    compute_type: u32,
    scale_type: u32,
) -> u32 {
    initialize(place, &Attributes::matmul(compute_type, scale_type))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasLtMatmulDescDestroy(descriptor: Handle) -> u32 {
    blas_call(|driver| driver.destroy_descriptor(descriptor, Kind::Matmul))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasLtMatmulDescSetAttribute(
    descriptor: Handle,
    number: u32,
    from: *const u8,
    bytes: usize,
) -> u32 {
    // SAFETY: the same contract.
    unsafe { set(descriptor, Kind::Matmul, number, from, bytes) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasLtMatmulDescGetAttribute(
    descriptor: Handle,
    number: u32,
    to: *mut u8,
    bytes: usize,
    written: *mut usize,
) -> u32 {
    // SAFETY: the same contract.
    unsafe { get(descriptor, Kind::Matmul, number, to, bytes, written) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasLtMatrixLayoutCreate(
    place: *mut Handle,
    element: u32,
    rows: u64,
    columns: u64,
    leading: i64,
) -> u32 {
    create(place, &Attributes::layout(element, rows, columns, leading))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasLtMatrixLayoutInit_internal(
    place: *mut c_void,
    _size: usize,
    element: u32,
    rows: u64,
    columns: u64,
    leading: i64,
) -> u32 {
    initialize(place, &Attributes::layout(element, rows, columns, leading))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasLtMatrixLayoutDestroy(descriptor: Handle) -> u32 {
    blas_call(|driver| driver.destroy_descriptor(descriptor, Kind::Layout))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasLtMatrixLayoutSetAttribute(
    descriptor: Handle,
    number: u32,
    from: *const u8,
    bytes: usize,
) -> u32 {
    // SAFETY: the same contract.
    unsafe { set(descriptor, Kind::Layout, number, from, bytes) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasLtMatrixLayoutGetAttribute(
    descriptor: Handle,
    number: u32,
    to: *mut u8,
    bytes: usize,
    written: *mut usize,
) -> u32 {
    // SAFETY: the same contract.
    unsafe { get(descriptor, Kind::Layout, number, to, bytes, written) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasLtMatmulPreferenceCreate(place: *mut Handle) -> u32 {
    create(place, &Attributes::preference())
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasLtMatmulPreferenceInit_internal(
    place: *mut c_void,
    _size: usize,
) -> u32 {
    initialize(place, &Attributes::preference())
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasLtMatmulPreferenceDestroy(descriptor: Handle) -> u32 {
    blas_call(|driver| driver.destroy_descriptor(descriptor, Kind::Preference))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasLtMatmulPreferenceSetAttribute(
    descriptor: Handle,
    number: u32,
    from: *const u8,
    bytes: usize,
) -> u32 {
    // SAFETY: the same contract.
    unsafe { set(descriptor, Kind::Preference, number, from, bytes) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasLtMatmulPreferenceGetAttribute(
    descriptor: Handle,
    number: u32,
    to: *mut u8,
    bytes: usize,
    written: *mut usize,
) -> u32 {
    // SAFETY: the same contract.
    unsafe { get(descriptor, Kind::Preference, number, to, bytes, written) }
}

fn heuristic() -> Heuristic {
    Heuristic { algorithm: ALGORITHM, workspace: 0, state: 0, waves: 1.0, reserved: [0; 4] }
}

/// There is one algorithm for all products, and it needs no workspace.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasLtMatmulAlgoGetHeuristic(
    handle: Handle,
    description: Handle,
    a: Handle,
    b: Handle,
    c: Handle,
    d: Handle,
    preference: Handle,
    requested: i32,
    results: *mut Heuristic,
    returned: *mut i32,
) -> u32 {
    blas_call(|driver| {
        if requested < 1 || results.is_null() {
            return Err(BlasStatus::INVALID_VALUE);
        }
        // SAFETY: the program's pointer, null allowed.
        unsafe { give(returned, 0)? };
        driver.descriptor(preference, Kind::Preference)?;
        driver.heuristic(handle, description, [a, b, c, d])?;
        // SAFETY: there is room for one result, as for its number.
        unsafe {
            give(results, heuristic())?;
            give(returned, 1)
        }
    })
}

unsafe fn is_known(algorithm: *const [u64; 8]) -> bool {
    // SAFETY: the program vouches for an algorithm that isn't null.
    algorithm.is_null() || unsafe { algorithm.read_unaligned() } == ALGORITHM
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasLtMatmulAlgoCheck(
    handle: Handle,
    description: Handle,
    a: Handle,
    b: Handle,
    c: Handle,
    d: Handle,
    algorithm: *const [u64; 8],
    result: *mut Heuristic,
) -> u32 {
    blas_call(|driver| {
        // SAFETY: the same contract.
        if algorithm.is_null() || !unsafe { is_known(algorithm) } {
            return Err(BlasStatus::INVALID_VALUE);
        }
        driver.heuristic(handle, description, [a, b, c, d])?;
        // SAFETY: the program's pointer, null allowed.
        unsafe { give(result, heuristic()) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasLtMatmul(
    handle: Handle,
    description: Handle,
    alpha: u64,
    a: u64,
    a_layout: Handle,
    b: u64,
    b_layout: Handle,
    beta: u64,
    c: u64,
    c_layout: Handle,
    d: u64,
    d_layout: Handle,
    algorithm: *const [u64; 8],
    workspace: u64,
    workspace_bytes: usize,
    stream: Handle,
) -> u32 {
    device_call(|driver, device| {
        // SAFETY: the same contract.
        if !unsafe { is_known(algorithm) } {
            return Err(BlasStatus::INVALID_VALUE);
        }
        let call = MatmulCall {
            handle,
            description,
            alpha,
            beta,
            operands: [a, b, c, d],
            layouts: [a_layout, b_layout, c_layout, d_layout],
            workspace: (workspace, workspace_bytes as u64),
            stream,
        };
        // SAFETY: the program vouches for its scalars.
        unsafe { driver.matmul(device, &call) }
    })
}
