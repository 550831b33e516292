//! `multiprocessing.shared_memory.ShareableList`: a list of several types, changed by a child.
//!
//! As in Python, the length is fixed and each item has the room of its first value, if `room` gives it no more. Unlike
//! there, trailing zero bytes are kept, and an item is never seen half-written.

use polypool::shared::{ListError, SharedList};
use polypool::{ExecutorExt, ProcessPool};

#[expect(clippy::approx_constant, reason = "it is the number of the Python program")]
fn change_all(list: &SharedList) -> Result<(), ListError> {
    list.set(0, 0)?;
    list.set(1, 3.141_592)?;
    list.set(2, false)?;
    list.set(3, "aaa")?;
    list.set(4, "Hello World")
}

#[polypool::task]
fn change(list: SharedList) {
    change_all(&list).expect("five items, each with enough room");
}

#[polypool::main]
fn main() -> anyhow::Result<()> {
    let items = [100.into(), 2.5.into(), true.into(), "abc".into(), "aaa".into()];
    let list = SharedList::builder().room(16).create(items)?;
    ProcessPool::new()?.submit(change { list: list.clone() }).wait()?;
    for item in list.iter() {
        println!("{:?}", item?);
    }
    println!("count(false) = {}, index(\"aaa\") = {:?}", list.count(false)?, list.index("aaa")?);
    println!("{}", list.set(4, "longer than its room").unwrap_err());
    Ok(())
}
