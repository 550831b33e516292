//! `queue.Queue` with `task_done` and `join`: two threads work on five items.
//!
//! That is a thread pool by hand; `ThreadPool` is one ready-made. Without `join` and several takers, `std::sync::mpsc`
//! is enough.

use std::thread;

use polypool::queue::Queue;

fn main() -> anyhow::Result<()> {
    let queue = Queue::new();
    for _ in 0..2 {
        let queue = queue.clone();
        thread::spawn(move || {
            while let Ok(item) = queue.get() {
                println!("working on {item}");
                println!("finished {item}");
                queue.task_done().expect("one for each get");
            }
        });
    }
    for item in 0..5 {
        queue.put(item)?;
    }
    println!("all items are in the queue");
    queue.join();
    println!("all done");
    Ok(())
}
