//! `threading.Thread`: two threads with names that run at the same time, and are joined.
//!
//! There is no `start`: `spawn` starts the thread and returns its handle. `join` also brings what the thread returned,
//! or its panic, which Python prints and forgets.

use std::thread;
use std::time::{Duration, Instant};

const TICK: Duration = Duration::from_millis(50); // a second in the Python program

fn ticks() -> u32 {
    let current = thread::current();
    for n in 1..=3 {
        println!("{}: tick {n}", current.name().unwrap_or("nameless"));
        thread::sleep(TICK);
    }
    3
}

fn main() -> std::io::Result<()> {
    let start = Instant::now();
    let t1 = thread::Builder::new().name("t1".into()).spawn(ticks)?;
    let t2 = thread::Builder::new().name("t2".into()).spawn(ticks)?;
    let ticked = [t1, t2].map(|thread| thread.join().expect("ticks doesn't panic"));
    println!("{} ticks in {} ms", ticked.iter().sum::<u32>(), start.elapsed().as_millis());
    Ok(())
}
