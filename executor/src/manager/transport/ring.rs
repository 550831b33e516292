//! A Unix socket that continues through shared memory.
//!
//! A client says in its hello that it could, and the server in its own whether it would: whether there is a place among
//! [`max_rings`](super::Limits::max_rings). Both hellos are under the handshake's proof. When that is through, the
//! server makes the memory and sends it, or says that it could not:
//!
//! ```text
//! client                                             server
//!                          ◀───   HERE, with two descriptors    or NOT
//!   TAKEN    or DECLINED   ───▶
//! ```
//!
//! After TAKEN the socket carries only the bells of [`RingSocket`]; otherwise it goes on as it was. So a peer that
//! doesn't know of this, has no descriptors left or can't map the memory, costs speed and nothing else. A peer that
//! says nothing here runs into the deadline of the handshake.
//!
//! The memory stays with a connection as long as it lives, and is bounded: `max_rings` connections of two rings of
//! [`ring_len`](super::Limits::ring_len) bytes. They count among the connections like all others.

use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use polypool_ipc::{RingReader, RingSocket, RingWriter, recv_with_fds, send_with_fds};

use super::frame::{FrameReader, FrameWriter};
use super::link::{Link, Stream, is_disconnect, is_timeout};
use super::{ConnectError, TransportError, handshake_error};

const HERE: u8 = 1;
const NOT: u8 = 2;
const TAKEN: u8 = 3;
const DECLINED: u8 = 4;

/// The server's part. Whether the connection goes through shared memory from now on.
pub(super) fn offer(
    reader: &mut FrameReader,
    writer: &mut FrameWriter,
    ring_len: usize,
    deadline: Instant,
) -> Result<bool, ConnectError> {
    let socket = local(&reader.link)?;
    let made = RingSocket::create(ring_len).and_then(|(ring, luggage)| {
        // A byte finds room: the client has read everything up to here, or it couldn't have come so far.
        send_with_fds(socket, &[HERE], &luggage.each_ref().map(|fd| fd.as_fd()))?;
        Ok(ring)
    });
    let Ok(ring) = made else {
        // The system has no descriptors to give, or carries no more of them; the byte has not gone either.
        writer.write_until(&[NOT], &[], Some(deadline)).map_err(handshake_error)?;
        return Ok(false);
    };
    match reader.exact(deadline, |answer| matches!(answer, [] | [TAKEN | DECLINED]))? {
        [TAKEN] => begin(ring, reader, writer).map(|()| true),
        _ => Ok(false),
    }
}

/// The client's part.
pub(super) fn join(reader: &mut FrameReader, writer: &mut FrameWriter, deadline: Instant) -> Result<(), ConnectError> {
    let mut say = |answer: u8| writer.write_until(&[answer], &[], Some(deadline)).map_err(handshake_error);
    let mut byte = [0];
    let (link, timer) = (&reader.link, &mut reader.timer);
    let luggage = loop {
        timer.arm(Some(deadline), |timeout| link.stream.set_read_timeout(timeout)).map_err(ConnectError::Io)?;
        match recv_with_fds(local(link)?, &mut byte, 2) {
            Ok((0, _)) => return Err(ConnectError::Disconnected),
            Ok((_, luggage)) => break luggage,
            // They came, but this process can't have them.
            Err(error) if error.kind() == std::io::ErrorKind::InvalidData => return say(DECLINED),
            Err(error) if is_timeout(&error) => timer.expired(Some(deadline)).map_err(handshake_error)?,
            Err(error) if is_disconnect(&error) => return Err(ConnectError::Disconnected),
            Err(error) => return Err(ConnectError::Io(error)),
        }
    };
    match byte {
        [NOT] => Ok(()),
        [HERE] => match RingSocket::join(luggage) {
            Ok(ring) => {
                say(TAKEN)?;
                begin(ring, reader, writer)
            }
            Err(_) => say(DECLINED),
        },
        _ => Err(ConnectError::NotUnderstood),
    }
}

fn begin(ring: RingSocket, reader: &mut FrameReader, writer: &mut FrameWriter) -> Result<(), ConnectError> {
    // Those of the handshake; from now on whoever sleeps at the socket says for how long.
    reader.link.clear_timeouts().map_err(handshake_error)?;
    let _ = reader.link.ring.set(ring.closer());
    if reader.link.is_closed() {
        return Err(ConnectError::Disconnected);
    }
    let (receive, send) = ring.split();
    (reader.ring, writer.ring) = (Some(receive), Some(send));
    Ok(())
}

/// Reads something, 0 at the end.
pub(super) fn read(
    link: &Link,
    ring: &mut RingReader,
    room: &mut [u8],
    deadline: Option<Instant>,
) -> Result<usize, TransportError> {
    let read = ring.read(socket(link)?, room, deadline);
    // What `shutdown` makes of a read looks like the end of the peer.
    if link.is_closed() {
        return Err(TransportError::Closed);
    }
    read.map_err(|error| explain(link, error))
}

/// Writes all of `head` and then of `tail`.
pub(super) fn write(
    link: &Link,
    ring: &mut RingWriter,
    head: &[u8],
    tail: &[u8],
    deadline: Option<Instant>,
) -> Result<(), TransportError> {
    if link.is_closed() {
        return Err(TransportError::Closed);
    }
    ring.write(socket(link)?, &[head, tail], deadline).map_err(|error| explain(link, error))
}

fn explain(link: &Link, error: std::io::Error) -> TransportError {
    match error.kind() {
        _ if link.is_closed() => TransportError::Closed,
        std::io::ErrorKind::TimedOut => TransportError::TimedOut,
        std::io::ErrorKind::InvalidData => TransportError::Corrupt(error),
        _ if is_disconnect(&error) => TransportError::Disconnected(Some(error)),
        _ => TransportError::Io(error),
    }
}

fn socket(link: &Link) -> Result<BorrowedFd<'_>, TransportError> {
    match &link.stream {
        Stream::Unix(socket) => Ok(socket.as_fd()),
        Stream::Tcp(_) => Err(TransportError::Closed),
    }
}

fn local(link: &Link) -> Result<&UnixStream, ConnectError> {
    match &link.stream {
        Stream::Unix(socket) => Ok(socket),
        Stream::Tcp(_) => Err(ConnectError::NotUnderstood),
    }
}

/// A connection through shared memory, of which this side is ours and the other one is whatever a fuzz target makes of
/// it: the memory itself, and the ends of the two sockets.
#[cfg(any(fuzzing, test))]
pub(in crate::manager) fn with_a_liar(
    limits: &super::Limits,
) -> std::io::Result<(FrameReader, FrameWriter, std::fs::File, UnixStream, UnixStream)> {
    let (ours, theirs) = UnixStream::pair()?;
    let link = std::sync::Arc::new(Link::new(Stream::Unix(ours), None));
    let (mut reader, mut writer, _) = super::frame::split(&link, limits);
    let (ring, [memory, room]) = RingSocket::create(limits.ring_len)?;
    begin(ring, &mut reader, &mut writer).map_err(std::io::Error::from)?;
    Ok((reader, writer, memory.into(), theirs, room.into()))
}
