//! The server's end: listening, letting in, and finding out who it is.

use std::collections::HashMap;
use std::io;
#[cfg(unix)]
use std::io::Write as _;
use std::net::TcpListener;
#[cfg(not(unix))]
use std::net::TcpStream;
#[cfg(unix)]
use std::os::fd::{AsFd, BorrowedFd};
#[cfg(unix)]
use std::os::unix::net::{UnixListener, UnixStream};
#[cfg(unix)]
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::frame::{Closer, FrameReader, FrameWriter, split};
#[cfg(unix)]
use super::link::connect_local;
#[cfg(any(target_os = "linux", target_os = "android"))]
use super::link::local_socket;
use super::link::{Link, Stream, Timer};
use super::{Address, BindTo, ConnectError, Limits, ServerSecurity, after, fresh_nonce, handshake_error};
use crate::manager::auth::{self, ServerStep};
#[cfg(feature = "tls")]
use crate::manager::tls;

/// A place where a manager listens. Dropping it closes it.
#[derive(Debug)]
pub(crate) struct Endpoint {
    /// Gone when it is closed. Who waits in `accept` has another owner, and lets go of it when woken.
    listener: Mutex<Option<Arc<Listener>>>,
    address: Address,
    gate: Arc<Gate>,
    security: ServerSecurity,
    limits: Limits,
    /// What is to be removed from the file system.
    place: Mutex<Option<Place>>,
    #[cfg(unix)]
    wake: (UnixStream, UnixStream),
}

impl Endpoint {
    /// Begins to listen.
    ///
    /// The error has a [`ConnectError`] inside where the reason is one of ours: no key for TCP, no certificate for TLS.
    pub(crate) fn bind(to: &BindTo, security: &ServerSecurity, limits: &Limits) -> io::Result<Endpoint> {
        #[cfg(unix)]
        let wake = {
            let wake = UnixStream::pair()?;
            wake.1.set_nonblocking(true)?;
            wake
        };
        let (listener, address, place) = match to {
            BindTo::Tcp { host, port, tls } => {
                let (listener, address) = bind_tcp(host, *port, *tls, security)?;
                (listener, address, None)
            }
            #[cfg(unix)]
            local => bind_local(local)?,
            #[cfg(not(unix))]
            _ => {
                return Err(io::Error::new(io::ErrorKind::Unsupported, "this system has no Unix sockets for managers"));
            }
        };
        Ok(Endpoint {
            listener: Mutex::new(Some(Arc::new(listener))),
            address,
            gate: Arc::default(),
            security: security.clone(),
            limits: limits.clone(),
            place: Mutex::new(place),
            #[cfg(unix)]
            wake,
        })
    }

    /// Where it listens; with the port that was found where any was asked for.
    pub(crate) fn address(&self) -> Address {
        self.address.clone()
    }

    /// Waits for somebody to connect.
    ///
    /// Those beyond the limits are turned away here. When the system is out of descriptors or memory, it waits and
    /// tries again. An error is for good; after [`close`](Self::close) it is of the kind `NotConnected`.
    pub(crate) fn accept(&self) -> io::Result<Accepted> {
        let listener = self.listener.lock().clone().ok_or_else(closed_endpoint)?;
        loop {
            self.wait_for_connection(&listener)?;
            let stream = match listener.accept() {
                Ok(stream) => stream,
                Err(error) if retry_accept(&error) => continue,
                Err(error) if is_exhaustion(&error) => {
                    self.gate.pause(Duration::from_millis(50));
                    continue;
                }
                Err(error) => return Err(error),
            };
            // The peer may be gone again, which is no reason to stop.
            if stream.prepare().is_err() {
                continue;
            }
            let deadline = after(self.limits.handshake_timeout);
            match Gate::admit(&self.gate, stream, &self.limits) {
                Ok(link) => {
                    return Ok(Accepted {
                        link,
                        security: self.security.clone(),
                        limits: self.limits.clone(),
                        tls: matches!(self.address, Address::Tcp { tls: true, .. }),
                        deadline,
                    });
                }
                // Inside TLS there is no telling why before the handshake.
                Err(stream) if !matches!(self.address, Address::Tcp { tls: true, .. }) => {
                    let mut timer = Timer::default();
                    let busy = auth::refusal(auth::Answer::Busy);
                    let _ = Link::new(stream, None).write(&busy, &[], &mut timer, Some(deadline));
                }
                Err(_) => {}
            }
        }
    }

    /// Stops listening: wakes who waits in [`accept`](Self::accept), ends the handshakes that are under way, and
    /// removes the socket's file. Connections that are through live on. Idempotent.
    pub(crate) fn close(&self) {
        self.gate.close();
        #[cfg(unix)]
        let _ = (&self.wake.1).write(&[1]);
        let listener = self.listener.lock().take();
        #[cfg(not(unix))]
        if let Some(listener) = &listener {
            listener.wake();
        }
        drop(listener);
        self.place.lock().take();
    }

    /// How many handshakes have failed, for whatever reason.
    pub(crate) fn failed_handshakes(&self) -> u64 {
        self.gate.failures.load(Ordering::Relaxed)
    }

    fn wait_for_connection(&self, listener: &Listener) -> io::Result<()> {
        #[cfg(unix)]
        {
            use rustix::event::{PollFd, PollFlags, poll};
            while !self.gate.is_closed() {
                let mut ready = [
                    PollFd::from_borrowed_fd(listener.as_fd(), PollFlags::IN),
                    PollFd::from_borrowed_fd(self.wake.0.as_fd(), PollFlags::IN),
                ];
                match poll(&mut ready, None) {
                    Ok(_) if self.gate.is_closed() => break,
                    Ok(_) if ready[0].revents().is_empty() => {}
                    Ok(_) => return Ok(()),
                    Err(rustix::io::Errno::INTR) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            Err(closed_endpoint())
        }
        // Elsewhere `Listener::accept` is what waits.
        #[cfg(not(unix))]
        {
            let _ = listener;
            if self.gate.is_closed() { Err(closed_endpoint()) } else { Ok(()) }
        }
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.close();
    }
}

/// Somebody who has connected and has not yet said who they are.
#[derive(Debug)]
pub(crate) struct Accepted {
    link: Arc<Link>,
    security: ServerSecurity,
    limits: Limits,
    tls: bool,
    deadline: Instant,
}

impl Accepted {
    /// Finds out who it is; to be called on a thread of the connection's own, because it waits for the peer. It ends
    /// with the timeout for handshakes, counted from [`Endpoint::accept`], or when the endpoint is closed.
    pub(crate) fn handshake(self) -> Result<(FrameReader, FrameWriter, Closer), ConnectError> {
        let link = Arc::clone(&self.link);
        let result = self.run();
        if let Some(permit) = &link.permit {
            match &result {
                Ok(_) => permit.established(),
                Err(_) => _ = permit.gate.failures.fetch_add(1, Ordering::Relaxed),
            }
        }
        result
    }

    fn run(self) -> Result<(FrameReader, FrameWriter, Closer), ConnectError> {
        let Accepted { link, security, limits, tls, deadline } = self;
        #[cfg(feature = "tls")]
        let binding = match (&security.tls, tls) {
            (Some(config), true) => tls::accept(config, &link, deadline)?,
            (None, true) => return Err(ConnectError::TlsMissing),
            (_, false) => [0; 32],
        };
        #[cfg(not(feature = "tls"))]
        let binding = if tls { return Err(ConnectError::TlsMissing) } else { [0; 32] };

        let (mut reader, mut writer, closer) = split(&link, &limits);
        let mut say = |bytes: &[u8]| writer.write_until(bytes, &[], Some(deadline)).map_err(handshake_error);
        if !reader.link.stream.peer_is_same_user() {
            say(&auth::refusal(auth::Answer::ForeignUser))?;
            return Err(ConnectError::ForeignUser);
        }
        let hello = match reader.exact(deadline, auth::may_be_hello) {
            Ok(hello) => hello,
            Err(error) => {
                if matches!(error, ConnectError::NotUnderstood | ConnectError::PeerSpeaksTls) {
                    let _ = say(&auth::refusal(auth::Answer::NotUnderstood));
                }
                return Err(error);
            }
        };
        let nonce = fresh_nonce()?;
        let wants_ring = auth::extras(&hello) & auth::RING != 0 && link.is_local();
        let extras = match &link.permit {
            Some(permit) if wants_ring && permit.take_ring(limits.max_rings) => auth::RING,
            _ => 0,
        };
        match auth::server_on_hello(security.key.as_ref(), &nonce, &binding, &hello, extras) {
            ServerStep::Done(reply) => say(&reply)?,
            ServerStep::Refuse(reply, error) => {
                let _ = say(&reply);
                return Err(error);
            }
            ServerStep::Challenge(reply, await_proof) => {
                say(&reply)?;
                let proof = reader.exact(deadline, |_| true)?;
                let (verdict, outcome) = await_proof.on_proof(&proof);
                if let (Err(_), Some(permit)) = (&outcome, &reader.link.permit) {
                    let rest = deadline.saturating_duration_since(Instant::now());
                    permit.gate.pause(limits.wrong_key_delay.min(rest));
                }
                let said = say(&verdict);
                outcome?;
                said?;
            }
        }
        #[cfg(any(target_os = "linux", target_os = "android"))]
        if extras & auth::RING != 0
            && !super::ring::offer(&mut reader, &mut writer, limits.ring_len, deadline)?
            && let Some(permit) = &link.permit
        {
            permit.give_ring();
        }
        writer.set_timeout(Some(limits.write_timeout));
        Ok((reader, writer, closer))
    }
}

/// A connection's place; given back when its link is dropped.
#[derive(Debug)]
pub(crate) struct Permit {
    gate: Arc<Gate>,
    id: u64,
    /// Whether it is one of the connections through shared memory.
    ring: AtomicBool,
}

impl Permit {
    /// The handshake is through.
    fn established(&self) {
        self.gate.state.lock().handshakes.remove(&self.id);
    }

    /// Takes a place among those that go through shared memory, if there is one.
    fn take_ring(&self, most: usize) -> bool {
        if !cfg!(any(target_os = "linux", target_os = "android")) {
            return false;
        }
        let mut state = self.gate.state.lock();
        let taken = state.rings < most;
        if taken {
            state.rings += 1;
            self.ring.store(true, Ordering::Relaxed);
        }
        taken
    }

    /// Gives it back.
    #[cfg(any(target_os = "linux", target_os = "android"))]
    fn give_ring(&self) {
        let mut state = self.gate.state.lock();
        state.rings -= usize::from(self.ring.swap(false, Ordering::Relaxed));
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut state = self.gate.state.lock();
        state.connections -= 1;
        state.rings -= usize::from(*self.ring.get_mut());
        state.handshakes.remove(&self.id);
    }
}

/// Who is in, at one endpoint.
#[derive(Debug, Default)]
struct Gate {
    state: Mutex<GateState>,
    /// Told when the gate is closed.
    changed: Condvar,
    failures: AtomicU64,
}

#[derive(Debug, Default)]
struct GateState {
    closed: bool,
    connections: usize,
    /// Those of them that go through shared memory, or are about to.
    rings: usize,
    next_id: u64,
    /// Those that are not through the handshake.
    handshakes: HashMap<u64, Weak<Link>>,
}

impl Gate {
    fn admit(gate: &Arc<Gate>, stream: Stream, limits: &Limits) -> Result<Arc<Link>, Stream> {
        let mut state = gate.state.lock();
        if state.closed
            || state.connections >= limits.max_connections
            || state.handshakes.len() >= limits.max_handshakes
        {
            return Err(stream);
        }
        let id = state.next_id;
        state.next_id += 1;
        state.connections += 1;
        let link =
            Arc::new(Link::new(stream, Some(Permit { gate: Arc::clone(gate), id, ring: AtomicBool::new(false) })));
        state.handshakes.insert(id, Arc::downgrade(&link));
        Ok(link)
    }

    fn close(&self) {
        let handshakes = {
            let mut state = self.state.lock();
            state.closed = true;
            std::mem::take(&mut state.handshakes)
        };
        self.changed.notify_all();
        // Outside of the lock: dropping the last owner of a link gives its permit back, which takes the lock.
        handshakes.values().filter_map(Weak::upgrade).for_each(|link| link.close());
    }

    fn is_closed(&self) -> bool {
        self.state.lock().closed
    }

    /// Waits, unless the gate is closed.
    fn pause(&self, time: Duration) {
        let deadline = after(time);
        let mut state = self.state.lock();
        while !state.closed && !self.changed.wait_until(&mut state, deadline).timed_out() {}
    }
}

#[derive(Debug)]
enum Listener {
    #[cfg(unix)]
    Unix(UnixListener),
    Tcp(TcpListener),
}

impl Listener {
    fn accept(&self) -> io::Result<Stream> {
        match self {
            #[cfg(unix)]
            Listener::Unix(listener) => listener.accept().map(|(stream, _)| Stream::Unix(stream)),
            Listener::Tcp(listener) => listener.accept().map(|(stream, _)| Stream::Tcp(stream)),
        }
    }

    /// Ends a wait in `accept`, which finds the gate closed.
    #[cfg(not(unix))]
    fn wake(&self) {
        let Listener::Tcp(listener) = self;
        if let Ok(address) = listener.local_addr() {
            let _ = TcpStream::connect_timeout(&address, Duration::from_secs(1));
        }
    }
}

#[cfg(unix)]
impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Listener::Unix(listener) => listener.as_fd(),
            Listener::Tcp(listener) => listener.as_fd(),
        }
    }
}

/// What an endpoint has in the file system, removed when it is dropped.
#[derive(Debug)]
enum Place {
    #[cfg(unix)]
    Directory { _dir: tempfile::TempDir },
    /// A socket at a path that the user has chosen, with device and inode, so that only our own is removed.
    #[cfg(unix)]
    Socket { path: PathBuf, device: u64, inode: u64 },
}

#[cfg(unix)]
impl Drop for Place {
    fn drop(&mut self) {
        use std::os::unix::fs::MetadataExt as _;
        if let Place::Socket { path, device, inode } = self
            && std::fs::symlink_metadata(&*path).is_ok_and(|at| at.dev() == *device && at.ino() == *inode)
        {
            let _ = std::fs::remove_file(path);
        }
    }
}

fn bind_tcp(host: &str, port: u16, tls: bool, security: &ServerSecurity) -> io::Result<(Listener, Address)> {
    if security.key.is_none() {
        return Err(ConnectError::KeyMissing.into());
    }
    #[cfg(feature = "tls")]
    let has_certificate = security.tls.is_some();
    #[cfg(not(feature = "tls"))]
    let has_certificate = false;
    if tls && !has_certificate {
        return Err(ConnectError::TlsMissing.into());
    }
    let listener = TcpListener::bind((host, port))?;
    #[cfg(unix)]
    listener.set_nonblocking(true)?;
    let port = listener.local_addr()?.port();
    Ok((Listener::Tcp(listener), Address::Tcp { host: host.to_owned(), port, tls }))
}

#[cfg(unix)]
fn bind_local(to: &BindTo) -> io::Result<(Listener, Address, Option<Place>)> {
    let (listener, address, place) = match to {
        #[cfg(any(target_os = "linux", target_os = "android"))]
        BindTo::Private => {
            #[cfg(target_os = "android")]
            use std::os::android::net::SocketAddrExt as _;
            #[cfg(target_os = "linux")]
            use std::os::linux::net::SocketAddrExt as _;
            let random = u128::from_ne_bytes(auth::random().map_err(io::Error::other)?);
            let name = format!("polypool-{random:032x}");
            let listener = UnixListener::bind_addr(&std::os::unix::net::SocketAddr::from_abstract_name(&name)?)?;
            (listener, Address::Abstract(name), None)
        }
        BindTo::Unix(path) => {
            let listener = bind_path(path)?;
            let at = {
                use std::os::unix::fs::MetadataExt as _;
                let at = std::fs::symlink_metadata(path)?;
                (at.dev(), at.ino())
            };
            let path = std::path::absolute(path)?;
            (listener, Address::Unix(path.clone()), Some(Place::Socket { path, device: at.0, inode: at.1 }))
        }
        _ => {
            use std::os::unix::fs::PermissionsExt as _;
            let private = std::fs::Permissions::from_mode(0o700);
            let dir = tempfile::Builder::new().prefix("polypool-").permissions(private).tempdir()?;
            let path = std::path::absolute(dir.path().join("manager"))?;
            let listener = bind_path(&path)?;
            (listener, Address::Unix(path), Some(Place::Directory { _dir: dir }))
        }
    };
    listener.set_nonblocking(true)?;
    Ok((Listener::Unix(listener), address, place))
}

/// Binds to a path, also if the socket of a dead process is there.
#[cfg(unix)]
fn bind_path(path: &std::path::Path) -> io::Result<UnixListener> {
    use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};

    // Two processes that find the same dead socket must not remove each other's new one, so the directory is locked. It
    // may be one that everybody can lock, so this doesn't wait for ever.
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let directory = std::fs::File::open(parent.unwrap_or(std::path::Path::new(".")))?;
    let patience = Instant::now() + Duration::from_secs(2);
    while let Err(error) = directory.try_lock() {
        match error {
            std::fs::TryLockError::WouldBlock if Instant::now() < patience => {
                std::thread::sleep(Duration::from_millis(5));
            }
            std::fs::TryLockError::WouldBlock => {
                let message = format!("another process has locked the directory of {}", path.display());
                return Err(io::Error::new(io::ErrorKind::TimedOut, message));
            }
            std::fs::TryLockError::Error(error) => return Err(error),
        }
    }

    let taken = |what: &str| io::Error::new(io::ErrorKind::AddrInUse, format!("{what} is at {}", path.display()));
    match std::fs::symlink_metadata(path) {
        Ok(at) if !at.file_type().is_socket() => return Err(taken("something that is not a socket")),
        Ok(_) => match connect_local(&Address::Unix(path.to_owned()), Instant::now() + Duration::from_secs(1)) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path)?,
            _ => return Err(taken("the socket of a living process")),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }

    #[cfg(any(target_os = "linux", target_os = "android"))]
    {
        // The mode is set before anybody can connect.
        let listener = local_socket()?;
        rustix::net::bind(&listener, &rustix::net::SocketAddrUnix::new(path)?)?;
        let listening = std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))
            .and_then(|()| Ok(rustix::net::listen(&listener, 1024)?));
        if let Err(error) = listening {
            let _ = std::fs::remove_file(path);
            return Err(error);
        }
        Ok(listener.into())
    }
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    {
        let listener = UnixListener::bind(path)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
        Ok(listener)
    }
}

fn closed_endpoint() -> io::Error {
    io::Error::new(io::ErrorKind::NotConnected, "the endpoint has been closed")
}

/// The connection went away before it was accepted, or another thread has accepted it.
fn retry_accept(error: &io::Error) -> bool {
    use io::ErrorKind::*;
    matches!(
        error.kind(),
        WouldBlock
            | Interrupted
            | ConnectionAborted
            | ConnectionReset
            | NetworkDown
            | HostUnreachable
            | NetworkUnreachable
    )
}

/// The system is out of descriptors or of memory.
fn is_exhaustion(error: &io::Error) -> bool {
    #[cfg(unix)]
    {
        use rustix::io::Errno;
        [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM]
            .iter()
            .any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
    }
    #[cfg(not(unix))]
    {
        error.kind() == io::ErrorKind::OutOfMemory
    }
}
