//! `Lock.acquire(blocking=False)`: does something else while the lock is taken.

use std::sync::Mutex;
use std::sync::mpsc::channel;
use std::thread;

fn main() {
    let counter = Mutex::new(0);
    let (has_lock, t1_has_lock) = channel();
    let (go_on, t1_goes_on) = channel::<()>();
    thread::scope(|scope| {
        let counter = &counter;
        scope.spawn(move || {
            let mut n = counter.lock().expect("no panic under the lock");
            has_lock.send(()).expect("t2 waits for it");
            let _ = t1_goes_on.recv(); // something that takes long
            *n += 1;
            println!("t1: counted to {n}");
        });
        scope.spawn(move || {
            t1_has_lock.recv().expect("t1 takes the lock");
            let mut go_on = Some(go_on);
            loop {
                if let Ok(mut n) = counter.try_lock() {
                    *n += 1;
                    println!("t2: counted to {n}");
                    return;
                }
                if let Some(t1) = go_on.take() {
                    println!("t2: the lock is taken, so something else meanwhile");
                    drop(t1);
                }
                thread::yield_now();
            }
        });
    });
}
