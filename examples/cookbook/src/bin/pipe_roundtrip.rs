//! `multiprocessing.Pipe`: a child sends an object and then bytes through a pipe.
//!
//! A pipe has a type, so nothing is unpickled that the other side makes up. `pipe_between` has a type for each
//! direction; `channel` has one direction, and the wrong one doesn't compile, where Python raises OSError.

use polypool::shared::{Connection, PipeError, pipe};
use polypool::{ExecutorExt, ProcessPool};

type Message = (u32, Option<f64>, String);

#[polypool::task]
fn child(parent: Connection<Message>) {
    parent.send(&(42, None, "hello".to_owned())).expect("the parent receives");
    parent.send_bytes(b"thank you").expect("the parent receives");
}

#[polypool::main]
fn main() -> anyhow::Result<()> {
    let pool = ProcessPool::builder().workers(1).build()?;
    let (here, there) = pipe()?;
    let task = pool.submit(child { parent: there });
    println!("{:?}", here.recv()?);
    println!("{}", String::from_utf8(here.recv_bytes(100)?)?);
    task.wait()?;
    // Python: EOFError. Nobody has the other end any more.
    assert!(matches!(here.recv(), Err(PipeError::Closed)));
    println!("end of the pipe");
    Ok(())
}
