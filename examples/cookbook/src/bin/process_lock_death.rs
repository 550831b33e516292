//! `multiprocessing.Lock` whose holder is killed: the next one gets the lock, and is told. In Python it waits for ever.
//!
//! What the dead process had not yet committed has not happened: the value under the lock is the last whole one.

use polypool::shared::{LockError, Mutex};
use polypool::{ExecutorExt, ProcessPool};

#[polypool::task]
fn die_with(lock: Mutex<u32>) {
    let mut n = lock.lock().expect("nobody has died yet");
    *n = 7;
    std::process::abort();
}

#[polypool::main]
fn main() -> anyhow::Result<()> {
    let lock = Mutex::new(1)?;
    let lost = ProcessPool::new()?.submit(die_with { lock: lock.clone() }).wait();
    println!("the task failed: {}", lost.is_err());
    match lock.lock() {
        Err(LockError::Poisoned { mut guard, .. }) => {
            println!("the holder has died, the value is {}", *guard);
            guard.repair();
        }
        other => println!("{other:?}"),
    }
    println!("repaired: {}", lock.lock().is_ok());
    Ok(())
}
