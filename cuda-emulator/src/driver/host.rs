//! Memory of the host that devices know of.

use std::alloc::Layout;

use super::Driver;
use super::status::{Answer, Status};
use super::work::HostAddress;

/// A piece of host memory that copies use without waiting.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pinned {
    bytes: usize,
    flags: u32,
    /// Whether it is the program's own, and was registered.
    registered: bool,
}

/// The flags of `cuMemHostRegister`: portable, mapped, of a device's I/O, read only.
const REGISTER_FLAGS: u32 = 0xf;
/// Those of `cuMemHostAlloc`: portable, mapped, write-combined.
const ALLOCATE_FLAGS: u32 = 7;

impl Driver {
    /// `cuMemHostAlloc`.
    pub fn allocate_host(&mut self, bytes: usize, flags: u32) -> Answer<HostAddress> {
        let layout = Layout::from_size_align(bytes, 4096).map_err(|_| Status::INVALID_VALUE)?;
        if bytes == 0 || flags & !ALLOCATE_FLAGS != 0 {
            return Err(Status::INVALID_VALUE);
        }
        // SAFETY: the layout has a size that is not zero.
        let at = unsafe { std::alloc::alloc(layout) } as usize;
        if at == 0 {
            return Err(Status::OUT_OF_MEMORY);
        }
        self.pinned.insert(at, Pinned { bytes, flags, registered: false });
        Ok(HostAddress(at))
    }

    /// `cuMemFreeHost`: waits for all work first.
    pub fn free_host(&mut self, address: HostAddress) -> Answer<()> {
        if self.pinned.get(&address.0).is_none_or(|pinned| pinned.registered) {
            return Err(Status::INVALID_VALUE);
        }
        for device in 0..self.devices.len() {
            self.drain_device(device)?;
        }
        let Some(Pinned { bytes, .. }) = self.pinned.remove(&address.0) else {
            return Err(Status::INVALID_VALUE);
        };
        let layout = Layout::from_size_align(bytes, 4096).map_err(|_| Status::INVALID_VALUE)?;
        // SAFETY: allocated above with the same layout, and no longer listed.
        unsafe { std::alloc::dealloc(address.0 as *mut u8, layout) };
        Ok(())
    }

    pub(super) fn is_pinned(&self, address: HostAddress) -> bool {
        self.pinned
            .range(..=address.0)
            .next_back()
            .is_some_and(|(base, pinned)| address.0 < base + pinned.bytes)
    }

    /// `cuMemHostRegister`: memory of the program becomes pinned.
    pub fn register_host(&mut self, address: HostAddress, bytes: usize, flags: u32) -> Answer<()> {
        let end = address.0.checked_add(bytes);
        let (Some(end), true) = (end, address.0 != 0 && bytes > 0) else {
            return Err(Status::INVALID_VALUE);
        };
        if flags & !REGISTER_FLAGS != 0 {
            return Err(Status::INVALID_VALUE);
        }
        let before = self.pinned.range(..end).next_back();
        if before.is_some_and(|(base, pinned)| base + pinned.bytes > address.0) {
            return Err(Status::HOST_ALREADY_REGISTERED);
        }
        self.pinned.insert(address.0, Pinned { bytes, flags, registered: true });
        Ok(())
    }

    /// `cuMemHostUnregister`: waits for all work first.
    pub fn unregister_host(&mut self, address: HostAddress) -> Answer<()> {
        match self.pinned.get(&address.0) {
            Some(pinned) if pinned.registered => {}
            Some(_) => return Err(Status::INVALID_VALUE),
            None => return Err(Status::HOST_NOT_REGISTERED),
        }
        for device in 0..self.devices.len() {
            self.drain_device(device)?;
        }
        self.pinned.remove(&address.0);
        Ok(())
    }

    /// `cuMemHostGetFlags`.
    pub fn host_flags(&self, address: HostAddress) -> Answer<u32> {
        let found = self.pinned.get(&address.0).filter(|pinned| !pinned.registered);
        found.map(|pinned| pinned.flags).ok_or(Status::INVALID_VALUE)
    }

    /// `cuMemHostGetDevicePointer`: kernels can't use memory of the host here, and the attribute
    /// that tells so is 0.
    pub fn host_device_pointer(&self, address: HostAddress) -> Answer<u64> {
        if self.is_pinned(address) {
            Err(Status::NOT_SUPPORTED)
        } else {
            Err(Status::INVALID_VALUE)
        }
    }
}
