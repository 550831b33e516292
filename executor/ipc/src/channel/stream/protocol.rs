//! Who wakes whom in one direction of a stream: pure functions over three words, with nothing of memory or sockets.
//!
//! The atomics come from the parent module, so that the very same file runs over loom's in `tests/loom_stream.rs`.
//!
//! Each side has a *position*, which only it moves, and a *sleep word*, which only it writes: odd while it is asleep or
//! about to be, and another number for each sleep. The side that moves its position looks at the other's sleep word,
//! and if that is odd rings the doorbell: a byte in a socket, which stays there until the sleeper takes it.
//!
//! ```text
//!    mover:    position = new            sleeper:   sleep = odd, new number        (lie_down)
//!              ─── fence ───                        ─── fence ───
//!              sleep odd?  → ring                   position still as seen?  → sleep at the doorbell
//! ```
//!
//! **No wake-up is lost.** Both fences are sequentially consistent, so one of them is first. If it is the sleeper's,
//! the mover sees the odd word and rings; if it is the mover's, the sleeper sees the new position and stays up. As the
//! byte stays in the socket, it does not matter whether the sleeper has reached it yet.
//!
//! **The mover never clears the sleeper's word.** It would have to do so either before it rings, and then a mover that
//! is killed in between has taken the wake-up along; or after, and then it may wipe out the next sleep of a sleeper
//! that has woken meanwhile. Instead it remembers for which number it has rung, and does so once for each.
//!
//! **A mover may hesitate** after it has seen an odd word: as soon as the word is another one, nobody needs to be rung
//! for.
//! The sleeper has got up, and will not sleep again without a look at the position after another fence, which comes
//! after the mover's (or else the mover would not have seen the older number behind its own).

use super::{AtomicU32, AtomicU64, Ordering, fence};

/// Moves a position: what lies before it is the other side's from now on.
#[inline]
pub(super) fn publish(position: &AtomicU64, to: u64) {
    position.store(to, Ordering::Release);
}

/// After one or several [`publish`]: the number of the other side's sleep, if it is asleep and must be woken.
#[inline]
pub(super) fn sleeper(sleep: &AtomicU32) -> Option<u32> {
    fence(Ordering::SeqCst);
    // Acquire: what the sleeper says about its sleep, as for how much it waits, is written before the word.
    let word = sleep.load(Ordering::Acquire);
    (word & 1 != 0).then_some(word)
}

/// Whether the sleep with that number, which was seen by [`sleeper`], is over without a bell.
#[inline]
#[allow(dead_code, reason = "not every mover hesitates")]
pub(super) fn is_over(sleep: &AtomicU32, word: u32) -> bool {
    sleep.load(Ordering::Relaxed) != word
}

/// Begins a sleep. The caller looks at the other side's position once more after this, before it really sleeps, and
/// calls [`get_up`] afterwards.
#[inline]
pub(super) fn lie_down(sleep: &AtomicU32) -> u32 {
    let word = (sleep.load(Ordering::Relaxed) | 1).wrapping_add(2);
    sleep.store(word, Ordering::Release);
    fence(Ordering::SeqCst);
    word
}

/// Ends the sleep with that number.
#[inline]
pub(super) fn get_up(sleep: &AtomicU32, word: u32) {
    sleep.store(word & !1, Ordering::Relaxed);
}

/// For which sleep a process has rung already.
#[derive(Debug, Default)]
pub(super) struct Rung(AtomicU32);

impl Rung {
    /// Whether that sleep is yet to be rung for; from now on it isn't.
    #[inline]
    pub(super) fn is_new(&self, sleep: u32) -> bool {
        // Only called by the one who holds its side's lock.
        let new = self.0.load(Ordering::Relaxed) != sleep;
        if new {
            self.0.store(sleep, Ordering::Relaxed);
        }
        new
    }
}
