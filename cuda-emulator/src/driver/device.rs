//! Devices and contexts.

use super::status::{Answer, Status};
use super::work::CaptureMode;
use super::{Context, Driver, config, default_stream, primary_context};

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

    /// `cuDriverGetVersion`.
    pub fn version(&self) -> i32 {
        self.config.version
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
        self.forget_pooled(device);
        let state = self.device_mut(device)?;
        state.pool = None;
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

    /// Whether a device may use an allocation of another: by access to the peer, or, for memory of a
    /// pool, to that pool.
    pub(crate) fn has_access(&self, device: usize, owner: usize, base: u64) -> bool {
        if device == owner {
            return true;
        }
        match self.pooled.get(&base).and_then(|pool| self.pools.get(pool)) {
            Some(pool) => pool.access.contains(&device),
            None => self.devices.get(device).is_some_and(|state| state.peers.contains(&owner)),
        }
    }
}
