//! Descriptors as luggage of bytes: a Unix stream socket carries them from one process to another.
//!
//! The descriptors travel with the first byte of a message, and a receiver gets them with the read that takes this
//! byte. How long a message is, and how many descriptors belong to it, is for the two sides to agree.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::{Errno, FdFlags, fcntl_setfd};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage, recvmsg, send,
    sendmsg,
};

use crate::sys::{RECV_FLAGS, SEND_FLAGS};

/// What Linux carries in one message; other systems are no more generous.
pub(crate) const MOST_DESCRIPTORS: usize = 253;

/// Sends all of `bytes` over a blocking Unix stream socket, and `fds` with the first of them. The sender keeps its own
/// descriptors, and may close them at once.
///
/// # Errors
///
/// [`InvalidInput`](io::ErrorKind::InvalidInput) if `bytes` is empty, as descriptors can't travel alone, or for more
/// than 253 descriptors; otherwise what the system says, and then part of the message may have been sent, so that the
/// socket is of no further use. On a non-blocking socket that may be [`WouldBlock`](io::ErrorKind::WouldBlock).
///
/// On Linux a peer that has hung up is [`BrokenPipe`](io::ErrorKind::BrokenPipe); elsewhere it's also SIGPIPE, unless
/// [ignored](crate::ignore_sigpipe), as std does for every program.
pub fn send_with_fds(socket: impl AsFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let socket = socket.as_fd();
    if bytes.is_empty() {
        return Err(invalid("descriptors can't be sent without at least one byte".into()));
    }
    if fds.len() > MOST_DESCRIPTORS {
        let (given, most) = (fds.len(), MOST_DESCRIPTORS);
        return Err(invalid(format!("{given} descriptors in one message, but it takes at most {most}")));
    }

    let mut sent = 0;
    if !fds.is_empty() {
        let luggage = SendAncillaryMessage::ScmRights(fds);
        let mut space = vec![MaybeUninit::uninit(); luggage.size()];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !control.push(luggage) {
            return Err(io::Error::other("no room for the descriptors in a message"));
        }
        sent = retry(|| sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SEND_FLAGS))?;
    }
    // A short write has taken the descriptors along; the rest are mere bytes.
    while sent < bytes.len() {
        sent += retry(|| send(socket, &bytes[sent..], SEND_FLAGS))?;
    }
    Ok(())
}

/// Receives some bytes, at least one unless the peer has hung up, and the descriptors that come with them.
///
/// Returns how many bytes stand in `buf` (zero at the end of the stream) and the descriptors, which are close-on-exec.
/// (On macOS that flag is set a moment after they arrive, so a process that another thread starts just then inherits
/// them.)
///
/// # Errors
///
/// [`InvalidInput`](io::ErrorKind::InvalidInput) if `buf` is empty or `max_fds` greater than 253;
/// [`InvalidData`](io::ErrorKind::InvalidData) if more than `max_fds` descriptors came: then all are closed and the
/// bytes are lost. Otherwise what the system says.
pub fn recv_with_fds(socket: impl AsFd, buf: &mut [u8], max_fds: usize) -> io::Result<(usize, Vec<OwnedFd>)> {
    let socket = socket.as_fd();
    if buf.is_empty() {
        return Err(invalid("an empty buffer can't receive a message".into()));
    }
    if max_fds > MOST_DESCRIPTORS {
        return Err(invalid(format!("no message carries {max_fds} descriptors, only {MOST_DESCRIPTORS}")));
    }

    let received = receive(socket, buf, max_fds)?;
    // The space is rounded up, so one too many may arrive whole; more than that are cut off.
    if received.cut || received.fds.len() > max_fds {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("a message came with more than the {max_fds} descriptors that belong to it"),
        ));
    }
    Ok((received.bytes, received.fds))
}

/// What one read of a socket gave.
pub(crate) struct Received {
    /// How many bytes; none at the end of the stream.
    pub(crate) bytes: usize,
    pub(crate) fds: Vec<OwnedFd>,
    /// Whether more descriptors came than there was space for, in the buffer or in this process.
    pub(crate) cut: bool,
}

/// Receives some bytes and the descriptors that come with them, of which there is space for `max_fds` and a few more.
pub(crate) fn receive(socket: BorrowedFd<'_>, buf: &mut [u8], max_fds: usize) -> io::Result<Received> {
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(max_fds))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let message = retry(|| recvmsg(socket, &mut [IoSliceMut::new(buf)], &mut control, RECV_FLAGS))?;

    // Owned before anything is checked, so that a refusal closes them.
    let mut fds = Vec::new();
    for part in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = part {
            fds.extend(received);
        }
    }
    for fd in &fds {
        if !cfg!(any(target_os = "linux", target_os = "android")) {
            fcntl_setfd(fd, FdFlags::CLOEXEC)?;
        }
    }
    Ok(Received { bytes: message.bytes, fds, cut: message.flags.contains(ReturnFlags::CTRUNC) })
}

/// Again, as long as only a signal came between.
pub(crate) fn retry<T>(mut call: impl FnMut() -> Result<T, Errno>) -> io::Result<T> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            other => return Ok(other?),
        }
    }
}

fn invalid(message: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, message)
}
