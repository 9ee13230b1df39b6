//! A program as it would be written for a GPU, with cudarc's safe layer and nothing of this crate.
//!
//!     cudarc_program CASE
//!
//! Each case panics if something is not as the CUDA documentation says.

mod devices;

use std::sync::Arc;

use cudarc::driver::sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_GLOBAL as GLOBAL;
use cudarc::driver::sys::{
    CUfunction_attribute_enum as FunctionAttribute, CUgraphInstantiate_flags, CUresult,
};
use cudarc::driver::{CudaContext, CudaFunction, DriverError, LaunchConfig, PushKernelArg};
use cudarc::nvrtc::Ptx;

/// Graphs free what they allocate when they are launched again.
const FLAGS: CUgraphInstantiate_flags =
    CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;

/// y = factor * x for `count` elements, by a grid of blocks; and what uses shared memory.
const KERNELS: &str = r#"
.version 8.0
.target sm_80
.address_size 64
.visible .entry scale(.param .u64 y, .param .u64 x, .param .f32 factor, .param .u32 count)
{
    .reg .pred %p; .reg .b32 %r<5>; .reg .f32 %f<3>; .reg .b64 %d<6>;
    mov.u32 %r1, %ctaid.x; mov.u32 %r2, %ntid.x; mov.u32 %r3, %tid.x;
    mad.lo.s32 %r4, %r1, %r2, %r3;
    ld.param.u32 %r1, [count];
    setp.ge.u32 %p, %r4, %r1;
    @%p ret;
    ld.param.u64 %d1, [x]; ld.param.u64 %d2, [y]; ld.param.f32 %f1, [factor];
    mul.wide.u32 %d3, %r4, 4;
    add.s64 %d4, %d1, %d3; add.s64 %d5, %d2, %d3;
    ld.global.f32 %f2, [%d4];
    mul.f32 %f2, %f2, %f1;
    st.global.f32 [%d5], %f2;
    ret;
}
.extern .shared .align 16 .b8 room[];
.visible .entry reverse(.param .u64 data)
{
    .reg .b32 %r<6>; .reg .b64 %d<4>;
    ld.param.u64 %d1, [data];
    mov.u32 %r1, %tid.x; mov.u32 %r2, %ntid.x;
    mul.wide.u32 %d2, %r1, 4; add.s64 %d3, %d1, %d2;
    ld.global.u32 %r3, [%d3];
    shl.b32 %r4, %r1, 2; mov.u32 %r5, room; add.s32 %r4, %r4, %r5;
    st.shared.u32 [%r4], %r3;
    bar.sync 0;
    sub.s32 %r1, %r2, %r1; sub.s32 %r1, %r1, 1; shl.b32 %r4, %r1, 2; add.s32 %r4, %r4, %r5;
    ld.shared.u32 %r3, [%r4];
    st.global.u32 [%d3], %r3;
    ret;
}
"#;

fn main() {
    let case = std::env::args().nth(1).unwrap_or_default();
    match case.as_str() {
        "memory" => memory(),
        "launch" => launch(),
        "streams" => streams(),
        "graph" => graph(),
        "two-devices" => two_devices(),
        "out-of-bounds" => out_of_bounds(),
        "missing-wait" => missing_wait(),
        "shared-memory" => shared_memory(),
        "capture-misuse" => capture_misuse(),
        "allocation-failure" => allocation_failure(),
        "bad-module" => bad_module(),
        "peers" => devices::peers(),
        "pools" => devices::pools(),
        "registration" => devices::registration(),
        "tensor-map" => devices::tensor_map(),
        "launch-attributes" => devices::launch_attributes(),
        "clusters" => devices::clusters(),
        "occupancy" => devices::occupancy(),
        "registers" => devices::registers(),
        other => panic!("no case {other:?}"),
    }
    println!("{case} is as it should be");
}

fn function(context: &Arc<CudaContext>, name: &str) -> CudaFunction {
    let module = context.load_module(Ptx::from_src(KERNELS)).expect("the module loads");
    module.load_function(name).expect("the function is there")
}

fn failed<T>(result: Result<T, DriverError>) -> CUresult {
    match result {
        Ok(_) => panic!("should fail"),
        Err(error) => error.0,
    }
}

fn memory() {
    let context = CudaContext::new(0).unwrap();
    assert_eq!(context.compute_capability().unwrap(), (8, 0));
    let (free, total) = context.mem_get_info().unwrap();
    assert_eq!(free, total);
    let stream = context.default_stream();
    let numbers: Vec<u32> = (0..1000).collect();
    let on_device = stream.clone_htod(&numbers).unwrap();
    assert_eq!(stream.clone_dtoh(&on_device).unwrap(), numbers);
    let copy = stream.clone_dtod(&on_device.slice(10..20)).unwrap();
    assert_eq!(stream.clone_dtoh(&copy).unwrap(), numbers[10..20]);
    let zeros = stream.alloc_zeros::<u32>(7).unwrap();
    assert_eq!(stream.clone_dtoh(&zeros).unwrap(), [0; 7]);
    drop((on_device, copy, zeros));
    stream.synchronize().unwrap();
    assert_eq!(context.mem_get_info().unwrap().0, total);
    assert_eq!(failed(CudaContext::new(5)), CUresult::CUDA_ERROR_INVALID_DEVICE);
}

fn launch() {
    let context = CudaContext::new(0).unwrap();
    let stream = context.new_stream().unwrap();
    let scale = function(&context, "scale");
    let x: Vec<f32> = (0..1000).map(|i| i as f32).collect();
    let x_device = stream.clone_htod(&x).unwrap();
    let mut y = stream.alloc_zeros::<f32>(1000).unwrap();
    let mut builder = stream.launch_builder(&scale);
    builder.arg(&mut y).arg(&x_device).arg(&2.5f32).arg(&1000u32);
    // SAFETY: the arguments are those of the kernel.
    unsafe { builder.launch(LaunchConfig::for_num_elems(1000)) }.unwrap();
    let expected: Vec<f32> = x.iter().map(|x| x * 2.5).collect();
    assert_eq!(stream.clone_dtoh(&y).unwrap(), expected);
}

fn streams() {
    let context = CudaContext::new(0).unwrap();
    let scale = function(&context, "scale");
    let first = context.new_stream().unwrap();
    let second = context.new_stream().unwrap();
    let x = first.clone_htod(&[1.0f32; 64]).unwrap();
    let mut y = first.alloc_zeros::<f32>(64).unwrap();
    let start = context.new_event(None).unwrap();
    start.record(&first).unwrap();
    let mut builder = first.launch_builder(&scale);
    builder.arg(&mut y).arg(&x).arg(&3.0f32).arg(&64u32);
    // SAFETY: the arguments are those of the kernel.
    unsafe { builder.launch(LaunchConfig::for_num_elems(64)) }.unwrap();
    let done = first.record_event(None).unwrap();
    assert!(!done.is_complete());
    second.wait(&done).unwrap();
    assert_eq!(second.clone_dtoh(&y).unwrap(), [3.0; 64]);
    assert!(done.is_complete());
}

fn graph() {
    let context = CudaContext::new(0).unwrap();
    // SAFETY: everything below runs on one stream.
    unsafe { context.disable_event_tracking() };
    let stream = context.new_stream().unwrap();
    let scale = function(&context, "scale");
    let mut x = stream.clone_htod(&[1.0f32; 32]).unwrap();
    let mut y = stream.alloc_zeros::<f32>(32).unwrap();
    let mut z = stream.alloc_zeros::<f32>(32).unwrap();
    stream.synchronize().unwrap();
    stream.begin_capture(GLOBAL).unwrap();
    let mut builder = stream.launch_builder(&scale);
    builder.arg(&mut y).arg(&x).arg(&2.0f32).arg(&32u32);
    // SAFETY: the arguments are those of the kernel.
    unsafe { builder.launch(LaunchConfig::for_num_elems(32)) }.unwrap();
    let mut builder = stream.launch_builder(&scale);
    builder.arg(&mut z).arg(&y).arg(&5.0f32).arg(&32u32);
    // SAFETY: the arguments are those of the kernel.
    unsafe { builder.launch(LaunchConfig::for_num_elems(32)) }.unwrap();
    let graph = stream.end_capture(FLAGS).unwrap().expect("a graph");
    graph.upload().unwrap();
    // Nothing has run yet.
    assert_eq!(stream.clone_dtoh(&z).unwrap(), [0.0; 32]);
    for value in [1.0f32, 7.0] {
        stream.memcpy_htod(&[value; 32], &mut x).unwrap();
        graph.launch().unwrap();
        assert_eq!(stream.clone_dtoh(&z).unwrap(), [value * 10.0; 32]);
    }
}

/// Expects two devices.
fn two_devices() {
    assert_eq!(CudaContext::device_count().unwrap(), 2);
    let first = CudaContext::new(0).unwrap();
    let second = CudaContext::new(1).unwrap();
    // Streams of their own: the handle of a default stream means that of the current context, and
    // cudarc 0.19.10 makes the source's context current before it queues a copy between devices.
    let (stream, other) = (first.new_stream().unwrap(), second.new_stream().unwrap());
    let numbers = [1.0f32, 2.0, 3.0];
    let here = stream.clone_htod(&numbers).unwrap();
    let mut there = other.alloc_zeros::<f32>(3).unwrap();
    stream.synchronize().unwrap();
    other.memcpy_dtod(&here, &mut there).unwrap();
    let scale = function(&second, "scale");
    let mut result = other.alloc_zeros::<f32>(3).unwrap();
    let mut builder = other.launch_builder(&scale);
    builder.arg(&mut result).arg(&there).arg(&2.0f32).arg(&3u32);
    // SAFETY: the arguments are those of the kernel.
    unsafe { builder.launch(LaunchConfig::for_num_elems(3)) }.unwrap();
    assert_eq!(other.clone_dtoh(&result).unwrap(), [2.0, 4.0, 6.0]);
    // A function runs on the device that its module was loaded on.
    let elsewhere = function(&first, "scale");
    let mut builder = other.launch_builder(&elsewhere);
    builder.arg(&mut result).arg(&there).arg(&2.0f32).arg(&3u32);
    // SAFETY: the arguments are those of the kernel.
    let refused = unsafe { builder.launch(LaunchConfig::for_num_elems(3)) };
    assert_eq!(failed(refused), CUresult::CUDA_ERROR_INVALID_HANDLE);
}

/// The error of a kernel stays with the context.
fn out_of_bounds() {
    let context = CudaContext::new(0).unwrap();
    let stream = context.new_stream().unwrap();
    let scale = function(&context, "scale");
    let x = stream.clone_htod(&[1.0f32; 10]).unwrap();
    let mut y = stream.alloc_zeros::<f32>(10).unwrap();
    let mut builder = stream.launch_builder(&scale);
    builder.arg(&mut y).arg(&x).arg(&1.0f32).arg(&11u32);
    // SAFETY: none: that is the case.
    unsafe { builder.launch(LaunchConfig::for_num_elems(11)) }.unwrap();
    assert_eq!(failed(stream.synchronize()), CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
    assert_eq!(failed(stream.alloc_zeros::<f32>(1)), CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
    assert_eq!(failed(context.synchronize()), CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
    std::mem::forget((x, y, stream, context));
}

/// Without an event between, the second stream reads before the first has computed.
fn missing_wait() {
    let context = CudaContext::new(0).unwrap();
    // SAFETY: none: that is the case.
    unsafe { context.disable_event_tracking() };
    let scale = function(&context, "scale");
    let first = context.new_stream().unwrap();
    let second = context.new_stream().unwrap();
    let x = first.clone_htod(&[1.0f32; 64]).unwrap();
    let mut y = first.alloc_zeros::<f32>(64).unwrap();
    first.synchronize().unwrap();
    let mut builder = first.launch_builder(&scale);
    builder.arg(&mut y).arg(&x).arg(&3.0f32).arg(&64u32);
    // SAFETY: the arguments are those of the kernel.
    unsafe { builder.launch(LaunchConfig::for_num_elems(64)) }.unwrap();
    assert_ne!(second.clone_dtoh(&y).unwrap(), [3.0; 64]);
    first.synchronize().unwrap();
    assert_eq!(second.clone_dtoh(&y).unwrap(), [3.0; 64]);
}

fn shared_memory() {
    let context = CudaContext::new(0).unwrap();
    let stream = context.new_stream().unwrap();
    let reverse = function(&context, "reverse");
    let data = stream.clone_htod(&(0..256u32).collect::<Vec<_>>()).unwrap();
    let shape = |bytes| LaunchConfig {
        grid_dim: (1, 1, 1),
        block_dim: (256, 1, 1),
        shared_mem_bytes: bytes,
    };
    let run = |bytes| {
        let mut builder = stream.launch_builder(&reverse);
        builder.arg(&data);
        // SAFETY: the arguments are those of the kernel.
        unsafe { builder.launch(shape(bytes)) }.map(|_| ())
    };
    run(1024).unwrap();
    let expected: Vec<u32> = (0..256).rev().collect();
    assert_eq!(stream.clone_dtoh(&data).unwrap(), expected);
    // More than 48 KB must be asked for.
    assert_eq!(failed(run(100_000)), CUresult::CUDA_ERROR_INVALID_VALUE);
    let most = FunctionAttribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
    reverse.set_attribute(most, 100_000).unwrap();
    run(100_000).unwrap();
    assert_eq!(failed(reverse.set_attribute(most, 1 << 20)), CUresult::CUDA_ERROR_INVALID_VALUE);
    stream.synchronize().unwrap();
}

fn capture_misuse() {
    let context = CudaContext::new(0).unwrap();
    // SAFETY: one stream only.
    unsafe { context.disable_event_tracking() };
    let stream = context.new_stream().unwrap();
    stream.begin_capture(GLOBAL).unwrap();
    assert_eq!(failed(stream.synchronize()), CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
    assert_eq!(failed(stream.end_capture(FLAGS)), CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
    // The default stream can't be captured.
    assert_eq!(
        failed(context.default_stream().begin_capture(GLOBAL)),
        CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED
    );
    // Work of a second stream that nobody joined.
    let other = context.new_stream().unwrap();
    stream.begin_capture(GLOBAL).unwrap();
    other.join(&stream).unwrap();
    let data = other.alloc_zeros::<u8>(16).unwrap();
    assert_eq!(failed(stream.end_capture(FLAGS)), CUresult::CUDA_ERROR_STREAM_CAPTURE_UNJOINED);
    drop(data);
}

/// Expects the second allocation to fail.
fn allocation_failure() {
    let context = CudaContext::new(0).unwrap();
    let stream = context.default_stream();
    let first = stream.alloc_zeros::<u8>(16).unwrap();
    assert_eq!(failed(stream.alloc_zeros::<u8>(16)), CUresult::CUDA_ERROR_OUT_OF_MEMORY);
    // The device goes on.
    assert_eq!(stream.clone_dtoh(&first).unwrap(), [0; 16]);
}

fn bad_module() {
    let context = CudaContext::new(0).unwrap();
    let load = |text: &str| context.load_module(Ptx::from_src(text));
    assert_eq!(failed(load("this is no PTX")), CUresult::CUDA_ERROR_INVALID_PTX);
    let newer = ".version 8.8\n.target sm_100\n.address_size 64\n";
    assert_eq!(failed(load(newer)), CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU);
    let module = load(KERNELS).unwrap();
    assert_eq!(failed(module.load_function("missing")), CUresult::CUDA_ERROR_NOT_FOUND);
}
