//! Streams and events.

use super::status::{Answer, Status};
use super::work::{Callback, Event, Stream, Work};
use super::{Driver, default_stream};

impl Driver {
    /// The stream that a handle of the program means: 0 and 1 are the legacy default stream. The
    /// default stream of a thread (2) is not told apart from it.
    pub fn stream(&self, device: usize, handle: u64) -> Answer<u64> {
        let handle = if handle <= 2 { default_stream(device) } else { handle };
        if self.streams.contains_key(&handle) { Ok(handle) } else { Err(Status::INVALID_HANDLE) }
    }

    /// `cuStreamCreate`.
    pub fn create_stream(&mut self, device: usize, flags: u32) -> Answer<u64> {
        if flags > 1 {
            return Err(Status::INVALID_VALUE);
        }
        let handle = self.handle();
        let stream = Stream { device, blocking: flags == 0, ..Stream::default() };
        self.streams.insert(handle, stream);
        Ok(handle)
    }

    /// `cuStreamDestroy`. What it holds is still done.
    pub fn destroy_stream(&mut self, handle: u64) -> Answer<()> {
        let stream = self.streams.get(&handle).ok_or(Status::INVALID_HANDLE)?;
        if handle == default_stream(stream.device) {
            return Err(Status::INVALID_HANDLE);
        }
        let result = self.drain(handle, u64::MAX);
        if result != Err(Status::BLOCKED) {
            self.streams.remove(&handle);
        }
        result
    }

    /// `cuStreamSynchronize`.
    pub fn synchronize_stream(&mut self, handle: u64) -> Answer<()> {
        let stream = self.streams.get(&handle).ok_or(Status::INVALID_HANDLE)?;
        if let Some(id) = stream.capture {
            if let Some(capture) = self.captures.get_mut(&id) {
                capture.invalid = true;
            }
            return Err(Status::CAPTURE_UNSUPPORTED);
        }
        self.drain(handle, u64::MAX)
    }

    /// `cuStreamQuery`: asking does not make the work go on.
    pub fn query_stream(&mut self, handle: u64) -> Answer<()> {
        let stream = self.streams.get(&handle).ok_or(Status::INVALID_HANDLE)?;
        if stream.capture.is_some() {
            return Err(Status::CAPTURE_UNSUPPORTED);
        }
        if stream.done < stream.queued {
            // Who asks again and again waits: the work is done behind the first answer.
            return match self.drain(handle, u64::MAX) {
                Ok(()) | Err(Status::BLOCKED) => Err(Status::NOT_READY),
                other => other,
            };
        }
        Ok(())
    }

    /// `cuLaunchHostFunc`.
    pub fn call_host(&mut self, handle: u64, callback: Callback) -> Answer<()> {
        self.push(handle, Work::Call(callback))
    }

    /// `cuEventCreate`.
    pub fn create_event(&mut self, device: usize, flags: u32) -> u64 {
        let handle = self.handle();
        let event = Event { device, timed: flags & 2 == 0, ..Event::default() };
        self.events.insert(handle, event);
        handle
    }

    /// `cuEventDestroy`.
    pub fn destroy_event(&mut self, handle: u64) -> Answer<()> {
        self.events.remove(&handle).map(|_| ()).ok_or(Status::INVALID_HANDLE)
    }

    /// `cuEventRecord`.
    pub fn record(&mut self, event: u64, handle: u64) -> Answer<()> {
        let stream = self.streams.get(&handle).ok_or(Status::INVALID_HANDLE)?;
        let device = stream.device;
        let state = self.events.get_mut(&event).ok_or(Status::INVALID_HANDLE)?;
        if state.device != device {
            return Err(Status::INVALID_HANDLE);
        }
        if let Some(id) = stream.capture {
            state.captured = Some((id, stream.covers.clone()));
            return Ok(());
        }
        state.captured = None;
        state.at = None;
        self.push(handle, Work::Record(event))?;
        let queued = self.streams.get(&handle).map_or(0, |stream| stream.queued);
        if let Some(state) = self.events.get_mut(&event) {
            state.recorded = Some((handle, queued));
        }
        Ok(())
    }

    /// `cuStreamWaitEvent`. A stream that waits for an event of a capture joins it.
    pub fn wait_event(&mut self, handle: u64, event: u64) -> Answer<()> {
        let state = self.events.get(&event).ok_or(Status::INVALID_HANDLE)?;
        let stream = self.streams.get_mut(&handle).ok_or(Status::INVALID_HANDLE)?;
        if let Some((id, covered)) = &state.captured {
            if !self.captures.contains_key(id) {
                return Err(Status::CAPTURED_EVENT);
            }
            match stream.capture {
                Some(own) if own != *id => return Err(Status::CAPTURE_MERGE),
                _ => stream.capture = Some(*id),
            }
            for (other, position) in covered {
                let own = stream.covers.entry(*other).or_default();
                *own = (*own).max(*position);
            }
            return Ok(());
        }
        let Some((other, count)) = state.recorded else { return Ok(()) };
        if stream.capture.is_some() {
            return Err(Status::CAPTURE_ISOLATION);
        }
        if other == handle {
            return Ok(());
        }
        self.push(handle, Work::Wait { stream: other, count })
    }

    /// `cuEventSynchronize`.
    pub fn synchronize_event(&mut self, event: u64) -> Answer<()> {
        let state = self.events.get(&event).ok_or(Status::INVALID_HANDLE)?;
        if state.captured.is_some() {
            return Err(Status::CAPTURED_EVENT);
        }
        match state.recorded {
            Some((stream, count)) => self.drain(stream, count),
            None => Ok(()),
        }
    }

    /// `cuEventQuery`.
    pub fn query_event(&mut self, event: u64) -> Answer<()> {
        let state = self.events.get(&event).ok_or(Status::INVALID_HANDLE)?;
        if state.captured.is_some() {
            return Err(Status::CAPTURED_EVENT);
        }
        let Some((stream, count)) = state.recorded else { return Ok(()) };
        if self.streams.get(&stream).is_none_or(|stream| stream.done >= count) {
            return Ok(());
        }
        match self.drain(stream, count) {
            Ok(()) | Err(Status::BLOCKED) => Err(Status::NOT_READY),
            other => other,
        }
    }

    /// `cuEventElapsedTime`, in milliseconds of the host: it says nothing about a device.
    pub fn elapsed(&self, from: u64, to: u64) -> Answer<f32> {
        let event = |handle| self.events.get(&handle).ok_or(Status::INVALID_HANDLE);
        let (from, to) = (event(from)?, event(to)?);
        if !from.timed || !to.timed || from.recorded.is_none() || to.recorded.is_none() {
            return Err(Status::INVALID_HANDLE);
        }
        match (from.at, to.at) {
            (Some(from), Some(to)) => Ok(to.saturating_duration_since(from).as_secs_f32() * 1000.0),
            _ => Err(Status::NOT_READY),
        }
    }
}
