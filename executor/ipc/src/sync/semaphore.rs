//! [`Semaphore`] and [`BoundedSemaphore`]: at most so many at once. Python's classes of these names.
//!
//! The state is a ledger: the permits that nobody has, and for each process how many of them it has, so that the
//! permits of a dead process go back. Who waits, waits for the ledger to change and (if at the head of the
//! [line](super::line)) for the presences of those who have permits, so a death frees the next one at once.

use std::fmt;
use std::future::Future;
use std::io;
use std::ops::Deref;
use std::time::{Duration, Instant};

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::ledger::{Ledger, Verdict};
use super::line::{Line, Ticket};
use crate::object::{Kind, Object};
use crate::presence::{Board, Seat};
use crate::wait::{self, Step, Waiting};

const KIND: Kind = *b"sema";
const BOUNDED: Kind = *b"bsem";

/// How many processes can have permits at a time.
const HOLDERS: usize = 120;

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct Holder {
    seat: u32,
    permits: u32,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct State {
    /// What nobody has.
    free: u32,
    /// The most there may be, free and held; 0 if there is no bound.
    bound: u32,
    line: Line,
    holders: [Holder; HOLDERS],
}

impl State {
    /// Gives back what the dead had; whether there was anything.
    fn bury(&mut self, board: &Board) -> bool {
        let mut changed = false;
        for holder in &mut self.holders {
            let Some(seat) = Seat::from_word(holder.seat) else { continue };
            if seat != board.seat() && board.is_dead(seat) {
                board.tell(seat);
                self.free = self.free.saturating_add(holder.permits);
                *holder = Holder { seat: 0, permits: 0 };
                changed = true;
            }
        }
        changed
    }

    /// Moves permits from the free ones to a process; whether that was possible.
    fn take(&mut self, me: Seat, count: u32) -> bool {
        let Some(left) = self.free.checked_sub(count) else { return false };
        if count > 0 {
            let mine = |seat| self.holders.iter().position(|holder| holder.seat == seat);
            let Some(at) = mine(me.bits()).or_else(|| mine(0)) else { return false };
            let Some(permits) = self.holders[at].permits.checked_add(count) else { return false };
            self.holders[at] = Holder { seat: me.bits(), permits };
        }
        self.free = left;
        true
    }

    /// Takes permits from a process; how many it had of them.
    fn lose(&mut self, me: Seat, count: u32) -> u32 {
        let Some(holder) = self.holders.iter_mut().find(|holder| holder.seat == me.bits()) else { return 0 };
        let lost = holder.permits.min(count);
        holder.permits -= lost;
        if holder.permits == 0 {
            holder.seat = 0;
        }
        lost
    }

    fn available(&mut self, board: &Board) -> Verdict<u32> {
        match self.bury(board) {
            true => Verdict::Changed(self.free),
            false => Verdict::Unchanged(self.free),
        }
    }

    /// Whether so many can't come together by what is given back: somebody would have to release more.
    fn lacks(&self, permits: u32) -> bool {
        permits > self.free.saturating_add(self.held())
    }

    fn held(&self) -> u32 {
        self.holders.iter().fold(0, |sum, holder| sum.saturating_add(holder.permits))
    }
}

/// Why a semaphore did not do what it was asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SemaphoreError {
    /// There are not enough permits at this moment, or others wait. Only the `try_` forms say so.
    #[error("there are not enough permits now")]
    WouldBlock,
    /// There were not enough permits in time. Only the `_timeout` forms say so.
    #[error("there were not enough permits in time")]
    TimedOut,
    /// A bounded semaphore never has as many.
    #[error("{wanted} permits were asked for, but there are never more than {bound}")]
    TooMany {
        /// What was asked for.
        wanted: u32,
        /// What there is at most.
        bound: u32,
    },
    /// There would be more permits than a bounded semaphore may have, or than can be counted: something was released
    /// that had not been acquired.
    #[error("{released} permits were released, but only {outstanding} had been acquired and not given back")]
    NotAcquired {
        /// What was to be released.
        released: u32,
        /// What could have been.
        outstanding: u32,
    },
}

/// So many permits, for all threads and tasks of all processes.
///
/// The handle is cheap to clone; clones, and what arrives of it in other processes, are the same semaphore. A
/// [`Permit`] gives its permits back when it is dropped, and can be sent to another thread. A process that dies gives
/// back all it had, and those who wait get them at once.
///
/// Each way to acquire has four forms: [`try_acquire`](Self::try_acquire), [`acquire_timeout`](Self::acquire_timeout),
/// [`acquire`](Self::acquire), [`acquire_async`](Self::acquire_async), and the same with `_many`.
///
/// # Fairness
///
/// Nobody overtakes the one who stands at the head of the line, so somebody who wants many permits isn't starved by
/// those who want one. Who of the others becomes the head when it has gone is open. A future at the head that isn't
/// polled holds the others up; dropped, it doesn't.
///
/// Who wants more permits than there are, free and held together, waits until somebody [releases](Self::release) more.
/// It doesn't stand in line for that time, and holds nobody up; one at the head that comes to lack permits, because
/// somebody [forgot](Permit::forget) some, steps aside. More than a [`BoundedSemaphore`] can ever have are an error at
/// once.
///
/// # Limits
///
/// 120 processes can have permits at a time; the next ones wait, as if there were no permits.
///
/// # Examples
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let connections = polypool_ipc::Semaphore::new(2)?;
/// let one = connections.acquire();
/// let two = connections.acquire();
/// assert!(connections.try_acquire().is_err());
/// drop(one);
/// assert_eq!(connections.available(), 1);
/// # drop(two);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
#[must_use = "a semaphore that is not kept bounds nothing"]
pub struct Semaphore {
    object: Object,
}

impl Semaphore {
    /// A new semaphore with that many permits.
    ///
    /// # Errors
    ///
    /// What the system says when it is out of memory or descriptors.
    pub fn new(permits: u32) -> io::Result<Self> {
        Semaphore::create(KIND, permits, 0)
    }

    fn create(kind: Kind, permits: u32, bound: u32) -> io::Result<Self> {
        let semaphore = Semaphore { object: Object::create(kind, 0, Ledger::<State>::LEN)? };
        semaphore.transact(|state, _| {
            state.free = permits;
            state.bound = bound;
            Verdict::Changed(())
        });
        Ok(semaphore)
    }

    /// Takes a permit, and waits for it as long as it takes.
    pub fn acquire(&self) -> Permit {
        // One is never too many, as a bound is at least one, unless a peer has meddled; then there's nothing to hold.
        self.acquire_many(1).unwrap_or_else(|_| self.permit(0))
    }

    /// Takes a permit if there is one, and nobody waits.
    ///
    /// # Errors
    ///
    /// [`SemaphoreError::WouldBlock`] otherwise.
    pub fn try_acquire(&self) -> Result<Permit, SemaphoreError> {
        self.try_acquire_many(1)
    }

    /// Takes a permit, and waits for it for at most `timeout`.
    ///
    /// # Errors
    ///
    /// [`SemaphoreError::TimedOut`] if there was none in that time.
    pub fn acquire_timeout(&self, timeout: Duration) -> Result<Permit, SemaphoreError> {
        self.acquire_many_timeout(1, timeout)
    }

    /// Takes a permit, and waits for it without blocking the thread.
    ///
    /// **Cancellation:** dropped, it gives its place in the line up.
    pub fn acquire_async(&self) -> impl Future<Output = Permit> + Send {
        let acquired = self.acquire_many_async(1);
        async move { acquired.await.unwrap_or_else(|_| self.permit(0)) }
    }

    /// Takes that many permits at once, and waits for them as long as it takes.
    ///
    /// # Errors
    ///
    /// [`SemaphoreError::TooMany`] if there can never be as many.
    pub fn acquire_many(&self, permits: u32) -> Result<Permit, SemaphoreError> {
        self.acquire_until(permits, None)
    }

    /// Takes that many permits if they are there, and nobody waits.
    ///
    /// # Errors
    ///
    /// [`SemaphoreError::WouldBlock`] otherwise; [`SemaphoreError::TooMany`] if there can never be as many.
    pub fn try_acquire_many(&self, permits: u32) -> Result<Permit, SemaphoreError> {
        let taken = self.ledger().try_transact(|state, board| {
            let mut changed = false;
            match state.attempt(&Ticket::new(), board, permits, &mut changed) {
                Err(error) => Verdict::Unchanged(Err(error)),
                Ok(Ok(())) => Verdict::Changed(Ok(())),
                Ok(Err(_)) if changed => Verdict::Changed(Err(SemaphoreError::WouldBlock)),
                Ok(Err(_)) => Verdict::Unchanged(Err(SemaphoreError::WouldBlock)),
            }
        });
        match taken {
            Some(Ok(taken)) => taken.map(|()| self.permit(permits)),
            // Somebody has been stopped in the middle.
            Some(Err(_)) | None => Err(SemaphoreError::WouldBlock),
        }
    }

    /// Takes that many permits at once, and waits for them for at most `timeout`.
    ///
    /// # Errors
    ///
    /// [`SemaphoreError::TimedOut`] if they were not there in that time; [`SemaphoreError::TooMany`] if there can never
    /// be as many.
    pub fn acquire_many_timeout(&self, permits: u32, timeout: Duration) -> Result<Permit, SemaphoreError> {
        self.acquire_until(permits, wait::after(timeout))
    }

    /// Takes that many permits at once, and waits for them without blocking the thread.
    ///
    /// **Cancellation:** dropped, it gives its place in the line up.
    ///
    /// # Errors
    ///
    /// [`SemaphoreError::TooMany`] if there can never be as many.
    pub fn acquire_many_async(&self, permits: u32) -> impl Future<Output = Result<Permit, SemaphoreError>> + Send {
        let mut turn = Turn { semaphore: self, ticket: Ticket::new() };
        Waiting::new(move || turn.step(permits))
    }

    /// Adds permits, as Python's `release(n)` does, whoever acquired them: those of [forgotten](Permit::forget) guards,
    /// or new ones.
    ///
    /// # Errors
    ///
    /// [`SemaphoreError::NotAcquired`] if there would be too many, and then nothing is added. For a
    /// [`BoundedSemaphore`] that's more than it started with, what others hold included; for others 2³² − 1.
    pub fn release(&self, permits: u32) -> Result<(), SemaphoreError> {
        self.transact(|state, board| {
            let buried = state.bury(board);
            let bound = if state.bound == 0 { u32::MAX } else { state.bound };
            let outstanding = bound.saturating_sub(state.free.saturating_add(state.held()));
            if permits > outstanding {
                let error = Err(SemaphoreError::NotAcquired { released: permits, outstanding });
                return if buried { Verdict::Changed(error) } else { Verdict::Unchanged(error) };
            }
            state.free += permits;
            Verdict::Changed(Ok(()))
        })
    }

    /// How many permits are free at this moment.
    #[must_use = "it has no effect but its result"]
    pub fn available(&self) -> u32 {
        self.transact(State::available)
    }

    fn describe(&self, name: &str, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_struct(name);
        // Whoever prints it must not wait for one who has been stopped in the middle of a step.
        if let Some(Ok(available)) = self.ledger().try_transact(State::available) {
            out.field("available", &available);
        }
        out.finish_non_exhaustive()
    }

    /// Whether both are handles of the same semaphore.
    #[must_use = "it has no effect but its result"]
    pub fn is_same(&self, other: &Self) -> bool {
        self.object.is(&other.object)
    }

    fn acquire_until(&self, permits: u32, until: Option<Instant>) -> Result<Permit, SemaphoreError> {
        let mut turn = Turn { semaphore: self, ticket: Ticket::new() };
        wait::block(until, || turn.step(permits)).unwrap_or(Err(SemaphoreError::TimedOut))
    }

    fn ledger(&self) -> Ledger<'_, State> {
        Ledger::new(&self.object, 0)
    }

    /// A step that never waits for anything but the ledger's own lock.
    fn transact<R>(&self, step: impl FnOnce(&mut State, &Board) -> Verdict<R>) -> R {
        self.ledger().transact(step).unwrap_or_else(|_| unreachable!("the step does not wait"))
    }

    fn permit(&self, permits: u32) -> Permit {
        Permit { semaphore: self.clone(), permits, seat: self.object.board().seat() }
    }
}

impl State {
    /// Takes permits if it's the ticket's turn and they are there. The inner result is what the line said about the
    /// turn.
    fn attempt(
        &mut self,
        ticket: &Ticket,
        board: &Board,
        permits: u32,
        changed: &mut bool,
    ) -> Result<Result<(), Result<(), Seat>>, SemaphoreError> {
        if self.bound != 0 && permits > self.bound {
            return Err(SemaphoreError::TooMany { wanted: permits, bound: self.bound });
        }
        let turn = self.line.is_turn_of(ticket, board, changed);
        if turn.is_err() {
            return Ok(Err(turn));
        }
        if self.take(board.seat(), permits) {
            return Ok(Ok(()));
        }
        *changed |= self.bury(board);
        Ok(if self.take(board.seat(), permits) { Ok(()) } else { Err(turn) })
    }
}

/// Somebody who waits for permits.
struct Turn<'a> {
    semaphore: &'a Semaphore,
    ticket: Ticket,
}

impl Turn<'_> {
    fn step(&mut self, permits: u32) -> Step<Result<Permit, SemaphoreError>> {
        let Turn { semaphore, ticket } = self;
        let mut slept = ticket.slept;
        let step = semaphore.ledger().step(&mut slept, |state, board| {
            let mut changed = false;
            match state.attempt(ticket, board, permits, &mut changed) {
                Err(error) => Verdict::Unchanged(Err(error)),
                Ok(Ok(())) => {
                    state.line.leave(ticket, board);
                    Verdict::Changed(Ok(()))
                }
                Ok(Err(Ok(()))) if state.lacks(permits) => {
                    // It may take for ever, which the others needn't.
                    changed |= state.line.leave(ticket, board);
                    if changed { Verdict::ChangedWait(Vec::new()) } else { Verdict::Wait(Vec::new()) }
                }
                Ok(Err(turn)) => {
                    let holders = state.holders;
                    state.line.wait(ticket, board, turn, changed, || {
                        holders.iter().filter_map(|holder| Seat::from_word(holder.seat)).collect()
                    })
                }
            }
        });
        ticket.slept = slept;
        match step {
            Step::Ready(taken) => Step::Ready(taken.map(|()| semaphore.permit(permits))),
            Step::Wait(change) => Step::Wait(change),
        }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let Turn { semaphore, ticket } = self;
        if ticket.first {
            semaphore.transact(|state, board| match state.line.leave(ticket, board) {
                true => Verdict::Changed(()),
                false => Verdict::Unchanged(()),
            });
        }
    }
}

impl fmt::Debug for Semaphore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.describe("Semaphore", f)
    }
}

impl Serialize for Semaphore {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.object.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Semaphore {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Semaphore { object: Object::deserialize(deserializer, KIND, 0, Ledger::<State>::LEN)? })
    }
}

/// Some permits of a semaphore. Dropped, it gives them back.
#[must_use = "dropping the permit gives it back"]
pub struct Permit {
    semaphore: Semaphore,
    permits: u32,
    /// Whose it is.
    seat: Seat,
}

impl Permit {
    /// How many permits these are.
    #[must_use = "it has no effect but its result"]
    pub fn permits(&self) -> u32 {
        self.permits
    }

    /// Whether it isn't the parent's, from which it was inherited by a fork.
    fn is_mine(&self) -> bool {
        self.semaphore.object.board().is_mine(self.seat.bits())
    }

    /// Keeps the permits out of the semaphore, without anybody having them, until [`Semaphore::release`] adds as many.
    /// They don't come back by themselves when this process dies. With that, one process can acquire and another one
    /// release, as Python's semaphores do.
    pub fn forget(mut self) {
        let count = std::mem::take(&mut self.permits);
        if !self.is_mine() {
            return;
        }
        self.semaphore.transact(|state, board| {
            state.lose(board.seat(), count);
            Verdict::Changed(())
        });
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if self.permits == 0 || !self.is_mine() {
            return;
        }
        self.semaphore.transact(|state, board| {
            let lost = state.lose(board.seat(), self.permits);
            state.free = state.free.saturating_add(lost);
            Verdict::Changed(())
        });
    }
}

impl fmt::Debug for Permit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Permit").field("permits", &self.permits).finish_non_exhaustive()
    }
}

/// A [`Semaphore`] that never has more permits than it started with: to release what was not acquired is an error, as
/// it is almost always a mistake.
///
/// # Examples
///
/// ```
/// use polypool_ipc::{BoundedSemaphore, SemaphoreError};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let slots = BoundedSemaphore::new(3)?;
/// slots.acquire().forget();
/// slots.release(1)?;
/// assert!(matches!(slots.release(1), Err(SemaphoreError::NotAcquired { outstanding: 0, .. })));
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
#[must_use = "a semaphore that is not kept bounds nothing"]
pub struct BoundedSemaphore(Semaphore);

impl BoundedSemaphore {
    /// A new semaphore with that many permits, and never more.
    ///
    /// # Errors
    ///
    /// `InvalidInput` for no permits at all, which would never let anybody in; otherwise what the system says when it
    /// is out of memory or descriptors.
    pub fn new(permits: u32) -> io::Result<Self> {
        if permits == 0 {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a bounded semaphore needs at least one permit"));
        }
        Semaphore::create(BOUNDED, permits, permits).map(BoundedSemaphore)
    }

    /// Whether both are handles of the same semaphore.
    #[must_use = "it has no effect but its result"]
    pub fn is_same(&self, other: &Self) -> bool {
        self.0.is_same(&other.0)
    }
}

impl Deref for BoundedSemaphore {
    type Target = Semaphore;

    fn deref(&self) -> &Semaphore {
        &self.0
    }
}

impl fmt::Debug for BoundedSemaphore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.describe("BoundedSemaphore", f)
    }
}

impl Serialize for BoundedSemaphore {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for BoundedSemaphore {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let object = Object::deserialize(deserializer, BOUNDED, 0, Ledger::<State>::LEN)?;
        Ok(BoundedSemaphore(Semaphore { object }))
    }
}
