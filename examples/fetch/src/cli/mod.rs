//! What the user asked for: the command line (`args`), with variables and the config file beneath it (`config`), values
//! in their notations (`values`), fitted together and checked (`combine`), and printed for shells and readers
//! (`manual`).
//!
//! Whatever is wrong ends the program with code 2 before anything is sent. No message repeats a password.

mod args;
mod combine;
mod config;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
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

/// Of a command line alone.
#[cfg(test)]
pub(crate) fn settings(line: &[&str]) -> Settings {
    let line = [&["fetch", "--config", "/dev/null"], line].concat().into_iter().map(OsString::from).collect();
    match understand(line, &Surroundings { variable: &|_| None, terminal: true }) {
        Ok(Asked::Run(settings)) => *settings,
        other => panic!("no settings: {other:?}"),
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
        "-w" | "--write-out" => "every record has status, sizes and times",
        "-i" | "--include" | "-D" | "--dump-header" | "-v" | "--verbose" | "--trace" | "--trace-ascii" => {
            "every record has status, sizes and times; --warc FILE keeps requests and responses with their headers"
        }
        "-R" | "--remote-time" => "every record has last_modified",
        "-F" | "--form" | "--form-string" => {
            "send the body of a form with --data-binary @FILE and its content type with -H"
        }
        "-T" | "--upload-file" => "-X PUT --data-binary @FILE sends a file",
        "--url-query" => "--get --data NAME=VALUE puts data into the URLs",
        "--next" => "requests that differ are rows of JSON: see --format jsonl",
        "--cookie-jar" | "-j" | "--junk-session-cookies" => "--cookies keeps the cookies of a run, and none of others",
        "-C" | "--continue-at" => "what was half fetched is continued by itself; --resume goes on with a run",
        "-z" | "--time-cond" | "--etag-compare" | "--etag-save" => {
            "--if-changed RECORDS asks for what has changed since that run"
        }
        "-r" | "--range" => "-H 'Range: bytes=0-99' asks for a part",
        "-y" | "-Y" | "--speed-time" | "--speed-limit" => "--idle-timeout ends what stalls",
        "--limit-rate" => "--rate limits requests, not bytes",
        "--fail-early" => "a run goes on to its end; --fail-above says how many failures are too many",
        "--retry-all-errors" => {
            "--retry does again what may pass by itself; --resume --retry-failed does again all that failed"
        }
        "-#" | "--progress-bar" | "--no-progress-meter" => "there is a bar on a terminal; --quiet leaves it out",
        "--no-keepalive" | "--keepalive-time" => "connections are kept for 4 s, for the next request to their host",
        "--capath" => "--cacert FILE trusts the certificates in a file, and may be repeated",
        "--cert-type" | "--key-type" | "--pass" => "--cert and --key take PEM, without a pass phrase",
        "-1" | "--tlsv1.0" | "--tlsv1.1" | "-2" | "--sslv2" | "-3" | "--sslv3" => "TLS 1.2 is the oldest version",
        "--tls-max" => "--tlsv1.3 is the newest version, and TLS 1.2 is spoken with those who don't know it",
        "-0" | "--http1.0" => "--http1.1 is the oldest version",
        "--http3" | "--http3-only" => "HTTP/2 is the newest version, spoken wherever it is offered",
        "--connect-to" => "--resolve HOST:PORT:ADDRESS says where a host is; the port is that of the URL",
        "--dns-servers" | "--doh-url" => "the system looks names up; --resolve HOST:PORT:ADDRESS goes before",
        "--socks4" | "--socks4a" | "--socks5" | "--socks5-hostname" => {
            "--proxy takes URLs such as socks5://HOST:PORT, or socks5h:// for names that the proxy looks up"
        }
        "-p" | "--proxytunnel" => "--proxy makes a tunnel for https: URLs by itself",
        "--anyauth" | "--digest" | "--ntlm" | "--negotiate" => "--user authenticates by the basic scheme, the only one",
        "--location-trusted" => "passwords go to the host they are for; --netrc knows those of several",
        "--proto" | "--proto-redir" | "--proto-default" => "only http and https are spoken",
        "--disable" => "--config /dev/null stands for no config file",
        "-M" | "--manual" => "--man prints the manual page",
        _ => return error,
    };
    let instead = vec![StyledStr::from(instead)];
    error.remove(ContextKind::SuggestedArg);
    error.insert(ContextKind::Suggested, ContextValue::StyledStrs(instead));
    error
}
