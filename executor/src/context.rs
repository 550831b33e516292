//! What a running task can learn and say without an argument: whether it is to stop, and how far it is.
//!
//! The context is a thread-local that the worker sets around a call, and around every poll of an asynchronous one.

use std::borrow::Cow;
use std::cell::RefCell;
use std::sync::Arc;

use futures_ext::CancellationToken;
use parking_lot::Mutex;

use crate::state::{Callable, TaskId};

/// How far a task is, in units of its own choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Progress {
    /// What is done.
    pub done: u64,
    /// What there is to do in all; 0 when the task does not know.
    pub total: u64,
}

/// What a context asks, and whom it tells: a task's cell, or in a worker process what stands for it.
pub(crate) trait ContextSource: Send + Sync {
    fn id(&self) -> TaskId;
    fn name(&self) -> Cow<'static, str>;
    /// Whether nobody waits for this run any more.
    fn has_stopped(&self, attempt: u32) -> bool;
    /// Cancelled when nobody waits for this run any more.
    fn stop_token(&self, attempt: u32) -> CancellationToken;
    fn report_progress(&self, attempt: u32, progress: Progress);
    /// Of several tasks, the one that is meant, where `attempt` is its number among them.
    fn part(self: Arc<Self>, _attempt: u32) -> Option<Arc<dyn ContextSource>> {
        None
    }
}

/// The cancellation and progress of the task that is running here.
///
/// Obtained with [`context()`]. It can be cloned into threads and futures that the task starts.
///
/// ```
/// use polypool::{ThreadPool, context};
///
/// let pool = ThreadPool::new()?;
/// let task = pool.spawn(|| {
///     for step in 0..1_000_u64 {
///         context().check()?;                     // a cancelled task ends here
///         context().report_progress(step, 1_000);
///     }
///     Ok::<_, futures_ext::Cancelled>("done")
/// });
/// assert_eq!(task.wait()?, Ok("done"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct Context {
    source: Option<(Arc<dyn ContextSource>, u32)>,
}

/// Where a worker thread of the thread pool keeps the task it runs, for others to find it, its context included.
/// A task that has ended may lie there until the next one comes.
#[derive(Default)]
pub(crate) struct Place(Mutex<Option<Arc<dyn Callable>>>);

impl Place {
    /// Puts a task in, or nothing, and gives out what was there, to be dropped outside of all locks.
    pub(crate) fn put(&self, task: Option<Arc<dyn Callable>>) -> Option<Arc<dyn Callable>> {
        std::mem::replace(&mut *self.0.lock(), task)
    }

    pub(crate) fn get(&self) -> Option<Arc<dyn Callable>> {
        self.0.lock().clone()
    }
}

/// Where the task of this thread is.
enum Current {
    Task(Arc<dyn ContextSource>),
    InPlace,
}

thread_local! {
    static CURRENT: RefCell<Option<(Current, u32)>> = const { RefCell::new(None) };
    static PLACE: RefCell<Option<Arc<Place>>> = const { RefCell::new(None) };
}

/// The context of the task that runs on this thread. Outside of a task it is one that is never cancelled and whose
/// progress nobody reads, so that a `#[task]` function can be called like any other.
#[must_use]
pub fn context() -> Context {
    let source = CURRENT.with_borrow(|current| {
        let (current, attempt) = current.as_ref()?;
        let task: Arc<dyn ContextSource> = match current {
            Current::Task(task) => task.clone(),
            Current::InPlace => PLACE.with_borrow(|place| place.as_ref().and_then(|place| place.get()))?,
        };
        Some(match task.clone().part(*attempt) {
            Some(part) => (part, 0),
            None => (task, *attempt),
        })
    });
    Context { source }
}

impl Context {
    /// Whether the task was cancelled, ran out of time, or was given to another worker: nobody waits for it any more.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.source.as_ref().is_some_and(|(cell, attempt)| cell.has_stopped(*attempt))
    }

    /// Completes when [`is_cancelled`](Context::is_cancelled) becomes true; never, outside of a task.
    ///
    /// # Cancellation safety
    /// Dropping it has no effect.
    pub async fn cancelled(&self) {
        match &self.source {
            None => std::future::pending().await,
            Some((cell, attempt)) => cell.stop_token(*attempt).cancelled().await,
        }
    }

    /// An error when the task was cancelled, to be passed on with `?`.
    ///
    /// # Errors
    /// [`futures_ext::Cancelled`] when [`is_cancelled`](Context::is_cancelled).
    pub fn check(&self) -> Result<(), futures_ext::Cancelled> {
        if self.is_cancelled() { Err(futures_ext::Cancelled) } else { Ok(()) }
    }

    /// Says how far the task is; [`TaskFuture::progress`](crate::TaskFuture::progress) shows it. The newest report
    /// counts. From a worker process, of reports that follow each other closely only the newest is sent, up to 20
    /// milliseconds later.
    pub fn report_progress(&self, done: u64, total: u64) {
        if let Some((cell, attempt)) = &self.source {
            cell.report_progress(*attempt, Progress { done, total });
        }
    }

    /// The number of the task; `None` outside of a task.
    #[must_use]
    pub fn id(&self) -> Option<TaskId> {
        self.source.as_ref().map(|(cell, _)| cell.id())
    }

    /// The name of the task; `None` outside of a task.
    #[must_use]
    pub fn name(&self) -> Option<Cow<'static, str>> {
        self.source.as_ref().map(|(cell, _)| cell.name())
    }

    /// Which run of the task this is, from 0; above that, it is a retry.
    #[must_use]
    pub fn attempt(&self) -> u32 {
        self.source.as_ref().map_or(0, |(_, attempt)| *attempt)
    }
}

impl std::fmt::Debug for Context {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Context")
            .field("id", &self.id())
            .field("attempt", &self.attempt())
            .field("is_cancelled", &self.is_cancelled())
            .finish()
    }
}

/// Makes a task the current one of this thread until the guard is dropped; then the one before is current again.
pub(crate) fn enter(cell: Arc<dyn ContextSource>, attempt: u32) -> Entered {
    Entered::new(Current::Task(cell), attempt)
}

/// The same for the task that is in the place of this thread.
pub(crate) fn enter_place(attempt: u32) -> Entered {
    Entered::new(Current::InPlace, attempt)
}

/// The place of this thread, from now on.
pub(crate) fn set_place(place: Arc<Place>) {
    PLACE.set(Some(place));
}

pub(crate) struct Entered {
    before: Option<(Current, u32)>,
}

impl Entered {
    fn new(current: Current, attempt: u32) -> Self {
        Entered { before: CURRENT.replace(Some((current, attempt))) }
    }
}

impl Entered {
    /// The same with another number.
    pub(crate) fn goes_on(&self, attempt: u32) {
        CURRENT.with_borrow_mut(|current| {
            if let Some((_, own)) = current {
                *own = attempt;
            }
        });
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        let own = CURRENT.replace(self.before.take());
        // Dropped outside of the borrow: it may be the last owner of the cell.
        drop(own);
    }
}
