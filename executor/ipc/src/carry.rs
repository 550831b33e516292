//! Luggage through a socket of its own, beside the one that the messages go through.
//!
//! Descriptors that travel with the bytes of a stream must be expected with every read of it, also by those who never
//! send any. On a second socket they cost nothing while there are none: the message says how many belong to it, and
//! only then does the receiver look. What nobody has announced is never received, so a peer that sends it fills no
//! table but the system's own.
//!
//! ```text
//!   sender:    luggage ─── parcels of up to 253 descriptors, one byte each ──▶ receiver, when the message has said how many
//!              message ─── "with 600 descriptors" ... ───────────────────────▶
//! ```
//!
//! The luggage is sent first, so that it is there when the message is. Both sides compute the parcels from the number,
//! and a parcel that the system won't carry is replaced by one that says so: the two stay in step, and the message
//! alone is spoiled.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};

use crate::fds::{MOST_DESCRIPTORS, receive, retry, send_with_fds};
use crate::travel::Luggage;

/// A parcel with descriptors.
const FULL: u8 = b'+';
/// A parcel whose descriptors could not be sent.
const EMPTY: u8 = b'-';

/// For how long a system that says "too many descriptors are on their way" is asked again.
const PATIENCE: Duration = Duration::from_secs(2);

/// Why a message arrived without its luggage.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LuggageError {
    /// The receiving process has as many descriptors as it may have. The luggage is lost; what follows is not.
    #[error("the receiving process has too many open descriptors to take them")]
    NoRoom,
    /// The sender's system did not carry it. The luggage is lost; what follows is not.
    #[error("the system did not carry them, as when too many descriptors are on their way at once")]
    NotSent,
    /// The peer has sent something else than it has announced, or nothing: the socket is of no further use.
    #[error("its descriptors are not those that were announced: {0}")]
    Broken(#[source] io::Error),
}

impl Luggage {
    /// Makes the luggage ready to be sent, by [`Sending::proceed`].
    #[must_use = "nothing is sent until `proceed` is called"]
    pub fn sending(self) -> Sending {
        Sending { luggage: self, sent: 0, refused_since: None, given_up: false }
    }

    /// Receives the luggage of a message that has announced `count` descriptors. Never keeps more than that.
    ///
    /// Blocks on a blocking socket. On a non-blocking one, what is not there yet is [`LuggageError::Broken`]: a sender
    /// sends the luggage before the message.
    ///
    /// # Errors
    ///
    /// See [`LuggageError`]. Whatever has been received of the luggage is closed.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::os::fd::OwnedFd;
    /// use std::os::unix::net::UnixStream;
    /// use polypool_ipc::Luggage;
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let (here, there) = UnixStream::pair()?;
    /// let (one, two) = UnixStream::pair()?;
    /// let luggage = Luggage::new(vec![OwnedFd::from(one), OwnedFd::from(two)]);
    /// assert!(luggage.sending().proceed(&here)?, "all is sent");
    /// assert_eq!(Luggage::receive(&there, 2)?.len(), 2);
    /// # Ok(())
    /// # }
    /// ```
    pub fn receive(socket: impl AsFd, count: usize) -> Result<Luggage, LuggageError> {
        let socket = socket.as_fd();
        let mut fds = Vec::new();
        let mut left = count;
        while left > 0 {
            let expected = left.min(MOST_DESCRIPTORS);
            let mut byte = [0];
            // Space for as many as can come at all, so that being cut off has one reason: this process can't have them.
            let parcel = receive(socket, &mut byte, MOST_DESCRIPTORS).map_err(LuggageError::Broken)?;
            left -= expected;
            let lost = match (parcel.bytes, byte[0]) {
                (0, _) => return Err(broken(io::ErrorKind::UnexpectedEof, "the peer has closed its socket")),
                (_, FULL) if parcel.cut => LuggageError::NoRoom,
                (_, FULL) if parcel.fds.len() == expected => {
                    fds.extend(parcel.fds);
                    continue;
                }
                (_, EMPTY) if !parcel.cut && parcel.fds.is_empty() => LuggageError::NotSent,
                _ => {
                    let found = parcel.fds.len();
                    let text = format!("{found} in a parcel that should have {expected}");
                    return Err(broken(io::ErrorKind::InvalidData, &text));
                }
            };
            drop((parcel.fds, std::mem::take(&mut fds)));
            Luggage::discard(socket, left).map_err(LuggageError::Broken)?;
            return Err(lost);
        }
        Ok(Luggage::new(fds))
    }

    /// Passes over the luggage of a message that nobody will read: it is closed without ever having been received.
    ///
    /// # Errors
    ///
    /// What the system says; [`UnexpectedEof`](io::ErrorKind::UnexpectedEof) when the peer has closed its socket.
    pub fn discard(socket: impl AsFd, count: usize) -> io::Result<()> {
        for _ in 0..count.div_ceil(MOST_DESCRIPTORS) {
            let mut byte = [0];
            // A read without space for descriptors makes the system drop them.
            if retry(|| recv(&socket, &mut byte[..], RecvFlags::empty()).map(|(_, bytes)| bytes))? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(())
    }
}

fn broken(kind: io::ErrorKind, text: &str) -> LuggageError {
    LuggageError::Broken(io::Error::new(kind, text.to_owned()))
}

/// Luggage on its way; from [`Luggage::sending`].
#[must_use = "nothing is sent until `proceed` is called"]
pub struct Sending {
    luggage: Luggage,
    /// How many descriptors have gone, or have been given up.
    sent: usize,
    /// Since when the system has said that too many are on their way.
    refused_since: Option<Instant>,
    /// The rest goes as empty parcels.
    given_up: bool,
}

impl Sending {
    /// Sends as much as possible. `true`: all has gone, and the message can follow. `false`: call it again later, when
    /// the peer has received something, or after some milliseconds.
    ///
    /// When the system refuses to carry the descriptors, at once or for two seconds because too many are on their way,
    /// the rest goes as parcels without any, and the receiver gets [`LuggageError::NotSent`] for this message.
    ///
    /// # Errors
    ///
    /// [`BrokenPipe`](io::ErrorKind::BrokenPipe) or [`ConnectionReset`](io::ErrorKind::ConnectionReset): the peer has
    /// gone.
    pub fn proceed(&mut self, socket: impl AsFd) -> io::Result<bool> {
        let socket = socket.as_fd();
        while self.sent < self.luggage.len() {
            let fds: Vec<BorrowedFd<'_>> = self.luggage.fds().skip(self.sent).take(MOST_DESCRIPTORS).collect();
            let result = if self.given_up {
                send_with_fds(socket, &[EMPTY], &[]).map_err(|error| match error.kind() {
                    io::ErrorKind::WouldBlock => error,
                    // If not even a byte can be sent, nothing can.
                    _ => io::ErrorKind::BrokenPipe.into(),
                })
            } else {
                send_with_fds(socket, &[FULL], &fds)
            };
            let parcel = fds.len();
            match result {
                Ok(()) => {
                    self.sent += parcel;
                    self.refused_since = None;
                }
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock => return Ok(false),
                    io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => return Err(error),
                    _ => {
                        let may_pass = [Errno::TOOMANYREFS, Errno::NOBUFS, Errno::NOMEM]
                            .iter()
                            .any(|errno| error.raw_os_error() == Some(errno.raw_os_error()));
                        if may_pass && self.refused_since.get_or_insert_with(Instant::now).elapsed() < PATIENCE {
                            return Ok(false);
                        }
                        self.given_up = true;
                    }
                },
            }
        }
        Ok(true)
    }
}

impl fmt::Debug for Sending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sending").field("descriptors", &self.luggage.len()).field("sent", &self.sent).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write as _;
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    fn luggage(count: usize) -> Luggage {
        let null = OwnedFd::from(File::open("/dev/null").expect("/dev/null"));
        Luggage::new((0..count).map(|_| null.try_clone().expect("a copy")).collect())
    }

    #[test]
    fn every_number_arrives_whole_and_in_step() {
        let (here, there) = UnixStream::pair().expect("a pair");
        for count in [0, 1, 252, 253, 254, 506, 507, 600, 1] {
            assert!(luggage(count).sending().proceed(&here).expect("sent"));
            assert_eq!(Luggage::receive(&there, count).expect("received").len(), count);
        }
    }

    #[test]
    fn a_full_socket_is_gone_on_with() {
        let (here, there) = UnixStream::pair().expect("a pair");
        here.set_nonblocking(true).expect("set");
        let mut waiting = Vec::new();
        // Until nothing more goes in; one descriptor each, so that their number is no matter.
        let mut stuck = loop {
            let mut one = luggage(1).sending();
            if !one.proceed(&here).expect("sent") {
                break one;
            }
            waiting.push(());
        };
        assert!(!stuck.proceed(&here).expect("still full"));
        for () in waiting {
            assert_eq!(Luggage::receive(&there, 1).expect("received").len(), 1);
        }
        assert!(stuck.proceed(&here).expect("sent"));
        assert_eq!(Luggage::receive(&there, 1).expect("received").len(), 1);
    }

    #[test]
    fn what_was_not_sent_spoils_its_message_and_no_other() {
        let (here, there) = UnixStream::pair().expect("a pair");
        let mut lost = luggage(600).sending();
        lost.given_up = true;
        assert!(lost.proceed(&here).expect("said"));
        assert!(luggage(2).sending().proceed(&here).expect("sent"));
        assert!(matches!(Luggage::receive(&there, 600), Err(LuggageError::NotSent)));
        assert_eq!(Luggage::receive(&there, 2).expect("received").len(), 2);
    }

    #[test]
    fn passed_over_luggage_leaves_the_next_one_in_place() {
        let (here, there) = UnixStream::pair().expect("a pair");
        assert!(luggage(300).sending().proceed(&here).expect("sent"));
        assert!(luggage(3).sending().proceed(&here).expect("sent"));
        Luggage::discard(&there, 300).expect("passed over");
        assert_eq!(Luggage::receive(&there, 3).expect("received").len(), 3);
    }

    #[test]
    fn fewer_and_more_than_announced_are_errors() {
        for (sent, announced) in [(1, 2), (3, 2), (253, 1)] {
            let (here, there) = UnixStream::pair().expect("a pair");
            assert!(luggage(sent).sending().proceed(&here).expect("sent"));
            let error = Luggage::receive(&there, announced).expect_err("refused");
            assert!(matches!(error, LuggageError::Broken(_)), "{error}");
        }
        let (mut here, there) = UnixStream::pair().expect("a pair");
        there.set_nonblocking(true).expect("set");
        assert!(matches!(Luggage::receive(&there, 1), Err(LuggageError::Broken(_))), "nothing there");
        here.write_all(b"?").expect("written");
        assert!(matches!(Luggage::receive(&there, 1), Err(LuggageError::Broken(_))), "no parcel");
        drop(here);
        assert!(matches!(Luggage::receive(&there, 1), Err(LuggageError::Broken(_))), "the end");
    }
}
