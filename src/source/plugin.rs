//! How a PJRT plugin is named.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use engine_core::backend::Progress;

use super::known::{LIBTPU_IN_WHEEL, PJRT_CPU_IN_WHEEL};
use super::{FetchOptions, ModelSource, SourceError};

/// A PJRT plugin: one of those that this crate knows, with their hashes, or a source of another.
///
/// | written | means |
/// | --- | --- |
/// | `cpu` | XLA's CPU plugin, 63 MB to fetch and 202 MB to keep |
/// | `tpu` | libtpu, 214 MB to fetch and 631 MB to keep; it describes TPUs and compiles for them on machines that have none |
/// | anything else | a [`ModelSource`]: a path, or a file inside a Python package |
///
/// Both known plugins are for 64-bit x86 Linux.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum PluginSource {
    /// XLA's CPU plugin.
    #[default]
    Cpu,
    /// The TPU plugin, libtpu.
    Tpu,
    /// Another one.
    Other(ModelSource),
}

impl PluginSource {
    /// Makes the plugin a path on this machine, fetching it if need be, as
    /// [`ModelSource::resolve`] does.
    ///
    /// # Errors
    ///
    /// [`SourceError`].
    pub fn resolve(
        &self,
        options: &FetchOptions,
        progress: &mut dyn Progress,
    ) -> Result<PathBuf, SourceError> {
        match self {
            Self::Cpu => PJRT_CPU_IN_WHEEL.parse::<ModelSource>()?.resolve(options, progress),
            Self::Tpu => LIBTPU_IN_WHEEL.parse::<ModelSource>()?.resolve(options, progress),
            Self::Other(source) => source.resolve(options, progress),
        }
    }
}

impl From<ModelSource> for PluginSource {
    fn from(source: ModelSource) -> Self {
        Self::Other(source)
    }
}

impl FromStr for PluginSource {
    type Err = SourceError;

    fn from_str(text: &str) -> Result<Self, SourceError> {
        Ok(match text {
            "cpu" => Self::Cpu,
            "tpu" => Self::Tpu,
            other => Self::Other(other.parse()?),
        })
    }
}

impl fmt::Display for PluginSource {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => formatter.write_str("cpu"),
            Self::Tpu => formatter.write_str("tpu"),
            Self::Other(source) => source.fmt(formatter),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plugins_are_written_as_they_are_parsed() {
        for text in ["cpu", "tpu", "/opt/plugin.so", "pypi:a==1/b.so"] {
            assert_eq!(text.parse::<PluginSource>().unwrap().to_string(), text);
        }
        assert!("".parse::<PluginSource>().is_err());
    }

    #[test]
    fn known_plugins_are_pinned_by_hash() {
        for source in [PJRT_CPU_IN_WHEEL, LIBTPU_IN_WHEEL] {
            let known = crate::source::known::KNOWN_FILES;
            assert!(known.iter().any(|file| file.sources.contains(&source)), "{source}");
        }
    }
}
