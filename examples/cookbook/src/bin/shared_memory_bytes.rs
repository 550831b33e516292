//! `multiprocessing.shared_memory.SharedMemory`: a child reads four bytes of a block of ten, and writes "Python".
//!
//! The block has no name, its handle travels with the task, and it is freed with the last handle, however its owners
//! end: there is no `unlink` to forget. `SharedMemory::create_new` and `open` are for blocks with names.

use polypool::shared::SharedMemory;
use polypool::{ExecutorExt, ProcessPool};

#[polypool::task]
fn child(block: SharedMemory) {
    let mut bytes = [0; 4];
    block.read_at(0, &mut bytes).expect("the block has ten bytes");
    println!("{bytes:?}");
    block.write_at(0, b"Python").expect("the block has ten bytes");
}

#[polypool::main]
fn main() -> anyhow::Result<()> {
    let block = SharedMemory::new(10)?;
    block.write_at(0, &[11, 22, 33, 44])?;
    ProcessPool::new()?.submit(child { block: block.clone() }).wait()?;
    println!("{}", String::from_utf8(block.to_vec()?)?.trim_end_matches('\0'));
    Ok(())
}
