//! `Thread.join(timeout)` and `is_alive`: waits for a thread, but not for ever.
//!
//! std's `JoinHandle` has no timeout; the future of a pool's task has one. It ends the wait and not the work, and says
//! by an error that it did, where Python's `join` returns `None` both times.

use std::sync::mpsc::channel;
use std::time::Duration;

use polypool::ThreadPool;

fn main() -> anyhow::Result<()> {
    let pool = ThreadPool::builder().workers(1).build()?;
    let (go_on, gate) = channel::<()>();
    let mut work = pool.spawn(move || {
        let _ = gate.recv(); // something that takes long
        "the result"
    });
    println!("join: {:?}", work.wait_timeout(Duration::from_millis(20)).map_err(|late| late.to_string()));
    println!("is_alive: {}", !work.is_done());
    drop(go_on);
    println!("join: {}", work.wait()?);
    Ok(())
}
