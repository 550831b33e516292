//! The doorbell: a socket at which one side of a stream sleeps until the other rings, or is gone.
//!
//! Each direction of a stream has a socket pair of its own, with the writer at one end and the reader at the other. The
//! kernel counts the holders of each end, also those that are on their way in a message; when the last has gone,
//! whatever ended it, the other side is woken. That is why this is a socket and not a futex.
//!
//! An end is never switched to non-blocking, as that would be for all its holders: each call says for itself whether it
//! may block.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use async_io::Async;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, Shutdown, recv, send, shutdown};

use crate::travel::Fd;

/// How a sleep ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Woken {
    /// The doorbell has rung, for this sleep or an earlier one: look again.
    Rung,
    /// Nothing has happened by then.
    TimedOut,
    /// The other side has gone, or this end has been closed.
    HungUp,
}

/// One end of the socket pair.
pub(super) struct Bell {
    /// Made when the first future sleeps here. Before `fd`, so that it is taken from the reactor before it closes.
    source: OnceLock<Async<Fd>>,
    fd: Fd,
    closed: AtomicBool,
}

impl Bell {
    pub(super) fn new(fd: Fd) -> Self {
        Bell { source: OnceLock::new(), fd, closed: AtomicBool::new(false) }
    }

    pub(super) fn fd(&self) -> &Fd {
        &self.fd
    }

    /// Rings at the other end. A socket that is full has bells enough in it.
    pub(super) fn ring(&self) -> io::Result<()> {
        loop {
            return match send(&self.fd, &[1], SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                Err(Errno::INTR) => continue,
                Ok(_) | Err(Errno::AGAIN) => Ok(()),
                Err(error) => Err(error.into()),
            };
        }
    }

    /// Takes the bells that have rung, without sleeping.
    pub(super) fn look(&self) -> io::Result<Woken> {
        self.take(RecvFlags::DONTWAIT)
    }

    /// Sleeps until it rings.
    pub(super) fn sleep(&self, until: Option<Instant>) -> io::Result<Woken> {
        if until.is_none() {
            match self.take(RecvFlags::empty())? {
                // A holder has made the socket non-blocking, against our custom.
                Woken::TimedOut => {}
                woken => return Ok(woken),
            }
        }
        if poll_fd(self.fd.as_fd(), PollFlags::IN, until)? { self.look() } else { Ok(Woken::TimedOut) }
    }

    /// Sleeps until it rings, as a future.
    pub(super) async fn sleep_async(&self) -> io::Result<Woken> {
        let source = match self.source.get() {
            Some(source) => source,
            None => {
                let source = Async::new_nonblocking(self.fd.clone())?;
                // Only one sleeps at a time, as long as nobody lies; should there be two sources, the second can't be
                // registered.
                self.source.get_or_init(|| source)
            }
        };
        source.readable().await?;
        self.look()
    }

    /// Whether the other side has gone. Takes nothing.
    pub(super) fn is_hung_up(&self) -> bool {
        self.is_closed()
            || matches!(poll_once(self.fd.as_fd(), PollFlags::empty()), Ok(found) if found.intersects(PollFlags::HUP | PollFlags::ERR))
    }

    /// Closes this end for everybody who holds it, and wakes who sleeps at it or at the other one.
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        // Fails only if it is no socket, or the other end has gone.
        let _ = shutdown(&self.fd, Shutdown::Both);
    }

    /// Whether this handle has been closed.
    #[inline]
    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }

    fn take(&self, flags: RecvFlags) -> io::Result<Woken> {
        loop {
            let mut bells = [0; 64];
            return match recv(&self.fd, &mut bells[..], flags) {
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) => Ok(Woken::TimedOut),
                // Reset: it has closed its end with bells in it that it had not heard.
                Ok((_, 0)) | Err(Errno::CONNRESET | Errno::PIPE | Errno::NOTCONN) => Ok(Woken::HungUp),
                Ok(_) => Ok(Woken::Rung),
                Err(error) => Err(error.into()),
            };
        }
    }
}

/// Waits for an event of a descriptor; `false` if there was none by `until`.
pub(super) fn poll_fd(fd: BorrowedFd<'_>, events: PollFlags, until: Option<Instant>) -> io::Result<bool> {
    loop {
        let left = until.map(|until| {
            let left = until.saturating_duration_since(Instant::now());
            Timespec {
                tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: i64::from(left.subsec_nanos()),
            }
        });
        match poll(&mut [PollFd::new(&fd, events)], left.as_ref()) {
            Err(Errno::INTR) => {}
            Ok(count) => return Ok(count > 0),
            Err(error) => return Err(error.into()),
        }
    }
}

fn poll_once(fd: BorrowedFd<'_>, events: PollFlags) -> Result<PollFlags, Errno> {
    let mut fds = [PollFd::new(&fd, events)];
    loop {
        match poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })) {
            Err(Errno::INTR) => {}
            Ok(_) => return Ok(fds[0].revents()),
            Err(error) => return Err(error),
        }
    }
}
