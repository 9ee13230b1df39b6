//! Devices, contexts and memory.

use std::alloc::Layout;

use super::status::{Answer, Status};
use super::work::{CaptureMode, HostAddress, Source, Work};
use super::{Context, Driver, primary_context};
use super::{config, default_stream};

impl Driver {
    /// `cuInit`.
    pub fn initialize(&mut self, flags: u32) -> Answer<()> {
        if flags != 0 {
            return Err(Status::INVALID_VALUE);
        }
        if self.devices.is_empty() {
            return Err(Status::NO_DEVICE);
        }
        self.initialized = true;
        Ok(())
    }

    /// `cuDeviceGetCount`.
    pub fn device_count(&self) -> i32 {
        self.devices.len() as i32
    }

    /// `cuDeviceGet`: devices are their ordinals.
    pub fn device_get(&self, ordinal: i32) -> Answer<usize> {
        let device = usize::try_from(ordinal).map_err(|_| Status::INVALID_DEVICE)?;
        self.device(device).map(|_| device)
    }

    /// `cuDeviceGetAttribute`.
    pub fn attribute(&self, device: usize, number: u32) -> Answer<i32> {
        self.device(device)?;
        Ok(match number {
            // The PCI device: what tells devices apart.
            34 => device as i32,
            _ => config::attribute(&self.config, number),
        })
    }

    /// `cuDevicePrimaryCtxRetain`.
    pub fn retain_primary(&mut self, device: usize) -> Answer<u64> {
        self.device_mut(device)?.retained += 1;
        let handle = primary_context(device);
        self.contexts.insert(handle, Context { device, is_primary: true });
        Ok(handle)
    }

    /// `cuDevicePrimaryCtxRelease`. The last release resets the device: its memory and its error
    /// go.
    pub fn release_primary(&mut self, device: usize) -> Answer<()> {
        match self.device(device)?.retained {
            0 => return Err(Status::INVALID_CONTEXT),
            // What is still queued is done: programs may rely on it.
            1 => match self.drain_device(device) {
                Err(Status::BLOCKED) => return Err(Status::BLOCKED),
                Ok(()) | Err(_) => self.reset(device)?,
            },
            _ => {}
        }
        self.device_mut(device)?.retained -= 1;
        Ok(())
    }

    fn reset(&mut self, device: usize) -> Answer<()> {
        self.contexts.remove(&primary_context(device));
        let capacity = self.config.memory;
        let on_device = |stream: &super::Stream| stream.device == device;
        self.streams.retain(|_, stream| !on_device(stream));
        let stream = super::Stream { device, blocking: true, ..super::Stream::default() };
        self.streams.insert(default_stream(device), stream);
        self.events.retain(|_, event| event.device != device);
        self.modules.retain(|_, module| module.device != device);
        let state = self.device_mut(device)?;
        state.memory = crate::Memory::of_device(capacity, device as u64);
        state.sticky = None;
        state.peers.clear();
        Ok(())
    }

    /// `cuCtxCreate`.
    pub fn create_context(&mut self, device: usize) -> Answer<u64> {
        self.device(device)?;
        let handle = self.handle();
        self.contexts.insert(handle, Context { device, is_primary: false });
        Ok(handle)
    }

    /// `cuCtxDestroy`.
    pub fn destroy_context(&mut self, handle: u64) -> Answer<()> {
        match self.contexts.get(&handle) {
            Some(context) if !context.is_primary => {
                self.contexts.remove(&handle);
                Ok(())
            }
            _ => Err(Status::INVALID_CONTEXT),
        }
    }

    /// The device of a context.
    pub fn context_device(&self, handle: u64) -> Answer<usize> {
        self.contexts.get(&handle).map(|context| context.device).ok_or(Status::INVALID_CONTEXT)
    }

    /// `cuCtxSynchronize`.
    pub fn synchronize(&mut self, device: usize) -> Answer<()> {
        self.forbid_in_capture(device)?;
        self.drain_device(device)
    }

    /// Fails if a capture is open that doesn't allow calls which may wait for its work.
    pub(super) fn forbid_in_capture(&mut self, device: usize) -> Answer<()> {
        let thread = std::thread::current().id();
        let streams = &self.streams;
        let concerned = self.captures.values_mut().filter(|capture| {
            let here = streams.get(&capture.origin).is_some_and(|s| s.device == device);
            here && match capture.mode {
                CaptureMode::Global => true,
                CaptureMode::ThreadLocal => capture.thread == thread,
                CaptureMode::Relaxed => false,
            }
        });
        let mut forbidden = false;
        for capture in concerned {
            capture.invalid = true;
            forbidden = true;
        }
        if forbidden { Err(Status::CAPTURE_UNSUPPORTED) } else { Ok(()) }
    }

    /// `cuCtxGetLimit`. Limits are kept and change nothing.
    pub fn limit(&self, device: usize, number: u32) -> Answer<usize> {
        let usual = match number {
            // Stack of a thread, buffer of printf, heap of malloc.
            0 => 1024,
            1 => 1 << 20,
            2 => 8 << 20,
            _ => return Err(Status::UNSUPPORTED_LIMIT),
        };
        Ok(self.limits.get(&(device, number)).copied().unwrap_or(usual))
    }

    /// `cuCtxSetLimit`.
    pub fn set_limit(&mut self, device: usize, number: u32, value: usize) -> Answer<()> {
        self.limit(device, number)?;
        self.limits.insert((device, number), value);
        Ok(())
    }

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
        self.allocate_now(device, bytes)
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

    /// `cuMemHostAlloc`.
    pub fn allocate_host(&mut self, bytes: usize) -> Answer<HostAddress> {
        let layout = Layout::from_size_align(bytes, 4096).map_err(|_| Status::INVALID_VALUE)?;
        if bytes == 0 {
            return Err(Status::INVALID_VALUE);
        }
        // SAFETY: the layout has a size that is not zero.
        let at = unsafe { std::alloc::alloc(layout) } as usize;
        if at == 0 {
            return Err(Status::OUT_OF_MEMORY);
        }
        self.pinned.insert(at, bytes);
        Ok(HostAddress(at))
    }

    /// `cuMemFreeHost`: waits for all work first.
    pub fn free_host(&mut self, address: HostAddress) -> Answer<()> {
        if !self.pinned.contains_key(&address.0) {
            return Err(Status::INVALID_VALUE);
        }
        for device in 0..self.devices.len() {
            self.drain_device(device)?;
        }
        let Some(bytes) = self.pinned.remove(&address.0) else {
            return Err(Status::INVALID_VALUE);
        };
        let layout = Layout::from_size_align(bytes, 4096).map_err(|_| Status::INVALID_VALUE)?;
        // SAFETY: allocated above with the same layout, and no longer listed.
        unsafe { std::alloc::dealloc(address.0 as *mut u8, layout) };
        Ok(())
    }

    fn is_pinned(&self, address: HostAddress) -> bool {
        self.pinned
            .range(..=address.0)
            .next_back()
            .is_some_and(|(base, bytes)| address.0 < base + bytes)
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
            Some((base, size)) if address - base + bytes <= size => Ok(()),
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

    /// `cuDeviceCanAccessPeer`.
    pub fn can_access_peer(&self, device: usize, peer: usize) -> Answer<bool> {
        self.device(device)?;
        self.device(peer)?;
        Ok(device != peer)
    }

    /// `cuCtxEnablePeerAccess`.
    pub fn enable_peer(&mut self, device: usize, peer: usize) -> Answer<()> {
        if !self.can_access_peer(device, peer)? {
            return Err(Status::INVALID_DEVICE);
        }
        let peers = &mut self.device_mut(device)?.peers;
        if peers.contains(&peer) {
            return Err(Status::PEER_ENABLED);
        }
        peers.push(peer);
        Ok(())
    }

    /// `cuCtxDisablePeerAccess`.
    pub fn disable_peer(&mut self, device: usize, peer: usize) -> Answer<()> {
        let peers = &mut self.device_mut(device)?.peers;
        let at = peers.iter().position(|other| *other == peer).ok_or(Status::PEER_NOT_ENABLED)?;
        peers.remove(at);
        Ok(())
    }

    /// The beginning and size of the allocation that an address lies in, and its device.
    pub fn allocation(&self, address: u64) -> Answer<(u64, u64, usize)> {
        let device = self.device_of(address).map_err(|_| Status::INVALID_VALUE)?;
        let found = self.device(device)?.memory.find(address).ok_or(Status::INVALID_VALUE)?;
        Ok((found.0, found.1, device))
    }

    /// `cuMemPoolCreate`.
    pub fn create_pool(&mut self) -> u64 {
        let handle = self.handle();
        self.pools.insert(handle, std::collections::HashMap::new());
        handle
    }

    /// The default pool of a device.
    pub fn default_pool(&mut self, device: usize) -> Answer<u64> {
        self.device(device)?;
        let handle = 0x200 + device as u64;
        self.pools.entry(handle).or_default();
        Ok(handle)
    }

    /// `cuMemPoolDestroy`.
    pub fn destroy_pool(&mut self, handle: u64) -> Answer<()> {
        self.pools.remove(&handle).map(|_| ()).ok_or(Status::INVALID_HANDLE)
    }

    /// An attribute of a pool; they are kept and change nothing.
    pub fn pool_attribute(&mut self, handle: u64, number: u32) -> Answer<&mut u64> {
        let pool = self.pools.get_mut(&handle).ok_or(Status::INVALID_HANDLE)?;
        Ok(pool.entry(number).or_default())
    }
}
