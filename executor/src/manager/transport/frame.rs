//! Frames on a byte stream: the decoder, which is only logic, and the two halves of a connection.

use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use super::link::{Link, Timer};
use super::{ConnectError, Limits, TransportError, handshake_error};
use crate::manager::auth;
#[cfg(feature = "tls")]
use crate::manager::tls;

/// What [`FrameReader::peek`] has seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Peek {
    /// The next [`recv`](FrameReader::recv) has its message or its error, so that it doesn't wait.
    Message,
    /// No message is there, or none that is whole.
    Nothing,
    /// A message of more than [`LONG_LEN`] bytes has begun, or is there: only to read or to copy it takes its time.
    Long,
}

/// From here on a message is long: no other process has it ready, since the memory of a connection holds less.
const LONG_LEN: usize = 64 << 10;

/// The receiving half of a connection.
#[derive(Debug)]
pub(crate) struct FrameReader {
    pub(super) link: Arc<Link>,
    decoder: FrameDecoder,
    pub(super) timer: Timer,
    #[cfg(feature = "tls")]
    cipher: tls::Cipher,
    /// What the bytes come through instead of the socket.
    #[cfg(any(target_os = "linux", target_os = "android"))]
    pub(super) ring: Option<polypool_ipc::RingReader>,
}

impl FrameReader {
    /// Waits for a message and lends its payload; `None` when the peer has ended the connection between two messages.
    ///
    /// With a deadline that has passed it takes what is there and doesn't wait. After [`TransportError::TimedOut`] it
    /// can be called again and goes on where it was.
    pub(crate) fn recv(&mut self, deadline: Option<Instant>) -> Result<Option<&[u8]>, TransportError> {
        let mut read = false;
        loop {
            if let Some(payload) = self.decoder.next()? {
                return Ok(Some(self.decoder.bytes(payload)));
            }
            // A peer that sends a byte at a time makes every read succeed.
            if read {
                self.timer.expired(deadline)?;
            }
            if self.fill(deadline, usize::MAX)? == 0 {
                return if self.decoder.is_empty() { Ok(None) } else { Err(TransportError::Disconnected(None)) };
            }
            read = true;
        }
    }

    /// Whether the next [`recv`](Self::recv) has its message already, so that it makes no system call and doesn't wait.
    pub(crate) fn has_buffered(&mut self) -> bool {
        loop {
            if self.decoder.has_frame() {
                return true;
            }
            #[cfg(any(target_os = "linux", target_os = "android"))]
            if let Some(ring) = &self.ring
                && ring.has_buffered()
            {
                // It was not fetched yet. If that fails, so will `recv`, at once.
                if self.fill(Some(Instant::now()), usize::MAX).is_err() {
                    return true;
                }
                continue;
            }
            return false;
        }
    }

    /// As [`has_buffered`](Self::has_buffered), for somebody who has little time: it fetches `most` bytes at most,
    /// which it counts down, and nothing of a message that is [long](Peek::Long).
    #[cfg_attr(not(any(target_os = "linux", target_os = "android")), allow(unused_variables, clippy::never_loop))]
    pub(crate) fn peek(&mut self, most: &mut usize) -> Peek {
        loop {
            if self.has_long() {
                return Peek::Long;
            }
            if self.decoder.has_frame() {
                return Peek::Message;
            }
            #[cfg(any(target_os = "linux", target_os = "android"))]
            if let Some(ring) = &self.ring
                && ring.has_buffered()
                && *most > 0
            {
                match self.fill(Some(Instant::now()), *most) {
                    Ok(count) => *most -= count,
                    // So will `recv`, at once.
                    Err(_) => return Peek::Message,
                }
                continue;
            }
            return Peek::Nothing;
        }
    }

    /// Whether the next message is a [long](Peek::Long) one, of which some may be still to come.
    pub(crate) fn has_long(&self) -> bool {
        // What is refused isn't waited for.
        self.decoder.announced().is_some_and(|len| len > LONG_LEN && len <= self.decoder.max_message)
    }

    /// Whether [`has_buffered`](Self::has_buffered) knows, without a system call, of all that has come.
    pub(crate) fn is_cheap(&self) -> bool {
        #[cfg(any(target_os = "linux", target_os = "android"))]
        return self.ring.is_some();
        #[cfg(not(any(target_os = "linux", target_os = "android")))]
        false
    }

    /// Reads what there is to read, at least one byte and at most so many, or 0 at the end.
    fn fill(&mut self, deadline: Option<Instant>, most: usize) -> Result<usize, TransportError> {
        let room = self.decoder.room();
        let most = room.len().min(most);
        let room = &mut room[..most];
        #[cfg(any(target_os = "linux", target_os = "android"))]
        if let Some(ring) = &mut self.ring {
            let count = super::ring::read(&self.link, ring, room, deadline)?;
            self.decoder.filled(count);
            return Ok(count);
        }
        #[cfg(feature = "tls")]
        let count = match self.link.tls.get() {
            Some(session) => read_tls(session, &mut self.cipher, &self.link, room, &mut self.timer, deadline)?,
            None => self.link.read(room, &mut self.timer, deadline)?,
        };
        #[cfg(not(feature = "tls"))]
        let count = self.link.read(room, &mut self.timer, deadline)?;
        self.decoder.filled(count);
        Ok(count)
    }

    /// A message of the handshake. What can't become one is refused before it is complete. What follows it is left in
    /// the socket, as it may come with descriptors.
    pub(super) fn exact<const N: usize>(
        &mut self,
        deadline: Instant,
        plausible: impl Fn(&[u8]) -> bool,
    ) -> Result<[u8; N], ConnectError> {
        loop {
            let pending = self.decoder.pending();
            if !plausible(&pending[..pending.len().min(N)]) {
                // One byte is too few to tell TLS from garbage.
                if pending.len() >= 2 || !matches!(pending, [0x14..=0x17]) {
                    let tls = auth::looks_like_tls(pending);
                    return Err(if tls { ConnectError::PeerSpeaksTls } else { ConnectError::NotUnderstood });
                }
            }
            if let Some(message) = self.decoder.take() {
                return Ok(message);
            }
            let missing = N - self.decoder.pending().len();
            match self.fill(Some(deadline), missing) {
                Ok(0) => return Err(ConnectError::Disconnected),
                Ok(_) => {}
                Err(error) => return Err(handshake_error(error)),
            }
            // A byte at a time makes every read succeed, but not for longer than this.
            if Instant::now() >= deadline {
                return Err(ConnectError::TimedOut);
            }
        }
    }
}

#[cfg(feature = "tls")]
fn read_tls(
    session: &tls::Session,
    cipher: &mut tls::Cipher,
    link: &Link,
    room: &mut [u8],
    timer: &mut Timer,
    deadline: Option<Instant>,
) -> Result<usize, TransportError> {
    let mut read = false;
    loop {
        // The session's lock is held in here only, not while the socket is read.
        if let Some(count) = session.decrypt(cipher, room)? {
            return Ok(count);
        }
        if read {
            timer.expired(deadline)?;
        }
        let count = link.read(cipher.room(), timer, deadline)?;
        if count == 0 {
            // TLS says when it ends, so this end wasn't meant by the peer, or was made by somebody else.
            return Err(TransportError::Disconnected(None));
        }
        cipher.filled(count);
        read = true;
    }
}

/// The sending half of a connection. Dropping it tells the peer that nothing more will come. What has been put and not
/// flushed is lost then.
#[derive(Debug)]
pub(crate) struct FrameWriter {
    pub(super) link: Arc<Link>,
    out: Vec<u8>,
    /// `out`, encrypted.
    #[cfg(feature = "tls")]
    records: Vec<u8>,
    max_message: usize,
    timeout: Option<Duration>,
    timer: Timer,
    /// A write has failed, perhaps in the middle of a frame.
    broken: bool,
    /// What the bytes go through instead of the socket.
    #[cfg(any(target_os = "linux", target_os = "android"))]
    pub(super) ring: Option<polypool_ipc::RingWriter>,
}

/// How much [`FrameWriter::put`] gathers before it sends by itself.
const BATCH_LEN: usize = 256 << 10;

/// A payload from here on is sent from where it is; a shorter one is copied behind its header.
const COPIED_LEN: usize = 16 << 10;

impl FrameWriter {
    /// Sends one message, and what has been [`put`](Self::put) before.
    pub(crate) fn send(&mut self, payload: &[u8]) -> Result<(), TransportError> {
        self.header(payload.len())?;
        if payload.len() < COPIED_LEN {
            self.out.extend_from_slice(payload);
            return self.flush();
        }
        let out = std::mem::take(&mut self.out);
        let sent = self.write(&out, payload);
        self.out = out;
        self.out.clear();
        sent
    }

    /// Sends several messages at once. If one is too long, none is sent.
    pub(crate) fn send_many(&mut self, payloads: &[impl AsRef<[u8]>]) -> Result<(), TransportError> {
        if let Some(payload) = payloads.iter().find(|payload| payload.as_ref().len() > self.max_message) {
            return Err(TransportError::TooLong { len: payload.as_ref().len(), max: self.max_message });
        }
        payloads.iter().try_for_each(|payload| self.put(payload.as_ref()))?;
        self.flush()
    }

    /// Takes one message to be sent with the next [`flush`](Self::flush), or earlier if they become many.
    pub(crate) fn put(&mut self, payload: &[u8]) -> Result<(), TransportError> {
        if payload.len() >= COPIED_LEN {
            return self.send(payload);
        }
        self.header(payload.len())?;
        self.out.extend_from_slice(payload);
        if self.out.len() >= BATCH_LEN { self.flush() } else { Ok(()) }
    }

    /// Sends what has been put, if there is anything.
    pub(crate) fn flush(&mut self) -> Result<(), TransportError> {
        if self.out.is_empty() {
            return Ok(());
        }
        let out = std::mem::take(&mut self.out);
        let sent = self.write(&out, &[]);
        self.out = out;
        self.out.clear();
        sent
    }

    /// Whether a small message alone costs no system call as long as the peer is awake, so that gathering several gains
    /// little.
    pub(crate) fn is_cheap(&self) -> bool {
        #[cfg(any(target_os = "linux", target_os = "android"))]
        return self.ring.is_some();
        #[cfg(not(any(target_os = "linux", target_os = "android")))]
        false
    }

    /// How long one send may take from now on, whatever its length; for ever if `None`, as in the beginning. A peer
    /// that doesn't read fills the buffers of the system, and then the sender waits for it.
    pub(crate) fn set_timeout(&mut self, timeout: Option<Duration>) {
        self.timeout = timeout;
    }

    fn header(&mut self, len: usize) -> Result<(), TransportError> {
        match u32::try_from(len) {
            Ok(header) if len <= self.max_message => {
                self.out.extend_from_slice(&header.to_le_bytes());
                Ok(())
            }
            _ => Err(TransportError::TooLong { len, max: self.max_message.min(u32::MAX as usize) }),
        }
    }

    fn write(&mut self, head: &[u8], tail: &[u8]) -> Result<(), TransportError> {
        let deadline = self.timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        self.write_until(head, tail, deadline)
    }

    pub(super) fn write_until(
        &mut self,
        head: &[u8],
        tail: &[u8],
        deadline: Option<Instant>,
    ) -> Result<(), TransportError> {
        if self.broken {
            return Err(if self.link.is_closed() {
                TransportError::Closed
            } else {
                TransportError::Disconnected(None)
            });
        }
        let result = self.write_now(head, tail, deadline);
        self.broken = result.is_err();
        result
    }

    fn write_now(&mut self, head: &[u8], tail: &[u8], deadline: Option<Instant>) -> Result<(), TransportError> {
        #[cfg(any(target_os = "linux", target_os = "android"))]
        if let Some(ring) = &mut self.ring {
            return super::ring::write(&self.link, ring, head, tail, deadline);
        }
        #[cfg(feature = "tls")]
        if let Some(session) = self.link.tls.get() {
            let (link, timer) = (&self.link, &mut self.timer);
            return session
                .encrypt(&[head, tail], &mut self.records, |record| link.write(record, &[], timer, deadline));
        }
        self.link.write(head, tail, &mut self.timer, deadline)
    }
}

impl Drop for FrameWriter {
    fn drop(&mut self) {
        #[cfg(feature = "tls")]
        if let (Some(session), false) = (self.link.tls.get(), self.broken) {
            // Whoever drops doesn't wait for a peer that doesn't read.
            let now = Some(Instant::now());
            let _ = session.close(|record| self.link.write(record, &[], &mut self.timer, now));
        }
        self.link.stream.shutdown(std::net::Shutdown::Write);
    }
}

/// Closes a connection from any thread: who is waiting in it for its peer gets [`TransportError::Closed`], and so does
/// everyone after. It doesn't keep a connection open whose halves are dropped.
#[derive(Clone)]
pub(crate) struct Closer(Weak<Link>);

impl Closer {
    /// Idempotent, and doesn't wait for anything.
    pub(crate) fn close(&self) {
        if let Some(link) = self.0.upgrade() {
            link.close();
        }
    }

    /// Whether nobody can use the connection any more on this side.
    pub(crate) fn is_closed(&self) -> bool {
        self.0.upgrade().is_none_or(|link| link.is_closed())
    }
}

impl fmt::Debug for Closer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Closer").field("closed", &self.is_closed()).finish()
    }
}

/// The halves of a connection.
pub(crate) fn split(link: &Arc<Link>, limits: &Limits) -> (FrameReader, FrameWriter, Closer) {
    let max_message = limits.max_message.min(u32::MAX as usize);
    let reader = FrameReader {
        link: Arc::clone(link),
        decoder: FrameDecoder::new(max_message),
        timer: Timer::default(),
        #[cfg(feature = "tls")]
        cipher: tls::Cipher::default(),
        #[cfg(any(target_os = "linux", target_os = "android"))]
        ring: None,
    };
    let writer = FrameWriter {
        link: Arc::clone(link),
        out: Vec::new(),
        #[cfg(feature = "tls")]
        records: Vec::new(),
        max_message,
        timeout: None,
        timer: Timer::default(),
        broken: false,
        #[cfg(any(target_os = "linux", target_os = "android"))]
        ring: None,
    };
    (reader, writer, Closer(Arc::downgrade(link)))
}

/// Cuts a stream of bytes into frames; does no input or output.
///
/// `buffer[start..end]` has come and is not yet handed out. The buffer grows when it is full, by doubling, so it is
/// never larger than twice what a peer has really sent and a small beginning, whatever length it has announced.
pub(crate) struct FrameDecoder {
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    max_message: usize,
}

pub(crate) const HEADER_LEN: usize = 4;

/// Room for many small messages, or for what a socket gives at a time.
const BUFFER_LEN: usize = 16 << 10;

/// A buffer that has grown beyond this for one large message is given back after it.
const BUFFER_KEPT: usize = 1 << 20;

impl FrameDecoder {
    pub(crate) fn new(max_message: usize) -> Self {
        FrameDecoder { buffer: Vec::new(), start: 0, end: 0, max_message }
    }

    /// Takes a whole frame out, if there is one, and says where its payload is in [`bytes`](Self::bytes).
    pub(crate) fn next(&mut self) -> Result<Option<Range<usize>>, TransportError> {
        let Some(len) = self.announced() else { return Ok(None) };
        if len > self.max_message {
            return Err(TransportError::TooLong { len, max: self.max_message });
        }
        // On 32 bits `len` may be close to the end of `usize`; `max_message` is not trusted to prevent that.
        if self.end - self.start - HEADER_LEN < len {
            return Ok(None);
        }
        let payload = self.start + HEADER_LEN..self.start + HEADER_LEN + len;
        self.start = payload.end;
        Ok(Some(payload))
    }

    pub(crate) fn bytes(&self, range: Range<usize>) -> &[u8] {
        &self.buffer[range]
    }

    /// Whether `next` has an answer other than `None`.
    pub(crate) fn has_frame(&self) -> bool {
        self.announced().is_some_and(|len| len > self.max_message || self.end - self.start - HEADER_LEN >= len)
    }

    /// Whether everything that has come has been handed out.
    pub(crate) fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Where the next bytes are to be written; never empty. To be followed by [`filled`](Self::filled).
    pub(crate) fn room(&mut self) -> &mut [u8] {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
            if self.buffer.len() > BUFFER_KEPT {
                self.buffer = Vec::new();
            }
        }
        if self.buffer.is_empty() {
            self.buffer = vec![0; BUFFER_LEN];
        }
        // Moving is due when the frame begun can't be completed where it is, and pays only at the end of the buffer.
        let needed = self.announced().map_or(HEADER_LEN, |len| HEADER_LEN.saturating_add(len));
        if self.start > 0 && self.end == self.buffer.len() || self.buffer.len() - self.start < needed {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        if self.end == self.buffer.len() {
            let len = self.buffer.len().saturating_mul(2).min(needed.max(self.buffer.len() + BUFFER_LEN));
            self.buffer.resize(len, 0);
        }
        &mut self.buffer[self.end..]
    }

    /// That many bytes have been written to the beginning of [`room`](Self::room).
    pub(crate) fn filled(&mut self, count: usize) {
        self.end += count;
        assert!(self.end <= self.buffer.len(), "more bytes were read than there was room");
    }

    /// What has come and is not handed out.
    pub(crate) fn pending(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    #[cfg(test)]
    pub(super) fn capacity(&self) -> usize {
        self.buffer.len()
    }

    /// Takes bytes out that are not a frame: a message of the handshake.
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let bytes = *self.pending().first_chunk::<N>()?;
        self.start += N;
        Some(bytes)
    }

    fn announced(&self) -> Option<usize> {
        let header = self.pending().first_chunk::<HEADER_LEN>()?;
        Some(usize::try_from(u32::from_le_bytes(*header)).unwrap_or(usize::MAX))
    }
}

impl fmt::Debug for FrameDecoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FrameDecoder")
            .field("pending", &(self.end - self.start))
            .field("capacity", &self.buffer.len())
            .field("max_message", &self.max_message)
            .finish()
    }
}
