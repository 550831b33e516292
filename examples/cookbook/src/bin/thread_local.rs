//! `threading.local`: each thread has an `x` of its own.

use std::cell::Cell;
use std::thread;

thread_local! {
    static X: Cell<u32> = const { Cell::new(0) };
}

fn main() {
    thread::spawn(|| {
        X.set(1);
        println!("worker: x = {}", X.get());
    })
    .join()
    .expect("the worker doesn't panic");
    println!("main: x = {}", X.get());
}
