//! A file of flags: `name = value` in TOML, with the names that the command line has.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Args, Command};
use toml::{Table, Value};

use super::ServeArguments;

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
/// command. What the command line says counts: a flag of the file is left out where the command line has the flag or
/// one that conflicts with it. The file's flags count more than the environment.
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
    let line = Line::new(rest.get(place..).unwrap_or_default());
    let flags: Vec<OsString> = flags
        .into_iter()
        .filter(|(name, _)| !line.overrules(name))
        .map(|(_, argument)| argument)
        .collect();
    rest.splice(place..place, flags);
    Ok(rest)
}

/// What the command line itself says.
struct Line {
    command: Command,
    /// As far as the line is right; where it is not, the whole is refused later.
    matches: Option<ArgMatches>,
}

impl Line {
    fn new(arguments: &[OsString]) -> Self {
        let mut command = ServeArguments::augment_args(Command::new("serve"))
            .no_binary_name(true)
            .ignore_errors(true);
        command.build();
        let matches = command.clone().try_get_matches_from(arguments).ok();
        Self { command, matches }
    }

    /// It has the flag of this name, or a rival of the flag.
    fn overrules(&self, name: &str) -> bool {
        let is_named = |argument: &&Arg| {
            argument.get_long() == Some(name)
                || argument.get_all_aliases().is_some_and(|aliases| aliases.contains(&name))
        };
        let Some(own) = self.command.get_arguments().find(is_named) else { return false };
        let conflicts = |one: &Arg, other: &Arg| {
            let rivals = self.command.get_arg_conflicts_with(one);
            rivals.iter().any(|rival| rival.get_id() == other.get_id())
        };
        self.command.get_arguments().any(|argument| {
            let is_rival = argument.get_id() == own.get_id()
                || conflicts(own, argument)
                || conflicts(argument, own);
            is_rival && self.has(argument)
        })
    }

    fn has(&self, argument: &Arg) -> bool {
        let source = |matches: &ArgMatches| matches.value_source(argument.get_id().as_str());
        self.matches.as_ref().and_then(source) == Some(ValueSource::CommandLine)
    }
}

/// Names without dashes, each with the argument it stands in.
fn flags(path: &Path) -> Result<Vec<(String, OsString)>, ConfigError> {
    let text = std::fs::read_to_string(path);
    let text = text.map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    let table: Table = text.parse().map_err(|error: toml::de::Error| ConfigError::Malformed {
        path: path.to_owned(),
        reason: error.message().to_owned(),
    })?;
    let mut flags = Vec::new();
    for (name, value) in table {
        let flag = name.replace('_', "-");
        let wrong = || ConfigError::Value { path: path.to_owned(), name: name.clone() };
        let values = match value {
            Value::Array(values) => values,
            value => vec![value],
        };
        for value in values {
            let argument = match value {
                Value::Boolean(false) => continue,
                Value::Boolean(true) => format!("--{flag}"),
                Value::String(text) => format!("--{flag}={text}"),
                Value::Integer(number) => format!("--{flag}={number}"),
                Value::Float(number) => format!("--{flag}={number}"),
                _ => return Err(wrong()),
            };
            flags.push((flag.clone(), argument.into()));
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
            "--served-model-name=a",
            "--served-model-name=b",
            "--port",
            "2",
        ];
        assert_eq!(all.unwrap(), words(&expected));
    }

    fn parsed(arguments: &[&str], file: &str) -> Result<ServeArguments, clap::Error> {
        #[derive(clap::Parser)]
        struct Program {
            #[command(subcommand)]
            command: Subcommand,
        }
        #[derive(clap::Subcommand)]
        enum Subcommand {
            Serve(Box<ServeArguments>),
        }
        let all = [&["understory", "serve", "--config", file], arguments].concat();
        let program: Program = clap::Parser::try_parse_from(with_file(words(&all)).unwrap())?;
        let Subcommand::Serve(arguments) = program.command;
        Ok(*arguments)
    }

    #[test]
    fn the_command_line_counts_more_than_the_file() {
        let example = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/serve.toml");
        assert_eq!(parsed(&[], example).unwrap().engine.source(), "default");
        for line in [&["tiny"][..], &["--model", "tiny"], &["--port", "1", "tiny"]] {
            assert_eq!(parsed(line, example).unwrap().engine.source(), "tiny", "{line:?}");
        }
        let line = ["--api-key-file", "/dev/null", "--served-model-name", "own", "--port=7"];
        let arguments = parsed(&line, example).unwrap();
        assert_eq!(arguments.options().unwrap().served_model_name, ["own"]);
        assert_eq!((arguments.port, &*arguments.host), (7, "0.0.0.0"));

        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "max-total-tokens = 64\ntensor-parallel-size = 2\n").unwrap();
        let path = file.path().to_str().unwrap();
        let line = ["--mem-fraction-static", "0.25", "--tp-size", "3"];
        let arguments = parsed(&line, path).unwrap();
        let memory = arguments.engine_options().kv_memory;
        assert_eq!(memory, understory::engine::KvMemory::Fraction(0.25));
        assert_eq!(arguments.options().unwrap().tp_size, 3);
        std::fs::write(file.path(), "no-such-flag = 1\n").unwrap();
        assert!(parsed(&[], path).is_err());
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
