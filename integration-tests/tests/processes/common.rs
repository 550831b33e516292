//! What the tests of worker processes share: pools of both start methods, tasks that die, and a look at the processes
//! of the system.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use integration_tests::tasks::double;
use integration_tests::{Gate, Traces, eventually, seconds};
use polypool::{
    Executor, ExecutorExt, Outcome, ProcessPool, ProcessPoolBuilder, Shutdown, StartMethod, TaskError, TaskFuture,
    WorkerLost, context,
};
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};

/// Makes the rows of a file: each function, which takes a start method, once for each of them.
#[macro_export]
macro_rules! both {
    ($($name:ident),* $(,)?) => {
        &[$(
            (concat!("spawn::", stringify!($name)), (|| $name(polypool::StartMethod::Spawn)) as fn()),
            (concat!("forkserver::", stringify!($name)), (|| $crate::common::on_linux($name)) as fn()),
        )*]
    };
}

/// The fork server exists there only.
pub(crate) fn on_linux(test: fn(StartMethod)) {
    if cfg!(target_os = "linux") {
        test(StartMethod::ForkServer);
    }
}

pub(crate) fn builder(method: StartMethod, workers: usize) -> ProcessPoolBuilder {
    ProcessPool::builder().start_method(method).workers(workers)
}

pub(crate) fn pool(method: StartMethod, workers: usize) -> ProcessPool {
    builder(method, workers).build().expect("a pool")
}

/// The outcome of a task, which must be there within 5 s.
#[track_caller]
pub(crate) fn soon<T: Send + 'static>(mut task: TaskFuture<T>) -> Outcome<T> {
    match task.wait_timeout(seconds(5)) {
        Ok(outcome) => outcome,
        Err(_) => panic!("{task:?} has no outcome after 5 s"),
    }
}

/// The death that a task ended with.
#[track_caller]
pub(crate) fn lost<T: std::fmt::Debug>(outcome: Outcome<T>) -> WorkerLost {
    match outcome {
        Err(TaskError::WorkerLost(lost)) => (*lost).clone(),
        other => panic!("the worker should have died, not {other:?}"),
    }
}

/// Asserts that the pool still does its work.
#[track_caller]
pub(crate) fn goes_on(pool: &ProcessPool) {
    assert_eq!(soon(pool.submit(double { n: 21 })).expect("the pool goes on"), 42);
}

/// Shuts down, and asserts that no process is left: no worker, no fork server, no zombie.
#[track_caller]
pub(crate) fn ends_clean(pool: &ProcessPool, mode: Shutdown) {
    pool.shutdown(mode).wait_timeout(seconds(10)).expect("the pool ends");
    no_process_is_left(Duration::ZERO);
}

#[track_caller]
pub(crate) fn no_process_is_left(limit: Duration) {
    let gone = eventually(limit, || others().is_empty());
    assert!(gone, "left over: {:?}", others());
}

/// Many small calls, one after another in flight: afterwards the pool sends calls ahead.
#[allow(dead_code)]
pub(crate) fn warm_up(pool: &ProcessPool) {
    let tasks: Vec<_> = (0..2_000).map(|n| pool.submit(double { n })).collect();
    for task in tasks {
        task.wait().expect("a warm-up");
    }
}

// ---- Processes -----------------------------------------------------------------------------------------------------

/// A process as the system shows it.
#[derive(Clone, Debug)]
#[allow(dead_code)]
pub(crate) struct Seen {
    pub(crate) pid: u32,
    pub(crate) name: String,
    /// `R`, `S`, `T`, `Z` and so on.
    pub(crate) state: char,
    group: u32,
}

impl Seen {
    pub(crate) fn is_zombie(&self) -> bool {
        matches!(self.state, 'Z' | 'X')
    }
}

/// A process, if it exists.
pub(crate) fn look(pid: u32) -> Option<Seen> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name stands in parentheses, and may hold some itself.
    let (open, close) = (stat.find('(')?, stat.rfind(')')?);
    let mut rest = stat[close + 1..].split_whitespace();
    let state = rest.next()?.chars().next()?;
    let group = rest.nth(1)?.parse().ok()?;
    Some(Seen { pid, name: stat[open + 1..close].to_owned(), state, group })
}

/// All processes of this trial but this one, zombies included: the trial leads a process group of its own, which
/// whatever it starts stays in, orphans too.
pub(crate) fn others() -> Vec<Seen> {
    let own = look(std::process::id()).expect("/proc tells of this process");
    numbers_in("/proc").filter_map(look).filter(|seen| seen.group == own.group && seen.pid != own.pid).collect()
}

/// The entries of a folder that are numbers.
pub(crate) fn numbers_in(folder: impl AsRef<Path>) -> impl Iterator<Item = u32> {
    let entries = std::fs::read_dir(folder).expect("a folder of /proc");
    entries.flatten().filter_map(|entry| entry.file_name().to_str().and_then(|name| name.parse().ok()))
}

/// How many descriptors and threads this process has.
pub(crate) fn descriptors_and_threads() -> (usize, usize) {
    (numbers_in("/proc/self/fd").count(), numbers_in("/proc/self/task").count())
}

/// The same after a first pool has come and gone: what a runtime opens once in a process (tokio's pipe for signals) is
/// then there already.
#[allow(dead_code)]
pub(crate) fn settled_descriptors_and_threads(method: StartMethod) -> (usize, usize) {
    let threads = descriptors_and_threads().1;
    let first = pool(method, 1);
    goes_on(&first);
    ends_clean(&first, Shutdown::Drain);
    drop(first);
    assert!(eventually(seconds(5), || descriptors_and_threads().1 == threads));
    descriptors_and_threads()
}

/// The most memory this process has had, in MiB.
#[allow(dead_code)]
pub(crate) fn peak_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("/proc tells of this process");
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).expect("the peak");
    line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).expect("a number") / 1024
}

pub(crate) fn signal(pid: u32, signal: Signal) {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).expect("a process id");
    // Fails when it is gone already.
    let _ = kill_process(pid, signal);
}

/// The processes of a pool's workers.
pub(crate) fn pids(pool: &ProcessPool) -> Vec<u32> {
    pool.stats().workers.into_iter().filter_map(|worker| worker.pid).collect()
}

// ---- Tasks ---------------------------------------------------------------------------------------------------------

#[polypool::task]
pub(crate) fn pid() -> u32 {
    std::process::id()
}

/// Where this runs, after a gate.
#[polypool::task]
pub(crate) fn pass_pid(gate: Gate) -> u32 {
    gate.pass();
    std::process::id()
}

/// Arrives and never ends.
#[polypool::task]
pub(crate) fn spin(gate: Gate) {
    gate.arrive();
    loop {
        std::hint::spin_loop();
    }
}

/// The same for a task that SIGTERM does not impress.
#[polypool::task]
pub(crate) fn spin_through_sigterm(gate: Gate) {
    let noted = std::sync::Arc::default();
    signal_hook::flag::register(signal_hook::consts::SIGTERM, noted).expect("a handler of SIGTERM");
    spin(gate);
}

/// Ways to die.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Death {
    Abort,
    Segfault,
    Kill,
    Overflow,
    OutOfMemory,
    Exit(i32),
}

impl Death {
    /// What is asserted of the end: a code or a signal.
    #[allow(dead_code)]
    pub(crate) fn exit(self) -> polypool::WorkerExit {
        match self {
            Death::Abort | Death::Overflow | Death::OutOfMemory => polypool::WorkerExit::Signal(6),
            Death::Segfault => polypool::WorkerExit::Signal(11),
            Death::Kill => polypool::WorkerExit::Signal(9),
            Death::Exit(code) => polypool::WorkerExit::Code(code),
        }
    }
}

/// Dies.
#[polypool::task]
pub(crate) fn die(how: Death) -> u64 {
    match how {
        Death::Abort => std::process::abort(),
        Death::Segfault => loop {
            // More than once: Rust's handler takes the first one, and finds that no stack has overflowed.
            signal(std::process::id(), Signal::SEGV);
        },
        Death::Kill => loop {
            signal(std::process::id(), Signal::KILL);
        },
        Death::Overflow => overflow(0),
        Death::OutOfMemory => {
            let bytes: Vec<u8> = Vec::with_capacity(std::hint::black_box(isize::MAX as usize));
            bytes.capacity() as u64
        }
        Death::Exit(code) => std::process::exit(code),
    }
}

#[allow(unconditional_recursion)]
fn overflow(depth: u64) -> u64 {
    let array = std::hint::black_box([depth; 100]);
    overflow(array[50] + 1) + array[99]
}

/// Dies after a gate.
#[polypool::task]
pub(crate) fn pass_and_die(gate: Gate, how: Death) -> u64 {
    gate.pass();
    die(how)
}

/// Dies in the first `deaths` runs, and returns the number of the run.
#[polypool::task]
pub(crate) fn die_at_first(deaths: u32, traces: Traces) -> u32 {
    let attempt = context().attempt();
    traces.leave(format!("run {attempt}"));
    if attempt < deaths {
        die(Death::Abort);
    }
    attempt
}

/// A value that is fine where it is made, and has a fault elsewhere.
#[derive(Debug)]
pub(crate) struct Faulty {
    pub(crate) fault: Fault,
    /// Where it was made.
    home: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Fault {
    /// It can't be encoded.
    Encode,
    /// It can't be decoded elsewhere.
    Decode,
    /// Encoding it aborts the process.
    AbortInEncode,
    /// Decoding it elsewhere aborts the process.
    AbortInDecode,
    /// Encoding it panics.
    PanicInEncode,
    /// Decoding it elsewhere panics.
    PanicInDecode,
}

impl Faulty {
    pub(crate) fn new(fault: Fault) -> Self {
        Faulty { fault, home: std::process::id() }
    }
}

impl Serialize for Faulty {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.fault {
            Fault::Encode => Err(serde::ser::Error::custom("it won't be packed")),
            Fault::AbortInEncode => std::process::abort(),
            Fault::PanicInEncode => panic!("packing it panics"),
            fault => (fault, self.home).serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Faulty {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (fault, home) = <(Fault, u32)>::deserialize(deserializer)?;
        match fault {
            _ if home == std::process::id() => {}
            Fault::Decode => return Err(serde::de::Error::custom("it won't be unpacked")),
            Fault::AbortInDecode => std::process::abort(),
            Fault::PanicInDecode => panic!("unpacking it panics"),
            _ => {}
        }
        Ok(Faulty { fault, home })
    }
}

/// Takes a faulty value.
#[polypool::task]
pub(crate) fn take_faulty(value: Faulty) -> u32 {
    let _ = value.fault;
    std::process::id()
}

/// Makes one.
#[polypool::task]
pub(crate) fn make_faulty(fault: Fault) -> Faulty {
    Faulty::new(fault)
}

/// Fails with one.
#[polypool::task]
pub(crate) fn fail_with_faulty(fault: Fault) -> Result<u64, Faulty> {
    Err(Faulty::new(fault))
}

/// How often each text was left.
#[allow(dead_code)]
pub(crate) fn counted(traces: &Traces) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for text in traces.all() {
        *counts.entry(text).or_default() += 1;
    }
    counts
}
