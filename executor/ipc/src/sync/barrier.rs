//! [`Barrier`]: all wait until all have come. Python's `multiprocessing.Barrier`.
//!
//! A ledger says which round it is, who has come (each process with the number of its threads), and how the round
//! stands:
//!
//! | the round is | next | by |
//! |---|---|---|
//! | filling | acting | the last one to come, the leader, if it has something to do |
//! | filling, acting | the next round, filling | the leader, when all have come and its action is done |
//! | filling, acting | broken | a timeout, [`abort`](Barrier::abort), the death of one who waits, a panic in the action |
//! | filling, acting, broken | the next round, filling | [`reset`](Barrier::reset); those who wait learn that the round was broken |
//!
//! Whoever comes out of its sleep later, when the round has passed, finds it has: by the number of the round, and a
//! list of the last ones that were broken. So nobody has to wait until the slowest of the last round has left.
//!
//! Those who wait sleep on a [bell](super::bell), which rings when the round ends or breaks, and when a process comes
//! that the sleepers don't watch yet.

use std::fmt;
use std::future::Future;
use std::io;
use std::mem::size_of;
use std::sync::atomic::AtomicU32;
use std::time::{Duration, Instant};

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::bell::Bell;
use super::error::process;
use super::ledger::{Ledger, Verdict};
use crate::object::{Kind, Object};
use crate::presence::{Board, Holder, Seat};
use crate::wait::{self, Step, Waiting};

const KIND: Kind = *b"barr";

/// The most that can wait for each other.
const PARTIES: u32 = 1024;

/// The most processes that these can be in.
const PROCESSES: usize = 120;

/// How many broken rounds are remembered.
const REMEMBERED: usize = 16;

const WORDS: usize = PARTIES as usize / 64;

const LEN: usize = Ledger::<State>::LEN + size_of::<AtomicU32>();

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct Share {
    seat: u32,
    count: u32,
}

/// Why a round was broken: a code, and the process that died.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct Reason {
    code: u32,
    pid: u32,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct Ended {
    round: u32,
    unused: u32,
    why: Reason,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct State {
    /// Which places of the round are taken.
    places: [u64; WORDS],
    parties: u32,
    round: u32,
    arrived: u32,
    /// The seat of the leader while its action runs.
    acting: u32,
    /// Code 0: not broken.
    broken: Reason,
    /// How many rounds have been broken and reset.
    resets: u32,
    unused: u32,
    ended: [Ended; REMEMBERED],
    shares: [Share; PROCESSES],
}

/// Why a barrier did not let somebody through.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BarrierError {
    /// Somebody waited as long as it wanted to, and with that broke the barrier for all.
    #[error("the barrier is broken: somebody waited in vain")]
    TimedOut,
    /// [`Barrier::abort`] was called.
    #[error("the barrier is broken: it was aborted")]
    Aborted,
    /// [`Barrier::reset`] was called while this one waited.
    #[error("the barrier was reset")]
    Reset,
    /// A process that waited died.
    #[error("the barrier is broken: {} died while it waited", process(*pid))]
    Died {
        /// The process that died, if it is still known which one it was.
        pid: Option<u32>,
    },
    /// The leader's action panicked.
    #[error("the barrier is broken: the action of its leader panicked")]
    ActionPanicked,
    /// Others have not come yet. Only the `try_` forms say so, and they don't break the barrier.
    #[error("the others have not come yet")]
    WouldBlock,
    /// More processes than can wait at a barrier, 120. That doesn't break it.
    #[error("{PROCESSES} processes wait at the barrier, and no more can join them")]
    TooManyProcesses,
}

impl Reason {
    const NONE: Reason = Reason { code: 0, pid: 0 };

    fn of(error: BarrierError) -> Self {
        match error {
            BarrierError::TimedOut => Reason { code: 1, pid: 0 },
            BarrierError::Aborted => Reason { code: 2, pid: 0 },
            BarrierError::Died { pid } => Reason { code: 3, pid: pid.unwrap_or(0) },
            BarrierError::ActionPanicked => Reason { code: 4, pid: 0 },
            _ => Reason { code: 5, pid: 0 },
        }
    }

    fn error(self) -> Option<BarrierError> {
        match self.code {
            0 => None,
            1 => Some(BarrierError::TimedOut),
            2 => Some(BarrierError::Aborted),
            3 => Some(BarrierError::Died { pid: Some(self.pid).filter(|pid| *pid != 0) }),
            4 => Some(BarrierError::ActionPanicked),
            _ => Some(BarrierError::Reset),
        }
    }
}

/// What one gets who was let through.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BarrierWaitResult {
    index: u32,
    leader: bool,
}

impl BarrierWaitResult {
    /// Whether this is the one of the round that came last, whose action was run.
    #[must_use = "it has no effect but its result"]
    pub fn is_leader(&self) -> bool {
        self.leader
    }

    /// Its number in the round, from 0 to one less than the parties, different for each.
    #[must_use = "it has no effect but its result"]
    pub fn index(&self) -> u32 {
        self.index
    }
}

/// Somebody who has come.
#[derive(Clone, Copy)]
struct Arrival {
    seat: Seat,
    round: u32,
    resets: u32,
    index: u32,
    leader: bool,
}

impl State {
    /// Breaks the round, if the dead are among those who wait. Returns whether the state was changed.
    fn bury(&mut self, board: &Board, bell: Bell<'_>) -> bool {
        let mut changed = false;
        let mut dead = None;
        for share in &mut self.shares {
            if let Some(seat) = Seat::from_word(share.seat)
                && seat != board.seat()
                && let Holder::Dead(pid) = board.look(seat)
            {
                board.tell(seat);
                *share = Share { seat: 0, count: 0 };
                dead = Some(pid);
                changed = true;
            }
        }
        if let Some(pid) = dead {
            self.shatter(BarrierError::Died { pid }, bell);
        }
        changed
    }

    fn shatter(&mut self, why: BarrierError, bell: Bell<'_>) {
        if self.broken.code == 0 {
            self.broken = Reason::of(why);
            self.acting = 0;
            bell.ring();
        }
    }

    fn begin_next(&mut self, bell: Bell<'_>) {
        self.round = self.round.wrapping_add(1);
        self.arrived = 0;
        self.acting = 0;
        self.broken = Reason::NONE;
        self.places = [0; WORDS];
        self.shares = [Share { seat: 0, count: 0 }; PROCESSES];
        bell.ring();
    }

    /// Takes a place in the round.
    fn arrive(&mut self, me: Seat, bell: Bell<'_>) -> Result<Arrival, BarrierError> {
        let of = |seat| self.shares.iter().position(|share| share.seat == seat);
        let Some(at) = of(me.bits()).or_else(|| of(0)) else { return Err(BarrierError::TooManyProcesses) };
        if self.shares[at].seat == 0 {
            // Those who wait are to watch this process too.
            bell.ring();
        }
        self.shares[at] = Share { seat: me.bits(), count: self.shares[at].count.saturating_add(1) };
        let word = self.places.iter().position(|word| *word != u64::MAX).unwrap_or(0);
        let bit = self.places[word].trailing_ones().min(63);
        self.places[word] |= 1 << bit;
        self.arrived = self.arrived.saturating_add(1);
        let (round, resets) = (self.round, self.resets);
        Ok(Arrival { seat: me, round, resets, index: word as u32 * 64 + bit, leader: self.arrived >= self.parties })
    }

    /// Gives a place in the round up.
    fn withdraw(&mut self, me: Seat, arrival: Arrival) {
        self.arrived = self.arrived.saturating_sub(1);
        if let Some(word) = self.places.get_mut(arrival.index as usize / 64) {
            *word &= !(1 << (arrival.index % 64));
        }
        if let Some(share) = self.shares.iter_mut().find(|share| share.seat == me.bits()) {
            share.count = share.count.saturating_sub(1);
            if share.count == 0 {
                share.seat = 0;
            }
        }
    }

    /// What became of the round of one who has come, if it is over.
    fn outcome(&self, arrival: Arrival) -> Option<Result<BarrierWaitResult, BarrierError>> {
        if self.round == arrival.round {
            return self.broken.error().map(Err);
        }
        let resets = self.resets.wrapping_sub(arrival.resets) as usize;
        let why = match self.ended.iter().find(|ended| ended.why.code != 0 && ended.round == arrival.round) {
            Some(ended) if resets > 0 => ended.why.error(),
            // So many were broken since that the list doesn't go back to ours.
            None if resets > REMEMBERED => Some(BarrierError::Reset),
            _ => None,
        };
        Some(why.map_or(Ok(BarrierWaitResult { index: arrival.index, leader: arrival.leader }), Err))
    }

    fn others(&self, board: &Board) -> Vec<Seat> {
        let seats = self.shares.iter().filter_map(|share| Seat::from_word(share.seat));
        seats.filter(|seat| *seat != board.seat()).collect()
    }
}

/// A place where so many parties, threads or tasks of any processes, wait for each other, round after round.
///
/// The handle is cheap to clone; clones, and what arrives of it in other processes, are the same barrier. Waiting has
/// four forms: [`try_wait`](Self::try_wait), [`wait_timeout`](Self::wait_timeout), [`wait`](Self::wait),
/// [`wait_async`](Self::wait_async), and the same `_with` an action, which the leader of the round, the one who comes
/// last, runs before it lets the others through. (In Python the barrier has the action. A closure can't cross to other
/// processes, so here each party brings it, and exactly one of them runs.)
///
/// # When it breaks
///
/// A wait that times out breaks the barrier for all who wait, and so does [`abort`](Self::abort), the death of a
/// process that waits, and a panic in the action. From then on all who come are told why, until somebody calls
/// [`reset`](Self::reset). A future that is dropped while it waits doesn't break it: it takes its arrival back, as in
/// Python's asyncio.
///
/// A party that hasn't come yet is unknown here, so its death breaks nothing.
///
/// # Limits
///
/// 1,024 parties, of 120 processes.
///
/// # Examples
///
/// ```
/// # fn main() -> std::io::Result<()> {
/// let barrier = polypool_ipc::Barrier::new(3)?;
/// let leaders: usize = std::thread::scope(|s| {
///     let threads: Vec<_> = (0..3).map(|_| s.spawn(|| barrier.wait_with(|| println!("all here")).unwrap())).collect();
///     threads.into_iter().filter(|_| true).map(|t| usize::from(t.join().unwrap().is_leader())).sum()
/// });
/// assert_eq!(leaders, 1);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
#[must_use = "a barrier that is not kept keeps nobody"]
pub struct Barrier {
    object: Object,
}

impl Barrier {
    /// A new barrier for that many parties.
    ///
    /// # Errors
    ///
    /// `InvalidInput` unless there are from 1 to 1,024 parties; otherwise what the system says when it is out of memory
    /// or descriptors.
    pub fn new(parties: u32) -> io::Result<Self> {
        if !(1..=PARTIES).contains(&parties) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("a barrier is for 1 to {PARTIES} parties, not for {parties}"),
            ));
        }
        let barrier = Barrier { object: Object::create(KIND, 0, LEN)? };
        barrier.change(|state, _, _| {
            state.parties = parties;
            Verdict::Changed(())
        });
        Ok(barrier)
    }

    /// Waits until all have come.
    ///
    /// # Errors
    ///
    /// Why the barrier is broken, at once or while it waits.
    pub fn wait(&self) -> Result<BarrierWaitResult, BarrierError> {
        self.wait_with(|| {})
    }

    /// Waits until all have come. The one who comes last runs its `action` before anybody is let through.
    ///
    /// # Errors
    ///
    /// Why the barrier is broken, at once or while it waits.
    ///
    /// # Panics
    ///
    /// If the action does; that breaks the barrier.
    pub fn wait_with(&self, action: impl FnOnce()) -> Result<BarrierWaitResult, BarrierError> {
        self.wait_until(None, action)
    }

    /// Goes through if this is the last one to come; doesn't wait, and doesn't count as having come, otherwise.
    ///
    /// # Errors
    ///
    /// [`BarrierError::WouldBlock`] if others are missing; why the barrier is broken, if it is.
    pub fn try_wait(&self) -> Result<BarrierWaitResult, BarrierError> {
        self.try_wait_with(|| {})
    }

    /// As [`try_wait`](Self::try_wait), with an action.
    ///
    /// # Errors
    ///
    /// [`BarrierError::WouldBlock`] if others are missing; why the barrier is broken, if it is.
    ///
    /// # Panics
    ///
    /// If the action does; that breaks the barrier.
    pub fn try_wait_with(&self, action: impl FnOnce()) -> Result<BarrierWaitResult, BarrierError> {
        let mut visit = Visit { barrier: self, arrival: None, slept: false };
        match self.try_change(|state, board, bell| visit.enter(state, board, bell, true)) {
            Some(Ok(Some(arrival))) => visit.lead(arrival, action),
            Some(Err(error)) => Err(error),
            Some(Ok(None)) | None => Err(BarrierError::WouldBlock),
        }
    }

    /// Waits until all have come, for at most `timeout`. If that isn't enough, the barrier is broken for all who wait
    /// (unless this one couldn't even join the round, because the leader of the last one is still at work).
    ///
    /// # Errors
    ///
    /// [`BarrierError::TimedOut`] if the others did not come in time; why the barrier is broken, if it is.
    pub fn wait_timeout(&self, timeout: Duration) -> Result<BarrierWaitResult, BarrierError> {
        self.wait_timeout_with(timeout, || {})
    }

    /// As [`wait_timeout`](Self::wait_timeout), with an action. The time of the leader's action counts for those who
    /// wait for it.
    ///
    /// # Errors
    ///
    /// [`BarrierError::TimedOut`] if the others did not come in time; why the barrier is broken, if it is.
    ///
    /// # Panics
    ///
    /// If the action does; that breaks the barrier.
    pub fn wait_timeout_with(
        &self,
        timeout: Duration,
        action: impl FnOnce(),
    ) -> Result<BarrierWaitResult, BarrierError> {
        self.wait_until(wait::after(timeout), action)
    }

    /// Waits until all have come, without blocking the thread. It comes with the first poll.
    ///
    /// **Cancellation:** dropped, it takes its arrival back; the barrier is as if it had not come. When all have come
    /// already, they are let through.
    ///
    /// # Errors
    ///
    /// Why the barrier is broken, at once or while it waits.
    pub fn wait_async(&self) -> impl Future<Output = Result<BarrierWaitResult, BarrierError>> + Send {
        self.wait_async_with(|| {})
    }

    /// As [`wait_async`](Self::wait_async), with an action, which runs on the thread that polls.
    ///
    /// # Errors
    ///
    /// Why the barrier is broken, at once or while it waits.
    ///
    /// # Panics
    ///
    /// If the action does; that breaks the barrier.
    pub async fn wait_async_with(&self, action: impl FnOnce()) -> Result<BarrierWaitResult, BarrierError> {
        let mut visit = Visit { barrier: self, arrival: None, slept: false };
        let arrival = Waiting::new(|| visit.arrive()).await?;
        if arrival.leader {
            return visit.lead(arrival, action);
        }
        Waiting::new(|| visit.step(arrival)).await
    }

    /// Breaks the barrier for all, those who wait and those who come, until it is [reset](Self::reset).
    pub fn abort(&self) {
        self.change(|state, _, bell| {
            state.shatter(BarrierError::Aborted, bell);
            Verdict::Changed(())
        });
    }

    /// Makes the barrier as new. Those who wait are told that it was broken.
    pub fn reset(&self) {
        self.change(|state, _, bell| {
            if state.arrived == 0 && state.broken.code == 0 {
                return Verdict::Unchanged(());
            }
            state.shatter(BarrierError::Reset, bell);
            let (round, why) = (state.round, state.broken);
            state.ended[state.resets as usize % REMEMBERED] = Ended { round, unused: 0, why };
            state.resets = state.resets.wrapping_add(1);
            state.begin_next(bell);
            Verdict::Changed(())
        });
    }

    /// Why it is broken, if it is.
    #[must_use = "it has no effect but its result"]
    pub fn why_broken(&self) -> Option<BarrierError> {
        self.look(|state| state.broken.error())
    }

    /// Whether it is broken.
    #[must_use = "it has no effect but its result"]
    pub fn is_broken(&self) -> bool {
        self.why_broken().is_some()
    }

    /// How many wait at this moment.
    #[must_use = "it has no effect but its result"]
    pub fn n_waiting(&self) -> u32 {
        self.look(|state| if state.broken.code == 0 { state.arrived } else { 0 })
    }

    /// For how many it is.
    #[must_use = "it has no effect but its result"]
    pub fn parties(&self) -> u32 {
        self.ledger().get().parties
    }

    /// Whether both are handles of the same barrier.
    #[must_use = "it has no effect but its result"]
    pub fn is_same(&self, other: &Self) -> bool {
        self.object.is(&other.object)
    }

    fn look<R>(&self, what: impl FnOnce(&State) -> R) -> R {
        self.change(|state, board, bell| {
            let changed = state.bury(board, bell);
            let result = what(state);
            if changed { Verdict::Changed(result) } else { Verdict::Unchanged(result) }
        })
    }

    fn wait_until(&self, until: Option<Instant>, action: impl FnOnce()) -> Result<BarrierWaitResult, BarrierError> {
        let mut visit = Visit { barrier: self, arrival: None, slept: false };
        let Some(arrival) = wait::block(until, || visit.arrive()) else { return Err(BarrierError::TimedOut) };
        let arrival = arrival?;
        if arrival.leader {
            return visit.lead(arrival, action);
        }
        let outcome = wait::block(until, || visit.step(arrival));
        outcome.unwrap_or_else(|| visit.time_out(arrival))
    }

    fn ledger(&self) -> Ledger<'_, State> {
        Ledger::new(&self.object, 0)
    }

    fn bell(&self) -> Bell<'_> {
        Bell::new(&self.object, Ledger::<State>::LEN)
    }

    /// A step that never waits for anything but the ledger's own lock, and the wake-up after it if the bell was rung.
    fn change<R>(&self, step: impl FnOnce(&mut State, &Board, Bell<'_>) -> Verdict<R>) -> R {
        let ring = self.ringing(step, |step| self.ledger().transact(step));
        ring.unwrap_or_else(|_| unreachable!("the step does not wait"))
    }

    /// As `change`; `None` if somebody has been stopped in the middle of a step.
    fn try_change<R>(&self, step: impl FnOnce(&mut State, &Board, Bell<'_>) -> Verdict<R>) -> Option<R> {
        self.ringing(step, |step| self.ledger().try_transact(step))?.ok()
    }

    /// Runs a step on the ledger, and wakes those at the bell if that has rung in it.
    fn ringing<R, O>(
        &self,
        step: impl FnOnce(&mut State, &Board, Bell<'_>) -> Verdict<R>,
        run: impl FnOnce(&mut dyn FnMut(&mut State, &Board) -> Verdict<R>) -> O,
    ) -> O {
        let bell = self.bell();
        let (mut before, mut after) = (0, 0);
        let mut step = Some(step);
        let outcome = run(&mut |state, board| {
            let step = step.take().unwrap_or_else(|| unreachable!("a step runs once"));
            before = bell.heard();
            let verdict = step(state, board, bell);
            after = bell.heard();
            verdict
        });
        if before != after {
            bell.wake_all();
        }
        outcome
    }
}

impl fmt::Debug for Barrier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_struct("Barrier");
        // Whoever prints it must not wait for one who has been stopped in the middle of a step.
        if let Some(state) = self.try_change(|state, _, _| Verdict::Unchanged(*state)) {
            let error = state.broken.error();
            let waiting = if error.is_none() { state.arrived } else { 0 };
            out.field("parties", &state.parties).field("waiting", &waiting).field("broken", &error);
        }
        out.finish_non_exhaustive()
    }
}

impl Serialize for Barrier {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.object.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Barrier {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Barrier { object: Object::deserialize(deserializer, KIND, 0, LEN)? })
    }
}

/// One wait at the barrier.
struct Visit<'a> {
    barrier: &'a Barrier,
    /// Its place, which is to be given up when it is dropped.
    arrival: Option<Arrival>,
    /// For the ledger: whether it has slept for the ledger's lock.
    slept: bool,
}

impl Visit<'_> {
    /// Comes, if the round is open: `None` if it isn't, because the leader of the last one is at work. With `last`,
    /// only if all others have come.
    fn enter(
        &mut self,
        state: &mut State,
        board: &Board,
        bell: Bell<'_>,
        last: bool,
    ) -> Verdict<Result<Option<Arrival>, BarrierError>> {
        let mut changed = state.bury(board, bell);
        let result = if let Some(error) = state.broken.error() {
            Err(error)
        } else if state.acting != 0 || last && state.arrived.saturating_add(1) < state.parties {
            Ok(None)
        } else {
            let arrived = state.arrive(board.seat(), bell);
            if let Ok(arrival) = arrived {
                changed = true;
                self.arrival = Some(arrival);
                if arrival.leader {
                    state.acting = board.seat().bits();
                }
            }
            arrived.map(Some)
        };
        if changed { Verdict::Changed(result) } else { Verdict::Unchanged(result) }
    }

    fn arrive(&mut self) -> Step<Result<Arrival, BarrierError>> {
        let barrier = self.barrier;
        self.look(|visit, state, board, bell| match visit.enter(state, board, bell, false) {
            Verdict::Changed(Ok(None)) => Verdict::Changed(None),
            Verdict::Unchanged(Ok(None)) => Verdict::Unchanged(None),
            Verdict::Changed(other) => Verdict::Changed(other.transpose()),
            Verdict::Unchanged(other) => Verdict::Unchanged(other.transpose()),
            Verdict::Wait(_) | Verdict::ChangedWait(_) => {
                debug_assert!(false, "{barrier:?}");
                Verdict::Unchanged(None)
            }
        })
    }

    fn step(&mut self, arrival: Arrival) -> Step<Result<BarrierWaitResult, BarrierError>> {
        self.look(|visit, state, board, bell| {
            let changed = state.bury(board, bell);
            let outcome = state.outcome(arrival);
            if outcome.is_some() {
                visit.arrival = None;
            }
            if changed { Verdict::Changed(outcome) } else { Verdict::Unchanged(outcome) }
        })
    }

    /// A look at the state, and a sleep until the bell rings if that has no outcome.
    fn look<R>(&mut self, step: impl FnOnce(&mut Self, &mut State, &Board, Bell<'_>) -> Verdict<Option<R>>) -> Step<R> {
        let barrier = self.barrier;
        let bell = barrier.bell();
        let mut slept = self.slept;
        let (mut before, mut after, mut others) = (0, 0, Vec::new());
        let looked = barrier.ledger().step(&mut slept, |state, board| {
            before = bell.heard();
            let verdict = step(self, state, board, bell);
            after = bell.heard();
            others = state.others(board);
            verdict
        });
        self.slept = slept;
        if before != after {
            bell.wake_all();
        }
        match looked {
            Step::Ready(Some(result)) => Step::Ready(result),
            Step::Ready(None) => Step::Wait(bell.sleep(after, barrier.object.board(), others)),
            Step::Wait(change) => Step::Wait(change),
        }
    }

    /// All have come, and this one last.
    fn lead(mut self, arrival: Arrival, action: impl FnOnce()) -> Result<BarrierWaitResult, BarrierError> {
        struct Panicked<'a>(&'a Barrier, Arrival);
        impl Drop for Panicked<'_> {
            fn drop(&mut self) {
                self.0.change(|state, _, bell| {
                    if state.round == self.1.round {
                        state.shatter(BarrierError::ActionPanicked, bell);
                    }
                    Verdict::Changed(())
                });
            }
        }
        self.arrival = None;
        let panicked = Panicked(self.barrier, arrival);
        action();
        std::mem::forget(panicked);
        self.barrier.change(|state, _, bell| match state.outcome(arrival) {
            // Broken during the action.
            Some(outcome) => Verdict::Unchanged(outcome),
            None => {
                state.begin_next(bell);
                Verdict::Changed(Ok(BarrierWaitResult { index: arrival.index, leader: true }))
            }
        })
    }

    /// The time is up.
    fn time_out(&mut self, arrival: Arrival) -> Result<BarrierWaitResult, BarrierError> {
        self.arrival = None;
        self.barrier.change(|state, _, bell| match state.outcome(arrival) {
            // Just in time.
            Some(outcome) => Verdict::Unchanged(outcome),
            None => {
                state.shatter(BarrierError::TimedOut, bell);
                Verdict::Changed(Err(BarrierError::TimedOut))
            }
        })
    }
}

impl Drop for Visit<'_> {
    fn drop(&mut self) {
        // Only a future that is dropped while it waits still has its place.
        let Some(arrival) = self.arrival.take() else { return };
        if !self.barrier.object.board().is_mine(arrival.seat.bits()) {
            // It was the parent who came, before a fork.
            return;
        }
        self.barrier.change(|state, board, _| {
            if state.outcome(arrival).is_some() || state.acting != 0 {
                return Verdict::Unchanged(());
            }
            state.withdraw(board.seat(), arrival);
            Verdict::Changed(())
        });
    }
}
