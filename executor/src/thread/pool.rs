//! How the thread pool works: the backlog, the workers, and who wakes whom.
//!
//! **The backlog** has two ends under two locks, so that those who submit and those who take hardly ever wait for each
//! other: calls are pushed to the *tail*; workers pop from the *head*, and when that is empty, the tail becomes the head as it
//! is. A call whose priority isn't the normal one makes the next worker do so at once ([`Backlog::pop`]).
//!
//! **Waking** is in `sleep.rs`, with the reason why no wake-up is lost. What it calls the look into the backlog is
//! [`Backlog::is_empty`], under the locks of both ends.
//!
//! **Spinning.** A worker that has nothing to do looks for [`SPIN`] before it lies down, as going to sleep and waking up cost
//! more than that; after a first moment it gives way to whoever wants the core. No more spin at once than there are cores.
//!
//! A worker begins to search just *before* it publishes an outcome, so that somebody who reads the outcome and submits
//! the next task at once finds this worker searching, and no second one is woken or started.
//!
//! **What runs** lies in the [`Place`] of its worker, for a shutdown that stops it and for its context. It stays there until the
//! worker's next task takes its place or the worker spins, which saves a step a task. Between the backlog and there a call is
//! with its worker alone ([`TAKES`]); a shutdown in this moment sets `stopping` before it looks there, and the worker looks
//! at `stopping` after it has filled it, and says that it [`RUNS`] only then.
//!
//! **Lock order**: state, head, tail, place, and then the locks of cells, which are leaves. A cell tells its worker that it is
//! about to publish by atomics alone.

use std::cell::Cell;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::thread::Thread;
use std::time::{Duration, Instant};

use futures_ext::{BlockingObserver, CancellationToken, set_blocking_observer};
use parking_lot::{Mutex, MutexGuard};

use super::MAX_EXTRA_WORKERS;
use super::driver::Driver;
use super::sleep::Sleep;
use crate::backlog::{Lanes, Room, Sweeper, forget_ended};
use crate::bundle::Ledger;
use crate::clock::{self, Clock};
use crate::context::{self, Place};
use crate::cores::cores;
use crate::error::{SubmitError, TaskError};
use crate::executor::inside::PoolId;
use crate::executor::{Phase, Refused, Shutdown, Slot, Stats, WorkerStats};
use crate::future::Terminated;
use crate::options::Priority;
use crate::panic;
use crate::state::{Call, Callable, Ended, Expiry, RunObserver, TaskId};

/// For how long a worker looks for the next task before it lies down: about as long as a wake-up takes.
const SPIN: Duration = Duration::from_micros(30);

type Initializer = Arc<dyn Fn(usize) -> Result<(), String> + Send + Sync>;

pub(super) struct Config {
    pub(super) workers: usize,
    pub(super) prefix: String,
    pub(super) initializer: Option<Initializer>,
    pub(super) backlog: Option<usize>,
    pub(super) stack_size: Option<usize>,
    pub(super) async_limit: usize,
    pub(super) async_threads: usize,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            workers: cores().saturating_add(4).min(32),
            prefix: "polypool".to_owned(),
            initializer: None,
            backlog: None,
            stack_size: None,
            async_limit: usize::MAX,
            async_threads: 1,
        }
    }
}

impl std::fmt::Debug for Config {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Config")
            .field("workers", &self.workers)
            .field("prefix", &self.prefix)
            .field("backlog", &self.backlog)
            .finish_non_exhaustive()
    }
}

pub(super) struct Pool {
    id: PoolId,
    /// Itself, for the threads it starts.
    this: Weak<Pool>,
    config: Config,
    room: Room,
    state: Mutex<State>,
    backlog: Backlog,
    sleep: Sleep,
    /// With whether new work is accepted, for those who look without the lock of the state.
    ledger: Arc<Ledger>,
    /// Everything that runs is to be stopped.
    stopping: AtomicBool,
    /// There are more workers than there should be.
    too_many: AtomicBool,
    clock: Clock,
    driver: Mutex<Option<Driver>>,
    ended: CancellationToken,
    completed: AtomicU64,
    skipped: AtomicU64,
    retried: AtomicU64,
    /// How many workers may spin at once.
    spinners: usize,
}

struct State {
    async_lanes: Lanes,
    /// Asynchronous tasks that run, to cancel them on [`Shutdown::Now`].
    async_running: HashMap<TaskId, Arc<dyn Callable>>,
    phase: Phase,
    workers: BTreeMap<usize, Arc<Worker>>,
    next_index: usize,
    idle: Vec<Arc<Worker>>,
    /// Workers whose task blocks on another task; for each, the pool may have one more.
    blocked: usize,
    /// Asynchronous tasks that were accepted.
    submitted: u64,
}

/// A worker has nothing to run.
const FREE: u8 = 0;
/// It has taken a call out of the backlog, which is on its way into the worker's place.
const TAKES: u8 = 1;
/// The task is in its place, and was stopped if the pool is stopping.
const RUNS: u8 = 2;

/// A worker, as others see it.
struct Worker {
    index: usize,
    name: String,
    /// What it does: [`FREE`], [`TAKES`] or [`RUNS`].
    does: AtomicU8,
    /// Written by the worker alone.
    completed: AtomicU64,
    place: Arc<Place>,
    thread: Mutex<Option<Thread>>,
    woken: AtomicBool,
}

/// Calls of blocking tasks that wait for a worker; see the head of this file.
struct Backlog {
    /// With a hint of how many calls the head holds, and whether one is [`URGENT`], which is written under its lock.
    head: Apart<(Mutex<Lanes>, AtomicUsize)>,
    tail: Apart<Mutex<Tail>>,
    /// How many calls the tail holds, for those who look without its lock; written under it.
    waiting: Apart<AtomicUsize>,
    /// Whether the priority of a call in the tail isn't the normal one; written under the lock of the tail, and seldom.
    mixed: Apart<AtomicBool>,
    ledger: Arc<Ledger>,
}

/// The bit that says so; the others are the number.
const URGENT: usize = 1;

struct Tail {
    calls: VecDeque<Call>,
    sweeper: Sweeper,
    /// Whether new calls are accepted.
    open: bool,
    submitted: u64,
    /// How many cancelled calls were forgotten.
    swept: u64,
}

/// How many tasks still wait, were forgotten after they had been cancelled, and were ever accepted.
struct Counts<T> {
    taken: T,
    queued: usize,
    swept: u64,
    submitted: u64,
}

/// Something with cache lines of its own, which are not taken from its users by those of its neighbours.
#[derive(Default)]
#[repr(align(128))]
struct Apart<T>(T);

impl Backlog {
    fn new(ledger: Arc<Ledger>) -> Self {
        let tail = Tail { calls: VecDeque::new(), sweeper: Sweeper::new(), open: true, submitted: 0, swept: 0 };
        Backlog {
            head: Apart((Mutex::new(Lanes::new()), AtomicUsize::new(0))),
            tail: Apart(Mutex::new(tail)),
            waiting: Apart::default(),
            mixed: Apart::default(),
            ledger,
        }
    }

    fn head(&self) -> MutexGuard<'_, Lanes> {
        self.head.0.0.lock()
    }

    /// The head has changed.
    fn hint(&self, head: &Lanes) {
        self.head.0.1.store(head.len() << 1 | usize::from(head.is_urgent()), Ordering::Relaxed);
    }

    fn tail(&self) -> MutexGuard<'_, Tail> {
        self.tail.0.lock()
    }

    /// Takes a call, unless it is new and new ones are not accepted.
    fn push(&self, call: Call, is_new: bool) -> Result<(), Call> {
        let mixed = call.priority() != Priority::Normal;
        let mut tail = self.tail();
        if is_new && !tail.open {
            return Err(call);
        }
        let tasks = call.cell().queues_behind(self.ledger.next_turn());
        if is_new {
            tail.submitted += tasks;
        }
        tail.calls.push_back(call);
        let Tail { calls, sweeper, swept, .. } = &mut *tail;
        if sweeper.is_due(calls.len()) {
            *swept += forget_ended(calls);
        }
        if mixed {
            self.mixed.0.store(true, Ordering::Relaxed);
        }
        self.waiting.0.store(tail.calls.len(), Ordering::Relaxed);
        Ok(())
    }

    /// The call whose turn it is; `taken` is called before another thread can see that it is gone.
    fn pop(&self, taken: impl FnOnce()) -> Option<Call> {
        let mut head = self.head();
        loop {
            let has_tail = self.waiting.0.load(Ordering::Relaxed) > 0;
            if head.is_empty() && has_tail || self.mixed.0.load(Ordering::Relaxed) {
                self.join(&mut head);
            }
            if head.is_empty() {
                return None;
            }
            let call = head.pop();
            self.hint(&head);
            if call.is_some() {
                taken();
                return call;
            }
            // What there was had been taken by those who had come before.
        }
    }

    /// Whether something in it is to go before what is normal.
    fn is_urgent(&self) -> bool {
        self.mixed.0.load(Ordering::Relaxed) || self.head.0.1.load(Ordering::Relaxed) & URGENT != 0
    }

    /// Takes a call back that was taken out: it keeps its turn. `given_back` is called before another thread can see that it is here.
    fn push_front(&self, cell: Arc<dyn Callable>, given_back: impl FnOnce()) {
        let mut head = self.head();
        if cell.comes_back() {
            head.push_front(Call::new(cell));
        }
        self.hint(&head);
        given_back();
    }

    /// Moves the tail to the head.
    fn join(&self, head: &mut Lanes) {
        let mut tail = self.tail();
        let mixed = self.mixed.0.load(Ordering::Relaxed);
        if mixed {
            self.mixed.0.store(false, Ordering::Relaxed);
        }
        head.append(&mut tail.calls, mixed);
        self.hint(head);
        self.waiting.0.store(0, Ordering::Relaxed);
    }

    /// Everything there is, in the order of its turn.
    fn take_all(&self) -> Vec<Call> {
        let mut head = self.head();
        self.join(&mut head);
        let calls = head.take_all();
        self.hint(&head);
        calls
    }

    fn len(&self) -> usize {
        let head = self.head();
        head.len() + self.tail().calls.len()
    }

    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether a look is likely to find something.
    fn is_promising(&self) -> bool {
        self.waiting.0.load(Ordering::Relaxed) > 0 || self.head.0.1.load(Ordering::Relaxed) > 0
    }

    /// What has become of all tasks; `look` sees to those that were taken, while no call is.
    ///
    /// Tasks in bundles go their way without these locks: from those that were accepted to those that wait, run, and have
    /// ended. They are counted in the opposite order, so that none is counted twice.
    fn counts<T>(&self, look: impl FnOnce() -> T) -> Counts<T> {
        let head = self.head();
        let tail = self.tail();
        let taken = look();
        Counts {
            taken,
            queued: head.live() + tail.calls.iter().map(|call| call.cell().queued()).sum::<usize>(),
            swept: head.swept() + tail.swept,
            submitted: tail.submitted + self.ledger.submitted(),
        }
    }

    fn close(&self) {
        self.tail().open = false;
    }
}

/// What is left to do after the lock has been released.
#[must_use]
enum Wake {
    Nobody,
    Unpark(Arc<Worker>),
    Start(Arc<Worker>),
}

impl Pool {
    pub(super) fn new(config: Config) -> Arc<Self> {
        Arc::new_cyclic(|this: &Weak<Pool>| {
            let id = PoolId::new();
            let ledger = Arc::new(Ledger::new());
            Pool {
                id,
                this: this.clone(),
                room: Room::new(config.backlog),
                state: Mutex::new(State {
                    async_lanes: Lanes::new(),
                    async_running: HashMap::new(),
                    phase: Phase::default(),
                    workers: BTreeMap::new(),
                    next_index: 0,
                    idle: Vec::new(),
                    blocked: 0,
                    submitted: 0,
                }),
                backlog: Backlog::new(ledger.clone()),
                sleep: Sleep::new(config.workers),
                ledger,
                stopping: AtomicBool::new(false),
                too_many: AtomicBool::new(false),
                clock: Clock::new(format!("{}-clock", config.prefix), ClockOwner { id, pool: this.clone() }),
                driver: Mutex::new(None),
                ended: CancellationToken::new(),
                completed: AtomicU64::new(0),
                skipped: AtomicU64::new(0),
                retried: AtomicU64::new(0),
                spinners: if cores() > 1 { cores() } else { 0 },
                config,
            }
        })
    }

    // ---- What users ask for ----------------------------------------------------------------------------------------

    pub(super) fn workers(&self) -> usize {
        self.config.workers
    }

    /// For those who submit bundles, which they may where any number of tasks may wait.
    pub(super) fn bundles(&self) -> Option<Arc<Ledger>> {
        self.config.backlog.is_none().then(|| self.ledger.clone())
    }

    pub(super) fn submit(&self, call: Call, slot: Option<Slot>) -> Result<(), Refused> {
        let cell = call.cell();
        match self.room.admit(slot, || self.check()) {
            Ok(Some(permit)) => cell.hold_permit(permit),
            Ok(None) => {}
            Err(error) => return Err(Refused { call, error }),
        }
        if let Err(error) = cell.encode(false, u64::MAX) {
            call.into_cell().stop(error.into());
            return Ok(());
        }
        if let Some(deadline) = cell.deadline() {
            self.set_clock(cell, Expiry::Deadline(deadline));
        }
        if !cell.is_async() {
            if let Err(call) = self.backlog.push(call, true) {
                let error = self.check().err().unwrap_or(SubmitError::ShutDown);
                return Err(Refused { call, error });
            }
            self.wake_if_needed();
            return Ok(());
        }
        let mut state = self.state.lock();
        if let Err(error) = state.phase.check() {
            return Err(Refused { call, error });
        }
        state.submitted += 1;
        if state.async_running.len() < self.config.async_limit {
            self.start_async(state, call);
        } else {
            state.async_lanes.push(call);
        }
        Ok(())
    }

    pub(super) fn try_reserve(&self) -> Result<Slot, SubmitError> {
        self.room.try_reserve(|| self.check())
    }

    pub(super) async fn reserve(&self) -> Result<Slot, SubmitError> {
        self.room.reserve(|| self.check()).await
    }

    /// Whether the pool accepts work.
    fn check(&self) -> Result<(), SubmitError> {
        if self.ledger.open.load(Ordering::Acquire) {
            return Ok(());
        }
        self.state.lock().phase.check()
    }

    /// Accepts no new work any more. The phase has changed before, under the same lock.
    fn close(&self) {
        self.ledger.open.store(false, Ordering::Release);
        self.backlog.close();
    }

    pub(super) fn shut_down(&self, mode: Shutdown) {
        let mut state = self.state.lock();
        if !state.phase.shut_down(mode) {
            return;
        }
        self.close();
        let mut cancelled = Vec::new();
        let mut stopped = Vec::new();
        if mode >= Shutdown::CancelQueued {
            cancelled = self.backlog.take_all();
            cancelled.extend(state.async_lanes.take_all());
        }
        if mode == Shutdown::Now {
            self.stopping.store(true, Ordering::SeqCst);
            stopped.extend(state.workers.values().filter_map(|worker| worker.place.get()));
            stopped.extend(state.async_running.values().cloned());
        }
        let idle = self.release_idle(&mut state);
        drop(state);
        self.room.close();
        for call in cancelled {
            self.skipped.fetch_add(u64::from(!call.cell().is_shared()), Ordering::Release);
            call.into_cell().refuse(TaskError::cancelled());
        }
        for cell in stopped {
            cell.stop(TaskError::cancelled());
        }
        idle.iter().for_each(|worker| worker.unpark());
        self.end_if_over();
    }

    pub(super) fn terminated(&self) -> Terminated {
        if self.id.is_here() {
            return Terminated::new(std::future::ready(()));
        }
        Terminated::new(self.ended.clone().cancelled_owned())
    }

    pub(super) fn stats(&self) -> Stats {
        let state = self.state.lock();
        // Before those that run and wait, as a task goes from there to here.
        let skipped = self.ledger.skipped() + self.skipped.load(Ordering::Acquire);
        let look = || -> Vec<WorkerStats> {
            // All that have ended, and then all that run: a task goes the other way.
            let ended: Vec<u64> =
                state.workers.values().map(|worker| worker.completed.load(Ordering::Acquire)).collect();
            let of = |(worker, completed): (&Arc<Worker>, u64)| WorkerStats {
                index: worker.index,
                name: worker.name.clone(),
                pid: None,
                busy: worker.does.load(Ordering::Acquire) != FREE,
                completed,
            };
            state.workers.values().zip(ended).map(of).collect()
        };
        let Counts { taken: workers, queued, swept, submitted } = self.backlog.counts(look);
        Stats {
            queued: queued + state.async_lanes.live(),
            running: workers.iter().filter(|worker| worker.busy).count() + state.async_running.len(),
            submitted: submitted + state.submitted,
            completed: self.completed.load(Ordering::Relaxed)
                + workers.iter().map(|worker| worker.completed).sum::<u64>(),
            skipped: skipped + swept + state.async_lanes.swept(),
            retried: self.retried.load(Ordering::Relaxed),
            workers_lost: 0,
            workers,
        }
    }

    // ---- The backlog -----------------------------------------------------------------------------------------------

    /// A task that is to run once more: it was accepted before, so only a cancelling shutdown stops it.
    fn again(&self, call: Call) {
        self.retried.fetch_add(1, Ordering::Relaxed);
        let mut state = self.state.lock();
        if let Some(end) = state.phase.refuses_again() {
            drop(state);
            call.into_cell().stop(end);
            return;
        }
        if call.cell().is_async() {
            // Its earlier run hands its place on, if that hasn't left yet.
            let is_leaving = state.async_running.contains_key(&call.cell().id());
            if is_leaving || state.async_running.len() >= self.config.async_limit {
                state.async_lanes.push_front(call);
            } else {
                self.start_async(state, call);
            }
            return;
        }
        // Under the lock of the state, so that no shutdown comes in between.
        let _ = self.backlog.push(call, false);
        let wake = self.wake_for_more(&mut state);
        drop(state);
        self.wake(wake);
    }

    /// After a push: wakes or starts a worker, if nobody searches.
    fn wake_if_needed(&self) {
        if self.sleep.needs_wake() {
            let mut state = self.state.lock();
            let wake = self.wake_for_more(&mut state);
            drop(state);
            self.wake(wake);
        }
    }

    /// How many workers could be woken or started.
    fn spare(&self, state: &State) -> usize {
        state.idle.len() + (self.config.workers + state.blocked).saturating_sub(state.workers.len())
    }

    /// Picks a worker to wake or start, if there is something to find and nobody searches.
    fn wake_for_more(&self, state: &mut State) -> Wake {
        if self.sleep.searching() > 0 || self.spare(state) == 0 || self.backlog.is_empty() {
            return Wake::Nobody;
        }
        if let Some(worker) = state.idle.pop() {
            self.sleep.search(1);
            self.sleep.set_spare(self.spare(state));
            return Wake::Unpark(worker);
        }
        let index = state.next_index;
        state.next_index += 1;
        let worker = Arc::new(Worker {
            index,
            name: format!("{}-{index}", self.config.prefix),
            does: AtomicU8::new(FREE),
            completed: AtomicU64::new(0),
            place: Arc::default(),
            thread: Mutex::new(None),
            woken: AtomicBool::new(false),
        });
        state.workers.insert(index, worker.clone());
        if self.config.initializer.is_none() {
            // A worker with an initialiser searches only when that is done, so that several can start at once.
            self.sleep.search(1);
        }
        self.sleep.set_spare(self.spare(state));
        Wake::Start(worker)
    }

    fn wake(&self, wake: Wake) {
        match wake {
            Wake::Nobody => {}
            Wake::Unpark(worker) => worker.unpark(),
            Wake::Start(worker) => self.start_worker(worker),
        }
    }

    fn start_worker(&self, worker: Arc<Worker>) {
        let Some(pool) = self.this.upgrade() else {
            return;
        };
        let mut builder = std::thread::Builder::new().name(worker.name.clone());
        if let Some(bytes) = self.config.stack_size {
            builder = builder.stack_size(bytes);
        }
        let index = worker.index;
        if let Err(error) = builder.spawn(move || pool.work(&worker)) {
            let mut state = self.state.lock();
            state.workers.remove(&index);
            self.sleep.set_spare(self.spare(&state));
            let was_last = self.config.initializer.is_none() && self.sleep.found();
            if state.workers.is_empty() {
                // Nobody will ever run what waits.
                self.break_down(state, &format!("no worker thread could be started: {error}"));
                return;
            }
            // Those who have lain down meanwhile were not woken, because this one was counted on; and the others may have
            // ended. Nobody else is started, as that would most likely fail again.
            let wake = if was_last && !state.idle.is_empty() { self.wake_for_more(&mut state) } else { Wake::Nobody };
            drop(state);
            self.wake(wake);
            self.end_if_over();
        }
    }

    fn break_down(&self, mut state: MutexGuard<'_, State>, reason: &str) {
        let reason: Arc<str> = reason.into();
        state.phase.break_down(reason.clone());
        self.close();
        let mut pending = self.backlog.take_all();
        pending.extend(state.async_lanes.take_all());
        let idle = self.release_idle(&mut state);
        drop(state);
        self.room.close();
        for call in pending {
            call.reject(SubmitError::Broken(reason.clone()));
        }
        idle.iter().for_each(|worker| worker.unpark());
        self.end_if_over();
    }

    /// Takes all idle workers from the list; they search again and find that there is nothing more to come.
    fn release_idle(&self, state: &mut State) -> Vec<Arc<Worker>> {
        let idle = std::mem::take(&mut state.idle);
        self.sleep.search(idle.len());
        self.sleep.set_spare(self.spare(state));
        idle
    }

    /// Says that the pool has ended, if it has.
    fn end_if_over(&self) {
        let state = self.state.lock();
        // A blocking closure can't be stopped; after a shutdown "now" its future has ended, and its thread ends with it.
        let workers_are_over = match state.phase.mode() {
            Some(Shutdown::Now) => state.workers.values().all(|worker| worker.does.load(Ordering::Acquire) == RUNS),
            _ => state.workers.is_empty(),
        };
        let over = !state.phase.is_open()
            && workers_are_over
            && !self.clock.is_ending()
            && self.backlog.is_empty()
            && state.async_lanes.is_empty()
            && state.async_running.is_empty();
        drop(state);
        if over {
            let driver = self.driver.lock().take();
            drop(driver);
            self.ended.cancel();
        }
    }

    fn set_clock(&self, cell: &Arc<dyn Callable>, expiry: Expiry) {
        if let Err(error) = self.clock.set(cell, expiry) {
            // Better no task than one that outlives its time unseen.
            let reason = format!("the clock thread could not be started: {error}");
            cell.stop(TaskError::Rejected(SubmitError::Broken(reason.into())));
        }
    }

    // ---- Workers ---------------------------------------------------------------------------------------------------

    /// The life of a worker.
    fn work(self: Arc<Self>, worker: &Arc<Worker>) {
        *worker.thread.lock() = Some(std::thread::current());
        self.id.enter();
        context::set_place(worker.place.clone());
        set_blocking_observer(Some(Rc::new(GrowWhileBlocked { pool: self.this.clone() })));
        // Whoever started it has counted it as searching, unless there is an initialiser.
        let desk = Desk {
            pool: &self,
            worker,
            searches: Cell::new(self.config.initializer.is_none()),
            published: Cell::new(false),
        };
        if let Some(initializer) = self.config.initializer.clone() {
            let failure = match panic::catch(|| initializer(worker.index)) {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(format!("the initialiser of worker {} failed: {error}", worker.index)),
                Err(report) => Some(format!("the initialiser of worker {} panicked{report}", worker.index)),
            };
            desk.search();
            if let Some(reason) = failure {
                let state = self.state.lock();
                self.break_down(state, &reason);
            }
        }
        while let Some(call) = desk.next() {
            desk.run(call);
        }
        self.end_if_over();
    }

    // ---- The asynchronous side -------------------------------------------------------------------------------------

    fn start_async(&self, mut state: MutexGuard<'_, State>, call: Call) {
        let Some(pool) = self.this.upgrade() else {
            return;
        };
        let cell = call.into_cell();
        let id = cell.id();
        state.async_running.insert(id, cell.clone());
        drop(state);
        let mut driver = self.driver.lock();
        if driver.is_none() {
            let pool_id = self.id;
            let name = format!("{}-async", self.config.prefix);
            let enter = move || pool_id.enter();
            match Driver::start(self.config.async_threads, &name, enter) {
                Ok(started) => *driver = Some(started),
                Err(error) => {
                    drop(driver);
                    let reason = format!("the asynchronous side could not be started: {error}");
                    Call::new(cell.clone()).reject(SubmitError::Broken(reason.into()));
                    self.end_async(cell, None);
                    return;
                }
            }
        }
        if let Some(driver) = &*driver {
            let observer = Arc::new(AsyncRunning { pool: pool.clone() });
            driver.spawn(async move {
                let ended = cell.clone().drive(observer).await;
                pool.end_async(cell, ended);
            });
        }
    }

    fn end_async(&self, cell: Arc<dyn Callable>, ended: Option<Ended>) {
        match ended {
            None => &self.skipped,
            Some(_) => &self.completed,
        }
        .fetch_add(1, Ordering::Relaxed);
        let mut refused = None;
        let mut state = self.state.lock();
        let own = state.async_running.remove(&cell.id());
        if ended == Some(Ended::Again) {
            self.retried.fetch_add(1, Ordering::Relaxed);
            let call = Call::new(cell.clone());
            match state.phase.refuses_again() {
                // In the same breath as it leaves, so that the pool is not over in between.
                None => state.async_lanes.push_front(call),
                Some(end) => refused = Some((call, end)),
            }
        }
        let next = if state.async_running.len() < self.config.async_limit { state.async_lanes.pop() } else { None };
        match next {
            Some(call) => self.start_async(state, call),
            None => drop(state),
        }
        if let Some((call, end)) = refused {
            call.into_cell().stop(end);
        }
        // Perhaps the last owners: dropping a value is user code and may panic.
        let _ = panic::catch(move || drop((own, cell)));
        self.end_if_over();
    }
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let state = self.state.lock();
        f.debug_struct("Pool")
            .field("config", &self.config)
            .field("phase", &state.phase)
            .field("workers", &state.workers.len())
            .field("idle", &state.idle.len())
            .field("queued", &(self.backlog.len() + state.async_lanes.len()))
            .finish_non_exhaustive()
    }
}

impl Worker {
    fn unpark(&self) {
        self.woken.store(true, Ordering::Release);
        if let Some(thread) = &*self.thread.lock() {
            thread.unpark();
        }
    }

    fn park(&self) {
        while !self.woken.swap(false, Ordering::Acquire) {
            std::thread::park();
        }
    }
}

/// The pool, as its clock knows it.
struct ClockOwner {
    id: PoolId,
    pool: Weak<Pool>,
}

impl clock::Owner for ClockOwner {
    fn enter(&self) {
        self.id.enter();
    }

    fn again(&self, call: Call) {
        if let Some(pool) = self.pool.upgrade() {
            pool.again(call);
        }
    }

    fn is_quiet(&self) {
        if let Some(pool) = self.pool.upgrade() {
            pool.end_if_over();
        }
    }
}

/// A worker, as it sees itself.
struct Desk<'a> {
    pool: &'a Pool,
    worker: &'a Arc<Worker>,
    /// Whether it counts as searching.
    searches: Cell<bool>,
    /// Whether the task that runs has said that it is about to publish.
    published: Cell<bool>,
}

impl Desk<'_> {
    /// Waits for a task. `None`: the worker is to end, and is none of the pool's any more.
    fn next(&self) -> Option<Call> {
        let mut has_spun = false;
        loop {
            if self.pool.too_many.load(Ordering::Relaxed) && self.leaves() {
                return None;
            }
            // Under the lock, so that those who count see a call in one place or the other.
            if let Some(call) = self.pool.backlog.pop(|| self.worker.does.store(TAKES, Ordering::Relaxed)) {
                self.found();
                return Some(call);
            }
            // In this order: while a value of the user's is dropped, somebody else is to search.
            self.clear();
            self.search();
            if !has_spun {
                has_spun = true;
                if self.spin() {
                    continue;
                }
            }
            match self.rest() {
                Rest::Disturbed => {}
                Rest::Woken => has_spun = false,
                Rest::Over => return None,
            }
        }
    }

    /// Counts as searching from now on.
    fn search(&self) {
        if !self.searches.replace(true) {
            self.pool.sleep.search(1);
        }
    }

    /// Does not search any more.
    fn found(&self) {
        if self.searches.replace(false) && self.pool.sleep.found() {
            let mut state = self.pool.state.lock();
            let wake = self.pool.wake_for_more(&mut state);
            drop(state);
            self.pool.wake(wake);
        }
    }

    /// Forgets the last task.
    fn clear(&self) {
        if let Some(cell) = self.worker.place.put(None) {
            self.let_go(cell);
        }
    }

    /// Looks for a task without the locks, for a bounded time: at first as closely as it can, and then whenever those who
    /// want the core have had it.
    fn spin(&self) -> bool {
        if self.pool.sleep.searching() > self.pool.spinners {
            return false;
        }
        let end = Instant::now() + SPIN;
        for turn in 0_u32.. {
            if self.pool.backlog.is_promising() {
                return true;
            }
            if turn < 64 {
                std::hint::spin_loop();
            } else {
                std::thread::yield_now();
                if Instant::now() >= end {
                    break;
                }
            }
        }
        false
    }

    /// Lies down until there is something to do.
    fn rest(&self) -> Rest {
        let pool = self.pool;
        let mut state = pool.state.lock();
        debug_assert!(self.searches.get(), "who lies down has been counted as searching");
        // A worker that ends is no longer there for those who count on one; so it looks as the others do.
        let over = !state.phase.is_open();
        if over {
            state.workers.remove(&self.worker.index);
        } else {
            state.idle.push(self.worker.clone());
        }
        pool.sleep.lie_down(pool.spare(&state));
        if !pool.backlog.is_empty() {
            if over {
                state.workers.insert(self.worker.index, self.worker.clone());
            } else {
                state.idle.pop();
            }
            pool.sleep.stand_up(pool.spare(&state));
            return Rest::Disturbed;
        }
        if over {
            self.retire();
            return Rest::Over;
        }
        drop(state);
        self.worker.park();
        // Whoever woke this worker has counted it as searching again.
        Rest::Woken
    }

    /// Ends if there are too many workers.
    fn leaves(&self) -> bool {
        let pool = self.pool;
        let mut state = pool.state.lock();
        let surplus = state.workers.len().saturating_sub(pool.config.workers + state.blocked);
        pool.too_many.store(surplus > 1, Ordering::Relaxed);
        if surplus == 0 {
            return false;
        }
        state.workers.remove(&self.worker.index);
        self.retire();
        pool.sleep.set_spare(pool.spare(&state));
        let last = self.searches.replace(false) && pool.sleep.found();
        let wake = if last { pool.wake_for_more(&mut state) } else { Wake::Nobody };
        drop(state);
        self.clear();
        pool.wake(wake);
        true
    }

    /// Hands its count over, under the lock of the state, as it leaves the list of workers.
    fn retire(&self) {
        self.pool.completed.fetch_add(self.worker.completed.load(Ordering::Relaxed), Ordering::Relaxed);
    }

    fn run(&self, call: Call) {
        let cell = call.into_cell();
        if let Some(last) = self.worker.place.put(Some(cell.clone())) {
            if Self::is_heavy(&last) {
                // Its waiter has gone meanwhile, and its value goes here; the new task must not wait for that.
                drop(self.worker.place.put(None));
                // Under the lock, so that those who count see the call in one place or the other.
                let free = || self.worker.does.store(FREE, Ordering::Release);
                self.pool.backlog.push_front(cell, free);
                self.let_go(last);
                return;
            }
            let _ = panic::catch(move || drop(last));
        }
        if self.pool.stopping.load(Ordering::SeqCst) {
            cell.stop(TaskError::cancelled());
        }
        self.worker.does.store(RUNS, Ordering::Release);
        self.published.set(false);
        let (cell, ended) = cell.run(self);
        if !self.published.get() {
            self.about_to_publish();
        }
        match ended {
            None => {
                // Of several tasks, the one that it came for.
                self.pool.skipped.fetch_add(1, Ordering::Release);
            }
            Some(Ended::Each) => {}
            Some(ended) => {
                self.count();
                if ended == Ended::Again {
                    drop(self.worker.place.put(None));
                    self.pool.again(Call::new(cell));
                    return;
                }
            }
        }
        if Arc::strong_count(&cell) <= 2 {
            // Nobody waits for it but this worker, here and in its place.
            drop(self.worker.place.put(None));
            self.let_go(cell);
        } else {
            let _ = panic::catch(move || drop(cell));
        }
    }

    fn count(&self) {
        let completed = &self.worker.completed;
        completed.store(completed.load(Ordering::Relaxed) + 1, Ordering::Release);
    }

    /// Drops a task that has ended. If nobody has taken its value, the value goes here, and its `Drop` may take its time: somebody
    /// else must search then.
    fn let_go(&self, cell: Arc<dyn Callable>) {
        if Self::is_heavy(&cell) {
            self.found();
            self.pool.wake_if_needed();
        }
        let _ = panic::catch(move || drop(cell));
    }

    /// Whether dropping this drops a value of the user's.
    fn is_heavy(cell: &Arc<dyn Callable>) -> bool {
        Arc::strong_count(cell) == 1 && cell.holds_value()
    }
}

/// How a rest ended.
enum Rest {
    /// There was something to do before it had begun.
    Disturbed,
    Woken,
    /// There will be nothing to do any more.
    Over,
}

impl RunObserver for Desk<'_> {
    fn limit(&self, cell: &Arc<dyn Callable>, expiry: Expiry) {
        self.pool.set_clock(cell, expiry);
    }

    fn about_to_publish(&self) {
        self.published.set(true);
        self.worker.does.store(FREE, Ordering::Release);
        // Where nobody is spare, nobody asks who searches.
        if self.pool.sleep.has_spare() {
            self.search();
        }
    }

    fn uses_place(&self) -> bool {
        true
    }

    fn goes_on(&self) -> bool {
        let pool = self.pool;
        !pool.backlog.is_urgent() && !pool.too_many.load(Ordering::Relaxed) && !pool.stopping.load(Ordering::Relaxed)
    }

    fn ended_one(&self) {
        self.count();
    }
}

/// A run on the asynchronous side.
struct AsyncRunning {
    pool: Arc<Pool>,
}

impl RunObserver for AsyncRunning {
    fn limit(&self, cell: &Arc<dyn Callable>, expiry: Expiry) {
        self.pool.set_clock(cell, expiry);
    }

    fn about_to_publish(&self) {}
}

/// Lets the pool have one more worker while a task of it waits for another one.
struct GrowWhileBlocked {
    pool: Weak<Pool>,
}

impl BlockingObserver for GrowWhileBlocked {
    fn about_to_block(&self) {
        let Some(pool) = self.pool.upgrade() else {
            return;
        };
        let mut state = pool.state.lock();
        if state.blocked >= MAX_EXTRA_WORKERS {
            drop(state);
            panic!(
                "a blocking wait inside a task: {MAX_EXTRA_WORKERS} tasks of this pool block on other tasks already, \
                 and it does not grow further; wait outside of the pool, or make the tasks asynchronous"
            );
        }
        state.blocked += 1;
        pool.sleep.set_spare(pool.spare(&state));
        let wake = pool.wake_for_more(&mut state);
        drop(state);
        pool.wake(wake);
    }

    fn resumed(&self) {
        if let Some(pool) = self.pool.upgrade() {
            let mut state = pool.state.lock();
            state.blocked -= 1;
            pool.sleep.set_spare(pool.spare(&state));
            if state.workers.len() > pool.config.workers + state.blocked {
                pool.too_many.store(true, Ordering::Relaxed);
            }
        }
    }
}
