//! The same task on threads and on processes.
#![forbid(unsafe_code)]

// The macros name this crate by its name, also in its own code.
#[allow(unused_extern_crates)]
extern crate self as polypool;

mod backlog;
mod clock;
mod codec;
mod context;
mod error;
mod executor;
mod future;
mod job;
mod map;
mod options;
mod panic;
mod process;
mod program;
#[doc(hidden)]
pub mod result_bytes;
mod state;
mod task;
mod thread;

pub use context::{Context, Progress, context};
pub use error::{
    BuildError, CodecError, Outcome, PanicLocation, PanicReport, SubmitError, TaskError, WorkerExit, WorkerLost,
};
pub use executor::{Executor, ExecutorExt, Refused, Reservation, Shutdown, Slot, Stats, TrySubmitError, WorkerStats};
pub use future::{AlreadyDone, Completer, TaskFuture, TaskHandle, Terminated};
pub use map::{BlockingMap, DEFAULT_MAP_BUFFER, Map, MapUnordered, Ordered, Unordered};
pub use options::{Priority, TaskOptions};
pub use polypool_macros::{main, task};
pub use process::{InitializerOutput, ProcessPool, ProcessPoolBuilder, StartMethod, init};
pub use state::{Call, TaskId, TaskState};
pub use task::{Run, Task};
pub use thread::{MAX_EXTRA_WORKERS, ThreadPool, ThreadPoolBuilder};

/// What the macros write; not for use by hand.
#[doc(hidden)]
pub mod __private {
    pub use crate::process::init_before_main;
    pub use crate::program::{Flavor, run_main};
    pub use crate::result_bytes;
    pub use crate::task::{Registration, TASKS};
    pub use linkme;
    #[cfg(unix)]
    pub use polypool_ipc::before_main;
    pub use serde;
    pub use serde_bytes;
}
