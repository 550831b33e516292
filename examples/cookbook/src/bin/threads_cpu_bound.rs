//! `threading.Thread` with work for the processor: twice the work on two threads takes the time of one, not of two.
//!
//! In CPython the interpreter's lock (GIL) lets one thread compute at a time. There is none here: on two cores, both
//! lines show about the same time.

use std::hint::black_box;
use std::thread;
use std::time::Instant;

fn work() -> u64 {
    (0..2_000_000_u64).fold(0, |sum, n| black_box(sum + n % 7))
}

fn main() {
    for threads in [1, 2] {
        let start = Instant::now();
        let handles: Vec<_> = (0..threads).map(|_| thread::spawn(work)).collect();
        let results: Vec<u64> = handles.into_iter().map(|handle| handle.join().expect("no panic")).collect();
        println!("{threads} at once: {results:?} in {} ms", start.elapsed().as_millis());
    }
}
