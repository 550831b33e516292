//! `multiprocessing.dummy.Pool` and `multiprocessing.pool.ThreadPool`: squares of 0 to 9 by the same words, on threads.

use polypool::Pool;

#[polypool::task]
fn square(n: u64) -> u64 {
    n * n
}

fn main() -> anyhow::Result<()> {
    let pool = Pool::threads(4)?;
    println!("{:?}", pool.map(|n| square { n }, 0..10)?);
    Ok(())
}
