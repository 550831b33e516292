//! `threading.Lock`: three threads add one to a number, each under its lock, and no update is lost.
//!
//! The lock owns what it guards: nobody gets at the number without it, and it is released when the guard goes out of
//! scope, also after a panic.

use std::sync::Mutex;
use std::thread;

fn main() {
    let counter = Mutex::new(0);
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let mut n = counter.lock().expect("nobody panics under the lock");
                *n += 1;
                println!("{n}");
            });
        }
    });
    println!("final: {}", counter.into_inner().expect("nobody panicked under the lock"));
}
