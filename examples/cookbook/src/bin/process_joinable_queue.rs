//! `multiprocessing.JoinableQueue`: two processes work on five items; `join` waits until all are dealt with.
//!
//! An item is done when the `Task` that `get_task` gives is dropped: `task_done` can't be forgotten. What a process has
//! taken when it dies counts as done (`abandoned` says how many), so `join` ends; in Python it doesn't.

use polypool::shared::JoinableQueue;
use polypool::{ExecutorExt, ProcessPool};

#[polypool::task]
fn worker(items: JoinableQueue<u32>) {
    while let Ok(item) = items.get_task() {
        println!("{} squared is {}", *item, *item * *item);
    }
}

#[polypool::main]
fn main() -> anyhow::Result<()> {
    let pool = ProcessPool::builder().workers(2).build()?;
    let items = JoinableQueue::unbounded()?;
    let workers = [1, 2].map(|_| pool.submit(worker { items: items.clone() }));
    for n in 0..5 {
        items.put(n)?;
    }
    items.join();
    println!("all done, {} abandoned", items.abandoned());
    items.close(); // the workers' loops end
    for worker in workers {
        worker.wait()?;
    }
    Ok(())
}
