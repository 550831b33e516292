//! A process as a handle: one [task](macro@crate::task) in a process of its own, Python's `multiprocessing.Process`.
//!
//! Under it lies a [`ProcessPool`] of one worker and one task, which was shut down as soon as the task was in it. So
//! everything that holds for worker processes holds here: the way arguments travel, the tail of stderr, that nothing is
//! left as a zombie, and that no process outlives the program. What a pool hides, its process, the supervisor tells a
//! [`Watch`]: the number, and how it ended. Signals go the other way, because only the supervisor knows that the number
//! is still that process's own.

use std::sync::Arc;
use std::time::Duration;

use futures_ext::Elapsed;
use parking_lot::{Condvar, Mutex};

use crate::error::{BuildError, TaskError, WorkerExit};
use crate::executor::{Executor, ExecutorExt, Shutdown};
use crate::future::{TaskFuture, Terminated};
use crate::process::{self, ProcessPool};
use crate::task::Task;

const SIGTERM: i32 = 15;
const SIGKILL: i32 = 9;

/// The processes that were started and, when somebody last looked, alive.
static CHILDREN: Mutex<Vec<Process>> = Mutex::new(Vec::new());

/// A process that runs one task, and its handle: clones mean the same process.
///
/// [`start`](Process::start) gives the handle, and the future of the task beside it. The value, a panic, the death of
/// the process ([`TaskError::WorkerLost`]) are in the future; the handle knows the process.
///
/// | Python | here |
/// | --- | --- |
/// | `Process(target=f, args=(1,), name="x")`, `start()` | `Process::builder().name("x").start(f { n: 1 })` |
/// | `join()`, `join(timeout)` | [`join`](Self::join), [`join_timeout`](Self::join_timeout), or [`ended`](Self::ended) in asynchronous code |
/// | `is_alive()`, `pid`, `name`, `daemon` | [`is_alive`](Self::is_alive), [`pid`](Self::pid), [`name`](Self::name), [`is_daemon`](Self::is_daemon) |
/// | `exitcode` | [`exit`](Self::exit), [`exit_code`](Self::exit_code), [`exit_signal`](Self::exit_signal). A task that panics ends its process with code 0: the future has the panic |
/// | `terminate()`, `kill()` | [`terminate`](Self::terminate), [`kill`](Self::kill) |
/// | the return value is lost | it is in the future |
/// | `current_process()`, `parent_process()`, `active_children()` | [`current_process`], [`parent_process`], [`active_children`] |
/// | what Python does when the program ends | [`join_children`] |
///
/// **Nothing outlives the program.** However it ends, by SIGKILL too, its processes end with it. In this, all of them
/// are what Python calls daemons. Dropping the handle and the future has no effect: the task is run to its end, if the
/// program lasts that long. [`join_children`] at the end of `main` waits for it.
///
/// Cancelling the future stops the task as in every pool: after a short grace its process is killed.
///
/// When *not* to use it: for many short tasks. A process takes a millisecond or more to start, and a thread of this
/// program to look after it; a [`ProcessPool`] uses its workers again.
///
/// ```
/// # polypool::worker_hook!();
/// use polypool::{Process, current_process};
///
/// #[polypool::task]
/// fn who() -> String {
///     current_process().name().to_owned()
/// }
///
/// #[polypool::main]
/// fn main() -> Result<(), Box<dyn std::error::Error>> {
///     let (process, name) = Process::builder().name("worker").start(who {})?;
///     assert_eq!(name.wait()?, "worker");
///     process.join();
///     assert_eq!(process.exit_code(), Some(0));
///     Ok(())
/// }
/// ```
#[derive(Clone)]
pub struct Process {
    inner: Arc<Inner>,
}

struct Inner {
    name: String,
    is_daemon: bool,
    watch: Arc<Watch>,
    pool: ProcessPool,
}

impl Process {
    /// Starts a process that runs the task, and ends with it.
    ///
    /// Blocks this thread until the process exists, as `std::process::Command::spawn` does.
    ///
    /// # Errors
    /// See [`ProcessBuilder::start`].
    pub fn start<T: Task>(task: T) -> Result<(Process, TaskFuture<T::Output>), StartError> {
        Self::builder().start(task)
    }

    /// A process made to measure.
    pub fn builder() -> ProcessBuilder {
        ProcessBuilder { name: None, is_daemon: false }
    }

    /// Its number, also when it has ended.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.inner.watch.state.lock().pid.unwrap_or(0)
    }

    /// Its name, as `ps` shows it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// Whether [`join_children`] terminates it instead of waiting for it.
    #[must_use]
    pub fn is_daemon(&self) -> bool {
        self.inner.is_daemon
    }

    /// Whether it has not ended yet. One that has is no zombie: it has been waited for.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.exit().is_none()
    }

    /// How it ended; `None` while it lives.
    #[must_use]
    pub fn exit(&self) -> Option<WorkerExit> {
        self.inner.watch.state.lock().exit.clone()
    }

    /// The code it exited with, unless it lives or was killed. It is 0 when the task returned or panicked, which is
    /// told by the future.
    #[must_use]
    #[doc(alias = "exitcode")]
    pub fn exit_code(&self) -> Option<i32> {
        match self.exit() {
            Some(WorkerExit::Code(code)) => Some(code),
            _ => None,
        }
    }

    /// The signal it was killed by, if it was.
    #[must_use]
    pub fn exit_signal(&self) -> Option<i32> {
        match self.exit() {
            Some(WorkerExit::Signal(signal)) => Some(signal),
            _ => None,
        }
    }

    /// Blocks this thread until it has ended.
    ///
    /// In a callback of its own future it returns at once, with [`WorkerExit::Unknown`]: that callback is called by the
    /// very thread that would have to notice the end.
    #[allow(clippy::must_use_candidate)]
    pub fn join(&self) -> WorkerExit {
        self.terminated().wait();
        self.how()
    }

    /// Blocks this thread until it has ended or the time is up. That ends the wait and not the process.
    ///
    /// # Errors
    /// [`Elapsed`] when the time is up.
    pub fn join_timeout(&self, timeout: Duration) -> Result<WorkerExit, Elapsed> {
        self.terminated().wait_timeout(timeout)?;
        Ok(self.how())
    }

    /// Completes when it has ended.
    ///
    /// # Cancellation safety
    /// Dropping the future has no effect.
    pub async fn ended(&self) -> WorkerExit {
        self.terminated().await;
        self.how()
    }

    /// Asks it to end, by SIGTERM, which ends it unless the task has a handler for that. If the task had begun, its
    /// outcome is [`TaskError::WorkerLost`]; otherwise it never begins and is cancelled. No effect on one that has
    /// ended.
    pub fn terminate(&self) {
        self.signal(SIGTERM);
    }

    /// Ends it, by SIGKILL. The outcome of the task is as with [`terminate`](Self::terminate).
    pub fn kill(&self) {
        self.signal(SIGKILL);
    }

    fn signal(&self, signal: i32) {
        let mut state = self.inner.watch.state.lock();
        if state.exit.is_some() {
            return;
        }
        state.signals.push(signal);
        drop(state);
        // A process that dies before its task has begun would be replaced, like any worker. This takes the task back,
        // unless it has begun; and it wakes the supervisor, which sends the signal before it ends anything.
        drop(self.inner.pool.shutdown(Shutdown::CancelQueued));
        self.inner.pool.poke();
    }

    fn terminated(&self) -> Terminated {
        self.inner.pool.shutdown(Shutdown::Drain)
    }

    fn how(&self) -> WorkerExit {
        self.exit().unwrap_or(WorkerExit::Unknown)
    }
}

impl std::fmt::Debug for Process {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Process")
            .field("name", &self.inner.name)
            .field("pid", &self.pid())
            .field("exit", &self.exit())
            .finish_non_exhaustive()
    }
}

/// Makes a [`Process`].
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until .start(task)"]
pub struct ProcessBuilder {
    name: Option<String>,
    is_daemon: bool,
}

impl ProcessBuilder {
    /// Its name, as `ps` and [`current_process`] show it; by default that of the task's function.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Whether [`join_children`] terminates it instead of waiting for it; by default it does not.
    pub fn daemon(mut self, is_daemon: bool) -> Self {
        self.is_daemon = is_daemon;
        self
    }

    /// Starts the process.
    ///
    /// # Errors
    /// * [`StartError::Build`] when the program can't start itself as a worker, as
    ///   [`ProcessPoolBuilder::build`](crate::ProcessPoolBuilder::build) says, or the name holds a NUL.
    /// * [`StartError::Task`] when the arguments can't be encoded ([`TaskError::Codec`]), or the system has no process
    ///   for it ([`TaskError::Rejected`]).
    pub fn start<T: Task>(self, task: T) -> Result<(Process, TaskFuture<T::Output>), StartError> {
        let name = self.name.unwrap_or_else(|| T::NAME.rsplit("::").next().unwrap_or_default().to_owned());
        let watch = Arc::<Watch>::default();
        let pool = ProcessPool::of_one(name.clone(), watch.clone())?;
        let future = pool.submit(task);
        let settled = watch.clone();
        future.on_done(move |_| settled.settle());
        drop(pool.shutdown(Shutdown::Drain));
        if !watch.has_started() {
            // There was no process, so there is no value.
            return Err(StartError::Task(future.wait().err().unwrap_or(TaskError::Abandoned)));
        }
        let inner = Inner { name, is_daemon: self.is_daemon, watch, pool };
        let process = Process { inner: Arc::new(inner) };
        let mut children = CHILDREN.lock();
        children.retain(Process::is_alive);
        children.push(process.clone());
        Ok((process, future))
    }
}

/// Why a process was not started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The program can't start itself again.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// The task could not be handed over.
    #[error(transparent)]
    Task(TaskError),
}

/// The processes of [`Process`] that live now. Workers of pools are not among them: their pool's
/// [`stats`](Executor::stats) tell of them.
#[must_use]
pub fn active_children() -> Vec<Process> {
    let mut children = CHILDREN.lock();
    children.retain(Process::is_alive);
    children.clone()
}

/// What Python does when a program ends: terminates the [daemons](ProcessBuilder::daemon) among the processes and
/// blocks this thread until all of them have ended. For the last line of `main`; without it, they all end with the
/// program.
///
/// ```
/// # polypool::worker_hook!();
/// use polypool::{Process, join_children};
///
/// #[polypool::task]
/// fn save() {}
///
/// #[polypool::task]
/// fn watch() {
///     loop {
///         std::thread::park();
///     }
/// }
///
/// #[polypool::main]
/// fn main() -> Result<(), Box<dyn std::error::Error>> {
///     let (saving, _) = Process::start(save {})?;
///     let (watching, _) = Process::builder().daemon(true).start(watch {})?;
///     join_children();
///     assert_eq!((saving.exit_code(), watching.exit_signal()), (Some(0), Some(15)));
///     Ok(())
/// }
/// ```
pub fn join_children() {
    let children = active_children();
    for child in children.iter().filter(|child| child.is_daemon()) {
        child.terminate();
    }
    for child in children {
        child.join();
    }
}

/// This process, and who it is to others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessInfo {
    name: String,
    pid: u32,
}

impl ProcessInfo {
    /// The name of the worker, or of the [`Process`]; `main` in the program itself.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its number.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }
}

/// The process that this is called in.
#[must_use]
pub fn current_process() -> ProcessInfo {
    ProcessInfo { name: process::own_name().unwrap_or("main").to_owned(), pid: std::process::id() }
}

/// The number of the process that this one was started by, if it is a worker or a [`Process`]; `None` in the program
/// itself.
#[must_use]
pub fn parent_process() -> Option<u32> {
    process::parent()
}

/// What the supervisor says of the process, and what is to be sent to it.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    state: Mutex<WatchState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct WatchState {
    pid: Option<u32>,
    exit: Option<WorkerExit>,
    signals: Vec<i32>,
    /// The task has its outcome.
    is_settled: bool,
}

impl Watch {
    /// There is a process.
    pub(crate) fn started(&self, pid: u32) {
        let mut state = self.state.lock();
        state.pid = Some(pid);
        state.exit = None;
        drop(state);
        self.changed.notify_all();
    }

    /// It has ended, and has been waited for.
    pub(crate) fn ended(&self, exit: WorkerExit) {
        self.state.lock().exit = Some(exit);
    }

    /// What is to be sent to it.
    pub(crate) fn take_signals(&self) -> Vec<i32> {
        std::mem::take(&mut self.state.lock().signals)
    }

    fn settle(&self) {
        self.state.lock().is_settled = true;
        self.changed.notify_all();
    }

    /// Waits until there is a process; `false` when there won't be one.
    fn has_started(&self) -> bool {
        let mut state = self.state.lock();
        while state.pid.is_none() && !state.is_settled {
            self.changed.wait(&mut state);
        }
        state.pid.is_some()
    }
}
