//! What can come of locking instead of a plain guard, in one vocabulary for all objects.
//!
//! Three words mean the same everywhere: *would block* (a `try_` form had no luck), *timed out* (a `_timeout` form
//! waited in vain), and *poisoned* (a process died while it held the lock). Only locks can be poisoned, and then the
//! lock *has been taken*: the guard is in the error, so that the caller decides whether to go on. What semaphores,
//! barriers and the rest have to say beyond that stands in their own files.

use std::fmt;

/// Why a lock did not give a plain guard.
///
/// # Examples
///
/// ```
/// use polypool_ipc::{LockError, Mutex};
///
/// # fn main() -> std::io::Result<()> {
/// let balance = Mutex::new(100_u64)?;
/// let mut guard = match balance.lock() {
///     Ok(guard) => guard,
///     Err(LockError::Poisoned { pid, mut guard }) => {
///         // The value is the last one that was committed, whole. Is it what we want to go on with?
///         eprintln!("process {pid:?} died while it held the lock; the balance is {}", *guard);
///         guard.repair();
///         guard
///     }
///     Err(_) => unreachable!("lock() waits for as long as it takes"),
/// };
/// *guard -= 1;
/// # Ok(())
/// # }
/// ```
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum LockError<G> {
    /// The lock has been taken, but a process died while it held it, and nobody has said since that all is well again.
    #[error("{} died while it held the lock", process(*pid))]
    Poisoned {
        /// The process that died, if it is still known which one it was.
        pid: Option<u32>,
        /// The lock is held all the same. What it protects is as the last one who finished with it left it.
        guard: G,
    },
    /// Somebody else holds it. Only the `try_` forms say so.
    #[error("the lock is taken")]
    WouldBlock,
    /// Somebody else held it all the time. Only the `_timeout` forms say so.
    #[error("the lock was not free in time")]
    TimedOut,
}

impl<G> LockError<G> {
    /// The guard, if the lock was taken after all: for those whom a death doesn't concern.
    #[must_use = "dropping the guard unlocks"]
    pub fn into_guard(self) -> Option<G> {
        match self {
            LockError::Poisoned { guard, .. } => Some(guard),
            _ => None,
        }
    }

    /// The same with something else in place of the guard, such as nothing, so that the error can go where the guard
    /// can't.
    #[must_use = "it returns the error, it doesn't change it"]
    pub fn map<H>(self, change: impl FnOnce(G) -> H) -> LockError<H> {
        match self {
            LockError::Poisoned { pid, guard } => LockError::Poisoned { pid, guard: change(guard) },
            LockError::WouldBlock => LockError::WouldBlock,
            LockError::TimedOut => LockError::TimedOut,
        }
    }

    /// The same without the guard, which is dropped, and so unlocks. That's an error for `?`.
    #[must_use = "it returns the error, it doesn't change it"]
    pub fn without_guard(self) -> LockError<()> {
        self.map(drop)
    }
}

impl<G> fmt::Debug for LockError<G> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LockError::Poisoned { pid, .. } => f.debug_struct("Poisoned").field("pid", pid).finish_non_exhaustive(),
            LockError::WouldBlock => f.write_str("WouldBlock"),
            LockError::TimedOut => f.write_str("TimedOut"),
        }
    }
}

/// What the locking of something gives: its guard, or why not.
pub type LockResult<G> = Result<G, LockError<G>>;

/// Why a wait for something that can't be poisoned ended without it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WaitError {
    /// It would have been necessary to wait. Only the `try_` forms say so.
    #[error("it would have to be waited for")]
    WouldBlock,
    /// It did not come in time. Only the `_timeout` forms say so.
    #[error("it did not come in time")]
    TimedOut,
}

/// How errors name a process.
pub(super) fn process(pid: Option<u32>) -> String {
    pid.map_or_else(|| "a process".into(), |pid| format!("process {pid}"))
}

/// A death, as one word of shared memory keeps it.
pub(super) mod poison {
    const POISONED: u32 = 1 << 31;

    /// The word for the death of that process.
    pub(crate) fn by(pid: Option<u32>) -> u32 {
        POISONED | pid.unwrap_or(0) & !POISONED
    }

    /// Whose death it is, if the word tells of one.
    #[inline]
    pub(crate) fn read(word: u32) -> Option<Option<u32>> {
        (word & POISONED != 0).then(|| Some(word & !POISONED).filter(|pid| *pid != 0))
    }
}
