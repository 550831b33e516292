//! `Manager().list()`: five processes append to one list.
//!
//! Each call is one step. What reads and writes in one is an `update` (see the guide): `list[0] += 1` on Python's proxy
//! is two steps, and loses updates.

use polypool::manager::{ListProxy, Manager};
use polypool::{ExecutorExt, ProcessPool};

#[polypool::task]
fn append(index: u32, list: ListProxy<u32>) {
    list.push(&(index * 10)).wait().expect("the manager runs");
}

#[polypool::main]
fn main() -> anyhow::Result<()> {
    let manager = Manager::start()?;
    let list = manager.list().wait()?;
    let pool = ProcessPool::builder().workers(5).build()?;
    let tasks: Vec<_> = (0..5).map(|index| pool.submit(append { index, list: list.clone() })).collect();
    for task in tasks {
        task.wait()?;
    }
    println!("{:?}", list.items().wait()?);
    Ok(())
}
