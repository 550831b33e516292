//! The supervisor: one thread of the parent that starts the workers, gives them calls, reads their replies and replaces
//! the dead.
//!
//! Everything here runs on a current-thread runtime; the state is behind a lock that is held for one [`turn`] at a
//! time and never across an await. User code (decoding, callbacks, drops of values) runs after the turn, when the lock
//! is free: what a turn decides is listed as [`Settlement`]s and performed then. (Only what an initialiser says is
//! decoded under the lock, once a worker and on this thread, for which no caller waits.) While the supervisor rests, a
//! caller may take the lock and do the little that a single call needs (`direct.rs`); processes and timers are out of
//! its reach, and what has to be done to them is left to the supervisor.
//!
//! A turn:
//!
//! 1. what has happened: bytes of a worker (`transport.rs`), its death, a cancelled call, a changed phase;
//! 2. `dispatch`: calls go from the backlog to workers that have room, workers are started while calls wait for one,
//!    and an idle worker takes over what was sent ahead to a busy one;
//! 3. the settlements; they may put calls back, and then it dispatches again.
//!
//! Turns follow each other in a [`bustle`], for as long as something comes: it looks for calls and answers in memory, and
//! comes back to the runtime when there are none, or when it is time to look after everything else. Nobody wakes the
//! supervisor meanwhile; before it rests, it says so and looks once more ([`Supervisor::rest`]).
//!
//! **A dead worker.** What it has written is read to the end first. Of the calls it has not answered, the one whose
//! claim says that it was begun is the task that died with it: [`TaskError::WorkerLost`]. The others go back to the
//! front of the backlog.
//!
//! **Stopping a running task.** First everything that was sent ahead is taken back, after which the worker can begin
//! with nothing else; then the task is told that it is cancelled; and if, after the grace, its claim still says that it
//! is running, the worker is killed. So a late kill never hits another task.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_ext::{BlockingObserver, set_blocking_observer};
use futures_util::FutureExt as _;
use parking_lot::Mutex;
use polypool_ipc::ClaimState;
use tokio::runtime::Runtime;
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::{LocalSet, spawn_blocking, spawn_local, yield_now};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::StartMethod;
use super::direct;
use super::link::{Sent, Stage, Worker};
use super::pool::Pool;
use super::start::{self, Started};
use super::transport::{self, ALLOWANCE, Looks, Socket};
use super::wire::{self, Header, Kind, Ready};
use crate::buffers;
use crate::codec::{self, Message};
use crate::context::Progress;
use crate::error::{CodecError, TaskError, WorkerExit, WorkerLost};
use crate::executor::Shutdown;
use crate::executor::inside::PoolId;
use crate::panic;
use crate::state::{Call, Callable, Ended, Ticket};
use crate::task::Reply;

/// After so many workers in a row that died before their first task, the pool is broken.
const MOST_FAILED_STARTS: u32 = 3;

/// How much of a worker's stderr is kept.
const TAIL: usize = 4 * 1024;

/// For how long a worker that was told to end may take.
const RETIRE_GRACE: Duration = Duration::from_secs(5);

/// For how long a worker that has closed its channel may take to end.
const END_GRACE: Duration = Duration::from_millis(100);

/// After how long luggage that did not get through is tried again.
const LUGGAGE_PAUSE: Duration = Duration::from_millis(2);

/// How much is read from one worker before the others have their turn.
const READ_AT_ONCE: usize = 8 * 1024 * 1024;

/// For how long calls and answers are looked after without asking the system what else has happened.
const BUSTLE: Duration = Duration::from_micros(500);

/// After so many looks, those who want the core have it in between: the caller who waits for the answer, or a worker.
const CLOSELY: u32 = 32;

/// For how long answers are left lying, where all workers have more than enough to do.
const NAP: Duration = Duration::from_micros(100);

/// The life of the supervisor's thread.
pub(super) fn run(runtime: Runtime, pool: Arc<Pool>) {
    enter(pool.id);
    let ended = pool.ended.clone();
    let buffers = buffers::Use::begin();
    LocalSet::new().block_on(&runtime, async {
        let supervisor: Cast = Supervisor::new(pool.clone());
        let _ = pool.crew.set(direct::Crew::new(&supervisor));
        loop {
            if pool.notify.notified().now_or_never().is_some() {
                // As it may be each time, while calls and answers come: ends, timers and sockets have their turn first.
                yield_now().await;
            } else {
                pool.notify.notified().await;
            }
            match bustle(&supervisor) {
                Bustle::Rests => {}
                Bustle::Goes => pool.notify.notify_one(),
                Bustle::Over => break,
            }
        }
    });
    PROCESSES.with_borrow_mut(HashMap::clear);
    #[cfg(target_os = "linux")]
    FORK_SERVER.set(None);
    // Without waiting for a thread that can't get rid of a worker's words.
    runtime.shutdown_background();
    drop(buffers);
    ended.cancel();
}

/// Makes this thread one of the pool's own, which call callbacks: it must not wait for the pool.
/// Gives back who was asked about blocking before.
pub(super) fn enter(id: PoolId) -> Option<Rc<dyn BlockingObserver>> {
    id.enter();
    set_blocking_observer(Some(Rc::new(NoBlocking)))
}

pub(super) type Cast = Arc<Mutex<Supervisor>>;

#[cfg(target_os = "linux")]
thread_local! {
    /// That of the supervisor whose thread this is: no caller has a use for it.
    static FORK_SERVER: RefCell<Option<Rc<super::forkserver::ForkServer>>> = const { RefCell::new(None) };
}

thread_local! {
    /// The processes of the workers of the supervisor whose thread this is, so that it can kill and signal them at
    /// once, before it does anything that takes time. On other threads there are none.
    static PROCESSES: RefCell<HashMap<(PoolId, usize), Rc<start::Handle>>> = RefCell::new(HashMap::new());
}

/// Kills a worker's process, if this is the thread of its supervisor.
pub(super) fn kill_here(id: PoolId, index: usize) {
    PROCESSES.with_borrow(|processes| {
        if let Some(process) = processes.get(&(id, index)) {
            process.kill();
        }
    });
}

#[cfg(target_os = "linux")]
fn fork_server() -> Option<Rc<super::forkserver::ForkServer>> {
    FORK_SERVER.with_borrow(Clone::clone)
}

/// Exists while a thread that is nobody's settles something: it's then as much the pool's as those that [`enter`].
pub(super) struct Inside {
    observer: Option<Rc<dyn BlockingObserver>>,
}

impl Inside {
    /// The thread must not work for a pool.
    pub(super) fn enter(id: PoolId) -> Self {
        Inside { observer: enter(id) }
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        PoolId::leave();
        set_blocking_observer(self.observer.take());
    }
}

/// Whoever blocks here blocks the whole pool, most likely on itself; it fails loudly instead.
struct NoBlocking;

impl BlockingObserver for NoBlocking {
    fn about_to_block(&self) {
        panic!(
            "a blocking wait inside a callback of a process pool would stop the whole pool; use another thread, or \
             asynchronous code"
        );
    }

    fn resumed(&self) {}
}

/// All that the supervisor knows, but for what belongs to its thread.
pub(super) struct Supervisor {
    pub(super) pool: Arc<Pool>,
    pub(super) workers: BTreeMap<usize, Worker>,
    next_index: usize,
    /// Workers whose process is being made.
    being_started: usize,
    pub(super) failed_starts: u32,
    pub(super) settlements: Vec<Settlement>,
    /// Whether the supervisor is settling what it has taken out of these.
    pub(super) settles: bool,
    /// Calls between the backlog and a worker; empty but for that moment.
    taken: VecDeque<Call>,
    /// How many calls had been submitted when it last looked.
    pub(super) seen: u64,
    looks: Looks,
    #[cfg(target_os = "linux")]
    spare: Spare,
    /// Those of callers.
    pub(super) fetches: Looks,
    this: Weak<Mutex<Supervisor>>,
    /// The strongest shutdown that has been carried out.
    carried_out: Option<Shutdown>,
    /// A signal that somebody asked for is on its way to the process.
    was_signalled: bool,
}

/// A process of the fork server that is forked, greeted and idle before anybody needs it. It is no worker yet: it takes
/// the place of the next one that has gone, which is then there at once.
#[cfg(target_os = "linux")]
#[derive(Default)]
struct Spare {
    process: Option<(usize, String, Started)>,
    is_coming: bool,
    /// One attempt for each worker that was lost: where none is, there are no more processes than workers, and a system that is
    /// out of something isn't asked again and again.
    is_due: bool,
}

/// What is to be done when nothing is locked, because it runs user code.
pub(super) enum Settlement {
    Reply(Arc<dyn Callable>, Ticket, Reply),
    Started(Arc<dyn Callable>, Ticket),
    Progress(Arc<dyn Callable>, Ticket, u32, Progress),
    Lost(Arc<dyn Callable>, Ticket, TaskError),
    Cancel(Arc<dyn Callable>),
    TakeBack(Arc<dyn Callable>, Ticket),
    /// A call that was to be sent had its outcome before.
    Skipped(Arc<dyn Callable>),
    /// There is room in the backlog, for which somebody may wait.
    Room(OwnedSemaphorePermit),
    /// The worker executable does not know the task.
    Unknown(Call, CodecError),
    PutBack(Vec<Call>),
    BreakDown(String),
}

/// Does one thing to the supervisor, and everything that follows from it. `true`: the pool has ended.
fn turn(supervisor: &Cast, what: impl FnOnce(&mut Supervisor)) -> bool {
    turn_and_rest(supervisor, what, false) == Turn::Over
}

/// How a turn ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    Done,
    /// The supervisor rests: see [`Supervisor::gives_way`].
    Rests,
    /// The pool has ended.
    Over,
}

/// As [`turn`]; if it `may_rest`, it gives way to callers that want to go on by themselves.
fn turn_and_rest(supervisor: &Cast, what: impl FnOnce(&mut Supervisor), may_rest: bool) -> Turn {
    let mut what = Some(what);
    let mut settlements = Vec::new();
    loop {
        let (pool, rests) = {
            let mut crew = supervisor.lock();
            crew.settles = false;
            crew.pass_signals();
            if let Some(what) = what.take() {
                what(&mut crew);
            }
            crew.carry_out_shutdown();
            crew.dispatch();
            if crew.settlements.is_empty() {
                if settlements.capacity() > crew.settlements.capacity() {
                    // Its memory serves the next turn.
                    crew.settlements = settlements;
                }
                return if crew.is_over() { Turn::Over } else { Turn::Done };
            }
            let rests = may_rest && crew.gives_way();
            std::mem::swap(&mut crew.settlements, &mut settlements);
            // Who rests has nothing but answers to settle, and no worker has a call.
            crew.settles = !rests;
            (crew.pool.clone(), rests)
        };
        let has_put_back = settle(&pool, &mut settlements);
        if rests {
            if !has_put_back {
                return Turn::Rests;
            }
            supervisor.lock().get_up();
        }
    }
}

/// What came of sending a call.
pub(super) fn note(settlements: &mut Vec<Settlement>, sent: Sent) {
    match sent {
        Sent::Yes(permit) => settlements.extend(permit.map(Settlement::Room)),
        Sent::WasSettled(cell) => settlements.push(Settlement::Skipped(cell)),
        Sent::NotNow(call) => settlements.push(Settlement::PutBack(vec![call])),
        Sent::Unknown(call, error) => settlements.push(Settlement::Unknown(call, error)),
    }
}

/// How a [`bustle`] ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bustle {
    /// Nothing more comes, and whoever has something from now on wakes the supervisor.
    Rests,
    /// There may be more, but it's time to look after other things.
    Goes,
    /// The pool has ended.
    Over,
}

/// Turns, as long as calls and answers come. A wake-up through the runtime costs several times what a small task does,
/// so what can be seen in memory is looked for there: new calls, and what stands in the rings.
fn bustle(supervisor: &Cast) -> Bustle {
    let begun = Instant::now();
    supervisor.lock().get_up();
    let mut what: fn(&mut Supervisor) = Supervisor::hear;
    let mut has_napped = false;
    loop {
        match turn_and_rest(supervisor, what, true) {
            Turn::Done => {}
            Turn::Rests => return Bustle::Rests,
            Turn::Over => return Bustle::Over,
        }
        what = Supervisor::gather;
        if begun.elapsed() >= BUSTLE {
            return Bustle::Goes;
        }
        let mut looks = 0;
        loop {
            let mut crew = supervisor.lock();
            if crew.has_come() {
                crew.looks.found();
                has_napped = false;
                break;
            }
            // Not again if nothing has come meanwhile: the tasks have become longer.
            if !has_napped && crew.can_nap() {
                has_napped = true;
                drop(crew);
                std::thread::sleep(NAP);
                continue;
            }
            if crew.may_look() && crew.looks.again() {
                drop(crew);
                looks += 1;
                if looks < CLOSELY {
                    std::hint::spin_loop();
                } else {
                    std::thread::yield_now();
                }
                continue;
            }
            if crew.rest() {
                return Bustle::Rests;
            }
            break;
        }
    }
}

/// Performs what was decided. Runs user code, so no lock is held. `true`: calls have gone back into the backlog.
pub(super) fn settle(pool: &Arc<Pool>, settlements: &mut Vec<Settlement>) -> bool {
    let mut back = Vec::new();
    for settlement in settlements.drain(..) {
        let (cell, ended) = match settlement {
            Settlement::Reply(cell, ticket, reply) => {
                pool.completed.fetch_add(1, Ordering::Relaxed);
                let ended = cell.reply(ticket, reply);
                (cell, ended)
            }
            Settlement::Lost(cell, ticket, error) => {
                pool.completed.fetch_add(1, Ordering::Relaxed);
                let ended = cell.lost(ticket, error);
                (cell, ended)
            }
            Settlement::Started(cell, ticket) => {
                cell.started(ticket, &**pool);
                continue;
            }
            Settlement::Progress(cell, ticket, attempt, progress) => {
                cell.clone().started(ticket, &**pool);
                cell.report_progress(attempt, progress);
                continue;
            }
            Settlement::Cancel(cell) => {
                pool.skipped.fetch_add(1, Ordering::Relaxed);
                cell.stop(TaskError::cancelled());
                continue;
            }
            Settlement::TakeBack(cell, ticket) => {
                if cell.take_back(ticket) {
                    back.push(Call::new(cell));
                } else {
                    // Cancelled meanwhile: as its worker has it no more, nobody else counts it.
                    pool.skipped.fetch_add(1, Ordering::Relaxed);
                }
                continue;
            }
            Settlement::Skipped(cell) => {
                pool.skipped.fetch_add(1, Ordering::Relaxed);
                let _ = panic::catch(move || drop(cell));
                continue;
            }
            Settlement::Room(permit) => {
                let _ = panic::catch(move || drop(permit));
                continue;
            }
            Settlement::Unknown(call, error) => {
                call.into_cell().stop(error.into());
                continue;
            }
            Settlement::PutBack(calls) => {
                back.extend(calls);
                continue;
            }
            Settlement::BreakDown(reason) => {
                pool.break_down(&reason);
                continue;
            }
        };
        if ended == Ended::Again {
            pool.retried.fetch_add(1, Ordering::Relaxed);
            back.push(Call::new(cell));
        } else {
            // Perhaps the last owner: dropping a value is user code and may panic.
            let _ = panic::catch(move || drop(cell));
        }
    }
    if back.is_empty() {
        return false;
    }
    pool.put_back(back);
    true
}

impl Supervisor {
    fn new(pool: Arc<Pool>) -> Cast {
        Arc::new_cyclic(|this| {
            Mutex::new(Supervisor {
                pool,
                workers: BTreeMap::new(),
                next_index: 0,
                being_started: 0,
                failed_starts: 0,
                settlements: Vec::new(),
                settles: false,
                taken: VecDeque::new(),
                seen: 0,
                looks: Looks::new(transport::LOOK, transport::SKIP),
                fetches: Looks::new(direct::LOOK, direct::SKIP),
                #[cfg(target_os = "linux")]
                spare: Spare::default(),
                this: this.clone(),
                carried_out: None,
                was_signalled: false,
            })
        })
    }

    /// Whether everything is done and nothing is left.
    fn is_over(&self) -> bool {
        let over = self.pool.has_run_out()
            && self.workers.is_empty()
            && self.being_started == 0
            && self.settlements.is_empty();
        #[cfg(target_os = "linux")]
        if over && self.spare.is_coming {
            return false;
        }
        #[cfg(target_os = "linux")]
        if over && let Some(server) = fork_server() {
            // Over when that has been reaped as well.
            server.end();
            return server.is_gone();
        }
        over
    }

    // ---- What callers have done ------------------------------------------------------------------------------------

    /// Reads the inbox.
    fn hear(&mut self) {
        let abandoned = {
            let mut inbox = self.pool.inbox.lock();
            self.pool.has_news.store(false, Ordering::Relaxed);
            std::mem::take(&mut *inbox)
        };
        for item in abandoned {
            let Some(worker) = self.workers.get_mut(&item.worker).filter(|worker| worker.has(item.ticket)) else {
                continue;
            };
            match worker.claim_state(item.ticket) {
                // Of a finished one, the reply is on the way; if it does not come, the worker is of no use.
                ClaimState::Started | ClaimState::Finished | ClaimState::Unknown => {
                    self.stop_running(item.worker, item.ticket);
                }
                ClaimState::Sent | ClaimState::Revoked => {
                    // The canceller has revoked it; if not, nobody can have started it and it is revoked now.
                    worker.revoke(item.ticket);
                    worker.forget(item.ticket);
                    self.pool.skipped.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
    }

    fn stop_running(&mut self, index: usize, ticket: Ticket) {
        let Some(worker) = self.workers.get_mut(&index) else { return };
        if worker.stage != Stage::Ready {
            return;
        }
        worker.stage = Stage::Stopping(ticket);
        let ahead = worker.take_back(usize::MAX);
        worker.cancel(ticket);
        self.give_back(ahead);
        let (this, grace) = (self.this.clone(), self.pool.config.kill_grace);
        spawn_local(async move {
            sleep(grace).await;
            if !still_running(&this, index, ticket, false) {
                return;
            }
            // It has ended the task and not yet said so: it gets the same time again.
            sleep(grace).await;
            still_running(&this, index, ticket, true);
        });
    }

    fn give_back(&mut self, flights: Vec<super::link::Flight>) {
        self.settlements.extend(flights.into_iter().map(|flight| Settlement::TakeBack(flight.cell, flight.ticket)));
    }

    /// What a [`Process`](crate::Process) is to be sent; before anything else ends it.
    fn pass_signals(&mut self) {
        let Some(watch) = &self.pool.config.watch else { return };
        for signal in watch.take_signals() {
            self.was_signalled = true;
            PROCESSES.with_borrow(|processes| {
                let own = self.workers.keys().filter_map(|index| processes.get(&(self.pool.id, *index)));
                own.for_each(|process| process.signal(signal));
            });
        }
    }

    fn carry_out_shutdown(&mut self) {
        let mode = self.pool.state.lock().phase.mode();
        if mode == self.carried_out || mode.is_none() {
            return;
        }
        self.carried_out = mode;
        match mode {
            Some(Shutdown::CancelQueued) => {
                for worker in self.workers.values_mut() {
                    let ahead = worker.take_back(usize::MAX);
                    self.settlements.extend(ahead.into_iter().map(|flight| Settlement::Cancel(flight.cell)));
                }
            }
            Some(Shutdown::Now) => {
                #[cfg(target_os = "linux")]
                if let Some(server) = fork_server() {
                    server.give_up();
                }
                for worker in self.workers.values_mut() {
                    worker.kill(None);
                    let all = worker.take_all();
                    self.settlements.extend(all.into_iter().map(|flight| Settlement::Cancel(flight.cell)));
                }
            }
            _ => {}
        }
    }

    // ---- Giving out work -------------------------------------------------------------------------------------------

    fn dispatch(&mut self) {
        for worker in self.workers.values_mut().filter(|worker| worker.is_spent()) {
            worker.retire();
        }
        loop {
            let waiting = {
                let state = self.pool.state.lock();
                self.seen = state.submitted;
                state.lanes.len()
            };
            if waiting == 0 {
                break;
            }
            let ready = self.workers.values().filter(|worker| worker.room() > 0).count();
            // An idle worker goes before a new one, and a new one before a call that is sent ahead.
            let idle = self.workers.values().find(|worker| worker.is_idle()).map(|worker| worker.index);
            let index = match idle {
                Some(index) => index,
                None => {
                    self.start_workers(waiting);
                    let next = self.workers.values().filter(|worker| worker.room() > 0).min_by_key(|w| w.in_flight());
                    match next {
                        Some(worker) => worker.index,
                        None => break,
                    }
                }
            };
            // Each gets its share of what waits, as far as it has room.
            let share = waiting.div_ceil(ready.max(1)).max(1);
            let Some(worker) = self.workers.get_mut(&index) else { break };
            let mut count = share.min(worker.room());
            if idle.is_some() && worker.in_flight() == 0 {
                count = count.max(1);
            }
            let mut calls = std::mem::take(&mut self.taken);
            {
                let mut state = self.pool.state.lock();
                calls.extend(std::iter::from_fn(|| state.lanes.pop()).take(count));
            }
            while let Some(call) = calls.pop_front() {
                match worker.send(call) {
                    Sent::NotNow(call) => {
                        calls.push_front(call);
                        break;
                    }
                    sent => note(&mut self.settlements, sent),
                }
            }
            let not_now = !calls.is_empty();
            if not_now {
                // They keep their turn. If there is another idle worker, they go there, otherwise to the first that is.
                let mut state = self.pool.state.lock();
                if state.phase.refuses_again().is_some() {
                    // The backlog has been cleared meanwhile, and they were not in it.
                    self.settlements.push(Settlement::PutBack(calls.drain(..).collect()));
                } else {
                    calls.drain(..).rev().for_each(|call| state.lanes.push_front(call));
                }
            }
            self.taken = calls;
            if not_now && idle.is_none() {
                break;
            }
        }
        self.share_out();
        for worker in self.workers.values_mut() {
            if worker.wants_write() {
                worker.flush();
            }
        }
        self.let_go();
    }

    /// Idle workers take over half of what was sent ahead to the busiest one.
    fn share_out(&mut self) {
        while self.pool.state.lock().lanes.is_empty() {
            let Some(idle) = self.workers.values().find(|worker| worker.is_idle()).map(|worker| worker.index) else {
                return;
            };
            let Some(busiest) =
                self.workers.values_mut().filter(|worker| worker.stage == Stage::Ready).max_by_key(|w| w.in_flight())
            else {
                return;
            };
            let ahead = busiest.in_flight().saturating_sub(1);
            if ahead == 0 {
                return;
            }
            let taken = busiest.take_back(ahead.div_ceil(2));
            if taken.is_empty() {
                return;
            }
            // From a cell's view the call goes back to the backlog and out again.
            let all = taken.len();
            let calls: Vec<Call> = taken
                .into_iter()
                .filter(|flight| flight.cell.take_back(flight.ticket))
                .map(|flight| Call::new(flight.cell))
                .collect();
            // The others were cancelled meanwhile, and their worker has them no more.
            self.pool.skipped.fetch_add((all - calls.len()) as u64, Ordering::Relaxed);
            let Some(worker) = self.workers.get_mut(&idle) else { return };
            let room = worker.room();
            let mut calls = calls.into_iter();
            let sent: Vec<Sent> = calls.by_ref().take(room).map(|call| worker.send(call)).collect();
            sent.into_iter().for_each(|sent| note(&mut self.settlements, sent));
            let rest: Vec<Call> = calls.collect();
            if !rest.is_empty() {
                self.settlements.push(Settlement::PutBack(rest));
                return;
            }
        }
    }

    /// Ends the workers when there is nothing more to come.
    fn let_go(&mut self) {
        // What is about to be put back must find its workers.
        if !self.pool.has_run_out() || self.settlements.iter().any(|next| !matches!(next, Settlement::Cancel(_))) {
            return;
        }
        self.pass_signals();
        #[cfg(target_os = "linux")]
        {
            // It ends when its channel does.
            self.spare.process = None;
        }
        for worker in self.workers.values_mut() {
            match worker.stage {
                Stage::Ready if worker.in_flight() == 0 => {
                    worker.retire();
                    worker.flush();
                }
                // A signal that is blocked while the process starts must not be overtaken by this one.
                Stage::Starting | Stage::Initialising if !self.was_signalled => worker.kill(None),
                _ => {}
            }
        }
    }

    // ---- Starting --------------------------------------------------------------------------------------------------

    /// Starts workers while calls wait and the pool has not its full number.
    fn start_workers(&mut self, waiting: usize) {
        loop {
            let coming = self.being_started
                + self.workers.values().filter(|w| matches!(w.stage, Stage::Starting | Stage::Initialising)).count();
            let alive = self.being_started + self.workers.len();
            if alive >= self.pool.config.workers || coming >= waiting || self.pool.state.lock().phase.is_broken() {
                return;
            }
            #[cfg(target_os = "linux")]
            if let Some((index, name, started)) = self.spare.process.take() {
                self.started(index, name, Ok(started));
                continue;
            }
            let (index, name) = self.next_name();
            match self.pool.config.start_method {
                StartMethod::Spawn => {
                    let started = start::spawn(&self.pool.config, &name);
                    let failed = started.is_err();
                    self.started(index, name, started);
                    if failed && !self.workers.is_empty() {
                        // Those that are there go on; the next turn tries again.
                        return;
                    }
                }
                #[cfg(target_os = "linux")]
                StartMethod::ForkServer => self.fork(index, name),
                #[cfg(not(target_os = "linux"))]
                StartMethod::ForkServer => unreachable!("the builder refuses it here"),
            }
        }
    }

    fn next_name(&mut self) -> (usize, String) {
        let index = self.next_index;
        self.next_index += 1;
        let name = match &self.pool.config.watch {
            Some(_) => self.pool.config.prefix.clone(),
            None => format!("{}-{index}", self.pool.config.prefix),
        };
        (index, name)
    }

    /// Has a process forked that takes the place of the next worker that goes. Called when there is nothing else to do.
    #[cfg(target_os = "linux")]
    fn keep_spare(&mut self) {
        if !self.spare.is_due {
            return;
        }
        let Some(server) = fork_server().filter(|server| !server.is_gone()) else { return };
        let is_needed = self.pool.config.watch.is_none() && self.workers.values().any(|worker| worker.has_worked);
        let is_free = self.spare.process.is_none() && !self.spare.is_coming && self.being_started == 0;
        if !is_needed || !is_free || !self.pool.state.lock().phase.is_open() {
            return;
        }
        self.spare.is_due = false;
        self.spare.is_coming = true;
        let (index, name) = self.next_name();
        let (this, pool) = (self.this.clone(), self.pool.clone());
        spawn_local(async move {
            let started = server.spawn(&pool.config, &name).await;
            if let Some(supervisor) = this.upgrade() {
                let over = turn(&supervisor, |supervisor| {
                    supervisor.spare.is_coming = false;
                    if supervisor.pool.state.lock().phase.is_open() {
                        supervisor.spare.process = started.ok().map(|started| (index, name, started));
                    }
                });
                if over {
                    pool.notify.notify_one();
                }
            }
        });
    }

    #[cfg(target_os = "linux")]
    fn fork(&mut self, index: usize, name: String) {
        use super::forkserver::ForkServer;
        let server = match fork_server().filter(|server| !server.is_gone()) {
            Some(server) => server,
            None => match ForkServer::start(&self.pool) {
                Ok(server) => {
                    FORK_SERVER.set(Some(server.clone()));
                    server
                }
                Err(error) => return self.started(index, name, Err(error)),
            },
        };
        self.being_started += 1;
        let (this, pool) = (self.this.clone(), self.pool.clone());
        spawn_local(async move {
            let started = server.spawn(&pool.config, &name).await;
            if let Some(supervisor) = this.upgrade() {
                let over = turn(&supervisor, |supervisor| {
                    supervisor.being_started -= 1;
                    supervisor.started(index, name, started);
                });
                if over {
                    pool.notify.notify_one();
                }
            }
        });
    }

    fn started(&mut self, index: usize, name: String, started: std::io::Result<Started>) {
        let made = started.and_then(|started| Worker::new(index, name, started, &self.pool));
        let (worker, body) = match made {
            Ok(made) => made,
            Err(error) => return self.start_failed(&error.to_string()),
        };
        self.pool.state.lock().workers.insert(index, worker.info.clone());
        if let Some(watch) = &self.pool.config.watch {
            watch.started(worker.info.pid);
        }
        let Some(this) = self.this.upgrade() else { return };
        self.workers.insert(index, worker);
        let process = Rc::new(body.process);
        PROCESSES.with_borrow_mut(|processes| processes.insert((self.pool.id, index), process.clone()));
        spawn_local(attend(this, index, process, body.stderr));
    }

    fn start_failed(&mut self, why: &str) {
        if self.workers.values().any(|worker| worker.has_worked || worker.in_flight() > 0) {
            // The program can be a worker; what it lacks now, memory or processes, may come back.
            return;
        }
        self.failed_starts += 1;
        if self.failed_starts >= MOST_FAILED_STARTS {
            let reason =
                format!("{MOST_FAILED_STARTS} workers in a row ended before their first task; the last: {why}");
            self.break_down(reason);
        }
    }

    fn break_down(&mut self, reason: String) {
        // Now, so that no further worker is started in this turn; the rest, which runs user code, afterwards.
        self.pool.state.lock().phase.break_down(reason.as_str().into());
        self.settlements.push(Settlement::BreakDown(reason));
    }

    // ---- What workers say ------------------------------------------------------------------------------------------

    /// Reads what a worker has sent. `false`: there will be nothing more.
    pub(super) fn readable(&mut self, index: usize) -> bool {
        let limit = self.pool.config.max_message_size;
        let (mut answers, mut total, mut allowance) = (0, 0, ALLOWANCE);
        let open = loop {
            let Some(worker) = self.workers.get_mut(&index) else { return false };
            // What a caller has left goes first. It may be nothing, where reading has failed and fails again.
            let read = match worker.take_left() {
                true => Ok(worker.read.len().max(1)),
                false => worker.receive(&mut allowance),
            };
            match read {
                Ok(0) => break false,
                Ok(count) => total += count,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break true,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == std::io::ErrorKind::InvalidData => {
                    worker.kill(Some(error.to_string()));
                    return false;
                }
                Err(_) => break false,
            }
            loop {
                let Some(worker) = self.workers.get_mut(&index) else { return false };
                let frame = match worker.take(limit) {
                    Ok(Some(frame)) => frame,
                    Ok(None) => break,
                    Err(what) => {
                        worker.kill(Some(what));
                        return false;
                    }
                };
                match self.frame(index, frame.0, frame.1) {
                    Ok(answer) => answers += usize::from(answer),
                    Err(what) => {
                        if let Some(worker) = self.workers.get_mut(&index) {
                            worker.kill(Some(what));
                        }
                        return false;
                    }
                }
            }
            if total >= READ_AT_ONCE {
                break true;
            }
        };
        if let Some(worker) = self.workers.get_mut(&index) {
            let mut too_much = Vec::new();
            if answers > 0 {
                worker.adapt(answers);
                // Where tasks have become longer, what was sent ahead for short ones comes back.
                too_much = worker.take_back(worker.in_flight().saturating_sub(worker.window()));
            }
            if worker.read.is_empty() && worker.read.capacity() > 1024 * 1024 {
                worker.read = bytes::BytesMut::new();
            }
            self.give_back(too_much);
        }
        open
    }

    /// One frame of a worker; `true` when it answers a call.
    fn frame(&mut self, index: usize, header: Header, payload: Message) -> Result<bool, String> {
        let Some(worker) = self.workers.get_mut(&index) else { return Ok(false) };
        match header.kind {
            Kind::Ready if worker.stage == Stage::Starting => {
                let ready: Ready = codec::decode(&payload.bytes)?;
                if ready.protocol != wire::PROTOCOL {
                    return Err(format!("version {} of the protocol, not {}", ready.protocol, wire::PROTOCOL));
                }
                if ready.ring && !worker.read.is_empty() {
                    return Err(format!("{} bytes behind its greeting", worker.read.len()));
                }
                worker.line.agree(ready.ring)?;
                worker.tasks = (0..).zip(ready.tasks).map(|(place, (name, text))| (name, (place, text))).collect();
                worker.stage = Stage::Ready;
                worker.poke.notify_one();
                let Some(initializer) = self.pool.config.initializer.clone() else { return Ok(false) };
                match worker.tasks.get(initializer.name) {
                    Some((task, signature)) if signature == initializer.signature => {
                        worker.initialise(*task, initializer.payload);
                        worker.flush();
                    }
                    _ => {
                        worker.kill(None);
                        self.break_down(format!(
                            "the worker executable has no task {:?}, which is the initialiser",
                            initializer.name
                        ));
                    }
                }
                Ok(false)
            }
            Kind::Value | Kind::Panicked | Kind::Codec => {
                let ticket = worker.ticket(&header);
                let is_expected = header.sequence == wire::INITIALIZER || worker.has(ticket);
                let reply = match header.kind {
                    // The handles in an answer that nobody waits for are not even received.
                    Kind::Value if is_expected => match worker.receive_luggage(&header)? {
                        Ok(luggage) => Reply::Value(Message { luggage, ..payload }),
                        Err(error) => Reply::Codec(error),
                    },
                    Kind::Value => Reply::Value(payload),
                    Kind::Panicked => Reply::Panicked(codec::decode(&payload.bytes)?),
                    _ => Reply::Codec(codec::decode(&payload.bytes)?),
                };
                if header.sequence == wire::INITIALIZER {
                    return self.initialised(index, reply).map(|()| false);
                }
                if !is_expected {
                    // After a shutdown "now", nothing is expected any more.
                    return if matches!(worker.stage, Stage::Dying(_)) {
                        Ok(false)
                    } else {
                        Err("an answer to a call that it does not have".to_owned())
                    };
                }
                let Some(flight) = worker.answered(ticket) else { return Ok(false) };
                if worker.stage == Stage::Stopping(ticket) {
                    worker.stage = Stage::Ready;
                }
                self.failed_starts = 0;
                self.settlements.push(Settlement::Reply(flight.cell, ticket, reply));
                Ok(true)
            }
            Kind::Started | Kind::Progress => {
                let Some(flight) = worker.flight(&header) else { return Ok(false) };
                flight.has_begun = true;
                let (cell, ticket) = (flight.cell.clone(), flight.ticket);
                self.settlements.push(if header.kind == Kind::Started {
                    Settlement::Started(cell, ticket)
                } else {
                    Settlement::Progress(cell, ticket, u32::from(header.attempt), codec::decode(&payload.bytes)?)
                });
                Ok(false)
            }
            kind => Err(format!("a frame {kind:?} that is not expected now")),
        }
    }

    fn initialised(&mut self, index: usize, reply: Reply) -> Result<(), String> {
        let Some(worker) = self.workers.get_mut(&index) else { return Ok(()) };
        let Some(initializer) = self.pool.config.initializer.as_ref().filter(|_| worker.stage == Stage::Initialising)
        else {
            return Err("an answer of an initialiser that it does not have".to_owned());
        };
        let result = match reply {
            Reply::Value(result) => (initializer.check)(result),
            Reply::Panicked(report) => Err(format!("it panicked{report}")),
            Reply::Codec(error) => Err(error.to_string()),
        };
        match result {
            Ok(()) => worker.stage = Stage::Ready,
            Err(error) => {
                worker.kill(None);
                self.break_down(format!("the initialiser of worker {index} failed: {error}"));
            }
        }
        Ok(())
    }

    // ---- Looking and resting ---------------------------------------------------------------------------------------

    /// Reads what stands in the rings.
    fn gather(&mut self) {
        let mut next = 0;
        while let Some(index) = self.workers.range(next..).find(|(_, worker)| worker.has_something()).map(|(at, _)| *at)
        {
            if !self.readable(index)
                && let Some(worker) = self.workers.get_mut(&index)
            {
                worker.hang_up();
            }
            next = index + 1;
        }
        if self.pool.has_news.load(Ordering::Relaxed) {
            self.hear();
        }
    }

    /// Whether something has happened, as far as can be seen without asking the system.
    fn has_come(&self) -> bool {
        self.has_news() || self.workers.values().any(|worker| worker.has_something())
    }

    /// Whether callers have done something.
    pub(super) fn has_news(&self) -> bool {
        self.pool.arrived.load(Ordering::Relaxed) != self.seen || self.pool.has_news.load(Ordering::Relaxed)
    }

    /// Whether every worker has so much to do that nobody is kept waiting if answers are left lying for a moment. They
    /// are then read in one go; otherwise each of them would wake the supervisor, on the core of a worker.
    fn can_nap(&self) -> bool {
        !self.has_core() && self.workers.values().all(Worker::is_well_fed)
    }

    /// Whether something is likely to come at once, and waiting for it with open eyes is in nobody's way.
    fn may_look(&self) -> bool {
        self.has_core() && self.workers.values().all(|worker| worker.in_flight() == 0 || worker.is_due())
    }

    /// The supervisor doesn't rest any more: nobody has to wake it.
    fn get_up(&self) {
        let mut state = self.pool.state.lock();
        state.awake = true;
        self.pool.rests.store(false, Ordering::Relaxed);
    }

    /// Before the supervisor waits for the system. `false`: something has come, for which nobody will wake it.
    fn rest(&mut self) -> bool {
        #[cfg(target_os = "linux")]
        self.keep_spare();
        let rests = self.workers.values_mut().filter(|worker| !worker.is_deaf()).all(Worker::rest);
        let mut state = self.pool.state.lock();
        // Whoever submits does so under this lock, and looks at `awake` there.
        if !rests || state.submitted != self.seen {
            return false;
        }
        state.awake = false;
        self.pool.rests.store(true, Ordering::Relaxed);
        true
    }

    /// Rests before the last answer is published, if whoever blocks for it is likely to have the next call at once: it
    /// then finds the supervisor resting, and does without it (`direct.rs`). Otherwise it would find it awake each
    /// time, and three threads would look for something on however many cores there are, for as long as this goes on.
    fn gives_way(&mut self) -> bool {
        matches!(self.settlements.last(), Some(Settlement::Reply(cell, ..)) if cell.is_awaited())
            && self.workers.values().all(|worker| worker.in_flight() == 0)
            && self.settlements.iter().all(|next| matches!(next, Settlement::Reply(..)))
            && self.has_core()
            && self.pool.state.lock().phase.is_open()
            && self.rest()
    }

    /// Whether there is a core on which this thread is in nobody's way.
    pub(super) fn has_core(&self) -> bool {
        let cores = transport::cores();
        self.workers.len() < cores || self.workers.values().filter(|worker| worker.in_flight() > 0).count() < cores
    }

    // ---- The end of a worker ---------------------------------------------------------------------------------------

    fn ended(&mut self, index: usize, exit: WorkerExit, stderr_tail: String) {
        // All that it has left behind: as much as a ring holds, and a socket holds less than `READ_AT_ONCE`, unless the system
        // lets it have buffers of megabytes. A stranger who has inherited its end and goes on writing can't keep us here.
        for _ in 0..=self.pool.config.ring_size / READ_AT_ONCE + 1 {
            if !self.readable(index) || !self.workers.get(&index).is_some_and(Worker::has_something) {
                break;
            }
        }
        let Some(mut worker) = self.workers.remove(&index) else { return };
        self.pool.state.lock().workers.remove(&index);
        let exit = match &worker.stage {
            Stage::Dying(Some(what)) => WorkerExit::Protocol(what.clone()),
            _ => exit,
        };
        if let Some(watch) = &self.pool.config.watch {
            watch.ended(exit.clone());
        }
        if worker.stage != Stage::Retiring {
            #[cfg(target_os = "linux")]
            {
                self.spare.is_due = true;
            }
            self.pool.workers_lost.fetch_add(1, Ordering::Relaxed);
        }
        let mut had_begun = false;
        for flight in worker.take_all() {
            // Or its canceller has done so, whose word has not been read yet.
            let is_unclaimed = worker.revoke(flight.ticket) || worker.claim_state(flight.ticket) == ClaimState::Revoked;
            // What it has said goes before what it has claimed, should it have lied.
            if is_unclaimed && !flight.has_begun {
                self.settlements.push(Settlement::TakeBack(flight.cell, flight.ticket));
                continue;
            }
            had_begun = true;
            let lost = WorkerLost {
                worker: index,
                pid: worker.info.pid,
                task: flight.cell.name().into_owned(),
                exit: exit.clone(),
                stderr_tail: stderr_tail.clone(),
            };
            self.settlements.push(Settlement::Lost(flight.cell, flight.ticket, TaskError::WorkerLost(Arc::new(lost))));
        }
        let by_us = matches!(worker.stage, Stage::Dying(None) | Stage::Retiring);
        if !worker.has_worked && !had_begun && !by_us {
            let when = match worker.stage {
                Stage::Starting => "before it was ready (does its program call polypool::init() first of all?)",
                Stage::Initialising => "in its initialiser",
                _ => "before its first task",
            };
            let words = stderr_tail.trim().lines().last().map_or_else(String::new, |line| format!(": {line}"));
            let why = format!("worker {index} (pid {}) {exit} {when}{words}", worker.info.pid);
            if worker.stage == Stage::Initialising {
                self.break_down(format!("the initialiser of worker {index} failed: {why}"));
            } else if self.pool.config.watch.is_some() {
                // A `Process` is one process: nobody takes its place after its end was told. (If it was terminated,
                // its task has been cancelled by now.)
                if self.pool.state.lock().phase.mode() < Some(Shutdown::CancelQueued) {
                    self.break_down(why);
                }
            } else {
                self.start_failed(&why);
            }
        }
    }
}

/// Looks after a stop whose grace is over. `true`: look again later.
fn still_running(this: &Weak<Mutex<Supervisor>>, index: usize, ticket: Ticket, last: bool) -> bool {
    let Some(supervisor) = this.upgrade() else { return false };
    let mut again = false;
    turn(&supervisor, |supervisor| {
        let Some(worker) = supervisor.workers.get_mut(&index) else { return };
        if worker.stage != Stage::Stopping(ticket) || !worker.has(ticket) {
            return;
        }
        if worker.claim_state(ticket) == ClaimState::Started || last && worker.in_flight() == 1 {
            worker.kill(None);
        } else {
            again = !last;
        }
    });
    again
}

/// Looks after one worker: its socket, its stderr, its start and its end.
async fn attend(supervisor: Cast, index: usize, process: Rc<start::Handle>, stderr: OwnedFd) {
    let parts = supervisor.lock().workers.get(&index).map(|worker| (worker.line.socket(), worker.poke.clone()));
    let Some((mut socket, poke)) = parts else { return };
    let tail = Rc::new(RefCell::new(Vec::new()));
    let listening = spawn_local(listen(stderr, tail.clone()));
    let pool = supervisor.lock().pool.clone();
    let handshake_timeout = pool.config.handshake_timeout;
    let ready_by = Instant::now() + handshake_timeout;
    let (mut retire_by, mut was_killed) = (None, false);
    let exit = loop {
        let (wants_write, luggage_waits, stage, is_deaf) = match supervisor.lock().workers.get_mut(&index) {
            Some(worker) => {
                socket = worker.line.socket();
                (worker.wants_write(), worker.luggage_waits(), worker.stage.clone(), worker.is_deaf())
            }
            None => (false, false, Stage::Dying(None), false),
        };
        // It may have been a caller who found that out, and can't kill.
        if matches!(stage, Stage::Dying(_)) && !std::mem::replace(&mut was_killed, true) {
            process.kill();
        }
        if is_deaf {
            break end(&process).await;
        }
        let wait_until = match stage {
            Stage::Starting => Some(ready_by),
            Stage::Retiring => Some(*retire_by.get_or_insert_with(|| Instant::now() + RETIRE_GRACE)),
            _ => None,
        };
        tokio::select! {
            // Where there is no pidfd, the exit is asked for when the channel has ended, and not before.
            exit = process.wait(), if cfg!(target_os = "linux") => break exit,
            result = something(&supervisor, index, &socket) => {
                let is_open = result.is_ok();
                let read = |supervisor: &mut Supervisor| {
                    if !(is_open && supervisor.readable(index))
                        && let Some(worker) = supervisor.workers.get_mut(&index)
                    {
                        worker.hang_up();
                    }
                };
                // Whether more comes is seen by the one who looks for all workers. Looking for it here as well would
                // keep the runtime from its timers, and from the ends of workers, once for each worker.
                if turn_and_rest(&supervisor, read, true) != Turn::Rests {
                    pool.notify.notify_one();
                }
            }
            () = room(&supervisor, index, &socket), if wants_write && !luggage_waits => {
                turn(&supervisor, |supervisor| {
                    if let Some(worker) = supervisor.workers.get_mut(&index) {
                        worker.flush();
                    }
                });
            }
            // Each turn flushes.
            () = sleep(LUGGAGE_PAUSE), if luggage_waits => {
                turn(&supervisor, |_| {});
            }
            () = poke.notified() => {}
            () = sleep_until(wait_until.unwrap_or(ready_by)), if wait_until.is_some() => {
                let why = match stage {
                    Stage::Starting => Some(format!(
                        "no handshake within {handshake_timeout:?}: does its program call polypool::init() first of all?"
                    )),
                    _ => None,
                };
                turn(&supervisor, |supervisor| {
                    if let Some(why) = why {
                        supervisor.start_failed(&why);
                    }
                    if let Some(worker) = supervisor.workers.get_mut(&index) {
                        worker.kill(None);
                    }
                });
                retire_by = None;
            }
        }
    };
    PROCESSES.with_borrow_mut(|processes| processes.remove(&(pool.id, index)));
    // A grandchild may hold stderr open for ever; its words are not waited for.
    let _ = timeout(Duration::from_millis(100), listening).await;
    let words = String::from_utf8_lossy(&tail.borrow()).into_owned();
    let over = turn(&supervisor, |supervisor| supervisor.ended(index, exit, words));
    if over {
        pool.notify.notify_one();
    }
}

/// Waits for the end of a worker that has closed its channel, which is thus of no more use. Most are ending just now;
/// then it is told how.
async fn end(process: &start::Handle) -> WorkerExit {
    if let Ok(exit) = timeout(END_GRACE, process.wait()).await {
        return exit;
    }
    process.kill();
    process.wait().await
}

/// Waits until there may be something to read from a worker.
///
/// # Cancellation safety
/// Can be dropped and called again: a rest that has begun goes on.
async fn something(supervisor: &Cast, index: usize, socket: &Socket) -> std::io::Result<()> {
    let rests = supervisor.lock().workers.get_mut(&index).is_none_or(Worker::rest);
    if rests {
        socket.readable().await
    } else {
        // The others go first, also if one worker writes as fast as its answers are read.
        yield_now().await;
        Ok(())
    }
}

/// Waits until there may be room for what is to be written to a worker.
///
/// # Cancellation safety
/// As [`something`].
async fn room(supervisor: &Cast, index: usize, socket: &Socket) {
    let (bell, rests) = match supervisor.lock().workers.get_mut(&index) {
        Some(worker) => (worker.line.room(), worker.line.rest_for_room()),
        None => return,
    };
    // An error shows when it is written.
    match bell {
        Some(bell) if rests => drop(bell.readable().await),
        // The others go first, also while a worker reads as fast as it is written to.
        Some(_) => yield_now().await,
        None => drop(socket.writable().await),
    }
}

/// Passes a worker's stderr on to ours and keeps the tail.
async fn listen(stderr: OwnedFd, tail: Rc<RefCell<Vec<u8>>>) {
    let Ok(stderr) = tokio::net::unix::pipe::Receiver::from_owned_fd(stderr) else { return };
    let mut buffer = [0; 4096];
    while stderr.readable().await.is_ok() {
        let count = match stderr.try_read(&mut buffer) {
            Ok(0) => return,
            Ok(count) => count,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => continue,
            Err(_) => return,
        };
        {
            let mut tail = tail.borrow_mut();
            tail.extend_from_slice(&buffer[..count]);
            let extra = tail.len().saturating_sub(TAIL);
            tail.drain(..extra);
        }
        // On another thread: whoever holds our stderr, or does not read it, stops this worker's words and nothing else.
        let words = buffer[..count].to_vec();
        let _ = spawn_blocking(move || std::io::stderr().write_all(&words)).await;
    }
}
