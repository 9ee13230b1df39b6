//! CUDA C++ to machine code with NVRTC, NVIDIA's compiler as a library. No toolkit, no `nvcc` and no header is needed.

use std::ffi::{CStr, CString, OsString, c_char, c_int, c_void};
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

    /// PTX of a source.
    ///
    /// # Errors
    ///
    /// [`BackendError::Device`] with the compiler's messages.
    pub(crate) fn ptx(
        &self,
        source: &str,
        name: &str,
        architecture: &str,
        options: &[String],
    ) -> Result<String, BackendError> {
        let failed = |message: String| BackendError::Device {
            context: format!("compiling the kernel {name}"),
            message,
        };
        let mut all = vec![format!("--gpu-architecture={architecture}")];
        all.extend(["--std=c++17", "-default-device", "-lineinfo"].map(str::to_owned));
        all.extend_from_slice(options);
        let text = |text: &str| CString::new(text).map_err(|error| failed(error.to_string()));
        let options = all.iter().map(|option| text(option)).collect::<Result<Vec<_>, _>>()?;
        let pointers: Vec<*const c_char> = options.iter().map(|option| option.as_ptr()).collect();
        let (source, file) = (text(source)?, text(name)?);
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
            let read = |size: &[u8], get: &[u8], handle| -> Result<String, BackendError> {
                let size: Symbol<'_, Size> = self.library.get(size).map_err(missing)?;
                let get: Symbol<'_, Text> = self.library.get(get).map_err(missing)?;
                let mut bytes = 0;
                if size(handle, &raw mut bytes) != 0 {
                    return Ok(String::new());
                }
                // One more: the text ends with zero even where the library counts otherwise.
                let mut buffer = vec![0u8; bytes + 1];
                if get(handle, buffer.as_mut_ptr().cast()) != 0 {
                    return Ok(String::new());
                }
                let text = CStr::from_bytes_until_nul(&buffer).unwrap_or_default();
                Ok(text.to_string_lossy().into_owned())
            };
            let mut handle = ptr::null_mut();
            if create(&raw mut handle, source.as_ptr(), file.as_ptr(), 0, ptr::null(), ptr::null())
                != 0
            {
                return Err(failed("NVRTC makes no program of it".to_owned()));
            }
            let count = c_int::try_from(pointers.len()).unwrap_or(c_int::MAX);
            let status = compile(handle, count, pointers.as_ptr());
            let outcome = if status == 0 {
                read(b"nvrtcGetPTXSize\0", b"nvrtcGetPTX\0", handle)
            } else {
                read(b"nvrtcGetProgramLogSize\0", b"nvrtcGetProgramLog\0", handle)
                    .and_then(|log| Err(failed(log)))
            };
            destroy(&raw mut handle);
            outcome
        }
    }
}
