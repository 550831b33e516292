//! `queue.LifoQueue`, `queue.PriorityQueue`, and `Full` and `Empty`.
//!
//! An item of a priority queue is a pair, and only the first of it is compared; equal ones keep their order. In Python
//! the items themselves are compared, which raises TypeError if they can't be.

use polypool::queue::{LifoQueue, PriorityQueue, Queue};

fn main() -> anyhow::Result<()> {
    let stack = LifoQueue::new();
    for n in 1..=3 {
        stack.put(n)?;
    }
    println!("lifo: {} {} {}", stack.get()?, stack.get()?, stack.get()?);

    let urgent = PriorityQueue::new();
    for item in [(2, "second"), (1, "first"), (2, "third")] {
        urgent.put(item)?;
    }
    println!("priority: {} {} {}", urgent.get()?.1, urgent.get()?.1, urgent.get()?.1);

    let small = Queue::bounded(1);
    small.put("item")?;
    println!("put_nowait: {}", small.try_put("one too many").unwrap_err());
    println!("get_nowait: {}", small.try_get()?);
    println!("get_nowait: {}", small.try_get().unwrap_err());
    Ok(())
}
