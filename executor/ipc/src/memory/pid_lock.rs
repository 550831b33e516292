//! A lock for what is found by name: its word names the holder by process number and start, which any process can
//! check.
//!
//! The other locks name a seat on a board, which comes with the handle; somebody who attaches by name has no handle,
//! and what is named outlives every board. So here a dead holder is found out by asking the kernel for the process.
//! That is slower (a few system calls instead of a wake-up), so it is for moments only, such as writing a slot of a
//! list. An unlock wakes one who waits; a death wakes nobody, so those who wait look again every few milliseconds, or
//! as futures twice a second.
//!
//! Process numbers are those of one pid namespace: processes of several containers must not write to the same named
//! list.

use std::mem::offset_of;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::process::Pid;

use super::segment::{Layout, Segment};
use crate::wait::{self, Change, Step, futex};
use crate::{forked, sys};

/// Process numbers of Linux are below 2²².
const PID_BITS: u32 = 22;

/// Somebody may be asleep.
const ASLEEP: u64 = 1 << 63;

/// How long a thread sleeps before it looks whether the holder is alive, at first and at most.
const SHORTEST_SLEEP: Duration = Duration::from_micros(200);
const LONGEST_SLEEP: Duration = Duration::from_millis(5);

/// What [`me`] has found out.
static ME: AtomicU64 = AtomicU64::new(0);

/// In a forked child: it is another process.
pub(crate) fn forget() {
    ME.store(0, Ordering::Relaxed);
}

/// This process, as the word of a lock names it.
fn me() -> u64 {
    #[cold]
    fn find_out() -> u64 {
        let me = (u64::from(std::process::id()) & ((1 << PID_BITS) - 1) | sys::start_time() << PID_BITS) & !ASLEEP;
        // Remembered only if a child of ours is going to forget it.
        if forked::watch().is_ok() {
            ME.store(me, Ordering::Relaxed);
        }
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

/// The memory of a lock. All zero is free.
#[repr(C)]
pub(crate) struct PidWords {
    /// The holder, and [`ASLEEP`]; 0: free.
    holder: AtomicU64,
    /// What those sleep on who wait: raised by an unlock that finds [`ASLEEP`].
    bell: AtomicU32,
    unused: AtomicU32,
}

// SAFETY: repr(C) and atomics only.
unsafe impl Layout for PidWords {}

/// The lock at one place of a segment.
#[derive(Clone, Copy)]
pub(crate) struct PidMutex<'a> {
    segment: &'a Arc<Segment>,
    offset: usize,
    words: &'a PidWords,
}

/// Gives the lock back when dropped.
pub(crate) struct PidLock<'a>(&'a PidWords);

impl<'a> PidMutex<'a> {
    #[inline]
    pub(crate) fn new(segment: &'a Arc<Segment>, offset: usize) -> Self {
        PidMutex { segment, offset, words: segment.at(offset) }
    }

    /// Takes the lock if it's free.
    #[inline]
    fn take(self) -> Option<PidLock<'a>> {
        let taken = self.words.holder.compare_exchange(0, me(), Ordering::Acquire, Ordering::Relaxed).is_ok();
        taken.then(|| PidLock(self.words))
    }

    /// Takes the lock if it's free or its holder is gone.
    pub(crate) fn try_lock(self) -> Option<PidLock<'a>> {
        self.take().or_else(|| self.attempt(false, false).ok())
    }

    /// Blocks as long as a process that is alive holds it.
    #[inline]
    pub(crate) fn lock(self) -> PidLock<'a> {
        match self.take() {
            Some(lock) => lock,
            None => loop {
                if let Some(lock) = self.lock_until(None) {
                    break lock;
                }
            },
        }
    }

    /// Blocks until the lock is ours, or the time has come: then `None`.
    #[cold]
    pub(crate) fn lock_until(self, until: Option<Instant>) -> Option<PidLock<'a>> {
        for _ in 0..wait::spins() {
            if let Some(lock) = self.take() {
                return Some(lock);
            }
            std::hint::spin_loop();
        }
        let (mut slept, mut longest) = (false, SHORTEST_SLEEP);
        loop {
            let heard = self.words.bell.load(Ordering::SeqCst);
            if let Ok(lock) = self.attempt(true, slept) {
                return Some(lock);
            }
            let now = Instant::now();
            if until.is_some_and(|until| until <= now) {
                return None;
            }
            // Not for long: a holder that is killed wakes nobody.
            let rest = until.map_or(longest, |until| until.saturating_duration_since(now).min(longest));
            futex::wait(&[(&self.words.bell, heard)], now.checked_add(rest));
            slept = true;
            longest = (longest * 2).min(LONGEST_SLEEP);
        }
    }

    /// One attempt of a future; `slept` is its memory from one attempt to the next. A dead holder is found out by
    /// looking now and then.
    pub(crate) fn step(self, slept: &mut bool) -> Step<PidLock<'a>> {
        let heard = self.words.bell.load(Ordering::SeqCst);
        match self.attempt(true, *slept) {
            Ok(lock) => Step::Ready(lock),
            Err(()) => {
                *slept = true;
                Step::Wait(Change::of(self.segment, self.offset + offset_of!(PidWords, bell), heard))
            }
        }
    }

    /// With `mark`, a lock that is held is marked, so that its unlock wakes; `slept` says whether this waiter has slept
    /// before, and so can't know whether others still do.
    fn attempt(self, mark: bool, slept: bool) -> Result<PidLock<'a>, ()> {
        let me = me();
        let mut found = self.words.holder.load(Ordering::SeqCst);
        loop {
            let holder = found & !ASLEEP;
            let free = holder == 0 || (holder != me && is_gone(holder));
            let next = match (free, mark) {
                (true, _) => me | if slept { ASLEEP } else { found & ASLEEP },
                (false, true) if found & ASLEEP == 0 => found | ASLEEP,
                (false, _) => return Err(()),
            };
            match self.words.holder.compare_exchange(found, next, Ordering::SeqCst, Ordering::SeqCst) {
                Ok(_) if free => return Ok(PidLock(self.words)),
                Ok(_) => return Err(()),
                Err(now) => found = now,
            }
        }
    }
}

impl PidLock<'_> {
    /// Whether it isn't the parent's, from which we were forked off under it.
    #[inline]
    pub(crate) fn is_mine(&self) -> bool {
        self.0.holder.load(Ordering::Relaxed) & !ASLEEP == me()
    }
}

impl Drop for PidLock<'_> {
    #[inline]
    fn drop(&mut self) {
        let words = self.0;
        if !self.is_mine() {
            return;
        }
        if words.holder.swap(0, Ordering::SeqCst) & ASLEEP != 0 {
            words.bell.fetch_add(1, Ordering::SeqCst);
            futex::wake(&words.bell, 1);
        }
    }
}
