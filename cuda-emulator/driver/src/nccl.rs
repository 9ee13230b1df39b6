//! NCCL: communicators, collectives, and groups of calls.

use std::cell::RefCell;
use std::ffi::{c_char, c_void};

use cuda_emulator::driver::nccl::{
    Datum, Kind, NcclAnswer, NcclStatus, Operation, Reduction, UniqueId,
};
use cuda_emulator::driver::{Driver, Status};

use crate::state::{Handle, context, library_call, put};

/// NCCL 2.27.3.
const VERSION: i32 = 22_703;

/// `ncclUniqueId`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct Id(UniqueId);

/// The group of calls that a thread has open.
#[derive(Debug, Default)]
struct Group {
    depth: u32,
    /// Communicator, stream and calls, in order.
    calls: Vec<(Handle, Handle, Vec<Operation>)>,
    /// Communicators that are waited for at the end.
    joining: Vec<Handle>,
    /// The first error of a call: the end of the group gives it.
    failed: Option<NcclStatus>,
}

thread_local! {
    static GROUP: RefCell<Group> = RefCell::new(Group::default());
}

fn nccl_call(mut f: impl FnMut(&mut Driver) -> NcclAnswer<()>) -> u32 {
    library_call(|driver| {
        if driver.is_initialized() { f(driver) } else { Err(NcclStatus::UNHANDLED_CUDA_ERROR) }
    })
}

/// Writes a result through a pointer of the program.
unsafe fn give<T>(place: *mut T, value: T) -> NcclAnswer<()> {
    // SAFETY: the same contract.
    unsafe { put(place, value) }.map_err(|_: Status| NcclStatus::INVALID_ARGUMENT)
}

fn in_group() -> bool {
    GROUP.with_borrow(|group| group.depth > 0)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclGetVersion(version: *mut i32) -> u32 {
    // SAFETY: the program's pointer, null allowed.
    library_call(|_| unsafe { give(version, VERSION) })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclGetUniqueId(id: *mut UniqueId) -> u32 {
    library_call(|driver| {
        let made = driver.unique_id();
        // SAFETY: the program's pointer, null allowed.
        unsafe { give(id, made) }
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn ncclGetErrorString(status: u32) -> *const c_char {
    let text = match NcclStatus(status) {
        NcclStatus::SUCCESS => c"no error",
        NcclStatus::UNHANDLED_CUDA_ERROR => c"unhandled cuda error",
        NcclStatus::SYSTEM_ERROR => c"unhandled system error",
        NcclStatus::INTERNAL_ERROR => c"internal error",
        NcclStatus::INVALID_ARGUMENT => c"invalid argument",
        NcclStatus::INVALID_USAGE => c"invalid usage",
        NcclStatus::REMOTE_ERROR => c"remote process exited or there was a network error",
        _ => c"unknown result code",
    };
    text.as_ptr()
}

/// The reports say more.
#[unsafe(no_mangle)]
pub extern "C" fn ncclGetLastError(_communicator: Handle) -> *const c_char {
    c"see the reports of the emulator".as_ptr()
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclCommInitRank(
    communicator: *mut Handle,
    ranks: i32,
    id: Id,
    rank: i32,
) -> u32 {
    let mut made = None;
    nccl_call(|driver| {
        if communicator.is_null() {
            return Err(NcclStatus::INVALID_ARGUMENT);
        }
        let handle = match made {
            Some(handle) => handle,
            None => {
                let device = driver.context_device(context())?;
                let handle = driver.join(device, id.0, ranks, rank)?;
                // SAFETY: not null, and the program's pointer.
                unsafe { give(communicator, handle)? };
                *made.insert(handle)
            }
        };
        if in_group() {
            GROUP.with_borrow_mut(|group| group.joining.push(handle));
            return Ok(());
        }
        driver.joined(handle)
    })
}

/// The configuration changes nothing: calls return once all ranks are there.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclCommInitRankConfig(
    communicator: *mut Handle,
    ranks: i32,
    id: Id,
    rank: i32,
    _configuration: *const c_void,
) -> u32 {
    // SAFETY: the same contract.
    unsafe { ncclCommInitRank(communicator, ranks, id, rank) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclCommInitAll(
    communicators: *mut Handle,
    ranks: i32,
    devices: *const i32,
) -> u32 {
    nccl_call(|driver| {
        if communicators.is_null() || ranks < 1 {
            return Err(NcclStatus::INVALID_ARGUMENT);
        }
        let id = driver.unique_id();
        for rank in 0..ranks {
            let device = if devices.is_null() {
                rank
            } else {
                // SAFETY: the program vouches for a device for each rank.
                unsafe { devices.add(rank as usize).read() }
            };
            let device = driver.device_get(device).map_err(|_| NcclStatus::INVALID_ARGUMENT)?;
            let joined = driver.join(device, id, ranks, rank)?;
            // SAFETY: the program vouches for the room.
            unsafe { communicators.add(rank as usize).write(joined) };
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclCommFinalize(communicator: Handle) -> u32 {
    nccl_call(|driver| driver.finalize(communicator))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclCommDestroy(communicator: Handle) -> u32 {
    nccl_call(|driver| {
        let ended = driver.finalize(communicator);
        match ended {
            Err(NcclStatus::BLOCKED) => ended,
            Ok(()) | Err(_) => driver.leave(communicator).and(ended),
        }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclCommAbort(communicator: Handle) -> u32 {
    nccl_call(|driver| driver.leave(communicator))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclCommCount(communicator: Handle, count: *mut i32) -> u32 {
    nccl_call(|driver| {
        let found = driver.membership(communicator)?.size as i32;
        // SAFETY: the program's pointer, null allowed.
        unsafe { give(count, found) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclCommCuDevice(communicator: Handle, device: *mut i32) -> u32 {
    nccl_call(|driver| {
        let found = driver.membership(communicator)?.device as i32;
        // SAFETY: the program's pointer, null allowed.
        unsafe { give(device, found) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclCommUserRank(communicator: Handle, rank: *mut i32) -> u32 {
    nccl_call(|driver| {
        let found = driver.membership(communicator)?.rank as i32;
        // SAFETY: the program's pointer, null allowed.
        unsafe { give(rank, found) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclCommGetAsyncError(communicator: Handle, error: *mut u32) -> u32 {
    nccl_call(|driver| {
        let broken = driver.membership(communicator)?.broken;
        let found = if broken { NcclStatus::REMOTE_ERROR } else { NcclStatus::SUCCESS };
        // SAFETY: the program's pointer, null allowed.
        unsafe { give(error, found.0) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclMemAlloc(address: *mut u64, bytes: usize) -> u32 {
    nccl_call(|driver| {
        let device = driver.context_device(context())?;
        let allocated = driver.allocate(device, bytes as u64)?;
        // SAFETY: the program's pointer, null allowed.
        unsafe { give(address, allocated) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclMemFree(address: u64) -> u32 {
    nccl_call(|driver| Ok(driver.free(address)?))
}

#[unsafe(no_mangle)]
pub extern "C" fn ncclGroupStart() -> u32 {
    GROUP.with_borrow_mut(|group| group.depth += 1);
    NcclStatus::SUCCESS.0
}

#[unsafe(no_mangle)]
pub extern "C" fn ncclGroupEnd() -> u32 {
    let ended = GROUP.with_borrow_mut(|group| match group.depth {
        0 => Err(NcclStatus::INVALID_USAGE),
        1 => Ok(Some(std::mem::take(group))),
        _ => {
            group.depth -= 1;
            Ok(None)
        }
    });
    let group = match ended {
        Err(status) => return status.0,
        Ok(None) => return NcclStatus::SUCCESS.0,
        Ok(Some(group)) => group,
    };
    if let Some(status) = group.failed {
        return status.0;
    }
    let mut calls = group.calls.into_iter();
    nccl_call(|driver| {
        for communicator in &group.joining {
            driver.joined(*communicator)?;
        }
        // Nothing below waits, so that no call is made twice.
        for (communicator, stream, operations) in calls.by_ref() {
            driver.communicate(communicator, stream, operations)?;
        }
        Ok(())
    })
}

/// Queues a call, or keeps it for the end of the group.
fn make(
    communicator: Handle,
    stream: Handle,
    addresses: [u64; 2],
    count: usize,
    datum: u32,
    kind: Option<Kind>,
) -> u32 {
    let [send, receive] = addresses;
    let operation = kind.zip(Datum::of(datum)).map(|(kind, datum)| Operation {
        kind,
        send,
        receive,
        count: count as u64,
        datum,
    });
    let Some(operation) = operation else {
        GROUP.with_borrow_mut(|group| {
            if group.depth > 0 {
                group.failed.get_or_insert(NcclStatus::INVALID_ARGUMENT);
            }
        });
        return NcclStatus::INVALID_ARGUMENT.0;
    };
    if !in_group() {
        return nccl_call(|driver| driver.communicate(communicator, stream, vec![operation]));
    }
    GROUP.with_borrow_mut(|group| {
        let known = group.calls.iter_mut().find(|call| (call.0, call.1) == (communicator, stream));
        match known {
            Some((.., operations)) => operations.push(operation),
            None => group.calls.push((communicator, stream, vec![operation])),
        }
    });
    NcclStatus::SUCCESS.0
}

fn rank(number: i32) -> Option<usize> {
    usize::try_from(number).ok()
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclAllReduce(
    send: u64,
    receive: u64,
    count: usize,
    datum: u32,
    reduction: u32,
    communicator: Handle,
    stream: Handle,
) -> u32 {
    let kind = Reduction::of(reduction).map(Kind::AllReduce);
    make(communicator, stream, [send, receive], count, datum, kind)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclReduce(
    send: u64,
    receive: u64,
    count: usize,
    datum: u32,
    reduction: u32,
    root: i32,
    communicator: Handle,
    stream: Handle,
) -> u32 {
    let kind = Reduction::of(reduction).zip(rank(root)).map(|(r, root)| Kind::Reduce(r, root));
    make(communicator, stream, [send, receive], count, datum, kind)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclBroadcast(
    send: u64,
    receive: u64,
    count: usize,
    datum: u32,
    root: i32,
    communicator: Handle,
    stream: Handle,
) -> u32 {
    let kind = rank(root).map(Kind::Broadcast);
    make(communicator, stream, [send, receive], count, datum, kind)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclBcast(
    buffer: u64,
    count: usize,
    datum: u32,
    root: i32,
    communicator: Handle,
    stream: Handle,
) -> u32 {
    let kind = rank(root).map(Kind::Broadcast);
    make(communicator, stream, [buffer, buffer], count, datum, kind)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclAllGather(
    send: u64,
    receive: u64,
    count: usize,
    datum: u32,
    communicator: Handle,
    stream: Handle,
) -> u32 {
    make(communicator, stream, [send, receive], count, datum, Some(Kind::AllGather))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclReduceScatter(
    send: u64,
    receive: u64,
    count: usize,
    datum: u32,
    reduction: u32,
    communicator: Handle,
    stream: Handle,
) -> u32 {
    let kind = Reduction::of(reduction).map(Kind::ReduceScatter);
    make(communicator, stream, [send, receive], count, datum, kind)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclSend(
    send: u64,
    count: usize,
    datum: u32,
    peer: i32,
    communicator: Handle,
    stream: Handle,
) -> u32 {
    let kind = rank(peer).map(Kind::Send);
    make(communicator, stream, [send, 0], count, datum, kind)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclRecv(
    receive: u64,
    count: usize,
    datum: u32,
    peer: i32,
    communicator: Handle,
    stream: Handle,
) -> u32 {
    let kind = rank(peer).map(Kind::Receive);
    make(communicator, stream, [0, receive], count, datum, kind)
}
