//! `multiprocessing.managers.SharedMemoryManager`: makes shared memory and lists that are freed at the end of a block.
//!
//! Python's needs a server process for that. Here every block is freed with its last handle anyway; the scope keeps
//! handles, so that what it made lives as long as itself.

use polypool::shared::{ListItem, SharedList, SharedMemoryScope};
use polypool::{ExecutorExt, ProcessPool};

#[polypool::task]
fn double(list: SharedList, index: usize) {
    let doubled = list.update(index, |item| {
        if let ListItem::Int(n) = item {
            *n *= 2;
        }
    });
    doubled.expect("there is such an item");
}

#[polypool::main]
fn main() -> anyhow::Result<()> {
    let pool = ProcessPool::builder().workers(2).build()?;
    let scope = SharedMemoryScope::new();
    let list = scope.list([1.into(), 2.into(), "Hello World".into()])?;
    let tasks = [0, 1, 2].map(|index| pool.submit(double { list: list.clone(), index }));
    for task in tasks {
        task.wait()?;
    }
    println!("{:?}", list.to_vec()?);
    drop((list, scope)); // freed
    Ok(())
}
