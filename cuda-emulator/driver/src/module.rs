//! Modules, functions and launches.

use std::ffi::{CStr, c_char, c_void};

use cuda_emulator::Launch;
use cuda_emulator::driver::{Answer, Driver, Status};

use crate::state::{Handle, call, device_call, put, say};

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

/// The parameter block: from a list of pointers, or as a whole through `extra`.
unsafe fn block(
    driver: &Driver,
    function: Handle,
    list: *const *const u8,
    extra: *const usize,
) -> Answer<Vec<u8>> {
    let (parameters, bytes) = driver.parameters(function)?;
    let mut block = vec![0u8; bytes];
    if !extra.is_null() {
        // Pairs of a tag and a value: 1 the buffer, 2 a pointer to its size, 0 the end.
        let (mut buffer, mut size) = (0usize, 0usize);
        for pair in 0..8 {
            // SAFETY: the list ends with 0.
            let tag = unsafe { extra.add(2 * pair).read() };
            if tag == 0 {
                break;
            }
            // SAFETY: a tag is followed by its value.
            let value = unsafe { extra.add(2 * pair + 1).read() };
            match tag {
                1 => buffer = value,
                // SAFETY: the value of this tag is a pointer to a size.
                2 => size = unsafe { (value as *const usize).read() },
                _ => return Err(Status::INVALID_VALUE),
            }
        }
        if buffer == 0 || size < bytes {
            return Err(Status::INVALID_VALUE);
        }
        // SAFETY: the program vouches for `size` bytes.
        unsafe { block.as_mut_ptr().copy_from_nonoverlapping(buffer as *const u8, bytes) };
        return Ok(block);
    }
    if list.is_null() && !parameters.is_empty() {
        return Err(Status::INVALID_VALUE);
    }
    for (index, (offset, size)) in parameters.into_iter().enumerate() {
        // SAFETY: the list has a pointer for each parameter.
        let from = unsafe { list.add(index).read() };
        let Some(place) = block.get_mut(offset..offset + size) else { continue };
        if from.is_null() {
            return Err(Status::INVALID_VALUE);
        }
        // SAFETY: the program vouches for the size of the parameter.
        unsafe { place.as_mut_ptr().copy_from_nonoverlapping(from, size) };
    }
    Ok(block)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuLaunchKernel(
    function: Handle,
    grid_x: u32,
    grid_y: u32,
    grid_z: u32,
    block_x: u32,
    block_y: u32,
    block_z: u32,
    dynamic_shared: u32,
    stream: Handle,
    parameters: *const *const u8,
    extra: *const usize,
) -> u32 {
    device_call(|driver, device| {
        let stream = driver.stream(device, stream)?;
        // SAFETY: the program vouches for its parameters.
        let bytes = unsafe { block(driver, function, parameters, extra)? };
        let shape = Launch {
            grid: [grid_x, grid_y, grid_z],
            block: [block_x, block_y, block_z],
            dynamic_shared, cluster: None
        };
        driver.launch(stream, function, shape, bytes)
    })
}

/// A cooperative launch is one like any other: blocks that wait for each other get their turns.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuLaunchCooperativeKernel(
    function: Handle,
    grid_x: u32,
    grid_y: u32,
    grid_z: u32,
    block_x: u32,
    block_y: u32,
    block_z: u32,
    dynamic_shared: u32,
    stream: Handle,
    parameters: *const *const u8,
) -> u32 {
    // SAFETY: the same contract.
    unsafe {
        cuLaunchKernel(
            function,
            grid_x,
            grid_y,
            grid_z,
            block_x,
            block_y,
            block_z,
            dynamic_shared,
            stream,
            parameters,
            std::ptr::null(),
        )
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuOccupancyMaxActiveBlocksPerMultiprocessor(
    blocks: *mut i32,
    function: Handle,
    threads: i32,
    dynamic_shared: usize,
) -> u32 {
    call(|driver| {
        let found = driver.occupancy(function, threads, dynamic_shared)?;
        // SAFETY: the program's pointer, null allowed.
        unsafe { put(blocks, found) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(
    blocks: *mut i32,
    function: Handle,
    threads: i32,
    dynamic_shared: usize,
    _flags: u32,
) -> u32 {
    // SAFETY: the same contract.
    unsafe {
        cuOccupancyMaxActiveBlocksPerMultiprocessor(blocks, function, threads, dynamic_shared)
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuOccupancyAvailableDynamicSMemPerBlock(
    bytes: *mut usize,
    function: Handle,
    blocks: i32,
    threads: i32,
) -> u32 {
    call(|driver| {
        let found = driver.dynamic_shared_for(function, blocks, threads)?;
        // SAFETY: the program's pointer, null allowed.
        unsafe { put(bytes, found) }
    })
}
