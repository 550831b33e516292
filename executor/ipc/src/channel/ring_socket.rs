//! A connected Unix socket whose bytes go through shared memory: what a request and its reply take when both sides are
//! on one machine.
//!
//! ```text
//!   RingWriter ── copies ──▶ ring (shared memory) ── copies ──▶ RingReader
//!        │  ▲                                                    │  │
//!        │  └──────── second socket: "there is room" ────────────┘  │
//!        └──── the connected socket: "there is something", and the end of file
//! ```
//!
//! It stands between a plain socket, which costs four system calls and two wake-ups for a request and its reply, and a
//! [stream](crate::stream_pair), which several processes can hold at once. Here each end has one holder, which makes
//! three things simpler:
//!
//! - **No locks, no board of presences.** Each side keeps its own position in its own memory and only publishes it. A
//!   peer that lies, or is killed anywhere, can make no one wait for a lock, and nothing but the two rings is shared
//!   with it. What it says is checked: more than a ring holds is [`InvalidData`](io::ErrorKind::InvalidData), whatever
//!   else it writes are wrong bytes, as on a socket.
//! - **The connected socket stays what it was.** Its end is the end of the stream, whatever ended the peer; shutting it
//!   down ends the stream; whoever was authenticated on it is whom the bytes come from. It carries bells from now on,
//!   each a byte, and only to somebody who sleeps.
//!
//!   In a child made by a plain `fork`, the ends are copies that are of no use but to be dropped, which does nothing.
//! - **Bytes, not frames.** Where a message ends is the business of the user, who has a decoder for sockets already.
//!
//! Who has nothing to do spins shortly, if that has paid lately ([`Spin`]), and then sleeps at its socket. That no
//! wake-up is lost is the protocol of streams (`stream/protocol.rs`, with its loom model), which is used here as it is.
//!
//! **With a reactor of one's own**, nothing here blocks: [`try_read`](RingReader::try_read) and
//! [`try_write`](RingWriter::try_write) do what can be done at once, and `rest` says that this side is about to wait,
//! [at the socket](RingReader::rest) or [at the bell for room](RingWriter::bell). Who rests stays so until the next
//! `try_read` or `try_write`, be the wait given up or not; so a future that is dropped loses no bell. After a bell that
//! was heard one of them must come before the next wait, even if nothing has come: a peer that was held up between its
//! word and its bell has rung for what we had read before we lay down, and for this rest it will not ring again.

use std::fmt;
use std::io;
use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};
use std::time::Instant;

use bytes::BytesMut;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, Shutdown, recv, send, shutdown};

use crate::memory::segment::{Layout, Segment};
use crate::travel::Fd;
use crate::wait::spin::Spin;
use crate::{forked, sys};

// It takes its atomics from the module that includes it, as it does in its loom model.
#[allow(clippy::duplicate_mod)]
#[path = "stream/protocol.rs"]
mod protocol;

const MAGIC: u64 = u64::from_le_bytes(*b"pp-sock1");

const LEAST_CAPACITY: usize = 1 << 12;
const MOST_CAPACITY: usize = 1 << 26;

/// How often a writer that hesitates looks: for about a microsecond.
const HESITATION: u32 = 32;

/// Where the first ring begins: with a page.
const DATA: usize = 4_096;
/// Where the words of the first direction stand.
const WORDS: usize = 128;

#[repr(C, align(128))]
struct Head {
    magic: AtomicU64,
    /// How many bytes a ring holds.
    capacity: AtomicU64,
    _0: [AtomicU64; 14],
}

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
    _2: [AtomicU32; 31],
    writer_sleep: AtomicU32,
    _3: AtomicU32,
    /// How far the reader must have read to wake the writer.
    wanted: AtomicU64,
    _4: [AtomicU64; 14],
}

// SAFETY: repr(C), and atomics only.
unsafe impl Layout for Head {}
// SAFETY: repr(C), and atomics only.
unsafe impl Layout for Words {}

const _: () = assert!(size_of::<Head>() == WORDS && WORDS + 2 * size_of::<Words>() <= DATA);

/// One end of a connection whose bytes go through shared memory; see [`create`](RingSocket::create).
///
/// # Examples
///
/// ```
/// use std::os::unix::net::UnixStream;
/// use polypool_ipc::RingSocket;
///
/// # fn main() -> std::io::Result<()> {
/// let (here, there) = UnixStream::pair()?;
/// let (ours, luggage) = RingSocket::create(64 << 10)?;
/// // ... the descriptors go over the socket, with `send_with_fds`, to another process ...
/// let theirs = RingSocket::join(luggage.into())?;
///
/// let ((_, mut writer), (mut reader, _)) = (ours.split(), theirs.split());
/// writer.write(&here, &[b"hello, ", b"world"], None)?;
/// let mut bytes = [0; 32];
/// let count = reader.read(&there, &mut bytes, None)?;
/// assert_eq!(&bytes[..count], b"hello, world");
///
/// drop(here);
/// assert_eq!(reader.read(&there, &mut bytes, None)?, 0, "the end of file");
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct RingSocket {
    reader: RingReader,
    writer: RingWriter,
}

impl RingSocket {
    /// Makes the memory for a connection, of `capacity` bytes each way (a power of two of at least 4 KiB and at most 64
    /// MiB is made of it). Gives this side's end, and the descriptors to send to the peer, which passes them to
    /// [`join`](RingSocket::join).
    ///
    /// From then on nothing but this end and the peer's may read from or write to the connected socket.
    ///
    /// # Errors
    ///
    /// What the system says when it is out of descriptors or memory.
    pub fn create(capacity: usize) -> io::Result<(RingSocket, [OwnedFd; 2])> {
        let capacity = capacity.clamp(LEAST_CAPACITY, MOST_CAPACITY).next_power_of_two();
        let segment = Segment::create(DATA + 2 * capacity)?;
        let head: &Head = segment.at(0);
        head.capacity.store(capacity as u64, Ordering::Relaxed);
        head.magic.store(MAGIC, Ordering::Release);
        let (here, there) = UnixStream::pair()?;
        let memory = segment.fd().as_fd().try_clone_to_owned()?;
        Ok((RingSocket::new(segment, capacity, 0, here.into()), [memory, there.into()]))
    }

    /// The peer's end, from the descriptors that it has been sent.
    ///
    /// # Errors
    ///
    /// [`InvalidData`](io::ErrorKind::InvalidData) if they are not those of [`create`](RingSocket::create); what the
    /// system says when it is out of memory.
    pub fn join(luggage: Vec<OwnedFd>) -> io::Result<RingSocket> {
        let Ok([memory, room]) = <[OwnedFd; 2]>::try_from(luggage) else {
            return Err(invalid("a connection through shared memory comes with two descriptors"));
        };
        let segment = Segment::open(&Fd::new(memory), DATA)?;
        let head: &Head = segment.at(0);
        let says = (head.magic.load(Ordering::Acquire), head.capacity.load(Ordering::Relaxed));
        let capacity = usize::try_from(says.1).unwrap_or(0);
        if says.0 != MAGIC
            || !capacity.is_power_of_two()
            || !(LEAST_CAPACITY..=MOST_CAPACITY).contains(&capacity)
            || segment.len() != DATA + 2 * capacity
        {
            return Err(invalid("this is not the memory of a connection"));
        }
        Ok(RingSocket::new(segment, capacity, 1, room))
    }

    fn new(segment: Arc<Segment>, capacity: usize, side: usize, room: OwnedFd) -> RingSocket {
        let room = Arc::new(room);
        let (one, forks) = (Arc::new(Counted::default()), forked::generation());
        let way =
            |ring| Way { segment: segment.clone(), ring, capacity, room: room.clone(), counted: one.clone(), forks };
        RingSocket {
            writer: RingWriter {
                way: way(side),
                head: 0,
                wanted: 0,
                rests: None,
                rung: protocol::Rung::default(),
                spin: Spin::default(),
                hesitates: false,
            },
            reader: RingReader {
                way: way(1 - side),
                tail: 0,
                rests: None,
                rung: protocol::Rung::default(),
                spin: Spin::default(),
            },
        }
    }

    /// What receives and what sends, for two threads at once.
    #[must_use = "dropping both ends the connection's use of the memory"]
    pub fn split(self) -> (RingReader, RingWriter) {
        (self.reader, self.writer)
    }

    /// Wakes a writer of this end that waits for room; see [`RingCloser`].
    #[must_use = "it has no effect but its result"]
    pub fn closer(&self) -> RingCloser {
        RingCloser(self.reader.way.room.clone())
    }
}

/// Ends the waits of a [`RingWriter`] for room, from any thread. (Those of the reader end when the connected socket is
/// shut down.)
#[derive(Debug)]
pub struct RingCloser(Arc<OwnedFd>);

impl RingCloser {
    /// Idempotent, and waits for nothing. Writers on both sides get [`BrokenPipe`](io::ErrorKind::BrokenPipe) where
    /// they would wait.
    pub fn close(&self) {
        // Fails only if the other end has gone.
        let _ = shutdown(&*self.0, Shutdown::Both);
    }
}

/// One direction, on one side.
struct Way {
    segment: Arc<Segment>,
    ring: usize,
    /// A power of two.
    capacity: usize,
    room: Arc<OwnedFd>,
    counted: Arc<Counted>,
    /// By how many forks the process of this end came to be.
    forks: u32,
}

impl Way {
    #[inline]
    fn words(&self) -> &Words {
        self.segment.at(WORDS + self.ring * size_of::<Words>())
    }

    /// Where a position is in the segment, and how much fits between there and the end of the ring.
    #[inline]
    fn at(&self, position: u64) -> (usize, usize) {
        // The capacity is a power of two that fits in a `usize`.
        let place = (position & (self.capacity as u64 - 1)) as usize;
        (DATA + self.ring * self.capacity + place, self.capacity - place)
    }

    /// How much lies between two positions, of which the peer has said one.
    #[inline]
    fn between(&self, tail: u64, head: u64) -> io::Result<usize> {
        let used = head.wrapping_sub(tail);
        if used > self.capacity as u64 {
            return Err(invalid("the peer has spoilt the shared memory of a connection"));
        }
        Ok(used as usize)
    }
}

impl fmt::Debug for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Way").field("ring", &self.ring).field("capacity", &self.capacity).finish_non_exhaustive()
    }
}

/// The half of a [`RingSocket`] that receives.
#[derive(Debug)]
pub struct RingReader {
    way: Way,
    /// Where we are. What stands in the shared memory is for the peer to read, and never read back.
    tail: u64,
    /// The number of the sleep that [`rest`](RingReader::rest) has begun.
    rests: Option<u32>,
    rung: protocol::Rung,
    spin: Spin,
}

impl RingReader {
    /// Receives something into `room`, 0 bytes at the end of the stream. Waits until `until`, or for ever; what is
    /// there already is received in any case.
    ///
    /// `socket` is the connected socket.
    ///
    /// # Errors
    ///
    /// [`TimedOut`](io::ErrorKind::TimedOut), after which it can be called again and nothing is lost;
    /// [`InvalidData`](io::ErrorKind::InvalidData) for a peer that lies; what the system says.
    pub fn read(&mut self, socket: impl AsFd, room: &mut [u8], until: Option<Instant>) -> io::Result<usize> {
        let len = room.len();
        // SAFETY: the same bytes, as ones that need not be written before they are read; `take` writes none that is not
        // a byte.
        let room = unsafe { std::slice::from_raw_parts_mut(room.as_mut_ptr().cast::<MaybeUninit<u8>>(), len) };
        self.rests = None;
        loop {
            let count = self.take(room)?;
            if count > 0 || room.is_empty() || !self.wait(socket.as_fd(), until)? {
                return Ok(count);
            }
        }
    }

    /// As [`read`](RingReader::read), into the spare capacity of `room`.
    ///
    /// # Errors
    ///
    /// As [`read`](RingReader::read).
    pub fn read_buf(&mut self, socket: impl AsFd, room: &mut BytesMut, until: Option<Instant>) -> io::Result<usize> {
        loop {
            let count = self.try_read(room)?;
            if count > 0 || room.spare_capacity_mut().is_empty() || !self.wait(socket.as_fd(), until)? {
                return Ok(count);
            }
        }
    }

    /// Receives what is there into the spare capacity of `room`, and waits for nothing; 0 bytes if nothing is there, be
    /// it the end or not.
    ///
    /// # Errors
    ///
    /// [`InvalidData`](io::ErrorKind::InvalidData) for a peer that lies.
    pub fn try_read(&mut self, room: &mut BytesMut) -> io::Result<usize> {
        if let Some(word) = self.rests.take() {
            protocol::get_up(&self.way.words().reader_sleep, word);
        }
        let count = self.take(room.spare_capacity_mut())?;
        // SAFETY: `take` has just written so many bytes of the spare capacity.
        unsafe { room.set_len(room.len() + count) };
        Ok(count)
    }

    /// As [`read`](RingReader::read), behind what stands in `room`: up to `most` bytes, and no more than it has spare
    /// capacity for. For what is to end up in a vector of its own.
    ///
    /// # Errors
    ///
    /// As [`read`](RingReader::read).
    pub fn read_into(
        &mut self,
        socket: impl AsFd,
        room: &mut Vec<u8>,
        most: usize,
        until: Option<Instant>,
    ) -> io::Result<usize> {
        loop {
            let count = self.try_read_into(room, most)?;
            let is_full = most == 0 || room.len() == room.capacity();
            if count > 0 || is_full || !self.wait(socket.as_fd(), until)? {
                return Ok(count);
            }
        }
    }

    /// As [`read_into`](RingReader::read_into), without waiting: as [`try_read`](RingReader::try_read).
    ///
    /// # Errors
    ///
    /// As [`try_read`](RingReader::try_read).
    pub fn try_read_into(&mut self, room: &mut Vec<u8>, most: usize) -> io::Result<usize> {
        if let Some(word) = self.rests.take() {
            protocol::get_up(&self.way.words().reader_sleep, word);
        }
        let spare = room.spare_capacity_mut();
        let most = most.min(spare.len());
        let count = self.take(&mut spare[..most])?;
        // SAFETY: `take` has just written so many bytes of the spare capacity.
        unsafe { room.set_len(room.len() + count) };
        Ok(count)
    }

    /// How many bytes are there that have not been received.
    ///
    /// # Errors
    ///
    /// [`InvalidData`](io::ErrorKind::InvalidData) for a peer that lies.
    pub fn buffered(&self) -> io::Result<usize> {
        self.way.between(self.tail, self.way.words().head.load(Ordering::Acquire))
    }

    /// Says that this side is about to wait until the connected socket is readable, which the peer sees to from now on.
    /// `false`: something is there, and nobody rings for it. The rest is over with the next
    /// [`try_read`](RingReader::try_read), which must come after each bell that is taken out of the socket; until then
    /// this can be called any number of times.
    #[must_use = "if it is false, there is nothing to wait for"]
    pub fn rest(&mut self) -> bool {
        let words = self.way.words();
        self.rests.get_or_insert_with(|| protocol::lie_down(&words.reader_sleep));
        words.head.load(Ordering::Acquire) == self.tail
    }

    /// Copies out what is there and fits.
    fn take(&mut self, room: &mut [MaybeUninit<u8>]) -> io::Result<usize> {
        let words = self.way.words();
        let head = words.head.load(Ordering::Acquire);
        let count = self.way.between(self.tail, head)?.min(room.len());
        if count == 0 {
            return Ok(0);
        }
        let (place, fits) = self.way.at(self.tail);
        let (one, two) = room[..count].split_at_mut(count.min(fits));
        self.way.segment.load_uninit(place, one);
        if !two.is_empty() {
            self.way.segment.load_uninit(self.way.at(0).0, two);
        }
        self.tail = self.tail.wrapping_add(count as u64);
        protocol::publish(&words.tail, self.tail);
        if let Some(sleep) = protocol::sleeper(&words.writer_sleep)
            && self.tail.wrapping_sub(words.wanted.load(Ordering::Relaxed)).cast_signed() >= 0
            && self.rung.is_new(sleep)
        {
            // A writer that has gone needs no room.
            let _ = ring((*self.way.room).as_fd());
        }
        Ok(count)
    }

    /// Waits until something is there. `false` at the end.
    fn wait(&mut self, socket: BorrowedFd<'_>, until: Option<Instant>) -> io::Result<bool> {
        let words = self.way.words();
        let tail = self.tail;
        let come = || words.head.load(Ordering::Acquire) != tail;
        if self.way.counted.may_spin() && self.spin.spin(come) {
            return Ok(true);
        }
        let word = protocol::lie_down(&words.reader_sleep);
        let woken = if come() { Ok(Woken::Rung) } else { sleep(socket, until) };
        match woken {
            // What was sent before the end comes before it. At the end we stay asleep, so that a peer that has only
            // ended its own half rings, and learns that we are gone as soon as we are.
            Ok(Woken::HungUp) if !come() => Ok(false),
            woken => {
                protocol::get_up(&words.reader_sleep, word);
                match woken? {
                    _ if come() => Ok(true),
                    Woken::TimedOut => Err(io::ErrorKind::TimedOut.into()),
                    _ if until.is_some_and(|until| until <= Instant::now()) => Err(io::ErrorKind::TimedOut.into()),
                    _ => Ok(true),
                }
            }
        }
    }

    /// Whether bytes are there that have not been received. Asks nobody, and so doesn't know of the end of the stream.
    #[must_use = "it has no effect but its result"]
    #[inline]
    pub fn has_buffered(&self) -> bool {
        self.way.words().head.load(Ordering::Acquire) != self.tail
    }

    /// How often this end has gone to sleep.
    #[doc(hidden)]
    #[must_use]
    pub fn sleeps(&self) -> u32 {
        self.way.words().reader_sleep.load(Ordering::Relaxed) >> 1
    }
}

impl Drop for RingReader {
    fn drop(&mut self) {
        // Looks asleep for ever, so that the peer rings at the socket and learns that it is closed. In a forked child
        // it is a copy, and the word is that of the parent, who may be about to sleep.
        if self.way.forks == forked::generation() {
            protocol::lie_down(&self.way.words().reader_sleep);
        }
    }
}

/// The half of a [`RingSocket`] that sends.
#[derive(Debug)]
pub struct RingWriter {
    way: Way,
    /// Where we are. What stands in the shared memory is for the peer to read, and never read back.
    head: u64,
    /// How far the peer must have read for what there was no room for.
    wanted: u64,
    /// The number of the sleep that [`rest`](RingWriter::rest) has begun.
    rests: Option<u32>,
    rung: protocol::Rung,
    spin: Spin,
    hesitates: bool,
}

impl RingWriter {
    /// Has it wait for about a microsecond before it rings for a reader that [rests](RingReader::rest): for one that has
    /// said so in case that nobody comes to read, and comes all the same. A bell costs both sides more than that.
    pub fn hesitate(&mut self) {
        self.hesitates = sys::cpus() > 1;
    }

    /// Sends all of `parts`, one after the other. Waits for room until `until`, or for ever.
    ///
    /// `socket` is the connected socket. A peer that has gone is noticed when it slept, or when the ring is full;
    /// otherwise by this side's reader.
    ///
    /// # Errors
    ///
    /// After any of them the peer has not read all of it, and the writer is of no further use.
    ///
    /// [`TimedOut`](io::ErrorKind::TimedOut); [`BrokenPipe`](io::ErrorKind::BrokenPipe) or
    /// [`ConnectionReset`](io::ErrorKind::ConnectionReset) if the peer has gone;
    /// [`InvalidData`](io::ErrorKind::InvalidData) for a peer that lies; what the system says.
    pub fn write(&mut self, socket: impl AsFd, parts: &[&[u8]], until: Option<Instant>) -> io::Result<()> {
        let mut parts = Parts::new(parts);
        while parts.left > 0 {
            if let Some(wanted) = self.put(socket.as_fd(), &mut parts)? {
                self.wait(wanted, until)?;
            }
        }
        Ok(())
    }

    /// Sends as much of `bytes` as there is room for, and waits for nothing. Gives how many they were; 0 when there is
    /// no room worth using.
    ///
    /// # Errors
    ///
    /// As [`write`](RingWriter::write), but for the time.
    pub fn try_write(&mut self, socket: impl AsFd, bytes: &[u8]) -> io::Result<usize> {
        if let Some(word) = self.rests.take() {
            protocol::get_up(&self.way.words().writer_sleep, word);
        }
        let whole = [bytes];
        let mut parts = Parts::new(&whole);
        while parts.left > 0 {
            if let Some(wanted) = self.put(socket.as_fd(), &mut parts)? {
                self.wanted = wanted;
                break;
            }
        }
        Ok(bytes.len() - parts.left)
    }

    /// Says that this side is about to wait at its [bell](RingWriter::bell) until there is room for what
    /// [`try_write`](RingWriter::try_write) has left over, which the peer sees to from now on. `false`: there is room,
    /// and nobody rings for it. The rest is over with the next [`try_write`](RingWriter::try_write), which must come
    /// after each bell that is taken out of the socket; until then this can be called any number of times.
    #[must_use = "if it is false, there is nothing to wait for"]
    pub fn rest(&mut self) -> bool {
        let words = self.way.words();
        let wanted = self.wanted;
        self.rests.get_or_insert_with(|| {
            words.wanted.store(wanted, Ordering::Relaxed);
            protocol::lie_down(&words.writer_sleep)
        });
        words.tail.load(Ordering::Acquire).wrapping_sub(wanted).cast_signed() < 0
    }

    /// What rings when there is room: a socket that carries bytes of no meaning, for a reactor that takes descriptors.
    /// It is readable when it has rung, and ends when the peer has gone.
    ///
    /// # Errors
    ///
    /// What the system says when it is out of descriptors.
    pub fn bell(&self) -> io::Result<UnixStream> {
        Ok((*self.way.room).try_clone()?.into())
    }

    /// Sends a piece, or says how far the peer must have read before there is room for one.
    fn put(&mut self, socket: BorrowedFd<'_>, parts: &mut Parts<'_>) -> io::Result<Option<u64>> {
        let words = self.way.words();
        let capacity = self.way.capacity;
        let tail = words.tail.load(Ordering::Acquire);
        let free = capacity - self.way.between(tail, self.head)?;
        // Little room is no room, or a full ring would cost a wake-up for every few bytes.
        if free < parts.left.min(capacity / 8) {
            return Ok(Some(tail.wrapping_add((parts.left.min(capacity / 4) - free) as u64)));
        }
        // A quarter at a time, so that the peer reads one piece while the next one is written.
        let piece = parts.left.min(free).min(capacity / 4);
        let mut at = self.head;
        while at != self.head.wrapping_add(piece as u64) {
            let todo = piece - at.wrapping_sub(self.head) as usize;
            let bytes = parts.next(todo);
            let (place, fits) = self.way.at(at);
            let (one, two) = bytes.split_at(bytes.len().min(fits));
            self.way.segment.store(place, one);
            if !two.is_empty() {
                self.way.segment.store(self.way.at(0).0, two);
            }
            at = at.wrapping_add(bytes.len() as u64);
        }
        self.head = at;
        protocol::publish(&words.head, at);
        if let Some(sleep) = protocol::sleeper(&words.reader_sleep)
            && self.rung.is_new(sleep)
            && !(self.hesitates && self.gets_up(sleep))
            && let Err(error) = ring(socket)
        {
            // The peer may have read all of it just before it closed. Then it counts as sent; our reader learns of the
            // end.
            let read = words.tail.load(Ordering::Acquire) == self.head;
            return if parts.left == 0 && read { Ok(None) } else { Err(error) };
        }
        Ok(None)
    }

    /// Whether the peer ends its sleep by itself in a moment.
    fn gets_up(&self, sleep: u32) -> bool {
        let word = &self.way.words().reader_sleep;
        (0..HESITATION).any(|_| {
            std::hint::spin_loop();
            protocol::is_over(word, sleep)
        })
    }

    /// Waits until the peer has read that far.
    fn wait(&mut self, wanted: u64, until: Option<Instant>) -> io::Result<()> {
        let words = self.way.words();
        let come = || words.tail.load(Ordering::Acquire).wrapping_sub(wanted).cast_signed() >= 0;
        if self.way.counted.may_spin() && self.spin.spin(come) {
            return Ok(());
        }
        self.rests = None;
        words.wanted.store(wanted, Ordering::Relaxed);
        let word = protocol::lie_down(&words.writer_sleep);
        let woken = if come() { Ok(Woken::Rung) } else { sleep((*self.way.room).as_fd(), until) };
        protocol::get_up(&words.writer_sleep, word);
        match woken? {
            _ if come() => Ok(()),
            Woken::HungUp => Err(io::ErrorKind::BrokenPipe.into()),
            Woken::Rung if until.is_none_or(|until| until > Instant::now()) => Ok(()),
            _ => Err(io::ErrorKind::TimedOut.into()),
        }
    }
}

/// What is left to be sent of several slices.
struct Parts<'a> {
    parts: &'a [&'a [u8]],
    /// How much of the first one has been sent.
    within: usize,
    left: usize,
}

impl<'a> Parts<'a> {
    fn new(parts: &'a [&'a [u8]]) -> Self {
        Parts { parts, within: 0, left: parts.iter().map(|part| part.len()).sum() }
    }

    /// Takes at most `most` bytes of the slice that is next.
    fn next(&mut self, most: usize) -> &'a [u8] {
        let Some((first, rest)) = self.parts.split_first() else { return &[] };
        let bytes = &first[self.within..];
        let bytes = &bytes[..bytes.len().min(most)];
        self.within += bytes.len();
        self.left -= bytes.len();
        if self.within == first.len() {
            (self.parts, self.within) = (rest, 0);
        }
        bytes
    }
}

/// How a sleep ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Woken {
    /// A bell has rung, for this sleep or an earlier one: look again.
    Rung,
    TimedOut,
    /// The peer has gone, or the socket was shut down.
    HungUp,
}

/// Rings. A socket that is full has bells enough in it.
fn ring(socket: BorrowedFd<'_>) -> io::Result<()> {
    loop {
        return match send(socket, &[1], SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
            Err(Errno::INTR) => continue,
            Ok(_) | Err(Errno::AGAIN) => Ok(()),
            Err(error) => Err(error.into()),
        };
    }
}

/// Sleeps until it rings.
fn sleep(socket: BorrowedFd<'_>, until: Option<Instant>) -> io::Result<Woken> {
    let Some(until) = until else { return hear(socket, RecvFlags::empty()) };
    let left = until.saturating_duration_since(Instant::now());
    let left =
        Timespec { tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX), tv_nsec: i64::from(left.subsec_nanos()) };
    match poll(&mut [PollFd::new(&socket, PollFlags::IN)], Some(&left)) {
        Ok(0) => Ok(Woken::TimedOut),
        Ok(_) => hear(socket, RecvFlags::DONTWAIT),
        Err(Errno::INTR) => Ok(Woken::Rung),
        Err(error) => Err(error.into()),
    }
}

fn hear(socket: BorrowedFd<'_>, flags: RecvFlags) -> io::Result<Woken> {
    let mut bells = [0; 64];
    match recv(socket, &mut bells[..], flags) {
        // Whoever waits without an end finds nothing new and waits again.
        Err(Errno::INTR | Errno::AGAIN) => Ok(Woken::Rung),
        // Reset: the peer has closed its end with bells in it that it had not heard.
        Ok((_, 0)) | Err(Errno::CONNRESET | Errno::PIPE | Errno::NOTCONN) => Ok(Woken::HungUp),
        Ok(_) => Ok(Woken::Rung),
        Err(error) => Err(error.into()),
    }
}

fn invalid(text: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

/// How many ends there are in this process that block, and so may spin.
static ENDS: AtomicUsize = AtomicUsize::new(0);

/// An end, which is counted from the first time that it is about to block. Those with a reactor of their own never do.
#[derive(Debug, Default)]
struct Counted(AtomicBool);

impl Counted {
    /// The end is about to block. Whether it may spin before: not in a process with more ends that block than there
    /// are processors, as then somebody else surely has a use for them.
    fn may_spin(&self) -> bool {
        if !self.0.load(Ordering::Relaxed) && !self.0.swap(true, Ordering::Relaxed) {
            ENDS.fetch_add(1, Ordering::Relaxed);
        }
        ENDS.load(Ordering::Relaxed) <= sys::cpus()
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        if *self.0.get_mut() {
            ENDS.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_ends_that_block_keep_others_from_spinning() {
        // No other test of this binary has an end.
        let ends = || ENDS.load(Ordering::Relaxed);
        let (here, _there) = UnixStream::pair().unwrap();
        let mut all: Vec<_> = (0..sys::cpus() + 2).map(|_| RingSocket::create(4_096).unwrap()).collect();
        for (RingSocket { reader, writer }, _) in &mut all {
            assert_eq!(reader.try_read(&mut BytesMut::with_capacity(10)).unwrap(), 0);
            assert!(reader.rest());
            while writer.try_write(&here, &[1; 100]).unwrap() > 0 {}
            assert!(writer.rest());
        }
        assert_eq!(ends(), 0, "a reactor's");
        for blocks in [1, 2] {
            let (RingSocket { reader, writer }, _) = &mut all[blocks];
            let over = Some(Instant::now());
            assert_eq!(reader.read(&here, &mut [0], over).unwrap_err().kind(), io::ErrorKind::TimedOut);
            assert_eq!(writer.write(&here, &[&[1; 100]], over).unwrap_err().kind(), io::ErrorKind::TimedOut);
            assert_eq!(ends(), blocks, "each once");
        }
        drop(all);
        assert_eq!(ends(), 0);
    }
}
