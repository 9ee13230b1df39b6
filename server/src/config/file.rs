//! A file of flags: `name = value` in TOML, with the names that the command line has.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use toml::{Table, Value};

/// Why a file of flags can't be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// It can't be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is not TOML.
    #[error("{} is not TOML: {reason}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A value that no flag has.
    #[error("{name} in {} must be a text, a number, true, false, or a list of those", path.display())]
    Value {
        /// The file.
        path: PathBuf,
        /// The flag.
        name: String,
    },
    /// `--config` without a file.
    #[error("--config needs a file")]
    NoFile,
}

/// The arguments of a command line, with those of the file that its `--config` names put before all others of the
/// command, so that what the command line says counts.
///
/// # Errors
///
/// [`ConfigError`].
pub fn with_file(arguments: Vec<OsString>) -> Result<Vec<OsString>, ConfigError> {
    let mut path = None;
    let mut rest = Vec::new();
    let mut given = arguments.into_iter();
    while let Some(argument) = given.next() {
        let text = argument.to_str();
        if text == Some("--config") {
            path = Some(PathBuf::from(given.next().ok_or(ConfigError::NoFile)?));
        } else if let Some(value) = text.and_then(|text| text.strip_prefix("--config=")) {
            path = Some(PathBuf::from(value));
        } else {
            rest.push(argument);
        }
    }
    let Some(path) = path else { return Ok(rest) };
    let flags = flags(&path)?;
    // Behind the program's name and the command.
    let place = rest.len().min(2);
    rest.splice(place..place, flags);
    Ok(rest)
}

fn flags(path: &Path) -> Result<Vec<OsString>, ConfigError> {
    let text = std::fs::read_to_string(path);
    let text = text.map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    let table: Table = text.parse().map_err(|error: toml::de::Error| ConfigError::Malformed {
        path: path.to_owned(),
        reason: error.message().to_owned(),
    })?;
    let mut flags = Vec::new();
    for (name, value) in table {
        let flag = format!("--{}", name.replace('_', "-"));
        let wrong = || ConfigError::Value { path: path.to_owned(), name: name.clone() };
        let values = match value {
            Value::Array(values) => values,
            value => vec![value],
        };
        for value in values {
            match value {
                Value::Boolean(false) => {}
                Value::Boolean(true) => flags.push(flag.clone().into()),
                Value::String(text) => flags.push(format!("{flag}={text}").into()),
                Value::Integer(number) => flags.push(format!("{flag}={number}").into()),
                Value::Float(number) => flags.push(format!("{flag}={number}").into()),
                _ => return Err(wrong()),
            }
        }
    }
    Ok(flags)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(arguments: &[&str]) -> Vec<OsString> {
        arguments.iter().map(Into::into).collect()
    }

    #[test]
    fn flags_of_the_file_come_before_those_of_the_command_line() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let text = "port = 1\nserved_model_name = [\"a\", \"b\"]\ndisable-radix-cache = true\n\
                    offline = false\nmem-fraction-static = 0.5\n";
        std::fs::write(file.path(), text).unwrap();
        let path = file.path().to_str().unwrap();
        let all = with_file(words(&["understory", "serve", "--port", "2", "--config", path]));
        let expected = [
            "understory",
            "serve",
            "--disable-radix-cache",
            "--mem-fraction-static=0.5",
            "--port=1",
            "--served-model-name=a",
            "--served-model-name=b",
            "--port",
            "2",
        ];
        assert_eq!(all.unwrap(), words(&expected));
    }

    #[test]
    fn a_file_that_is_no_list_of_flags_is_an_error() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let with = |text: &str| {
            std::fs::write(file.path(), text).unwrap();
            let path = format!("--config={}", file.path().display());
            with_file(words(&["understory", "serve", &path]))
        };
        assert!(matches!(with("port"), Err(ConfigError::Malformed { .. })));
        assert!(matches!(with("[port]\na = 1"), Err(ConfigError::Value { .. })));
        let missing = with_file(words(&["understory", "serve", "--config", "/no/such/file"]));
        assert!(matches!(missing, Err(ConfigError::Read { .. })));
        let nothing = with_file(words(&["understory", "serve", "--config"]));
        assert!(matches!(nothing, Err(ConfigError::NoFile)));
    }
}
