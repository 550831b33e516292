//! `threading.Timer`: five delayed starts, one of them cancelled before it fires.
//!
//! A timer is a task of a pool that enters its backlog later; what comes back is the future of any other task. `cancel`
//! says whether it came in time.

use std::time::{Duration, Instant};

use polypool::ThreadPool;

const UNIT: Duration = Duration::from_millis(30); // a second in the Python program

fn main() -> anyhow::Result<()> {
    let pool = ThreadPool::builder().workers(1).build()?;
    let begin = Instant::now();
    let timers = [1, 2, 3, 4, 5].map(|n| {
        pool.spawn_after(UNIT * n, move || println!("timer {n} fires after {} ms", begin.elapsed().as_millis()))
    });
    println!("timer 3 cancelled: {}", timers[2].cancel());
    for timer in timers {
        if let Err(error) = timer.wait() {
            println!("not fired: {error}");
        }
    }
    Ok(())
}
