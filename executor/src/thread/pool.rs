//! How the thread pool works: the backlog, the workers, and who wakes whom.
//!
//! All state is under one lock that is held for a push or a pop and never while a task or a callback runs.
//!
//! **Waking.** A wake-up costs a hundred times as much as a small task, so it is avoided where it can be. A worker
//! *searches* from the moment it has nothing to do until it has found a task or lies down; `searching` counts these.
//! Whoever pushes a task wakes (or starts) a worker only when nobody searches; a worker that finds a task and was the
//! last to search wakes the next one if there is more to find. So a flood of tasks wakes the workers one by one, each
//! woken by the one before, and a single task wakes one.
//!
//! No wake-up is lost: a searching worker looks into the backlog under the lock before it lies down, and in the same
//! critical section stops searching and enters the list of idle ones. A push under the same lock comes either before,
//! and is found, or after, and sees nobody searching.
//!
//! A worker begins to search just *before* it publishes an outcome, so that somebody who reads the outcome and submits
//! the next task at once finds this worker searching, and no second one is woken or started.
//!
//! **Lock order.** The lock of the pool is taken before the lock of a cell and never the other way round; a cell tells
//! its worker that it is about to publish by an atomic alone.

use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::thread::Thread;
use std::time::{Duration, Instant};

use futures_ext::{BlockingObserver, CancellationToken, set_blocking_observer};
use parking_lot::{Mutex, MutexGuard};

use super::MAX_EXTRA_WORKERS;
use super::driver::Driver;
use crate::backlog::{Lanes, Room};
use crate::clock::{self, Clock};
use crate::cores::cores;
use crate::error::{SubmitError, TaskError};
use crate::executor::inside::PoolId;
use crate::executor::{Phase, Refused, Shutdown, Slot, Stats, WorkerStats};
use crate::future::Terminated;
use crate::panic;
use crate::state::{Call, Callable, Ended, Expiry, RunObserver, TaskId};

/// For how long a worker looks for the next task before it lies down: about as long as a wake-up takes.
const SPIN: Duration = Duration::from_micros(20);

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
    /// Workers that look for a task; see the head of this file.
    searching: AtomicUsize,
    /// How many calls the backlog holds, for those who look without the lock.
    waiting: AtomicUsize,
    clock: Clock,
    driver: Mutex<Option<Driver>>,
    ended: CancellationToken,
    completed: AtomicU64,
    skipped: AtomicU64,
    retried: AtomicU64,
    spin: bool,
}

struct State {
    lanes: Lanes,
    async_lanes: Lanes,
    /// Asynchronous tasks that run, to cancel them on [`Shutdown::Now`].
    async_running: HashMap<TaskId, Arc<dyn Callable>>,
    phase: Phase,
    workers: BTreeMap<usize, Arc<Worker>>,
    next_index: usize,
    idle: Vec<Arc<Worker>>,
    /// Workers whose task blocks on another task; for each, the pool may have one more.
    blocked: usize,
    submitted: u64,
}

/// A worker, as others see it.
struct Worker {
    index: usize,
    name: String,
    busy: AtomicBool,
    completed: AtomicU64,
    current: Mutex<Option<Arc<dyn Callable>>>,
    thread: Mutex<Option<Thread>>,
    woken: AtomicBool,
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
            Pool {
                id,
                this: this.clone(),
                room: Room::new(config.backlog),
                state: Mutex::new(State {
                    lanes: Lanes::new(),
                    async_lanes: Lanes::new(),
                    async_running: HashMap::new(),
                    phase: Phase::default(),
                    workers: BTreeMap::new(),
                    next_index: 0,
                    idle: Vec::new(),
                    blocked: 0,
                    submitted: 0,
                }),
                searching: AtomicUsize::new(0),
                waiting: AtomicUsize::new(0),
                clock: Clock::new(format!("{}-clock", config.prefix), ClockOwner { id, pool: this.clone() }),
                driver: Mutex::new(None),
                ended: CancellationToken::new(),
                completed: AtomicU64::new(0),
                skipped: AtomicU64::new(0),
                retried: AtomicU64::new(0),
                spin: cores() > 1,
                config,
            }
        })
    }

    // ---- What users ask for ----------------------------------------------------------------------------------------

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
        let state = self.state.lock();
        if let Err(error) = state.phase.check() {
            return Err(Refused { call, error });
        }
        self.push(state, call, true);
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
        self.state.lock().phase.check()
    }

    pub(super) fn shut_down(&self, mode: Shutdown) {
        let mut state = self.state.lock();
        if !state.phase.shut_down(mode) {
            return;
        }
        let mut cancelled = Vec::new();
        let mut stopped = Vec::new();
        if mode >= Shutdown::CancelQueued {
            cancelled = state.lanes.take_all();
            cancelled.extend(state.async_lanes.take_all());
            self.waiting.store(0, Ordering::Relaxed);
        }
        if mode == Shutdown::Now {
            stopped.extend(state.workers.values().filter_map(|worker| worker.current.lock().clone()));
            stopped.extend(state.async_running.values().cloned());
        }
        let idle = self.release_idle(&mut state);
        drop(state);
        self.room.close();
        for call in cancelled {
            self.skipped.fetch_add(1, Ordering::Relaxed);
            call.into_cell().stop(TaskError::cancelled());
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
        let workers: Vec<WorkerStats> = state
            .workers
            .values()
            .map(|worker| WorkerStats {
                index: worker.index,
                name: worker.name.clone(),
                pid: None,
                busy: worker.busy.load(Ordering::Relaxed),
                completed: worker.completed.load(Ordering::Relaxed),
            })
            .collect();
        Stats {
            queued: state.lanes.live() + state.async_lanes.live(),
            running: workers.iter().filter(|worker| worker.busy).count() + state.async_running.len(),
            submitted: state.submitted,
            completed: self.completed.load(Ordering::Relaxed),
            skipped: self.skipped.load(Ordering::Relaxed),
            retried: self.retried.load(Ordering::Relaxed),
            workers_lost: 0,
            workers,
        }
    }

    // ---- The backlog -----------------------------------------------------------------------------------------------

    /// A task that is to run once more: it was accepted before, so only a cancelling shutdown stops it.
    fn again(&self, call: Call) {
        self.retried.fetch_add(1, Ordering::Relaxed);
        let state = self.state.lock();
        if let Some(end) = state.phase.refuses_again() {
            drop(state);
            call.into_cell().stop(end);
            return;
        }
        self.push(state, call, false);
    }

    fn push(&self, mut state: MutexGuard<'_, State>, call: Call, is_new: bool) {
        state.submitted += u64::from(is_new);
        if call.cell().is_async() {
            if state.async_running.len() < self.config.async_limit {
                self.start_async(state, call);
            } else {
                state.async_lanes.push(call);
            }
            return;
        }
        state.lanes.push(call);
        self.waiting.store(state.lanes.len(), Ordering::Relaxed);
        let wake = self.wake_for_more(&mut state);
        drop(state);
        self.wake(wake);
    }

    /// Picks a worker to wake or start, if there is something to find and nobody searches.
    fn wake_for_more(&self, state: &mut State) -> Wake {
        if state.lanes.is_empty() || self.searching.load(Ordering::SeqCst) > 0 {
            return Wake::Nobody;
        }
        if let Some(worker) = state.idle.pop() {
            self.searching.fetch_add(1, Ordering::SeqCst);
            return Wake::Unpark(worker);
        }
        if state.workers.len() >= self.config.workers + state.blocked {
            return Wake::Nobody;
        }
        let index = state.next_index;
        state.next_index += 1;
        let worker = Arc::new(Worker {
            index,
            name: format!("{}-{index}", self.config.prefix),
            busy: AtomicBool::new(false),
            completed: AtomicU64::new(0),
            current: Mutex::new(None),
            thread: Mutex::new(None),
            woken: AtomicBool::new(false),
        });
        state.workers.insert(index, worker.clone());
        if self.config.initializer.is_none() {
            // A worker with an initialiser searches only when that is done, so that several can start at once.
            self.searching.fetch_add(1, Ordering::SeqCst);
        }
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
            if self.config.initializer.is_none() {
                self.searching.fetch_sub(1, Ordering::SeqCst);
            }
            if state.workers.is_empty() {
                // Nobody will ever run what waits.
                self.break_down(state, &format!("no worker thread could be started: {error}"));
            }
        }
    }

    fn break_down(&self, mut state: MutexGuard<'_, State>, reason: &str) {
        let reason: Arc<str> = reason.into();
        state.phase.break_down(reason.clone());
        let mut pending = state.lanes.take_all();
        pending.extend(state.async_lanes.take_all());
        self.waiting.store(0, Ordering::Relaxed);
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
        self.searching.fetch_add(idle.len(), Ordering::SeqCst);
        idle
    }

    /// Says that the pool has ended, if it has.
    fn end_if_over(&self) {
        let state = self.state.lock();
        // A blocking closure can't be stopped; after a shutdown "now" its future has ended, and its thread ends with it.
        let workers_are_over = match state.phase.mode() {
            Some(Shutdown::Now) => state.workers.values().all(|worker| worker.busy.load(Ordering::SeqCst)),
            _ => state.workers.is_empty(),
        };
        let over = !state.phase.is_open()
            && workers_are_over
            && !self.clock.is_ending()
            && state.lanes.is_empty()
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
        set_blocking_observer(Some(Rc::new(GrowWhileBlocked { pool: self.this.clone() })));
        if let Some(initializer) = self.config.initializer.clone() {
            let failure = match panic::catch(|| initializer(worker.index)) {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(format!("the initialiser of worker {} failed: {error}", worker.index)),
                Err(report) => Some(format!("the initialiser of worker {} panicked{report}", worker.index)),
            };
            self.searching.fetch_add(1, Ordering::SeqCst);
            if let Some(reason) = failure {
                let state = self.state.lock();
                self.break_down(state, &reason);
            }
        }
        while let Some(call) = self.next(worker) {
            self.run(worker, call);
        }
        self.state.lock().workers.remove(&worker.index);
        self.end_if_over();
    }

    /// Waits for a task. The caller searches; afterwards it does not. `None`: the worker is to end.
    fn next(&self, worker: &Arc<Worker>) -> Option<Call> {
        let mut has_spun = !self.spin;
        let mut state = self.state.lock();
        loop {
            let surplus = state.workers.len() > self.config.workers + state.blocked;
            let call = if surplus { None } else { state.lanes.pop() };
            let over = surplus || !state.phase.is_open();
            if call.is_some() || over {
                self.waiting.store(state.lanes.len(), Ordering::Relaxed);
                self.searching.fetch_sub(1, Ordering::SeqCst);
                if let Some(call) = &call {
                    // Under the lock: whoever shuts the pool down finds a task either in the backlog or here.
                    worker.busy.store(true, Ordering::SeqCst);
                    *worker.current.lock() = Some(call.cell().clone());
                }
                if surplus {
                    state.workers.remove(&worker.index);
                }
                let wake = self.wake_for_more(&mut state);
                drop(state);
                self.wake(wake);
                return call;
            }
            if !has_spun {
                drop(state);
                self.spin();
                has_spun = true;
                state = self.state.lock();
                continue;
            }
            self.searching.fetch_sub(1, Ordering::SeqCst);
            state.idle.push(worker.clone());
            drop(state);
            worker.park();
            // Whoever woke this worker has counted it as searching again.
            has_spun = !self.spin;
            state = self.state.lock();
        }
    }

    /// Looks for a task without the lock, for a bounded time.
    fn spin(&self) {
        let end = Instant::now() + SPIN;
        while self.waiting.load(Ordering::Relaxed) == 0 {
            for _ in 0..16 {
                std::hint::spin_loop();
            }
            if Instant::now() >= end {
                return;
            }
        }
    }

    fn run(&self, worker: &Arc<Worker>, call: Call) {
        let cell = call.into_cell();
        let observer = Running { pool: self, worker, published: std::cell::Cell::new(false) };
        let ended = cell.clone().run(&observer);
        if !observer.published.get() {
            observer.about_to_publish();
        }
        drop(worker.current.lock().take());
        match ended {
            None => {
                self.skipped.fetch_add(1, Ordering::Relaxed);
            }
            Some(ended) => {
                self.completed.fetch_add(1, Ordering::Relaxed);
                worker.completed.fetch_add(1, Ordering::Relaxed);
                if ended == Ended::Again {
                    self.again(Call::new(cell));
                    return;
                }
            }
        }
        if Arc::strong_count(&cell) == 1 && cell.holds_value() {
            // Nobody waits: the value goes here, and its `Drop` may take its time. Somebody else must search then.
            self.searching.fetch_sub(1, Ordering::SeqCst);
            let mut state = self.state.lock();
            let wake = self.wake_for_more(&mut state);
            drop(state);
            self.wake(wake);
            let _ = panic::catch(move || drop(cell));
            self.searching.fetch_add(1, Ordering::SeqCst);
        } else {
            let _ = panic::catch(move || drop(cell));
        }
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
            .field("queued", &(state.lanes.len() + state.async_lanes.len()))
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

/// A run on a worker thread.
struct Running<'a> {
    pool: &'a Pool,
    worker: &'a Worker,
    published: std::cell::Cell<bool>,
}

impl RunObserver for Running<'_> {
    fn limit(&self, cell: &Arc<dyn Callable>, expiry: Expiry) {
        self.pool.set_clock(cell, expiry);
    }

    fn about_to_publish(&self) {
        self.published.set(true);
        self.worker.busy.store(false, Ordering::SeqCst);
        self.pool.searching.fetch_add(1, Ordering::SeqCst);
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
        let wake = pool.wake_for_more(&mut state);
        drop(state);
        pool.wake(wake);
    }

    fn resumed(&self) {
        if let Some(pool) = self.pool.upgrade() {
            pool.state.lock().blocked -= 1;
        }
    }
}
