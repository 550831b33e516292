//! `multiprocessing.Semaphore`: five processes, of which two at a time do their work.
//!
//! A permit is released by dropping it. Those of a process that dies come back; in Python they are gone.

use std::thread;
use std::time::Duration;

use polypool::shared::Semaphore;
use polypool::{ExecutorExt, ProcessPool};

#[polypool::task]
fn download(n: u32, two: Semaphore) {
    let _permit = two.acquire();
    println!("start {n}");
    thread::sleep(Duration::from_millis(20));
    println!("end {n}");
}

#[polypool::main]
fn main() -> anyhow::Result<()> {
    let pool = ProcessPool::builder().workers(5).build()?;
    let two = Semaphore::new(2)?;
    let tasks = [1, 2, 3, 4, 5].map(|n| pool.submit(download { n, two: two.clone() }));
    for task in tasks {
        task.wait()?;
    }
    println!("all done");
    Ok(())
}
