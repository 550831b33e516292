//! What an object of a server is, seen from the server: it takes calls, answers them now or later, and hears when one
//! of its clients has gone.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::error::Failure;
use super::server::{Server, Session, Slot};
use super::timers::{Alarm, Key, Timers};
use super::wire::Body;

/// A connection of a process, by number; numbers are not used again.
pub(super) type ClientId = u64;

/// How many requests of one connection may wait in objects at a time: locks, gets, barriers and so on.
pub(super) const MAX_WAITING: usize = 65_536;

/// What a call came to.
pub(super) enum Flow {
    /// The result.
    Done(Body),
    /// The object has kept a [`Responder`], and answers by it.
    Later,
}

/// How a call ends for the connection's thread.
pub(super) type Answer = Result<Flow, Failure>;

/// An object of a server.
///
/// Calls come from the threads of connections, several at a time. None of them may block for another client.
pub(super) trait Object: Send + Sync {
    fn call(&self, method: u32, arguments: &[u8], cx: &Cx<'_>) -> Answer;

    /// Whether it keeps something for each client: waits, locks, permits.
    fn keeps_clients(&self) -> bool {
        false
    }

    /// A client has gone; whatever it held is given back.
    fn leave(&self, _client: ClientId) {}

    /// A client no longer waits for the answer to a request.
    fn cancel(&self, _client: ClientId, _request: u64) {}

    /// The time of a wait is up.
    fn expire(&self, _ticket: u64) {}

    /// The object was removed: nobody is to wait at it any more.
    fn retire(&self) {}
}

/// A call on its way through an object.
pub(super) struct Cx<'a> {
    pub(super) server: &'a Arc<Server>,
    pub(super) session: &'a Arc<Session>,
    pub(super) slot: &'a Arc<Slot>,
    pub(super) request: u64,
}

impl Cx<'_> {
    pub(super) fn client(&self) -> ClientId {
        self.session.client
    }

    pub(super) fn pid(&self) -> u32 {
        self.session.pid
    }
}

/// The duty to answer a request later. Dropped without an answer, it says that the object is gone.
pub(super) struct Responder {
    session: Arc<Session>,
    request: u64,
    answered: bool,
}

impl Responder {
    /// # Errors
    /// When so many requests of this connection wait already that it must be a mistake.
    fn new(cx: &Cx<'_>) -> Result<Self, Failure> {
        if cx.session.waiting.fetch_add(1, Ordering::Relaxed) >= MAX_WAITING {
            cx.session.waiting.fetch_sub(1, Ordering::Relaxed);
            return Err(Failure::Throttled { retry_after: Duration::from_millis(100) });
        }
        Ok(Responder { session: cx.session.clone(), request: cx.request, answered: false })
    }

    pub(super) fn client(&self) -> ClientId {
        self.session.client
    }

    pub(super) fn pid(&self) -> u32 {
        self.session.pid
    }

    pub(super) fn answer(mut self, result: Result<Body, Failure>) {
        self.send(result);
    }

    fn send(&mut self, result: Result<Body, Failure>) {
        if !std::mem::replace(&mut self.answered, true) {
            self.session.waiting.fetch_sub(1, Ordering::Relaxed);
            self.session.answer_later(self.request, result);
        }
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        self.send(Err(Failure::ObjectGone));
    }
}

/// The requests that wait at an object, in the order they came.
///
/// An object with several such queues gives each a lane of its own, from 0 to 3, by which tickets tell them apart.
pub(super) struct Waiters<T> {
    waiting: VecDeque<Waiter<T>>,
    next: u64,
}

struct Waiter<T> {
    ticket: u64,
    responder: Responder,
    timer: Option<(Arc<Timers>, Key)>,
    data: T,
}

impl<T> Waiter<T> {
    fn end(self) -> (Responder, T) {
        if let Some((timers, key)) = self.timer {
            timers.unset(key);
        }
        (self.responder, self.data)
    }
}

impl<T> Waiters<T> {
    pub(super) fn lane(lane: u64) -> Self {
        Waiters { waiting: VecDeque::new(), next: lane }
    }

    /// Lets the call wait, for as long as `timeout`. With no time at all it has failed already.
    pub(super) fn wait(&mut self, cx: &Cx<'_>, timeout: Option<Duration>, data: T) -> Answer {
        if timeout == Some(Duration::ZERO) {
            return Err(Failure::TimedOut);
        }
        let responder = Responder::new(cx)?;
        self.push(cx.server.timers(), cx.slot, timeout, responder, data);
        Ok(Flow::Later)
    }

    fn push(
        &mut self,
        timers: &Arc<Timers>,
        slot: &Arc<Slot>,
        timeout: Option<Duration>,
        responder: Responder,
        data: T,
    ) {
        let ticket = self.next;
        self.next += 4;
        let timer = timeout.and_then(|after| {
            let key = timers.set(after, Alarm::Expire { slot: Arc::downgrade(slot), ticket })?;
            Some((timers.clone(), key))
        });
        self.waiting.push_back(Waiter { ticket, responder, timer, data });
    }

    /// Lets a call wait that has waited elsewhere in the object before, from now on without a limit.
    pub(super) fn push_again(&mut self, responder: Responder, data: T) {
        let ticket = self.next;
        self.next += 4;
        self.waiting.push_back(Waiter { ticket, responder, timer: None, data });
    }

    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Whose turn it is, without ending the wait.
    pub(super) fn peek(&self) -> Option<&T> {
        self.waiting.front().map(|waiter| &waiter.data)
    }

    /// Ends the longest wait.
    pub(super) fn pop(&mut self) -> Option<(Responder, T)> {
        self.waiting.pop_front().map(Waiter::end)
    }

    /// Ends the wait of this ticket, if it goes on.
    pub(super) fn expire(&mut self, ticket: u64) -> Option<(Responder, T)> {
        let at = self.waiting.binary_search_by_key(&ticket, |waiter| waiter.ticket).ok()?;
        self.waiting.remove(at).map(Waiter::end)
    }

    /// Ends the wait of this request, if it goes on.
    pub(super) fn cancel(&mut self, client: ClientId, request: u64) -> Option<(Responder, T)> {
        let is_it = |waiter: &Waiter<T>| waiter.responder.client() == client && waiter.responder.request == request;
        let at = self.waiting.iter().position(is_it)?;
        self.waiting.remove(at).map(Waiter::end)
    }

    /// Ends all waits of a client.
    pub(super) fn leave(&mut self, client: ClientId) -> Vec<(Responder, T)> {
        let (gone, stay) =
            std::mem::take(&mut self.waiting).into_iter().partition(|waiter| waiter.responder.client() == client);
        self.waiting = stay;
        let gone: VecDeque<Waiter<T>> = gone;
        gone.into_iter().map(Waiter::end).collect()
    }

    /// Ends all waits.
    pub(super) fn drain(&mut self) -> Vec<(Responder, T)> {
        std::mem::take(&mut self.waiting).into_iter().map(Waiter::end).collect()
    }

    /// Ends all waits with one failure.
    pub(super) fn fail_all(&mut self, failure: &Failure) {
        for (responder, _) in self.drain() {
            responder.answer(Err(failure.clone()));
        }
    }
}
