//! [`Mutex`]: one at a time, among all threads and tasks of all processes. Python's `multiprocessing.Lock`, and the
//! lock of its `Value`.
//!
//! The lock is one word that names its holder (`raw.rs` has its transitions), so the next one learns when the holder
//! died. The value stands beside it in two copies (`cell.rs`): a guard works on a copy of its own and commits it when
//! it is dropped, so what a dead holder leaves behind is the last value that was committed, whole.
//!
//! What Python's lock can do and this one can't: to be released by somebody else than its holder. Here the guard is the
//! proof, and it can be sent on to another thread, but not to another process.

use std::fmt;
use std::future::Future;
use std::io;
use std::marker::PhantomData;
use std::mem::size_of;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::cell::{Cell, Draft};
use super::error::{LockError, LockResult, poison};
use super::raw::{LockWord, RawLock, Taken};
use crate::memory::segment::Layout;
use crate::object::{Kind, Object, shape_of};
use crate::values::Plain;
use crate::wait::{self, Step, Waiting};

const KIND: Kind = *b"mutx";

#[repr(C)]
struct Head {
    lock: LockWord,
    poison: AtomicU32,
}

// SAFETY: repr(C) and atomics only.
unsafe impl Layout for Head {}

/// A lock between processes, and the value it protects.
///
/// The handle is cheap to clone; clones, and what arrives of it in other processes, are the same lock. It can be an
/// argument, part of an argument or the result of a task. Without a value, `Mutex<()>`, also called [`Lock`], it is
/// Python's `Lock`.
///
/// A lock has four forms: [`try_lock`](Self::try_lock), [`lock_timeout`](Self::lock_timeout), [`lock`](Self::lock),
/// [`lock_async`](Self::lock_async). Who comes first is not who gets it first: a lock that is free goes to whoever
/// asks, sleepers or not.
///
/// # When a holder dies
///
/// A process that dies, in whatever way, while one of its threads holds the lock doesn't keep it: the next one gets it
/// at once, and gets it as [`LockError::Poisoned`], which has the guard in it. So do all others after that, until one
/// of them calls [`repair`](MutexGuard::repair). The value is the last one that was committed: the changes of the dead
/// have not happened.
///
/// A *panic* of the holder doesn't poison: the changes that its guard has not committed are dropped, and the lock is
/// free.
///
/// # Examples
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let counter = polypool_ipc::Mutex::new(0_u64)?;
/// std::thread::scope(|s| {
///     for _ in 0..4 {
///         s.spawn(|| counter.with(|n| *n += 1)); // `lock()`, for a value that must not be poisoned
///     }
/// });
/// assert_eq!(*counter.lock().unwrap(), 4);
/// # Ok(())
/// # }
/// ```
#[must_use = "a lock that is not kept protects nothing"]
pub struct Mutex<T = ()> {
    object: Object,
    value: PhantomData<fn() -> T>,
}

/// A lock that protects nothing in particular: Python's `multiprocessing.Lock`.
pub type Lock = Mutex<()>;

impl<T: Plain> Mutex<T> {
    const LEN: usize = size_of::<Head>() + Cell::<'static, T>::LEN;

    /// A new lock, free, with that value.
    ///
    /// # Errors
    ///
    /// What the system says when it is out of memory or descriptors.
    pub fn new(value: T) -> io::Result<Self> {
        let mutex = Mutex { object: Object::create(KIND, shape_of::<T>(), Self::LEN)?, value: PhantomData };
        mutex.cell().set(&value);
        Ok(mutex)
    }

    /// Takes the lock, and waits for it as long as it takes. A thread that has it already waits for ever.
    ///
    /// # Errors
    ///
    /// [`LockError::Poisoned`], with the guard, if a holder died.
    #[inline]
    pub fn lock(&self) -> LockResult<MutexGuard<'_, T>> {
        self.entered(self.raw().lock())
    }

    /// Takes the lock if it is free at this moment.
    ///
    /// # Errors
    ///
    /// [`LockError::WouldBlock`] if it isn't; [`LockError::Poisoned`], with the guard, if a holder died.
    #[inline]
    pub fn try_lock(&self) -> LockResult<MutexGuard<'_, T>> {
        self.raw().try_lock().map_or(Err(LockError::WouldBlock), |taken| self.entered(taken))
    }

    /// Takes the lock, and waits for it for at most `timeout`.
    ///
    /// # Errors
    ///
    /// [`LockError::TimedOut`] if it wasn't free in that time; [`LockError::Poisoned`], with the guard, if a holder
    /// died.
    pub fn lock_timeout(&self, timeout: Duration) -> LockResult<MutexGuard<'_, T>> {
        let taken = self.raw().lock_until(wait::after(timeout));
        taken.map_or(Err(LockError::TimedOut), |taken| self.entered(taken))
    }

    /// Takes the lock, and waits for it without blocking the thread. The guard can be held across an `.await`.
    ///
    /// **Cancellation:** dropped, it waits no more; nobody else is kept from the lock by that.
    ///
    /// # Errors
    ///
    /// [`LockError::Poisoned`], with the guard, if a holder died.
    pub fn lock_async(&self) -> impl Future<Output = LockResult<MutexGuard<'_, T>>> + Send {
        let mut slept = false;
        Waiting::new(move || match self.raw().step(&mut slept) {
            Step::Ready(taken) => Step::Ready(self.entered(taken)),
            Step::Wait(change) => Step::Wait(change),
        })
    }

    /// Runs `work` on the value under the lock. If it panics, the value stays as it was.
    ///
    /// # Errors
    ///
    /// [`LockError::Poisoned`] if a holder died: then `work` has not run.
    ///
    /// # Panics
    ///
    /// If `work` does.
    pub fn with<R>(&self, work: impl FnOnce(&mut T) -> R) -> Result<R, LockError<()>> {
        self.lock().map(|mut guard| work(&mut guard)).map_err(LockError::without_guard)
    }

    /// As [`with`](Self::with), if the lock is free at this moment.
    ///
    /// # Errors
    ///
    /// [`LockError::WouldBlock`] if it isn't; [`LockError::Poisoned`] if a holder died: then `work` has not run.
    ///
    /// # Panics
    ///
    /// If `work` does.
    pub fn try_with<R>(&self, work: impl FnOnce(&mut T) -> R) -> Result<R, LockError<()>> {
        self.try_lock().map(|mut guard| work(&mut guard)).map_err(LockError::without_guard)
    }

    /// As [`with`](Self::with), but waits for the lock for at most `timeout`.
    ///
    /// # Errors
    ///
    /// [`LockError::TimedOut`] if it wasn't free in that time; [`LockError::Poisoned`] if a holder died: then `work`
    /// has not run.
    ///
    /// # Panics
    ///
    /// If `work` does.
    pub fn with_timeout<R>(&self, timeout: Duration, work: impl FnOnce(&mut T) -> R) -> Result<R, LockError<()>> {
        self.lock_timeout(timeout).map(|mut guard| work(&mut guard)).map_err(LockError::without_guard)
    }

    /// As [`with`](Self::with), without blocking the thread while it waits for the lock.
    ///
    /// **Cancellation:** dropped before it is done, it has changed nothing.
    ///
    /// # Errors
    ///
    /// [`LockError::Poisoned`] if a holder died: then `work` has not run.
    ///
    /// # Panics
    ///
    /// If `work` does.
    pub async fn with_async<R>(&self, work: impl FnOnce(&mut T) -> R) -> Result<R, LockError<()>> {
        self.lock_async().await.map(|mut guard| work(&mut guard)).map_err(LockError::without_guard)
    }

    /// Whether a holder died, and nobody has [repaired](MutexGuard::repair) it since. A death shows only once somebody
    /// has tried to lock.
    #[must_use = "it has no effect but its result"]
    pub fn is_poisoned(&self) -> bool {
        poison::read(self.head().poison.load(Ordering::Relaxed)).is_some()
    }

    /// Says from outside that all is well again, as [`repair`](MutexGuard::repair) does from inside.
    pub fn clear_poison(&self) {
        self.head().poison.store(0, Ordering::Relaxed);
    }

    #[inline]
    fn raw(&self) -> RawLock<'_> {
        RawLock::new(&self.object, 0)
    }

    #[inline]
    fn head(&self) -> &Head {
        self.object.at(0)
    }

    #[inline]
    fn cell(&self) -> Cell<'_, T> {
        Cell::new(&self.object, size_of::<Head>())
    }

    /// The guard, now that the lock is ours.
    #[inline]
    fn entered(&self, taken: Taken) -> LockResult<MutexGuard<'_, T>> {
        if let Taken::FromDead(pid) = taken {
            self.head().poison.store(poison::by(pid), Ordering::Relaxed);
        }
        let guard = MutexGuard { mutex: self, draft: Draft::new(self.cell()) };
        match poison::read(self.head().poison.load(Ordering::Relaxed)) {
            None => Ok(guard),
            Some(pid) => Err(LockError::Poisoned { pid, guard }),
        }
    }
}

impl<T> Mutex<T> {
    /// Whether both are handles of the same lock.
    #[must_use = "it has no effect but its result"]
    pub fn is_same(&self, other: &Self) -> bool {
        self.object.is(&other.object)
    }
}

impl<T> Clone for Mutex<T> {
    fn clone(&self) -> Self {
        Mutex { object: self.object.clone(), value: PhantomData }
    }
}

impl<T> fmt::Debug for Mutex<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let head: &Head = self.object.at(0);
        f.debug_struct("Mutex")
            .field("locked", &RawLock::new(&self.object, 0).holder().is_some())
            .field("poisoned", &poison::read(head.poison.load(Ordering::Relaxed)).is_some())
            .finish_non_exhaustive()
    }
}

impl<T> Serialize for Mutex<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.object.serialize(serializer)
    }
}

impl<'de, T: Plain> Deserialize<'de> for Mutex<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let object = Object::deserialize(deserializer, KIND, shape_of::<T>(), Self::LEN)?;
        Ok(Mutex { object, value: PhantomData })
    }
}

/// The lock is held, and this is a copy of its value. When it is dropped, the copy becomes the value, in one step, and
/// the lock is free.
///
/// It can be sent to another thread and held across an `.await`. Dropped by a panic, it forgets its changes instead.
#[must_use = "dropping the guard unlocks"]
pub struct MutexGuard<'a, T: Plain> {
    mutex: &'a Mutex<T>,
    draft: Draft<T>,
}

impl<'a, T: Plain> MutexGuard<'a, T> {
    /// Makes the changes so far the value, without unlocking: what a death or a panic from here on doesn't undo.
    pub fn commit(&mut self) {
        if self.mutex.raw().is_mine() {
            self.draft.commit(self.mutex.cell());
        }
    }

    /// Forgets the changes since the last commit.
    pub fn rollback(&mut self) {
        self.draft.rollback(self.mutex.cell());
    }

    /// Says that the value is in order again after the death of a holder: those who lock after this one aren't told of
    /// it any more.
    pub fn repair(&mut self) {
        self.mutex.clear_poison();
    }

    /// The lock, whose guard this is.
    pub(super) fn mutex(&self) -> &'a Mutex<T> {
        self.mutex
    }
}

impl<T: Plain> Deref for MutexGuard<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        &self.draft
    }
}

impl<T: Plain> DerefMut for MutexGuard<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        &mut self.draft
    }
}

impl<T: Plain> Drop for MutexGuard<'_, T> {
    #[inline]
    fn drop(&mut self) {
        if self.mutex.raw().is_mine() {
            self.draft.finish(self.mutex.cell());
            self.mutex.raw().unlock();
        }
    }
}

impl<T: Plain + fmt::Debug> fmt::Debug for MutexGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("MutexGuard").field(&**self).finish()
    }
}
