//! Devices and contexts.

use std::ffi::{CStr, c_char, c_void};

use cuda_emulator::driver::Status;

use crate::state::{Handle, call, context, device_call, early_call, put, set_context};

const NAME: &[u8] = b"CUDA emulator (no GPU)\0";

fn ordinal(device: i32) -> Result<usize, Status> {
    usize::try_from(device).map_err(|_| Status::INVALID_DEVICE)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuInit(flags: u32) -> u32 {
    early_call(|driver| driver.initialize(flags))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDriverGetVersion(version: *mut i32) -> u32 {
    // SAFETY: the program's pointer, null allowed.
    early_call(|driver| unsafe { put(version, driver.version()) })
}

/// Tables of functions that NVIDIA does not document. None is there; NVRTC asks for one whenever it finds a driver, and
/// crashes if the question itself is missing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGetExportTable(table: *mut *const c_void, _id: *const c_void) -> u32 {
    early_call(|_| {
        // SAFETY: the program's pointer, null allowed.
        unsafe { put(table, std::ptr::null())? };
        Err(Status::NOT_FOUND)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetCount(count: *mut i32) -> u32 {
    // SAFETY: the program's pointer, null allowed.
    call(|driver| unsafe { put(count, driver.device_count()) })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGet(device: *mut i32, index: i32) -> u32 {
    call(|driver| {
        let found = driver.device_get(index)?;
        // SAFETY: the program's pointer, null allowed.
        unsafe { put(device, found as i32) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetName(name: *mut c_char, length: i32, device: i32) -> u32 {
    call(|driver| {
        driver.device_get(device)?;
        let room = usize::try_from(length).unwrap_or(0);
        if name.is_null() || room == 0 {
            return Err(Status::INVALID_VALUE);
        }
        let count = NAME.len().min(room);
        // SAFETY: the program vouches for `length` bytes.
        unsafe {
            name.cast::<u8>().copy_from_nonoverlapping(NAME.as_ptr(), count);
            name.add(count - 1).write(0);
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetUuid(uuid: *mut [u8; 16], device: i32) -> u32 {
    call(|driver| {
        let device = driver.device_get(device)?;
        let mut value = *b"cuda-emulator...";
        value[15] = device as u8;
        // SAFETY: the program's pointer, null allowed.
        unsafe { put(uuid, value) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetUuid_v2(uuid: *mut [u8; 16], device: i32) -> u32 {
    // SAFETY: the same contract.
    unsafe { cuDeviceGetUuid(uuid, device) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceTotalMem_v2(bytes: *mut usize, device: i32) -> u32 {
    call(|driver| {
        let (_, total) = driver.memory_info(ordinal(device)?)?;
        // SAFETY: the program's pointer, null allowed.
        unsafe { put(bytes, total as usize) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetAttribute(value: *mut i32, number: u32, device: i32) -> u32 {
    call(|driver| {
        let found = driver.attribute(ordinal(device)?, number)?;
        // SAFETY: the program's pointer, null allowed.
        unsafe { put(value, found) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDevicePrimaryCtxRetain(handle: *mut Handle, device: i32) -> u32 {
    call(|driver| {
        let found = driver.retain_primary(ordinal(device)?)?;
        // SAFETY: the program's pointer, null allowed.
        unsafe { put(handle, found) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDevicePrimaryCtxRelease_v2(device: i32) -> u32 {
    call(|driver| driver.release_primary(ordinal(device)?))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDevicePrimaryCtxRelease(device: i32) -> u32 {
    // SAFETY: the same contract.
    unsafe { cuDevicePrimaryCtxRelease_v2(device) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxCreate_v2(handle: *mut Handle, _flags: u32, device: i32) -> u32 {
    call(|driver| {
        let created = driver.create_context(ordinal(device)?)?;
        set_context(created);
        // SAFETY: the program's pointer, null allowed.
        unsafe { put(handle, created) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxCreate_v4(
    handle: *mut Handle,
    _parameters: *const u8,
    flags: u32,
    device: i32,
) -> u32 {
    // SAFETY: the same contract.
    unsafe { cuCtxCreate_v2(handle, flags, device) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxDestroy_v2(handle: Handle) -> u32 {
    call(|driver| {
        driver.destroy_context(handle)?;
        if context() == handle {
            set_context(0);
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxGetCurrent(handle: *mut Handle) -> u32 {
    // SAFETY: the program's pointer, null allowed.
    call(|_| unsafe { put(handle, context()) })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxSetCurrent(handle: Handle) -> u32 {
    call(|driver| {
        if handle != 0 {
            driver.context_device(handle)?;
        }
        set_context(handle);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxGetDevice(device: *mut i32) -> u32 {
    // SAFETY: the program's pointer, null allowed.
    device_call(|_, current| unsafe { put(device, current as i32) })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxSynchronize() -> u32 {
    device_call(|driver, device| driver.synchronize(device))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxGetStreamPriorityRange(least: *mut i32, greatest: *mut i32) -> u32 {
    device_call(|_, _| {
        // Both may be null.
        for place in [least, greatest] {
            if !place.is_null() {
                // SAFETY: not null, and the program's pointer.
                unsafe { place.write(0) };
            }
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxSetCacheConfig(_config: u32) -> u32 {
    device_call(|_, _| Ok(()))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxGetCacheConfig(config: *mut u32) -> u32 {
    // SAFETY: the program's pointer, null allowed.
    device_call(|_, _| unsafe { put(config, 0) })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxSetFlags(_flags: u32) -> u32 {
    device_call(|_, _| Ok(()))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxGetLimit(value: *mut usize, number: u32) -> u32 {
    device_call(|driver, device| {
        let found = driver.limit(device, number)?;
        // SAFETY: the program's pointer, null allowed.
        unsafe { put(value, found) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxSetLimit(number: u32, value: usize) -> u32 {
    device_call(|driver, device| driver.set_limit(device, number, value))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceCanAccessPeer(can: *mut i32, device: i32, peer: i32) -> u32 {
    call(|driver| {
        let answer = driver.can_access_peer(ordinal(device)?, ordinal(peer)?)?;
        // SAFETY: the program's pointer, null allowed.
        unsafe { put(can, i32::from(answer)) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetP2PAttribute(
    value: *mut i32,
    number: u32,
    device: i32,
    peer: i32,
) -> u32 {
    call(|driver| {
        let access = driver.can_access_peer(ordinal(device)?, ordinal(peer)?)?;
        if !access {
            return Err(Status::INVALID_DEVICE);
        }
        let found = match number {
            // Rank of the link; access; atomics; arrays.
            1 => 0,
            2 | 3 => 1,
            4 => 0,
            _ => return Err(Status::INVALID_VALUE),
        };
        // SAFETY: the program's pointer, null allowed.
        unsafe { put(value, found) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxEnablePeerAccess(peer: Handle, flags: u32) -> u32 {
    device_call(|driver, device| {
        if flags != 0 {
            return Err(Status::INVALID_VALUE);
        }
        let peer = driver.context_device(peer)?;
        driver.enable_peer(device, peer)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxDisablePeerAccess(peer: Handle) -> u32 {
    device_call(|driver, device| {
        let peer = driver.context_device(peer)?;
        driver.disable_peer(device, peer)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuProfilerStart() -> u32 {
    device_call(|_, _| Ok(()))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuProfilerStop() -> u32 {
    device_call(|_, _| Ok(()))
}

/// Writes a constant string, or null and an error for codes that nobody knows.
unsafe fn text(place: *mut *const c_char, found: Option<&'static CStr>) -> u32 {
    early_call(|_| {
        let pointer = found.map_or(std::ptr::null(), CStr::as_ptr);
        // SAFETY: the program's pointer, null allowed.
        unsafe { put(place, pointer)? };
        found.map(|_| ()).ok_or(Status::INVALID_VALUE)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGetErrorName(status: u32, place: *mut *const c_char) -> u32 {
    // SAFETY: the same contract.
    unsafe { text(place, Status(status).name()) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGetErrorString(status: u32, place: *mut *const c_char) -> u32 {
    // SAFETY: the same contract.
    unsafe { text(place, Status(status).text()) }
}
