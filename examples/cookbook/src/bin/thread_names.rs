//! `threading.current_thread` and `threading.enumerate`: the current thread, and the list of those of a pool.
//!
//! Rust keeps no list of all threads. A pool knows its own (`stats().workers`); the system knows all (`/proc/self/task`).

use std::sync::{Arc, Barrier};
use std::thread;

use polypool::{Executor, ThreadPool};

fn main() -> anyhow::Result<()> {
    let pool = ThreadPool::builder().workers(2).name_prefix("worker").build()?;
    let both_run = Arc::new(Barrier::new(2));
    let tasks = [1, 2].map(|_| {
        let (pool, both_run) = (pool.clone(), both_run.clone());
        pool.clone().spawn(move || {
            both_run.wait();
            let names: Vec<_> = pool.stats().workers.into_iter().map(|worker| worker.name).collect();
            both_run.wait();
            format!("{} sees {names:?}", thread::current().name().unwrap_or("nameless"))
        })
    });
    for task in tasks {
        println!("{}", task.wait()?);
    }
    println!("{} started them", thread::current().name().unwrap_or("nameless"));
    Ok(())
}
