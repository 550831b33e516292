//! `Future.add_done_callback`: four numbers checked in processes; each prints its answer when it is there.
//!
//! A callback runs on the thread that decides the outcome and should be short. What it is given is the outcome, and not
//! the future.

use polypool::{Executor, ExecutorExt, ProcessPool, Shutdown};

const NUMBERS: [u64; 4] = [10_897_409, 20_292_113, 31_518_271, 40_003_027];

#[polypool::task]
fn is_prime(n: u64) -> bool {
    n >= 2 && (2..).take_while(|d| d * d <= n).all(|d| !n.is_multiple_of(d))
}

#[polypool::main]
fn main() -> anyhow::Result<()> {
    let pool = ProcessPool::new()?;
    for n in NUMBERS {
        let future = pool.submit(is_prime { n });
        future.on_done(move |outcome| match outcome {
            Ok(prime) => println!("{n} is prime: {prime}"),
            Err(error) => println!("{n}: {error}"),
        });
        future.detach();
    }
    pool.shutdown(Shutdown::Drain).wait(); // Python: the end of the `with` block
    Ok(())
}
