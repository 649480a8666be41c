//! The file of `--config`: the options of the command line in TOML, by the same names. What is given on
//! the command line as well holds instead of the file's.
//!
//! The file becomes arguments and clap reads them, so no option has a second reader.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command, CommandFactory as _, FromArgMatches as _};
use toml::de::{DeTable, DeValue};

use crate::cli::{Cli, nearest};

/// Options that are about the file, or are no setting.
const NO_KEYS: [&str; 4] = ["config", "check-config", "help", "version"];

/// A file that was read: for each key its arguments.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct File(BTreeMap<String, Vec<String>>);

/// The command line with what the file of its `--config` adds.
#[derive(Debug)]
pub struct Line {
    /// What both ask for.
    pub cli: Cli,
    /// The file, where one is named.
    pub file: Option<File>,
}

/// Reads a command line and the file it names.
///
/// # Errors
/// What clap says of the command line, or of both together; what is wrong with the file, and in which
/// line.
pub fn read(args: &[OsString]) -> Result<Line> {
    // An option that needs another may find it in the file, so what is missing here is no error yet.
    let peeked = Cli::command()
        .ignore_errors(true)
        .try_get_matches_from(args);
    let named = peeked.ok().and_then(|matches| {
        let path = matches.get_one::<PathBuf>("config")?.clone();
        Some((path, matches))
    });
    let Some((path, matches)) = named else {
        let cli = Cli::from_arg_matches(&Cli::command().try_get_matches_from(args)?)?;
        return Ok(Line { cli, file: None });
    };
    let text = fs::read_to_string(&path).with_context(|| {
        format!(
            "--config {}: cannot be read; name a file of TOML",
            path.display()
        )
    })?;
    let file = File::parse(&path, &text)?;
    let both = Cli::command().try_get_matches_from(file.join(args, &matches))?;
    Ok(Line {
        cli: Cli::from_arg_matches(&both)?,
        file: Some(file),
    })
}

impl File {
    /// Reads its text; `path` is for what is said of it.
    ///
    /// # Errors
    /// It is no TOML, or a key or value is none of an option; the line is named.
    pub fn parse(path: &Path, text: &str) -> Result<Self> {
        let at = |offset: usize, why: &dyn fmt::Display| {
            let line = text.bytes().take(offset).filter(|&it| it == b'\n').count() + 1;
            anyhow!("{}:{line}: {why}", path.display())
        };
        let table = DeTable::parse(text).map_err(|error| {
            let offset = error.span().map_or(0, |span| span.start);
            at(offset, &error.message())
        })?;
        let mut command = Cli::command();
        let mut keys = BTreeMap::new();
        for (name, value) in table.get_ref() {
            let key: &str = name.get_ref();
            let known = option(&command, key).map_err(|error| at(name.span().start, &error))?;
            let arguments = arguments(known, key, value.get_ref())
                .and_then(|arguments| {
                    accept(&mut command, &arguments)?;
                    Ok(arguments)
                })
                .map_err(|error| at(value.span().start, &error))?;
            keys.insert(key.to_owned(), arguments);
        }
        Ok(Self(keys))
    }

    /// The command line with the arguments of the keys that it does not have itself.
    fn join(&self, args: &[OsString], matches: &ArgMatches) -> Vec<OsString> {
        let command = Cli::command();
        let is_given = |key: &str| {
            option(&command, key).is_ok_and(|known| {
                matches.value_source(known.get_id().as_str()) == Some(ValueSource::CommandLine)
            })
        };
        let own = self.0.iter().filter(|(key, _)| !is_given(key));
        let own = own.flat_map(|(_, arguments)| arguments.iter().map(OsString::from));
        let (program, rest) = args.split_at(args.len().min(1));
        let program = program.iter().cloned();
        program.chain(own).chain(rest.iter().cloned()).collect()
    }

    /// Keys whose values differ, or that only one of the two has.
    pub fn changes<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = &'a str> {
        let keys = self
            .0
            .keys()
            .chain(other.0.keys().filter(|key| !self.0.contains_key(*key)));
        let changed = keys.filter(|key| self.0.get(*key) != other.0.get(*key));
        changed.map(String::as_str)
    }
}

/// The option of this name.
fn option<'a>(command: &'a Command, key: &str) -> Result<&'a Arg> {
    let names = || {
        let options = command
            .get_arguments()
            .filter_map(|it| Some((it.get_long()?, it)));
        options.filter(|(name, _)| !NO_KEYS.contains(name))
    };
    if let Some((_, option)) = names().find(|(name, _)| *name == key) {
        return Ok(option);
    }
    match nearest(key, names().map(|(name, _)| name)) {
        Some(name) => bail!("there is no option {key:?}; did you mean {name:?}?"),
        None => bail!("there is no option {key:?}; `tcptrace --help` lists them"),
    }
}

/// The option as it stands on a command line.
fn arguments(option: &Arg, key: &str, value: &DeValue) -> Result<Vec<String>> {
    let takes_value = option.get_action().takes_values();
    if let DeValue::Boolean(on) = value {
        ensure!(!takes_value, "{key} takes a value, not {on}");
        return Ok(on.then(|| format!("--{key}")).into_iter().collect());
    }
    ensure!(takes_value, "{key} is true or false");
    let one = |value: &DeValue| {
        let text = match value {
            DeValue::String(text) => text.to_string(),
            DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix())
                .map(|number| number.to_string())
                .with_context(|| format!("{key} = {number} is no number of 64 bits"))?,
            DeValue::Float(number) => number.as_str().to_owned(),
            DeValue::Boolean(_) | DeValue::Datetime(_) | DeValue::Array(_) | DeValue::Table(_) => {
                bail!("{key} is text or a number, or a list of them where there may be several")
            }
        };
        Ok(format!("--{key}={text}"))
    };
    match value {
        DeValue::Array(values) => {
            let many = matches!(option.get_action(), ArgAction::Append);
            ensure!(many, "{key} takes one value, not a list");
            values.iter().map(|value| one(value.get_ref())).collect()
        }
        value => Ok(vec![one(value)?]),
    }
}

/// That clap takes these arguments, but for what others must stand beside them.
fn accept(command: &mut Command, arguments: &[String]) -> Result<()> {
    let line = std::iter::once("tcptrace").chain(arguments.iter().map(String::as_str));
    match command.try_get_matches_from_mut(line) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == ErrorKind::MissingRequiredArgument => Ok(()),
        Err(error) => {
            let text = error.render().to_string();
            let first = text.split("\n\n").next().unwrap_or_default();
            let words: Vec<_> = first
                .trim_start_matches("error: ")
                .split_whitespace()
                .collect();
            bail!("{}", words.join(" "))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::time::Duration;

    use super::*;
    use crate::cli::Output;

    fn parse(text: &str) -> Result<File> {
        File::parse(Path::new("config.toml"), text)
    }

    /// A command line after this file's name.
    fn joined(text: &str, args: &[&str]) -> Result<Cli> {
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        file.write_all(text.as_bytes()).expect("it is ours");
        let named = ["tcptrace".into(), "--config".into(), file.path().into()];
        let line: Vec<_> = named
            .into_iter()
            .chain(args.iter().map(OsString::from))
            .collect();
        read(&line).map(|line| line.cli)
    }

    #[test]
    fn keys_are_the_options_and_the_command_line_comes_first() {
        let text = "\
# What the daemon writes.
output = \"json\"
event = [\"reset\", \"+state\"]
port = [80, 0x1bb]
close-wait-after = \"10s\"
duration = 2.5
quiet = true
children = false
";
        let trace = joined(text, &[]).expect("all are options").trace;
        assert_eq!(trace.output, Output::Json);
        assert_eq!(trace.event, ["reset", "+state"]);
        assert_eq!(trace.filter.port, [80, 443]);
        assert_eq!(trace.close_wait_after, Duration::from_secs(10));
        assert_eq!(trace.duration, Some(Duration::from_millis(2_500)));
        assert!(trace.quiet && !trace.children);
        let args = ["--port", "8080,8443", "-o", "columns"];
        let trace = joined(text, &args).expect("both").trace;
        assert_eq!(trace.filter.port, [8080, 8443]);
        assert_eq!(trace.output, Output::Columns);
        assert_eq!(trace.event, ["reset", "+state"]);
    }

    #[test]
    fn an_option_finds_the_one_it_needs_on_the_other_side() {
        let trace = joined("rotate-size = \"1MiB\"", &["--output-file", "x"]);
        assert_eq!(trace.expect("both").trace.rotate_size, Some(1 << 20));
        let trace = joined("output-file = \"x\"", &["--rotate-size", "1MiB"]);
        assert_eq!(trace.expect("both").trace.rotate_size, Some(1 << 20));
        let error = joined("rotate-size = \"1MiB\"", &[]).expect_err("no file to rotate");
        assert!(error.to_string().contains("--output-file"), "{error}");
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        for (text, line, words) in [
            ("\n\nports = [80]", 3, "did you mean \"port\"?"),
            (
                "close_wait_after = \"1s\"",
                1,
                "did you mean \"close-wait-after\"?",
            ),
            ("frobnicate = 1", 1, "tcptrace --help"),
            ("quiet = true\nconfig = \"y\"", 2, "no option \"config\""),
            ("quiet = 1", 1, "quiet is true or false"),
            ("output = true", 1, "takes a value"),
            ("output = [\"json\"]", 1, "one value, not a list"),
            ("output = \"xml\"", 1, "possible values: columns, json"),
            ("port = [\n80,\n70000]", 1, "70000"),
            ("port = [[80]]", 1, "text or a number"),
            ("[output]\njson = true", 1, "text or a number"),
            ("port = 99999999999999999999", 1, "64 bits"),
            ("quiet = true\nquiet = true", 2, "duplicate key"),
            ("port = [80\nquiet = true", 2, ""),
        ] {
            let error = parse(text).expect_err(text).to_string();
            let place = format!("config.toml:{line}: ");
            assert!(
                error.starts_with(&place) && error.contains(words),
                "{text:?}: {error}"
            );
            assert!(!error.contains('\n'), "{error}");
        }
    }

    #[test]
    fn changes_are_told_by_key() {
        let one = parse("port = 80\nquiet = true\nevent = \"all\"").expect("options");
        let two = parse("port = 80\nquiet = false\nerrno = \"EPIPE\"").expect("options");
        let mut changes: Vec<_> = one.changes(&two).collect();
        changes.sort_unstable();
        assert_eq!(changes, ["errno", "event", "quiet"]);
        assert_eq!(one.changes(&one).count(), 0);
    }
}
