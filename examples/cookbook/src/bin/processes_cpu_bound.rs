//! `multiprocessing.Process` with work for the processor: twice the work on two processes takes the time of one.
//!
//! As threads do the same here (see `threads_cpu_bound`), processes are for work that may crash, hang or leak.

use std::hint::black_box;
use std::time::Instant;

use polypool::{ExecutorExt, ProcessPool};

#[polypool::task]
fn work() -> u64 {
    (0..2_000_000_u64).fold(0, |sum, n| black_box(sum + n % 7))
}

#[polypool::main]
fn main() -> anyhow::Result<()> {
    let pool = ProcessPool::builder().workers(2).build()?;
    for processes in [1, 2] {
        let start = Instant::now();
        let tasks: Vec<_> = (0..processes).map(|_| pool.submit(work {})).collect();
        let results = tasks.into_iter().map(|task| task.wait()).collect::<Result<Vec<u64>, _>>()?;
        println!("{processes} at once: {results:?} in {} ms", start.elapsed().as_millis());
    }
    Ok(())
}
