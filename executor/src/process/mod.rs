//! The process pool: its handle and its builder. How it works is in `supervisor.rs`, and in `worker.rs` for the other
//! side of the border.

#[cfg(unix)]
mod direct;
mod entry;
#[cfg(target_os = "linux")]
mod forkserver;
#[cfg(all(fuzzing, unix))]
pub(crate) mod fuzzing;
#[cfg(unix)]
mod link;
#[cfg(all(unix, not(any(target_os = "linux", target_os = "android"))))]
mod no_ring;
#[cfg(unix)]
mod pool;
#[cfg(unix)]
mod start;
#[cfg(unix)]
mod supervisor;
#[cfg(unix)]
mod sys;
#[cfg(unix)]
mod transport;
mod wire;
#[cfg(unix)]
mod worker;

#[cfg(not(unix))]
#[path = "absent.rs"]
mod pool;

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::child::Watch;
use crate::codec::Message;
use crate::error::{BuildError, CodecError, SubmitError};
use crate::executor::{Executor, Refused, Shutdown, Slot, Stats};
use crate::future::Terminated;
use crate::state::Call;
use crate::task::{self, Task};
use async_trait::async_trait;

pub use entry::init;
#[doc(hidden)]
pub use entry::init_before_main;
pub(crate) use entry::{own_name, parent};
use pool::Pool;

/// How worker processes come to be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[doc(alias = "set_start_method")]
pub enum StartMethod {
    /// Each worker is the program started again. Works everywhere and takes about a millisecond.
    #[default]
    Spawn,
    /// The program is started again once, as a small server that has no threads and forks the workers. A worker then
    /// takes a fraction of a millisecond. A pool that has lost a worker keeps one more process ready from then on, which
    /// takes the place of the next one that is lost. Linux only; elsewhere building the pool fails.
    ForkServer,
}

/// An executor on worker processes: for work that may crash, hang or leak.
///
/// A worker is this program, started again; see [`init`](crate::init). Tasks and results cross the border in
/// MessagePack, and a function is found by its name: it takes [tasks](macro@crate::task), and neither closures nor
/// futures. A worker runs one task at a time; asynchronous tasks run there on a tokio runtime.
///
/// A task that crashes, or is cancelled or runs out of time while it runs, costs its worker, which is replaced; no
/// other task notices. Workers start on demand, inherit no descriptor but their own channel, standard output and
/// standard error, and end when this process ends, however it ends.
///
/// What a worker writes to stderr comes out on this process's stderr; the tail of it is in
/// [`WorkerLost`](crate::WorkerLost).
///
/// Clones are handles of the same pool. Dropping the last one lets the accepted work finish and then ends the workers;
/// [`shutdown`](Executor::shutdown) says more. What it promises is written at [`Executor`].
///
/// When *not* to use it: for tasks of a few microseconds one by one (take chunks, or a
/// [`ThreadPool`](crate::ThreadPool)), and as a sandbox: a worker has all rights of this process.
///
/// ```
/// # polypool::worker_hook!();
/// use polypool::{ExecutorExt, ProcessPool};
///
/// #[polypool::task]
/// fn square(n: u64) -> u64 {
///     n * n
/// }
///
/// #[polypool::main]
/// fn main() -> Result<(), Box<dyn std::error::Error>> {
///     let pool = ProcessPool::builder().workers(2).build()?;
///     assert_eq!(pool.submit(square { n: 12 }).wait()?, 144);
///     Ok(())
/// }
/// ```
#[derive(Clone)]
#[doc(alias = "ProcessPoolExecutor")]
pub struct ProcessPool {
    handle: Arc<Handle>,
}

/// What all clones share; its end is the end of the pool's last handle.
struct Handle {
    pool: Arc<Pool>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.pool.shut_down(Shutdown::Drain);
    }
}

impl ProcessPool {
    /// A pool with the default number of workers.
    ///
    /// # Errors
    /// See [`ProcessPoolBuilder::build`].
    pub fn new() -> Result<Self, BuildError> {
        Self::builder().build()
    }

    /// A pool made to measure.
    pub fn builder() -> ProcessPoolBuilder {
        ProcessPoolBuilder { config: Config::default(), initializer: None }
    }

    /// A pool of one worker, which has the name itself, and of whose process `watch` is told.
    pub(crate) fn of_one(name: String, watch: Arc<Watch>) -> Result<Self, BuildError> {
        let mut builder = Self::builder().workers(1).name_prefix(name);
        builder.config.watch = Some(watch);
        builder.build()
    }

    /// There is something new for the supervisor to look at.
    pub(crate) fn poke(&self) {
        self.handle.pool.poke();
    }
}

#[async_trait]
impl Executor for ProcessPool {
    fn submit_call(&self, call: Call, slot: Option<Slot>) -> Result<(), Refused> {
        self.handle.pool.submit(call, slot)
    }

    fn try_reserve_slot(&self) -> Result<Slot, SubmitError> {
        self.handle.pool.try_reserve()
    }

    async fn reserve_slot(&self) -> Result<Slot, SubmitError> {
        self.handle.pool.reserve().await
    }

    fn shutdown(&self, mode: Shutdown) -> Terminated {
        self.handle.pool.shut_down(mode);
        self.handle.pool.terminated()
    }

    fn stats(&self) -> Stats {
        self.handle.pool.stats()
    }

    fn handle(&self) -> Arc<dyn Executor> {
        Arc::new(self.clone())
    }
}

impl std::fmt::Debug for ProcessPool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ProcessPool").field("pool", &self.handle.pool).finish()
    }
}

#[derive(Clone, Debug)]
struct Config {
    workers: usize,
    prefix: String,
    start_method: StartMethod,
    executable: Option<PathBuf>,
    env: Vec<(OsString, OsString)>,
    current_dir: Option<PathBuf>,
    initializer: Option<Initializer>,
    max_tasks_per_worker: Option<usize>,
    max_message_size: u64,
    ring_size: usize,
    backlog: Option<usize>,
    handshake_timeout: Duration,
    kill_grace: Duration,
    /// Of a pool that is a single process: who is told of it.
    watch: Option<Arc<Watch>>,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            workers: crate::cores::cores(),
            prefix: "polypool".to_owned(),
            start_method: StartMethod::Spawn,
            executable: None,
            env: Vec::new(),
            current_dir: None,
            initializer: None,
            max_tasks_per_worker: None,
            max_message_size: 1 << 30,
            ring_size: 256 << 10,
            backlog: None,
            handshake_timeout: Duration::from_secs(10),
            kill_grace: Duration::from_millis(100),
            watch: None,
        }
    }
}

/// The call that each worker makes before its first task.
#[derive(Clone)]
struct Initializer {
    name: &'static str,
    signature: &'static str,
    payload: Message,
    /// Reads the encoded result.
    check: fn(Message) -> Result<(), String>,
}

impl std::fmt::Debug for Initializer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Initializer").field(&self.name).finish()
    }
}

/// What an initialiser may return: nothing, or a `Result` whose error can be shown.
pub trait InitializerOutput {
    /// The reason why the worker can't work, if it can't.
    ///
    /// # Errors
    /// The error of the initialiser, as text.
    fn into_result(self) -> Result<(), String>;
}

impl InitializerOutput for () {
    fn into_result(self) -> Result<(), String> {
        Ok(())
    }
}

impl<E: std::fmt::Display> InitializerOutput for Result<(), E> {
    fn into_result(self) -> Result<(), String> {
        self.map_err(|error| error.to_string())
    }
}

/// Makes a [`ProcessPool`].
#[derive(Debug)]
#[must_use = "a builder does nothing until .build()"]
pub struct ProcessPoolBuilder {
    config: Config,
    initializer: Option<Result<Initializer, CodecError>>,
}

impl ProcessPoolBuilder {
    /// How many workers there are at most, and so how many tasks run at once; at least 1. By default the number of
    /// cores that this process may use.
    pub fn workers(mut self, workers: usize) -> Self {
        self.config.workers = workers;
        self
    }

    /// The names of the workers, as `ps` shows them: `prefix-0`, `prefix-1` and so on, by default with `polypool`.
    pub fn name_prefix(mut self, prefix: impl Into<String>) -> Self {
        self.config.prefix = prefix.into();
        self
    }

    /// How worker processes come to be; by default [`StartMethod::Spawn`].
    pub fn start_method(mut self, method: StartMethod) -> Self {
        self.config.start_method = method;
        self
    }

    /// The program that is started as a worker, instead of this one: for plug-ins, whose host is not ours. It must
    /// call [`init`](crate::init) and hold the same tasks.
    pub fn worker_executable(mut self, path: impl Into<PathBuf>) -> Self {
        self.config.executable = Some(path.into());
        self
    }

    /// Sets a variable in the environment of the workers. They also have that of this process.
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.config.env.push((name.into(), value.into()));
        self
    }

    /// The working directory of the workers; by default that of this process.
    pub fn current_dir(mut self, path: impl Into<PathBuf>) -> Self {
        self.config.current_dir = Some(path.into());
        self
    }

    /// A task that each worker runs once, before its first other task. If it fails, by returning an error, a panic, or
    /// the death of the worker, the pool is broken, and everything pending says why.
    pub fn initializer<T>(mut self, task: T) -> Self
    where
        T: Task,
        T::Output: InitializerOutput,
    {
        self.initializer = Some(task::encode_argument(&task).map(|payload| Initializer {
            name: T::NAME,
            signature: T::SIGNATURE,
            payload,
            check: |result| match task::decode_output::<T>(result) {
                Ok(output) => output.into_result(),
                Err(error) => Err(error.to_string()),
            },
        }));
        self
    }

    /// After how many tasks a worker is replaced, at least 1, as a remedy for leaks; by default never. A chunk of a
    /// `map` counts as one.
    #[doc(alias("maxtasksperchild", "max_tasks_per_child"))]
    pub fn max_tasks_per_worker(mut self, tasks: usize) -> Self {
        self.config.max_tasks_per_worker = Some(tasks);
        self
    }

    /// The largest encoded argument or result in bytes, at most 4 GiB less 2 MiB; by default 1 GiB. What is larger is
    /// refused with [`CodecError::TooLarge`].
    pub fn max_message_size(mut self, bytes: u64) -> Self {
        self.config.max_message_size = bytes;
        self
    }

    /// How many bytes of calls a worker's ring holds, and as many of answers; by default 256 KiB. Rounded up to a power
    /// of two, of at least 4 KiB and at most 64 MiB.
    ///
    /// Calls and answers go through two rings in memory that this process and the worker share. Larger messages go
    /// through in pieces, so this limits neither them nor [`max_message_size`](ProcessPoolBuilder::max_message_size).
    /// With 0, and wherever such memory can't be had, they go through a socket, which costs system calls and wake-ups
    /// for each.
    pub fn ring_size(mut self, bytes: usize) -> Self {
        self.config.ring_size = bytes;
        self
    }

    /// How many tasks may wait, at least 1; by default any number. See "Backlog" at [`Executor`].
    pub fn backlog(mut self, tasks: usize) -> Self {
        self.config.backlog = Some(tasks);
        self
    }

    /// How long a new worker may take until it is ready for its first task, not counting the initialiser; by default
    /// 10 seconds.
    pub fn handshake_timeout(mut self, timeout: Duration) -> Self {
        self.config.handshake_timeout = timeout;
        self
    }

    /// How long a running task that was cancelled or ran out of time has to end by itself before its worker is killed;
    /// by default 100 milliseconds. Its future has resolved long before.
    pub fn kill_grace(mut self, grace: Duration) -> Self {
        self.config.kill_grace = grace;
        self
    }

    /// Makes the pool. No process is started yet.
    ///
    /// # Errors
    /// * [`BuildError::InvalidOption`] when a number is 0 or too large.
    /// * [`BuildError::NoEntry`] when this program can't start itself as a worker, because it never called
    ///   [`init`](crate::init), and [`BuildError::InsideForgottenWorker`] in a process that was started as a worker
    ///   and did not call it.
    /// * [`BuildError::DuplicateTask`] when two tasks of the program have one name.
    /// * [`BuildError::Initializer`] when the initialiser can't be encoded.
    /// * [`BuildError::Unsupported`] where there is no process pool (Windows, for now).
    pub fn build(mut self) -> Result<ProcessPool, BuildError> {
        let too_large = u64::from(u32::MAX) - 2 * wire::SLACK;
        let wrong = match &self.config {
            Config { workers: 0, .. } => Some("workers(0) can't work: a pool has at least 1 worker"),
            Config { backlog: Some(0), .. } => {
                Some("backlog(0) can't work: at least 1 task must be able to wait; leave it out for no limit")
            }
            Config { max_tasks_per_worker: Some(0), .. } => {
                Some("max_tasks_per_worker(0) can't work: a worker runs at least 1 task; leave it out for no limit")
            }
            Config { max_message_size: 0, .. } => {
                Some("max_message_size(0) can't work: even the smallest message has 1 byte")
            }
            Config { max_message_size, .. } if *max_message_size > too_large => {
                Some("max_message_size is at most 4 GiB less 2 MiB")
            }
            Config { handshake_timeout: Duration::ZERO, .. } => {
                Some("handshake_timeout(0) can't work: a process takes some time to start")
            }
            Config { start_method: StartMethod::ForkServer, .. } if !cfg!(target_os = "linux") => {
                Some("StartMethod::ForkServer needs Linux; take StartMethod::Spawn")
            }
            Config { prefix, .. } if prefix.contains('\0') => {
                Some("name_prefix can't hold a NUL: the system ends names there")
            }
            _ => None,
        };
        if let Some(what) = wrong {
            return Err(BuildError::InvalidOption(what));
        }
        if cfg!(not(unix)) {
            return Err(BuildError::Unsupported);
        }
        self.config.initializer = self.initializer.transpose().map_err(BuildError::Initializer)?;
        entry::check(self.config.executable.is_none())?;
        task::registry()?;
        crate::panic::install_hook();
        Ok(ProcessPool { handle: Arc::new(Handle { pool: Pool::new(self.config) }) })
    }
}
