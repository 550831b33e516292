//! The clock of a server: one thread that ends waits when their time is up, and forgets objects that nobody came for.
//!
//! A timer that is no longer needed is taken out at once, so that many short waits with long timeouts keep no memory.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::server::{Server, Slot};

/// By what a timer is known.
pub(super) type Key = (Instant, u64);

/// What is to be done when the time is up.
pub(super) enum Alarm {
    /// A wait at an object ends.
    Expire { slot: Weak<Slot>, ticket: u64 },
    /// An object that was sent somewhere is no longer kept for whoever was to receive it.
    Unhold { object: u64 },
}

/// The timers of a server.
pub(super) struct Timers {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    alarms: BTreeMap<Key, Alarm>,
    next: u64,
    closed: bool,
}

impl Timers {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Timers { state: Mutex::default(), changed: Condvar::new() })
    }

    /// Starts the thread, which ends with [`close`](Self::close).
    pub(super) fn start(self: &Arc<Self>, server: Weak<Server>) -> io::Result<std::thread::JoinHandle<()>> {
        let timers = self.clone();
        std::thread::Builder::new().name("manager-clock".to_owned()).spawn(move || timers.run(&server))
    }

    fn run(&self, server: &Weak<Server>) {
        let mut state = self.state.lock();
        while !state.closed {
            let Some((&key, _)) = state.alarms.first_key_value() else {
                self.changed.wait(&mut state);
                continue;
            };
            if key.0 > Instant::now() {
                self.changed.wait_until(&mut state, key.0);
                continue;
            }
            let Some(alarm) = state.alarms.remove(&key) else { continue };
            parking_lot::MutexGuard::unlocked(&mut state, || match alarm {
                Alarm::Expire { slot, ticket } => {
                    if let Some(slot) = slot.upgrade() {
                        slot.object.expire(ticket);
                    }
                }
                Alarm::Unhold { object } => {
                    if let Some(server) = server.upgrade() {
                        server.unhold(object);
                    }
                }
            });
        }
    }

    /// Sets a timer. What is further away than the clock can count is never due, and is not kept.
    pub(super) fn set(&self, after: Duration, alarm: Alarm) -> Option<Key> {
        let at = Instant::now().checked_add(after)?;
        let mut state = self.state.lock();
        if state.closed {
            return None;
        }
        state.next += 1;
        let key = (at, state.next);
        let is_first = state.alarms.first_key_value().is_none_or(|(first, _)| key < *first);
        state.alarms.insert(key, alarm);
        if is_first {
            self.changed.notify_one();
        }
        Some(key)
    }

    /// Takes a timer out; it may just have gone off.
    pub(super) fn unset(&self, key: Key) {
        let alarm = self.state.lock().alarms.remove(&key);
        drop(alarm);
    }

    pub(super) fn close(&self) {
        let alarms = {
            let mut state = self.state.lock();
            state.closed = true;
            std::mem::take(&mut state.alarms)
        };
        self.changed.notify_all();
        drop(alarms);
    }
}
