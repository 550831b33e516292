//! What a worker does to itself before its first task, and how it ends when there is nobody left to work for.
//!
//! It happens here, in the worker, and not in the parent between `fork` and `exec`: a `pre_exec` hook makes starting a
//! process from a large parent many times slower. At this point the worker has a single thread; functions that rely on
//! it check it.

use std::ffi::{CString, OsStr};
use std::fs::{self, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;

use crate::{single_thread, sys};

/// Closes every descriptor that came in through `exec`, except standard input, output and error and those in `keep`.
///
/// A worker that inherits the write end of somebody's pipe by accident keeps its reader waiting for ever. Such
/// descriptors are open without anybody in this program knowing.
///
/// Inherited are those that are not close-on-exec: the others can't have come through `exec`, but were opened by this
/// program, as everything that std opens, and stay open. A descriptor that this program has made inheritable (or got
/// from a C library that forgot the flag) belongs into `keep`.
///
/// # Errors
///
/// [`NotSingleThreaded`](crate::NotSingleThreaded) (as the inner error) if the process has more than one thread;
/// [`Unsupported`](io::ErrorKind::Unsupported) where threads can't be counted (neither Linux nor macOS); or what the
/// system says when the list of descriptors (`/proc/self/fd`, `/dev/fd`) can't be read. Then nothing has been closed.
///
/// # Why it is safe
///
/// Nobody may close a descriptor that somebody else owns. What is closed here has no owner in this program: an
/// [`OwnedFd`] that std made is close-on-exec, and a descriptor that was inherited is a mere number. No other thread
/// exists that could be between opening a descriptor and setting its flag. What remains is an owner that has cleared
/// its flag or adopted an inherited number, which takes an `unsafe` of its own, or a library like rustix, and hasn't
/// been named in `keep`; so call this first of all. The worst outcome is an error or another file behind that owner's
/// descriptor, never invalid memory.
pub fn close_inherited(keep: &[BorrowedFd<'_>]) -> io::Result<()> {
    single_thread::require("close inherited descriptors")?;
    // Collected first, so that the list isn't changed under its reader; the reader's own descriptor is in it, but gone
    // by then.
    let mut open = Vec::new();
    for entry in fs::read_dir(sys::OPEN_DESCRIPTORS)? {
        if let Some(fd) = entry?.file_name().to_str().and_then(|name| name.parse::<RawFd>().ok()) {
            open.push(fd);
        }
    }
    for fd in open {
        if fd > libc::STDERR_FILENO && !keep.iter().any(|kept| kept.as_raw_fd() == fd) && is_inheritable(fd) {
            // SAFETY: nobody in this program owns it, see above. The result doesn't matter: Linux closes it in any
            // case.
            unsafe { libc::close(fd) };
        }
    }
    Ok(())
}

/// Unsets an environment variable, so that neither this process nor its children see it again. Fine if it isn't set.
///
/// # Errors
///
/// [`InvalidInput`](io::ErrorKind::InvalidInput) for a name that is empty or contains `=` or a zero byte;
/// [`NotSingleThreaded`](crate::NotSingleThreaded) (as the inner error) if the process has more than one thread;
/// [`Unsupported`](io::ErrorKind::Unsupported) where threads can't be counted (neither Linux nor macOS).
///
/// # Why it is safe
///
/// Changing the environment is unsound only while another thread may read it, and there is none.
pub fn remove_env(name: impl AsRef<OsStr>) -> io::Result<()> {
    let name = name.as_ref();
    if name.is_empty() || name.as_bytes().iter().any(|&byte| byte == b'=' || byte == 0) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{name:?} can't be the name of an environment variable"),
        ));
    }
    single_thread::require("change the environment")?;
    // SAFETY: this thread is the only one.
    unsafe { std::env::remove_var(name) };
    Ok(())
}

/// From now on writing to a pipe or socket that nobody reads is an error ([`BrokenPipe`](io::ErrorKind::BrokenPipe)),
/// and no longer the end of the process.
///
/// std does this before `main`; a worker that starts in [`before_main!`](crate::before_main) must do it itself.
/// Children inherit it.
pub fn ignore_sigpipe() {
    // SAFETY: sets a disposition that runs no code of ours; it can't fail for this signal.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
}

/// Takes what is open as standard input, by which a worker gets its channel, and puts `/dev/null` in its place, so that
/// a task that reads its input finds the end of it and not the frames of the pool.
///
/// The result is close-on-exec and none of the descriptors 0 to 2. What [`std::io::stdin`] may already have read stays
/// in its buffer, so call this before anybody reads.
///
/// # Errors
///
/// What the system says when standard input is closed, when there is no `/dev/null`, or when descriptors have run out.
/// Then standard input is as it was.
pub fn take_stdin() -> io::Result<OwnedFd> {
    let taken = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), libc::STDERR_FILENO + 1)?;
    // Opened by hand for the flag that keeps a terminal from becoming ours, should somebody have replaced /dev/null.
    let null = OpenOptions::new().read(true).custom_flags(libc::O_NOCTTY).open("/dev/null")?;
    // Replaces it in one step and leaves it inheritable, as standard input must be.
    rustix::stdio::dup2_stdin(&null)?;
    Ok(taken)
}

/// Names the calling thread, whose name, if it is the main one, `ps` and `top` show as that of the process. For the
/// reader only, and best effort: Linux takes the first 15 bytes, other systems nothing; what follows a zero byte is
/// left out.
pub fn set_process_name(name: &str) {
    let until_zero = name.split('\0').next().unwrap_or_default();
    if let Ok(name) = CString::new(until_zero) {
        sys::set_thread_name(&name);
    }
}

/// Ends this process at once: no destructor, no `atexit`, no flushing of buffers, no other thread in the way. The exit
/// code is 70.
///
/// For a worker whose parent has gone: whatever its tasks still do, nobody wants it, and a handler that waits for one
/// of them would keep an orphan alive. (A signal to itself wouldn't do: the first process of a container ignores even
/// SIGKILL from within.)
pub fn die_now() -> ! {
    // SAFETY: the function has no precondition and does not return.
    unsafe { libc::_exit(DIE_NOW) }
}

/// `EX_SOFTWARE`, which no signal and no shell produces by itself.
const DIE_NOW: i32 = 70;

/// Whether `fd` is open and would live through an `exec`.
fn is_inheritable(fd: RawFd) -> bool {
    // SAFETY: asks for the flags of a number; if nothing is open there, it says so.
    let flags = unsafe { libc::fcntl(fd, libc::F_GETFD) };
    flags != -1 && flags & libc::FD_CLOEXEC == 0
}
