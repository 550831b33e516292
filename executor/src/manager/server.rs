//! The server: its objects, who refers to them, and a thread for each connection.
//!
//! ```text
//!   accept thread ──► connection thread: handshake, hello, then for each request
//!                         root (object 0) ── makes, attaches, names, removes objects
//!                         object.call(..) ── answered at once: collected, and written with the answers to all
//!                                            requests that came together
//!                                        └── answered later: by whichever thread ends the wait, through the
//!                                            session's own writing thread, so that a client that does not read
//!                                            can't hold up another one
//!   clock thread ──► waits whose time is up; objects that were sent somewhere and not received
//! ```
//!
//! **References.** An object lives while a connection refers to it, while it has a name, or for a while (`transit`)
//! after a proxy of it was written into bytes. A connection that ends, however that came about, gives up its
//! references, locks, permits, seats and waits.
//!
//! **Locks**: the server's state, then nothing; an object's own lock, then a session's queue or the timers. No user
//! code runs under the server's state: objects are dropped after it was released.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::builtin;
use super::error::Failure;
use super::hosted;
use super::object::{Answer, ClientId, Cx, Flow, Object};
use super::timers::{Alarm, Timers};
use super::transport::{Address, BindTo, Closer, Endpoint, FrameReader, FrameWriter, Limits, ServerSecurity};
use super::wire::{
    self, Body, ClientHello, Fields, PROTOCOL, REPLY_HEAD, ROOT, Received, ServerHello, failure_frame, root,
};
use crate::panic;

/// How many bytes of answers are collected before they are written, though more requests are at hand.
const BATCH: usize = 64 << 10;

/// How long a client may take for its first frame.
const HELLO: Duration = Duration::from_secs(10);

/// How long a shutdown waits for methods that run.
const LAST_METHODS: Duration = Duration::from_secs(5);

/// How a server is set up.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub(super) max_requests_per_second: Option<u32>,
    pub(super) transit: Duration,
    pub(super) limits: Limits,
}

/// What makes an object: the start of a request that is the same for all types.
pub(super) struct Making<'a> {
    pub(super) kind: &'a str,
    pub(super) schema: &'a str,
    pub(super) constructor: u64,
    pub(super) arguments: &'a [u8],
}

/// An object in its place.
pub(super) struct Slot {
    pub(super) id: u64,
    pub(super) object: Box<dyn Object>,
    pub(super) schema: Arc<str>,
    gone: AtomicBool,
}

struct Entry {
    slot: Arc<Slot>,
    refs: u64,
    names: usize,
    hold_until: Option<Instant>,
    hold_armed: bool,
}

impl Entry {
    fn is_wanted(&self, now: Instant) -> bool {
        self.refs > 0 || self.names > 0 || self.hold_until.is_some_and(|until| until > now)
    }
}

#[derive(Default)]
struct State {
    objects: HashMap<u64, Entry>,
    names: BTreeMap<String, u64>,
    next_object: u64,
    next_client: ClientId,
    sessions: HashMap<ClientId, Arc<Session>>,
    closed: bool,
    threads: usize,
}

/// What a server is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ManagerStats {
    /// The objects there are.
    pub objects: u64,
    /// The names there are.
    pub names: u64,
    /// The processes that are connected.
    pub connections: u64,
    /// How many of those who came were not let in since the start: with a wrong key or none, for not speaking the
    /// protocol, for taking too long. (Those who found the server full are not counted.)
    pub failed_handshakes: u64,
}

/// A running server.
pub(super) struct Server {
    pub(super) generation: u64,
    endpoint: Endpoint,
    settings: Settings,
    timers: Arc<Timers>,
    state: Mutex<State>,
    ended: Condvar,
    clock: Mutex<Option<std::thread::JoinHandle<()>>>,
    accepting: Mutex<Option<std::thread::JoinHandle<()>>>,
}

thread_local! {
    /// The generations of the servers whose thread this is.
    static SERVING: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
}

impl Server {
    /// Binds, and starts the threads.
    pub(super) fn start(bind: &BindTo, security: &ServerSecurity, settings: Settings) -> io::Result<Arc<Self>> {
        panic::install_hook();
        let endpoint = Endpoint::bind(bind, security, &settings.limits)?;
        let server = Arc::new(Server {
            generation: new_generation(),
            endpoint,
            settings,
            timers: Timers::new(),
            state: Mutex::new(State { next_object: 1, next_client: 1, ..State::default() }),
            ended: Condvar::new(),
            clock: Mutex::new(None),
            accepting: Mutex::new(None),
        });
        let started = server.timers.start(Arc::downgrade(&server)).and_then(|clock| {
            *server.clock.lock() = Some(clock);
            let weak = server.clone();
            let accepting = std::thread::Builder::new().name("manager-accept".to_owned());
            accepting.spawn(move || weak.accept()).map(|thread| *server.accepting.lock() = Some(thread))
        });
        if let Err(error) = started {
            server.shut_down();
            return Err(error);
        }
        Ok(server)
    }

    pub(super) fn address(&self) -> Address {
        self.endpoint.address()
    }

    pub(super) fn timers(&self) -> &Arc<Timers> {
        &self.timers
    }

    fn max_message(&self) -> u64 {
        self.settings.limits.max_message as u64
    }

    pub(super) fn stats(&self) -> ManagerStats {
        let state = self.state.lock();
        ManagerStats {
            objects: state.objects.len() as u64,
            names: state.names.len() as u64,
            connections: state.sessions.len() as u64,
            failed_handshakes: self.endpoint.failed_handshakes(),
        }
    }

    /// Blocks until the server was shut down.
    pub(super) fn wait_for_end(&self) {
        let mut state = self.state.lock();
        while !state.closed {
            self.ended.wait(&mut state);
        }
    }

    /// Ends everything, and waits for the threads, unless this is one of them. Called again, it only waits.
    pub(super) fn shut_down(&self) {
        let (sessions, objects) = {
            let mut state = self.state.lock();
            state.closed = true;
            state.names.clear();
            (std::mem::take(&mut state.sessions), std::mem::take(&mut state.objects))
        };
        self.ended.notify_all();
        self.endpoint.close();
        self.timers.close();
        for session in sessions.values() {
            session.close();
        }
        // Not under the lock: objects are of the user's types, and may do anything when they are dropped.
        for entry in objects.into_values() {
            retire(entry);
        }
        if SERVING.get() == self.generation {
            return;
        }
        for thread in [self.accepting.lock().take(), self.clock.lock().take()].into_iter().flatten() {
            if thread.thread().id() != std::thread::current().id() {
                let _ = thread.join();
            }
        }
        let deadline = Instant::now() + LAST_METHODS;
        let mut state = self.state.lock();
        while state.threads > 0 && !self.ended.wait_until(&mut state, deadline).timed_out() {}
    }

    fn accept(self: Arc<Self>) {
        SERVING.set(self.generation);
        loop {
            let accepted = self.endpoint.accept();
            let mut state = self.state.lock();
            if state.closed {
                return;
            }
            let Ok(accepted) = accepted else {
                // Out of descriptors, most likely: it gets better when a connection ends, and is worth a look then.
                self.ended.wait_for(&mut state, Duration::from_millis(50));
                continue;
            };
            state.threads += 1;
            drop(state);
            let server = self.clone();
            let connection = std::thread::Builder::new().name("manager-client".to_owned());
            let spawned = connection.spawn(move || {
                let _count = Count { server: &server };
                SERVING.set(server.generation);
                if let Ok(connected) = accepted.handshake() {
                    server.connection(connected);
                }
            });
            if spawned.is_err() {
                self.state.lock().threads -= 1;
            }
        }
    }

    /// The life of a connection.
    fn connection(self: &Arc<Self>, (mut reader, writer, closer): (FrameReader, FrameWriter, Closer)) {
        let deadline = Instant::now() + HELLO;
        let hello: ClientHello = match reader.recv(Some(deadline)) {
            Ok(Some(frame)) => match wire::decode(frame) {
                Ok(hello) => hello,
                Err(_) => return,
            },
            _ => return,
        };
        let session = {
            let mut state = self.state.lock();
            let client = state.next_client;
            state.next_client += 1;
            let session = Session::new(client, hello.pid, writer, closer, self.max_message());
            let refused = if state.closed {
                Some(Failure::ShutDown)
            } else {
                state.sessions.insert(client, session.clone());
                None
            };
            drop(state);
            let answer = ServerHello {
                protocol: PROTOCOL,
                generation: self.generation,
                max_message: self.max_message(),
                refused: refused.clone(),
            };
            let mut bytes = Vec::new();
            let sent = wire::encode_into(&answer, &mut bytes).is_ok() && session.writer.lock().send(&bytes).is_ok();
            if refused.is_some() {
                return;
            }
            if !sent || hello.protocol != PROTOCOL {
                self.end(&session, Attached::default());
                return;
            }
            session
        };
        let mut attached = Attached::default();
        // A panic here would be one of ours; the references and locks of the client must be given back all the same.
        let _ = panic::catch(|| self.serve(&session, &mut reader, &mut attached));
        self.end(&session, attached);
    }

    /// Answers requests until the connection ends.
    fn serve(self: &Arc<Self>, session: &Arc<Session>, reader: &mut FrameReader, attached: &mut Attached) {
        let mut bucket = self.settings.max_requests_per_second.map(Bucket::new);
        let mut answers: Vec<Vec<u8>> = Vec::new();
        let mut bytes = 0;
        loop {
            let Ok(Some(frame)) = reader.recv(None) else { return };
            let Some(request) = Received::read(frame) else { return };
            let throttled = match &mut bucket {
                // Nobody would learn that it was refused, and mostly it gives something back, such as a lock: it has to
                // wait.
                Some(bucket) if request.id == 0 => {
                    while let Err(wait) = bucket.take() {
                        std::thread::sleep(wait);
                    }
                    Ok(())
                }
                Some(bucket) => bucket.take(),
                None => Ok(()),
            };
            let answer = throttled
                .map_err(|retry_after| Failure::Throttled { retry_after })
                .and_then(|()| self.handle(session, &request, attached));
            if request.id != 0 {
                let frame = match answer {
                    Ok(Flow::Later) => None,
                    Ok(Flow::Done(body)) => Some(session.frame(request.id, Ok(body))),
                    Err(failure) => Some(session.frame(request.id, Err(failure))),
                };
                if let Some(frame) = frame {
                    bytes += frame.len();
                    answers.push(frame);
                }
            }
            if !answers.is_empty() && (bytes >= BATCH || !reader.has_buffered()) {
                if session.writer.lock().send_many(&answers).is_err() {
                    return;
                }
                answers.clear();
                bytes = 0;
            }
            if session.closed.load(Ordering::Relaxed) {
                return;
            }
        }
    }

    fn handle(self: &Arc<Self>, session: &Arc<Session>, request: &Received<'_>, attached: &mut Attached) -> Answer {
        if request.object == ROOT {
            return self.root(session, request, attached).map(Flow::Done);
        }
        let Attached { slots, keepers, sweep_at } = attached;
        let Some((slot, _)) = slots.get(&request.object) else { return Err(Failure::ObjectGone) };
        if slot.gone.load(Ordering::Acquire) {
            return Err(Failure::ObjectGone);
        }
        if slot.object.keeps_clients() && !keepers.contains_key(&request.object) {
            if keepers.len() >= *sweep_at {
                keepers.retain(|_, slot| slot.strong_count() > 0);
                *sweep_at = keepers.len() * 2 + 64;
            }
            keepers.insert(slot.id, Arc::downgrade(slot));
        }
        let cx = Cx { server: self, session, slot, request: request.id };
        let answer = slot.object.call(request.method, request.arguments, &cx);
        if matches!(answer, Ok(Flow::Later)) && slot.gone.load(Ordering::Acquire) {
            // It was removed meanwhile, and nobody would end this wait any more.
            slot.object.retire();
        }
        answer
    }

    fn root(
        self: &Arc<Self>,
        session: &Arc<Session>,
        request: &Received<'_>,
        attached: &mut Attached,
    ) -> Result<Body, Failure> {
        let mut fields = Fields(request.arguments);
        match request.method {
            root::PING => Ok(Body::new()),
            root::CREATE => {
                let name = if fields.flag()? { Some(fields.text()?) } else { None };
                let making = Making {
                    kind: fields.text()?,
                    schema: fields.text()?,
                    constructor: fields.number()?,
                    arguments: fields.sized()?,
                };
                let slot = match name.and_then(|name| self.named(name)) {
                    Some(slot) => same_schema(slot, making.schema)?,
                    None => self.create(&making, name)?,
                };
                self.attach(&slot, attached)?;
                Ok(Body::new().number(slot.id).rest(name.unwrap_or_default().as_bytes()))
            }
            root::ATTACH => {
                let (object, hash) = (fields.number()?, fields.number()?);
                let slot = self.state.lock().objects.get(&object).map(|entry| entry.slot.clone());
                let slot = slot.ok_or(Failure::ObjectGone)?;
                if hash != super::schema_hash(&slot.schema) {
                    return Err(Failure::Schema { found: slot.schema.to_string() });
                }
                self.attach(&slot, attached)?;
                Ok(Body::new())
            }
            root::RELEASE => {
                let object = fields.number()?;
                let last = match attached.slots.get_mut(&object) {
                    None => return Err(Failure::NotHeld("the object was not attached".to_owned())),
                    Some((_, count)) => {
                        *count -= 1;
                        *count == 0
                    }
                };
                if last {
                    attached.slots.remove(&object);
                }
                self.unrefer(object, 1);
                Ok(Body::new())
            }
            root::HOLD => {
                let object = fields.number()?;
                if attached.slots.contains_key(&object) {
                    self.hold(object);
                }
                Ok(Body::new())
            }
            root::PUBLISH => {
                let (object, name) = (self.own(&mut fields)?, fields.text()?);
                let mut state = self.state.lock();
                match state.names.get(name) {
                    Some(owner) if *owner == object => return Ok(Body::new()),
                    Some(_) => return Err(Failure::NameTaken(name.to_owned())),
                    None => {}
                }
                state.objects.get_mut(&object).ok_or(Failure::ObjectGone)?.names += 1;
                state.names.insert(name.to_owned(), object);
                Ok(Body::new())
            }
            root::LOOKUP => {
                let (name, schema) = (fields.text()?, fields.text()?);
                let slot = self.named(name).ok_or_else(|| Failure::UnknownName(name.to_owned()))?;
                let slot = same_schema(slot, schema)?;
                self.attach(&slot, attached)?;
                Ok(Body::new().number(slot.id).rest(name.as_bytes()))
            }
            root::UNPUBLISH => {
                let name = fields.text()?;
                let entry = {
                    let mut state = self.state.lock();
                    let object = state.names.remove(name).ok_or_else(|| Failure::UnknownName(name.to_owned()))?;
                    if let Some(entry) = state.objects.get_mut(&object) {
                        entry.names -= 1;
                    }
                    state.forget(object)
                };
                entry.into_iter().for_each(retire);
                Ok(Body::new())
            }
            root::NAMES => {
                let names: Vec<String> = self.state.lock().names.keys().cloned().collect();
                let mut body = Body::new();
                wire::encode_into(&names, body.bytes()).map_err(Failure::Codec)?;
                Ok(body)
            }
            root::REMOVE => {
                let object = self.own(&mut fields)?;
                let entry = {
                    let mut state = self.state.lock();
                    state.names.retain(|_, named| *named != object);
                    state.objects.remove(&object)
                };
                retire(entry.ok_or(Failure::ObjectGone)?);
                Ok(Body::new())
            }
            root::STATS => {
                let stats = self.stats();
                let body = Body::new().number(stats.objects).number(stats.names);
                Ok(body.number(stats.connections).number(stats.failed_handshakes))
            }
            root::CANCEL => {
                let (object, id) = (fields.number()?, fields.number()?);
                if let Some((slot, _)) = attached.slots.get(&object) {
                    slot.object.cancel(session.client, id);
                }
                Ok(Body::new())
            }
            method => Err(Failure::UnknownMethod(method)),
        }
    }

    /// The number of an object, after the generation of its server, which must be this one.
    fn own(&self, fields: &mut Fields<'_>) -> Result<u64, Failure> {
        if fields.number()? == self.generation { fields.number() } else { Err(Failure::ObjectGone) }
    }

    fn named(&self, name: &str) -> Option<Arc<Slot>> {
        let state = self.state.lock();
        state.names.get(name).and_then(|object| state.objects.get(object)).map(|entry| entry.slot.clone())
    }

    /// Makes an object. It has no reference yet; who made it attaches it next, and meanwhile it is held.
    fn create(&self, making: &Making<'_>, name: Option<&str>) -> Result<Arc<Slot>, Failure> {
        let made = match builtin::make(making)? {
            Some(object) => object,
            None => hosted::make(making)?,
        };
        self.insert(made, making.schema, name)
    }

    /// Takes an object in; under a name that was given meanwhile, the object that has it comes back instead.
    pub(super) fn insert(
        &self,
        object: Box<dyn Object>,
        schema: &str,
        name: Option<&str>,
    ) -> Result<Arc<Slot>, Failure> {
        let mut state = self.state.lock();
        if state.closed {
            drop(state);
            discard(object);
            return Err(Failure::ShutDown);
        }
        let id = state.next_object;
        if let Some(name) = name {
            if let Some(slot) = state.names.get(name).and_then(|object| state.objects.get(object)) {
                let slot = slot.slot.clone();
                drop(state);
                discard(object);
                return same_schema(slot, schema);
            }
            state.names.insert(name.to_owned(), id);
        }
        state.next_object += 1;
        let slot = Arc::new(Slot { id, object, schema: schema.into(), gone: AtomicBool::new(false) });
        let entry = Entry {
            slot: slot.clone(),
            refs: 0,
            names: usize::from(name.is_some()),
            hold_until: None,
            hold_armed: false,
        };
        state.objects.insert(id, entry);
        Ok(slot)
    }

    fn attach(&self, slot: &Arc<Slot>, attached: &mut Attached) -> Result<(), Failure> {
        self.state.lock().objects.get_mut(&slot.id).ok_or(Failure::ObjectGone)?.refs += 1;
        attached.slots.entry(slot.id).or_insert_with(|| (slot.clone(), 0)).1 += 1;
        Ok(())
    }

    fn unrefer(&self, object: u64, count: u64) {
        let entry = {
            let mut state = self.state.lock();
            if let Some(entry) = state.objects.get_mut(&object) {
                entry.refs = entry.refs.saturating_sub(count);
            }
            state.forget(object)
        };
        entry.into_iter().for_each(retire);
    }

    /// Keeps an object for a while, as a proxy of it is on its way.
    pub(super) fn hold(&self, object: u64) {
        let transit = self.settings.transit;
        let mut state = self.state.lock();
        let Some(entry) = state.objects.get_mut(&object) else { return };
        entry.hold_until = Instant::now().checked_add(transit);
        if !std::mem::replace(&mut entry.hold_armed, true) {
            self.timers.set(transit, Alarm::Unhold { object });
        }
    }

    /// The time of a hold is up, unless it was renewed.
    pub(super) fn unhold(&self, object: u64) {
        let entry = {
            let mut state = self.state.lock();
            let Some(entry) = state.objects.get_mut(&object) else { return };
            let left = entry.hold_until.and_then(|until| until.checked_duration_since(Instant::now()));
            match left.filter(|left| !left.is_zero()) {
                Some(left) => {
                    self.timers.set(left, Alarm::Unhold { object });
                    None
                }
                None => {
                    entry.hold_armed = false;
                    entry.hold_until = None;
                    state.forget(object)
                }
            }
        };
        entry.into_iter().for_each(retire);
    }

    /// Gives back everything that a connection had.
    fn end(&self, session: &Arc<Session>, attached: Attached) {
        session.close();
        for slot in attached.keepers.values().filter_map(Weak::upgrade) {
            // What ends a wait is our own code, but it may drop what is the user's.
            let _ = panic::catch(|| slot.object.leave(session.client));
        }
        for (object, (_, count)) in attached.slots {
            self.unrefer(object, count);
        }
        // Last, so that who counts as connected no more has nothing any more.
        self.state.lock().sessions.remove(&session.client);
    }
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("address", &self.address()).field("stats", &self.stats()).finish_non_exhaustive()
    }
}

impl State {
    /// Takes an object out if nobody wants it any more; whoever calls drops it after the lock.
    fn forget(&mut self, object: u64) -> Option<Entry> {
        let entry = self.objects.get(&object)?;
        if entry.is_wanted(Instant::now()) { None } else { self.objects.remove(&object) }
    }
}

/// Counts a connection's thread.
struct Count<'a> {
    server: &'a Arc<Server>,
}

impl Drop for Count<'_> {
    fn drop(&mut self) {
        self.server.state.lock().threads -= 1;
        self.server.ended.notify_all();
    }
}

/// Ends the waits at an object and drops it, if no connection is in the middle of a call.
fn retire(entry: Entry) {
    entry.slot.gone.store(true, Ordering::Release);
    let _ = panic::catch(|| {
        entry.slot.object.retire();
        drop(entry);
    });
}

/// Drops an object that nobody has seen.
fn discard(object: Box<dyn Object>) {
    let _ = panic::catch(|| drop(object));
}

fn same_schema(slot: Arc<Slot>, schema: &str) -> Result<Arc<Slot>, Failure> {
    if *slot.schema == *schema { Ok(slot) } else { Err(Failure::Schema { found: slot.schema.to_string() }) }
}

/// A number that no other server has: the time, the process and a count, well mixed.
fn new_generation() -> u64 {
    use std::hash::{BuildHasher as _, RandomState};
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    RandomState::new().hash_one((std::process::id(), std::time::SystemTime::now(), count)).max(1)
}

/// What a connection refers to; known to its thread alone.
#[derive(Default)]
struct Attached {
    slots: HashMap<u64, (Arc<Slot>, u64)>,
    /// Objects that may keep something for this client, also after its last proxy of them was dropped. Weak, and swept,
    /// so that a connection that lives for long does not collect the objects it has seen.
    keepers: HashMap<u64, Weak<Slot>>,
    sweep_at: usize,
}

/// A connection, as far as other threads have to do with it.
pub(super) struct Session {
    pub(super) client: ClientId,
    pub(super) pid: u32,
    /// How many of its requests wait in objects.
    pub(super) waiting: AtomicUsize,
    max_message: u64,
    writer: Mutex<FrameWriter>,
    closer: Closer,
    closed: AtomicBool,
    late: Mutex<Late>,
    late_changed: Condvar,
}

/// Answers that other threads have for this client.
#[derive(Default)]
struct Late {
    frames: Vec<Vec<u8>>,
    has_thread: bool,
    closed: bool,
}

impl Session {
    fn new(client: ClientId, pid: u32, writer: FrameWriter, closer: Closer, max_message: u64) -> Arc<Self> {
        Arc::new(Session {
            client,
            pid,
            waiting: AtomicUsize::new(0),
            max_message,
            writer: Mutex::new(writer),
            closer,
            closed: AtomicBool::new(false),
            late: Mutex::default(),
            late_changed: Condvar::new(),
        })
    }

    /// The frame of an answer; one that is too large says so instead.
    fn frame(&self, id: u64, answer: Result<Body, Failure>) -> Vec<u8> {
        match answer {
            Ok(body) => {
                let frame = body.into_frame(id);
                if frame.len() as u64 <= self.max_message {
                    frame
                } else {
                    let size = (frame.len() - REPLY_HEAD) as u64;
                    failure_frame(id, &Failure::TooLarge { size, limit: self.max_message })
                }
            }
            Err(failure) => failure_frame(id, &failure),
        }
    }

    /// Answers from a thread that must not wait for this client.
    pub(super) fn answer_later(self: &Arc<Self>, request: u64, answer: Result<Body, Failure>) {
        if request == 0 {
            return;
        }
        let frame = self.frame(request, answer);
        let mut late = self.late.lock();
        if late.closed {
            return;
        }
        late.frames.push(frame);
        if late.has_thread {
            self.late_changed.notify_one();
            return;
        }
        late.has_thread = true;
        drop(late);
        let session = Arc::downgrade(self);
        let writing = std::thread::Builder::new().name("manager-answers".to_owned());
        if writing.spawn(move || Session::write_late(&session)).is_err() {
            // Better no connection than one that waits for an answer for ever.
            self.close();
        }
    }

    fn write_late(session: &Weak<Session>) {
        let Some(session) = session.upgrade() else { return };
        loop {
            let frames = {
                let mut late = session.late.lock();
                while late.frames.is_empty() && !late.closed {
                    session.late_changed.wait(&mut late);
                }
                if late.closed {
                    return;
                }
                std::mem::take(&mut late.frames)
            };
            if session.writer.lock().send_many(&frames).is_err() {
                session.close();
                return;
            }
        }
    }

    fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
        let frames = {
            let mut late = self.late.lock();
            late.closed = true;
            std::mem::take(&mut late.frames)
        };
        drop(frames);
        self.late_changed.notify_all();
        self.closer.close();
    }
}

/// So many requests in a second, and no more than that at once.
struct Bucket {
    per_second: f64,
    tokens: f64,
    seen: Instant,
}

impl Bucket {
    fn new(per_second: u32) -> Self {
        Bucket { per_second: f64::from(per_second), tokens: f64::from(per_second), seen: Instant::now() }
    }

    fn take(&mut self) -> Result<(), Duration> {
        let now = Instant::now();
        let gained = now.saturating_duration_since(self.seen).as_secs_f64() * self.per_second;
        self.tokens = (self.tokens + gained).min(self.per_second);
        self.seen = now;
        if self.tokens >= 1.0 {
            self.tokens -= 1.0;
            Ok(())
        } else {
            Err(Duration::from_secs_f64((1.0 - self.tokens) / self.per_second))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_gives_what_it_has_and_then_says_when() {
        let mut bucket = Bucket::new(3);
        for _ in 0..3 {
            bucket.take().unwrap();
        }
        let wait = bucket.take().unwrap_err();
        assert!(wait <= Duration::from_secs_f64(1.0 / 3.0) && wait > Duration::ZERO, "{wait:?}");
        bucket.seen -= Duration::from_secs(10);
        for _ in 0..3 {
            bucket.take().unwrap();
        }
        assert!(bucket.take().is_err());
    }

    #[test]
    fn generations_differ() {
        assert_ne!(new_generation(), new_generation());
    }
}
