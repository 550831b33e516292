//! `fetch` fetches URLs by the hundred thousand and prints one JSON object for each: a tool, and the sample of
//! `polypool` for work that waits.
//!
//! `cli` reads what is asked for, `input` the rows; `engine` decides what is fetched when, and `http` fetches it;
//! `output` keeps records and bodies, `extract` looks into pages, `report` says how it goes. This file puts them
//! together.

mod cli;
mod demo;
mod engine;
mod extract;
mod http;
mod input;
mod output;
mod report;
mod request;
mod settings;

use std::io::{self, ErrorKind, IsTerminal};
use std::num::NonZero;
use std::pin::pin;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::available_parallelism;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use futures_ext::{ProgressExt, block_on};
use futures_util::{FutureExt, Stream, StreamExt, stream};
use polypool::{TaskFuture, ThreadPool};
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::{SendError, TrySendError};
use tokio::task::yield_now;
use tokio::time::sleep;

use crate::engine::{Control, Incoming, Parts, Room};
use crate::extract::Extractor;
use crate::http::Fetcher;
use crate::input::Rows;
use crate::output::{Before, Bodies, Done, Writer};
use crate::report::{Circumstances, Live, Summary, SummaryFile, say};
use crate::settings::Settings;

/// What the fuzz targets need.
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing {
    pub use crate::cli::fuzzing::config;
    pub use crate::input::fuzzing::{csv, jsonl, lines, template};
    pub use crate::output::fuzzing::records;
}

/// How many rows wait between the thread that reads them and the engine.
const BETWEEN: usize = 256;

/// After this time at the latest whoever reads the records sees them. A write for each would take as long as all else.
const SOON: Duration = Duration::from_millis(20);

/// After so many records in a row, all else is looked after.
const AT_ONCE: u32 = 64;

/// How many threads keep bodies at most.
const KEEPERS: usize = 4;

/// How many bytes of rows wait, there and in the engine: rows with bodies of some kilobytes are read as far ahead as
/// others, rows with megabytes are not.
const WAITING: usize = 8 << 20;

/// The whole program.
pub fn main() -> ExitCode {
    let settings = cli::read();
    match run(settings) {
        Ok(code) => code,
        // Whoever reads has seen enough, as `head` does.
        Err(error) if is_closed_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            say(format_args!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run(settings: Settings) -> Result<ExitCode> {
    // Connections and files are descriptors, and the usual limit is made for programs of another kind. Without more,
    // the requests that find none fail, and say so.
    let _ = rlimit::increase_nofile_limit(u64::MAX);
    // One thread for all that waits, this run itself included, so that nothing crosses between cores.
    // Bodies are kept on its workers; one is enough for small ones, so the others start only if there is more to do.
    let cores = available_parallelism().map_or(1, NonZero::get);
    let pool = ThreadPool::builder().workers(cores.min(KEEPERS)).name_prefix("fetch");
    // The requests come before what is kept of them, and so does a server on this machine: 3 % faster where two cores
    // do everything. At 10 it would be 5 %, but a tenth less than now beside programs that take all they can get.
    // Linux has priorities of single threads; elsewhere this would be that of the whole program.
    #[cfg(target_os = "linux")]
    let pool = pool.initializer(|_| -> Result<(), std::convert::Infallible> {
        // Where it isn't allowed, all are alike.
        let _ = rustix::process::setpriority_process(None, 5);
        Ok(())
    });
    let pool = pool.build()?;
    let session = session(settings, pool.clone());
    pool.spawn_async(session).wait()?
}

async fn session(mut settings: Settings, pool: ThreadPool) -> Result<ExitCode> {
    let start = Instant::now();
    if settings.demo {
        demo::start(&mut settings).await.context("can't start the server of --demo")?;
    }
    let settings = Arc::new(settings);
    // Before anything is written. With --strict it has read all rows by now.
    let rows = Rows::open(&settings.input).unwrap_or_else(|error| cli::refuse(&error));
    let fetcher = Fetcher::new(&settings).unwrap_or_else(|error| cli::refuse(&error));
    let mut writer = Writer::open(&settings.output).unwrap_or_else(|error| cli::refuse(&error));
    let bodies = Bodies::new(&settings.output, settings.extract.is_some()).unwrap_or_else(|error| cli::refuse(&error));
    let summary_file = settings.report.summary_json.clone().map(SummaryFile::open).transpose();
    let summary_file = summary_file.unwrap_or_else(|error| cli::refuse(&error));
    let bodies = bodies.with_usual_headers(&settings.input.defaults.headers);
    let extractor = settings.extract.as_ref().map(Extractor::new).transpose()?;
    let quiet = settings.report.quiet;
    // Counting reads whole files, for nobody if nothing is shown.
    let total = if quiet { None } else { Rows::total(&settings.input) };
    let (rows, passed_over, reading) = read(rows, writer.done())?;

    let control = Arc::new(Control::default());
    let live = Live::new(control.clone(), total, start);
    let parts = Parts { pool, fetcher, bodies, extractor, rows, control: control.clone(), start };
    let records = engine::records(settings.clone(), parts).progress(live.bar(quiet));
    let screen = io::stdout().is_terminal().then(|| records.bar().clone());
    let mut records = Box::pin(records);
    let mut lines = pin!(live.lines(quiet));
    let mut signals = pin!(stream::unfold(Signals::new()?, async |mut signals| Some((signals.next().await, signals))));
    let mut flush = pin!(sleep(SOON));
    let mut summary = Summary::new();
    let mut interrupted = false;
    let mut in_a_row = 0;
    // What ends the run: its records have nowhere to go.
    let mut lost = Ok(());
    loop {
        control.horizon.store(writer.horizon(), Ordering::Relaxed);
        let next = match at_once(&mut records, &mut in_a_row).await {
            Some(next) => next,
            None => {
                tokio::select! {
                    // The records come last: there may always be some.
                    biased;
                    Some(()) = signals.next() => {
                        if interrupted {
                            break;
                        }
                        interrupted = true;
                        control.stop.cancel();
                        say("interrupted: what runs may finish; once more ends it now");
                        continue;
                    }
                    // Whoever reads sees soon what there is; the bar must not stand in the way.
                    () = &mut flush, if writer.is_behind() => {
                        lost = match &screen {
                            Some(bar) => bar.suspend(|| writer.flush()),
                            None => writer.flush(),
                        };
                        if lost.is_err() {
                            break;
                        }
                        continue;
                    }
                    () = &mut lines => continue,
                    next = records.next() => next,
                }
            }
        };
        let Some(record) = next else { break };
        summary.count(&record);
        live.count(&record);
        if !writer.is_behind() {
            flush.as_mut().reset(tokio::time::Instant::now() + SOON);
        }
        lost = writer.write(record);
        if lost.is_err() {
            break;
        }
    }
    drop(records); // Cancels what still runs.
    let lost = lost.and_then(|()| writer.finish());

    // Input that nobody waits for any more may never end.
    let gave_up = control.gave_up.load(Ordering::Relaxed);
    let read = if interrupted || gave_up || lost.is_err() { Ok(()) } else { reading.await? };
    let count = |count: &AtomicU64| count.load(Ordering::Relaxed);
    let report = summary.report(Circumstances {
        elapsed: start.elapsed(),
        retries: count(&control.retries),
        done_before: count(&passed_over.done_before),
        failed_before: count(&passed_over.failed_before),
        duplicates: count(&passed_over.duplicates),
        interrupted,
        incomplete: interrupted || gave_up || read.is_err() || lost.is_err(),
    });
    if !quiet && lost.is_ok() {
        say(&report);
    }
    let written = summary_file.map_or(Ok(()), |file| file.write(&report));
    lost?;
    if interrupted {
        say(format_args!("the other URLs have no record{}", resume_hint(&settings)));
    } else if gave_up {
        say(format_args!(
            "the --deadline passed before the input came to its end: the rows that were not read by then have no \
             record{}",
            resume_hint(&settings)
        ));
    }
    if interrupted {
        let _ = written.inspect_err(|error| say(format_args!("error: {error:#}")));
        return Ok(ExitCode::from(130));
    }
    read?;
    written?;
    let failed = gave_up || report.failed_share() > settings.report.fail_above;
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// What comes next, if that is there already: looking after all else takes as long as a record does. Not after many in
/// a row, for there may be records without end that need no signal, no connection and no timer; then the task gives way
/// to the runtime, which sees to these.
async fn at_once<S: Stream + Unpin>(records: &mut S, in_a_row: &mut u32) -> Option<Option<S::Item>> {
    let next = if *in_a_row < AT_ONCE {
        records.next().now_or_never()
    } else {
        yield_now().await;
        None
    };
    *in_a_row = if next.is_some() { *in_a_row + 1 } else { 0 };
    next
}

fn resume_hint(settings: &Settings) -> &'static str {
    if settings.output.records.is_some() { "; the same command with --resume goes on from here" } else { "" }
}

/// What the thread that reads has left out so far.
#[derive(Debug, Default)]
struct PassedOver {
    done_before: AtomicU64,
    failed_before: AtomicU64,
    duplicates: Arc<AtomicU64>,
}

/// Reads rows on a thread of its own, for reading blocks, and leaves out those that have their record already. The
/// future says how the reading ended.
fn read(mut rows: Rows, done: Arc<Done>) -> Result<(Incoming, Arc<PassedOver>, TaskFuture<Result<()>>)> {
    // A pool of its own, so that nobody who ends the run has to wait for input. Dropping it lets the thread finish.
    let pool = ThreadPool::builder().workers(1).name_prefix("input").build()?;
    let (sender, receiver) = mpsc::channel(BETWEEN);
    let passed_over = Arc::new(PassedOver { duplicates: rows.duplicates(), ..PassedOver::default() });
    let counts = passed_over.clone();
    let reading = pool.spawn(move || {
        let room = Room::new(WAITING);
        for row in &mut rows {
            let row = row?;
            if !done.is_empty()
                && let Some(before) = done.check(row.number, &row.url())?
            {
                counts.done_before.fetch_add(1, Ordering::Relaxed);
                counts.failed_before.fetch_add(u64::from(before == Before::Failed), Ordering::Relaxed);
                continue;
            }
            let share = room.share(row.size());
            match sender.try_send((row, share)) {
                Ok(()) => {}
                // Not woken for each that is taken: that would be nearly as often as there are rows.
                Err(TrySendError::Full(row)) => match block_on(sender.reserve_many(BETWEEN / 2)) {
                    Ok(mut places) => places.next().expect("half of them").send(row),
                    Err(SendError(())) => break,
                },
                Err(TrySendError::Closed(_)) => break, // Nobody wants more.
            }
        }
        Ok(())
    });
    Ok((receiver, passed_over, reading))
}

/// Ctrl-C and, where there is such a thing, the signal that asks to terminate.
struct Signals {
    #[cfg(unix)]
    interrupt: tokio::signal::unix::Signal,
    #[cfg(unix)]
    terminate: tokio::signal::unix::Signal,
}

impl Signals {
    #[cfg(unix)]
    fn new() -> io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Signals { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    #[cfg(unix)]
    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }

    #[cfg(not(unix))]
    fn new() -> io::Result<Self> {
        Ok(Signals {})
    }

    #[cfg(not(unix))]
    async fn next(&mut self) {
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending().await // Without a handler, Ctrl-C ends the program by itself.
        }
    }
}

fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == ErrorKind::BrokenPipe)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is read of more rows than may wait.
    fn reading() -> (Incoming, TaskFuture<Result<()>>) {
        let settings = cli::settings(&["http://h/{1..10000}"]);
        let (rows, _, reading) = read(Rows::open(&settings.input).expect("rows"), Arc::default()).expect("a thread");
        (rows, reading)
    }

    /// When the thread that reads has to wait for places.
    fn until_full(rows: &Incoming) {
        let start = Instant::now();
        while rows.len() < BETWEEN {
            assert!(start.elapsed() < Duration::from_secs(60), "{} rows", rows.len());
            std::thread::yield_now();
        }
    }

    #[test]
    fn rows_come_in_order_where_they_have_to_wait() {
        let (mut rows, mut reading) = reading();
        until_full(&rows);
        for number in 1..=10_000 {
            assert_eq!(rows.blocking_recv().map(|(row, _)| row.number), Some(number));
        }
        assert!(rows.blocking_recv().is_none());
        reading.wait_timeout(Duration::from_secs(60)).expect("it ends").expect("it works").expect("rows");
    }

    #[test]
    fn reading_ends_when_nobody_wants_the_rows_that_wait() {
        let (rows, mut reading) = reading();
        until_full(&rows);
        drop(rows);
        reading.wait_timeout(Duration::from_secs(60)).expect("it ends").expect("it works").expect("rows");
    }

    #[test]
    fn the_session_gives_way_though_there_is_always_a_record() {
        let (mut records, mut in_a_row) = (stream::repeat(()), 0);
        for _ in 0..3 {
            for _ in 0..AT_ONCE {
                assert_eq!(at_once(&mut records, &mut in_a_row).now_or_never(), Some(Some(Some(()))));
            }
            assert_eq!(at_once(&mut records, &mut in_a_row).now_or_never(), None, "it gives way");
            assert_eq!(futures_ext::block_on(at_once(&mut records, &mut in_a_row)), None, "all else comes first");
        }
        let mut records = stream::pending::<()>();
        assert_eq!(at_once(&mut records, &mut in_a_row).now_or_never(), Some(None), "all else may be awaited");
    }
}
