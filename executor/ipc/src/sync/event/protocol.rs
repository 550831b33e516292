//! The transitions of an event's word: functions over one atomic, with nothing of memory, processes or the kernel.
//!
//! The atomic's type comes from the parent module, so that the very same file runs over loom's atomics in
//! `tests/loom_event.rs`. What the bits mean stands at the head of `event.rs`.
//!
//! Orderings: setting releases, and whoever finds the event set, or the count changed, acquires; all other changes are
//! read-modify-writes, which pass on what a `set` before them has released.

use super::{AtomicU32, Ordering};

const SET: u32 = 1;
const ASLEEP: u32 = 2;
const ONE: u32 = 4;
const COUNT: u32 = !3;

/// Sets it. Returns whether those who sleep on the word are to be woken.
pub(super) fn set(word: &AtomicU32) -> bool {
    let mut found = word.load(Ordering::Relaxed);
    loop {
        // The one who finds it set already writes as well: what it did before is to be seen, too.
        let next = if found & SET == 0 { (found & COUNT).wrapping_add(ONE) | SET } else { found };
        match word.compare_exchange_weak(found, next, Ordering::Release, Ordering::Relaxed) {
            Ok(_) => return found & ASLEEP != 0,
            Err(now) => found = now,
        }
    }
}

/// From now on one must wait.
pub(super) fn clear(word: &AtomicU32) {
    word.fetch_and(!SET, Ordering::Relaxed);
}

/// Whether it is set.
pub(super) fn is_set(word: &AtomicU32) -> bool {
    word.load(Ordering::Acquire) & SET != 0
}

/// From when on somebody waits, for [`look`].
pub(super) fn now(word: &AtomicU32) -> u32 {
    word.load(Ordering::Relaxed)
}

/// One look of somebody who waits `since` then. `Err`: not set since; to sleep as long as the word has this value.
pub(super) fn look(word: &AtomicU32, since: u32) -> Result<(), u32> {
    let mut found = word.load(Ordering::Acquire);
    loop {
        if found & SET != 0 || (found ^ since) & COUNT != 0 {
            return Ok(());
        }
        let marked = found | ASLEEP;
        match word.compare_exchange(found, marked, Ordering::Relaxed, Ordering::Acquire) {
            Ok(_) => return Err(marked),
            Err(now) => found = now,
        }
    }
}
