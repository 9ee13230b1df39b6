//! Memory of the host that the device writes to while the host goes on.

use std::fmt;
use std::mem::ManuallyDrop;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use backend_api::{BackendError, Deadline};
use bytemuck::Pod;
use cudarc::driver::{CudaContext, CudaEvent, PinnedHostSlice, result};

use crate::device::{Device, failed};

/// Queries that follow each other without a pause: steps of small models end within them.
const QUICK: u32 = 200;
/// Between later queries.
const PAUSE: Duration = Duration::from_micros(50);
/// How long the owner's end waits for copies that are still queued.
const GRACE: Duration = Duration::from_secs(1);

/// What a step gives back: copies that are queued behind the step, and the event of their end. One step at a time.
pub(crate) struct ReadBack {
    room: ManuallyDrop<PinnedHostSlice<u8>>,
    done: CudaEvent,
    /// Whether copies were queued that have not been seen to end.
    pending: bool,
    /// Whether the event stands behind the copies that are pending.
    recorded: bool,
}

impl ReadBack {
    pub(crate) fn new(context: &Arc<CudaContext>, bytes: usize) -> Result<Self, BackendError> {
        let done = context.new_event(None).map_err(|error| failed("making an event", error))?;
        // SAFETY: bytes of any value are bytes; what is read was copied there before.
        let room = unsafe { context.alloc_pinned_with_flags(bytes.max(1), 0) };
        let room = room.map_err(|error| failed(&format!("pinning {bytes} bytes"), error))?;
        Ok(Self { room: ManuallyDrop::new(room), done, pending: false, recorded: false })
    }

    /// Queues copies of memory of the device, given by address and bytes. They come to lie one behind the other.
    pub(crate) fn queue(
        &mut self,
        device: &Device,
        pieces: &[(u64, usize)],
    ) -> Result<(), BackendError> {
        let needed: usize = pieces.iter().map(|(_, bytes)| bytes).sum();
        let room = self.room.len();
        if self.pending || needed > room {
            let message = format!("{needed} bytes to {room}, pending: {}", self.pending);
            return Err(BackendError::Device { context: "reading a step".to_owned(), message });
        }
        let stream = device.bound()?;
        let mut to = self.room.as_mut_ptr().map_err(|error| failed("pinned memory", error))?;
        (self.pending, self.recorded) = (true, false);
        for &(from, bytes) in pieces.iter().filter(|(_, bytes)| *bytes > 0) {
            // SAFETY: the pieces fit the room one behind the other, and nothing reads the room before the copies end.
            let target = unsafe { std::slice::from_raw_parts_mut(to, bytes) };
            // SAFETY: callers name memory of the device with that many bytes; the room outlives the copy.
            unsafe { result::memcpy_dtoh_async(target, from, stream.cu_stream()) }
                .map_err(|error| failed("reading from the device", error))?;
            // SAFETY: at most the end of the room.
            to = unsafe { to.add(bytes) };
        }
        self.done.record(stream).map_err(|error| failed("recording an event", error))?;
        self.recorded = true;
        Ok(())
    }

    /// Waits for what was queued; false if the deadline passed before.
    ///
    /// # Errors
    ///
    /// Those of the step, which the device reports here.
    pub(crate) fn wait(&mut self, deadline: Deadline) -> Result<bool, BackendError> {
        let bound = self.done.context().bind_to_thread();
        bound.map_err(|error| failed("binding the device", error))?;
        for query in 0u32.. {
            let done = self.done.try_is_complete();
            if done.map_err(|error| failed("waiting for the device", error))? {
                break;
            }
            if deadline.instant().is_some_and(|end| Instant::now() >= end) {
                return Ok(false);
            }
            // The driver's own wait knows no deadline.
            if query < QUICK { thread::yield_now() } else { thread::sleep(PAUSE) }
        }
        self.pending = false;
        Ok(true)
    }

    /// `count` numbers from byte `first` on, after the wait.
    pub(crate) fn numbers<T: Pod>(
        &self,
        first: usize,
        count: usize,
    ) -> Result<Vec<T>, BackendError> {
        let mut numbers = vec![T::zeroed(); count];
        let target: &mut [u8] = bytemuck::cast_slice_mut(&mut numbers);
        let room = self.room.as_slice().map_err(|error| failed("pinned memory", error))?;
        match room.get(first..).and_then(|room| room.get(..target.len())) {
            Some(bytes) if !self.pending => target.copy_from_slice(bytes),
            _ => {
                let message = format!("{count} numbers from byte {first} are not there");
                return Err(BackendError::Device { context: "reading a step".to_owned(), message });
            }
        }
        Ok(numbers)
    }
}

impl Drop for ReadBack {
    fn drop(&mut self) {
        // A device that hangs, or copies whose end no event tells, may write here at any time: then the memory stays.
        let is_done = |it: &mut Self| matches!(it.wait(Deadline::after(GRACE)), Ok(true));
        if !self.pending || (self.recorded && is_done(self)) {
            // SAFETY: dropped once, here.
            unsafe { ManuallyDrop::drop(&mut self.room) };
        }
    }
}

impl fmt::Debug for ReadBack {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (bytes, pending) = (self.room.len(), self.pending);
        formatter
            .debug_struct("ReadBack")
            .field("bytes", &bytes)
            .field("pending", &pending)
            .finish_non_exhaustive()
    }
}
