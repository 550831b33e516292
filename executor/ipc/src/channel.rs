//! Channels between processes: what one puts in, another one takes out.
//!
//! | Python | here |
//! |---|---|
//! | `multiprocessing.Queue(maxsize)` | [`Queue::bounded`], [`Queue::unbounded`] |
//! | `multiprocessing.JoinableQueue` | [`JoinableQueue`] |
//! | `multiprocessing.SimpleQueue`, and messages that are bytes already | [`ByteQueue`] |
//!
//! A queue is memory, without a thread that feeds it: an item is in the queue when `put` returns. Any number of
//! processes share one, and a process that is killed takes at most the item along that it was just getting.

pub(crate) mod codec;
pub(crate) mod join;
pub(crate) mod pipe;
pub(crate) mod queue;
pub(crate) mod ring;
pub(crate) mod ring_socket;
pub(crate) mod stream;

pub use codec::CodecError;
pub use join::{JoinableQueue, Task, TooManyDone};
pub use queue::{ByteQueue, GetError, ItemStream, Items, PutError, PutFailure, Queue, QueueOptions};
pub use ring::Corrupt;
