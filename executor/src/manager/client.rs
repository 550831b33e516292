//! The client's end of a connection: many calls in flight, from threads that block and from futures that must not.
//!
//! **Who reads.** There is no thread for replies until a future needs one. A thread that blocks for its reply takes the
//! reader if it is free (it *leads*) and reads until its own reply has come, handing the others to whom they belong;
//! then it puts the reader back and wakes one of those who wait (a *follower*), which leads next. So a thread alone
//! pays one write and one read for a call, and no hop between threads. Futures read for themselves when they are
//! polled, if the connection goes through shared memory, where looking costs nothing; when they sleep, a background
//! thread reads, which is started with the first of them. Who it is at a time, and why that is quick, stands in
//! `lead.rs`.
//!
//! No wake-up is lost: whoever finds the reader taken enters the followers under the lock under which the leader puts
//! it back and looks for its successor; and under the same lock futures and the background thread agree.
//!
//! **Who writes.** A frame goes into a queue, and whoever gets the writer writes all that is there: while one thread is
//! in the system call, others add to the next one. A future writes by itself only when the frame is small and little is
//! unread, so that it does not block, and nothing else is in flight or the connection goes through shared memory, where
//! a write alone is cheap; otherwise a background thread does, and takes along what has come by then.
//!
//! **Locks**: state, queue and writer are never held together, but for the queue under the writer. Tickets are leaves.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll, Waker};
use std::thread::Thread;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};

use super::error::{Failure, ManagerError};
use super::lead::{Background, Lead, Next};
use super::proxy::Undo;
use super::transport::{Address, ClientSecurity, Closer, FrameReader, FrameWriter, Limits, Peek, TransportError};
use super::wire::{self, ClientHello, PROTOCOL, ROOT, Request, ServerHello, root};

/// How long a connection may take.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// The largest message a server may be set to; what a client accepts.
pub(super) const MAX_MESSAGE: usize = 1 << 30;

/// A future writes by itself only so much, and only while the server has read what came before.
const INLINE_BYTES: usize = 1024;
const INLINE_UNANSWERED: u32 = 64;

/// For so long futures come back to look for replies though none comes: about as long as it takes to wake a thread.
const COMING_BACK: Duration = Duration::from_micros(30);

/// The most credit for it.
const CREDIT: i32 = 16;

/// How long the background thread waits for a future that has promised to look.
const WATCH: Duration = Duration::from_micros(100);

/// So many replies are read by one poll at most, and so many bytes: it has its thread only for a moment.
const MOST_READ: usize = 256;
const MOST_READ_BYTES: usize = 256 << 10;

/// What a call ended with.
pub(super) type Outcome = Result<Vec<u8>, Ended>;

/// The same, and over which connection it came, if over any.
pub(super) type Settled = (Outcome, Option<Arc<Connection>>);

/// Why there is no result.
#[derive(Clone, Debug)]
pub(super) enum Ended {
    /// The server says so.
    Failed(Failure),
    /// The connection ended, or could not be made.
    Lost(ManagerError),
    /// The connection was found broken while the request was written, so the server has not seen it whole. Here are its
    /// arguments, to be sent again.
    NotSent(Request),
}

/// A call that was sent, or waits for the connection to be made: where its outcome is put.
#[derive(Debug, Default)]
pub(super) struct Ticket {
    state: Mutex<TicketState>,
}

#[derive(Debug, Default)]
struct TicketState {
    /// Whoever takes it out takes the connection with it: a ticket may be dropped under the connection's lock.
    outcome: Option<Settled>,
    waker: Option<Waker>,
    /// Somebody wanted to wake the future while it was polled.
    nudged: bool,
    thread: Option<Thread>,
    /// The connection, and the number of the call there.
    sent: Option<(Arc<Connection>, u64)>,
    /// The object that it was sent to.
    object: u64,
    abandoned: bool,
    /// What takes a late result back.
    undo: Option<Undo>,
}

impl Ticket {
    pub(super) fn complete(&self, outcome: Outcome) {
        let (waker, thread) = {
            let mut state = self.state.lock();
            let connection = state.sent.take().map(|(connection, _)| connection);
            if state.abandoned {
                let (undo, object) = (state.undo.take(), state.object);
                drop(state);
                undo_late(undo, object, &(outcome, connection));
                return;
            }
            state.outcome = Some((outcome, connection));
            (state.waker.take(), state.thread.take())
        };
        if let Some(thread) = thread {
            thread.unpark();
        }
        wake(waker);
    }

    pub(super) fn poll(&self, cx: &mut Context<'_>) -> Poll<Settled> {
        let (old, sent) = {
            let mut state = self.state.lock();
            if let Some(outcome) = state.outcome.take() {
                return Poll::Ready(outcome);
            }
            // Not to be woken by itself, if it finds its own reply.
            (state.waker.take(), state.sent.clone())
        };
        if let Some((connection, id)) = sent {
            connection.inner.look(id, cx.waker());
        }
        // Cloning and dropping a waker is the executor's code, which may come back here: never under the lock.
        let waker = match old {
            Some(old) if old.will_wake(cx.waker()) => old,
            old => {
                drop(old);
                cx.waker().clone()
            }
        };
        let (unused, nudged) = {
            let mut state = self.state.lock();
            if let Some(outcome) = state.outcome.take() {
                drop(state);
                return Poll::Ready(outcome);
            }
            (state.waker.replace(waker), std::mem::take(&mut state.nudged))
        };
        drop(unused);
        if nudged {
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }

    /// Wakes the future, or has it woken if it is just being polled.
    fn nudge(&self) {
        let waker = {
            let mut state = self.state.lock();
            let waker = state.waker.take();
            state.nudged = waker.is_none();
            waker
        };
        wake(waker);
    }

    pub(super) fn is_done(&self) -> bool {
        self.state.lock().outcome.is_some()
    }

    /// The object that it was sent to.
    pub(super) fn object(&self) -> u64 {
        self.state.lock().object
    }

    fn take(&self) -> Option<Settled> {
        self.state.lock().outcome.take()
    }

    pub(super) fn is_abandoned(&self) -> bool {
        self.state.lock().abandoned
    }

    /// Nobody waits for the outcome any more. If the call may wait at an object of the server, for which it has an
    /// `undo`, that ends; and what a result gives is taken back, also if it has come already.
    pub(super) fn abandon(&self, undo: Option<Undo>) {
        let (settled, sent, object, waker) = {
            let mut state = self.state.lock();
            state.abandoned = true;
            state.undo = undo;
            (state.outcome.take(), state.sent.clone(), state.object, state.waker.take())
        };
        // The executor's code, which may come back here.
        drop(waker);
        match (settled, sent) {
            (Some(settled), _) => undo_late(undo, object, &settled),
            (None, Some((connection, id))) if undo.is_some() => connection.inner.abandon(id, object),
            (None, Some((connection, id))) => connection.inner.forsake(id),
            _ => {}
        }
    }

    /// Blocks until the outcome is there, for a ticket that is not yet sent.
    fn park(&self, deadline: Option<Instant>) -> bool {
        loop {
            {
                let mut state = self.state.lock();
                if state.outcome.is_some() || state.sent.is_some() {
                    return true;
                }
                state.thread = Some(std::thread::current());
            }
            if !park(deadline) {
                return false;
            }
        }
    }

    /// Blocks until the outcome is there; `None` when the deadline has passed first.
    pub(super) fn wait(self: &Arc<Self>, deadline: Option<Instant>) -> Option<Settled> {
        loop {
            if !self.park(deadline) {
                return self.take();
            }
            let sent = self.state.lock().sent.clone();
            match sent {
                Some((connection, _)) => connection.inner.wait(self, deadline),
                None => return self.take(),
            }
            if let Some(outcome) = self.take() {
                return Some(outcome);
            }
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return None;
            }
        }
    }
}

/// Takes back what came for nobody, over the connection by which it came: over another one, the server would take back
/// what that has.
fn undo_late(undo: Option<Undo>, object: u64, settled: &Settled) {
    let (object, method) = match undo {
        Some(Undo::Object(method)) => (object, method),
        Some(Undo::Root(method)) => (ROOT, method),
        Some(Undo::Nothing) | None => return,
    };
    if let (Ok(result), Some(connection)) = settled {
        connection.inner.undo(object, method, result);
    }
}

fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        // The executor's code; its panics are not to stop the other calls of this connection.
        let _ = crate::panic::catch(|| waker.wake());
    }
}

/// Parks this thread; `false` when the deadline has passed already.
fn park(deadline: Option<Instant>) -> bool {
    match deadline {
        None => std::thread::park(),
        Some(deadline) => match deadline.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
            Some(left) => std::thread::park_timeout(left),
            None => return false,
        },
    }
    true
}

/// A connection of this process to a server. Dropping it ends it, but for copies in forked children.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) generation: u64,
    inner: Arc<Inner>,
    made_in: u32,
}

/// Tells what this process has made from what it has inherited by a plain `fork`, which belongs to its parent: sockets
/// are the very ones of the parent, and locks may be those of threads that don't exist here.
pub(super) fn here() -> u32 {
    #[cfg(unix)]
    {
        polypool_ipc::fork_generation()
    }
    #[cfg(not(unix))]
    {
        0
    }
}

struct Inner {
    address: Address,
    max_message: u64,
    /// Whether futures read for themselves.
    looks: bool,
    closer: Closer,
    state: Mutex<State>,
    /// The background reader waits here for something to do.
    reading: Condvar,
    writer: Mutex<FrameWriter>,
    queue: Mutex<Queue>,
    /// The background writer waits here.
    writing: Condvar,
    /// Frames sent since the last reply came.
    unanswered: AtomicU32,
}

struct State {
    /// In its place while nobody leads.
    reader: Option<FrameReader>,
    pending: HashMap<u64, Pending, BuildHasherDefault<IdHasher>>,
    /// Tickets of threads that wait for somebody else to read for them.
    followers: VecDeque<Arc<Ticket>>,
    /// How many of the pending calls are those of futures, or of nobody: no thread reads for them.
    background: usize,
    lead: Lead,
    /// When futures have last found something, or have begun to look.
    found: Instant,
    has_reader_thread: bool,
    next: u64,
    dead: Option<ManagerError>,
}

impl State {
    /// Takes a call out.
    fn remove(&mut self, id: u64) -> Option<Pending> {
        let pending = self.pending.remove(&id)?;
        self.background -= usize::from(pending.background);
        if pending.polled {
            self.lead.settled(id);
        }
        Some(pending)
    }
}

struct Pending {
    ticket: Arc<Ticket>,
    background: bool,
    /// Whether its future has been polled, and may be asleep.
    polled: bool,
}

#[derive(Default)]
struct Queue {
    frames: Vec<Vec<u8>>,
    has_thread: bool,
    /// The background writer has something to do.
    wanted: bool,
    closed: bool,
}

/// What came of reading.
enum Read {
    /// A reply; and how many calls of futures are left.
    One(usize),
    TimedOut,
    /// The connection has ended.
    Dead,
}

/// How a call is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum By {
    /// A thread that then blocks.
    Thread,
    /// A future, or somebody who must not block.
    Future,
}

impl Connection {
    /// Connects and greets.
    pub(super) fn open(address: &Address, security: &ClientSecurity) -> Result<Self, ManagerError> {
        let failed = |error| match error {
            super::transport::ConnectError::Unreachable { source, .. } => {
                let why = format!("nobody can be reached there: {source}").into();
                ManagerError::ServerGone { address: address.clone(), why }
            }
            // It ended while it was greeted.
            super::transport::ConnectError::Disconnected => {
                let why = "it closed the connection during the handshake".into();
                ManagerError::ServerGone { address: address.clone(), why }
            }
            error => ManagerError::Connect { address: address.clone(), error: Arc::new(error) },
        };
        let gone = |why: String| ManagerError::ServerGone { address: address.clone(), why: why.into() };
        let limits = Limits { max_message: MAX_MESSAGE, ..Limits::default() };
        let deadline = Instant::now() + CONNECT_TIMEOUT;
        let (mut reader, mut writer, closer) =
            super::transport::connect(address, security, &limits, CONNECT_TIMEOUT).map_err(failed)?;
        let hello = ClientHello { protocol: PROTOCOL, pid: std::process::id() };
        let mut bytes = Vec::new();
        wire::encode_into(&hello, &mut bytes).map_err(&gone)?;
        writer.send(&bytes).map_err(|error| gone(error.to_string()))?;
        let hello: ServerHello = match reader.recv(Some(deadline)) {
            Ok(Some(frame)) => wire::decode(frame).map_err(gone)?,
            Ok(None) => return Err(gone("it closed the connection instead of greeting".to_owned())),
            Err(error) => return Err(gone(error.to_string())),
        };
        if let Some(refused) = hello.refused {
            return Err(refused.explain("manager"));
        }
        if hello.protocol != PROTOCOL {
            return Err(gone(format!("it speaks version {} of the protocol, not {PROTOCOL}", hello.protocol)));
        }
        let looks = reader.is_cheap();
        let inner = Arc::new(Inner {
            address: address.clone(),
            looks,
            max_message: hello.max_message.min(MAX_MESSAGE as u64),
            closer,
            state: Mutex::new(State {
                reader: Some(reader),
                pending: HashMap::default(),
                followers: VecDeque::new(),
                background: 0,
                lead: Lead::new(if looks { CREDIT } else { 0 }),
                found: Instant::now(),
                has_reader_thread: false,
                next: 1,
                dead: None,
            }),
            reading: Condvar::new(),
            writer: Mutex::new(writer),
            queue: Mutex::default(),
            writing: Condvar::new(),
            unanswered: AtomicU32::new(0),
        });
        Ok(Connection { generation: hello.generation, inner, made_in: here() })
    }

    pub(super) fn is_dead(&self) -> bool {
        self.inner.state.lock().dead.is_some()
    }

    /// Sends a request; the outcome comes to the ticket, whatever happens. `Err` hands the request back, because it
    /// certainly was not sent.
    pub(super) fn send(
        self: &Arc<Self>,
        object: u64,
        method: u32,
        request: Request,
        ticket: &Arc<Ticket>,
        by: By,
    ) -> Result<(), NotSent> {
        let inner = &self.inner;
        let (id, alone) = {
            let mut state = inner.state.lock();
            if state.dead.is_some() {
                return Err(NotSent(request));
            }
            let id = state.next;
            state.next += 1;
            let alone = state.background == 0;
            let background = by == By::Future;
            let polled = background && !inner.looks;
            state.pending.insert(id, Pending { ticket: ticket.clone(), background, polled });
            // Before the reply can come, so that a completed ticket never has a connection.
            {
                let mut ticket = ticket.state.lock();
                (ticket.sent, ticket.object) = (Some((self.clone(), id)), object);
            }
            if background {
                state.background += 1;
                if polled {
                    state.lead.polled(id);
                }
                if let Err(error) = inner.call_reader_thread(&mut state) {
                    state.remove(id);
                    drop(state);
                    ticket.complete(Err(Ended::Lost(error.into())));
                    return Ok(());
                }
            }
            (id, alone)
        };
        let frame = request.into_frame(id, object, method);
        if frame.len() as u64 > inner.max_message {
            let size = (frame.len() - wire::REQUEST_HEAD) as u64;
            inner.settle(id, Err(Ended::Lost(ManagerError::TooLarge { size, limit: inner.max_message })));
            return Ok(());
        }
        match by {
            By::Thread => inner.post_and_drain(frame),
            By::Future => inner.post_aside(frame, alone),
        }
        Ok(())
    }

    /// Sends a request that nobody waits for, without blocking. On a connection that is gone it is dropped: what it
    /// would give back has been given back by the server.
    ///
    /// In a forked child nothing is sent: what is dropped there is a copy, and the connection is the parent's.
    pub(super) fn post(&self, object: u64, method: u32, request: Request) {
        if self.is_a_copy() {
            return;
        }
        self.inner.post_aside(request.into_frame(0, object, method), true);
    }

    /// Makes a call on this thread and blocks for it.
    pub(super) fn call(self: &Arc<Self>, object: u64, method: u32, request: Request) -> Outcome {
        let ticket = Arc::new(Ticket::default());
        if self.send(object, method, request, &ticket, By::Thread).is_err() {
            return Err(Ended::Lost(self.inner.death()));
        }
        ticket.wait(None).map_or_else(|| Err(Ended::Lost(self.inner.death())), |(outcome, _)| outcome)
    }

    /// Whether this is a forked child, to which the connection of its parent doesn't belong.
    fn is_a_copy(&self) -> bool {
        self.made_in != here()
    }

    /// Ends the connection; what is pending fails with this.
    pub(super) fn close(&self, why: &str) {
        let error = ManagerError::ServerGone { address: self.inner.address.clone(), why: why.into() };
        self.inner.die(error);
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if self.is_a_copy() {
            // Its writer would say at the parent's socket that nothing more comes.
            std::mem::forget(self.inner.clone());
        } else {
            self.close("the connection was closed");
        }
    }
}

/// The request was not sent, because the connection was known to be gone.
#[derive(Debug)]
pub(super) struct NotSent(pub(super) Request);

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Inner {
    // ---- Reading ----------------------------------------------------------------------------------------------------

    /// Blocks until the ticket is done, leading if nobody else does. May return earlier when the deadline has passed.
    fn wait(self: &Arc<Self>, ticket: &Arc<Ticket>, deadline: Option<Instant>) {
        loop {
            let mut state = self.state.lock();
            if ticket.is_done() {
                return;
            }
            if state.dead.is_some() {
                // Whoever noticed completes all tickets, and is about to.
                drop(state);
                if !park_for(ticket, deadline) {
                    return;
                }
                continue;
            }
            if let Some(reader) = state.reader.take() {
                drop(state);
                self.lead(reader, deadline, || ticket.is_done());
                return;
            }
            // Somebody leads, and looks for a successor under the same lock.
            ticket.state.lock().thread = Some(std::thread::current());
            if !state.followers.iter().any(|other| Arc::ptr_eq(other, ticket)) {
                state.followers.push_back(ticket.clone());
            }
            drop(state);
            if ticket.is_done() {
                return;
            }
            if !park(deadline) {
                return self.stop_following(ticket);
            }
        }
    }

    /// The time of a follower is up. If it was just chosen to lead, another one is to do so.
    fn stop_following(self: &Arc<Self>, ticket: &Arc<Ticket>) {
        let mut state = self.state.lock();
        state.followers.retain(|other| !Arc::ptr_eq(other, ticket));
        ticket.state.lock().thread = None;
        if let Some(reader) = state.reader.take() {
            self.hand_on(state, reader);
        }
    }

    /// Reads and hands out replies until `enough`; then gives the reader to the next one.
    fn lead(self: &Arc<Self>, mut reader: FrameReader, deadline: Option<Instant>, enough: impl Fn() -> bool) {
        loop {
            match self.read_one(&mut reader, deadline) {
                Read::One(_) if enough() => return self.hand_on(self.state.lock(), reader),
                Read::One(_) => {}
                Read::TimedOut => return self.hand_on(self.state.lock(), reader),
                Read::Dead => return,
            }
        }
    }

    /// Waits for a reply and gives it to whom it belongs.
    fn read_one(&self, reader: &mut FrameReader, deadline: Option<Instant>) -> Read {
        match reader.recv(deadline) {
            Ok(Some(frame)) => match wire::read_reply(frame) {
                Some((id, result)) => {
                    self.unanswered.store(0, Ordering::Relaxed);
                    return Read::One(self.settle(id, result.map(<[u8]>::to_vec).map_err(Ended::Failed)));
                }
                None => self.die(self.gone("it sent something that is no reply")),
            },
            Ok(None) => self.die(self.gone("it closed the connection")),
            Err(TransportError::TimedOut) => return Read::TimedOut,
            Err(error) => self.die(self.gone(&explain(&error))),
        }
        Read::Dead
    }

    /// Puts the reader back and wakes who is to lead next.
    fn hand_on(&self, mut state: MutexGuard<'_, State>, reader: FrameReader) {
        if state.dead.is_some() {
            return;
        }
        state.reader = Some(reader);
        while let Some(next) = state.followers.pop_front() {
            let mut ticket = next.state.lock();
            if ticket.outcome.is_none()
                && !ticket.abandoned
                && let Some(thread) = ticket.thread.take()
            {
                drop(ticket);
                drop(state);
                thread.unpark();
                return;
            }
        }
        self.rest(state);
    }

    /// Nobody has the reader: sees to it that somebody waits for the replies of futures.
    fn rest(&self, mut state: MutexGuard<'_, State>) {
        let Next { background, future } = {
            let pending = state.background;
            state.lead.rest(pending)
        };
        let future = future.and_then(|id| state.pending.get(&id)).map(|pending| pending.ticket.clone());
        if future.is_some() {
            state.found = Instant::now();
        }
        drop(state);
        if background {
            self.reading.notify_one();
        }
        if let Some(ticket) = future {
            ticket.nudge();
        }
    }

    /// A future is polled and has no reply yet: it reads what has come, and hands it out.
    fn look(&self, id: u64, waker: &Waker) {
        let mut state = self.state.lock();
        let State { pending, lead, reader, .. } = &mut *state;
        let Some(mine) = pending.get_mut(&id).filter(|_| self.looks) else { return };
        if !std::mem::replace(&mut mine.polled, true) {
            lead.polled(id);
        }
        if !lead.looks(id, reader.is_none()) {
            return;
        }
        let Some(mut reader) = reader.take() else { return };
        drop(state);
        let now = Instant::now();
        let (mut found, mut bytes, mut long) = (0, MOST_READ_BYTES, false);
        while found < MOST_READ {
            match reader.peek(&mut bytes) {
                Peek::Message => {}
                Peek::Nothing => break,
                Peek::Long => {
                    long = true;
                    break;
                }
            }
            match self.read_one(&mut reader, Some(now)) {
                Read::One(_) => found += 1,
                Read::TimedOut => break,
                Read::Dead => return,
            }
        }
        let mut state = self.state.lock();
        if found > 0 {
            state.lead.found();
            state.found = now;
        }
        if !state.followers.is_empty() || !state.pending.contains_key(&id) {
            return self.hand_on(state, reader);
        }
        if state.dead.is_some() {
            return;
        }
        state.reader = Some(reader);
        let late = now.saturating_duration_since(state.found) >= COMING_BACK;
        let next = if long { state.lead.passed() } else { state.lead.looked(id, late) };
        drop(state);
        if next.background {
            self.reading.notify_one();
        }
        if next.future.is_some() {
            waker.wake_by_ref();
        }
    }

    /// Gives an outcome to whom it belongs, and says how many calls of futures are left.
    fn settle(&self, id: u64, outcome: Outcome) -> usize {
        let (pending, background) = {
            let mut state = self.state.lock();
            (state.remove(id), state.background)
        };
        if let Some(pending) = pending {
            pending.ticket.complete(outcome);
        }
        background
    }

    fn undo(self: &Arc<Self>, object: u64, method: u32, result: &[u8]) {
        self.post_aside(Request::new().rest(result).into_frame(0, object, method), true);
    }

    /// Nobody waits for this call any more, which may wait at an object.
    fn abandon(self: &Arc<Self>, id: u64, object: u64) {
        {
            let mut state = self.state.lock();
            let Some(pending) = state.pending.get_mut(&id) else { return };
            // The reply must be read by somebody: it may have to be taken back.
            if !std::mem::replace(&mut pending.background, true) {
                state.background += 1;
            }
            let _ = self.call_reader_thread(&mut state);
        }
        self.forsake(id);
        self.post_aside(Request::new().number(object).number(id).into_frame(0, ROOT, root::CANCEL), true);
    }

    /// The future of this call is not polled any more. If it had promised to look, somebody else is to do so.
    fn forsake(&self, id: u64) {
        let mut state = self.state.lock();
        let State { pending, lead, .. } = &mut *state;
        let Some(pending) = pending.get_mut(&id) else { return };
        if std::mem::replace(&mut pending.polled, false) {
            lead.settled(id);
            if state.reader.is_some() {
                self.rest(state);
            }
        }
    }

    /// Sees to it that the background reader is there, and knows that there is something to read.
    fn call_reader_thread(self: &Arc<Self>, state: &mut State) -> io::Result<()> {
        if !state.has_reader_thread {
            let inner = self.clone();
            let thread = std::thread::Builder::new().name("manager-replies".to_owned());
            thread.spawn(move || inner.read_in_background())?;
            state.has_reader_thread = true;
        }
        if state.lead.sent(self.looks) {
            self.reading.notify_one();
        }
        Ok(())
    }

    fn read_in_background(self: &Arc<Self>) {
        let mut state = self.state.lock();
        while state.dead.is_none() {
            state.lead.awake();
            let pending = if state.reader.is_some() { state.background } else { 0 };
            match state.lead.background(pending) {
                Background::Watch => _ = self.reading.wait_for(&mut state, WATCH),
                Background::Sleep => self.reading.wait(&mut state),
                Background::Listen => {
                    if let Some(reader) = state.reader.take() {
                        MutexGuard::unlocked(&mut state, || self.listen(reader));
                    }
                }
            }
        }
    }

    /// Waits for replies until no future waits for any, or one of them has come and futures may look for themselves.
    fn listen(self: &Arc<Self>, mut reader: FrameReader) {
        loop {
            match self.read_one(&mut reader, None) {
                Read::One(0) => break,
                // What is too long for futures would only come back to this thread.
                Read::One(_) if self.looks && !reader.has_buffered() && !reader.has_long() => break,
                Read::One(_) | Read::TimedOut => {}
                Read::Dead => return,
            }
        }
        self.hand_on(self.state.lock(), reader);
    }

    // ---- Writing ----------------------------------------------------------------------------------------------------

    /// Queues a frame and writes whatever is queued, unless somebody else is doing so.
    fn post_and_drain(&self, frame: Vec<u8>) {
        self.queue.lock().frames.push(frame);
        self.drain();
    }

    fn drain(&self) {
        loop {
            let Some(mut writer) = self.writer.try_lock() else {
                // Its holder looks into the queue again after it has let go of the writer.
                return;
            };
            loop {
                let frames = std::mem::take(&mut self.queue.lock().frames);
                if frames.is_empty() {
                    break;
                }
                let sent = match &frames[..] {
                    [frame] => writer.send(frame),
                    frames => writer.send_many(frames),
                };
                self.unanswered.fetch_add(frames.len() as u32, Ordering::Relaxed);
                if let Err(error) = sent {
                    drop(writer);
                    self.not_written(frames, &error);
                    return;
                }
            }
            drop(writer);
            if self.queue.lock().frames.is_empty() {
                return;
            }
        }
    }

    /// Writes a small frame if that can't block, or has it written by the background thread.
    fn post_aside(self: &Arc<Self>, frame: Vec<u8>, inline: bool) {
        if frame.len() <= INLINE_BYTES && self.unanswered.load(Ordering::Relaxed) < INLINE_UNANSWERED {
            let Some(mut writer) = self.writer.try_lock() else { return self.post_to_thread(frame) };
            if (inline || writer.is_cheap()) && self.queue.lock().frames.is_empty() {
                let sent = writer.send(&frame);
                drop(writer);
                self.unanswered.fetch_add(1, Ordering::Relaxed);
                if let Err(error) = sent {
                    self.not_written(vec![frame], &error);
                    return;
                }
                // Somebody may have found the writer taken.
                self.wake_writer();
                return;
            }
            drop(writer);
        }
        self.post_to_thread(frame);
    }

    fn post_to_thread(self: &Arc<Self>, frame: Vec<u8>) {
        self.queue.lock().frames.push(frame);
        self.wake_writer();
    }

    /// Has the background thread write what is queued, if there is anything.
    fn wake_writer(self: &Arc<Self>) {
        {
            let mut queue = self.queue.lock();
            if queue.frames.is_empty() || queue.closed || std::mem::replace(&mut queue.wanted, true) {
                return;
            }
            if queue.has_thread {
                self.writing.notify_one();
                return;
            }
            queue.has_thread = true;
        }
        let inner = self.clone();
        let thread = std::thread::Builder::new().name("manager-requests".to_owned());
        if let Err(error) = thread.spawn(move || inner.write_in_background()) {
            // Better no connection than a request that is never sent.
            self.die(self.gone(&format!("no thread could be started to write to it: {error}")));
        }
    }

    fn write_in_background(&self) {
        loop {
            {
                let mut queue = self.queue.lock();
                while !queue.wanted && !queue.closed {
                    self.writing.wait(&mut queue);
                }
                if queue.closed {
                    return;
                }
                queue.wanted = false;
            }
            self.drain();
        }
    }

    /// A write failed. If it was a single frame, the server has certainly not got it.
    fn not_written(&self, mut frames: Vec<Vec<u8>>, error: &TransportError) {
        if frames.len() == 1
            && let Some((id, request)) = frames.pop().and_then(Request::out_of_frame)
        {
            // First of all others may see that the connection is gone, or they would send on it again.
            self.mark_dead(&self.gone(&explain(error)));
            self.settle(id, Err(Ended::NotSent(request)));
        }
        self.die(self.gone(&explain(error)));
    }

    // ---- The end ----------------------------------------------------------------------------------------------------

    fn gone(&self, why: &str) -> ManagerError {
        ManagerError::ServerGone { address: self.address.clone(), why: why.into() }
    }

    fn death(&self) -> ManagerError {
        self.state.lock().dead.clone().unwrap_or_else(|| self.gone("the connection was closed"))
    }

    /// Ends the connection, and all its calls with this error. Only the first reason counts.
    fn die(&self, error: ManagerError) {
        let (pending, reader) = {
            let mut state = self.state.lock();
            state.dead.get_or_insert_with(|| error.clone());
            state.background = 0;
            state.followers.clear();
            (std::mem::take(&mut state.pending), state.reader.take())
        };
        self.closer.close();
        let frames = {
            let mut queue = self.queue.lock();
            queue.closed = true;
            std::mem::take(&mut queue.frames)
        };
        self.reading.notify_all();
        self.writing.notify_all();
        for pending in pending.into_values() {
            pending.ticket.complete(Err(Ended::Lost(error.clone())));
        }
        drop((reader, frames));
    }

    fn mark_dead(&self, error: &ManagerError) {
        self.state.lock().dead.get_or_insert_with(|| error.clone());
    }
}

/// Parks until something happens to the ticket; `false` when the deadline has passed.
fn park_for(ticket: &Ticket, deadline: Option<Instant>) -> bool {
    {
        let mut state = ticket.state.lock();
        if state.outcome.is_some() {
            return true;
        }
        state.thread = Some(std::thread::current());
    }
    park(deadline)
}

/// The error with its cause.
fn explain(error: &TransportError) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

/// Numbers of calls are their own hashes.
#[derive(Debug, Default)]
struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, id: u64) {
        // hashbrown takes its control bytes from the top.
        self.0 = id.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{OnceLock, mpsc};
    use std::task::Wake;

    use super::*;

    /// Looks at the ticket when it is dropped, as an executor may that polls a task again from there.
    struct Curious(Arc<OnceLock<Arc<Ticket>>>, mpsc::Sender<bool>);

    impl Wake for Curious {
        fn wake(self: Arc<Self>) {}
    }

    impl Drop for Curious {
        fn drop(&mut self) {
            if let Some(ticket) = self.0.get() {
                let _ = self.1.send(ticket.is_abandoned());
            }
        }
    }

    #[test]
    fn a_waker_is_dropped_when_no_lock_is_held() {
        let (tell, told) = mpsc::channel();
        std::thread::spawn(move || {
            let shared = Arc::new(OnceLock::new());
            let ticket = Arc::new(Ticket::default());
            let _ = shared.set(ticket.clone());
            for _ in 0..2 {
                // Of two that are put in one after the other the first is dropped.
                let waker = Arc::new(Curious(shared.clone(), tell.clone())).into();
                assert!(ticket.poll(&mut Context::from_waker(&waker)).is_pending());
            }
            ticket.abandon(None);
        });
        let dropped = [false, true].map(|_| told.recv_timeout(Duration::from_secs(60)).expect("it hangs"));
        assert_eq!(dropped, [false, true], "one while it is polled, one when nobody waits for it any more");
    }

    #[test]
    fn the_copy_in_a_forked_child_leaves_the_connection_alone() {
        let manager = crate::manager::Manager::in_thread().unwrap();
        let connection = Arc::new(Connection::open(manager.address(), &ClientSecurity::new()).unwrap());
        let ping = || connection.call(ROOT, crate::manager::wire::root::PING, Request::new());
        assert!(ping().is_ok());
        // As a forked child finds it.
        let (generation, inner) = (connection.generation, connection.inner.clone());
        let copy = Connection { generation, inner, made_in: connection.made_in + 1 };
        copy.post(ROOT, u32::MAX, Request::new());
        let owners = Arc::strong_count(&connection.inner);
        drop(copy);
        assert_eq!(Arc::strong_count(&connection.inner), owners, "the last copy must not drop the writer either");
        assert!(!connection.is_dead());
        assert!(ping().is_ok());
        let inner = connection.inner.clone();
        drop(connection);
        assert!(inner.state.lock().dead.is_some(), "its own drop ends it");
    }
}
