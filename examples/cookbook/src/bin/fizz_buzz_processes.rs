//! `multiprocessing.Process`: the five jobs of `fizz_buzz_sequential` in five processes.
//!
//! An `Instant` means nothing in another process, so the argument is the time of the wall clock.

use std::time::{Instant, SystemTime};

use polypool::{ExecutorExt, ProcessPool};

fn fizz_buzz(n: u64) -> &'static str {
    match (n % 3, n % 5) {
        (0, 0) => "fizz buzz",
        (0, _) => "fizz",
        (_, 0) => "buzz",
        _ => "",
    }
}

#[polypool::task]
fn job(number: u64, since: SystemTime) {
    println!("job {number}: start");
    let start = Instant::now();
    let words = (1..=(6 - number) * 200_000).filter(|n| !fizz_buzz(*n).is_empty()).count();
    let (own, total) = (start.elapsed().as_millis(), since.elapsed().unwrap_or_default().as_millis());
    println!("job {number}: end, {words} words, {own} ms, {total} ms since the beginning");
}

#[polypool::main]
fn main() -> anyhow::Result<()> {
    let since = SystemTime::now();
    let pool = ProcessPool::builder().workers(5).build()?;
    let jobs: Vec<_> = (1..=5).map(|number| pool.submit(job { number, since })).collect();
    for job in jobs {
        job.wait()?;
    }
    println!("all in {} ms", since.elapsed()?.as_millis());
    Ok(())
}
