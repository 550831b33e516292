//! `multiprocessing.connection.wait([a, b])`: takes messages from whichever of two pipes has one.

use polypool::shared::{PipeError, PipeSender, channel};
use polypool::{ExecutorExt, ProcessPool};

#[polypool::task]
fn child(name: String, parent: PipeSender<String>) {
    for n in 1..=2 {
        parent.send(&format!("{name} {n}")).expect("the parent receives");
    }
}

/// Whether there may be more.
fn show(message: Result<String, PipeError>) -> anyhow::Result<bool> {
    match message {
        Ok(message) => println!("{message}"),
        Err(PipeError::Closed) => return Ok(false),
        Err(error) => return Err(error.into()),
    }
    Ok(true)
}

#[polypool::main]
async fn main() -> anyhow::Result<()> {
    let pool = ProcessPool::builder().workers(2).build()?;
    let ((to_a, a), (to_b, b)) = (channel()?, channel()?);
    pool.submit(child { name: "a".into(), parent: to_a }).detach();
    pool.submit(child { name: "b".into(), parent: to_b }).detach();
    let (mut a_is_open, mut b_is_open) = (true, true);
    while a_is_open || b_is_open {
        tokio::select! {
            message = a.recv_async(), if a_is_open => a_is_open = show(message)?,
            message = b.recv_async(), if b_is_open => b_is_open = show(message)?,
        }
    }
    println!("both have ended");
    Ok(())
}
