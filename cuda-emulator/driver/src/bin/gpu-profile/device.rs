//! A device through the CUDA driver, which is loaded when the program runs.

use std::ffi::{CStr, CString, c_char, c_void};

use cuda_emulator::TensorMap;
use cuda_emulator::ptxas::Ptxas;
use libloading::Library;

use super::cases::Case;

/// What the driver could not do.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DeviceError {
    #[error("{0}")]
    None(String),
    #[error("{call} gives {name}")]
    Call { call: &'static str, name: String },
    #[error("the driver has no {0}")]
    Missing(&'static str),
    #[error("the driver refuses the PTX ({name}), and ptxas too: {reason}")]
    Module { name: String, reason: String },
}

type Result<T> = std::result::Result<T, DeviceError>;
type Handle = *mut c_void;

/// A device with its primary context.
#[derive(Debug)]
pub(crate) struct Device {
    driver: Library,
    number: i32,
    name: String,
    version: i32,
    capability: i32,
}

/// What a kernel gave.
#[derive(Debug)]
pub(crate) struct Measured {
    pub(crate) outputs: Vec<Vec<u8>>,
    /// Registers of a thread.
    pub(crate) registers: u32,
    /// The median time of a launch, by events.
    pub(crate) microseconds: Option<f64>,
}

/// Calls a function of the driver by its name: argument types, then arguments.
macro_rules! invoke {
    ($device:expr, $name:literal, ($($type:ty),*), ($($argument:expr),*)) => {{
        const SYMBOL: &CStr = match CStr::from_bytes_with_nul(concat!($name, "\0").as_bytes()) {
            Ok(name) => name,
            Err(_) => c"",
        };
        // SAFETY: the signature is that of cuda.h.
        let found = unsafe {
            $device.get::<unsafe extern "C" fn($($type),*) -> u32>(SYMBOL.to_bytes_with_nul())
        };
        match found {
            Err(_) => Err(DeviceError::Missing($name)),
            // SAFETY: the arguments are what the function asks for.
            Ok(function) => check(&$device, $name, unsafe { function($($argument),*) }),
        }
    }};
}

fn check(driver: &Library, call: &'static str, status: u32) -> Result<()> {
    if status == 0 {
        return Ok(());
    }
    let mut text: *const c_char = std::ptr::null();
    // SAFETY: the signature is that of cuda.h; the place is good.
    let named = unsafe {
        driver
            .get::<unsafe extern "C" fn(u32, *mut *const c_char) -> u32>(b"cuGetErrorName\0")
            .map(|function| function(status, &raw mut text))
    };
    let name = match named {
        // SAFETY: the driver gives a constant string.
        Ok(0) if !text.is_null() => unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned(),
        _ => format!("error {status}"),
    };
    Err(DeviceError::Call { call, name })
}

impl Device {
    /// Opens a device by its number.
    pub(crate) fn open(number: i32) -> Result<Self> {
        let load = |name| {
            // SAFETY: the driver has no initializers that break rules of this program.
            unsafe { Library::new(name) }
        };
        let driver = load("libcuda.so.1")
            .map_err(|error| DeviceError::None(format!("there is no CUDA driver ({error})")))?;
        let none = |error: DeviceError| DeviceError::None(error.to_string());
        invoke!(driver, "cuInit", (u32), (0)).map_err(none)?;
        let mut device = 0;
        invoke!(driver, "cuDeviceGet", (*mut i32, i32), (&raw mut device, number)).map_err(none)?;
        let mut name = [0u8; 256];
        invoke!(driver, "cuDeviceGetName", (*mut u8, i32, i32), (name.as_mut_ptr(), 255, device))?;
        let name = CStr::from_bytes_until_nul(&name)
            .map_or_else(|_| String::new(), |name| name.to_string_lossy().into_owned());
        let mut version = 0;
        invoke!(driver, "cuDriverGetVersion", (*mut i32), (&raw mut version))?;
        let attribute = |which: u32| -> Result<i32> {
            let mut value = 0;
            invoke!(
                driver,
                "cuDeviceGetAttribute",
                (*mut i32, u32, i32),
                (&raw mut value, which, device)
            )?;
            Ok(value)
        };
        // The two numbers of the compute capability.
        let capability = 10 * attribute(75)? + attribute(76)?;
        let mut context: Handle = std::ptr::null_mut();
        invoke!(
            driver,
            "cuDevicePrimaryCtxRetain",
            (*mut Handle, i32),
            (&raw mut context, device)
        )?;
        invoke!(driver, "cuCtxSetCurrent", (Handle), (context))?;
        Ok(Self { driver, number: device, name, version, capability })
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The driver's version, as in 12090.
    pub(crate) fn version(&self) -> i32 {
        self.version
    }

    /// The compute capability, as in 90.
    pub(crate) fn capability(&self) -> i32 {
        self.capability
    }

    /// Whether the driver is the emulator.
    pub(crate) fn is_stand_in(&self) -> bool {
        self.name.starts_with("CUDA emulator")
    }

    /// The device's architecture, with the letter that PTX of a target with a letter needs.
    fn architecture(&self, ptx: &str) -> String {
        let own = format!("sm_{}", self.capability);
        let exact = format!("{own}a");
        if ptx.contains(&format!(".target {exact}")) { exact } else { own }
    }

    /// Loads PTX; where the driver is too old for its version, as machine code that ptxas makes.
    fn load(&self, ptx: &str) -> Result<Handle> {
        let mut module: Handle = std::ptr::null_mut();
        let text = CString::new(ptx).unwrap_or_default();
        let load = |image: *const c_void, module: &mut Handle| {
            invoke!(
                self.driver,
                "cuModuleLoadData",
                (*mut Handle, *const c_void),
                (&raw mut *module, image)
            )
        };
        let Err(error) = load(text.as_ptr().cast(), &mut module) else { return Ok(module) };
        let name = error.to_string();
        let assembled = Ptxas::find().and_then(|ptxas| ptxas.binary(ptx, &self.architecture(ptx)));
        let binary =
            assembled.map_err(|error| DeviceError::Module { name, reason: error.to_string() })?;
        load(binary.as_ptr().cast(), &mut module)?;
        Ok(module)
    }

    /// Runs a kernel, reads what it gives, and measures `rounds` launches after that.
    pub(crate) fn run(&self, case: &Case, rounds: usize) -> Result<Measured> {
        let module = self.load(case.ptx)?;
        let mut function: Handle = std::ptr::null_mut();
        let name = CString::new(case.name).unwrap_or_default();
        invoke!(
            self.driver,
            "cuModuleGetFunction",
            (*mut Handle, Handle, *const c_char),
            (&raw mut function, module, name.as_ptr())
        )?;
        let shared = case.shape.dynamic_shared;
        if shared > 48 << 10 {
            // The most dynamic shared memory.
            invoke!(
                self.driver,
                "cuFuncSetAttribute",
                (Handle, u32, i32),
                (function, 8, shared as i32)
            )?;
        }
        let mut registers = 0i32;
        invoke!(
            self.driver,
            "cuFuncGetAttribute",
            (*mut i32, u32, Handle),
            (&raw mut registers, 4, function)
        )?;
        let mut block = Vec::new();
        let mut buffers = Vec::new();
        for argument in &case.arguments {
            let address = argument.bytes().map(|bytes| self.allocate(bytes)).transpose()?;
            if let (Some(address), Some(content)) = (address, argument.content()) {
                invoke!(
                    self.driver,
                    "cuMemcpyHtoD_v2",
                    (u64, *const u8, usize),
                    (address, content.as_ptr(), content.len())
                )?;
            }
            argument.append(&mut block, address, |map| self.encode(map))?;
            buffers.push((address, argument));
        }
        self.launch(function, case, &mut block)?;
        self.synchronize()?;
        let mut outputs = Vec::new();
        for (address, argument) in &buffers {
            if let (Some(address), Some(bytes), Some(_)) =
                (address, argument.bytes(), argument.output())
            {
                let mut values = vec![0u8; bytes];
                invoke!(
                    self.driver,
                    "cuMemcpyDtoH_v2",
                    (*mut u8, u64, usize),
                    (values.as_mut_ptr(), *address, bytes)
                )?;
                outputs.push(values);
            }
        }
        let mut times = Vec::new();
        for _ in 0..rounds {
            times.push(self.time(function, case, &mut block)?);
        }
        times.sort_by(f64::total_cmp);
        for (address, _) in buffers {
            if let Some(address) = address {
                invoke!(self.driver, "cuMemFree_v2", (u64), (address))?;
            }
        }
        invoke!(self.driver, "cuModuleUnload", (Handle), (module))?;
        let microseconds = times.get(times.len() / 2).copied();
        Ok(Measured { outputs, registers: registers as u32, microseconds })
    }

    fn allocate(&self, bytes: usize) -> Result<u64> {
        let mut address = 0;
        invoke!(self.driver, "cuMemAlloc_v2", (*mut u64, usize), (&raw mut address, bytes))?;
        Ok(address)
    }

    /// A tensor map as the driver makes it.
    fn encode(&self, map: &TensorMap) -> Result<[u8; 128]> {
        #[repr(align(64))]
        struct Place([u8; 128]);
        let mut place = Place([0; 128]);
        invoke!(
            self.driver,
            "cuTensorMapEncodeTiled",
            (
                *mut u8,
                u32,
                u32,
                u64,
                *const u64,
                *const u64,
                *const u32,
                *const u32,
                u32,
                u32,
                u32,
                u32
            ),
            (
                place.0.as_mut_ptr(),
                map.element as u32,
                map.rank() as u32,
                map.address,
                map.sizes.as_ptr(),
                map.strides.as_ptr(),
                map.tile.as_ptr(),
                map.element_strides.as_ptr(),
                map.interleave,
                map.swizzle as u32,
                map.promotion,
                u32::from(map.fill_nan)
            )
        )?;
        Ok(place.0)
    }

    fn synchronize(&self) -> Result<()> {
        invoke!(self.driver, "cuCtxSynchronize", (), ())
    }

    fn launch(&self, function: Handle, case: &Case, block: &mut Vec<u8>) -> Result<()> {
        let mut size = block.len();
        // The parameter block, its size, and the end of the list.
        let mut extra: [*mut c_void; 5] = [
            std::ptr::without_provenance_mut(1),
            block.as_mut_ptr().cast(),
            std::ptr::without_provenance_mut(2),
            (&raw mut size).cast(),
            std::ptr::null_mut(),
        ];
        let ([gx, gy, gz], [bx, by, bz]) = (case.shape.grid, case.shape.block);
        invoke!(
            self.driver,
            "cuLaunchKernel",
            (Handle, u32, u32, u32, u32, u32, u32, u32, Handle, *mut Handle, *mut Handle),
            (
                function,
                gx,
                gy,
                gz,
                bx,
                by,
                bz,
                case.shape.dynamic_shared,
                std::ptr::null_mut(),
                std::ptr::null_mut(),
                extra.as_mut_ptr()
            )
        )
    }

    /// The time of one launch between two events, in microseconds.
    fn time(&self, function: Handle, case: &Case, block: &mut Vec<u8>) -> Result<f64> {
        let mut events: [Handle; 2] = [std::ptr::null_mut(); 2];
        for event in &mut events {
            invoke!(self.driver, "cuEventCreate", (*mut Handle, u32), (&raw mut *event, 0))?;
        }
        let [from, to] = events;
        let none = std::ptr::null_mut();
        invoke!(self.driver, "cuEventRecord", (Handle, Handle), (from, none))?;
        self.launch(function, case, block)?;
        invoke!(self.driver, "cuEventRecord", (Handle, Handle), (to, none))?;
        invoke!(self.driver, "cuEventSynchronize", (Handle), (to))?;
        let mut milliseconds = 0f32;
        invoke!(
            self.driver,
            "cuEventElapsedTime",
            (*mut f32, Handle, Handle),
            (&raw mut milliseconds, from, to)
        )?;
        for event in events {
            invoke!(self.driver, "cuEventDestroy_v2", (Handle), (event))?;
        }
        Ok(f64::from(milliseconds) * 1000.0)
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // The process ends; a context that can't be released goes with it.
        _ = invoke!(self.driver, "cuDevicePrimaryCtxRelease_v2", (i32), (self.number));
    }
}
