//! Which device runs a model: the one place that knows all backends.

mod cuda;

use std::convert::Infallible;
use std::fmt;
use std::str::FromStr;

#[cfg(feature = "xla")]
use backend_xla::pallas::{AttentionChoice, KernelSource};
use engine_core::backend::{Backend, BackendError, Progress};

use crate::source::{FetchOptions, PluginSource, SourceError};

/// Which device runs a model.
///
/// | written | means |
/// | --- | --- |
/// | `cpu` | this machine's processor, on all cores |
/// | `cpu:THREADS` | the same on so many threads |
/// | `xla:PLUGIN` | the device of a PJRT plugin, which is given as a [`PluginSource`]: `cpu`, `tpu`, a path, or a file inside a Python package |
/// | `xla*DEVICES:PLUGIN` | the same, with the model shared between so many devices |
/// | `xla`, `xla*DEVICES` | XLA's CPU plugin, fetched out of a Python package and checked by hash |
/// | `cuda`, `cuda:DEVICE` | an NVIDIA device, the first or the one with this number |
/// | `cuda:emulate` | the emulator of NVIDIA devices on this machine's processor, to try what is written for them: slow |
///
/// ```
/// use understory::BackendChoice;
///
/// let choice: BackendChoice = "cpu:2".parse()?;
/// assert_eq!(choice, BackendChoice::Cpu { threads: Some(2) });
/// # Ok::<(), understory::BackendChoiceError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum BackendChoice {
    /// This machine's processor (feature `cpu`).
    Cpu {
        /// Threads; all cores by default.
        threads: Option<usize>,
    },
    /// The device of a PJRT plugin (feature `xla`).
    Xla {
        /// The plugin.
        plugin: PluginSource,
        /// Devices that share the model.
        devices: usize,
    },
    /// A device of NVIDIA's (feature `cuda`).
    Cuda {
        /// Its number, from 0.
        device: usize,
        /// On the emulator instead. A process has one driver: once the emulator was opened, other
        /// devices are not, and the other way round.
        emulate: bool,
    },
}

/// Why a backend can't be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BackendChoiceError {
    /// It is written wrongly.
    #[error("`{text}` names no backend: {reason}")]
    Malformed {
        /// What was written.
        text: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The program was built without it.
    #[error("this program was built without the feature `{feature}`")]
    NotBuilt {
        /// The cargo feature that has it.
        feature: &'static str,
    },
    /// The plugin can't be fetched.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The emulator, or the compiler that it needs, is not there.
    #[error("cannot emulate an NVIDIA device: {reason}")]
    Emulator {
        /// What is missing, and how to get it.
        reason: String,
    },
    /// The device can't be used.
    #[error(transparent)]
    Backend(#[from] BackendError),
}

impl Default for BackendChoice {
    fn default() -> Self {
        Self::Cpu { threads: None }
    }
}

impl BackendChoice {
    /// Opens the device, and fetches what it needs for that.
    ///
    /// # Errors
    ///
    /// [`BackendChoiceError`].
    pub fn open(
        &self,
        fetch: &FetchOptions,
        progress: &mut dyn Progress,
    ) -> Result<Box<dyn Backend>, BackendChoiceError> {
        match self {
            Self::Cpu { threads } => open_cpu(*threads),
            Self::Xla { plugin, devices } => open_xla(plugin, *devices, fetch, progress),
            Self::Cuda { device, emulate } => cuda::open(*device, *emulate, fetch, progress),
        }
    }
}

#[cfg(feature = "cpu")]
fn open_cpu(threads: Option<usize>) -> Result<Box<dyn Backend>, BackendChoiceError> {
    let options = backend_cpu::CpuOptions::new().threads(threads);
    Ok(Box::new(backend_cpu::CpuBackend::with_options(&options)?))
}

#[cfg(not(feature = "cpu"))]
fn open_cpu(_threads: Option<usize>) -> Result<Box<dyn Backend>, BackendChoiceError> {
    Err(BackendChoiceError::NotBuilt { feature: "cpu" })
}

#[cfg(feature = "xla")]
fn open_xla(
    plugin: &PluginSource,
    devices: usize,
    fetch: &FetchOptions,
    progress: &mut dyn Progress,
) -> Result<Box<dyn Backend>, BackendChoiceError> {
    let path = plugin.resolve(fetch, progress)?;
    let mut options = backend_xla::XlaOptions::new(path).tensor_parallel(devices);
    options.cache = fetch.executables().unwrap_or_else(|error| {
        tracing::warn!(%error, "executables are not kept");
        None
    });
    if let Some(script) = &fetch.kernel_script {
        match KernelSource::script("python3", script, fetch.kernels()?) {
            Ok(source) => options.attention = AttentionChoice::Pallas(source),
            Err(error) => tracing::warn!(%error, "attention is portable"),
        }
    }
    Ok(Box::new(backend_xla::XlaBackend::new(options).map_err(BackendError::from)?))
}

#[cfg(not(feature = "xla"))]
fn open_xla(
    _plugin: &PluginSource,
    _devices: usize,
    _fetch: &FetchOptions,
    _progress: &mut dyn Progress,
) -> Result<Box<dyn Backend>, BackendChoiceError> {
    Err(BackendChoiceError::NotBuilt { feature: "xla" })
}

impl TryFrom<&str> for BackendChoice {
    type Error = BackendChoiceError;

    fn try_from(text: &str) -> Result<Self, BackendChoiceError> {
        text.parse()
    }
}

/// A choice that is made already can't be written wrongly.
impl From<Infallible> for BackendChoiceError {
    fn from(never: Infallible) -> Self {
        match never {}
    }
}

impl FromStr for BackendChoice {
    type Err = BackendChoiceError;

    fn from_str(text: &str) -> Result<Self, BackendChoiceError> {
        let malformed = |reason: &str| BackendChoiceError::Malformed {
            text: text.to_owned(),
            reason: reason.to_owned(),
        };
        let (kind, rest) = match text.split_once(':') {
            Some((kind, rest)) => (kind, Some(rest)),
            None => (text, None),
        };
        let (kind, devices) = match kind.split_once('*') {
            Some((kind, devices)) => {
                let devices = devices.parse().ok().filter(|&devices: &usize| devices > 0);
                (kind, Some(devices.ok_or_else(|| malformed("how many devices?"))?))
            }
            None => (kind, None),
        };
        match (kind, devices, rest) {
            ("cpu", None, None) => Ok(Self::Cpu { threads: None }),
            ("cpu", None, Some(threads)) => {
                let threads = threads.parse().map_err(|_| malformed("how many threads?"))?;
                Ok(Self::Cpu { threads: Some(threads) })
            }
            ("xla", devices, plugin) => {
                let plugin = plugin.map(str::parse).transpose()?.unwrap_or_default();
                Ok(Self::Xla { plugin, devices: devices.unwrap_or(1) })
            }
            ("cuda", None, rest) => {
                let device = match rest {
                    None | Some("emulate") => 0,
                    Some(number) => {
                        number.parse().map_err(|_| malformed("which device, from 0?"))?
                    }
                };
                Ok(Self::Cuda { device, emulate: rest == Some("emulate") })
            }
            _ => Err(malformed(
                "there are `cpu`, `cpu:THREADS`, `xla`, `xla:PLUGIN`, `cuda`, `cuda:DEVICE` and `cuda:emulate`",
            )),
        }
    }
}

impl fmt::Display for BackendChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu { threads: None } => f.write_str("cpu"),
            Self::Cpu { threads: Some(threads) } => write!(f, "cpu:{threads}"),
            Self::Xla { plugin, devices } => {
                f.write_str("xla")?;
                if *devices != 1 {
                    write!(f, "*{devices}")?;
                }
                match plugin {
                    PluginSource::Cpu => Ok(()),
                    plugin => write!(f, ":{plugin}"),
                }
            }
            Self::Cuda { emulate: true, .. } => f.write_str("cuda:emulate"),
            Self::Cuda { device: 0, .. } => f.write_str("cuda"),
            Self::Cuda { device, .. } => write!(f, "cuda:{device}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_reads_back() {
        let xla = ["xla", "xla*2", "xla:tpu", "xla:/opt/plugin.so", "xla*4:/p.so"];
        for text in ["cpu", "cpu:3", "cuda", "cuda:1", "cuda:emulate"].into_iter().chain(xla) {
            let choice: BackendChoice = text.parse().unwrap();
            assert_eq!(choice.to_string(), text);
        }
    }

    #[test]
    fn what_names_no_backend_says_why() {
        for text in
            ["", "gpu", "cpu:", "cpu:many", "cpu*2", "xla*0:/p.so", "xla:", "cuda*2", "cuda:one"]
        {
            let error = text.parse::<BackendChoice>().unwrap_err();
            assert!(!error.to_string().is_empty(), "{text}");
        }
    }

    #[cfg(not(feature = "cuda"))]
    #[test]
    fn cuda_is_named_where_it_was_not_built() {
        let choice: BackendChoice = "cuda:emulate".parse().unwrap();
        let Err(error) = choice.open(&FetchOptions::default(), &mut ()) else { panic!("opened") };
        assert!(matches!(error, BackendChoiceError::NotBuilt { feature: "cuda" }), "{error}");
    }

    #[cfg(not(feature = "xla"))]
    #[test]
    fn a_backend_that_was_not_built_is_named() {
        let choice: BackendChoice = "xla:/opt/plugin.so".parse().unwrap();
        let Err(error) = choice.open(&FetchOptions::default(), &mut ()) else { panic!("opened") };
        assert!(matches!(error, BackendChoiceError::NotBuilt { feature: "xla" }), "{error}");
    }
}
