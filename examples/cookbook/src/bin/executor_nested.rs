//! A task that submits another one to its own executor, and waits for it: in Python a deadlock, as soon as every worker
//! waits like that.
//!
//! Here the pool sees that a worker is about to wait, and has one more for as long. `spawn_async` and an `.await` need
//! no further thread.

use polypool::ThreadPool;

fn main() -> anyhow::Result<()> {
    let pool = ThreadPool::builder().workers(1).build()?;
    let outer = pool.spawn({
        let pool = pool.clone();
        move || pool.spawn(|| 21).wait().map(|n| n * 2)
    });
    println!("{}", outer.wait()??);
    Ok(())
}
