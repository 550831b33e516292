//! A lock for what is found by name: its word names the holder by process number and start, which any process can check.
//!
//! The other locks name a seat on a board, which comes with the handle; somebody who attaches by name has no handle, and what is named
//! outlives every board. So here a dead holder is found out by asking the kernel for the process. That is slower (a few system calls instead of a
//! wake-up), so it is for moments only, such as writing a slot of a list; nobody sleeps in the kernel here until woken.
//!
//! Process numbers are those of one pid namespace: processes of several containers must not write to the same named list.

use std::sync::Once;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::process::Pid;

use crate::sys;
use crate::wait;

/// Process numbers of Linux are below 2²².
const PID_BITS: u32 = 22;

/// How often a waiter gives its time slice away before it asks whether the holder is alive, and begins to sleep.
const YIELDS: u32 = 32;

const LONGEST_SLEEP: Duration = Duration::from_millis(2);

/// This process, as the word of a lock names it.
fn me() -> u64 {
    static ME: AtomicU64 = AtomicU64::new(0);
    static FORKS: Once = Once::new();

    extern "C" fn forget() {
        ME.store(0, Ordering::Relaxed);
    }

    #[cold]
    fn find_out() -> u64 {
        FORKS.call_once(|| {
            // SAFETY: registers a function that does nothing but store to an atomic; a forked child is another process.
            unsafe { libc::pthread_atfork(None, None, Some(forget)) };
        });
        let me = u64::from(std::process::id()) & ((1 << PID_BITS) - 1) | sys::start_time() << PID_BITS;
        ME.store(me, Ordering::Relaxed);
        me
    }

    match ME.load(Ordering::Relaxed) {
        0 => find_out(),
        me => me,
    }
}

/// The number of this process, without asking the kernel each time.
pub(crate) fn pid() -> u32 {
    (me() & ((1 << PID_BITS) - 1)) as u32
}

fn is_gone(holder: u64) -> bool {
    let pid = i32::try_from(holder & ((1 << PID_BITS) - 1)).ok().and_then(Pid::from_raw);
    // Zero is nobody: a peer has lied.
    pid.is_none_or(|pid| sys::is_gone(pid, holder >> PID_BITS))
}

/// Takes the lock when it's free or its holder is gone, and gives it back when dropped.
pub(crate) struct PidLock<'a>(&'a AtomicU64);

impl<'a> PidLock<'a> {
    /// Blocks as long as a process that is alive holds it.
    #[inline]
    pub(crate) fn lock(word: &'a AtomicU64) -> Self {
        if word.compare_exchange(0, me(), Ordering::Acquire, Ordering::Relaxed).is_err() {
            PidLock::lock_slowly(word);
        }
        PidLock(word)
    }

    #[cold]
    fn lock_slowly(word: &AtomicU64) {
        let me = me();
        let mut round = 0_u32;
        let mut sleep = Duration::from_micros(50);
        loop {
            let found = word.load(Ordering::Relaxed);
            let free = found == 0 || (round > YIELDS + wait::spins() && found != me && is_gone(found));
            if free && word.compare_exchange(found, me, Ordering::Acquire, Ordering::Relaxed).is_ok() {
                return;
            }
            round = round.saturating_add(1);
            if round < wait::spins() {
                std::hint::spin_loop();
            } else if round < wait::spins() + YIELDS {
                std::thread::yield_now();
            } else {
                std::thread::sleep(sleep);
                sleep = (sleep * 2).min(LONGEST_SLEEP);
            }
        }
    }
}

impl Drop for PidLock<'_> {
    #[inline]
    fn drop(&mut self) {
        self.0.store(0, Ordering::Release);
    }
}
