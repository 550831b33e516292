//! `multiprocessing.set_start_method` and `get_context`: how worker processes come to be, for each pool.
//!
//! Spawn starts this program again. A fork server is this program started once, which has no threads and forks the
//! workers: quicker, where there are many. Plain `fork` isn't offered: the child of a program with threads has the
//! locks that they hold, and nobody who gives them back.

use std::os::unix::process::parent_id;

use polypool::{ExecutorExt, ProcessPool, StartMethod};

#[polypool::task]
fn parent() -> u32 {
    parent_id()
}

#[polypool::main] // `freeze_support()`, and `if __name__ == "__main__"`: workers turn off here
fn main() -> anyhow::Result<()> {
    for method in [StartMethod::Spawn, StartMethod::ForkServer] {
        let pool = ProcessPool::builder().start_method(method).build()?;
        let by_us = pool.submit(parent {}).wait()? == std::process::id();
        println!("{method:?}: the worker is a child of this process: {by_us}");
    }
    Ok(())
}
