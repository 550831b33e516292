//! `JoinableQueue<T>`: a queue that knows which items have been taken but not finished, and whose takers are still
//! alive.
//!
//! # Counting
//!
//! Python counts unfinished items in one number, which a worker that dies takes along for ever. Here each process has a
//! *row* with the number of items that it has taken and not finished. What is unfinished is what is in the queue, plus
//! the rows of all living processes:
//!
//! - An item is added to the row of its getter *before* it leaves the queue (under the lock of the getters), so it is
//!   always in at least one of the two.
//! - A dead process's row doesn't count. It needs no repair, and a getter that dies between the two leaves the item in
//!   the queue.
//!
//! Whoever sums up must not miss an item that moves meanwhile. So it reads the length of the queue first, then the
//! rows, then how many items have ever been put; if that number has changed since the first reading, it starts anew.
//! While nothing is put, items only move from the queue to rows and from rows away, so a length and rows that were seen
//! to be zero in this order are so still.
//!
//! # Sleeping
//!
//! Joiners sleep on a word of their own and on the presences of the processes that have unfinished items. They are
//! woken when a row becomes empty, and when one becomes busy, as there is then another process whose death they must
//! hear of. The protocol is that of the ring.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::mem::size_of;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::queue::{GetError, PutError, Queue, QueueOptions};
use super::ring::{self, Ring};
use crate::memory::segment::Layout;
use crate::object::BODY;
use crate::presence::{Holder, Seat};
use crate::wait::{self, Change, Step, Waiting, Word};

/// In the flags of the ring: there are rows.
pub(crate) const JOINABLE: u32 = 1;

/// A row for each process that can share an object, and one more.
const ROWS: usize = 4_096;

#[repr(C, align(128))]
struct Head {
    /// What joiners sleep on.
    joined: AtomicU32,
    /// No row from here on has ever been used.
    used: AtomicU32,
    /// How many items the owners of rows that have been taken over died with.
    abandoned: AtomicU64,
}

#[repr(C)]
struct RowWords {
    /// Whose it is; 0: nobody's.
    seat: AtomicU32,
    /// How many items it has taken and not finished.
    open: AtomicU32,
}

// SAFETY: repr(C) and atomics only; what pads the head is never read.
unsafe impl Layout for Head {}
// SAFETY: repr(C) and atomics only.
unsafe impl Layout for RowWords {}

/// How many bytes of the ring's object all this takes.
pub(crate) const EXTRA: u32 = (size_of::<Head>() + ROWS * size_of::<RowWords>()) as u32;

/// The rows, as one handle sees them.
pub(crate) struct Rows {
    ring: Ring,
    mine: Option<Arc<Row>>,
}

/// The row of this process. Handed back with its last handle: what the process has not finished by then counts as
/// finished.
struct Row {
    ring: Ring,
    /// [`NONE`]: this process, a forked child, has not needed one yet.
    index: AtomicUsize,
}

/// No row.
const NONE: usize = usize::MAX;

/// The rows of this process, by the address of the ring's mapping.
static KNOWN: Mutex<BTreeMap<usize, Weak<Row>>> = Mutex::new(BTreeMap::new());

/// The table of rows, held over a fork.
pub(crate) struct Frozen(MutexGuard<'static, BTreeMap<usize, Weak<Row>>>);

pub(crate) fn freeze() -> Frozen {
    Frozen(KNOWN.lock().unwrap_or_else(PoisonError::into_inner))
}

impl Frozen {
    /// In a forked child: the rows are the parent's.
    pub(crate) fn forget(&mut self) {
        for row in self.0.values().filter_map(Weak::upgrade) {
            row.index.store(NONE, Ordering::Relaxed);
        }
    }
}

/// What there is to be finished, and by whom.
struct Unfinished {
    items: u64,
    holders: Vec<(Word, u32)>,
}

fn head(ring: &Ring) -> &Head {
    ring.object().at(ring::EXTRA)
}

fn row(ring: &Ring, index: usize) -> &RowWords {
    ring.object().at(ring::EXTRA + size_of::<Head>() + index * size_of::<RowWords>())
}

impl Rows {
    /// The rows of a ring; `None` if its object is too small for them.
    pub(crate) fn of(ring: &Ring) -> Option<Arc<Self>> {
        (ring.object().len() >= ring::EXTRA + EXTRA as usize)
            .then(|| Arc::new(Rows { ring: ring.clone(), mine: Row::mine(ring) }))
    }

    /// `count` items are about to leave the ring for this process.
    pub(crate) fn take(&self, count: u32) {
        let Some(mine) = self.mine.as_ref().and_then(|mine| mine.index()) else { return };
        if row(&self.ring, mine).open.fetch_add(count, Ordering::AcqRel) == 0 {
            ring::tell_all(&head(&self.ring).joined);
        }
    }

    /// One item is finished; whether there was one to finish.
    pub(crate) fn done(&self) -> bool {
        let Some(mine) = self.mine.as_ref().and_then(|mine| mine.index()) else { return false };
        let open = &row(&self.ring, mine).open;
        match open.fetch_update(Ordering::AcqRel, Ordering::Relaxed, |open| open.checked_sub(1)) {
            Ok(1) => {
                ring::tell_all(&head(&self.ring).joined);
                true
            }
            Ok(_) => true,
            Err(_) => false,
        }
    }

    fn used(&self) -> usize {
        (head(&self.ring).used.load(Ordering::Acquire) as usize).min(ROWS)
    }

    fn unfinished(&self) -> Unfinished {
        let board = self.ring.object().board();
        let mut tries = 0;
        loop {
            tries += 1;
            let (len, put) = self.ring.len();
            let mut found = Unfinished { items: u64::from(len), holders: Vec::new() };
            for index in 0..self.used() {
                let row = row(&self.ring, index);
                let open = row.open.load(Ordering::Acquire);
                if open == 0 {
                    continue;
                }
                let Some(seat) = Seat::from_word(row.seat.load(Ordering::Acquire)) else { continue };
                if let Holder::Alive(word, value) = board.look(seat) {
                    found.items += u64::from(open);
                    found.holders.push((Word::new(board.segment(), board.offset(word)), value));
                }
            }
            if self.ring.len().1 == put {
                return found;
            }
            if tries == 1_000 {
                // So much is being put that there is something to be finished at any moment.
                found.items = found.items.max(1);
                return found;
            }
        }
    }

    /// One attempt to find everything finished.
    fn step(&self) -> Step<()> {
        if self.unfinished().items == 0 {
            return Step::Ready(());
        }
        let value = ring::announce(&head(&self.ring).joined);
        let found = self.unfinished();
        if found.items == 0 {
            return Step::Ready(());
        }
        let change = Change::of(self.ring.object().segment(), BODY + ring::EXTRA, value);
        Step::Wait(Change { holders: found.holders, ..change })
    }

    fn abandoned(&self) -> u64 {
        let board = self.ring.object().board();
        let dead = (0..self.used()).map(|index| row(&self.ring, index)).filter_map(|row| {
            let seat = Seat::from_word(row.seat.load(Ordering::Acquire))?;
            board.is_dead(seat).then(|| u64::from(row.open.load(Ordering::Acquire)))
        });
        dead.fold(head(&self.ring).abandoned.load(Ordering::Relaxed), u64::saturating_add)
    }
}

impl Row {
    /// All handles of this process share a row, also those that arrived separately.
    fn mine(ring: &Ring) -> Option<Arc<Self>> {
        let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
        let key = ring.object().segment().start().addr();
        if let Some(row) = known.get(&key).and_then(Weak::upgrade) {
            return Some(row);
        }
        let row = Arc::new(Row { ring: ring.clone(), index: AtomicUsize::new(Row::claim(ring)?) });
        known.retain(|_, row| row.strong_count() > 0);
        known.insert(key, Arc::downgrade(&row));
        Some(row)
    }

    #[inline]
    fn index(&self) -> Option<usize> {
        match self.index.load(Ordering::Relaxed) {
            NONE => self.index_after_fork(),
            index => Some(index),
        }
    }

    #[cold]
    fn index_after_fork(&self) -> Option<usize> {
        let _known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
        if self.index.load(Ordering::Relaxed) == NONE {
            self.index.store(Row::claim(&self.ring)?, Ordering::Relaxed);
        }
        Some(self.index.load(Ordering::Relaxed))
    }

    fn claim(ring: &Ring) -> Option<usize> {
        let board = ring.object().board();
        let me = board.seat().bits();
        for index in 0..ROWS {
            let row = row(ring, index);
            let before = row.seat.load(Ordering::Acquire);
            if before != 0 {
                if let Some(seat) = Seat::from_word(before) {
                    // A thread of a dying process may still be counting.
                    if !board.is_dead(seat) || !board.has_left(seat) {
                        continue;
                    }
                }
                let abandoned = row.open.swap(0, Ordering::AcqRel);
                head(ring).abandoned.fetch_add(u64::from(abandoned), Ordering::Relaxed);
            }
            if row.seat.compare_exchange(before, me, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                head(ring).used.fetch_max(index as u32 + 1, Ordering::AcqRel);
                return Some(index);
            }
        }
        None // There are more rows than processes, so a peer has lied. Nothing is counted then.
    }
}

impl Drop for Row {
    fn drop(&mut self) {
        let index = *self.index.get_mut();
        if index == NONE {
            return;
        }
        let row = row(&self.ring, index);
        row.open.store(0, Ordering::Release);
        row.seat.store(0, Ordering::Release);
        ring::tell_all(&head(&self.ring).joined);
    }
}

impl fmt::Debug for Rows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rows").field("unfinished", &self.unfinished().items).finish_non_exhaustive()
    }
}

/// A [`Queue`] whose putters can wait until all items have been worked on: Python's `multiprocessing.JoinableQueue`.
///
/// It is a queue in every respect (all its methods are there), but counts the items that have been got and not yet
/// finished. A getter says [`task_done`](JoinableQueue::task_done) for each item when it has worked on it;
/// [`get_task`](JoinableQueue::get_task) does so by itself. [`join`](JoinableQueue::join) returns when everything that
/// was put has been finished.
///
/// **A dead worker doesn't keep the others waiting**, as it does in Python: what a process had taken when it died, or
/// when it dropped its last handle, counts as finished from then on, and [`abandoned`](JoinableQueue::abandoned) says
/// how much that is. The items are not put back. A worker that is alive and fails can [put its task
/// back](Task::put_back).
///
/// Items that nobody takes are waited for, as long as it lasts: whether there will be another worker is not for the
/// queue to know.
///
/// # Examples
///
/// ```
/// use polypool_ipc::JoinableQueue;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let queue = JoinableQueue::unbounded()?;
/// let worker = std::thread::spawn({
///     let queue = queue.clone();
///     move || {
///         while let Ok(task) = queue.get_task() {
///             let _square = *task * *task;
///         } // done here, each of them
///     }
/// });
/// for n in 0..5_u64 {
///     queue.put(n)?;
/// }
/// queue.join();
/// assert_eq!(queue.unfinished(), 0);
/// queue.close();
/// worker.join().unwrap();
/// # Ok(())
/// # }
/// ```
pub struct JoinableQueue<T> {
    queue: Queue<T>,
    rows: Arc<Rows>,
}

/// An item was to be marked as finished, but this process has none that isn't.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("task_done was called more often than this process has got items from the queue")]
pub struct TooManyDone;

impl<T> JoinableQueue<T> {
    /// As [`Queue::bounded`].
    ///
    /// # Errors
    ///
    /// As for [`QueueOptions::queue`]; 0 items are out of range.
    pub fn bounded(items: usize) -> io::Result<Self> {
        QueueOptions::new().items(items).joinable()
    }

    /// As [`Queue::unbounded`].
    ///
    /// # Errors
    ///
    /// As for [`QueueOptions::queue`].
    pub fn unbounded() -> io::Result<Self> {
        QueueOptions::new().joinable()
    }

    pub(crate) fn over(queue: Queue<T>) -> io::Result<Self> {
        let rows = queue.rows().cloned().ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::InvalidData,
                "a handle was expected to be of a queue that can be joined, but this one can't",
            )
        })?;
        Ok(JoinableQueue { queue, rows })
    }

    /// One item that this process has got is finished.
    ///
    /// # Errors
    ///
    /// [`TooManyDone`] if it has none: each getter finishes its own items.
    pub fn task_done(&self) -> Result<(), TooManyDone> {
        if self.rows.done() { Ok(()) } else { Err(TooManyDone) }
    }

    /// How many items are in the queue or being worked on by living processes.
    #[must_use = "it has no effect but its result"]
    pub fn unfinished(&self) -> u64 {
        self.rows.unfinished().items
    }

    /// How many items have been taken by processes that died before they finished them. (One that died in the middle of
    /// a get may be counted although the item is still in the queue.)
    #[must_use = "it has no effect but its result"]
    pub fn abandoned(&self) -> u64 {
        self.rows.abandoned()
    }

    /// Waits until all items that have been put are finished; at once if nothing is unfinished.
    pub fn join(&self) {
        self.join_until(None);
    }

    /// Whether everything is finished at this moment.
    #[must_use = "it doesn't wait"]
    pub fn try_join(&self) -> bool {
        self.unfinished() == 0
    }

    /// Waits until everything is finished, for at most so long; whether it is.
    #[must_use = "the time may have run out"]
    pub fn join_timeout(&self, timeout: Duration) -> bool {
        self.join_until(wait::after(timeout))
    }

    /// Waits until everything is finished, without blocking the thread.
    ///
    /// **Cancellation:** may be dropped at any time.
    pub async fn join_async(&self) {
        Waiting::new(|| self.rows.step()).await;
    }

    fn join_until(&self, until: Option<Instant>) -> bool {
        wait::block(until, || self.rows.step()).is_some()
    }
}

impl<T: DeserializeOwned> JoinableQueue<T> {
    /// Gets the first item as a [`Task`], which is finished when it is dropped; waits for one if there is none.
    ///
    /// # Errors
    ///
    /// As for [`Queue::get`].
    pub fn get_task(&self) -> Result<Task<T>, GetError> {
        self.queue.get().map(|item| self.task(item))
    }

    /// Gets the first item as a [`Task`] if there is one.
    ///
    /// # Errors
    ///
    /// As for [`Queue::try_get`].
    pub fn try_get_task(&self) -> Result<Task<T>, GetError> {
        self.queue.try_get().map(|item| self.task(item))
    }

    /// Gets the first item as a [`Task`], and waits for one for at most so long.
    ///
    /// # Errors
    ///
    /// As for [`Queue::get_timeout`].
    pub fn get_task_timeout(&self, timeout: Duration) -> Result<Task<T>, GetError> {
        self.queue.get_timeout(timeout).map(|item| self.task(item))
    }

    /// Gets the first item as a [`Task`], and waits for one without blocking the thread.
    ///
    /// **Cancellation:** dropped before it is ready, it has taken nothing.
    ///
    /// # Errors
    ///
    /// As for [`Queue::get`].
    pub async fn get_task_async(&self) -> Result<Task<T>, GetError> {
        self.queue.get_async().await.map(|item| self.task(item))
    }

    fn task(&self, item: T) -> Task<T> {
        Task { item: Some(item), queue: self.queue.clone(), rows: self.rows.clone() }
    }
}

/// The queue itself, with all its operations.
impl<T> Deref for JoinableQueue<T> {
    type Target = Queue<T>;

    fn deref(&self) -> &Queue<T> {
        &self.queue
    }
}

impl<T> Clone for JoinableQueue<T> {
    fn clone(&self) -> Self {
        JoinableQueue { queue: self.queue.clone(), rows: self.rows.clone() }
    }
}

impl<T> fmt::Debug for JoinableQueue<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinableQueue")
            .field("queue", &self.queue)
            .field("unfinished", &self.unfinished())
            .finish_non_exhaustive()
    }
}

impl<T> Serialize for JoinableQueue<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.queue.serialize(serializer)
    }
}

impl<'de, T> Deserialize<'de> for JoinableQueue<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        JoinableQueue::over(Queue::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

/// An item that is being worked on; dropped, also by a panic, it is finished.
#[must_use = "dropping it finishes the task"]
pub struct Task<T> {
    /// `None` only while it is taken apart.
    item: Option<T>,
    queue: Queue<T>,
    rows: Arc<Rows>,
}

impl<T> Task<T> {
    /// Finishes the task, and keeps the item.
    pub fn finish(mut self) -> T {
        self.item.take().unwrap_or_else(|| unreachable!("only taken by those who consume the task"))
    }
}

impl<T: Serialize> Task<T> {
    /// Puts the item back, at the end of the queue, for somebody else to work on. There is no moment at which it counts
    /// as finished.
    ///
    /// # Errors
    ///
    /// As for [`Queue::try_put`], as the queue may be full or closed meanwhile. The error has the task, still
    /// unfinished.
    pub fn put_back(self) -> Result<(), PutError<Task<T>>> {
        match self.queue.try_put_ref(&*self) {
            Ok(()) => Ok(()),
            Err(reason) => Err(PutError { item: self, reason }),
        }
    }
}

impl<T> Deref for Task<T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.item.as_ref().unwrap_or_else(|| unreachable!("only taken by those who consume the task"))
    }
}

impl<T> DerefMut for Task<T> {
    fn deref_mut(&mut self) -> &mut T {
        self.item.as_mut().unwrap_or_else(|| unreachable!("only taken by those who consume the task"))
    }
}

impl<T> Drop for Task<T> {
    fn drop(&mut self) {
        self.rows.done();
    }
}

impl<T: fmt::Debug> fmt::Debug for Task<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Task").field(&self.item).finish()
    }
}
