//! One device: memory, kernels and a stream, through cudarc. All `unsafe` of the backend is in here, in `driver`,
//! `read_back`, `nvrtc` and `blas`.

use std::collections::HashMap;
use std::sync::Arc;

use backend_api::BackendError;
use bytemuck::{NoUninit, Pod, Zeroable};
use cudarc::driver::sys::{self, CUfunction_attribute_enum as Attribute, CUresult};
use cudarc::driver::{
    CudaContext, CudaFunction, CudaSlice, CudaStream, DeviceRepr, DriverError, LaunchConfig,
    PushKernelArg, result,
};
use cudarc::nvrtc::Ptx;

use crate::compiler::Code;
use crate::{Kernel, KvMap, Variant};

/// A page group's layer, as the kernels read it.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Layer {
    pub(crate) kv: u64,
    pub(crate) tables: u64,
    pub(crate) table_width: i32,
    pub(crate) page_size: i32,
    pub(crate) kv_heads: i32,
    pub(crate) scale: f32,
    pub(crate) soft_cap: f32,
    pub(crate) key_scale: f32,
    pub(crate) value_scale: f32,
    pub(crate) padding: i32,
}

/// Parts of rows, as the kernels write them.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Parts {
    pub(crate) sums: u64,
    pub(crate) marks: u64,
}

// SAFETY: plain numbers in the layout of C.
unsafe impl DeviceRepr for Layer {}
// SAFETY: plain numbers in the layout of C.
unsafe impl DeviceRepr for Parts {}

/// What TMA reads of a tensor: its address, sizes and box, as the driver encodes them.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub(crate) struct TensorMap(sys::CUtensorMap);

// SAFETY: plain bytes in the layout of C.
unsafe impl DeviceRepr for TensorMap {}

/// An argument of a kernel.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Argument {
    Map(TensorMap),
    Address(u64),
    Int(i32),
    Float(f32),
    Layer(Layer),
    Parts(Parts),
}

/// The shape of a launch: blocks along x and y, threads of a block, bytes of dynamic shared memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) grid: [u32; 2],
    pub(crate) threads: u32,
    pub(crate) shared: u32,
}

impl Shape {
    /// Enough blocks of 256 threads for `count` numbers.
    pub(crate) fn covering(count: usize) -> Self {
        Self { grid: [count.div_ceil(256) as u32, 1], threads: 256, shared: 0 }
    }
}

/// A device with a stream of its own. What it allocates lives as long as it does.
#[derive(Debug)]
pub(crate) struct Device {
    stream: Arc<CudaStream>,
    memory: Vec<CudaSlice<u8>>,
    functions: HashMap<(Kernel, Variant, &'static str), CudaFunction>,
    /// By the address of a layer's KV.
    maps: HashMap<u64, TensorMap>,
}

impl Device {
    pub(crate) fn new(context: &Arc<CudaContext>) -> Result<Self, BackendError> {
        // SAFETY: one stream is used, which orders all work by itself.
        unsafe { context.disable_event_tracking() };
        let stream = context.new_stream().map_err(|error| failed("making a stream", error))?;
        Ok(Self { stream, memory: Vec::new(), functions: HashMap::new(), maps: HashMap::new() })
    }

    /// Bytes that are free on the device.
    pub(crate) fn free_bytes(context: &CudaContext) -> Result<u64, BackendError> {
        let (free, _) =
            context.mem_get_info().map_err(|error| failed("asking for free memory", error))?;
        Ok(free as u64)
    }

    /// Memory that holds nothing yet; its address is a multiple of 256.
    pub(crate) fn allocate(&mut self, bytes: usize) -> Result<u64, BackendError> {
        self.bind()?;
        // SAFETY: nothing reads the memory before a kernel or a copy wrote it.
        let slice = unsafe { self.stream.alloc::<u8>(bytes.max(1)) };
        let slice = slice.map_err(|error| match error.0 {
            CUresult::CUDA_ERROR_OUT_OF_MEMORY => BackendError::Memory {
                what: "an allocation".to_owned(),
                needed: bytes as u64,
                available: Self::free_bytes(self.stream.context()).unwrap_or(0),
            },
            _ => failed(&format!("allocating {bytes} bytes"), error),
        })?;
        let address = cudarc::driver::DevicePtr::device_ptr(&slice, &self.stream).0;
        self.memory.push(slice);
        Ok(address)
    }

    /// Memory full of zeros.
    pub(crate) fn allocate_zeros(&mut self, bytes: usize) -> Result<u64, BackendError> {
        let address = self.allocate(bytes)?;
        // SAFETY: the memory was allocated above with this many bytes.
        let set =
            unsafe { result::memset_d8_async(address, 0, bytes.max(1), self.stream.cu_stream()) };
        set.map_err(|error| failed("clearing memory", error))?;
        Ok(address)
    }

    /// Memory with these contents.
    pub(crate) fn upload<T: NoUninit>(&mut self, values: &[T]) -> Result<u64, BackendError> {
        let address = self.allocate(size_of_val(values))?;
        self.write(address, values)?;
        Ok(address)
    }

    /// Writes to memory that was allocated with room for `values`.
    pub(crate) fn write<T: NoUninit>(
        &self,
        address: u64,
        values: &[T],
    ) -> Result<(), BackendError> {
        if values.is_empty() {
            return Ok(());
        }
        self.bind()?;
        let bytes: &[u8] = bytemuck::cast_slice(values);
        // SAFETY: callers name memory of this device with room for the values; pageable memory is read before the
        // call returns.
        unsafe { result::memcpy_htod_async(address, bytes, self.stream.cu_stream()) }
            .map_err(|error| failed("writing to the device", error))
    }

    /// Waits for all work and reads memory.
    pub(crate) fn read<T: Pod>(&self, address: u64, values: &mut [T]) -> Result<(), BackendError> {
        self.bind()?;
        if !values.is_empty() {
            // SAFETY: callers name memory of this device with that many values; the stream is waited for below.
            unsafe { result::memcpy_dtoh_async(values, address, self.stream.cu_stream()) }
                .map_err(|error| failed("reading from the device", error))?;
        }
        self.synchronize()
    }

    /// Copies within the device's memory.
    pub(crate) fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<(), BackendError> {
        self.bind()?;
        // SAFETY: callers name memory of this device.
        unsafe { result::memcpy_dtod_async(to, from, bytes, self.stream.cu_stream()) }
            .map_err(|error| failed("copying on the device", error))
    }

    /// The stream, of a device that is the calling thread's.
    pub(crate) fn bound(&self) -> Result<&CudaStream, BackendError> {
        self.bind()?;
        Ok(&self.stream)
    }

    /// Makes the device the calling thread's: an engine compiles on one thread and launches on another.
    fn bind(&self) -> Result<(), BackendError> {
        let bound = self.stream.context().bind_to_thread();
        bound.map_err(|error| failed("binding the device", error))
    }

    pub(crate) fn synchronize(&self) -> Result<(), BackendError> {
        self.stream.synchronize().map_err(|error| failed("waiting for the device", error))
    }

    /// Loads the functions `names` of a compiled kernel.
    pub(crate) fn load(
        &mut self,
        kernel: Kernel,
        variant: &Variant,
        code: &Code,
        names: &[&'static str],
        shared: u32,
    ) -> Result<(), BackendError> {
        if names.iter().all(|name| self.functions.contains_key(&(kernel, *variant, *name))) {
            return Ok(());
        }
        let context = self.stream.context();
        let image = if code.is_machine_code {
            Ptx::from_binary(code.bytes.to_vec())
        } else {
            let text = String::from_utf8_lossy(&code.bytes);
            // cudarc panics where text holds a zero.
            Ptx::from_src(text.trim_end_matches('\0').replace('\0', " "))
        };
        let module = context.load_module(image).map_err(|error| match error.0 {
            CUresult::CUDA_ERROR_OUT_OF_MEMORY => BackendError::Memory {
                what: format!("the kernel {}", kernel.name()),
                needed: code.bytes.len() as u64,
                available: Self::free_bytes(context).unwrap_or(0),
            },
            _ => failed(kernel.name(), error),
        })?;
        for &name in names {
            let function = module.load_function(name).map_err(|error| failed(name, error))?;
            if shared > 48 << 10 {
                function
                    .set_attribute(
                        Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                        shared as i32,
                    )
                    .map_err(|error| {
                        failed(
                            &format!("asking for {shared} bytes of shared memory for {name}"),
                            error,
                        )
                    })?;
            }
            self.functions.insert((kernel, *variant, name), function);
        }
        Ok(())
    }

    /// Encodes the tensor map of KV at an address.
    pub(crate) fn describe(
        &mut self,
        address: u64,
        kv: &KvMap,
        half: bool,
    ) -> Result<(), BackendError> {
        let mut map = TensorMap(sys::CUtensorMap { opaque: [0; 16] });
        let element = if half {
            sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_FLOAT16
        } else {
            sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16
        };
        let steps = [1u32; 2];
        // SAFETY: the lists have an entry for each of two dimensions, strides one less, and outlive the call; the address is
        // not read by it.
        let encoded = unsafe {
            sys::cuTensorMapEncodeTiled(
                &raw mut map.0,
                element,
                2,
                address as *mut std::ffi::c_void,
                kv.sizes.as_ptr(),
                kv.strides.as_ptr(),
                kv.box_sizes.as_ptr(),
                steps.as_ptr(),
                sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
                sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        };
        encoded.result().map_err(|error| failed("describing KV to TMA", error))?;
        self.maps.insert(address, map);
        Ok(())
    }

    /// The map of KV at an address.
    pub(crate) fn map(&self, address: u64) -> Result<TensorMap, BackendError> {
        self.maps.get(&address).copied().ok_or_else(|| BackendError::Device {
            context: "attention".to_owned(),
            message: "the layer's KV was not described to TMA".to_owned(),
        })
    }

    /// Queues a kernel. An empty grid is no work.
    pub(crate) fn launch(
        &self,
        kernel: Kernel,
        variant: &Variant,
        name: &'static str,
        shape: Shape,
        arguments: &[Argument],
    ) -> Result<(), BackendError> {
        if shape.grid.contains(&0) {
            return Ok(());
        }
        let Some(function) = self.functions.get(&(kernel, *variant, name)) else {
            return Err(BackendError::Device {
                context: name.to_owned(),
                message: "the kernel was not loaded".to_owned(),
            });
        };
        let mut call = self.stream.launch_builder(function);
        for argument in arguments {
            match argument {
                Argument::Map(x) => call.arg(x),
                Argument::Address(x) => call.arg(x),
                Argument::Int(x) => call.arg(x),
                Argument::Float(x) => call.arg(x),
                Argument::Layer(x) => call.arg(x),
                Argument::Parts(x) => call.arg(x),
            };
        }
        let config = LaunchConfig {
            grid_dim: (shape.grid[0], shape.grid[1], 1),
            block_dim: (shape.threads, 1, 1),
            shared_mem_bytes: shape.shared,
        };
        // SAFETY: each call in forward.rs gives the arguments that its kernel declares, and addresses of memory that is
        // large enough for the step; the emulator checks both in tests.
        unsafe { call.launch(config) }.map_err(|error| failed(name, error))?;
        Ok(())
    }
}

/// The device's trouble as the backend's error.
pub(crate) fn failed(context: &str, error: DriverError) -> BackendError {
    BackendError::Device { context: context.to_owned(), message: error.to_string() }
}
