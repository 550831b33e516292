//! What the tests in this folder stand on.
//!
//! * [`harness`] runs each test, called a *trial*, in a process of its own and under a watchdog: a hang is a failure
//!   after 60 s, not a stuck run.
//! * [`fixture`] is the list of executors. A test of the contract is one function that takes a [`Fixture`] and is run
//!   once for each of them.
//! * [`gate`] lets a test hold tasks at a known point and see what they did, across threads and processes alike. With
//!   it, no test has to sleep and hope.
//! * [`tasks`] are the tasks that many tests submit, and [`Tracked`] is a value whose instances can be counted.
//! * [`waiting`] has each wait twice, once blocking and once awaited, because both must say the same.
//!
//! Which row of the conformance set is covered where is told in `CONFORMANCE.md`, and [`conformance`] checks that it
//! tells the truth.
#![forbid(unsafe_code)]

pub mod conformance;
pub mod fixture;
pub mod gate;
pub mod harness;
pub mod tasks;
pub mod tracked;
pub mod waiting;

use std::time::{Duration, Instant};

pub use fixture::{EXECUTORS, Fixture, Initializer, Pool, Spec};
pub use gate::{Board, Gate, Traces};
pub use harness::{ContractRow, Row, Suite};
pub use tracked::Tracked;
pub use waiting::Waiting;

/// `n` seconds.
#[must_use]
pub const fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// `n` milliseconds.
#[must_use]
pub const fn millis(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// Looks again and again whether something has come true, for as long as `limit`; the answer is the last look's.
///
/// Only for what nobody announces, such as the end of a thread of the operating system. For what a task does there are
/// gates.
#[must_use]
pub fn eventually(limit: Duration, mut is_true: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + limit;
    loop {
        if is_true() {
            return true;
        }
        if Instant::now() >= end {
            return false;
        }
        std::thread::sleep(millis(1));
    }
}

/// Calls `code` and asserts that it took less than `limit`.
///
/// # Panics
/// When it took longer.
#[track_caller]
pub fn within<R>(limit: Duration, code: impl FnOnce() -> R) -> R {
    let start = Instant::now();
    let result = code();
    let took = start.elapsed();
    assert!(took < limit, "took {took:?}, must take less than {limit:?}");
    result
}

/// Makes the rows of a file: each function under its own name. A test that is left out is reported by the compiler as
/// dead code.
#[macro_export]
macro_rules! rows {
    ($($name:ident),* $(,)?) => {
        &[$((stringify!($name), $name)),*]
    };
}
