//! A socket of either kind, and what goes with it: its deadlines, its closing, its place among the connections.

use std::fmt;
#[cfg(not(any(target_os = "linux", target_os = "android")))]
use std::io::Write as _;
use std::io::{self, IoSlice, Read as _};
use std::net::{TcpStream, ToSocketAddrs as _};
#[cfg(unix)]
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::endpoint::Permit;
use super::{Address, ConnectError, TransportError};
#[cfg(feature = "tls")]
use crate::manager::tls;

/// A socket, and what goes with it.
pub(crate) struct Link {
    pub(super) stream: Stream,
    closed: AtomicBool,
    pub(super) permit: Option<Permit>,
    /// Wakes who waits for room in shared memory.
    #[cfg(any(target_os = "linux", target_os = "android"))]
    pub(super) ring: std::sync::OnceLock<polypool_ipc::RingCloser>,
    #[cfg(feature = "tls")]
    pub(crate) tls: std::sync::OnceLock<tls::Session>,
}

impl Link {
    pub(super) fn new(stream: Stream, permit: Option<Permit>) -> Self {
        Link {
            stream,
            closed: AtomicBool::new(false),
            permit,
            #[cfg(any(target_os = "linux", target_os = "android"))]
            ring: std::sync::OnceLock::new(),
            #[cfg(feature = "tls")]
            tls: std::sync::OnceLock::new(),
        }
    }

    /// Reads something, 0 at the end. Tries at least once, even after the deadline.
    pub(crate) fn read(
        &self,
        room: &mut [u8],
        timer: &mut Timer,
        deadline: Option<Instant>,
    ) -> Result<usize, TransportError> {
        loop {
            timer.arm(deadline, |timeout| self.stream.set_read_timeout(timeout)).map_err(TransportError::Io)?;
            let read = self.stream.read(room);
            // What `shutdown` makes of a read looks like the end of the peer.
            if self.is_closed() {
                return Err(TransportError::Closed);
            }
            match read {
                Ok(count) => return Ok(count),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if is_timeout(&error) => timer.expired(deadline)?,
                Err(error) if is_disconnect(&error) => return Err(TransportError::Disconnected(Some(error))),
                Err(error) => return Err(TransportError::Io(error)),
            }
        }
    }

    /// Writes all of `head` and then of `tail`, in one system call if the socket takes them.
    pub(crate) fn write(
        &self,
        mut head: &[u8],
        mut tail: &[u8],
        timer: &mut Timer,
        deadline: Option<Instant>,
    ) -> Result<(), TransportError> {
        while !(head.is_empty() && tail.is_empty()) {
            if self.is_closed() {
                return Err(TransportError::Closed);
            }
            timer.arm(deadline, |timeout| self.stream.set_write_timeout(timeout)).map_err(TransportError::Io)?;
            match self.stream.write(head, tail) {
                Ok(count) => {
                    let of_head = count.min(head.len());
                    head = &head[of_head..];
                    tail = &tail[count - of_head..];
                    // A peer that takes a byte at a time makes every write succeed.
                    if !(head.is_empty() && tail.is_empty()) {
                        timer.expired(deadline)?;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if is_timeout(&error) => timer.expired(deadline)?,
                Err(_) if self.is_closed() => return Err(TransportError::Closed),
                Err(error) if is_disconnect(&error) => return Err(TransportError::Disconnected(Some(error))),
                Err(error) => return Err(TransportError::Io(error)),
            }
        }
        Ok(())
    }

    /// Removes the timeouts that the timers of somebody else have set.
    #[cfg(any(feature = "tls", target_os = "linux", target_os = "android"))]
    pub(crate) fn clear_timeouts(&self) -> Result<(), TransportError> {
        self.stream.set_read_timeout(None).map_err(TransportError::Io)?;
        self.stream.set_write_timeout(None).map_err(TransportError::Io)
    }

    pub(super) fn close(&self) {
        // The flag is first: who is woken by the shutdown sees it.
        self.closed.store(true, Ordering::SeqCst);
        self.stream.shutdown(std::net::Shutdown::Both);
        #[cfg(any(target_os = "linux", target_os = "android"))]
        if let Some(ring) = self.ring.get() {
            ring.close();
        }
    }

    /// Whether it is a Unix socket.
    pub(super) fn is_local(&self) -> bool {
        !matches!(self.stream, Stream::Tcp(_))
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").field("stream", &self.stream).field("closed", &self.is_closed()).finish_non_exhaustive()
    }
}

/// What remembers the timeout that a socket has in one direction, so that setting it, a system call, is seldom needed.
///
/// A wait is ended by its deadline and not by the socket's timeout, which has only to be short enough: a wait that is
/// woken early looks at the clock and goes on. So when a timeout has to be set, it is set somewhat shorter than needed,
/// and calls with the same timeout, one after the other, find it good.
#[derive(Debug, Default)]
pub(crate) struct Timer {
    set: Option<Duration>,
}

impl Timer {
    pub(super) fn arm(
        &mut self,
        deadline: Option<Instant>,
        set: impl FnOnce(Option<Duration>) -> io::Result<()>,
    ) -> io::Result<()> {
        let want = match deadline {
            None if self.set.is_none() => return Ok(()),
            None => None,
            Some(deadline) => {
                let rest = deadline.saturating_duration_since(Instant::now());
                // Too long would be late; far too short would spin.
                if self.set.is_some_and(|set| set <= rest && set >= rest / 16) {
                    return Ok(());
                }
                // Zero means for ever to the system, and less than one of its ticks may be taken for zero.
                Some((rest - rest / 4).max(Duration::from_millis(1)))
            }
        };
        set(want)?;
        self.set = want;
        Ok(())
    }

    pub(super) fn expired(&self, deadline: Option<Instant>) -> Result<(), TransportError> {
        match deadline {
            Some(deadline) if Instant::now() >= deadline => Err(TransportError::TimedOut),
            _ => Ok(()),
        }
    }
}

pub(crate) enum Stream {
    #[cfg(unix)]
    Unix(UnixStream),
    Tcp(TcpStream),
}

/// Calls a method that both kinds of sockets have.
macro_rules! on_stream {
    ($stream:expr, $bound:ident => $call:expr) => {
        match $stream {
            #[cfg(unix)]
            Stream::Unix($bound) => $call,
            Stream::Tcp($bound) => $call,
        }
    };
}

impl Stream {
    pub(super) fn connect(address: &Address, deadline: Instant) -> Result<Self, ConnectError> {
        let unreachable = |source| ConnectError::Unreachable { address: address.clone(), source };
        match address {
            Address::Tcp { host, port, .. } => {
                let mut last = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
                for candidate in (host.as_str(), *port).to_socket_addrs().map_err(unreachable)? {
                    let rest = deadline.saturating_duration_since(Instant::now());
                    if rest.is_zero() {
                        return Err(ConnectError::TimedOut);
                    }
                    match TcpStream::connect_timeout(&candidate, rest) {
                        Ok(stream) => return Ok(Stream::Tcp(stream)),
                        Err(error) => last = error,
                    }
                }
                Err(if is_timeout(&last) { ConnectError::TimedOut } else { unreachable(last) })
            }
            #[cfg(unix)]
            local => match connect_local(local, deadline) {
                Ok(stream) => Ok(Stream::Unix(stream)),
                Err(error) if is_timeout(&error) => Err(ConnectError::TimedOut),
                Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                    Err(ConnectError::Unsupported { address: address.clone() })
                }
                Err(error) => Err(unreachable(error)),
            },
            #[cfg(not(unix))]
            _ => Err(ConnectError::Unsupported { address: address.clone() }),
        }
    }

    /// The options of a new connection.
    pub(super) fn prepare(&self) -> io::Result<()> {
        on_stream!(self, stream => stream.set_nonblocking(false))?;
        if let Stream::Tcp(stream) = self {
            // A request is one write and waits for its reply; holding it back would only cost time.
            stream.set_nodelay(true)?;
            // A machine that vanished says nothing; asking it notices that in about a minute.
            #[cfg(any(target_os = "linux", target_os = "android"))]
            {
                use rustix::net::sockopt;
                sockopt::set_socket_keepalive(stream, true)?;
                sockopt::set_tcp_keepidle(stream, Duration::from_secs(30))?;
                sockopt::set_tcp_keepintvl(stream, Duration::from_secs(10))?;
                sockopt::set_tcp_keepcnt(stream, 3)?;
            }
        }
        Ok(())
    }

    /// Whether the peer of a Unix socket is this user; where the system can't tell, the file's mode has to do.
    pub(super) fn peer_is_same_user(&self) -> bool {
        match self {
            #[cfg(any(target_os = "linux", target_os = "android"))]
            Stream::Unix(stream) => {
                rustix::net::sockopt::socket_peercred(stream).is_ok_and(|peer| peer.uid == rustix::process::geteuid())
            }
            #[cfg(all(unix, not(any(target_os = "linux", target_os = "android"))))]
            Stream::Unix(_) => true,
            Stream::Tcp(_) => true,
        }
    }

    fn read(&self, room: &mut [u8]) -> io::Result<usize> {
        on_stream!(self, stream => (&*stream).read(room))
    }

    /// Doesn't raise SIGPIPE on Linux, not even in a program that has chosen to die of it.
    fn write(&self, head: &[u8], tail: &[u8]) -> io::Result<usize> {
        #[cfg(any(target_os = "linux", target_os = "android"))]
        {
            use rustix::net::{SendAncillaryBuffer, SendFlags, send, sendmsg};
            let sent = match (head, tail) {
                (one, []) | ([], one) => on_stream!(self, stream => send(stream, one, SendFlags::NOSIGNAL)),
                _ => {
                    let both = [IoSlice::new(head), IoSlice::new(tail)];
                    let mut nothing = SendAncillaryBuffer::default();
                    on_stream!(self, stream => sendmsg(stream, &both, &mut nothing, SendFlags::NOSIGNAL))
                }
            };
            Ok(sent?)
        }
        #[cfg(not(any(target_os = "linux", target_os = "android")))]
        on_stream!(self, stream => (&*stream).write_vectored(&[IoSlice::new(head), IoSlice::new(tail)]))
    }

    pub(super) fn shutdown(&self, how: std::net::Shutdown) {
        // Fails when the peer is gone, which is as good.
        let _ = on_stream!(self, stream => stream.shutdown(how));
    }

    pub(super) fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        on_stream!(self, stream => stream.set_read_timeout(timeout))
    }

    fn set_write_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        on_stream!(self, stream => stream.set_write_timeout(timeout))
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        on_stream!(self, stream => stream.fmt(f))
    }
}

#[cfg(any(target_os = "linux", target_os = "android"))]
pub(crate) fn local_socket() -> io::Result<std::os::fd::OwnedFd> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
    Ok(socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?)
}

/// Connects to a Unix socket. It would wait for a server that doesn't accept, so on Linux the socket's timeout is set.
#[cfg(any(target_os = "linux", target_os = "android"))]
pub(crate) fn connect_local(address: &Address, deadline: Instant) -> io::Result<UnixStream> {
    use rustix::net::SocketAddrUnix;
    use rustix::net::sockopt::{Timeout, set_socket_timeout};

    let to = match address {
        Address::Unix(path) => SocketAddrUnix::new(path)?,
        Address::Abstract(name) => SocketAddrUnix::new_abstract_name(name.as_bytes())?,
        Address::Tcp { .. } => return Err(io::ErrorKind::Unsupported.into()),
    };
    let socket = local_socket()?;
    loop {
        let rest = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        set_socket_timeout(&socket, Timeout::Send, Some(rest))?;
        match rustix::net::connect(&socket, &to) {
            Err(rustix::io::Errno::INTR) => {}
            connected => break connected?,
        }
    }
    set_socket_timeout(&socket, Timeout::Send, None)?;
    Ok(socket.into())
}

#[cfg(all(unix, not(any(target_os = "linux", target_os = "android"))))]
pub(crate) fn connect_local(address: &Address, _deadline: Instant) -> io::Result<UnixStream> {
    match address {
        Address::Unix(path) => UnixStream::connect(path),
        _ => Err(io::ErrorKind::Unsupported.into()),
    }
}

pub(crate) fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

pub(super) fn is_disconnect(error: &io::Error) -> bool {
    use io::ErrorKind::*;
    matches!(error.kind(), BrokenPipe | ConnectionReset | ConnectionAborted | NotConnected | UnexpectedEof | WriteZero)
}
