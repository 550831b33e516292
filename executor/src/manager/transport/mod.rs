//! How a manager and its clients are connected: addresses, listening, connecting, and frames on a byte stream.
//!
//! A **frame** is a length (four bytes, little endian) and as many bytes. What is in them is not known here. A
//! connection is made of a [`FrameReader`] and a [`FrameWriter`], for two threads at once, and a [`Closer`], for any
//! other. Sockets block: a small request costs one write and its reply one read, and no runtime is needed.
//!
//! On Linux a Unix socket is only the beginning: once it is known who is at the other end, the bytes go through shared
//! memory if both sides can, and the socket wakes who sleeps (the `ring` module). Nothing above notices.
//!
//! Who may connect is decided in three places, each before a single frame is looked at:
//!
//! * a Unix socket asks the kernel for the peer's user, on both sides, and takes only its own;
//! * TLS, if there is any, is begun first (the `tls` module);
//! * the handshake of the `auth` module always follows, with a proof of the key where there is one. TCP insists on one.
//!
//! Bytes of a peer are distrusted: a length is checked before memory is reserved for it, memory grows with the bytes
//! that have come, everything up to the end of the handshake has one deadline, and the number of those who are still in
//! it has a bound of its own, so that strangers who say nothing don't take the places of those who do.
//!
//! What calls and replies are, who answers them, and when a client connects again is left to the rest of the manager.

mod address;
mod endpoint;
mod frame;
pub(super) mod link;
#[cfg(any(target_os = "linux", target_os = "android"))]
mod ring;
#[cfg(all(test, target_os = "linux"))]
mod tests;

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use address::{Address, BindTo, ParseAddressError};
pub(super) use endpoint::Endpoint;
#[cfg(any(fuzzing, test))]
pub(super) use frame::FrameDecoder;
pub(super) use frame::{Closer, FrameReader, FrameWriter, Peek};
#[cfg(all(any(fuzzing, test), any(target_os = "linux", target_os = "android")))]
pub(super) use ring::with_a_liar;

use super::auth::{self, AuthKey, ClientSide, ClientStep};
use link::{Link, Stream};

/// Bounds on what peers may take.
#[derive(Clone, Debug)]
pub(super) struct Limits {
    /// The longest payload of a frame, in either direction.
    pub(super) max_message: usize,
    /// From being accepted to being through TLS and handshake.
    pub(super) handshake_timeout: Duration,
    /// The most connections at a time, those in the handshake included.
    pub(super) max_connections: usize,
    /// The most connections at a time that are not through the handshake.
    pub(super) max_handshakes: usize,
    /// How long an answer to a wrong key is held back.
    pub(super) wrong_key_delay: Duration,
    /// How long a server waits for a client to read what it has been sent, from the beginning of one write to its end.
    /// Then the connection ends, so that somebody who doesn't read holds no thread and no answers for ever.
    pub(super) write_timeout: Duration,
    /// The most connections at a time that go through shared memory; further ones, and those that find no memory or
    /// descriptors for it, are sockets. 0: none, and a client doesn't ask for it.
    pub(super) max_rings: usize,
    /// The shared memory of such a connection in each direction, in bytes; there are two descriptors more as well, on
    /// either side.
    pub(super) ring_len: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            max_message: 64 << 20,
            handshake_timeout: Duration::from_secs(5),
            max_connections: 4096,
            max_handshakes: 128,
            wrong_key_delay: Duration::from_millis(100),
            write_timeout: Duration::from_secs(120),
            max_rings: 128,
            ring_len: 64 << 10,
        }
    }
}

/// What a server has to show and asks for.
#[derive(Clone, Debug, Default)]
pub struct ServerSecurity {
    pub(super) key: Option<AuthKey>,
    #[cfg(feature = "tls")]
    pub(super) tls: Option<super::tls::ServerTls>,
}

impl ServerSecurity {
    /// Nothing; enough for a Unix socket, which admits only processes of the same user.
    pub fn new() -> Self {
        Self::default()
    }

    /// Clients have to prove that they know this key, and are given a proof.
    #[must_use = "this is a builder"]
    pub fn key(mut self, key: AuthKey) -> Self {
        self.key = Some(key);
        self
    }

    /// The certificate for TLS.
    #[cfg(feature = "tls")]
    #[must_use = "this is a builder"]
    pub fn tls(mut self, tls: super::tls::ServerTls) -> Self {
        self.tls = Some(tls);
        self
    }
}

/// What a client has to show and asks for.
#[derive(Clone, Debug, Default)]
pub struct ClientSecurity {
    pub(super) key: Option<AuthKey>,
    #[cfg(feature = "tls")]
    pub(super) tls: Option<super::tls::ClientTls>,
}

impl ClientSecurity {
    /// Nothing; enough for a Unix socket whose server asks for no key.
    pub fn new() -> Self {
        Self::default()
    }

    /// The key that the server has to know too.
    #[must_use = "this is a builder"]
    pub fn key(mut self, key: AuthKey) -> Self {
        self.key = Some(key);
        self
    }

    /// Which certificates are trusted with TLS.
    #[cfg(feature = "tls")]
    #[must_use = "this is a builder"]
    pub fn tls(mut self, tls: super::tls::ClientTls) -> Self {
        self.tls = Some(tls);
        self
    }
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// Nobody answers there.
    #[error("no manager can be reached at {address}")]
    #[non_exhaustive]
    Unreachable {
        /// Where.
        address: Address,
        /// What the system said.
        source: io::Error,
    },
    /// The peer took too long.
    #[error("the connection was not established in time")]
    TimedOut,
    /// The peer closed the connection before the handshake was through.
    #[error("the peer closed the connection during the handshake")]
    Disconnected,
    /// The two sides don't have the same key.
    #[error("the two sides don't have the same key")]
    WrongKey,
    /// The server asks for a key, and the client has none.
    #[error("the server asks for a key, and the client has none")]
    KeyRequired,
    /// The client has a key, and the server can't prove that it knows it, because it has none.
    #[error("the client has a key, and the server has none")]
    ServerHasNoKey,
    /// TCP is refused without a key.
    #[error("a connection by TCP needs an AuthKey on both sides")]
    KeyMissing,
    /// TLS was asked for without saying with which certificates, or is not compiled in.
    #[error("TLS needs a certificate (server) or trusted certificates (client), and the feature `tls` of polypool")]
    TlsMissing,
    /// TLS failed, such as for a certificate that isn't trusted.
    #[error("the TLS handshake failed")]
    Tls(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The peer speaks TLS, and this side doesn't.
    #[error("the peer speaks TLS, and this side was told not to")]
    PeerSpeaksTls,
    /// The peer doesn't speak TLS, and this side does.
    #[error("the peer doesn't speak TLS, and this side was told to")]
    PeerSpeaksNoTls,
    /// The peer speaks another version of the protocol.
    #[error("the peer speaks version {theirs} of the protocol, and this side version {ours}")]
    #[non_exhaustive]
    OtherVersion {
        /// The version here.
        ours: u16,
        /// The version there.
        theirs: u16,
    },
    /// The server has as many connections as it may have.
    #[error("the server has as many connections as it takes")]
    Busy,
    /// The peer of a Unix socket belongs to another user.
    #[error("the peer belongs to another user")]
    ForeignUser,
    /// The peer isn't a manager or a client of one.
    #[error("the peer doesn't speak the protocol of managers")]
    NotUnderstood,
    /// Something is not available on this system.
    #[error("{address} can't be used on this system")]
    #[non_exhaustive]
    Unsupported {
        /// What was asked for.
        address: Address,
    },
    /// A system call failed.
    #[error("a system call failed while connecting")]
    Io(#[source] io::Error),
}

impl From<ConnectError> for io::Error {
    /// Keeps the error as the inner one.
    fn from(error: ConnectError) -> Self {
        match error {
            ConnectError::Io(error) => error,
            ConnectError::TimedOut => io::Error::new(io::ErrorKind::TimedOut, error),
            ConnectError::KeyMissing | ConnectError::TlsMissing => io::Error::new(io::ErrorKind::InvalidInput, error),
            ConnectError::Unsupported { .. } => io::Error::new(io::ErrorKind::Unsupported, error),
            error => io::Error::other(error),
        }
    }
}

/// Why an established connection has failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TransportError {
    /// A message is longer than allowed. One to be sent was not sent at all, and the connection goes on; one that comes
    /// in ends it.
    #[error("a message of {len} bytes is longer than the {max} bytes that are allowed")]
    #[non_exhaustive]
    TooLong {
        /// Its length.
        len: usize,
        /// The longest that is allowed.
        max: usize,
    },
    /// The peer is gone: it ended in the middle of a message, or the connection broke.
    #[error("the peer is gone")]
    Disconnected(#[source] Option<io::Error>),
    /// This side closed the connection.
    #[error("the connection was closed on this side")]
    Closed,
    /// The deadline has passed. A read can be tried again and loses nothing; after a write the connection is of no use.
    #[error("the deadline has passed")]
    TimedOut,
    /// The peer has written nonsense into the memory that a local connection shares with it.
    #[error("the peer has spoilt the shared memory of the connection")]
    Corrupt(#[source] io::Error),
    /// What came is not TLS, or was altered on the way.
    #[error("TLS failed")]
    Tls(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A system call failed.
    #[error("a system call failed on a connection")]
    Io(#[source] io::Error),
}

/// Connects to a manager, and proves what there is to prove, within `timeout` and the timeout for handshakes.
///
/// Looking up the addresses of a host is up to the system and may take longer.
pub(super) fn connect(
    address: &Address,
    security: &ClientSecurity,
    limits: &Limits,
    timeout: Duration,
) -> Result<(FrameReader, FrameWriter, Closer), ConnectError> {
    let deadline = after(timeout);
    if let Address::Tcp { .. } = address
        && security.key.is_none()
    {
        return Err(ConnectError::KeyMissing);
    }
    #[cfg(feature = "tls")]
    let tls = match (address, &security.tls) {
        (Address::Tcp { host, tls: true, .. }, Some(config)) => Some((config, host)),
        (Address::Tcp { tls: true, .. }, None) => return Err(ConnectError::TlsMissing),
        _ => None,
    };
    #[cfg(not(feature = "tls"))]
    if let Address::Tcp { tls: true, .. } = address {
        return Err(ConnectError::TlsMissing);
    }

    let stream = Stream::connect(address, deadline)?;
    let unreachable = |source| ConnectError::Unreachable { address: address.clone(), source };
    stream.prepare().map_err(unreachable)?;
    if !stream.peer_is_same_user() {
        return Err(ConnectError::ForeignUser);
    }
    let link = Arc::new(Link::new(stream, None));
    let deadline = deadline.min(after(limits.handshake_timeout));
    #[cfg(feature = "tls")]
    let binding = match tls {
        Some((config, host)) => super::tls::connect(config, host, &link, deadline)?,
        None => [0; 32],
    };
    #[cfg(not(feature = "tls"))]
    let binding = [0; 32];

    let (mut reader, mut writer, closer) = frame::split(&link, limits);
    let extras = if cfg!(any(target_os = "linux", target_os = "android")) && link.is_local() && limits.max_rings > 0 {
        auth::RING
    } else {
        0
    };
    let side = ClientSide::new(security.key.as_ref(), &fresh_nonce()?).extras(extras);
    // A server that turns us away may have closed already; then it is its answer that counts.
    let said = writer.write_until(side.hello(), &[], Some(deadline));
    if let Err(TransportError::TimedOut) = said {
        return Err(ConnectError::TimedOut);
    }
    let hello = reader.exact(deadline, auth::may_be_hello)?;
    match side.on_hello(&hello, &binding)? {
        ClientStep::Done => {}
        ClientStep::Prove(proof, await_verdict) => {
            writer.write_until(&proof, &[], Some(deadline)).map_err(handshake_error)?;
            let verdict = reader.exact(deadline, |_| true)?;
            await_verdict.on_verdict(&verdict)?;
        }
    }
    #[cfg(any(target_os = "linux", target_os = "android"))]
    if auth::extras(&hello) & extras & auth::RING != 0 {
        ring::join(&mut reader, &mut writer, deadline)?;
    }
    Ok((reader, writer, closer))
}

pub(super) fn handshake_error(error: TransportError) -> ConnectError {
    match error {
        TransportError::TimedOut => ConnectError::TimedOut,
        TransportError::Io(error) => ConnectError::Io(error),
        TransportError::Tls(error) => ConnectError::Tls(error),
        TransportError::Corrupt(error) => ConnectError::Io(error),
        // Whatever closed it: this side closes only when the endpoint is closed.
        TransportError::Disconnected(_) | TransportError::Closed | TransportError::TooLong { .. } => {
            ConnectError::Disconnected
        }
    }
}

/// That long from now, or a day if that is beyond what the clock can say.
fn after(time: Duration) -> Instant {
    let now = Instant::now();
    now.checked_add(time).unwrap_or_else(|| now + Duration::from_secs(86_400))
}

fn fresh_nonce() -> Result<auth::Nonce, ConnectError> {
    auth::random().map_err(|error| ConnectError::Io(io::Error::other(error)))
}
