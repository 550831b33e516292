//! The check behind every function that is sound only while no other thread exists.

use std::error::Error;
use std::fmt;
use std::io;
use std::thread;
use std::time::Duration;

use crate::sys;

/// The process has more than one thread, so what was asked for would be unsound. It is the inner error of the
/// [`io::Error`] that [`fork_single_threaded`](crate::fork_single_threaded),
/// [`close_inherited`](crate::close_inherited) and [`remove_env`](crate::remove_env) return.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct NotSingleThreaded {
    /// What was refused.
    pub what: &'static str,
    /// How many threads the process has.
    pub threads: usize,
}

impl fmt::Display for NotSingleThreaded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let NotSingleThreaded { what, threads } = self;
        write!(f, "can't {what}: the process has {threads} threads, and only one is safe")
    }
}

impl Error for NotSingleThreaded {}

/// How long a thread that has been joined may still be listed: `join` returns a little before the system forgets it.
const PATIENCE: u32 = 20;

/// `Ok` if the calling thread is the only one. It stays so until this very thread starts another, since only a running
/// thread can.
pub(crate) fn require(what: &'static str) -> io::Result<()> {
    let mut tries = 0;
    loop {
        match sys::count_threads()? {
            1 => return Ok(()),
            threads if tries == PATIENCE => {
                return Err(io::Error::other(NotSingleThreaded { what, threads }));
            }
            _ => thread::sleep(Duration::from_millis(1)),
        }
        tries += 1;
    }
}
