//! TLS under the connections of a manager: certificates, the TLS handshake, and one session shared by two threads.
//!
//! It is TLS 1.3 and nothing older, by rustls; both ends are this library, so there is nobody to be lenient to. The
//! server shows a certificate, the client says which it trusts, and that the *client* may connect is proved afterwards
//! with the key (the `auth` module), bound to this session by 32 bytes that both ends derive from it (RFC 8446, 7.5).
//! Sessions aren't resumed: connections live long, and a ticket is a secret to lose.
//!
//! # Two threads, one session
//!
//! A rustls connection is one object for both directions, and here one thread waits for bytes while another sends. So
//! the object is in a mutex that is only held while bytes are turned into other bytes, **never during a system call**;
//! a reader that waits for its peer, or a writer whose peer doesn't read, keeps nobody from going on. It is the only
//! lock here and nothing else is locked under it.
//!
//! That records reach the socket in the order in which they were encrypted needs no lock: the one `FrameWriter` is the
//! only one who writes. What reading leaves to be sent (the answer to a change of keys, an alert) goes out with its
//! next message, which is when RFC 8446 (4.6.3) wants the answer at the latest.

use std::fmt;
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, Connection, RootCertStore, ServerConfig, ServerConnection};

use super::auth::Binding;
use super::transport::link::{Link, Timer};
use super::transport::{ConnectError, TransportError, handshake_error};

/// The certificate that a manager shows to its clients, and its private key.
#[derive(Clone)]
pub struct ServerTls {
    config: Arc<ServerConfig>,
    /// What it was made of, for a server in a process of its own.
    pem: Arc<Pem>,
}

struct Pem {
    certificates: Vec<u8>,
    key: zeroize::Zeroizing<Vec<u8>>,
}

/// Which certificates a client of a manager trusts.
#[derive(Clone)]
pub struct ClientTls(Arc<ClientConfig>);

/// Why certificates or keys can't be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsConfigError {
    /// A file can't be read.
    #[error("{} can't be read", path.display())]
    #[non_exhaustive]
    File {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// There is no certificate where one is expected.
    #[error("there is no PEM certificate")]
    NoCertificate,
    /// There is no private key, or it isn't PEM.
    #[error("there is no PEM private key")]
    NoKey(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A certificate isn't PEM.
    #[error("a certificate is not PEM")]
    NotPem(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// They don't fit together or can't be used for TLS.
    #[error("certificate or key can't be used for TLS")]
    Unusable(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl ServerTls {
    /// A chain of certificates, the server's own first, and its private key (PKCS#8, PKCS#1 or SEC1), both in PEM.
    ///
    /// # Errors
    ///
    /// When they can't be parsed or don't fit together.
    pub fn from_pem(certificates: &[u8], key: &[u8]) -> Result<Self, TlsConfigError> {
        let pem = Pem { certificates: certificates.to_vec(), key: key.to_vec().into() };
        let certificates = parse_certificates(certificates)?;
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| TlsConfigError::NoKey(error.into()))?;
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(VERSIONS)
            .map_err(unusable)?
            .with_no_client_auth()
            .with_single_cert(certificates, key)
            .map_err(unusable)?;
        config.alpn_protocols = vec![PROTOCOL.to_vec()];
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        Ok(ServerTls { config: Arc::new(config), pem: Arc::new(pem) })
    }

    /// As [`from_pem`](Self::from_pem), from two files.
    ///
    /// # Errors
    ///
    /// When a file can't be read, and as `from_pem`.
    pub fn from_pem_files(certificates: impl AsRef<Path>, key: impl AsRef<Path>) -> Result<Self, TlsConfigError> {
        let key = zeroize::Zeroizing::new(read(key.as_ref())?);
        Self::from_pem(&read(certificates.as_ref())?, &key)
    }

    /// What it was made of: the certificates and the key, in PEM.
    pub(super) fn pem(&self) -> (&[u8], &[u8]) {
        (&self.pem.certificates, &self.pem.key)
    }
}

impl ClientTls {
    /// Trusts servers whose certificate is one of these or was signed by one of these, in PEM, and nobody else: the
    /// authorities that the system trusts don't count.
    ///
    /// # Errors
    ///
    /// When there is no certificate, or one can't be parsed.
    pub fn trusting_pem(certificates: &[u8]) -> Result<Self, TlsConfigError> {
        let mut roots = RootCertStore::empty();
        for certificate in parse_certificates(certificates)? {
            roots.add(certificate).map_err(unusable)?;
        }
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(VERSIONS)
            .map_err(unusable)?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![PROTOCOL.to_vec()];
        config.resumption = rustls::client::Resumption::disabled();
        Ok(ClientTls(Arc::new(config)))
    }

    /// As [`trusting_pem`](Self::trusting_pem), from a file.
    ///
    /// # Errors
    ///
    /// When the file can't be read, and as `trusting_pem`.
    pub fn trusting_pem_file(certificates: impl AsRef<Path>) -> Result<Self, TlsConfigError> {
        Self::trusting_pem(&read(certificates.as_ref())?)
    }
}

impl fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerTls").finish_non_exhaustive()
    }
}

impl fmt::Debug for ClientTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientTls").finish_non_exhaustive()
    }
}

/// An established session.
pub(super) struct Session(Mutex<Connection>);

/// How much is encrypted before it is sent.
const BATCH_LEN: usize = 256 << 10;

impl Session {
    /// Takes out of `cipher` what `room`, which is not empty, has room for: `Some(0)` when the peer has said that
    /// nothing more comes, `None` when more has to be read from the socket.
    pub(super) fn decrypt(&self, cipher: &mut Cipher, room: &mut [u8]) -> Result<Option<usize>, TransportError> {
        let mut connection = self.0.lock();
        loop {
            // What is decrypted is taken out first, so that rustls never has to refuse more.
            match connection.reader().read(room) {
                Ok(count) => return Ok(Some(count)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(TransportError::Tls(error.into())),
            }
            if cipher.start == cipher.end {
                return Ok(None);
            }
            match connection.read_tls(&mut &cipher.buffer[cipher.start..cipher.end]) {
                Ok(0) => return Err(TransportError::Disconnected(None)),
                Ok(count) => cipher.start += count,
                Err(error) => return Err(TransportError::Tls(error.into())),
            }
            connection.process_new_packets().map_err(|error| TransportError::Tls(error.into()))?;
        }
    }

    /// Encrypts and sends all parts, one after the other; by one call of `send` unless they are long.
    pub(super) fn encrypt(
        &self,
        parts: &[&[u8]],
        records: &mut Vec<u8>,
        mut send: impl FnMut(&[u8]) -> Result<(), TransportError>,
    ) -> Result<(), TransportError> {
        records.clear();
        for part in parts {
            let mut rest = *part;
            while !rest.is_empty() {
                {
                    let mut connection = self.0.lock();
                    while !rest.is_empty() && records.len() < BATCH_LEN {
                        // Takes as much as its buffer holds, which the next line empties.
                        let count = connection.writer().write(rest).map_err(TransportError::Io)?;
                        rest = &rest[count..];
                        drain(&mut connection, records)?;
                    }
                }
                if records.len() >= BATCH_LEN {
                    send(records)?;
                    records.clear();
                }
            }
        }
        if records.is_empty() { Ok(()) } else { send(records) }
    }

    /// Says that nothing more comes.
    pub(super) fn close(&self, send: impl FnOnce(&[u8]) -> Result<(), TransportError>) -> Result<(), TransportError> {
        let mut records = Vec::new();
        {
            let mut connection = self.0.lock();
            connection.send_close_notify();
            drain(&mut connection, &mut records)?;
        }
        send(&records)
    }
}

/// Bytes that have come from the socket and are not yet decrypted.
#[derive(Default)]
pub(super) struct Cipher {
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

impl Cipher {
    /// Where the next bytes are to be written. Everything before has been taken out.
    pub(super) fn room(&mut self) -> &mut [u8] {
        if self.buffer.is_empty() {
            self.buffer = vec![0; 32 << 10];
        }
        (self.start, self.end) = (0, 0);
        &mut self.buffer
    }

    pub(super) fn filled(&mut self, count: usize) {
        self.end = count;
    }
}

impl fmt::Debug for Cipher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cipher").field("pending", &(self.end - self.start)).finish()
    }
}

/// The server's TLS handshake. The session is put into the link.
pub(super) fn accept(config: &ServerTls, link: &Link, deadline: Instant) -> Result<Binding, ConnectError> {
    let connection =
        ServerConnection::new(Arc::clone(&config.config)).map_err(|error| ConnectError::Tls(error.into()))?;
    handshake(connection.into(), link, deadline)
}

/// The client's TLS handshake. The session is put into the link.
pub(super) fn connect(config: &ClientTls, host: &str, link: &Link, deadline: Instant) -> Result<Binding, ConnectError> {
    let name = ServerName::try_from(host.to_owned()).map_err(|error| ConnectError::Tls(error.into()))?;
    let connection =
        ClientConnection::new(Arc::clone(&config.0), name).map_err(|error| ConnectError::Tls(error.into()))?;
    handshake(connection.into(), link, deadline)
}

fn handshake(mut connection: Connection, link: &Link, deadline: Instant) -> Result<Binding, ConnectError> {
    let (mut reading, mut writing) = (Timer::default(), Timer::default());
    let mut room = [0; 4096];
    let mut records = Vec::new();
    loop {
        records.clear();
        drain(&mut connection, &mut records).map_err(handshake_error)?;
        link.write(&records, &[], &mut writing, Some(deadline)).map_err(handshake_error)?;
        if !connection.is_handshaking() {
            break;
        }
        let count = link.read(&mut room, &mut reading, Some(deadline)).map_err(handshake_error)?;
        if count == 0 {
            return Err(ConnectError::Disconnected);
        }
        let mut came = &room[..count];
        while !came.is_empty() {
            let advanced = connection
                .read_tls(&mut came)
                .map_err(|error| ConnectError::Tls(error.into()))
                .and_then(|_| connection.process_new_packets().map_err(refused));
            if let Err(error) = advanced {
                // The peer is told why, if it listens.
                records.clear();
                let _ = drain(&mut connection, &mut records);
                let _ = link.write(&records, &[], &mut writing, Some(deadline));
                return Err(error);
            }
        }
        // A byte at a time makes every read succeed, but not for longer than this.
        if Instant::now() >= deadline {
            return Err(ConnectError::TimedOut);
        }
    }
    let binding = connection
        .export_keying_material([0; 32], b"EXPORTER-polypool-manager", None)
        .map_err(|error| ConnectError::Tls(error.into()))?;
    link.clear_timeouts().map_err(handshake_error)?;
    let fresh = link.tls.set(Session(Mutex::new(connection))).is_ok();
    assert!(fresh, "a link has one TLS handshake");
    Ok(binding)
}

/// Takes out what is to be sent.
fn drain(connection: &mut Connection, records: &mut Vec<u8>) -> Result<(), TransportError> {
    while connection.wants_write() {
        connection.write_tls(records).map_err(TransportError::Io)?;
    }
    Ok(())
}

fn refused(error: rustls::Error) -> ConnectError {
    match error {
        // The first bytes of somebody who doesn't speak TLS are taken for an impossible record.
        rustls::Error::InvalidMessage(_) => ConnectError::PeerSpeaksNoTls,
        error => ConnectError::Tls(error.into()),
    }
}

const VERSIONS: &[&rustls::SupportedProtocolVersion] = &[&rustls::version::TLS13];
const PROTOCOL: &[u8] = b"polypool-manager/1";

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    // Named, because a program may have others compiled in, and then there is no default.
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

fn parse_certificates(bytes: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsConfigError> {
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(bytes)
        .collect::<Result<_, pem::Error>>()
        .map_err(|error| TlsConfigError::NotPem(error.into()))?;
    if certificates.is_empty() { Err(TlsConfigError::NoCertificate) } else { Ok(certificates) }
}

fn read(path: &Path) -> Result<Vec<u8>, TlsConfigError> {
    std::fs::read(path).map_err(|source| TlsConfigError::File { path: path.to_owned(), source })
}

fn unusable(error: rustls::Error) -> TlsConfigError {
    TlsConfigError::Unusable(error.into())
}
