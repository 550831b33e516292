//! What processes wait at: locks, conditions, events, semaphores and barriers.
//!
//! All of them are robust: the server sees the connection of a process end, and gives back what it held. A lock whose
//! holder has ended is *poisoned*, so that the next one knows that what it guards may be half changed.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher as _, RandomState};
use std::marker::PhantomData;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use super::proxy;
use crate::manager::error::{Failure, ManagerError};
use crate::manager::object::{Answer, ClientId, Cx, Flow, Object, Responder, Waiters};
use crate::manager::proxy::{Call, Grant, Remote, Source, Undo};
use crate::manager::wire::{Body, Fields, Request, timeout_number};

mod method {
    pub(super) const ACQUIRE: u32 = 1;
    pub(super) const RELEASE: u32 = 2;
    pub(super) const IS_LOCKED: u32 = 3;
    pub(super) const WAIT: u32 = 4;
    pub(super) const NOTIFY: u32 = 5;
    pub(super) const SET: u32 = 6;
    pub(super) const CLEAR: u32 = 7;
    pub(super) const IS_SET: u32 = 8;
    pub(super) const AVAILABLE: u32 = 9;
    pub(super) const ADD: u32 = 10;
    pub(super) const ABORT: u32 = 11;
    pub(super) const RESET: u32 = 12;
    pub(super) const INFO: u32 = 13;
}

type Decoded<R> = Result<R, ManagerError>;

fn cut(failure: Failure) -> ManagerError {
    failure.explain("")
}

fn unit(_result: &[u8], _source: &Source<'_>) -> Decoded<()> {
    Ok(())
}

fn flag(result: &[u8], _source: &Source<'_>) -> Decoded<bool> {
    Fields(result).flag().map_err(cut)
}

fn number(result: &[u8], _source: &Source<'_>) -> Decoded<u64> {
    Fields(result).number().map_err(cut)
}

fn waiting(timeout: Option<Duration>) -> Request {
    Request::new().number(timeout_number(timeout))
}

// ---- Locks and conditions: the server's side ------------------------------------------------------------------------

/// A lock, re-entrant or not, with those who wait for a condition under it.
pub(super) struct Lock {
    reentrant: bool,
    state: Mutex<LockState>,
}

struct LockState {
    holder: Option<Holder>,
    /// The process that ended while it held the lock.
    poisoned: Option<u32>,
    grants: u64,
    waiters: Waiters<Wanted>,
    conditions: Waiters<Wanted>,
}

struct Holder {
    client: ClientId,
    pid: u32,
    /// The thread, where it matters.
    owner: u64,
    depth: u64,
    token: u64,
}

/// A wish for the lock.
#[derive(Clone, Copy)]
struct Wanted {
    owner: u64,
    repair: bool,
    depth: u64,
    /// For a wait at a condition: whether it was notified, and by what its guard is known.
    notified: bool,
    token: Option<u64>,
}

impl Lock {
    pub(super) fn new(reentrant: bool) -> Self {
        Lock {
            reentrant,
            state: Mutex::new(LockState {
                holder: None,
                poisoned: None,
                // So that no guard fits another lock, should it be asked for there.
                grants: RandomState::new().hash_one(()) >> 1,
                waiters: Waiters::lane(0),
                conditions: Waiters::lane(1),
            }),
        }
    }
}

impl LockState {
    /// Makes somebody the holder; the result is what the holder is told.
    fn grant(&mut self, client: ClientId, pid: u32, wanted: Wanted) -> Body {
        self.poisoned = None;
        self.grants += 1;
        let token = wanted.token.unwrap_or(self.grants);
        self.holder = Some(Holder { client, pid, owner: wanted.owner, depth: wanted.depth, token });
        Body::new().number(token).flag(wanted.notified)
    }

    /// Gives the free lock to the next one. While it is poisoned that is one who repairs; the others learn of it.
    fn pass_on(&mut self) {
        while self.holder.is_none() {
            let Some((responder, wanted)) = self.waiters.pop() else { return };
            match self.poisoned {
                Some(pid) if !wanted.repair => responder.answer(Err(Failure::Poisoned { pid })),
                _ => {
                    let body = self.grant(responder.client(), responder.pid(), wanted);
                    responder.answer(Ok(body));
                }
            }
        }
    }

    /// A wait at the condition is over: the lock comes first.
    fn reacquire(&mut self, responder: Responder, wanted: Wanted) {
        self.waiters.push_again(responder, wanted);
        self.pass_on();
    }

    fn check(&self, client: ClientId, token: u64) -> Result<(), Failure> {
        match &self.holder {
            Some(holder) if holder.token == token && holder.client == client => Ok(()),
            _ => Err(Failure::NotHeld("the lock is not held by this guard".to_owned())),
        }
    }
}

impl Object for Lock {
    fn call(&self, method: u32, arguments: &[u8], cx: &Cx<'_>) -> Answer {
        let mut fields = Fields(arguments);
        let mut state = self.state.lock();
        let state = &mut *state;
        match method {
            method::ACQUIRE => {
                let (timeout, owner, repair) = (fields.timeout()?, fields.number()?, fields.flag()?);
                let wanted = Wanted { owner, repair, depth: 1, notified: true, token: None };
                match (&mut state.holder, state.poisoned) {
                    (None, Some(pid)) if !repair => Err(Failure::Poisoned { pid }),
                    (None, _) => Ok(Flow::Done(state.grant(cx.client(), cx.pid(), wanted))),
                    (Some(holder), _) if self.reentrant && holder.client == cx.client() && holder.owner == owner => {
                        holder.depth += 1;
                        Ok(Flow::Done(Body::new().number(holder.token).flag(true)))
                    }
                    _ => state.waiters.wait(cx, timeout, wanted),
                }
            }
            method::RELEASE => {
                state.check(cx.client(), fields.number()?)?;
                let free = state.holder.as_mut().is_none_or(|holder| {
                    holder.depth -= 1;
                    holder.depth == 0
                });
                if free {
                    state.holder = None;
                    state.pass_on();
                }
                Ok(Flow::Done(Body::new()))
            }
            method::IS_LOCKED => Ok(Flow::Done(Body::new().flag(state.holder.is_some()))),
            method::WAIT => {
                let (timeout, token) = (fields.timeout()?, fields.number()?);
                state.check(cx.client(), token)?;
                let (owner, depth) = state.holder.as_ref().map_or((0, 1), |holder| (holder.owner, holder.depth));
                let wanted = Wanted { owner, repair: false, depth, notified: false, token: Some(token) };
                // With no time at all the lock is let go and taken again, as with any other time.
                let timeout = timeout.map(|timeout| timeout.max(Duration::from_nanos(1)));
                let flow = state.conditions.wait(cx, timeout, wanted)?;
                state.holder = None;
                state.pass_on();
                Ok(flow)
            }
            method::NOTIFY => {
                let mut left = fields.number()?;
                while left > 0 {
                    let Some((responder, wanted)) = state.conditions.pop() else { break };
                    state.reacquire(responder, Wanted { notified: true, ..wanted });
                    left -= 1;
                }
                Ok(Flow::Done(Body::new()))
            }
            method => Err(Failure::UnknownMethod(method)),
        }
    }

    fn keeps_clients(&self) -> bool {
        true
    }

    fn leave(&self, client: ClientId) {
        let mut state = self.state.lock();
        drop(state.waiters.leave(client));
        drop(state.conditions.leave(client));
        if let Some(holder) = state.holder.take_if(|holder| holder.client == client) {
            state.poisoned = Some(holder.pid);
            state.pass_on();
        }
    }

    fn cancel(&self, client: ClientId, request: u64) {
        let mut state = self.state.lock();
        drop(state.waiters.cancel(client, request));
        drop(state.conditions.cancel(client, request));
    }

    fn expire(&self, ticket: u64) {
        let mut state = self.state.lock();
        if ticket.is_multiple_of(4) {
            if let Some((responder, _)) = state.waiters.expire(ticket) {
                responder.answer(Err(Failure::TimedOut));
            }
        } else if let Some((responder, wanted)) = state.conditions.expire(ticket) {
            state.reacquire(responder, wanted);
        }
    }

    fn retire(&self) {
        let mut state = self.state.lock();
        state.waiters.fail_all(&Failure::ObjectGone);
        state.conditions.fail_all(&Failure::ObjectGone);
    }
}

// ---- Locks and conditions: the client's side ------------------------------------------------------------------------

/// A number of this thread, for locks that a thread may take twice.
fn this_thread() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    thread_local! {
        static OWN: u64 = NEXT.fetch_add(1, Ordering::Relaxed);
    }
    OWN.with(|own| *own)
}

/// A lock that is held. Dropping it lets the lock go.
#[derive(Debug)]
struct Held {
    remote: Remote,
    grant: Grant,
    token: u64,
}

impl Held {
    fn read(result: &[u8], source: &Source<'_>) -> Decoded<(Self, bool)> {
        let mut fields = Fields(result);
        let (token, notified) = (fields.number().map_err(cut)?, fields.flag().map_err(cut)?);
        Ok((Held { remote: Remote(source.core.clone()), grant: source.grant(), token }, notified))
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.grant.give_back(method::RELEASE, Request::new().number(self.token));
    }
}

fn acquire<G>(
    remote: &Remote,
    timeout: Option<Duration>,
    owner: u64,
    repair: bool,
    decode: fn(&[u8], &Source<'_>) -> Decoded<G>,
) -> Call<G> {
    let mut request = waiting(timeout).number(owner);
    request.bytes().push(u8::from(repair));
    remote.request(method::ACQUIRE, Ok(request), decode).undo(Undo::Object(method::RELEASE))
}

/// A lock in a manager: one holder at a time, in all processes.
///
/// Its guard may move to other threads. When a process ends while it holds the lock, all who wait and all who come
/// later get [`ManagerError::Poisoned`], until somebody takes it with [`repair`](Self::repair).
#[must_use = "a proxy does nothing by itself"]
pub struct LockProxy {
    remote: Remote,
    _types: PhantomData<()>,
}

proxy!(LockProxy, "lock".to_owned());

/// Holds a [`LockProxy`] until it is dropped.
#[derive(Debug)]
#[must_use = "dropping it lets the lock go"]
pub struct LockGuard {
    _held: Held,
}

impl LockGuard {
    fn read(result: &[u8], source: &Source<'_>) -> Decoded<Self> {
        Held::read(result, source).map(|(held, _)| LockGuard { _held: held })
    }
}

impl LockProxy {
    /// Takes the lock, as soon as it is free.
    ///
    /// # Errors
    /// [`ManagerError::Poisoned`] when a process ended while it held the lock.
    ///
    /// # Cancellation safety
    /// Dropped before its end, it does not hold the lock, even if that was granted already.
    pub fn lock(&self) -> Call<LockGuard> {
        acquire(&self.remote, None, 0, false, LockGuard::read)
    }

    /// Takes the lock, if it is free in time.
    ///
    /// # Errors
    /// [`ManagerError::TimedOut`], and those of [`lock`](Self::lock).
    pub fn lock_timeout(&self, timeout: Duration) -> Call<LockGuard> {
        acquire(&self.remote, Some(timeout), 0, false, LockGuard::read)
    }

    /// Takes the lock if it is free now.
    ///
    /// # Errors
    /// [`ManagerError::TimedOut`] if it is not, and those of [`lock`](Self::lock).
    pub fn try_lock(&self) -> Call<LockGuard> {
        self.lock_timeout(Duration::ZERO)
    }

    /// Takes the lock though it is poisoned, and says that what it guards is in order, or will be before the guard is
    /// dropped.
    pub fn repair(&self) -> Call<LockGuard> {
        acquire(&self.remote, None, 0, true, LockGuard::read)
    }

    /// Whether somebody holds the lock.
    pub fn is_locked(&self) -> Call<bool> {
        self.remote.request(method::IS_LOCKED, Ok(Request::new()), flag)
    }
}

/// A lock in a manager that the thread which holds it may take again. Otherwise as [`LockProxy`].
///
/// The thread is the one that calls [`lock`](Self::lock); its guard stays on that thread, so this is for threads that
/// block and not for futures that move.
#[must_use = "a proxy does nothing by itself"]
pub struct RLockProxy {
    remote: Remote,
    _types: PhantomData<()>,
}

proxy!(RLockProxy, "rlock".to_owned());

/// Holds an [`RLockProxy`] until it is dropped.
#[derive(Debug)]
#[must_use = "dropping it lets the lock go"]
pub struct RLockGuard {
    _held: Held,
    _stays: PhantomData<*const ()>,
}

impl RLockGuard {
    fn read(result: &[u8], source: &Source<'_>) -> Decoded<Self> {
        Held::read(result, source).map(|(held, _)| RLockGuard { _held: held, _stays: PhantomData })
    }
}

impl RLockProxy {
    /// Takes the lock, as soon as it is free or this thread holds it.
    ///
    /// # Errors
    /// As [`LockProxy::lock`].
    pub fn lock(&self) -> Call<RLockGuard> {
        acquire(&self.remote, None, this_thread(), false, RLockGuard::read)
    }

    /// The same, if that is so in time.
    ///
    /// # Errors
    /// As [`LockProxy::lock_timeout`].
    pub fn lock_timeout(&self, timeout: Duration) -> Call<RLockGuard> {
        acquire(&self.remote, Some(timeout), this_thread(), false, RLockGuard::read)
    }

    /// The same, if that is so now.
    ///
    /// # Errors
    /// As [`LockProxy::try_lock`].
    pub fn try_lock(&self) -> Call<RLockGuard> {
        self.lock_timeout(Duration::ZERO)
    }

    /// Takes the lock though it is poisoned; see [`LockProxy::repair`].
    pub fn repair(&self) -> Call<RLockGuard> {
        acquire(&self.remote, None, this_thread(), true, RLockGuard::read)
    }
}

/// A lock in a manager under which processes wait for each other's changes.
#[must_use = "a proxy does nothing by itself"]
pub struct ConditionProxy {
    remote: Remote,
    _types: PhantomData<()>,
}

proxy!(ConditionProxy, "condition".to_owned());

/// Holds the lock of a [`ConditionProxy`] until it is dropped.
#[derive(Debug)]
#[must_use = "dropping it lets the lock go"]
pub struct ConditionGuard {
    held: Held,
}

impl ConditionProxy {
    /// Takes the lock; see [`LockProxy::lock`].
    pub fn lock(&self) -> Call<ConditionGuard> {
        acquire(&self.remote, None, 0, false, ConditionGuard::read)
    }

    /// Takes the lock though it is poisoned; see [`LockProxy::repair`].
    pub fn repair(&self) -> Call<ConditionGuard> {
        acquire(&self.remote, None, 0, true, ConditionGuard::read)
    }
}

impl ConditionGuard {
    fn read(result: &[u8], source: &Source<'_>) -> Decoded<Self> {
        Held::read(result, source).map(|(held, _)| ConditionGuard { held })
    }

    fn waiting(&self, timeout: Option<Duration>) -> Call<bool> {
        let request = waiting(timeout).number(self.held.token);
        let call = self.held.remote.request(method::WAIT, Ok(request), |result, _| {
            let mut fields = Fields(result);
            fields.number().and_then(|_token| fields.flag()).map_err(cut)
        });
        call.undo(Undo::Object(method::RELEASE))
    }

    /// Lets the lock go, waits for a [`notify`](Self::notify_one), and takes the lock again; nothing comes between the
    /// first two. Look again at what you wait for afterwards: others may have been quicker.
    ///
    /// # Errors
    /// [`ManagerError::Poisoned`] when a process has ended meanwhile that held the lock. After any error but
    /// [`ManagerError::Throttled`] the guard holds nothing any more.
    ///
    /// # Cancellation safety
    /// Dropped before its end, the guard holds nothing any more.
    pub fn wait(&self) -> Call<bool> {
        self.waiting(None)
    }

    /// The same for so long; the result is whether there was a notification in time. The lock is taken again in either
    /// case, however long that takes.
    ///
    /// # Errors
    /// As [`wait`](Self::wait).
    pub fn wait_timeout(&self, timeout: Duration) -> Call<bool> {
        self.waiting(Some(timeout))
    }

    /// Ends the longest wait.
    pub fn notify_one(&self) -> Call<()> {
        self.notify(1)
    }

    /// Ends so many waits.
    pub fn notify(&self, waits: u64) -> Call<()> {
        self.held.remote.request(method::NOTIFY, Ok(Request::new().number(waits)), unit)
    }

    /// Ends all waits.
    pub fn notify_all(&self) -> Call<()> {
        self.notify(u64::MAX)
    }
}

// ---- Events ---------------------------------------------------------------------------------------------------------

/// A flag that is waited for.
pub(super) struct Event {
    state: Mutex<(bool, Waiters<()>)>,
}

impl Default for Event {
    fn default() -> Self {
        Event { state: Mutex::new((false, Waiters::lane(0))) }
    }
}

impl Object for Event {
    fn call(&self, method: u32, arguments: &[u8], cx: &Cx<'_>) -> Answer {
        let mut state = self.state.lock();
        match method {
            method::SET => {
                state.0 = true;
                for (responder, ()) in state.1.drain() {
                    responder.answer(Ok(Body::new()));
                }
                Ok(Flow::Done(Body::new()))
            }
            method::CLEAR => {
                state.0 = false;
                Ok(Flow::Done(Body::new()))
            }
            method::IS_SET => Ok(Flow::Done(Body::new().flag(state.0))),
            method::WAIT if state.0 => Ok(Flow::Done(Body::new())),
            method::WAIT => state.1.wait(cx, Fields(arguments).timeout()?, ()),
            method => Err(Failure::UnknownMethod(method)),
        }
    }

    fn keeps_clients(&self) -> bool {
        true
    }

    fn leave(&self, client: ClientId) {
        drop(self.state.lock().1.leave(client));
    }

    fn cancel(&self, client: ClientId, request: u64) {
        drop(self.state.lock().1.cancel(client, request));
    }

    fn expire(&self, ticket: u64) {
        if let Some((responder, ())) = self.state.lock().1.expire(ticket) {
            responder.answer(Err(Failure::TimedOut));
        }
    }

    fn retire(&self) {
        self.state.lock().1.fail_all(&Failure::ObjectGone);
    }
}

/// A flag in a manager that processes wait for.
#[must_use = "a proxy does nothing by itself"]
pub struct EventProxy {
    remote: Remote,
    _types: PhantomData<()>,
}

proxy!(EventProxy, "event".to_owned());

impl EventProxy {
    /// Sets it: all who wait go on, and nobody waits any more.
    pub fn set(&self) -> Call<()> {
        self.remote.request(method::SET, Ok(Request::new()), unit)
    }

    /// Takes it back.
    pub fn clear(&self) -> Call<()> {
        self.remote.request(method::CLEAR, Ok(Request::new()), unit)
    }

    /// Whether it is set.
    pub fn is_set(&self) -> Call<bool> {
        self.remote.request(method::IS_SET, Ok(Request::new()), flag)
    }

    /// Waits until it is set.
    pub fn wait(&self) -> Call<()> {
        self.remote.request(method::WAIT, Ok(waiting(None)), unit).undo(Undo::Nothing)
    }

    /// Waits until it is set, for so long.
    ///
    /// # Errors
    /// [`ManagerError::TimedOut`].
    pub fn wait_timeout(&self, timeout: Duration) -> Call<()> {
        self.remote.request(method::WAIT, Ok(waiting(Some(timeout))), unit).undo(Undo::Nothing)
    }
}

// ---- Semaphores -----------------------------------------------------------------------------------------------------

/// A number of permits.
pub(super) struct Semaphore {
    bounded: bool,
    state: Mutex<SemaphoreState>,
}

struct SemaphoreState {
    available: u64,
    /// Available and held together.
    total: u64,
    held: HashMap<ClientId, u64>,
    waiters: Waiters<u64>,
}

impl Semaphore {
    pub(super) fn new(permits: u64, bounded: bool) -> Self {
        let state =
            SemaphoreState { available: permits, total: permits, held: HashMap::new(), waiters: Waiters::lane(0) };
        Semaphore { bounded, state: Mutex::new(state) }
    }
}

impl SemaphoreState {
    fn take(&mut self, client: ClientId, permits: u64) -> Body {
        self.available -= permits;
        *self.held.entry(client).or_default() += permits;
        Body::new().number(permits)
    }

    /// Serves those who wait, in their order: a large wish is not overtaken for ever by small ones.
    fn serve(&mut self) {
        while self.waiters.peek().is_some_and(|wanted| *wanted <= self.available) {
            let Some((responder, permits)) = self.waiters.pop() else { return };
            let body = self.take(responder.client(), permits);
            responder.answer(Ok(body));
        }
    }

    fn give_back(&mut self, client: ClientId, permits: u64) -> Result<(), Failure> {
        match self.held.get_mut(&client) {
            Some(held) if *held >= permits => {
                *held -= permits;
                if *held == 0 {
                    self.held.remove(&client);
                }
                self.available += permits;
                self.serve();
                Ok(())
            }
            _ => Err(Failure::NotHeld("more permits are given back than were taken".to_owned())),
        }
    }
}

impl Object for Semaphore {
    fn call(&self, method: u32, arguments: &[u8], cx: &Cx<'_>) -> Answer {
        let mut fields = Fields(arguments);
        let mut state = self.state.lock();
        let state = &mut *state;
        match method {
            method::ACQUIRE => {
                let (timeout, permits) = (fields.timeout()?, fields.number()?);
                if self.bounded && permits > state.total {
                    return Err(Failure::NotHeld(format!("the semaphore has only {} permits", state.total)));
                }
                if state.waiters.is_empty() && permits <= state.available {
                    return Ok(Flow::Done(state.take(cx.client(), permits)));
                }
                state.waiters.wait(cx, timeout, permits)
            }
            method::RELEASE => {
                state.give_back(cx.client(), fields.number()?)?;
                Ok(Flow::Done(Body::new()))
            }
            method::ADD => {
                let permits = fields.number()?;
                if self.bounded {
                    return Err(Failure::NotHeld(
                        "a bounded semaphore gets no more permits than it began with".to_owned(),
                    ));
                }
                let total = state.total.checked_add(permits);
                state.total = total.ok_or_else(|| Failure::NotHeld("there are too many permits".to_owned()))?;
                state.available += permits;
                state.serve();
                Ok(Flow::Done(Body::new()))
            }
            method::AVAILABLE => Ok(Flow::Done(Body::new().number(state.available))),
            method => Err(Failure::UnknownMethod(method)),
        }
    }

    fn keeps_clients(&self) -> bool {
        true
    }

    fn leave(&self, client: ClientId) {
        let mut state = self.state.lock();
        drop(state.waiters.leave(client));
        if let Some(held) = state.held.remove(&client) {
            state.available += held;
        }
        state.serve();
    }

    fn cancel(&self, client: ClientId, request: u64) {
        let mut state = self.state.lock();
        drop(state.waiters.cancel(client, request));
        state.serve();
    }

    fn expire(&self, ticket: u64) {
        let mut state = self.state.lock();
        if let Some((responder, _)) = state.waiters.expire(ticket) {
            responder.answer(Err(Failure::TimedOut));
        }
        state.serve();
    }

    fn retire(&self) {
        self.state.lock().waiters.fail_all(&Failure::ObjectGone);
    }
}

/// A number of permits in a manager. Those of a process that ends are given back.
#[must_use = "a proxy does nothing by itself"]
pub struct SemaphoreProxy {
    remote: Remote,
    _types: PhantomData<()>,
}

proxy!(SemaphoreProxy, "semaphore".to_owned());

/// Permits of a [`SemaphoreProxy`], given back when this is dropped.
#[derive(Debug)]
#[must_use = "dropping it gives the permits back"]
pub struct Permit {
    grant: Grant,
    permits: u64,
}

impl Permit {
    fn read(result: &[u8], source: &Source<'_>) -> Decoded<Self> {
        Ok(Permit { grant: source.grant(), permits: number(result, source)? })
    }

    /// How many there are.
    #[must_use = "it has no effect but its result"]
    pub fn permits(&self) -> u64 {
        self.permits
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.grant.give_back(method::RELEASE, Request::new().number(self.permits));
    }
}

impl SemaphoreProxy {
    fn acquiring(&self, permits: u64, timeout: Option<Duration>) -> Call<Permit> {
        let request = waiting(timeout).number(permits);
        self.remote.request(method::ACQUIRE, Ok(request), Permit::read).undo(Undo::Object(method::RELEASE))
    }

    /// Takes a permit, as soon as there is one. Permits are given out in the order in which they were asked for.
    ///
    /// # Cancellation safety
    /// Dropped before its end, it holds no permit.
    pub fn acquire(&self) -> Call<Permit> {
        self.acquiring(1, None)
    }

    /// Takes several permits at once.
    ///
    /// # Errors
    /// [`ManagerError::NotHeld`] if a bounded semaphore has fewer.
    pub fn acquire_many(&self, permits: u64) -> Call<Permit> {
        self.acquiring(permits, None)
    }

    /// Takes a permit, if there is one in time.
    ///
    /// # Errors
    /// [`ManagerError::TimedOut`].
    pub fn acquire_timeout(&self, timeout: Duration) -> Call<Permit> {
        self.acquiring(1, Some(timeout))
    }

    /// Takes a permit if there is one now.
    ///
    /// # Errors
    /// [`ManagerError::TimedOut`] if there is none.
    pub fn try_acquire(&self) -> Call<Permit> {
        self.acquiring(1, Some(Duration::ZERO))
    }

    /// Adds permits, as Python's `release` without an `acquire`.
    ///
    /// # Errors
    /// [`ManagerError::NotHeld`] if the semaphore is bounded.
    pub fn add_permits(&self, permits: u64) -> Call<()> {
        self.remote.request(method::ADD, Ok(Request::new().number(permits)), unit)
    }

    /// How many permits nobody holds.
    pub fn available(&self) -> Call<u64> {
        self.remote.request(method::AVAILABLE, Ok(Request::new()), number)
    }
}

// ---- Barriers -------------------------------------------------------------------------------------------------------

/// A place where so many meet.
pub(super) struct Barrier {
    parties: u64,
    state: Mutex<BarrierInner>,
}

struct BarrierInner {
    broken: bool,
    waiters: Waiters<()>,
}

impl Barrier {
    pub(super) fn new(parties: u64) -> Result<Self, Failure> {
        if parties == 0 {
            return Err(Failure::Constructor("a barrier has at least 1 party".to_owned()));
        }
        let state = BarrierInner { broken: false, waiters: Waiters::lane(0) };
        Ok(Barrier { parties, state: Mutex::new(state) })
    }
}

impl Object for Barrier {
    fn call(&self, method: u32, arguments: &[u8], cx: &Cx<'_>) -> Answer {
        let mut state = self.state.lock();
        match method {
            method::WAIT => {
                if state.broken {
                    return Err(Failure::BarrierBroken);
                }
                if state.waiters.len() as u64 + 1 < self.parties {
                    let timeout = Fields(arguments).timeout()?;
                    let flow = state.waiters.wait(cx, timeout, ());
                    // Of those who never came the others needn't know, such as of one with too many waits already.
                    if matches!(flow, Err(Failure::TimedOut)) {
                        state.broken = true;
                        state.waiters.fail_all(&Failure::BarrierBroken);
                    }
                    return flow;
                }
                let waited: VecDeque<_> = state.waiters.drain().into();
                for (place, (responder, ())) in (0..).zip(waited) {
                    responder.answer(Ok(Body::new().number(place)));
                }
                Ok(Flow::Done(Body::new().number(self.parties - 1)))
            }
            method::ABORT | method::RESET => {
                state.broken = method == method::ABORT;
                state.waiters.fail_all(&Failure::BarrierBroken);
                Ok(Flow::Done(Body::new()))
            }
            method::INFO => {
                Ok(Flow::Done(Body::new().number(self.parties).number(state.waiters.len() as u64).flag(state.broken)))
            }
            method => Err(Failure::UnknownMethod(method)),
        }
    }

    fn keeps_clients(&self) -> bool {
        true
    }

    fn leave(&self, client: ClientId) {
        drop(self.state.lock().waiters.leave(client));
    }

    fn cancel(&self, client: ClientId, request: u64) {
        drop(self.state.lock().waiters.cancel(client, request));
    }

    fn expire(&self, ticket: u64) {
        let mut state = self.state.lock();
        if let Some((responder, ())) = state.waiters.expire(ticket) {
            state.broken = true;
            responder.answer(Err(Failure::TimedOut));
            state.waiters.fail_all(&Failure::BarrierBroken);
        }
    }

    fn retire(&self) {
        self.state.lock().waiters.fail_all(&Failure::ObjectGone);
    }
}

/// A place in a manager where a number of parties wait for each other, again and again.
///
/// The seat of a process that ends while it waits is free again. One that ends before it comes is not known to the
/// barrier; give the wait a timeout.
#[must_use = "a proxy does nothing by itself"]
pub struct BarrierProxy {
    remote: Remote,
    _types: PhantomData<()>,
}

proxy!(BarrierProxy, "barrier".to_owned());

/// How a barrier stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct BarrierState {
    /// How many have to come.
    pub parties: u64,
    /// How many are there.
    pub waiting: u64,
    /// Whether it is broken.
    pub broken: bool,
}

impl BarrierProxy {
    fn waiting(&self, timeout: Option<Duration>) -> Call<u64> {
        self.remote.request(method::WAIT, Ok(waiting(timeout)), number).undo(Undo::Nothing)
    }

    /// Waits until all have come. The result is one's place in the order in which they came, from 0; who has the last
    /// one, or any other, can do what only one is to do.
    ///
    /// # Errors
    /// [`ManagerError::BarrierBroken`], at once or when it breaks during the wait.
    ///
    /// # Cancellation safety
    /// Dropped before its end, the seat is free again.
    pub fn wait(&self) -> Call<u64> {
        self.waiting(None)
    }

    /// The same for so long. When the time is up, the barrier is broken for all.
    ///
    /// # Errors
    /// [`ManagerError::TimedOut`], [`ManagerError::BarrierBroken`].
    pub fn wait_timeout(&self, timeout: Duration) -> Call<u64> {
        self.waiting(Some(timeout))
    }

    /// Breaks the barrier: nobody waits any more, until [`reset`](Self::reset).
    pub fn abort(&self) -> Call<()> {
        self.remote.request(method::ABORT, Ok(Request::new()), unit)
    }

    /// Makes the barrier new. Those who wait learn that it broke.
    pub fn reset(&self) -> Call<()> {
        self.remote.request(method::RESET, Ok(Request::new()), unit)
    }

    /// How the barrier stands.
    pub fn state(&self) -> Call<BarrierState> {
        self.remote.request(method::INFO, Ok(Request::new()), |result, _| {
            let mut fields = Fields(result);
            let (parties, waiting) = (fields.number().map_err(cut)?, fields.number().map_err(cut)?);
            Ok(BarrierState { parties, waiting, broken: fields.flag().map_err(cut)? })
        })
    }
}
