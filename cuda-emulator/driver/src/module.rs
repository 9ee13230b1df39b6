//! Modules, functions and launches.

use std::ffi::{CStr, c_char, c_void};

use cuda_emulator::driver::{Answer, Driver, Status};

use crate::state::{Handle, device_call, put, say};

/// Loads an image: PTX text that ends with a zero. Binary code can't run here.
unsafe fn load(
    driver: &mut Driver,
    device: usize,
    module: *mut Handle,
    image: *const c_void,
) -> Answer<()> {
    if image.is_null() || module.is_null() {
        return Err(Status::INVALID_VALUE);
    }
    // SAFETY: every kind of image has 4 bytes.
    let start = unsafe { image.cast::<[u8; 4]>().read_unaligned() };
    if start == *b"\x7fELF" || start == [0x50, 0xed, 0x55, 0xba] {
        say("the module is binary code for a GPU: compile for a virtual architecture (compute_80)");
        return Err(Status::NO_BINARY);
    }
    // SAFETY: an image that isn't binary is text that ends with a zero.
    let text = unsafe { CStr::from_ptr(image.cast()) };
    let text = text.to_str().map_err(|_| Status::INVALID_IMAGE)?;
    let loaded = driver.load_module(device, text).map_err(|(status, reason)| {
        say(&reason);
        status
    })?;
    // SAFETY: checked above.
    unsafe { put(module, loaded) }
}

unsafe fn name<'a>(text: *const c_char) -> Answer<&'a str> {
    if text.is_null() {
        return Err(Status::INVALID_VALUE);
    }
    // SAFETY: the program vouches for a zero at the end.
    unsafe { CStr::from_ptr(text) }.to_str().map_err(|_| Status::INVALID_VALUE)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleLoadData(module: *mut Handle, image: *const c_void) -> u32 {
    // SAFETY: the same contract.
    device_call(|driver, device| unsafe { load(driver, device, module, image) })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleLoadDataEx(
    module: *mut Handle,
    image: *const c_void,
    _count: u32,
    _options: *const u32,
    _values: *const *const c_void,
) -> u32 {
    // SAFETY: the same contract.
    unsafe { cuModuleLoadData(module, image) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleLoad(module: *mut Handle, path: *const c_char) -> u32 {
    device_call(|driver, device| {
        // SAFETY: the program vouches for the text.
        let path = unsafe { name(path)? };
        let mut image = std::fs::read(path).map_err(|_| Status::FILE_NOT_FOUND)?;
        image.extend([0; 4]);
        // SAFETY: the image ends with zeros.
        unsafe { load(driver, device, module, image.as_ptr().cast()) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleUnload(module: Handle) -> u32 {
    device_call(|driver, _| driver.unload_module(module))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleGetFunction(
    function: *mut Handle,
    module: Handle,
    text: *const c_char,
) -> u32 {
    device_call(|driver, _| {
        // SAFETY: the program vouches for the text.
        let name = unsafe { name(text)? };
        let found = driver.function(module, name).map_err(|(status, reason)| {
            // Programs ask for functions that may not be there.
            if status != Status::NOT_FOUND {
                say(&format!("{name}: {reason}"));
            }
            status
        })?;
        // SAFETY: the program's pointer, null allowed.
        unsafe { put(function, found) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleGetGlobal_v2(
    address: *mut u64,
    bytes: *mut usize,
    module: Handle,
    text: *const c_char,
) -> u32 {
    device_call(|driver, _| {
        // SAFETY: the program vouches for the text.
        let name = unsafe { name(text)? };
        let (found, size) = driver.global(module, name)?;
        // SAFETY: the program's pointers; either may be null.
        unsafe {
            if !address.is_null() {
                address.write(found);
            }
            if !bytes.is_null() {
                bytes.write(size as usize);
            }
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuFuncGetAttribute(value: *mut i32, number: u32, function: Handle) -> u32 {
    device_call(|driver, _| {
        let found = driver.function_attribute(function, number)?;
        // SAFETY: the program's pointer, null allowed.
        unsafe { put(value, found) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuFuncSetAttribute(function: Handle, number: u32, value: i32) -> u32 {
    device_call(|driver, _| driver.set_function_attribute(function, number, value))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuFuncSetCacheConfig(function: Handle, _config: u32) -> u32 {
    device_call(|driver, _| driver.parameters(function).map(|_| ()))
}
