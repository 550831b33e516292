//! The lock protocol under every interleaving, with a kernel that does what Linux promises: a sleep begins only if the
//! words have the expected values, a wake-up of one wakes one of those who sleep, and the death of a process marks its
//! presence and wakes one.
//!
//! The file with the transitions is included here as it is; loom's atomics and its scheduler take the place of the
//! processor's and the kernel's. There is no "look again after a while" in this kernel, so a wake-up that gets lost is
//! a deadlock, which loom reports.
#![cfg(any(target_os = "linux", target_os = "android"))]

use loom::sync::atomic::{AtomicU32, Ordering};
use loom::sync::{Arc, Condvar, Mutex};
use loom::thread;

#[path = "../src/sync/raw/protocol.rs"]
mod protocol;

use protocol::Attempt;

const ALIVE: u32 = 1;
const DEAD: u32 = 0;

/// Two words, a lock and the presence of its first holder, and a kernel with a queue of one bed for each of two
/// sleepers.
struct World {
    word: AtomicU32,
    presence: AtomicU32,
    /// For each sleeper, whether it sleeps. Everything the kernel does is under this lock.
    beds: Mutex<[Bed; 2]>,
    changed: [Condvar; 2],
    inside: AtomicU32,
    /// What the lock protects: a counter that is loaded and stored, without any ordering of its own.
    count: AtomicU32,
}

#[derive(Clone, Copy, PartialEq)]
enum Bed {
    Empty,
    /// Sleeps on the lock word, and perhaps on the presence.
    Asleep {
        presence: bool,
    },
}

/// The holder whose presence is modelled.
const MORTAL: u32 = 7;

impl World {
    fn new(word: u32) -> Arc<Self> {
        Arc::new(World {
            word: AtomicU32::new(word),
            presence: AtomicU32::new(ALIVE),
            beds: Mutex::new([Bed::Empty; 2]),
            changed: [Condvar::new(), Condvar::new()],
            inside: AtomicU32::new(0),
            count: AtomicU32::new(0),
        })
    }

    fn is_dead(&self, holder: u32) -> bool {
        holder == MORTAL && self.presence.load(Ordering::Acquire) == DEAD
    }

    /// FUTEX_WAITV of the sleeper `me`.
    fn sleep(&self, me: usize, expected: u32) {
        let presence = expected & protocol::HOLDER == MORTAL;
        let mut beds = self.beds.lock().unwrap();
        // The read-modify-write is how loom is told that the kernel reads the newest value.
        let word = self.word.fetch_or(0, Ordering::SeqCst);
        if word != expected || (presence && self.presence.fetch_or(0, Ordering::SeqCst) != ALIVE) {
            return;
        }
        beds[me] = Bed::Asleep { presence };
        while beds[me] != Bed::Empty {
            beds = self.changed[me].wait(beds).unwrap();
        }
    }

    /// FUTEX_WAKE of up to `count` on one of the words.
    fn wake(&self, on_presence: bool, mut count: usize) {
        let mut beds = self.beds.lock().unwrap();
        for (bed, changed) in beds.iter_mut().zip(&self.changed) {
            let meant = match *bed {
                Bed::Empty => false,
                Bed::Asleep { presence } => presence || !on_presence,
            };
            if meant && count > 0 {
                count -= 1;
                *bed = Bed::Empty;
                changed.notify_one();
            }
        }
    }

    /// What the kernel does when the mortal dies.
    fn die(&self) {
        // A compare-and-swap, as in the kernel.
        self.presence.swap(DEAD, Ordering::SeqCst);
        self.wake(true, 1);
    }

    /// As `RawLock::lock`, without the spinning; whether it was inherited.
    fn lock(&self, sleeper: usize, me: u32) -> bool {
        let mut slept = false;
        let inherited = loop {
            if !slept && protocol::take(&self.word, me).is_ok() {
                break false;
            }
            match protocol::attempt(&self.word, me, true, slept, |holder| self.is_dead(holder)) {
                Attempt::Mine => break false,
                Attempt::Inherited(_) => {
                    self.wake(true, usize::MAX);
                    break true;
                }
                Attempt::Held(found) => {
                    slept = true;
                    self.sleep(sleeper, found);
                }
            }
        };
        assert_eq!(self.inside.fetch_add(1, Ordering::Relaxed), 0, "two hold the lock");
        self.count.store(self.count.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        inherited
    }

    fn unlock(&self) {
        self.inside.fetch_sub(1, Ordering::Relaxed);
        if protocol::give_back(&self.word) {
            self.wake(false, 1);
        }
    }
}

fn model(run: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(run);
}

#[test]
fn two_who_lock_and_unlock_exclude_each_other_and_both_get_through() {
    model(|| {
        let world = World::new(0);
        let other = thread::spawn({
            let world = world.clone();
            move || {
                world.lock(0, 1);
                world.unlock();
            }
        });
        world.lock(1, 2);
        world.unlock();
        other.join().unwrap();
        assert_eq!(world.word.load(Ordering::Relaxed) & protocol::HOLDER, 0);
        assert_eq!(world.count.load(Ordering::Relaxed), 2, "one did not see what the other had done");
    });
}

#[test]
fn two_sleepers_behind_one_holder_both_get_through() {
    model(|| {
        let world = World::new(3);
        world.inside.store(1, Ordering::Relaxed);
        let others: Vec<_> = (0..2)
            .map(|sleeper| {
                let world = world.clone();
                thread::spawn(move || {
                    world.lock(sleeper, sleeper as u32 + 1);
                    world.unlock();
                })
            })
            .collect();
        world.unlock();
        for other in others {
            other.join().unwrap();
        }
    });
}

#[test]
fn when_the_holder_dies_exactly_one_inherits_and_all_get_through() {
    model(|| {
        let world = World::new(MORTAL);
        let others: Vec<_> = (0..2)
            .map(|sleeper| {
                let world = world.clone();
                thread::spawn(move || {
                    let inherited = world.lock(sleeper, sleeper as u32 + 1);
                    world.unlock();
                    inherited
                })
            })
            .collect();
        world.die();
        let inherited = others.into_iter().map(|other| usize::from(other.join().unwrap())).sum::<usize>();
        assert_eq!(inherited, 1);
    });
}

#[test]
fn a_holder_that_dies_while_it_gives_the_lock_back_leaves_it_free_or_inherited() {
    model(|| {
        let world = World::new(MORTAL);
        let other = thread::spawn({
            let world = world.clone();
            move || {
                world.lock(0, 1);
                world.unlock();
            }
        });
        // The word is free, and the process is killed before it can wake anybody.
        let would_wake = protocol::give_back(&world.word);
        world.die();
        if would_wake {
            // What `RECHECK` does in the end: the sleeper looks again.
            world.wake(false, 1);
        }
        other.join().unwrap();
    });
}
