//! Memory, descriptors and processes shared between the processes of [polypool].
//!
//! The process pool itself forbids `unsafe`; what needs it lives here, in small pieces behind safe functions, each with the
//! argument why it is sound:
//!
//! - [`Claims`] is the one piece of **shared memory**: a table that says for every call sent to a worker whether the worker
//!   has started it, so that a call is either run or taken back, never both.
//! - [`send_with_fds`] and [`recv_with_fds`] pass **descriptors** over a socket, the table's among them.
//! - [`fork_single_threaded`] makes a **process** without `exec`, and refuses where that would be unsound.
//! - [`close_inherited`], [`remove_env`], [`take_stdin`], [`ignore_sigpipe`] and [`set_process_name`] are what a worker
//!   does **to itself** before its first task; [`die_now`] is what it does when its parent has gone.
//! - [`before_main!`] lets a **test binary** become a worker before its test harness starts.
//! - [`PidFd`] and [`try_wait_pid`] kill a worker without hitting a stranger, and tell how it ended.
//!
//! # Trust
//!
//! The process on the other side may have crashed half-way or lie. Nothing it writes into shared memory or sends makes a function
//! of this crate panic or undefined behaviour possible; it can only spoil the outcome of the calls it was given.
//!
//! # Platforms
//!
//! Everything is there on Linux. On other Unix systems a function that has no equivalent returns
//! [`ErrorKind::Unsupported`](std::io::ErrorKind::Unsupported) and says so in its documentation; macOS lacks only [`PidFd`]. Elsewhere
//! (Windows) the crate compiles and is empty.
//!
//! [polypool]: https://github.com/polypool/polypool

#![cfg(unix)]

mod claims;
mod fds;
mod fork;
mod hook;
mod pidfd;
mod single_thread;
mod startup;
mod sys;

pub use claims::{ClaimState, Claims};
pub use fds::{recv_with_fds, send_with_fds};
pub use fork::{Fork, fork_single_threaded};
#[doc(hidden)]
pub use hook::run as __run_before_main;
pub use pidfd::{Exit, PidFd, SIGKILL, SIGTERM, try_wait_pid};
pub use single_thread::NotSingleThreaded;
pub use startup::{close_inherited, die_now, ignore_sigpipe, remove_env, set_process_name, take_stdin};
