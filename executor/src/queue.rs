//! Queues between the threads and futures of a program: first in first out, last in first out, by priority; with a
//! limit or without, and with [`join`](JoinableQueue::join), which waits until everything that was put has also been
//! *dealt with*. They are Python's `queue.Queue`, `LifoQueue` and `PriorityQueue`.
//!
//! | Python | here |
//! | --- | --- |
//! | `Queue(maxsize)` | [`Queue::new`](JoinableQueue::new), [`Queue::bounded`](JoinableQueue::bounded) |
//! | `put`, `put(timeout=)`, `put_nowait`, `Full` | [`put`](JoinableQueue::put), [`put_timeout`](JoinableQueue::put_timeout), [`try_put`](JoinableQueue::try_put), [`PutError::Full`] |
//! | `get`, `get(timeout=)`, `get_nowait`, `Empty` | [`get`](JoinableQueue::get), [`get_timeout`](JoinableQueue::get_timeout), [`try_get`](JoinableQueue::try_get), [`GetError::Empty`] |
//! | `task_done`, `join` | [`task_done`](JoinableQueue::task_done), [`join`](JoinableQueue::join) |
//! | `qsize`, `empty`, `full` | [`len`](JoinableQueue::len), [`is_empty`](JoinableQueue::is_empty), [`is_full`](JoinableQueue::is_full) |
//! | `shutdown()`, `shutdown(immediate=True)`, `ShutDown` | [`close`](JoinableQueue::close), [`close_now`](JoinableQueue::close_now), [`GetError::Closed`] |
//!
//! Each call that may wait has a blocking and an asynchronous form, so that threads and futures can stand at the two
//! ends of one queue. The blocking ones may be called inside a task of a [`ThreadPool`](crate::ThreadPool), which then
//! grows for as long; see "Waiting inside a task" at [`Executor`](crate::Executor).
//!
//! When *not* to use them: a queue that only hands values on, with no `join` and no order of its own, is a
//! `std::sync::mpsc` or `tokio::sync::mpsc` channel, whose end says by itself when the other side has gone. Between
//! processes there is `polypool::shared::Queue`. A queue of *work* is what an [executor](crate::Executor) has inside.
//!
//! ```
//! use polypool::ThreadPool;
//! use polypool::queue::Queue;
//!
//! let queue = Queue::new();
//! let pool = ThreadPool::builder().workers(2).build()?;
//! for _ in 0..2 {
//!     let queue = queue.clone();
//!     pool.spawn(move || {
//!         while let Ok(item) = queue.get() {
//!             println!("working on {item}");
//!             queue.task_done().expect("one for each get");
//!         }
//!     })
//!     .detach();
//! }
//! for item in 0..5 {
//!     queue.put(item)?;
//! }
//! queue.join();
//! println!("all done");
//! queue.close(); // the workers' get() ends
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::cmp::Ordering;
use std::collections::{BinaryHeap, VecDeque};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_ext::{block_on, block_on_deadline};
use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore, TryAcquireError};

use crate::future::after;

/// First in, first out: `queue.Queue`.
pub type Queue<T> = JoinableQueue<Fifo<T>>;

/// Last in, first out: `queue.LifoQueue`.
///
/// ```
/// use polypool::queue::LifoQueue;
///
/// let queue = LifoQueue::new();
/// queue.put(1)?;
/// queue.put(2)?;
/// assert_eq!(queue.get()?, 2);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub type LifoQueue<T> = JoinableQueue<Lifo<T>>;

/// The lowest priority first, and equal ones in the order they were put: `queue.PriorityQueue`. The items are pairs, of
/// which only the first half is compared.
///
/// ```
/// use polypool::queue::PriorityQueue;
///
/// let queue = PriorityQueue::new();
/// queue.put((2, "code"))?;
/// queue.put((1, "eat"))?;
/// queue.put((3, "sleep"))?;
/// assert_eq!(queue.get()?, (1, "eat"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub type PriorityQueue<P, T> = JoinableQueue<Ranked<P, T>>;

/// A queue that any number of threads and futures put into and take out of, by clones that are handles of the same one.
///
/// Which item comes out first is up to `S`: see [`Queue`], [`LifoQueue`] and [`PriorityQueue`]. Those who wait are
/// served in the order in which they came.
///
/// A queue has no owner, and dropping a handle says nothing to those who wait: [`close`](Self::close) does.
pub struct JoinableQueue<S: Store> {
    inner: Arc<Inner<S>>,
}

struct Inner<S> {
    state: Mutex<State<S>>,
    /// A permit for each item. It ends with the queue, after which items are taken without one.
    items: Semaphore,
    /// A permit for each free place; `None` without a limit.
    room: Option<Semaphore>,
    /// Nothing is unfinished any more.
    finished: Notify,
}

struct State<S> {
    store: S,
    /// What was put and not yet dealt with.
    unfinished: usize,
    is_closed: bool,
}

impl<S: Store> JoinableQueue<S> {
    /// An empty queue without a limit.
    #[must_use]
    pub fn new() -> Self {
        Self::bounded(0)
    }

    /// An empty queue that holds at most `most` items: who puts more waits for room. As in Python, 0 is no limit.
    #[must_use]
    pub fn bounded(most: usize) -> Self {
        let room = (1..=Semaphore::MAX_PERMITS).contains(&most).then(|| Semaphore::new(most));
        JoinableQueue {
            inner: Arc::new(Inner {
                state: Mutex::new(State { store: S::default(), unfinished: 0, is_closed: false }),
                items: Semaphore::new(0),
                room,
                finished: Notify::new(),
            }),
        }
    }

    // ---- Putting ---------------------------------------------------------------------------------------------------

    /// Puts an item, and blocks this thread until there is room for it.
    ///
    /// # Errors
    /// [`PutError::Closed`] with the item, also when that happens during the wait.
    pub fn put(&self, item: S::Item) -> Result<(), PutError<S::Item>> {
        block_on(self.put_async(item))
    }

    /// Puts an item if there is room for it now.
    ///
    /// # Errors
    /// [`PutError::Full`] or [`PutError::Closed`], with the item.
    pub fn try_put(&self, item: S::Item) -> Result<(), PutError<S::Item>> {
        match self.inner.room.as_ref().map(Semaphore::try_acquire) {
            Some(Err(TryAcquireError::NoPermits)) => return Err(PutError::Full(item)),
            Some(Err(TryAcquireError::Closed)) => return Err(PutError::Closed(item)),
            Some(Ok(permit)) => permit.forget(),
            None => {}
        }
        self.insert(item)
    }

    /// Puts an item, and blocks this thread until there is room for it or the time is up.
    ///
    /// # Errors
    /// [`PutError::TimedOut`] or [`PutError::Closed`], with the item.
    pub fn put_timeout(&self, item: S::Item, timeout: Duration) -> Result<(), PutError<S::Item>> {
        match block_on_deadline(pin!(self.wait_for_room()), after(timeout)) {
            Ok(true) => self.insert(item),
            Ok(false) => Err(PutError::Closed(item)),
            Err(_) => Err(PutError::TimedOut(item)),
        }
    }

    /// Puts an item as soon as there is room for it.
    ///
    /// # Errors
    /// [`PutError::Closed`] with the item, also when that happens during the wait.
    ///
    /// # Cancellation safety
    /// Dropping the future before it is over drops the item, and nothing has been put.
    pub async fn put_async(&self, item: S::Item) -> Result<(), PutError<S::Item>> {
        if self.wait_for_room().await { self.insert(item) } else { Err(PutError::Closed(item)) }
    }

    /// Takes a place; `false` when there is nothing more to be put.
    async fn wait_for_room(&self) -> bool {
        match &self.inner.room {
            None => true,
            Some(room) => room.acquire().await.map(tokio::sync::SemaphorePermit::forget).is_ok(),
        }
    }

    /// Puts an item into the place that was taken for it.
    fn insert(&self, item: S::Item) -> Result<(), PutError<S::Item>> {
        let mut state = self.inner.state.lock();
        if state.is_closed {
            return Err(PutError::Closed(item));
        }
        state.store.put(item);
        state.unfinished += 1;
        drop(state);
        self.inner.items.add_permits(1);
        Ok(())
    }

    // ---- Taking ----------------------------------------------------------------------------------------------------

    /// Takes the next item, and blocks this thread until there is one.
    ///
    /// # Errors
    /// [`GetError::Closed`] when the queue is closed and empty, also when that happens during the wait.
    pub fn get(&self) -> Result<S::Item, GetError> {
        block_on(self.get_async())
    }

    /// Takes the next item if there is one now.
    ///
    /// # Errors
    /// [`GetError::Empty`] or [`GetError::Closed`].
    pub fn try_get(&self) -> Result<S::Item, GetError> {
        match self.inner.items.try_acquire() {
            Ok(permit) => permit.forget(),
            Err(TryAcquireError::NoPermits) => return Err(GetError::Empty),
            Err(TryAcquireError::Closed) => {}
        }
        self.take()
    }

    /// Takes the next item, and blocks this thread until there is one or the time is up.
    ///
    /// # Errors
    /// [`GetError::TimedOut`] or [`GetError::Closed`].
    pub fn get_timeout(&self, timeout: Duration) -> Result<S::Item, GetError> {
        block_on_deadline(pin!(self.get_async()), after(timeout)).unwrap_or(Err(GetError::TimedOut))
    }

    /// Takes the next item as soon as there is one.
    ///
    /// # Errors
    /// [`GetError::Closed`] when the queue is closed and empty, also when that happens during the wait.
    ///
    /// # Cancellation safety
    /// Dropping the future before it is over loses no item.
    pub async fn get_async(&self) -> Result<S::Item, GetError> {
        if let Ok(permit) = self.inner.items.acquire().await {
            permit.forget();
        }
        self.take()
    }

    /// Takes the item that there is a permit for, or, of a closed queue, whatever is left.
    fn take(&self) -> Result<S::Item, GetError> {
        let item = self.inner.state.lock().store.take().ok_or(GetError::Closed)?;
        if let Some(room) = &self.inner.room {
            room.add_permits(1);
        }
        Ok(item)
    }

    // ---- Joining ---------------------------------------------------------------------------------------------------

    /// Says that an item that was taken out has been dealt with. When that is so for all of them, those who
    /// [`join`](Self::join) go on.
    ///
    /// # Errors
    /// [`TooManyDone`] when this has been called as often as items were put.
    pub fn task_done(&self) -> Result<(), TooManyDone> {
        let mut state = self.inner.state.lock();
        state.unfinished = state.unfinished.checked_sub(1).ok_or(TooManyDone)?;
        let finished = state.unfinished == 0;
        drop(state);
        if finished {
            self.inner.finished.notify_waiters();
        }
        Ok(())
    }

    /// Blocks this thread until everything that was put has been dealt with: [`task_done`](Self::task_done) has been
    /// called for each item.
    pub fn join(&self) {
        block_on(self.join_async());
    }

    /// The same, or until the time is up: then it says `false`.
    #[must_use = "whether everything has been dealt with"]
    pub fn join_timeout(&self, timeout: Duration) -> bool {
        block_on_deadline(pin!(self.join_async()), after(timeout)).is_ok()
    }

    /// Completes when everything that was put has been dealt with.
    ///
    /// # Cancellation safety
    /// Dropping the future has no effect.
    pub async fn join_async(&self) {
        loop {
            // Before the look at the number, so that no notice comes in between unheard.
            let mut finished = pin!(self.inner.finished.notified());
            finished.as_mut().enable();
            if self.unfinished() == 0 {
                return;
            }
            finished.await;
        }
    }

    /// How many items were put and not yet dealt with.
    #[must_use]
    pub fn unfinished(&self) -> usize {
        self.inner.state.lock().unfinished
    }

    // ---- Looking and ending ----------------------------------------------------------------------------------------

    /// How many items there are, at this moment.
    #[must_use]
    #[doc(alias = "qsize")]
    pub fn len(&self) -> usize {
        self.inner.state.lock().store.len()
    }

    /// Whether there is no item, at this moment.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether there is no room, at this moment.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.inner.room.as_ref().is_some_and(|room| room.available_permits() == 0)
    }

    /// Ends the queue: nothing more can be put, and those who wait for room are told so. What is in it can still be
    /// taken; then takers are told, too.
    #[doc(alias = "shutdown")]
    pub fn close(&self) {
        self.inner.state.lock().is_closed = true;
        self.inner.items.close();
        self.inner.room.iter().for_each(Semaphore::close);
    }

    /// Ends the queue at once: what is in it is dropped, and counts as dealt with.
    pub fn close_now(&self) {
        self.close();
        let mut state = self.inner.state.lock();
        let dropped = std::mem::take(&mut state.store);
        state.unfinished = state.unfinished.saturating_sub(dropped.len());
        let finished = state.unfinished == 0;
        drop(state);
        if finished {
            self.inner.finished.notify_waiters();
        }
        // Outside of the lock: dropping items is user code.
        drop(dropped);
    }

    /// Whether the queue was closed.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.inner.state.lock().is_closed
    }
}

impl<S: Store> Default for JoinableQueue<S> {
    fn default() -> Self {
        Self::new()
    }
}

impl<S: Store> Clone for JoinableQueue<S> {
    fn clone(&self) -> Self {
        JoinableQueue { inner: self.inner.clone() }
    }
}

impl<S: Store> std::fmt::Debug for JoinableQueue<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let state = self.inner.state.lock();
        f.debug_struct("JoinableQueue")
            .field("len", &state.store.len())
            .field("unfinished", &state.unfinished)
            .field("is_closed", &state.is_closed)
            .finish_non_exhaustive()
    }
}

/// Why an item was not put; with the item.
#[derive(Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PutError<T> {
    /// There is no room for it now.
    #[error("the queue is full")]
    Full(T),
    /// There was no room for it within the time.
    #[error("the queue was full for the whole timeout")]
    TimedOut(T),
    /// The queue was closed.
    #[error("the queue is closed")]
    Closed(T),
}

impl<T> PutError<T> {
    /// The item.
    pub fn into_item(self) -> T {
        match self {
            PutError::Full(item) | PutError::TimedOut(item) | PutError::Closed(item) => item,
        }
    }
}

impl<T> std::fmt::Debug for PutError<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            PutError::Full(_) => "Full",
            PutError::TimedOut(_) => "TimedOut",
            PutError::Closed(_) => "Closed",
        })
    }
}

/// Why there is no item.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GetError {
    /// There is nothing now.
    #[error("the queue is empty")]
    Empty,
    /// There was nothing within the time.
    #[error("the queue was empty for the whole timeout")]
    TimedOut,
    /// The queue was closed, and everything has been taken out of it.
    #[error("the queue is closed")]
    Closed,
}

/// [`task_done`](JoinableQueue::task_done) was called more often than items were put.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("task_done() was called more often than items were put into the queue")]
pub struct TooManyDone;

/// What decides which item comes out first: [`Fifo`], [`Lifo`] or [`Ranked`].
#[doc(hidden)]
#[allow(clippy::len_without_is_empty)]
pub trait Store: sealed::Sealed + Default {
    type Item;
    fn put(&mut self, item: Self::Item);
    fn take(&mut self) -> Option<Self::Item>;
    fn len(&self) -> usize;
}

mod sealed {
    pub trait Sealed {}
    impl<T> Sealed for super::Fifo<T> {}
    impl<T> Sealed for super::Lifo<T> {}
    impl<P, T> Sealed for super::Ranked<P, T> {}
}

/// The inside of a [`Queue`].
#[allow(missing_debug_implementations)]
pub struct Fifo<T>(VecDeque<T>);

impl<T> Default for Fifo<T> {
    fn default() -> Self {
        Fifo(VecDeque::new())
    }
}

impl<T> Store for Fifo<T> {
    type Item = T;

    fn put(&mut self, item: T) {
        self.0.push_back(item);
    }

    fn take(&mut self) -> Option<T> {
        self.0.pop_front()
    }

    fn len(&self) -> usize {
        self.0.len()
    }
}

/// The inside of a [`LifoQueue`].
#[allow(missing_debug_implementations)]
pub struct Lifo<T>(Vec<T>);

impl<T> Default for Lifo<T> {
    fn default() -> Self {
        Lifo(Vec::new())
    }
}

impl<T> Store for Lifo<T> {
    type Item = T;

    fn put(&mut self, item: T) {
        self.0.push(item);
    }

    fn take(&mut self) -> Option<T> {
        self.0.pop()
    }

    fn len(&self) -> usize {
        self.0.len()
    }
}

/// The inside of a [`PriorityQueue`].
#[allow(missing_debug_implementations)]
pub struct Ranked<P, T> {
    heap: BinaryHeap<Entry<P, T>>,
    next: u64,
}

/// An item, and when it came. The greatest entry is the one to come out first.
struct Entry<P, T> {
    priority: P,
    number: u64,
    item: T,
}

impl<P: Ord, T> Ord for Entry<P, T> {
    fn cmp(&self, other: &Self) -> Ordering {
        other.priority.cmp(&self.priority).then(other.number.cmp(&self.number))
    }
}

impl<P: Ord, T> PartialOrd for Entry<P, T> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<P: Ord, T> PartialEq for Entry<P, T> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl<P: Ord, T> Eq for Entry<P, T> {}

impl<P: Ord, T> Default for Ranked<P, T> {
    fn default() -> Self {
        Ranked { heap: BinaryHeap::new(), next: 0 }
    }
}

impl<P: Ord, T> Store for Ranked<P, T> {
    type Item = (P, T);

    fn put(&mut self, (priority, item): (P, T)) {
        self.heap.push(Entry { priority, number: self.next, item });
        self.next += 1;
    }

    fn take(&mut self) -> Option<(P, T)> {
        self.heap.pop().map(|entry| (entry.priority, entry.item))
    }

    fn len(&self) -> usize {
        self.heap.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ThreadPool;
    use std::future::Future;
    use std::task::{Context, Waker};
    use std::thread;

    const SOON: Duration = Duration::from_secs(10);
    const SHORT: Duration = Duration::from_millis(5);

    fn all<S: Store>(queue: &JoinableQueue<S>) -> Vec<S::Item> {
        std::iter::from_fn(|| queue.try_get().ok()).collect()
    }

    #[test]
    fn each_kind_has_its_order() {
        let (fifo, lifo, ranked) = (Queue::new(), LifoQueue::new(), PriorityQueue::new());
        for (n, priority) in [2, 1, 2, 1].into_iter().enumerate() {
            fifo.put(n).unwrap();
            lifo.put(n).unwrap();
            ranked.put((priority, n)).unwrap();
        }
        assert_eq!(all(&fifo), [0, 1, 2, 3]);
        assert_eq!(all(&lifo), [3, 2, 1, 0]);
        assert_eq!(all(&ranked), [(1, 1), (1, 3), (2, 0), (2, 2)]);
    }

    #[test]
    fn a_full_queue_refuses_or_waits_and_gives_the_item_back() {
        let queue = Queue::bounded(1);
        queue.put("a").unwrap();
        assert!(queue.is_full());
        assert_eq!(queue.try_put("b"), Err(PutError::Full("b")));
        assert_eq!(queue.put_timeout("b", SHORT), Err(PutError::TimedOut("b")));
        assert_eq!(queue.try_put("b").unwrap_err().into_item(), "b");
        let waiting = thread::spawn({
            let queue = queue.clone();
            move || queue.put_timeout("b", SOON)
        });
        assert_eq!(queue.get_timeout(SOON), Ok("a"));
        waiting.join().unwrap().unwrap();
        assert_eq!((queue.try_get(), queue.len()), (Ok("b"), 0));
    }

    #[test]
    fn an_empty_queue_says_so_or_waits() {
        let queue = Queue::<u8>::new();
        assert_eq!(queue.try_get(), Err(GetError::Empty));
        assert_eq!(queue.get_timeout(SHORT), Err(GetError::TimedOut));
        let waiting = thread::spawn({
            let queue = queue.clone();
            move || queue.get_timeout(SOON)
        });
        queue.put(7).unwrap();
        assert_eq!(waiting.join().unwrap(), Ok(7));
    }

    #[test]
    fn join_waits_for_task_done_and_not_for_get() {
        let queue = Queue::new();
        queue.join();
        queue.put(1).unwrap();
        queue.put(2).unwrap();
        all(&queue);
        assert!(!queue.join_timeout(SHORT));
        queue.task_done().unwrap();
        assert!(!queue.join_timeout(SHORT));
        let joining = thread::spawn({
            let queue = queue.clone();
            move || queue.join_timeout(SOON)
        });
        queue.task_done().unwrap();
        assert!(joining.join().unwrap());
        assert_eq!(queue.task_done(), Err(TooManyDone));
    }

    #[test]
    fn after_a_close_the_rest_comes_out_and_nothing_goes_in() {
        let queue = Queue::bounded(2);
        queue.put(1).unwrap();
        queue.put(2).unwrap();
        let waiting = thread::spawn({
            let queue = queue.clone();
            move || queue.put_timeout(3, SOON)
        });
        queue.close();
        assert_eq!(waiting.join().unwrap(), Err(PutError::Closed(3)));
        assert_eq!(queue.try_put(3), Err(PutError::Closed(3)));
        let got = (queue.get_timeout(SOON), queue.try_get(), queue.get_timeout(SOON));
        assert_eq!(got, (Ok(1), Ok(2), Err(GetError::Closed)));
        assert_eq!(queue.put(3), Err(PutError::Closed(3)));
        assert_eq!(queue.unfinished(), 2);
    }

    #[test]
    fn a_close_wakes_all_who_wait_for_items() {
        let queue = Queue::<u8>::new();
        let waiting: Vec<_> = (0..3)
            .map(|_| {
                let queue = queue.clone();
                thread::spawn(move || queue.get_timeout(SOON))
            })
            .collect();
        queue.close();
        for thread in waiting {
            assert_eq!(thread.join().unwrap(), Err(GetError::Closed));
        }
    }

    #[test]
    fn an_immediate_close_drops_what_waits_and_counts_it_as_dealt_with() {
        let queue = Queue::new();
        let item = Arc::new(());
        queue.put(item.clone()).unwrap();
        queue.put(item.clone()).unwrap();
        drop(queue.get().unwrap());
        queue.close_now();
        assert_eq!(Arc::strong_count(&item), 1);
        assert_eq!(queue.get_timeout(SOON), Err(GetError::Closed));
        assert_eq!(queue.unfinished(), 1, "the one that was taken out is still being dealt with");
        queue.task_done().unwrap();
        queue.join();
    }

    #[test]
    fn a_wait_that_is_dropped_takes_nothing_along() {
        let queue = Queue::bounded(1);
        let mut cx = Context::from_waker(Waker::noop());
        let mut getting = Box::pin(queue.get_async());
        assert!(getting.as_mut().poll(&mut cx).is_pending());
        queue.put(1).unwrap();
        let mut putting = Box::pin(queue.put_async(2));
        assert!(putting.as_mut().poll(&mut cx).is_pending());
        // The item is promised to the first and has not been fetched.
        drop(getting);
        assert_eq!(queue.get_timeout(SOON), Ok(1));
        drop(putting);
        queue.put_timeout(3, SOON).unwrap();
        assert_eq!(queue.try_get(), Ok(3));
    }

    #[test]
    fn each_item_comes_out_once_under_load() {
        let queue = Queue::bounded(3);
        let producers: Vec<_> = (0..4)
            .map(|part| {
                let queue = queue.clone();
                thread::spawn(move || (0..500).for_each(|n| queue.put_timeout(part * 500 + n, SOON).unwrap()))
            })
            .collect();
        let consumers: Vec<_> = (0..4)
            .map(|_| {
                let queue = queue.clone();
                thread::spawn(move || {
                    let mut seen = Vec::new();
                    while let Ok(item) = queue.get_timeout(SOON) {
                        seen.push(item);
                        queue.task_done().unwrap();
                    }
                    seen
                })
            })
            .collect();
        producers.into_iter().for_each(|thread| thread.join().unwrap());
        assert!(queue.join_timeout(SOON));
        queue.close();
        let mut seen: Vec<i32> = consumers.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
        seen.sort_unstable();
        assert_eq!(seen, (0..2_000).collect::<Vec<_>>());
    }

    #[test]
    fn a_blocking_get_inside_a_pool_makes_room_for_the_put() {
        let pool = ThreadPool::builder().workers(1).build().unwrap();
        let queue = Queue::new();
        let mut getting = pool.spawn({
            let queue = queue.clone();
            move || queue.get()
        });
        pool.spawn({
            let queue = queue.clone();
            move || queue.put(5)
        })
        .detach();
        assert_eq!(getting.wait_timeout(SOON).unwrap().unwrap(), Ok(5));
    }
}
