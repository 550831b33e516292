//! `threading.RLock`: a function that holds a lock calls itself, and takes the lock again.
//!
//! A plain lock would wait for itself for ever (`std`) or say so (`try_lock`). As several guards of a re-entrant lock
//! exist at once, it lends `&T` only, so what it guards is in a `Cell`. More often the Rust way is a function that is
//! given the `&mut T` and takes no lock.

use std::cell::Cell;

use parking_lot::ReentrantMutex;

fn count(n: &ReentrantMutex<Cell<u32>>, times: u32) {
    let guard = n.lock();
    println!("times {times}");
    guard.set(times);
    if times < 3 {
        count(n, times + 1);
    }
}

fn main() {
    let n = ReentrantMutex::new(Cell::new(0));
    count(&n, 0);
    println!("n = {}", n.lock().get());
}
