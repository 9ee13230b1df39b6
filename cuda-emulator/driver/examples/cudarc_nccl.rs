//! Collectives as they would be written for several GPUs, with cudarc's layer over NCCL.
//!
//!     cudarc_nccl CASE
//!
//! Each case panics if something is not as the documentation of NCCL says.

use std::sync::Arc;

use cudarc::driver::sys::CUgraphInstantiate_flags;
use cudarc::driver::sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL as LOCAL;
use cudarc::driver::{CudaContext, CudaStream};
use cudarc::nccl::safe::{Comm, Id, ReduceOp, group_end, group_start};
use cudarc::nccl::sys::ncclResult_t as Status;
use half::bf16;

fn main() {
    let case = std::env::args().nth(1).unwrap_or_default();
    match case.as_str() {
        "collectives" => ranks(4, collectives),
        "layers" => ranks(2, layers),
        "pairs" => ranks(3, pairs),
        "graph" => ranks(2, graph),
        "one-thread" => one_thread(),
        "mismatch" => mismatch(),
        "missing" => missing(),
        "missing-at-start" => missing_at_start(),
        "other-order" => other_order(),
        "misuse" => misuse(),
        other => panic!("no case {other:?}"),
    }
    println!("{case} is as it should be");
}

/// Runs a function as each rank of a communicator, in a thread of its own.
fn ranks(count: usize, f: fn(&Comm, &Arc<CudaStream>)) {
    let id = Id::new().unwrap();
    let run = move |rank: usize| {
        let context = CudaContext::new(rank).unwrap();
        let stream = context.new_stream().unwrap();
        let comm = Comm::from_rank(stream.clone(), rank, count, id).unwrap();
        assert_eq!((comm.rank(), comm.world_size(), comm.ordinal()), (rank, count, rank));
        f(&comm, &stream);
        stream.synchronize().unwrap();
    };
    let threads: Vec<_> = (0..count).map(|rank| std::thread::spawn(move || run(rank))).collect();
    for thread in threads {
        thread.join().unwrap();
    }
}

fn collectives(comm: &Comm, stream: &Arc<CudaStream>) {
    let rank = comm.rank() as f32;
    let own = stream.clone_htod(&[rank + 1.0, 10.0 * rank]).unwrap();
    let mut result = stream.alloc_zeros::<f32>(2).unwrap();
    for (operation, expected) in [
        (ReduceOp::Sum, [10.0, 60.0]),
        (ReduceOp::Prod, [24.0, 0.0]),
        (ReduceOp::Max, [4.0, 30.0]),
        (ReduceOp::Min, [1.0, 0.0]),
        (ReduceOp::Avg, [2.5, 15.0]),
    ] {
        comm.all_reduce(&own, &mut result, &operation).unwrap();
        assert_eq!(stream.clone_dtoh(&result).unwrap(), expected);
    }
    let mut gathered = stream.alloc_zeros::<f32>(8).unwrap();
    comm.all_gather(&own, &mut gathered).unwrap();
    assert_eq!(stream.clone_dtoh(&gathered).unwrap(), [1.0, 0.0, 2.0, 10.0, 3.0, 20.0, 4.0, 30.0]);
    // Every rank has 0 to 7; rank r gets four times its two.
    let all = stream.clone_htod(&[0, 1, 2, 3, 4, 5, 6, 7i32]).unwrap();
    let mut part = stream.alloc_zeros::<i32>(2).unwrap();
    comm.reduce_scatter(&all, &mut part, &ReduceOp::Sum).unwrap();
    let first = 8 * comm.rank() as i32;
    assert_eq!(stream.clone_dtoh(&part).unwrap(), [first, first + 4]);
    let mut told = stream.clone_htod(&[comm.rank() as u8; 3]).unwrap();
    comm.broadcast_in_place(&mut told, 2).unwrap();
    assert_eq!(stream.clone_dtoh(&told).unwrap(), [2; 3]);
    let halves = stream.clone_htod(&[bf16::from_f32(rank); 5]).unwrap();
    let mut sum = stream.alloc_zeros::<bf16>(5).unwrap();
    let to_root = (comm.rank() == 1).then_some(&mut sum);
    comm.reduce(&halves, to_root, &ReduceOp::Sum, 1).unwrap();
    let expected = if comm.rank() == 1 { 6.0 } else { 0.0 };
    assert_eq!(stream.clone_dtoh(&sum).unwrap(), [bf16::from_f32(expected); 5]);
}

/// Many steps without a wait of the host in between, as a model of several layers does.
fn layers(comm: &Comm, stream: &Arc<CudaStream>) {
    let mut value = stream.clone_htod(&[1.0f32]).unwrap();
    for _ in 0..20 {
        comm.all_reduce_in_place(&mut value, &ReduceOp::Sum).unwrap();
    }
    assert_eq!(stream.clone_dtoh(&value).unwrap(), [f32::from(2u8).powi(20)]);
}

/// A ring: each rank sends to the next and gets from the one before, in one group.
fn pairs(comm: &Comm, stream: &Arc<CudaStream>) {
    let (rank, size) = (comm.rank(), comm.world_size());
    let own = stream.clone_htod(&[rank as u32; 4]).unwrap();
    let mut other = stream.alloc_zeros::<u32>(4).unwrap();
    group_start().unwrap();
    comm.send(&own, ((rank + 1) % size) as i32).unwrap();
    comm.recv(&mut other, ((rank + size - 1) % size) as i32).unwrap();
    group_end().unwrap();
    assert_eq!(stream.clone_dtoh(&other).unwrap(), [((rank + size - 1) % size) as u32; 4]);
    // Without a group, from rank 0 along to the last.
    if rank > 0 {
        comm.recv(&mut other, rank as i32 - 1).unwrap();
    }
    if rank + 1 < size {
        let from = if rank == 0 { &own } else { &other };
        comm.send(from, rank as i32 + 1).unwrap();
    }
    stream.synchronize().unwrap();
    if rank > 0 {
        assert_eq!(stream.clone_dtoh(&other).unwrap(), [0; 4]);
    }
}

fn graph(comm: &Comm, stream: &Arc<CudaStream>) {
    // SAFETY: everything below runs on one stream.
    unsafe { comm.context().disable_event_tracking() };
    let mut value = stream.clone_htod(&[0.0f32; 2]).unwrap();
    let mut sum = stream.alloc_zeros::<f32>(2).unwrap();
    stream.synchronize().unwrap();
    stream.begin_capture(LOCAL).unwrap();
    comm.all_reduce(&value, &mut sum, &ReduceOp::Sum).unwrap();
    let flags = CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
    let graph = stream.end_capture(flags).unwrap().expect("a graph");
    for step in 1..4 {
        stream.memcpy_htod(&[step as f32, comm.rank() as f32], &mut value).unwrap();
        graph.launch().unwrap();
        assert_eq!(stream.clone_dtoh(&sum).unwrap(), [2.0 * step as f32, 1.0]);
    }
}

fn devices(count: usize) -> Vec<Arc<CudaStream>> {
    let stream = |device| CudaContext::new(device).unwrap().new_stream().unwrap();
    (0..count).map(stream).collect()
}

/// One thread for all ranks, with groups.
fn one_thread() {
    let streams = devices(2);
    let comms = Comm::from_devices(streams.clone()).unwrap();
    let own: Vec<_> =
        streams.iter().enumerate().map(|(i, s)| s.clone_htod(&[i as f64 + 1.0]).unwrap()).collect();
    let mut sums: Vec<_> = streams.iter().map(|s| s.alloc_zeros::<f64>(1).unwrap()).collect();
    group_start().unwrap();
    for ((comm, own), sum) in comms.iter().zip(&own).zip(&mut sums) {
        comm.all_reduce(own, sum, &ReduceOp::Sum).unwrap();
    }
    group_end().unwrap();
    for (stream, sum) in streams.iter().zip(&sums) {
        assert_eq!(stream.clone_dtoh(sum).unwrap(), [3.0]);
    }
}

/// Ranks that disagree on the count.
fn mismatch() {
    let streams = devices(2);
    let comms = Comm::from_devices(streams.clone()).unwrap();
    let own: Vec<_> = streams.iter().map(|s| s.clone_htod(&[1.0f32; 8]).unwrap()).collect();
    let mut short = streams[0].alloc_zeros::<f32>(4).unwrap();
    let mut long = streams[1].alloc_zeros::<f32>(8).unwrap();
    comms[0].all_reduce(&own[0].slice(0..4), &mut short, &ReduceOp::Sum).unwrap();
    let error = comms[1].all_reduce(&own[1], &mut long, &ReduceOp::Sum).err().unwrap();
    assert_eq!(error.0, Status::ncclInvalidUsage);
    assert!(streams[0].synchronize().is_err());
    assert!(streams[1].synchronize().is_err());
    std::mem::forget((comms, own, short, long, streams));
}

/// A rank that doesn't make its call.
fn missing() {
    let streams = devices(2);
    let comms = Comm::from_devices(streams.clone()).unwrap();
    let mut value = streams[0].clone_htod(&[1.0f32]).unwrap();
    comms[0].all_reduce_in_place(&mut value, &ReduceOp::Max).unwrap();
    let error = streams[0].synchronize().unwrap_err();
    assert_eq!(error.0, cudarc::driver::sys::CUresult::CUDA_ERROR_LAUNCH_TIMEOUT);
    std::mem::forget((comms, value, streams));
}

fn missing_at_start() {
    let stream = devices(1).remove(0);
    let error = Comm::from_rank(stream, 0, 2, Id::new().unwrap()).unwrap_err();
    assert_eq!(error.0, Status::ncclSystemError);
}

/// Two communicators, used by the ranks in different orders.
fn other_order() {
    let streams = devices(2);
    let (first, second) = (
        Comm::from_devices(streams.clone()).unwrap(),
        Comm::from_devices(streams.clone()).unwrap(),
    );
    let mut values: Vec<_> = streams.iter().map(|s| s.clone_htod(&[1.0f32]).unwrap()).collect();
    first[0].all_reduce_in_place(&mut values[0], &ReduceOp::Sum).unwrap();
    second[0].all_reduce_in_place(&mut values[0], &ReduceOp::Sum).unwrap();
    second[1].all_reduce_in_place(&mut values[1], &ReduceOp::Sum).unwrap();
    first[1].all_reduce_in_place(&mut values[1], &ReduceOp::Sum).unwrap();
    assert!(streams[0].synchronize().is_err());
    std::mem::forget((first, second, values, streams));
}

fn misuse() {
    let streams = devices(2);
    let comms = Comm::from_devices(streams.clone()).unwrap();
    let mut value = streams[0].clone_htod(&[1.0f32]).unwrap();
    // A root that there isn't.
    let error = comms[0].broadcast_in_place(&mut value, 2).err().unwrap();
    assert_eq!(error.0, Status::ncclInvalidArgument);
    // Two ranks on one device: whichever comes second is refused, and the first waits in vain.
    let id = Id::new().unwrap();
    let join = move |rank| {
        let stream = CudaContext::new(0).unwrap().new_stream().unwrap();
        Comm::from_rank(stream, rank, 2, id).map(std::mem::forget).unwrap_err().0
    };
    let first = std::thread::spawn(move || join(0));
    let mut both = [join(1), first.join().unwrap()];
    both.sort();
    assert_eq!(both, [Status::ncclSystemError, Status::ncclInvalidUsage]);
    drop(comms);
}
