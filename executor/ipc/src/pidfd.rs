//! Killing a child and hearing how it ended, without ever meaning another process that got its number.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::process::{Pid, Signal, WaitOptions, waitpid};

use crate::sys;

/// Ends a process at once; it can't object.
pub const SIGKILL: i32 = libc::SIGKILL;

/// Asks a process to end.
pub const SIGTERM: i32 = libc::SIGTERM;

/// A process by descriptor: it means that process for ever, while its number passes to another one after it has been
/// waited for.
///
/// The descriptor becomes readable when the process ends, so a reactor can watch it. It is close-on-exec.
#[derive(Debug)]
pub struct PidFd {
    fd: OwnedFd,
}

impl PidFd {
    /// Opens the process that has the number `pid` now. Open a child before it is waited for: till then the number is
    /// its own, even if it has ended.
    ///
    /// # Errors
    ///
    /// [`InvalidInput`](io::ErrorKind::InvalidInput) if `pid` isn't positive; what the system says if there is no such
    /// process; [`Unsupported`](io::ErrorKind::Unsupported) on systems other than Linux, and Linux before 5.3 has no
    /// such call either.
    pub fn open(pid: i32) -> io::Result<PidFd> {
        Ok(PidFd { fd: sys::open_pidfd(checked(pid)?)? })
    }

    /// Sends a signal, [`SIGKILL`] for example.
    ///
    /// # Errors
    ///
    /// [`InvalidInput`](io::ErrorKind::InvalidInput) if there is no signal of that number; what the system says if the
    /// process has ended and has been waited for, or if it belongs to somebody else. A process that has ended but not
    /// been waited for takes signals without effect.
    pub fn kill(&self, signal: i32) -> io::Result<()> {
        let signal = Signal::from_named_raw(signal)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, format!("there is no signal {signal}")))?;
        sys::signal_pidfd(self.fd.as_fd(), signal)
    }
}

impl From<OwnedFd> for PidFd {
    /// Takes a pidfd that another process has opened and sent. A descriptor of something else makes
    /// [`kill`](PidFd::kill) fail and does no harm.
    fn from(fd: OwnedFd) -> Self {
        PidFd { fd }
    }
}

impl AsFd for PidFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Exit {
    /// By itself, with this exit code.
    Code(i32),
    /// By a signal.
    Signal {
        /// Its number.
        signal: i32,
        /// Whether the system says that it has written a core dump.
        core_dumped: bool,
    },
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Exit::Code(code) => write!(f, "exited with code {code}"),
            Exit::Signal { signal, core_dumped } => {
                write!(f, "was killed by signal {signal}")?;
                if *core_dumped {
                    write!(f, " (core dumped)")?;
                }
                Ok(())
            }
        }
    }
}

/// Whether the child `pid` has ended, and how; without waiting. The answer is given once: after it the number may
/// belong to another process.
///
/// Not for children that [`std::process::Child`] waits for: whoever comes first takes the answer.
///
/// # Errors
///
/// [`InvalidInput`](io::ErrorKind::InvalidInput) if `pid` isn't positive; what the system says (`ECHILD`) if it is no
/// child of this process, or has been waited for.
pub fn try_wait_pid(pid: i32) -> io::Result<Option<Exit>> {
    let pid = checked(pid)?;
    let status = loop {
        match waitpid(Some(pid), WaitOptions::NOHANG) {
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
            Ok(None) => return Ok(None),
            Ok(Some((_, status))) => break status,
        }
    };
    let exit = if let Some(code) = status.exit_status() {
        Some(Exit::Code(code))
    } else {
        // Neither: a debugger has stopped it, so it lives.
        status.terminating_signal().map(|signal| Exit::Signal { signal, core_dumped: libc::WCOREDUMP(status.as_raw()) })
    };
    Ok(exit)
}

/// Zero and negative numbers would mean groups of processes.
fn checked(pid: i32) -> io::Result<Pid> {
    Some(pid)
        .filter(|&pid| pid > 0)
        .and_then(Pid::from_raw)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, format!("there is no process {pid}")))
}
