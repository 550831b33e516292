//! Linux (and Android): sealed memory, `/proc`, pidfds.

use std::ffi::CStr;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, ftruncate, memfd_create};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// Where the descriptors of this process are listed.
pub(crate) const OPEN_DESCRIPTORS: &str = "/proc/self/fd";

/// A peer that hangs up is an error, not a signal.
pub(crate) const SEND_FLAGS: SendFlags = SendFlags::NOSIGNAL;

/// Descriptors arrive close-on-exec, with no moment between in which another thread could fork.
pub(crate) const RECV_FLAGS: RecvFlags = RecvFlags::CMSG_CLOEXEC;

/// Nobody can make the memory smaller or larger, or take that promise back.
const SEALS: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW).union(SealFlags::SEAL);

pub(crate) fn create_shared_memory(bytes: usize) -> io::Result<OwnedFd> {
    let name = "polypool";
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    // Kernels from 6.3 on want to hear that the memory is no program, older ones don't know the flag.
    let fd = match memfd_create(name, flags | MemfdFlags::NOEXEC_SEAL) {
        Err(Errno::INVAL) => memfd_create(name, flags)?,
        other => other?,
    };
    ftruncate(&fd, bytes as u64)?;
    fcntl_add_seals(&fd, SEALS)?;
    Ok(fd)
}

pub(crate) fn check_sealed(fd: BorrowedFd<'_>) -> io::Result<()> {
    // Descriptors that know no seals (files, sockets) say EINVAL.
    let seals = match fcntl_get_seals(fd) {
        Err(Errno::INVAL) => SealFlags::empty(),
        other => other?,
    };
    if seals.contains(SEALS) {
        Ok(())
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidData, "the shared memory is not sealed against shrinking"))
    }
}

/// How many threads this process has.
pub(crate) fn count_threads() -> io::Result<usize> {
    let mut threads = 0;
    for entry in std::fs::read_dir("/proc/self/task")? {
        entry?;
        threads += 1;
    }
    Ok(threads)
}

pub(crate) fn set_thread_name(name: &CStr) {
    // A name is for the reader of `ps`; nothing depends on it.
    let _ = rustix::thread::set_name(name);
}

pub(crate) fn open_pidfd(pid: Pid) -> io::Result<OwnedFd> {
    Ok(pidfd_open(pid, PidfdFlags::empty())?)
}

pub(crate) fn signal_pidfd(fd: BorrowedFd<'_>, signal: Signal) -> io::Result<()> {
    Ok(pidfd_send_signal(fd, signal)?)
}
