//! The thread that sleeps for futures, under every interleaving up to the bounds given with each test, with a kernel
//! that does what Linux promises: a sleep on several words begins only if all have their expected values, a wake-up
//! wakes as many as it says of those who sleep on the word, and a sleeper on several words learns of one that it was
//! woken by.
//!
//! The file with the sleeping is included here as it is; loom's atomics, locks and scheduler take the place of the
//! processor's and the kernel's. There is no "look again after a while" in this kernel, so a wake-up that gets lost is
//! a deadlock, which loom reports.
#![cfg(any(target_os = "linux", target_os = "android"))]

use std::task::{Wake, Waker};
use std::time::{Duration, Instant};

use loom::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use loom::sync::{Arc, Condvar, Mutex};
use loom::thread;

#[path = "../src/wait/reactor/bed.rs"]
mod bed;

use bed::{Bed, Sleep, Sleeper};

/// A word, and what keeps it.
#[derive(Clone)]
struct Word(Arc<AtomicU32>);

impl Word {
    fn get(&self) -> &AtomicU32 {
        &self.0
    }
}

/// As in `wait.rs`.
struct Change {
    word: (Word, u32),
    holders: Vec<(Word, u32)>,
}

impl Change {
    fn pairs(&self) -> impl Iterator<Item = (&AtomicU32, u32)> {
        std::iter::once(&self.word).chain(&self.holders).map(|(word, value)| (word.get(), *value))
    }

    fn has_come(&self) -> bool {
        self.pairs().any(|(word, value)| word.load(Ordering::SeqCst) != value)
    }
}

/// Nobody forks.
fn generation() -> u32 {
    0
}

fn after(_timeout: Duration) -> Option<Instant> {
    unreachable!("this kernel is not an old one")
}

/// The kernel.
mod futex {
    use super::*;

    pub(crate) const RECHECK: Duration = Duration::from_millis(100);

    /// Who sleeps: the addresses of the words, and by which of them it has been woken.
    struct Bed {
        id: u32,
        words: Vec<(usize, bool)>,
    }

    #[derive(Default)]
    struct Beds {
        next: u32,
        beds: Vec<Bed>,
    }

    loom::lazy_static! {
        static ref BEDS: Mutex<Beds> = Mutex::default();
        static ref CHANGED: Condvar = Condvar::new();
    }

    fn address(word: &AtomicU32) -> usize {
        std::ptr::from_ref(word).addr()
    }

    /// FUTEX_WAITV; the error says that a word has another value.
    pub(crate) fn wait_any(words: &[(&AtomicU32, u32)], _longest: Duration) -> Result<usize, ()> {
        let mut beds = BEDS.lock().unwrap();
        // The read-modify-write is how loom is told that the kernel reads the newest value.
        if words.iter().any(|(word, value)| word.fetch_or(0, Ordering::SeqCst) != *value) {
            return Err(());
        }
        let id = beds.next;
        beds.next += 1;
        beds.beds.push(Bed { id, words: words.iter().map(|(word, _)| (address(word), false)).collect() });
        loop {
            let at = beds.beds.iter().position(|bed| bed.id == id).unwrap();
            // Of several words, the kernel names one.
            if let Some(index) = beds.beds[at].words.iter().rposition(|(_, woken)| *woken) {
                beds.beds.remove(at);
                return Ok(index);
            }
            beds = CHANGED.wait(beds).unwrap();
        }
    }

    pub(crate) fn wait(_words: &[(&AtomicU32, u32)], _until: Option<Instant>) {
        unreachable!("this kernel is not an old one")
    }

    pub(crate) fn is_unavailable(_error: ()) -> bool {
        false
    }

    /// A thread that blocks at a word until it is woken, or the word differs.
    pub(crate) fn wait_one(word: &AtomicU32, value: u32) {
        let _ = wait_any(&[(word, value)], RECHECK);
    }

    /// FUTEX_WAKE. A sleeper that has been woken by one word can be woken by others, too, until it runs.
    pub(crate) fn wake(word: &AtomicU32, count: u32) -> usize {
        let mut beds = BEDS.lock().unwrap();
        let mut woken = 0;
        for bed in &mut beds.beds {
            for place in bed.words.iter_mut().filter(|place| **place == (address(word), false)) {
                if woken < count as usize {
                    place.1 = true;
                    woken += 1;
                }
            }
        }
        if woken > 0 {
            CHANGED.notify_all();
        }
        woken
    }

    pub(crate) fn wake_all(word: &AtomicU32) -> usize {
        wake(word, u32::MAX)
    }
}

/// The waker of a future that a thread waits for, and of the end.
struct Flag {
    woken: Mutex<bool>,
    changed: Condvar,
}

impl Flag {
    fn new() -> std::sync::Arc<Self> {
        std::sync::Arc::new(Flag { woken: Mutex::new(false), changed: Condvar::new() })
    }

    fn wait(&self) {
        let mut woken = self.woken.lock().unwrap();
        while !*woken {
            woken = self.changed.wait(woken).unwrap();
        }
    }
}

impl Wake for Flag {
    fn wake(self: std::sync::Arc<Self>) {
        *self.woken.lock().unwrap() = true;
        self.changed.notify_all();
    }
}

/// A thread that sleeps for futures until it is told to end, by a future of its own.
struct Reactor {
    bed: Arc<Bed>,
    end: Word,
    thread: thread::JoinHandle<()>,
}

impl Reactor {
    fn start() -> Self {
        let (bed, end, ended) = (Arc::new(Bed::default()), word(), Flag::new());
        enter(&bed, 0, &end, Waker::from(ended.clone()));
        let thread = thread::spawn({
            let bed = bed.clone();
            move || {
                while !*ended.woken.lock().unwrap() {
                    bed.turn(|| false);
                }
            }
        });
        Reactor { bed, end, thread }
    }

    fn end(self) {
        change(&self.end);
        self.thread.join().unwrap();
    }
}

fn word() -> Word {
    Word(Arc::new(AtomicU32::new(0)))
}

/// The word changes, and one is woken.
fn change(word: &Word) {
    word.get().swap(1, Ordering::SeqCst);
    futex::wake(word.get(), 1);
}

fn changes(word: &Word) -> thread::JoinHandle<()> {
    let word = word.clone();
    thread::spawn(move || change(&word))
}

/// A thread that blocks until the word has changed.
fn blocks(word: &Word) -> thread::JoinHandle<()> {
    let word = word.clone();
    thread::spawn(move || {
        while word.get().load(Ordering::SeqCst) == 0 {
            futex::wait_one(word.get(), 0);
        }
    })
}

fn enter(bed: &Arc<Bed>, id: u64, word: &Word, waker: Waker) -> (u64, Arc<AtomicBool>) {
    let over = Arc::new(AtomicBool::new(false));
    let change = Change { word: (word.clone(), 0), holders: Vec::new() };
    assert!(bed.enter(&mut Some(Sleeper { id, change, waker, over: over.clone() }), 9));
    (id, over)
}

/// A future that waits for the word to change.
fn sleep(bed: &Arc<Bed>, id: u64, word: &Word, waker: Waker) -> Sleep {
    let (id, over) = enter(bed, id, word, waker);
    Sleep { id, bed: Some(bed.clone()), over, word: word.clone(), used: false, forks: 0 }
}

fn model(preemptions: usize, run: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.max_branches = 10_000;
    builder.check(run);
}

#[test]
fn a_future_that_is_entered_while_the_thread_sleeps_is_woken() {
    model(3, || {
        let (reactor, word, woken) = (Reactor::start(), word(), Flag::new());
        let changer = changes(&word);
        let sleep = sleep(&reactor.bed, 1, &word, Waker::from(woken.clone()));
        woken.wait();
        assert!(sleep.is_over(Waker::noop()));
        sleep.used();
        changer.join().unwrap();
        reactor.end();
    });
}

#[test]
fn the_wake_up_of_a_dropped_future_passes_on() {
    model(2, || {
        let (reactor, word) = (Reactor::start(), word());
        let sleep = sleep(&reactor.bed, 1, &word, Waker::noop().clone());
        let blocked = blocks(&word);
        let changer = changes(&word);
        drop(sleep);
        blocked.join().unwrap();
        changer.join().unwrap();
        reactor.end();
    });
}

/// Both words wake the thread at once, and it learns of one; the other's future is dropped.
#[test]
fn the_wake_up_of_a_dropped_future_passes_on_though_another_was_named() {
    model(2, || {
        let (one, two, woken) = (word(), word(), Flag::new());
        let reactor = Reactor::start();
        let first = sleep(&reactor.bed, 1, &one, Waker::noop().clone());
        let second = sleep(&reactor.bed, 2, &two, Waker::from(woken.clone()));
        let blocked = blocks(&one);
        let changer = thread::spawn({
            let (one, two) = (one.clone(), two.clone());
            move || {
                change(&one);
                change(&two);
            }
        });
        drop(first);
        woken.wait();
        second.used();
        blocked.join().unwrap();
        changer.join().unwrap();
        reactor.end();
    });
}
