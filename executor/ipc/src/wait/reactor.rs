//! The threads that sleep for futures, and the keeper, which is the first of them.
//!
//! A future can't sleep in the kernel, as that would block a thread of its runtime. So it leaves what it waits for with
//! a thread of ours, which sleeps for many at once (`FUTEX_WAITV` takes 128 words): for one doorbell of its own, which
//! is rung when there is more to wait for, and for the words of up to [`WORDS`] words of futures, among them the
//! presences on which they depend. Those who release a lock need not know any of this: they wake the word, as they
//! would for a blocked thread.
//!
//! The first thread starts with the first board and lives as long as the process, since the process's presence hangs on
//! it; it blocks all signals. Others start when there are more futures than one can sleep for, and stay for the next
//! time.
//!
//! # Wake-ups are not lost
//!
//! - A future is entered under the lock of its thread, and the doorbell is rung after that, so the next sleep includes
//!   it; the kernel compares the word at that moment.
//! - Of several words that change during one sleep the kernel names one, though it has woken us for all of them. So
//!   after each sleep all words are compared, and all futures whose words differ are woken. A word that was woken
//!   without having changed for good (it changed back) has been taken by somebody who will wake it again.
//! - A wake-up for one waiter may meet a future that has been dropped. Then it is passed on: by the drop, if the future
//!   had been taken out of the bed, and knows it; by the thread, if it finds nobody to wake for a word that has changed
//!   or was named.
//!
//! The part of it that this depends on is run through the interleavings by `tests/loom_reactor.rs`.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::{Duration, Instant};

use super::{Change, Word, after, futex};
use crate::forked::{self, generation};
use crate::presence::robust;

mod bed;

pub(crate) use bed::Sleep;
use bed::{Bed, Sleeper};

/// For how many words one thread sleeps, besides its doorbell.
const WORDS: usize = futex::MOST_WORDS - 1;

/// How often all futures look again by themselves: as [`futex::RECHECK`] for blocked threads, but not as often, since
/// there may be many.
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

/// The first thread's id.
static KEEPER: Mutex<Option<u32>> = Mutex::new(None);

/// The threads and what they sleep for, held over a fork.
pub(crate) struct Frozen {
    keeper: MutexGuard<'static, Option<u32>>,
    beds: MutexGuard<'static, Vec<Arc<Bed>>>,
}

pub(crate) fn freeze() -> Frozen {
    Frozen {
        keeper: KEEPER.lock().unwrap_or_else(PoisonError::into_inner),
        beds: BEDS.lock().unwrap_or_else(PoisonError::into_inner),
    }
}

impl Frozen {
    /// In a forked child: there are no such threads. What they slept for isn't freed, as they may have been in the
    /// middle of it.
    pub(crate) fn forget(&mut self) {
        *self.keeper = None;
        std::mem::forget(std::mem::take(&mut *self.beds));
    }
}

/// Starts the first thread, if it isn't there yet, and returns its thread id.
pub(crate) fn keeper() -> io::Result<u32> {
    forked::watch()?;
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
            return Sleep { id, bed: Some(bed.clone()), over, word, used: false, forks: generation() };
        }
    }
    let bed = Arc::new(Bed::default());
    bed.enter(&mut sleeper, usize::MAX);
    let its = bed.clone();
    // The first thread of a process whose objects have no board may be this one.
    match forked::watch().and_then(|()| start("polypool-ipc-waits", move || run(&its))) {
        Ok(()) => {
            beds.push(bed.clone());
            Sleep { id, bed: Some(bed), over, word, used: false, forks: generation() }
        }
        Err(_) => {
            // No thread to be had: the future looks again by itself, which costs time but is never wrong.
            drop(beds);
            std::thread::yield_now();
            bed.wake(|_| true);
            Sleep { id, bed: None, over, word, used: false, forks: generation() }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Wake};

    use super::*;
    use crate::memory::segment::Segment;
    use crate::wait::{Step, Waiting, block};

    const LIMIT: Duration = Duration::from_secs(60);

    struct Unpark(std::thread::Thread);

    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }

    /// Waits for one word and more holders than the kernel takes, until something has changed.
    fn until_changed(segment: &Arc<Segment>, holders: usize) -> impl FnMut() -> Step<()> + Unpin + use<'_> {
        move || {
            let words = || (0..=holders).map(|at| Word::new(segment, 4 * at));
            if words().any(|word| word.get().load(Ordering::SeqCst) != 0) {
                return Step::Ready(());
            }
            let holders = words().skip(1).map(|word| (word, 0)).collect();
            Step::Wait(Change { holders, ..Change::of(segment, 0, 0) })
        }
    }

    #[test]
    fn a_holder_beyond_those_that_the_kernel_takes_is_found_too() {
        keeper().unwrap();
        // The last one that fits, the first one that doesn't, and others.
        for changed in [0, 1, WORDS - 1, WORDS, WORDS + 1, 300] {
            let segment = Segment::create(4096).unwrap();
            std::thread::scope(|scope| {
                let (sender, receiver) = std::sync::mpsc::channel();
                let polled = sender.clone();
                let asleep = &segment;
                scope.spawn(move || {
                    let mut waits = pin!(Waiting::new(until_changed(asleep, 300)));
                    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
                    let begun = Instant::now();
                    while waits.as_mut().poll(&mut Context::from_waker(&waker)).is_pending() {
                        let _ = polled.send("asleep");
                        if begun.elapsed() > LIMIT {
                            return;
                        }
                        std::thread::park_timeout(LIMIT);
                    }
                    let _ = polled.send("awake");
                });
                assert_eq!(receiver.recv_timeout(LIMIT), Ok("asleep"));
                // As the kernel does it for a dead holder.
                let word = Word::new(&segment, 4 * changed);
                word.get().store(1, Ordering::SeqCst);
                futex::wake(word.get(), 1);
                let mut said = receiver.recv_timeout(LIMIT);
                while said == Ok("asleep") {
                    said = receiver.recv_timeout(LIMIT);
                }
                assert_eq!(said, Ok("awake"), "{changed}");
                drop(sender);
            });
        }
    }

    #[test]
    fn a_blocked_thread_finds_a_holder_beyond_those_that_the_kernel_takes() {
        for changed in [WORDS, WORDS + 1, 300] {
            let segment = Segment::create(4096).unwrap();
            std::thread::scope(|scope| {
                let (sender, receiver) = std::sync::mpsc::channel();
                let asleep = &segment;
                scope.spawn(move || {
                    let mut step = until_changed(asleep, 300);
                    sender.send(false).unwrap();
                    sender.send(block(super::super::after(LIMIT), &mut step).is_some()).unwrap();
                });
                assert_eq!(receiver.recv_timeout(LIMIT), Ok(false));
                let word = Word::new(&segment, 4 * changed);
                word.get().store(1, Ordering::SeqCst);
                futex::wake(word.get(), 1);
                assert_eq!(receiver.recv_timeout(2 * LIMIT), Ok(true), "{changed}");
            });
        }
    }

    #[test]
    fn those_who_wait_for_many_holders_share_a_thread_one_after_the_other() {
        let segment = Segment::create(4096).unwrap();
        let before = BEDS.lock().unwrap().len();
        for _ in 0..40 {
            let mut waits = pin!(Waiting::new(until_changed(&segment, 300)));
            assert!(waits.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        }
        // Other tests may have some as well.
        let after = BEDS.lock().unwrap().len();
        assert!(after < before + 20, "{before} became {after}");
    }

    /// A waker whose drop is that of another future that waits, as the last waker of a task is.
    struct Task(#[allow(dead_code)] Mutex<Option<Sleep>>);

    impl Wake for Task {
        fn wake(self: Arc<Self>) {}
    }

    #[test]
    fn the_waker_that_is_replaced_may_come_back() {
        let (tell, told) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let (segment, bed) = (Segment::create(4096).unwrap(), Arc::new(Bed::default()));
            let sleep = |id, waker| {
                let (change, over) = (Change::of(&segment, 0, 0), Arc::new(AtomicBool::new(false)));
                let word = change.word.0.clone();
                assert!(bed.enter(&mut Some(Sleeper { id, change, waker, over: over.clone() }), WORDS));
                Sleep { id, bed: Some(bed.clone()), over, word, used: false, forks: generation() }
            };
            let within = sleep(1, Waker::noop().clone());
            let outer = sleep(2, Waker::from(Arc::new(Task(Mutex::new(Some(within))))));
            assert!(!outer.is_over(Waker::noop()));
            assert!(bed.is_over(1, Waker::noop()), "the future within has gone");
            tell.send(()).unwrap();
        });
        assert_eq!(told.recv_timeout(LIMIT), Ok(()), "it hangs, or has failed");
    }

    #[test]
    fn a_sleep_of_a_forked_child_is_over() {
        let segment = Segment::create(4096).unwrap();
        let mut sleep = sleep(Change::of(&segment, 0, 0), Waker::noop().clone());
        assert!(!sleep.is_over(Waker::noop()));
        sleep.forks += 1;
        assert!(sleep.is_over(Waker::noop()), "the one who slept is a thread of the parent");
        sleep.forks -= 1;
    }
}
