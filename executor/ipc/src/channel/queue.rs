//! `Queue<T>`: typed items over a [`Ring`]; and [`ByteQueue`], which leaves the bytes as they are.
//!
//! What happens between the processes, and why nothing can go wrong when one of them is killed, stands in `ring.rs`.
//! Here is the encoding, which happens outside of all locks, the four forms of each operation, and the errors.

use std::cell::Cell;
use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::codec::{self, CodecError};
use super::join::{self, JoinableQueue, Rows};
use super::ring::{Batch, Corrupt, DEFAULT_MEMORY, EXTRA, Memory, Mode, Options, Refusal, Ring};
use crate::object::{Kind, Object};
use crate::wait::{self, Form, Step, Waiting};

const ITEMS: Kind = *b"queu";
const BYTES: Kind = *b"bque";

/// From this many bytes on, a batch of puts is handed to the ring before the next items are encoded.
const PORTION: usize = 64 << 10;

/// How large a buffer may be that is kept for the next item.
const KEEP: usize = 64 << 10;

/// A first-in, first-out queue between processes, of any number of putters and getters: Python's
/// `multiprocessing.Queue`.
///
/// A handle is cheap to clone, and travels to other processes as an argument of a task or by [`pack`](crate::pack). The
/// queue is freed with its last handle, whatever became of the processes.
///
/// - Items of one putter come out in the order in which it put them. Each item goes to one getter.
/// - An item is in the queue when `put` returns; there is no feeder thread behind it. So an item that can't be encoded
///   is an error of its `put`, and doesn't count.
/// - **Killed processes** do no harm: a putter killed in the middle of a `put` loses that item, a getter killed in the
///   middle of a `get` that one at most. Nobody else notices.
/// - **One type.** A handle can only be received as one of a queue of the same type, by its name without the path; the
///   fields are compared by nobody, and an item of other ones is an error of its `get`.
/// - **No end of file.** The queue can't know who will still put something. [`close`](Queue::close) it, or send an item
///   that says so.
///
/// Each operation comes in four forms: `put` blocks the thread, `try_put` never waits, `put_timeout` waits for so long,
/// and `put_async` is a future that needs no particular runtime and may be dropped at any time: it has then put
/// nothing, or got nothing.
///
/// # Examples
///
/// ```
/// use polypool_ipc::Queue;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let queue = Queue::bounded(100)?;
/// queue.put("hello".to_owned())?;
/// queue.put("world".to_owned())?;
/// queue.close();
/// assert_eq!(queue.len(), 2);
/// let words: Result<Vec<String>, _> = queue.iter().collect();
/// assert_eq!(words?, ["hello", "world"]);
/// # Ok(())
/// # }
/// ```
pub struct Queue<T> {
    ring: Ring,
    /// Who has taken which items, if it's the queue of a [`JoinableQueue`].
    rows: Option<Arc<Rows>>,
    item: PhantomData<fn(T) -> T>,
}

/// How large a queue may become.
///
/// # Examples
///
/// ```
/// use polypool_ipc::QueueOptions;
///
/// # fn main() -> std::io::Result<()> {
/// let queue = QueueOptions::new().items(1_000).memory(16 << 20).queue::<String>()?;
/// assert_eq!(queue.capacity(), Some(1_000));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
#[must_use = "options do nothing until a queue is made of them"]
pub struct QueueOptions {
    items: Option<usize>,
    memory: u64,
}

impl QueueOptions {
    /// As many items as fit into 1 GiB of memory (32 MiB where addresses have 32 bits).
    pub fn new() -> Self {
        QueueOptions { items: None, memory: DEFAULT_MEMORY }
    }

    /// The most items that may be in the queue, from 1 to 2³¹ − 1.
    pub fn items(mut self, items: usize) -> Self {
        self.items = Some(items);
        self
    }

    /// The most memory that the items in the queue may take, in bytes; rounded up to a power of two from 4 KiB to 16
    /// GiB. An item takes its encoded length rounded up to a multiple of 8, and 8 bytes more.
    ///
    /// This many addresses are reserved in each process, but memory is taken only for what the queue really holds. It
    /// starts with 64 KiB, grows as needed, and gives back what exceeds 32 MiB when it becomes empty.
    pub fn memory(mut self, bytes: u64) -> Self {
        self.memory = bytes;
        self
    }

    /// A queue of typed items.
    ///
    /// # Errors
    ///
    /// [`InvalidInput`](io::ErrorKind::InvalidInput) if the options are out of range, and what the system says when it
    /// is out of descriptors, memory or addresses.
    pub fn queue<T>(&self) -> io::Result<Queue<T>> {
        Ok(Queue::over(Ring::create(ITEMS, schema_of::<T>(), self.options()?, 0, 0)?))
    }

    /// A queue that also counts the items that have been taken but not finished.
    ///
    /// # Errors
    ///
    /// As for [`queue`](QueueOptions::queue).
    pub fn joinable<T>(&self) -> io::Result<JoinableQueue<T>> {
        let ring = Ring::create(ITEMS, schema_of::<T>(), self.options()?, join::EXTRA, join::JOINABLE)?;
        JoinableQueue::over(Queue::over(ring))
    }

    /// A queue of bytes.
    ///
    /// # Errors
    ///
    /// As for [`queue`](QueueOptions::queue).
    pub fn bytes(&self) -> io::Result<ByteQueue> {
        Ok(ByteQueue { ring: Ring::create(BYTES, 0, self.options()?, 0, 0)? })
    }

    fn options(&self) -> io::Result<Options> {
        let bound =
            self.items.map(u32::try_from).transpose().map_err(|_| {
                io::Error::new(io::ErrorKind::InvalidInput, "a queue can't be bounded to that many items")
            })?;
        Ok(Options { bound, memory: self.memory })
    }
}

impl Default for QueueOptions {
    fn default() -> Self {
        QueueOptions::new()
    }
}

/// An item was not put; here it is again.
pub struct PutError<T> {
    /// The item; of several, those that have not been put, the one that failed first.
    pub item: T,
    /// Why.
    pub reason: PutFailure,
}

impl<T> PutError<T> {
    /// The item.
    pub fn into_item(self) -> T {
        self.item
    }
}

impl<T> fmt::Debug for PutError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PutError").field("reason", &self.reason).finish_non_exhaustive()
    }
}

impl<T> fmt::Display for PutError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.reason.fmt(f)
    }
}

impl<T> std::error::Error for PutError<T> {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.reason.source()
    }
}

/// Why an item was not put.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PutFailure {
    /// There is no room now: the queue holds as many items as it may, or as much memory.
    #[error("the queue is full")]
    Full,
    /// Another process is in the middle of an operation and doesn't go on: it has been stopped, or the machine is very
    /// busy. Only the `try_` forms say so.
    #[error("another process is in the middle of an operation of the queue and doesn't go on")]
    Busy,
    /// There was no room within the time.
    #[error("the queue was full for the whole timeout")]
    TimedOut,
    /// The queue has been closed.
    #[error("the queue is closed")]
    Closed,
    /// The item would not fit into the queue if it were empty.
    #[error("the item takes {size} bytes, and the queue has room for items of up to {limit}")]
    TooLarge {
        /// The encoded length of the item.
        size: u64,
        /// The largest that fits.
        limit: u64,
    },
    /// The item can't be encoded.
    #[error("the item can't be put into a queue: {0}")]
    Codec(#[source] CodecError),
    /// The system has no memory for the queue to grow.
    #[error("the queue can't get the memory to grow: {0}")]
    Memory(#[source] io::Error),
    /// A process that shares the queue has spoiled it.
    #[error(transparent)]
    Corrupt(Corrupt),
}

impl From<Refusal> for PutFailure {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Closed => PutFailure::Closed,
            Refusal::TooLarge { size, limit } => PutFailure::TooLarge { size, limit },
            Refusal::Memory(error) => PutFailure::Memory(error),
            Refusal::Corrupt(corrupt) => PutFailure::Corrupt(corrupt),
        }
    }
}

/// Why no item was got.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GetError {
    /// There is nothing now.
    #[error("the queue is empty")]
    Empty,
    /// Another process is in the middle of an operation and doesn't go on: it has been stopped, or the machine is very
    /// busy. Only the `try_` forms say so.
    #[error("another process is in the middle of an operation of the queue and doesn't go on")]
    Busy,
    /// There was nothing within the time.
    #[error("the queue was empty for the whole timeout")]
    TimedOut,
    /// The queue has been closed, and all that was in it has been got.
    #[error("the queue is closed and empty")]
    Closed,
    /// The item could not be decoded. It has left the queue; the next one is another matter.
    #[error("an item of the queue can't be decoded: {0}")]
    Codec(#[source] CodecError),
    /// This process has no memory for the item, which is still in the queue.
    #[error("there is no memory for an item of the queue: {0}")]
    Memory(#[source] io::Error),
    /// A process that shares the queue has spoiled it.
    #[error(transparent)]
    Corrupt(Corrupt),
}

impl From<Refusal> for GetError {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Closed => GetError::Closed,
            Refusal::Memory(error) => GetError::Memory(error),
            Refusal::Corrupt(corrupt) => GetError::Corrupt(corrupt),
            Refusal::TooLarge { .. } => unreachable!("only putters are refused for size"),
        }
    }
}

fn put_records<'b>(
    ring: &Ring,
    record: impl Fn(usize) -> Option<&'b [u8]>,
    done: &mut usize,
    form: Form,
) -> Result<(), PutFailure> {
    let mut memory = Memory::default();
    let outcome = match form {
        Form::Try => match ring.put(record, done, Mode::Once, &mut memory) {
            Step::Ready(outcome) => outcome,
            Step::Wait(_) if memory.was_busy() => return Err(PutFailure::Busy),
            Step::Wait(_) => return Err(PutFailure::Full),
        },
        Form::Until(until) => match wait::block(until, || ring.put(&record, done, Mode::Block, &mut memory)) {
            Some(outcome) => outcome,
            None => return Err(PutFailure::TimedOut),
        },
    };
    Ok(outcome?)
}

async fn put_records_async<'b>(
    ring: &Ring,
    record: impl Fn(usize) -> Option<&'b [u8]> + Unpin,
    done: &mut usize,
) -> Result<(), PutFailure> {
    let mut memory = Memory::default();
    Ok(Waiting::new(|| ring.put(&record, done, Mode::Poll, &mut memory)).await?)
}

fn get_records(ring: &Ring, rows: Option<&Rows>, batch: &mut Batch, most: usize, form: Form) -> Result<(), GetError> {
    let mut memory = Memory::default();
    let claim = |count| claim(rows, count);
    let outcome = match form {
        Form::Try => match ring.get(batch, most, Mode::Once, &mut memory, claim) {
            Step::Ready(outcome) => outcome,
            Step::Wait(_) if memory.was_busy() => return Err(GetError::Busy),
            Step::Wait(_) => return Err(GetError::Empty),
        },
        Form::Until(until) => match wait::block(until, || ring.get(batch, most, Mode::Block, &mut memory, claim)) {
            Some(outcome) => outcome,
            None => return Err(GetError::TimedOut),
        },
    };
    Ok(outcome?)
}

async fn get_records_async(ring: &Ring, rows: Option<&Rows>, batch: &mut Batch, most: usize) -> Result<(), GetError> {
    let mut memory = Memory::default();
    Ok(Waiting::new(|| ring.get(batch, most, Mode::Poll, &mut memory, |count| claim(rows, count))).await?)
}

#[inline]
fn claim(rows: Option<&Rows>, count: u32) {
    if let Some(rows) = rows {
        rows.take(count);
    }
}

/// What the items of a queue are, for comparison when a handle arrives: a hash of the type's name.
///
/// The items are encoded, so how they lie in memory doesn't matter, and types of different programs may well be meant
/// to be the same. So the paths are left out of the name, as a type may have moved, or each program may have its own:
/// `Vec<app::Job>` is `Vec<Job>`.
fn schema_of<T>() -> u64 {
    /// FNV-1a.
    const SEED: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0000_0100_0000_01b3;
    let mut hash = SEED;
    let mut segment = hash;
    for byte in std::any::type_name::<T>().bytes() {
        if byte == b':' {
            // What came before was a part of the path.
            hash = segment;
            continue;
        }
        hash = (hash ^ u64::from(byte)).wrapping_mul(PRIME);
        if !(byte == b'_' || byte.is_ascii_alphanumeric()) {
            segment = hash;
        }
    }
    hash
}

thread_local! {
    /// The buffer of the last item of this thread, for the next one.
    static BUFFER: Cell<Batch> = const { Cell::new(Batch { bytes: Vec::new(), ends: Vec::new() }) };
}

/// Runs with the buffer of this thread, or a new one if it is in use, as when an item's own code uses a queue.
#[inline]
fn with_buffer<R>(run: impl FnOnce(&mut Batch) -> R) -> R {
    let mut batch = BUFFER.try_with(Cell::take).unwrap_or_default();
    batch.clear();
    let result = run(&mut batch);
    if batch.bytes.capacity() <= KEEP && batch.ends.capacity() <= KEEP {
        let _ = BUFFER.try_with(|buffer| buffer.set(batch));
    }
    result
}

impl<T> Queue<T> {
    /// A queue for at most `items` items; further puts wait for a get.
    ///
    /// # Errors
    ///
    /// As for [`QueueOptions::queue`]; 0 items are out of range.
    pub fn bounded(items: usize) -> io::Result<Self> {
        QueueOptions::new().items(items).queue()
    }

    /// A queue that is bounded by memory only: 1 GiB, unless [`QueueOptions::memory`] says otherwise.
    ///
    /// # Errors
    ///
    /// As for [`QueueOptions::queue`].
    pub fn unbounded() -> io::Result<Self> {
        QueueOptions::new().queue()
    }

    pub(crate) fn over(ring: Ring) -> Self {
        let rows = (ring.flags() & join::JOINABLE != 0).then(|| Rows::of(&ring)).flatten();
        Queue { ring, rows, item: PhantomData }
    }

    pub(crate) fn rows(&self) -> Option<&Arc<Rows>> {
        self.rows.as_ref()
    }

    /// How many items there are; others may put and get meanwhile. Python's `qsize`.
    #[must_use = "it has no effect but its result"]
    pub fn len(&self) -> usize {
        self.ring.len().0 as usize
    }

    /// Whether there are no items at this moment.
    #[must_use = "it has no effect but its result"]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether there is no room, not even for the smallest item, at this moment.
    #[must_use = "it has no effect but its result"]
    pub fn is_full(&self) -> bool {
        self.ring.is_full()
    }

    /// The most items, if the queue is bounded.
    #[must_use = "it has no effect but its result"]
    pub fn capacity(&self) -> Option<usize> {
        self.ring.bound().map(|bound| bound as usize)
    }

    /// Refuses all further puts, of any process, those that wait included. What is in the queue can still be got; after
    /// that, gets say `Closed`.
    ///
    /// Closing again does nothing. Dropping handles does not close a queue.
    pub fn close(&self) {
        self.ring.close();
    }

    /// Whether it has been closed.
    #[must_use = "it has no effect but its result"]
    pub fn is_closed(&self) -> bool {
        self.ring.is_closed()
    }

    /// Whether both are handles of the same queue.
    #[must_use = "it has no effect but its result"]
    pub fn is_same(&self, other: &Self) -> bool {
        self.ring.object().is(other.ring.object())
    }
}

impl<T: Serialize> Queue<T> {
    /// Puts an item at the end, and waits for room if there is none.
    ///
    /// # Errors
    ///
    /// [`Closed`](PutFailure::Closed); [`Codec`](PutFailure::Codec) or [`TooLarge`](PutFailure::TooLarge) for an item
    /// that no queue, or not this one, can hold, which leaves the queue as it was; [`Memory`](PutFailure::Memory) and
    /// [`Corrupt`](PutFailure::Corrupt). The item comes back with the error.
    pub fn put(&self, item: T) -> Result<(), PutError<T>> {
        self.put_in_form(item, Form::Until(None))
    }

    /// Puts an item if there is room.
    ///
    /// # Errors
    ///
    /// [`Full`](PutFailure::Full), [`Busy`](PutFailure::Busy), and as for [`put`](Queue::put).
    pub fn try_put(&self, item: T) -> Result<(), PutError<T>> {
        self.put_in_form(item, Form::Try)
    }

    /// Puts an item, and waits for room for at most so long.
    ///
    /// # Errors
    ///
    /// [`TimedOut`](PutFailure::TimedOut), and as for [`put`](Queue::put).
    pub fn put_timeout(&self, item: T, timeout: Duration) -> Result<(), PutError<T>> {
        self.put_in_form(item, Form::within(timeout))
    }

    /// Puts an item, and waits for room without blocking the thread.
    ///
    /// **Cancellation:** dropped before it is ready, the item has not been put, and is dropped too.
    ///
    /// # Errors
    ///
    /// As for [`put`](Queue::put).
    pub async fn put_async(&self, item: T) -> Result<(), PutError<T>> {
        let mut bytes = Vec::new();
        let outcome = match codec::encode(&item, &mut bytes) {
            Ok(()) => put_records_async(&self.ring, |index| (index == 0).then_some(&*bytes), &mut 0).await,
            Err(error) => Err(PutFailure::Codec(error)),
        };
        outcome.map_err(|reason| PutError { item, reason })
    }

    /// Puts items one after the other, and waits for room as often as needed. Cheaper than single puts; items of others
    /// may come in between.
    ///
    /// # Errors
    ///
    /// As for [`put`](Queue::put). The error has the items that have not been put, the one that failed first.
    pub fn put_many(&self, items: Vec<T>) -> Result<(), PutError<Vec<T>>> {
        self.put_many_in_form(items, Form::Until(None))
    }

    /// Puts as many of the items as there is room for.
    ///
    /// # Errors
    ///
    /// As for [`try_put`](Queue::try_put). The error has the items that have not been put, the one that failed first.
    pub fn try_put_many(&self, items: Vec<T>) -> Result<(), PutError<Vec<T>>> {
        self.put_many_in_form(items, Form::Try)
    }

    /// Puts items one after the other, and waits for room for at most so long in all.
    ///
    /// # Errors
    ///
    /// As for [`put_timeout`](Queue::put_timeout). The error has the items that have not been put, the one that failed
    /// first.
    pub fn put_many_timeout(&self, items: Vec<T>, timeout: Duration) -> Result<(), PutError<Vec<T>>> {
        self.put_many_in_form(items, Form::within(timeout))
    }

    /// Puts items one after the other, and waits for room without blocking the thread.
    ///
    /// **Cancellation:** dropped before it is ready, some of the items may have been put; the others are dropped.
    ///
    /// # Errors
    ///
    /// As for [`put`](Queue::put). The error has the items that have not been put, the one that failed first.
    pub async fn put_many_async(&self, mut items: Vec<T>) -> Result<(), PutError<Vec<T>>> {
        let mut put = 0;
        let mut batch = Batch::default();
        while put < items.len() {
            let mut done = 0;
            let outcome = match encode_some(&items[put..], &mut batch) {
                Ok(()) => {
                    let batch = &batch;
                    put_records_async(&self.ring, |index| (index < batch.len()).then(|| batch.get(index)), &mut done)
                        .await
                }
                Err(reason) => Err(reason),
            };
            put += done;
            if let Err(reason) = outcome {
                return Err(PutError { item: items.split_off(put), reason });
            }
        }
        Ok(())
    }

    fn put_in_form(&self, item: T, form: Form) -> Result<(), PutError<T>> {
        self.put_ref(&item, form).map_err(|reason| PutError { item, reason })
    }

    /// For those who keep the item.
    pub(crate) fn try_put_ref(&self, item: &T) -> Result<(), PutFailure> {
        self.put_ref(item, Form::Try)
    }

    #[inline]
    fn put_ref(&self, item: &T, form: Form) -> Result<(), PutFailure> {
        with_buffer(|buffer| {
            codec::encode(item, &mut buffer.bytes).map_err(PutFailure::Codec)?;
            put_records(&self.ring, |index| (index == 0).then_some(&*buffer.bytes), &mut 0, form)
        })
    }

    fn put_many_in_form(&self, mut items: Vec<T>, form: Form) -> Result<(), PutError<Vec<T>>> {
        let mut put = 0;
        let outcome = with_buffer(|batch| {
            while put < items.len() {
                encode_some(&items[put..], batch)?;
                let mut done = 0;
                let batch = &*batch;
                let outcome =
                    put_records(&self.ring, |index| (index < batch.len()).then(|| batch.get(index)), &mut done, form);
                put += done;
                outcome?;
            }
            Ok(())
        });
        outcome.map_err(|reason| PutError { item: items.split_off(put), reason })
    }
}

/// Encodes the first of the items, at least one and not too many; those before one that can't be encoded, if there are
/// any.
fn encode_some<T: Serialize>(items: &[T], batch: &mut Batch) -> Result<(), PutFailure> {
    batch.clear();
    for item in items {
        let before = batch.bytes.len();
        if before >= PORTION {
            break;
        }
        match codec::encode(item, &mut batch.bytes) {
            Ok(()) => batch.end(),
            Err(error) if batch.ends.is_empty() => return Err(PutFailure::Codec(error)),
            Err(_) => {
                batch.bytes.truncate(before);
                break;
            }
        }
    }
    Ok(())
}

impl<T: DeserializeOwned> Queue<T> {
    /// Gets the first item, and waits for one if there is none.
    ///
    /// # Errors
    ///
    /// [`Closed`](GetError::Closed) once a closed queue is empty; [`Codec`](GetError::Codec) for an item that can't be
    /// decoded, which is then gone; [`Memory`](GetError::Memory) and [`Corrupt`](GetError::Corrupt).
    pub fn get(&self) -> Result<T, GetError> {
        self.get_in_form(Form::Until(None))
    }

    /// Gets the first item if there is one.
    ///
    /// # Errors
    ///
    /// [`Empty`](GetError::Empty), [`Busy`](GetError::Busy), and as for [`get`](Queue::get).
    pub fn try_get(&self) -> Result<T, GetError> {
        self.get_in_form(Form::Try)
    }

    /// Gets the first item, and waits for one for at most so long.
    ///
    /// # Errors
    ///
    /// [`TimedOut`](GetError::TimedOut), and as for [`get`](Queue::get).
    pub fn get_timeout(&self, timeout: Duration) -> Result<T, GetError> {
        self.get_in_form(Form::within(timeout))
    }

    /// Gets the first item, and waits for one without blocking the thread.
    ///
    /// **Cancellation:** dropped before it is ready, it has taken nothing.
    ///
    /// # Errors
    ///
    /// As for [`get`](Queue::get).
    pub async fn get_async(&self) -> Result<T, GetError> {
        let mut batch = Batch::default();
        get_records_async(&self.ring, self.rows.as_deref(), &mut batch, 1).await?;
        self.decode(batch.get(0)).map_err(GetError::Codec)
    }

    /// Gets what there is, up to `most` items (and about a mebibyte), and waits until there is at least one. Cheaper
    /// than single gets. Each item that can't be decoded is an error in its place.
    ///
    /// # Errors
    ///
    /// As for [`get`](Queue::get), but for `Codec`.
    ///
    /// # Panics
    ///
    /// If `most` is 0.
    pub fn get_many(&self, most: usize) -> Result<Vec<Result<T, CodecError>>, GetError> {
        self.get_many_in_form(most, Form::Until(None))
    }

    /// Gets what there is, up to `most` items (and about a mebibyte).
    ///
    /// # Errors
    ///
    /// As for [`try_get`](Queue::try_get), but for `Codec`.
    ///
    /// # Panics
    ///
    /// If `most` is 0.
    pub fn try_get_many(&self, most: usize) -> Result<Vec<Result<T, CodecError>>, GetError> {
        self.get_many_in_form(most, Form::Try)
    }

    /// As [`get_many`](Queue::get_many), but waits for at most so long.
    ///
    /// # Errors
    ///
    /// As for [`get_timeout`](Queue::get_timeout), but for `Codec`.
    ///
    /// # Panics
    ///
    /// If `most` is 0.
    pub fn get_many_timeout(&self, most: usize, timeout: Duration) -> Result<Vec<Result<T, CodecError>>, GetError> {
        self.get_many_in_form(most, Form::within(timeout))
    }

    /// As [`get_many`](Queue::get_many), without blocking the thread.
    ///
    /// **Cancellation:** dropped before it is ready, it has taken nothing.
    ///
    /// # Errors
    ///
    /// As for [`get`](Queue::get), but for `Codec`.
    ///
    /// # Panics
    ///
    /// If `most` is 0.
    pub async fn get_many_async(&self, most: usize) -> Result<Vec<Result<T, CodecError>>, GetError> {
        assert!(most > 0, "no items were asked for");
        let mut batch = Batch::default();
        get_records_async(&self.ring, self.rows.as_deref(), &mut batch, most).await?;
        Ok(self.decode_all(&batch))
    }

    /// The items as they come, until the queue is closed and empty. Waits for each by blocking the thread.
    ///
    /// An item that can't be decoded is an error, after which the next one follows. Several iterators share the items
    /// among them.
    pub fn iter(&self) -> Items<'_, T> {
        Items { queue: self, over: false }
    }

    /// The items as a stream, until the queue is closed and empty. An item that can't be decoded is an error, after
    /// which the next one follows.
    ///
    /// **Cancellation:** the stream may be dropped at any time; it has taken nothing that it hasn't yielded.
    pub fn stream(&self) -> ItemStream<T>
    where
        T: 'static,
    {
        let queue = self.clone();
        let mut memory = Memory::default();
        let step = move || {
            let mut batch = Batch::default();
            match queue.ring.get(&mut batch, 1, Mode::Poll, &mut memory, |count| claim(queue.rows.as_deref(), count)) {
                Step::Wait(change) => Step::Wait(change),
                Step::Ready(Ok(())) => Step::Ready(queue.decode(batch.get(0)).map_err(GetError::Codec)),
                Step::Ready(Err(refusal)) => Step::Ready(Err(refusal.into())),
            }
        };
        ItemStream { next: Waiting::new(Box::new(step)), over: false }
    }

    fn get_in_form(&self, form: Form) -> Result<T, GetError> {
        with_buffer(|batch| {
            get_records(&self.ring, self.rows.as_deref(), batch, 1, form)?;
            self.decode(batch.get(0)).map_err(GetError::Codec)
        })
    }

    fn get_many_in_form(&self, most: usize, form: Form) -> Result<Vec<Result<T, CodecError>>, GetError> {
        assert!(most > 0, "no items were asked for");
        with_buffer(|batch| {
            get_records(&self.ring, self.rows.as_deref(), batch, most, form)?;
            Ok(self.decode_all(batch))
        })
    }

    #[inline]
    fn decode(&self, bytes: &[u8]) -> Result<T, CodecError> {
        /// An item that its getter never gets to see is finished, also when its decoder panics.
        struct Lost<'a>(Option<&'a Rows>);
        impl Drop for Lost<'_> {
            fn drop(&mut self) {
                if let Some(rows) = self.0 {
                    rows.done();
                }
            }
        }
        let lost = Lost(self.rows.as_deref());
        let item = codec::decode(bytes)?;
        std::mem::forget(lost);
        Ok(item)
    }

    fn decode_all(&self, batch: &Batch) -> Vec<Result<T, CodecError>> {
        (0..batch.len()).map(|index| self.decode(batch.get(index))).collect()
    }
}

impl<T> Clone for Queue<T> {
    fn clone(&self) -> Self {
        Queue { ring: self.ring.clone(), rows: self.rows.clone(), item: PhantomData }
    }
}

impl<T> fmt::Debug for Queue<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue")
            .field("len", &self.len())
            .field("capacity", &self.capacity())
            .field("closed", &self.is_closed())
            .finish_non_exhaustive()
    }
}

impl<T> Serialize for Queue<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.ring.object().serialize(serializer)
    }
}

impl<'de, T> Deserialize<'de> for Queue<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let object = Object::deserialize(deserializer, ITEMS, schema_of::<T>(), EXTRA)?;
        let queue = Queue::over(Ring::over(object).map_err(D::Error::custom)?);
        if queue.rows.is_none() && queue.ring.flags() & join::JOINABLE != 0 {
            return Err(D::Error::custom(
                "the memory that came with a handle is too small for a queue that can be joined",
            ));
        }
        Ok(queue)
    }
}

impl<'a, T: DeserializeOwned> IntoIterator for &'a Queue<T> {
    type Item = Result<T, GetError>;
    type IntoIter = Items<'a, T>;

    fn into_iter(self) -> Items<'a, T> {
        self.iter()
    }
}

/// The items of a [`Queue`], as [`Queue::iter`] yields them.
#[must_use = "iterators do nothing unless they are used"]
pub struct Items<'a, T> {
    queue: &'a Queue<T>,
    over: bool,
}

impl<T: DeserializeOwned> Iterator for Items<'_, T> {
    type Item = Result<T, GetError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.over {
            return None;
        }
        let outcome = self.queue.get();
        let (outcome, over) = next(outcome);
        self.over = over;
        outcome
    }
}

impl<T: DeserializeOwned> std::iter::FusedIterator for Items<'_, T> {}

impl<T> fmt::Debug for Items<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Items").field("queue", self.queue).field("over", &self.over).finish()
    }
}

/// What an iterator makes of a get, and whether that was the last one.
fn next<T>(outcome: Result<T, GetError>) -> (Option<Result<T, GetError>>, bool) {
    match outcome {
        Err(GetError::Closed) => (None, true),
        Err(error @ GetError::Corrupt(_)) => (Some(Err(error)), true),
        other => (Some(other), false),
    }
}

type NextItem<T> = Box<dyn FnMut() -> Step<Result<T, GetError>> + Send>;

/// The items of a [`Queue`], as [`Queue::stream`] yields them.
#[must_use = "streams do nothing unless they are polled"]
pub struct ItemStream<T> {
    next: Waiting<NextItem<T>>,
    over: bool,
}

impl<T> futures_core::Stream for ItemStream<T> {
    type Item = Result<T, GetError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.over {
            return Poll::Ready(None);
        }
        Pin::new(&mut self.next).poll(cx).map(|outcome| {
            let (outcome, over) = next(outcome);
            self.over = over;
            outcome
        })
    }
}

impl<T> futures_core::FusedStream for ItemStream<T> {
    fn is_terminated(&self) -> bool {
        self.over
    }
}

impl<T> fmt::Debug for ItemStream<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ItemStream").field("over", &self.over).finish_non_exhaustive()
    }
}

/// A [`Queue`] of messages that are bytes already: nothing is encoded, each message is copied once into the queue and
/// once out of it.
///
/// # Examples
///
/// ```
/// use polypool_ipc::ByteQueue;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let queue = ByteQueue::unbounded()?;
/// queue.put(b"thank you")?;
/// assert_eq!(queue.get()?, b"thank you");
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct ByteQueue {
    ring: Ring,
}

impl ByteQueue {
    /// As [`Queue::bounded`].
    ///
    /// # Errors
    ///
    /// As for [`QueueOptions::queue`]; 0 items are out of range.
    pub fn bounded(items: usize) -> io::Result<Self> {
        QueueOptions::new().items(items).bytes()
    }

    /// As [`Queue::unbounded`].
    ///
    /// # Errors
    ///
    /// As for [`QueueOptions::queue`].
    pub fn unbounded() -> io::Result<Self> {
        QueueOptions::new().bytes()
    }

    /// How many messages there are; others may put and get meanwhile.
    #[must_use = "it has no effect but its result"]
    pub fn len(&self) -> usize {
        self.ring.len().0 as usize
    }

    /// Whether there are no messages at this moment.
    #[must_use = "it has no effect but its result"]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether there is no room, not even for the smallest message, at this moment.
    #[must_use = "it has no effect but its result"]
    pub fn is_full(&self) -> bool {
        self.ring.is_full()
    }

    /// The most messages, if the queue is bounded.
    #[must_use = "it has no effect but its result"]
    pub fn capacity(&self) -> Option<usize> {
        self.ring.bound().map(|bound| bound as usize)
    }

    /// As [`Queue::close`].
    pub fn close(&self) {
        self.ring.close();
    }

    /// Whether it has been closed.
    #[must_use = "it has no effect but its result"]
    pub fn is_closed(&self) -> bool {
        self.ring.is_closed()
    }

    /// Whether both are handles of the same queue.
    #[must_use = "it has no effect but its result"]
    pub fn is_same(&self, other: &Self) -> bool {
        self.ring.object().is(other.ring.object())
    }

    /// Puts a message at the end, and waits for room if there is none.
    ///
    /// # Errors
    ///
    /// As for [`Queue::put`], but for `Codec`.
    pub fn put(&self, message: &[u8]) -> Result<(), PutFailure> {
        self.put_in_form(message, Form::Until(None))
    }

    /// Puts a message if there is room.
    ///
    /// # Errors
    ///
    /// [`Full`](PutFailure::Full), [`Busy`](PutFailure::Busy), and as for [`put`](ByteQueue::put).
    pub fn try_put(&self, message: &[u8]) -> Result<(), PutFailure> {
        self.put_in_form(message, Form::Try)
    }

    /// Puts a message, and waits for room for at most so long.
    ///
    /// # Errors
    ///
    /// [`TimedOut`](PutFailure::TimedOut), and as for [`put`](ByteQueue::put).
    pub fn put_timeout(&self, message: &[u8], timeout: Duration) -> Result<(), PutFailure> {
        self.put_in_form(message, Form::within(timeout))
    }

    /// Puts a message, and waits for room without blocking the thread.
    ///
    /// **Cancellation:** dropped before it is ready, the message has not been put.
    ///
    /// # Errors
    ///
    /// As for [`put`](ByteQueue::put).
    pub async fn put_async(&self, message: &[u8]) -> Result<(), PutFailure> {
        put_records_async(&self.ring, |index| (index == 0).then_some(message), &mut 0).await
    }

    /// Gets the first message, and waits for one if there is none.
    ///
    /// # Errors
    ///
    /// As for [`Queue::get`], but for `Codec`.
    pub fn get(&self) -> Result<Vec<u8>, GetError> {
        self.get_in_form(Form::Until(None))
    }

    /// Gets the first message if there is one.
    ///
    /// # Errors
    ///
    /// [`Empty`](GetError::Empty), [`Busy`](GetError::Busy), and as for [`get`](ByteQueue::get).
    pub fn try_get(&self) -> Result<Vec<u8>, GetError> {
        self.get_in_form(Form::Try)
    }

    /// Gets the first message, and waits for one for at most so long.
    ///
    /// # Errors
    ///
    /// [`TimedOut`](GetError::TimedOut), and as for [`get`](ByteQueue::get).
    pub fn get_timeout(&self, timeout: Duration) -> Result<Vec<u8>, GetError> {
        self.get_in_form(Form::within(timeout))
    }

    /// Gets the first message, and waits for one without blocking the thread.
    ///
    /// **Cancellation:** dropped before it is ready, it has taken nothing.
    ///
    /// # Errors
    ///
    /// As for [`get`](ByteQueue::get).
    pub async fn get_async(&self) -> Result<Vec<u8>, GetError> {
        let mut batch = Batch::default();
        get_records_async(&self.ring, None, &mut batch, 1).await?;
        Ok(batch.bytes)
    }

    /// Gets the first message into a buffer, in place of what is in it, and waits for one if there is none. Saves an
    /// allocation for each message.
    ///
    /// # Errors
    ///
    /// As for [`get`](ByteQueue::get). The buffer is then empty.
    pub fn get_into(&self, buffer: &mut Vec<u8>) -> Result<(), GetError> {
        self.get_into_in_form(buffer, Form::Until(None))
    }

    /// As [`get_into`](ByteQueue::get_into), if there is a message.
    ///
    /// # Errors
    ///
    /// As for [`try_get`](ByteQueue::try_get). The buffer is then empty.
    pub fn try_get_into(&self, buffer: &mut Vec<u8>) -> Result<(), GetError> {
        self.get_into_in_form(buffer, Form::Try)
    }

    /// As [`get_into`](ByteQueue::get_into), but waits for a message for at most so long.
    ///
    /// # Errors
    ///
    /// As for [`get_timeout`](ByteQueue::get_timeout). The buffer is then empty.
    pub fn get_into_timeout(&self, buffer: &mut Vec<u8>, timeout: Duration) -> Result<(), GetError> {
        self.get_into_in_form(buffer, Form::within(timeout))
    }

    /// As [`get_into`](ByteQueue::get_into), without blocking the thread.
    ///
    /// **Cancellation:** dropped before it is ready, it has taken nothing. The buffer is then empty.
    ///
    /// # Errors
    ///
    /// As for [`get`](ByteQueue::get). The buffer is then empty.
    pub async fn get_into_async(&self, buffer: &mut Vec<u8>) -> Result<(), GetError> {
        buffer.clear();
        let mut batch = Batch { bytes: std::mem::take(buffer), ends: Vec::new() };
        let outcome = get_records_async(&self.ring, None, &mut batch, 1).await;
        *buffer = batch.bytes;
        outcome
    }

    fn get_into_in_form(&self, buffer: &mut Vec<u8>, form: Form) -> Result<(), GetError> {
        buffer.clear();
        with_buffer(|batch| {
            std::mem::swap(buffer, &mut batch.bytes);
            let outcome = get_records(&self.ring, None, batch, 1, form);
            std::mem::swap(buffer, &mut batch.bytes);
            outcome
        })
    }

    fn put_in_form(&self, message: &[u8], form: Form) -> Result<(), PutFailure> {
        put_records(&self.ring, |index| (index == 0).then_some(message), &mut 0, form)
    }

    fn get_in_form(&self, form: Form) -> Result<Vec<u8>, GetError> {
        let mut bytes = Vec::new();
        self.get_into_in_form(&mut bytes, form)?;
        Ok(bytes)
    }
}

impl fmt::Debug for ByteQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ByteQueue")
            .field("len", &self.len())
            .field("capacity", &self.capacity())
            .field("closed", &self.is_closed())
            .finish_non_exhaustive()
    }
}

impl Serialize for ByteQueue {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.ring.object().serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for ByteQueue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let object = Object::deserialize(deserializer, BYTES, 0, EXTRA)?;
        Ok(ByteQueue { ring: Ring::over(object).map_err(D::Error::custom)? })
    }
}
