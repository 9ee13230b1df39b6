//! What streams hold, and how it is done.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use crate::{Kernel, Launch};

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
        // The legacy default stream and blocking streams wait for each other.
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
        if waits.iter().any(captured) {
            return Err(Status::CAPTURE_IMPLICIT);
        }
        for (stream, count) in waits {
            if self.streams.get(&stream).is_some_and(|other| other.done < count) {
                self.enqueue(handle, Work::Wait { stream, count });
            }
        }
        self.enqueue(handle, work);
        if self.config.eager { self.drain(handle, u64::MAX) } else { Ok(()) }
    }

    fn enqueue(&mut self, handle: u64, work: Work) {
        if let Some(stream) = self.streams.get_mut(&handle) {
            stream.queue.push_back(work);
            stream.queued += 1;
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
    pub(crate) fn drain(&mut self, handle: u64, count: u64) -> Answer<()> {
        let mut open = vec![(handle, count)];
        while let Some(&(handle, count)) = open.last() {
            let Some(stream) = self.streams.get_mut(&handle) else {
                open.pop();
                continue;
            };
            if stream.done >= count {
                open.pop();
                continue;
            }
            if let Some(&Work::Wait { stream: other, count }) = stream.queue.front()
                && self.streams.get(&other).is_some_and(|other| other.done < count)
            {
                open.push((other, count));
                continue;
            }
            let Some(stream) = self.streams.get_mut(&handle) else { continue };
            match stream.queue.pop_front() {
                None => _ = open.pop(),
                Some(work) => {
                    stream.done += 1;
                    let device = stream.device;
                    self.perform(device, work)?;
                }
            }
        }
        Ok(())
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
                self.run(device, &kernel, &shape, &parameters)
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
            Work::Wait { .. } => Ok(()),
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
