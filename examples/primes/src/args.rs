//! The command line, and the numbers named by it. All of them are read before anything runs, so a bad one stops the
//! program before it has printed half of the answers.

use std::fmt::Display;
use std::io::Read;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::builder::RangedU64ValueParser;
use clap::error::ErrorKind;
use clap::{CommandFactory, Parser};
use num_bigint::BigUint;

use crate::check::{Method, Pool};

const DEFAULT_NUMBERS: [&str; 4] = ["10897409", "20292113", "31518271", "40003027"];

/// Checks numbers for primality, on threads or on processes, and prints each as it completes
///
/// Exits with 0, with 1 if a number failed (its time was up, or its worker died), and with 2 for wrong usage.
#[derive(Debug, Parser)]
#[command(version)]
pub(crate) struct Args {
    /// The numbers to check [default: 10897409 20292113 31518271 40003027]
    #[arg(allow_negative_numbers = true)]
    numbers: Vec<String>,

    /// Reads numbers from a file, or with `-` from standard input: one a line; `#` starts a comment
    #[arg(long, value_name = "FILE")]
    from: Option<PathBuf>,

    /// How numbers are checked
    #[arg(long, value_enum, default_value_t = Method::Trial)]
    pub(crate) method: Method,

    /// Where numbers are checked
    #[arg(long, value_enum, default_value_t = Pool::Threads)]
    pub(crate) pool: Pool,

    /// How many threads or processes check numbers at once [default: the number of cores]
    #[arg(long, value_name = "N", value_parser = RangedU64ValueParser::<usize>::new().range(1..=1024))]
    workers: Option<usize>,

    /// How many seconds one number may take; a number whose time is up is printed with an error
    ///
    /// On processes this stops whatever runs. On threads it stops trial division, which looks now and then whether its
    /// time is up; a number with --method miller-rabin is given up, but keeps its thread busy. A plain loop can't be
    /// stopped, so --pool sequential refuses it.
    #[arg(long, value_name = "SECS", value_parser = seconds)]
    pub(crate) timeout: Option<Duration>,

    /// Checks the numbers all three ways and prints a table of wall time, CPU time and speed-up
    ///
    /// The wall time runs to the last answer and includes what it costs to start the workers; the CPU time is that of
    /// the program and its workers.
    #[arg(long, conflicts_with_all = ["pool", "timeout"])]
    pub(crate) compare: bool,

    /// Prints one JSON object a line
    #[arg(long)]
    pub(crate) json: bool,
}

impl Args {
    /// Reads the command line; wrong usage ends the program.
    pub(crate) fn read() -> Self {
        let args = Self::parse();
        if args.pool == Pool::Sequential && !args.compare {
            let otherwise = "use --pool threads or --pool processes";
            if args.timeout.is_some() {
                refuse(&format!(
                    "--timeout can't be used with --pool sequential: a plain loop can't be stopped; {otherwise}"
                ));
            }
            if args.workers.is_some() {
                refuse(&format!("--workers can't be used with --pool sequential: a plain loop has none; {otherwise}"));
            }
        }
        args
    }

    pub(crate) fn workers(&self) -> usize {
        self.workers.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from))
    }

    /// The numbers of the command line, then those of the file.
    ///
    /// # Errors
    /// Says which number can't be checked, where it stands, and what would help.
    pub(crate) fn numbers(&self) -> Result<Vec<BigUint>> {
        let named = self.numbers.iter().map(|number| self.number(number));
        let mut numbers = named.collect::<Result<Vec<_>>>()?;
        let Some(file) = &self.from else {
            if numbers.is_empty() {
                numbers = DEFAULT_NUMBERS.iter().map(|number| self.number(number)).collect::<Result<_>>()?;
            }
            return Ok(numbers);
        };
        let (name, bytes) = if file.as_os_str() == "-" {
            let mut bytes = Vec::new();
            std::io::stdin().read_to_end(&mut bytes).context("--from can't read standard input")?;
            ("standard input".into(), bytes)
        } else {
            (
                file.display().to_string(),
                std::fs::read(file).with_context(|| format!("--from can't read {}", file.display()))?,
            )
        };
        let text = bytes.strip_prefix("\u{feff}".as_bytes()).unwrap_or(&bytes);
        for (index, line) in text.split(|byte| *byte == b'\n').enumerate() {
            let line = String::from_utf8_lossy(line);
            let number = line.split('#').next().unwrap_or_default().trim();
            if !number.is_empty() {
                numbers.push(self.number(number).with_context(|| format!("{name}, line {}", index + 1))?);
            }
        }
        ensure!(!numbers.is_empty(), "{name} has no numbers: write one a line");
        Ok(numbers)
    }

    fn number(&self, text: &str) -> Result<BigUint> {
        if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
            bail!("{text:?} is not a whole number: write it in decimal digits alone, such as 10897409");
        }
        let number: BigUint = text.parse().with_context(|| format!("{text:?} is not a number"))?;
        if self.method == Method::Trial && number > BigUint::from(u64::MAX) {
            bail!("{text} is above 2^64 - 1, too large for trial division: use --method miller-rabin");
        }
        Ok(number)
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
