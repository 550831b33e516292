//! The ledger's waiting under every interleaving: a mutex of loom stands for the ledger's lock (whose own protocol is
//! in `loom_lock.rs`), and a kernel without any "look again after a while" for the futex, so a wake-up that gets lost
//! is a deadlock, which loom reports.
#![cfg(any(target_os = "linux", target_os = "android"))]

use loom::sync::atomic::{AtomicU32, Ordering};
use loom::sync::{Arc, Condvar, Mutex};
use loom::thread;

#[path = "../src/sync/ledger/protocol.rs"]
mod protocol;

/// A semaphore without an owner: the smallest state that some wait for and others change.
struct World {
    permits: Mutex<u32>,
    version: AtomicU32,
    asleep: AtomicU32,
    /// The kernel's own lock, and a count of wake-ups by which its sleepers know that they are meant.
    woken: Mutex<u32>,
    changed: Condvar,
}

impl World {
    fn new(permits: u32) -> Arc<Self> {
        Arc::new(World {
            permits: Mutex::new(permits),
            version: AtomicU32::new(0),
            asleep: AtomicU32::new(0),
            woken: Mutex::new(0),
            changed: Condvar::new(),
        })
    }

    fn sleep(&self, expected: u32) {
        let mut woken = self.woken.lock().unwrap();
        // The read-modify-write is how loom is told that the kernel reads the newest value.
        if self.version.fetch_or(0, Ordering::SeqCst) != expected {
            return;
        }
        let before = *woken;
        while *woken == before {
            woken = self.changed.wait(woken).unwrap();
        }
    }

    fn wake_all(&self) {
        *self.woken.lock().unwrap() += 1;
        self.changed.notify_all();
    }

    fn change(&self, by: impl FnOnce(&mut u32)) {
        let mut permits = self.permits.lock().unwrap();
        by(&mut permits);
        let (_, wake) = protocol::commit(&self.version, &self.asleep);
        drop(permits);
        if wake {
            self.wake_all();
        }
    }

    fn acquire(&self) {
        loop {
            let permits = self.permits.lock().unwrap();
            if *permits > 0 {
                drop(permits);
                let mut got = false;
                self.change(|permits| {
                    if *permits > 0 {
                        *permits -= 1;
                        got = true;
                    }
                });
                if got {
                    return;
                }
                continue;
            }
            protocol::announce(&self.asleep);
            let version = self.version.load(Ordering::Relaxed);
            drop(permits);
            self.sleep(version);
        }
    }
}

fn model(run: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(2);
    builder.check(run);
}

#[test]
fn a_waiter_sees_a_change_that_comes_while_it_goes_to_sleep() {
    model(|| {
        let world = World::new(0);
        let waiter = thread::spawn({
            let world = world.clone();
            move || world.acquire()
        });
        world.change(|permits| *permits += 1);
        waiter.join().unwrap();
        assert_eq!(*world.permits.lock().unwrap(), 0);
    });
}

#[test]
fn two_waiters_both_get_what_two_changes_bring() {
    model(|| {
        let world = World::new(0);
        let waiters: Vec<_> = (0..2)
            .map(|_| {
                let world = world.clone();
                thread::spawn(move || world.acquire())
            })
            .collect();
        world.change(|permits| *permits += 1);
        world.change(|permits| *permits += 1);
        for waiter in waiters {
            waiter.join().unwrap();
        }
        assert_eq!(*world.permits.lock().unwrap(), 0);
    });
}
