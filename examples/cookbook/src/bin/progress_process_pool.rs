//! `tqdm(pool.imap_unordered(...), total=...)`: a bar over the results of a process pool.

use std::thread;
use std::time::Duration;

use futures_ext::{Progress, ProgressIteratorExt};
use polypool::{ExecutorExt, ProcessPool};

#[polypool::task]
fn square(n: u64) -> u64 {
    thread::sleep(Duration::from_millis(5));
    n * n
}

#[polypool::main]
fn main() -> anyhow::Result<()> {
    let pool = ProcessPool::builder().workers(4).build()?;
    let squares = pool.map_unordered((0..100).map(|n| square { n })).blocking();
    let sum = squares.progress(Progress::new().description("squares").total(100)).sum::<Result<u64, _>>()?;
    println!("sum: {sum}");
    Ok(())
}
