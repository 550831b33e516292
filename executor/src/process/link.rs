//! One worker, as the supervisor sees it: what it was sent and has not answered, and what is still to be written.
//!
//! **The window.** A worker that gets its next call only after the answer to the last one waits for two wake-ups a
//! task, which is fifty times the price of a small task. So calls are sent ahead, as many as the worker does in about
//! [`AHEAD`], by the time its last ones took; to a worker whose tasks are long, none. What was sent ahead stays in the
//! parent's hands: it can be cancelled, given to an idle worker, or, when its worker dies, be given to another one,
//! because the claim word says whether the worker has begun with it.
//!
//! **Handles** are not sent ahead. A descriptor that lies unread in a socket is as open as any other, and nobody can
//! take it back: the end of a pipe that was sent to a busy worker would keep the pipe open after its call was cancelled
//! or done elsewhere. So a call with handles goes only to a worker that has nothing else to do, and receives them at
//! once.

use std::collections::{HashMap, VecDeque};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes, BytesMut};
use polypool_ipc::{ClaimState, Claims, Luggage, LuggageError, Sending};
use tokio::sync::{Notify, OwnedSemaphorePermit};

use super::direct;
use super::pool::{Abandoned, Pool, WorkerInfo};
use super::start::{Greeted, Handle, Sockets, Started};
use super::supervisor;
use super::transport::Line;
use super::wire::{self, Header, Kind};
use crate::codec::{Block, Encoded, Message};
use crate::error::CodecError;
use crate::state::{Call, Callable, Ticket, Wire, WorkerLink};
use crate::task::Shape;

/// The most calls that a worker has at a time: its claim words.
pub(super) const WINDOW: usize = 1_024;

/// How much work is sent ahead of a worker.
const AHEAD: Duration = Duration::from_millis(2);

/// An answer that is to come within this time is looked for before anybody sleeps.
const SOON: Duration = Duration::from_micros(50);

/// For an answer that takes longer than this, wake-ups included, no caller looks.
const SHORTLY: Duration = Duration::from_micros(200);

/// How much work must lie ahead of a worker before its answers may wait for a moment.
const WELL_FED: Duration = Duration::from_micros(300);

/// Above this size, a payload is written from where it is instead of being copied behind its header.
const COPY_BELOW: usize = 16 * 1024;

/// How much of large payloads is written to one worker before the others have their turn.
const WRITE_AT_ONCE: usize = 8 * 1024 * 1024;

/// Where a worker stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// It has been started and has not said anything.
    Starting,
    /// It runs the initialiser.
    Initialising,
    /// It takes calls.
    Ready,
    /// The call of this ticket was cancelled while it ran; the worker is to end it or be killed.
    Stopping(Ticket),
    /// It has been told that there is nothing more to come.
    Retiring,
    /// It has been killed, perhaps because of what it sent.
    Dying(Option<String>),
}

/// The part of a worker that the cells of its calls hold.
pub(super) struct Shared {
    claims: Claims,
    index: usize,
    pool: Arc<Pool>,
}

impl WorkerLink for Shared {
    fn has_started(&self, ticket: Ticket) -> bool {
        matches!(self.claims.state(ticket.slot, ticket.sequence), ClaimState::Started | ClaimState::Finished)
    }

    fn revoke(&self, ticket: Ticket) -> bool {
        self.claims.revoke(ticket.slot, ticket.sequence)
    }

    fn abandoned(&self, ticket: Ticket) {
        {
            let mut inbox = self.pool.inbox.lock();
            inbox.push(Abandoned { worker: self.index, ticket });
            self.pool.has_news.store(true, Ordering::Relaxed);
        }
        self.pool.notify.notify_one();
    }

    fn fetch(&self, ticket: Ticket, until: Option<Instant>) {
        self.pool.fetch(self.index, ticket, until);
    }
}

/// What is to be written.
enum Out {
    /// Small frames that follow each other: they go out in one write.
    Frames(BytesMut),
    /// A large payload, from where it is.
    Payload(Bytes),
    /// Of the frame that follows.
    Luggage(Sending),
}

pub(super) struct Flight {
    pub(super) cell: Arc<dyn Callable>,
    pub(super) ticket: Ticket,
    /// The worker has said so. Its cell is running from then on, and can't be given to another worker, whatever the
    /// claim word says.
    pub(super) has_begun: bool,
}

/// The calls a worker has, by the slot of their claim word.
struct Flights {
    by_slot: Vec<Option<Flight>>,
    /// Used in turn: the words that the worker looks at are then in other lines of the cache than those that are
    /// written.
    free: VecDeque<usize>,
    len: usize,
}

impl Flights {
    fn new() -> Self {
        Flights { by_slot: (0..WINDOW).map(|_| None).collect(), free: (0..WINDOW).collect(), len: 0 }
    }

    fn len(&self) -> usize {
        self.len
    }

    fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The slot was taken out of `free`.
    fn insert(&mut self, flight: Flight) {
        let slot = flight.ticket.slot;
        self.by_slot[slot] = Some(flight);
        self.len += 1;
    }

    fn get(&self, ticket: Ticket) -> Option<&Flight> {
        self.by_slot.get(ticket.slot)?.as_ref().filter(|flight| flight.ticket == ticket)
    }

    fn get_mut(&mut self, ticket: Ticket) -> Option<&mut Flight> {
        self.by_slot.get_mut(ticket.slot)?.as_mut().filter(|flight| flight.ticket == ticket)
    }

    fn remove(&mut self, ticket: Ticket) -> Option<Flight> {
        self.get(ticket)?;
        self.len -= 1;
        self.free.push_back(ticket.slot);
        self.by_slot[ticket.slot].take()
    }

    fn all(&self) -> impl Iterator<Item = &Flight> {
        self.by_slot.iter().flatten()
    }

    /// For a worker that is dead: the slots are not used again.
    fn take_all(&mut self) -> Vec<Flight> {
        self.len = 0;
        self.by_slot.iter_mut().filter_map(Option::take).collect()
    }
}

struct LastTask {
    name: &'static str,
    signature: &'static str,
    place: u32,
}

/// What came of sending a call.
pub(super) enum Sent {
    /// What it held of the backlog's room is to be dropped when nothing is locked: somebody may wait for it.
    Yes(Option<OwnedSemaphorePermit>),
    /// It had its outcome before, and nothing was sent. Nothing may be locked where it's dropped, as above.
    WasSettled(Arc<dyn Callable>),
    /// It has handles, and the worker has something else to do first.
    NotNow(Call),
    /// The worker does not know the task.
    Unknown(Call, CodecError),
}

/// What a caller sees that looks for the answer to its call.
pub(super) enum Glimpse {
    /// Nothing yet.
    Nothing,
    /// The answer and nothing else.
    Value(Message),
    /// Something that is the supervisor's affair.
    Other,
}

/// The part of a worker that stays on the supervisor's thread.
pub(super) struct Body {
    pub(super) process: Handle,
    pub(super) stderr: OwnedFd,
}

/// The part of a worker that whoever holds the crew's lock can work with, be it the supervisor or a caller.
pub(super) struct Worker {
    pub(super) index: usize,
    pub(super) info: Arc<WorkerInfo>,
    pub(super) stage: Stage,
    pub(super) line: Line,
    sockets: Sockets,
    shared: Arc<Shared>,
    flights: Flights,
    next_sequence: u64,
    /// How many calls it may still be sent, if that is limited.
    pub(super) left: Option<usize>,
    /// The place and signature of each task in its registry.
    pub(super) tasks: HashMap<String, (u32, String)>,
    /// The task that was looked up last: most calls are of the same one.
    last: Option<LastTask>,
    window: usize,
    /// How long a call takes, by its last ones.
    each: Option<Duration>,
    /// Since when the calls that it answers next have kept it busy.
    busy_since: Instant,
    pub(super) read: BytesMut,
    /// What stands in `read` was read by a caller, and not looked into. Nobody rings for it.
    is_left: bool,
    /// A frame whose block is being read.
    pending: Option<wire::Pending>,
    out: VecDeque<Out>,
    /// The memory of frames that have gone.
    spare: BytesMut,
    /// Nothing can be written to it any more.
    is_deaf: bool,
    /// The luggage that is to be written next has to wait a moment, and all after it with it.
    luggage_waits: bool,
    /// Tells the task that owns the socket that there is something to write, or that the stage has changed.
    pub(super) poke: Arc<Notify>,
    /// Whether it has answered a call of a task.
    pub(super) has_worked: bool,
}

impl Worker {
    pub(super) fn new(index: usize, name: String, started: Started, pool: &Arc<Pool>) -> std::io::Result<(Self, Body)> {
        let Greeted { claims, sockets, ring } = started.greeted;
        let info = WorkerInfo { name, pid: started.pid, busy: AtomicBool::new(false), completed: AtomicU64::new(0) };
        let worker = Worker {
            index,
            info: Arc::new(info),
            stage: Stage::Starting,
            line: Line::new(started.channel, ring)?,
            sockets,
            shared: Arc::new(Shared { claims, index, pool: pool.clone() }),
            flights: Flights::new(),
            next_sequence: wire::INITIALIZER + 1,
            left: pool.config.max_tasks_per_worker,
            tasks: HashMap::new(),
            last: None,
            window: 1,
            each: None,
            busy_since: Instant::now(),
            read: BytesMut::new(),
            is_left: false,
            pending: None,
            out: VecDeque::new(),
            spare: BytesMut::new(),
            is_deaf: false,
            luggage_waits: false,
            poke: Arc::new(Notify::new()),
            has_worked: false,
        };
        Ok((worker, Body { process: started.process, stderr: started.stderr }))
    }

    // ---- Calls -----------------------------------------------------------------------------------------------------

    pub(super) fn in_flight(&self) -> usize {
        self.flights.len()
    }

    /// How many more calls it may be sent now.
    pub(super) fn room(&self) -> usize {
        if self.stage != Stage::Ready {
            return 0;
        }
        self.window.saturating_sub(self.flights.len()).min(self.left.unwrap_or(usize::MAX))
    }

    pub(super) fn is_idle(&self) -> bool {
        self.flights.is_empty() && self.room() > 0
    }

    /// Whether it will take no more calls, although nothing is wrong with it.
    pub(super) fn is_spent(&self) -> bool {
        self.stage == Stage::Ready && self.left == Some(0) && self.flights.is_empty()
    }

    /// Puts a call on its way; `flush` writes it.
    pub(super) fn send(&mut self, call: Call) -> Sent {
        let wire = call.cell().wire();
        let task = match self.find(&wire) {
            Ok(task) => task,
            Err(error) => return Sent::Unknown(call, error),
        };
        if wire.has_luggage && !self.flights.is_empty() {
            return Sent::NotNow(call);
        }
        let Some(slot) = self.flights.free.pop_front() else {
            unreachable!("the window is not larger than the number of claim words")
        };
        let ticket = Ticket { worker: self.index, slot, sequence: self.next_sequence };
        self.next_sequence += 1;
        self.shared.claims.send(slot, ticket.sequence);
        let cell = call.into_cell();
        let Some((payload, permit)) = cell.send(self.shared.clone(), ticket) else {
            // The worker hears nothing of it, so the slot can be used again.
            self.flights.free.push_back(slot);
            return Sent::WasSettled(cell);
        };
        if self.flights.is_empty() {
            self.busy_since = Instant::now();
            self.info.busy.store(true, Ordering::Relaxed);
        }
        if let Some(left) = &mut self.left {
            *left -= 1;
        }
        let mut flags = 0;
        if wire.shape == Shape::Chunk {
            flags |= wire::CHUNK;
        }
        if wire.announce_start {
            flags |= wire::ANNOUNCE;
        }
        let header = Header {
            flags,
            attempt: u16::try_from(wire.attempt).unwrap_or(u16::MAX),
            slot: slot as u32,
            task,
            sequence: ticket.sequence,
            id: wire.id.0,
            ..Header::new(Kind::Call)
        };
        self.flights.insert(Flight { cell, ticket, has_begun: false });
        if let Some(name) = wire.own_name {
            self.put(Header { kind: Kind::Name, ..header }, Encoded::copy_of(name.as_bytes()).into());
        }
        self.put(header, payload);
        Sent::Yes(permit)
    }

    /// Sends the call of the initialiser.
    pub(super) fn initialise(&mut self, task: u32, payload: Message) {
        self.stage = Stage::Initialising;
        self.put(Header { task, sequence: wire::INITIALIZER, ..Header::new(Kind::Call) }, payload);
    }

    /// Tells the worker that there is nothing more to come.
    pub(super) fn retire(&mut self) {
        self.stage = Stage::Retiring;
        self.put(Header::new(Kind::Exit), Message::default());
        self.poke.notify_one();
    }

    /// The ticket of the call that a frame is about.
    pub(super) fn ticket(&self, header: &Header) -> Ticket {
        Ticket { worker: self.index, slot: header.slot as usize, sequence: header.sequence }
    }

    /// The call that a frame is about, if the worker has it.
    pub(super) fn flight(&mut self, header: &Header) -> Option<&mut Flight> {
        self.flights.get_mut(self.ticket(header))
    }

    /// The call has been answered.
    pub(super) fn answered(&mut self, ticket: Ticket) -> Option<Flight> {
        let flight = self.remove(ticket)?;
        self.has_worked = true;
        self.info.completed.fetch_add(1, Ordering::Relaxed);
        Some(flight)
    }

    /// The place of a task in the worker's registry.
    fn find(&mut self, wire: &Wire) -> Result<u32, CodecError> {
        // The names are constants: the same text at the same place is the same name.
        let is_same =
            |last: &LastTask| std::ptr::eq(last.name, wire.name) && std::ptr::eq(last.signature, wire.signature);
        if let Some(last) = self.last.as_ref().filter(|last| is_same(last)) {
            return Ok(last.place);
        }
        let what = match self.tasks.get(wire.name) {
            Some((place, signature)) if signature == wire.signature => {
                self.last = Some(LastTask { name: wire.name, signature: wire.signature, place: *place });
                return Ok(*place);
            }
            None => format!(
                "the worker executable has no task {:?}; a task in a crate that nothing refers to is left out by the \
                 linker, and a hand-written one must be named in polypool::register!",
                wire.name
            ),
            Some((_, theirs)) => format!(
                "the task {:?} of the worker executable is {theirs:?}, but here it is {:?}",
                wire.name, wire.signature
            ),
        };
        Err(CodecError::UnknownTask(what))
    }

    fn remove(&mut self, ticket: Ticket) -> Option<Flight> {
        let flight = self.flights.remove(ticket)?;
        if self.flights.is_empty() {
            self.info.busy.store(false, Ordering::Relaxed);
        }
        Some(flight)
    }

    /// After `answers` calls have been answered in one go: adapts the window to how long they took.
    pub(super) fn adapt(&mut self, answers: usize) {
        let now = Instant::now();
        let each = now.duration_since(self.busy_since) / u32::try_from(answers.max(1)).unwrap_or(u32::MAX);
        self.busy_since = now;
        // The newest measurement counts a quarter: one hiccup of the machine does not end the sending ahead, and one
        // long task among short ones does.
        self.each = Some(self.each.map_or(each, |before| (before * 3 + each) / 4));
        let ahead = AHEAD.as_nanos() / self.each.unwrap_or(each).as_nanos().max(1);
        // Grows by doubling, so that one lucky measurement does not put a thousand calls before a slow one; shrinks at
        // once.
        self.window = (1 + usize::try_from(ahead).unwrap_or(WINDOW)).min(self.window * 2).min(WINDOW);
    }

    /// How many calls it is to have at most.
    pub(super) fn window(&self) -> usize {
        self.window
    }

    pub(super) fn claim_state(&self, ticket: Ticket) -> ClaimState {
        self.shared.claims.state(ticket.slot, ticket.sequence)
    }

    pub(super) fn has(&self, ticket: Ticket) -> bool {
        self.flights.get(ticket).is_some()
    }

    /// Somebody has taken this call back; the worker will skip it.
    pub(super) fn forget(&mut self, ticket: Ticket) {
        if self.remove(ticket).is_some()
            && let Some(left) = &mut self.left
        {
            *left += 1;
        }
    }

    /// Takes back up to `most` of the calls that it has not begun with, the last ones first; they come in their order.
    /// Afterwards, if all were asked for, it can begin with none.
    pub(super) fn take_back(&mut self, most: usize) -> Vec<Flight> {
        if most == 0 {
            return Vec::new();
        }
        let mut tickets: Vec<Ticket> =
            self.flights.all().filter(|flight| !flight.has_begun).map(|flight| flight.ticket).collect();
        tickets.sort_by_key(|ticket| ticket.sequence);
        let mut taken = Vec::new();
        for ticket in tickets.into_iter().rev() {
            if taken.len() == most {
                break;
            }
            if self.shared.claims.revoke(ticket.slot, ticket.sequence)
                && let Some(flight) = self.remove(ticket)
            {
                if let Some(left) = &mut self.left {
                    *left += 1;
                }
                taken.push(flight);
            }
        }
        taken.reverse();
        taken
    }

    /// Everything that it has, in the order it was sent: for a worker that is dead.
    pub(super) fn take_all(&mut self) -> Vec<Flight> {
        let mut flights = self.flights.take_all();
        flights.sort_by_key(|flight| flight.ticket.sequence);
        flights
    }

    pub(super) fn revoke(&self, ticket: Ticket) -> bool {
        self.shared.claims.revoke(ticket.slot, ticket.sequence)
    }

    /// Tells the running call that it is cancelled.
    pub(super) fn cancel(&self, ticket: Ticket) {
        use std::io::Write as _;
        // A worker that does not read this in time is killed all the same.
        let _ = (&self.sockets.control).write_all(&ticket.sequence.to_le_bytes());
    }

    /// The handles that come with a frame, or why they don't.
    ///
    /// # Errors
    /// Says what is wrong with them.
    pub(super) fn receive_luggage(&self, header: &Header) -> Result<Result<Luggage, CodecError>, String> {
        if header.luggage == 0 {
            return Ok(Ok(Luggage::default()));
        }
        match Luggage::receive(&self.sockets.luggage, header.luggage as usize) {
            Ok(luggage) => Ok(Ok(luggage)),
            Err(LuggageError::Broken(error)) => Err(format!("an answer without the handles in it: {error}")),
            Err(lost) => Ok(Err(CodecError::HandlesLost { what: "result".to_owned(), why: lost.to_string() })),
        }
    }

    /// Kills it at once, if this is the supervisor's thread; otherwise the task that looks after it does.
    pub(super) fn kill(&mut self, why: Option<String>) {
        if !matches!(self.stage, Stage::Dying(_)) {
            self.stage = Stage::Dying(why);
            supervisor::kill_here(self.shared.pool.id, self.index);
            self.poke.notify_one();
        }
    }

    // ---- Writing ---------------------------------------------------------------------------------------------------

    fn put(&mut self, mut header: Header, message: Message) {
        let Message { bytes: payload, luggage, block } = message;
        let block = match block.map(|block| *block) {
            Some(Block::Given(place, bytes)) => {
                (header.block, header.place) = (bytes.len() as u32, place);
                Some(bytes)
            }
            _ => None,
        };
        if !luggage.is_empty() {
            header.luggage = luggage.len() as u32;
            self.out.push_back(Out::Luggage(luggage.sending()));
        }
        let head = wire::Head::new(header, payload.len());
        let copied = if payload.len() < COPY_BELOW { &payload[..] } else { &[] };
        match self.out.back_mut() {
            Some(Out::Frames(last)) if last.len() < 4 * COPY_BELOW => {
                last.extend_from_slice(head.bytes());
                last.extend_from_slice(copied);
            }
            _ => {
                let mut frames = std::mem::take(&mut self.spare);
                frames.extend_from_slice(head.bytes());
                frames.extend_from_slice(copied);
                self.out.push_back(Out::Frames(frames));
            }
        }
        if let Encoded::Long(payload) = payload
            && payload.len() >= COPY_BELOW
        {
            self.out.push_back(Out::Payload(payload));
        }
        self.out.extend(block.map(Out::Payload));
    }

    // ---- Reading and waiting ---------------------------------------------------------------------------------------

    /// Reads something; 0 at the end. More of a block may be waited for within the `allowance`.
    pub(super) fn receive(&mut self, allowance: &mut Duration) -> std::io::Result<usize> {
        if let Some(pending) = &mut self.pending {
            let (block, left) = pending.block();
            return self.line.read_block(block, left, allowance);
        }
        let missing = wire::missing(&self.read);
        self.line.read(&mut self.read, missing)
    }

    /// The next whole frame of what has been read.
    ///
    /// # Errors
    /// As [`wire::take_whole`].
    pub(super) fn take(&mut self, limit: u64) -> Result<Option<(Header, Message)>, String> {
        wire::take_whole(&mut self.read, &mut self.pending, limit)
    }

    /// Looks for the answer to this call, which must be all that it has. Anything but a small value, and that alone, is
    /// left to the supervisor. `bytes` is room to read into, and empty before and after.
    pub(super) fn glimpse(&mut self, ticket: Ticket, bytes: &mut Vec<u8>) -> Glimpse {
        let read = self.line.glimpse(bytes);
        if matches!(read, Ok(0)) {
            // An end shows when the supervisor looks.
            return Glimpse::Nothing;
        }
        let answer = wire::single(bytes)
            .filter(|(header, _)| header.kind == Kind::Value && self.ticket(header) == ticket)
            .filter(|(_, payload)| read.is_ok() && payload.len() <= direct::SMALL)
            .map(|(_, payload)| Encoded::copy_of(payload));
        let seen = match answer {
            Some(value) => Glimpse::Value(value.into()),
            None => {
                self.read.extend_from_slice(bytes);
                self.is_left = true;
                Glimpse::Other
            }
        };
        bytes.clear();
        seen
    }

    /// Whether a caller has left something, which is asked for once.
    pub(super) fn take_left(&mut self) -> bool {
        std::mem::take(&mut self.is_left)
    }

    /// Rests. `false`: there is something to read, for which nobody rings.
    pub(super) fn rest(&mut self) -> bool {
        !self.is_left && self.line.rest()
    }

    /// Whether an answer is to come within microseconds, so that it is worth to look for it.
    pub(super) fn is_due(&self) -> bool {
        !self.flights.is_empty() && self.line.has_ring() && self.each.is_some_and(|each| each < SOON)
    }

    /// Whether this call is all that it has, and the answer may come at any moment.
    pub(super) fn is_about_to_answer(&self, ticket: Ticket) -> bool {
        self.stage == Stage::Ready
            && !self.is_deaf
            && self.in_flight() == 1
            && self.read.is_empty()
            && self.pending.is_none()
            && self.out.is_empty()
            && self.has(ticket)
            && self.line.has_ring()
            && self.each.is_some_and(|each| each < SHORTLY)
    }

    /// Whether there is something to read from it, as far as can be seen without asking the system.
    pub(super) fn has_something(&self) -> bool {
        !self.is_deaf && (self.is_left || self.line.has_something())
    }

    /// Whether it has so much ahead of it that its answers can wait for a moment.
    pub(super) fn is_well_fed(&self) -> bool {
        let ahead = self.each.unwrap_or_default() * u32::try_from(self.flights.len()).unwrap_or(u32::MAX);
        // Without a ring, nobody would see that it has become hungry.
        self.stage == Stage::Ready && self.line.has_ring() && self.flights.len() >= 16 && ahead >= WELL_FED
    }

    /// Nothing is to be read from it any more.
    pub(super) fn hang_up(&mut self) {
        self.is_deaf = true;
        self.poke.notify_one();
    }

    /// Whether nothing can be written to it any more, as it has gone or has closed its ears.
    pub(super) fn is_deaf(&self) -> bool {
        self.is_deaf
    }

    pub(super) fn wants_write(&self) -> bool {
        !self.out.is_empty()
    }

    /// Whether writing goes on after a moment, and not when the channel has room.
    pub(super) fn luggage_waits(&self) -> bool {
        self.luggage_waits
    }

    /// Writes what the channel takes.
    pub(super) fn flush(&mut self) {
        self.luggage_waits = false;
        // A worker that has not begun to read is not waited for.
        let (mut large, mut allowance) = (0, Duration::ZERO);
        while let Some(front) = self.out.front_mut() {
            if large >= WRITE_AT_ONCE {
                self.poke.notify_one();
                return;
            }
            let written = match front {
                Out::Frames(frames) => self.line.write(frames).map(|count| {
                    frames.advance(count);
                    frames.is_empty()
                }),
                Out::Payload(payload) => self.line.write_large(payload, &mut allowance).map(|count| {
                    payload.advance(count);
                    large += count;
                    payload.is_empty()
                }),
                Out::Luggage(luggage) => {
                    luggage.proceed(&self.sockets.luggage).inspect(|gone| self.luggage_waits = !gone)
                }
            };
            match written {
                Ok(true) => {
                    if let Some(Out::Frames(frames)) = self.out.pop_front() {
                        // Its memory serves the next ones.
                        self.spare = frames;
                    }
                }
                Ok(false) if self.luggage_waits => {
                    self.poke.notify_one();
                    return;
                }
                Ok(false) => {}
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    self.poke.notify_one();
                    return;
                }
                Err(error) => {
                    self.out.clear();
                    if error.kind() == std::io::ErrorKind::InvalidData {
                        self.kill(Some(error.to_string()));
                    } else {
                        // It has gone; or else it is not going to do anything any more.
                        self.is_deaf = true;
                        self.poke.notify_one();
                    }
                    return;
                }
            }
        }
    }
}
