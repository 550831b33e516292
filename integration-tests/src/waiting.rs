//! Each wait twice: once blocking this thread, once awaited on a runtime. Both must give the same outcome.

use std::future::Future;
use std::time::Duration;

use futures_ext::{ReturnWhen, Unfinished, Waited, as_completed, wait};
use futures_util::StreamExt;
use polypool::{Outcome, Task, TaskFuture};
use tokio::runtime::Runtime;

/// How a test waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waiting {
    /// It blocks the thread.
    Blocking,
    /// It awaits.
    Awaiting,
}

impl Waiting {
    /// Both ways.
    pub const BOTH: [Waiting; 2] = [Waiting::Blocking, Waiting::Awaiting];

    /// The outcome of a task.
    ///
    /// # Errors
    /// Those of the task.
    pub fn outcome<T: Send + 'static>(self, future: TaskFuture<T>) -> Outcome<T> {
        match self {
            Waiting::Blocking => future.wait(),
            Waiting::Awaiting => runtime().block_on(future),
        }
    }

    /// All outputs in the order in which they come.
    pub fn completed<F: Future>(self, futures: impl IntoIterator<Item = F>) -> Vec<F::Output> {
        let stream = as_completed(futures);
        match self {
            Waiting::Blocking => stream.blocking().collect(),
            Waiting::Awaiting => runtime().block_on(stream.collect()),
        }
    }

    /// The same with a timeout.
    pub fn completed_within<F: Future>(
        self,
        timeout: Duration,
        futures: impl IntoIterator<Item = F>,
    ) -> Vec<Result<F::Output, Unfinished>> {
        let stream = as_completed(futures).timeout(timeout);
        match self {
            Waiting::Blocking => stream.blocking().collect(),
            Waiting::Awaiting => runtime().block_on(stream.collect()),
        }
    }

    /// `wait`.
    pub fn wait<I, W>(self, futures: I, return_when: W, timeout: Option<Duration>) -> Waited<I::Item>
    where
        I: IntoIterator,
        I::Item: Future + Unpin,
        W: ReturnWhen<<I::Item as Future>::Output>,
    {
        let wait = wait(futures, return_when, timeout);
        match self {
            Waiting::Blocking => wait.blocking(),
            Waiting::Awaiting => runtime().block_on(wait),
        }
    }

    /// The outcomes of a map, one after another.
    pub fn iterate<I>(self, map: polypool::Map<I>) -> Box<dyn Iterator<Item = Outcome<<I::Item as Task>::Output>>>
    where
        I: Iterator + Unpin + 'static,
        I::Item: Task,
    {
        match self {
            Waiting::Blocking => Box::new(map.blocking()),
            Waiting::Awaiting => {
                let runtime = runtime();
                let mut map = map;
                Box::new(std::iter::from_fn(move || runtime.block_on(map.next())))
            }
        }
    }
}

/// A runtime with two workers.
///
/// # Panics
/// If the system has no threads for it.
#[must_use]
pub fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime")
}
