//! What can go wrong with a manager, as a type: [`ManagerError`], and [`Failure`], the part of it that crosses the
//! border.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::transport::{Address, ConnectError};
use crate::error::{BuildError, PanicReport};

/// Why a call of a manager's object has no result.
///
/// `Clone`, so that all calls that were in flight on a broken connection get the same one.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ManagerError {
    /// The server is gone, or the connection to it is. A call that was in flight may have run or not.
    #[error("the manager at {address} is gone: {why}")]
    ServerGone {
        /// Where it was.
        address: Address,
        /// How that was noticed.
        why: Arc<str>,
    },
    /// Another server answers at the address: the one that held the object has ended.
    #[error("the manager at {address} was started anew, and the {what} of its predecessor has gone with that")]
    Stale {
        /// Where it is.
        address: Address,
        /// The schema of the object.
        what: Arc<str>,
    },
    /// The server refused the connection, or it could not be made.
    #[error("no connection to the manager at {address}: {error}")]
    Connect {
        /// Where it was looked for.
        address: Address,
        /// What is wrong.
        #[source]
        error: Arc<ConnectError>,
    },
    /// The server asks for a key, or is reached by TCP, and this process has none.
    #[error(
        "this process has no key for the manager at {address}: call polypool::manager::set_security(..) first, in a pool's \
         workers by its initializer"
    )]
    NoKey {
        /// Where it is.
        address: Address,
    },
    /// The proxy, or the call, was inherited by a plain `fork`: it and its connection are the parent's.
    #[error(
        "the proxy was inherited by a fork, and its connection to the manager at {address} is that of the parent process; \
         connect here with Manager::connect(..), and find objects by their names or by proxies that came as data"
    )]
    Forked {
        /// Where the manager is.
        address: Address,
    },
    /// The object was removed, or nobody had referred to it any more.
    #[error(
        "the object is gone: it was removed, or nobody referred to it any more; give it a name with publish(..) to keep it"
    )]
    ObjectGone,
    /// The object is of another type than the proxy.
    #[error("the proxy is for `{expected}`, but the object is `{found}`")]
    SchemaMismatch {
        /// What the proxy is for.
        expected: Arc<str>,
        /// What the server has.
        found: Arc<str>,
    },
    /// The object has no such method: the two programs were built from different versions.
    #[error("the object has no method {method}: client and server were built from different versions")]
    UnknownMethod {
        /// The number of the method.
        method: u32,
    },
    /// No object has this name.
    #[error("the manager has no object of the name {0:?}")]
    UnknownName(Arc<str>),
    /// Another object has this name.
    #[error("the manager has another object of the name {0:?}")]
    NameTaken(Arc<str>),
    /// The server's program has no such type: it is another program, or the linker left the type out.
    #[error("the manager's program has no managed type {0:?}; it must be linked into the server's program as well")]
    UnknownType(Arc<str>),
    /// The server's program has no such update function.
    #[error(
        "the manager's program has no update {0:?} of this signature; it must be linked into the server's program as well"
    )]
    UnknownUpdate(Arc<str>),
    /// A constructor of the user's returned an error; this is its text.
    #[error("the object could not be made: {0}")]
    Constructor(Arc<str>),
    /// The method, constructor or update panicked in the server. The object lives on: as the panic left it after a
    /// method, as it was before after an update.
    #[error("the manager's object panicked{0}")]
    Panicked(Arc<PanicReport>),
    /// An argument or a result could not be encoded or decoded; the text says which and why.
    #[error("{0}")]
    Codec(Arc<str>),
    /// The message is larger than the limit.
    #[error(
        "the message of {size} bytes is larger than the limit of {limit} bytes; raise it with ManagerBuilder::max_message"
    )]
    TooLarge {
        /// Its size in bytes.
        size: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// This process makes more requests than the server allows.
    #[error("more requests than the manager allows in a second; the next one is accepted in {retry_after:?}")]
    Throttled {
        /// When a request will be accepted again.
        retry_after: Duration,
    },
    /// The time of the wait is up.
    #[error("the time is up")]
    TimedOut,
    /// A process ended while it held the lock. What the lock guards may be half changed: `repair()` takes the lock and
    /// says that it is in order again.
    #[error("process {pid} ended while it held the lock; take it with repair() once what it guards is in order")]
    Poisoned {
        /// The process that held it.
        pid: u32,
    },
    /// The queue was closed.
    #[error("the queue is closed")]
    Closed,
    /// The barrier is broken: a wait at it timed out or was aborted. `reset()` mends it.
    #[error("the barrier is broken: a wait at it timed out or was aborted")]
    BarrierBroken,
    /// Something was given back that had not been taken.
    #[error("{0}")]
    NotHeld(Arc<str>),
    /// The index is beyond the end of the list.
    #[error("index {index} is beyond the end of the list, which has {len} elements")]
    OutOfRange {
        /// The index.
        index: u64,
        /// The length of the list.
        len: u64,
    },
    /// The call was made by the object it is for, and would wait for itself.
    #[error("the object is called from inside one of its own methods, and would wait for itself")]
    WouldDeadlock,
    /// The manager was shut down.
    #[error("the manager was shut down")]
    ShutDown,
    /// An option has a value that can't work; the text names the option and what it takes.
    #[error("{0}")]
    InvalidOption(&'static str),
    /// Two managed types, or two updates, of the program have one name.
    #[error("two managed types or two updates are registered under the name {0:?}; give one of them (name = \"..\")")]
    DuplicateName(&'static str),
    /// The process of the manager could not be started.
    #[error("the manager's process could not be started: {0}")]
    Start(Arc<BuildError>),
    /// The system refused something.
    #[error("the manager could not be started: {0}")]
    Io(Arc<std::io::Error>),
}

impl From<std::io::Error> for ManagerError {
    fn from(error: std::io::Error) -> Self {
        ManagerError::Io(Arc::new(error))
    }
}

/// A failure as the server tells it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) enum Failure {
    ObjectGone,
    Schema { found: String },
    UnknownMethod(u32),
    UnknownName(String),
    NameTaken(String),
    UnknownType(String),
    UnknownUpdate(String),
    Constructor(String),
    Panicked(PanicReport),
    Codec(String),
    TooLarge { size: u64, limit: u64 },
    Throttled { retry_after: Duration },
    TimedOut,
    Poisoned { pid: u32 },
    Closed,
    BarrierBroken,
    NotHeld(String),
    OutOfRange { index: u64, len: u64 },
    ShutDown,
}

impl Failure {
    /// The failure as the caller sees it; `expected` is the schema of its proxy.
    pub(super) fn explain(self, expected: &str) -> ManagerError {
        match self {
            Failure::ObjectGone => ManagerError::ObjectGone,
            Failure::Schema { found } => {
                ManagerError::SchemaMismatch { expected: expected.into(), found: found.into() }
            }
            Failure::UnknownMethod(method) => ManagerError::UnknownMethod { method },
            Failure::UnknownName(name) => ManagerError::UnknownName(name.into()),
            Failure::NameTaken(name) => ManagerError::NameTaken(name.into()),
            Failure::UnknownType(name) => ManagerError::UnknownType(name.into()),
            Failure::UnknownUpdate(name) => ManagerError::UnknownUpdate(name.into()),
            Failure::Constructor(why) => ManagerError::Constructor(why.into()),
            Failure::Panicked(report) => ManagerError::Panicked(Arc::new(report)),
            Failure::Codec(why) => ManagerError::Codec(why.into()),
            Failure::TooLarge { size, limit } => ManagerError::TooLarge { size, limit },
            Failure::Throttled { retry_after } => ManagerError::Throttled { retry_after },
            Failure::TimedOut => ManagerError::TimedOut,
            Failure::Poisoned { pid } => ManagerError::Poisoned { pid },
            Failure::Closed => ManagerError::Closed,
            Failure::BarrierBroken => ManagerError::BarrierBroken,
            Failure::NotHeld(what) => ManagerError::NotHeld(what.into()),
            Failure::OutOfRange { index, len } => ManagerError::OutOfRange { index, len },
            Failure::ShutDown => ManagerError::ShutDown,
        }
    }
}
