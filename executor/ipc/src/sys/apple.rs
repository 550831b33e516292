//! Apple's systems: `libproc` knows the number of threads.

use std::io;

/// How many threads this process has.
pub(super) fn count_threads() -> io::Result<usize> {
    let size = size_of::<libc::proc_taskinfo>() as libc::c_int;
    // SAFETY: the structure is made of integers only, for which zero is a value.
    let mut info: libc::proc_taskinfo = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes at most `size` bytes to `info`, which is that large and outlives the call.
    let written = unsafe {
        libc::proc_pidinfo(libc::getpid(), libc::PROC_PIDTASKINFO, 0, std::ptr::from_mut(&mut info).cast(), size)
    };
    if written != size {
        return Err(io::Error::last_os_error());
    }
    Ok(usize::try_from(info.pti_threadnum).unwrap_or(0))
}
