//! Several devices, pools, pinned memory, tensor maps, launch attributes and occupancy, with the
//! driver's own functions where cudarc's safe layer has none.

use std::mem::MaybeUninit;
use std::sync::Arc;

use cudarc::driver::sys::{self, CUresult as R};
use cudarc::driver::{
    CudaContext, CudaFunction, CudaStream, DevicePtr, LaunchConfig, PushKernelArg,
};

use super::function;

fn two() -> [(Arc<CudaContext>, Arc<CudaStream>); 2] {
    [0, 1].map(|device| {
        let context = CudaContext::new(device).unwrap();
        let stream = context.new_stream().unwrap();
        (context, stream)
    })
}

/// Memory of `count` floats that doesn't come from a pool.
fn plain(context: &CudaContext, count: usize) -> u64 {
    context.bind_to_thread().unwrap();
    let mut address = 0;
    // SAFETY: the place is good.
    assert_eq!(unsafe { sys::cuMemAlloc_v2(&raw mut address, 4 * count) }, R::CUDA_SUCCESS);
    address
}

fn scale(stream: &CudaStream, scale: &CudaFunction, y: u64, x: u64, count: u32) {
    let mut builder = stream.launch_builder(scale);
    builder.arg(&y).arg(&x).arg(&2.0f32).arg(&count);
    // SAFETY: the arguments are those of the kernel; addresses are the case.
    unsafe { builder.launch(LaunchConfig::for_num_elems(count)) }.unwrap();
}

fn floats(address: u64, count: usize) -> Vec<f32> {
    let mut values = vec![0f32; count];
    // SAFETY: the buffer has room.
    let result = unsafe { sys::cuMemcpyDtoH_v2(values.as_mut_ptr().cast(), address, 4 * count) };
    assert_eq!(result, R::CUDA_SUCCESS);
    values
}

/// Kernels of a device use memory of another once access is enabled. Expects two devices.
pub(crate) fn peers() {
    let [(first, stream), (second, _)] = two();
    let kernel = function(&first, "scale");
    let (here, there) = (plain(&first, 4), plain(&second, 4));
    let values = [1.0f32, 2.0, 3.0, 4.0];
    // SAFETY: the contexts and addresses are good, or wrong as the case has it.
    unsafe {
        assert_eq!(sys::cuMemcpyHtoD_v2(there, values.as_ptr().cast(), 16), R::CUDA_SUCCESS);
        let (a, b) = (first.cu_ctx(), second.cu_ctx());
        first.bind_to_thread().unwrap();
        assert_eq!(sys::cuMemcpyPeer(here, a, there, b, 16), R::CUDA_SUCCESS);
        assert_eq!(sys::cuMemcpyPeer(here, b, there, a, 16), R::CUDA_ERROR_INVALID_VALUE);
        assert_eq!(floats(here, 4), values);
        assert_eq!(sys::cuCtxDisablePeerAccess(b), R::CUDA_ERROR_PEER_ACCESS_NOT_ENABLED);
        assert_eq!(sys::cuCtxEnablePeerAccess(b, 0), R::CUDA_SUCCESS);
        assert_eq!(sys::cuCtxEnablePeerAccess(b, 0), R::CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED);
        assert_eq!(sys::cuCtxEnablePeerAccess(b, 1), R::CUDA_ERROR_INVALID_VALUE);
        assert_eq!(sys::cuCtxEnablePeerAccess(a, 0), R::CUDA_ERROR_INVALID_DEVICE);
    }
    // Reads there, writes here; and the other way round.
    scale(&stream, &kernel, here, there, 4);
    scale(&stream, &kernel, there, here, 4);
    stream.synchronize().unwrap();
    assert_eq!(floats(there, 4), [4.0, 8.0, 12.0, 16.0]);
    // SAFETY: the context is good.
    unsafe {
        first.bind_to_thread().unwrap();
        assert_eq!(sys::cuCtxDisablePeerAccess(second.cu_ctx()), R::CUDA_SUCCESS);
    }
    scale(&stream, &kernel, here, there, 4);
    assert_eq!(super::failed(stream.synchronize()), R::CUDA_ERROR_ILLEGAL_ADDRESS);
    std::mem::forget((first, second, stream, kernel));
}

/// Memory of pools has an access of its own. Expects two devices.
pub(crate) fn pools() {
    let [(first, stream), (second, other)] = two();
    let kernel = function(&first, "scale");
    let here = plain(&first, 2);
    let mut properties = MaybeUninit::<sys::CUmemPoolProps>::zeroed();
    let (mut pool, mut there, mut used) = (std::ptr::null_mut(), 0, 0u64);
    let attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_CURRENT;
    let high = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH;
    // SAFETY: all places are good; zeros and these values make properties.
    unsafe {
        second.bind_to_thread().unwrap();
        let asked = &mut *properties.as_mut_ptr().cast::<[u32; 4]>();
        *asked = [1, 0, 1, 1];
        assert_eq!(sys::cuMemPoolCreate(&raw mut pool, properties.as_ptr()), R::CUDA_SUCCESS);
        asked[3] = 7;
        let mut none = std::ptr::null_mut();
        let wrong = sys::cuMemPoolCreate(&raw mut none, properties.as_ptr());
        assert_eq!(wrong, R::CUDA_ERROR_INVALID_VALUE);
        let queue = other.cu_stream();
        let result = sys::cuMemAllocFromPoolAsync(&raw mut there, 8, pool, queue);
        assert_eq!(result, R::CUDA_SUCCESS);
        let to = (&raw mut used).cast();
        assert_eq!(sys::cuMemPoolGetAttribute(pool, attribute, to), R::CUDA_SUCCESS);
        assert_eq!(used, 8);
        assert_eq!(sys::cuMemPoolSetAttribute(pool, attribute, to), R::CUDA_ERROR_INVALID_VALUE);
        assert_eq!(sys::cuMemPoolSetAttribute(pool, high, to), R::CUDA_ERROR_INVALID_VALUE);
        let mut usual = std::ptr::null_mut();
        assert_eq!(sys::cuDeviceGetDefaultMemPool(&raw mut usual, 1), R::CUDA_SUCCESS);
        assert_eq!(sys::cuMemPoolDestroy(usual), R::CUDA_ERROR_INVALID_VALUE);
        let values = [3.0f32, 5.0];
        let from = values.as_ptr().cast();
        assert_eq!(sys::cuMemcpyHtoDAsync_v2(there, from, 8, queue), R::CUDA_SUCCESS);
        other.synchronize().unwrap();
        // The access that counts is that to the pool.
        first.bind_to_thread().unwrap();
        let mut access = MaybeUninit::<sys::CUmemAccessDesc>::zeroed();
        *access.as_mut_ptr().cast::<[u32; 3]>() = [1, 0, 3];
        assert_eq!(sys::cuMemPoolSetAccess(pool, access.as_ptr(), 1), R::CUDA_SUCCESS);
    }
    scale(&stream, &kernel, here, there, 2);
    stream.synchronize().unwrap();
    assert_eq!(floats(here, 2), [6.0, 10.0]);
    // SAFETY: the values are good.
    unsafe {
        let mut access = MaybeUninit::<sys::CUmemAccessDesc>::zeroed();
        *access.as_mut_ptr().cast::<[u32; 3]>() = [1, 0, 0];
        assert_eq!(sys::cuMemPoolSetAccess(pool, access.as_ptr(), 1), R::CUDA_SUCCESS);
        assert_eq!(sys::cuCtxEnablePeerAccess(second.cu_ctx(), 0), R::CUDA_SUCCESS);
    }
    // Access to the peer is none to its pool.
    scale(&stream, &kernel, here, there, 2);
    assert_eq!(super::failed(stream.synchronize()), R::CUDA_ERROR_ILLEGAL_ADDRESS);
    std::mem::forget((first, second, stream, other, kernel));
}

/// Registered memory is taken when the copy is done, not when it is queued.
pub(crate) fn registration() {
    let context = CudaContext::new(0).unwrap();
    let stream = context.new_stream().unwrap();
    let mut values = vec![1.0f32; 4];
    let at = values.as_mut_ptr();
    let device = plain(&context, 4);
    // SAFETY: the memory lives until it is unregistered.
    unsafe {
        assert_eq!(sys::cuMemHostRegister_v2(at.cast(), 16, 0), R::CUDA_SUCCESS);
        let again = sys::cuMemHostRegister_v2(at.cast(), 8, 0);
        assert_eq!(again, R::CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED);
        assert_eq!(sys::cuMemHostRegister_v2(at.cast(), 0, 0), R::CUDA_ERROR_INVALID_VALUE);
        assert_eq!(sys::cuMemFreeHost(at.cast()), R::CUDA_ERROR_INVALID_VALUE);
        let queue = stream.cu_stream();
        assert_eq!(sys::cuMemcpyHtoDAsync_v2(device, at.cast(), 16, queue), R::CUDA_SUCCESS);
        at.write(9.0);
        stream.synchronize().unwrap();
        assert_eq!(sys::cuMemHostUnregister(at.cast()), R::CUDA_SUCCESS);
        let twice = sys::cuMemHostUnregister(at.cast());
        assert_eq!(twice, R::CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED);
    }
    assert_eq!(floats(device, 4), [9.0, 1.0, 1.0, 1.0]);
}

fn encode(swizzle: u32, tile: u32, address: u64) -> R {
    #[repr(align(64))]
    struct Map(MaybeUninit<sys::CUtensorMap>);
    let mut map = Map(MaybeUninit::zeroed());
    // SAFETY: all numbers below are those of an enumeration.
    let (element, swizzle) = unsafe {
        (
            std::mem::transmute::<u32, sys::CUtensorMapDataType>(9),
            std::mem::transmute::<u32, sys::CUtensorMapSwizzle>(swizzle),
        )
    };
    // SAFETY: the lists have two dimensions.
    unsafe {
        sys::cuTensorMapEncodeTiled(
            map.0.as_mut_ptr(),
            element,
            2,
            address as *mut _,
            [64u64, 64].as_ptr(),
            [128u64].as_ptr(),
            [tile, 8u32].as_ptr(),
            [1u32, 1].as_ptr(),
            sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
            swizzle,
            sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_NONE,
            sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        )
    }
}

/// Tensor maps follow the rules of their documentation. Other devices than those of compute
/// capability 9.0 have none.
pub(crate) fn tensor_map() {
    let context = CudaContext::new(0).unwrap();
    let address = plain(&context, 64 * 64);
    if context.compute_capability().unwrap().0 < 9 {
        assert_eq!(encode(3, 64, address), R::CUDA_ERROR_NOT_SUPPORTED);
        return;
    }
    assert_eq!(encode(3, 64, address), R::CUDA_SUCCESS);
    assert_eq!(encode(1, 64, address), R::CUDA_ERROR_INVALID_VALUE);
    assert_eq!(encode(0, 7, address), R::CUDA_ERROR_INVALID_VALUE);
    assert_eq!(encode(3, 64, address + 8), R::CUDA_ERROR_INVALID_VALUE);
}

/// A launch of a kernel that takes an address, with attributes.
fn launch(function: &CudaFunction, data: u64, grid: u32, attributes: &[(u32, [u32; 3])]) -> R {
    let mut list: Vec<MaybeUninit<sys::CUlaunchAttribute>> = attributes
        .iter()
        .map(|(id, value)| {
            let mut attribute = MaybeUninit::zeroed();
            // SAFETY: the number is that of an attribute; the value begins after 8 bytes.
            unsafe {
                let words: *mut u32 = attribute.as_mut_ptr() as *mut u32;
                words.write(*id);
                words.add(2).cast::<[u32; 3]>().write(*value);
            }
            attribute
        })
        .collect();
    let config = sys::CUlaunchConfig {
        gridDimX: grid,
        gridDimY: 1,
        gridDimZ: 1,
        blockDimX: 32,
        blockDimY: 1,
        blockDimZ: 1,
        sharedMemBytes: 0,
        hStream: std::ptr::null_mut(),
        attrs: list.as_mut_ptr().cast(),
        numAttrs: list.len() as u32,
    };
    let mut parameters = [(&raw const data).cast_mut().cast()];
    // SAFETY: the kernel takes one address.
    unsafe {
        let handle = function.cu_function();
        sys::cuLaunchKernelEx(
            &raw const config,
            handle,
            parameters.as_mut_ptr(),
            std::ptr::null_mut(),
        )
    }
}

const COOPERATIVE: u32 = 2;
const CLUSTER: u32 = 4;
const EVENT: u32 = 7;

/// Nothing below is waited for, so nothing runs.
pub(crate) fn launch_attributes() {
    let context = CudaContext::new(0).unwrap();
    let reverse = function(&context, "reverse");
    context.bind_to_thread().unwrap();
    let tried = |grid, attributes: &[(u32, [u32; 3])]| launch(&reverse, 0, grid, attributes);
    assert_eq!(tried(4, &[(8, [1, 0, 0]), (0, [0; 3])]), R::CUDA_SUCCESS);
    assert_eq!(tried(4, &[(COOPERATIVE, [1, 0, 0])]), R::CUDA_SUCCESS);
    let too_large = tried(1 << 20, &[(COOPERATIVE, [1, 0, 0])]);
    assert_eq!(too_large, R::CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE);
    assert_eq!(tried(4, &[(EVENT, [0; 3])]), R::CUDA_ERROR_NOT_SUPPORTED);
    // A grid that isn't whole clusters, clusters larger than devices must allow, and a device that
    // has none.
    let wrong = R::CUDA_ERROR_INVALID_CLUSTER_SIZE;
    assert_eq!(tried(5, &[(CLUSTER, [2, 1, 1])]), wrong);
    assert_eq!(tried(16, &[(CLUSTER, [16, 1, 1])]), wrong);
    if context.compute_capability().unwrap().0 < 9 {
        assert_eq!(tried(4, &[(CLUSTER, [2, 1, 1])]), wrong);
    }
    std::mem::forget((context, reverse));
}

/// The first thread of every block writes its block's rank in its cluster; the second kernel says how large those are.
const CLUSTERS: &str = r#"
.version 8.0
.target sm_90
.address_size 64
.visible .entry rank(.param .u64 out)
{
    .reg .b32 %r<4>; .reg .b64 %d<4>; .reg .pred %p<2>;
    mov.u32 %r3, %tid.x; setp.ne.u32 %p1, %r3, 0;
    @%p1 ret;
    ld.param.u64 %d1, [out];
    mov.u32 %r1, %ctaid.x; mov.u32 %r2, %cluster_ctarank;
    mul.wide.u32 %d2, %r1, 4; add.s64 %d3, %d1, %d2;
    st.global.u32 [%d3], %r2;
    ret;
}
.visible .entry fixed(.param .u64 out) .reqnctapercluster 4, 1, 1
{
    .reg .b32 %r<4>; .reg .b64 %d<4>; .reg .pred %p<2>;
    mov.u32 %r3, %tid.x; setp.ne.u32 %p1, %r3, 0;
    @%p1 ret;
    ld.param.u64 %d1, [out];
    mov.u32 %r1, %ctaid.x; mov.u32 %r2, %cluster_ctarank;
    mul.wide.u32 %d2, %r1, 4; add.s64 %d3, %d1, %d2;
    st.global.u32 [%d3], %r2;
    ret;
}
"#;

/// Expects a device of compute capability 9.0.
pub(crate) fn clusters() {
    use sys::CUfunction_attribute_enum as Attribute;
    let context = CudaContext::new(0).unwrap();
    let module = context.load_module(cudarc::nvrtc::Ptx::from_src(CLUSTERS)).unwrap();
    let (rank, fixed) =
        (module.load_function("rank").unwrap(), module.load_function("fixed").unwrap());
    let stream = context.default_stream();
    let out = stream.alloc_zeros::<u32>(8).unwrap();
    stream.synchronize().unwrap();
    let (at, _guard) = out.device_ptr(&stream);
    let ranks = || stream.clone_dtoh(&out).unwrap();
    context.bind_to_thread().unwrap();
    assert_eq!(launch(&rank, at, 8, &[(CLUSTER, [2, 1, 1])]), R::CUDA_SUCCESS);
    assert_eq!(ranks(), [0, 1, 0, 1, 0, 1, 0, 1]);
    assert_eq!(launch(&rank, at, 8, &[]), R::CUDA_SUCCESS);
    assert_eq!(ranks(), [0; 8]);
    let width = Attribute::CU_FUNC_ATTRIBUTE_REQUIRED_CLUSTER_WIDTH;
    for (axis, size) in [
        (width, 8),
        (Attribute::CU_FUNC_ATTRIBUTE_REQUIRED_CLUSTER_HEIGHT, 1),
        (Attribute::CU_FUNC_ATTRIBUTE_REQUIRED_CLUSTER_DEPTH, 1),
    ] {
        rank.set_attribute(axis, size).unwrap();
    }
    assert_eq!(launch(&rank, at, 8, &[]), R::CUDA_SUCCESS);
    assert_eq!(ranks(), [0, 1, 2, 3, 4, 5, 6, 7]);
    assert_eq!(launch(&fixed, at, 8, &[]), R::CUDA_SUCCESS);
    assert_eq!(ranks(), [0, 1, 2, 3, 0, 1, 2, 3]);
    let other = launch(&fixed, at, 8, &[(CLUSTER, [2, 1, 1])]);
    assert_eq!(other, R::CUDA_ERROR_INVALID_CLUSTER_SIZE);
    let refused = super::failed(fixed.set_attribute(width, 2));
    assert_eq!(refused, R::CUDA_ERROR_NOT_PERMITTED);
}

pub(crate) fn occupancy() {
    let context = CudaContext::new(0).unwrap();
    let reverse = function(&context, "reverse");
    let blocks = |threads, shared| {
        reverse.occupancy_max_active_blocks_per_multiprocessor(threads, shared, None).unwrap()
    };
    // 64 warps of a multiprocessor; 164 KB of shared memory, of which a block takes 1 KB more.
    assert_eq!(blocks(256, 0), 8);
    assert_eq!(blocks(256, 40 << 10), 4);
    let (grid, threads) =
        reverse.occupancy_max_potential_block_size(shared_of, 0, 0, None).unwrap();
    assert_eq!((grid, threads), (2 * 108, 1024));
    assert!(reverse.occupancy_max_active_blocks_per_multiprocessor(2048, 0, None).is_err());
    let most = reverse.occupancy_available_dynamic_smem_per_block(2, 256).unwrap();
    assert_eq!(most, (82 << 10) - 1024);
}

/// Expects ptxas.
pub(crate) fn registers() {
    let context = CudaContext::new(0).unwrap();
    let reverse = function(&context, "reverse");
    let found = reverse.num_regs().unwrap();
    assert!((4..=24).contains(&found), "{found}");
}

extern "C" fn shared_of(_threads: std::ffi::c_int) -> usize {
    0
}
