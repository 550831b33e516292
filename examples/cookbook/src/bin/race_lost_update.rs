//! A race: three threads read a number, wait, and write it back plus one. Two of the three updates are lost.
//!
//! In Python nothing warns of it. In Rust `n += 1` on something that several threads have doesn't compile: it must be
//! behind a lock (see `counter_lock`) or atomic. With atomics one can still write the race by hand, as here: a load and
//! a store are two steps. `N.fetch_add(1, SeqCst)` is one.

use std::sync::Barrier;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::thread;

static N: AtomicU32 = AtomicU32::new(0);

fn main() {
    let all_have_read = Barrier::new(3);
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let n = N.load(SeqCst);
                all_have_read.wait(); // Python sleeps here
                N.store(n + 1, SeqCst);
            });
        }
    });
    println!("final: {}, not 3", N.load(SeqCst));
}
