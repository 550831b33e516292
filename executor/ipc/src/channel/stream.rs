//! Streams of frames between two processes, through rings in shared memory: what pipes, the manager and the pools'
//! transport stand on.
//!
//! A *frame* is a block of bytes of any length with a small number for its kind and, if need be, descriptors.
//! [`stream_pair`] makes two [`StreamEnd`]s, each of which sends to the other: frames arrive whole, in order, and once.
//!
//! ```text
//!   FrameSender ── copies ──▶ ring (1 MiB of shared memory) ── copies ──▶ FrameReceiver
//!        │                                                                   │
//!        └──── socket pair: doorbell for the one that sleeps, and the end of file ────┘
//!        └──── socket pair: descriptors that belong to frames ────────────────────────┘
//! ```
//!
//! While both sides are busy no system call is made. Who has nothing to do spins shortly, if that has paid lately, and
//! then sleeps at the doorbell (`stream/bell.rs`; the protocol, and why it loses no wake-up, is in
//! `stream/protocol.rs`, with a loom model). A frame that is longer than an eighth of the ring goes in pieces
//! (`stream/chunk.rs`), which the receiver takes while the next ones are written, so its length is not bounded by the
//! ring.
//!
//! # Who has gone
//!
//! A direction ends when *all* holders of its other end have gone: dropped, exited, killed, or lost as part of a
//! message that nobody has received. The kernel counts them. A receiver learns it when it has received what was sent
//! before ([`PipeError::Closed`]), and at once, also in its sleep. A sender learns it at once while it sleeps, at the
//! next frame after an orderly end, and within a millisecond after a kill; until then frames go into a ring that nobody
//! reads.
//!
//! # Several holders of the same end
//!
//! Ends can be cloned, and sent to other processes while the sender keeps its own. Each frame stays whole: a robust
//! lock for each side and direction is held while a frame is written or read, and while its holder waits for one. A
//! process that is killed meanwhile doesn't leave it locked. What it had not published or not consumed yet, is as if it
//! had not begun:
//!
//! - killed while it sends: a frame of one piece is there or isn't; of a longer one the receiver gets
//!   [`PipeError::Truncated`], and then the frames of other holders or the end.
//! - killed while it receives: a frame of one piece is received by the next holder; a longer one is lost with it.
//!
//! # Trust
//!
//! The peer can write anything into the ring. Positions, lengths and flags are checked after they have been copied out;
//! what is wrong is [`PipeError::Corrupt`]. Memory is taken as bytes really arrive, up to a limit
//! ([`FrameReceiver::set_max_len`]). A peer that lies can spoil what is in this stream, and nothing else.

use std::fmt;
use std::io;
use std::mem::{offset_of, size_of};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_io::Async;
use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::Shutdown;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use self::bell::{Bell, Woken};
use self::chunk::{Chunk, HEADER, room};
use crate::carry::LuggageError;
use crate::memory::copy;
use crate::memory::segment::Layout;
use crate::object::{BODY, Kind, Object};
use crate::sync::raw::{LockWord, RawLock, Taken};
use crate::sys;
use crate::travel::{Fd, Luggage};
use crate::wait::spin::Spin;
use crate::wait::{self, Waiting};

mod bell;
mod chunk;
mod luggage;
mod protocol;

const KIND: Kind = *b"strm";

/// How much a ring holds, if nothing else is said.
const CAPACITY: usize = 1 << 20;
const LEAST_CAPACITY: usize = 1 << 12;
const MOST_CAPACITY: usize = 1 << 30;

/// How long a frame may be, if nothing else is said.
const MAX_LEN: usize = if size_of::<usize>() > 4 { 1 << 32 } else { 1 << 30 };

/// For how long a sender may believe that there is still somebody to receive, microseconds.
const BELIEF: u64 = 1_000;

/// One direction: each word on cache lines of its own, by who writes it.
#[repr(C, align(128))]
struct Words {
    /// Up to where the writer has written, in bytes since the beginning.
    head: AtomicU64,
    _0: [AtomicU64; 15],
    /// Up to where the reader has read.
    tail: AtomicU64,
    _1: [AtomicU64; 15],
    reader_sleep: AtomicU32,
    /// How many readers have left in good order.
    readers_left: AtomicU32,
    _2: [AtomicU64; 15],
    writer_sleep: AtomicU32,
    _3: AtomicU32,
    /// How far the reader must have read to wake the writer.
    wanted: AtomicU64,
    _4: [AtomicU64; 14],
    write_lock: LockWord,
    /// Whether the last frame was given up by its sender half-way.
    abandoned: AtomicU32,
    /// The number of the last luggage.
    luggage: AtomicU64,
    _5: [AtomicU64; 14],
    read_lock: LockWord,
    _6: [AtomicU32; 31],
}

// SAFETY: repr(C), and atomics only.
unsafe impl Layout for Words {}

/// Where the words of the first direction stand in the body, so that they are aligned.
const WORDS: usize = 128 - BODY;
/// Where the first ring begins: with a page.
const DATA: usize = 4_096 - BODY;

const _: () = assert!(WORDS + 2 * size_of::<Words>() <= DATA);

/// Why something could not be sent or received.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PipeError {
    /// The end of file: all holders of the other end have gone, or this end has been closed. (Python: `EOFError`,
    /// `BrokenPipeError`.)
    #[error("the other end of the pipe has been closed")]
    Closed,
    /// Nothing has arrived yet. Only from `try_` operations.
    #[error("nothing has arrived yet")]
    Empty,
    /// There is no room for it now. Only from `try_` operations.
    #[error("there is no room in the pipe yet")]
    Full,
    /// It was not possible in time.
    #[error("the pipe was not ready in time")]
    TimedOut,
    /// A message is longer than was asked for. It has been dropped; the pipe goes on with the next one.
    #[error("a message of {len} bytes arrived, but at most {max} were to be received")]
    TooLong {
        /// How long it is.
        len: u64,
        /// What was allowed.
        max: usize,
    },
    /// A long message ends in the middle, because its sender was killed or gave up. What was sent by others follows.
    #[error("a message of {len} bytes ends after {got}: its sender is gone")]
    Truncated {
        /// How much of it has arrived.
        got: u64,
        /// How long it would have been.
        len: u64,
    },
    /// The peer has written nonsense into the shared memory; the pipe is of no further use.
    #[error("the peer has spoilt the pipe: {0}")]
    Corrupt(&'static str),
    /// The descriptors in a message could not be sent, and so nothing has been; or they have been lost on the way, and
    /// the message with them. The pipe goes on with the next one.
    #[error("the descriptors of a message were lost")]
    Luggage(#[from] LuggageError),
    /// A value could not be turned into bytes; nothing has been sent.
    #[error("a value can't be sent: {0}")]
    Encode(String),
    /// What has arrived is no value of the type expected. It has been dropped; the pipe goes on with the next one.
    #[error("what has arrived is not the value expected: {0}")]
    Decode(String),
    /// The next message is of the other form, bytes or a value. It is still there, to be received as what it is.
    #[error("the next message is {found}, and {expected} was to be received")]
    WrongForm {
        /// What it is.
        found: &'static str,
        /// What was asked for.
        expected: &'static str,
    },
    /// The system refused.
    #[error("the system refused to go on with a pipe")]
    Io(#[from] io::Error),
}

/// What a stream is to be like; [`stream_pair`] uses the default.
#[derive(Clone, Debug)]
#[must_use = "it makes no stream before `pair` is called"]
pub struct StreamOptions {
    capacity: usize,
    max_len: usize,
}

impl Default for StreamOptions {
    fn default() -> Self {
        StreamOptions::new()
    }
}

impl StreamOptions {
    /// Rings of 1 MiB, and frames of at most 4 GiB (1 GiB where addresses have 32 bits).
    pub fn new() -> Self {
        StreamOptions { capacity: CAPACITY, max_len: MAX_LEN }
    }

    /// How many bytes are on their way at most in each direction, before the sender has to wait. Rounded up to a power
    /// of two, at least 4 KiB and at most 1 GiB. It bounds no frame: longer ones are passed on in pieces.
    pub fn capacity(mut self, bytes: usize) -> Self {
        self.capacity = bytes.clamp(LEAST_CAPACITY, MOST_CAPACITY).next_power_of_two();
        self
    }

    /// The longest frame that either end receives; see [`FrameReceiver::set_max_len`].
    pub fn max_len(mut self, bytes: usize) -> Self {
        self.max_len = bytes;
        self
    }

    /// Two ends, each of which sends to the other.
    ///
    /// # Errors
    ///
    /// What the system says when it is out of descriptors or memory.
    pub fn pair(&self) -> io::Result<(StreamEnd, StreamEnd)> {
        let object = self.object(2)?;
        let (here, there) = luggage::pair()?;
        let (one, two) = self.direction(&object, 2, 0, here.clone(), there.clone())?;
        let (three, four) = self.direction(&object, 2, 1, there, here)?;
        Ok((StreamEnd { sender: one, receiver: four }, StreamEnd { sender: three, receiver: two }))
    }

    /// One direction only.
    ///
    /// # Errors
    ///
    /// As for [`pair`](StreamOptions::pair).
    pub fn one_way(&self) -> io::Result<(FrameSender, FrameReceiver)> {
        let object = self.object(1)?;
        let (here, there) = luggage::pair()?;
        self.direction(&object, 1, 0, here, there)
    }

    fn object(&self, rings: u8) -> io::Result<Object> {
        Object::create(KIND, u64::from(rings), DATA + usize::from(rings) * self.capacity)
    }

    fn direction(
        &self,
        object: &Object,
        rings: u8,
        ring: u8,
        here: Fd,
        there: Fd,
    ) -> io::Result<(FrameSender, FrameReceiver)> {
        let (writer, reader) = UnixStream::pair()?;
        let way = |bell: UnixStream, luggage| {
            let way = Way::new(object.clone(), rings, ring, Fd::new(OwnedFd::from(bell)), luggage);
            way.map_err(|text| io::Error::new(io::ErrorKind::InvalidInput, text))
        };
        Ok((FrameSender::new(way(writer, here)?), FrameReceiver::new(way(reader, there)?, self.max_len)))
    }
}

/// Two ends of a new stream, each of which sends frames to the other. The second one is usually sent to another
/// process.
///
/// # Errors
///
/// What the system says when it is out of descriptors or memory.
///
/// # Examples
///
/// ```
/// use polypool_ipc::{Frame, stream_pair};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let (here, there) = stream_pair()?;
/// here.sender().send(&Frame::new(&[b"hello, ", b"world"]))?;
/// let mut bytes = Vec::new();
/// there.receiver().recv(&mut bytes)?;
/// assert_eq!(bytes, b"hello, world");
///
/// drop(here);
/// assert!(there.receiver().recv(&mut bytes).is_err(), "the end of file");
/// # Ok(())
/// # }
/// ```
pub fn stream_pair() -> io::Result<(StreamEnd, StreamEnd)> {
    StreamOptions::new().pair()
}

/// One end of a stream: what it sends with, and what it receives with. From [`stream_pair`].
///
/// It travels in messages, as any handle does. The two halves can be [split](StreamEnd::split) and used by different
/// threads at once.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StreamEnd {
    sender: FrameSender,
    receiver: FrameReceiver,
}

impl StreamEnd {
    /// The half that sends.
    #[must_use = "it has no effect but its result"]
    pub fn sender(&self) -> &FrameSender {
        &self.sender
    }

    /// The half that receives.
    #[must_use = "it has no effect but its result"]
    pub fn receiver(&self) -> &FrameReceiver {
        &self.receiver
    }

    /// Both halves.
    #[must_use = "dropping both ends the stream"]
    pub fn split(self) -> (FrameSender, FrameReceiver) {
        (self.sender, self.receiver)
    }

    /// Closes both directions for every holder of this end. See [`FrameSender::close`] and [`FrameReceiver::close`].
    pub fn close(&self) {
        self.sender.close();
        self.receiver.close();
    }
}

/// A frame to be sent: some parts, which arrive as one block of bytes.
#[derive(Clone, Copy, Debug)]
#[must_use = "a frame does nothing until it is sent"]
pub struct Frame<'a> {
    parts: &'a [&'a [u8]],
    kind: u8,
    luggage: Option<&'a Luggage>,
}

impl<'a> Frame<'a> {
    /// A frame of kind 0 without descriptors.
    pub fn new(parts: &'a [&'a [u8]]) -> Self {
        Frame { parts, kind: 0, luggage: None }
    }

    /// With a number for its kind, which the receiver is told.
    pub fn kind(mut self, kind: u8) -> Self {
        self.kind = kind;
        self
    }

    /// With the descriptors that belong to it.
    pub fn luggage(mut self, luggage: &'a Luggage) -> Self {
        self.luggage = (!luggage.is_empty()).then_some(luggage);
        self
    }
}

/// What has been received with a frame, besides its bytes.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Received {
    /// The number that its sender gave it.
    pub kind: u8,
    /// The descriptors that belong to it.
    pub luggage: Luggage,
}

/// How long an operation may take.
#[derive(Clone, Copy)]
pub(super) enum Patience {
    /// It must not wait.
    None,
    /// Until then, or for ever.
    Until(Option<Instant>),
}

impl Patience {
    pub(super) fn timeout(timeout: Duration) -> Self {
        Patience::Until(wait::after(timeout))
    }

    fn until(self) -> Option<Instant> {
        match self {
            Patience::None => Some(Instant::now()),
            Patience::Until(until) => until,
        }
    }

    fn is_over(self) -> bool {
        match self {
            Patience::None => true,
            Patience::Until(until) => until.is_some_and(|until| until <= Instant::now()),
        }
    }

    fn error(self, at_once: PipeError) -> PipeError {
        match self {
            Patience::None => at_once,
            Patience::Until(_) => PipeError::TimedOut,
        }
    }
}

/// One side of one direction: what senders and receivers have in common.
struct Way {
    // Closed before the word about it is given.
    bell: Bell,
    luggage: Fd,
    spin: Spin,
    rung: protocol::Rung,
    object: Object,
    /// Which of how many.
    ring: u8,
    rings: u8,
    /// A power of two.
    capacity: usize,
    /// Where the other side was when we last had to look.
    known: AtomicU64,
}

/// What travels of a [`Way`].
type Packed = (Fd, Fd, Fd, Fd, u8, u8);

impl Way {
    fn new(object: Object, rings: u8, ring: u8, bell: Fd, luggage: Fd) -> Result<Self, &'static str> {
        let capacity = object.len().saturating_sub(DATA) / usize::from(rings.max(1));
        if ring >= rings || rings > 2 {
            return Err("a stream has one or two directions");
        }
        if !capacity.is_power_of_two() || !(LEAST_CAPACITY..=MOST_CAPACITY).contains(&capacity) {
            return Err("the ring of a stream has an impossible size");
        }
        let (bell, spin, rung) = (Bell::new(bell), Spin::default(), protocol::Rung::default());
        let mut way = Way { bell, luggage, spin, rung, object, ring, rings, capacity, known: AtomicU64::new(0) };
        // Nothing is known yet: as if there were more than there can be.
        way.known = AtomicU64::new(way.words().head.load(Ordering::Relaxed).wrapping_sub(2 * capacity as u64));
        Ok(way)
    }

    fn pack(&self) -> Packed {
        let (memory, board) = (self.object.segment().fd(), self.object.board().segment().fd());
        (memory.clone(), board.clone(), self.bell.fd().clone(), self.luggage.clone(), self.rings, self.ring)
    }

    fn unpack<E: serde::de::Error>((memory, board, bell, luggage, rings, ring): Packed) -> Result<Self, E> {
        let object = Object::open(KIND, u64::from(rings), DATA, &memory, &board).map_err(E::custom)?;
        Way::new(object, rings, ring, bell, luggage).map_err(E::custom)
    }

    #[inline]
    fn place(&self) -> usize {
        WORDS + usize::from(self.ring) * size_of::<Words>()
    }

    #[inline]
    fn words(&self) -> &Words {
        self.object.at(self.place())
    }

    /// How much has been written and not read, at least what `enough` says if there is as much; and where the reader
    /// is.
    ///
    /// The writer's position is a cache line that the writer changes all the time. So it's only looked at when what was
    /// known of it before is not enough; positions only grow, so what was known is never too much.
    #[inline]
    fn filled(&self, enough: u64) -> Result<(u64, u64), PipeError> {
        let words = self.words();
        let tail = words.tail.load(Ordering::Relaxed);
        let mut used = self.known.load(Ordering::Relaxed).wrapping_sub(tail);
        // (More than there can be: another process has read meanwhile.)
        if used < enough || used > self.capacity as u64 {
            let head = words.head.load(Ordering::Acquire);
            used = head.wrapping_sub(tail);
            self.check(used, head | tail)?;
            self.known.store(head, Ordering::Relaxed);
        }
        Ok((used, tail))
    }

    /// How much room there is, at least `enough` if there is as much; and where the writer is. As
    /// [`filled`](Way::filled), for the other side.
    #[inline]
    fn free(&self, enough: u64) -> Result<(u64, u64), PipeError> {
        let words = self.words();
        let head = words.head.load(Ordering::Relaxed);
        let mut used = head.wrapping_sub(self.known.load(Ordering::Relaxed));
        let capacity = self.capacity as u64;
        if used > capacity || capacity - used < enough {
            let tail = words.tail.load(Ordering::Acquire);
            used = head.wrapping_sub(tail);
            self.check(used, head | tail)?;
            self.known.store(tail, Ordering::Relaxed);
        }
        Ok((capacity - used, head))
    }

    #[inline]
    fn check(&self, used: u64, positions: u64) -> Result<(), PipeError> {
        if used > self.capacity as u64 || !positions.is_multiple_of(8) {
            return Err(PipeError::Corrupt("the positions of its ring are impossible"));
        }
        Ok(())
    }

    /// The most that is written in one piece, so that the other side can begin with it meanwhile.
    fn piece(&self) -> usize {
        (self.capacity / 8).min(128 << 10) - HEADER
    }

    /// Where a position is in the body, and how much fits between there and the end of the ring.
    #[inline]
    fn at(&self, position: u64) -> (usize, usize) {
        // The capacity is a power of two that fits in a `usize`.
        let place = (position & (self.capacity as u64 - 1)) as usize;
        (DATA + usize::from(self.ring) * self.capacity + place, self.capacity - place)
    }

    #[inline]
    fn copy_in(&self, position: u64, bytes: &[u8]) {
        let (place, fits) = self.at(position);
        let (one, two) = bytes.split_at(bytes.len().min(fits));
        self.object.store(place, one);
        if !two.is_empty() {
            self.object.store(self.at(0).0, two);
        }
    }

    #[inline]
    fn copy_out(&self, position: u64, bytes: &mut [u8]) {
        let (place, fits) = self.at(position);
        let fits = bytes.len().min(fits);
        let (one, two) = bytes.split_at_mut(fits);
        self.object.load(place, one);
        if !two.is_empty() {
            self.object.load(self.at(0).0, two);
        }
    }

    /// Appends `len` bytes to a vector that has room for them.
    fn append(&self, position: u64, to: &mut Vec<u8>, len: usize) {
        assert!(to.capacity() - to.len() >= len && len <= self.capacity, "no room for what is appended");
        let (place, fits) = self.at(position);
        for (place, len) in [(place, len.min(fits)), (self.at(0).0, len.saturating_sub(fits))] {
            let segment = self.object.segment();
            assert!(BODY + place + len <= segment.len(), "outside of the ring");
            // SAFETY: in bounds of the mapping, as just checked; the bytes of a ring are only ever copied, by
            // `memory::copy`, like here. The vector has the room, as checked above, and is in no shared memory.
            unsafe {
                copy::load(segment.start().add(BODY + place), to.as_mut_ptr().add(to.len()), len);
            }
            // SAFETY: within the capacity, and the bytes up to there have just been written.
            unsafe { to.set_len(to.len() + len) };
        }
    }

    /// Sleeps until the position that `look` reads has moved away from `seen`, or something else has happened.
    ///
    /// `sleep` is the word of our side.
    fn wait(&self, sleep: &AtomicU32, patience: Patience, come: impl Fn() -> bool) -> Result<Woken, PipeError> {
        let Patience::Until(until) = patience else {
            // Not allowed to sleep; but whether there is still somebody on the other side is to be known.
            // (Behind bells that were left over. Nobody rings as often as we look, unless to annoy.)
            for _ in 0..64 {
                match self.bell.look()? {
                    Woken::Rung => {}
                    other => return Ok(other),
                }
            }
            return Ok(Woken::TimedOut);
        };
        if self.spin.spin(&come) {
            return Ok(Woken::Rung);
        }
        let asleep = Asleep::new(sleep);
        if come() {
            return Ok(Woken::Rung);
        }
        let woken = self.bell.sleep(until)?;
        drop(asleep);
        Ok(woken)
    }

    async fn wait_async(&self, sleep: &AtomicU32, come: impl Fn() -> bool) -> Result<Woken, PipeError> {
        let asleep = Asleep::new(sleep);
        if come() {
            return Ok(Woken::Rung);
        }
        let woken = self.bell.sleep_async().await?;
        drop(asleep);
        Ok(woken)
    }
}

/// A sleep; over when dropped, as when its future is.
struct Asleep<'a>(&'a AtomicU32, u32);

impl<'a> Asleep<'a> {
    fn new(word: &'a AtomicU32) -> Self {
        Asleep(word, protocol::lie_down(word))
    }
}

impl Drop for Asleep<'_> {
    fn drop(&mut self) {
        protocol::get_up(self.0, self.1);
    }
}

/// The lock of one side of one direction, held.
struct Turn<'a>(RawLock<'a>);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.unlock();
    }
}

/// The half of an end that sends. Clones, and copies in other processes, send into the same stream; each frame stays
/// whole.
#[derive(Clone)]
pub struct FrameSender(Arc<Outgoing>);

struct Outgoing {
    way: Way,
    /// `readers_left` as it was when we last looked whether there is a reader, and when that was.
    left: AtomicU32,
    looked: AtomicU64,
}

/// How far a frame has got.
struct Progress<'a> {
    frame: Frame<'a>,
    out: &'a Outgoing,
    total: u64,
    sent: u64,
    /// The number of its luggage, if it has any, and how many parcels have gone.
    id: u64,
    parcels: usize,
    /// The part that comes next, and how much of it has been sent.
    part: usize,
    within: usize,
    wake: bool,
    begun: bool,
}

impl Drop for Progress<'_> {
    fn drop(&mut self) {
        if self.begun && self.sent < self.total {
            // Given up half-way. We still have the turn: it is taken before this is made, and so given back after.
            self.out.way.words().abandoned.store(1, Ordering::Relaxed);
        }
    }
}

/// What a frame waits for.
enum Wants {
    /// That the reader gets so far.
    Room(u64),
    /// That the reader takes parcels from the luggage socket.
    LuggageRoom,
}

impl FrameSender {
    fn new(way: Way) -> Self {
        FrameSender(Arc::new(Outgoing {
            left: AtomicU32::new(way.words().readers_left.load(Ordering::Relaxed)),
            way,
            looked: AtomicU64::new(0),
        }))
    }

    /// Sends a frame; blocks while the ring is full.
    ///
    /// # Errors
    ///
    /// [`PipeError::Closed`] if all receivers have gone; [`PipeError::Luggage`] if the system doesn't carry the
    /// descriptors, and then nothing has been sent.
    pub fn send(&self, frame: &Frame<'_>) -> Result<(), PipeError> {
        self.send_within(frame, Patience::Until(None))
    }

    /// Sends a frame if that is possible without waiting, which it never is for one that is longer than the ring.
    ///
    /// # Errors
    ///
    /// [`PipeError::Full`], and those of [`send`](FrameSender::send).
    pub fn try_send(&self, frame: &Frame<'_>) -> Result<(), PipeError> {
        self.send_within(frame, Patience::None)
    }

    /// Sends a frame; blocks for at most `timeout`.
    ///
    /// # Errors
    ///
    /// [`PipeError::TimedOut`], and then nothing has been sent: should the receiver have got the beginning of a long
    /// frame, it drops it. Otherwise those of [`send`](FrameSender::send).
    pub fn send_timeout(&self, frame: &Frame<'_>, timeout: Duration) -> Result<(), PipeError> {
        self.send_within(frame, Patience::timeout(timeout))
    }

    pub(super) fn send_within(&self, frame: &Frame<'_>, patience: Patience) -> Result<(), PipeError> {
        let _turn = self.0.turn(patience)?;
        self.0.send(frame, patience, true)
    }

    /// Sends a frame. Never blocks the thread that polls it.
    ///
    /// **Cancellation:** dropped before it is ready, nothing has been sent; should the receiver have got the beginning
    /// of a long frame, it drops it. A future that waits and is neither polled nor dropped keeps other senders of this
    /// end waiting.
    ///
    /// # Errors
    ///
    /// Those of [`send`](FrameSender::send).
    pub async fn send_async(&self, frame: &Frame<'_>) -> Result<(), PipeError> {
        let out = &*self.0;
        let _turn = out.turn_async().await?;
        let mut progress = out.begin(frame, true)?;
        loop {
            match out.step(&mut progress)? {
                None => return Ok(()),
                Some(Wants::LuggageRoom) => {
                    Async::new_nonblocking(out.way.luggage.clone())?.writable().await?;
                }
                Some(Wants::Room(wanted)) => {
                    out.wake()?;
                    let words = out.way.words();
                    words.wanted.store(wanted, Ordering::Relaxed);
                    if out.way.wait_async(&words.writer_sleep, || out.has_come(wanted)).await? == Woken::HungUp {
                        return Err(PipeError::Closed);
                    }
                }
            }
        }
    }

    /// Sends several frames and wakes the receiver once, if it sleeps. As [`send`](FrameSender::send) for each, with no
    /// frame of others in between.
    ///
    /// # Errors
    ///
    /// Those of [`send`](FrameSender::send), for the first frame that can't be sent; those before it have been.
    pub fn send_many<'a>(&self, frames: impl IntoIterator<Item = Frame<'a>>) -> Result<(), PipeError> {
        // What is given in is asked for its frames with the turn in our hands; whoever sends on this very end from in
        // there would wait for itself.
        let frames: Vec<Frame<'a>> = frames.into_iter().collect();
        let out = &*self.0;
        let _turn = out.turn(Patience::Until(None))?;
        for frame in &frames {
            out.send(frame, Patience::Until(None), false)?;
        }
        out.wake()
    }

    /// Sends a frame without waking a receiver that sleeps; [`flush`](FrameSender::flush) does that for all frames
    /// before it. Wakes it all the same when the ring is full.
    ///
    /// # Errors
    ///
    /// Those of [`send`](FrameSender::send).
    pub fn feed(&self, frame: &Frame<'_>) -> Result<(), PipeError> {
        let _turn = self.0.turn(Patience::Until(None))?;
        self.0.send(frame, Patience::Until(None), false)
    }

    /// Wakes the receiver, if it sleeps and there are frames for it.
    ///
    /// # Errors
    ///
    /// [`PipeError::Closed`] if all receivers have gone.
    pub fn flush(&self) -> Result<(), PipeError> {
        let _turn = self.0.turn(Patience::Until(None))?;
        self.0.wake()
    }

    /// Closes the stream in this direction for every holder of this end, also in other processes: receivers get what
    /// has been sent, then the end of file. Wakes those who wait here.
    pub fn close(&self) {
        self.0.way.bell.close();
        let _ = rustix::net::shutdown(&self.0.way.luggage, Shutdown::Write);
    }

    /// Whether all receivers have gone, or this end has been closed. Asks the system.
    #[must_use = "it has no effect but its result"]
    pub fn is_closed(&self) -> bool {
        self.0.way.bell.is_hung_up()
    }
}

impl Outgoing {
    fn lock(&self) -> RawLock<'_> {
        RawLock::new(&self.way.object, self.way.place() + offset_of!(Words, write_lock))
    }

    fn turn(&self, patience: Patience) -> Result<Turn<'_>, PipeError> {
        let lock = self.lock();
        let taken = match lock.try_lock() {
            Some(taken) => taken,
            None => lock.lock_until(patience.until()).ok_or_else(|| patience.error(PipeError::Full))?,
        };
        self.took(Turn(lock), taken)
    }

    async fn turn_async(&self) -> Result<Turn<'_>, PipeError> {
        let lock = self.lock();
        let mut slept = false;
        let taken = Waiting::new(|| lock.step(&mut slept)).await;
        self.took(Turn(lock), taken)
    }

    fn took<'a>(&'a self, turn: Turn<'a>, taken: Taken) -> Result<Turn<'a>, PipeError> {
        if taken != Taken::Fairly {
            // It may have died between what it wrote and the bell.
            self.way.bell.ring().map_err(gone)?;
        }
        Ok(turn)
    }

    /// Looks now and then whether anybody is there to receive.
    fn check_reader(&self) -> Result<(), PipeError> {
        let left = self.way.words().readers_left.load(Ordering::Acquire);
        let now = micros();
        if left != self.left.load(Ordering::Relaxed)
            || now.wrapping_sub(self.looked.load(Ordering::Relaxed)) > BELIEF
            || self.way.bell.is_closed()
        {
            if self.way.bell.is_hung_up() {
                return Err(PipeError::Closed);
            }
            self.left.store(left, Ordering::Relaxed);
            self.looked.store(now, Ordering::Relaxed);
        }
        Ok(())
    }

    fn begin<'a>(&'a self, frame: &Frame<'a>, wake: bool) -> Result<Progress<'a>, PipeError> {
        self.check_reader()?;
        let total = frame.parts.iter().map(|part| part.len() as u64).sum();
        let mut id = 0;
        if let Some(luggage) = frame.luggage {
            if luggage.len() > usize::from(u16::MAX) {
                let text = format!("{} descriptors are too many for one message", luggage.len());
                return Err(io::Error::new(io::ErrorKind::InvalidInput, text).into());
            }
            id = self.way.words().luggage.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        }
        let (frame, out) = (*frame, self);
        Ok(Progress { frame, out, total, sent: 0, id, parcels: 0, part: 0, within: 0, wake, begun: false })
    }

    fn send(&self, frame: &Frame<'_>, patience: Patience, wake: bool) -> Result<(), PipeError> {
        let mut progress = self.begin(frame, wake)?;
        if matches!(patience, Patience::None) {
            // All of it must fit, so that nothing of it is given up.
            let pieces = progress.total.div_ceil(self.way.piece() as u64).max(1);
            let needed = progress.total.saturating_add(pieces * (HEADER as u64 + 8));
            if pieces > 1 && needed > self.way.free(needed)?.0 {
                return Err(PipeError::Full);
            }
        }
        loop {
            let wanted = match self.step(&mut progress)? {
                None => return Ok(()),
                Some(Wants::Room(wanted)) => wanted,
                Some(Wants::LuggageRoom) => {
                    self.wake()?;
                    if !bell::poll_fd(self.way.luggage.as_fd(), PollFlags::OUT, patience.until())? {
                        return Err(patience.error(PipeError::Full));
                    }
                    continue;
                }
            };
            // Before a sleep, what has been written so far must be known.
            self.wake()?;
            let words = self.way.words();
            words.wanted.store(wanted, Ordering::Relaxed);
            match self.way.wait(&words.writer_sleep, patience, || self.has_come(wanted))? {
                Woken::HungUp => return Err(PipeError::Closed),
                Woken::Rung if !patience.is_over() => {}
                _ if self.has_come(wanted) => {}
                _ => return Err(patience.error(PipeError::Full)),
            }
        }
    }

    /// Whether the reader has got that far.
    fn has_come(&self, wanted: u64) -> bool {
        self.way.words().tail.load(Ordering::Acquire).wrapping_sub(wanted).cast_signed() >= 0
    }

    /// Writes as much as there is room for.
    #[inline]
    fn step(&self, progress: &mut Progress<'_>) -> Result<Option<Wants>, PipeError> {
        let way = &self.way;
        let words = way.words();
        let piece = way.piece();
        loop {
            if way.bell.is_closed() {
                return Err(PipeError::Closed);
            }
            let len = (progress.total - progress.sent).min(piece as u64) as usize;
            let needed = room(len) as u64;
            let (free, head) = way.free(needed)?;
            if free < needed {
                // An eighth at once, so that a full ring doesn't cost a wake-up a frame; seven eighths are then still
                // unread.
                let more = needed.max(way.capacity as u64 / 8);
                return Ok(Some(Wants::Room(head.wrapping_add(more).wrapping_sub(way.capacity as u64))));
            }
            if let Some(luggage) = progress.frame.luggage
                && !progress.begun
            {
                match luggage::send(way.luggage.as_fd(), luggage, progress.id, &mut progress.parcels) {
                    Ok(luggage::Sent::All) => {}
                    Ok(luggage::Sent::Full) => return Ok(Some(Wants::LuggageRoom)),
                    Err(Errno::PIPE | Errno::CONNRESET | Errno::NOTCONN) => return Err(PipeError::Closed),
                    Err(_) => return Err(PipeError::Luggage(LuggageError::NotSent)),
                }
            }
            let first = !progress.begun;
            let chunk = Chunk {
                len: len as u32,
                first,
                last: progress.sent + len as u64 == progress.total,
                after_abandoned: first && words.abandoned.load(Ordering::Relaxed) != 0,
                kind: progress.frame.kind,
                fds: if first { progress.frame.luggage.map_or(0, |luggage| luggage.len() as u16) } else { 0 },
                total: progress.total,
                luggage: progress.id,
            };
            way.copy_in(head, &chunk.encode());
            let mut at = head.wrapping_add(HEADER as u64);
            let mut left = len;
            while left > 0 {
                let part = &progress.frame.parts[progress.part][progress.within..];
                let now = left.min(part.len());
                way.copy_in(at, &part[..now]);
                at = at.wrapping_add(now as u64);
                left -= now;
                progress.within += now;
                if now == part.len() {
                    progress.part += 1;
                    progress.within = 0;
                }
            }
            protocol::publish(&words.head, head.wrapping_add(needed));
            if chunk.after_abandoned {
                words.abandoned.store(0, Ordering::Relaxed);
            }
            progress.begun = true;
            progress.sent += len as u64;
            if progress.wake {
                self.wake()?;
            }
            if chunk.last {
                return Ok(None);
            }
        }
    }

    /// Rings, if the reader sleeps and has not been rung for yet.
    #[inline]
    fn wake(&self) -> Result<(), PipeError> {
        match protocol::sleeper(&self.way.words().reader_sleep) {
            Some(sleep) if self.way.rung.is_new(sleep) => self.way.bell.ring().map_err(gone),
            _ => Ok(()),
        }
    }
}

/// The half of an end that receives. Of several clones, or copies in other processes, each frame goes to one.
#[derive(Clone)]
pub struct FrameReceiver(Arc<Incoming>);

struct Incoming {
    // Before `_leave`: by then the socket is closed.
    way: Way,
    _leave: Leave,
    partial: Mutex<Partial>,
    max_len: AtomicUsize,
}

/// Says in shared memory that a reader has left in good order, so that writers look.
struct Leave {
    object: Object,
    place: usize,
}

impl Drop for Leave {
    fn drop(&mut self) {
        self.object.at::<Words>(self.place).readers_left.fetch_add(1, Ordering::Release);
    }
}

/// A long frame that is being received. It outlives a call that has timed out and a future that was dropped.
#[derive(Default)]
struct Partial {
    active: bool,
    bytes: Vec<u8>,
    total: u64,
    received: Received,
}

impl Partial {
    fn cut(&mut self) -> PipeError {
        let error = PipeError::Truncated { got: self.bytes.len() as u64, len: self.total };
        *self = Partial::default();
        error
    }
}

/// What is to be received.
#[derive(Clone, Copy)]
pub(super) struct Want {
    /// At most so many bytes, and the receiver's own limit.
    pub(super) max: usize,
    /// Only this kind, if there is one.
    pub(super) kind: Option<u8>,
    /// Nothing: only look.
    pub(super) look: bool,
}

impl Want {
    pub(super) const ANY: Want = Want { max: usize::MAX, kind: None, look: false };
    const LOOK: Want = Want { look: true, ..Want::ANY };
}

/// What has been found in the ring.
enum Found {
    Frame(Received),
    /// Something that could be received, when only looking.
    Something,
    /// Nothing; the writer was there.
    Nothing(u64),
    /// So much that led to nothing that it's time to look at the clock.
    Rubbish,
}

impl FrameReceiver {
    fn new(way: Way, max_len: usize) -> Self {
        let leave = Leave { object: way.object.clone(), place: way.place() };
        FrameReceiver(Arc::new(Incoming { _leave: leave, way, partial: Mutex::default(), max_len: max_len.into() }))
    }

    /// Receives a frame into `to`, whose content is replaced; blocks until there is one. (After an error the content of
    /// `to` is unspecified.)
    ///
    /// # Errors
    ///
    /// [`PipeError::Closed`] at the end of the stream, and [`PipeError::Truncated`] if that is within a frame.
    /// [`PipeError::TooLong`] for a frame longer than [the limit](FrameReceiver::set_max_len), [`PipeError::Luggage`]
    /// if its descriptors could not be received: these frames are lost, and the stream goes on. [`PipeError::Corrupt`]
    /// for a peer that lies.
    pub fn recv(&self, to: &mut Vec<u8>) -> Result<Received, PipeError> {
        self.recv_within(to, Want::ANY, Patience::Until(None))
    }

    /// Receives a frame if one is there.
    ///
    /// # Errors
    ///
    /// [`PipeError::Empty`] if none is, or not all of it, and those of [`recv`](FrameReceiver::recv).
    pub fn try_recv(&self, to: &mut Vec<u8>) -> Result<Received, PipeError> {
        self.recv_within(to, Want::ANY, Patience::None)
    }

    /// Receives a frame; blocks for at most `timeout`.
    ///
    /// # Errors
    ///
    /// [`PipeError::TimedOut`], and those of [`recv`](FrameReceiver::recv).
    pub fn recv_timeout(&self, to: &mut Vec<u8>, timeout: Duration) -> Result<Received, PipeError> {
        self.recv_within(to, Want::ANY, Patience::timeout(timeout))
    }

    /// Receives a frame. Never blocks the thread that polls it.
    ///
    /// **Cancellation:** dropped before it is ready, no frame is lost; the beginning of a long one is kept for the next
    /// call on this handle. A future that waits and is neither polled nor dropped keeps other receivers of this end
    /// waiting.
    ///
    /// # Errors
    ///
    /// Those of [`recv`](FrameReceiver::recv).
    pub async fn recv_async(&self, to: &mut Vec<u8>) -> Result<Received, PipeError> {
        self.recv_within_async(to, Want::ANY).await
    }

    /// Whether a frame (or the end of the stream) is there by `timeout`: whether [`recv`](FrameReceiver::recv) wouldn't
    /// have to wait for one to begin.
    ///
    /// # Errors
    ///
    /// [`PipeError::Corrupt`] for a peer that lies; what the system says.
    pub fn poll(&self, timeout: Duration) -> Result<bool, PipeError> {
        // Who only wants to know is not to wait for the clock.
        let patience = if timeout.is_zero() { Patience::None } else { Patience::timeout(timeout) };
        match self.recv_within(&mut Vec::new(), Want::LOOK, patience) {
            Ok(_) | Err(PipeError::Closed | PipeError::Truncated { .. }) => Ok(true),
            Err(PipeError::Empty | PipeError::TimedOut) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Whether bytes are in the ring that have not been received. Asks nobody, and so doesn't know of the end of the
    /// stream.
    #[must_use = "it has no effect but its result"]
    #[inline]
    pub fn has_buffered(&self) -> bool {
        let words = self.0.way.words();
        words.head.load(Ordering::Acquire) != words.tail.load(Ordering::Acquire)
    }

    /// The longest frame that is received, by this handle, its clones, and the copies that are sent from now on. A
    /// longer one is dropped as it arrives: [`PipeError::TooLong`].
    pub fn set_max_len(&self, bytes: usize) {
        self.0.max_len.store(bytes, Ordering::Relaxed);
    }

    /// Closes the stream in this direction for every holder of this end, also in other processes. Senders get
    /// [`PipeError::Closed`], as do those who wait here. What has not been received is lost.
    pub fn close(&self) {
        self.0.way.bell.close();
        let _ = rustix::net::shutdown(&self.0.way.luggage, Shutdown::Read);
        self.0.way.words().readers_left.fetch_add(1, Ordering::Release);
    }

    pub(super) fn recv_within(&self, to: &mut Vec<u8>, want: Want, patience: Patience) -> Result<Received, PipeError> {
        let incoming = &*self.0;
        let lock = incoming.lock();
        let taken = match lock.try_lock() {
            Some(taken) => taken,
            None => lock.lock_until(patience.until()).ok_or_else(|| patience.error(PipeError::Empty))?,
        };
        let _turn = incoming.took(Turn(lock), taken);
        let words = incoming.way.words();
        loop {
            let seen = match incoming.step(to, want)? {
                Found::Frame(received) => return Ok(received),
                Found::Something => return Ok(Received::default()),
                Found::Nothing(seen) => seen,
                Found::Rubbish if patience.is_over() => return Err(patience.error(PipeError::Empty)),
                Found::Rubbish => continue,
            };
            let come = || words.head.load(Ordering::Acquire) != seen;
            match incoming.way.wait(&words.reader_sleep, patience, come)? {
                Woken::HungUp if come() => {}
                Woken::HungUp => return Err(incoming.ended(want)),
                _ if come() => {}
                Woken::Rung if !patience.is_over() => {}
                _ => return Err(patience.error(PipeError::Empty)),
            }
        }
    }

    pub(super) async fn recv_within_async(&self, to: &mut Vec<u8>, want: Want) -> Result<Received, PipeError> {
        let incoming = &*self.0;
        let lock = incoming.lock();
        let mut slept = false;
        let taken = Waiting::new(|| lock.step(&mut slept)).await;
        let _turn = incoming.took(Turn(lock), taken);
        let words = incoming.way.words();
        loop {
            let seen = match incoming.step(to, want)? {
                Found::Frame(received) => return Ok(received),
                Found::Something => return Ok(Received::default()),
                Found::Nothing(seen) => seen,
                Found::Rubbish => {
                    wait::yield_now().await;
                    continue;
                }
            };
            let come = || words.head.load(Ordering::Acquire) != seen;
            if incoming.way.wait_async(&words.reader_sleep, come).await? == Woken::HungUp && !come() {
                return Err(incoming.ended(want));
            }
        }
    }
}

impl Incoming {
    fn lock(&self) -> RawLock<'_> {
        RawLock::new(&self.way.object, self.way.place() + offset_of!(Words, read_lock))
    }

    fn took<'a>(&'a self, turn: Turn<'a>, taken: Taken) -> Turn<'a> {
        if taken != Taken::Fairly {
            // It may have died between what it read and the bell. If nobody hears it, nobody needs to.
            let _ = self.way.bell.ring();
        }
        turn
    }

    /// The error at the end of the stream.
    fn ended(&self, want: Want) -> PipeError {
        let mut partial = self.partial.lock().unwrap_or_else(PoisonError::into_inner);
        if partial.active && !want.look { partial.cut() } else { PipeError::Closed }
    }

    /// Takes what there is, until a frame is complete.
    #[inline]
    fn step(&self, to: &mut Vec<u8>, want: Want) -> Result<Found, PipeError> {
        let way = &self.way;
        // Only contended if somebody has spoilt the lock in shared memory.
        let mut partial = self.partial.lock().unwrap_or_else(PoisonError::into_inner);
        let mut passed = 0;
        loop {
            if way.bell.is_closed() {
                return Err(PipeError::Closed);
            }
            let (used, tail) = way.filled(1)?;
            if used == 0 {
                // Where the writer was when there was nothing is where the reader is.
                return Ok(Found::Nothing(tail));
            }
            if passed >= way.capacity {
                return Ok(Found::Rubbish);
            }
            if used < HEADER as u64 {
                return Err(PipeError::Corrupt("there is less in its ring than a header"));
            }
            let mut header = [0; HEADER];
            way.copy_out(tail, &mut header);
            let chunk = Chunk::parse(&header, used).map_err(PipeError::Corrupt)?;
            let len = chunk.len as usize;
            let next = tail.wrapping_add(room(len) as u64);
            let data = tail.wrapping_add(HEADER as u64);
            passed += room(len);

            match (chunk.first, partial.active) {
                // It goes on.
                (false, true) => {
                    if want.look {
                        return Ok(Found::Something);
                    }
                    let got = partial.bytes.len() as u64 + u64::from(chunk.len);
                    if got > partial.total || chunk.last != (got == partial.total) {
                        return Err(PipeError::Corrupt("the chunks of a message contradict its length"));
                    }
                    let more = usize::try_from(partial.total - partial.bytes.len() as u64).unwrap_or(usize::MAX);
                    if let Err(error) = reserve(&mut partial.bytes, len, more) {
                        *partial = Partial::default();
                        self.pass(next)?;
                        return Err(error);
                    }
                    way.append(data, &mut partial.bytes, len);
                    self.pass(next)?;
                    if chunk.last {
                        partial.active = false;
                        std::mem::swap(to, &mut partial.bytes);
                        partial.bytes = Vec::new();
                        return Ok(Found::Frame(std::mem::take(&mut partial.received)));
                    }
                }
                // Its beginning has gone elsewhere.
                (false, false) => self.pass(next)?,
                // A new one, though the one before has not ended.
                (true, true) if chunk.after_abandoned => *partial = Partial::default(),
                (true, true) if want.look => return Ok(Found::Something),
                (true, true) => return Err(partial.cut()),
                // A new one.
                (true, false) => {
                    if want.look {
                        return Ok(Found::Something);
                    }
                    if let Some(kind) = want.kind
                        && kind != chunk.kind
                    {
                        return Err(super::pipe::wrong_form(chunk.kind, kind));
                    }
                    let max = want.max.min(self.max_len.load(Ordering::Relaxed));
                    if chunk.total > max as u64 {
                        self.pass(next)?;
                        return Err(PipeError::TooLong { len: chunk.total, max });
                    }
                    let mut received = Received { kind: chunk.kind, luggage: Luggage::default() };
                    if chunk.fds != 0 {
                        match luggage::receive(way.luggage.as_fd(), usize::from(chunk.fds), chunk.luggage) {
                            Ok(luggage) => received.luggage = luggage,
                            Err(error) => {
                                self.pass(next)?;
                                return Err(error.into());
                            }
                        }
                    }
                    to.clear();
                    if let Err(error) = reserve(to, len, chunk.total as usize) {
                        self.pass(next)?;
                        return Err(error);
                    }
                    way.append(data, to, len);
                    if chunk.last {
                        self.pass(next)?;
                        return Ok(Found::Frame(received));
                    }
                    // Kept here, so that it isn't lost when the call is.
                    *partial = Partial { active: true, bytes: std::mem::take(to), total: chunk.total, received };
                    self.pass(next)?;
                }
            }
        }
    }

    /// Goes on behind a chunk, and rings if the writer waits for that much room.
    #[inline]
    fn pass(&self, to: u64) -> Result<(), PipeError> {
        let words = self.way.words();
        protocol::publish(&words.tail, to);
        if let Some(sleep) = protocol::sleeper(&words.writer_sleep)
            && to.wrapping_sub(words.wanted.load(Ordering::Relaxed)).cast_signed() >= 0
            && self.way.rung.is_new(sleep)
        {
            // A writer that has gone needs no room.
            let _ = self.way.bell.ring();
        }
        Ok(())
    }
}

/// Makes room for `now` bytes more, and with foresight for up to `whole`, but never for much that has not arrived.
fn reserve(bytes: &mut Vec<u8>, now: usize, whole: usize) -> Result<(), PipeError> {
    if bytes.capacity() - bytes.len() >= now {
        return Ok(());
    }
    // Twice of what has arrived, and a megabyte at the beginning.
    let foresight = whole.min((bytes.len() + now).max(1 << 20));
    bytes
        .try_reserve_exact(foresight.max(now))
        .map_err(|error| io::Error::new(io::ErrorKind::OutOfMemory, error).into())
}

fn gone(error: io::Error) -> PipeError {
    match error.kind() {
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset | io::ErrorKind::NotConnected => PipeError::Closed,
        _ => PipeError::Io(error),
    }
}

/// The time, in microseconds since some moment.
fn micros() -> u64 {
    let now = sys::monotonic();
    // Not zero, which is "never".
    now.tv_sec as u64 * 1_000_000 + now.tv_nsec as u64 / 1_000 + 2 * BELIEF
}

impl Serialize for FrameSender {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.way.pack().serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for FrameSender {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(FrameSender::new(Way::unpack(Packed::deserialize(deserializer)?)?))
    }
}

impl Serialize for FrameReceiver {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        (self.0.way.pack(), self.0.max_len.load(Ordering::Relaxed) as u64).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for FrameReceiver {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (packed, max_len) = <(Packed, u64)>::deserialize(deserializer)?;
        let max_len = usize::try_from(max_len).map_err(D::Error::custom)?;
        Ok(FrameReceiver::new(Way::unpack(packed)?, max_len))
    }
}

impl fmt::Debug for FrameSender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.way.debug(f, "FrameSender")
    }
}

impl fmt::Debug for FrameReceiver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.way.debug(f, "FrameReceiver")
    }
}

impl Way {
    fn debug(&self, f: &mut fmt::Formatter<'_>, name: &str) -> fmt::Result {
        let words = self.words();
        let used = words.head.load(Ordering::Relaxed).wrapping_sub(words.tail.load(Ordering::Relaxed));
        f.debug_struct(name).field("capacity", &self.capacity).field("used", &used).finish_non_exhaustive()
    }
}

/// For fuzzing: a peer that writes `ring` into the ring, says that it has written `head` bytes and read `tail`, and
/// then goes. Whatever it says, this ends.
#[doc(hidden)]
pub fn fuzz(ring: &[u8], head: u64, tail: u64) {
    let Ok((sender, receiver)) = StreamOptions::new().capacity(LEAST_CAPACITY).max_len(1 << 20).one_way() else {
        return;
    };
    let way = &receiver.0.way;
    way.copy_in(0, &ring[..ring.len().min(LEAST_CAPACITY)]);
    way.words().tail.store(tail, Ordering::Relaxed);
    way.words().head.store(head, Ordering::Relaxed);
    let mut bytes = Vec::new();
    let _ = sender.try_send(&Frame::new(&[b"something"]));
    drop(sender);
    // Each frame or failure takes at least a header out of the ring, except for the news that the one before has no
    // end.
    for _ in 0..2 * LEAST_CAPACITY / HEADER + 2 {
        match receiver.recv(&mut bytes) {
            Err(PipeError::Closed | PipeError::Corrupt(_)) => return,
            _ => assert!(bytes.capacity() <= 1 << 20, "memory for bytes that have not arrived"),
        }
    }
    unreachable!("a ring gives more frames than it can hold");
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Random(u64);

    impl Random {
        fn next(&mut self) -> u64 {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            self.0 >> 16
        }
    }

    #[test]
    fn a_ring_full_of_nonsense_is_an_error_and_no_more() {
        let mut random = Random(1);
        for round in 0..2_000 {
            let mut ring = vec![0; LEAST_CAPACITY];
            let mut at = 0;
            // Some chunks that are right, or nearly so, and then noise.
            while at + HEADER < ring.len() && !random.next().is_multiple_of(20) {
                let len = (random.next() % 100) as u32;
                let (first, last) = (!random.next().is_multiple_of(3), !random.next().is_multiple_of(3));
                let total = if first && last { u64::from(len) } else { random.next() % 1_000_000 };
                let chunk = Chunk {
                    len,
                    first,
                    last,
                    after_abandoned: first && random.next().is_multiple_of(4),
                    kind: random.next() as u8,
                    fds: if first && random.next().is_multiple_of(8) { random.next() as u16 } else { 0 },
                    total,
                    luggage: random.next() % 3,
                };
                ring[at..at + HEADER].copy_from_slice(&chunk.encode());
                at += room(len as usize);
            }
            let head = match round % 4 {
                0 => random.next(),
                1 => random.next() % (2 * LEAST_CAPACITY as u64),
                _ => at.min(LEAST_CAPACITY) as u64,
            };
            if round % 5 == 0 {
                let place = random.next() as usize % ring.len();
                ring[place..].iter_mut().for_each(|byte| *byte = random.next() as u8);
            }
            fuzz(&ring, head, if round % 4 == 0 { head.wrapping_sub(random.next() % 5_000) } else { 0 });
        }
    }

    #[test]
    fn positions_that_cannot_be_are_corrupt_for_both_sides() {
        for (head, tail) in [(0, 8), (u64::MAX, 0), (LEAST_CAPACITY as u64 + 8, 0), (9, 1), (1 << 40, 8)] {
            let (sender, receiver) = StreamOptions::new().capacity(1).one_way().unwrap();
            sender.0.way.words().head.store(head, Ordering::Relaxed);
            sender.0.way.words().tail.store(tail, Ordering::Relaxed);
            let mut bytes = Vec::new();
            assert!(matches!(receiver.try_recv(&mut bytes), Err(PipeError::Corrupt(_))), "{head} {tail}");
            assert!(matches!(sender.send(&Frame::new(&[b"x"])), Err(PipeError::Corrupt(_))), "{head} {tail}");
        }
    }

    #[test]
    fn positions_may_run_over() {
        let (sender, receiver) = StreamOptions::new().capacity(1).one_way().unwrap();
        let words = sender.0.way.words();
        words.head.store(u64::MAX - 1_000 + 1, Ordering::Relaxed);
        words.tail.store(u64::MAX - 1_000 + 1, Ordering::Relaxed);
        // (As an opened handle would.)
        for way in [&sender.0.way, &receiver.0.way] {
            way.known.store(u64::MAX - 1_000 + 1, Ordering::Relaxed);
        }
        let mut bytes = Vec::new();
        for n in 0..200_u8 {
            sender.try_send(&Frame::new(&[&[n; 70]])).unwrap();
            receiver.try_recv(&mut bytes).unwrap();
            assert_eq!(bytes, [n; 70]);
        }
    }

    #[test]
    fn a_doorbell_that_rings_all_the_time_keeps_nobody_from_the_clock() {
        let (sender, receiver) = StreamOptions::new().one_way().unwrap();
        let over = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    sender.0.way.bell.ring().unwrap();
                }
            });
            let mut bytes = Vec::new();
            assert!(matches!(receiver.recv_timeout(&mut bytes, Duration::from_millis(20)), Err(PipeError::TimedOut)));
            assert!(matches!(receiver.try_recv(&mut bytes), Err(PipeError::Empty)));
            over.store(true, Ordering::Relaxed);
        });
    }

    #[test]
    fn handles_with_impossible_parts_are_refused() {
        use crate::travel::{pack, unpack};
        let (sender, _receiver) = StreamOptions::new().one_way().unwrap();
        let packed = sender.0.way.pack();
        for (rings, ring) in [(0, 0), (1, 1), (2, 0), (3, 0), (255, 7)] {
            let changed = (&packed.0, &packed.1, &packed.2, &packed.3, rings, ring);
            let (bytes, luggage) = pack(|| serde_json::to_vec(&changed).unwrap());
            let result = unpack(&luggage, || serde_json::from_slice::<FrameSender>(&bytes));
            assert!(result.is_err(), "{rings} {ring}");
        }
    }
}
