//! Several `multiprocessing.Value`s under one lock: here they are one value, a struct.
//!
//! In Python each has a lock of its own, or is given another one's, and nothing ties them together. Any struct of plain
//! fields will do, if it derives zerocopy's traits: they say that every pattern of bits is a value, whoever wrote it.

use polypool::shared::Value;
use polypool::{ExecutorExt, ProcessPool};
use zerocopy::{FromBytes, Immutable, IntoBytes};

#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes)]
#[repr(C)]
struct Accounts {
    ann: i64,
    bob: i64,
}

#[polypool::task]
fn transfer(accounts: Value<Accounts>, times: u32) {
    for _ in 0..times {
        accounts.with(|both| {
            both.ann -= 1;
            both.bob += 1;
        });
    }
}

#[polypool::main]
fn main() -> anyhow::Result<()> {
    let pool = ProcessPool::builder().workers(2).build()?;
    let accounts = Value::new(Accounts { ann: 100, bob: 0 })?;
    let tasks = [30, 20].map(|times| pool.submit(transfer { accounts: accounts.clone(), times }));
    for task in tasks {
        task.wait()?;
    }
    println!("{:?}", accounts.get());
    Ok(())
}
