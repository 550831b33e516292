//! Several tasks in one allocation, under one lock, which wait as one call and run one by one: how `map` hands elements
//! to threads that are to be alone.
//!
//! ```text
//!          push (the map)           begin (a worker)            exchange (the same worker)        read (the map)
//!   (new) ---------------> Waiting ------------------> Running ---------------------------> Done ---------------> Read
//!                             |                           |                                  ^
//!                             |                           +--------------------------------->|
//!                             +-------> Ending --------------------------------------------->+
//!                                  end (whoever stops it: its arguments go, and then it is done)
//! ```
//!
//! To its users, each of the tasks is one of its own: it has an outcome, a number and a context, it is counted by
//! itself, and it waits for no other. What they share is what costs: an allocation, a place in the backlog, and the
//! lock, which a worker takes once a task, to leave one outcome and to take the next task.
//!
//! **In the backlog** a bundle lies once, and stays there as long as tasks wait in it that no worker has come for, so
//! that other workers find it ([`Bundle::visit`]). Whoever pushes a task into one that isn't there submits it (again).
//! So a bundle in which tasks wait is in the backlog, or somebody is just about to put it there, or to take the tasks
//! that are left; and that no worker sleeps while tasks wait is for the backlog to see to. Both the push of a task and the
//! look that removes the bundle happen under its lock: either the look finds the task, or the push finds that the bundle
//! has gone.
//!
//! **Turns.** No task may overtake one that was submitted before it. A bundle lies where its first task was, so it takes
//! more tasks only as long as nothing else was put into the backlog after it: each push there has a number
//! ([`Ledger::turn`]), a bundle knows that of its own, and a task is added only if that's still the newest. (A push that
//! comes between this look and the adding is of another thread and has no order with the task.) A bundle that is put
//! there again because it had been emptied keeps its turn if nothing came in between, and gets no newer one otherwise:
//! then the one task in it comes late, at worst, and no other follows into it. A worker that has come for a task holds a
//! *claim* and may give it back, to the place where the bundle was; so while there are claims to a bundle that isn't in
//! the backlog, it takes no task either.
//!
//! **The end.** Whoever stops a bundle, or takes it out of the backlog for good, closes it first. A closed bundle takes
//! no task and gives none to workers.
//!
//! Tasks with options, asynchronous ones, and those that leave the process have a [cell](crate::state::Cell) each. What
//! holds for cells holds here: a task settles once, no user code runs under the lock, and the lock is a leaf.

use std::borrow::Cow;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
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
    self, AnyCell, Callable, Ended, Expiry, RunObserver, TaskId, TaskState, Ticket, Visit, Wire, WorkerLink,
};
use crate::task::{Reply, Shape, Task};

/// The most tasks in a bundle: one bit of a word each.
pub(crate) const MAX_BUNDLE: usize = 64;

/// What a pool and the bundles in its backlog know of each other.
#[doc(hidden)]
#[derive(Debug)]
pub struct Ledger {
    /// Whether the pool accepts new work.
    pub(crate) open: AtomicBool,
    /// The number of the newest push into the backlog; written under its lock.
    turn: AtomicU64,
    /// Tasks in bundles, from before they can be found.
    submitted: AtomicU64,
    /// Those that were stopped while they waited, from before anybody learns of it.
    skipped: AtomicU64,
}

impl Ledger {
    pub(crate) fn new() -> Self {
        Ledger {
            open: AtomicBool::new(true),
            turn: AtomicU64::new(0),
            submitted: AtomicU64::new(0),
            skipped: AtomicU64::new(0),
        }
    }

    /// The number of the newest push into the backlog, if the pool accepts work. Whoever has seen a submit return sees
    /// its number here, or a newer one.
    pub(crate) fn turn(&self) -> Option<u64> {
        self.open.load(Ordering::Acquire).then(|| self.turn.load(Ordering::Acquire))
    }

    /// The number before this push. Under the lock of the backlog's tail.
    pub(crate) fn next_turn(&self) -> u64 {
        let before = self.turn.load(Ordering::Relaxed);
        self.turn.store(before + 1, Ordering::Release);
        before
    }

    pub(crate) fn submitted(&self) -> u64 {
        self.submitted.load(Ordering::Acquire)
    }

    pub(crate) fn skipped(&self) -> u64 {
        self.skipped.load(Ordering::Acquire)
    }
}

/// Tasks that wait together and run one by one; see the head of this file.
pub(crate) struct Bundle<T: Task> {
    /// That of the first task; the others follow.
    id: TaskId,
    ledger: Arc<Ledger>,
    capacity: usize,
    /// How many tasks have no outcome; for those who look without the lock, under which it is written.
    unsettled: AtomicUsize,
    /// A bit for each task that runs no more, for those who look again and again; written under the lock.
    over: AtomicU64,
    inner: Mutex<Inner<T>>,
}

struct Inner<T: Task> {
    slots: Vec<Slot<T>>,
    /// The first task that waits; all after it do.
    next: usize,
    /// How many workers have come for a task and not taken it.
    claims: usize,
    /// The first outcome that has not been read.
    read: usize,
    /// Whether a call of it is in the backlog, or on its way there.
    is_queued: bool,
    /// The number of its push into the backlog.
    turn: Option<u64>,
    /// No task comes in, and none is begun.
    closed: bool,
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
    /// It was stopped before it began, and its arguments are about to go.
    Ending,
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
    /// How many tasks wait that no worker has come for.
    fn free(&self) -> usize {
        if self.closed { 0 } else { (self.slots.len() - self.next).saturating_sub(self.claims) }
    }

    /// Waiting to Running: the next task that no other worker has come for.
    fn begin(&mut self) -> Option<(usize, T)> {
        if self.free() == 0 {
            return None;
        }
        let index = self.next;
        match std::mem::replace(self.slots.get_mut(index)?, Slot::Running) {
            Slot::Waiting(task) => {
                self.next += 1;
                Some((index, task))
            }
            _ => unreachable!("what follows the first waiting task waits"),
        }
    }

    /// Whether nothing waits, also not for those who have come for it.
    fn has_ended(&self) -> bool {
        self.next >= self.slots.len()
    }

    fn is_running(&self, index: usize) -> bool {
        matches!(self.slots.get(index), Some(Slot::Running))
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
    /// For at most so many tasks, of which so many are likely to come.
    pub(crate) fn new(ledger: Arc<Ledger>, capacity: usize, likely: usize) -> Arc<Self> {
        let capacity = capacity.min(MAX_BUNDLE);
        Arc::new(Bundle {
            id: TaskId::several(capacity),
            ledger,
            capacity,
            unsettled: AtomicUsize::new(0),
            over: AtomicU64::new(0),
            inner: Mutex::new(Inner {
                slots: Vec::with_capacity(likely.min(capacity)),
                next: 0,
                claims: 0,
                read: 0,
                is_queued: false,
                turn: None,
                closed: false,
                has_reader: true,
                waker: None,
                stops: Vec::new(),
            }),
        })
    }

    /// Adds a task, if the newest push into the backlog is still that of the bundle. `Ok(true)`: the bundle isn't in the
    /// backlog, and the caller has to submit it now.
    ///
    /// # Errors
    /// The task, if it has to go elsewhere.
    pub(crate) fn push(&self, task: T, newest: u64) -> Result<bool, T> {
        let mut inner = self.inner.lock();
        let is_last = inner.turn.is_none_or(|turn| turn == newest);
        let is_leaving = !inner.is_queued && inner.claims > 0;
        if inner.closed || !is_last || is_leaving || inner.slots.len() >= self.capacity {
            return Err(task);
        }
        self.ledger.submitted.fetch_add(1, Ordering::Release);
        inner.slots.push(Slot::Waiting(task));
        self.add_unsettled(1);
        Ok(!std::mem::replace(&mut inner.is_queued, true))
    }

    /// The submit that [`push`](Self::push) asked for was refused: gives the task back, unless a worker that was here
    /// has taken it, or somebody has stopped it. Then it counts as one that was accepted before.
    pub(crate) fn pop_refused(&self) -> Option<T> {
        let mut inner = self.inner.lock();
        inner.is_queued = false;
        // It is the only one that waits: others would have kept the bundle in the backlog.
        if !matches!(inner.slots.last(), Some(Slot::Waiting(_))) {
            return None;
        }
        let Some(Slot::Waiting(task)) = inner.slots.pop() else { return None };
        self.add_unsettled(-1);
        self.ledger.submitted.fetch_sub(1, Ordering::Release);
        Some(task)
    }

    /// How many tasks were pushed.
    pub(crate) fn len(&self) -> usize {
        self.inner.lock().slots.len()
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
        let goes_on = observer.goes_on();
        let mut inner = self.inner.lock();
        if !inner.has_reader || !inner.is_running(index) {
            drop(inner);
            return self.forget(index, outcome, observer);
        }
        inner.slots[index] = Slot::Done(outcome);
        let waker = inner.due(self.unsettled.load(Ordering::Relaxed) - 1);
        let stop = self.end_run(&mut inner, index);
        // Where there is user code to run first, no task waits for that: this worker comes back by way of the backlog,
        // where the bundle is as long as tasks wait in it.
        let next = if goes_on && waker.is_none() && stop.is_none() { inner.begin() } else { None };
        if next.is_none() {
            observer.about_to_publish();
        }
        // Counted after the next one has left those that wait, so that nobody counts it twice.
        observer.ended_one();
        self.add_unsettled(-1);
        drop(inner);
        stop.as_ref().map(state::tell);
        state::wake(waker);
        next
    }

    /// The same where nobody will read the outcome, which goes outside the lock. No other task waits for that.
    #[cold]
    fn forget(&self, index: usize, outcome: Outcome<T::Output>, observer: &dyn RunObserver) -> Option<(usize, T)> {
        let mut inner = self.inner.lock();
        let was_running = inner.is_running(index);
        if was_running {
            inner.slots[index] = Slot::Read;
        }
        let stop = self.end_run(&mut inner, index);
        drop(inner);
        stop.as_ref().map(state::tell);
        let _ = panic::catch(move || drop(outcome));
        // That may have taken its time.
        let goes_on = observer.goes_on();
        let mut inner = self.inner.lock();
        let next = if goes_on { inner.begin() } else { None };
        if next.is_none() {
            observer.about_to_publish();
        }
        observer.ended_one();
        if was_running {
            self.add_unsettled(-1);
        }
        next
    }

    /// The run of this task is over.
    fn end_run(&self, inner: &mut MutexGuard<'_, Inner<T>>, index: usize) -> Option<CancellationToken> {
        self.over.store(self.over.load(Ordering::Relaxed) | 1 << index, Ordering::Release);
        inner.take_stop(index)
    }

    /// Under the lock, which is why it takes no more than a load and a store.
    fn add_unsettled(&self, tasks: isize) {
        let unsettled = self.unsettled.load(Ordering::Relaxed).wrapping_add_signed(tasks);
        self.unsettled.store(unsettled, Ordering::Release);
    }

    /// Closes it and ends all tasks that wait, and those that run as well if that's wanted.
    fn end(&self, error: &TaskError, running_too: bool) {
        let mut inner = self.inner.lock();
        inner.closed = true;
        let (next, until) = (inner.next, inner.slots.len());
        let running = if running_too { inner.read..next } else { 0..0 };
        let (mut stops, mut arguments) = (Vec::new(), Vec::new());
        for index in running {
            if inner.is_running(index) {
                self.settle(&mut inner, index, error);
                stops.extend(self.end_run(&mut inner, index));
            }
        }
        for slot in &mut inner.slots[next..] {
            arguments.push(std::mem::replace(slot, Slot::Ending));
        }
        inner.next = until;
        let waited = (until - next) as u64;
        // A worker that has come for one of them counts as running until it finds out, and counts that one itself.
        self.ledger.skipped.fetch_add(waited.saturating_sub(inner.claims as u64), Ordering::Release);
        let waker = inner.due(self.unsettled.load(Ordering::Relaxed));
        drop(inner);
        // Those that run learn of it before any argument goes, which is user code and may take its time, or panic.
        stops.iter().for_each(state::tell);
        state::wake(waker);
        if waited == 0 {
            return;
        }
        state::count_ended_while_queued(waited);
        arguments.into_iter().for_each(|task| _ = panic::catch(move || drop(task)));
        let mut inner = self.inner.lock();
        for index in next..until {
            self.settle(&mut inner, index, error);
        }
        let waker = inner.due(self.unsettled.load(Ordering::Relaxed));
        drop(inner);
        state::wake(waker);
    }

    /// This task has ended with an error.
    fn settle(&self, inner: &mut MutexGuard<'_, Inner<T>>, index: usize, error: &TaskError) {
        inner.slots[index] = if inner.has_reader { Slot::Done(Err(error.clone())) } else { Slot::Read };
        self.add_unsettled(-1);
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
        self.over.load(Ordering::Acquire) & 1 << index != 0
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
        self.end(&error, true);
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
        self.inner.lock().free()
    }

    fn holds_value(&self) -> bool {
        self.inner.lock().slots.iter().any(|slot| matches!(slot, Slot::Done(Ok(_))))
    }

    fn is_shared(&self) -> bool {
        true
    }

    fn is_awaited(&self) -> bool {
        false
    }

    fn visit(&self) -> Visit {
        let mut inner = self.inner.lock();
        let free = inner.free();
        inner.claims += usize::from(free > 0);
        inner.is_queued = free > 1;
        Visit { has_work: free > 0, stays: free > 1 }
    }

    fn leave_backlog(&self) {
        let mut inner = self.inner.lock();
        inner.is_queued = false;
        inner.closed = true;
    }

    fn leaves_if_over(&self) -> bool {
        let mut inner = self.inner.lock();
        inner.is_queued = inner.free() > 0;
        !inner.is_queued
    }

    fn comes_back(&self) -> bool {
        let mut inner = self.inner.lock();
        inner.claims -= 1;
        // If it is there, it is where it was: without being there, and with a claim to it, it takes no task. A closed one
        // has been emptied or is about to be.
        if inner.closed {
            self.ledger.skipped.fetch_add(u64::from(inner.has_ended()), Ordering::Release);
            return false;
        }
        !std::mem::replace(&mut inner.is_queued, true)
    }

    fn refuse(&self, error: TaskError) {
        self.end(&error, false);
    }

    fn queues_behind(&self, turn: u64) -> u64 {
        let mut inner = self.inner.lock();
        if inner.turn.is_none_or(|own| own == turn) {
            inner.turn = Some(turn + 1);
        }
        0
    }

    fn run(self: Arc<Self>, observer: &dyn RunObserver) -> (Arc<dyn Callable>, Option<Ended>) {
        let mut inner = self.inner.lock();
        inner.claims = inner.claims.saturating_sub(1);
        let Some((index, task)) = inner.begin() else {
            // Closed. The task that was claimed is counted by those who end the others, or by the worker if they have
            // been here before.
            let ended = if inner.has_ended() { None } else { Some(Ended::Each) };
            drop(inner);
            return (self, ended);
        };
        drop(inner);
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

    fn send(&self, _: Arc<dyn WorkerLink>, _: Ticket) -> Option<(Message, Option<OwnedSemaphorePermit>)> {
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
