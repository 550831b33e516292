//! `flavor = "current_thread"` runs everything on the thread of `main`.
#![forbid(unsafe_code)]
#![deny(warnings)]

#[polypool::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let there = tokio::spawn(async { std::thread::current().id() }).await?;
    assert_eq!(there, std::thread::current().id());
    Ok(())
}
