//! `ProcessPoolExecutor.map`: four numbers checked in processes, the answers in the order of the numbers.
//!
//! Each element is a task; several iterables are zipped first. The failure of one element comes in its place, and the
//! later ones still come. The stream is lazy: it may be endless.

use polypool::{ExecutorExt, ProcessPool};

const NUMBERS: [u64; 4] = [10_897_409, 20_292_113, 31_518_271, 40_003_027];

#[polypool::task]
fn is_prime(n: u64) -> bool {
    n >= 2 && (2..).take_while(|d| d * d <= n).all(|d| !n.is_multiple_of(d))
}

#[polypool::main]
fn main() -> anyhow::Result<()> {
    let pool = ProcessPool::new()?;
    let answers = pool.map(NUMBERS.map(|n| is_prime { n })).blocking();
    for (n, answer) in NUMBERS.into_iter().zip(answers) {
        println!("{n} is prime: {}", answer?);
    }
    Ok(())
}
