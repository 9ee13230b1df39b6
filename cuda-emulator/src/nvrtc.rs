//! CUDA C++ to PTX with NVRTC, NVIDIA's compiler as a library. It needs no GPU and no driver.
//!
//! The library is loaded by its path. [`Nvrtc::find`] takes the one that `CUDA_EMULATOR_NVRTC`
//! names, or the pinned one of the PyPI package, which is fetched once into a cache directory.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::{Path, PathBuf};
use std::ptr;

use libloading::Library;

use crate::packages;
pub use crate::packages::{PACKAGE, PackageError, VERSION, cache_directory, toolkit_headers};

/// What NVRTC could not do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NvrtcError {
    /// The library can't be loaded.
    #[error("cannot load NVRTC from {}: {source}", .path.display())]
    Load {
        /// Where it should be.
        path: PathBuf,
        /// What the loader says.
        source: libloading::Error,
    },
    /// The source doesn't compile.
    #[error("{name} does not compile:\n{log}")]
    Compile {
        /// The source's name.
        name: String,
        /// The compiler's messages.
        log: String,
    },
    /// Another failure of the library.
    #[error("NVRTC: {call} failed: {message}")]
    Call {
        /// The function.
        call: &'static str,
        /// The library's word for the error.
        message: String,
    },
    /// A name or source with a zero byte.
    #[error("{0} holds a zero byte")]
    ZeroByte(&'static str),
    /// The library's package isn't there.
    #[error("{0}; or set CUDA_EMULATOR_NVRTC to the path of libnvrtc")]
    Package(#[from] PackageError),
}

type Program = *mut c_void;
type Status = c_int;

/// The functions of the library that are used.
#[derive(Debug)]
struct Functions {
    create: unsafe extern "C" fn(
        *mut Program,
        *const c_char,
        *const c_char,
        c_int,
        *const *const c_char,
        *const *const c_char,
    ) -> Status,
    destroy: unsafe extern "C" fn(*mut Program) -> Status,
    compile: unsafe extern "C" fn(Program, c_int, *const *const c_char) -> Status,
    log_size: unsafe extern "C" fn(Program, *mut usize) -> Status,
    log: unsafe extern "C" fn(Program, *mut c_char) -> Status,
    ptx_size: unsafe extern "C" fn(Program, *mut usize) -> Status,
    ptx: unsafe extern "C" fn(Program, *mut c_char) -> Status,
    version: unsafe extern "C" fn(*mut c_int, *mut c_int) -> Status,
    error: unsafe extern "C" fn(Status) -> *const c_char,
}

/// A loaded NVRTC.
#[derive(Debug)]
pub struct Nvrtc {
    functions: Functions,
    /// Keeps the functions loaded.
    _library: Library,
}

/// How a source is compiled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CompileOptions {
    /// The virtual architecture, such as `compute_80`.
    pub architecture: String,
    /// Directories of headers.
    pub include: Vec<PathBuf>,
    /// Whether the PTX names source lines.
    pub line_info: bool,
    /// More options as NVRTC has them, such as `-DNAME=VALUE`.
    pub more: Vec<String>,
}

impl Default for CompileOptions {
    fn default() -> Self {
        Self {
            architecture: "compute_80".to_owned(),
            include: Vec::new(),
            line_info: true,
            more: Vec::new(),
        }
    }
}

/// What the compiler gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compiled {
    /// PTX text.
    pub ptx: String,
    /// Warnings; mostly empty.
    pub log: String,
}

impl Nvrtc {
    /// Loads the library at [`locate`](Self::locate).
    ///
    /// # Errors
    ///
    /// When there is no cache directory, `pip` fails, or the library can't be loaded.
    pub fn find() -> Result<Self, NvrtcError> {
        Self::open(&Self::locate()?)
    }

    /// Where the library is: the one that `CUDA_EMULATOR_NVRTC` names, or else the pinned one, fetched if it isn't in
    /// the cache.
    ///
    /// # Errors
    ///
    /// When there is no cache directory, or `pip` fails.
    pub fn locate() -> Result<PathBuf, NvrtcError> {
        match std::env::var_os("CUDA_EMULATOR_NVRTC").filter(|path| !path.is_empty()) {
            Some(path) => Ok(PathBuf::from(path)),
            None => Ok(packages::nvrtc()?),
        }
    }

    /// As [`locate`](Self::locate), with another cache directory than the usual one if one is given; `offline` fetches
    /// nothing.
    ///
    /// # Errors
    ///
    /// As [`locate`](Self::locate), and [`PackageError::NotFetched`].
    pub fn locate_in(cache: Option<&Path>, offline: bool) -> Result<PathBuf, NvrtcError> {
        match std::env::var_os("CUDA_EMULATOR_NVRTC").filter(|path| !path.is_empty()) {
            Some(path) => Ok(PathBuf::from(path)),
            None => Ok(packages::nvrtc_in(cache.map(Path::to_owned), offline)?),
        }
    }

    /// Loads the library at `path`. The library that holds its built-in functions must lie beside
    /// it.
    ///
    /// # Errors
    ///
    /// When the library can't be loaded or lacks a function.
    pub fn open(path: &Path) -> Result<Self, NvrtcError> {
        let load = || -> Result<Self, libloading::Error> {
            // SAFETY: NVRTC has no initializers that break rules of this program.
            let library = unsafe { Library::new(path)? };
            // SAFETY: the signatures are those of nvrtc.h, and the library is kept.
            let functions = unsafe {
                Functions {
                    create: *library.get(b"nvrtcCreateProgram\0")?,
                    destroy: *library.get(b"nvrtcDestroyProgram\0")?,
                    compile: *library.get(b"nvrtcCompileProgram\0")?,
                    log_size: *library.get(b"nvrtcGetProgramLogSize\0")?,
                    log: *library.get(b"nvrtcGetProgramLog\0")?,
                    ptx_size: *library.get(b"nvrtcGetPTXSize\0")?,
                    ptx: *library.get(b"nvrtcGetPTX\0")?,
                    version: *library.get(b"nvrtcVersion\0")?,
                    error: *library.get(b"nvrtcGetErrorString\0")?,
                }
            };
            Ok(Self { functions, _library: library })
        };
        load().map_err(|source| NvrtcError::Load { path: path.to_owned(), source })
    }

    /// Major and minor version.
    ///
    /// # Errors
    ///
    /// When the library fails.
    pub fn version(&self) -> Result<(i32, i32), NvrtcError> {
        let (mut major, mut minor) = (0, 0);
        // SAFETY: both point to integers.
        let status = unsafe { (self.functions.version)(&raw mut major, &raw mut minor) };
        self.check("nvrtcVersion", status)?;
        Ok((major, minor))
    }

    /// Compiles CUDA C++. `name` stands in messages and line information.
    ///
    /// # Errors
    ///
    /// [`NvrtcError::Compile`] with the compiler's messages when the source is wrong.
    pub fn compile(
        &self,
        source: &str,
        name: &str,
        options: &CompileOptions,
    ) -> Result<Compiled, NvrtcError> {
        let text = CString::new(source).map_err(|_| NvrtcError::ZeroByte("the source"))?;
        let c_name = CString::new(name).map_err(|_| NvrtcError::ZeroByte("the name"))?;
        let mut arguments = vec![
            format!("--gpu-architecture={}", options.architecture),
            "--std=c++17".to_owned(),
            "-default-device".to_owned(),
        ];
        if options.line_info {
            arguments.push("-lineinfo".to_owned());
        }
        for directory in &options.include {
            arguments.push(format!("-I{}", directory.display()));
        }
        arguments.extend(options.more.iter().cloned());
        let arguments: Result<Vec<CString>, _> = arguments.into_iter().map(CString::new).collect();
        let arguments = arguments.map_err(|_| NvrtcError::ZeroByte("an option"))?;
        let pointers: Vec<_> = arguments.iter().map(|argument| argument.as_ptr()).collect();

        let mut handle = ptr::null_mut();
        // SAFETY: the strings end with zero and outlive the call; there are no headers.
        let status = unsafe {
            (self.functions.create)(
                &raw mut handle,
                text.as_ptr(),
                c_name.as_ptr(),
                0,
                ptr::null(),
                ptr::null(),
            )
        };
        self.check("nvrtcCreateProgram", status)?;
        let program = Handle { nvrtc: self, program: handle };
        let count = c_int::try_from(pointers.len()).unwrap_or(c_int::MAX);
        // SAFETY: the program is live, and so are `count` options.
        let status = unsafe { (self.functions.compile)(program.program, count, pointers.as_ptr()) };
        let functions = &self.functions;
        let log = program.text("nvrtcGetProgramLog", functions.log_size, functions.log)?;
        if status != 0 {
            return Err(NvrtcError::Compile { name: name.to_owned(), log });
        }
        let ptx = program.text("nvrtcGetPTX", functions.ptx_size, functions.ptx)?;
        Ok(Compiled { ptx, log })
    }

    fn check(&self, call: &'static str, status: Status) -> Result<(), NvrtcError> {
        if status == 0 {
            return Ok(());
        }
        // SAFETY: the library gives a constant string for any status.
        let message = unsafe {
            let text = (self.functions.error)(status);
            if text.is_null() { c"unknown" } else { CStr::from_ptr(text) }
        };
        Err(NvrtcError::Call { call, message: message.to_string_lossy().into_owned() })
    }
}

/// A program of the library, destroyed in the end.
struct Handle<'a> {
    nvrtc: &'a Nvrtc,
    program: Program,
}

impl Handle<'_> {
    fn text(
        &self,
        call: &'static str,
        size: unsafe extern "C" fn(Program, *mut usize) -> Status,
        get: unsafe extern "C" fn(Program, *mut c_char) -> Status,
    ) -> Result<String, NvrtcError> {
        let mut bytes = 0;
        // SAFETY: the program is live.
        self.nvrtc.check(call, unsafe { size(self.program, &raw mut bytes) })?;
        let mut buffer = vec![0u8; bytes];
        if bytes > 0 {
            // SAFETY: the buffer has the size that the library asked for.
            let status = unsafe { get(self.program, buffer.as_mut_ptr().cast()) };
            self.nvrtc.check(call, status)?;
        }
        // The size counts the zero at the end.
        buffer.pop();
        Ok(String::from_utf8_lossy(&buffer).into_owned())
    }
}

impl Drop for Handle<'_> {
    fn drop(&mut self) {
        // SAFETY: the program is live until here.
        unsafe { (self.nvrtc.functions.destroy)(&raw mut self.program) };
    }
}
