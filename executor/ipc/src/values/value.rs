//! One value in shared memory, with a lock (Python's `multiprocessing.Value`).
//!
//! The value is kept twice (see [`twin`]): a change is made to a copy in memory of our own, written to the copy that
//! nobody reads, and becomes the value in one step. So there is no state in which it is half-changed: a holder that is
//! killed, or panics, has changed nothing, the lock goes to the next one, and there is no poison.

use std::fmt;
use std::future::Future;
use std::io;
use std::marker::PhantomData;
use std::mem::{offset_of, size_of};
use std::ops::{Deref, DerefMut};
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{Plain, load, store, twin};
use crate::memory::segment::Layout;
use crate::object::{Object, shape_of};
use crate::sync::raw::{LockWord, RawLock};
use crate::wait::{self, Waiting};

const KIND: [u8; 4] = *b"valu";

#[repr(C)]
struct Head {
    lock: LockWord,
    unused: LockWord,
    version: AtomicU64,
}

// SAFETY: repr(C) and atomics only.
unsafe impl Layout for Head {}

/// A number or struct in shared memory, with a lock of its own.
///
/// A handle: cheap to clone, and sending it to another process sends the handle. Gone with its last handle, however
/// its owners end. Python's equivalent is `multiprocessing.Value`.
///
/// Reading ([`get`](Value::get)) takes no lock and sees a whole value. Every change is one step: if the process is
/// killed or the closure panics in the middle of [`with`](Value::with), nothing has happened, and the next one gets the
/// lock at once. So a `Value` is never poisoned.
///
/// For several values under one lock, put them into a struct. For one that is too large to be copied for each change,
/// use an [`Array`](crate::Array); for a counter alone, an [`AtomicValue`](crate::AtomicValue) is quicker.
///
/// The lock can't be taken twice by the same thread: a `with` inside of a `with` of the same value waits for ever. Pass
/// the `&mut T` on instead.
///
/// # Examples
///
/// ```
/// use polypool_ipc::Value;
/// use zerocopy::{FromBytes, Immutable, IntoBytes};
///
/// # fn main() -> std::io::Result<()> {
/// let counter = Value::new(0_u64)?;
/// counter.with(|n| *n += 1);
/// assert_eq!(counter.get(), 1);
///
/// // Two values, one lock.
/// #[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
/// #[repr(C)]
/// struct Account {
///     balance: i64,
///     bookings: u64,
/// }
/// let account = Value::new(Account { balance: 100, bookings: 0 })?;
/// let enough = account.with(|account| {
///     account.balance -= 30;
///     account.bookings += 1;
///     account.balance >= 0
/// });
/// assert!(enough);
/// # Ok(())
/// # }
/// ```
pub struct Value<T> {
    object: Object,
    of: PhantomData<fn() -> T>,
}

impl<T> Clone for Value<T> {
    fn clone(&self) -> Self {
        Value { object: self.object.clone(), of: PhantomData }
    }
}

impl<T: Plain> Value<T> {
    const COPY: usize = size_of::<T>().next_multiple_of(8);
    const LEN: usize = size_of::<Head>() + 2 * Self::COPY;

    /// A new value in memory of its own.
    ///
    /// # Errors
    ///
    /// What the system says when there is no memory, no descriptor, or no thread.
    pub fn new(value: T) -> io::Result<Self> {
        let this = Value { object: Object::create(KIND, shape_of::<T>(), Self::LEN)?, of: PhantomData };
        store(&this.object, Self::copy(0), &value);
        Ok(this)
    }

    /// The value. Waits for nobody, also while another process holds the lock.
    #[inline]
    #[must_use = "it has no effect but its result"]
    pub fn get(&self) -> T {
        match self.peek() {
            Some(value) => value,
            None => self.get_changing(),
        }
    }

    /// The value without a lock; `None` if it keeps changing.
    #[inline]
    fn peek(&self) -> Option<T> {
        twin::read(&self.head().version, |which| load(&self.object, Self::copy(which)))
    }

    /// The value, though it has kept changing under our eyes: under the lock, behind which nothing does, or as soon as
    /// it holds still. So a holder that does something else meanwhile, or is stopped, isn't waited for.
    #[cold]
    fn get_changing(&self) -> T {
        loop {
            if let Some(guard) = self.lock_timeout(Duration::from_millis(1)) {
                return *guard;
            }
            if let Some(value) = self.peek() {
                return value;
            }
        }
    }

    /// Sets the value. Blocks while another one holds the lock.
    #[inline]
    pub fn set(&self, value: T) {
        self.raw().lock();
        self.put(&value);
    }

    /// As [`set`](Value::set), if the lock is free; returns whether it was.
    #[must_use = "the lock may be taken, and then the value is not set"]
    pub fn try_set(&self, value: T) -> bool {
        let free = self.raw().try_lock().is_some();
        if free {
            self.put(&value);
        }
        free
    }

    /// As [`set`](Value::set), but waits for the lock no longer than that; returns whether it was free by then.
    #[must_use = "the lock may be taken all the time, and then the value is not set"]
    pub fn set_timeout(&self, value: T, timeout: Duration) -> bool {
        let free = self.take_by(wait::after(timeout));
        if free {
            self.put(&value);
        }
        free
    }

    /// As [`set`](Value::set), without blocking the thread while it waits for the lock.
    ///
    /// **Cancellation:** dropped before it is done, it has changed nothing.
    pub async fn set_async(&self, value: T) {
        self.wait().await;
        self.put(&value);
    }

    /// Changes the value as one step, under the lock; blocks until it is ours.
    ///
    /// # Panics
    ///
    /// If `change` does; the value is then as it was.
    #[inline]
    #[doc(alias = "get_lock")]
    pub fn with<R>(&self, change: impl FnOnce(&mut T) -> R) -> R {
        let raw = self.raw();
        raw.lock();
        self.apply(raw, change)
    }

    /// As [`with`](Value::with), if the lock is free; `None` if it isn't.
    #[inline]
    pub fn try_with<R>(&self, change: impl FnOnce(&mut T) -> R) -> Option<R> {
        let raw = self.raw();
        raw.try_lock()?;
        Some(self.apply(raw, change))
    }

    /// As [`with`](Value::with), but waits for the lock no longer than that; `None` if it wasn't free by then.
    pub fn with_timeout<R>(&self, timeout: Duration, change: impl FnOnce(&mut T) -> R) -> Option<R> {
        self.take_by(wait::after(timeout)).then(|| self.apply(self.raw(), change))
    }

    /// As [`with`](Value::with), without blocking the thread while it waits for the lock.
    ///
    /// **Cancellation:** dropped before it is done, it has changed nothing.
    pub async fn with_async<R>(&self, change: impl FnOnce(&mut T) -> R) -> R {
        self.wait().await;
        self.apply(self.raw(), change)
    }

    /// Takes the lock; blocks until it is ours. The guard has a copy of the value, which becomes the value when the
    /// guard is dropped.
    #[inline]
    pub fn lock(&self) -> ValueGuard<'_, T> {
        self.raw().lock();
        self.guard()
    }

    /// The guard, if the lock is free.
    pub fn try_lock(&self) -> Option<ValueGuard<'_, T>> {
        self.raw().try_lock()?;
        Some(self.guard())
    }

    /// The guard, if the lock is free within that time.
    pub fn lock_timeout(&self, timeout: Duration) -> Option<ValueGuard<'_, T>> {
        self.take_by(wait::after(timeout)).then(|| self.guard())
    }

    /// The guard, without blocking the thread.
    ///
    /// **Cancellation:** dropped before it is done, it doesn't hold the lock.
    pub async fn lock_async(&self) -> ValueGuard<'_, T> {
        self.wait().await;
        self.guard()
    }

    /// Sets the value and returns the one before; blocks while another one holds the lock.
    pub fn replace(&self, value: T) -> T {
        self.with(|it| std::mem::replace(it, value))
    }

    /// As [`replace`](Value::replace), if the lock is free; `None`, and nothing has changed, if it isn't.
    #[must_use = "the lock may be taken, and then the value is not replaced"]
    pub fn try_replace(&self, value: T) -> Option<T> {
        self.try_with(|it| std::mem::replace(it, value))
    }

    /// As [`replace`](Value::replace), but waits for the lock no longer than that; `None`, and nothing has changed, if
    /// it wasn't free by then.
    #[must_use = "the lock may be taken all the time, and then the value is not replaced"]
    pub fn replace_timeout(&self, value: T, timeout: Duration) -> Option<T> {
        self.with_timeout(timeout, |it| std::mem::replace(it, value))
    }

    /// As [`replace`](Value::replace), without blocking the thread while it waits for the lock.
    ///
    /// **Cancellation:** dropped before it is done, it has changed nothing.
    pub async fn replace_async(&self, value: T) -> T {
        self.with_async(|it| std::mem::replace(it, value)).await
    }

    /// Sets the value to `new` if it is `current`, byte for byte (so a NaN is equal to itself, and `0.0` isn't `-0.0`).
    ///
    /// # Errors
    ///
    /// The value that is there, if it's another one.
    pub fn compare_exchange(&self, current: T, new: T) -> Result<T, T> {
        self.raw().lock();
        self.exchange(current, new)
    }

    /// As [`compare_exchange`](Value::compare_exchange), if the lock is free; `None` if it isn't.
    pub fn try_compare_exchange(&self, current: T, new: T) -> Option<Result<T, T>> {
        self.raw().try_lock()?;
        Some(self.exchange(current, new))
    }

    /// As [`compare_exchange`](Value::compare_exchange), but waits for the lock no longer than that; `None` if it
    /// wasn't free by then.
    pub fn compare_exchange_timeout(&self, current: T, new: T, timeout: Duration) -> Option<Result<T, T>> {
        self.take_by(wait::after(timeout)).then(|| self.exchange(current, new))
    }

    /// As [`compare_exchange`](Value::compare_exchange), without blocking the thread while it waits for the lock.
    ///
    /// **Cancellation:** dropped before it is done, it has changed nothing.
    ///
    /// # Errors
    ///
    /// The value that is there, if it's another one.
    pub async fn compare_exchange_async(&self, current: T, new: T) -> Result<T, T> {
        self.wait().await;
        self.exchange(current, new)
    }

    /// Whether both are handles of the same value.
    #[must_use = "it has no effect but its result"]
    pub fn is_same(&self, other: &Value<T>) -> bool {
        self.object.is(&other.object)
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
    fn copy(which: usize) -> usize {
        size_of::<Head>() + which * Self::COPY
    }

    /// `None`: no deadline.
    fn take_by(&self, until: Option<Instant>) -> bool {
        self.raw().try_lock().is_some() || self.raw().lock_until(until).is_some()
    }

    fn wait(&self) -> impl Future<Output = ()> + Send + use<'_, T> {
        let (raw, mut slept) = (self.raw(), false);
        let waiting = Waiting::new(move || raw.step(&mut slept));
        async move {
            waiting.await;
        }
    }

    /// Under the lock.
    #[inline]
    fn read(&self) -> T {
        twin::read_locked(&self.head().version, |which| load(&self.object, Self::copy(which)))
    }

    /// Under the lock; unless that's the parent's, from which the caller was forked off under it.
    #[inline]
    fn publish(&self, value: &T) {
        if !self.raw().is_mine() {
            return;
        }
        twin::publish(&self.head().version, |which| store(&self.object, Self::copy(which), value));
    }

    /// Under the lock; gives it back.
    #[inline]
    fn put(&self, value: &T) {
        let unlock = Unlock(self.raw());
        self.publish(value);
        drop(unlock);
    }

    /// Under the lock; gives it back.
    fn exchange(&self, current: T, new: T) -> Result<T, T> {
        let unlock = Unlock(self.raw());
        let found = self.read();
        let equal = found.as_bytes() == current.as_bytes();
        if equal {
            self.publish(&new);
        }
        drop(unlock);
        if equal { Ok(found) } else { Err(found) }
    }

    /// Under the lock; gives it back.
    #[inline]
    fn apply<R>(&self, raw: RawLock<'_>, change: impl FnOnce(&mut T) -> R) -> R {
        let unlock = Unlock(raw);
        let mut value = self.read();
        let result = change(&mut value);
        self.publish(&value);
        drop(unlock);
        result
    }

    /// Under the lock, which the guard gives back.
    fn guard(&self) -> ValueGuard<'_, T> {
        ValueGuard { value: self.read(), of: self, changed: false, was_panicking: std::thread::panicking() }
    }
}

/// Gives the lock back, also when a closure panics.
struct Unlock<'a>(RawLock<'a>);

impl Drop for Unlock<'_> {
    #[inline]
    fn drop(&mut self) {
        self.0.unlock();
    }
}

impl<T: Plain + fmt::Debug> fmt::Debug for Value<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Value").field(&self.get()).finish()
    }
}

impl<T> Serialize for Value<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.object.serialize(serializer)
    }
}

impl<'de, T: Plain> Deserialize<'de> for Value<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let object = Object::deserialize(deserializer, KIND, shape_of::<T>(), Self::LEN)?;
        Ok(Value { object, of: PhantomData })
    }
}

/// The lock of a [`Value`], and a copy of the value to be changed.
///
/// When it's dropped, the copy becomes the value, in one step, and the lock is free. If the thread panics meanwhile, or
/// the process is killed, the value stays as it was. The guard may move to another thread.
#[must_use = "the lock is given back when the guard is dropped"]
pub struct ValueGuard<'a, T: Plain> {
    value: T,
    of: &'a Value<T>,
    changed: bool,
    was_panicking: bool,
}

impl<T: Plain> ValueGuard<'_, T> {
    /// Gives the lock back and drops the changes.
    pub fn discard(mut self) {
        self.changed = false;
    }
}

impl<T: Plain> Deref for ValueGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T: Plain> DerefMut for ValueGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        self.changed = true;
        &mut self.value
    }
}

impl<T: Plain> Drop for ValueGuard<'_, T> {
    fn drop(&mut self) {
        if self.changed && (self.was_panicking || !std::thread::panicking()) {
            self.of.publish(&self.value);
        }
        self.of.raw().unlock();
    }
}

impl<T: Plain + fmt::Debug> fmt::Debug for ValueGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ValueGuard").field(&self.value).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_reads_a_value_that_has_changed_does_not_wait_for_one_who_holds_the_lock() {
        let value = Value::new(7_u64).unwrap();
        let guard = value.lock();
        let (sender, receiver) = std::sync::mpsc::channel();
        let reader = std::thread::spawn({
            let value = value.clone();
            move || sender.send(value.get_changing())
        });
        let read = receiver.recv_timeout(Duration::from_secs(60));
        drop(guard);
        assert_eq!(read, Ok(7));
        reader.join().unwrap().unwrap();
    }
}
