//! Combinators for any future: collect many as they finish, bound the waiting, tag, cancel, watch.
//!
//! Python's `concurrent.futures` has `as_completed`, `wait`, callbacks and timeouts, but only for its own futures. This
//! crate has them for **every** [`Future`]: a task of some pool, a `JoinHandle`, a request, an `async` block. It knows no
//! executor, starts nothing and needs no runtime.
//!
//! A few nouns:
//!
//! - [`as_completed()`] makes a stream of outputs in the order in which the futures finish. With
//!   [`timeout`](AsCompleted::timeout) it ends by itself and says what is missing: "unfinished 1 of 4".
//! - [`wait()`] collects many at once, until [`All`] are done, or the [`FirstCompleted`], or the [`FirstFailure`], and hands
//!   back the futures that are still pending.
//! - [`FutureExt`] adds [`timeout`](FutureExt::timeout), [`deadline`](FutureExt::deadline),
//!   [`tagged`](FutureExt::tagged) and [`cancellable`](FutureExt::cancellable) to a single future ([`on_done()`] is a
//!   function beside it), and [`wait`](FutureExt::wait) and [`wait_timeout`](FutureExt::wait_timeout) for threads with no runtime.
//! - [`ProgressExt`] puts a progress bar on any stream, [`ProgressIteratorExt`] on any iterator.
//! - [`block_on`] is what every blocking wait here stands on. A [`BlockingObserver`] lets a thread pool learn that one of
//!   its threads is about to sit idle.
//!
//! # Example
//!
//! ```
//! use std::time::Duration;
//! use futures_ext::{FutureExt, as_completed};
//! use futures_util::StreamExt;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() {
//! let squares = (1..=3_u64).map(|n| async move { n * n }.tagged(n));
//! let mut done = as_completed(squares).timeout(Duration::from_secs(6));
//! while let Some(item) = done.next().await {
//!     let (n, square) = item.expect("three squares take less than 6 s");
//!     println!("{n}: {square}");
//! }
//! # }
//! ```
//!
//! # A wait is not a task
//!
//! Every timeout in this crate bounds the *waiting*. What happens to the work behind a future that is dropped, or handed
//! back as pending, is up to the future: an `async` block stops, a `JoinHandle` detaches.
//!
//! # Runtimes
//!
//! Under tokio the collectors take part in cooperative scheduling once per item, however many futures they watch. Timeouts
//! use a timer that fires under any runtime or none; the blocking waits need no timer at all.

#![forbid(unsafe_code)]

mod alarm;
mod as_completed;
mod blocking;
mod cancellable;
mod ext;
mod on_done;
mod progress;
mod set;
mod tagged;
mod timeout;
mod wait;

pub use as_completed::{AsCompleted, AsCompletedTimeout, Blocking, IntoPending, Unfinished, as_completed};
pub use blocking::{BlockingObserver, block_on, block_on_deadline, set_blocking_observer};
pub use cancellable::{Cancellable, Cancelled};
pub use ext::FutureExt;
pub use on_done::{OnDone, on_done};
pub use progress::{Bar, Progress, ProgressExt, ProgressIter, ProgressIteratorExt, ProgressStream};
pub use tagged::Tagged;
pub use timeout::{Elapsed, Timeout};
/// A signal that travels down a tree of tokens, from tokio-util: what [`FutureExt::cancellable`] listens to.
pub use tokio_util::sync::CancellationToken;
pub use wait::{All, FirstCompleted, FirstFailure, Outcome, ReturnWhen, Wait, Waited, wait};
