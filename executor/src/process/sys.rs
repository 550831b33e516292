//! What differs between systems: how the end of a child process is noticed.
//!
//! On Linux a pidfd becomes readable in that moment. Elsewhere the child is asked for its exit from time to time, which
//! begins only when its channel has ended, so it is a matter of a moment there too.

use std::cell::RefCell;
use std::io;
use std::process::Child;

use crate::error::WorkerExit;

/// A child process, to be waited for and killed from the supervisor's thread.
pub(super) struct Process {
    child: RefCell<Child>,
    #[cfg(target_os = "linux")]
    end: End,
}

/// Notices the end of a process, by its pidfd.
#[cfg(target_os = "linux")]
pub(super) struct End {
    pidfd: polypool_ipc::PidFd,
    /// The same descriptor in the one form of a bare descriptor that tokio takes without `unsafe`. It is not a pipe and
    /// is never read; it is only waited for.
    readable: tokio::net::unix::pipe::Receiver,
}

#[cfg(target_os = "linux")]
impl End {
    /// Must be called on the supervisor's runtime.
    pub(super) fn new(pidfd: polypool_ipc::PidFd) -> io::Result<Self> {
        use std::os::fd::AsFd as _;
        let watched = pidfd.as_fd().try_clone_to_owned()?;
        Ok(End { pidfd, readable: tokio::net::unix::pipe::Receiver::from_owned_fd_unchecked(watched)? })
    }

    pub(super) async fn wait(&self) {
        let _ = self.readable.readable().await;
    }

    pub(super) fn kill(&self) {
        self.signal(polypool_ipc::SIGKILL);
    }

    pub(super) fn signal(&self, signal: i32) {
        // Fails when it has exited already, which is what is wanted.
        let _ = self.pidfd.kill(signal);
    }
}

impl Process {
    /// Must be called on the supervisor's runtime. If it fails, the child has been killed and reaped.
    pub(super) fn watch(mut child: Child) -> io::Result<Self> {
        #[cfg(target_os = "linux")]
        {
            let pid = i32::try_from(child.id()).map_err(io::Error::other)?;
            let watched = polypool_ipc::PidFd::open(pid).and_then(End::new);
            match watched {
                Ok(end) => Ok(Process { child: RefCell::new(child), end }),
                Err(error) => {
                    let _ = child.kill();
                    let _ = child.wait();
                    Err(error)
                }
            }
        }
        #[cfg(not(target_os = "linux"))]
        Ok(Process { child: RefCell::new(child) })
    }

    pub(super) fn kill(&self) {
        // Fails when it has exited already, which is what is wanted.
        let _ = self.child.borrow_mut().kill();
    }

    /// Sends a signal, if it has not been reaped.
    pub(super) fn signal(&self, signal: i32) {
        #[cfg(target_os = "linux")]
        self.end.signal(signal);
        #[cfg(not(target_os = "linux"))]
        if let Ok(None) = self.child.borrow_mut().try_wait()
            && let Some(pid) = i32::try_from(self.child.borrow().id()).ok().and_then(rustix::process::Pid::from_raw)
            && let Some(signal) = rustix::process::Signal::from_named_raw(signal)
        {
            let _ = rustix::process::kill_process(pid, signal);
        }
    }

    /// Kills and reaps it, for a start that has failed.
    pub(super) fn end(&self) {
        self.kill();
        let _ = self.child.borrow_mut().wait();
    }

    /// Waits until it has ended, and reaps it.
    ///
    /// # Cancellation safety
    /// Can be dropped and called again.
    pub(super) async fn wait(&self) -> WorkerExit {
        #[cfg(target_os = "linux")]
        self.end.wait().await;
        let mut pause = std::time::Duration::from_millis(1);
        loop {
            let status = self.child.borrow_mut().try_wait();
            match status {
                Ok(Some(status)) => return exit_of(status),
                Ok(None) => {
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(std::time::Duration::from_millis(50));
                }
                // Somebody else has waited for our child; how it ended is lost.
                Err(_) => return WorkerExit::Unknown,
            }
        }
    }
}

pub(super) fn exit_of(status: std::process::ExitStatus) -> WorkerExit {
    use std::os::unix::process::ExitStatusExt as _;
    match (status.code(), status.signal()) {
        (Some(code), _) => WorkerExit::Code(code),
        (None, Some(signal)) => WorkerExit::Signal(signal),
        (None, None) => WorkerExit::Unknown,
    }
}
