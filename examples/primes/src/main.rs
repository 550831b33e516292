//! Checks numbers for primality with a deliberately slow test: the CPU-bound sample of `polypool`.
//!
//! `check.rs` holds the task and the three ways to run it, `args.rs` the command line and its numbers, `compare.rs` the
//! measurement. This file prints.

mod args;
mod check;
mod compare;

use std::io::{self, ErrorKind, Write};
use std::process::ExitCode;

use anyhow::{Context, Result};
use futures_ext::{Progress, ProgressIteratorExt};
use num_bigint::BigUint;
use polypool::{Outcome, Shutdown, TaskOptions};
use serde::Serialize;

use crate::args::Args;
use crate::check::Check;

#[polypool::main]
fn main() -> ExitCode {
    let args = Args::read();
    let numbers = args.numbers().unwrap_or_else(|error| args::refuse(&error));
    let done = if args.compare { compare::run(&args, &numbers) } else { run(&args, &numbers) };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        // Whoever reads has seen enough, as `head` does.
        Err(error) if is_closed_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Checks the numbers, and prints each as it completes; `false` when one of them failed.
fn run(args: &Args, numbers: &[BigUint]) -> Result<bool> {
    let mut options = TaskOptions::new();
    if let Some(timeout) = args.timeout {
        options = options.timeout(timeout);
    }
    let pool = args.pool.build(args.workers())?;
    let mut all_well = true;
    let mut checks = check::all(pool.as_deref(), numbers, args.method, &options)
        .progress(Progress::new().description("primes").unit("number").leave(false));
    let bar = checks.bar().clone();
    for (n, outcome) in &mut checks {
        all_well &= outcome.is_ok();
        let line = if args.json { json(n, &outcome)? } else { text(n, &outcome) };
        bar.suspend(|| writeln!(io::stdout(), "{line}")).context("can't write to standard output")?;
    }
    drop(checks);
    if let Some(pool) = pool {
        // All outcomes are here. `Now`, because a thread may still be busy with a number whose time was up.
        pool.shutdown(Shutdown::Now).wait();
    }
    Ok(all_well)
}

fn text(n: &BigUint, outcome: &Outcome<Check>) -> String {
    match outcome {
        Ok(check) => {
            let what = if check.prime { "prime" } else { "not prime" };
            format!("{n}: {what} ({:.3} s, {})", check.seconds, check.worker())
        }
        Err(error) => format!("{n}: error: {error}"),
    }
}

fn json(n: &BigUint, outcome: &Outcome<Check>) -> serde_json::Result<String> {
    // A string, because numbers above 2^53 would not survive as JSON numbers.
    #[derive(Serialize)]
    #[serde(untagged)]
    enum Record {
        Checked { n: String, prime: bool, seconds: f64, worker: String },
        Failed { n: String, error: String },
    }
    let n = n.to_string();
    serde_json::to_string(&match outcome {
        Ok(check) => Record::Checked { n, prime: check.prime, seconds: check.seconds, worker: check.worker() },
        Err(error) => Record::Failed { n, error: error.to_string() },
    })
}

fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == ErrorKind::BrokenPipe)
}
