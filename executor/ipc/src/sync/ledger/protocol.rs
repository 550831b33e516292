//! How those who wait for a change of a ledger learn of it: functions over two words, all of them called under the
//! ledger's lock.
//!
//! The atomics' type comes from the parent module, so that the very same file runs over loom's atomics in
//! `tests/loom_ledger.rs`.
//!
//! A waiter looks at the state, decides that it must wait, announces that, and notes the version, all under the lock;
//! only then it gives the lock back and goes to sleep on the version. A change, under the lock too, is thus either
//! before the look (and was seen), or after the announcement: then it finds it, has raised the version, so that a sleep
//! that has not begun yet does not begin, and wakes those whose sleep has. All are woken and the announcement is taken
//! down; those who must wait longer announce themselves again.

use super::{AtomicU32, Ordering};

/// Makes the copy that was just written the current one. Returns the new version, and whether all who sleep on it are
/// to be woken, after the lock has been given back.
#[inline]
pub(super) fn commit(version: &AtomicU32, asleep: &AtomicU32) -> (u32, bool) {
    // Under the lock nobody else changes it; the next one to have the lock sees it by that.
    let now = version.load(Ordering::Relaxed).wrapping_add(1);
    // Should we be killed right here, the copy is whole: release.
    version.store(now, Ordering::Release);
    let wake = asleep.load(Ordering::Relaxed) != 0;
    if wake {
        asleep.store(0, Ordering::Relaxed);
    }
    (now, wake)
}

/// Says that somebody is about to sleep on the version that is current now.
#[inline]
pub(super) fn announce(asleep: &AtomicU32) {
    asleep.store(1, Ordering::Relaxed);
}
