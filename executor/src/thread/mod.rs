//! The thread pool: its handle and its builder. How it works is in `pool.rs`.

mod driver;
mod pool;
mod sleep;

/// The atomics of `sleep.rs`, in whose place the models have others.
mod sync {
    pub(super) use std::sync::atomic::{AtomicUsize, Ordering};
}

use std::future::Future;
use std::sync::Arc;

use async_trait::async_trait;

use crate::bundle::Ledger;
use crate::error::{BuildError, SubmitError};
use crate::executor::{Executor, Refused, Shutdown, Slot, Stats, submit_once};
use crate::future::{TaskFuture, Terminated};
use crate::job::{Block, Closure};
use crate::options::TaskOptions;
use crate::state::Call;

use pool::{Config, Pool};

/// By how many workers a pool may grow while its tasks block on other tasks; see "Waiting inside a task" at
/// [`Executor`].
pub const MAX_EXTRA_WORKERS: usize = 1_024;

/// An executor on threads of this process.
///
/// It takes [tasks](macro@crate::task), and also what can't leave the process: closures ([`spawn`](Self::spawn)) and
/// futures ([`spawn_async`](Self::spawn_async)). Blocking work runs on the workers, which start on demand: an idle one
/// is always used before a new one starts. Asynchronous work, including `async` tasks, is driven by a tokio runtime of
/// the pool's own (one thread, started with the first such task), so it runs whatever runtime the program uses, or
/// none.
///
/// Clones are handles of the same pool. Dropping the last one lets the accepted work finish and then ends the workers;
/// [`shutdown`](Executor::shutdown) says more. What it promises is written at [`Executor`].
///
/// When *not* to use it: for work that may crash or never end, since a thread can't be killed (take a
/// [`ProcessPool`](crate::ProcessPool)); and for splitting one computation over the cores, where rayon is at home.
///
/// ```
/// use polypool::ThreadPool;
///
/// let pool = ThreadPool::builder().workers(4).name_prefix("io").build()?;
/// let sum = pool.spawn(|| (1..=10).sum::<u32>());
/// assert_eq!(sum.wait()?, 55);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
#[doc(alias = "ThreadPoolExecutor")]
pub struct ThreadPool {
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

impl ThreadPool {
    /// A pool with the default number of workers.
    ///
    /// # Errors
    /// See [`ThreadPoolBuilder::build`].
    pub fn new() -> Result<Self, BuildError> {
        Self::builder().build()
    }

    /// A pool made to measure.
    pub fn builder() -> ThreadPoolBuilder {
        ThreadPoolBuilder { config: Config::default() }
    }

    /// Runs a closure on a worker.
    ///
    /// The closure may block. It can learn of its cancellation by [`context()`](crate::context()).
    pub fn spawn<F, T>(&self, closure: F) -> TaskFuture<T>
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        self.spawn_with(closure, TaskOptions::new())
    }

    /// Runs a closure on a worker, with options. `retries` is refused: a closure can run only once.
    pub fn spawn_with<F, T>(&self, closure: F, options: TaskOptions) -> TaskFuture<T>
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        submit_once(self, Closure(closure), options)
    }

    /// Runs a future on the pool's asynchronous side, where tokio's timers and sockets work.
    ///
    /// The future must not block: it shares its thread with the others. When it is cancelled, it is dropped at its
    /// next await.
    pub fn spawn_async<F>(&self, future: F) -> TaskFuture<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.spawn_async_with(future, TaskOptions::new())
    }

    /// Runs a future on the pool's asynchronous side, with options. `retries` is refused: a future can run only once.
    pub fn spawn_async_with<F>(&self, future: F, options: TaskOptions) -> TaskFuture<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        submit_once(self, Block(future), options)
    }
}

#[async_trait]
impl Executor for ThreadPool {
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

    fn chunk_parallelism(&self) -> Option<usize> {
        Some(self.handle.pool.workers())
    }

    fn bundles(&self) -> Option<Arc<Ledger>> {
        self.handle.pool.bundles()
    }

    fn handle(&self) -> Arc<dyn Executor> {
        Arc::new(self.clone())
    }
}

impl std::fmt::Debug for ThreadPool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ThreadPool").field("pool", &self.handle.pool).finish()
    }
}

/// Makes a [`ThreadPool`].
#[derive(Debug)]
#[must_use = "a builder does nothing until .build()"]
pub struct ThreadPoolBuilder {
    config: Config,
}

impl ThreadPoolBuilder {
    /// How many blocking tasks run at once, at least 1. By default `min(32, cores + 4)`, which is Python's default and
    /// suits work that mostly waits for disks and networks; for computing take the number of cores.
    pub fn workers(mut self, workers: usize) -> Self {
        self.config.workers = workers;
        self
    }

    /// The names of the threads: `prefix-0`, `prefix-1` and so on, by default with `polypool`. Linux shows the first
    /// 15 bytes.
    pub fn name_prefix(mut self, prefix: impl Into<String>) -> Self {
        self.config.prefix = prefix.into();
        self
    }

    /// Runs once in each worker before its first task, with the worker's number. If it fails or panics, the pool is
    /// broken, and everything pending says why.
    pub fn initializer<F, E>(mut self, initializer: F) -> Self
    where
        F: Fn(usize) -> Result<(), E> + Send + Sync + 'static,
        E: std::fmt::Display,
    {
        self.config.initializer = Some(Arc::new(move |index| initializer(index).map_err(|error| error.to_string())));
        self
    }

    /// How many tasks may wait, at least 1; by default any number. See "Backlog" at [`Executor`].
    pub fn backlog(mut self, tasks: usize) -> Self {
        self.config.backlog = Some(tasks);
        self
    }

    /// The stack of each worker in bytes; by default what `std` gives.
    pub fn stack_size(mut self, bytes: usize) -> Self {
        self.config.stack_size = Some(bytes);
        self
    }

    /// How many asynchronous tasks may run at once, at least 1; by default any number. The others wait in the backlog.
    pub fn async_limit(mut self, tasks: usize) -> Self {
        self.config.async_limit = tasks;
        self
    }

    /// How many threads drive asynchronous tasks, at least 1, which is the default and the fastest for work that
    /// mostly waits.
    pub fn async_threads(mut self, threads: usize) -> Self {
        self.config.async_threads = threads;
        self
    }

    /// Makes the pool. No thread is started yet.
    ///
    /// # Errors
    /// [`BuildError::InvalidOption`] when a number is 0 or the name holds a NUL, and
    /// [`BuildError::DuplicateTask`] when two tasks of the program have one name.
    pub fn build(self) -> Result<ThreadPool, BuildError> {
        let wrong = match &self.config {
            Config { workers: 0, .. } => Some("workers(0) can't work: a pool has at least 1 worker"),
            Config { backlog: Some(0), .. } => {
                Some("backlog(0) can't work: at least 1 task must be able to wait; leave it out for no limit")
            }
            Config { async_limit: 0, .. } => Some("async_limit(0) can't work: at least 1 task must be able to run"),
            Config { async_threads: 0, .. } => Some("async_threads(0) can't work: at least 1 thread is needed"),
            Config { prefix, .. } if prefix.contains('\0') => {
                Some("name_prefix can't hold a NUL: the system ends names there")
            }
            _ => None,
        };
        if let Some(what) = wrong {
            return Err(BuildError::InvalidOption(what));
        }
        crate::task::registry()?;
        crate::panic::install_hook();
        Ok(ThreadPool { handle: Arc::new(Handle { pool: Pool::new(self.config) }) })
    }
}
