//! [`ReentrantMutex`], also [`RLock`]: a lock that its owner may take again. Python's `multiprocessing.RLock`.
//!
//! It is the lock of [`Mutex`](super::mutex::Mutex), with two words more: who of the process owns it, and how often.
//! The owner's word is written only by who has the lock and is taken away before the lock is, so whoever finds itself
//! there has the lock. It names the seat of the process too, so that what a dead owner leaves there means nobody of
//! another process.
//!
//! # Owners
//!
//! An owner is a thread, for the forms that block, and their guard doesn't leave it. A task has no thread of its own:
//! it may be polled by another one after each `.await`, and shares its thread with others, who must not get in. So the
//! form for `.await` takes a [`LockOwner`], which stands for the task: who shows the same one gets in again.
//!
//! # The value
//!
//! Several guards of one owner can exist at a time, so none of them can give out a `&mut`. The value is read and
//! replaced instead, each in one step.

use std::fmt;
use std::future::Future;
use std::io;
use std::marker::PhantomData;
use std::mem::size_of;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::cell::Cell;
use super::error::{LockError, LockResult, poison};
use super::raw::{LockWord, RawLock, Taken};
use crate::memory::segment::Layout;
use crate::object::{Kind, Object, shape_of};
use crate::values::Plain;
use crate::wait::{self, Step, Waiting};

const KIND: Kind = *b"rmtx";

#[repr(C)]
struct Head {
    lock: LockWord,
    poison: AtomicU32,
    /// The seat and, in the lower half, the number of the owner; 0 if nobody is.
    owner: AtomicU64,
    /// How often the owner has it.
    depth: AtomicU32,
    unused: AtomicU32,
}

// SAFETY: repr(C) and atomics only.
unsafe impl Layout for Head {}

/// A number that no other thread and no other [`LockOwner`] of this process has.
fn number() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

thread_local! {
    static THREAD: u32 = number();
}

/// Held while an owner that several threads may show comes, goes or writes; never for long.
fn one_at_a_time() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The same, held over a fork.
pub(crate) struct Frozen(#[allow(dead_code)] MutexGuard<'static, ()>);

pub(crate) fn freeze() -> Frozen {
    Frozen(one_at_a_time())
}

/// Who owns a [`ReentrantMutex`] in the place of a thread: make one for each task.
///
/// # Examples
///
/// ```
/// use polypool_ipc::{LockOwner, ReentrantMutex};
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let total = ReentrantMutex::new(1_u64)?;
/// let me = LockOwner::new();
/// let outer = total.lock_async(&me).await.map_err(|e| e.without_guard())?;
/// let inner = total.lock_async(&me).await.map_err(|e| e.without_guard())?; // doesn't wait
/// inner.set(outer.get() + 1);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
#[must_use = "an owner is there to be shown to locks"]
pub struct LockOwner(u32);

impl LockOwner {
    /// An owner like no other.
    pub fn new() -> Self {
        LockOwner(number())
    }
}

impl Default for LockOwner {
    fn default() -> Self {
        LockOwner::new()
    }
}

/// A lock between processes that its owner may take again, and the value it protects.
///
/// The handle is cheap to clone; clones, and what arrives of it in other processes, are the same lock. It is free when
/// each guard has been dropped. Without a value, `ReentrantMutex<()>`, also called [`RLock`], it is Python's `RLock`;
/// with one, the lock of its `Value`.
///
/// The owner is the thread for [`try_lock`](Self::try_lock), [`lock_timeout`](Self::lock_timeout) and
/// [`lock`](Self::lock), and a [`LockOwner`], which stands for the task, for [`lock_async`](Self::lock_async),
/// [`try_lock_as`](Self::try_lock_as), [`lock_timeout_as`](Self::lock_timeout_as) and [`lock_as`](Self::lock_as).
///
/// When a process dies that has it, the lock is poisoned, as a [`Mutex`](crate::Mutex) is: the next one gets it at
/// once, as [`LockError::Poisoned`].
///
/// # Examples
///
/// ```
/// use polypool_ipc::{LockError, ReentrantMutex};
///
/// fn add(total: &ReentrantMutex<u64>, n: u64) -> Result<(), LockError<()>> {
///     let guard = total.lock().map_err(LockError::without_guard)?;
///     guard.set(guard.get() + n);
///     Ok(())
/// }
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let total = ReentrantMutex::new(1)?;
/// let both = total.lock().unwrap();
/// add(&total, 1)?; // would wait for ever with a `Mutex`
/// add(&total, 1)?;
/// assert_eq!(both.get(), 3);
/// # drop(both);
/// # Ok(())
/// # }
/// ```
#[must_use = "a lock that is not kept protects nothing"]
pub struct ReentrantMutex<T = ()> {
    object: Object,
    value: PhantomData<fn() -> T>,
}

/// A re-entrant lock that protects nothing in particular: Python's `multiprocessing.RLock`.
pub type RLock = ReentrantMutex<()>;

impl<T: Plain> ReentrantMutex<T> {
    const LEN: usize = size_of::<Head>() + Cell::<'static, T>::LEN;

    /// A new lock, free, with that value.
    ///
    /// # Errors
    ///
    /// What the system says when it is out of memory or descriptors.
    pub fn new(value: T) -> io::Result<Self> {
        let mutex = ReentrantMutex { object: Object::create(KIND, shape_of::<T>(), Self::LEN)?, value: PhantomData };
        mutex.cell().set(&value);
        Ok(mutex)
    }

    /// Takes the lock, at once if this thread has it, and otherwise waits for it as long as it takes.
    ///
    /// # Errors
    ///
    /// [`LockError::Poisoned`], with the guard, if a holder died.
    pub fn lock(&self) -> LockResult<ReentrantMutexGuard<'_, T>> {
        self.lock_until(None)
    }

    /// Takes the lock if this thread has it, or nobody.
    ///
    /// # Errors
    ///
    /// [`LockError::WouldBlock`] if it's taken; [`LockError::Poisoned`], with the guard, if a holder died.
    pub fn try_lock(&self) -> LockResult<ReentrantMutexGuard<'_, T>> {
        let owner = self.thread();
        if !self.again(owner) {
            let Some(taken) = self.raw().try_lock() else { return Err(LockError::WouldBlock) };
            self.first(owner, taken);
        }
        self.entered(ReentrantMutexGuard { held: Held { mutex: self, shared: false }, thread: PhantomData })
    }

    /// Takes the lock, at once if this thread has it, and otherwise waits for it for at most `timeout`.
    ///
    /// # Errors
    ///
    /// [`LockError::TimedOut`] if it wasn't free in that time; [`LockError::Poisoned`], with the guard, if a holder
    /// died.
    pub fn lock_timeout(&self, timeout: Duration) -> LockResult<ReentrantMutexGuard<'_, T>> {
        self.lock_until(wait::after(timeout))
    }

    /// As [`try_lock`](Self::try_lock), for an owner that isn't the thread.
    ///
    /// # Errors
    ///
    /// [`LockError::WouldBlock`] if another one has it; [`LockError::Poisoned`], with the guard, if a holder died.
    pub fn try_lock_as(&self, owner: &LockOwner) -> LockResult<OwnedReentrantGuard<'_, T>> {
        let owner = self.owner(owner.0);
        if !self.again_shared(owner) {
            let taken = self.raw().try_lock().ok_or(LockError::WouldBlock)?;
            self.first(owner, taken);
        }
        self.entered_as()
    }

    /// As [`lock_timeout`](Self::lock_timeout), for an owner that isn't the thread.
    ///
    /// # Errors
    ///
    /// [`LockError::TimedOut`] if it wasn't free in that time; [`LockError::Poisoned`], with the guard, if a holder
    /// died.
    pub fn lock_timeout_as(&self, owner: &LockOwner, timeout: Duration) -> LockResult<OwnedReentrantGuard<'_, T>> {
        self.lock_until_as(owner, wait::after(timeout))
    }

    /// As [`lock`](Self::lock), for an owner that isn't the thread.
    ///
    /// # Errors
    ///
    /// [`LockError::Poisoned`], with the guard, if a holder died.
    pub fn lock_as(&self, owner: &LockOwner) -> LockResult<OwnedReentrantGuard<'_, T>> {
        self.lock_until_as(owner, None)
    }

    /// Takes the lock, at once if `owner` has it, and otherwise waits for it without blocking the thread. The guard can
    /// be held across an `.await`.
    ///
    /// **Cancellation:** dropped, it waits no more; nobody else is kept from the lock by that.
    ///
    /// # Errors
    ///
    /// [`LockError::Poisoned`], with the guard, if a holder died.
    pub fn lock_async(
        &self,
        owner: &LockOwner,
    ) -> impl Future<Output = LockResult<OwnedReentrantGuard<'_, T>>> + Send + use<'_, T> {
        let owner = self.owner(owner.0);
        let mut slept = false;
        Waiting::new(move || self.step_as(owner, &mut slept))
    }

    /// Whether a holder died, and nobody has [repaired](ReentrantMutexGuard::repair) it since. A death shows only once
    /// somebody has tried to lock.
    #[must_use = "it has no effect but its result"]
    pub fn is_poisoned(&self) -> bool {
        poison::read(self.head().poison.load(Ordering::Relaxed)).is_some()
    }

    /// Says from outside that all is well again, as [`repair`](ReentrantMutexGuard::repair) does from inside.
    pub fn clear_poison(&self) {
        self.head().poison.store(0, Ordering::Relaxed);
    }

    fn lock_until(&self, until: Option<Instant>) -> LockResult<ReentrantMutexGuard<'_, T>> {
        let owner = self.thread();
        if !self.again(owner) {
            let Some(taken) = self.raw().try_lock().or_else(|| self.raw().lock_until(until)) else {
                return Err(LockError::TimedOut);
            };
            self.first(owner, taken);
        }
        self.entered(ReentrantMutexGuard { held: Held { mutex: self, shared: false }, thread: PhantomData })
    }

    fn lock_until_as(&self, owner: &LockOwner, until: Option<Instant>) -> LockResult<OwnedReentrantGuard<'_, T>> {
        let owner = self.owner(owner.0);
        let mut slept = false;
        wait::block(until, || self.step_as(owner, &mut slept)).unwrap_or(Err(LockError::TimedOut))
    }

    fn step_as(&self, owner: u64, slept: &mut bool) -> Step<LockResult<OwnedReentrantGuard<'_, T>>> {
        if !self.again_shared(owner) {
            match self.raw().step(slept) {
                Step::Ready(taken) => self.first(owner, taken),
                Step::Wait(change) => return Step::Wait(change),
            }
        }
        Step::Ready(self.entered_as())
    }

    fn again_shared(&self, owner: u64) -> bool {
        let _one = one_at_a_time();
        self.again(owner)
    }

    fn entered_as(&self) -> LockResult<OwnedReentrantGuard<'_, T>> {
        self.entered(OwnedReentrantGuard { held: Held { mutex: self, shared: true } })
    }

    fn owner(&self, number: u32) -> u64 {
        u64::from(self.object.board().seat().bits()) << 32 | u64::from(number)
    }

    fn thread(&self) -> u64 {
        self.owner(THREAD.with(|number| *number))
    }

    /// Takes it once more, if that's its owner.
    fn again(&self, owner: u64) -> bool {
        let head = self.head();
        // Written by ourselves, if it's us; and nobody else can have written this.
        if head.owner.load(Ordering::Relaxed) != owner {
            return false;
        }
        // A depth that would wrap takes more guards than fit in memory, or a peer's lie; either way this owner stays.
        let _ = head.depth.try_update(Ordering::Relaxed, Ordering::Relaxed, |depth| depth.checked_add(1));
        true
    }

    /// Now that the lock is ours.
    fn first(&self, owner: u64, taken: Taken) {
        let head = self.head();
        if let Taken::FromDead(pid) = taken {
            head.poison.store(poison::by(pid), Ordering::Relaxed);
        }
        head.depth.store(1, Ordering::Relaxed);
        head.owner.store(owner, Ordering::Relaxed);
    }

    fn entered<G>(&self, guard: G) -> LockResult<G> {
        match poison::read(self.head().poison.load(Ordering::Relaxed)) {
            None => Ok(guard),
            Some(pid) => Err(LockError::Poisoned { pid, guard }),
        }
    }

    fn raw(&self) -> RawLock<'_> {
        RawLock::new(&self.object, 0)
    }

    fn head(&self) -> &Head {
        self.object.at(0)
    }

    fn cell(&self) -> Cell<'_, T> {
        Cell::new(&self.object, size_of::<Head>())
    }
}

impl<T> ReentrantMutex<T> {
    /// Whether both are handles of the same lock.
    #[must_use = "it has no effect but its result"]
    pub fn is_same(&self, other: &Self) -> bool {
        self.object.is(&other.object)
    }
}

impl<T> Clone for ReentrantMutex<T> {
    fn clone(&self) -> Self {
        ReentrantMutex { object: self.object.clone(), value: PhantomData }
    }
}

impl<T> fmt::Debug for ReentrantMutex<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let head: &Head = self.object.at(0);
        f.debug_struct("ReentrantMutex")
            .field("locked", &RawLock::new(&self.object, 0).holder().is_some())
            .field("poisoned", &poison::read(head.poison.load(Ordering::Relaxed)).is_some())
            .finish_non_exhaustive()
    }
}

impl<T> Serialize for ReentrantMutex<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.object.serialize(serializer)
    }
}

impl<'de, T: Plain> Deserialize<'de> for ReentrantMutex<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let object = Object::deserialize(deserializer, KIND, shape_of::<T>(), Self::LEN)?;
        Ok(ReentrantMutex { object, value: PhantomData })
    }
}

/// One of the times that the owner has it.
struct Held<'a, T: Plain> {
    mutex: &'a ReentrantMutex<T>,
    /// Whether several threads may show this owner.
    shared: bool,
}

impl<T: Plain> Drop for Held<'_, T> {
    fn drop(&mut self) {
        if !self.mutex.raw().is_mine() {
            return;
        }
        let _one = self.shared.then(one_at_a_time);
        let head = self.mutex.head();
        let depth = head.depth.load(Ordering::Relaxed);
        if depth > 1 {
            head.depth.store(depth - 1, Ordering::Relaxed);
        } else {
            head.owner.store(0, Ordering::Relaxed);
            self.mutex.raw().unlock();
        }
    }
}

/// The thread has the lock. It is free when all the guards of the thread have been dropped.
#[must_use = "dropping the guard unlocks"]
pub struct ReentrantMutexGuard<'a, T: Plain> {
    held: Held<'a, T>,
    /// Not `Send`: it's the thread that has the lock.
    thread: PhantomData<*const ()>,
}

impl<T: Plain> ReentrantMutexGuard<'_, T> {
    /// The value.
    #[must_use = "it has no effect but its result"]
    pub fn get(&self) -> T {
        self.held.mutex.cell().get()
    }

    /// Replaces the value, in one step, also for a death in the middle.
    pub fn set(&self, value: T) {
        self.held.mutex.cell().set(&value);
    }

    /// Replaces the value by what `change` makes of it.
    ///
    /// # Panics
    ///
    /// If `change` does; the value stays.
    pub fn update(&self, change: impl FnOnce(T) -> T) {
        self.set(change(self.get()));
    }

    /// Says that the value is in order again after the death of a holder: those who lock after this one aren't told of
    /// it any more.
    pub fn repair(&self) {
        self.held.mutex.clear_poison();
    }
}

impl<T: Plain + fmt::Debug> fmt::Debug for ReentrantMutexGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ReentrantMutexGuard").field(&self.get()).finish()
    }
}

/// A [`LockOwner`] has the lock. It is free when all the guards of the owner have been dropped, wherever that is: they
/// can be sent to other threads.
#[must_use = "dropping the guard unlocks"]
pub struct OwnedReentrantGuard<'a, T: Plain> {
    held: Held<'a, T>,
}

impl<T: Plain> OwnedReentrantGuard<'_, T> {
    /// The value.
    #[must_use = "it has no effect but its result"]
    pub fn get(&self) -> T {
        // Another thread may have a guard of the same owner.
        let _one = one_at_a_time();
        self.held.mutex.cell().get()
    }

    /// Replaces the value, in one step, also for a death in the middle.
    pub fn set(&self, value: T) {
        let _one = one_at_a_time();
        self.held.mutex.cell().set(&value);
    }

    /// Replaces the value by what `change` makes of it, in one step.
    ///
    /// Another thread may have a guard of the same owner. If it has replaced the value while `change` was running,
    /// `change` is asked again, about the value that is there now. So it must not replace the value itself, which would
    /// never end.
    ///
    /// # Panics
    ///
    /// If `change` does; the value stays.
    pub fn update(&self, mut change: impl FnMut(T) -> T) {
        let cell = self.held.mutex.cell();
        let mut one = one_at_a_time();
        loop {
            let (value, version) = (cell.get(), cell.version());
            // Not while `change` runs, which may do anything.
            drop(one);
            let next = change(value);
            one = one_at_a_time();
            if cell.version() == version {
                cell.set(&next);
                return;
            }
        }
    }

    /// Says that the value is in order again after the death of a holder: those who lock after this one aren't told of
    /// it any more.
    pub fn repair(&self) {
        self.held.mutex.clear_poison();
    }
}

impl<T: Plain + fmt::Debug> fmt::Debug for OwnedReentrantGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("OwnedReentrantGuard").field(&self.get()).finish()
    }
}
