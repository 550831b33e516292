//! `Manager().Value`, `Lock` and `Queue`: two processes count under a lock of the manager, and report by its queue.
//!
//! A lock is given back when its guard is dropped, also when its owner dies; in Python it stays locked. On one machine
//! `polypool::shared` has the same things, and a hundred times quicker.

use polypool::manager::{LockProxy, Manager, QueueProxy, ValueProxy};
use polypool::{ExecutorExt, ProcessPool};

#[polypool::task]
fn count(value: ValueProxy<u32>, lock: LockProxy, reports: QueueProxy<String>) {
    for _ in 0..50 {
        let _guard = lock.lock().wait().expect("the manager runs");
        let n = value.get().wait().expect("the manager runs");
        value.set(&(n + 1)).wait().expect("the manager runs");
    }
    reports.put(&"counted to 50".to_owned()).wait().expect("the manager runs");
}

#[polypool::main]
fn main() -> anyhow::Result<()> {
    let manager = Manager::start()?;
    let (value, lock, reports) = (manager.value(&0).wait()?, manager.lock().wait()?, manager.queue().wait()?);
    let pool = ProcessPool::builder().workers(2).build()?;
    let tasks =
        [1, 2].map(|_| pool.submit(count { value: value.clone(), lock: lock.clone(), reports: reports.clone() }));
    for task in tasks {
        task.wait()?;
        println!("{}", reports.get().wait()?);
    }
    println!("in all {}", value.get().wait()?);
    Ok(())
}
