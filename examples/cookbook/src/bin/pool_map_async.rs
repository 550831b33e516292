//! `multiprocessing.Pool.map_async`: squares of 0 to 9 as one result, which is waited for with a timeout.

use std::time::Duration;

use polypool::Pool;

#[polypool::task]
fn square(n: u64) -> u64 {
    n * n
}

#[polypool::main]
fn main() -> anyhow::Result<()> {
    let pool = Pool::processes(4)?;
    let mut result = pool.map_async(|n| square { n }, 0..10);
    println!("{:?}", result.wait_timeout(Duration::from_secs(10))??);
    pool.close();
    pool.join()?;
    Ok(())
}
