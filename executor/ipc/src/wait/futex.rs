//! Waiting for a word in shared memory to change, and waking those who wait.
//!
//! [`wait`] watches up to two words at once: the word of an object, and the presence word of the process on which it
//! depends, so that the death of that process ends the wait (`FUTEX_WAITV`, Linux 5.16). On older kernels, which can
//! wait on one word only, the second one is looked at every [`POLL`].

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::thread::ClockId;
use rustix::thread::futex::{self, Flags, Timespec, Wait, WaitFlags, WaitPtr, WaitvFlags};

use crate::sys;

/// How often a kernel without `FUTEX_WAITV` makes us look at the second word.
const POLL: Duration = Duration::from_millis(10);

/// How long a sleep lasts at most before the caller looks again by itself.
///
/// A process that is killed between being woken and acting on it takes its wake-up with it; no bookkeeping in user
/// space can tell. This is a matter of microseconds and of bad luck, so the others find out by looking now and then.
pub(crate) const RECHECK: Duration = Duration::from_millis(100);

/// The most words that the kernel waits for at once.
pub(crate) const MOST_WORDS: usize = 128;

/// Sleeps as long as every word has its expected value, at most until `until` (or [`RECHECK`]). May return early.
pub(crate) fn wait(words: &[(&AtomicU32, u32)], until: Option<Instant>) {
    let longest = until.map_or(RECHECK, |until| until.saturating_duration_since(Instant::now()).min(RECHECK));
    if let [(word, expected)] = words {
        wait_one(word, *expected, longest);
    } else if wait_any(words, longest).is_err_and(is_unavailable)
        && words.iter().all(|(word, value)| word.load(Ordering::SeqCst) == *value)
    {
        wait_one(words[0].0, words[0].1, longest.min(POLL));
    }
}

/// Whether an error of [`wait_any`] means that it can't be used here: unknown to the kernel, or forbidden by a sandbox.
/// (The others say that it's time to look again.)
pub(crate) fn is_unavailable(error: Errno) -> bool {
    !matches!(error, Errno::AGAIN | Errno::INTR | Errno::TIMEDOUT)
}

fn wait_one(word: &AtomicU32, expected: u32, longest: Duration) {
    // Whatever it says, changed, interrupted or too late: the caller looks again.
    let _ = futex::wait(word, Flags::empty(), expected, Some(&timespec(longest)));
}

/// Sleeps as long as every word has its expected value, at most `longest`; says which one was woken, if one was.
pub(crate) fn wait_any(words: &[(&AtomicU32, u32)], longest: Duration) -> Result<usize, Errno> {
    let now = sys::monotonic();
    let nanos = now.tv_nsec + i64::from(longest.subsec_nanos());
    let until = Timespec {
        tv_sec: now.tv_sec + i64::try_from(longest.as_secs()).unwrap_or(i64::MAX / 4) + nanos / 1_000_000_000,
        tv_nsec: nanos % 1_000_000_000,
    };
    let mut space = [Wait::new(); MOST_WORDS];
    let count = words.len().min(MOST_WORDS);
    for (entry, (word, expected)) in space.iter_mut().zip(words) {
        entry.val = u64::from(*expected);
        entry.uaddr = WaitPtr::new(word.as_ptr().cast());
        entry.flags = WaitFlags::SIZE_U32;
    }
    futex::waitv(&space[..count], WaitvFlags::empty(), Some(&until), ClockId::Monotonic)
}

/// Wakes up to `count` of those who wait for `word`; returns how many.
pub(crate) fn wake(word: &AtomicU32, count: u32) -> usize {
    futex::wake(word, Flags::empty(), count).unwrap_or(0)
}

/// Wakes all who wait for `word`.
pub(crate) fn wake_all(word: &AtomicU32) -> usize {
    wake(word, i32::MAX as u32)
}

fn timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(duration.subsec_nanos()),
    }
}
