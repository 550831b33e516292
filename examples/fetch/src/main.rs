//! Fetches URLs concurrently and prints one JSON object a line as each completes: the I/O-bound sample of `polypool`.
//!
//! `request.rs` holds the task, `input.rs` the URLs, `body.rs` the files of `--output`, `demo.rs` the server of `--demo`. This
//! file puts them together.

mod args;
mod body;
mod demo;
mod input;
mod request;

use std::cell::Cell;
use std::fmt;
use std::io::{self, ErrorKind, Write};
use std::pin::Pin;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result};
use futures_ext::{Progress, ProgressExt, ProgressStream};
use futures_util::{Stream, StreamExt};
use polypool::{Executor, ExecutorExt, Shutdown, TaskOptions, ThreadPool};
use tokio::signal::ctrl_c;

use crate::args::Args;
use crate::request::{Record, get};

#[polypool::main]
async fn main() -> ExitCode {
    let args = Args::read();
    match run(args).await {
        Ok(code) => code,
        // Whoever reads has seen enough, as `head` does.
        Err(error) if is_closed_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(args: Args) -> Result<ExitCode> {
    let start = Instant::now();
    let mut options = TaskOptions::new();
    if let Some(deadline) = args.deadline.and_then(|deadline| start.checked_add(deadline)) {
        options = options.deadline(deadline);
    }
    let source = args.source().unwrap_or_else(|error| args::refuse(&error));
    let settings = args.settings().unwrap_or_else(|error| args::refuse(&error));
    let demo = if args.demo { Some(demo::start().await.context("can't start the server of --demo")?) } else { None };

    let pool = ThreadPool::builder().name_prefix("fetch").build()?;
    let total = source.count();
    let (urls, reading) = input::read(source)?;
    let interrupted = Cell::new(false);
    let interruption = async {
        if ctrl_c().await.is_err() {
            std::future::pending::<()>().await; // Without a handler, Ctrl-C ends the program by itself.
        }
        interrupted.set(true);
    };
    let records = urls
        .enumerate()
        .map(|(index, url)| {
            let (url, asked) = (demo::resolve(demo.as_ref(), url), Instant::now());
            let call = get { url: url.clone(), number: index + 1, settings: settings.clone() };
            let task = pool.submit_with(call, options.clone()).cancel_on_drop();
            async move {
                let handle = task.handle();
                task.await.unwrap_or_else(|error| {
                    let attempts = handle.progress().map_or(0, |progress| progress.done);
                    Record::lost(url, &error, asked.elapsed(), attempts)
                })
            }
        })
        .buffer_unordered(args.concurrency)
        .take_until(interruption);

    let mut progress = Progress::new().description("fetch").unit("url").leave(false);
    if let Some(total) = total {
        progress = progress.total(total);
    }
    let mut records = Box::pin(records.progress(progress));
    let mut summary = Summary::default();
    let printed = print_all(&mut records, &mut summary).await;
    // Cancels what is left after Ctrl-C or for want of a reader, and waits until its unfinished files are removed.
    drop(records);
    pool.shutdown(Shutdown::CancelQueued).await;
    printed.context("can't write to standard output")?;

    eprintln!("{summary} in {:.2} s", start.elapsed().as_secs_f64());
    if interrupted.get() {
        eprintln!("interrupted: the other URLs have no record");
        return Ok(ExitCode::from(130));
    }
    reading.await??;
    Ok(if summary.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What came of all URLs.
#[derive(Debug, Default)]
struct Summary {
    good: u64,
    bad_status: u64,
    failed: u64,
    bytes: u64,
}

impl Summary {
    fn count(&mut self, record: &Record) {
        match record {
            Record::Answered { status, bytes, .. } => {
                self.bytes += bytes;
                *(if *status < 400 { &mut self.good } else { &mut self.bad_status }) += 1;
            }
            Record::Failed { .. } => self.failed += 1,
        }
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { good, bad_status, failed, bytes } = self;
        let all = good + bad_status + failed;
        write!(f, "{all} URLs: {good} good, {bad_status} with status 400 or above, {failed} failed; {bytes} bytes")
    }
}

/// Prints the records as they come.
async fn print_all<S>(records: &mut Pin<Box<ProgressStream<S>>>, summary: &mut Summary) -> io::Result<()>
where
    S: Stream<Item = Record>,
{
    let bar = records.bar().clone();
    while let Some(record) = records.next().await {
        summary.count(&record);
        let line = serde_json::to_string(&record)?;
        bar.suspend(|| writeln!(io::stdout(), "{line}"))?;
    }
    Ok(())
}

fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == ErrorKind::BrokenPipe)
}
