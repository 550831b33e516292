//! `multiprocessing.Lock`: five processes print a start and an end under one lock, so that no two mix.
//!
//! When a process dies while it holds the lock, the next one gets it and is told so (`LockError::Poisoned`). In Python
//! it would wait for ever.

use polypool::shared::Mutex;
use polypool::{ExecutorExt, ProcessPool};

#[polypool::task]
fn report(n: u32, lock: Mutex) {
    let _guard = lock.lock().expect("no process has died with it");
    println!("{n} start");
    println!("{n} end");
}

#[polypool::main]
fn main() -> anyhow::Result<()> {
    let pool = ProcessPool::builder().workers(5).build()?;
    let lock = Mutex::new(())?;
    let tasks: Vec<_> = (1..=5).map(|n| pool.submit(report { n, lock: lock.clone() })).collect();
    for task in tasks {
        task.wait()?;
    }
    Ok(())
}
