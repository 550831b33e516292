//! Who is at the other end: the key, and the handshake in which both sides prove that they know it.
//!
//! # The protocol
//!
//! Four messages of fixed size, before anything else travels on a connection. Nothing is deserialised until they are
//! through: a message is compared byte by byte, and its length is known before it is read.
//!
//! ```text
//! client                                             server
//!   hello:   magic, version, has a key?, extras, nonce  ───▶
//!                                               ◀───   hello:   magic, version, verdict, extras, nonce
//!   proof:   HMAC(key, client ‖ transcript)     ───▶                                            (only with a key)
//!                                               ◀───   verdict: HMAC(key, server ‖ transcript)  (only with a key)
//! ```
//!
//! Extras are bits for what is not needed: the client says what it could do, the server which of that is done. Who
//! doesn't know one leaves it at zero.
//!
//! The transcript is both hellos, whole, and 32 bytes that are bound to the TLS session (zeros without TLS). HMAC is
//! that of RFC 2104 over SHA-256, compared in constant time. That both challenge each other is the idea of the pair
//! `deliver_challenge` and `answer_challenge` of Python's multiprocessing. What makes it hold here:
//!
//! * **Reflection** fails, because each role puts its own label under the MAC: what a server says is never what a
//!   client has to say.
//! * **Replay** fails, because both sides add 32 fresh random bytes.
//! * **Downgrading** fails, because version and flags of both hellos are under the MAC.
//! * **Relaying** through a middle man who ends one TLS session and begins another fails, because the two sessions
//!   export different bindings.
//! * The client proves itself first, so a stranger who connects learns nothing that depends on the key. One who makes a
//!   client connect to *him* does get a MAC to try keys against, as in every scheme of this kind: a key must be random
//!   (see [`AuthKey::random`]), not a word that people remember.
//!
//! # What it does not give
//!
//! It says who the peer is when the connection begins. Without TLS nothing after it is encrypted or protected against
//! change: whoever can alter packets on the way can take the connection over. Across a network that isn't trusted, use
//! TLS as well.
//!
//! This file turns bytes into decisions and does no input or output; that, and every time limit, is in the transport.

use std::fmt;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;
use zeroize::Zeroizing;

use super::transport::ConnectError;

/// The secret that a manager and its clients share.
///
/// It has at least [`AuthKey::MIN_LEN`] bytes, which should be random: a client that is lured to a false server hands
/// it a value to test guesses against. The bytes don't show in `Debug` and are wiped when the last clone is dropped.
///
/// There is no serialised form, so that a key doesn't end up in an argument or a log by accident. Give it to another
/// process in a file ([`from_file`](Self::from_file)), in its environment ([`from_env`](Self::from_env)), or as bytes.
#[derive(Clone)]
pub struct AuthKey(Arc<Zeroizing<Vec<u8>>>);

/// Why something isn't an [`AuthKey`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AuthKeyError {
    /// Fewer than [`AuthKey::MIN_LEN`] bytes.
    #[error("the key has {len} bytes, and {} is the least", AuthKey::MIN_LEN)]
    #[non_exhaustive]
    TooShort {
        /// How many there are.
        len: usize,
    },
    /// More than [`AuthKey::MAX_LEN`] bytes.
    #[error("the key is longer than {} bytes", AuthKey::MAX_LEN)]
    TooLong,
    /// The environment has no such variable.
    #[error("there is no environment variable {name}")]
    #[non_exhaustive]
    NoVariable {
        /// Its name.
        name: String,
    },
    /// The file can't be read.
    #[error("the key file {} can't be read", path.display())]
    #[non_exhaustive]
    File {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file can be read or written by other users.
    #[error("other users have access to the key file {} (mode {mode:03o}; chmod 600 it)", path.display())]
    #[non_exhaustive]
    FileNotPrivate {
        /// Which file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The system has no randomness to give.
    #[error("the system gave no random bytes")]
    NoRandomness(#[source] getrandom::Error),
}

impl AuthKey {
    /// The fewest bytes a key may have.
    pub const MIN_LEN: usize = 16;
    /// The most bytes a key may have.
    pub const MAX_LEN: usize = 4096;

    /// A key of the given bytes, taken as they are.
    ///
    /// # Errors
    ///
    /// When there are fewer than [`MIN_LEN`](Self::MIN_LEN) or more than [`MAX_LEN`](Self::MAX_LEN).
    ///
    /// # Examples
    ///
    /// ```
    /// use polypool::manager::AuthKey;
    ///
    /// assert!(AuthKey::new(b"hunter2").is_err());
    /// let key = AuthKey::new(b"correct horse battery staple")?;
    /// assert_eq!(format!("{key:?}"), "AuthKey(..)");
    /// # Ok::<(), polypool::manager::AuthKeyError>(())
    /// ```
    pub fn new(bytes: impl Into<Vec<u8>>) -> Result<Self, AuthKeyError> {
        let bytes = Zeroizing::new(bytes.into());
        match bytes.len() {
            len if len < Self::MIN_LEN => Err(AuthKeyError::TooShort { len }),
            len if len > Self::MAX_LEN => Err(AuthKeyError::TooLong),
            _ => Ok(AuthKey(Arc::new(bytes))),
        }
    }

    /// A new key of 32 bytes from the system's random numbers.
    ///
    /// # Errors
    ///
    /// When the system has none to give, which practically doesn't happen.
    pub fn random() -> Result<Self, AuthKeyError> {
        Ok(AuthKey(Arc::new(Zeroizing::new(random::<32>().map_err(AuthKeyError::NoRandomness)?.to_vec()))))
    }

    /// The value of an environment variable, byte for byte.
    ///
    /// # Errors
    ///
    /// When there is no such variable, or its value is too short or too long.
    pub fn from_env(name: &str) -> Result<Self, AuthKeyError> {
        let value = std::env::var_os(name).ok_or_else(|| AuthKeyError::NoVariable { name: name.to_owned() })?;
        Self::new(value.into_encoded_bytes())
    }

    /// The content of a file, byte for byte, but for one line end at its end.
    ///
    /// # Errors
    ///
    /// When the file can't be read, when other users have access to it (Unix), or when its content is too short or
    /// too long.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self, AuthKeyError> {
        let path = path.as_ref();
        let failed = |source| AuthKeyError::File { path: path.to_owned(), source };
        let file = std::fs::File::open(path).map_err(failed)?;
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            let mode = file.metadata().map_err(failed)?.permissions().mode() & 0o777;
            if mode & 0o077 != 0 {
                return Err(AuthKeyError::FileNotPrivate { path: path.to_owned(), mode });
            }
        }
        // Reserved at once, so that no copy of the key is left behind by a buffer that grows.
        let mut bytes = Zeroizing::new(Vec::with_capacity(Self::MAX_LEN + 3));
        file.take(Self::MAX_LEN as u64 + 3).read_to_end(&mut bytes).map_err(failed)?;
        if bytes.last() == Some(&b'\n') {
            bytes.pop();
            if bytes.last() == Some(&b'\r') {
                bytes.pop();
            }
        }
        Self::new(bytes.as_slice())
    }

    /// The bytes of the key, to be handed to another process. Take care where they go.
    #[must_use = "the bytes are what this is called for"]
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    fn mac(&self, role: &[u8; 32], transcript: &Transcript<'_>) -> Hmac<Sha256> {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.0).expect("HMAC takes keys of every length");
        mac.update(role);
        mac.update(transcript.client_hello);
        mac.update(transcript.server_hello);
        mac.update(transcript.binding);
        mac
    }
}

impl fmt::Debug for AuthKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AuthKey(..)")
    }
}

/// The version of the handshake and of what follows it. Magic, version and code have the same place in every version.
pub(super) const VERSION: u16 = 1;
pub(super) const HELLO_LEN: usize = 48;
pub(super) const PROOF_LEN: usize = 32;
pub(super) const VERDICT_LEN: usize = 1 + PROOF_LEN;

pub(super) type Hello = [u8; HELLO_LEN];
pub(super) type Proof = [u8; PROOF_LEN];
pub(super) type Verdict = [u8; VERDICT_LEN];
/// What is bound to the TLS session under the handshake; zeros without TLS.
pub(super) type Binding = [u8; 32];
pub(super) type Nonce = [u8; 32];

const MAGIC: [u8; 8] = *b"polypool";
const CLIENT_ROLE: [u8; 32] = *b"polypool manager/1: client proof";
const SERVER_ROLE: [u8; 32] = *b"polypool manager/1: server proof";

/// The extra by which a Unix socket continues through shared memory; see the transport's `ring.rs`.
pub(super) const RING: u8 = 1;

// The code of a client's hello.
const HAS_NO_KEY: u8 = 0;
const HAS_KEY: u8 = 1;

/// What a server answers, in its hello or (`Welcome`, `WrongKey`) in its verdict.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(super) enum Answer {
    Welcome = 0,
    Prove = 1,
    KeyRequired = 2,
    NoKeyHere = 3,
    OtherVersion = 4,
    Busy = 5,
    NotUnderstood = 6,
    ForeignUser = 7,
    WrongKey = 8,
}

impl Answer {
    fn from_code(code: u8) -> Option<Self> {
        use Answer::*;
        [Welcome, Prove, KeyRequired, NoKeyHere, OtherVersion, Busy, NotUnderstood, ForeignUser, WrongKey]
            .into_iter()
            .find(|answer| *answer as u8 == code)
    }
}

/// Fresh random bytes.
pub(super) fn random<const N: usize>() -> Result<[u8; N], getrandom::Error> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes)?;
    Ok(bytes)
}

/// Whether bytes can be the beginning of a hello, so that garbage is turned away with its first byte.
pub(super) fn may_be_hello(prefix: &[u8]) -> bool {
    prefix.iter().zip(&MAGIC).all(|(have, want)| have == want)
}

/// Whether bytes are the beginning of what a TLS peer says.
pub(super) fn looks_like_tls(prefix: &[u8]) -> bool {
    // A record's type (change cipher, alert, handshake, data), and the first half of its version.
    matches!(prefix, [0x14..=0x17, 0x03, ..])
}

/// What a server says that doesn't want to know more.
pub(super) fn refusal(answer: Answer) -> Hello {
    hello(answer as u8, &[0; 32])
}

/// The client's part.
#[derive(Debug)]
pub(super) struct ClientSide<'a> {
    key: Option<&'a AuthKey>,
    hello: Hello,
}

/// What a client does after the server's hello.
#[derive(Debug)]
#[allow(clippy::large_enum_variant)] // one at a time, for a moment, on the stack
pub(super) enum ClientStep {
    /// It is through.
    Done,
    /// It sends the proof, and has the verdict examined.
    Prove(Proof, AwaitVerdict),
}

/// A client that has sent its proof.
#[derive(Debug)]
pub(super) struct AwaitVerdict {
    expected: Hmac<Sha256>,
}

impl<'a> ClientSide<'a> {
    pub(super) fn new(key: Option<&'a AuthKey>, nonce: &Nonce) -> Self {
        ClientSide { key, hello: hello(if key.is_some() { HAS_KEY } else { HAS_NO_KEY }, nonce) }
    }

    /// With the extras that this client could do.
    pub(super) fn extras(mut self, extras: u8) -> Self {
        self.hello[EXTRAS] = extras;
        self
    }

    pub(super) fn hello(&self) -> &Hello {
        &self.hello
    }

    pub(super) fn on_hello(&self, server_hello: &Hello, binding: &Binding) -> Result<ClientStep, ConnectError> {
        let (version, code) = parse(server_hello)?;
        let answer = Answer::from_code(code);
        if version != VERSION || answer == Some(Answer::OtherVersion) {
            return Err(ConnectError::OtherVersion { ours: VERSION, theirs: version });
        }
        match (answer, self.key) {
            (Some(Answer::Welcome), None) => Ok(ClientStep::Done),
            // A server that welcomes a client with a key unproven may be anybody.
            (Some(Answer::Welcome | Answer::NoKeyHere), Some(_)) => Err(ConnectError::ServerHasNoKey),
            (Some(Answer::Prove), Some(key)) => {
                let transcript = Transcript { client_hello: &self.hello, server_hello, binding };
                let proof = key.mac(&CLIENT_ROLE, &transcript).finalize().into_bytes().into();
                Ok(ClientStep::Prove(proof, AwaitVerdict { expected: key.mac(&SERVER_ROLE, &transcript) }))
            }
            (Some(Answer::KeyRequired), _) => Err(ConnectError::KeyRequired),
            (Some(Answer::Busy), _) => Err(ConnectError::Busy),
            (Some(Answer::ForeignUser), _) => Err(ConnectError::ForeignUser),
            _ => Err(ConnectError::NotUnderstood),
        }
    }
}

impl AwaitVerdict {
    pub(super) fn on_verdict(self, verdict: &Verdict) -> Result<(), ConnectError> {
        let [code, proof @ ..] = verdict;
        match Answer::from_code(*code) {
            // A server that doesn't know the key can't make this, whatever it has seen.
            Some(Answer::Welcome) => self.expected.verify_slice(proof).map_err(|_| ConnectError::WrongKey),
            Some(Answer::WrongKey) => Err(ConnectError::WrongKey),
            _ => Err(ConnectError::NotUnderstood),
        }
    }
}

/// What a server does after a client's hello; the hello is sent in any case.
#[derive(Debug)]
#[allow(clippy::large_enum_variant)] // one at a time, for a moment, on the stack
pub(super) enum ServerStep {
    /// The client is through.
    Done(Hello),
    /// The client has to send a proof.
    Challenge(Hello, AwaitProof),
    /// The client is turned away.
    Refuse(Hello, ConnectError),
}

/// A server that waits for a client's proof.
#[derive(Debug)]
pub(super) struct AwaitProof {
    expected: Hmac<Sha256>,
    answer: Hmac<Sha256>,
}

/// `extras`: those that the server does, of what the client said it could.
pub(super) fn server_on_hello(
    key: Option<&AuthKey>,
    nonce: &Nonce,
    binding: &Binding,
    client_hello: &Hello,
    extras: u8,
) -> ServerStep {
    let refuse = |answer, error| ServerStep::Refuse(refusal(answer), error);
    let (version, code) = match parse(client_hello) {
        Ok(parsed) => parsed,
        Err(error) => return refuse(Answer::NotUnderstood, error),
    };
    if version != VERSION {
        return refuse(Answer::OtherVersion, ConnectError::OtherVersion { ours: VERSION, theirs: version });
    }
    match (code, key) {
        (HAS_NO_KEY, None) => ServerStep::Done(with_extras(hello(Answer::Welcome as u8, nonce), extras)),
        (HAS_NO_KEY, Some(_)) => refuse(Answer::KeyRequired, ConnectError::KeyRequired),
        (HAS_KEY, None) => refuse(Answer::NoKeyHere, ConnectError::ServerHasNoKey),
        (HAS_KEY, Some(key)) => {
            let server_hello = with_extras(hello(Answer::Prove as u8, nonce), extras);
            let transcript = Transcript { client_hello, server_hello: &server_hello, binding };
            let (expected, answer) = (key.mac(&CLIENT_ROLE, &transcript), key.mac(&SERVER_ROLE, &transcript));
            ServerStep::Challenge(server_hello, AwaitProof { expected, answer })
        }
        _ => refuse(Answer::NotUnderstood, ConnectError::NotUnderstood),
    }
}

impl AwaitProof {
    /// The verdict to send, and what it says.
    pub(super) fn on_proof(self, proof: &Proof) -> (Verdict, Result<(), ConnectError>) {
        let mut verdict = [0; VERDICT_LEN];
        match self.expected.verify_slice(proof) {
            Ok(()) => {
                verdict[0] = Answer::Welcome as u8;
                verdict[1..].copy_from_slice(&self.answer.finalize().into_bytes());
                (verdict, Ok(()))
            }
            Err(_) => {
                verdict[0] = Answer::WrongKey as u8;
                (verdict, Err(ConnectError::WrongKey))
            }
        }
    }
}

struct Transcript<'a> {
    client_hello: &'a Hello,
    server_hello: &'a Hello,
    binding: &'a Binding,
}

/// Where the extras stand in a hello.
const EXTRAS: usize = 11;

/// The extras that a hello names.
pub(super) fn extras(hello: &Hello) -> u8 {
    hello[EXTRAS]
}

fn with_extras(mut hello: Hello, extras: u8) -> Hello {
    hello[EXTRAS] = extras;
    hello
}

/// Magic (8), version (2, big endian), code (1), extras (1), zeros (4), nonce (32).
fn hello(code: u8, nonce: &Nonce) -> Hello {
    let mut bytes = [0; HELLO_LEN];
    bytes[..8].copy_from_slice(&MAGIC);
    bytes[8..10].copy_from_slice(&VERSION.to_be_bytes());
    bytes[10] = code;
    bytes[16..].copy_from_slice(nonce);
    bytes
}

fn parse(hello: &Hello) -> Result<(u16, u8), ConnectError> {
    if !may_be_hello(hello) {
        return Err(if looks_like_tls(hello) { ConnectError::PeerSpeaksTls } else { ConnectError::NotUnderstood });
    }
    Ok((u16::from_be_bytes([hello[8], hello[9]]), hello[10]))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NO_TLS: Binding = [0; 32];

    fn key(byte: u8) -> AuthKey {
        AuthKey::new([byte; 20]).unwrap()
    }

    /// Runs the whole handshake, with what a third party does to each message on its way.
    fn run(
        client_key: Option<&AuthKey>,
        server_key: Option<&AuthKey>,
        bindings: (Binding, Binding),
        mut tamper: impl FnMut(usize, &mut [u8]),
    ) -> (Result<(), ConnectError>, Result<(), ConnectError>) {
        let client = ClientSide::new(client_key, &[1; 32]);
        let mut hello = *client.hello();
        tamper(0, &mut hello);
        let (mut reply, server) = match server_on_hello(server_key, &[2; 32], &bindings.1, &hello, 0) {
            ServerStep::Done(reply) => (reply, Ok(None)),
            ServerStep::Challenge(reply, await_proof) => (reply, Ok(Some(await_proof))),
            ServerStep::Refuse(reply, error) => (reply, Err(error)),
        };
        tamper(1, &mut reply);
        let client = client.on_hello(&reply, &bindings.0);
        match (client, server) {
            (Ok(ClientStep::Prove(mut proof, await_verdict)), Ok(Some(await_proof))) => {
                tamper(2, &mut proof);
                let (mut verdict, server) = await_proof.on_proof(&proof);
                tamper(3, &mut verdict);
                (await_verdict.on_verdict(&verdict), server)
            }
            (client, server) => (
                client.and_then(|step| match step {
                    ClientStep::Done => Ok(()),
                    ClientStep::Prove(..) => Err(ConnectError::Disconnected),
                }),
                server.and_then(|step| step.map_or(Ok(()), |_| Err(ConnectError::Disconnected))),
            ),
        }
    }

    #[test]
    fn the_same_key_on_both_sides_or_on_neither_is_let_in() {
        let (client, server) = run(Some(&key(7)), Some(&key(7)), (NO_TLS, NO_TLS), |_, _| {});
        assert!(client.is_ok() && server.is_ok(), "{client:?} {server:?}");
        let (client, server) = run(None, None, (NO_TLS, NO_TLS), |_, _| {});
        assert!(client.is_ok() && server.is_ok(), "{client:?} {server:?}");
    }

    #[test]
    fn both_sides_say_what_is_wrong_with_the_key() {
        use ConnectError::*;
        let (client, server) = run(Some(&key(7)), Some(&key(8)), (NO_TLS, NO_TLS), |_, _| {});
        assert!(matches!((client, server), (Err(WrongKey), Err(WrongKey))));
        let (client, server) = run(None, Some(&key(8)), (NO_TLS, NO_TLS), |_, _| {});
        assert!(matches!((client, server), (Err(KeyRequired), Err(KeyRequired))));
        let (client, server) = run(Some(&key(7)), None, (NO_TLS, NO_TLS), |_, _| {});
        assert!(matches!((client, server), (Err(ServerHasNoKey), Err(ServerHasNoKey))));
    }

    #[test]
    fn a_change_of_any_bit_of_any_message_is_noticed_by_the_client_or_the_server() {
        for (message, len) in [(0, HELLO_LEN), (1, HELLO_LEN), (2, PROOF_LEN), (3, VERDICT_LEN)] {
            for bit in 0..len * 8 {
                let (client, server) = run(Some(&key(7)), Some(&key(7)), (NO_TLS, NO_TLS), |at, bytes| {
                    if at == message {
                        bytes[bit / 8] ^= 1 << (bit % 8);
                    }
                });
                assert!(client.is_err(), "the client has not noticed bit {bit} of message {message}");
                assert!(server.is_err() || message == 3, "the server has not noticed bit {bit} of message {message}");
            }
        }
    }

    #[test]
    fn extras_are_told_to_both_sides_and_are_under_the_proof() {
        let key = key(7);
        for key in [None, Some(&key)] {
            let client = ClientSide::new(key, &[1; 32]).extras(RING);
            assert_eq!(extras(client.hello()), RING);
            match server_on_hello(key, &[2; 32], &NO_TLS, client.hello(), RING) {
                ServerStep::Done(reply) => assert!(key.is_none() && extras(&reply) == RING),
                ServerStep::Challenge(reply, await_proof) => {
                    assert_eq!(extras(&reply), RING);
                    let Ok(ClientStep::Prove(proof, _)) = client.on_hello(&with_extras(reply, 0), &NO_TLS) else {
                        panic!("a challenge is answered")
                    };
                    assert!(await_proof.on_proof(&proof).1.is_err(), "an extra was taken away, and nobody noticed");
                }
                ServerStep::Refuse(_, error) => panic!("{error}"),
            }
            assert_eq!(extras(&refusal(Answer::Busy)), 0);
        }
    }

    #[test]
    fn a_key_cannot_be_stripped_off_by_a_server_that_welcomes_everybody() {
        let key = key(7);
        let client = ClientSide::new(Some(&key), &[1; 32]);
        let welcome = hello(Answer::Welcome as u8, &[2; 32]);
        assert!(matches!(client.on_hello(&welcome, &NO_TLS), Err(ConnectError::ServerHasNoKey)));
    }

    #[test]
    fn a_relay_between_two_tls_sessions_is_noticed() {
        let (client, server) = run(Some(&key(7)), Some(&key(7)), ([3; 32], [4; 32]), |_, _| {});
        assert!(matches!((client, server), (Err(ConnectError::WrongKey), Err(ConnectError::WrongKey))));
    }

    #[test]
    fn reflecting_a_clients_own_messages_does_not_make_a_server() {
        let key = key(7);
        let client = ClientSide::new(Some(&key), &[1; 32]);
        // The nonce and the proof of the client come back; only what isn't secret is made to fit.
        let mut echo = *client.hello();
        echo[10] = Answer::Prove as u8;
        let Ok(ClientStep::Prove(proof, await_verdict)) = client.on_hello(&echo, &NO_TLS) else {
            panic!("a challenge is answered")
        };
        let mut verdict = [0; VERDICT_LEN];
        verdict[0] = Answer::Welcome as u8;
        verdict[1..].copy_from_slice(&proof);
        assert!(matches!(await_verdict.on_verdict(&verdict), Err(ConnectError::WrongKey)));
    }

    #[test]
    fn a_recorded_proof_is_worth_nothing_at_the_next_connection() {
        let key = key(7);
        let client = ClientSide::new(Some(&key), &[1; 32]);
        let challenge = |nonce: u8| match server_on_hello(Some(&key), &[nonce; 32], &NO_TLS, client.hello(), 0) {
            ServerStep::Challenge(reply, await_proof) => (reply, await_proof),
            other => panic!("{other:?}"),
        };
        let (reply, first) = challenge(2);
        let Ok(ClientStep::Prove(proof, _)) = client.on_hello(&reply, &NO_TLS) else { panic!("it has the key") };
        assert!(first.on_proof(&proof).1.is_ok());
        let (_, second) = challenge(3);
        let (verdict, outcome) = second.on_proof(&proof);
        assert!(matches!(outcome, Err(ConnectError::WrongKey)));
        assert_eq!(verdict[1..], [0; PROOF_LEN], "a refused client is told nothing that depends on the key");
    }

    #[test]
    fn another_version_is_named_on_both_sides() {
        let mut from_the_future = *ClientSide::new(None, &[1; 32]).hello();
        from_the_future[8..10].copy_from_slice(&9_u16.to_be_bytes());
        let ServerStep::Refuse(reply, error) = server_on_hello(None, &[2; 32], &NO_TLS, &from_the_future, 0) else {
            panic!("it is another version")
        };
        assert!(matches!(error, ConnectError::OtherVersion { ours: VERSION, theirs: 9 }), "{error}");
        let client = ClientSide::new(None, &[1; 32]).on_hello(&reply, &NO_TLS);
        assert!(matches!(client, Err(ConnectError::OtherVersion { .. })), "{client:?}");
    }

    #[test]
    fn random_bytes_never_get_through_and_never_panic() {
        let key = key(7);
        let mut next = crate::manager::fuzzing::noise();
        for round in 0..20_000 {
            let mut bytes = [0; HELLO_LEN];
            bytes.fill_with(|| next() as u8);
            // Some of them look right for a while.
            let right = hello(next() as u8 % 10, &[5; 32]);
            let same = next() as usize % (HELLO_LEN + 1);
            bytes[..same].copy_from_slice(&right[..same]);
            let server_key = (round % 2 == 0).then_some(&key);
            match server_on_hello(server_key, &[2; 32], &NO_TLS, &bytes, RING) {
                ServerStep::Done(_) => assert!(server_key.is_none()),
                ServerStep::Challenge(_, await_proof) => {
                    assert!(await_proof.on_proof(bytes.first_chunk().unwrap()).1.is_err());
                }
                ServerStep::Refuse(..) => {}
            }
            match ClientSide::new(server_key, &[1; 32]).on_hello(&bytes, &NO_TLS) {
                Ok(ClientStep::Done) => assert!(server_key.is_none()),
                Ok(ClientStep::Prove(_, await_verdict)) => {
                    bytes[0] %= 10;
                    assert!(await_verdict.on_verdict(bytes.first_chunk().unwrap()).is_err());
                }
                Err(_) => {}
            }
        }
    }

    #[test]
    fn keys_are_long_enough_and_do_not_show() {
        assert!(matches!(AuthKey::new([1; 15]), Err(AuthKeyError::TooShort { len: 15 })));
        assert!(AuthKey::new([1; 16]).is_ok());
        assert!(matches!(AuthKey::new(vec![1; 4097]), Err(AuthKeyError::TooLong)));
        let key = AuthKey::new(*b"0123456789abcdef").unwrap();
        assert_eq!(format!("{key:?}"), "AuthKey(..)");
        assert_eq!(key.expose(), b"0123456789abcdef");
        assert_ne!(AuthKey::random().unwrap().expose(), AuthKey::random().unwrap().expose());
    }

    #[cfg(unix)]
    #[test]
    fn a_key_file_is_private_and_may_end_with_a_line_end() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        for (content, ok) in
            [("0123456789abcdef\n", true), ("0123456789abcdef\r\n", true), ("0123456789abcd\n", false), ("", false)]
        {
            std::fs::write(&path, content).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
            let key = AuthKey::from_file(&path);
            assert_eq!(key.is_ok(), ok, "{content:?}: {key:?}");
            assert!(key.is_err() || key.unwrap().expose() == b"0123456789abcdef");
        }
        std::fs::write(&path, vec![b'x'; 5000]).unwrap();
        assert!(matches!(AuthKey::from_file(&path), Err(AuthKeyError::TooLong)));
        std::fs::write(&path, "0123456789abcdef").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(AuthKey::from_file(&path), Err(AuthKeyError::FileNotPrivate { mode: 0o640, .. })));
        assert!(matches!(AuthKey::from_file(dir.path().join("none")), Err(AuthKeyError::File { .. })));
        assert!(matches!(AuthKey::from_env("POLYPOOL_NO_SUCH_KEY"), Err(AuthKeyError::NoVariable { .. })));
    }
}
