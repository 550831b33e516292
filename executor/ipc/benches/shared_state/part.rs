//! The processes of a measurement: this program once more, with a part to play.
//!
//! A **contestant** reads numbers of operations from its input, does them, and prints how long they took. It answers as
//! `python_peer.py` does, so the runner doesn't know which language, or which program, it talks to. What it starts
//! itself stands in `helper.rs`. It ends with the process that started it, whatever ended that.

use std::env;
use std::io::{self, BufRead};
use std::time::Duration;

use rustix::process::{Signal, set_parent_process_death_signal};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// The variable that says which part a process has.
pub(crate) const PART: &str = "POLYPOOL_BENCH_PART";

/// Does so many operations, and says how long they took.
pub(crate) type Rounds = Box<dyn FnMut(u64) -> io::Result<Duration>>;

/// A contestant, by its name (`ours/value-one`), and how it is set up.
pub(crate) type Contestant = (&'static str, fn() -> io::Result<Rounds>);

/// The part for which this process was started, if it was started for one.
pub(crate) fn mine() -> Option<String> {
    let name = env::var(PART).ok()?;
    let _ = set_parent_process_death_signal(Some(Signal::KILL));
    Some(name)
}

/// Ends this process as its part has ended.
pub(crate) fn finish(name: &str, result: io::Result<()>) -> ! {
    match result {
        Ok(()) => std::process::exit(0),
        // The other end has gone: the measurement is over.
        Err(error) if matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe) => {
            std::process::exit(0)
        }
        Err(error) => {
            eprintln!("{name}: {error}");
            std::process::exit(1);
        }
    }
}

/// Plays a contestant, if there is one of that name.
pub(crate) fn compete(name: &str, contestants: &[Contestant]) -> Option<io::Result<()>> {
    let (_, set_up) = contestants.iter().find(|(known, _)| *known == name)?;
    Some(rounds(*set_up))
}

fn rounds(set_up: fn() -> io::Result<Rounds>) -> io::Result<()> {
    let mut rounds = set_up()?;
    println!("ready");
    for line in io::stdin().lock().lines() {
        let count = line?.trim().parse().map_err(|_| io::Error::other("a number of operations was expected"))?;
        println!("{}", rounds(count)?.as_nanos());
    }
    Ok(())
}

/// Keeps this thread, and those it starts, on the first or the second core of this program.
pub(crate) fn pin(core: usize) -> io::Result<()> {
    thread_local! {
        // What it was allowed before it was pinned for the first time.
        static ALLOWED: CpuSet = sched_getaffinity(None).unwrap_or_else(|_| CpuSet::new());
    }
    let cpu = ALLOWED.with(|set| (0..CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu)).nth(core));
    let cpu = cpu.ok_or_else(|| io::Error::other(format!("there is no core number {}", core + 1)))?;
    let mut set = CpuSet::new();
    set.set(cpu);
    Ok(sched_setaffinity(None, &set)?)
}
