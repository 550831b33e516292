//! The side that measures: which runner does what in which order, and what that took.
//!
//! Every round of an executor with a workload has a fresh runner (`runner.rs`), so that memory is counted from zero and
//! neither a crash nor an idle pool of another one disturbs it. Executors take turns (A B C A B C …): what the machine
//! does meanwhile meets all of them. The first round of each finds out how many tasks take long enough to be measured;
//! later ones do as many.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use futures_ext::{Progress, ProgressIteratorExt};
use hdrhistogram::Histogram;
use serde::Deserialize;

use crate::account;
use crate::executor::{Blocking, Executor};
use crate::group::Group;
use crate::runner::{Answer, Plan};
use crate::workload::{PRIME, Workload, calibrate, time_prime, time_spin};

const PYTHON: &str = include_str!("runner.py");

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Extent {
    /// How many rounds there are.
    rounds: usize,
    /// When no more round is begun, except the first of each.
    enough: Duration,
    /// When even first rounds are given up, because the machine is too busy for all of them.
    at_most: Duration,
    /// How long a runner may take for one answer, before it is given up; in any case not beyond the end.
    patience: Duration,
    /// When nothing goes on any more.
    end: Duration,
    /// How long the tasks of one round should take.
    slice: Duration,
    most_tasks: u64,
    /// How long round trips are made, and how many.
    round_trips: (Duration, u64),
}

impl Extent {
    pub(crate) fn new(quick: bool) -> Self {
        if quick {
            Extent {
                rounds: 3,
                enough: Duration::from_secs(50),
                at_most: Duration::from_secs(54),
                patience: Duration::from_secs(4),
                end: Duration::from_secs(57),
                slice: Duration::from_millis(20),
                most_tasks: 100_000,
                round_trips: (Duration::from_millis(10), 500),
            }
        } else {
            Extent {
                rounds: 7,
                enough: Duration::MAX,
                at_most: Duration::MAX,
                patience: Duration::from_secs(60),
                end: Duration::MAX,
                slice: Duration::from_millis(300),
                most_tasks: 1_000_000,
                round_trips: (Duration::from_millis(200), 5_000),
            }
        }
    }
}

/// All that was measured.
#[derive(Debug)]
pub(crate) struct Measurement {
    pub(crate) cells: Vec<Cell>,
    /// How long the same loop took, again and again, in seconds.
    pub(crate) probes: Vec<f64>,
    pub(crate) cores: usize,
    pub(crate) seconds: f64,
    /// How long the prime check takes, in Rust and in Python.
    pub(crate) prime: [Option<Duration>; 2],
}

impl Measurement {
    /// How long a task of this workload takes by itself, if that says anything: it computes, or holds a worker while
    /// it waits. Any number of asynchronous waits can go on at once.
    pub(crate) fn length(&self, executor: Executor, workload: Workload) -> Option<Duration> {
        match workload {
            Workload::Prime => self.prime[usize::from(executor.is_python())],
            Workload::AsyncWait => None,
            _ => workload.cpu().or(workload.wait()),
        }
    }
}

/// An executor with a workload: its rounds, or why there are none.
#[derive(Debug)]
pub(crate) struct Cell {
    pub(crate) executor: Executor,
    pub(crate) workload: Workload,
    pub(crate) rounds: Vec<Round>,
    pub(crate) left_out: Option<String>,
}

/// One round.
#[derive(Debug)]
pub(crate) struct Round {
    pub(crate) tasks: u64,
    /// Tasks a second.
    pub(crate) throughput: f64,
    pub(crate) round_trips_ns: Vec<u64>,
    pub(crate) cpu_s_per_million: Option<f64>,
    pub(crate) peak_rss_mib: Option<f64>,
}

impl Round {
    pub(crate) fn p50_us(&self) -> f64 {
        quantile_us(self.round_trips_ns.iter().copied(), 0.5)
    }
}

/// A quantile of times in ns, to a thousandth of it.
pub(crate) fn quantile_us(times_ns: impl IntoIterator<Item = u64>, quantile: f64) -> f64 {
    let hour = 3_600_000_000_000;
    let mut histogram = Histogram::<u64>::new_with_bounds(1, hour, 3).expect("3 digits are within its limits");
    times_ns.into_iter().for_each(|time| histogram.saturating_record(time));
    histogram.value_at_quantile(quantile) as f64 / 1e3
}

impl Measurement {
    /// The rounds of an executor with a workload; none if it was left out.
    pub(crate) fn rounds(&self, executor: Executor, workload: Workload) -> &[Round] {
        let cell = self.cells.iter().find(|cell| cell.executor == executor && cell.workload == workload);
        cell.map_or(&[], |cell| &cell.rounds)
    }
}

pub(crate) fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Measures each executor with each workload.
///
/// # Errors
/// When the program can't start itself. What goes wrong in a runner is the reason why its executor is left out.
pub(crate) fn all(
    executors: &[Executor],
    workloads: &[Workload],
    workers: usize,
    extent: Extent,
) -> Result<Measurement> {
    let begin = Instant::now();
    let rust = calibrate();
    let python = if executors.iter().any(|e| e.is_python()) { Python::find() } else { Err(anyhow!("not asked for")) };
    let cells =
        workloads.iter().flat_map(|workload| executors.iter().map(|executor| cell(*executor, *workload, &python)));
    let python_prime = python.as_ref().ok().and_then(|python| Duration::try_from_secs_f64(python.prime_s).ok());
    let mut measurement = Measurement {
        cells: cells.collect(),
        probes: Vec::new(),
        cores: cores(),
        seconds: 0.0,
        prime: [Some(time_prime()), python_prime],
    };
    let turns = extent.rounds * measurement.cells.len();
    let progress = Progress::new().description("pools").unit("turn").leave(false);
    for turn in (0..turns).progress(progress) {
        let (round, index) = (turn / measurement.cells.len(), turn % measurement.cells.len());
        if round > 0 && begin.elapsed() > extent.enough {
            break;
        }
        if index % executors.len() == 0 {
            measurement.probes.push(probe(rust, workers.min(measurement.cores)));
        }
        let cell = &mut measurement.cells[index];
        if cell.left_out.is_some() {
            continue;
        }
        if begin.elapsed() > extent.at_most {
            cell.left_out = Some("the minute of --quick was over: the machine is busy".to_owned());
            continue;
        }
        let python = python.as_ref().ok().filter(|_| cell.executor.is_python());
        let plan = Plan::new(cell.executor, cell.workload, workers, python.map_or(rust, |p| p.rounds_per_us));
        let patience = Patience { answer: extent.patience, end: begin.checked_add(extent.end) };
        match Runner::start(&plan, python, patience).and_then(|runner| runner.round(cell, extent)) {
            Ok(round) => cell.rounds.push(round),
            // What it was asked for took too long, but it has done so before.
            Err(_) if round > 0 && begin.elapsed() >= extent.end => break,
            Err(error) => {
                cell.left_out = Some(format!("it failed: {error:#}"));
                cell.rounds.clear();
            }
        }
    }
    measurement.seconds = begin.elapsed().as_secs_f64();
    Ok(measurement)
}

fn cell(executor: Executor, workload: Workload, python: &Result<Python>) -> Cell {
    let mut left_out = executor.cannot(workload).map(str::to_owned);
    if let (None, true, Err(error)) = (&left_out, executor.is_python(), python) {
        left_out = Some(format!("{error:#}"));
    }
    Cell { executor, workload, rounds: Vec::new(), left_out }
}

/// How long the same work takes on so many threads at once, in seconds.
fn probe(rounds_per_us: f64, threads: usize) -> f64 {
    let rounds = (rounds_per_us * 2_000.0) as u64;
    let start = Instant::now();
    std::thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(|| time_spin(rounds)))));
    start.elapsed().as_secs_f64()
}

/// The Python that was found.
#[derive(Debug, Deserialize)]
struct Python {
    executable: String,
    rounds_per_us: f64,
    prime_s: f64,
}

impl Python {
    /// Also finds out how fast it is.
    fn find() -> Result<Self> {
        let output =
            Command::new("python3").args(["-c", PYTHON, "calibrate", &PRIME.to_string()]).stdin(Stdio::null()).output();
        let output = output.context("python3 was not found")?;
        serde_json::from_slice(&output.stdout).context("python3 does not work")
    }
}

/// A runner, from outside. Dropping it ends it and everything that it has started.
struct Runner {
    // First, so that it ends before its group is ended.
    requests: Option<ChildStdin>,
    answers: Receiver<String>,
    group: Group,
    workers: usize,
    patience: Patience,
}

/// How long a runner is waited for.
#[derive(Clone, Copy, Debug)]
struct Patience {
    answer: Duration,
    end: Option<Instant>,
}

impl Patience {
    fn left(&self) -> Duration {
        let left = self.end.map_or(Duration::MAX, |end| end.saturating_duration_since(Instant::now()));
        self.answer.min(left)
    }
}

impl Runner {
    fn start(plan: &Plan, python: Option<&Python>, patience: Patience) -> Result<Self> {
        let text = serde_json::to_string(plan)?;
        let mut command = match python {
            Some(python) => Command::new(&python.executable),
            None => Command::new(std::env::current_exe()?),
        };
        match python {
            Some(_) => command.args(["-c", PYTHON, &text]),
            None => command.args(["--runner", &text]),
        };
        // What a worker that crashes on purpose writes to stderr is of no interest.
        command.env(Blocking::WORKERS, plan.workers.to_string()).stdin(Stdio::piped()).stderr(Stdio::null());
        let mut group = Group::start(command.stdout(Stdio::piped())).context("a runner does not start")?;
        let child: &mut Child = group.leader();
        let (requests, stdout) = (child.stdin.take(), child.stdout.take().context("no pipe")?);
        let (sender, answers) = mpsc::channel();
        // Ends with the pipe, and with the receiver. A thread, because only so there is a limit to the wait.
        std::thread::spawn(move || {
            BufReader::new(stdout).lines().map_while(Result::ok).try_for_each(|l| sender.send(l))
        });
        Ok(Runner { requests, answers, group, workers: plan.workers, patience })
    }

    fn ask(&mut self, request: &str) -> Result<Answer> {
        // If it has ended, there will be no answer.
        if let Some(requests) = &mut self.requests {
            let _ = writeln!(requests, "{request}");
        }
        let patience = self.patience.left();
        match self.answers.recv_timeout(patience) {
            Ok(line) => match serde_json::from_str(&line)? {
                Answer::Error(error) => Err(anyhow!(error)),
                answer => Ok(answer),
            },
            Err(mpsc::RecvTimeoutError::Timeout) => bail!("no answer for {patience:.1?}"),
            Err(mpsc::RecvTimeoutError::Disconnected) => bail!("the runner has ended"),
        }
    }

    fn batch(&mut self, tasks: u64) -> Result<Duration> {
        match self.ask(&format!("batch {tasks}"))? {
            Answer::Seconds(seconds) => Ok(Duration::try_from_secs_f64(seconds)?),
            answer => bail!("an unexpected answer: {answer:?}"),
        }
    }

    fn round(mut self, cell: &Cell, extent: Extent) -> Result<Round> {
        // The first batch starts the workers: all of them, with some tasks for each.
        let warm_up = cell.workload.window().min(4 * self.workers) as u64;
        let tasks = match cell.rounds.first() {
            Some(first) => {
                self.batch((first.tasks / 4).max(warm_up))?;
                first.tasks
            }
            None => self.find_number(warm_up, cell.workload.step(self.workers), extent)?,
        };
        let before = account::usage(self.group.id());
        let time = self.batch(tasks)?;
        let after = account::usage(self.group.id());
        let (limit, most) = extent.round_trips;
        let Answer::Nanoseconds(round_trips_ns) = self.ask(&format!("round-trips {most} {}", limit.as_secs_f64()))?
        else {
            bail!("an unexpected answer");
        };
        let peak = account::usage(self.group.id());
        let cpu = before.zip(after).map(|(before, after)| (after.cpu_s - before.cpu_s).max(0.0));
        self.end();
        Ok(Round {
            tasks,
            throughput: tasks as f64 / time.as_secs_f64(),
            round_trips_ns,
            cpu_s_per_million: cpu.map(|seconds| seconds / tasks as f64 * 1e6),
            peak_rss_mib: peak.map(|usage| usage.peak_rss_mib),
        })
    }

    /// How many tasks take about as long as they should, by trying more and more.
    fn find_number(&mut self, warm_up: u64, step: u64, extent: Extent) -> Result<u64> {
        // The start of the workers says nothing about their speed.
        self.batch(warm_up)?;
        let (mut tasks, most) = (step, extent.most_tasks);
        loop {
            let mut time = self.batch(tasks)?;
            if time < 4 * extent.slice && time > extent.slice / 4 {
                // Once more, before a moment's disturbance is taken for a slow executor.
                time = time.min(self.batch(tasks)?);
            }
            let part = time.as_secs_f64() / extent.slice.as_secs_f64();
            let fits = ((tasks as f64 / part.max(1e-9)) as u64 / step * step).clamp(step, most);
            if part > 0.25 || tasks >= most {
                return Ok(fits);
            }
            tasks = fits.min(tasks * 8);
        }
    }

    /// Lets it end by itself, so that Python cleans up behind itself, but doesn't wait for long.
    fn end(mut self) {
        self.requests = None;
        let patience = Instant::now() + Duration::from_secs(2);
        while self.answers.recv_timeout(patience.saturating_duration_since(Instant::now())).is_ok() {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_those_of_the_times() {
        let times = (1..=1_000).map(|us| us * 1_000);
        assert!((quantile_us(times.clone(), 0.5) - 500.0).abs() < 1.0);
        assert!((quantile_us(times, 0.99) - 990.0).abs() < 1.0);
    }
}
