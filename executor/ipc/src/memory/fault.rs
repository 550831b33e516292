//! What happens when memory under a mapping is taken away: it turns into zeros, and the mapping is marked as lost.
//!
//! Anonymous memory is sealed, so nobody can shrink it. A file in `/dev/shm` can't be sealed (the kernel refuses), and
//! whoever may write to it may also truncate it; the next access to a page beyond its end is a SIGBUS, which ends the
//! process. No check before the access helps, as the truncation may come between the two. Copying by `pread` and
//! `pwrite` would be safe, but costs a system call for each number, and there are no atomics in it. So named memory is
//! mapped, and the signal is dealt with, as systemd's journal and Wayland's compositors do: a handler puts private
//! pages of zeros in the place of the *whole* mapping, marks it as lost, and returns; the access that faulted then
//! finds zeros. Whoever reads looks at the mark afterwards, and reports the loss instead of the zeros.
//!
//! # Why the handler hits the right mapping
//!
//! Watches are used again, so the handler may look at one that another thread is just giving up or taking for a mapping
//! of its own: the start of the one and the length of the other would make a range that nobody watches, and the zeros
//! would go over a stranger's mapping. So each watch has a version, odd while it is being changed, and the handler
//! takes start and length only if the version is even and the same before and after ([`Watch::range`]): then both were
//! true at one moment. At that moment the watch's mapping existed (it is watched from after its mapping to before its
//! unmapping), and so did the one that is being accessed, which is borrowed by the access that faults, until the
//! handler returns. Two mappings that exist at the same time don't overlap; if both contain the address, they are the
//! same, and the watch stays with it as long as the access lasts. A watch that is being changed isn't that of the
//! access, and is passed over.
//!
//! The handler is installed when the first named memory is mapped, never for anonymous memory alone. A SIGBUS that is
//! not about one of our mappings goes to the handler that was there before (such as the standard library's, for stack
//! overflows).

use std::io;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering, fence};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};

/// One mapping under watch. Never freed, as the handler may look at it at any time; used again for the next mapping.
#[derive(Debug)]
pub(crate) struct Watch {
    /// Odd while the next two are being changed.
    version: AtomicUsize,
    /// 0: watches nothing.
    start: AtomicUsize,
    len: AtomicUsize,
    lost: AtomicBool,
    taken: AtomicBool,
    next: AtomicPtr<Watch>,
}

impl Watch {
    /// Watches another range, or none. Only for the one who has taken it.
    fn set(&self, start: usize, len: usize) {
        let version = self.version.load(Ordering::Relaxed);
        self.version.store(version.wrapping_add(1), Ordering::Relaxed);
        // Whoever sees one of the next two sees the odd version, or a later one, as well.
        fence(Ordering::Release);
        self.start.store(start, Ordering::Relaxed);
        self.len.store(len, Ordering::Relaxed);
        self.version.store(version.wrapping_add(2), Ordering::Release);
    }

    /// What it watches: start and length as they were at one moment; `None` if it's nothing, or is being changed.
    fn range(&self) -> Option<(usize, usize)> {
        let version = self.version.load(Ordering::Acquire);
        let range = (self.start.load(Ordering::Relaxed), self.len.load(Ordering::Relaxed));
        fence(Ordering::Acquire);
        (version & 1 == 0 && range.0 != 0 && self.version.load(Ordering::Relaxed) == version).then_some(range)
    }
}

static FIRST: AtomicPtr<Watch> = AtomicPtr::new(ptr::null_mut());
static BEFORE: OnceLock<libc::sigaction> = OnceLock::new();

/// Watches a mapping until it is dropped, which must happen before the unmapping.
#[derive(Debug)]
pub(crate) struct Watched(&'static Watch);

impl Watched {
    /// Watches the mapping of `len` bytes at `start`, which must be the caller's own and stay until this is dropped.
    pub(crate) fn new(start: *mut u8, len: usize) -> io::Result<Self> {
        install()?;
        let watch = all().find(|watch| !watch.taken.swap(true, Ordering::AcqRel)).unwrap_or_else(|| {
            let watch: &'static mut Watch = Box::leak(Box::new(Watch {
                version: AtomicUsize::new(0),
                start: AtomicUsize::new(0),
                len: AtomicUsize::new(0),
                lost: AtomicBool::new(false),
                taken: AtomicBool::new(true),
                next: AtomicPtr::new(FIRST.load(Ordering::Acquire)),
            }));
            let new: *mut Watch = watch;
            // SAFETY: leaked, so it stays; from here on it's only used by shared reference.
            let watch = unsafe { &*new };
            while let Err(first) =
                FIRST.compare_exchange(watch.next.load(Ordering::Relaxed), new, Ordering::AcqRel, Ordering::Acquire)
            {
                watch.next.store(first, Ordering::Relaxed);
            }
            watch
        });
        watch.lost.store(false, Ordering::Relaxed);
        watch.set(start.addr(), len);
        Ok(Watched(watch))
    }

    /// Whether the memory has been taken away, so that what is read there is not what was written.
    #[inline]
    pub(crate) fn is_lost(&self) -> bool {
        self.0.lost.load(Ordering::Acquire)
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.0.set(0, 0);
        self.0.taken.store(false, Ordering::Release);
    }
}

fn all() -> impl Iterator<Item = &'static Watch> {
    let mut at = FIRST.load(Ordering::Acquire);
    std::iter::from_fn(move || {
        // SAFETY: null, or leaked by `Watched::new`.
        let watch = unsafe { at.as_ref() }?;
        at = watch.next.load(Ordering::Acquire);
        Some(watch)
    })
}

/// Whether the handler is installed.
static INSTALLED: Mutex<bool> = Mutex::new(false);

/// The right to install the handler, held over a fork.
pub(crate) struct Frozen(#[allow(dead_code)] MutexGuard<'static, bool>);

pub(crate) fn freeze() -> Frozen {
    Frozen(INSTALLED.lock().unwrap_or_else(PoisonError::into_inner))
}

fn install() -> io::Result<()> {
    // Before the lock is taken for the first time, under which another thread may fork.
    crate::forked::watch()?;
    let mut installed = INSTALLED.lock().unwrap_or_else(PoisonError::into_inner);
    if *installed {
        return Ok(());
    }
    // SAFETY: `sigaction` is plain data, for which all zero is valid. It's asked for before ours is set, so that our
    // handler finds it.
    let before = unsafe {
        let mut before = std::mem::zeroed::<libc::sigaction>();
        if libc::sigaction(libc::SIGBUS, ptr::null(), &raw mut before) != 0 {
            return Err(io::Error::last_os_error());
        }
        before
    };
    let _ = BEFORE.set(before);
    // SAFETY: the handler has the signature that SA_SIGINFO asks for and does only what is allowed in one; it runs on
    // the thread's alternative stack if there is one, as the handlers of the standard library do.
    let result = unsafe {
        let mut ours = std::mem::zeroed::<libc::sigaction>();
        ours.sa_sigaction = on_sigbus as *const () as usize;
        ours.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        libc::sigemptyset(&raw mut ours.sa_mask);
        libc::sigaction(libc::SIGBUS, &raw const ours, ptr::null_mut())
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    *installed = true;
    Ok(())
}

/// Calls nothing but system calls and atomics (rustix makes its calls without touching `errno`).
extern "C" fn on_sigbus(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid `siginfo_t` to a handler with SA_SIGINFO, and for a fault it has an address.
    let (code, address) = unsafe { ((*info).si_code, (*info).si_addr().addr()) };
    // Positive codes come from the kernel; a process that sends the signal can't choose an address for us.
    let ours = (code > 0).then(|| {
        all().find_map(|watch| {
            let (start, len) = watch.range()?;
            address.checked_sub(start).is_some_and(|offset| offset < whole_pages(len)).then_some((watch, start, len))
        })
    });
    if let Some(Some((watch, start, len))) = ours {
        let start = ptr::with_exposed_provenance_mut(start);
        watch.lost.store(true, Ordering::Release);
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: replaces a mapping of ours that is being accessed right now (so it exists), by one of the same
        // extent. To those who use it, it's as if another process had written zeros, with which they must reckon.
        let replaced = unsafe { mmap_anonymous(start, len, protection, MapFlags::PRIVATE | MapFlags::FIXED) };
        if replaced.is_ok() {
            return;
        }
    }
    pass_on(signal, info, context);
}

fn whole_pages(len: usize) -> usize {
    // The last page of a mapping can fault behind the last byte of it too; 4 KiB is the least size of a page.
    len.checked_next_multiple_of(4096).unwrap_or(len)
}

fn pass_on(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let before = BEFORE.get().map_or((libc::SIG_DFL, 0), |before| (before.sa_sigaction, before.sa_flags));
    match before {
        (libc::SIG_IGN, _) => {}
        (libc::SIG_DFL, _) => {
            // SAFETY: plain system calls, allowed in a handler: the signal comes again as this one returns, with the
            // default action.
            unsafe {
                let mut default = std::mem::zeroed::<libc::sigaction>();
                default.sa_sigaction = libc::SIG_DFL;
                libc::sigaction(signal, &raw const default, ptr::null_mut());
                libc::raise(signal);
            }
        }
        (handler, flags) if flags & libc::SA_SIGINFO != 0 => {
            // SAFETY: it was installed as a handler of three arguments.
            let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) =
                unsafe { std::mem::transmute(handler) };
            handler(signal, info, context);
        }
        (handler, _) => {
            // SAFETY: it was installed as a handler of one argument.
            let handler: extern "C" fn(libc::c_int) = unsafe { std::mem::transmute(handler) };
            handler(signal);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watch_that_is_used_again_never_shows_the_range_of_two() {
        let watch = Watch {
            version: AtomicUsize::new(0),
            start: AtomicUsize::new(0),
            len: AtomicUsize::new(0),
            lost: AtomicBool::new(false),
            taken: AtomicBool::new(true),
            next: AtomicPtr::new(ptr::null_mut()),
        };
        let over = AtomicBool::new(false);
        let mut seen = 0;
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut round = 1;
                while !over.load(Ordering::Relaxed) {
                    watch.set(round, 3 * round);
                    watch.set(0, 0);
                    round = round % 1_000_000 + 1;
                }
            });
            for _ in 0..3_000_000 {
                if let Some((start, len)) = watch.range() {
                    // Ended first, so that a failure doesn't wait for the other thread.
                    over.fetch_or(len != 3 * start, Ordering::Relaxed);
                    assert_eq!(len, 3 * start);
                    seen += 1;
                }
            }
            // At least once, however the threads were run.
            while seen == 0 {
                seen += u32::from(watch.range().is_some());
                std::thread::yield_now();
            }
            over.store(true, Ordering::Relaxed);
        });
    }
}
