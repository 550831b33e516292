//! What all proxies are made of: [`Remote`], which knows where an object is and how to get there, and [`Call`], a call
//! of one of its methods.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures_ext::Elapsed;
use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::client::{By, Connection, Ended, NotSent, Outcome, Settled, Ticket, here};
use super::error::ManagerError;
use super::hosted;
use super::transport::{Address, ClientSecurity, ConnectError};
use super::wire::{self, Fields, ROOT, Request, root};

/// So many connections are kept that no proxy uses just now.
const IDLE_CONNECTIONS: usize = 16;

/// A proxy: stands for an object of a manager, in any process.
///
/// Its clones stand for the same object. It travels as data, as an argument or result of a task or in a file, and
/// connects by itself where it is used first.
pub trait Proxy: Clone + Serialize + DeserializeOwned + Send + Sync + 'static {
    /// What the object must be: its type, or for one of the user's types all its methods. Two programs that differ in
    /// it refuse to work together, at the first call.
    fn schema() -> String;

    #[doc(hidden)]
    fn from_remote(remote: Remote) -> Self;

    #[doc(hidden)]
    fn remote(&self) -> &Remote;

    /// Where the object's manager is.
    fn address(&self) -> &Address {
        &self.remote().0.address
    }

    /// A proxy of the same object with a connection of its own.
    ///
    /// The calls that a process makes of one manager go over one connection and are answered one after another. That is
    /// quickest, unless a method takes long: then the others wait for it. A connection of one's own is not held up, and
    /// holds up nobody.
    #[must_use = "the proxy itself stays as it is"]
    fn with_own_connection(&self) -> Self {
        Self::from_remote(self.remote().with_own_connection())
    }

    /// Connects again after [`ManagerError::ServerGone`], or finds the object again by the name under which it was got,
    /// after [`ManagerError::Stale`]. A call after the loss of a connection connects by itself; this also takes another
    /// object for the old one, and so has to be asked for.
    ///
    /// # Errors
    /// [`ManagerError::ServerGone`] if nobody answers; [`ManagerError::Stale`] if the object had no name and its server
    /// has ended; [`ManagerError::UnknownName`] if the new server has no object of the name.
    fn reconnect(&self) -> Result<(), ManagerError> {
        self.remote().0.reconnect()
    }
}

/// Where an object is. What proxies hold; not for use by hand.
#[doc(hidden)]
#[derive(Clone)]
pub struct Remote(pub(super) Arc<Core>);

pub(super) struct Core {
    pub(super) address: Address,
    pub(super) schema: Arc<str>,
    state: Mutex<State>,
    /// Held while a connection is made.
    attaching: Mutex<()>,
    /// Calls of futures that wait for the connection.
    waiting: Mutex<Waiting>,
    own: Option<OwnConnection>,
    made_in: u32,
}

/// The connection of a proxy that does not share the process's.
type OwnConnection = Arc<Place>;

#[derive(Default)]
struct State {
    object: u64,
    /// 0 stands for any.
    generation: u64,
    name: Option<Arc<str>>,
    attached: Option<Arc<Connection>>,
}

#[derive(Default)]
struct Waiting {
    calls: Vec<(Arc<Ticket>, u32, Request)>,
    connecting: bool,
}

/// A proxy as data.
#[derive(Serialize, Deserialize)]
struct Data {
    address: Address,
    generation: u64,
    object: u64,
    schema: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    name: Option<String>,
}

impl Remote {
    /// The manager at an address itself.
    pub(super) fn root(address: Address) -> Self {
        Remote::new(address, "manager".into(), State { object: ROOT, ..State::default() }, None)
    }

    fn new(address: Address, schema: Arc<str>, state: State, own: Option<OwnConnection>) -> Self {
        Remote(Arc::new(Core {
            address,
            schema,
            state: Mutex::new(state),
            attaching: Mutex::new(()),
            waiting: Mutex::default(),
            own,
            made_in: here(),
        }))
    }

    /// An object of which only the number is known.
    pub(super) fn unattached(address: &Address, schema: &str, generation: u64, object: u64) -> Self {
        Remote::new(address.clone(), schema.into(), State { object, generation, ..State::default() }, None)
    }

    /// An object that was just made or found over the connection of `root`.
    pub(super) fn attached(root: &Source<'_>, schema: String, object: u64, name: Option<Arc<str>>) -> Self {
        let (core, connection) = (root.core, root.connection);
        let state = State { object, generation: connection.generation, name, attached: Some(connection.clone()) };
        Remote::new(core.address.clone(), schema.into(), state, core.own.clone())
    }

    fn with_own_connection(&self) -> Self {
        if self.0.is_inherited() {
            // Its calls say what is wrong.
            return self.clone();
        }
        let state = self.0.state.lock();
        let state =
            State { object: state.object, generation: state.generation, name: state.name.clone(), attached: None };
        Remote::new(self.0.address.clone(), self.0.schema.clone(), state, Some(Arc::default()))
    }

    /// A call with one encoded value as its argument, and one as its result.
    pub fn call<A: Serialize + ?Sized, R: DeserializeOwned>(&self, method: u32, arguments: &A) -> Call<R> {
        self.request(method, Request::new().last(arguments), |result, _| wire::decode_result(result))
    }

    pub(super) fn request<R>(
        &self,
        method: u32,
        request: Result<Request, ManagerError>,
        decode: fn(&[u8], &Source<'_>) -> Result<R, ManagerError>,
    ) -> Call<R> {
        let state = match request {
            Ok(request) => CallState::Fresh(request),
            Err(error) => CallState::Failed(error),
        };
        Call { core: self.0.clone(), method, state, decode, undo: None, again: true, expected: None }
    }

    pub(super) fn set_name(&self, name: &str) {
        if !self.0.is_inherited() {
            self.0.state.lock().name = Some(name.into());
        }
    }

    #[doc(hidden)]
    pub fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let core = &self.0;
        core.check_origin().map_err(serde::ser::Error::custom)?;
        let (data, connection) = {
            let state = core.state.lock();
            let data = Data {
                address: core.address.clone(),
                generation: state.generation,
                object: state.object,
                schema: super::schema_hash(&core.schema),
                name: state.name.as_deref().map(str::to_owned),
            };
            (data, state.attached.clone())
        };
        // Until the receiver has it, nobody may refer to the object; so the server is asked to keep it for a while.
        if data.object != ROOT
            && let Some(connection) = connection.or_else(|| core.place().open_already())
        {
            connection.post(ROOT, root::HOLD, Request::new().number(data.object));
        }
        data.serialize(serializer)
    }

    #[doc(hidden)]
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D, schema: String) -> Result<Self, D::Error> {
        let data = Data::deserialize(deserializer)?;
        let schema = if data.object == ROOT { "manager".to_owned() } else { schema };
        let state =
            State { object: data.object, generation: data.generation, name: data.name.map(Arc::from), attached: None };
        Ok(Remote::new(data.address, schema.into(), state, None))
    }
}

impl fmt::Debug for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Proxy");
        shown.field("schema", &self.0.schema).field("address", &format_args!("{}", self.0.address));
        if self.0.is_inherited() {
            return shown.field("inherited", &true).finish_non_exhaustive();
        }
        let state = self.0.state.lock();
        if let Some(name) = &state.name {
            shown.field("name", name);
        }
        shown.field("object", &state.object).finish_non_exhaustive()
    }
}

impl Core {
    /// Whether this is a forked child that has the proxy from its parent. Then none of its locks is to be touched.
    pub(super) fn is_inherited(&self) -> bool {
        self.made_in != here()
    }

    pub(super) fn check_origin(&self) -> Result<(), ManagerError> {
        if self.is_inherited() { Err(ManagerError::Forked { address: self.address.clone() }) } else { Ok(()) }
    }

    fn place(&self) -> Arc<Place> {
        self.own.clone().unwrap_or_else(|| place(&self.address))
    }

    /// The connection, if the object is attached to a living one.
    fn connection(&self) -> Option<(Arc<Connection>, u64)> {
        let state = self.state.lock();
        let connection = state.attached.as_ref().filter(|connection| !connection.is_dead())?;
        Some((connection.clone(), state.object))
    }

    /// Connects and attaches, if that is not done; blocks.
    pub(super) fn attach(&self) -> Result<(Arc<Connection>, u64), ManagerError> {
        self.check_origin()?;
        let _only_one = self.attaching.lock();
        if let Some(attached) = self.connection() {
            return Ok(attached);
        }
        let connection = self.place().open(&self.address)?;
        let (object, generation) = {
            let state = self.state.lock();
            (state.object, state.generation)
        };
        if object != ROOT {
            if generation != connection.generation {
                return Err(ManagerError::Stale { address: self.address.clone(), what: self.schema.clone() });
            }
            let request = Request::new().number(object).number(super::schema_hash(&self.schema));
            self.explain(connection.call(ROOT, root::ATTACH, request))?;
        }
        self.state.lock().attached = Some(connection.clone());
        Ok((connection, object))
    }

    /// The server and the number of the object there.
    pub(super) fn identity(&self) -> (u64, u64) {
        let state = self.state.lock();
        (state.generation, state.object)
    }

    fn reconnect(&self) -> Result<(), ManagerError> {
        match self.attach() {
            Ok(_) => return Ok(()),
            Err(ManagerError::Stale { .. } | ManagerError::ObjectGone) => {}
            Err(error) => return Err(error),
        }
        let Some(name) = self.state.lock().name.clone() else {
            return Err(ManagerError::Stale { address: self.address.clone(), what: self.schema.clone() });
        };
        let _only_one = self.attaching.lock();
        let connection = self.place().open(&self.address)?;
        let request = Request::new().sized(name.as_bytes()).sized(self.schema.as_bytes());
        let found = self.explain(connection.call(ROOT, root::LOOKUP, request))?;
        let object = number(&found)?;
        let mut state = self.state.lock();
        state.object = object;
        state.generation = connection.generation;
        state.attached = Some(connection);
        Ok(())
    }

    fn explain(&self, outcome: Outcome) -> Result<Vec<u8>, ManagerError> {
        outcome.map_err(|ended| self.explain_one(ended, None))
    }

    fn gone(&self) -> ManagerError {
        ManagerError::ServerGone { address: self.address.clone(), why: "it closed the connection".into() }
    }

    fn explain_one(&self, ended: Ended, expected: Option<&str>) -> ManagerError {
        match ended {
            Ended::Failed(failure) => failure.explain(expected.unwrap_or(&self.schema)),
            Ended::Lost(error) => error,
            Ended::NotSent(_) => self.gone(),
        }
    }

    /// Sends the call of a future, after the connection was made on a thread that may block.
    fn connect_then_send(self: &Arc<Self>, ticket: &Arc<Ticket>, method: u32, request: Request) {
        {
            let mut waiting = self.waiting.lock();
            waiting.calls.push((ticket.clone(), method, request));
            if std::mem::replace(&mut waiting.connecting, true) {
                return;
            }
        }
        let core = self.clone();
        let spawned = std::thread::Builder::new().name("manager-connect".to_owned()).spawn(move || {
            let attached = core.attach();
            core.send_waiting(&attached);
        });
        if let Err(error) = spawned {
            self.send_waiting(&Err(error.into()));
        }
    }

    fn send_waiting(self: &Arc<Self>, attached: &Result<(Arc<Connection>, u64), ManagerError>) {
        let calls = {
            let mut waiting = self.waiting.lock();
            waiting.connecting = false;
            std::mem::take(&mut waiting.calls)
        };
        for (ticket, method, request) in calls {
            match attached {
                _ if ticket.is_abandoned() => {}
                Err(error) => ticket.complete(Err(Ended::Lost(error.clone()))),
                Ok((connection, object)) => {
                    if let Err(NotSent(request)) = connection.send(*object, method, request, &ticket, By::Future) {
                        ticket.complete(Err(Ended::NotSent(request)));
                    }
                }
            }
        }
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        let is_inherited = self.is_inherited();
        let state = self.state.get_mut();
        if state.object != ROOT
            && !is_inherited
            && let Some(connection) = state.attached.take()
        {
            connection.post(ROOT, root::RELEASE, Request::new().number(state.object));
        }
    }
}

pub(super) fn number(result: &[u8]) -> Result<u64, ManagerError> {
    Fields(result).number().map_err(|failure| failure.explain("manager"))
}

// ---- Calls ----------------------------------------------------------------------------------------------------------

/// A call of an object of a manager: block for its result with [`wait`](Call::wait), or await it under any runtime.
///
/// It is sent when it is waited for or polled first, or at once with [`start`](Call::start), so that several are on
/// their way together. Awaiting it never blocks the thread: connecting, writing and reading are done by threads of this
/// library where they might take time.
///
/// # Cancellation safety
/// Dropping a call that was sent gives up its result; the server may still run it. Those that wait in the server (for a
/// lock, for an item of a queue, at a barrier and so on) are taken back: what is granted nevertheless, because it was
/// on its way already, is given back.
///
/// # Errors
/// Each method says its own. All of them can end with [`ManagerError::ServerGone`], [`ManagerError::ObjectGone`] and
/// what else has to do with connections.
#[must_use = "a call does nothing until it is awaited, waited for or started"]
pub struct Call<R> {
    core: Arc<Core>,
    method: u32,
    state: CallState,
    decode: fn(&[u8], &Source<'_>) -> Result<R, ManagerError>,
    /// The method that takes a result back which nobody waits for any more.
    undo: Option<Undo>,
    /// Whether it may be sent once more, if it was certainly not received.
    again: bool,
    /// The schema to be named when it does not fit, if it is not that of the object that is called.
    expected: Option<String>,
}

/// Where a result comes from.
pub(super) struct Source<'a> {
    pub(super) core: &'a Arc<Core>,
    pub(super) connection: &'a Arc<Connection>,
    object: u64,
}

impl Source<'_> {
    pub(super) fn grant(&self) -> Grant {
        Grant { connection: self.connection.clone(), object: self.object }
    }
}

/// What an object has given to a connection: a lock, or permits. It is given back over that connection or not at all,
/// for when that ends, the server takes it back by itself; over another one, something else would be given back.
#[derive(Debug)]
pub(super) struct Grant {
    connection: Arc<Connection>,
    object: u64,
}

impl Grant {
    pub(super) fn give_back(&self, method: u32, request: Request) {
        self.connection.post(self.object, method, request);
    }
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Undo {
    /// A method of the object.
    Object(u32),
    /// A method of the manager.
    Root(u32),
    /// There is only the wait to be taken back; a result gives nothing that would have to be.
    Nothing,
}

enum CallState {
    Failed(ManagerError),
    Fresh(Request),
    Sent(Arc<Ticket>),
    Done,
}

impl<R> Call<R> {
    pub(super) fn undo(mut self, undo: Undo) -> Self {
        self.undo = Some(undo);
        self
    }

    /// What the result is expected to be, if it is an object.
    pub(super) fn expecting(mut self, schema: String) -> Self {
        self.expected = Some(schema);
        self
    }

    /// Blocks this thread until the result is there.
    ///
    /// Not for asynchronous code: it blocks the runtime's thread.
    ///
    /// # Errors
    /// Whatever the call ended with, if not with a result.
    pub fn wait(mut self) -> Result<R, ManagerError> {
        match self.wait_until(None) {
            Some(result) => result,
            // Not without a deadline.
            None => Err(ManagerError::TimedOut),
        }
    }

    /// Blocks this thread until the result is there or the time is up. A timeout ends the wait, not the call: it can be
    /// waited for again. Connecting has a timeout of its own, of 10 seconds.
    ///
    /// # Errors
    /// [`Elapsed`] when the time is up. The inner result is that of the call.
    ///
    /// # Panics
    /// When the result was handed out before.
    pub fn wait_timeout(&mut self, timeout: Duration) -> Result<Result<R, ManagerError>, Elapsed> {
        self.wait_until(Instant::now().checked_add(timeout)).ok_or_else(|| Elapsed::new(timeout))
    }

    /// Sends the call now; the result is waited for later.
    pub fn start(mut self) -> Self {
        if let Err(error) = self.check_origin() {
            self.state = CallState::Failed(error);
        } else if matches!(self.state, CallState::Fresh(_)) {
            self.send_aside();
        }
        self
    }

    fn wait_until(&mut self, deadline: Option<Instant>) -> Option<Result<R, ManagerError>> {
        if let Err(error) = self.check_origin() {
            return Some(Err(error));
        }
        loop {
            match std::mem::replace(&mut self.state, CallState::Done) {
                CallState::Failed(error) => return Some(Err(error)),
                CallState::Done => panic!("the result of this call was handed out already"),
                CallState::Fresh(request) => match self.send(request) {
                    Ok(ticket) => self.state = CallState::Sent(ticket),
                    Err(error) => return Some(Err(error)),
                },
                CallState::Sent(ticket) => {
                    let Some(settled) = ticket.wait(deadline) else {
                        self.state = CallState::Sent(ticket);
                        return None;
                    };
                    if let Some(result) = self.finish(settled, ticket.object()) {
                        return Some(result);
                    }
                }
            }
        }
    }

    /// The result; `None` when the call is to be sent once more.
    fn finish(&mut self, (outcome, connection): Settled, object: u64) -> Option<Result<R, ManagerError>> {
        match outcome {
            Ok(result) => Some(match &connection {
                Some(connection) => (self.decode)(&result, &Source { core: &self.core, connection, object }),
                None => Err(self.core.gone()),
            }),
            Err(Ended::NotSent(request)) if std::mem::replace(&mut self.again, false) => {
                self.state = CallState::Fresh(request);
                None
            }
            Err(ended) => Some(Err(self.core.explain_one(ended, self.expected.as_deref()))),
        }
    }

    /// Sends the call from a thread that may block.
    fn send(&mut self, mut request: Request) -> Result<Arc<Ticket>, ManagerError> {
        self.check_reentry()?;
        loop {
            let (connection, object) = match self.core.connection() {
                Some(attached) => attached,
                None => self.core.attach()?,
            };
            let ticket = Arc::new(Ticket::default());
            match connection.send(object, self.method, request, &ticket, By::Thread) {
                Ok(()) => return Ok(ticket),
                // It died between the two looks; connecting anew either works or is an error.
                Err(NotSent(back)) => request = back,
            }
        }
    }

    /// Sends the call without blocking.
    fn send_aside(&mut self) {
        let CallState::Fresh(mut request) = std::mem::replace(&mut self.state, CallState::Done) else { return };
        if let Err(error) = self.check_reentry() {
            self.state = CallState::Failed(error);
            return;
        }
        let ticket = Arc::new(Ticket::default());
        if let Some((connection, object)) = self.core.connection() {
            match connection.send(object, self.method, request, &ticket, By::Future) {
                Ok(()) => {
                    self.state = CallState::Sent(ticket);
                    return;
                }
                Err(NotSent(back)) => request = back,
            }
        }
        self.core.connect_then_send(&ticket, self.method, request);
        self.state = CallState::Sent(ticket);
    }

    /// What a forked child has inherited is let go of untouched.
    fn check_origin(&mut self) -> Result<(), ManagerError> {
        let checked = self.core.check_origin();
        if checked.is_err() && !matches!(self.state, CallState::Failed(_)) {
            std::mem::forget(std::mem::replace(&mut self.state, CallState::Done));
        }
        checked
    }

    fn check_reentry(&self) -> Result<(), ManagerError> {
        let (generation, object) = {
            let state = self.core.state.lock();
            (state.generation, state.object)
        };
        if hosted::is_inside(generation, object) { Err(ManagerError::WouldDeadlock) } else { Ok(()) }
    }
}

impl<R> Future for Call<R> {
    type Output = Result<R, ManagerError>;

    /// # Panics
    /// When polled after it was done.
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if let Err(error) = self.check_origin() {
            return Poll::Ready(Err(error));
        }
        loop {
            match &self.state {
                CallState::Fresh(_) => self.send_aside(),
                CallState::Sent(ticket) => {
                    let Poll::Ready(settled) = ticket.poll(cx) else { return Poll::Pending };
                    let object = ticket.object();
                    self.state = CallState::Done;
                    if let Some(result) = self.finish(settled, object) {
                        return Poll::Ready(result);
                    }
                }
                CallState::Failed(_) => {
                    if let CallState::Failed(error) = std::mem::replace(&mut self.state, CallState::Done) {
                        return Poll::Ready(Err(error));
                    }
                }
                CallState::Done => panic!("this call was polled after it was done"),
            }
        }
    }
}

impl<R> Drop for Call<R> {
    fn drop(&mut self) {
        if self.check_origin().is_err() {
            return;
        }
        if let CallState::Sent(ticket) = &self.state {
            ticket.abandon(self.undo);
        }
    }
}

impl<R> fmt::Debug for Call<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match &self.state {
            CallState::Failed(_) => "failed",
            CallState::Fresh(_) => "not sent",
            CallState::Sent(_) => "sent",
            CallState::Done => "done",
        };
        f.debug_struct("Call").field("object", &self.core.schema).field("state", &state).finish_non_exhaustive()
    }
}

// ---- The connections of this process --------------------------------------------------------------------------------

/// Where the connection to one address is kept.
#[derive(Default)]
pub(super) struct Place {
    connection: Mutex<Option<Arc<Connection>>>,
    used: AtomicU64,
}

impl Place {
    /// The connection, made if there is none that works; blocks, and has others wait that want the same one.
    fn open(&self, address: &Address) -> Result<Arc<Connection>, ManagerError> {
        let mut kept = self.connection.lock();
        if let Some(connection) = kept.as_ref().filter(|connection| !connection.is_dead()) {
            return Ok(connection.clone());
        }
        let security = registry().lock().security.get(address).cloned().unwrap_or_default();
        let connection = Connection::open(address, &security).map_err(|error| match error {
            ManagerError::Connect { address, error }
                if matches!(*error, ConnectError::KeyMissing | ConnectError::KeyRequired) =>
            {
                ManagerError::NoKey { address }
            }
            error => error,
        })?;
        let connection = Arc::new(connection);
        *kept = Some(connection.clone());
        Ok(connection)
    }

    /// The connection if there is one, without waiting for one that is being made.
    fn open_already(&self) -> Option<Arc<Connection>> {
        self.connection.try_lock()?.clone().filter(|connection| !connection.is_dead())
    }
}

#[derive(Default)]
struct Registry {
    places: HashMap<Address, Arc<Place>>,
    security: HashMap<Address, ClientSecurity>,
    uses: u64,
}

/// The registry of a process, and of those that were forked off one from another. Each has its own, as the connections
/// are not those of its parent, and as the lock may be in the hands of a thread that it doesn't have.
#[derive(Default)]
struct Era {
    registry: OnceLock<(u32, Mutex<Registry>)>,
    child: OnceLock<Box<Era>>,
}

fn registry() -> &'static Mutex<Registry> {
    static FIRST: Era = Era { registry: OnceLock::new(), child: OnceLock::new() };
    let (mut era, mut security) = (&FIRST, HashMap::new());
    loop {
        let new = || (here(), Mutex::new(Registry { security: security.clone(), ..Registry::default() }));
        let (made_in, registry) = era.registry.get_or_init(new);
        if *made_in == here() {
            return registry;
        }
        // What it was told of keys it knows, unless somebody was just being told.
        security = registry.try_lock().map(|registry| registry.security.clone()).unwrap_or_default();
        era = era.child.get_or_init(Box::default);
    }
}

fn place(address: &Address) -> Arc<Place> {
    let mut registry = registry().lock();
    registry.uses += 1;
    let uses = registry.uses;
    if let Some(place) = registry.places.get(address) {
        place.used.store(uses, Ordering::Relaxed);
        return place.clone();
    }
    let mut idle = Vec::new();
    while registry.places.len() >= IDLE_CONNECTIONS {
        let oldest = registry.places.iter().filter(|(_, place)| is_idle(place));
        let oldest = oldest.min_by_key(|(_, place)| place.used.load(Ordering::Relaxed)).map(|(at, _)| at.clone());
        let Some(oldest) = oldest else { break };
        idle.extend(registry.places.remove(&oldest));
    }
    let place = Arc::new(Place::default());
    place.used.store(uses, Ordering::Relaxed);
    registry.places.insert(address.clone(), place.clone());
    drop(registry);
    drop(idle);
    place
}

/// Whether no proxy uses the connection just now.
fn is_idle(place: &Arc<Place>) -> bool {
    Arc::strong_count(place) == 1
        && place.connection.try_lock().is_some_and(|kept| kept.as_ref().is_none_or(|kept| Arc::strong_count(kept) == 1))
}

/// Says by what key, and with which certificates, this process reaches the manager at `address`; by default by none,
/// which is enough for the Unix sockets of one user.
///
/// Keys do not travel with proxies. A worker process that is to use a manager by TCP is told by the pool's
/// [`initializer`](crate::ProcessPoolBuilder::initializer), which calls this. The process that has started a manager
/// knows its key already.
pub fn set_security(address: &Address, security: ClientSecurity) {
    let place = {
        let mut registry = registry().lock();
        registry.security.insert(address.clone(), security);
        // What was refused before may work now, and what works with the old key is not to go on with it.
        registry.places.remove(address)
    };
    drop(place);
}

/// Forgets an address whose manager has ended, and closes the connection to it.
pub(super) fn forget(address: &Address) {
    let place = {
        let mut registry = registry().lock();
        registry.security.remove(address);
        registry.places.remove(address)
    };
    if let Some(connection) = place.and_then(|place| place.connection.lock().take()) {
        connection.close("the manager was shut down");
    }
}

#[cfg(test)]
impl Remote {
    /// As a forked child finds it.
    pub(super) fn inherited(&self) -> Self {
        let state = self.0.state.lock();
        let attached = state.attached.clone();
        let state = State { object: state.object, generation: state.generation, name: state.name.clone(), attached };
        let mut core = Remote::new(self.0.address.clone(), self.0.schema.clone(), state, self.0.own.clone());
        Arc::get_mut(&mut core.0).expect("it is new").made_in += 1;
        core
    }

    /// Ends the connection, as a fault of the network or the death of the process does.
    pub(super) fn cut(&self) {
        if let Some(connection) = &self.0.state.lock().attached {
            connection.close("it was cut");
        }
    }
}

#[cfg(test)]
impl<R> Call<R> {
    /// Whether its result has come.
    pub(super) fn has_come(&self) -> bool {
        matches!(&self.state, CallState::Sent(ticket) if ticket.is_done())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manager::Manager;

    const LONG: Duration = Duration::from_secs(30);

    /// The call as a forked child finds it.
    fn inherited<R>(call: &Call<R>) -> Call<R> {
        let CallState::Sent(ticket) = &call.state else { panic!("it was not sent") };
        let Call { method, decode, undo, again, .. } = *call;
        let core = Remote(call.core.clone()).inherited().0;
        Call { core, method, state: CallState::Sent(ticket.clone()), decode, undo, again, expected: None }
    }

    #[test]
    fn calls_that_a_forked_child_has_inherited_stay_its_parents() {
        let manager = Manager::in_thread().unwrap();
        let queue = manager.queue::<u8>().wait().unwrap();
        let mut call = queue.get().start();
        queue.len().wait().unwrap();
        drop(inherited(&call));
        assert!(matches!(inherited(&call).start().wait(), Err(ManagerError::Forked { .. })));
        let polled = std::pin::pin!(inherited(&call)).poll(&mut Context::from_waker(std::task::Waker::noop()));
        assert!(matches!(polled, Poll::Ready(Err(ManagerError::Forked { .. }))));
        // None of that has taken the call back.
        queue.put(&1).wait().unwrap();
        assert_eq!(call.wait_timeout(LONG).expect("the call was taken back").unwrap(), 1);
    }
}
