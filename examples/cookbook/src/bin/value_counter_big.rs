//! `multiprocessing.Value`, 2 × 100,000 increments: right under the lock; right without one, as an atomic; and lost
//! updates where reading and writing are two steps, as Python's `value.value += 1` is without `get_lock()`.

use std::sync::atomic::Ordering::Relaxed;

use polypool::shared::{AtomicValue, Value};
use polypool::{ExecutorExt, ProcessPool};

const TIMES: u32 = 100_000;

#[polypool::task]
fn count(locked: Value<u32>, atomic: AtomicValue<u32>, wrong: Value<u32>) {
    for _ in 0..TIMES {
        locked.with(|n| *n += 1);
        atomic.fetch_add(1, Relaxed);
        wrong.set(wrong.get() + 1); // two steps
    }
}

#[polypool::main]
fn main() -> anyhow::Result<()> {
    let pool = ProcessPool::builder().workers(2).build()?;
    let (locked, atomic, wrong) = (Value::new(0)?, AtomicValue::new(0)?, Value::new(0)?);
    let tasks =
        [1, 2].map(|_| pool.submit(count { locked: locked.clone(), atomic: atomic.clone(), wrong: wrong.clone() }));
    for task in tasks {
        task.wait()?;
    }
    println!("under the lock: {}", locked.get());
    println!("atomic: {}", atomic.load(Relaxed));
    println!("in two steps: {}", wrong.get());
    Ok(())
}
