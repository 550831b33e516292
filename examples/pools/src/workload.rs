//! What is measured: the workloads, and the tasks that they are made of.
//!
//! Each task is a `#[polypool::task]`: a value that our pools and `procspawn` can send to another process, and that the
//! other peers run by calling it.

use std::time::{Duration, Instant};

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// One task in so many crashes, in the workload `crash`.
pub(crate) const CRASH_EVERY: u64 = 1_000;

/// How many items travel together in the workload `map-chunks`.
pub(crate) const CHUNK: usize = 1_024;

/// What the tasks of a measurement do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Workload {
    /// Nothing, one task at a time
    NoOp,
    /// Computing for 1 µs
    #[value(name = "cpu-1us")]
    #[serde(rename = "cpu-1us")]
    Cpu1us,
    /// Computing for 10 µs
    #[value(name = "cpu-10us")]
    #[serde(rename = "cpu-10us")]
    Cpu10us,
    /// Computing for 100 µs
    #[value(name = "cpu-100us")]
    #[serde(rename = "cpu-100us")]
    Cpu100us,
    /// Computing for 1 ms
    #[value(name = "cpu-1ms")]
    #[serde(rename = "cpu-1ms")]
    Cpu1ms,
    /// Whether 10,007 is prime, by trial division
    Prime,
    /// 1 KiB in and out
    #[value(name = "payload-1kib")]
    #[serde(rename = "payload-1kib")]
    Payload1KiB,
    /// 64 KiB in and out
    #[value(name = "payload-64kib")]
    #[serde(rename = "payload-64kib")]
    Payload64KiB,
    /// 1 MiB in and out
    #[value(name = "payload-1mib")]
    #[serde(rename = "payload-1mib")]
    Payload1MiB,
    /// 64 MiB in and out
    #[value(name = "payload-64mib")]
    #[serde(rename = "payload-64mib")]
    Payload64MiB,
    /// A wait of 1 ms that blocks
    #[value(name = "io-1ms")]
    #[serde(rename = "io-1ms")]
    Io1ms,
    /// A wait of 10 ms that blocks
    #[value(name = "io-10ms")]
    #[serde(rename = "io-10ms")]
    Io10ms,
    /// An asynchronous wait of 1 ms
    AsyncWait,
    /// Nothing, but one task in a thousand is killed as if out of memory
    Crash,
    /// Nothing, by the executor's own map, each item by itself
    Map,
    /// Nothing, by the executor's own map, in chunks of 1,024 items
    MapChunks,
}

impl Workload {
    /// The name on the command line and in reports.
    pub(crate) fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }

    /// What it is, in words.
    pub(crate) fn description(self) -> String {
        self.to_possible_value().and_then(|value| value.get_help().map(ToString::to_string)).unwrap_or_default()
    }

    /// How long a task computes.
    pub(crate) fn cpu(self) -> Option<Duration> {
        match self {
            Workload::Cpu1us => Some(Duration::from_micros(1)),
            Workload::Cpu10us => Some(Duration::from_micros(10)),
            Workload::Cpu100us => Some(Duration::from_micros(100)),
            Workload::Cpu1ms => Some(Duration::from_millis(1)),
            _ => None,
        }
    }

    /// How long a task waits; the asynchronous one too.
    pub(crate) fn wait(self) -> Option<Duration> {
        match self {
            Workload::Io1ms | Workload::AsyncWait => Some(Duration::from_millis(1)),
            Workload::Io10ms => Some(Duration::from_millis(10)),
            _ => None,
        }
    }

    /// How many bytes go in and out.
    pub(crate) fn payload(self) -> Option<usize> {
        match self {
            Workload::Payload1KiB => Some(1 << 10),
            Workload::Payload64KiB => Some(64 << 10),
            Workload::Payload1MiB => Some(1 << 20),
            Workload::Payload64MiB => Some(64 << 20),
            _ => None,
        }
    }

    /// How many tasks may be under way at once: all of them, but payloads only as fit into 128 MiB.
    pub(crate) fn window(self) -> usize {
        self.payload().map_or(usize::MAX, |bytes| ((128 << 20) / bytes).min(1_024))
    }

    /// The number of tasks of a batch is a multiple of this, so that all workers have some, and as many of them.
    pub(crate) fn step(self, workers: usize) -> u64 {
        if self == Workload::Crash { CRASH_EVERY } else { self.window().min(4 * workers) as u64 }
    }
}

/// The number of `prime`.
pub(crate) const PRIME: u64 = 10_007;

#[polypool::task]
pub(crate) fn no_op(n: u64) -> u64 {
    n
}

/// A loop that the compiler can't shorten.
#[polypool::task]
pub(crate) fn spin(rounds: u64) -> u64 {
    (0..rounds).fold(1, |sum, round| std::hint::black_box(sum ^ round))
}

#[polypool::task]
pub(crate) fn is_prime(n: u64) -> bool {
    n >= 2 && (2..n).all(|d| !n.is_multiple_of(d))
}

#[polypool::task]
pub(crate) fn echo(bytes: Vec<u8>) -> Vec<u8> {
    bytes
}

#[polypool::task]
pub(crate) fn block(wait: Duration) {
    std::thread::sleep(wait);
}

#[polypool::task]
pub(crate) async fn pause(wait: Duration) {
    tokio::time::sleep(wait).await;
}

/// Kills its process as the kernel does when memory runs out.
#[polypool::task]
pub(crate) fn sometimes_crash(n: u64) -> u64 {
    if crashes(n) {
        #[cfg(unix)]
        let _ = nix::sys::signal::raise(nix::sys::signal::Signal::SIGKILL);
        std::process::abort();
    }
    n
}

/// Whether the task with this number is the one in a thousand.
pub(crate) fn crashes(n: u64) -> bool {
    n % CRASH_EVERY == CRASH_EVERY / 2
}

/// How many rounds of [`spin()`] take a microsecond: the best of several tries, because everything else that runs can only
/// make them slower.
pub(crate) fn calibrate() -> f64 {
    let mut rounds = 1_000;
    while time_spin(rounds) < Duration::from_millis(1) {
        rounds *= 2;
    }
    let best = (0..20).map(|_| time_spin(rounds)).min().unwrap_or_default();
    rounds as f64 / (best.as_secs_f64() * 1e6)
}

/// How long the prime check takes here: the best of several tries.
pub(crate) fn time_prime() -> Duration {
    let time = || {
        let start = Instant::now();
        std::hint::black_box(is_prime(std::hint::black_box(PRIME)));
        start.elapsed()
    };
    (0..20).map(|_| time()).min().unwrap_or_default()
}

/// How long so many rounds take.
pub(crate) fn time_spin(rounds: u64) -> Duration {
    let start = Instant::now();
    std::hint::black_box(spin(rounds));
    start.elapsed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_command_line_in_reports_too() {
        for workload in Workload::value_variants() {
            assert_eq!(serde_json::to_value(workload).unwrap(), workload.name());
            assert!(!workload.description().is_empty());
        }
    }

    #[test]
    fn one_task_in_a_thousand_crashes() {
        assert_eq!((0..5 * CRASH_EVERY).filter(|n| crashes(*n)).count(), 5);
    }

    #[test]
    fn a_batch_has_work_for_all_workers_but_no_more_than_may_be_under_way() {
        assert_eq!(Workload::Io10ms.step(3), 12);
        assert_eq!(Workload::Payload64MiB.step(3), 2);
        assert_eq!(Workload::Crash.step(3), CRASH_EVERY);
    }

    #[test]
    fn the_number_of_the_prime_check_is_prime() {
        assert!(is_prime(PRIME) && !is_prime(PRIME + 4));
    }
}
