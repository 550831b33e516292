//! What can go wrong, as types: the outcome of a task ([`TaskError`]), the refusal of a submit ([`SubmitError`]) and
//! the failure to make a pool ([`BuildError`]).
//!
//! The user's own `Result` stays inside the value: a task that returns `Err` has succeeded with that value. A
//! [`TaskError`] says that there is no value.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What a task ended with: its value, or why there is none.
pub type Outcome<T> = Result<T, TaskError>;

/// Why a task has no value.
///
/// [`std::error::Error::source`] of [`TaskError::Cancelled`] is [`futures_ext::Cancelled`], by which
/// [`futures_ext::FirstFailure`] knows that a cancelled task is no failure.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TaskError {
    /// Somebody cancelled it, or the pool was shut down with [`Shutdown::CancelQueued`](crate::Shutdown) or
    /// [`Shutdown::Now`](crate::Shutdown) before it ended.
    #[error("the task was cancelled")]
    Cancelled(#[source] futures_ext::Cancelled),
    /// It ran for longer than the `timeout` of its [`TaskOptions`](crate::TaskOptions).
    #[error("the task ran for longer than its timeout of {after:?}")]
    TimedOut {
        /// The timeout it was given.
        after: Duration,
    },
    /// The `deadline` of its [`TaskOptions`](crate::TaskOptions) passed, while it was queued or while it ran.
    #[error("the deadline passed before the task ended")]
    DeadlineExceeded,
    /// It panicked. The worker lives on.
    #[error("the task panicked{0}")]
    Panicked(Box<PanicReport>),
    /// The worker process that ran it died.
    #[error("{0}")]
    WorkerLost(Arc<WorkerLost>),
    /// Its argument or its result could not be encoded or decoded, or was larger than the limit.
    #[error(transparent)]
    Codec(Box<CodecError>),
    /// The executor did not accept it.
    #[error("the task was not accepted: {0}")]
    Rejected(#[source] SubmitError),
    /// The timeout of a whole [`map`](crate::ExecutorExt::map) passed: the wait ended, not a task's own time.
    #[error("the wait for the map ended, {0}")]
    WaitElapsed(#[source] futures_ext::Unfinished),
    /// An option has a value that can't work; the text names the option and what it takes.
    #[error("{0}")]
    InvalidOption(&'static str),
    /// The outcome was taken out of this future before: it can be had only once.
    #[error("the outcome of the task was already taken")]
    OutcomeTaken,
    /// Whoever was to complete it went away without doing so.
    #[error("the task was abandoned: its executor went away without completing it")]
    Abandoned,
}

impl TaskError {
    /// The error of a cancelled task.
    #[must_use]
    pub fn cancelled() -> Self {
        TaskError::Cancelled(futures_ext::Cancelled)
    }

    /// Whether this says that the task was cancelled.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        matches!(self, TaskError::Cancelled(_))
    }

    /// Whether [`TaskOptions::retries`](crate::TaskOptions::retries) runs the task again after this.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(self, TaskError::WorkerLost(_) | TaskError::Panicked(_) | TaskError::TimedOut { .. })
    }
}

impl From<CodecError> for TaskError {
    fn from(error: CodecError) -> Self {
        TaskError::Codec(Box::new(error))
    }
}

impl From<SubmitError> for TaskError {
    fn from(error: SubmitError) -> Self {
        TaskError::Rejected(error)
    }
}

/// A panic, as far as it can be told.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct PanicReport {
    /// The message; `None` when the payload was not text (`std::panic::panic_any`).
    pub message: Option<String>,
    /// The source file and line; `None` when the panic hook of this library was replaced by one that does not call
    /// the hook before it.
    pub location: Option<PanicLocation>,
}

/// Where a panic happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct PanicLocation {
    /// The source file, as the compiler knew it.
    pub file: String,
    /// The line, counted from 1.
    pub line: u32,
    /// The column, counted from 1.
    pub column: u32,
}

impl fmt::Display for PanicReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(place) = &self.location {
            write!(f, " at {}:{}", place.file, place.line)?;
        }
        match &self.message {
            Some(message) => write!(f, ": {message}"),
            None => write!(f, " with a payload that is not text"),
        }
    }
}

/// The death of a worker process.
#[derive(Clone, Debug)]
#[non_exhaustive]
#[doc(alias = "BrokenProcessPool")]
pub struct WorkerLost {
    /// The worker's number within its pool, from 0.
    pub worker: usize,
    /// Its process id.
    pub pid: u32,
    /// The task it was running.
    pub task: String,
    /// How it ended.
    pub exit: WorkerExit,
    /// The last lines it wrote to stderr, at most 4 KiB; this is where an allocation failure or a stack overflow
    /// says its name.
    pub stderr_tail: String,
}

impl fmt::Display for WorkerLost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "worker {} (pid {}) {} while running {:?}", self.worker, self.pid, self.exit, self.task)?;
        match self.stderr_tail.trim().lines().last() {
            Some(line) => write!(f, "; its last words: {line}"),
            None => Ok(()),
        }
    }
}

/// How a worker process ended.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum WorkerExit {
    /// It exited with this code.
    Code(i32),
    /// It was killed by this signal.
    Signal(i32),
    /// It sent bytes that are not of the protocol, and was killed for it; the text says what was wrong.
    Protocol(String),
    /// Its channel closed and its exit could not be told.
    Unknown,
}

impl fmt::Display for WorkerExit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            WorkerExit::Code(code) => write!(f, "exited with code {code}"),
            WorkerExit::Signal(signal) => write!(f, "was killed by signal {signal}"),
            WorkerExit::Protocol(what) => write!(f, "broke the protocol ({what})"),
            WorkerExit::Unknown => write!(f, "closed its channel"),
        }
    }
}

/// What could not be encoded or decoded, and what the codec said.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[non_exhaustive]
pub enum CodecError {
    /// The argument could not be encoded.
    #[error("the argument of the task could not be encoded: {0}")]
    EncodeArgument(String),
    /// The argument could not be decoded in the worker.
    #[error("the argument of the task could not be decoded in the worker: {0}")]
    DecodeArgument(String),
    /// The result could not be encoded in the worker.
    #[error("the result of the task could not be encoded in the worker: {0}")]
    EncodeResult(String),
    /// The result could not be decoded.
    #[error("the result of the task could not be decoded: {0}")]
    DecodeResult(String),
    /// The encoded argument or result is larger than the pool's `max_message_size`.
    #[error(
        "the encoded {what} of {size} bytes is larger than the limit of {limit} bytes; \
         raise it with ProcessPoolBuilder::max_message_size"
    )]
    TooLarge {
        /// `argument` or `result`.
        what: String,
        /// Its encoded size in bytes.
        size: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// The handles in the argument or the result (see "Handles travel" in the documentation of this crate) did not arrive, because a
    /// process has too many open descriptors, or too many were on their way.
    #[error("the handles in the {what} of the task did not arrive: {why}")]
    HandlesLost {
        /// `argument` or `result`.
        what: String,
        /// What stood in the way.
        why: String,
    },
    /// The worker executable does not know the task, or knows another one under its name.
    #[error("{0}")]
    UnknownTask(String),
    /// What was submitted has no form that could leave this process.
    #[error("{0:?} is a closure or future and can't leave this process; write it as a #[polypool::task]")]
    NotSerialisable(String),
}

/// Why an executor does not accept a task.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SubmitError {
    /// The backlog is full. `reserve().await` waits for room.
    #[error("the backlog is full: {limit} tasks are queued; wait for room with reserve().await")]
    Full {
        /// The limit set with `backlog(n)`.
        limit: usize,
    },
    /// The executor was shut down.
    #[error("the pool was shut down")]
    ShutDown,
    /// The executor is broken: its workers can't start.
    #[error("the pool is broken: {0}")]
    Broken(Arc<str>),
    /// This executor can't run what was submitted.
    #[error("{0}")]
    Unsupported(&'static str),
}

/// Why a pool could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// An option has a value that can't work; the text names the option and what it takes.
    #[error("{0}")]
    InvalidOption(&'static str),
    /// The program has no way to start itself as a worker.
    #[error(
        "this program can't start worker processes, because it never called polypool::init(): put \
         #[polypool::main] on its main function, or polypool::init() on the first line of it, or \
         polypool::worker_hook!() into a test binary, or name another executable with worker_executable(..)"
    )]
    NoEntry,
    /// This process was started as a worker but did not become one, so it must not start workers of its own.
    #[error(
        "this process was started to be a worker of process {parent}, but reached its own code first: call \
         polypool::init() on the first line of main, before anything else"
    )]
    InsideForgottenWorker {
        /// The process that wanted a worker.
        parent: u32,
    },
    /// Two functions are registered under one name.
    #[error("two tasks are registered under the name {0:?}; give one of them #[task(name = \"..\")]")]
    DuplicateTask(String),
    /// There is no process pool on this platform.
    #[error("process pools are not supported on this platform")]
    Unsupported,
    /// The initialiser could not be encoded.
    #[error("the initialiser could not be encoded: {0}")]
    Initializer(#[source] CodecError),
    /// The system refused something.
    #[error("the pool could not be made: {0}")]
    Io(#[from] std::io::Error),
}
