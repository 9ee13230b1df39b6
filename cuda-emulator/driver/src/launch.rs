//! Launches, occupancy, and tensor maps.

use cuda_emulator::driver::{Answer, Driver, Status};
use cuda_emulator::{Launch, Swizzle, TensorMap, TensorType};

use crate::state::{Handle, call, device_call, put, say};

/// `CUlaunchConfig`.
#[derive(Debug)]
#[repr(C)]
pub struct Configuration {
    grid: [u32; 3],
    block: [u32; 3],
    dynamic_shared: u32,
    stream: Handle,
    attributes: *const Attribute,
    count: u32,
}

/// `CUlaunchAttribute`.
#[derive(Debug)]
#[repr(C)]
pub struct Attribute {
    id: u32,
    pad: u32,
    value: [u32; 16],
}

impl Configuration {
    /// The shape of the launch, and whether it is cooperative. Hints change nothing: cache policy,
    /// synchronization policy, scheduling, priority, memory domains, carveout. A launch that may
    /// begin before the one in front of it ends begins after it, which it must allow for.
    unsafe fn read(&self) -> Answer<(Launch, bool)> {
        let (grid, block, dynamic_shared) = (self.grid, self.block, self.dynamic_shared);
        let mut shape = Launch { grid, block, dynamic_shared, cluster: None };
        let mut cooperative = false;
        if self.attributes.is_null() && self.count > 0 {
            return Err(Status::INVALID_VALUE);
        }
        for index in 0..self.count as usize {
            // SAFETY: the program vouches for `count` attributes.
            let attribute = unsafe { &*self.attributes.add(index) };
            let [first, second, third, ..] = attribute.value;
            match attribute.id {
                2 => cooperative = first != 0,
                4 => shape.cluster = Some([first, second, third]),
                0 | 1 | 3 | 5 | 6 | 8 | 9 | 10 | 14 => {}
                // Events that a kernel triggers, and nodes that kernels update.
                7 | 11..=13 => return Err(Status::NOT_SUPPORTED),
                _ => return Err(Status::INVALID_VALUE),
            }
        }
        Ok((shape, cooperative))
    }
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
pub unsafe extern "C" fn cuLaunchKernelEx(
    configuration: *const Configuration,
    function: Handle,
    parameters: *const *const u8,
    extra: *const usize,
) -> u32 {
    device_call(|driver, device| {
        // SAFETY: the program's pointer, null allowed.
        let asked = unsafe { configuration.as_ref() }.ok_or(Status::INVALID_VALUE)?;
        let stream = driver.stream(device, asked.stream)?;
        // SAFETY: the program vouches for its attributes and parameters.
        let ((shape, cooperative), bytes) =
            unsafe { (asked.read()?, block(driver, function, parameters, extra)?) };
        driver.launch(stream, function, shape, cooperative, bytes)
    })
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
    let configuration = Configuration {
        grid: [grid_x, grid_y, grid_z],
        block: [block_x, block_y, block_z],
        dynamic_shared,
        stream,
        attributes: std::ptr::null(),
        count: 0,
    };
    // SAFETY: the same contract.
    unsafe { cuLaunchKernelEx(&raw const configuration, function, parameters, extra) }
}

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
    let mut value = [0; 16];
    value[0] = 1;
    let cooperative = Attribute { id: 2, pad: 0, value };
    let configuration = Configuration {
        grid: [grid_x, grid_y, grid_z],
        block: [block_x, block_y, block_z],
        dynamic_shared,
        stream,
        attributes: &raw const cooperative,
        count: 1,
    };
    // SAFETY: the same contract.
    unsafe { cuLaunchKernelEx(&raw const configuration, function, parameters, std::ptr::null()) }
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
/// Tells the dynamic shared memory of a block of so many threads.
type SharedOf = Option<extern "C" fn(i32) -> usize>;

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuOccupancyMaxPotentialBlockSize(
    grid: *mut i32,
    threads: *mut i32,
    function: Handle,
    shared_of: SharedOf,
    dynamic_shared: usize,
    limit: i32,
) -> u32 {
    device_call(|driver, device| {
        let shared = |threads| shared_of.map_or(dynamic_shared, |shared| shared(threads));
        let (blocks, best) = driver.best_block(device, function, shared, limit)?;
        // SAFETY: the program's pointers, null allowed.
        unsafe {
            put(grid, blocks)?;
            put(threads, best)
        }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuOccupancyMaxPotentialBlockSizeWithFlags(
    grid: *mut i32,
    threads: *mut i32,
    function: Handle,
    shared_of: SharedOf,
    dynamic_shared: usize,
    limit: i32,
    _flags: u32,
) -> u32 {
    // SAFETY: the same contract.
    unsafe {
        cuOccupancyMaxPotentialBlockSize(grid, threads, function, shared_of, dynamic_shared, limit)
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuOccupancyMaxActiveClusters(
    clusters: *mut i32,
    function: Handle,
    configuration: *const Configuration,
) -> u32 {
    device_call(|driver, device| {
        // SAFETY: the program's pointer, null allowed.
        let asked = unsafe { configuration.as_ref() }.ok_or(Status::INVALID_VALUE)?;
        // SAFETY: the program vouches for its attributes.
        let (shape, _) = unsafe { asked.read()? };
        let found = driver.active_clusters(device, function, &shape)?;
        // SAFETY: the program's pointer, null allowed.
        unsafe { put(clusters, found) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuOccupancyMaxPotentialClusterSize(
    size: *mut i32,
    function: Handle,
    _configuration: *const Configuration,
) -> u32 {
    call(|driver| {
        let found = driver.largest_cluster(function)?;
        // SAFETY: the program's pointer, null allowed.
        unsafe { put(size, found) }
    })
}

/// A list of the program as numbers.
unsafe fn list<T: Copy>(from: *const T, count: usize) -> Answer<Vec<T>> {
    if count == 0 {
        return Ok(Vec::new());
    }
    if from.is_null() {
        return Err(Status::INVALID_VALUE);
    }
    // SAFETY: the program vouches for `count` elements.
    Ok((0..count).map(|index| unsafe { from.add(index).read_unaligned() }).collect())
}

/// Writes a tensor map, which must lie at a multiple of 64 bytes.
unsafe fn write_map(place: *mut [u8; 128], map: &TensorMap) -> Answer<()> {
    if place.is_null() || !place.addr().is_multiple_of(64) {
        return Err(Status::INVALID_VALUE);
    }
    let bytes = map.encode().map_err(|error| {
        say(&format!("cuTensorMapEncodeTiled: {error}"));
        Status::INVALID_VALUE
    })?;
    // SAFETY: not null, and the program vouches for 128 bytes.
    unsafe { place.write(bytes) };
    Ok(())
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuTensorMapEncodeTiled(
    place: *mut [u8; 128],
    element: u32,
    rank: u32,
    address: u64,
    sizes: *const u64,
    strides: *const u64,
    tile: *const u32,
    element_strides: *const u32,
    interleave: u32,
    swizzle: u32,
    promotion: u32,
    fill: u32,
) -> u32 {
    device_call(|driver, device| {
        // The major number of the compute capability.
        if driver.attribute(device, 75)? < 9 {
            return Err(Status::NOT_SUPPORTED);
        }
        let rank = rank as usize;
        if !(1..=5).contains(&rank) || fill > 1 || promotion > 3 || interleave > 2 {
            return Err(Status::INVALID_VALUE);
        }
        // SAFETY: the program vouches for lists of `rank` elements; there is one stride fewer.
        let map = unsafe {
            TensorMap {
                element: TensorType::from_number(element).ok_or(Status::INVALID_VALUE)?,
                address,
                sizes: list(sizes, rank)?,
                strides: list(strides, rank - 1)?,
                tile: list(tile, rank)?,
                element_strides: list(element_strides, rank)?,
                interleave,
                swizzle: Swizzle::from_number(swizzle).ok_or(Status::INVALID_VALUE)?,
                promotion,
                fill_nan: fill == 1,
            }
        };
        // SAFETY: the program's pointer.
        unsafe { write_map(place, &map) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuTensorMapReplaceAddress(place: *mut [u8; 128], address: u64) -> u32 {
    device_call(|_, _| {
        // SAFETY: the program's pointer, null allowed.
        let bytes = unsafe { place.as_ref() }.ok_or(Status::INVALID_VALUE)?;
        let map = TensorMap::decode(bytes).ok_or(Status::INVALID_VALUE)?;
        // SAFETY: the same pointer.
        unsafe { write_map(place, &TensorMap { address, ..map }) }
    })
}
