//! [`Condvar`]: to wait under a lock for what another one changes under it. Python's `multiprocessing.Condition`.
//!
//! Everybody who waits has a slot in a ledger, with the process it belongs to and its turn, and sleeps on a bell of its
//! own. To notify is to mark the slots of the longest waiting and to ring their bells. A slot is given back only when
//! its owner has the lock again; so a notification whose receiver is killed, or a future that is dropped, before it
//! could act on it, is still there to be found, and passes on to the next one. Those who wait watch the processes of
//! the others for that.
//!
//! Python raises an error when somebody waits or notifies without the lock. Here waiting takes the guard, so it can't
//! be done without; and to notify without the lock is allowed, as with std's: a waiter has its slot before it unlocks.

use std::fmt;
use std::io;
use std::mem::size_of;
use std::sync::atomic::AtomicU32;
use std::time::{Duration, Instant};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::bell::Bell;
use super::error::LockResult;
use super::ledger::{Ledger, Verdict};
use super::mutex::MutexGuard;
use crate::memory::segment::Layout;
use crate::object::{Kind, Object};
use crate::presence::{Board, Seat};
use crate::values::Plain;
use crate::wait::{self, Step, Waiting};

mod slots;

use slots::{CROWD, State};

const KIND: Kind = *b"cond";

/// How many can wait with a slot of their own.
const SLOTS: usize = 500;

/// How many other processes one waiter watches.
const WATCHED: usize = 16;

#[repr(C)]
struct Bells {
    slots: [AtomicU32; SLOTS],
    crowd: AtomicU32,
}

// SAFETY: repr(C) and atomics only.
unsafe impl Layout for Bells {}

const LEN: usize = Ledger::<State>::LEN + size_of::<Bells>();

/// The bells that were rung in a step, whose sleepers are to be woken after it.
type Rung = Vec<usize>;

/// A place to wait for a change of what a [`Mutex`](crate::Mutex) protects, between processes.
///
/// The handle is cheap to clone; clones, and what arrives of it in other processes, are the same. Any lock will do, of
/// any type, but all who wait at a time should use the same one, as they wait for the same thing.
///
/// Waiting gives the lock back and takes it again, so it ends as locking does: with
/// [`LockError::Poisoned`](crate::LockError::Poisoned), guard included, when a holder has died. The longest waiting are
/// notified first. As with all condition variables, a wait may end without a notification now and then, so wait for a
/// condition: [`wait_while`](Self::wait_while) does it. Python's `wait_for(predicate)` is `wait_while(guard, |value|
/// !predicate(value))`.
///
/// A notification isn't lost with a process that is killed before it could act on it: the next one gets it.
///
/// # Limits
///
/// 500 can wait at a time in good order. More can, but each notification wakes all of those.
///
/// # Examples
///
/// ```
/// use polypool_ipc::{Condvar, Mutex};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let (items, changed) = (Mutex::new(0_u32)?, Condvar::new()?);
/// std::thread::scope(|s| {
///     let consumer = s.spawn(|| {
///         let guard = items.lock().unwrap();
///         let mut guard = changed.wait_while(guard, |items| *items == 0).unwrap();
///         *guard -= 1;
///     });
///     *items.lock().unwrap() += 1;
///     changed.notify_one();
///     consumer.join().unwrap();
/// });
/// assert_eq!(*items.lock().unwrap(), 0);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
#[must_use = "a condition that is not kept can't be waited for"]
#[doc(alias = "Condition")]
pub struct Condvar {
    object: Object,
}

impl Condvar {
    /// A new condition variable.
    ///
    /// # Errors
    ///
    /// What the system says when it is out of memory or descriptors.
    pub fn new() -> io::Result<Self> {
        Ok(Condvar { object: Object::create(KIND, 0, LEN)? })
    }

    /// Commits, unlocks, waits for a notification, and locks again.
    ///
    /// # Errors
    ///
    /// [`LockError::Poisoned`](crate::LockError::Poisoned), with the guard, if a holder of the lock died.
    pub fn wait<'a, T: Plain>(&self, guard: MutexGuard<'a, T>) -> LockResult<MutexGuard<'a, T>> {
        self.wait_until(guard, None).0
    }

    /// As [`wait`](Self::wait), for at most `timeout` (and then as long as it takes to have the lock again). With the
    /// guard comes whether there was a notification.
    ///
    /// # Errors
    ///
    /// [`LockError::Poisoned`](crate::LockError::Poisoned), with the guard, if a holder of the lock died.
    pub fn wait_timeout<'a, T: Plain>(
        &self,
        guard: MutexGuard<'a, T>,
        timeout: Duration,
    ) -> LockResult<(MutexGuard<'a, T>, bool)> {
        let (locked, notified) = self.wait_until(guard, wait::after(timeout));
        with(locked, notified)
    }

    /// As [`wait`](Self::wait), without blocking the thread.
    ///
    /// **Cancellation:** dropped, it waits no more, and the lock stays free; a notification that it had got already
    /// passes on to the next one. Nothing happens before the first poll: until then it holds the lock.
    ///
    /// # Errors
    ///
    /// [`LockError::Poisoned`](crate::LockError::Poisoned), with the guard, if a holder of the lock died.
    pub async fn wait_async<'a, T: Plain>(&self, guard: MutexGuard<'a, T>) -> LockResult<MutexGuard<'a, T>> {
        let mutex = guard.mutex();
        let mut waiter = Waiter { condvar: self, place: None, slept: false };
        Waiting::new(|| waiter.enter()).await;
        drop(guard);
        Waiting::new(|| waiter.step()).await;
        let locked = mutex.lock_async().await;
        waiter.leave();
        locked
    }

    /// Waits as long as `condition` is true of the value; not at all if it isn't.
    ///
    /// # Errors
    ///
    /// [`LockError::Poisoned`](crate::LockError::Poisoned), with the guard, as soon as it is known that a holder of the
    /// lock died, whatever the condition.
    pub fn wait_while<'a, T: Plain>(
        &self,
        mut guard: MutexGuard<'a, T>,
        mut condition: impl FnMut(&mut T) -> bool,
    ) -> LockResult<MutexGuard<'a, T>> {
        while condition(&mut guard) {
            guard = self.wait(guard)?;
        }
        Ok(guard)
    }

    /// Waits as long as `condition` is true of the value, for at most `timeout`. With the guard comes whether the
    /// condition has become false: Python's result of `wait_for`.
    ///
    /// # Errors
    ///
    /// [`LockError::Poisoned`](crate::LockError::Poisoned), with the guard, as soon as it is known that a holder of the
    /// lock died, whatever the condition.
    pub fn wait_while_timeout<'a, T: Plain>(
        &self,
        mut guard: MutexGuard<'a, T>,
        timeout: Duration,
        mut condition: impl FnMut(&mut T) -> bool,
    ) -> LockResult<(MutexGuard<'a, T>, bool)> {
        let until = wait::after(timeout);
        loop {
            if !condition(&mut guard) {
                return Ok((guard, true));
            }
            if until.is_some_and(|until| until <= Instant::now()) {
                return Ok((guard, false));
            }
            match self.wait_until(guard, until).0 {
                Ok(locked) => guard = locked,
                poisoned => return with(poisoned, false),
            }
        }
    }

    /// As [`wait_while`](Self::wait_while), without blocking the thread.
    ///
    /// **Cancellation:** as for [`wait_async`](Self::wait_async).
    ///
    /// # Errors
    ///
    /// [`LockError::Poisoned`](crate::LockError::Poisoned), with the guard, as soon as it is known that a holder of the
    /// lock died, whatever the condition.
    pub async fn wait_while_async<'a, T: Plain>(
        &self,
        mut guard: MutexGuard<'a, T>,
        mut condition: impl FnMut(&mut T) -> bool,
    ) -> LockResult<MutexGuard<'a, T>> {
        while condition(&mut guard) {
            guard = self.wait_async(guard).await?;
        }
        Ok(guard)
    }

    /// Notifies the one who has waited longest. Returns whether anybody waited.
    pub fn notify_one(&self) -> bool {
        self.notify(1) > 0
    }

    /// Notifies up to `count` of those who wait, the longest waiting first, as Python's `notify(n)`. Returns how many.
    pub fn notify(&self, count: usize) -> usize {
        self.change(|state, board, rung| {
            let buried = self.bury(state, board, rung);
            let notified = state.notify(count, &mut self.ring(rung));
            if buried || !rung.is_empty() { Verdict::Changed(notified) } else { Verdict::Unchanged(notified) }
        })
    }

    /// Notifies all who wait. Returns how many.
    pub fn notify_all(&self) -> usize {
        self.notify(usize::MAX)
    }

    /// Whether both are handles of the same condition variable.
    #[must_use = "it has no effect but its result"]
    pub fn is_same(&self, other: &Self) -> bool {
        self.object.is(&other.object)
    }

    fn wait_until<'a, T: Plain>(
        &self,
        guard: MutexGuard<'a, T>,
        until: Option<Instant>,
    ) -> (LockResult<MutexGuard<'a, T>>, bool) {
        let mutex = guard.mutex();
        let mut waiter = Waiter { condvar: self, place: None, slept: false };
        wait::block(None, || waiter.enter());
        drop(guard);
        let woken = wait::block(until, || waiter.step()).is_some();
        let locked = mutex.lock();
        // A notification may have come after the time was up.
        let notified = waiter.leave() || woken;
        (locked, notified)
    }

    fn ledger(&self) -> Ledger<'_, State> {
        Ledger::partial(&self.object, 0, State::extent)
    }

    fn bell(&self, at: usize) -> Bell<'_> {
        Bell::new(&self.object, Ledger::<State>::LEN + at.min(CROWD) * size_of::<AtomicU32>())
    }

    /// Rings the bell of a slot in a step, and notes that its sleepers are to be woken.
    fn ring<'a>(&'a self, rung: &'a mut Rung) -> impl FnMut(usize) + 'a {
        |at| {
            self.bell(at).ring();
            rung.push(at);
        }
    }

    fn bury(&self, state: &mut State, board: &Board, rung: &mut Rung) -> bool {
        let is_dead = |seat| {
            // What is no seat is a peer's lie.
            let Some(seat) = Seat::from_word(seat) else { return true };
            let is_dead = board.is_dead(seat);
            if is_dead {
                board.tell(seat);
            }
            is_dead
        };
        state.bury(board.seat().bits(), is_dead, &mut self.ring(rung))
    }

    /// A step that never waits for anything but the ledger's own lock, and the wake-ups after it.
    fn change<R>(&self, step: impl FnOnce(&mut State, &Board, &mut Rung) -> Verdict<R>) -> R {
        let mut rung = Rung::new();
        let result = self.ledger().transact(|state, board| step(state, board, &mut rung));
        self.wake(rung);
        result.unwrap_or_else(|_| unreachable!("the step does not wait"))
    }

    fn wake(&self, rung: Rung) {
        for at in rung {
            self.bell(at).wake_all();
        }
    }
}

/// The guard and more, in either case.
fn with<G, E>(locked: LockResult<G>, extra: E) -> LockResult<(G, E)> {
    match locked {
        Ok(guard) => Ok((guard, extra)),
        Err(error) => Err(error.map(|guard| (guard, extra))),
    }
}

impl fmt::Debug for Condvar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.ledger().get();
        f.debug_struct("Condvar").field("waiting", &state.waiting()).finish_non_exhaustive()
    }
}

impl Serialize for Condvar {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.object.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Condvar {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Condvar { object: Object::deserialize(deserializer, KIND, 0, LEN)? })
    }
}

/// Where somebody waits.
#[derive(Clone, Copy)]
enum Place {
    /// In a slot, with its turn.
    Slot((usize, u32)),
    /// Without one, and what its bell was at then.
    Crowd(u32),
}

/// Somebody who waits.
struct Waiter<'a> {
    condvar: &'a Condvar,
    place: Option<Place>,
    /// For the ledger: whether it has slept for the ledger's lock.
    slept: bool,
}

impl Waiter<'_> {
    /// Takes a place. While the lock is still held.
    fn enter(&mut self) -> Step<()> {
        let condvar = self.condvar;
        let mut rung = Rung::new();
        let step = condvar.ledger().step(&mut self.slept, |state, board| {
            let me = board.seat().bits();
            let slot = state.enter(me).or_else(|| {
                let buried = condvar.bury(state, board, &mut rung);
                buried.then(|| state.enter(me)).flatten()
            });
            Verdict::Changed(match slot {
                Some(slot) => Place::Slot(slot),
                None => {
                    state.enter_crowd();
                    Place::Crowd(condvar.bell(CROWD).heard())
                }
            })
        });
        condvar.wake(rung);
        match step {
            Step::Ready(place) => {
                self.place = Some(place);
                Step::Ready(())
            }
            Step::Wait(change) => Step::Wait(change),
        }
    }

    /// Waits for the notification.
    fn step(&mut self) -> Step<()> {
        let condvar = self.condvar;
        let slot = match self.place {
            Some(Place::Slot(slot)) => slot,
            Some(Place::Crowd(heard)) => {
                let bell = condvar.bell(CROWD);
                return if bell.heard() == heard {
                    Step::Wait(bell.sleep(heard, condvar.object.board(), []))
                } else {
                    Step::Ready(())
                };
            }
            None => return Step::Ready(()),
        };
        let bell = condvar.bell(slot.0);
        let mut rung = Rung::new();
        let step = condvar.ledger().step(&mut self.slept, |state, board| {
            // Under the lock, as those who ring are.
            let heard = bell.heard();
            let buried = condvar.bury(state, board, &mut rung);
            let over = state.is_over(slot, board.seat().bits());
            let outcome = (!over).then(|| (heard, others(state, board)));
            if buried { Verdict::Changed(outcome) } else { Verdict::Unchanged(outcome) }
        });
        condvar.wake(rung);
        match step {
            Step::Ready(None) => Step::Ready(()),
            Step::Ready(Some((heard, watched))) => Step::Wait(bell.sleep(heard, condvar.object.board(), watched)),
            Step::Wait(change) => Step::Wait(change),
        }
    }

    /// Gives the place back, notification included. Returns whether there was one.
    fn leave(&mut self) -> bool {
        match self.place.take() {
            Some(Place::Slot(slot)) => {
                self.condvar.change(|state, board, _| match state.leave(slot, board.seat().bits()) {
                    Some(notified) => Verdict::Changed(notified),
                    None => Verdict::Unchanged(false),
                })
            }
            Some(Place::Crowd(heard)) => self.condvar.bell(CROWD).heard() != heard,
            None => false,
        }
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        // Only a future that is dropped before it has the lock again still has its place.
        if self.leave() {
            self.condvar.notify_one();
        }
    }
}

/// The other processes that wait, as far as one can watch them.
fn others(state: &State, board: &Board) -> Vec<Seat> {
    let mut others: Vec<Seat> = Vec::new();
    for seat in state.others(board.seat().bits()).filter_map(Seat::from_word) {
        if !others.contains(&seat) {
            others.push(seat);
            if others.len() == WATCHED {
                break;
            }
        }
    }
    others
}

#[cfg(test)]
mod tests {
    use zerocopy::FromZeros;

    use super::*;

    /// Against a list of those who wait, in the order in which they have come: (slot, seat, notified).
    #[test]
    fn slots_agree_with_a_list() {
        let mut random = 0x9e37_79b9_7f4a_7c15_u64;
        let mut below = |end: usize| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            (random % end as u64) as usize
        };
        let mut state = State::new_zeroed();
        let mut model: Vec<((usize, u32), u32, bool)> = Vec::new();
        for step in 0..20_000 {
            let mut rung = Vec::new();
            let mut expected = Vec::new();
            let mut notify = |model: &mut Vec<((usize, u32), u32, bool)>, count: usize| {
                let waiting = model.iter_mut().filter(|(.., notified)| !notified).take(count);
                waiting.for_each(|(slot, _, notified)| {
                    *notified = true;
                    expected.push(slot.0);
                });
            };
            match below(8) {
                // Phases in which many wait, and in which few do.
                0..3 => {
                    let seat = 1 + below(5) as u32;
                    match state.enter(seat) {
                        Some(slot) => {
                            assert!(model.iter().all(|(other, ..)| other.0 != slot.0), "a slot for two");
                            model.push((slot, seat, false));
                        }
                        None => assert_eq!(model.len(), SLOTS),
                    }
                }
                3 => {
                    let count = below(4);
                    notify(&mut model, count);
                    assert_eq!(state.notify(count, &mut |at| rung.push(at)), expected.len());
                }
                4 if step % 50 == 0 => {
                    let (me, dead) = (1, 2 + below(4) as u32);
                    let died = |(_, seat, _): &((usize, u32), u32, bool)| *seat == dead;
                    let inherited = model.iter().filter(|waiter| died(waiter) && waiter.2).count();
                    let any = model.iter().any(died);
                    model.retain(|waiter| !died(waiter));
                    notify(&mut model, inherited);
                    assert_eq!(state.bury(me, |seat| seat == dead, &mut |at| rung.push(at)), any);
                }
                _ if !model.is_empty() && (step / 3_000 % 2 == 1 || below(3) == 0) => {
                    let (slot, seat, notified) = model.remove(below(model.len()));
                    assert_eq!(state.is_over(slot, seat), notified);
                    assert_eq!(state.leave(slot, seat + 1), None, "that of another");
                    assert_eq!(state.leave(slot, seat), Some(notified));
                    assert_eq!(state.leave(slot, seat), None, "given back already");
                }
                _ => {}
            }
            assert_eq!(rung, expected);
            assert_eq!(state.waiting(), model.iter().filter(|(.., notified)| !notified).count());
            let last = model.iter().map(|(slot, ..)| slot.0 + 1).max().unwrap_or(0);
            assert_eq!(state.extent(), 16 + 8 * last, "no more is copied than is needed");
        }
    }
}
