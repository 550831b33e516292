//! How the two sides of a ring tell each other what they did, and sleep and wake without losing a wake-up: functions
//! over atomics, with nothing of memory, processes or the kernel.
//!
//! The atomics' types come from the parent module, so that the very same file runs over loom's atomics in
//! `tests/loom_ring.rs`. Why no wake-up is lost stands at the head of `ring.rs`.

use super::{AtomicU32, AtomicU64, Ordering, fence};

/// Somebody may be asleep on the word.
pub(super) const ASLEEP: u32 = 1;

/// Some of them may have use for less than others: a wake-up must reach all.
pub(super) const ALL: u32 = 2;

const FLAGS: u32 = ASLEEP | ALL;
const STEP: u32 = 4;

/// Makes everything that was written before part of the ring, or given back to it, in one store.
#[inline]
pub(super) fn publish(position: &AtomicU64, value: u64) {
    position.store(value, Ordering::Release);
}

/// What has been published, and with it all that was written before.
#[inline]
pub(super) fn look(position: &AtomicU64) -> u64 {
    position.load(Ordering::Acquire)
}

/// Whether somebody is to be woken by the one who has just published.
#[inline]
pub(super) fn must_wake(word: &AtomicU32) -> bool {
    // Between our store of the position and this load; the pair of the fence in `announce`.
    fence(Ordering::SeqCst);
    word.load(Ordering::Relaxed) & ASLEEP != 0
}

/// Says that the caller is about to sleep; the value on which to do so. **After this** the caller looks at the position
/// once more, and sleeps only if there is still nothing for it.
pub(super) fn announce(word: &AtomicU32, flags: u32) -> u32 {
    let value = word.fetch_or(flags, Ordering::AcqRel) | flags;
    fence(Ordering::SeqCst);
    value
}

/// Wakes up to `count` of those who sleep on the word; `futex` wakes up to so many in the kernel and says how many.
pub(super) fn wake(word: &AtomicU32, count: u32, futex: impl Fn(u32) -> usize) {
    let mut found = word.load(Ordering::Relaxed);
    let next = loop {
        if found & ASLEEP == 0 {
            return;
        }
        // The flag stays as long as somebody may sleep. The value changes in any case, so that nobody falls asleep on
        // what was before.
        let next = if found & ALL == 0 { found.wrapping_add(STEP) } else { found.wrapping_add(STEP) & !FLAGS };
        match word.compare_exchange_weak(found, next, Ordering::AcqRel, Ordering::Relaxed) {
            Ok(_) => break next,
            Err(now) => found = now,
        }
    };
    if next & ASLEEP == 0 {
        futex(u32::MAX);
        return;
    }
    if futex(count) >= count as usize {
        return;
    }
    // All who slept are awake. If the word is still ours, the flag goes, and whoever fell asleep on it since then is
    // woken to set it again.
    let cleared = next.wrapping_add(STEP) & !FLAGS;
    if word.compare_exchange(next, cleared, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
        futex(u32::MAX);
    }
}
