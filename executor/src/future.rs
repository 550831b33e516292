//! The two ends of a task: [`TaskFuture`], by which one waits for it, and [`Completer`], by which it is completed.

use std::borrow::Cow;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use futures_core::future::FusedFuture;
use futures_ext::{Elapsed, Tagged, Timeout};

use crate::context::Progress;
use crate::error::{Outcome, TaskError};
use crate::job::Promise;
use crate::options::TaskOptions;
use crate::state::{AnyCell, Cell, Ended, Observed, Promised, TaskId, TaskState};

/// The outcome of a task that may still be queued or running.
///
/// Await it under any runtime, or block with [`wait`](TaskFuture::wait) where there is none. Awaiting it uses none of
/// tokio's cooperative budget. The value is handed out once; afterwards every read says
/// [`TaskError::OutcomeTaken`]. For several readers there is [`futures_util::future::FutureExt::shared`].
///
/// Dropping it *detaches*: the task still runs, and its outcome is dropped. [`cancel_on_drop`](Self::cancel_on_drop)
/// cancels instead.
///
/// # Cancellation safety
/// Polling it by reference (`&mut future`) and going away loses nothing: the outcome stays until it is read.
#[must_use = "dropping a TaskFuture detaches the task: nobody learns its outcome; call .detach() if that is meant"]
pub struct TaskFuture<T> {
    cell: Arc<dyn Observed<T>>,
    cancel_on_drop: bool,
    taken: bool,
}

/// How often a blocking wait looks before it asks to be woken: for about a microsecond.
const LOOKS: u32 = 32;

/// Whoever waits for less than this doesn't fetch the outcome, which may take a part of it.
const FETCH_FROM: Duration = Duration::from_millis(1);

impl<T: Send + 'static> TaskFuture<T> {
    pub(crate) fn new(cell: Arc<dyn Observed<T>>) -> Self {
        TaskFuture { cell, cancel_on_drop: false, taken: false }
    }

    /// A future and the completer that decides its outcome: the way to write an executor of one's own, or to make
    /// something that is no task look like one.
    ///
    /// ```
    /// use polypool::TaskFuture;
    ///
    /// let (completer, future) = TaskFuture::pair();
    /// std::thread::spawn(move || completer.complete(Ok(7)));
    /// assert_eq!(future.wait()?, 7);
    /// # Ok::<(), polypool::TaskError>(())
    /// ```
    pub fn pair() -> (Completer<T>, TaskFuture<T>) {
        Self::pair_with(TaskOptions::new())
    }

    /// The same, with the name in `options`; the other options are the business of executors and have no effect.
    pub fn pair_with(options: TaskOptions) -> (Completer<T>, TaskFuture<T>) {
        let cell = Cell::new(Promise::<T>::new(), options);
        (Completer { cell: Some(cell.clone()) }, TaskFuture::new(cell))
    }

    /// A future that has failed already.
    pub(crate) fn failed(error: TaskError) -> Self {
        let (completer, future) = Self::pair();
        let _ = completer.complete(Err(error));
        future
    }

    /// Blocks this thread until the outcome is there.
    ///
    /// Not for asynchronous code: it blocks the runtime's thread. Inside a task of a thread pool it is allowed; see
    /// "Waiting inside a task" at [`Executor`](crate::Executor).
    ///
    /// # Errors
    /// Whatever the task ended with, if not with a value.
    pub fn wait(mut self) -> Outcome<T> {
        self.fetch(None);
        // Often it is there already or will be in a moment, and then nobody has to be asked to wake this thread.
        for _ in 0..LOOKS {
            if self.cell.has_published() {
                let mut nobody = Context::from_waker(Waker::noop());
                if let Poll::Ready(outcome) = Pin::new(&mut self).poll(&mut nobody) {
                    return outcome;
                }
            }
            std::hint::spin_loop();
        }
        futures_ext::block_on(&mut self)
    }

    /// Blocks this thread until the outcome is there or the time is up. A timeout ends the wait, not the task: it can
    /// be waited for again. Zero looks without waiting.
    ///
    /// # Errors
    /// [`Elapsed`] when the time is up. The inner result is the outcome of the task.
    pub fn wait_timeout(&mut self, timeout: Duration) -> Result<Outcome<T>, Elapsed> {
        let deadline = Instant::now().checked_add(timeout);
        if timeout >= FETCH_FROM {
            self.fetch(deadline);
        }
        match deadline {
            Some(deadline) => {
                futures_ext::block_on_deadline(Pin::new(self), deadline).map_err(|_| Elapsed::new(timeout))
            }
            None => Ok(futures_ext::block_on(self)),
        }
    }

    /// Calls `callback` with the outcome when the task is done: callbacks run once each, in the order they were
    /// registered, before any waiter is released, on the thread that decides the outcome (a worker, the pool's
    /// supervisor, or whoever cancels). If it is done already, the callback is called before this returns. Once the
    /// value has been taken by a waiter, a callback sees [`TaskError::OutcomeTaken`].
    ///
    /// A callback that panics is reported by the panic hook (which prints it, unless the program has set another one);
    /// the next callbacks and the outcome are not affected. Callbacks should be short: they keep a worker or the
    /// supervisor. On the supervisor of a process pool, a callback that blocks with a wait of this library panics,
    /// because it would stop the whole pool.
    #[doc(alias = "add_done_callback")]
    pub fn on_done(&self, callback: impl FnOnce(&Outcome<T>) + Send + 'static) {
        self.cell.on_done(Box::new(callback));
    }

    /// Ends the wait, not the task, after `timeout`.
    pub fn timeout(self, timeout: Duration) -> Timeout<Self> {
        futures_ext::FutureExt::timeout(self, timeout)
    }

    /// Pairs the outcome with a tag, to know it again in [`as_completed`](futures_ext::as_completed).
    pub fn tagged<K>(self, tag: K) -> Tagged<Self, K> {
        futures_ext::FutureExt::tagged(self, tag)
    }

    /// From now on, dropping this future before its outcome is there cancels the task: for a request whose client may
    /// go away.
    pub fn cancel_on_drop(mut self) -> Self {
        self.cancel_on_drop = true;
        self
    }

    /// Lets the task run with nobody waiting for it; says in code that this is meant.
    pub fn detach(mut self) {
        self.cancel_on_drop = false;
    }
}

impl<T> TaskFuture<T> {
    /// Cancels the task; `true` means that its outcome is [`TaskError::Cancelled`], now or before.
    ///
    /// A queued task never runs and its arguments are dropped before this returns. A running one ends for its waiters
    /// at once; what happens to the work itself is told at [`Executor`](crate::Executor). A task that is done stays as
    /// it is: the answer is `false`, unless it had been cancelled before.
    pub fn cancel(&self) -> bool {
        cancel(&*self.cell)
    }

    /// Something that can cancel the task and look at its state, without owning its outcome.
    pub fn handle(&self) -> TaskHandle
    where
        T: 'static,
    {
        TaskHandle { cell: self.cell.clone() }
    }

    /// Where the task stands.
    #[must_use]
    pub fn state(&self) -> TaskState {
        self.cell.state()
    }

    /// Whether the task was cancelled.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.state() == TaskState::Cancelled
    }

    /// Whether a worker is running the task.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.state() == TaskState::Running
    }

    /// Whether the outcome is there: a value, a failure or a cancellation.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.state().is_done()
    }

    /// Before a blocking wait.
    fn fetch(&self, until: Option<Instant>) {
        if !self.cell.has_published() {
            self.cell.fetch(until);
        }
    }

    /// Whether the outcome can be had; may say no just after it came.
    pub(crate) fn has_published(&self) -> bool {
        self.cell.has_published()
    }

    /// Waits for that.
    pub(crate) fn poll_published(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.cell.poll_published(cx)
    }

    /// The newest [`report_progress`](crate::Context::report_progress) of the task.
    #[must_use]
    pub fn progress(&self) -> Option<Progress> {
        self.cell.progress()
    }

    /// The number of the task.
    #[must_use]
    pub fn id(&self) -> TaskId {
        self.cell.id()
    }

    /// The name from its options, or else the name of the task or the type of the closure.
    #[must_use]
    pub fn name(&self) -> Cow<'static, str> {
        self.cell.name()
    }
}

/// Waits for all of the tasks: their outcomes, in the order of the tasks.
///
/// It sleeps until a task far ahead is done, by which time those before it mostly are, too; so it hardly ever disturbs the
/// workers. [`futures_ext::wait`] is for other ends (the first one, the first failure, a timeout),
/// and for futures of any kind.
///
/// # Cancellation safety
/// Dropping it detaches the tasks, and the outcomes that were there are lost.
///
/// ```
/// use polypool::{ThreadPool, wait_all};
///
/// let pool = ThreadPool::new()?;
/// let tasks = (1..=3_u64).map(|n| pool.spawn(move || n * n));
/// let squares: Result<Vec<_>, _> = wait_all(tasks).wait().into_iter().collect();
/// assert_eq!(squares?, [1, 4, 9]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn wait_all<T>(tasks: impl IntoIterator<Item = TaskFuture<T>>) -> WaitAll<T> {
    let tasks: Vec<_> = tasks.into_iter().map(Some).collect();
    WaitAll { outcomes: Vec::with_capacity(tasks.len()), tasks, ahead: None }
}

/// So many tasks are waited for at once.
const STRIDE: usize = 4_096;

/// The future made by [`wait_all`].
#[must_use = "a future does nothing until it is polled; call .wait() where there is no runtime"]
pub struct WaitAll<T> {
    /// `None`: its outcome is there.
    tasks: Vec<Option<TaskFuture<T>>>,
    /// Those of the first tasks.
    outcomes: Vec<Outcome<T>>,
    /// The outcome of the task that was waited for, which comes later.
    ahead: Option<Outcome<T>>,
}

impl<T> WaitAll<T> {
    /// Blocks this thread until all outcomes are there; see [`TaskFuture::wait`].
    #[must_use = "the outcomes say whether the tasks succeeded"]
    pub fn wait(self) -> Vec<Outcome<T>> {
        futures_ext::block_on(self)
    }
}

impl<T> Future for WaitAll<T> {
    type Output = Vec<Outcome<T>>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Vec<Outcome<T>>> {
        let this = &mut *self;
        while this.outcomes.len() < this.tasks.len() {
            let next = this.outcomes.len();
            let far = (next + STRIDE).min(this.tasks.len() - 1);
            let Some(task) = &this.tasks[next] else {
                let outcome = this.ahead.take().expect("only the outcome of one later task has been taken");
                this.outcomes.push(outcome);
                continue;
            };
            if !task.has_published() && this.ahead.is_none() && far > next {
                if let Poll::Ready(outcome) = poll_and_take(&mut this.tasks[far], cx) {
                    this.ahead = Some(outcome);
                    continue;
                }
                return Poll::Pending;
            }
            let Poll::Ready(outcome) = poll_and_take(&mut this.tasks[next], cx) else { return Poll::Pending };
            this.outcomes.push(outcome);
        }
        this.tasks.clear();
        Poll::Ready(std::mem::take(&mut this.outcomes))
    }
}

fn poll_and_take<T>(task: &mut Option<TaskFuture<T>>, cx: &mut Context<'_>) -> Poll<Outcome<T>> {
    let Some(running) = task else { return Poll::Ready(Err(TaskError::OutcomeTaken)) };
    let poll = Pin::new(running).poll(cx);
    if poll.is_ready() {
        *task = None;
    }
    poll
}

// No outcome is ever pinned in place.
impl<T> Unpin for WaitAll<T> {}

impl<T> std::fmt::Debug for WaitAll<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WaitAll").field("total", &self.tasks.len()).field("done", &self.outcomes.len()).finish()
    }
}

fn cancel(cell: &(impl AnyCell + ?Sized)) -> bool {
    match cell.stop(TaskError::cancelled()) {
        Ended::Settled => true,
        Ended::Late | Ended::Again | Ended::Each => cell.is_cancelled(),
    }
}

impl<T> Future for TaskFuture<T> {
    type Output = Outcome<T>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Outcome<T>> {
        let poll = self.cell.poll_outcome(cx);
        self.taken |= poll.is_ready();
        poll
    }
}

impl<T> FusedFuture for TaskFuture<T> {
    fn is_terminated(&self) -> bool {
        self.taken
    }
}

impl<T> Drop for TaskFuture<T> {
    fn drop(&mut self) {
        if self.cancel_on_drop && !self.taken {
            self.cancel();
        }
    }
}

impl<T> std::fmt::Debug for TaskFuture<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        debug(f, "TaskFuture", &*self.cell)
    }
}

fn debug(f: &mut std::fmt::Formatter<'_>, what: &str, cell: &(impl AnyCell + ?Sized)) -> std::fmt::Result {
    f.debug_struct(what).field("id", &cell.id()).field("name", &cell.name()).field("state", &cell.state()).finish()
}

/// A handle to a task that does not own its outcome: cheap to clone, and the same for tasks of all types.
#[derive(Clone)]
pub struct TaskHandle {
    cell: Arc<dyn AnyCell>,
}

impl TaskHandle {
    /// As [`TaskFuture::cancel`].
    #[allow(clippy::must_use_candidate)]
    pub fn cancel(&self) -> bool {
        cancel(&*self.cell)
    }

    /// Where the task stands.
    #[must_use]
    pub fn state(&self) -> TaskState {
        self.cell.state()
    }

    /// Whether the outcome is there.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.state().is_done()
    }

    /// The newest report of progress.
    #[must_use]
    pub fn progress(&self) -> Option<Progress> {
        self.cell.progress()
    }

    /// The number of the task.
    #[must_use]
    pub fn id(&self) -> TaskId {
        self.cell.id()
    }

    /// The name of the task.
    #[must_use]
    pub fn name(&self) -> Cow<'static, str> {
        self.cell.name()
    }
}

impl std::fmt::Debug for TaskHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        debug(f, "TaskHandle", &*self.cell)
    }
}

/// Decides the outcome of a [`TaskFuture`] made with [`TaskFuture::pair`].
///
/// Dropping it without doing so completes the future with [`TaskError::Abandoned`].
#[must_use = "dropping a completer abandons its future"]
pub struct Completer<T> {
    cell: Option<Arc<dyn Promised<T>>>,
}

/// The future had its outcome already; here is the one that was refused.
#[derive(thiserror::Error)]
#[error("the task already has its outcome")]
pub struct AlreadyDone<T>(
    /// What was to become the outcome.
    pub Outcome<T>,
);

impl<T> std::fmt::Debug for AlreadyDone<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AlreadyDone")
    }
}

impl<T> Completer<T> {
    fn cell(&self) -> &Arc<dyn Promised<T>> {
        self.cell.as_ref().expect("the cell is held until the completer is dropped")
    }

    /// Queued becomes running; `false` when it was cancelled, or was started before.
    #[allow(clippy::must_use_candidate)]
    pub fn start(&self) -> bool {
        self.cell().begin_promise()
    }

    /// Sets the outcome. Callbacks have run when this returns.
    ///
    /// # Errors
    /// Gives the outcome back when the future has one already, or was cancelled: the first one stays.
    pub fn complete(&self, outcome: Outcome<T>) -> Result<(), AlreadyDone<T>> {
        self.cell().complete_promise(outcome).map_err(AlreadyDone)
    }

    /// Whether somebody cancelled it, so that the work for it can stop.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.cell().is_cancelled()
    }

    /// Completes when the future has its outcome, by somebody else's doing such as a cancellation.
    pub async fn cancelled(&self) {
        self.cell().stop_token(0).cancelled().await;
    }
}

impl<T> Drop for Completer<T> {
    fn drop(&mut self) {
        if let Some(cell) = self.cell.take() {
            cell.stop(TaskError::Abandoned);
        }
    }
}

impl<T> std::fmt::Debug for Completer<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        debug(f, "Completer", &**self.cell())
    }
}

/// Waits until a pool has ended; from [`Executor::shutdown`](crate::Executor::shutdown).
///
/// The shutdown goes on whether or not this is awaited; dropping it only means that nobody waits.
#[must_use = "the shutdown has begun; await this or call .wait() to know when it is over"]
pub struct Terminated {
    inner: Pin<Box<dyn Future<Output = ()> + Send + Sync>>,
}

impl Terminated {
    /// From whatever future says that the pool has ended.
    pub fn new(ended: impl Future<Output = ()> + Send + Sync + 'static) -> Self {
        Terminated { inner: Box::pin(ended) }
    }

    /// Blocks this thread until the pool has ended.
    pub fn wait(self) {
        futures_ext::block_on(self.inner);
    }

    /// Blocks this thread until the pool has ended or the time is up; the shutdown goes on in either case.
    ///
    /// # Errors
    /// [`Elapsed`] when the time is up.
    pub fn wait_timeout(&mut self, timeout: Duration) -> Result<(), Elapsed> {
        futures_ext::FutureExt::wait_timeout(&mut self.inner, timeout)
    }
}

impl Future for Terminated {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.inner.as_mut().poll(cx)
    }
}

impl std::fmt::Debug for Terminated {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Terminated").finish_non_exhaustive()
    }
}

/// The instant `timeout` from now; far in the future where the clock can't tell.
pub(crate) fn after(timeout: Duration) -> Instant {
    let now = Instant::now();
    now.checked_add(timeout).unwrap_or_else(|| now + Duration::from_secs(86_400 * 365 * 30))
}
