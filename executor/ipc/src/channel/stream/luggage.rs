//! Descriptors that belong to messages: parcels on a socket beside the ring.
//!
//! A message's luggage is sent before the message is published, so it is there when the reader wants it. Each parcel
//! has the number that the message's header names. Parcels of messages that were never finished (their sender was
//! killed or gave up in between) have numbers of their own and are passed over, so luggage and messages can't get out
//! of step. What no message has announced is not received.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};

use crate::carry::LuggageError;
use crate::fds::MOST_DESCRIPTORS;
use crate::travel::{Fd, Luggage};

/// The number of the luggage, and which of its parcels this is.
const LABEL: usize = 16;

/// How many parcels that nobody waits for any more are passed over for one message. A few are left by each sender that
/// is killed; more come from a liar.
const MOST_STALE: usize = 4_096;

/// A socket pair that keeps parcels apart.
pub(super) fn pair() -> io::Result<(Fd, Fd)> {
    let (one, two) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    Ok((Fd::new(one), Fd::new(two)))
}

/// How sending a parcel went.
pub(super) enum Sent {
    All,
    /// The socket is full: again when it can be written to.
    Full,
}

/// Sends what is left of the luggage; `parcels` counts those that have gone.
pub(super) fn send(socket: BorrowedFd<'_>, luggage: &Luggage, id: u64, parcels: &mut usize) -> Result<Sent, Errno> {
    loop {
        let fds: Vec<BorrowedFd<'_>> = luggage.fds().skip(*parcels * MOST_DESCRIPTORS).take(MOST_DESCRIPTORS).collect();
        if fds.is_empty() {
            return Ok(Sent::All);
        }
        let mut label = [0; LABEL];
        label[..8].copy_from_slice(&id.to_le_bytes());
        label[8..].copy_from_slice(&(*parcels as u64).to_le_bytes());
        let rights = SendAncillaryMessage::ScmRights(&fds);
        let mut space = vec![MaybeUninit::uninit(); rights.size()];
        let mut control = SendAncillaryBuffer::new(&mut space);
        control.push(rights);
        match sendmsg(socket, &[IoSlice::new(&label)], &mut control, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
            Ok(_) => *parcels += 1,
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => return Ok(Sent::Full),
            Err(error) => return Err(error),
        }
    }
}

/// Receives the luggage with that number, which has `count` descriptors. Never blocks.
pub(super) fn receive(socket: BorrowedFd<'_>, count: usize, id: u64) -> Result<Luggage, LuggageError> {
    let mut fds: Vec<OwnedFd> = Vec::new();
    let mut stale = 0;
    let mut index = 0_u64;
    while fds.len() < count {
        let expected = (count - fds.len()).min(MOST_DESCRIPTORS);
        let mut label = [0; LABEL + 1];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_DESCRIPTORS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let (bytes, cut) = match recvmsg(socket, &mut [IoSliceMut::new(&mut label)], &mut control, flags) {
            Ok(message) => (message.bytes, message.flags.contains(ReturnFlags::CTRUNC)),
            Err(Errno::INTR) => continue,
            Err(Errno::AGAIN) => return Err(broken("they have not been sent")),
            Err(error) => return Err(LuggageError::Broken(error.into())),
        };
        // Owned before anything is checked, so that a refusal closes them.
        let mut parcel = Vec::new();
        for part in control.drain() {
            if let RecvAncillaryMessage::ScmRights(received) = part {
                parcel.extend(received);
            }
        }
        if bytes != LABEL {
            return Err(broken(if bytes == 0 { "the peer has gone" } else { "a parcel has no label" }));
        }
        let (its, place) = label[..LABEL].split_at(8);
        let distance = u64::from_le_bytes(its.try_into().unwrap_or_default()).wrapping_sub(id).cast_signed();
        if distance < 0 {
            stale += 1;
            if stale > MOST_STALE {
                return Err(broken("too many parcels belong to no message"));
            }
            continue;
        }
        if distance > 0 || place != index.to_le_bytes() {
            return Err(broken("a parcel is missing"));
        }
        if cut {
            return Err(LuggageError::NoRoom);
        }
        if parcel.len() != expected {
            return Err(broken("a parcel has another number of descriptors than announced"));
        }
        fds.extend(parcel);
        index += 1;
    }
    Ok(Luggage::new(fds))
}

fn broken(text: &'static str) -> LuggageError {
    LuggageError::Broken(io::Error::new(io::ErrorKind::InvalidData, text))
}
