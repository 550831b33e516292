//! The command line.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::builder::RangedU64ValueParser;
use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, ValueEnum};

use crate::executor::Executor;
use crate::report::Report;
use crate::runner::Plan;
use crate::workload::Workload;

/// Measures thread and process pools against their peers, on this machine
///
/// Each executor runs each workload in a process of its own, in turns, several rounds; the figures are medians over the
/// rounds. Exits with 0, with 1 if it failed or if --baseline shows a regression, and with 2 for wrong usage.
#[derive(Debug, Parser)]
#[command(version)]
pub(crate) struct Args {
    /// How many threads or processes each executor has [default: the number of cores]
    #[arg(long, value_name = "N", value_parser = RangedU64ValueParser::<usize>::new().range(1..=1024))]
    workers: Option<usize>,

    /// What the tasks do; several with commas between them [default: all]
    #[arg(long, value_enum, value_delimiter = ',', value_name = "WORKLOAD")]
    workloads: Vec<Workload>,

    /// Who runs the tasks; several with commas between them [default: all]
    #[arg(long, value_enum, value_delimiter = ',', value_name = "EXECUTOR")]
    executors: Vec<Executor>,

    /// Takes less than a minute for everything: shorter rounds, and fewer
    #[arg(long)]
    pub(crate) quick: bool,

    /// Writes the figures to a file, as one JSON object
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,

    /// Writes a report with plots to a file, as one HTML page that needs no other file
    #[arg(long, value_name = "FILE")]
    pub(crate) html: Option<PathBuf>,

    /// Compares with the figures of an earlier --json, and exits with 1 if one of polypool's pools became slower by
    /// more than the noise
    #[arg(long, value_name = "FILE")]
    baseline: Option<PathBuf>,

    /// Runs as a runner instead; how the program starts itself.
    #[arg(long, hide = true, value_parser = |text: &str| serde_json::from_str::<Plan>(text))]
    pub(crate) runner: Option<Plan>,
}

impl Args {
    pub(crate) fn workers(&self) -> usize {
        self.workers.unwrap_or_else(crate::measure::cores)
    }

    /// In the order of the help, each once.
    pub(crate) fn workloads(&self) -> Vec<Workload> {
        chosen(&self.workloads)
    }

    /// In the order of the help, each once.
    pub(crate) fn executors(&self) -> Vec<Executor> {
        chosen(&self.executors)
    }

    /// The report to compare with.
    ///
    /// # Errors
    /// When it can't be read, or isn't one.
    pub(crate) fn baseline(&self) -> Result<Option<Report>> {
        let Some(file) = &self.baseline else { return Ok(None) };
        let text = std::fs::read(file).with_context(|| format!("--baseline can't read {}", file.display()))?;
        let report = serde_json::from_slice(&text)
            .with_context(|| format!("--baseline {} was not written by --json", file.display()))?;
        Ok(Some(report))
    }

    /// Finds out now what would be a pity to find out after the measurement.
    ///
    /// # Errors
    /// When a file to be written is in a directory that isn't there.
    pub(crate) fn check_files(&self) -> Result<()> {
        for (flag, file) in [("--json", &self.json), ("--html", &self.html)] {
            let Some(file) = file else { continue };
            let directory = file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
            ensure!(directory.is_dir() && !file.is_dir(), "{flag} can't write {}", file.display());
        }
        Ok(())
    }
}

fn chosen<T: ValueEnum + PartialEq + 'static>(named: &[T]) -> Vec<T> {
    T::value_variants().iter().filter(|one| named.is_empty() || named.contains(one)).cloned().collect()
}

/// Ends the program as clap does for wrong usage.
pub(crate) fn refuse(error: &anyhow::Error) -> ! {
    Args::command().error(ErrorKind::ValueValidation, format!("{error:#}")).exit()
}
