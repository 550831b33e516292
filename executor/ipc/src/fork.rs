//! `fork` without `exec`, made safe by a check.
//!
//! Forking a process with several threads leaves a child in which the others have vanished in the middle of what they
//! did: locks (also the allocator's) stay locked, data stays half-written. With a single thread nothing of this can
//! happen, and the child is an ordinary copy of the parent.
//!
//! And a number by which a child is noticed that somebody else has forked, whatever threads there were.

use std::io;

use crate::single_thread;

/// On which side of the fork the caller is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use = "both processes continue from here, and each must know which one it is"]
pub enum Fork {
    /// In the process that called.
    Parent {
        /// The process id of the new process. It's ours to wait for: [`try_wait_pid`](crate::try_wait_pid).
        child: i32,
    },
    /// In the new process.
    Child,
}

/// A number by which what this process has made is told from what it has inherited by a plain `fork`: remember it with
/// what is made, and compare later. It's the same as long as the process lives, another one in each child that it forks,
/// and costs next to nothing (on Linux; elsewhere a system call).
///
/// Children that are made past the C library (`clone`, `_Fork`) are not noticed on Linux.
#[inline]
#[must_use = "it has no effect but its result"]
pub fn fork_generation() -> u32 {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    {
        // It fails when there is no memory for a few bytes, and then the next call tries again.
        let _ = crate::forked::watch();
        crate::forked::generation()
    }
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    {
        std::process::id()
    }
}

/// Splits this process in two.
///
/// The child has a copy of everything, which includes the descriptors (close what it must not hold: its copy of a
/// pipe's end keeps that pipe open) and unwritten output in buffers (flush before). What refers to the process itself
/// stays the parent's: its children, file locks and timers.
///
/// Mind that a child that returns from here runs the rest of the caller's code too; most end in
/// [`std::process::exit`] or [`die_now`](crate::die_now).
///
/// # Errors
///
/// [`NotSingleThreaded`](crate::NotSingleThreaded) (as the inner error) if the process has more than one thread;
/// [`Unsupported`](io::ErrorKind::Unsupported) where threads can't be counted (neither Linux nor macOS); or what the
/// system says when no process can be made, or when `/proc` isn't there.
///
/// # Why it is safe
///
/// POSIX restricts the child of a fork to async-signal-safe functions if the process had several threads. It had one,
/// so the child may go on with anything. What remains is code that maps memory shared with its own copy and yet
/// believes to own it alone, as a ring of io_uring does; that is for the one who maps it to prevent (`MADV_DONTFORK`),
/// as for any other fork.
pub fn fork_single_threaded() -> io::Result<Fork> {
    single_thread::require("fork")?;
    // SAFETY: this thread is the only one, and no other can have come into being since, as only a running thread starts
    // another.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Fork::Child),
        child => Ok(Fork::Parent { child }),
    }
}
