//! Queues. Who waits for an item or for room does so in the server, in a list of waiting requests, and not on a thread.

use std::any::type_name;
use std::collections::{HashMap, VecDeque};
use std::marker::PhantomData;
use std::time::Duration;

use parking_lot::Mutex;

use super::proxy;
use crate::manager::Data;
use crate::manager::error::{Failure, ManagerError};
use crate::manager::object::{Answer, ClientId, Cx, Flow, Object, Waiters};
use crate::manager::proxy::{Call, Remote, Source, Undo};
use crate::manager::wire::{Body, Fields, Request, decode_result, timeout_number};

mod method {
    pub(super) const PUT: u32 = 1;
    pub(super) const GET: u32 = 2;
    pub(super) const LEN: u32 = 3;
    pub(super) const CLOSE: u32 = 4;
    pub(super) const TASK_DONE: u32 = 5;
    pub(super) const JOIN: u32 = 6;
    pub(super) const UNGET: u32 = 7;
    pub(super) const TRY_PUT: u32 = 8;
    pub(super) const TRY_GET: u32 = 9;
    pub(super) const CAPACITY: u32 = 10;
    pub(super) const TRY_UNGET: u32 = 11;
}

// ---- The server's side ----------------------------------------------------------------------------------------------

/// Items in the order in which they were put.
pub(super) struct Queue {
    state: Mutex<State>,
}

struct State {
    items: VecDeque<Vec<u8>>,
    capacity: u64,
    closed: bool,
    /// Items that were put and for which `task_done` was not said.
    unfinished: u64,
    /// How many of them each client has taken. Their sum is that of all that are taken and not done.
    taken: HashMap<ClientId, u64>,
    /// How many were with clients that have gone.
    lost: u64,
    getters: Waiters<()>,
    putters: Waiters<Vec<u8>>,
    joiners: Waiters<()>,
}

impl Queue {
    /// A queue for so many items; 0 stands for any number.
    pub(super) fn new(capacity: u64) -> Self {
        Queue {
            state: Mutex::new(State {
                items: VecDeque::new(),
                capacity: if capacity == 0 { u64::MAX } else { capacity },
                closed: false,
                unfinished: 0,
                taken: HashMap::new(),
                lost: 0,
                getters: Waiters::lane(0),
                putters: Waiters::lane(1),
                joiners: Waiters::lane(2),
            }),
        }
    }
}

impl State {
    fn has_room(&self) -> bool {
        (self.items.len() as u64) < self.capacity
    }

    /// Takes an item in, which has room: gives it to whoever waits for one.
    fn put(&mut self, item: Vec<u8>) {
        self.unfinished += 1;
        self.offer(item, false);
    }

    fn offer(&mut self, item: Vec<u8>, first: bool) {
        match self.getters.pop() {
            Some((responder, ())) => {
                *self.taken.entry(responder.client()).or_default() += 1;
                responder.answer(Ok(Body::new().rest(&item)));
            }
            None if first => self.items.push_front(item),
            None => self.items.push_back(item),
        }
    }

    /// Takes an item out for a client, and lets the next one in that waits for room.
    fn get(&mut self, client: ClientId) -> Option<Vec<u8>> {
        let item = self.items.pop_front()?;
        *self.taken.entry(client).or_default() += 1;
        while self.has_room() {
            let Some((responder, next)) = self.putters.pop() else { break };
            self.put(next);
            responder.answer(Ok(Body::new()));
        }
        Some(item)
    }

    /// One item that was taken is dealt with, by whichever client it was taken.
    fn done(&mut self, client: ClientId) -> Result<(), Failure> {
        let from = if self.taken.contains_key(&client) {
            client
        } else {
            let most = self.taken.iter().max_by_key(|(_, count)| **count).map(|(client, _)| *client);
            most.ok_or_else(|| Failure::NotHeld("task_done() was called more often than items were taken".to_owned()))?
        };
        self.give_back(from, 1);
        Ok(())
    }

    fn give_back(&mut self, client: ClientId, count: u64) {
        if let Some(taken) = self.taken.get_mut(&client) {
            *taken = taken.saturating_sub(count);
            if *taken == 0 {
                self.taken.remove(&client);
            }
        }
        self.unfinished = self.unfinished.saturating_sub(count);
        self.check_joiners();
    }

    fn check_joiners(&mut self) {
        if self.unfinished == 0 {
            let lost = self.lost;
            for (responder, ()) in self.joiners.drain() {
                responder.answer(Ok(Body::new().number(lost)));
            }
        }
    }
}

impl Object for Queue {
    fn call(&self, method: u32, arguments: &[u8], cx: &Cx<'_>) -> Answer {
        let mut fields = Fields(arguments);
        let mut state = self.state.lock();
        match method {
            method::PUT | method::TRY_PUT => {
                let timeout = if method == method::PUT { fields.timeout()? } else { None };
                if state.closed {
                    return Err(Failure::Closed);
                }
                if state.has_room() {
                    state.put(fields.rest().to_vec());
                    return Ok(Flow::Done(Body::new().flag(true)));
                }
                if method == method::TRY_PUT {
                    return Ok(Flow::Done(Body::new().flag(false)));
                }
                state.putters.wait(cx, timeout, fields.rest().to_vec())
            }
            method::GET => {
                let timeout = fields.timeout()?;
                if let Some(item) = state.get(cx.client()) {
                    return Ok(Flow::Done(Body::new().rest(&item)));
                }
                if state.closed {
                    return Err(Failure::Closed);
                }
                state.getters.wait(cx, timeout, ())
            }
            method::TRY_GET => match state.get(cx.client()) {
                Some(item) => Ok(Flow::Done(Body::new().flag(true).rest(&item))),
                None if state.closed => Err(Failure::Closed),
                None => Ok(Flow::Done(Body::new().flag(false))),
            },
            method::UNGET | method::TRY_UNGET => {
                let has_item = method == method::UNGET || fields.flag()?;
                if has_item && let Some(taken) = state.taken.get_mut(&cx.client()) {
                    *taken -= 1;
                    if *taken == 0 {
                        state.taken.remove(&cx.client());
                    }
                    state.offer(fields.rest().to_vec(), true);
                }
                Ok(Flow::Done(Body::new()))
            }
            method::LEN => Ok(Flow::Done(Body::new().number(state.items.len() as u64))),
            method::CAPACITY => Ok(Flow::Done(Body::new().number(state.capacity))),
            method::CLOSE => {
                state.closed = true;
                state.putters.fail_all(&Failure::Closed);
                state.getters.fail_all(&Failure::Closed);
                Ok(Flow::Done(Body::new()))
            }
            method::TASK_DONE => {
                state.done(cx.client())?;
                Ok(Flow::Done(Body::new()))
            }
            method::JOIN => {
                if state.unfinished == 0 {
                    return Ok(Flow::Done(Body::new().number(state.lost)));
                }
                state.joiners.wait(cx, fields.timeout()?, ())
            }
            method => Err(Failure::UnknownMethod(method)),
        }
    }

    fn keeps_clients(&self) -> bool {
        true
    }

    fn leave(&self, client: ClientId) {
        let mut state = self.state.lock();
        drop(state.getters.leave(client));
        drop(state.putters.leave(client));
        drop(state.joiners.leave(client));
        let taken = state.taken.get(&client).copied().unwrap_or(0);
        if taken > 0 {
            state.lost += taken;
            state.give_back(client, taken);
        }
    }

    fn cancel(&self, client: ClientId, request: u64) {
        let mut state = self.state.lock();
        drop(state.getters.cancel(client, request));
        drop(state.putters.cancel(client, request));
        drop(state.joiners.cancel(client, request));
    }

    fn expire(&self, ticket: u64) {
        let mut state = self.state.lock();
        let responder = match ticket % 4 {
            0 => state.getters.expire(ticket).map(|(responder, ())| responder),
            1 => state.putters.expire(ticket).map(|(responder, _)| responder),
            _ => state.joiners.expire(ticket).map(|(responder, ())| responder),
        };
        if let Some(responder) = responder {
            responder.answer(Err(Failure::TimedOut));
        }
    }

    fn retire(&self) {
        let mut state = self.state.lock();
        state.getters.fail_all(&Failure::ObjectGone);
        state.putters.fail_all(&Failure::ObjectGone);
        state.joiners.fail_all(&Failure::ObjectGone);
    }
}

// ---- The client's side ----------------------------------------------------------------------------------------------

/// A queue in a manager, for any number of producers and consumers in any processes; bounded or not.
///
/// Items are given to consumers in the order in which these asked. A consumer that is killed loses the items it has
/// taken and nothing else; [`join`](Self::join) does not wait for those.
#[must_use = "a proxy does nothing by itself"]
pub struct QueueProxy<T> {
    remote: Remote,
    _types: PhantomData<fn() -> T>,
}

proxy!(QueueProxy, format!("queue<{}>", type_name::<T>()), T);

type Decoded<R> = Result<R, ManagerError>;

fn cut(failure: Failure) -> ManagerError {
    failure.explain("queue")
}

fn unit(_result: &[u8], _source: &Source<'_>) -> Decoded<()> {
    Ok(())
}

fn number(result: &[u8], _source: &Source<'_>) -> Decoded<u64> {
    Fields(result).number().map_err(cut)
}

impl<T: Data> QueueProxy<T> {
    fn waiting_put(&self, item: &T, timeout: Option<Duration>) -> Call<()> {
        let request = Request::new().number(timeout_number(timeout)).last(item);
        // Waits may be taken back; what was put already stays.
        self.remote.request(method::PUT, request, unit).undo(Undo::Nothing)
    }

    fn waiting_get(&self, timeout: Option<Duration>) -> Call<T> {
        let request = Request::new().number(timeout_number(timeout));
        let call = self.remote.request(method::GET, Ok(request), |result, _| decode_result(result));
        call.undo(Undo::Object(method::UNGET))
    }

    /// Puts an item in, as soon as there is room.
    ///
    /// # Errors
    /// [`ManagerError::Closed`].
    ///
    /// # Cancellation safety
    /// Dropped while it waits, the item is not put. Dropped as the answer is on its way, it was.
    pub fn put(&self, item: &T) -> Call<()> {
        self.waiting_put(item, None)
    }

    /// Puts an item in, if there is room in time.
    ///
    /// # Errors
    /// [`ManagerError::TimedOut`], [`ManagerError::Closed`].
    pub fn put_timeout(&self, item: &T, timeout: Duration) -> Call<()> {
        self.waiting_put(item, Some(timeout))
    }

    /// Puts an item in if there is room now; the result is whether there was.
    ///
    /// # Errors
    /// [`ManagerError::Closed`].
    pub fn try_put(&self, item: &T) -> Call<bool> {
        self.remote.request(method::TRY_PUT, Request::new().last(item), |result, _| Fields(result).flag().map_err(cut))
    }

    /// Takes the next item out, as soon as there is one.
    ///
    /// # Errors
    /// [`ManagerError::Closed`] when the queue was closed and is empty.
    ///
    /// # Cancellation safety
    /// No item is lost: one that was on its way goes back to the front.
    pub fn get(&self) -> Call<T> {
        self.waiting_get(None)
    }

    /// Takes the next item out, if there is one in time.
    ///
    /// # Errors
    /// [`ManagerError::TimedOut`], [`ManagerError::Closed`].
    pub fn get_timeout(&self, timeout: Duration) -> Call<T> {
        self.waiting_get(Some(timeout))
    }

    /// Takes the next item out if there is one now.
    ///
    /// # Errors
    /// [`ManagerError::Closed`] when the queue was closed and is empty.
    ///
    /// # Cancellation safety
    /// As [`get`](Self::get).
    pub fn try_get(&self) -> Call<Option<T>> {
        let call = self.remote.request(method::TRY_GET, Ok(Request::new()), |result, _| {
            let mut fields = Fields(result);
            if fields.flag().map_err(cut)? { decode_result(fields.rest()).map(Some) } else { Ok(None) }
        });
        call.undo(Undo::Object(method::TRY_UNGET))
    }

    /// How many items wait.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> Call<usize> {
        self.remote.request(method::LEN, Ok(Request::new()), |result, source| {
            number(result, source).map(|len| usize::try_from(len).unwrap_or(usize::MAX))
        })
    }

    /// How many items may wait; `None` for any number.
    pub fn capacity(&self) -> Call<Option<u64>> {
        self.remote.request(method::CAPACITY, Ok(Request::new()), |result, source| {
            number(result, source).map(|capacity| (capacity < u64::MAX).then_some(capacity))
        })
    }

    /// Lets nobody put anything any more. What is in the queue can still be taken; after that, and for those who wait
    /// now, the queue is closed.
    pub fn close(&self) -> Call<()> {
        self.remote.request(method::CLOSE, Ok(Request::new()), unit)
    }

    /// Says that an item that was taken is dealt with; for those who [`join`](Self::join).
    ///
    /// # Errors
    /// [`ManagerError::NotHeld`] when it was said for all items already.
    pub fn task_done(&self) -> Call<()> {
        self.remote.request(method::TASK_DONE, Ok(Request::new()), unit)
    }

    /// Waits until all items were dealt with. The result is how many were not, ever: they had been taken by processes
    /// that ended before [`task_done`](Self::task_done).
    pub fn join(&self) -> Call<u64> {
        self.waiting_join(None)
    }

    /// The same, for so long.
    ///
    /// # Errors
    /// [`ManagerError::TimedOut`].
    pub fn join_timeout(&self, timeout: Duration) -> Call<u64> {
        self.waiting_join(Some(timeout))
    }

    fn waiting_join(&self, timeout: Option<Duration>) -> Call<u64> {
        let request = Request::new().number(timeout_number(timeout));
        self.remote.request(method::JOIN, Ok(request), number).undo(Undo::Nothing)
    }
}
