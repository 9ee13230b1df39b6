//! CUDA C++ to machine code with NVRTC, NVIDIA's compiler as a library. No toolkit, no `nvcc` and no header is needed.

use std::ffi::{CString, OsString, c_char, c_int, c_void};
use std::ptr;

use backend_api::BackendError;
use libloading::{Library, Symbol};

use crate::driver::said;

type Handle = *mut c_void;
type Text = unsafe extern "C" fn(Handle, *mut c_char) -> c_int;
type Size = unsafe extern "C" fn(Handle, *mut usize) -> c_int;
type Create = unsafe extern "C" fn(
    *mut Handle,
    *const c_char,
    *const c_char,
    c_int,
    *const *const c_char,
    *const *const c_char,
) -> c_int;

/// Where the loader finds the library, newest first.
const NAMES: [&str; 4] = ["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so", "nvrtc64_120_0.dll"];

/// What a source is compiled to.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    /// As NVRTC writes it: `sm_90`, or `compute_90` for PTX.
    pub(crate) architecture: String,
    pub(crate) is_machine_code: bool,
}

/// A loaded NVRTC.
#[derive(Debug)]
pub(crate) struct Nvrtc {
    library: Library,
}

impl Nvrtc {
    /// Loads the library at `path`, or where the system keeps it.
    ///
    /// # Errors
    ///
    /// [`BackendError::Device`], which says how to get the library.
    pub(crate) fn load(path: Option<OsString>) -> Result<Self, BackendError> {
        let names = path.map_or_else(|| NAMES.map(OsString::from).to_vec(), |path| vec![path]);
        let mut reasons = Vec::new();
        for name in names {
            // SAFETY: NVRTC has no initializers that break rules of this program.
            match unsafe { Library::new(&name) } {
                Ok(library) => return Ok(Self { library }),
                Err(error) => reasons.push(said(&error)),
            }
        }
        Err(BackendError::Device {
            context: "loading NVRTC (from the CUDA toolkit, or PyPI's nvidia-cuda-nvrtc-cu12)"
                .to_owned(),
            message: reasons.join("; "),
        })
    }

    /// Major and minor version.
    pub(crate) fn version(&self) -> Option<(c_int, c_int)> {
        let (mut major, mut minor) = (0, 0);
        // SAFETY: the signature is that of nvrtc.h; both are integers.
        let status = unsafe {
            let version: Symbol<'_, unsafe extern "C" fn(*mut c_int, *mut c_int) -> c_int> =
                self.library.get(b"nvrtcVersion\0").ok()?;
            version(&raw mut major, &raw mut minor)
        };
        (status == 0).then_some((major, minor))
    }

    /// What to compile for on a device of this compute capability: machine code if the library knows the device and it is
    /// wanted; otherwise PTX of the newest architecture that device and library have.
    pub(crate) fn target(&self, capability: u32, machine_code: bool) -> Target {
        let known = self.architectures();
        if machine_code && known.contains(&capability) {
            return Target { architecture: format!("sm_{capability}"), is_machine_code: true };
        }
        let newest = known.into_iter().filter(|&known| known <= capability).max();
        let architecture = format!("compute_{}", newest.unwrap_or(capability));
        Target { architecture, is_machine_code: false }
    }

    /// The architectures that the library compiles for, as in 90; none if it doesn't say.
    fn architectures(&self) -> Vec<u32> {
        let mut count = 0;
        let mut all = Vec::new();
        // SAFETY: the signatures are those of nvrtc.h; the list has room for as many as the library says.
        unsafe {
            let numbers: Result<Symbol<'_, unsafe extern "C" fn(*mut c_int) -> c_int>, _> =
                self.library.get(b"nvrtcGetNumSupportedArchs\0");
            let list: Result<Symbol<'_, unsafe extern "C" fn(*mut c_int) -> c_int>, _> =
                self.library.get(b"nvrtcGetSupportedArchs\0");
            let (Ok(numbers), Ok(list)) = (numbers, list) else { return Vec::new() };
            if numbers(&raw mut count) == 0 {
                all.resize(usize::try_from(count).unwrap_or(0), 0);
                if !all.is_empty() && list(all.as_mut_ptr()) != 0 {
                    all.clear();
                }
            }
        }
        all.into_iter().filter_map(|architecture: c_int| u32::try_from(architecture).ok()).collect()
    }

    /// Machine code or PTX of a source.
    ///
    /// # Errors
    ///
    /// [`BackendError::Device`] with the compiler's messages.
    pub(crate) fn compile(
        &self,
        source: &str,
        name: &str,
        target: &Target,
        options: &[String],
    ) -> Result<Vec<u8>, BackendError> {
        let failed = |message: String| BackendError::Device {
            context: format!("compiling the kernel {name}"),
            message,
        };
        let mut all = vec![format!("--gpu-architecture={}", target.architecture)];
        all.extend(["--std=c++17", "-default-device", "-lineinfo"].map(str::to_owned));
        all.extend_from_slice(options);
        let c_text = |text: &str| CString::new(text).map_err(|error| failed(error.to_string()));
        let options = all.iter().map(|option| c_text(option)).collect::<Result<Vec<_>, _>>()?;
        let pointers: Vec<*const c_char> = options.iter().map(|option| option.as_ptr()).collect();
        let (source, file) = (c_text(source)?, c_text(name)?);
        let missing = |error: libloading::Error| failed(said(&error));
        // SAFETY: the signatures are those of nvrtc.h; strings end with zero and outlive the calls; the handle is live
        // between its creation and its destruction.
        unsafe {
            let create: Symbol<'_, Create> =
                self.library.get(b"nvrtcCreateProgram\0").map_err(missing)?;
            let compile: Symbol<
                '_,
                unsafe extern "C" fn(Handle, c_int, *const *const c_char) -> c_int,
            > = self.library.get(b"nvrtcCompileProgram\0").map_err(missing)?;
            let destroy: Symbol<'_, unsafe extern "C" fn(*mut Handle) -> c_int> =
                self.library.get(b"nvrtcDestroyProgram\0").map_err(missing)?;
            let read = |size: &[u8], get: &[u8], handle| -> Result<Vec<u8>, BackendError> {
                let size: Symbol<'_, Size> = self.library.get(size).map_err(missing)?;
                let get: Symbol<'_, Text> = self.library.get(get).map_err(missing)?;
                let mut bytes = 0;
                if size(handle, &raw mut bytes) != 0 {
                    return Err(failed("NVRTC does not tell the size of its output".to_owned()));
                }
                let mut buffer = vec![0u8; bytes];
                if get(handle, buffer.as_mut_ptr().cast()) != 0 {
                    return Err(failed("NVRTC does not give its output".to_owned()));
                }
                Ok(buffer)
            };
            // Text ends with a zero, which counts.
            let text = |mut bytes: Vec<u8>| {
                bytes.truncate(bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len()));
                bytes
            };
            let mut handle = ptr::null_mut();
            if create(&raw mut handle, source.as_ptr(), file.as_ptr(), 0, ptr::null(), ptr::null())
                != 0
            {
                return Err(failed("NVRTC makes no program of it".to_owned()));
            }
            let count = c_int::try_from(pointers.len()).unwrap_or(c_int::MAX);
            let status = compile(handle, count, pointers.as_ptr());
            let outcome = if status != 0 {
                read(b"nvrtcGetProgramLogSize\0", b"nvrtcGetProgramLog\0", handle)
                    .and_then(|log| Err(failed(String::from_utf8_lossy(&text(log)).into_owned())))
            } else if target.is_machine_code {
                read(b"nvrtcGetCUBINSize\0", b"nvrtcGetCUBIN\0", handle)
            } else {
                read(b"nvrtcGetPTXSize\0", b"nvrtcGetPTX\0", handle).map(text)
            };
            destroy(&raw mut handle);
            outcome
        }
    }
}
