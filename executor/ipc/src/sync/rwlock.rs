//! [`RwLock`]: many readers or one writer. Python has none between processes.
//!
//! Who reads and who writes stands in a ledger, each reading process with the number of its readers, so that what a
//! dead one had can be taken back. The value stands beside it in two copies (`cell.rs`), which only the writer changes.
//! Writers aren't starved by readers: who can't go in stands in a [line](super::line).

use std::fmt;
use std::future::Future;
use std::io;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::time::{Duration, Instant};

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::cell::{Cell, Draft};
use super::error::{LockError, LockResult, poison};
use super::ledger::{Ledger, Verdict};
use super::line::{Line, Ticket};
use crate::object::{Kind, Object, shape_of};
use crate::presence::{Board, Holder, Seat};
use crate::values::Plain;
use crate::wait::{self, Step, Waiting};

const KIND: Kind = *b"rwlk";

/// How many processes can read at a time.
const READERS: usize = 60;

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct Share {
    seat: u32,
    count: u32,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct State {
    writer: u32,
    poison: u32,
    line: Line,
    readers: [Share; READERS],
}

impl State {
    /// Takes away what the dead had; whether there was anything.
    fn bury(&mut self, board: &Board) -> bool {
        let mut changed = false;
        if let Some(seat) = Seat::from_word(self.writer)
            && seat != board.seat()
            && let Holder::Dead(pid) = board.look(seat)
            // A thread of it may be in the middle of a store still.
            && board.has_left(seat)
        {
            board.tell(seat);
            self.poison = poison::by(pid);
            self.writer = 0;
            changed = true;
        }
        for share in &mut self.readers {
            if let Some(seat) = Seat::from_word(share.seat)
                && seat != board.seat()
                && board.is_dead(seat)
            {
                board.tell(seat);
                *share = Share { seat: 0, count: 0 };
                changed = true;
            }
        }
        changed
    }

    fn enter(&mut self, mode: Mode, me: Seat) -> bool {
        if Seat::from_word(self.writer).is_some() {
            return false;
        }
        match mode {
            Mode::Write => {
                if self.readers.iter().any(|share| share.seat != 0) {
                    return false;
                }
                self.writer = me.bits();
            }
            Mode::Read => {
                let of = |seat| self.readers.iter().position(|share| share.seat == seat);
                let Some(at) = of(me.bits()).or_else(|| of(0)) else { return false };
                let Some(count) = self.readers[at].count.checked_add(1) else { return false };
                self.readers[at] = Share { seat: me.bits(), count };
            }
        }
        true
    }

    fn leave(&mut self, mode: Mode, me: Seat) {
        match mode {
            Mode::Write if self.writer == me.bits() => self.writer = 0,
            Mode::Write => {} // A peer has meddled.
            Mode::Read => {
                if let Some(share) = self.readers.iter_mut().find(|share| share.seat == me.bits()) {
                    share.count = share.count.saturating_sub(1);
                    if share.count == 0 {
                        share.seat = 0;
                    }
                }
            }
        }
    }

    /// Goes in if it's the ticket's turn and there is room. The error is what the line said about the turn.
    fn attempt(
        &mut self,
        mode: Mode,
        ticket: &Ticket,
        board: &Board,
        changed: &mut bool,
    ) -> Result<(), Result<(), Seat>> {
        let turn = self.line.is_turn_of(ticket, board, changed);
        if turn.is_err() {
            return Err(turn);
        }
        if self.enter(mode, board.seat()) {
            return Ok(());
        }
        *changed |= self.bury(board);
        if self.enter(mode, board.seat()) { Ok(()) } else { Err(turn) }
    }

    /// On whom it depends when the next one can go in.
    fn inside(&self) -> Vec<Seat> {
        std::iter::once(self.writer)
            .chain(self.readers.iter().map(|share| share.seat))
            .filter_map(Seat::from_word)
            .collect()
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Read,
    Write,
}

/// A lock between processes that many readers share, or one writer has, and the value it protects.
///
/// The handle is cheap to clone; clones, and what arrives of it in other processes, are the same lock. It has the four
/// forms of all locks for each of reading and writing. It pays for values that are read for long; a short look is
/// cheaper under a [`Mutex`](crate::Mutex).
///
/// # Order
///
/// Who can't go in stands at the head of the line and is not overtaken, also not by readers, so a writer isn't starved.
/// It follows that a thread that reads must not lock for reading again: a writer may have come in between, and both
/// wait for ever. Who becomes the head when it has gone is open. A future at the head that isn't polled holds the
/// others up; dropped, it doesn't.
///
/// # When a holder dies
///
/// A reader's share is given back at once. A writer's death poisons the lock, for readers and writers, until
/// [`repair`](RwLockWriteGuard::repair); the value is the last one that was committed. A panic doesn't poison: its
/// changes are dropped.
///
/// # Limits
///
/// 60 processes can read at a time, with any number of readers each; the next ones wait.
///
/// # Examples
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let limits = polypool_ipc::RwLock::new([10_u32, 20])?;
/// let (one, two) = (limits.read().unwrap(), limits.read().unwrap());
/// assert_eq!((one[0], two[1]), (10, 20));
/// drop((one, two));
/// limits.write().unwrap()[1] = 30;
/// # Ok(())
/// # }
/// ```
#[must_use = "a lock that is not kept protects nothing"]
pub struct RwLock<T = ()> {
    object: Object,
    value: PhantomData<fn() -> T>,
}

impl<T: Plain> RwLock<T> {
    const LEN: usize = Ledger::<State>::LEN + Cell::<'static, T>::LEN;

    /// A new lock, free, with that value.
    ///
    /// # Errors
    ///
    /// What the system says when it is out of memory or descriptors.
    pub fn new(value: T) -> io::Result<Self> {
        let lock = RwLock { object: Object::create(KIND, shape_of::<T>(), Self::LEN)?, value: PhantomData };
        lock.cell().set(&value);
        Ok(lock)
    }

    /// Locks for reading, and waits as long as it takes.
    ///
    /// # Errors
    ///
    /// [`LockError::Poisoned`], with the guard, if a writer died.
    pub fn read(&self) -> LockResult<RwLockReadGuard<'_, T>> {
        self.reader(self.enter_until(Mode::Read, None))
    }

    /// Locks for reading if no writer is inside or waits.
    ///
    /// # Errors
    ///
    /// [`LockError::WouldBlock`] otherwise; [`LockError::Poisoned`], with the guard, if a writer died.
    pub fn try_read(&self) -> LockResult<RwLockReadGuard<'_, T>> {
        self.reader(self.try_enter(Mode::Read))
    }

    /// Locks for reading, and waits for at most `timeout`.
    ///
    /// # Errors
    ///
    /// [`LockError::TimedOut`] if that wasn't enough; [`LockError::Poisoned`], with the guard, if a writer died.
    pub fn read_timeout(&self, timeout: Duration) -> LockResult<RwLockReadGuard<'_, T>> {
        self.reader(self.enter_until(Mode::Read, wait::after(timeout)))
    }

    /// Locks for reading, and waits without blocking the thread.
    ///
    /// **Cancellation:** dropped, it gives its place in the line up.
    ///
    /// # Errors
    ///
    /// [`LockError::Poisoned`], with the guard, if a writer died.
    pub fn read_async(&self) -> impl Future<Output = LockResult<RwLockReadGuard<'_, T>>> + Send {
        let entered = self.enter_async(Mode::Read);
        async move { self.reader(Ok(entered.await)) }
    }

    /// Locks for writing, and waits as long as it takes.
    ///
    /// # Errors
    ///
    /// [`LockError::Poisoned`], with the guard, if a writer died.
    pub fn write(&self) -> LockResult<RwLockWriteGuard<'_, T>> {
        self.writer(self.enter_until(Mode::Write, None))
    }

    /// Locks for writing if nobody is inside or waits.
    ///
    /// # Errors
    ///
    /// [`LockError::WouldBlock`] otherwise; [`LockError::Poisoned`], with the guard, if a writer died.
    pub fn try_write(&self) -> LockResult<RwLockWriteGuard<'_, T>> {
        self.writer(self.try_enter(Mode::Write))
    }

    /// Locks for writing, and waits for at most `timeout`.
    ///
    /// # Errors
    ///
    /// [`LockError::TimedOut`] if that wasn't enough; [`LockError::Poisoned`], with the guard, if a writer died.
    pub fn write_timeout(&self, timeout: Duration) -> LockResult<RwLockWriteGuard<'_, T>> {
        self.writer(self.enter_until(Mode::Write, wait::after(timeout)))
    }

    /// Locks for writing, and waits without blocking the thread.
    ///
    /// **Cancellation:** dropped, it gives its place in the line up.
    ///
    /// # Errors
    ///
    /// [`LockError::Poisoned`], with the guard, if a writer died.
    pub fn write_async(&self) -> impl Future<Output = LockResult<RwLockWriteGuard<'_, T>>> + Send {
        let entered = self.enter_async(Mode::Write);
        async move { self.writer(Ok(entered.await)) }
    }

    /// Whether a writer died, and nobody has [repaired](RwLockWriteGuard::repair) it since. A death shows only once
    /// somebody has tried to lock.
    #[must_use = "it has no effect but its result"]
    pub fn is_poisoned(&self) -> bool {
        poison::read(self.ledger().get().poison).is_some()
    }

    /// Says from outside that all is well again, as [`repair`](RwLockWriteGuard::repair) does from inside.
    pub fn clear_poison(&self) {
        self.transact(|state, _| {
            state.poison = 0;
            Verdict::Changed(())
        });
    }

    fn reader(&self, entered: Result<u32, LockError<()>>) -> LockResult<RwLockReadGuard<'_, T>> {
        let poisoned = entered.map_err(|error| error.map(|()| unreachable!("not inside")))?;
        let inside = Inside::new(&self.object, Mode::Read);
        let guard = RwLockReadGuard { value: self.cell().get(), _inside: inside };
        match poison::read(poisoned) {
            None => Ok(guard),
            Some(pid) => Err(LockError::Poisoned { pid, guard }),
        }
    }

    fn writer(&self, entered: Result<u32, LockError<()>>) -> LockResult<RwLockWriteGuard<'_, T>> {
        let poisoned = entered.map_err(|error| error.map(|()| unreachable!("not inside")))?;
        let inside = Inside::new(&self.object, Mode::Write);
        let guard = RwLockWriteGuard { lock: self, draft: Draft::new(self.cell()), inside };
        match poison::read(poisoned) {
            None => Ok(guard),
            Some(pid) => Err(LockError::Poisoned { pid, guard }),
        }
    }

    fn try_enter(&self, mode: Mode) -> Result<u32, LockError<()>> {
        let entered = self.ledger().try_transact(|state, board| {
            let mut changed = false;
            match state.attempt(mode, &Ticket::new(), board, &mut changed) {
                Ok(()) => Verdict::Changed(Ok(state.poison)),
                Err(_) if changed => Verdict::Changed(Err(LockError::WouldBlock)),
                Err(_) => Verdict::Unchanged(Err(LockError::WouldBlock)),
            }
        });
        match entered {
            Some(Ok(entered)) => entered,
            // Somebody has been stopped in the middle.
            Some(Err(_)) | None => Err(LockError::WouldBlock),
        }
    }

    fn enter_until(&self, mode: Mode, until: Option<Instant>) -> Result<u32, LockError<()>> {
        let mut turn = Turn { object: &self.object, mode, ticket: Ticket::new() };
        wait::block(until, || turn.step()).ok_or(LockError::TimedOut)
    }

    fn enter_async(&self, mode: Mode) -> impl Future<Output = u32> + Send {
        let mut turn = Turn { object: &self.object, mode, ticket: Ticket::new() };
        Waiting::new(move || turn.step())
    }

    fn ledger(&self) -> Ledger<'_, State> {
        Ledger::new(&self.object, 0)
    }

    /// A step that never waits for anything but the ledger's own lock.
    fn transact<R>(&self, step: impl FnOnce(&mut State, &Board) -> Verdict<R>) -> R {
        transact(&self.object, step)
    }

    fn cell(&self) -> Cell<'_, T> {
        Cell::new(&self.object, Ledger::<State>::LEN)
    }
}

fn transact<R>(object: &Object, step: impl FnOnce(&mut State, &Board) -> Verdict<R>) -> R {
    Ledger::new(object, 0).transact(step).unwrap_or_else(|_| unreachable!("the step does not wait"))
}

impl<T> RwLock<T> {
    /// Whether both are handles of the same lock.
    #[must_use = "it has no effect but its result"]
    pub fn is_same(&self, other: &Self) -> bool {
        self.object.is(&other.object)
    }
}

/// Somebody who waits to go in.
struct Turn<'a> {
    object: &'a Object,
    mode: Mode,
    ticket: Ticket,
}

impl Turn<'_> {
    /// Ready with the word that says whether the lock is poisoned.
    fn step(&mut self) -> Step<u32> {
        let Turn { object, mode, ticket } = self;
        let mut slept = ticket.slept;
        let step = Ledger::<State>::new(object, 0).step(&mut slept, |state, board| {
            let mut changed = false;
            match state.attempt(*mode, ticket, board, &mut changed) {
                Ok(()) => {
                    state.line.leave(ticket, board);
                    Verdict::Changed(state.poison)
                }
                Err(turn) => {
                    let inside = if turn.is_ok() { state.inside() } else { Vec::new() };
                    state.line.wait(ticket, board, turn, changed, || inside)
                }
            }
        });
        ticket.slept = slept;
        step
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let Turn { object, ticket, .. } = self;
        if ticket.first {
            transact(object, |state, board| match state.line.leave(ticket, board) {
                true => Verdict::Changed(()),
                false => Verdict::Unchanged(()),
            });
        }
    }
}

/// A place inside, given back when it is dropped.
struct Inside<'a> {
    object: &'a Object,
    mode: Mode,
    seat: Seat,
}

impl<'a> Inside<'a> {
    fn new(object: &'a Object, mode: Mode) -> Self {
        Inside { object, mode, seat: object.board().seat() }
    }

    /// Whether it isn't the parent's, from which it was inherited by a fork.
    fn is_mine(&self) -> bool {
        self.object.board().is_mine(self.seat.bits())
    }
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        if !self.is_mine() {
            return;
        }
        transact(self.object, |state, _| {
            state.leave(self.mode, self.seat);
            Verdict::Changed(())
        });
    }
}

impl<T> Clone for RwLock<T> {
    fn clone(&self) -> Self {
        RwLock { object: self.object.clone(), value: PhantomData }
    }
}

impl<T> fmt::Debug for RwLock<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_struct("RwLock");
        // Whoever prints it must not wait for one who has been stopped in the middle of a step.
        let ledger = Ledger::<State>::new(&self.object, 0);
        if let Some(Ok(state)) = ledger.try_transact(|state, _| Verdict::Unchanged(*state)) {
            let readers = state.readers.iter().fold(0_u32, |sum, share| sum.saturating_add(share.count));
            out.field("readers", &readers)
                .field("writer", &Seat::from_word(state.writer).is_some())
                .field("poisoned", &poison::read(state.poison).is_some());
        }
        out.finish_non_exhaustive()
    }
}

impl<T> Serialize for RwLock<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.object.serialize(serializer)
    }
}

impl<'de, T: Plain> Deserialize<'de> for RwLock<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let object = Object::deserialize(deserializer, KIND, shape_of::<T>(), Self::LEN)?;
        Ok(RwLock { object, value: PhantomData })
    }
}

/// A reader's share of the lock, and a copy of the value.
#[must_use = "dropping the guard unlocks"]
pub struct RwLockReadGuard<'a, T: Plain> {
    value: T,
    _inside: Inside<'a>,
}

impl<T: Plain> Deref for RwLockReadGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T: Plain + fmt::Debug> fmt::Debug for RwLockReadGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("RwLockReadGuard").field(&self.value).finish()
    }
}

/// The lock is held alone, and this is a copy of its value. When it is dropped, the copy becomes the value, in one
/// step, and the lock is free.
///
/// Dropped by a panic, it forgets its changes instead.
#[must_use = "dropping the guard unlocks"]
pub struct RwLockWriteGuard<'a, T: Plain> {
    lock: &'a RwLock<T>,
    draft: Draft<T>,
    /// Left after the draft has been committed.
    inside: Inside<'a>,
}

impl<T: Plain> RwLockWriteGuard<'_, T> {
    /// Makes the changes so far the value, without unlocking: what a death or a panic from here on doesn't undo.
    pub fn commit(&mut self) {
        if self.inside.is_mine() {
            self.draft.commit(self.lock.cell());
        }
    }

    /// Forgets the changes since the last commit.
    pub fn rollback(&mut self) {
        self.draft.rollback(self.lock.cell());
    }

    /// Says that the value is in order again after the death of a writer: those who lock after this one aren't told of
    /// it any more.
    pub fn repair(&mut self) {
        self.lock.clear_poison();
    }
}

impl<T: Plain> Deref for RwLockWriteGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.draft
    }
}

impl<T: Plain> DerefMut for RwLockWriteGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.draft
    }
}

impl<T: Plain> Drop for RwLockWriteGuard<'_, T> {
    fn drop(&mut self) {
        if self.inside.is_mine() {
            self.draft.finish(self.lock.cell());
        }
    }
}

impl<T: Plain + fmt::Debug> fmt::Debug for RwLockWriteGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("RwLockWriteGuard").field(&**self).finish()
    }
}
