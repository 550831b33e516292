//! The words of Python's `multiprocessing.Pool`, on both kinds of pools: a thin face over [`Executor`] for those who
//! think in `apply_async` and `imap_unordered`.
//!
//! All of it is a few lines on [`ExecutorExt`], but for [`Pool::map_async`]: one future of many outcomes, which must
//! come to its end also when nobody polls it. [`Driver`] is what polls it then.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Wake, Waker};

use parking_lot::Mutex;

use crate::cores::cores;
use crate::error::{BuildError, Outcome, SubmitError, TaskError};
use crate::executor::{Executor, ExecutorExt, Shutdown, submit_job};
use crate::future::{Completer, TaskFuture};
use crate::job::Chunk;
use crate::map::{BlockingMap, Ordered, Unordered};
use crate::options::TaskOptions;
use crate::process::ProcessPool;
use crate::task::{IntoOutcomes, Task};
use crate::thread::ThreadPool;

/// A pool that speaks the words of Python's `multiprocessing.Pool`, over any executor.
///
/// | Python | here |
/// | --- | --- |
/// | `multiprocessing.Pool(n)` | [`Pool::processes`] |
/// | `multiprocessing.pool.ThreadPool(n)`, `multiprocessing.dummy.Pool(n)` | [`Pool::threads`] |
/// | `Pool(initializer=, maxtasksperchild=)` | [`Pool::over`] a [`ProcessPool`] from its builder |
/// | `pool.map(f, items)` | `pool.map(\|n\| f { n }, items)`: the closure makes the [task](macro@crate::task) of an item |
/// | `AsyncResult.get()`, `.get(timeout)` | [`wait`](TaskFuture::wait), [`wait_timeout`](TaskFuture::wait_timeout), or `.await` |
/// | `AsyncResult.ready()`, `.successful()` | [`is_done`](TaskFuture::is_done), [`state`](TaskFuture::state) |
/// | a worker dies: the result never comes | [`TaskError::WorkerLost`], for that chunk alone |
///
/// Dropping it is dropping its executor: what was accepted is still done, and then the workers end. (Python's `with`
/// ends by [`terminate`](Pool::terminate).)
///
/// When *not* to use it: in new code, where the calls of [`ExecutorExt`] say the same and more: options for each task,
/// streams, bounded look-ahead.
///
/// ```
/// # polypool::worker_hook!();
/// use polypool::Pool;
///
/// #[polypool::task]
/// fn square(n: u64) -> u64 {
///     n * n
/// }
///
/// #[polypool::main]
/// fn main() -> Result<(), Box<dyn std::error::Error>> {
///     let pool = Pool::processes(2)?; // or Pool::threads(2)
///     assert_eq!(pool.apply(square { n: 3 })?, 9);
///     assert_eq!(pool.map(|n| square { n }, 0..5)?, [0, 1, 4, 9, 16]);
///     pool.close();
///     pool.join()?;
///     Ok(())
/// }
/// ```
#[derive(Clone, Debug)]
pub struct Pool<E = ProcessPool> {
    executor: E,
    workers: usize,
}

impl Pool<ProcessPool> {
    /// On `workers` processes: `multiprocessing.Pool(workers)`.
    ///
    /// # Errors
    /// As [`ProcessPoolBuilder::build`](crate::ProcessPoolBuilder::build).
    pub fn processes(workers: usize) -> Result<Self, BuildError> {
        Ok(Pool { executor: ProcessPool::builder().workers(workers).build()?, workers })
    }
}

impl Pool<ThreadPool> {
    /// On `workers` threads: `multiprocessing.pool.ThreadPool(workers)`.
    ///
    /// # Errors
    /// As [`ThreadPoolBuilder::build`](crate::ThreadPoolBuilder::build).
    pub fn threads(workers: usize) -> Result<Self, BuildError> {
        Ok(Pool { executor: ThreadPool::builder().workers(workers).build()?, workers })
    }
}

impl<E: Executor> Pool<E> {
    /// Over an executor that was made elsewhere. Its chunks are those of a pool with a worker for each core.
    pub fn over(executor: E) -> Self {
        Pool { executor, workers: cores() }
    }

    /// The executor, for whatever has no word here.
    pub fn executor(&self) -> &E {
        &self.executor
    }

    /// Runs a task, and blocks this thread until its outcome is there.
    ///
    /// # Errors
    /// Whatever the task ended with, if not with a value.
    pub fn apply<T: Task>(&self, task: T) -> Outcome<T::Output> {
        self.apply_async(task).wait()
    }

    /// Runs a task; the future is the `AsyncResult`.
    pub fn apply_async<T: Task>(&self, task: T) -> TaskFuture<T::Output> {
        self.executor.submit(task)
    }

    /// Runs a task, and then calls one of the two: with its value, or with why there is none. See "Callbacks" at
    /// [`Executor`].
    ///
    /// ```
    /// # use polypool::Pool;
    /// # #[polypool::task]
    /// # fn square(n: u64) -> u64 {
    /// #     n * n
    /// # }
    /// let pool = Pool::threads(2)?;
    /// let three = pool.apply_async_with(square { n: 3 }, |nine| assert_eq!(*nine, 9), |error| panic!("{error}"));
    /// three.wait()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn apply_async_with<T: Task>(
        &self,
        task: T,
        callback: impl FnOnce(&T::Output) + Send + 'static,
        error_callback: impl FnOnce(&TaskError) + Send + 'static,
    ) -> TaskFuture<T::Output> {
        let future = self.apply_async(task);
        call_back(&future, callback, error_callback);
        future
    }

    /// Runs the task of each item, and blocks this thread until all have ended. The values are in the order of the
    /// items.
    ///
    /// # Errors
    /// The failure of the first item that has one.
    pub fn map<T: Task, I: IntoIterator>(&self, make: impl FnMut(I::Item) -> T, items: I) -> Outcome<Vec<T::Output>> {
        self.map_async(make, items).wait()
    }

    /// [`map`](Self::map), by the name that it has in Python where items are tuples: here the closure takes them apart.
    ///
    /// ```
    /// # use polypool::Pool;
    /// #[polypool::task]
    /// fn add(a: u64, b: u64) -> u64 {
    ///     a + b
    /// }
    ///
    /// let pool = Pool::threads(2)?;
    /// assert_eq!(pool.starmap(|(a, b)| add { a, b }, [(1, 2), (3, 4)])?, [3, 7]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// As [`map`](Self::map).
    pub fn starmap<T: Task, I: IntoIterator>(
        &self,
        make: impl FnMut(I::Item) -> T,
        items: I,
    ) -> Outcome<Vec<T::Output>> {
        self.map(make, items)
    }

    /// Runs the task of each item; the future has all values, in the order of the items, or the failure of the first
    /// item that has one. It is done when all tasks have ended; cancelling it cancels them.
    ///
    /// As in Python, the items are gone through at once and travel in about four chunks for each worker. A limited
    /// backlog that is full is waited for.
    pub fn map_async<T: Task, I: IntoIterator>(
        &self,
        make: impl FnMut(I::Item) -> T,
        items: I,
    ) -> TaskFuture<Vec<T::Output>> {
        self.map_async_with(make, items, |_| {}, |_| {})
    }

    /// [`map_async`](Self::map_async), by its other name.
    pub fn starmap_async<T: Task, I: IntoIterator>(
        &self,
        make: impl FnMut(I::Item) -> T,
        items: I,
    ) -> TaskFuture<Vec<T::Output>> {
        self.map_async(make, items)
    }

    /// [`map_async`](Self::map_async), and then calls one of the two: once, with all values, or with the first failure.
    pub fn map_async_with<T: Task, I: IntoIterator>(
        &self,
        make: impl FnMut(I::Item) -> T,
        items: I,
        callback: impl FnOnce(&Vec<T::Output>) + Send + 'static,
        error_callback: impl FnOnce(&TaskError) + Send + 'static,
    ) -> TaskFuture<Vec<T::Output>> {
        let tasks: Vec<T> = items.into_iter().map(make).collect();
        let chunk = tasks.len().div_ceil(self.workers.saturating_mul(4).max(1)).max(1);
        let (completer, future) = TaskFuture::pair_with(TaskOptions::new().name(T::NAME));
        call_back(&future, callback, error_callback);
        Driver::start(run_all(self.executor.handle(), tasks, chunk, completer));
        future
    }

    /// The outcomes in the order of the items, as an iterator that blocks. Items are pulled as outcomes are read, at
    /// most [`DEFAULT_MAP_BUFFER`](crate::DEFAULT_MAP_BUFFER) ahead; the first ones start now. For chunks and other
    /// limits, and for asynchronous code, there is [`ExecutorExt::map`].
    pub fn imap<T: Task, I: IntoIterator, F: FnMut(I::Item) -> T>(
        &self,
        make: F,
        items: I,
    ) -> BlockingMap<std::iter::Map<I::IntoIter, F>, Ordered> {
        self.executor.map(items.into_iter().map(make)).start().blocking()
    }

    /// [`imap`](Self::imap) in the order in which the tasks end.
    ///
    /// ```
    /// # use polypool::Pool;
    /// # #[polypool::task]
    /// # fn square(n: u64) -> u64 {
    /// #     n * n
    /// # }
    /// let pool = Pool::threads(2)?;
    /// let mut squares = pool.imap_unordered(|n| square { n }, 0..4).collect::<Result<Vec<_>, _>>()?;
    /// squares.sort();
    /// assert_eq!(squares, [0, 1, 4, 9]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn imap_unordered<T: Task, I: IntoIterator, F: FnMut(I::Item) -> T>(
        &self,
        make: F,
        items: I,
    ) -> BlockingMap<std::iter::Map<I::IntoIter, F>, Unordered> {
        self.executor.map_unordered(items.into_iter().map(make)).start().blocking()
    }

    /// Takes no more work; what was accepted is still done. [`Shutdown::Drain`].
    pub fn close(&self) {
        drop(self.executor.shutdown(Shutdown::Drain));
    }

    /// Ends at once: everything is cancelled, and worker processes are killed. [`Shutdown::Now`].
    pub fn terminate(&self) {
        drop(self.executor.shutdown(Shutdown::Now));
    }

    /// Blocks this thread until the workers have ended, after [`close`](Self::close) or
    /// [`terminate`](Self::terminate).
    ///
    /// # Errors
    /// [`StillOpen`] when neither was called: it would never end.
    pub fn join(&self) -> Result<(), StillOpen> {
        match self.executor.try_reserve_slot() {
            Ok(_) | Err(SubmitError::Full { .. }) => return Err(StillOpen),
            Err(_) => self.executor.shutdown(Shutdown::Drain).wait(),
        }
        Ok(())
    }
}

/// [`Pool::join`] was called on a pool that still takes work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the pool is still running: call close() or terminate() before join()")]
pub struct StillOpen;

/// Calls one of the two when the future is done.
fn call_back<T: Send + 'static>(
    future: &TaskFuture<T>,
    callback: impl FnOnce(&T) + Send + 'static,
    error_callback: impl FnOnce(&TaskError) + Send + 'static,
) {
    future.on_done(|outcome| match outcome {
        Ok(value) => callback(value),
        Err(error) => error_callback(error),
    });
}

/// Runs tasks in chunks and completes the promise of all their values.
async fn run_all<T: Task>(
    executor: Arc<dyn Executor>,
    tasks: Vec<T>,
    chunk: usize,
    completer: Completer<Vec<T::Output>>,
) {
    let outcome = tokio::select! {
        biased;
        // The chunks are dropped, which cancels them.
        () = completer.cancelled() => return,
        outcome = collect(executor, tasks, chunk) => outcome,
    };
    // Fails if it was cancelled meanwhile.
    let _ = completer.complete(outcome);
}

async fn collect<T: Task>(executor: Arc<dyn Executor>, tasks: Vec<T>, chunk: usize) -> Outcome<Vec<T::Output>> {
    let (count, mut tasks) = (tasks.len(), tasks.into_iter());
    let mut chunks = Vec::new();
    while !tasks.as_slice().is_empty() {
        let slot = match executor.try_reserve_slot() {
            Err(SubmitError::Full { .. }) => executor.reserve_slot().await,
            slot => slot,
        }?;
        let next = Chunk { tasks: tasks.by_ref().take(chunk).collect(), meter: None };
        chunks.push(submit_job(&*executor, next, TaskOptions::new(), Some(slot)).cancel_on_drop());
    }
    // A handle of the pool that nobody needs any more would keep it open.
    drop(executor);
    let mut values = Ok(Vec::with_capacity(count));
    for chunk in chunks {
        let outcomes = match chunk.await {
            Ok(outcomes) => outcomes.into_iter(),
            Err(error) => IntoOutcomes::of(vec![Err(error)]),
        };
        for outcome in outcomes {
            match (&mut values, outcome) {
                (Ok(values), Ok(value)) => values.push(value),
                (Ok(_), Err(error)) => values = Err(error),
                (Err(_), _) => {}
            }
        }
    }
    values
}

/// Polls a future to its end on the threads that wake it: it needs no thread of its own and nobody who waits.
struct Driver {
    future: Mutex<Option<Pin<Box<dyn Future<Output = ()> + Send>>>>,
    /// Wake-ups that no poll has seen. Whoever raises it from 0 polls, until it is 0 again; the others have nothing to
    /// do.
    wakes: AtomicUsize,
}

impl Driver {
    fn start(future: impl Future<Output = ()> + Send + 'static) {
        // Outside of tokio's cooperative budget: on a runtime's thread, a poll that has none left would wake itself for
        // ever.
        let future: Pin<Box<dyn Future<Output = ()> + Send>> = Box::pin(tokio::task::coop::unconstrained(future));
        Arc::new(Driver { future: Mutex::new(Some(future)), wakes: AtomicUsize::new(0) }).wake();
    }
}

impl Wake for Driver {
    fn wake(self: Arc<Self>) {
        if self.wakes.fetch_add(1, Ordering::AcqRel) > 0 {
            return;
        }
        let waker = Waker::from(self.clone());
        loop {
            let seen = self.wakes.load(Ordering::Acquire);
            let mut slot = self.future.lock();
            let is_over =
                slot.as_mut().is_some_and(|future| future.as_mut().poll(&mut Context::from_waker(&waker)).is_ready());
            let over = if is_over { slot.take() } else { None };
            drop(slot);
            // Drops values that nobody took, which is user code.
            drop(over);
            if self.wakes.fetch_sub(seen, Ordering::AcqRel) == seen {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Run, ThreadPool};
    use std::sync::mpsc;
    use std::time::Duration;

    const SOON: Duration = Duration::from_secs(20);

    /// Doubles, or panics above 100.
    #[derive(serde::Serialize, serde::Deserialize)]
    struct Double(u64);

    impl Task for Double {
        type Output = u64;
        const NAME: &'static str = "pool::double";
        fn run(self) -> Run<u64> {
            assert!(self.0 <= 100, "{} is too much", self.0);
            Run::Ready(self.0 * 2)
        }
    }

    #[test]
    fn all_ways_to_map_agree_with_doing_it_here() {
        for workers in [1, 3] {
            let pool = Pool::threads(workers).unwrap();
            for count in [0, 1, 7, 100] {
                let expected: Vec<u64> = (0..count).map(|n| n * 2).collect();
                assert_eq!(pool.map(Double, 0..count).unwrap(), expected);
                assert_eq!(pool.starmap(|(n, _)| Double(n), (0..count).zip("x".chars().cycle())).unwrap(), expected);
                assert_eq!(pool.imap(Double, 0..count).collect::<Outcome<Vec<_>>>().unwrap(), expected);
                let mut unordered = pool.imap_unordered(Double, 0..count).collect::<Outcome<Vec<_>>>().unwrap();
                unordered.sort_unstable();
                assert_eq!(unordered, expected);
                assert_eq!(futures_ext::block_on(pool.map_async(Double, 0..count)).unwrap(), expected);
            }
        }
    }

    #[test]
    fn one_callback_for_each_job() {
        let pool = Pool::threads(2).unwrap();
        let (sender, called) = mpsc::channel();
        let say = |what: &'static str| {
            let sender = sender.clone();
            move |text: String| sender.send((what, text)).unwrap()
        };
        let (good, bad) = (say("value"), say("error"));
        let one = pool.apply_async_with(Double(4), move |n| good(n.to_string()), move |e| bad(e.to_string()));
        one.wait().unwrap();
        let (good, bad) = (say("value"), say("error"));
        let two = pool.apply_async_with(Double(101), move |n| good(n.to_string()), move |e| bad(e.to_string()));
        two.wait().unwrap_err();
        let (good, bad) = (say("value"), say("error"));
        pool.map_async_with(Double, 1..4, move |all| good(format!("{all:?}")), move |e| bad(e.to_string()))
            .wait()
            .unwrap();
        let (good, bad) = (say("value"), say("error"));
        // Nobody waits for it, and it comes to its end all the same.
        pool.map_async_with(Double, 99..105, move |all| good(format!("{all:?}")), move |e| bad(e.to_string())).detach();
        let calls: Vec<_> = (0..4).map(|_| called.recv_timeout(SOON).unwrap()).collect();
        assert_eq!(calls[0], ("value", "8".to_owned()));
        assert_eq!(calls[1].0, "error");
        assert_eq!(calls[2], ("value", "[2, 4, 6]".to_owned()));
        assert!(calls[3].0 == "error" && calls[3].1.contains("101 is too much"), "{calls:?}");
        pool.close();
        pool.join().unwrap();
        assert!(called.try_recv().is_err());
    }

    #[test]
    fn join_comes_after_close_or_terminate() {
        let pool = Pool::threads(1).unwrap();
        assert_eq!(pool.join(), Err(StillOpen));
        let future = pool.map_async(Double, 0..50);
        pool.close();
        pool.join().unwrap();
        assert!(future.is_done() || future.wait().unwrap().len() == 50);
        assert!(matches!(pool.apply(Double(1)), Err(TaskError::Rejected(SubmitError::ShutDown))));
        assert!(matches!(pool.map(Double, 0..3), Err(TaskError::Rejected(SubmitError::ShutDown))));
        pool.terminate();
        assert_eq!(pool.join(), Ok(()));
    }

    #[test]
    fn cancelling_a_map_cancels_its_tasks() {
        let threads = ThreadPool::builder().workers(1).build().unwrap();
        let (open, gate) = mpsc::channel::<()>();
        let busy = threads.spawn(move || gate.recv().unwrap());
        let pool = Pool::over(threads.clone());
        let future = pool.map_async(Double, 0..100);
        let queued = threads.stats().queued;
        assert!(future.cancel());
        assert!(future.wait().unwrap_err().is_cancelled());
        open.send(()).unwrap();
        busy.wait().unwrap();
        assert!(queued > 1);
        assert_eq!(threads.stats().queued, 0);
        pool.terminate();
        pool.join().unwrap();
        assert_eq!(threads.stats().completed, 1);
    }

    #[test]
    fn a_map_waits_for_room_in_a_limited_backlog() {
        let pool = Pool::over(ThreadPool::builder().workers(1).backlog(1).build().unwrap());
        let expected: Vec<u64> = (0..100).map(|n| n * 2).collect();
        assert_eq!(pool.map(Double, 0..100).unwrap(), expected);
    }

    #[test]
    fn terminate_is_quick_with_much_that_waits() {
        let threads = ThreadPool::builder().workers(1).build().unwrap();
        let (open, gate) = mpsc::channel::<()>();
        threads.spawn(move || gate.recv()).detach();
        let pool = Pool::over(threads);
        let futures: Vec<_> = (0..10_000).map(|n| pool.apply_async(Double(n % 100))).collect();
        pool.terminate();
        assert!(futures.into_iter().all(|future| future.wait().unwrap_err().is_cancelled()));
        drop(open);
        assert_eq!(pool.join(), Ok(()));
    }
}
