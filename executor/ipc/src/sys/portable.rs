//! Any Unix that isn't Linux: POSIX shared memory, and `Unsupported` where POSIX has no word for it.

use std::collections::hash_map::RandomState;
use std::ffi::CStr;
use std::hash::{BuildHasher, Hasher};
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::fs::{Mode, ftruncate};
use rustix::io::{Errno, FdFlags, fcntl_setfd};
use rustix::net::{RecvFlags, SendFlags};
use rustix::process::{Pid, Signal};

#[cfg(target_vendor = "apple")]
pub(crate) use super::apple::count_threads;

/// Where the descriptors of this process are listed.
pub(crate) const OPEN_DESCRIPTORS: &str = "/dev/fd";

/// No flag is known to all of these systems; `ignore_sigpipe` turns a peer that hangs up into an error.
pub(crate) const SEND_FLAGS: SendFlags = SendFlags::empty();

/// Not all of these systems can receive descriptors close-on-exec, so the flag is set afterwards.
pub(crate) const RECV_FLAGS: RecvFlags = RecvFlags::empty();

pub(crate) fn create_shared_memory(bytes: usize) -> io::Result<OwnedFd> {
    let fd = loop {
        // 64 random bits, and at most 31 characters in all, which is as many as macOS takes.
        let name = format!("/polypool-{:016x}", RandomState::new().build_hasher().finish());
        let flags = rustix::shm::OFlags::CREATE | rustix::shm::OFlags::EXCL | rustix::shm::OFlags::RDWR;
        match rustix::shm::open(&*name, flags, Mode::RUSR | Mode::WUSR) {
            Ok(fd) => {
                // Gone from the system's names at once, so that nothing stays behind and nobody else opens it.
                rustix::shm::unlink(&*name)?;
                break fd;
            }
            Err(Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
    };
    fcntl_setfd(&fd, FdFlags::CLOEXEC)?;
    ftruncate(&fd, bytes as u64)?;
    Ok(fd)
}

/// There are no seals to check. macOS lets such memory be sized only once; elsewhere a peer of the same user could
/// shrink it, and this process would die of SIGBUS, which is a crash but no undefined behaviour.
pub(crate) fn check_sealed(_fd: BorrowedFd<'_>) -> io::Result<()> {
    Ok(())
}

#[cfg(not(target_vendor = "apple"))]
pub(crate) fn count_threads() -> io::Result<usize> {
    Err(unsupported("the threads of a process can't be counted on this system"))
}

/// Only Linux shows a thread's name as the name of the process.
pub(crate) fn set_thread_name(_name: &CStr) {}

pub(crate) fn open_pidfd(_pid: Pid) -> io::Result<OwnedFd> {
    Err(unsupported("this system has no descriptors for processes"))
}

pub(crate) fn signal_pidfd(_fd: BorrowedFd<'_>, _signal: Signal) -> io::Result<()> {
    Err(unsupported("this system has no descriptors for processes"))
}

fn unsupported(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::Unsupported, what)
}
