//! What a caller does itself while the supervisor rests: sends a call to an idle worker, and waits for the answer.
//!
//! A call and its answer take four wake-ups by way of the supervisor, and two without it. So a caller that finds the
//! supervisor resting and a worker idle writes the call into that worker's ring on its own thread, and one that blocks
//! for the answer of the one call that a worker has looks for it in the ring for a moment, as the supervisor would.
//!
//! ```text
//!   submit:  try the crew's lock ─▶ rests, nothing queued, a worker idle? ─▶ write the call   otherwise: the backlog
//!   wait:    try the crew's lock ─▶ rests, this call alone, due soon? ─▶ look ─▶ settle       otherwise: sleep
//! ```
//!
//! **Nobody depends on it.** All of it is given up at once when the lock is taken, and the supervisor goes on from
//! any state in which the lock is given back: a worker that was sent a call rings for its answer, as for any other.
//!
//! **No wake-up is lost.** The supervisor rests with a mark in each ring ([`Line::rest`](super::transport::Line::rest)).
//! Who looks takes the mark away, and so the worker doesn't ring; before the lock is given back, the mark is set again
//! (with a new number), and if something has come meanwhile, the supervisor is woken to read it. What callers and
//! cancellers have for the supervisor wakes it as ever, because it rests; it then waits for the lock, which is given
//! back as soon as the one who looks sees that there are news, be they from callers or from other workers.
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
//! has enough. So a caller settles small answers only, which can't be nested deeply, and leaves others to the supervisor.
//!
//! **A child of a plain `fork`** has no supervisor, and copies of its parent's rings, which it must not touch.
//!
//! **Callbacks** stay on the pool's threads: who has registered one for a task doesn't fetch its answer (`state.rs`).
//!
//! **The end.** A pool isn't over while a caller settles what it has read (`State::fetching`): the last task's future
//! has its outcome before [`shutdown`](crate::Executor::shutdown) says that the pool has ended.

use std::hint::spin_loop;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::thread::yield_now;
use std::time::Duration;

use parking_lot::Mutex;

use super::link::Sent;
use super::pool::Pool;
use super::supervisor::{Cast, Settlement, Supervisor, note, settle};
use crate::state::{Call, Ticket};
use crate::task::Reply;

/// For how long a caller looks: as long as it takes a worker that sleeps on another core to wake and to answer.
pub(super) const LOOK: Duration = Duration::from_micros(80);

/// So many calls aren't looked for after some looks in vain. The look of a caller is in nobody's way but its own, and
/// what it would otherwise wait for is longer.
pub(super) const SKIP: u32 = 8;

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
        let sent = worker.send(call);
        if matches!(sent, Sent::Yes) {
            worker.flush();
        } else {
            note(self, &mut crew.settlements, sent);
            self.notify.notify_one();
        }
        Ok(())
    }

    /// Looks for the answer to a call for a moment, if the supervisor doesn't.
    pub(super) fn fetch(&self, index: usize, ticket: Ticket) {
        // Whoever works for the pool must not wait for it.
        if !self.rests.load(Ordering::Relaxed) || self.id.is_here() {
            return;
        }
        let (Some(pool), Some(crew)) = (self.this.upgrade(), self.crew.get().and_then(Crew::get)) else { return };
        let Some(mut crew) = crew.try_lock() else { return };
        if !crew.may_fetch(index, ticket) {
            return;
        }
        {
            let mut state = self.state.lock();
            if state.awake {
                crew.fetches.give_up();
                return;
            }
            state.fetching += 1;
        }
        let is_spent = crew.look(index, ticket);
        let mut settlements = std::mem::take(&mut crew.settlements);
        let is_too_much = !settlements.iter().all(Settlement::is_small);
        if is_too_much {
            std::mem::swap(&mut settlements, &mut crew.settlements);
        }
        drop(crew);
        let has_put_back = settle(&pool, &mut settlements);
        let mut state = self.state.lock();
        state.fetching -= 1;
        let is_open = state.phase.is_open();
        drop(state);
        if is_spent || is_too_much || has_put_back || !is_open {
            self.notify.notify_one();
        }
    }
}

/// The largest answer that a caller decodes. Each level of nesting takes a byte of it, and up to some kilobytes of stack.
const SMALL: usize = 32;

impl Settlement {
    fn is_small(&self) -> bool {
        match self {
            Settlement::Reply(_, _, Reply::Value(message)) => message.bytes.len() <= SMALL,
            Settlement::Reply(..) | Settlement::Started(..) | Settlement::Progress(..) => true,
            _ => false,
        }
    }
}

impl Supervisor {
    fn may_fetch(&mut self, index: usize, ticket: Ticket) -> bool {
        self.has_core()
            && self.workers.get(&index).is_some_and(|worker| worker.is_about_to_answer(ticket))
            && self.fetches.again()
    }

    /// Looks, and reads what comes, until it's the answer or the time is up. Whether the worker takes no more calls.
    fn look(&mut self, index: usize, ticket: Ticket) -> bool {
        let mut come = true;
        for round in 0_u32.. {
            // The first time, this takes the mark away.
            if come
                && !self.readable(index)
                && let Some(worker) = self.workers.get_mut(&index)
            {
                worker.hang_up();
            }
            let Some(worker) = self.workers.get(&index).filter(|worker| worker.is_about_to_answer(ticket)) else {
                self.fetches.found();
                break;
            };
            come = (0..LOOKS).any(|_| {
                spin_loop();
                worker.has_something()
            });
            // Whoever has something for the supervisor has woken it, and it waits for the lock.
            if self.has_news() || self.workers.values().any(|other| other.index != index && other.has_something()) {
                self.fetches.give_up();
                break;
            }
            // Also if something comes all the time.
            if !self.fetches.again() {
                break;
            }
            if !come && round >= CLOSELY {
                yield_now();
            }
        }
        let Some(worker) = self.workers.get_mut(&index) else { return false };
        if !worker.is_deaf() && !worker.line.rest() {
            self.pool.notify.notify_one();
        }
        worker.is_spent()
    }
}
