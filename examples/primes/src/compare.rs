//! Runs the same numbers all three ways, and measures.
//!
//! The wall time runs from before the pool is made to the last answer: what it costs to start workers counts. The CPU time
//! is that of this process and its workers, to the end of these.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use futures_ext::{Progress, ProgressIteratorExt};
use num_bigint::BigUint;
use polypool::{Shutdown, TaskOptions};
use serde::Serialize;

use crate::args::Args;
use crate::check::{self, Pool};

#[derive(Serialize)]
struct Comparison {
    compare: Vec<Measured>,
}

#[derive(Serialize)]
struct Measured {
    pool: Pool,
    workers: usize,
    wall_s: f64,
    /// `null` where the system can't tell.
    cpu_s: Option<f64>,
    speedup: f64,
}

/// Answers by number.
type Answers<'a> = BTreeMap<&'a BigUint, bool>;

/// Runs all three ways and prints what they took.
pub(crate) fn run(args: &Args, numbers: &[BigUint]) -> Result<bool> {
    let mut table = Comparison { compare: Vec::new() };
    let mut first: Option<Answers<'_>> = None;
    for pool in Pool::ALL {
        let (mut measured, answers) = measure(pool, args, numbers)?;
        measured.speedup = table.compare.first().map_or(1.0, |sequential| sequential.wall_s / measured.wall_s);
        table.compare.push(measured);
        let expected = first.get_or_insert_with(|| answers.clone());
        ensure!(*expected == answers, "{} gave other answers than {}", pool.name(), Pool::ALL[0].name());
    }
    print(&table, args.json).context("can't write to standard output")?;
    Ok(true)
}

fn measure<'a>(pool: Pool, args: &Args, numbers: &'a [BigUint]) -> Result<(Measured, Answers<'a>)> {
    let workers = if pool == Pool::Sequential { 1 } else { args.workers() };
    let (start, cpu_before) = (Instant::now(), cpu_seconds());
    let executor = pool.build(workers)?;
    let progress = Progress::new().description(pool.name()).unit("number").leave(false);
    let mut answers = Answers::new();
    for (n, outcome) in check::all(executor.as_deref(), numbers, args.method, &TaskOptions::new()).progress(progress) {
        answers.insert(n, outcome.with_context(|| format!("{n} failed on {}", pool.name()))?.prime);
    }
    let wall_s = start.elapsed().as_secs_f64();
    if let Some(executor) = executor {
        // The system tells the CPU time of a process when it has ended.
        executor.shutdown(Shutdown::Drain).wait();
    }
    let cpu_s = cpu_before.zip(cpu_seconds()).map(|(before, after)| after - before);
    Ok((Measured { pool, workers, wall_s, cpu_s, speedup: 1.0 }, answers))
}

fn print(table: &Comparison, json: bool) -> io::Result<()> {
    let mut out = io::stdout().lock();
    if json {
        return writeln!(out, "{}", serde_json::to_string(table)?);
    }
    writeln!(out, "{:<12}{:>8}{:>10}{:>10}{:>10}", "pool", "workers", "wall s", "CPU s", "speed-up")?;
    for Measured { pool, workers, wall_s, cpu_s, speedup } in &table.compare {
        let cpu_s = cpu_s.map_or_else(|| "?".into(), |cpu_s| format!("{cpu_s:.3}"));
        writeln!(out, "{:<12}{workers:>8}{wall_s:>10.3}{cpu_s:>10}{speedup:>9.2}x", pool.name())?;
    }
    Ok(())
}

/// The CPU time so far of this process and of its children that have ended.
#[cfg(unix)]
fn cpu_seconds() -> Option<f64> {
    use nix::sys::resource::{UsageWho, getrusage};
    use nix::sys::time::TimeVal;

    let seconds = |time: TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
    [UsageWho::RUSAGE_SELF, UsageWho::RUSAGE_CHILDREN]
        .into_iter()
        .map(|who| getrusage(who).ok().map(|usage| seconds(usage.user_time()) + seconds(usage.system_time())))
        .sum()
}

#[cfg(not(unix))]
fn cpu_seconds() -> Option<f64> {
    None
}
