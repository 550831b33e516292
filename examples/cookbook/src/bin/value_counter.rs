//! `multiprocessing.Value` with `get_lock()`: two processes count to 50 each in one number.
//!
//! The lock can't be forgotten: a change is made in `with`, under the lock, and all or nothing. For a mere counter,
//! `AtomicValue` is quicker.

use polypool::shared::Value;
use polypool::{ExecutorExt, ProcessPool};

#[polypool::task]
fn count(counter: Value<i32>, times: u32) {
    for _ in 0..times {
        counter.with(|n| *n += 1);
    }
}

#[polypool::main]
fn main() -> anyhow::Result<()> {
    let pool = ProcessPool::builder().workers(2).build()?;
    let counter = Value::new(0)?;
    let tasks = [1, 2].map(|_| pool.submit(count { counter: counter.clone(), times: 50 }));
    for task in tasks {
        task.wait()?;
    }
    println!("{}", counter.get());
    Ok(())
}
