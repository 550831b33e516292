//! The contract of executors: [`Executor`], which pools implement, and [`ExecutorExt`], which users call.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::OwnedSemaphorePermit;

use crate::bundle::Ledger;
use crate::error::{SubmitError, TaskError};
use crate::future::{TaskFuture, Terminated};
use crate::job::{Job, Single};
use crate::map::{Map, MapUnordered};
use crate::options::TaskOptions;
use crate::state::{Call, Cell};
use crate::task::Task;
use crate::timer::{self, Periodic};

/// Something that runs tasks: a [`ThreadPool`](crate::ThreadPool), a [`ProcessPool`](crate::ProcessPool), or an
/// `Arc<dyn Executor>` that a program picks at run time.
///
/// This trait is what an executor implements. What users call is in [`ExecutorExt`], which every executor has.
///
/// ```
/// use std::sync::Arc;
/// use polypool::{Executor, ExecutorExt, ThreadPool};
///
/// #[polypool::task]
/// fn double(n: u64) -> u64 {
///     n * 2
/// }
///
/// let pool: Arc<dyn Executor> = Arc::new(ThreadPool::new()?);
/// assert_eq!(pool.submit(double { n: 21 }).wait()?, 42);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # The contract
///
/// **Outcome.** Each accepted task gets exactly one [`Outcome`](crate::Outcome), whatever happens. A task that returns
/// a `Result` has succeeded with that value, be it `Err`. A panic is [`TaskError::Panicked`], with message, file and
/// line; the worker lives on.
///
/// **Order.** Tasks of one priority leave the backlog in the order they were submitted. With one worker, they start and
/// end in it. A process pool sends short tasks ahead to its workers in portions, so with several workers the order of
/// their starts is that of the submits only roughly; what was sent ahead has left the backlog.
///
/// **Happens-before.** What a thread did before `submit` happens before the task starts; what the task did happens
/// before its callbacks, and these before its waiters go on.
///
/// **Callbacks** ([`TaskFuture::on_done`]) run once each, in the order of registration, on the thread that decides the
/// outcome: the worker on threads, the pool's supervisor thread on processes, the clock of the pool on a timeout, or
/// the thread that cancels. On a finished task they run at once, on the registering thread. A panic in a callback is
/// reported by the panic hook and changes nothing else.
///
/// **Cancelling.** A *queued* task never runs; its arguments are dropped and its waiters released at once. A *running*
/// one resolves to [`TaskError::Cancelled`] at once. On threads, an asynchronous task stops at its next await; a
/// blocking one sees [`Context::is_cancelled`](crate::Context::is_cancelled) and otherwise runs on unseen. On
/// processes, the task gets a short grace in which it sees the same, then its worker is killed and replaced; nobody
/// else notices.
///
/// **Time.** [`TaskOptions::timeout`] bounds the running time, [`TaskOptions::deadline`] the whole; both stop the task
/// as a cancellation does. A timeout on a *wait* ends the wait and not the task.
///
/// **Retries.** [`TaskOptions::retries`] runs a task again after the loss of its worker, a panic or a timeout. Without
/// it, no task is ever run twice.
///
/// **Codec.** Where a task leaves the process, an argument or result that can't be encoded, can't be decoded or is too
/// large is an error on that task alone: [`TaskError::Codec`].
///
/// **Backlog.** It is unbounded unless the builder set a limit. Then [`ExecutorExt::submit`] on a full one gives a
/// future that has failed with [`SubmitError::Full`], [`ExecutorExt::try_submit`] gives the task back, and
/// [`ExecutorExt::reserve`] waits for room. `map` waits for room by itself.
///
/// **Shutdown.** See [`Shutdown`]. It is idempotent, may be called from any thread, and a stronger mode overrides an
/// earlier weaker one. Called from inside one of the executor's own tasks or callbacks, it begins the shutdown, and the
/// [`Terminated`] it returns is complete at once, because that task can't wait for its own end.
///
/// **Dropping** the last handle of a pool returns at once; accepted work still finishes, then the workers end.
///
/// **The end of the program.** When `main` returns, or the program is killed, its threads and worker processes end with
/// it, whatever they are doing: in Python's word, all workers are daemons. What must be finished before is waited for,
/// by its future or by `shutdown(Shutdown::Drain).wait()`.
///
/// **Broken.** When workers can't start (their initialiser fails, or they die several times in a row before their first
/// task), everything pending and everything submitted later fails with [`SubmitError::Broken`] and the reason.
///
/// **Waiting inside a task.** A task on a thread pool may block on other tasks of the same pool with the waits of this
/// library (`wait`, `blocking()`): for as long, the pool grows by one worker, so that it does not deadlock. It grows
/// by [`MAX_EXTRA_WORKERS`](crate::MAX_EXTRA_WORKERS) at most; the wait that would need one more panics, which fails
/// its task with a message that says so. A task in a worker process can't reach its own pool: handles of pools do not
/// travel. It may have pools of its own.
#[async_trait]
pub trait Executor: std::fmt::Debug + Send + Sync + 'static {
    /// Takes a call into the backlog. `slot` is a place that was reserved for it; without one, a bounded backlog may
    /// be full.
    ///
    /// # Errors
    /// The call comes back with the reason.
    fn submit_call(&self, call: Call, slot: Option<Slot>) -> Result<(), Refused>;

    /// A place in the backlog, if there is one now.
    ///
    /// # Errors
    /// [`SubmitError::Full`], [`SubmitError::ShutDown`] or [`SubmitError::Broken`].
    fn try_reserve_slot(&self) -> Result<Slot, SubmitError>;

    /// A place in the backlog, as soon as there is one.
    ///
    /// # Errors
    /// [`SubmitError::ShutDown`] or [`SubmitError::Broken`], also when that happens during the wait.
    ///
    /// # Cancellation safety
    /// Dropping the future gives up its place in the queue and nothing else.
    async fn reserve_slot(&self) -> Result<Slot, SubmitError>;

    /// Begins to shut down, at once and not only when the returned future is awaited.
    fn shutdown(&self, mode: Shutdown) -> Terminated;

    /// What the executor is doing.
    fn stats(&self) -> Stats;

    /// For a [`map`](ExecutorExt::map) that may put elements together into chunks by itself, how many chunks can run at once.
    /// `None` (the default): it may not. It may where that costs nothing but time, as on threads; where the elements of a chunk share
    /// the fate of a worker, the user has to ask for chunks.
    fn chunk_parallelism(&self) -> Option<usize> {
        None
    }

    /// Where a call may be several tasks that workers take one by one: what those who submit such calls need.
    #[doc(hidden)]
    fn bundles(&self) -> Option<Arc<Ledger>> {
        None
    }

    /// Another handle of the same executor.
    fn handle(&self) -> Arc<dyn Executor>;
}

/// How an executor ends. Whatever the mode, nothing is accepted any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Shutdown {
    /// Everything accepted is run to its end.
    Drain,
    /// What runs is run to its end; what is queued is cancelled.
    CancelQueued,
    /// Everything is cancelled. Worker processes are killed. A blocking closure on a thread can't be: its future
    /// resolves, and the wait for the shutdown does not wait for it.
    Now,
}

/// What an executor is doing, at one moment.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Stats {
    /// Tasks in the backlog, those that were cancelled there not counted.
    pub queued: usize,
    /// Tasks that workers have started and not ended.
    pub running: usize,
    /// Tasks accepted so far.
    pub submitted: u64,
    /// Runs that workers have ended so far, whatever their outcome.
    pub completed: u64,
    /// Tasks that were cancelled, or ran out of time, before any worker started them.
    pub skipped: u64,
    /// Runs that were repeated because of `retries`.
    pub retried: u64,
    /// Worker processes that died or were killed and had to be replaced.
    pub workers_lost: u64,
    /// The workers there are now.
    pub workers: Vec<WorkerStats>,
}

/// One worker.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct WorkerStats {
    /// Its number within the pool, from 0; a worker that replaces another one gets a new number.
    pub index: usize,
    /// Its name, as the operating system shows it.
    pub name: String,
    /// Its process id, if it is a process.
    pub pid: Option<u32>,
    /// Whether it is running a task.
    pub busy: bool,
    /// The tasks it has ended.
    pub completed: u64,
}

/// A place in a backlog, held for one task.
#[derive(Debug, Default)]
#[must_use = "dropping a slot gives the place back"]
pub struct Slot {
    pub(crate) permit: Option<OwnedSemaphorePermit>,
}

/// A call that was not accepted, and why.
#[derive(Debug)]
pub struct Refused {
    /// The call.
    pub call: Call,
    /// The reason.
    pub error: SubmitError,
}

/// A task that was not accepted, and why.
#[derive(thiserror::Error)]
#[error("{error}")]
pub struct TrySubmitError<T> {
    /// The task, to be submitted again.
    pub task: T,
    /// The reason.
    #[source]
    pub error: SubmitError,
}

impl<T> std::fmt::Debug for TrySubmitError<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TrySubmitError").field("error", &self.error).finish_non_exhaustive()
    }
}

/// What users call on an executor.
pub trait ExecutorExt: Executor {
    /// Runs a task. A refusal surfaces on the future, as [`TaskError::Rejected`].
    ///
    /// ```
    /// # use polypool::{ExecutorExt, ThreadPool};
    /// #[polypool::task]
    /// fn length(text: String) -> usize {
    ///     text.len()
    /// }
    ///
    /// let pool = ThreadPool::new()?;
    /// assert_eq!(pool.submit(length { text: "four".into() }).wait()?, 4);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    fn submit<T: Task>(&self, task: T) -> TaskFuture<T::Output> {
        self.submit_with(task, TaskOptions::new())
    }

    /// Runs a task with options.
    fn submit_with<T: Task>(&self, task: T, options: TaskOptions) -> TaskFuture<T::Output> {
        submit_job(self, Single(task), options, None)
    }

    /// Runs a task, if the backlog has room.
    ///
    /// # Errors
    /// Gives the task back when the backlog is full, and when the executor is shut down or broken.
    fn try_submit<T: Task>(&self, task: T) -> Result<TaskFuture<T::Output>, TrySubmitError<T>> {
        match self.try_reserve_slot() {
            Ok(slot) => Ok(submit_job(self, Single(task), TaskOptions::new(), Some(slot))),
            Err(error) => Err(TrySubmitError { task, error }),
        }
    }

    /// Runs a task after `delay`: then it enters the backlog. Python's `threading.Timer`.
    ///
    /// Until then it counts as queued, and is no business of the executor's: [`cancel`](TaskFuture::cancel) takes it
    /// back for good, and the executor may refuse it when its time comes. It keeps a handle of the executor, so that
    /// dropping all others is no reason to refuse it. [`deadline`](TaskOptions::deadline) is looked at when the time
    /// has come.
    ///
    /// Nothing runs early. How late it runs is up to the machine and the backlog. A program that ends does not
    /// wait for what is delayed; whoever wants that waits for the future.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use polypool::{ExecutorExt, ThreadPool};
    /// #[polypool::task]
    /// fn remind(of: String) -> String {
    ///     format!("don't forget {of}")
    /// }
    ///
    /// let pool = ThreadPool::new()?;
    /// let tea = pool.submit_after(Duration::from_millis(10), remind { of: "the tea".into() });
    /// let taxes = pool.submit_after(Duration::from_secs(3_600), remind { of: "taxes".into() });
    /// assert!(taxes.cancel()); // never starts
    /// assert_eq!(tea.wait()?, "don't forget the tea");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[doc(alias = "Timer")]
    fn submit_after<T: Task>(&self, delay: Duration, task: T) -> TaskFuture<T::Output> {
        self.submit_after_with(delay, task, TaskOptions::new())
    }

    /// Runs a task after `delay`, with options.
    fn submit_after_with<T: Task>(&self, delay: Duration, task: T, options: TaskOptions) -> TaskFuture<T::Output> {
        timer::submit_after(self.handle(), delay, Single(task), options)
    }

    /// Runs a task every `period`, for the first time after one period, until the [`Periodic`] is cancelled or dropped
    /// or the executor is shut down.
    ///
    /// `make` makes the task of each run. It is called on a thread that all timers of the program share, so it should
    /// be short; the run itself is the executor's.
    ///
    /// * **Drift**: there is none. Ticks lie on a grid that begins with this call.
    /// * **Missed ticks**: a run that has not ended, also one that still waits in the backlog, is never joined by a
    ///   second one; the tick is left out and counted, as is one for which the backlog is full. After a delay of the
    ///   whole machine, ticks that have gone by are left out and not made up for.
    /// * **Failures**: a run that fails is counted, and the next tick comes all the same.
    ///
    /// A period under a millisecond counts as one millisecond.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use polypool::{ExecutorExt, ThreadPool};
    /// #[polypool::task]
    /// fn heartbeat() {}
    ///
    /// let pool = ThreadPool::new()?;
    /// let beating = pool.submit_every(Duration::from_millis(5), || heartbeat {});
    /// while beating.ticks() < 3 {
    ///     std::thread::yield_now();
    /// }
    /// assert!(beating.cancel()); // no run starts any more
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    fn submit_every<T: Task>(&self, period: Duration, mut make: impl FnMut() -> T + Send + 'static) -> Periodic {
        timer::submit_every(self.handle(), period, move || Single(make()))
    }

    /// Waits for room in the backlog, and holds it for one task.
    ///
    /// ```
    /// # use polypool::{ExecutorExt, ThreadPool};
    /// # #[polypool::task]
    /// # fn length(text: String) -> usize {
    /// #     text.len()
    /// # }
    /// # #[polypool::main]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let pool = ThreadPool::builder().backlog(100).build()?;
    /// let place = pool.reserve().await?;
    /// assert_eq!(place.submit(length { text: "four".into() }).await?, 4);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`SubmitError::ShutDown`] or [`SubmitError::Broken`], also when that happens during the wait.
    ///
    /// # Cancellation safety
    /// Dropping the future gives up its place in the queue and nothing else.
    fn reserve(&self) -> impl Future<Output = Result<Reservation, SubmitError>> + Send {
        let executor = self.handle();
        async move {
            let slot = executor.reserve_slot().await?;
            Ok(Reservation { executor, slot })
        }
    }

    /// Runs many tasks and gives their outcomes in the order of the tasks, as a lazily pulled stream. See [`Map`].
    fn map<I>(&self, tasks: I) -> Map<I::IntoIter>
    where
        I: IntoIterator,
        I::Item: Task,
    {
        Map::new(self.handle(), tasks.into_iter())
    }

    /// The same in the order in which the tasks end. See [`MapUnordered`].
    fn map_unordered<I>(&self, tasks: I) -> MapUnordered<I::IntoIter>
    where
        I: IntoIterator,
        I::Item: Task,
    {
        MapUnordered::new(self.handle(), tasks.into_iter())
    }
}

impl<E: Executor + ?Sized> ExecutorExt for E {}

/// Makes the pair of future and call, and hands the call over.
pub(crate) fn submit_job<J: Job>(
    executor: &(impl Executor + ?Sized),
    job: J,
    options: TaskOptions,
    slot: Option<Slot>,
) -> TaskFuture<J::Output> {
    let cell = Cell::new(job, options);
    let future = TaskFuture::new(cell.clone());
    if let Err(refused) = executor.submit_call(Call::new(cell), slot) {
        refused.call.reject(refused.error);
    }
    future
}

/// A place in the backlog of an executor, from [`ExecutorExt::reserve`]. Dropping it gives the place back.
#[derive(Debug)]
#[must_use = "dropping a reservation gives the place back"]
pub struct Reservation {
    executor: Arc<dyn Executor>,
    slot: Slot,
}

impl Reservation {
    /// Runs a task in the reserved place.
    pub fn submit<T: Task>(self, task: T) -> TaskFuture<T::Output> {
        self.submit_with(task, TaskOptions::new())
    }

    /// Runs a task in the reserved place, with options.
    pub fn submit_with<T: Task>(self, task: T, options: TaskOptions) -> TaskFuture<T::Output> {
        submit_job(&*self.executor, Single(task), options, Some(self.slot))
    }
}

#[async_trait]
impl<E: Executor + ?Sized> Executor for Arc<E> {
    fn submit_call(&self, call: Call, slot: Option<Slot>) -> Result<(), Refused> {
        (**self).submit_call(call, slot)
    }

    fn try_reserve_slot(&self) -> Result<Slot, SubmitError> {
        (**self).try_reserve_slot()
    }

    async fn reserve_slot(&self) -> Result<Slot, SubmitError> {
        (**self).reserve_slot().await
    }

    fn shutdown(&self, mode: Shutdown) -> Terminated {
        (**self).shutdown(mode)
    }

    fn stats(&self) -> Stats {
        (**self).stats()
    }

    fn chunk_parallelism(&self) -> Option<usize> {
        (**self).chunk_parallelism()
    }

    fn bundles(&self) -> Option<Arc<Ledger>> {
        (**self).bundles()
    }

    fn handle(&self) -> Arc<dyn Executor> {
        (**self).handle()
    }
}

/// What is wrong with an option, as a future that has failed.
pub(crate) fn invalid<T: Send + 'static>(what: &'static str) -> TaskFuture<T> {
    TaskFuture::failed(TaskError::InvalidOption(what))
}

/// Refuses a closure that asks for what only a task can have.
pub(crate) fn submit_once<J: Job>(
    executor: &(impl Executor + ?Sized),
    job: J,
    options: TaskOptions,
) -> TaskFuture<J::Output> {
    if options.retries > 0 {
        return invalid("retries need a #[polypool::task]: a closure or future can run only once");
    }
    submit_job(executor, job, options, None)
}

/// Whether a pool accepts work, and how it ends; the part of a pool's state that both pools share.
#[derive(Clone, Debug, Default)]
pub(crate) struct Phase {
    shutdown: Option<Shutdown>,
    broken: Option<Arc<str>>,
}

impl Phase {
    pub(crate) fn check(&self) -> Result<(), SubmitError> {
        match (&self.broken, self.shutdown) {
            (Some(reason), _) => Err(SubmitError::Broken(reason.clone())),
            (None, Some(_)) => Err(SubmitError::ShutDown),
            (None, None) => Ok(()),
        }
    }

    /// Goes on to a stronger mode; `true` when this changed something.
    pub(crate) fn shut_down(&mut self, mode: Shutdown) -> bool {
        let stronger = self.shutdown.is_none_or(|before| before < mode);
        if stronger {
            self.shutdown = Some(mode);
        }
        stronger
    }

    pub(crate) fn break_down(&mut self, reason: Arc<str>) {
        self.broken.get_or_insert(reason);
    }

    /// Why a call that was accepted before must not run any more, if that is so: a broken pool runs nothing, and a
    /// shutdown that cancels what is queued also cancels what is put back.
    pub(crate) fn refuses_again(&self) -> Option<TaskError> {
        match (&self.broken, self.shutdown) {
            (Some(reason), _) => Some(TaskError::Rejected(SubmitError::Broken(reason.clone()))),
            (None, Some(mode)) if mode >= Shutdown::CancelQueued => Some(TaskError::cancelled()),
            _ => None,
        }
    }

    pub(crate) fn is_open(&self) -> bool {
        self.check().is_ok()
    }

    pub(crate) fn is_broken(&self) -> bool {
        self.broken.is_some()
    }

    pub(crate) fn mode(&self) -> Option<Shutdown> {
        self.shutdown
    }
}

/// Which pool a thread works for, so that a shutdown that is asked for inside a task is not waited for there.
pub(crate) mod inside {
    use std::cell::Cell;
    use std::sync::atomic::{AtomicU64, Ordering};

    /// The number of a pool, unique in this process.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub(crate) struct PoolId(u64);

    thread_local! {
        static WORKS_FOR: Cell<Option<PoolId>> = const { Cell::new(None) };
    }

    impl PoolId {
        pub(crate) fn new() -> Self {
            static NEXT: AtomicU64 = AtomicU64::new(1);
            PoolId(NEXT.fetch_add(1, Ordering::Relaxed))
        }

        /// This thread works for the pool, from now on.
        pub(crate) fn enter(self) {
            WORKS_FOR.set(Some(self));
        }

        /// This thread has worked for the pool for a moment, and works for none from now on.
        pub(crate) fn leave() {
            WORKS_FOR.set(None);
        }

        /// Whether this thread works for any pool.
        pub(crate) fn is_anywhere() -> bool {
            WORKS_FOR.get().is_some()
        }

        /// Whether this thread works for the pool.
        pub(crate) fn is_here(self) -> bool {
            WORKS_FOR.get() == Some(self)
        }
    }
}
