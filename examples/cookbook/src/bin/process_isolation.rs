//! `multiprocessing.Process`: a child that changes a global changes its own copy.
//!
//! A process is started with a task, and comes with the future of its result.

use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

use polypool::Process;

static N: AtomicU32 = AtomicU32::new(0);

#[polypool::task]
fn increment() {
    N.fetch_add(1, SeqCst);
    println!("child: {}", N.load(SeqCst));
}

#[polypool::main]
fn main() -> anyhow::Result<()> {
    let (process, result) = Process::start(increment {})?;
    result.wait()?;
    process.join();
    println!("main: {}", N.load(SeqCst));
    Ok(())
}
