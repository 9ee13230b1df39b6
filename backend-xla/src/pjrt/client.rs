//! A client: the devices of a plugin, and what is made on them.

use std::{fmt, ptr, sync::Arc};

use super::{
    Buffer, CompileOptions, DeviceDescription, ElementType, LoadedExecutable, PjrtError, Plugin,
    Value,
    options::named_values,
    plugin::{arguments, call, destroy, read_string},
    sys, topology,
};

/// A connection to the devices of a plugin. Cheap to clone; what it makes keeps it alive.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

struct Inner {
    plugin: Plugin,
    raw: *mut sys::PJRT_Client,
    platform: String,
    platform_version: String,
    devices: Vec<Device>,
}

/// A device of a client.
#[derive(Clone, Debug)]
pub struct Device {
    raw: *mut sys::PJRT_Device,
    description: DeviceDescription,
}

impl Device {
    /// What the plugin says of the device.
    pub fn description(&self) -> &DeviceDescription {
        &self.description
    }
}

/// The memory of a device, in bytes. What a plugin does not report is `None`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct MemoryStats {
    /// Bytes allocated now.
    pub in_use: u64,
    /// The most bytes that were allocated at one time.
    pub peak_in_use: Option<u64>,
    /// Bytes that can be allocated at most.
    pub limit: Option<u64>,
    /// The largest free block.
    pub largest_free_block: Option<u64>,
}

// SAFETY: clients and devices may be used from any thread, and the device pointers live as long
// as the client.
unsafe impl Send for Inner {}
// SAFETY: as above.
unsafe impl Sync for Inner {}
// SAFETY: as above; a `Device` is only ever used through the client that owns it.
unsafe impl Send for Device {}
// SAFETY: as above.
unsafe impl Sync for Device {}

impl Client {
    /// Connects to the devices of a plugin. The options are the plugin's own, such as
    /// `cpu_device_count` of XLA's CPU plugin.
    ///
    /// # Errors
    ///
    /// [`PjrtError::Call`] if there is no such hardware or an option is unknown,
    /// [`PjrtError::NoDevices`] if the client has no device that this process can use.
    pub fn new(plugin: &Plugin, options: &[(&str, Value)]) -> Result<Self, PjrtError> {
        let named = named_values(options);
        let mut create = arguments!(PJRT_Client_Create_Args {
            create_options: named.as_ptr(),
            num_options: named.len(),
        });
        // SAFETY: `named` borrows from `options`; both outlive the call.
        unsafe { call!(plugin, PJRT_Client_Create, create) }?;
        let mut inner = Inner {
            plugin: plugin.clone(),
            raw: create.client,
            platform: String::new(),
            platform_version: String::new(),
            devices: Vec::new(),
        };
        let mut name = arguments!(PJRT_Client_PlatformName_Args { client: inner.raw });
        let mut version = arguments!(PJRT_Client_PlatformVersion_Args { client: inner.raw });
        let mut devices = arguments!(PJRT_Client_AddressableDevices_Args { client: inner.raw });
        // SAFETY: the client is alive; the strings and the list live as long as it.
        unsafe {
            call!(plugin, PJRT_Client_PlatformName, name)?;
            inner.platform = read_string(name.platform_name, name.platform_name_size);
            call!(plugin, PJRT_Client_PlatformVersion, version)?;
            inner.platform_version =
                read_string(version.platform_version, version.platform_version_size);
            call!(plugin, PJRT_Client_AddressableDevices, devices)?;
            for index in 0..devices.num_addressable_devices {
                let raw = *devices.addressable_devices.add(index);
                let mut get = arguments!(PJRT_Device_GetDescription_Args { device: raw });
                call!(plugin, PJRT_Device_GetDescription, get)?;
                let description = topology::describe(plugin, get.device_description)?;
                inner.devices.push(Device { raw, description });
            }
        }
        if inner.devices.is_empty() {
            return Err(PjrtError::NoDevices { platform: inner.platform.clone() });
        }
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The plugin.
    pub fn plugin(&self) -> &Plugin {
        &self.inner.plugin
    }

    /// The platform, such as `cpu` or `tpu`.
    pub fn platform(&self) -> &str {
        &self.inner.platform
    }

    /// The platform's version, in the plugin's words.
    pub fn platform_version(&self) -> &str {
        &self.inner.platform_version
    }

    /// The devices that this process can use; at least one.
    pub fn devices(&self) -> &[Device] {
        &self.inner.devices
    }

    /// The memory of device `index`.
    ///
    /// # Errors
    ///
    /// [`PjrtError::NoSuchDevice`]; [`PjrtError::Call`] with
    /// [`ErrorCode::Unimplemented`](super::ErrorCode::Unimplemented) where the plugin does not
    /// keep count, as the CPU plugin does not.
    pub fn memory_stats(&self, index: usize) -> Result<MemoryStats, PjrtError> {
        let mut stats =
            arguments!(PJRT_Device_MemoryStats_Args { device: self.device(index)?.raw });
        // SAFETY: the device is alive.
        unsafe { call!(self.inner.plugin, PJRT_Device_MemoryStats, stats) }?;
        let reported = |value: i64, is_set: bool| is_set.then(|| value.max(0) as u64);
        Ok(MemoryStats {
            in_use: stats.bytes_in_use.max(0) as u64,
            peak_in_use: reported(stats.peak_bytes_in_use, stats.peak_bytes_in_use_is_set),
            limit: reported(stats.bytes_limit, stats.bytes_limit_is_set),
            largest_free_block: reported(
                stats.largest_free_block_bytes,
                stats.largest_free_block_bytes_is_set,
            ),
        })
    }

    /// Copies an array from the host to device `index`. The bytes are row-major and little-endian,
    /// and free again when this returns; the transfer itself may still be under way.
    ///
    /// # Errors
    ///
    /// [`PjrtError::NoSuchDevice`], [`PjrtError::HostSize`] if the bytes are not as many as the
    /// shape takes, [`PjrtError::Call`] if the device has no room.
    pub fn to_device(
        &self,
        index: usize,
        element: ElementType,
        dims: &[i64],
        bytes: &[u8],
    ) -> Result<Buffer, PjrtError> {
        self.copy_to_device(index, element, dims, None, bytes)
    }

    /// Copies a matrix from the host to device `index` and transposes it on the way: `bytes` are
    /// those of `[rows, columns]`, row-major, and the buffer is `[columns, rows]`.
    ///
    /// # Errors
    ///
    /// As [`Client::to_device`].
    pub fn to_device_transposed(
        &self,
        index: usize,
        element: ElementType,
        [rows, columns]: [i64; 2],
        bytes: &[u8],
    ) -> Result<Buffer, PjrtError> {
        let size = element.size() as i64;
        let strides = [size, columns.saturating_mul(size)];
        self.copy_to_device(index, element, &[columns, rows], Some(&strides), bytes)
    }

    /// Copies a dense array to a device. `strides`, in bytes, say in which order its dimensions lie
    /// in memory; row-major without.
    fn copy_to_device(
        &self,
        index: usize,
        element: ElementType,
        dims: &[i64],
        strides: Option<&[i64]>,
        bytes: &[u8],
    ) -> Result<Buffer, PjrtError> {
        let device = self.device(index)?;
        let expected = dims
            .iter()
            .try_fold(element.size(), |size, &dim| size.checked_mul(usize::try_from(dim).ok()?));
        if expected != Some(bytes.len()) {
            return Err(PjrtError::HostSize {
                element,
                dims: dims.to_vec(),
                expected: expected.unwrap_or(usize::MAX),
                found: bytes.len(),
            });
        }
        let mut arguments = arguments!(PJRT_Client_BufferFromHostBuffer_Args {
            client: self.inner.raw,
            data: bytes.as_ptr().cast(),
            type_: element.to_raw(),
            dims: dims.as_ptr(),
            num_dims: dims.len(),
            byte_strides: strides.map_or(ptr::null(), <[i64]>::as_ptr),
            num_byte_strides: strides.map_or(0, <[i64]>::len),
            host_buffer_semantics: sys::PJRT_HostBufferSemantics_kImmutableOnlyDuringCall,
            device: device.raw,
        });
        // SAFETY: the plugin reads the bytes, as many as it was told, during the call only: the
        // strides are a permutation of the dense ones. What it returns is ours.
        unsafe {
            call!(self.inner.plugin, PJRT_Client_BufferFromHostBuffer, arguments)?;
            if !arguments.done_with_host_buffer.is_null() {
                // Nothing to wait for under these semantics.
                let event = arguments.done_with_host_buffer;
                drop(super::Event::from_raw(&self.inner.plugin, event));
            }
            Ok(Buffer::from_raw(self, arguments.buffer))
        }
    }

    /// Compiles a StableHLO module, in its text form, and loads it on devices `0..partitions`.
    ///
    /// # Errors
    ///
    /// [`PjrtError::Call`] for a program that does not parse, compile or fit;
    /// [`PjrtError::NoSuchDevice`] if it wants more devices than there are.
    pub fn compile(
        &self,
        text: &str,
        options: &CompileOptions,
    ) -> Result<LoadedExecutable, PjrtError> {
        if options.partitions() > self.inner.devices.len() {
            let (index, count) = (options.partitions() - 1, self.inner.devices.len());
            return Err(PjrtError::NoSuchDevice { index, count });
        }
        let proto = options.to_proto();
        let module = Module::new(text);
        let program = module.as_raw();
        let mut arguments = arguments!(PJRT_Client_Compile_Args {
            client: self.inner.raw,
            program: &program,
            compile_options: proto.as_ptr().cast(),
            compile_options_size: proto.len(),
        });
        // SAFETY: program and options outlive the call; the executable returned is ours.
        unsafe {
            call!(self.inner.plugin, PJRT_Client_Compile, arguments)?;
            LoadedExecutable::from_raw(self, arguments.executable, options.partitions())
        }
    }

    /// Loads what [`Executable::serialize`](super::Executable::serialize) returned, for the same
    /// plugin, hardware and options.
    ///
    /// The plugin trusts the bytes: corrupt ones can crash it. Whoever keeps them on disk keeps a
    /// checksum too.
    ///
    /// # Errors
    ///
    /// [`PjrtError::Call`] for bytes that the plugin does not accept.
    pub fn deserialize(
        &self,
        bytes: &[u8],
        options: &CompileOptions,
    ) -> Result<LoadedExecutable, PjrtError> {
        let mut arguments = arguments!(PJRT_Executable_DeserializeAndLoad_Args {
            client: self.inner.raw,
            serialized_executable: bytes.as_ptr().cast(),
            serialized_executable_size: bytes.len(),
        });
        // SAFETY: the bytes outlive the call; the executable returned is ours.
        unsafe {
            call!(self.inner.plugin, PJRT_Executable_DeserializeAndLoad, arguments)?;
            LoadedExecutable::from_raw(self, arguments.loaded_executable, options.partitions())
        }
    }

    fn device(&self, index: usize) -> Result<&Device, PjrtError> {
        let count = self.inner.devices.len();
        self.inner.devices.get(index).ok_or(PjrtError::NoSuchDevice { index, count })
    }
}

/// A StableHLO module in text form, as the API takes it.
pub(super) struct Module {
    /// With a zero behind its end: MLIR's lexer looks one byte past the size that it is given.
    text: Vec<u8>,
}

impl Module {
    pub(super) fn new(text: &str) -> Self {
        let mut text = text.as_bytes().to_vec();
        text.push(0);
        Self { text }
    }

    /// The C form, which borrows from `self`.
    pub(super) fn as_raw(&self) -> sys::PJRT_Program {
        const FORMAT: &str = "mlir";
        arguments!(PJRT_Program {
            // The API takes a mutable pointer, and does not write through it.
            code: self.text.as_ptr().cast_mut().cast(),
            code_size: self.text.len() - 1,
            format: FORMAT.as_ptr().cast(),
            format_size: FORMAT.len(),
        })
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let mut arguments = arguments!(PJRT_Client_Destroy_Args { client: self.raw });
        // SAFETY: everything made from the client holds a clone of it, so this is the last use.
        unsafe { destroy!(self.plugin, PJRT_Client_Destroy, arguments) };
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Client")
            .field("platform", &self.inner.platform)
            .field("devices", &self.inner.devices.len())
            .finish_non_exhaustive()
    }
}
