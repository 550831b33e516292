//! `threading.BoundedSemaphore`: five downloads, two at a time.
//!
//! A permit is released by dropping it, so it can't be released twice, which is what Python's bounded semaphore checks
//! for. Threads and processes take `polypool::shared::Semaphore`, which has the same words.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::task::JoinSet;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let two = Arc::new(Semaphore::new(2));
    let mut downloads = JoinSet::new();
    for n in 1..=5 {
        let two = two.clone();
        downloads.spawn(async move {
            let _permit = two.acquire().await.expect("it is never closed");
            println!("start {n}");
            tokio::time::sleep(Duration::from_millis(20)).await; // the download
            println!("end {n}");
        });
    }
    downloads.join_all().await;
    println!("all done");
    Ok(())
}
