//! `Lock.acquire(timeout=...)`: two threads take two locks in opposite order, and a timeout finds the deadlock.
//!
//! Rust doesn't prevent deadlocks. What does: one order for all locks, one lock around both values, or no lock (a
//! channel to the owner). `parking_lot`'s locks have timeouts; std's haven't.

use std::sync::Barrier;
use std::thread;
use std::time::Duration;

use parking_lot::Mutex;

fn main() {
    let (a, b) = (Mutex::new("a"), Mutex::new("b"));
    let both_have_one = Barrier::new(2);
    thread::scope(|scope| {
        scope.spawn(|| {
            let first = a.lock();
            both_have_one.wait();
            match b.try_lock_for(Duration::from_millis(100)) {
                Some(second) => println!("t1: has {first} and {second}"),
                None => println!("t1: deadlock detected, gives {first} back"),
            }
        });
        scope.spawn(|| {
            let first = b.lock();
            both_have_one.wait();
            let second = a.lock(); // for ever, if t1 had no timeout
            println!("t2: has {first} and {second}");
        });
    });
}
