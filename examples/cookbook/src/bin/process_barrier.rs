//! `multiprocessing.Event` and `Barrier`: three processes start at one signal and wait for each other at the end.
//!
//! A process that dies breaks the barrier, and the others are told so; in Python they wait for ever.

use polypool::shared::{Barrier, Event};
use polypool::{ExecutorExt, ProcessPool};

#[polypool::task]
fn runner(n: u32, start: Event, finish: Barrier) {
    start.wait();
    println!("{n} runs");
    finish.wait_with(|| println!("all have run")).expect("nobody has died");
    println!("{n} goes home");
}

#[polypool::main]
fn main() -> anyhow::Result<()> {
    let pool = ProcessPool::builder().workers(3).build()?;
    let (start, finish) = (Event::new()?, Barrier::new(3)?);
    let runners = [1, 2, 3].map(|n| pool.submit(runner { n, start: start.clone(), finish: finish.clone() }));
    println!("go");
    start.set();
    for runner in runners {
        runner.wait()?;
    }
    Ok(())
}
