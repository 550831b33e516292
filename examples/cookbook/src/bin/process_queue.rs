//! `multiprocessing.Queue`: one process writes, another reads.
//!
//! `close` says that nothing more will come, so the reader's loop ends; Python sends a `None` for that. A process that
//! is killed in the middle of a put or a get doesn't damage the queue.

use polypool::shared::Queue;
use polypool::{ExecutorExt, ProcessPool};

#[polypool::task]
fn writer(messages: Queue<String>) {
    for message in ["first message", "second message"] {
        messages.put(message.to_owned()).expect("the queue is open");
    }
    messages.close();
}

#[polypool::task]
fn reader(messages: Queue<String>) {
    for message in messages.iter() {
        println!("{}", message.expect("a message"));
    }
}

#[polypool::main]
fn main() -> anyhow::Result<()> {
    let pool = ProcessPool::builder().workers(2).build()?;
    let messages = Queue::bounded(10)?;
    let writing = pool.submit(writer { messages: messages.clone() });
    let reading = pool.submit(reader { messages });
    writing.wait()?;
    reading.wait()?;
    Ok(())
}
