//! What a caller does itself while the supervisor rests: sends a call to an idle worker, and waits for the answer.
//!
//! A call and its answer take four wake-ups by way of the supervisor, and two without it. So a caller that finds the
//! supervisor resting and a worker idle writes the call into that worker's ring on its own thread, and one that blocks
//! for the answer of the only call in the pool looks for it in the ring for a moment, as the supervisor would.
//!
//! ```text
//!   submit:  try the crew's lock ─▶ rests, nothing queued, a worker idle? ─▶ write the call   otherwise: the backlog
//!   wait:    try the crew's lock ─▶ all is quiet but for this call, due soon? ─▶ look ─▶ settle   otherwise: sleep
//! ```
//!
//! **The plain case, and no other.** A caller takes an answer only while the supervisor rests and has nothing left to
//! settle, the backlog is empty, the pool is open and no other call is with any worker; so nobody waits for the worker
//! that becomes idle by it. And it takes it only if all that the worker has written is this one answer: a small value,
//! without handles or a block. Whatever else it has read stays with the worker as bytes that nobody has looked into
//! ([`Worker::glimpse`](super::link::Worker::glimpse)), and the supervisor is woken to read them first, in their order.
//!
//! **Nobody depends on it.** All of it is given up at once when the lock is taken, and the supervisor goes on from
//! any state in which the lock is given back: a worker that was sent a call rings for its answer, as for any other.
//!
//! **No wake-up is lost.** The supervisor rests with a mark in each ring
//! ([`Line::rest`](super::transport::Line::rest)).
//! Who looks takes one mark away, and so that worker doesn't ring. The lock isn't held from look to look, and each look
//! asks again whether the case is still the plain one. When the looks are over, one of these happens:
//!
//! * the answer has been taken, and nothing was in flight or queued any more at that moment, under both locks. The mark
//!   is set again under the same lock, and if something has come behind the answer, the supervisor is woken;
//! * something else has come, or the lock is taken: the supervisor is woken. It looks into all rings and sets all
//!   marks before it rests again;
//! * nothing has come: the mark is set again (with a new number), and if something has come just then, the supervisor
//!   is woken.
//!
//! What callers and cancellers have for the supervisor wakes it as ever, because it rests.
//!
//! **Nobody is rung for in vain.** A worker that has answered finds the mark still there, if whoever waits has not come
//! to look yet. It gives that thread a microsecond before it rings, which would wake the supervisor.
//!
//! **The supervisor gives way** (`Supervisor::gives_way`): it rests before it publishes the last answer to somebody who
//! blocks for it.
//!
//! **Order.** A call goes directly only when the backlog is empty and the supervisor has seen all that was submitted,
//! so it overtakes nobody.
//!
//! **Stacks.** Values that are nested deeply take more stack to be decoded than a caller may have; the supervisor
//! has enough. So a caller settles small answers only, which can't be nested deeply.
//!
//! **Time.** A caller looks for [`LOOK`] at most, never waits for a lock that is held for a turn, and reads [`MOST`]
//! bytes at most, whatever the worker writes.
//!
//! **A child of a plain `fork`** has no supervisor, and copies of its parent's rings, which it must not touch.
//!
//! **Threads.** Callbacks stay on the pool's threads: who has registered one for a task doesn't fetch its answer
//! (`state.rs`). Threads that work for a pool don't fetch either, so that a wait in a callback fails each time and not
//! by luck. What other user code runs while a caller settles (decoding, wakers, drops) finds itself on a thread of
//! the pool ([`Inside`]), as it would on the supervisor's.
//!
//! **The end.** A pool isn't over while a caller settles what it has read (`State::fetching`): the last task's future
//! has its outcome before [`shutdown`](crate::Executor::shutdown) says that the pool has ended.

use std::hint::spin_loop;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::thread::yield_now;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::link::{Glimpse, Sent};
use super::pool::Pool;
use super::supervisor::{Cast, Inside, Settlement, Supervisor, note, settle};
use crate::executor::inside::PoolId;
use crate::panic;
use crate::state::{Call, Ticket};
use crate::task::Reply;

/// For how long a caller looks: as long as it takes a worker that sleeps on another core to wake and to answer.
pub(super) const LOOK: Duration = Duration::from_micros(80);

/// So many calls aren't looked for after some looks in vain. The look of a caller is in nobody's way but its own, and
/// what it would otherwise wait for is longer.
pub(super) const SKIP: u32 = 8;

/// How much of a worker's words a caller reads at most.
pub(super) const MOST: usize = 256;

/// The largest answer that a caller decodes. Each level of nesting takes a byte of it, and up to some kilobytes of
/// stack.
pub(super) const SMALL: usize = 32;

/// How often a caller looks before it asks for the time, and whether there is something else to do.
const LOOKS: u32 = 16;

/// After so many times, those who want the core have it in between: perhaps it's the worker.
const CLOSELY: u32 = 4;

/// The way to the supervisor's state, for callers.
pub(super) struct Crew {
    supervisor: Weak<Mutex<Supervisor>>,
    /// The process that it's about.
    forks: u32,
}

impl Crew {
    pub(super) fn new(supervisor: &Cast) -> Self {
        Crew { supervisor: Arc::downgrade(supervisor), forks: polypool_ipc::fork_generation() }
    }

    fn get(&self) -> Option<Cast> {
        (polypool_ipc::fork_generation() == self.forks).then(|| self.supervisor.upgrade())?
    }
}

impl Pool {
    /// Sends the call to an idle worker, or gives it back for the backlog.
    pub(super) fn submit_directly(&self, call: Call) -> Result<(), Call> {
        if !self.rests.load(Ordering::Relaxed) {
            return Err(call);
        }
        let Some(crew) = self.crew.get().and_then(Crew::get) else { return Err(call) };
        let Some(mut crew) = crew.try_lock() else { return Err(call) };
        let Some(index) = crew.workers.values().find(|worker| worker.is_idle()).map(|worker| worker.index) else {
            return Err(call);
        };
        {
            let mut state = self.state.lock();
            let is_quiet = !state.awake && state.lanes.is_empty() && state.submitted == crew.seen;
            if !is_quiet || state.phase.check().is_err() {
                return Err(call);
            }
            state.submitted += 1;
            crew.seen = state.submitted;
            self.arrived.store(state.submitted, Ordering::Relaxed);
        }
        let Some(worker) = crew.workers.get_mut(&index) else { unreachable!("it was found under the same lock") };
        match worker.send(call) {
            Sent::Yes(permit) => {
                worker.flush();
                // Somebody may wait for it, whose waker is user code.
                drop(crew);
                let _ = panic::catch(move || drop(permit));
            }
            sent => {
                note(&mut crew.settlements, sent);
                self.notify.notify_one();
            }
        }
        Ok(())
    }

    /// Looks for the answer to a call for a moment, and at most `until` then, if the supervisor doesn't.
    pub(super) fn fetch(&self, index: usize, ticket: Ticket, until: Option<Instant>) {
        if !self.rests.load(Ordering::Relaxed) || PoolId::is_anywhere() {
            return;
        }
        let (Some(pool), Some(cast)) = (self.this.upgrade(), self.crew.get().and_then(Crew::get)) else { return };
        let most = Instant::now() + LOOK;
        let until = until.map_or(most, |until| until.min(most));
        let mut bytes = Vec::with_capacity(MOST);
        for round in 0_u32.. {
            let Some(mut crew) = cast.try_lock() else {
                if round > 0 {
                    // The mark is away, and whoever has the lock may not know of it.
                    self.notify.notify_one();
                }
                return;
            };
            if round == 0 {
                if !crew.is_quiet_but_for(index, ticket) || !crew.fetches.again() {
                    crew.fetches.give_up();
                    return;
                }
            } else if !crew.is_quiet_but_for(index, ticket) {
                crew.fetches.give_up();
                return crew.rest_again(index);
            }
            match crew.look(index, ticket, &mut bytes) {
                Glimpse::Nothing if Instant::now() < until => {}
                Glimpse::Nothing => {
                    crew.fetches.vain();
                    return crew.rest_again(index);
                }
                Glimpse::Other => {
                    crew.fetches.vain();
                    self.notify.notify_one();
                    return;
                }
                Glimpse::Value(message) => {
                    crew.fetches.found();
                    let fetching = Fetching::begin(&pool);
                    let is_left = crew.take_answer(index, ticket, Reply::Value(message));
                    crew.rest_again(index);
                    let mut settlements: Vec<_> = is_left.into_iter().collect();
                    drop(crew);
                    let inside = Inside::enter(pool.id);
                    let has_put_back = settle(&pool, &mut settlements);
                    drop(inside);
                    if has_put_back {
                        self.notify.notify_one();
                    }
                    drop(fetching);
                    return;
                }
            }
            drop(crew);
            if round >= CLOSELY {
                yield_now();
            }
        }
    }
}

/// Exists while a caller settles an answer, for which the end of the pool waits.
struct Fetching<'a>(&'a Pool);

impl<'a> Fetching<'a> {
    fn begin(pool: &'a Pool) -> Self {
        pool.state.lock().fetching += 1;
        pool.fetched.fetch_add(1, Ordering::Relaxed);
        Fetching(pool)
    }
}

impl Drop for Fetching<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.fetching -= 1;
        let is_open = state.phase.is_open();
        drop(state);
        if !is_open {
            self.0.notify.notify_one();
        }
    }
}

impl Supervisor {
    /// Whether the supervisor rests and has nothing to do, and this call is all that the pool has.
    fn is_quiet_but_for(&self, index: usize, ticket: Ticket) -> bool {
        let is_alone = self.workers.values().all(|worker| worker.in_flight() == 0 || worker.index == index)
            && self.workers.get(&index).is_some_and(|worker| worker.is_about_to_answer(ticket));
        if !is_alone || self.settles || !self.settlements.is_empty() || self.has_news() || !self.has_core() {
            return false;
        }
        let state = self.pool.state.lock();
        !state.awake && state.lanes.is_empty() && state.submitted == self.seen && state.phase.is_open()
    }

    /// Looks a few times. The first look takes the mark away.
    fn look(&mut self, index: usize, ticket: Ticket, bytes: &mut Vec<u8>) -> Glimpse {
        let Some(worker) = self.workers.get_mut(&index) else { return Glimpse::Other };
        for _ in 0..LOOKS {
            match worker.glimpse(ticket, bytes) {
                Glimpse::Nothing => spin_loop(),
                seen => return seen,
            }
        }
        Glimpse::Nothing
    }

    /// Takes the call off its worker, which is idle by it: nothing is queued or in flight at this moment that could use
    /// it.
    fn take_answer(&mut self, index: usize, ticket: Ticket, reply: Reply) -> Option<Settlement> {
        let worker = self.workers.get_mut(&index)?;
        let flight = worker.answered(ticket)?;
        worker.adapt(1);
        self.failed_starts = 0;
        let is_wanted = worker.is_spent() || self.workers.values().any(|worker| worker.in_flight() > 0);
        if is_wanted || !self.pool.state.lock().lanes.is_empty() {
            self.pool.notify.notify_one();
        }
        Some(Settlement::Reply(flight.cell, ticket, reply))
    }

    /// Sets the mark of a ring again, after looks.
    fn rest_again(&mut self, index: usize) {
        if let Some(worker) = self.workers.get_mut(&index)
            && !worker.is_deaf()
            && !worker.rest()
        {
            self.pool.notify.notify_one();
        }
    }
}
