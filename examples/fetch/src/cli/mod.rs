//! What the user asked for: the command line (`args`), with variables and the config file beneath it (`config`), values
//! in their notations (`values`), fitted together and checked (`combine`), and printed for shells and readers
//! (`manual`).
//!
//! Whatever is wrong ends the program with code 2 before anything is sent. No message repeats a password.

mod args;
mod combine;
mod config;
mod manual;
mod values;

use std::env;
use std::ffi::OsString;
use std::fmt::{self, Display};
use std::io::{self, IsTerminal, Write};
use std::process;

use clap::builder::{ArgPredicate, BoolishValueParser, StyledStr};
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, ArgAction, Command, CommandFactory, FromArgMatches};

pub(crate) use self::values::some_time;
use crate::settings::Settings;

/// Reads what was asked for. Wrong usage ends the program with code 2; so do `--help` and its like, with 0.
pub(crate) fn read() -> Settings {
    let surroundings = Surroundings { variable: &|name| env::var_os(name), terminal: io::stdin().is_terminal() };
    match understand(env::args_os().collect(), &surroundings) {
        Err(error) => error.exit(),
        Ok(Asked::Text(text)) => {
            // Nobody is left to be told of a closed output.
            let _ = io::stdout().write_all(&text);
            process::exit(0)
        }
        Ok(Asked::Run(settings)) => {
            if settings.http.insecure {
                eprintln!(
                    "warning: --insecure: certificates are not looked at, so anybody on the way can read what is sent \
                     and answer in a server's name"
                );
            }
            *settings
        }
    }
}

/// Ends the program as clap does for wrong usage.
pub(crate) fn refuse(what: &impl Display) -> ! {
    wrong(format!("{what:#}")).exit()
}

/// What the command line was about.
#[derive(Debug)]
enum Asked {
    Run(Box<Settings>),
    Text(Vec<u8>),
}

/// What is around the program.
struct Surroundings<'a> {
    variable: &'a dyn Fn(&str) -> Option<OsString>,
    /// Whether standard input is one.
    terminal: bool,
}

impl Surroundings<'_> {
    /// The value of a variable; an empty one counts as none.
    fn variable(&self, name: &str) -> Option<OsString> {
        (self.variable)(name).filter(|value| !value.is_empty())
    }
}

impl fmt::Debug for Surroundings<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Surroundings").field("terminal", &self.terminal).finish_non_exhaustive()
    }
}

fn understand(line: Vec<OsString>, surroundings: &Surroundings<'_>) -> Result<Asked, clap::Error> {
    // Once without variables and file: the command line says which file, and --help must come even if they are wrong.
    let given = command().try_get_matches_from(&line).map_err(hint)?;
    let args = args::Args::from_arg_matches(&given)?;
    if args.report.man {
        return manual::page(command()).map(Asked::Text).map_err(wrong);
    }
    if let Some(shell) = args.report.completions {
        return Ok(Asked::Text(manual::completions(command(), shell)));
    }
    let matches = config::layered(command(), &given, surroundings).map_err(wrong)?.try_get_matches_from(&line)?;
    let settings = combine::settings(args::Args::from_arg_matches(&matches)?, &matches, surroundings).map_err(wrong)?;
    Ok(Asked::Run(Box::new(settings)))
}

/// The flags, and for each switch one that takes it back.
fn command() -> Command {
    let command = args::Args::command();
    let switches = command.get_arguments().filter(|arg| is_switch(arg));
    let opposites: Vec<_> = switches.filter_map(Arg::get_long).map(|name| opposite(&command, name)).collect();
    command
        .mut_args(|arg| match arg.get_long() {
            Some(name) if is_switch(&arg) => {
                let no = format!("no-{name}");
                arg.value_parser(BoolishValueParser::new()).overrides_with(no.clone()).default_value_if(
                    no,
                    ArgPredicate::Equals("true".into()),
                    "false",
                )
            }
            _ => arg,
        })
        .args(opposites)
}

fn opposite(command: &Command, name: &str) -> Arg {
    let of = command.get_arguments().find(|arg| arg.get_long() == Some(name));
    let arg = Arg::new(format!("no-{name}")).long(format!("no-{name}")).action(ArgAction::SetTrue);
    match (name, of) {
        // Those that are on by default.
        ("location", Some(of)) => shown(arg, of, "Doesn't follow redirects: they are the responses"),
        ("compressed", Some(of)) => shown(arg, of, "Asks for bodies as they are"),
        (_, Some(of)) => arg.overrides_with(of.get_id()).hide(true),
        (_, None) => arg,
    }
}

fn shown(arg: Arg, of: &Arg, help: &'static str) -> Arg {
    arg.overrides_with(of.get_id()).help(help).help_heading(of.get_help_heading().unwrap_or_default().to_owned())
}

fn is_switch(arg: &Arg) -> bool {
    matches!(arg.get_action(), ArgAction::SetTrue)
}

fn wrong(message: impl Display) -> clap::Error {
    command().error(ErrorKind::ValueValidation, message)
}

/// Says what to use here instead of a flag of curl that isn't.
fn hint(mut error: clap::Error) -> clap::Error {
    let Some(ContextValue::String(flag)) = error.get(ContextKind::InvalidArg) else { return error };
    let instead = match flag.as_str() {
        _ if error.kind() != ErrorKind::UnknownArgument => return error,
        "-O" | "--remote-name" | "-J" | "--remote-name-all" | "--remote-header-name" => {
            "-o DIR keeps every body under the host and path of its URL"
        }
        "-w" | "--write-out" | "-i" | "--include" | "-v" | "--verbose" => "every record has status, sizes and times",
        "-F" | "--form" => "send the body of a form with --data-binary @FILE and its content type with -H",
        "-T" | "--upload-file" => "-X PUT --data-binary @FILE sends a file",
        "--cookie-jar" => "--cookies keeps the cookies of a run",
        "-C" | "--continue-at" => "what was half fetched is continued by itself; --resume goes on with a run",
        "-z" | "--time-cond" | "--etag-compare" => "--if-changed RECORDS asks for what has changed since that run",
        "-r" | "--range" => "-H 'Range: bytes=0-99' asks for a part",
        "-y" | "-Y" | "--speed-time" | "--speed-limit" => "--idle-timeout ends what stalls",
        "--limit-rate" => "--rate limits requests, not bytes",
        "-j" | "--parallel-immediate" | "--fail-early" => "there is no need for it; see --concurrency and --fail-above",
        _ => return error,
    };
    let instead = vec![StyledStr::from(instead)];
    error.remove(ContextKind::SuggestedArg);
    error.insert(ContextKind::Suggested, ContextValue::StyledStrs(instead));
    error
}
