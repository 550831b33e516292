//! Reading and writing a value in two copies: functions over its version, with nothing of memory or of what the copies
//! hold.
//!
//! The atomic's type comes from the parent module, so that the very same file runs over loom's atomics in
//! `tests/loom_twin.rs`. How it works stands at the head of `twin.rs`.

use super::{AtomicU64, Ordering, fence};

/// How often a reader looks again before it takes the lock, behind which nothing changes.
const LOOKS: usize = 64;

/// Reads what `copy` makes of the current copy; its argument is 0 or 1. `None`: it kept changing.
///
/// What `copy` sees may be torn and is then thrown away, so it must be ready for any bytes.
#[inline]
pub(crate) fn read<R>(version: &AtomicU64, mut copy: impl FnMut(usize) -> R) -> Option<R> {
    for _ in 0..LOOKS {
        let before = version.load(Ordering::Acquire);
        let seen = copy((before & 1) as usize);
        // Whoever has seen a byte of the change after the next one sees the version of the next one as well.
        fence(Ordering::Acquire);
        if version.load(Ordering::Relaxed) == before {
            return Some(seen);
        }
        std::hint::spin_loop();
    }
    None
}

/// Reads under the lock.
#[inline]
pub(crate) fn read_locked<R>(version: &AtomicU64, copy: impl FnOnce(usize) -> R) -> R {
    copy((version.load(Ordering::Relaxed) & 1) as usize)
}

/// Has `write` fill the free copy, and makes it the current one. Under the lock.
#[inline]
pub(crate) fn publish(version: &AtomicU64, write: impl FnOnce(usize)) {
    let next = version.load(Ordering::Relaxed).wrapping_add(1);
    // The version that made the other copy current is seen before any byte of this one changes.
    fence(Ordering::Release);
    write((next & 1) as usize);
    version.store(next, Ordering::Release);
}
