//! What the callers of a process pool and its supervisor share: the backlog, the phase, and the inbox by which callers
//! tell the supervisor of what they have ended.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use futures_ext::CancellationToken;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::direct::Crew;
use super::{Config, supervisor};
use crate::backlog::{Lanes, Room};
use crate::clock::{self, Clock};
use crate::error::{SubmitError, TaskError};
use crate::executor::inside::PoolId;
use crate::executor::{Phase, Refused, Shutdown, Slot, Stats, WorkerStats};
use crate::future::Terminated;
use crate::panic;
use crate::state::{Call, Callable, Expiry, RunObserver, Ticket};

/// The stack of the supervisor, which decodes results: the codec allows values that are nested 1,024 deep, and in a
/// build without optimisation each level takes some kilobytes.
const STACK: usize = 16 * 1024 * 1024;

pub(super) struct Pool {
    pub(super) id: PoolId,
    pub(super) this: Weak<Pool>,
    pub(super) config: Config,
    room: Room,
    pub(super) state: Mutex<State>,
    /// Whether the phase is another one than open: a hint, for those who would take the lock only to learn that.
    pub(super) is_closed: AtomicBool,
    /// Tasks that somebody ended while they were with a worker.
    pub(super) inbox: Mutex<Vec<Abandoned>>,
    /// Whether there is something in the inbox. Written under its lock.
    pub(super) has_news: AtomicBool,
    /// How many calls have been submitted, for a supervisor that looks without the lock.
    pub(super) arrived: AtomicU64,
    /// Whether the supervisor rests: a hint, for callers who can do without it then.
    pub(super) rests: AtomicBool,
    /// The way to all that the supervisor knows, from its start on.
    pub(super) crew: OnceLock<Crew>,
    /// Wakes the supervisor.
    pub(super) notify: Notify,
    pub(super) clock: Clock,
    pub(super) ended: CancellationToken,
    pub(super) completed: AtomicU64,
    pub(super) skipped: AtomicU64,
    pub(super) retried: AtomicU64,
    /// How many answers callers have read themselves; for tests, which find it in the `Debug` of a pool.
    pub(super) fetched: AtomicU64,
    pub(super) workers_lost: AtomicU64,
}

pub(super) struct State {
    pub(super) lanes: Lanes,
    pub(super) phase: Phase,
    /// Whether the supervisor's thread is there.
    pub(super) supervised: bool,
    pub(super) workers: BTreeMap<usize, Arc<WorkerInfo>>,
    pub(super) submitted: u64,
    /// Whether the supervisor looks once more at `submitted` before it rests, or has been woken to do so.
    pub(super) awake: bool,
    /// How many callers settle an answer that they have read.
    pub(super) fetching: usize,
}

/// A worker, as `stats()` shows it.
pub(super) struct WorkerInfo {
    pub(super) name: String,
    pub(super) pid: u32,
    pub(super) busy: AtomicBool,
    pub(super) completed: AtomicU64,
}

/// A call that its worker need not make any more.
pub(super) struct Abandoned {
    pub(super) worker: usize,
    pub(super) ticket: Ticket,
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
                    phase: Phase::default(),
                    supervised: false,
                    workers: BTreeMap::new(),
                    submitted: 0,
                    awake: false,
                    fetching: 0,
                }),
                is_closed: AtomicBool::new(false),
                inbox: Mutex::new(Vec::new()),
                has_news: AtomicBool::new(false),
                arrived: AtomicU64::new(0),
                rests: AtomicBool::new(false),
                crew: OnceLock::new(),
                notify: Notify::new(),
                clock: Clock::new(format!("{}-clock", config.prefix), ClockOwner { id, pool: this.clone() }),
                ended: CancellationToken::new(),
                completed: AtomicU64::new(0),
                skipped: AtomicU64::new(0),
                retried: AtomicU64::new(0),
                fetched: AtomicU64::new(0),
                workers_lost: AtomicU64::new(0),
                config,
            }
        })
    }

    pub(super) fn submit(&self, call: Call, slot: Option<Slot>) -> Result<(), Refused> {
        let cell = call.cell();
        match self.room.admit(slot, || self.check()) {
            Ok(Some(permit)) => cell.hold_permit(permit),
            Ok(None) => {}
            Err(error) => return Err(Refused { call, error }),
        }
        // Refused calls are refused before the work of encoding, and checked again when they enter the backlog.
        if self.is_closed.load(Ordering::Relaxed)
            && let Err(error) = self.check()
        {
            return Err(Refused { call, error });
        }
        if let Err(error) = cell.encode(true, self.config.max_message_size) {
            call.into_cell().stop(error.into());
            return Ok(());
        }
        if let Some(deadline) = cell.deadline() {
            self.limit(cell, Expiry::Deadline(deadline));
        }
        let call = match self.submit_directly(call) {
            Ok(()) => return Ok(()),
            Err(call) => call,
        };
        let mut state = self.state.lock();
        if let Err(error) = state.phase.check() {
            return Err(Refused { call, error });
        }
        if !state.supervised {
            if let Err(error) = self.start_supervisor() {
                let reason: Arc<str> = format!("the supervisor's thread could not be started: {error}").into();
                return Err(Refused { call, error: SubmitError::Broken(reason) });
            }
            state.supervised = true;
        }
        state.submitted += 1;
        self.arrived.store(state.submitted, Ordering::Relaxed);
        state.lanes.push(call);
        let wake = !std::mem::replace(&mut state.awake, true);
        self.rests.store(false, Ordering::Relaxed);
        drop(state);
        if wake {
            self.notify.notify_one();
        }
        Ok(())
    }

    /// Whether nothing can come into the backlog any more, and nothing is left in it or on its way back to it.
    pub(super) fn has_run_out(&self) -> bool {
        let state = self.state.lock();
        !state.phase.is_open() && state.lanes.is_empty() && !self.clock.is_ending() && state.fetching == 0
    }

    fn start_supervisor(&self) -> std::io::Result<()> {
        let Some(pool) = self.this.upgrade() else { return Ok(()) };
        // tokio panics where it lacks the descriptors for its pipe of signals.
        let runtime = panic::catch(|| tokio::runtime::Builder::new_current_thread().enable_all().build())
            .map_err(|report| std::io::Error::other(format!("tokio panicked{report}")))??;
        std::thread::Builder::new()
            .name(format!("{}-supervisor", self.config.prefix))
            .stack_size(STACK)
            .spawn(move || supervisor::run(runtime, pool))?;
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
        self.is_closed.store(true, Ordering::Relaxed);
        let cancelled = if mode >= Shutdown::CancelQueued { state.lanes.take_all() } else { Vec::new() };
        let supervised = state.supervised;
        drop(state);
        self.room.close();
        for call in cancelled {
            self.skipped.fetch_add(1, Ordering::Relaxed);
            call.into_cell().stop(TaskError::cancelled());
        }
        if supervised {
            self.notify.notify_one();
        } else {
            self.ended.cancel();
        }
    }

    pub(super) fn terminated(&self) -> Terminated {
        if self.id.is_here() {
            return Terminated::new(std::future::ready(()));
        }
        Terminated::new(self.ended.clone().cancelled_owned())
    }

    pub(super) fn poke(&self) {
        self.notify.notify_one();
    }

    pub(super) fn stats(&self) -> Stats {
        let state = self.state.lock();
        let workers: Vec<WorkerStats> = state
            .workers
            .iter()
            .map(|(index, worker)| WorkerStats {
                index: *index,
                name: worker.name.clone(),
                pid: Some(worker.pid),
                busy: worker.busy.load(Ordering::Relaxed),
                completed: worker.completed.load(Ordering::Relaxed),
            })
            .collect();
        Stats {
            queued: state.lanes.live(),
            running: workers.iter().filter(|worker| worker.busy).count(),
            submitted: state.submitted,
            completed: self.completed.load(Ordering::Relaxed),
            skipped: self.skipped.load(Ordering::Relaxed) + state.lanes.swept(),
            retried: self.retried.load(Ordering::Relaxed),
            workers_lost: self.workers_lost.load(Ordering::Relaxed),
            workers,
        }
    }

    /// Calls that go back into the backlog, in their order, before everything else of their priority. They were
    /// accepted before, so only a cancelling shutdown or a broken pool stops them.
    pub(super) fn put_back(&self, calls: Vec<Call>) {
        let mut state = self.state.lock();
        if let Some(end) = state.phase.refuses_again() {
            drop(state);
            for call in calls {
                call.into_cell().stop(end.clone());
            }
            return;
        }
        for call in calls.into_iter().rev() {
            state.lanes.push_front(call);
        }
    }

    /// Nothing will ever run here again, for this reason.
    pub(super) fn break_down(&self, reason: &str) {
        let reason: Arc<str> = reason.into();
        let mut state = self.state.lock();
        state.phase.break_down(reason.clone());
        self.is_closed.store(true, Ordering::Relaxed);
        let pending = state.lanes.take_all();
        drop(state);
        self.room.close();
        for call in pending {
            call.reject(SubmitError::Broken(reason.clone()));
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
        supervisor::enter(self.id);
    }

    fn again(&self, call: Call) {
        if let Some(pool) = self.pool.upgrade() {
            pool.retried.fetch_add(1, Ordering::Relaxed);
            pool.put_back(vec![call]);
        }
    }

    fn is_quiet(&self) {
        if let Some(pool) = self.pool.upgrade() {
            pool.notify.notify_one();
        }
    }
}

impl RunObserver for Pool {
    fn limit(&self, cell: &Arc<dyn Callable>, expiry: Expiry) {
        if let Err(error) = self.clock.set(cell, expiry) {
            // Better no task than one that outlives its time unseen.
            let reason = format!("the clock thread could not be started: {error}");
            cell.stop(TaskError::Rejected(SubmitError::Broken(reason.into())));
        }
    }

    fn about_to_publish(&self) {}
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let state = self.state.lock();
        f.debug_struct("Pool")
            .field("workers", &self.config.workers)
            .field("start_method", &self.config.start_method)
            .field("phase", &state.phase)
            .field("alive", &state.workers.len())
            .field("queued", &state.lanes.len())
            .field("fetched", &self.fetched.load(Ordering::Relaxed))
            .finish_non_exhaustive()
    }
}
