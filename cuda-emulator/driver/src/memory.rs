//! Memory of devices and of the host.

use cuda_emulator::driver::{HostAddress, Status};

use crate::state::{Handle, call, device_call, put};

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize) -> u32 {
    device_call(|driver, device| {
        let (left, all) = driver.memory_info(device)?;
        // SAFETY: the program's pointers, null allowed.
        unsafe {
            put(free, left as usize)?;
            put(total, all as usize)
        }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemAlloc_v2(address: *mut u64, bytes: usize) -> u32 {
    device_call(|driver, device| {
        let allocated = driver.allocate(device, bytes as u64)?;
        // SAFETY: the program's pointer, null allowed.
        unsafe { put(address, allocated) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemAllocAsync(address: *mut u64, bytes: usize, stream: Handle) -> u32 {
    device_call(|driver, device| {
        let stream = driver.stream(device, stream)?;
        let allocated = driver.allocate_async(stream, bytes as u64)?;
        // SAFETY: the program's pointer, null allowed.
        unsafe { put(address, allocated) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemAllocFromPoolAsync(
    address: *mut u64,
    bytes: usize,
    _pool: Handle,
    stream: Handle,
) -> u32 {
    // SAFETY: the same contract.
    unsafe { cuMemAllocAsync(address, bytes, stream) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemFree_v2(address: u64) -> u32 {
    device_call(|driver, _| driver.free(address))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemFreeAsync(address: u64, stream: Handle) -> u32 {
    device_call(|driver, device| {
        let stream = driver.stream(device, stream)?;
        driver.free_async(stream, address)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemHostAlloc(address: *mut usize, bytes: usize, _flags: u32) -> u32 {
    device_call(|driver, _| {
        let allocated = driver.allocate_host(bytes)?;
        // SAFETY: the program's pointer, null allowed.
        unsafe { put(address, allocated.0) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemAllocHost_v2(address: *mut usize, bytes: usize) -> u32 {
    // SAFETY: the same contract.
    unsafe { cuMemHostAlloc(address, bytes, 0) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemFreeHost(address: usize) -> u32 {
    device_call(|driver, _| driver.free_host(HostAddress(address)))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyHtoD_v2(to: u64, from: usize, bytes: usize) -> u32 {
    device_call(|driver, device| {
        if from == 0 && bytes > 0 {
            return Err(Status::INVALID_VALUE);
        }
        // SAFETY: the program vouches for the source.
        unsafe { driver.upload(device, to, HostAddress(from), bytes as u64) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyHtoDAsync_v2(
    to: u64,
    from: usize,
    bytes: usize,
    stream: Handle,
) -> u32 {
    device_call(|driver, device| {
        if from == 0 && bytes > 0 {
            return Err(Status::INVALID_VALUE);
        }
        let stream = driver.stream(device, stream)?;
        // SAFETY: the program vouches for the source.
        unsafe { driver.upload_async(stream, to, HostAddress(from), bytes as u64) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyDtoH_v2(to: usize, from: u64, bytes: usize) -> u32 {
    device_call(|driver, device| {
        if to == 0 && bytes > 0 {
            return Err(Status::INVALID_VALUE);
        }
        // SAFETY: the program vouches for the destination.
        unsafe { driver.download(device, HostAddress(to), from, bytes as u64) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyDtoHAsync_v2(
    to: usize,
    from: u64,
    bytes: usize,
    stream: Handle,
) -> u32 {
    device_call(|driver, device| {
        if to == 0 && bytes > 0 {
            return Err(Status::INVALID_VALUE);
        }
        let stream = driver.stream(device, stream)?;
        // SAFETY: the program vouches for the destination.
        unsafe { driver.download_async(stream, HostAddress(to), from, bytes as u64) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyDtoDAsync_v2(
    to: u64,
    from: u64,
    bytes: usize,
    stream: Handle,
) -> u32 {
    device_call(|driver, device| {
        let stream = driver.stream(device, stream)?;
        driver.copy_async(stream, to, from, bytes as u64)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyDtoD_v2(to: u64, from: u64, bytes: usize) -> u32 {
    // SAFETY: the same contract; the copy is ordered by the default stream.
    unsafe { cuMemcpyDtoDAsync_v2(to, from, bytes, 0) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyPeerAsync(
    to: u64,
    _to_context: Handle,
    from: u64,
    _from_context: Handle,
    bytes: usize,
    stream: Handle,
) -> u32 {
    // SAFETY: the same contract: addresses tell their devices.
    unsafe { cuMemcpyDtoDAsync_v2(to, from, bytes, stream) }
}

fn fill(to: u64, pattern: &[u8], count: usize, stream: Handle) -> u32 {
    device_call(|driver, device| {
        let stream = driver.stream(device, stream)?;
        driver.fill_async(stream, to, pattern, count as u64)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemsetD8Async(to: u64, value: u8, count: usize, stream: Handle) -> u32 {
    fill(to, &[value], count, stream)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemsetD8_v2(to: u64, value: u8, count: usize) -> u32 {
    fill(to, &[value], count, 0)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemsetD16Async(
    to: u64,
    value: u16,
    count: usize,
    stream: Handle,
) -> u32 {
    fill(to, &value.to_le_bytes(), count, stream)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemsetD32Async(
    to: u64,
    value: u32,
    count: usize,
    stream: Handle,
) -> u32 {
    fill(to, &value.to_le_bytes(), count, stream)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemsetD32_v2(to: u64, value: u32, count: usize) -> u32 {
    fill(to, &value.to_le_bytes(), count, 0)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemGetAddressRange_v2(
    base: *mut u64,
    size: *mut usize,
    address: u64,
) -> u32 {
    device_call(|driver, _| {
        let (beginning, bytes, _) = driver.allocation(address)?;
        // SAFETY: the program's pointers; either may be null.
        unsafe {
            if !base.is_null() {
                base.write(beginning);
            }
            if !size.is_null() {
                size.write(bytes as usize);
            }
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemPoolCreate(pool: *mut Handle, _properties: *const u8) -> u32 {
    call(|driver| {
        let created = driver.create_pool();
        // SAFETY: the program's pointer, null allowed.
        unsafe { put(pool, created) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemPoolDestroy(pool: Handle) -> u32 {
    call(|driver| driver.destroy_pool(pool))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemPoolTrimTo(pool: Handle, _keep: usize) -> u32 {
    call(|driver| driver.pool_attribute(pool, 0).map(|_| ()))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemPoolSetAttribute(
    pool: Handle,
    number: u32,
    value: *const u64,
) -> u32 {
    call(|driver| {
        let place = driver.pool_attribute(pool, number)?;
        if value.is_null() {
            return Err(Status::INVALID_VALUE);
        }
        // The first three attributes are 32 bits wide.
        // SAFETY: not null, and of the width that the attribute has.
        *place = unsafe {
            if number <= 3 { u64::from(value.cast::<u32>().read()) } else { value.read() }
        };
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemPoolGetAttribute(pool: Handle, number: u32, value: *mut u64) -> u32 {
    call(|driver| {
        let found = *driver.pool_attribute(pool, number)?;
        // SAFETY: the program's pointer, of the width that the attribute has.
        unsafe {
            if number <= 3 { put(value.cast::<u32>(), found as u32) } else { put(value, found) }
        }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetDefaultMemPool(pool: *mut Handle, device: i32) -> u32 {
    call(|driver| {
        let device = driver.device_get(device)?;
        let found = driver.default_pool(device)?;
        // SAFETY: the program's pointer, null allowed.
        unsafe { put(pool, found) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetMemPool(pool: *mut Handle, device: i32) -> u32 {
    // SAFETY: the same contract.
    unsafe { cuDeviceGetDefaultMemPool(pool, device) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceSetMemPool(device: i32, pool: Handle) -> u32 {
    call(|driver| {
        driver.device_get(device)?;
        driver.pool_attribute(pool, 0).map(|_| ())
    })
}
