//! Runs trials: each in a process of its own, under a watchdog, reported like `cargo test` does.
//!
//! ```text
//!   cargo test ── main ── Suite::run ──┬── libtest-mimic: filters, --list, the report
//!                                      │
//!                                      └── for each trial:  this executable --trial NAME
//!                                             own process group, output into a file, killed after 60 s
//! ```
//!
//! The process of a trial leads a process group, which holds whatever it starts. When the trial is over, however that
//! came about, the group is killed before its leader is reaped, so that the number of the group can't have become
//! somebody else's. The output goes into a file and not into a pipe, because a pipe has no end while a forgotten worker
//! still holds it. And should the run itself be killed, its trials notice: their standard input ends.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitCode, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use libtest_mimic::{Arguments, Failed, Trial};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};

use crate::conformance;
use crate::fixture::{EXECUTORS, Fixture};

/// How long a trial may take.
pub const WATCHDOG: Duration = Duration::from_secs(60);

/// How many trials run at once, unless `--test-threads` says otherwise. They measure times: a machine with more to do
/// than it has cores makes them fail.
const DEFAULT_THREADS: usize = 2;

/// The argument that makes this executable run one trial.
const TRIAL: &str = "--trial";

/// Overrides [`WATCHDOG`], in milliseconds, for the tests of the harness itself.
pub const WATCHDOG_VARIABLE: &str = "INTEGRATION_TESTS_WATCHDOG_MS";

/// A test of something: its name, and the function.
pub type Row<F> = (&'static str, F);

/// A test of the contract: it is given an executor of the table.
pub type ContractRow = Row<fn(&'static dyn Fixture)>;

type Body = Arc<dyn Fn() + Send + Sync>;

/// The trials of one test target.
#[must_use = "a suite does nothing until it is run"]
#[allow(missing_debug_implementations)]
pub struct Suite {
    target: &'static str,
    trials: Vec<(String, Body)>,
    hidden: Vec<(String, Body)>,
}

impl Suite {
    /// A suite for the test target of this name.
    pub fn new(target: &'static str) -> Self {
        Suite { target, trials: Vec::new(), hidden: Vec::new() }
    }

    /// Adds tests that need no executor, or make their own.
    pub fn tests(mut self, rows: &[Row<fn()>]) -> Self {
        for &(name, test) in rows {
            self.trials.push((name.to_owned(), Arc::new(test)));
        }
        self
    }

    /// Adds tests of the contract: each once for each executor, as `executor::test`.
    pub fn contract(mut self, rows: &[ContractRow]) -> Self {
        for &fixture in EXECUTORS {
            for &(name, test) in rows {
                self.trials.push((format!("{}::{name}", fixture.name()), Arc::new(move || test(fixture))));
            }
        }
        self
    }

    /// Adds programs that can be run by name, with `--trial`, but are not tests.
    pub fn programs(mut self, rows: &[Row<fn()>]) -> Self {
        for &(name, program) in rows {
            self.hidden.push((name.to_owned(), Arc::new(program)));
        }
        self
    }

    /// Runs what the command line asks for.
    ///
    /// # Panics
    /// If two trials have one name.
    #[must_use]
    pub fn run(mut self) -> ExitCode {
        let names: BTreeSet<String> = self.trials.iter().map(|(name, _)| name.clone()).collect();
        assert_eq!(names.len(), self.trials.len(), "each trial needs a name of its own");
        let target = self.target;
        self.trials.push((
            "conformance_table_and_tests_name_each_other".to_owned(),
            Arc::new(move || conformance::check_target(target, &names)),
        ));

        let mut arguments = std::env::args().skip(1);
        if arguments.next().as_deref() == Some(TRIAL) {
            let name = arguments.next().unwrap_or_default();
            return self.run_here(&name);
        }
        let mut arguments = Arguments::from_args();
        arguments.test_threads.get_or_insert(DEFAULT_THREADS);
        let nocapture = arguments.nocapture;
        let trials = self
            .trials
            .iter()
            .map(|(name, _)| {
                let trial = name.clone();
                Trial::test(name, move || match run_trial(&trial, watchdog(), nocapture) {
                    Verdict::Passed => Ok(()),
                    Verdict::Failed(report) => Err(Failed::from(report)),
                })
            })
            .collect();
        libtest_mimic::run(&arguments, trials).exit_code()
    }

    /// Runs one trial in this process.
    fn run_here(&self, name: &str) -> ExitCode {
        let Some((_, body)) = self.trials.iter().chain(&self.hidden).find(|(own, _)| own == name) else {
            eprintln!("there is no trial {name:?}");
            return ExitCode::FAILURE;
        };
        end_with_the_run();
        // What tokio opens once in a process, such as its pipe for signals where that feature is on, is there before a
        // test counts descriptors.
        drop(tokio::runtime::Builder::new_current_thread().enable_all().build());
        // A panic ends the program with code 101 after its message.
        body();
        ExitCode::SUCCESS
    }
}

/// How a trial ended.
#[derive(Debug)]
pub enum Verdict {
    /// It returned.
    Passed,
    /// It did not; the text says how, and what it printed.
    Failed(String),
}

/// Runs a trial or program of this executable in a process of its own.
#[must_use]
pub fn run_trial(name: &str, watchdog: Duration, nocapture: bool) -> Verdict {
    match try_run_trial(name, watchdog, nocapture) {
        Ok(verdict) => verdict,
        Err(error) => Verdict::Failed(format!("the trial could not be started: {error}")),
    }
}

fn try_run_trial(name: &str, watchdog: Duration, nocapture: bool) -> std::io::Result<Verdict> {
    let output = tempfile::tempfile()?;
    let mut command = Command::new(std::env::current_exe()?);
    command.args([TRIAL, name]).stdin(Stdio::piped()).process_group(0);
    if !nocapture {
        command.stdout(output.try_clone()?).stderr(output.try_clone()?);
    }
    let mut child = command.spawn()?;
    let pid = Pid::from_child(&child);

    let (sender, ended) = mpsc::channel();
    std::thread::spawn(move || {
        // Leaves the dead process unreaped: its group keeps its number until the group has been killed.
        let waited = loop {
            match waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT) {
                Err(rustix::io::Errno::INTR) => {}
                waited => break waited.map(drop),
            }
        };
        let _ = sender.send(waited);
    });
    let hung = !ends_in_time(&ended, watchdog);
    let _ = kill_process_group(pid, Signal::KILL);
    // Not `wait_with_output`: that would close its standard input before the kill.
    let status = child.wait()?;

    let printed = read_back(output)?;
    Ok(if hung {
        Verdict::Failed(format!("hung: killed after {watchdog:?}\n{printed}"))
    } else if status.success() {
        Verdict::Passed
    } else {
        Verdict::Failed(format!("{}\n{printed}", how_it_ended(status)))
    })
}

/// Whether the end is reported before the watchdog's time is up. It is counted in short steps, so that a time in which
/// everything stood still, this process and its trials alike (Ctrl-Z, or a debugger), counts as one of them.
fn ends_in_time<T>(ended: &mpsc::Receiver<T>, watchdog: Duration) -> bool {
    const STEPS: u32 = 60;
    (0..STEPS).any(|_| !matches!(ended.recv_timeout(watchdog / STEPS), Err(mpsc::RecvTimeoutError::Timeout)))
}

fn how_it_ended(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(101), _) => "panicked".to_owned(),
        (Some(code), _) => format!("exited with code {code}"),
        (None, Some(signal)) => format!("was killed by signal {signal}"),
        (None, None) => "ended in an unknown way".to_owned(),
    }
}

fn read_back(mut output: File) -> std::io::Result<String> {
    let mut bytes = Vec::new();
    output.seek(SeekFrom::Start(0))?;
    output.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn watchdog() -> Duration {
    std::env::var(WATCHDOG_VARIABLE).ok().and_then(|text| text.parse().ok()).map_or(WATCHDOG, Duration::from_millis)
}

/// Kills the group of this trial when the run that started it is gone.
fn end_with_the_run() {
    // Started by hand, from a terminal: there is no run, and the group may be the shell's.
    if rustix::process::getpgrp() != rustix::process::getpid() {
        return;
    }
    std::thread::spawn(|| {
        let mut input = std::io::stdin().lock();
        let mut buffer = [0; 64];
        while input.read(&mut buffer).is_ok_and(|read| read > 0) {}
        let _ = rustix::process::kill_current_process_group(Signal::KILL);
    });
}
