//! An asynchronous `main` has a runtime with timers, and may end with any result that a `main` may have.
#![forbid(unsafe_code)]
#![deny(warnings)]

use std::process::{ExitCode, Termination};
use std::rc::Rc;
use std::time::Duration;

#[polypool::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> impl Termination {
    let local = Rc::new(1);
    tokio::time::sleep(Duration::ZERO).await;
    let there = tokio::spawn(async { std::thread::current().id() }).await.unwrap();
    assert_ne!(there, std::thread::current().id());
    assert_eq!(tokio::runtime::Handle::current().metrics().num_workers(), 2);
    assert_eq!(Rc::strong_count(&local), 1);
    ExitCode::SUCCESS
}
