//! `ProcessPoolExecutor.submit` and `Future.result`: four numbers checked in processes.
//!
//! Calling `is_prime(n)` runs it here; `is_prime { n }` is the same call as a value, which any pool can run. Dropping
//! the pool waits for nothing; the tasks are waited for.

use polypool::{ExecutorExt, ProcessPool};

const NUMBERS: [u64; 4] = [10_897_409, 20_292_113, 31_518_271, 40_003_027];

#[polypool::task]
fn is_prime(n: u64) -> bool {
    n >= 2 && (2..).take_while(|d| d * d <= n).all(|d| !n.is_multiple_of(d))
}

#[polypool::main]
fn main() -> anyhow::Result<()> {
    let pool = ProcessPool::new()?;
    let futures = NUMBERS.map(|n| (n, pool.submit(is_prime { n })));
    for (n, future) in futures {
        println!("{n} is prime: {}", future.wait()?);
    }
    Ok(())
}
