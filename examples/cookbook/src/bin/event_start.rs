//! `threading.Event`: two workers wait for one signal.
//!
//! `polypool::shared::Event` has Python's words (`set`, `clear`, `wait`, `wait_timeout`, `is_set`), `wait_async` besides,
//! and serves threads as well as processes. For a signal that is given once, `std::sync::OnceLock::wait` is enough.

use std::thread;

use polypool::shared::Event;

fn main() -> anyhow::Result<()> {
    let start = Event::new()?;
    thread::scope(|scope| {
        for name in ["t1", "t2"] {
            let start = &start;
            scope.spawn(move || {
                start.wait();
                println!("{name} runs");
            });
        }
        scope.spawn(|| {
            println!("t3 start");
            println!("t3 end");
            start.set();
        });
    });
    assert!(start.is_set());
    Ok(())
}
