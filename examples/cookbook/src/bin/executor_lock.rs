//! `ThreadPoolExecutor` with a lock: three tasks add one to a number.
//!
//! What tasks share is in an `Arc`: a task may outlive whoever submitted it.

use std::sync::{Arc, Mutex};

use polypool::{Executor, Shutdown, ThreadPool};

fn main() -> anyhow::Result<()> {
    let pool = ThreadPool::builder().workers(3).build()?;
    let counter = Arc::new(Mutex::new(0));
    for _ in 0..3 {
        let counter = counter.clone();
        pool.spawn(move || {
            let mut n = counter.lock().unwrap();
            *n += 1;
            println!("{n}");
        })
        .detach();
    }
    pool.shutdown(Shutdown::Drain).wait();
    println!("final: {}", counter.lock().unwrap());
    Ok(())
}
