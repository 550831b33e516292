//! `BrokenProcessPool`: a task that crashes. In Python it takes the whole pool with it; here it costs one task.

use polypool::{ExecutorExt, ProcessPool, TaskError};

#[polypool::task]
fn work(n: u32) -> u32 {
    if n == 2 {
        std::process::abort();
    }
    n
}

#[polypool::main]
fn main() -> anyhow::Result<()> {
    let pool = ProcessPool::builder().workers(2).build()?;
    for (n, future) in [1, 2, 3].map(|n| (n, pool.submit(work { n }))) {
        match future.wait() {
            Ok(n) => println!("{n}"),
            Err(TaskError::WorkerLost(lost)) => println!("{n}: its worker {}", lost.exit),
            Err(error) => println!("{n}: {error}"),
        }
    }
    Ok(())
}
