//! The same task on threads and on processes: typed, async-native, crash-proof.
//!
//! A few nouns, and then how they work together:
//!
//! * A **task** is a call as a value. [`#[task]`](macro@task) on a function `fn resize(..)` adds a struct `resize { .. }`
//!   of its arguments, which any executor can run.
//! * An **executor** runs tasks: [`ThreadPool`] on threads of this process, [`ProcessPool`] on worker processes. Both
//!   implement [`Executor`], whose documentation is the contract, and have the calls of [`ExecutorExt`]: `submit`,
//!   `map` and so on.
//! * A [`TaskFuture`] is what a submit returns. Await it under any runtime, or [`wait`](TaskFuture::wait) for it with
//!   none; cancel it; have it call you back.
//! * The [`context()`] of a running task says whether it is to stop, and takes reports of progress.
//! * [`futures_ext`] has what is done with many futures: `as_completed`, `wait`, timeouts, progress bars.
//!
//! ```
//! # polypool::worker_hook!();
//! use std::sync::Arc;
//! use polypool::{Executor, ExecutorExt, ProcessPool, TaskError, ThreadPool};
//!
//! #[polypool::task]
//! fn checked_div(a: i64, b: i64) -> i64 {
//!     a / b
//! }
//!
//! #[polypool::main]
//! async fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let pools: [Arc<dyn Executor>; 2] = [Arc::new(ThreadPool::new()?), Arc::new(ProcessPool::new()?)];
//!     for pool in pools {
//!         assert_eq!(pool.submit(checked_div { a: 42, b: 6 }).await?, 7);
//!         // A panic is an error of that task alone, wherever it ran.
//!         let error = pool.submit(checked_div { a: 1, b: 0 }).await.unwrap_err();
//!         assert!(matches!(error, TaskError::Panicked(_)));
//!     }
//!     Ok(())
//! }
//! ```
//!
#![cfg_attr(
    any(target_os = "linux", target_os = "android"),
    doc = "Coming from Python? [`from_python`] has every API that you know, and what to use for it here."
)]
//!
//! # Workers and `main`
//!
//! A worker process is the program started again. [`#[main]`](macro@main) or [`init()`] on the first line of `main` is
//! where it turns off and becomes a worker; test binaries use [`worker_hook!`]. A program that has none of them can use
//! threads, and is told so when it builds a [`ProcessPool`].
//!
//! # Handles travel
//!
//! What processes share (memory, a lock, a pipe) is held by a handle, and a handle can be an argument of a task, a field of one, or its
//! result, on every executor. On threads it moves like any value. To a worker process, its descriptor goes along with the
//! call: the worker gets one of its own for the same thing. The bare form is `Fd`, which makes a handle of any descriptor:
//!
#![cfg_attr(unix, doc = "```")]
#![cfg_attr(not(unix), doc = "```ignore")]
//! # polypool::worker_hook!();
//! use std::io::{PipeWriter, Read, Write};
//! use polypool::{ExecutorExt, Fd, ProcessPool};
//!
//! #[polypool::task]
//! fn greet(into: Fd) {
//!     let mut pipe = PipeWriter::from(into.into_inner().expect("a descriptor"));
//!     pipe.write_all(b"hello").expect("a reader");
//! }
//!
//! #[polypool::main]
//! fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let pool = ProcessPool::builder().workers(1).build()?;
//!     let (mut reader, writer) = std::io::pipe()?;
//!     pool.submit(greet { into: Fd::new(writer.into()) }).wait()?;
//!     // The pipe has an end, because nobody holds the writer any more.
//!     let mut text = String::new();
//!     reader.read_to_string(&mut text)?;
//!     assert_eq!(text, "hello");
//!     Ok(())
//! }
//! ```
//!
//! * A call with handles keeps them until it has its outcome, because it may have to be sent again: to another worker, or as a
//!   retry. A call that is cancelled while it is queued closes them at once.
//! * A call with handles is not sent ahead to a worker that has something else to do, so that no pipe is kept open by a
//!   descriptor that nobody has received. That costs small tasks some microseconds each; in the chunks of a
//!   [`map`](ExecutorExt::map), a handle that all of them have travels once.
//! * A call or chunk carries at most 1,024 handles, and so does its answer. If one of the two processes has no descriptors left, that call
//!   fails with [`CodecError::HandlesLost`].
//! * Encoded by anything else than an executor, as by `serde_json`, a handle is an error that says so.
//!
//! # Features of the platform
//!
//! Linux is first class. On other Unix systems the process pool uses portable means; on Windows its builder returns
//! [`BuildError::Unsupported`], and everything else works.

#![forbid(unsafe_code)]

// The macros name this crate by its name, also in its own code.
#[allow(unused_extern_crates)]
extern crate self as polypool;

mod backlog;
#[doc(hidden)]
pub mod block;
mod buffers;
mod bundle;
mod child;
mod clock;
mod codec;
#[cfg(unix)]
pub mod command;
mod context;
mod cores;
mod error;
mod executor;
// Only in the documentation. Its examples are for Linux, as shared state is.
#[cfg(all(any(doc, doctest), any(target_os = "linux", target_os = "android")))]
#[doc = include_str!("from_python.md")]
pub mod from_python {}
mod future;
mod job;
pub mod manager;
mod map;
mod options;
mod panic;
mod pool;
mod process;
mod program;
pub mod queue;
mod quick;
#[doc(hidden)]
pub mod result_bytes;
#[cfg(any(target_os = "linux", target_os = "android"))]
pub mod shared;
mod state;
mod task;
mod thread;
mod timer;

pub use child::{
    Process, ProcessBuilder, ProcessInfo, StartError, active_children, current_process, join_children, parent_process,
};
pub use context::{Context, Progress, context};
pub use error::{
    BuildError, CodecError, Outcome, PanicLocation, PanicReport, SubmitError, TaskError, WorkerExit, WorkerLost,
};
pub use executor::{Executor, ExecutorExt, Refused, Reservation, Shutdown, Slot, Stats, TrySubmitError, WorkerStats};
pub use future::{AlreadyDone, Completer, TaskFuture, TaskHandle, Terminated, WaitAll, wait_all};
pub use map::{BlockingMap, DEFAULT_MAP_BUFFER, Map, MapUnordered, Ordered, Unordered};
pub use options::{Priority, TaskOptions};
#[cfg(unix)]
pub use polypool_ipc::Fd;
pub use polypool_macros::{main, managed, task, update};
pub use pool::{Pool, StillOpen};
pub use process::{InitializerOutput, ProcessPool, ProcessPoolBuilder, StartMethod, init};
pub use state::{Call, TaskId, TaskState};
pub use task::{Run, Task};
pub use thread::{MAX_EXTRA_WORKERS, ThreadPool, ThreadPoolBuilder};
pub use timer::Periodic;

#[cfg(not(unix))]
#[doc(hidden)]
#[macro_export]
macro_rules! __no_hook {
    ($function:path) => {};
}

/// What reads bytes of a worker or a supervisor, for fuzz targets.
#[cfg(all(fuzzing, unix))]
#[doc(hidden)]
pub mod fuzzing {
    pub use crate::process::fuzzing::{answers, calls, frames};
}

/// What the macros write; not for use by hand.
#[doc(hidden)]
pub mod __private {
    pub use crate::block;
    pub use crate::manager::private as manager;
    pub use crate::process::init_before_main;
    pub use crate::program::{Flavor, run_main};
    pub use crate::result_bytes;
    pub use crate::task::{Registration, TASKS};
    pub use bytes::Bytes;
    pub use linkme;
    // Where there are no worker processes, the hook for test binaries has nothing to do.
    #[cfg(not(unix))]
    pub use crate::__no_hook as before_main;
    #[cfg(unix)]
    pub use polypool_ipc::before_main;
    pub use serde;
    pub use serde_bytes;
}

/// The examples of the README are compiled with the doc tests.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;
