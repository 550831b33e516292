//! [`Once`] and [`OnceValue`]: something that is done once, by one of all processes. Python has neither.
//!
//! A lock is held while it is being done, so the death of the process that does it lets the next one try, which learns
//! what happened. A flag beside the lock says when it has been done; from then on that is all anybody looks at.

use std::fmt;
use std::future::Future;
use std::io;
use std::marker::PhantomData;
use std::mem::size_of;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::error::{WaitError, poison};
use super::raw::{LockWord, RawLock, Taken};
use crate::memory::segment::Layout;
use crate::object::{Kind, Object, shape_of};
use crate::values::Plain;
use crate::wait::{self, Waiting};

const KIND: Kind = *b"once";
const VALUE: Kind = *b"oncv";

#[repr(C)]
struct Head {
    lock: LockWord,
    done: AtomicU32,
    /// What became of the last attempt: a death, as locks keep it, or [`GAVE_UP`].
    failed: AtomicU32,
    unused: AtomicU32,
}

// SAFETY: repr(C) and atomics only.
unsafe impl Layout for Head {}

const GAVE_UP: u32 = 1;

/// What became of the attempt before this one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum PreviousAttempt {
    /// The process died in the middle of it. Its number, if it is still known.
    Died(Option<u32>),
    /// It panicked, or was a future that was dropped, or returned an error.
    GaveUp,
}

/// Something that one of all processes does, and only once.
///
/// The handle is cheap to clone; clones, and what arrives of it in other processes, are the same. To be called for
/// something that can be half done, the initialiser is told what became of the attempt before it: a process that dies,
/// or panics, in the middle doesn't count as having done it, and the next caller does it.
///
/// It has four forms: [`try_call_once`](Self::try_call_once), [`call_once_timeout`](Self::call_once_timeout),
/// [`call_once`](Self::call_once), [`call_once_async`](Self::call_once_async). What the initialiser wrote is seen by
/// all whose call returns after it. An initialiser that calls the same `Once` waits for itself for ever.
///
/// # Examples
///
/// ```
/// # fn main() -> std::io::Result<()> {
/// let prepared = polypool_ipc::Once::new()?;
/// assert!(prepared.call_once(|_previous| println!("only one process says this")));
/// assert!(!prepared.call_once(|_previous| unreachable!()));
/// assert!(prepared.is_completed());
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
#[must_use = "what is to be done once must be known to others"]
pub struct Once {
    object: Object,
}

impl Once {
    /// Something that has not been done yet.
    ///
    /// # Errors
    ///
    /// What the system says when it is out of memory or descriptors.
    pub fn new() -> io::Result<Self> {
        Ok(Once { object: Object::create(KIND, 0, size_of::<Head>())? })
    }

    /// Runs `work`, unless that has been done; waits as long as somebody else is doing it. Returns whether it was this
    /// call that did it.
    ///
    /// # Panics
    ///
    /// If `work` does; then the next caller tries.
    pub fn call_once(&self, work: impl FnOnce(Option<PreviousAttempt>)) -> bool {
        self.call_until(None, work).unwrap_or(false)
    }

    /// Runs `work`, unless that has been done. Returns whether it was this call that did it.
    ///
    /// # Errors
    ///
    /// [`WaitError::WouldBlock`] if somebody else is doing it.
    ///
    /// # Panics
    ///
    /// If `work` does; then the next caller tries.
    pub fn try_call_once(&self, work: impl FnOnce(Option<PreviousAttempt>)) -> Result<bool, WaitError> {
        if self.is_completed() {
            return Ok(false);
        }
        let taken = self.raw().try_lock().ok_or(WaitError::WouldBlock)?;
        Ok(self.run(taken, work))
    }

    /// Runs `work`, unless that has been done; waits at most `timeout` if somebody else is doing it. Returns whether it
    /// was this call that did it.
    ///
    /// # Errors
    ///
    /// [`WaitError::TimedOut`] if somebody else was doing it all the time.
    ///
    /// # Panics
    ///
    /// If `work` does; then the next caller tries.
    pub fn call_once_timeout(
        &self,
        timeout: Duration,
        work: impl FnOnce(Option<PreviousAttempt>),
    ) -> Result<bool, WaitError> {
        self.call_until(wait::after(timeout), work)
    }

    /// Runs the future that `work` makes, unless that has been done; waits without blocking the thread as long as
    /// somebody else is doing it. Returns whether it was this call that did it.
    ///
    /// **Cancellation:** dropped while it waits, it waits no more; dropped while it works, it has given up, and the
    /// next caller tries.
    ///
    /// # Panics
    ///
    /// If the future does; then the next caller tries.
    pub async fn call_once_async<F: Future<Output = ()>>(
        &self,
        work: impl FnOnce(Option<PreviousAttempt>) -> F,
    ) -> bool {
        if self.is_completed() {
            return false;
        }
        let mut slept = false;
        let taken = Waiting::new(|| self.raw().step(&mut slept)).await;
        let Some(attempt) = self.begin(taken) else { return false };
        work(attempt.previous).await;
        attempt.complete();
        true
    }

    /// Whether it has been done.
    #[must_use = "it has no effect but its result"]
    #[inline]
    pub fn is_completed(&self) -> bool {
        self.head().done.load(Ordering::Acquire) != 0
    }

    /// Whether both are handles of the same.
    #[must_use = "it has no effect but its result"]
    pub fn is_same(&self, other: &Self) -> bool {
        self.object.is(&other.object)
    }

    fn call_until(
        &self,
        until: Option<Instant>,
        work: impl FnOnce(Option<PreviousAttempt>),
    ) -> Result<bool, WaitError> {
        if self.is_completed() {
            return Ok(false);
        }
        let taken = self.raw().lock_until(until).ok_or(WaitError::TimedOut)?;
        Ok(self.run(taken, work))
    }

    fn run(&self, taken: Taken, work: impl FnOnce(Option<PreviousAttempt>)) -> bool {
        let Some(attempt) = self.begin(taken) else { return false };
        work(attempt.previous);
        attempt.complete();
        true
    }

    /// Now that the lock is ours: the attempt, if it's still to be done.
    fn begin(&self, taken: Taken) -> Option<Attempt<'_>> {
        let head = self.head();
        if let Taken::FromDead(pid) = taken {
            head.failed.store(poison::by(pid), Ordering::Relaxed);
        }
        let failed = head.failed.load(Ordering::Relaxed);
        let previous = match poison::read(failed) {
            Some(pid) => Some(PreviousAttempt::Died(pid)),
            None => (failed != 0).then_some(PreviousAttempt::GaveUp),
        };
        let attempt = Attempt { once: self, previous };
        // Dropped, it unlocks.
        (!self.is_completed()).then_some(attempt)
    }

    fn raw(&self) -> RawLock<'_> {
        RawLock::new(&self.object, 0)
    }

    fn head(&self) -> &Head {
        self.object.at(0)
    }
}

/// Somebody does it, and has the lock.
struct Attempt<'a> {
    once: &'a Once,
    previous: Option<PreviousAttempt>,
}

impl Attempt<'_> {
    fn complete(self) {
        if !self.once.raw().is_mine() {
            return;
        }
        self.once.head().done.store(1, Ordering::Release);
    }
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        if !self.once.raw().is_mine() {
            return;
        }
        if !self.once.is_completed() {
            self.once.head().failed.store(GAVE_UP, Ordering::Relaxed);
        }
        self.once.raw().unlock();
    }
}

impl fmt::Debug for Once {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Once").field("completed", &self.is_completed()).finish_non_exhaustive()
    }
}

impl Serialize for Once {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.object.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Once {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Once { object: Object::deserialize(deserializer, KIND, 0, size_of::<Head>())? })
    }
}

/// A value that one of all processes computes, and only once.
///
/// # Examples
///
/// ```
/// # fn main() -> std::io::Result<()> {
/// let seed = polypool_ipc::OnceValue::<u64>::new()?;
/// assert_eq!(seed.get(), None);
/// assert_eq!(seed.get_or_init(|_previous| 42), 42);
/// assert_eq!(seed.get_or_init(|_previous| unreachable!()), 42);
/// assert_eq!(seed.set(7), Err(7));
/// # Ok(())
/// # }
/// ```
#[must_use = "what is to be computed once must be known to others"]
pub struct OnceValue<T> {
    once: Once,
    value: PhantomData<fn() -> T>,
}

impl<T: Plain> OnceValue<T> {
    const LEN: usize = size_of::<Head>() + size_of::<T>();

    /// No value yet.
    ///
    /// # Errors
    ///
    /// What the system says when it is out of memory or descriptors.
    pub fn new() -> io::Result<Self> {
        let object = Object::create(VALUE, shape_of::<T>(), Self::LEN)?;
        Ok(OnceValue { once: Once { object }, value: PhantomData })
    }

    /// The value, if there is one.
    #[must_use = "it has no effect but its result"]
    pub fn get(&self) -> Option<T> {
        self.once.is_completed().then(|| self.load())
    }

    /// Gives it its value, unless it has one, or is being given one; then the value comes back.
    ///
    /// # Errors
    ///
    /// The value, unused.
    pub fn set(&self, value: T) -> Result<(), T> {
        match self.once.try_call_once(|_| self.store(&value)) {
            Ok(true) => Ok(()),
            _ => Err(value),
        }
    }

    /// The value; computes it if there is none, and waits as long as somebody else does.
    ///
    /// # Panics
    ///
    /// If `work` does; then the next caller tries.
    pub fn get_or_init(&self, work: impl FnOnce(Option<PreviousAttempt>) -> T) -> T {
        self.once.call_once(|previous| self.store(&work(previous)));
        self.load()
    }

    /// The value; computes it if there is none.
    ///
    /// # Errors
    ///
    /// [`WaitError::WouldBlock`] if somebody else is computing it.
    ///
    /// # Panics
    ///
    /// If `work` does; then the next caller tries.
    pub fn try_get_or_init(&self, work: impl FnOnce(Option<PreviousAttempt>) -> T) -> Result<T, WaitError> {
        self.once.try_call_once(|previous| self.store(&work(previous)))?;
        Ok(self.load())
    }

    /// The value; computes it if there is none, and waits at most `timeout` if somebody else does.
    ///
    /// # Errors
    ///
    /// [`WaitError::TimedOut`] if somebody else was computing it all the time.
    ///
    /// # Panics
    ///
    /// If `work` does; then the next caller tries.
    pub fn get_or_init_timeout(
        &self,
        timeout: Duration,
        work: impl FnOnce(Option<PreviousAttempt>) -> T,
    ) -> Result<T, WaitError> {
        self.once.call_once_timeout(timeout, |previous| self.store(&work(previous)))?;
        Ok(self.load())
    }

    /// The value; computes it if there is none, and waits without blocking the thread as long as somebody else does.
    ///
    /// **Cancellation:** dropped while it waits, it waits no more; dropped while it computes, it has given up, and the
    /// next caller tries.
    ///
    /// # Panics
    ///
    /// If the future does; then the next caller tries.
    pub async fn get_or_init_async<F: Future<Output = T>>(&self, work: impl FnOnce(Option<PreviousAttempt>) -> F) -> T {
        self.once
            .call_once_async(|previous| {
                let value = work(previous);
                async { self.store(&value.await) }
            })
            .await;
        self.load()
    }

    /// Whether there is a value.
    #[must_use = "it has no effect but its result"]
    pub fn is_completed(&self) -> bool {
        self.once.is_completed()
    }

    fn load(&self) -> T {
        let mut value = T::new_zeroed();
        self.once.object.load(size_of::<Head>(), value.as_mut_bytes());
        value
    }

    /// Only in an attempt.
    fn store(&self, value: &T) {
        self.once.object.store(size_of::<Head>(), value.as_bytes());
    }
}

impl<T> OnceValue<T> {
    /// Whether both are handles of the same value.
    #[must_use = "it has no effect but its result"]
    pub fn is_same(&self, other: &Self) -> bool {
        self.once.is_same(&other.once)
    }
}

impl<T> Clone for OnceValue<T> {
    fn clone(&self) -> Self {
        OnceValue { once: self.once.clone(), value: PhantomData }
    }
}

impl<T: Plain + fmt::Debug> fmt::Debug for OnceValue<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("OnceValue").field(&self.get()).finish()
    }
}

impl<T> Serialize for OnceValue<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.once.object.serialize(serializer)
    }
}

impl<'de, T: Plain> Deserialize<'de> for OnceValue<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let object = Object::deserialize(deserializer, VALUE, shape_of::<T>(), Self::LEN)?;
        Ok(OnceValue { once: Once { object }, value: PhantomData })
    }
}
