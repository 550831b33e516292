//! What frames go through between the supervisor and a worker: two rings in shared memory, or else the socket.
//!
//! The socket is always there. The supervisor's greeting is followed by one byte, which comes with the descriptors of
//! the rings or says that there are none; the worker says in its [`Ready`](super::wire::Ready) whether it has joined
//! them:
//!
//! ```text
//! supervisor                                              worker
//!                Hello, with claims, control, luggage  ──▶
//!     RINGS, with memory and bell   or   NO_RINGS      ──▶   joins them, or can't
//!                               ◀──  Ready { ring: true }   or   Ready { ring: false }
//! ```
//!
//! Up to here everything goes through the socket. Nothing goes to a worker between the greeting and its `Ready`, and
//! nothing comes from it behind that, so both sides change over at a point where the socket is empty. From then on it
//! carries the bells of [`RingSocket`] and its end says what it always said. Who can't make the rings (no memory, no
//! descriptors, limits, a filter of system calls, another system than Linux), can't send them, can't receive them or
//! can't map them stays with the socket, which carries the same frames.
//!
//! **The supervisor's side never blocks**, and one thread looks after all workers. For each ring it is in one of three
//! states:
//!
//! | state | how it gets there | what the worker does when it has written |
//! | --- | --- | --- |
//! | awake | it has just read something | nothing: the supervisor looks again before it sleeps |
//! | looking | nothing was there, but something is likely to come within microseconds and there is a core to spare | nothing |
//! | resting | nothing came while it looked; [`Line::rest`] has marked the ring, and looked once more after that | rings at the socket, once for each rest |
//!
//! The mark and the second look are what no wake-up gets lost between (`stream/protocol.rs` of `polypool-ipc`, with its
//! loom model): either the worker sees the mark, or the supervisor sees the bytes. A wait that is dropped, because
//! another branch of the select was first, leaves the mark, and the bell in the socket. After a bell that was heard the
//! next rest has another mark, as a worker that was held up may have rung for something that was read before. For room
//! to write it is the same with the marks the other way round and a bell of its own.
//!
//! While it rests, a caller may take its place for a moment (`direct.rs`): it takes the mark away, looks, and marks the
//! ring again.
//!
//! What a lying worker can do to a ring: claim positions, which are checked against the ring's length; write any bytes,
//! which are frames as much as those in a socket are; ring without reason, which costs a look; never ring, which is
//! silence.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use bytes::{BufMut as _, BytesMut};
use tokio::net::UnixStream;
use tokio::net::unix::pipe;

#[cfg(not(any(target_os = "linux", target_os = "android")))]
pub(super) use super::no_ring::{RingReader, RingSocket, RingWriter};
#[cfg(any(target_os = "linux", target_os = "android"))]
pub(super) use polypool_ipc::{RingReader, RingSocket, RingWriter};

/// Follows the greeting: the descriptors of the rings come with this byte.
pub(super) const RINGS: u8 = 1;
/// Follows the greeting: there are no rings.
pub(super) const NO_RINGS: u8 = 0;

/// For how long the supervisor looks before it rests: about as long as it takes to be woken.
pub(super) const LOOK: Duration = Duration::from_micros(40);

/// Looks that were in vain cost credit, and without credit the next rests begin at once: so many.
pub(super) const SKIP: u32 = 64;

/// How much is read at once, if so much is there.
const PIECE: usize = 4 * 1024 * 1024;

/// How much room for `have` bytes of a frame and `there` more in a ring, of a frame that lacks `missing`.
pub(super) fn foresight(have: usize, there: usize, missing: usize) -> usize {
    // Grows with what has arrived, and not with what a header says.
    there.max(missing.min(have.clamp(4 * 1024, PIECE)))
}

/// The supervisor's end of a worker's channel.
pub(super) struct Line {
    way: Way,
    /// Made, and not yet joined by the worker.
    offered: Option<Ring>,
}

enum Way {
    Socket(Arc<UnixStream>),
    Rings(Box<Ring>),
}

/// The socket, to be waited for.
#[derive(Clone)]
pub(super) enum Socket {
    Frames(Arc<UnixStream>),
    Bells(Arc<pipe::Receiver>),
}

impl Socket {
    /// Waits until there is something to be read from it.
    pub(super) async fn readable(&self) -> io::Result<()> {
        match self {
            Socket::Frames(stream) => stream.readable().await,
            Socket::Bells(bells) => bells.readable().await,
        }
    }

    /// Waits until frames can be written to it.
    pub(super) async fn writable(&self) -> io::Result<()> {
        match self {
            Socket::Frames(stream) => stream.writable().await,
            Socket::Bells(_) => Ok(()),
        }
    }
}

/// The supervisor's end of rings, with all that it takes to wait for them.
pub(super) struct Ring {
    reader: RingReader,
    writer: RingWriter,
    /// The worker's socket, registered for nothing but reading: each bell that the worker takes out of its end makes
    /// room in ours, which would wake the supervisor for nothing. It's not a pipe, but this is the one form in which
    /// tokio takes a descriptor like that without `unsafe`.
    bells: Arc<pipe::Receiver>,
    room: Arc<UnixStream>,
    /// Whether a rest has begun since the bells were last heard.
    rests: bool,
    waits_for_room: bool,
    /// Whether the socket has ended.
    has_ended: bool,
}

impl Ring {
    /// Makes rings of that many bytes each way, and what is to be sent to the worker. Must be called on the
    /// supervisor's runtime.
    ///
    /// # Errors
    /// What the system says when it has no memory or no descriptors. That must show before the worker is offered
    /// anything: once it has joined the rings, nothing else would do.
    pub(super) fn make(size: usize, channel: &std::os::unix::net::UnixStream) -> io::Result<(Ring, [OwnedFd; 2])> {
        let bells = Arc::new(pipe::Receiver::from_owned_fd_unchecked(channel.try_clone()?.into())?);
        let (socket, luggage) = RingSocket::create(size)?;
        let (reader, writer) = socket.split();
        // The other end of this bell is a descriptor of its own, so the worker doesn't notice that ours doesn't block.
        let bell = writer.bell()?;
        bell.set_nonblocking(true)?;
        let room = Arc::new(UnixStream::from_std(bell)?);
        let ring = Ring { reader, writer, bells, room, rests: false, waits_for_room: false, has_ended: false };
        Ok((ring, luggage))
    }

    /// Ends a rest, if one has begun.
    fn get_up(&mut self) -> io::Result<()> {
        if std::mem::take(&mut self.rests) {
            let bells = &self.bells;
            self.has_ended |= hear(|to| bells.try_read(to))?;
        }
        Ok(())
    }
}

impl Line {
    /// Must be called on the supervisor's runtime.
    pub(super) fn new(stream: std::os::unix::net::UnixStream, offered: Option<Ring>) -> io::Result<Self> {
        Ok(Line { way: Way::Socket(Arc::new(UnixStream::from_std(stream)?)), offered })
    }

    /// The worker has said whether it has joined the rings.
    ///
    /// # Errors
    /// Says what is wrong with that.
    pub(super) fn agree(&mut self, joined: bool) -> Result<(), String> {
        match self.offered.take() {
            _ if !joined => {}
            Some(ring) => self.way = Way::Rings(Box::new(ring)),
            None => return Err("it has joined a ring that it was not given".to_owned()),
        }
        Ok(())
    }

    fn ring(&self) -> Option<&Ring> {
        match &self.way {
            Way::Socket(_) => None,
            Way::Rings(ring) => Some(ring),
        }
    }

    fn ring_mut(&mut self) -> Option<&mut Ring> {
        match &mut self.way {
            Way::Socket(_) => None,
            Way::Rings(ring) => Some(ring),
        }
    }

    /// What shows that there may be something to read; another one after the worker has joined the rings.
    pub(super) fn socket(&self) -> Socket {
        match &self.way {
            Way::Socket(stream) => Socket::Frames(stream.clone()),
            Way::Rings(ring) => Socket::Bells(ring.bells.clone()),
        }
    }

    /// What rings when there is room in the ring, if there is one.
    pub(super) fn room(&self) -> Option<Arc<UnixStream>> {
        self.ring().map(|ring| ring.room.clone())
    }

    /// Reads something of a frame that lacks `missing` bytes. 0 is the end of the stream.
    ///
    /// # Errors
    /// [`WouldBlock`](io::ErrorKind::WouldBlock); [`InvalidData`](io::ErrorKind::InvalidData) for a worker that lies;
    /// what the system says.
    pub(super) fn read(&mut self, to: &mut BytesMut, missing: usize) -> io::Result<usize> {
        let ring = match &mut self.way {
            Way::Rings(ring) => ring,
            Way::Socket(stream) => {
                to.reserve(to.len().clamp(64 * 1024, PIECE));
                return stream.try_read_buf(to);
            }
        };
        // Before the ring is looked at: what was written before the end is then seen.
        ring.get_up()?;
        to.reserve(foresight(to.len(), ring.reader.buffered()?, missing));
        match ring.reader.try_read(to)? {
            0 if ring.has_ended => Ok(0),
            0 => Err(io::ErrorKind::WouldBlock.into()),
            count => Ok(count),
        }
    }

    /// Reads up to `left` bytes of a block into where it ends up. While more of it is about to come, that is waited for
    /// with open eyes, within the allowance.
    ///
    /// # Errors
    /// As [`read`](Line::read).
    pub(super) fn read_block(&mut self, to: &mut Vec<u8>, left: usize, allowance: &mut Duration) -> io::Result<usize> {
        let ring = match &mut self.way {
            Way::Rings(ring) => ring,
            Way::Socket(stream) => return stream.try_read_buf(&mut to.limit(left)),
        };
        ring.get_up()?;
        match linger(allowance, || ring.reader.try_read_into(to, left))? {
            0 if ring.has_ended => Ok(0),
            0 => Err(io::ErrorKind::WouldBlock.into()),
            count => Ok(count),
        }
    }

    /// As [`write`](Line::write), but room is waited for with open eyes, within the allowance.
    ///
    /// # Errors
    /// As [`read`](Line::read).
    pub(super) fn write_large(&mut self, bytes: &[u8], allowance: &mut Duration) -> io::Result<usize> {
        if !self.has_ring() {
            return self.write(bytes);
        }
        let count = linger(allowance, || match self.write(bytes) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
            result => result,
        })?;
        if count == 0 { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(count) }
    }

    /// Writes as much as there is room for.
    ///
    /// # Errors
    /// As [`read`](Line::read).
    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let ring = match &mut self.way {
            Way::Rings(ring) => ring,
            Way::Socket(stream) => return stream.try_write(bytes),
        };
        if std::mem::take(&mut ring.waits_for_room) && hear(|bells| ring.room.try_read(bells))? {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        match ring.writer.try_write(&*ring.bells, bytes)? {
            0 => Err(io::ErrorKind::WouldBlock.into()),
            count => Ok(count),
        }
    }

    /// Reads what is there, as far as it fits; without a look at the system. 0: nothing, or the end.
    ///
    /// # Errors
    /// As [`read`](Line::read).
    pub(super) fn glimpse(&mut self, to: &mut Vec<u8>) -> io::Result<usize> {
        let Some(ring) = self.ring_mut() else { return Ok(0) };
        ring.get_up()?;
        ring.reader.try_read_into(to, usize::MAX)
    }

    pub(super) fn has_ring(&self) -> bool {
        self.ring().is_some()
    }

    /// Whether there is something to read, as far as can be seen without asking the system. Through a socket, nothing
    /// can.
    pub(super) fn has_something(&self) -> bool {
        // A position that can't be is something to read as well: the error.
        self.ring().is_some_and(|ring| ring.reader.has_buffered())
    }

    /// Rests, so that the worker rings at the socket when it writes. `false`: there is something to read, for which
    /// nobody rings.
    pub(super) fn rest(&mut self) -> bool {
        let Some(ring) = self.ring_mut() else { return true };
        ring.rests = true;
        ring.reader.rest()
    }

    /// Before a wait for room: whether there is none, so that the worker will ring.
    pub(super) fn rest_for_room(&mut self) -> bool {
        let Some(ring) = self.ring_mut() else { return true };
        ring.waits_for_room = true;
        ring.writer.rest()
    }
}

/// For how long one worker is waited for, in all, while less than pieces of a large payload come or go.
pub(super) const ALLOWANCE: Duration = Duration::from_millis(2);

/// What a side that is at it gives or takes at once, where the ring isn't smaller.
const STRIDE: usize = 16 * 1024;

/// Tries until something has been done, for about as long as it takes to be woken: the other side is at it, and needs no
/// longer for a piece. Where it would be on this core, it isn't. What was spent on it comes off the `allowance`, until a
/// [`STRIDE`] comes or goes: a side that gives or takes a byte at a time can't keep the other one here.
fn linger(allowance: &mut Duration, mut attempt: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
    let mut count = attempt()?;
    if count == 0 && cores() > 1 && !allowance.is_zero() {
        let (since, most) = (Instant::now(), LOOK.min(*allowance));
        let spent = loop {
            std::hint::spin_loop();
            count = attempt()?;
            let spent = since.elapsed();
            if count > 0 || spent >= most {
                break spent;
            }
        };
        *allowance = allowance.saturating_sub(spent);
    }
    if count >= STRIDE {
        *allowance = ALLOWANCE;
    }
    Ok(count)
}

/// Takes bells out of a socket. Whether it has ended.
fn hear(mut try_read: impl FnMut(&mut [u8]) -> io::Result<usize>) -> io::Result<bool> {
    let mut bells = [0; 256];
    // Nobody rings as often, unless to annoy; the rest is heard the next time.
    for _ in 0..4 {
        match try_read(&mut bells) {
            Ok(0) => return Ok(true),
            Ok(_) => {}
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock => break,
                io::ErrorKind::Interrupted => {}
                // It has ended with bells in it that nobody has heard.
                io::ErrorKind::ConnectionReset => return Ok(true),
                _ => return Err(error),
            },
        }
    }
    Ok(false)
}

/// Whether looking pays.
#[derive(Debug)]
pub(super) struct Looks {
    longest: Duration,
    most_skips: u32,
    since: Option<Instant>,
    credit: u32,
    skip: u32,
}

impl Looks {
    const MOST_CREDIT: u32 = 16;

    /// Each at most that `longest`, and `most_skips` left out after some in vain.
    pub(super) fn new(longest: Duration, most_skips: u32) -> Self {
        Looks { longest, most_skips, since: None, credit: 0, skip: 0 }
    }

    /// Something has come.
    pub(super) fn found(&mut self) {
        if self.since.take().is_some() {
            self.credit = (self.credit + 1).min(Self::MOST_CREDIT);
        }
    }

    /// There is something else to do.
    pub(super) fn give_up(&mut self) {
        self.since = None;
    }

    /// It was in vain.
    pub(super) fn vain(&mut self) {
        self.since = None;
        self.credit = self.credit.saturating_sub(4);
        if self.credit == 0 {
            self.skip = self.most_skips;
        }
    }

    /// Whether to look once more.
    pub(super) fn again(&mut self) -> bool {
        let now = Instant::now();
        match self.since {
            None if self.skip > 0 => {
                self.skip -= 1;
                false
            }
            None => {
                self.since = Some(now);
                true
            }
            Some(since) if now.duration_since(since) < self.longest => true,
            Some(_) => {
                self.vain();
                false
            }
        }
    }
}

/// How many cores this process may use, asked once.
pub(super) fn cores() -> usize {
    static CORES: OnceLock<usize> = OnceLock::new();
    *CORES.get_or_init(crate::cores::cores)
}
