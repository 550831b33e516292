//! A user's program that forbids `unsafe`: the macros write none into it.
#![forbid(unsafe_code)]

use polypool::{Executor, ExecutorExt, ProcessPool, Shutdown};

#[polypool::task]
fn square(n: u64) -> u64 {
    n * n
}

#[polypool::task]
async fn shout(text: String) -> String {
    text.to_uppercase()
}

#[polypool::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let pool = ProcessPool::builder().workers(1).build()?;
    let squares = (pool.submit(square { n: 7 }).await?, pool.submit(square { n: 8 }).await?);
    println!("{} {} {}", squares.0, squares.1, pool.submit(shout { text: "hello".into() }).await?);
    pool.shutdown(Shutdown::Drain).await;
    Ok(())
}
