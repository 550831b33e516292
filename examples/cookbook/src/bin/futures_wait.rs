//! `concurrent.futures.wait` with FIRST_COMPLETED, FIRST_EXCEPTION and ALL_COMPLETED; `Future.cancel`, `done` and
//! `exception`.
//!
//! What isn't done is given back, to be waited for again. Work that runs can be cancelled, too.

use std::sync::mpsc::channel;
use std::time::Duration;

use futures_ext::{All, FirstCompleted, FirstFailure, wait};
use polypool::ThreadPool;

fn main() -> anyhow::Result<()> {
    let pool = ThreadPool::builder().workers(4).build()?;
    let (go_on, gates): (Vec<_>, Vec<_>) = (0..4).map(|_| channel::<()>()).unzip();
    let futures: Vec<_> = (0..4)
        .zip(gates)
        .map(|(n, gate)| {
            pool.spawn(move || {
                gate.recv().expect("main opens it");
                assert_ne!(n, 1, "one fails");
                n
            })
        })
        .collect();

    go_on[0].send(())?;
    let waited = wait(futures, FirstCompleted, None).blocking();
    println!("first completed: {} done, {} not", waited.done.len(), waited.pending.len());

    go_on[1].send(())?;
    let waited = wait(waited.pending, FirstFailure, None).blocking();
    println!("first failure: {}, {} not done", waited.done[0].is_err(), waited.pending.len());

    println!("cancel: {}, done: {}", waited.pending[1].cancel(), waited.pending[1].is_done());
    let waited = wait(waited.pending, All, Duration::from_millis(20)).blocking();
    println!(
        "all, with a timeout: {:?}, {} not done",
        waited.done[0].as_ref().map_err(ToString::to_string),
        waited.pending.len()
    );

    go_on[2].send(())?;
    println!("all: {:?}", wait(waited.pending, All, None).blocking().done[0].as_ref().ok());
    Ok(())
}
