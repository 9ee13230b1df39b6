//! What streams hold, and how it is done.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use crate::{Kernel, Launch};

use super::blas::Matmul;
use super::nccl::{Calls, Meeting, Met};
use super::status::{Answer, Status};

/// An address of host memory, as the program gave it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostAddress(pub usize);

/// A function of the program with its argument, for `cuLaunchHostFunc`.
#[derive(Debug, Clone, Copy)]
pub struct Callback {
    /// The function.
    pub function: extern "C" fn(*mut std::ffi::c_void),
    /// Its argument.
    pub argument: usize,
}

/// Something that a stream does.
#[derive(Debug, Clone)]
pub(crate) enum Work {
    Launch {
        device: usize,
        kernel: Arc<Kernel>,
        shape: Launch,
        parameters: Vec<u8>,
    },
    /// Bytes of the host, taken when the copy was queued or when it is done.
    Upload {
        to: u64,
        from: Source,
    },
    Download {
        to: HostAddress,
        from: u64,
        bytes: u64,
    },
    Copy {
        to: u64,
        from: u64,
        bytes: u64,
    },
    Fill {
        to: u64,
        pattern: Vec<u8>,
        count: u64,
    },
    Free(u64),
    /// Waits for the first `count` pieces of work of another stream.
    Wait {
        stream: u64,
        count: u64,
    },
    Record(u64),
    Call(Callback),
    Matmul(Arc<Matmul>),
    /// Calls of a rank, before they are queued.
    Communicate(Arc<Calls>),
    /// Calls of a rank that others know of.
    Meet(Meeting),
}

/// How far a stream must get.
#[derive(Debug, Clone, Copy)]
struct Goal {
    stream: u64,
    /// Pieces of work.
    count: u64,
    /// Whether the last of these needs only to be begun: a rank arrives.
    begun: bool,
}

/// Where an upload takes its bytes from.
#[derive(Debug, Clone)]
pub(crate) enum Source {
    Taken(Vec<u8>),
    Pinned(HostAddress, u64),
}

/// A stream: work that was queued and not done.
#[derive(Debug, Default)]
pub(crate) struct Stream {
    pub(crate) device: usize,
    pub(crate) queue: VecDeque<Work>,
    /// Pieces of work done, and queued in all.
    pub(crate) done: u64,
    pub(crate) queued: u64,
    /// Whether the legacy default stream waits for it, and it for that one.
    pub(crate) blocking: bool,
    /// The capture that it takes part in.
    pub(crate) capture: Option<u64>,
    /// For each stream of the capture, how many nodes are ordered before this one's next.
    pub(crate) covers: HashMap<u64, usize>,
}

/// An event.
#[derive(Debug, Default)]
pub(crate) struct Event {
    pub(crate) device: usize,
    pub(crate) timed: bool,
    /// The stream and how many pieces of its work come before.
    pub(crate) recorded: Option<(u64, u64)>,
    pub(crate) at: Option<Instant>,
    /// Where it was recorded in a capture.
    pub(crate) captured: Option<(u64, HashMap<u64, usize>)>,
}

/// How strict a capture is about calls of other kinds: `CUstreamCaptureMode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CaptureMode {
    /// Calls that could wait for the captured work fail in every thread.
    Global,
    /// They fail in the thread that began the capture.
    ThreadLocal,
    /// They are allowed.
    Relaxed,
}

/// A capture that was begun and not ended.
#[derive(Debug)]
pub(crate) struct Capture {
    pub(crate) origin: u64,
    pub(crate) mode: CaptureMode,
    pub(crate) thread: std::thread::ThreadId,
    pub(crate) nodes: Vec<Work>,
    pub(crate) invalid: bool,
    /// For each stream, its last node.
    pub(crate) last: HashMap<u64, usize>,
}

/// Whether a stream takes part in a capture: `CUstreamCaptureStatus`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CaptureStatus {
    /// No.
    None = 0,
    /// Yes.
    Active = 1,
    /// Yes, but a call that isn't allowed has spoiled the capture.
    Invalidated = 2,
}

impl super::Driver {
    /// Queues work on a stream, or adds it to the capture that the stream takes part in.
    pub(crate) fn push(&mut self, handle: u64, work: Work) -> Answer<()> {
        let stream = self.streams.get(&handle).ok_or(Status::INVALID_HANDLE)?;
        if let Some(id) = stream.capture {
            return self.capture(handle, id, work);
        }
        let waits = self.implicit_waits(handle)?;
        for (stream, count) in waits {
            if self.streams.get(&stream).is_some_and(|other| other.done < count) {
                self.enqueue(handle, Work::Wait { stream, count });
            }
        }
        let work = match work {
            Work::Communicate(calls) => {
                let position = self.streams.get(&handle).map_or(0, |stream| stream.queued) + 1;
                let meeting = self.post(&calls, handle, position)?;
                let broken = self.is_broken(&meeting);
                self.enqueue(handle, Work::Meet(meeting));
                // The streams fail once they get there.
                if broken {
                    return Err(Status::LAUNCH_FAILED);
                }
                return self.if_eager(handle);
            }
            work => work,
        };
        self.enqueue(handle, work);
        self.if_eager(handle)
    }

    /// What work on a stream waits for without being told: the legacy default stream of a device
    /// and its blocking streams wait for each other.
    fn implicit_waits(&self, handle: u64) -> Answer<Vec<(u64, u64)>> {
        let stream = self.streams.get(&handle).ok_or(Status::INVALID_HANDLE)?;
        let device = stream.device;
        let default = super::default_stream(device);
        let waits: Vec<(u64, u64)> = if handle == default {
            self.streams
                .iter()
                .filter(|(other, stream)| {
                    **other != handle && stream.device == device && stream.blocking
                })
                .map(|(other, stream)| (*other, stream.queued))
                .collect()
        } else if stream.blocking {
            self.streams.get(&default).map(|stream| (default, stream.queued)).into_iter().collect()
        } else {
            Vec::new()
        };
        let captured = |(other, _): &(u64, u64)| {
            self.streams.get(other).is_some_and(|stream| stream.capture.is_some())
        };
        if waits.iter().any(captured) { Err(Status::CAPTURE_IMPLICIT) } else { Ok(waits) }
    }

    /// Does what comes before a piece of work that is about to be queued on a stream and done at
    /// once: a call that waits for other ranks must be one that can be made again.
    pub(crate) fn settle(&mut self, handle: u64) -> Answer<()> {
        for (stream, count) in self.implicit_waits(handle)? {
            self.drain(stream, count)?;
        }
        self.drain(handle, u64::MAX)
    }

    /// Does what a stream holds, if work begins when it is queued; as far as other ranks let it.
    fn if_eager(&mut self, handle: u64) -> Answer<()> {
        if !self.config.eager {
            return Ok(());
        }
        match self.drain(handle, u64::MAX) {
            Err(Status::BLOCKED) => Ok(()),
            other => other,
        }
    }

    fn enqueue(&mut self, handle: u64, work: Work) {
        if let Some(stream) = self.streams.get_mut(&handle) {
            stream.queue.push_back(work);
            stream.queued += 1;
            self.progress += 1;
        }
    }

    fn capture(&mut self, handle: u64, id: u64, work: Work) -> Answer<()> {
        let capture = self.captures.get_mut(&id).ok_or(Status::CAPTURE_INVALIDATED)?;
        if capture.invalid {
            return Err(Status::CAPTURE_INVALIDATED);
        }
        capture.nodes.push(work);
        let position = capture.nodes.len();
        capture.last.insert(handle, position);
        if let Some(stream) = self.streams.get_mut(&handle) {
            stream.covers.insert(handle, position);
        }
        Ok(())
    }

    /// Does the first `count` pieces of work of a stream, and what they wait for.
    ///
    /// # Errors
    ///
    /// What a piece of work fails with. [`Status::BLOCKED`] when a rank that is waited for has not
    /// made its call: what was done is done, and the caller tries again.
    pub(crate) fn drain(&mut self, handle: u64, count: u64) -> Answer<()> {
        let mut open = vec![Goal { stream: handle, count, begun: false }];
        while let Some(&goal) = open.last() {
            let handle = goal.stream;
            let Some(stream) = self.streams.get(&handle).filter(|one| one.done < goal.count) else {
                open.pop();
                continue;
            };
            let (device, done) = (stream.device, stream.done);
            match stream.queue.front() {
                None => _ = open.pop(),
                Some(&Work::Wait { stream: other, count })
                    if self.streams.get(&other).is_some_and(|other| other.done < count) =>
                {
                    open.push(Goal { stream: other, count, begun: false });
                }
                Some(Work::Meet(meeting)) => {
                    let meeting = meeting.clone();
                    if let Some(status) = self.sticky(device) {
                        return Err(status);
                    }
                    let met = self.meet(&meeting).inspect_err(|status| {
                        self.pop(handle);
                        self.set_sticky(device, *status);
                    })?;
                    match met {
                        Met::Done => _ = self.pop(handle),
                        _ if goal.begun && done + 1 == goal.count => _ = open.pop(),
                        Met::Missing => return Err(Status::BLOCKED),
                        Met::Needs { stream: other, position } => {
                            // A stream that waits for this one to end its meeting can't go on.
                            let stuck =
                                self.streams.get(&other).is_none_or(|s| s.done + 1 < position)
                                    && open.iter().any(|goal| goal.stream == other);
                            if stuck {
                                let status = self.report_circle(&meeting);
                                self.set_sticky(device, status);
                                return Err(status);
                            }
                            open.push(Goal { stream: other, count: position, begun: true });
                        }
                    }
                }
                Some(_) => {
                    if let Some(work) = self.pop(handle) {
                        self.perform(device, work)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn pop(&mut self, handle: u64) -> Option<Work> {
        let stream = self.streams.get_mut(&handle)?;
        let work = stream.queue.pop_front()?;
        stream.done += 1;
        self.progress += 1;
        Some(work)
    }

    /// Does all work of a device.
    pub(crate) fn drain_device(&mut self, device: usize) -> Answer<()> {
        let mut handles: Vec<u64> = self
            .streams
            .iter()
            .filter(|(_, stream)| stream.device == device)
            .map(|(handle, _)| *handle)
            .collect();
        handles.sort_unstable();
        for handle in handles {
            self.drain(handle, u64::MAX)?;
        }
        Ok(())
    }

    /// Does one piece of work. What fails leaves its error with the device, as on a real one.
    fn perform(&mut self, device: usize, work: Work) -> Answer<()> {
        if let Some(status) = self.sticky(device) {
            return Err(status);
        }
        let result = match work {
            Work::Launch { device, kernel, shape, parameters } => {
                self.kernels += 1;
                if self.config.failing_kernel == Some(self.kernels) {
                    Err(Status::ILLEGAL_ADDRESS)
                } else {
                    self.run(device, &kernel, &shape, &parameters)
                }
            }
            Work::Upload { to, from } => {
                let bytes = match &from {
                    Source::Taken(bytes) => bytes.as_slice(),
                    // SAFETY: the program keeps pinned memory that a queued copy reads; freeing it
                    // waits for all work.
                    Source::Pinned(at, bytes) => unsafe {
                        std::slice::from_raw_parts(at.0 as *const u8, *bytes as usize)
                    },
                };
                self.memory_at(to)
                    .and_then(|memory| memory.write(to, bytes).map_err(|_| Status::ILLEGAL_ADDRESS))
            }
            Work::Download { to, from, bytes } => self.memory_at(from).and_then(|memory| {
                // SAFETY: the program keeps the memory that a queued copy writes.
                let target =
                    unsafe { std::slice::from_raw_parts_mut(to.0 as *mut u8, bytes as usize) };
                memory.read(from, target).map_err(|_| Status::ILLEGAL_ADDRESS)
            }),
            Work::Copy { to, from, bytes } => self.copy(to, from, bytes),
            Work::Fill { to, pattern, count } => self.memory_at(to).and_then(|memory| {
                memory.fill(to, &pattern, count).map_err(|_| Status::ILLEGAL_ADDRESS)
            }),
            Work::Free(address) => self.release(address),
            Work::Matmul(matmul) => self.run_matmul(device, &matmul),
            // Both are dealt with where streams are drained.
            Work::Communicate(_) | Work::Meet(_) | Work::Wait { .. } => Ok(()),
            Work::Record(event) => {
                if let Some(event) = self.events.get_mut(&event) {
                    event.at = Some(Instant::now());
                }
                Ok(())
            }
            Work::Call(callback) => {
                (callback.function)(callback.argument as *mut std::ffi::c_void);
                Ok(())
            }
        };
        if let Err(status) = result {
            self.set_sticky(device, status);
        }
        result
    }

    /// Copies between any two devices.
    fn copy(&mut self, to: u64, from: u64, bytes: u64) -> Answer<()> {
        let illegal = |_| Status::ILLEGAL_ADDRESS;
        let (source, target) = (self.device_of(from)?, self.device_of(to)?);
        if source == target {
            return self.memory_at(to)?.copy(to, from, bytes).map_err(illegal);
        }
        let buffer: Vec<u8> =
            self.memory_at(from)?.download(from, bytes as usize).map_err(illegal)?;
        self.memory_at(to)?.write(to, &buffer).map_err(illegal)
    }
}
