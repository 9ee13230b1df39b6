//! Memory of devices: allocations and copies.

use super::status::{Answer, Status};
use super::work::{HostAddress, Source, Work};
use super::{Driver, default_stream};

impl Driver {
    /// `cuMemGetInfo`: free and total bytes.
    pub fn memory_info(&self, device: usize) -> Answer<(u64, u64)> {
        let memory = &self.device(device)?.memory;
        Ok((memory.capacity() - memory.used(), memory.capacity()))
    }

    /// `cuMemAlloc`.
    pub fn allocate(&mut self, device: usize, bytes: u64) -> Answer<u64> {
        self.forbid_in_capture(device)?;
        self.allocate_now(device, bytes)
    }

    /// `cuMemAllocAsync`: the address can be used at once.
    pub fn allocate_async(&mut self, stream: u64, bytes: u64) -> Answer<u64> {
        let device = self.streams.get(&stream).ok_or(Status::INVALID_HANDLE)?.device;
        let pool = self.pool_of(device)?;
        self.allocate_from(pool, stream, bytes)
    }

    /// `cuMemAllocFromPoolAsync`: memory of the pool's device.
    pub fn allocate_from(&mut self, pool: u64, stream: u64, bytes: u64) -> Answer<u64> {
        if !self.streams.contains_key(&stream) {
            return Err(Status::INVALID_HANDLE);
        }
        let device = self.pools.get(&pool).ok_or(Status::INVALID_HANDLE)?.device;
        let address = self.allocate_now(device, bytes)?;
        self.note_pooled(pool, address, bytes);
        Ok(address)
    }

    fn allocate_now(&mut self, device: usize, bytes: u64) -> Answer<u64> {
        if bytes == 0 {
            return Err(Status::INVALID_VALUE);
        }
        self.allocations += 1;
        if self.config.failing_allocation == Some(self.allocations) {
            return Err(Status::OUT_OF_MEMORY);
        }
        self.device_mut(device)?.memory.allocate(bytes).map_err(|_| Status::OUT_OF_MEMORY)
    }

    /// `cuMemFree`: waits for the device's work first.
    pub fn free(&mut self, address: u64) -> Answer<()> {
        if address == 0 {
            return Ok(());
        }
        let device = self.device_of(address).map_err(|_| Status::INVALID_VALUE)?;
        self.forbid_in_capture(device)?;
        self.drain_device(device)?;
        self.release(address)
    }

    /// `cuMemFreeAsync`. In a capture the memory lives as long as the graph.
    pub fn free_async(&mut self, stream: u64, address: u64) -> Answer<()> {
        let state = self.streams.get(&stream).ok_or(Status::INVALID_HANDLE)?;
        if state.capture.is_some() {
            return Ok(());
        }
        let device = self.device_of(address).map_err(|_| Status::INVALID_VALUE)?;
        let (base, _) = self.device(device)?.memory.find(address).ok_or(Status::INVALID_VALUE)?;
        if base != address {
            return Err(Status::INVALID_VALUE);
        }
        self.push(stream, Work::Free(address))
    }

    fn is_capturing(&self, stream: u64) -> Answer<bool> {
        let stream = self.streams.get(&stream).ok_or(Status::INVALID_HANDLE)?;
        Ok(stream.capture.is_some())
    }

    /// Whether all of a range is allocated; a copy beyond an allocation is refused when queued.
    fn check_range(&self, address: u64, bytes: u64) -> Answer<()> {
        let device = self.device_of(address).map_err(|_| Status::INVALID_VALUE)?;
        let memory = &self.device(device)?.memory;
        match memory.find(address) {
            Some((base, size))
                if (address - base).checked_add(bytes).is_some_and(|end| end <= size) =>
            {
                Ok(())
            }
            _ => Err(Status::INVALID_VALUE),
        }
    }

    /// `cuMemcpyHtoDAsync`. Pageable memory is taken at once; pinned memory when the copy is done.
    ///
    /// # Safety
    ///
    /// `from` must be readable for `bytes`; pinned memory until the copy is done.
    pub unsafe fn upload_async(
        &mut self,
        stream: u64,
        to: u64,
        from: HostAddress,
        bytes: u64,
    ) -> Answer<()> {
        if bytes == 0 {
            return Ok(());
        }
        self.check_range(to, bytes)?;
        let source = if self.is_pinned(from) || self.is_capturing(stream)? {
            Source::Pinned(from, bytes)
        } else {
            // SAFETY: the caller vouches for the range.
            let taken = unsafe { std::slice::from_raw_parts(from.0 as *const u8, bytes as usize) };
            Source::Taken(taken.to_vec())
        };
        self.push(stream, Work::Upload { to, from: source })
    }

    /// `cuMemcpyHtoD`.
    ///
    /// # Safety
    ///
    /// `from` must be readable for `bytes`.
    pub unsafe fn upload(
        &mut self,
        device: usize,
        to: u64,
        from: HostAddress,
        bytes: u64,
    ) -> Answer<()> {
        self.forbid_in_capture(device)?;
        let stream = default_stream(device);
        self.settle(stream)?;
        // SAFETY: the caller vouches for the range, and the copy is done before this returns.
        unsafe { self.upload_async(stream, to, from, bytes)? };
        self.drain(stream, u64::MAX)
    }

    /// `cuMemcpyDtoHAsync`. A copy to pageable memory is done before this returns.
    ///
    /// # Safety
    ///
    /// `to` must be writable for `bytes`; pinned memory until the copy is done.
    pub unsafe fn download_async(
        &mut self,
        stream: u64,
        to: HostAddress,
        from: u64,
        bytes: u64,
    ) -> Answer<()> {
        if bytes == 0 {
            return Ok(());
        }
        self.check_range(from, bytes)?;
        let deferred = self.is_pinned(to) || self.is_capturing(stream)?;
        if !deferred {
            self.settle(stream)?;
        }
        self.push(stream, Work::Download { to, from, bytes })?;
        if deferred { Ok(()) } else { self.drain(stream, u64::MAX) }
    }

    /// `cuMemcpyDtoH`.
    ///
    /// # Safety
    ///
    /// `to` must be writable for `bytes`.
    pub unsafe fn download(
        &mut self,
        device: usize,
        to: HostAddress,
        from: u64,
        bytes: u64,
    ) -> Answer<()> {
        self.forbid_in_capture(device)?;
        let stream = default_stream(device);
        self.settle(stream)?;
        // SAFETY: the caller vouches for the range, and the copy is done before this returns.
        unsafe { self.download_async(stream, to, from, bytes)? };
        self.drain(stream, u64::MAX)
    }

    /// `cuMemcpyDtoDAsync` and `cuMemcpyPeerAsync`.
    pub fn copy_async(&mut self, stream: u64, to: u64, from: u64, bytes: u64) -> Answer<()> {
        if bytes == 0 {
            return Ok(());
        }
        self.check_range(to, bytes)?;
        self.check_range(from, bytes)?;
        self.push(stream, Work::Copy { to, from, bytes })
    }

    /// `cuMemsetD8Async`, `cuMemsetD16Async` and `cuMemsetD32Async`.
    pub fn fill_async(&mut self, stream: u64, to: u64, pattern: &[u8], count: u64) -> Answer<()> {
        if count == 0 {
            return Ok(());
        }
        if !to.is_multiple_of(pattern.len().max(1) as u64) {
            return Err(Status::INVALID_VALUE);
        }
        self.check_range(to, count.saturating_mul(pattern.len() as u64))?;
        self.push(stream, Work::Fill { to, pattern: pattern.to_vec(), count })
    }

    /// The beginning and size of the allocation that an address lies in, and its device.
    pub fn allocation(&self, address: u64) -> Answer<(u64, u64, usize)> {
        let device = self.device_of(address).map_err(|_| Status::INVALID_VALUE)?;
        let found = self.device(device)?.memory.find(address).ok_or(Status::INVALID_VALUE)?;
        Ok((found.0, found.1, device))
    }
}
