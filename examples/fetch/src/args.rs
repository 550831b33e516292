//! The command line.

use std::fmt::Display;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::builder::RangedU64ValueParser;
use clap::error::ErrorKind;
use clap::{CommandFactory, Parser};

use crate::demo;
use crate::input::Source;
use crate::request::Settings;

/// Fetches URLs concurrently and prints one JSON object a line as each completes
///
/// Each URL gets exactly one object: {"url", "status", "bytes", "seconds", "attempts"}, with "file" if --output is given,
/// or {"url", "error": {"kind", "message"}, "bytes", "seconds", "attempts"}. A progress bar and a summary go to standard
/// error.
///
/// Exits with 0 if each URL got a response, whatever its status; with 1 if one got none; with 2 for wrong usage; with 130
/// after Ctrl-C.
#[derive(Debug, Parser)]
#[command(version)]
pub(crate) struct Args {
    /// The URLs to fetch; with --demo also paths of its server. Without any, they are read from standard input
    urls: Vec<String>,

    /// Reads URLs from a file, or with `-` from standard input: one a line; lines that start with `#` are comments
    #[arg(long, value_name = "FILE")]
    from: Option<PathBuf>,

    /// How many requests run at once
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = RangedU64ValueParser::<usize>::new().range(1..=100_000))]
    pub(crate) concurrency: usize,

    /// How many seconds one attempt may take, from the connection to the end of the body
    #[arg(long, value_name = "SECS", default_value = "30", value_parser = seconds)]
    timeout: Duration,

    /// How many seconds the whole batch may take; URLs that have no response by then get an error of kind "deadline"
    #[arg(long, value_name = "SECS", value_parser = seconds)]
    pub(crate) deadline: Option<Duration>,

    /// How often a request is sent again after the connection failed
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = RangedU64ValueParser::<usize>::new().range(0..=100))]
    retries: usize,

    /// Keeps the bodies in this directory, each under the number and the place of its URL
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,

    /// Starts a server on this machine and fetches from it: /status/404 has that status, /bytes/1000 so many bytes, any
    /// other path a greeting, and ?sleep=50 takes so many milliseconds
    #[arg(long)]
    pub(crate) demo: bool,
}

impl Args {
    /// Reads the command line; wrong usage ends the program.
    pub(crate) fn read() -> Self {
        Self::parse()
    }

    /// Where the URLs come from.
    pub(crate) fn source(&self) -> Result<Source> {
        match &self.from {
            Some(file) => Source::with_lines(self.urls.clone(), file),
            None if !self.urls.is_empty() => Ok(Source::named(self.urls.clone())),
            None if self.demo => Ok(Source::named(demo::PATHS.map(str::to_owned).to_vec())),
            None if std::io::stdin().is_terminal() => {
                bail!("there are no URLs: give some, or a file with --from FILE, or try --demo")
            }
            None => Source::with_lines(Vec::new(), Path::new("-")),
        }
    }

    /// What all requests have in common.
    pub(crate) fn settings(&self) -> Result<Settings> {
        if let Some(directory) = &self.output {
            std::fs::create_dir_all(directory)
                .with_context(|| format!("--output can't make the directory {}", directory.display()))?;
        }
        Ok(Settings { timeout: self.timeout, retries: self.retries, output: self.output.clone(), proxies: !self.demo })
    }
}

/// Ends the program as clap does for wrong usage.
pub(crate) fn refuse(what: &impl Display) -> ! {
    Args::command().error(ErrorKind::ValueValidation, format!("{what:#}")).exit()
}

fn seconds(text: &str) -> Result<Duration, &'static str> {
    let otherwise = "give a number of seconds above 0, such as 2.5";
    let duration = text.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    duration.filter(|duration| !duration.is_zero()).ok_or(otherwise)
}
