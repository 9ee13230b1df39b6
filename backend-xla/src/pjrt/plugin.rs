//! Loading a plugin, and the two macros through which every C function is called.

use std::{
    ffi::c_char,
    fmt,
    fs::File,
    io::Read,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{ErrorCode, PjrtError, Value, options, sys};

/// The oldest PJRT API version (major, minor) that this client works with.
///
/// Plugins refuse argument structs smaller than their own, and a struct grows only at a new minor
/// version; the bindings are of 0.90. Plugins of 0.81, 0.106, 0.115 and 0.116 were tried.
pub const OLDEST_API: (i32, i32) = (0, 81);

/// The variable that keeps libtpu from asking a cloud metadata server who it is.
const SKIP_METADATA: &str = "TPU_SKIP_MDS_QUERY";

/// Exported by libtpu and by no other plugin.
const LIBTPU_MARK: &[u8] = b"GetLibtpuSdkApi";

/// Makes an argument struct: zeroed, with its size and the named fields set.
macro_rules! arguments {
    ($name:ident { $($field:ident : $value:expr),* $(,)? }) => {
        sys::$name {
            struct_size: ::std::mem::size_of::<sys::$name>(),
            $($field: $value,)*
            ..::std::default::Default::default()
        }
    };
}
pub(super) use arguments;

/// Calls a function of the plugin's table with an argument struct made by [`arguments!`], and
/// turns its error into a [`PjrtError`]. The expression is unsafe: the caller vouches for every
/// pointer in the struct.
macro_rules! call {
    ($plugin:expr, $function:ident, $arguments:expr) => {{
        let plugin: &$crate::pjrt::Plugin = &$plugin;
        let name = stringify!($function);
        let end = ::std::mem::offset_of!(sys::PJRT_Api, $function)
            + ::std::mem::size_of::<sys::$function>();
        match plugin.entry(end).and_then(|table| (*table).$function) {
            Some(function) => plugin.check(name, function(&mut $arguments)),
            None => Err($crate::pjrt::PjrtError::Missing { function: name }),
        }
    }};
}
pub(super) use call;

/// Calls a destructor of the plugin. There is nobody to tell about an error, so it is logged.
macro_rules! destroy {
    ($plugin:expr, $function:ident, $arguments:expr) => {
        if let Err(error) = $crate::pjrt::plugin::call!($plugin, $function, $arguments) {
            ::tracing::warn!(%error, "a PJRT destructor failed");
        }
    };
}
pub(super) use destroy;

/// Keeps libtpu from querying the metadata server of a cloud instance when it is loaded.
///
/// Off a Cloud TPU host that query is retried for minutes before anything else happens. Call this
/// first thing in `main` of a program that may load libtpu; [`Plugin::load`] refuses libtpu
/// without it. On a Cloud TPU host it means that the topology comes from the environment
/// (`TPU_ACCELERATOR_TYPE`, `TPU_WORKER_HOSTNAMES`) and not from the metadata server.
///
/// # Safety
///
/// No other thread may read or write the process environment at the same time: call it before any
/// thread is started (see [`std::env::set_var`]).
pub unsafe fn disable_tpu_metadata_query() {
    // SAFETY: the caller vouches that no other thread touches the environment.
    unsafe { std::env::set_var(SKIP_METADATA, "1") };
}

/// A loaded PJRT plugin. Cheap to clone; all clones are the same plugin.
#[derive(Clone)]
pub struct Plugin {
    inner: Arc<Inner>,
}

struct Inner {
    path: PathBuf,
    table: *const sys::PJRT_Api,
}

// SAFETY: the table is constant after initialization, and the PJRT API may be called from any
// thread.
unsafe impl Send for Inner {}
// SAFETY: as above.
unsafe impl Sync for Inner {}

impl Plugin {
    /// Loads the shared library at `path` and initializes it.
    ///
    /// The library stays mapped until the process ends, as plugins start threads that never end.
    /// Loading the same path twice gives the same library.
    ///
    /// # Errors
    ///
    /// [`PjrtError::Unreadable`], [`PjrtError::WrongArchitecture`], [`PjrtError::Load`] and
    /// [`PjrtError::NotAPlugin`] for what is wrong with the file, [`PjrtError::ApiVersion`] for a
    /// plugin that is too old or of a later major version, [`PjrtError::TpuMetadataQuery`] for
    /// libtpu without [`disable_tpu_metadata_query`], [`PjrtError::Call`] if it can't initialize.
    pub fn load(path: &Path) -> Result<Self, PjrtError> {
        check_architecture(path)?;
        // SAFETY: loading a library runs its initializers. A plugin is trusted code that the user
        // chose, as the documentation of the crate says.
        let library = unsafe { libloading::Library::new(path) }
            .map_err(|error| PjrtError::Load { path: path.into(), message: error.to_string() })?;
        // SAFETY: only the address is looked at, not what is there.
        let is_libtpu = unsafe { library.get::<*const ()>(LIBTPU_MARK) }.is_ok();
        if is_libtpu && std::env::var_os(SKIP_METADATA).is_none_or(|value| value != "1") {
            return Err(PjrtError::TpuMetadataQuery { path: path.into() });
        }
        // SAFETY: the API defines `GetPjrtApi` with this signature.
        let table = unsafe {
            library
                .get::<unsafe extern "C" fn() -> *const sys::PJRT_Api>(b"GetPjrtApi")
                .map(|get_api| get_api())
        };
        let table = match table {
            Ok(table) if !table.is_null() => table,
            _ => return Err(PjrtError::NotAPlugin { path: path.into() }),
        };
        std::mem::forget(library);
        // SAFETY: the plugin made the table, and stays mapped.
        unsafe { Self::from_table(path, table) }
    }

    /// Initializes the plugin behind a function table.
    ///
    /// # Safety
    ///
    /// The table is what its size and version say, and lives as long as the process.
    unsafe fn from_table(path: &Path, table: *const sys::PJRT_Api) -> Result<Self, PjrtError> {
        let plugin = Self { inner: Arc::new(Inner { path: path.into(), table }) };
        let (major, minor) = plugin.api_version();
        if major != OLDEST_API.0 || minor < OLDEST_API.1 {
            return Err(PjrtError::ApiVersion {
                path: path.into(),
                found: (major, minor),
                oldest: OLDEST_API,
            });
        }
        let mut initialize = arguments!(PJRT_Plugin_Initialize_Args {});
        // SAFETY: the struct has no pointer.
        unsafe { call!(plugin, PJRT_Plugin_Initialize, initialize) }?;
        Ok(plugin)
    }

    /// The path that the plugin was loaded from.
    pub fn path(&self) -> &Path {
        &self.inner.path
    }

    /// Major and minor version of the C API that the plugin implements.
    pub fn api_version(&self) -> (i32, i32) {
        // SAFETY: every version of the table starts with its size and the version.
        let version = unsafe { &(*self.inner.table).pjrt_api_version };
        (version.major_version, version.minor_version)
    }

    /// What the plugin says of itself, such as the StableHLO version that it takes.
    ///
    /// # Errors
    ///
    /// [`PjrtError::Call`] or [`PjrtError::Missing`].
    pub fn attributes(&self) -> Result<Vec<(String, Value)>, PjrtError> {
        let mut attributes = arguments!(PJRT_Plugin_Attributes_Args {});
        // SAFETY: the struct has only output pointers; the values live as long as the plugin.
        unsafe {
            call!(self, PJRT_Plugin_Attributes, attributes)?;
            Ok(options::read_values(attributes.attributes, attributes.num_attributes))
        }
    }

    /// The function table, if it reaches as far as byte `end`: older plugins have shorter ones.
    pub(super) fn entry(&self, end: usize) -> Option<*const sys::PJRT_Api> {
        // SAFETY: every version of the table starts with its size.
        let size = unsafe { (*self.inner.table).struct_size };
        (end <= size).then_some(self.inner.table)
    }

    /// Turns what a C function returned into a result, and frees it.
    pub(super) fn check(
        &self,
        function: &'static str,
        error: *mut sys::PJRT_Error,
    ) -> Result<(), PjrtError> {
        if error.is_null() {
            return Ok(());
        }
        let table = self.inner.table;
        let mut message = arguments!(PJRT_Error_Message_Args { error: error });
        let mut code = arguments!(PJRT_Error_GetCode_Args { error: error });
        let mut free = arguments!(PJRT_Error_Destroy_Args { error: error });
        // SAFETY: the plugin handed over this error; it is read, then freed once. These three
        // functions are the first of the table in every version.
        unsafe {
            if let Some(function) = (*table).PJRT_Error_Message {
                function(&mut message);
            }
            let unread = match (*table).PJRT_Error_GetCode {
                Some(function) => function(&mut code),
                None => std::ptr::null_mut(),
            };
            let result = PjrtError::Call {
                function,
                code: ErrorCode::from_raw(code.code),
                message: read_string(message.message, message.message_size),
            };
            if let Some(function) = (*table).PJRT_Error_Destroy {
                function(&mut free);
                if !unread.is_null() {
                    function(&mut arguments!(PJRT_Error_Destroy_Args { error: unread }));
                }
            }
            Err(result)
        }
    }
}

impl fmt::Debug for Plugin {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Plugin")
            .field("path", &self.inner.path)
            .field("api_version", &self.api_version())
            .finish()
    }
}

/// Copies a string of the plugin.
///
/// # Safety
///
/// `start` is null, or `length` bytes can be read there.
pub(super) unsafe fn read_string(start: *const c_char, length: usize) -> String {
    if start.is_null() {
        return String::new();
    }
    // SAFETY: the caller vouches for the bytes.
    let bytes = unsafe { std::slice::from_raw_parts(start.cast::<u8>(), length) };
    String::from_utf8_lossy(bytes).into_owned()
}

/// Compares the `e_machine` field of an ELF file with that of the running program. What is no ELF
/// file is left to the dynamic linker to judge.
fn check_architecture(path: &Path) -> Result<(), PjrtError> {
    let machine_of = |path: &Path| -> std::io::Result<Option<u16>> {
        let mut head = Vec::with_capacity(20);
        File::open(path)?.take(20).read_to_end(&mut head)?;
        Ok(match head.as_slice() {
            [0x7f, b'E', b'L', b'F', .., low, high] if head.len() == 20 => {
                Some(u16::from_le_bytes([*low, *high]))
            }
            _ => None,
        })
    };
    let found = machine_of(path)
        .map_err(|error| PjrtError::Unreadable { path: path.into(), message: error.to_string() })?;
    // Where the running program can't be read, the linker's word has to do.
    let own = std::env::current_exe().ok().and_then(|own| machine_of(&own).ok().flatten());
    match (found, own) {
        (Some(found), Some(expected)) if found != expected => {
            Err(PjrtError::WrongArchitecture { path: path.into(), found, expected })
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A table of this version, as long as given, that has no function.
    fn forged(major: i32, minor: i32, size: usize) -> Result<Plugin, PjrtError> {
        let mut table = sys::PJRT_Api { struct_size: size, ..Default::default() };
        table.pjrt_api_version.major_version = major;
        table.pjrt_api_version.minor_version = minor;
        // SAFETY: the table is never freed, and its entries are null.
        unsafe { Plugin::from_table(Path::new("forged.so"), Box::leak(Box::new(table))) }
    }

    #[test]
    fn versions_that_are_too_old_or_of_another_major_are_refused() {
        let (major, minor) = OLDEST_API;
        let size = std::mem::size_of::<sys::PJRT_Api>();
        for version in [(major, minor - 1), (major + 1, minor), (major - 1, minor + 1)] {
            let error = forged(version.0, version.1, size).unwrap_err();
            assert!(
                matches!(error, PjrtError::ApiVersion { found, .. } if found == version),
                "{error}"
            );
        }
    }

    #[test]
    fn a_plugin_without_a_function_says_which() {
        let (major, minor) = OLDEST_API;
        let whole = std::mem::size_of::<sys::PJRT_Api>();
        // A null entry, and a table that ends before the entry.
        for size in [whole, std::mem::offset_of!(sys::PJRT_Api, PJRT_Plugin_Initialize)] {
            let error = forged(major, minor, size).unwrap_err();
            let function = "PJRT_Plugin_Initialize";
            assert!(
                matches!(error, PjrtError::Missing { function: found } if found == function),
                "{error}"
            );
        }
    }

    #[test]
    fn a_missing_file_is_unreadable() {
        let error = Plugin::load(Path::new("/nowhere/plugin.so")).unwrap_err();
        assert!(matches!(error, PjrtError::Unreadable { .. }), "{error}");
    }

    #[test]
    fn a_file_that_is_no_library_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "not a library").unwrap();
        let error = Plugin::load(file.path()).unwrap_err();
        assert!(matches!(error, PjrtError::Load { .. }), "{error}");
    }

    #[test]
    fn a_library_for_another_processor_is_named_as_such() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut head = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        head.truncate(64);
        // EM_S390: no machine that the tests run on.
        head[18..20].copy_from_slice(&22u16.to_le_bytes());
        std::fs::write(file.path(), head).unwrap();
        let error = Plugin::load(file.path()).unwrap_err();
        assert!(matches!(error, PjrtError::WrongArchitecture { found: 22, .. }), "{error}");
    }
}
