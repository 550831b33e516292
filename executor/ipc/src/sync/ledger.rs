//! State in shared memory that changes in one step or not at all, whenever its writer dies.
//!
//! What is more than one word (how many permits are left *and* who holds them; who has arrived at a barrier *and* in
//! which round) would be left half-changed by a process that is killed in between, and a lock that tells of the death
//! wouldn't tell how to repair it. So the state is kept twice: a change is computed in memory of our own, written to
//! the copy that nobody reads, and then made the current one by raising the version. Killed before that, it has never
//! happened; after it, it is complete. There is nothing to repair.
//!
//! ```text
//!    lock │ version 6 │ asleep │ … │ copy 0: current │ copy 1: free for the next change │
//! ```
//!
//! The version is also what waiters sleep on: every change raises it.

use std::mem::{offset_of, size_of};
use std::sync::atomic::{AtomicU32, Ordering};

use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::raw::{LockWord, RawLock};
use crate::memory::segment::Layout;
use crate::object::{BODY, Object};
use crate::presence::{Board, Holder, Seat};
use crate::wait::{self, Change, PATIENCE, Step, Word, futex};

mod protocol;

#[repr(C, align(64))]
struct Head {
    lock: LockWord,
    version: AtomicU32,
    /// Whether somebody may sleep on the version. Changed under the lock.
    asleep: AtomicU32,
}

// SAFETY: repr(C) and atomics only.
unsafe impl Layout for Head {}

/// What a step has decided.
pub(crate) enum Verdict<R> {
    /// The state has been changed, and those who wait are to look again.
    Changed(R),
    /// The state is as it was.
    Unchanged(R),
    /// It can't go on before the state changes or one of these processes dies. (Changes made by the step so far are
    /// dropped.)
    Wait(Vec<Seat>),
    /// As `Wait`, but the step has changed the state, which others are to see.
    ChangedWait(Vec<Seat>),
}

/// The state at one place of an object.
pub(crate) struct Ledger<'a, S> {
    object: &'a Object,
    offset: usize,
    head: &'a Head,
    /// How much of a state is worth copying.
    extent: fn(&S) -> usize,
}

impl<S> Clone for Ledger<'_, S> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<S> Copy for Ledger<'_, S> {}

impl<'a, S: FromBytes + IntoBytes + Immutable + Copy> Ledger<'a, S> {
    /// How many bytes of a body it takes.
    pub(crate) const LEN: usize = size_of::<Head>() + 2 * Self::COPY;

    const COPY: usize = size_of::<S>().next_multiple_of(64);

    /// The ledger at `offset` of the body, a multiple of 64. Memory that is all zero is a state that is all zero.
    pub(crate) fn new(object: &'a Object, offset: usize) -> Self {
        Ledger::partial(object, offset, |_| size_of::<S>())
    }

    /// As `new`, for a state that is large, but seldom full: `extent` says how many bytes of it, from its first one on,
    /// are not all zero or of no importance. It must see that in the first [`FIRST`](Self::FIRST) bytes. Only so many
    /// are copied, from a core's cache to another's in the worst case; the rest reads as zero.
    pub(crate) fn partial(object: &'a Object, offset: usize, extent: fn(&S) -> usize) -> Self {
        Ledger { object, offset, head: object.at(offset), extent }
    }

    /// What is copied of every state: a cache line.
    const FIRST: usize = if size_of::<S>() < 64 { size_of::<S>() } else { 64 };

    /// How many bytes of this state are copied. A peer may have written anything.
    fn extent(self, state: &S) -> usize {
        (self.extent)(state).clamp(Self::FIRST, size_of::<S>())
    }

    fn lock(self) -> RawLock<'a> {
        RawLock::new(self.object, self.offset + offset_of!(Head, lock))
    }

    fn copy(self, version: u32) -> usize {
        self.offset + size_of::<Head>() + (version & 1) as usize * Self::COPY
    }

    fn read(self, version: u32) -> S {
        // `S` may hold any bytes, so whatever stands there is a state; it's for the steps to make sense of it.
        let mut state = S::new_zeroed();
        let copy = self.copy(version);
        self.object.load(copy, &mut state.as_mut_bytes()[..Self::FIRST]);
        let extent = self.extent(&state);
        self.object.load(copy + Self::FIRST, &mut state.as_mut_bytes()[Self::FIRST..extent]);
        state
    }

    /// Looks at the state, and changes it as `step` says. Under the lock, which only blocks for as long as others look
    /// or change.
    pub(crate) fn transact<R>(self, step: impl FnOnce(&mut S, &Board) -> Verdict<R>) -> Result<R, Change> {
        let lock = self.lock();
        lock.lock();
        match self.apply(lock, step) {
            Step::Ready(result) => Ok(result),
            Step::Wait(change) => Err(change),
        }
    }

    /// As `transact`, for those who don't want to wait: `None` if somebody stays in the middle of a step for
    /// [`PATIENCE`].
    pub(crate) fn try_transact<R>(self, step: impl FnOnce(&mut S, &Board) -> Verdict<R>) -> Option<Result<R, Change>> {
        let lock = self.lock();
        lock.try_lock().or_else(|| lock.lock_until(wait::after(PATIENCE)))?;
        Some(match self.apply(lock, step) {
            Step::Ready(result) => Ok(result),
            Step::Wait(change) => Err(change),
        })
    }

    /// As `transact`, but without blocking: if the lock is taken, that's what to wait for. `slept` is the memory of the
    /// waiter.
    pub(crate) fn step<R>(self, slept: &mut bool, step: impl FnOnce(&mut S, &Board) -> Verdict<R>) -> Step<R> {
        let lock = self.lock();
        match lock.step(slept) {
            Step::Wait(change) => Step::Wait(change),
            Step::Ready(_) => {
                *slept = false;
                self.apply(lock, step)
            }
        }
    }

    /// Under the lock; gives it back.
    fn apply<R>(self, lock: RawLock<'a>, step: impl FnOnce(&mut S, &Board) -> Verdict<R>) -> Step<R> {
        struct Unlock<'a>(RawLock<'a>);
        impl Drop for Unlock<'_> {
            fn drop(&mut self) {
                self.0.unlock();
            }
        }
        // A step that panics leaves the state as it was.
        let unlock = Unlock(lock);
        let board = self.object.board();
        let version = self.head.version.load(Ordering::Acquire);
        let mut state = self.read(version);
        let verdict = step(&mut state, board);
        let changed = matches!(verdict, Verdict::Changed(_) | Verdict::ChangedWait(_));
        let mut now = version;
        let mut wake = false;
        if changed {
            let extent = self.extent(&state);
            self.object.store(self.copy(version.wrapping_add(1)), &state.as_bytes()[..extent]);
            (now, wake) = protocol::commit(&self.head.version, &self.head.asleep);
        }
        let outcome = match verdict {
            Verdict::Changed(result) | Verdict::Unchanged(result) => Step::Ready(result),
            Verdict::Wait(seats) | Verdict::ChangedWait(seats) => {
                protocol::announce(&self.head.asleep);
                let mut change = Change::of(self.object.segment(), BODY + self.offset + offset_of!(Head, version), now);
                for seat in seats {
                    match board.look(seat) {
                        Holder::Alive(word, alive) => {
                            change.holders.push((Word::new(board.segment(), board.offset(word)), alive));
                        }
                        // It has just died: a value that the word doesn't have any more makes the next attempt follow
                        // at once.
                        Holder::Dead(_) => change.word.1 = now.wrapping_sub(1),
                    }
                }
                Step::Wait(change)
            }
        };
        drop(unlock);
        if wake {
            futex::wake_all(&self.head.version);
        }
        outcome
    }

    /// The state as it is now, without changing it.
    pub(crate) fn get(self) -> S {
        match self.transact(|state, _| Verdict::Unchanged(*state)) {
            Ok(state) => state,
            Err(_) => unreachable!("the step does not wait"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
    #[repr(C)]
    struct State {
        used: u64,
        numbers: [u64; 100],
    }

    impl State {
        fn extent(&self) -> usize {
            (self.used as usize).wrapping_add(1).wrapping_mul(8)
        }
    }

    fn object() -> Object {
        Object::create(*b"test", 0, Ledger::<State>::LEN).unwrap()
    }

    #[test]
    fn of_a_partial_state_what_is_not_used_reads_as_zero() {
        let object = object();
        let ledger = Ledger::partial(&object, 0, State::extent);
        // Fuller and emptier, so that both copies have old numbers behind the ones in use.
        for (round, used) in [100, 3, 99, 98, 8, 7, 6, 0, 50, 100].into_iter().enumerate() {
            let written = ledger.transact(|state, _| {
                let used = used as usize;
                assert!(state.numbers[state.used as usize..].iter().all(|number| *number == 0));
                state.numbers = [0; 100];
                state.numbers[..used].fill(round as u64 + 1);
                state.used = used as u64;
                Verdict::Changed(state.numbers)
            });
            let state = ledger.get();
            assert_eq!(state.used, used);
            assert!(written.is_ok_and(|written| written == state.numbers));
        }
    }

    #[test]
    fn an_extent_that_is_a_lie_is_taken_for_the_nearest_that_can_be() {
        let object = object();
        let ledger = Ledger::partial(&object, 0, State::extent);
        for lie in [u64::MAX, 101, 100, 1 << 61, (1 << 61) - 1] {
            let result = ledger.transact(|state, _| {
                *state = State { used: lie, numbers: [lie; 100] };
                Verdict::Changed(())
            });
            assert!(result.is_ok());
            let state = ledger.get();
            assert_eq!(state.numbers[..7], [lie; 7], "the first line is always there");
            assert_eq!(state.used, lie);
        }
    }
}
