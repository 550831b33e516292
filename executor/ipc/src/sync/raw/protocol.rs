//! The transitions of a lock word: functions over one atomic, with nothing of memory, processes or sleeping.
//!
//! The atomic's type comes from the parent module, so that the very same file runs over loom's atomics in
//! `tests/loom_lock.rs`. What the bits and the transitions mean stands at the head of `raw.rs`.
//!
//! Orderings: taking acquires and giving back releases, so whoever holds the lock sees what the holders before it did.
//! Marking the word before a sleep publishes nothing, and the kernel compares the word under a lock of its own, with
//! full ordering.

use super::{AtomicU32, Ordering};

/// Somebody may be asleep.
pub(super) const ASLEEP: u32 = 1 << 31;

/// The bits that name the holder.
pub(super) const HOLDER: u32 = (1 << 30) - 1;

/// What came of an attempt.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Attempt {
    /// It is ours, given back by the last holder.
    Mine,
    /// It is ours, and its last holder, of these bits, is dead.
    Inherited(u32),
    /// A living process holds it; to sleep as long as the word has this value.
    Held(u32),
}

/// Takes the lock if it is free and nobody waits; the common case.
#[inline]
pub(super) fn take(word: &AtomicU32, me: u32) -> Result<(), u32> {
    word.compare_exchange(0, me, Ordering::Acquire, Ordering::Relaxed).map(drop)
}

/// Takes the lock if it is free or its holder is dead. With `mark`, a word that is held is marked, so that its unlock
/// wakes; `slept` says whether this waiter has slept before, and so can't know whether others still do.
pub(super) fn attempt(word: &AtomicU32, me: u32, mark: bool, slept: bool, is_dead: impl Fn(u32) -> bool) -> Attempt {
    let mut found = word.load(Ordering::Relaxed);
    loop {
        let holder = found & HOLDER;
        let (next, outcome) = if holder == 0 {
            (me | if slept { ASLEEP } else { found & ASLEEP }, Attempt::Mine)
        } else if is_dead(holder) {
            // Those who slept on a dead holder are all woken, but may be on their way back to sleep.
            (me | ASLEEP, Attempt::Inherited(holder))
        } else if !mark || found & ASLEEP != 0 {
            return Attempt::Held(found);
        } else {
            (found | ASLEEP, Attempt::Held(found | ASLEEP))
        };
        match word.compare_exchange_weak(found, next, Ordering::Acquire, Ordering::Relaxed) {
            Ok(_) => return outcome,
            Err(now) => found = now,
        }
    }
}

/// Gives the lock back; whether somebody is to be woken.
#[inline]
pub(super) fn give_back(word: &AtomicU32) -> bool {
    word.swap(0, Ordering::Release) & ASLEEP != 0
}
