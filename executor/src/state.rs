//! The life of a task: every state, every legal transition and who performs it. No other file changes a state
//! (but for the tasks of a bundle, whose states are in `bundle.rs`).
//!
//! ```text
//!             submit                       begin (worker thread)
//!   (new) ------------> Queued ------------------------------------> Running
//!                        |  ^                                         |  |
//!            send        |  | take_back (worker died or was robbed)   |  | retry (worker died, panic, timeout,
//!            (supervisor)|  | retry                                   |  |        with retries left)
//!                        v  |                                         |  +-----------------> Queued
//!                        Sent --------------------------------------->|
//!                        |        started (supervisor)                |
//!                        |                                            |
//!                        +---- settle (whoever decides: worker, ------+
//!                        |      supervisor, canceller, clock)         |
//!                        v                                            v
//!                      Settling ------------------------------------> Done -----> Taken
//!                               publish (the same thread)                  take (the waiter)
//! ```
//!
//! * **Queued**: in a backlog. Holds the job, or only its encoded form.
//! * **Sent**: written ahead to a worker process. Whether the worker has started it is read from the claim word that
//!   both share (`polypool_ipc::Claims`), so that a cancel is exact: either the claim is revoked and the task never
//!   runs, or it runs and its worker is stopped.
//! * **Running**: a worker has it. `attempt` counts the runs; what an earlier run still reports is refused.
//! * **Settling**: decided, not yet visible. The arguments are dropped and the callbacks run here, on the deciding
//!   thread, which alone sees the task as done already.
//! * **Done**: visible to every waiter. **Taken**: the value has been moved out; what it was is still known.
//!
//! Invariants:
//!
//! 1. A task settles exactly once. Whoever comes second is told so and changes nothing.
//! 2. No user code (job, callback, `Drop` of an argument, waker) runs under the lock of a cell.
//! 3. A cell's lock is a leaf: while it is held, no other lock is taken. (Claim words and `about_to_publish` are
//!    atomics, not locks.)
//! 4. Everything that happened in the task happens before whatever its waiters and callbacks see.
//! 5. All callbacks that were registered before the task settled have returned before any waiter is released.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context as TaskContext, Poll, Waker};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

use futures_ext::CancellationToken;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::OwnedSemaphorePermit;

use crate::codec::{Brief, Message};
use crate::context::{self, ContextSource, Progress};
use crate::error::{CodecError, Outcome, SubmitError, TaskError};
use crate::job::Job;
use crate::options::{Priority, TaskOptions};
use crate::panic;
use crate::task::{Reply, Run, Shape};

/// The number of a task, unique in this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TaskId(pub(crate) u64);

impl TaskId {
    fn new() -> Self {
        Self::several(1)
    }

    /// The first of so many that follow each other; at most [`TaskId::BLOCK`].
    pub(crate) fn several(ids: usize) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        thread_local! {
            static OWN: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
        }
        let mut id = OWN.get();
        let rest = id.wrapping_neg() % Self::BLOCK;
        if rest < ids as u64 {
            id = NEXT.fetch_add(1, Ordering::Relaxed) * Self::BLOCK;
        }
        OWN.set(id + ids as u64);
        TaskId(id)
    }

    /// Each thread takes this many numbers at once, so that threads don't wait for each other's.
    const BLOCK: u64 = 1_024;
}

impl std::fmt::Display for TaskId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// Where a task stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum TaskState {
    /// It waits for a worker.
    Queued,
    /// A worker runs it.
    Running,
    /// It was cancelled.
    Cancelled,
    /// It ended without a value, and not because it was cancelled.
    Failed,
    /// It ended with a value.
    Succeeded,
}

impl TaskState {
    /// Whether the task has its outcome.
    #[must_use]
    pub fn is_done(self) -> bool {
        !matches!(self, TaskState::Queued | TaskState::Running)
    }

    fn of<T>(outcome: &Outcome<T>) -> Self {
        match outcome {
            Ok(_) => TaskState::Succeeded,
            Err(error) if error.is_cancelled() => TaskState::Cancelled,
            Err(_) => TaskState::Failed,
        }
    }
}

/// Which call on which worker a cell is sent to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ticket {
    /// The worker's number, never used twice by one pool. Workers count their calls alike, and what one of them has
    /// answered may be settled after the task has gone to another one.
    pub(crate) worker: usize,
    /// The claim word.
    pub(crate) slot: usize,
    /// The number of the call, never used twice by one worker.
    pub(crate) sequence: u64,
}

/// The way from a cell to the worker it was sent to.
pub(crate) trait WorkerLink: Send + Sync {
    /// Whether the worker has begun with it (and perhaps ended it).
    fn has_started(&self, ticket: Ticket) -> bool;
    /// Takes it back; `true` means that the worker will never run it.
    fn revoke(&self, ticket: Ticket) -> bool;
    /// Tells the supervisor that the task has been settled by somebody else: free its slot or stop its worker.
    fn abandoned(&self, ticket: Ticket);
    /// Waits for the answer for a moment, on the thread that needs it, if nobody else does.
    fn fetch(&self, ticket: Ticket, until: Option<Instant>);
}

/// How many tasks of this process were ended while they were queued; their empty cells may still lie in a backlog.
pub(crate) fn ended_while_queued() -> u64 {
    ENDED_WHILE_QUEUED.load(Ordering::Relaxed)
}

/// So many more were.
pub(crate) fn count_ended_while_queued(tasks: u64) {
    ENDED_WHILE_QUEUED.fetch_add(tasks, Ordering::Relaxed);
}

static ENDED_WHILE_QUEUED: AtomicU64 = AtomicU64::new(0);

/// What a worker wants to know of a run.
pub(crate) trait RunObserver {
    /// The task has begun; its running time is to be bounded.
    fn limit(&self, cell: &Arc<dyn Callable>, expiry: Expiry);
    /// The outcome becomes visible in the next instruction. Called under the cell's lock: must not block.
    fn about_to_publish(&self);
    /// Whether the task that runs is in the [`Place`](context::Place) of this thread.
    fn uses_place(&self) -> bool {
        false
    }
    /// Of several tasks: whether this worker may go on with the next one.
    fn goes_on(&self) -> bool {
        true
    }
    /// One of several tasks has ended. Called under their lock: must not block.
    fn ended_one(&self) {}
}

/// A time that a task must not pass.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Expiry {
    /// Waiting included.
    Deadline(Instant),
    /// Of one run.
    Timeout { attempt: u32, after: Duration },
}

/// What came of an attempt to end a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// It has its outcome now.
    Settled,
    /// It is to run again: put it back into the backlog.
    Again,
    /// It had its outcome before, or the report is of an earlier run.
    Late,
    /// It was several tasks, each of which the worker has been told of ([`RunObserver::ended_one`]).
    Each,
}

/// What a worker finds that comes for a shared call in the backlog.
#[derive(Debug)]
pub(crate) struct Visit {
    /// Whether there is a task to be run.
    pub(crate) has_work: bool,
    /// Whether the call stays in the backlog, for others to find.
    pub(crate) stays: bool,
}

/// A worker, and which of its calls it is.
type Link = (Arc<dyn WorkerLink>, Ticket);

type Callback<T> = Box<dyn FnOnce(&Outcome<T>) + Send>;

enum Stage<J: Job> {
    Queued(Held<J>),
    Sent,
    Running,
    /// `published`: it had been done before, and a late callback has the outcome for a moment.
    Settling {
        verdict: TaskState,
        by: ThreadId,
        published: bool,
    },
    Done(Outcome<J::Output>),
    Taken(TaskState),
}

/// What a task that waits has of its job.
enum Held<J> {
    Job(J),
    /// The encoded form, which is short. A million of those may wait for a process, so they need nothing else.
    Brief(Brief),
    /// Nothing: the encoded form is in the extras, or somebody is about to make it.
    Nothing,
}

impl<J> Held<J> {
    /// Takes the job out, if it's there.
    fn take(&mut self) -> Option<J> {
        if !matches!(self, Held::Job(_)) {
            return None;
        }
        match std::mem::replace(self, Held::Nothing) {
            Held::Job(job) => Some(job),
            _ => None,
        }
    }
}

/// What most tasks do not need.
struct Extras<T> {
    options: TaskOptions,
    /// Which run this is or will be.
    attempt: u32,
    /// With the handles in it, as long as the call may be sent (again).
    encoded: Option<Message>,
    link: Option<Link>,
    permit: Option<OwnedSemaphorePermit>,
    progress: Option<Progress>,
    /// Cancelled when this run is over, if somebody wants to know.
    stop: Option<CancellationToken>,
    callbacks: Vec<Callback<T>>,
}

impl<T> Default for Extras<T> {
    fn default() -> Self {
        Extras {
            options: TaskOptions::default(),
            attempt: 0,
            encoded: None,
            link: None,
            permit: None,
            progress: None,
            stop: None,
            callbacks: Vec::new(),
        }
    }
}

struct Inner<J: Job> {
    stage: Stage<J>,
    waker: Option<Waker>,
    extras: Option<Box<Extras<J::Output>>>,
}

impl<J: Job> Inner<J> {
    fn extras(&mut self) -> &mut Extras<J::Output> {
        self.extras.get_or_insert_with(Box::default)
    }

    /// Which run this is or will be.
    fn attempt(&self) -> u32 {
        self.extras.as_deref().map_or(0, |extras| extras.attempt)
    }

    /// The encoded form of a task that waits.
    fn encoded(&self) -> Option<Message> {
        match &self.stage {
            Stage::Queued(Held::Brief(brief)) => Some(brief.message()),
            _ => self.extras.as_deref().and_then(|extras| extras.encoded.clone()),
        }
    }

    fn is_running(&self, attempt: u32) -> bool {
        matches!(self.stage, Stage::Running) && self.attempt() == attempt
    }
}

/// One task: its job, its state and its outcome, in one allocation.
pub(crate) struct Cell<J: Job> {
    id: TaskId,
    /// It was given no options, so nobody has to take the lock to look for them.
    is_plain: bool,
    /// A hint for those who look again and again: written under the lock, when the outcome is published.
    published: AtomicBool,
    /// A hint: somebody blocks for the outcome.
    awaited: AtomicBool,
    inner: Mutex<Inner<J>>,
}

/// Everything about a task that does not depend on its type.
pub(crate) trait AnyCell: ContextSource {
    fn state(&self) -> TaskState;
    fn progress(&self) -> Option<Progress>;
    /// Ends the task with an error, unless it has its outcome.
    fn stop(&self, error: TaskError) -> Ended;
    /// Whether the outcome is, or is about to be, "cancelled".
    fn is_cancelled(&self) -> bool;
}

/// The waiter's side.
pub(crate) trait Observed<T>: AnyCell {
    /// Whether the outcome can be had; looks without the lock, so it may be behind.
    fn has_published(&self) -> bool;
    /// Waits until the outcome can be had, and leaves it where it is.
    fn poll_published(&self, cx: &mut TaskContext<'_>) -> Poll<()>;
    /// Before a blocking wait: this thread does what it can to bring the outcome about.
    fn fetch(&self, until: Option<Instant>);
    fn poll_outcome(&self, cx: &mut TaskContext<'_>) -> Poll<Outcome<T>>;
    fn on_done(&self, callback: Callback<T>);
}

/// The completer's side of a promise.
pub(crate) trait Promised<T>: Observed<T> {
    fn begin_promise(&self) -> bool;
    fn complete_promise(&self, outcome: Outcome<T>) -> Result<(), Outcome<T>>;
}

/// The executor's side.
pub(crate) trait Callable: AnyCell {
    fn is_async(&self) -> bool;
    fn priority(&self) -> Priority;
    fn deadline(&self) -> Option<Instant>;
    fn wire(&self) -> Wire;
    fn hold_permit(&self, permit: OwnedSemaphorePermit);
    /// Whether it still waits; what was cancelled in the backlog does not.
    fn is_queued(&self) -> bool;
    /// How many tasks of it wait.
    fn queued(&self) -> usize {
        usize::from(self.is_queued())
    }
    /// Whether it has a value that nobody has taken.
    fn holds_value(&self) -> bool;
    /// Ends what waits of it, because it won't be run.
    fn refuse(&self, error: TaskError) {
        self.stop(error);
    }

    /// Whether it is several tasks, which are in the backlog as long as there is one that no worker has come for, and
    /// count themselves.
    fn is_shared(&self) -> bool {
        false
    }
    /// It is put into the backlog, as the next after the push of this number; how many tasks are to be counted. Under
    /// the backlog's lock, as the following ones are.
    fn queues_behind(&self, _turn: u64) -> u64 {
        1
    }
    /// A worker has come to the backlog for it, if it is shared; it then runs it or [gives it back](Self::comes_back).
    fn visit(&self) -> Visit {
        Visit { has_work: true, stays: false }
    }
    /// It is taken out of the backlog to be refused.
    fn leave_backlog(&self) {}
    /// It is taken out of the backlog if nothing of it waits any more.
    fn leaves_if_over(&self) -> bool {
        !self.is_queued()
    }
    /// The worker that has come for it puts it back. `false`: it is there already.
    fn comes_back(&self) -> bool {
        true
    }
    /// Whether somebody has begun to block for it; a hint.
    fn is_awaited(&self) -> bool;

    /// Makes the encoded form, if it is needed: to leave the process, or to run again.
    fn encode(&self, always: bool, limit: u64) -> Result<(), CodecError>;

    /// Runs it on this thread and gives itself back; `None` when it was settled before.
    fn run(self: Arc<Self>, observer: &dyn RunObserver) -> (Arc<dyn Callable>, Option<Ended>);
    /// The future that runs it.
    fn drive(
        self: Arc<Self>,
        observer: Arc<dyn RunObserver + Send + Sync>,
    ) -> std::pin::Pin<Box<dyn Future<Output = Option<Ended>> + Send>>;

    /// Queued to Sent; the encoded form, or `None` when it was settled before. The permit is given up when the caller
    /// has no lock.
    fn send(&self, link: Arc<dyn WorkerLink>, ticket: Ticket) -> Option<(Message, Option<OwnedSemaphorePermit>)>;
    /// Sent to Running, if it is still this ticket's.
    fn started(self: Arc<Self>, ticket: Ticket, observer: &dyn RunObserver) -> bool;
    /// Sent to Queued, if it is still this ticket's.
    fn take_back(&self, ticket: Ticket) -> bool;
    /// The worker's reply.
    fn reply(&self, ticket: Ticket, reply: Reply) -> Ended;
    /// The run of this ticket failed.
    fn lost(&self, ticket: Ticket, error: TaskError) -> Ended;
    fn expire(&self, expiry: Expiry) -> Ended;
}

/// How a call looks to a worker process.
#[derive(Clone, Debug)]
pub(crate) struct Wire {
    pub(crate) id: TaskId,
    pub(crate) name: &'static str,
    /// The name in the options, if there is one.
    pub(crate) own_name: Option<Cow<'static, str>>,
    pub(crate) signature: &'static str,
    pub(crate) shape: Shape,
    /// Which run this is.
    pub(crate) attempt: u32,
    /// Whether the worker is to say when it starts, because the running time is bounded.
    pub(crate) announce_start: bool,
    /// Whether handles go along.
    pub(crate) has_luggage: bool,
}

impl<J: Job> Cell<J> {
    pub(crate) fn new(job: J, options: TaskOptions) -> Arc<Self> {
        let is_plain = options.is_default();
        let extras = (!is_plain).then(|| Box::new(Extras { options, ..Extras::default() }));
        Arc::new(Cell {
            id: TaskId::new(),
            is_plain,
            published: AtomicBool::new(false),
            awaited: AtomicBool::new(false),
            inner: Mutex::new(Inner { stage: Stage::Queued(Held::Job(job)), waker: None, extras }),
        })
    }

    /// A cell for a new job, without options: this one, if its task is over and nobody else knows it.
    pub(crate) fn renewed(mut cell: Arc<Self>, job: J) -> Arc<Self> {
        if let Some(own) = Arc::get_mut(&mut cell) {
            let inner = own.inner.get_mut();
            if own.is_plain && inner.extras.is_none() && matches!(inner.stage, Stage::Taken(_)) {
                inner.stage = Stage::Queued(Held::Job(job));
                inner.waker = None;
                *own.published.get_mut() = false;
                *own.awaited.get_mut() = false;
                own.id = TaskId::new();
                return cell;
            }
        }
        Cell::new(job, TaskOptions::new())
    }

    /// Queued, Sent or Running to Done, by way of Settling. The caller has checked that it is one of the three. `link`
    /// is told that the call is settled without it.
    fn settle<'a>(
        &'a self,
        mut inner: MutexGuard<'a, Inner<J>>,
        outcome: Outcome<J::Output>,
        link: Option<Link>,
        about_to_publish: Option<&dyn RunObserver>,
    ) {
        if matches!(inner.stage, Stage::Running) && inner.extras.is_none() {
            // Nothing to drop and nobody to call: settled and published in one step.
            return self.publish(inner, outcome, about_to_publish);
        }
        let verdict = TaskState::of(&outcome);
        let settling = Stage::Settling { verdict, by: thread::current().id(), published: false };
        let before = std::mem::replace(&mut inner.stage, settling);
        if matches!(before, Stage::Queued(_)) {
            count_ended_while_queued(1);
        }
        let mut callbacks = Vec::new();
        if let Some(extras) = inner.extras.as_deref_mut() {
            callbacks = std::mem::take(&mut extras.callbacks);
            let stop = extras.stop.take();
            let rest = (extras.link.take(), extras.encoded.take(), extras.permit.take());
            // Of a task without options they were only for the way to its worker, and go where they were made.
            let has_done = self.is_plain && extras.progress.is_none();
            let rest = (rest, has_done.then(|| inner.extras.take()));
            let has_rest = rest.0.0.is_some() || rest.0.1.is_some() || rest.0.2.is_some();
            if link.is_some() || has_rest || stop.is_some() {
                drop(inner);
                drop(rest);
                // First of all, so that no callback can delay the end of the work itself.
                abandon(link);
                stop.as_ref().map(tell);
                inner = self.inner.lock();
            }
        }
        if matches!(before, Stage::Queued(Held::Job(_))) {
            drop(inner);
            // The job never ran: its arguments go now. Their `Drop` is user code and may panic.
            let _ = panic::catch(move || drop(before));
            inner = self.inner.lock();
        }
        let inner = self.call_back(inner, callbacks, &outcome);
        self.publish(inner, outcome, about_to_publish);
    }

    /// The last step of [`settle`](Self::settle).
    fn publish(
        &self,
        mut inner: MutexGuard<'_, Inner<J>>,
        outcome: Outcome<J::Output>,
        about_to_publish: Option<&dyn RunObserver>,
    ) {
        if let Some(observer) = about_to_publish {
            observer.about_to_publish();
        }
        inner.stage = Stage::Done(outcome);
        self.published.store(true, Ordering::Release);
        let waker = inner.waker.take();
        drop(inner);
        wake(waker);
    }

    /// Runs callbacks, and those that are registered meanwhile, until there are none.
    fn call_back<'a>(
        &'a self,
        mut inner: MutexGuard<'a, Inner<J>>,
        mut callbacks: Vec<Callback<J::Output>>,
        outcome: &Outcome<J::Output>,
    ) -> MutexGuard<'a, Inner<J>> {
        loop {
            if !callbacks.is_empty() {
                drop(inner);
                for callback in callbacks {
                    // The panic hook has reported it; the other callbacks and the outcome stay as they are.
                    let _ = panic::catch(|| callback(outcome));
                }
                inner = self.inner.lock();
            }
            callbacks = match inner.extras.as_deref_mut() {
                Some(extras) => std::mem::take(&mut extras.callbacks),
                None => Vec::new(),
            };
            if callbacks.is_empty() {
                return inner;
            }
        }
    }

    /// Ends an unfinished task with an error, or prepares its next run.
    fn fail<'a>(
        &'a self,
        mut inner: MutexGuard<'a, Inner<J>>,
        error: TaskError,
        link: Option<Link>,
        observer: Option<&dyn RunObserver>,
    ) -> Ended {
        if error.is_retryable()
            && let Some(extras) = inner.extras.as_deref_mut()
            && extras.options.retries > 0
            && extras.encoded.is_some()
        {
            extras.options.retries -= 1;
            extras.attempt += 1;
            let own = extras.link.take();
            let stop = extras.stop.take();
            inner.stage = Stage::Queued(Held::Nothing);
            drop(inner);
            drop(own);
            abandon(link);
            stop.as_ref().map(tell);
            return Ended::Again;
        }
        self.settle(inner, Err(error), link, observer);
        Ended::Settled
    }

    /// Whether it waits and its deadline has passed, although the clock has not said so yet: it must not start.
    fn is_past_its_deadline(inner: &Inner<J>) -> bool {
        matches!(inner.stage, Stage::Queued(_))
            && inner
                .extras
                .as_deref()
                .and_then(|extras| extras.options.deadline)
                .is_some_and(|deadline| deadline <= Instant::now())
    }

    /// Queued to Running, on the thread that will run it.
    fn begin(self: &Arc<Self>, observer: &dyn RunObserver) -> Option<(Result<J, CodecError>, u32)> {
        let mut inner = self.inner.lock();
        if Self::is_past_its_deadline(&inner) {
            self.settle(inner, Err(TaskError::DeadlineExceeded), None, Some(observer));
            return None;
        }
        let Stage::Queued(held) = &mut inner.stage else {
            return None;
        };
        let job = held.take();
        let encoded = if job.is_none() { inner.encoded() } else { None };
        inner.stage = Stage::Running;
        let attempt = inner.attempt();
        let (mut timeout, mut permit) = (None, None);
        if let Some(extras) = inner.extras.as_deref_mut() {
            timeout = extras.options.timeout;
            permit = extras.permit.take();
        }
        drop(inner);
        drop(permit.take());
        if let Some(after) = timeout {
            let cell: Arc<dyn Callable> = self.clone();
            observer.limit(&cell, Expiry::Timeout { attempt, after });
        }
        let job = match (job, encoded) {
            (Some(job), _) => Ok(job),
            (None, Some(message)) => J::decode(message),
            (None, None) => Err(CodecError::NotSerialisable(J::name().to_owned())),
        };
        Some((job, attempt))
    }

    /// What a run on a thread came to.
    fn finish(&self, attempt: u32, outcome: Outcome<J::Output>, observer: &dyn RunObserver) -> Ended {
        let inner = self.inner.lock();
        if !inner.is_running(attempt) {
            drop(inner);
            // Nobody will read it; it goes outside the lock.
            let _ = panic::catch(move || drop(outcome));
            return Ended::Late;
        }
        match outcome {
            Ok(value) => {
                self.settle(inner, Ok(value), None, Some(observer));
                Ended::Settled
            }
            Err(error) => self.fail(inner, error, None, Some(observer)),
        }
    }

    /// What a waiter is after, if the stage has it; else the waiter is woken when the task is published.
    fn poll_stage<R>(&self, cx: &mut TaskContext<'_>, get: impl Fn(&mut Stage<J>) -> Option<R>) -> Poll<R> {
        // Cloning and dropping a waker is user code, so neither happens under the lock.
        let mut new = None;
        loop {
            let mut inner = self.inner.lock();
            if let Some(result) = get(&mut inner.stage) {
                return Poll::Ready(result);
            }
            if inner.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
                return Poll::Pending;
            }
            if let Some(waker) = new.take() {
                let old = inner.waker.replace(waker);
                drop(inner);
                drop(old);
                return Poll::Pending;
            }
            drop(inner);
            new = Some(cx.waker().clone());
        }
    }

    /// The link of a sent or running call, if it is the one of this ticket.
    fn holds(inner: &Inner<J>, ticket: Ticket) -> bool {
        matches!(inner.stage, Stage::Sent | Stage::Running)
            && inner.extras.as_deref().and_then(|extras| extras.link.as_ref()).is_some_and(|(_, own)| *own == ticket)
    }
}

/// Detaches the link before an outsider ends the task, and tells it.
fn outsider_ends<'a, J: Job>(cell: &'a Cell<J>, mut inner: MutexGuard<'a, Inner<J>>, error: TaskError) -> Ended {
    let link = inner.extras.as_deref_mut().and_then(|extras| extras.link.take());
    if let (Stage::Sent, Some((link, ticket))) = (&inner.stage, &link) {
        // Whichever way the race with the worker goes, the supervisor finds out from the claim word.
        link.revoke(*ticket);
    }
    cell.fail(inner, error, link, None)
}

fn abandon(link: Option<Link>) {
    if let Some((link, ticket)) = link {
        link.abandoned(ticket);
    }
}

/// Tells those who wait for a task to be stopped. What they do at once is user code.
pub(crate) fn tell(stop: &CancellationToken) {
    let _ = panic::catch(|| stop.cancel());
}

/// Runs a task on this thread.
pub(crate) fn run_here<T>(run: impl FnOnce() -> Run<T>) -> Outcome<T> {
    match panic::catch(run) {
        Ok(Run::Ready(value)) => Ok(value),
        // A worker thread without an asynchronous side: drive it here.
        Ok(Run::Future(future)) => {
            panic::catch(|| futures_ext::block_on(future)).map_err(|report| TaskError::Panicked(Box::new(report)))
        }
        Err(report) => Err(TaskError::Panicked(Box::new(report))),
    }
}

/// Wakes a waiter. A waker that panics must not take a worker with it.
pub(crate) fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        let _ = panic::catch(move || waker.wake());
    }
}

impl<J: Job> ContextSource for Cell<J> {
    fn id(&self) -> TaskId {
        self.id
    }

    fn name(&self) -> Cow<'static, str> {
        self.inner
            .lock()
            .extras
            .as_deref()
            .and_then(|extras| extras.options.name.clone())
            .unwrap_or(Cow::Borrowed(J::name()))
    }

    fn has_stopped(&self, attempt: u32) -> bool {
        !self.inner.lock().is_running(attempt)
    }

    fn stop_token(&self, attempt: u32) -> CancellationToken {
        let mut inner = self.inner.lock();
        if inner.attempt() == attempt && matches!(inner.stage, Stage::Queued(_) | Stage::Sent | Stage::Running) {
            return inner.extras().stop.get_or_insert_with(CancellationToken::new).clone();
        }
        drop(inner);
        let over = CancellationToken::new();
        over.cancel();
        over
    }

    fn report_progress(&self, attempt: u32, progress: Progress) {
        let mut inner = self.inner.lock();
        if inner.is_running(attempt) {
            inner.extras().progress = Some(progress);
        }
    }
}

impl<J: Job> AnyCell for Cell<J> {
    fn state(&self) -> TaskState {
        let inner = self.inner.lock();
        match &inner.stage {
            Stage::Queued(_) => TaskState::Queued,
            Stage::Sent => match inner.extras.as_deref().and_then(|extras| extras.link.as_ref()) {
                Some((link, ticket)) if link.has_started(*ticket) => TaskState::Running,
                _ => TaskState::Queued,
            },
            Stage::Running => TaskState::Running,
            Stage::Settling { verdict, by, published } if *published || *by == thread::current().id() => *verdict,
            Stage::Settling { .. } => TaskState::Running,
            Stage::Done(outcome) => TaskState::of(outcome),
            Stage::Taken(verdict) => *verdict,
        }
    }

    fn progress(&self) -> Option<Progress> {
        self.inner.lock().extras.as_deref().and_then(|extras| extras.progress)
    }

    fn stop(&self, error: TaskError) -> Ended {
        let inner = self.inner.lock();
        match inner.stage {
            Stage::Queued(_) | Stage::Sent | Stage::Running => outsider_ends(self, inner, error),
            _ => Ended::Late,
        }
    }

    fn is_cancelled(&self) -> bool {
        match &self.inner.lock().stage {
            Stage::Settling { verdict, .. } | Stage::Taken(verdict) => *verdict == TaskState::Cancelled,
            Stage::Done(outcome) => TaskState::of(outcome) == TaskState::Cancelled,
            _ => false,
        }
    }
}

impl<J: Job> Observed<J::Output> for Cell<J> {
    fn has_published(&self) -> bool {
        self.published.load(Ordering::Acquire)
    }

    fn fetch(&self, until: Option<Instant>) {
        self.awaited.store(true, Ordering::Relaxed);
        let link = {
            let inner = self.inner.lock();
            // Callbacks are for the executor's threads.
            inner.extras.as_deref().filter(|extras| extras.callbacks.is_empty()).and_then(|extras| extras.link.clone())
        };
        if let Some((link, ticket)) = link {
            link.fetch(ticket, until);
        }
    }

    fn poll_outcome(&self, cx: &mut TaskContext<'_>) -> Poll<Outcome<J::Output>> {
        self.poll_stage(cx, |stage| match stage {
            Stage::Taken(_) => Some(Err(TaskError::OutcomeTaken)),
            Stage::Done(outcome) => {
                let taken = Stage::Taken(TaskState::of(outcome));
                let Stage::Done(outcome) = std::mem::replace(stage, taken) else {
                    unreachable!("the stage was matched under the same lock")
                };
                Some(outcome)
            }
            _ => None,
        })
    }

    fn poll_published(&self, cx: &mut TaskContext<'_>) -> Poll<()> {
        self.poll_stage(cx, |stage| matches!(stage, Stage::Done(_) | Stage::Taken(_)).then_some(()))
    }

    fn on_done(&self, callback: Callback<J::Output>) {
        let mut inner = self.inner.lock();
        let outcome = match &mut inner.stage {
            Stage::Done(outcome) => {
                let verdict = TaskState::of(outcome);
                let settling = Stage::Settling { verdict, by: thread::current().id(), published: true };
                let Stage::Done(outcome) = std::mem::replace(&mut inner.stage, settling) else {
                    unreachable!("the stage was matched under the same lock")
                };
                outcome
            }
            Stage::Taken(_) => {
                drop(inner);
                let _ = panic::catch(|| callback(&Err(TaskError::OutcomeTaken)));
                return;
            }
            _ => {
                inner.extras().callbacks.push(callback);
                return;
            }
        };
        // Done already: the callback runs here and now, with the outcome out of everybody's reach for as long.
        let mut inner = self.call_back(inner, vec![callback], &outcome);
        inner.stage = Stage::Done(outcome);
        let waker = inner.waker.take();
        drop(inner);
        wake(waker);
    }
}

impl<J: Job> Promised<J::Output> for Cell<J> {
    fn begin_promise(&self) -> bool {
        let mut inner = self.inner.lock();
        let queued = matches!(inner.stage, Stage::Queued(_));
        if queued {
            inner.stage = Stage::Running;
        }
        queued
    }

    fn complete_promise(&self, outcome: Outcome<J::Output>) -> Result<(), Outcome<J::Output>> {
        let inner = self.inner.lock();
        match inner.stage {
            Stage::Queued(_) | Stage::Running => {
                self.settle(inner, outcome, None, None);
                Ok(())
            }
            _ => Err(outcome),
        }
    }
}

impl<J: Job> Callable for Cell<J> {
    fn is_async(&self) -> bool {
        J::is_async()
    }

    fn priority(&self) -> Priority {
        if self.is_plain {
            return Priority::Normal;
        }
        self.inner.lock().extras.as_deref().map_or(Priority::Normal, |extras| extras.options.priority)
    }

    fn deadline(&self) -> Option<Instant> {
        if self.is_plain {
            return None;
        }
        self.inner.lock().extras.as_deref().and_then(|extras| extras.options.deadline)
    }

    fn wire(&self) -> Wire {
        let inner = self.inner.lock();
        let encoded = inner.extras.as_deref().and_then(|extras| extras.encoded.as_ref());
        Wire {
            has_luggage: encoded.is_some_and(|message| !message.luggage.is_empty()),
            id: self.id,
            name: J::name(),
            own_name: inner.extras.as_deref().and_then(|extras| extras.options.name.clone()),
            signature: J::signature(),
            shape: J::shape(),
            attempt: inner.attempt(),
            announce_start: inner.extras.as_deref().is_some_and(|extras| extras.options.timeout.is_some()),
        }
    }

    fn hold_permit(&self, permit: OwnedSemaphorePermit) {
        let mut inner = self.inner.lock();
        if matches!(inner.stage, Stage::Queued(_)) {
            inner.extras().permit = Some(permit);
        }
    }

    fn is_queued(&self) -> bool {
        matches!(self.inner.lock().stage, Stage::Queued(_))
    }

    fn is_awaited(&self) -> bool {
        self.awaited.load(Ordering::Relaxed)
    }

    fn holds_value(&self) -> bool {
        matches!(self.inner.lock().stage, Stage::Done(Ok(_)))
    }

    fn encode(&self, always: bool, limit: u64) -> Result<(), CodecError> {
        if self.is_plain && !always {
            return Ok(());
        }
        // The job is taken out while it is encoded: its `Serialize` is user code.
        let job = {
            let mut inner = self.inner.lock();
            let needed = always || inner.extras.as_deref().is_some_and(|extras| extras.options.retries > 0);
            match &mut inner.stage {
                Stage::Queued(held) if needed => held.take(),
                _ => None,
            }
        };
        let Some(mut job) = job else { return Ok(()) };
        let encoded = job.encode(always).and_then(|message| {
            let size = message.size();
            if size > limit {
                return Err(CodecError::TooLarge { what: "argument".to_owned(), size, limit });
            }
            Ok(message)
        });
        let mut inner = self.inner.lock();
        let job = match encoded {
            Ok(message) => {
                if let Stage::Queued(held) = &mut inner.stage {
                    // Elsewhere only the bytes are needed; here the value is still the fastest way to run.
                    let rest = if always {
                        Some(job)
                    } else {
                        *held = Held::Job(job);
                        None
                    };
                    // What has options may be run here and need its encoded form again.
                    match Brief::of(&message).filter(|_| always && self.is_plain) {
                        Some(brief) => *held = Held::Brief(brief),
                        None => inner.extras().encoded = Some(message),
                    }
                    drop(inner);
                    rest
                } else {
                    drop(inner);
                    Some(job)
                }
            }
            Err(error) => {
                drop(inner);
                let _ = panic::catch(move || drop(job));
                return Err(error);
            }
        };
        let _ = panic::catch(move || drop(job));
        Ok(())
    }

    fn run(self: Arc<Self>, observer: &dyn RunObserver) -> (Arc<dyn Callable>, Option<Ended>) {
        let Some((job, attempt)) = self.begin(observer) else { return (self, None) };
        let outcome = {
            let _entered = if observer.uses_place() {
                context::enter_place(attempt)
            } else {
                context::enter(self.clone(), attempt)
            };
            match job {
                Err(error) => Err(error.into()),
                Ok(job) => run_here(|| job.run()),
            }
        };
        let ended = self.finish(attempt, outcome, observer);
        (self, Some(ended))
    }

    fn drive(
        self: Arc<Self>,
        observer: Arc<dyn RunObserver + Send + Sync>,
    ) -> std::pin::Pin<Box<dyn Future<Output = Option<Ended>> + Send>> {
        Box::pin(async move {
            let (job, attempt) = self.begin(&*observer)?;
            let mut future = match job.map(|job| {
                let _entered = context::enter(self.clone(), attempt);
                panic::catch(|| job.run())
            }) {
                Err(error) => return Some(self.finish(attempt, Err(error.into()), &*observer)),
                Ok(Err(report)) => {
                    let error = TaskError::Panicked(Box::new(report));
                    return Some(self.finish(attempt, Err(error), &*observer));
                }
                Ok(Ok(Run::Ready(value))) => {
                    return Some(self.finish(attempt, Ok(value), &*observer));
                }
                Ok(Ok(Run::Future(future))) => Some(future),
            };
            let mut stop = std::pin::pin!(self.stop_token(attempt).cancelled_owned());
            let outcome = std::future::poll_fn(|cx| {
                let _entered = context::enter(self.clone(), attempt);
                let stopped = stop.as_mut().poll(cx).is_ready();
                let Some(running) = future.as_mut().filter(|_| !stopped) else {
                    // Stopped at an await: what the future holds is dropped here, inside its context.
                    let _ = panic::catch(|| drop(future.take()));
                    return Poll::Ready(Err(TaskError::cancelled()));
                };
                match panic::catch(|| running.as_mut().poll(cx)) {
                    Ok(Poll::Pending) => Poll::Pending,
                    Ok(Poll::Ready(value)) => {
                        let _ = panic::catch(|| drop(future.take()));
                        Poll::Ready(Ok(value))
                    }
                    Err(report) => {
                        let _ = panic::catch(|| drop(future.take()));
                        Poll::Ready(Err(TaskError::Panicked(Box::new(report))))
                    }
                }
            })
            .await;
            Some(self.finish(attempt, outcome, &*observer))
        })
    }

    fn send(&self, link: Arc<dyn WorkerLink>, ticket: Ticket) -> Option<(Message, Option<OwnedSemaphorePermit>)> {
        let mut inner = self.inner.lock();
        // Past its deadline, it is left to the clock, which is about to end it.
        if !matches!(inner.stage, Stage::Queued(_)) || Self::is_past_its_deadline(&inner) {
            return None;
        }
        let encoded = inner.encoded()?;
        let extras = inner.extras();
        // It may come back, or be sent again.
        extras.encoded.get_or_insert_with(|| encoded.clone());
        extras.link = Some((link, ticket));
        let permit = extras.permit.take();
        inner.stage = Stage::Sent;
        drop(inner);
        Some((encoded, permit))
    }

    fn started(self: Arc<Self>, ticket: Ticket, observer: &dyn RunObserver) -> bool {
        let mut inner = self.inner.lock();
        if !Self::holds(&inner, ticket) {
            return false;
        }
        inner.stage = Stage::Running;
        let attempt = inner.attempt();
        let timeout = inner.extras.as_deref().and_then(|extras| extras.options.timeout);
        drop(inner);
        if let Some(after) = timeout {
            let cell: Arc<dyn Callable> = self;
            observer.limit(&cell, Expiry::Timeout { attempt, after });
        }
        true
    }

    fn take_back(&self, ticket: Ticket) -> bool {
        let mut inner = self.inner.lock();
        if !(Self::holds(&inner, ticket) && matches!(inner.stage, Stage::Sent)) {
            return false;
        }
        inner.stage = Stage::Queued(Held::Nothing);
        let link = inner.extras().link.take();
        drop(inner);
        drop(link);
        true
    }

    fn reply(&self, ticket: Ticket, reply: Reply) -> Ended {
        if !Self::holds(&self.inner.lock(), ticket) {
            return Ended::Late;
        }
        let outcome = match reply {
            Reply::Value(message) => J::decode_output(message).map_err(TaskError::from),
            Reply::Panicked(report) => Err(TaskError::Panicked(Box::new(report))),
            Reply::Codec(error) => Err(error.into()),
        };
        let inner = self.inner.lock();
        if !Self::holds(&inner, ticket) {
            drop(inner);
            let _ = panic::catch(move || drop(outcome));
            return Ended::Late;
        }
        match outcome {
            Ok(value) => {
                self.settle(inner, Ok(value), None, None);
                Ended::Settled
            }
            Err(error) => self.fail(inner, error, None, None),
        }
    }

    fn lost(&self, ticket: Ticket, error: TaskError) -> Ended {
        let inner = self.inner.lock();
        if !Self::holds(&inner, ticket) {
            return Ended::Late;
        }
        self.fail(inner, error, None, None)
    }

    fn expire(&self, expiry: Expiry) -> Ended {
        let inner = self.inner.lock();
        match (&inner.stage, expiry) {
            (Stage::Queued(_) | Stage::Sent | Stage::Running, Expiry::Deadline(_)) => {
                outsider_ends(self, inner, TaskError::DeadlineExceeded)
            }
            (Stage::Running, Expiry::Timeout { attempt, after }) if inner.attempt() == attempt => {
                outsider_ends(self, inner, TaskError::TimedOut { after })
            }
            _ => Ended::Late,
        }
    }
}

/// A task on its way to a worker. Executors receive it, queue it, and run it or reject it; dropping it without either
/// completes its future with [`TaskError::Abandoned`], so that nobody waits for ever.
#[must_use = "a call that is dropped is abandoned"]
pub struct Call {
    cell: Option<Arc<dyn Callable>>,
}

impl Call {
    pub(crate) fn new(cell: Arc<dyn Callable>) -> Self {
        Call { cell: Some(cell) }
    }

    pub(crate) fn cell(&self) -> &Arc<dyn Callable> {
        self.cell.as_ref().expect("a call holds its cell until it is consumed")
    }

    pub(crate) fn into_cell(mut self) -> Arc<dyn Callable> {
        self.cell.take().expect("a call holds its cell until it is consumed")
    }

    /// The number of the task.
    #[must_use]
    pub fn id(&self) -> TaskId {
        self.cell().id()
    }

    /// The name of the task.
    #[must_use]
    pub fn name(&self) -> Cow<'static, str> {
        self.cell().name()
    }

    /// Its priority.
    #[must_use]
    pub fn priority(&self) -> Priority {
        self.cell().priority()
    }

    /// Whether it still waits; a call that was cancelled in the backlog does not, and can be dropped.
    #[must_use]
    pub fn is_queued(&self) -> bool {
        self.cell().is_queued()
    }

    /// Whether it is still to be in the backlog. If not, it may be dropped, which ends nothing.
    pub(crate) fn is_alive(&mut self) -> bool {
        let leaves = self.cell().leaves_if_over();
        if leaves {
            self.cell = None;
        }
        !leaves
    }

    /// Runs the task on this thread and completes its future. Returns the call when it is to run again
    /// ([`TaskOptions::retries`]). Timeouts and deadlines are the executor's affair.
    pub fn run(self) -> Option<Call> {
        struct Nothing;
        impl RunObserver for Nothing {
            fn limit(&self, _: &Arc<dyn Callable>, _: Expiry) {}
            fn about_to_publish(&self) {}
        }
        match self.into_cell().run(&Nothing) {
            (cell, Some(Ended::Again)) => Some(Call::new(cell)),
            _ => None,
        }
    }

    /// Completes its future with [`TaskError::Rejected`].
    pub fn reject(self, error: SubmitError) {
        self.into_cell().refuse(TaskError::Rejected(error));
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if let Some(cell) = self.cell.take() {
            cell.refuse(TaskError::Abandoned);
        }
    }
}

impl std::fmt::Debug for Call {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Call").field("id", &self.id()).field("name", &self.name()).finish()
    }
}
