//! A value in two copies under every interleaving, up to the bounds given with each test, and every outcome that the
//! memory orderings allow.
//!
//! The file with the protocol is included here as it is; loom's atomics take the place of the processor's, and a mutex
//! of loom that of the writers' lock (whose own protocol is in `loom_lock.rs`). A copy is two words, written and read
//! without any order of their own, as the bytes of a real one are.
#![cfg(any(target_os = "linux", target_os = "android"))]

use loom::sync::atomic::{AtomicU64, Ordering, fence};
use loom::sync::{Arc, Mutex};
use loom::thread;

#[path = "../src/values/twin/protocol.rs"]
#[allow(unreachable_pub, reason = "it is visible in the whole crate there")]
mod protocol;

struct Twin {
    version: AtomicU64,
    copies: [[AtomicU64; 2]; 2],
    writers: Mutex<()>,
}

impl Twin {
    fn new() -> Arc<Self> {
        Arc::new(Twin {
            version: AtomicU64::new(0),
            copies: [0; 2].map(|_| [0; 2].map(AtomicU64::new)),
            writers: Mutex::new(()),
        })
    }

    fn copy(&self, at: usize) -> (u64, u64) {
        let [one, two] = &self.copies[at];
        (one.load(Ordering::Relaxed), two.load(Ordering::Relaxed))
    }

    fn write(&self, value: u64) {
        let _locked = self.writers.lock().unwrap();
        protocol::publish(&self.version, |at| {
            self.copies[at].iter().for_each(|word| word.store(value, Ordering::Relaxed))
        });
    }

    /// A writer that is killed after so many words. (Its lock passes on, as a robust one does.)
    fn write_killed(&self, value: u64, words: usize) {
        let _locked = self.writers.lock().unwrap();
        let killed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            protocol::publish(&self.version, |at| {
                self.copies[at][..words].iter().for_each(|word| word.store(value, Ordering::Relaxed));
                std::panic::resume_unwind(Box::new("killed"));
            });
        }));
        assert!(killed.is_err());
    }

    /// One whole value, or `None` if it kept changing.
    fn read(&self) -> Option<u64> {
        protocol::read(&self.version, |at| self.copy(at)).map(|(one, two)| {
            assert_eq!(one, two, "a torn value");
            one
        })
    }

    fn read_locked(&self) -> u64 {
        let _locked = self.writers.lock().unwrap();
        let (one, two) = protocol::read_locked(&self.version, |at| self.copy(at));
        assert_eq!(one, two, "a torn value");
        one
    }
}

fn model(preemptions: Option<usize>, run: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = preemptions;
    builder.check(run);
}

fn spawn<R: 'static>(twin: &Arc<Twin>, run: impl FnOnce(&Twin) -> R + 'static) -> thread::JoinHandle<R> {
    let twin = twin.clone();
    thread::spawn(move || run(&twin))
}

#[test]
fn a_reader_sees_whole_values_and_never_an_older_one_again() {
    model(Some(2), || {
        let twin = Twin::new();
        let reader = spawn(&twin, |twin| {
            let (first, second) = (twin.read(), twin.read());
            // Three changes are too few to keep it from reading.
            assert!(first.unwrap() <= second.unwrap());
        });
        (1..=3).for_each(|value| twin.write(value));
        reader.join().unwrap();
    });
}

#[test]
fn a_reader_sees_whole_values_of_two_writers() {
    model(Some(2), || {
        let twin = Twin::new();
        let reader = spawn(&twin, |twin| assert!(twin.read().unwrap() <= 3));
        let writer = spawn(&twin, |twin| twin.write(1));
        twin.write(2);
        twin.write(3);
        reader.join().unwrap();
        writer.join().unwrap();
        assert!(matches!(twin.read_locked(), 1 | 3));
    });
}

#[test]
fn a_writer_that_is_killed_half_way_has_changed_nothing() {
    for words in 0..=2 {
        model(Some(3), move || {
            let twin = Twin::new();
            let reader = spawn(&twin, |twin| assert!(matches!(twin.read(), Some(0 | 1 | 3))));
            twin.write(1);
            twin.write_killed(2, words);
            assert_eq!(twin.read_locked(), 1);
            twin.write(3);
            assert_eq!(twin.read_locked(), 3);
            reader.join().unwrap();
        });
    }
}

#[test]
fn a_reader_sees_what_was_done_before_the_value_was_written() {
    model(None, || {
        let twin = Twin::new();
        let other = Arc::new(AtomicU64::new(0));
        let reader = thread::spawn({
            let (twin, other) = (twin.clone(), other.clone());
            move || {
                if twin.read() == Some(1) {
                    assert_eq!(other.load(Ordering::Relaxed), 5);
                }
            }
        });
        other.store(5, Ordering::Relaxed);
        twin.write(1);
        reader.join().unwrap();
    });
}
