//! Measures thread and process pools against their peers: the benchmark of `polypool`, for whoever has to decide.
//!
//! `workload.rs` says what is measured and `executor.rs` who. `measure.rs` starts runners (`runner.rs`, `runner.py`) in
//! turns and asks them; `account.rs` reads what they cost and `group.rs` sees to it that they end. `stats.rs` does the
//! arithmetic; `report.rs`, `html.rs` and `plot.rs` say what came out. This file puts them together.

mod account;
mod args;
mod executor;
mod group;
mod html;
mod measure;
mod plot;
mod report;
mod runner;
mod stats;
mod workload;

use std::io::{self, ErrorKind, Write};
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;

use crate::args::{Args, refuse};
use crate::executor::Executor;
use crate::measure::Extent;
use crate::report::Report;

#[polypool::main]
fn main() -> ExitCode {
    // A worker of this peer turns off here, as one of ours did before.
    procspawn::init();
    let args = Args::parse();
    let done = match &args.runner {
        Some(plan) => runner::run(plan).map(|()| true),
        None => run(&args),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Measures and reports; `false` when something became slower than the baseline.
fn run(args: &Args) -> Result<bool> {
    let baseline = args.baseline().unwrap_or_else(|error| refuse(&error));
    args.check_files().unwrap_or_else(|error| refuse(&error));
    let (executors, workloads, workers) = (args.executors(), args.workloads(), args.workers());
    let ours: Vec<_> = executors.iter().copied().filter(|executor| Executor::is_ours(*executor)).collect();
    group::end_with_this_program().context("can't take Ctrl-C")?;
    let measurement = measure::all(&executors, &workloads, workers, Extent::new(args.quick))?;
    let report = Report::new(&measurement, workers, args.quick);
    print(&report.text(&executors, &workloads))?;
    if let Some(file) = &args.json {
        write(file, &serde_json::to_string_pretty(&report)?)?;
    }
    if let Some(file) = &args.html {
        write(file, &html::page(&report, &executors, &workloads)?)?;
    }
    let Some(baseline) = baseline else { return Ok(true) };
    let regressions = report.regressions(&baseline, &ours).unwrap_or_else(|error| refuse(&error.context("--baseline")));
    for regression in &regressions {
        eprintln!("slower than the baseline: {regression}");
    }
    Ok(regressions.is_empty())
}

fn print(text: &str) -> Result<()> {
    match io::stdout().write_all(text.as_bytes()) {
        // Whoever reads has seen enough, as `head` does.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        done => done.context("can't write to standard output"),
    }
}

fn write(file: &Path, text: &str) -> Result<()> {
    std::fs::write(file, format!("{text}\n")).with_context(|| format!("can't write {}", file.display()))
}
