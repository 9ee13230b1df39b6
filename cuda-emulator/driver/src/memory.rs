//! Memory of devices and of the host.

use cuda_emulator::driver::{HostAddress, Status};

use crate::state::{Handle, device_call, put};

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
    pool: Handle,
    stream: Handle,
) -> u32 {
    device_call(|driver, device| {
        let stream = driver.stream(device, stream)?;
        let allocated = driver.allocate_from(pool, stream, bytes as u64)?;
        // SAFETY: the program's pointer, null allowed.
        unsafe { put(address, allocated) }
    })
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
pub unsafe extern "C" fn cuMemHostAlloc(address: *mut usize, bytes: usize, flags: u32) -> u32 {
    device_call(|driver, _| {
        let allocated = driver.allocate_host(bytes, flags)?;
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

fn copy_peer(to: u64, contexts: [Handle; 2], from: u64, bytes: usize, stream: Handle) -> u32 {
    device_call(|driver, device| {
        // Addresses tell their devices; the contexts must be of these.
        for (context, address) in contexts.into_iter().zip([to, from]) {
            let named = driver.context_device(context)?;
            if bytes > 0 && driver.allocation(address)?.2 != named {
                return Err(Status::INVALID_VALUE);
            }
        }
        let stream = driver.stream(device, stream)?;
        driver.copy_async(stream, to, from, bytes as u64)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyPeerAsync(
    to: u64,
    to_context: Handle,
    from: u64,
    from_context: Handle,
    bytes: usize,
    stream: Handle,
) -> u32 {
    copy_peer(to, [to_context, from_context], from, bytes, stream)
}

/// The copy is ordered by the default stream.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyPeer(
    to: u64,
    to_context: Handle,
    from: u64,
    from_context: Handle,
    bytes: usize,
) -> u32 {
    copy_peer(to, [to_context, from_context], from, bytes, 0)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemHostRegister_v2(address: usize, bytes: usize, flags: u32) -> u32 {
    device_call(|driver, _| driver.register_host(HostAddress(address), bytes, flags))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemHostUnregister(address: usize) -> u32 {
    device_call(|driver, _| driver.unregister_host(HostAddress(address)))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemHostGetFlags(flags: *mut u32, address: usize) -> u32 {
    device_call(|driver, _| {
        let found = driver.host_flags(HostAddress(address))?;
        // SAFETY: the program's pointer, null allowed.
        unsafe { put(flags, found) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemHostGetDevicePointer_v2(
    pointer: *mut u64,
    address: usize,
    _flags: u32,
) -> u32 {
    device_call(|driver, _| {
        let found = driver.host_device_pointer(HostAddress(address))?;
        // SAFETY: the program's pointer, null allowed.
        unsafe { put(pointer, found) }
    })
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
