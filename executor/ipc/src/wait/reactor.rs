//! The threads that sleep for futures, and the keeper, which is the first of them.
//!
//! A future can't sleep in the kernel, as that would block a thread of its runtime. So it leaves what it waits for with a thread of ours, which
//! sleeps for many at once (`FUTEX_WAITV` takes 128 words): for one doorbell of its own, which is rung when there is more to
//! wait for, and for the words of up to [`WORDS`] words of futures, among them the presences on which they depend. Those who release a lock need not know any of this:
//! they wake the word, as they would for a blocked thread.
//!
//! The first thread starts with the first board and lives as long as the process, since the process's presence hangs on it; it blocks
//! all signals. Others start when there are more futures than one can sleep for, and stay for the next time.
//!
//! # Wake-ups are not lost
//!
//! - A future is entered under the lock of its thread, and the doorbell is rung after that, so the next sleep includes it; the kernel
//!   compares the word at that moment.
//! - Of several words that change during one sleep the kernel names one, though it has woken us for all of them. So after each sleep all words are compared, and all futures whose words
//!   differ are woken. A word that was woken without having changed for good (it changed back) has been taken by somebody who will wake it again.
//! - A wake-up for one waiter may meet a future that has been dropped. Then it is passed on: by the drop, if the future had been taken out of the
//!   bed, and knows it; by the thread, if it finds nobody to wake for a word that has changed or was named.
//!
//! The part of it that this depends on is run through the interleavings by `tests/loom_reactor.rs`.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Waker;
use std::time::{Duration, Instant};

use super::{Change, Word, after, futex};
use crate::presence::robust;

mod bed;

pub(crate) use bed::Sleep;
use bed::{Bed, Sleeper};

/// For how many words one thread sleeps, besides its doorbell.
const WORDS: usize = futex::MOST_WORDS - 1;

/// How often all futures look again by themselves: as [`futex::RECHECK`] for blocked threads, but not as often, since there may be many.
const LOOK: Duration = Duration::from_millis(500);

fn run(bed: &Bed) -> ! {
    let mut looked = Instant::now();
    loop {
        bed.turn(|| {
            let due = looked.elapsed() > LOOK;
            if due {
                looked = Instant::now();
            }
            due
        });
    }
}

static BEDS: Mutex<Vec<Arc<Bed>>> = Mutex::new(Vec::new());

/// Starts the first thread, if it isn't there yet, and returns its thread id.
pub(crate) fn keeper() -> io::Result<u32> {
    static KEEPER: Mutex<Option<u32>> = Mutex::new(None);
    let mut keeper = KEEPER.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(tid) = *keeper {
        return Ok(tid);
    }
    let (sender, receiver) = std::sync::mpsc::channel();
    let bed = Arc::new(Bed::default());
    let its = bed.clone();
    start("polypool-ipc", move || {
        let ready = robust::adopt().map(|()| rustix::thread::gettid().as_raw_nonzero().get() as u32);
        let adopted = ready.is_ok();
        let _ = sender.send(ready);
        if adopted {
            run(&its);
        }
    })?;
    let tid = receiver.recv().map_err(|_| io::Error::other("the thread that keeps this process's presence died"))??;
    BEDS.lock().unwrap_or_else(PoisonError::into_inner).push(bed);
    *keeper = Some(tid);
    Ok(tid)
}

fn start(name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<()> {
    // Threads inherit the mask of their maker: signals are for the program's own threads.
    let all = crate::sys::block_signals();
    let started = std::thread::Builder::new().name(name.into()).stack_size(1 << 20).spawn(run);
    drop(all);
    started.map(drop)
}

/// Has `waker` woken when the change may have come.
pub(crate) fn sleep(mut change: Change, waker: Waker) -> Sleep {
    // Those beyond what the kernel takes are found dead when all look again.
    change.holders.truncate(WORDS - 1);
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let id = NEXT.fetch_add(1, Ordering::Relaxed);
    let over = Arc::new(AtomicBool::new(false));
    let word = change.word.0.clone();
    let mut sleeper = Some(Sleeper { id, change, waker, over: over.clone() });
    let mut beds = BEDS.lock().unwrap_or_else(PoisonError::into_inner);
    for bed in beds.iter() {
        if bed.enter(&mut sleeper, WORDS) {
            return Sleep { id, bed: Some(bed.clone()), over, word, used: false };
        }
    }
    let bed = Arc::new(Bed::default());
    bed.enter(&mut sleeper, usize::MAX);
    let its = bed.clone();
    match start("polypool-ipc-waits", move || run(&its)) {
        Ok(()) => {
            beds.push(bed.clone());
            Sleep { id, bed: Some(bed), over, word, used: false }
        }
        Err(_) => {
            // No thread to be had: the future looks again by itself, which costs time but is never wrong.
            drop(beds);
            std::thread::yield_now();
            bed.wake(|_| true);
            Sleep { id, bed: None, over, word, used: false }
        }
    }
}
