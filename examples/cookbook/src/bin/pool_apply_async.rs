//! `multiprocessing.Pool.apply_async`: squares of 0 to 9 at once; each result is waited for with a timeout.
//!
//! `AsyncResult.get(timeout)` is `wait_timeout`: the outer `Result` is the wait's, the inner one the task's.

use std::time::Duration;

use polypool::Pool;

#[polypool::task]
fn square(n: u64) -> u64 {
    n * n
}

#[polypool::main]
fn main() -> anyhow::Result<()> {
    let pool = Pool::processes(4)?;
    let results: Vec<_> = (0..10).map(|n| pool.apply_async(square { n })).collect();
    let mut squares = Vec::new();
    for mut result in results {
        squares.push(result.wait_timeout(Duration::from_secs(10))??);
    }
    println!("{squares:?}");
    pool.close();
    pool.join()?;
    Ok(())
}
