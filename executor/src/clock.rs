//! The clock of a pool: one thread, started with the first task that has a timeout or a deadline, that ends tasks when
//! their time is up. It holds tasks weakly, so a task that is done is not kept for the sake of its timer.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Instant;

use parking_lot::{Condvar, Mutex};

use crate::future::after;
use crate::panic;
use crate::state::{Call, Callable, Ended, Expiry};

/// Below this many timers, those of finished tasks are not worth looking for.
const SWEEP_MIN: usize = 1024;

/// Ends tasks in time, until it is dropped.
pub(crate) struct Clock {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    thread_name: String,
    /// Tasks that are being ended just now, and may come back into the backlog.
    ending: AtomicUsize,
    owner: Box<dyn Owner>,
}

/// The pool that a clock is of.
pub(crate) trait Owner: Send + Sync {
    /// Makes the clock's thread one of the pool's: callbacks of tasks that run out of time are called there.
    fn enter(&self);
    /// Puts a task back that has a retry left.
    fn again(&self, call: Call);
    /// Nothing of what was being ended will come back any more: perhaps the pool is over.
    fn is_quiet(&self);
}

struct State {
    timers: BinaryHeap<Reverse<Timer>>,
    sweep_at: usize,
    running: bool,
    closed: bool,
}

struct Timer {
    at: Instant,
    expiry: Expiry,
    cell: Weak<dyn Callable>,
}

impl Clock {
    pub(crate) fn new(thread_name: String, owner: impl Owner + 'static) -> Self {
        Clock {
            shared: Arc::new(Shared {
                state: Mutex::new(State {
                    timers: BinaryHeap::new(),
                    sweep_at: SWEEP_MIN,
                    running: false,
                    closed: false,
                }),
                changed: Condvar::new(),
                thread_name,
                ending: AtomicUsize::new(0),
                owner: Box::new(owner),
            }),
        }
    }

    /// Whether a task is being ended that may come back into the backlog; the owner is told when that is over.
    pub(crate) fn is_ending(&self) -> bool {
        self.shared.ending.load(Ordering::SeqCst) > 0
    }

    /// Ends the task at that time, if it has not ended by then. An error means that the timer could not be set,
    /// because the system has no thread for the clock.
    pub(crate) fn set(&self, cell: &Arc<dyn Callable>, expiry: Expiry) -> std::io::Result<()> {
        let at = match expiry {
            Expiry::Deadline(at) => at,
            Expiry::Timeout { after: timeout, .. } => after(timeout),
        };
        // Whoever turns out to be the last owner of a cell drops user data; that must happen after the lock.
        let mut kept = Vec::new();
        let mut state = self.shared.state.lock();
        if state.timers.len() >= state.sweep_at {
            state.timers.retain(|Reverse(timer)| {
                timer.cell.upgrade().is_some_and(|cell| {
                    let waits = !cell.state().is_done();
                    kept.push(cell);
                    waits
                })
            });
            state.sweep_at = (state.timers.len() * 2).max(SWEEP_MIN);
        }
        let first = state.timers.peek().is_none_or(|Reverse(timer)| at < timer.at);
        state.timers.push(Reverse(Timer { at, expiry, cell: Arc::downgrade(cell) }));
        if !state.running && !state.closed {
            let shared = self.shared.clone();
            std::thread::Builder::new().name(shared.thread_name.clone()).spawn(move || shared.run())?;
            state.running = true;
        }
        drop(state);
        for cell in kept {
            let _ = panic::catch(move || drop(cell));
        }
        if first {
            self.shared.changed.notify_one();
        }
        Ok(())
    }
}

impl Drop for Clock {
    fn drop(&mut self) {
        self.shared.state.lock().closed = true;
        self.shared.changed.notify_one();
    }
}

impl Shared {
    fn run(&self) {
        self.owner.enter();
        let mut state = self.state.lock();
        while !state.closed {
            let Some(Reverse(next)) = state.timers.peek() else {
                self.changed.wait(&mut state);
                continue;
            };
            let at = next.at;
            if Instant::now() < at {
                self.changed.wait_until(&mut state, at);
                continue;
            }
            let due = state.timers.pop();
            drop(state);
            if let Some(Reverse(timer)) = due
                && let Some(cell) = timer.cell.upgrade()
            {
                self.ending.fetch_add(1, Ordering::SeqCst);
                if cell.expire(timer.expiry) == Ended::Again {
                    self.owner.again(Call::new(cell));
                } else {
                    // Perhaps the last owner: dropping a value is user code and may panic.
                    let _ = panic::catch(move || drop(cell));
                }
                self.ending.fetch_sub(1, Ordering::SeqCst);
                self.owner.is_quiet();
            }
            state = self.state.lock();
        }
    }
}

impl PartialEq for Timer {
    fn eq(&self, other: &Self) -> bool {
        self.at == other.at
    }
}

impl Eq for Timer {}

impl PartialOrd for Timer {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Timer {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.at.cmp(&other.at)
    }
}
