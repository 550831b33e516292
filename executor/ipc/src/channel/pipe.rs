//! Pipes: typed messages between two processes. Python's `multiprocessing.Pipe` and its `Connection`.
//!
//! | Python | here |
//! |---|---|
//! | `Pipe()` | [`pipe`], or [`pipe_between`] when the two directions carry different types |
//! | `Pipe(duplex=False)` | [`channel`]: a [`PipeSender`] can't receive and a [`PipeReceiver`] can't send, so the wrong direction doesn't compile |
//! | `send`, `recv` | the same; also `try_`, `_timeout` and `_async` |
//! | `send_bytes`, `recv_bytes(maxlength)`, `recv_bytes_into` | the same; too long a message is dropped, and the pipe stays usable |
//! | `poll(timeout)` | [`PipeReceiver::poll`] |
//! | `EOFError`, `BrokenPipeError` | [`PipeError::Closed`] |
//! | `close`, `closed` | dropping the end, or `close` for all its holders; `is_closed` |
//! | unpickling runs what the peer sends | decoding makes values of the type asked for, and runs nothing |
//! | two threads that send at once garble the stream | each message stays whole |
//!
//! A message may hold handles of anything that this crate shares, and plain descriptors ([`Fd`](crate::Fd)). A pipe is
//! a thin layer over [a stream of frames](crate::stream_pair), whose documentation says what happens when somebody
//! dies.

use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::codec;
use super::stream::{Frame, FrameReceiver, FrameSender, Patience, PipeError, Received, StreamOptions, Want};
use crate::travel::{Luggage, pack, unpack};

/// A frame that is a value.
const VALUE: u8 = 0;
/// A frame that is bytes as they were given.
const BYTES: u8 = 1;

/// A buffer longer than this isn't kept for the next message.
const KEEP: usize = 2 << 20;

/// Two connected ends: what one sends, the other receives. Python's `Pipe()`.
///
/// # Errors
///
/// What the system says when it is out of descriptors or memory.
///
/// # Examples
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let (here, there) = polypool_ipc::pipe::<Vec<String>>()?;
/// // `there` is usually sent to another process.
/// std::thread::spawn(move || {
///     let mut words = there.recv()?;
///     words.push("world".into());
///     there.send(&words)
/// });
/// here.send(&vec!["hello".to_string()])?;
/// assert_eq!(here.recv()?, ["hello", "world"]);
/// assert!(here.recv().is_err(), "the other end has gone");
/// # Ok(())
/// # }
/// ```
pub fn pipe<T>() -> io::Result<(Connection<T>, Connection<T>)> {
    pipe_between()
}

/// Two connected ends with a type for each direction: requests and replies, say.
///
/// # Errors
///
/// What the system says when it is out of descriptors or memory.
///
/// # Examples
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let (client, server) = polypool_ipc::pipe_between::<String, usize>()?;
/// client.send(&"four".to_string())?;
/// server.send(&server.recv()?.len())?;
/// assert_eq!(client.recv()?, 4);
/// # Ok(())
/// # }
/// ```
pub fn pipe_between<A, B>() -> io::Result<(Connection<A, B>, Connection<B, A>)> {
    StreamOptions::new().pipe()
}

/// A sender and a receiver. Python's `Pipe(duplex=False)`.
///
/// # Errors
///
/// What the system says when it is out of descriptors or memory.
///
/// # Examples
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let (sender, receiver) = polypool_ipc::channel::<u32>()?;
/// for n in 0..3 {
///     sender.send(&n)?;
/// }
/// drop(sender);
/// assert_eq!(receiver.iter().collect::<Result<Vec<_>, _>>()?, [0, 1, 2]);
/// # Ok(())
/// # }
/// ```
///
/// A receiver can't send:
///
/// ```compile_fail,E0599
/// let (sender, receiver) = polypool_ipc::channel::<u32>().unwrap();
/// receiver.send(&1);
/// ```
pub fn channel<T>() -> io::Result<(PipeSender<T>, PipeReceiver<T>)> {
    StreamOptions::new().channel()
}

impl StreamOptions {
    /// As [`pipe_between`], with these options.
    ///
    /// # Errors
    ///
    /// What the system says when it is out of descriptors or memory.
    pub fn pipe<A, B>(&self) -> io::Result<(Connection<A, B>, Connection<B, A>)> {
        let (one, two) = self.pair()?;
        let ((to_two, from_two), (to_one, from_one)) = (one.split(), two.split());
        Ok((
            Connection { sender: PipeSender::new(to_two), receiver: PipeReceiver::new(from_two) },
            Connection { sender: PipeSender::new(to_one), receiver: PipeReceiver::new(from_one) },
        ))
    }

    /// As [`channel`], with these options.
    ///
    /// # Errors
    ///
    /// What the system says when it is out of descriptors or memory.
    pub fn channel<T>(&self) -> io::Result<(PipeSender<T>, PipeReceiver<T>)> {
        let (sender, receiver) = self.one_way()?;
        Ok((PipeSender::new(sender), PipeReceiver::new(receiver)))
    }
}

/// One end of a pipe: sends values of type `S` and receives those of type `R`.
///
/// It dereferences to nothing and hides nothing: its methods are those of its [sender](Connection::sender) and its
/// [receiver](Connection::receiver), which can also be taken [apart](Connection::split) and used by different threads.
///
/// Clones, and copies in other processes, are the same end; the other one learns that it is gone when all of them are.
/// A process that sends an end away should thus drop its own.
pub struct Connection<S, R = S> {
    sender: PipeSender<S>,
    receiver: PipeReceiver<R>,
}

impl<S, R> Connection<S, R> {
    /// The half that sends.
    #[must_use = "it has no effect but its result"]
    pub fn sender(&self) -> &PipeSender<S> {
        &self.sender
    }

    /// The half that receives.
    #[must_use = "it has no effect but its result"]
    pub fn receiver(&self) -> &PipeReceiver<R> {
        &self.receiver
    }

    /// Both halves.
    #[must_use = "dropping both ends the pipe"]
    pub fn split(self) -> (PipeSender<S>, PipeReceiver<R>) {
        (self.sender, self.receiver)
    }

    /// See [`PipeSender::send_bytes`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn send_bytes(&self, bytes: &[u8]) -> Result<(), PipeError> {
        self.sender.send_bytes(bytes)
    }

    /// See [`PipeSender::send_bytes_async`].
    ///
    /// # Errors
    ///
    /// As there.
    pub async fn send_bytes_async(&self, bytes: &[u8]) -> Result<(), PipeError> {
        self.sender.send_bytes_async(bytes).await
    }

    /// See [`PipeReceiver::recv_bytes`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn recv_bytes(&self, max_len: usize) -> Result<Vec<u8>, PipeError> {
        self.receiver.recv_bytes(max_len)
    }

    /// See [`PipeReceiver::recv_bytes_into`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn recv_bytes_into(&self, to: &mut Vec<u8>, max_len: usize) -> Result<(), PipeError> {
        self.receiver.recv_bytes_into(to, max_len)
    }

    /// See [`PipeReceiver::recv_bytes_async`].
    ///
    /// # Errors
    ///
    /// As there.
    pub async fn recv_bytes_async(&self, max_len: usize) -> Result<Vec<u8>, PipeError> {
        self.receiver.recv_bytes_async(max_len).await
    }

    /// See [`PipeReceiver::poll`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn poll(&self, timeout: Duration) -> Result<bool, PipeError> {
        self.receiver.poll(timeout)
    }

    /// See [`PipeReceiver::set_max_len`].
    pub fn set_max_len(&self, bytes: usize) {
        self.receiver.set_max_len(bytes);
    }

    /// Closes both directions for every holder of this end.
    pub fn close(&self) {
        self.sender.close();
        self.receiver.close();
    }

    /// See [`PipeSender::is_closed`].
    #[must_use = "it has no effect but its result"]
    pub fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }
}

impl<S: Serialize, R> Connection<S, R> {
    /// See [`PipeSender::send`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn send(&self, value: &S) -> Result<(), PipeError> {
        self.sender.send(value)
    }

    /// See [`PipeSender::try_send`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn try_send(&self, value: &S) -> Result<(), PipeError> {
        self.sender.try_send(value)
    }

    /// See [`PipeSender::send_timeout`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn send_timeout(&self, value: &S, timeout: Duration) -> Result<(), PipeError> {
        self.sender.send_timeout(value, timeout)
    }

    /// See [`PipeSender::send_async`].
    ///
    /// # Errors
    ///
    /// As there.
    pub async fn send_async(&self, value: &S) -> Result<(), PipeError> {
        self.sender.send_async(value).await
    }
}

impl<S, R: DeserializeOwned> Connection<S, R> {
    /// See [`PipeReceiver::recv`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn recv(&self) -> Result<R, PipeError> {
        self.receiver.recv()
    }

    /// See [`PipeReceiver::try_recv`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn try_recv(&self) -> Result<R, PipeError> {
        self.receiver.try_recv()
    }

    /// See [`PipeReceiver::recv_timeout`].
    ///
    /// # Errors
    ///
    /// As there.
    pub fn recv_timeout(&self, timeout: Duration) -> Result<R, PipeError> {
        self.receiver.recv_timeout(timeout)
    }

    /// See [`PipeReceiver::recv_async`].
    ///
    /// # Errors
    ///
    /// As there.
    pub async fn recv_async(&self) -> Result<R, PipeError> {
        self.receiver.recv_async().await
    }
}

/// The sending end of a [`channel`], or the sending half of a [`Connection`].
pub struct PipeSender<T> {
    frames: FrameSender,
    scratch: Scratch,
    values: PhantomData<fn(&T)>,
}

impl<T> PipeSender<T> {
    fn new(frames: FrameSender) -> Self {
        PipeSender { frames, scratch: Scratch::default(), values: PhantomData }
    }

    /// Sends bytes as they are; blocks while the pipe is full. The other side receives them by
    /// [`recv_bytes`](PipeReceiver::recv_bytes).
    ///
    /// # Errors
    ///
    /// [`PipeError::Closed`] if the other end has gone.
    pub fn send_bytes(&self, bytes: &[u8]) -> Result<(), PipeError> {
        self.frames.send(&Frame::new(&[bytes]).kind(BYTES))
    }

    /// As [`send_bytes`](PipeSender::send_bytes), if that is possible without waiting.
    ///
    /// # Errors
    ///
    /// [`PipeError::Full`], also always for more bytes than the pipe holds; [`PipeError::Closed`].
    pub fn try_send_bytes(&self, bytes: &[u8]) -> Result<(), PipeError> {
        self.frames.try_send(&Frame::new(&[bytes]).kind(BYTES))
    }

    /// As [`send_bytes`](PipeSender::send_bytes), for at most `timeout`.
    ///
    /// # Errors
    ///
    /// [`PipeError::TimedOut`], and then nothing has been sent; [`PipeError::Closed`].
    pub fn send_bytes_timeout(&self, bytes: &[u8], timeout: Duration) -> Result<(), PipeError> {
        self.frames.send_timeout(&Frame::new(&[bytes]).kind(BYTES), timeout)
    }

    /// As [`send_bytes`](PipeSender::send_bytes), without ever blocking the thread. Cancellation: as for
    /// [`send_async`](PipeSender::send_async).
    ///
    /// # Errors
    ///
    /// [`PipeError::Closed`] if the other end has gone.
    pub async fn send_bytes_async(&self, bytes: &[u8]) -> Result<(), PipeError> {
        self.frames.send_async(&Frame::new(&[bytes]).kind(BYTES)).await
    }

    /// Closes the pipe in this direction for every holder of this end, also in other processes. The other side gets
    /// what has been sent, and then the end of file.
    pub fn close(&self) {
        self.frames.close();
    }

    /// Whether the other end has gone, or this one has been closed. Asks the system.
    #[must_use = "it has no effect but its result"]
    pub fn is_closed(&self) -> bool {
        self.frames.is_closed()
    }
}

impl<T: Serialize> PipeSender<T> {
    /// Sends a value; blocks while the pipe is full (1 MiB, if nothing else was said).
    ///
    /// # Errors
    ///
    /// [`PipeError::Closed`] if the other end has gone; [`PipeError::Encode`] and [`PipeError::Luggage`] if the value
    /// or its handles can't travel. Nothing has been sent then.
    pub fn send(&self, value: &T) -> Result<(), PipeError> {
        self.encoded(value, |frame| self.frames.send_within(frame, Patience::Until(None)))
    }

    /// As [`send`](PipeSender::send), if that is possible without waiting.
    ///
    /// # Errors
    ///
    /// [`PipeError::Full`], also always for a value that takes more bytes than the pipe holds; and those of
    /// [`send`](PipeSender::send).
    pub fn try_send(&self, value: &T) -> Result<(), PipeError> {
        self.encoded(value, |frame| self.frames.send_within(frame, Patience::None))
    }

    /// As [`send`](PipeSender::send), for at most `timeout`.
    ///
    /// # Errors
    ///
    /// [`PipeError::TimedOut`], and then nothing has been sent; and those of [`send`](PipeSender::send).
    pub fn send_timeout(&self, value: &T, timeout: Duration) -> Result<(), PipeError> {
        self.encoded(value, |frame| self.frames.send_within(frame, Patience::timeout(timeout)))
    }

    /// As [`send`](PipeSender::send), without ever blocking the thread. The value is encoded at the first poll.
    ///
    /// **Cancellation:** dropped before it is ready, nothing has been sent.
    ///
    /// # Errors
    ///
    /// Those of [`send`](PipeSender::send).
    pub async fn send_async(&self, value: &T) -> Result<(), PipeError> {
        let mut bytes = self.scratch.take();
        let luggage = encode(value, &mut bytes)?;
        let result = self.frames.send_async(&Frame::new(&[&bytes]).kind(VALUE).luggage(&luggage)).await;
        self.scratch.put(bytes);
        result
    }

    fn encoded(&self, value: &T, send: impl FnOnce(&Frame<'_>) -> Result<(), PipeError>) -> Result<(), PipeError> {
        let mut bytes = self.scratch.take();
        let luggage = encode(value, &mut bytes)?;
        let result = send(&Frame::new(&[&bytes]).kind(VALUE).luggage(&luggage));
        self.scratch.put(bytes);
        result
    }
}

/// The receiving end of a [`channel`], or the receiving half of a [`Connection`].
pub struct PipeReceiver<T> {
    frames: FrameReceiver,
    scratch: Scratch,
    values: PhantomData<fn() -> T>,
}

impl<T> PipeReceiver<T> {
    fn new(frames: FrameReceiver) -> Self {
        PipeReceiver { frames, scratch: Scratch::default(), values: PhantomData }
    }

    /// Receives bytes that were sent by [`send_bytes`](PipeSender::send_bytes), at most `max_len` of them; blocks until
    /// there are some.
    ///
    /// # Errors
    ///
    /// [`PipeError::TooLong`], which says both lengths: the message is dropped, and the pipe goes on with the next one.
    /// [`PipeError::WrongForm`] if the next message is a value; it stays there. Otherwise those of
    /// [`recv`](PipeReceiver::recv).
    pub fn recv_bytes(&self, max_len: usize) -> Result<Vec<u8>, PipeError> {
        let mut bytes = Vec::new();
        self.recv_bytes_into(&mut bytes, max_len)?;
        Ok(bytes)
    }

    /// As [`recv_bytes`](PipeReceiver::recv_bytes), into a vector, whose content is replaced and whose room is used.
    ///
    /// # Errors
    ///
    /// Those of [`recv_bytes`](PipeReceiver::recv_bytes).
    pub fn recv_bytes_into(&self, to: &mut Vec<u8>, max_len: usize) -> Result<(), PipeError> {
        self.frames.recv_within(to, bytes(max_len), Patience::Until(None)).map(drop)
    }

    /// As [`recv_bytes`](PipeReceiver::recv_bytes), if some are there.
    ///
    /// # Errors
    ///
    /// [`PipeError::Empty`], and those of [`recv_bytes`](PipeReceiver::recv_bytes).
    pub fn try_recv_bytes(&self, max_len: usize) -> Result<Vec<u8>, PipeError> {
        let mut to = Vec::new();
        self.frames.recv_within(&mut to, bytes(max_len), Patience::None)?;
        Ok(to)
    }

    /// As [`recv_bytes`](PipeReceiver::recv_bytes), for at most `timeout`.
    ///
    /// # Errors
    ///
    /// [`PipeError::TimedOut`], and those of [`recv_bytes`](PipeReceiver::recv_bytes).
    pub fn recv_bytes_timeout(&self, max_len: usize, timeout: Duration) -> Result<Vec<u8>, PipeError> {
        let mut to = Vec::new();
        self.frames.recv_within(&mut to, bytes(max_len), Patience::timeout(timeout))?;
        Ok(to)
    }

    /// As [`recv_bytes`](PipeReceiver::recv_bytes), without ever blocking the thread. Cancellation: as for
    /// [`recv_async`](PipeReceiver::recv_async).
    ///
    /// # Errors
    ///
    /// Those of [`recv_bytes`](PipeReceiver::recv_bytes).
    pub async fn recv_bytes_async(&self, max_len: usize) -> Result<Vec<u8>, PipeError> {
        let mut to = Vec::new();
        self.frames.recv_within_async(&mut to, bytes(max_len)).await?;
        Ok(to)
    }

    /// Whether there is something to receive, or the end of file, by `timeout`. Zero only looks.
    ///
    /// # Errors
    ///
    /// [`PipeError::Corrupt`] for a peer that lies; what the system says.
    pub fn poll(&self, timeout: Duration) -> Result<bool, PipeError> {
        self.frames.poll(timeout)
    }

    /// The longest message that is received, in encoded bytes: 4 GiB if nothing else is said. A longer one is dropped
    /// as it arrives ([`PipeError::TooLong`]), and never held in memory.
    pub fn set_max_len(&self, bytes: usize) {
        self.frames.set_max_len(bytes);
    }

    /// Closes the pipe in this direction for every holder of this end, also in other processes. The other side gets
    /// [`PipeError::Closed`] when it sends. What has not been received is lost.
    pub fn close(&self) {
        self.frames.close();
    }
}

impl<T: DeserializeOwned> PipeReceiver<T> {
    /// Receives a value; blocks until there is one.
    ///
    /// # Errors
    ///
    /// [`PipeError::Closed`] at the end of file, and [`PipeError::Truncated`] if the sender was killed in the middle of
    /// a long message. [`PipeError::Decode`], [`PipeError::Luggage`] and [`PipeError::TooLong`]: this message is lost,
    /// and the pipe goes on with the next one. [`PipeError::WrongForm`] if the next message is bytes; it stays there.
    /// [`PipeError::Corrupt`] for a peer that lies.
    pub fn recv(&self) -> Result<T, PipeError> {
        self.decoded(Patience::Until(None))
    }

    /// Receives a value if one is there.
    ///
    /// # Errors
    ///
    /// [`PipeError::Empty`], and those of [`recv`](PipeReceiver::recv).
    pub fn try_recv(&self) -> Result<T, PipeError> {
        self.decoded(Patience::None)
    }

    /// Receives a value; blocks for at most `timeout`.
    ///
    /// # Errors
    ///
    /// [`PipeError::TimedOut`], and those of [`recv`](PipeReceiver::recv).
    pub fn recv_timeout(&self, timeout: Duration) -> Result<T, PipeError> {
        self.decoded(Patience::timeout(timeout))
    }

    /// Receives a value, without ever blocking the thread.
    ///
    /// **Cancellation:** dropped before it is ready, no message is lost.
    ///
    /// # Errors
    ///
    /// Those of [`recv`](PipeReceiver::recv).
    pub async fn recv_async(&self) -> Result<T, PipeError> {
        let mut bytes = self.scratch.take();
        let received = self.frames.recv_within_async(&mut bytes, VALUES).await?;
        self.decode(bytes, &received)
    }

    /// The values that arrive, until the end of file. Blocks between them.
    pub fn iter(&self) -> impl Iterator<Item = Result<T, PipeError>> {
        std::iter::from_fn(|| match self.recv() {
            Err(PipeError::Closed) => None,
            other => Some(other),
        })
    }

    fn decoded(&self, patience: Patience) -> Result<T, PipeError> {
        let mut bytes = self.scratch.take();
        let received = self.frames.recv_within(&mut bytes, VALUES, patience)?;
        self.decode(bytes, &received)
    }

    fn decode(&self, bytes: Vec<u8>, received: &Received) -> Result<T, PipeError> {
        let value =
            unpack(&received.luggage, || codec::decode(&bytes)).map_err(|error| PipeError::Decode(error.to_string()));
        self.scratch.put(bytes);
        value
    }
}

const VALUES: Want = Want { kind: Some(VALUE), ..Want::ANY };

fn bytes(max: usize) -> Want {
    Want { kind: Some(BYTES), max, ..Want::ANY }
}

/// What a receiver of one form says to a message of the other.
pub(super) fn wrong_form(found: u8, expected: u8) -> PipeError {
    let name = |kind| match kind {
        VALUE => "a value",
        BYTES => "bytes",
        _ => "of no known form",
    };
    PipeError::WrongForm { found: name(found), expected: name(expected) }
}

/// The bytes of a value, and the descriptors that belong to it.
fn encode<T: Serialize>(value: &T, to: &mut Vec<u8>) -> Result<Luggage, PipeError> {
    let (result, luggage) = pack(|| codec::encode(value, to));
    result.map_err(|error| PipeError::Encode(error.to_string()))?;
    Ok(luggage)
}

/// A buffer that is used again. It is taken out while it's used, so no code of users runs under a lock.
#[derive(Default)]
struct Scratch(Mutex<Vec<u8>>);

impl Scratch {
    fn take(&self) -> Vec<u8> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn put(&self, mut bytes: Vec<u8>) {
        if bytes.capacity() <= KEEP {
            bytes.clear();
            *self.0.lock().unwrap_or_else(PoisonError::into_inner) = bytes;
        }
    }
}

impl<T> Clone for PipeSender<T> {
    fn clone(&self) -> Self {
        PipeSender::new(self.frames.clone())
    }
}

impl<T> Clone for PipeReceiver<T> {
    fn clone(&self) -> Self {
        PipeReceiver::new(self.frames.clone())
    }
}

impl<S, R> Clone for Connection<S, R> {
    fn clone(&self) -> Self {
        Connection { sender: self.sender.clone(), receiver: self.receiver.clone() }
    }
}

impl<T> fmt::Debug for PipeSender<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("PipeSender").field(&self.frames).finish()
    }
}

impl<T> fmt::Debug for PipeReceiver<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("PipeReceiver").field(&self.frames).finish()
    }
}

impl<S, R> fmt::Debug for Connection<S, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("sender", &self.sender).field("receiver", &self.receiver).finish()
    }
}

impl<T> Serialize for PipeSender<T> {
    fn serialize<Z: Serializer>(&self, serializer: Z) -> Result<Z::Ok, Z::Error> {
        self.frames.serialize(serializer)
    }
}

impl<'de, T> Deserialize<'de> for PipeSender<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        FrameSender::deserialize(deserializer).map(PipeSender::new)
    }
}

impl<T> Serialize for PipeReceiver<T> {
    fn serialize<Z: Serializer>(&self, serializer: Z) -> Result<Z::Ok, Z::Error> {
        self.frames.serialize(serializer)
    }
}

impl<'de, T> Deserialize<'de> for PipeReceiver<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        FrameReceiver::deserialize(deserializer).map(PipeReceiver::new)
    }
}

impl<S, R> Serialize for Connection<S, R> {
    fn serialize<Z: Serializer>(&self, serializer: Z) -> Result<Z::Ok, Z::Error> {
        (&self.sender, &self.receiver).serialize(serializer)
    }
}

impl<'de, S, R> Deserialize<'de> for Connection<S, R> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (sender, receiver) = Deserialize::deserialize(deserializer)?;
        Ok(Connection { sender, receiver })
    }
}
