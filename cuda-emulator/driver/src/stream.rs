//! Streams, events, capture and graphs.

use std::ffi::c_void;

use cuda_emulator::driver::{Callback, CaptureMode, Status};

use crate::state::{Handle, call, device_call, put};

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamCreate(stream: *mut Handle, flags: u32) -> u32 {
    device_call(|driver, device| {
        let created = driver.create_stream(device, flags)?;
        // SAFETY: the program's pointer, null allowed.
        unsafe { put(stream, created) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamCreateWithPriority(
    stream: *mut Handle,
    flags: u32,
    _priority: i32,
) -> u32 {
    // SAFETY: the same contract.
    unsafe { cuStreamCreate(stream, flags) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamDestroy_v2(stream: Handle) -> u32 {
    device_call(|driver, device| {
        let stream = driver.stream(device, stream)?;
        driver.destroy_stream(stream)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamSynchronize(stream: Handle) -> u32 {
    device_call(|driver, device| {
        let stream = driver.stream(device, stream)?;
        driver.synchronize_stream(stream)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamQuery(stream: Handle) -> u32 {
    device_call(|driver, device| {
        let stream = driver.stream(device, stream)?;
        driver.query_stream(stream)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamWaitEvent(stream: Handle, event: Handle, _flags: u32) -> u32 {
    device_call(|driver, device| {
        let stream = driver.stream(device, stream)?;
        driver.wait_event(stream, event)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuLaunchHostFunc(
    stream: Handle,
    function: Option<extern "C" fn(*mut c_void)>,
    argument: usize,
) -> u32 {
    device_call(|driver, device| {
        let stream = driver.stream(device, stream)?;
        let function = function.ok_or(Status::INVALID_VALUE)?;
        driver.call_host(stream, Callback { function, argument })
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventCreate(event: *mut Handle, flags: u32) -> u32 {
    device_call(|driver, device| {
        let created = driver.create_event(device, flags);
        // SAFETY: the program's pointer, null allowed.
        unsafe { put(event, created) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventDestroy_v2(event: Handle) -> u32 {
    device_call(|driver, _| driver.destroy_event(event))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventRecord(event: Handle, stream: Handle) -> u32 {
    device_call(|driver, device| {
        let stream = driver.stream(device, stream)?;
        driver.record(event, stream)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventSynchronize(event: Handle) -> u32 {
    device_call(|driver, _| driver.synchronize_event(event))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventQuery(event: Handle) -> u32 {
    device_call(|driver, _| driver.query_event(event))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventElapsedTime(time: *mut f32, from: Handle, to: Handle) -> u32 {
    device_call(|driver, _| {
        let found = driver.elapsed(from, to)?;
        // SAFETY: the program's pointer, null allowed.
        unsafe { put(time, found) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventElapsedTime_v2(time: *mut f32, from: Handle, to: Handle) -> u32 {
    // SAFETY: the same contract.
    unsafe { cuEventElapsedTime(time, from, to) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamBeginCapture_v2(stream: Handle, mode: u32) -> u32 {
    device_call(|driver, device| {
        let stream = driver.stream(device, stream)?;
        let mode = match mode {
            0 => CaptureMode::Global,
            1 => CaptureMode::ThreadLocal,
            2 => CaptureMode::Relaxed,
            _ => return Err(Status::INVALID_VALUE),
        };
        driver.begin_capture(stream, mode)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamIsCapturing(stream: Handle, status: *mut u32) -> u32 {
    device_call(|driver, device| {
        let stream = driver.stream(device, stream)?;
        let found = driver.capture_status(stream)? as u32;
        // SAFETY: the program's pointer, null allowed.
        unsafe { put(status, found) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamEndCapture(stream: Handle, graph: *mut Handle) -> u32 {
    device_call(|driver, device| {
        let stream = driver.stream(device, stream)?;
        // SAFETY: the program's pointer, null allowed.
        unsafe { put(graph, 0)? };
        let captured = driver.end_capture(stream)?;
        // SAFETY: as above.
        unsafe { put(graph, captured) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGraphInstantiateWithFlags(
    executable: *mut Handle,
    graph: Handle,
    _flags: u64,
) -> u32 {
    device_call(|driver, _| {
        let created = driver.instantiate(graph)?;
        // SAFETY: the program's pointer, null allowed.
        unsafe { put(executable, created) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGraphLaunch(executable: Handle, stream: Handle) -> u32 {
    device_call(|driver, device| {
        let stream = driver.stream(device, stream)?;
        driver.launch_graph(executable, stream)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGraphUpload(executable: Handle, stream: Handle) -> u32 {
    device_call(|driver, device| {
        driver.stream(device, stream)?;
        driver.upload_graph(executable)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGraphGetNodes(
    graph: Handle,
    nodes: *mut Handle,
    count: *mut usize,
) -> u32 {
    call(|driver| {
        // Nodes can be counted but not looked into.
        if !nodes.is_null() {
            return Err(Status::NOT_SUPPORTED);
        }
        let found = driver.graph_nodes(graph)?;
        // SAFETY: the program's pointer, null allowed.
        unsafe { put(count, found) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGraphDestroy(graph: Handle) -> u32 {
    call(|driver| driver.destroy_graph(graph))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGraphExecDestroy(executable: Handle) -> u32 {
    call(|driver| driver.destroy_executable(executable))
}
