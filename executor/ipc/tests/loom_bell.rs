//! Bells, and the two that sleep on them, a condition and a barrier, under every interleaving up to the bounds given
//! with each test, with a kernel that does what Linux promises: a sleep begins only if the words have the expected
//! values, a wake-up of one wakes one of those who sleep, and the death of a process marks its presence and wakes one.
//!
//! The bell and the slots of the condition are included here as they are; the barrier is one in small, over the same
//! bell. A mutex of loom stands for the ledger's lock (whose own protocol is in `loom_lock.rs`). There is no "look
//! again after a while" in this kernel, so a wake-up that gets lost is a deadlock, which loom reports.
#![cfg(any(target_os = "linux", target_os = "android"))]

use loom::sync::atomic::{AtomicU32, Ordering};
use loom::sync::{Arc, Condvar, Mutex};
use loom::thread;
use zerocopy::FromZeros;

#[path = "../src/sync/bell/protocol.rs"]
mod bell;

#[path = "../src/sync/condvar/slots.rs"]
#[allow(dead_code, reason = "how much of the state is copied is nothing of the protocol")]
mod slots;

/// The seats of the processes: one that may die, and others.
const MORTAL: u32 = 7;
const ONE: u32 = 1;
const TWO: u32 = 2;

const ALIVE: u32 = 1;
const DEAD: u32 = 0;

/// How many slots the condition has.
const SLOTS: usize = 4;

/// Bells, the presence of the mortal one, and the beds of two sleepers.
struct Kernel {
    bells: [AtomicU32; SLOTS + 1],
    presence: AtomicU32,
    /// What each sleeper sleeps on: a bell, and perhaps the presence. Everything the kernel does is under this lock.
    beds: Mutex<[Option<(usize, bool)>; 2]>,
    changed: [Condvar; 2],
}

impl Kernel {
    fn new() -> Self {
        Kernel {
            bells: [0; SLOTS + 1].map(AtomicU32::new),
            presence: AtomicU32::new(ALIVE),
            beds: Mutex::new([None; 2]),
            changed: [Condvar::new(), Condvar::new()],
        }
    }

    /// FUTEX_WAITV.
    fn sleep(&self, sleeper: usize, bell: usize, heard: u32, watches: bool) {
        let mut beds = self.beds.lock().unwrap();
        // The read-modify-write is how loom is told that the kernel reads the newest value.
        if self.bells[bell].fetch_or(0, Ordering::SeqCst) != heard
            || (watches && self.presence.fetch_or(0, Ordering::SeqCst) != ALIVE)
        {
            return;
        }
        beds[sleeper] = Some((bell, watches));
        while beds[sleeper].is_some() {
            beds = self.changed[sleeper].wait(beds).unwrap();
        }
    }

    /// FUTEX_WAKE.
    fn wake(&self, mut count: usize, meant: impl Fn((usize, bool)) -> bool) {
        let mut beds = self.beds.lock().unwrap();
        for (bed, changed) in beds.iter_mut().zip(&self.changed) {
            if count > 0 && bed.is_some_and(&meant) {
                *bed = None;
                count -= 1;
                changed.notify_one();
            }
        }
    }

    fn wake_all(&self, bell: usize) {
        self.wake(usize::MAX, |(at, _)| at == bell);
    }

    /// What the kernel does when the mortal process dies.
    fn die(&self) {
        self.presence.swap(DEAD, Ordering::SeqCst);
        self.wake(1, |(_, watches)| watches);
    }

    /// As `Board::is_dead`, and `Board::tell` if so.
    fn is_dead(&self, seat: u32) -> bool {
        let is_dead = seat == MORTAL && self.presence.load(Ordering::Acquire) == DEAD;
        if is_dead {
            self.wake(usize::MAX, |(_, watches)| watches);
        }
        is_dead
    }
}

struct Condition {
    state: Mutex<slots::State>,
    kernel: Kernel,
}

type Slot = (usize, u32);

impl Condition {
    fn new() -> Arc<Self> {
        Arc::new(Condition { state: Mutex::new(slots::State::new_zeroed()), kernel: Kernel::new() })
    }

    /// A step of the ledger, which may ring, and the wake-ups after it.
    fn change<R>(&self, step: impl FnOnce(&mut slots::State, &mut dyn FnMut(usize)) -> R) -> R {
        let mut rung = Vec::new();
        let mut state = self.state.lock().unwrap();
        let result = step(&mut state, &mut |at| {
            bell::ring(&self.kernel.bells[at]);
            rung.push(at);
        });
        drop(state);
        rung.into_iter().for_each(|bell| self.kernel.wake_all(bell));
        result
    }

    fn bury(&self, state: &mut slots::State, me: u32, mut ring: &mut dyn FnMut(usize)) {
        state.bury(me, |seat| self.kernel.is_dead(seat), &mut ring);
    }

    fn enter(&self, me: u32) -> Slot {
        self.change(|state, _| state.enter(me)).unwrap()
    }

    fn notify(&self, count: usize) -> usize {
        self.change(|state, mut ring| {
            self.bury(state, ONE, ring);
            state.notify(count, &mut ring)
        })
    }

    /// As `Waiter::step`, again and again.
    fn wait(&self, sleeper: usize, slot: Slot, me: u32) {
        loop {
            let sleep = self.change(|state, ring| {
                let heard = bell::heard(&self.kernel.bells[slot.0]);
                self.bury(state, me, ring);
                (!state.is_over(slot, me)).then(|| (heard, state.others(me).any(|seat| seat == MORTAL)))
            });
            match sleep {
                Some((heard, watches)) => self.kernel.sleep(sleeper, slot.0, heard, watches),
                None => return,
            }
        }
    }

    fn leave(&self, slot: Slot, me: u32) -> Option<bool> {
        self.change(|state, _| state.leave(slot, me))
    }
}

fn model(preemptions: usize, run: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(run);
}

fn spawn<T: Send + Sync + 'static>(shared: &Arc<T>, run: impl FnOnce(&T) + 'static) -> thread::JoinHandle<()> {
    let shared = shared.clone();
    thread::spawn(move || run(&shared))
}

#[test]
fn a_notification_between_the_look_and_the_sleep_is_not_lost() {
    model(9, || {
        let condition = Condition::new();
        let slot = condition.enter(TWO);
        let waiter = spawn(&condition, move |condition| {
            condition.wait(0, slot, TWO);
            assert_eq!(condition.leave(slot, TWO), Some(true));
        });
        assert_eq!(condition.notify(1), 1);
        waiter.join().unwrap();
    });
}

#[test]
fn two_notifications_are_for_two() {
    model(3, || {
        let condition = Condition::new();
        let waiters = [0, 1].map(|sleeper| {
            let me = ONE + sleeper as u32;
            let slot = condition.enter(me);
            spawn(&condition, move |condition| {
                condition.wait(sleeper, slot, me);
                assert_eq!(condition.leave(slot, me), Some(true));
            })
        });
        assert_eq!(condition.notify(1) + condition.notify(1), 2);
        waiters.into_iter().for_each(|waiter| waiter.join().unwrap());
    });
}

/// The mortal one waits the longest and is thus notified, before it dies or after; in either case the other one gets to
/// know.
#[test]
fn the_notification_of_one_who_is_killed_passes_on() {
    model(4, || {
        let condition = Condition::new();
        condition.enter(MORTAL);
        let slot = condition.enter(TWO);
        let waiter = spawn(&condition, move |condition| condition.wait(0, slot, TWO));
        let killer = spawn(&condition, |condition| condition.kernel.die());
        assert_eq!(condition.notify(1), 1);
        waiter.join().unwrap();
        killer.join().unwrap();
    });
}

/// The kernel wakes one of those who watch, and that one finds notifications for both.
#[test]
fn the_notifications_of_one_who_is_killed_pass_on_to_two() {
    model(2, || {
        let condition = Condition::new();
        condition.enter(MORTAL);
        condition.enter(MORTAL);
        let waiters = [0, 1].map(|sleeper| {
            let me = ONE + sleeper as u32;
            let slot = condition.enter(me);
            spawn(&condition, move |condition| condition.wait(sleeper, slot, me))
        });
        assert_eq!(condition.notify(2), 2);
        condition.kernel.die();
        waiters.into_iter().for_each(|waiter| waiter.join().unwrap());
    });
}

#[test]
fn the_notification_of_a_dropped_future_passes_on() {
    model(5, || {
        let condition = Condition::new();
        let dropped = condition.enter(ONE);
        let slot = condition.enter(TWO);
        let waiter = spawn(&condition, move |condition| condition.wait(0, slot, TWO));
        let dropper = spawn(&condition, move |condition| {
            // As the drop of `Waiter`.
            if condition.leave(dropped, ONE).unwrap() {
                condition.notify(1);
            }
        });
        assert_eq!(condition.notify(1), 1);
        waiter.join().unwrap();
        dropper.join().unwrap();
    });
}

#[test]
fn those_without_a_slot_are_woken_together() {
    model(3, || {
        let condition = Condition::new();
        (0..SLOTS).for_each(|_| _ = condition.enter(ONE));
        let bell = |condition: &Condition| bell::heard(&condition.kernel.bells[slots::CROWD]);
        let waiters = [0, 1].map(|sleeper| {
            let heard = condition.change(|state, _| {
                assert!(state.enter(TWO).is_none());
                state.enter_crowd();
                bell(&condition)
            });
            spawn(&condition, move |condition| {
                while bell(condition) == heard {
                    condition.kernel.sleep(sleeper, slots::CROWD, heard, false);
                }
            })
        });
        condition.notify(1);
        waiters.into_iter().for_each(|waiter| waiter.join().unwrap());
    });
}

/// A barrier in small: who has come, in which round, and whether it is broken.
#[derive(Default)]
struct Round {
    number: u32,
    come: Vec<u32>,
    broken: bool,
}

struct Barrier {
    parties: usize,
    state: Mutex<Round>,
    kernel: Kernel,
}

impl Barrier {
    fn new(parties: usize) -> Arc<Self> {
        Arc::new(Barrier { parties, state: Mutex::default(), kernel: Kernel::new() })
    }

    fn change<R>(&self, step: impl FnOnce(&mut Round, &dyn Fn()) -> R) -> R {
        let word = &self.kernel.bells[0];
        let mut state = self.state.lock().unwrap();
        let before = bell::heard(word);
        let result = step(&mut state, &|| bell::ring(word));
        let after = bell::heard(word);
        drop(state);
        if before != after {
            self.kernel.wake_all(0);
        }
        result
    }

    /// Comes; returns the round.
    fn arrive(&self, me: u32) -> u32 {
        self.change(|round, ring| {
            // Those who sleep are to watch this process too; or go through, if it's the last one.
            ring();
            let number = round.number;
            round.come.push(me);
            if round.come.len() == self.parties {
                round.number += 1;
                round.come.clear();
            }
            number
        })
    }

    /// Whether it was let through; otherwise it was broken.
    fn wait(&self, sleeper: usize, me: u32) -> bool {
        let number = self.arrive(me);
        loop {
            let mut heard = 0;
            let outcome = self.change(|round, ring| {
                if round.come.iter().any(|seat| self.kernel.is_dead(*seat)) {
                    round.come.retain(|seat| *seat != MORTAL);
                    round.broken = true;
                    ring();
                }
                heard = bell::heard(&self.kernel.bells[0]);
                match () {
                    () if round.number != number => Ok(true),
                    () if round.broken => Ok(false),
                    () => Err(round.come.contains(&MORTAL)),
                }
            });
            match outcome {
                Ok(through) => return through,
                Err(watches) => self.kernel.sleep(sleeper, 0, heard, watches),
            }
        }
    }
}

#[test]
fn two_go_through_a_barrier_round_after_round() {
    model(3, || {
        let barrier = Barrier::new(2);
        let other = spawn(&barrier, |barrier| assert!(barrier.wait(0, ONE) && barrier.wait(0, ONE)));
        assert!(barrier.wait(1, TWO) && barrier.wait(1, TWO));
        other.join().unwrap();
    });
}

/// It comes, perhaps when the others sleep already and don't watch it, and dies.
#[test]
fn all_who_wait_at_a_barrier_learn_of_the_death_of_one_who_came_later() {
    model(2, || {
        let barrier = Barrier::new(4);
        let others = [ONE, TWO].map(|me| spawn(&barrier, move |barrier| assert!(!barrier.wait(me as usize - 1, me))));
        barrier.arrive(MORTAL);
        barrier.kernel.die();
        others.into_iter().for_each(|other| other.join().unwrap());
    });
}
