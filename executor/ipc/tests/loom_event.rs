//! The event under every interleaving, up to the bounds given with each test, and every outcome that the memory
//! orderings allow, with a kernel that does what Linux promises: a sleep begins only if the word has the expected
//! value.
//!
//! The file with the transitions is included here as it is; loom's atomics and its scheduler take the place of the
//! processor's and the kernel's. There is no "look again after a while" in this kernel, so a wake-up that gets lost is
//! a deadlock, which loom reports.
#![cfg(any(target_os = "linux", target_os = "android"))]

use loom::sync::atomic::{AtomicU32, Ordering};
use loom::sync::{Arc, Condvar, Mutex};
use loom::thread;

#[path = "../src/sync/event/protocol.rs"]
mod protocol;

struct Event {
    word: AtomicU32,
    /// What was written before the event was set.
    data: AtomicU32,
    /// The kernel's own lock, and how often it has woken all who slept.
    woken: Mutex<u32>,
    changed: Condvar,
}

impl Event {
    fn new() -> Arc<Self> {
        Arc::new(Event {
            word: AtomicU32::new(0),
            data: AtomicU32::new(0),
            woken: Mutex::new(0),
            changed: Condvar::new(),
        })
    }

    fn set(&self) {
        if protocol::set(&self.word) {
            *self.woken.lock().unwrap() += 1;
            self.changed.notify_all();
        }
    }

    fn wait(&self, since: u32) {
        while let Err(expected) = protocol::look(&self.word, since) {
            let mut woken = self.woken.lock().unwrap();
            // The read-modify-write is how loom is told that the kernel reads the newest value.
            if self.word.fetch_or(0, Ordering::SeqCst) == expected {
                let before = *woken;
                while *woken == before {
                    woken = self.changed.wait(woken).unwrap();
                }
            }
        }
    }
}

/// Without a bound, that is through every interleaving.
fn model(run: impl Fn() + Sync + Send + 'static) {
    loom::model::Builder::new().check(run);
}

fn bounded(preemptions: usize, run: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(run);
}

fn spawn(event: &Arc<Event>, run: impl FnOnce(&Event) + 'static) -> thread::JoinHandle<()> {
    let event = event.clone();
    thread::spawn(move || run(&event))
}

#[test]
fn who_waits_is_freed_and_sees_what_was_done_before() {
    model(|| {
        let event = Event::new();
        let waiter = spawn(&event, |event| {
            event.wait(protocol::now(&event.word));
            assert_eq!(event.data.load(Ordering::Relaxed), 1);
            assert!(protocol::is_set(&event.word));
        });
        event.data.store(1, Ordering::Relaxed);
        event.set();
        waiter.join().unwrap();
    });
}

#[test]
fn two_who_wait_are_freed_by_one_set() {
    bounded(3, || {
        let event = Event::new();
        let waiters = [0; 2].map(|_| spawn(&event, |event| event.wait(protocol::now(&event.word))));
        event.set();
        waiters.into_iter().for_each(|waiter| waiter.join().unwrap());
    });
}

#[test]
fn a_clear_that_follows_at_once_takes_nothing_from_those_who_waited() {
    model(|| {
        let event = Event::new();
        let since = protocol::now(&event.word);
        let waiter = spawn(&event, move |event| {
            event.wait(since);
            assert_eq!(event.data.load(Ordering::Relaxed), 1);
        });
        event.data.store(1, Ordering::Relaxed);
        event.set();
        protocol::clear(&event.word);
        waiter.join().unwrap();
        assert!(!protocol::is_set(&event.word));
    });
}

#[test]
fn a_clear_in_between_hides_nothing_of_a_set_by_another() {
    bounded(3, || {
        let event = Event::new();
        let waiter = spawn(&event, |event| {
            event.wait(0);
            // Of which of the two sets it was, nobody can say; of one it was.
            assert_ne!(event.data.load(Ordering::Relaxed), 0);
        });
        let other = spawn(&event, |event| {
            event.data.swap(1, Ordering::Relaxed);
            event.set();
            protocol::clear(&event.word);
        });
        event.data.swap(2, Ordering::Relaxed);
        event.set();
        waiter.join().unwrap();
        other.join().unwrap();
    });
}

#[test]
fn one_who_waits_again_is_freed_by_the_next_set() {
    bounded(2, || {
        let (asked, answered) = (Event::new(), Event::new());
        let other = thread::spawn({
            let (asked, answered) = (asked.clone(), answered.clone());
            move || {
                for _ in 0..2 {
                    asked.wait(protocol::now(&asked.word));
                    protocol::clear(&asked.word);
                    answered.set();
                }
            }
        });
        for _ in 0..2 {
            asked.set();
            answered.wait(protocol::now(&answered.word));
            protocol::clear(&answered.word);
        }
        other.join().unwrap();
    });
}
