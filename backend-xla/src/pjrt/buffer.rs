//! Device buffers and their copies to the host.

use std::{cell::UnsafeCell, fmt, sync::Arc, time::Instant};

use super::{
    Client, Completion, Event, PjrtError, Plugin,
    plugin::{arguments, call, destroy},
    sys,
};

/// The type of a buffer's elements: those that the lowering uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ElementType {
    /// IEEE single precision.
    F32,
    /// Bfloat16.
    BF16,
    /// IEEE half precision.
    F16,
    /// Signed 8-bit integer.
    I8,
    /// Signed 32-bit integer.
    I32,
    /// Unsigned 32-bit integer.
    U32,
}

impl ElementType {
    /// Bytes an element takes.
    pub fn size(self) -> usize {
        match self {
            Self::F32 | Self::I32 | Self::U32 => 4,
            Self::BF16 | Self::F16 => 2,
            Self::I8 => 1,
        }
    }

    /// How StableHLO spells the type.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::BF16 => "bf16",
            Self::F16 => "f16",
            Self::I8 => "i8",
            Self::I32 => "i32",
            Self::U32 => "ui32",
        }
    }

    pub(super) fn to_raw(self) -> sys::PJRT_Buffer_Type {
        match self {
            Self::F32 => sys::PJRT_Buffer_Type_F32,
            Self::BF16 => sys::PJRT_Buffer_Type_BF16,
            Self::F16 => sys::PJRT_Buffer_Type_F16,
            Self::I8 => sys::PJRT_Buffer_Type_S8,
            Self::I32 => sys::PJRT_Buffer_Type_S32,
            Self::U32 => sys::PJRT_Buffer_Type_U32,
        }
    }
}

/// An array in the memory of one device.
///
/// There is exactly one `Buffer` for a device array, and donating it to an execution consumes it.
/// A buffer may still be in the making: it can be passed to an execution at once, which the
/// device orders behind whatever produces it.
pub struct Buffer {
    client: Client,
    raw: *mut sys::PJRT_Buffer,
}

// SAFETY: buffers may be used from any thread; this handle is its only owner.
unsafe impl Send for Buffer {}
// SAFETY: the functions that take `&self` don't change the array.
unsafe impl Sync for Buffer {}

impl Buffer {
    /// Takes ownership of an array.
    ///
    /// # Safety
    ///
    /// `raw` is a buffer of `client` that nothing else destroys.
    pub(super) unsafe fn from_raw(client: &Client, raw: *mut sys::PJRT_Buffer) -> Self {
        Self { client: client.clone(), raw }
    }

    pub(super) fn raw(&self) -> *mut sys::PJRT_Buffer {
        self.raw
    }

    /// The dimensions of the array, as its device sees it: those of the shard.
    ///
    /// # Errors
    ///
    /// [`PjrtError::Call`] or [`PjrtError::Missing`].
    pub fn dims(&self) -> Result<Vec<i64>, PjrtError> {
        let mut arguments = arguments!(PJRT_Buffer_Dimensions_Args { buffer: self.raw });
        // SAFETY: the buffer is alive, and the dimensions live as long as it. A scalar may have a
        // null list.
        unsafe {
            call!(self.plugin(), PJRT_Buffer_Dimensions, arguments)?;
            Ok(match arguments.num_dims {
                0 => Vec::new(),
                rank => std::slice::from_raw_parts(arguments.dims, rank).to_vec(),
            })
        }
    }

    /// Bytes that the array takes on its device, with padding.
    ///
    /// # Errors
    ///
    /// [`PjrtError::Call`] or [`PjrtError::Missing`].
    pub fn device_bytes(&self) -> Result<usize, PjrtError> {
        let mut arguments = arguments!(PJRT_Buffer_OnDeviceSizeInBytes_Args { buffer: self.raw });
        // SAFETY: the buffer is alive.
        unsafe { call!(self.plugin(), PJRT_Buffer_OnDeviceSizeInBytes, arguments) }?;
        Ok(arguments.on_device_size_in_bytes)
    }

    /// An event that completes when the array has been computed, or fails if it can't be.
    ///
    /// # Errors
    ///
    /// [`PjrtError::Call`] or [`PjrtError::Missing`].
    pub fn ready(&self) -> Result<Event, PjrtError> {
        let mut arguments = arguments!(PJRT_Buffer_ReadyEvent_Args { buffer: self.raw });
        // SAFETY: the buffer is alive, and the event returned is ours.
        unsafe {
            call!(self.plugin(), PJRT_Buffer_ReadyEvent, arguments)?;
            Ok(Event::from_raw(self.plugin(), arguments.event))
        }
    }

    /// Starts to copy the array to the host, in row-major order, and returns at once. The copy
    /// begins when the array is ready. The buffer may be dropped or donated meanwhile.
    ///
    /// # Errors
    ///
    /// [`PjrtError::Call`] or [`PjrtError::Missing`]; errors of the computation come out of
    /// [`HostCopy::wait`].
    pub fn to_host(&self) -> Result<HostCopy, PjrtError> {
        // A device may keep a matrix in any order of dimensions: ask for ours.
        let minor_to_major: Vec<i64> = (0..self.dims()?.len() as i64).rev().collect();
        let mut layout = arguments!(PJRT_Buffer_MemoryLayout {
            type_: sys::PJRT_Buffer_MemoryLayout_Type_Tiled,
            __bindgen_anon_1: sys::PJRT_Buffer_MemoryLayout__bindgen_ty_1 {
                tiled: arguments!(PJRT_Buffer_MemoryLayout_Tiled {
                    minor_to_major: minor_to_major.as_ptr(),
                    minor_to_major_size: minor_to_major.len(),
                }),
            },
        });
        let mut arguments =
            arguments!(PJRT_Buffer_ToHostBuffer_Args { src: self.raw, host_layout: &mut layout });
        // SAFETY: a null destination asks for the size; the layout outlives the call.
        unsafe { call!(self.plugin(), PJRT_Buffer_ToHostBuffer, arguments) }?;

        let bytes = Arc::new(HostBytes(UnsafeCell::new(vec![0; arguments.dst_size].into())));
        // SAFETY: nobody else has the bytes yet, and the box's heap block stays where it is.
        arguments.dst = unsafe { (*bytes.0.get()).as_mut_ptr().cast() };
        // SAFETY: the destination is `dst_size` bytes, and it lives until the event's callback
        // drops its share, even if the `HostCopy` is dropped before.
        let event = unsafe {
            call!(self.plugin(), PJRT_Buffer_ToHostBuffer, arguments)?;
            Event::from_raw(self.plugin(), arguments.event)
        };
        let completion = Completion::pending("a copy to the host");
        let (setter, keep) = (completion.clone(), bytes.clone());
        let registered = event.on_ready(move |outcome| {
            drop(keep);
            setter.set(outcome);
        });
        if let Err(error) = registered {
            // The copy is under way and nothing says when it ends: its destination must stay.
            std::mem::forget(bytes);
            return Err(error);
        }
        Ok(HostCopy { bytes, completion })
    }

    fn plugin(&self) -> &Plugin {
        self.client.plugin()
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let mut arguments = arguments!(PJRT_Buffer_Destroy_Args { buffer: self.raw });
        // SAFETY: this is the buffer's only owner. Executions and copies under way hold the
        // memory by themselves.
        unsafe { destroy!(self.plugin(), PJRT_Buffer_Destroy, arguments) };
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Buffer").field("dims", &self.dims()).finish()
    }
}

/// A copy to the host under way. Dropping it abandons the result, without waiting.
#[derive(Debug)]
pub struct HostCopy {
    bytes: Arc<HostBytes>,
    completion: Completion,
}

/// Bytes that the plugin writes until a completion is set, and nobody touches before.
struct HostBytes(UnsafeCell<Box<[u8]>>);

// SAFETY: the plugin writes the bytes and only `HostCopy::wait` reads them, after the
// completion, whose lock orders the two.
unsafe impl Send for HostBytes {}
// SAFETY: as above.
unsafe impl Sync for HostBytes {}

impl fmt::Debug for HostBytes {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("HostBytes")
    }
}

impl HostCopy {
    /// Whether waiting would not block.
    pub fn is_ready(&self) -> bool {
        self.completion.outcome().is_some()
    }

    /// Waits for the copy, until the deadline if there is one: the array in row-major order,
    /// little-endian as the host is.
    ///
    /// # Errors
    ///
    /// [`PjrtError::Timeout`] at the deadline (then the copy is abandoned); else the error of the
    /// computation or the transfer.
    pub fn wait(self, deadline: Option<Instant>) -> Result<Box<[u8]>, PjrtError> {
        self.completion.wait(deadline)?;
        // SAFETY: the copy is complete, so the plugin is done with the bytes, and `self` is the
        // only reader.
        Ok(unsafe { std::mem::take(&mut *self.bytes.0.get()) })
    }
}
