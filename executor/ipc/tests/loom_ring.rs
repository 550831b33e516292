//! How the two sides of a ring wake each other, under every interleaving with at most as many preemptions as each test
//! says (a switch from a thread that could go on; those that wait cost none), with a kernel that does what Linux
//! promises: a sleep begins only if the word has the expected value, and a wake-up of one wakes one of those who sleep.
//!
//! The file with the protocol is included here as it is; loom's atomics and its scheduler take the place of the
//! processor's and the kernel's. The ring is reduced to its two positions. There is no "look again after a while" in
//! this kernel, so a wake-up that gets lost is a deadlock, which loom reports; except where a process is killed, which
//! may take a wake-up along: there the kernel's clock goes off once.
#![cfg(any(target_os = "linux", target_os = "android"))]

use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
use loom::sync::{Arc, Condvar, Mutex};
use loom::thread;

#[path = "../src/channel/ring/protocol.rs"]
mod protocol;

use protocol::{ALL, ASLEEP};

/// One word to sleep on, and the kernel behind it.
struct Bell {
    word: AtomicU32,
    /// For each sleeper whether it sleeps. All that the kernel does is under this lock.
    asleep: Mutex<[bool; 3]>,
    /// Whether the kernel's clock has gone off: no sleep lasts any longer. Changed under the lock of the kernel.
    clock: AtomicU32,
    changed: [Condvar; 3],
}

impl Bell {
    fn new() -> Self {
        Bell {
            word: AtomicU32::new(0),
            asleep: Mutex::new([false; 3]),
            clock: AtomicU32::new(0),
            changed: [Condvar::new(), Condvar::new(), Condvar::new()],
        }
    }

    /// FUTEX_WAIT.
    fn sleep(&self, me: usize, expected: u32) {
        let mut asleep = self.asleep.lock().unwrap();
        // The read-modify-write is how loom is told that the kernel reads the newest value.
        if self.word.fetch_or(0, Ordering::SeqCst) != expected || self.clock.load(Ordering::Relaxed) != 0 {
            return;
        }
        asleep[me] = true;
        while asleep[me] {
            asleep = self.changed[me].wait(asleep).unwrap();
        }
    }

    /// FUTEX_WAKE.
    fn wake(&self, count: u32) -> usize {
        let mut asleep = self.asleep.lock().unwrap();
        let mut woken = 0;
        for (asleep, changed) in asleep.iter_mut().zip(&self.changed) {
            if *asleep && woken < count as usize {
                *asleep = false;
                changed.notify_one();
                woken += 1;
            }
        }
        woken
    }

    /// All sleeps end, now and from now on.
    fn strike(&self) {
        let mut asleep = self.asleep.lock().unwrap();
        self.clock.store(1, Ordering::Relaxed);
        for (asleep, changed) in asleep.iter_mut().zip(&self.changed) {
            *asleep = false;
            changed.notify_one();
        }
    }

    fn tell(&self, count: u32) {
        if protocol::must_wake(&self.word) {
            protocol::wake(&self.word, count, |count| self.wake(count));
        }
    }
}

/// A ring of `room` places.
struct Ring {
    room: u64,
    tail: AtomicU64,
    head: AtomicU64,
    /// What the records hold; written before the tail is stored.
    place: AtomicU64,
    producers: Mutex<()>,
    consumers: Mutex<()>,
    not_empty: Bell,
    not_full: Bell,
}

impl Ring {
    fn new(room: u64) -> Arc<Self> {
        Arc::new(Ring {
            room,
            tail: AtomicU64::new(0),
            head: AtomicU64::new(0),
            place: AtomicU64::new(0),
            producers: Mutex::new(()),
            consumers: Mutex::new(()),
            not_empty: Bell::new(),
            not_full: Bell::new(),
        })
    }

    fn put(&self, me: usize, flags: u32) {
        let mut expected = None;
        loop {
            let locked = self.producers.lock().unwrap();
            let tail = self.tail.load(Ordering::Relaxed);
            if tail - protocol::look(&self.head) < self.room {
                self.place.store(tail + 1, Ordering::Relaxed);
                protocol::publish(&self.tail, tail + 1);
                drop(locked);
                self.not_empty.tell(1);
                return;
            }
            match expected.take() {
                None => expected = Some(protocol::announce(&self.not_full.word, flags)),
                Some(value) => {
                    drop(locked);
                    self.not_full.sleep(me, value);
                }
            }
        }
    }

    fn get(&self, me: usize) {
        let mut expected = None;
        loop {
            let locked = self.consumers.lock().unwrap();
            let head = self.head.load(Ordering::Relaxed);
            if protocol::look(&self.tail) != head {
                assert!(self.place.load(Ordering::Relaxed) > head, "the record is there when the tail is");
                protocol::publish(&self.head, head + 1);
                drop(locked);
                self.not_full.tell(1);
                return;
            }
            match expected.take() {
                None => expected = Some(protocol::announce(&self.not_empty.word, ASLEEP)),
                Some(value) => {
                    drop(locked);
                    self.not_empty.sleep(me, value);
                }
            }
        }
    }
}

/// Models with three threads that lock are large: each preemption more takes ten to twenty times as long.
fn model(preemptions: usize, run: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(run);
}

#[test]
fn a_getter_that_sleeps_is_woken() {
    model(8, || {
        let ring = Ring::new(1);
        let getter = thread::spawn({
            let ring = ring.clone();
            move || ring.get(0)
        });
        ring.put(0, ASLEEP);
        getter.join().unwrap();
    });
}

#[test]
fn two_getters_get_two_records() {
    model(2, || {
        let ring = Ring::new(2);
        let getters = [0, 1].map(|me| {
            let ring = ring.clone();
            thread::spawn(move || ring.get(me))
        });
        ring.put(2, ASLEEP);
        ring.put(2, ASLEEP);
        for getter in getters {
            getter.join().unwrap();
        }
    });
}

#[test]
fn a_full_ring_passes_records_on_one_by_one() {
    for flags in [ASLEEP, ASLEEP | ALL] {
        model(3, move || {
            let ring = Ring::new(1);
            let getter = thread::spawn({
                let ring = ring.clone();
                move || {
                    ring.get(0);
                    ring.get(0);
                }
            });
            ring.put(1, flags);
            ring.put(1, flags);
            getter.join().unwrap();
        });
    }
}

#[test]
fn two_putters_share_the_room_that_two_gets_make() {
    for flags in [ASLEEP, ASLEEP | ALL] {
        model(1, move || {
            let ring = Ring::new(1);
            ring.put(2, flags);
            let putters = [0, 1].map(|me| {
                let ring = ring.clone();
                thread::spawn(move || ring.put(me, flags))
            });
            ring.get(2);
            ring.get(2);
            for putter in putters {
                putter.join().unwrap();
            }
        });
    }
}

/// A putter is killed after each step of its put. What it has published is got, what it hasn't is put by the next one;
/// and nobody sleeps for longer than until the kernel's clock goes off.
#[test]
fn a_putter_killed_at_any_step_harms_nobody() {
    for step in 0..5 {
        model(4, move || {
            let ring = Ring::new(1);
            let getter = thread::spawn({
                let ring = ring.clone();
                move || ring.get(0)
            });
            let victim =
                thread::spawn({
                    let ring = ring.clone();
                    move || {
                        // The lock is left with it; it dies with the thread, as a robust one passes on.
                        if step >= 1 {
                            ring.place.store(1, Ordering::Relaxed);
                        }
                        if step >= 2 {
                            protocol::publish(&ring.tail, 1);
                        }
                        if step >= 3 && protocol::must_wake(&ring.not_empty.word) {
                            // 3: killed between the change of the word and the wake-up; 4: after it.
                            protocol::wake(&ring.not_empty.word, 1, |count| {
                                if step >= 4 { ring.not_empty.wake(count) } else { 1 }
                            });
                        }
                    }
                });
            victim.join().unwrap();
            if step < 2 {
                ring.put(1, ASLEEP);
            } else if step < 4 {
                // What ends the getter's sleep is that it is a short one.
                ring.not_empty.strike();
            }
            getter.join().unwrap();
            assert_eq!(ring.head.load(Ordering::Relaxed), 1);
        });
    }
}

/// A getter is woken and killed before its get: the other one gets the record, at the latest when its sleep ends by
/// itself.
#[test]
fn a_getter_killed_after_its_wake_up_leaves_the_record_to_another() {
    model(3, || {
        let ring = Ring::new(1);
        let victim = thread::spawn({
            let ring = ring.clone();
            move || {
                let value = protocol::announce(&ring.not_empty.word, ASLEEP);
                if protocol::look(&ring.tail) == 0 {
                    ring.not_empty.sleep(0, value);
                }
            }
        });
        let other = thread::spawn({
            let ring = ring.clone();
            move || ring.get(1)
        });
        ring.put(2, ASLEEP);
        ring.not_empty.strike();
        victim.join().unwrap();
        other.join().unwrap();
    });
}
