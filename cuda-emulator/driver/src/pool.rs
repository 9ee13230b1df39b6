//! Memory pools.

use cuda_emulator::driver::Status;

use crate::state::{Handle, call, put};

/// The beginning of `CUmemPoolProps`.
#[derive(Debug)]
#[repr(C)]
pub struct Properties {
    /// 1 for pinned memory: the only kind.
    kind: u32,
    /// How memory is shared with other processes: not at all.
    handles: u32,
    location: Location,
}

/// `CUmemLocation`: 1 for a device, and which.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct Location {
    kind: u32,
    id: i32,
}

/// `CUmemAccessDesc`.
#[derive(Debug)]
#[repr(C)]
pub struct Access {
    location: Location,
    flags: u32,
}

const DEVICE: u32 = 1;

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemPoolCreate(pool: *mut Handle, properties: *const Properties) -> u32 {
    call(|driver| {
        // SAFETY: the program's pointer, null allowed.
        let asked = unsafe { properties.as_ref() }.ok_or(Status::INVALID_VALUE)?;
        if asked.kind != 1 || asked.location.kind != DEVICE {
            return Err(Status::INVALID_VALUE);
        }
        if asked.handles != 0 {
            return Err(Status::NOT_SUPPORTED);
        }
        let created = driver.create_pool(asked.location.id)?;
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
    call(|driver| driver.trim_pool(pool))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemPoolSetAttribute(
    pool: Handle,
    number: u32,
    value: *const u64,
) -> u32 {
    call(|driver| {
        if value.is_null() {
            return Err(Status::INVALID_VALUE);
        }
        // The first three attributes are 32 bits wide.
        // SAFETY: not null, and of the width that the attribute has.
        let value = unsafe {
            if number <= 3 { u64::from(value.cast::<u32>().read()) } else { value.read() }
        };
        driver.set_pool_attribute(pool, number, value)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemPoolGetAttribute(pool: Handle, number: u32, value: *mut u64) -> u32 {
    call(|driver| {
        let found = driver.pool_attribute(pool, number)?;
        // SAFETY: the program's pointer, of the width that the attribute has.
        unsafe {
            if number <= 3 { put(value.cast::<u32>(), found as u32) } else { put(value, found) }
        }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemPoolSetAccess(
    pool: Handle,
    list: *const Access,
    count: usize,
) -> u32 {
    call(|driver| {
        if list.is_null() && count > 0 {
            return Err(Status::INVALID_VALUE);
        }
        for index in 0..count {
            // SAFETY: the program vouches for `count` elements.
            let one = unsafe { &*list.add(index) };
            if one.location.kind != DEVICE {
                return Err(Status::INVALID_VALUE);
            }
            driver.set_pool_access(pool, one.location.id, one.flags)?;
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemPoolGetAccess(
    flags: *mut u32,
    pool: Handle,
    location: *const Location,
) -> u32 {
    call(|driver| {
        // SAFETY: the program's pointer, null allowed.
        let asked = unsafe { location.as_ref() }.ok_or(Status::INVALID_VALUE)?;
        if asked.kind != DEVICE {
            return Err(Status::INVALID_VALUE);
        }
        let found = driver.pool_access(pool, asked.id)?;
        // SAFETY: the program's pointer, null allowed.
        unsafe { put(flags, found) }
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
    call(|driver| {
        let device = driver.device_get(device)?;
        let found = driver.pool_of(device)?;
        // SAFETY: the program's pointer, null allowed.
        unsafe { put(pool, found) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceSetMemPool(device: i32, pool: Handle) -> u32 {
    call(|driver| {
        let device = driver.device_get(device)?;
        driver.set_pool(device, pool)
    })
}
