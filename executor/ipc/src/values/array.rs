//! Many values of one type in shared memory, with a lock (Python's `multiprocessing.Array`).
//!
//! The elements stand in place, one after the other, so that a slice of them is an ordinary slice. Single elements are
//! read and written by copies, each under the lock, and no element is ever left half-written: one that the machine
//! can't store at once is first written beside the array (*redo* in the head), and the next holder of the lock finishes
//! what a dead one has begun.
//!
//! # Soundness of the slices
//!
//! [`ArrayGuard`] lends `&[T]` and `&mut [T]` of memory that other processes have mapped too. What makes this sound:
//!
//! 1. Only [`Plain`] types: every pattern of bits is a `T`, without pointers and without invariants. Whatever another
//!    process has written, reading it is defined.
//! 2. Slices exist only under the lock, and every safe way to the memory of an `Array`, in all processes that use this
//!    crate, takes it: single elements and copies as well. So whoever keeps to the protocol never writes to what is
//!    lent.
//! 3. The lock passes from a process that died only when none of its threads will run again (`Board::has_left`, with
//!    its limits); none still writes.
//! 4. Within one process nothing else touches the memory of a slice even if another process lies about the lock: beside
//!    the lock there is a mark in memory of our own, for guards, single elements and copies alike, and who finds it set
//!    waits until it isn't. And the memory is used for nothing but this array in this process, whatever other handles
//!    of it arrive.
//! 5. Memory and bounds: the segment is sealed against shrinking and stays mapped as long as the guard lives; the
//!    number of elements was compared with the segment's size when the handle was opened, and is then kept in memory of
//!    our own.
//!
//! The caveat that remains: a process that *ignores* the lock can change the elements under a slice that is lent. The
//! memory model of Rust doesn't know other processes; the compiler may assume that what it lent stays as it is, and for
//! example load an element twice and get two values. For plain numbers this means wrong results. Those who don't trust
//! their peers to keep to the lock (and use an element as an index, unchecked a second time) take
//! [`load_from`](Array::load_from) and [`store_to`](Array::store_to), which copy and never form a reference.

use std::fmt;
use std::future::Future;
use std::io;
use std::marker::PhantomData;
use std::mem::{align_of, offset_of, size_of};
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, compiler_fence};
use std::time::{Duration, Instant};

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zerocopy::IntoBytes;

use super::{Plain, load, store};
use crate::memory::pid_lock;
use crate::memory::segment::Layout;
use crate::object::{BODY, Object, shape_of};
use crate::sync::error::{LockError, LockResult};
use crate::sync::raw::{LockWord, RawLock, Taken};
use crate::wait::{self, Form, Waiting};

const KIND: [u8; 4] = *b"arry";

/// How strictly elements may be aligned: as strictly as the start of a mapping is.
const MOST_ALIGNED: usize = 4096;

#[repr(C, align(64))]
struct Head {
    lock: LockWord,
    /// The process that is writing to many elements at once; 0: none. If it's set when the lock is free, that process
    /// has not finished.
    writer: AtomicU32,
    len: AtomicU64,
    /// One more than the index of the element whose new value stands behind the head; 0: none.
    redo: AtomicU64,
}

// SAFETY: repr(C) and atomics only.
unsafe impl Layout for Head {}

/// Why an element of an [`Array`] could not be read or written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ArrayError {
    /// There are no such elements.
    #[error("the array has {len} elements, and {count} from {index} on are not all among them")]
    #[non_exhaustive]
    OutOfRange {
        /// The first element that was asked for.
        index: usize,
        /// How many were asked for.
        count: usize,
        /// How many there are.
        len: usize,
    },
    /// A process died, or panicked, while it was writing to the elements as a slice, and nobody has
    /// [repaired](ArrayGuard::repair) them since.
    #[error("process {pid} ended while it was writing to the array")]
    #[non_exhaustive]
    Poisoned {
        /// The number of that process.
        pid: u32,
    },
    /// Somebody else holds the lock. Only the `try_` forms say so.
    #[error("the lock of the array is taken")]
    WouldBlock,
    /// Somebody else held the lock all the time. Only the `_timeout` forms say so.
    #[error("the lock of the array was not free in time")]
    TimedOut,
}

/// An array in shared memory, with a lock: single elements by copy, or all of them as a slice in place.
///
/// A handle: cheap to clone, and sending it to another process sends the handle and not the elements. Gone with its
/// last handle, however its owners end. The length is given at run time, once; it may be zero. Python's equivalent is
/// `multiprocessing.Array`.
///
/// # What if a process ignores the lock
///
/// All of this crate take it. Another program with the same memory could write to the elements while a slice of them is
/// lent. As every pattern of bits is a `T`, that gives wrong numbers; but the compiler, which takes a lent slice for
/// constant, may also read an element twice and get two values. Those who don't trust their peers copy instead:
/// [`get`](Array::get), [`load_from`](Array::load_from), [`store_to`](Array::store_to).
///
/// # When a process dies
///
/// An element is never half-written: [`set`](Array::set), [`with_element`](Array::with_element) happen or don't. A
/// slice that is being changed in place can't promise this. So if a process is killed, or panics, with a `&mut [T]` in
/// its hands, all others get [`LockError::Poisoned`] or [`ArrayError::Poisoned`], until one of them has looked at the
/// elements and called [`repair`](ArrayGuard::repair). A process that dies while it only reads does no harm.
///
/// # Examples
///
/// ```
/// use polypool_ipc::Array;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let squares = Array::<u64>::new(4)?;
/// for i in 0..4 {
///     squares.set(i, (i as u64).pow(2))?;
/// }
/// squares.with_element(3, |n| *n += 1)?;
/// assert_eq!(squares.to_vec()?, [0, 1, 4, 10]);
///
/// let mut slice = squares.lock().unwrap();
/// slice.reverse();
/// assert_eq!(slice[0], 10);
/// # Ok(())
/// # }
/// ```
///
/// For two-dimensional data, use an array as the element (`Array<[f64; 3]>`), or the index arithmetic of `chunks`.
pub struct Array<T> {
    object: Object,
    len: usize,
    of: PhantomData<fn() -> T>,
}

impl<T> Clone for Array<T> {
    fn clone(&self) -> Self {
        Array { object: self.object.clone(), len: self.len, of: PhantomData }
    }
}

impl<T: Plain> Array<T> {
    /// Whether one element takes one store.
    const AT_ONCE: bool = matches!(size_of::<T>(), 1 | 2 | 4 | 8);

    const REDO: usize = size_of::<Head>();

    /// Where the elements begin in the body, which begins at `BODY` of the segment.
    const ELEMENTS: usize = {
        assert!(size_of::<T>() > 0, "an array of things without a size");
        let align = if align_of::<T>() > 64 { align_of::<T>() } else { 64 };
        let redo = if Self::AT_ONCE { 0 } else { size_of::<T>() };
        (BODY + Self::REDO + redo).next_multiple_of(align) - BODY
    };

    /// A new array of `len` elements that are all zero.
    ///
    /// # Errors
    ///
    /// `InvalidInput` if that many can't be addressed, or `T` is aligned to more than 4096 bytes; or what the system
    /// says when there is no memory, no descriptor, or no thread.
    pub fn new(len: usize) -> io::Result<Self> {
        let bytes = len.checked_mul(size_of::<T>()).and_then(|bytes| bytes.checked_add(Self::ELEMENTS));
        let bytes = bytes.filter(|_| align_of::<T>() <= MOST_ALIGNED).ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::InvalidInput,
                format!(
                    "an array of {len} elements of {} bytes, aligned to {}, can't be shared",
                    size_of::<T>(),
                    align_of::<T>()
                ),
            )
        })?;
        let object = Object::create(KIND, shape_of::<T>(), bytes)?;
        let array = Array { object, len, of: PhantomData };
        array.head().len.store(len as u64, Ordering::Release);
        Ok(array)
    }

    /// A new array with these elements.
    ///
    /// # Errors
    ///
    /// As for [`new`](Array::new).
    pub fn from_slice(elements: &[T]) -> io::Result<Self> {
        let array = Array::new(elements.len())?;
        array.object.store(Self::ELEMENTS, elements.as_bytes());
        Ok(array)
    }

    /// How many elements there are. Never changes.
    #[must_use = "it has no effect but its result"]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no elements at all.
    #[must_use = "it has no effect but its result"]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether both are handles of the same array.
    #[must_use = "it has no effect but its result"]
    pub fn is_same(&self, other: &Array<T>) -> bool {
        self.object.is(&other.object)
    }

    /// A copy of one element. Blocks while another one holds the lock.
    ///
    /// # Errors
    ///
    /// [`ArrayError::OutOfRange`] if there's no such element; [`ArrayError::Poisoned`] after a death.
    #[inline]
    pub fn get(&self, index: usize) -> Result<T, ArrayError> {
        let offset = self.offset(index)?;
        let _held = self.hold()?;
        Ok(load(&self.object, offset))
    }

    /// As [`get`](Array::get), if the lock is free.
    ///
    /// # Errors
    ///
    /// [`ArrayError::WouldBlock`] if it isn't; otherwise as for [`get`](Array::get).
    pub fn try_get(&self, index: usize) -> Result<T, ArrayError> {
        self.get_in_form(index, Form::Try)
    }

    /// As [`get`](Array::get), but waits for the lock no longer than `timeout`.
    ///
    /// # Errors
    ///
    /// [`ArrayError::TimedOut`] if it wasn't free by then; otherwise as for [`get`](Array::get).
    pub fn get_timeout(&self, index: usize, timeout: Duration) -> Result<T, ArrayError> {
        self.get_in_form(index, Form::within(timeout))
    }

    /// As [`get`](Array::get), without blocking the thread while it waits for the lock.
    ///
    /// **Cancellation:** may be dropped at any time.
    ///
    /// # Errors
    ///
    /// As for [`get`](Array::get).
    pub async fn get_async(&self, index: usize) -> Result<T, ArrayError> {
        let offset = self.offset(index)?;
        let _held = self.hold_async().await?;
        Ok(load(&self.object, offset))
    }

    /// Sets one element. Blocks while another one holds the lock.
    ///
    /// # Errors
    ///
    /// As for [`get`](Array::get).
    #[inline]
    pub fn set(&self, index: usize, value: T) -> Result<(), ArrayError> {
        let offset = self.offset(index)?;
        let _held = self.hold()?;
        self.put(index, offset, &value);
        Ok(())
    }

    /// As [`set`](Array::set), if the lock is free.
    ///
    /// # Errors
    ///
    /// As for [`try_get`](Array::try_get).
    pub fn try_set(&self, index: usize, value: T) -> Result<(), ArrayError> {
        self.set_in_form(index, value, Form::Try)
    }

    /// As [`set`](Array::set), but waits for the lock no longer than `timeout`.
    ///
    /// # Errors
    ///
    /// As for [`get_timeout`](Array::get_timeout).
    pub fn set_timeout(&self, index: usize, value: T, timeout: Duration) -> Result<(), ArrayError> {
        self.set_in_form(index, value, Form::within(timeout))
    }

    /// As [`set`](Array::set), without blocking the thread while it waits for the lock.
    ///
    /// **Cancellation:** dropped before it is done, it has changed nothing.
    ///
    /// # Errors
    ///
    /// As for [`get`](Array::get).
    pub async fn set_async(&self, index: usize, value: T) -> Result<(), ArrayError> {
        let offset = self.offset(index)?;
        let _held = self.hold_async().await?;
        self.put(index, offset, &value);
        Ok(())
    }

    /// Changes one element as one step, under the lock; blocks until it is ours. Killed in the middle, nothing has
    /// happened.
    ///
    /// # Errors
    ///
    /// As for [`get`](Array::get).
    ///
    /// # Panics
    ///
    /// If `change` does; the element is then as it was.
    #[inline]
    pub fn with_element<R>(&self, index: usize, change: impl FnOnce(&mut T) -> R) -> Result<R, ArrayError> {
        let offset = self.offset(index)?;
        let held = self.hold()?;
        Ok(self.change(held, index, offset, change))
    }

    /// As [`with_element`](Array::with_element), if the lock is free.
    ///
    /// # Errors
    ///
    /// As for [`try_get`](Array::try_get).
    ///
    /// # Panics
    ///
    /// If `change` does; the element is then as it was.
    pub fn try_with_element<R>(&self, index: usize, change: impl FnOnce(&mut T) -> R) -> Result<R, ArrayError> {
        let offset = self.offset(index)?;
        let held = self.hold_in_form(Form::Try)?;
        Ok(self.change(held, index, offset, change))
    }

    /// As [`with_element`](Array::with_element), but waits for the lock no longer than `timeout`.
    ///
    /// # Errors
    ///
    /// As for [`get_timeout`](Array::get_timeout).
    ///
    /// # Panics
    ///
    /// If `change` does; the element is then as it was.
    pub fn with_element_timeout<R>(
        &self,
        index: usize,
        timeout: Duration,
        change: impl FnOnce(&mut T) -> R,
    ) -> Result<R, ArrayError> {
        let offset = self.offset(index)?;
        let held = self.hold_in_form(Form::within(timeout))?;
        Ok(self.change(held, index, offset, change))
    }

    /// As [`with_element`](Array::with_element), without blocking the thread while it waits for the lock.
    ///
    /// **Cancellation:** dropped before it is done, it has changed nothing.
    ///
    /// # Errors
    ///
    /// As for [`get`](Array::get).
    ///
    /// # Panics
    ///
    /// If `change` does; the element is then as it was.
    pub async fn with_element_async<R>(&self, index: usize, change: impl FnOnce(&mut T) -> R) -> Result<R, ArrayError> {
        let offset = self.offset(index)?;
        let held = self.hold_async().await?;
        Ok(self.change(held, index, offset, change))
    }

    /// A copy of all elements, as they are at one moment. Blocks while another one holds the lock.
    ///
    /// # Errors
    ///
    /// [`ArrayError::Poisoned`] after a death.
    pub fn to_vec(&self) -> Result<Vec<T>, ArrayError> {
        self.copy_all(self.hold()?)
    }

    /// As [`to_vec`](Array::to_vec), if the lock is free.
    ///
    /// # Errors
    ///
    /// [`ArrayError::WouldBlock`] if it isn't; [`ArrayError::Poisoned`] after a death.
    pub fn try_to_vec(&self) -> Result<Vec<T>, ArrayError> {
        self.copy_all(self.hold_in_form(Form::Try)?)
    }

    /// As [`to_vec`](Array::to_vec), but waits for the lock no longer than `timeout`.
    ///
    /// # Errors
    ///
    /// [`ArrayError::TimedOut`] if it wasn't free by then; [`ArrayError::Poisoned`] after a death.
    pub fn to_vec_timeout(&self, timeout: Duration) -> Result<Vec<T>, ArrayError> {
        self.copy_all(self.hold_in_form(Form::within(timeout))?)
    }

    /// As [`to_vec`](Array::to_vec), without blocking the thread while it waits for the lock.
    ///
    /// **Cancellation:** may be dropped at any time.
    ///
    /// # Errors
    ///
    /// [`ArrayError::Poisoned`] after a death.
    pub async fn to_vec_async(&self) -> Result<Vec<T>, ArrayError> {
        self.copy_all(self.hold_async().await?)
    }

    /// The elements as they are at one moment, one by one: [`to_vec`](Array::to_vec), whose other forms are those of
    /// this one as well.
    ///
    /// # Errors
    ///
    /// [`ArrayError::Poisoned`] after a death.
    pub fn iter(&self) -> Result<std::vec::IntoIter<T>, ArrayError> {
        self.to_vec().map(Vec::into_iter)
    }

    /// Copies the elements from `index` on, as many as `to` has, under the lock; blocks until it is ours.
    ///
    /// # Errors
    ///
    /// As for [`get`](Array::get).
    pub fn load_from(&self, index: usize, to: &mut [T]) -> Result<(), ArrayError> {
        let offset = self.range(index, to.len())?;
        let _held = self.hold()?;
        self.object.load(offset, to.as_mut_bytes());
        Ok(())
    }

    /// As [`load_from`](Array::load_from), if the lock is free.
    ///
    /// # Errors
    ///
    /// As for [`try_get`](Array::try_get).
    pub fn try_load_from(&self, index: usize, to: &mut [T]) -> Result<(), ArrayError> {
        self.load_in_form(index, to, Form::Try)
    }

    /// As [`load_from`](Array::load_from), but waits for the lock no longer than `timeout`.
    ///
    /// # Errors
    ///
    /// As for [`get_timeout`](Array::get_timeout).
    pub fn load_from_timeout(&self, index: usize, to: &mut [T], timeout: Duration) -> Result<(), ArrayError> {
        self.load_in_form(index, to, Form::within(timeout))
    }

    /// As [`load_from`](Array::load_from), without blocking the thread while it waits for the lock.
    ///
    /// **Cancellation:** dropped before it is done, `to` is as it was.
    ///
    /// # Errors
    ///
    /// As for [`get`](Array::get).
    pub async fn load_from_async(&self, index: usize, to: &mut [T]) -> Result<(), ArrayError> {
        let offset = self.range(index, to.len())?;
        let _held = self.hold_async().await?;
        self.object.load(offset, to.as_mut_bytes());
        Ok(())
    }

    /// Copies into the elements from `index` on, under the lock; blocks until it is ours. A process that is killed in
    /// the middle poisons the array.
    ///
    /// # Errors
    ///
    /// As for [`get`](Array::get).
    pub fn store_to(&self, index: usize, from: &[T]) -> Result<(), ArrayError> {
        let offset = self.range(index, from.len())?;
        let held = self.hold()?;
        self.fill(held, offset, from);
        Ok(())
    }

    /// As [`store_to`](Array::store_to), if the lock is free.
    ///
    /// # Errors
    ///
    /// As for [`try_get`](Array::try_get).
    pub fn try_store_to(&self, index: usize, from: &[T]) -> Result<(), ArrayError> {
        self.store_in_form(index, from, Form::Try)
    }

    /// As [`store_to`](Array::store_to), but waits for the lock no longer than `timeout`.
    ///
    /// # Errors
    ///
    /// As for [`get_timeout`](Array::get_timeout).
    pub fn store_to_timeout(&self, index: usize, from: &[T], timeout: Duration) -> Result<(), ArrayError> {
        self.store_in_form(index, from, Form::within(timeout))
    }

    /// As [`store_to`](Array::store_to), without blocking the thread while it waits for the lock.
    ///
    /// **Cancellation:** dropped before it is done, it has changed nothing.
    ///
    /// # Errors
    ///
    /// As for [`get`](Array::get).
    pub async fn store_to_async(&self, index: usize, from: &[T]) -> Result<(), ArrayError> {
        let offset = self.range(index, from.len())?;
        let held = self.hold_async().await?;
        self.fill(held, offset, from);
        Ok(())
    }

    /// Locks the array and gives its elements as a slice; blocks until the lock is ours.
    ///
    /// The lock can't be taken twice by the same thread: the second time waits for ever, and so does
    /// [`get`](Array::get) meanwhile. Use the guard.
    ///
    /// # Errors
    ///
    /// [`LockError::Poisoned`], with the guard, if a process ended while it was writing, and nobody has
    /// [repaired](ArrayGuard::repair) the elements since.
    pub fn lock(&self) -> LockResult<ArrayGuard<'_, T>> {
        self.lock_by(None)
    }

    /// The guard, if the lock is free.
    ///
    /// # Errors
    ///
    /// [`LockError::WouldBlock`] if it isn't; `Poisoned` as for [`lock`](Array::lock).
    pub fn try_lock(&self) -> LockResult<ArrayGuard<'_, T>> {
        match self.raw().try_lock().map(|taken| self.slice(taken)) {
            Some(Some(result)) => result,
            _ => Err(LockError::WouldBlock),
        }
    }

    /// The guard, if the lock is free within that time.
    ///
    /// # Errors
    ///
    /// [`LockError::TimedOut`] if it isn't; `Poisoned` as for [`lock`](Array::lock).
    pub fn lock_timeout(&self, timeout: Duration) -> LockResult<ArrayGuard<'_, T>> {
        self.lock_by(wait::after(timeout))
    }

    /// The guard, without blocking the thread.
    ///
    /// **Cancellation:** dropped before it is done, it doesn't hold the lock.
    ///
    /// # Errors
    ///
    /// As for [`lock`](Array::lock).
    pub async fn lock_async(&self) -> LockResult<ArrayGuard<'_, T>> {
        loop {
            let taken = self.wait().await;
            if let Some(result) = self.slice(taken) {
                return result;
            }
            // Another process has lied about the lock. Whoever has it in this process needs the thread perhaps.
            wait::yield_now().await;
        }
    }

    /// Does something with all elements in place, under the lock; blocks until it is ours.
    ///
    /// # Errors
    ///
    /// [`ArrayError::Poisoned`] after a death; then nothing has been done.
    ///
    /// # Panics
    ///
    /// If `change` does; the array is then poisoned, since it may be half-changed.
    pub fn with<R>(&self, change: impl FnOnce(&mut [T]) -> R) -> Result<R, ArrayError> {
        Array::changed(self.lock(), change)
    }

    /// As [`with`](Array::with), if the lock is free.
    ///
    /// # Errors
    ///
    /// [`ArrayError::WouldBlock`] if it isn't; [`ArrayError::Poisoned`] after a death; then nothing has been done.
    ///
    /// # Panics
    ///
    /// If `change` does; the array is then poisoned, since it may be half-changed.
    pub fn try_with<R>(&self, change: impl FnOnce(&mut [T]) -> R) -> Result<R, ArrayError> {
        Array::changed(self.try_lock(), change)
    }

    /// As [`with`](Array::with), but waits for the lock no longer than `timeout`.
    ///
    /// # Errors
    ///
    /// [`ArrayError::TimedOut`] if it wasn't free by then; [`ArrayError::Poisoned`] after a death; then nothing has
    /// been done.
    ///
    /// # Panics
    ///
    /// If `change` does; the array is then poisoned, since it may be half-changed.
    pub fn with_timeout<R>(&self, timeout: Duration, change: impl FnOnce(&mut [T]) -> R) -> Result<R, ArrayError> {
        Array::changed(self.lock_timeout(timeout), change)
    }

    /// As [`with`](Array::with), without blocking the thread while it waits for the lock.
    ///
    /// **Cancellation:** dropped before it is done, it has changed nothing.
    ///
    /// # Errors
    ///
    /// [`ArrayError::Poisoned`] after a death; then nothing has been done.
    ///
    /// # Panics
    ///
    /// If `change` does; the array is then poisoned, since it may be half-changed.
    pub async fn with_async<R>(&self, change: impl FnOnce(&mut [T]) -> R) -> Result<R, ArrayError> {
        Array::changed(self.lock_async().await, change)
    }

    /// Whether a process ended while it was writing, and nobody has [repaired](ArrayGuard::repair) the elements since.
    /// Waits for nobody: what a process is writing at this moment is as well as it is.
    #[must_use = "it has no effect but its result"]
    pub fn is_poisoned(&self) -> bool {
        let writer = || self.head().writer.load(Ordering::Relaxed);
        if writer() == 0 {
            return false;
        }
        match self.hold_in_form(Form::Try) {
            // Somebody has the lock: is it the one who writes?
            Err(ArrayError::WouldBlock) => {
                let board = self.object.board();
                let holder = self.raw().holder().and_then(|seat| board.pid_of(seat));
                let writer = writer();
                writer != 0 && holder != Some(writer)
            }
            outcome => outcome.is_err(),
        }
    }

    #[inline]
    fn head(&self) -> &Head {
        self.object.at(0)
    }

    #[inline]
    fn raw(&self) -> RawLock<'_> {
        RawLock::new(&self.object, offset_of!(Head, lock))
    }

    #[inline]
    fn offset(&self, index: usize) -> Result<usize, ArrayError> {
        self.range(index, 1)
    }

    /// Where these elements begin in the body.
    #[inline]
    fn range(&self, index: usize, count: usize) -> Result<usize, ArrayError> {
        match index.checked_add(count) {
            Some(end) if end <= self.len => Ok(Self::ELEMENTS + index * size_of::<T>()),
            _ => Err(ArrayError::OutOfRange { index, count, len: self.len }),
        }
    }

    fn wait(&self) -> impl Future<Output = Taken> + Send + use<'_, T> {
        let (raw, mut slept) = (self.raw(), false);
        Waiting::new(move || raw.step(&mut slept))
    }

    fn get_in_form(&self, index: usize, form: Form) -> Result<T, ArrayError> {
        let offset = self.offset(index)?;
        let _held = self.hold_in_form(form)?;
        Ok(load(&self.object, offset))
    }

    fn set_in_form(&self, index: usize, value: T, form: Form) -> Result<(), ArrayError> {
        let offset = self.offset(index)?;
        let _held = self.hold_in_form(form)?;
        self.put(index, offset, &value);
        Ok(())
    }

    fn load_in_form(&self, index: usize, to: &mut [T], form: Form) -> Result<(), ArrayError> {
        let offset = self.range(index, to.len())?;
        let _held = self.hold_in_form(form)?;
        self.object.load(offset, to.as_mut_bytes());
        Ok(())
    }

    fn store_in_form(&self, index: usize, from: &[T], form: Form) -> Result<(), ArrayError> {
        let offset = self.range(index, from.len())?;
        let held = self.hold_in_form(form)?;
        self.fill(held, offset, from);
        Ok(())
    }

    fn copy_all(&self, held: Held<'_>) -> Result<Vec<T>, ArrayError> {
        let mut elements = vec![T::new_zeroed(); self.len];
        self.object.load(Self::ELEMENTS, elements.as_mut_bytes());
        drop(held);
        Ok(elements)
    }

    fn fill(&self, held: Held<'_>, offset: usize, from: &[T]) {
        self.head().writer.store(pid_lock::pid(), Ordering::Relaxed);
        compiler_fence(Ordering::SeqCst);
        self.object.store(offset, from.as_bytes());
        self.head().writer.store(0, Ordering::Release);
        drop(held);
    }

    fn changed<R>(locked: LockResult<ArrayGuard<'_, T>>, change: impl FnOnce(&mut [T]) -> R) -> Result<R, ArrayError> {
        match locked {
            Ok(mut guard) => Ok(change(&mut guard)),
            Err(LockError::WouldBlock) => Err(ArrayError::WouldBlock),
            Err(LockError::TimedOut) => Err(ArrayError::TimedOut),
            Err(LockError::Poisoned { pid, .. }) => Err(ArrayError::Poisoned { pid: pid.unwrap_or_default() }),
        }
    }

    /// Takes the lock for single elements or copies, in the way that the form says.
    fn hold_in_form(&self, form: Form) -> Result<Held<'_>, ArrayError> {
        let raw = self.raw();
        loop {
            let taken = match form {
                Form::Try => raw.try_lock().ok_or(ArrayError::WouldBlock)?,
                Form::Until(until) => raw.try_lock().or_else(|| raw.lock_until(until)).ok_or(ArrayError::TimedOut)?,
            };
            if let Some(held) = self.held(raw, taken) {
                return held;
            }
            match form {
                Form::Try => return Err(ArrayError::WouldBlock),
                Form::Until(Some(until)) if until <= Instant::now() => return Err(ArrayError::TimedOut),
                Form::Until(_) => std::thread::sleep(Duration::from_millis(1)),
            }
        }
    }

    async fn hold_async(&self) -> Result<Held<'_>, ArrayError> {
        loop {
            let taken = self.wait().await;
            if let Some(held) = self.held(self.raw(), taken) {
                return held;
            }
            wait::yield_now().await;
        }
    }

    /// Takes the lock for single elements or copies.
    #[inline]
    fn hold(&self) -> Result<Held<'_>, ArrayError> {
        let raw = self.raw();
        loop {
            let taken = raw.lock();
            if let Some(held) = self.held(raw, taken) {
                return held;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Under the lock; gives it back if the array is poisoned, or (`None`) if somebody in this process holds it too,
    /// because another process has lied about it.
    #[inline]
    fn held<'a>(&'a self, raw: RawLock<'a>, taken: Taken) -> Option<Result<Held<'a>, ArrayError>> {
        let sliced = &self.object.segment().sliced;
        if sliced.swap(true, Ordering::Acquire) {
            raw.unlock();
            return None;
        }
        let held = Held(raw, sliced);
        self.finish(taken);
        Some(match self.head().writer.load(Ordering::Relaxed) {
            0 => Ok(held),
            pid => Err(ArrayError::Poisoned { pid }),
        })
    }

    /// Finishes what a dead holder has begun.
    #[inline]
    fn finish(&self, taken: Taken) {
        if taken != Taken::Fairly && !Self::AT_ONCE {
            self.redo();
        }
    }

    #[cold]
    fn redo(&self) {
        let head = self.head();
        let index = usize::try_from(head.redo.load(Ordering::Acquire)).unwrap_or(0);
        if let Some(offset) = index.checked_sub(1).and_then(|index| self.offset(index).ok()) {
            let value: T = load(&self.object, Self::REDO);
            store(&self.object, offset, &value);
        }
        head.redo.store(0, Ordering::Release);
    }

    /// Under the lock.
    #[inline]
    fn put(&self, index: usize, offset: usize, value: &T) {
        if Self::AT_ONCE {
            store(&self.object, offset, value);
        } else {
            store(&self.object, Self::REDO, value);
            self.head().redo.store(index as u64 + 1, Ordering::Release);
            compiler_fence(Ordering::SeqCst);
            store(&self.object, offset, value);
            self.head().redo.store(0, Ordering::Release);
        }
    }

    #[inline]
    fn change<R>(&self, held: Held<'_>, index: usize, offset: usize, change: impl FnOnce(&mut T) -> R) -> R {
        let mut value = load(&self.object, offset);
        let result = change(&mut value);
        if self.raw().is_mine() {
            self.put(index, offset, &value);
        }
        drop(held);
        result
    }

    fn lock_by(&self, until: Option<Instant>) -> LockResult<ArrayGuard<'_, T>> {
        loop {
            let taken = match self.raw().try_lock() {
                Some(taken) => taken,
                None => self.raw().lock_until(until).ok_or(LockError::TimedOut)?,
            };
            if let Some(result) = self.slice(taken) {
                return result;
            }
            if until.is_some_and(|until| until <= Instant::now()) {
                return Err(LockError::TimedOut);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Under the lock. `None`, and the lock is given back, if a slice exists in this process already, because another
    /// process has lied about the lock.
    fn slice(&self, taken: Taken) -> Option<LockResult<ArrayGuard<'_, T>>> {
        if self.object.segment().sliced.swap(true, Ordering::Acquire) {
            self.raw().unlock();
            return None;
        }
        self.finish(taken);
        let writer = self.head().writer.load(Ordering::Relaxed);
        let guard =
            ArrayGuard { array: self, poisoned: writer != 0, writing: false, was_panicking: std::thread::panicking() };
        Some(if writer == 0 { Ok(guard) } else { Err(LockError::Poisoned { pid: Some(writer), guard }) })
    }
}

/// The lock, for single elements and copies; given back when dropped, also when a closure panics.
struct Held<'a>(RawLock<'a>, &'a AtomicBool);

impl Drop for Held<'_> {
    #[inline]
    fn drop(&mut self) {
        if !self.0.is_mine() {
            // The parent's, from which we were forked off.
            return;
        }
        self.1.store(false, Ordering::Release);
        self.0.unlock();
    }
}

impl<T> fmt::Debug for Array<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Array").field("len", &self.len).finish_non_exhaustive()
    }
}

impl<T> Serialize for Array<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.object.serialize(serializer)
    }
}

impl<'de, T: Plain> Deserialize<'de> for Array<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let object = Object::deserialize(deserializer, KIND, shape_of::<T>(), Self::ELEMENTS)?;
        let claims = object.at::<Head>(0).len.load(Ordering::Acquire);
        let room = (object.len() - Self::ELEMENTS) / size_of::<T>();
        match usize::try_from(claims) {
            Ok(len) if len <= room && align_of::<T>() <= MOST_ALIGNED => Ok(Array { object, len, of: PhantomData }),
            _ => Err(serde::de::Error::custom(format!(
                "an array claims to have {claims} elements, and its memory has room for {room}"
            ))),
        }
    }
}

/// The lock of an [`Array`], and its elements as a slice in place.
///
/// The guard may move to another thread. If the process dies, or the thread panics, after the elements were lent
/// mutably, the array is poisoned. In a child that a plain `fork` makes under the lock, the copy of the guard has no
/// elements: the lock is the parent's.
#[must_use = "the lock is given back when the guard is dropped"]
pub struct ArrayGuard<'a, T: Plain> {
    array: &'a Array<T>,
    poisoned: bool,
    writing: bool,
    was_panicking: bool,
}

impl<T: Plain> ArrayGuard<'_, T> {
    /// Says that the elements are in order (again), after a process ended while it was writing to them.
    pub fn repair(&mut self) {
        if self.poisoned && self.array.raw().is_mine() {
            self.poisoned = false;
            // Ours from now on: dying before the guard is dropped poisons the array again.
            self.writing = true;
            self.array.head().writer.store(pid_lock::pid(), Ordering::Relaxed);
        }
    }

    fn start(&self) -> *mut T {
        let segment = self.array.object.segment();
        // SAFETY: the elements lie inside of the mapping, as was checked when the handle was made.
        unsafe { segment.start().add(BODY + Array::<T>::ELEMENTS).cast() }
    }
}

impl<T: Plain> Deref for ArrayGuard<'_, T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        if !self.array.raw().is_mine() {
            return &[];
        }
        // SAFETY: in bounds of a mapping that lives as long as the array that is borrowed (see `start`); aligned, as
        // `ELEMENTS` makes sure, given that mappings begin at pages; initialised and valid, as any bytes are a `T`.
        // Nobody writes meanwhile: see the head of this file, points 2 to 4.
        unsafe { std::slice::from_raw_parts(self.start(), self.array.len) }
    }
}

impl<T: Plain> DerefMut for ArrayGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut [T] {
        if !self.array.raw().is_mine() {
            return &mut [];
        }
        if !self.writing && !self.poisoned {
            self.writing = true;
            self.array.head().writer.store(pid_lock::pid(), Ordering::Relaxed);
            // A process that is killed has done its stores in the order of its program; the compiler is to leave them
            // so.
            compiler_fence(Ordering::SeqCst);
        }
        // SAFETY: as for `deref`; and `self` is borrowed mutably, so this is the only reference.
        unsafe { std::slice::from_raw_parts_mut(self.start(), self.array.len) }
    }
}

impl<T: Plain> Drop for ArrayGuard<'_, T> {
    fn drop(&mut self) {
        if !self.array.raw().is_mine() {
            // The parent's, from which we were forked off.
            return;
        }
        if self.writing && (self.was_panicking || !std::thread::panicking()) {
            compiler_fence(Ordering::SeqCst);
            self.array.head().writer.store(0, Ordering::Release);
        }
        self.array.object.segment().sliced.store(false, Ordering::Release);
        self.array.raw().unlock();
    }
}

impl<T: Plain + fmt::Debug> fmt::Debug for ArrayGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}
