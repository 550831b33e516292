//! An `async fn` runs as a future.
#![forbid(unsafe_code)]
#![deny(warnings)]

use polypool::{Run, Task};

#[polypool::task]
async fn doubled(n: u32) -> Result<u32, String> {
    tokio::task::yield_now().await;
    n.checked_mul(2).ok_or_else(|| "too much".to_owned())
}

#[polypool::task]
async fn pause() {
    tokio::time::sleep(std::time::Duration::ZERO).await;
}

async fn run<T: Task>(task: T) -> T::Output {
    assert!(T::IS_ASYNC);
    match task.run() {
        Run::Future(future) => future.await,
        _ => panic!("{} is asynchronous", T::NAME),
    }
}

#[polypool::main]
async fn main() {
    assert_eq!(doubled(2).await, Ok(4));
    assert_eq!(run(doubled { n: 2 }).await, Ok(4));
    assert_eq!(run(doubled { n: u32::MAX }).await, Err("too much".to_owned()));
    assert_eq!(doubled::SIGNATURE, "fn(n: u32) -> Result<u32, String>");
    run(pause {}).await;
}
