//! Several tasks in one allocation, under one lock, which wait as one call and run one by one: how `map` hands elements
//! to threads that are to be alone.
//!
//! ```text
//!          push (the map)           begin (a worker)            exchange (the same worker)        read (the map)
//!   (new) ---------------> Waiting ------------------> Running ---------------------------> Done ---------------> Read
//!                             |                          ^  |                                ^
//!                             +--------------------------+  +--------------------------------+
//!                                  end (whoever stops it: its arguments go, and then it is done)
//! ```
//!
//! To its users, each of the tasks is one of its own: it has an outcome, a number and a context, it is counted by
//! itself, and it waits for no other. What they share is what costs: an allocation, a place in the backlog, and the
//! lock, which a worker takes once a task, to leave one outcome and to take the next task.
//!
//! **In the backlog** a bundle lies once, and stays there as long as tasks wait in it, so that other workers find it
//! ([`Bundle::visit`]). Whoever pushes a task into one that isn't there submits it (again). So a bundle in which tasks
//! wait is in the backlog, or somebody is just about to put it there, or to take the one task that is left; and that no
//! worker sleeps while tasks wait is for the backlog to see to. Both the push of a task and the look that removes the
//! bundle happen under its lock: either the look finds the task, or the push finds that the bundle has gone.
//!
//! Tasks with options, asynchronous ones, and those that leave the process have a [cell](crate::state::Cell) each. What
//! holds for cells holds here: a task settles once, no user code runs under the lock, and the lock is a leaf.

use std::borrow::Cow;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use futures_ext::CancellationToken;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::OwnedSemaphorePermit;

use crate::codec::Message;
use crate::context::{self, ContextSource, Progress};
use crate::error::{CodecError, Outcome, TaskError};
use crate::options::Priority;
use crate::panic;
use crate::state::{
    self, AnyCell, Callable, Ended, Expiry, RunObserver, Tally, TaskId, TaskState, Ticket, Visit, Wire, WorkerLink,
};
use crate::task::{Reply, Shape, Task};

/// Tasks that wait together and run one by one; see the head of this file.
pub(crate) struct Bundle<T: Task> {
    /// That of the first task; the others follow.
    id: TaskId,
    /// How many tasks have no outcome; for those who look without the lock, under which it is written.
    unsettled: AtomicUsize,
    inner: Mutex<Inner<T>>,
}

struct Inner<T: Task> {
    slots: Vec<Slot<T>>,
    /// The first task that waits; all after it do.
    next: usize,
    /// The first outcome that has not been read.
    read: usize,
    /// Whether a call of it is in the backlog, or on its way there.
    is_queued: bool,
    /// What the backlog has not counted.
    uncounted: Tally,
    /// Whether somebody will read the outcomes.
    has_reader: bool,
    /// The reader waits.
    waker: Option<(Waker, Awaited)>,
    /// For running tasks that want to know when they are stopped.
    stops: Vec<(usize, CancellationToken)>,
}

enum Slot<T: Task> {
    Waiting(T),
    Running,
    Done(Outcome<T::Output>),
    Read,
}

/// What a reader waits for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Awaited {
    /// The next outcome in the order of the tasks.
    Next,
    /// All of them.
    All,
}

impl<T: Task> Inner<T> {
    fn waiting(&self) -> usize {
        self.slots.len() - self.next
    }

    /// Waiting to Running: the next task.
    fn begin(&mut self) -> Option<(usize, T)> {
        let index = self.next;
        match std::mem::replace(self.slots.get_mut(index)?, Slot::Running) {
            Slot::Waiting(task) => {
                self.next += 1;
                Some((index, task))
            }
            _ => unreachable!("what follows the first waiting task waits"),
        }
    }

    fn is_running(&self, index: usize) -> bool {
        matches!(self.slots.get(index), Some(Slot::Running)) && index < self.next
    }

    fn is_next_done(&self) -> bool {
        matches!(self.slots.get(self.read), Some(Slot::Done(_)))
    }

    /// The waker of the reader, if what it waits for is there.
    fn due(&mut self, unsettled: usize) -> Option<Waker> {
        let (_, awaited) = self.waker.as_ref()?;
        let is_due = match awaited {
            Awaited::Next => self.is_next_done(),
            Awaited::All => unsettled == 0,
        };
        if is_due { self.waker.take().map(|(waker, _)| waker) } else { None }
    }

    fn take_stop(&mut self, index: usize) -> Option<CancellationToken> {
        let at = self.stops.iter().position(|(of, _)| *of == index)?;
        Some(self.stops.swap_remove(at).1)
    }
}

impl<T: Task> Bundle<T> {
    /// For at most so many tasks.
    pub(crate) fn new(capacity: usize) -> Arc<Self> {
        Arc::new(Bundle {
            id: TaskId::several(capacity),
            unsettled: AtomicUsize::new(0),
            inner: Mutex::new(Inner {
                slots: Vec::with_capacity(capacity),
                next: 0,
                read: 0,
                is_queued: false,
                uncounted: Tally::default(),
                has_reader: true,
                waker: None,
                stops: Vec::new(),
            }),
        })
    }

    /// Adds a task. `true`: the bundle isn't in the backlog, and the caller has to submit it now.
    #[must_use = "nobody finds the task otherwise"]
    pub(crate) fn push(&self, task: T) -> bool {
        let mut inner = self.inner.lock();
        inner.slots.push(Slot::Waiting(task));
        inner.uncounted.submitted += 1;
        self.add_unsettled(1);
        !std::mem::replace(&mut inner.is_queued, true)
    }

    // ---- The reader ------------------------------------------------------------------------------------------------

    /// Whether all outcomes are there; may say no just after the last one came.
    pub(crate) fn has_settled(&self) -> bool {
        self.unsettled.load(Ordering::Acquire) == 0
    }

    /// The outcomes that are there, up to the first that isn't; and whether others are to come.
    pub(crate) fn read(&self) -> (Vec<Outcome<T::Output>>, bool) {
        let mut inner = self.inner.lock();
        let Inner { slots, read, .. } = &mut *inner;
        let from = *read;
        let done = slots[from..].iter().take_while(|slot| matches!(slot, Slot::Done(_))).count();
        *read += done;
        let has_more = *read < slots.len();
        let outcomes = slots[from..*read].iter_mut().map(|slot| match std::mem::replace(slot, Slot::Read) {
            Slot::Done(outcome) => outcome,
            _ => unreachable!("the outcomes were counted under the same lock"),
        });
        (outcomes.collect(), has_more)
    }

    /// Waits until [`read`](Self::read) finds something.
    pub(crate) fn poll_next(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.poll(cx, Awaited::Next)
    }

    /// Waits until all outcomes are there.
    pub(crate) fn poll_settled(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.poll(cx, Awaited::All)
    }

    fn poll(&self, cx: &mut Context<'_>, awaited: Awaited) -> Poll<()> {
        // Cloning and dropping a waker is user code, so neither happens under the lock.
        let mut new = None;
        loop {
            let mut inner = self.inner.lock();
            let is_there = match awaited {
                Awaited::Next => inner.is_next_done(),
                Awaited::All => self.has_settled(),
            };
            if is_there {
                return Poll::Ready(());
            }
            if let Some((waker, before)) = &mut inner.waker
                && waker.will_wake(cx.waker())
            {
                *before = awaited;
                return Poll::Pending;
            }
            if let Some(waker) = new.take() {
                let old = inner.waker.replace((waker, awaited));
                drop(inner);
                drop(old);
                return Poll::Pending;
            }
            drop(inner);
            new = Some(cx.waker().clone());
        }
    }

    /// Nobody will read any more: the tasks still run, and their outcomes are dropped as they come.
    pub(crate) fn leave(&self) {
        let mut inner = self.inner.lock();
        inner.has_reader = false;
        let waker = inner.waker.take();
        let mut unread = Vec::new();
        for slot in &mut inner.slots {
            if matches!(slot, Slot::Done(_)) {
                unread.push(std::mem::replace(slot, Slot::Read));
            }
        }
        drop(inner);
        drop(waker);
        unread.into_iter().for_each(|outcome| _ = panic::catch(move || drop(outcome)));
    }

    // ---- Workers ---------------------------------------------------------------------------------------------------

    /// Leaves an outcome and takes the next task, in one step: a worker between two tasks holds up nobody.
    fn exchange(&self, index: usize, outcome: Outcome<T::Output>, observer: &dyn RunObserver) -> Option<(usize, T)> {
        let goes_on = observer.ended_one();
        let mut inner = self.inner.lock();
        let is_read = inner.has_reader;
        if !inner.is_running(index) || !is_read {
            // Nobody will read it, and it goes outside the lock. No other task is to wait for that.
            let stop = self.forget(&mut inner, index);
            drop(inner);
            stop.as_ref().map(state::tell);
            let _ = panic::catch(move || drop(outcome));
            return if goes_on { self.inner.lock().begin() } else { None };
        }
        let next = if goes_on { inner.begin() } else { None };
        if next.is_none() {
            observer.about_to_publish();
        }
        inner.slots[index] = Slot::Done(outcome);
        let unsettled = self.add_unsettled(-1);
        let waker = inner.due(unsettled);
        let stop = inner.take_stop(index);
        drop(inner);
        stop.as_ref().map(state::tell);
        state::wake(waker);
        next
    }

    /// A task whose outcome nobody reads has ended.
    fn forget(&self, inner: &mut MutexGuard<'_, Inner<T>>, index: usize) -> Option<CancellationToken> {
        if inner.is_running(index) {
            inner.slots[index] = Slot::Read;
            self.add_unsettled(-1);
        }
        inner.take_stop(index)
    }

    /// Under the lock, which is why it takes no more than a load and a store.
    fn add_unsettled(&self, tasks: isize) -> usize {
        let unsettled = self.unsettled.load(Ordering::Relaxed).wrapping_add_signed(tasks);
        self.unsettled.store(unsettled, Ordering::Release);
        unsettled
    }

    /// Ends all tasks that wait, and those that run as well if that's wanted; how many waited.
    fn end(&self, error: &TaskError, running_too: bool) -> u64 {
        let mut inner = self.inner.lock();
        let from = if running_too { inner.read } else { inner.next };
        let until = inner.slots.len();
        let mut jobs = Vec::with_capacity(inner.waiting());
        while let Some((_, task)) = inner.begin() {
            jobs.push(task);
        }
        drop(inner);
        let waited = jobs.len() as u64;
        // Before anybody learns of it. Their `Drop` is user code and may panic.
        jobs.into_iter().for_each(|task| _ = panic::catch(move || drop(task)));
        let mut inner = self.inner.lock();
        let mut stops = Vec::new();
        for index in from..until {
            if inner.is_running(index) {
                inner.slots[index] = if inner.has_reader { Slot::Done(Err(error.clone())) } else { Slot::Read };
                self.add_unsettled(-1);
                stops.extend(inner.take_stop(index));
            }
        }
        let waker = inner.due(self.unsettled.load(Ordering::Relaxed));
        drop(inner);
        state::count_ended_while_queued(waited);
        stops.iter().for_each(state::tell);
        state::wake(waker);
        waited
    }
}

impl<T: Task> ContextSource for Bundle<T> {
    fn id(&self) -> TaskId {
        self.id
    }

    fn name(&self) -> Cow<'static, str> {
        Cow::Borrowed(T::NAME)
    }

    fn has_stopped(&self, index: u32) -> bool {
        !self.inner.lock().is_running(index as usize)
    }

    fn stop_token(&self, index: u32) -> CancellationToken {
        let token = CancellationToken::new();
        let mut inner = self.inner.lock();
        if !inner.is_running(index as usize) {
            drop(inner);
            token.cancel();
            return token;
        }
        if let Some((_, token)) = inner.stops.iter().find(|(of, _)| *of == index as usize) {
            return token.clone();
        }
        inner.stops.push((index as usize, token.clone()));
        token
    }

    fn report_progress(&self, _: u32, _: Progress) {
        // Nobody has a future of one of these tasks to read it from.
    }

    fn part(self: Arc<Self>, index: u32) -> Option<Arc<dyn ContextSource>> {
        Some(Arc::new(Part { bundle: self, index }))
    }
}

/// One task of a bundle, for its context.
struct Part<T: Task> {
    bundle: Arc<Bundle<T>>,
    index: u32,
}

impl<T: Task> ContextSource for Part<T> {
    fn id(&self) -> TaskId {
        TaskId(self.bundle.id.0 + u64::from(self.index))
    }

    fn name(&self) -> Cow<'static, str> {
        self.bundle.name()
    }

    fn has_stopped(&self, _: u32) -> bool {
        self.bundle.has_stopped(self.index)
    }

    fn stop_token(&self, _: u32) -> CancellationToken {
        self.bundle.stop_token(self.index)
    }

    fn report_progress(&self, _: u32, progress: Progress) {
        self.bundle.report_progress(self.index, progress);
    }
}

impl<T: Task> AnyCell for Bundle<T> {
    fn state(&self) -> TaskState {
        let inner = self.inner.lock();
        match (inner.next, self.has_settled()) {
            (0, _) => TaskState::Queued,
            (_, false) => TaskState::Running,
            (_, true) => TaskState::Succeeded,
        }
    }

    fn progress(&self) -> Option<Progress> {
        None
    }

    fn stop(&self, error: TaskError) -> Ended {
        let waited = self.end(&error, true);
        self.inner.lock().uncounted.skipped += waited;
        Ended::Settled
    }

    fn is_cancelled(&self) -> bool {
        false
    }
}

impl<T: Task> Callable for Bundle<T> {
    fn is_async(&self) -> bool {
        false
    }

    fn priority(&self) -> Priority {
        Priority::Normal
    }

    fn deadline(&self) -> Option<Instant> {
        None
    }

    fn hold_permit(&self, _: OwnedSemaphorePermit) {
        // Where room is limited, tasks have cells.
    }

    fn is_queued(&self) -> bool {
        self.queued() > 0
    }

    fn queued(&self) -> usize {
        self.inner.lock().waiting()
    }

    fn holds_value(&self) -> bool {
        self.inner.lock().slots.iter().any(|slot| matches!(slot, Slot::Done(Ok(_))))
    }

    fn is_shared(&self) -> bool {
        true
    }

    fn visit(&self) -> Visit {
        let mut inner = self.inner.lock();
        let waiting = inner.waiting();
        // The last one goes with whoever comes for it now.
        inner.is_queued = waiting > 1;
        Visit { has_work: waiting > 0, stays: waiting > 1 }
    }

    fn leave_backlog(&self) {
        self.inner.lock().is_queued = false;
    }

    fn leaves_if_over(&self) -> bool {
        let mut inner = self.inner.lock();
        let is_over = inner.waiting() == 0;
        if is_over {
            inner.is_queued = false;
        }
        is_over
    }

    fn comes_back(&self) -> bool {
        !std::mem::replace(&mut self.inner.lock().is_queued, true)
    }

    fn refuse(&self, error: TaskError) -> u64 {
        self.end(&error, false)
    }

    fn take_tally(&self) -> Tally {
        std::mem::take(&mut self.inner.lock().uncounted)
    }

    fn run(self: Arc<Self>, observer: &dyn RunObserver) -> (Arc<dyn Callable>, Option<Ended>) {
        let first = self.inner.lock().begin();
        let Some((index, task)) = first else { return (self, None) };
        let entered = if observer.uses_place() {
            context::enter_place(index as u32)
        } else {
            context::enter(self.clone(), index as u32)
        };
        let mut turn = Some((index, task));
        while let Some((index, task)) = turn {
            entered.goes_on(index as u32);
            let outcome = state::run_here(|| task.run());
            turn = self.exchange(index, outcome, observer);
        }
        drop(entered);
        (self, Some(Ended::Each))
    }

    fn drive(
        self: Arc<Self>,
        observer: Arc<dyn RunObserver + Send + Sync>,
    ) -> Pin<Box<dyn Future<Output = Option<Ended>> + Send>> {
        Box::pin(async move { self.run(&*observer).1 })
    }

    // ---- A bundle never leaves the process -------------------------------------------------------------------------

    fn encode(&self, always: bool, _: u64) -> Result<(), CodecError> {
        if always { Err(CodecError::NotSerialisable(T::NAME.to_owned())) } else { Ok(()) }
    }

    fn wire(&self) -> Wire {
        Wire {
            id: self.id,
            name: T::NAME,
            own_name: None,
            signature: T::SIGNATURE,
            shape: Shape::Chunk,
            attempt: 0,
            announce_start: false,
            has_luggage: false,
        }
    }

    fn send(&self, _: Arc<dyn WorkerLink>, _: Ticket) -> Option<Message> {
        None
    }

    fn started(self: Arc<Self>, _: Ticket, _: &dyn RunObserver) -> bool {
        false
    }

    fn take_back(&self, _: Ticket) -> bool {
        false
    }

    fn reply(&self, _: Ticket, _: Reply) -> Ended {
        Ended::Late
    }

    fn lost(&self, _: Ticket, _: TaskError) -> Ended {
        Ended::Late
    }

    fn expire(&self, _: Expiry) -> Ended {
        Ended::Late
    }
}
