//! Memory pools.

use std::collections::HashSet;

use super::Driver;
use super::status::{Answer, Status};

/// A pool: an account of what was allocated from it, and who may use that.
#[derive(Debug)]
pub(super) struct Pool {
    pub(super) device: usize,
    /// Other devices that may use its memory.
    pub(super) access: HashSet<usize>,
    /// Whether memory may be used again across events, opportunistically, by internal dependencies;
    /// and how much is kept. Nothing is used again here: the values are kept.
    settings: [u64; 4],
    used: u64,
    high: u64,
}

/// Numbers of `CUmemPool_attribute`.
mod number {
    pub(super) const RESERVED: u32 = 5;
    pub(super) const RESERVED_HIGH: u32 = 6;
    pub(super) const USED: u32 = 7;
    pub(super) const USED_HIGH: u32 = 8;
}

impl Pool {
    fn new(device: usize) -> Self {
        Self { device, access: HashSet::new(), settings: [1, 1, 1, 0], used: 0, high: 0 }
    }
}

fn default_pool(device: usize) -> u64 {
    0x200 + device as u64
}

impl Driver {
    /// `cuMemPoolCreate`: a pool of a device's memory.
    pub fn create_pool(&mut self, device: i32) -> Answer<u64> {
        let device = self.device_get(device).map_err(|_| Status::INVALID_VALUE)?;
        let handle = self.handle();
        self.pools.insert(handle, Pool::new(device));
        Ok(handle)
    }

    /// `cuDeviceGetDefaultMemPool`.
    pub fn default_pool(&mut self, device: usize) -> Answer<u64> {
        self.device(device)?;
        let handle = default_pool(device);
        self.pools.entry(handle).or_insert_with(|| Pool::new(device));
        Ok(handle)
    }

    /// `cuDeviceGetMemPool`: the pool that allocations on a device's streams come from.
    pub fn pool_of(&mut self, device: usize) -> Answer<u64> {
        match self.device(device)?.pool.filter(|pool| self.pools.contains_key(pool)) {
            Some(pool) => Ok(pool),
            None => self.default_pool(device),
        }
    }

    /// `cuDeviceSetMemPool`.
    pub fn set_pool(&mut self, device: usize, pool: u64) -> Answer<()> {
        let owner = self.pools.get(&pool).ok_or(Status::INVALID_VALUE)?.device;
        if owner != device {
            return Err(Status::INVALID_VALUE);
        }
        self.device_mut(device)?.pool = Some(pool);
        Ok(())
    }

    /// `cuMemPoolDestroy`. A default pool can't be destroyed; a device whose pool goes has its
    /// default one again.
    pub fn destroy_pool(&mut self, handle: u64) -> Answer<()> {
        let device = self.pools.get(&handle).ok_or(Status::INVALID_VALUE)?.device;
        if handle == default_pool(device) {
            return Err(Status::INVALID_VALUE);
        }
        self.pools.remove(&handle);
        Ok(())
    }

    /// `cuMemPoolTrimTo`: nothing is kept that could be given back.
    pub fn trim_pool(&self, handle: u64) -> Answer<()> {
        self.pools.get(&handle).map(|_| ()).ok_or(Status::INVALID_VALUE)
    }

    /// `cuMemPoolGetAttribute`.
    pub fn pool_attribute(&self, handle: u64, attribute: u32) -> Answer<u64> {
        let pool = self.pools.get(&handle).ok_or(Status::INVALID_VALUE)?;
        match attribute {
            1..=4 => {
                pool.settings.get(attribute as usize - 1).copied().ok_or(Status::INVALID_VALUE)
            }
            number::RESERVED | number::USED => Ok(pool.used),
            number::RESERVED_HIGH | number::USED_HIGH => Ok(pool.high),
            _ => Err(Status::INVALID_VALUE),
        }
    }

    /// `cuMemPoolSetAttribute`. High marks can only be set back to 0.
    pub fn set_pool_attribute(&mut self, handle: u64, attribute: u32, value: u64) -> Answer<()> {
        let pool = self.pools.get_mut(&handle).ok_or(Status::INVALID_VALUE)?;
        let place = match attribute {
            1..=4 => pool.settings.get_mut(attribute as usize - 1),
            number::RESERVED_HIGH | number::USED_HIGH if value == 0 => {
                pool.high = pool.used;
                return Ok(());
            }
            _ => None,
        };
        *place.ok_or(Status::INVALID_VALUE)? = value;
        Ok(())
    }

    /// `cuMemPoolSetAccess` for one device: whether it may use the pool's memory.
    pub fn set_pool_access(&mut self, handle: u64, device: i32, flags: u32) -> Answer<()> {
        let device = self.device_get(device)?;
        let pool = self.pools.get_mut(&handle).ok_or(Status::INVALID_VALUE)?;
        match flags {
            // The own device can't lose its access.
            0 if device == pool.device => return Err(Status::INVALID_DEVICE),
            0 => _ = pool.access.remove(&device),
            3 => _ = pool.access.insert(device),
            _ => return Err(Status::INVALID_VALUE),
        }
        Ok(())
    }

    /// `cuMemPoolGetAccess`.
    pub fn pool_access(&self, handle: u64, device: i32) -> Answer<u32> {
        let device = self.device_get(device)?;
        let pool = self.pools.get(&handle).ok_or(Status::INVALID_VALUE)?;
        Ok(if device == pool.device || pool.access.contains(&device) { 3 } else { 0 })
    }

    pub(super) fn note_pooled(&mut self, handle: u64, address: u64, bytes: u64) {
        if let Some(pool) = self.pools.get_mut(&handle) {
            pool.used += bytes;
            pool.high = pool.high.max(pool.used);
            self.pooled.insert(address, handle);
        }
    }

    pub(super) fn note_freed(&mut self, address: u64, bytes: u64) {
        if let Some(pool) =
            self.pooled.remove(&address).and_then(|handle| self.pools.get_mut(&handle))
        {
            pool.used = pool.used.saturating_sub(bytes);
        }
    }

    /// A device is reset: nothing of its pools is allocated any more.
    pub(super) fn forget_pooled(&mut self, device: usize) {
        let pools = &self.pools;
        self.pooled.retain(|_, pool| pools.get(pool).is_some_and(|pool| pool.device != device));
        for pool in self.pools.values_mut().filter(|pool| pool.device == device) {
            (pool.used, pool.high) = (0, 0);
            pool.access.clear();
        }
    }
}
