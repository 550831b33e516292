//! Linux (and Android): sealed memory, `/proc`, pidfds.

use std::ffi::CStr;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, ftruncate, memfd_create};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};
use rustix::process::{Pid, PidfdFlags, Resource, Signal, getrlimit, pidfd_open, pidfd_send_signal};

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
    // Where files are limited to less (`ulimit -f`), the next call would end the process by SIGXFSZ.
    if getrlimit(Resource::Fsize).current.is_some_and(|limit| limit < bytes as u64) {
        return Err(Errno::FBIG.into());
    }
    ftruncate(&fd, bytes as u64)?;
    fcntl_add_seals(&fd, SEALS)?;
    Ok(fd)
}

/// Refuses what isn't plain memory: a page of a file on a network or of a huge-page pool may take for ever to come, or
/// never.
pub(crate) fn check_is_memory(fd: BorrowedFd<'_>) -> io::Result<()> {
    /// `TMPFS_MAGIC` of statfs(2).
    const TMPFS: i64 = 0x0102_1994;
    #[allow(clippy::unnecessary_cast)] // The type differs between architectures.
    if rustix::fs::fstatfs(fd)?.f_type as i64 == TMPFS {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::InvalidData, "a descriptor of no memory came with a handle"))
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

/// When a process started, in ticks since the boot; 0 if nobody can tell.
fn started(stat: io::Result<String>) -> u64 {
    // The name in the second field may hold anything, so the fields are counted from its closing bracket.
    let stat = stat.unwrap_or_default();
    let after = stat.rsplit_once(')').map_or("", |(_, after)| after);
    after.split_ascii_whitespace().nth(19).and_then(|field| field.parse().ok()).unwrap_or(0)
}

/// When this process started.
pub(crate) fn start_time() -> u64 {
    started(std::fs::read_to_string("/proc/self/stat"))
}

/// Whether a thread of the process with that number and start may still run in user mode.
///
/// A thread on its way out has `PF_EXITING` in its flags (the ninth field of `/proc/<pid>/task/<tid>/stat`, see
/// proc_pid_stat(5)) long before its memory is gone, and doesn't return from the kernel.
pub(crate) fn may_still_run(pid: Pid, start: u64) -> bool {
    let process = format!("/proc/{}", pid.as_raw_nonzero());
    if started(std::fs::read_to_string(format!("{process}/stat"))) != start {
        return false;
    }
    let Ok(threads) = std::fs::read_dir(format!("{process}/task")) else { return false };
    threads
        .flatten()
        .any(|thread| std::fs::read_to_string(thread.path().join("stat")).is_ok_and(|stat| says_it_runs(&stat)))
}

/// Whether the line that `/proc` has about a thread says that it may still run in user mode.
fn says_it_runs(stat: &str) -> bool {
    const PF_EXITING: u64 = 4;
    let mut fields = stat.rsplit_once(')').map_or("", |(_, after)| after).split_ascii_whitespace();
    let is_dead = matches!(fields.next(), None | Some("Z" | "X"));
    let flags: u64 = fields.nth(5).and_then(|field| field.parse().ok()).unwrap_or(0);
    !is_dead && flags & PF_EXITING == 0
}

/// Whether the process with that number and start is gone, all its threads included.
pub(crate) fn is_gone(pid: Pid, start: u64) -> bool {
    let fd = match open_pidfd(pid) {
        Ok(fd) => fd,
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return true,
        // Out of descriptors, or an old kernel: then a process of that number counts as the one that is meant.
        Err(_) => return rustix::process::test_kill_process(pid) == Err(Errno::SRCH),
    };
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    if matches!(poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&now)), Ok(ready) if ready > 0) {
        return true;
    }
    // 0: nobody can tell, as `/proc` isn't there or hides other processes.
    ![0, start].contains(&started(std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()))))
}

/// Keeps all signals from the calling thread as long as it lives.
pub(crate) struct BlockedSignals(libc::sigset_t);

pub(crate) fn block_signals() -> BlockedSignals {
    let mut all = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    let mut before = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: both sets are ours; `sigfillset` fills the first whole, and `pthread_sigmask` the second, as neither can
    // fail for these arguments.
    unsafe {
        libc::sigfillset(all.as_mut_ptr());
        // A fault is about the thread itself; the kernel ends the process if it's blocked, and a handler couldn't say
        // why (or mend it).
        for fault in [libc::SIGBUS, libc::SIGSEGV, libc::SIGFPE, libc::SIGILL] {
            libc::sigdelset(all.as_mut_ptr(), fault);
        }
        libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr());
        BlockedSignals(before.assume_init())
    }
}

impl Drop for BlockedSignals {
    fn drop(&mut self) {
        // SAFETY: the set was filled by `block_signals`; nobody asks for the old one.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.0, std::ptr::null_mut()) };
    }
}

/// The processors of the machine. Not those that this thread may use: a peer may use others, and if it doesn't,
/// spinning doesn't pay and soon ends.
pub(crate) fn cpus() -> usize {
    // Not a `OnceLock`, which a child that is forked off while another thread is in it would find busy for ever.
    static CPUS: AtomicUsize = AtomicUsize::new(0);
    match CPUS.load(Ordering::Relaxed) {
        0 => {
            // SAFETY: a question without pointers.
            let cpus = usize::try_from(unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) }).unwrap_or(1).max(1);
            CPUS.store(cpus, Ordering::Relaxed);
            cpus
        }
        cpus => cpus,
    }
}

/// The clock by which the kernel's timeouts go. From the C library, as rustix reads the kernel's own page for it, which
/// valgrind hides.
pub(crate) fn monotonic() -> libc::timespec {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a structure of ours; this clock is always there.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    now
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_is_exiting_runs_no_more() {
        // As proc_pid_stat(5) has them: number, name, state, parent, group, session, terminal, its group, flags, and
        // more.
        let stat =
            |state: &str, flags: u64| format!("77 (a) R 1 (b)) {state} 1 77 77 0 -1 {flags} 100 0 0 0 1 2 0 0 20 0");
        for state in ["R", "S", "D", "T", "t"] {
            assert!(says_it_runs(&stat(state, 0x40_0040)));
            assert!(!says_it_runs(&stat(state, 0x40_0044)), "PF_EXITING");
        }
        assert!(!says_it_runs(&stat("Z", 0x40_0040)) && !says_it_runs(&stat("X", 0)));
        assert!(!says_it_runs("") && !says_it_runs("77 (a"));
    }

    #[test]
    fn a_process_may_run_until_it_has_been_killed() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let pid = Pid::from_child(&child);
        let start = started(std::fs::read_to_string(format!("/proc/{}/stat", child.id())));
        assert!(start > 0 && may_still_run(pid, start) && !is_gone(pid, start));
        assert!(!may_still_run(pid, start + 1), "another process had that number");
        child.kill().unwrap();
        // Not waited for: it's there, but nothing of it runs.
        while may_still_run(pid, start) {
            std::thread::yield_now();
        }
        assert!(std::path::Path::new(&format!("/proc/{}", child.id())).exists());
        child.wait().unwrap();
        assert!(!may_still_run(pid, start) && is_gone(pid, start));
    }
}
