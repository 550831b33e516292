//! `threading.Barrier(2, action, timeout)`: five workers meet in pairs; the fifth waits in vain.
//!
//! `std::sync::Barrier` has neither an action nor a timeout. `polypool::shared::Barrier` has both, `abort` and `reset`
//! too, and serves threads as well as processes. A wait that times out breaks the barrier, as in Python.

use std::thread;
use std::time::Duration;

use polypool::shared::Barrier;

fn main() -> anyhow::Result<()> {
    let pairs = Barrier::new(2)?;
    thread::scope(|scope| {
        for _ in 0..5 {
            scope.spawn(|| {
                // The action runs in one of the two, before either goes on.
                match pairs.wait_timeout_with(Duration::from_millis(500), || println!("passed through the barrier")) {
                    Ok(_) => println!("a worker goes on"),
                    Err(error) => println!("a worker is left over: {error}"),
                }
            });
        }
    });
    println!("broken: {}", pairs.is_broken());
    Ok(())
}
