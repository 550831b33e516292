//! `SharedMemory(name, create=True, size)` and `SharedMemory(name)`: a block that others find by its name.
//!
//! A name is for those who can't be handed a handle. It stays until it is unlinked, as in Python, but `unlink_on_drop`
//! sees to that, and nobody else does by mistake.

use polypool::shared::SharedMemory;
use polypool::{ExecutorExt, ProcessPool};

#[polypool::task]
fn child(name: String) {
    let block = SharedMemory::open(&name).expect("main has created it");
    block.write_at(0, b"Python").expect("the block has ten bytes");
}

#[polypool::main]
fn main() -> anyhow::Result<()> {
    let name = format!("cookbook-{}", std::process::id());
    let block = SharedMemory::create_new(&name, 10)?.unlink_on_drop();
    println!("a second time: {}", SharedMemory::create_new(&name, 10).unwrap_err().kind());
    ProcessPool::new()?.submit(child { name: name.clone() }).wait()?;
    println!("{}", String::from_utf8(block.to_vec()?)?.trim_end_matches('\0'));
    drop(block);
    println!("afterwards: {}", SharedMemory::open(&name).unwrap_err().kind());
    Ok(())
}
