//! A `threading.Timer` that starts itself again: what repeats, until it is cancelled or dropped.
//!
//! The runs are on a fixed grid and never overlap; a tick for which there was no time is left out and counted.

use std::sync::mpsc::channel;
use std::time::Duration;

use polypool::ThreadPool;

fn main() -> anyhow::Result<()> {
    let pool = ThreadPool::builder().workers(1).build()?;
    let (ticker, ticks) = channel();
    let mut n = 0;
    let periodic = pool.spawn_every(Duration::from_millis(10), move || {
        n += 1;
        let _ = ticker.send(n);
    });
    for n in ticks.iter().take(3) {
        println!("tick {n}");
    }
    println!("cancelled: {}", periodic.cancel());
    println!("active: {}", periodic.is_active());
    Ok(())
}
