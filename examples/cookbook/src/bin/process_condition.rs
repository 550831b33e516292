//! `multiprocessing.Condition`: a process waits under a lock until another one has changed what the lock guards.
//!
//! `wait_while` is `wait_for` the other way round. What is waited for is inside of the lock, so it can't be changed
//! without it.

use polypool::shared::{Condvar, Mutex};
use polypool::{ExecutorExt, ProcessPool};

#[polypool::task]
fn consumer(items: Mutex<u32>, changed: Condvar) {
    let items = items.lock().expect("nobody has died with the lock");
    let mut items = changed.wait_while(items, |items| *items == 0).expect("nobody has died with the lock");
    println!("consumer: takes {}", *items);
    *items = 0;
}

#[polypool::task]
fn producer(items: Mutex<u32>, changed: Condvar) {
    let mut items = items.lock().expect("nobody has died with the lock");
    println!("producer: puts 3");
    *items = 3;
    drop(items);
    changed.notify_all();
}

#[polypool::main]
fn main() -> anyhow::Result<()> {
    let pool = ProcessPool::builder().workers(2).build()?;
    let (items, changed) = (Mutex::new(0)?, Condvar::new()?);
    let consuming = pool.submit(consumer { items: items.clone(), changed: changed.clone() });
    pool.submit(producer { items: items.clone(), changed }).wait()?;
    consuming.wait()?;
    println!("left: {}", *items.lock().expect("nobody has died with the lock"));
    Ok(())
}
