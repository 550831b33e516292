//! `threading.Condition`: two workers wait under a lock for one signal, and those it wakes run one after the other.
//!
//! `wait_while` looks at the state under the lock, so neither a signal that came too early nor a wake-up without one
//! does harm. `notify` without the lock is allowed; Python raises RuntimeError.

use std::sync::{Condvar, Mutex};
use std::thread;

fn main() {
    let (started, changed) = (Mutex::new(false), Condvar::new());
    thread::scope(|scope| {
        for name in ["t1", "t2"] {
            let (started, changed) = (&started, &changed);
            scope.spawn(move || {
                let started = started.lock().expect("no panic under the lock");
                let _started = changed.wait_while(started, |started| !*started).expect("no panic under the lock");
                println!("{name} start");
                println!("{name} end"); // the lock is still held: the other one hasn't begun
            });
        }
        scope.spawn(|| {
            println!("t3 start");
            *started.lock().expect("no panic under the lock") = true;
            println!("t3 end");
            changed.notify_all();
        });
    });
}
