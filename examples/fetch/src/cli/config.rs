//! What lies beneath the command line: the variables `FETCH_…`, and beneath these the config file, in TOML, with the
//! long names of flags as keys.
//!
//! Both become defaults of the flags, so that they are read and checked like what is typed. A flag that may be repeated
//! is taken from one of the three, never from two; and where two flags exclude each other, the upper one counts.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fmt::Display;
use std::fs;
use std::path::{Path, PathBuf};

use clap::error::{ContextKind, ContextValue};
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command};
use toml::Value;

use super::{Surroundings, is_switch};

/// Of two of these, the one from the upper layer counts.
const EXCLUSIVE: [(&str, &str); 8] = [
    ("extract-regex", "extract-css"),
    ("http1.1", "http2-prior-knowledge"),
    ("user", "oauth2-bearer"),
    ("json", "data"),
    ("json", "data-raw"),
    ("json", "data-binary"),
    ("json", "data-urlencode"),
    ("ipv4", "ipv6"),
];

/// Flags that ask for something else than a run, or for the file itself.
const NOT_HERE: [&str; 5] = ["help", "version", "config", "completions", "man"];

/// By the long name of the flag.
pub(super) type Layer = HashMap<String, Vec<OsString>>;

/// The command with variables and file as its defaults. `given` is the command line alone.
pub(super) fn layered(command: Command, given: &ArgMatches, around: &Surroundings<'_>) -> Result<Command, String> {
    let mut file = match path(given, around) {
        Some(path) => read(&command, &path)?,
        None => Layer::new(),
    };
    let mut variables = variables(&command, around)?;

    let typed = |name: &str| {
        let id = command.get_arguments().find(|arg| arg.get_long() == Some(name)).map(Arg::get_id);
        id.is_some_and(|id| given.value_source(id.as_str()) == Some(ValueSource::CommandLine))
    };
    for (a, b) in EXCLUSIVE.into_iter().flat_map(|(a, b)| [(a, b), (b, a)]) {
        if typed(a) {
            variables.remove(b);
            file.remove(b);
        } else if variables.contains_key(a) {
            file.remove(b);
        }
    }
    Ok(command.mut_args(|arg| {
        let values = arg.get_long().and_then(|name| variables.remove(name).or_else(|| file.remove(name)));
        match values {
            Some(values) => arg.default_values(values),
            None => arg,
        }
    }))
}

/// Where the config file is: one that was named must exist.
fn path(given: &ArgMatches, around: &Surroundings<'_>) -> Option<PathBuf> {
    let named = given.get_one::<PathBuf>("config").cloned();
    named.or_else(|| around.variable("FETCH_CONFIG").map(PathBuf::from)).or_else(|| {
        let directory = around.variable("XDG_CONFIG_HOME").map(PathBuf::from);
        let directory = directory.or_else(|| Some(Path::new(&around.variable("HOME")?).join(".config")))?;
        Some(directory.join("fetch/config.toml")).filter(|path| path.exists())
    })
}

fn variables(command: &Command, around: &Surroundings<'_>) -> Result<Layer, String> {
    let mut layer = Layer::new();
    for arg in command.get_arguments() {
        let Some(name) = arg.get_long().filter(|_| may_be_set(arg)) else { continue };
        let variable = format!("FETCH_{}", name.replace(['-', '.'], "_").to_ascii_uppercase());
        let Some(value) = around.variable(&variable) else { continue };
        let values = match value.to_str() {
            Some(text) if is_repeatable(arg) => text.lines().map(OsString::from).collect(),
            _ => vec![value],
        };
        check(command, arg, &values).map_err(|why| format!("{variable}: {why}"))?;
        layer.insert(name.to_owned(), values);
    }
    Ok(layer)
}

fn read(command: &Command, path: &Path) -> Result<Layer, String> {
    let file = path.display();
    let text = fs::read_to_string(path).map_err(|error| format!("--config can't read {file}: {error}"))?;
    parse(command, &text, file)
}

pub(super) fn parse(command: &Command, text: &str, file: impl Display) -> Result<Layer, String> {
    // Not the whole error: it shows the line, which may have a password.
    let table = text.parse::<toml::Table>().map_err(|error| {
        let line =
            error.span().map_or(1, |span| text.bytes().take(span.start).filter(|&byte| byte == b'\n').count() + 1);
        format!("{file}:{line}: {}", error.message())
    })?;
    let mut layer = Layer::new();
    for (key, value) in table {
        let arg = command.get_arguments().find(|arg| {
            let aliases = arg.get_all_aliases().unwrap_or_default();
            may_be_set(arg) && (arg.get_long() == Some(key.as_str()) || aliases.contains(&key.as_str()))
        });
        let Some((arg, name)) = arg.and_then(|arg| Some((arg, arg.get_long()?))) else {
            return Err(format!("{file} has the unknown key {key:?}{}", similar(command, &key)));
        };
        let values = values(arg, value).and_then(|values| check(command, arg, &values).map(|()| values));
        layer.insert(name.to_owned(), values.map_err(|why| format!("{file}: {key}: {why}"))?);
    }
    Ok(layer)
}

/// A value of the file as it would be typed.
fn values(arg: &Arg, value: Value) -> Result<Vec<OsString>, String> {
    let one = |value| match value {
        Value::String(text) => Ok(OsString::from(text)),
        Value::Integer(number) => Ok(number.to_string().into()),
        Value::Float(number) => Ok(number.to_string().into()),
        Value::Boolean(yes) => Ok(yes.to_string().into()),
        Value::Array(_) => Err("it takes one value, not a list".to_owned()),
        Value::Table(_) | Value::Datetime(_) => Err("give a text, a number, true or false".to_owned()),
    };
    match value {
        Value::Boolean(_) if !is_switch(arg) => Err("it takes a value, not true or false".into()),
        Value::Boolean(yes) => Ok(vec![yes.to_string().into()]),
        _ if is_switch(arg) => Err("it is a switch: give true or false".into()),
        Value::Array(values) if is_repeatable(arg) => values.into_iter().map(one).collect(),
        value => Ok(vec![one(value)?]),
    }
}

/// Whether clap would take the values, each typed behind its flag.
fn check(command: &Command, arg: &Arg, values: &[OsString]) -> Result<(), String> {
    let Some(name) = arg.get_long() else { return Ok(()) };
    for value in values {
        if is_switch(arg) {
            let known = ["true", "false", "yes", "no", "1", "0", "on", "off", "y", "n", "t", "f"];
            if !value.to_str().is_some_and(|text| known.contains(&text.to_ascii_lowercase().as_str())) {
                return Err("it is a switch: give true or false".into());
            }
            continue;
        }
        let mut typed = OsString::from(format!("--{name}="));
        typed.push(value);
        if let Err(error) = command.clone().try_get_matches_from([OsString::from("fetch"), typed]) {
            let text = error.render().to_string();
            let text = text.strip_prefix("error: ").unwrap_or(&text);
            let end = text.find("\n\nFor more").or_else(|| text.find("\n\nUsage")).unwrap_or(text.len());
            return Err(text[..end].to_owned());
        }
    }
    Ok(())
}

fn is_repeatable(arg: &Arg) -> bool {
    matches!(arg.get_action(), ArgAction::Append)
}

/// Hidden flags change nothing, or take another one back.
fn may_be_set(arg: &Arg) -> bool {
    !arg.is_hide_set() && arg.get_long().is_some_and(|name| !NOT_HERE.contains(&name))
}

/// The flag that was probably meant, found as for the command line.
fn similar(command: &Command, key: &str) -> String {
    let error =
        command.clone().try_get_matches_from(["fetch".to_owned(), format!("--{}", key.replace('_', "-"))]).err();
    let close = error.as_ref().and_then(|error| error.get(ContextKind::SuggestedArg)).map(ContextValue::to_string);
    let exact = command.get_arguments().filter_map(Arg::get_long).find(|name| *name == key.replace('_', "-"));
    match (exact, close) {
        (Some(exact), _) if !NOT_HERE.contains(&exact) => format!("; is it {exact:?}?"),
        (None, Some(close)) => format!("; is it {:?}?", close.trim_start_matches('-')),
        _ => "; keys are the long names of flags".into(),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::super::{Asked, understand};
    use super::*;
    use crate::settings::{Concurrency, HttpVersion, Settings};

    fn settings(file: &str, variables: &[(&str, &str)], line: &[&str]) -> Result<Settings, String> {
        let mut config = tempfile::NamedTempFile::new().unwrap();
        config.write_all(file.as_bytes()).unwrap();
        let variable = |name: &str| match name {
            "FETCH_CONFIG" => Some(config.path().into()),
            _ => variables.iter().find(|(known, _)| *known == name).map(|(_, value)| OsString::from(*value)),
        };
        let line = ["fetch", "http://a/"].iter().chain(line).map(OsString::from).collect();
        match understand(line, &Surroundings { variable: &variable, terminal: true }) {
            Ok(Asked::Run(settings)) => Ok(*settings),
            Ok(Asked::Text(text)) => panic!("{}", String::from_utf8_lossy(&text)),
            Err(error) => Err(error.to_string().replace(&config.path().display().to_string(), "FILE")),
        }
    }

    #[test]
    fn the_command_line_goes_before_variables_and_these_before_the_file() {
        let concurrency =
            |file, variables: &[_], line: &[_]| match settings(file, variables, line).unwrap().limits.concurrency {
                Concurrency::Fixed(number) => number,
                Concurrency::Auto { most } => most,
            };
        let (file, variable, flag) = ("concurrency = 3", [("FETCH_CONCURRENCY", "auto:5")], ["-c", "7"]);
        assert_eq!(concurrency("", &[], &[]), 64);
        assert_eq!(concurrency(file, &[], &[]), 3);
        assert_eq!(concurrency(file, &variable, &[]), 5);
        assert_eq!(concurrency(file, &variable, &flag), 7);
        assert_eq!(concurrency(file, &[("FETCH_CONCURRENCY", "")], &[]), 3);
    }

    #[test]
    fn switches_can_be_set_below_and_taken_back_above() {
        let ordered = |file, variables: &[_], line: &[_]| settings(file, variables, line).unwrap().output.ordered;
        assert!(ordered("ordered = true", &[], &[]));
        assert!(!ordered("ordered = true", &[("FETCH_ORDERED", "0")], &[]));
        assert!(ordered("", &[("FETCH_ORDERED", "yes")], &[]));
        assert!(!ordered("ordered = true", &[("FETCH_ORDERED", "1")], &["--no-ordered"]));
        assert!(ordered("", &[], &["--no-ordered", "--ordered"]));
        assert!(!ordered("", &[], &["--ordered", "--no-ordered"]));
        assert_eq!(settings("location = false", &[], &[]).unwrap().http.max_redirects, 0);
        assert_eq!(settings("location = false", &[], &["-L"]).unwrap().http.max_redirects, 10);
    }

    #[test]
    fn what_may_be_repeated_is_a_list_in_the_file_and_lines_in_a_variable() {
        let headers = |file, variables: &[_], line: &[_]| {
            let headers = settings(file, variables, line).unwrap().input.defaults.headers;
            headers.values().map(|value| value.to_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        let (file, variable) = (r#"header = ["a: 1", "b: 2"]"#, [("FETCH_HEADER", "a: 3\nb: 4")]);
        assert_eq!(headers(file, &[], &[]), ["1", "2"]);
        assert_eq!(headers(file, &variable, &[]), ["3", "4"]);
        assert_eq!(headers(file, &variable, &["-H", "c: 5"]), ["5"]);
    }

    #[test]
    fn the_upper_one_of_two_that_exclude_each_other_counts() {
        let version = |file, variables: &[_], line: &[_]| settings(file, variables, line).map(|all| all.http.version);
        let (file, variable) = ("\"http1.1\" = true", [("FETCH_HTTP2_PRIOR_KNOWLEDGE", "true")]);
        assert_eq!(version(file, &[], &[]), Ok(HttpVersion::Http1));
        assert_eq!(version(file, &variable, &[]), Ok(HttpVersion::Http2PriorKnowledge));
        assert_eq!(version("", &variable, &["--http1.1"]), Ok(HttpVersion::Http1));
        assert!(version("", &[], &["--http2-prior-knowledge", "--http1.1"]).unwrap_err().contains("--http1.1"));
    }

    #[test]
    fn an_error_names_the_file_and_the_key_or_the_variable() {
        for (file, words) in [
            ("rate = \"soon\"", &["FILE: rate", "10/s"][..]),
            ("ordered = \"x\"", &["FILE: ordered", "true or false"]),
            ("rate = true", &["FILE: rate", "not true"]),
            ("rate = [\"1/s\"]", &["FILE: rate", "not a list"]),
            ("rate = 1979-05-27", &["FILE: rate", "a text"]),
            ("format = \"cvs\"", &["FILE: format", "possible values", "csv"]),
            ("conurrency = 3", &["FILE", "\"conurrency\"", "is it \"concurrency\"?"]),
            ("max_time = 3", &["\"max_time\"", "is it \"max-time\"?"]),
            ("man = true", &["unknown key \"man\""]),
            ("config = \"x\"", &["unknown key \"config\""]),
            ("no-ordered = true", &["unknown key"]),
            ("a = 1\nuser = \"a:secret", &["FILE:2: "]),
        ] {
            let error = settings(file, &[], &[]).unwrap_err();
            assert!(words.iter().all(|word| error.contains(word)), "{file}: {error}");
            assert!(!error.contains("secret"), "{error}");
        }
        let error = settings("", &[("FETCH_RATE", "soon")], &[]).unwrap_err();
        assert!(error.contains("FETCH_RATE: ") && error.contains("10/s"), "{error}");
        assert!(
            settings("", &[("FETCH_ORDERED", "maybe")], &[]).unwrap_err().contains("FETCH_ORDERED: it is a switch")
        );
    }

    #[test]
    fn names_from_curl_work_as_keys_too() {
        assert_eq!(settings("parallel-max = 9", &[], &[]).unwrap().limits.concurrency, Concurrency::Fixed(9));
    }
}
