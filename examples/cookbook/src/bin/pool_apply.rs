//! `multiprocessing.Pool.apply`: squares of 0 to 9, one call after the other.
//!
//! A task whose process dies is an error (`TaskError::WorkerLost`) at once; Python's pool never answers.

use polypool::Pool;

#[polypool::task]
fn square(n: u64) -> u64 {
    n * n
}

#[polypool::main]
fn main() -> anyhow::Result<()> {
    let pool = Pool::processes(4)?;
    let squares = (0..10).map(|n| pool.apply(square { n })).collect::<Result<Vec<_>, _>>()?;
    println!("{squares:?}");
    Ok(())
}
